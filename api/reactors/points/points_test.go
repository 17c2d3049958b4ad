package points_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/points"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// A shop is a lane with its views and the points reactor, whose sink a test breaks.
type shop struct {
	t      *testing.T
	log    *eventstore.MemoryLog
	views  *projections.Views
	set    *lanes.Set
	runner *reactors.Runner
	broken atomic.Bool
	tried  atomic.Int64
	orders int
}

var errBroken = errors.New("the sink is broken")

// Submit makes the shop the reactor's sink.
func (s *shop) Submit(ctx context.Context, request lanes.Request) (*lanes.Reply, error) {
	s.tried.Add(1)
	if s.broken.Load() {
		return nil, errBroken
	}
	return s.set.Submit(ctx, request)
}

const sku = "tea"

func newShop(t *testing.T) *shop { return newShopOf(t, domain.PointsPerMajorDefault) }

// newShopOf is newShop with a rule of its own.
func newShopOf(t *testing.T, perMajor int64) *shop {
	s := &shop{t: t, log: eventstore.OpenMemoryLog(0, 1)}
	quiet := slog.New(slog.DiscardHandler)
	topology := eventstore.Topology{Lanes: 1}
	log := func(uint32) eventstore.Log { return s.log }
	fail := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	store, err := projections.OpenStore("state", projections.StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20})
	fail(err)
	view, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lane: 0, Lanes: 1, Log: s.log, Logger: quiet})
	fail(err)
	s.views, err = projections.NewViews(projections.ViewsOptions{
		Store: store, Topology: topology, Runners: []*projections.Runner{view}, PageKey: make([]byte, 16),
	})
	fail(err)
	s.set, err = lanes.Open(lanes.Options{
		Topology: topology, Store: store, Log: log, Owner: "test", Lane: eventstore.LaneOptions{Logger: quiet},
		Observe: func(lane uint32) eventstore.Observer {
			return func(commit *eventstore.Commit, at eventstore.Position) {
				view.Offer(commit, at)
				s.runner.Offer(lane, commit, at)
			}
		},
	})
	fail(err)
	reactor, err := points.New(s, perMajor, quiet)
	fail(err)
	registration := reactor.Registration()
	registration.RetryMin, registration.RetryMax = time.Microsecond, time.Millisecond
	s.runner, err = reactors.New(reactors.Options{
		Store: store, Topology: topology, Log: log, Reactors: []reactors.Registration{registration}, Logger: quiet,
	})
	fail(err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{view.Run, s.set.Run, s.runner.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	s.await("the lane to serve", s.set.Serving)
	s.do(domain.PutProduct{SKU: sku, Title: "Tea", Price: domain.Money{Currency: "EUR", Minor: 1250}})
	s.do(domain.ReceiveStock{SKU: sku, Units: 1_000_000})
	return s
}

func (s *shop) await(what string, holds func() bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	poll := time.NewTicker(200 * time.Microsecond)
	defer poll.Stop()
	for !holds() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			s.t.Fatalf("waited for %s; reactors: %+v", what, s.runner.Status())
		}
	}
}

func (s *shop) do(command domain.Command) domain.Order {
	s.t.Helper()
	id, _ := domain.CommandOrderID(command)
	reply, err := s.set.Submit(context.Background(), lanes.Request{UserID: "operator", Partition: id.Partition(), Command: command})
	if err != nil {
		s.t.Fatalf("%T: %v", command, err)
	}
	return reply.Order
}

// sell places an order of a user and has it paid.
func (s *shop) sell(user string, units int64) domain.Order {
	s.t.Helper()
	s.orders++
	place := domain.PlaceOrder{UserID: user, Lines: []domain.LineRequest{{SKU: sku, Units: units}}}
	reply, err := s.set.Submit(context.Background(), lanes.Request{
		UserID: user, RequestID: fmt.Sprintf("r%d", s.orders), Partition: eventstore.PartitionOf(user), Command: place,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	id := reply.Order.ID
	s.do(domain.StartPayment{OrderID: id, Provider: "sandbox", Method: "tok_ok", CaptureNow: true})
	return s.do(domain.RecordPaymentResult{OrderID: id, PaymentID: domain.PaymentID(id, 1), Result: domain.ResultCaptured, Amount: reply.Order.Total})
}

func (s *shop) refund(order domain.Order, minor int64) {
	s.t.Helper()
	amount := domain.Money{Currency: "EUR", Minor: minor}
	order = s.do(domain.RefundPayment{OrderID: order.ID, Amount: amount})
	s.do(domain.RecordRefundResult{OrderID: order.ID, RefundID: order.Refunds[len(order.Refunds)-1].ID, Succeeded: true, Amount: amount})
}

// balance returns a user's points once the reactor has reacted to everything.
func (s *shop) balance(user string) int64 {
	s.t.Helper()
	s.await("the points to be at the head", func() bool { return s.runner.Status()[0].Position == s.log.Position().Number })
	page, _, err := s.views.Points(context.Background(), projections.PointsQuery{UserID: user}, projections.Min{
		Commit: s.log.Position().Number, Wait: 30 * time.Second,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return page.Balance
}

func TestPointsAreAwardedAfterCaptureAndTakenBackInProportion(t *testing.T) {
	s := newShop(t)
	order := s.sell("ada", 4) // 50.00 EUR
	if got := s.balance("ada"); got != 50 {
		t.Errorf("after 50.00 EUR: %d points, want 50", got)
	}
	s.refund(order, 1250)
	if got := s.balance("ada"); got != 37 { // What 37.50 EUR are worth.
		t.Errorf("after a refund of 12.50 EUR: %d points, want 37", got)
	}
	s.refund(order, 3750)
	if got := s.balance("ada"); got != 0 {
		t.Errorf("after everything went back: %d points, want 0", got)
	}
}

// TestOrdersAreUntouchedWhilePointsFailAndPointsAreMadeUpFromTheLog breaks the sink under load: orders go on as before, and when
// it heals every user has exactly the points that they would have.
func TestOrdersAreUntouchedWhilePointsFailAndPointsAreMadeUpFromTheLog(t *testing.T) {
	const ordersMax = 300
	s := newShop(t)
	s.broken.Store(true)
	want := map[string]int64{}
	for i := range ordersMax {
		user := fmt.Sprintf("user-%d", i%7)
		units := int64(1 + i%3)
		order := s.sell(user, units) // It fails the test if an order does not get through.
		if order.Status != domain.StatusPaid {
			t.Fatalf("order %d is %v while points fail, want paid", i, order.Status)
		}
		minor := 1250 * units
		if i%5 == 0 {
			s.refund(order, 1000)
			minor -= 1000
		}
		want[user] += minor / 100
	}
	s.await("the reactor to have tried", func() bool { return s.tried.Load() > 0 && s.runner.Status()[0].Failing > 0 })
	for user := range want {
		page, _, err := s.views.Points(context.Background(), projections.PointsQuery{UserID: user}, projections.Min{})
		if err != nil || page.Balance != 0 {
			t.Fatalf("%s has %d points while the sink is broken (%v)", user, page.Balance, err)
		}
	}
	s.broken.Store(false)
	s.runner.Retry(points.Name)
	for user, balance := range want {
		if got := s.balance(user); got != balance {
			t.Errorf("%s has %d points after the sink healed, want %d", user, got, balance)
		}
	}
}

func TestWithNoPointsAMajorUnitNothingIsSubmitted(t *testing.T) {
	s := newShopOf(t, 0)
	order := s.sell("ada", 4)
	s.refund(order, 1250)
	if got := s.balance("ada"); got != 0 { // It waits for the reactor to be at the head.
		t.Errorf("ada has %d points, want 0", got)
	}
	if tried := s.tried.Load(); tried != 0 {
		t.Errorf("%d commands were submitted, want 0", tried)
	}
}

func TestAReactorOfAnImpossibleRuleIsRefused(t *testing.T) {
	for _, perMajor := range []int64{-1, domain.PointsPerMajorMax + 1} {
		if _, err := points.New(&shop{}, perMajor, nil); err == nil {
			t.Errorf("%d points per major unit are taken", perMajor)
		}
	}
}
