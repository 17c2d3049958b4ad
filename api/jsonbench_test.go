package api

import (
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

func benchResponse() *orderv1.PlaceOrderResponse {
	at := time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC)
	order := newOrder(&domain.Order{
		ID: domain.NewOrderID(at, 77, [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}), UserID: "user-000123", Status: domain.StatusPendingPayment,
		Lines:    []domain.Line{{SKU: "sku-0001", Units: 1, Title: "A thing that is sold", PriceMinor: 1299}},
		Total:    domain.Money{Currency: "EUR", Minor: 1299},
		PlacedAt: at, PayBy: at.Add(15 * time.Minute), UpdatedAt: at,
	}, 0, 123456, &personal{})
	return &orderv1.PlaceOrderResponse{Order: order, Revision: order.Revision}
}

func BenchmarkJSON(b *testing.B) {
	codec := newJSONCodec("json", 64)
	request := []byte(`{"requestId":"req-000000000001","userId":"user-000123","items":[{"sku":"sku-0001","quantity":"1"}]}`)
	response := benchResponse()
	b.Run("request", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m orderv1.PlaceOrderRequest
			if err := codec.Unmarshal(request, &m); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("response", func(b *testing.B) {
		b.ReportAllocs()
		buffer := make([]byte, 0, 4096)
		for b.Loop() {
			if _, err := codec.MarshalAppend(buffer, response); err != nil {
				b.Fatal(err)
			}
		}
	})
}
