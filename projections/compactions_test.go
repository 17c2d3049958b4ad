package projections

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestACompactionMakesRoomWhileTheNodeIsAskedAndL0IsNotDeep(t *testing.T) {
	var calls atomic.Uint64
	asked := func() uint64 { return calls.Add(1) }
	for _, test := range []struct {
		name    string
		asked   func() uint64
		watches bool // a database, whose L0 is empty
		rests   bool
	}{
		{"asked", asked, true, true},
		{"not asked", calls.Load, true, false},
		{"deep", asked, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newCompactions(test.asked)
			if test.watches {
				c.l0.watch(openMemStore(t).db)
			}
			running := c.begin(nothingGranted{})
			var rested bool
			for range 2 { // The first look at what is asked has none before it.
				running.shift.began = time.Now().Add(-time.Hour)
				before := time.Now()
				running.CumulativeStats(pebble.CompactionGrantHandleStats{})
				rested = running.shift.began.Sub(before) >= shortRestMin
			}
			if rested != test.rests {
				t.Fatalf("rested: %v, want %v", rested, test.rests)
			}
		})
	}
}

// nothingGranted is a compaction of no database.
type nothingGranted struct{ pebble.CompactionGrantHandle }

func (nothingGranted) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// TestCompactionsEndOnANodeThatIsAlwaysAsked holds that making room does not keep L0 from being compacted, nor a store from being
// closed meanwhile, and that all compactions of the database make room.
func TestCompactionsEndOnANodeThatIsAlwaysAsked(t *testing.T) {
	var calls atomic.Uint64
	store, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20, Asked: func() uint64 { return calls.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	closed := false
	defer func() {
		if !closed {
			_ = store.Close()
		}
	}()
	random := rand.New(rand.NewPCG(seedOf(t), 1))
	write := func() {
		t.Helper()
		for range 2 * l0CompactionThreshold {
			batch := store.db.NewBatch()
			for range 500 {
				key := binary.BigEndian.AppendUint64([]byte{KeySpaceState}, random.Uint64())
				if err := batch.Set(key, key, nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Commit(pebble.NoSync); err != nil {
				t.Fatal(err)
			}
			if err := store.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	write()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(patience); ; <-look.C {
		m := store.db.Metrics()
		if m.Compact.Count > 0 && m.Compact.NumInProgress == 0 && m.Levels[0].Sublevels < l0CompactionThreshold {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("L0 is not compacted:\n%v", m)
		}
	}
	if calls.Load() == 0 {
		t.Fatal("no compaction looked whether the node is asked for anything")
	}
	write()
	closed = true
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
}
