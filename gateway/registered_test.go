package gateway_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/registry"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

func TestCallsGoToTheNodeThatDecidesTheUsersLaneAndFollowIt(t *testing.T) {
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	connection, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(connection.Close)
	stream, err := jetstream.New(connection)
	if err != nil {
		t.Fatal(err)
	}
	bucket, err := stream.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{
		Bucket: registry.BucketDefault, TTL: time.Minute, LimitMarkerTTL: time.Minute, Storage: jetstream.FileStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	nodes := []*node{(&node{}).start(t), (&node{}).start(t)}
	says := func(number int, epoch uint64, lanes ...uint32) {
		t.Helper()
		member := &clusterv1.Member{NodeId: fmt.Sprintf("node-%d", number), Addresses: []string{nodes[number].URL}, Heartbeat: epoch}
		for _, lane := range lanes {
			member.Lanes = append(member.Lanes, &clusterv1.OwnedLane{Lane: lane, Epoch: epoch})
		}
		text, err := proto.Marshal(member)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bucket.Put(t.Context(), member.GetNodeId(), text); err != nil {
			t.Fatal(err)
		}
	}
	says(0, 1, 0)
	says(1, 1, 1)

	known, err := registry.New(connection, registry.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	f := serveGateway(t, gateway.Options{Registry: known, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- known.Run(ctx) }()
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})

	client := orders(t, f.URL, "connect")
	// goesTo waits until a user's calls go to a node, and then looks that all of them do.
	goesTo := func(user string, number int) {
		t.Helper()
		call := func() int64 {
			before := nodes[number].calls.Load()
			// Before it knows of a node, the gateway has none to call.
			_, _ = client.GetOrder(with(t, "Authorization", "Bearer "+tokenOf(user)), &orderv1.GetOrderRequest{})
			return nodes[number].calls.Load() - before
		}
		for deadline := time.Now().Add(testTimeMax); call() == 0 || len(f.Upstreams()) == 0; {
			if time.Now().After(deadline) {
				t.Fatalf("%s's calls do not go to node %d; the gateway knows of %q", user, number, f.Upstreams())
			}
		}
		for range 20 {
			if call() != 1 {
				t.Fatalf("a call of %s did not go to node %d", user, number)
			}
		}
	}
	for deadline := time.Now().Add(testTimeMax); len(f.Upstreams()) < 2; {
		if time.Now().After(deadline) {
			t.Fatalf("the gateway knows of %q", f.Upstreams())
		}
	}
	// Of two lanes alice has the second (partition 999) and bob the first (212).
	goesTo("alice", 1)
	goesTo("bob", 0)
	// The lane moves.
	says(0, 2, 0, 1)
	goesTo("alice", 0)
	// Its node leaves.
	if err := bucket.Delete(t.Context(), "node-0"); err != nil {
		t.Fatal(err)
	}
	goesTo("bob", 1)
	if got := f.Upstreams(); len(got) != 1 || got[0] != "node-1" {
		t.Errorf("the gateway knows of %q", got)
	}
}
