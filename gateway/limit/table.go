package limit

import (
	"fmt"
	"hash/maphash"
	"math"
	"math/bits"
	"sync"
	"time"
)

// A Rate is how often something may happen.
type Rate struct {
	// PerSecond on average; 0 means no limit.
	PerSecond float64 `yaml:"per_second"`
	// Burst may happen at once; by default what is allowed in a second, at least 1.
	Burst int `yaml:"burst"`
}

// Limits of a Rate.
const (
	perSecondMin = 0.001
	perSecondMax = 1e8
	burstMax     = 1_000_000_000
)

// Validate says what is wrong with the rate.
func (r Rate) Validate() error {
	switch {
	case r.PerSecond != 0 && !(r.PerSecond >= perSecondMin && r.PerSecond <= perSecondMax):
		return fmt.Errorf("per_second is %v, want 0 (no limit), or %v to %v", r.PerSecond, perSecondMin, perSecondMax)
	case r.Burst < 0 || r.Burst > burstMax:
		return fmt.Errorf("burst is %d, want 0 (the default) to %d", r.Burst, burstMax)
	case r.PerSecond == 0 && r.Burst != 0:
		return fmt.Errorf("burst is %d without per_second", r.Burst)
	}
	return nil
}

// spacing returns the time between two events, and by how much the arrival of one may be early, in ns: the two constants of the generic cell
// rate algorithm (ITU-T I.371, virtual scheduling).
func (r Rate) spacing() (interval, tolerance int64) {
	burst := float64(r.Burst)
	if burst == 0 {
		burst = max(1, r.PerSecond)
	}
	exact := float64(time.Second) / r.PerSecond
	return max(1, int64(exact)), int64(min(exact*burst, math.MaxInt64/4))
}

// A cell is the state of one rate: when the next event would be on time, in ns since a start. At or before now, nothing is owed, and the cell
// is as good as one that was never used.
type cell int64

// take takes one event, or says how long to wait for it.
func (c *cell) take(now, interval, tolerance int64) (wait time.Duration, ok bool) {
	next := max(int64(*c), now) + interval
	if early := next - now - tolerance; early > 0 {
		return time.Duration(early), false
	}
	*c = cell(next)
	return 0, true
}

// A table keeps the cells of very many keys in bounded memory. A key keeps its cell for as long as it owes anything: then a new key takes it, which
// loses nothing. A key that finds no such cell shares one with others in its place until there is: nobody can make the table
// forget what they owe by asking under other names, and where names fall cannot be guessed.
type table struct {
	interval, tolerance int64
	seed                maphash.Seed
	mask                uint64
	buckets             []bucket
}

// bucketKeys is chosen so that a bucket is two cache lines.
const bucketKeys = 7

type bucket struct {
	mu     sync.Mutex
	shared cell
	keys   [bucketKeys]uint64 // hashes
	cells  [bucketKeys]cell
}

// newTable makes a table for so many keys that owe something at a time.
func newTable(rate Rate, keysMax int) *table {
	buckets := 1 << bits.Len(uint(keysMax/bucketKeys))
	t := &table{seed: maphash.MakeSeed(), mask: uint64(buckets - 1), buckets: make([]bucket, buckets)}
	t.interval, t.tolerance = rate.spacing()
	return t
}

// take takes one event of a key, or says how long to wait for it. now is in ns since a start, and not 0.
func (t *table) take(now int64, key string) (wait time.Duration, ok bool) {
	hash := maphash.String(t.seed, key)
	b := &t.buckets[hash&t.mask]
	b.mu.Lock()
	defer b.mu.Unlock()
	free := -1
	for i := range b.keys {
		if b.keys[i] == hash {
			return b.cells[i].take(now, t.interval, t.tolerance)
		}
		if free < 0 && int64(b.cells[i]) <= now {
			free = i
		}
	}
	if free < 0 {
		return b.shared.take(now, t.interval, t.tolerance)
	}
	b.keys[free] = hash
	// Who shared a cell until now does not leave its debt behind.
	b.cells[free] = b.shared
	return b.cells[free].take(now, t.interval, t.tolerance)
}
