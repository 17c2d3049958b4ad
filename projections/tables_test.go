package projections

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/eventstore"
)

// TestTablesHoldWhatTheirBatchesDo writes the same random batches as tables and as batches, and wants the same contents.
func TestTablesHoldWhatTheirBatchesDo(t *testing.T) {
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 1))
	for round := range 20 {
		tables, batches := openMemStore(t), openMemStore(t)
		v := &view{projection: &ordersProjection, generation: 3, prefix: prefixOf(spaceOrders, 3, 0)}
		run := newTableRun(tables, v, &pace{})
		for step := range 1 + random.IntN(12) {
			batch := tables.db.NewBatch()
			for range 1 + random.IntN(60) {
				// Few keys: most of them come again, in the batch and in later ones. Some are shorter than a rank, or begin alike.
				key := v.prefix.key([]byte(strings.Repeat("k", random.IntN(10)) + fmt.Sprint(step/2+random.IntN(8))))
				value := fmt.Appendf(nil, "%d.", random.IntN(1000))
				var err error
				switch random.IntN(4) {
				case 0:
					err = batch.Set(key, value, nil)
				case 1:
					err = batch.Delete(key, nil)
				default:
					err = batch.Merge(key, value, nil)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			at := progress{Position: eventstore.Position{Number: uint64(step + 1)}}
			if err := batch.Set(run.progress, appendProgress(nil, v.projection.Version, at), nil); err != nil {
				t.Fatal(err)
			}
			same := batches.db.NewBatch()
			if err := same.Apply(batch, nil); err != nil {
				t.Fatal(err)
			}
			if err := same.Commit(pebble.NoSync); err != nil {
				t.Fatal(err)
			}
			if random.IntN(4) == 0 { // Committed between tables, as the last batch of a rebuild is.
				if err := errors.Join(run.settle(), batch.Commit(pebble.NoSync)); err != nil {
					t.Fatal(err)
				}
			} else if added, err := run.add(t.Context(), batch); err != nil || !added {
				t.Fatalf("seed %d, round %d, step %d: added %v, %v, want a run of tables", seed, round, step, added, err)
			}
			if step%2 == 0 { // The other half is added while the next one is written.
				continue
			}
			if err := run.settle(); err != nil {
				t.Fatal(err)
			}
			if got, want := contents(t, tables, v.prefix), contents(t, batches, v.prefix); got != want {
				t.Fatalf("seed %d, round %d, step %d: tables and batches differ:\n%s", seed, round, step, firstDifference(got, want))
			}
			for _, store := range []*Store{tables, batches} {
				if _, stored, err := storedProgress(store.db, v.projection, v.generation, v.lane, 1); err != nil || stored.Number != at.Number {
					t.Fatalf("seed %d, round %d, step %d: the progress is commit %d, %v, want %d", seed, round, step, stored.Number, err, at.Number)
				}
			}
		}
		if err := run.settle(); err != nil {
			t.Fatal(err)
		}
		for _, store := range []*Store{tables, batches} {
			if err := store.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func openMemStore(t *testing.T) *Store {
	t.Helper()
	store, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// everything writes down what a store holds, and contents what is there of a generation of a view.
func everything(t *testing.T, store *Store) string { return listed(t, store, nil) }

func contents(t *testing.T, store *Store, p prefix) string {
	return listed(t, store, &pebble.IterOptions{LowerBound: p[:], UpperBound: p.end()})
}

func listed(t *testing.T, store *Store, within *pebble.IterOptions) string {
	t.Helper()
	entries, err := store.db.NewIter(within)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for valid := entries.First(); valid; valid = entries.Next() {
		fmt.Fprintf(&text, "%x = %q\n", entries.Key(), entries.Value())
	}
	if err := entries.Close(); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// firstDifference returns the first lines of two texts that differ.
func firstDifference(got, want string) string {
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(gotLines), len(wantLines)) {
		if gotLines[i] != wantLines[i] {
			return fmt.Sprintf("got %s, want %s", gotLines[i], wantLines[i])
		}
	}
	return fmt.Sprintf("got %d lines, want %d", len(gotLines), len(wantLines))
}

func TestABatchThatTablesCannotHoldIsLeftToItsCaller(t *testing.T) {
	store := openMemStore(t)
	v := &view{projection: &ordersProjection, generation: 3, prefix: prefixOf(spaceOrders, 3, 0)}
	for name, fill := range map[string]func(batch *pebble.Batch) error{
		"another view's key": func(batch *pebble.Batch) error {
			return batch.Set(prefixOf(spaceStock, 3, 0).key([]byte("k")), nil, nil)
		},
		"a range that is deleted": func(batch *pebble.Batch) error {
			return batch.DeleteRange(v.prefix.key([]byte("a")), v.prefix.key([]byte("b")), nil)
		},
		"nothing but the progress": func(*pebble.Batch) error { return nil },
	} {
		run, batch := newTableRun(store, v, &pace{}), store.db.NewBatch()
		if err := batch.Set(run.progress, appendProgress(nil, v.projection.Version, progress{}), nil); err != nil {
			t.Fatal(err)
		}
		if err := fill(batch); err != nil {
			t.Fatal(err)
		}
		if added, err := run.add(t.Context(), batch); added || err != nil {
			t.Errorf("%s: added %v, %v, want it left alone", name, added, err)
		}
	}
	if got := everything(t, store); got != "" {
		t.Errorf("the store holds\n%s", got)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNewKeysGoStraightToTheLowestLevel is what tables are for: nothing has to merge them with what is there.
func TestNewKeysGoStraightToTheLowestLevel(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(300)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	// What there is already is one file of the lowest level, into the middle of which the new generation belongs. It is merged of two:
	// then it has no deleted keys left, for which Pebble would compact it once more, and keep the new tables above it meanwhile.
	for range 2 {
		if err := errors.Join(n.store.Flush(), n.store.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false)); err != nil {
			t.Fatal(err)
		}
		n.runners[0].Offer(s.step())
		n.reach(s)
	}
	b := n.rebuilder(s.log)
	b.run(t)
	if err := b.Start("orders", RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", s.seed, left)
	}
	metrics := n.store.db.Metrics()
	if lowest := &metrics.Levels[len(metrics.Levels)-1]; lowest.TablesIngested < 2 {
		t.Fatalf("seed %d: %d tables were added to the lowest level, want several:\n%v", s.seed, lowest.TablesIngested, metrics)
	}
	n.verify(s)
}

func TestWhatACrashLeftOfATableIsRemoved(t *testing.T) {
	fs := vfs.NewMem()
	for range 2 {
		store, err := OpenStore("store", StoreOptions{FS: fs})
		if err != nil {
			t.Fatal(err)
		}
		if left, err := fs.List(store.tables); err != nil || len(left) > 0 {
			t.Fatalf("the folder for new tables holds %v, %v, want nothing", left, err)
		}
		file, err := fs.Create(fs.PathJoin(store.tables, "7"), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAGenerationThatACrashLeftAheadOfItsRunnerWaitsForIt: tables are durable before the batches that the runner wrote earlier.
func TestAGenerationThatACrashLeftAheadOfItsRunnerWaitsForIt(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	step := func(times int) eventstore.Position {
		s.steps(times)
		return s.last
	}
	fs := vfs.NewCrashableMem()
	n := openNode(t, fs, s.log)
	r := n.runners[0]
	fold := func(to eventstore.Position) {
		if err := r.fold(t.Context(), to); err != nil {
			t.Fatal(err)
		}
	}
	fold(step(30))
	b := n.rebuilder(s.log)
	b.tableBytes = 4 << 10
	job := &rebuild{projection: &ordersProjection, pace: &pace{}}
	if err := b.begin(job, RebuildOptions{Lanes: []uint32{0}}); err != nil {
		t.Fatal(err)
	}
	if err := n.store.Flush(); err != nil {
		t.Fatal(err)
	}
	fold(step(100))
	f, err := b.newBuilder(job, b.newPart(&ordersProjection, 0, job.record.Generation, false))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.advance(t.Context(), s.last.Number); err != nil {
		t.Fatal(err)
	}
	left := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}

	n = openNode(t, left, s.log)
	r = n.runners[0]
	b = n.rebuilder(s.log)
	if at, built := r.Position().Number, b.Status()[0].Lanes[0].Position; built <= at {
		t.Fatalf("seed %d: the crash left the generation at commit %d and its runner at %d, want the generation ahead", s.seed, built, at)
	}
	b.run(t)
	waits := func() bool {
		r.arrivals.mu.Lock()
		defer r.arrivals.mu.Unlock()
		return r.arrivals.waiters > 0
	}
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(patience); !waits(); <-look.C {
		if status := b.Status(); len(status) != 1 || status[0].State == RebuildFailed || time.Now().After(deadline) {
			t.Fatalf("seed %d: the rebuild does not wait for its runner: %+v", s.seed, status)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", s.seed, left)
	}
	n.verify(s)
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// TestTablesAreNotDurableBeforeTheBatchesOfTheirGeneration: their keys need not meet, so Pebble does not hold the tables back by itself.
func TestTablesAreNotDurableBeforeTheBatchesOfTheirGeneration(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	fs := vfs.NewCrashableMem()
	n := openNode(t, fs, s.log)
	b := n.rebuilder(s.log)
	job := &rebuild{projection: &ordersProjection, pace: &pace{}}
	if err := b.begin(job, RebuildOptions{Lanes: []uint32{0}}); err != nil {
		t.Fatal(err)
	}
	f, err := b.newBuilder(job, b.newPart(&ordersProjection, 0, job.record.Generation, false))
	if err != nil {
		t.Fatal(err)
	}
	v := f.view
	for number, key := range []string{1: "a", 2: "b"} {
		if key == "" {
			continue
		}
		b.tableBytes = 1
		if number == 1 {
			b.tableBytes = tableRunBytes // Too little for a table.
		}
		v.progress.Number = uint64(number)
		if err := errors.Join(v.batch.Set(v.prefix.key([]byte(key)), nil, nil), v.finish()); err != nil {
			t.Fatal(err)
		}
		if v.batch, err = f.write(t.Context(), v.batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.settle(); err != nil {
		t.Fatal(err)
	}
	left := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := errors.Join(v.batch.Close(), n.store.Close()); err != nil {
		t.Fatal(err)
	}

	store, err := OpenStore("store", StoreOptions{FS: left})
	if err != nil {
		t.Fatal(err)
	}
	_, at, err := storedProgress(store.db, v.projection, v.generation, 0, 1)
	if err != nil || at.Number != 2 {
		t.Fatalf("the crash left the generation at commit %d, %v, want 2, which was written as tables", at.Number, err)
	}
	for _, key := range []string{"a", "b"} {
		if _, err := v.prefix.read(store.db, key); err != nil {
			t.Errorf("the crash left no key %q: %v", key, err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestNothingIsWrittenAfterTablesThatCouldNotBeAdded: what comes after them in the log is not to be there without them (I6).
func TestNothingIsWrittenAfterTablesThatCouldNotBeAdded(t *testing.T) {
	for name, tableBytes := range map[string]int{"a batch that is committed": tableRunBytes, "a batch that is written as tables": 1} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, seedOf(t), 0, 1)
			n := openNode(t, vfs.NewMem(), s.log)
			b := n.rebuilder(s.log)
			b.tableBytes = tableBytes
			job := &rebuild{projection: &ordersProjection, pace: &pace{}}
			if err := b.begin(job, RebuildOptions{Lanes: []uint32{0}}); err != nil {
				t.Fatal(err)
			}
			f, err := b.newBuilder(job, b.newPart(&ordersProjection, 0, job.record.Generation, false))
			if err != nil {
				t.Fatal(err)
			}
			failed := errors.New("no room")
			f.tables.adding = make(chan error, 1)
			f.tables.adding <- failed

			v := f.view
			v.progress.Number = 2
			if err := errors.Join(v.batch.Set(v.prefix.key([]byte("b")), nil, nil), v.finish()); err != nil {
				t.Fatal(err)
			}
			if v.batch, err = f.write(t.Context(), v.batch); !errors.Is(err, failed) {
				t.Errorf("the next batch was written with %v, want %v", err, failed)
			}
			if err := f.settle(); err != nil {
				t.Fatal(err)
			}
			if _, err := v.prefix.read(n.store.db, "b"); !errors.Is(err, pebble.ErrNotFound) {
				t.Errorf("the next batch is there: %v, want %v", err, pebble.ErrNotFound)
			}
			if left, err := n.store.fs.List(n.store.tables); err != nil || len(left) > 0 {
				t.Errorf("its tables are left: %v, %v", left, err)
			}
			if err := errors.Join(v.batch.Close(), n.store.Close()); err != nil {
				t.Fatal(err)
			}
		})
	}
}
