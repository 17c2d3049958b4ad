package api_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/attacktest"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// realNode puts real lanes and views behind an API, over a log and a store in memory.
type realNode struct {
	set  *lanes.Set
	logs []*eventstore.MemoryLog
}

func (n *realNode) head() uint64 {
	var sum uint64
	for _, log := range n.logs {
		sum += log.Position().Number
	}
	return sum
}

// useRealNode replaces the fake in the options.
func useRealNode(t testing.TB, o *api.Options, count uint32) *realNode {
	t.Helper()
	topology := eventstore.Topology{Lanes: count}
	store, err := projections.OpenStore("data", projections.StoreOptions{FS: vfs.NewMem(), Logger: o.Logger})
	if err != nil {
		t.Fatal(err)
	}
	n := &realNode{}
	var runners []*projections.Runner
	for lane := range count {
		n.logs = append(n.logs, eventstore.OpenMemoryLog(lane, count))
		runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lane: lane, Lanes: count, Log: n.logs[lane], Logger: o.Logger})
		if err != nil {
			t.Fatal(err)
		}
		runners = append(runners, runner)
	}
	n.set, err = lanes.Open(lanes.Options{
		Topology: topology, Store: store, Owner: "test",
		Log:     func(lane uint32) eventstore.Log { return n.logs[lane] },
		Observe: func(lane uint32) eventstore.Observer { return runners[lane].Offer },
		Lane:    eventstore.LaneOptions{Logger: o.Logger},
	})
	if err != nil {
		t.Fatal(err)
	}
	views, err := projections.NewViews(projections.ViewsOptions{Store: store, Topology: topology, Runners: runners, PageKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // It ends after what the test still cleans up.
	done := make(chan error, 1+len(runners))
	go func() { done <- n.set.Run(ctx) }()
	for _, runner := range runners {
		go func() { done <- runner.Run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range cap(done) {
			if err := <-done; err != nil && ctx.Err() == nil {
				t.Errorf("node: %v", err)
			}
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !n.set.Serving(); {
		if time.Now().After(deadline) {
			t.Fatal("the lanes did not open")
		}
	}
	o.Commands, o.Views, o.Topology, o.Serving = n.set, views, topology, n.set.Serving
	return n
}

func TestAttacksOnRealLanesAreRefusedAndWriteNothing(t *testing.T) {
	for _, count := range []uint32{1, 4} {
		t.Run(fmt.Sprintf("%dLanes", count), func(t *testing.T) {
			limits := api.Limits{HeaderTimeMax: 300 * time.Millisecond, BodyTimeMax: 300 * time.Millisecond}
			var real *realNode
			n := serve(t, func(o *api.Options) {
				o.Limits = limits
				real = useRealNode(t, o, count)
			})
			attacktest.Run(t, attacktest.Target{
				URL: n.url, Key: n.key, Head: real.head, HeaderTimeMax: limits.HeaderTimeMax, BodyTimeMax: limits.BodyTimeMax,
				StreamsPerConnectionMax: 250, Payments: true, Logs: n.logs.String,
			})
		})
	}
}
