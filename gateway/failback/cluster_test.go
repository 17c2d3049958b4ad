package failback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/eventstore/embedded/embeddedtest"
)

// startCluster starts three servers that form a cluster.
func startCluster(t *testing.T) []*embedded.Server {
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
	var servers []*embedded.Server
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
		servers = append(servers, server)
	}
	return servers
}

// A replicated stream refuses with other codes than a single one does, and its leader may die.
func TestInAClusterRequestsOutliveAServer(t *testing.T) {
	servers := startCluster(t)
	nc := embeddedtest.Connect(t, servers[0])
	config := quickly
	config.Replicas, config.RequestsMax = 3, 3
	var q *Queue
	eventually(t, "the cluster makes the streams", func() bool {
		ctx, end := context.WithTimeout(t.Context(), 5*time.Second)
		defer end()
		var err error
		q, err = Open(ctx, nc, config, Options{Key: testKey, Logger: slog.New(slog.DiscardHandler)})
		return err == nil
	})
	accept(t, q, request("r1"), request("r1"), request("r2"), request("r3"))
	other := request("r1")
	other.Body = nil
	if err := q.Accept(t.Context(), other); !errors.As(err, new(*ReusedError)) {
		t.Errorf("another body under the same id: %v, want a *ReusedError", err)
	}
	if err := q.Accept(t.Context(), request("r4")); !errors.As(err, new(*FullError)) {
		t.Errorf("a fourth request: %v, want a *FullError", err)
	}

	info, err := q.waiting.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	survivors := make([]*nats.Conn, 0, 2)
	for i, server := range servers {
		if fmt.Sprint("node", i+1) == info.Cluster.Leader {
			server.Shutdown()
		} else {
			survivors = append(survivors, embeddedtest.Connect(t, server))
		}
	}
	var gateway *Queue
	eventually(t, "two of three open the streams", func() bool {
		ctx, end := context.WithTimeout(t.Context(), 5*time.Second)
		defer end()
		gateway, err = Open(ctx, survivors[0], config, Options{Key: testKey, Logger: slog.New(slog.DiscardHandler)})
		return err == nil
	})
	l := &ledger{}
	run(t, gateway, l.send)
	eventually(t, "all three were made", func() bool { return l.done() == 3 })
	wantStats(t, gateway, 0, 0)
	accept(t, gateway, request("r4"))
	eventually(t, "the fourth was made", func() bool { return l.done() == 4 })
}
