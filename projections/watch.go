package projections

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/weirhq/weir/domain"
)

// watchersMax bounds the watchers of one lane's orders.
const watchersMax = 1 << 14

// ErrTooManyWatchers says that no more orders of the lane can be watched now.
var ErrTooManyWatchers = errors.New("too many orders are being watched")

// watchers are woken when an order that they watch has changed. Nothing is queued for them: a watcher reads what it has
// not seen off the order's record, so a slow one costs no more than a fast one.
type watchers struct {
	count   atomic.Int64
	mu      sync.Mutex
	byOrder map[domain.OrderID]map[*watcher]struct{}
}

// A watcher holds one signal: there may be something new.
type watcher struct{ woken chan struct{} }

func (w *watchers) init() { w.byOrder = make(map[domain.OrderID]map[*watcher]struct{}) }

// enter adds a watcher of the order; every batch that is written after enter returns and that changes the order wakes
// it. It returns nil when there are too many. The caller leaves when it no longer watches.
func (w *watchers) enter(id domain.OrderID) (entered *watcher, leave func()) {
	if w.count.Add(1) > watchersMax {
		w.count.Add(-1)
		return nil, nil
	}
	entered = &watcher{woken: make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.byOrder[id]
	if all == nil {
		all = make(map[*watcher]struct{})
		w.byOrder[id] = all
	}
	all[entered] = struct{}{}
	return entered, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.count.Add(-1)
		if delete(all, entered); len(all) == 0 {
			delete(w.byOrder, id)
		}
	}
}

// wake wakes the watchers of the orders. REQUIRES: what changed them is written; a watcher that enters after the count
// was looked at reads it.
func (w *watchers) wake(orders []domain.OrderID) {
	if len(orders) == 0 || w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range orders {
		for watching := range w.byOrder[id] {
			select {
			case watching.woken <- struct{}{}:
			default: // It has not looked at the last signal yet.
			}
		}
	}
}
