package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
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

// A shop answers as a node would, from fixed answers, and remembers what it was asked.
type shop struct {
	url   string
	calls atomic.Int64
	token atomic.Value
	asked atomic.Pointer[proto.Message]
	// fail, when set, is the answer to everything.
	fail error
	// watched are the statuses that a watch sends before it waits for its caller to leave.
	watched []orderv1.OrderStatus
	// watchEnds makes a watch end after them.
	watchEnds bool
}

const testOrderID = "01K8ZC7Y3GQ9W2T4V6X8N0RB5M2"

func newShop(t *testing.T) *shop {
	t.Helper()
	s := &shop{}
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderServiceHandler(orderShop{s}))
	mux.Handle(paymentv1connect.NewPaymentServiceHandler(paymentShop{s}))
	mux.Handle(catalogv1connect.NewCatalogServiceHandler(catalogShop{s}))
	mux.Handle(campaignv1connect.NewCampaignServiceHandler(campaignShop{s}))
	mux.Handle(campaignv1connect.NewCouponServiceHandler(couponShop{s}))
	mux.Handle(pointsv1connect.NewPointsServiceHandler(pointsShop{s}))
	mux.Handle(reportv1connect.NewReportServiceHandler(reportShop{s}))
	mux.Handle(clusterv1connect.NewClusterServiceHandler(clusterShop{shop: s}))
	mux.Handle(userv1connect.NewUserServiceHandler(userShop{s}))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.calls.Add(1)
		s.token.Store(r.Header.Get("Authorization"))
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// ask records a question and returns the shop's failure, if it has one.
func (s *shop) ask(question proto.Message) error {
	s.asked.Store(&question)
	return s.fail
}

func (s *shop) order(status orderv1.OrderStatus) *orderv1.Order {
	return &orderv1.Order{
		OrderId: testOrderID, UserId: "alice", Status: status,
		Items: []*orderv1.OrderItem{{
			Sku: "tea", Quantity: 2, Title: "Sencha\x1b[31m", UnitPrice: &typev1.Money{CurrencyCode: "EUR", Units: 1299},
			Amount: &typev1.Money{CurrencyCode: "EUR", Units: 2598},
		}},
		Total:    &typev1.Money{CurrencyCode: "EUR", Units: 2598},
		PlacedAt: timestamppb.New(testTime), PayBy: timestamppb.New(testTime.Add(15 * time.Minute)), UpdateTime: timestamppb.New(testTime),
		Revision: &typev1.Revision{Commit: 42}, Note: "ring twice",
		ShippingAddress: &orderv1.ShippingAddress{
			Recipient: "Ada Lovelace", Lines: []string{"12 St James's Square"}, PostalCode: "SW1Y 4JH", City: "London", CountryCode: "GB",
		},
		Contact: &orderv1.Contact{Email: "ada@example.org"},
	}
}

var testFresh = &typev1.Freshness{State: typev1.Freshness_STATE_FRESH, Revision: &typev1.Revision{Commit: 43}, AsOf: timestamppb.New(testTime)}

type orderShop struct{ *shop }

func (s orderShop) PlaceOrder(_ context.Context, q *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
	return &orderv1.PlaceOrderResponse{Order: s.order(orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT), Revision: &typev1.Revision{Commit: 42}}, s.ask(q)
}

func (s orderShop) GetOrder(_ context.Context, q *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	return &orderv1.GetOrderResponse{Order: s.order(orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT), Freshness: testFresh}, s.ask(q)
}

func (s orderShop) ListOrders(_ context.Context, q *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	return &orderv1.ListOrdersResponse{
		Orders:        []*orderv1.Order{s.order(orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT), s.order(orderv1.OrderStatus_ORDER_STATUS_CANCELLED)},
		NextPageToken: "next", Freshness: testFresh,
	}, s.ask(q)
}

func (s orderShop) SearchOrders(_ context.Context, q *orderv1.SearchOrdersRequest) (*orderv1.SearchOrdersResponse, error) {
	return &orderv1.SearchOrdersResponse{
		Orders: []*orderv1.Order{s.order(orderv1.OrderStatus_ORDER_STATUS_PAID)}, NextPageToken: "next", Freshness: testFresh,
	}, s.ask(q)
}

func (s orderShop) CancelOrder(_ context.Context, q *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	return &orderv1.CancelOrderResponse{Order: s.order(orderv1.OrderStatus_ORDER_STATUS_CANCELLED), Revision: &typev1.Revision{Commit: 43}}, s.ask(q)
}

func (s orderShop) WatchOrder(ctx context.Context, q *orderv1.WatchOrderRequest, stream *connect.ServerStream[orderv1.WatchOrderResponse]) error {
	if err := s.ask(q); err != nil {
		return err
	}
	for _, status := range s.watched {
		if err := stream.Send(&orderv1.WatchOrderResponse{Order: s.order(status), Freshness: testFresh}); err != nil {
			return err
		}
	}
	if !s.watchEnds {
		<-ctx.Done()
	}
	return nil
}

func (s orderShop) WatchUserOrders(ctx context.Context, q *orderv1.WatchUserOrdersRequest, stream *connect.ServerStream[orderv1.WatchUserOrdersResponse]) error {
	if err := s.ask(q); err != nil {
		return err
	}
	for _, status := range s.watched {
		if err := stream.Send(&orderv1.WatchUserOrdersResponse{Order: s.order(status), Freshness: testFresh, ResumeToken: "resume"}); err != nil {
			return err
		}
	}
	if !s.watchEnds {
		<-ctx.Done()
	}
	return nil
}

type catalogShop struct{ *shop }

type campaignShop struct{ *shop }

func (s campaignShop) campaign() *campaignv1.Campaign {
	return &campaignv1.Campaign{
		CampaignId: "flash", Sku: "tea", Price: &typev1.Money{CurrencyCode: "EUR", Units: 499}, OpensAt: timestamppb.New(testTime),
		ClosesAt: timestamppb.New(testTime.Add(time.Hour)), UserUnitsMax: 2, Units: 1000, Remaining: 998, Reserved: 2,
		Revision: &typev1.Revision{Commit: 5},
	}
}

func (s campaignShop) PutCampaign(_ context.Context, q *campaignv1.PutCampaignRequest) (*campaignv1.PutCampaignResponse, error) {
	return &campaignv1.PutCampaignResponse{Campaign: s.campaign(), Revision: &typev1.Revision{Commit: 5}}, s.ask(q)
}

func (s campaignShop) GetCampaign(_ context.Context, q *campaignv1.GetCampaignRequest) (*campaignv1.GetCampaignResponse, error) {
	return &campaignv1.GetCampaignResponse{Campaign: s.campaign(), Freshness: testFresh}, s.ask(q)
}

func (s campaignShop) ListCampaigns(_ context.Context, q *campaignv1.ListCampaignsRequest) (*campaignv1.ListCampaignsResponse, error) {
	out := s.campaign()
	out.CampaignId, out.Remaining, out.SoldOut = "over", 0, true
	return &campaignv1.ListCampaignsResponse{Campaigns: []*campaignv1.Campaign{s.campaign(), out}, Freshness: testFresh}, s.ask(q)
}

type couponShop struct{ *shop }

func (s couponShop) coupon() *campaignv1.Coupon {
	return &campaignv1.Coupon{
		CouponCode: "WELCOME", Amount: &typev1.Money{CurrencyCode: "EUR", Units: 500}, UserUsesMax: 1, UsesMax: 1000, Remaining: 988, Redeemed: 12,
		Revision: &typev1.Revision{Commit: 6},
	}
}

func (s couponShop) PutCoupon(_ context.Context, q *campaignv1.PutCouponRequest) (*campaignv1.PutCouponResponse, error) {
	return &campaignv1.PutCouponResponse{Coupon: s.coupon(), Revision: &typev1.Revision{Commit: 6}}, s.ask(q)
}

func (s couponShop) GetCoupon(_ context.Context, q *campaignv1.GetCouponRequest) (*campaignv1.GetCouponResponse, error) {
	return &campaignv1.GetCouponResponse{Coupon: s.coupon(), Freshness: testFresh}, s.ask(q)
}

func (s couponShop) ListCoupons(_ context.Context, q *campaignv1.ListCouponsRequest) (*campaignv1.ListCouponsResponse, error) {
	share := &campaignv1.Coupon{CouponCode: "TEN", RateBps: 1050}
	return &campaignv1.ListCouponsResponse{Coupons: []*campaignv1.Coupon{share, s.coupon()}, Freshness: testFresh}, s.ask(q)
}

func (s catalogShop) product() *catalogv1.Product {
	return &catalogv1.Product{
		Sku: "tea", Title: "Sencha", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1299}, UpdateTime: timestamppb.New(testTime),
		Revision: &typev1.Revision{Commit: 3},
	}
}

func (s catalogShop) PutProduct(_ context.Context, q *catalogv1.PutProductRequest) (*catalogv1.PutProductResponse, error) {
	return &catalogv1.PutProductResponse{Product: s.product(), Revision: &typev1.Revision{Commit: 3}}, s.ask(q)
}

func (s catalogShop) GetProduct(_ context.Context, q *catalogv1.GetProductRequest) (*catalogv1.GetProductResponse, error) {
	return &catalogv1.GetProductResponse{Product: s.product(), Freshness: testFresh}, s.ask(q)
}

func (s catalogShop) ListProducts(_ context.Context, q *catalogv1.ListProductsRequest) (*catalogv1.ListProductsResponse, error) {
	return &catalogv1.ListProductsResponse{Products: []*catalogv1.Product{s.product()}, Freshness: testFresh}, s.ask(q)
}

func (s catalogShop) ReceiveStock(_ context.Context, q *catalogv1.ReceiveStockRequest) (*catalogv1.ReceiveStockResponse, error) {
	return &catalogv1.ReceiveStockResponse{Sku: q.GetSku(), Quantity: q.GetQuantity(), Received: 1100, Revision: &typev1.Revision{Commit: 4}}, s.ask(q)
}

func (s catalogShop) PreheatStock(_ context.Context, q *catalogv1.PreheatStockRequest) (*catalogv1.PreheatStockResponse, error) {
	return &catalogv1.PreheatStockResponse{Sku: q.GetSku(), UnitsPerLane: 250, Granted: 2000, Revision: &typev1.Revision{Commit: 5}}, s.ask(q)
}

func (s catalogShop) GetStock(_ context.Context, q *catalogv1.GetStockRequest) (*catalogv1.GetStockResponse, error) {
	return &catalogv1.GetStockResponse{Stock: &catalogv1.Stock{Sku: q.GetSku(), Received: 1100, Available: 1098, Reserved: 2}, Freshness: testFresh}, s.ask(q)
}

func (s catalogShop) WatchStock(ctx context.Context, q *catalogv1.WatchStockRequest, stream *connect.ServerStream[catalogv1.WatchStockResponse]) error {
	if err := s.ask(q); err != nil {
		return err
	}
	for reserved := range int64(len(s.watched)) {
		answer := &catalogv1.WatchStockResponse{
			Stock:     &catalogv1.Stock{Sku: q.GetSku(), Received: 1100, Central: 100, InTransit: 10, Available: 980 - reserved, Reserved: reserved, Sold: 10},
			Freshness: testFresh, ResumeToken: "resume",
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
	if !s.watchEnds {
		<-ctx.Done()
	}
	return nil
}

type pointsShop struct{ *shop }

func (s pointsShop) GetPoints(_ context.Context, q *pointsv1.GetPointsRequest) (*pointsv1.GetPointsResponse, error) {
	payment := testOrderID + "-p1"
	entries := []*pointsv1.PointsEntry{
		{Number: 2, Points: -12, Balance: 1238, Time: timestamppb.New(testTime.Add(time.Minute)), OrderId: testOrderID, PaymentId: payment, RefundId: payment + "-r1", Revision: &typev1.Revision{Commit: 44}},
		{Number: 1, Points: 1250, Balance: 1250, Time: timestamppb.New(testTime), OrderId: testOrderID, PaymentId: payment, Revision: &typev1.Revision{Commit: 42}},
	}
	answer := &pointsv1.GetPointsResponse{UserId: "alice", Balance: 1238, Entries: entries, Revision: entries[0].Revision, Freshness: testFresh}
	if q.GetPageSize() == 1 {
		answer.Entries, answer.NextPageToken = entries[:1], "next"
	}
	return answer, s.ask(q)
}

type reportShop struct{ *shop }

func (s reportShop) GetSales(_ context.Context, q *reportv1.GetSalesRequest) (*reportv1.GetSalesResponse, error) {
	count := func(orders int64) *reportv1.SalesCount {
		return &reportv1.SalesCount{Orders: orders, Units: 2 * orders, Amount: &typev1.Money{CurrencyCode: "EUR", Units: 2598 * orders}}
	}
	return &reportv1.GetSalesResponse{Freshness: testFresh, Sales: []*reportv1.Sales{{
		Start: timestamppb.New(testTime), Placed: count(1200), Paid: count(1000), Cancelled: count(50), Expired: count(150),
		Refunds: 1, Refunded: &typev1.Money{CurrencyCode: "EUR", Units: 2598},
	}}}, s.ask(q)
}

func (s reportShop) GetCampaignBoard(_ context.Context, q *reportv1.GetCampaignBoardRequest) (*reportv1.GetCampaignBoardResponse, error) {
	return &reportv1.GetCampaignBoardResponse{Freshness: testFresh, NextPageToken: "next", Rows: []*reportv1.CampaignRow{
		{
			CampaignId: "flash", Sku: "tea", OpensAt: timestamppb.New(testTime.Add(-time.Hour)), ClosesAt: timestamppb.New(testTime.Add(time.Hour)),
			Units: 1000, Reserved: 12, Sold: 988, Orders: 1100, GivenUpOrders: 100, Buyers: 995, UnitsPerMinute: 1200,
			FirstOrderTime: timestamppb.New(testTime.Add(-time.Minute)), SoldOutTime: timestamppb.New(testTime),
		},
		{CampaignId: "singles", Sku: "cup", Units: 5, Remaining: 5, OpensAt: timestamppb.New(testTime), ClosesAt: timestamppb.New(testTime.Add(time.Hour))},
	}}, s.ask(q)
}

type userShop struct{ *shop }

// ExportUser has two pages.
func (s userShop) ExportUser(_ context.Context, q *userv1.ExportUserRequest) (*userv1.ExportUserResponse, error) {
	details, err := structpb.NewStruct(map[string]any{"totalMinor": "2598"})
	if err != nil {
		return nil, err
	}
	page := &userv1.ExportUserResponse{UserId: "alice", Freshness: testFresh, Orders: []*userv1.ExportedOrder{{
		Order:  s.order(orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT),
		Events: []*userv1.ExportedEvent{{Type: "OrderPlaced", Time: timestamppb.New(testTime), Revision: &typev1.Revision{Commit: 42}, Details: details}},
	}}}
	if q.GetPageToken() == "" {
		page.NextPageToken = "next"
	}
	return page, s.ask(q)
}

func (s userShop) EraseUser(_ context.Context, q *userv1.EraseUserRequest) (*userv1.EraseUserResponse, error) {
	return &userv1.EraseUserResponse{UserId: q.GetUserId(), ErasedAt: timestamppb.New(testTime), Revision: &typev1.Revision{Commit: 44}}, s.ask(q)
}

// refusal makes an error as a node sends it.
func refusal(code connect.Code, message, reason string, facts map[string]string, retry time.Duration) error {
	err := connect.NewError(code, errors.New(message))
	info, detailErr := connect.NewErrorDetail(&errdetails.ErrorInfo{Domain: "weir", Reason: reason, Metadata: facts})
	if detailErr != nil {
		panic(detailErr)
	}
	err.AddDetail(info)
	if retry > 0 {
		detail, detailErr := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
		if detailErr != nil {
			panic(detailErr)
		}
		err.AddDetail(detail)
	}
	return err
}

func TestClientCommandsPrintWhatTheNodeAnswers(t *testing.T) {
	s := newShop(t)
	s.watched = []orderv1.OrderStatus{orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT, orderv1.OrderStatus_ORDER_STATUS_CANCELLED}
	env := []string{"WEIR_ADDR=" + s.url, "WEIR_TOKEN=t"}
	for _, c := range []struct {
		name string
		args string
	}{
		{"order_place", "order place tea=2 --request-id r1"},
		{"order_get", "order get " + testOrderID},
		{"order_list", "order list"},
		{"order_search", "order search --sku tea"},
		{"order_watch", "order watch --count 2 " + testOrderID},
		{"order_watch_user", "order watch --count 2 --user alice"},
		{"order_cancel", "order cancel --request-id r2 --reason x " + testOrderID},
		{"product_put", "product put --sku tea --title Sencha --price 12.99_EUR --request-id r3"},
		{"product_get", "product get tea"},
		{"product_list", "product list"},
		{"stock_receive", "stock receive --sku tea --quantity 100 --request-id r4"},
		{"stock_preheat", "stock preheat --sku tea --request-id r4"},
		{"stock_get", "stock get --sku tea"},
		{"stock_watch", "stock watch tea --count 2"},
		{"campaign_put", "campaign put flash --sku tea --price 12.99_EUR --units 1000 --opens now --closes +1h --request-id r5"},
		{"campaign_get", "campaign get flash"},
		{"campaign_list", "campaign list"},
		{"campaign_board", "campaign board --every 1ms --count 2"},
		{"coupon_put", "coupon put WELCOME --amount 12.99_EUR --request-id r6"},
		{"coupon_get", "coupon get WELCOME"},
		{"coupon_list", "coupon list"},
		{"sales", "sales --by hour"},
		{"points_get", "points get"},
		{"points_list", "points list"},
		{"user_export", "user export --user alice"},
		{"user_erase", "user erase --user alice --yes --request-id r5"},
	} {
		for _, format := range []string{"table", "json"} {
			t.Run(c.name+" "+format, func(t *testing.T) {
				args := append(strings.Fields(c.args), "-o", format)
				for i := range args {
					args[i] = strings.ReplaceAll(args[i], "12.99_EUR", "12.99 EUR")
				}
				r := weir(t, env, args...).want(t, exitOK)
				golden(t, fmt.Sprintf("output/%s.%s", c.name, format), r.stdout)
				if strings.Contains(r.stdout, "\x1b") {
					t.Fatal("an escape sequence got out although this is no terminal")
				}
				if format == "json" {
					for _, line := range strings.Split(strings.TrimSpace(r.stdout), "\n") {
						decode[map[string]any](t, line)
					}
				}
			})
		}
	}
}

func TestClientCommandsAskForWhatTheFlagsSay(t *testing.T) {
	s := newShop(t)
	s.watched = []orderv1.OrderStatus{orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT}
	min := &typev1.Revision{Lane: 1, Commit: 42}
	for _, c := range []struct {
		args []string
		want proto.Message
	}{
		{
			[]string{"order", "place", "tea=2", "cup", "--item", "pot=3", "--sku", "jar", "--quantity", "4", "--user", "bob", "--note", "n", "--request-id", "r"},
			&orderv1.PlaceOrderRequest{RequestId: "r", UserId: "bob", Note: "n", Items: []*orderv1.ItemRequest{
				{Sku: "tea", Quantity: 2},
				{Sku: "cup", Quantity: 1},
				{Sku: "pot", Quantity: 3},
				{Sku: "jar", Quantity: 4},
			}},
		},
		{
			[]string{
				"order", "place", "tea", "--request-id", "r", "--recipient", "Ada", "--line", "1 Street", "--line", "2nd floor",
				"--postal-code", "X1", "--city", "C", "--region", "R", "--country", "GB", "--email", "a@b", "--phone", "+1 2",
			},
			&orderv1.PlaceOrderRequest{
				RequestId: "r", Items: []*orderv1.ItemRequest{{Sku: "tea", Quantity: 1}},
				ShippingAddress: &orderv1.ShippingAddress{Recipient: "Ada", Lines: []string{"1 Street", "2nd floor"}, PostalCode: "X1", City: "C", Region: "R", CountryCode: "GB"},
				Contact:         &orderv1.Contact{Email: "a@b", Phone: "+1 2"},
			},
		},
		{
			[]string{"user", "erase", "--user", "bob", "--yes", "--request-id", "r"},
			&userv1.EraseUserRequest{RequestId: "r", UserId: "bob", ConfirmUserId: "bob"},
		},
		{
			[]string{"user", "export", "--user", "bob", "--min-revision", "1:42"},
			&userv1.ExportUserRequest{UserId: "bob", PageSize: 100, PageToken: "next", MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{
			[]string{"order", "get", testOrderID, "--min-revision", "1:42", "--wait", "2s"},
			&orderv1.GetOrderRequest{OrderId: testOrderID, MinRevision: min, WaitBudget: durationpb.New(2 * time.Second)},
		},
		{
			[]string{"order", "list", "--user", "bob", "--status", "PENDING_PAYMENT", "--page-size", "7", "--page-token", "x", "--min-revision", "1:42"},
			&orderv1.ListOrdersRequest{
				UserId: "bob", Status: orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT, PageSize: 7, PageToken: "x", MinRevision: min, WaitBudget: durationpb.New(time.Second),
			},
		},
		{
			[]string{"order", "get", testOrderID, "--as-of", "1:42"},
			&orderv1.GetOrderRequest{OrderId: testOrderID, AsOf: &orderv1.AsOf{Moment: &orderv1.AsOf_Revision{Revision: min}}},
		},
		{
			[]string{"order", "get", testOrderID, "--as-of", "2026-11-02T10:30:00.5+01:00"},
			&orderv1.GetOrderRequest{OrderId: testOrderID, AsOf: &orderv1.AsOf{Moment: &orderv1.AsOf_Time{Time: timestamppb.New(testTime.Add(time.Second / 2))}}},
		},
		{
			[]string{"order", "get", testOrderID, "--as-of", timeText(timestamppb.New(testTime))},
			&orderv1.GetOrderRequest{OrderId: testOrderID, AsOf: &orderv1.AsOf{Moment: &orderv1.AsOf_Time{Time: timestamppb.New(testTime)}}},
		},
		{
			[]string{"order", "get", testOrderID, "--as-of", "-1h30m"},
			&orderv1.GetOrderRequest{OrderId: testOrderID, AsOf: &orderv1.AsOf{Moment: &orderv1.AsOf_Time{Time: timestamppb.New(testTime.Add(-90 * time.Minute))}}},
		},
		{
			[]string{
				"order", "search", "--status", "paid", "--payment", "partially-refunded", "--sku", "tea", "--campaign", "flash", "--user", "bob",
				"--from", "-24h", "--to", "now", "--page-size", "7", "--page-token", "x", "--min-revision", "1:42",
			},
			&orderv1.SearchOrdersRequest{
				Status: orderv1.OrderStatus_ORDER_STATUS_PAID, PaymentState: orderv1.PaymentState_PAYMENT_STATE_PARTIALLY_REFUNDED,
				Sku: "tea", CampaignId: "flash", UserId: "bob", PlacedFrom: timestamppb.New(testTime.Add(-24 * time.Hour)), PlacedTo: timestamppb.New(testTime),
				PageSize: 7, PageToken: "x", MinRevision: min, WaitBudget: durationpb.New(time.Second),
			},
		},
		{[]string{"order", "search"}, &orderv1.SearchOrdersRequest{}},
		{
			[]string{"order", "watch", testOrderID, "--count", "1"},
			&orderv1.WatchOrderRequest{OrderId: testOrderID},
		},
		{
			[]string{"order", "watch", testOrderID, "--count", "1", "--after", "1:42", "--min-revision", "1:42"},
			&orderv1.WatchOrderRequest{OrderId: testOrderID, AfterRevision: min, MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{
			[]string{"order", "watch", "--count", "1"},
			&orderv1.WatchUserOrdersRequest{},
		},
		{
			[]string{"order", "watch", "--count", "1", "--user", "bob", "--resume", "t"},
			&orderv1.WatchUserOrdersRequest{UserId: "bob", ResumeToken: "t"},
		},
		{
			[]string{"order", "cancel", testOrderID, "--reason", "why", "--request-id", "r"},
			&orderv1.CancelOrderRequest{OrderId: testOrderID, Reason: "why", RequestId: "r"},
		},
		{
			[]string{"product", "put", "--sku", "tea", "--title", "Sencha", "--price", "1299 JPY", "--request-id", "r"},
			&catalogv1.PutProductRequest{RequestId: "r", Sku: "tea", Title: "Sencha", Price: &typev1.Money{CurrencyCode: "JPY", Units: 1299}},
		},
		{
			[]string{"order", "place", "tea", "--campaign", "flash", "--coupon", "TEN", "--request-id", "r"},
			&orderv1.PlaceOrderRequest{RequestId: "r", Items: []*orderv1.ItemRequest{{Sku: "tea", Quantity: 1}}, CampaignId: "flash", CouponCode: "TEN"},
		},
		{
			[]string{"product", "put", "--sku", "cup", "--title", "Cup", "--price", "19.00 EUR", "--tax", "5.5%", "--tax-included", "--request-id", "r"},
			&catalogv1.PutProductRequest{
				RequestId: "r", Sku: "cup", Title: "Cup", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1900}, TaxRateBps: 550, TaxIncluded: true,
			},
		},
		{
			[]string{
				"campaign", "put", "flash", "--sku", "tea", "--price", "4.99 EUR", "--units", "100", "--opens", "now", "--closes", "+5m",
				"--per-user", "2", "--per-order", "1", "--request-id", "r",
			},
			&campaignv1.PutCampaignRequest{
				RequestId: "r", CampaignId: "flash", Sku: "tea", Price: &typev1.Money{CurrencyCode: "EUR", Units: 499},
				OpensAt: timestamppb.New(testTime), ClosesAt: timestamppb.New(testTime.Add(5 * time.Minute)),
				UserUnitsMax: 2, OrderUnitsMax: 1, Units: 100,
			},
		},
		{
			[]string{"campaign", "get", "flash", "--sku", "tea", "--min-revision", "1:42"},
			&campaignv1.GetCampaignRequest{CampaignId: "flash", Sku: "tea", MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{
			[]string{"campaign", "list", "--page-size", "7", "--page-token", "x"},
			&campaignv1.ListCampaignsRequest{PageSize: 7, PageToken: "x"},
		},
		{
			[]string{
				"coupon", "put", "WELCOME", "--amount", "5.00 EUR", "--min", "20.00 EUR", "--from", "now", "--until", "2026-12-01T00:00:00Z",
				"--per-user", "1", "--limit", "1000", "--request-id", "r",
			},
			&campaignv1.PutCouponRequest{
				RequestId: "r", CouponCode: "WELCOME", Amount: &typev1.Money{CurrencyCode: "EUR", Units: 500},
				MinSubtotal: &typev1.Money{CurrencyCode: "EUR", Units: 2000}, ValidFrom: timestamppb.New(testTime),
				ValidUntil: timestamppb.New(time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)), UserUsesMax: 1, UsesMax: 1000,
			},
		},
		{
			[]string{"coupon", "put", "TEN", "--rate", "10%", "--request-id", "r"},
			&campaignv1.PutCouponRequest{RequestId: "r", CouponCode: "TEN", RateBps: 1000},
		},
		{
			[]string{"campaign", "board", "flash", "--page-size", "7", "--page-token", "x", "--min-revision", "1:42"},
			&reportv1.GetCampaignBoardRequest{CampaignId: "flash", PageSize: 7, PageToken: "x", MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{[]string{"campaign", "board"}, &reportv1.GetCampaignBoardRequest{}},
		{[]string{"coupon", "get", "TEN"}, &campaignv1.GetCouponRequest{CouponCode: "TEN"}},
		{[]string{"coupon", "list"}, &campaignv1.ListCouponsRequest{}},
		{[]string{"coupon", "list", "--page-size", "5", "--page-token", "t"}, &campaignv1.ListCouponsRequest{PageSize: 5, PageToken: "t"}},
		{[]string{"campaign", "list", "--page-size", "5", "--page-token", "t"}, &campaignv1.ListCampaignsRequest{PageSize: 5, PageToken: "t"}},
		{
			[]string{"points", "get", "--user", "bob", "--min-revision", "1:42", "--wait", "3s"},
			&pointsv1.GetPointsRequest{UserId: "bob", PageSize: 1, MinRevision: min, WaitBudget: durationpb.New(3 * time.Second)},
		},
		{[]string{"points", "get"}, &pointsv1.GetPointsRequest{PageSize: 1}},
		{
			[]string{"points", "list", "--user", "bob", "--page-size", "5", "--page-token", "t", "--min-revision", "1:42", "--wait", "3s"},
			&pointsv1.GetPointsRequest{UserId: "bob", PageSize: 5, PageToken: "t", MinRevision: min, WaitBudget: durationpb.New(3 * time.Second)},
		},
		{[]string{"points", "list"}, &pointsv1.GetPointsRequest{}},
		{
			[]string{"sales", "--sku", "tea", "--by", "day", "--from", "-48h", "--to", "-24h", "--min-revision", "1:42"},
			&reportv1.GetSalesRequest{
				Sku: "tea", Step: reportv1.SalesStep_SALES_STEP_DAY, From: timestamppb.New(testTime.Add(-48 * time.Hour)), To: timestamppb.New(testTime.Add(-24 * time.Hour)),
				MinRevision: min, WaitBudget: durationpb.New(time.Second),
			},
		},
		{
			[]string{"sales"},
			&reportv1.GetSalesRequest{
				Step: reportv1.SalesStep_SALES_STEP_MINUTE, From: timestamppb.New(testTime.Add(-time.Hour)), To: timestamppb.New(testTime),
			},
		},
		{
			[]string{"stock", "receive", "--sku", "tea", "--quantity", "5", "--request-id", "r"},
			&catalogv1.ReceiveStockRequest{RequestId: "r", Sku: "tea", Quantity: 5},
		},
		{
			[]string{"stock", "preheat", "--sku", "tea", "--units", "5", "--request-id", "r"},
			&catalogv1.PreheatStockRequest{RequestId: "r", Sku: "tea", UnitsPerLane: 5},
		},
		{
			[]string{"stock", "get", "tea", "--min-revision", "1:42"},
			&catalogv1.GetStockRequest{Sku: "tea", MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{
			[]string{"stock", "watch", "tea", "--count", "1", "--resume", "t", "--min-revision", "1:42"},
			&catalogv1.WatchStockRequest{Sku: "tea", ResumeToken: "t", MinRevision: min, WaitBudget: durationpb.New(time.Second)},
		},
		{[]string{"stock", "watch", "--sku", "tea", "--count", "1"}, &catalogv1.WatchStockRequest{Sku: "tea"}},
	} {
		weir(t, []string{"WEIR_ADDR=" + s.url}, c.args...).want(t, exitOK)
		if got := *s.asked.Load(); !proto.Equal(got, c.want) {
			t.Errorf("weir %s\ngot  %v\nwant %v", strings.Join(c.args, " "), got, c.want)
		}
	}
}

func TestBadArgumentsAreRefusedWithoutACall(t *testing.T) {
	s := newShop(t)
	for _, c := range []struct{ args, want string }{
		{"order place", "nothing to order"},
		{"order place tea=two", "is not a number of units"},
		{"order place tea --quantity 2", "--quantity needs --sku"},
		{"order get", "needs ORDER_ID"},
		{"order get a b", `does not know what to do with "b"`},
		{"order get a --min-revision 42", "is not LANE:COMMIT"},
		{"order get a --min-revision x:1", "is not LANE:COMMIT"},
		{"order list --status pending", "is unknown"},
		{"order get a --as-of yesterday", "is neither a time nor LANE:COMMIT"},
		{"order get a --as-of --5m", "is neither a time nor LANE:COMMIT"},
		{"order get a --as-of x:1", "is neither a time nor LANE:COMMIT"},
		{"order search --payment none", "is unknown"},
		{"order search --status pending", "is unknown"},
		{"order search --from yesterday", "--from \"yesterday\" is not a time"},
		{"order search --to +5m", "--to \"+5m\" is not a time"},
		{"order watch a --count -1", "--count must not be negative"},
		{"order watch --count -1", "--count must not be negative"},
		{"order watch a b", `does not know what to do with "b"`},
		{"order watch a --after 42", "--after \"42\" is not LANE:COMMIT"},
		{"order watch a --user bob", "--user and --resume do not go with ORDER_ID"},
		{"order watch a --resume t", "--user and --resume do not go with ORDER_ID"},
		{"order watch --after 0:1", "--after and --min-revision need ORDER_ID"},
		{"order watch --min-revision 0:1", "--after and --min-revision need ORDER_ID"},
		{"product put --sku a --title b --price 12", "--price"},
		{"product put --sku a", "needs --title, --price"},
		{"product get", "which SKU?"},
		{"product get a --sku b", "give one of them"},
		{"stock receive --sku a", "needs --quantity"},
		{"stock preheat", "needs --sku"},
		{"stock watch", "which SKU?"},
		{"stock watch a --count -1", "--count must not be negative"},
		{"product put --sku a --title b --price 1 --tax 19", "--price"},
		{"campaign put c --sku a", "needs --price, --units, --opens, --closes"},
		{"campaign get", "needs CAMPAIGN"},
		{"campaign board a b", `does not know what to do with "b"`},
		{"campaign board --every -1s", "--every must not be negative"},
		{"campaign board --count 2", "--count needs --every"},
		{"campaign board --every 1s --count -2", "--count must not be negative"},
		{"coupon put", "needs CODE"},
		{"coupon put C", "either an amount or a share"},
		{"coupon put C --amount 5 --rate 10%", "either an amount or a share"},
		{"coupon put C --amount 5", "--amount"},
		{"coupon put C --rate 10", "is not a percentage"},
		{"coupon put C --rate 101%", "is not a percentage"},
		{"coupon put C --rate -1%", "is not a percentage"},
		{"coupon put C --rate 1.234%", "is not a percentage"},
		{"coupon put C --rate 1e1%", "is not a percentage"},
		{"coupon put C --rate 10% --until tomorrow", "is not a time"},
		{"coupon put C --rate 10% --until +5", "is not a time"},
		{"sales --by week", "--by \"week\" is unknown"},
		{"sales --from yesterday", "is not a time"},
		{"sales --to yesterday", "is not a time"},
		{"order list --timeout 0s", "--timeout must be more than 0"},
	} {
		wantText(t, weir(t, []string{"WEIR_ADDR=" + s.url}, strings.Fields(c.args)...).want(t, exitUsage).stderr, c.want)
	}
	for _, addr := range []string{"localhost:8080", "ftp://x", "http://", "http://user:pw@x", "nats://x"} {
		wantText(t, weir(t, nil, "order", "list", "--addr", addr).want(t, exitUsage).stderr, "is not the address of a node")
	}
	if calls := s.calls.Load(); calls != 0 {
		t.Fatalf("%d calls were made", calls)
	}
}

func TestARequestIDIsMadeUpAndPrinted(t *testing.T) {
	s := newShop(t)
	env := []string{"WEIR_ADDR=" + s.url}
	text := weir(t, env, "order", "place", "tea").want(t, exitOK).stdout
	first := (*s.asked.Load()).(*orderv1.PlaceOrderRequest).GetRequestId()
	wantText(t, text, first)
	answer := decode[map[string]any](t, weir(t, env, "order", "place", "tea", "-o", "json").want(t, exitOK).stdout)
	second := (*s.asked.Load()).(*orderv1.PlaceOrderRequest).GetRequestId()
	if answer["requestId"] != second || first == second || len(first) > 64 {
		t.Fatalf("made up %q and %q, printed %v", first, second, answer["requestId"])
	}
	s.fail = refusal(connect.CodeUnavailable, "the lane is opening", "LANE_UNAVAILABLE", nil, time.Second)
	r := weir(t, env, "order", "place", "tea").want(t, exitUnavailable)
	wantText(t, r.stderr, "repeat with --request-id "+(*s.asked.Load()).(*orderv1.PlaceOrderRequest).GetRequestId())
}

func TestARefusalIsPrintedWithReasonFactsAndWhatToDo(t *testing.T) {
	s := newShop(t)
	env := []string{"WEIR_ADDR=" + s.url}
	s.fail = refusal(connect.CodeFailedPrecondition, "1 unit of tea is free, 3 are wanted", "OUT_OF_STOCK", map[string]string{"sku": "tea", "free": "1"}, 0)
	r := weir(t, env, "order", "place", "tea=3").want(t, exitRefused)
	if want := "weir: place order: 1 unit of tea is free, 3 are wanted (OUT_OF_STOCK)\n  free: 1\n  sku: tea\n  next: " + mustReason(t, "OUT_OF_STOCK").next + "\n"; r.stderr != want || r.stdout != "" {
		t.Fatalf("got:\n%s\nwant:\n%s", r.stderr, want)
	}
	s.fail = refusal(connect.CodeResourceExhausted, "too much to do", "QUEUE_FULL", nil, 250*time.Millisecond)
	wantText(t, weir(t, env, "order", "place", "tea=3", "--request-id", "r").want(t, exitUnavailable).stderr, "retry after: 250ms")
	j := decode[jsonProblem](t, weir(t, env, "order", "place", "tea=3", "-o", "json").want(t, exitUnavailable).stderr)
	if j.Error.Exit != int(exitUnavailable) || j.Error.Reason != "QUEUE_FULL" || j.Error.RetryAfter != "250ms" {
		t.Fatalf("got %+v", j)
	}
}

func mustReason(t *testing.T, name string) reason {
	t.Helper()
	r, ok := reasonNamed(name)
	if !ok {
		t.Fatalf("%s is not in the list of reasons", name)
	}
	return r
}

func TestEveryReasonHasItsExitCode(t *testing.T) {
	s := newShop(t)
	for _, r := range reasons {
		s.fail = refusal(r.code, "it says why", r.name, nil, 0)
		got := weir(t, []string{"WEIR_ADDR=" + s.url}, "order", "get", testOrderID).want(t, exitOfCode(r.code))
		wantText(t, got.stderr, "it says why ("+r.name+")")
	}
}

func TestEveryConnectCodeHasItsExitCode(t *testing.T) {
	want := map[connect.Code]exitCode{
		connect.CodeInvalidArgument: exitUsage, connect.CodeOutOfRange: exitUsage,
		connect.CodeFailedPrecondition: exitRefused, connect.CodeAlreadyExists: exitRefused,
		connect.CodeNotFound:    exitNotFound,
		connect.CodeUnavailable: exitUnavailable, connect.CodeAborted: exitUnavailable, connect.CodeResourceExhausted: exitUnavailable, connect.CodeDeadlineExceeded: exitUnavailable,
		connect.CodeUnauthenticated: exitPermission, connect.CodePermissionDenied: exitPermission,
		connect.CodeInternal: exitFailure, connect.CodeUnknown: exitFailure, connect.CodeUnimplemented: exitFailure, connect.CodeDataLoss: exitFailure,
	}
	for code, exit := range want {
		if got := exitOfCode(code); got != exit {
			t.Errorf("%s exits with %d, want %d", code, got, exit)
		}
	}
}

func TestNoNodeAtTheAddressIsSaidSo(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	addr := server.URL
	wantText(t, weir(t, nil, "order", "list", "--addr", addr).stderr, "does not answer as a weir node does")
	server.Close()
	r := weir(t, nil, "order", "list", "--addr", addr).want(t, exitUnavailable)
	wantText(t, r.stderr, "no node answers at "+addr, "weir dev")
}

func TestACallEndsWithItsTimeout(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	r := weir(t, nil, "order", "list", "--addr", server.URL, "--timeout", "20ms").want(t, exitUnavailable)
	wantText(t, r.stderr, "no answer from "+server.URL+" within 20ms")
}

func TestAWatchEndsWithTheInterrupt(t *testing.T) {
	s := newShop(t)
	s.watched = []orderv1.OrderStatus{orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT}
	ctx, cancel := context.WithCancelCause(t.Context())
	printed := make(chan struct{})
	ended := make(chan result, 1)
	go func() {
		p := &process{stdout: &notifyWriter{notify: printed}, stderr: &strings.Builder{}, environ: []string{"WEIR_ADDR=" + s.url}, now: time.Now}
		ended <- result{code: p.execute(ctx, []string{"order", "watch", testOrderID})}
	}()
	<-printed
	cancel(errInterrupted)
	if r := <-ended; r.code != exitOK {
		t.Fatalf("exit code %d, want 0", r.code)
	}
}

// notifyWriter closes notify at the first write.
type notifyWriter struct {
	notify chan struct{}
	once   atomic.Bool
}

func (w *notifyWriter) Write(data []byte) (int, error) {
	if !w.once.Swap(true) {
		close(w.notify)
	}
	return len(data), nil
}

func TestAWatchThatTheNodeEndsIsNoSuccess(t *testing.T) {
	s := newShop(t)
	s.watchEnds = true
	for _, args := range [][]string{
		{"order", "watch", testOrderID}, {"order", "watch", testOrderID, "--after", "0:1"}, {"order", "watch", "--user", "bob"}, {"stock", "watch", "tea"},
	} {
		r := weir(t, []string{"WEIR_ADDR=" + s.url}, args...).want(t, exitUnavailable)
		wantText(t, r.stderr, "the node ended the watch", "watch again")
	}
}

func TestAFreshnessIsSaidInWords(t *testing.T) {
	for state, want := range map[typev1.Freshness_State]string{
		typev1.Freshness_STATE_FRESH:       "fresh as of 0:43",
		typev1.Freshness_STATE_CATCHING_UP: "catching up, 3 commits behind; as of 0:43, 2026-11-02 09:30:00.000Z",
		typev1.Freshness_STATE_REBUILDING:  "as of 0:43, while a new generation of the view is built",
		typev1.Freshness_STATE_PARKED:      "parked as of 0:43: a change of it could not be applied and waits for replay",
	} {
		f := proto.Clone(testFresh).(*typev1.Freshness)
		f.State, f.LagCommits = state, 3
		if got := freshnessText(f); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestTheReasonsAreThoseThatTheAPISends(t *testing.T) {
	documented := map[string]string{}
	for _, file := range []string{"../../api/REASONS.md", "../../gateway/REASONS.md"} {
		document, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		rows := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| ([a-z_]+) \\|").FindAllStringSubmatch(string(document), -1)
		if len(rows) < 10 {
			t.Fatalf("found %d reasons in %s: its table was not read", len(rows), file)
		}
		for _, row := range rows {
			if r, ok := reasonNamed(row[1]); !ok || r.code.String() != row[2] {
				t.Errorf("%s (%s) is in %s, and here it is %q", row[1], row[2], file, r.code)
			}
			documented[row[1]] = row[2]
		}
	}
	for _, r := range reasons {
		if documented[r.name] == "" {
			t.Errorf("%s is in no REASONS.md", r.name)
		}
	}
}
