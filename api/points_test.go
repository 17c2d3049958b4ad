package api_test

import (
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/domain"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	pointsv1 "github.com/weirhq/weir/proto/weir/points/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// awards stands in for the points reactor.
func (k till) awards(orderID string) {
	k.t.Helper()
	k.record(orderID, func(id domain.OrderID) domain.Command {
		return domain.AwardPoints{OrderID: id, PaymentID: domain.PaymentID(id, 1), PerMajor: 1}
	})
}

func (k till) takesBack(orderID, refundID string) {
	k.t.Helper()
	k.record(orderID, func(id domain.OrderID) domain.Command { return domain.TakeBackPoints{OrderID: id, RefundID: refundID} })
}

func TestAUserIsShownItsPointsNewestFirst(t *testing.T) {
	var real *realNode
	n := serve(t, func(o *api.Options) { real = useRealNode(t, o, 1) })
	n.stock("a")
	k := till{t, real.set}
	for name, options := range transports {
		user := "ada-" + strings.ReplaceAll(name, " ", "-")
		ada, boss, shop := n.client(user, 0, options...), n.client("boss", identity.ScopeOperator, options...), n.client("shop", identity.ScopeActAs, options...)
		none := must(ada.GetPoints(t.Context(), &pointsv1.GetPointsRequest{}))(t)
		if none.UserId != user || none.Balance != 0 || len(none.Entries) != 0 || none.Revision != nil || none.NextPageToken != "" {
			t.Errorf("%s: before there are any: %v", name, none)
		}
		first, second := n.paid(t, k, ada, "r1"), n.paid(t, k, ada, "r2") // 25.98 EUR each
		k.awards(first.OrderId)
		k.awards(second.OrderId)
		refunded := must(boss.RefundPayment(t.Context(), &paymentv1.RefundPaymentRequest{
			RequestId: user, OrderId: first.OrderId, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 1000},
		}))(t)
		refund := refunded.Order.Refunds[0].RefundId
		k.refunded(first.OrderId, refund, 1000, true)
		k.takesBack(first.OrderId, refund)

		newest := &typev1.Revision{Commit: real.head()}
		all := must(ada.GetPoints(t.Context(), &pointsv1.GetPointsRequest{MinRevision: newest}))(t)
		type entry struct {
			number                 uint64
			points, balance        int64
			order, payment, refund string
		}
		want := []entry{
			{3, -10, 40, first.OrderId, first.OrderId + "-p1", refund}, // What 15.98 EUR are worth is left.
			{2, 25, 50, second.OrderId, second.OrderId + "-p1", ""},
			{1, 25, 25, first.OrderId, first.OrderId + "-p1", ""},
		}
		if all.Balance != 40 || len(all.Entries) != len(want) || all.Freshness.State != typev1.Freshness_STATE_FRESH || !proto.Equal(all.Revision, all.Entries[0].Revision) {
			t.Fatalf("%s: got %v, want 40 points in %d entries", name, all, len(want))
		}
		for i, e := range all.Entries {
			if got := (entry{e.Number, e.Points, e.Balance, e.OrderId, e.PaymentId, e.RefundId}); got != want[i] || e.Time == nil || e.Revision.Commit == 0 {
				t.Errorf("%s: entry %d is %v, want %+v", name, i, e, want[i])
			}
		}
		var paged []*pointsv1.PointsEntry
		for question := (&pointsv1.GetPointsRequest{UserId: user, PageSize: 2}); ; {
			page := must(shop.GetPoints(t.Context(), question))(t)
			if page.Balance != 40 || !proto.Equal(page.Revision, all.Revision) {
				t.Errorf("%s: a page says %d points at %v, want 40 at %v", name, page.Balance, page.Revision, all.Revision)
			}
			paged = append(paged, page.Entries...)
			if question.PageToken = page.NextPageToken; question.PageToken == "" || len(paged) > len(want) {
				break
			}
		}
		if got := (&pointsv1.GetPointsResponse{Entries: paged}); !proto.Equal(got, &pointsv1.GetPointsResponse{Entries: all.Entries}) {
			t.Errorf("%s: the pages hold %v, want %v", name, got, all.Entries)
		}
		_, err := n.client("eve", 0, options...).GetPoints(t.Context(), &pointsv1.GetPointsRequest{UserId: user})
		wantError(t, name+", a stranger", err, connect.CodePermissionDenied, api.ReasonPermissionDenied)
	}
}
