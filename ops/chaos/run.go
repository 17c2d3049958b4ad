package main

import (
	"bufio"
	"cmp"
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
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/ops/launch"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
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
	// Pause stops it where it is, Resume lets it go on.
	Pause() error
	Resume() error
	// Verify checks its log while it runs, Audit every unit in it, Events reads those of eventTypes.
	Verify(ctx context.Context) error
	Audit(ctx context.Context) error
	Events(ctx context.Context) ([]event, error)
	// PayAt has it ask the sandbox at a URL from its next start on; a file holds what signs its webhooks.
	PayAt(url, secretFile string)
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
	_, err := n.Output(ctx, "log", "verify", "--data", n.Data)
	return err
}

// Audit runs 'weir audit stock'.
func (n *devNode) Audit(ctx context.Context) error {
	_, err := n.Output(ctx, "audit", "stock", "--data", n.Data)
	return err
}

// Events runs 'weir log cat'.
func (n *devNode) Events(ctx context.Context) ([]event, error) {
	arguments := []string{"log", "cat", "--data", n.Data}
	for _, name := range eventTypes {
		arguments = append(arguments, "--type", name)
	}
	var events []event
	err := n.PrintedLines(ctx, func(line []byte) error {
		e, err := decodeEvent(line)
		events = append(events, e)
		return err
	}, arguments...)
	return events, err
}

// PayAt makes the flags for it.
func (n *devNode) PayAt(url, secretFile string) {
	n.Flags = []string{"--sandbox-url", url, "--payment-provider", "sandbox", "--sandbox-webhook-secret-file", secretFile, "--log-level", "error"}
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
	// loadWaitMax is how long a round's load may take to come to Options.CallsMin.
	loadWaitMax = time.Minute
	// startMax is how long whatever is started, and started again when its servers were not there yet, may take to serve.
	startMax = 5 * time.Minute
	// stockMax is how long it may take to put the products and their units there.
	stockMax = time.Minute
	// checkMaxMin is how long it may take to check what was acknowledged, and checkMaxEach how much longer for each that was.
	checkMaxMin  = 3 * time.Minute
	checkMaxEach = 20 * time.Millisecond
	// bankKillRounds is after how many rounds the payment provider is killed too.
	bankKillRounds = 5
	// lossShare is the share of replies that are lost in kinds that lose them.
	lossShare = 0.05
	// webhookPath is where a node takes the sandbox's webhooks.
	webhookPath = "/webhooks/payments/" + sandbox.Name
	// violationsMax ends the run: what follows says nothing new.
	violationsMax = 20
)

func skuName(number int) string { return fmt.Sprintf("chaos-%02d", number) }

// chaos is one run.
type chaos struct {
	Options
	kind kind
	node node
	http *http.Client
	out  io.Writer
	// proxy stands before the node for webhooks, and for clients when replies are lost; nil in kinds that need none.
	proxy *proxy
	// bank is the payment provider of kinds that pay.
	bank *bank
	// secretFile holds what signs its webhooks.
	secretFile string
	// silences is how many more payments of this round may be made with a method that gets no answer.
	silences atomic.Int64
	// random is the run's own; every client has one of its own.
	random *rand.Rand

	mu           sync.Mutex
	nodeAddr     string
	record       *json.Encoder
	acknowledged int
	violations   []error

	clients []*client
	// silence of lanes in kinds that strike a cluster, nil in others.
	silence *silence
	// witnessCalls counts the calls of histories that were checked.
	witnessCalls int
	// failed counts calls without an answer that stands, other than "come again", and lastFault is the newest.
	failed    atomic.Int64
	lastFault atomic.Value
	// faults counts them by what went wrong. failures are where they are written down, and failuresErr is the first error of that.
	faults      map[string]int
	failures    *json.Encoder
	failuresErr error
	// asked counts calls to nodes that were cut off.
	asked int
	// struck says what came over the cluster in this round.
	struck string
	// received counts the units that receipts acknowledged, by SKU.
	received map[string]int64
}

// url is where the clients find the node.
func (c *chaos) url() string {
	if c.kind.fault == losesReplies {
		return c.proxy.URL()
	}
	return c.node.URL()
}

// behind is where the node is now, for the proxy.
func (c *chaos) behind() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodeAddr
}

// serving waits until the node serves, and tells the proxy where.
func (c *chaos) serving(ctx context.Context) (time.Duration, error) {
	took, err := c.node.Serving(ctx)
	if err != nil {
		return 0, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodeAddr = strings.TrimPrefix(c.node.URL(), "http://")
	return took, nil
}

// run torments the node and returns an error that joins every violation.
func run(ctx context.Context, options Options, tormented node, dir string, out io.Writer) (result error) {
	var files []*bufio.Writer
	for _, name := range []string{"acknowledged.jsonl", "failures.jsonl"} {
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		buffered := bufio.NewWriter(file)
		defer func() { result = errors.Join(result, buffered.Flush(), file.Close()) }()
		files = append(files, buffered)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: max(options.Clients, options.Buyers) + 1}
	defer transport.CloseIdleConnections()
	c := &chaos{
		Options: options, kind: kinds[options.Kind], node: tormented, http: &http.Client{Transport: transport, Timeout: callTimeout}, out: out,
		random: rand.New(rand.NewPCG(options.Seed, 0)), record: json.NewEncoder(files[0]), failures: json.NewEncoder(files[1]),
		received: map[string]int64{},
	}
	defer func() { result = errors.Join(result, c.failuresErr) }()
	for i := range options.Clients {
		c.clients = append(c.clients, newClient(c, i))
	}
	fmt.Fprintf(out, "%s, seed %d: %d rounds, %d clients, %d lanes\n", options.Kind, options.Seed, options.Rounds, options.Clients, options.Lanes)
	if c.kind.fault == strikes {
		return c.runCluster(ctx, tormented.(*cluster)) //nolint:errcheck // Only a cluster is struck.
	}
	if !c.kind.pays {
		return c.run(ctx)
	}
	proxy, err := newProxy(ctx, options.Seed, 0, c.behind)
	if err != nil {
		return err
	}
	c.proxy = proxy
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.proxy.Run(ctx) })
	group.Go(func() error {
		defer cancel()
		return c.withBank(ctx, dir, func() error { return c.run(ctx) })
	})
	return group.Wait()
}

// withBank runs f beside the payment provider.
func (c *chaos) withBank(ctx context.Context, dir string, f func() error) (err error) {
	binary, err := filepath.Abs(c.Weir)
	if err != nil {
		return err
	}
	c.bank = newBank(c.Options, dir, binary, c.proxy.URL()+webhookPath)
	c.secretFile = filepath.Join(dir, "webhook-secret")
	if err := os.WriteFile(c.secretFile, []byte(c.bank.sandbox.Secret.Encode()+"\n"), 0o600); err != nil {
		return err
	}
	if err := c.bank.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.bank.sandbox.End()) }()
	c.node.PayAt(c.bank.sandbox.URL(), c.secretFile)
	return f()
}

func (c *chaos) run(ctx context.Context) (err error) {
	if err := within(ctx, startMax, "start", c.node.Begin); err != nil {
		return err
	}
	defer func() {
		if err != nil { // What keeps it from working may keep it from ending well, too.
			err = errors.Join(err, c.node.Crash())
			return
		}
		err = c.node.End()
	}()
	if err := within(ctx, startMax, "serve", func(ctx context.Context) error { _, err := c.serving(ctx); return err }); err != nil {
		return err
	}
	if c.kind.scarce {
		return c.scarce(ctx)
	}
	if err := within(ctx, stockMax, "stock", c.stock); err != nil {
		return err
	}
	killed := 0
	var servings []time.Duration
	for round := 1; round <= c.Rounds; round++ {
		if err := c.tormented(ctx, round); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		c.http.CloseIdleConnections()
		did := c.kind.fault.String()
		if c.kind.fault == kills {
			var times int
			var serving time.Duration
			err := within(ctx, startMax, "serve after the kill", func(ctx context.Context) (err error) {
				times, serving, err = c.restart(ctx, round)
				return err
			})
			if err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
			killed, servings = killed+times, append(servings, serving)
			did = fmt.Sprintf("killed %d times, serving after %4d ms", times, serving.Milliseconds())
			if serving > c.ServingMax {
				c.violated(fmt.Errorf("round %d: the restart took %v to serve, at most %v", round, serving, c.ServingMax))
			}
		}
		if c.kind.fault == strikes {
			did = c.struck
		}
		if err := within(ctx, c.checkMax(), "check what was acknowledged", func(ctx context.Context) error { return c.check(ctx, false) }); err != nil {
			return fmt.Errorf("round %d: %w", round, errors.Join(c.verdict(), err))
		}
		if round%10 == 0 || round == c.Rounds {
			if err := within(ctx, c.checkMax(), "check the log", c.checkLog); err != nil {
				c.violated(fmt.Errorf("round %d: %w", round, err))
			}
		}
		fmt.Fprintf(c.out, "round %3d: %s, %d acknowledged in all\n", round, did, c.acknowledged)
		if len(c.violations) > 0 {
			return fmt.Errorf("round %d: %w", round, c.verdict())
		}
	}
	return c.finish(ctx, killed, servings)
}

// verdict joins the violations. In a control run, those of what was acknowledged are the loss that it has to see.
func (c *chaos) verdict() error {
	err := errors.Join(c.violations...)
	if c.Lossy && err != nil && (strings.Contains(err.Error(), "(I1") || strings.Contains(err.Error(), "(I4)")) {
		return &lossError{err}
	}
	return err
}

// restart starts the node after a kill. Now and then it is killed again while it starts, and its payment provider with it.
func (c *chaos) restart(ctx context.Context, round int) (killed int, serving time.Duration, err error) {
	if c.bank != nil && round%bankKillRounds == 0 {
		if err := c.bank.restart(ctx); err != nil {
			return 0, 0, err
		}
		c.node.PayAt(c.bank.sandbox.URL(), c.secretFile)
	}
	for killed = 1; killed < 4 && c.random.IntN(5) == 0; killed++ {
		if err := c.node.Begin(ctx); err != nil {
			return 0, 0, err
		}
		wait(ctx, time.Duration(c.random.Int64N(int64(300*time.Millisecond))))
		if err := c.node.Crash(); err != nil {
			return 0, 0, err
		}
	}
	if err := c.node.Begin(ctx); err != nil {
		return 0, 0, err
	}
	serving, err = c.serving(ctx)
	return killed, serving, err
}

// finish checks everything that was ever acknowledged.
func (c *chaos) finish(ctx context.Context, killed int, servings []time.Duration) error {
	if c.kind.pays {
		if err := c.checkMoney(ctx); err != nil {
			return err
		}
		if err := c.checkHeld(ctx); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.out, "checking all %d acknowledged requests\n", c.acknowledged)
	if err := within(ctx, c.checkMax(), "check all that was acknowledged", func(ctx context.Context) error { return c.check(ctx, true) }); err != nil {
		return err
	}
	if err := within(ctx, c.checkMax(), "check the log", c.checkLog); err != nil {
		c.violated(err)
	}
	if len(c.violations) > 0 {
		return errors.Join(c.violations...)
	}
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
	switch {
	case c.kind.fault == losesReplies:
		lost := c.proxy.losses()
		fmt.Fprintf(c.out, "%d replies were lost\n", lost)
		if lost == 0 {
			return errors.New("no reply was lost: this run has shown nothing; give it more load")
		}
	case c.kind.fault == strikes:
		fmt.Fprintln(c.out, c.silence)
		fmt.Fprintf(c.out, "%d calls in histories of stock and of orders, all linearizable\n", c.witnessCalls)
	case len(servings) > 0:
		slices.Sort(servings)
		fmt.Fprintf(c.out, "%d kills; serving again after (min, median, max): %v, %v, %v\n", killed, servings[0].Round(time.Millisecond),
			servings[len(servings)/2].Round(time.Millisecond), servings[len(servings)-1].Round(time.Millisecond))
	}
	return nil
}

// checkLog has the node's log verified and every unit in it audited (I2, I3, I6).
func (c *chaos) checkLog(ctx context.Context) error {
	if err := c.node.Verify(ctx); err != nil {
		return fmt.Errorf("the log does not verify (I2): %w", err)
	}
	if err := c.node.Audit(ctx); err != nil {
		return fmt.Errorf("the stock does not add up in the log (I3): %w", err)
	}
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

// within does one phase of a run, which is over when do returns. One that takes longer than most is an error that names it, and so is one that
// was cut off then and does not say so.
func within(ctx context.Context, most time.Duration, phase string, do func(context.Context) error) error {
	bounded, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("it was not over within %v", most))
	defer cancel()
	err := do(bounded)
	switch {
	case bounded.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("%s: %w: %w", phase, context.Cause(bounded), cmp.Or(err, bounded.Err()))
	case err != nil:
		return fmt.Errorf("%s: %w", phase, err)
	}
	return ctx.Err()
}

// checkMax is how long it may take to check everything that was acknowledged, or the log of it.
func (c *chaos) checkMax() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return checkMaxMin + time.Duration(c.acknowledged)*checkMaxEach
}

// tormented is torment with witnesses, where there is a cluster for them.
func (c *chaos) tormented(ctx context.Context, round int) error {
	if c.kind.fault != strikes {
		return c.torment(ctx)
	}
	return c.witnessed(ctx, round, func() error { return c.torment(ctx) })
}

// torment lets all clients work until the fault has come, and a while after it if the node goes on.
func (c *chaos) torment(ctx context.Context) error {
	c.silences.Store(int64(c.Silences))
	if c.kind.fault == losesReplies {
		c.proxy.setLoss(lossShare)
	}
	if c.bank != nil {
		if err := c.bank.turn(ctx, c.random); err != nil {
			return err
		}
	}
	loaded, cancel := context.WithCancel(ctx)
	defer cancel()
	var working sync.WaitGroup
	for _, each := range c.clients {
		working.Go(func() { each.work(loaded) })
	}
	c.load(ctx)
	var err error
	switch c.kind.fault {
	case kills:
		err = c.node.Crash()
	case pauses:
		err = c.node.Pause()
		wait(ctx, c.PauseFor)
		err = errors.Join(err, c.node.Resume())
		c.load(ctx)
	case losesReplies: // All the time.
	case strikes:
		err = c.strike(ctx)
	}
	cancel()
	working.Wait()
	return errors.Join(err, ctx.Err())
}

// load waits for a while that is drawn, and until enough was acknowledged in it. It reports whether that came to be.
func (c *chaos) load(ctx context.Context) bool {
	acknowledged := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.acknowledged
	}
	before, end := acknowledged(), time.Now().Add(loadWaitMax)
	wait(ctx, 10*time.Millisecond+time.Duration(c.random.Int64N(int64(c.LoadMax))))
	for acknowledged() < before+c.CallsMin && ctx.Err() == nil && time.Now().Before(end) {
		wait(ctx, retryInterval)
	}
	return acknowledged() >= before+c.CallsMin || ctx.Err() != nil
}

// each does something for all clients at once.
func (c *chaos) each(ctx context.Context, f func(*client) error) error {
	group, _ := errgroup.WithContext(ctx)
	for _, one := range c.clients {
		group.Go(func() error { return f(one) })
	}
	return group.Wait()
}

// check resolves what was not acknowledged, and then compares everything that was since the last check, or ever, with what
// the node says now.
func (c *chaos) check(ctx context.Context, all bool) error {
	// A request whose outcome is unknown is asked again, under its own id, until it is known.
	if err := c.each(ctx, func(one *client) error { return one.resolve(ctx) }); err != nil {
		return err
	}
	if c.proxy != nil {
		c.proxy.setLoss(0) // What is read now is compared, and not what was heard of it.
	}
	if err := c.each(ctx, func(one *client) error { return one.check(ctx, all) }); err != nil {
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
			open := reserved[sku]
			if c.kind.pays {
				open = got.GetStock().GetReserved() // What is reserved and what is sold goes on by itself.
			}
			wrong = checkAccount(got.GetStock(), c.received[sku], open)
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

// checkHeld compares what is reserved and sold of each SKU with the orders that hold units, once all payments are over (I3).
func (c *chaos) checkHeld(ctx context.Context) error {
	held := map[string]int64{}
	for _, one := range c.clients {
		for _, o := range one.orders {
			if status := o.latest.GetStatus(); status == orderv1.OrderStatus_ORDER_STATUS_CANCELLED || status == orderv1.OrderStatus_ORDER_STATUS_EXPIRED {
				continue
			}
			for _, item := range o.latest.GetItems() {
				held[item.GetSku()] += item.GetQuantity()
			}
		}
	}
	for i := range skuCount {
		sku := skuName(i)
		for end := time.Now().Add(c.ViewWait); ; wait(ctx, retryInterval) {
			var got catalogv1.GetStockResponse
			if err := c.read(ctx, getStock, &catalogv1.GetStockRequest{Sku: sku}, &got); err != nil {
				return fmt.Errorf("stock of %s: %w", sku, err)
			}
			stock := got.GetStock()
			if stock.GetReserved()+stock.GetSold() == held[sku] {
				break
			}
			if time.Now().After(end) || ctx.Err() != nil {
				c.violated(fmt.Errorf("stock of %s: orders hold %d units, its account says %v (I3)", sku, held[sku], stock))
				break
			}
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
