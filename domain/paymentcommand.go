package domain

// StartPayment begins to pay an order. The event is durable before a provider hears of it.
type StartPayment struct {
	OrderID OrderID
	// Number of the payment, counted from 1; the lane fills in the next.
	Number int
	// Provider is the name of the adapter, Method its way to pay, for example a token of a card. No provider does without one, but
	// an order that costs nothing asks none.
	Provider, Method string
	// CaptureNow asks for the money with the authorization; otherwise it is held until CapturePayment.
	CaptureNow bool
	// By is the subject who asked.
	By string
}

// CapturePayment asks for the money that is held. What comes of it is recorded by RecordPaymentResult.
type CapturePayment struct {
	OrderID OrderID
	By      string
}

// VoidPayment asks to give up a payment whose money was not taken.
type VoidPayment struct {
	OrderID OrderID
	Reason  string
	By      string
}

// A PaymentResult is what a provider says of a payment.
type PaymentResult uint8

// What a provider may say.
const (
	// ResultAuthorized: the money is held.
	ResultAuthorized PaymentResult = 1 + iota
	// ResultCaptured: the money was taken.
	ResultCaptured
	// ResultDeclined: there will be no money.
	ResultDeclined
	// ResultUnknown: the provider was asked, and nobody knows what it did.
	ResultUnknown
	// ResultVoided: the money was let go.
	ResultVoided
)

// RecordPaymentResult records what a provider says of a payment. The same again changes nothing; a late one is harmless.
type RecordPaymentResult struct {
	OrderID   OrderID
	PaymentID string
	// Provider is who says so; a payment of another one is not found. Empty means the payment's own.
	Provider string
	Result   PaymentResult
	// Amount that is held or was taken. A wrong one is never accepted: it is voided or refunded.
	Amount Money
	// Code and Message say why it was declined; they are cut to ProviderCodeBytesMax and ProviderMessageBytesMax.
	Code, Message string
}

// RecordStrayPayment records money that was taken for a payment which the order does not count as paid. It is refunded.
type RecordStrayPayment struct {
	OrderID   OrderID
	PaymentID string
	Amount    Money
	// Why it is stray, for people to read.
	Why string
}

// RefundPayment gives money back: all that is left, or a part.
type RefundPayment struct {
	OrderID OrderID
	// PaymentID is the payment whose money it is; empty means the one that paid the order.
	PaymentID string
	// Number of the refund among the payment's, counted from 1; the lane fills in the next.
	Number int
	// Amount to give back; zero means all that is left.
	Amount Money
	Reason string
	By     string
}

// RecordRefundResult records what a provider says of a refund.
type RecordRefundResult struct {
	OrderID  OrderID
	RefundID string
	// Provider is who says so; a refund of another one is not found. Empty means the refund's own.
	Provider string
	// Succeeded says that Amount went back; otherwise Code says why not.
	Succeeded bool
	Amount    Money
	Code      string
}

func (StartPayment) isCommand()        {}
func (CapturePayment) isCommand()      {}
func (VoidPayment) isCommand()         {}
func (RecordPaymentResult) isCommand() {}
func (RecordStrayPayment) isCommand()  {}
func (RefundPayment) isCommand()       {}
func (RecordRefundResult) isCommand()  {}
