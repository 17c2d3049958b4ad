package projections

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/weirhq/weir/domain"
)

// An OrderWatch asks to follow one order.
type OrderWatch struct {
	OrderID domain.OrderID
	// UserID is the user whose order it has to be, as with OrderOf; empty means any.
	UserID string
	// After is the number of the newest commit of the order that the caller has seen; 0 asks for the order as it is now
	// first.
	After uint64
}

// WatchOrder sends an order as it is now, or what it missed since After, and then the order after each commit that changes
// it: none is left out, none is sent twice, save that an order that becomes parked is sent again to say so. It returns when ctx ends, when send fails, or when the view's runner stops
// (ErrStopped).
func (v *Views) WatchOrder(ctx context.Context, query OrderWatch, min Min, send func(OrderView, Freshness) error) error {
	r := v.runners[v.topology.LaneOf(query.OrderID.Partition())]
	// Enter first and read then: a change that the read does not show wakes the watcher.
	watching, leave := r.watchers.enter(query.OrderID)
	if watching == nil {
		return ErrTooManyWatchers
	}
	defer leave()
	fold := newOrderFold(query.OrderID)
	toldParked := false
	sendNow := func(fresh Freshness) error {
		if fold.revision <= query.After && fresh.State != StateParked {
			return nil
		}
		toldParked = fresh.State == StateParked
		return send(OrderView{Order: fold.order, Revision: Revision{Lane: r.lane, Commit: fold.revision}}, fresh)
	}
	// What the caller has seen is folded and not sent; without it, all that there is counts as one change.
	fresh, err := v.readParked(ctx, r, query.OrderID, query.UserID, min, func() error {
		return foldStored(v.db, r.prefix(&ordersProjection), fold, query.UserID, AsOf{Commit: query.After}, nil)
	})
	if err == nil && query.After == 0 {
		err = sendNow(fresh)
	} else if err == nil {
		err = v.readOrder(r, fold, query.UserID, func() error { return sendNow(fresh) })
	}
	if err == nil && fresh.State == StateParked && !toldParked {
		err = sendNow(fresh)
	}
	if err != nil {
		return err
	}
	for {
		select {
		case <-watching.woken:
		case <-r.stopped:
			return ErrStopped
		case <-ctx.Done():
			return ctx.Err()
		}
		fresh := r.freshness(&ordersProjection)
		parked, _ := r.parksOrder(query.OrderID, query.UserID)
		fresh = fresh.parked(parked)
		toldParked = toldParked && parked
		if err := v.readOrder(r, fold, query.UserID, func() error { return sendNow(fresh) }); err != nil {
			return err
		}
		if parked && !toldParked {
			if err := sendNow(fresh); err != nil {
				return err
			}
		}
	}
}

// watchersMax bounds the watchers of one lane's orders, users or stock.
const watchersMax = 1 << 14

// ErrTooManyWatchers says that no more of the lane can be watched now.
var ErrTooManyWatchers = errors.New("too much is being watched")

// watchers are woken when a key that they watch has changed. Nothing is queued for them: a watcher reads what it has
// not seen off the view, so a slow one costs no more than a fast one.
type watchers[K comparable] struct {
	count atomic.Int64
	mu    sync.Mutex
	byKey map[K]map[*watcher]struct{}
}

// A watcher holds one signal: there may be something new.
type watcher struct{ woken chan struct{} }

func newWatcher() *watcher { return &watcher{woken: make(chan struct{}, 1)} }

func (w *watcher) wake() {
	select {
	case w.woken <- struct{}{}:
	default: // It has not looked at the last signal yet.
	}
}

func (w *watchers[K]) init() { w.byKey = make(map[K]map[*watcher]struct{}) }

// enter adds a watcher of the key; every batch that is written after enter returns and that changes the key wakes it. It
// returns nil when there are too many. The caller leaves when it no longer watches.
func (w *watchers[K]) enter(key K) (entered *watcher, leave func()) {
	entered = newWatcher()
	if leave = w.add(key, entered); leave == nil {
		return nil, nil
	}
	return entered, leave
}

// add is enter for a watcher that watches elsewhere, too. It returns nil when there are too many.
func (w *watchers[K]) add(key K, watching *watcher) (leave func()) {
	if w.count.Add(1) > watchersMax {
		w.count.Add(-1)
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.byKey[key]
	if all == nil {
		all = make(map[*watcher]struct{})
		w.byKey[key] = all
	}
	all[watching] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.count.Add(-1)
		if delete(all, watching); len(all) == 0 {
			delete(w.byKey, key)
		}
	}
}

// wake wakes the watchers of the keys. REQUIRES: what changed them is written; a watcher that enters after the count
// was looked at reads it.
func (w *watchers[K]) wake(keys []K) {
	if len(keys) == 0 || w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range keys {
		for watching := range w.byKey[key] {
			watching.wake()
		}
	}
}

// wakeAll wakes every watcher: what they read is another generation of the view, which may be newer, or the runner has stopped.
func (w *watchers[K]) wakeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, all := range w.byKey {
		for watching := range all {
			watching.wake()
		}
	}
}
