package main

import (
	"context"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/weirhq/weir/projections"
)

// testRebuilds are rebuilds as a test says. It implements rebuildSource.
type testRebuilds struct {
	generations []viewGenerations
	rebuilds    []viewRebuild
	comparison  viewComparison
	acted       []string
	refuse      error
}

func (r *testRebuilds) Generations(context.Context) ([]viewGenerations, error) {
	return r.generations, nil
}

func (r *testRebuilds) Rebuilds(context.Context) ([]viewRebuild, error) { return r.rebuilds, nil }

func (r *testRebuilds) Compare(context.Context, string) (viewComparison, error) {
	return r.comparison, explainRebuild(r.refuse)
}

func (r *testRebuilds) Act(_ context.Context, action, view string, start url.Values) error {
	r.acted = append(r.acted, strings.Join(append([]string{action, view, start.Get("speed"), start.Get("swap")}, start["lanes"]...), " "))
	return explainRebuild(r.refuse)
}

func (r *testRebuilds) Work(context.Context) error { return nil }
func (r *testRebuilds) Sweep() error               { return nil }

var heldRebuild = viewRebuild{
	View: "stock", State: string(projections.RebuildHeld), Generation: 3, Speed: "background", Swap: "auto", Reason: "1 keys differ", Differ: 1,
	Share: 1, Lanes: []rebuildLane{{Lane: 0, Position: 1234, Head: 1234, Events: 98765, Bytes: 345678, BytesTotal: 345678}},
}

// buildingRebuild has read the commits of a peak, and has many small ones and the comparison before it.
var buildingRebuild = viewRebuild{
	View: "orders", State: string(projections.RebuildBuilding), Generation: 2, Speed: "full", Swap: "manual", Share: 0.625, ETASeconds: 61.8,
	Lanes: []rebuildLane{{Lane: 0, Position: 234, Head: 1234, Events: 98765, Bytes: 3 << 20, BytesTotal: 4 << 20}},
}

func TestProjectionsAreListedWithTheirGenerationsAndRebuilds(t *testing.T) {
	n := filled(t)
	n.rebuilding.generations = []viewGenerations{
		{View: "orders", Version: 1, Lane: 0, Answers: 2, Kept: 1},
		{View: "stock", Version: 1, Lane: 0, Answers: 1, Building: 3},
	}
	n.rebuilding.rebuilds = []viewRebuild{buildingRebuild, heldRebuild}
	golden(t, "output/projections_list.table", weir(t, nil, "projections", "list", "--data", n.dir).want(t, exitOK).stdout)
	golden(t, "output/projections_list.json", weir(t, nil, "projections", "list", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
	golden(t, "output/projections_rebuilds.table", weir(t, nil, "projections", "status", "--data", n.dir).want(t, exitOK).stdout)
	golden(t, "output/projections_rebuilds.json", weir(t, nil, "projections", "status", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
}

func TestGenerationsThatDifferAreExitCode3(t *testing.T) {
	n := filled(t)
	n.rebuilding.rebuilds = []viewRebuild{heldRebuild}
	n.rebuilding.comparison = viewComparison{
		View: "stock", Answers: 1, Other: 3,
		Lanes:       []comparedLane{{Lane: 0, Position: 1234, Keys: 12, Partitions: []uint32{7}, Differ: 1}},
		Differences: []viewDifference{{Lane: 0, Key: "SKU tea", Problem: "generation 1 has sold 3, generation 3 has sold 2"}},
	}
	golden(t, "output/projections_compare.table", weir(t, nil, "projections", "compare", "stock", "--data", n.dir).want(t, exitDifference).stdout)
	rebuilt := weir(t, nil, "projections", "rebuild", "stock", "--data", n.dir, "--lanes", "0,2", "--speed", "5000", "-o", "json").want(t, exitDifference)
	if found := decode[viewComparison](t, rebuilt.stdout); found.Equal || len(found.Differences) != 1 {
		t.Fatalf("got %+v, want one difference", found)
	}
	wantText(t, rebuilt.stderr, "generations 1 and 3 of view stock differ in 1 keys", "weir projections swap stock")
	if got, want := strings.Join(n.rebuilding.acted, "\n"), "start stock 5000 auto 0 2"; got != want {
		t.Fatalf("the node was asked for %q, want %q", got, want)
	}
	n.rebuilding.comparison.Equal, n.rebuilding.comparison.Heals = true, 1
	n.rebuilding.comparison.Lanes[0].Differ, n.rebuilding.comparison.Lanes[0].Heals, n.rebuilding.comparison.Differences = 0, []string{testOrderID}, nil
	golden(t, "output/projections_compare_heals.table", weir(t, nil, "projections", "compare", "stock", "--data", n.dir).want(t, exitOK).stdout)
	n.rebuilding.comparison.Heals, n.rebuilding.comparison.Healed = 0, 1
	n.rebuilding.comparison.Lanes[0].Heals, n.rebuilding.comparison.Lanes[0].Healed = nil, []string{testOrderID}
	golden(t, "output/projections_compare_healed.table", weir(t, nil, "projections", "compare", "stock", "--data", n.dir).want(t, exitOK).stdout)
	golden(t, "output/projections_compare_healed.json", weir(t, nil, "projections", "compare", "stock", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
}

func TestACommandThatTheNodeRefusesChangesNothingAndSaysWhy(t *testing.T) {
	n := filled(t)
	n.rebuilding.refuse = &projections.RebuildRefusal{Projection: "orders", Reason: "no generation of it is kept to go back to"}
	for _, args := range [][]string{
		{"rebuild", "orders"}, {"pause", "orders"}, {"resume", "orders"}, {"swap", "orders"}, {"rollback", "orders"}, {"drop", "orders"}, {"compare", "orders"},
	} {
		refused := weir(t, nil, append([]string{"projections", "--data", n.dir}, args...)...)
		wantText(t, refused.want(t, exitUsage).stderr, "view orders: no generation of it is kept", "weir projections list")
	}
	n.rebuilding.acted = nil
	for _, args := range [][]string{{"--speed", "fast"}, {"--speed", "0"}, {"--lanes", "x"}} {
		weir(t, nil, append([]string{"projections", "rebuild", "orders", "--data", n.dir}, args...)...).want(t, exitUsage)
	}
	weir(t, nil, "projections", "verify", "--data", n.dir, "--sample", "1025").want(t, exitUsage)
	if len(n.rebuilding.acted) > 0 {
		t.Fatalf("the node was asked for %v", n.rebuilding.acted)
	}
}

func TestARebuildThatFailedOrWasPausedSaysHowToGoOn(t *testing.T) {
	n := filled(t)
	for state, text := range map[projections.RebuildState]string{
		projections.RebuildFailed: "weir projections resume orders", projections.RebuildPaused: "weir projections resume orders",
	} {
		n.rebuilding.rebuilds = []viewRebuild{{View: "orders", State: string(state), Reason: "commit 5 of lane 0 cannot be read"}}
		wantText(t, weir(t, nil, "projections", "rebuild", "orders", "--data", n.dir).want(t, exitFailure).stderr, text)
	}
}

func TestViewsAreRebuiltOnARunningNodeAndOnAStoppedOne(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir, "--demo", "--lanes", "2")
	order := place(t, n.customer(), "tea-sencha=2")
	on := func(want exitCode, args ...string) string {
		t.Helper()
		return live(t, nil, append([]string{"projections", "--data", dir}, args...)...).want(t, want).stdout
	}
	generations := func(view string) (of []viewGenerations) {
		t.Helper()
		for _, g := range decode[struct{ Views []viewGenerations }](t, on(exitOK, "list", "-o", "json")).Views {
			if g.View == view {
				of = append(of, g)
			}
		}
		return of
	}
	want := func(view string, answers, kept, building uint32) {
		t.Helper()
		for _, g := range generations(view) {
			if g.Answers != answers || g.Kept != kept || g.Building != building {
				t.Fatalf("got %+v, want that generation %d answers, %d is kept and %d is built", g, answers, kept, building)
			}
		}
	}
	on(exitOK, "rebuild", "orders", "--speed", "full")
	want("orders", 2, 1, 0)
	on(exitOK, "compare", "orders")
	on(exitOK, "rollback", "orders")
	want("orders", 1, 2, 0)
	on(exitOK, "drop", "orders")
	want("orders", 1, 0, 0)
	on(exitOK, "rebuild", "stock", "--swap", "manual", "-o", "json")
	wantText(t, on(exitOK, "status"), "REBUILD", "held", "it is to be swapped by hand")
	on(exitUsage, "rebuild", "stock")
	on(exitUsage, "rebuild", "stocks")
	wantText(t, on(exitOK, "verify"), "ok")
	wantText(t, on(exitOK, "verify", "--sample", "10"), "ok", "10")
	n.stop().want(t, exitOK)

	// The stopped node's directory: what was held is held, and is swapped here.
	want("stock", 1, 0, 2)
	on(exitOK, "compare", "stock")
	on(exitOK, "swap", "stock")
	want("stock", 2, 1, 0)
	on(exitOK, "rebuild", "orders-by-user")
	want("orders-by-user", 2, 1, 0)
	on(exitOK, "drop", "orders-by-user")
	wantText(t, on(exitOK, "verify"), "ok")

	n = startDev(t, dir, "--lanes", "2")
	want("stock", 2, 1, 0)
	want("orders-by-user", 2, 0, 0)
	wantText(t, live(t, n.customer(), "order", "get", order.Order.OrderID).want(t, exitOK).stdout, order.Order.OrderID)
	on(exitOK, "rollback", "stock")
	want("stock", 1, 2, 0)
	wantText(t, on(exitOK, "verify"), "ok")
	n.stop().want(t, exitOK)
}

// A rebuild is noted before the command says that it began, so it needs nobody who begins it again.
func TestARebuildGoesOnAfterItsNodeIsKilled(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir, "--demo", "--lanes", "1")
	var order placed
	for range 150 { // Each is a commit: far more than a generation may be behind when it is taken over.
		order = place(t, c.customer(), "tea-sencha")
	}
	// What answers is durable from now on. Were it lost with the node, it would be made up together with the new generation, which
	// would have caught up at once.
	c.signal(t, syscall.SIGTERM)
	if err := c.command.Wait(); err != nil {
		t.Fatal(err)
	}
	c = startChild(t, dir, "--lanes", "1")
	on := func(args ...string) string {
		t.Helper()
		return live(t, nil, append([]string{"projections", "--data", dir}, args...)...).want(t, exitOK).stdout
	}
	rebuilds := func() []viewRebuild {
		t.Helper()
		return decode[struct{ Rebuilds []viewRebuild }](t, on("status", "-o", "json")).Rebuilds
	}
	on("rebuild", "orders", "--speed", "40", "--detach")
	eventually(t, "some of the log is read", func() bool {
		now := rebuilds()
		return len(now) == 1 && now[0].Lanes[0].Events > 20
	}, func() string { return on("status") })
	c.signal(t, os.Kill)
	_ = c.command.Wait() // It was killed.

	c = startChild(t, dir, "--lanes", "1")
	if now := rebuilds(); len(now) != 1 || now[0].View != "orders" || now[0].State != string(projections.RebuildBuilding) || now[0].Speed != "40" {
		t.Fatalf("after the node was killed the rebuilds are %+v, want that of orders to go on as it was asked for\n%s", now, on("list"))
	}
	eventually(t, "the rebuild ends", func() bool { return len(rebuilds()) == 0 }, func() string { return on("status") })
	for _, g := range decode[struct{ Views []viewGenerations }](t, on("list", "-o", "json")).Views {
		if g.View == "orders" && (g.Answers != 2 || g.Kept != 1) {
			t.Errorf("got %+v, want that generation 2 answers and 1 is kept", g)
		}
	}
	wantText(t, on("verify"), "ok")
	wantText(t, live(t, c.customer(), "order", "get", order.Order.OrderID).want(t, exitOK).stdout, order.Order.OrderID)
}
