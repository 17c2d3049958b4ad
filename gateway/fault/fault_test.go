package fault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A node is an upstream of the tests.
type node string

func (n node) ID() string { return string(n) }

// A cluster answers as its script says. In synctest, time stands still but for what waits, and a goroutine that is left behind
// fails the test.
type cluster struct {
	nodes  []node
	script map[node]func(ctx context.Context) Result[string]

	mu        sync.Mutex
	log       []string
	discarded []string
	causes    map[node]error
	under     int
	underMax  int
}

var errBroken = errors.New("broken")

func newCluster(nodes ...node) *cluster {
	return &cluster{nodes: nodes, script: make(map[node]func(context.Context) Result[string]), causes: make(map[node]error)}
}

// answers makes a node end its attempts in one way after a time, or when it is told to stop.
func (c *cluster) answers(n node, result outcome.Outcome, after time.Duration) *cluster {
	c.script[n] = func(ctx context.Context) Result[string] {
		select {
		case <-time.After(after):
			r := Result[string]{Value: "from " + n.ID(), Outcome: result}
			if result != outcome.Good {
				r.Err = fmt.Errorf("%s is %w", n, errBroken)
			}
			return r
		case <-ctx.Done():
			return Result[string]{Value: "half of " + n.ID(), Outcome: outcome.Abandoned, Err: context.Cause(ctx)}
		}
	}
	return c
}

var errNoMore = errors.New("no more nodes")

func (c *cluster) call() Call[node, string] {
	return Call[node, string]{
		Pick: func(tried []string) (node, error) {
			for _, n := range c.nodes {
				if !slices.Contains(tried, n.ID()) {
					return n, nil
				}
			}
			return "", errNoMore
		},
		Attempt: func(ctx context.Context, n node) Result[string] {
			c.mu.Lock()
			c.log = append(c.log, n.ID())
			c.under++
			c.underMax = max(c.underMax, c.under)
			c.mu.Unlock()
			defer func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.under--
				c.causes[n] = context.Cause(ctx)
			}()
			return c.script[n](ctx)
		},
		Discard: func(r Result[string]) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.discarded = append(c.discarded, r.Value)
		},
		Replayable: true,
		Everyone:   func() []node { return c.nodes },
	}
}

// A purse is a budget that pays so often.
type purse struct {
	mu           sync.Mutex
	calls, taken int
	left         int
	share        float64 // of calls, on top
}

func (p *purse) Call() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
}

func (p *purse) Take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.left+int(p.share*float64(p.calls)) {
		return false
	}
	p.taken++
	return true
}

func newPolicy(t testing.TB, config Config, budget *purse) *Policy {
	t.Helper()
	p, err := New(config, Options{Name: "/m", Budget: budget, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func do(t testing.TB, p *Policy, call Call[node, string]) Result[string] {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	result, err := Do(ctx, p, call)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func (c *cluster) wantLog(t testing.TB, want ...string) {
	t.Helper()
	if !slices.Equal(c.log, want) {
		t.Fatalf("attempts went to %v, want %v", c.log, want)
	}
	if c.under != 0 {
		t.Fatalf("%d attempts are under way after the call ended", c.under)
	}
}

func wantValue(t testing.TB, got Result[string], want string) {
	t.Helper()
	if got.Value != want || got.Outcome != outcome.Good {
		t.Fatalf("got %+v, want %q", got, want)
	}
}

func TestFailoverTriesAnotherUpstreamEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b", "c").answers("a", outcome.Fault, time.Millisecond).answers("b", outcome.Fault, time.Millisecond).answers("c", outcome.Good, 1)
		p := newPolicy(t, Config{}, &purse{left: 9})
		wantValue(t, do(t, p, c.call()), "from c")
		c.wantLog(t, "a", "b", "c")
		if !slices.Equal(c.discarded, []string{"from a", "from b"}) {
			t.Errorf("given back: %v", c.discarded)
		}
		if s := p.Stats(); s != (Stats{Calls: 1, Attempts: 3, Won: 1}) {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestFailoverEndsWithTheLastFaultWhenNothingIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		nodes  []node
		config Config
		left   int
		change func(*Call[node, string])
		want   []string
	}{
		"attempts":     {nodes: []node{"a", "b", "c", "d", "e"}, left: 9, want: []string{"a", "b", "c"}},
		"two attempts": {nodes: []node{"a", "b", "c"}, config: Config{AttemptsMax: 2}, left: 9, want: []string{"a", "b"}},
		"upstreams":    {nodes: []node{"a", "b"}, left: 9, want: []string{"a", "b"}},
		"budget":       {nodes: []node{"a", "b", "c"}, left: 1, want: []string{"a", "b"}},
		"no budget":    {nodes: []node{"a", "b", "c"}, want: []string{"a"}},
		"replay is not allowed": {nodes: []node{"a", "b", "c"}, left: 9, change: func(c *Call[node, string]) {
			c.Replayable = false
		}, want: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cluster := newCluster(c.nodes...)
				for _, n := range c.nodes {
					cluster.answers(n, outcome.Fault, time.Millisecond)
				}
				call := cluster.call()
				if c.change != nil {
					c.change(&call)
				}
				result := do(t, newPolicy(t, c.config, &purse{left: c.left}), call)
				cluster.wantLog(t, c.want...)
				last := c.want[len(c.want)-1]
				if result.Outcome != outcome.Fault || !errors.Is(result.Err, errBroken) || result.Value != "from "+last {
					t.Errorf("it ended with %+v", result)
				}
				if slices.Contains(cluster.discarded, result.Value) {
					t.Error("what is returned was given back")
				}
			})
		})
	}
}

func TestWhatWasNotSentIsAlwaysTriedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b").answers("b", outcome.Good, 1)
		c.script["a"] = func(context.Context) Result[string] {
			return Result[string]{Outcome: outcome.Fault, Unsent: true, Err: errBroken}
		}
		call := c.call()
		call.Replayable = false
		// It costs the budget nothing: it was no load on anybody.
		wantValue(t, do(t, newPolicy(t, Config{}, &purse{}), call), "from b")
	})
}

func TestWhatWasNotSentEndsWithTheReasonWhyNobodyElseWasCalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b")
		c.script["a"] = func(context.Context) Result[string] {
			return Result[string]{Outcome: outcome.Fault, Unsent: true, Err: errBroken}
		}
		call := c.call()
		pick := call.Pick
		errFull := errors.New("as many wait as may")
		call.Pick = func(tried []string) (node, error) {
			if len(tried) > 0 {
				return "", errFull
			}
			return pick(tried)
		}
		if result, err := Do(t.Context(), newPolicy(t, Config{}, &purse{}), call); !errors.Is(err, errFull) {
			t.Errorf("got %+v and %v, want %v", result, err, errFull)
		}
	})
}

func TestFailoverLeavesAnswersAlone(t *testing.T) {
	for _, result := range []outcome.Outcome{outcome.Good, outcome.Overload, outcome.Abandoned} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster("a", "b").answers("a", result, 1).answers("b", outcome.Good, 1)
			if got := do(t, newPolicy(t, Config{}, &purse{left: 9}), c.call()); got.Outcome != result {
				t.Errorf("got %+v, want %v", got, result)
			}
			c.wantLog(t, "a")
		})
	}
}

func TestFailoverPausesAtRandomUpToADoublingLimit(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var longest [4]time.Duration
	for range 200 {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster("a", "b", "c", "d", "e")
			var times []time.Time
			for _, n := range c.nodes {
				c.script[n] = func(context.Context) Result[string] {
					times = append(times, time.Now())
					return Result[string]{Outcome: outcome.Fault}
				}
			}
			p, err := New(Config{AttemptsMax: 5, Backoff: 20 * time.Millisecond, BackoffMax: 100 * time.Millisecond},
				Options{Budget: &purse{left: 9}, Random: random.Float64})
			if err != nil {
				t.Fatal(err)
			}
			do(t, p, c.call())
			for i := range longest {
				longest[i] = max(longest[i], times[i+1].Sub(times[i]))
			}
		})
	}
	for i, limit := range []time.Duration{20, 40, 80, 100} {
		limit *= time.Millisecond
		if longest[i] > limit || longest[i] < limit*9/10 {
			t.Errorf("seed %d: before attempt %d the longest of 200 pauses was %s, want just below %s", seed, i+2, longest[i], limit)
		}
	}
}

func TestFailoverDoesNotPauseBeyondTheCallsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b").answers("a", outcome.Fault, 1).answers("b", outcome.Good, 1)
		p, err := New(Config{Backoff: time.Second, BackoffMax: time.Second}, Options{Budget: &purse{left: 9}, Random: func() float64 { return 0.9 }})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		ctx, end := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer end()
		result, err := Do(ctx, p, c.call())
		if err != nil || result.Outcome != outcome.Fault || time.Since(begun) > time.Millisecond {
			t.Errorf("after %s it ended with %+v, %v", time.Since(begun), result, err)
		}
	})
}

func TestAFrozenUpstreamIsLeftForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b").answers("a", outcome.Good, time.Hour).answers("b", outcome.Good, time.Millisecond)
		p := newPolicy(t, Config{}, &purse{left: 9})
		begun := time.Now()
		wantValue(t, do(t, p, c.call()), "from b")
		if took := time.Since(begun); took != time.Second+time.Millisecond {
			t.Errorf("it took %s", took)
		}
		if !errors.Is(c.causes["a"], ErrTooSlow) {
			t.Errorf("the attempt at a ended for %v", c.causes["a"])
		}
		c.wantLog(t, "a", "b")
		if s := p.Stats(); s.Cut != 1 {
			t.Errorf("stats are %+v", s)
		}
	})
}

func TestASlowAttemptIsNotCutForNothing(t *testing.T) {
	for name, c := range map[string]struct {
		nodes  []node
		left   int
		replay bool
	}{
		"no budget":             {[]node{"a", "b"}, 0, true},
		"no other upstream":     {[]node{"a"}, 9, true},
		"replay is not allowed": {[]node{"a", "b"}, 9, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cluster := newCluster(c.nodes...).answers("a", outcome.Good, 5*time.Second).answers("b", outcome.Good, 1)
				call := cluster.call()
				call.Replayable = c.replay
				wantValue(t, do(t, newPolicy(t, Config{}, &purse{left: c.left}), call), "from a")
				cluster.wantLog(t, "a")
			})
		})
	}
}

func TestTheLastAttemptHasTheTimeThatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b").answers("a", outcome.Good, time.Hour).answers("b", outcome.Good, 10*time.Second)
		wantValue(t, do(t, newPolicy(t, Config{AttemptsMax: 2}, &purse{left: 9}), c.call()), "from b")
	})
}

// Dubbo's failover has no budget: when all fail, it multiplies the load.
func TestWhenAllFailTheBudgetBoundsTheAttempts(t *testing.T) {
	for _, mode := range []Mode{Failover, Forking, Hedging} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster("a", "b", "c")
			for _, n := range c.nodes {
				c.answers(n, outcome.Fault, time.Millisecond)
			}
			p := newPolicy(t, Config{Mode: mode}, &purse{share: 0.2})
			for range 1000 {
				do(t, p, c.call())
			}
			if attempts := len(c.log); attempts < 1190 || attempts > 1200 {
				t.Errorf("%v: 1000 calls made %d attempts, want 1200", mode, attempts)
			}
		})
	}
}

func TestFailfastMakesOneAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b").answers("a", outcome.Fault, 1).answers("b", outcome.Good, 1)
		if got := do(t, newPolicy(t, Config{Mode: Failfast}, &purse{left: 9}), c.call()); got.Outcome != outcome.Fault {
			t.Errorf("got %+v", got)
		}
		c.wantLog(t, "a")
	})
}

func TestFailsafeAnswersWithNothingAndSaysSoInTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		p, err := New(Config{Mode: Failsafe}, Options{Name: "/points", Budget: &purse{}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		c := newCluster("a").answers("a", outcome.Fault, 1)
		call := c.call()
		call.Empty = func() string { return "nothing" }
		got := do(t, p, call)
		wantValue(t, got, "nothing")
		if !got.Substitute || !slices.Equal(c.discarded, []string{"from a"}) {
			t.Errorf("got %+v, given back %v", got, c.discarded)
		}
		if !strings.Contains(log.String(), "method=/points") || !strings.Contains(log.String(), "a is broken") {
			t.Errorf("the log says %q", log.String())
		}
		c.nodes = nil
		wantValue(t, do(t, p, call), "nothing")
		if s := p.Stats(); s.Swallowed != 2 {
			t.Errorf("stats are %+v", s)
		}
		c.nodes = []node{"a"}
		c.answers("a", outcome.Good, 1)
		wantValue(t, do(t, p, call), "from a")
		c.answers("a", outcome.Abandoned, 1)
		if got := do(t, p, call); got.Outcome != outcome.Abandoned {
			t.Errorf("a call that was abandoned ended with %+v", got)
		}
	})
}

func TestFailbackKeepsWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a").answers("a", outcome.Fault, 1)
		call := c.call()
		kept := 0
		call.Keep = func(ctx context.Context) (string, error) {
			kept++
			return "later", ctx.Err()
		}
		p := newPolicy(t, Config{Mode: Failback}, &purse{})
		got := do(t, p, call)
		wantValue(t, got, "later")
		if !got.Substitute || !errors.Is(got.Err, errBroken) || kept != 1 {
			t.Errorf("got %+v, kept %d", got, kept)
		}

		// Its time is over, that is why it failed; it is kept nevertheless.
		ctx, end := context.WithTimeout(t.Context(), time.Second)
		defer end()
		c.script["a"] = func(ctx context.Context) Result[string] {
			<-ctx.Done()
			return Result[string]{Outcome: outcome.Fault, Err: ctx.Err()}
		}
		got, err := Do(ctx, p, call)
		if err != nil {
			t.Fatal(err)
		}
		wantValue(t, got, "later")

		call.Replayable = false
		c.answers("a", outcome.Fault, 1)
		if got := do(t, p, call); got.Outcome != outcome.Fault || kept != 2 {
			t.Errorf("what may not be made twice ended with %+v, kept %d", got, kept)
		}
		c.nodes = nil // Nothing was sent, so it may be.
		wantValue(t, do(t, p, call), "later")

		errFull := errors.New("full")
		call.Keep = func(context.Context) (string, error) { return "", errFull }
		call.Replayable, c.nodes = true, []node{"a"}
		if got := do(t, p, call); got.Outcome != outcome.Fault || !errors.Is(got.Err, errFull) || !errors.Is(got.Err, errBroken) {
			t.Errorf("what could not be kept ended with %+v", got)
		}
	})
}

// Dubbo's forking leaves the losers running.
func TestForkingEndsTheLosersAndWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b", "c", "d").answers("a", outcome.Good, time.Hour).answers("b", outcome.Good, 5*time.Millisecond).answers("c", outcome.Fault, time.Millisecond)
		p := newPolicy(t, Config{Mode: Forking, Forks: 3}, &purse{left: 9})
		begun := time.Now()
		wantValue(t, do(t, p, c.call()), "from b")
		if took := time.Since(begun); took != 5*time.Millisecond {
			t.Errorf("it took %s", took)
		}
		slices.Sort(c.log)
		c.wantLog(t, "a", "b", "c")
		if !errors.Is(c.causes["a"], ErrLost) || c.causes["b"] != nil {
			t.Errorf("attempts ended for %v", c.causes)
		}
		slices.Sort(c.discarded)
		if !slices.Equal(c.discarded, []string{"from c", "half of a"}) {
			t.Errorf("given back: %v", c.discarded)
		}
	})
}

func TestTheContextOfTheWinnerLivesOn(t *testing.T) {
	for _, mode := range []Mode{Failover, Forking, Hedging, Broadcast} {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster("a", "b").answers("b", outcome.Good, time.Hour)
			var winner context.Context
			c.script["a"] = func(ctx context.Context) Result[string] {
				winner = ctx
				return Result[string]{Outcome: outcome.Good}
			}
			if mode == Broadcast {
				c.nodes = c.nodes[:1]
			}
			ctx, end := context.WithCancel(t.Context())
			if _, err := Do(ctx, newPolicy(t, Config{Mode: mode}, &purse{left: 9}), c.call()); err != nil {
				t.Fatal(err)
			}
			if winner.Err() != nil {
				t.Errorf("%v: the body of the answer could not be read: %v", mode, context.Cause(winner))
			}
			end()
			if winner.Err() == nil {
				t.Errorf("%v: it lives on after the call", mode)
			}
		})
	}
}

func TestForkingMakesFewerAttemptsThanItMay(t *testing.T) {
	for name, c := range map[string]struct {
		nodes  []node
		left   int
		replay bool
		want   []string
	}{
		"budget":                {[]node{"a", "b", "c"}, 1, true, []string{"a", "b"}},
		"upstreams":             {[]node{"a", "b"}, 9, true, []string{"a", "b"}},
		"replay is not allowed": {[]node{"a", "b", "c"}, 9, false, []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cluster := newCluster(c.nodes...)
				for _, n := range c.nodes {
					cluster.answers(n, outcome.Fault, time.Millisecond)
				}
				call := cluster.call()
				call.Replayable = c.replay
				got := do(t, newPolicy(t, Config{Mode: Forking, Forks: 3}, &purse{left: c.left}), call)
				if got.Outcome != outcome.Fault || len(cluster.discarded) != len(c.want)-1 {
					t.Errorf("got %+v, given back %v", got, cluster.discarded)
				}
				slices.Sort(cluster.log)
				cluster.wantLog(t, c.want...)
			})
		})
	}
}

// Dubbo's broadcast is sequential, and ends with the first that fails.
func TestBroadcastReachesEveryoneAtOnceWhateverTheyAnswer(t *testing.T) {
	for _, c := range []struct {
		suffices Suffices
		bad      int
		good     bool
	}{
		{All, 0, true}, {All, 1, false}, {Quorum, 2, true}, {Quorum, 3, false}, {Any, 4, true}, {Any, 5, false},
	} {
		t.Run(fmt.Sprintf("%v of five, %d fail", c.suffices, c.bad), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cluster := newCluster("a", "b", "c", "d", "e")
				for i, n := range cluster.nodes {
					if i < c.bad {
						cluster.answers(n, outcome.Fault, time.Millisecond)
					} else {
						cluster.answers(n, outcome.Good, 10*time.Millisecond)
					}
				}
				begun := time.Now()
				got := do(t, newPolicy(t, Config{Mode: Broadcast, Suffices: c.suffices}, &purse{}), cluster.call())
				if took := time.Since(begun); took > 10*time.Millisecond {
					t.Errorf("it took %s", took)
				}
				slices.Sort(cluster.log)
				cluster.wantLog(t, "a", "b", "c", "d", "e")
				short := (*BroadcastError)(nil)
				switch {
				case c.good && got.Outcome != outcome.Good:
					t.Errorf("got %+v", got)
				case !c.good && (!errors.As(got.Err, &short) || short.Good != 5-c.bad || len(short.Failed) != c.bad || !errors.Is(got.Err, errBroken)):
					t.Errorf("got %+v", got)
				}
				if len(cluster.discarded) != 4 || slices.Contains(cluster.discarded, got.Value) {
					t.Errorf("got %q, given back %v", got.Value, cluster.discarded)
				}
			})
		})
	}
}

func TestBroadcastIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster()
		for i := range 50 {
			n := node(fmt.Sprint(i))
			c.nodes = append(c.nodes, n)
			c.answers(n, outcome.Good, time.Duration(i)*time.Millisecond)
		}
		do(t, newPolicy(t, Config{Mode: Broadcast, ParallelMax: 7}, &purse{}), c.call())
		if c.underMax != 7 || len(c.log) != 50 {
			t.Errorf("%d attempts, %d at once", len(c.log), c.underMax)
		}
		c.nodes = nil
		if _, err := Do(t.Context(), newPolicy(t, Config{Mode: Broadcast}, &purse{}), c.call()); !errors.Is(err, ErrNobody) {
			t.Errorf("to nobody: %v", err)
		}
	})
}

// learn makes 200 calls that take a millisecond or two.
func learn(t *testing.T, p *Policy, c *cluster) {
	t.Helper()
	for i := range 200 {
		c.answers(c.nodes[0], outcome.Good, time.Duration(1+i%2)*time.Millisecond)
		do(t, p, c.call())
	}
	c.log = nil
}

func TestHedgingMakesAnotherAttemptWhenTheFirstTakesLongerThanMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b", "c")
		p := newPolicy(t, Config{Mode: Hedging}, &purse{left: 1})
		learn(t, p, c)
		c.answers("a", outcome.Good, time.Hour).answers("b", outcome.Good, time.Millisecond)
		begun := time.Now()
		wantValue(t, do(t, p, c.call()), "from b")
		// 95% of the calls take two milliseconds, to an eighth.
		if took := time.Since(begun); took < 3*time.Millisecond || took > 3500*time.Microsecond {
			t.Errorf("it took %s", took)
		}
		c.wantLog(t, "a", "b")
		if !errors.Is(c.causes["a"], ErrLost) {
			t.Errorf("the attempt at a ended for %v", c.causes["a"])
		}
		if s := p.Stats(); s.Won != 1 {
			t.Errorf("stats are %+v", s)
		}

		c.log = nil // The budget is spent: whoever is slow is waited for.
		c.answers("a", outcome.Good, time.Second)
		wantValue(t, do(t, p, c.call()), "from a")
		c.wantLog(t, "a")
	})
}

func TestHedgingDoesNotGuessBeforeItKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b").answers("a", outcome.Good, 900*time.Millisecond).answers("b", outcome.Good, 1)
		p := newPolicy(t, Config{Mode: Hedging}, &purse{left: 9})
		wantValue(t, do(t, p, c.call()), "from a")
		c.wantLog(t, "a")
	})
}

func TestHedgingDoesNotWaitWhenTheFirstFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b").answers("a", outcome.Fault, time.Millisecond).answers("b", outcome.Good, time.Millisecond)
		begun := time.Now()
		wantValue(t, do(t, newPolicy(t, Config{Mode: Hedging}, &purse{left: 9}), c.call()), "from b")
		if took := time.Since(begun); took != 2*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

func TestHedgingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster("a", "b", "c", "d")
		p := newPolicy(t, Config{Mode: Hedging, HedgesMax: 2}, &purse{left: 9})
		learn(t, p, c)
		for _, n := range c.nodes {
			c.answers(n, outcome.Good, 100*time.Millisecond)
		}
		wantValue(t, do(t, p, c.call()), "from a")
		slices.Sort(c.log)
		c.wantLog(t, "a", "b", "c")

		c.log = nil
		call := c.call()
		call.Replayable = false
		wantValue(t, do(t, p, call), "from a")
		c.wantLog(t, "a")
	})
}

func TestACallerThatLeavesEndsAllAttempts(t *testing.T) {
	for mode := Failover; mode <= Hedging; mode++ {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster("a", "b", "c")
			for _, n := range c.nodes {
				c.answers(n, outcome.Good, time.Hour)
			}
			ctx, leave := context.WithTimeout(t.Context(), 3*time.Second)
			defer leave()
			call := c.call()
			call.Empty = func() string { return "nothing" }
			begun := time.Now()
			result, err := Do(ctx, newPolicy(t, Config{Mode: mode}, &purse{left: 9}), call)
			if err != nil || result.Outcome != outcome.Abandoned || time.Since(begun) > 3*time.Second {
				t.Errorf("%v: after %s it ended with %+v, %v", mode, time.Since(begun), result, err)
			}
			if c.under != 0 {
				t.Errorf("%v: %d attempts are under way", mode, c.under)
			}
		})
	}
}

func TestAPanicOfAnAttemptComesOutWhenAllHaveEnded(t *testing.T) {
	for mode := Failover; mode <= Hedging; mode++ {
		synctest.Test(t, func(t *testing.T) {
			c := newCluster("a", "b").answers("b", outcome.Good, time.Second)
			c.script["a"] = func(context.Context) Result[string] { panic("a bug") }
			defer func() {
				if got := recover(); got != "a bug" || c.under != 0 {
					t.Errorf("%v: it panicked with %v, %d attempts are under way", mode, got, c.under)
				}
			}()
			do(t, newPolicy(t, Config{Mode: mode}, &purse{left: 9}), c.call())
		})
	}
}

func TestWithoutAnUpstreamNoAttemptIsMade(t *testing.T) {
	for mode := Failover; mode <= Hedging; mode++ {
		c := newCluster()
		_, err := Do(t.Context(), newPolicy(t, Config{Mode: mode}, &purse{left: 9}), c.call())
		if want := map[bool]error{false: errNoMore, true: ErrNobody}[mode == Broadcast]; !errors.Is(err, want) {
			t.Errorf("%v: got %v, want %v", mode, err, want)
		}
	}
}

func TestQuantilesAreExactToAnEighth(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var q quantiles
	var all []time.Duration
	for range 4000 {
		took := time.Duration(random.ExpFloat64() * float64(20*time.Millisecond))
		all = append(all, took)
		q.add(took)
	}
	slices.Sort(all)
	for _, share := range []float64{0.01, 0.5, 0.95, 0.99} {
		want := all[int(share*4000)-1]
		got, known := q.at(share)
		if !known || got < want || float64(got) > 1.13*float64(want)+2000 {
			t.Errorf("seed %d: quantile %v is %s, want %s or up to an eighth more", seed, share, got, want)
		}
	}
	for range 10_000 { // What was long ago is forgotten.
		q.add(time.Millisecond)
	}
	if got, _ := q.at(0.95); got > 1200*time.Microsecond {
		t.Errorf("seed %d: after 10,000 calls of 1 ms, 95%% take %s", seed, got)
	}
	q.add(-1)
	q.add(1 << 62)
}

func TestConfigsThatAreNoneAreRefused(t *testing.T) {
	for name, config := range map[string]Config{
		"mode": {Mode: 99}, "suffices": {Suffices: 99}, "attempts_max": {AttemptsMax: 100}, "forks": {Forks: -1}, "hedges_max": {HedgesMax: 99},
		"backoff_max": {BackoffMax: time.Millisecond}, "hedge_quantile": {HedgeQuantile: 1}, "hedge_after_max": {HedgeAfterMax: 1},
		"attempt_time_max": {AttemptTimeMax: -1}, "parallel_max": {ParallelMax: 10_000},
	} {
		if err := config.Validate(); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
		if _, err := New(config, Options{Budget: &purse{}}); err == nil {
			t.Errorf("%s: New takes it", name)
		}
	}
	if _, err := New(Config{}, Options{}); err == nil {
		t.Error("New takes no budget")
	}
	for mode := Failover; mode <= Hedging; mode++ {
		var back Mode
		if text, err := mode.MarshalText(); err != nil || back.UnmarshalText(text) != nil || back != mode {
			t.Errorf("%v becomes %v, %v", mode, back, err)
		}
	}
	for suffices := All; suffices <= Any; suffices++ {
		var back Suffices
		if text, err := suffices.MarshalText(); err != nil || back.UnmarshalText(text) != nil || back != suffices {
			t.Errorf("%v becomes %v, %v", suffices, back, err)
		}
	}
	if err := new(Mode).UnmarshalText([]byte("failwell")); err == nil || !strings.Contains(err.Error(), `"failwell"`) {
		t.Errorf("an unknown name: %v", err)
	}
}
