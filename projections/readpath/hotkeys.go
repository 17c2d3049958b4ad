package readpath

import (
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
)

// HotKeys finds the keys that many reads are of: in a window of the newest reads, those of which at least one of hotShare is.
// The counts are a count-min sketch, so a key may seem hotter than it is and none colder. The window is two halves, the one
// that fills and the one before; it slides by halves. It is counted in reads, so it needs no clock.
//
// Its methods may be called by any number of goroutines.
type HotKeys[K comparable] struct {
	seed maphash.Seed
	max  int
	hot  atomic.Pointer[map[K]struct{}] // not changed, replaced

	mu            sync.Mutex
	filling, full *sketch
	reads         uint32 // counted in filling
}

const (
	// hotWindowReads is how many reads a window holds, when it has filled.
	hotWindowReads = 1 << 15
	// hotShare: a key is hot from one of so many reads of a window on, and until it is down to half of that.
	hotShare = 64
	hotReads = hotWindowReads / hotShare
	// sketchRows and sketchColumns bound the sketch; a key's count is too high by about e × reads ÷ columns at most.
	sketchRows, sketchColumns = 4, 1 << 10
)

type sketch [sketchRows][sketchColumns]uint32

// column returns where a row counts a key. Each row has bits of the hash to itself, so that two keys do not share all of
// their columns because they share one.
func column(hash uint64, row int) int {
	return int(hash >> (64 / sketchRows * row) % sketchColumns)
}

// NewHotKeys returns counts of nothing, which call no more than max keys hot at a time.
func NewHotKeys[K comparable](most int) *HotKeys[K] {
	h := &HotKeys[K]{seed: maphash.MakeSeed(), max: most, filling: new(sketch), full: new(sketch)}
	h.hot.Store(new(map[K]struct{}))
	return h
}

// Count counts reads of a key, and returns how many there were in the window, about, and which keys became hot by it or
// are hot no more.
func (h *HotKeys[K]) Count(key K, reads uint32) (inWindow uint32, heated bool, cooled []K) {
	hash := maphash.Comparable(h.seed, key)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reads >= hotWindowReads/2 {
		cooled = h.slide()
	}
	h.reads += reads
	inWindow = ^uint32(0)
	for row := range h.filling {
		at := column(hash, row)
		h.filling[row][at] += reads
		inWindow = min(inWindow, h.filling[row][at]+h.full[row][at])
	}
	hot := *h.hot.Load()
	if _, already := hot[key]; already || inWindow < hotReads || len(hot) >= h.max {
		return inWindow, false, cooled
	}
	hotter := maps.Clone(hot)
	if hotter == nil {
		hotter = make(map[K]struct{})
	}
	hotter[key] = struct{}{}
	h.hot.Store(&hotter)
	return inWindow, true, cooled
}

// slide begins the next half of the window, and drops the keys that have cooled down in the one that is full.
func (h *HotKeys[K]) slide() (cooled []K) {
	h.filling, h.full = h.full, h.filling
	*h.filling = sketch{}
	h.reads = 0
	still := make(map[K]struct{})
	for key := range *h.hot.Load() {
		hash := maphash.Comparable(h.seed, key)
		inHalf := ^uint32(0)
		for row := range h.full {
			inHalf = min(inHalf, h.full[row][column(hash, row)])
		}
		if inHalf < hotReads/4 { // Half of what made it hot, in half of a window.
			cooled = append(cooled, key)
		} else {
			still[key] = struct{}{}
		}
	}
	h.hot.Store(&still)
	return cooled
}

// Hot reports whether a key is hot.
func (h *HotKeys[K]) Hot(key K) bool {
	_, hot := (*h.hot.Load())[key]
	return hot
}

// Keys returns the hot keys, in no order.
func (h *HotKeys[K]) Keys() []K { return slices.Collect(maps.Keys(*h.hot.Load())) }

// Hot reports whether a key is hot: what is shared of it is better spread over several keys. A key without HotMax never is.
func (c *Cache[K, V]) Hot(key K) bool { return c.hot != nil && c.hot.Hot(key) }

// HotKeys returns the keys that are hot, in no order.
func (c *Cache[K, V]) HotKeys() []K {
	if c.hot == nil {
		return nil
	}
	return c.hot.Keys()
}

// hotRoom is the part of L1 that hot keys may take together, as one of so many.
const hotRoom = 4

// pins reports whether L1 keeps an entry of the key whatever else comes.
func (c *Cache[K, V]) pins(key K, weight uint32) bool {
	return c.Hot(key) && uint64(weight) <= c.options.BytesMax/hotRoom/uint64(c.options.HotMax)
}

// count counts reads of a key, and pins and unpins entries as their keys become hot and cool down.
func (c *Cache[K, V]) count(key K, reads uint32) (inWindow uint32) {
	inWindow, heated, cooled := c.hot.Count(key, reads)
	if heated {
		c.repin(key)
	}
	for _, key := range cooled {
		c.repin(key)
	}
	return inWindow
}

// repin puts an entry anew, so that its weight is that of a pinned one, or is no longer.
func (c *Cache[K, V]) repin(key K) {
	l1 := c.l1.Load()
	if l1 == nil {
		return
	}
	l1.ComputeIfPresent(key, func(old *entry[V]) (*entry[V], otter.ComputeOp) {
		again := *old
		again.pinned = c.pins(key, old.weight)
		return &again, otter.WriteOp
	})
}
