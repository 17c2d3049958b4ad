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

func TestASecondIsMarkedOnceForAllOfItsOrders(t *testing.T) {
	tea, cup := domain.Line{SKU: "tea", Units: 1}, domain.Line{SKU: "cup", Units: 1}
	first, second := someOrder("ann", 1, tea, cup), someOrder("bob", 2, tea)
	second.Pool = "tea@flash"
	third := someOrder("ann", 3, cup)
	third.OrderID = domain.NewOrderID(scenarioStart.Add(1001*time.Millisecond), third.OrderID.Partition(), [10]byte{})
	given(t, &orderMarksProjection, first, second, domain.ProductPut{SKU: "mug"}).when(
		third,
		domain.PaymentStarted{OrderID: first.OrderID}, domain.PaymentStarted{OrderID: second.OrderID}, domain.PaymentDeclined{OrderID: first.OrderID},
		domain.NoteAdded{OrderID: first.OrderID}, domain.OrderExpired{OrderID: third.OrderID, UserID: "ann"},
	).then(map[string]string{
		"order " + first.OrderID.String():                  "waits for a payment",
		"SKU tea in orders of 2026-11-11T00:00:00Z":        "",
		"SKU cup in orders of 2026-11-11T00:00:00Z":        "",
		"SKU cup in orders of 2026-11-11T00:00:01Z":        "",
		"campaign flash in orders of 2026-11-11T00:00:00Z": "",
		"PaymentStarted in orders of 2026-11-11T00:00:00Z": "",
		"OrderExpired in orders of 2026-11-11T00:00:01Z":   "",
	})
	given(t, &orderMarksProjection, first).when(someOrder("ann", 4, tea, domain.Line{Units: 1})).refused("names no SKU")
}

// searched pages through what a query finds.
func (n *node) searched(query SearchQuery) []domain.OrderID {
	n.tb.Helper()
	var ids []domain.OrderID
	for pages := 0; ; pages++ {
		page, _, err := n.views.SearchOrders(n.tb.Context(), query, Min{})
		if err != nil {
			n.tb.Fatalf("search %+v: %v", query, err)
		}
		for _, view := range page.Orders {
			ids = append(ids, view.Order.ID)
		}
		if page.Next == "" {
			return ids
		}
		if query.PageToken == page.Next || pages > 10_000 {
			n.tb.Fatalf("search %+v does not come further than %v", query, ids)
		}
		query.PageToken = page.Next
	}
}

func TestASearchFindsWhatTheModelHasOverAllLanes(t *testing.T) {
	// In the first an order waits for a payment again after the one that was to be voided was found to be stray.
	for _, seed := range []uint64{3169208192996558649, seedOf(t)} {
		searchWhatTheModelHas(t, seed)
	}
}

func searchWhatTheModelHas(t *testing.T, seed uint64) {
	t.Helper()
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	n := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for _, s := range shops {
		for range 300 {
			s.step()
			if s.random.IntN(20) == 0 {
				s.now = s.now.Add(time.Duration(s.random.IntN(3000)) * time.Millisecond)
			}
		}
		n.reach(s)
	}
	random := shops[0].random
	begin, end := time.Unix(1_700_000_000, 0), shops[0].now
	found := 0
	for range 300 {
		s := shops[random.IntN(2)]
		query := SearchQuery{PageSize: 1 + random.IntN(30), seeksMax: random.IntN(2)}
		if random.IntN(2) == 0 {
			query.Status = domain.OrderStatus(1 + random.IntN(10))
		}
		if random.IntN(3) == 0 {
			query.Payment = domain.PaymentState(1 + random.IntN(7))
		}
		if random.IntN(2) == 0 {
			query.SKU = s.skus[random.IntN(len(s.skus))]
		}
		if random.IntN(4) == 0 {
			query.CampaignID = "flash"
		}
		if random.IntN(4) == 0 {
			query.UserID = s.users[random.IntN(len(s.users))]
		}
		if random.IntN(3) == 0 {
			query.From = begin.Add(time.Duration(random.Int64N(int64(end.Sub(begin)))))
		}
		if random.IntN(3) == 0 {
			query.To = begin.Add(time.Duration(random.Int64N(int64(end.Sub(begin)))))
		}
		var want []domain.OrderID
		for _, s := range shops {
			for id, history := range s.orders {
				at, order := id.Time().UnixMilli(), history[len(history)-1].Order
				if query.matches(&order) && (query.From.IsZero() || at >= query.From.UnixMilli()) && (query.To.IsZero() || at < query.To.UnixMilli()) {
					want = append(want, id)
				}
			}
		}
		want = newestFirst(want)
		if got := n.searched(query); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("seed %d: search %+v:\ngot  %v\nwant %v", seed, query, got, want)
		}
		found += len(want)
	}
	if found == 0 {
		t.Fatalf("seed %d: no search found anything", seed)
	}
}

func TestASearchForWhatIsRareSkipsTheRest(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.openLane()
	var rare domain.OrderID
	for i := range 300 {
		s.now = s.now.Add(time.Second)
		placed := s.place(s.users[0], 0)
		if i == 10 {
			placed = s.place(s.users[0], 1)
			rare = placed.OrderID
		}
		s.commit(placed)
	}
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	page, _, err := n.views.SearchOrders(t.Context(), SearchQuery{SKU: s.skus[1], seeksMax: 1}, Min{})
	if err != nil || len(page.Orders) != 1 || page.Orders[0].Order.ID != rare || page.Next != "" {
		t.Fatalf("got %+v, %v, want order %s within %d seeks", page, err, rare, searchSeeksMin)
	}
	// What has no mark is looked for in every order, a bounded number of them a page.
	page, _, err = n.views.SearchOrders(t.Context(), SearchQuery{Payment: domain.PayNone, PageSize: 100, seeksMax: 1}, Min{})
	if err != nil || len(page.Orders) != searchSeeksMin || page.Next == "" {
		t.Fatalf("got %d orders, %v, want %d and more to follow", len(page.Orders), err, searchSeeksMin)
	}
}

// Most orders are paid soon: what still waits for its payment is found without them.
func TestASearchForWhatWaitsForAPaymentSkipsWhatDoesNot(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.openLane()
	var waits []domain.OrderID
	for i := range 300 {
		s.now = s.now.Add(time.Millisecond) // Many in a second.
		placed := s.place(s.users[0], i%2)
		payment := domain.PaymentID(placed.OrderID, 1)
		started := domain.PaymentStarted{OrderID: placed.OrderID, PaymentID: payment, Amount: placed.Total}
		s.commit(placed)
		switch i {
		case 10: // Nothing happens.
			waits = append(waits, placed.OrderID)
		case 20:
			s.commit(started)
			s.commit(domain.PaymentDeclined{OrderID: placed.OrderID, PaymentID: payment})
			waits = append(waits, placed.OrderID)
		case 30:
			s.commit(domain.OrderExpired{OrderID: placed.OrderID, UserID: s.users[0]})
		default:
			s.commit(started)
		}
	}
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	for _, query := range []SearchQuery{
		{Status: domain.StatusPendingPayment, seeksMax: 1},
		{Status: domain.StatusPendingPayment, SKU: s.skus[0], seeksMax: 1},
		{Status: domain.StatusPendingPayment, To: s.now, seeksMax: 1},
	} {
		page, _, err := n.views.SearchOrders(t.Context(), query, Min{})
		if err != nil || page.Next != "" {
			t.Fatalf("seed %d: %+v: got a page with more to follow (%v), want all of it within %d seeks", s.seed, query, err, searchSeeksMin)
		}
		var got []domain.OrderID
		for _, view := range page.Orders {
			got = append(got, view.Order.ID)
		}
		if want := newestFirst(waits); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("seed %d: %+v: got %v, want %v", s.seed, query, got, want)
		}
	}
}

func TestASearchTokenIsOfOneSearch(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.openLane()
	for range 5 {
		s.commit(s.place(s.users[0], 0))
	}
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	query := SearchQuery{SKU: s.skus[0], PageSize: 2}
	page, _, err := n.views.SearchOrders(t.Context(), query, Min{})
	if err != nil || len(page.Orders) != 2 || page.Next == "" {
		t.Fatalf("got %+v, %v", page, err)
	}
	orders, _, err := n.views.Orders(t.Context(), OrdersQuery{UserID: s.users[0], PageSize: 2}, Min{})
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []SearchQuery{
		{PageToken: page.Next},
		{PageToken: page.Next, SKU: s.skus[1]},
		{PageToken: page.Next, SKU: s.skus[0], Status: domain.StatusPaid},
		{PageToken: page.Next, SKU: s.skus[0], Payment: domain.PayCaptured},
		{PageToken: page.Next, SKU: s.skus[0], CampaignID: "flash"},
		{PageToken: page.Next, SKU: s.skus[0], UserID: s.users[0]},
		{PageToken: page.Next, SKU: s.skus[0], From: time.Unix(1, 0)},
		{PageToken: page.Next, SKU: s.skus[0], To: s.now.Add(time.Hour)},
		{PageToken: page.Next + "A", SKU: s.skus[0]},
		{PageToken: orders.Next, SKU: s.skus[0]},
		{PageToken: "x", SKU: s.skus[0]},
	} {
		if _, _, err := n.views.SearchOrders(t.Context(), other, Min{}); !errors.Is(err, ErrBadPageToken) {
			t.Errorf("%+v: got %v, want ErrBadPageToken", other, err)
		}
	}
	query.PageToken, query.PageSize = page.Next, 100
	rest, _, err := n.views.SearchOrders(t.Context(), query, Min{})
	if err != nil || len(rest.Orders) != 3 || slices.ContainsFunc(rest.Orders, func(v OrderView) bool { return v.Order.ID == page.Orders[1].Order.ID }) {
		t.Fatalf("the second page: got %+v, %v, want the other 3 orders", rest, err)
	}
}
