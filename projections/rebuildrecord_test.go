package projections

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// recordedNode is a node whose views hold a shop's log, on a disk that forgets what is not synced.
func recordedNode(t *testing.T) (*shop, *vfs.MemFS, *node) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(200)
	fs := vfs.NewCrashableMem()
	n := startNode(t, fs, s.log)
	n.reach(s)
	if err := n.store.Flush(); err != nil {
		t.Fatal(err)
	}
	return s, fs, n
}

// crashed returns a node and its Rebuilder after a crash of which nothing is left that was not synced.
func crashed(t *testing.T, s *shop, fs *vfs.MemFS) (*node, *Rebuilder) {
	t.Helper()
	n := startNode(t, fs.CrashClone(vfs.CrashCloneCfg{}), s.log)
	return n, n.rebuilder(s.log)
}

func TestARebuildIsNotedWithoutAFlush(t *testing.T) {
	s, _, n := recordedNode(t)
	b := n.rebuilder(s.log)
	b.run(t)
	before := n.store.db.Metrics().Flush.Count
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
		t.Fatal(err)
	}
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildHeld {
		t.Fatalf("seed %d: got %+v, want a rebuild that is held", s.seed, statuses)
	}
	if err := b.Drop(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	if flushes := n.store.db.Metrics().Flush.Count - before; flushes > 0 {
		t.Errorf("seed %d: the store was flushed %d times, want never: each is a file that is compacted while others call", s.seed, flushes)
	}
}

func TestEachStepOfARebuildIsKnownAfterACrash(t *testing.T) {
	s, fs, n := recordedNode(t)
	b := n.rebuilder(s.log)
	want := func(after string, state RebuildState) {
		t.Helper()
		left, b := crashed(t, s, fs)
		defer left.stop()
		statuses := b.Status()
		if state == "" && len(statuses) > 0 || state != "" && (len(statuses) != 1 || statuses[0].State != state) {
			t.Fatalf("seed %d: a crash after %s left %+v, want %q", s.seed, after, statuses, state)
		}
		b.run(t)
		for _, status := range b.settle(t) {
			if status.State != RebuildHeld && status.State != RebuildPaused {
				t.Fatalf("seed %d: after a crash after %s: %+v", s.seed, after, status)
			}
		}
		left.verify(s)
	}
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
		t.Fatal(err)
	}
	want("start", RebuildBuilding)
	if err := b.Pause("orders"); err != nil {
		t.Fatal(err)
	}
	want("pause", RebuildPaused)
	if err := b.Resume("orders"); err != nil {
		t.Fatal(err)
	}
	want("resume", RebuildBuilding)
	b.run(t)
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildHeld {
		t.Fatalf("seed %d: got %+v, want a rebuild that is held", s.seed, statuses)
	}
	want("it was held", RebuildBuilding) // Until its parts are with their runners again.
	if err := b.Drop(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	want("drop", "")
	if err := b.Start("orders", RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	if statuses := b.settle(t); len(statuses) > 0 {
		t.Fatalf("seed %d: got %+v, want a rebuild that has been swapped in", s.seed, statuses)
	}
	want("swap", "")
	after, _ := crashed(t, s, fs)
	defer after.stop()
	if got, now := after.runners[0].live(&ordersProjection), n.runners[0].live(&ordersProjection); got != now || got == firstGeneration {
		t.Fatalf("seed %d: generation %d answers after a crash, want %d", s.seed, got, now)
	}
}

// TestARebuildIsOverOnceItsGenerationAnswers has a crash come between the swap and the end of the record.
func TestARebuildIsOverOnceItsGenerationAnswers(t *testing.T) {
	s, fs, n := recordedNode(t)
	b := n.rebuilder(s.log)
	b.run(t)
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
		t.Fatal(err)
	}
	b.settle(t)
	record, ok, err := n.store.record(&ordersProjection)
	if err != nil || !ok || record.Held == "" {
		t.Fatalf("seed %d: got the record %+v, %t, %v, want one that is held", s.seed, record, ok, err)
	}
	if err := b.Swap(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := n.store.record(&ordersProjection); err != nil || ok {
		t.Fatalf("seed %d: after the swap there is a record: %t, %v", s.seed, ok, err)
	}
	if err := n.store.putRecord(&ordersProjection, &record); err != nil {
		t.Fatal(err)
	}
	left, after := crashed(t, s, fs)
	if statuses := after.Status(); len(statuses) > 0 {
		t.Fatalf("seed %d: got %+v, want no rebuild: its generation answers", s.seed, statuses)
	}
	if _, ok, err := left.store.record(&ordersProjection); err != nil || ok {
		t.Fatalf("seed %d: the record is still there: %t, %v", s.seed, ok, err)
	}
	after.run(t)
	left.verify(s)
}

// TestARebuildThatAnOlderProgramBeganGoesOn keeps its record where older programs did.
func TestARebuildThatAnOlderProgramBeganGoesOn(t *testing.T) {
	s, fs, n := recordedNode(t)
	text := fmt.Sprintf(`{"generation":9,"version":%d,"lanes":[0],"speed":"full","swap":"manual","paused":true}`, ordersProjection.Version)
	if err := n.store.db.Set(oldRecordKey(&ordersProjection), []byte(text), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	b := n.rebuilder(s.log)
	if statuses := b.Status(); len(statuses) != 1 || statuses[0].State != RebuildPaused || statuses[0].Generation != 9 {
		t.Fatalf("seed %d: got %+v, want generation 9, paused", s.seed, statuses)
	}
	if err := b.Resume("orders"); err != nil {
		t.Fatal(err)
	}
	b.run(t)
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildHeld {
		t.Fatalf("seed %d: got %+v, want a rebuild that is held", s.seed, statuses)
	}
	if err := b.Drop(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	left, after := crashed(t, s, fs)
	defer left.stop()
	if statuses := after.Status(); len(statuses) > 0 {
		t.Fatalf("seed %d: what was dropped is back after a crash: %+v", s.seed, statuses)
	}
}

func TestARecordThatCannotBeReadIsNamed(t *testing.T) {
	s, _, n := recordedNode(t)
	path := n.store.recordPath(&stockProjection)
	if err := n.store.replaceFile(path, []byte(`{"generation":`)); err != nil {
		t.Fatal(err)
	}
	_, err := NewRebuilder(RebuilderOptions{Store: n.store, Runners: n.runners, Topology: n.views.topology})
	if err == nil || !strings.Contains(err.Error(), "view stock") || !strings.Contains(err.Error(), path+" cannot be read: remove it") {
		t.Fatalf("seed %d: got %v, want the view, the file and what to do", s.seed, err)
	}
}

// TestAGenerationThatWasRemovedDoesNotComeBackAsANewOne goes round all generations, and crashes when what was removed of the second one
// is not yet gone from the disk.
func TestAGenerationThatWasRemovedDoesNotComeBackAsANewOne(t *testing.T) {
	s, fs, n := recordedNode(t)
	b := n.rebuilder(s.log)
	stop := b.run(t)
	generation := func() uint32 {
		t.Helper()
		if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
			t.Fatal(err)
		}
		return b.Status()[0].Generation
	}
	old := generation()
	b.settle(t)
	if err := b.Drop(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	if removed, err := b.Sweep(); err != nil || removed != 1 {
		t.Fatalf("seed %d: %d generations were removed, %v, want 1", s.seed, removed, err)
	}
	g := &n.store.generations
	g.mu.Lock()
	for taken := range g.taken[spaceOrders] {
		g.taken[spaceOrders][taken] = true
	}
	g.mu.Unlock()
	stop() // It is begun, and nothing is built.
	if again := generation(); again != old {
		t.Fatalf("seed %d: got generation %d, want %d again", s.seed, again, old)
	}
	left, after := crashed(t, s, fs)
	defer left.stop()
	if statuses := after.Status(); len(statuses) != 1 || statuses[0].Lanes[0].Position != 0 {
		t.Fatalf("seed %d: got %+v, want a rebuild that has not begun", s.seed, statuses)
	}
}
