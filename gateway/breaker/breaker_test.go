package breaker

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A clock stands still until it is told to go on.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

var placing = Key{Upstream: "n1", Method: "/weir.order.v1.OrderService/PlaceOrder"}

func newSet(t testing.TB, config Config, c *clock) *Set {
	t.Helper()
	s, err := NewSet(config, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// call makes one call that ends at once, as far as the clock goes, and reports whether it was let through.
func call(t testing.TB, b *Breaker, result outcome.Outcome, took time.Duration) bool {
	t.Helper()
	ticket, err := b.Admit()
	if err != nil {
		if open := (*OpenError)(nil); !errors.As(err, &open) || !errors.Is(err, ErrOpen) || open.RetryAfter <= 0 {
			t.Fatalf("refused with %v, want an *OpenError with a time", err)
		}
		return false
	}
	ticket.Done(result, took)
	return true
}

func wantState(t testing.TB, b *Breaker, want State) {
	t.Helper()
	if status := b.Status(); status.State != want {
		t.Fatalf("the breaker is %v, want %v: %+v", status.State, want, status)
	}
}

// trip opens a breaker by faults.
func trip(t testing.TB, b *Breaker) {
	t.Helper()
	for range 10 {
		call(t, b, outcome.Fault, time.Millisecond)
	}
	wantState(t, b, Open)
}

func TestFaultsOpenItWithinASecondAtTwentyCallsASecond(t *testing.T) {
	for _, rate := range []int{20, 100, 2000} {
		c := newClock()
		b := newSet(t, Config{}, c).Of(placing)
		gap := time.Second / time.Duration(rate)
		for range 15 * rate { // More good calls than the window holds must not hide the bad ones.
			if !call(t, b, outcome.Good, 5*time.Millisecond) {
				t.Fatalf("at %d calls a second a good call was refused", rate)
			}
			c.advance(gap)
		}
		broken := c.now
		for call(t, b, outcome.Fault, 5*time.Millisecond) && c.now.Sub(broken) <= time.Second {
			c.advance(gap)
		}
		if after := c.now.Sub(broken); after > time.Second {
			t.Errorf("at %d calls a second it opened after %s", rate, after)
		}
	}
}

func TestFewCallsThatFailOpenItInTheEnd(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	for range 20 {
		call(t, b, outcome.Fault, time.Millisecond)
		c.advance(time.Second)
	}
	if b.Status().Opened == 0 {
		t.Fatal("one call a second, each a fault, left it closed for 20 s")
	}
}

func TestFaultsOutsideTheWindowAreForgotten(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	for range 9 {
		call(t, b, outcome.Fault, time.Millisecond)
	}
	for range 10 { // Second by second: a longer pause forgets everything at once.
		c.advance(time.Second)
		b.Status()
	}
	call(t, b, outcome.Good, time.Millisecond)
	call(t, b, outcome.Fault, time.Millisecond)
	wantState(t, b, Closed)
}

func TestItClosesWithinTwoSecondsOfARecovery(t *testing.T) {
	for offset := time.Duration(0); offset < 1500*time.Millisecond; offset += 50 * time.Millisecond {
		c := newClock()
		b := newSet(t, Config{}, c).Of(placing)
		broken := c.now
		recovered := broken.Add(5*time.Second + offset)
		for b.Status().State != Closed || c.now.Before(recovered) {
			if c.now.Before(recovered) {
				call(t, b, outcome.Fault, time.Millisecond)
			} else {
				call(t, b, outcome.Good, time.Millisecond)
			}
			c.advance(50 * time.Millisecond) // 20 calls a second.
			if c.now.Sub(recovered) > 2*time.Second {
				t.Fatalf("recovered %s after it broke, it is %v two seconds later", recovered.Sub(broken), b.Status().State)
			}
		}
	}
}

func TestWhatIsNoFaultNeverOpensIt(t *testing.T) {
	for _, result := range []outcome.Outcome{outcome.Good, outcome.Overload, outcome.Abandoned} {
		c := newClock()
		b := newSet(t, Config{}, c).Of(placing)
		for i := range 5000 {
			if !call(t, b, result, 10*time.Millisecond) {
				t.Fatalf("call %d was refused after nothing but %v", i, result)
			}
			if result == outcome.Abandoned && i%5 == 0 { // Nothing but abandoned calls is another matter: see hung calls.
				call(t, b, outcome.Good, 10*time.Millisecond)
			}
			c.advance(time.Millisecond)
		}
	}
}

// The upstream takes calls and answers none. Nothing ends, so only what is under way can tell.
func TestHungCallsOpenItWithoutAnAnswer(t *testing.T) {
	for _, c := range []struct {
		perSecond, passMax int
		within             time.Duration
	}{
		{20, 20, time.Second},
		{1000, 1000, time.Second},
		{30_000, 10_000, time.Second},
		{1_000_000, 10_000, 100 * time.Millisecond}, // A crowd in one moment: it is their number that tells.
	} {
		t.Run(fmt.Sprint(c.perSecond), func(t *testing.T) {
			clock := newClock()
			b := newSet(t, Config{}, clock).Of(placing)
			for range 200 {
				call(t, b, outcome.Good, time.Millisecond)
				clock.advance(10 * time.Millisecond)
			}
			frozen, passed := clock.now, 0
			for {
				if _, err := b.Admit(); err != nil {
					break
				}
				if passed++; passed > 30_000 {
					t.Fatalf("%d hung calls passed", passed)
				}
				clock.advance(time.Second / time.Duration(c.perSecond))
			}
			if after := clock.now.Sub(frozen); passed > c.passMax || after > c.within {
				t.Fatalf("%d hung calls passed in %s, want at most %d in %s", passed, after, c.passMax, c.within)
			}
		})
	}
}

// Some calls are answered, quickly, and most hang: no silence, but calls that grow old.
func TestCallsThatGrowOldOpenItAlthoughOthersAreAnswered(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	begun := c.now
	for i := 0; ; i++ {
		ticket, err := b.Admit()
		if err != nil {
			break
		}
		if i%10 == 0 {
			ticket.Done(outcome.Good, time.Millisecond)
		}
		c.advance(5 * time.Millisecond)
		if c.now.Sub(begun) > 3*time.Second {
			t.Fatalf("it is still closed: %+v", b.Status())
		}
	}
}

func TestSlowCallsOpenIt(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{Limits: Limits{SlowAfter: 200 * time.Millisecond}}, c).Of(placing)
	for range 10 {
		call(t, b, outcome.Good, 199*time.Millisecond)
	}
	wantState(t, b, Closed)
	for range 40 {
		call(t, b, outcome.Good, 200*time.Millisecond)
	}
	wantState(t, b, Open)
}

// Callers that lose patience take their calls back; the upstream that hangs must not look idle for it.
func TestImpatientCallersDoNotHideAHungUpstream(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	begun := c.now
	var under []Ticket
	for {
		ticket, err := b.Admit()
		if err != nil {
			break
		}
		if under = append(under, ticket); len(under) > 5 {
			under[0].Done(outcome.Abandoned, 250*time.Millisecond)
			under = under[1:]
		}
		c.advance(50 * time.Millisecond)
		if c.now.Sub(begun) > 2*time.Second {
			t.Fatalf("it is still closed: %+v", b.Status())
		}
	}
}

func TestCallsThatAreWithdrawnAreNoNews(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	// Far more than may be unanswered, and for far longer.
	var tickets []Ticket
	for range 5000 {
		ticket, err := b.Admit()
		if err != nil {
			t.Fatalf("after %d that were withdrawn: %v", len(tickets), err)
		}
		tickets = append(tickets, ticket)
		ticket.Withdraw()
	}
	c.advance(time.Minute)
	wantState(t, b, Closed)
	// Others are counted as ever.
	trip(t, b)
	c.advance(time.Minute)
	for range 100 { // A probe that is withdrawn leaves its room to the next.
		ticket, err := b.Admit()
		if err != nil {
			t.Fatal(err)
		}
		ticket.Withdraw()
	}
	wantState(t, b, HalfOpen)
	for range 10 {
		call(t, b, outcome.Good, time.Millisecond)
	}
	wantState(t, b, Closed)
	// Those of an earlier era are nobody's.
	for _, ticket := range tickets[:10] {
		ticket.Withdraw()
	}
	trip(t, b)
}

func TestAStreamMayStayOpenForAnHour(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	var streams []Ticket
	for range 1000 {
		ticket, err := b.AdmitStream()
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, ticket)
		c.advance(100 * time.Millisecond)
	}
	c.advance(time.Hour)
	for _, ticket := range streams {
		ticket.Done(outcome.Good, time.Hour)
	}
	wantState(t, b, Closed)
	if _, err := b.AdmitStream(); err != nil {
		t.Fatal(err)
	}
}

func TestProbesAreBounded(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	trip(t, b)
	c.advance(time.Second)
	var probes []Ticket
	for range 1000 {
		if ticket, err := b.Admit(); err == nil {
			probes = append(probes, ticket)
		}
	}
	if len(probes) != 3 {
		t.Fatalf("%d probes are under way, want 3", len(probes))
	}
	probes[0].Done(outcome.Abandoned, time.Millisecond) // It says nothing, and makes room for another one.
	if !call(t, b, outcome.Good, time.Millisecond) {
		t.Fatal("the place of an abandoned probe was not given to the next")
	}
	probes[1].Done(outcome.Good, time.Millisecond)
	wantState(t, b, HalfOpen)
	probes[2].Done(outcome.Overload, time.Millisecond) // It answers, if only that it has too much to do.
	wantState(t, b, Closed)
}

func TestAProbeThatFailsOrHangsOpensItAgain(t *testing.T) {
	for name, probe := range map[string]func(*clock, *Breaker, Ticket){
		"fault": func(_ *clock, _ *Breaker, ticket Ticket) { ticket.Done(outcome.Fault, time.Millisecond) },
		"slow":  func(_ *clock, _ *Breaker, ticket Ticket) { ticket.Done(outcome.Good, time.Second) },
		"hung": func(c *clock, b *Breaker, _ Ticket) {
			c.advance(time.Second)
			call(t, b, outcome.Good, time.Millisecond)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			b := newSet(t, Config{}, c).Of(placing)
			trip(t, b)
			c.advance(time.Second)
			ticket, err := b.Admit()
			if err != nil {
				t.Fatal(err)
			}
			probe(c, b, ticket)
			wantState(t, b, Open)
			if call(t, b, outcome.Good, time.Millisecond) {
				t.Fatal("a call went through right after")
			}
		})
	}
}

// With one call a minute a breaker waits for its probes, it does not give them up before they come.
func TestRareProbesCloseIt(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	trip(t, b)
	for range 3 {
		c.advance(time.Minute)
		if !call(t, b, outcome.Good, time.Millisecond) {
			t.Fatalf("a probe was refused: %+v", b.Status())
		}
	}
	wantState(t, b, Closed)
}

func TestWhatItRefusesDoesNotCount(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	trip(t, b)
	for range 10_000 {
		if call(t, b, outcome.Fault, 0) {
			t.Fatal("a call went through")
		}
	}
	status := b.Status()
	if status.Refused != 10_000 || status.Calls != 0 || status.Opened != 1 {
		t.Fatalf("after 10,000 refusals: %+v", status)
	}
	c.advance(time.Second)
	for range 3 {
		call(t, b, outcome.Good, time.Millisecond)
	}
	wantState(t, b, Closed)
}

func TestCallsOfAnEarlierEraTeachNothing(t *testing.T) {
	c := newClock()
	b := newSet(t, Config{}, c).Of(placing)
	var late []Ticket
	for range 20 {
		ticket, err := b.Admit()
		if err != nil {
			t.Fatal(err)
		}
		late = append(late, ticket)
	}
	trip(t, b)
	c.advance(time.Second)
	for range 3 {
		call(t, b, outcome.Good, time.Millisecond)
	}
	for _, ticket := range late {
		ticket.Done(outcome.Fault, time.Second)
	}
	if status := b.Status(); status.State != Closed || status.Faults != 0 {
		t.Fatalf("faults from before it opened count after it closed: %+v", status)
	}
}

func TestAPlanForcesBreakers(t *testing.T) {
	c := newClock()
	s := newSet(t, Config{}, c)
	b, other := s.Of(placing), s.Of(Key{Upstream: "n2", Method: placing.Method})

	s.Force(map[Key]Forced{{Method: placing.Method}: ForcedOpen, {Upstream: "n2"}: ForcedClosed})
	for _, b := range []*Breaker{b, other} { // Naming the method counts before naming the upstream.
		_, err := b.Admit()
		if open := (*OpenError)(nil); !errors.As(err, &open) || !open.Forced || !strings.Contains(err.Error(), "by hand") {
			t.Fatalf("forced open: got %v", err)
		}
	}
	s.Force(map[Key]Forced{placing: ForcedOpen})
	if !call(t, other, outcome.Good, 0) {
		t.Fatal("another upstream is open too")
	}

	s.Force(map[Key]Forced{{}: ForcedClosed})
	for range 100 {
		if !call(t, b, outcome.Fault, time.Millisecond) {
			t.Fatal("forced closed, it refused a call")
		}
	}
	s.Force(nil) // It has counted all along.
	if call(t, b, outcome.Good, time.Millisecond) {
		t.Fatal("not forced any more, it does not know what it saw")
	}

	s.Force(map[Key]Forced{{Upstream: "n2"}: Disabled})
	for range 100 {
		if !call(t, other, outcome.Fault, time.Millisecond) {
			t.Fatal("disabled, it refused a call")
		}
	}
	s.Force(nil)
	if status := other.Status(); status.Faults != 0 {
		t.Fatalf("disabled, it counted: %+v", status)
	}
}

func TestForcedClosedLetsCallsThroughAnOpenBreaker(t *testing.T) {
	c := newClock()
	s := newSet(t, Config{}, c)
	b := s.Of(placing)
	trip(t, b)
	s.Force(map[Key]Forced{placing: ForcedClosed})
	for range 100 {
		ticket, err := b.Admit()
		if err != nil {
			t.Fatal(err)
		}
		if ticket.breaker == nil {
			t.Fatal("the call does not count")
		}
	}
}

func TestMethodsHaveTheirOwnLimits(t *testing.T) {
	c := newClock()
	s := newSet(t, Config{Limits: Limits{CallsMin: 4}, Methods: map[string]Limits{"/slow": {SlowAfter: 5 * time.Second}}}, c)
	for method, want := range map[string]Limits{
		"/slow": {CallsMin: 4, SlowAfter: 5 * time.Second, HungAfter: 3750 * time.Millisecond},
		"/any":  {CallsMin: 4, SlowAfter: time.Second, HungAfter: 750 * time.Millisecond},
	} {
		got := s.Of(Key{Upstream: "n1", Method: method}).core.limits
		if got != want.over(Limits{ProbeTimeMax: want.SlowAfter}).WithDefaults() {
			t.Errorf("%s has limits %+v", method, got)
		}
	}
}

func TestASetIsBoundedAndForgetsUpstreamsThatLeft(t *testing.T) {
	c := newClock()
	s := newSet(t, Config{BreakersMax: 10}, c)
	for i := range 1000 {
		s.Of(Key{Upstream: "n1", Method: fmt.Sprintf("/made/up/%d", i)})
	}
	statuses := s.Statuses()
	if len(statuses) != 11 || statuses[0].Method != AnyMethod {
		t.Fatalf("it has %d breakers, the first for %q", len(statuses), statuses[0].Method)
	}
	s.Of(Key{Upstream: "n2", Method: "/a"})
	s.Retain([]string{"n2"})
	if statuses = s.Statuses(); len(statuses) != 1 || statuses[0].Upstream != "n2" {
		t.Fatalf("after n1 left: %+v", statuses)
	}
}

func TestManyCallAtOnce(t *testing.T) {
	s, err := NewSet(Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for worker := range 8 {
		wait.Go(func() {
			for i := range 2000 {
				b := s.Of(Key{Upstream: fmt.Sprint("n", i%3), Method: "/m"})
				ticket, err := b.Admit()
				if err != nil {
					continue
				}
				result := outcome.Good
				if (i+worker)%3 == 0 {
					result = outcome.Fault
				}
				ticket.Done(result, time.Duration(i)*time.Microsecond)
				if i%500 == 0 {
					s.Force(map[Key]Forced{{Upstream: "n1"}: Forced(i / 500 % 4)})
					s.Statuses()
				}
			}
		})
	}
	wait.Wait()
	for _, status := range s.Statuses() {
		if status.Old != 0 || (status.State == Closed && status.Unanswered > 0) {
			t.Errorf("all calls have ended: %+v", status)
		}
	}
}

func TestLimitsThatAreNoneAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		limits Limits
		want   string
	}{
		"negative window":         {Limits{Window: -1}, "window"},
		"long below short":        {Limits{Window: time.Millisecond * 100}, "window is 100ms; it is between 1s"},
		"short window of nothing": {Limits{ShortWindow: time.Millisecond}, "short_window"},
		"too many slots":          {Limits{ShortWindow: 10 * time.Millisecond}, "at most 1s"},
		"slow beyond the window":  {Limits{SlowAfter: time.Minute}, "slow_after is 1m0s"},
		"share above one":         {Limits{FaultShare: 1.1}, "fault_share"},
		"share that is no number": {Limits{SlowShare: math.NaN()}, "slow_share"},
		"negative count":          {Limits{ProbesMax: -1}, "probes_max"},
	} {
		err := (Config{Methods: map[string]Limits{"/m": c.limits}}).Validate()
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "/m") {
			t.Errorf("%s: got %v, want one about %q of /m", name, err, c.want)
		}
		if _, err := NewSet(Config{Limits: c.limits}, nil); err == nil {
			t.Errorf("%s: NewSet takes it", name)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero Config: %v", err)
	}
}

func TestForcedStatesHaveNames(t *testing.T) {
	for f := NotForced; f <= Disabled; f++ {
		text, err := f.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back Forced
		if err := back.UnmarshalText(text); err != nil || back != f {
			t.Errorf("%v becomes %v, %v", f, back, err)
		}
	}
	if err := new(Forced).UnmarshalText([]byte("ajar")); err == nil || !strings.Contains(err.Error(), `"ajar"`) {
		t.Errorf("an unknown name: %v", err)
	}
}

func BenchmarkBreaker(b *testing.B) {
	s, err := NewSet(Config{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		ticket, err := s.Of(placing).Admit()
		if err != nil {
			b.Fatal(err)
		}
		ticket.Done(outcome.Good, time.Millisecond)
	}
}
