package paying_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
)

// A bank is a provider with books. Its calls go wrong in the ways that callers fear.
type bank struct {
	name string

	mu       sync.Mutex
	random   *rand.Rand
	mishaps  mishaps
	accounts map[string]*account
	told     []payments.Notice // not delivered yet
	calls    map[string]int    // by call and payment
	down     bool
	// watch sees what is under way, if it is set before anything is.
	watch *overlaps
}

// mishaps are the chances of what goes wrong with a call, in percent.
type mishaps struct{ loseBefore, loseAfter, killBefore, killAfter, pending, decline, wrongAmount int }

type mishap int

const (
	none mishap = iota
	loseBefore
	loseAfter
	killBefore
	killAfter
)

// account is what the bank has in its books of one payment.
type account struct {
	charge   payments.Charge
	state    payments.State
	amount   int64
	captures int
	captured int64
	refunds  []payments.RefundStatus
}

func newBank(name string, seed uint64) *bank {
	return &bank{name: name, random: rand.New(rand.NewPCG(seed, 3)), accounts: map[string]*account{}, calls: map[string]int{}}
}

// Name implements payments.Provider.
func (b *bank) Name() string { return b.name }

func (b *bank) percent(chance int) bool { return b.random.IntN(100) < chance }

// trouble draws what goes wrong with a call.
func (b *bank) trouble() mishap {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return loseBefore
	}
	dice := b.random.IntN(1000)
	for _, m := range []struct {
		mishap mishap
		chance int
	}{{loseBefore, 10 * b.mishaps.loseBefore}, {loseAfter, 10 * b.mishaps.loseAfter}, {killBefore, b.mishaps.killBefore}, {killAfter, b.mishaps.killAfter}} {
		if dice < m.chance {
			return m.mishap
		}
		dice -= m.chance
	}
	return none
}

func (b *bank) setDown(down bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down = down
}

func (b *bank) heal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mishaps, b.down = mishaps{}, false
}

func (b *bank) setMishaps(m mishaps) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mishaps = m
}

func (a *account) status() payments.Status {
	currency := a.charge.Amount.Currency
	status := payments.Status{
		PaymentID: a.charge.PaymentID, State: a.state, Amount: domain.Money{Currency: currency, Minor: a.amount},
		Captured: domain.Money{Currency: currency, Minor: a.captured}, Refunds: slices.Clone(a.refunds),
	}
	if a.state == payments.StateDeclined {
		status.DeclineCode = "card_declined"
	}
	return status
}

func (b *bank) tell(a *account, refund *payments.RefundStatus) {
	n := payments.Notice{
		Provider: b.name, EventID: fmt.Sprintf("evt-%d", len(b.told)), At: a.charge.StartedAt, PaymentID: a.charge.PaymentID, State: a.state,
		Amount: domain.Money{Currency: a.charge.Amount.Currency, Minor: a.amount}, Refund: refund,
	}
	b.told = append(b.told, n)
}

// takeNotices returns some of what is to be told; all of it if all.
func (b *bank) takeNotices(all bool) []payments.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	count := len(b.told)
	if !all {
		count = b.random.IntN(count + 1)
	}
	b.random.Shuffle(len(b.told), func(i, j int) { b.told[i], b.told[j] = b.told[j], b.told[i] })
	taken := slices.Clone(b.told[:count])
	b.told = slices.Delete(b.told, 0, count)
	return taken
}

var errOtherCharge = errors.New("the id was used with something else")

func (b *bank) rejected(charge payments.Charge, code string) error {
	return &payments.RejectedError{Provider: b.name, Call: "call", PaymentID: charge.PaymentID, Code: code, Message: code}
}

func (b *bank) note(call string, charge payments.Charge) *account {
	b.calls[call+" "+charge.PaymentID]++
	return b.accounts[charge.PaymentID]
}

func (b *bank) callsOf(call, paymentID string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.calls[call+" "+paymentID]
}

func (b *bank) authorize(charge payments.Charge) (payments.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.note("authorize", charge)
	if err := payments.CheckCharge(b.name, "authorize", charge); err != nil {
		return payments.Status{}, err
	}
	if charge.Method == "tok_none" {
		return payments.Status{}, b.rejected(charge, payments.CodeInvalid)
	}
	if a == nil {
		a = &account{charge: charge, state: payments.StatePending}
		b.accounts[charge.PaymentID] = a
	}
	if a.state == payments.StateVoided && a.charge.Method == "" {
		return a.status(), nil
	}
	if a.charge != charge {
		return payments.Status{}, fmt.Errorf("%w: %w", b.rejected(charge, payments.CodeKeyReused), errOtherCharge)
	}
	if a.state == payments.StatePending && !b.percent(b.mishaps.pending) {
		b.decide(a)
	}
	return a.status(), nil
}

// decide ends a pending charge.
func (b *bank) decide(a *account) {
	a.amount = a.charge.Amount.Minor
	switch {
	case a.charge.Method == "tok_decline" || b.percent(b.mishaps.decline):
		a.state, a.amount = payments.StateDeclined, 0
	default:
		if a.charge.Method == "tok_wrong" || b.percent(b.mishaps.wrongAmount) {
			a.amount++
		}
		a.state = payments.StateAuthorized
		if a.charge.CaptureNow {
			a.take(a.amount)
		}
	}
	b.tell(a, nil)
}

func (a *account) take(minor int64) {
	a.state, a.captured = payments.StateCaptured, minor
	a.captures++
}

func (b *bank) capture(charge payments.Charge, amount domain.Money) (payments.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.note("capture", charge)
	switch {
	case a == nil || (a.state != payments.StateAuthorized && a.state != payments.StateCaptured):
		return payments.Status{}, b.rejected(charge, payments.CodeWrongState)
	case a.charge.Method == "tok_capture_refused":
		return payments.Status{}, b.rejected(charge, "authorization_expired")
	case a.state == payments.StateCaptured && amount.Minor != a.captured:
		return payments.Status{}, b.rejected(charge, payments.CodeKeyReused)
	case a.state == payments.StateAuthorized:
		a.take(amount.Minor)
		b.tell(a, nil)
	}
	return a.status(), nil
}

func (b *bank) void(charge payments.Charge) (payments.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.note("void", charge)
	if a == nil {
		a = &account{charge: payments.Charge{PaymentID: charge.PaymentID, Amount: charge.Amount}, state: payments.StateVoided}
		b.accounts[charge.PaymentID] = a
	}
	if a.state == payments.StatePending || a.state == payments.StateAuthorized {
		a.state = payments.StateVoided
		b.tell(a, nil)
	}
	return a.status(), nil
}

func (b *bank) refund(charge payments.Charge, refund payments.Refund) (payments.RefundStatus, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.note("refund", charge)
	if a == nil || a.state != payments.StateCaptured {
		return payments.RefundStatus{}, b.rejected(charge, payments.CodeWrongState)
	}
	for _, known := range a.refunds {
		if known.RefundID == refund.RefundID {
			if known.Amount != refund.Amount {
				return known, b.rejected(charge, payments.CodeKeyReused)
			}
			return known, nil
		}
	}
	if a.refunded()+refund.Amount.Minor > a.captured {
		return payments.RefundStatus{}, b.rejected(charge, payments.CodeAmountTooLarge)
	}
	made := payments.RefundStatus{RefundID: refund.RefundID, State: payments.RefundSucceeded, Amount: refund.Amount}
	if charge.Method == "tok_refund_fail" {
		made.State, made.FailureCode = payments.RefundFailed, "account_closed"
	}
	a.refunds = append(a.refunds, made)
	b.tell(a, &made)
	return made, nil
}

func (a *account) refunded() (minor int64) {
	for _, r := range a.refunds {
		if r.State == payments.RefundSucceeded {
			minor += r.Amount.Minor
		}
	}
	return minor
}

func (b *bank) lookup(charge payments.Charge) (payments.Status, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.note("lookup", charge)
	if a == nil {
		return payments.Status{PaymentID: charge.PaymentID}, nil
	}
	if a.state == payments.StatePending && !b.percent(b.mishaps.pending) {
		b.decide(a)
	}
	return a.status(), nil
}

// books returns a copy of what the bank has of a payment.
func (b *bank) books(paymentID string) (account, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, there := b.accounts[paymentID]
	if !there {
		return account{}, false
	}
	copied := *a
	copied.refunds = slices.Clone(a.refunds)
	return copied, true
}
