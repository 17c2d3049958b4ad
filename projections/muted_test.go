package projections

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// A toldObserver counts what it is told.
type toldObserver struct {
	passing, changing, changed, swapped atomic.Int64
}

func (*toldObserver) Opened(uint32, eventstore.Position)    {}
func (*toldObserver) Forgetting(uint32, uint64)             {}
func (o *toldObserver) Swapped(uint32)                      { o.swapped.Add(1) }
func (o *toldObserver) Passing(uint32, eventstore.Position) { o.passing.Add(1) }
func (o *toldObserver) Changing(*Changes)                   { o.changing.Add(1) }
func (o *toldObserver) Changed(*Changes)                    { o.changed.Add(1) }

func (o *toldObserver) told() int64 { return o.passing.Load() + o.changing.Load() + o.changed.Load() }

// An appendedLog counts what is appended to it.
type appendedLog struct {
	eventstore.Log
	appended atomic.Int64
}

func (l *appendedLog) Append(record eventstore.Record) eventstore.Pending {
	l.appended.Add(1)
	return l.Log.Append(record)
}

// TestARebuildTellsNobodyOfWhatItTakesIn rebuilds every view while somebody watches an order, a stock and a user, and copies are kept
// elsewhere: a runner tells them of each commit, once.
func TestARebuildTellsNobodyOfWhatItTakesIn(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(200)
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	sku := placed.Lines[0].SKU
	n := openNode(t, vfs.NewMem(), s.log)
	r, observer := n.runners[0], new(toldObserver)
	r.observer = observer
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := n.store.Close(); err != nil {
			t.Error(err)
		}
	})
	// settled waits until everybody is told of what the views hold.
	settled := func() {
		t.Helper()
		n.reach(s)
		if err := r.atBoundary(t.Context(), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	settled()
	if observer.told() == 0 {
		t.Fatalf("seed %d: the observer is told nothing", s.seed)
	}
	order, leave := r.watchers.enter(placed.OrderID)
	defer leave()
	stock, leave := r.stockWatchers.enter(sku)
	defer leave()
	user, leave := r.userWatchers.enter(placed.UserID)
	defer leave()
	woken := func() (who []string) {
		for name, signal := range map[string]chan struct{}{"the order": order.woken, "the stock": stock.woken, "the user": user.woken} {
			select {
			case <-signal:
				who = append(who, name)
			default:
			}
		}
		return who
	}

	before, log := observer.told(), &appendedLog{Log: s.log}
	b := n.rebuilder(log)
	b.run(t)
	for _, p := range Projections {
		if err := b.Start(p.Name, RebuildOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if statuses := b.settle(t); len(statuses) > 0 {
		t.Fatalf("seed %d: got %+v, want every view swapped", s.seed, statuses)
	}
	settled()
	if told := observer.told() - before; told != 0 || observer.swapped.Load() != int64(len(Projections)) {
		t.Errorf("seed %d: the observer was told %d times of commits and %d times of a swap, want 0 and %d", s.seed, told, observer.swapped.Load(), len(Projections))
	}
	if who := woken(); len(who) > 0 {
		t.Errorf("seed %d: who watches %v was woken", s.seed, who)
	}
	if appended := log.appended.Load(); appended > 0 {
		t.Errorf("seed %d: %d commits were appended to the log", s.seed, appended)
	}

	// Both generations are fed from now on, and still everybody is told once.
	before = observer.changed.Load()
	r.Offer(s.commit(domain.NoteAdded{OrderID: placed.OrderID, UserID: placed.UserID, By: "clerk"}, domain.StockReceived{SKU: sku, Units: 1, ReceivedTotal: 1}))
	settled()
	if told := observer.changed.Load() - before; told != 1 {
		t.Errorf("seed %d: the observer was told %d times of one commit", s.seed, told)
	}
	if who := woken(); len(who) != 3 {
		t.Errorf("seed %d: only who watches %v was woken by a commit", s.seed, who)
	}
	user.mu.Lock()
	defer user.mu.Unlock()
	if len(user.changed) != 1 {
		t.Errorf("seed %d: the user's watch has %v to send, want the order once", s.seed, user.changed)
	}
}
