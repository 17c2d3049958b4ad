package limit

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A machine is callers, a gateway and a node on the same few processors, in simulated time: everything that wants to run gets a like share
// of them, so that all of it becomes slower with whatever else there is to do. That includes callers who were refused and come again.
type machine struct {
	world
	processors int
	// running are the pieces of work by when they end, in work done for each since the start; done is that work, at doneAt.
	running events
	done    int64
	doneAt  int64
	planned int   // numbers the newest plan for the next end
	gate    *gate // nil for no limiter

	served, refused int
	// wait is what a caller who was refused does before it comes again.
	wait func(told time.Duration) time.Duration
}

// What the parts of a call cost, in processor time: the caller and the gateway until it decides, the node, the gateway and the caller once there
// is an answer, and the caller and the gateway once there is a refusal. Beside its work, a node waits for its disk.
const (
	sharedAsk    = 60 * time.Microsecond
	sharedNode   = 120 * time.Microsecond
	sharedAnswer = 60 * time.Microsecond
	sharedRefuse = 30 * time.Microsecond
	sharedDisk   = 2 * time.Millisecond
)

// newMachine makes a machine without a limiter.
func newMachine(seed uint64) *machine {
	return &machine{
		world: world{random: rand.New(rand.NewPCG(seed, 1))}, processors: 2, wait: func(time.Duration) time.Duration { return 0 },
	}
}

// work does a piece of work of about so long and then the rest.
func (m *machine) work(cost time.Duration, then func()) {
	m.pass()
	m.count++
	heap.Push(&m.running, event{at: m.done + int64(float64(cost)*(0.5+m.random.ExpFloat64()*0.5)), number: m.count, do: then})
	m.plan()
}

// pass accounts for the time since it was called last.
func (m *machine) pass() {
	if count := len(m.running); count > 0 {
		m.done += (m.now - m.doneAt) * int64(min(m.processors, count)) / int64(count)
	}
	m.doneAt = m.now
}

// plan sees to it that the next piece of work ends.
func (m *machine) plan() {
	m.planned++
	number := m.planned
	if len(m.running) == 0 || m.processors == 0 {
		return
	}
	left := max(0, m.running[0].at-m.done)
	count := len(m.running)
	m.after(time.Duration(left*int64(count)/int64(min(m.processors, count))+1), func() {
		if number != m.planned {
			return
		}
		m.pass()
		for len(m.running) > 0 && m.running[0].at <= m.done {
			heap.Pop(&m.running).(event).do()
		}
		m.plan()
	})
}

// call is one connection of a closed loop: it asks, and asks again once it is answered.
func (m *machine) call(user string) {
	m.work(sharedAsk, func() {
		if m.gate == nil {
			m.node(user, func() {})
			return
		}
		at := levelOf(Place, user, time.Unix(1_800_000_000, 0))
		if !m.gate.ask(m.now, at) {
			m.refuse(user, at)
			return
		}
		settled := false
		send := func() {
			settled = true
			since := m.now
			m.node(user, func() { m.gate.leave(m.now, since, "m", outcome.Good, true) })
		}
		// It may be called with the gate's lock held: what it does to the gate comes later.
		admitted, queued := m.gate.enter(m.now, at, func(admitted bool) {
			settled = true
			m.after(0, func() {
				if admitted {
					send()
				} else {
					m.refuse(user, at)
				}
			})
		})
		switch {
		case admitted:
			send()
		case queued == nil:
			m.refuse(user, at)
		case !settled:
			m.after(queued.patience, func() {
				if m.gate.giveUp(queued, true) {
					m.refuse(user, at)
				}
			})
		}
	})
}

func (m *machine) node(user string, leave func()) {
	m.work(sharedNode, func() {
		m.after(sharedDisk, func() {
			m.work(sharedAnswer, func() {
				leave()
				m.served++
				m.call(user)
			})
		})
	})
}

func (m *machine) refuse(user string, at level) {
	m.refused++
	told := m.gate.refusal(at)
	m.work(sharedRefuse, func() { m.after(m.wait(told), func() { m.call(user) }) })
}

// begin starts a closed loop of so many connections.
func (m *machine) begin(connections, users int) {
	for i := range connections {
		m.call(fmt.Sprint(i % users))
	}
}

// stall is a moment in which nothing runs, as when a disk hangs or others take the processors.
func (m *machine) stall(length time.Duration) {
	m.pass()
	kept := m.processors
	m.processors = 0
	m.planned++
	m.after(length, func() {
		m.pass()
		m.processors = kept
		m.plan()
	})
}

// loop has 256 connections ask, with a stall in between, and counts what becomes of it from a second after that on.
func (m *machine) loop(users int) {
	m.begin(256, users)
	m.run(3 * time.Second)
	m.stall(150 * time.Millisecond)
	m.run(time.Second)
	m.served, m.refused = 0, 0
	m.run(2 * time.Second)
}

// Callers that ask again at once, whatever they were told, take the processors that the node needs if they share them, so that calls take longer the
// more of them are refused.
func TestAClosedLoopOnSharedProcessors(t *testing.T) {
	seed := seedOf(t)
	atOnce := func(time.Duration) time.Duration { return 0 }
	asTold := func(told time.Duration) time.Duration { return told }
	free := newMachine(seed)
	free.loop(1)
	for _, of := range []struct {
		name string
		// least is how many calls are let through in any case; 0 is the default.
		least, users int
		wait         func(time.Duration) time.Duration
		// served is what share is served of what is without a limiter, at the least, and refused what share is refused at the most.
		served, refused float64
	}{
		{"of one user", 0, 1, atOnce, 0.95, 0.01},
		{"of users who come when they are told", 0, 256, asTold, 0.9, 0.05},
		// Without, one of 25 is served after a stall until a trial finds that calls are not slow for each other: that is why a dev node's policy has places.
		{"of users who come at once, with places for most", 128, 256, atOnce, 0.95, 0.01},
	} {
		t.Run(of.name, func(t *testing.T) {
			limited := newMachine(seed)
			limited.gate, limited.wait = newGate(ConcurrencyConfig{}.Within(of.least, 0), 0), of.wait
			limited.loop(of.users)
			served := float64(limited.served) / float64(free.served)
			refused := float64(limited.refused) / float64(limited.served+limited.refused)
			t.Logf("%.3f served of what is without a limiter, %.3f refused, pace %.0f, bar %d", served, refused, limited.gate.pace.limit, limited.gate.bar.Load())
			if served < of.served || refused > of.refused {
				t.Errorf("seed %d: %.3f is served of what is without a limiter, and %.3f refused, want %.3f and %.3f", seed, served, refused, of.served, of.refused)
			}
		})
	}
}
