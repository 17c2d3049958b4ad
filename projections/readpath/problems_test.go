package readpath

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The four problems of caches, each with the protection off and on, in counted loads.

// A hot key (热点): all reads of one key go to one shard of L2.
func TestProblemAHotKeyBurdensOneShardOfL2(t *testing.T) {
	const reads = 10_000
	burden := func(memoryBytes uint64) (gets int) {
		s, l2 := newShelf(1), newShared()
		c := New(Options[int, uint64]{
			Load: s.load, Shown: s.shownTo, BytesMax: memoryBytes, HotMax: 4, Level2: l2, Key: keyText, Decode: decode,
		})
		for range reads {
			get(t, c, 0, 0)
		}
		return l2.gets[keyText(0)]
	}
	if gets := burden(0); gets != reads {
		t.Errorf("without L1, L2 is asked %d times, want the problem: %d", gets, reads)
	}
	if gets := burden(1 << 20); gets != 1 {
		t.Errorf("with L1, L2 is asked %d times, want 1", gets)
	}
}

// A hot key stays in L1 whatever else is read: it is detected and pinned.
func TestProblemAHotKeyIsPushedOutByAScan(t *testing.T) {
	const entries, scanned = 100, 2000
	loadsOfHot := func(hotMax int) (loads int, detected bool) {
		s := newShelf(scanned + 1)
		s.before = func(_ context.Context, key int) error {
			if key == 0 {
				loads++
			}
			return nil
		}
		c := New(Options[int, uint64]{
			Load: s.load, Shown: s.shownTo, BytesMax: entries * 2 * entryBytes, HotMax: hotMax,
			Weigh: func(int, *uint64) uint32 { return entryBytes },
		})
		for range 20 * hotReads {
			get(t, c, 0, 0)
		}
		detected = c.Hot(0)
		// As if it had been the victim: its frequency is not asked again, as that of a key that is pinned is not.
		for key := 1; key <= scanned; key++ {
			get(t, c, key, 0)
		}
		c.l1.Load().SetMaximum(1) // No room at all for anything that may go.
		c.l1.Load().CleanUp()
		get(t, c, 0, 0)
		return loads, detected
	}
	if loads, detected := loadsOfHot(0); loads != 2 || detected {
		t.Errorf("without detection: %d loads, detected %v, want the problem: it was pushed out and loaded again", loads, detected)
	}
	if loads, detected := loadsOfHot(4); loads != 1 || !detected {
		t.Errorf("with detection: %d loads, detected %v, want 1 load of a hot key that is pinned", loads, detected)
	}
}

// Breakdown (击穿): one key that everybody reads expires, and everybody loads it.
func TestProblemBreakdown(t *testing.T) {
	const readers = 1000
	breakdown := func(apart, logical bool) (loads, waited int64) {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf(1)
			options := Options[int, uint64]{
				Load: s.load, LoadTimeout: time.Minute, Shown: s.shownTo, BytesMax: 1 << 20, ExpireAfter: time.Minute, LoadsMax: readers,
			}
			if logical {
				options.RefreshAfter, options.ExpireAfter = time.Minute, time.Hour
			}
			c := New(options)
			c.apart = apart
			defer c.Close()
			get(t, c, 0, 0)
			pass(time.Minute) // It expires.
			gate := make(chan struct{})
			s.before = func(context.Context, int) error { <-gate; return nil }
			var reading sync.WaitGroup
			var answered atomic.Int64
			for range readers {
				reading.Go(func() {
					if _, err := c.Get(t.Context(), 0, 0); err != nil {
						t.Error(err)
					}
					answered.Add(1)
				})
			}
			synctest.Wait()
			waited = readers - answered.Load()
			close(gate)
			reading.Wait()
			synctest.Wait()
			loads = s.loads.Load() - 1
		})
		return loads, waited
	}
	if loads, waited := breakdown(true, false); loads != readers || waited != readers {
		t.Errorf("unprotected: %d loads, %d waited, want the problem: %d of each", loads, waited, readers)
	}
	if loads, waited := breakdown(false, false); loads != 1 || waited != readers {
		t.Errorf("with single flight: %d loads, %d waited, want 1 load", loads, waited)
	}
	if loads, waited := breakdown(false, true); loads != 1 || waited != 0 {
		t.Errorf("with logical expiry: %d loads, %d waited, want 1 load in the background and nobody waiting", loads, waited)
	}
}

// Penetration (穿透): what is not there is in no cache, so every read of it reaches L3.
func TestProblemPenetration(t *testing.T) {
	const attacks, keys = 2000, 200
	attack := func(missingMax int, filtered bool, missing func(i int) int) int64 {
		s := newShelf(keys)
		options := Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20, MissingMax: missingMax}
		if filtered {
			var filter Filter
			for key := range keys {
				filter.Add(strconv.Itoa(key))
			}
			options.MayHold = func(key int) bool { return filter.MayHold(strconv.Itoa(key)) }
		}
		c := New(options)
		for i := range attacks {
			if got := get(t, c, missing(i), 0); got.Value != nil {
				t.Fatalf("got %+v of a key that is not there", got)
			}
		}
		for key := range keys {
			if got := get(t, c, key, 0); got.Value == nil {
				t.Fatalf("key %d, which is there, was refused", key)
			}
		}
		return s.loads.Load() - keys
	}
	same, other := func(int) int { return keys }, func(i int) int { return keys + i }
	if loads := attack(0, false, same); loads != attacks {
		t.Errorf("one key, unprotected: %d loads, want the problem: %d", loads, attacks)
	}
	if loads := attack(64, false, same); loads != 1 {
		t.Errorf("one key, negative answers kept: %d loads, want 1", loads)
	}
	if loads := attack(64, false, other); loads != attacks {
		t.Errorf("always another key, negative answers kept: %d loads, want the problem: %d", loads, attacks)
	}
	// The filter is 1 in 20 full: the keys are fixed and so are its hashes, so this is no matter of luck.
	if loads := attack(64, true, other); loads > attacks/100 {
		t.Errorf("always another key, filtered: %d loads, want at most %d", loads, attacks/100)
	}
}

// Avalanche (雪崩), first half: what was loaded together expires together.
func TestProblemAvalancheOfExpiry(t *testing.T) {
	const keys = 400
	mostInASecond := func(jitter float64) (most int64) {
		synctest.Test(t, func(t *testing.T) {
			s := newShelf(keys)
			c := New(Options[int, uint64]{Load: s.load, BytesMax: 1 << 20, ExpireAfter: 100 * time.Second, JitterShare: jitter})
			for key := range keys {
				get(t, c, key, 0)
			}
			for range 101 {
				pass(time.Second)
				before := s.loads.Load()
				for key := range keys {
					get(t, c, key, 0)
				}
				most = max(most, s.loads.Load()-before)
			}
			if all := s.loads.Load(); all < 2*keys {
				t.Errorf("%d loads, want at least %d: not all have expired", all, 2*keys)
			}
		})
		return most
	}
	if most := mostInASecond(0); most != keys {
		t.Errorf("without jitter: %d loads in one second, want the problem: %d", most, keys)
	}
	// Over 50 s they are 8 a second. That a second has 50 is less likely than 10⁻²⁰.
	if most := mostInASecond(0.5); most > keys/8 {
		t.Errorf("with jitter: %d loads in one second, want at most %d", most, keys/8)
	}
}

// Avalanche, second half: L2 falls, and everything that it kept off L3 comes to L3.
func TestProblemAvalancheWhenL2IsDown(t *testing.T) {
	const keys = 1000
	fall := func(loadsMax, waitersMax int, timeout time.Duration) (most, refused int64) {
		synctest.Test(t, func(t *testing.T) {
			s, l2 := newShelf(keys), newShared()
			l2.down = errDown
			var under, peak atomic.Int64
			gate := make(chan struct{})
			s.before = func(context.Context, int) error {
				now := under.Add(1)
				for at := peak.Load(); now > at && !peak.CompareAndSwap(at, now); at = peak.Load() {
				}
				<-gate
				under.Add(-1)
				return nil
			}
			c := New(Options[int, uint64]{
				Name: "things", Load: s.load, LoadTimeout: timeout, Shown: s.shownTo, Level2: l2, Key: keyText, Decode: decode,
				LoadsMax: loadsMax, LoadWaitersMax: waitersMax, LoadWait: time.Second,
			})
			defer c.Close()
			var reading sync.WaitGroup
			var refusals atomic.Int64
			for key := range keys {
				reading.Go(func() {
					_, err := c.Get(t.Context(), key, 0)
					var overloaded *OverloadedError
					switch {
					case errors.As(err, &overloaded):
						if overloaded.RetryAfter != time.Second || overloaded.LoadsMax != loadsMax {
							t.Errorf("got %+v", overloaded)
						}
						refusals.Add(1)
					case err != nil:
						t.Error(err)
					}
				})
			}
			synctest.Wait()
			close(gate)
			reading.Wait()
			most, refused = peak.Load(), refusals.Load()
		})
		return most, refused
	}
	// Loads run by themselves, or where their callers are.
	for _, timeout := range []time.Duration{time.Minute, 0} {
		if most, refused := fall(keys, keys, timeout); most != keys || refused != 0 {
			t.Errorf("timeout %v, without a limit: %d loads at once, %d refused, want the problem: %d at once", timeout, most, refused, keys)
		}
		if most, refused := fall(8, keys, timeout); most != 8 || refused != 0 {
			t.Errorf("timeout %v, with a limit: %d loads at once, %d refused, want 8 at once and all others in turn", timeout, most, refused)
		}
		if most, refused := fall(8, 100, timeout); most != 8 || refused != keys-8-100 {
			t.Errorf("timeout %v, with few who may wait: %d loads at once, %d refused, want 8 and %d (I8)", timeout, most, refused, keys-8-100)
		}
	}
}

// slow is a Level2 that does not answer before the end of its time.
type slow struct{ shared }

func (*slow) Get(ctx context.Context, _ string, _ uint64) ([]byte, uint64, bool, error) {
	<-ctx.Done()
	return nil, 0, false, ctx.Err()
}

func TestLoadsThatTheirCallersLeftAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const keys, loads, waiters = 100, 2, 10
		s := newShelf(keys)
		c := New(Options[int, uint64]{
			Load: s.load, LoadTimeout: time.Minute, Level2: new(slow), Key: keyText, Decode: decode, Level2Wait: time.Second,
			LoadsMax: loads, LoadWaitersMax: waiters,
		})
		defer c.Close()
		gone, leave := context.WithCancel(t.Context())
		leave()
		for key := range keys {
			_, _ = c.Get(gone, key, 0)
		}
		if under := c.flying.Load(); under != loads+waiters {
			t.Errorf("%d loads are under way for nobody, want %d (I8)", under, loads+waiters)
		}
	})
}

func TestWhoWaitsTooLongForAPlaceToLoadIsToldToComeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(2)
		gate := make(chan struct{})
		s.before = func(context.Context, int) error { <-gate; return nil }
		c := New(Options[int, uint64]{Load: s.load, LoadTimeout: time.Minute, LoadsMax: 1, LoadWait: time.Second})
		defer c.Close()
		go func() { _, _ = c.Get(t.Context(), 0, 0) }()
		synctest.Wait()
		begun := time.Now()
		_, err := c.Get(t.Context(), 1, 0)
		var overloaded *OverloadedError
		if !errors.As(err, &overloaded) || time.Since(begun) != time.Second || c.Stats().Overloaded != 1 {
			t.Errorf("got %v after %v, want an overload after a second", err, time.Since(begun))
		}
		close(gate)
	})
}
