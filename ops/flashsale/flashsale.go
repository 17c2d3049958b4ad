// Package flashsale sells a scarce product to a crowd: it preheats a campaign, lets simulated buyers storm it as fast as the
// machine allows, kills the server in the middle when asked to, sells what expires unpaid once more, and then checks from
// outside that nothing was oversold, undersold, lost or done twice (I1, I3, I4).
package flashsale

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"time"

	"github.com/weirhq/weir/ops/bench/load"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// Options say what is sold, to how many, and where.
type Options struct {
	// Weir is the binary that is started, on a data directory of its own below Dir. Not used with Addr.
	Weir string
	// Addr of a node that runs, host:port; empty starts one.
	Addr string
	// TLS is how the node at Addr is reached over TLS; nil means in the clear.
	TLS *tls.Config
	// Token of an operator for the node at Addr.
	Token string
	// Data directory of the node at Addr; empty when it is not known.
	Data string
	// Lanes of the node that is started.
	Lanes int
	// PayWithin is how long an order on the node that is started keeps its units unpaid. 0 means the shortest of payWindows that
	// this machine is fast enough for.
	PayWithin time.Duration
	// Kill kills the node that was started with kill -9 when half of the units are sold, and starts it again.
	Kill bool
	// Units on sale, each to be sold once.
	Units int64
	// Attempts to buy one unit, each by another user.
	Attempts int64
	// DeclinedPercent of the orders are paid with a card that is declined, UnpaidPercent never; the others are paid.
	DeclinedPercent, UnpaidPercent int
	// Connections that the buyers come over.
	Connections int
	// Seed draws the buyers.
	Seed uint64
	// Dir is where the data directory is made and removed; empty is the system's folder for temporary files.
	Dir string
	// ViewWait is how long a view may take to show what was acknowledged, at most 10 s.
	ViewWait time.Duration
	// Audit replays the log of the node that runs on a data directory, and says what is wrong with a product's units and
	// where those of its campaign are (I3). May be nil.
	Audit func(ctx context.Context, data, sku, campaign string) (*Audit, error)
	// Watch is told how far the sale is: every watchEvery, and at each step's end. From one goroutine; may be nil.
	Watch func(Progress)
}

const (
	unitsMax       = 1_000_000
	attemptsMax    = 100_000_000
	connectionsMax = 4096
	payWithinMin   = time.Second
	// watchEvery is between two looks at a step.
	watchEvery = 100 * time.Millisecond
	// runMax bounds the whole run.
	runMax = time.Hour
)

// payWindows are how long unpaid orders keep their units when nobody says. When the rush or paying takes longer, the sale is held once more,
// on a new node with the next one.
var payWindows = []time.Duration{7 * time.Second, 25 * time.Second, 2 * time.Minute}

// DefaultOptions are the sale of 1,000 units to 100,000 buyers.
func DefaultOptions() Options {
	return Options{Lanes: 1, Units: 1000, Attempts: 100_000, DeclinedPercent: 5, UnpaidPercent: 5, Connections: 256, Seed: 1, ViewWait: 10 * time.Second}
}

// Validate returns an error that says what is wrong with the options.
func (o *Options) Validate() error {
	switch {
	case o.Units < 1 || o.Units > unitsMax:
		return fmt.Errorf("units must be 1 to %d, not %d", unitsMax, o.Units)
	case o.Attempts < 1 || o.Attempts > attemptsMax:
		return fmt.Errorf("attempts must be 1 to %d, not %d", attemptsMax, o.Attempts)
	case o.DeclinedPercent < 0 || o.UnpaidPercent < 0 || o.DeclinedPercent+o.UnpaidPercent > 100:
		return fmt.Errorf("the shares of buyers who are declined and who never pay must be 0 to 100 percent together, not %d and %d", o.DeclinedPercent, o.UnpaidPercent)
	case o.Connections < 1 || o.Connections > connectionsMax:
		return fmt.Errorf("connections must be 1 to %d, not %d", connectionsMax, o.Connections)
	case o.Addr == "" && o.PayWithin != 0 && o.PayWithin < payWithinMin:
		return fmt.Errorf("an unpaid order must keep its units for at least %v, not %v", payWithinMin, o.PayWithin)
	case o.Addr == "" && o.TLS != nil:
		return errors.New("a node that is started here is reached in the clear")
	case o.Addr != "" && o.Kill:
		return errors.New("only a node that was started here is killed")
	}
	return nil
}

// Progress is how far a step is.
type Progress struct {
	// Step for people, Unit what it counts.
	Step, Unit  string
	Done, Total int64
	// Sold and Refused of the attempts that were answered; 0 in steps that make none.
	Sold, Refused int64
}

// A Report is how a sale went.
type Report struct {
	// Run names this sale: its product is called so, and its request ids begin with it.
	Run  string `json:"run"`
	Seed uint64 `json:"seed"`
	// Totals are the same for every run with the same options, as long as nothing is wrong.
	Totals Totals `json:"totals"`
	// Rush is when everybody came, Resale when the units of expired orders were sold again.
	Rush   Timing  `json:"rush"`
	Resale *Timing `json:"resale,omitempty"`
	// PaySeconds is how long all payments of the rush took, one after the other on each of 32 lines; 0 when there were none.
	PaySeconds float64 `json:"paySeconds"`
	// Kill is set when the node was killed.
	Kill *Kill `json:"kill,omitempty"`
	// Stock is the campaign's account at the end.
	Stock Stock `json:"stock"`
	// Audit is what the log says of the product's units; nil when it was not asked.
	Audit *Audit `json:"audit,omitempty"`
	// Notes say what was left out, and why.
	Notes []string `json:"notes,omitempty"`
	// Wrong is everything that must not be; empty for a good sale.
	Wrong []string `json:"wrong"`
}

// Totals are what a seed decides. Each attempt is for one unit and by a user of its own, so it matters for who gets a unit
// in which order they come, but not for how many do.
type Totals struct {
	Units    int64 `json:"units"`
	Attempts int64 `json:"attempts"`
	// Sold counts the attempts that got a unit, Refused the others, by reason.
	Sold    int64            `json:"sold"`
	Refused map[string]int64 `json:"refused"`
	// SecondRefused counts, by reason, those who got a unit and asked for another one: a user may have one.
	SecondRefused map[string]int64 `json:"secondRefused"`
	// Paid orders were captured, Declined ones tried to pay in vain, Abandoned ones never did.
	Paid      int64 `json:"paid"`
	Declined  int64 `json:"declined"`
	Abandoned int64 `json:"abandoned"`
	// Expired orders gave their units back unpaid; ResaleAttempts came for them, and Resold of those got one,
	// ResalePaid of which paid it.
	Expired        int64            `json:"expired"`
	ResaleAttempts int64            `json:"resaleAttempts"`
	Resold         int64            `json:"resold"`
	ResaleRefused  map[string]int64 `json:"resaleRefused"`
	ResalePaid     int64            `json:"resalePaid"`
}

// Timing is how fast attempts were answered.
type Timing struct {
	Seconds           float64 `json:"seconds"`
	AttemptsPerSecond float64 `json:"attemptsPerSecond"`
	// Latencies from the first time that an attempt was sent until its answer stood.
	P50Millis float64 `json:"p50Millis"`
	P99Millis float64 `json:"p99Millis"`
	MaxMillis float64 `json:"maxMillis"`
	// Unanswered requests were asked again with the same request id, as were those told to come Later.
	Unanswered int64 `json:"unanswered"`
	Later      int64 `json:"later"`
}

// Kill is what a kill -9 in the middle did.
type Kill struct {
	// SoldBefore counts the orders that were acknowledged when the node was killed.
	SoldBefore int64 `json:"soldBefore"`
	// ServingAfterMillis is how long the restart took to serve.
	ServingAfterMillis float64 `json:"servingAfterMillis"`
}

// Stock is where the units of the campaign are.
type Stock struct {
	Units     int64 `json:"units"`
	Remaining int64 `json:"remaining"`
	Reserved  int64 `json:"reserved"`
	Sold      int64 `json:"sold"`
}

// Audit is what a replay of the log found.
type Audit struct {
	// Events that moved the product's units, after each of which its accounts were proven.
	Events int64 `json:"events"`
	Stock
	// Violations are the events after which one was wrong.
	Violations []string `json:"violations"`
}

// wrongMax ends the list of what is wrong: what follows says nothing new.
const wrongMax = 20

func (r *Report) wrong(format string, arguments ...any) {
	if len(r.Wrong) < wrongMax {
		r.Wrong = append(r.Wrong, fmt.Sprintf(format, arguments...))
	}
}

// Run holds the sale and blocks until it is over and everything that it started has ended. It returns an error when the
// sale could not be held to its end; whether it was a good one, its report says.
func Run(ctx context.Context, options Options) (*Report, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	if options.Addr != "" {
		return hold(ctx, options, &foreignNode{addr: options.Addr, token: options.Token, data: options.Data})
	}
	return tryWindows(options, func(options Options) (*Report, error) { return holdOwn(ctx, options) })
}

// tryWindows holds a sale with the time to pay that was asked for, or with one after the other until the sale does not outlast it.
func tryWindows(options Options, holdOne func(Options) (*Report, error)) (*Report, error) {
	if options.PayWithin != 0 {
		return holdOne(options)
	}
	for i, window := range payWindows {
		options.PayWithin = window
		report, err := holdOne(options)
		var slow *TooSlowError
		switch {
		case errors.As(err, &slow) && i+1 < len(payWindows):
			continue
		case err == nil && i > 0:
			report.Notes = append(report.Notes, fmt.Sprintf("this machine needed longer than %v, so the sale was held again and unpaid orders kept their units for %v", payWindows[i-1], window))
		}
		return report, err
	}
	panic("flashsale: bug: there are no times to pay")
}

// holdOwn holds the sale on a node of its own, in a directory that is removed.
func holdOwn(ctx context.Context, options Options) (report *Report, err error) {
	dir, err := os.MkdirTemp(options.Dir, "weir-flash-sale-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return hold(ctx, options, newOwnNode(options, dir))
}

// sale is one run.
type sale struct {
	Options
	node   node
	http   *http.Client
	report *Report
	// sku is the product's.
	sku string
	// heldUntil is the earliest time at which an order of the latest rush may expire.
	heldUntil time.Time
}

// hold holds the sale on a node.
func hold(ctx context.Context, options Options, on node) (report *Report, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, runMax, fmt.Errorf("the sale was not over after %v", runMax))
	defer cancel()
	if options.Watch == nil {
		options.Watch = func(Progress) {}
	}
	if err := on.Start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, on.End()) }()
	transport := &http.Transport{MaxIdleConnsPerHost: options.Connections, TLSClientConfig: options.TLS.Clone()}
	defer transport.CloseIdleConnections()
	s := &sale{Options: options, node: on, http: &http.Client{Transport: transport, Timeout: callTimeout}}
	// Request ids are for ever, so that another run on the same node needs others. Nothing of the totals depends on it.
	s.sku = fmt.Sprintf("flash-%08x", rand.Uint32())
	s.report = &Report{Run: s.sku, Seed: options.Seed, Totals: Totals{Units: options.Units, Attempts: options.Attempts}, Wrong: []string{}}
	err = s.sell(ctx)
	if err == nil {
		err = s.audit(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, context.Cause(ctx))
	}
	return s.report, nil
}

// sell goes through the sale step by step.
func (s *sale) sell(ctx context.Context) error {
	if err := s.preheat(ctx); err != nil {
		return err
	}
	expected := min(s.Units, s.Attempts)
	killAt := int64(0)
	if s.Kill {
		killAt = max(1, expected/2)
	}
	rushed, err := s.rush(ctx, "rush", 0, s.Attempts, killAt)
	if err != nil {
		return err
	}
	t := &s.report.Totals
	t.Sold, t.Refused, s.report.Rush, s.report.Kill = int64(len(rushed.orders)), rushed.refused, rushed.timing(), rushed.kill
	switch {
	case t.Sold > expected:
		s.report.wrong("oversold: %d orders were acknowledged for %d units (I3)", t.Sold, expected)
	case t.Sold < expected:
		s.report.wrong("undersold: %d of %d units were sold, and then %d attempts refused", t.Sold, expected, s.Attempts-t.Sold)
	}
	s.checkReasons(rushed.refused, reasonSoldOut)
	if err := s.checkOrders(ctx, "rush", rushed); err != nil {
		return err
	}
	if err := s.checkStock(ctx, t.Sold, 0); err != nil {
		return err
	}
	if t.SecondRefused, err = s.checkLimit(ctx, rushed.orders); err != nil {
		return err
	}
	s.checkReasons(t.SecondRefused, reasonLimit)
	window, err := s.held(rushed)
	if err != nil {
		return err
	}
	paid, err := s.pay(ctx, "pay", rushed.orders, fates(s.Seed, len(rushed.orders), s.DeclinedPercent, s.UnpaidPercent))
	switch {
	case errors.Is(err, errNoSandbox):
		s.report.Notes = append(s.report.Notes, errNoSandbox.Error()+", so nobody paid")
		paid = &payments{open: rushed.orders, abandoned: t.Sold}
	case err != nil:
		return err
	default:
		s.report.PaySeconds = paid.took.Seconds()
	}
	t.Paid, t.Declined, t.Abandoned = paid.paid, paid.declined, paid.abandoned
	if len(paid.open) > 0 && window <= expiryWaitMax {
		return s.resell(ctx, paid)
	}
	if len(paid.open) > 0 {
		s.report.Notes = append(s.report.Notes, fmt.Sprintf("unpaid orders keep their units for %v: too long to wait for, so nothing was sold again", window))
	}
	return s.checkStock(ctx, t.Sold, t.Paid)
}

// resell waits until the unpaid orders have expired and sells their units once more, to buyers who pay if anybody did.
func (s *sale) resell(ctx context.Context, before *payments) error {
	t := &s.report.Totals
	if err := s.expire(ctx, before.open, t.Sold); err != nil {
		return err
	}
	t.Expired = int64(len(before.open))
	// Several buyers for each unit, so that the last one is asked for while others are on their way between lanes.
	t.ResaleAttempts = max(resaleAttemptsMin, resaleBuyersPerUnit*t.Expired)
	resold, err := s.rush(ctx, "resale", s.Attempts, t.ResaleAttempts, 0)
	if err != nil {
		return err
	}
	timing := resold.timing()
	t.Resold, t.ResaleRefused, s.report.Resale = int64(len(resold.orders)), resold.refused, &timing
	switch {
	case t.Resold > t.Expired:
		s.report.wrong("oversold: %d orders were acknowledged for %d units that had expired (I3)", t.Resold, t.Expired)
	case t.Resold < t.Expired:
		s.report.wrong("undersold: %d of %d units that had expired were sold again, and then %d attempts refused", t.Resold, t.Expired, t.ResaleAttempts-t.Resold)
	}
	s.checkReasons(resold.refused, reasonSoldOut)
	if err := s.checkOrders(ctx, "resale", resold); err != nil {
		return err
	}
	if err := s.checkStock(ctx, t.Sold-t.Expired+t.Resold, t.Paid); err != nil {
		return err
	}
	if _, err := s.held(resold); err != nil || t.Paid == 0 {
		return err
	}
	paid, err := s.pay(ctx, "pay the resale", resold.orders, make([]fate, len(resold.orders)))
	if err != nil {
		return err
	}
	t.ResalePaid = paid.paid
	return s.checkStock(ctx, t.Sold-t.Expired+t.Resold, t.Paid+t.ResalePaid)
}

// held notes until when the orders of a rush keep their units unpaid, which must be later than now. It returns for how long
// they do.
func (s *sale) held(t *tally) (time.Duration, error) {
	window := t.payWithin()
	s.heldUntil = t.began.Add(window)
	if took := time.Since(t.began); window > 0 && took >= window {
		return 0, &TooSlowError{Took: took, PayWithin: window}
	}
	return window, nil
}

const (
	// expiryWaitMax is the longest time to pay that is waited for.
	expiryWaitMax = 2 * time.Minute
	// resaleBuyersPerUnit come for each unit that expired, at least resaleAttemptsMin in all.
	resaleBuyersPerUnit = 4
	resaleAttemptsMin   = 256
)

// A TooSlowError says that the sale took longer than an unpaid order keeps its units: some were sold again meanwhile, and
// what was sold to whom cannot be told apart any more.
type TooSlowError struct{ Took, PayWithin time.Duration }

func (e *TooSlowError) Error() string {
	return fmt.Sprintf("the sale took %v, and unpaid orders kept their units for %v only", e.Took.Round(time.Millisecond), e.PayWithin)
}

// step runs one step of the sale and lets the caller watch it.
func (s *sale) step(count func() Progress, do func() error) error {
	done := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		ticker := time.NewTicker(watchEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				s.Watch(count())
			}
		}
	}()
	err := do()
	close(done)
	<-watching
	s.Watch(count())
	return err
}

// tally is what came of a rush.
type tally struct {
	began                 time.Time
	elapsed               time.Duration
	attempts              int64
	orders                []placed
	refused               map[string]int64
	latency               load.Histogram
	unanswered, postponed int64
	kill                  *Kill
}

// placed is an acknowledged order.
type placed struct {
	// attempt is its number.
	attempt int64
	// reply is what acknowledged it, byte for byte.
	reply    []byte
	response *orderv1.PlaceOrderResponse
}

// take adds what a buyer's connection saw.
func (t *tally) take(b *buyer) {
	t.orders = append(t.orders, b.orders...)
	for reason, count := range b.refused {
		t.refused[reason] += count
	}
	t.latency.Merge(&b.latency)
	t.unanswered += b.unanswered
	t.postponed += b.postponed
}

// payWithin is how long the orders may stay unpaid, 0 when there are none.
func (t *tally) payWithin() time.Duration {
	if len(t.orders) == 0 {
		return 0
	}
	first := t.orders[0].response.GetOrder()
	return first.GetPayBy().AsTime().Sub(first.GetPlacedAt().AsTime())
}

func (t *tally) timing() Timing {
	return Timing{
		Seconds: t.elapsed.Seconds(), AttemptsPerSecond: float64(t.attempts) / max(t.elapsed.Seconds(), 1e-9),
		P50Millis: inMillis(t.latency.Quantile(0.5)), P99Millis: inMillis(t.latency.Quantile(0.99)), MaxMillis: inMillis(t.latency.Max()),
		Unanswered: t.unanswered, Later: t.postponed,
	}
}

func inMillis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
