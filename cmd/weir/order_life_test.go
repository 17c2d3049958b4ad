package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func euros(units int64) *typev1.Money { return &typev1.Money{CurrencyCode: "EUR", Units: units} }

// lived is an order of which much has become.
func (s *shop) lived() *orderv1.Order {
	order := s.order(orderv1.OrderStatus_ORDER_STATUS_DELIVERED)
	order.PaymentState = orderv1.PaymentState_PAYMENT_STATE_PARTIALLY_REFUNDED
	order.FulfilmentState = orderv1.FulfilmentState_FULFILMENT_STATE_DELIVERED
	order.Payments = []*orderv1.Payment{
		{PaymentId: testOrderID + "-p1", Provider: "sandbox", Amount: euros(2598), DeclineCode: "insufficient_funds", CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC},
		s.payment(),
	}
	order.Refunds = []*orderv1.Refund{s.refund()}
	order.Shipments = []*orderv1.Shipment{{
		ShipmentId: testOrderID + "-s1", Items: []*orderv1.ItemUnits{{Sku: "tea", Quantity: 2}}, Carrier: "post", Tracking: "42\x1b[31m",
		ShippedAt: timestamppb.New(testTime), DeliveredAt: timestamppb.New(testTime.Add(time.Hour)),
	}}
	order.Returns = []*orderv1.Return{{
		ReturnId: testOrderID + "-t1", Items: []*orderv1.ItemUnits{{Sku: "tea", Quantity: 1}}, Reason: "wrong sort", RequestedAt: timestamppb.New(testTime.Add(2 * time.Hour)),
	}}
	order.MerchantNotes = []*orderv1.MerchantNote{{By: "boss", AddedAt: timestamppb.New(testTime), Text: "called"}}
	return order
}

func (s *shop) payment() *orderv1.Payment {
	return &orderv1.Payment{
		PaymentId: testOrderID + "-p2", Provider: "sandbox", State: orderv1.PaymentState_PAYMENT_STATE_PARTIALLY_REFUNDED, Amount: euros(2598),
		Captured: euros(2598), Refunded: euros(500), CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL,
	}
}

func (s *shop) refund() *orderv1.Refund {
	return &orderv1.Refund{
		RefundId: testOrderID + "-p2-r1", PaymentId: testOrderID + "-p2", State: orderv1.RefundState_REFUND_STATE_SUCCEEDED, Amount: euros(500), Reason: "scratched",
	}
}

var testRevision = &typev1.Revision{Commit: 44}

func (s orderShop) ShipItems(_ context.Context, q *orderv1.ShipItemsRequest) (*orderv1.ShipItemsResponse, error) {
	return &orderv1.ShipItemsResponse{Order: s.lived(), Revision: testRevision, ShipmentId: testOrderID + "-s1"}, s.ask(q)
}

func (s orderShop) ConfirmDelivery(_ context.Context, q *orderv1.ConfirmDeliveryRequest) (*orderv1.ConfirmDeliveryResponse, error) {
	return &orderv1.ConfirmDeliveryResponse{Order: s.lived(), Revision: testRevision}, s.ask(q)
}

func (s orderShop) RequestReturn(_ context.Context, q *orderv1.RequestReturnRequest) (*orderv1.RequestReturnResponse, error) {
	return &orderv1.RequestReturnResponse{Order: s.lived(), Revision: testRevision, ReturnId: testOrderID + "-t1"}, s.ask(q)
}

func (s orderShop) ReceiveReturn(_ context.Context, q *orderv1.ReceiveReturnRequest) (*orderv1.ReceiveReturnResponse, error) {
	return &orderv1.ReceiveReturnResponse{Order: s.lived(), Revision: testRevision}, s.ask(q)
}

func (s orderShop) AddNote(_ context.Context, q *orderv1.AddNoteRequest) (*orderv1.AddNoteResponse, error) {
	return &orderv1.AddNoteResponse{Order: s.lived(), Revision: testRevision, NoteId: testOrderID + "-n1"}, s.ask(q)
}

func (s orderShop) GetTimeline(_ context.Context, q *orderv1.GetTimelineRequest) (*orderv1.GetTimelineResponse, error) {
	return &orderv1.GetTimelineResponse{
		Entries: []*orderv1.TimelineEntry{
			{
				Kind: "placed", At: timestamppb.New(testTime), Actor: orderv1.Actor_ACTOR_CUSTOMER, Subject: "alice",
				Facts: []*orderv1.TimelineFact{{Name: "total", Value: "25.98 EUR"}}, Revision: &typev1.Revision{Commit: 42},
			},
			{
				Kind: "items_shipped", At: timestamppb.New(testTime.Add(time.Hour)), Actor: orderv1.Actor_ACTOR_OPERATOR, Subject: "boss",
				Facts:    []*orderv1.TimelineFact{{Name: "units", Value: "2"}, {Name: "tracking", Value: "42\x1b[31m"}},
				Revision: testRevision,
			},
			{Kind: "expired", At: timestamppb.New(testTime.Add(time.Hour)), Actor: orderv1.Actor_ACTOR_SYSTEM, Revision: testRevision},
		},
		NextPageToken: "next", Freshness: testFresh,
	}, s.ask(q)
}

type paymentShop struct{ *shop }

func (s paymentShop) StartPayment(_ context.Context, q *paymentv1.StartPaymentRequest) (*paymentv1.StartPaymentResponse, error) {
	return &paymentv1.StartPaymentResponse{Order: s.lived(), Revision: testRevision, PaymentId: testOrderID + "-p2"}, s.ask(q)
}

func (s paymentShop) CapturePayment(_ context.Context, q *paymentv1.CapturePaymentRequest) (*paymentv1.CapturePaymentResponse, error) {
	return &paymentv1.CapturePaymentResponse{Order: s.lived(), Revision: testRevision, PaymentId: testOrderID + "-p2"}, s.ask(q)
}

func (s paymentShop) VoidPayment(_ context.Context, q *paymentv1.VoidPaymentRequest) (*paymentv1.VoidPaymentResponse, error) {
	return &paymentv1.VoidPaymentResponse{Order: s.lived(), Revision: testRevision, PaymentId: testOrderID + "-p2"}, s.ask(q)
}

func (s paymentShop) RefundPayment(_ context.Context, q *paymentv1.RefundPaymentRequest) (*paymentv1.RefundPaymentResponse, error) {
	return &paymentv1.RefundPaymentResponse{Order: s.lived(), Revision: testRevision, RefundId: testOrderID + "-p2-r1"}, s.ask(q)
}

func (s paymentShop) GetPayment(_ context.Context, q *paymentv1.GetPaymentRequest) (*paymentv1.GetPaymentResponse, error) {
	return &paymentv1.GetPaymentResponse{
		Payment: s.payment(), Refunds: []*orderv1.Refund{s.refund()}, OrderStatus: orderv1.OrderStatus_ORDER_STATUS_DELIVERED,
		Revision: testRevision, Freshness: testFresh,
	}, s.ask(q)
}

func (s paymentShop) ListPaymentsNeedingAttention(_ context.Context, q *paymentv1.ListPaymentsNeedingAttentionRequest) (*paymentv1.ListPaymentsNeedingAttentionResponse, error) {
	return &paymentv1.ListPaymentsNeedingAttentionResponse{
		Items: []*paymentv1.PaymentAttention{
			{
				Kind: paymentv1.AttentionKind_ATTENTION_KIND_UNKNOWN, OrderId: testOrderID, UserId: "alice", PaymentId: testOrderID + "-p1",
				Provider: "sandbox", Amount: euros(2598), Since: timestamppb.New(testTime),
			},
			{
				Kind: paymentv1.AttentionKind_ATTENTION_KIND_REFUND_FAILED, OrderId: testOrderID, UserId: "alice", PaymentId: testOrderID + "-p2",
				RefundId: testOrderID + "-p2-r1", Provider: "sandbox", Amount: euros(500), FailureCode: "account_closed", Since: timestamppb.New(testTime),
			},
		},
		Freshness: testFresh,
	}, s.ask(q)
}

func TestCommandsOfAnOrdersLifePrintWhatTheNodeAnswers(t *testing.T) {
	s := newShop(t)
	env := []string{"WEIR_ADDR=" + s.url, "WEIR_TOKEN=t"}
	for _, c := range []struct{ name, args string }{
		{"order_ship", "order ship --request-id r1 " + testOrderID},
		{"order_timeline", "order timeline " + testOrderID},
		{"payment_start", "payment start --request-id r2 " + testOrderID},
		{"payment_get", "payment get " + testOrderID},
		{"payment_attention", "payment attention"},
	} {
		for _, format := range []string{"table", "json"} {
			t.Run(c.name+" "+format, func(t *testing.T) {
				r := weir(t, env, append(strings.Fields(c.args), "-o", format)...).want(t, exitOK)
				golden(t, fmt.Sprintf("output/%s.%s", c.name, format), r.stdout)
				if strings.Contains(r.stdout, "\x1b") {
					t.Fatal("an escape sequence got out although this is no terminal")
				}
				if format == "json" {
					decode[map[string]any](t, strings.TrimSpace(r.stdout))
				}
			})
		}
	}
}

func TestCommandsOfAnOrdersLifeAskForWhatTheFlagsSay(t *testing.T) {
	s := newShop(t)
	min := &typev1.Revision{Lane: 1, Commit: 42}
	tea := []*orderv1.ItemRequest{{Sku: "tea", Quantity: 2}, {Sku: "cup", Quantity: 1}}
	for _, c := range []struct {
		args []string
		want proto.Message
	}{
		{
			[]string{"order", "ship", testOrderID, "tea=2", "cup", "--carrier", "post", "--tracking", "42", "--request-id", "r"},
			&orderv1.ShipItemsRequest{RequestId: "r", OrderId: testOrderID, Items: tea, Carrier: "post", Tracking: "42"},
		},
		{[]string{"order", "ship", testOrderID, "--request-id", "r"}, &orderv1.ShipItemsRequest{RequestId: "r", OrderId: testOrderID}},
		{
			[]string{"order", "deliver", testOrderID + "-s3", "--request-id", "r"},
			&orderv1.ConfirmDeliveryRequest{RequestId: "r", OrderId: testOrderID, ShipmentId: testOrderID + "-s3"},
		},
		{
			[]string{"order", "return", testOrderID, "tea=2", "cup", "--reason", "why", "--request-id", "r"},
			&orderv1.RequestReturnRequest{RequestId: "r", OrderId: testOrderID, Items: tea, Reason: "why"},
		},
		{
			[]string{"order", "receive-return", testOrderID + "-t1", "--restock", "tea=2", "--restock", "cup", "--request-id", "r"},
			&orderv1.ReceiveReturnRequest{RequestId: "r", OrderId: testOrderID, ReturnId: testOrderID + "-t1", Restock: tea},
		},
		{[]string{"order", "note", testOrderID, "called twice", "--request-id", "r"}, &orderv1.AddNoteRequest{RequestId: "r", OrderId: testOrderID, Text: "called twice"}},
		{
			[]string{"order", "timeline", testOrderID, "--page-size", "7", "--page-token", "x", "--min-revision", "1:42"},
			&orderv1.GetTimelineRequest{OrderId: testOrderID, PageSize: 7, PageToken: "x", MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{
			[]string{"payment", "start", testOrderID, "--request-id", "r"},
			&paymentv1.StartPaymentRequest{RequestId: "r", OrderId: testOrderID, CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC},
		},
		{
			[]string{"payment", "start", testOrderID, "--provider", "p", "--method", "m", "--capture", "manual", "--request-id", "r"},
			&paymentv1.StartPaymentRequest{RequestId: "r", OrderId: testOrderID, Provider: "p", Method: "m", CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL},
		},
		{[]string{"payment", "capture", testOrderID, "--request-id", "r"}, &paymentv1.CapturePaymentRequest{RequestId: "r", OrderId: testOrderID}},
		{[]string{"payment", "void", testOrderID, "--reason", "why", "--request-id", "r"}, &paymentv1.VoidPaymentRequest{RequestId: "r", OrderId: testOrderID, Reason: "why"}},
		{[]string{"payment", "refund", testOrderID, "--request-id", "r"}, &paymentv1.RefundPaymentRequest{RequestId: "r", OrderId: testOrderID}},
		{
			[]string{"payment", "refund", testOrderID, "--amount", "5.00 EUR", "--reason", "why", "--payment", testOrderID + "-p1", "--request-id", "r"},
			&paymentv1.RefundPaymentRequest{RequestId: "r", OrderId: testOrderID, Amount: euros(500), Reason: "why", PaymentId: testOrderID + "-p1"},
		},
		{
			[]string{"payment", "get", testOrderID, "--min-revision", "1:42"},
			&paymentv1.GetPaymentRequest{OrderId: testOrderID, MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{[]string{"payment", "get", testOrderID + "-p2"}, &paymentv1.GetPaymentRequest{OrderId: testOrderID, PaymentId: testOrderID + "-p2"}},
		{
			[]string{"payment", "attention", "--page-size", "7", "--page-token", "x"},
			&paymentv1.ListPaymentsNeedingAttentionRequest{PageSize: 7, PageToken: "x"},
		},
	} {
		weir(t, []string{"WEIR_ADDR=" + s.url}, c.args...).want(t, exitOK)
		if got := *s.asked.Load(); !proto.Equal(got, c.want) {
			t.Errorf("weir %s\ngot  %v\nwant %v", strings.Join(c.args, " "), got, c.want)
		}
	}
}

// TestPaymentWithoutAMethodIsToldToGiveOne: whether one is needed the node alone can tell, what to do the command line.
func TestPaymentWithoutAMethodIsToldToGiveOne(t *testing.T) {
	s := newShop(t)
	s.fail = refusal(connect.CodeInvalidArgument, "method: it is empty", "INVALID_ARGUMENT", map[string]string{"argument": "method"}, 0)
	result := weir(t, []string{"WEIR_ADDR=" + s.url}, "payment", "start", testOrderID).want(t, exitUsage)
	wantText(t, result.stderr, "method: it is empty", "--method tok_ok")
}

func TestBadArgumentsOfAnOrdersLifeAreRefusedWithoutACall(t *testing.T) {
	s := newShop(t)
	for _, c := range []struct{ args, want string }{
		{"order ship", "needs ORDER_ID"},
		{"order ship a tea=two", "is not a number of units"},
		{"order deliver", "needs SHIPMENT_ID"},
		{"order return", "needs ORDER_ID"},
		{"order receive-return a --restock tea=", "is not a number of units"},
		{"order note a", "needs TEXT"},
		{"order timeline a --min-revision 42", "is not LANE:COMMIT"},
		{"payment start a --capture later", `--capture "later" is unknown`},
		{"payment refund a --amount 12", "--amount"},
		{"payment get", "needs ORDER_ID|PAYMENT_ID"},
		{"payment attention a", `does not know what to do with "a"`},
	} {
		wantText(t, weir(t, []string{"WEIR_ADDR=" + s.url}, strings.Fields(c.args)...).want(t, exitUsage).stderr, c.want)
	}
	if calls := s.calls.Load(); calls != 0 {
		t.Fatalf("%d calls were made", calls)
	}
}
