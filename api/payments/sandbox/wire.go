package sandbox

import (
	"time"

	"github.com/weirhq/weir/domain"
)

// The JSON of the sandbox's API. Amounts are in minor units.

type wireMoney struct {
	Currency string `json:"currency"`
	Minor    int64  `json:"minor"`
}

func (m wireMoney) money() domain.Money { return domain.Money{Currency: m.Currency, Minor: m.Minor} }

func wireOf(m domain.Money) wireMoney { return wireMoney{Currency: m.Currency, Minor: m.Minor} }

// wireCharge is the body of POST /v1/payments/{id}.
type wireCharge struct {
	OrderID    string    `json:"order_id"`
	Amount     wireMoney `json:"amount"`
	Method     string    `json:"method"`
	CaptureNow bool      `json:"capture_now"`
}

// wireCapture is the body of POST /v1/payments/{id}/capture.
type wireCapture struct {
	Amount wireMoney `json:"amount"`
}

// wireRefundAsk is the body of POST /v1/payments/{id}/refunds/{refund id}.
type wireRefundAsk struct {
	Amount wireMoney `json:"amount"`
}

// wirePayment answers every call but a refund.
type wirePayment struct {
	PaymentID      string       `json:"payment_id"`
	Reference      string       `json:"reference"`
	State          string       `json:"state"`
	Amount         wireMoney    `json:"amount"`
	Captured       wireMoney    `json:"captured"`
	Refunded       wireMoney    `json:"refunded"`
	Refunds        []wireRefund `json:"refunds,omitempty"`
	DeclineCode    string       `json:"decline_code,omitempty"`
	DeclineMessage string       `json:"decline_message,omitempty"`
}

// wireRefund answers a refund.
type wireRefund struct {
	RefundID    string    `json:"refund_id"`
	Reference   string    `json:"reference"`
	State       string    `json:"state"`
	Amount      wireMoney `json:"amount"`
	FailureCode string    `json:"failure_code,omitempty"`
}

// wireError answers what is refused.
type wireError struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// codeNoSuchPayment is the code of a payment that is not there. A 404 without it comes from somebody else.
const codeNoSuchPayment = "no_such_payment"

// wireEvent is the body of a webhook.
type wireEvent struct {
	ID        string        `json:"id"`
	Type      string        `json:"type"`
	CreatedAt time.Time     `json:"created_at"`
	Data      wireEventData `json:"data"`
}

type wireEventData struct {
	PaymentID      string      `json:"payment_id"`
	State          string      `json:"state"`
	Amount         wireMoney   `json:"amount"`
	DeclineCode    string      `json:"decline_code,omitempty"`
	DeclineMessage string      `json:"decline_message,omitempty"`
	Refund         *wireRefund `json:"refund,omitempty"`
}

// An Entry is one line of the ledger: something that happened to money, once.
type Entry struct {
	// Number counts the entries from 1, without gaps in time but for deliveries.
	Number uint64    `json:"number"`
	At     time.Time `json:"at"`
	// Kind is "authorized", "captured", "declined", "pending", "voided", "refunded" or "refund_failed".
	Kind      string `json:"kind"`
	PaymentID string `json:"payment_id"`
	RefundID  string `json:"refund_id,omitempty"`
	// Amount that was moved or reserved; zero where none was.
	Amount domain.Money `json:"amount"`
	// Charge is what was asked for, in the first entry of a payment; nil when it was voided before it arrived.
	Charge *EntryCharge `json:"charge,omitempty"`
	// Code says why, of what was declined or failed.
	Code string `json:"code,omitempty"`
}

// An EntryCharge is what a payment was asked for.
type EntryCharge struct {
	OrderID    string       `json:"order_id"`
	Asked      domain.Money `json:"asked"`
	Method     string       `json:"method"`
	CaptureNow bool         `json:"capture_now"`
}

// A Ledger is a part of what happened, and the sums of all of it.
type Ledger struct {
	Entries []Entry `json:"entries"`
	// Next is where the next part begins (GET /ledger?after=NEXT); 0 at the end.
	Next uint64 `json:"next"`
	// Totals are of the whole ledger, by currency.
	Totals []LedgerTotal `json:"totals"`
	// Payments counts all payments that there are.
	Payments int `json:"payments"`
	// WebhooksWaiting counts the webhooks that are still to be delivered, or delivered again.
	WebhooksWaiting int `json:"webhooks_waiting"`
}

// A LedgerTotal sums up one currency, in minor units.
type LedgerTotal struct {
	Currency string `json:"currency"`
	Captured int64  `json:"captured"`
	Refunded int64  `json:"refunded"`
	Captures int64  `json:"captures"`
	Refunds  int64  `json:"refunds"`
}
