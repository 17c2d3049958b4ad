package limit

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/ops/freeports"
	"github.com/weirhq/weir/ops/redisserver"
)

// patience bounds the waits of tests; only a failing test waits as long.
const patience = time.Minute

// shared reports whether the lease was renewed.
func (l *lease) shared() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.low > 0
}

// await polls until a condition holds.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(patience); !holds(); <-ticker.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// gateway runs global rates against a Redis until the test ends.
func gateway(t *testing.T, id int, address string) *Globals {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: address, MaxRetries: -1, DialTimeout: 100 * time.Millisecond})
	g, err := NewGlobals(GlobalConfig{Interval: 50 * time.Millisecond}, strconv.Itoa(id), client, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		done.Wait()
		client.Close()
	})
	return g
}

func TestGatewaysShareAGlobalRateThroughRedisAndDivideItWithout(t *testing.T) {
	const perSecond, gateways = 2000.0, 3
	address := freeports.Addresses(t, 1)[0]
	kill := redisserver.StartAt(t, address).Kill
	var all []*Globals
	var leases []*lease
	for id := range gateways {
		g := gateway(t, id, address)
		all = append(all, g)
		leases = append(leases, g.lease("m", Rate{PerSecond: perSecond}))
	}
	together := func() bool {
		for i, g := range all {
			if g.Away() || g.Gateways() != gateways || !leases[i].shared() {
				return false
			}
		}
		return true
	}
	await(t, "the gateways know each other", together)

	// Each asks as often as it can. One asks for far less than its part, and the others may have what it leaves.
	began := time.Now()
	var got [gateways]int
	total := func() int { return got[0] + got[1] + got[2] }
	await(t, "the gateways got two seconds' worth", func() bool {
		for i, l := range leases {
			for range 100 {
				if i == 2 && got[2] > total()/20 {
					break
				}
				if _, ok := l.take(time.Now()); ok {
					got[i]++
				}
			}
		}
		return total() >= 2*perSecond
	})
	// What Redis keeps for quiet times, and what leases hold, comes on top once.
	elapsed := time.Since(began).Seconds()
	spare := perSecond * 0.05 * 2 * (gateways + 1)
	if most := perSecond*elapsed*1.1 + spare; float64(total()) > most {
		t.Errorf("%d calls in %.2f s were let through, want at most %.0f", total(), elapsed, most)
	}
	t.Logf("let through by gateway: %v in %.2f s, %.0f a second of %.0f", got, elapsed, float64(total())/elapsed, perSecond)
	if got[0] < got[1]/3 || got[1] < got[0]/3 {
		t.Errorf("two gateways that ask for the same got %d and %d", got[0], got[1])
	}

	kill()
	await(t, "the gateways notice that Redis is away", func() bool {
		for _, g := range all {
			if !g.Away() {
				return false
			}
		}
		return true
	})
	redisserver.StartAt(t, address)
	await(t, "the gateways share again", together)
}

func TestAnEmptiedRedisGivesNothingTwice(t *testing.T) {
	address := freeports.Addresses(t, 1)[0]
	redisserver.StartAt(t, address)
	g := gateway(t, 1, address)
	l := g.lease("m", Rate{PerSecond: 100, Burst: 100})
	await(t, "there is a lease", func() bool { return l.shared() && !g.Away() })
	client := redis.NewClient(&redis.Options{Addr: address})
	t.Cleanup(func() { client.Close() })
	began := time.Now()
	got := 0
	await(t, "200 calls were let through", func() bool {
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		for ok := true; ok; {
			if _, ok = l.take(time.Now()); ok {
				got++
			}
		}
		return got >= 100 || time.Since(began) > 2*time.Second
	})
	if most := 100*time.Since(began).Seconds() + 120; float64(got) > most {
		t.Errorf("%d calls were let through in %s, want at most %.0f", got, time.Since(began), most)
	}
}

func TestGlobalRatesWithoutRedisAreDividedByWhatIsConfigured(t *testing.T) {
	g, err := NewGlobals(GlobalConfig{Gateways: 4}, "1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := g.lease("m", Rate{PerSecond: 40, Burst: 8})
	now := time.Now().Add(time.Hour)
	got := 0
	for ok := true; ok; {
		if _, ok = l.take(now); ok {
			got++
		}
	}
	if got != 2 {
		t.Errorf("a burst of %d calls was let through, want a quarter of 8", got)
	}
	wait, _ := l.take(now)
	if wait != 100*time.Millisecond {
		t.Errorf("told to wait %s, want 100ms: a quarter of 40 a second", wait)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestImpossibleGlobalsAreRefused(t *testing.T) {
	for _, config := range []GlobalConfig{{Interval: time.Millisecond}, {Gateways: -1}, {Prefix: "a b"}} {
		if _, err := NewGlobals(config, "1", nil, nil); err == nil {
			t.Errorf("%+v was accepted", config)
		}
	}
	if _, err := NewGlobals(GlobalConfig{}, "", nil, nil); err == nil {
		t.Error("a gateway without an id was accepted")
	}
}

func TestGatewaysKnowEachOtherThroughRedisAlsoWithoutARateThatTheyShare(t *testing.T) {
	address := freeports.Addresses(t, 1)[0]
	kill := redisserver.StartAt(t, address).Kill
	all := []*Globals{gateway(t, 0, address), gateway(t, 1, address), gateway(t, 2, address)}
	know := func(want int, away bool) func() bool {
		return func() bool {
			for _, g := range all {
				if g.Gateways() != want || g.Away() != away {
					return false
				}
			}
			return true
		}
	}
	await(t, "each knows of three", know(3, false))
	kill()
	await(t, "Redis is away, and each still knows of three", know(3, true))
	redisserver.StartAt(t, address)
	await(t, "Redis is back, and each knows of three", know(3, false))
}
