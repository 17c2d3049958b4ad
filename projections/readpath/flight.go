package readpath

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A flight is one load of a key, for everybody who asks for the key meanwhile.
type flight[V any] struct {
	done chan struct{} // closed when the rest is set
	// entry and level, or err.
	entry *entry[V]
	level Level
	err   error
	alone bool // not in flights: nobody joins it
}

// flightShards spreads the flights over so many locks.
const flightShards = 16

// flights are the loads under way, by key. They are as many as there are callers, at most.
type flights[K comparable, V any] struct {
	shards [flightShards]struct {
		mu    sync.Mutex
		byKey map[K]*flight[V]
	}
}

func (f *flights[K, V]) init() {
	for i := range f.shards {
		f.shards[i].byKey = make(map[K]*flight[V])
	}
}

// enter joins the flight of a key, or begins one that the caller leads.
func (f *flights[K, V]) enter(hash uint64, key K, alone bool) (entered *flight[V], leads bool) {
	if alone {
		return &flight[V]{done: make(chan struct{}), alone: true}, true
	}
	shard := &f.shards[hash%flightShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if under := shard.byKey[key]; under != nil {
		return under, false
	}
	begun := &flight[V]{done: make(chan struct{})}
	shard.byKey[key] = begun
	return begun, true
}

// leave ends a flight: whoever asks from here on begins another, or finds what this one put into L1.
func (f *flights[K, V]) leave(hash uint64, key K, ended *flight[V]) {
	if !ended.alone {
		shard := &f.shards[hash%flightShards]
		shard.mu.Lock()
		delete(shard.byKey, key)
		shard.mu.Unlock()
	}
	close(ended.done)
}

// errLoadPanicked is what those hear who joined a load that panicked; the panic itself goes to who led it.
var errLoadPanicked = errors.New("readpath: the load panicked")

// launch runs a flight: where the caller is, or by itself, where the caller's cancel does not reach it.
func (c *Cache[K, V]) launch(ctx context.Context, key K, f *flight[V], shown, atLeast uint64) {
	detached := context.WithoutCancel(ctx)
	if c.options.LoadTimeout == 0 {
		c.fly(detached, key, f, shown, atLeast)
		return
	}
	// Callers that gave up leave their flights behind.
	if c.flying.Add(1) > int64(c.options.LoadsMax+c.options.LoadWaitersMax) {
		c.flying.Add(-1)
		f.err = c.overloaded()
		c.flights.leave(c.hash(key), key, f)
		return
	}
	fly := func() {
		defer c.flying.Add(-1)
		c.fly(detached, key, f, shown, atLeast)
	}
	if !c.inBackground(fly) {
		fly()
	}
}

// fly fetches the key for all who joined, and keeps it.
func (c *Cache[K, V]) fly(ctx context.Context, key K, f *flight[V], shown, atLeast uint64) {
	if c.options.LoadTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.options.LoadTimeout)
		defer cancel()
	}
	f.err = errLoadPanicked
	var record []byte // for L2
	func() {
		defer c.flights.leave(c.hash(key), key, f)
		// Between the leader's look at L1 and its flight, the flight before may have put what it asks for.
		if !c.apart {
			if e, ok := c.peek(key, shown, atLeast); ok {
				c.stats.memoryHits.Add(1)
				f.entry, f.level, f.err = e, LevelMemory, nil
				return
			}
		}
		f.entry, record, f.level, f.err = c.fetch(ctx, key, shown, atLeast)
		if f.err == nil {
			c.put(key, f.entry)
		}
	}()
	if f.err == nil && record != nil {
		c.tellLevel2(ctx, key, record, f.entry.position)
	}
}

// peek returns what L1 holds, if it is neither too old nor to be refreshed.
func (c *Cache[K, V]) peek(key K, shown, atLeast uint64) (*entry[V], bool) {
	for _, in := range [...]*memory[K, V]{c.l1.Load(), c.missing} {
		if in == nil {
			continue
		}
		found, ok := in.GetEntryQuietly(key)
		if !ok {
			continue
		}
		e := *found.Value
		position, holds := max(e.position, shown), true
		if !e.found {
			position, holds = c.holds(key, e.position, shown)
		}
		if !holds || position < atLeast || isPast(e.refreshAt) || isPast(e.expireAt) {
			continue
		}
		e.position = position
		return &e, true
	}
	return nil, false
}

// isPast reports whether a time has come; the zero time never does.
func isPast(at time.Time) bool { return !at.IsZero() && !time.Now().Before(at) }

// fetch asks L2, and then L3; record is what L3 has for L2.
func (c *Cache[K, V]) fetch(ctx context.Context, key K, shown, atLeast uint64) (e *entry[V], record []byte, level Level, err error) {
	if e := c.fromLevel2(ctx, key, shown, atLeast); e != nil {
		return e, nil, LevelShared, nil
	}
	if err := c.enterSlot(ctx); err != nil {
		return nil, nil, 0, err
	}
	defer func() { <-c.slots }()
	c.stats.loads.Add(1)
	e = &entry[V]{position: c.shown(key)} // Before the read: rule 1.
	if e.value, record, e.found, err = c.options.Load(ctx, key); err != nil {
		return nil, nil, 0, err
	}
	if e.found {
		e.weight = c.weigh(key, &e.value)
	}
	c.age(e)
	return e, record, LevelView, nil
}

func (c *Cache[K, V]) weigh(key K, value *V) uint32 {
	weight := uint32(entryBytes)
	if c.options.Weigh != nil {
		weight += c.options.Weigh(key, value)
	}
	return weight
}

// fromLevel2 returns what L2 has, nil when it has nothing that may be used. Its failures are misses.
func (c *Cache[K, V]) fromLevel2(ctx context.Context, key K, shown, atLeast uint64) *entry[V] {
	if c.options.Level2 == nil {
		return nil
	}
	need := min(c.floors.of(c.hash(key)), shown) // Rule 4.
	if shown < atLeast {
		need = atLeast
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Level2Wait)
	defer cancel()
	record, position, found, err := c.options.Level2.Get(ctx, c.options.Key(key), need)
	if err != nil {
		c.stats.sharedErrors.Add(1)
		return nil
	}
	if !found || position < need {
		c.stats.sharedMisses.Add(1)
		return nil
	}
	e := &entry[V]{position: max(position, shown), found: true}
	if e.value, err = c.options.Decode(key, record); err != nil {
		c.stats.sharedErrors.Add(1)
		return nil
	}
	c.stats.sharedHits.Add(1)
	e.weight = c.weigh(key, &e.value)
	c.age(e)
	return e
}

// tellLevel2 offers L2 what L3 said. Whoever asked has their answer already.
func (c *Cache[K, V]) tellLevel2(ctx context.Context, key K, record []byte, position uint64) {
	if c.options.Level2 == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Level2Wait)
	defer cancel()
	if err := c.options.Level2.Set(ctx, c.options.Key(key), record, position); err != nil {
		c.stats.sharedErrors.Add(1)
	}
}

// refresh loads a key in the background, once at a time and no more than RefreshesMax keys at once. When it fails, the old
// entry is served on until it expires.
func (c *Cache[K, V]) refresh(key K) {
	if c.refreshes.Add(1) > int64(c.options.RefreshesMax) {
		c.refreshes.Add(-1)
		return
	}
	f, leads := c.flights.enter(c.hash(key), key, false)
	if !leads {
		c.refreshes.Add(-1)
		return
	}
	begun := c.inBackground(func() {
		defer c.refreshes.Add(-1)
		c.stats.refreshes.Add(1)
		c.fly(context.Background(), key, f, c.shown(key), 0)
		if f.err != nil {
			c.stats.refreshErrors.Add(1)
		}
	})
	if !begun {
		c.refreshes.Add(-1)
		f.err = context.Canceled
		c.flights.leave(c.hash(key), key, f)
	}
}

// enterSlot waits for one of the slots for loads.
func (c *Cache[K, V]) enterSlot(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return nil
	default:
	}
	if c.waiting.Add(1) > int64(c.options.LoadWaitersMax) {
		c.waiting.Add(-1)
		return c.overloaded()
	}
	defer c.waiting.Add(-1)
	timer := time.NewTimer(c.options.LoadWait)
	defer timer.Stop()
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-timer.C:
		return c.overloaded()
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Cache[K, V]) overloaded() error {
	c.stats.overloaded.Add(1)
	return &OverloadedError{Name: c.options.Name, LoadsMax: c.options.LoadsMax, RetryAfter: c.options.LoadWait}
}

// An OverloadedError says that as many loads run and wait as may.
type OverloadedError struct {
	// Name of what was read.
	Name     string
	LoadsMax int
	// RetryAfter is when a place may be free.
	RetryAfter time.Duration
}

func (e *OverloadedError) Error() string {
	return fmt.Sprintf("%d reads of %s are under way and others wait; try again in %v", e.LoadsMax, e.Name, e.RetryAfter)
}
