package eventstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

	// FeedBatchMax is how many messages are published in one step.
	FeedBatchMax = 512
	// FeedBytesMax bounds the stream, which the server reserves of its own limit, and FeedAgeMax how long a message is kept:
	// the feed must not take the log's room, and who reads it later reads from the log.
	FeedBytesMax = 1 << 30
	FeedAgeMax   = 7 * 24 * time.Hour
	// feedRequestMax bounds each question to the server.
	feedRequestMax = 5 * time.Second
)

// Headers of an atomic batch, and of what a message expects.
const (
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"
)

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
// one after the other.
type EventFeed struct {
	nc       *nats.Conn
	topology Topology
	batches  string // prefix of the ids of batches

	mu      sync.Mutex
	batch   uint64
	last    uint64 // sequence of the stream's newest message, if it is known
	isKnown bool
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
func OpenEventFeed(ctx context.Context, nc *nats.Conn, options FeedOptions) (*EventFeed, error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
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
	return &EventFeed{nc: nc, topology: options.Topology, batches: strings.ReplaceAll(nc.NewInbox(), ".", "-") + "-"}, nil
}

// Publish stores the messages in their order, all of them or none; then it returns an error. The error may also mean that they
// were stored and nobody knows: whoever publishes them again looks at Last before.
// REQUIRES: at most FeedBatchMax messages.
func (f *EventFeed) Publish(ctx context.Context, messages []FeedMessage) error {
	assert(len(messages) <= FeedBatchMax, "%d messages in one batch of the feed, the limit is %d", len(messages), FeedBatchMax)
	if len(messages) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, feedRequestMax)
	defer cancel()
	f.mu.Lock()
	defer f.mu.Unlock()
	sequence, err := f.publish(ctx, messages)
	if err != nil {
		f.isKnown = false
		return fmt.Errorf("publish %d events from %s on: %w", len(messages), messages[0].ID, err)
	}
	f.last, f.isKnown = sequence, true
	return nil
}

// publish returns the sequence of the last message. Each step expects the stream to end where the step before ended, so that
// one that was delayed, or comes from a node that was taken for dead, is refused.
func (f *EventFeed) publish(ctx context.Context, messages []FeedMessage) (uint64, error) {
	if !f.isKnown {
		info, err := f.info(ctx)
		if err != nil {
			return 0, err
		}
		f.last = info.State.LastSeq
	}
	f.batch++
	batch := f.batches + strconv.FormatUint(f.batch, 36)
	for i := range messages {
		m := f.message(&messages[i])
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
	if err := ack.refusal(); err != nil {
		return 0, err
	}
	if ack.Duplicate || ack.Sequence != want {
		return 0, fmt.Errorf("it was acknowledged as message %d (duplicate: %t), not %d", ack.Sequence, ack.Duplicate, want)
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
	if info.State.Msgs == 0 {
		return "", false, nil
	}
	newest, found, err := f.read(ctx, map[string]any{"seq": info.State.LastSeq})
	if err != nil {
		return fail(err)
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
			return fail(err)
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
	return feedEntry{sequence: answer.Message.Sequence, partition: uint32(partition), id: id}, true, nil
}
