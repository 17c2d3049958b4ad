package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The public feed: a stream for services that speak NATS, one message for each event, apart from the log.
const (
	// FeedStream is its name, feedSubjects what it takes: weir.events.<partition>.<type>.
	FeedStream   = "WEIR-EVENTS"
	feedSubjects = "weir.events.*.*"
	feedPrefix   = "weir.events."
	// FeedPositionHeader names the event in the log that a message is of: <lane>-<commit>-<index>. It is also its Nats-Msg-Id.
	FeedPositionHeader = "Weir-Position"
	// feedStepHeader says which message of its step one is, from 1 on: all messages of a step are of one lane and follow each other.
	feedStepHeader = "Weir-Step"

	// FeedBatchMax is how many messages are published in one step.
	FeedBatchMax = 512
	// FeedBytesMax bounds the stream, which the server reserves of its own limit, and FeedAgeMax how long a message is kept:
	// the feed must not take the log's room, and who reads it later reads from the log.
	FeedBytesMax = 1 << 30
	FeedAgeMax   = 7 * 24 * time.Hour
	// feedRequestMax bounds each question to the server.
	feedRequestMax = 5 * time.Second
	// feedTurnsMax is how often a step is offered while other nodes publish in between, feedTurnPause the longest pause before the next time.
	feedTurnsMax  = 50
	feedTurnPause = 5 * time.Millisecond
	// feedCatchUpMax bounds the steps of other nodes that are looked at: after more, everything is looked for anew.
	feedCatchUpMax = 256
)

// ErrFeedElsewhere says that nothing was published, since another node may have published events of the lane: whoever publishes
// looks at Last again.
var ErrFeedElsewhere = errors.New("another node may have published events of the lane")

// Headers of an atomic batch, and of what a message expects.
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

// errCodeBatchDuplicate says that a message of a batch is stored already. The client library has no name for it.
const errCodeBatchDuplicate jetstream.ErrorCode = 10201

// A FeedMessage is one public event.
type FeedMessage struct {
	// ID names the event: <lane>-<commit>-<index>.
	ID string
	// Partition of the event's key and name of its type; they make the subject.
	Partition uint32
	Type      string
	// Data is JSON.
	Data []byte
}

// An EventFeed publishes on the stream of the public feed. Its methods may be called by any number of goroutines; they publish
// one after the other. Each node has one, for its lanes, and every message expects the stream to end where its publisher knows it to: so
// a node notices each message of another one, and while it knows all of them, it knows whether the newest event of a lane is still its own.
type EventFeed struct {
	nc       *nats.Conn
	topology Topology
	batches  string // prefix of the ids of batches

	mu    sync.Mutex
	batch uint64
	// last is the sequence of the stream's newest message as far as it was looked at, if that is known.
	last    uint64
	isKnown bool
	lanes   []feedLane
}

// feedLane is what a feed knows of a lane.
type feedLane struct {
	// current says that nobody else has published events of it up to last, since its newest one was looked for here.
	current bool
	// elsewhere counts how often somebody else did, or may have.
	elsewhere uint64
}

// FeedOptions configure OpenEventFeed. Topology is required.
type FeedOptions struct {
	Topology Topology
	// Replicas of the stream when it is made; 0 means 1.
	Replicas int
	// BytesMax and AgeMax bound the stream when it is made; 0 means FeedBytesMax and FeedAgeMax.
	BytesMax int64
	AgeMax   time.Duration
}

// OpenEventFeed opens the stream of the public feed, and makes it when there is none. A stream that could take half of a batch,
// or in another order, is a *StreamSettingError.
func OpenEventFeed(ctx context.Context, nc *nats.Conn, options FeedOptions) (feed *EventFeed, err error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	err = whenLed(ctx, nc, FeedStream, func(ctx context.Context) (err error) {
		feed, err = openEventFeed(ctx, nc, options)
		return err
	})
	return feed, err
}

func openEventFeed(ctx context.Context, nc *nats.Conn, options FeedOptions) (*EventFeed, error) {
	if options.BytesMax == 0 {
		options.BytesMax = FeedBytesMax
	}
	if options.AgeMax == 0 {
		options.AgeMax = FeedAgeMax
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open the stream of public events: %w", err)
	}
	stream, err := js.Stream(ctx, FeedStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: FeedStream, Subjects: []string{feedSubjects}, Description: "Weir: public events, for services; the log is elsewhere",
			Storage: jetstream.FileStorage, Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld,
			MaxBytes: options.BytesMax, MaxAge: options.AgeMax, MaxMsgs: -1, MaxMsgsPerSubject: -1, MaxConsumers: -1, MaxMsgSize: -1,
			Duplicates: dedupWindow, DenyDelete: true, AllowAtomicPublish: true, Replicas: max(1, options.Replicas),
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open the stream of public events: %w", err)
	}
	config := stream.CachedInfo().Config
	for _, s := range []struct {
		setting string
		wrong   bool
		value   any
		want    string
	}{
		{"subjects", len(config.Subjects) != 1 || config.Subjects[0] != feedSubjects, strings.Join(config.Subjects, " "), feedSubjects},
		{"allow_atomic", !config.AllowAtomicPublish, config.AllowAtomicPublish, "true: a batch is stored whole or not at all"},
		{"retention", config.Retention != jetstream.LimitsPolicy, config.Retention, "limits: where the feed is, is read from it"},
		{"max_msgs_per_subject", config.MaxMsgsPerSubject > 0, config.MaxMsgsPerSubject, "-1"},
		{"no_ack", config.NoAck, config.NoAck, "false"},
		{"mirror", config.Mirror != nil, config.Mirror, "none"},
		{"sources", len(config.Sources) > 0, len(config.Sources), "none"},
	} {
		if s.wrong {
			return nil, &StreamSettingError{Stream: FeedStream, Setting: s.setting, Value: fmt.Sprint(s.value), Want: s.want}
		}
	}
	return &EventFeed{
		nc: nc, topology: options.Topology, batches: strings.ReplaceAll(nc.NewInbox(), ".", "-") + "-", lanes: make([]feedLane, options.Topology.Lanes),
	}, nil
}

// Publish stores the messages in their order, all of them or none; then it returns an error. It is ErrFeedElsewhere where Last was not called
// before, or not since another node published events of the lane. Any error may also mean that they were stored and nobody knows:
// whoever publishes them again looks at Last before.
// REQUIRES: at most FeedBatchMax messages, all of one lane, of events after the one that Last returned.
func (f *EventFeed) Publish(ctx context.Context, messages []FeedMessage) error {
	assert(len(messages) <= FeedBatchMax, "%d messages in one batch of the feed, the limit is %d", len(messages), FeedBatchMax)
	if len(messages) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, feedRequestMax)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	lane := &f.lanes[f.topology.LaneOf(messages[0].Partition)]
	for turn := 1; ; turn++ {
		if !f.isKnown || !lane.current {
			return fmt.Errorf("publish %d events from %s on: %w", len(messages), messages[0].ID, ErrFeedElsewhere)
		}
		sequence, err := f.publish(ctx, messages)
		if err == nil {
			f.last = sequence
			return nil
		}
		if isWrongLast(err) && turn < feedTurnsMax {
			if err = f.catchUp(ctx); err == nil {
				err = pause(ctx, rand.N(feedTurnPause))
			}
			if err == nil {
				continue
			}
		}
		f.lose()
		return fmt.Errorf("publish %d events from %s on: %w", len(messages), messages[0].ID, err)
	}
}

// lose forgets where the stream ends, and so what is known of every lane. REQUIRES: mu is held.
func (f *EventFeed) lose() {
	f.isKnown = false
	for lane := range f.lanes {
		f.lanes[lane].current = false
		f.lanes[lane].elsewhere++
	}
}

// catchUp looks at what other nodes have published since last. REQUIRES: mu is held.
func (f *EventFeed) catchUp(ctx context.Context) error {
	info, err := f.info(ctx)
	if err != nil {
		return err
	}
	if info.State.LastSeq < f.last {
		return fmt.Errorf("%s ends at message %d and has ended at %d", FeedStream, info.State.LastSeq, f.last)
	}
	steps := 0
	for at := info.State.LastSeq; at > f.last; steps++ {
		entry, found, err := f.read(ctx, map[string]any{"seq": at})
		if err != nil {
			return err
		}
		if !found || steps == feedCatchUpMax { // Expired, or too many to look at.
			f.lose()
			break
		}
		lane := &f.lanes[f.topology.LaneOf(entry.partition)]
		lane.current = false
		lane.elsewhere++
		at -= min(at, entry.step)
	}
	f.last, f.isKnown = info.State.LastSeq, true
	return nil
}

// publish returns the sequence of the last message. Each step expects the stream to end where the step before ended, so that
// one that was delayed, or comes from a node that was taken for dead, is refused. REQUIRES: mu is held, and last is known.
func (f *EventFeed) publish(ctx context.Context, messages []FeedMessage) (uint64, error) {
	f.batch++
	batch := f.batches + strconv.FormatUint(f.batch, 36)
	for i := range messages {
		m := f.message(&messages[i])
		m.Header[feedStepHeader] = []string{strconv.Itoa(i + 1)}
		if i == 0 {
			m.Header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(f.last, 10)}
			m.Header[jetstream.ExpectedStreamHeader] = []string{FeedStream}
		}
		final := i == len(messages)-1
		if len(messages) > 1 {
			m.Header[headerBatchID] = []string{batch}
			m.Header[headerBatchSequence] = []string{strconv.Itoa(i + 1)}
			if final {
				m.Header[headerBatchCommit] = []string{"1"}
			}
		}
		if !final {
			// A failure shows at the end: a batch that lacks a message is refused.
			if err := f.nc.PublishMsg(m); err != nil {
				return 0, err
			}
			continue
		}
		reply, err := f.nc.RequestMsgWithContext(ctx, m)
		if err != nil {
			return 0, err
		}
		return feedOutcome(reply.Data, f.last+uint64(len(messages)))
	}
	panic("eventstore: bug: a batch without a final message")
}

func (f *EventFeed) message(event *FeedMessage) *nats.Msg {
	return &nats.Msg{
		Subject: feedPrefix + strconv.FormatUint(uint64(event.Partition), 10) + "." + event.Type,
		Header: nats.Header{
			jetstream.MsgIDHeader: {event.ID}, FeedPositionHeader: {event.ID}, "Content-Type": {"application/json"},
		},
		Data: event.Data,
	}
}

// feedOutcome reads the server's acknowledgement of a step that ends at a sequence.
func feedOutcome(data []byte, want uint64) (uint64, error) {
	var ack struct {
		apiRefusal
		Sequence  uint64 `json:"seq"`
		Duplicate bool   `json:"duplicate"`
	}
	if err := json.Unmarshal(data, &ack); err != nil {
		return 0, fmt.Errorf("unreadable acknowledgement: %w", err)
	}
	if refused := (*jetstream.APIError)(nil); errors.As(ack.refusal(), &refused) && refused.ErrorCode == errCodeBatchDuplicate {
		return 0, fmt.Errorf("%w: %w", ErrFeedElsewhere, refused)
	}
	if err := ack.refusal(); err != nil {
		return 0, err
	}
	if ack.Duplicate {
		return 0, fmt.Errorf("message %d is the same: %w", ack.Sequence, ErrFeedElsewhere)
	}
	if ack.Sequence != want {
		return 0, fmt.Errorf("it was acknowledged as message %d, not %d", ack.Sequence, want)
	}
	return ack.Sequence, nil
}

func (f *EventFeed) info(ctx context.Context) (info streamState, err error) {
	err = apiRequest(ctx, f.nc, feedRequestMax, "STREAM.INFO."+FeedStream, nil, &info)
	return info, err
}

// Last returns the id of the newest event of a lane that the stream holds; found is false when it holds none (any more).
func (f *EventFeed) Last(ctx context.Context, lane uint32) (id string, found bool, err error) {
	fail := func(err error) (string, bool, error) {
		return "", false, fmt.Errorf("find the newest event of lane %d on %s: %w", lane, FeedStream, err)
	}
	info, err := f.info(ctx)
	if err != nil {
		return fail(err)
	}
	f.mu.Lock()
	if !f.isKnown {
		f.last, f.isKnown = info.State.LastSeq, true
	}
	elsewhere := f.lanes[lane].elsewhere
	f.mu.Unlock()
	if id, found, err = f.newest(ctx, lane, info); err != nil {
		return fail(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// What somebody else published meanwhile may be missing in what was read.
	f.lanes[lane].current = f.isKnown && f.lanes[lane].elsewhere == elsewhere
	return id, found, nil
}

// newest reads the id of the newest event of a lane.
func (f *EventFeed) newest(ctx context.Context, lane uint32, info streamState) (id string, found bool, err error) {
	if info.State.Msgs == 0 {
		return "", false, nil
	}
	newest, found, err := f.read(ctx, map[string]any{"seq": info.State.LastSeq})
	if err != nil {
		return "", false, err
	}
	if found && f.topology.LaneOf(newest.partition) == lane {
		return newest.id, true, nil
	}
	// Another lane was the last to publish: the newest of this lane is the newest of one of its partitions.
	var best feedEntry
	share := Partitions / f.topology.Lanes
	for partition := lane * share; partition < (lane+1)*share; partition++ {
		entry, found, err := f.read(ctx, map[string]any{"last_by_subj": feedPrefix + strconv.FormatUint(uint64(partition), 10) + ".*"})
		if err != nil {
			return "", false, err
		}
		if found && entry.sequence > best.sequence {
			best = entry
		}
	}
	return best.id, best.sequence > 0, nil
}

// feedEntry is what is read of a message of the stream.
type feedEntry struct {
	sequence  uint64
	partition uint32
	id        string
	// step is how many messages of its step there are up to it.
	step uint64
}

func (f *EventFeed) read(ctx context.Context, request map[string]any) (entry feedEntry, found bool, err error) {
	var answer struct {
		apiRefusal
		Message struct {
			Subject  string `json:"subject"`
			Sequence uint64 `json:"seq"`
			Header   []byte `json:"hdrs"`
		} `json:"message"`
	}
	err = apiRequest(ctx, f.nc, feedRequestMax, "STREAM.MSG.GET."+FeedStream, request, &answer)
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && refused.ErrorCode == jetstream.JSErrCodeMessageNotFound {
		return feedEntry{}, false, nil
	}
	if err != nil {
		return feedEntry{}, false, err
	}
	var header nats.Header
	if len(answer.Message.Header) > 0 {
		if header, err = nats.DecodeHeadersMsg(answer.Message.Header); err != nil {
			return feedEntry{}, false, fmt.Errorf("message %d: its headers cannot be read: %w", answer.Message.Sequence, err)
		}
	}
	token, _, _ := strings.Cut(strings.TrimPrefix(answer.Message.Subject, feedPrefix), ".")
	partition, err := strconv.ParseUint(token, 10, 32)
	id := header.Get(FeedPositionHeader)
	if err != nil || partition >= Partitions || id == "" {
		return feedEntry{}, false, fmt.Errorf("message %d on %s is none of Weir's: somebody else publishes there", answer.Message.Sequence, answer.Message.Subject)
	}
	step, err := strconv.ParseUint(header.Get(feedStepHeader), 10, 32)
	if err != nil || step == 0 || step > FeedBatchMax { // One of an older node does not say it.
		step = 1
	}
	return feedEntry{sequence: answer.Message.Sequence, partition: uint32(partition), id: id, step: step}, true, nil
}
