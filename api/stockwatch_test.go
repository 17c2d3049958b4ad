package api_test

import (
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
)

func TestStockIsWatchedAndTheWatchGoesOnWithoutARepeat(t *testing.T) {
	n := serve(t, func(o *api.Options) { useRealNode(t, o, 4) })
	n.stock("tea", "cup")
	boss := n.client("boss", identity.ScopeOperator)
	received := must(boss.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "r1", Sku: "tea", Quantity: 7}))(t)
	now := must(boss.GetStock(t.Context(), &catalogv1.GetStockRequest{Sku: "tea", MinRevision: received.Revision}))(t)
	first := must(boss.WatchStock(t.Context(), &catalogv1.WatchStockRequest{Sku: "tea", MinRevision: received.Revision}))(t)
	if !first.Receive() || !proto.Equal(first.Msg().Stock, now.Stock) || first.Msg().ResumeToken == "" {
		t.Fatalf("watched %v, %v, want %v", first.Msg(), first.Err(), now.Stock)
	}
	token := first.Msg().ResumeToken
	_ = first.Close()

	// It goes on with what the caller has not, and only with that.
	resumed := must(boss.WatchStock(t.Context(), &catalogv1.WatchStockRequest{Sku: "tea", ResumeToken: token}))(t)
	defer resumed.Close()
	must(boss.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "r2", Sku: "cup", Quantity: 1}))(t)
	must(boss.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "r3", Sku: "tea", Quantity: 5}))(t)
	want := now.Stock
	want.Received, want.Central = want.Received+5, want.Central+5
	if !resumed.Receive() || !proto.Equal(resumed.Msg().Stock, want) {
		t.Fatalf("watched %v, %v, want %v", resumed.Msg(), resumed.Err(), want)
	}

	for i := range token {
		changed := []byte(token)
		if changed[i] = 'A'; token[i] == 'A' {
			changed[i] = 'B'
		}
		stream := must(boss.WatchStock(t.Context(), &catalogv1.WatchStockRequest{Sku: "tea", ResumeToken: string(changed)}))(t)
		stream.Receive()
		wantError(t, "a changed token", stream.Err(), connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	}
	other := must(boss.WatchStock(t.Context(), &catalogv1.WatchStockRequest{Sku: "cup", ResumeToken: token}))(t)
	other.Receive()
	wantError(t, "another SKU's token", other.Err(), connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	none := must(boss.WatchStock(t.Context(), &catalogv1.WatchStockRequest{Sku: "none"}))(t)
	none.Receive()
	wantError(t, "no such SKU", none.Err(), connect.CodeNotFound, api.ReasonProductNotFound)
	customer := must(n.client("ada", 0).WatchStock(t.Context(), &catalogv1.WatchStockRequest{Sku: "tea"}))(t)
	customer.Receive()
	wantError(t, "a customer", customer.Err(), connect.CodePermissionDenied, api.ReasonPermissionDenied)
}
