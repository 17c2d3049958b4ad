package domain_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weirhq/weir/domain"
)

func TestTheTimelineSaysWhatWhoAndWhen(t *testing.T) {
	id := orderIDs(1)[0]
	payment, amount := domain.PaymentID(id, 1), domain.Money{Currency: "EUR", Minor: 1299}
	refund := domain.RefundID(payment, 1)
	lines := []domain.Release{{SKU: "mug", Units: 2}, {SKU: "tee", Units: 1}}
	for _, c := range []struct {
		event domain.Event
		want  string
	}{
		{domain.OrderPlaced{UserID: "alice", Total: amount}, "placed by customer alice, total=12.99 EUR"},
		{domain.OrderCancelled{UserID: "alice", By: "alice", Reason: "late"}, "cancelled by customer alice, reason=late"},
		{domain.OrderCancelled{UserID: "alice", By: "clerk", Reason: "late"}, "cancelled by operator clerk, reason=late"},
		{domain.OrderExpired{UserID: "alice"}, "expired by system"},
		{domain.PaymentStarted{UserID: "alice", By: "alice", PaymentID: "p", Provider: "sandbox", Amount: amount}, "payment_started by customer alice, payment_id=p provider=sandbox amount=12.99 EUR"},
		{domain.PaymentAuthorized{UserID: "alice", PaymentID: "p", Amount: amount}, "payment_authorized by provider, payment_id=p amount=12.99 EUR"},
		{domain.PaymentCaptureRequested{UserID: "alice", PaymentID: "p", Amount: amount}, "payment_capture_requested by system, payment_id=p amount=12.99 EUR"},
		{domain.PaymentCaptured{UserID: "alice", PaymentID: "p", Amount: amount}, "payment_captured by provider, payment_id=p amount=12.99 EUR"},
		{domain.PaymentDeclined{UserID: "alice", PaymentID: "p", Code: "no_money"}, "payment_declined by provider, payment_id=p code=no_money"},
		{domain.PaymentBecameUnknown{UserID: "alice", PaymentID: "p"}, "payment_unknown by system, payment_id=p"},
		{domain.PaymentVoidRequested{UserID: "alice", PaymentID: "p", Why: "gone", By: "clerk"}, "payment_void_requested by operator clerk, payment_id=p why=gone"},
		{domain.PaymentVoided{UserID: "alice", PaymentID: "p"}, "payment_voided by provider, payment_id=p"},
		{domain.RefundStarted{UserID: "alice", RefundID: "r", Amount: amount, Reason: "return", By: "clerk"}, "refund_started by operator clerk, refund_id=r amount=12.99 EUR reason=return"},
		{domain.PaymentRefunded{UserID: "alice", RefundID: "r", Amount: amount}, "refunded by provider, refund_id=r amount=12.99 EUR"},
		{domain.RefundFailed{UserID: "alice", RefundID: "r", Code: "closed"}, "refund_failed by provider, refund_id=r code=closed"},
		{domain.StrayPaymentFound{UserID: "alice", PaymentID: "p", Amount: amount, Why: "late"}, "stray_payment_found by system, payment_id=p amount=12.99 EUR why=late"},
		{domain.ItemsShipped{UserID: "alice", ShipmentID: "s", Lines: lines, Carrier: "DHL", Tracking: "T1", By: "clerk"}, "items_shipped by operator clerk, shipment_id=s units=3 carrier=DHL tracking=T1"},
		{domain.ShipmentDelivered{UserID: "alice", ShipmentID: "s", By: "clerk"}, "shipment_delivered by operator clerk, shipment_id=s"},
		{domain.ReturnRequested{UserID: "alice", ReturnID: "t", Lines: lines, Reason: "small", By: "alice"}, "return_requested by customer alice, return_id=t units=3 reason=small"},
		{domain.ReturnReceived{UserID: "alice", ReturnID: "t", Restocked: lines, By: "clerk"}, "return_received by operator clerk, return_id=t restocked=3"},
		{domain.NoteAdded{UserID: "alice", By: "clerk", Sealed: []byte{1}}, "note_added by operator clerk"},
		{domain.PointsAwarded{UserID: "alice", PaymentID: payment, Points: 12}, "points_awarded by system, payment_id=" + payment + " points=12"},
		{domain.PointsTakenBack{UserID: "alice", RefundID: refund, Points: 3}, "points_taken_back by system, refund_id=" + refund + " points=3"},
	} {
		entry, ok := domain.Timeline(c.event, epoch)
		var facts []string
		for _, fact := range entry.Facts {
			facts = append(facts, fact.Name+"="+fact.Value)
		}
		got := strings.TrimSuffix(strings.Replace(fmt.Sprintf("%s by %v %s, %s", entry.Kind, entry.Actor, entry.Subject, strings.Join(facts, " ")), " ,", ",", 1), ", ")
		if !ok || got != c.want || !entry.At.Equal(epoch) {
			t.Errorf("%T: got %q at %v, want %q", c.event, got, entry.At, c.want)
		}
	}
	if entry, ok := domain.Timeline(domain.ProductPut{SKU: "mug"}, epoch); ok {
		t.Errorf("a product's event has the entry %+v", entry)
	}
}
