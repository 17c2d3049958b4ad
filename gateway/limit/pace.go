package limit

import (
	"math"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A pace is how many calls may be under way, from how long they take: it grows while calls take little longer than without load and
// there is use for more, and shrinks in proportion when they take longer than allowed, unless so few are under way that it is not they who wait for
// each other. While there is no use for it, it comes back to where it began.
//
// What a method's calls take without load is its baseline. Measured as a moving average under load it would creep up with the load, and the
// pace with it; as a minimum for ever it would starve an upstream that became slower for good. So it falls quickly, and rises by trials
// alone: every few seconds, while there is load, fewer calls are let through for a moment, and those are looked at. Had calls been waiting for
// each other, these are quicker; if they are not, what they take is their own, and the baseline rises. All gateways that see load hold
// their trials at the same times of the clock, for one alone of many would see the load of the others.
//
// It has no lock of its own: the gate's is held.
type pace struct {
	config  ConcurrencyConfig
	wall    int64 // of time 0, in ns since 1970
	limit   float64
	methods map[string]*latency
	peak    int // calls under way in the newest window, at most
	// Calls of the window so far; busy ones were turned away by their upstream.
	calls, busy int
	// recent is the load, smoothed, and fallFrom the pace before it began to last, 0 while it does not.
	recent, fallFrom float64
	// fresh says that a baseline was found under load and may be far too high: there was no window without load yet, and no trial that found
	// nothing lower.
	fresh bool
	trial trial
}

// A trial is planned or under way while start is not 0, and cuts the pace from start to end. Calls that are let through from settled on, when those
// from before have ended, are looked at; by judge they have ended too. An early one is not held by all gateways, and raises nothing.
type trial struct {
	start, settled, end, judge int64
	early                      bool
	before                     float64 // the load
	tolerance                  float64 // as it was then
}

// wait returns how much of the baseline its calls are to take if they wait for each other.
func (t trial) wait() float64 {
	if t.early {
		return trialWaitEarly
	}
	return trialWait
}

func (t trial) cuts(now int64) bool { return t.start > 0 && now >= t.start && now < t.end }

// A latency is what is known of one method's calls, in ns.
type latency struct {
	baseline float64 // 0 until known
	lowest   float64 // that the baseline ever was
	// company is the share of its upstreams that commit in groups, 0 to 1, by what those say that answered of late: there a call is slower, and more are
	// served, when others are under way.
	company float64
	window  tally
	sample  tally // since the baseline was looked at last
	trial   tally
}

// A use is how a window used the pace.
type use struct {
	// full says that there was use for more calls than were allowed, and usual that no more was asked than usual.
	full, usual bool
	// peak is how many calls were under way at most, and mean on average.
	peak int
	mean float64
	// lately is the most calls that were served in a window lately.
	lately float64
}

type tally struct {
	sum   float64
	calls int
}

func (t tally) mean() float64 { return t.sum / float64(t.calls) }

const (
	// callsMin is how many calls a window or a trial needs to say anything of how long they take.
	callsMin = 5
	// shrinkMost is by how much the pace shrinks at most at a time, as long as it is no more than enough; growLeast and growMost times its square root
	// is what it grows. Where both are the same, the load is 1/(1-growLeast/√pace).
	shrinkMost = 0.7
	growLeast  = 0.5
	growMost   = 2
	// usedShare of the pace is used when as many calls were under way at once. Where fewer were, that calls took long is no work of theirs: fewer places
	// would make them no quicker.
	usedShare = 0.5
	// fullShare of the pace is what calls under way take on average while there are enough of them.
	fullShare = 0.85
	// busyShare of calls that an upstream turned away because it has too much to do slows down by busyShrink.
	busyShare  = 0.02
	busyShrink = 0.9
	// trialEvery is how often trials are held, each for trialLength. In one there are as few calls under way that, if calls wait for each other,
	// they take trialWait of the baseline when without a trial they take as much as they may: well below trialQuicker, so that a baseline
	// that is too high falls each time. Calls of a trial that have not ended by trialJudged count for nothing.
	// trialWaitEarly is that of an early one: the baseline that it is about may have far to fall.
	trialEvery     = 10 * time.Second
	trialEarly     = time.Second
	trialWait      = 0.65
	trialWaitEarly = 0.5
	trialLength    = 300 * time.Millisecond
	trialJudged    = 2 * time.Second
	// trialLoad is the load from which trials are held even if there is no use for more calls: others may have it.
	trialLoad = 0.9
	// trialSettle bounds how long the calls from before a trial are waited for.
	trialSettle = 150 * time.Millisecond
	// If the calls of a trial take more than trialQuicker of what calls took before, what they take is their own; if they take less than
	// trialQuicker of the baseline, it is lowered.
	trialQuicker = 0.8
	// sampleMin calls move a baseline, fall of the way to what they took on average if that is less. A few quick calls are chance, and
	// gateways whose baselines differ by chance take unequal shares.
	sampleMin = 20
	fall      = 0.3
	// baselineTimes and baselineMore bound a baseline by the lowest that there was: so many times as long, or by so much, whichever is
	// more. However wrong trials are, it creeps no further.
	baselineTimes = 10
	baselineMore  = float64(100 * time.Millisecond)
	// methodsMax bounds the methods with a baseline of their own; what comes later shares one, under otherMethods.
	methodsMax   = 256
	otherMethods = "other"
	// companyMove is by how much of the way one answer moves what is known of a method's upstreams: after fifty of another kind it is the other.
	companyMove = 0.05
)

// newPace makes a pace. wall is the clock's time at time 0, in ns since 1970.
func newPace(config ConcurrencyConfig, wall int64) pace {
	return pace{config: config, wall: wall, limit: float64(config.Initial), methods: map[string]*latency{}, fresh: true}
}

// places returns how many calls may be under way.
func (p *pace) places(now int64) int {
	if p.config.Off {
		return math.MaxInt
	}
	if p.trial.cuts(now) {
		return max(1, int(min(p.limit, float64(p.peak))*p.trial.wait()/p.trial.tolerance))
	}
	return int(p.limit)
}

// uses reports whether so many calls under way at once use the pace.
func (p *pace) uses(peak int) bool { return float64(peak) >= p.limit*usedShare }

// observe takes in how long a call took that was let through at since, and whether its upstream says that it commits in groups.
func (p *pace) observe(method string, since, took int64, end outcome.Outcome, grouped bool) {
	p.calls++
	if end == outcome.Overload {
		p.busy++
		return // To turn a call away is quick. It says nothing of those that are served.
	}
	known := p.methods[method]
	if known == nil {
		if len(p.methods) >= methodsMax {
			method = otherMethods
		}
		if known = p.methods[method]; known == nil {
			// Until somebody has answered, company is taken to pay: what is refused is lost for sure.
			known = &latency{company: 1}
			p.methods[method] = known
		}
	}
	if end == outcome.Fault && float64(took) < known.baseline {
		return // So is to fail at once.
	}
	if end == outcome.Good { // Faults are often those of somebody before the upstream.
		said := 0.0
		if grouped {
			said = 1
		}
		known.company += (said - known.company) * companyMove
	}
	known.window.add(took)
	known.sample.add(took)
	if p.trial.start > 0 && since >= p.trial.settled && since < p.trial.end {
		known.trial.add(took)
	}
}

func (t *tally) add(took int64) {
	t.sum += float64(took)
	t.calls++
}

// allowed returns how long one call may take, in ns.
func (p *pace) allowed(of *latency) float64 {
	may := func(grouped bool) float64 {
		tolerance, slack := p.config.allowance(grouped)
		return max(of.baseline*tolerance, of.baseline+float64(slack))
	}
	return of.company*may(true) + (1-of.company)*may(false)
}

// tolerance returns how many times as long as without load calls may take, as those of the window are on average.
func (p *pace) tolerance() float64 {
	grouped, _ := p.config.allowance(true)
	single, _ := p.config.allowance(false)
	var sum, calls float64
	for _, known := range p.methods {
		sum += float64(known.window.calls) * (known.company*grouped + (1-known.company)*single)
		calls += float64(known.window.calls)
	}
	if calls == 0 {
		return grouped
	}
	return sum / calls
}

// grouped returns the share of methods whose upstreams commit in groups.
func (p *pace) grouped() float64 {
	if len(p.methods) == 0 {
		return 1
	}
	sum := 0.0
	for _, known := range p.methods {
		sum += known.company
	}
	return sum / float64(len(p.methods))
}

// load returns how long the calls took, as a part of what they may.
func (p *pace) load(of func(*latency) tally) float64 {
	var took, allowed float64
	for _, known := range p.methods {
		if calls := of(known); calls.calls > 0 {
			took += calls.sum
			allowed += float64(calls.calls) * p.allowed(known)
		}
	}
	if allowed == 0 {
		return 0
	}
	return took / allowed
}

// adjust ends a window that ends now.
func (p *pace) adjust(now int64, of use) {
	defer p.beginWindow()
	if p.trial.start > 0 && now >= p.trial.judge {
		p.judge()
	}
	if p.trial.start > 0 && now >= p.trial.start && now < p.trial.end+int64(windowLength) {
		return // What is seen in a trial is no judgement of the whole pace.
	}
	if p.calls < callsMin {
		return
	}
	for _, known := range p.methods {
		known.learn()
	}
	p.peak = of.peak
	load := p.load(func(known *latency) tally { return known.window })
	p.recent = (p.recent + load) / 2
	limit := p.limit
	used := p.uses(of.peak)
	switch {
	case float64(p.busy) > busyShare*float64(p.calls):
		limit *= busyShrink
	case load > 0:
		if load <= 1 {
			p.fallFrom = 0
		} else if p.fallFrom == 0 {
			p.fallFrom = p.limit
		}
		if used && !of.usual {
			limit = max(limit*min(1, 1/load), min(limit*shrinkMost, p.enough(of.lately)))
		}
		switch {
		case of.full && (!of.usual || load <= 1):
			// A larger pace grows less in proportion, so that gateways in front of the same upstreams come to like shares. That calls are quick shows
			// that more would be only if they were not quick for being few: the bar refuses a few too many at times.
			grow := growLeast
			if of.mean >= p.limit*fullShare {
				grow = min(growLeast+max(0, 1/load-1), growMost)
			}
			limit += math.Sqrt(p.limit) * grow
		case load <= 1 && limit < float64(p.config.Initial):
			limit = min(limit+math.Sqrt(limit)*growLeast, float64(p.config.Initial))
		}
	}
	p.limit = min(max(limit, float64(p.config.Min)), float64(p.config.Max))
	switch loaded := !of.usual && (of.full || used && p.recent > trialLoad); {
	case loaded && p.trial.start == 0:
		p.planTrial(now)
	case !loaded:
		p.fresh = false
		if p.trial.start > now {
			p.trial = trial{}
		}
	}
}

// enough returns how many places fill upstreams that serve as many calls in a window as they did lately, or in this one, where each takes as long as it
// may (Little's law).
func (p *pace) enough(lately float64) float64 {
	var allowed float64
	calls := 0
	for _, known := range p.methods {
		allowed += float64(known.window.calls) * p.allowed(known)
		calls += known.window.calls
	}
	return max(lately, float64(p.calls)) * allowed / float64(calls) / float64(windowLength)
}

// learn moves the baseline by what was seen since it was looked at last.
func (k *latency) learn() {
	if k.sample.calls < sampleMin && (k.baseline > 0 || k.sample.calls == 0) {
		return
	}
	switch mean := k.sample.mean(); {
	case k.baseline == 0:
		k.setBaseline(mean)
	case mean < k.baseline:
		k.setBaseline(k.baseline + (mean-k.baseline)*fall)
	}
	k.sample = tally{}
}

// setBaseline sets what a method's calls take without load, within its bounds.
func (k *latency) setBaseline(ns float64) {
	if k.lowest == 0 || ns < k.lowest {
		k.lowest = ns
	}
	k.baseline = min(ns, max(k.lowest*baselineTimes, k.lowest+baselineMore))
}

// planTrial plans the next trial, to the nanosecond of the clock.
func (p *pace) planTrial(now int64) {
	next := func(every time.Duration) int64 { return now + int64(every) - (p.wall+now)%int64(every) }
	start := next(trialEvery)
	early := false
	if p.fresh {
		if soon := next(trialEarly); soon < start {
			start, early = soon, true
		}
	}
	var mean float64
	for _, known := range p.methods {
		if known.window.calls > 0 {
			mean = max(mean, known.window.mean())
		}
	}
	settle := min(int64(2*mean), int64(trialSettle))
	p.trial = trial{
		start: start, settled: start + settle, end: start + int64(trialLength), judge: start + int64(trialJudged), early: early, before: p.recent,
		tolerance: p.tolerance(),
	}
}

// judge ends a trial.
func (p *pace) judge() {
	calls := 0
	for _, known := range p.methods {
		calls += known.trial.calls
	}
	load := p.load(func(known *latency) tally { return known.trial })
	own := !p.trial.early && calls >= callsMin && load > trialQuicker*max(p.trial.before, 1)
	p.fresh = false
	for _, known := range p.methods {
		switch {
		case known.trial.calls < callsMin:
		case own:
			known.setBaseline(max(known.baseline, known.trial.mean()))
		case known.trial.mean() < known.baseline*trialQuicker:
			known.setBaseline(known.trial.mean())
			p.fresh = true // It may be lower still.
		}
		known.trial, known.sample = tally{}, tally{}
	}
	if own {
		p.limit = max(p.limit, p.fallFrom)
		p.recent = 1
	}
	p.fallFrom = 0
	p.trial = trial{}
}

func (p *pace) beginWindow() {
	p.calls, p.busy = 0, 0
	for _, known := range p.methods {
		known.window = tally{}
	}
}
