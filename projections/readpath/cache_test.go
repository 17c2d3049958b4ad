package readpath

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestAnAnswerIsNeverOlderThanTheViewShowed(t *testing.T) {
	for name, spread := range map[string]bool{"with L2": true, "without L2": false} {
		t.Run(name, func(t *testing.T) {
			seed := seedOf(t)
			const keys, readers, changes = 8, 4, 3000
			s, l2 := newShelf(keys), newShared()
			// written is the newest change of each key that was shown.
			var written [keys]atomic.Uint64
			for key := range written {
				written[key].Store(1)
			}
			options := Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 10, MissingMax: 16, HotMax: 2}
			if spread {
				options.Level2, options.Key, options.Decode = l2, keyText, decode
			}
			c := New(options)
			var reading sync.WaitGroup
			done := make(chan struct{})
			for reader := range readers {
				random := rand.New(rand.NewPCG(seed, uint64(reader)))
				reading.Go(func() {
					for {
						select {
						case <-done:
							return
						default:
						}
						key := random.IntN(keys)
						shown, want := s.shown.Load(), written[key].Load()
						atLeast := uint64(0)
						if random.IntN(2) == 0 {
							atLeast = shown
						}
						answer, err := c.Get(context.Background(), key, atLeast)
						if err != nil || answer.Value == nil || *answer.Value < want || answer.Position < shown {
							t.Errorf("seed %d: key %d: got %+v, %v, want the change at %d or a later one, as of %d or later (I6)", seed, key, answer, err, want, shown)
							return
						}
					}
				})
			}
			random := rand.New(rand.NewPCG(seed, readers))
			for range changes {
				key := random.IntN(keys)
				position := s.change(c, key)
				written[key].Store(position)
			}
			close(done)
			reading.Wait()
		})
	}
}

func TestALoadThatReadBeforeAChangeIsNotKept(t *testing.T) {
	s := newShelf(1)
	var c *Cache[int, uint64]
	changed := false
	s.after = func(context.Context, int) error {
		if !changed {
			changed = true
			s.change(c, 0)
		}
		return nil
	}
	c = New(Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20})
	if got := get(t, c, 0, 0); *got.Value != 1 || got.Position != 1 {
		t.Fatalf("got %d as of %d, want 1 as of 1: the load began before the change", *got.Value, got.Position)
	}
	if got := get(t, c, 0, 0); *got.Value != 2 || got.Level != LevelView {
		t.Fatalf("got %d of level %d, want 2 off L3: what was read before the change was kept", *got.Value, got.Level)
	}
	if got := get(t, c, 0, 2); *got.Value != 2 || got.Level != LevelMemory {
		t.Fatalf("got %d of level %d, want 2 off L1", *got.Value, got.Level)
	}
}

func TestALoadThatBeganBeforeAChangeIsNotGivenToWhoSawTheChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		gate := make(chan struct{})
		s.after = func(context.Context, int) error { <-gate; return nil }
		c := New(Options[int, uint64]{Load: s.load, LoadTimeout: time.Hour, Shown: s.shownTo, BytesMax: 1 << 20})
		defer c.Close()
		first, second := make(chan Answer[uint64], 1), make(chan Answer[uint64], 1)
		go func() { first <- get(t, c, 0, 0) }()
		synctest.Wait() // It has read, and is under way.
		s.change(c, 0)
		go func() { second <- get(t, c, 0, 0) }()
		synctest.Wait() // It has joined.
		close(gate)
		if got := <-first; *got.Value != 1 {
			t.Errorf("who asked before the change got %d, want 1", *got.Value)
		}
		if got := <-second; *got.Value != 2 || got.Position != 2 {
			t.Errorf("who asked after the change was shown got %d as of %d, want 2 as of 2 (I6)", *got.Value, got.Position)
		}
	})
}

func TestMinRevisionIsHonouredAtEveryLevel(t *testing.T) {
	s, l2 := newShelf(2), newShared()
	c := New(Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20, Level2: l2, Key: keyText, Decode: decode})
	l2.entries[keyText(0)] = sharedEntry{recordOf(7), 9} // Another node is ahead.

	if got := get(t, c, 0, 9); *got.Value != 7 || got.Position != 9 || got.Level != LevelShared {
		t.Fatalf("got %+v, want 7 as of 9 off L2", got)
	}
	if got := get(t, c, 0, 9); *got.Value != 7 || got.Position != 9 || got.Level != LevelMemory {
		t.Fatalf("got %+v, want 7 as of 9 off L1", got)
	}
	// Nobody is at 10: L3 answers with what it has, and says so.
	if got := get(t, c, 0, 10); got.Position != 1 || got.Level != LevelView {
		t.Fatalf("got %+v, want what L3 has as of 1", got)
	}
	if got := get(t, c, 0, 9); *got.Value != 7 || got.Position != 9 || got.Level != LevelMemory {
		t.Fatalf("got %+v, want 7 as of 9 off L1: an older value was put over a newer one", got)
	}
	// The node's view shows a change that L2 has not heard of.
	s.write(12, 1)
	l2.entries[keyText(1)] = sharedEntry{recordOf(5), 11}
	c.Changed(12, 1)
	s.shown.Store(12)
	if got := get(t, c, 1, 0); *got.Value != 12 || got.Level != LevelView {
		t.Fatalf("got %+v, want 12 off L3: L2 was older than the view (I6)", got)
	}
	if e := l2.entries[keyText(1)]; e.position != 12 {
		t.Fatalf("L2 has position %d, want 12: what L3 said is offered to it", e.position)
	}
	c.l1.Load().InvalidateAll()
	s.shown.Store(14) // Nothing of the key changed, so what L2 has of 12 holds at 14.
	if got := get(t, c, 1, 14); *got.Value != 12 || got.Level != LevelShared || got.Position != 14 {
		t.Fatalf("got %+v, want 12 off L2 as of 14", got)
	}
}

func TestALoadThatBeganBelowMinRevisionIsNotGivenToWhoAsksForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		gate := make(chan struct{})
		s.after = func(context.Context, int) error { <-gate; return nil }
		c := New(Options[int, uint64]{Load: s.load, LoadTimeout: time.Hour, Shown: s.shownTo, BytesMax: 1 << 20})
		defer c.Close()
		second := make(chan Answer[uint64], 1)
		go func() { get(t, c, 0, 0) }()
		synctest.Wait() // It has read, and is under way.
		go func() { second <- get(t, c, 0, 2) }()
		synctest.Wait() // It has joined, and asks for more than is shown.
		s.change(c, 0)
		close(gate)
		if got := <-second; *got.Value != 2 || got.Position != 2 {
			t.Errorf("who asked for position 2 got %d as of %d", *got.Value, got.Position)
		}
	})
}

func TestWhoMissedWhatALoadJustPutDoesNotLoadItAgain(t *testing.T) {
	s := newShelf(1)
	var c *Cache[int, uint64]
	nested := false
	c = New(Options[int, uint64]{
		Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20,
		MayHold: func(key int) bool { // It is asked between the look at L1 and the load.
			if !nested {
				nested = true
				get(t, c, key, 0)
			}
			return true
		},
	})
	if got := get(t, c, 0, 0); *got.Value != 1 || got.Level != LevelMemory || s.loads.Load() != 1 {
		t.Fatalf("got %+v after %d loads, want 1 off L1 after 1 load", got, s.loads.Load())
	}
}

func TestACancelledLeaderFailsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		gate := make(chan struct{})
		s.before = func(ctx context.Context, _ int) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c := New(Options[int, uint64]{Load: s.load, LoadTimeout: time.Minute, Shown: s.shownTo, BytesMax: 1 << 20})
		defer c.Close()
		ctx, cancel := context.WithCancel(t.Context())
		led, joined := make(chan error, 1), make(chan error, 1)
		go func() { _, err := c.Get(ctx, 0, 0); led <- err }()
		synctest.Wait()
		go func() { _, err := c.Get(t.Context(), 0, 0); joined <- err }()
		synctest.Wait()
		cancel()
		if err := <-led; !errors.Is(err, context.Canceled) {
			t.Errorf("the leader got %v, want its own cancel, at once", err)
		}
		close(gate)
		if err := <-joined; err != nil {
			t.Errorf("who joined got %v", err)
		}
		if loads := s.loads.Load(); loads != 1 {
			t.Errorf("got %d loads, want 1", loads)
		}
	})
}

func TestTenThousandMissesOfOneKeyAreOneLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const readers = 10_000
		s := newShelf(1)
		gate := make(chan struct{})
		s.before = func(context.Context, int) error { <-gate; return nil }
		c := New(Options[int, uint64]{Load: s.load, LoadTimeout: time.Minute, Shown: s.shownTo, BytesMax: 1 << 20})
		defer c.Close()
		var reading sync.WaitGroup
		for range readers {
			reading.Go(func() {
				if got, err := c.Get(t.Context(), 0, 0); err != nil || *got.Value != 1 {
					t.Errorf("got %+v, %v", got, err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		reading.Wait()
		if stats := c.Stats(); s.loads.Load() != 1 || stats.Loads != 1 || stats.Joined != readers-1 {
			t.Errorf("got %d loads, %+v, want 1 load that %d joined", s.loads.Load(), stats, readers-1)
		}
	})
}

func TestALoadThatHangsEndsAtItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		s.before = func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }
		c := New(Options[int, uint64]{Load: s.load, LoadTimeout: time.Minute, Shown: s.shownTo, BytesMax: 1 << 20})
		defer c.Close()
		begun := time.Now()
		if _, err := c.Get(t.Context(), 0, 0); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("got %v after %v, want the end of its time after a minute", err, time.Since(begun))
		}
		s.before = nil
		if got := get(t, c, 0, 0); *got.Value != 1 {
			t.Errorf("got %+v: the failure was kept", got)
		}
	})
}

func TestALoadThatPanicsIsItsLeadersAlone(t *testing.T) {
	s := newShelf(1)
	s.before = func(context.Context, int) error { panic("planted") }
	c := New(Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_, _ = c.Get(t.Context(), 0, 0)
	}()
	s.before = nil
	if got := get(t, c, 0, 0); *got.Value != 1 {
		t.Errorf("got %+v, want the key to be free again", got)
	}
}

func TestAMissingKeyIsFoundOnceItIsThere(t *testing.T) {
	s := newShelf(0)
	c := New(Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20, MissingMax: 8})
	for range 3 {
		if got := get(t, c, 5, 0); got.Value != nil {
			t.Fatalf("got %+v of a key that is not there", got)
		}
	}
	if stats := c.Stats(); stats.Loads != 1 || stats.MissingHits != 2 {
		t.Fatalf("got %+v, want 1 load and 2 hits", stats)
	}
	s.change(c, 5)
	if got := get(t, c, 5, 0); got.Value == nil || *got.Value != 2 {
		t.Fatalf("got %+v, want the key that came into being (I6)", got)
	}
}

func TestMissingKeysTakeABoundedRoomAndAreForgottenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(0)
		c := New(Options[int, uint64]{Load: s.load, MissingMax: 8, MissingFor: time.Second})
		for key := range 1000 {
			get(t, c, key, 0)
		}
		c.missing.CleanUp()
		if size := c.missing.EstimatedSize(); size > 8 {
			t.Fatalf("%d missing keys are kept, want at most 8 (I8)", size)
		}
		get(t, c, 1000, 0)
		s.values[1000] = 4
		pass(time.Second)
		if got := get(t, c, 1000, 0); got.Value == nil {
			t.Fatal("a missing key is believed to be missing for longer than its time")
		}
	})
}

func TestL1TakesABoundedAmountOfMemory(t *testing.T) {
	s := newShelf(2000)
	const bytesMax = 64 << 10
	c := New(Options[int, uint64]{
		Load: s.load, BytesMax: bytesMax, HotMax: 4,
		Weigh: func(int, *uint64) uint32 { return 872 },
	})
	for key := range 2000 {
		get(t, c, key, 0)
	}
	c.l1.Load().CleanUp()
	if weight := c.l1.Load().WeightedSize(); weight == 0 || weight > bytesMax {
		t.Fatalf("L1 takes %d bytes, want 1 to %d (I8)", weight, bytesMax)
	}
}

func TestOnlyWhatIsReadAgainIsAdmitted(t *testing.T) {
	s := newShelf(2)
	c := New(Options[int, uint64]{Load: s.load, BytesMax: 1 << 20, AdmitAt: 2})
	for read, want := range []Level{LevelView, LevelView, LevelMemory} {
		if got := get(t, c, 0, 0); got.Level != want {
			t.Fatalf("read %d: got level %d, want %d", read+1, got.Level, want)
		}
	}
}

func TestAnEntryThatOutlivesItsTimeIsServedWhileOneRefreshRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		c := New(Options[int, uint64]{Load: s.load, BytesMax: 1 << 20, RefreshAfter: time.Minute, ExpireAfter: time.Hour})
		defer c.Close()
		get(t, c, 0, 0)
		s.values[0] = 2 // Nothing told the cache.
		pass(time.Minute)
		gate := make(chan struct{})
		s.before = func(context.Context, int) error { <-gate; return nil }
		for range 100 {
			if got := get(t, c, 0, 0); *got.Value != 1 || !got.Stale || got.Level != LevelMemory {
				t.Fatalf("got %+v, want the old value, marked, without a wait", got)
			}
		}
		close(gate)
		synctest.Wait()
		if got := get(t, c, 0, 0); *got.Value != 2 || got.Stale {
			t.Fatalf("got %+v, want the new value", got)
		}
		if stats := c.Stats(); stats.Loads != 2 || stats.Refreshes != 1 || stats.StaleHits != 100 {
			t.Fatalf("got %+v, want one refresh", stats)
		}
	})
}

func TestAStaleEntryIsNotServedBelowMinRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		c := New(Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20, RefreshAfter: time.Minute})
		defer c.Close()
		get(t, c, 0, 0)
		s.write(5, 0)
		s.shown.Store(5) // The word of the change was lost.
		pass(time.Minute)
		if got := get(t, c, 0, 5); *got.Value != 5 || got.Stale {
			t.Fatalf("got %+v, want 5: the old entry holds as of 1 only", got)
		}
	})
}

func TestARefreshThatFailsLeavesTheOldEntryUntilItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(1)
		c := New(Options[int, uint64]{Load: s.load, BytesMax: 1 << 20, RefreshAfter: time.Minute, ExpireAfter: 3 * time.Minute})
		defer c.Close()
		get(t, c, 0, 0)
		s.before = func(context.Context, int) error { return errDown }
		pass(2 * time.Minute)
		if got := get(t, c, 0, 0); *got.Value != 1 || !got.Stale {
			t.Fatalf("got %+v, want the old value", got)
		}
		synctest.Wait()
		if stats := c.Stats(); stats.RefreshErrors != 1 {
			t.Fatalf("got %+v, want a refresh that failed", stats)
		}
		pass(time.Minute)
		if _, err := c.Get(t.Context(), 0, 0); !errors.Is(err, errDown) {
			t.Fatalf("got %v, want L3's error: the entry has expired", err)
		}
	})
}

func TestRefreshesInTheBackgroundAreBoundedAndCloseWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, most = 100, 4
		s := newShelf(keys)
		c := New(Options[int, uint64]{Load: s.load, BytesMax: 1 << 20, RefreshAfter: time.Minute, ExpireAfter: time.Hour, RefreshesMax: most})
		for key := range keys {
			get(t, c, key, 0)
		}
		pass(time.Minute)
		gate := make(chan struct{})
		s.before = func(context.Context, int) error { <-gate; return nil }
		for key := range keys {
			get(t, c, key, 0)
		}
		synctest.Wait()
		if loads := s.loads.Load(); loads != keys+most {
			t.Errorf("got %d refreshes at once, want %d (I8)", loads-keys, most)
		}
		closed := make(chan struct{})
		go func() { c.Close(); close(closed) }()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close did not wait")
		default:
		}
		close(gate)
		<-closed
		get(t, c, keys-1, 0)
		synctest.Wait()
		if loads := s.loads.Load(); loads != keys+most {
			t.Errorf("got %d loads, want %d: a refresh began after Close", loads, keys+most)
		}
	})
}

func TestALevel2ThatFailsOrHoldsRubbishIsAMiss(t *testing.T) {
	s, l2 := newShelf(1), newShared()
	c := New(Options[int, uint64]{Load: s.load, Shown: s.shownTo, Level2: l2, Key: keyText, Decode: decode})
	l2.down = errDown
	if got := get(t, c, 0, 0); *got.Value != 1 || got.Level != LevelView {
		t.Fatalf("got %+v, want 1 off L3", got)
	}
	l2.down = nil
	l2.entries[keyText(0)] = sharedEntry{[]byte("rubbish"), 1}
	if got := get(t, c, 0, 0); *got.Value != 1 || got.Level != LevelView {
		t.Fatalf("got %+v, want 1 off L3", got)
	}
	if stats := c.Stats(); stats.SharedErrors != 3 || stats.Loads != 2 {
		t.Fatalf("got %+v, want 3 failures of L2 and 2 loads", stats)
	}
}

func TestWhenAllKeysChangedNothingOlderIsKeptOrGiven(t *testing.T) {
	for name, counts := range map[string]bool{"positions are the view's": false, "the cache counts": true} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(2)
			options := Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20, MissingMax: 8}
			if counts {
				options.Shown = nil
			}
			c := New(options)
			changeAll := func() {
				position := s.shown.Load() + 1
				s.write(position, 0, 1, 2)
				if counts {
					c.ChangedAllNow()
				} else {
					c.ChangedAll(position)
				}
				s.shown.Store(position)
			}
			get(t, c, 0, 0)
			get(t, c, 2, 0) // It is not there yet.
			changed := false
			s.after = func(context.Context, int) error {
				if !changed {
					changed = true
					changeAll()
				}
				return nil
			}
			get(t, c, 1, 0)
			for key := range 3 {
				if got := get(t, c, key, 0); got.Value == nil || *got.Value != 2 || got.Level != LevelView {
					t.Errorf("key %d: got %+v, want 2 off L3 (I6)", key, got)
				}
			}
		})
	}
}

func TestACacheThatCountsByItselfIsToldOfChangesByAnyNumberOfViews(t *testing.T) {
	seed := seedOf(t)
	const keys, views, changes = 4, 3, 2000
	s := newShelf(keys)
	c := New(Options[int, uint64]{Load: s.load, BytesMax: 1 << 20})
	var written [keys]atomic.Uint64
	var working sync.WaitGroup
	for view := range views {
		working.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(view)))
			for range changes {
				key := random.IntN(keys)
				s.mu.Lock()
				s.values[key]++
				value := s.values[key]
				s.mu.Unlock()
				c.ChangedNow(key)
				for at := written[key].Load(); value > at && !written[key].CompareAndSwap(at, value); at = written[key].Load() {
				}
				want := written[key].Load()
				if got, err := c.Get(context.Background(), key, 0); err != nil || *got.Value < want {
					t.Errorf("seed %d: key %d: got %+v, %v, want change %d or a later one (I6)", seed, key, got, err, want)
					return
				}
			}
		})
	}
	working.Wait()
}
