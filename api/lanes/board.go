package lanes

import (
	"sync"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// A board is what a lane's machine and its escrow tell each other: the escrow posts verdicts that Decide reads, the machine
// notes what the escrow must hear of. Nothing on it is durable; what is lost is asked for again.
type board struct {
	clock eventstore.Clock

	mu sync.RWMutex
	// verdicts by SKU, and the newest inflow of the centre that the lane has heard of.
	verdicts map[string]verdict
	// watched SKUs are scarce: units that come free there are noted.
	watched map[string]time.Time // until when
	// notes are the accounts of watched SKUs in which units came free.
	notes map[string]domain.Account
	// moved says that the list of units on their way to other lanes has grown.
	moved bool
	// resubmitting counts the orders by SKU that were woken and not decided yet.
	resubmitting map[string]int
	// pledged are the units by SKU that orders which wait for another SKU are about to take.
	pledged map[string]int64
	// poke is signalled when there is a note or something has moved.
	poke chan struct{}
}

// A verdict says that no more than free units of a SKU can come to the lane, as of an inflow of the centre. It counts until
// more flowed in, or until its time is over. Without soldOut it only remembers the inflow, so that an older one is known.
type verdict struct {
	soldOut   bool
	free      int64
	reclaimed uint64 // newest return of this lane that the centre has
	inflow    int64
	until     time.Time
}

// skusMax bounds the SKUs that a board or an escrow keeps something about. More of them are scarce at once only when a
// whole catalogue is; verdicts are then not kept, and orders are told to come again.
const skusMax = 1 << 16

func newBoard(clock eventstore.Clock) *board {
	return &board{
		clock: clock, verdicts: map[string]verdict{}, watched: map[string]time.Time{}, notes: map[string]domain.Account{},
		resubmitting: map[string]int{}, pledged: map[string]int64{}, poke: make(chan struct{}, 1),
	}
}

// verdict returns the verdict on a SKU while it counts. It is no fact: a replay never asks for it, since a refusal leaves nothing
// in the log.
func (b *board) verdict(sku string) verdict {
	b.mu.RLock()
	v, found := b.verdicts[sku]
	b.mu.RUnlock()
	if !found || !b.clock().Before(v.until) {
		return verdict{}
	}
	return v
}

// post takes a verdict, or with soldOut false what lifts one. An older one changes nothing.
func (b *board) post(sku string, v verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known, found := b.verdicts[sku]
	if v.inflow < known.inflow || (!found && len(b.verdicts) >= skusMax) || (!v.soldOut && v.inflow == known.inflow && found) {
		return
	}
	b.verdicts[sku] = v
}

// watch makes the machine note units of a SKU that come free.
func (b *board) watch(sku string, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, found := b.watched[sku]; found || len(b.watched) < skusMax {
		b.watched[sku] = until
	}
}

// watches reports whether a SKU is watched.
func (b *board) watches(sku string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, watched := b.watched[sku]
	return watched
}

// note tells the escrow that units came free in an account, or that the list of units on their way has grown.
func (b *board) note(freed map[string]domain.Account, moved bool) {
	b.mu.Lock()
	for sku, account := range freed {
		b.notes[sku] = account
	}
	b.moved = b.moved || moved
	b.mu.Unlock()
	select {
	case b.poke <- struct{}{}:
	default:
	}
}

// take returns what was noted since the last time.
func (b *board) take() (notes map[string]domain.Account, moved bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.notes) > 0 {
		notes = b.notes
		b.notes = map[string]domain.Account{}
	}
	moved = b.moved
	b.moved = false
	return notes, moved
}

// resubmit counts orders that were woken (1) and then decided (-1).
func (b *board) resubmit(sku string, change int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.resubmitting[sku] += change; b.resubmitting[sku] == 0 {
		delete(b.resubmitting, sku)
	}
}

// resubmits reports whether orders that were woken are not decided yet.
func (b *board) resubmits(sku string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.resubmitting[sku] > 0
}

// pledge counts units that stay for an order that waits (sign 1), until it was decided again or has left (-1).
func (b *board) pledge(pledges []domain.Release, sign int64) {
	if len(pledges) == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range pledges {
		if b.pledged[p.SKU] += sign * p.Units; b.pledged[p.SKU] == 0 {
			delete(b.pledged, p.SKU)
		}
	}
}

// pledgedUnits returns how many units of a SKU are to stay.
func (b *board) pledgedUnits(sku string) int64 {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.pledged[sku]
}

// reset forgets what an escrow has said: one that begins later has not said it. What orders have pledged is theirs.
func (b *board) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.verdicts)
	clear(b.watched)
	clear(b.notes)
	b.moved = false
}

// expire forgets what does not count any more, and reports whether anything is left.
func (b *board) expire(now time.Time) (left bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for sku, v := range b.verdicts {
		if !now.Before(v.until) {
			delete(b.verdicts, sku)
		}
	}
	for sku, until := range b.watched {
		if !now.Before(until) {
			delete(b.watched, sku)
		}
	}
	return len(b.verdicts)+len(b.watched) > 0
}
