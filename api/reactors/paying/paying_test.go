package paying_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/reactors/paying"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

func TestEveryEventThatAsksAProviderIsDecoded(t *testing.T) {
	cashier := open(t, "sandbox").cashier
	registration := cashier.Registration()
	order := domain.NewOrderID(time.Unix(1_700_000_000, 0), 0, [10]byte{}).String()
	wanted := 0
	for _, typeName := range stored.Types() {
		fact, err := stored.Decode(typeName, 1, order, "alice", nil)
		if err != nil || !registration.Wants(fact) {
			continue // What no order is of asks nothing of a provider.
		}
		wanted++
		if !slices.Contains(registration.Types, typeName) {
			t.Errorf("the cashier wants %s and is never given one: a payment that nobody makes (I5)", typeName)
		}
	}
	if wanted != len(registration.Types) {
		t.Errorf("the cashier wants %d of the %d types that it is given", wanted, len(registration.Types))
	}
}

// open starts a shop with stock. It stops with the test.
func open(t *testing.T, names ...string) *life {
	t.Helper()
	l := newShop(t, seedOf(t), 1, names...).start()
	t.Cleanup(func() {
		l.stop()
		if l.left != nil {
			t.Error("the process was killed")
		}
	})
	l.stock(1000)
	return l
}

func pay(order domain.Order, method string, now bool) domain.StartPayment {
	return domain.StartPayment{OrderID: order.ID, Provider: "sandbox", Method: method, CaptureNow: now}
}

// wantPayment compares the newest payment of an order.
func (l *life) wantPayment(id domain.OrderID, want domain.PaymentState) domain.Payment {
	l.tb.Helper()
	order := l.order(id)
	p := order.Payments[len(order.Payments)-1]
	if p.State != want {
		l.tb.Fatalf("payment %s is %v, want %v; %+v", p.ID, p.State, want, l.cashier.Status())
	}
	return p
}

func TestAPaymentIsMadeHeldTakenAndGivenBack(t *testing.T) {
	l := open(t, "sandbox")
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_ok", false))
	l.settle()
	l.wantPayment(order.ID, domain.PayAuthorized)
	l.mustDo(order, domain.CapturePayment{OrderID: order.ID})
	l.settle()
	l.wantPayment(order.ID, domain.PayCaptured)
	l.mustDo(order, domain.RefundPayment{OrderID: order.ID, Amount: domain.Money{Currency: "EUR", Minor: 250}})
	l.settle()
	l.wantPayment(order.ID, domain.PayPartiallyRefunded)
	l.mustDo(order, domain.CancelOrder{OrderID: order.ID})
	l.settle()
	p := l.wantPayment(order.ID, domain.PayRefunded)
	books, _ := l.banks[0].books(p.ID)
	if books.captures != 1 || books.refunded() != price {
		t.Errorf("the books have %d captures and %d refunded, want 1 and %d", books.captures, books.refunded(), price)
	}
}

func TestOnlyTheOwnerOfALaneAsksAProviderAndAnyNodeIsReadyTo(t *testing.T) {
	s := newShop(t, seedOf(t), 1, "sandbox")
	var owned atomic.Bool
	s.owned = func(uint32) bool { return owned.Load() }
	s.limits.CheckBackMax = time.Hour // Who gets the lane does not wait for the next look.
	l := s.start()
	defer l.stop()
	l.stock(10)
	waiting := func() (waiting int) {
		for _, provider := range l.cashier.Status().Providers {
			waiting += provider.Waiting
		}
		return waiting
	}
	// One that the owner settles elsewhere, and one that is settled here when the lane comes.
	elsewhere := l.mustPlace()
	l.mustDo(elsewhere, pay(elsewhere, "tok_ok", true))
	here := l.mustPlace()
	l.mustDo(here, pay(here, "tok_ok", true))
	l.await("both to be on the list", func() bool { return waiting() == 2 })
	paid := l.order(elsewhere.ID).Payments[0]
	l.mustDo(elsewhere, domain.RecordPaymentResult{
		OrderID: elsewhere.ID, PaymentID: paid.ID, Provider: "sandbox", Result: domain.ResultCaptured, Amount: paid.Amount,
	})
	l.cashier.Own(0, true) // It looks, and still asks nobody.
	l.await("what was settled elsewhere to leave the list", func() bool { return waiting() == 1 })
	for _, id := range []domain.OrderID{elsewhere.ID, here.ID} {
		if calls := l.banks[0].callsOf("authorize", l.order(id).Payments[0].ID); calls != 0 {
			t.Fatalf("a node that does not own the lane asked %d times", calls)
		}
	}
	owned.Store(true)
	l.cashier.Own(0, true)
	l.settle()
	l.wantPayment(here.ID, domain.PayCaptured)
}

func TestADeclinedPaymentMayBeTriedAgain(t *testing.T) {
	l := open(t, "sandbox")
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_decline", true))
	l.settle()
	if p := l.wantPayment(order.ID, domain.PayNone); p.DeclineCode != "card_declined" {
		t.Errorf("declined with %q", p.DeclineCode)
	}
	l.mustDo(order, pay(order, "tok_ok", true))
	l.settle()
	l.wantPayment(order.ID, domain.PayCaptured)
}

func TestAChargeThatIsRejectedIsDeclined(t *testing.T) {
	l := open(t, "sandbox")
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_none", true)) // There is no such method.
	l.settle()
	if p := l.wantPayment(order.ID, domain.PayNone); p.DeclineCode != payments.CodeInvalid {
		t.Errorf("declined with %q, want %q", p.DeclineCode, payments.CodeInvalid)
	}
}

func TestHeldMoneyThatCannotBeTakenIsLetGo(t *testing.T) {
	l := open(t, "sandbox")
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_capture_refused", false))
	l.settle()
	l.mustDo(order, domain.CapturePayment{OrderID: order.ID})
	l.settle()
	l.wantPayment(order.ID, domain.PayVoided)
}

func TestALostAnswerMakesAPaymentUnknownUntilTheProviderIsAskedBack(t *testing.T) {
	l := open(t, "sandbox")
	l.banks[0].setMishaps(mishaps{loseAfter: 100})
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_ok", true))
	l.await("the payment to be unknown", func() bool { return l.order(order.ID).Payment == domain.PayUnknown })
	l.banks[0].heal()
	l.settle()
	p := l.wantPayment(order.ID, domain.PayCaptured)
	if books, _ := l.banks[0].books(p.ID); books.captures != 1 {
		t.Errorf("captured %d times, want once (I4)", books.captures)
	}
	if calls := l.banks[0].callsOf("lookup", p.ID); calls == 0 {
		t.Error("the provider was not asked what had become of the payment")
	}
}

func TestACancelledOrderWhosePaymentIsUnknownEndsWithoutMoney(t *testing.T) {
	l := open(t, "sandbox")
	l.banks[0].setDown(true)
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_ok", true))
	l.await("the payment to be unknown", func() bool { return l.order(order.ID).Payment == domain.PayUnknown })
	l.mustDo(order, domain.CancelOrder{OrderID: order.ID})
	l.banks[0].heal()
	l.settle()
	p := l.wantPayment(order.ID, domain.PayVoided)
	if books, _ := l.banks[0].books(p.ID); books.captured != books.refunded() {
		t.Errorf("%d of %d was given back", books.refunded(), books.captured)
	}
}

func TestAWrongAmountIsRaisedAndNotAccepted(t *testing.T) {
	for _, now := range []bool{false, true} {
		t.Run(fmt.Sprintf("capture now %v", now), func(t *testing.T) {
			l := open(t, "sandbox")
			order := l.mustPlace()
			l.mustDo(order, pay(order, "tok_wrong", now))
			l.settle()
			p := l.wantPayment(order.ID, domain.PayVoided)
			if books, _ := l.banks[0].books(p.ID); books.captured != books.refunded() || (!now && books.state != payments.StateVoided) {
				t.Errorf("the books have %+v", books)
			}
			if status := l.cashier.Status(); status.WrongAmounts == 0 {
				t.Error("it was not raised")
			}
		})
	}
}

func TestARefundThatFailsIsRaised(t *testing.T) {
	l := open(t, "sandbox")
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_refund_fail", true))
	l.settle()
	l.mustDo(order, domain.RefundPayment{OrderID: order.ID})
	l.settle()
	if refund := l.order(order.ID).Refunds[0]; refund.State != domain.RefundHasFailed || refund.Code != "account_closed" {
		t.Errorf("got %+v", refund)
	}
	if status := l.cashier.Status(); status.RefundsFailed != 1 {
		t.Errorf("%d failed refunds were raised, want 1", status.RefundsFailed)
	}
}

// TestAReplayedOrLateNoticeHasNoEffect tells everything that a payment went through again, backwards.
func TestAReplayedOrLateNoticeHasNoEffect(t *testing.T) {
	l := open(t, "sandbox")
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_ok", false))
	l.settle()
	l.mustDo(order, domain.CapturePayment{OrderID: order.ID})
	l.settle()
	l.mustDo(order, domain.RefundPayment{OrderID: order.ID})
	l.settle()
	before, head := l.order(order.ID), l.logs[0].Position()
	notices := l.banks[0].takeNotices(true)
	if len(notices) < 3 {
		t.Fatalf("the bank told %d times", len(notices))
	}
	for range 2 {
		for _, notice := range notices {
			if err := l.cashier.Take(t.Context(), notice); err != nil {
				t.Errorf("%+v: %v", notice, err)
			}
		}
	}
	l.settle()
	if after := l.order(order.ID); !after.Equal(before) {
		t.Errorf("the order was changed: %+v, was %+v", after, before)
	}
	if got := l.logs[0].Position(); got != head {
		t.Errorf("the log grew from %d to %d", head.Number, got.Number)
	}
}

func TestANoticeSettlesAPaymentBeforeTheProviderIsAskedBack(t *testing.T) {
	l := open(t, "sandbox")
	l.banks[0].setMishaps(mishaps{pending: 100})
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_ok", true))
	paymentID := domain.PaymentID(order.ID, 1)
	notice := payments.Notice{
		Provider: "sandbox", EventID: "evt-1", PaymentID: paymentID, State: payments.StateCaptured, Amount: order.Total,
	}
	if err := l.cashier.Take(t.Context(), notice); err != nil {
		t.Fatal(err)
	}
	l.wantPayment(order.ID, domain.PayCaptured)
	l.settle()
}

// TestAProviderSpeaksForItsOwnPaymentsOnly has one provider tell of a payment that another one makes.
func TestAProviderSpeaksForItsOwnPaymentsOnly(t *testing.T) {
	l := open(t, "sandbox", "other")
	l.banks[0].setMishaps(mishaps{pending: 100})
	order := l.mustPlace()
	l.mustDo(order, pay(order, "tok_ok", true))
	forged := payments.Notice{
		Provider: "other", EventID: "evt-1", PaymentID: domain.PaymentID(order.ID, 1), State: payments.StateCaptured, Amount: order.Total,
	}
	if err := l.cashier.Take(t.Context(), forged); err != nil {
		t.Fatal(err)
	}
	l.wantPayment(order.ID, domain.PayPending)
	if status := l.cashier.Status(); status.Orphans != 1 {
		t.Errorf("%d orphans were raised, want 1", status.Orphans)
	}
	l.banks[0].heal()
	l.await("the payment to be captured", func() bool { return l.order(order.ID).Payment == domain.PayCaptured })
}

// TestMoneyWithoutAnOrderIsRefundedAndRaised also restarts the node before the provider answers.
func TestMoneyWithoutAnOrderIsRefundedAndRaised(t *testing.T) {
	s := newShop(t, seedOf(t), 1, "sandbox")
	l := s.start()
	l.stock(1000)
	bank := s.banks[0]
	lost := l.mustPlace().ID
	lost[15] ^= 1 // An order that the log has lost.
	charge := payments.Charge{
		PaymentID: domain.PaymentID(lost, 1), OrderID: lost.String(), Amount: domain.Money{Currency: "EUR", Minor: 700}, Method: "tok_ok",
		CaptureNow: true, StartedAt: s.clock(),
	}
	if _, err := bank.authorize(charge); err != nil {
		t.Fatal(err)
	}
	bank.setDown(true)
	notices := bank.takeNotices(true)
	if err := l.cashier.Take(t.Context(), notices[0]); err != nil {
		t.Fatal(err)
	}
	if status := l.cashier.Status(); status.Orphans != 1 {
		t.Errorf("%d orphans were raised, want 1", status.Orphans)
	}
	l.kill()
	l.stop()
	bank.heal()
	l = s.start()
	defer l.stop()
	l.settle()
	if books, _ := bank.books(charge.PaymentID); books.refunded() != 700 {
		t.Errorf("%d of 700 went back", books.refunded())
	}
	if err := l.cashier.Take(t.Context(), notices[0]); err != nil { // Told again.
		t.Fatal(err)
	}
	l.settle()
	if books, _ := bank.books(charge.PaymentID); books.refunded() != 700 {
		t.Errorf("%d of 700 went back after it was told again", books.refunded())
	}
	foreign := payments.Notice{Provider: "sandbox", EventID: "evt-9", PaymentID: "someone-elses", State: payments.StateCaptured}
	if err := l.cashier.Take(t.Context(), foreign); err != nil {
		t.Errorf("a payment that is none of ours: %v", err)
	}
}

// TestAProviderThatFailsHoldsUpItsOwnOrdersOnly keeps one provider down while the other one goes on.
func TestAProviderThatFailsHoldsUpItsOwnOrdersOnly(t *testing.T) {
	l := open(t, "sandbox", "other")
	l.banks[1].setDown(true)
	var failing []domain.Order
	for range 50 { // More than are worked on at a time.
		order := l.mustPlace()
		l.mustDo(order, domain.StartPayment{OrderID: order.ID, Provider: "other", Method: "tok_ok", CaptureNow: true})
		failing = append(failing, order)
	}
	for range 20 {
		order := l.mustPlace()
		l.mustDo(order, pay(order, "tok_ok", true))
		l.await("the payment to be captured", func() bool { return l.order(order.ID).Payment == domain.PayCaptured })
	}
	l.await("the reactor to be at the head", func() bool { return l.runner.Status()[0].Position == l.logs[0].Position().Number })
	l.await("the breaker to open", func() bool {
		for _, p := range l.cashier.Status().Providers {
			if p.Provider == "other" {
				return p.Breaker != payments.BreakerClosed && p.Waiting == len(failing)
			}
		}
		return false
	})
	l.banks[1].heal()
	l.settle()
	for _, order := range failing {
		l.wantPayment(order.ID, domain.PayCaptured)
	}
}

func TestAPaymentOfAProviderThatIsNotConfiguredWaitsForIt(t *testing.T) {
	s := newShop(t, seedOf(t), 1, "sandbox")
	l := s.start()
	l.stock(1000)
	order := l.mustPlace()
	l.mustDo(order, domain.StartPayment{OrderID: order.ID, Provider: "other", Method: "tok_ok", CaptureNow: true})
	l.await("the payment to wait", func() bool {
		for _, p := range l.cashier.Status().Providers {
			if p.Provider == "other" {
				return !p.Configured && p.Waiting == 1
			}
		}
		return false
	})
	l.stop()
	s.banks = append(s.banks, newBank("other", 1))
	l = s.start()
	defer l.stop()
	l.settle()
	l.wantPayment(order.ID, domain.PayCaptured)
}

// TestTheWorkListIsMadeAgainFromTheLog loses the store, with payments under way.
func TestTheWorkListIsMadeAgainFromTheLog(t *testing.T) {
	s := newShop(t, seedOf(t), 1, "sandbox")
	l := s.start()
	l.stock(1000)
	s.banks[0].setMishaps(mishaps{loseAfter: 100})
	var orders []domain.Order
	for range 10 {
		order := l.mustPlace()
		l.mustDo(order, pay(order, "tok_ok", true))
		orders = append(orders, order)
	}
	l.await("the payments to be unknown", func() bool { return l.order(orders[9].ID).Payment == domain.PayUnknown })
	l.stop()
	s.fs = newShop(t, 0, 1).fs // An empty disk.
	s.banks[0].heal()
	l = s.start()
	defer l.stop()
	l.settle()
	for _, order := range orders {
		p := l.wantPayment(order.ID, domain.PayCaptured)
		if books, _ := s.banks[0].books(p.ID); books.captures != 1 {
			t.Errorf("%s was captured %d times (I4)", p.ID, books.captures)
		}
	}
}

// TestCallsOfOneOrderDoNotOverlapAndThoseOfAProviderAreBounded looks at what is under way at a time.
func TestCallsOfOneOrderDoNotOverlapAndThoseOfAProviderAreBounded(t *testing.T) {
	l := open(t, "sandbox")
	watch := &overlaps{calls: map[string]int{}}
	l.banks[0].watch = watch
	var placing sync.WaitGroup
	orders := make([]domain.Order, 40)
	for i := range orders {
		orders[i] = l.mustPlace()
		l.mustDo(orders[i], pay(orders[i], "tok_ok", true))
	}
	for i := range orders {
		placing.Go(func() {
			for range 3 {
				_, _ = l.set.Submit(context.Background(), lanesRefund(orders[i]))
			}
		})
	}
	placing.Wait()
	l.settle()
	if watch.sameOrder > 0 || watch.most > 4 {
		t.Errorf("%d calls overlapped with one of their order, %d were under way at a time, want 0 and at most 4", watch.sameOrder, watch.most)
	}
}

func TestLimitsThatAreNoneAreRefused(t *testing.T) {
	l := open(t, "sandbox")
	base := paying.Options{Store: l.store, Topology: l.topology(), Orders: l.views, Commands: l.set}
	for _, limits := range []paying.Limits{
		{CallsMax: -1}, {WorkMax: -1}, {CheckBackMin: -1}, {CheckBackMin: 2, CheckBackMax: 1}, {FinishMax: -1}, {ViewWait: -1}, {RecordMax: -1}, {UnresolvedMax: -1},
	} {
		options := base
		options.Limits = limits
		if _, err := paying.Open(options); err == nil {
			t.Errorf("limits %+v are taken", limits)
		}
	}
	if _, err := paying.Open(paying.Options{Topology: l.topology()}); err == nil {
		t.Error("a cashier without anything is opened")
	}
	twice := base
	twice.Providers = []payments.Provider{hand{l.banks[0], l}, hand{l.banks[0], l}}
	if _, err := paying.Open(twice); err == nil {
		t.Error("two providers of one name are taken")
	}
}

func lanesRefund(order domain.Order) lanes.Request {
	return lanes.Request{Partition: order.ID.Partition(), Command: domain.RefundPayment{OrderID: order.ID, Amount: domain.Money{Currency: "EUR", Minor: 10}}}
}

// overlaps counts the calls that are under way, by order.
type overlaps struct {
	mu        sync.Mutex
	calls     map[string]int
	all, most int
	sameOrder int
}

func (o *overlaps) enter(orderID string) (leave func()) {
	if o == nil {
		return func() {}
	}
	o.mu.Lock()
	o.all++
	o.most = max(o.most, o.all)
	if o.calls[orderID]++; o.calls[orderID] > 1 {
		o.sameOrder++
	}
	o.mu.Unlock()
	for range 100 { // Others have their chance to overlap.
		runtime.Gosched()
	}
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.all--
		o.calls[orderID]--
	}
}
