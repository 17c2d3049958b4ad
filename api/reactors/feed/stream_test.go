package feed

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/weirhq/weir/eventstore"
	feedv1 "github.com/weirhq/weir/proto/weir/feed/v1"
)

// publishedIDs reads the stream as a service would: the ids of the events of each of two lanes, in order.
func publishedIDs(t *testing.T, nc *nats.Conn) map[uint32][]string {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), eventstore.FeedStream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids := map[uint32][]string{}
	for sequence := uint64(1); sequence <= info.State.LastSeq; sequence++ {
		message, err := stream.GetMsg(t.Context(), sequence)
		if err != nil {
			t.Fatal(err)
		}
		event := &feedv1.Event{}
		if err := protojson.Unmarshal(message.Data, event); err != nil {
			t.Fatalf("message %d: %v", sequence, err)
		}
		if want := fmt.Sprintf("weir.events.%d.%s", event.GetPartition(), event.GetType()); message.Subject != want {
			t.Errorf("message %d is on %s, want %s", sequence, message.Subject, want)
		}
		if got := message.Header.Get("Nats-Msg-Id"); got != event.GetId() {
			t.Errorf("message %d has the id %s, want %s", sequence, got, event.GetId())
		}
		lane := uint32(0)
		if strings.HasPrefix(event.GetId(), "1-") {
			lane = 1
		}
		ids[lane] = append(ids[lane], event.GetId())
	}
	return ids
}
