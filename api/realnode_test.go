package api_test

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/attacktest"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// realNode puts real lanes and views behind an API, over a log and a store in memory.
type realNode struct {
	set   *lanes.Set
	views *projections.Views
	logs  []*eventstore.MemoryLog
}

// head counts the commits of all lanes, less those that only move units between lanes: they come in their own time.
func (n *realNode) head() uint64 {
	var sum uint64
	for _, log := range n.logs {
		for number := range log.Position().Number {
			record, err := log.Read(context.Background(), number+1)
			if err != nil {
				panic(err)
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err != nil {
				panic(err)
			}
			moves := func(e eventstore.Event) bool {
				switch e.Type {
				case stored.TypeStockGranted, stored.TypeStockAllotted, stored.TypeStockReturned, stored.TypeStockReclaimed:
					return e.RequestID == ""
				}
				return false
			}
			if slices.IndexFunc(commit.Events, func(e eventstore.Event) bool { return !moves(e) }) >= 0 {
				sum++
			}
		}
	}
	return sum
}

// useRealNode replaces the fake in the options.
func useRealNode(t testing.TB, o *api.Options, count uint32) *realNode {
	t.Helper()
	n := openRealNode(t, o.Logger, memoryLogs(count), func(*lanes.Options) {})
	n.use(t, o)
	return n
}

func memoryLogs(count uint32) []*eventstore.MemoryLog {
	var logs []*eventstore.MemoryLog
	for lane := range count {
		logs = append(logs, eventstore.OpenMemoryLog(lane, count))
	}
	return logs
}

// use has the API of the options be this node's, once its lanes serve.
func (n *realNode) use(t testing.TB, o *api.Options) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !n.set.Serving(); {
		if time.Now().After(deadline) {
			t.Fatal("the lanes did not open")
		}
	}
	o.Commands, o.Views, o.Topology = n.set, n.views, eventstore.Topology{Lanes: uint32(len(n.logs))}
}

// openRealNode runs a node with these logs until the test ends. change may change the options of its lanes.
func openRealNode(t testing.TB, logger *slog.Logger, logs []*eventstore.MemoryLog, change func(*lanes.Options)) *realNode {
	t.Helper()
	topology := eventstore.Topology{Lanes: uint32(len(logs))}
	store, err := projections.OpenStore("data", projections.StoreOptions{FS: vfs.NewMem(), Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	n := &realNode{logs: logs}
	var runners []*projections.Runner
	for lane := range topology.Lanes {
		runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lane: lane, Lanes: topology.Lanes, Log: logs[lane], Logger: logger})
		if err != nil {
			t.Fatal(err)
		}
		runners = append(runners, runner)
	}
	options := lanes.Options{
		Topology: topology, Store: store, Owner: "test",
		Log:     func(lane uint32) eventstore.Log { return logs[lane] },
		Observe: func(lane uint32) eventstore.Observer { return runners[lane].Offer },
		Lane:    eventstore.LaneOptions{Logger: logger},
	}
	change(&options)
	if n.set, err = lanes.Open(options); err != nil {
		t.Fatal(err)
	}
	if n.views, err = projections.NewViews(projections.ViewsOptions{Store: store, Topology: topology, Runners: runners, PageKey: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context())) // It ends after what the test still cleans up.
	done := make(chan error, 1+len(runners))
	go func() { done <- n.set.Run(ctx) }()
	for _, runner := range runners {
		go func() { done <- runner.Run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range cap(done) {
			if err := <-done; err != nil && ctx.Err() == nil {
				t.Errorf("node: %v", err)
			}
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// realNodes are what may stand behind an API.
var realNodes = map[string]func(testing.TB, *api.Options) *realNode{
	"1Lane":  func(t testing.TB, o *api.Options) *realNode { return useRealNode(t, o, 1) },
	"4Lanes": func(t testing.TB, o *api.Options) *realNode { return useRealNode(t, o, 4) },
	// One that decides nothing itself.
	"1LaneOfAnotherNode":  func(t testing.TB, o *api.Options) *realNode { return useFrontNode(t, o, 1) },
	"4LanesOfAnotherNode": func(t testing.TB, o *api.Options) *realNode { return useFrontNode(t, o, 4) },
}

func TestAttacksOnRealLanesAreRefusedAndWriteNothing(t *testing.T) {
	for name, use := range realNodes {
		t.Run(name, func(t *testing.T) {
			limits := api.Limits{HeaderTimeMax: 300 * time.Millisecond, BodyTimeMax: 300 * time.Millisecond}
			var real *realNode
			n := serve(t, func(o *api.Options) {
				o.Limits, o.Cluster = limits, noNodes()
				real = use(t, o)
			})
			attacktest.Run(t, attacktest.Target{
				URL: n.url, Key: n.key, Head: real.head, Commands: real.set, HeaderTimeMax: limits.HeaderTimeMax, BodyTimeMax: limits.BodyTimeMax,
				StreamsPerConnectionMax: 250, Logs: n.logs.String,
			})
		})
	}
}

func TestAUsersOrdersAreListedWatchedAndReadAsTheyWere(t *testing.T) {
	for name, use := range realNodes {
		t.Run(name, func(t *testing.T) { testOrdersAreListedWatchedAndRead(t, use) })
	}
}

func testOrdersAreListedWatchedAndRead(t *testing.T, use func(testing.TB, *api.Options) *realNode) {
	n := serve(t, func(o *api.Options) { use(t, o) })
	operator := n.client("op", identity.ScopeOperator)
	must(operator.PutProduct(t.Context(), &catalogv1.PutProductRequest{Sku: "tea", Title: "Tea", Price: &typev1.Money{CurrencyCode: "EUR", Units: 499}}))(t)
	must(operator.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "s1", Sku: "tea", Quantity: 1000}))(t)
	ada, eve := n.client("ada", 0), n.client("eve", 0)
	first := must(ada.PlaceOrder(t.Context(), request("r1", "tea", 1)))(t)
	list := must(ada.ListOrders(t.Context(), &orderv1.ListOrdersRequest{MinRevision: first.Revision}))(t)
	if len(list.Orders) != 1 || list.WatchToken == "" {
		t.Fatalf("listed %v", list)
	}

	// What comes after the list comes by the watch, in the log's order, and what the caller has not.
	second := must(ada.PlaceOrder(t.Context(), request("r2", "tea", 2)))(t)
	must(eve.PlaceOrder(t.Context(), request("r1", "tea", 1)))(t)
	cancelled := must(ada.CancelOrder(t.Context(), &orderv1.CancelOrderRequest{RequestId: "c1", OrderId: first.Order.OrderId}))(t)
	token := list.WatchToken
	for _, want := range []*orderv1.Order{second.Order, cancelled.Order} {
		stream := must(ada.WatchUserOrders(t.Context(), &orderv1.WatchUserOrdersRequest{ResumeToken: token}))(t)
		if !stream.Receive() || !proto.Equal(stream.Msg().Order, want) {
			t.Fatalf("watched %v, %v, want %v", stream.Msg(), stream.Err(), want)
		}
		token = stream.Msg().ResumeToken
		_ = stream.Close()
	}
	live := must(ada.WatchUserOrders(t.Context(), &orderv1.WatchUserOrdersRequest{ResumeToken: token}))(t)
	defer live.Close()
	third := must(ada.PlaceOrder(t.Context(), request("r3", "tea", 3)))(t)
	if !live.Receive() || !proto.Equal(live.Msg().Order, third.Order) {
		t.Fatalf("watched %v, %v, want %v", live.Msg(), live.Err(), third.Order)
	}

	// The order before it was cancelled, and after.
	for _, asOf := range []struct {
		what   string
		moment *orderv1.AsOf
		want   *orderv1.Order
	}{
		{"its first revision", &orderv1.AsOf{Moment: &orderv1.AsOf_Revision{Revision: first.Revision}}, first.Order},
		{"the cancel's revision", &orderv1.AsOf{Moment: &orderv1.AsOf_Revision{Revision: cancelled.Revision}}, cancelled.Order},
		{"the time it was placed", &orderv1.AsOf{Moment: &orderv1.AsOf_Time{Time: first.Order.PlacedAt}}, first.Order},
		{"the time it was cancelled", &orderv1.AsOf{Moment: &orderv1.AsOf_Time{Time: cancelled.Order.UpdateTime}}, cancelled.Order},
	} {
		got := must(ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: first.Order.OrderId, AsOf: asOf.moment}))(t)
		if !proto.Equal(got.Order, asOf.want) {
			t.Errorf("as of %s: got %v, want %v", asOf.what, got.Order, asOf.want)
		}
	}

	// What is asked wrongly.
	earlier := timestamppb.New(first.Order.PlacedAt.AsTime().Add(-time.Millisecond))
	_, err := ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: first.Order.OrderId, AsOf: &orderv1.AsOf{Moment: &orderv1.AsOf_Time{Time: earlier}}})
	wantError(t, "before it was placed", err, connect.CodeNotFound, api.ReasonOrderNotFound)
	elsewhere := &typev1.Revision{Lane: (first.Revision.Lane + 1) % 4, Commit: 1}
	for what, moment := range map[string]*orderv1.AsOf{
		"no moment":        {},
		"another lane":     {Moment: &orderv1.AsOf_Revision{Revision: elsewhere}},
		"no commit":        {Moment: &orderv1.AsOf_Revision{Revision: &typev1.Revision{Lane: first.Revision.Lane}}},
		"a time of no sky": {Moment: &orderv1.AsOf_Time{Time: &timestamppb.Timestamp{Nanos: -1}}},
	} {
		_, err := ada.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: first.Order.OrderId, AsOf: moment})
		wantError(t, what, err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	}
	_, err = eve.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: first.Order.OrderId, AsOf: &orderv1.AsOf{Moment: &orderv1.AsOf_Revision{Revision: first.Revision}}})
	wantError(t, "another user's order", err, connect.CodeNotFound, api.ReasonOrderNotFound)
	ofEve := must(eve.WatchUserOrders(t.Context(), &orderv1.WatchUserOrdersRequest{ResumeToken: token}))(t)
	ofEve.Receive()
	wantError(t, "another user's token", ofEve.Err(), connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	forAda := must(eve.WatchUserOrders(t.Context(), &orderv1.WatchUserOrdersRequest{UserId: "ada"}))(t)
	forAda.Receive()
	wantError(t, "another user's orders", forAda.Err(), connect.CodePermissionDenied, api.ReasonPermissionDenied)
	after := must(ada.WatchOrder(t.Context(), &orderv1.WatchOrderRequest{OrderId: first.Order.OrderId, AfterRevision: elsewhere}))(t)
	after.Receive()
	wantError(t, "after a revision of another lane", after.Err(), connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	missed := must(ada.WatchOrder(t.Context(), &orderv1.WatchOrderRequest{OrderId: first.Order.OrderId, AfterRevision: first.Revision}))(t)
	defer missed.Close()
	if !missed.Receive() || !proto.Equal(missed.Msg().Order, cancelled.Order) {
		t.Fatalf("after its first revision: %v, %v, want %v", missed.Msg(), missed.Err(), cancelled.Order)
	}
}
