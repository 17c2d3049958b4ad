package limit

import (
	"math"
	"time"
)

// A grant is by how much longer than without load calls may take: a little in any case, and more while it pays, that is while more calls under way bring
// more calls served. That is so of nodes that commit in groups, which are slower and better with company; and wherever callers who are refused come again
// at once and take what the node would need. It is not so of upstreams that do so many calls at a time and no more: there, more calls under way wait for
// each other, and that is all.
//
// Whether it pays is seen by probes: every few seconds, while there is load, more calls are let through for a moment, and those that are served are
// counted. What lasts longer than that is no evidence, for load and upstreams change by themselves. All gateways hold their probes at the same
// times of the clock: one alone of many would be served more for what the others lose. What was granted is taken away now and then and has to be earned
// anew: with few calls under way it is plain whether more of them are more that are served, with many it is not.
//
// It has no lock of its own: the gate's is held.
type grant struct {
	config ConcurrencyConfig
	// given is whether calls may take what the configuration grants where it pays, and not only what they may in any case.
	given bool
	// earned is when it was seen last that it pays.
	earned int64
	// looked counts the probes since the load began.
	looked int
	// short is since when the least pace takes far too long, 0 while it does not.
	short int64
	// slope and weight are what probes have shown: the sums of gain × more and more × more by their noise, where more calls were under way and gain more
	// were served, both as logarithms. slope/weight is what part of the additional calls is served in addition, by least squares, and slope/√weight how many
	// times its noise that is.
	slope, weight float64
	probe         probe
}

// A probe is planned or under way while start is not 0. It lets raise times as many calls be under way from start to end.
type probe struct {
	// taken is when what was given is taken away first, to see whether it is still earned; 0 for not. Then it is, from a pace of so much, once that is not 0.
	taken      int64
	pace       float64
	start, end int64
	raise      float64
	// before and raised are what was seen in the windows before it and in it.
	before, raised sight
}

// A sight is what was seen of some windows.
type sight struct {
	served int
	// held is the time that calls were under way, all together, in ns.
	held   float64
	length time.Duration
}

func (s *sight) add(of use) {
	s.served += of.served
	s.held += of.mean * float64(of.length)
	s.length += of.length
}

// over returns by how much more calls were under way and were served than in another one, as logarithms, and the noise of the latter.
func (s *sight) over(before *sight) (more, gain, noise float64) {
	longer := float64(before.length) / float64(s.length)
	more = math.Log(s.held / before.held * longer)
	gain = math.Log(float64(s.served) / float64(before.served) * longer)
	return more, gain, 1/float64(s.served) + 1/float64(before.served) + probeNoise*probeNoise
}

const (
	// toleranceFree and slackFree are what calls may take in any case, as ConcurrencyConfig says of Tolerance and Slack.
	toleranceFree = 1.2
	slackFree     = 2 * time.Millisecond
	// probeEvery is how often probes are held, each for probeLength, at times that are probePhase later than those of trials. The first probesEarly of a load
	// come sooner, but no sooner than that gateways that a load comes to within a second nearly always hold them together. What was seen for probeBefore before is
	// what they are compared with.
	probeEvery  = 20 * time.Second
	probeEarly  = 5 * time.Second
	probesEarly = 3
	probePhase  = 3*time.Second + 500*time.Millisecond
	probeLength = 400 * time.Millisecond
	probeBefore = 400 * time.Millisecond
	// earnedFor is how long what was earned is not taken away, and probeTaken how long before a probe it is, so that there are as few calls as without it.
	earnedFor  = 30 * time.Second
	probeTaken = time.Second
	// servedLeast is how many calls a probe, and what was before, need to show anything, and moreLeast how many times as many have to be under way.
	servedLeast = 10
	moreLeast   = 1.05
	// A probe lets half of that more be under way which the grant would, within these bounds.
	raiseLeast = 1.25
	raiseMost  = 2.5
	// probeNoise is by how much more than chance what is served varies from moment to moment, and evidenceKept what is left of evidence at the next probe.
	probeNoise   = 0.03
	evidenceKept = 0.7
	// It pays if paysLeast of the additional calls are served in addition, which they are of a node that takes up to a dozen times as long as alone. It has
	// to be paysSure times the noise.
	paysLeast = 0.08
	paysSure  = 3
	// The least pace takes far too long if it takes leastLoad of what it may for leastTime.
	leastLoad = 1.5
	leastTime = 2 * time.Second
)

// newGrant makes one. Who has many calls let through in any case knows nodes that are to have company: to them it is given until it is seen not to pay.
func newGrant(config ConcurrencyConfig) grant {
	return grant{config: config, given: config.Min > minDefault}
}

// tolerance is how many times as long as without load a call may take.
func (g *grant) tolerance() float64 {
	if g.given {
		return g.config.Tolerance
	}
	return min(g.config.Tolerance, toleranceFree)
}

// allowed returns how long a call may take that takes so long without load, both in ns, if it is given or not.
func (g *grant) allowed(given bool, baseline float64) float64 {
	tolerance, slack := g.config.Tolerance, g.config.Slack
	if !given {
		tolerance, slack = min(tolerance, toleranceFree), min(slack, slackFree)
	}
	return max(baseline*tolerance, baseline+float64(slack))
}

// raises returns how many times as many calls may be under way as the pace says.
func (g *grant) raises(now int64) float64 {
	if g.probe.start > 0 && now >= g.probe.start && now < g.probe.end {
		return g.probe.raise
	}
	return 1
}

// plan plans the next probe, to the nanosecond of the clock, if there is load; if not, none is held.
func (g *grant) plan(now int64, p *pace, loaded bool) {
	switch {
	case !loaded:
		g.cancel(p)
		g.looked = 0
		return
	case g.isShort(now, p):
		g.cancel(p)
		g.give(now)
		return
	case g.probe.start > 0, g.config.Tolerance <= toleranceFree && g.config.Slack <= slackFree:
		return
	}
	every := probeEvery
	if g.looked < probesEarly {
		every = probeEarly
	}
	anew := g.given && now-g.earned >= int64(earnedFor)
	if g.given && !anew {
		return // There is nothing to be seen.
	}
	lead := probeBefore
	if anew {
		every, lead = probeEvery, probeTaken
	}
	next := probe{start: now + int64(lead), raise: 1}
	next.start += int64(every) - (p.wall+next.start-int64(probePhase))%int64(every)
	next.end = next.start + int64(probeLength)
	if anew {
		next.taken = next.start - int64(lead)
	}
	g.probe = next
}

// give lets calls take what the configuration grants, from now on.
func (g *grant) give(now int64) {
	g.given, g.earned, g.short = true, now, 0
	g.slope, g.weight = 0, 0
}

// isShort reports whether the least that is let through in any case takes far too long, and has for leastTime: others fill the upstreams, to whom it was
// given, and what one gateway does then shows nothing.
func (g *grant) isShort(now int64, p *pace) bool {
	switch {
	case g.given || p.limit > float64(g.config.Min) || p.recent <= leastLoad:
		g.short = 0
	case g.short == 0:
		g.short = now
	}
	return g.short > 0 && now-g.short >= int64(leastTime)
}

// cancel ends a probe that showed nothing.
func (g *grant) cancel(p *pace) {
	if g.probe.pace > 0 {
		g.given = true
		p.limit = max(p.limit, g.probe.pace)
	}
	g.probe = probe{}
}

// observe takes in a window that ends now, and reports whether it is one of a probe, so that it is no judgement of the pace.
func (g *grant) observe(now int64, of use, p *pace) bool {
	if g.probe.start == 0 {
		return false
	}
	if g.probe.start > now && p.trial.start > 0 && p.trial.start < g.probe.end && p.trial.end+int64(windowLength) > g.probe.start-int64(probeBefore) {
		g.cancel(p) // A trial that came in between.
		return false
	}
	if g.probe.taken > 0 && g.probe.pace == 0 && now >= g.probe.taken {
		g.given, g.probe.pace = false, p.limit
		g.slope, g.weight = 0, 0
	}
	switch {
	case now < g.probe.start:
		if now >= g.probe.start-int64(probeBefore)+int64(windowLength) {
			g.probe.before.add(of)
			g.probe.raise = g.raise(p)
		}
		return false
	case now < g.probe.start+2*int64(windowLength): // The first began before, and in the second calls do.
	case now <= g.probe.end:
		g.probe.raised.add(of)
	}
	if now >= g.probe.end {
		g.judge(now, p)
	}
	return true
}

// raise returns how many times as many calls the next probe is to let be under way.
func (g *grant) raise(p *pace) float64 {
	var now, given float64
	for _, known := range p.methods {
		calls := float64(known.window.calls)
		now += calls * g.allowed(false, known.baseline)
		given += calls * g.allowed(true, known.baseline)
	}
	if now == 0 {
		return raiseLeast
	}
	return min(max(1+(given/now-1)/2, raiseLeast), raiseMost)
}

// judge ends a probe.
func (g *grant) judge(now int64, p *pace) {
	g.looked++
	if min(g.probe.before.served, g.probe.raised.served) < servedLeast || g.probe.before.held == 0 {
		g.cancel(p)
		return
	}
	more, gain, noise := g.probe.raised.over(&g.probe.before)
	if more < math.Log(moreLeast) {
		g.cancel(p)
		return
	}
	g.slope = g.slope*evidenceKept + gain*more/noise
	g.weight = g.weight*evidenceKept + more*more/noise
	switch pays := g.slope > paysLeast*g.weight && g.slope > paysSure*math.Sqrt(g.weight); {
	case pays:
		g.give(now)
		p.limit = min(max(p.limit*math.Exp(more), g.probe.pace), float64(g.config.Max))
	case g.probe.pace > 0:
		g.looked = 0 // It may be earned again soon.
	}
	g.probe = probe{}
}
