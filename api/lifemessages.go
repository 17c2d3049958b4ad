package api

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// fillLife fills in what became of an order after it was placed. Of an order of which nothing became yet it sets nothing.
func fillLife(m *orderv1.Order, o *domain.Order) {
	m.PaymentState = orderv1.PaymentState(o.Payment) // The numbers are the same.
	m.FulfilmentState = orderv1.FulfilmentState(o.Fulfilment)
	for i := range o.Payments {
		m.Payments = append(m.Payments, newPayment(&o.Payments[i]))
	}
	for i := range o.Refunds {
		m.Refunds = append(m.Refunds, newRefund(&o.Refunds[i]))
	}
	for i := range o.Shipments {
		s := &o.Shipments[i]
		m.Shipments = append(m.Shipments, &orderv1.Shipment{
			ShipmentId: s.ID, Items: newItemUnits(s.Lines), Carrier: s.Carrier, Tracking: s.Tracking,
			ShippedAt: newTime(s.ShippedAt), DeliveredAt: newTime(s.DeliveredAt),
		})
	}
	for i := range o.Returns {
		r := &o.Returns[i]
		m.Returns = append(m.Returns, &orderv1.Return{
			ReturnId: r.ID, Items: newItemUnits(r.Lines), Reason: r.Reason, Restocked: newItemUnits(r.Restocked),
			RequestedAt: newTime(r.RequestedAt), ReceivedAt: newTime(r.ReceivedAt),
		})
	}
}

func newPayment(p *domain.Payment) *orderv1.Payment {
	m := &orderv1.Payment{
		PaymentId: p.ID, Provider: p.Provider, State: orderv1.PaymentState(p.State), Amount: newAmount(p.Amount),
		DeclineCode: p.DeclineCode, DeclineMessage: p.DeclineMessage, CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL,
		CaptureRequested: p.CaptureRequested, VoidRequested: p.VoidRequested, Stray: p.Stray,
	}
	if p.CaptureNow {
		m.CaptureMode = orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC
	}
	if p.Taken != (domain.Money{}) {
		m.Captured = newAmount(p.Taken)
	}
	if p.RefundedMinor != 0 {
		m.Refunded = newAmount(domain.Money{Currency: p.Taken.Currency, Minor: p.RefundedMinor})
	}
	return m
}

func newRefund(r *domain.Refund) *orderv1.Refund {
	return &orderv1.Refund{
		RefundId: r.ID, PaymentId: r.PaymentID, State: orderv1.RefundState(r.State) + orderv1.RefundState_REFUND_STATE_UNDER_WAY,
		Amount: newAmount(r.Amount), Reason: r.Reason, ReturnId: r.ReturnID, FailureCode: r.Code,
	}
}

// newItemUnits names the products of lines. Units that went back to a campaign's pool, SKU@CAMPAIGN, are the product's all
// the same.
func newItemUnits(lines []domain.Release) []*orderv1.ItemUnits {
	items := make([]*orderv1.ItemUnits, len(lines))
	for i, line := range lines {
		sku, _, _ := strings.Cut(line.SKU, "@")
		items[i] = &orderv1.ItemUnits{Sku: sku, Quantity: line.Units}
	}
	return items
}

func newTimelineEntry(e *projections.TimelineEntry, subject string) *orderv1.TimelineEntry {
	m := &orderv1.TimelineEntry{
		Kind: e.Kind, At: newTime(e.At), Actor: orderv1.Actor(e.Actor) + orderv1.Actor_ACTOR_SYSTEM, Subject: subject,
		Revision: &typev1.Revision{Lane: e.Revision.Lane, Commit: e.Revision.Commit},
	}
	for _, fact := range e.Facts {
		if fact.Value != "" {
			m.Facts = append(m.Facts, &orderv1.TimelineFact{Name: fact.Name, Value: fact.Value})
		}
	}
	return m
}

func newAttention(a *projections.Attention) *paymentv1.PaymentAttention {
	m := &paymentv1.PaymentAttention{
		Kind: paymentv1.AttentionKind(a.Kind), OrderId: a.OrderID.String(), UserId: a.UserID, PaymentId: a.Payment.ID, // The numbers are the same.
		Provider: a.Payment.Provider, Amount: newAmount(a.Payment.Amount), Since: newTime(a.Since),
	}
	switch a.Kind {
	case projections.AttentionStray:
		m.Amount = newAmount(a.Payment.Taken)
	case projections.AttentionRefundFailed:
		m.RefundId, m.Amount, m.FailureCode = a.Refund.ID, newAmount(a.Refund.Amount), a.Refund.Code
	}
	return m
}

func newAmount(m domain.Money) *typev1.Money {
	return &typev1.Money{CurrencyCode: m.Currency, Units: m.Minor}
}

// newTime returns a log time, nil for one that has not come.
func newTime(at time.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return fillTime(&timestamppb.Timestamp{}, at)
}
