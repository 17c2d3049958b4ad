package breaker

import (
	"fmt"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A core is a breaker without a clock and without a lock: time comes in, as what has passed since any fixed moment.
//
//	closed ── too many faults, slow calls or hung calls ──> open ── OpenTime is over, next call ──> half-open
//	   ^                                                     ^ ──────── a probe fails, or none ends ──────┤
//	   └───────────────────────────────── ProbesGood probes are answered ─────────────────────────────────┘
//
// What a call teaches counts only in the era in which the call began; each change of state begins another.
type core struct {
	limits Limits
	state  State
	era    uint64

	// The closed state counts calls by the slot of time in which they ended, and those under way by the slot in which they
	// began. Slot number i is slots[i%len(slots)]; newest is that of the last call.
	slots    []slot
	slotTime time.Duration
	newest   int64
	// short and long are the sums over the two windows.
	short, long sums
	// aged counts the calls under way that began in slot agedTo or before: they are slow already.
	aged   int
	agedTo int64
	// unanswered counts the calls let through since the last answer, the first of them at unansweredSince.
	unanswered      int
	unansweredSince time.Duration

	// until is when an open breaker probes, or when a half-open one gives up the probes under way.
	until time.Duration
	// probing and probesGood count the probes under way and those that were answered.
	probing, probesGood int
}

type slot struct {
	ended sums
	// began counts the calls that began in it and are still under way.
	began int
}

type sums struct{ calls, faults, slow int }

func (s *sums) add(o sums, sign int) {
	s.calls += sign * o.calls
	s.faults += sign * o.faults
	s.slow += sign * o.slow
}

func newCore(limits Limits) core {
	c := core{limits: limits, slotTime: limits.ShortWindow / shortSlots}
	c.slots = make([]slot, max(c.longSlots(), c.slowSlots()+1))
	c.clear(0)
	return c
}

func (c *core) longSlots() int64 { return int64(c.limits.Window / c.slotTime) }

// slowSlots is how many slots after the one in which it began a call is slow for certain.
func (c *core) slowSlots() int64 { return int64((c.limits.SlowAfter+c.slotTime-1)/c.slotTime) + 1 }

// clear forgets all calls.
func (c *core) clear(now time.Duration) {
	clear(c.slots)
	c.newest = int64(now / c.slotTime)
	c.agedTo = c.newest - c.slowSlots()
	c.short, c.long, c.aged, c.unanswered = sums{}, sums{}, 0, 0
	c.probing, c.probesGood = 0, 0
}

// admit decides about one call. Refused, it says when to ask again. mayOpen is false while the breaker is forced to let all
// calls through: it counts then, and does not open.
func (c *core) admit(now time.Duration, stream, mayOpen bool) (t Ticket, retryAfter time.Duration, admitted bool) {
	if c.state == Closed {
		c.advance(now)
		if mayOpen && c.trips(now) {
			c.open(now)
		}
	}
	switch c.state {
	case Closed:
		t = Ticket{era: c.era, slot: c.newest, stream: stream}
		if !stream {
			c.slots[c.newest%int64(len(c.slots))].began++
			if c.unanswered++; c.unanswered == 1 {
				c.unansweredSince = now
			}
		}
		return t, 0, true
	case Open:
		if now < c.until && mayOpen {
			return Ticket{}, c.until - now, false
		}
		c.state = HalfOpen
		c.era++
		c.clear(now)
	case HalfOpen:
		if c.probing > 0 && now >= c.until && mayOpen {
			c.open(now)
			return Ticket{}, c.limits.OpenTime, false
		}
		if c.probing >= c.limits.ProbesMax && mayOpen {
			return Ticket{}, c.until - now, false
		}
	}
	if c.probing++; c.probing == 1 {
		c.until = now + c.limits.ProbeTimeMax
	}
	return Ticket{era: c.era, stream: stream}, 0, true
}

// settle takes in how an admitted call ended.
func (c *core) settle(now time.Duration, t Ticket, result outcome.Outcome, took time.Duration, mayOpen bool) {
	if t.era != c.era {
		return
	}
	answered := result == outcome.Good || result == outcome.Overload
	slow := !t.stream && took >= c.limits.SlowAfter
	switch c.state {
	case Closed:
		c.advance(now)
		if !t.stream {
			c.end(t)
		}
		if answered || (result == outcome.Fault && !slow) { // A quick fault is an answer of sorts.
			c.unanswered = 0
		}
		if result == outcome.Abandoned && !slow {
			return // It might have been answered well; one that waited for long was slow whatever came next.
		}
		one := sums{calls: 1}
		if result == outcome.Fault {
			one.faults = 1
		}
		if slow {
			one.slow = 1
		}
		c.slots[c.newest%int64(len(c.slots))].ended.add(one, 1)
		c.short.add(one, 1)
		c.long.add(one, 1)
		if mayOpen && c.trips(now) {
			c.open(now)
		}
	case HalfOpen:
		c.probing--
		switch {
		case result == outcome.Abandoned && !slow:
		case !answered || slow:
			c.open(now)
		default:
			c.until = now + c.limits.ProbeTimeMax
			if c.probesGood++; c.probesGood >= c.limits.ProbesGood {
				c.state = Closed
				c.era++
				c.clear(now)
			}
		}
	case Open:
		panic(fmt.Sprintf("breaker: a call of era %d settles while open: opening begins another era", t.era))
	}
}

// withdraw takes in that an admitted call does not count.
func (c *core) withdraw(now time.Duration, t Ticket) {
	if t.era != c.era {
		return
	}
	switch c.state {
	case Closed:
		c.advance(now)
		if !t.stream {
			c.end(t)
			c.unanswered = max(0, c.unanswered-1) // It may be one from before the last answer.
		}
	case HalfOpen:
		c.probing--
	case Open:
		panic(fmt.Sprintf("breaker: a call of era %d is withdrawn while open: opening begins another era", t.era))
	}
}

// end takes a call from those under way.
func (c *core) end(t Ticket) {
	if t.slot <= c.agedTo {
		c.aged--
	} else {
		c.slots[t.slot%int64(len(c.slots))].began--
	}
}

func (c *core) open(now time.Duration) {
	c.state = Open
	c.era++
	c.clear(now)
	c.until = now + c.limits.OpenTime
}

// trips reports whether what the closed breaker saw is enough to open it.
func (c *core) trips(now time.Duration) bool {
	if c.unanswered >= c.limits.UnansweredMax {
		return true
	}
	if c.unanswered >= c.limits.CallsMin && now-c.unansweredSince >= c.limits.HungAfter {
		return true
	}
	return c.tripsWindow(c.short) || c.tripsWindow(c.long)
}

func (c *core) tripsWindow(window sums) bool {
	if window.calls >= c.limits.CallsMin && float64(window.faults) >= c.limits.FaultShare*float64(window.calls) {
		return true
	}
	calls := window.calls + c.aged
	return calls >= c.limits.CallsMin && float64(window.slow+c.aged) >= c.limits.SlowShare*float64(calls)
}

// advance moves the windows on to now. It takes as many steps as the long window has slots, at most.
func (c *core) advance(now time.Duration) {
	current := int64(now / c.slotTime)
	if current <= c.newest {
		return
	}
	// Calls under way grow old before their slot is used again.
	if to := current - c.slowSlots(); to > c.agedTo {
		for number := max(0, c.agedTo+1); number <= min(to, c.newest); number++ {
			began := &c.slot(number).began
			c.aged += *began
			*began = 0
		}
		c.agedTo = to
	}
	if current-c.newest >= int64(len(c.slots)) {
		clear(c.slots)
		c.newest, c.short, c.long = current, sums{}, sums{}
		return
	}
	for c.newest < current {
		c.newest++
		if left := c.newest - shortSlots; left >= 0 {
			c.short.add(c.slot(left).ended, -1)
		}
		if left := c.newest - c.longSlots(); left >= 0 {
			c.long.add(c.slot(left).ended, -1)
		}
		c.slot(c.newest).ended = sums{}
	}
}

func (c *core) slot(number int64) *slot { return &c.slots[number%int64(len(c.slots))] }
