package domain

import (
	"slices"
	"strings"
	"time"
)

// A Payment is one attempt to pay an order.
type Payment struct {
	ID               string
	Provider, Method string
	// Amount asked for.
	Amount Money
	// CaptureNow: it is taken with the authorization.
	CaptureNow bool
	// StartedAt is the log time at which it was started.
	StartedAt time.Time
	State     PaymentState
	// CaptureRequested and VoidRequested say what the provider was asked for and has not answered.
	CaptureRequested, VoidRequested bool
	// Taken is the money that the provider took, zero before. Stray says that it was not for the order.
	Taken Money
	Stray bool
	// RefundedMinor of it went back.
	RefundedMinor int64
	// DeclineCode and DeclineMessage are the provider's, if it declined.
	DeclineCode, DeclineMessage string
	// Points that the user has for it, and how many a whole major unit was worth. PointsDecided says that they were awarded.
	Points, PointsPerMajor int64
	PointsDecided          bool
}

// Limits of what is said of payments.
const (
	// MethodBytesMax is the longest name of a way to pay.
	MethodBytesMax = 64
	// ProviderCodeBytesMax and ProviderMessageBytesMax are how much is kept of what a provider says.
	ProviderCodeBytesMax    = 64
	ProviderMessageBytesMax = 200
)

// ProviderNone is the provider of a payment of nothing: nobody is asked, it is captured at once.
const ProviderNone = "none"

// Equal reports whether two payments are the same in every field.
func (p Payment) Equal(other Payment) bool {
	same := p.StartedAt.Equal(other.StartedAt)
	p.StartedAt = other.StartedAt
	return same && p == other
}

// settle ends what was asked for.
func (p *Payment) settle(state PaymentState) {
	p.State, p.CaptureRequested, p.VoidRequested = state, false, false
}

func (p *Payment) refunded(minor int64) {
	p.RefundedMinor += minor
	switch {
	case p.State != PayCaptured && p.State != PayPartiallyRefunded: // A stray payment stays voided.
	case p.RefundedMinor >= p.Taken.Minor:
		p.State = PayRefunded
	default:
		p.State = PayPartiallyRefunded
	}
}

// A RefundState says where a refund stands.
type RefundState uint8

// The states of a refund.
const (
	// RefundUnderWay: the provider is asked until it says.
	RefundUnderWay RefundState = iota
	// RefundSucceeded: the money went back.
	RefundSucceeded
	// RefundHasFailed: it did not.
	RefundHasFailed
)

func (s RefundState) String() string { return [...]string{"under_way", "succeeded", "failed"}[s] }

// A Refund of a payment.
type Refund struct {
	ID, PaymentID string
	Amount        Money
	Reason        string
	// ReturnID is the return that it is for, empty for none.
	ReturnID string
	State    RefundState
	// Code is the provider's, if it failed.
	Code string
	// Points that were taken back for it.
	Points int64
}

// newest returns the order's newest payment, the zero payment when there is none.
func (o *Order) newest() Payment {
	if len(o.Payments) == 0 {
		return Payment{}
	}
	return o.Payments[len(o.Payments)-1]
}

// paid returns the payment that paid the order, else the newest.
func (o *Order) paid() Payment {
	for _, p := range o.Payments {
		if p.captured() {
			return p
		}
	}
	return o.newest()
}

func (p *Payment) captured() bool {
	return p.State == PayCaptured || p.State == PayPartiallyRefunded || p.State == PayRefunded
}

// sold reports whether the order's units are sold: it was paid. Otherwise an open order's are reserved.
func (o *Order) sold() bool {
	p := o.newest()
	return p.captured()
}

func (o *Order) paymentIndex(id string) int {
	return slices.IndexFunc(o.Payments, func(p Payment) bool { return p.ID == id })
}

// refundsOf counts the refunds of a payment.
func (o *Order) refundsOf(paymentID string) int {
	count := 0
	for i := range o.Refunds {
		if o.Refunds[i].PaymentID == paymentID {
			count++
		}
	}
	return count
}

// refundable is how much of a payment's money may still be given back, in minor units: what was taken less what went back or
// is under way (I4).
func (o *Order) refundable(p *Payment) int64 {
	left := p.Taken.Minor
	for i := range o.Refunds {
		if r := &o.Refunds[i]; r.PaymentID == p.ID && r.State != RefundHasFailed {
			left -= r.Amount.Minor
		}
	}
	return left
}

// refund starts the next refund of a payment.
func (o *Order) refund(p *Payment, minor int64, reason, returnID, by string) RefundStarted {
	return RefundStarted{
		OrderID: o.ID, UserID: o.UserID, RefundID: RefundID(p.ID, o.refundsOf(p.ID)+1), PaymentID: p.ID, Provider: p.Provider,
		Amount: Money{Currency: p.Taken.Currency, Minor: minor}, Reason: cut(reason, ReasonBytesMax), ReturnID: returnID, By: by,
	}
}

// changePayment changes a copy of the order's payments.
func (o *Order) changePayment(id string, change func(*Payment)) {
	if i := o.paymentIndex(id); i >= 0 {
		o.Payments = slices.Clone(o.Payments)
		change(&o.Payments[i])
	}
}

// changeRefund changes a copy of the order's refunds, and returns the payment whose refund it is.
func (o *Order) changeRefund(id string, change func(*Refund)) (paymentID string, found bool) {
	i := slices.IndexFunc(o.Refunds, func(r Refund) bool { return r.ID == id })
	if i < 0 {
		return "", false
	}
	o.Refunds = slices.Clone(o.Refunds)
	change(&o.Refunds[i])
	return o.Refunds[i].PaymentID, true
}

// cut keeps what fits of a stranger's text: a result is recorded whatever a provider says beside it.
func cut(text string, bytesMax int) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) <= bytesMax {
		return text
	}
	end := bytesMax
	for end > 0 && text[end]&0xc0 == 0x80 { // Not inside a character.
		end--
	}
	return text[:end]
}

// printed is a stranger's amount with a currency that is fit to be shown and stored.
func printed(m Money) Money {
	if !validCurrency(m.Currency) {
		m.Currency = "XXX" // ISO 4217's code for no currency.
	}
	return m
}
