package attacktest

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	"github.com/weirhq/weir/proto/weir/cluster/v1/clusterv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	pointsv1 "github.com/weirhq/weir/proto/weir/points/v1"
	"github.com/weirhq/weir/proto/weir/points/v1/pointsv1connect"
	reportv1 "github.com/weirhq/weir/proto/weir/report/v1"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	userv1 "github.com/weirhq/weir/proto/weir/user/v1"
	"github.com/weirhq/weir/proto/weir/user/v1/userv1connect"
)

const (
	placeOrder   = orderv1connect.OrderServicePlaceOrderProcedure
	getOrder     = orderv1connect.OrderServiceGetOrderProcedure
	listOrders   = orderv1connect.OrderServiceListOrdersProcedure
	cancelOrder  = orderv1connect.OrderServiceCancelOrderProcedure
	watchOrder   = orderv1connect.OrderServiceWatchOrderProcedure
	putProduct   = catalogv1connect.CatalogServicePutProductProcedure
	receiveStock = catalogv1connect.CatalogServiceReceiveStockProcedure
	preheatStock = catalogv1connect.CatalogServicePreheatStockProcedure
	getProduct   = catalogv1connect.CatalogServiceGetProductProcedure
	listProducts = catalogv1connect.CatalogServiceListProductsProcedure
	getStock     = catalogv1connect.CatalogServiceGetStockProcedure
	exportUser   = userv1connect.UserServiceExportUserProcedure
	eraseUser    = userv1connect.UserServiceEraseUserProcedure

	shipItems       = orderv1connect.OrderServiceShipItemsProcedure
	confirmDelivery = orderv1connect.OrderServiceConfirmDeliveryProcedure
	requestReturn   = orderv1connect.OrderServiceRequestReturnProcedure
	receiveReturn   = orderv1connect.OrderServiceReceiveReturnProcedure
	addNote         = orderv1connect.OrderServiceAddNoteProcedure
	getTimeline     = orderv1connect.OrderServiceGetTimelineProcedure
	startPayment    = paymentv1connect.PaymentServiceStartPaymentProcedure
	capturePayment  = paymentv1connect.PaymentServiceCapturePaymentProcedure
	voidPayment     = paymentv1connect.PaymentServiceVoidPaymentProcedure
	refundPayment   = paymentv1connect.PaymentServiceRefundPaymentProcedure
	getPayment      = paymentv1connect.PaymentServiceGetPaymentProcedure
	listAttention   = paymentv1connect.PaymentServiceListPaymentsNeedingAttentionProcedure
	putCampaign     = campaignv1connect.CampaignServicePutCampaignProcedure
	getCampaign     = campaignv1connect.CampaignServiceGetCampaignProcedure
	putCoupon       = campaignv1connect.CouponServicePutCouponProcedure
	getCoupon       = campaignv1connect.CouponServiceGetCouponProcedure
	listCampaigns   = campaignv1connect.CampaignServiceListCampaignsProcedure
	listCoupons     = campaignv1connect.CouponServiceListCouponsProcedure
	watchStock      = catalogv1connect.CatalogServiceWatchStockProcedure
	getSales        = reportv1connect.ReportServiceGetSalesProcedure
	getBoard        = reportv1connect.ReportServiceGetCampaignBoardProcedure
	searchOrders    = orderv1connect.OrderServiceSearchOrdersProcedure
	getCluster      = clusterv1connect.ClusterServiceGetClusterProcedure
	moveLane        = clusterv1connect.ClusterServiceMoveLaneProcedure
	drainNode       = clusterv1connect.ClusterServiceDrainNodeProcedure
	undrainNode     = clusterv1connect.ClusterServiceUndrainNodeProcedure
	getPoints       = pointsv1connect.PointsServiceGetPointsProcedure
)

func badTokens(t *testing.T, r *rig) {
	now := time.Now()
	// claims are good ones but for one; nil leaves it out.
	claims := func(name string, value any) map[string]any {
		c := map[string]any{
			"iss": identity.DefaultIssuer, "aud": identity.DefaultAudience, "sub": victim,
			"exp": now.Add(time.Hour).Unix(), "scope": "operator",
		}
		if c[name] = value; value == nil {
			delete(c, name)
		}
		return c
	}
	signed := func(c map[string]any) string {
		token, err := identity.Sign(r.Key, c)
		if err != nil {
			t.Fatal(err)
		}
		r.tokens = append(r.tokens, token)
		return token
	}
	good := signed(claims("scope", "operator"))
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`))
	for name, headers := range map[string][]string{
		"none":            nil,
		"empty":           {"Authorization", ""},
		"scheme alone":    {"Authorization", "Bearer"},
		"basic":           {"Authorization", "Basic " + good},
		"garbled":         {"Authorization", "Bearer garbled.garbled.garbled"},
		"changed payload": {"Authorization", "Bearer " + parts[0] + "." + parts[1] + "x." + parts[2]},
		"no signature":    {"Authorization", "Bearer " + parts[0] + "." + parts[1] + "."},
		"alg=none":        {"Authorization", "Bearer " + none + "." + parts[1] + "."},
		"alg=none signed": {"Authorization", "Bearer " + none + "." + parts[1] + "." + parts[2]},
		"expired":         {"Authorization", "Bearer " + signed(claims("exp", now.Add(-time.Hour).Unix()))},
		"no expiry":       {"Authorization", "Bearer " + signed(claims("exp", nil))},
		"not yet":         {"Authorization", "Bearer " + signed(claims("nbf", now.Add(time.Hour).Unix()))},
		"other audience":  {"Authorization", "Bearer " + signed(claims("aud", "another"))},
		"no audience":     {"Authorization", "Bearer " + signed(claims("aud", nil))},
		"other issuer":    {"Authorization", "Bearer " + signed(claims("iss", "another"))},
		"no subject":      {"Authorization", "Bearer " + signed(claims("sub", nil))},
		"wild subject":    {"Authorization", "Bearer " + signed(claims("sub", "*"))},
		"long subject":    {"Authorization", "Bearer " + signed(claims("sub", strings.Repeat("a", 65)))},
		"two headers":     {"Authorization", "Bearer " + good, "Authorization", "Bearer " + r.eve},
		"huge":            {"Authorization", "Bearer " + strings.Repeat("a", 20_000)},
	} {
		for _, procedure := range []string{
			placeOrder, getOrder, listOrders, cancelOrder, putProduct, getStock, exportUser, eraseUser, shipItems, requestReturn, getTimeline, startPayment,
			refundPayment, listAttention, getPoints, listCampaigns, searchOrders, getSales, getBoard,
		} {
			got := r.call(t, "", procedure, goodRequest("attack-token"), headers...)
			want(t, name+" "+procedure, got, "unauthenticated", "UNAUTHENTICATED")
			if got.status != http.StatusUnauthorized {
				t.Errorf("%s: HTTP %d, want 401", name, got.status)
			}
		}
	}
	if got := r.stream(t, "", watchOrder, &orderv1.WatchOrderRequest{OrderId: r.order.OrderId}); got.code() != "unauthenticated" {
		t.Errorf("watch without a token: got %s", got)
	}
}

// missingID returns an id of no order, in the partition of a user.
func missingID(userID string) string {
	return domain.NewOrderID(time.UnixMilli(1), eventstore.PartitionOf(userID), [10]byte{9, 9, 9, 9, 9, 9, 9, 9, 9, 9}).String()
}

// neighbour returns a user in the same partition: the nearest that a stranger can come.
func neighbour(userID string) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("attack-neighbour-%d", i); eventstore.PartitionOf(name) == eventstore.PartitionOf(userID) {
			return name
		}
	}
}

func anothersOrder(t *testing.T, r *rig) {
	missing := missingID(victim)
	lane := r.order.Revision.Lane
	same := func(what string, ofAnother, ofMissing reply) {
		t.Helper()
		ofAnother.body = bytes.ReplaceAll(ofAnother.body, []byte(r.order.OrderId), []byte(missing))
		// The id is in the details in base64, too.
		if ofAnother.status != ofMissing.status || ofAnother.code() != ofMissing.code() || ofAnother.reason() != ofMissing.reason() ||
			len(ofAnother.body) != len(ofMissing.body) || len(ofAnother.header) != len(ofMissing.header) {
			t.Errorf("%s: another's order %s, a missing one %s", what, ofAnother, ofMissing)
		}
	}
	for _, stranger := range []string{attacker, neighbour(victim)} {
		token := r.token(t, stranger, 0)
		for _, minRevision := range []*typev1.Revision{nil, {Lane: lane, Commit: 1}, {Lane: lane, Commit: 1 << 40}} {
			get := func(id string) reply {
				return r.call(t, token, getOrder, &orderv1.GetOrderRequest{OrderId: id, MinRevision: minRevision, WaitBudget: durationpb.New(0)})
			}
			same("get by "+stranger, get(r.order.OrderId), get(missing))
			watch := func(id string) reply {
				return r.stream(t, token, watchOrder, &orderv1.WatchOrderRequest{OrderId: id, MinRevision: minRevision, WaitBudget: durationpb.New(0)})
			}
			same("watch by "+stranger, watch(r.order.OrderId), watch(missing))
		}
		want(t, "get by "+stranger, r.call(t, token, getOrder, &orderv1.GetOrderRequest{OrderId: r.order.OrderId}), "not_found", "ORDER_NOT_FOUND")
		cancel := func(id string) reply {
			return r.call(t, token, cancelOrder, &orderv1.CancelOrderRequest{RequestId: "attack-cancel", OrderId: id})
		}
		want(t, "cancel by "+stranger, cancel(r.order.OrderId), "not_found", "ORDER_NOT_FOUND")
		same("cancel by "+stranger, cancel(r.order.OrderId), cancel(missing))
		var list orderv1.ListOrdersResponse
		r.mustCall(t, token, listOrders, &orderv1.ListOrdersRequest{}, &list)
		for _, order := range list.Orders {
			if order.UserId != stranger {
				t.Errorf("%s was listed an order of %s", stranger, order.UserId)
			}
		}
	}
}

func anothersName(t *testing.T, r *rig) {
	request := goodRequest("attack-name")
	request.UserId = victim
	want(t, "place", r.call(t, r.eve, placeOrder, request), "permission_denied", "PERMISSION_DENIED")
	want(t, "list", r.call(t, r.eve, listOrders, &orderv1.ListOrdersRequest{UserId: victim}), "permission_denied", "PERMISSION_DENIED")
}

func operatorOnly(t *testing.T, r *rig) {
	for _, token := range []string{r.eve, r.actAs} {
		for procedure, request := range map[string]proto.Message{
			putProduct:   &catalogv1.PutProductRequest{Sku: sku, Title: "cheap", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1}},
			receiveStock: &catalogv1.ReceiveStockRequest{RequestId: "attack-receive", Sku: sku, Quantity: 1},
			preheatStock: &catalogv1.PreheatStockRequest{RequestId: "attack-preheat", Sku: sku, UnitsPerLane: 1},
			getProduct:   &catalogv1.GetProductRequest{Sku: sku},
			listProducts: &catalogv1.ListProductsRequest{},
			getStock:     &catalogv1.GetStockRequest{Sku: sku},
			putCampaign:  goodCampaign(sku),
			putCoupon:    &campaignv1.PutCouponRequest{CouponCode: "FREE", RateBps: 10_000},
			getCoupon:    &campaignv1.GetCouponRequest{CouponCode: "FREE"},
			listCoupons:  &campaignv1.ListCouponsRequest{},
			exportUser:   &userv1.ExportUserRequest{UserId: victim},
			eraseUser:    &userv1.EraseUserRequest{RequestId: "attack-erase", UserId: victim, ConfirmUserId: victim},
		} {
			want(t, procedure, r.call(t, token, procedure, request), "permission_denied", "PERMISSION_DENIED")
		}
	}
}

// clusterOfOperators asks about the nodes and for lanes elsewhere: only an operator may, and of what is no node, nothing is made.
func clusterOfOperators(t *testing.T, r *rig) {
	const node = "attack-node"
	calls := map[string]proto.Message{
		getCluster:  &clusterv1.GetClusterRequest{},
		moveLane:    &clusterv1.MoveLaneRequest{NodeId: node},
		drainNode:   &clusterv1.DrainNodeRequest{NodeId: node},
		undrainNode: &clusterv1.UndrainNodeRequest{NodeId: node},
	}
	for procedure, request := range calls {
		for _, token := range []string{r.eve, r.actAs} {
			want(t, procedure, r.call(t, token, procedure, request), "permission_denied", "PERMISSION_DENIED")
		}
		want(t, procedure, r.call(t, "", procedure, request), "unauthenticated", "UNAUTHENTICATED")
	}
	want(t, "a lane to a node that is none", r.call(t, r.operator, moveLane, calls[moveLane]), "not_found", "NODE_NOT_FOUND")
	want(t, "a drain of a node that is none", r.call(t, r.operator, drainNode, calls[drainNode]), "not_found", "NODE_NOT_FOUND")
	want(t, "lane 1024", r.call(t, r.operator, moveLane, &clusterv1.MoveLaneRequest{Lane: 1024, NodeId: node}), "invalid_argument", "INVALID_ARGUMENT")
	for _, name := range hostileNames {
		what := fmt.Sprintf("node_id %.20q", name)
		for procedure, request := range map[string]proto.Message{
			moveLane: &clusterv1.MoveLaneRequest{NodeId: name}, drainNode: &clusterv1.DrainNodeRequest{NodeId: name}, undrainNode: &clusterv1.UndrainNodeRequest{NodeId: name},
		} {
			want(t, what, r.call(t, r.operator, procedure, request), "invalid_argument", "INVALID_ARGUMENT")
		}
	}
}

// goodCampaign is a request that an operator may make of a SKU that exists.
func goodCampaign(sku string) *campaignv1.PutCampaignRequest {
	return &campaignv1.PutCampaignRequest{
		CampaignId: "attack", Sku: sku, Price: &typev1.Money{CurrencyCode: "EUR", Units: 1},
		OpensAt: &timestamppb.Timestamp{Seconds: 1}, ClosesAt: &timestamppb.Timestamp{Seconds: 2},
	}
}

// hostileNames are no ids, for one reason or another.
var hostileNames = []string{
	".", "*", ">", "a.b", "a.*", "a b", " a", "a ", "a\r\nb", "a\nb", "a\x00b", "a\tb", "../../etc/passwd", "a/b", "a;b", "a'b", `a"b`,
	"%00", "\u200b", "аda", "ａda", "aͤ", "💥", strings.Repeat("a", 65), strings.Repeat("a", 300), strings.Repeat("a", 60_000),
}

func hostileIDs(t *testing.T, r *rig) {
	for _, name := range append([]string{""}, hostileNames...) {
		what := fmt.Sprintf("%.20q", name)
		request := goodRequest(name)
		want(t, "request_id "+what, r.call(t, r.ada, placeOrder, request), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "request_id "+what+" in JSON", r.callJSON(t, r.ada, placeOrder, marshalJSON(t, request)), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "request_id "+what, r.call(t, r.ada, cancelOrder, &orderv1.CancelOrderRequest{RequestId: name, OrderId: r.order.OrderId}), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "request_id "+what, r.call(t, r.operator, receiveStock, &catalogv1.ReceiveStockRequest{RequestId: name, Sku: sku, Quantity: 1}), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "request_id "+what, r.call(t, r.operator, preheatStock, &catalogv1.PreheatStockRequest{RequestId: name, Sku: sku, UnitsPerLane: 1}), "invalid_argument", "INVALID_ARGUMENT")
		request = goodRequest("attack-hostile")
		request.Items[0].Sku = name
		want(t, "sku "+what, r.call(t, r.ada, placeOrder, request), "invalid_argument", "INVALID_ARGUMENT")
		for procedure, request := range map[string]proto.Message{
			putProduct:   &catalogv1.PutProductRequest{Sku: name, Title: "x", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1}},
			receiveStock: &catalogv1.ReceiveStockRequest{RequestId: "attack-hostile", Sku: name, Quantity: 1},
			preheatStock: &catalogv1.PreheatStockRequest{RequestId: "attack-hostile", Sku: name, UnitsPerLane: 1},
			getProduct:   &catalogv1.GetProductRequest{Sku: name},
			getStock:     &catalogv1.GetStockRequest{Sku: name},
			putCampaign:  goodCampaign(name),
			putCoupon:    &campaignv1.PutCouponRequest{CouponCode: name, RateBps: 1},
			getCoupon:    &campaignv1.GetCouponRequest{CouponCode: name},
			getCampaign:  &campaignv1.GetCampaignRequest{CampaignId: name},
		} {
			want(t, "sku "+what+" "+procedure, r.call(t, r.operator, procedure, request), "invalid_argument", "INVALID_ARGUMENT")
		}
		if name == "" {
			continue // No user id means the token's subject, no campaign and no coupon the usual terms.
		}
		want(t, "campaign's sku "+what, r.call(t, r.ada, getCampaign, &campaignv1.GetCampaignRequest{CampaignId: "attack", Sku: name}), "invalid_argument", "INVALID_ARGUMENT")
		request = goodRequest("attack-hostile")
		request.CampaignId = name
		want(t, "campaign_id "+what, r.call(t, r.ada, placeOrder, request), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "campaign_id "+what+" in JSON", r.callJSON(t, r.ada, placeOrder, marshalJSON(t, request)), "invalid_argument", "INVALID_ARGUMENT")
		request.CampaignId, request.CouponCode = "", name
		want(t, "coupon_code "+what, r.call(t, r.ada, placeOrder, request), "invalid_argument", "INVALID_ARGUMENT")
		request = goodRequest("attack-hostile")
		request.UserId = name
		want(t, "user_id "+what, r.call(t, r.operator, placeOrder, request), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "user_id "+what, r.call(t, r.operator, exportUser, &userv1.ExportUserRequest{UserId: name}), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "user_id "+what, r.call(t, r.operator, eraseUser, &userv1.EraseUserRequest{
			RequestId: "attack-hostile", UserId: name, ConfirmUserId: "x",
		}), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "user_id "+what, r.call(t, r.operator, listOrders, &orderv1.ListOrdersRequest{UserId: name}), "invalid_argument", "INVALID_ARGUMENT")
		want(t, "request_id "+what, r.call(t, r.operator, putProduct, &catalogv1.PutProductRequest{
			RequestId: name, Sku: sku, Title: "x", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1},
		}), "invalid_argument", "INVALID_ARGUMENT")
	}
}

func hostileOrderIDs(t *testing.T, r *rig) {
	id := r.order.OrderId
	changed := []byte(id)
	if changed[20]++; changed[20] > 'Z' || changed[20] == 'I' || changed[20] == 'L' || changed[20] == 'O' || changed[20] == 'U' || (changed[20] > '9' && changed[20] < 'A') {
		changed[20] = '0'
		if id[20] == '0' {
			changed[20] = '1'
		}
	}
	ids := append([]string{
		"", id[:26], id + "0", strings.ToLower(id), string(changed), id[:26] + "I", id[:26] + "\x00", strings.Repeat("0", 27), "8" + id[1:],
		strings.Repeat("Z", 27), " " + id[1:], id[:13] + "é" + id[15:],
	}, hostileNames...)
	for _, id := range ids {
		what := fmt.Sprintf("order_id %.30q", id)
		for _, token := range []string{r.ada, r.operator} {
			want(t, what, r.call(t, token, getOrder, &orderv1.GetOrderRequest{OrderId: id}), "invalid_argument", "INVALID_ARGUMENT")
			want(t, what, r.call(t, token, cancelOrder, &orderv1.CancelOrderRequest{RequestId: "attack-id", OrderId: id}), "invalid_argument", "INVALID_ARGUMENT")
			want(t, what, r.stream(t, token, watchOrder, &orderv1.WatchOrderRequest{OrderId: id}), "invalid_argument", "INVALID_ARGUMENT")
		}
	}
}

func hostileQuantities(t *testing.T, r *rig) {
	for _, quantity := range []int64{0, -1, math.MinInt64, 1_000_001, 1 << 31, 1<<32 + 1, math.MaxInt64} {
		what := fmt.Sprintf("quantity %d", quantity)
		request := goodRequest("attack-quantity")
		request.Items[0].Quantity = quantity
		want(t, what, r.call(t, r.ada, placeOrder, request), "invalid_argument", "INVALID_ARGUMENT")
		for _, text := range []string{fmt.Sprintf("%d", quantity), fmt.Sprintf(`"%d"`, quantity)} {
			want(t, what, r.callJSON(t, r.ada, placeOrder, placeJSON(text)), "invalid_argument", "INVALID_ARGUMENT")
		}
		if quantity == 1_000_001 {
			continue // As many may be received.
		}
		if quantity < 1 || quantity > 1_000_000_000 {
			want(t, what, r.call(t, r.operator, receiveStock, &catalogv1.ReceiveStockRequest{RequestId: "attack-quantity", Sku: sku, Quantity: quantity}), "invalid_argument", "INVALID_ARGUMENT")
		}
	}
	for _, text := range []string{"1.5", `"1.5"`, "1e400", `"abc"`, `""`, "null", "true", "{}", "[1]", "9223372036854775808", "-9223372036854775809", "NaN", "0x1", "01", "+1"} {
		want(t, "quantity "+text, r.callJSON(t, r.ada, placeOrder, placeJSON(text)), "invalid_argument", "")
	}
	for _, units := range []int64{-1, 1_000_000_000_001, math.MaxInt64, math.MinInt64} {
		want(t, fmt.Sprintf("price %d", units), r.call(t, r.operator, putProduct, &catalogv1.PutProductRequest{
			Sku: sku, Title: "x", Price: &typev1.Money{CurrencyCode: "EUR", Units: units},
		}), "invalid_argument", "INVALID_ARGUMENT")
	}
	for _, currency := range []string{"", "eur", "EU", "EURO", "€", "E R", "EU\n"} {
		want(t, "currency "+currency, r.call(t, r.operator, putProduct, &catalogv1.PutProductRequest{
			Sku: sku, Title: "x", Price: &typev1.Money{CurrencyCode: currency, Units: 1},
		}), "invalid_argument", "INVALID_ARGUMENT")
	}
	want(t, "no price", r.call(t, r.operator, putProduct, &catalogv1.PutProductRequest{Sku: sku, Title: "x"}), "invalid_argument", "INVALID_ARGUMENT")
}

// placeJSON is a request with a quantity that is given as JSON.
func placeJSON(quantity string) string {
	return `{"requestId":"attack-json","items":[{"sku":"` + sku + `","quantity":` + quantity + `}]}`
}

func outsideLimits(t *testing.T, r *rig) {
	place := func(what string, change func(*orderv1.PlaceOrderRequest)) {
		t.Helper()
		request := goodRequest("attack-limits")
		change(request)
		want(t, what, r.call(t, r.ada, placeOrder, request), "invalid_argument", "INVALID_ARGUMENT")
	}
	place("no items", func(m *orderv1.PlaceOrderRequest) { m.Items = nil })
	place("101 items", func(m *orderv1.PlaceOrderRequest) {
		m.Items = nil
		for i := range 101 {
			m.Items = append(m.Items, &orderv1.ItemRequest{Sku: fmt.Sprintf("sku-%d", i), Quantity: 1})
		}
	})
	place("a SKU twice", func(m *orderv1.PlaceOrderRequest) { m.Items = append(m.Items, m.Items[0]) })
	place("an empty item", func(m *orderv1.PlaceOrderRequest) { m.Items = append(m.Items, &orderv1.ItemRequest{}) })
	place("a long note", func(m *orderv1.PlaceOrderRequest) { m.Note = strings.Repeat("x", 1001) })
	place("a note of long characters", func(m *orderv1.PlaceOrderRequest) { m.Note = strings.Repeat("é", 501) })

	invalid := func(what, procedure, token string, request proto.Message) {
		t.Helper()
		want(t, what, r.call(t, token, procedure, request), "invalid_argument", "INVALID_ARGUMENT")
	}
	for what, change := range map[string]func(*campaignv1.PutCampaignRequest){
		"units of -1":     func(m *campaignv1.PutCampaignRequest) { m.Units = -1 },
		"too many units":  func(m *campaignv1.PutCampaignRequest) { m.Units = math.MaxInt64 },
		"a user's -1":     func(m *campaignv1.PutCampaignRequest) { m.UserUnitsMax = math.MinInt64 },
		"an order's 10^9": func(m *campaignv1.PutCampaignRequest) { m.OrderUnitsMax = 1_000_000_001 },
		"a price of -1":   func(m *campaignv1.PutCampaignRequest) { m.Price.Units = -1 },
		"never open":      func(m *campaignv1.PutCampaignRequest) { m.ClosesAt = m.OpensAt },
		"open for ever":   func(m *campaignv1.PutCampaignRequest) { m.ClosesAt = &timestamppb.Timestamp{Seconds: math.MaxInt64} },
		"open since ever": func(m *campaignv1.PutCampaignRequest) { m.OpensAt = &timestamppb.Timestamp{Seconds: math.MinInt64} },
	} {
		campaign := goodCampaign(sku)
		change(campaign)
		invalid("campaign, "+what, putCampaign, r.operator, campaign)
	}
	invalid("a coupon of nothing", putCoupon, r.operator, &campaignv1.PutCouponRequest{CouponCode: "A"})
	invalid("a coupon of 100.01 %", putCoupon, r.operator, &campaignv1.PutCouponRequest{CouponCode: "A", RateBps: 10_001})
	invalid("a coupon of -1 %", putCoupon, r.operator, &campaignv1.PutCouponRequest{CouponCode: "A", RateBps: -100})
	invalid("a coupon of -1 cent", putCoupon, r.operator, &campaignv1.PutCouponRequest{CouponCode: "A", Amount: &typev1.Money{CurrencyCode: "EUR", Units: -1}})
	invalid("a long reason", cancelOrder, r.ada, &orderv1.CancelOrderRequest{RequestId: "a", OrderId: r.order.OrderId, Reason: strings.Repeat("x", 201)})
	invalid("page of -1", listOrders, r.ada, &orderv1.ListOrdersRequest{PageSize: -1})
	invalid("page of 101", listOrders, r.ada, &orderv1.ListOrdersRequest{PageSize: 101})
	invalid("page of 1001", listProducts, r.operator, &catalogv1.ListProductsRequest{PageSize: 1001})
	invalid("status 99", listOrders, r.ada, &orderv1.ListOrdersRequest{Status: 99})
	invalid("a long title", putProduct, r.operator, &catalogv1.PutProductRequest{Sku: sku, Title: strings.Repeat("x", 201), Price: &typev1.Money{CurrencyCode: "EUR"}})
	invalid("no title", putProduct, r.operator, &catalogv1.PutProductRequest{Sku: sku, Price: &typev1.Money{CurrencyCode: "EUR"}})
	for _, wait := range []*durationpb.Duration{{Seconds: -1}, {Seconds: 11}, {Seconds: math.MaxInt64}, {Seconds: math.MinInt64}, {Nanos: -1}, {Seconds: 10, Nanos: 1}} {
		invalid(fmt.Sprintf("wait_budget %v", wait), getOrder, r.ada, &orderv1.GetOrderRequest{OrderId: r.order.OrderId, WaitBudget: wait})
		invalid(fmt.Sprintf("wait_budget %v", wait), getStock, r.operator, &catalogv1.GetStockRequest{Sku: sku, WaitBudget: wait})
	}
	for _, lane := range []uint32{1023, 1024, math.MaxUint32} {
		revision := &typev1.Revision{Lane: lane, Commit: 1}
		if lane == r.order.Revision.Lane {
			continue
		}
		invalid(fmt.Sprintf("lane %d", lane), getOrder, r.ada, &orderv1.GetOrderRequest{OrderId: r.order.OrderId, MinRevision: revision})
		invalid(fmt.Sprintf("lane %d", lane), listOrders, r.ada, &orderv1.ListOrdersRequest{MinRevision: revision})
	}
	for _, token := range []string{"x", "====", strings.Repeat("A", 600), "\x00", "AQ"} {
		invalid("page_token "+token, listOrders, r.ada, &orderv1.ListOrdersRequest{PageToken: token})
		invalid("page_token "+token, listProducts, r.operator, &catalogv1.ListProductsRequest{PageToken: token})
	}
}

func clientPrice(t *testing.T, r *rig) {
	got := r.callJSON(t, r.ada, placeOrder, `{"requestId":"attack-price","items":[{"sku":"`+sku+`","quantity":2,"unitPrice":{"currencyCode":"EUR","units":"1"},"price":1}],
		"total":{"currencyCode":"EUR","units":"1"},"status":"ORDER_STATUS_EXPIRED","orderId":"x","payBy":"2999-01-01T00:00:00Z"}`)
	want(t, "a price from the client", got, "ok", "")
	var list orderv1.ListOrdersResponse
	// Orders of one millisecond come in any order.
	r.mustCall(t, r.ada, listOrders, &orderv1.ListOrdersRequest{PageSize: 100, MinRevision: revisionIn(t, got)}, &list)
	if !slices.ContainsFunc(list.Orders, func(o *orderv1.Order) bool {
		return o.Items[0].Quantity == 2 && o.Total.Units == 2598 && o.Status == orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT
	}) {
		t.Errorf("got %v, want an open order of 2598 minor units", list.Orders)
	}
}

// copyRetriesMax bounds how often a copy that was told to come again does.
const copyRetriesMax = 10

func hundredCopies(t *testing.T, r *rig) {
	const copies = 100
	before := r.ordersOf(t, attacker)
	var bodies [copies][]byte
	var group sync.WaitGroup
	for i := range copies {
		group.Go(func() {
			request := goodRequest("attack-copies")
			request.Note = "at the back door"
			data, err := proto.Marshal(request)
			if err != nil {
				t.Error(err)
				return
			}
			var got reply
			for range copyRetriesMax { // A busy machine may not read a body in the short time that the target gives it, and cut the connection.
				got, err = r.try(t, http.MethodPost, placeOrder, r.eve, bytes.NewReader(data), "Content-Type", "application/proto")
				code := got.code()
				if err == nil && code != "deadline_exceeded" && code != "unavailable" && code != "resource_exhausted" {
					break
				}
			}
			if err != nil {
				t.Errorf("copy %d: %v", i, err)
				return
			}
			if got.code() == "ok" {
				bodies[i] = got.body
			} else {
				t.Errorf("copy %d: got %s", i, got)
			}
		})
	}
	group.Wait()
	for i := range bodies {
		if !bytes.Equal(bodies[i], bodies[0]) {
			t.Errorf("copy %d: got %x, copy 0 got %x", i, bodies[i], bodies[0])
		}
	}
	if after := r.ordersOf(t, attacker); after != before+1 {
		t.Errorf("%d orders before, %d after, want one more", before, after)
	}
}

// ordersOf counts a user's newest orders, as of every commit that there is.
func (r *rig) ordersOf(t *testing.T, userID string) int {
	t.Helper()
	request := &orderv1.ListOrdersRequest{UserId: userID, PageSize: 100, WaitBudget: durationpb.New(10 * time.Second)}
	var list orderv1.ListOrdersResponse
	for deadline := time.Now().Add(callTimeMax); ; {
		list.Reset()
		r.mustCall(t, r.operator, listOrders, request, &list)
		if list.Freshness.GetState() == typev1.Freshness_STATE_FRESH {
			return len(list.Orders)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the view never became fresh: %v", list.Freshness)
		}
	}
}

func keyReused(t *testing.T, r *rig) {
	first := goodRequest("attack-reuse")
	want(t, "first", r.call(t, r.ada, placeOrder, first), "ok", "")
	head := r.Head()
	for name, change := range map[string]func(*orderv1.PlaceOrderRequest){
		"quantity": func(m *orderv1.PlaceOrderRequest) { m.Items[0].Quantity = 2 },
		"sku":      func(m *orderv1.PlaceOrderRequest) { m.Items[0].Sku = "attack-other" },
		"note":     func(m *orderv1.PlaceOrderRequest) { m.Note = "hello" },
		"line": func(m *orderv1.PlaceOrderRequest) {
			m.Items = append(m.Items, &orderv1.ItemRequest{Sku: "attack-other", Quantity: 1})
		},
	} {
		other := goodRequest("attack-reuse")
		change(other)
		want(t, "other "+name, r.call(t, r.ada, placeOrder, other), "failed_precondition", "KEY_REUSED")
	}
	want(t, "another method", r.call(t, r.ada, cancelOrder, &orderv1.CancelOrderRequest{RequestId: "attack-reuse", OrderId: r.order.OrderId}), "failed_precondition", "KEY_REUSED")
	if r.Head() != head {
		t.Errorf("a reused id wrote to the log")
	}
	// A change that changed nothing holds its id as well as any other.
	cancelled := r.place(t, r.ada, "attack-reuse-placed").OrderId
	for _, requestID := range []string{"attack-reuse-cancel", "attack-reuse-nothing", "attack-reuse-nothing"} {
		want(t, requestID, r.call(t, r.ada, cancelOrder, &orderv1.CancelOrderRequest{RequestId: requestID, OrderId: cancelled}), "ok", "")
	}
	head = r.Head()
	for name, other := range map[string]*orderv1.CancelOrderRequest{"reason": {OrderId: cancelled, Reason: "x"}, "order": {OrderId: r.order.OrderId}} {
		other.RequestId = "attack-reuse-nothing"
		want(t, "nothing was done, other "+name, r.call(t, r.ada, cancelOrder, other), "failed_precondition", "KEY_REUSED")
	}
	// The same request in JSON, with the user spelled out, is the same request.
	want(t, "the same in JSON", r.callJSON(t, r.ada, placeOrder, `{"items":[{"quantity":"1","sku":"`+sku+`"}],"request_id":"attack-reuse","userId":"`+victim+`"}`), "ok", "")
	if r.Head() != head {
		t.Errorf("a reused id wrote to the log")
	}
}

func keyOfAnother(t *testing.T, r *rig) {
	ofAda, ofEve := r.place(t, r.ada, "attack-shared"), r.place(t, r.eve, "attack-shared")
	if ofAda.OrderId == ofEve.OrderId || ofAda.UserId != victim || ofEve.UserId != attacker {
		t.Errorf("got %v and %v, want two orders of two users", ofAda, ofEve)
	}
}

func largeBodies(t *testing.T, r *rig) {
	const size = 10 << 20
	message := protowire.AppendTag(nil, 4, protowire.BytesType)
	message = protowire.AppendBytes(message, bytes.Repeat([]byte("x"), size))
	for _, test := range []struct {
		what, contentType string
		body              []byte
	}{
		{"binary", "application/proto", message},
		{"JSON", "application/json", append(append([]byte(`{"note":"`), bytes.Repeat([]byte("x"), size)...), `"}`...)},
		{"spaces", "application/json", bytes.Repeat([]byte(" "), size)},
	} {
		for _, chunked := range []bool{false, true} {
			got, cut := r.sendLarge(t, test.contentType, test.body, chunked)
			if !cut {
				want(t, test.what, got, "resource_exhausted", "")
			}
		}
	}
	just := goodRequest("attack-large")
	just.Note = strings.Repeat("x", 65<<10)
	want(t, "65 KiB", r.call(t, r.ada, placeOrder, just), "resource_exhausted", "")
	got := r.send(t, http.MethodPost, placeOrder, r.ada, bytes.NewReader(envelope(message[:70<<10])), "Content-Type", "application/grpc-web+proto")
	if status := got.header.Get("Grpc-Status"); status != "8" && !bytes.Contains(got.body, []byte("grpc-status: 8")) {
		t.Errorf("gRPC-Web: got HTTP %d, status %q, %q, want 8", got.status, status, got.body)
	}
	huge := r.send(t, http.MethodGet, getOrder+"?encoding=json&message="+strings.Repeat("x", 100<<10), r.ada, nil)
	if huge.status != http.StatusRequestHeaderFieldsTooLarge && huge.status != http.StatusRequestURITooLong {
		t.Errorf("a GET of 100 KiB: got HTTP %d, want 431", huge.status)
	}
}

func bombs(t *testing.T, r *rig) {
	for _, size := range []int{100 << 10, 16 << 20} {
		var bomb bytes.Buffer
		w := gzip.NewWriter(&bomb)
		zeros := make([]byte, 64<<10)
		for written := 0; written < size; written += len(zeros) {
			if _, err := w.Write(zeros); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, contentType := range []string{"application/proto", "application/json"} {
			got := r.send(t, http.MethodPost, placeOrder, r.ada, bytes.NewReader(bomb.Bytes()), "Content-Type", contentType, "Content-Encoding", "gzip")
			want(t, fmt.Sprintf("%d bytes in %d", size, bomb.Len()), got, "resource_exhausted", "")
		}
		if took := time.Since(start); took > callTimeMax/10 {
			t.Errorf("two bombs of %d bytes took %s", size, took)
		}
	}
	got := r.send(t, http.MethodPost, placeOrder, r.ada, strings.NewReader("not gzip"), "Content-Type", "application/proto", "Content-Encoding", "gzip")
	want(t, "not gzip", got, "invalid_argument", "")
	got = r.send(t, http.MethodPost, placeOrder, r.ada, strings.NewReader("x"), "Content-Type", "application/proto", "Content-Encoding", "br")
	want(t, "unknown compression", got, "unimplemented", "")
}

func malformedBodies(t *testing.T, r *rig) {
	text := func(field protowire.Number, value string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, field, protowire.BytesType), value)
	}
	good, err := proto.Marshal(goodRequest("attack-malformed"))
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		"empty":             {},
		"cut":               good[:len(good)-3],
		"garbage":           {0xff, 0xff, 0xff, 0xff, 0xff},
		"group":             {0x0b, 0x0b, 0x0b},
		"length beyond end": {0x0a, 0xff, 0xff, 0xff, 0x7f},
		"field 0":           {0x00, 0x01},
		"varint of 11":      append([]byte{0x10}, bytes.Repeat([]byte{0xff}, 11)...),
		"bad UTF-8 id":      append(text(1, "a\xff"), good...),
		"bad UTF-8 note":    append(bytes.Clone(good), text(4, "\xc0\xaf")...),
		"bad UTF-8 sku":     append(bytes.Clone(good), protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), text(1, "\xed\xa0\x80"))...),
	} {
		got := r.send(t, http.MethodPost, placeOrder, r.ada, bytes.NewReader(body), "Content-Type", "application/proto")
		want(t, "binary: "+name, got, "invalid_argument", "")
	}
	deep := func(open, shut string, levels int) string {
		return strings.Repeat(open, levels) + strings.Repeat(shut, levels)
	}
	for name, body := range map[string]string{
		"empty":               "",
		"not JSON":            "hello",
		"list":                "[]",
		"text":                `"x"`,
		"null":                "null",
		"cut":                 placeJSON("1")[:20],
		"two objects":         placeJSON("1") + placeJSON("1"),
		"trailing":            placeJSON("1") + "x",
		"trailing comma":      `{"requestId":"a",}`,
		"single quotes":       `{'requestId':'a'}`,
		"comment":             `{/**/"requestId":"a"}`,
		"field twice":         `{"requestId":"attack-twice","requestId":"attack-twice2","items":[{"sku":"` + sku + `","quantity":1}]}`,
		"both names":          `{"requestId":"attack-twice","request_id":"attack-twice2","items":[{"sku":"` + sku + `","quantity":1}]}`,
		"number as text":      `{"requestId":1,"items":[{"sku":"` + sku + `","quantity":1}]}`,
		"items no list":       `{"requestId":"a","items":{"sku":"` + sku + `","quantity":1}}`,
		"null item":           `{"requestId":"a","items":[null]}`,
		"bad UTF-8":           "{\"requestId\":\"a\xff\"}",
		"bad UTF-8 note":      "{\"requestId\":\"attack-utf\",\"items\":[{\"sku\":\"" + sku + "\",\"quantity\":1}],\"note\":\"\xc0\xaf\"}",
		"bad UTF-8 unknown":   "{\"requestId\":\"attack-utf\",\"items\":[{\"sku\":\"" + sku + "\",\"quantity\":1}],\"other\":\"\xc0\xaf\"}",
		"lone surrogate":      `{"requestId":"attack-utf","items":[{"sku":"` + sku + `","quantity":1}],"note":"\ud800"}`,
		"raw newline in text": "{\"requestId\":\"a\nb\"}",
		"10k lists":           `{"other":` + deep("[", "]", 10_000) + `}`,
		"10k objects":         `{"other":` + strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000) + `}`,
		"30k open lists":      `{"other":` + strings.Repeat("[", 30_000),
		"byte order mark":     "\xef\xbb\xbf" + placeJSON("1"),
	} {
		want(t, "JSON: "+name, r.callJSON(t, r.ada, placeOrder, body), "invalid_argument", "")
	}
}

func wrongHTTP(t *testing.T, r *rig) {
	good := placeJSON("1")
	for _, contentType := range []string{"", "text/plain", "text/html", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp", "application/connect+json"} {
		got := r.send(t, http.MethodPost, placeOrder, r.ada, strings.NewReader(good), "Content-Type", contentType)
		if got.status != http.StatusUnsupportedMediaType {
			t.Errorf("content type %q: got %s, want HTTP 415", contentType, got)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodHead, http.MethodTrace, "BREW"} {
		for _, procedure := range []string{placeOrder, cancelOrder, putProduct, receiveStock, preheatStock} {
			got := r.send(t, method, procedure+"?encoding=json&message="+url.QueryEscape(good), r.ada, nil)
			if got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != http.MethodPost {
				t.Errorf("%s %s: got HTTP %d, Allow %q, want 405 and POST", method, procedure, got.status, got.header.Get("Allow"))
			}
		}
	}
	for _, path := range []string{"/", "/favicon.ico", "/weir.order.v1.OrderService/", "/weir.order.v1.OrderService/Place", "/weir.order.v1.OrderService/PlaceOrder/", "/weir.order.v1.OrderService/placeorder", "//weir.order.v1.OrderService/PlaceOrder", "/weir.order.v1.OrderService/../weir.order.v1.OrderService/PlaceOrder"} {
		if got := r.send(t, http.MethodPost, path, r.ada, strings.NewReader(good), "Content-Type", "application/json"); got.status != http.StatusNotFound {
			t.Errorf("%s: got HTTP %d, want 404", path, got.status)
		}
	}
	preflight := r.send(t, http.MethodOptions, placeOrder, "", nil,
		"Origin", "https://evil.example", "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,content-type")
	if preflight.status == http.StatusOK || preflight.header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("preflight: got HTTP %d, %v, want no Allow-Origin", preflight.status, preflight.header)
	}
}

func readsAnswerGET(t *testing.T, r *rig) {
	query := func(encoding, message, extra string) string {
		return "?connect=v1&encoding=" + encoding + "&message=" + url.QueryEscape(message) + extra
	}
	message := `{"orderId":"` + r.order.OrderId + `"}`
	want(t, "JSON", r.send(t, http.MethodGet, getOrder+query("json", message, ""), r.ada, nil), "ok", "")
	binary, err := proto.Marshal(&orderv1.GetOrderRequest{OrderId: r.order.OrderId})
	if err != nil {
		t.Fatal(err)
	}
	want(t, "binary", r.send(t, http.MethodGet, getOrder+query("proto", base64.RawURLEncoding.EncodeToString(binary), "&base64=1"), r.ada, nil), "ok", "")
	want(t, "no token", r.send(t, http.MethodGet, getOrder+query("json", message, ""), "", nil), "unauthenticated", "UNAUTHENTICATED")
	want(t, "a stranger", r.send(t, http.MethodGet, getOrder+query("json", message, ""), r.eve, nil), "not_found", "ORDER_NOT_FOUND")
	want(t, "no message", r.send(t, http.MethodGet, getOrder+"?encoding=json", r.ada, nil), "invalid_argument", "")
	want(t, "bad base64", r.send(t, http.MethodGet, getOrder+query("proto", "!!!", "&base64=1"), r.ada, nil), "invalid_argument", "")
	want(t, "bad message", r.send(t, http.MethodGet, getOrder+query("json", "{", ""), r.ada, nil), "invalid_argument", "")
	if got := r.send(t, http.MethodGet, getOrder+query("xml", message, ""), r.ada, nil); got.status != http.StatusUnsupportedMediaType {
		t.Errorf("unknown encoding: got %s, want HTTP 415", got)
	}
}

func timeouts(t *testing.T, r *rig) {
	request := goodRequest("attack-timeout")
	for timeout, code := range map[string]string{
		"0": "deadline_exceeded", "abc": "invalid_argument", "-1": "invalid_argument", "1.5": "invalid_argument", "99999999999": "invalid_argument",
		"1s": "invalid_argument", "0x10": "invalid_argument",
	} {
		want(t, "Connect-Timeout-Ms "+timeout, r.call(t, r.ada, placeOrder, request, "Connect-Timeout-Ms", timeout), code, "")
	}
	for _, timeout := range []string{"9999999999", "30000", ""} {
		want(t, "Connect-Timeout-Ms "+timeout, r.call(t, r.ada, getOrder, &orderv1.GetOrderRequest{OrderId: r.order.OrderId}, "Connect-Timeout-Ms", timeout), "ok", "")
	}
	place, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	get, err := proto.Marshal(&orderv1.GetOrderRequest{OrderId: r.order.OrderId})
	if err != nil {
		t.Fatal(err)
	}
	for timeout, status := range map[string]string{
		"0n": "4", "abc": "3", "1": "3", "-1S": "3", "999999999S": "3", "1x": "3", "99999999H": "0", "99999999M": "0", "": "0",
	} {
		procedure, body := placeOrder, place
		if status == "0" {
			procedure, body = getOrder, get
		}
		got := r.send(t, http.MethodPost, procedure, r.ada, bytes.NewReader(envelope(body)), "Content-Type", "application/grpc-web+proto", "Grpc-Timeout", timeout)
		if header := got.header.Get("Grpc-Status"); header != status && !bytes.Contains(got.body, []byte("grpc-status: "+status)) {
			t.Errorf("Grpc-Timeout %q: got status %q, %q, want %s", timeout, header, got.body, status)
		}
	}
}

func pageTokens(t *testing.T, r *rig) {
	r.place(t, r.eve, "attack-page-1")
	last := r.place(t, r.eve, "attack-page-2")
	var page orderv1.ListOrdersResponse
	r.mustCall(t, r.eve, listOrders, &orderv1.ListOrdersRequest{PageSize: 1, MinRevision: last.Revision}, &page)
	token := page.NextPageToken
	if len(page.Orders) != 1 || token == "" {
		t.Fatalf("got %v, want one order and a token", &page)
	}
	tampered(t, token, func(token string) reply {
		return r.call(t, r.eve, listOrders, &orderv1.ListOrdersRequest{PageSize: 1, PageToken: token})
	})
	want(t, "of another user", r.call(t, r.ada, listOrders, &orderv1.ListOrdersRequest{PageToken: token}), "invalid_argument", "INVALID_ARGUMENT")
	want(t, "of another filter", r.call(t, r.eve, listOrders, &orderv1.ListOrdersRequest{PageToken: token, Status: orderv1.OrderStatus_ORDER_STATUS_CANCELLED}), "invalid_argument", "INVALID_ARGUMENT")
	want(t, "of another list", r.call(t, r.operator, listProducts, &catalogv1.ListProductsRequest{PageToken: token}), "invalid_argument", "INVALID_ARGUMENT")
}

// tampered asks for a page with the token as it is, which is good, and with the token changed in every way.
func tampered(t *testing.T, token string, ask func(token string) reply) {
	t.Helper()
	want(t, "as it is", ask(token), "ok", "")
	for i := range token {
		changed := []byte(token)
		if changed[i] = 'A'; token[i] == 'A' {
			changed[i] = 'B'
		}
		want(t, fmt.Sprintf("character %d changed", i), ask(string(changed)), "invalid_argument", "INVALID_ARGUMENT")
	}
	want(t, "cut", ask(token[:len(token)-1]), "invalid_argument", "INVALID_ARGUMENT")
	for _, token := range []string{"x", "====", strings.Repeat("A", 600), "\x00", "AQ"} {
		want(t, fmt.Sprintf("%.20q", token), ask(token), "invalid_argument", "INVALID_ARGUMENT")
	}
}

func operatorsPageTokens(t *testing.T, r *rig) {
	for _, name := range []string{"attack-1", "attack-2"} {
		campaign := goodCampaign(sku)
		campaign.CampaignId, campaign.RequestId = name, name
		r.mustCall(t, r.operator, putCampaign, campaign, &campaignv1.PutCampaignResponse{})
		r.mustCall(t, r.operator, putCoupon, &campaignv1.PutCouponRequest{RequestId: name + "-coupon", CouponCode: name, RateBps: 1}, &campaignv1.PutCouponResponse{})
	}
	campaignsPage := func(token string) reply {
		return r.call(t, r.operator, listCampaigns, &campaignv1.ListCampaignsRequest{PageSize: 1, PageToken: token})
	}
	couponsPage := func(token string) reply {
		return r.call(t, r.operator, listCoupons, &campaignv1.ListCouponsRequest{PageSize: 1, PageToken: token})
	}
	var campaigns campaignv1.ListCampaignsResponse
	campaignsToken := r.firstToken(t, campaignsPage, &campaigns, campaigns.GetNextPageToken)
	tampered(t, campaignsToken, campaignsPage)
	var coupons campaignv1.ListCouponsResponse
	couponsToken := r.firstToken(t, couponsPage, &coupons, coupons.GetNextPageToken)
	tampered(t, couponsToken, couponsPage)
	want(t, "of another list", campaignsPage(couponsToken), "invalid_argument", "INVALID_ARGUMENT")
	want(t, "of another list", couponsPage(campaignsToken), "invalid_argument", "INVALID_ARGUMENT")

	boardPage := func(token string) reply {
		return r.call(t, r.operator, getBoard, &reportv1.GetCampaignBoardRequest{PageSize: 1, PageToken: token})
	}
	var board reportv1.GetCampaignBoardResponse
	boardToken := r.firstToken(t, boardPage, &board, board.GetNextPageToken)
	tampered(t, boardToken, boardPage)
	want(t, "of another list", boardPage(campaignsToken), "invalid_argument", "INVALID_ARGUMENT")
	of := r.call(t, r.operator, getBoard, &reportv1.GetCampaignBoardRequest{CampaignId: "attack-1", PageToken: boardToken})
	want(t, "of the board of all campaigns", of, "invalid_argument", "INVALID_ARGUMENT")
	want(t, "no such campaign", r.call(t, r.operator, getBoard, &reportv1.GetCampaignBoardRequest{CampaignId: "attack"}), "not_found", "CAMPAIGN_NOT_FOUND")
	for _, token := range []string{r.ada, r.actAs} {
		want(t, "by no operator", r.call(t, token, getBoard, &reportv1.GetCampaignBoardRequest{}), "permission_denied", "PERMISSION_DENIED")
	}
	for _, name := range append([]string{sku + "@sale"}, hostileNames...) {
		got := r.call(t, r.operator, getBoard, &reportv1.GetCampaignBoardRequest{CampaignId: name})
		want(t, fmt.Sprintf("campaign_id %.20q", name), got, "invalid_argument", "INVALID_ARGUMENT")
	}
	for _, size := range []int32{-1, 1001, math.MaxInt32} {
		want(t, fmt.Sprintf("page_size %d", size), r.call(t, r.operator, getBoard, &reportv1.GetCampaignBoardRequest{PageSize: size}), "invalid_argument", "INVALID_ARGUMENT")
	}
}

// firstToken asks for first pages until one has a token: what was put may not show at once.
func (r *rig) firstToken(t *testing.T, ask func(token string) reply, response proto.Message, token func() string) string {
	t.Helper()
	for deadline := time.Now().Add(callTimeMax); time.Now().Before(deadline); {
		got := ask("")
		if got.code() != "ok" {
			t.Fatalf("the first page: got %s", got)
		}
		if err := proto.Unmarshal(got.body, response); err != nil {
			t.Fatal(err)
		}
		if token() != "" {
			return token()
		}
	}
	t.Fatal("no first page had a token")
	return ""
}

// award has the lanes pay an order of a customer's and award the points for it. It returns where they are.
func (r *rig) award(t *testing.T, token, requestID string) *typev1.Revision {
	t.Helper()
	order := r.place(t, token, requestID)
	id, err := domain.ParseOrderID(order.OrderId)
	if err != nil {
		t.Fatal(err)
	}
	payment := domain.PaymentID(id, 1)
	var awarded *lanes.Reply
	for _, command := range []domain.Command{
		domain.StartPayment{OrderID: id, Provider: "attack", Method: "attack", CaptureNow: true},
		domain.RecordPaymentResult{OrderID: id, PaymentID: payment, Result: domain.ResultCaptured, Amount: domain.Money{Currency: "EUR", Minor: order.Total.Units}},
		domain.AwardPoints{OrderID: id, PaymentID: payment, PerMajor: 1},
	} {
		if awarded, err = r.Commands.Submit(t.Context(), lanes.Request{Partition: id.Partition(), Command: command}); err != nil {
			t.Fatalf("%T: %v", command, err)
		}
	}
	return &typev1.Revision{Lane: awarded.Lane, Commit: awarded.Commit}
}

func points(t *testing.T, r *rig) {
	r.award(t, r.ada, "attack-points-1")
	newest := r.award(t, r.ada, "attack-points-2")
	for _, token := range []string{r.ada, r.actAs, r.operator} {
		request, got := &pointsv1.GetPointsRequest{PageSize: 1, MinRevision: newest}, &pointsv1.GetPointsResponse{}
		if token != r.ada {
			request.UserId = victim
		}
		r.mustCall(t, token, getPoints, request, got)
		if got.UserId != victim || got.Balance != 24 || len(got.Entries) != 1 || got.NextPageToken == "" {
			t.Fatalf("got %v, want 24 points of %s, and a token", got, victim)
		}
	}
	for _, stranger := range []string{attacker, neighbour(victim)} {
		token := r.token(t, stranger, 0)
		want(t, "by "+stranger, r.call(t, token, getPoints, &pointsv1.GetPointsRequest{UserId: victim}), "permission_denied", "PERMISSION_DENIED")
		got := &pointsv1.GetPointsResponse{}
		r.mustCall(t, token, getPoints, &pointsv1.GetPointsRequest{}, got)
		if got.UserId != stranger || got.Balance != 0 || len(got.Entries) != 0 || got.Revision != nil {
			t.Errorf("%s was shown %v, want nothing", stranger, got)
		}
	}
	page := func(token string) reply {
		return r.call(t, r.ada, getPoints, &pointsv1.GetPointsRequest{PageSize: 1, PageToken: token})
	}
	var first pointsv1.GetPointsResponse
	token := r.firstToken(t, page, &first, first.GetNextPageToken)
	tampered(t, token, page)
	want(t, "of another user", r.call(t, r.eve, getPoints, &pointsv1.GetPointsRequest{PageToken: token}), "invalid_argument", "INVALID_ARGUMENT")
	want(t, "of another user", r.call(t, r.operator, getPoints, &pointsv1.GetPointsRequest{UserId: attacker, PageToken: token}), "invalid_argument", "INVALID_ARGUMENT")
	want(t, "of another list", r.call(t, r.ada, listOrders, &orderv1.ListOrdersRequest{PageToken: token}), "invalid_argument", "INVALID_ARGUMENT")
	var orders orderv1.ListOrdersResponse
	r.mustCall(t, r.ada, listOrders, &orderv1.ListOrdersRequest{PageSize: 1}, &orders)
	want(t, "of the orders", page(orders.NextPageToken), "invalid_argument", "INVALID_ARGUMENT")
	for _, size := range []int32{-1, 501, math.MaxInt32, math.MinInt32} {
		want(t, fmt.Sprintf("page of %d", size), r.call(t, r.ada, getPoints, &pointsv1.GetPointsRequest{PageSize: size}), "invalid_argument", "INVALID_ARGUMENT")
	}
	for _, name := range hostileNames {
		want(t, fmt.Sprintf("user_id %.20q", name), r.call(t, r.operator, getPoints, &pointsv1.GetPointsRequest{UserId: name}), "invalid_argument", "INVALID_ARGUMENT")
	}
	want(t, "a lane that is none", r.call(t, r.ada, getPoints, &pointsv1.GetPointsRequest{MinRevision: &typev1.Revision{Lane: 1023, Commit: 1}}), "invalid_argument", "INVALID_ARGUMENT")
	want(t, "a long wait", r.call(t, r.ada, getPoints, &pointsv1.GetPointsRequest{WaitBudget: durationpb.New(math.MaxInt64)}), "invalid_argument", "INVALID_ARGUMENT")
	want(t, "GET without a token", r.send(t, http.MethodGet, getPoints+"?connect=v1&encoding=json&message=%7B%7D", "", nil), "unauthenticated", "UNAUTHENTICATED")
	want(t, "GET", r.send(t, http.MethodGet, getPoints+"?connect=v1&encoding=json&message=%7B%7D", r.ada, nil), "ok", "")
}

func search(t *testing.T, r *rig) {
	for _, token := range []string{r.ada, r.actAs, r.token(t, neighbour(victim), 0)} {
		want(t, "by no operator", r.call(t, token, searchOrders, &orderv1.SearchOrdersRequest{UserId: victim}), "permission_denied", "PERMISSION_DENIED")
	}
	newest := r.place(t, r.ada, "attack-search-1").Revision
	r.place(t, r.ada, "attack-search-2")
	page := func(token string) reply {
		return r.call(t, r.operator, searchOrders, &orderv1.SearchOrdersRequest{UserId: victim, PageSize: 1, PageToken: token, MinRevision: newest})
	}
	var first orderv1.SearchOrdersResponse
	token := r.firstToken(t, page, &first, first.GetNextPageToken)
	tampered(t, token, page)
	invalid := func(what string, request *orderv1.SearchOrdersRequest) {
		t.Helper()
		want(t, what, r.call(t, r.operator, searchOrders, request), "invalid_argument", "INVALID_ARGUMENT")
	}
	invalid("a token of another user", &orderv1.SearchOrdersRequest{UserId: attacker, PageToken: token})
	invalid("a token of another search", &orderv1.SearchOrdersRequest{PageToken: token})
	var list orderv1.ListOrdersResponse
	r.mustCall(t, r.operator, listOrders, &orderv1.ListOrdersRequest{UserId: victim, PageSize: 1}, &list)
	invalid("a token of a list", &orderv1.SearchOrdersRequest{UserId: victim, PageToken: list.NextPageToken})
	want(t, "a token of a search", r.call(t, r.operator, listOrders, &orderv1.ListOrdersRequest{UserId: victim, PageToken: token}), "invalid_argument", "INVALID_ARGUMENT")
	for _, name := range hostileNames {
		what := fmt.Sprintf(" %.20q", name)
		invalid("sku"+what, &orderv1.SearchOrdersRequest{Sku: name})
		invalid("campaign_id"+what, &orderv1.SearchOrdersRequest{CampaignId: name})
		invalid("user_id"+what, &orderv1.SearchOrdersRequest{UserId: name})
	}
	for _, size := range []int32{-1, 101, math.MaxInt32, math.MinInt32} {
		invalid(fmt.Sprintf("page of %d", size), &orderv1.SearchOrdersRequest{PageSize: size})
	}
	for _, at := range []*timestamppb.Timestamp{{Seconds: -1}, {Seconds: math.MaxInt64}, {Seconds: math.MinInt64}, {Seconds: 1, Nanos: -1}, {Seconds: 1, Nanos: 1e9}} {
		invalid(fmt.Sprintf("from %v", at), &orderv1.SearchOrdersRequest{PlacedFrom: at})
		invalid(fmt.Sprintf("to %v", at), &orderv1.SearchOrdersRequest{PlacedTo: at})
	}
	invalid("status 99", &orderv1.SearchOrdersRequest{Status: 99})
	invalid("payment 99", &orderv1.SearchOrdersRequest{PaymentState: 99})
	invalid("a lane that is none", &orderv1.SearchOrdersRequest{MinRevision: &typev1.Revision{Lane: 1023, Commit: 1}})
	invalid("a long wait", &orderv1.SearchOrdersRequest{WaitBudget: durationpb.New(math.MaxInt64)})
}

func stockWatches(t *testing.T, r *rig) {
	refused := func(what, token string, request *catalogv1.WatchStockRequest, code, reason string) {
		t.Helper()
		want(t, what, r.stream(t, token, watchStock, request), code, reason)
	}
	refused("without a token", "", &catalogv1.WatchStockRequest{Sku: sku}, "unauthenticated", "")
	for _, token := range []string{r.ada, r.actAs} {
		refused("by no operator", token, &catalogv1.WatchStockRequest{Sku: sku}, "permission_denied", "PERMISSION_DENIED")
	}
	for _, name := range append([]string{"", sku + "@sale"}, hostileNames...) {
		refused(fmt.Sprintf("sku %.20q", name), r.operator, &catalogv1.WatchStockRequest{Sku: name}, "invalid_argument", "INVALID_ARGUMENT")
	}
	for _, token := range []string{"x", "====", strings.Repeat("A", 600), "\x00", "AQ", strings.Repeat("A", 43)} {
		refused(fmt.Sprintf("resume_token %.20q", token), r.operator, &catalogv1.WatchStockRequest{Sku: sku, ResumeToken: token}, "invalid_argument", "INVALID_ARGUMENT")
	}
	refused("a lane that is none", r.operator, &catalogv1.WatchStockRequest{Sku: sku, MinRevision: &typev1.Revision{Lane: 1023, Commit: 1}}, "invalid_argument", "INVALID_ARGUMENT")
	refused("a long wait", r.operator, &catalogv1.WatchStockRequest{Sku: sku, WaitBudget: durationpb.New(math.MaxInt64)}, "invalid_argument", "INVALID_ARGUMENT")
}

func sales(t *testing.T, r *rig) {
	day := func(change func(*reportv1.GetSalesRequest)) *reportv1.GetSalesRequest {
		request := &reportv1.GetSalesRequest{From: &timestamppb.Timestamp{Seconds: 1}, To: &timestamppb.Timestamp{Seconds: 86_400}}
		if change != nil {
			change(request)
		}
		return request
	}
	want(t, "by an operator", r.call(t, r.operator, getSales, day(nil)), "ok", "")
	for _, token := range []string{r.ada, r.actAs} {
		want(t, "by no operator", r.call(t, token, getSales, day(nil)), "permission_denied", "PERMISSION_DENIED")
	}
	invalid := func(what string, change func(*reportv1.GetSalesRequest)) {
		t.Helper()
		want(t, what, r.call(t, r.operator, getSales, day(change)), "invalid_argument", "INVALID_ARGUMENT")
	}
	for _, name := range append([]string{sku + "@sale"}, hostileNames...) {
		invalid(fmt.Sprintf("sku %.20q", name), func(m *reportv1.GetSalesRequest) { m.Sku = name })
	}
	for _, at := range []*timestamppb.Timestamp{nil, {Seconds: -1}, {Seconds: math.MaxInt64}, {Seconds: math.MinInt64}, {Seconds: 1, Nanos: -1}, {Seconds: 1, Nanos: 1e9}} {
		invalid(fmt.Sprintf("from %v", at), func(m *reportv1.GetSalesRequest) { m.From = at })
		invalid(fmt.Sprintf("to %v", at), func(m *reportv1.GetSalesRequest) { m.To = at })
	}
	invalid("no time", func(m *reportv1.GetSalesRequest) { m.From = m.To })
	invalid("the end before the beginning", func(m *reportv1.GetSalesRequest) { m.From, m.To = m.To, m.From })
	invalid("all time", func(m *reportv1.GetSalesRequest) { m.To = &timestamppb.Timestamp{Seconds: 8_000_000_000} })
	invalid("step 99", func(m *reportv1.GetSalesRequest) { m.Step = 99 })
	invalid("a lane that is none", func(m *reportv1.GetSalesRequest) { m.MinRevision = &typev1.Revision{Lane: 1023, Commit: 1} })
	invalid("a long wait", func(m *reportv1.GetSalesRequest) { m.WaitBudget = durationpb.New(math.MaxInt64) })
}

func openServices(t *testing.T, r *rig) {
	got := r.send(t, http.MethodPost, "/grpc.health.v1.Health/Check", "", strings.NewReader("{}"), "Content-Type", "application/json")
	if got.code() != "ok" || !bytes.Contains(got.body, []byte("SERVING")) {
		t.Errorf("health: got %s", got)
	}
	got = r.send(t, http.MethodPost, "/grpc.health.v1.Health/Check", "", strings.NewReader(`{"service":"nobody"}`), "Content-Type", "application/json")
	want(t, "health of an unknown service", got, "not_found", "")
	for _, service := range []string{"grpc.health.v1.Health", orderv1connect.OrderServiceName, paymentv1connect.PaymentServiceName, catalogv1connect.CatalogServiceName, pointsv1connect.PointsServiceName} {
		if names := r.reflectionLists(t); !slices.Contains(names, service) {
			t.Errorf("reflection lists %v, want %s among them", names, service)
		}
	}
}
