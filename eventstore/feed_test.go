package eventstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore/embedded"
)

func openFeed(t *testing.T, nc *nats.Conn, lanes uint32) *EventFeed {
	t.Helper()
	feed, err := OpenEventFeed(t.Context(), nc, FeedOptions{Topology: Topology{Lanes: lanes}, BytesMax: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return feed
}

// publishAfterLook looks for the newest event of the messages' lane, as whoever publishes does, and publishes them.
func publishAfterLook(t *testing.T, feed *EventFeed, messages []FeedMessage) error {
	t.Helper()
	if _, _, err := feed.Last(t.Context(), feed.topology.LaneOf(messages[0].Partition)); err != nil {
		t.Fatal(err)
	}
	return feed.Publish(t.Context(), messages)
}

// feedMessages are events of a commit of a lane, all of one partition.
func feedMessages(lane uint32, commit, events int, partition uint32) []FeedMessage {
	messages := make([]FeedMessage, events)
	for i := range messages {
		messages[i] = FeedMessage{
			ID: fmt.Sprintf("%d-%d-%d", lane, commit, i), Partition: partition, Type: "OrderPlaced", Data: []byte(`{"n":1}`),
		}
	}
	return messages
}

// published reads the whole stream.
func published(t *testing.T, nc *nats.Conn) []string {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), FeedStream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	if info.State.Msgs == 0 {
		return nil
	}
	for sequence := info.State.FirstSeq; sequence <= info.State.LastSeq; sequence++ {
		message, err := stream.GetMsg(t.Context(), sequence)
		if err != nil {
			t.Fatal(err)
		}
		if message.Header.Get(FeedPositionHeader) != message.Header.Get(jetstream.MsgIDHeader) {
			t.Errorf("message %d: got headers %v", sequence, message.Header)
		}
		all = append(all, message.Subject+" "+message.Header.Get(FeedPositionHeader))
	}
	return all
}

func TestTheFeedStoresBatchesWholeAndInOrder(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	feed := openFeed(t, nc, 4)
	if _, found, err := feed.Last(t.Context(), 0); err != nil || found {
		t.Fatalf("an empty stream: got %t, %v", found, err)
	}
	for _, step := range [][]FeedMessage{
		feedMessages(0, 1, 1, 7), feedMessages(0, 2, FeedBatchMax, 9), feedMessages(3, 1, 3, 1000), feedMessages(0, 3, 2, 7), feedMessages(3, 2, 1, 1023),
	} {
		if err := publishAfterLook(t, feed, step); err != nil {
			t.Fatal(err)
		}
	}
	all := published(t, nc)
	if len(all) != 1+FeedBatchMax+3+2+1 || all[0] != "weir.events.7.OrderPlaced 0-1-0" || all[1] != "weir.events.9.OrderPlaced 0-2-0" ||
		all[FeedBatchMax] != fmt.Sprintf("weir.events.9.OrderPlaced 0-2-%d", FeedBatchMax-1) {
		t.Fatalf("got %d messages: %.200v", len(all), all)
	}
	for lane, want := range []string{"0-3-1", "", "", "3-2-0"} {
		id, found, err := openFeed(t, nc, 4).Last(t.Context(), uint32(lane))
		if err != nil || id != want || found != (want != "") {
			t.Errorf("lane %d: got %q, %t, %v, want %q", lane, id, found, err, want)
		}
	}
}

func TestTheFeedTakesNoSecondCopyAndNoLateBatch(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	late, feed := openFeed(t, nc, 1), openFeed(t, nc, 1)
	if err := publishAfterLook(t, late, feedMessages(0, 1, 2, 1)); err != nil {
		t.Fatal(err)
	}
	if err := publishAfterLook(t, feed, feedMessages(0, 2, 2, 1)); err != nil {
		t.Fatal(err)
	}
	// It has published last, as far as it knows.
	if err := late.Publish(t.Context(), feedMessages(0, 2, 3, 1)); !errors.Is(err, ErrFeedElsewhere) {
		t.Fatalf("a publisher that is behind is told %v, want ErrFeedElsewhere", err)
	}
	for _, again := range [][]FeedMessage{feedMessages(0, 2, 1, 1), feedMessages(0, 2, 3, 1)} {
		if err := publishAfterLook(t, feed, again); err == nil {
			t.Fatalf("a second copy of %d messages was taken for new", len(again))
		}
	}
	if err := publishAfterLook(t, feed, feedMessages(0, 3, 3, 1)); err != nil {
		t.Fatalf("after refusals: %v", err)
	}
	if all := published(t, nc); len(all) != 7 {
		t.Fatalf("got %v, want 7 messages", all)
	}
}

func TestTheFeedSurvivesARestartOfTheServer(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	feed := openFeed(t, nc, 2)
	if err := publishAfterLook(t, feed, feedMessages(1, 4, 20, 900)); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	nc = connectTo(t, server)
	feed = openFeed(t, nc, 2)
	if id, found, err := feed.Last(t.Context(), 1); err != nil || !found || id != "1-4-19" {
		t.Fatalf("got %q, %t, %v, want 1-4-19", id, found, err)
	}
	if err := publishAfterLook(t, feed, feedMessages(1, 5, 2, 900)); err != nil {
		t.Fatal(err)
	}
	if all := published(t, nc); len(all) != 22 {
		t.Fatalf("got %d messages, want 22", len(all))
	}
}

func TestAFeedThatIsCutOffStoresNoHalfBatch(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	feed := openFeed(t, nc, 1)
	if _, _, err := feed.Last(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := feed.Publish(ctx, feedMessages(0, 1, 3, 1)); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want that it was cancelled", err)
	}
	// A batch whose second message never arrived.
	messages := feedMessages(0, 1, 3, 1)
	for i, sequence := range []string{"1", "3"} {
		m := feed.message(&messages[i])
		m.Header[headerBatchID], m.Header[headerBatchSequence] = []string{"torn"}, []string{sequence}
		if i == 0 {
			if err := nc.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
			continue
		}
		m.Header[headerBatchCommit] = []string{"1"}
		reply, err := nc.RequestMsgWithContext(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := feedOutcome(reply.Data, 2); err == nil {
			t.Fatal("half a batch was acknowledged")
		}
	}
	if all := published(t, nc); len(all) != 0 {
		t.Fatalf("got %v, want nothing", all)
	}
	if err := publishAfterLook(t, feed, messages); err != nil {
		t.Fatal(err)
	}
}

// Several nodes publish on the stream, each for its lanes: they take turns, and none fails because of another one.
func TestFeedsOfSeveralNodesPublishSideBySide(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	const lanes, commits = 4, 30
	var publishing sync.WaitGroup
	for lane := range uint32(lanes) {
		feed := openFeed(t, connectTo(t, server), lanes)
		if _, _, err := feed.Last(t.Context(), lane); err != nil {
			t.Fatal(err)
		}
		publishing.Go(func() {
			for commit := range commits {
				if err := feed.Publish(t.Context(), feedMessages(lane, commit+1, 1+commit%3, lane*Partitions/lanes)); err != nil {
					t.Errorf("lane %d, commit %d: %v", lane, commit+1, err)
					return
				}
			}
		})
	}
	publishing.Wait()
	if all := published(t, nc); len(all) != lanes*commits*2 {
		t.Fatalf("got %d messages, want %d", len(all), lanes*commits*2)
	}
}

// What a node knows of a lane that was elsewhere does not count, also when it is still the last to have published, of another lane.
func TestALaneThatWasElsewhereIsLookedAtAgain(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	own, other := openFeed(t, connectTo(t, server), 2), openFeed(t, connectTo(t, server), 2)
	for _, step := range []struct {
		feed     *EventFeed
		messages []FeedMessage
	}{{own, feedMessages(0, 1, 2, 1)}, {own, feedMessages(1, 1, 2, 900)}, {other, feedMessages(0, 2, 2, 1)}} {
		if err := publishAfterLook(t, step.feed, step.messages); err != nil {
			t.Fatal(err)
		}
	}
	// Lane 1 stayed: it goes on, and notices what came of lane 0.
	if err := own.Publish(t.Context(), feedMessages(1, 2, 2, 900)); err != nil {
		t.Fatalf("another node's lane held up this one's: %v", err)
	}
	if err := own.Publish(t.Context(), feedMessages(0, 3, 2, 1)); !errors.Is(err, ErrFeedElsewhere) {
		t.Fatalf("got %v, want ErrFeedElsewhere", err)
	}
	if id, _, err := own.Last(t.Context(), 0); err != nil || id != "0-2-1" {
		t.Fatalf("got %q, %v, want 0-2-1", id, err)
	}
	if err := own.Publish(t.Context(), feedMessages(0, 3, 2, 1)); err != nil {
		t.Fatal(err)
	}
}

func TestAStreamThatIsNotTheFeedsIsRefused(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: FeedStream, Subjects: []string{feedSubjects}}); err != nil {
		t.Fatal(err)
	}
	_, err = OpenEventFeed(t.Context(), nc, FeedOptions{Topology: Topology{Lanes: 1}})
	var setting *StreamSettingError
	if !errors.As(err, &setting) || setting.Setting != "allow_atomic" {
		t.Fatalf("got %v, want a StreamSettingError for allow_atomic", err)
	}
	if err := js.DeleteStream(t.Context(), FeedStream); err != nil {
		t.Fatal(err)
	}
	feed := openFeed(t, nc, 1)
	if _, err := js.Publish(t.Context(), "weir.events.nonsense.X", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := feed.Last(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "somebody else publishes there") {
		t.Fatalf("got %v, want that somebody else publishes there", err)
	}
}
