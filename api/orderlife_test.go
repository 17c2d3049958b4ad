package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A till stands in for the reactor that asks payment providers: it records what a provider would say.
type till struct {
	t        testing.TB
	commands api.Commands
}

func (k till) record(text string, command func(domain.OrderID) domain.Command) {
	k.t.Helper()
	id := orderID(k.t, text)
	if _, err := k.commands.Submit(k.t.Context(), lanes.Request{Partition: id.Partition(), Command: command(id)}); err != nil {
		k.t.Fatal(err)
	}
}

func (k till) says(orderID string, attempt int, result domain.PaymentResult, minor int64) {
	k.t.Helper()
	k.record(orderID, func(id domain.OrderID) domain.Command {
		return domain.RecordPaymentResult{
			OrderID: id, PaymentID: domain.PaymentID(id, attempt), Result: result, Amount: domain.Money{Currency: "EUR", Minor: minor},
			Code: "insufficient_funds", Message: "no money",
		}
	})
}

func (k till) refunded(orderID, refundID string, minor int64, succeeded bool) {
	k.t.Helper()
	k.record(orderID, func(id domain.OrderID) domain.Command {
		return domain.RecordRefundResult{OrderID: id, RefundID: refundID, Succeeded: succeeded, Amount: domain.Money{Currency: "EUR", Minor: minor}, Code: "account_closed"}
	})
}

// paid places an order of two of SKU a and pays it.
func (n *node) paid(t *testing.T, k till, ada client, requestID string) *orderv1.Order {
	t.Helper()
	order := must(ada.PlaceOrder(t.Context(), request(requestID, "a", 2)))(t).Order
	must(ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: requestID + "-pay", OrderId: order.OrderId, Method: "tok_ok"}))(t)
	k.says(order.OrderId, 1, domain.ResultCaptured, 2598)
	return order
}

// orderLife takes an order through its whole life.
func orderLife(t *testing.T, n *node, k till, user string, options ...connect.ClientOption) {
	ada, boss := n.client(user, 0, options...), n.client("boss", identity.ScopeOperator, options...)
	order := must(ada.PlaceOrder(t.Context(), request("r1", "a", 2, "b", 1)))(t).Order
	id := order.OrderId
	if order.PaymentState != 0 || order.FulfilmentState != 0 || len(order.Payments) != 0 {
		t.Errorf("placed %v", order)
	}

	started := must(ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "r2", OrderId: id, Method: "tok_visa"}))(t)
	payment := started.Order.Payments[0]
	if started.Order.Status != orderv1.OrderStatus_ORDER_STATUS_PAYMENT_PROCESSING || started.Order.PaymentState != orderv1.PaymentState_PAYMENT_STATE_PENDING ||
		payment.PaymentId != id+"-p1" || payment.Provider != "sandbox" || payment.Amount.Units != 3*1299 || payment.Captured != nil ||
		payment.CaptureMode != orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC || !proto.Equal(started.Revision, started.Order.Revision) {
		t.Errorf("started %v", started)
	}
	_, err := ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "r3", OrderId: id, Method: "tok_ok"})
	info := wantError(t, "a second payment at once", err, connect.CodeFailedPrecondition, api.ReasonPaymentState)
	if info.GetMetadata()["payment"] != "pending" {
		t.Errorf("facts: got %v", info.GetMetadata())
	}
	k.says(id, 1, domain.ResultDeclined, 0)
	started = must(ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{
		RequestId: "r4", OrderId: id, Provider: "other", Method: "tok_ok", CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL,
	}))(t)
	if got := started.Order.Payments; len(got) != 2 || got[0].DeclineCode != "insufficient_funds" || got[0].DeclineMessage != "no money" ||
		got[1].Provider != "other" || got[1].CaptureMode != orderv1.CaptureMode_CAPTURE_MODE_MANUAL {
		t.Errorf("started again %v", got)
	}
	k.says(id, 2, domain.ResultAuthorized, 3*1299)
	_, err = boss.ShipItems(t.Context(), &orderv1.ShipItemsRequest{RequestId: "r5", OrderId: id})
	wantError(t, "ship what is not paid", err, connect.CodeFailedPrecondition, api.ReasonPaymentState)
	captured := must(boss.CapturePayment(t.Context(), &paymentv1.CapturePaymentRequest{RequestId: "r6", OrderId: id}))(t)
	if !captured.Order.Payments[1].CaptureRequested || captured.Order.Status != orderv1.OrderStatus_ORDER_STATUS_AUTHORIZED {
		t.Errorf("capture %v", captured)
	}
	k.says(id, 2, domain.ResultCaptured, 3*1299)

	shipped := must(boss.ShipItems(t.Context(), &orderv1.ShipItemsRequest{
		RequestId: "r7", OrderId: id, Items: []*orderv1.ItemRequest{{Sku: "a", Quantity: 1}}, Carrier: "post", Tracking: "42",
	}))(t)
	shipment := shipped.Order.Shipments[0]
	if shipped.Order.Status != orderv1.OrderStatus_ORDER_STATUS_PARTIALLY_SHIPPED || shipment.ShipmentId != id+"-s1" || shipment.Carrier != "post" ||
		shipment.Tracking != "42" || len(shipment.Items) != 1 || shipment.Items[0].Quantity != 1 || shipment.ShippedAt == nil || shipment.DeliveredAt != nil {
		t.Errorf("shipped %v", shipped)
	}
	_, err = boss.ShipItems(t.Context(), &orderv1.ShipItemsRequest{RequestId: "r8", OrderId: id, Items: []*orderv1.ItemRequest{{Sku: "a", Quantity: 2}}})
	info = wantError(t, "ship more than is left", err, connect.CodeFailedPrecondition, api.ReasonUnitsExceeded)
	if info.GetMetadata()["left"] != "1" {
		t.Errorf("facts: got %v", info.GetMetadata())
	}
	_, err = boss.ShipItems(t.Context(), &orderv1.ShipItemsRequest{RequestId: "r8", OrderId: id, Items: []*orderv1.ItemRequest{{Sku: "a", Quantity: 1}, {Sku: "a", Quantity: 1}}})
	wantError(t, "a SKU twice", err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	_, err = ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "r9", OrderId: id})
	wantError(t, "cancel what was shipped", err, connect.CodeFailedPrecondition, api.ReasonOrderShipped)
	must(boss.ShipItems(t.Context(), &orderv1.ShipItemsRequest{RequestId: "r10", OrderId: id}))(t)
	for number := 1; number <= 2; number++ {
		must(boss.ConfirmDelivery(t.Context(), &orderv1.ConfirmDeliveryRequest{
			RequestId: fmt.Sprintf("d%d", number), OrderId: id, ShipmentId: fmt.Sprintf("%s-s%d", id, number),
		}))(t)
	}
	_, err = boss.ConfirmDelivery(t.Context(), &orderv1.ConfirmDeliveryRequest{RequestId: "d3", OrderId: id, ShipmentId: id + "-s3"})
	wantError(t, "a shipment that is not there", err, connect.CodeNotFound, api.ReasonOrderPartNotFound)

	back := must(ada.RequestReturn(t.Context(), &orderv1.RequestReturnRequest{
		RequestId: "r11", OrderId: id, Items: []*orderv1.ItemRequest{{Sku: "b", Quantity: 1}}, Reason: "too small",
	}))(t)
	if got := back.Order; got.Status != orderv1.OrderStatus_ORDER_STATUS_DELIVERED || got.Returns[0].ReturnId != id+"-t1" || got.Returns[0].Reason != "too small" {
		t.Errorf("return %v", back)
	}
	received := must(boss.ReceiveReturn(t.Context(), &orderv1.ReceiveReturnRequest{
		RequestId: "r12", OrderId: id, ReturnId: id + "-t1", Restock: []*orderv1.ItemRequest{{Sku: "b", Quantity: 1}},
	}))(t)
	if got := received.Order; got.Returns[0].ReceivedAt == nil || got.Returns[0].Restocked[0].Sku != "b" || len(got.Refunds) != 1 ||
		got.Refunds[0].Amount.Units != 1299 || got.Refunds[0].ReturnId != id+"-t1" || got.Refunds[0].State != orderv1.RefundState_REFUND_STATE_UNDER_WAY {
		t.Errorf("received %v", received)
	}
	k.refunded(id, id+"-p2-r1", 1299, true)
	_, err = boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{RequestId: "r13", OrderId: id, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 2599}})
	info = wantError(t, "refund more than is left", err, connect.CodeFailedPrecondition, api.ReasonRefundExceedsCaptured)
	if info.GetMetadata()["left"] != "25.98 EUR" {
		t.Errorf("facts: got %v", info.GetMetadata())
	}
	_, err = boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{RequestId: "r13", OrderId: id, Amount: &typev1.Money{CurrencyCode: "JPY", Units: 1}})
	wantError(t, "refund another currency", err, connect.CodeInvalidArgument, api.ReasonMixedCurrencies)
	refunded := must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{
		RequestId: "r14", OrderId: id, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 98}, Reason: "scratched", PaymentId: id + "-p2",
	}))(t)
	if got := refunded.Order.Refunds; len(got) != 2 || got[1].RefundId != id+"-p2-r2" || got[1].Reason != "scratched" {
		t.Errorf("refunded %v", refunded)
	}
	k.refunded(id, id+"-p2-r2", 98, false)
	rest := must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{RequestId: "r15", OrderId: id}))(t) // All that is left.
	if got := rest.Order.Refunds[2]; got.Amount.Units != 2598 || rest.Order.Refunds[1].State != orderv1.RefundState_REFUND_STATE_FAILED || rest.Order.Refunds[1].FailureCode != "account_closed" {
		t.Errorf("the rest: %v", rest)
	}

	got := must(ada.GetPayment(t.Context(), &paymentv1.GetPaymentRequest{OrderId: id, MinRevision: rest.Revision}))(t)
	if got.Payment.PaymentId != id+"-p2" || got.Payment.State != orderv1.PaymentState_PAYMENT_STATE_PARTIALLY_REFUNDED || got.Payment.Captured.Units != 3*1299 ||
		got.Payment.Refunded.Units != 1299 || len(got.Refunds) != 3 || got.OrderStatus != orderv1.OrderStatus_ORDER_STATUS_DELIVERED {
		t.Errorf("got %v", got)
	}
	first := must(ada.GetPayment(t.Context(), &paymentv1.GetPaymentRequest{OrderId: id, PaymentId: id + "-p1"}))(t)
	if first.Payment.DeclineCode != "insufficient_funds" || len(first.Refunds) != 0 {
		t.Errorf("got %v", first)
	}
	_, err = ada.GetPayment(t.Context(), &paymentv1.GetPaymentRequest{OrderId: id, PaymentId: id + "-p9"})
	wantError(t, "a payment that is not there", err, connect.CodeNotFound, api.ReasonOrderPartNotFound)
	read := must(ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id}))(t)
	if !proto.Equal(read.Order, rest.Order) {
		t.Errorf("got %v, want %v", read.Order, rest.Order)
	}

	var kinds []string
	for token := ""; ; {
		page := must(ada.GetTimeline(t.Context(), &orderv1.GetTimelineRequest{OrderId: id, PageSize: 7, PageToken: token}))(t)
		for _, entry := range page.Entries {
			kinds = append(kinds, entry.Kind)
			if entry.At == nil || entry.Revision.GetCommit() == 0 || (entry.Actor == orderv1.Actor_ACTOR_CUSTOMER && entry.Subject != user) ||
				(entry.Actor == orderv1.Actor_ACTOR_OPERATOR && entry.Subject != "") {
				t.Errorf("entry %v", entry)
			}
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	if want := "placed payment_started payment_declined payment_started payment_authorized payment_capture_requested payment_captured items_shipped " +
		"items_shipped shipment_delivered shipment_delivered return_requested return_received refund_started refunded refund_started refund_failed refund_started"; strings.Join(kinds, " ") != want {
		t.Errorf("timeline %v\nwant %s", kinds, want)
	}
	if page := must(boss.GetTimeline(t.Context(), &orderv1.GetTimelineRequest{OrderId: id}))(t); !slices.ContainsFunc(page.Entries, func(e *orderv1.TimelineEntry) bool {
		return e.Kind == "items_shipped" && e.Actor == orderv1.Actor_ACTOR_OPERATOR && e.Subject == "boss" && e.Facts[len(e.Facts)-1].Value == "42"
	}) {
		t.Errorf("an operator is not told who shipped: %v", page)
	}
}

func TestOrderIsPaidShippedReturnedRefundedOverEveryProtocol(t *testing.T) {
	n := serve(t, nil)
	n.stock("a", "b")
	for name, options := range transports {
		t.Run(name, func(t *testing.T) {
			orderLife(t, n, till{t, n.fakeNode}, strings.ReplaceAll(strings.ToLower(name), " ", "-"), options...)
		})
	}
}

func TestOrderIsPaidShippedReturnedRefundedOnRealLanes(t *testing.T) {
	for _, count := range []uint32{1, 4} {
		t.Run(fmt.Sprintf("%dLanes", count), func(t *testing.T) {
			var real *realNode
			n := serve(t, func(o *api.Options) { real = useRealNode(t, o, count) })
			n.stock("a", "b")
			k := till{t, real.set}
			n.awaitUnits(t, "ada", "a", "b")
			orderLife(t, n, k, "ada")
		})
	}
}

// awaitUnits returns once the user's lane has units of the SKUs to order from.
func (n *node) awaitUnits(t *testing.T, user string, skus ...string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		var pairs []any
		for _, sku := range skus {
			pairs = append(pairs, sku, 1)
		}
		placed, err := n.client(user, 0).PlaceOrder(t.Context(), request("await-units", pairs...))
		if err == nil {
			must(n.client(user, 0).CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "await-units-cancel", OrderId: placed.Order.OrderId}))(t)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no units arrived: %v", err)
		}
	}
}

func TestPaymentsThatNeedAttentionAreListedUntilTheyAreSettled(t *testing.T) {
	for _, count := range []uint32{1, 4} {
		t.Run(fmt.Sprintf("%dLanes", count), func(t *testing.T) {
			var real *realNode
			n := serve(t, func(o *api.Options) { real = useRealNode(t, o, count) })
			n.stock("a")
			k, boss := till{t, real.set}, n.client("boss", identity.ScopeOperator)
			place := func(user string) (client, string) {
				n.awaitUnits(t, user, "a")
				c := n.client(user, 0)
				id := must(c.PlaceOrder(t.Context(), request("r", "a", 2)))(t).Order.OrderId
				must(c.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "p", OrderId: id, Method: "tok_ok"}))(t)
				return c, id
			}
			// list returns what is listed as of every change that there is.
			list := func() []string {
				t.Helper()
				var listed []string
				for deadline := time.Now().Add(10 * time.Second); ; {
					listed = nil
					stale := false
					for token := ""; ; {
						page := must(boss.ListPaymentsNeedingAttention(t.Context(), &paymentv1.ListPaymentsNeedingAttentionRequest{PageSize: 1, PageToken: token}))(t)
						stale = stale || page.Freshness.State != typev1.Freshness_STATE_FRESH
						for _, item := range page.Items {
							listed = append(listed, strings.TrimPrefix(item.Kind.String(), "ATTENTION_KIND_")+" "+item.PaymentId+" "+item.RefundId)
							if item.Provider != "sandbox" || item.Amount.GetUnits() == 0 || item.Since == nil || item.UserId == "" || !strings.HasPrefix(item.PaymentId, item.OrderId) {
								t.Errorf("listed %v", item)
							}
						}
						if token = page.NextPageToken; token == "" {
							break
						}
					}
					if !stale {
						slices.Sort(listed)
						return listed
					}
					if time.Now().After(deadline) {
						t.Fatal("the view never became fresh")
					}
				}
			}
			check := func(what string, want ...string) {
				t.Helper()
				if got := list(); !slices.Equal(got, want) {
					t.Errorf("%s: listed %q, want %q", what, got, want)
				}
			}
			_, unknown := place("ada")
			check("nothing yet")
			k.says(unknown, 1, domain.ResultUnknown, 0)
			_, failing := place("bob")
			k.says(failing, 1, domain.ResultCaptured, 2598)
			must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{RequestId: "f1", OrderId: failing, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 500}}))(t)
			k.refunded(failing, failing+"-p1-r1", 500, false)
			_, late := place("cleo")
			k.says(late, 1, domain.ResultCaptured, 1)
			want := []string{"REFUND_FAILED " + failing + "-p1 " + failing + "-p1-r1", "STRAY " + late + "-p1 ", "UNKNOWN " + unknown + "-p1 "}
			check("all three", want...)

			k.says(unknown, 1, domain.ResultCaptured, 2598)
			check("the outcome is known", want[0], want[1])
			k.refunded(late, late+"-p1-r1", 1, true)
			check("stray money went back", want[0])
			must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{RequestId: "f2", OrderId: failing, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 100}}))(t)
			check("a smaller refund makes up for nothing", want[0])
			must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{RequestId: "f3", OrderId: failing, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 500}}))(t)
			check("one as large does")
			k.refunded(failing, failing+"-p1-r3", 500, false)
			check("until it fails as well", "REFUND_FAILED "+failing+"-p1 "+failing+"-p1-r3")
			k.refunded(failing, failing+"-p1-r3", 500, true)
			check("and goes through after all")

			_, err := boss.ListPaymentsNeedingAttention(t.Context(), &paymentv1.ListPaymentsNeedingAttentionRequest{PageToken: "AQ"})
			wantError(t, "a token that is none", err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
		})
	}
}

func TestCancelAfterCaptureStartsARefundOfAll(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	k, ada := till{t, n.fakeNode}, n.client("ada", 0)
	order := n.paid(t, k, ada, "r1")
	cancelled := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c", OrderId: order.OrderId, Reason: "late"}))(t).Order
	if cancelled.Status != orderv1.OrderStatus_ORDER_STATUS_CANCELLED || len(cancelled.Refunds) != 1 || cancelled.Refunds[0].Amount.Units != 2598 {
		t.Errorf("cancelled %v", cancelled)
	}
	_, err := n.client("boss", identity.ScopeOperator).ShipItems(t.Context(), &orderv1.ShipItemsRequest{RequestId: "s", OrderId: order.OrderId})
	wantError(t, "ship what was cancelled", err, connect.CodeFailedPrecondition, api.ReasonOrderCancelled)
}

func TestPaymentIsVoidedBeforeItIsTaken(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	k, ada, boss := till{t, n.fakeNode}, n.client("ada", 0), n.client("boss", identity.ScopeOperator)
	id := must(ada.PlaceOrder(t.Context(), request("r1", "a", 2)))(t).Order.OrderId
	must(ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "p", OrderId: id, Method: "tok_ok", CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL}))(t)
	k.says(id, 1, domain.ResultAuthorized, 2598)
	voided := must(boss.VoidPayment(t.Context(), &paymentv1.VoidPaymentRequest{RequestId: "v", OrderId: id, Reason: "fraud"}))(t)
	if !voided.Order.Payments[0].VoidRequested {
		t.Errorf("voided %v", voided)
	}
	k.says(id, 1, domain.ResultVoided, 0)
	got := must(ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id}))(t).Order
	if got.PaymentState != orderv1.PaymentState_PAYMENT_STATE_VOIDED || got.Status != orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT {
		t.Errorf("got %v", got)
	}
}

func TestPaymentStartsOnlyWithAProviderThatTheNodeHas(t *testing.T) {
	for name, providers := range map[string][]string{"other ones": {"sandbox"}, "none": nil} {
		n := serve(t, func(o *api.Options) { o.PaymentProviders = providers })
		n.stock("a")
		ada := n.client("ada", 0)
		id := must(ada.PlaceOrder(t.Context(), request("r1", "a", 2)))(t).Order.OrderId
		head := n.head()
		_, err := ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "p", OrderId: id, Provider: "stripe"})
		info := wantError(t, name, err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
		if info.GetMetadata()["argument"] != "provider" || n.head() != head {
			t.Errorf("%s: facts %v, head %d, want %d", name, info.GetMetadata(), n.head(), head)
		}
	}
}

// TestRepeatedPaymentAnswersAsBeforeOnceItsProviderIsGone: what a node is configured with does not change what was done (I4).
func TestRepeatedPaymentAnswersAsBeforeOnceItsProviderIsGone(t *testing.T) {
	var real *realNode
	var options api.Options
	n := serve(t, func(o *api.Options) {
		real = useRealNode(t, o, 1)
		options = *o
	})
	n.stock("a")
	ada := n.client("ada", 0)
	id := must(ada.PlaceOrder(t.Context(), request("r1", "a", 2)))(t).Order.OrderId
	ask := &paymentv1.StartPaymentRequest{RequestId: "p", OrderId: id, Provider: "other", Method: "tok_ok"}
	started := must(ada.StartPayment(t.Context(), ask))(t)
	for name, providers := range map[string][]string{"another": {"sandbox"}, "none": nil} {
		later := serve(t, func(o *api.Options) {
			o.Commands, o.Views, o.PaymentProviders = options.Commands, options.Views, providers
		})
		ada := later.client("ada", 0)
		head := real.head()
		if again := must(ada.StartPayment(t.Context(), ask))(t); !proto.Equal(again, started) {
			t.Errorf("%s: got %v, want %v (I4)", name, again, started)
		}
		_, err := ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "p", OrderId: id, Provider: "other", Method: "tok_other"})
		wantError(t, name+", another body", err, connect.CodeFailedPrecondition, api.ReasonKeyReused)
		_, err = ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "new", OrderId: id, Provider: "other", Method: "tok_ok"})
		if info := wantError(t, name+", a new request", err, connect.CodeInvalidArgument, api.ReasonInvalidArgument); info.GetMetadata()["argument"] != "provider" {
			t.Errorf("%s: facts %v", name, info.GetMetadata())
		}
		if real.head() != head {
			t.Errorf("%s: the log went from %d to %d", name, head, real.head())
		}
	}
}

func TestPaymentNeedsAMethodUnlessTheOrderCostsNothing(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	boss, ada := n.client("boss", identity.ScopeOperator), n.client("ada", 0)
	must(boss.PutProduct(t.Context(), &catalogv1.PutProductRequest{Sku: "gift", Title: "Gift", Price: &typev1.Money{CurrencyCode: "EUR"}}))(t)
	must(boss.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "gift", Sku: "gift", Quantity: 1}))(t)
	costs := must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	free := must(ada.PlaceOrder(t.Context(), request("r2", "gift", 1)))(t).Order.OrderId
	head := n.head()
	_, err := ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "p1", OrderId: costs})
	info := wantError(t, "no method", err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	if info.GetMetadata()["argument"] != "method" || !strings.Contains(err.Error(), "say what is paid with") || n.head() != head {
		t.Errorf("facts %v, %v, head %d, want %d", info.GetMetadata(), err, n.head(), head)
	}
	paid := must(ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "p2", OrderId: free}))(t)
	if paid.Order.Status != orderv1.OrderStatus_ORDER_STATUS_PAID || paid.PaymentId != free+"-p1" {
		t.Errorf("an order that costs nothing: %v", paid)
	}
}

// TestRepliesNameThePartThatWasMade also of changes that found it made already.
func TestRepliesNameThePartThatWasMade(t *testing.T) {
	var real *realNode
	n := serve(t, func(o *api.Options) { real = useRealNode(t, o, 1) })
	n.stock("a")
	k, ada, boss := till{t, real.set}, n.client("ada", 0), n.client("boss", identity.ScopeOperator)
	id := must(ada.PlaceOrder(t.Context(), request("r1", "a", 2)))(t).Order.OrderId
	check := func(what, got, want string) {
		t.Helper()
		if got != id+want {
			t.Errorf("%s names %q, want %q", what, got, id+want)
		}
	}
	check("start", must(ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{
		RequestId: "1", OrderId: id, Method: "tok_ok", CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL,
	}))(t).PaymentId, "-p1")
	k.says(id, 1, domain.ResultAuthorized, 2598)
	for _, requestID := range []string{"2", "3"} {
		check("capture "+requestID, must(boss.CapturePayment(t.Context(), &paymentv1.CapturePaymentRequest{RequestId: requestID, OrderId: id}))(t).PaymentId, "-p1")
	}
	k.says(id, 1, domain.ResultCaptured, 2598)
	one := []*orderv1.ItemRequest{{Sku: "a", Quantity: 1}}
	for number := 1; number <= 2; number++ {
		ask := &orderv1.ShipItemsRequest{RequestId: fmt.Sprint("s", number), OrderId: id, Items: one}
		check("ship", must(boss.ShipItems(t.Context(), ask))(t).ShipmentId, fmt.Sprint("-s", number))
	}
	check("return", must(ada.RequestReturn(t.Context(), &orderv1.RequestReturnRequest{RequestId: "4", OrderId: id, Items: one}))(t).ReturnId, "-t1")
	check("refund", must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{
		RequestId: "5", OrderId: id, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 1},
	}))(t).RefundId, "-p1-r1")
	for number := 1; number <= 2; number++ {
		noted := must(boss.AddNote(t.Context(), &orderv1.AddNoteRequest{RequestId: fmt.Sprint("n", number), OrderId: id, Text: "x"}))(t)
		check("note", noted.NoteId, fmt.Sprint("-n", number))
		check("the order's note", noted.Order.MerchantNotes[number-1].NoteId, fmt.Sprint("-n", number))
	}
	other := must(ada.PlaceOrder(t.Context(), request("r2", "a", 1)))(t).Order.OrderId
	must(ada.StartPayment(t.Context(), &paymentv1.StartPaymentRequest{RequestId: "6", OrderId: other, Method: "tok_ok"}))(t)
	for _, requestID := range []string{"7", "8"} {
		if got := must(boss.VoidPayment(t.Context(), &paymentv1.VoidPaymentRequest{RequestId: requestID, OrderId: other}))(t).PaymentId; got != other+"-p1" {
			t.Errorf("void %s names %q, want %q", requestID, got, other+"-p1")
		}
	}
}

// TestChangeThatChangesNothingIsRememberedToo over real lanes: the same bytes again after more has happened, KEY_REUSED for another
// body, and a commit for the first of each alone (I4).
func TestChangeThatChangesNothingIsRememberedToo(t *testing.T) {
	var real *realNode
	n := serve(t, func(o *api.Options) { real = useRealNode(t, o, 1) })
	n.stock("a")
	k, ada, boss := till{t, real.set}, n.client("ada", 0), n.client("boss", identity.ScopeOperator)
	id := n.paid(t, k, ada, "r1").OrderId
	must(boss.ShipItems(t.Context(), &orderv1.ShipItemsRequest{RequestId: "ship", OrderId: id}))(t)
	must(boss.ConfirmDelivery(t.Context(), &orderv1.ConfirmDeliveryRequest{RequestId: "deliver", OrderId: id, ShipmentId: id + "-s1"}))(t)
	cancelled := must(ada.PlaceOrder(t.Context(), request("r2", "a", 1)))(t).Order.OrderId
	must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "cancel", OrderId: cancelled}))(t)
	put := &catalogv1.PutProductRequest{Sku: "b", Title: "B", Price: &typev1.Money{CurrencyCode: "EUR", Units: 5}}
	must(boss.PutProduct(t.Context(), put))(t)
	again, other := proto.CloneOf(put), proto.CloneOf(put)
	again.RequestId, other.RequestId, other.Title = "n3", "n3", "Bee"
	operator, customer := n.token("boss", identity.ScopeOperator), n.token("ada", 0)
	for _, step := range []struct {
		procedure, token string
		ask, other       proto.Message
	}{
		{
			orderv1connect.OrderServiceCancelOrderProcedure, customer,
			&orderv1.CancelOrderRequest{RequestId: "n1", OrderId: cancelled}, &orderv1.CancelOrderRequest{RequestId: "n1", OrderId: cancelled, Reason: "x"},
		},
		{
			orderv1connect.OrderServiceConfirmDeliveryProcedure, operator,
			&orderv1.ConfirmDeliveryRequest{RequestId: "n2", OrderId: id, ShipmentId: id + "-s1"},
			&orderv1.ConfirmDeliveryRequest{RequestId: "n2", OrderId: cancelled, ShipmentId: cancelled + "-s1"},
		},
		{catalogv1connect.CatalogServicePutProductProcedure, operator, again, other},
	} {
		send := func(message proto.Message) (int, []byte) {
			status, _, body := n.post(t, step.procedure, step.token, "application/proto", must(proto.Marshal(message))(t))
			return status, body
		}
		head := real.head()
		status, first := send(step.ask)
		if status != http.StatusOK || real.head() != head+1 {
			t.Fatalf("%s: got %d %q, the log went from %d to %d", step.procedure, status, first, head, real.head())
		}
		for name, order := range map[string]string{"paid": id, "cancelled": cancelled} {
			must(boss.AddNote(t.Context(), &orderv1.AddNoteRequest{RequestId: name + "-after-" + step.procedure[len(step.procedure)-6:], OrderId: order, Text: "later"}))(t)
		}
		put.Title += "!"
		must(boss.PutProduct(t.Context(), put))(t)
		head = real.head()
		if status, got := send(step.ask); status != http.StatusOK || !bytes.Equal(got, first) {
			t.Errorf("%s again: got %d %q, want %q (I4)", step.procedure, status, got, first)
		}
		if status, body := send(step.other); status != http.StatusBadRequest || !bytes.Contains(body, []byte("another body")) {
			t.Errorf("%s with another body: got %d %q, want KEY_REUSED (I4)", step.procedure, status, body)
		}
		if real.head() != head {
			t.Errorf("%s: the log went from %d to %d", step.procedure, head, real.head())
		}
	}
}

func TestMerchantsNoteIsSealedShownToOperatorsAndGoneWithItsKey(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	ada, boss := n.client("ada", 0), n.client("boss", identity.ScopeOperator)
	id := must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	ask := &orderv1.AddNoteRequest{RequestId: "n1", OrderId: id, Text: "Ada called about the parcel"}
	added := must(boss.AddNote(t.Context(), ask))(t)
	command := n.lastRequest.Command.(domain.AddNote)
	if bytes.Contains(command.Sealed, []byte("Ada")) || !n.lastRequest.Keyed || command.SealKey == 0 {
		t.Fatalf("the lane was asked %+v", n.lastRequest)
	}
	if got := added.Order.MerchantNotes; len(got) != 1 || got[0].Text != ask.Text || got[0].By != "boss" || got[0].AddedAt == nil {
		t.Errorf("added %v", added)
	}
	get := &orderv1.GetOrderRequest{OrderId: id}
	if got := must(boss.GetOrder(t.Context(), get))(t); !proto.Equal(got.Order, added.Order) {
		t.Errorf("got %v, want %v", got.Order, added.Order)
	}
	for who, c := range map[string]client{"the customer": ada, "a backend": n.client("shop", identity.ScopeActAs)} {
		if got := must(c.GetOrder(t.Context(), get))(t).Order.MerchantNotes; len(got) != 0 {
			t.Errorf("%s is shown %v", who, got)
		}
		if entries := must(c.GetTimeline(t.Context(), &orderv1.GetTimelineRequest{OrderId: id}))(t).Entries; len(entries) != 1 {
			t.Errorf("%s is shown %v", who, entries)
		}
	}
	if entries := must(boss.GetTimeline(t.Context(), &orderv1.GetTimelineRequest{OrderId: id}))(t).Entries; len(entries) != 2 || entries[1].Kind != "note_added" {
		t.Errorf("the operator is shown %v", entries)
	}
	if err := n.sealer.Destroy(t.Context(), "ada", uint64(command.SealKey)); err != nil {
		t.Fatal(err)
	}
	if got := must(boss.GetOrder(t.Context(), get))(t).Order.MerchantNotes; len(got) != 1 || got[0].Text != "" || got[0].By != "boss" {
		t.Errorf("after the key was erased: %v", got)
	}
	if strings.Contains(n.logs.String(), "parcel") {
		t.Error("the note is in the logs")
	}
}

func TestNoteOfAnOrderThatTheViewHasNotSeenWaitsForIt(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	id := must(n.client("ada", 0).PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	n.set(func() { n.lag = 1 })
	_, err := n.client("boss", identity.ScopeOperator).AddNote(t.Context(), &orderv1.AddNoteRequest{RequestId: "n1", OrderId: id, Text: "x"})
	wantError(t, "the view is behind", err, connect.CodeUnavailable, api.ReasonViewBehind) // And not that there is no such order.
}

func TestOperatorsMethodsAreForOperatorsAlone(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	id := must(n.client("ada", 0).PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	head := n.head()
	for _, c := range []client{n.client("ada", 0), n.client("shop", identity.ScopeActAs)} {
		for name, do := range map[string]func() error{
			"ship": func() error {
				_, err := c.ShipItems(t.Context(), &orderv1.ShipItemsRequest{RequestId: "x", OrderId: id})
				return err
			},
			"deliver": func() error {
				_, err := c.ConfirmDelivery(t.Context(), &orderv1.ConfirmDeliveryRequest{RequestId: "x", OrderId: id, ShipmentId: id + "-s1"})
				return err
			},
			"receive": func() error {
				_, err := c.ReceiveReturn(t.Context(), &orderv1.ReceiveReturnRequest{RequestId: "x", OrderId: id, ReturnId: id + "-t1"})
				return err
			},
			"note": func() error {
				_, err := c.AddNote(t.Context(), &orderv1.AddNoteRequest{RequestId: "x", OrderId: id, Text: "x"})
				return err
			},
			"capture": func() error {
				_, err := c.CapturePayment(t.Context(), &paymentv1.CapturePaymentRequest{RequestId: "x", OrderId: id})
				return err
			},
			"void": func() error {
				_, err := c.VoidPayment(t.Context(), &paymentv1.VoidPaymentRequest{RequestId: "x", OrderId: id})
				return err
			},
			"refund": func() error {
				_, err := c.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{RequestId: "x", OrderId: id})
				return err
			},
			"attention": func() error {
				_, err := c.ListPaymentsNeedingAttention(t.Context(), &paymentv1.ListPaymentsNeedingAttentionRequest{})
				return err
			},
		} {
			wantError(t, name, do(), connect.CodePermissionDenied, api.ReasonPermissionDenied)
		}
	}
	if n.head() != head {
		t.Errorf("the log went from %d to %d", head, n.head())
	}
}

// TestRepeatedChangeOfAnOrderIsAnsweredByteForByte repeats each change after the order has moved on, and with another body (I4).
func TestRepeatedChangeOfAnOrderIsAnsweredByteForByte(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	k, ada := till{t, n.fakeNode}, n.client("ada", 0)
	id := n.paid(t, k, ada, "r1").OrderId
	unpaid := must(ada.PlaceOrder(t.Context(), request("r2", "a", 2)))(t).Order.OrderId
	boss, customer := n.token("boss", identity.ScopeOperator), n.token("ada", 0)
	for _, step := range []struct {
		procedure, token string
		ask, other       proto.Message
	}{
		{
			paymentv1connect.PaymentServiceStartPaymentProcedure, customer,
			&paymentv1.StartPaymentRequest{RequestId: "c0", OrderId: unpaid, Method: "tok_ok"}, &paymentv1.StartPaymentRequest{RequestId: "c0", OrderId: unpaid, Method: "x"},
		},
		{
			paymentv1connect.PaymentServiceVoidPaymentProcedure, boss,
			&paymentv1.VoidPaymentRequest{RequestId: "c1", OrderId: unpaid}, &paymentv1.VoidPaymentRequest{RequestId: "c1", OrderId: unpaid, Reason: "x"},
		},
		{
			orderv1connect.OrderServiceShipItemsProcedure, boss,
			&orderv1.ShipItemsRequest{RequestId: "c2", OrderId: id}, &orderv1.ShipItemsRequest{RequestId: "c2", OrderId: id, Carrier: "x"},
		},
		{
			orderv1connect.OrderServiceConfirmDeliveryProcedure, boss,
			&orderv1.ConfirmDeliveryRequest{RequestId: "c3", OrderId: id, ShipmentId: id + "-s1"}, &orderv1.ConfirmDeliveryRequest{RequestId: "c3", OrderId: id, ShipmentId: id + "-s2"},
		},
		{
			orderv1connect.OrderServiceRequestReturnProcedure, customer,
			&orderv1.RequestReturnRequest{RequestId: "c4", OrderId: id}, &orderv1.RequestReturnRequest{RequestId: "c4", OrderId: id, Reason: "x"},
		},
		{
			orderv1connect.OrderServiceReceiveReturnProcedure, boss,
			&orderv1.ReceiveReturnRequest{RequestId: "c5", OrderId: id, ReturnId: id + "-t1"}, &orderv1.ReceiveReturnRequest{RequestId: "c5", OrderId: id, ReturnId: id + "-t2"},
		},
		{
			orderv1connect.OrderServiceAddNoteProcedure, boss,
			&orderv1.AddNoteRequest{RequestId: "c6", OrderId: id, Text: "x"}, &orderv1.AddNoteRequest{RequestId: "c6", OrderId: id, Text: "y"},
		},
	} {
		send := func(message proto.Message) (int, []byte) {
			status, _, body := n.post(t, step.procedure, step.token, "application/proto", must(proto.Marshal(message))(t))
			return status, body
		}
		status, first := send(step.ask)
		if status != http.StatusOK {
			t.Fatalf("%s: got %d %q", step.procedure, status, first)
		}
		must(n.client("boss", identity.ScopeOperator).AddNote(t.Context(), &orderv1.AddNoteRequest{RequestId: "after-" + step.procedure[len(step.procedure)-6:], OrderId: id, Text: "later"}))(t)
		if status, again := send(step.ask); status != http.StatusOK || !bytes.Equal(again, first) {
			t.Errorf("%s again: got %d %q, want %q", step.procedure, status, again, first)
		}
		if status, body := send(step.other); status != http.StatusBadRequest || !bytes.Contains(body, []byte("another body")) {
			t.Errorf("%s with another body: got %d %q, want KEY_REUSED", step.procedure, status, body)
		}
	}
}

// TestAnothersOrderIsMissingToEveryMethod compares what a stranger is told of an order that is there with one that is not (I7).
func TestAnothersOrderIsMissingToEveryMethod(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	k, ada := till{t, n.fakeNode}, n.client("ada", 0)
	id := n.paid(t, k, ada, "r1").OrderId
	missing := domain.NewOrderID(time.UnixMilli(1), orderID(t, id).Partition(), [10]byte{9}).String()
	head := n.head()
	for _, stranger := range []string{"eve", sharer(orderID(t, id).Partition())} {
		token := n.token(stranger, 0)
		for procedure, ask := range map[string]func(id string) proto.Message{
			orderv1connect.OrderServiceGetTimelineProcedure: func(id string) proto.Message { return &orderv1.GetTimelineRequest{OrderId: id} },
			orderv1connect.OrderServiceRequestReturnProcedure: func(id string) proto.Message {
				return &orderv1.RequestReturnRequest{RequestId: "x", OrderId: id}
			},
			orderv1connect.OrderServiceCancelOrderProcedure: func(id string) proto.Message { return &orderv1.CancelOrderRequest{RequestId: "x", OrderId: id} },
			paymentv1connect.PaymentServiceStartPaymentProcedure: func(id string) proto.Message {
				return &paymentv1.StartPaymentRequest{RequestId: "x", OrderId: id}
			},
			paymentv1connect.PaymentServiceGetPaymentProcedure: func(id string) proto.Message {
				return &paymentv1.GetPaymentRequest{OrderId: id, PaymentId: id + "-p1", WaitBudget: durationpb.New(0)}
			},
		} {
			send := func(id string) (int, string) {
				status, _, body := n.post(t, procedure, token, "application/json", must(protojson.Marshal(ask(id)))(t))
				return status, strings.Split(string(body), `"details"`)[0]
			}
			status, there := send(id)
			statusMissing, notThere := send(missing)
			if status != http.StatusNotFound || statusMissing != status || strings.ReplaceAll(there, id, missing) != notThere {
				t.Errorf("%s by %s: got %d %s, a missing one %d %s", procedure, stranger, status, there, statusMissing, notThere)
			}
		}
	}
	if n.head() != head {
		t.Errorf("the log went from %d to %d", head, n.head())
	}
}

func orderID(t testing.TB, text string) domain.OrderID {
	t.Helper()
	return must(domain.ParseOrderID(text))(t)
}

// sharer returns a user of the partition other than those that the tests name.
func sharer(partition uint32) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("sharer-%d", i); eventstore.PartitionOf(name) == partition {
			return name
		}
	}
}
