package retry

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A clock stands still until it is told to go on.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{now: time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) advance(d time.Duration) { c.now = c.now.Add(d) }

func newBudget(t testing.TB, config Config, c *clock) *Budget {
	t.Helper()
	b, err := New(config, c.Now)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestABudgetPaysForAFifthOfTheCallsAndTenASecond(t *testing.T) {
	c := newClock()
	b := newBudget(t, Config{}, c)
	const seconds, callsPerSecond = 60, 1000
	paid := 0
	for range seconds * callsPerSecond {
		b.Call()
		c.advance(time.Second / callsPerSecond)
		for range 3 { // As if each call failed and wanted three more attempts.
			if b.Take() {
				paid++
			}
		}
	}
	want := 0.2*seconds*callsPerSecond + 10*seconds
	if got := float64(paid); math.Abs(got-want) > 10 {
		t.Fatalf("%v attempts were paid, want about %v", got, want)
	}
	if stats := b.Stats(); stats.Paid != uint64(paid) || stats.Paid+stats.Refused != 3*seconds*callsPerSecond {
		t.Fatalf("stats are %+v after %d were paid", stats, paid)
	}
}

func TestWhatIsNotSpentExpires(t *testing.T) {
	c := newClock()
	b := newBudget(t, Config{}, c)
	for range 1_000_000 {
		b.Call()
	}
	if got := b.Stats().Balance; got < 200_000 {
		t.Fatalf("the balance is %v after a million calls", got)
	}
	c.advance(9400 * time.Millisecond)
	if got := b.Stats().Balance; got < 200_000 {
		t.Fatalf("the balance is %v before the ttl", got)
	}
	c.advance(600 * time.Millisecond)
	if got := b.Stats().Balance; got != 100 {
		t.Fatalf("the balance is %v after the ttl, want what comes in ten seconds: 100", got)
	}
	for _, later := range []time.Duration{10 * time.Second, time.Hour, 30 * 24 * time.Hour} {
		c.advance(later)
		if got := b.Stats().Balance; got != 100 {
			t.Fatalf("the balance is %v after %s without a call, want 100", got, later)
		}
	}
}

func TestABudgetThatIsOffPaysNothing(t *testing.T) {
	c := newClock()
	b := newBudget(t, Config{Off: true}, c)
	for range 1000 {
		b.Call()
	}
	if b.Take() {
		t.Fatal("it paid for an attempt")
	}
}

func TestAClockThatGoesBackTakesNothingAway(t *testing.T) {
	c := newClock()
	b := newBudget(t, Config{}, c)
	c.advance(5 * time.Second)
	before := b.Stats().Balance
	c.advance(-time.Hour)
	if got := b.Stats().Balance; got != before {
		t.Fatalf("the balance is %v, and was %v", got, before)
	}
}

// model remembers every credit by itself.
type model struct {
	slots map[int64]int64
}

func (m *model) expire(slot int64) {
	for from := range m.slots {
		if from <= slot-slotCount {
			delete(m.slots, from)
		}
	}
}

func (m *model) balance() (sum int64) {
	for _, credits := range m.slots {
		sum += credits
	}
	return sum
}

func (m *model) take(slot int64) bool {
	if m.balance() < credit {
		return false
	}
	due := int64(credit)
	for from := slot - slotCount + 1; due > 0; from++ {
		spent := min(m.slots[from], due)
		m.slots[from] -= spent
		due -= spent
	}
	return true
}

func TestABudgetCountsAsOneThatRemembersEveryCredit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newClock()
		b, err := New(Config{Share: 0.25, PerSecond: 4, TTL: 10 * time.Second}, c.Now)
		if err != nil {
			t.Fatal(err)
		}
		begin, seen := c.now, int64(0)
		m := &model{slots: map[int64]int64{0: 2 * credit}}
		step := func() int64 {
			slot := int64(c.now.Sub(begin) / (500 * time.Millisecond))
			for ; seen < slot; seen++ {
				m.slots[seen+1] += 2 * credit // 4 a second, half a second.
			}
			m.expire(slot)
			return slot
		}
		t.Repeat(map[string]func(*rapid.T){
			"wait": func(t *rapid.T) {
				c.advance(time.Duration(rapid.IntRange(1, 3_000).Draw(t, "ms")) * time.Millisecond)
			},
			"call": func(t *rapid.T) {
				slot := step()
				for range rapid.IntRange(1, 40).Draw(t, "calls") {
					b.Call()
					m.slots[slot] += credit / 4
				}
			},
			"take": func(t *rapid.T) {
				slot := step()
				for range rapid.IntRange(1, 40).Draw(t, "attempts") {
					if got, want := b.Take(), m.take(slot); got != want {
						t.Fatalf("slot %d: Take = %t, want %t with %d thousandths", slot, got, want, m.balance())
					}
				}
			},
			"": func(t *rapid.T) {
				step()
				if got, want := b.Stats().Balance, float64(m.balance())/credit; got != want {
					t.Fatalf("balance = %v, want %v", got, want)
				}
			},
		})
	})
}

func TestManyMayTakeAtOnceAndNoneTwice(t *testing.T) {
	c := newClock()
	b := newBudget(t, Config{}, c)
	for range 500 {
		b.Call()
	}
	want := int64(b.Stats().Balance)
	var paid atomic.Int64
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 200 {
				if b.Take() {
					paid.Add(1)
				}
			}
		})
	}
	wait.Wait()
	if got := paid.Load(); got != want {
		t.Fatalf("%d attempts were paid out of %d", got, want)
	}
}

func TestAConfigThatIsNoneIsRefused(t *testing.T) {
	for name, config := range map[string]Config{
		"negative share": {Share: -1}, "more than one attempt a call": {Share: 1.5}, "share that is no number": {Share: math.NaN()},
		"negative rate": {PerSecond: -1}, "rate without end": {PerSecond: math.Inf(1)},
		"short ttl": {TTL: time.Millisecond}, "long ttl": {TTL: time.Hour},
	} {
		if err := config.Validate(); err == nil {
			t.Errorf("%s: %+v is valid", name, config)
		}
		if _, err := New(config, nil); err == nil {
			t.Errorf("%s: New takes %+v", name, config)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero Config: %v", err)
	}
}

func BenchmarkBudget(b *testing.B) {
	budget, err := New(Config{}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		budget.Call()
		budget.Take()
	}
}
