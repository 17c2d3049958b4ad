package projections

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/weirhq/weir/eventstore"
)

// testBulkBytes is the size from which a batch of these tests is large: a few commits.
const testBulkBytes = 8 << 10

// TestABulkWritesWhatItsBatchesDo writes the same random batches by a Bulk and as they are, and wants the same contents.
func TestABulkWritesWhatItsBatchesDo(t *testing.T) {
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 2))
	for round := range 8 {
		bulked, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20, BulkBytes: testBulkBytes})
		if err != nil {
			t.Fatal(err)
		}
		plain := openMemStore(t)
		bulk := bulked.NewBulk(2)
		batch, large := bulk.NewBatch(), 0
		grows := 0
		for step := range 20 {
			same := plain.db.NewBatch()
			ops := 1 << random.IntN(10)
			if step == 10 {
				ops = 1 << 9 // One batch at least is large.
			}
			for range ops {
				grows++
				// Keys of groups that grow at their end, at their beginning and anywhere, and of one that says less than a group.
				key := []byte{'k'}
				switch random.IntN(8) {
				case 0, 1:
					key = fmt.Appendf(nil, "ka%08d", grows-random.IntN(40))
				case 2, 3:
					key = fmt.Appendf(nil, "kb%08d", 1e7-grows+random.IntN(40))
				case 4, 5:
					key = fmt.Appendf(nil, "kc%d", random.IntN(1<<(1+random.IntN(12))))
				case 6:
					key = fmt.Appendf(nil, "k%c", 'd'+random.IntN(4))
				}
				value := fmt.Appendf(nil, "%d. %0*d", step, random.IntN(60), grows)
				for _, b := range []*pebble.Batch{batch, same} {
					switch grows % 5 {
					case 0:
						err = b.Delete(key, nil)
					case 1:
						err = b.Merge(key, value, nil)
					default:
						err = b.Set(key, value, nil)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			if random.IntN(10) == 0 { // Tables cannot hold it.
				for _, b := range []*pebble.Batch{batch, same} {
					if err := b.DeleteRange([]byte("kc1"), []byte("kc3"), nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			if bulk.Full(batch.Len()) {
				large++
			}
			if batch, err = bulk.Commit(batch); err != nil {
				t.Fatal(err)
			}
			if err := same.Commit(pebble.NoSync); err != nil {
				t.Fatal(err)
			}
			if !batch.Empty() {
				t.Fatalf("seed %d, round %d, step %d: the next batch holds %d operations, want none", seed, round, step, batch.Count())
			}
			if got, want := everything(t, bulked), everything(t, plain); got != want {
				t.Fatalf("seed %d, round %d, step %d: a bulk and its batches differ:\n%s", seed, round, step, firstDifference(got, want))
			}
		}
		if added := tablesAdded(bulked); large == 0 || added == 0 {
			t.Fatalf("seed %d, round %d: %d batches were large and %d tables added, want some", seed, round, large, added)
		}
		if err := errors.Join(batch.Close(), bulked.Close(), plain.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// tablesAdded counts the tables that were added to a store past the memtable.
func tablesAdded(s *Store) (added uint64) {
	metrics := s.db.Metrics()
	for i := range metrics.Levels {
		added += metrics.Levels[i].TablesIngested
	}
	return added
}

// TestKeysThatGrowAtOneEndAreNotMergedAgain is what a Bulk knows of groups for.
func TestKeysThatGrowAtOneEndAreNotMergedAgain(t *testing.T) {
	store, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20, BulkBytes: testBulkBytes})
	if err != nil {
		t.Fatal(err)
	}
	bulk := store.NewBulk(1)
	batch := bulk.NewBatch()
	const batches = 10
	for i := range batches * 200 {
		for _, key := range []string{fmt.Sprintf("a%08d", i), fmt.Sprintf("b%08d", 1e7-i)} {
			if err := batch.Set([]byte(key), make([]byte, 32), nil); err != nil {
				t.Fatal(err)
			}
		}
		if i%200 == 199 {
			if batch, err = bulk.Commit(batch); err != nil {
				t.Fatal(err)
			}
		}
	}
	metrics := store.db.Metrics()
	if lowest := metrics.Levels[len(metrics.Levels)-1].TablesIngested; lowest != 2*batches {
		t.Errorf("%d tables were added to the lowest level, want all %d:\n%v", lowest, 2*batches, metrics)
	}
	if err := errors.Join(batch.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestTablesThatAreMergedSoonAreNotCompressed: those of keys in no order, but the first; what a compaction makes of them is.
func TestTablesThatAreMergedSoonAreNotCompressed(t *testing.T) {
	store, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20, BulkBytes: testBulkBytes})
	if err != nil {
		t.Fatal(err)
	}
	compressions := func() map[string]int {
		t.Helper()
		levels, err := store.db.SSTables(pebble.WithProperties())
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]int)
		for _, level := range levels {
			for _, table := range level {
				found[table.Properties.CompressionName]++
			}
		}
		return found
	}
	bulk := store.NewBulk(1)
	batch := bulk.NewBatch()
	random := rand.New(rand.NewPCG(seedOf(t), 4))
	const batches = 3
	for range batches {
		for range 400 {
			if err := batch.Set(fmt.Appendf(nil, "a%08d", random.IntN(1e8)), make([]byte, 32), nil); err != nil {
				t.Fatal(err)
			}
		}
		if batch, err = bulk.Commit(batch); err != nil {
			t.Fatal(err)
		}
	}
	drafts := sstable.NoCompression.Name
	if found := compressions(); found[drafts] != batches-1 || len(found) != 2 {
		t.Errorf("tables by their compression are %v, want %d of %s and others of one that compresses", found, batches-1, drafts)
	}
	if err := store.db.Compact(t.Context(), []byte("a"), []byte("b"), false); err != nil {
		t.Fatal(err)
	}
	if found := compressions(); found[drafts] != 0 || len(found) != 1 {
		t.Errorf("tables by their compression are %v after a compaction, want none of %s", found, drafts)
	}
	if err := errors.Join(batch.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestWhatWasCommittedBeforeALargeBatchIsDurableWithIt: the large one may hold a position that speaks of both.
func TestWhatWasCommittedBeforeALargeBatchIsDurableWithIt(t *testing.T) {
	fs := vfs.NewCrashableMem()
	store, err := OpenStore("store", StoreOptions{FS: fs, BulkBytes: testBulkBytes})
	if err != nil {
		t.Fatal(err)
	}
	bulk := store.NewBulk(1)
	batch := bulk.NewBatch()
	for _, write := range []struct {
		key   string
		bytes int
	}{{"small", 1}, {"large", testBulkBytes}} {
		if err := batch.Set([]byte(write.key), make([]byte, write.bytes), nil); err != nil {
			t.Fatal(err)
		}
		if batch, err = bulk.Commit(batch); err != nil {
			t.Fatal(err)
		}
	}
	left := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := errors.Join(batch.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
	if store, err = OpenStore("store", StoreOptions{FS: left}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"small", "large"} {
		if _, err := read(store.db, []byte(key)); err != nil {
			t.Errorf("the crash left no key %q: %v", key, err)
		}
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAViewThatIsMadeFromTheLogSurvivesACrashAnywhere takes a log in by large batches, cuts the power at random calls of the file system,
// goes on from what each cut left, and wants the fold of the log.
func TestAViewThatIsMadeFromTheLogSurvivesACrashAnywhere(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(600)
	random := rand.New(rand.NewPCG(s.seed, 3))
	fs := vfs.NewCrashableMem()
	var mu sync.Mutex // guards what follows: Pebble calls from several goroutines
	var left []*vfs.MemFS
	calls, cutAt := 0, 0
	cut := errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
			return nil
		}
		if calls++; calls > cutAt {
			cutAt = calls + 1 + random.IntN(60)
			left = append(left, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random}))
		}
		return nil
	})
	open := func(fs vfs.FS) *Runner {
		store, err := OpenStore("store", StoreOptions{FS: fs, BlockCacheBytes: 1 << 20, BulkBytes: testBulkBytes})
		if err != nil {
			t.Fatalf("seed %d: %v", s.seed, err)
		}
		r, err := NewRunner(RunnerOptions{Store: store, Lanes: 1, Log: s.log, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatalf("seed %d: %v", s.seed, err)
		}
		return r
	}
	end := func(r *Runner) {
		if err := errors.Join(r.batch.Close(), r.store.Close()); err != nil {
			t.Fatalf("seed %d: %v", s.seed, err)
		}
	}
	r := open(fs)
	root, err := fs.OpenDir("/") // Or the file system would forget the directory itself.
	if err := errors.Join(err, root.Sync(), root.Close(), r.store.Flush()); err != nil {
		t.Fatal(err)
	}
	end(r)

	r = open(errorfs.Wrap(fs, cut))
	if err := r.fold(t.Context(), s.last); err != nil {
		t.Fatal(err)
	}
	added := tablesAdded(r.store)
	mu.Lock()
	cuts := left
	mu.Unlock()
	end(r)

	positions := make(map[eventstore.Position]bool)
	for i, fs := range cuts {
		r := open(fs)
		positions[r.Position()] = true
		if err := r.fold(t.Context(), s.last); err != nil {
			t.Fatalf("seed %d, cut %d of %d: %v", s.seed, i, len(cuts), err)
		}
		report, err := Verify(t.Context(), VerifyOptions{Store: r.store, Lanes: 1, Log: s.log})
		if err != nil || report.DifferencesTotal > 0 {
			t.Fatalf("seed %d, cut %d of %d: %v, %v (I6)", s.seed, i, len(cuts), err, report.Differences)
		}
		end(r)
	}
	if added == 0 || len(positions) < 4 {
		t.Fatalf("seed %d: %d tables were added, and %d cuts left %d positions, want several", s.seed, added, len(cuts), len(positions))
	}
}
