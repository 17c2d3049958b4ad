package api_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// constantNode answers every command with the same order: what is measured is the API alone.
type constantNode struct{ reply *lanes.Reply }

func (c constantNode) Submit(context.Context, lanes.Request) (*lanes.Reply, error) {
	return c.reply, nil
}

func benchReply() *lanes.Reply {
	at := time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)
	order := domain.Order{
		ID: domain.NewOrderID(at, 77, [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), UserID: "user-000123", Status: domain.StatusPendingPayment,
		Lines:    []domain.Line{{SKU: "sku-0001", Units: 1, Title: "A thing that is sold", PriceMinor: 1299}},
		Total:    domain.Money{Currency: "EUR", Minor: 1299},
		PlacedAt: at, PayBy: at.Add(15 * time.Minute), UpdatedAt: at,
	}
	return &lanes.Reply{Commit: 123456, At: at, Order: order, OrderCommit: 123456}
}

func benchRequest() *orderv1.PlaceOrderRequest {
	return &orderv1.PlaceOrderRequest{
		RequestId: "req-000000000001", UserId: "user-000123",
		Items: []*orderv1.ItemRequest{{Sku: "sku-0001", Quantity: 1}},
	}
}

// recorder is a ResponseWriter that keeps nothing, so that it costs next to nothing.
type recorder struct {
	header http.Header
	status int
	bytes  int
}

func (r *recorder) Header() http.Header    { return r.header }
func (r *recorder) WriteHeader(status int) { r.status = status }
func (r *recorder) Write(p []byte) (int, error) {
	r.bytes += len(p)
	return len(p), nil
}
func (r *recorder) SetReadDeadline(time.Time) error { return nil }

type body struct{ *bytes.Reader }

func (body) Close() error { return nil }

func benchHandler(b *testing.B, handler http.Handler, path, contentType, token string, data []byte) {
	b.Helper()
	b.ReportAllocs()
	request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, path, http.NoBody)
	for b.Loop() {
		r := *request
		r.Header = http.Header{"Content-Type": {contentType}, "Authorization": {"Bearer " + token}}
		r.Body = body{bytes.NewReader(data)}
		w := recorder{header: http.Header{}, status: 200}
		handler.ServeHTTP(&w, &r)
		if w.status != 200 || w.bytes == 0 {
			b.Fatalf("status %d", w.status)
		}
	}
}

// BenchmarkPlaceOrder measures a whole call but for the network and the lane, beside Connect with nothing behind it: the
// same messages, no token, no check.
func BenchmarkPlaceOrder(b *testing.B) {
	n := serve(b, func(o *api.Options) { o.Commands = constantNode{benchReply()} })
	request := benchRequest()
	binary, err := proto.Marshal(request)
	if err != nil {
		b.Fatal(err)
	}
	json, err := protojson.Marshal(request)
	if err != nil {
		b.Fatal(err)
	}
	response := &orderv1.PlaceOrderResponse{}
	{
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, orderv1connect.OrderServicePlaceOrderProcedure, bytes.NewReader(binary))
		r.Header.Set("Content-Type", "application/proto")
		r.Header.Set("Authorization", "Bearer "+n.token("user-000123", 0))
		w := httptest.NewRecorder()
		n.handler.ServeHTTP(w, r)
		data, _ := io.ReadAll(w.Body)
		if w.Code != 200 {
			b.Fatalf("%d %s", w.Code, data)
		}
		if err := proto.Unmarshal(data, response); err != nil {
			b.Fatal(err)
		}
	}
	echo := connect.NewUnaryHandlerSimple(orderv1connect.OrderServicePlaceOrderProcedure,
		func(context.Context, *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
			return response, nil
		})
	token := n.token("user-000123", identity.Scopes(0))
	for _, codec := range []struct {
		name, contentType string
		data              []byte
	}{{"binary", "application/proto", binary}, {"json", "application/json", json}} {
		b.Run(codec.name+"/echo", func(b *testing.B) {
			benchHandler(b, echo, orderv1connect.OrderServicePlaceOrderProcedure, codec.contentType, token, codec.data)
		})
		b.Run(codec.name+"/weir", func(b *testing.B) {
			benchHandler(b, n.handler, orderv1connect.OrderServicePlaceOrderProcedure, codec.contentType, token, codec.data)
		})
	}
}

// soldOut refuses every command in the same words.
type soldOut struct{}

func (soldOut) Submit(context.Context, lanes.Request) (*lanes.Reply, error) {
	return nil, &domain.OutOfStockError{SKU: "sku-0001", Want: 1}
}

// BenchmarkRefusePlaceOrder measures the call of somebody who comes too late, but for the network and the lane.
func BenchmarkRefusePlaceOrder(b *testing.B) {
	n := serve(b, func(o *api.Options) { o.Commands = soldOut{} })
	binary, err := proto.Marshal(benchRequest())
	if err != nil {
		b.Fatal(err)
	}
	request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, orderv1connect.OrderServicePlaceOrderProcedure, http.NoBody)
	token := n.token("user-000123", identity.Scopes(0))
	b.ReportAllocs()
	for b.Loop() {
		r := *request
		r.Header = http.Header{"Content-Type": {"application/proto"}, "Authorization": {"Bearer " + token}}
		r.Body = body{bytes.NewReader(binary)}
		w := recorder{header: http.Header{}}
		n.handler.ServeHTTP(&w, &r)
		if w.status != http.StatusBadRequest {
			b.Fatalf("status %d", w.status)
		}
	}
}
