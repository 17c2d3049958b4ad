package limit

import (
	"fmt"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/outcome"
)

// A pool is one upstream: so many calls at a time, each for as long as every other; the others wait.
type pool struct {
	places, busy int
	queue        []func()
}

const (
	poolDelay = 10 * time.Millisecond
	// poolWay is how long a call is on its way there and back, on average.
	poolWay = 600 * time.Microsecond
)

// spread puts calls to several upstreams, chosen as a gateway does.
func (w *world) spread(t *testing.T, upstreams, places int) {
	t.Helper()
	balancer, err := balance.New(balance.Config{}, balance.Options{
		Now: func() time.Time { return time.Unix(1_800_000_000, w.now) }, Random: w.random.Uint64,
	})
	if err != nil {
		t.Fatal(err)
	}
	pools := map[string]*pool{}
	var all []balance.Upstream
	for i := range upstreams {
		id := fmt.Sprintf("n%d", i)
		pools[id] = &pool{places: places}
		all = append(all, balance.Upstream{ID: id})
	}
	if err := balancer.Set(all); err != nil {
		t.Fatal(err)
	}
	w.servers, w.service = upstreams*places, poolDelay
	w.upstream = func(c *call) {
		pick, err := balancer.Pick(balance.Key{})
		if err != nil {
			panic(err)
		}
		p := pools[pick.ID()]
		way := time.Duration(w.random.ExpFloat64() * float64(poolWay))
		since := w.now
		serve := func() {
			p.busy++
			w.after(poolDelay, func() {
				p.busy--
				if len(p.queue) > 0 {
					next := p.queue[0]
					p.queue = p.queue[1:]
					next()
				}
				w.after(way/2, func() {
					pick.Done(outcome.Good, time.Duration(w.now-since))
					w.answered(c, func() {})
				})
			})
		}
		w.after(way/2, func() {
			if p.busy < p.places {
				serve()
			} else {
				p.queue = append(p.queue, serve)
			}
		})
	}
}

// fixedFlood has three upstreams, whose calls take the same time each, be asked for a while for what fits, and then ten times as much. It returns what the
// slowest hundredth of calls took before.
func (w *world) fixedFlood(t *testing.T) (before time.Duration) {
	t.Helper()
	w.spread(t, 3, 2)
	calm, flood := false, false
	w.evenly(0.745*w.capacity(), w.mixed, &calm)
	w.run(10 * time.Second)
	w.forget()
	w.run(10 * time.Second)
	w.report(t, "before", 10*time.Second)
	if w.refused > 0 {
		t.Errorf("%d calls were refused of what fits", w.refused)
	}
	before = w.percentile(0.99)
	w.evenly(8.5*w.capacity(), w.mixed, &flood)
	w.forget()
	return before
}

// Before it was known for a flood, 128 calls were let through, and it took half a second until as few were under way as upstreams do well: one of a
// hundred calls of a minute were those.
func TestTheFirstMomentsOfAFloodAreSlowForFew(t *testing.T) {
	seed := seedOf(t)
	w := newWorld(seed, 1)
	before := w.fixedFlood(t)
	w.run(time.Second)
	w.report(t, "first second of the flood", time.Second)
	slow := 0
	for _, late := range w.lateness {
		if late > 3*before {
			slow++
		}
	}
	t.Logf("%d of %d calls took more than three times %s", slow, len(w.lateness), before)
	if slow > 150 {
		t.Errorf("seed %d: %d calls of the first second took more than three times %s, want 150 at most: a quarter", seed, slow, before)
	}
}

// Upstreams that do so many calls at a time and no more gain nothing by company: whoever is let through in a flood waits for it.
func TestAFloodIsQuickForWhomItLetsThroughWhereCompanyDoesNotPay(t *testing.T) {
	// What the p99 is beside that before, and how much of what they can do is served.
	flood := func(seed uint64, single bool, config ConcurrencyConfig) (times, served float64) {
		w := newWorld(seed, 1)
		w.gates[0] = newGate(config, 0)
		w.single = single
		before := w.fixedFlood(t)
		w.run(time.Minute)
		served = w.report(t, fmt.Sprintf("a minute of the flood, single %v, tolerance %v", single, config.Tolerance), time.Minute)
		return float64(w.percentile(0.99)) / float64(before), served
	}
	seed := seedOf(t)
	times, served := flood(seed, true, ConcurrencyConfig{})
	if times > 2.3 || served < 0.9 {
		t.Errorf("seed %d: a hundredth took %.2f times what it took before, and %.3f was served, want at most 2.3 and at least 0.9", seed, times, served)
	}
	if grouped, _ := flood(seed, false, ConcurrencyConfig{}); grouped < times+0.3 {
		t.Errorf("seed %d: where company pays, a hundredth took %.2f times what it took before, no more than the %.2f where it does not", seed, grouped, times)
	}
	if said, _ := flood(seed, true, ConcurrencyConfig{Tolerance: toleranceGrouped, Slack: slackGrouped}); said < times+0.3 {
		t.Errorf("seed %d: a policy says that calls may take long, and a hundredth took %.2f times what it took before, no more than the %.2f without it", seed, said, times)
	}
}

func TestACallMayTakeAsLongAsItsUpstreamsSay(t *testing.T) {
	const baseline = 20 * time.Millisecond
	p := newPace(ConcurrencyConfig{}.withDefaults(), 0)
	say := func(method string, end outcome.Outcome, grouped bool, times int) {
		for range times {
			p.observe(method, 0, int64(baseline), end, grouped)
		}
		for _, known := range p.methods {
			known.baseline = float64(baseline)
		}
	}
	for _, step := range []struct {
		what     string
		end      outcome.Outcome
		grouped  bool
		times    int
		min, max float64 // of the method's calls, as multiples of what they take without load
	}{
		{"one answer, of an upstream that says nothing", outcome.Good, false, 1, 1.9, 2},
		{"a hundred of them", outcome.Good, false, 100, toleranceSingle, 1.22},
		{"a hundred faults of one that commits in groups", outcome.Fault, true, 100, toleranceSingle, 1.22},
		{"a hundred answers of one that commits in groups", outcome.Good, true, 100, 1.98, toleranceGrouped},
	} {
		say("m", step.end, step.grouped, step.times)
		if got := p.allowed(p.methods["m"]) / float64(baseline); got < step.min-1e-9 || got > step.max+1e-9 {
			t.Errorf("after %s a call may take %.3f times as long, want %v to %v", step.what, got, step.min, step.max)
		}
	}
	say("other service", outcome.Good, false, 200)
	if got := p.allowed(p.methods["m"]) / float64(baseline); got < 1.98 {
		t.Errorf("what another service says of itself changed it to %.3f", got)
	}
	// Half and half it stays in between, whichever answers last.
	for range 100 {
		say("mixed", outcome.Good, true, 1)
		say("mixed", outcome.Good, false, 1)
	}
	if got := p.allowed(p.methods["mixed"]) / float64(baseline); got < 1.5 || got > 1.7 {
		t.Errorf("where half of the upstreams say so a call may take %.3f times as long, want about %v", got, (toleranceGrouped+toleranceSingle)/2)
	}
}
