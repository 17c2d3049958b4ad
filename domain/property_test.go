package domain_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weirhq/weir/domain"
)

// Rapid prints the seed of a failure, and takes one: go test -rapid.seed=N.

var skus = []string{"mug", "tee", "fan"}

// drawCommand draws a command that a lane of the world may be given; stock moves are drawn by the machines.
func drawCommand(t *rapid.T, w *world, ids []domain.OrderID) domain.Command {
	id := rapid.SampledFrom(ids).Draw(t, "order")
	if rapid.Bool().Draw(t, "life") {
		return drawLife(t, w, id)
	}
	switch rapid.SampledFrom([]string{"place", "place", "place", "campaign order", "cancel", "expire", "put"}).Draw(t, "command") {
	case "campaign order":
		return domain.PlaceOrder{
			OrderID: id, UserID: rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "user"), PayBy: w.now.Add(time.Minute), CampaignID: "flash",
			Lines:      []domain.LineRequest{{SKU: rapid.SampledFrom(skus).Draw(t, "sku"), Units: rapid.Int64Range(1, 3).Draw(t, "units")}},
			CouponCode: rapid.SampledFrom([]string{"", "TEN"}).Draw(t, "coupon"),
		}
	case "place":
		place := domain.PlaceOrder{OrderID: id, UserID: "alice", PayBy: w.now.Add(time.Minute)}
		place.CouponCode = rapid.SampledFrom([]string{"", "", "TEN", "FIVER", "NONE"}).Draw(t, "coupon")
		for _, sku := range rapid.SliceOfNDistinct(rapid.SampledFrom(skus), 1, len(skus), rapid.ID).Draw(t, "skus") {
			place.Lines = append(place.Lines, domain.LineRequest{SKU: sku, Units: rapid.SampledFrom([]int64{1, 1, 2, 3, 7, 0}).Draw(t, "units")})
		}
		return place
	case "cancel":
		return domain.CancelOrder{OrderID: id, Reason: rapid.SampledFrom([]string{"", "late"}).Draw(t, "reason"), By: "alice"}
	case "expire":
		return domain.ExpireOrder{OrderID: id}
	default:
		return domain.PutProduct{
			SKU: rapid.SampledFrom(skus).Draw(t, "sku"), Title: rapid.SampledFrom([]string{"A", "B"}).Draw(t, "title"),
			Price: domain.Money{Currency: rapid.SampledFrom([]string{"EUR", "EUR", "EUR", "JPY"}).Draw(t, "currency"), Minor: rapid.Int64Range(0, 500).Draw(t, "minor")},
			Tax:   domain.Tax{RateBps: rapid.SampledFrom([]int64{0, 0, 700, 1900}).Draw(t, "tax"), Included: rapid.Bool().Draw(t, "included")},
		}
	}
}

// drawLife draws a command to an order that was placed, of its newest payment or refund as a rule.
func drawLife(t *rapid.T, w *world, id domain.OrderID) domain.Command {
	var order domain.Order
	for _, l := range w.lanes {
		if o, placed := l.orders[id]; placed {
			order = o
		}
	}
	if order.ID.IsZero() {
		return domain.StartPayment{OrderID: id, Number: 1, Provider: "sandbox", Method: "card"}
	}
	if payments := len(order.Payments); payments > 1 && rapid.IntRange(0, 3).Draw(t, "older") == 0 {
		return domain.RecordPaymentResult{
			OrderID: id, PaymentID: order.Payments[0].ID, Amount: order.Total,
			Result: domain.PaymentResult(rapid.IntRange(1, 5).Draw(t, "result")),
		}
	}
	// Those that go on come first, so that small draws come far.
	command := lifeCommands[rapid.SampledFrom([]int{3, 6, 8, 4, 18, 19, 20, 21, 15, 16, 23, 0, 1, 2, 5, 7, 9, 10, 11, 12, 13, 14, 17, 22, 24, 25, 26}).Draw(t, "of life")]
	return order.Next(command.make(order))
}

func orderIDs(count int) []domain.OrderID {
	ids := make([]domain.OrderID, count)
	for i := range ids {
		ids[i] = domain.NewOrderID(epoch, uint32(i), [10]byte{9: byte(i)})
	}
	return ids
}

// transfer is units on their way between the home lane and another.
type transfer struct {
	sku    string
	lane   int
	number uint64
	units  int64
}

// TestAnySequenceOfCommandsConservesUnits runs commands on 1 to 4 lanes, with grants and returns that arrive late, out
// of order, repeated or not at all, and checks I3 after every step, and at the end when all have arrived.
func TestAnySequenceOfCommandsConservesUnits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.IntRange(1, 4).Draw(t, "lanes"))
		ids := orderIDs(6)
		received := map[string]int64{}
		var grants, returns []transfer
		decide := func(lane int, c domain.Command) []domain.Event {
			events, err := w.decide(lane, c)
			var refusal domain.Refusal
			var grant *domain.GrantOutOfOrderError
			var giveBack *domain.ReturnOutOfOrderError
			if err != nil && !errors.As(err, &refusal) && !errors.As(err, &grant) && !errors.As(err, &giveBack) {
				t.Fatalf("lane %d decides %+v: %v", lane, c, err)
			}
			return events
		}
		home := func(sku string) int { return int(w.home(sku)) }
		for i, sku := range skus {
			w.homes[sku] = uint32(i % len(w.lanes))
		}
		// sent keeps what is on its way to another lane.
		sent := func(events []domain.Event, from int) {
			for _, e := range events {
				switch e := e.(type) {
				case domain.StockReceived:
					received[e.SKU] += e.Units
				case domain.StockGranted:
					if e.ToLane != uint32(from) {
						grants = append(grants, transfer{sku: e.SKU, lane: int(e.ToLane), number: e.GrantNumber, units: e.Units})
					}
				case domain.StockReturned:
					if e.HomeLane != uint32(from) {
						returns = append(returns, transfer{sku: e.SKU, lane: from, number: e.ReturnNumber, units: e.Units})
					}
				default:
				}
			}
		}
		allot := func(g transfer) {
			decide(g.lane, domain.AllotStock{SKU: g.sku, HomeLane: w.home(g.sku), GrantNumber: g.number, Units: g.units})
		}
		reclaim := func(r transfer) {
			decide(home(r.sku), domain.ReclaimStock{SKU: r.sku, FromLane: uint32(r.lane), ReturnNumber: r.number, Units: r.units})
		}
		receive := func(sku string, units int64) {
			sent(decide(home(sku), domain.ReceiveStock{SKU: sku, Units: units}), home(sku))
		}
		for _, sku := range skus {
			decide(home(sku), domain.PutProduct{SKU: sku, Title: "A", Price: domain.Money{Currency: "EUR", Minor: 100}})
			receive(sku, 12)
		}
		anyLane := rapid.IntRange(0, len(w.lanes)-1)
		anySKU := rapid.SampledFrom(skus)
		keys := append(slices.Clone(skus), domain.CouponPool("TEN"), domain.CouponPool("FIVER"))
		for _, sku := range skus {
			keys = append(keys, domain.CampaignPool(sku, "flash"))
		}
		anyKey := rapid.SampledFrom(keys)
		t.Repeat(map[string]func(*rapid.T){
			"command": func(t *rapid.T) {
				for range 5 { // Orders are what it is about.
					decide(anyLane.Draw(t, "lane"), drawCommand(t, w, ids))
				}
			},
			"clock": func(t *rapid.T) {
				w.now = w.now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
			},
			"receive": func(t *rapid.T) {
				receive(anySKU.Draw(t, "sku"), rapid.Int64Range(1, 30).Draw(t, "units"))
			},
			"campaign": func(t *rapid.T) { // Pools are filled and drained while orders take of them.
				sku := anySKU.Draw(t, "sku")
				decide(home(sku), domain.PutCampaign{
					CampaignID: "flash", SKU: sku, Price: domain.Money{Currency: "EUR", Minor: rapid.Int64Range(0, 500).Draw(t, "minor")},
					OpensAt: epoch.Add(time.Minute), ClosesAt: epoch.Add(time.Hour), Units: rapid.Int64Range(0, 9).Draw(t, "units"),
					UserUnitsMax: rapid.Int64Range(0, 4).Draw(t, "user max"), OrderUnitsMax: rapid.Int64Range(0, 2).Draw(t, "order max"),
				})
			},
			"coupon": func(t *rapid.T) {
				put := domain.PutCoupon{Code: "TEN", Terms: domain.CouponTerms{
					Kind: domain.CouponPercentage, RateBps: 1000, UserUsesMax: rapid.Int64Range(0, 3).Draw(t, "user max"), UsesMax: rapid.Int64Range(0, 9).Draw(t, "max"),
				}}
				if rapid.Bool().Draw(t, "fixed") {
					put.Code, put.Terms.Kind, put.Terms.AmountMinor, put.Terms.RateBps, put.Terms.Currency = "FIVER", domain.CouponFixed, 500, 0, "EUR"
				}
				sent(decide(0, put), 0)
			},
			"deliver a grant": func(t *rapid.T) {
				if len(grants) > 0 {
					allot(rapid.SampledFrom(grants).Draw(t, "grant"))
				}
			},
			"preheat": func(t *rapid.T) {
				sku := anySKU.Draw(t, "sku")
				sent(decide(home(sku), domain.PreheatStock{
					SKU: sku, UnitsPerLane: rapid.Int64Range(0, 4).Draw(t, "units"),
				}), home(sku))
			},
			"grant": func(t *rapid.T) {
				lane, sku := anyLane.Draw(t, "lane"), anyKey.Draw(t, "sku")
				after := w.lanes[home(sku)].accounts[sku].GrantedTo(uint32(lane)).Number - rapid.Uint64Range(0, 1).Draw(t, "late")
				least := rapid.Int64Range(0, 5).Draw(t, "least")
				sent(decide(home(sku), domain.GrantStock{
					SKU: sku, ToLane: uint32(lane), After: after, Least: least, Want: least + rapid.Int64Range(-1, 9).Draw(t, "more"),
				}), home(sku))
			},
			"return": func(t *rapid.T) {
				lane, sku := anyLane.Draw(t, "lane"), anyKey.Draw(t, "sku")
				after := w.lanes[lane].accounts[sku].Returned.Number - rapid.Uint64Range(0, 1).Draw(t, "late")
				sent(decide(lane, domain.ReturnStock{
					SKU: sku, After: after, Least: rapid.Int64Range(0, 9).Draw(t, "least"),
				}), lane)
			},
			"verdict": func(t *rapid.T) {
				w.lanes[anyLane.Draw(t, "lane")].verdicts[anyKey.Draw(t, "sku")] = rapid.Int64Range(0, 3).Draw(t, "free")
			},
			"deliver a return": func(t *rapid.T) {
				if len(returns) > 0 {
					reclaim(rapid.SampledFrom(returns).Draw(t, "return"))
				}
			},
			"": func(t *rapid.T) {
				if err := w.check(); err != nil {
					t.Fatal(err)
				}
			},
		})
		for _, g := range grants { // In order, so that each is taken in the end.
			allot(g)
		}
		for _, r := range returns {
			reclaim(r)
		}
		for _, sku := range skus {
			l, pool := domain.Sum(w.accounts(sku)), domain.Sum(w.accounts(domain.CampaignPool(sku, "flash")))
			if l.InTransit != 0 || pool.InTransit != 0 || l.Received+pool.Received != received[sku] {
				t.Fatalf("%s: all has arrived, but %+v, and in the pool %+v; received %d", sku, l, pool, received[sku])
			}
		}
		if err := w.check(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestTheSameCommandTwiceDecidesNothingNew holds for every command but ReceiveStock and PreheatStock, which are the request
// ledger's.
func TestTheSameCommandTwiceDecidesNothingNew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(1)
		if rapid.Bool().Draw(t, "stocked") {
			for _, sku := range skus {
				for _, c := range []domain.Command{
					domain.PutProduct{SKU: sku, Title: "A", Price: domain.Money{Currency: "EUR", Minor: 100}},
					domain.ReceiveStock{SKU: sku, Units: 9},
				} {
					if _, err := w.decide(0, c); err != nil {
						t.Fatalf("%+v: %v", c, err)
					}
				}
			}
		}
		ids := orderIDs(3)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			var c domain.Command
			if rapid.IntRange(0, 3).Draw(t, "stock") == 0 {
				sku := rapid.SampledFrom(skus).Draw(t, "sku")
				taken := w.lanes[0].accounts[sku].Taken.Number
				number, units := rapid.Uint64Range(0, 2).Draw(t, "number"), rapid.Int64Range(1, 9).Draw(t, "units")
				account := w.lanes[0].accounts[sku]
				c = rapid.SampledFrom([]domain.Command{
					domain.AllotStock{SKU: sku, GrantNumber: taken + number, Units: units},
					domain.GrantStock{SKU: sku, After: taken + number, Least: units, Want: 2 * units},
					domain.ReturnStock{SKU: sku, After: account.Returned.Number + number, Least: units},
					domain.ReclaimStock{SKU: sku, FromLane: 1, ReturnNumber: number, Units: units},
				}).Draw(t, "move")
			} else {
				c = drawCommand(t, w, ids)
			}
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second)
			events, err := w.decide(0, c)
			if err != nil {
				if again, repeated := w.decide(0, c); len(again) > 0 || repeated == nil || repeated.Error() != err.Error() {
					t.Fatalf("%+v was refused: %v; again: %v, %v", c, err, again, repeated)
				}
				continue
			}
			if again, err := w.decide(0, c); err != nil || len(again) > 0 {
				t.Fatalf("%+v yielded %+v; again: %+v, %v", c, events, again, err)
			}
			if problem := answeredAmiss(w.lanes[0], c, events); problem != "" {
				t.Fatalf("%+v yielded %+v; again it is answered about %s", c, events, problem)
			}
		}
	})
}

// answeredAmiss says what is wrong with the event by which a request of a command is remembered that found nothing to do, after
// one that led to events: both are about the same.
func answeredAmiss(s domain.State, c domain.Command, events []domain.Event) string {
	answered, remembered := domain.Answered(s, c)
	id, ofOrder := domain.CommandOrderID(c)
	if _, expires := c.(domain.ExpireOrder); expires || !remembered {
		return ""
	}
	if ofOrder && (answered.About != domain.AboutOrder || answered.Key != id.String()) {
		return fmt.Sprintf("%s %s, want the order %v", answered.About, answered.Key, id)
	}
	if ofOrder && len(events) > 0 && answered.PartID != domain.PartOf(events[0]) {
		return fmt.Sprintf("part %q, want %q", answered.PartID, domain.PartOf(events[0]))
	}
	return ""
}

// drawEvent draws any event at all, absurd ones included.
func drawEvent(t *rapid.T) domain.Event {
	sku := rapid.SampledFrom(skus).Draw(t, "sku")
	lane := rapid.Uint32().Draw(t, "lane")
	number := rapid.Uint64().Draw(t, "number")
	units := rapid.Int64().Draw(t, "units")
	released := []domain.Release{{SKU: sku, Units: units}, {SKU: "mug", Units: units}}
	pool := rapid.SampledFrom([]string{"", "mug", "mug@flash", "@", "mug@@coupon", "tee@mug"}).Draw(t, "pool")
	switch rapid.IntRange(0, 17).Draw(t, "event") {
	case 14:
		return domain.CampaignPut{Pool: pool, Units: units}
	case 15:
		return domain.PoolFilled{Pool: pool, Units: units}
	case 16:
		return domain.PoolDrained{Pool: pool, Units: units}
	case 17:
		return domain.CouponPut{Code: sku}
	case 0:
		return domain.OrderPlaced{
			Lines: []domain.Line{{SKU: sku, Units: units, PriceMinor: units}, {SKU: sku, Units: 1}},
			Pool:  pool, CouponCode: sku, CouponPool: rapid.SampledFrom([]string{"", "mug", "TEN@@coupon"}).Draw(t, "coupon pool"),
		}
	case 1:
		return domain.OrderCancelled{Released: released, CouponCode: sku}
	case 2:
		return domain.OrderExpired{Released: released}
	case 3:
		return domain.ProductPut{SKU: sku, Price: domain.Money{Minor: units}}
	case 4:
		return domain.StockReceived{SKU: sku, Units: units, ReceivedTotal: rapid.Int64().Draw(t, "total")}
	case 5:
		return domain.StockGranted{SKU: sku, ToLane: lane, GrantNumber: number, Units: units}
	case 6:
		return domain.StockAllotted{SKU: sku, HomeLane: lane, GrantNumber: number, Units: units}
	case 8:
		return domain.UserErased{UserID: "alice", Key: domain.KeyID(number)}
	case 7:
		return domain.StockReturned{SKU: sku, HomeLane: lane, ReturnNumber: number, Units: units}
	case 9:
		return domain.StockReclaimed{SKU: sku, FromLane: lane, ReturnNumber: number, Units: units}
	default:
		return drawLifeEvent(t, units, released)
	}
}

// drawLifeEvent draws an event of one of two payments, refunds, shipments and returns, there or not.
func drawLifeEvent(t *rapid.T, units int64, lines []domain.Release) domain.Event {
	id := orderIDs(1)[0]
	part := rapid.IntRange(1, 2).Draw(t, "part")
	payment, amount := domain.PaymentID(id, part), domain.Money{Currency: "EUR", Minor: units}
	refund := domain.RefundID(payment, part)
	return rapid.SampledFrom([]domain.Event{
		domain.PaymentStarted{PaymentID: payment, Amount: amount},
		domain.PaymentAuthorized{PaymentID: payment, Amount: amount},
		domain.PaymentCaptureRequested{PaymentID: payment},
		domain.PaymentCaptured{PaymentID: payment, Amount: amount, Sold: lines},
		domain.PaymentDeclined{PaymentID: payment},
		domain.PaymentBecameUnknown{PaymentID: payment},
		domain.PaymentVoidRequested{PaymentID: payment},
		domain.PaymentVoided{PaymentID: payment},
		domain.StrayPaymentFound{PaymentID: payment, Amount: amount},
		domain.RefundStarted{RefundID: refund, PaymentID: payment, Amount: amount},
		domain.PaymentRefunded{RefundID: refund, Amount: amount},
		domain.RefundFailed{RefundID: refund},
		domain.ItemsShipped{ShipmentID: domain.ShipmentID(id, part), Lines: lines},
		domain.ShipmentDelivered{ShipmentID: domain.ShipmentID(id, part)},
		domain.ReturnRequested{ReturnID: domain.ReturnID(id, part), Lines: lines},
		domain.ReturnReceived{ReturnID: domain.ReturnID(id, part), Restocked: lines},
		domain.NoteAdded{Sealed: []byte{1}},
		domain.PointsAwarded{PaymentID: payment, Points: units, PerMajor: units},
		domain.PointsTakenBack{RefundID: refund, Points: units},
	}).Draw(t, "event of life")
}

// TestEvolveTakesAnyEventAndChangesNothingInPlace: Evolve never fails, and whoever holds the state of before still has it.
func TestEvolveTakesAnyEventAndChangesNothingInPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var account domain.Account
		var order domain.Order
		var product domain.Product
		uses := map[domain.Use]int64{}
		for range rapid.IntRange(1, 20).Draw(t, "events") {
			e := drawEvent(t)
			before := fmt.Sprintf("%+v %+v", account, order)
			next, nextOrder := account.Evolve(e, "mug"), order.Evolve(e, epoch)
			if after := fmt.Sprintf("%+v %+v", account, order); after != before {
				t.Fatalf("%+v changed\n%s to\n%s", e, before, after)
			}
			if again := account.Evolve(e, "mug"); !again.Equal(next) {
				t.Fatalf("%+v made\n%+v, then\n%+v", e, next, again)
			}
			if touched := slices.Contains(slices.Collect(domain.SKUs(e)), "mug"); !touched && !next.Equal(account) {
				t.Fatalf("%+v is not of mug, but made\n%+v of\n%+v", e, next, account)
			}
			if again := order.Evolve(e, epoch); !again.Equal(nextOrder) {
				t.Fatalf("%+v made\n%+v, then\n%+v", e, nextOrder, again)
			}
			account, order, product = next, nextOrder, product.Evolve(e, epoch)
			_, _ = account.Check(), order.Check()
			_ = order.Amounts()
			for use, count := range domain.Uses(e) {
				uses[use] += count
			}
		}
	})
}

// broken is a state that contradicts itself: an order holds units that no account knows of.
type broken struct{ account domain.Account }

func (broken) Order(id domain.OrderID) (domain.Order, bool) {
	return domain.Order{
		ID: id, UserID: "alice", Lines: []domain.Line{{SKU: "mug", Units: 2}}, PayBy: epoch,
	}, id == orderIDs(1)[0]
}

func (broken) Product(sku string) (domain.Product, bool) {
	return domain.Product{SKU: sku, Price: domain.Money{Currency: "EUR", Minor: 1}}, true
}

func (broken) KeyErased(string, domain.KeyID) bool { return false }

func (broken) WebhookEndpoints(string) (int, bool) { return 0, false }

func (b broken) Stock(string) domain.Account { return b.account }

func (broken) Campaign(pool string) (domain.Campaign, bool) {
	return domain.Campaign{Pool: pool, OpensAt: epoch, ClosesAt: epoch.Add(time.Hour)}, true
}

func (broken) Coupon(string) (domain.Coupon, bool) { return domain.Coupon{}, false }

func (broken) Used(domain.Use) int64 { return 0 }

// Supply says that the lane is the home of all but one SKU.
func (broken) Supply(sku string) domain.Supply {
	if sku == "other" {
		return domain.Supply{Home: 1, Lanes: 2}
	}
	return domain.Supply{Lanes: 2}
}

// brokenPaid is a state whose order was paid twice over, and holds units that no account knows of.
type brokenPaid struct {
	broken
	payments []domain.Payment
}

func (b brokenPaid) Order(id domain.OrderID) (domain.Order, bool) {
	order, found := b.broken.Order(id)
	order.Total, order.Payments, order.Payment = domain.Money{Currency: "EUR", Minor: 2}, b.payments, b.payments[len(b.payments)-1].State
	return order, found
}

func paymentOf(number int, state domain.PaymentState, taken int64) domain.Payment {
	return domain.Payment{
		ID: domain.PaymentID(orderIDs(1)[0], number), State: state, Taken: domain.Money{Currency: "EUR", Minor: taken},
		Amount: domain.Money{Currency: "EUR", Minor: 2},
	}
}

func TestDecideAssertsTheAccountsItTouches(t *testing.T) {
	for name, planted := range map[string]struct {
		state   domain.State
		command domain.Command
	}{
		"a cancellation releases more than is reserved": {broken{}, domain.CancelOrder{OrderID: orderIDs(1)[0]}},
		"an expiry releases more than is reserved":      {broken{}, domain.ExpireOrder{OrderID: orderIDs(1)[0]}},
		"a cancellation gives back more than was sold": {
			brokenPaid{broken{}, []domain.Payment{paymentOf(1, domain.PayCaptured, 2)}},
			domain.CancelOrder{OrderID: orderIDs(1)[0]},
		},
		"a capture sells more than is reserved": {
			brokenPaid{broken{}, []domain.Payment{paymentOf(1, domain.PayPending, 0)}},
			domain.RecordPaymentResult{
				OrderID: orderIDs(1)[0], PaymentID: domain.PaymentID(orderIDs(1)[0], 1), Result: domain.ResultCaptured,
				Amount: domain.Money{Currency: "EUR", Minor: 2},
			},
		},
		"a second payment is captured": {
			brokenPaid{broken{domain.Account{Reserved: 2, Taken: domain.Tally{Number: 1, Units: 2}}}, []domain.Payment{
				paymentOf(1, domain.PayCaptured, 2), paymentOf(2, domain.PayPending, 0),
			}},
			domain.RecordPaymentResult{
				OrderID: orderIDs(1)[0], PaymentID: domain.PaymentID(orderIDs(1)[0], 2), Result: domain.ResultCaptured,
				Amount: domain.Money{Currency: "EUR", Minor: 2},
			},
		},
		"an order goes on that was captured at a wrong amount": {
			brokenPaid{broken{}, []domain.Payment{paymentOf(1, domain.PayCaptured, 3)}},
			domain.AddNote{OrderID: orderIDs(1)[0], Number: 1, Sealed: []byte{1}},
		},
		"an order takes units that were never taken from a grant": {
			broken{domain.Account{Allotted: 5}},
			domain.PlaceOrder{OrderID: orderIDs(2)[1], UserID: "alice", Lines: []domain.LineRequest{{SKU: "mug", Units: 1}}, PayBy: epoch.Add(1)},
		},
		"a campaign's pool is filled of a centre that is short": {
			broken{domain.Account{Received: 5, Central: 4}},
			domain.PutCampaign{
				CampaignID: "flash", SKU: "mug", Price: domain.Money{Currency: "EUR"}, OpensAt: epoch, ClosesAt: epoch.Add(1), Units: 4,
			},
		},
		"an allotment joins units that were never taken from a grant": {
			broken{domain.Account{Allotted: 5}},
			domain.AllotStock{SKU: "mug", HomeLane: 1, GrantNumber: 1, Units: 1},
		},
		"units are received into a centre that is short": {
			broken{domain.Account{Received: 5, Central: 4}},
			domain.ReceiveStock{SKU: "mug", Units: 1},
		},
		"units are preheated by a lane that cannot be the home": {
			broken{},
			domain.PreheatStock{SKU: "other", UnitsPerLane: 1},
		},
		"the home lane grants itself the first grant after it took another": {
			broken{domain.Account{Received: 5, Central: 5, Taken: domain.Tally{Number: 1}}},
			domain.GrantStock{SKU: "mug", Least: 1, Want: 1},
		},
		"units are returned that were never taken from a grant": {
			broken{domain.Account{Allotted: 5}},
			domain.ReturnStock{SKU: "mug", Least: 1},
		},
		"units are reclaimed into a centre that is short": {
			broken{domain.Account{Received: 5, Central: 1, Granted: []domain.LaneTally{{Lane: 1, Tally: domain.Tally{Number: 1, Units: 3}}}}},
			domain.ReclaimStock{SKU: "mug", FromLane: 1, ReturnNumber: 1, Units: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.HasPrefix(said, "domain: bug: ") {
					t.Errorf("recovered %q, want a bug", said)
				}
			}()
			events, err := domain.Decide(planted.state, planted.command, epoch)
			t.Errorf("decided %+v, %v", events, err)
		})
	}
}

func TestConservedSeesEveryWayToLoseUnits(t *testing.T) {
	w := newWorld(2)
	for _, c := range []domain.Command{
		domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1}},
		domain.ReceiveStock{SKU: "mug", Units: 20},
		domain.PreheatStock{SKU: "mug", UnitsPerLane: 5},
		domain.PreheatStock{SKU: "mug", UnitsPerLane: 5},
	} {
		if _, err := w.decide(0, c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.decide(1, domain.AllotStock{SKU: "mug", GrantNumber: 1, Units: 5}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.decide(1, domain.ReturnStock{SKU: "mug", Least: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.decide(0, domain.ReclaimStock{SKU: "mug", FromLane: 1, ReturnNumber: 1, Units: 2}); err != nil {
		t.Fatal(err)
	}
	if err := domain.Conserved(w.accounts("mug")); err != nil {
		t.Fatalf("before anything is lost: %v", err)
	}
	for name, plant := range map[string]func(home, other *domain.Account){
		"a unit vanishes from an allotment":         func(_, other *domain.Account) { other.Allotted-- },
		"a unit appears in an allotment":            func(_, other *domain.Account) { other.Allotted++ },
		"a unit is reserved out of nothing":         func(_, other *domain.Account) { other.Reserved++ },
		"an allotment is oversold":                  func(_, other *domain.Account) { *other = other.Evolve(sold(4), "mug") },
		"a unit vanishes from the centre":           func(home, _ *domain.Account) { home.Central-- },
		"a receipt is counted twice":                func(home, _ *domain.Account) { home.Received += 10 },
		"more is taken than was granted":            func(_, other *domain.Account) { *other = other.Evolve(allotted(2, 6), "mug") },
		"less is taken than was granted":            func(_, other *domain.Account) { *other = other.Evolve(allotted(2, 4), "mug") },
		"a grant is taken twice":                    func(_, other *domain.Account) { *other = other.Evolve(allotted(1, 5), "mug") },
		"a grant is taken that was not made":        func(_, other *domain.Account) { *other = other.Evolve(allotted(3, 5), "mug") },
		"a return is reclaimed twice":               func(home, _ *domain.Account) { *home = home.Evolve(reclaimed(1, 2), "mug") },
		"a return is reclaimed that was not made":   func(home, _ *domain.Account) { *home = home.Evolve(reclaimed(2, 1), "mug") },
		"two lanes say that they are the home lane": func(home, other *domain.Account) { other.Received, other.Granted = home.Received, home.Granted },
	} {
		t.Run(name, func(t *testing.T) {
			accounts := w.accounts("mug")
			home, other := accounts[0], accounts[1]
			plant(&home, &other)
			if err := domain.Conserved(map[uint32]domain.Account{0: home, 1: other}); err == nil {
				t.Errorf("Conserved sees nothing in home %+v, other %+v", home, other)
			}
		})
	}
}

func sold(units int64) domain.Event {
	return domain.OrderPlaced{Lines: []domain.Line{{SKU: "mug", Units: units}}}
}

func allotted(number uint64, units int64) domain.Event {
	return domain.StockAllotted{SKU: "mug", GrantNumber: number, Units: units}
}

func reclaimed(number uint64, units int64) domain.Event {
	return domain.StockReclaimed{SKU: "mug", FromLane: 1, ReturnNumber: number, Units: units}
}

// TestReturnsGiveBackWhatWasPaidAndNoMore returns all units of an order in any parts; with a discount and taxes, what it cost is not the
// sum of its prices.
func TestReturnsGiveBackWhatWasPaidAndNoMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(1)
		id := orderIDs(1)[0]
		placed := domain.OrderPlaced{OrderID: id, UserID: "alice", PayBy: epoch.Add(time.Minute)}
		var sum int64
		for _, sku := range skus[:rapid.IntRange(1, len(skus)).Draw(t, "lines")] {
			units := rapid.Int64Range(1, 7).Draw(t, "units")
			line := domain.Line{SKU: sku, Units: units, PriceMinor: rapid.Int64Range(0, 999).Draw(t, "price")}
			line.Tax = domain.Tax{RateBps: rapid.SampledFrom([]int64{0, 700, 1900}).Draw(t, "rate"), Included: rapid.Bool().Draw(t, "included")}
			placed.Lines = append(placed.Lines, line)
			sum += units * line.PriceMinor
			for _, e := range []domain.Event{
				domain.ProductPut{SKU: sku},
				domain.StockReceived{SKU: sku, Units: 9, ReceivedTotal: 9},
				domain.StockGranted{SKU: sku, GrantNumber: 1, Units: 9},
				domain.StockAllotted{SKU: sku, GrantNumber: 1, Units: 9},
			} {
				if err := w.evolve(0, e); err != nil {
					t.Fatal(err)
				}
			}
		}
		var err error
		if placed.Total, err = domain.PriceLines("EUR", placed.Lines, rapid.Int64Range(0, sum).Draw(t, "discount")); err != nil {
			t.Fatal(err)
		}
		if err := w.evolve(0, placed); err != nil {
			t.Fatal(err)
		}
		do := func(c domain.Command) []domain.Event {
			order := w.lanes[0].orders[id]
			events, err := w.decide(0, order.Next(c))
			if err != nil {
				t.Fatalf("%+v: %v", c, err)
			}
			return events
		}
		do(domain.StartPayment{OrderID: id, Provider: "sandbox", Method: "card"})
		do(domain.RecordPaymentResult{OrderID: id, PaymentID: domain.PaymentID(id, 1), Result: domain.ResultCaptured, Amount: placed.Total})
		do(domain.ShipItems{OrderID: id})
		var refunded int64
		for number := 1; w.lanes[0].orders[id].Fulfilment != domain.FulfilmentReturned; number++ {
			var lines []domain.LineRequest
			for _, line := range placed.Lines {
				left := line.Units
				for _, r := range w.lanes[0].orders[id].Returns {
					for _, back := range r.Lines {
						if back.SKU == line.SKU {
							left -= back.Units
						}
					}
				}
				if units := rapid.Int64Range(0, left).Draw(t, "back"); units > 0 {
					lines = append(lines, domain.LineRequest{SKU: line.SKU, Units: units})
				}
			}
			if len(do(domain.RequestReturn{OrderID: id, Lines: lines})) == 0 {
				t.Fatalf("nothing comes back of %+v", lines)
			}
			for _, e := range do(domain.ReceiveReturn{OrderID: id, ReturnID: domain.ReturnID(id, number), Restock: lines}) {
				if e, ok := e.(domain.RefundStarted); ok {
					refunded += e.Amount.Minor
				}
			}
		}
		if refunded != placed.Total.Minor {
			t.Fatalf("of %v, %d were refunded for %+v", placed.Total, refunded, placed.Lines)
		}
	})
}
