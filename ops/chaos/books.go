package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/payments/sandbox"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// An event is one line of 'weir log cat', as far as it matters here.
type event struct {
	Lane    uint32 `json:"lane"`
	Commit  uint64 `json:"commit"`
	Type    string `json:"type"`
	User    string `json:"user"`
	OrderID string `json:"aggregate"`
	Request string `json:"request"`
	Payload struct {
		PaymentID   string `json:"paymentId"`
		RefundID    string `json:"refundId"`
		Currency    string `json:"currencyCode"`
		AmountMinor int64  `json:"amountMinor,string"`
	} `json:"payload"`
}

// eventTypes are those that are read: what requests do to orders, and what money does.
var eventTypes = []string{
	"OrderPlaced", "OrderCancelled", "PaymentStarted", "PaymentCaptureRequested", "PaymentVoidRequested", "RefundStarted", "ItemsShipped",
	"PaymentAuthorized", "PaymentCaptured", "PaymentDeclined", "PaymentVoided", "StrayPaymentFound", "PaymentRefunded", "RefundFailed",
}

func decodeEvent(line []byte) (e event, err error) {
	if err := json.Unmarshal(line, &e); err != nil {
		return e, fmt.Errorf("a line of the log cannot be read: %w: %.200s", err, line)
	}
	return e, nil
}

// An account is what one book says of one payment, in minor units.
type account struct {
	// state is the last one of the payment's own, in the provider's words; what came in the end counts.
	state    string
	currency string
	// captures counts how often money was taken, captured is how much in all.
	captures int
	captured int64
	// refunds that went back, by id; refunded is their sum.
	refunds  map[string]int64
	refunded int64
}

// books are the accounts of one book by payment id, and what is wrong with it by itself.
type books struct {
	accounts map[string]*account
	wrong    []error
}

func (b *books) of(paymentID string) *account {
	a, known := b.accounts[paymentID]
	if !known {
		a = &account{refunds: map[string]int64{}}
		b.accounts[paymentID] = a
	}
	return a
}

func (b *books) violated(format string, arguments ...any) {
	b.wrong = append(b.wrong, fmt.Errorf(format, arguments...))
}

func (a *account) capture(currency string, minor int64) {
	a.state, a.currency = payments.StateCaptured.String(), currency
	a.captures++
	a.captured += minor
}

func (b *books) refund(paymentID, refundID, currency string, minor int64) {
	a := b.of(paymentID)
	if _, twice := a.refunds[refundID]; twice {
		b.violated("refund %s went back twice (I4)", refundID)
	}
	a.refunds[refundID] = minor
	a.refunded += minor
	if currency != a.currency {
		b.violated("refund %s is in %s, its payment in %q", refundID, currency, a.currency)
	}
}

// prove checks what holds in every book: a payment takes money once, and gives no more back than it took (I4).
func (b *books) prove(name string) {
	for id, a := range b.accounts {
		if a.captures > 1 {
			b.violated("%s: payment %s was captured %d times (I4)", name, id, a.captures)
		}
		if a.refunded > a.captured {
			b.violated("%s: payment %s took %d and gave %d back (I4)", name, id, a.captured, a.refunded)
		}
	}
}

// booksOfProvider adds up the ledger of the sandbox.
func booksOfProvider(ledger []sandbox.Entry) *books {
	b := &books{accounts: map[string]*account{}}
	for i := range ledger {
		entry := &ledger[i]
		switch entry.Kind {
		case payments.StateCaptured.String():
			b.of(entry.PaymentID).capture(entry.Amount.Currency, entry.Amount.Minor)
		case "refunded":
			b.refund(entry.PaymentID, entry.RefundID, entry.Amount.Currency, entry.Amount.Minor)
		case "refund_failed":
		default:
			b.of(entry.PaymentID).state = entry.Kind
		}
	}
	b.prove("the provider's ledger")
	return b
}

// booksOfLog adds up the events of the log. A payment is captured for as much as it was started for, or the money is stray.
func booksOfLog(events []event) *books {
	b := &books{accounts: map[string]*account{}}
	asked := map[string]int64{}
	for i := range events {
		e := &events[i].Payload
		switch events[i].Type {
		case "PaymentStarted":
			b.of(e.PaymentID)
			asked[e.PaymentID] = e.AmountMinor
		case "PaymentAuthorized":
			b.of(e.PaymentID).state = payments.StateAuthorized.String()
		case "PaymentDeclined":
			b.of(e.PaymentID).state = payments.StateDeclined.String()
		case "PaymentVoided":
			b.of(e.PaymentID).state = payments.StateVoided.String()
		case "PaymentCaptured":
			b.of(e.PaymentID).capture(e.Currency, e.AmountMinor)
			if e.AmountMinor != asked[e.PaymentID] {
				b.violated("the log: payment %s was started for %d and captured for %d", e.PaymentID, asked[e.PaymentID], e.AmountMinor)
			}
		case "StrayPaymentFound":
			b.of(e.PaymentID).capture(e.Currency, e.AmountMinor)
		case "PaymentRefunded":
			paymentID := e.RefundID
			if end := strings.LastIndex(e.RefundID, "-r"); end >= 0 {
				paymentID = e.RefundID[:end]
			}
			b.refund(paymentID, e.RefundID, e.Currency, e.AmountMinor)
		}
	}
	b.prove("the log")
	return b
}

// booksOfViews adds up orders as the views show them.
func booksOfViews(orders []*orderv1.Order) *books {
	b := &books{accounts: map[string]*account{}}
	for _, o := range orders {
		for _, p := range o.GetPayments() {
			a := b.of(p.GetPaymentId())
			if p.GetCaptured() != nil {
				a.capture(p.GetCaptured().GetCurrencyCode(), p.GetCaptured().GetUnits())
			}
			for _, r := range o.GetRefunds() {
				if r.GetPaymentId() == p.GetPaymentId() && r.GetState() == orderv1.RefundState_REFUND_STATE_SUCCEEDED {
					b.refund(p.GetPaymentId(), r.GetRefundId(), r.GetAmount().GetCurrencyCode(), r.GetAmount().GetUnits())
				}
			}
			if a.refunded != p.GetRefunded().GetUnits() {
				b.violated("a view: payment %s gave %d back, its refunds are %d", p.GetPaymentId(), p.GetRefunded().GetUnits(), a.refunded)
			}
		}
	}
	b.prove("a view")
	return b
}

// compareBooks returns what one book says otherwise than the other, to the minor unit. States are compared where both have them.
func compareBooks(name, otherName string, one, other *books) []error {
	wrong := slices.Concat(one.wrong, other.wrong)
	ids := maps.Clone(one.accounts)
	maps.Copy(ids, other.accounts)
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		a, known := one.accounts[id]
		b, otherKnown := other.accounts[id]
		switch {
		case !known || !otherKnown:
			wrong = append(wrong, fmt.Errorf("payment %s: %s knows it: %t, %s: %t (I4)", id, name, known, otherName, otherKnown))
		case a.captured != b.captured || a.refunded != b.refunded || !maps.Equal(a.refunds, b.refunds):
			wrong = append(wrong, fmt.Errorf("payment %s: %s took %d and gave %d back %v, %s took %d and gave %d back %v (I4)",
				id, name, a.captured, a.refunded, a.refunds, otherName, b.captured, b.refunded, b.refunds))
		case a.currency != b.currency:
			wrong = append(wrong, fmt.Errorf("payment %s: %s is in %q, %s in %q", id, name, a.currency, otherName, b.currency))
		case a.state != b.state && a.state != "" && b.state != "":
			wrong = append(wrong, fmt.Errorf("payment %s: %s says that it is %s, %s that it is %s", id, name, a.state, otherName, b.state))
		}
	}
	return wrong
}

// checkEffects compares the log with what was acknowledged: every order once, every request in one commit (I1, I4). acknowledged
// maps a user and a request id to the order.
func checkEffects(events []event, acknowledged map[string]string) []error {
	type place struct {
		lane   uint32
		commit uint64
	}
	var wrong []error
	places := map[string]place{}
	placed := map[string]int{}
	for i := range events {
		e := &events[i]
		if e.Request == "" {
			continue
		}
		key, at := effectKey(e.User, e.Request), place{e.Lane, e.Commit}
		if first, known := places[key]; known && first != at {
			wrong = append(wrong, fmt.Errorf("request %s of %s took effect in lane %d, commit %d and in lane %d, commit %d (I4)",
				e.Request, e.User, first.lane, first.commit, at.lane, at.commit))
		}
		places[key] = at
		if e.Type != "OrderPlaced" {
			continue
		}
		placed[key]++
		switch id, known := acknowledged[key]; {
		case !known:
			wrong = append(wrong, fmt.Errorf("order %s is in the log, and request %s of %s was not acknowledged", e.OrderID, e.Request, e.User))
		case id != e.OrderID || placed[key] > 1:
			wrong = append(wrong, fmt.Errorf("request %s of %s was acknowledged with order %s and placed %s (I4)", e.Request, e.User, id, e.OrderID))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(acknowledged)) {
		if placed[key] == 0 {
			wrong = append(wrong, fmt.Errorf("order %s was acknowledged and is not in the log (I1)", acknowledged[key]))
		}
	}
	return wrong
}

func effectKey(user, request string) string { return user + " " + request }
