package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// MaxMessageSize is the largest message that a lane's stream takes, in bytes, headers included.
const MaxMessageSize = 8 << 20

const (
	// dedupWindow is how long the server remembers message ids. It only makes the answer to a repeated append quicker.
	dedupWindow = 2 * time.Minute

	clusterBucket = "WEIR-CLUSTER"
	topologyKey   = "topology"

	provisionAttemptsMax = 5
	provisionAnswerMax   = 60 * time.Second // for the server to answer after it was reopened
	provisionRequestMax  = 5 * time.Second
	provisionLeaderMax   = 30 * time.Second // for a stream to have a leader that answers
	recordAsksMax        = 5                // until a cluster's answer that there is no record is believed
	recordAskPause       = 200 * time.Millisecond
	provisionPause       = 20 * time.Millisecond
	replicaPatience      = 10 * time.Second // for a replica to catch up before its log counts as too short
)

// ClusterRecord is what is recorded beside the logs, once, under the key "topology" of the bucket WEIR-CLUSTER.
type ClusterRecord struct {
	Lanes      uint32    `json:"lanes"`
	Partitions uint32    `json:"partitions"`
	Created    time.Time `json:"created"`
	// State is StateCreating until every stream is known to be there and to survive a restart; then StateReady for ever.
	State string `json:"state"`
}

// The states of a ClusterRecord.
const (
	StateCreating = "creating"
	StateReady    = "ready"
)

// ProvisionOptions configure Provision. Topology is required.
type ProvisionOptions struct {
	Topology Topology
	// Replicas of each stream, 1 or 3; 0 means 1.
	Replicas int
	// ReplicasMin is how many replicas a stream that is there has at least; one with fewer is a *ReplicasError. 0 takes any.
	ReplicasMin int
	// MaxBytes bounds each lane's stream, which the server reserves of its own limit; 0 means that only that limit does.
	MaxBytes int64
	// MaxMessageSize in bytes, headers included; 0 means the constant of that name.
	MaxMessageSize int32
	// Known has the newest commit that this node knows of each lane, from its witness or its state. A log that does not
	// reach it is a *MissingLogError.
	Known map[uint32]uint64
	// Reopen makes the server read everything from the disk again; it is called before the streams are first used, since a
	// server that was stopped in the middle of creating a stream may drop it at a later start. nil only reads again.
	Reopen func(ctx context.Context) error
	// Now is written down as the time of creation.
	Now time.Time
}

// Provision makes the streams and the topology record, or checks those that are there. It may be stopped at any point and
// called again. Errors: *TopologyError for another number of lanes, *MissingLogError where commits are or may be missing,
// *StreamSettingError for a stream that could lose commits. It deletes and changes nothing.
func Provision(ctx context.Context, nc *nats.Conn, options ProvisionOptions) (ClusterRecord, error) {
	if err := options.Topology.Validate(); err != nil {
		return ClusterRecord{}, err
	}
	if options.Replicas == 0 {
		options.Replicas = 1
	}
	if options.MaxBytes == 0 {
		options.MaxBytes = -1
	}
	if options.MaxMessageSize == 0 {
		options.MaxMessageSize = MaxMessageSize
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return ClusterRecord{}, fmt.Errorf("provision the log: %w", err)
	}
	p := &provision{nc: nc, js: js, options: options, requestMax: provisionRequestMax, reached: provisionReached}
	var again error
	for range provisionAttemptsMax {
		record, err := p.step(ctx)
		if err == nil {
			return record, nil
		}
		if !errors.Is(err, errProvisionAgain) {
			return ClusterRecord{}, err
		}
		again = err
	}
	return ClusterRecord{}, fmt.Errorf("provision the log, %d attempts: %w", provisionAttemptsMax, again)
}

// errProvisionAgain: what was found has changed meanwhile, or did not survive; look again.
var errProvisionAgain = errors.New("look again")

type provision struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	options ProvisionOptions
	// requestMax bounds one request.
	requestMax time.Duration
	// reached is told of every step done; an error ends the run there, as a crash would.
	reached func(step string) error
}

// provisionReached is replaced by tests that crash at a step.
var provisionReached = func(string) error { return nil }

// step goes from what is recorded as far towards StateReady as it can.
func (p *provision) step(ctx context.Context) (ClusterRecord, error) {
	record, revision, err := readClusterRecord(ctx, p.nc)
	if errors.Is(err, ErrNotProvisioned) {
		if err := p.begin(ctx); err != nil {
			return ClusterRecord{}, err
		}
		return ClusterRecord{}, errProvisionAgain
	}
	if err != nil {
		return ClusterRecord{}, err
	}
	if record.Lanes != p.options.Topology.Lanes || record.Partitions != Partitions {
		return ClusterRecord{}, &TopologyError{Recorded: record, Wanted: p.options.Topology}
	}
	switch record.State {
	case StateReady:
		return record, p.check(ctx)
	case StateCreating:
		return p.finish(ctx, record, revision)
	default:
		return ClusterRecord{}, fmt.Errorf("the cluster's record has state %q, which this version does not know", record.State)
	}
}

// beingCreated ends the description of a stream until its settings were written down once more.
const beingCreated = " (being created)"

// seal has the server write a new stream's settings down again. A server that is killed while it creates a stream may leave
// the settings without their checksum; it then drops the stream at its next start, and creating it anew finds the settings
// there and does not write the checksum either. Only a change of the settings writes both.
func (p *provision) seal(ctx context.Context, stream string) error {
	found, err := p.js.Stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		// It is there: this node or another one has just made it, and whoever leads the cluster has not applied that yet.
		return fmt.Errorf("%w: stream %s is not known yet", errProvisionAgain, stream)
	}
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", stream, err)
	}
	config := found.CachedInfo().Config
	description, fresh := strings.CutSuffix(config.Description, beingCreated)
	if !fresh {
		return nil
	}
	config.Description = description
	if _, err := p.js.UpdateStream(ctx, config); err != nil {
		return fmt.Errorf("seal stream %s: %w", stream, err)
	}
	return p.reached("seal " + stream)
}

// begin records that the streams are being created, provided that there never were any.
func (p *provision) begin(ctx context.Context) error {
	for lane, known := range p.options.Known {
		if known > 0 {
			return &MissingLogError{Lane: lane, Reason: fmt.Sprintf("this node knows commit %d, but the server has no record of the cluster", known)}
		}
	}
	names := p.js.ListStreams(ctx)
	for info := range names.Info() {
		var lane uint32
		if n, _ := fmt.Sscanf(info.Config.Name, "ORDERS-%d", &lane); n == 1 && info.State.LastSeq > 0 {
			// The record is older than any commit: if it is there now, another node made everything since it was asked for.
			if _, _, err := readClusterRecord(ctx, p.nc); !errors.Is(err, ErrNotProvisioned) {
				return errors.Join(errProvisionAgain, err)
			}
			return &MissingLogError{Lane: lane, Reason: fmt.Sprintf("it has %d commits, but the server has no record of the cluster", info.State.LastSeq)}
		}
	}
	if err := names.Err(); err != nil {
		return fmt.Errorf("list the streams: %w", err)
	}
	bucket, err := p.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
		Bucket: clusterBucket, Description: "Weir: what never changes about this cluster" + beingCreated, Storage: jetstream.FileStorage,
		History: 8, Replicas: p.options.Replicas,
	})
	if errors.Is(err, jetstream.ErrBucketExists) {
		bucket, err = p.js.KeyValue(ctx, clusterBucket)
		if errors.Is(err, jetstream.ErrBucketNotFound) { // As in seal.
			return fmt.Errorf("%w: bucket %s is not known yet", errProvisionAgain, clusterBucket)
		}
	}
	if err != nil {
		return fmt.Errorf("create bucket %s: %w", clusterBucket, err)
	}
	if err := p.reached("bucket"); err != nil {
		return err
	}
	if err := p.seal(ctx, "KV_"+clusterBucket); err != nil {
		return err
	}
	value, err := json.Marshal(ClusterRecord{
		Lanes: p.options.Topology.Lanes, Partitions: Partitions, Created: p.options.Now.UTC(), State: StateCreating,
	})
	if err != nil {
		return err
	}
	if _, err := bucket.Create(ctx, topologyKey, value); err != nil && !errors.Is(err, jetstream.ErrKeyExists) {
		return fmt.Errorf("record the topology: %w", err)
	}
	return p.reached("record")
}

// finish makes what is missing, has the server reopened, and records that everything is there.
func (p *provision) finish(ctx context.Context, record ClusterRecord, revision uint64) (ClusterRecord, error) {
	if err := p.seal(ctx, "KV_"+clusterBucket); err != nil {
		return ClusterRecord{}, err
	}
	if err := p.createStreams(ctx); err != nil {
		return ClusterRecord{}, err
	}
	if p.options.Reopen != nil {
		if err := p.options.Reopen(ctx); err != nil {
			return ClusterRecord{}, fmt.Errorf("reopen the server to see that the streams survive it: %w", err)
		}
	}
	if err := p.reached("reopen"); err != nil {
		return ClusterRecord{}, err
	}
	found, err := p.recordAfterReopen(ctx)
	if errors.Is(err, ErrNotProvisioned) {
		return ClusterRecord{}, fmt.Errorf("%w: the record did not survive the reopening", errProvisionAgain)
	}
	if err != nil {
		return ClusterRecord{}, err
	}
	if found.State != StateCreating {
		return ClusterRecord{}, fmt.Errorf("%w: another node was quicker", errProvisionAgain)
	}
	if err := p.check(ctx); err != nil {
		if missing := (*MissingLogError)(nil); errors.As(err, &missing) && p.options.Known[missing.Lane] == 0 {
			return ClusterRecord{}, fmt.Errorf("%w: after the reopening: %w", errProvisionAgain, err)
		}
		return ClusterRecord{}, err
	}
	record.State = StateReady
	value, err := json.Marshal(record)
	if err != nil {
		return ClusterRecord{}, err
	}
	bucket, err := p.js.KeyValue(ctx, clusterBucket)
	if err != nil {
		return ClusterRecord{}, fmt.Errorf("record the topology: %w", err)
	}
	_, err = bucket.Update(ctx, topologyKey, value, revision)
	if errors.Is(err, jetstream.ErrKeyExists) || isWrongLast(err) {
		return ClusterRecord{}, fmt.Errorf("%w: another node was quicker", errProvisionAgain)
	}
	if err != nil {
		return ClusterRecord{}, fmt.Errorf("record the topology: %w", err)
	}
	return record, p.reached("ready")
}

func isWrongLast(err error) bool {
	refused := (*jetstream.APIError)(nil)
	return errors.As(err, &refused) && (refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// createStreams makes the lanes' streams that are missing. Before StateReady there are no commits, so a missing one is none lost,
// unless another lane has some.
func (p *provision) createStreams(ctx context.Context) error {
	var missing []uint32
	commits := false
	for lane := range p.options.Topology.Lanes {
		info, err := streamInfo(ctx, p.nc, provisionRequestMax, lane)
		if gone := (*MissingLogError)(nil); errors.As(err, &gone) {
			if p.options.Known[lane] > 0 {
				return err
			}
			missing = append(missing, lane)
			continue
		}
		if err != nil {
			return fmt.Errorf("check the log of lane %d: %w", lane, err)
		}
		commits = commits || info.State.LastSeq > 0
	}
	for _, lane := range missing {
		if commits {
			return &MissingLogError{Lane: lane, Reason: "the server has no stream " + StreamName(lane) + ", though other lanes have commits"}
		}
		config := laneStream(lane, p.options.Replicas, p.options.MaxBytes, p.options.MaxMessageSize)
		config.Description += beingCreated
		_, err := p.js.CreateStream(ctx, config)
		if err != nil && !errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // check looks at one that is there.
			return fmt.Errorf("create stream %s: %w", StreamName(lane), err)
		}
		if err := p.reached(StreamName(lane)); err != nil {
			return err
		}
	}
	for lane := range p.options.Topology.Lanes {
		if err := p.seal(ctx, StreamName(lane)); err != nil {
			return err
		}
	}
	return nil
}

// recordAfterReopen reads the record once the server answers again.
func (p *provision) recordAfterReopen(ctx context.Context) (ClusterRecord, error) {
	ctx, cancel := context.WithTimeout(ctx, provisionAnswerMax)
	defer cancel()
	for {
		record, _, err := readClusterRecord(ctx, p.nc)
		if err == nil || errors.Is(err, ErrNotProvisioned) {
			return record, err
		}
		if pause(ctx, provisionPause) != nil {
			return record, fmt.Errorf("the server does not answer after it was reopened: %w", err)
		}
	}
}

// check compares every lane's stream with what it has to be.
func (p *provision) check(ctx context.Context) error {
	for lane := range p.options.Topology.Lanes {
		info, err := p.look(ctx, lane)
		if err != nil {
			if gone := (*MissingLogError)(nil); errors.As(err, &gone) {
				return err
			}
			return fmt.Errorf("check the log of lane %d: %w", lane, err)
		}
		if err := checkSettings(lane, &info.Config); err != nil {
			return err
		}
		if info.Config.Replicas < p.options.ReplicasMin {
			return &ReplicasError{Stream: info.Config.Name, Found: info.Config.Replicas, Wanted: p.options.ReplicasMin}
		}
		if info.State.NumDeleted > 0 {
			return &MissingLogError{Lane: lane, Reason: fmt.Sprintf("%d commits before number %d are missing", info.State.NumDeleted, info.State.LastSeq)}
		}
		if info.State.Lost != nil && len(info.State.Lost.Msgs) > 0 {
			return &MissingLogError{Lane: lane, Reason: fmt.Sprintf("the server reports %d commits lost, the first is number %d", len(info.State.Lost.Msgs), info.State.Lost.Msgs[0])}
		}
		if err := p.checkReach(ctx, lane, &info); err != nil {
			return err
		}
	}
	return nil
}

// look reads a lane's stream. After servers were started the stream may have no leader yet, and nobody answers: that is waited for.
func (p *provision) look(ctx context.Context, lane uint32) (streamState, error) {
	for end := time.Now().Add(provisionLeaderMax); ; {
		info, err := streamInfo(ctx, p.nc, p.requestMax, lane)
		silent := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrNoResponders)
		if !silent || ctx.Err() != nil || !time.Now().Before(end) {
			return info, err
		}
		if err := pause(ctx, provisionPause); err != nil {
			return info, err
		}
	}
}

// checkReach refuses a log that is shorter than this node knows. A replica may still be catching up.
func (p *provision) checkReach(ctx context.Context, lane uint32, info *streamState) error {
	known := p.options.Known[lane]
	if info.Config.Replicas > 1 {
		end := time.Now().Add(replicaPatience)
		for info.State.LastSeq < known && time.Now().Before(end) {
			if err := pause(ctx, 10*provisionPause); err != nil {
				return err
			}
			var err error
			if *info, err = streamInfo(ctx, p.nc, provisionRequestMax, lane); err != nil {
				return fmt.Errorf("check the log of lane %d: %w", lane, err)
			}
		}
	}
	if info.State.LastSeq < known {
		return &MissingLogError{Lane: lane, Reason: fmt.Sprintf("this node knows commit %d, but the log ends at %d", known, info.State.LastSeq)}
	}
	return nil
}

// laneStream is how a lane's stream is made. Nothing in it may lose a commit: no limit but a refusal, no deletion.
func laneStream(lane uint32, replicas int, maxBytes int64, maxMessageSize int32) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: StreamName(lane), Subjects: []string{SubjectName(lane)}, Description: fmt.Sprintf("Weir: the commits of lane %d", lane),
		Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardNew,
		MaxMsgs: -1, MaxMsgsPerSubject: -1, MaxBytes: maxBytes, MaxMsgSize: maxMessageSize, MaxConsumers: -1,
		Duplicates: dedupWindow, DenyDelete: true, DenyPurge: true, Replicas: replicas,
	}
}

// checkSettings names the first setting of a stream that could lose, change or reorder commits.
func checkSettings(lane uint32, c *jetstream.StreamConfig) error {
	if wrong := wrongSettings(lane, c); len(wrong) > 0 {
		return wrong[0]
	}
	return nil
}

func wrongSettings(lane uint32, c *jetstream.StreamConfig) (wrong []*StreamSettingError) {
	settings := []struct {
		setting string
		wrong   bool
		value   any
		want    string
	}{
		{"storage", c.Storage != jetstream.FileStorage, c.Storage, "file: memory does not survive a restart"},
		{"persist_mode", c.PersistMode != jetstream.DefaultPersistMode, c.PersistMode, "default: async acknowledges before it writes"},
		{"retention", c.Retention != jetstream.LimitsPolicy, c.Retention, "limits: others delete what was read"},
		{"discard", c.Discard != jetstream.DiscardNew, c.Discard, "new: a full log refuses, it does not forget"},
		{"max_age", c.MaxAge != 0, c.MaxAge, "0: commits do not expire"},
		{"max_msgs", c.MaxMsgs > 0, c.MaxMsgs, "-1"},
		{"max_msgs_per_subject", c.MaxMsgsPerSubject > 0, c.MaxMsgsPerSubject, "-1"},
		{"deny_delete", !c.DenyDelete, c.DenyDelete, "true"},
		{"deny_purge", !c.DenyPurge, c.DenyPurge, "true"},
		{"allow_rollup_hdrs", c.AllowRollup, c.AllowRollup, "false: a rollup deletes"},
		{"allow_msg_ttl", c.AllowMsgTTL, c.AllowMsgTTL, "false: commits do not expire"},
		{"allow_msg_counter", c.AllowMsgCounter, c.AllowMsgCounter, "false: counters change messages"},
		{"allow_msg_schedules", c.AllowMsgSchedules, c.AllowMsgSchedules, "false: only lane writers write"},
		{"allow_atomic", c.AllowAtomicPublish, c.AllowAtomicPublish, "false: a commit is one message, a batch has a store of its own"},
		{"allow_direct", c.AllowDirect, c.AllowDirect, "false: replicas that are behind would answer"},
		{"no_ack", c.NoAck, c.NoAck, "false"},
		{"sealed", c.Sealed, c.Sealed, "false: nothing could be appended"},
		{"mirror", c.Mirror != nil, c.Mirror, "none: only lane writers write"},
		{"sources", len(c.Sources) > 0, len(c.Sources), "none: only lane writers write"},
		{"subject_transform", c.SubjectTransform != nil, c.SubjectTransform, "none"},
		{"subjects", len(c.Subjects) != 1 || c.Subjects[0] != SubjectName(lane), strings.Join(c.Subjects, " "), SubjectName(lane)},
	}
	for _, s := range settings {
		if s.wrong {
			wrong = append(wrong, &StreamSettingError{Stream: c.Name, Setting: s.setting, Value: fmt.Sprint(s.value), Want: s.want})
		}
	}
	return wrong
}

// ErrNotProvisioned says that the server has no record of a cluster.
var ErrNotProvisioned = errors.New("the server has no log of Weir yet")

// ReadClusterRecord returns the topology record, or ErrNotProvisioned.
func ReadClusterRecord(ctx context.Context, nc *nats.Conn) (ClusterRecord, error) {
	record, _, err := readClusterRecord(ctx, nc)
	return record, err
}

// readClusterRecord asks the bucket's leader, where a read of the bucket could be answered by any replica.
func readClusterRecord(ctx context.Context, nc *nats.Conn) (record ClusterRecord, revision uint64, err error) {
	record, revision, err = askClusterRecord(ctx, nc)
	// In a cluster a server that has just come back says that there is none before it has heard of it.
	for asked := 1; asked < recordAsksMax && errors.Is(err, ErrNotProvisioned) && nc.ConnectedClusterName() != ""; asked++ {
		if err := pause(ctx, recordAskPause); err != nil {
			return record, 0, err
		}
		record, revision, err = askClusterRecord(ctx, nc)
	}
	return record, revision, err
}

func askClusterRecord(ctx context.Context, nc *nats.Conn) (record ClusterRecord, revision uint64, err error) {
	var answer struct {
		apiRefusal
		Message struct {
			Sequence uint64 `json:"seq"`
			Data     []byte `json:"data"`
		} `json:"message"`
	}
	request := struct {
		Subject string `json:"last_by_subj"`
	}{"$KV." + clusterBucket + "." + topologyKey}
	err = apiRequest(ctx, nc, provisionRequestMax, "STREAM.MSG.GET.KV_"+clusterBucket, request, &answer)
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) {
		switch refused.ErrorCode {
		case jetstream.JSErrCodeStreamNotFound, jetstream.JSErrCodeMessageNotFound:
			return record, 0, ErrNotProvisioned
		}
	}
	if err != nil {
		return record, 0, fmt.Errorf("read the cluster's record: %w", err)
	}
	if err := json.Unmarshal(answer.Message.Data, &record); err != nil {
		return record, 0, fmt.Errorf("the cluster's record cannot be read: %w", err)
	}
	return record, answer.Message.Sequence, nil
}

// A TopologyError says that the log was created for another topology.
type TopologyError struct {
	Recorded ClusterRecord
	Wanted   Topology
}

func (e *TopologyError) Error() string {
	if e.Recorded.Partitions != Partitions {
		return fmt.Sprintf("the log was created with %d partitions; this version has %d and cannot use it", e.Recorded.Partitions, Partitions)
	}
	return fmt.Sprintf("the log was created with %d lanes on %s, not %d, and that never changes; start with --lanes %d, or use another data directory or cluster for another topology",
		e.Recorded.Lanes, e.Recorded.Created.Format(time.DateOnly), e.Wanted.Lanes, e.Recorded.Lanes)
}

// A ReplicasError says that a stream is kept by fewer servers than it has to be.
type ReplicasError struct {
	Stream        string
	Found, Wanted int
}

func (e *ReplicasError) Error() string {
	return fmt.Sprintf("stream %s is kept by %d server, and %d are wanted: what that one loses is lost; add replicas with 'weir cluster upgrade --replicas %d'", e.Stream, e.Found, e.Wanted, e.Wanted)
}

// Forming reports whether an error says only that the servers of a cluster cannot answer yet: a stream or the cluster itself has no leader, or
// too few of them are there for a new stream. The same again may succeed.
func Forming(err error) bool {
	var (
		refused *jetstream.APIError
		lossy   *LossyServerError
	)
	switch {
	case errors.As(err, &refused):
		return refused.ErrorCode == errCodeNoPeers || refused.Code == http.StatusServiceUnavailable
	case errors.As(err, &lossy):
		return lossy.Cause != nil // It could not be asked.
	}
	return errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, errProvisionAgain)
}

// A MissingLogError says that commits which exist, or must be assumed to, are not in the log. Nothing re-creates it silently.
type MissingLogError struct {
	Lane   uint32
	Reason string
}

func (e *MissingLogError) Error() string {
	return fmt.Sprintf("the log of lane %d is missing or incomplete: %s; restore it from a backup", e.Lane, e.Reason)
}

// A StreamSettingError says that a lane's stream is set up so that it could lose commits.
type StreamSettingError struct {
	Stream, Setting, Value string
	// Want is the value that it has to have, and why.
	Want string
}

func (e *StreamSettingError) Error() string {
	return fmt.Sprintf("stream %s has %s = %s; it has to be %s; change it with 'nats stream edit %s', or create the log anew", e.Stream, e.Setting, e.Value, e.Want, e.Stream)
}
