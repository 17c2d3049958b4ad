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
