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
	replies := make([]Reply, len(requests))
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
