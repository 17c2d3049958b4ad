package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	"github.com/weirhq/weir/proto/weir/points/v1/pointsv1connect"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// transports are the protocols that a client may speak.
var transports = map[string][]connect.ClientOption{
	"Connect binary":   nil,
	"Connect JSON":     {connect.WithProtoJSON()},
	"Connect GET":      {connect.WithHTTPGet()},
	"Connect gzip":     {connect.WithSendGzip()},
	"gRPC":             {connect.WithGRPC()},
	"gRPC-Web":         {connect.WithGRPCWeb()},
	"gRPC-Web JSON":    {connect.WithGRPCWeb(), connect.WithProtoJSON()},
	"Connect GET JSON": {connect.WithHTTPGet(), connect.WithProtoJSON()},
}

// bearer sends a token with every call.
type bearer struct {
	next  http.RoundTripper
	token string
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

type client struct {
	orderv1connect.OrderServiceClient
	paymentv1connect.PaymentServiceClient
	catalogv1connect.CatalogServiceClient
	campaignv1connect.CampaignServiceClient
	campaignv1connect.CouponServiceClient
	pointsv1connect.PointsServiceClient
	reportv1connect.ReportServiceClient
}

// client returns a client over HTTP/2, which every protocol can speak.
func (n *node) client(subject string, scopes identity.Scopes, options ...connect.ClientOption) client {
	n.t.Helper()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	n.t.Cleanup(transport.CloseIdleConnections)
	httpClient := &http.Client{Transport: bearer{transport, n.token(subject, scopes)}}
	return client{
		orderv1connect.NewOrderServiceClient(httpClient, n.url, options...),
		paymentv1connect.NewPaymentServiceClient(httpClient, n.url, options...),
		catalogv1connect.NewCatalogServiceClient(httpClient, n.url, options...),
		campaignv1connect.NewCampaignServiceClient(httpClient, n.url, options...),
		campaignv1connect.NewCouponServiceClient(httpClient, n.url, options...),
		pointsv1connect.NewPointsServiceClient(httpClient, n.url, options...),
		reportv1connect.NewReportServiceClient(httpClient, n.url, options...),
	}
}

// stock puts a product of 1299 minor units and 100 units of it.
func (n *node) stock(skus ...string) {
	n.t.Helper()
	operator := n.client("operator", identity.ScopeOperator)
	for _, sku := range skus {
		if _, err := operator.PutProduct(n.t.Context(), &catalogv1.PutProductRequest{
			Sku: sku, Title: "A " + sku, Price: &typev1.Money{CurrencyCode: "EUR", Units: 1299},
		}); err != nil {
			n.t.Fatal(err)
		}
		if _, err := operator.ReceiveStock(n.t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "stock-" + sku, Sku: sku, Quantity: 100}); err != nil {
			n.t.Fatal(err)
		}
	}
}

func request(id string, pairs ...any) *orderv1.PlaceOrderRequest {
	m := &orderv1.PlaceOrderRequest{RequestId: id}
	for i := 0; i < len(pairs); i += 2 {
		m.Items = append(m.Items, &orderv1.ItemRequest{Sku: pairs[i].(string), Quantity: int64(pairs[i+1].(int))})
	}
	return m
}

// must returns the value or ends the test.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// wantError checks an error's code and reason, and returns its ErrorInfo.
func wantError(t *testing.T, what string, err error, code connect.Code, reason api.Reason) *errdetails.ErrorInfo {
	t.Helper()
	var connectErr *connect.Error
	if !errors.As(err, &connectErr) || connectErr.Code() != code {
		t.Errorf("%s: got %v, want %s %s", what, err, code, reason)
		return nil
	}
	for _, detail := range connectErr.Details() {
		if value, err := detail.Value(); err == nil {
			if info, ok := value.(*errdetails.ErrorInfo); ok {
				if info.Reason != string(reason) || info.Domain != api.ErrorDomain {
					t.Errorf("%s: got %v, want %s", what, info, reason)
				}
				return info
			}
		}
	}
	t.Errorf("%s: %v has no ErrorInfo, want %s", what, err, reason)
	return nil
}

func TestOrderIsPlacedReadListedCancelledOverEveryProtocol(t *testing.T) {
	n := serve(t, nil)
	n.stock("a", "b")
	for name, options := range transports {
		t.Run(name, func(t *testing.T) {
			user := strings.ReplaceAll(strings.ToLower(name), " ", "-")
			ada := n.client(user, 0, options...)
			ask := request("r1", "a", 2, "b", 1)
			ask.Note = "at the back door"
			placed := must(ada.PlaceOrder(t.Context(), ask))(t)
			order := placed.Order
			if order.UserId != user || order.Total.Units != 3*1299 || order.Total.CurrencyCode != "EUR" || order.Note != ask.Note ||
				order.Status != orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT || len(order.Items) != 2 ||
				order.Items[0].Amount.Units != 2598 || order.Items[0].UnitPrice.Units != 1299 || order.Items[0].Title != "A a" || order.Items[1].Sku != "b" ||
				!order.PayBy.AsTime().After(order.PlacedAt.AsTime()) || !proto.Equal(placed.Revision, order.Revision) {
				t.Fatalf("placed %v", placed)
			}
			got := must(ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: order.OrderId, MinRevision: placed.Revision}))(t)
			if !proto.Equal(got.Order, order) || got.Freshness.State != typev1.Freshness_STATE_FRESH {
				t.Errorf("got %v, want %v", got, order)
			}
			list := must(ada.ListOrders(t.Context(), &orderv1.ListOrdersRequest{}))(t)
			if len(list.Orders) != 1 || !proto.Equal(list.Orders[0], order) || list.NextPageToken != "" {
				t.Errorf("listed %v, want %v", list, order)
			}
			cancelled := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "r2", OrderId: order.OrderId, Reason: "too late"}))(t)
			if cancelled.Order.Status != orderv1.OrderStatus_ORDER_STATUS_CANCELLED || cancelled.Order.CancelReason != "too late" ||
				cancelled.Order.Note != ask.Note || cancelled.Revision.Commit <= placed.Revision.Commit {
				t.Errorf("cancelled %v", cancelled)
			}
			// Once more: nothing changes, and it succeeds.
			again := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "r3", OrderId: order.OrderId}))(t)
			if !proto.Equal(again.Order, cancelled.Order) {
				t.Errorf("cancelled again %v, want %v", again.Order, cancelled.Order)
			}
			_, err := ada.PlaceOrder(t.Context(), request("r4", "a", 1000))
			info := wantError(t, "more than there are", err, connect.CodeFailedPrecondition, api.ReasonOutOfStock)
			if info.GetMetadata()["want"] != "1000" || info.GetMetadata()["sku"] != "a" {
				t.Errorf("facts: got %v", info.GetMetadata())
			}
			_, err = ada.PlaceOrder(t.Context(), request("r5", "nothing", 1))
			wantError(t, "unknown product", err, connect.CodeFailedPrecondition, api.ReasonUnknownProduct)
			_, err = ada.PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{})
			wantError(t, "empty request", err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
			stream := must(ada.WatchOrder(t.Context(), &orderv1.WatchOrderRequest{OrderId: order.OrderId}))(t)
			if !stream.Receive() || !proto.Equal(stream.Msg().Order, cancelled.Order) {
				t.Errorf("watched %v, %v", stream.Msg(), stream.Err())
			}
			_ = stream.Close()
		})
	}
}

// post sends a request over HTTP/1.1 and returns the reply's body.
func (n *node) post(t *testing.T, procedure, token, contentType string, body []byte, headers ...string) (int, http.Header, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url+procedure, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, data
}

func TestRepeatedRequestIsAnsweredByteForByteAfterTheOrderChanged(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	ask := request("r1", "a", 1)
	ask.Note = "at the back door"
	binary := must(proto.Marshal(ask))(t)
	json := must(protojson.Marshal(ask))(t)
	token := n.token("ada", 0)
	first := map[string][]byte{}
	for _, round := range []string{"first", "again", "after it was cancelled"} {
		if round == "after it was cancelled" {
			var placed orderv1.PlaceOrderResponse
			if err := proto.Unmarshal(first["application/proto"], &placed); err != nil {
				t.Fatal(err)
			}
			must(n.client("ada", 0).CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "r2", OrderId: placed.Order.OrderId}))(t)
		}
		for contentType, body := range map[string][]byte{"application/proto": binary, "application/json": json} {
			status, _, got := n.post(t, orderv1connect.OrderServicePlaceOrderProcedure, token, contentType, body)
			if first[contentType] == nil {
				first[contentType] = got
			}
			if status != http.StatusOK || !bytes.Equal(got, first[contentType]) {
				t.Errorf("%s, %s: got %d %q, want %q", round, contentType, status, got, first[contentType])
			}
		}
	}
	if n.submitted() == 0 || n.head() != 4 { // A product, its stock, an order, its end.
		t.Errorf("the log has %d commits, want 4", n.head())
	}
}

type brokenSealer struct{ error }

func (b brokenSealer) Seal(context.Context, string, []byte) ([]byte, error) { return nil, b.error }
func (b brokenSealer) Open(context.Context, string, []byte) ([]byte, error) { return nil, b.error }

func (b brokenSealer) MAC(context.Context, string, []byte) ([32]byte, error) {
	return [32]byte{}, b.error
}
func (b brokenSealer) Key(context.Context, string) (sealing.KeyID, error)   { return 0, b.error }
func (b brokenSealer) Destroy(context.Context, string, sealing.KeyID) error { return b.error }

func TestKeysOutOfReachRefuseNotesAndNothingElse(t *testing.T) {
	n := serve(t, func(o *api.Options) { o.Sealer = brokenSealer{errors.New("no quorum at 10.0.0.1")} })
	n.stock("a")
	ada := n.client("ada", 0)
	must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t)
	ask := request("r2", "a", 1)
	ask.Note = "hello"
	head := n.head()
	_, err := ada.PlaceOrder(t.Context(), ask)
	wantError(t, "a note", err, connect.CodeUnavailable, api.ReasonKeysUnavailable)
	if strings.Contains(err.Error(), "10.0.0.1") || n.head() != head {
		t.Errorf("got %v, head %d, want no cause and head %d", err, n.head(), head)
	}
}

func TestBackendActsForUsersAndOperatorForAll(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	for i, scopes := range []identity.Scopes{identity.ScopeActAs, identity.ScopeOperator} {
		trusted := n.client("shop", scopes)
		ask := request(fmt.Sprintf("r%d", i), "a", 1)
		ask.UserId = "ada"
		placed := must(trusted.PlaceOrder(t.Context(), ask))(t)
		if placed.Order.UserId != "ada" || n.lastRequest.UserID != "ada" || n.lastRequest.Partition != eventstore.PartitionOf("ada") {
			t.Errorf("%s: placed %v for %+v", scopes, placed, n.lastRequest)
		}
		must(n.client("ada", 0).GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId}))(t)
		must(trusted.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId}))(t)
		if list := must(trusted.ListOrders(t.Context(), &orderv1.ListOrdersRequest{UserId: "ada"}))(t); len(list.Orders) != i+1 {
			t.Errorf("%s: listed %d orders, want %d", scopes, len(list.Orders), i+1)
		}
		must(trusted.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: fmt.Sprintf("c%d", i), OrderId: placed.Order.OrderId}))(t)
		if n.lastRequest.Owner != "" || n.lastRequest.Command.(domain.CancelOrder).By != "shop" {
			t.Errorf("%s: cancelled with %+v", scopes, n.lastRequest)
		}
	}
	ada := n.client("ada", 0)
	placed := must(ada.PlaceOrder(t.Context(), request("own", "a", 1)))(t)
	must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c", OrderId: placed.Order.OrderId}))(t)
	if n.lastRequest.Owner != "ada" {
		t.Errorf("a customer's cancel is not kept to their own orders: %+v", n.lastRequest)
	}
}

func TestCatalogueIsKeptAndRead(t *testing.T) {
	n := serve(t, nil)
	for name, options := range transports {
		operator := n.client("boss", identity.ScopeOperator, options...)
		sku := strings.ReplaceAll(name, " ", "-")
		put := must(operator.PutProduct(t.Context(), &catalogv1.PutProductRequest{Sku: sku, Title: "A thing", Price: &typev1.Money{CurrencyCode: "JPY", Units: 500}}))(t)
		if put.Product.Sku != sku || put.Product.Price.Units != 500 || !proto.Equal(put.Revision, put.Product.Revision) {
			t.Errorf("%s: put %v", name, put)
		}
		again := must(operator.PutProduct(t.Context(), &catalogv1.PutProductRequest{Sku: sku, Title: "A thing", Price: &typev1.Money{CurrencyCode: "JPY", Units: 500}}))(t)
		if !proto.Equal(again, put) {
			t.Errorf("%s: put again %v, want %v", name, again, put)
		}
		for range 2 {
			received := must(operator.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "r-" + sku, Sku: sku, Quantity: 7}))(t)
			if received.Sku != sku || received.Quantity != 7 || received.Received != 7 || received.Revision.Commit == 0 {
				t.Errorf("%s: received %v", name, received)
			}
		}
		for range 2 {
			preheated := must(operator.PreheatStock(t.Context(), &catalogv1.PreheatStockRequest{RequestId: "p-" + sku, Sku: sku, UnitsPerLane: 1}))(t)
			if preheated.Sku != sku || preheated.UnitsPerLane != 1 || preheated.Granted < 1 || preheated.Revision.Commit == 0 {
				t.Errorf("%s: preheated %v", name, preheated)
			}
		}
		_, err := operator.PreheatStock(t.Context(), &catalogv1.PreheatStockRequest{RequestId: "q-" + sku, Sku: sku, UnitsPerLane: 100})
		wantError(t, name, err, connect.CodeFailedPrecondition, api.ReasonOutOfStock)
		got := must(operator.GetProduct(t.Context(), &catalogv1.GetProductRequest{Sku: sku, MinRevision: put.Revision}))(t)
		if !proto.Equal(got.Product, put.Product) {
			t.Errorf("%s: got %v, want %v", name, got.Product, put.Product)
		}
		stock := must(operator.GetStock(t.Context(), &catalogv1.GetStockRequest{Sku: sku}))(t).Stock
		if stock.Received != 7 || stock.Central+stock.Available != 7 {
			t.Errorf("%s: stock %v", name, stock)
		}
		for what, call := range map[string]func() error{
			"GetProduct": func() error {
				_, err := operator.GetProduct(t.Context(), &catalogv1.GetProductRequest{Sku: "none"})
				return err
			},
			"GetStock": func() error {
				_, err := operator.GetStock(t.Context(), &catalogv1.GetStockRequest{Sku: "none"})
				return err
			},
		} {
			wantError(t, name+" "+what, call(), connect.CodeNotFound, api.ReasonProductNotFound)
		}
		_, err = operator.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "r", Sku: "none", Quantity: 1})
		wantError(t, name, err, connect.CodeFailedPrecondition, api.ReasonUnknownProduct)
	}
}

func TestPagesFollowEachOther(t *testing.T) {
	n := serve(t, nil)
	n.stock("a", "b", "c", "d", "e")
	ada := n.client("ada", 0)
	var placed []string
	for i := range 5 {
		placed = append(placed, must(ada.PlaceOrder(t.Context(), request(fmt.Sprintf("r%d", i), "a", 1)))(t).Order.OrderId)
	}
	slices.Reverse(placed)
	var listed []string
	ask := &orderv1.ListOrdersRequest{PageSize: 2}
	for pages := 0; ; pages++ {
		page := must(ada.ListOrders(t.Context(), ask))(t)
		for _, order := range page.Orders {
			listed = append(listed, order.OrderId)
		}
		if ask.PageToken = page.NextPageToken; ask.PageToken == "" || pages > 5 {
			break
		}
	}
	if !slices.Equal(listed, placed) {
		t.Errorf("listed %v, want %v", listed, placed)
	}
	operator := n.client("boss", identity.ScopeOperator)
	var skus []string
	products := &catalogv1.ListProductsRequest{PageSize: 2}
	for pages := 0; ; pages++ {
		page := must(operator.ListProducts(t.Context(), products))(t)
		for _, product := range page.Products {
			skus = append(skus, product.Sku)
		}
		if products.PageToken = page.NextPageToken; products.PageToken == "" || pages > 5 {
			break
		}
	}
	if got := strings.Join(skus, ""); got != "abcde" {
		t.Errorf("listed %v", skus)
	}
}

func TestQueryBehindItsRevisionSaysSo(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	ada := n.client("ada", 0)
	placed := must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t)
	must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "r2", OrderId: placed.Order.OrderId}))(t)
	n.set(func() { n.lag = 1 })
	got := must(ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, WaitBudget: durationpb.New(0)}))(t)
	if got.Order.Status != orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT || got.Freshness.State != typev1.Freshness_STATE_CATCHING_UP || got.Freshness.LagCommits != 1 {
		t.Errorf("got %v, want the order before it was cancelled, one commit behind", got)
	}
	n.set(func() { n.lag = 2 })
	ask := &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision, WaitBudget: durationpb.New(0)}
	_, err := ada.GetOrder(t.Context(), ask)
	info := wantError(t, "a missing order, behind", err, connect.CodeUnavailable, api.ReasonViewBehind)
	if want := fmt.Sprint(placed.Revision.Commit); info.GetMetadata()["commit"] != want || info.GetMetadata()["lane"] != "0" {
		t.Errorf("facts: got %v, want commit %s", info.GetMetadata(), want)
	}
}

// minOf remembers the Min of the last query.
type minRecorder struct {
	fakeViews
	min      *projections.Min
	deadline *time.Time
}

func (m minRecorder) OrderOf(ctx context.Context, id domain.OrderID, userID string, min projections.Min) (projections.OrderView, projections.Freshness, error) {
	*m.min = min
	*m.deadline, _ = ctx.Deadline()
	return m.fakeViews.OrderOf(ctx, id, userID, min)
}

func TestDeadlinesAndWaitBudgetsAreClamped(t *testing.T) {
	var min projections.Min
	var deadline time.Time
	n := serve(t, func(o *api.Options) {
		o.Views = minRecorder{o.Views.(fakeViews), &min, &deadline}
		o.Limits.CallTimeMax = 20 * time.Second
	})
	n.stock("a")
	placed := must(n.client("ada", 0).PlaceOrder(t.Context(), request("r1", "a", 1)))(t)
	token := n.token("ada", 0)
	get := must(proto.Marshal(&orderv1.GetOrderRequest{OrderId: placed.Order.OrderId}))(t)
	envelope := append([]byte{0, 0, 0, 0, byte(len(get))}, get...)
	for _, test := range []struct {
		contentType, header, value string
		want                       time.Duration
	}{
		{"application/proto", "Connect-Timeout-Ms", "", 20 * time.Second},
		{"application/proto", "Connect-Timeout-Ms", "5000", 5 * time.Second},
		{"application/proto", "Connect-Timeout-Ms", "20001", 20 * time.Second},
		{"application/proto", "Connect-Timeout-Ms", "9999999999", 20 * time.Second},
		{"application/grpc-web+proto", "Grpc-Timeout", "", 20 * time.Second},
		{"application/grpc-web+proto", "Grpc-Timeout", "5S", 5 * time.Second},
		{"application/grpc-web+proto", "Grpc-Timeout", "99999999m", 20 * time.Second},
		{"application/grpc-web+proto", "Grpc-Timeout", "1M", 20 * time.Second},
		{"application/grpc-web+proto", "Grpc-Timeout", "99999999H", 20 * time.Second},
		{"application/grpc-web+proto", "Grpc-Timeout", "7000000u", 7 * time.Second},
	} {
		body := get
		if strings.Contains(test.contentType, "grpc") {
			body = envelope
		}
		began := time.Now()
		if status, _, data := n.post(t, orderv1connect.OrderServiceGetOrderProcedure, token, test.contentType, body, test.header, test.value); status != http.StatusOK {
			t.Fatalf("%s %q: %d %q", test.header, test.value, status, data)
		}
		if got := deadline.Sub(began); got < test.want-100*time.Millisecond || got > test.want+5*time.Second {
			t.Errorf("%s %q: the call had %s, want %s", test.header, test.value, got, test.want)
		}
		if min.Wait != time.Second {
			t.Errorf("wait budget: got %s, want 1 s", min.Wait)
		}
	}
	// All that it waits for is bounded by itself; but another node, that it is handed on to, may hang.
	front := serveWithoutViews(t, n, func() []string { return []string{n.url} })
	for _, test := range []struct {
		name string
		at   *node
		has  bool
	}{{"of a node with views", n, false}, {"handed on", front, true}} {
		deadline = time.Time{}
		if status, _, data := test.at.post(t, orderv1connect.OrderServiceGetOrderProcedure, token, "application/proto", get, "Weir-Test", "1"); status != http.StatusOK {
			t.Fatalf("%s: %d %q", test.name, status, data)
		}
		if deadline.IsZero() == test.has {
			t.Errorf("a read %s for which no deadline was asked has %v, want one: %t", test.name, deadline, test.has)
		}
	}
}

func TestFaultOfALaneIsTheSameErrorOverEveryProtocol(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	n.set(func() { n.fail = &eventstore.QueueFullError{Lane: 0, RetryAfter: 1200 * time.Millisecond} })
	for name, options := range transports {
		_, err := n.client("ada", 0, options...).PlaceOrder(t.Context(), request("r1", "a", 1))
		wantError(t, name, err, connect.CodeResourceExhausted, api.ReasonQueueFull)
		var connectErr *connect.Error
		if errors.As(err, &connectErr) && connectErr.Meta().Get("Retry-After") != "2" {
			t.Errorf("%s: Retry-After is %q, want 2", name, connectErr.Meta().Get("Retry-After"))
		}
	}
}

func TestUnexpectedFaultAndPanicTellTheCallerNothingAndAreLoggedOnce(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	ada := n.client("ada", 0)
	n.set(func() { n.fail = errors.New("pebble: file 000123.sst is corrupt") })
	_, err := ada.PlaceOrder(t.Context(), request("r1", "a", 1))
	wantError(t, "fault", err, connect.CodeInternal, api.ReasonInternal)
	n.set(func() { n.panics = true })
	_, panicked := ada.PlaceOrder(t.Context(), request("r1", "a", 1))
	wantError(t, "panic", panicked, connect.CodeInternal, api.ReasonInternal)
	logs := n.logs.String()
	for what, want := range map[string]string{"fault": "000123.sst", "panic": "planted"} {
		if strings.Contains(err.Error()+panicked.Error(), want) || strings.Count(logs, "level=ERROR") != 2 || !strings.Contains(logs, want) {
			t.Errorf("%s: the caller got %v and %v, the log has %s", what, err, panicked, logs)
		}
	}
}

func TestWatchSendsEachChangeOnce(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	for name, options := range transports {
		ada := n.client("ada", 0, options...)
		placed := must(ada.PlaceOrder(t.Context(), request("p-"+strings.ReplaceAll(name, " ", "-"), "a", 1)))(t)
		stream := must(ada.WatchOrder(t.Context(), &orderv1.WatchOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision}))(t)
		if !stream.Receive() || !proto.Equal(stream.Msg().Order, placed.Order) {
			t.Fatalf("%s: first %v, %v", name, stream.Msg(), stream.Err())
		}
		cancelled := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c-" + strings.ReplaceAll(name, " ", "-"), OrderId: placed.Order.OrderId}))(t)
		if !stream.Receive() || !proto.Equal(stream.Msg().Order, cancelled.Order) {
			t.Fatalf("%s: second %v, %v", name, stream.Msg(), stream.Err())
		}
		_ = stream.Close()
	}
}

// watch opens a watch and takes its first message.
func (n *node) watch(t *testing.T, c client, orderID string) *connect.ServerStreamForClient[orderv1.WatchOrderResponse] {
	t.Helper()
	stream := must(c.WatchOrder(t.Context(), &orderv1.WatchOrderRequest{OrderId: orderID}))(t)
	t.Cleanup(func() { _ = stream.Close() })
	stream.Receive()
	return stream
}

func TestWatchesAreBoundedPerCallerAndAltogether(t *testing.T) {
	n := serve(t, func(o *api.Options) { o.Limits.WatchesMax, o.Limits.WatchesPerCallerMax = 3, 2 })
	n.stock("a")
	ada, eve := n.client("ada", 0), n.client("eve", 0)
	ofAda := must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	ofEve := must(eve.PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	first := n.watch(t, ada, ofAda)
	n.watch(t, ada, ofAda)
	info := wantError(t, "ada's third", n.watch(t, ada, ofAda).Err(), connect.CodeResourceExhausted, api.ReasonTooManyWatches)
	if info.GetMetadata()["limit"] != "2" {
		t.Errorf("limit: got %v, want 2", info.GetMetadata())
	}
	if err := n.watch(t, eve, ofEve).Err(); err != nil {
		t.Errorf("eve's first: %v", err)
	}
	wantError(t, "the fourth of all", n.watch(t, eve, ofEve).Err(), connect.CodeResourceExhausted, api.ReasonTooManyWatches)
	_ = first.Close() // Her place comes free as soon as the server sees it.
	for deadline := time.Now().Add(10 * time.Second); n.watch(t, ada, ofAda).Err() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("the place of a watch that ended was never free again")
		}
	}
}

func TestWatchEndsWhenTheServerStops(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	ada := n.client("ada", 0)
	id := must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	stream := n.watch(t, ada, id)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- n.server.Shutdown(ctx) }()
	if stream.Receive() {
		t.Errorf("got %v after the server stopped", stream.Msg())
	}
	wantError(t, "watch", stream.Err(), connect.CodeUnavailable, api.ReasonShuttingDown)
	if err := <-stopped; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

func TestWatchEndsWithItsToken(t *testing.T) {
	expiring := &identity.Principal{Subject: "ada", Expires: time.Now().Add(time.Hour)}
	var short atomic.Bool
	n := serve(t, func(o *api.Options) {
		o.Verifier = verifierFunc(func(string) (*identity.Principal, error) {
			if short.Load() {
				return &identity.Principal{Subject: "ada", Expires: time.Now().Add(100 * time.Millisecond)}, nil
			}
			return &identity.Principal{Subject: "ada", Scopes: identity.ScopeOperator, Expires: expiring.Expires}, nil
		})
	})
	n.stock("a")
	ada := n.client("ada", 0)
	id := must(ada.PlaceOrder(t.Context(), request("r1", "a", 1)))(t).Order.OrderId
	short.Store(true)
	stream := n.watch(t, ada, id)
	for stream.Receive() {
		t.Errorf("got %v", stream.Msg())
	}
	wantError(t, "watch", stream.Err(), connect.CodeUnauthenticated, api.ReasonUnauthenticated)
}

type verifierFunc func(string) (*identity.Principal, error)

func (f verifierFunc) Verify(header string) (*identity.Principal, error) { return f(header) }

// slowLane answers once it is let.
type slowLane struct {
	api.Commands
	let chan struct{}
}

func (s slowLane) Submit(ctx context.Context, r lanes.Request) (*lanes.Reply, error) {
	select {
	case <-s.let:
		return s.Commands.Submit(ctx, r)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestCallOutlivesTheDeadlineOfItsBody: over HTTP/1.1 the deadline for reading the body must not cut a call that waits.
func TestCallOutlivesTheDeadlineOfItsBody(t *testing.T) {
	let := make(chan struct{})
	const bodyTimeMax = 200 * time.Millisecond
	n := serve(t, func(o *api.Options) {
		o.Limits.BodyTimeMax = bodyTimeMax
		o.Commands = slowLane{o.Commands, let}
	})
	timer := time.AfterFunc(4*bodyTimeMax, func() { close(let) })
	defer timer.Stop()
	body := must(proto.Marshal(&catalogv1.PutProductRequest{Sku: "a", Title: "A", Price: &typev1.Money{CurrencyCode: "EUR"}}))(t)
	status, _, data := n.post(t, catalogv1connect.CatalogServicePutProductProcedure, n.token("boss", identity.ScopeOperator), "application/proto", body)
	if status != http.StatusOK {
		t.Errorf("got HTTP %d %q, want 200", status, data)
	}
}

func TestCallThatOutlivesItsDeadlineIsDeadlineExceeded(t *testing.T) {
	n := serve(t, func(o *api.Options) { o.Commands = slowLane{o.Commands, make(chan struct{})} })
	body := must(proto.Marshal(request("r1", "a", 1)))(t)
	status, _, data := n.post(t, orderv1connect.OrderServicePlaceOrderProcedure, n.token("ada", 0), "application/proto", body, "Connect-Timeout-Ms", "50")
	if status != http.StatusGatewayTimeout || !bytes.Contains(data, []byte("DEADLINE_EXCEEDED")) || n.submitted() != 0 {
		t.Errorf("got HTTP %d %q, %d submitted, want 504 DEADLINE_EXCEEDED and none", status, data, n.submitted())
	}
}

func TestHealthFollowsTheLanes(t *testing.T) {
	var serving atomic.Bool
	n := serve(t, func(o *api.Options) {
		o.WaitsFor = func() string {
			if serving.Load() {
				return ""
			}
			return "lane 3: no node has it"
		}
	})
	for _, want := range []string{"STATUS_NOT_SERVING", "STATUS_SERVING"} {
		status, header, body := n.post(t, "/grpc.health.v1.Health/Check", "", "application/json", []byte(`{"service":"weir.order.v1.OrderService"}`))
		if status != http.StatusOK || !bytes.Contains(body, []byte(want)) {
			t.Errorf("got %d %s, want %s", status, body, want)
		}
		if said := header.Get(api.HeaderWaitsFor); (said == "lane 3: no node has it") == serving.Load() || (said == "") != serving.Load() {
			t.Errorf("%s: it says that it waits for %q", want, said)
		}
		serving.Store(true)
	}
}

func TestOptionsThatLackSomethingPanic(t *testing.T) {
	for name, change := range map[string]func(*api.Options){
		"no commands":    func(o *api.Options) { o.Commands = nil },
		"no views":       func(o *api.Options) { o.Views = nil },
		"no verifier":    func(o *api.Options) { o.Verifier = nil },
		"no sealer":      func(o *api.Options) { o.Sealer = nil },
		"no topology":    func(o *api.Options) { o.Topology.Lanes = 3 },
		"negative limit": func(o *api.Options) { o.Limits.WatchesMax = -1 },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: NewHandler took it", name)
				}
			}()
			node := newFakeNode()
			options := api.Options{
				Commands: node, Views: fakeViews{node}, Sealer: brokenSealer{}, Topology: eventstore.Topology{Lanes: 1},
				Verifier: verifierFunc(func(string) (*identity.Principal, error) { return nil, identity.ErrUnauthenticated }),
			}
			change(&options)
			api.NewHandler(options)
		}()
	}
}
