package replicas_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/eventstore/embedded/embeddedtest"
	"github.com/weirhq/weir/gateway/failback"
	"github.com/weirhq/weir/gateway/plan"
	"github.com/weirhq/weir/gateway/replicas"
	"github.com/weirhq/weir/gateway/room"
)

// startTimeMax bounds the wait for a cluster to have a leader, and for replicas.
const startTimeMax = 30 * time.Second

// startCluster starts three servers that form a cluster, and returns a client of each.
func startCluster(t *testing.T) []jetstream.JetStream {
	t.Helper()
	var listeners []net.Listener
	var routes []string
	for range 3 {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, routes = append(listeners, listener), append(routes, listener.Addr().String())
	}
	var clients []jetstream.JetStream
	for i, route := range routes {
		listeners[i].Close()
		server, err := embedded.Start(embedded.Options{
			Dir: t.TempDir(), ServerName: fmt.Sprint("node", i+1), Logger: slog.New(slog.DiscardHandler),
			Cluster: &embedded.Cluster{Name: "weir", Listen: route, Routes: slices.Clone(routes)},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(server.Shutdown)
		js, err := jetstream.New(embeddedtest.Connect(t, server))
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, js)
	}
	return clients
}

// eventually does it again until it succeeds, for as long as a cluster may take.
func eventually(t *testing.T, what string, do func(ctx context.Context) error) {
	t.Helper()
	for until := time.Now().Add(startTimeMax); ; {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := do(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

var kept = []replicas.Stream{
	{Name: plan.BucketStream}, {Name: plan.AuditStream}, {Name: failback.Stream}, {Name: failback.ParkedStream}, {Name: room.UsesStream, ReadFromLeader: true},
}

// open makes what gateways keep, with as many replicas as it says by itself.
func open(t *testing.T, js jetstream.JetStream) {
	t.Helper()
	eventually(t, "make the plans", func(ctx context.Context) error {
		_, err := plan.OpenStore(ctx, js, plan.StoreConfig{})
		return err
	})
	eventually(t, "make what is kept for later", func(ctx context.Context) error {
		_, err := failback.Open(ctx, js.Conn(), failback.Config{}, failback.Options{Key: make([]byte, 32), Logger: slog.New(slog.DiscardHandler)})
		return err
	})
	eventually(t, "use a turn", func(ctx context.Context) error {
		taken, err := room.NewNATSUses(js).Take(ctx, room.Use{Key: "rush:alice", Order: "one", Entered: 1, Now: 2, Keep: time.Hour})
		if err == nil && !taken {
			t.Fatal("nobody had the turn, and it was not given")
		}
		return err
	})
}

func listNodes(t *testing.T, js jetstream.JetStream, copies int) {
	t.Helper()
	eventually(t, "make the list of nodes", func(ctx context.Context) error {
		_, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "WEIR-NODES", Replicas: copies})
		return err
	})
}

func wantReplicas(t *testing.T, js jetstream.JetStream, want int) {
	t.Helper()
	for _, stream := range kept {
		eventually(t, stream.Name, func(ctx context.Context) error {
			found, err := js.Stream(ctx, stream.Name)
			if err != nil {
				return err
			}
			info := found.CachedInfo()
			if got := info.Config.Replicas; got != want {
				t.Fatalf("stream %s has %d replicas, want %d", stream.Name, got, want)
			}
			if stream.ReadFromLeader && info.Config.AllowDirect {
				t.Fatalf("stream %s lets replicas that are behind answer", stream.Name)
			}
			if info.Cluster == nil || len(info.Cluster.Replicas) != want-1 {
				return fmt.Errorf("its replicas are %+v, want %d beside the leader", info.Cluster, want-1)
			}
			for _, peer := range info.Cluster.Replicas {
				if !peer.Current {
					return fmt.Errorf("replica %s is behind", peer.Name)
				}
			}
			return nil
		})
	}
}

func TestWhatGatewaysKeepIsMadeForAsManyServersAsTheListOfNodes(t *testing.T) {
	clients := startCluster(t)
	listNodes(t, clients[0], 3)
	open(t, clients[1])
	wantReplicas(t, clients[2], 3)
}

// Gateways that came before the first node, and those of versions before, made all with one replica: a dead server took plans and requests with it.
func TestWhatGatewaysKeptOnOneServerIsRaisedByAllOfThemAtOnce(t *testing.T) {
	clients := startCluster(t)
	// The bucket of turns was made in another way.
	eventually(t, "make the turns", func(ctx context.Context) error {
		_, err := clients[0].CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: room.UsesBucket, Storage: jetstream.MemoryStorage})
		return err
	})
	open(t, clients[0])
	raise := func(js jetstream.JetStream) error {
		return replicas.NewRaiser(js, kept, slog.New(slog.DiscardHandler)).Raise(t.Context())
	}
	if err := raise(clients[0]); err != nil {
		t.Fatal(err)
	}
	wantReplicas(t, clients[0], 1) // There is no node yet.
	listNodes(t, clients[0], 3)
	eventually(t, "raise them", func(context.Context) error {
		failed := make([]error, len(clients))
		var raising sync.WaitGroup
		for i, js := range clients {
			raising.Go(func() { failed[i] = raise(js) })
		}
		raising.Wait()
		return errors.Join(failed...)
	})
	wantReplicas(t, clients[1], 3)
	if err := raise(clients[2]); err != nil {
		t.Errorf("raise what is raised: %v", err)
	}
	// Nothing is taken away, and what was kept is there.
	listNodes(t, clients[0], 1)
	if err := raise(clients[0]); err != nil {
		t.Error(err)
	}
	wantReplicas(t, clients[1], 3)
	open(t, clients[2])
	uses := room.NewNATSUses(clients[1])
	if taken, err := uses.Take(t.Context(), room.Use{Key: "rush:alice", Order: "two", Entered: 1, Now: 3, Keep: time.Hour}); err != nil || taken {
		t.Errorf("another order took a turn that was used: %v, %v", taken, err)
	}
}

func TestARaiserEndsWithItsContextAlsoWhileNobodyAnswers(t *testing.T) {
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(embeddedtest.Connect(t, server))
	if err != nil {
		t.Fatal(err)
	}
	server.Shutdown()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- replicas.NewRaiser(js, kept, slog.New(slog.DiscardHandler)).Run(ctx) }()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(startTimeMax):
		t.Error("it did not end")
	}
}
