package readpath

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// seedOf returns a fresh seed and says what it is if the test fails.
func seedOf(tb testing.TB) uint64 {
	seed := rand.Uint64()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("seed %d", seed)
		}
	})
	return seed
}

// A shelf is a view in memory: L3. A value is the position at which its key changed, so it says how old it is.
type shelf struct {
	mu     sync.Mutex
	values map[int]uint64
	shown  atomic.Uint64

	loads atomic.Int64
	// before and after a load has read, when they are not nil.
	before, after func(ctx context.Context, key int) error
}

func newShelf(keys int) *shelf {
	s := &shelf{values: make(map[int]uint64)}
	for key := range keys {
		s.values[key] = 1
	}
	s.shown.Store(1)
	return s
}

func (s *shelf) load(ctx context.Context, key int) (uint64, []byte, bool, error) {
	s.loads.Add(1)
	if s.before != nil {
		if err := s.before(ctx, key); err != nil {
			return 0, nil, false, err
		}
	}
	s.mu.Lock()
	value, found := s.values[key]
	s.mu.Unlock()
	if s.after != nil {
		if err := s.after(ctx, key); err != nil {
			return 0, nil, false, err
		}
	}
	if !found {
		return 0, nil, false, nil
	}
	return value, recordOf(value), true, nil
}

func (s *shelf) shownTo(int) uint64 { return s.shown.Load() }

// change changes keys as a view does: it writes, tells the cache, and shows the position.
func (s *shelf) change(c *Cache[int, uint64], keys ...int) uint64 {
	position := s.shown.Load() + 1
	s.write(position, keys...)
	c.Changed(position, keys...)
	s.shown.Store(position)
	return position
}

func (s *shelf) write(position uint64, keys ...int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range keys {
		s.values[key] = position
	}
}

func recordOf(value uint64) []byte {
	return []byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}
}

func decode(_ int, record []byte) (uint64, error) {
	if len(record) != 4 {
		return 0, errors.New("a record of another length")
	}
	return uint64(record[0])<<24 | uint64(record[1])<<16 | uint64(record[2])<<8 | uint64(record[3]), nil
}

// shared is a Level2 in memory.
type shared struct {
	mu      sync.Mutex
	entries map[string]sharedEntry
	gets    map[string]int
	down    error
}

type sharedEntry struct {
	value    []byte
	position uint64
}

func newShared() *shared {
	return &shared{entries: make(map[string]sharedEntry), gets: make(map[string]int)}
}

var errDown = errors.New("out of reach")

func (s *shared) Get(_ context.Context, key string, atLeast uint64) ([]byte, uint64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets[key]++
	if s.down != nil {
		return nil, 0, false, s.down
	}
	e, found := s.entries[key]
	if !found || e.position < atLeast {
		return nil, 0, false, nil
	}
	return e.value, e.position, true, nil
}

func (s *shared) Set(_ context.Context, key string, value []byte, position uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down != nil {
		return s.down
	}
	if s.entries[key].position < position {
		s.entries[key] = sharedEntry{value, position}
	}
	return nil
}

func keyText(key int) string { return string(rune('a'+key%26)) + string(rune(key)) }

// pass lets time pass in a bubble of synctest, where nobody waits for it.
func pass(d time.Duration) { <-time.After(d) }

// get fails the test when the key cannot be read.
func get(t *testing.T, c *Cache[int, uint64], key int, atLeast uint64) Answer[uint64] {
	t.Helper()
	answer, err := c.Get(t.Context(), key, atLeast)
	if err != nil {
		t.Fatalf("key %d, at least %d: %v", key, atLeast, err)
	}
	return answer
}
