package projections

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// A UserWatch asks to follow all orders of a user.
type UserWatch struct {
	UserID string
	// Token says where to go on: the Token of the newest change that the caller has, or the Watch of a list. Empty begins
	// with what changes from now on.
	Token string
}

// A UserChange is an order of the user after a commit that changed it.
type UserChange struct {
	OrderView
	// Token resumes the watch after this change.
	Token string
}

// Limits of watching the orders of a user.
const (
	// userWatchScanMax bounds the orders that are looked at for what a caller has missed.
	userWatchScanMax = 2000
	// userWatchQueueMax bounds the changes that wait for one watcher; one that misses some looks at all of the user's orders.
	userWatchQueueMax = 256
)

// ErrWatchTooOld says that a watch cannot be resumed from where its caller is: list the orders and watch from there.
var ErrWatchTooOld = errors.New("the watch cannot be resumed from so far back")

// WatchUser sends each order of a user after each commit that changes it, in the order of the log: none is left out, none is
// sent twice, also when it goes on from a token. It returns when ctx ends, when send fails, when the view's runner stops
// (ErrStopped), when the view is being rebuilt (ErrBehind), when the token is not one of this user's watches (ErrBadPageToken), or when too much was missed since
// (ErrWatchTooOld). It calls ready when it knows where it begins, before it sends anything.
func (v *Views) WatchUser(ctx context.Context, query UserWatch, min Min, ready func() error, send func(UserChange, Freshness) error) error {
	if query.UserID == "" || len(query.UserID) > userIDBytesMax {
		return fmt.Errorf("a user id has %d bytes, want 1 to %d", len(query.UserID), userIDBytesMax)
	}
	r := v.runners[v.topology.LaneOf(eventstore.PartitionOf(query.UserID))]
	var from watchCursor
	var seenHeals uint64
	if query.Token != "" {
		var err error
		if from, seenHeals, err = v.seal.openWatch(query.UserID, query.Token); err != nil {
			return err
		}
	}
	// Enter first and read the position then: what is written after it wakes the watcher.
	watching, leave := r.userWatchers.enter(query.UserID)
	if watching == nil {
		return ErrTooManyWatchers
	}
	defer leave()
	if _, err := v.await(ctx, min); err != nil {
		return err
	}
	if r.freshness(&ordersByUserProjection, &ordersProjection).State == StateRebuilding {
		return ErrBehind // It could not tell what it left out.
	}
	heals, err := healsOf(v.db, r.lane, query.UserID)
	if err != nil {
		return err
	}
	if query.Token != "" && seenHeals != heals {
		return ErrWatchTooOld // What was parked when it was passed is there now.
	}
	w := userReader{views: v, runner: r, userID: query.UserID, heals: heals, send: send}
	upTo := r.applied.Load().Number
	if err := ready(); err != nil {
		return err
	}
	if query.Token == "" {
		w.at = after(upTo)
	} else {
		w.at = from
		if err := w.sendMissed(ctx, upTo); err != nil {
			return err
		}
	}
	for {
		select {
		case <-watching.woken:
		case <-r.stopped:
			return ErrStopped
		case <-ctx.Done():
			return ctx.Err()
		}
		changed, upTo, missed, err := watching.take()
		if err != nil {
			return err
		}
		if missed {
			err = w.sendMissed(ctx, upTo)
		} else {
			err = w.sendChanges(v.db, r.prefix(&ordersProjection), changed, upTo)
		}
		if err != nil {
			return err
		}
	}
}

// watchCursor is a place in the changes of a user's orders: commits are in order, and in a commit the orders' ids.
type watchCursor struct {
	commit uint64
	order  domain.OrderID
}

// after returns the place after all that a commit changed.
func after(commit uint64) watchCursor {
	c := watchCursor{commit: commit}
	for i := range c.order {
		c.order[i] = 0xff
	}
	return c
}

func (c watchCursor) compare(other watchCursor) int {
	return cmp.Or(cmp.Compare(c.commit, other.commit), bytes.Compare(c.order[:], other.order[:]))
}

// sealWatch returns the token of a place. Heals is how often parked events of the user's orders had been taken in by then.
func (s pageSeal) sealWatch(userID string, at watchCursor, heals uint64) string {
	cursor := binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(at.order)+8), at.commit)
	cursor = append(cursor, at.order[:]...)
	if heals > 0 {
		cursor = binary.BigEndian.AppendUint64(cursor, heals)
	}
	return s.seal(cursor, "watch", userID)
}

func (s pageSeal) openWatch(userID, token string) (at watchCursor, heals uint64, err error) {
	cursor, err := s.open(token, "watch", userID)
	if err != nil {
		return watchCursor{}, 0, err
	}
	switch len(cursor) {
	case 8 + len(at.order):
	case 8 + len(at.order) + 8:
		heals = binary.BigEndian.Uint64(cursor[8+len(at.order):])
	default:
		return watchCursor{}, 0, ErrBadPageToken
	}
	at.commit = binary.BigEndian.Uint64(cursor)
	copy(at.order[:], cursor[8:])
	return at, heals, nil
}

// A userReader sends the changes of a user's orders that come after at.
type userReader struct {
	views  *Views
	runner *Runner
	userID string
	heals  uint64
	at     watchCursor
	send   func(UserChange, Freshness) error
}

// sendMissed sends what changed in any of the user's orders up to a commit.
func (w *userReader) sendMissed(ctx context.Context, upTo uint64) (err error) {
	if w.at.compare(after(upTo)) >= 0 {
		return nil
	}
	index, records := w.runner.prefix(&ordersByUserProjection), w.runner.prefix(&ordersProjection)
	// One snapshot for the index and the records.
	snapshot := w.views.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	first := appendUser(append([]byte(nil), index[:]...), w.userID)
	entries, err := snapshot.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		return fmt.Errorf("read the orders of %s: %w", w.userID, err)
	}
	var ids []domain.OrderID
	for valid := entries.First(); valid; valid = entries.Next() {
		if len(ids) == userWatchScanMax {
			return errors.Join(ErrWatchTooOld, entries.Close())
		}
		id, _, err := readIndexEntry(entries.Key(), entries.Value())
		if err != nil {
			return errors.Join(err, entries.Close())
		}
		ids = append(ids, id)
	}
	if err := errors.Join(entries.Error(), entries.Close()); err != nil {
		return fmt.Errorf("read the orders of %s: %w", w.userID, err)
	}
	return w.sendChanges(snapshot, records, ids, upTo)
}

// sendChanges sends what changed in some orders after w.at and up to a commit, and moves w.at there.
func (w *userReader) sendChanges(from pebble.Reader, records prefix, ids []domain.OrderID, upTo uint64) error {
	type changedOrder struct {
		fold   *orderFold
		record []byte
	}
	orders := make(map[domain.OrderID]changedOrder)
	var changes []watchCursor
	anyParked := false
	for _, id := range ids {
		if _, seen := orders[id]; seen {
			continue
		}
		parked, _ := w.runner.parksOrder(id, "")
		anyParked = anyParked || parked
		record, err := readRecord(from, records, id)
		if parked && errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		before := len(changes)
		for entry, err := range ReadEntries(record) {
			if err != nil {
				return fmt.Errorf("order %s: %w", id, err)
			}
			change := watchCursor{commit: entry.Number, order: id}
			if entry.Number <= upTo && change.compare(w.at) > 0 && (len(changes) == before || changes[len(changes)-1] != change) {
				changes = append(changes, change)
			}
		}
		if len(changes) > before {
			orders[id] = changedOrder{newOrderFold(id), record}
		}
	}
	slices.SortFunc(changes, watchCursor.compare)
	fresh := w.runner.freshness().parked(anyParked || w.runner.parksUser(w.userID, &ordersProjection, &ordersByUserProjection))
	for _, change := range changes {
		order := orders[change.order]
		if err := order.fold.read(order.record, AsOf{Commit: change.commit}, nil); err != nil {
			return err
		}
		err := w.send(UserChange{
			OrderView: OrderView{Order: order.fold.order, Revision: Revision{Lane: w.runner.lane, Commit: change.commit}},
			Token:     w.views.seal.sealWatch(w.userID, change, w.heals),
		}, fresh)
		if err != nil {
			return err
		}
	}
	w.at = after(upTo)
	return nil
}

// userWatchers are told which orders of their user have changed.
type userWatchers struct {
	count  atomic.Int64
	mu     sync.Mutex
	byUser map[string]map[*userWatcher]struct{}
}

// A userWatcher queues what changed since its watcher looked.
type userWatcher struct {
	woken chan struct{}

	mu      sync.Mutex
	changed []domain.OrderID
	// upTo is the commit up to which changed is all that changed, unless some were missed.
	upTo   uint64
	missed bool
	// healed says that parked events of the user's orders were taken in, which it has passed.
	healed bool
}

func (w *userWatchers) init() { w.byUser = make(map[string]map[*userWatcher]struct{}) }

// enter adds a watcher of a user's orders, as watchers.enter does.
func (w *userWatchers) enter(userID string) (entered *userWatcher, leave func()) {
	if w.count.Add(1) > watchersMax {
		w.count.Add(-1)
		return nil, nil
	}
	entered = &userWatcher{woken: make(chan struct{}, 1)}
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.byUser[userID]
	if all == nil {
		all = make(map[*userWatcher]struct{})
		w.byUser[userID] = all
	}
	all[entered] = struct{}{}
	return entered, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.count.Add(-1)
		if delete(all, entered); len(all) == 0 {
			delete(w.byUser, userID)
		}
	}
}

// wake tells watchers what changed up to a commit: users[i] is the user of orders[i]. REQUIRES: as with watchers.wake.
func (w *userWatchers) wake(orders []domain.OrderID, users []string, upTo uint64) {
	if len(orders) == 0 || w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, userID := range users {
		for watching := range w.byUser[userID] {
			watching.add(orders[i], upTo)
		}
	}
}

func (w *userWatcher) add(id domain.OrderID, upTo uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.upTo = upTo
	if len(w.changed) < userWatchQueueMax {
		w.changed = append(w.changed, id)
	} else {
		w.missed = true
	}
	select {
	case w.woken <- struct{}{}:
	default: // It has not looked at the last signal yet.
	}
}

// take returns what changed since it was called last.
func (w *userWatcher) take() (changed []domain.OrderID, upTo uint64, missed bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.healed {
		return nil, 0, false, ErrWatchTooOld
	}
	changed, missed = w.changed, w.missed
	w.changed, w.missed = nil, false
	return changed, w.upTo, missed, nil
}
