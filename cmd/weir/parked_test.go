package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

var parkedOrder = parkedKey{
	View: "orders", Generation: 1, Lane: 1, Key: "01HF7YAT02R70B0DDSKNTE7G3DY", Commit: 1234, Event: 2, Type: "OrderPlaced", Since: testTime,
	Reason: "a line has no SKU", Events: 3, Users: []string{"ann"}, Orders: []string{"01HF7YAT02R70B0DDSKNTE7G3DY"},
}

func TestParkedKeysArePrintedAndAreExitCode3(t *testing.T) {
	n := filled(t)
	weir(t, nil, "parked", "list", "--data", n.dir).want(t, exitOK)
	n.parked = []parkedKey{parkedOrder}
	golden(t, "output/parked_list.table", weir(t, nil, "parked", "list", "--data", n.dir).want(t, exitDifference).stdout)
	golden(t, "output/parked_list.json", weir(t, nil, "parked", "list", "--data", n.dir, "-o", "json").want(t, exitDifference).stdout)
	golden(t, "output/parked_show.table", weir(t, nil, "parked", "show", parkedOrder.Key, "--data", n.dir).want(t, exitOK).stdout)
	wantText(t, weir(t, nil, "parked", "show", "ann", "--data", n.dir).want(t, exitNotFound).stderr, `"ann" is not parked`, "weir parked list")
	n.status = []viewLane{{View: "orders", Version: 1, Lane: 1, State: viewFresh, Position: 2, Head: 2, Parked: 1}}
	wantText(t, weir(t, nil, "projections", "status", "--data", n.dir).want(t, exitOK).stdout, "PARKED")
	wantText(t, weir(t, nil, "log", "verify", "--data", n.dir).want(t, exitOK).stdout, "equal to the fold of the log, save for 1 parked keys")
}

func TestAReplaySaysWhatStillFails(t *testing.T) {
	n := filled(t)
	weir(t, nil, "replay", "--data", n.dir).want(t, exitUsage)
	weir(t, nil, "replay", "--all", "--key", "a", "--data", n.dir).want(t, exitUsage)
	weir(t, nil, "replay", "--all", "--data", n.dir).want(t, exitOK)
	wantText(t, weir(t, nil, "replay", "--key", "a", "--data", n.dir).want(t, exitNotFound).stderr, `"a" is not parked`)

	n.replayed = []replayedKey{{parkedKey: parkedOrder, OK: true}}
	golden(t, "output/replay_dry.table", weir(t, nil, "replay", "--all", "--dry-run", "--data", n.dir).want(t, exitOK).stdout)
	if want := `view "", key "", dry run true`; n.asked != want {
		t.Fatalf("the node was asked for %s, want %s", n.asked, want)
	}
	failed := parkedOrder
	failed.View = "stock"
	n.replayed = append(n.replayed, replayedKey{parkedKey: failed, FailedCommit: 1235, FailedEvent: 1, Problem: "a line has no SKU"})
	result := weir(t, nil, "replay", "--key", parkedOrder.Key, "--projection", "stock", "--data", n.dir).want(t, exitDifference)
	golden(t, "output/replay_failed.table", result.stdout)
	wantText(t, result.stderr, "1 of 2 keys cannot be taken in and stay parked")
	if want := `view "stock", key "` + parkedOrder.Key + `", dry run false`; n.asked != want {
		t.Fatalf("the node was asked for %s, want %s", n.asked, want)
	}
	golden(t, "output/replay_failed.json", weir(t, nil, "replay", "--all", "--data", n.dir, "-o", "json").want(t, exitDifference).stdout)
}

func TestAParkedKeyOfAStoreIsListedAndReplayed(t *testing.T) {
	n := newTestNode(t, 1)
	unknown := putEvent("tea")
	unknown.Type = "ProductTeleported"
	n.append(t, 0, opened(1), putEvent("cup"), unknown)
	store, err := projections.OpenStore("store", projections.StoreOptions{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lanes: 1, Log: n.logs[0], Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	run := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() { run <- runner.Run(ctx) }()
	views := &localViews{store: store, topology: eventstore.Topology{Lanes: 1}, runners: []*projections.Runner{runner}, log: func(uint32) eventstore.Log { return n.logs[0] }}
	reading, err := projections.NewViews(projections.ViewsOptions{Store: store, Topology: views.topology, Runners: views.runners, PageKey: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	defer reading.Close()
	if _, _, err := reading.Product(t.Context(), "tea", projections.Min{Commit: 1, Wait: time.Minute}); !errors.Is(err, projections.ErrParked) {
		t.Fatalf("got %v, want ErrParked", err)
	}
	parked, err := views.Parked(t.Context())
	if err != nil || len(parked) != len(projections.Projections) {
		t.Fatalf("got %+v, %v, want one of each view", parked, err)
	}
	replayed, err := views.Replay(t.Context(), "products", "tea", false)
	if err != nil || len(replayed) != 1 || replayed[0].OK || replayed[0].FailedEvent != 3 || parked[0].Type != "ProductTeleported" {
		t.Fatalf("got %+v, %v", replayed, err)
	}
	stop()
	if err := <-run; err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}
