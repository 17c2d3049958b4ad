package projections

import (
	"context"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// stockWatch follows a SKU until it sends a state that is last, or fails.
func (n *node) stockWatch(ctx context.Context, query StockWatch, last StockView, each func(StockChange) error) error {
	done := errors.New("seen")
	err := n.views.WatchStock(ctx, query, Min{Wait: patience}, noted, func(change StockChange, _ Freshness) error {
		if err := each(change); err != nil {
			return err
		}
		if change.StockView == last {
			return done
		}
		return nil
	})
	if errors.Is(err, done) {
		return nil
	}
	return err
}

func TestAStockWatchEndsWithTheNewestStateAndRepeatsNone(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	n := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for _, s := range shops {
		s.step()
		s.step()
		n.reach(s)
	}
	sku := shops[0].skus[0]
	// Lane 1 sells of it, too: the watch is woken by every lane.
	receive := func(s *shop) {
		n.runners[s.lane].Offer(s.commit(domain.StockReceived{SKU: sku, Units: 1, ReceivedTotal: 1}))
	}
	first, _, err := n.views.Stock(t.Context(), sku, Min{})
	if err != nil {
		t.Fatal(err)
	}
	const changes = 200
	last := first
	last.Received, last.Central = last.Received+changes, last.Central+changes
	begun, ended := make(chan struct{}), make(chan error, 1)
	var states []StockChange
	go func() {
		ended <- n.stockWatch(t.Context(), StockWatch{SKU: sku}, last, func(change StockChange) error {
			if len(states) == 0 {
				close(begun)
			}
			states = append(states, change)
			return nil
		})
	}()
	<-begun
	for i := range changes {
		receive(shops[i%2])
	}
	if err := <-ended; err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if states[0].StockView != first {
		t.Fatalf("seed %d: it began with %+v, want %+v", seed, states[0], first)
	}
	for i := 1; i < len(states); i++ {
		if states[i].StockView == states[i-1].StockView {
			t.Fatalf("seed %d: state %d is a repeat: %+v", seed, i, states[i])
		}
	}

	// What the caller has is not sent again; what it missed is, as one change.
	newest := states[len(states)-1]
	ctx, leave := context.WithCancel(t.Context())
	err = n.views.WatchStock(ctx, StockWatch{SKU: sku, Token: newest.Token}, Min{}, func() error { leave(); return nil }, func(change StockChange, _ Freshness) error {
		t.Errorf("seed %d: sent %+v again", seed, change)
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("seed %d: got %v, want the caller's end", seed, err)
	}
	receive(shops[0])
	receive(shops[1])
	n.reach(shops[0])
	n.reach(shops[1])
	last.Received, last.Central = last.Received+2, last.Central+2
	count := 0
	err = n.stockWatch(t.Context(), StockWatch{SKU: sku, Token: newest.Token}, last, func(StockChange) error { count++; return nil })
	if err != nil || count != 1 {
		t.Fatalf("seed %d: %d states were sent, %v, want the newest alone", seed, count, err)
	}

	for _, query := range []StockWatch{
		{SKU: shops[0].skus[1], Token: newest.Token}, {SKU: sku, Token: newest.Token + "A"}, {SKU: sku, Token: "x"},
	} {
		err := n.views.WatchStock(t.Context(), query, Min{}, noted, func(StockChange, Freshness) error { return nil })
		if !errors.Is(err, ErrBadPageToken) {
			t.Errorf("%+v: got %v, want ErrBadPageToken", query, err)
		}
	}
	err = n.views.WatchStock(t.Context(), StockWatch{SKU: "none"}, Min{Wait: patience}, noted, func(StockChange, Freshness) error { return nil })
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("a SKU that is not there: %v", err)
	}
	for _, r := range n.runners {
		if count, keys := r.stockWatchers.count.Load(), len(r.stockWatchers.byKey); count != 0 || keys != 0 {
			t.Errorf("seed %d: %d watchers of %d keys are left behind in lane %d", seed, count, keys, r.lane)
		}
	}
}

func TestAStockWatchEndsWithTheRunnerOfAnyLane(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	broken := &brokenLog{Log: shops[1].log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		record, err := cursor.Next(ctx)
		if err == nil && record.Number == 3 {
			return eventstore.Record{}, &eventstore.ChainError{Lane: 1, Number: 3, Reason: "a test broke it"}
		}
		return record, err
	}}
	n := startNode(t, vfs.NewMem(), shops[0].log, broken)
	for _, s := range shops {
		s.step()
		s.step()
		n.reach(s)
	}
	begun, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- n.views.WatchStock(t.Context(), StockWatch{SKU: shops[0].skus[0]}, Min{}, noted, func(StockChange, Freshness) error {
			close(begun)
			return nil
		})
	}()
	<-begun
	shops[1].step() // Lane 1's views stop at it.
	if err := <-ended; !errors.Is(err, ErrStopped) {
		t.Fatalf("seed %d: got %v, want ErrStopped", seed, err)
	}
}
