package projections

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
)

func TestSalesAreCountedByMinuteSKUAndCurrency(t *testing.T) {
	tea := domain.Line{SKU: "tea", Units: 2, PriceMinor: 500, DiscountMinor: 100, TaxMinor: 90}
	cup := domain.Line{SKU: "cup", Units: 1, PriceMinor: 300, TaxMinor: 30, Tax: domain.Tax{RateBps: 1000, Included: true}}
	first, second := someOrder("ann", 1, tea, cup), someOrder("bob", 2, tea)
	second.Total.Currency = "JPY"
	payment := domain.PaymentID(first.OrderID, 1)
	stray := domain.PaymentID(second.OrderID, 1)
	given(t, &salesProjection, first, second, domain.ProductPut{SKU: "mug"}).when(
		domain.PaymentCaptured{OrderID: first.OrderID, PaymentID: payment},
		domain.OrderExpired{OrderID: second.OrderID, UserID: "bob"},
		domain.StrayPaymentFound{OrderID: second.OrderID, PaymentID: stray, Amount: domain.Money{Currency: "JPY", Minor: 990}},
		domain.PaymentRefunded{OrderID: second.OrderID, RefundID: domain.RefundID(stray, 1), Amount: domain.Money{Currency: "JPY", Minor: 990}},
	).when(
		domain.OrderCancelled{OrderID: first.OrderID, UserID: "ann"},
		domain.PaymentRefunded{OrderID: second.OrderID, RefundID: domain.RefundID(stray, 2), Amount: domain.Money{Currency: "JPY", Minor: 1}},
		domain.PaymentRefunded{OrderID: first.OrderID, RefundID: domain.RefundID(payment, 1), Amount: domain.Money{Currency: "EUR", Minor: 1290}},
	).then(map[string]string{
		"tea in EUR at 2026-11-11T00:00:00Z": "placed 1 of 2 for 990, paid 1 of 2 for 990, cancelled 1 of 2 for 990",
		"cup in EUR at 2026-11-11T00:00:00Z": "placed 1 of 1 for 300, paid 1 of 1 for 300, cancelled 1 of 1 for 300",
		"all in EUR at 2026-11-11T00:00:00Z": "placed 1 of 3 for 1290, paid 1 of 3 for 1290, cancelled 1 of 3 for 1290, refunded 1 for 1290",
		"tea in JPY at 2026-11-11T00:00:00Z": "placed 1 of 2 for 990, expired 1 of 2 for 990",
		"all in JPY at 2026-11-11T00:00:00Z": "placed 1 of 2 for 990, expired 1 of 2 for 990",
		"order " + first.OrderID.String():    "tea=2 for 990, cup=1 for 300 in EUR",
		"order " + second.OrderID.String():   "tea=2 for 990 in JPY",
		"payment " + stray:                   "stray",
	})
	given(t, &salesProjection, first).when(someOrder("ann", 3, tea, domain.Line{Units: 1})).refused("names no SKU")
	given(t, &salesProjection, first).when(domain.OrderExpired{OrderID: second.OrderID}).refused("was not placed")
}

// sales is what a model's commits sold, by start of the step, currency and SKU ("" for all).
func (s *shop) sales(sku string, step time.Duration, sums map[SalesRow]Sales) {
	for _, history := range s.orders {
		for i, view := range history {
			before := domain.Order{}
			if i > 0 {
				before = history[i-1].Order
			}
			order := view.Order
			count := func(field func(*Sales) *SalesCount) {
				for i := range order.Lines {
					l := &order.Lines[i]
					if sku != "" && l.SKU != sku {
						continue
					}
					row := SalesRow{Start: order.UpdatedAt.Truncate(step), Currency: order.Total.Currency}
					sum := sums[row]
					c := field(&sum)
					c.Units, c.Minor = c.Units+l.Units, c.Minor+l.Payable()
					if sku != "" || i == 0 {
						c.Orders++
					}
					sums[row] = sum
				}
			}
			captured := func(o *domain.Order) bool {
				return slices.ContainsFunc(o.Payments, func(p domain.Payment) bool { return p.Taken.Minor > 0 && !p.Stray })
			}
			if before.Status == 0 {
				count(func(s *Sales) *SalesCount { return &s.Placed })
			}
			if captured(&order) && !captured(&before) {
				count(func(s *Sales) *SalesCount { return &s.Paid })
			}
			if order.Ending == domain.EndingCancelled && before.Ending == domain.EndingNone {
				count(func(s *Sales) *SalesCount { return &s.Cancelled })
			}
			if order.Ending == domain.EndingExpired && before.Ending == domain.EndingNone {
				count(func(s *Sales) *SalesCount { return &s.Expired })
			}
			for i := range order.Refunds {
				refund := &order.Refunds[i]
				stray := slices.ContainsFunc(order.Payments, func(p domain.Payment) bool { return p.ID == refund.PaymentID && p.Stray })
				if sku != "" || stray || refund.State != domain.RefundSucceeded || i < len(before.Refunds) && before.Refunds[i].State == domain.RefundSucceeded {
					continue
				}
				row := SalesRow{Start: order.UpdatedAt.Truncate(step), Currency: order.Total.Currency}
				sum := sums[row]
				sum.Refunds, sum.RefundedMinor = sum.Refunds+1, sum.RefundedMinor+refund.Amount.Minor
				sums[row] = sum
			}
		}
	}
}

func TestSalesAreThoseOfTheModelOverAllLanes(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	fs := vfs.NewMem()
	n := startNode(t, fs, shops[0].log, shops[1].log)
	begin := shops[0].now
	for _, s := range shops {
		for i := range 400 {
			s.step()
			if s.random.IntN(20) == 0 {
				s.now = s.now.Add(time.Duration(s.random.IntN(300)) * time.Second)
			}
			if i == 200 { // Half of them from the store, half from the log.
				n.reach(s)
				n.stop()
				n = startNode(t, fs, shops[0].log, shops[1].log)
			}
		}
		n.reach(s)
	}
	n.reach(shops[0])
	end := shops[0].now
	if shops[1].now.After(end) {
		end = shops[1].now
	}
	for _, step := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour} {
		for _, sku := range append([]string{"", "none"}, append(slices.Clone(shops[0].skus), shops[1].skus...)...) {
			want := map[SalesRow]Sales{}
			for _, s := range shops {
				s.sales(sku, step, want)
			}
			rows, _, err := n.views.Sales(t.Context(), SalesQuery{SKU: sku, From: begin, To: end.Add(time.Nanosecond), Step: step}, Min{})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			got := map[SalesRow]Sales{}
			for i, row := range rows {
				got[SalesRow{Start: row.Start, Currency: row.Currency}] = row.Sales
				if i > 0 && row.Start.Before(rows[i-1].Start) {
					t.Errorf("seed %d: row %d comes before the one before it", seed, i)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("seed %d: sales of %q by %v:\ngot  %+v\nwant %+v", seed, sku, step, got, want)
			}
			if sku == "" && len(want) == 0 {
				t.Fatalf("seed %d: nothing was sold", seed)
			}
		}
	}
	// A range is cut at its ends, to whole steps.
	all, _, err := n.views.Sales(t.Context(), SalesQuery{From: begin, To: end.Add(time.Minute), Step: time.Minute}, Min{})
	if err != nil || len(all) < 3 {
		t.Fatalf("seed %d: got %d rows, %v", seed, len(all), err)
	}
	middle := all[1 : len(all)-1]
	some, _, err := n.views.Sales(t.Context(), SalesQuery{From: middle[0].Start.Add(time.Second), To: middle[len(middle)-1].Start.Add(time.Second), Step: time.Minute}, Min{})
	if err != nil || fmt.Sprint(some) != fmt.Sprint(middle) {
		t.Fatalf("seed %d: got %+v, %v, want %+v", seed, some, err, middle)
	}
	for _, query := range []SalesQuery{
		{From: begin, To: begin.Add(25 * time.Hour), Step: time.Minute},
		{From: begin, To: begin.Add(32 * 24 * time.Hour), Step: time.Hour},
		{From: begin, To: begin.Add(64 * 24 * time.Hour), Step: 24 * time.Hour},
		{From: begin, To: begin.Add(-time.Hour), Step: time.Minute},
		{From: begin, To: end, Step: time.Second},
		{From: begin, To: end},
	} {
		if _, _, err := n.views.Sales(t.Context(), query, Min{}); !errors.Is(err, ErrSalesRange) {
			t.Errorf("%+v: got %v, want ErrSalesRange", query, err)
		}
	}
}
