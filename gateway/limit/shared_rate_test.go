package limit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/ops/freeports"
	"github.com/weirhq/weir/ops/redisserver"
)

// pots are what Redis keeps, as lease.lua does it, with faults. They are used in a synctest bubble, and from it alone.
type pots struct {
	mu sync.Mutex
	// down answers nobody, at once; frozen answers nobody until the caller gives up; deaf are the gateways that are not answered; lossy does what
	// is asked and loses the answer.
	down, frozen, lossy bool
	deaf                map[string]bool

	tokens float64
	born   time.Time
	until  map[string]time.Time
	asks   map[string]float64
}

func newPots() *pots {
	p := &pots{deaf: map[string]bool{}}
	p.forget()
	return p
}

// forget is what a Redis that is killed does.
func (p *pots) forget() {
	p.tokens, p.born, p.until, p.asks = 0, time.Time{}, map[string]time.Time{}, map[string]float64{}
}

var errRedisAway = errors.New("redis is away")

func (p *pots) exchange(ctx context.Context, g *Globals, offer offer) (pot, error) {
	p.mu.Lock()
	down, frozen, lossy := p.down || p.deaf[g.id], p.frozen, p.lossy
	var told pot
	if !down && !frozen {
		told = p.do(g, offer)
	}
	p.mu.Unlock()
	if frozen || lossy {
		<-ctx.Done()
		return pot{}, ctx.Err()
	}
	if down {
		return pot{}, errRedisAway
	}
	return told, nil
}

// do is lease.lua.
func (p *pots) do(g *Globals, offer offer) pot {
	now := time.Now()
	_, known := p.until[g.id]
	p.until[g.id] = now.Add(g.config.Interval * countsFor)
	for id, until := range p.until {
		if !until.After(now) {
			delete(p.until, id)
			delete(p.asks, id)
		}
	}
	p.asks[g.id] = offer.Asks
	total := 0.0
	for _, asks := range p.asks {
		total += asks
	}
	if p.born.IsZero() {
		p.born = now
	}
	p.tokens = min(offer.Most, p.tokens+offer.Give)
	grant := min(offer.Want, p.tokens)
	if total > offer.Rate {
		grant = min(grant, p.tokens*offer.Asks/total)
	}
	p.tokens -= grant
	return pot{granted: grant, gateways: len(p.until), joined: !known, young: now.Sub(p.born) < g.settlesWithin()}
}

// A fleet is gateways that share a rate, in simulated time.
type fleet struct {
	t      *testing.T
	seed   uint64
	random *rand.Rand
	rate   float64
	pots   *pots
	all    []*Globals
	leases []*lease
	// demand is how many calls a second come to each.
	demand []float64
	due    []float64
	// got is how many were let through in each tick.
	got  []int
	what []string // happened, for people
}

const tick = time.Millisecond

func newFleet(t *testing.T, seed uint64, gateways int, rate Rate) *fleet {
	f := &fleet{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 2)), rate: rate.PerSecond, pots: newPots()}
	f.demand, f.due = make([]float64, gateways), make([]float64, gateways)
	for id := range gateways {
		g, err := NewGlobals(GlobalConfig{}, strconv.Itoa(id), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		own := rand.New(rand.NewPCG(seed, uint64(10+id)))
		g.random = own.Float64
		g.exchange = func(ctx context.Context, _ string, offer offer) (pot, error) { return f.pots.exchange(ctx, g, offer) }
		f.all = append(f.all, g)
		f.leases = append(f.leases, g.lease("m", rate))
	}
	return f
}

// run starts the gateways, and returns what ends them.
func (f *fleet) run() (end func()) {
	ctx, cancel := context.WithCancel(f.t.Context())
	var running sync.WaitGroup
	for _, g := range f.all {
		running.Go(func() {
			if err := g.Run(ctx); err != nil {
				f.t.Errorf("Run: %v", err)
			}
		})
	}
	return func() {
		cancel()
		running.Wait()
	}
}

// pass asks every gateway for as much as its demand is worth, or as often as it lets through if that is infinite, for so long.
func (f *fleet) pass(what string, length time.Duration) {
	f.what = append(f.what, fmt.Sprintf("%v %s", time.Duration(len(f.got))*tick, what))
	for range length / tick {
		<-time.After(tick)
		synctest.Wait()
		got := 0
		for i, l := range f.leases {
			f.due[i] = min(f.due[i]+f.demand[i]*tick.Seconds(), f.rate)
			for ; f.due[i] >= 1; f.due[i]-- {
				if _, ok := l.take(time.Now()); ok {
					got++
				}
			}
		}
		f.got = append(f.got, got)
	}
}

// windows calls check with the calls let through in each second that begins at a tenth of one, from the given time on.
func (f *fleet) windows(from time.Duration, check func(at time.Duration, perSecond float64)) {
	for at := from; at+time.Second <= time.Duration(len(f.got))*tick; at += 100 * time.Millisecond {
		check(at, f.letThrough(at, at+time.Second))
	}
}

// letThrough is how many calls were let through in a part of the time.
func (f *fleet) letThrough(from, to time.Duration) float64 {
	sum := 0
	for _, got := range f.got[from/tick : to/tick] {
		sum += got
	}
	return float64(sum)
}

// A fault of Redis, and its end.
type redisFault struct {
	name       string
	begin, end func(p *pots)
	// longest is how long it may last without more being let through by right: a gateway that alone cannot reach Redis is forgotten by the others.
	longest time.Duration
}

func (f *fleet) faults() []redisFault {
	some := strconv.Itoa(f.random.IntN(len(f.all)))
	return []redisFault{
		{"killed", func(p *pots) { p.down = true; p.forget() }, func(p *pots) { p.down = false }, 12 * time.Second},
		{"cut off", func(p *pots) { p.down = true }, func(p *pots) { p.down = false }, 12 * time.Second},
		{"frozen", func(p *pots) { p.frozen = true }, func(p *pots) { p.frozen = false }, 12 * time.Second},
		{"losing answers", func(p *pots) { p.lossy = true }, func(p *pots) { p.lossy = false }, 12 * time.Second},
		{"emptied", func(p *pots) { p.forget() }, func(*pots) {}, 5 * time.Second},
		{"deaf for gateway " + some, func(p *pots) { p.deaf[some] = true }, func(p *pots) { clear(p.deaf) }, 1500 * time.Millisecond},
	}
}

func (p *pots) with(f func(*pots)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(p)
}

// sharedDeviation is how far from the rate the sum may be in any second, as a part of it. That calls are whole comes on top, one for each gateway.
const sharedDeviation = 0.1

func TestAGlobalRateHoldsInEverySecondWhileRedisComesAndGoes(t *testing.T) {
	seed := seedOf(t)
	for gateways := 1; gateways <= 8; gateways++ {
		t.Run(fmt.Sprintf("%d gateways", gateways), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seed := seed + uint64(gateways)
				random := rand.New(rand.NewPCG(seed, 1))
				rate := math.Round(200 * math.Pow(20, random.Float64()))
				f := newFleet(t, seed, gateways, Rate{PerSecond: rate})
				for i := range f.demand {
					f.demand[i] = rate * (1 + random.Float64())
				}
				end := f.run()
				defer end()
				f.pass("begins", 3*time.Second)
				for range 12 {
					fault := f.faults()[random.IntN(6)]
					length := time.Duration(float64(fault.longest) * math.Pow(0.01, random.Float64()))
					f.pots.with(fault.begin)
					f.pass(fault.name, length)
					f.pots.with(fault.end)
					f.pass("back", time.Duration(float64(8*time.Second)*math.Pow(0.01, random.Float64())))
				}
				slack := sharedDeviation*rate + float64(gateways)
				f.windows(2*time.Second, func(at time.Duration, perSecond float64) {
					if math.Abs(perSecond-rate) > slack {
						t.Errorf("seed %d, in the second from %v on %.0f calls were let through, want %.0f ± %.0f: %q", seed, at, perSecond, rate, slack, f.what)
					}
				})
			})
		})
	}
}

func TestWhatSomeGatewaysDoNotNeedOfAGlobalRateOthersHave(t *testing.T) {
	seed := seedOf(t)
	for gateways := 2; gateways <= 8; gateways++ {
		t.Run(fmt.Sprintf("%d gateways", gateways), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seed := seed + uint64(gateways)
				random := rand.New(rand.NewPCG(seed, 1))
				rate := math.Round(200 * math.Pow(20, random.Float64()))
				f := newFleet(t, seed, gateways, Rate{PerSecond: rate})
				demand := func() { // One is asked for more than there is.
					for i := range f.demand {
						f.demand[i] = rate / float64(gateways) * random.Float64()
					}
					f.demand[random.IntN(gateways)] = 2 * rate
				}
				end := f.run()
				defer end()
				demand()
				f.pass("begins", 3*time.Second)
				const settled = 8 * time.Second
				for range 8 {
					fault := f.faults()[random.IntN(6)]
					f.pots.with(fault.begin)
					f.pass(fault.name, time.Duration(float64(fault.longest)*math.Pow(0.01, random.Float64())))
					f.pots.with(fault.end)
					f.pass("back", settled)
					now := time.Duration(len(f.got)) * tick
					if last := f.letThrough(now-time.Second, now); math.Abs(last-rate) > sharedDeviation*rate {
						t.Errorf("seed %d, at %v, with Redis for %v, %.0f calls were let through in a second, want %.0f", seed, now, settled, last, rate)
					}
				}
				// What nobody takes for a while may come later, as far as a burst goes, which is what is allowed in a second (see Rate): while
				// Redis is away, each gateway saves up its part of one.
				most := rate
				saved := most
				for at, got := range f.got {
					saved = min(most, saved+rate*tick.Seconds()) - float64(got)
					if saved < -sharedDeviation*rate-float64(gateways) {
						t.Fatalf("seed %d, at %v %.0f calls more were let through than the rate of %.0f and all that was saved up: %q", seed, time.Duration(at)*tick, -saved, rate, f.what)
					}
				}
			})
		})
	}
}

func TestTheModelOfPotsIsWhatTheScriptDoes(t *testing.T) {
	seed := seedOf(t)
	random := rand.New(rand.NewPCG(seed, 1))
	address := freeports.Addresses(t, 1)[0]
	redisserver.StartAt(t, address)
	client := redis.NewClient(&redis.Options{Addr: address})
	t.Cleanup(func() { client.Close() })
	model := newPots()
	var all []*Globals
	for id := range 4 {
		// No time passes in the model that would count in Redis.
		g, err := NewGlobals(GlobalConfig{Interval: intervalMax}, strconv.Itoa(id), client, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, g)
	}
	for step := range 500 {
		if random.IntN(50) == 0 {
			model.forget()
			if err := client.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		g := all[random.IntN(len(all))]
		offer := offer{Rate: 100, Most: 40, Give: 20 * random.Float64(), Want: 20 * random.Float64(), Asks: 80 * random.Float64()}
		want, err := model.exchange(t.Context(), g, offer)
		if err != nil {
			t.Fatal(err)
		}
		got, err := g.exchangeInRedis(t.Context(), "m", offer)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(got.granted-want.granted) > 1e-6 || got.gateways != want.gateways || got.joined != want.joined || got.young != want.young {
			t.Fatalf("seed %d, step %d: Redis answered %+v to %+v, want %+v", seed, step, got, offer, want)
		}
	}
}

func TestAGatewayThatEndsLeavesItsPartToTheOthersAtOnce(t *testing.T) {
	address := freeports.Addresses(t, 1)[0]
	redisserver.StartAt(t, address)
	stays := gateway(t, 1, address)
	stays.lease("m", Rate{PerSecond: 100})
	client := redis.NewClient(&redis.Options{Addr: address})
	t.Cleanup(func() { client.Close() })
	// It would count for much longer than this test lasts.
	leaves, err := NewGlobals(GlobalConfig{Interval: intervalMax}, "2", client, nil)
	if err != nil {
		t.Fatal(err)
	}
	leaves.lease("m", Rate{PerSecond: 100})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = leaves.Run(ctx) })
	await(t, "both know of each other", func() bool { return stays.Gateways() == 2 && !leaves.Away() })
	cancel()
	running.Wait()
	await(t, "the one that is left knows", func() bool { return stays.Gateways() == 1 })
}
