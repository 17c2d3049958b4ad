package projections

import (
	"context"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// compactions is Pebble's own scheduler, of one database, that makes room for whoever calls the node.
//
// Every flush overlaps everything below it, so a compaction of L0 takes a processor for a second and more. While the node is asked
// for anything, compactions work in shifts, as a rebuild does (see pace), unless L0 is deep: writes would wait for them soon.
type compactions struct {
	*pebble.ConcurrencyLimitScheduler
	pace pace
	l0   depth
}

const (
	// deepSublevels is how deep L0 may be for a compaction to make room: half of what stops writes.
	deepSublevels = l0StopWrites / 2
	// depthFor is how long a look at L0 is good for. To look takes Pebble's lock, and L0 changes no faster than memtables fill.
	depthFor = 100 * time.Millisecond
)

// newCompactions returns the scheduler of a database whose node was asked for things as often as asked says, which may be nil.
func newCompactions(asked func() uint64) *compactions {
	return &compactions{
		// Pebble's other one looks every 100 ms whether more compactions are allowed at a time; here it is always one.
		ConcurrencyLimitScheduler: pebble.NewConcurrencyLimitSchedulerWithNoPeriodicGrantingForTest(),
		pace:                      pace{asked: asked},
	}
}

// Register implements pebble.CompactionScheduler.
func (c *compactions) Register(goroutines int, db pebble.DBForCompaction) {
	c.ConcurrencyLimitScheduler.Register(goroutines, paced{db, c})
}

// TrySchedule implements pebble.CompactionScheduler.
func (c *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	ok, grant := c.ConcurrencyLimitScheduler.TrySchedule()
	if !ok {
		return false, nil
	}
	return true, c.begin(grant)
}

func (c *compactions) begin(grant pebble.CompactionGrantHandle) *compaction {
	return &compaction{CompactionGrantHandle: grant, l0: &c.l0, shift: c.pace.newShift()}
}

// paced is the database as Pebble's scheduler sees it.
type paced struct {
	pebble.DBForCompaction
	compactions *compactions
}

// Schedule implements pebble.DBForCompaction.
func (d paced) Schedule(grant pebble.CompactionGrantHandle) bool {
	return d.DBForCompaction.Schedule(d.compactions.begin(grant))
}

// A compaction is one that may run.
type compaction struct {
	pebble.CompactionGrantHandle
	l0    *depth
	shift *shift
}

// CumulativeStats implements pebble.CompactionGrantHandle. Pebble calls it with every 128 keys, and lets it hold the compaction.
func (c *compaction) CumulativeStats(stats pebble.CompactionGrantHandleStats) {
	c.CompactionGrantHandle.CumulativeStats(stats)
	if !c.l0.deep() {
		_ = c.shift.yield(context.Background()) // It fails when its context ends.
	}
}

// depth tells whether L0 is deep. One that watches no database says that it is.
type depth struct {
	mu     sync.Mutex
	db     *pebble.DB
	looked time.Time
	isDeep bool
}

func (d *depth) watch(db *pebble.DB) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.db = db
}

func (d *depth) deep() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.db == nil {
		return true
	}
	if now := time.Now(); now.Sub(d.looked) > depthFor {
		d.isDeep, d.looked = d.db.Metrics().Levels[0].Sublevels >= deepSublevels, now
	}
	return d.isDeep
}
