package balance

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// choose returns a member that is ready and was not tried, or else the next best; nil if each was tried.
func (b *Balancer) choose(t *table, policy Policy, key Key, now time.Duration) *member {
	c := chooser{b: b, t: t, key: key, now: now, from: t.ready, trusting: t.panics}
	if m := c.by(policy); m != nil {
		return m
	}
	// Whoever is left: on trial, ejected, or draining.
	c.from, c.trusting = t.all, true
	if policy == ConsistentHash || policy == LaneAffinity {
		policy = PeakEWMA
	}
	return c.by(policy)
}

// A chooser is one choice.
type chooser struct {
	b    *Balancer
	t    *table
	key  Key
	now  time.Duration
	from []*member
	// trusting asks nobody for trials.
	trusting bool
}

func (c *chooser) by(policy Policy) *member {
	switch policy {
	case LaneAffinity:
		if m := c.owner(); m != nil {
			return m
		}
		return c.peakEWMA()
	case PeakEWMA:
		return c.peakEWMA()
	case WeightedRandom:
		return c.weightedRandom()
	case WeightedRoundRobin:
		return c.smoothRoundRobin()
	case LeastActive:
		return c.leastActive()
	case ConsistentHash:
		return c.ring()
	}
	panic("balance: " + policy.String() + " is no policy")
}

// may reports whether the member may be chosen.
func (c *chooser) may(m *member) bool {
	return (len(c.key.Tried) == 0 || !slices.Contains(c.key.Tried, m.ID)) && (c.trusting || c.b.usable(m, c.now))
}

// owner returns the member that decides the call's lane, also while it drains, if it answers.
func (c *chooser) owner() *member {
	if !c.key.HasLane {
		return nil
	}
	m := c.t.owners[c.key.Lane].member
	if m == nil || !c.may(m) || !m.Draining && !slices.Contains(c.t.ready, m) {
		return nil
	}
	return m
}

// draw returns a number from 0 to count-1. Its bias is below count/2⁶⁴.
func (c *chooser) draw(count int) int {
	hi, _ := bits.Mul64(c.b.random(), uint64(count))
	return int(hi)
}

// share returns a number from 0 to 1, without 1.
func (c *chooser) share() float64 { return float64(c.b.random()>>11) / (1 << 53) }

// peakEWMA draws two different members and returns the cheaper one.
func (c *chooser) peakEWMA() *member {
	n := len(c.from)
	if n == 0 {
		return nil
	}
	first := c.nextFrom(c.draw(n), -1)
	if first < 0 {
		return nil
	}
	second := -1
	if n > 1 {
		second = c.nextFrom((first+1+c.draw(n-1))%n, first)
	}
	if second < 0 || c.cost(first) <= c.cost(second) {
		return c.from[first]
	}
	return c.from[second]
}

// cost is the expected time of one more call. A trial costs nothing: until it is made nobody knows.
func (c *chooser) cost(i int) float64 {
	m := c.from[i]
	if m.probation.Load() && !c.trusting {
		return 0
	}
	expected := m.expected(c.now, c.b.config.DecayTime)
	return float64(expected) * float64(m.inFlight.Load()+1) / c.b.weightNow(m, c.now)
}

// nextFrom returns the first member from i on, in a circle, that may be chosen and is not the other one; -1 if there is none.
func (c *chooser) nextFrom(i, other int) int {
	for range c.from {
		if i != other && c.may(c.from[i]) {
			return i
		}
		i = (i + 1) % len(c.from)
	}
	return -1
}

func (c *chooser) weightedRandom() *member {
	sum := 0.0
	for _, m := range c.from {
		if c.may(m) {
			sum += c.b.weightNow(m, c.now)
		}
	}
	left := c.share() * sum
	var last *member
	for _, m := range c.from {
		if !c.may(m) {
			continue
		}
		last = m
		if left -= c.b.weightNow(m, c.now); left < 0 {
			return m
		}
	}
	return last // What rounding left over.
}

// smoothRoundRobin gives each member its weight, takes the one that has most and takes the sum of all weights from it.
func (c *chooser) smoothRoundRobin() *member {
	var best *member
	sum := 0.0
	may := c.from
	if !c.trusting || len(c.key.Tried) > 0 {
		// Whether trials are due may need b.mu, which is never asked for under smoothMu.
		var space [64]*member
		may = space[:0]
		for _, m := range c.from {
			if c.may(m) {
				may = append(may, m)
			}
		}
	}
	c.b.smoothMu.Lock()
	defer c.b.smoothMu.Unlock()
	for _, m := range may {
		weight := c.b.weightNow(m, c.now)
		sum += weight
		m.smooth += weight
		if best == nil || m.smooth > best.smooth {
			best = m
		}
	}
	if best != nil {
		best.smooth -= sum
	}
	return best
}

// leastActive returns the member with the fewest calls under way for its weight; of equals, any.
func (c *chooser) leastActive() *member {
	var best *member
	least, equals := math.Inf(1), 0
	for _, m := range c.from {
		if !c.may(m) {
			continue
		}
		if m.probation.Load() && !c.trusting {
			return m // Its weight is small now, and until it had its trials nobody knows more.
		}
		switch active := float64(m.inFlight.Load()+1) / c.b.weightNow(m, c.now); {
		case active < least:
			best, least, equals = m, active, 1
		case active == least:
			if equals++; c.draw(equals) == 0 {
				best = m
			}
		}
	}
	return best
}

// ring returns the member whose point on the ring comes next. One that warms up leaves a share of its calls to the next, always
// the same ones, so that each moves once.
func (c *chooser) ring() *member {
	points := c.t.ring
	if len(points) == 0 {
		return nil
	}
	hash := mix(c.key.Hash)
	// The position is in the upper half, so the lower one decides who waits for a warm upstream.
	patience := float64(uint32(hash)) / (1 << 32)
	at := points.search(uint32(hash >> 32))
	var cold, passed *member
	for i := range points {
		m := points[(at+i)%len(points)].member
		if m == passed {
			continue // The same again: quite usual, and not asked twice.
		}
		passed = m
		if !slices.Contains(c.from, m) || !c.may(m) {
			continue
		}
		if cold == m || c.b.warmth(m, c.now) > patience {
			return m
		}
		if cold == nil {
			cold = m
		}
	}
	return cold
}
