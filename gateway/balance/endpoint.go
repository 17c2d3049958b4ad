package balance

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// An endpoint is what the answers of an upstream showed. It outlives tables, by the upstream's id. Moments are nanoseconds of
// the balancer's clock.
type endpoint struct {
	inFlight atomic.Int64
	picks    atomic.Uint64

	// waiting counts the calls under way that are no streams; waitingSince is the last answer, or when the first of them began.
	waiting      atomic.Int64
	waitingSince atomic.Int64

	// latencyMu is for writers; latency, a float64 in nanoseconds, was true at latencyAt.
	latencyMu sync.Mutex
	latency   atomic.Uint64
	latencyAt atomic.Int64

	faultsInRow  atomic.Int64
	good, faults atomic.Int64 // since rates were last compared

	// probation: it came back from an ejection and has not answered since. trials counts the calls it got.
	probation atomic.Bool
	trials    atomic.Int64
	// returned is when it answered again, or returnedNever.
	returned atomic.Int64

	// ejected is whether ejectedUntil is set, for those who take no lock.
	ejected atomic.Bool

	// Below is guarded by Balancer.mu.
	ejectedUntil time.Duration // 0 is not ejected
	ejectedFor   time.Duration
	reason       Reason
	ejections    uint64

	// smooth is its running weight in the smooth round-robin, guarded by Balancer.smoothMu.
	smooth float64
}

// returnedNever is far enough back that nothing warms up since.
const returnedNever = math.MinInt64 / 2

// latencyFloor is what any call takes: two upstreams that are both quicker are told apart by their calls under way.
const latencyFloor = 100 * time.Microsecond

func newEndpoint(latency, now time.Duration) *endpoint {
	e := &endpoint{}
	e.latencyIs(latency, now)
	e.returned.Store(returnedNever)
	return e
}

// latencyIs replaces what is known.
func (e *endpoint) latencyIs(latency, now time.Duration) {
	e.latencyMu.Lock()
	defer e.latencyMu.Unlock()
	e.latency.Store(math.Float64bits(float64(latency)))
	e.latencyAt.Store(int64(now))
}

// observe takes in how long a call took. A latency above the one that is known counts at once, one below step by step.
func (b *Balancer) observe(e *endpoint, result outcome.Outcome, took, now time.Duration) {
	e.latencyMu.Lock()
	defer e.latencyMu.Unlock()
	known := math.Float64frombits(e.latency.Load())
	since := max(0, now-time.Duration(e.latencyAt.Load()))
	seen := float64(took)
	switch result {
	case outcome.Good:
	case outcome.Fault:
		// One that fails quickly must not look quick.
		seen = max(seen, float64(b.config.FaultLatency))
	case outcome.Overload:
		// It refused quickly because it has too much to do: it is to have less.
		seen = max(seen, min(2*known, float64(b.config.FaultLatency)))
	case outcome.Abandoned:
		// Nobody knows how long it would have taken, but not less.
		if seen <= known {
			return
		}
	}
	if seen < known {
		left := math.Exp(-float64(since) / float64(b.config.DecayTime))
		seen = known*left + seen*(1-left)
	}
	e.latency.Store(math.Float64bits(seen))
	e.latencyAt.Store(int64(now))
}

// expected returns how long a call is expected to take: what was seen, decayed, or for how long nothing was answered.
func (e *endpoint) expected(now, decay time.Duration) time.Duration {
	latency := math.Float64frombits(e.latency.Load())
	if since := now - time.Duration(e.latencyAt.Load()); since > 0 {
		latency *= math.Exp(-float64(since) / float64(decay))
	}
	return max(latencyFloor, time.Duration(latency), e.silence(now))
}

// silence returns for how long calls have been waiting without any answer.
func (e *endpoint) silence(now time.Duration) time.Duration {
	if e.waiting.Load() <= 0 {
		return 0
	}
	return now - time.Duration(e.waitingSince.Load())
}

// frozen reports whether the upstream takes calls and does not answer them.
func (b *Balancer) frozen(m *member, now time.Duration) bool {
	e := b.config.Ejection
	return !e.Off && m.waiting.Load() >= int64(e.FrozenCalls) && m.silence(now) >= e.FrozenAfter
}

// warmth returns the share of its weight that a member has: it grows after the process started, and after it came back.
func (b *Balancer) warmth(m *member, now time.Duration) float64 {
	age := now - time.Duration(m.returned.Load())
	if m.warms {
		age = min(age, now-m.warmFrom)
	}
	switch {
	case m.probation.Load():
		return b.config.WarmUpFrom
	case age >= b.config.WarmUp:
		return 1
	}
	return max(b.config.WarmUpFrom, float64(age)/float64(b.config.WarmUp))
}

// weightNow returns the member's weight, as far as it is warm.
func (b *Balancer) weightNow(m *member, now time.Duration) float64 {
	return m.weight * b.warmth(m, now)
}

// meanLatency returns what an upstream is taken to need of which nothing is known: what the others do.
func (t *table) meanLatency() time.Duration {
	if len(t.all) == 0 {
		return 0
	}
	sum := 0.0
	for _, m := range t.all {
		sum += math.Float64frombits(m.latency.Load())
	}
	return time.Duration(sum / float64(len(t.all)))
}
