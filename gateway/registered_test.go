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
	"github.com/weirhq/weir/eventstore/embedded/embeddedtest"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/registry"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// A listed is nodes of the tests in a registry, and a gateway that finds them there.
type listed struct {
	*front
	t      *testing.T
	bucket jetstream.KeyValue
	nodes  []*node
}

// listNodes serves a gateway that finds nodes in a registry, once they say what they are.
func listNodes(t *testing.T, decided policy.Policy, nodes ...*node) *listed {
	t.Helper()
	connection := embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Options{}))
	stream, err := jetstream.New(connection)
	if err != nil {
		t.Fatal(err)
	}
	l := &listed{t: t, nodes: nodes}
	l.bucket, err = stream.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{
		Bucket: registry.BucketDefault, TTL: time.Minute, LimitMarkerTTL: time.Minute, Storage: jetstream.FileStorage,
	})
	if err != nil {
		t.Fatal(err)
	}
	known, err := registry.New(connection, registry.Config{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	l.front = serveGateway(t, gateway.Options{Policy: decided, Registry: known, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- known.Run(ctx) }()
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return l
}

// says has a node say since which epoch it decides which lanes.
func (l *listed) says(number int, epoch uint64, lanes ...uint32) {
	l.t.Helper()
	member := &clusterv1.Member{NodeId: fmt.Sprintf("node-%d", number), Addresses: []string{l.nodes[number].URL}, Heartbeat: epoch}
	for _, lane := range lanes {
		member.Lanes = append(member.Lanes, &clusterv1.OwnedLane{Lane: lane, Epoch: epoch})
	}
	text, err := proto.Marshal(member)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.bucket.Put(l.t.Context(), member.GetNodeId(), text); err != nil {
		l.t.Fatal(err)
	}
}

// knows waits until the gateway knows of so many nodes.
func (l *listed) knows(count int) {
	l.t.Helper()
	for deadline := time.Now().Add(testTimeMax); len(l.Upstreams()) < count; {
		if time.Now().After(deadline) {
			l.t.Fatalf("the gateway knows of %q, want %d", l.Upstreams(), count)
		}
	}
}

func TestCallsGoToTheNodeThatDecidesTheUsersLaneAndFollowIt(t *testing.T) {
	nodes := []*node{(&node{}).start(t), (&node{}).start(t)}
	f := listNodes(t, policy.Policy{}, nodes...)
	f.says(0, 1, 0)
	f.says(1, 1, 1)

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
	f.knows(2)
	// Of two lanes alice has the second (partition 999) and bob the first (212).
	goesTo("alice", 1)
	goesTo("bob", 0)
	// The lane moves.
	f.says(0, 2, 0, 1)
	goesTo("alice", 0)
	// Its node leaves.
	if err := f.bucket.Delete(t.Context(), "node-0"); err != nil {
		t.Fatal(err)
	}
	goesTo("bob", 1)
	if got := f.Upstreams(); len(got) != 1 || got[0] != "node-1" {
		t.Errorf("the gateway knows of %q", got)
	}
}
