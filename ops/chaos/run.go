package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/ops/launch"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A node is what is tormented.
type node interface {
	// Begin starts it without waiting; Serving waits and returns how long it took since then.
	Begin(ctx context.Context) error
	Serving(ctx context.Context) (time.Duration, error)
	// Crash kills it, End stops it cleanly.
	Crash() error
	End() error
	// Verify checks its log while it runs.
	Verify(ctx context.Context) error
	// URL of its API, and the tokens of a trusted backend and of an operator.
	URL() string
	Tokens() (trusted, operator string)
}

// devNode is a real one.
type devNode struct{ launch.Node }

func newDevNode(options Options, dir string) (*devNode, error) {
	binary, err := filepath.Abs(options.Weir)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("no binary to torment (make build makes one): %w", err)
	}
	return &devNode{launch.Node{Binary: binary, Data: filepath.Join(dir, "data"), Lanes: options.Lanes}}, nil
}

// Verify runs 'weir log verify'.
func (n *devNode) Verify(ctx context.Context) error {
	_, err := launch.Output(ctx, nil, n.Binary, "log", "verify", "--data", n.Data)
	return err
}

// URL is where its API is.
func (n *devNode) URL() string { return "http://" + n.Addr }

// Tokens are those that it made at its first start.
func (n *devNode) Tokens() (trusted, operator string) { return n.Trusted, n.Operator }

const (
	// skuCount products are ordered. The first is scarce: most orders for it are refused.
	skuCount = 12
	// scarceUnits is the first receipt of the scarce product.
	scarceUnits = 200
	// plentyUnits is the first receipt of every other one.
	plentyUnits = 10_000_000
	// violationsMax ends the run: what follows says nothing new.
	violationsMax = 20
)

func skuName(number int) string { return fmt.Sprintf("chaos-%02d", number) }

// chaos is one run.
type chaos struct {
	Options
	node node
	http *http.Client
	out  io.Writer
	// random is the run's own; every client has one of its own.
	random *rand.Rand

	mu           sync.Mutex
	record       *json.Encoder
	acknowledged int
	violations   []error

	clients []*client
	// received counts the units that receipts acknowledged, by SKU.
	received map[string]int64
}

// run torments the node and returns an error that joins every violation.
func run(ctx context.Context, options Options, tormented node, dir string, out io.Writer) (err error) {
	file, err := os.Create(filepath.Join(dir, "acknowledged.jsonl"))
	if err != nil {
		return err
	}
	buffered := bufio.NewWriter(file)
	defer func() { err = errors.Join(err, buffered.Flush(), file.Close()) }()
	transport := &http.Transport{MaxIdleConnsPerHost: options.Clients + 1}
	defer transport.CloseIdleConnections()
	c := &chaos{
		Options: options, node: tormented, http: &http.Client{Transport: transport, Timeout: 30 * time.Second}, out: out,
		random: rand.New(rand.NewPCG(options.Seed, 0)), record: json.NewEncoder(buffered),
		received: map[string]int64{},
	}
	for i := range options.Clients {
		c.clients = append(c.clients, newClient(c, i))
	}
	fmt.Fprintf(out, "seed %d: %d rounds, %d clients, %d lanes\n", options.Seed, options.Rounds, options.Clients, options.Lanes)
	return c.run(ctx)
}

func (c *chaos) run(ctx context.Context) (err error) {
	if err := c.node.Begin(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.node.End()) }()
	if _, err := c.node.Serving(ctx); err != nil {
		return err
	}
	if err := c.stock(ctx); err != nil {
		return err
	}
	var servings []time.Duration
	for round := 1; round <= c.Rounds; round++ {
		if err := c.torment(ctx); err != nil {
			return err
		}
		c.http.CloseIdleConnections()
		killed := 1
		// Now and then it is killed again while it starts.
		for ; killed < 4 && c.random.IntN(5) == 0; killed++ {
			if err := c.node.Begin(ctx); err != nil {
				return err
			}
			wait(ctx, time.Duration(c.random.Int64N(int64(300*time.Millisecond))))
			if err := c.node.Crash(); err != nil {
				return err
			}
		}
		if err := c.node.Begin(ctx); err != nil {
			return err
		}
		serving, err := c.node.Serving(ctx)
		if err != nil {
			return fmt.Errorf("round %d: after the kill: %w", round, err)
		}
		servings = append(servings, serving)
		if serving > c.ServingMax {
			c.violated(fmt.Errorf("round %d: the restart took %v to serve, at most %v", round, serving, c.ServingMax))
		}
		if err := c.check(ctx, false); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if round%10 == 0 || round == c.Rounds {
			if err := c.node.Verify(ctx); err != nil {
				c.violated(fmt.Errorf("round %d: the log does not verify (I2): %w", round, err))
			}
		}
		fmt.Fprintf(c.out, "round %3d: killed %d times, serving after %4d ms, %d acknowledged in all\n", round, killed, serving.Milliseconds(), c.acknowledged)
		if len(c.violations) > 0 {
			return fmt.Errorf("round %d: %w", round, errors.Join(c.violations...))
		}
	}
	fmt.Fprintf(c.out, "checking all %d acknowledged requests\n", c.acknowledged)
	if err := c.check(ctx, true); err != nil {
		return err
	}
	if len(c.violations) > 0 {
		return errors.Join(c.violations...)
	}
	slices.Sort(servings)
	orders, cancelled := 0, 0
	for _, each := range c.clients {
		orders += len(each.orders)
		for _, o := range each.orders {
			if o.cancelled {
				cancelled++
			}
		}
	}
	fmt.Fprintf(c.out, "%d rounds: %d orders, %d of them cancelled; every acknowledged request is there and answers as before, stock is conserved, the log verifies\n", c.Rounds, orders, cancelled)
	fmt.Fprintf(c.out, "serving again after (min, median, max): %v, %v, %v\n", servings[0].Round(time.Millisecond),
		servings[len(servings)/2].Round(time.Millisecond), servings[len(servings)-1].Round(time.Millisecond))
	return nil
}

// stock puts the products and gives each its first units.
func (c *chaos) stock(ctx context.Context) error {
	for i := range skuCount {
		product := &catalogv1.PutProductRequest{Sku: skuName(i), Title: "Product " + skuName(i), Price: &typev1.Money{CurrencyCode: "EUR", Units: int64(100 + i)}}
		if _, refusal, err := c.call(ctx, putProduct, product); err != nil || refusal != "" {
			return fmt.Errorf("put %s: %w %s", product.Sku, err, refusal)
		}
		units := int64(plentyUnits)
		if i == 0 {
			units = scarceUnits
		}
		if err := c.clients[0].receive(ctx, skuName(i), units); err != nil {
			return err
		}
	}
	return nil
}

// torment lets all clients work until the node is killed under them.
func (c *chaos) torment(ctx context.Context) error {
	loaded, cancel := context.WithCancel(ctx)
	defer cancel()
	var working sync.WaitGroup
	for _, each := range c.clients {
		working.Go(func() { each.work(loaded) })
	}
	wait(ctx, 10*time.Millisecond+time.Duration(c.random.Int64N(int64(c.LoadMax))))
	err := c.node.Crash()
	cancel()
	working.Wait()
	return errors.Join(err, ctx.Err())
}

// check resolves what was not acknowledged, and then compares everything that was since the last check, or ever, with what
// the node says now.
func (c *chaos) check(ctx context.Context, all bool) error {
	each := func(f func(*client) error) error {
		group, _ := errgroup.WithContext(ctx)
		for _, one := range c.clients {
			group.Go(func() error { return f(one) })
		}
		return group.Wait()
	}
	// A request whose outcome is unknown is asked again, under its own id, until it is known.
	if err := each(func(one *client) error { return one.resolve(ctx) }); err != nil {
		return err
	}
	if err := each(func(one *client) error { return one.check(ctx, all) }); err != nil {
		return err
	}
	return c.checkStock(ctx)
}

// checkStock compares each SKU's account with the sum of the orders that are open (I3).
func (c *chaos) checkStock(ctx context.Context) error {
	reserved := map[string]int64{}
	for _, one := range c.clients {
		for _, o := range one.orders {
			if o.cancelled {
				continue
			}
			for _, item := range o.latest.GetItems() {
				reserved[item.Sku] += item.Quantity
			}
		}
	}
	for i := range skuCount {
		sku := skuName(i)
		var wrong error
		for end := time.Now().Add(c.ViewWait); ; {
			var got catalogv1.GetStockResponse
			if err := c.read(ctx, getStock, &catalogv1.GetStockRequest{Sku: sku}, &got); err != nil {
				return fmt.Errorf("stock of %s: %w", sku, err)
			}
			wrong = checkAccount(got.GetStock(), c.received[sku], reserved[sku])
			// With several lanes a view may still be on its way there.
			if wrong == nil || len(c.violations) > 0 || time.Now().After(end) || ctx.Err() != nil {
				break
			}
			wait(ctx, 10*time.Millisecond)
		}
		if wrong != nil {
			c.violated(fmt.Errorf("stock of %s: %w", sku, wrong))
		}
	}
	return ctx.Err()
}

// checkAccount returns what is wrong with a SKU's account.
func checkAccount(stock *catalogv1.Stock, received, reserved int64) error {
	sum := stock.GetCentral() + stock.GetInTransit() + stock.GetAvailable() + stock.GetReserved() + stock.GetSold()
	least := min(stock.GetReceived(), stock.GetCentral(), stock.GetInTransit(), stock.GetAvailable(), stock.GetReserved(), stock.GetSold())
	switch {
	case sum != stock.GetReceived():
		return fmt.Errorf("received %d, but the terms are %d together: %v (I3)", stock.GetReceived(), sum, stock)
	case least < 0:
		return fmt.Errorf("a term is negative: %v (I3)", stock)
	case stock.GetReceived() != received:
		return fmt.Errorf("received %d units, %d were acknowledged", stock.GetReceived(), received)
	case stock.GetReserved() != reserved:
		return fmt.Errorf("%d units are reserved, open orders hold %d", stock.GetReserved(), reserved)
	}
	return nil
}

// violated notes what must not be.
func (c *chaos) violated(what error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.violations) < violationsMax {
		c.violations = append(c.violations, what)
	}
}

// acknowledge writes an acknowledged request down.
func (c *chaos) acknowledge(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acknowledged++
	return c.record.Encode(r)
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
