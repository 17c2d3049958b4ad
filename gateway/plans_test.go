package gateway_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/plan"
	"github.com/weirhq/weir/gateway/policy"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

const (
	getOrder   = "weir.order.v1.OrderService/GetOrder"
	placeOrder = "weir.order.v1.OrderService/PlaceOrder"
)

// A planned gateway is one that follows the plans on a NATS server, in front of one node.
type planned struct {
	*front
	t         *testing.T
	server    *embedded.Server
	store     *plan.Store
	cacheFile string
	address   string
	upstream  string
	stop      func()
}

func newPlanned(t *testing.T, decided policy.Policy) *planned {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &planned{t: t, address: listener.Addr().String(), cacheFile: filepath.Join(t.TempDir(), "plans.json"), upstream: (&node{}).start(t).URL}
	listener.Close()
	if p.server, err = embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: p.address}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.server.Shutdown)
	connection, err := p.server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(connection.Close)
	stream, err := jetstream.New(connection)
	if err != nil {
		t.Fatal(err)
	}
	if p.store, err = plan.OpenStore(t.Context(), stream, plan.StoreConfig{}); err != nil {
		t.Fatal(err)
	}
	p.start(decided)
	return p
}

// start makes the gateway, also when the server is away.
func (p *planned) start(decided policy.Policy) {
	p.t.Helper()
	connection, err := nats.Connect("nats://"+p.address, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		p.t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	follower, err := plan.NewFollower(plan.Config{CacheFile: p.cacheFile}, plan.Options{
		Connection: connection, Gateway: "test", Procedures: gateway.Procedures(), Logger: quiet,
		Policy: plan.Policy{Rates: func(procedure string) (rate, user, global plan.Rate) { return p.WithoutPlans(procedure) }},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	base, err := url.Parse(p.upstream)
	if err != nil {
		p.t.Fatal(err)
	}
	p.front = serveGateway(p.t, gateway.Options{Upstreams: []*url.URL{base}, Plans: follower, Policy: decided, Logger: quiet})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- follower.Run(ctx) }()
	go func() { ended <- p.Run(ctx) }()
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				p.t.Error(err)
			}
		}
		connection.Close()
	}
	p.t.Cleanup(p.stop)
}

// apply puts a plan and applies it.
func (p *planned) apply(text string, ttl time.Duration) {
	p.t.Helper()
	version, err := p.store.Put(p.t.Context(), []byte(text), nil, "ann", "a test")
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.store.Apply(p.t.Context(), plan.Application{
		Name: version.Plan.Name, Revision: version.Revision, TTL: ttl, By: "ann", Why: "a test", Procedures: gateway.Procedures(),
	}); err != nil {
		p.t.Fatal(err)
	}
}

// get reads an order, and returns the plans that the answer names.
func (p *planned) get() (plans string, err error) {
	p.t.Helper()
	request, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.URL+"/"+getOrder, strings.NewReader("{}"))
	if err != nil {
		p.t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		p.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		err = errors.New(string(text))
	}
	return response.Header.Get(gateway.HeaderPlan), err
}

// awaits waits until answers name plans whose names start so; "" is none.
func (p *planned) awaits(name string) {
	p.t.Helper()
	for deadline := time.Now().Add(testTimeMax); ; {
		plans, _ := p.get()
		if plans == "" && name == "" || name != "" && strings.HasPrefix(plans, name+"@") && !strings.Contains(plans, ",") {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("answers name the plans %q, want %q", plans, name)
		}
	}
}

// wantOff checks that reads are refused with the message, or, without one, that they are served.
func (p *planned) wantOff(message string) {
	p.t.Helper()
	_, err := p.get()
	switch {
	case message == "" && err != nil:
		p.t.Fatalf("a read is refused: %v", err)
	case message != "" && (err == nil || !strings.Contains(err.Error(), message)):
		p.t.Fatalf("a read ended with %v, want %q", err, message)
	}
}

const readsOff = "{name: reads-off, off: {" + getOrder + ": {message: not tonight, retry_after: 1m}}}"

func TestAPlanIsSwitchedOnAndOffAtTheGateway(t *testing.T) {
	p := newPlanned(t, policy.Policy{})
	p.wantOff("")
	p.apply(readsOff, time.Hour)
	p.awaits("reads-off")
	p.wantOff("not tonight")
	if status := p.Status(); !strings.HasPrefix(status.Plans, "reads-off@") || len(status.PlansLacking) > 0 {
		t.Errorf("the status says %q, lacking %q", status.Plans, status.PlansLacking)
	}
	if _, err := p.store.End(t.Context(), "reads-off", gateway.Procedures(), "ann", "a test"); err != nil {
		t.Fatal(err)
	}
	p.awaits("")
	p.wantOff("")
	if _, err := p.store.Rollback(t.Context(), gateway.Procedures(), "ann", "a test"); err != nil {
		t.Fatal(err)
	}
	p.awaits("reads-off")
	p.wantOff("not tonight")
}

func TestAPlanThatHasEndedIsGone(t *testing.T) {
	p := newPlanned(t, policy.Policy{})
	p.apply(readsOff, time.Second)
	p.awaits("reads-off")
	p.awaits("")
	p.wantOff("")
}

func TestPlansStayWhileNATSIsAwayAndOverARestart(t *testing.T) {
	p := newPlanned(t, policy.Policy{})
	p.apply(readsOff, time.Hour)
	p.awaits("reads-off")
	for deadline := time.Now().Add(testTimeMax); ; {
		if found, err := filepath.Glob(p.cacheFile); err == nil && len(found) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the plans are not kept on disk")
		}
	}
	p.server.Shutdown()
	p.awaits("reads-off")
	p.wantOff("not tonight")
	p.stop()
	p.start(policy.Policy{})
	// From the first call on.
	p.wantOff("not tonight")
	// Another policy changes nothing about plans.
	if err := p.Apply(policy.Policy{Rates: policy.Rates{User: limit.Rate{PerSecond: 1000}}}); err != nil {
		t.Fatal(err)
	}
	p.wantOff("not tonight")
}

func TestRatesAndWhatIsShedAreThePlans(t *testing.T) {
	p := newPlanned(t, policy.Policy{Methods: map[string]policy.Method{placeOrder: {User: &limit.Rate{PerSecond: 1000, Burst: 1000}}}})
	// One call in over a day: no test is so slow that it sees two.
	p.apply("{name: sale, shed_below: place, rates: {"+placeOrder+": {user: {factor: 0.0001, per_second: 5}}}, concurrency: {max: 7}}", time.Hour)
	p.awaits("sale")
	client := orders(t, p.URL, "connect")
	place := func(user string) error {
		_, err := client.PlaceOrder(with(t, "Authorization", "Bearer "+tokenOf(user)), &orderv1.PlaceOrderRequest{RequestId: "one"})
		return err
	}
	if err := place("alice"); err != nil {
		t.Fatal(err)
	}
	if err := place("alice"); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("the second order of a user ended with %v, want %s", err, connect.CodeResourceExhausted)
	}
	if err := place("bob"); err != nil {
		t.Errorf("the order of another user ended with %v", err)
	}
	p.wantOff("what matters less")
	if got := p.Status().Places; got > 7 {
		t.Errorf("%d calls may be under way, want at most 7", got)
	}
	if _, err := p.store.Rollback(t.Context(), gateway.Procedures(), "ann", "a test"); err != nil {
		t.Fatal(err)
	}
	p.awaits("")
	p.wantOff("")
	for range 3 {
		if err := place("alice"); err != nil {
			t.Fatalf("after the plan an order ended with %v", err)
		}
	}
}

func TestBreakersAreForcedByPatternsOfMethods(t *testing.T) {
	p := newPlanned(t, policy.Policy{})
	p.apply("{name: apart, breakers: [{method: weir.order.v1.OrderService/*, force: open}, {method: "+placeOrder+", force: closed}]}", time.Hour)
	p.awaits("apart")
	p.wantOff("left alone for a while")
	if _, err := orders(t, p.URL, "connect").PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{}); err != nil {
		t.Errorf("the nearer pattern does not count: %v", err)
	}
}

func TestWhatAGatewayLacksIsSaidAndTheRestHolds(t *testing.T) {
	p := newPlanned(t, policy.Policy{})
	p.apply("{name: much, sold_out: true, waiting_rooms: {spring: true}, stale: {"+placeOrder+": {}}, faults: {"+placeOrder+": failback}, off: {"+getOrder+": {message: not tonight}}}", time.Hour)
	p.awaits("much")
	p.wantOff("not tonight")
	said := strings.Join(p.Status().PlansLacking, "\n")
	for _, want := range []string{"sold_out", "waiting_rooms: spring", "stale: " + placeOrder, "faults: " + placeOrder} {
		if !strings.Contains(said, want) {
			t.Errorf("the gateway says that it lacks\n%s\nand not %s", said, want)
		}
	}
}

// A plan that is good has to be one that a gateway can take, up to the limits of its values.
func TestTheExtremesOfAPlanAreTaken(t *testing.T) {
	p := newPlanned(t, policy.Policy{Methods: map[string]policy.Method{"*": {
		Rate: &limit.Rate{PerSecond: 0.001}, User: &limit.Rate{PerSecond: 1e8, Burst: 1_000_000_000},
	}}, Concurrency: limit.ConcurrencyConfig{Initial: 100, Min: 50}})
	p.apply("{name: extreme, off: {'*': {message: "+strings.Repeat("x", 1000)+", retry_after: 1h}}, stale: {'*': {max_age: 24h, refresh_after: 24h}}, "+
		"rates: {'*': {rate: {factor: 0.0001}, user: {factor: 1000}, global: {per_second: 100000000, burst: 1000000000}}}, concurrency: {min: 1048576}, "+
		"faults: {'*': hedging}, breakers: [{force: disabled}]}", time.Hour)
	p.awaits("extreme")
	p.wantOff("xxx")
	p.apply("{name: tiny, precedence: 5, concurrency: {max: 1}}", time.Hour)
	for deadline := time.Now().Add(testTimeMax); p.Status().Places != 1; {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls may be under way, want 1", p.Status().Places)
		}
	}
}

func TestADryRunCountsTheCallsThatCome(t *testing.T) {
	p := newPlanned(t, policy.Policy{})
	p.wantOff("")
	connection, err := p.server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	p.apply("{name: nothing, rates: {'*': {rate: {factor: 1}}}}", time.Hour)
	p.awaits("nothing") // So it is connected.
	reports, err := plan.DryRun(t.Context(), connection, []byte(readsOff), 2*time.Second, func([]*plan.Report) { p.wantOff("") })
	if err != nil || len(reports) != 1 {
		t.Fatalf("%v, %d reports", err, len(reports))
	}
	of := reports[0].Methods["/"+getOrder]
	if of == nil || of.Calls == 0 || of.Refused != 0 || of.Would[plan.ByOff] != of.Calls {
		t.Errorf("the dry run saw %+v, want that each call would be refused", of)
	}
}
