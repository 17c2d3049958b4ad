package readpath

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestTheKeysThatManyReadsAreOfAreHotUntilTheyAreNot(t *testing.T) {
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 1))
	h := NewHotKeys[int](8)
	// One read in 10 is of key 1, one in 20 of key 2, all others of any of a million.
	read := func(hot1, hot2 int) {
		switch n := random.IntN(20); {
		case n < 2:
			h.Count(hot1, 1)
		case n < 3:
			h.Count(hot2, 1)
		default:
			h.Count(1000+random.IntN(1_000_000), 1)
		}
	}
	for range 2 * hotWindowReads {
		read(1, 2)
	}
	if keys := h.Keys(); len(keys) != 2 || !h.Hot(1) || !h.Hot(2) {
		t.Fatalf("seed %d: %v are hot, want 1 and 2", seed, keys)
	}
	for range 2 * hotWindowReads {
		read(3, 2)
	}
	keys := h.Keys()
	if slices.Sort(keys); !slices.Equal(keys, []int{2, 3}) {
		t.Fatalf("seed %d: %v are hot, want 2 and 3: nobody reads 1 any more", seed, keys)
	}
}

func TestNoMoreKeysAreHotThanMayBe(t *testing.T) {
	h := NewHotKeys[int](3)
	for i := range hotWindowReads {
		h.Count(i%10, 1)
	}
	if keys := h.Keys(); len(keys) != 3 {
		t.Fatalf("%v are hot, want 3 (I8)", keys)
	}
}

func TestAKeyThatCoolsDownIsNoLongerPinned(t *testing.T) {
	s := newShelf(3)
	c := New(Options[int, uint64]{Load: s.load, BytesMax: 1 << 20, HotMax: 1})
	get(t, c, 1, 0)
	for range hotReads {
		c.count(1, 1)
	}
	c.l1.Load().CleanUp()
	if weight := c.l1.Load().WeightedSize(); !c.Hot(1) || weight != 0 {
		t.Fatalf("hot %v, L1 weighs %d: want the key pinned, which weighs nothing", c.Hot(1), weight)
	}
	get(t, c, 2, 0)
	for range 2 * hotWindowReads {
		c.count(2, 1)
	}
	c.l1.Load().CleanUp()
	if weight := c.l1.Load().WeightedSize(); c.Hot(1) || weight != entryBytes {
		t.Fatalf("hot %v, L1 weighs %d, want key 1 to weigh %d again", c.Hot(1), weight, entryBytes)
	}
}
