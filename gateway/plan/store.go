package plan

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/gateway/replicas"
)

// A Store is the operator's side: it writes plans, and what is active. Its methods may be called by several goroutines.
type Store struct {
	now    func() time.Time
	stream jetstream.JetStream
	bucket jetstream.KeyValue
}

// StoreConfig is how the bucket and its audit are made if they are not there.
type StoreConfig struct {
	// Replicas is 1, 3 or 5; 0 means as many as the list of nodes has.
	Replicas int
	// AuditBytesMax bounds the audit; beyond it the oldest changes go. 0 means AuditBytesDefault.
	AuditBytesMax int64
	// Now tells the time; nil means time.Now.
	Now func() time.Time
}

const (
	// AuditBytesDefault has room for some thousand changes that apply large plans, and for many more of the usual ones.
	AuditBytesDefault = 64 << 20
	// historyKept is how many versions of a plan, and changes of what is active, are kept to go back to. The bucket allows no more.
	historyKept = 64
	// plansMax bounds the plans of a bucket.
	plansMax = 1000
	// auditWait bounds the wait for the audit to have the newest change, and auditPoll is how often it is looked at.
	auditWait = 3 * time.Second
	auditPoll = 20 * time.Millisecond
	// HistoryMax bounds the changes that are read at once.
	HistoryMax = 10_000
)

// ErrNotFound says that there is no such plan, or no such version.
var ErrNotFound = errors.New("there is no such plan")

// ErrNothingBefore says that there is nothing to roll back to.
var ErrNothingBefore = errors.New("nothing was active before: there is no change to roll back")

// A ConflictError says that somebody else changed what was to be changed, a moment before. Nothing was done.
type ConflictError struct {
	// What it is: a plan, or what is active.
	What string
	// Want and Have are the revisions.
	Want, Have uint64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s changed meanwhile: it is at revision %d, not %d; look at it, and try again", e.What, e.Have, e.Want)
}

// OpenStore opens the bucket and the audit, and makes what is not there.
func OpenStore(ctx context.Context, stream jetstream.JetStream, config StoreConfig) (*Store, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	bucket, err := provision(ctx, stream, config)
	if err != nil {
		return nil, err
	}
	return &Store{now: config.Now, stream: stream, bucket: bucket}, nil
}

// provision opens the bucket and the audit. A stream that is there stays as somebody made it. With an error about the audit alone it returns
// the bucket all the same.
func provision(ctx context.Context, stream jetstream.JetStream, config StoreConfig) (jetstream.KeyValue, error) {
	bucket, err := stream.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		var copies int
		if copies, err = config.replicas(ctx, stream); err != nil {
			return nil, fmt.Errorf("make bucket %s: %w", Bucket, err)
		}
		bucket, err = stream.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: Bucket, Description: "plans of the gateways", History: historyKept, Storage: jetstream.FileStorage, Replicas: copies,
			MaxValueSize: (ActiveMax + 2) * TextBytesMax * 2, // JSON may take two bytes for one.
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // Somebody else was quicker.
			bucket, err = stream.KeyValue(ctx, Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", Bucket, err)
	}
	_, err = stream.Stream(ctx, AuditStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		var copies int
		if copies, err = config.replicas(ctx, stream); err != nil {
			return bucket, fmt.Errorf("make stream %s: %w", AuditStream, err)
		}
		_, err = stream.CreateStream(ctx, jetstream.StreamConfig{
			Name: AuditStream, Description: "every change of the gateways' plans", Storage: jetstream.FileStorage, Replicas: copies,
			Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, MaxBytes: cmp.Or(config.AuditBytesMax, AuditBytesDefault),
			DenyDelete: true, DenyPurge: true,
			Sources: []*jetstream.StreamSource{{Name: BucketStream}},
		})
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			err = nil
		}
	}
	if err != nil {
		return bucket, fmt.Errorf("open stream %s: %w", AuditStream, err)
	}
	return bucket, nil
}

// replicas is how many what has to be made is to have.
func (c StoreConfig) replicas(ctx context.Context, stream jetstream.JetStream) (int, error) {
	if c.Replicas != 0 {
		return c.Replicas, nil
	}
	return replicas.OfNodes(ctx, stream)
}

// BucketStream is the stream that JetStream keeps the bucket in.
const BucketStream = "KV_" + Bucket

// A Version of a plan.
type Version struct {
	Plan     Plan
	Revision uint64
	// Text is the plan as it was put.
	Text   string
	Change Change
}

// Label returns name@revision.
func (v Version) Label() string { return labelOf(v.Plan.Name, v.Revision) }

// Put writes a new version of a plan. expect is the revision that is to be the newest before; nil means whichever is. The same text again is
// no new version.
func (s *Store) Put(ctx context.Context, text []byte, expect *uint64, by, why string) (Version, error) {
	plan, err := Parse(text)
	if err != nil {
		return Version{}, err
	}
	if err := validateWords(by, why); err != nil {
		return Version{}, err
	}
	newest, err := s.Plan(ctx, plan.Name, 0)
	switch {
	case errors.Is(err, ErrNotFound):
		if err := s.room(ctx); err != nil {
			return Version{}, err
		}
	case err != nil:
		return Version{}, err
	}
	if expect != nil && *expect != newest.Revision {
		return Version{}, &ConflictError{What: "plan " + plan.Name, Want: *expect, Have: newest.Revision}
	}
	if newest.Text == string(text) {
		return newest, nil
	}
	record := &planRecord{Format: recordFormat, Text: string(text), Change: s.change(VerbPut, by, why)}
	record.Change.Plan = plan.Name
	value, err := encode(record)
	if err != nil {
		return Version{}, err
	}
	revision, err := s.write(ctx, planKeyPrefix+plan.Name, value, newest.Revision, record.Change.ID, "plan "+plan.Name)
	if err != nil {
		return Version{}, err
	}
	return Version{Plan: plan, Revision: revision, Text: string(text), Change: record.Change}, nil
}

// room says whether there may be one more plan.
func (s *Store) room(ctx context.Context) error {
	plans, err := s.Plans(ctx)
	if err == nil && len(plans) >= plansMax {
		err = fmt.Errorf("there are %d plans already, which is as many as there may be", len(plans))
	}
	return err
}

func (s *Store) change(verb, by, why string) Change {
	return Change{ID: rand.Text(), Verb: verb, By: by, At: s.now().UTC(), Why: why}
}

// write puts a record in the place of the one at a revision, 0 for none. A lost acknowledgement is found out: the change is in the record.
func (s *Store) write(ctx context.Context, key string, value []byte, last uint64, id, what string) (revision uint64, err error) {
	if last == 0 {
		revision, err = s.bucket.Create(ctx, key, value) // Also over the marker of one that another tool deleted.
	} else {
		revision, err = s.bucket.Update(ctx, key, value, last)
	}
	if err == nil {
		return revision, nil
	}
	var refused *jetstream.APIError
	known := errors.As(err, &refused)
	entry, lookErr := s.bucket.Get(ctx, key)
	switch {
	case lookErr == nil && strings.Contains(string(entry.Value()), strconv.Quote(id)):
		return entry.Revision(), nil // It was written; its acknowledgement was lost.
	case errors.Is(err, jetstream.ErrKeyExists), known && (refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant): // Replicated streams use this one.
		conflict := &ConflictError{What: what, Want: last}
		if lookErr == nil {
			conflict.Have = entry.Revision()
		}
		return 0, conflict
	case known:
		return 0, fmt.Errorf("write %s: %w", what, err)
	}
	return 0, fmt.Errorf("write %s: %w; it may have been written, look before you try again", what, err)
}

// Plan returns a version of a plan; revision 0 means the newest. Errors: ErrNotFound.
func (s *Store) Plan(ctx context.Context, name string, revision uint64) (Version, error) {
	if !nameForm.MatchString(name) {
		return Version{}, fmt.Errorf("plan %q: %w", name, ErrNotFound)
	}
	var entry jetstream.KeyValueEntry
	var err error
	if revision == 0 {
		entry, err = s.bucket.Get(ctx, planKeyPrefix+name)
	} else {
		entry, err = s.bucket.GetRevision(ctx, planKeyPrefix+name, revision)
	}
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound) && revision != 0:
		return Version{}, fmt.Errorf("plan %s: %w", labelOf(name, revision), ErrNotFound)
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return Version{}, fmt.Errorf("plan %s: %w", name, ErrNotFound)
	case err != nil:
		return Version{}, fmt.Errorf("read plan %s: %w", name, err)
	}
	return newVersion(entry)
}

func newVersion(entry jetstream.KeyValueEntry) (Version, error) {
	name := strings.TrimPrefix(entry.Key(), planKeyPrefix)
	record, err := decode[planRecord](entry.Value())
	if err != nil {
		return Version{}, fmt.Errorf("plan %s: %w", labelOf(name, entry.Revision()), err)
	}
	plan, err := Parse([]byte(record.Text))
	if err != nil {
		return Version{}, fmt.Errorf("plan %s: %w", labelOf(name, entry.Revision()), err)
	}
	return Version{Plan: plan, Revision: entry.Revision(), Text: record.Text, Change: record.Change}, nil
}

// Plans returns the newest version of each plan, by name. One that this version of weir does not understand is an error.
func (s *Store) Plans(ctx context.Context) ([]Version, error) {
	watching, stop := context.WithCancel(ctx)
	defer stop()
	watch, err := s.bucket.Watch(watching, planKeyPrefix+"*", jetstream.IgnoreDeletes())
	if err != nil {
		return nil, fmt.Errorf("list the plans: %w", err)
	}
	all := []Version{}
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("list the plans: %w", ctx.Err())
		case entry, open := <-watch.Updates():
			if !open {
				return nil, fmt.Errorf("list the plans: %w", errWatchDied)
			}
			if entry == nil {
				slices.SortFunc(all, func(a, b Version) int { return strings.Compare(a.Plan.Name, b.Plan.Name) })
				return all, nil
			}
			version, err := newVersion(entry)
			if err != nil {
				return nil, err
			}
			all = append(all, version)
		}
	}
}

// errWatchDied says that a watch ended by itself.
var errWatchDied = errors.New("the watch ended")

// Active returns what is active now. Conflicts are looked for in what these procedures would be treated by; none means not by method.
func (s *Store) Active(ctx context.Context, procedures []string) (*Set, error) {
	record, revision, err := s.active(ctx)
	if err != nil {
		return nil, err
	}
	return s.set(record, revision, procedures)
}

func (s *Store) set(record *activeRecord, revision uint64, procedures []string) (*Set, error) {
	now := *record
	now.Active = record.at(s.now())
	applied, err := now.parse()
	if err != nil {
		return nil, err
	}
	return NewSet(revision, applied, procedures), nil
}

// active returns the record, and its revision. Before the first it is empty, at 0.
func (s *Store) active(ctx context.Context) (*activeRecord, uint64, error) {
	entry, err := s.bucket.Get(ctx, activeKey)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return &activeRecord{Format: recordFormat}, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("read what is active: %w", err)
	}
	record, err := decode[activeRecord](entry.Value())
	if err != nil {
		return nil, 0, fmt.Errorf("read what is active: %w", err)
	}
	return record, entry.Revision(), nil
}

// An Application says what is applied, and for how long.
type Application struct {
	// Name and Revision of the plan; 0 is the newest.
	Name     string
	Revision uint64
	// TTL in place of the plan's own.
	TTL     time.Duration
	By, Why string
	// Procedures that the gateways serve, to find conflicts; none means that they are not looked for by method.
	Procedures []string
	// Expect is the revision of what is active that it is to be applied to; nil means whichever is.
	Expect *uint64
}

// Apply makes a plan active until its time is over. One of the same name is replaced, and what was before can be rolled back to. It
// returns what is active now.
func (s *Store) Apply(ctx context.Context, a Application) (*Set, error) {
	version, err := s.Plan(ctx, a.Name, a.Revision)
	if err != nil {
		return nil, err
	}
	ttl := cmp.Or(a.TTL, version.Plan.TTL, TTLDefault)
	if err := ValidateTTL(ttl); err != nil {
		return nil, err
	}
	change := s.change(VerbApply, a.By, a.Why)
	change.Plan = version.Label()
	return s.flip(ctx, change, a.Expect, a.Procedures, func(before *activeRecord, revision uint64) (*activeRecord, error) {
		after := &activeRecord{Before: revision, Active: slices.DeleteFunc(before.at(change.At), named(version.Plan.Name))}
		after.Active = append(after.Active, activeInForm{
			Revision: version.Revision, Text: version.Text, At: change.At, Until: change.At.Add(ttl), By: a.By, Why: a.Why,
		})
		if len(after.Active) > ActiveMax {
			return nil, fmt.Errorf("%d plans are active already, which is as many as there may be: end one", ActiveMax)
		}
		return after, nil
	})
}

// named says of an active plan whether it has the name.
func named(name string) func(activeInForm) bool {
	return func(one activeInForm) bool {
		plan, err := Parse([]byte(one.Text))
		return err == nil && plan.Name == name
	}
}

// End takes one plan back and leaves the others. Errors: ErrNotFound if it is not active.
func (s *Store) End(ctx context.Context, name string, procedures []string, by, why string) (*Set, error) {
	change := s.change(VerbEnd, by, why)
	return s.flip(ctx, change, nil, procedures, func(before *activeRecord, revision uint64) (*activeRecord, error) {
		active := before.at(change.At)
		i := slices.IndexFunc(active, named(name))
		if i < 0 {
			return nil, fmt.Errorf("plan %s is not active: %w", name, ErrNotFound)
		}
		ended := labels(active[i : i+1])[0]
		return &activeRecord{Before: revision, Active: slices.Delete(active, i, i+1), Change: Change{Plan: ended}}, nil
	})
}

// Rollback undoes the newest change that is not undone: what was active before it is active again, but for what has ended meanwhile. Again,
// it undoes the change before that. Errors: ErrNothingBefore.
func (s *Store) Rollback(ctx context.Context, procedures []string, by, why string) (*Set, error) {
	change := s.change(VerbRollback, by, why)
	return s.flip(ctx, change, nil, procedures, func(newest *activeRecord, revision uint64) (*activeRecord, error) {
		if newest.Before == 0 && len(newest.Active) == 0 {
			return nil, ErrNothingBefore
		}
		if newest.Before == 0 {
			return &activeRecord{}, nil
		}
		entry, err := s.bucket.GetRevision(ctx, activeKey, newest.Before)
		if errors.Is(err, jetstream.ErrKeyNotFound) {
			return nil, fmt.Errorf("revision %d is not kept any more: %w; apply or end plans by name", newest.Before, ErrNothingBefore)
		}
		if err != nil {
			return nil, fmt.Errorf("read what was active at revision %d: %w", newest.Before, err)
		}
		before, err := decode[activeRecord](entry.Value())
		if err != nil {
			return nil, fmt.Errorf("read what was active at revision %d: %w", newest.Before, err)
		}
		return &activeRecord{Before: before.Before, Active: before.at(change.At)}, nil
	})
}

// flip writes what is active in the place of what was, and nothing if that changed meanwhile.
func (s *Store) flip(ctx context.Context, change Change, expect *uint64, procedures []string,
	next func(before *activeRecord, revision uint64) (*activeRecord, error),
) (*Set, error) {
	const what = "what is active"
	if err := validateWords(change.By, change.Why); err != nil {
		return nil, err
	}
	before, revision, err := s.active(ctx)
	if err != nil {
		return nil, err
	}
	if expect != nil && *expect != revision {
		return nil, &ConflictError{What: what, Want: *expect, Have: revision}
	}
	after, err := next(before, revision)
	if err != nil {
		return nil, err
	}
	change.Plan = cmp.Or(change.Plan, after.Change.Plan)
	change.From, change.To = labels(before.at(change.At)), labels(after.Active)
	after.Format, after.Change = recordFormat, change
	value, err := encode(after)
	if err != nil {
		return nil, err
	}
	written, err := s.write(ctx, activeKey, value, revision, change.ID, what)
	if err != nil {
		return nil, err
	}
	return s.set(after, written, procedures)
}

// An Entry is one change, as the audit has it.
type Entry struct {
	// Revision that it made in the bucket, and Key.
	Revision uint64
	Key      string
	// Stored is when the server took it.
	Stored time.Time
	Change Change
	// Ends are the active plans and when each ends by itself, if nothing is changed before; only for changes of what is active.
	Ends map[string]time.Time
}

// History returns the newest changes, the oldest of them first, at most limit. Behind says that the audit did not have the very newest.
func (s *Store) History(ctx context.Context, limit int) (entries []Entry, behind bool, err error) {
	limit = min(limit, HistoryMax)
	audit, behind, err := s.audit(ctx)
	if err != nil {
		return nil, false, err
	}
	state := audit.CachedInfo().State
	if state.Msgs == 0 || limit <= 0 {
		return nil, behind, nil
	}
	from := state.FirstSeq
	if state.Msgs > uint64(limit) {
		from = state.LastSeq - uint64(limit) + 1
	}
	consumer, err := audit.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from})
	if err != nil {
		return nil, false, fmt.Errorf("read stream %s: %w", AuditStream, err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, false, fmt.Errorf("read stream %s: %w", AuditStream, err)
	}
	defer messages.Stop()
	for range limit {
		message, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, false, fmt.Errorf("read stream %s: %w", AuditStream, err)
		}
		meta, err := message.Metadata()
		if err != nil {
			return nil, false, fmt.Errorf("read stream %s: %w", AuditStream, err)
		}
		entries = append(entries, newEntry(message, meta))
		if meta.Sequence.Stream >= state.LastSeq {
			break
		}
	}
	return entries, behind, nil
}

// audit opens the stream once it has the bucket's newest change, or after auditWait.
func (s *Store) audit(ctx context.Context) (audit jetstream.Stream, behind bool, err error) {
	status, err := s.bucket.Status(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("read the state of bucket %s: %w", Bucket, err)
	}
	var newest uint64
	if kv, ok := status.(*jetstream.KeyValueBucketStatus); ok {
		newest = kv.StreamInfo().State.LastSeq
	}
	waiting, cancel := context.WithTimeout(ctx, auditWait)
	defer cancel()
	for {
		if audit, err = s.stream.Stream(ctx, AuditStream); err != nil {
			return nil, false, fmt.Errorf("open stream %s: %w", AuditStream, err)
		}
		has := uint64(0)
		if last := audit.CachedInfo().State.LastSeq; last > 0 {
			message, err := audit.GetMsg(ctx, last)
			if err != nil {
				return nil, false, fmt.Errorf("read stream %s: %w", AuditStream, err)
			}
			has = sourceRevision(message.Header.Get(headerSource))
		}
		if has >= newest {
			return audit, false, nil
		}
		select {
		case <-waiting.Done():
			return audit, true, ctx.Err()
		case <-time.After(auditPoll):
		}
	}
}

// Headers that the server gives a message: of one that it copied from another stream, the second field is the sequence there.
const (
	headerSource    = "Nats-Stream-Source"
	headerOperation = "KV-Operation"
)

// sourceRevision reads the header of a copied message; 0 if it has none.
func sourceRevision(header string) uint64 {
	fields := strings.Fields(header)
	if len(fields) < 2 {
		return 0
	}
	revision, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return revision
}

// newEntry reads a change. What is no record of this format was written by another tool, and is an entry all the same.
func newEntry(message jetstream.Msg, meta *jetstream.MsgMetadata) Entry {
	entry := Entry{
		Revision: sourceRevision(message.Headers().Get(headerSource)), Stored: meta.Timestamp,
		Key: strings.TrimPrefix(message.Subject(), "$KV."+Bucket+"."),
	}
	entry.Change = Change{Verb: VerbChanged, At: meta.Timestamp, Why: "by another tool: " + cmp.Or(message.Headers().Get(headerOperation), "put")}
	switch {
	case entry.Key == activeKey:
		record, err := decode[activeRecord](message.Data())
		if err != nil {
			break
		}
		entry.Change, entry.Ends = record.Change, map[string]time.Time{}
		for i, label := range labels(record.Active) {
			entry.Ends[label] = record.Active[i].Until
		}
	case strings.HasPrefix(entry.Key, planKeyPrefix):
		if record, err := decode[planRecord](message.Data()); err == nil {
			entry.Change = record.Change
			entry.Change.Plan = labelOf(strings.TrimPrefix(entry.Key, planKeyPrefix), entry.Revision)
		}
	}
	return entry
}
