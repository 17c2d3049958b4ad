package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/domain"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func ledgerEntry(kind, payment, refund string, minor int64) sandbox.Entry {
	return sandbox.Entry{Kind: kind, PaymentID: payment, RefundID: refund, Amount: domain.Money{Currency: "EUR", Minor: minor}}
}

func logEvent(t *testing.T, lane, commit int, kind, request, payload string) event {
	t.Helper()
	line := fmt.Sprintf(`{"lane":%d,"commit":%d,"index":0,"type":%q,"user":"alice","aggregate":"o1","request":%q,"payload":%s}`, lane, commit, kind, request, payload)
	e, err := decodeEvent([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// goodBooks are a ledger and a log that agree: an order that was paid in two steps and refunded in part, a payment that was declined
// and stray money that went back.
func goodBooks(t *testing.T) ([]sandbox.Entry, []event) {
	t.Helper()
	ledger := []sandbox.Entry{
		ledgerEntry("authorized", "o1-p1", "", 500), ledgerEntry("declined", "o1-p2", "", 0), ledgerEntry("captured", "o1-p1", "", 500),
		ledgerEntry("captured", "o1-p3", "", 501), ledgerEntry("refunded", "o1-p1", "o1-p1-r1", 200), ledgerEntry("refunded", "o1-p3", "o1-p3-r1", 501),
		ledgerEntry("refund_failed", "o1-p1", "o1-p1-r2", 100),
	}
	events := []event{
		logEvent(t, 1, 5, "OrderPlaced", "place-1", `{"currencyCode":"EUR","totalMinor":"500"}`),
		logEvent(t, 1, 6, "PaymentStarted", "pay-1", `{"paymentId":"o1-p1","currencyCode":"EUR","amountMinor":"500"}`),
		logEvent(t, 1, 7, "PaymentAuthorized", "", `{"paymentId":"o1-p1","currencyCode":"EUR","amountMinor":"500"}`),
		logEvent(t, 1, 8, "PaymentCaptured", "", `{"paymentId":"o1-p1","currencyCode":"EUR","amountMinor":"500"}`),
		logEvent(t, 1, 9, "PaymentStarted", "pay-2", `{"paymentId":"o1-p2","currencyCode":"EUR","amountMinor":"500"}`),
		logEvent(t, 1, 10, "PaymentDeclined", "", `{"paymentId":"o1-p2"}`),
		logEvent(t, 1, 11, "PaymentStarted", "pay-3", `{"paymentId":"o1-p3","currencyCode":"EUR","amountMinor":"500"}`),
		logEvent(t, 1, 12, "StrayPaymentFound", "", `{"paymentId":"o1-p3","currencyCode":"EUR","amountMinor":"501"}`),
		logEvent(t, 1, 13, "RefundStarted", "refund-1", `{"refundId":"o1-p1-r1","paymentId":"o1-p1","currencyCode":"EUR","amountMinor":"200"}`),
		logEvent(t, 1, 14, "PaymentRefunded", "", `{"refundId":"o1-p1-r1","currencyCode":"EUR","amountMinor":"200"}`),
		logEvent(t, 1, 15, "PaymentRefunded", "", `{"refundId":"o1-p3-r1","currencyCode":"EUR","amountMinor":"501"}`),
		logEvent(t, 1, 16, "RefundFailed", "", `{"refundId":"o1-p1-r2"}`),
	}
	return ledger, events
}

func compareAll(ledger []sandbox.Entry, events []event) []error {
	wrong := compareBooks("the provider", "the log", booksOfProvider(ledger), booksOfLog(events))
	return append(wrong, checkEffects(events, map[string]string{effectKey("alice", "place-1"): "o1"})...)
}

// A checker that cannot see a wrong book is blind: each of these is planted into books that agree.
func TestEveryWrongBookIsSeen(t *testing.T) {
	for _, c := range []struct {
		name  string
		plant func(ledger []sandbox.Entry, events []event) ([]sandbox.Entry, []event)
		want  string
	}{
		{name: "books that agree"},
		{name: "the provider captured twice", want: "was captured 2 times (I4)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			return append(l, l[2]), e
		}},
		{name: "the log captured twice", want: "the log: payment o1-p1 was captured 2 times (I4)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			return l, append(e, e[3])
		}},
		{name: "one minor unit less in the log", want: "was started for 500 and captured for 499", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			e[3].Payload.AmountMinor--
			return l, e
		}},
		{name: "one minor unit more at the provider", want: "the provider took 501 and gave 200 back", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			l[2].Amount.Minor++
			return l, e
		}},
		{name: "a refund that went back twice", want: "refund o1-p1-r1 went back twice (I4)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			return append(l, l[4]), e
		}},
		{name: "more refunded than captured", want: "took 500 and gave 600 back (I4)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			return append(l, ledgerEntry("refunded", "o1-p1", "o1-p1-r3", 400)), e
		}},
		{name: "a refund that the log does not know", want: "gave 201 back", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			return append(l, ledgerEntry("refunded", "o1-p1", "o1-p1-r3", 1)), e
		}},
		{name: "a charge that the log does not know", want: "the log: false (I4)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			return append(l, ledgerEntry("captured", "o9-p1", "", 500)), e
		}},
		{name: "a refund in another currency", want: `is in USD, its payment in "EUR"`, plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			l[4].Amount.Currency = "USD"
			return l, e
		}},
		{name: "held money that the log says was declined", want: "the provider says that it is authorized, the log that it is declined", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			l[1].Kind = "authorized"
			return l, e
		}},
		{name: "a request that took effect twice", want: "took effect in lane 1, commit 9 and in lane 1, commit 99 (I4)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			e[10].Request, e[10].Commit = e[4].Request, 99
			return l, e
		}},
		{name: "an order that was placed twice", want: "was acknowledged with order o1 and placed o2 (I4)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			again := e[0]
			again.OrderID = "o2"
			return l, append(e, again)
		}},
		{name: "an order that nobody was told of", want: "was not acknowledged", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			e[0].Request = "place-9"
			return l, e
		}},
		{name: "an acknowledged order that is gone", want: "is not in the log (I1)", plant: func(l []sandbox.Entry, e []event) ([]sandbox.Entry, []event) {
			return l, e[1:]
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ledger, events := goodBooks(t)
			if c.plant != nil {
				ledger, events = c.plant(ledger, events)
			}
			wrong := compareAll(ledger, events)
			if c.want == "" {
				if len(wrong) > 0 {
					t.Fatalf("books that agree are wrong: %v", wrong)
				}
				return
			}
			if !slices.ContainsFunc(wrong, func(err error) bool { return strings.Contains(err.Error(), c.want) }) {
				t.Fatalf("wrong is %v, want one with %q", wrong, c.want)
			}
		})
	}
}

func euros(minor int64) *typev1.Money { return &typev1.Money{CurrencyCode: "EUR", Units: minor} }

func paidOrder() *orderv1.Order {
	return &orderv1.Order{
		OrderId: "o1", UserId: "alice", Total: euros(500), Items: []*orderv1.OrderItem{{Sku: "tea", Quantity: 1}}, Revision: &typev1.Revision{Commit: 9},
		Payments: []*orderv1.Payment{{
			PaymentId: "o1-p1", State: orderv1.PaymentState_PAYMENT_STATE_PARTIALLY_REFUNDED, CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC,
			Amount: euros(500), Captured: euros(500), Refunded: euros(200),
		}},
		Refunds:   []*orderv1.Refund{{RefundId: "o1-p1-r1", PaymentId: "o1-p1", State: orderv1.RefundState_REFUND_STATE_SUCCEEDED, Amount: euros(200)}},
		Shipments: []*orderv1.Shipment{{}},
	}
}

func TestAnOrderThatGoesBackIsSeen(t *testing.T) {
	if what := regression(paidOrder(), paidOrder()); what != "" {
		t.Errorf("an order as it was: %s", what)
	}
	for name, plant := range map[string]func(*orderv1.Order){
		"another order":          func(o *orderv1.Order) { o.OrderId = "o2" },
		"another total":          func(o *orderv1.Order) { o.Total.Units++ },
		"a line less":            func(o *orderv1.Order) { o.Items = nil },
		"an older one":           func(o *orderv1.Order) { o.Revision.Commit-- },
		"a payment less":         func(o *orderv1.Order) { o.Payments = nil },
		"another capture":        func(o *orderv1.Order) { o.Payments[0].Captured.Units-- },
		"no capture":             func(o *orderv1.Order) { o.Payments[0].Captured = nil },
		"less refunded":          func(o *orderv1.Order) { o.Payments[0].Refunded.Units-- },
		"too much refunded":      func(o *orderv1.Order) { o.Payments[0].Refunded.Units = 501 },
		"another refund":         func(o *orderv1.Order) { o.Refunds[0].Amount.Units++ },
		"a shipment that is not": func(o *orderv1.Order) { o.Shipments = nil },
	} {
		is := proto.CloneOf(paidOrder())
		plant(is)
		if regression(paidOrder(), is) == "" {
			t.Errorf("%s is not seen", name)
		}
	}
}

func TestWhatWaitsForItsProviderIsNotSettled(t *testing.T) {
	if what := unsettled(paidOrder()); what != "" {
		t.Errorf("a paid order waits: %s", what)
	}
	for name, plant := range map[string]func(*orderv1.Order){
		"a pending payment":               func(o *orderv1.Order) { o.Payments[0].State = orderv1.PaymentState_PAYMENT_STATE_PENDING },
		"an unknown one":                  func(o *orderv1.Order) { o.Payments[0].State = orderv1.PaymentState_PAYMENT_STATE_UNKNOWN },
		"held money that was to be taken": func(o *orderv1.Order) { o.Payments[0].State = orderv1.PaymentState_PAYMENT_STATE_AUTHORIZED },
		"a refund under way":              func(o *orderv1.Order) { o.Refunds[0].State = orderv1.RefundState_REFUND_STATE_UNDER_WAY },
	} {
		o := paidOrder()
		plant(o)
		if unsettled(o) == "" {
			t.Errorf("%s counts as settled", name)
		}
	}
	held := paidOrder()
	held.Payments[0].State, held.Payments[0].CaptureMode = orderv1.PaymentState_PAYMENT_STATE_AUTHORIZED, orderv1.CaptureMode_CAPTURE_MODE_MANUAL
	if what := unsettled(held); what != "" {
		t.Errorf("held money that nobody asked for waits: %s", what)
	}
	held.Payments[0].VoidRequested = true
	if unsettled(held) == "" {
		t.Error("held money that is to be let go counts as settled")
	}
}

func TestAViewThatSaysOtherwiseThanTheLogIsSeen(t *testing.T) {
	log := &books{accounts: map[string]*account{"o1-p1": {state: "captured", currency: "EUR", captures: 1, captured: 500, refunded: 200, refunds: map[string]int64{"o1-p1-r1": 200}}}}
	if wrong := compareBooks("the log", "a view", log, booksOfViews([]*orderv1.Order{paidOrder()})); len(wrong) > 0 {
		t.Errorf("a view that agrees: %v", wrong)
	}
	for name, plant := range map[string]func(*orderv1.Order){
		"a capture less":                        func(o *orderv1.Order) { o.Payments[0].Captured = nil },
		"a refund less":                         func(o *orderv1.Order) { o.Refunds = nil },
		"a sum that is not that of the refunds": func(o *orderv1.Order) { o.Payments[0].Refunded.Units++ },
		"another payment":                       func(o *orderv1.Order) { o.Payments[0].PaymentId = "o1-p2" },
	} {
		o := paidOrder()
		plant(o)
		if len(compareBooks("the log", "a view", log, booksOfViews([]*orderv1.Order{o}))) == 0 {
			t.Errorf("%s is not seen", name)
		}
	}
}
