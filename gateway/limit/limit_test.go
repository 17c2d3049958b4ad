package limit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/weirhq/weir/gateway/outcome"
)

const placeOrder = "/weir.order.v1.OrderService/PlaceOrder"

func newLimiter(t testing.TB, config Config) *Limiter {
	t.Helper()
	l, err := New(config, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// admitted reports whether a call is let through, and what it was told if not.
func admitted(t testing.TB, l *Limiter, call Call) (bool, *RefusedError) {
	t.Helper()
	permit, err := l.Admit(t.Context(), call)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return false, refused
	}
	if err != nil {
		t.Fatal(err)
	}
	permit.Done(outcome.Good, true)
	return true, nil
}

func TestEachLimitRefusesByItsOwnRate(t *testing.T) {
	client, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, c := range []struct {
		kind   Kind
		config Config
		call   Call
		free   Call // not touched by the limit
	}{
		{ByClient, Config{Client: Rate{PerSecond: 2, Burst: 1}}, Call{Client: client}, Call{Client: other}},
		{ByUser, Config{User: Rate{PerSecond: 2, Burst: 1}}, Call{User: "a", Client: client}, Call{User: "b", Client: client}},
		{
			ByUser,
			Config{Methods: map[string]MethodConfig{placeOrder: {User: Rate{PerSecond: 2, Burst: 1}}}},
			Call{Method: placeOrder, User: "a"},
			Call{Method: placeOrder, User: "b"},
		},
		{
			ByMethod,
			Config{Methods: map[string]MethodConfig{placeOrder: {Rate: Rate{PerSecond: 2, Burst: 1}}}},
			Call{Method: placeOrder, User: "a"},
			Call{Method: "/other.Service/Method", User: "a"},
		},
		{
			ByGlobal,
			Config{Methods: map[string]MethodConfig{placeOrder: {Global: Rate{PerSecond: 2, Burst: 1}}}},
			Call{Method: placeOrder, User: "a"},
			Call{Method: "/other.Service/Method", User: "a"},
		},
	} {
		t.Run(c.kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimiter(t, c.config)
				if ok, refused := admitted(t, l, c.call); !ok {
					t.Fatalf("the first call was refused: %v", refused)
				}
				ok, refused := admitted(t, l, c.call)
				if ok || refused.Kind != c.kind || refused.RetryAfter != 500*time.Millisecond {
					t.Fatalf("the second call: %v, want a refusal by %s for 500ms", refused, c.kind)
				}
				if ok, refused := admitted(t, l, c.free); !ok {
					t.Errorf("a call that the limit is not about was refused: %v", refused)
				}
				passTime(refused.RetryAfter)
				if ok, refused := admitted(t, l, c.call); !ok {
					t.Errorf("the call was refused when it was told to come: %v", refused)
				}
				priority := PriorityOf(c.call.Method)
				if got := l.Stats().Refused[c.kind][priority]; got != 1 {
					t.Errorf("%d refusals by %s were counted, want 1", got, c.kind)
				}
			})
		})
	}
}

// passTime lets simulated time pass.
func passTime(length time.Duration) { <-time.After(length) }

func TestACallWaitsForAPlaceAndNoLongerThanItsPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, Config{Concurrency: ConcurrencyConfig{Min: 1, Initial: 1, Max: 1}})
		first, err := l.Admit(t.Context(), Call{Method: placeOrder, User: "a"})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err = l.Admit(t.Context(), Call{Method: placeOrder, User: "b"})
		refused, ok := errors.AsType[*RefusedError](err)
		if !ok || refused.Kind != ByOverload || refused.RetryAfter <= 0 {
			t.Fatalf("without a place: %v, want a refusal by overload", err)
		}
		if waited := time.Since(began); waited != queueWaitMaxDefault {
			t.Errorf("it waited for %s, want %s", waited, queueWaitMaxDefault)
		}
		result := make(chan error)
		go func() {
			permit, err := l.Admit(t.Context(), Call{Method: placeOrder, User: "b"})
			if err == nil {
				permit.Done(outcome.Good, true)
			}
			result <- err
		}()
		synctest.Wait()
		if got := l.Stats(); got.Waiting != 1 || got.UnderWay != 1 {
			t.Errorf("stats = %+v, want one that waits and one under way", got)
		}
		first.Done(outcome.Good, true)
		if err := <-result; err != nil {
			t.Errorf("the call that waited got %v when there was a place", err)
		}
		if got := l.Stats(); got.Waiting != 0 || got.UnderWay != 0 {
			t.Errorf("stats = %+v, want nobody", got)
		}
	})
}

func TestACallWhoseCallerLeavesTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, Config{Concurrency: ConcurrencyConfig{Min: 1, Initial: 1, Max: 1}})
		first, _ := l.Admit(t.Context(), Call{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if _, err := l.Admit(ctx, Call{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("error = %v, want that of the context", err)
		}
		first.Done(outcome.Good, true)
		if got := l.Stats(); got.Waiting != 0 || got.UnderWay != 0 {
			t.Errorf("stats = %+v, want nobody", got)
		}
	})
}

func TestThePaymentTakesThePlaceOfAReadThatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, Config{Concurrency: ConcurrencyConfig{Min: 1, Initial: 1, Max: 1, QueueMax: 1}})
		first, _ := l.Admit(t.Context(), Call{})
		read, pay := make(chan error, 1), make(chan error, 1)
		go func() {
			_, err := l.Admit(t.Context(), Call{Method: "/weir.order.v1.OrderService/GetOrder"})
			read <- err
		}()
		synctest.Wait()
		go func() {
			_, err := l.Admit(t.Context(), Call{Method: "/weir.payment.v1.PaymentService/StartPayment"})
			pay <- err
		}()
		synctest.Wait()
		if err := <-read; err == nil {
			t.Error("the read was let through")
		}
		first.Done(outcome.Good, true)
		if err := <-pay; err != nil {
			t.Errorf("the payment was refused: %v", err)
		}
	})
}

func TestAStreamTakesNoPlace(t *testing.T) {
	l := newLimiter(t, Config{Concurrency: ConcurrencyConfig{Min: 1, Initial: 1, Max: 1}})
	for range 10 {
		if _, err := l.Admit(t.Context(), Call{Stream: true}); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.Stats().UnderWay; got != 0 {
		t.Errorf("%d calls are under way, want 0", got)
	}
}

func TestWhatWasCountedOutlivesAReconfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := Config{User: Rate{PerSecond: 1, Burst: 1}, Methods: map[string]MethodConfig{placeOrder: {Rate: Rate{PerSecond: 1, Burst: 1}}}}
		l := newLimiter(t, config)
		admitted(t, l, Call{Method: placeOrder, User: "a"})
		permit, err := l.Admit(t.Context(), Call{})
		if err != nil {
			t.Fatal(err)
		}
		config.Client = Rate{PerSecond: 100}
		if err := l.Reconfigure(config); err != nil {
			t.Fatal(err)
		}
		if ok, _ := admitted(t, l, Call{User: "a"}); ok {
			t.Error("the user has a new burst")
		}
		if ok, _ := admitted(t, l, Call{Method: placeOrder, User: "b"}); ok {
			t.Error("the method has a new burst")
		}
		config.Concurrency.Max = 100
		if err := l.Reconfigure(config); err != nil {
			t.Fatal(err)
		}
		permit.Done(outcome.Good, true) // It goes back where it came from.
		if got := l.Stats().UnderWay; got != 0 {
			t.Errorf("%d calls are under way, want 0", got)
		}
		if err := l.Reconfigure(Config{KeysMax: -1}); err == nil {
			t.Error("an impossible configuration was taken")
		}
		if ok, _ := admitted(t, l, Call{User: "a"}); ok {
			t.Error("a refused configuration changed the limits")
		}
	})
}

func TestTheBarFallsWhenTheFloodHasGone(t *testing.T) {
	g := newGate(ConcurrencyConfig{}, 0)
	g.bar.Store(700)
	now := g.windowEnd.Load()
	for i := 0; g.bar.Load() > 0; i++ {
		now += int64(windowLength)
		g.ask(now, level(Read)*levelsPerPriority) // One call in a while, and it is refused.
		if i > 3 {
			t.Fatalf("the bar is %d still", g.bar.Load())
		}
	}
}

func TestTheFirstCallAfterAFloodPasses(t *testing.T) {
	for _, silence := range []time.Duration{2 * windowLength, time.Second, time.Hour} {
		g := newGate(ConcurrencyConfig{Min: 1, Initial: 1, Max: 1, QueueMax: 1}, 0)
		order, read, now := level(Place)*levelsPerPriority, level(Read)*levelsPerPriority, int64(0)
		if admitted, _ := g.enter(now, order, nil); !admitted {
			t.Fatal("an idle gate refused a call")
		}
		for range 100 { // All within one window: its end comes with the first call after the silence.
			g.ask(now, order)
			g.enter(now, order, func(bool) {})
		}
		g.leave(now+1, now, "", outcome.Good, true)
		g.leave(now+2, now, "", outcome.Good, true)
		now += int64(silence)
		if !g.ask(now, read) {
			t.Errorf("after %s of silence the first call is refused, to come again in %s", silence, g.refusal(read))
		}
	}
}

func TestConfigurationsAreReadAndChecked(t *testing.T) {
	var config Config
	if err := yaml.Unmarshal([]byte(`
client: {per_second: 50, burst: 100}
user: {per_second: 10}
methods:
  /weir.order.v1.OrderService/PlaceOrder:
    rate: {per_second: 1000}
    user: {per_second: 0.5, burst: 3}
    global: {per_second: 5000}
    priority: place
trusted_proxies: [10.0.0.0/8]
concurrency: {max: 512, slack: 20ms}
`), &config); err != nil {
		t.Fatal(err)
	}
	if err := config.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := config.Methods[placeOrder]; got.User.Burst != 3 || *got.Priority != Place || config.Concurrency.Slack != 20*time.Millisecond {
		t.Errorf("read %+v", config)
	}
	for problem, config := range map[string]Config{
		"per_second":      {User: Rate{PerSecond: -1}},
		"burst":           {Client: Rate{Burst: 5}},
		"/PACKAGE":        {Methods: map[string]MethodConfig{"PlaceOrder": {}}},
		"global":          {Methods: map[string]MethodConfig{placeOrder: {Global: Rate{PerSecond: 1e12}}}},
		"trusted proxy":   {TrustedProxies: []string{"all"}},
		"keys_max":        {KeysMax: -1},
		"in this order":   {Concurrency: ConcurrencyConfig{Min: 10, Initial: 5}},
		"tolerance":       {Concurrency: ConcurrencyConfig{Tolerance: 0.5}},
		"queue_wait_max":  {Concurrency: ConcurrencyConfig{QueueWaitMax: time.Hour}},
		"queue_max":       {Concurrency: ConcurrencyConfig{QueueMax: 1 << 20}},
		"max is":          {Concurrency: ConcurrencyConfig{Max: 1 << 30}},
		"limit is negati": {Concurrency: ConcurrencyConfig{Slack: -1}},
	} {
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: error = %v", problem, err)
		}
	}
	var priority Priority
	if err := priority.UnmarshalText([]byte("first")); err == nil || !strings.Contains(err.Error(), "place") {
		t.Errorf("error = %v, want one that names the priorities", err)
	}
}

func TestPrioritiesFollowAnOrdersLife(t *testing.T) {
	order := []string{
		"/weir.points.v1.PointsService/GetBalance", "/weir.order.v1.OrderService/GetOrder", placeOrder,
		"/weir.order.v1.OrderService/CancelOrder", "/weir.payment.v1.PaymentService/CapturePayment",
	}
	for i := 1; i < len(order); i++ {
		if PriorityOf(order[i-1]) >= PriorityOf(order[i]) {
			t.Errorf("%s does not come before %s", order[i], order[i-1])
		}
	}
}

func TestAUsersPlaceIsTheSameOnEveryGatewayAndTurns(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	counts := map[level]int{}
	moved := 0
	for i := range 100_000 {
		user := fmt.Sprintf("user-%d", i)
		at := levelOf(Place, user, now)
		if at != levelOf(Place, user, now.Add(time.Minute)) || at.priority() != Place {
			t.Fatalf("%s has two places", user)
		}
		if at != levelOf(Place, user, now.Add(placesTurn)) {
			moved++
		}
		counts[at]++
	}
	if moved < 90_000 {
		t.Errorf("%d of 100000 users moved to another place in time, want nearly all", moved)
	}
	for at, count := range counts {
		if count < 250 || count > 550 { // 391 on average, standard deviation 20.
			t.Errorf("place %d has %d users of 100000", at%levelsPerPriority, count)
		}
	}
	// Golden: gateways of different versions agree.
	if got := levelOf(Pay, "alice", now); got != 1213 {
		t.Errorf("alice's level for payments is %d, want 1213", got)
	}
}

// What a refusal costs, for each thing that refuses.
func BenchmarkRefusal(b *testing.B) {
	call := Call{Method: placeOrder, User: "alice", Client: netip.MustParseAddr("192.0.2.1")}
	for name, config := range map[string]Config{
		"client": {Client: Rate{PerSecond: 0.001, Burst: 1}},
		"user":   {User: Rate{PerSecond: 0.001, Burst: 1}},
		"method": {Methods: map[string]MethodConfig{placeOrder: {Rate: Rate{PerSecond: 0.001, Burst: 1}}}},
		"bar":    {},
	} {
		b.Run(name, func(b *testing.B) {
			l := newLimiter(b, config)
			if _, err := l.Admit(b.Context(), call); err != nil {
				b.Fatal(err)
			}
			gate := l.rules.Load().gate
			if name == "bar" {
				gate.bar.Store(uint32(levelsMax))
				gate.windowEnd.Store(1 << 62)
			}
			var wrong atomic.Int64
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := l.Admit(b.Context(), call); err == nil {
						wrong.Add(1)
					}
				}
			})
			if wrong.Load() > 0 {
				b.Fatalf("%d calls were let through", wrong.Load())
			}
		})
	}
}

// What it costs a call to be let through all limits.
func BenchmarkAdmitAndDone(b *testing.B) {
	l := newLimiter(b, Config{
		Client: Rate{PerSecond: 1e7}, User: Rate{PerSecond: 1e7},
		Methods:     map[string]MethodConfig{placeOrder: {Rate: Rate{PerSecond: 1e7}, User: Rate{PerSecond: 1e7}, Global: Rate{PerSecond: 1e7}}},
		Concurrency: ConcurrencyConfig{Slack: time.Second},
	})
	call := Call{Method: placeOrder, User: "alice", Client: netip.MustParseAddr("192.0.2.1")}
	b.ReportAllocs()
	for b.Loop() {
		permit, err := l.Admit(b.Context(), call)
		if err != nil {
			b.Fatal(err)
		}
		permit.Done(outcome.Good, true)
	}
}

func TestWhatMattersLessThanThePlanSaysIsRefusedAtOnce(t *testing.T) {
	l, err := New(Config{ShedBelow: Place}, nil)
	if err != nil {
		t.Fatal(err)
	}
	const orders = "/weir.order.v1.OrderService/"
	for procedure, want := range map[string]bool{"/weir.points.v1.PointsService/GetPoints": false, orders + "GetOrder": false, orders + "PlaceOrder": true, orders + "CancelOrder": true} {
		permit, err := l.Admit(t.Context(), Call{Method: procedure, User: "alice"})
		var refused *RefusedError
		switch {
		case want && err == nil:
			permit.Done(outcome.Good, true)
		case want || !errors.As(err, &refused) || refused.Kind != ByPriority || refused.RetryAfter != shedRetryAfter:
			t.Errorf("%s ended with %v, served: want %t", procedure, err, want)
		}
	}
	if err := l.Reconfigure(Config{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Admit(t.Context(), Call{Method: orders + "GetOrder"}); err != nil {
		t.Errorf("without a floor a read ended with %v", err)
	}
	if err := l.Reconfigure(Config{ShedBelow: prioritiesMax}); err == nil {
		t.Error("a priority that is none is taken")
	}
}

func TestOtherBoundsOfCallsUnderWayAreInOrder(t *testing.T) {
	for _, c := range []ConcurrencyConfig{{}, {Off: true}, {Min: 50, Initial: 100, Max: 200}} {
		for _, bounds := range [][2]int{{0, 1}, {1, 1}, {500, 0}, {0, maxMax}, {maxMax, 0}, {10, 20}} {
			within := c.Within(bounds[0], bounds[1])
			if err := within.Validate(); err != nil || bounds[1] > 0 && (within.Max != bounds[1] || within.Off) {
				t.Errorf("%+v within %v is %+v: %v", c, bounds, within, err)
			}
		}
	}
}
