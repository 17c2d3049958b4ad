package domain_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
)

// TestAnOrderWaitsForItsFirstKeyAndKeepsWhatComesBefore: whatever the order of its lines.
func TestAnOrderWaitsForItsFirstKeyAndKeepsWhatComesBefore(t *testing.T) {
	w := newWorld(2)
	lines := []domain.LineRequest{{SKU: "d", Units: 1}, {SKU: "b", Units: 1}, {SKU: "a", Units: 2}, {SKU: "c", Units: 3}}
	for _, line := range lines {
		w.products[line.SKU] = domain.Product{SKU: line.SKU, Title: line.SKU, Price: domain.Money{Currency: "EUR", Minor: 1}}
	}
	// Lane 1 is home to none of them. It has enough of a and c, and nothing of b and d.
	for sku, units := range map[string]int64{"a": 5, "c": 3} {
		w.lanes[1].accounts[sku] = domain.Account{Allotted: units, Taken: domain.Tally{Number: 1, Units: units}}
	}
	for range 2 {
		_, err := domain.Decide(w.lanes[1], domain.PlaceOrder{
			OrderID: domain.NewOrderID(epoch, 1, [10]byte{}), UserID: "ann", PayBy: epoch.Add(time.Hour), Lines: lines,
		}, epoch)
		var moving *domain.StockMovingError
		if !errors.As(err, &moving) || moving.SKU != "b" || !slices.Equal(moving.Pledges, []domain.Release{{SKU: "a", Units: 2}}) {
			t.Fatalf("got %+v, want it to wait for b and to keep 2 of a", err)
		}
		slices.Reverse(lines)
	}
}

func TestWhatIsPledgedIsNotGivenBack(t *testing.T) {
	for _, c := range []struct{ keep, least, want int64 }{{0, 1, 5}, {0, 8, 8}, {3, 1, 5}, {3, 8, 7}, {9, 8, 1}, {10, 1, 0}, {11, 1, 0}} {
		w := newWorld(2)
		w.lanes[1].accounts["a"] = domain.Account{Allotted: 10, Taken: domain.Tally{Number: 1, Units: 10}}
		events, err := domain.Decide(w.lanes[1], domain.ReturnStock{SKU: "a", Keep: c.keep, Least: c.least}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		var got int64
		for _, e := range events {
			got += e.(domain.StockReturned).Units
		}
		if got != c.want {
			t.Errorf("of 10 units %d are kept and at least %d wanted: %d are given back, want %d", c.keep, c.least, got, c.want)
		}
	}
}
