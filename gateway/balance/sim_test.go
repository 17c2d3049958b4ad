package balance

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A world has a clock and randomness of its own: the same seed is the same run.
type world struct {
	now    time.Time
	random *rand.Rand
	*Balancer

	events events
	picks  map[string]int
	took   []time.Duration
	faults int
	none   int
}

var beginning = time.Unix(1_700_000_000, 0)

func newWorld(t testing.TB, config Config, seed uint64, upstreams ...Upstream) *world {
	t.Helper()
	w := &world{now: beginning, random: rand.New(rand.NewPCG(seed, seed)), picks: make(map[string]int)}
	b, err := New(config, Options{Now: func() time.Time { return w.now }, Random: w.random.Uint64})
	if err != nil {
		t.Fatal(err)
	}
	w.Balancer = b
	w.set(t, upstreams...)
	return w
}

func (w *world) set(t testing.TB, upstreams ...Upstream) {
	t.Helper()
	if err := w.Set(upstreams); err != nil {
		t.Fatal(err)
	}
}

// named returns upstreams with weight 1.
func named(ids ...string) (upstreams []Upstream) {
	for _, id := range ids {
		upstreams = append(upstreams, Upstream{ID: id})
	}
	return upstreams
}

func (w *world) advance(d time.Duration) { w.now = w.now.Add(d) }

func (w *world) pick(t testing.TB, key Key) Pick {
	t.Helper()
	p, err := w.Pick(key)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) status(t testing.TB, id string) Status {
	t.Helper()
	statuses, _ := w.Statuses()
	i := slices.IndexFunc(statuses, func(s Status) bool { return s.ID == id })
	if i < 0 {
		t.Fatalf("there is no upstream %s", id)
	}
	return statuses[i]
}

// fail makes calls to one upstream fail until it has failed so often.
func (w *world) fail(t testing.TB, id string, times int) {
	t.Helper()
	for tries := 0; times > 0; tries++ {
		if tries > 100_000 {
			t.Fatalf("%s is never picked", id)
		}
		p := w.pick(t, Key{Policy: WeightedRandom})
		if p.ID() != id {
			p.Done(outcome.Abandoned, 0)
			continue
		}
		p.Done(outcome.Fault, time.Millisecond)
		times--
	}
}

// A reply is what an upstream does with a call. hangs answers never.
type reply struct {
	outcome outcome.Outcome
	after   time.Duration
	hangs   bool
}

// run lets calls come at a rate, for a while, each answered as its upstream does, and counts what is picked anew.
func (w *world) run(rate int, during time.Duration, key func() Key, answer func(id string) reply) {
	clear(w.picks)
	w.took, w.faults, w.none = nil, 0, 0
	end := w.now.Add(during)
	w.at(w.now, func() { w.arrive(end, time.Second/time.Duration(rate), key, answer) })
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		e := heap.Pop(&w.events).(event)
		w.now = e.at
		e.do()
	}
	w.now = end
}

func (w *world) arrive(end time.Time, gap time.Duration, key func() Key, answer func(id string) reply) {
	if next := w.now.Add(time.Duration(w.random.ExpFloat64() * float64(gap))); next.Before(end) {
		w.at(next, func() { w.arrive(end, gap, key, answer) })
	}
	p, err := w.Pick(key())
	if err != nil {
		w.none++
		return
	}
	w.picks[p.ID()]++
	r := answer(p.ID())
	if r.hangs {
		return
	}
	w.at(w.now.Add(r.after), func() {
		w.took = append(w.took, r.after)
		if r.outcome == outcome.Fault {
			w.faults++
		}
		p.Done(r.outcome, r.after)
	})
}

// share returns the part of the picks of the last run that an upstream got.
func (w *world) share(id string) float64 {
	sum := 0
	for _, picks := range w.picks {
		sum += picks
	}
	return float64(w.picks[id]) / float64(sum)
}

// p99 returns what 99% of the calls of the last run took, at most.
func (w *world) p99() time.Duration {
	slices.Sort(w.took)
	return w.took[len(w.took)*99/100]
}

func (w *world) at(at time.Time, do func()) {
	heap.Push(&w.events, event{at, eventNumber.Add(1), do})
}

var eventNumber atomic.Uint64

type event struct {
	at     time.Time
	number uint64 // of two at once, the first comes first
	do     func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].number < e[j].number
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// anyKey is calls of many users.
func (w *world) anyKey(policy Policy) func() Key {
	return func() Key { return Key{Policy: policy, Hash: w.random.Uint64()} }
}

// quick is how a healthy upstream answers.
func (w *world) quick() reply {
	return reply{outcome: outcome.Good, after: time.Duration((3 + w.random.ExpFloat64()*2) * float64(time.Millisecond))}
}

var policies = []Policy{LaneAffinity, PeakEWMA, WeightedRandom, WeightedRoundRobin, LeastActive, ConsistentHash}

// each runs a test for each policy and seeds that are printed.
func each(t *testing.T, test func(t *testing.T, policy Policy, seed uint64)) {
	t.Helper()
	for _, policy := range policies {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("%v/seed=%d", policy, seed), func(t *testing.T) { test(t, policy, seed) })
	}
}
