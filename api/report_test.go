package api_test

import (
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	reportv1 "github.com/weirhq/weir/proto/weir/report/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func TestAnOperatorIsShownWhatWasSold(t *testing.T) {
	var real *realNode
	n := serve(t, func(o *api.Options) { real = useRealNode(t, o, 1) })
	k := till{t, real.set}
	var refunds int64
	for name, options := range transports {
		suffix := "-" + strings.ReplaceAll(name, " ", "-")
		n.stock("a", "b"+suffix)
		ada := n.client("ada"+suffix, 0, options...)
		boss := n.client("boss", identity.ScopeOperator, options...)
		paid := n.paid(t, k, ada, "r1") // Two units of a.
		open := must(ada.PlaceOrder(t.Context(), request("r2", "b"+suffix, 3)))(t)
		refunded := must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{
			RequestId: "r3" + suffix, OrderId: paid.OrderId, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 1000},
		}))(t)
		k.refunded(paid.OrderId, refunded.Order.Refunds[0].RefundId, 1000, true)
		refunds++

		newest := &typev1.Revision{Commit: real.head()}
		sales := func(sku string, step reportv1.SalesStep) *reportv1.Sales {
			t.Helper()
			answer := must(boss.GetSales(t.Context(), &reportv1.GetSalesRequest{
				Sku: sku, Step: step, MinRevision: newest, To: timestamppb.New(open.Order.PlacedAt.AsTime().Add(time.Hour)),
				From: timestamppb.New(open.Order.PlacedAt.AsTime().Add(-time.Hour)),
			}))(t)
			sum := &reportv1.Sales{Placed: &reportv1.SalesCount{Amount: &typev1.Money{}}, Paid: &reportv1.SalesCount{Amount: &typev1.Money{}}, Refunded: &typev1.Money{}}
			for _, row := range answer.Sales { // A test may run over the end of a minute, an hour, a day.
				for _, c := range []struct{ sum, of *reportv1.SalesCount }{{sum.Placed, row.Placed}, {sum.Paid, row.Paid}} {
					c.sum.Orders, c.sum.Units, c.sum.Amount.Units = c.sum.Orders+c.of.Orders, c.sum.Units+c.of.Units, c.sum.Amount.Units+c.of.Amount.Units
				}
				sum.Refunds, sum.Refunded.Units = sum.Refunds+row.Refunds, sum.Refunded.Units+row.Refunded.Units
				if row.Refunded.CurrencyCode != "EUR" || row.Placed.Amount.CurrencyCode != "EUR" {
					t.Errorf("%s: %v is not in EUR", name, row)
				}
			}
			return sum
		}
		for _, step := range []reportv1.SalesStep{reportv1.SalesStep_SALES_STEP_UNSPECIFIED, reportv1.SalesStep_SALES_STEP_HOUR, reportv1.SalesStep_SALES_STEP_DAY} {
			want := &reportv1.Sales{
				Placed: &reportv1.SalesCount{Orders: 1, Units: 3, Amount: &typev1.Money{Units: 3897}},
				Paid:   &reportv1.SalesCount{Amount: &typev1.Money{}}, Refunded: &typev1.Money{},
			}
			if got := sales("b"+suffix, step); !proto.Equal(got, want) {
				t.Errorf("%s, %v: got %v, want %v", name, step, got, want)
			}
			all := sales("", step)
			if all.Placed.Orders != 2*refunds || all.Paid.Amount.Units != 2598*refunds || all.Refunds != refunds || all.Refunded.Units != 1000*refunds {
				t.Errorf("%s, %v: of all got %v, want %d refunds", name, step, all, refunds)
			}
		}
		_, err := ada.GetSales(t.Context(), &reportv1.GetSalesRequest{From: open.Order.PlacedAt, To: open.Order.PlacedAt})
		wantError(t, name+", a customer", err, connect.CodePermissionDenied, api.ReasonPermissionDenied)
	}
}

func TestAnOperatorIsShownHowCampaignsSell(t *testing.T) {
	n := serve(t, func(o *api.Options) { useRealNode(t, o, 4) })
	for name, options := range transports {
		id := "flash-" + strings.ReplaceAll(name, " ", "-")
		n.stock("tea", "cup")
		boss := n.client("boss", identity.ScopeOperator, options...)
		var puts []*typev1.Revision
		for _, sku := range []string{"tea", "cup"} {
			put := n.flash(-time.Minute)
			put.CampaignId, put.Sku, put.Units = id, sku, 3
			put.OpensAt, put.ClosesAt = timestamppb.New(time.Now().Add(-time.Minute)), timestamppb.New(time.Now().Add(time.Hour)) // The lanes' clock is real.
			puts = append(puts, must(boss.PutCampaign(t.Context(), put))(t).Revision)
		}
		buy := func(user, requestID string, units int) *orderv1.PlaceOrderResponse {
			order := request(requestID, "tea", units)
			order.CampaignId = id
			return must(n.client(user+id, 0, options...).PlaceOrder(t.Context(), order))(t)
		}
		ann, bob := buy("ann", "r1", 2), buy("bob", "r1", 1)
		row := func(after ...*typev1.Revision) *reportv1.CampaignRow {
			t.Helper()
			for _, revision := range after { // Of different lanes: each is waited for.
				must(boss.GetCampaignBoard(t.Context(), &reportv1.GetCampaignBoardRequest{CampaignId: id, MinRevision: revision}))(t)
			}
			answer := must(boss.GetCampaignBoard(t.Context(), &reportv1.GetCampaignBoardRequest{CampaignId: id}))(t)
			if len(answer.Rows) != 2 || answer.Rows[0].Sku != "cup" || answer.Rows[0].Remaining != 3 || answer.Rows[0].Orders != 0 || answer.Rows[0].SoldOutTime != nil {
				t.Fatalf("%s: got %v, want cup with nothing sold, and tea", name, answer)
			}
			return answer.Rows[1]
		}
		got := row(append(puts, ann.Revision, bob.Revision)...)
		newest := max(ann.Order.PlacedAt.AsTime().UnixNano(), bob.Order.PlacedAt.AsTime().UnixNano())
		if got.Units != 3 || got.Remaining != 0 || got.Reserved != 3 || got.Orders != 2 || got.Buyers != 2 || got.UnitsPerMinute != 3 ||
			got.SoldOutTime.AsTime().UnixNano() != newest || got.FirstOrderTime == nil || got.ClosesAt == nil {
			t.Errorf("%s: sold out: got %v", name, got)
		}
		gone := must(n.client("bob"+id, 0, options...).CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "r2", OrderId: bob.Order.OrderId}))(t)
		got = row(gone.Revision)
		if got.Remaining != 1 || got.Reserved != 2 || got.Orders != 2 || got.GivenUpOrders != 1 || got.Buyers != 1 || got.SoldOutTime != nil {
			t.Errorf("%s: after one was given up: got %v", name, got)
		}
		_, err := boss.GetCampaignBoard(t.Context(), &reportv1.GetCampaignBoardRequest{CampaignId: id + "x"})
		wantError(t, name+", no such campaign", err, connect.CodeNotFound, api.ReasonCampaignNotFound)
	}
}
