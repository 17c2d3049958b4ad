package breaker

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weirhq/weir/gateway/outcome"
)

// A model is a breaker that keeps every call of its era and counts them anew each time.
type model struct {
	limits Limits
	state  State
	// under has the slots in which the calls under way began, by era.
	under map[modelTicket]int64
	ended []modelCall
	next  int
	era   int

	unanswered      int
	unansweredSince time.Duration
	until           time.Duration
	good            int
}

type modelTicket struct{ era, number int }

type modelCall struct {
	slot        int64
	fault, slow bool
}

func (m *model) slotTime() time.Duration { return m.limits.ShortWindow / shortSlots }

func (m *model) enter(state State, now time.Duration) {
	m.state, m.era = state, m.era+1
	m.ended, m.unanswered, m.good = nil, 0, 0
	m.until = now + m.limits.OpenTime
}

// probing counts the calls of this era that are under way.
func (m *model) probing() (count int) {
	for t := range m.under {
		if t.era == m.era {
			count++
		}
	}
	return count
}

func (m *model) trips(now time.Duration) bool {
	if m.unanswered >= m.limits.UnansweredMax || m.unanswered >= m.limits.CallsMin && now-m.unansweredSince >= m.limits.HungAfter {
		return true
	}
	current := int64(now / m.slotTime())
	old := 0
	for t, began := range m.under {
		// The whole slot in which it began is that old.
		if t.era == m.era && time.Duration(current-began-1)*m.slotTime() >= m.limits.SlowAfter {
			old++
		}
	}
	for _, window := range []time.Duration{m.limits.ShortWindow, m.limits.Window} {
		calls, faults, slow := 0, 0, 0
		for _, call := range m.ended {
			if time.Duration(current-call.slot)*m.slotTime() < window {
				calls++
				if call.fault {
					faults++
				}
				if call.slow {
					slow++
				}
			}
		}
		if calls >= m.limits.CallsMin && float64(faults)/float64(calls) >= m.limits.FaultShare {
			return true
		}
		if calls+old >= m.limits.CallsMin && float64(slow+old)/float64(calls+old) >= m.limits.SlowShare {
			return true
		}
	}
	return false
}

func (m *model) admit(now time.Duration) (modelTicket, bool) {
	if m.state == Closed && m.trips(now) {
		m.enter(Open, now)
	}
	switch {
	case m.state == Open && now < m.until:
		return modelTicket{}, false
	case m.state == Open:
		m.enter(HalfOpen, now)
	case m.state == HalfOpen && m.probing() > 0 && now >= m.until:
		m.enter(Open, now)
		return modelTicket{}, false
	case m.state == HalfOpen && m.probing() >= m.limits.ProbesMax:
		return modelTicket{}, false
	}
	if m.state == HalfOpen && m.probing() == 0 {
		m.until = now + m.limits.ProbeTimeMax
	}
	if m.state == Closed {
		if m.unanswered++; m.unanswered == 1 {
			m.unansweredSince = now
		}
	}
	m.next++
	t := modelTicket{m.era, m.next}
	m.under[t] = int64(now / m.slotTime())
	return t, true
}

func (m *model) settle(now time.Duration, t modelTicket, result outcome.Outcome, took time.Duration) {
	delete(m.under, t)
	if t.era != m.era {
		return
	}
	slow := took >= m.limits.SlowAfter
	bad := result == outcome.Fault || slow
	if m.state == HalfOpen {
		switch {
		case result == outcome.Abandoned && !slow:
		case result == outcome.Abandoned || bad:
			m.enter(Open, now)
		default:
			m.until = now + m.limits.ProbeTimeMax
			if m.good++; m.good == m.limits.ProbesGood {
				m.enter(Closed, now)
			}
		}
		return
	}
	if result == outcome.Good || result == outcome.Overload || result == outcome.Fault && !slow {
		m.unanswered = 0
	}
	if result != outcome.Abandoned || slow {
		m.ended = append(m.ended, modelCall{int64(now / m.slotTime()), result == outcome.Fault, slow})
	}
	if (result != outcome.Abandoned || slow) && m.trips(now) {
		m.enter(Open, now)
	}
}

func TestABreakerDecidesAsOneThatRemembersEveryCall(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limits := Limits{
			Window: time.Duration(rapid.IntRange(1, 8).Draw(t, "window")) * 100 * time.Millisecond, ShortWindow: 100 * time.Millisecond,
			CallsMin: rapid.IntRange(1, 6).Draw(t, "calls min"), FaultShare: rapid.SampledFrom([]float64{0.25, 0.5, 1}).Draw(t, "fault share"),
			SlowShare: rapid.SampledFrom([]float64{0.5, 1}).Draw(t, "slow share"),
			SlowAfter: time.Duration(rapid.IntRange(1, 100).Draw(t, "slow after")) * time.Millisecond,
			HungAfter: time.Duration(rapid.IntRange(1, 200).Draw(t, "hung after")) * time.Millisecond, UnansweredMax: rapid.IntRange(2, 20).Draw(t, "unanswered max"),
			OpenTime: 70 * time.Millisecond, ProbesMax: rapid.IntRange(1, 3).Draw(t, "probes max"), ProbesGood: rapid.IntRange(1, 4).Draw(t, "probes good"),
		}.WithDefaults()
		if err := limits.Validate(); err != nil {
			t.Fatal(err)
		}
		c, m := newCore(limits), &model{limits: limits, under: make(map[modelTicket]int64)}
		type pair struct {
			of      Ticket
			inModel modelTicket
			began   time.Duration
		}
		var now time.Duration
		var under []pair
		wait := func(t *rapid.T, usMax int) {
			now += time.Duration(rapid.IntRange(0, usMax).Draw(t, "µs")) * time.Microsecond
		}
		admit := func(t *rapid.T) {
			ticket, retryAfter, admitted := c.admit(now, false, true)
			inModel, want := m.admit(now)
			if admitted != want {
				t.Fatalf("at %s: admitted = %t, want %t in state %v", now, admitted, want, m.state)
			}
			if !admitted && retryAfter <= 0 {
				t.Fatalf("at %s: refused with retry after %s", now, retryAfter)
			}
			if admitted {
				under = append(under, pair{ticket, inModel, now})
			}
		}
		settle := func(t *rapid.T, i int) {
			result := rapid.SampledFrom([]outcome.Outcome{
				outcome.Good, outcome.Good, outcome.Fault, outcome.Overload, outcome.Abandoned,
			}).Draw(t, "outcome")
			c.settle(now, under[i].of, result, now-under[i].began, true)
			m.settle(now, under[i].inModel, result, now-under[i].began)
			under = slices.Delete(under, i, i+1)
		}
		t.Repeat(map[string]func(*rapid.T){
			"wait": func(t *rapid.T) { wait(t, 1_000_000) },
			"admit": func(t *rapid.T) {
				for range rapid.IntRange(1, 5).Draw(t, "calls") {
					admit(t)
				}
			},
			"settle": func(t *rapid.T) {
				for range min(len(under), rapid.IntRange(1, 5).Draw(t, "calls")) {
					settle(t, rapid.IntRange(0, len(under)-1).Draw(t, "which"))
				}
			},
			"traffic": func(t *rapid.T) {
				for range rapid.IntRange(1, 30).Draw(t, "calls") {
					wait(t, 40_000)
					admit(t)
					if len(under) > 0 && rapid.IntRange(0, 9).Draw(t, "settles") > 0 {
						settle(t, len(under)-1)
					}
				}
			},
			"": func(t *rapid.T) {
				if c.state != m.state {
					t.Fatalf("at %s: the breaker is %v, want %v", now, c.state, m.state)
				}
				if c.state == Closed && c.unanswered != m.unanswered {
					t.Fatalf("at %s: %d are unanswered, want %d", now, c.unanswered, m.unanswered)
				}
			},
		})
	})
}
