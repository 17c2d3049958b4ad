package domain

import (
	"errors"
	"fmt"
	"strconv"
)

// Sentinels of the refusals of an order's life.
var (
	ErrOrderCancelled        = errors.New("order cancelled")
	ErrOrderShipped          = errors.New("order shipped")
	ErrPaymentState          = errors.New("payment state")
	ErrFulfilmentState       = errors.New("fulfilment state")
	ErrOrderPartNotFound     = errors.New("order part not found")
	ErrOrderLimit            = errors.New("order limit")
	ErrRefundExceedsCaptured = errors.New("refund exceeds captured")
	ErrUnitsExceeded         = errors.New("units exceeded")
	ErrAmountMismatch        = errors.New("amount mismatch")
)

// OrderCancelledError refuses to go on with an order that was cancelled.
type OrderCancelledError struct{ OrderID OrderID }

func (e *OrderCancelledError) Error() string { return fmt.Sprintf("order %v was cancelled", e.OrderID) }

// Unwrap returns ErrOrderCancelled.
func (e *OrderCancelledError) Unwrap() error { return ErrOrderCancelled }

// Reason returns ReasonOrderCancelled.
func (e *OrderCancelledError) Reason() Reason { return ReasonOrderCancelled }

// Facts returns the order id.
func (e *OrderCancelledError) Facts() map[string]string {
	return map[string]string{"order_id": e.OrderID.String()}
}

// OrderShippedError refuses to cancel an order of which something was shipped: it can be returned.
type OrderShippedError struct{ OrderID OrderID }

func (e *OrderShippedError) Error() string {
	return fmt.Sprintf("order %v was shipped, at least in part", e.OrderID)
}

// Unwrap returns ErrOrderShipped.
func (e *OrderShippedError) Unwrap() error { return ErrOrderShipped }

// Reason returns ReasonOrderShipped.
func (e *OrderShippedError) Reason() Reason { return ReasonOrderShipped }

// Facts returns the order id.
func (e *OrderShippedError) Facts() map[string]string {
	return map[string]string{"order_id": e.OrderID.String()}
}

// PaymentStateError refuses what does not go with where the payment stands.
type PaymentStateError struct {
	OrderID OrderID
	Payment PaymentState
}

func (e *PaymentStateError) Error() string {
	return fmt.Sprintf("order %v: this cannot be done while its payment is %s", e.OrderID, e.Payment)
}

// Unwrap returns ErrPaymentState.
func (e *PaymentStateError) Unwrap() error { return ErrPaymentState }

// Reason returns ReasonPaymentState.
func (e *PaymentStateError) Reason() Reason { return ReasonPaymentState }

// Facts returns the order id and the state.
func (e *PaymentStateError) Facts() map[string]string {
	return map[string]string{"order_id": e.OrderID.String(), "payment": e.Payment.String()}
}

// FulfilmentStateError refuses what does not go with what was shipped.
type FulfilmentStateError struct {
	OrderID    OrderID
	Fulfilment FulfilmentState
}

func (e *FulfilmentStateError) Error() string {
	return fmt.Sprintf("order %v: this cannot be done while its fulfilment is %s", e.OrderID, e.Fulfilment)
}

// Unwrap returns ErrFulfilmentState.
func (e *FulfilmentStateError) Unwrap() error { return ErrFulfilmentState }

// Reason returns ReasonFulfilmentState.
func (e *FulfilmentStateError) Reason() Reason { return ReasonFulfilmentState }

// Facts returns the order id and the state.
func (e *FulfilmentStateError) Facts() map[string]string {
	return map[string]string{"order_id": e.OrderID.String(), "fulfilment": e.Fulfilment.String()}
}

// OrderPartNotFoundError refuses a payment, refund, shipment or return that the order does not have.
type OrderPartNotFoundError struct {
	// Part is "payment", "refund", "shipment" or "return".
	Part string
	ID   string
}

func (e *OrderPartNotFoundError) Error() string {
	return fmt.Sprintf("there is no %s %s", e.Part, clip(e.ID))
}

// Unwrap returns ErrOrderPartNotFound.
func (e *OrderPartNotFoundError) Unwrap() error { return ErrOrderPartNotFound }

// Reason returns ReasonOrderPartNotFound.
func (e *OrderPartNotFoundError) Reason() Reason { return ReasonOrderPartNotFound }

// Facts returns what was looked for.
func (e *OrderPartNotFoundError) Facts() map[string]string {
	return map[string]string{"part": e.Part, "id": clip(e.ID)}
}

// OrderLimitError refuses one part more than an order may have (I8).
type OrderLimitError struct {
	// Part is "payments", "refunds", "shipments", "returns" or "notes".
	Part  string
	Limit int
}

func (e *OrderLimitError) Error() string {
	return fmt.Sprintf("the order has %d %s already, which is the most", e.Limit, e.Part)
}

// Unwrap returns ErrOrderLimit.
func (e *OrderLimitError) Unwrap() error { return ErrOrderLimit }

// Reason returns ReasonOrderLimit.
func (e *OrderLimitError) Reason() Reason { return ReasonOrderLimit }

// Facts returns what there may be no more of, and the limit.
func (e *OrderLimitError) Facts() map[string]string {
	return map[string]string{"part": e.Part, "limit": strconv.Itoa(e.Limit)}
}

// RefundExceedsCapturedError refuses to give back more than is left of what was captured (I4).
type RefundExceedsCapturedError struct {
	PaymentID  string
	Want, Left Money
}

func (e *RefundExceedsCapturedError) Error() string {
	return fmt.Sprintf("payment %s has %v left to refund, want %v", clip(e.PaymentID), e.Left, e.Want)
}

// Unwrap returns ErrRefundExceedsCaptured.
func (e *RefundExceedsCapturedError) Unwrap() error { return ErrRefundExceedsCaptured }

// Reason returns ReasonRefundExceedsCaptured.
func (e *RefundExceedsCapturedError) Reason() Reason { return ReasonRefundExceedsCaptured }

// Facts returns the payment, what was wanted and what is left.
func (e *RefundExceedsCapturedError) Facts() map[string]string {
	return map[string]string{"payment_id": clip(e.PaymentID), "want": e.Want.String(), "left": e.Left.String()}
}

// UnitsExceededError refuses to ship more units than are left of what was ordered, or to return more than were shipped.
type UnitsExceededError struct {
	SKU        string
	Want, Left int64
}

func (e *UnitsExceededError) Error() string {
	return fmt.Sprintf("the order has %d units of %s left for this, want %d", e.Left, clip(e.SKU), e.Want)
}

// Unwrap returns ErrUnitsExceeded.
func (e *UnitsExceededError) Unwrap() error { return ErrUnitsExceeded }

// Reason returns ReasonUnitsExceeded.
func (e *UnitsExceededError) Reason() Reason { return ReasonUnitsExceeded }

// Facts returns the SKU and how many units were wanted and are left.
func (e *UnitsExceededError) Facts() map[string]string {
	return map[string]string{"sku": clip(e.SKU), "want": strconv.FormatInt(e.Want, 10), "left": strconv.FormatInt(e.Left, 10)}
}

// AmountMismatchError refuses a provider's word on an amount that contradicts what is known. Somebody has to look at it.
type AmountMismatchError struct {
	// PaymentID is the payment's or the refund's id.
	PaymentID string
	Want, Got Money
}

func (e *AmountMismatchError) Error() string {
	return fmt.Sprintf("%s is of %v, and not of %v", clip(e.PaymentID), e.Want, e.Got)
}

// Unwrap returns ErrAmountMismatch.
func (e *AmountMismatchError) Unwrap() error { return ErrAmountMismatch }

// Reason returns ReasonAmountMismatch.
func (e *AmountMismatchError) Reason() Reason { return ReasonAmountMismatch }

// Facts returns the payment and both amounts.
func (e *AmountMismatchError) Facts() map[string]string {
	return map[string]string{"payment_id": clip(e.PaymentID), "want": e.Want.String(), "got": e.Got.String()}
}

func (*OrderCancelledError) isRefusal()        {}
func (*OrderShippedError) isRefusal()          {}
func (*PaymentStateError) isRefusal()          {}
func (*FulfilmentStateError) isRefusal()       {}
func (*OrderPartNotFoundError) isRefusal()     {}
func (*OrderLimitError) isRefusal()            {}
func (*RefundExceedsCapturedError) isRefusal() {}
func (*UnitsExceededError) isRefusal()         {}
func (*AmountMismatchError) isRefusal()        {}
