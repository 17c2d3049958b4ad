package limit

import (
	"math"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// noisy has calls come to the first gate at random, so many a second on average, each of which takes what took says. They wait for nothing
// but themselves: to let fewer through would make none of them quicker.
func (w *world) noisy(perSecond float64, length time.Duration, took func() time.Duration) (calls int) {
	g := w.gates[0]
	at := levelOf(Read, "", time.Unix(1_800_000_000, 0))
	stop := false
	send := func() {
		since := w.now
		w.after(took(), func() { g.leave(w.now, since, "m", outcome.Good, true) })
	}
	var arrive func()
	arrive = func() {
		if stop {
			return
		}
		calls++
		w.after(time.Duration(w.random.ExpFloat64()/perSecond*float64(time.Second)), arrive)
		c := &call{gate: g, priority: Read}
		if !g.ask(w.now, at) {
			w.refuse(c, "bar")
			return
		}
		admitted, queued := g.enter(w.now, at, func(admitted bool) {
			if c.settled = true; admitted {
				send()
			} else {
				w.refuse(c, "displaced")
			}
		})
		switch {
		case admitted:
			send()
		case queued == nil:
			w.refuse(c, "no room")
		case !c.settled:
			w.after(queued.patience, func() {
				if g.giveUp(queued, true) {
					w.refuse(c, "patience")
				}
			})
		}
	}
	w.after(0, arrive)
	w.run(length)
	stop = true
	return calls
}

// A machine that is busy with something else makes calls slow now and then. Of 60,000 calls, a hundred a second, more than 1,000 were refused for that,
// by a pace that had fallen to a few.
func TestNoiseRefusesNobodyWhileLittleIsAsked(t *testing.T) {
	own := func(w *world) time.Duration {
		return time.Duration(float64(time.Millisecond) * math.Exp(1.5*w.random.NormFloat64()))
	}
	// between draws the time until the next stall, and how long it takes.
	between := func(w *world, most time.Duration) (at, until int64) {
		at = w.now + int64(4*time.Second) + w.random.Int64N(int64(4*time.Second))
		return at, at + int64(most)/8 + w.random.Int64N(int64(most)*7/8)
	}
	for name, slows := range map[string]func(w *world) func() time.Duration{
		// Nothing ends for up to 800 ms.
		"stalls": func(w *world) func() time.Duration {
			at, until := between(w, 800*time.Millisecond)
			return func() time.Duration {
				if w.now > until {
					at, until = between(w, 800*time.Millisecond)
				}
				if w.now < at {
					return own(w)
				}
				return own(w) + time.Duration(until-w.now)
			}
		},
		// Half of the calls wait for a disk that takes up to 700 ms for each, for up to two seconds.
		"a slow disk": func(w *world) func() time.Duration {
			at, until := between(w, 2*time.Second)
			return func() time.Duration {
				if w.now > until {
					at, until = between(w, 2*time.Second)
				}
				if w.now < at || w.random.IntN(2) == 0 {
					return own(w)
				}
				return own(w) + time.Duration(w.random.Int64N(int64(700*time.Millisecond)))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			seed := seedOf(t)
			w := newWorld(seed, 1)
			calls := w.noisy(100, 10*time.Minute, slows(w))
			if calls < 50_000 || w.refused > 0 {
				t.Errorf("seed %d: %d of %d calls were refused (%v), want none of 60000 or so; the pace is %.0f", seed, w.refused, calls, w.why, w.gates[0].pace.limit)
			}
		})
	}
}

// Callers on a machine that stalls come all at once after it, and find upstreams that are as slow as ever.
func TestCallersWhoComeAllAtOnceAfterAStallAreServed(t *testing.T) {
	seed := seedOf(t)
	w := newWorld(seed, 1)
	w.servers, w.service = 2, time.Millisecond
	const perSecond = 200
	for range 60 {
		for range perSecond * 4 {
			w.ask(Read)
			w.run(time.Second / perSecond)
		}
		w.run(time.Second) // Nobody asks in the stall,
		for range perSecond {
			w.ask(Read) // and all of them do after it.
		}
	}
	w.run(time.Second)
	if w.refused > 0 {
		t.Errorf("seed %d: %d of %d calls were refused (%v), want none", seed, w.refused, w.offered[Read], w.why)
	}
}

func TestThePaceComesBackOnceLittleIsAsked(t *testing.T) {
	seed := seedOf(t)
	w := newWorld(seed, 1)
	w.servers = 5
	calm, flood := false, false
	w.offer(0.1*w.capacity(), w.mixed, &calm)
	w.run(time.Second)
	w.offer(5*w.capacity(), w.mixed, &flood)
	w.run(20 * time.Second)
	if low := w.gates[0].pace.limit; low >= initialDefault/2 {
		t.Fatalf("seed %d: the pace is %.0f under five times what fits: this shows nothing", seed, low)
	}
	flood = true
	w.run(5 * time.Second)
	if back := w.gates[0].pace.limit; back < initialDefault {
		t.Errorf("seed %d: 5 s after an overload the pace is %.0f, want %d, with which it began", seed, back, initialDefault)
	}
	calm = true
}

func TestWhatATrialRefusesRaisesNoBar(t *testing.T) {
	g := newGate(ConcurrencyConfig{Min: 1, Initial: 1, Max: 1, QueueMax: 1}, 0)
	const trialStart = int64(windowLength)
	g.pace.trial = trial{start: trialStart, settled: trialStart, end: trialStart + int64(trialLength), judge: trialStart + int64(trialJudged)}
	order := levelOf(Place, "", time.Unix(1_800_000_000, 0))
	now := trialStart
	for ; now < g.pace.trial.end; now += int64(windowLength) {
		g.ask(now, order)
		for range 10 { // One is let through, one waits.
			g.enter(now, order, func(bool) {})
		}
	}
	// The window that ends now began while the trial lasted.
	g.ask(now, order)
	if bar := g.bar.Load(); bar != 0 {
		t.Errorf("the bar is %d after a trial that refused calls, want 0", bar)
	}
}

// jam has a gate be asked ten times as much as it serves, if it serves anything, and returns what the refused are told, by when.
func jam(serves bool, length time.Duration) (told map[time.Duration]time.Duration) {
	g := newGate(ConcurrencyConfig{Min: 1, Initial: 1, Max: 1, QueueMax: 1}, 0)
	order := levelOf(Place, "", time.Unix(1_800_000_000, 0))
	told = map[time.Duration]time.Duration{}
	for now := int64(0); now <= int64(length); now += int64(10 * time.Millisecond) {
		if !g.ask(now, order) {
			told[time.Duration(now)] = g.refusal(order)
			continue
		}
		if _, queued := g.enter(now, order, func(bool) {}); queued == nil && g.underWay > 0 {
			told[time.Duration(now)] = g.refusal(order)
		}
		if serves && now%int64(100*time.Millisecond) == 0 {
			g.leave(now, now-int64(100*time.Millisecond), "m", outcome.Good, true)
		}
	}
	return told
}

// Whoever was refused by a gateway of whose calls none had ended in a second was told to come again in 30 s.
func TestWhoIsRefusedComesAgainSoonAtFirstAndLaterWhileItLasts(t *testing.T) {
	for _, serves := range []bool{true, false} {
		last := time.Duration(0)
		for at, after := range jam(serves, time.Minute) {
			if at < time.Second && after > time.Second {
				t.Errorf("serves %t: refused after %s, and told %s", serves, at, after)
			}
			if !serves && after > retryAfterUnknown {
				t.Errorf("refused after %s by a gate that served nothing, and told %s, want %s at most", at, after, retryAfterUnknown)
			}
			if at > 50*time.Second {
				last = max(last, after)
			}
		}
		want := 10 * time.Second // It is asked ten times what it serves.
		if !serves {
			want = retryAfterUnknown
		}
		if last < want*8/10 || last > want*12/10 {
			t.Errorf("serves %t: after 50 s the refused are told %s, want about %s", serves, last, want)
		}
	}
}
