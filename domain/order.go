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
)

func (s OrderStatus) String() string {
	switch s {
	case StatusPendingPayment:
		return "pending_payment"
	case StatusCancelled:
		return "cancelled"
	case StatusExpired:
		return "expired"
	}
	return "none"
}

// An Order is the fold of its events.
type Order struct {
	ID     OrderID
	UserID string
	Status OrderStatus
	// Lines in the order of the request. Nobody changes them.
	Lines []Line
	// Total is what is to be paid.
	Total Money
	// Log times.
	PlacedAt, PayBy, UpdatedAt time.Time
	// CancelReason is empty unless the order is cancelled.
	CancelReason string
	// SealedNote is the note, sealed under the user's key; nil for none. Nobody changes it.
	SealedNote []byte
	// Pool, CouponCode and CouponPool as in OrderPlaced.
	Pool, CouponCode, CouponPool string
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
			PlacedAt: at, PayBy: e.PayBy, UpdatedAt: at, SealedNote: e.SealedNote,
			Pool: e.Pool, CouponCode: e.CouponCode, CouponPool: e.CouponPool,
		}
	case OrderCancelled:
		o.Status, o.CancelReason, o.UpdatedAt = StatusCancelled, e.Reason, at
	case OrderExpired:
		o.Status, o.UpdatedAt = StatusExpired, at
	case ProductPut, StockReceived, StockGranted, StockAllotted, StockReturned, StockReclaimed,
		CampaignPut, PoolFilled, PoolDrained, CouponPut:
	}
	return o
}

// Equal reports whether two orders are the same in every field.
func (o Order) Equal(other Order) bool {
	return o.ID == other.ID && o.UserID == other.UserID && o.Status == other.Status && o.Total == other.Total &&
		o.PlacedAt.Equal(other.PlacedAt) && o.PayBy.Equal(other.PayBy) && o.UpdatedAt.Equal(other.UpdatedAt) &&
		o.CancelReason == other.CancelReason && bytes.Equal(o.SealedNote, other.SealedNote) &&
		o.Pool == other.Pool && o.CouponCode == other.CouponCode && o.CouponPool == other.CouponPool &&
		slices.Equal(o.Lines, other.Lines)
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
	case ProductPut, StockReceived, StockGranted, StockAllotted, StockReturned, StockReclaimed,
		CampaignPut, PoolFilled, PoolDrained, CouponPut:
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

// Evolve returns the product after one more of its events, committed at log time at. Other events leave it as it is.
// REQUIRES: a product's event is of this product.
func (p Product) Evolve(e Event, at time.Time) Product {
	if e, ok := e.(ProductPut); ok {
		return Product{SKU: e.SKU, Title: e.Title, Price: e.Price, Tax: e.Tax, UpdatedAt: at}
	}
	return p
}
