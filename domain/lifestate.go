package domain

// An order's life has three axes: whether it has ended, where its payment stands and what was shipped. Its status is
// derived from them. What may happen when is the one table in life.go.

// An Ending says whether and how an order has ended before it was shipped.
type Ending uint8

// The endings.
const (
	EndingNone Ending = iota
	EndingCancelled
	EndingExpired
)

func (e Ending) String() string { return [...]string{"open", "cancelled", "expired"}[e] }

// A PaymentState says where a payment stands. An order's is that of its newest payment.
type PaymentState uint8

// The states of a payment.
const (
	// PayNone: there is no payment, or the newest was declined.
	PayNone PaymentState = iota
	// PayPending: started; the provider has not said yet.
	PayPending
	// PayAuthorized: the money is held for us.
	PayAuthorized
	// PayCaptured: the money is ours.
	PayCaptured
	// PayPartiallyRefunded and PayRefunded: some or all of it went back.
	PayPartiallyRefunded
	PayRefunded
	// PayVoided: given up before the money was ours, or, when it came nevertheless, refunded.
	PayVoided
	// PayUnknown: the provider was asked and the answer was lost; it is asked again until it is known (I5).
	PayUnknown
)

var paymentStates = [...]string{"none", "pending", "authorized", "captured", "partially_refunded", "refunded", "voided", "unknown"}

func (s PaymentState) String() string { return paymentStates[s] }

// A FulfilmentState says what of an order was shipped.
type FulfilmentState uint8

// The states of fulfilment.
const (
	// FulfilmentNone: nothing was shipped.
	FulfilmentNone FulfilmentState = iota
	// FulfilmentPartial: some units were shipped.
	FulfilmentPartial
	// FulfilmentShipped: all units were shipped.
	FulfilmentShipped
	// FulfilmentDelivered: all units were shipped and every shipment has arrived.
	FulfilmentDelivered
	// FulfilmentReturned: all units came back.
	FulfilmentReturned
)

var fulfilmentStates = [...]string{"none", "partial", "shipped", "delivered", "returned"}

func (s FulfilmentState) String() string { return fulfilmentStates[s] }

// statusOf is an order's status: how it ended, else what was shipped, else how it is paid.
func statusOf(ending Ending, payment PaymentState, fulfilment FulfilmentState) OrderStatus {
	switch ending {
	case EndingCancelled:
		return StatusCancelled
	case EndingExpired:
		return StatusExpired
	case EndingNone:
	}
	switch fulfilment {
	case FulfilmentPartial:
		return StatusPartiallyShipped
	case FulfilmentShipped:
		return StatusShipped
	case FulfilmentDelivered:
		return StatusDelivered
	case FulfilmentReturned:
		return StatusReturned
	case FulfilmentNone:
	}
	return [...]OrderStatus{
		PayNone: StatusPendingPayment, PayVoided: StatusPendingPayment,
		PayPending: StatusPaymentProcessing, PayUnknown: StatusPaymentProcessing,
		PayAuthorized: StatusAuthorized,
		PayCaptured:   StatusPaid, PayPartiallyRefunded: StatusPaid, PayRefunded: StatusPaid,
	}[payment]
}
