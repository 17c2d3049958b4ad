package ownership

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A notice is closed when a log has a line with a text.
type notice struct {
	text string
	once sync.Once
	seen chan struct{}
}

func (n *notice) Write(line []byte) (int, error) {
	if strings.Contains(string(line), n.text) {
		n.once.Do(func() { close(n.seen) })
	}
	return len(line), nil
}

// Of leases that last minutes the next turn to renew them is in minutes: one that failed is tried again at once.
func TestALeaseThatCouldNotBeRenewedIsTriedAgainBeforeTheNextTurn(t *testing.T) {
	c := newCluster(t, 1, 10*time.Minute)
	n, h := c.aloneNode()
	failed := &notice{text: "a lease was not renewed", seen: make(chan struct{})}
	n.logger = slog.New(slog.NewTextHandler(failed, nil))
	n.mu.Lock()
	n.holds[0] = h
	n.mu.Unlock()
	before := h.until.Load()
	c.refuse(LeasesBucket, true)
	ctx, stop := context.WithCancel(t.Context())
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		n.renew(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-renewing
	})
	select {
	case <-failed.seen:
	case <-time.After(time.Minute):
		t.Fatal("it was not tried to renew the lease, though that fails")
	}
	if h.until.Load() != before {
		t.Fatal("a lease was renewed in a bucket that takes no writes")
	}
	c.refuse(LeasesBucket, false)
	c.eventually("the lease is renewed, long before the next turn", func() bool { return h.until.Load() > before })
}

// A deafServer answers nobody who wants to watch a bucket, the first time.
type deafServer struct {
	jetstream.JetStream
	mu sync.Mutex
	// given up is why who waited did so no longer.
	givenUp []error
}

func (d *deafServer) KeyValue(ctx context.Context, bucket string) (jetstream.KeyValue, error) {
	kv, err := d.JetStream.KeyValue(ctx, bucket)
	return &deafBucket{kv, d}, err
}

type deafBucket struct {
	jetstream.KeyValue
	server *deafServer
}

func (b *deafBucket) WatchAll(ctx context.Context, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	b.server.mu.Lock()
	deaf := len(b.server.givenUp) == 0
	b.server.mu.Unlock()
	if !deaf {
		return b.KeyValue.WatchAll(ctx, opts...)
	}
	<-ctx.Done()
	b.server.mu.Lock()
	defer b.server.mu.Unlock()
	b.server.givenUp = append(b.server.givenUp, ctx.Err())
	return nil, ctx.Err()
}

// A watch lives as long as its context, and to make one would be waited for as long: a request that was lost cost half of a node's picture.
func TestAWatchThatIsNotMadeInTimeIsGivenUpAndMadeAgain(t *testing.T) {
	c := newCluster(t, 1, time.Minute)
	n, _ := c.aloneNode()
	js, err := jetstream.New(c.connect())
	if err != nil {
		t.Fatal(err)
	}
	deaf := &deafServer{JetStream: js}
	watching := newTable(deaf, n.leases.config, slog.New(slog.DiscardHandler), func() {})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		watching.run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	c.eventually("the lease is seen", func() bool { return decodeLease(watching.row(leaseKey(0))) != nil })
	deaf.mu.Lock()
	defer deaf.mu.Unlock()
	// The watch's own time is a deadline; that for making it is not.
	if len(deaf.givenUp) != 1 || !errors.Is(deaf.givenUp[0], context.Canceled) {
		t.Errorf("it was given up because of %v, want once, and before the watch's own time was over", deaf.givenUp)
	}
}

// deafen ends every watch of a bucket, without a word to who watches, as the stop of the server does that has them.
func (c *cluster) deafen(bucket string) {
	c.t.Helper()
	js, err := jetstream.New(c.connect())
	if err != nil {
		c.t.Fatal(err)
	}
	stream, err := js.Stream(c.t.Context(), streamOf(bucket))
	if err != nil {
		c.t.Fatal(err)
	}
	names := stream.ConsumerNames(c.t.Context())
	var watches []string
	for name := range names.Name() {
		watches = append(watches, name)
	}
	if err := names.Err(); err != nil {
		c.t.Fatal(err)
	}
	for _, name := range watches {
		if err := stream.DeleteConsumer(c.t.Context(), name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			c.t.Fatal(err)
		}
	}
	if len(watches) == 0 {
		c.t.Fatalf("nobody watches bucket %s", bucket)
	}
}

// Of a watch whose server had stopped nothing was heard for 10 s and more. A lane that was offered meanwhile stayed parked for a second, until the
// offer was taken back.
func TestALaneIsHandedOverWhenNoWatchTellsOfIt(t *testing.T) {
	c := newCluster(t, 2, 10*time.Minute) // No watch is missed before: it would be silent for minutes.
	refused := &notice{text: "a lane cannot be handed over", seen: make(chan struct{})}
	one, two := c.join("one", func(f *fakeNode) { f.logTo = refused }), c.join("two")
	c.eventually("lanes are shared", func() bool { return c.level(one, two) }, one, two)
	c.deafen(LeasesBucket)
	c.deafen(NodesBucket)
	if err := one.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.eventually("all are with two", func() bool { return len(two.serving()) == 2 }, two)
	select {
	case <-refused.seen:
		t.Error("two did not hear of the offer in time")
	default:
	}
}

// A watch whose server had stopped was trusted for 10 s and more, in which a node did not hear that leases ended.
func TestAWatchThatFallsSilentIsMadeAgain(t *testing.T) {
	c := newCluster(t, 1, time.Second)
	one := c.join("one")
	c.eventually("it has the lane", func() bool { return c.level(one) }, one)
	js, err := jetstream.New(c.connect())
	if err != nil {
		t.Fatal(err)
	}
	// It is told nothing, as one whom a message did not reach, and reads the bucket anew only when it misses something.
	watching := newTable(js, one.leases.config, slog.New(slog.DiscardHandler), func() {})
	watching.resync = time.Hour
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		watching.run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	renewed := func() bool {
		return watching.row(leaseKey(0)).revision > 0 && watching.row(leaseKey(0)).revision+1 >= one.leases.row(leaseKey(0)).revision
	}
	c.eventually("the lease is seen", renewed)
	c.deafen(LeasesBucket)
	before := one.leases.row(leaseKey(0)).revision
	c.eventually("the lease is renewed", func() bool { return one.leases.row(leaseKey(0)).revision > before+3 })
	c.eventually("that is seen, though the watch is gone", renewed)
	// The client library finds out by itself, after two of its heartbeats of 5 s: 30 renewals of a third of a second.
	if missed := one.leases.row(leaseKey(0)).revision - before; missed > 15 {
		t.Errorf("%d renewals went by before, want at most 15", missed)
	}
}
