package domain

import (
	"fmt"
	"slices"
	"time"
)

// A verdict is what the table says of a command in a state.
type verdict byte

const (
	// allowed: the command goes on to look at what it asks for.
	allowed verdict = 'A'
	// nothing: there is nothing to say; it was done, or no longer matters.
	nothing verdict = '.'
	// stray: money came that nobody waits for. It is raised and refunded.
	stray verdict = '$'
	// unwanted: money is held that nobody waits for. It is taken note of, and a void is asked for.
	unwanted verdict = 'V'
	// The refusals: OrderCancelledError, OrderExpiredError, OrderShippedError, PaymentStateError, FulfilmentStateError.
	refuseCancelled  verdict = 'C'
	refuseExpired    verdict = 'E'
	refuseShipped    verdict = 'S'
	refusePayment    verdict = 'P'
	refuseFulfilment verdict = 'F'
)

// lifeRow is the table's row of a command: a verdict by the state of the payment for an open, a cancelled and an expired order;
// where that of an open order is A, the verdict by the state of fulfilment decides.
type lifeRow struct{ open, cancelled, expired, fulfilment string }

// The table: every command to an order in every state. Columns of a payment: none, pending, authorized, captured, partially
// refunded, refunded, voided, unknown. Columns of fulfilment: none, partial, shipped, delivered, returned. The payment of results
// and refunds is the one that they are of, that of the others is the order's newest.
//
//	A allowed   . nothing to say   $ stray money: raised, refunded   V held money: void asked for
//	C ORDER_CANCELLED   E ORDER_EXPIRED   S ORDER_SHIPPED   P PAYMENT_STATE   F FULFILMENT_STATE
//
// Allowed does not mean that events follow: the commands still refuse amounts, units and parts of the order that are not
// there, and say nothing to what was done before. A capture that is allowed is stray all the same when its amount is
// wrong or a void was asked for.
var (
	//                            open               cancelled          expired            fulfilment
	//                            n p a c r R v u    n p a c r R v u    n p a c r R v u    n p s d r
	lifeCancelOrder     = lifeRow{"A A A A A A A A", ". . . . . . . .", "E E E E E E E E", "A S S S S"}
	lifeExpireOrder     = lifeRow{"A A . . . . A A", ". . . . . . . .", ". . . . . . . .", "A . . . ."}
	lifeStartPayment    = lifeRow{"A P P P P P A P", "C C C C C C C C", "E E E E E E E E", "A F F F F"}
	lifeCapturePayment  = lifeRow{"P P A . . . P P", "C C C C C C C C", "E E E E E E E E", "A A A A A"}
	lifeVoidPayment     = lifeRow{"P A A P P P . A", "P A A P P P . A", "P A A P P P . A", "A A A A A"}
	lifeAuthorized      = lifeRow{"V A . . . . . A", "V A . . . . . A", "V A . . . . . A", "A A A A A"}
	lifeCaptured        = lifeRow{"$ A A . . . $ A", "$ $ $ . . . $ $", "$ $ $ . . . $ $", "A A A A A"}
	lifeDeclined        = lifeRow{". A A P P P . A", ". A A P P P . A", ". A A P P P . A", "A A A A A"}
	lifeUnknown         = lifeRow{". A A . . . . .", ". A A . . . . .", ". A A . . . . .", "A A A A A"}
	lifeVoided          = lifeRow{". A A P P P . A", ". A A P P P . A", ". A A P P P . A", "A A A A A"}
	lifeStrayPayment    = lifeRow{"$ $ $ . . . $ $", "$ $ $ . . . $ $", "$ $ $ . . . $ $", "A A A A A"}
	lifeRefundPayment   = lifeRow{"P P P A A A A P", "P P P A A A A P", "P P P A A A A P", "A A A A A"}
	lifeRefundResult    = lifeRow{"A A A A A A A A", "A A A A A A A A", "A A A A A A A A", "A A A A A"}
	lifeShipItems       = lifeRow{"P P P A A P P P", "C C C C C C C C", "E E E E E E E E", "A A F F F"}
	lifeConfirmDelivery = lifeRow{"A A A A A A A A", "C C C C C C C C", "E E E E E E E E", "F A A A A"}
	lifeRequestReturn   = lifeRow{"A A A A A A A A", "C C C C C C C C", "E E E E E E E E", "F A A A F"}
	lifeReceiveReturn   = lifeRow{"A A A A A A A A", "C C C C C C C C", "E E E E E E E E", "F A A A A"}
	lifeAddNote         = lifeRow{"A A A A A A A A", "A A A A A A A A", "A A A A A A A A", "A A A A A"}
	lifeAwardPoints     = lifeRow{"P P P A A A P P", "P P P A A A P P", "P P P A A A P P", "A A A A A"}
	lifeTakeBackPoints  = lifeRow{"A A A A A A A A", "A A A A A A A A", "A A A A A A A A", "A A A A A"}
)

// judge looks a command up in the table, for a payment in a state. The error is the refusal.
func (o *Order) judge(row *lifeRow, payment PaymentState) (verdict, error) {
	cells := [...]string{EndingNone: row.open, EndingCancelled: row.cancelled, EndingExpired: row.expired}[o.Ending]
	v := verdict(cells[2*payment])
	if v == allowed && o.Ending == EndingNone {
		v = verdict(row.fulfilment[2*o.Fulfilment])
	}
	switch v {
	case allowed, nothing, stray, unwanted:
		return v, nil
	case refuseCancelled:
		return v, &OrderCancelledError{OrderID: o.ID}
	case refuseExpired:
		return v, &OrderExpiredError{OrderID: o.ID}
	case refuseShipped:
		return v, &OrderShippedError{OrderID: o.ID}
	case refusePayment:
		return v, &PaymentStateError{OrderID: o.ID, Payment: payment}
	case refuseFulfilment:
		return v, &FulfilmentStateError{OrderID: o.ID, Fulfilment: o.Fulfilment}
	}
	panic(fmt.Sprintf("domain: bug: the table of an order's life has no verdict %q", v))
}

// lifeOf finds the order of a command and looks the command up for the order's newest payment.
func lifeOf(s State, id OrderID, row *lifeRow) (Order, verdict, error) {
	order, found := s.Order(id)
	if !found {
		return Order{}, 0, &OrderNotFoundError{OrderID: id}
	}
	v, err := order.judge(row, order.Payment)
	return order, v, err
}

// evolveLife returns the order after an event of its payment, its fulfilment or its notes. What an event names that the order does
// not have is passed over.
func (o Order) evolveLife(e Event, at time.Time) Order {
	switch e := e.(type) {
	case PaymentStarted:
		o.Payments = append(slices.Clip(o.Payments), Payment{
			ID: e.PaymentID, Provider: e.Provider, Method: e.Method, Amount: e.Amount, CaptureNow: e.CaptureNow, StartedAt: at,
			State: PayPending,
		})
	case PaymentAuthorized:
		o.changePayment(e.PaymentID, func(p *Payment) { p.State = PayAuthorized })
	case PaymentCaptureRequested:
		o.changePayment(e.PaymentID, func(p *Payment) { p.CaptureRequested = true })
	case PaymentCaptured:
		o.changePayment(e.PaymentID, func(p *Payment) { p.settle(PayCaptured); p.Taken = e.Amount })
	case PaymentDeclined:
		o.changePayment(e.PaymentID, func(p *Payment) { p.settle(PayNone); p.DeclineCode, p.DeclineMessage = e.Code, e.Message })
	case PaymentBecameUnknown:
		o.changePayment(e.PaymentID, func(p *Payment) { p.State = PayUnknown })
	case PaymentVoidRequested:
		o.changePayment(e.PaymentID, func(p *Payment) { p.VoidRequested = true })
	case PaymentVoided:
		o.changePayment(e.PaymentID, func(p *Payment) { p.settle(PayVoided) })
	case StrayPaymentFound:
		o.changePayment(e.PaymentID, func(p *Payment) { p.settle(PayVoided); p.Taken, p.Stray = e.Amount, true })
	case RefundStarted:
		o.Refunds = append(slices.Clip(o.Refunds), Refund{
			ID: e.RefundID, PaymentID: e.PaymentID, Amount: e.Amount, Reason: e.Reason, ReturnID: e.ReturnID,
		})
	case PaymentRefunded:
		if paymentID, ok := o.changeRefund(e.RefundID, func(r *Refund) { r.State = RefundSucceeded }); ok {
			o.changePayment(paymentID, func(p *Payment) { p.refunded(e.Amount.Minor) })
		}
	case RefundFailed:
		o.changeRefund(e.RefundID, func(r *Refund) { r.State, r.Code = RefundHasFailed, e.Code })
	case PointsAwarded:
		o.changePayment(e.PaymentID, func(p *Payment) { p.Points, p.PointsPerMajor, p.PointsDecided = e.Points, e.PerMajor, true })
	case PointsTakenBack:
		if paymentID, ok := o.changeRefund(e.RefundID, func(r *Refund) { r.Points = e.Points }); ok {
			o.changePayment(paymentID, func(p *Payment) { p.Points -= e.Points })
		}
	case ItemsShipped:
		o.Shipments = append(slices.Clip(o.Shipments), Shipment{ID: e.ShipmentID, Lines: e.Lines, Carrier: e.Carrier, Tracking: e.Tracking, ShippedAt: at})
	case ShipmentDelivered:
		if i := slices.IndexFunc(o.Shipments, func(s Shipment) bool { return s.ID == e.ShipmentID }); i >= 0 {
			o.Shipments = slices.Clone(o.Shipments)
			o.Shipments[i].DeliveredAt = at
		}
	case ReturnRequested:
		o.Returns = append(slices.Clip(o.Returns), Return{ID: e.ReturnID, Lines: e.Lines, Reason: e.Reason, RequestedAt: at})
	case ReturnReceived:
		if i := slices.IndexFunc(o.Returns, func(r Return) bool { return r.ID == e.ReturnID }); i >= 0 {
			o.Returns = slices.Clone(o.Returns)
			o.Returns[i].Restocked, o.Returns[i].ReceivedAt = e.Restocked, at
		}
	case NoteAdded:
		o.Notes = append(slices.Clip(o.Notes), Note{By: e.By, At: at, Sealed: e.Sealed})
	case OrderPlaced, OrderCancelled, OrderExpired, ProductPut, StockReceived, StockGranted, StockAllotted, StockReturned, StockReclaimed, UserErased,
		CampaignPut, PoolFilled, PoolDrained, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted, RequestAnswered:
		return o
	}
	o.UpdatedAt = at
	return o
}

// derive sets what follows from the rest: the states of payment and fulfilment, and the status.
func (o *Order) derive() {
	o.Payment = PayNone
	if len(o.Payments) > 0 {
		o.Payment = o.Payments[len(o.Payments)-1].State
	}
	o.Fulfilment = o.fulfilment()
	o.Status = statusOf(o.Ending, o.Payment, o.Fulfilment)
}

// assertLife panics if events break what must hold of the order and the accounts that they touch (I3, I4).
func assertLife(s State, events []Event, at time.Time) {
	if len(events) == 0 {
		return
	}
	id, _ := OrderOf(events[0])
	order, _ := s.Order(id)
	for _, e := range events {
		order = order.Evolve(e, at)
	}
	if err := order.Check(); err != nil {
		panic(fmt.Sprintf("domain: bug: the events decided break order %v: %v", id, err))
	}
	for _, e := range events {
		for sku := range SKUs(e) {
			account := s.Stock(sku)
			for _, e := range events {
				account = account.Evolve(e, sku)
			}
			assertAccount(account.checkLane(), sku)
		}
	}
}

// Check returns an error unless I4 holds of the order's money, and no more was shipped than ordered, or returned than shipped.
func (o *Order) Check() error {
	captured := 0
	for i := range o.Payments {
		p := &o.Payments[i]
		if p.Taken.Minor < 0 || o.refundable(p) < 0 {
			return fmt.Errorf("payment %s took %v, of which %v may still be refunded (I4)", p.ID, p.Taken, o.refundable(p))
		}
		switch p.State {
		case PayCaptured, PayPartiallyRefunded, PayRefunded:
			captured++
			if p.Taken != o.Total {
				return fmt.Errorf("payment %s captured %v of %v (I4)", p.ID, p.Taken, o.Total)
			}
		case PayNone, PayPending, PayAuthorized, PayVoided, PayUnknown:
		}
	}
	if captured > 1 {
		return fmt.Errorf("%d payments were captured (I4)", captured)
	}
	for i := range o.Lines {
		shipped, returned, _ := o.movedUnits(o.Lines[i].SKU)
		if shipped > o.Lines[i].Units || returned > shipped {
			return fmt.Errorf("of %d units of %s, %d were shipped and %d returned", o.Lines[i].Units, o.Lines[i].SKU, shipped, returned)
		}
	}
	return nil
}
