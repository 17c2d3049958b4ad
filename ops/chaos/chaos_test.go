package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"

	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A rig that cannot see a loss is blind: each of these nodes breaks one promise at its crashes.
func TestEveryBrokenPromiseIsSeen(t *testing.T) {
	for _, c := range []struct {
		name string
		// atCrash breaks something; nil for an honest node.
		atCrash func(*fakeNode)
		verify  error
		audit   error
		want    string
	}{
		{name: "an honest node"},
		{
			name: "an order is lost", want: "is refused now: ORDER_NOT_FOUND (I1)",
			atCrash: func(n *fakeNode) { clear(n.orders) },
		},
		{
			name: "an order is changed", want: "(I1, I6)",
			atCrash: func(n *fakeNode) {
				for _, o := range n.orders {
					o.Total.Units++
				}
			},
		},
		{
			name: "the ledger is forgotten", want: "(I4)",
			atCrash: func(n *fakeNode) { clear(n.replies) },
		},
		{
			name: "a unit is lost", want: "(I3)",
			atCrash: func(n *fakeNode) { n.stock[skuName(3)].Available-- },
		},
		{
			name: "a reservation is lost", want: "open orders hold",
			atCrash: func(n *fakeNode) { n.stock[skuName(3)].Available++; n.stock[skuName(3)].Reserved-- },
		},
		{name: "the log does not verify", want: "(I2)", verify: errors.New("a gap")},
		{name: "the stock does not add up in the log", want: "(I3)", audit: errors.New("a unit too many")},
	} {
		t.Run(c.name, func(t *testing.T) {
			fake := &fakeNode{
				atCrash: c.atCrash, verify: c.verify, audit: c.audit,
				orders: map[string]*orderv1.Order{}, replies: map[string]fakeReply{}, stock: map[string]*catalogv1.Stock{},
			}
			options := Options{Kind: "orders", Rounds: 2, Clients: 4, Lanes: 1, Seed: 1, LoadMax: 60 * time.Millisecond, ServingMax: 5 * time.Second, ViewWait: 50 * time.Millisecond}
			var printed strings.Builder
			err := run(t.Context(), options, fake, t.TempDir(), &printed)
			switch {
			case c.want == "" && err != nil:
				t.Fatalf("seed %d: %v\n%s", options.Seed, err, &printed)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Fatalf("seed %d: the error is %v, want one with %q\n%s", options.Seed, err, c.want, &printed)
			}
		})
	}
}

func TestAnAccountThatDoesNotAddUpIsRefused(t *testing.T) {
	good := &catalogv1.Stock{Received: 10, Central: 1, InTransit: 2, Available: 3, Reserved: 4}
	if err := checkAccount(good, 10, 4); err != nil {
		t.Errorf("a good account: %v", err)
	}
	for name, change := range map[string]func(*catalogv1.Stock){
		"a sum that is short": func(s *catalogv1.Stock) { s.Central = 0 },
		"a negative term":     func(s *catalogv1.Stock) { s.Available, s.Central = -1, 5 },
		"more than received":  func(s *catalogv1.Stock) { s.Received, s.Central = 11, 2 },
		"less reserved":       func(s *catalogv1.Stock) { s.Reserved, s.Available = 3, 4 },
	} {
		bad := proto.CloneOf(good)
		change(bad)
		if err := checkAccount(bad, 10, 4); err == nil {
			t.Errorf("%s is accepted: %v", name, bad)
		}
	}
}

// fakeNode keeps in memory what a node keeps in its log. Its methods for the run are called by one goroutine, its handlers by many.
type fakeNode struct {
	orderv1connect.UnimplementedOrderServiceHandler
	catalogv1connect.UnimplementedCatalogServiceHandler
	atCrash func(*fakeNode)
	verify  error
	audit   error
	server  *httptest.Server

	mu      sync.Mutex
	commit  uint64
	orders  map[string]*orderv1.Order
	replies map[string]fakeReply
	stock   map[string]*catalogv1.Stock
}

type fakeReply struct{ request, reply proto.Message }

func (n *fakeNode) Begin(context.Context) error {
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderServiceHandler(n))
	mux.Handle(catalogv1connect.NewCatalogServiceHandler(n))
	n.server = httptest.NewServer(mux)
	return nil
}

func (n *fakeNode) Serving(context.Context) (time.Duration, error) { return time.Millisecond, nil }
func (n *fakeNode) Verify(context.Context) error                   { return n.verify }
func (n *fakeNode) Audit(context.Context) error                    { return n.audit }
func (n *fakeNode) Events(context.Context) ([]event, error)        { return nil, nil }
func (n *fakeNode) PayAt(string, string)                           {}
func (n *fakeNode) Pause() error                                   { return nil }
func (n *fakeNode) Resume() error                                  { return nil }
func (n *fakeNode) URL() string                                    { return n.server.URL }
func (n *fakeNode) Tokens() (trusted, operator string)             { return "trusted", "operator" }

func (n *fakeNode) End() error {
	n.server.CloseClientConnections()
	n.server.Close()
	return nil
}

func (n *fakeNode) Crash() error {
	err := n.End()
	if n.atCrash != nil {
		n.atCrash(n)
	}
	return err
}

// once answers a request that was answered before, and refuses another one under its id.
func once[M proto.Message](n *fakeNode, key string, request proto.Message, decide func() (M, error)) (M, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if before, known := n.replies[key]; known {
		if !proto.Equal(before.request, request) {
			var none M
			return none, refuse("KEY_REUSED")
		}
		return before.reply.(M), nil
	}
	n.commit++
	reply, err := decide()
	if err == nil {
		n.replies[key] = fakeReply{request, reply}
	}
	return reply, err
}

func refuse(reason string) error {
	err := connect.NewError(connect.CodeFailedPrecondition, errors.New(reason))
	if detail, detailErr := connect.NewErrorDetail(&errdetails.ErrorInfo{Domain: "weir", Reason: reason}); detailErr == nil {
		err.AddDetail(detail)
	}
	return err
}

func (n *fakeNode) PlaceOrder(_ context.Context, r *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
	return once(n, r.UserId+r.RequestId, r, func() (*orderv1.PlaceOrderResponse, error) {
		placed := &orderv1.Order{OrderId: fmt.Sprintf("order-%d", n.commit), UserId: r.UserId, Status: 1, Total: &typev1.Money{CurrencyCode: "EUR"}}
		for _, item := range r.Items {
			if n.stock[item.Sku].Available < item.Quantity {
				return nil, refuse("OUT_OF_STOCK")
			}
		}
		for _, item := range r.Items {
			n.stock[item.Sku].Available -= item.Quantity
			n.stock[item.Sku].Reserved += item.Quantity
			placed.Items = append(placed.Items, &orderv1.OrderItem{Sku: item.Sku, Quantity: item.Quantity})
		}
		n.orders[placed.OrderId] = placed
		return &orderv1.PlaceOrderResponse{Order: proto.CloneOf(placed)}, nil
	})
}

func (n *fakeNode) CancelOrder(_ context.Context, r *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	return once(n, r.RequestId, r, func() (*orderv1.CancelOrderResponse, error) {
		found, known := n.orders[r.OrderId]
		if !known {
			return nil, refuse("ORDER_NOT_FOUND")
		}
		if found.Status == 1 {
			found.Status = 2
			for _, item := range found.Items {
				n.stock[item.Sku].Available += item.Quantity
				n.stock[item.Sku].Reserved -= item.Quantity
			}
		}
		return &orderv1.CancelOrderResponse{Order: proto.CloneOf(found)}, nil
	})
}

func (n *fakeNode) GetOrder(_ context.Context, r *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	found, known := n.orders[r.OrderId]
	if !known {
		return nil, refuse("ORDER_NOT_FOUND")
	}
	return &orderv1.GetOrderResponse{Order: proto.CloneOf(found)}, nil
}

func (n *fakeNode) PutProduct(context.Context, *catalogv1.PutProductRequest) (*catalogv1.PutProductResponse, error) {
	return &catalogv1.PutProductResponse{}, nil
}

func (n *fakeNode) ReceiveStock(_ context.Context, r *catalogv1.ReceiveStockRequest) (*catalogv1.ReceiveStockResponse, error) {
	return once(n, r.RequestId, r, func() (*catalogv1.ReceiveStockResponse, error) {
		if n.stock[r.Sku] == nil {
			n.stock[r.Sku] = &catalogv1.Stock{Sku: r.Sku}
		}
		n.stock[r.Sku].Received += r.Quantity
		n.stock[r.Sku].Available += r.Quantity
		return &catalogv1.ReceiveStockResponse{Sku: r.Sku, Quantity: r.Quantity}, nil
	})
}

func (n *fakeNode) GetStock(_ context.Context, r *catalogv1.GetStockRequest) (*catalogv1.GetStockResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &catalogv1.GetStockResponse{Stock: proto.CloneOf(n.stock[r.Sku])}, nil
}
