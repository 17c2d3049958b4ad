package paying

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
)

// Take records what a provider told without being asked. The same notice again, a late one, and one that others have overtaken
// change nothing: the domain is idempotent by the ids of payments and refunds. nil means that what follows is durable. It is what a
// payments.WebhookHandler is given.
func (c *Cashier) Take(ctx context.Context, n payments.Notice) error {
	id, err := domain.PartOrderID(n.PaymentID)
	if ours := err == nil; !ours {
		c.counts.orphans.Add(1)
		c.logger.ErrorContext(ctx, "a provider tells of a payment that is none of ours", "provider", n.Provider, "event", n.EventID,
			"payment", n.PaymentID, "state", n.State)
		return nil
	}
	command, said := commandOf(id, &n)
	if !said {
		return nil
	}
	_, err = c.record(ctx, id, command)
	var (
		noPart   *domain.OrderPartNotFoundError
		mismatch *domain.AmountMismatchError
		refusal  domain.Refusal
	)
	switch {
	case err == nil:
		c.list.nudge(id, time.Now())
		return nil
	case errors.Is(err, domain.ErrOrderNotFound), errors.As(err, &noPart):
		return c.adopt(ctx, &n)
	case errors.As(err, &mismatch):
		c.counts.wrongAmounts.Add(1)
		c.logger.ErrorContext(ctx, "a provider tells of another amount than before", "provider", n.Provider, "event", n.EventID, "error", err)
		return nil
	case errors.As(err, &refusal):
		c.logger.WarnContext(ctx, "a provider tells what cannot be", "provider", n.Provider, "event", n.EventID, "error", err)
		return nil
	}
	return err
}

// commandOf is the command that records a notice. said is false when it tells nothing that is to be recorded.
func commandOf(id domain.OrderID, n *payments.Notice) (_ domain.Command, said bool) {
	if n.Refund != nil {
		result := domain.RecordRefundResult{OrderID: id, RefundID: n.Refund.RefundID, Provider: n.Provider}
		return result, refundResult(&result, n.Refund) == nil
	}
	status := payments.Status{
		State: n.State, Amount: n.Amount, Captured: n.Amount, DeclineCode: n.DeclineCode, DeclineMessage: n.DeclineMessage,
	}
	result, said := resultOf(&status)
	result.OrderID, result.PaymentID, result.Provider = id, n.PaymentID, n.Provider
	return result, said
}

// adopt takes on money that a provider holds or took for a payment that the log does not know: it is let go or refunded.
func (c *Cashier) adopt(ctx context.Context, n *payments.Notice) error {
	c.counts.orphans.Add(1)
	c.logger.ErrorContext(ctx, "a provider tells of a payment that no order has", "provider", n.Provider, "event", n.EventID,
		"payment", n.PaymentID, "state", n.State, "amount", n.Amount)
	if n.Refund != nil || (n.State != payments.StateAuthorized && n.State != payments.StateCaptured) {
		return nil // There is no money to give back.
	}
	at := n.At
	if at.IsZero() {
		at = time.Now()
	}
	return c.list.adopt(n.PaymentID, orphan{provider: n.Provider, amount: n.Amount, at: at}, time.Now())
}

// An orphan is a payment that a provider told of and the log does not know: of a log that was restored from before it, say. It is
// kept in the store alone, with
//
//	at   when it happened, nanoseconds, 8 bytes;  its amount, minor units, 8 bytes;  its currency, 3 bytes
type orphan struct {
	provider string
	amount   domain.Money
	at       time.Time
}

const (
	orphanBytes   = 8 + 8 + currencyBytes
	currencyBytes = 3
	// orphanMethod stands for the way to pay, which nobody knows.
	orphanMethod = "unknown"
	// orphanRefund is what the refund of an orphan is called, after its payment.
	orphanRefund = "-orphan"
)

func (o *orphan) append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(o.at.UnixNano()))
	dst = binary.BigEndian.AppendUint64(dst, uint64(o.amount.Minor))
	return append(dst, fmt.Sprintf("%-3.3s", o.amount.Currency)...)
}

func decodeOrphan(value []byte) (*orphan, []byte, error) {
	if len(value) < orphanBytes {
		return nil, nil, fmt.Errorf("an orphan has %d bytes, want at least %d", len(value), orphanBytes)
	}
	o := &orphan{at: time.Unix(0, int64(binary.BigEndian.Uint64(value)))}
	o.amount = domain.Money{Minor: int64(binary.BigEndian.Uint64(value[8:])), Currency: string(value[16:orphanBytes])}
	return o, value[orphanBytes:], nil
}

// attendOrphan lets go or refunds what the provider's books hold of an orphan.
func (c *Cashier) attendOrphan(ctx context.Context, w work, d *desk) {
	over, err := c.giveBack(ctx, d.provider, w.key, w.orphan)
	if over {
		c.logger.Error("the money of a payment that no order has was given back", "payment", w.key, "provider", d.name)
		c.list.done(w.key, d, w.commit)
		return
	}
	c.putBack(ctx, &w, d, err)
}

// giveBack reports whether nothing is left of an orphan's money.
func (c *Cashier) giveBack(ctx context.Context, provider payments.Provider, paymentID string, o *orphan) (over bool, err error) {
	id, err := domain.PartOrderID(paymentID)
	if err != nil {
		return false, err
	}
	charge := payments.Charge{PaymentID: paymentID, OrderID: id.String(), Amount: o.amount, Method: orphanMethod, StartedAt: o.at}
	status, err := provider.Lookup(ctx, charge)
	if err == nil && status.State == payments.StateAuthorized {
		status, err = provider.Void(ctx, charge)
	}
	if err != nil {
		return false, err
	}
	if status.State != payments.StateCaptured {
		return status.State.Final(), errNothingNew
	}
	left := status.Captured
	for _, known := range status.Refunds {
		if known.State != payments.RefundFailed && known.RefundID != paymentID+orphanRefund {
			left.Minor -= known.Amount.Minor
		}
	}
	if left.Minor <= 0 {
		return true, nil
	}
	refund, err := provider.Refund(ctx, charge, payments.Refund{RefundID: paymentID + orphanRefund, Amount: left})
	if err != nil {
		return false, err
	}
	return refund.State == payments.RefundSucceeded, errNothingNew
}
