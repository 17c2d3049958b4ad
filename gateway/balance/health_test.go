package balance

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

func TestAFrozenUpstreamGetsNextToNoCallsAfterASecond(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		for _, rate := range []int{50, 1000} {
			w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
			w.run(rate, 2*time.Second, w.anyKey(policy), func(string) reply { return w.quick() })
			frozen := func(id string) reply {
				if id == "b" {
					return reply{hangs: true}
				}
				return w.quick()
			}
			w.run(rate, time.Second, w.anyKey(policy), frozen)
			// It is ejected, comes back for a few trials, and is ejected again.
			w.run(rate, 10*time.Second, w.anyKey(policy), frozen)
			if got := w.share("b"); got > 0.01 || w.none > 0 {
				t.Errorf("at %d calls a second the frozen upstream got %.2f%% of them, %d were not picked for", rate, 100*got, w.none)
			}
		}
	})
}

// Callers that lose patience must not make a frozen upstream look idle.
func TestAFrozenUpstreamIsNoticedThoughCallersLeave(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
		frozen := func(id string) reply {
			if id == "b" {
				return reply{outcome: outcome.Abandoned, after: 300 * time.Millisecond}
			}
			return w.quick()
		}
		w.run(1000, 2*time.Second, w.anyKey(policy), func(string) reply { return w.quick() })
		w.run(1000, time.Second, w.anyKey(policy), frozen)
		w.run(1000, 10*time.Second, w.anyKey(policy), frozen)
		if got := w.share("b"); got > 0.01 {
			t.Errorf("the frozen upstream got %.2f%% of the calls", 100*got)
		}
	})
}

func TestAnUpstreamThatFailsFastGetsFewCalls(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
		w.run(1000, 2*time.Second, w.anyKey(policy), func(string) reply { return w.quick() })
		failing := func(id string) reply {
			if id == "b" {
				return reply{outcome: outcome.Fault, after: 100 * time.Microsecond}
			}
			return w.quick()
		}
		w.run(1000, time.Second, w.anyKey(policy), failing)
		w.run(1000, 5*time.Second, w.anyKey(policy), failing)
		if got := w.share("b"); got > 0.05 {
			t.Errorf("the failing upstream got %.1f%% of the calls after a second", 100*got)
		}
	})
}

// Without ejection it is the latency that failing calls count as that keeps peak EWMA away.
func TestPeakEWMADoesNotTakeFailingForQuick(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(t, Config{Ejection: Ejection{Off: true}}, seed, named("a", "b", "c")...)
	failing := func(id string) reply {
		if id == "b" {
			return reply{outcome: outcome.Fault, after: 100 * time.Microsecond}
		}
		return w.quick()
	}
	w.run(1000, time.Second, w.anyKey(PeakEWMA), failing)
	w.run(1000, 20*time.Second, w.anyKey(PeakEWMA), failing)
	if got := w.share("b"); got > 0.05 {
		t.Errorf("seed %d: the failing upstream got %.1f%% of the calls", seed, 100*got)
	}
}

func TestPeakEWMAAvoidsASlowUpstreamAndComesBack(t *testing.T) {
	for _, rate := range []int{100, 2000} {
		seed := rand.Uint64()
		w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
		w.run(rate, 30*time.Second, w.anyKey(PeakEWMA), func(string) reply { return w.quick() }) // Both percentiles are of 3,000 calls at least.
		before := w.p99()
		slow := func(id string) reply {
			r := w.quick()
			if id == "b" {
				r.after += 200 * time.Millisecond
			}
			return r
		}
		w.run(rate, time.Second, w.anyKey(PeakEWMA), slow)
		w.run(rate, 30*time.Second, w.anyKey(PeakEWMA), slow)
		if got := w.share("b"); got > 0.01 || float64(w.p99()) > 1.2*float64(before) {
			t.Errorf("seed %d: at %d calls a second the slow upstream got %.2f%%, p99 is %s and was %s", seed, rate, 100*got, w.p99(), before)
		}
		w.run(rate, 20*time.Second, w.anyKey(PeakEWMA), func(string) reply { return w.quick() })
		w.run(rate, 60*time.Second, w.anyKey(PeakEWMA), func(string) reply { return w.quick() }) // One late call is shunned for seconds.
		if got := w.share("b"); got < 0.2 {
			t.Errorf("seed %d: at %d calls a second the upstream that is quick again got %.2f%%", seed, rate, 100*got)
		}
	}
}

func TestAnUpstreamThatRefusesForOverloadGetsLessButIsNotEjected(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
	w.run(1000, 10*time.Second, w.anyKey(PeakEWMA), func(id string) reply {
		if id == "b" && w.random.IntN(2) == 0 {
			return reply{outcome: outcome.Overload, after: 100 * time.Microsecond}
		}
		return w.quick()
	})
	if got := w.share("b"); got > 0.1 {
		t.Errorf("seed %d: the overloaded upstream got %.1f%% of the calls", seed, 100*got)
	}
	if s := w.status(t, "b"); s.Ejections > 0 {
		t.Errorf("seed %d: it was ejected: %+v", seed, s)
	}
}

func TestEjectionsGrowAndAreForgotten(t *testing.T) {
	w := newWorld(t, Config{}, 1, named("a", "b", "c")...)
	w.fail(t, "b", 5)
	for i, want := range []time.Duration{5, 10, 20, 40, 60, 60} {
		want *= time.Second
		s := w.status(t, "b")
		if !s.Ejected || s.EjectedFor != want || s.Reason != FaultsInRow {
			t.Fatalf("ejection %d: got %+v, want %s", i, s, want)
		}
		w.advance(want - time.Millisecond)
		w.pick(t, Key{}).Done(outcome.Good, 0)
		if s = w.status(t, "b"); !s.Ejected {
			t.Fatalf("ejection %d: it was back too early", i)
		}
		w.advance(time.Millisecond)
		w.fail(t, "b", 1) // One fault is enough in a trial.
	}
	w.advance(time.Minute)
	w.succeed(t, "b")
	w.advance(time.Minute)
	w.fail(t, "b", 5)
	if s := w.status(t, "b"); s.EjectedFor != 5*time.Second {
		t.Fatalf("after a good minute it is ejected for %s", s.EjectedFor)
	}
}

// succeed makes one call to an upstream.
func (w *world) succeed(t testing.TB, id string) {
	t.Helper()
	for range 100_000 {
		p := w.pick(t, Key{Policy: WeightedRandom})
		if p.ID() == id {
			p.Done(outcome.Good, time.Millisecond)
			return
		}
		p.Done(outcome.Abandoned, 0)
	}
	t.Fatalf("%s is never picked", id)
}

func TestAnUpstreamThatComesBackGetsFewTrialsUntilItAnswers(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
		w.fail(t, "b", 5)
		w.advance(5 * time.Second)
		var trials []Pick
		for range 5000 {
			p := w.pick(t, Key{Policy: policy, Hash: w.random.Uint64()})
			if p.ID() == "b" {
				trials = append(trials, p)
			} else {
				p.Done(outcome.Good, time.Millisecond)
			}
		}
		if len(trials) < 1 || len(trials) > 3 {
			t.Fatalf("it got %d trials, want 1 to 3", len(trials))
		}
		for _, p := range trials {
			p.Done(outcome.Good, time.Millisecond)
		}
		w.advance(10 * time.Second)
		back := 0
		for range 3000 {
			p := w.pick(t, Key{Policy: policy, Hash: w.random.Uint64()})
			if p.ID() == "b" {
				back++
			}
			p.Done(outcome.Good, time.Millisecond)
		}
		if back < 600 {
			t.Fatalf("it answered and is warm, and got %d of 3000 calls", back)
		}
	})
}

func TestTooManyAreNotEjected(t *testing.T) {
	w := newWorld(t, Config{Ejection: Ejection{ShareMax: 0.3}}, 1, named("a", "b", "c", "d", "e", "f", "g", "h", "i", "j")...)
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		w.fail(t, id, 5)
	}
	statuses, panics := w.Statuses()
	out := 0
	for _, s := range statuses {
		if s.Ejected {
			out++
		}
	}
	if out != 3 || panics {
		t.Fatalf("%d of 10 are ejected, want 3; panics = %t", out, panics)
	}
}

func TestIfTooFewAreHealthyCallsGoToAll(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
		w.fail(t, "a", 5)
		if _, panics := w.Statuses(); panics {
			t.Fatal("two of three are healthy, and it panics")
		}
		w.fail(t, "b", 5)
		if _, panics := w.Statuses(); !panics {
			t.Fatal("one of three is healthy, and it does not panic")
		}
		for range 5000 {
			p := w.pick(t, Key{Policy: policy, Hash: w.random.Uint64()})
			w.picks[p.ID()]++
			p.Done(outcome.Good, time.Second) // As slow as faults count, so that peak EWMA has no favourite.
		}
		for _, id := range []string{"a", "b", "c"} {
			if w.picks[id] < 500 {
				t.Errorf("%s got %d of 5000 calls", id, w.picks[id])
			}
		}
	})
}

func TestAnUpstreamThatFailsMoreThanTheOthersIsEjected(t *testing.T) {
	for _, ids := range [][]string{{"a", "b"}, {"a", "b", "c"}, {"a", "b", "c", "d", "e", "f"}} {
		seed := rand.Uint64()
		w := newWorld(t, Config{}, seed, named(ids...)...)
		flaky := func(id string) reply {
			r := w.quick()
			if id == "b" && w.random.IntN(10) < 3 || w.random.IntN(100) == 0 { // 5 in a row is rare at 30%.
				r.outcome = outcome.Fault
			}
			return r
		}
		w.run(1000, 3*time.Second, w.anyKey(WeightedRandom), flaky)
		for _, id := range ids {
			if s := w.status(t, id); (s.Ejections > 0) != (id == "b") {
				t.Errorf("seed %d: of %d upstreams, %s: %+v", seed, len(ids), id, s)
			}
		}
	}
}

func TestAllThatFailAlikeAreNotCompared(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(t, Config{}, seed, named("a", "b", "c")...)
	w.run(1000, 10*time.Second, w.anyKey(WeightedRandom), func(string) reply {
		r := w.quick()
		if w.random.IntN(10) < 2 {
			r.outcome = outcome.Fault
		}
		return r
	})
	for _, id := range []string{"a", "b", "c"} {
		if s := w.status(t, id); s.Reason == SuccessRate {
			t.Errorf("seed %d: %+v", seed, s)
		}
	}
}

func TestANewUpstreamWarmsUp(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, named("a", "b")...)
		w.advance(time.Hour)
		w.set(t, append(named("a", "b"), Upstream{ID: "c", Started: w.now})...)
		var last float64
		for second := range 11 {
			// With equal latencies and calls that end at once, warmth alone decides; peak EWMA compares it in pairs.
			clear(w.picks)
			for range 5_000 {
				p := w.pick(t, Key{Policy: policy, Hash: w.random.Uint64()})
				w.picks[p.ID()]++
				p.Done(outcome.Good, time.Millisecond)
			}
			share := w.share("c")
			if second == 0 && share > 0.1 {
				t.Errorf("at first it got %.2f of the calls", share)
			}
			if share < last-0.05 {
				t.Errorf("after %d s it got %.2f of the calls, and %.2f before", second, share, last)
			}
			if second == 10 && share < 0.25 {
				t.Errorf("warm, it got %.2f of the calls", share)
			}
			last = share
			w.advance(time.Second)
		}
	})
}

func TestAStreamThatIsOpenForAnHourIsNotFrozen(t *testing.T) {
	w := newWorld(t, Config{}, 1, named("a", "b")...)
	for range 100 {
		w.pick(t, Key{Stream: true, Policy: WeightedRoundRobin})
	}
	w.advance(time.Hour)
	for range 100 {
		w.pick(t, Key{}).Done(outcome.Good, time.Millisecond)
	}
	for _, id := range []string{"a", "b"} {
		if s := w.status(t, id); s.Ejections > 0 || s.InFlight != 50 {
			t.Errorf("%+v", s)
		}
	}
}

func TestTheOnlyUpstreamIsNeverEjected(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, named("a")...)
		for range 100 {
			w.pick(t, Key{Policy: policy}).Done(outcome.Fault, time.Millisecond)
		}
		for range 100 {
			w.pick(t, Key{Policy: policy}) // It hangs.
			w.advance(time.Second)
		}
	})
}
