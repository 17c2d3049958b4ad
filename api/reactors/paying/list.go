package paying

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
)

// Keys of the work list are projections.KeySpaceReactors, one of these tables, and then
//
//	work     order id (16 bytes)   commit, attempts, since, due and provider of the work
//	orphan   payment id            see orphan
//
// A work is an order that may wait for something of a provider, or a payment without an order.
type work struct {
	// key is the order id as it is, or the payment id of an orphan.
	key    string
	orphan *orphan
	// commit is the newest one that asked something of a provider for the order.
	commit uint64
	// provider at whose desk it is.
	provider string
	// attempts counts those in a row after which the provider did not say.
	attempts uint32
	// since is when it came on the list, due when it is to be looked at.
	since, due time.Time

	// taken: somebody works on it. place is where it is in its desk's queue otherwise.
	taken bool
	place int
}

func (w *work) orderID() domain.OrderID { return domain.OrderID([]byte(w.key)) }

// A desk is a provider and the work for it. One without a provider is for those that nobody configured.
type desk struct {
	name     string
	provider *payments.Guarded
	queue    queue
	busy     int
	// closedUntil is when the provider is called again.
	closedUntil time.Time
}

// list is the work list: in the store, and in memory. mu orders the writes of both.
type list struct {
	db     *pebble.DB
	store  *projections.Store
	limits Limits
	// changed wakes serve.
	changed chan struct{}

	mu    sync.Mutex
	all   map[string]*work
	desks map[string]*desk
	err   error // why the list cannot be written
}

// errListFull says that the list holds as much as it may.
var errListFull = errors.New("the work list of payments is full")

func openList(store *projections.Store, desks map[string]*desk, limits Limits) (*list, error) {
	l := &list{db: store.DB(), store: store, limits: limits, changed: make(chan struct{}, 1), all: map[string]*work{}, desks: desks}
	for _, table := range []byte{reactors.TableWork, reactors.TableOrphans} {
		if err := l.load(table); err != nil {
			return nil, fmt.Errorf("read the work list of payments: %w", err)
		}
	}
	return l, nil
}

func (l *list) load(table byte) (err error) {
	iter, err := l.db.NewIter(&pebble.IterOptions{
		LowerBound: []byte{projections.KeySpaceReactors, table}, UpperBound: []byte{projections.KeySpaceReactors, table + 1},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for valid := iter.First(); valid; valid = iter.Next() {
		w, err := decodeWork(table, iter.Key()[2:], iter.Value())
		if err != nil {
			return err
		}
		l.all[w.key] = w
		heap.Push(&l.desk(w.provider).queue, w)
	}
	return iter.Error()
}

// desk returns a provider's desk.
func (l *list) desk(provider string) *desk {
	d, there := l.desks[provider]
	if !there {
		d = &desk{name: provider}
		l.desks[provider] = d
	}
	return d
}

// add puts the orders of the events on the list. An order that is there is due now.
func (l *list) add(events []reactors.Event, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range events {
		provider, asks := asker(events[i].Fact)
		id, isOrder := domain.OrderOf(events[i].Fact)
		if !asks || !isOrder {
			continue
		}
		key := string(id[:])
		w, there := l.all[key]
		switch {
		case there && w.commit >= events[i].Commit:
			continue // It was reacted to before.
		case !there && len(l.all) >= l.limits.WorkMax:
			return errListFull
		case !there:
			w = &work{key: key, provider: provider, since: now}
			l.all[key] = w
		case !w.taken:
			heap.Remove(&l.desk(w.provider).queue, w.place)
			w.provider = provider
		}
		w.commit, w.attempts, w.due = events[i].Commit, 0, now
		if !w.taken {
			heap.Push(&l.desk(w.provider).queue, w)
		}
		if err := l.write(w); err != nil {
			return err
		}
	}
	l.wake()
	return l.err
}

// adopt puts a payment without an order on the list, durably: nothing in the log tells of it.
func (l *list) adopt(paymentID string, o orphan, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, there := l.all[paymentID]; !there {
		if len(l.all) >= l.limits.WorkMax {
			return errListFull
		}
		w := &work{key: paymentID, orphan: &o, provider: o.provider, since: now, due: now}
		l.all[paymentID] = w
		heap.Push(&l.desk(w.provider).queue, w)
		if err := l.write(w); err != nil {
			return err
		}
		l.wake()
	}
	return l.store.Flush()
}

// nudge makes an order that is on the list due now.
func (l *list) nudge(id domain.OrderID, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w, there := l.all[string(id[:])]; there && !w.taken {
		w.due = now
		heap.Fix(&l.desk(w.provider).queue, w.place)
		l.wake()
	}
}

// hurry makes the work that matches due now, as if nobody had tried.
func (l *list) hurry(now time.Time, matches func(*work) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.all {
		if !matches(w) {
			continue
		}
		w.attempts, w.due = 0, now
		if !w.taken {
			heap.Fix(&l.desk(w.provider).queue, w.place)
		}
	}
	l.wake()
}

// serve hands out work that is due until ctx ends. hand does not block.
func (l *list) serve(ctx context.Context, hand func(work, *desk)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, any := l.handOut(time.Now(), hand)
		if any {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.changed:
		case <-timer.C:
		}
		if err := l.fault(); err != nil {
			return err
		}
	}
}

// handOut hands out what is due now, and says when the next is.
func (l *list) handOut(now time.Time, hand func(work, *desk)) (next time.Time, any bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range l.desks {
		for d.busy < l.limits.CallsMax && len(d.queue) > 0 {
			due := d.queue[0].due
			if due.Before(d.closedUntil) {
				due = d.closedUntil
			}
			if due.After(now) {
				if !any || due.Before(next) {
					next, any = due, true
				}
				break
			}
			w := heap.Pop(&d.queue).(*work) //nolint:errcheck // The queue holds nothing else.
			w.taken = true
			d.busy++
			hand(*w, d)
		}
	}
	return next, any
}

// done drops work whose order waited for nothing as of a commit, unless more was asked for since.
func (l *list) done(key string, d *desk, asOf uint64) {
	l.release(key, d, func(w *work) (keep bool) { return w.commit > asOf })
}

// move hands work over to another provider's desk.
func (l *list) move(key string, d *desk, provider string) {
	l.release(key, d, func(w *work) bool {
		w.provider, w.attempts, w.due = provider, 0, time.Now()
		return true
	})
}

// again has work be looked at again after the pause that its attempts make.
func (l *list) again(key string, d *desk, seen uint64) {
	l.release(key, d, func(w *work) bool {
		if w.commit > seen {
			return true // What was asked for since is due as it is.
		}
		w.attempts++
		w.due = time.Now().Add(l.pause(w.attempts))
		return true
	})
}

// closed keeps a provider's work until its breaker lets a call through. It is no attempt.
func (l *list) closed(key string, d *desk, retryAfter time.Duration) {
	l.release(key, d, func(*work) bool {
		d.closedUntil = time.Now().Add(retryAfter)
		return true
	})
}

// pause is how long to wait after so many attempts.
func (l *list) pause(attempts uint32) time.Duration {
	pause := l.limits.CheckBackMin
	for doubled := uint32(1); doubled < attempts && pause < l.limits.CheckBackMax; doubled++ {
		pause *= 2
	}
	pause = min(pause, l.limits.CheckBackMax)
	return pause/2 + rand.N(pause/2+1)
}

// release gives work back that was handed out. settle changes it, and says whether it stays.
func (l *list) release(key string, d *desk, settle func(*work) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.all[key]
	w.taken = false
	d.busy--
	if settle(w) {
		heap.Push(&l.desk(w.provider).queue, w)
		_ = l.write(w) // serve returns it.
	} else {
		delete(l.all, key)
		if err := l.db.Delete(w.dbKey(), pebble.NoSync); err != nil {
			l.err = err
		}
	}
	l.wake()
}

func (l *list) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// fault returns why the list cannot be written.
func (l *list) fault() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// write writes one entry. It is not fsynced: see P1.
func (l *list) write(w *work) error {
	if err := l.db.Set(w.dbKey(), w.encode(), pebble.NoSync); err != nil {
		l.err = fmt.Errorf("write the work list of payments: %w", err)
	}
	return l.err
}

func (w *work) dbKey() []byte {
	table := reactors.TableWork
	if w.orphan != nil {
		table = reactors.TableOrphans
	}
	return append([]byte{projections.KeySpaceReactors, table}, w.key...)
}

func (w *work) encode() []byte {
	value := binary.BigEndian.AppendUint64(nil, w.commit)
	value = binary.BigEndian.AppendUint32(value, w.attempts)
	value = binary.BigEndian.AppendUint64(value, uint64(w.since.UnixNano()))
	value = binary.BigEndian.AppendUint64(value, uint64(w.due.UnixNano()))
	if w.orphan != nil {
		value = w.orphan.append(value)
	}
	return append(value, w.provider...)
}

const workBytesMin = 8 + 4 + 8 + 8

func decodeWork(table byte, key, value []byte) (*work, error) {
	if len(value) < workBytesMin || (table == reactors.TableWork && len(key) != len(domain.OrderID{})) {
		return nil, fmt.Errorf("the entry of %x has %d bytes", key, len(value))
	}
	w := &work{
		key: string(key), commit: binary.BigEndian.Uint64(value), attempts: binary.BigEndian.Uint32(value[8:]),
		since: time.Unix(0, int64(binary.BigEndian.Uint64(value[12:]))), due: time.Unix(0, int64(binary.BigEndian.Uint64(value[20:]))),
	}
	value = value[workBytesMin:]
	if table == reactors.TableOrphans {
		var err error
		if w.orphan, value, err = decodeOrphan(value); err != nil {
			return nil, fmt.Errorf("payment %s: %w", key, err)
		}
		w.orphan.provider = string(value)
	}
	w.provider = string(value)
	return w, nil
}

// queue is work that waits, the one that is due first in front. It implements heap.Interface.
type queue []*work

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	w := x.(*work) //nolint:errcheck // The queue holds nothing else.
	w.place = len(*q)
	*q = append(*q, w)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	w := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	return w
}
