package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// The edge knows no rules of orders; this holds what it answers against what a node does.
func TestTheEdgeRefusesWhatIsSoldOutInTheWordsOfANode(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	base, err := url.Parse(n.lines.API)
	if err != nil {
		t.Fatal(err)
	}
	place(t, n.customer(), "last-one")

	operator := &http.Client{Transport: &bearer{token: n.lines.Operator.Token, next: http.DefaultTransport}}
	board, err := edge.NewBoard(edge.BoardOptions{
		Items:     []edge.Item{{SKU: "last-one"}},
		Catalog:   catalogv1connect.NewCatalogServiceClient(operator, n.lines.API),
		Campaigns: campaignv1connect.NewCampaignServiceClient(operator, n.lines.API),
		Orders:    orderv1connect.NewOrderServiceClient(operator, n.lines.API),
	})
	if err != nil {
		t.Fatal(err)
	}
	user := func(r *http.Request) string {
		if r.Header.Get("Authorization") == "Bearer "+n.lines.Customer.Token {
			return n.lines.Customer.User
		}
		return "nobody-yet"
	}
	front, err := edge.New(edge.Options{Board: board, User: user})
	if err != nil {
		t.Fatal(err)
	}
	if err := front.Apply(edge.Config{SoldOut: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- board.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}()
	gateway := httptest.NewServer(front.Wrap(&httputil.ReverseProxy{Rewrite: func(pr *httputil.ProxyRequest) { pr.SetURL(base) }}))
	defer gateway.Close()

	// The operator stands for somebody who has not bought.
	ask := func(address, requestID string) (status int, body string, header http.Header) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address+orderv1connect.OrderServicePlaceOrderProcedure,
			strings.NewReader(`{"requestId":"`+requestID+`","items":[{"sku":"last-one","quantity":"1"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+n.lines.Operator.Token)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(text), response.Header
	}
	wantStatus, want, _ := ask(n.lines.API, "direct")
	var got string
	var status int
	var header http.Header
	for end := time.Now().Add(time.Minute); ; {
		if status, got, header = ask(gateway.URL, "through"); header.Get(edge.HeaderEdge) != "" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the edge never answered; the node said %d %s", status, got)
		}
	}
	if status != wantStatus || got != want {
		t.Errorf("the edge says %d %s\na node says   %d %s", status, got, wantStatus, want)
	}
	if !strings.HasPrefix(header.Get(edge.HeaderEdge), "sold-out; lane=") {
		t.Errorf("%s = %q, want the position", edge.HeaderEdge, header.Get(edge.HeaderEdge))
	}

	// A unit that comes in is seen, and sold.
	live(t, n.operator(), "stock", "receive", "--sku", "last-one", "--quantity", "1").want(t, exitOK)
	for end := time.Now().Add(time.Minute); ; {
		if status, got, _ = ask(gateway.URL, "through"); status == http.StatusOK {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a unit came in, and the edge still says %d %s", status, got)
		}
	}

	// Whoever has it asks the node.
	customer := orderv1connect.NewOrderServiceClient(http.DefaultClient, gateway.URL)
	asCustomer, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", "Bearer "+n.lines.Customer.Token)
	_, err = customer.PlaceOrder(asCustomer, &orderv1.PlaceOrderRequest{RequestId: "again", Items: []*orderv1.ItemRequest{{Sku: "last-one", Quantity: 1}}})
	var refused *connect.Error
	if !errors.As(err, &refused) || refused.Code() != connect.CodeFailedPrecondition || refused.Meta().Get(edge.HeaderEdge) != "" {
		t.Errorf("whoever bought it got %v, %v; want the node's answer", err, refused.Meta())
	}
}
