package flashsale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

const (
	// callTimeout is how long one call may take before its outcome counts as unknown.
	callTimeout = 30 * time.Second
	// resolveWait is how long a request is asked again until its outcome is known.
	resolveWait = 2 * time.Minute
	// retryInterval is between two tries when the node did not say when to come again, retryDelayMax the longest that it may ask for.
	retryInterval = 10 * time.Millisecond
	retryDelayMax = time.Second

	// campaign is the sale's, of which there is one for each product. campaignMargin keeps it open for a node whose clock differs.
	campaign       = "flash-sale"
	campaignMargin = time.Hour
	// priceMinor is the campaign's price, in cents of currency; without it the product costs twice as much.
	priceMinor = 999
	currency   = "EUR"

	// These stand in a request where load.Template patches it.
	requestPlace = "attempt-0000000000"
	userPlace    = "buyer-00000000"
)

// preheat puts the product on sale, as a campaign with a price, a stock and a limit of its own, and shares its units out.
func (s *sale) preheat(ctx context.Context) error {
	progress := Progress{Step: "preheat", Unit: "units", Total: s.Units}
	return s.step(func() Progress { return progress }, func() error {
		catalog := s.catalog()
		_, err := catalog.PutProduct(ctx, &catalogv1.PutProductRequest{
			RequestId: s.sku + "-put", Sku: s.sku, Title: "The last ones in the world", Price: &typev1.Money{CurrencyCode: currency, Units: 2 * priceMinor},
		})
		if err != nil {
			return fmt.Errorf("put the product %s: %w", s.sku, err)
		}
		_, err = catalog.ReceiveStock(ctx, &catalogv1.ReceiveStockRequest{RequestId: s.sku + "-stock", Sku: s.sku, Quantity: s.Units})
		if err != nil {
			return fmt.Errorf("receive %d units of %s: %w", s.Units, s.sku, err)
		}
		now := time.Now()
		_, err = s.campaigns().PutCampaign(ctx, &campaignv1.PutCampaignRequest{
			RequestId: s.sku + "-campaign", CampaignId: campaign, Sku: s.sku, Price: &typev1.Money{CurrencyCode: currency, Units: priceMinor},
			OpensAt: timestamppb.New(now.Add(-campaignMargin)), ClosesAt: timestamppb.New(now.Add(runMax + campaignMargin)),
			UserUnitsMax: 1, OrderUnitsMax: 1, Units: s.Units,
		})
		if err != nil {
			return fmt.Errorf("put the campaign of %s: %w", s.sku, err)
		}
		// Every lane gets its share before the doors open. What is left over, and what one lane has and another needs, moves later.
		_, err = catalog.PreheatStock(ctx, &catalogv1.PreheatStockRequest{RequestId: s.sku + "-preheat", Sku: domain.CampaignPool(s.sku, campaign)})
		if err != nil {
			return fmt.Errorf("preheat %s: %w", s.sku, err)
		}
		return nil
	})
}

// order is what every attempt asks for; its request id and its user are patched in.
func (s *sale) order() *orderv1.PlaceOrderRequest {
	return &orderv1.PlaceOrderRequest{
		RequestId: s.sku + "-" + requestPlace, UserId: userPlace, CampaignId: campaign, Items: []*orderv1.ItemRequest{{Sku: s.sku, Quantity: 1}},
	}
}

// url is where the node's API is now.
func (s *sale) url() string {
	if s.TLS != nil {
		return "https://" + s.node.Addr()
	}
	return "http://" + s.node.Addr()
}

// dial connects to the node.
func (s *sale) dial(ctx context.Context) (*load.Conn, error) {
	if s.TLS != nil {
		return load.DialTLS(ctx, s.node.Addr(), s.TLS)
	}
	return load.Dial(ctx, s.node.Addr())
}

func (s *sale) catalog() catalogv1connect.CatalogServiceClient {
	return catalogv1connect.NewCatalogServiceClient(s.http, s.url(), connect.WithInterceptors(launch.Bearer(s.node.Token())))
}

func (s *sale) campaigns() campaignv1connect.CampaignServiceClient {
	return campaignv1connect.NewCampaignServiceClient(s.http, s.url(), connect.WithInterceptors(launch.Bearer(s.node.Token())))
}

func (s *sale) orders() orderv1connect.OrderServiceClient {
	return orderv1connect.NewOrderServiceClient(s.http, s.url(), connect.WithInterceptors(launch.Bearer(s.node.Token())))
}

// crowd draws the users: a walk through all 32-bit numbers with an odd stride meets none twice.
type crowd struct{ first, stride uint32 }

func newCrowd(seed uint64) crowd {
	random := rand.New(rand.NewPCG(seed, 0))
	return crowd{first: random.Uint32(), stride: random.Uint32() | 1}
}

// user of an attempt.
func (c crowd) user(attempt int64) uint32 { return c.first + uint32(attempt)*c.stride }

// rush is a crowd that buys.
type rush struct {
	*sale
	crowd           crowd
	first, attempts int64

	next                    atomic.Int64
	answered, sold, refused atomic.Int64
	// killAt is after how many acknowledged orders the node is killed, 0 for never. reached is closed then, over when all
	// attempts are answered.
	killAt        int64
	reached, over chan struct{}
}

// rush lets attempts first, first+1, … come as fast as they are answered, and returns when the last one was.
func (s *sale) rush(ctx context.Context, name string, first, attempts, killAt int64) (*tally, error) {
	r := &rush{
		sale: s, crowd: newCrowd(s.Seed), first: first, attempts: attempts,
		killAt: killAt, reached: make(chan struct{}), over: make(chan struct{}),
	}
	result := &tally{attempts: attempts, refused: map[string]int64{}}
	count := func() Progress {
		return Progress{Step: name, Unit: "attempts", Done: r.answered.Load(), Total: attempts, Sold: r.sold.Load(), Refused: r.refused.Load()}
	}
	err := s.step(count, func() error {
		group, ctx := errgroup.WithContext(ctx)
		var mu sync.Mutex
		result.began = time.Now()
		for range min(int64(s.Connections), attempts) {
			group.Go(func() error {
				b, err := r.newBuyer()
				if err != nil {
					return err
				}
				err = b.work(ctx)
				mu.Lock()
				defer mu.Unlock()
				result.take(b)
				return err
			})
		}
		group.Go(func() (err error) {
			result.kill, err = r.murder(ctx)
			return err
		})
		err := group.Wait()
		result.elapsed = time.Since(result.began)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return result, nil
}

// murder kills the node when its time has come, and starts it again.
func (r *rush) murder(ctx context.Context) (*Kill, error) {
	select {
	case <-r.reached:
	case <-r.over:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	sold := r.sold.Load()
	took, err := r.node.Restart(ctx)
	if err != nil {
		return nil, err
	}
	return &Kill{SoldBefore: sold, ServingAfterMillis: inMillis(took)}, nil
}

// The kinds of attempts: a user's first one, and another by a user who has got a unit.
const (
	kindFirst  = "attempt"
	kindSecond = "another"
)

// A buyer makes attempts over one connection, one after the other.
type buyer struct {
	*rush
	conn *load.Conn
	// unwatch stops what closes conn when its context ends.
	unwatch func() bool
	request *load.Template
	attempt int64
	// kind of attempt, kindFirst or kindSecond; each has request ids of its own.
	kind    string
	decoder decoder
	orders  []placed
	refused map[string]int64
	latency load.Histogram
	// unanswered counts the requests that no answer came to, postponed those told to come later. All were asked again.
	unanswered, postponed int64
}

func (r *rush) newBuyer() (*buyer, error) {
	body, err := proto.Marshal(r.order())
	if err != nil {
		return nil, err
	}
	b := &buyer{rush: r, kind: kindFirst, refused: map[string]int64{}, decoder: newDecoder()}
	b.request, err = load.NewTemplateFor(r.node.Addr(), orderv1connect.OrderServicePlaceOrderProcedure, "application/proto", r.node.Token(), body,
		load.Field{Placeholder: requestPlace, Fill: func(dst []byte) { copy(dst, fmt.Sprintf("%s-%010d", b.kind, b.attempt)) }},
		load.Field{Placeholder: userPlace, Fill: func(dst []byte) { copy(dst, fmt.Sprintf("buyer-%08x", b.crowd.user(b.attempt))) }},
	)
	return b, err
}

// work takes attempts until there are no more.
func (b *buyer) work(ctx context.Context) error {
	defer b.hangUp()
	for {
		number := b.next.Add(1) - 1
		if number >= b.attempts {
			return nil
		}
		b.attempt = b.first + number
		began := time.Now()
		answer, err := b.resolve(ctx)
		if err != nil {
			return err
		}
		b.latency.Record(time.Since(began))
		if err := b.settle(answer); err != nil {
			return err
		}
	}
}

// settle counts an answer that stands.
func (b *buyer) settle(a answer) error {
	if a.reason != "" {
		b.refused[a.reason]++
		b.rush.refused.Add(1)
	} else {
		order := placed{attempt: b.attempt, reply: bytes.Clone(a.reply), response: &orderv1.PlaceOrderResponse{}}
		if err := proto.Unmarshal(order.reply, order.response); err != nil {
			return fmt.Errorf("the reply to attempt %d cannot be read: %w", b.attempt, err)
		}
		b.orders = append(b.orders, order)
		if b.sold.Add(1) == b.killAt {
			close(b.reached)
		}
	}
	if b.answered.Add(1) == b.attempts {
		close(b.over)
	}
	return nil
}

// resolve asks, again and again with the same request id, until the answer stands.
func (b *buyer) resolve(ctx context.Context) (answer, error) {
	for end := time.Now().Add(resolveWait); ; {
		a, err := b.ask(ctx)
		if err == nil && !a.later {
			return a, nil
		}
		if ctx.Err() != nil {
			return a, ctx.Err()
		}
		delay := retryInterval
		if err != nil {
			b.hangUp()
		} else {
			b.postponed++
			delay = min(max(a.delay, retryInterval), retryDelayMax)
			err = errors.New(a.fault)
		}
		if time.Now().After(end) {
			return a, fmt.Errorf("attempt %d has no outcome after %v: %w", b.attempt, resolveWait, err)
		}
		wait(ctx, delay)
	}
}

// ask sends the request once. An error means that its outcome is not known.
func (b *buyer) ask(ctx context.Context) (answer, error) {
	if b.conn == nil {
		conn, err := b.dial(ctx)
		if err != nil {
			return answer{}, err
		}
		b.conn = conn
		b.unwatch = context.AfterFunc(ctx, func() { _ = conn.Close() }) // Nobody waits for the reply any more.
	}
	status, body, err := b.conn.Do(b.request.Next(), callTimeout)
	if err != nil {
		b.unanswered++
		return answer{}, err
	}
	if status == http.StatusOK {
		return answer{reply: body}, nil
	}
	return b.decoder.failure(status, body), nil
}

func (b *buyer) hangUp() {
	if b.conn != nil {
		b.unwatch()
		_ = b.conn.Close() // Nothing was written that a close could lose.
		b.conn = nil
	}
}

// wait waits, or until ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
