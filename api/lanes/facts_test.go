package lanes

import (
	"context"
	"errors"
	"testing"

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

// TestANodeThatIsBehindCallsNothingUnknown has a node decide orders before it has heard what other lanes decided of products, as one does that was
// killed with all others: what it does not know may be on sale.
func TestANodeThatIsBehindCallsNothingUnknown(t *testing.T) {
	topology := eventstore.Topology{Lanes: 2}
	const home, other = uint32(0), uint32(1)
	sku := userIn(topology, home, "tea")
	logs := []eventstore.Log{eventstore.OpenMemoryLog(home, 2), eventstore.OpenMemoryLog(other, 2)}
	gated := &gatedLog{Log: logs[home], gate: make(chan struct{})}
	open := func(log func(uint32) eventstore.Log, serves uint32) *Set {
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
		set.Start(serves, func() bool { return true })
		eventually(t, "the lane serves", func() bool { return set.Status(serves).Serving })
		return set
	}
	first := open(func(lane uint32) eventstore.Log { return logs[lane] }, home)
	put := catalogRequest(sku, "put", domain.PutProduct{SKU: sku, Title: "Tea", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	if _, err := first.SubmitLocal(t.Context(), home, put); err != nil {
		t.Fatal(err)
	}
	behind := open(func(lane uint32) eventstore.Log {
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
