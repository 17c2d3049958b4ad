package domain

import (
	"bytes"
	"slices"
	"time"
)

// OrderStatus says where an order stands. The numbers are those of weir.order.v1.OrderStatus.
type OrderStatus uint8

// The statuses of an order. The zero status is that of no order.
const (
	// StatusPendingPayment: placed and not paid yet; its units are reserved until PayBy.
	StatusPendingPayment OrderStatus = 1
	// StatusCancelled: ended on request; its units went back.
	StatusCancelled OrderStatus = 2
	// StatusExpired: not paid by PayBy; its units went back.
	StatusExpired OrderStatus = 3
	// StatusPaid: the money was captured, nothing was shipped; its units are sold.
	StatusPaid OrderStatus = 4
	// StatusPartiallyShipped: paid, and some units were shipped.
	StatusPartiallyShipped OrderStatus = 5
	// StatusShipped: paid, and all units were shipped.
	StatusShipped OrderStatus = 6
	// StatusDelivered: every shipment has arrived.
	StatusDelivered OrderStatus = 7
	// StatusReturned: all units came back.
	StatusReturned OrderStatus = 8
	// StatusAuthorized: the money is held, and not captured yet; its units are reserved.
	StatusAuthorized OrderStatus = 9
	// StatusPaymentProcessing: a payment was started, and what came of it is not known yet; its units are reserved.
	StatusPaymentProcessing OrderStatus = 10
)

func (s OrderStatus) String() string {
	switch s {
	case StatusPendingPayment:
		return "pending_payment"
	case StatusCancelled:
		return "cancelled"
	case StatusExpired:
		return "expired"
	case StatusPaid:
		return "paid"
	case StatusPartiallyShipped:
		return "partially_shipped"
	case StatusShipped:
		return "shipped"
	case StatusDelivered:
		return "delivered"
	case StatusReturned:
		return "returned"
	case StatusAuthorized:
		return "authorized"
	case StatusPaymentProcessing:
		return "payment_processing"
	}
	return "none"
}

// An Order is the fold of its events.
type Order struct {
	ID     OrderID
	UserID string
	Status OrderStatus
	// What the status is derived from.
	Ending     Ending
	Payment    PaymentState
	Fulfilment FulfilmentState
	// Lines in the order of the request. Nobody changes them.
	Lines []Line
	// Total is what is to be paid.
	Total Money
	// Log times.
	PlacedAt, PayBy, UpdatedAt time.Time
	// CancelReason is empty unless the order is cancelled.
	CancelReason string
	// SealedNote is the note alone, sealed under the user's key, as orders had it before they knew of more; nil for none.
	// Nobody changes it.
	SealedNote []byte
	// Pool, CouponCode and CouponPool as in OrderPlaced.
	Pool, CouponCode, CouponPool string
	// SealedPersonal is what the order knows of a person, sealed under the user's key; nil for nothing. Nobody changes it.
	SealedPersonal []byte
	// Payments, refunds, shipments, returns and notes, oldest first. Nobody changes them in place.
	Payments  []Payment
	Refunds   []Refund
	Shipments []Shipment
	Returns   []Return
	Notes     []Note
}

// CampaignID returns the campaign at whose terms the order was placed, empty for none.
func (o *Order) CampaignID() string { return CampaignOf(o.Pool) }

// Evolve returns the order after one more of its events, committed at log time at. Events of products and stock leave it
// as it is.
// REQUIRES: an order's event is of this order.
func (o Order) Evolve(e Event, at time.Time) Order {
	switch e := e.(type) {
	case OrderPlaced:
		return Order{
			ID: e.OrderID, UserID: e.UserID, Status: StatusPendingPayment, Lines: e.Lines, Total: e.Total,
			PlacedAt: at, PayBy: e.PayBy, UpdatedAt: at, SealedNote: e.SealedNote, SealedPersonal: e.SealedPersonal,
			Pool: e.Pool, CouponCode: e.CouponCode, CouponPool: e.CouponPool,
		}
	case OrderCancelled:
		o.Ending, o.CancelReason, o.UpdatedAt = EndingCancelled, e.Reason, at
	case OrderExpired:
		o.Ending, o.UpdatedAt = EndingExpired, at
	case PaymentStarted, PaymentAuthorized, PaymentCaptureRequested, PaymentCaptured, PaymentDeclined, PaymentBecameUnknown,
		PaymentVoidRequested, PaymentVoided, RefundStarted, PaymentRefunded, RefundFailed, StrayPaymentFound,
		ItemsShipped, ShipmentDelivered, ReturnRequested, ReturnReceived, NoteAdded, PointsAwarded, PointsTakenBack:
		o = o.evolveLife(e, at)
	case ProductPut, StockReceived, StockGranted, StockAllotted, StockReturned, StockReclaimed, UserErased,
		CampaignPut, PoolFilled, PoolDrained, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted, RequestAnswered:
		return o
	}
	o.derive()
	return o
}

// Equal reports whether two orders are the same in every field.
func (o Order) Equal(other Order) bool {
	return o.ID == other.ID && o.UserID == other.UserID && o.Status == other.Status && o.Total == other.Total &&
		o.PlacedAt.Equal(other.PlacedAt) && o.PayBy.Equal(other.PayBy) && o.UpdatedAt.Equal(other.UpdatedAt) &&
		o.CancelReason == other.CancelReason && bytes.Equal(o.SealedNote, other.SealedNote) &&
		o.Pool == other.Pool && o.CouponCode == other.CouponCode && o.CouponPool == other.CouponPool &&
		bytes.Equal(o.SealedPersonal, other.SealedPersonal) &&
		o.Ending == other.Ending && o.Payment == other.Payment && o.Fulfilment == other.Fulfilment &&
		slices.Equal(o.Lines, other.Lines) && slices.EqualFunc(o.Payments, other.Payments, Payment.Equal) && slices.Equal(o.Refunds, other.Refunds) &&
		slices.EqualFunc(o.Shipments, other.Shipments, Shipment.Equal) && slices.EqualFunc(o.Returns, other.Returns, Return.Equal) &&
		slices.EqualFunc(o.Notes, other.Notes, Note.Equal)
}

// releases returns what the order gives back when it ends.
func (o Order) releases() []Release {
	held := len(o.Lines)
	if o.CouponPool != "" {
		held++
	}
	released := make([]Release, len(o.Lines), held)
	for i := range o.Lines {
		released[i] = Release{SKU: stockKey(o.Pool, &o.Lines[i]), Units: o.Lines[i].Units}
	}
	if o.CouponPool != "" {
		released = append(released, Release{SKU: o.CouponPool, Units: 1})
	}
	return released
}

// stockKey returns the key of the account that a line took its units from.
func (e *OrderPlaced) stockKey(line int) string { return stockKey(e.Pool, &e.Lines[line]) }

func stockKey(pool string, line *Line) string {
	if pool != "" {
		return pool
	}
	return line.SKU
}

// OrderOf returns the order that an event is of, or false for events of products and stock.
func OrderOf(e Event) (OrderID, bool) {
	switch e := e.(type) {
	case OrderPlaced:
		return e.OrderID, true
	case OrderCancelled:
		return e.OrderID, true
	case OrderExpired:
		return e.OrderID, true
	case PaymentStarted:
		return e.OrderID, true
	case PaymentAuthorized:
		return e.OrderID, true
	case PaymentCaptureRequested:
		return e.OrderID, true
	case PaymentCaptured:
		return e.OrderID, true
	case PaymentDeclined:
		return e.OrderID, true
	case PaymentBecameUnknown:
		return e.OrderID, true
	case PaymentVoidRequested:
		return e.OrderID, true
	case PaymentVoided:
		return e.OrderID, true
	case RefundStarted:
		return e.OrderID, true
	case PaymentRefunded:
		return e.OrderID, true
	case RefundFailed:
		return e.OrderID, true
	case StrayPaymentFound:
		return e.OrderID, true
	case ItemsShipped:
		return e.OrderID, true
	case ShipmentDelivered:
		return e.OrderID, true
	case ReturnRequested:
		return e.OrderID, true
	case ReturnReceived:
		return e.OrderID, true
	case NoteAdded:
		return e.OrderID, true
	case PointsAwarded:
		return e.OrderID, true
	case PointsTakenBack:
		return e.OrderID, true
	case ProductPut, StockReceived, StockGranted, StockAllotted, StockReturned, StockReclaimed, UserErased,
		CampaignPut, PoolFilled, PoolDrained, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted, RequestAnswered:
	}
	return OrderID{}, false
}

// A Product is the fold of its ProductPut events.
type Product struct {
	SKU, Title string
	Price      Money
	Tax        Tax
	// UpdatedAt is the log time of the newest change.
	UpdatedAt time.Time
}

// Put returns the event that says the product as it is.
func (p Product) Put() ProductPut {
	return ProductPut{SKU: p.SKU, Title: p.Title, Price: p.Price, Tax: p.Tax}
}

// Evolve returns the product after one more of its events, committed at log time at. Other events leave it as it is.
// REQUIRES: a product's event is of this product.
func (p Product) Evolve(e Event, at time.Time) Product {
	if e, ok := e.(ProductPut); ok {
		return Product{SKU: e.SKU, Title: e.Title, Price: e.Price, Tax: e.Tax, UpdatedAt: at}
	}
	return p
}
