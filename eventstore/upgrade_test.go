package eventstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/weirhq/weir/eventstore/embedded"
)

// conditions returns, for each commit of lane 0 from the first on, whether its writer stated the hash of the commit before.
func conditions(t *testing.T, nc *nats.Conn) (stated []bool) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), StreamName(0))
	if err != nil {
		t.Fatal(err)
	}
	for number := uint64(1); number <= stream.CachedInfo().State.LastSeq; number++ {
		message, err := stream.GetMsg(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		stated = append(stated, message.Header.Get(jetstream.ExpectedLastMsgIDHeader) != "")
	}
	return stated
}

func TestReplicasAreAddedUnderLoadAndTheRuleOfAppendingChangesAtOnce(t *testing.T) {
	c := newTrio(t)
	nc := c.connect(0)
	c.provision(nc, 1)
	if _, err := OpenUserKeys(t.Context(), nc, UserKeysOptions{Topology: Topology{Lanes: 1}}); err != nil {
		t.Fatal(err)
	}
	lane := runLane(t, c.openLog(nc), newCounter(), LaneOptions{GroupMin: 1, ReopenDelay: 50 * time.Millisecond})
	// An ask that is not answered within the bound counts as one of unknown outcome. Between asks a client rests: the load is to be
	// there all the time, not to fill the machine.
	const upgradeMax, rest = 90 * time.Second, 3 * time.Millisecond
	var acknowledged, unknown atomic.Int64
	bounded, cancel := context.WithTimeout(t.Context(), upgradeMax)
	defer cancel()
	ctx, stop := context.WithCancel(bounded)
	defer stop()
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for ctx.Err() == nil {
				if _, err := lane.Submit(bounded, 1); err == nil {
					acknowledged.Add(1)
				} else {
					unknown.Add(1)
				}
				_ = pause(ctx, rest)
			}
		})
	}
	reach := func(what string, count int64) {
		eventually(t, what, func() error {
			if got := acknowledged.Load(); got < count {
				return fmt.Errorf("%d acknowledged", got)
			}
			return nil
		})
	}
	reach("the lane serves", 200)
	var steps []string
	replicatingAt := uint64(0)
	err := Upgrade(bounded, nc, UpgradeOptions{Replicas: 3, System: c.system(0), Progress: func(step UpgradeStep) {
		steps = append(steps, step.Stream+" "+step.Step)
		if step.Stream == StreamName(0) && step.Step == "fenced" {
			info, err := streamInfo(t.Context(), nc, time.Second, 0)
			if err != nil {
				t.Error(err)
			}
			replicatingAt = info.State.LastSeq
		}
	}})
	if err != nil {
		t.Fatalf("after %v, with %d asks acknowledged: %v", steps, acknowledged.Load(), err)
	}
	reach("the lane serves on three servers", acknowledged.Load()+200)
	stop()
	clients.Wait()

	order := []string{"KV_WEIR-CLUSTER replicating", "KV_WEIR-CLUSTER current", "KV_WEIR-USER-KEYS current", "ORDERS-00 announced", "ORDERS-00 fenced", "ORDERS-00 replicating", "ORDERS-00 current"}
	at := -1
	for _, step := range order {
		next := slices.Index(steps, step)
		if next <= at {
			t.Fatalf("step %q is not after the one before in %v", step, steps)
		}
		at = next
	}
	stated := conditions(t, nc)
	if !slices.Contains(stated[:replicatingAt], true) {
		t.Error("no commit before the change stated the chain: the test saw no load")
	}
	if late := slices.Index(stated[replicatingAt:], true); late >= 0 {
		t.Errorf("commit %d stated the chain on a stream that is replicated (fenced by %d)", replicatingAt+uint64(late)+1, replicatingAt)
	}
	// Every acknowledged ask is in the log, on each server, and in one chain.
	for number := range c.servers {
		read := newCounter()
		writer := NewWriter(c.openLog(c.connect(number)), read, WriterOptions{Lanes: 1, Owner: "reader"})
		if err := writer.Open(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if least, most := acknowledged.Load(), acknowledged.Load()+unknown.Load(); int64(read.applied) < least || int64(read.applied) > most {
			t.Fatalf("the log has %d of %d acknowledged asks, with at most %d of unknown outcome (I1)", read.applied, least, most-least)
		}
	}
	for _, stream := range []string{"KV_WEIR-CLUSTER", "KV_WEIR-USER-KEYS", StreamName(0)} {
		if info, err := streamPeers(t.Context(), nc, stream); err != nil || info.Config.Replicas != 3 {
			t.Errorf("%s has %d replicas, %v", stream, info.Config.Replicas, err)
		}
	}
	again := Upgrade(t.Context(), nc, UpgradeOptions{Replicas: 3, Progress: func(step UpgradeStep) {
		if step.Step != "kept" && step.Step != "replicating" {
			t.Errorf("the second time: %+v", step)
		}
	}})
	if again != nil {
		t.Fatal(again)
	}
	fewer := (*FewerReplicasError)(nil)
	if err := Upgrade(t.Context(), nc, UpgradeOptions{Replicas: 1}); !errors.As(err, &fewer) || !strings.Contains(err.Error(), "back this one up") {
		t.Fatalf("back: got %v, want a *FewerReplicasError", err)
	}
}

// An upgrade that was stopped after any step is finished by the next one.
func TestAnUpgradeThatWasStoppedGoesOn(t *testing.T) {
	c := newTrio(t)
	nc := c.connect(0)
	c.provision(nc, 1)
	log := c.openLog(nc)
	records := chainOf(t, 0, Genesis(0, 1), 5, 100)
	appendAll(t, log, records)
	for _, last := range []string{"announced", "fenced", "replicating"} {
		ctx, cancel := context.WithCancel(t.Context())
		err := Upgrade(ctx, nc, UpgradeOptions{Replicas: 3, Progress: func(step UpgradeStep) {
			if step.Stream == StreamName(0) && step.Step == last {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped after %s: got %v", last, err)
		}
	}
	if err := Upgrade(t.Context(), nc, UpgradeOptions{Replicas: 3, System: c.system(1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Head(t.Context()); err != nil || log.ChecksChain() {
		t.Fatalf("the log still checks the chain, %v", err)
	}
	c.stop(0)
	c.wantAll(c.connect(1), records)
}

func TestReplicasNeedServers(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	if _, err := Provision(t.Context(), nc, ProvisionOptions{Topology: Topology{Lanes: 1}}); err != nil {
		t.Fatal(err)
	}
	if err := Upgrade(t.Context(), nc, UpgradeOptions{Replicas: 3}); err == nil || !strings.Contains(err.Error(), "replicas > 1 not supported") {
		t.Fatalf("got %v", err)
	}
}
