package lanes

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// A gatedLog is followed from when its gate is opened: until then whoever follows it hears nothing, as of a server that does not answer.
type gatedLog struct {
	eventstore.Log
	gate chan struct{}
}

func (l *gatedLog) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	select {
	case <-l.gate:
		return l.Log.Follow(ctx, number)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// openShared runs a node of several until the test ends, and returns once it serves its lanes.
func openShared(t *testing.T, topology eventstore.Topology, log func(uint32) eventstore.Log, serves ...uint32) *Set {
	t.Helper()
	store, err := projections.OpenStore("state", projections.StoreOptions{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	set, err := Open(Options{Topology: topology, Store: store, Owner: "test", Log: log, Shared: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- set.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, store.Close()); err != nil {
			t.Error(err)
		}
	})
	for _, lane := range serves {
		set.Start(lane, func() bool { return true })
		eventually(t, "the lane serves", func() bool { return set.Status(lane).Serving })
	}
	return set
}

// putTea puts a product whose home is a lane of the node.
func putTea(t *testing.T, set *Set, home uint32, sku string) {
	t.Helper()
	put := catalogRequest(sku, "put", domain.PutProduct{SKU: sku, Title: "Tea", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	if _, err := set.SubmitLocal(t.Context(), home, put); err != nil {
		t.Fatal(err)
	}
}

// TestANodeThatIsBehindCallsNothingUnknown has a node decide orders before it has heard what other lanes decided of products, as one does that was
// killed with all others: what it does not know may be on sale.
func TestANodeThatIsBehindCallsNothingUnknown(t *testing.T) {
	topology := eventstore.Topology{Lanes: 2}
	const home, other = uint32(0), uint32(1)
	sku := userIn(topology, home, "tea")
	logs := []eventstore.Log{eventstore.OpenMemoryLog(home, 2), eventstore.OpenMemoryLog(other, 2)}
	gated := &gatedLog{Log: logs[home], gate: make(chan struct{})}
	putTea(t, openShared(t, topology, func(lane uint32) eventstore.Log { return logs[lane] }, home), home, sku)
	behind := openShared(t, topology, func(lane uint32) eventstore.Log {
		if lane == home {
			return gated
		}
		return logs[lane]
	}, other)
	order := func(id, sku string) error {
		_, err := behind.SubmitLocal(t.Context(), other, place(userIn(topology, other, "ann"), id, sku, 1))
		return err
	}
	var unavailable *eventstore.UnavailableError
	if err := order("early", sku); !errors.As(err, &unavailable) || unavailable.Lane != home {
		t.Fatalf("a node that has not heard of the product says %v, want that lane %d is not available", err, home)
	}
	close(gated.gate)
	// There is none in stock, but it is known.
	if err := order("late", sku); errors.Is(err, domain.ErrUnknownProduct) || err == nil {
		t.Fatalf("once it has heard of the product it says %v", err)
	}
	if err := order("other", userIn(topology, home, "coffee")); !errors.Is(err, domain.ErrUnknownProduct) {
		t.Fatalf("of a product that nobody has it says %v, want ErrUnknownProduct", err)
	}
}

// An order may name products of several lanes. A node that is behind all of them asked for the end of one lane's log, that of the first that it
// did not know, and then refused the order for the next one.
func TestANodeThatIsBehindSeveralLanesCallsNothingUnknown(t *testing.T) {
	topology := eventstore.Topology{Lanes: 4}
	const other = uint32(3)
	skus := []string{userIn(topology, 0, "tea"), userIn(topology, 1, "milk"), userIn(topology, 2, "cups")}
	var logs []eventstore.Log
	for lane := range topology.Lanes {
		logs = append(logs, eventstore.OpenMemoryLog(lane, topology.Lanes))
	}
	first := openShared(t, topology, func(lane uint32) eventstore.Log { return logs[lane] }, 0, 1, 2)
	for home, sku := range skus {
		putTea(t, first, uint32(home), sku)
	}
	// It has followed none of the others, and hears of each when it asks for its end.
	asked := slices.Clone(logs)
	for home := range skus {
		asked[home] = &askedLog{gatedLog: gatedLog{Log: logs[home], gate: make(chan struct{})}}
	}
	behind := openShared(t, topology, func(lane uint32) eventstore.Log { return asked[lane] }, other)
	command := domain.PlaceOrder{UserID: userIn(topology, other, "ann")}
	for _, sku := range skus {
		command.Lines = append(command.Lines, domain.LineRequest{SKU: sku, Units: 1})
	}
	_, err := behind.SubmitLocal(t.Context(), other, Request{
		UserID: command.UserID, RequestID: "all", Fingerprint: fingerprint(command), Partition: eventstore.PartitionOf(command.UserID), Command: command,
	})
	// There is none in stock, but all are known.
	if unavailable := (*eventstore.UnavailableError)(nil); errors.Is(err, domain.ErrUnknownProduct) || errors.As(err, &unavailable) || err == nil {
		t.Fatalf("of products of three lanes that it had not heard of it says %v", err)
	}
}

// An askedLog is followed once somebody has asked for its end, beside who follows it, who does so at first.
type askedLog struct {
	gatedLog
	asked atomic.Int64
}

func (l *askedLog) Head(ctx context.Context) (uint64, error) {
	if l.asked.Add(1) == 2 {
		close(l.gate)
	}
	return l.Log.Head(ctx)
}

// A lane that came here after a request was begun says nothing about what the node knew as it decided that.
func TestALaneIsServedSinceItWasOpened(t *testing.T) {
	topology := eventstore.Topology{Lanes: 1}
	log := eventstore.OpenMemoryLog(0, 1)
	before := time.Now()
	set := openShared(t, topology, func(uint32) eventstore.Log { return log }, 0)
	if set.seats[0].servedSince(before) {
		t.Error("a lane was served since before it was opened")
	}
	if !set.seats[0].servedSince(time.Now()) {
		t.Error("a lane that is served is not served")
	}
	set.Stop(0, "another")
	if set.seats[0].servedSince(time.Now()) {
		t.Error("a lane of another node is served")
	}
}

func TestAnOrderIsReadOffTheStateOnceThatHasItsCommit(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 100)
	placed := n.must(t, place("ann", "r1", "tea", 1))
	order, commit, err := n.Order(t.Context(), placed.Order.ID, placed.Commit)
	if err != nil || commit != placed.Commit || order.ID != placed.Order.ID || order.UserID != "ann" {
		t.Errorf("got %v at commit %d, %v; want %v at %d", order, commit, err, placed.Order, placed.Commit)
	}
	if _, _, err := n.Order(t.Context(), domain.OrderID{}, 0); !errors.Is(err, projections.ErrNotFound) {
		t.Errorf("of no order: got %v, want %v", err, projections.ErrNotFound)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, _, err := n.Order(ctx, placed.Order.ID, placed.Commit+100); !errors.Is(err, projections.ErrBehind) {
		t.Errorf("of a commit that is not there: got %v, want %v", err, projections.ErrBehind)
	}
}
