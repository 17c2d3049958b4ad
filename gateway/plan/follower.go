package plan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
)

// A Follower is the gateway's side: it knows what is active now. Its methods may be called by several goroutines.
//
// What it last knew to be good stays: over a restart (on disk), while NATS is away, and when the bucket is emptied, made anew or filled with what
// it does not understand. Only a record changes it; and the end of a plan, which needs nobody.
type Follower struct {
	config    Config
	options   Options
	published atomic.Pointer[published]
	trial     atomic.Pointer[Trial]
	rejected  atomic.Uint64

	stream jetstream.JetStream

	mu    sync.Mutex
	known known
}

// Config of a Follower; what is zero has a default.
type Config struct {
	// CacheFile keeps what is active over a restart; empty means that it is not kept. Its directory exists.
	CacheFile string `yaml:"cache_file"`
	// Resync is how often the bucket is read again, less up to a fifth that is drawn; 0 means ResyncDefault. Changes are pushed.
	Resync time.Duration `yaml:"resync"`
	// Replicas of the bucket if it has to be made, 1, 3 or 5; 0 means as many as the list of nodes has.
	Replicas int `yaml:"replicas"`
}

// Options of a Follower.
type Options struct {
	// Connection to NATS. It reconnects for ever, and may be one that was never up yet.
	Connection *nats.Conn
	// Gateway names this one in what dry runs report.
	Gateway string
	// Procedures that the gateway serves, each /package.Service/Method.
	Procedures []string
	// Policy says what holds without plans, for dry runs; its functions may be nil.
	Policy Policy
	// Logger; nil means slog.Default.
	Logger *slog.Logger
	// Now tells the time; nil means time.Now.
	Now func() time.Time
}

// Limits of a Follower.
const (
	ResyncDefault = 15 * time.Second

	resyncMax = time.Hour
	// listingMax bounds the wait for the bucket to say what it has, and openingMax that for its streams.
	listingMax = 5 * time.Second
	openingMax = 5 * time.Second
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
	// skewMax is by how much clocks may differ without a word.
	skewMax = 2 * time.Second
)

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	switch {
	case c.Resync < 0 || c.Resync > resyncMax:
		return fmt.Errorf("resync is %s; it is between 0 (the default) and %s", c.Resync, resyncMax)
	case c.Replicas != 0 && c.Replicas != 1 && c.Replicas != 3 && c.Replicas != 5:
		return fmt.Errorf("replicas is %d; it is 1, 3 or 5", c.Replicas)
	}
	return nil
}

type published struct {
	set  *Set
	next chan struct{} // closed when there is a newer one
}

// A known record is the newest one that was good.
type known struct {
	// revision of the record in a bucket that was created then. Another bucket counts anew.
	revision uint64
	created  time.Time
	record   *activeRecord
	active   []Applied
	// heard is when this process first heard of an active plan, by its monotonic clock: an end by a clock that was set back comes late.
	heard map[heardKey]time.Time
}

type heardKey struct {
	label  string
	atNano int64
}

func (a Applied) heardKey() heardKey { return heardKey{a.Label(), a.At.UnixNano()} }

// NewFollower makes a follower. It starts nothing: until it runs, it has what was kept on disk. A file that cannot be read is logged and
// counts as none.
func NewFollower(config Config, options Options) (*Follower, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("plans: %w", err)
	}
	if config.Resync == 0 {
		config.Resync = ResyncDefault
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	f := &Follower{config: config, options: options}
	if options.Connection != nil {
		var err error
		if f.stream, err = jetstream.New(options.Connection); err != nil {
			return nil, fmt.Errorf("plans: %w", err)
		}
	}
	f.published.Store(&published{set: NewSet(0, nil, options.Procedures), next: make(chan struct{})})
	kept, err := readCache(config.CacheFile)
	if err != nil {
		options.Logger.Warn("the kept plans are not used", "error", err)
	}
	if kept != nil {
		if err := f.take(kept.Created, kept.Revision, kept.Record); err != nil {
			options.Logger.Warn("the kept plans are not used", "file", config.CacheFile, "error", err)
		}
	}
	return f, nil
}

// Now returns what is active, never nil.
func (f *Follower) Now() *Set { return f.published.Load().set }

// Next waits for a set that is another one than this; nil is none yet. Sets in between are passed over. Its error is that of ctx.
func (f *Follower) Next(ctx context.Context, than *Set) (*Set, error) {
	for {
		p := f.published.Load()
		if p.set != than {
			return p.set, nil
		}
		select {
		case <-p.next:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Rejected counts the records that were not used because they were not understood, since the start.
func (f *Follower) Rejected() uint64 { return f.rejected.Load() }

// Run follows the bucket, ends plans whose time is over, and makes dry runs, until ctx ends, which is no error; nothing else ends it. Nothing
// that it started runs any more when it returns. Run is called once.
func (f *Follower) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	// Who has heard of a change here is heard when he asks for a dry run: that is subscribed to first.
	requests, unsubscribe := f.subscribeTrials()
	defer unsubscribe()
	for _, run := range []func(context.Context){f.follow, f.expire, f.keep, func(ctx context.Context) { f.serveTrials(ctx, requests) }} {
		group.Go(func() error {
			run(ctx)
			return nil
		})
	}
	return group.Wait()
}

// take makes a record the newest that is good, and shows it, or says why it does not.
func (f *Follower) take(created time.Time, revision uint64, record *activeRecord) error {
	active, err := record.parse()
	for _, applied := range active {
		err = errors.Join(err, applied.Plan.Check(f.options.Procedures))
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if created.Equal(f.known.created) && revision <= f.known.revision {
		return nil // A replica that is behind, or the same again.
	}
	now := f.options.Now()
	heard := map[heardKey]time.Time{}
	for _, applied := range active {
		key := applied.heardKey()
		heard[key] = now
		if first, known := f.known.heard[key]; known {
			heard[key] = first
		}
	}
	f.known = known{revision: revision, created: created, record: record, active: active, heard: heard}
	left, _ := f.known.at(now)
	f.show(left)
	return nil
}

// show publishes what is active, if that is something else. REQUIRES: mu is held.
func (f *Follower) show(active []Applied) {
	before := f.published.Load()
	set := NewSet(f.known.revision, active, f.options.Procedures)
	if set.Revision == before.set.Revision && reflect.DeepEqual(set.Plans, before.set.Plans) {
		return
	}
	f.published.Store(&published{set: set, next: make(chan struct{})})
	close(before.next)
	if set.Label != before.set.Label {
		f.options.Logger.Info("plans changed", "from", orNone(before.set.Label), "to", orNone(set.Label), "revision", set.Revision)
		for _, conflict := range set.Conflicts {
			f.options.Logger.Warn("active plans contradict each other", "conflict", conflict.String())
		}
	}
}

func orNone(label string) string {
	if label == "" {
		return "none"
	}
	return label
}

// at returns what has not ended at a time, and how long until the next plan ends; 0 if none will.
func (k *known) at(now time.Time) (active []Applied, next time.Duration) {
	for _, applied := range k.active {
		left := applied.Until.Sub(now)
		if first, known := k.heard[applied.heardKey()]; known {
			// By then it was active for all of its time, whatever the clock on the wall says.
			left = min(left, first.Add(applied.Until.Sub(applied.At)).Sub(now))
		}
		if left <= 0 {
			continue
		}
		active = append(active, applied)
		if next == 0 || left < next {
			next = left
		}
	}
	return active, next
}

// expire shows what is left when a plan ends, also while NATS is away.
func (f *Follower) expire(ctx context.Context) {
	for {
		f.mu.Lock()
		now := f.options.Now()
		active, next := f.known.at(now)
		f.show(active)
		f.mu.Unlock()
		if next == 0 {
			next = resyncMax
		}
		seen := f.published.Load()
		timer := time.NewTimer(min(next, resyncMax))
		select {
		case <-seen.next:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// follow watches the bucket, round by round. Each begins with what the bucket has, so that nothing which an earlier one missed stays missed.
func (f *Follower) follow(ctx context.Context) {
	if f.options.Connection == nil {
		return
	}
	status := f.options.Connection.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED)
	defer f.options.Connection.RemoveStatusListener(status)
	var failures int
	for ctx.Err() == nil {
		err := f.round(ctx, status)
		if err == nil {
			failures = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if failures == 0 {
			f.options.Logger.Warn("plans stay as they are: their bucket cannot be read", "bucket", Bucket, "active", orNone(f.Now().Label), "error", err)
		}
		wait := time.NewTimer(backoff(failures))
		failures++
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				waiting = false
			case <-wait.C:
				waiting = false
			case now := <-status:
				waiting = now != nats.CONNECTED // It is back: read now.
			}
		}
		wait.Stop()
	}
}

// backoff returns how long to wait after so many failures before this one.
func backoff(failures int) time.Duration {
	wait := backoffMax
	if failures < 16 {
		wait = min(backoffMin<<failures, backoffMax)
	}
	return wait - rand.N(wait/2)
}

// round reads what is active and then what is pushed. It ends without an error when it is time to read again, whyever.
func (f *Follower) round(ctx context.Context, status <-chan nats.Status) error {
	opening, cancel := context.WithTimeout(ctx, openingMax)
	defer cancel()
	bucket, err := provision(opening, f.stream, StoreConfig{Replicas: f.config.Replicas})
	if bucket == nil {
		return err
	}
	if err != nil {
		f.options.Logger.Warn("changes of plans are not audited", "error", err)
	}
	state, err := bucket.Status(opening)
	if err != nil {
		return fmt.Errorf("read the state of bucket %s: %w", Bucket, err)
	}
	var created time.Time
	if kv, ok := state.(*jetstream.KeyValueBucketStatus); ok {
		created = kv.StreamInfo().Created
	}
	// The client ends the watch when its context does. Its Stop would wait for the server, which may be away.
	watching, stop := context.WithCancel(ctx)
	defer stop()
	watch, err := bucket.Watch(watching, activeKey)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", Bucket, err)
	}

	listed := false
	resync := time.NewTimer(f.config.Resync - rand.N(f.config.Resync/5+1))
	defer resync.Stop()
	listing := time.NewTimer(listingMax)
	defer listing.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, open := <-watch.Updates():
			switch {
			case !open:
				return errWatchDied
			case entry == nil:
				listed = true
			default:
				f.hear(created, entry, listed)
			}
		case now := <-status:
			if now == nats.CONNECTED {
				return nil // The watch may not have survived.
			}
		case <-listing.C:
			if !listed {
				return fmt.Errorf("bucket %s did not say within %s what it has", Bucket, listingMax)
			}
		case <-resync.C:
			return nil
		}
	}
}

// hear takes in what the bucket has, or says why it does not.
func (f *Follower) hear(created time.Time, entry jetstream.KeyValueEntry, pushed bool) {
	logger := f.options.Logger.With("bucket", Bucket, "revision", entry.Revision())
	if entry.Operation() != jetstream.KeyValuePut {
		logger.Warn("plans stay as they are: their record was deleted, which is no way to end them", "active", orNone(f.Now().Label))
		return
	}
	record, err := decode[activeRecord](entry.Value())
	if err == nil {
		err = f.take(created, entry.Revision(), record)
	}
	if err != nil {
		f.rejected.Add(1)
		logger.Error("plans stay as they are: what was applied is not understood here", "active", orNone(f.Now().Label), "error", err)
		return
	}
	if skew := record.Change.At.Sub(entry.Created()).Abs(); pushed && skew > skewMax {
		logger.Warn("the clock of who changed the plans differs from the server's; plans end by it", "by", record.Change.By, "difference", skew)
	}
	if skew := f.options.Now().Sub(entry.Created()).Abs(); pushed && skew > skewMax {
		logger.Warn("the clock here differs from the server's; plans may end early here", "difference", skew)
	}
}
