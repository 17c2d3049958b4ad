package api_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// deadURL is where nobody listens.
const deadURL = "http://127.0.0.1:1"

// serveWithoutViews starts a node that decides as another does, believes its tokens, and keeps no views.
func serveWithoutViews(t *testing.T, as *node, viewsAt func() []string) *node {
	t.Helper()
	verifier, err := identity.NewVerifier(identity.VerifierOptions{Keys: as.key.Keys()})
	if err != nil {
		t.Fatal(err)
	}
	n := serve(t, func(o *api.Options) {
		o.Commands, o.Sealer, o.Verifier, o.Views, o.ViewsAt = as.fakeNode, as.sealer, verifier, nil, viewsAt
	})
	n.key = as.key
	return n
}

// watchOrder begins to watch an order, and has received it as it is.
func watchOrder(t *testing.T, by client, orderID string) *connect.ServerStreamForClient[orderv1.WatchOrderResponse] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	watch := must(by.WatchOrder(ctx, &orderv1.WatchOrderRequest{OrderId: orderID}))(t)
	t.Cleanup(func() { _ = watch.Close() })
	if !watch.Receive() {
		t.Fatalf("watched nothing: %v", watch.Err())
	}
	return watch
}

func TestANodeWithoutViewsHandsReadsOnInEveryProtocol(t *testing.T) {
	for name, options := range transports {
		t.Run(name, func(t *testing.T) {
			first := serve(t, nil)
			front := serveWithoutViews(t, first, func() []string { return []string{deadURL, first.url} })
			first.stock("mug")
			ada := front.client("ada", 0, options...)
			placed := must(ada.PlaceOrder(t.Context(), request("r1", "mug", 1)))(t)
			ask := &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision}
			if got := must(ada.GetOrder(t.Context(), ask))(t); got.Order.OrderId != placed.Order.OrderId {
				t.Errorf("got order %v, want %v", got.Order, placed.Order)
			}
			eve := front.client("eve", 0, options...)
			_, err := eve.GetOrder(t.Context(), ask)
			if info := wantError(t, "another's order (I7)", err, connect.CodeNotFound, api.ReasonOrderNotFound); info.GetMetadata()["order_id"] != placed.Order.OrderId {
				t.Errorf("the facts are %v", info)
			}
			op := front.client("op", identity.ScopeOperator, options...)
			note := must(op.AddNote(t.Context(), &orderv1.AddNoteRequest{RequestId: "n1", OrderId: placed.Order.OrderId, Text: "a regular"}))(t)
			if note.NoteId == "" {
				t.Error("the note has no id")
			}

			watch := watchOrder(t, ada, placed.Order.OrderId)
			cancelled := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c1", OrderId: placed.Order.OrderId}))(t)
			if !watch.Receive() || watch.Msg().Order.Revision.Commit != cancelled.Revision.Commit {
				t.Fatalf("watched %v, %v, want %v", watch.Msg(), watch.Err(), cancelled.Order)
			}
			if err := first.server.Close(); err != nil { // It cuts the stream.
				t.Fatal(err)
			}
			for watch.Receive() {
				t.Errorf("watched %v after the node was gone", watch.Msg())
			}
			wantError(t, "the stream", watch.Err(), connect.CodeUnavailable, api.ReasonViewsUnavailable)
			_, err = ada.GetOrder(t.Context(), ask)
			wantError(t, "a read with no node left", err, connect.CodeUnavailable, api.ReasonViewsUnavailable)
		})
	}
}

func TestAStreamThatIsHandedOnEndsWithItsNode(t *testing.T) {
	for name, options := range transports {
		t.Run(name, func(t *testing.T) {
			first := serve(t, nil)
			front := serveWithoutViews(t, first, func() []string { return []string{first.url} })
			first.stock("mug")
			ada := front.client("ada", 0, options...)
			placed := must(ada.PlaceOrder(t.Context(), request("r1", "mug", 1)))(t)
			watch := watchOrder(t, ada, placed.Order.OrderId)
			front.handler.EndWatches()
			for watch.Receive() {
				t.Errorf("watched %v after the end", watch.Msg())
			}
			wantError(t, "the stream", watch.Err(), connect.CodeUnavailable, api.ReasonShuttingDown)
		})
	}
}

func TestACallIsHandedOnOnce(t *testing.T) {
	first := serve(t, nil)
	var front, other *node
	front = serveWithoutViews(t, first, func() []string { return []string{other.url} })
	other = serveWithoutViews(t, first, func() []string { return []string{front.url, first.url} })
	first.stock("mug")
	ada := front.client("ada", 0)
	placed := must(ada.PlaceOrder(t.Context(), request("r1", "mug", 1)))(t)
	ask := &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId}
	_, err := ada.GetOrder(t.Context(), ask)
	wantError(t, "a node without views that knows of another such node only", err, connect.CodeUnavailable, api.ReasonViewsUnavailable)
	// One that knows of a node with views as well comes to that one.
	must(other.client("ada", 0).GetOrder(t.Context(), ask))(t)

	// The mark from a client means nothing where there are views, and is refused where there are none.
	for _, c := range []struct {
		name, url string
		status    int
		want      string
	}{
		{"a node with views", first.url, http.StatusOK, placed.Order.OrderId},
		{"a node without views", other.url, http.StatusServiceUnavailable, string(api.ReasonViewsUnavailable)},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+"/weir.order.v1.OrderService/GetOrder", strings.NewReader(`{"orderId":"`+placed.Order.OrderId+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+first.token("ada", 0))
		r.Header.Set(api.HeaderHop, "1")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body := must(io.ReadAll(answer.Body))(t)
		_ = answer.Body.Close()
		if answer.StatusCode != c.status || !bytes.Contains(body, []byte(c.want)) {
			t.Errorf("%s: got %s %s, want %d and %s", c.name, answer.Status, body, c.status, c.want)
		}
	}
}
