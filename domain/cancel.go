package domain

import (
	"time"
)

// decide of a cancellation: what was reserved or sold goes back, held money is let go, taken money is refunded.
func (c CancelOrder) decide(s State) ([]Event, error) {
	if err := checkText("reason", c.Reason, ReasonBytesMax); err != nil {
		return nil, err
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, v, err := lifeOf(s, c.OrderID, &lifeCancelOrder)
	if err != nil || v == nothing {
		return nil, err
	}
	cancelled := OrderCancelled{OrderID: order.ID, UserID: order.UserID, Reason: c.Reason, By: c.By, CouponCode: order.CouponCode}
	if !order.sold() {
		cancelled.Released = order.releases()
		return append([]Event{cancelled}, order.letGo("the order was cancelled", c.By)...), nil
	}
	cancelled.Unsold = order.releases()
	events := []Event{cancelled}
	if paid := order.paid(); order.refundable(&paid) > 0 {
		events = append(events, order.refund(&paid, order.refundable(&paid), "the order was cancelled", "", c.By))
	}
	return events, nil
}

// decide of an expiry: an order whose payment is under way has Grace to hear of it.
func (c ExpireOrder) decide(s State, at time.Time) ([]Event, error) {
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, nil // A deadline is nobody's request.
	}
	if expiresAt := order.ExpiresAt(c.Grace); expiresAt.IsZero() || expiresAt.After(at) {
		return nil, nil // Ended already, paid, or not due.
	}
	expired := OrderExpired{OrderID: order.ID, UserID: order.UserID, Released: order.releases(), CouponCode: order.CouponCode}
	return append([]Event{expired}, order.letGo("the order expired", "")...), nil
}

// ExpiresAt returns the log time at which the order expires as it stands: the zero time when it does not. A payment that is under
// way defers it by grace.
func (o *Order) ExpiresAt(grace time.Duration) time.Time {
	if v, _ := o.judge(&lifeExpireOrder, o.Payment); v != allowed {
		return time.Time{}
	}
	if o.Payment == PayPending || o.Payment == PayUnknown {
		return o.PayBy.Add(grace)
	}
	return o.PayBy
}
