package main

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

func TestReactorsStartWhenTheLanesAreServedAndTheViewsAreNearTheHead(t *testing.T) {
	store, err := projections.OpenStore(filepath.Join(t.TempDir(), "state"), projections.StoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	log := eventstore.OpenMemoryLog(0, 1)
	runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lanes: 1, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{runners: []*projections.Runner{runner}}
	if n.mayReact() {
		t.Error("the reactors start before the lanes are served")
	}
	n.settled.Store(true)

	for number, want := range map[uint64]bool{1: true, eventstore.TailCommitsMax: true, eventstore.TailCommitsMax + 1: false} {
		runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lanes: 1, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		n.runners = []*projections.Runner{runner}
		runner.Offer(&eventstore.Commit{Number: number}, eventstore.Position{Number: number})
		if n.mayReact() != want {
			t.Errorf("%d commits behind the reactors start: %t, want %t", number, !want, want)
		}
	}

	runner.Offer(&eventstore.Commit{Number: 1 << 20}, eventstore.Position{Number: 1 << 20})
	n.runners = []*projections.Runner{runner}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	if err := runner.Run(stopped); err != nil {
		t.Fatal(err)
	}
	if !n.mayReact() {
		t.Error("a view that has stopped keeps the reactors from starting")
	}
}

func TestAWaitForTheViewsIsBounded(t *testing.T) {
	looks := 0
	(&node{}).awaitViews(t.Context(), time.Millisecond, func() bool { looks++; return false })
	if looks == 0 {
		t.Error("nobody looked")
	}
}
