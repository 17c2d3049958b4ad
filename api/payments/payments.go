// Package payments is the port to payment providers: what the payments reactor asks of one, whichever it is. Package
// sandbox has a provider for development and tests with its adapter, package stripe the adapter to Stripe.
//
// A payment is the one transaction that Weir shares with somebody else. Three rules keep it from being doubled (I4):
//
//  1. Our ids are the provider's idempotency keys. Every call may be repeated, by anyone, at any time, and has one effect.
//  2. An error that is ErrUnknownOutcome says that nobody knows. Lookup it, or repeat it with the same id; never with a new one.
//  3. A "no" is an answer: a decline is a Status, and no error.
//
// Every call carries the whole Charge, as it was written down when the payment started, so that an adapter needs no memory
// of its own and works on any node.
package payments

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weirhq/weir/domain"
)

// A Provider takes money and gives it back. Every method is safe for concurrent use, has a deadline of its own besides
// that of its context, and repeats harmlessly.
//
// Errors: *UnknownOutcomeError (it may have happened), *RejectedError (it has not happened, and will not), and, of a
// guarded provider, *BreakerOpenError (it was not tried).
type Provider interface {
	// Name is how events name the provider: "sandbox", "stripe".
	Name() string
	// Authorize reserves the money, or takes it at once when the charge says so. For a payment that is there already it
	// changes nothing and returns what has become of it: a decline stays a decline, and a payment that was voided before
	// it arrived stays voided. A charge that differs from the first of its id is rejected.
	Authorize(ctx context.Context, charge Charge) (Status, error)
	// Capture takes the money that was authorized, or a part of it; the rest is released. There is one capture per
	// payment: again with the same amount changes nothing, with another one it is rejected.
	Capture(ctx context.Context, charge Charge, amount domain.Money) (Status, error)
	// Void releases what is authorized, and keeps a charge that has not arrived from ever taking money. It returns what it
	// left: StateVoided, or the state that it came too late for (StateCaptured is to be refunded, StatePending to be
	// looked up again, StateDeclined is as good as voided).
	Void(ctx context.Context, charge Charge) (Status, error)
	// Refund gives captured money back. Refunds of a payment never exceed what was captured: more is rejected.
	Refund(ctx context.Context, charge Charge, refund Refund) (RefundStatus, error)
	// Lookup finds out what has become of a payment. It moves no money. StateNone: the charge has not arrived, and may
	// still be on its way.
	Lookup(ctx context.Context, charge Charge) (Status, error)
}

// A Charge is one attempt to take money for one order. Two charges with one PaymentID are equal.
type Charge struct {
	// PaymentID is ours, and the provider's idempotency key.
	PaymentID string
	OrderID   string
	// Amount is more than 0.
	Amount domain.Money
	// Method is the provider's token of what the customer pays with. It is no card number.
	Method string
	// CaptureNow takes the money with the authorization.
	CaptureNow bool
	// StartedAt is the log time at which the payment started. Providers forget idempotency keys; it says whether they have.
	StartedAt time.Time
}

// A Refund gives back money of one payment.
type Refund struct {
	// RefundID is ours, and the provider's idempotency key.
	RefundID string
	// Amount is more than 0, in the currency of the charge.
	Amount domain.Money
}

// A State is what has become of a payment, as its provider knows it. Not to know is an error, and no state.
type State uint8

// The states of a payment. Refunds do not change it: they are amounts.
const (
	// StateNone: the provider has no such payment, or has not been told to take money for it.
	StateNone State = iota
	// StatePending: the provider has it, and does not know yet.
	StatePending
	// StateAuthorized: the money is reserved.
	StateAuthorized
	// StateCaptured: the money was taken.
	StateCaptured
	// StateDeclined: there is no money, and there will be none.
	StateDeclined
	// StateVoided: it was released, or never taken, and cannot be taken any more.
	StateVoided
)

var stateNames = [...]string{"none", "pending", "authorized", "captured", "declined", "voided"}

// String returns the state's name.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Final reports whether the state does not change any more. Refunds are no change of state.
func (s State) Final() bool { return s == StateCaptured || s == StateDeclined || s == StateVoided }

// ParseState reads what String wrote.
func ParseState(name string) (State, bool) {
	for i, known := range stateNames {
		if name == known {
			return State(i), true
		}
	}
	return 0, false
}

// A Status is a payment as its provider knows it.
type Status struct {
	PaymentID string
	State     State
	// Reference is the provider's own id of the payment; empty when it has none.
	Reference string
	// Amount is what the provider reserved or took, whatever it was asked for. Who takes a Status compares it with the
	// charge: a difference is raised, not accepted. Zero in StateNone.
	Amount domain.Money
	// Captured and Refunded add up. Refunded counts what has succeeded.
	Captured, Refunded domain.Money
	// Refunds are all of the payment that have one of our ids, oldest first.
	Refunds []RefundStatus
	// DeclineCode and DeclineMessage say why, in StateDeclined: the code for programs, the message for people.
	DeclineCode, DeclineMessage string
}

// A RefundState is what has become of a refund.
type RefundState uint8

// The states of a refund.
const (
	// RefundPending: the provider has taken it on, and does not know yet.
	RefundPending RefundState = iota + 1
	// RefundSucceeded: the money is on its way back.
	RefundSucceeded
	// RefundFailed: the money is not given back this way.
	RefundFailed
)

var refundStateNames = [...]string{RefundPending: "pending", RefundSucceeded: "succeeded", RefundFailed: "failed"}

// String returns the state's name.
func (s RefundState) String() string {
	if int(s) < len(refundStateNames) && s > 0 {
		return refundStateNames[s]
	}
	return fmt.Sprintf("RefundState(%d)", uint8(s))
}

// ParseRefundState reads what String wrote.
func ParseRefundState(name string) (RefundState, bool) {
	for i, known := range refundStateNames {
		if name == known && i > 0 {
			return RefundState(i), true
		}
	}
	return 0, false
}

// A RefundStatus is a refund as the provider knows it.
type RefundStatus struct {
	RefundID string
	// Reference is the provider's own id of the refund.
	Reference string
	State     RefundState
	Amount    domain.Money
	// FailureCode says why, in RefundFailed.
	FailureCode string
}

// Limits of the port (I8). Deadlines of calls and limits of bodies are the adapters'.
const (
	// IDBytesMax bounds our ids.
	IDBytesMax = 64
	// MethodBytesMax bounds the provider's token of what the customer pays with.
	MethodBytesMax = 255
	// RefundsPerPaymentMax bounds the refunds of one payment: one call lists them all.
	RefundsPerPaymentMax = 100
	// CallTimeMax bounds a call, unless an adapter is told otherwise.
	CallTimeMax = 10 * time.Second
)

// Sentinels: errors.Is tells the kind, errors.As tells the facts.
var (
	ErrUnknownOutcome = errors.New("the outcome is unknown")
	ErrRejected       = errors.New("the provider rejects the call")
	ErrBreakerOpen    = errors.New("the provider is failing, and is not called")
)

// UnknownOutcomeError says that a call may or may not have had its effect: no answer, not in time, or one that does not
// tell. Look the payment up, or repeat the call.
type UnknownOutcomeError struct {
	// Provider and Call name what was called, PaymentID what for.
	Provider, Call, PaymentID string
	Cause                     error
}

func (e *UnknownOutcomeError) Error() string {
	return fmt.Sprintf("%s %s of %s: %v: %v", e.Provider, e.Call, e.PaymentID, ErrUnknownOutcome, e.Cause)
}

// Unwrap returns ErrUnknownOutcome and the cause.
func (e *UnknownOutcomeError) Unwrap() []error { return []error{ErrUnknownOutcome, e.Cause} }

// The codes of a RejectedError that every adapter uses. A provider's own codes come besides them.
const (
	// CodeInvalid: a field is not what its documentation says.
	CodeInvalid = "invalid"
	// CodeKeyReused: the id was used before with something else.
	CodeKeyReused = "key_reused"
	// CodeWrongState: the payment is not in a state for it.
	CodeWrongState = "wrong_state"
	// CodeAmountTooLarge: more than was authorized, or than is left of what was captured.
	CodeAmountTooLarge = "amount_too_large"
	// CodeTooLate: the provider may have forgotten the id, so that the call could double.
	CodeTooLate = "too_late"
	// CodeCredentials: the provider does not know us. This is about the configuration, and no payment.
	CodeCredentials = "credentials"
)

// RejectedError says that a call had no effect and will have none: it was wrong, or came at the wrong time. It is a fault
// of ours or of the configuration, and somebody should see it.
type RejectedError struct {
	Provider, Call, PaymentID string
	// Code is one of the constants above, or the provider's.
	Code string
	// Message is for people.
	Message string
}

func (e *RejectedError) Error() string {
	return fmt.Sprintf("%s %s of %s: %v: %s (%s)", e.Provider, e.Call, e.PaymentID, ErrRejected, e.Message, e.Code)
}

// Unwrap returns ErrRejected.
func (e *RejectedError) Unwrap() error { return ErrRejected }

// CheckCharge returns a *RejectedError for a charge that no provider takes. Adapters call it before they call.
func CheckCharge(provider, call string, charge Charge) error {
	var problem string
	switch {
	case !ValidID(charge.PaymentID):
		problem = "the payment id is none"
	case !ValidID(charge.OrderID):
		problem = "the order id is none"
	case charge.Amount.Minor <= 0:
		problem = "the amount is not more than 0"
	case len(charge.Amount.Currency) != 3:
		problem = "the amount has no currency"
	case charge.Method == "" || len(charge.Method) > MethodBytesMax:
		problem = "the payment method is missing or too long"
	case charge.StartedAt.IsZero():
		problem = "the charge does not say when it started"
	default:
		return nil
	}
	return &RejectedError{Provider: provider, Call: call, PaymentID: charge.PaymentID, Code: CodeInvalid, Message: problem}
}

// CheckAmount returns a *RejectedError for an amount that is not one of the charge's currency.
func CheckAmount(provider, call string, charge Charge, amount domain.Money) error {
	var problem string
	switch {
	case amount.Minor <= 0:
		problem = "the amount is not more than 0"
	case amount.Currency != charge.Amount.Currency:
		problem = fmt.Sprintf("the amount is in %s, the charge in %s", amount.Currency, charge.Amount.Currency)
	default:
		return nil
	}
	return &RejectedError{Provider: provider, Call: call, PaymentID: charge.PaymentID, Code: CodeInvalid, Message: problem}
}

// CheckRefund returns a *RejectedError for a refund that no provider takes.
func CheckRefund(provider, call string, charge Charge, refund Refund) error {
	if !ValidID(refund.RefundID) {
		return &RejectedError{Provider: provider, Call: call, PaymentID: charge.PaymentID, Code: CodeInvalid, Message: "the refund id is none"}
	}
	return CheckAmount(provider, call, charge, refund.Amount)
}

// ValidID reports whether an id may be a payment's or a refund's: 1 to 64 characters of A-Z a-z 0-9 _ -.
func ValidID(id string) bool {
	if len(id) == 0 || len(id) > IDBytesMax {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
