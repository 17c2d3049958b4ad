package api_test

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

func TestAnOperatorSearchesTheOrdersOfAllUsers(t *testing.T) {
	var real *realNode
	n := serve(t, func(o *api.Options) { real = useRealNode(t, o, 1) })
	n.stock("a", "b")
	k := till{t, real.set}
	for name, options := range transports {
		suffix := "-" + strings.ReplaceAll(name, " ", "-")
		ada, bob := n.client("ada"+suffix, 0, options...), n.client("bob"+suffix, 0, options...)
		boss := n.client("boss", identity.ScopeOperator, options...)
		n.stock("c" + suffix)
		paid := n.paid(t, k, ada, "r1")
		open := must(bob.PlaceOrder(t.Context(), request("r1", "c"+suffix, 1, "b", 2)))(t)
		ended := must(bob.PlaceOrder(t.Context(), request("r2", "c"+suffix, 1)))(t)
		cancelled := must(bob.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "r3", OrderId: ended.Order.OrderId}))(t)
		search := func(question *orderv1.SearchOrdersRequest) string {
			t.Helper()
			question.MinRevision = cancelled.Revision
			var ids []string
			for {
				page := must(boss.SearchOrders(t.Context(), question))(t)
				for _, order := range page.Orders {
					ids = append(ids, order.OrderId)
				}
				if question.PageToken = page.NextPageToken; question.PageToken == "" {
					return strings.Join(ids, " ")
				}
			}
		}
		both := open.Order.OrderId + " " + ended.Order.OrderId
		if open.Order.OrderId < ended.Order.OrderId {
			both = ended.Order.OrderId + " " + open.Order.OrderId
		}
		for what, c := range map[string]struct {
			question *orderv1.SearchOrdersRequest
			want     string
		}{
			"by SKU":             {&orderv1.SearchOrdersRequest{Sku: "c" + suffix}, both},
			"a page at a time":   {&orderv1.SearchOrdersRequest{Sku: "c" + suffix, PageSize: 1}, both},
			"by SKU and status":  {&orderv1.SearchOrdersRequest{Sku: "c" + suffix, Status: orderv1.OrderStatus_ORDER_STATUS_CANCELLED}, ended.Order.OrderId},
			"by user":            {&orderv1.SearchOrdersRequest{UserId: "ada" + suffix}, paid.OrderId},
			"by user and money":  {&orderv1.SearchOrdersRequest{UserId: "ada" + suffix, PaymentState: orderv1.PaymentState_PAYMENT_STATE_CAPTURED}, paid.OrderId},
			"by user, unpaid":    {&orderv1.SearchOrdersRequest{UserId: "ada" + suffix, PaymentState: orderv1.PaymentState_PAYMENT_STATE_PENDING}, ""},
			"of no campaign":     {&orderv1.SearchOrdersRequest{UserId: "ada" + suffix, CampaignId: "flash"}, ""},
			"before it was":      {&orderv1.SearchOrdersRequest{UserId: "ada" + suffix, PlacedTo: paid.PlacedAt}, ""},
			"from when it was":   {&orderv1.SearchOrdersRequest{UserId: "ada" + suffix, PlacedFrom: paid.PlacedAt}, paid.OrderId},
			"from after it was":  {&orderv1.SearchOrdersRequest{Sku: "c" + suffix, PlacedFrom: timestamppb.New(ended.Order.PlacedAt.AsTime().Add(time.Hour))}, ""},
			"from the beginning": {&orderv1.SearchOrdersRequest{Sku: "c" + suffix, PlacedFrom: &timestamppb.Timestamp{}}, both},
		} {
			if got := search(c.question); got != c.want {
				t.Errorf("%s, %s: got %s, want %s", name, what, got, c.want)
			}
		}
		for _, client := range []client{ada, n.client("shop", identity.ScopeActAs, options...)} {
			_, err := client.SearchOrders(t.Context(), &orderv1.SearchOrdersRequest{UserId: "ada" + suffix})
			wantError(t, name+", no operator", err, connect.CodePermissionDenied, api.ReasonPermissionDenied)
		}
	}
}
