package limit

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestAKeyGetsItsRateAndItsBurstAndIsToldWhenToComeAgain(t *testing.T) {
	table := newTable(Rate{PerSecond: 10, Burst: 5}, 1000)
	now := int64(time.Hour)
	for i := range 5 {
		if wait, ok := table.take(now, "u"); !ok {
			t.Fatalf("event %d of the burst was refused, wait %s", i, wait)
		}
	}
	wait, ok := table.take(now, "u")
	if ok || wait != 100*time.Millisecond {
		t.Fatalf("after the burst: %s, %t; want 100ms, false", wait, ok)
	}
	if _, ok := table.take(now+int64(wait)-1, "u"); ok {
		t.Error("it was let through before the time that it was told")
	}
	if _, ok := table.take(now+int64(wait), "u"); !ok {
		t.Error("it was refused at the time that it was told")
	}
	if _, ok := table.take(now, "other"); !ok {
		t.Error("another key was refused")
	}
}

func TestOverAnyTimeNobodyGetsMoreThanRateAndBurst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := Rate{PerSecond: rapid.Float64Range(0.5, 5000).Draw(t, "rate"), Burst: rapid.IntRange(1, 50).Draw(t, "burst")}
		table := newTable(rate, 64)
		start := int64(time.Second)
		now, got := start, 0
		for range 300 {
			now += rapid.Int64Range(0, int64(2*float64(time.Second)/rate.PerSecond)).Draw(t, "gap")
			if _, ok := table.take(now, "u"); ok {
				got++
			}
			elapsed := time.Duration(now - start).Seconds()
			// Intervals are whole ns: at 5,000/s that is off by 5e-6 at most.
			if most := rate.PerSecond*elapsed*(1+1e-5) + float64(rate.Burst) + 1e-3; float64(got) > most {
				t.Fatalf("%d events after %.3f s, want at most %.3f", got, elapsed, most)
			}
		}
	})
}

func TestNobodyResetsTheirOwnLimitByFillingTheTable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	table := newTable(Rate{PerSecond: 1, Burst: 3}, 64)
	now := int64(time.Second)
	for range 3 {
		table.take(now, "attacker")
	}
	for i := range 100_000 {
		table.take(now, fmt.Sprintf("%d-%d", i, random.Uint64()))
		if i%1000 == 0 {
			if _, ok := table.take(now, "attacker"); ok {
				t.Fatalf("seed %d: after %d other names the attacker has a new burst", seed, i)
			}
		}
	}
	// Memory did not grow: it is what it was made with. And all recover together with the clock.
	now += int64(4 * time.Second)
	for _, key := range []string{"attacker", "victim"} {
		if wait, ok := table.take(now, key); !ok {
			t.Errorf("seed %d: %s is refused for %s after the flood", seed, key, wait)
		}
	}
}

func TestAFullTableRefusesStrangersButNotWhoWasThere(t *testing.T) {
	table := newTable(Rate{PerSecond: 10, Burst: 10}, 7)
	now := int64(time.Second)
	table.take(now, "early")
	for i := range 10_000 {
		table.take(now, fmt.Sprint(i))
	}
	for i := range 9 {
		if _, ok := table.take(now, "early"); !ok {
			t.Fatalf("event %d of one who has a cell was refused because of strangers", i+2)
		}
	}
}

func BenchmarkTableTake(b *testing.B) {
	table := newTable(Rate{PerSecond: 100}, 1<<20)
	keys := make([]string, 4096)
	for i := range keys {
		keys[i] = fmt.Sprintf("user-%d", i)
	}
	now := int64(time.Second)
	for i := 0; b.Loop(); i++ {
		table.take(now+int64(i)*100, keys[i%len(keys)])
	}
}
