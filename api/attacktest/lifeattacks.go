package attacktest

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// change is a method that changes an order: a request of it that keeps every rule.
type change struct {
	procedure string
	request   func(requestID, orderID string) proto.Message
}

// customersChanges may be asked for by a customer, operatorsChanges by an operator alone.
var (
	customersChanges = []change{
		{requestReturn, func(requestID, orderID string) proto.Message {
			return &orderv1.RequestReturnRequest{RequestId: requestID, OrderId: orderID}
		}},
		{startPayment, func(requestID, orderID string) proto.Message {
			return &paymentv1.StartPaymentRequest{RequestId: requestID, OrderId: orderID}
		}},
	}
	operatorsChanges = []change{
		{shipItems, func(requestID, orderID string) proto.Message {
			return &orderv1.ShipItemsRequest{RequestId: requestID, OrderId: orderID}
		}},
		{confirmDelivery, func(requestID, orderID string) proto.Message {
			return &orderv1.ConfirmDeliveryRequest{RequestId: requestID, OrderId: orderID, ShipmentId: strings.Repeat("0", 27) + "-s1"}
		}},
		{receiveReturn, func(requestID, orderID string) proto.Message {
			return &orderv1.ReceiveReturnRequest{RequestId: requestID, OrderId: orderID, ReturnId: strings.Repeat("0", 27) + "-t1"}
		}},
		{addNote, func(requestID, orderID string) proto.Message {
			return &orderv1.AddNoteRequest{RequestId: requestID, OrderId: orderID, Text: "x"}
		}},
		{capturePayment, func(requestID, orderID string) proto.Message {
			return &paymentv1.CapturePaymentRequest{RequestId: requestID, OrderId: orderID}
		}},
		{voidPayment, func(requestID, orderID string) proto.Message {
			return &paymentv1.VoidPaymentRequest{RequestId: requestID, OrderId: orderID}
		}},
		{refundPayment, func(requestID, orderID string) proto.Message {
			return &paymentv1.RefundPaymentRequest{RequestId: requestID, OrderId: orderID}
		}},
	}
)

// anothersOrdersLife goes at the payments, returns and timeline of another's order (I7).
func anothersOrdersLife(t *testing.T, r *rig) {
	missing := missingID(victim)
	for _, stranger := range []string{attacker, neighbour(victim)} {
		token := r.token(t, stranger, 0)
		asked := append(slices.Clone(customersChanges),
			change{getTimeline, func(_, orderID string) proto.Message { return &orderv1.GetTimelineRequest{OrderId: orderID} }},
			change{getPayment, func(_, orderID string) proto.Message { return &paymentv1.GetPaymentRequest{OrderId: orderID} }})
		for _, c := range asked {
			there := r.call(t, token, c.procedure, c.request("attack-life", r.order.OrderId))
			notThere := r.call(t, token, c.procedure, c.request("attack-life", missing))
			same := strings.ReplaceAll(string(there.body), r.order.OrderId, missing)
			// The id is in the details in base64, too.
			if there.status != notThere.status || there.code() != notThere.code() || there.reason() != notThere.reason() || len(same) != len(notThere.body) {
				t.Errorf("%s by %s: another's order %s, a missing one %s", c.procedure, stranger, there, notThere)
			}
			if there.code() != "not_found" {
				t.Errorf("%s by %s: got %s", c.procedure, stranger, there)
			}
		}
	}
}

func operatorsMethods(t *testing.T, r *rig) {
	for _, token := range []string{r.ada, r.eve, r.actAs} {
		for _, c := range operatorsChanges {
			want(t, c.procedure, r.call(t, token, c.procedure, c.request("attack-operates", r.order.OrderId)), "permission_denied", "PERMISSION_DENIED")
		}
		want(t, listAttention, r.call(t, token, listAttention, &paymentv1.ListPaymentsNeedingAttentionRequest{}), "permission_denied", "PERMISSION_DENIED")
	}
}

func hostileLife(t *testing.T, r *rig) {
	id := r.order.OrderId
	invalid := func(what, token, procedure string, request proto.Message) {
		t.Helper()
		want(t, procedure+" "+what, r.call(t, token, procedure, request), "invalid_argument", "INVALID_ARGUMENT")
	}
	for _, c := range append(slices.Clone(operatorsChanges), customersChanges...) {
		for _, name := range append([]string{""}, hostileNames...) {
			invalid(fmt.Sprintf("request_id %.20q", name), r.operator, c.procedure, c.request(name, id))
			invalid(fmt.Sprintf("order_id %.20q", name), r.operator, c.procedure, c.request("attack-hostile", name))
		}
		invalid("order_id changed", r.operator, c.procedure, c.request("attack-hostile", id[:26]+"I"))
		want(t, c.procedure+" of no order", r.call(t, r.operator, c.procedure, c.request("attack-missing", missingID(victim))), "not_found", "")
	}
	for _, part := range append([]string{"", id, id + "-s", id + "-s-1", id + "-s1x", id + "-p1", "-s1", id + "-s" + strings.Repeat("1", 10)}, hostileNames...) {
		what := fmt.Sprintf("part %.40q", part)
		invalid(what, r.operator, confirmDelivery, &orderv1.ConfirmDeliveryRequest{RequestId: "attack-part", OrderId: id, ShipmentId: part})
		if part != "" && part != id+"-p1" {
			invalid(what, r.operator, refundPayment, &paymentv1.RefundPaymentRequest{RequestId: "attack-part", OrderId: id, PaymentId: part})
			invalid(what, r.ada, getPayment, &paymentv1.GetPaymentRequest{OrderId: id, PaymentId: part})
		}
		invalid(what, r.operator, receiveReturn, &orderv1.ReceiveReturnRequest{RequestId: "attack-part", OrderId: id, ReturnId: part})
	}
	for _, quantity := range []int64{0, -1, math.MinInt64, 1_000_001, math.MaxInt64} {
		items := []*orderv1.ItemRequest{{Sku: sku, Quantity: quantity}}
		what := fmt.Sprintf("quantity %d", quantity)
		invalid(what, r.operator, shipItems, &orderv1.ShipItemsRequest{RequestId: "attack-units", OrderId: id, Items: items})
		invalid(what, r.ada, requestReturn, &orderv1.RequestReturnRequest{RequestId: "attack-units", OrderId: id, Items: items})
		invalid(what, r.operator, receiveReturn, &orderv1.ReceiveReturnRequest{RequestId: "attack-units", OrderId: id, ReturnId: id + "-t1", Restock: items})
	}
	var many []*orderv1.ItemRequest
	for i := range 101 {
		many = append(many, &orderv1.ItemRequest{Sku: fmt.Sprintf("sku-%d", i), Quantity: 1})
	}
	for name, items := range map[string][]*orderv1.ItemRequest{
		"101 items": many, "a SKU twice": {{Sku: sku, Quantity: 1}, {Sku: sku, Quantity: 1}}, "an empty item": {{}}, "a pool's SKU": {{Sku: sku + "@sale", Quantity: 1}},
	} {
		invalid(name, r.operator, shipItems, &orderv1.ShipItemsRequest{RequestId: "attack-items", OrderId: id, Items: items})
		invalid(name, r.ada, requestReturn, &orderv1.RequestReturnRequest{RequestId: "attack-items", OrderId: id, Items: items})
	}
	long := strings.Repeat("x", 201)
	invalid("a long carrier", r.operator, shipItems, &orderv1.ShipItemsRequest{RequestId: "attack-long", OrderId: id, Carrier: long[:101]})
	invalid("a long tracking number", r.operator, shipItems, &orderv1.ShipItemsRequest{RequestId: "attack-long", OrderId: id, Tracking: long[:101]})
	invalid("a long reason", r.ada, requestReturn, &orderv1.RequestReturnRequest{RequestId: "attack-long", OrderId: id, Reason: long})
	invalid("a long reason", r.operator, voidPayment, &paymentv1.VoidPaymentRequest{RequestId: "attack-long", OrderId: id, Reason: long})
	invalid("a long reason", r.operator, refundPayment, &paymentv1.RefundPaymentRequest{RequestId: "attack-long", OrderId: id, Reason: long})
	invalid("no note", r.operator, addNote, &orderv1.AddNoteRequest{RequestId: "attack-long", OrderId: id})
	invalid("a long note", r.operator, addNote, &orderv1.AddNoteRequest{RequestId: "attack-long", OrderId: id, Text: strings.Repeat("é", 501)})
	invalid("no method", r.ada, startPayment, &paymentv1.StartPaymentRequest{RequestId: "attack-method", OrderId: id})
	invalid("a long method", r.ada, startPayment, &paymentv1.StartPaymentRequest{RequestId: "attack-long", OrderId: id, Method: long[:65]})
	invalid("a provider that is none", r.ada, startPayment, &paymentv1.StartPaymentRequest{RequestId: "attack-provider", OrderId: id, Provider: "nobody"})
	invalid("the provider of nothing", r.ada, startPayment, &paymentv1.StartPaymentRequest{RequestId: "attack-provider", OrderId: id, Provider: "none"})
	invalid("a capture mode that is none", r.ada, startPayment, &paymentv1.StartPaymentRequest{RequestId: "attack-mode", OrderId: id, CaptureMode: 9})
	for _, currency := range []string{"", "eur", "EURO", "€", "EU\n"} {
		invalid("currency "+currency, r.operator, refundPayment, &paymentv1.RefundPaymentRequest{RequestId: "attack-money", OrderId: id, Amount: &typev1.Money{CurrencyCode: currency, Units: 1}})
	}
	// Money that was never taken is not given back, however it is asked for.
	for _, amount := range []*typev1.Money{nil, {CurrencyCode: "EUR"}, {CurrencyCode: "EUR", Units: -1}, {CurrencyCode: "EUR", Units: 1}, {CurrencyCode: "EUR", Units: math.MaxInt64}, {CurrencyCode: "EUR", Units: math.MinInt64}} {
		got := r.call(t, r.operator, refundPayment, &paymentv1.RefundPaymentRequest{RequestId: "attack-refund", OrderId: id, Amount: amount})
		want(t, fmt.Sprintf("refund %v of an order that is not paid", amount), got, "failed_precondition", "PAYMENT_STATE")
	}
	want(t, "ship what is not paid", r.call(t, r.operator, shipItems, &orderv1.ShipItemsRequest{RequestId: "attack-ship", OrderId: id}), "failed_precondition", "PAYMENT_STATE")
	want(t, "return what was not shipped", r.call(t, r.ada, requestReturn, &orderv1.RequestReturnRequest{RequestId: "attack-return", OrderId: id}), "failed_precondition", "FULFILMENT_STATE")
	for _, size := range []int32{-1, 501, math.MaxInt32, math.MinInt32} {
		invalid(fmt.Sprintf("page of %d", size), r.ada, getTimeline, &orderv1.GetTimelineRequest{OrderId: id, PageSize: size})
		invalid(fmt.Sprintf("page of %d", size), r.operator, listAttention, &paymentv1.ListPaymentsNeedingAttentionRequest{PageSize: size})
	}
	for _, token := range []string{"x", "====", strings.Repeat("A", 600), "\x00", "AQ"} {
		invalid("page_token "+token, r.ada, getTimeline, &orderv1.GetTimelineRequest{OrderId: id, PageToken: token})
		invalid("page_token "+token, r.operator, listAttention, &paymentv1.ListPaymentsNeedingAttentionRequest{PageToken: token})
	}
	invalid("wait_budget", r.ada, getTimeline, &orderv1.GetTimelineRequest{OrderId: id, WaitBudget: durationpb.New(math.MaxInt64)})
	invalid("lane", r.ada, getPayment, &paymentv1.GetPaymentRequest{OrderId: id, MinRevision: &typev1.Revision{Lane: 1023, Commit: 1}})
	for text := range strings.SplitSeq(`"1.5" 1e400 "abc" null`, " ") {
		got := r.callJSON(t, r.operator, refundPayment, `{"requestId":"attack-json","orderId":"`+id+`","amount":{"currencyCode":"EUR","units":`+text+`}}`)
		if got.code() != "invalid_argument" && got.reason() != "PAYMENT_STATE" { // null is no units.
			t.Errorf("amount %s: got %s", text, got)
		}
	}
}
