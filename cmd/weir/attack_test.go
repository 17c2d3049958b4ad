package main

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/attacktest"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/gateway/policy"
)

// A sharedLog is a node's log that a test reads while the node writes it.
type sharedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *sharedLog) Write(data []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(data)
}

func (l *sharedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestAttacksOnADevNodeAreRefusedAndDoNotMoveTheLog runs the attacks over the whole of a node, with its log on disk. It is
// as a dev node is, but for the patience with slow clients.
func TestAttacksOnADevNodeAreRefusedAndDoNotMoveTheLog(t *testing.T) {
	t.Run("node alone", func(t *testing.T) { attackDevNode(t, gatewayOptions{}) })
	// The node stays as patient as it is by default: it is the gateway that cuts a slow client.
	t.Run("through the gateway", func(t *testing.T) {
		attackDevNode(t, gatewayOptions{on: true, policy: policy.Policy{Limits: policy.Limits{HeaderTime: attackPatience, BodyTime: attackPatience}}})
	})
}

// attackPatience is what slow clients get in the attacks.
const attackPatience = 300 * time.Millisecond

func attackDevNode(t *testing.T, gateway gatewayOptions) {
	t.Helper()
	limits := api.Limits{HeaderTimeMax: attackPatience, BodyTimeMax: attackPatience}
	if gateway.on {
		limits = api.Limits{}
	}
	logged := &sharedLog{}
	n, err := openNode(t.Context(), nodeOptions{
		data: dataDir(t.TempDir()), listen: "127.0.0.1:0", lanesNew: lanesOfDev, gateway: gateway, payWithin: lanes.PayWithinDefault,
		gcPercent: defaultGCPercent, limits: limits, owner: "test",
	}, slog.New(slog.NewTextHandler(logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // It ends after what the test still cleans up.
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- n.run(ctx, func(context.Context) error {
			close(ready)
			return nil
		})
	}()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the node ended with %v", err)
		}
		if err := n.close(); err != nil {
			t.Errorf("close the node: %v", err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatal("the node did not get ready")
	}
	attacktest.Run(t, attacktest.Target{
		URL: n.record.API, Key: n.signing, HeaderTimeMax: attackPatience, BodyTimeMax: attackPatience,
		StreamsPerConnectionMax: 250, Logs: logged.String, Commands: n.lanes,
		Head: func() uint64 {
			var sum uint64
			for lane := range n.log.topology.Lanes {
				head, err := n.log.streams.Log(lane).Head(t.Context())
				if err != nil {
					t.Errorf("head of lane %d: %v", lane, err)
				}
				sum += head
			}
			return sum
		},
	})
	stop()
	live(t, nil, "log", "verify", "--data", string(n.options.data)).want(t, exitOK)
}
