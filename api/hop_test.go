package api_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/courier"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// openTwoNodes runs an owner of all lanes, and a node that decides nothing and follows them.
func openTwoNodes(t testing.TB, logger *slog.Logger, count uint32) (owner, front *realNode) {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	logs := memoryLogs(count)
	open := func() *realNode {
		nc, err := server.Connect()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		c, err := courier.New(courier.Options{
			Post: eventstore.NewPost(nc, eventstore.PostOptions{}), Topology: eventstore.Topology{Lanes: count}, Logger: logger,
		})
		if err != nil {
			t.Fatal(err)
		}
		n := openRealNode(t, logger, logs, func(o *lanes.Options) {
			o.Shared, o.Remote, o.Transport, o.OnOwnership, o.OnOwner = true, c, c, c.Own, c.Moved
		})
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx, n.set) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		return n
	}
	owner, front = open(), open()
	for lane := range count {
		owner.set.Start(lane, func() bool { return true })
	}
	return owner, front
}

// useFrontNode replaces the fake in the options by a node that decides nothing itself.
func useFrontNode(t testing.TB, o *api.Options, count uint32) *realNode {
	t.Helper()
	_, front := openTwoNodes(t, o.Logger, count)
	front.use(t, o)
	return front
}

// A call is one over Connect, in JSON.
type call struct{ subject, procedure, body string }

func TestAnyNodeAnswersInTheSameBytes(t *testing.T) {
	var owner, front *realNode
	var options api.Options
	first := serve(t, func(o *api.Options) {
		owner, front = openTwoNodes(t, o.Logger, 4)
		owner.use(t, o)
		options = *o
	})
	second := serve(t, func(o *api.Options) {
		o.Verifier, o.Sealer, o.Logger = options.Verifier, first.sealer, options.Logger
		front.use(t, o)
	})
	post := func(n *node, c call) string {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.url+"/weir."+c.procedure, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		scopes := identity.Scopes(0)
		if c.subject == "op" {
			scopes = identity.ScopeOperator
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer "+first.token(c.subject, scopes))
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		answer.Header.Del("Date")
		var text bytes.Buffer
		_ = answer.Header.Write(&text)
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d\n%s%s", answer.StatusCode, &text, body)
	}
	asked, refused := 0, 0
	ask := func(c call) string {
		t.Helper()
		nodes := []*node{first, second}
		if asked++; asked%2 == 0 { // Each of them is the first to hear of something.
			nodes[0], nodes[1] = nodes[1], nodes[0]
		}
		one, other := post(nodes[0], c), post(nodes[1], c)
		if one != other {
			t.Errorf("%s %s:\none node answers %s\n     the other %s", c.procedure, c.body, one, other)
		}
		if !strings.HasPrefix(one, "200") {
			refused++
		}
		return one
	}
	orderOf := func(answer string) string {
		t.Helper()
		_, rest, found := strings.Cut(answer, `"orderId":"`)
		if !found {
			t.Fatalf("no order in %s", answer)
		}
		id, _, _ := strings.Cut(rest, `"`)
		return id
	}
	ask(call{"op", "catalog.v1.CatalogService/PutProduct", `{"request_id":"p1","sku":"mug","title":"Mug","price":{"currency_code":"EUR","units":1299}}`})
	ask(call{"op", "catalog.v1.CatalogService/ReceiveStock", `{"request_id":"s1","sku":"mug","quantity":10}`})
	ask(call{"op", "catalog.v1.CatalogService/ReceiveStock", `{"request_id":"s1","sku":"mug","quantity":11}`}) // KEY_REUSED
	ask(call{"op", "catalog.v1.CatalogService/ReceiveStock", `{"request_id":"s2","sku":"cup","quantity":10}`})
	ask(call{"op", "catalog.v1.CatalogService/PreheatStock", `{"request_id":"h1","sku":"mug","units_per_lane":1}`})
	id := orderOf(ask(call{"ada", "order.v1.OrderService/PlaceOrder", `{"request_id":"r1","items":[{"sku":"mug","quantity":1}],"note":"by the door"}`}))
	ask(call{"ada", "order.v1.OrderService/PlaceOrder", `{"request_id":"r1","items":[{"sku":"mug","quantity":2}]}`})
	ask(call{"ada", "order.v1.OrderService/PlaceOrder", `{"request_id":"r2","items":[{"sku":"hat","quantity":1}]}`})
	ask(call{"ada", "order.v1.OrderService/PlaceOrder", `{"request_id":"r3","items":[{"sku":"mug","quantity":1}],"coupon_code":"NONE"}`})
	ask(call{"ada", "order.v1.OrderService/PlaceOrder", `{"request_id":"r4","items":[{"sku":"mug","quantity":1}],"campaign_id":"none"}`})
	ask(call{"eve", "order.v1.OrderService/CancelOrder", `{"request_id":"x1","order_id":"` + id + `"}`})
	ask(call{"op", "order.v1.OrderService/ShipItems", `{"request_id":"i1","order_id":"` + id + `"}`})
	ask(call{"ada", "payment.v1.PaymentService/StartPayment", `{"request_id":"y1","order_id":"` + id + `","provider":"none-such","method":"card"}`})
	ask(call{"ada", "payment.v1.PaymentService/StartPayment", `{"request_id":"y1","order_id":"` + id + `","provider":"sandbox","method":"card"}`})
	ask(call{"ada", "payment.v1.PaymentService/StartPayment", `{"request_id":"y2","order_id":"` + id + `","provider":"sandbox","method":"card"}`})
	ask(call{"op", "payment.v1.PaymentService/RefundPayment", `{"request_id":"f1","order_id":"` + id + `"}`})
	ask(call{"op", "order.v1.OrderService/AddNote", `{"request_id":"n1","order_id":"` + id + `","text":"a regular"}`})
	ask(call{"ada", "order.v1.OrderService/CancelOrder", `{"request_id":"c1","order_id":"` + id + `","reason":"late"}`})
	ask(call{"ada", "order.v1.OrderService/CancelOrder", `{"request_id":"c2","order_id":"` + id + `","reason":"late"}`})
	ask(call{"op", "campaign.v1.CouponService/PutCoupon", `{"request_id":"k1","coupon_code":"TEN","percentage_bps":1000}`})
	if asked < 15 || refused < 8 || refused > asked-8 {
		t.Errorf("asked %d times, refused %d: that shows little", asked, refused)
	}
}

// Whoever placed an order at one node reads it at any other one, at the revision that it was told.
func TestWhatOneNodeDecidedEveryNodeShows(t *testing.T) {
	var owner, front *realNode
	var options api.Options
	first := serve(t, func(o *api.Options) {
		owner, front = openTwoNodes(t, o.Logger, 4)
		owner.use(t, o)
		options = *o
	})
	second := serve(t, func(o *api.Options) {
		o.Verifier, o.Sealer, o.Logger = options.Verifier, first.sealer, options.Logger
		front.use(t, o)
	})
	second.key = first.key // It believes the other one's tokens.
	first.stock("mug")
	ask, read := first, second
	for i := range 12 {
		ask, read = read, ask
		user := fmt.Sprintf("user%d", i)
		placed := must(ask.client(user, 0).PlaceOrder(t.Context(), request("r1", "mug", 1)))(t)
		there := read.client(user, 0)
		got := must(there.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision}))(t)
		if got.Order.OrderId != placed.Order.OrderId || got.Freshness.State != typev1.Freshness_STATE_FRESH {
			t.Errorf("%s: got %v", user, got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		watch := must(there.WatchOrder(ctx, &orderv1.WatchOrderRequest{OrderId: placed.Order.OrderId}))(t)
		if !watch.Receive() || watch.Msg().Order.Revision.Commit != placed.Revision.Commit {
			t.Errorf("%s: watched %v, %v, want %v", user, watch.Msg(), watch.Err(), placed.Order)
		}
		cancelled := must(ask.client(user, 0).CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c1", OrderId: placed.Order.OrderId}))(t)
		if !watch.Receive() || watch.Msg().Order.Revision.Commit != cancelled.Revision.Commit {
			t.Errorf("%s: watched %v, %v, want %v", user, watch.Msg(), watch.Err(), cancelled.Order)
		}
		_ = watch.Close()
		cancel()
		list := must(there.ListOrders(t.Context(), &orderv1.ListOrdersRequest{MinRevision: cancelled.Revision}))(t)
		if len(list.Orders) != 1 {
			t.Errorf("%s: listed %v", user, list)
		}
	}
}
