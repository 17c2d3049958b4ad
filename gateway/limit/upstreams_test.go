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
