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
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// ofOrder makes a request of a command to an order; an empty id is a reactor's.
func ofOrder(order domain.Order, requestID string, command domain.Command) Request {
	return Request{
		UserID: order.UserID, RequestID: requestID, Fingerprint: fingerprint(command), Partition: order.ID.Partition(), Command: command,
	}
}

func pay(order domain.Order, requestID string) Request {
	return ofOrder(order, requestID, domain.StartPayment{OrderID: order.ID, Provider: "sandbox", Method: "card", By: order.UserID})
}

func result(order domain.Order, payment int, result domain.PaymentResult) Request {
	c := domain.RecordPaymentResult{OrderID: order.ID, PaymentID: domain.PaymentID(order.ID, payment), Result: result}
	if result == domain.ResultAuthorized || result == domain.ResultCaptured {
		c.Amount = order.Total
	}
	return ofOrder(order, "", c)
}

// deadlines counts the orders in a lane's deadline index.
func (n *node) deadlines(t testing.TB) int {
	t.Helper()
	k := newKeys(0)
	m := &Machine{db: n.store.DB()}
	count := 0
	if err := m.scan(k.table(tableDeadlines), func(_, ids []byte) error {
		count += len(ids) / len(domain.OrderID{})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return count
}

func TestAnOrdersLifeIsAnsweredTheSameForEver(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 10)
	order := n.must(t, place("ann", "r1", "tea", 3)).Order
	requests := []Request{
		pay(order, "pay"),
		result(order, 1, domain.ResultAuthorized),
		ofOrder(order, "capture", domain.CapturePayment{OrderID: order.ID, By: "clerk"}),
		result(order, 1, domain.ResultCaptured),
		ofOrder(order, "", domain.AwardPoints{OrderID: order.ID, PaymentID: domain.PaymentID(order.ID, 1), PerMajor: 1}),
		ofOrder(order, "ship-1", domain.ShipItems{OrderID: order.ID, Lines: []domain.LineRequest{{SKU: "tea", Units: 1}}}),
		ofOrder(order, "ship-2", domain.ShipItems{OrderID: order.ID, Lines: []domain.LineRequest{{SKU: "tea", Units: 1}}}),
		ofOrder(order, "refund", domain.RefundPayment{OrderID: order.ID, Amount: domain.Money{Currency: "EUR", Minor: 100}}),
		ofOrder(order, "", domain.RecordRefundResult{
			OrderID: order.ID, RefundID: domain.RefundID(domain.PaymentID(order.ID, 1), 1), Succeeded: true, Amount: domain.Money{Currency: "EUR", Minor: 100},
		}),
		ofOrder(order, "return", domain.RequestReturn{OrderID: order.ID, Lines: []domain.LineRequest{{SKU: "tea", Units: 1}}}),
		ofOrder(order, "receive", domain.ReceiveReturn{
			OrderID: order.ID, ReturnID: domain.ReturnID(order.ID, 1), Restock: []domain.LineRequest{{SKU: "tea", Units: 1}},
		}),
		ofOrder(order, "note", domain.AddNote{OrderID: order.ID, By: "clerk", Sealed: []byte("sealed")}),
	}
	replies := make([]*Reply, len(requests))
	for i, request := range requests {
		replies[i] = n.must(t, request)
	}
	last := replies[len(replies)-1].Order
	if last.Status != domain.StatusPartiallyShipped || last.Payment != domain.PayPartiallyRefunded || len(last.Shipments) != 2 ||
		len(last.Refunds) != 2 || last.Payments[0].Points != 38 || len(last.Notes) != 1 {
		t.Errorf("in the end the order is %+v", last)
	}
	if account := n.account(t, "tea"); account.Sold != 2 || account.Allotted != 8 || account.Reserved != 0 {
		t.Errorf("in the end the account is %+v (I3)", account)
	}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"at once", func() {}},
		{"after a restart", func() { n.restart(t) }},
		{"after the state was lost", func() { n.fs = vfs.NewMem(); n.restart(t) }},
	} {
		step.do()
		for i, request := range requests {
			again := n.must(t, request)
			if request.RequestID == "" { // A reactor is told how things are.
				if newest := replies[len(replies)-1].Commit; again.OrderCommit != newest || again.Commit != newest {
					t.Errorf("%s: %T again changed the order at commit %d, it was at %d", step.name, request.Command, again.OrderCommit, newest)
				}
				continue
			}
			if !reflect.DeepEqual(again, replies[i]) {
				t.Errorf("%s: %T again answers\n%+v, first\n%+v", step.name, request.Command, again, replies[i])
			}
		}
	}
}

// account folds lane 0's account of a SKU from the log.
func (n *node) account(t testing.TB, sku string) domain.Account {
	t.Helper()
	var account domain.Account
	for number := uint64(1); number <= n.logs[0].(*eventstore.MemoryLog).Position().Number; number++ {
		record, err := n.logs[0].Read(t.Context(), number)
		if err != nil {
			t.Fatal(err)
		}
		commit, err := eventstore.DecodeCommit(record.Data)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range commit.Events {
			if e.Type == eventstore.TypeLaneOpened {
				continue
			}
			event, err := stored.Decode(e.Type, e.Version, e.AggregateID, e.UserID, e.Payload)
			if err != nil {
				t.Fatal(err)
			}
			account = account.Evolve(event, sku)
		}
	}
	return account
}

// aLife takes an order of three teas through payment, two shipments, a refund and a return, and returns the order.
func (n *node) aLife(t testing.TB) domain.Order {
	t.Helper()
	n.stock(t, "tea", 10)
	order := n.must(t, place("ann", "r1", "tea", 3)).Order
	one := []domain.LineRequest{{SKU: "tea", Units: 1}}
	for _, step := range []struct {
		request Request
		partID  string
	}{
		{pay(order, "pay"), domain.PaymentID(order.ID, 1)},
		{ofOrder(order, "void", domain.VoidPayment{OrderID: order.ID, By: "clerk"}), domain.PaymentID(order.ID, 1)},
		{result(order, 1, domain.ResultVoided), domain.PaymentID(order.ID, 1)},
		{pay(order, "pay-2"), domain.PaymentID(order.ID, 2)},
		{result(order, 2, domain.ResultAuthorized), domain.PaymentID(order.ID, 2)},
		{ofOrder(order, "capture", domain.CapturePayment{OrderID: order.ID, By: "clerk"}), domain.PaymentID(order.ID, 2)},
		{result(order, 2, domain.ResultCaptured), domain.PaymentID(order.ID, 2)},
		{ofOrder(order, "ship-1", domain.ShipItems{OrderID: order.ID, Lines: one}), domain.ShipmentID(order.ID, 1)},
		{ofOrder(order, "ship-2", domain.ShipItems{OrderID: order.ID, Lines: one}), domain.ShipmentID(order.ID, 2)},
		{ofOrder(order, "deliver", domain.ConfirmDelivery{OrderID: order.ID, ShipmentID: domain.ShipmentID(order.ID, 1)}), domain.ShipmentID(order.ID, 1)},
		{
			ofOrder(order, "refund", domain.RefundPayment{OrderID: order.ID, Amount: domain.Money{Currency: "EUR", Minor: 100}}),
			domain.RefundID(domain.PaymentID(order.ID, 2), 1),
		},
		{ofOrder(order, "return", domain.RequestReturn{OrderID: order.ID, Lines: one}), domain.ReturnID(order.ID, 1)},
		{ofOrder(order, "receive", domain.ReceiveReturn{OrderID: order.ID, ReturnID: domain.ReturnID(order.ID, 1)}), domain.ReturnID(order.ID, 1)},
		{ofOrder(order, "note", domain.AddNote{OrderID: order.ID, By: "clerk", Sealed: []byte("sealed")}), domain.NoteID(order.ID, 1)},
	} {
		reply := n.must(t, step.request)
		if order = reply.Order; reply.PartID != step.partID {
			t.Errorf("%T: the reply names %q, want %q", step.request.Command, reply.PartID, step.partID)
		}
	}
	return order
}

// TestARequestThatFindsNothingToDoIsRememberedForEver sends every command to which the state has it already, and again after all that
// it found has changed.
func TestARequestThatFindsNothingToDoIsRememberedForEver(t *testing.T) {
	n := startNode(t, 1)
	order := n.aLife(t)
	ended := n.must(t, place("bob", "r1", "tea", 1)).Order
	n.must(t, cancelOrder(ended, "cancel"))
	pending := n.must(t, place("cat", "r1", "tea", 1)).Order
	n.must(t, pay(pending, "pay"))
	n.must(t, ofOrder(pending, "void", domain.VoidPayment{OrderID: pending.ID, By: "clerk"}))
	erased := n.must(t, eraseUser("ann", "erase", 7))
	n.campaign(t, "campaign", 2, 1)
	terms := domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000}
	n.must(t, couponRequest("TEN", "coupon", terms))
	product := domain.PutProduct{SKU: "tea", Title: "A tea", Price: domain.Money{Currency: "EUR", Minor: 1299}}
	campaign := domain.PutCampaign{
		CampaignID: "flash", SKU: "tea", Price: euros5, OpensAt: start, ClosesAt: start.Add(time.Hour), Units: 2, UserUnitsMax: 1,
	}
	payment := domain.PaymentID(order.ID, 2)
	nothing := []struct {
		request Request
		partID  string
	}{
		{cancelOrder(ended, "n"), ""},
		{ofOrder(pending, "n", domain.VoidPayment{OrderID: pending.ID, By: "boss"}), domain.PaymentID(pending.ID, 1)},
		{ofOrder(order, "n-pay", domain.StartPayment{OrderID: order.ID, Number: 1, Provider: "sandbox", Method: "card"}), domain.PaymentID(order.ID, 1)},
		{ofOrder(order, "n-capture", domain.CapturePayment{OrderID: order.ID}), payment},
		{ofOrder(order, "n-refund", domain.RefundPayment{OrderID: order.ID, Number: 1}), domain.RefundID(payment, 1)},
		{ofOrder(order, "n-ship", domain.ShipItems{OrderID: order.ID, Number: 1}), domain.ShipmentID(order.ID, 1)},
		{ofOrder(order, "n-deliver", domain.ConfirmDelivery{OrderID: order.ID, ShipmentID: domain.ShipmentID(order.ID, 1)}), domain.ShipmentID(order.ID, 1)},
		{ofOrder(order, "n-return", domain.RequestReturn{OrderID: order.ID, Number: 1}), domain.ReturnID(order.ID, 1)},
		{ofOrder(order, "n-receive", domain.ReceiveReturn{OrderID: order.ID, ReturnID: domain.ReturnID(order.ID, 1)}), domain.ReturnID(order.ID, 1)},
		{ofOrder(order, "n-note", domain.AddNote{OrderID: order.ID, Number: 1, By: "clerk", Sealed: []byte("x")}), domain.NoteID(order.ID, 1)},
		{catalogRequest("tea", "n-product", product), ""},
		{catalogRequest("tea", "n-campaign", campaign), ""},
		{couponRequest("TEN", "n-coupon", terms), ""},
		{eraseUser("ann", "n-erase", 7), ""},
	}
	replies := make([]*Reply, len(nothing))
	head := n.head()
	for i, c := range nothing {
		replies[i] = n.must(t, c.request)
		if replies[i].PartID != c.partID {
			t.Errorf("%T: the reply names %q, want %q", c.request.Command, replies[i].PartID, c.partID)
		}
		if replies[i].Commit == 0 || replies[i].Commit > head {
			t.Errorf("%T: the reply is at commit %d, want that of what it found, %d at most", c.request.Command, replies[i].Commit, head)
		}
	}
	if got, want := n.head(), head+uint64(len(nothing)); got != want {
		t.Errorf("the log is at commit %d, want %d: one for each", got, want)
	}
	if got := replies[10]; got.Product.Title != "A tea" || replies[11].Campaign.Units != 2 || replies[12].Coupon.Terms != terms {
		t.Errorf("the puts are answered\n%+v\n%+v\n%+v", got, replies[11], replies[12])
	}
	if got := replies[13]; got.Erased.Key != 7 || got.Commit != erased.Commit || !got.At.Equal(erased.At) {
		t.Errorf("the erasure is answered %+v, want as of commit %d", got, erased.Commit)
	}
	// What they found changes.
	n.must(t, ofOrder(order, "later", domain.AddNote{OrderID: order.ID, By: "clerk", Sealed: []byte("later")}))
	n.must(t, ofOrder(ended, "later", domain.AddNote{OrderID: ended.ID, By: "clerk", Sealed: []byte("later")}))
	n.must(t, result(pending, 1, domain.ResultVoided))
	product.Title, campaign.Units, terms.RateBps = "Another tea", 3, 2000
	n.must(t, catalogRequest("tea", "later-product", product))
	n.must(t, catalogRequest("tea", "later-campaign", campaign))
	n.must(t, couponRequest("TEN", "later-coupon", terms))
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"at once", func() {}},
		{"after a restart", func() { n.restart(t) }},
		{"after the state was lost", func() { n.fs = vfs.NewMem(); n.restart(t) }},
	} {
		step.do()
		opened := n.head()
		for i, c := range nothing {
			if again := n.must(t, c.request); !reflect.DeepEqual(again, replies[i]) {
				t.Errorf("%s: %T again answers\n%+v, first\n%+v (I4)", step.name, c.request.Command, again, replies[i])
			}
			other := c.request
			other.Fingerprint[0] ^= 1
			var reused *KeyReusedError
			if _, err := n.Submit(t.Context(), other); !errors.As(err, &reused) {
				t.Errorf("%s: %T with another body under the same id: %v, want a KeyReusedError (I4)", step.name, c.request.Command, err)
			}
		}
		if got := n.head(); got != opened {
			t.Errorf("%s: the log went from commit %d to %d, repetitions write nothing", step.name, opened, got)
		}
	}
}

// TestARequestInFlightThatFoundNothingToDoIsRememberedAtOnce sends many copies and another body beside them.
func TestARequestInFlightThatFoundNothingToDoIsRememberedAtOnce(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	order := n.must(t, place("ann", "r1", "tea", 1)).Order
	n.must(t, cancelOrder(order, "cancel"))
	head := n.head()
	var group sync.WaitGroup
	replies, refused := make([]*Reply, 100), make([]bool, 100)
	for i := range replies {
		group.Go(func() {
			request := cancelOrder(order, "again")
			request.Fingerprint[0] = byte(i % 2)
			reply, err := n.Submit(t.Context(), request)
			var reused *KeyReusedError
			if refused[i] = errors.As(err, &reused); err != nil && !refused[i] {
				t.Errorf("%d: %v", i, err)
			}
			replies[i] = reply
		})
	}
	group.Wait()
	first := 0 // The body that came first.
	if refused[0] {
		first = 1
	}
	for i := range replies {
		if refused[i] != (i%2 != first) || !refused[i] && !reflect.DeepEqual(replies[i], replies[first]) {
			t.Errorf("%d: refused %t, answers %+v; %d answers %+v (I4)", i, refused[i], replies[i], first, replies[first])
		}
	}
	if got := n.head(); got != head+1 {
		t.Errorf("the log went from commit %d to %d, want one more", head, got)
	}
}

// TestARefusalIsNotRemembered: the same request may succeed later, and its id is free for another body.
func TestARefusalIsNotRemembered(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	order := n.must(t, place("ann", "r1", "tea", 1)).Order
	head := n.head()
	ship := ofOrder(order, "ship", domain.ShipItems{OrderID: order.ID})
	if _, err := n.Submit(t.Context(), ship); !errors.Is(err, domain.ErrPaymentState) {
		t.Fatalf("shipping what is not paid: %v", err)
	}
	unwelcome := pay(order, "pay")
	unwelcome.Refusal = errors.New("planted")
	if _, err := n.Submit(t.Context(), unwelcome); !errors.Is(err, unwelcome.Refusal) {
		t.Fatalf("what the request refuses itself: %v", err)
	}
	if got := n.head(); got != head {
		t.Errorf("the log went from commit %d to %d, refusals write nothing", head, got)
	}
	started := n.must(t, pay(order, "pay"))
	if again := n.must(t, unwelcome); !reflect.DeepEqual(again, started) {
		t.Errorf("a request that is no longer welcome answers\n%+v, when it was\n%+v (I4)", again, started)
	}
	n.must(t, result(order, 1, domain.ResultCaptured))
	ship.Fingerprint[0] ^= 1
	if shipped := n.must(t, ship).Order; shipped.Status != domain.StatusShipped {
		t.Errorf("the order is %v", shipped.Status)
	}
}

// head returns the number of the newest commit of lane 0.
func (n *node) head() uint64 { return n.logs[0].(*eventstore.MemoryLog).Position().Number }

func TestARepeatedCancellationIsAnsweredAsOfTheFirst(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	order := n.must(t, place("ann", "r1", "tea", 1)).Order
	n.must(t, pay(order, "pay"))
	cancelled := n.must(t, cancelOrder(order, "r2"))
	again := n.must(t, cancelOrder(order, "r3"))
	n.must(t, result(order, 1, domain.ResultCaptured)) // It goes on: the money comes late and is given back.
	if late := n.must(t, cancelOrder(order, "r3")); !reflect.DeepEqual(late, again) || !reflect.DeepEqual(late, cancelled) {
		t.Errorf("cancelling again answers\n%+v, before\n%+v, first\n%+v (I4)", late, again, cancelled)
	}
}

func TestAHundredConcurrentShipmentsAndRefundsKeepTheirBounds(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 10)
	order := n.must(t, place("ann", "r1", "tea", 5)).Order
	n.must(t, pay(order, "pay"))
	n.must(t, result(order, 1, domain.ResultCaptured))
	var group sync.WaitGroup
	var mu sync.Mutex
	shipped, refunded := 0, 0
	for i := range 100 {
		group.Go(func() {
			command := domain.Command(domain.ShipItems{OrderID: order.ID, Lines: []domain.LineRequest{{SKU: "tea", Units: 1}}})
			if i%2 == 0 {
				command = domain.RefundPayment{OrderID: order.ID, Amount: domain.Money{Currency: "EUR", Minor: order.Total.Minor / 4}}
			}
			_, err := n.Submit(t.Context(), ofOrder(order, fmt.Sprint("x", i), command))
			mu.Lock()
			defer mu.Unlock()
			var refusal domain.Refusal
			switch {
			case err == nil && i%2 == 0:
				refunded++
			case err == nil:
				shipped++
			case !errors.As(err, &refusal):
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	group.Wait()
	if shipped != 5 || refunded != 4 {
		t.Errorf("%d of 5 units were shipped, %d quarters refunded (I4)", shipped, refunded)
	}
}

func TestAPaidOrderLeavesTheDeadlineIndex(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 10)
	paid := n.must(t, place("ann", "r1", "tea", 1)).Order
	held := n.must(t, place("bob", "r1", "tea", 1)).Order
	under := n.must(t, place("cat", "r1", "tea", 1)).Order
	for _, order := range []domain.Order{paid, held, under} {
		n.must(t, pay(order, "pay"))
	}
	n.must(t, result(paid, 1, domain.ResultCaptured))
	n.must(t, result(held, 1, domain.ResultAuthorized))
	if got := n.deadlines(t); got != 3 {
		t.Fatalf("the index has %d orders, want 3", got)
	}
	n.advance(PayWithinDefault)
	eventually(t, "only the payment under way is still listed", func() bool { return n.deadlines(t) == 1 })
	n.restart(t) // Where it moved to is durable.

	// A payment that is over lists its order again, and it has had its time.
	n.must(t, ofOrder(held, "void", domain.VoidPayment{OrderID: held.ID, By: "clerk"}))
	n.must(t, result(held, 1, domain.ResultVoided))
	eventually(t, "bob's order expires", func() bool {
		_, err := n.Submit(t.Context(), pay(held, "again"))
		return errors.Is(err, domain.ErrOrderExpired) && n.deadlines(t) == 1
	})
	if reply := n.must(t, result(under, 1, domain.ResultUnknown)); reply.Order.Status != domain.StatusPaymentProcessing {
		t.Fatalf("within its grace the order is %v", reply.Order.Status)
	}
	n.advance(PaymentGraceDefault)
	eventually(t, "cat's order expires", func() bool { return n.deadlines(t) == 0 })
	late := n.must(t, result(under, 1, domain.ResultCaptured)).Order
	if late.Status != domain.StatusExpired || len(late.Refunds) != 1 || !late.Payments[0].Stray {
		t.Errorf("late money: the order is %+v", late)
	}
	if now := n.must(t, result(paid, 1, domain.ResultCaptured)).Order; now.Status != domain.StatusPaid {
		t.Errorf("the paid order is %v", now.Status)
	}
}

func TestAPaymentUnderWayDefersTheDeadlineByTheGraceThatIsSet(t *testing.T) {
	n := startNode(t, 1)
	n.grace = time.Minute
	n.restart(t)
	n.stock(t, "tea", 1)
	order := n.must(t, place("ann", "r1", "tea", 1)).Order
	n.must(t, pay(order, "pay"))
	n.advance(PayWithinDefault + time.Minute - time.Nanosecond)
	if reply := n.must(t, result(order, 1, domain.ResultUnknown)); reply.Order.Status != domain.StatusPaymentProcessing {
		t.Fatalf("within its grace the order is %v", reply.Order.Status)
	}
	n.advance(time.Nanosecond)
	eventually(t, "the order expires", func() bool { return n.deadlines(t) == 0 })
}

func TestAnotherUserPaysNoOrderOfMine(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	request := pay(n.must(t, place("ann", "r1", "tea", 1)).Order, "pay")
	request.Owner = "eve"
	if _, err := n.Submit(t.Context(), request); !errors.Is(err, domain.ErrOrderNotFound) {
		t.Errorf("eve pays ann's order: %v, want not found (I7)", err)
	}
}
