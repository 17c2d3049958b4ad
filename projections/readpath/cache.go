// Package readpath answers reads from the nearest level that may: L1 in this process, L2 shared by nodes, L3 the node's own
// view. It knows neither orders nor Pebble nor Redis.
package readpath

import (
	"context"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
)

// Limits of a Cache. Those with Default hold where Options leave them open.
const (
	// LoadsMaxDefault bounds the loads of L3 that run at once, and LoadWaitersMaxDefault those that wait for their turn.
	LoadsMaxDefault       = 64
	LoadWaitersMaxDefault = 1 << 14
	// LoadWaitDefault bounds how long one of them waits.
	LoadWaitDefault = time.Second
	// RefreshesMaxDefault bounds the refreshes in the background at once; one more is left to the next reader.
	RefreshesMaxDefault = 16
	// Level2WaitDefault bounds one call of L2.
	Level2WaitDefault = 50 * time.Millisecond
	// joinsMax bounds how often a read joins the load of another before it loads by itself: each time, the other's was
	// begun before a change that the read has to see.
	joinsMax = 3
	// entryBytes is about what L1 takes for an entry beside its value and key.
	entryBytes = 128
	// hitsPerCount: one L1 hit of so many is counted for hot keys, as so many.
	hitsPerCount = 8
)

// Options configure a Cache. Load is needed; whatever else is zero is switched off, or has the default that it names.
type Options[K comparable, V any] struct {
	// Name of what is cached, for people.
	Name string
	// Load reads a key off L3. record is what L2 shall keep of it, nil is nothing. found is false when there is no such key.
	Load func(ctx context.Context, key K) (value V, record []byte, found bool, err error)
	// LoadTimeout bounds a load. It runs by itself: no caller's cancel reaches it. 0 says that Load waits for nothing but
	// this process: then whoever comes first runs it, and nobody's cancel reaches it either.
	LoadTimeout time.Duration
	// Shown returns the position that the view of the key's lane shows. REQUIRES: before it shows a position, Changed was
	// called with every key that changed up to there. nil means that the cache counts by itself (ChangedNow), or that
	// nothing says what changes.
	Shown func(key K) uint64

	// BytesMax bounds L1, and Weigh says what an entry takes, about; nil is nothing beside the entry itself. 0 bytes is no L1.
	BytesMax uint64
	Weigh    func(key K, value *V) uint32
	// AdmitAt is how often a key must have been read in the window of hot keys before L1 keeps it; 0 and 1 keep the first.
	AdmitAt uint32
	// MissingMax bounds the keys that are known to be missing. MissingFor is how long one is believed, 0 is until it changes.
	MissingMax int
	MissingFor time.Duration
	// MayHold says whether L3 may hold the key; false is certain (Filter). nil asks L3.
	MayHold func(key K) bool
	// HotMax bounds the keys that are pinned to L1 while they are hot.
	HotMax int

	// RefreshAfter is how old an entry gets before it is refreshed in the background, while it is still served; 0 is for ever,
	// for what the view drops as it changes. An entry of ExpireAfter is not served any more; 0 is twice RefreshAfter.
	RefreshAfter, ExpireAfter time.Duration
	// JitterShare of both times is taken off at random, 0 to 1, so that what was loaded together does not expire together.
	JitterShare float64

	// Level2 is asked before L3 and told what L3 said; nil is none. Key names a key in it, and Decode reads a record.
	Level2     Level2
	Key        func(key K) string
	Decode     func(key K, record []byte) (V, error)
	Level2Wait time.Duration

	// LoadsMax loads of L3 run at once. One more waits for LoadWait, if no more than LoadWaitersMax do, and is an
	// *OverloadedError then: when L2 is down, L3 must not fall with it.
	LoadsMax, LoadWaitersMax int
	LoadWait                 time.Duration
	RefreshesMax             int
}

// A Level2 is a cache that nodes share. It breaks its own circuit: an error is a miss. Each value is that of its key as of a
// position of the log; Get finds none that is older than atLeast, and Set does not put an older one over a newer.
type Level2 interface {
	Get(ctx context.Context, key string, atLeast uint64) (value []byte, position uint64, found bool, err error)
	Set(ctx context.Context, key string, value []byte, position uint64) error
}

// A Level is where an answer came from.
type Level uint8

// The levels.
const (
	LevelMemory Level = 1 // L1: this process.
	LevelShared Level = 2 // L2.
	LevelView   Level = 3 // L3.
	LevelFilter Level = 4 // The filter: there is no such key.
)

// An Answer is what a Cache says of a key.
type Answer[V any] struct {
	// Value is shared: nobody changes it. It is nil when there is no such key.
	Value *V
	// Position of the log up to which the answer holds. Only L3 answers with less than was asked for.
	Position uint64
	Level    Level
	// Stale says that the entry has outlived RefreshAfter: it holds as of its position, and is being refreshed.
	Stale bool
}

// A Cache is the read path of one kind of key. Its methods may be called by any number of goroutines.
//
// Four rules keep it from answering with less than the node's view shows (I6):
//  1. A value has the position that was shown before it was read.
//  2. Changed raises the floor of a key, then drops the key from L1; the view shows the position only after that.
//  3. A value enters L1 only while the floor of its key is not above its position, checked where entries are dropped. So what
//     is in L1 is as new as any position that was shown before it was looked up.
//  4. What comes from elsewhere, L2 or another's load, and that a key is missing, is used only if no change above its position
//     was shown before: its position is at least the floor, or at least what was shown.
type Cache[K comparable, V any] struct {
	options Options[K, V]
	seed    maphash.Seed
	l1      atomic.Pointer[memory[K, V]] // nil without L1
	missing *memory[K, V]                // keys that are not there; nil where they are not kept
	floors  floors
	flights flights[K, V]
	hot     *HotKeys[K]
	counted atomic.Uint64 // changes, where the cache counts by itself
	feeding sync.Mutex    // held while it counts

	slots     chan struct{}
	waiting   atomic.Int64
	flying    atomic.Int64 // flights by themselves
	refreshes atomic.Int64

	closing sync.RWMutex
	closed  bool
	running sync.WaitGroup

	stats counters
	apart bool // Tests switch single flight off.
}

// memory is what this process keeps.
type memory[K comparable, V any] = otter.Cache[K, *entry[V]]

// entry is a value, or that there is none, as of a position.
type entry[V any] struct {
	value    V
	found    bool
	pinned   bool
	weight   uint32
	position uint64
	// refreshAt and expireAt are zero where entries do not age.
	refreshAt, expireAt time.Time
}

// New returns an empty cache.
func New[K comparable, V any](options Options[K, V]) *Cache[K, V] {
	if options.Load == nil {
		panic("readpath: bug: a cache without Load")
	}
	if options.Level2 != nil && (options.Key == nil || options.Decode == nil) {
		panic("readpath: bug: a cache with a Level2 and without Key or Decode")
	}
	setDefault(&options.LoadsMax, LoadsMaxDefault)
	setDefault(&options.LoadWaitersMax, LoadWaitersMaxDefault)
	setDefault(&options.LoadWait, LoadWaitDefault)
	setDefault(&options.RefreshesMax, RefreshesMaxDefault)
	setDefault(&options.Level2Wait, Level2WaitDefault)
	setDefault(&options.ExpireAfter, 2*options.RefreshAfter)
	c := &Cache[K, V]{options: options, seed: maphash.MakeSeed(), slots: make(chan struct{}, options.LoadsMax)}
	c.flights.init()
	c.floors.init(floorSlotsMin)
	if options.Level2 != nil {
		c.floors.init(floorSlotsShared)
	}
	if options.BytesMax > 0 {
		c.l1.Store(c.newMemory())
	}
	if options.MissingMax > 0 {
		c.missing = otter.Must(&otter.Options[K, *entry[V]]{MaximumSize: options.MissingMax})
	}
	if options.HotMax > 0 || options.AdmitAt > 1 {
		c.hot = NewHotKeys[K](options.HotMax)
	}
	return c
}

func (c *Cache[K, V]) newMemory() *memory[K, V] {
	return otter.Must(&otter.Options[K, *entry[V]]{
		MaximumWeight: c.options.BytesMax,
		Weigher: func(_ K, e *entry[V]) uint32 {
			if e.pinned {
				return 0 // Not evicted for room: HotMax bounds them.
			}
			return e.weight
		},
	})
}

func setDefault[T int | time.Duration](option *T, value T) {
	if *option == 0 {
		*option = value
	}
}

// Get returns what is known of a key. L1, L2 and the loads of others answer only if they hold the position atLeast; 0 asks for
// nothing but what the view shows. L3 answers with what it has, and Position says how far that holds.
//
// Errors are those of Load, *OverloadedError, and that of ctx.
func (c *Cache[K, V]) Get(ctx context.Context, key K, atLeast uint64) (Answer[V], error) {
	for join := 1; ; join++ {
		// What is shown comes before any look: rules 3 and 4.
		shown := c.shown(key)
		if answer, ok := c.fromMemory(key, shown, atLeast); ok {
			return answer, nil
		}
		if shown >= atLeast && c.options.MayHold != nil && !c.options.MayHold(key) {
			c.stats.filterRefusals.Add(1)
			return Answer[V]{Position: shown, Level: LevelFilter}, nil
		}
		f, leads := c.flights.enter(c.hash(key), key, c.apart || join > joinsMax)
		if leads {
			c.launch(ctx, key, f, shown, atLeast)
		}
		select {
		case <-f.done:
		default:
			select {
			case <-f.done:
			case <-ctx.Done():
				return Answer[V]{}, ctx.Err()
			}
		}
		if f.err != nil {
			return Answer[V]{}, f.err
		}
		if leads {
			return f.entry.answer(f.entry.position, f.level), nil
		}
		c.stats.joined.Add(1)
		if position, ok := c.holds(key, f.entry.position, shown); ok && position >= atLeast {
			return f.entry.answer(position, f.level), nil
		}
	}
}

func (e *entry[V]) answer(position uint64, level Level) Answer[V] {
	answer := Answer[V]{Position: position, Level: level}
	if e.found {
		answer.Value = &e.value
	}
	return answer
}

// shown returns the position that the view shows.
func (c *Cache[K, V]) shown(key K) uint64 {
	if c.options.Shown == nil {
		return c.counted.Load()
	}
	return c.options.Shown(key)
}

// holds returns up to where a value as of a position holds, seen from where this position was shown before; false when it
// may be older than that.
func (c *Cache[K, V]) holds(key K, position, shown uint64) (uint64, bool) {
	if position >= shown {
		return position, true
	}
	if c.floors.of(c.hash(key)) > position {
		return 0, false
	}
	return shown, true
}

// fromMemory answers from L1.
func (c *Cache[K, V]) fromMemory(key K, shown, atLeast uint64) (Answer[V], bool) {
	if l1 := c.l1.Load(); l1 != nil {
		if e, ok := l1.GetIfPresent(key); ok {
			if c.hot != nil && rand.Uint32()%hitsPerCount == 0 {
				c.count(key, hitsPerCount)
			}
			return c.fromEntry(key, e, max(e.position, shown), atLeast)
		}
	}
	if c.missing != nil {
		if e, ok := c.missing.GetIfPresent(key); ok {
			if position, ok := c.holds(key, e.position, shown); ok {
				return c.fromEntry(key, e, position, atLeast)
			}
		}
	}
	return Answer[V]{}, false
}

// fromEntry answers from an entry that holds as of a position.
func (c *Cache[K, V]) fromEntry(key K, e *entry[V], position, atLeast uint64) (Answer[V], bool) {
	answer := e.answer(position, LevelMemory)
	if !e.expireAt.IsZero() {
		now := time.Now()
		if !now.Before(e.expireAt) {
			return Answer[V]{}, false
		}
		if !e.refreshAt.IsZero() && !now.Before(e.refreshAt) {
			// Old enough that the word of the view may have been lost: it holds for what it was made of.
			answer.Position, answer.Stale = e.position, true
		}
	}
	if answer.Position < atLeast {
		return Answer[V]{}, false
	}
	switch {
	case !e.found:
		c.stats.missingHits.Add(1)
	case answer.Stale:
		c.stats.staleHits.Add(1)
		c.refresh(key)
	default:
		c.stats.memoryHits.Add(1)
	}
	return answer, true
}

// Changed drops keys that changed, the newest of their changes at a position. The view calls it between writing the changes
// and showing the position; positions do not go down.
func (c *Cache[K, V]) Changed(position uint64, keys ...K) {
	for _, key := range keys {
		c.floors.raise(c.hash(key), position) // First: a value that is put after the key was dropped must see it.
	}
	c.drop(keys)
}

// ChangedNow is Changed for a cache without Shown: it counts by itself. Any number of views may call it.
func (c *Cache[K, V]) ChangedNow(keys ...K) {
	if len(keys) == 0 {
		return
	}
	c.feeding.Lock()
	defer c.feeding.Unlock()
	position := c.counted.Load() + 1
	for _, key := range keys {
		c.floors.raise(c.hash(key), position)
	}
	// A load that begins from here on reads what changed; one that began before does not get past the floor.
	c.counted.Store(position)
	c.drop(keys)
}

// ChangedAll is Changed for all keys at once, whatever their number.
func (c *Cache[K, V]) ChangedAll(position uint64) {
	c.floors.raiseAll(position)
	c.dropAll()
}

// ChangedAllNow is ChangedAll for a cache without Shown.
func (c *Cache[K, V]) ChangedAllNow() {
	c.feeding.Lock()
	defer c.feeding.Unlock()
	position := c.counted.Load() + 1
	c.floors.raiseAll(position)
	c.counted.Store(position)
	c.dropAll()
}

// Forget drops all keys, changed or not: another view answers from now on, as of a position that is shown already. What was
// loaded of the one before is not kept; nor is anything until the next position is shown. For a cache with Shown.
func (c *Cache[K, V]) Forget(shown uint64) {
	c.floors.raiseAll(shown + 1)
	c.dropAll()
	if c.missing != nil {
		c.missing.InvalidateAll()
	}
}

func (c *Cache[K, V]) drop(keys []K) {
	l1 := c.l1.Load()
	if l1 == nil {
		return
	}
	for _, key := range keys {
		l1.Invalidate(key)
	}
}

// dropAll begins another L1. What is put into the old one after this is not seen, what is put into the new one has seen the
// floor.
func (c *Cache[K, V]) dropAll() {
	if c.l1.Load() != nil {
		c.l1.Store(c.newMemory())
	}
}

// put keeps an entry in L1, if it may (rule 3), and unless a newer one is there.
func (c *Cache[K, V]) put(key K, e *entry[V]) {
	to := c.l1.Load()
	if !e.found {
		to = c.missing
	}
	if to == nil {
		return
	}
	if e.found {
		if c.hot != nil && c.count(key, 1) < c.options.AdmitAt {
			return
		}
		e.pinned = c.pins(key, e.weight)
	}
	to.Compute(key, func(old *entry[V], found bool) (*entry[V], otter.ComputeOp) {
		if c.floors.of(c.hash(key)) > e.position || found && old.position > e.position {
			return old, otter.CancelOp
		}
		return e, otter.WriteOp
	})
	if e.found && c.missing != nil {
		c.missing.Invalidate(key) // L2 may know more than the view.
	}
}

func (c *Cache[K, V]) hash(key K) uint64 { return maphash.Comparable(c.seed, key) }

// age sets when an entry grows old.
func (c *Cache[K, V]) age(e *entry[V]) {
	refresh, expire := c.options.RefreshAfter, c.options.ExpireAfter
	if !e.found {
		refresh, expire = 0, c.options.MissingFor
	}
	if expire == 0 {
		return
	}
	now, left := time.Now(), 1.0
	if c.options.JitterShare > 0 {
		left -= c.options.JitterShare * rand.Float64()
	}
	e.expireAt = now.Add(time.Duration(left * float64(expire)))
	if refresh > 0 {
		e.refreshAt = now.Add(time.Duration(left * float64(refresh)))
	}
}

// Close waits until nothing runs in the background, and lets nothing new begin. Get still answers, and loads where its
// caller is.
func (c *Cache[K, V]) Close() {
	c.closing.Lock()
	c.closed = true
	c.closing.Unlock()
	c.running.Wait()
}

// inBackground runs f by itself, or reports false when the cache is closed.
func (c *Cache[K, V]) inBackground(f func()) bool {
	c.closing.RLock()
	defer c.closing.RUnlock()
	if c.closed {
		return false
	}
	c.running.Go(f)
	return true
}
