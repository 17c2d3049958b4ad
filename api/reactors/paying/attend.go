package paying

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
)

// A wish is what an order waits for of a provider, one thing at a time.
type wish struct {
	payment *domain.Payment
	// refund is set when it is that; otherwise the state of the payment and what was requested for it say what it is.
	refund *domain.Refund
}

// waiting returns the first thing that the order waits for of a provider, payments first. It is all that decides what is called.
func waiting(order *domain.Order) (wish, bool) {
	for i := range order.Payments {
		p := &order.Payments[i]
		if p.Provider == domain.ProviderNone {
			continue
		}
		switch p.State {
		case domain.PayPending, domain.PayUnknown:
			return wish{payment: p}, true
		case domain.PayAuthorized:
			if p.VoidRequested || p.CaptureRequested || p.CaptureNow {
				return wish{payment: p}, true
			}
		case domain.PayNone, domain.PayCaptured, domain.PayPartiallyRefunded, domain.PayRefunded, domain.PayVoided:
		}
	}
	for i := range order.Refunds {
		r := &order.Refunds[i]
		if r.State != domain.RefundUnderWay {
			continue
		}
		for j := range order.Payments {
			if p := &order.Payments[j]; p.ID == r.PaymentID {
				return wish{payment: p, refund: r}, true
			}
		}
	}
	return wish{}, false
}

// chargeOf is the charge of a payment: the same each time.
func chargeOf(order *domain.Order, p *domain.Payment) payments.Charge {
	return payments.Charge{
		PaymentID: p.ID, OrderID: order.ID.String(), Amount: p.Amount, Method: p.Method, CaptureNow: p.CaptureNow, StartedAt: p.StartedAt,
	}
}

// attend does what the order of one work waits for, as far as the provider says.
func (c *Cashier) attend(ctx context.Context, w work, d *desk) {
	if w.orphan == nil && !c.options.Owned(c.options.Topology.LaneOf(w.orderID().Partition())) {
		c.look(ctx, w, d)
		return
	}
	c.raiseIfOld(&w)
	if d.provider == nil {
		if bits.OnesCount32(w.attempts) <= 1 {
			c.logger.Error("a payment names a provider that is not configured; it waits for one",
				"provider", d.name, "work", c.nameOf(&w), "since", w.since)
		}
		c.list.again(w.key, d, w.commit)
		return
	}
	if w.orphan != nil {
		c.attendOrphan(ctx, w, d)
		return
	}
	order, revision, err := c.order(ctx, &w)
	for range stepsMax {
		if err != nil {
			break
		}
		next, waits := waiting(&order)
		if !waits {
			c.list.done(w.key, d, revision)
			return
		}
		if next.payment.Provider != d.name {
			c.list.move(w.key, d, next.payment.Provider)
			return
		}
		var reply *lanes.Reply
		if reply, err = c.grant(ctx, &w, d, &order, next); err != nil {
			break
		}
		if reply.OrderCommit <= revision {
			err = errNothingNew
			break
		}
		order, revision = reply.Order, reply.OrderCommit
		w.attempts = 0
	}
	c.putBack(ctx, &w, d, err)
}

// look drops work of a lane that another node decides once its order waits for nothing, and asks nobody.
func (c *Cashier) look(ctx context.Context, w work, d *desk) {
	order, revision, err := c.order(ctx, &w)
	if err == nil {
		if _, waits := waiting(&order); !waits {
			c.list.done(w.key, d, revision)
			return
		}
	}
	c.list.again(w.key, d, w.commit)
}

// errNothingNew says that a provider has said nothing that changes the order.
var errNothingNew = errors.New("the provider has not said yet")

// putBack keeps the work for later.
func (c *Cashier) putBack(ctx context.Context, w *work, d *desk, cause error) {
	var breaker *payments.BreakerOpenError
	switch {
	case errors.As(cause, &breaker):
		c.list.closed(w.key, d, breaker.RetryAfter)
		return
	case ctx.Err() != nil: // It was cut off.
	case cause != nil && bits.OnesCount32(w.attempts+1) == 1: // The 1st, 2nd, 4th, 8th, … in a row.
		c.logger.Warn("a payment is not settled, the provider is asked again", "work", c.nameOf(w), "provider", d.name,
			"attempts", w.attempts+1, "error", cause)
	}
	c.list.again(w.key, d, w.commit)
}

// raiseIfOld raises work that is on the list for too long (I5), about each time that its age doubles.
func (c *Cashier) raiseIfOld(w *work) {
	age := time.Since(w.since)
	if age < c.limits.UnresolvedMax || bits.OnesCount32(w.attempts) != 1 {
		return
	}
	c.counts.overdue.Add(1)
	c.logger.Error("a payment has not been settled for long: somebody has to look at it", "work", c.nameOf(w), "provider", w.provider,
		"since", w.since, "age", age, "attempts", w.attempts)
}

func (c *Cashier) nameOf(w *work) string {
	if w.orphan != nil {
		return w.key
	}
	return w.orderID().String()
}

// order reads the order of a work, as of the commit that asked or later.
func (c *Cashier) order(ctx context.Context, w *work) (domain.Order, uint64, error) {
	id := w.orderID()
	lane := c.options.Topology.LaneOf(id.Partition())
	view, _, err := c.options.Orders.Order(ctx, id, projections.Min{Lane: lane, Commit: w.commit, Wait: c.limits.ViewWait})
	if err == nil && view.Revision.Commit < w.commit {
		err = projections.ErrBehind
	}
	if err != nil {
		return domain.Order{}, 0, fmt.Errorf("read the order: %w", err)
	}
	return view.Order, view.Revision.Commit, nil
}

// grant asks the provider for one wish, and records what it says. An error means that it has not said, or that what it said could
// not be recorded; asking again does no harm (P2).
func (c *Cashier) grant(ctx context.Context, w *work, d *desk, order *domain.Order, next wish) (*lanes.Reply, error) {
	if next.refund != nil {
		result, err := c.askRefund(ctx, d.provider, order, next)
		if err != nil {
			return nil, err
		}
		return c.record(ctx, result.OrderID, result)
	}
	p := next.payment
	status, err := c.askPayment(ctx, d.provider, order, p, w.attempts)
	if errors.Is(err, payments.ErrUnknownOutcome) && p.State != domain.PayUnknown && ctx.Err() == nil {
		unknown := domain.RecordPaymentResult{OrderID: order.ID, PaymentID: p.ID, Provider: d.name, Result: domain.ResultUnknown}
		if _, recordErr := c.record(ctx, order.ID, unknown); recordErr != nil {
			err = errors.Join(err, recordErr)
		}
	}
	if err != nil {
		return nil, err
	}
	result, said := resultOf(&status)
	if !said {
		return nil, errNothingNew
	}
	c.raiseIfWrong(order, p, &result)
	result.OrderID, result.PaymentID, result.Provider = order.ID, p.ID, d.name
	return c.record(ctx, order.ID, result)
}

// raiseIfWrong raises money of another amount than was asked for. The domain does not accept it: it is let go or refunded.
func (c *Cashier) raiseIfWrong(order *domain.Order, p *domain.Payment, result *domain.RecordPaymentResult) {
	if result.Amount == p.Amount || (result.Result != domain.ResultAuthorized && result.Result != domain.ResultCaptured) {
		return
	}
	c.counts.wrongAmounts.Add(1)
	c.logger.Error("a provider took another amount than it was asked for", "order", order.ID, "payment", p.ID, "provider", p.Provider,
		"amount", result.Amount, "want", p.Amount)
}

// askPayment asks for what a payment waits for: that it is let go, taken, or made.
func (c *Cashier) askPayment(
	ctx context.Context, provider payments.Provider, order *domain.Order, p *domain.Payment, attempts uint32,
) (payments.Status, error) {
	charge := chargeOf(order, p)
	if p.VoidRequested {
		return c.insist(ctx, provider, charge, func() (payments.Status, error) { return provider.Void(ctx, charge) })
	}
	capture := func() (payments.Status, error) { return c.capture(ctx, provider, charge) }
	if p.State == domain.PayAuthorized {
		return c.insist(ctx, provider, charge, capture)
	}
	if p.State == domain.PayUnknown || attempts > 0 { // It was asked before: check back.
		status, err := provider.Lookup(ctx, charge)
		switch {
		case err != nil:
			return status, err
		case status.State == payments.StateAuthorized && (p.CaptureRequested || p.CaptureNow):
			return c.insist(ctx, provider, charge, capture)
		case status.State != payments.StateNone:
			return status, nil
		}
	}
	return c.authorize(ctx, provider, charge)
}

// authorize has the money held, or taken. A charge that is rejected, and that the provider does not know otherwise, is declined: it has
// taken no money and will not.
func (c *Cashier) authorize(ctx context.Context, provider payments.Provider, charge payments.Charge) (payments.Status, error) {
	status, err := provider.Authorize(ctx, charge)
	rejected, final := rejection(err)
	if !final {
		return status, err
	}
	if status, lookupErr := provider.Lookup(ctx, charge); lookupErr != nil || status.State != payments.StateNone {
		return status, lookupErr
	}
	if rejected.Code == payments.CodeKeyReused || rejected.Code == payments.CodeWrongState {
		return status, err // It contradicts itself: it is tried again, and raised when that lasts.
	}
	c.logger.ErrorContext(ctx, "a provider rejects a charge", "payment", charge.PaymentID, "error", err)
	return payments.Status{State: payments.StateDeclined, DeclineCode: rejected.Code, DeclineMessage: rejected.Message}, nil
}

// capture takes the money that is held. A provider that will not ever is told to let it go.
func (c *Cashier) capture(ctx context.Context, provider payments.Provider, charge payments.Charge) (payments.Status, error) {
	status, err := provider.Capture(ctx, charge, charge.Amount)
	rejected, final := rejection(err)
	if !final {
		return status, err
	}
	if status, err = provider.Lookup(ctx, charge); err != nil || status.State != payments.StateAuthorized {
		return status, err
	}
	c.logger.Error("a provider holds money and refuses to take it; it is let go", "payment", charge.PaymentID, "error", rejected)
	return provider.Void(ctx, charge)
}

// rejection returns the rejection of a call that will never succeed. One of our credentials is over when somebody mends them.
func rejection(err error) (*payments.RejectedError, bool) {
	var rejected *payments.RejectedError
	if !errors.As(err, &rejected) {
		return nil, false
	}
	return rejected, rejected.Code != payments.CodeCredentials
}

// insist makes a call, and has the provider's books decide when it is rejected: the payment may be over in another way.
func (c *Cashier) insist(
	ctx context.Context, provider payments.Provider, charge payments.Charge, call func() (payments.Status, error),
) (payments.Status, error) {
	status, err := call()
	if _, final := rejection(err); !final {
		return status, err
	}
	found, lookupErr := provider.Lookup(ctx, charge)
	if lookupErr != nil {
		return found, lookupErr
	}
	if found.State.Final() {
		return found, nil
	}
	return found, err // It is tried again, and raised when that lasts.
}

// resultOf turns what a provider says of a payment into the command that records it. said is false when it does not know.
func resultOf(status *payments.Status) (result domain.RecordPaymentResult, said bool) {
	switch status.State {
	case payments.StateNone, payments.StatePending:
		return result, false
	case payments.StateAuthorized:
		result.Result, result.Amount = domain.ResultAuthorized, status.Amount
	case payments.StateCaptured:
		result.Result, result.Amount = domain.ResultCaptured, status.Captured
	case payments.StateDeclined:
		result.Result, result.Code, result.Message = domain.ResultDeclined, status.DeclineCode, status.DeclineMessage
	case payments.StateVoided:
		result.Result = domain.ResultVoided
	default:
		panic(fmt.Sprintf("paying: bug: a payment in state %v", status.State))
	}
	return result, true
}

// askRefund asks for a refund, under its own id each time.
func (c *Cashier) askRefund(
	ctx context.Context, provider payments.Provider, order *domain.Order, next wish,
) (domain.RecordRefundResult, error) {
	charge, r := chargeOf(order, next.payment), next.refund
	result := domain.RecordRefundResult{OrderID: order.ID, RefundID: r.ID, Provider: next.payment.Provider}
	status, err := provider.Refund(ctx, charge, payments.Refund{RefundID: r.ID, Amount: r.Amount})
	if rejected, final := rejection(err); final {
		found, lookupErr := provider.Lookup(ctx, charge)
		if lookupErr != nil {
			return result, lookupErr
		}
		status = payments.RefundStatus{RefundID: r.ID, State: payments.RefundFailed, FailureCode: rejected.Code}
		for _, known := range found.Refunds {
			if known.RefundID == r.ID {
				status = known
			}
		}
		c.logger.Error("a provider rejects a refund", "refund", r.ID, "error", rejected, "state", status.State)
	} else if err != nil {
		return result, err
	}
	return result, refundResult(&result, &status)
}

// refundResult fills in what a provider says of a refund. The error says that it does not know.
func refundResult(result *domain.RecordRefundResult, status *payments.RefundStatus) error {
	switch status.State {
	case payments.RefundPending:
		return errNothingNew
	case payments.RefundSucceeded:
		result.Succeeded, result.Amount = true, status.Amount
	case payments.RefundFailed:
		result.Code = status.FailureCode
	default:
		panic(fmt.Sprintf("paying: bug: a refund in state %v", status.State))
	}
	return nil
}

// record submits what a provider said to the order's lane. The command has no request id: it is harmless by its payment's or refund's.
func (c *Cashier) record(ctx context.Context, id domain.OrderID, command domain.Command) (*lanes.Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.limits.RecordMax)
	defer cancel()
	reply, err := c.options.Commands.Submit(ctx, lanes.Request{Partition: id.Partition(), Command: command})
	if err != nil {
		return nil, fmt.Errorf("record what the provider said: %w", err)
	}
	return reply, nil
}
