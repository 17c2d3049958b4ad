package limit

import (
	"fmt"
	"testing"
	"time"
)

// A batcher is an upstream that commits in groups: all calls that have come while one commit was under way are the next one.
type batcher struct {
	world *world
	// A commit takes so long, and so much longer for each call.
	commit, each time.Duration
	waiting      []*call
	committing   bool
}

// batch puts a batcher in place of the world's upstreams. At its capacity, each commit is of so many calls that itself it takes nothing.
func (w *world) batch(commit, each time.Duration) {
	b := &batcher{world: w, commit: commit, each: each}
	w.servers, w.service = 1, each
	w.upstream = func(c *call) {
		b.waiting = append(b.waiting, c)
		if !b.committing {
			b.committing = true
			w.after(0, b.next)
		}
	}
}

func (b *batcher) next() {
	group := b.waiting
	b.waiting = nil
	if len(group) == 0 {
		b.committing = false
		return
	}
	took := time.Duration(float64(b.commit)*(0.5+b.world.random.Float64())) + b.each*time.Duration(len(group))
	b.world.after(took, func() {
		for _, c := range group {
			b.world.answered(c, func() {})
		}
		b.next()
	})
}

// With what nodes need that commit in groups, calls took 2.8 times as long as before.
func TestAFloodIsQuickWhereMoreAtATimeIsNoMore(t *testing.T) {
	seed := seedOf(t)
	w := newWorld(seed, 1)
	before := w.fixedFlood(t)
	w.run(time.Minute)
	goodput := w.report(t, "flood", time.Minute)
	times := float64(w.percentile(0.99)) / float64(before)
	t.Logf("p99 is %.2f times that before", times)
	if times > 2.4 || goodput < 0.9 {
		t.Errorf("seed %d: p99 is %.2f times %s, and %.3f of what fits is served, want 2.4 and 0.9", seed, times, before, goodput)
	}
	if w.gates[0].pace.grant.given {
		t.Errorf("seed %d: more time is given, and pays nothing", seed)
	}
}

// With no more than what floods are quick with, a node that commits in groups does 0.79 of what it can.
func TestNodesThatCommitInGroupsGetCompany(t *testing.T) {
	for _, gates := range []int{1, 3} {
		t.Run(fmt.Sprintf("gateways=%d", gates), func(t *testing.T) {
			seed := seedOf(t)
			w := newWorld(seed, gates)
			w.batch(2*time.Millisecond, 100*time.Microsecond)
			calm, flood := false, false
			w.offer(0.3*w.capacity(), w.mixed, &calm)
			w.run(3 * time.Second)
			w.offer(1.7*w.capacity(), w.mixed, &flood)
			w.run(12 * time.Second)
			w.forget()
			w.run(3 * time.Second)
			if goodput := w.report(t, "flood", 3*time.Second); goodput < 0.75 {
				t.Errorf("seed %d: %.3f of what fits is served, want 0.75", seed, goodput)
			}
			for i, g := range w.gates {
				if !g.pace.grant.given {
					t.Errorf("seed %d: gateway %d gives no time", seed, i)
				}
			}
		})
	}
}

func TestWhatNoLongerPaysIsTakenBack(t *testing.T) {
	seed := seedOf(t)
	w := newWorld(seed, 1)
	w.batch(4*time.Millisecond, 400*time.Microsecond)
	calm, flood := false, false
	w.offer(0.3*w.capacity(), w.mixed, &calm)
	w.run(3 * time.Second)
	w.offer(2*w.capacity(), w.mixed, &flood)
	w.run(40 * time.Second)
	if !w.gates[0].pace.grant.given {
		t.Fatalf("seed %d: no time is given to a node that commits in groups: this shows nothing", seed)
	}
	// The same capacity, of calls that have nothing of each other.
	w.upstream, w.servers, w.service = nil, 25, 10*time.Millisecond
	w.run(2*earnedFor + 2*probeEvery)
	if w.gates[0].pace.grant.given {
		t.Errorf("seed %d: more time is given, and pays nothing", seed)
	}
}

// A probe before which nobody had come let nobody through.
func TestAProbeThatNothingWasSeenBeforeLetsCallsThrough(t *testing.T) {
	g := newGrant(ConcurrencyConfig{}.withDefaults())
	p := newPace(g.config, 0)
	g.plan(0, &p, true)
	if start := g.probe.start; start == 0 || g.raises(start) < 1 {
		t.Errorf("a probe at %v lets %v times as many calls be under way, want as many at least", time.Duration(start), g.raises(start))
	}
}
