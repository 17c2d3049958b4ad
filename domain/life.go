package domain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// An order's life has three axes: whether it has ended, where its payment stands and what was shipped. Its status is
// derived from them. What may happen when is the one table below.

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

// Limits of what an order may gather.
const (
	// PaymentsMax is how many payments of one order may be started.
	PaymentsMax = 20
	// RefundsMax is how many refunds of one order may be asked for. Those that an order needs to end right come on top.
	RefundsMax = 100
	// ShipmentsMax, ReturnsMax and NotesMax are as many as one order may have.
	ShipmentsMax = 100
	ReturnsMax   = 100
	NotesMax     = 100
)

// The parts of an order are named by the order's id and a number that counts from 1 without a gap.

// PaymentID names the payment of an order with this number: "<order id>-p<number>".
func PaymentID(order OrderID, number int) string { return order.String() + "-p" + strconv.Itoa(number) }

// RefundID names the refund of a payment with this number: "<payment id>-r<number>".
func RefundID(paymentID string, number int) string { return paymentID + "-r" + strconv.Itoa(number) }

// ShipmentID names the shipment of an order with this number: "<order id>-s<number>".
func ShipmentID(order OrderID, number int) string {
	return order.String() + "-s" + strconv.Itoa(number)
}

// ReturnID names the return of an order with this number: "<order id>-t<number>".
func ReturnID(order OrderID, number int) string { return order.String() + "-t" + strconv.Itoa(number) }

// PartOrderID returns the order that a payment, refund, shipment or return is of. Its error is an *InvalidIDError.
func PartOrderID(partID string) (OrderID, error) {
	text, _, _ := strings.Cut(partID, "-")
	return ParseOrderID(text)
}

// Next returns the command with the number filled in that its payment, refund, shipment, return or note is to have, if it has
// none: the next one. Other commands come back as they are.
func (o *Order) Next(c Command) Command {
	fill := func(number *int, count int) {
		if *number == 0 {
			*number = count + 1
		}
	}
	switch c := c.(type) {
	case StartPayment:
		fill(&c.Number, len(o.Payments))
		return c
	case RefundPayment:
		if c.PaymentID == "" {
			c.PaymentID = o.paid().ID
		}
		fill(&c.Number, o.refundsOf(c.PaymentID))
		return c
	case ShipItems:
		fill(&c.Number, len(o.Shipments))
		return c
	case RequestReturn:
		fill(&c.Number, len(o.Returns))
		return c
	case AddNote:
		fill(&c.Number, len(o.Notes))
		return c
	case PlaceOrder, CancelOrder, ExpireOrder, PutProduct, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock, CapturePayment, VoidPayment, RecordPaymentResult,
		RecordStrayPayment, RecordRefundResult, ConfirmDelivery, ReceiveReturn, AwardPoints, TakeBackPoints, EraseUser, PutCampaign, PutCoupon,
		PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	return c
}

// numbered checks the number of a new part against how many there are. done means that this very part is there.
func numbered(part string, number, count, most int) (done bool, err error) {
	switch {
	case number >= 1 && number <= count:
		return true, nil
	case number != count+1:
		return false, &InvalidArgumentError{Argument: "number", Problem: fmt.Sprintf("it is %d, want %d", number, count+1)}
	case count >= most:
		return false, &OrderLimitError{Part: part, Limit: most}
	}
	return false, nil
}

// CommandOrderID returns the order that a command is about, or false for commands of products and stock.
func CommandOrderID(c Command) (OrderID, bool) {
	switch c := c.(type) {
	case PlaceOrder:
		return c.OrderID, true
	case CancelOrder:
		return c.OrderID, true
	case ExpireOrder:
		return c.OrderID, true
	case StartPayment:
		return c.OrderID, true
	case CapturePayment:
		return c.OrderID, true
	case VoidPayment:
		return c.OrderID, true
	case RecordPaymentResult:
		return c.OrderID, true
	case RecordStrayPayment:
		return c.OrderID, true
	case RefundPayment:
		return c.OrderID, true
	case RecordRefundResult:
		return c.OrderID, true
	case ShipItems:
		return c.OrderID, true
	case ConfirmDelivery:
		return c.OrderID, true
	case RequestReturn:
		return c.OrderID, true
	case ReceiveReturn:
		return c.OrderID, true
	case AddNote:
		return c.OrderID, true
	case AwardPoints:
		return c.OrderID, true
	case TakeBackPoints:
		return c.OrderID, true
	case PutProduct, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock, EraseUser, PutCampaign, PutCoupon,
		PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	return OrderID{}, false
}

// DoneBy reports whether an event of the command's order did for good what the command asks for: the command has nothing to say
// ever after. Commands that may have something to say again are never done.
func DoneBy(c Command, e Event) bool {
	switch c := c.(type) {
	case CancelOrder:
		_, done := e.(OrderCancelled)
		return done
	case ConfirmDelivery:
		delivered, done := e.(ShipmentDelivered)
		return done && delivered.ShipmentID == c.ShipmentID
	case ReceiveReturn:
		received, done := e.(ReturnReceived)
		return done && received.ReturnID == c.ReturnID
	case PlaceOrder, ExpireOrder, PutProduct, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock, StartPayment, CapturePayment, VoidPayment, RecordPaymentResult,
		RecordStrayPayment, RefundPayment, RecordRefundResult, ShipItems, RequestReturn, AddNote, AwardPoints, TakeBackPoints,
		EraseUser, PutCampaign, PutCoupon,
		PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	return false
}

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

// AddNote notes something about an order, for the merchant.
type AddNote struct {
	OrderID OrderID
	// Number of the note, counted from 1; the lane fills in the next.
	Number int
	// By is the subject who wrote it.
	By string
	// Sealed is the text, sealed under the user's key of the id SealKey.
	Sealed  []byte
	SealKey KeyID
}

// NoteAdded says that something was noted about an order.
type NoteAdded struct {
	OrderID OrderID
	UserID  string
	By      string
	Sealed  []byte
}

func (AddNote) isCommand() {}
func (NoteAdded) isEvent() {}

// A Note of an order.
type Note struct {
	By string
	At time.Time
	// Sealed is the text, sealed under the user's key. Nobody changes it.
	Sealed []byte
}

func (c AddNote) decide(s State) ([]Event, error) {
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	if size := len(c.Sealed); size == 0 || size > SealedNoteBytesMax {
		return nil, &InvalidArgumentError{Argument: "sealed_note", Problem: fmt.Sprintf("it has %d bytes, want 1 to %d", size, SealedNoteBytesMax)}
	}
	order, v, err := lifeOf(s, c.OrderID, &lifeAddNote)
	if err != nil || v == nothing {
		return nil, err
	}
	if done, err := numbered("notes", c.Number, len(order.Notes), NotesMax); done || err != nil {
		return nil, err
	}
	if s.KeyErased(order.UserID, c.SealKey) {
		return nil, &KeyErasedError{UserID: order.UserID}
	}
	return []Event{NoteAdded{OrderID: order.ID, UserID: order.UserID, By: c.By, Sealed: c.Sealed}}, nil
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
		CampaignPut, PoolFilled, PoolDrained, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted:
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
