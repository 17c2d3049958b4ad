package bench

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/ops/bench/echo"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A stage is a gateway in front of upstreams that behave as they are told.
type stage struct {
	gateway   *server
	operator  string // host:port
	upstreams []*server
}

const (
	// operatorTimeMax bounds a question to the gateway's operator end, and an order to a fake upstream.
	operatorTimeMax = 5 * time.Second
	// operatorBytesMax bounds the answer.
	operatorBytesMax = 4 << 20
)

// sampleOrder is an order of the size that a node answers with.
func sampleOrder() *orderv1.Order {
	at := timestamppb.New(time.Date(2026, 11, 2, 9, 30, 0, 0, time.UTC))
	return &orderv1.Order{
		OrderId: "01KB5D3F7Q0000000000000000X", UserId: userPlace, Status: orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT,
		Items: []*orderv1.OrderItem{{Sku: skuPlace, Title: "Product number " + skuPlace, Quantity: 1, UnitPrice: sampleMoney(), Amount: sampleMoney()}},
		Total: sampleMoney(), PlacedAt: at, PayBy: at, UpdateTime: at, Revision: sampleRevision(),
	}
}

func sampleMoney() *typev1.Money { return &typev1.Money{CurrencyCode: "EUR", Units: 1299} }

func sampleRevision() *typev1.Revision { return &typev1.Revision{Lane: 1, Commit: 1_000_000} }

// sampleReplies are what echo and fake upstreams answer with.
func sampleReplies() (*orderv1.PlaceOrderResponse, *orderv1.GetOrderResponse) {
	return &orderv1.PlaceOrderResponse{Order: sampleOrder(), Revision: sampleRevision()}, &orderv1.GetOrderResponse{Order: sampleOrder()}
}

// withStage runs f with so many fake upstreams and a gateway in front of them, with flags of its own, and ends them all.
func (b *bench) withStage(ctx context.Context, upstreams int, f func(*stage) error, flags ...string) (err error) {
	s := &stage{}
	defer func() { err = errors.Join(err, s.end()) }()
	placed, got := sampleReplies()
	for range upstreams {
		fake, err := startReplying(ctx, "fake", b.dir, placed, got)
		if err != nil {
			return err
		}
		s.upstreams = append(s.upstreams, fake)
		flags = append(flags, "--upstream", "http://"+fake.Addr)
	}
	if s.gateway, s.operator, err = startGateway(ctx, b.Weir, flags...); err != nil {
		return err
	}
	if err := f(s); err != nil {
		return fmt.Errorf("%w: %s", err, s.gateway.Printed())
	}
	return nil
}

// startGateway runs a gateway and returns it with the address of its operator end.
func startGateway(ctx context.Context, binary string, flags ...string) (*server, string, error) {
	operator, err := launch.FreeAddr(ctx)
	if err != nil {
		return nil, "", err
	}
	process, err := startListening(ctx, "weir gateway", binary, append([]string{"gateway", "--operator-listen", operator, "--log-level", "error"}, flags...))
	return process, operator, err
}

// end lets what was paused go on, and ends the gateway first, so that none of its calls hangs.
func (s *stage) end() error {
	var errs []error
	for _, upstream := range s.upstreams {
		_ = upstream.Resume() // It may have ended.
	}
	for _, process := range append([]*server{s.gateway}, s.upstreams...) {
		if process != nil {
			errs = append(errs, process.Stop(syscall.SIGTERM))
		}
	}
	return errors.Join(errs...)
}

// status asks the gateway how it stands.
func (s *stage) status(ctx context.Context) (*gateway.Status, error) {
	text, err := ask(ctx, http.MethodGet, s.operator, "/status", nil)
	if err != nil {
		return nil, err
	}
	status := &gateway.Status{}
	return status, json.Unmarshal(text, status)
}

// behave tells an upstream what to do from now on.
func (s *stage) behave(ctx context.Context, upstream int, how echo.Behaviour) error {
	text, err := json.Marshal(how)
	if err != nil {
		return err
	}
	_, err = ask(ctx, http.MethodPut, s.upstreams[upstream].Addr, echo.BehaviourPath, text)
	return err
}

// behaveAll tells all upstreams.
func (s *stage) behaveAll(ctx context.Context, how echo.Behaviour) error {
	for i := range s.upstreams {
		if err := s.behave(ctx, i, how); err != nil {
			return err
		}
	}
	return nil
}

// arrived returns how many calls each upstream has got, as it counts them itself.
func (s *stage) arrived(ctx context.Context) ([]float64, error) {
	var calls []float64
	for _, upstream := range s.upstreams {
		text, err := ask(ctx, http.MethodGet, upstream.Addr, echo.CallsPath, nil)
		if err != nil {
			return nil, err
		}
		count, err := strconv.ParseUint(string(text), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("calls of %s: %w", upstream.Addr, err)
		}
		calls = append(calls, float64(count))
	}
	return calls, nil
}

// picked returns how many attempts the gateway has given to each upstream: one that is frozen cannot be asked itself.
func (s *stage) picked(ctx context.Context) ([]float64, error) {
	status, err := s.status(ctx)
	if err != nil {
		return nil, err
	}
	picks := make([]float64, len(s.upstreams))
	for i, upstream := range s.upstreams {
		for _, of := range status.Upstreams {
			if strings.Contains(of.ID, upstream.Addr) {
				picks[i] = float64(of.Picks)
			}
		}
	}
	return picks, nil
}

func ask(ctx context.Context, method, addr, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, operatorTimeMax)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, operatorBytesMax))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s%s: status %d: %.200s", method, addr, path, response.StatusCode, text)
	}
	return text, err
}

// A rotation sends one prebuilt request after the other.
type rotation struct {
	requests [][]byte
	next     int
}

// Next implements load.Source.
func (r *rotation) Next() []byte {
	request := r.requests[r.next%len(r.requests)]
	r.next++
	return request
}

// callers is how many users the calls come from: the gateway ranks users, and one alone would be served whole or not at all.
const callers = 512

// calling makes calls of a procedure by many users. Upstreams here verify no token, so none is signed.
func calling(path string, message proto.Message) (*rotation, error) {
	body, err := proto.Marshal(message)
	if err != nil {
		return nil, err
	}
	var tokens []string
	for i := range callers {
		tokens = append(tokens, unsigned(fmt.Sprintf("u%07d", i)))
	}
	return callingWith(path, body, tokens)
}

// unsigned is a token that says whose it is, and that nobody verifies.
func unsigned(user string) string {
	claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"iss":"weir","aud":["weir"],"sub":%q}`, user))
	return "eyJhbGciOiJub25lIn0." + claims + "."
}

// callingWith makes calls of a procedure with one of the tokens after the other.
func callingWith(path string, body []byte, tokens []string) (*rotation, error) {
	all := &rotation{}
	for _, token := range tokens {
		template, err := load.NewTemplate(path, protoType, token, body)
		if err != nil {
			return nil, err
		}
		all.requests = append(all.requests, template.Next())
	}
	return all, nil
}

func reading() (*rotation, error) {
	return calling(getPath, &orderv1.GetOrderRequest{OrderId: sampleOrder().OrderId})
}

func ordering() (*rotation, error) {
	return calling(placePath, &orderv1.PlaceOrderRequest{RequestId: requestPlace, UserId: userPlace, Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}}})
}

// A phase is what became of the calls that were due in a part of a load, from its start on.
type phase struct {
	from, to time.Duration
	// good and bad are the latencies of calls that were answered with 200, and otherwise.
	good, bad load.Histogram
	// served are the calls that were answered with 200 in that time, whenever they were due: what is late counts when it comes.
	served uint64
	// lastBad is when the last of the others was due.
	lastBad time.Duration
}

func (p *phase) calls() float64 { return float64(p.good.Count() + p.bad.Count()) }

// badShare is the share of calls that were not answered with 200, 1 if there was no call: nothing was shown then.
func (p *phase) badShare() float64 { return share(float64(p.bad.Count()), p.calls()) }

func share(of, all float64) float64 {
	if all == 0 {
		return 1
	}
	return of / all
}

// A drive is one open loop of calls whose phases are looked at one by one.
type drive struct {
	addr        string
	source      load.Source
	rate        float64
	duration    time.Duration
	connections int
	phases      []*phase
	// failed is told of every reply that is not 200; may be nil.
	failed func(status int, body []byte)
}

// run drives, and returns an error only if the server cannot be talked to: what is not answered with 200 is counted.
func (d *drive) run(ctx context.Context) error {
	began := time.Now()
	_, err := load.Run(ctx, load.Options{
		Addr: d.addr, Connections: d.connections, Rate: d.rate, Duration: d.duration, Source: d.source,
		OnReply: func(status int, body []byte) {
			if d.failed != nil && status != http.StatusOK {
				d.failed(status, body)
			}
		},
		OnTimed: func(status int, due, answered time.Time) {
			for _, p := range d.phases {
				if end := answered.Sub(began); status == http.StatusOK && end >= p.from && end < p.to {
					p.served++
				}
				at := due.Sub(began)
				switch {
				case at < p.from || at >= p.to:
				case status == http.StatusOK:
					p.good.Record(answered.Sub(due))
				default:
					p.bad.Record(answered.Sub(due))
					p.lastBad = at
				}
			}
		},
	})
	return err
}

// while runs f beside the drive, and returns when both have ended.
func (d *drive) while(ctx context.Context, f func(ctx context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.run(ctx) })
	group.Go(func() error { return f(ctx) })
	return group.Wait()
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, wait time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(wait):
		return nil
	}
}

const (
	// faultsRate is calls per second in front of three upstreams that can do much more: what fails is not what is too much.
	faultsRate = 600
	// faultsDelay is how long an upstream takes that is well, slowDelay what one takes longer that is not.
	faultsDelay = 2 * time.Millisecond
	slowDelay   = 200 * time.Millisecond
	// graceMax is how long the gateway may take to notice.
	graceMax = time.Second
	// longRuns is how many times longer than a run the long rows take: a minute by default.
	longRuns = 12
)

// grace is how long after a fault the gateway's answer to it is looked at: a run of a test is shorter.
func (b *bench) grace() time.Duration { return min(graceMax, b.Duration/2) }

// gatewayFaults is one of three upstreams frozen, slow, and failing; then all failing; then one alone under a breaker.
func (b *bench) gatewayFaults(ctx context.Context) error {
	for _, row := range []struct {
		upstreams int
		run       func(context.Context, *stage) error
	}{{3, b.oneFrozen}, {3, b.oneSlow}, {3, b.oneFailing}, {3, b.allFailing}, {1, b.breakerTimes}} {
		if err := b.withStage(ctx, row.upstreams, func(s *stage) error {
			if err := s.behaveAll(ctx, echo.Behaviour{Delay: faultsDelay}); err != nil {
				return err
			}
			return row.run(ctx, s)
		}); err != nil {
			return err
		}
	}
	return nil
}

// A fault is one of three upstreams that goes wrong under load.
type fault struct {
	// begin makes it go wrong, count tells how many attempts each upstream got.
	begin func(context.Context) error
	count func(context.Context) ([]float64, error)
	// before are the calls of a run before it, all those from its beginning on, and noticed those after the grace.
	before, all, noticed phase
	// shareNoticed is the share of attempts after the grace that went to the first upstream.
	shareNoticed float64
}

// breakOne drives reads, makes the fault happen after a run, and looks at another run.
func (b *bench) breakOne(ctx context.Context, s *stage, f *fault) error {
	source, err := reading()
	if err != nil {
		return err
	}
	begins := b.Warmup + b.Duration
	end := begins + b.grace() + b.Duration
	f.before = phase{from: b.Warmup, to: begins}
	f.all = phase{from: begins, to: end}
	f.noticed = phase{from: begins + b.grace(), to: end}
	d := &drive{addr: s.gateway.Addr, source: source, rate: faultsRate, duration: end, connections: b.Connections, phases: []*phase{&f.before, &f.all, &f.noticed}}
	var first []float64
	if err := d.while(ctx, func(ctx context.Context) error {
		if err := pause(ctx, begins); err != nil {
			return err
		}
		if err := f.begin(ctx); err != nil {
			return err
		}
		if err := pause(ctx, b.grace()); err != nil {
			return err
		}
		first, err = f.count(ctx)
		return err
	}); err != nil {
		return err
	}
	last, err := f.count(ctx)
	if err != nil {
		return err
	}
	sum := 0.0
	for i := range last {
		sum += last[i] - first[i]
	}
	f.shareNoticed = share(last[0]-first[0], sum)
	b.say("  before: %.0f calls, p99 %v; after: %.0f calls, %d bad, p99 %v; %.2f%% of attempts to the broken one", f.before.calls(), f.before.good.Quantile(0.99),
		f.all.calls(), f.all.bad.Count(), f.noticed.good.Quantile(0.99), 100*f.shareNoticed)
	return nil
}

func (b *bench) oneFrozen(ctx context.Context, s *stage) error {
	f := &fault{begin: func(context.Context) error { return s.upstreams[0].Pause() }, count: s.picked}
	if err := b.breakOne(ctx, s, f); err != nil {
		return fmt.Errorf("one frozen: %w", err)
	}
	b.report.check(fmt.Sprintf("one of three frozen: its share of picks after %v", b.grace()), 100*f.shareNoticed, "%", 1, true)
	b.report.check("one of three frozen: idempotent calls that failed", 100*f.all.badShare(), "%", 0.5, true)
	return nil
}

func (b *bench) oneSlow(ctx context.Context, s *stage) error {
	f := &fault{begin: func(ctx context.Context) error {
		return s.behave(ctx, 0, echo.Behaviour{Delay: faultsDelay + slowDelay})
	}, count: s.arrived}
	if err := b.breakOne(ctx, s, f); err != nil {
		return fmt.Errorf("one slow: %w", err)
	}
	ratio := share(float64(f.noticed.good.Quantile(0.99)), float64(f.before.good.Quantile(0.99)))
	b.report.check(fmt.Sprintf("one of three +200 ms: p99 after %v : before", b.grace()), ratio, "×", 1.2, true)
	b.report.check(fmt.Sprintf("one of three +200 ms: its share of calls after %v", b.grace()), 100*f.shareNoticed, "%", 0, true)
	return nil
}

func (b *bench) oneFailing(ctx context.Context, s *stage) error {
	f := &fault{begin: func(ctx context.Context) error { return s.behave(ctx, 0, echo.Behaviour{Fails: true}) }, count: s.arrived}
	if err := b.breakOne(ctx, s, f); err != nil {
		return fmt.Errorf("one failing: %w", err)
	}
	b.report.check(fmt.Sprintf("one of three failing fast: its share of calls after %v", b.grace()), 100*f.shareNoticed, "%", 5, true)
	b.report.check("one of three failing fast: idempotent calls that failed", 100*f.all.badShare(), "%", 0, true)
	return nil
}

// allFailing counts upstream what arrives while every call fails.
func (b *bench) allFailing(ctx context.Context, s *stage) error {
	source, err := reading()
	if err != nil {
		return err
	}
	if err := s.behaveAll(ctx, echo.Behaviour{Fails: true}); err != nil {
		return err
	}
	length := longRuns * b.Duration
	seen := &phase{to: length}
	d := &drive{addr: s.gateway.Addr, source: source, rate: faultsRate, duration: length, connections: b.Connections, phases: []*phase{seen}}
	if err := d.run(ctx); err != nil {
		return fmt.Errorf("all failing: %w", err)
	}
	counts, err := s.arrived(ctx)
	if err != nil {
		return err
	}
	arrived := 0.0
	for _, count := range counts {
		arrived += count
	}
	b.say("  all failing: %.0f calls, %.0f attempts upstream", seen.calls(), arrived)
	b.report.check(fmt.Sprintf("all failing for %v: attempts that arrived : calls", length), share(arrived, seen.calls()), "×", 1.1, true)
	return nil
}

const (
	// breakerRate is the slowest at which a breaker is to open in time.
	breakerRate = 20
	// breakerConnections are few, so that each is used before the gateway hangs up on it.
	breakerConnections = 8
	// breakerWait is how long a breaker is watched at most.
	breakerWait = 10 * time.Second
	// breakerPoll is how often it is looked at: what is measured is exact to that.
	breakerPoll = 5 * time.Millisecond
)

// breakerTimes is how quickly the breaker of an upstream opens that begins to fail, and closes when it is well again.
func (b *bench) breakerTimes(ctx context.Context, s *stage) error {
	source, err := reading()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := &drive{addr: s.gateway.Addr, source: source, rate: breakerRate, duration: b.Warmup + 2*breakerWait, connections: breakerConnections}
	var opens, closes time.Duration
	err = d.while(ctx, func(ctx context.Context) error {
		defer cancel() // No more load than is looked at.
		if err := pause(ctx, b.Warmup); err != nil {
			return err
		}
		if opens, err = s.turns(ctx, echo.Behaviour{Fails: true}, "open"); err != nil {
			return err
		}
		closes, err = s.turns(ctx, echo.Behaviour{}, "closed")
		return err
	})
	if closes == 0 {
		return fmt.Errorf("breaker: %w", err)
	}
	b.report.check(fmt.Sprintf("breaker: opens at %d calls/s", breakerRate), opens.Seconds(), "s", 1, true)
	b.report.check("breaker: closes after the upstream recovered", closes.Seconds(), "s", 2, true)
	return nil
}

// turns has the first upstream behave in another way, and returns how long its breaker takes to be in that state.
func (s *stage) turns(ctx context.Context, how echo.Behaviour, state string) (time.Duration, error) {
	if err := s.behave(ctx, 0, how); err != nil {
		return 0, err
	}
	for began := time.Now(); time.Since(began) < breakerWait; {
		status, err := s.status(ctx)
		if err != nil {
			return 0, err
		}
		for _, of := range status.Breakers {
			if of.State == state {
				return time.Since(began), nil
			}
		}
		if err := pause(ctx, breakerPoll); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("the breaker is not %s within %v", state, breakerWait)
}
