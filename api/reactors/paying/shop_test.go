package paying_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/paying"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// seedOf returns a fresh seed and says what it is if the test fails.
func seedOf(tb testing.TB) uint64 {
	seed := rand.Uint64()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("seed %d", seed)
		}
	})
	return seed
}

// A shop is what survives a crash: the logs, what the disk kept, the provider's books, and the time.
type shop struct {
	tb              testing.TB
	logs            []*eventstore.MemoryLog
	fs              *vfs.MemFS
	banks           []*bank
	limits          paying.Limits
	owned           func(lane uint32) bool // nil: all lanes are this node's
	requests, users int

	mu  sync.Mutex
	now time.Time
}

func newShop(tb testing.TB, seed uint64, laneCount uint32, names ...string) *shop {
	s := &shop{
		tb: tb, fs: vfs.NewCrashableMem(), now: time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC),
		limits: paying.Limits{CallsMax: 4, CheckBackMin: 50 * time.Microsecond, CheckBackMax: time.Millisecond, ViewWait: 100 * time.Millisecond, RecordMax: 200 * time.Millisecond},
	}
	for i, name := range names {
		s.banks = append(s.banks, newBank(name, seed+uint64(i)))
	}
	for lane := range laneCount {
		s.logs = append(s.logs, eventstore.OpenMemoryLog(lane, laneCount))
	}
	return s
}

func (s *shop) topology() eventstore.Topology { return eventstore.Topology{Lanes: uint32(len(s.logs))} }

func (s *shop) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *shop) advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// A life is one process of the shop, from its start to when it is killed.
type life struct {
	*shop
	dead    atomic.Bool
	alive   context.Context //nolint:containedctx // It ends when the process does; whoever waits for it then waits no more.
	die     context.CancelFunc
	left    *vfs.MemFS // what the disk kept when it was killed
	store   *projections.Store
	views   *projections.Views
	set     *lanes.Set
	runner  *reactors.Runner
	cashier *paying.Cashier
	// paying ends before deciding, as in a node.
	paying, deciding stage
}

// A stage is what runs and ends together.
type stage struct {
	cancel  context.CancelFunc
	running sync.WaitGroup
}

func (s *stage) run(l *life, runs ...func(context.Context) error) {
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	for _, run := range runs {
		s.running.Go(func() {
			if err := run(ctx); err != nil && !l.dead.Load() {
				l.tb.Errorf("run: %v", err)
			}
		})
	}
}

func (s *stage) end() {
	s.cancel()
	s.running.Wait()
}

var errDead = errors.New("the process was killed")

// mortal is a log that a dead process cannot write any more.
type mortal struct {
	eventstore.Log
	life *life
}

func (m mortal) Append(record eventstore.Record) eventstore.Pending {
	if m.life.dead.Load() {
		return refused{}
	}
	return m.Log.Append(record)
}

type refused struct{}

func (refused) Wait(context.Context) error { return errDead }

func (refused) Done() <-chan struct{} {
	done := make(chan struct{})
	close(done)
	return done
}

// hand is a provider as a process reaches it: a dead one does not.
type hand struct {
	*bank
	life *life
}

func through[T any](h hand, paymentID, call string, do func() (T, error)) (none T, err error) {
	lost := &payments.UnknownOutcomeError{Provider: h.name, Call: call, PaymentID: paymentID, Cause: errDead}
	if h.life.dead.Load() {
		return none, lost
	}
	order, _, _ := strings.Cut(paymentID, "-")
	defer h.watch.enter(order)()
	trouble := h.trouble()
	if trouble == killBefore {
		h.life.kill()
	}
	if h.life.dead.Load() || trouble == loseBefore {
		return none, lost
	}
	result, err := do()
	if trouble == killAfter {
		h.life.kill()
	}
	if h.life.dead.Load() || trouble == loseAfter {
		return none, lost
	}
	return result, err
}

func (h hand) Authorize(_ context.Context, charge payments.Charge) (payments.Status, error) {
	return through(h, charge.PaymentID, "authorize", func() (payments.Status, error) { return h.authorize(charge) })
}

func (h hand) Capture(_ context.Context, charge payments.Charge, amount domain.Money) (payments.Status, error) {
	return through(h, charge.PaymentID, "capture", func() (payments.Status, error) { return h.capture(charge, amount) })
}

func (h hand) Void(_ context.Context, charge payments.Charge) (payments.Status, error) {
	return through(h, charge.PaymentID, "void", func() (payments.Status, error) { return h.void(charge) })
}

func (h hand) Refund(_ context.Context, charge payments.Charge, refund payments.Refund) (payments.RefundStatus, error) {
	return through(h, charge.PaymentID, "refund", func() (payments.RefundStatus, error) { return h.refund(charge, refund) })
}

func (h hand) Lookup(_ context.Context, charge payments.Charge) (payments.Status, error) {
	return through(h, charge.PaymentID, "lookup", func() (payments.Status, error) { return h.lookup(charge) })
}

// start starts a process on what the disk holds.
func (s *shop) start() *life {
	s.tb.Helper()
	l := &life{shop: s}
	l.alive, l.die = context.WithCancel(context.Background())
	quiet := slog.New(slog.DiscardHandler)
	var err error
	fail := func(err error) {
		if err != nil {
			s.tb.Helper()
			s.tb.Fatal(err)
		}
	}
	l.store, err = projections.OpenStore("state", projections.StoreOptions{FS: s.fs, BlockCacheBytes: 1 << 20, Logger: quiet})
	fail(err)
	logOf := func(lane uint32) eventstore.Log { return mortal{s.logs[lane], l} }
	var runners []*projections.Runner
	for lane := range s.topology().Lanes {
		runner, err := projections.NewRunner(projections.RunnerOptions{
			Store: l.store, Lane: lane, Lanes: s.topology().Lanes, Log: logOf(lane), Logger: quiet,
		})
		fail(err)
		runners = append(runners, runner)
	}
	l.views, err = projections.NewViews(projections.ViewsOptions{
		Store: l.store, Topology: s.topology(), Runners: runners, PageKey: make([]byte, 16),
	})
	fail(err)
	l.set, err = lanes.Open(lanes.Options{
		Topology: s.topology(), Store: l.store, Log: logOf, Owner: "test",
		Observe: func(lane uint32) eventstore.Observer {
			return func(commit *eventstore.Commit, at eventstore.Position) {
				runners[lane].Offer(commit, at)
				l.runner.Offer(lane, commit, at)
			}
		},
		Lane: eventstore.LaneOptions{
			Clock: s.clock, TickEvery: time.Millisecond, DrainBudget: 10 * time.Millisecond, ReopenDelay: time.Millisecond, Logger: quiet,
		},
	})
	fail(err)
	var providers []payments.Provider
	for _, bank := range s.banks {
		providers = append(providers, hand{bank, l})
	}
	l.cashier, err = paying.Open(paying.Options{
		Store: l.store, Topology: s.topology(), Orders: l.views, Commands: l.set, Providers: providers, Limits: s.limits, Logger: quiet,
		Owned: s.owned, Breaker: payments.BreakerLimits{OpenTimeMin: 100 * time.Microsecond, OpenTimeMax: time.Millisecond},
	})
	fail(err)
	l.runner, err = reactors.New(reactors.Options{
		Store: l.store, Topology: s.topology(), Log: logOf, Reactors: []reactors.Registration{l.cashier.Registration()}, Logger: quiet,
	})
	fail(err)
	l.deciding.run(l, append(runsOf(runners), l.set.Run)...)
	l.paying.run(l, l.runner.Run, l.cashier.Run)
	l.await("the lanes to serve", func() bool { return l.dead.Load() || l.set.Serving() })
	return l
}

func runsOf(runners []*projections.Runner) (runs []func(context.Context) error) {
	for _, runner := range runners {
		runs = append(runs, runner.Run)
	}
	return runs
}

// kill ends the process as if its power went: what it does from now on reaches nobody, and the disk keeps what was synced and any
// part of the rest.
func (l *life) kill() {
	l.shop.mu.Lock()
	defer l.shop.mu.Unlock()
	if l.dead.Swap(true) {
		return
	}
	l.die()
	l.left = l.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rand.IntN(101), RNG: rand.New(rand.NewPCG(rand.Uint64(), 1))})
}

// stop stops the process. Killed or not, what is on the disk then is what the next one finds.
func (l *life) stop() {
	l.die()
	l.paying.end()
	l.deciding.end()
	if err := l.store.Close(); err != nil {
		l.tb.Error(err)
	}
	if l.left != nil {
		l.fs = l.left
	}
}

// patience bounds what a test waits for.
const patience = 60 * time.Second

// await waits for what another goroutine brings about.
func (l *life) await(what string, holds func() bool) {
	l.tb.Helper()
	poll := time.NewTicker(200 * time.Microsecond)
	defer poll.Stop()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			l.tb.Fatalf("waited for %s; payments: %+v, reactors: %+v", what, l.cashier.Status(), l.runner.Status())
		}
		<-poll.C
	}
}

// settle waits until every reactor has reacted to everything and no order waits for a provider.
func (l *life) settle() {
	l.tb.Helper()
	l.await("the payments to settle", func() bool {
		before := l.heads()
		for _, status := range l.runner.Status() {
			if status.Position < before[status.Lane] {
				return false
			}
		}
		for _, provider := range l.cashier.Status().Providers {
			if provider.Waiting > 0 {
				return false
			}
		}
		after := l.heads()
		for lane := range before {
			if before[lane] != after[lane] {
				return false
			}
		}
		return true
	})
}

func (l *life) heads() (heads []uint64) {
	for _, log := range l.logs {
		heads = append(heads, log.Position().Number)
	}
	return heads
}

// submit sends a command of an order's user; a refusal is fine.
func (l *life) submit(user string, partition uint32, command domain.Command) (*lanes.Reply, error) {
	l.requests++
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", command))
	return l.set.Submit(l.alive, lanes.Request{
		UserID: user, RequestID: fmt.Sprintf("r%d", l.requests), Fingerprint: lanes.Fingerprint(sum[:16]), Partition: partition, Command: command,
	})
}

const sku, price = "tea", 1250

// stock puts the product and receives units.
func (l *life) stock(units int64) {
	l.tb.Helper()
	home := eventstore.PartitionOf(sku)
	if _, err := l.submit("operator", home, domain.PutProduct{SKU: sku, Title: "Tea", Price: domain.Money{Currency: "EUR", Minor: price}}); err != nil {
		l.tb.Fatal(err)
	}
	if _, err := l.submit("operator", home, domain.ReceiveStock{SKU: sku, Units: units}); err != nil {
		l.tb.Fatal(err)
	}
}

// place places an order of a new user.
func (l *life) place(units int64) (domain.Order, error) {
	l.users++
	user := fmt.Sprintf("user-%d", l.users)
	reply, err := l.submit(user, eventstore.PartitionOf(user), domain.PlaceOrder{UserID: user, Lines: []domain.LineRequest{{SKU: sku, Units: units}}})
	if err != nil {
		return domain.Order{}, err
	}
	return reply.Order, nil
}

func (l *life) mustPlace() domain.Order {
	l.tb.Helper()
	order, err := l.place(1)
	if err != nil {
		l.tb.Fatal(err)
	}
	return order
}

func (l *life) mustDo(order domain.Order, command domain.Command) domain.Order {
	l.tb.Helper()
	reply, err := l.submit(order.UserID, order.ID.Partition(), command)
	if err != nil {
		l.tb.Fatalf("%T: %v", command, err)
	}
	return reply.Order
}

// order reads an order as of now.
func (l *life) order(id domain.OrderID) domain.Order {
	l.tb.Helper()
	lane := l.topology().LaneOf(id.Partition())
	view, _, err := l.views.Order(context.Background(), id, projections.Min{Lane: lane, Commit: l.logs[lane].Position().Number, Wait: patience})
	if err != nil {
		l.tb.Fatal(err)
	}
	return view.Order
}
