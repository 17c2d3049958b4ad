package reactors

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
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

// A shop writes the logs of all lanes.
type shop struct {
	tb     testing.TB
	random *rand.Rand
	lanes  []*shopLane
	now    time.Time
}

type shopLane struct {
	lane   uint32
	log    *eventstore.MemoryLog
	last   eventstore.Position
	events []Event // all that were committed, in order
	open   []domain.OrderPlaced
}

func newShop(tb testing.TB, seed uint64, lanes uint32) *shop {
	s := &shop{tb: tb, random: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1_700_000_000, 0).UTC()}
	for lane := range lanes {
		s.lanes = append(s.lanes, &shopLane{lane: lane, log: eventstore.OpenMemoryLog(lane, lanes), last: eventstore.Genesis(lane, lanes)})
	}
	return s
}

func (s *shop) topology() eventstore.Topology {
	return eventstore.Topology{Lanes: uint32(len(s.lanes))}
}

func (s *shop) log(lane uint32) eventstore.Log { return s.lanes[lane].log }

// step commits up to four events to a lane; none makes it a fence.
func (s *shop) step(lane uint32) (*eventstore.Commit, eventstore.Position) {
	facts := make([]domain.Event, s.random.IntN(5))
	for i := range facts {
		facts[i] = s.fact(lane)
	}
	return s.commit(lane, facts...)
}

// fact makes an order, or ends one.
func (s *shop) fact(lane uint32) domain.Event {
	l := s.lanes[lane]
	if len(l.open) > 0 && s.random.IntN(2) == 0 {
		i := s.random.IntN(len(l.open))
		placed := l.open[i]
		l.open = append(l.open[:i:i], l.open[i+1:]...)
		return domain.OrderCancelled{OrderID: placed.OrderID, UserID: placed.UserID, Reason: "changed my mind", By: "ada", Released: []domain.Release{{SKU: "tea", Units: 1}}}
	}
	return s.place(lane)
}

func (s *shop) place(lane uint32) domain.OrderPlaced {
	user := ""
	for i := s.random.IntN(1000); user == ""; i++ {
		if name := fmt.Sprintf("user-%d", i); s.topology().LaneOf(eventstore.PartitionOf(name)) == lane {
			user = name
		}
	}
	var entropy [10]byte
	for i := range entropy {
		entropy[i] = byte(s.random.Uint32())
	}
	placed := domain.OrderPlaced{
		OrderID: domain.NewOrderID(s.now, eventstore.PartitionOf(user), entropy), UserID: user,
		Lines: []domain.Line{{SKU: "tea", Units: 1, Title: "Tea", PriceMinor: 250}}, Total: domain.Money{Currency: "EUR", Minor: 250},
		PayBy: s.now.Add(time.Hour), SealedNote: []byte("sealed"),
	}
	s.lanes[lane].open = append(s.lanes[lane].open, placed)
	return placed
}

func (s *shop) commit(lane uint32, facts ...domain.Event) (*eventstore.Commit, eventstore.Position) {
	l := s.lanes[lane]
	s.now = s.now.Add(time.Millisecond)
	commit := &eventstore.Commit{Lane: lane, Number: l.last.Number + 1, Epoch: 1, Time: s.now, PrevHash: l.last.Hash}
	if len(facts) == 0 {
		commit.Events = []eventstore.Event{{Type: eventstore.TypeLaneOpened, Version: 1}}
	}
	for i, fact := range facts {
		typeName, version, aggregateID, payload := stored.Encode(fact)
		e := eventstore.Event{AggregateID: aggregateID, Type: typeName, Version: version, Payload: payload, UserID: "operator"}
		switch fact := fact.(type) {
		case domain.OrderPlaced:
			e.UserID = fact.UserID
		case domain.OrderCancelled:
			e.UserID = fact.UserID
		}
		e.Partition = eventstore.PartitionOf(e.UserID)
		commit.Events = append(commit.Events, e)
		l.events = append(l.events, Event{ID: EventID(lane, commit.Number, i), AggregateID: aggregateID, Type: typeName, Partition: e.Partition})
	}
	record := eventstore.EncodeCommit(commit)
	if err := l.log.Append(record).Wait(s.tb.Context()); err != nil {
		s.tb.Fatalf("append commit %d: %v", commit.Number, err)
	}
	l.last = eventstore.Position{Number: record.Number, Hash: record.Hash}
	return commit, l.last
}

// A node is a store and a running runner over it.
type node struct {
	tb      testing.TB
	store   *projections.Store
	runner  *Runner
	running sync.WaitGroup
	cancel  context.CancelFunc
	err     error
}

func openStore(tb testing.TB, fs vfs.FS) *projections.Store {
	tb.Helper()
	store, err := projections.OpenStore("state", projections.StoreOptions{FS: fs, BlockCacheBytes: 1 << 20})
	if err != nil {
		tb.Fatal(err)
	}
	return store
}

// patience bounds what a test waits for.
const patience = 30 * time.Second

// noPause tries again at once.
func noPause(ctx context.Context, _ time.Duration, _ <-chan struct{}) error {
	runtime.Gosched()
	return ctx.Err()
}

// untilWoken waits until somebody says that it is time to try again.
func untilWoken(ctx context.Context, _ time.Duration, wake <-chan struct{}) error {
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func startNode(tb testing.TB, fs vfs.FS, s *shop, options Options) *node {
	tb.Helper()
	n := &node{tb: tb, store: openStore(tb, fs)}
	options.Store, options.Topology = n.store, s.topology()
	if options.Log == nil {
		options.Log = s.log
	}
	if options.Pause == nil {
		options.Pause = noPause
	}
	options.Logger = slog.New(slog.DiscardHandler)
	var err error
	if n.runner, err = New(options); err != nil {
		tb.Fatal(err)
	}
	for lane := range n.runner.byLane {
		for _, t := range *n.runner.byLane[lane].Load() {
			t.follower.TailIdle = time.Millisecond
		}
	}
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	n.running.Go(func() { n.err = n.runner.Run(ctx) })
	tb.Cleanup(func() { _ = n.stop() })
	return n
}

// stop ends the node, and returns what Run said.
func (n *node) stop() error {
	if n.store == nil {
		return n.err
	}
	n.cancel()
	n.running.Wait()
	if err := n.store.Close(); err != nil {
		n.tb.Error(err)
	}
	n.store = nil
	return n.err
}

// await waits until a condition on the status holds, and fails the test if it does not come to hold.
func (n *node) await(what string, holds func(Status) bool) {
	n.tb.Helper()
	deadline := time.Now().Add(patience)
	for {
		missing := ""
		for _, status := range n.runner.Status() {
			if !holds(status) {
				missing = fmt.Sprintf("%+v", status)
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			n.tb.Fatalf("waited for %s; %s", what, missing)
		}
		runtime.Gosched()
	}
}

// reach waits until every reactor has reacted to everything.
func (n *node) reach(s *shop) {
	n.tb.Helper()
	n.await("every reactor to be at the head", func(status Status) bool { return status.Position == s.lanes[status.Lane].last.Number })
}

// A diary is a reactor that notes the effects it has had. It fails as often as fails says.
type diary struct {
	name  string
	fails func(e Event) error

	mu      sync.Mutex
	effects map[uint32][]Event // by lane, in the order of their success
	busy    int
	busyMax int
}

func newDiary(name string) *diary { return &diary{name: name, effects: map[uint32][]Event{}} }

func (d *diary) Name() string { return d.name }

func (d *diary) React(_ context.Context, e Event) error {
	d.mu.Lock()
	d.busy++
	d.busyMax = max(d.busyMax, d.busy)
	fails := d.fails
	d.mu.Unlock()
	runtime.Gosched()
	var err error
	if fails != nil {
		err = fails(e)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.busy--
	if err == nil {
		d.effects[e.Lane] = append(d.effects[e.Lane], e)
	}
	return err
}

// fail replaces how it fails.
func (d *diary) fail(fails func(e Event) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fails = fails
}

// firsts returns the lane's events in the order of their first success.
func (d *diary) firsts(lane uint32) []Event {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := map[string]bool{}
	var firsts []Event
	for _, e := range d.effects[lane] {
		if !seen[e.ID] {
			seen[e.ID] = true
			firsts = append(firsts, e)
		}
	}
	return firsts
}

// A batchDiary takes whole batches.
type batchDiary struct{ *diary }

func (d *batchDiary) ReactAll(ctx context.Context, events []Event) error {
	if len(events) == 0 || len(events) > BatchEventsMax {
		return fmt.Errorf("a batch of %d events", len(events))
	}
	// It may fail in the middle: what comes before has had its effect then.
	middle := len(events) / 2
	for _, e := range events[:middle] {
		d.note(e)
	}
	if err := d.React(ctx, events[middle]); err != nil {
		return err
	}
	for _, e := range events[middle+1:] {
		d.note(e)
	}
	return nil
}

func (d *diary) note(e Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.effects[e.Lane] = append(d.effects[e.Lane], e)
}
