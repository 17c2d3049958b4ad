package lanes

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

var euros5 = domain.Money{Currency: "EUR", Minor: 500}

// campaign puts a campaign of tea that is open for an hour.
func (n *node) campaign(t testing.TB, requestID string, units, userUnitsMax int64) *Reply {
	t.Helper()
	return n.must(t, catalogRequest("tea", requestID, domain.PutCampaign{
		CampaignID: "flash", SKU: "tea", Price: euros5, OpensAt: start, ClosesAt: start.Add(time.Hour), Units: units, UserUnitsMax: userUnitsMax,
	}))
}

func couponRequest(code, requestID string, terms domain.CouponTerms) Request {
	return catalogRequest(code, requestID, domain.PutCoupon{Code: code, Terms: terms})
}

// placeAt is place at a campaign, with a coupon, or both.
func placeAt(userID, requestID, campaignID, couponCode string, units int64) Request {
	command := domain.PlaceOrder{
		UserID: userID, Lines: []domain.LineRequest{{SKU: "tea", Units: units}}, CampaignID: campaignID, CouponCode: couponCode,
	}
	return Request{
		UserID: userID, RequestID: requestID, Fingerprint: fingerprint(command),
		Partition: eventstore.PartitionOf(userID), Command: command,
	}
}

// used asks a node that stands still what a user holds.
func (n *node) used(t testing.TB, userID, of string) int64 {
	t.Helper()
	m, err := OpenMachine(MachineOptions{Lane: 0, Topology: eventstore.Topology{Lanes: 1}, Store: n.store, Catalog: NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	return m.Used(domain.Use{Of: of, UserID: userID})
}

// states are ways in which a node comes to its state: it must not matter which.
func (n *node) states(t testing.TB) map[string]func() {
	return map[string]func(){
		"at once":                  func() {},
		"after a restart":          func() { n.restart(t) },
		"after the state was lost": func() { n.fs = vfs.NewMem(); n.restart(t) },
	}
}

func TestALimitPerUserHoldsOverAllOrdersAndSurvives(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 100)
	put := n.campaign(t, "campaign", 50, 3)
	if put.Campaign.Pool != "tea@flash" || put.Campaign.UserUnitsMax != 3 {
		t.Fatalf("put %+v", put.Campaign)
	}
	n.must(t, placeAt("ann", "r1", "flash", "", 2))
	cancelled := n.must(t, placeAt("ann", "r2", "flash", "", 1))
	n.must(t, cancelOrder(cancelled.Order, "r3"))
	for name, reach := range n.states(t) {
		reach()
		if again := n.campaign(t, "campaign", 50, 3); !reflect.DeepEqual(again, put) {
			t.Errorf("%s: the campaign is answered\n%+v, first\n%+v", name, again, put)
		}
		var limit *domain.CampaignLimitError
		if _, err := n.Submit(t.Context(), placeAt("ann", "r4", "flash", "", 2)); !errors.As(err, &limit) || limit.Already != 2 {
			t.Errorf("%s: ann wants 2 more: %v, want a limit of 3 with 2 held", name, err)
		}
		if got := n.used(t, "ann", "tea@flash"); got != 2 {
			t.Errorf("%s: ann holds %d units, want 2", name, got)
		}
	}
	n.must(t, placeAt("ann", "r5", "flash", "", 1))
	n.advance(PayWithinDefault) // All of them expire, and give back what they held.
	eventually(t, "ann may buy 3 again", func() bool {
		_, err := n.Submit(t.Context(), placeAt("ann", "r6", "flash", "", 3))
		return err == nil
	})
}

func TestAHundredConcurrentOrdersOfOneUserStayWithinHerLimit(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 200)
	n.campaign(t, "campaign", 100, 1)
	n.must(t, couponRequest("ONCE", "coupon", domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000, UserUsesMax: 1}))
	for _, c := range []struct {
		name    string
		request func(user string, attempt int) Request
		refusal error
		placed  int
	}{
		// The same request again is answered with the order that was placed; another one is refused.
		{"duplicates", func(user string, _ int) Request { return placeAt(user, "same", "flash", "", 1) }, nil, 100},
		{"orders", func(user string, attempt int) Request { return placeAt(user, fmt.Sprint("r", attempt), "flash", "", 1) }, domain.ErrCampaignLimit, 1},
		{"redemptions", func(user string, attempt int) Request { return placeAt(user, fmt.Sprint("r", attempt), "", "ONCE", 1) }, domain.ErrCouponLimit, 1},
	} {
		var group sync.WaitGroup
		var mu sync.Mutex
		placed, orders := 0, map[domain.OrderID]bool{}
		for attempt := range 100 {
			group.Go(func() {
				reply, err := n.Submit(t.Context(), c.request("user-"+c.name, attempt))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					placed++
					orders[reply.Order.ID] = true
				case !errors.Is(err, c.refusal):
					t.Errorf("%s, attempt %d: %v", c.name, attempt, err)
				}
			})
		}
		group.Wait()
		if placed != c.placed || len(orders) != 1 {
			t.Errorf("%s: %d were answered with %d orders, want %d with 1", c.name, placed, len(orders), c.placed)
		}
	}
}

func TestACampaignsUnitsReachEveryLaneAndNoneIsSoldTwice(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 200)
	n.campaign(t, "campaign", 23, 0)
	sold, attempt := 0, 0
	eventually(t, "every unit of the campaign is sold", func() bool {
		attempt++
		_, err := n.Submit(t.Context(), placeAt(fmt.Sprintf("user-%d", attempt), "r", "flash", "", 1))
		switch {
		case err == nil:
			sold++
		case errors.Is(err, domain.ErrOutOfStock), errors.Is(err, domain.ErrCampaignNotFound):
		default:
			t.Fatal(err)
		}
		return sold == 23
	})
	for attempt := range 50 {
		if _, err := n.Submit(t.Context(), placeAt(fmt.Sprintf("late-%d", attempt), "r", "flash", "", 1)); !errors.Is(err, domain.ErrOutOfStock) {
			t.Fatalf("after all 23 were sold: %v (I3)", err)
		}
	}
}

// A campaign's units are called back from the lanes that have them, and what is left goes back as well.
func TestACampaignTakesItsUnitsFromWhereverTheyAre(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 100)
	n.must(t, catalogRequest("tea", "preheat", domain.PreheatStock{SKU: "tea", UnitsPerLane: 25}))
	put := func(requestID string, units int64) (reply *Reply, err error) {
		eventually(t, fmt.Sprintf("the campaign has %d units, or is refused them", units), func() bool {
			reply, err = n.Submit(t.Context(), catalogRequest("tea", requestID, domain.PutCampaign{
				CampaignID: "flash", SKU: "tea", Price: euros5, OpensAt: start, ClosesAt: start.Add(time.Hour), Units: units,
			}))
			return !errors.Is(err, domain.ErrStockMoving)
		})
		return reply, err
	}
	if reply, err := put("90", 90); err != nil || reply.Campaign.Units != 90 {
		t.Fatalf("90 of 100 units: %+v, %v", reply.Campaign, err)
	}
	if _, err := put("101", 101); !errors.Is(err, domain.ErrOutOfStock) {
		t.Fatalf("101 of 100 units: %v (I3)", err)
	}
	sold := 0
	for attempt := 0; sold < 5; attempt++ {
		if _, err := n.Submit(t.Context(), placeAt(fmt.Sprintf("user-%d", attempt), "r", "flash", "", 1)); err == nil {
			sold++
		} else if !errors.Is(err, domain.ErrStockMoving) && !errors.Is(err, domain.ErrCampaignNotFound) {
			t.Fatal(err)
		}
	}
	if _, err := put("4", 4); !errors.Is(err, domain.ErrOutOfStock) {
		t.Fatalf("the campaign gives up units that were sold: %v (I3)", err)
	}
	if reply, err := put("5", 5); err != nil || reply.Campaign.Units != 5 {
		t.Fatalf("the campaign gives back the 85 that are left: %+v, %v", reply.Campaign, err)
	}
	eventually(t, "all 95 are the product's again", func() bool {
		_, err := n.Submit(t.Context(), place("ann", "all", "tea", 95))
		return err == nil
	})
}

func TestAnAccountIsReadAsItWasWritten(t *testing.T) {
	for _, account := range []domain.Account{
		{Received: 5, Central: 2, Granted: []domain.LaneTally{{Lane: 1, Tally: domain.Tally{Number: 1, Units: 3}}}},
		{Received: 5, Central: 5, MovedOut: 7},
	} {
		if got, err := decodeAccount(encodeAccount(account)); err != nil || !got.Equal(account) {
			t.Errorf("got %+v, %v, want %+v", got, err, account)
		}
	}
}

func TestACouponIsRedeemedAsOftenInAllAsItMayBeOverAllLanes(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 400)
	n.must(t, couponRequest("TEN", "coupon", domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000, UsesMax: 11}))
	redeemed, attempt := 0, 0
	var last domain.Order
	eventually(t, "every redemption is made", func() bool {
		attempt++
		reply, err := n.Submit(t.Context(), placeAt(fmt.Sprintf("user-%d", attempt), "r", "", "TEN", 1))
		switch {
		case err == nil:
			redeemed++
			last = reply.Order
		case errors.Is(err, domain.ErrCouponLimit), errors.Is(err, domain.ErrOutOfStock):
		default:
			t.Fatal(err)
		}
		return redeemed == 11
	})
	for attempt := range 50 {
		if _, err := n.Submit(t.Context(), placeAt(fmt.Sprintf("late-%d", attempt), "r", "", "TEN", 1)); !errors.Is(err, domain.ErrCouponLimit) {
			t.Fatalf("after all 11 were redeemed: %v", err)
		}
	}
	n.must(t, cancelOrder(last, "cancel"))
	n.must(t, placeAt(last.UserID, "again", "", "TEN", 1)) // The redemption came back to its lane.
}

func TestACampaignOpensAndClosesByLogTime(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 10)
	n.must(t, catalogRequest("tea", "campaign", domain.PutCampaign{
		CampaignID: "flash", SKU: "tea", Price: euros5, OpensAt: start.Add(30 * time.Second), ClosesAt: start.Add(time.Minute), Units: 5,
	}))
	var notOpen *domain.CampaignNotOpenError
	if _, err := n.Submit(t.Context(), placeAt("ann", "r1", "flash", "", 1)); !errors.As(err, &notOpen) || notOpen.OpensIn != 30*time.Second {
		t.Fatalf("before it opens: %v, want it to open in 30 s", err)
	}
	n.advance(30 * time.Second)
	if reply := n.must(t, placeAt("ann", "r1", "flash", "", 1)); reply.Order.Total != euros5 {
		t.Errorf("the order costs %v, want %v", reply.Order.Total, euros5)
	}
	n.advance(30 * time.Second)
	if _, err := n.Submit(t.Context(), placeAt("ann", "r2", "flash", "", 1)); !errors.Is(err, domain.ErrCampaignClosed) {
		t.Errorf("when it has closed: %v", err)
	}
}

// An event that is decided and not durable yet counts, and counts no more once the lane has dropped it.
func TestUsesInFlightCountUntilTheyAreDropped(t *testing.T) {
	store, err := projections.OpenStore("state", projections.StoreOptions{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	m, err := OpenMachine(MachineOptions{Lane: 0, Topology: eventstore.Topology{Lanes: 1}, Store: store, Catalog: NewCatalog()})
	if err != nil {
		t.Fatal(err)
	}
	use := domain.Use{Of: "tea@flash", UserID: "ann"}
	placed := domain.OrderPlaced{
		OrderID: domain.NewOrderID(start, 1, [10]byte{}), UserID: "ann", Lines: []domain.Line{{SKU: "tea", Units: 2}}, Pool: "tea@flash",
	}
	m.speculate(placed, start)
	m.speculate(domain.CampaignPut{Pool: "tea@flash", Units: 1}, start)
	m.speculate(domain.CouponPut{Code: "TEN"}, start)
	if got := m.Used(use); got != 2 {
		t.Errorf("in flight: %d, want 2", got)
	}
	m.Rollback()
	_, campaign := m.Campaign("tea@flash")
	_, coupon := m.Coupon("TEN")
	if got := m.Used(use); got != 0 || campaign || coupon {
		t.Errorf("after the rollback: %d used, campaign %t, coupon %t", got, campaign, coupon)
	}
}

func TestAProductOfBeforeThereWereTaxesIsRead(t *testing.T) {
	// As it was written: commit 7, its time, currency, price and title.
	old := append([]byte{7, 0, 0, 0, 0, 0, 0, 0, 9, 3}, "EUR"...)
	old = append(old, 0x96, 0x15) // 1355, zigzag.
	old = append(old, "A tea"...)
	entry, err := decodeProduct("tea", old)
	want := CatalogEntry{
		Product: domain.Product{SKU: "tea", Title: "A tea", Price: domain.Money{Currency: "EUR", Minor: 1355}, UpdatedAt: time.Unix(0, 9).UTC()}, Commit: 7,
	}
	if err != nil || entry != want {
		t.Errorf("got %+v, %v, want %+v", entry, err, want)
	}
	for length := range 10 {
		if _, err := decodeProduct("tea", old[:length]); err == nil {
			t.Errorf("%d bytes of it are read", length)
		}
	}
}

func BenchmarkPlaceAtCampaign(b *testing.B) {
	n := startNode(b, 1)
	n.stock(b, "tea", domain.ReceiveUnitsMax)
	n.campaign(b, "campaign", domain.ReceiveUnitsMax, 1)
	b.SetParallelism(128)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		user := fmt.Sprintf("user-%p", pb)
		for i := 0; pb.Next(); i++ {
			if _, err := n.Submit(b.Context(), placeAt(fmt.Sprint(user, i), "r", "flash", "", 1)); err != nil {
				b.Error(err)
			}
		}
	})
}
