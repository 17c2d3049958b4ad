package balance

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weirhq/weir/gateway/outcome"
)

func TestWeightedRandomIsRandomByWeight(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(t, Config{}, seed, Upstream{ID: "a", Weight: 1}, Upstream{ID: "b", Weight: 2}, Upstream{ID: "c", Weight: 3}, Upstream{ID: "d", Weight: 4})
	const picks = 100_000
	for range picks {
		p := w.pick(t, Key{Policy: WeightedRandom})
		w.picks[p.ID()]++
		p.Done(outcome.Good, time.Millisecond)
	}
	chi := 0.0
	for id, weight := range map[string]float64{"a": 1, "b": 2, "c": 3, "d": 4} {
		want := picks * weight / 10
		chi += math.Pow(float64(w.picks[id])-want, 2) / want
	}
	// With three degrees of freedom, one in 100 million right distributions is above 40.
	if chi > 40 {
		t.Fatalf("seed %d: χ² = %.1f for %v", seed, chi, w.picks)
	}
}

func TestSmoothRoundRobinSpreadsAHeavyUpstreamOut(t *testing.T) {
	w := newWorld(t, Config{}, 1, Upstream{ID: "a", Weight: 5}, Upstream{ID: "b", Weight: 1}, Upstream{ID: "c", Weight: 1})
	var got strings.Builder
	for range 14 {
		p := w.pick(t, Key{Policy: WeightedRoundRobin})
		got.WriteString(p.ID())
		p.Done(outcome.Good, time.Millisecond)
	}
	if got.String() != "aabacaaaabacaa" {
		t.Fatalf("the turns are %s", got.String())
	}
}

func TestSmoothRoundRobinGivesExactSharesAndNeverRunsFarAhead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.IntRange(1, 20), 1, 8).Draw(t, "weights")
		upstreams, sum := make([]Upstream, len(weights)), 0
		for i, weight := range weights {
			upstreams[i] = Upstream{ID: fmt.Sprint(i), Weight: weight}
			sum += weight
		}
		b, err := New(Config{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Set(upstreams); err != nil {
			t.Fatal(err)
		}
		picks := make([]int, len(weights))
		for turn := 1; turn <= 3*sum; turn++ {
			p, err := b.Pick(Key{Policy: WeightedRoundRobin})
			if err != nil {
				t.Fatal(err)
			}
			p.Done(outcome.Good, time.Millisecond)
			for i := range weights {
				if p.ID() == upstreams[i].ID {
					picks[i]++
				}
				due := float64(turn) * float64(weights[i]) / float64(sum)
				if ahead := float64(picks[i]) - due; math.Abs(ahead) > float64(len(weights)) {
					t.Fatalf("weights %v: after %d turns upstream %d had %d, due are %.1f", weights, turn, i, picks[i], due)
				}
				if turn%sum == 0 && picks[i] != turn/sum*weights[i] {
					t.Fatalf("weights %v: after %d whole rounds upstream %d had %d turns", weights, turn/sum, i, picks[i])
				}
			}
		}
	})
}

func TestLeastActivePicksTheIdlestForItsWeight(t *testing.T) {
	w := newWorld(t, Config{}, 1, Upstream{ID: "a", Weight: 1}, Upstream{ID: "b", Weight: 3})
	for range 400 {
		w.picks[w.pick(t, Key{Policy: LeastActive, Stream: true}).ID()]++
	}
	if w.picks["a"] != 100 {
		t.Fatalf("of 400 calls under way, %v", w.picks)
	}
}

func TestLeastActiveDrawsAmongEquals(t *testing.T) {
	seed := rand.Uint64()
	w := newWorld(t, Config{}, seed, named("a", "b", "c", "d")...)
	for range 4000 {
		p := w.pick(t, Key{Policy: LeastActive})
		w.picks[p.ID()]++
		p.Done(outcome.Good, time.Millisecond)
	}
	for id, picks := range w.picks {
		if picks < 800 || picks > 1200 {
			t.Errorf("seed %d: %s got %d of 4000", seed, id, picks)
		}
	}
}

func hashed(t testing.TB, w *world, keys int) []string {
	t.Helper()
	ids := make([]string, keys)
	for i := range ids {
		p := w.pick(t, Key{Policy: ConsistentHash, Hash: Hash(fmt.Sprintf("user-%d", i))})
		p.Done(outcome.Good, time.Millisecond)
		ids[i] = p.ID()
	}
	return ids
}

func TestConsistentHashSpreadsKeysByWeight(t *testing.T) {
	w := newWorld(t, Config{}, 1, Upstream{ID: "a", Weight: 1}, Upstream{ID: "b", Weight: 1}, Upstream{ID: "c", Weight: 2})
	for _, id := range hashed(t, w, 20_000) {
		w.picks[id]++
	}
	for id, want := range map[string]float64{"a": 0.25, "b": 0.25, "c": 0.5} {
		if got := w.share(id); math.Abs(got-want) > 0.05 {
			t.Errorf("%s has %.3f of the keys, want about %.2f", id, got, want)
		}
	}
}

func TestConsistentHashMovesOnlyTheShareOfWhoComesOrGoes(t *testing.T) {
	const keys = 5_000
	for members := 1; members <= 10; members++ {
		var ids []string
		for i := range members {
			ids = append(ids, fmt.Sprintf("node-%d", i))
		}
		w := newWorld(t, Config{}, 1, named(ids...)...)
		before := hashed(t, w, keys)
		w.set(t, named(append(ids, "node-new")...)...)
		after := hashed(t, w, keys)
		moved := 0
		for i := range before {
			if before[i] == after[i] {
				continue
			}
			if moved++; after[i] != "node-new" {
				t.Fatalf("with %d members, a key moved from %s to %s when node-new came", members, before[i], after[i])
			}
		}
		// Theory says 1/(members+1); 160 points each make that exact to about a tenth.
		if share, want := float64(moved)/keys, 1/float64(members+1); share > 1.3*want || share < 0.7*want {
			t.Errorf("with %d members, %.3f of the keys moved, want about %.3f", members, share, want)
		}
		w.set(t, named(ids...)...)
		for i, id := range hashed(t, w, keys) {
			if id != before[i] {
				t.Fatalf("with %d members, a key is not back where it was after node-new left", members)
			}
		}
	}
}

func TestConsistentHashMovesTheKeysOfAnEjectedUpstreamOnly(t *testing.T) {
	w := newWorld(t, Config{}, 1, named("a", "b", "c", "d")...)
	before := hashed(t, w, 5000)
	w.fail(t, "c", 5)
	for i, id := range hashed(t, w, 5000) {
		if id == "c" || before[i] != "c" && id != before[i] {
			t.Fatalf("key %d went from %s to %s when c was ejected", i, before[i], id)
		}
	}
}

func laned(id string, epoch uint64, lanes ...uint32) Upstream {
	u := Upstream{ID: id}
	for _, lane := range lanes {
		u.Lanes = append(u.Lanes, Lane{Number: lane, Epoch: epoch})
	}
	return u
}

func (w *world) wantOwner(t testing.TB, lane uint32, want string) {
	t.Helper()
	for range 50 {
		p := w.pick(t, Key{Lane: lane, HasLane: true})
		p.Done(outcome.Good, time.Millisecond)
		if p.ID() != want {
			t.Fatalf("lane %d: picked %s, want %s", lane, p.ID(), want)
		}
	}
}

func TestACallGoesToTheOwnerOfItsLane(t *testing.T) {
	w := newWorld(t, Config{}, 1, laned("a", 3, 0, 1), laned("b", 4, 1, 2), Upstream{ID: "c"})
	w.wantOwner(t, 0, "a")
	w.wantOwner(t, 1, "b") // Both say so; b has the newer epoch.
	w.wantOwner(t, 2, "b")
	seen := make(map[string]bool)
	for range 200 {
		p := w.pick(t, Key{Lane: 7, HasLane: true}) // Nobody says so.
		p.Done(outcome.Good, time.Millisecond)
		seen[p.ID()] = true
	}
	if len(seen) != 3 {
		t.Fatalf("calls of a lane without an owner went to %v only", seen)
	}
	b := laned("b", 4, 1, 2)
	b.Draining = true
	w.set(t, laned("a", 3, 0, 1), b, Upstream{ID: "c"})
	w.wantOwner(t, 2, "b") // It drains, and decides the lane until another one does.
	p := w.pick(t, Key{Lane: 2, HasLane: true, Tried: []string{"b"}})
	if p.ID() == "b" {
		t.Fatal("an owner that was tried is picked again")
	}
}

func TestACallOfALaneGoesElsewhereWhileItsOwnerIsEjected(t *testing.T) {
	w := newWorld(t, Config{}, 1, laned("a", 1, 0), laned("b", 1, 1), laned("c", 1, 2))
	for range 5 {
		w.pick(t, Key{Lane: 1, HasLane: true}).Done(outcome.Fault, time.Millisecond)
	}
	for range 100 {
		p := w.pick(t, Key{Lane: 1, HasLane: true})
		p.Done(outcome.Good, time.Millisecond)
		if p.ID() == "b" {
			t.Fatal("the ejected owner was picked")
		}
	}
}

func TestAWrongOwnerRedirectsOnceAndIsRemembered(t *testing.T) {
	w := newWorld(t, Config{}, 1, laned("a", 3, 0), Upstream{ID: "b"}, Upstream{ID: "c"})
	p := w.pick(t, Key{Lane: 0, HasLane: true})
	next, err := p.Redirect("b", 4, time.Millisecond)
	if err != nil || next.ID() != "b" {
		t.Fatalf("redirected to %v, %v", next.member, err)
	}
	w.wantOwner(t, 0, "b")
	if _, err := next.Redirect("c", 5, time.Millisecond); !errors.Is(err, ErrRedirected) {
		t.Fatalf("the second redirect: %v, want ErrRedirected", err)
	}
	for _, id := range []string{"a", "b", "c"} {
		if s := w.status(t, id); s.InFlight != 0 {
			t.Errorf("%s has calls under way after all ended: %+v", id, s)
		}
	}
	// An older claim does not undo it, neither by a redirect nor by the registry.
	if next, err = w.pick(t, Key{Lane: 0, HasLane: true}).Redirect("a", 3, 0); err != nil {
		t.Fatal(err)
	}
	next.Done(outcome.Good, 0)
	w.wantOwner(t, 0, "b")
	w.set(t, laned("a", 3, 0), Upstream{ID: "b"}, Upstream{ID: "c"})
	w.wantOwner(t, 0, "b")
	w.set(t, laned("a", 6, 0), Upstream{ID: "b"}, Upstream{ID: "c"})
	w.wantOwner(t, 0, "a")

	if _, err := w.pick(t, Key{Lane: 0, HasLane: true}).Redirect("gone", 9, 0); !errors.Is(err, ErrNoUpstream) {
		t.Fatalf("redirected to an upstream that is not known: %v", err)
	}
	w.wantOwner(t, 0, "a")
}

func TestADrainingUpstreamGetsNoCallsWhileThereIsAnother(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, Upstream{ID: "a", Draining: true}, Upstream{ID: "b"})
		for range 500 {
			p := w.pick(t, Key{Policy: policy, Hash: w.random.Uint64()})
			if p.ID() == "a" {
				t.Fatal("the draining upstream was picked")
			}
			p.Done(outcome.Good, time.Millisecond)
		}
		if p := w.pick(t, Key{Policy: policy, Tried: []string{"b"}}); p.ID() != "a" {
			t.Fatalf("b was tried, and %s is picked", p.ID())
		}
		w.set(t, Upstream{ID: "a", Draining: true})
		if p := w.pick(t, Key{Policy: policy}); p.ID() != "a" {
			t.Fatalf("%s is picked", p.ID())
		}
	})
}

func TestWhatWasTriedIsNotPickedAgain(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, named("a", "b", "c", "d")...)
		for range 200 {
			hash := w.random.Uint64()
			var tried []string
			for range 4 {
				p := w.pick(t, Key{Policy: policy, Hash: hash, Tried: tried})
				for _, id := range tried {
					if p.ID() == id {
						t.Fatalf("%s was picked again after %v", id, tried)
					}
				}
				tried = append(tried, p.ID())
				p.Done(outcome.Good, time.Millisecond)
			}
			if _, err := w.Pick(Key{Policy: policy, Hash: hash, Tried: tried}); !errors.Is(err, ErrNoUpstream) {
				t.Fatalf("after all were tried: %v", err)
			}
		}
	})
}

func TestWithoutUpstreamsAPickIsAClearError(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed)
		_, err := w.Pick(Key{Policy: policy})
		if !errors.Is(err, ErrNoUpstream) || !strings.Contains(err.Error(), "registry") {
			t.Fatalf("got %v", err)
		}
	})
}

func TestSetKeepsWhatIsKnownOfThoseThatStay(t *testing.T) {
	w := newWorld(t, Config{}, 1, named("a", "b", "c")...)
	w.fail(t, "b", 5)
	under := w.pick(t, Key{})
	before := w.status(t, under.ID())
	w.set(t, named("c", "b", "a", "d")...)
	if s := w.status(t, "b"); !s.Ejected {
		t.Errorf("b is not ejected any more: %+v", s)
	}
	if s := w.status(t, under.ID()); s != before {
		t.Errorf("%s was %+v and is %+v", under.ID(), before, s)
	}
	under.Done(outcome.Good, time.Millisecond)
	if s := w.status(t, under.ID()); s.InFlight != 0 {
		t.Errorf("a call that ended after Set is still under way: %+v", s)
	}
}

func TestSetRefusesWhatIsNoListAndChangesNothing(t *testing.T) {
	w := newWorld(t, Config{}, 1, named("a")...)
	for name, upstreams := range map[string][]Upstream{
		"no id": {{ID: "b"}, {}}, "twice": named("b", "b"), "negative weight": {{ID: "b", Weight: -1}}, "too many": make([]Upstream, UpstreamsMax+1),
		"heavy": {{ID: "b", Weight: WeightMax + 1}},
	} {
		if err := w.Set(upstreams); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	if p := w.pick(t, Key{}); p.ID() != "a" {
		t.Errorf("%s is picked", p.ID())
	}
}

func TestTheRingIsBounded(t *testing.T) {
	var upstreams []Upstream
	for i := range UpstreamsMax {
		upstreams = append(upstreams, Upstream{ID: fmt.Sprint(i), Weight: WeightMax})
	}
	w := newWorld(t, Config{}, 1, upstreams...)
	if points := len(w.table.Load().ring); points > ringPointsMax+UpstreamsMax || points < ringPointsMax/2 {
		t.Fatalf("the ring has %d points", points)
	}
}

func TestAPickAllocatesNothing(t *testing.T) {
	each(t, func(t *testing.T, policy Policy, seed uint64) {
		w := newWorld(t, Config{}, seed, laned("a", 1, 0), laned("b", 1, 1), Upstream{ID: "c"}, Upstream{ID: "d"})
		key := Key{Policy: policy, Hash: 42, Lane: 1, HasLane: true, Tried: []string{"d"}}
		if allocations := testing.AllocsPerRun(1000, func() { w.pick(t, key).Done(outcome.Good, time.Millisecond) }); allocations > 0 {
			t.Fatalf("%v allocations a pick", allocations)
		}
	})
}

func TestManyPickWhileUpstreamsComeAndGo(t *testing.T) {
	b, err := New(Config{Ejection: Ejection{Time: time.Millisecond, TimeMax: 2 * time.Millisecond, CompareEvery: 10 * time.Millisecond}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	lists := [][]Upstream{named("a", "b", "c"), {laned("a", 1, 0), laned("b", 2, 0, 1), {ID: "c", Draining: true}}, named("b", "d")}
	if err := b.Set(lists[0]); err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for worker := range 8 {
		wait.Go(func() {
			for i := range 3000 {
				key := Key{Policy: policies[i%len(policies)], Hash: uint64(i), Lane: uint32(i % 3), HasLane: i%2 == 0, Stream: i%7 == 0}
				p, err := b.Pick(key)
				if err != nil {
					t.Error(err)
					return
				}
				if i%50 == 0 {
					if next, err := p.Redirect("b", uint64(i), time.Millisecond); err == nil {
						next.Done(outcome.Good, time.Millisecond)
					}
					continue
				}
				p.Done(outcome.Outcome(1+(i+worker)%4), time.Duration(i)*time.Microsecond)
				if i%100 == 0 {
					if err := b.Set(lists[(i/100+worker)%len(lists)]); err != nil {
						t.Error(err)
					}
					b.Statuses()
				}
			}
		})
	}
	wait.Wait()
	statuses, _ := b.Statuses()
	for _, s := range statuses {
		if s.InFlight != 0 {
			t.Errorf("all calls have ended: %+v", s)
		}
	}
}

func TestConfigsThatAreNoneAreRefused(t *testing.T) {
	for name, config := range map[string]Config{
		"virtual_nodes": {VirtualNodes: -1}, "decay_time": {DecayTime: -1}, "warm_up_from": {WarmUpFrom: 2}, "warm_up ": {WarmUp: 2 * time.Hour},
		"ejection.time_max": {Ejection: Ejection{TimeMax: time.Second}}, "ejection.share_max": {Ejection: Ejection{ShareMax: math.NaN()}},
		"ejection.deviations": {Ejection: Ejection{Deviations: -1}}, "policy": {Policy: 77},
	} {
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := New(config, Options{}); err == nil {
			t.Errorf("%s: New takes it", name)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero Config: %v", err)
	}
}

func TestPoliciesHaveNames(t *testing.T) {
	for _, policy := range policies {
		text, err := policy.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Policy
		if err := back.UnmarshalText(text); err != nil || back != policy {
			t.Errorf("%v becomes %v, %v", policy, back, err)
		}
	}
	if err := new(Policy).UnmarshalText([]byte("best")); err == nil || !strings.Contains(err.Error(), `"best"`) {
		t.Errorf("an unknown name: %v", err)
	}
}

func BenchmarkPick(b *testing.B) {
	for _, members := range []int{3, 30} {
		for _, policy := range policies {
			b.Run(fmt.Sprintf("%v/%d", policy, members), func(b *testing.B) {
				balancer, err := New(Config{}, Options{})
				if err != nil {
					b.Fatal(err)
				}
				var upstreams []Upstream
				for i := range members {
					upstreams = append(upstreams, laned(fmt.Sprintf("node-%d", i), 1, uint32(i)))
				}
				if err := balancer.Set(upstreams); err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				var i uint64
				for b.Loop() {
					i++
					p, err := balancer.Pick(Key{Policy: policy, Hash: i, Lane: uint32(i % 8), HasLane: true})
					if err != nil {
						b.Fatal(err)
					}
					p.Done(outcome.Good, time.Millisecond)
				}
			})
		}
	}
}
