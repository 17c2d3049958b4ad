package limit

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A gate lets as many calls through at a time as their upstreams do well, and when more come, those that matter most.
//
// Three things act together. The pace (see pace) is how many calls may be under way; it follows how long calls take. The bar is
// the level below which a call is refused at once, at the price of a few atomic reads; it follows how many calls came of which level
// and how many were served, so that what passes it is what fits. What passes the bar and finds no place waits, the highest level first, in a
// short queue; when calls of it are refused, the queue stands, and the bar goes up. A queue that serves everybody in time refuses nobody, however long:
// it is that of a moment's noise, or of callers who each wait for an answer before they ask again. While the bar refuses calls, the queue stands already
// when everybody had to wait for longer than queueTarget.
//
// Where upstreams stall and no more is asked than usual (see demand), there are more places than the pace for a moment.
//
// Time comes in as a value, in ns since a start, so that a test moves it. Methods may be called by several goroutines.
type gate struct {
	config ConcurrencyConfig

	bar atomic.Uint32
	// barred counts the calls of the window that were below the bar.
	barred    atomic.Uint32
	windowEnd atomic.Int64
	asked     [levelsMax]atomic.Uint32
	// retryAfter by priority, in ns, as tellWhen computes it.
	retryAfter [prioritiesMax]atomic.Int64

	mu       sync.Mutex
	pace     pace
	underWay int
	waiting  []*waiter // by rank, the worst first
	arrivals uint64
	window   window
	// barring is whether the bar refused calls in the newest window, and usual whether no more was asked than usual (see demand).
	barring bool
	demand  demand
	usual   bool
	// Smoothed over the last windows.
	came   [levelsMax]float64
	served float64
	// fits is how many calls may pass the bar, counted like came.
	fits float64
	// refusing is since when calls are refused, and refused when one was last; 0 for none.
	refusing, refused int64
}

// A waiter is a call that waits for a place.
type waiter struct {
	level  level
	number uint64 // in the order of arrival
	since  int64
	// patience is how long it may wait, from since on.
	patience time.Duration
	// settle is told once, by whoever holds the gate's lock: whether it was let through.
	settle func(admitted bool)
}

// A window is what happened since the newest adjustment.
type window struct {
	start    int64
	served   int
	shed     int   // for want of room in the queue, or of patience
	admitted int   // of all levels
	waitMin  int64 // the least that an admitted call waited
	entered  int   // passed the bar
	peak     int   // most calls under way
	// held is the time that calls were under way, all together, until heldAt.
	held   float64
	heldAt int64
}

// hold takes in that so many calls were under way until now.
func (w *window) hold(now int64, underWay int) {
	w.held += float64(underWay) * float64(now-w.heldAt)
	w.heldAt = now
}

// ConcurrencyConfig is how many calls are under way at a time; what is zero has a default.
type ConcurrencyConfig struct {
	// Off lets every call through.
	Off bool `yaml:"off"`
	// Min, Initial and Max calls under way; by default 8, 64 and 8192. However long calls take, Min are let through: it is for whoever knows that the
	// nodes bound their work themselves, and that how long calls take says little of it.
	Min     int `yaml:"min"`
	Initial int `yaml:"initial"`
	Max     int `yaml:"max"`
	// Tolerance is how many times as long as without load a call may take before there are fewer of them; by default 2 where upstreams say that
	// they commit in groups, as Weir's nodes do, and 1.2 elsewhere.
	Tolerance float64 `yaml:"tolerance"`
	// Slack is by how much longer than without load a call may take in any case; by default 10 ms where upstreams say that they commit in groups,
	// which are slower and better with company, and 1 ms elsewhere.
	Slack time.Duration `yaml:"slack"`
	// QueueMax bounds the calls that wait for a place, by default 256, and QueueWaitMax how long each waits, by default 50 ms.
	QueueMax     int           `yaml:"queue_max"`
	QueueWaitMax time.Duration `yaml:"queue_wait_max"`
}

// Defaults and limits of a gate.
//
// Tolerance and slack are what a flood costs those whom it lets through. Of three upstreams that do two calls at a time, each for 10 ms, in simulation
// (fixedFlood, a minute of ten times as much as they can do), with the p99 of calls as a multiple of that before, and what was served of what they can do:
//
//	tolerance 2, slack 10 ms     2.77   97%   where company pays, as upstreams say (see latency.company)
//	tolerance 1.75, slack 7.5 ms 2.47   97%
//	tolerance 1.5, slack 5 ms    2.25   96%
//	tolerance 1.3, slack 2 ms    2.1    94%
//	tolerance 1.2, slack 1 ms    2.1    94%   elsewhere
//	tolerance 1.15, slack 1 ms   2.0    93%
//	tolerance 1.1, slack 1 ms    2.0    92%, and 2.25 in one seed of three
//
// Nine tenths of that p99 are time at the upstream, and so it is the whole minute, not its first seconds nor its trials. So small a pace rests where calls
// take 1.16 times what they may, 1/(1-growLeast/√pace). With a growLeast of 0.25 in place of 0.5 the first line has 2.43, the third 2.02 and 94%. But with
// 0.3 already the least served of three gateways has 0.65 of the most (third line: 0.62) in the worst of eight seeds, in place of 0.76, and in the third line
// there is a seed in which fewer than 99% of the orders of one kind are served.
const (
	minDefault          = 8
	initialDefault      = 64
	maxDefault          = 8192
	maxMax              = 1 << 20
	toleranceGrouped    = 2
	toleranceSingle     = 1.2
	toleranceMax        = 100
	slackGrouped        = 10 * time.Millisecond
	slackSingle         = time.Millisecond
	queueMaxDefault     = 256
	queueMaxMax         = 1 << 14
	queueWaitMaxDefault = 50 * time.Millisecond
	queueWaitMaxMax     = 10 * time.Second

	// windowLength is how often pace and bar are adjusted, while calls come.
	windowLength = 100 * time.Millisecond
	// queueTarget is how long every call of a window may wait without the queue counting as one that stands (CoDel's target).
	queueTarget = 5 * time.Millisecond
	// queueWaitStanding bounds the wait of those priorities of which the bar has just refused some: their queue is no burst that passes.
	queueWaitStanding = 10 * time.Millisecond
	// smoothing is what is left of a window's counts in the next one.
	smoothing = 0.7
	// growth is by how much more is let through than was served, each window in which there was room, until it fits no more.
	growth = 1.05
	// growthUnused is the same for a window in which places stayed free: then it is the bar alone that refuses.
	growthUnused = 1.5
	// fitsFall is by how much less is let through at most, from one window to the next.
	fitsFall = 0.95
	// retryAfterMin and retryAfterMax bound what a refused call is told; retryAfterUnknown bounds it while nothing is served.
	retryAfterMin     = 100 * time.Millisecond
	retryAfterMax     = 30 * time.Second
	retryAfterUnknown = 5 * time.Second
	// refusingEnds is how long nobody has been refused when the next refusal counts as the first.
	refusingEnds = time.Second
)

// Validate says what is wrong with the configuration.
func (c ConcurrencyConfig) Validate() error {
	full := c.withDefaults()
	switch {
	case c.Min < 0 || c.Initial < 0 || c.Max < 0 || c.QueueMax < 0 || c.QueueWaitMax < 0 || c.Slack < 0:
		return fmt.Errorf("concurrency: a limit is negative")
	case full.Max > maxMax:
		return fmt.Errorf("concurrency: max is %d, want at most %d", full.Max, maxMax)
	case full.Min > full.Initial || full.Initial > full.Max:
		return fmt.Errorf("concurrency: min %d, initial %d and max %d are not in this order", full.Min, full.Initial, full.Max)
	case c.Tolerance != 0 && !(c.Tolerance >= 1 && c.Tolerance <= toleranceMax):
		return fmt.Errorf("concurrency: tolerance is %v, want 1 to %d", c.Tolerance, toleranceMax)
	case full.QueueMax > queueMaxMax:
		return fmt.Errorf("concurrency: queue_max is %d, want at most %d", full.QueueMax, queueMaxMax)
	case full.QueueWaitMax > queueWaitMaxMax:
		return fmt.Errorf("concurrency: queue_wait_max is %s, want at most %s", full.QueueWaitMax, queueWaitMaxMax)
	}
	return nil
}

func (c ConcurrencyConfig) withDefaults() ConcurrencyConfig {
	orDefault(&c.Max, maxDefault)
	orDefault(&c.Initial, min(initialDefault, c.Max))
	orDefault(&c.Min, min(minDefault, c.Initial))
	orDefault(&c.QueueMax, queueMaxDefault)
	orDefault(&c.QueueWaitMax, queueWaitMaxDefault)
	return c
}

// allowance returns how many times as long as without load calls may take, or how much longer: where company pays, or elsewhere.
func (c ConcurrencyConfig) allowance(grouped bool) (tolerance float64, slack time.Duration) {
	tolerance, slack = c.Tolerance, c.Slack
	if grouped {
		orDefault(&tolerance, toleranceGrouped)
		orDefault(&slack, slackGrouped)
		return tolerance, slack
	}
	orDefault(&tolerance, toleranceSingle)
	orDefault(&slack, slackSingle)
	return tolerance, slack
}

func orDefault[T comparable](value *T, whenZero T) {
	var zero T
	if *value == zero {
		*value = whenZero
	}
}

// Within returns the configuration with other bounds; 0 leaves one as it is. Where the two contradict each other, the most counts.
func (c ConcurrencyConfig) Within(least, most int) ConcurrencyConfig {
	c = c.withDefaults()
	if most > 0 {
		c.Max, c.Off = most, false
	}
	if least > 0 {
		c.Min = least
	}
	c.Min = min(c.Min, c.Max)
	c.Initial = min(max(c.Initial, c.Min), c.Max)
	return c
}

// newGate makes a gate. wall is the clock's time at time 0, in ns since 1970.
func newGate(config ConcurrencyConfig, wall int64) *gate {
	config = config.withDefaults()
	g := &gate{config: config, pace: newPace(config, wall)}
	g.window.waitMin = -1
	g.windowEnd.Store(int64(windowLength))
	return g
}

// ask counts a call and reports whether it may try to enter. It takes no lock, unless it is time to adjust.
func (g *gate) ask(now int64, at level) bool {
	if now >= g.windowEnd.Load() {
		g.roll(now)
	}
	g.asked[at].Add(1)
	if uint32(at) >= g.bar.Load() {
		return true
	}
	g.barred.Add(1)
	return false
}

// refusal returns when a call of the level should come again.
func (g *gate) refusal(at level) time.Duration {
	after := time.Duration(g.retryAfter[at.priority()].Load())
	return min(max(after, retryAfterMin), retryAfterMax)
}

// places returns how many calls may be under way. The lock is held.
func (g *gate) places(now int64) int {
	places := g.pace.places(now)
	if g.usual && !g.pace.trial.cuts(now) {
		places = max(places, min(usualPlaces, g.config.Max))
	}
	return places
}

// hasPlace reports whether one more call may be under way. For each that takes more than the pace it looks whether no more is asked than usual: in a
// flood, a window is long enough for the calls that have come since to take all places. The lock is held.
func (g *gate) hasPlace(now int64) bool {
	return g.underWay < g.pace.places(now) ||
		g.underWay < g.places(now) && g.demand.isUsual(now, g.window.entered+int(g.barred.Load()))
}

// tryEnter lets a call through if there is a place and nobody waits.
func (g *gate) tryEnter(now int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) > 0 || !g.hasPlace(now) {
		return false
	}
	g.window.entered++
	g.admit(now, now)
	return true
}

// enter lets a call through, or returns a waiter whose settle is called later, or neither: it is refused.
func (g *gate) enter(now int64, at level, settle func(admitted bool)) (admitted bool, queued *waiter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.window.entered++
	if len(g.waiting) == 0 && g.hasPlace(now) {
		g.admit(now, now)
		return true, nil
	}
	if len(g.waiting) >= g.config.QueueMax {
		if g.waiting[0].level >= at {
			g.window.shed++
			return false, nil
		}
		g.waiting[0].settle(false)
		g.waiting = slices.Delete(g.waiting, 0, 1)
		g.window.shed++
	}
	g.arrivals++
	queued = &waiter{level: at, number: g.arrivals, since: now, patience: g.config.QueueWaitMax, settle: settle}
	if bar := level(g.bar.Load()); g.barring && at.priority() <= bar.priority() {
		queued.patience = min(queued.patience, queueWaitStanding)
	}
	index, _ := slices.BinarySearchFunc(g.waiting, queued, byRank)
	g.waiting = slices.Insert(g.waiting, index, queued)
	g.serveWaiting(now)
	return false, queued
}

// byRank orders waiters: the higher level is better, and of one level who came first.
func byRank(a, b *waiter) int {
	switch {
	case a.level != b.level:
		return int(a.level) - int(b.level)
	case a.number > b.number:
		return -1
	case a.number < b.number:
		return 1
	}
	return 0
}

// admit counts a call as under way. The lock is held.
func (g *gate) admit(now, since int64) {
	g.window.hold(now, g.underWay)
	g.underWay++
	g.window.peak = max(g.window.peak, g.underWay)
	g.window.admitted++
	if wait := now - since; g.window.waitMin < 0 || wait < g.window.waitMin {
		g.window.waitMin = wait
	}
}

// serveWaiting gives free places to the best who wait. The lock is held.
func (g *gate) serveWaiting(now int64) {
	for len(g.waiting) > 0 && g.hasPlace(now) {
		last := len(g.waiting) - 1
		best := g.waiting[last]
		g.waiting[last] = nil
		g.waiting = g.waiting[:last]
		g.admit(now, best.since)
		best.settle(true)
	}
}

// giveUp takes a waiter out of the queue and reports whether it was still there.
func (g *gate) giveUp(w *waiter, shed bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	index, found := slices.BinarySearchFunc(g.waiting, w, byRank)
	if !found {
		return false
	}
	g.waiting = slices.Delete(g.waiting, index, index+1)
	if shed {
		g.window.shed++
	}
	return true
}

// leave takes in that a call of a method that was let through at since has ended, and whether its upstream says that it commits in groups.
func (g *gate) leave(now, since int64, method string, end outcome.Outcome, grouped bool) {
	if now >= g.windowEnd.Load() {
		g.roll(now)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.window.hold(now, g.underWay)
	g.underWay--
	if end != outcome.Abandoned { // How long it would have taken is not known.
		g.window.served++
		g.pace.observe(method, since, now-since, end, grouped)
	}
	g.serveWaiting(now)
}

// roll ends a window and adjusts pace and bar.
func (g *gate) roll(now int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now < g.windowEnd.Load() {
		return // Somebody else did.
	}
	g.windowEnd.Store(now + int64(windowLength))
	g.window.hold(now, g.underWay)
	passed := g.window
	g.window = window{start: now, waitMin: -1, peak: g.underWay, heldAt: now}
	g.barring = g.barred.Swap(0) > 0

	trial := g.pace.trial.cuts(now) || g.pace.trial.cuts(passed.start)
	full := passed.shed > 0 || g.bar.Load() > 0 || passed.peak >= g.places(now)
	var asked [levelsMax]float64
	came := 0.0
	for i := range g.asked {
		asked[i] = float64(g.asked[i].Swap(0))
		came += asked[i]
	}
	g.demand.pass(now, came, float64(passed.served), full || passed.peak > int(g.pace.limit) || g.pace.recent > 1)
	g.usual = g.demand.isUsual(now, 0)
	g.pace.adjust(now, use{full: full, usual: g.usual, peak: passed.peak, mean: passed.held / float64(now-passed.start), lately: g.demand.lately()})

	g.noteRefusing(now, passed)
	if now-passed.start >= 2*int64(windowLength) && len(g.waiting) == 0 {
		g.forget() // Nobody came, ended or waited for a whole window: what the last one saw is over.
		g.tellWhen(now)
		return
	}
	total := 0.0
	for i := range g.came {
		g.came[i] = g.came[i]*smoothing + asked[i]
		total += g.came[i]
	}
	g.served = g.served*smoothing + float64(passed.served)

	standing := passed.shed > 0 || g.barring && passed.waitMin > int64(queueTarget)
	if !trial { // What is served in one says nothing of what could be.
		g.moveBar(total, standing, !g.pace.uses(passed.peak))
	}
	g.tellWhen(now)
	g.serveWaiting(now)
}

// forget drops what is known of a load that has passed. The pace, which is what upstreams can do, stays. The lock is held.
func (g *gate) forget() {
	for i := range g.came {
		g.came[i] = 0
	}
	g.served, g.fits = 0, 0
	g.bar.Store(0)
}

// moveBar puts the bar where what passes it is what was served when the queue stood last, and a little more in each window in which it did not.
// unused says that there were places for far more than were under way. The lock is held.
func (g *gate) moveBar(total float64, standing, unused bool) {
	switch up := g.bar.Load() > 0; {
	case up && standing:
		g.fits = max(g.served, g.fits*fitsFall)
	case standing:
		g.fits = g.served
	case up && unused:
		g.fits = max(g.fits, g.served)*growthUnused + 1
	case up:
		g.fits = max(g.fits, g.served)*growth + 1
	default:
		return
	}
	if total <= g.fits {
		g.bar.Store(0)
		return
	}
	bar, passing := levelsMax-1, 0.0
	for ; bar > 0; bar-- {
		if passing += g.came[bar]; passing >= g.fits {
			break
		}
	}
	g.bar.Store(uint32(bar))
}

// noteRefusing notes whether calls were refused in a window. The lock is held.
func (g *gate) noteRefusing(now int64, passed window) {
	switch {
	case passed.shed > 0 || g.barring:
		g.refused = now
		if g.refusing == 0 {
			g.refusing = passed.start
		}
	case now-g.refused >= int64(refusingEnds):
		g.refusing = 0
	}
}

// tellWhen computes when those who are refused should come again: after as long as it takes to serve what a second asks for at their priority and
// above. That is known from what was served lately; where nothing was, nobody knows, and the gate says a few seconds at the most. And it says no more
// than it has refused calls for: who is refused in a moment's jam comes again in a moment, and who meets one that lasts, later each time.
// The lock is held.
func (g *gate) tellWhen(now int64) {
	lasts := float64(0)
	if g.refusing > 0 {
		lasts = float64(now - g.refusing)
	}
	asked := 0.0
	for i := len(g.came) - 1; i >= 0; i-- {
		asked += g.came[i]
		if i%levelsPerPriority == 0 {
			after := float64(retryAfterUnknown)
			if g.served >= 1 {
				after = asked / g.served * float64(time.Second)
			}
			g.retryAfter[level(i).priority()].Store(int64(min(after, lasts, float64(retryAfterMax))))
		}
	}
}
