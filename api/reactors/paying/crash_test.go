package paying_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
)

// TestNoPaymentIsDoubledOrLostOverTwoHundredKills kills the node at random steps, most of them around a call to a provider that
// loses requests and answers, after charging too. Whatever of the disk is left, every payment is settled in the end as the provider's
// books have it.
func TestNoPaymentIsDoubledOrLostOverTwoHundredKills(t *testing.T) {
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 9))
	s := newShop(t, seed, 2, "sandbox", "other")
	l := s.start()
	l.stock(1_000_000)
	var orders []domain.Order
	kills := 0
	for kills < killsMin {
		for _, bank := range s.banks {
			bank.setMishaps(mishaps{
				loseBefore: random.IntN(15), loseAfter: random.IntN(25), killBefore: random.IntN(40), killAfter: random.IntN(60),
				pending: random.IntN(20), decline: random.IntN(10), wrongAmount: random.IntN(5),
			})
		}
		for range 40 {
			if l.dead.Load() {
				break
			}
			orders = act(l, random, orders)
		}
		if random.IntN(8) == 0 && !l.dead.Load() { // Not around a call: at whatever is under way.
			l.kill()
		}
		if l.dead.Load() {
			kills++
			l.stop()
			l = s.start()
		}
	}
	for _, bank := range s.banks {
		bank.heal()
	}
	if l.dead.Load() { // Before the bank was healed.
		l.stop()
		l = s.start()
	}
	for round := range 3 { // Expire what is not paid, with time for what that leads to.
		l.settle()
		for _, bank := range s.banks {
			for _, notice := range bank.takeNotices(true) {
				for range 1 + random.IntN(2) {
					if err := l.cashier.Take(context.Background(), notice); err != nil {
						t.Fatalf("take %+v: %v", notice, err)
					}
				}
			}
		}
		l.settle()
		if round < 2 {
			s.advance(time.Hour)
		}
	}
	l.checkBooks(seed, orders)
	captured := 0
	for _, bank := range s.banks {
		for _, a := range bank.accounts {
			captured += a.captures
		}
	}
	t.Logf("seed %d: %d kills, %d orders, %d captures", seed, kills, len(orders), captured)
	if captured < killsMin/2 {
		t.Errorf("seed %d: %d payments were captured: the test tests little", seed, captured)
	}
	l.stop()
}

// act takes one random step of a customer, a merchant, a provider's webhook, the clock or the disk.
func act(l *life, random *rand.Rand, orders []domain.Order) []domain.Order {
	if len(orders) == 0 || random.IntN(5) == 0 {
		if order, err := l.place(1 + random.Int64N(3)); err == nil {
			orders = append(orders, order)
			_, _ = l.submit(order.UserID, order.ID.Partition(), start(order, random))
		}
		return orders
	}
	order := orders[len(orders)-1-random.IntN(min(len(orders), 30))]
	do := func(c domain.Command) { _, _ = l.submit(order.UserID, order.ID.Partition(), c) } // Refusals are fine.
	switch dice := random.IntN(100); {
	case dice < 15:
		do(start(order, random))
	case dice < 30:
		do(domain.CapturePayment{OrderID: order.ID})
	case dice < 36:
		do(domain.VoidPayment{OrderID: order.ID, Reason: "test"})
	case dice < 46:
		do(domain.RefundPayment{OrderID: order.ID, Amount: domain.Money{Currency: "EUR", Minor: 1 + random.Int64N(price)}, Reason: "test"})
	case dice < 50:
		do(domain.RefundPayment{OrderID: order.ID, Reason: "test"})
	case dice < 58:
		do(domain.CancelOrder{OrderID: order.ID, Reason: "test"})
	case dice < 80:
		for _, bank := range l.banks {
			for _, notice := range bank.takeNotices(false) {
				for range 1 + random.IntN(2) {
					_ = l.cashier.Take(l.alive, notice) // If it fails the provider's books tell in the end.
				}
			}
		}
	case dice < 90:
		l.advance(time.Duration(random.IntN(int(3 * time.Minute))))
	case dice < 93:
		if err := l.store.Flush(); err != nil {
			l.tb.Error(err)
		}
	default:
		l.settleBriefly()
	}
	return orders
}

func start(order domain.Order, random *rand.Rand) domain.Command {
	return domain.StartPayment{
		OrderID: order.ID, Provider: []string{"sandbox", "other"}[random.IntN(2)], Method: "tok_ok", CaptureNow: random.IntN(2) == 0,
	}
}

// settleBriefly lets the cashier work, for at most 2 ms.
func (l *life) settleBriefly() {
	over := time.NewTimer(2 * time.Millisecond)
	defer over.Stop()
	poll := time.NewTicker(100 * time.Microsecond)
	defer poll.Stop()
	for !l.dead.Load() {
		select {
		case <-over.C:
			return
		case <-poll.C:
		}
	}
}

// checkBooks compares what the orders say with what the providers have in their books (I4, I5).
func (l *life) checkBooks(seed uint64, orders []domain.Order) {
	l.tb.Helper()
	known := map[string]bool{}
	for _, placed := range orders {
		order := l.order(placed.ID)
		if err := order.Check(); err != nil {
			l.tb.Errorf("seed %d, order %s: %v", seed, order.ID, err)
		}
		for _, p := range order.Payments {
			known[p.Provider+" "+p.ID] = true
			l.checkPayment(seed, &order, p)
		}
		for _, r := range order.Refunds {
			if r.State == domain.RefundUnderWay {
				l.tb.Errorf("seed %d: refund %s is still under way (I5)", seed, r.ID)
			}
		}
	}
	for _, bank := range l.banks {
		for id, a := range bank.accounts {
			if a.captures > 1 || a.refunded() > a.captured {
				l.tb.Errorf("seed %d: %s captured payment %s %d times and gave %d of %d back (I4)", seed, bank.name, id, a.captures, a.refunded(), a.captured)
			}
			if !known[bank.name+" "+id] {
				l.tb.Errorf("seed %d: %s has payment %s, which no order has", seed, bank.name, id)
			}
		}
	}
}

func (l *life) checkPayment(seed uint64, order *domain.Order, p domain.Payment) {
	l.tb.Helper()
	var books account
	for _, bank := range l.banks {
		if bank.name == p.Provider {
			books, _ = bank.books(p.ID)
		}
	}
	var want payments.State
	switch p.State {
	case domain.PayPending, domain.PayUnknown:
		l.tb.Errorf("seed %d: payment %s is %v in the end (I5)", seed, p.ID, p.State)
		return
	case domain.PayNone:
		want = payments.StateDeclined
	case domain.PayAuthorized:
		want = payments.StateAuthorized
	case domain.PayCaptured, domain.PayPartiallyRefunded, domain.PayRefunded:
		want = payments.StateCaptured
	case domain.PayVoided:
		want = payments.StateVoided
		if p.Stray {
			want = payments.StateCaptured
			if books.refunded() != books.captured {
				l.tb.Errorf("seed %d: of stray payment %s %d of %d went back", seed, p.ID, books.refunded(), books.captured)
			}
		}
	}
	if books.state != want || books.captured != p.Taken.Minor || books.refunded() != p.RefundedMinor {
		l.tb.Errorf("seed %d: payment %s is %v with %d taken and %d refunded, the books say %v, %d, %d; order %v",
			seed, p.ID, p.State, p.Taken.Minor, p.RefundedMinor, books.state, books.captured, books.refunded(), order.Status)
	}
}
