package limit

import (
	"context"
	_ "embed" // the scripts
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Globals are the rates that hold for all gateways together. Of each, every gateway has its part, as time passes: the rate, divided by the
// gateways that were last seen in Redis. What it has no use for it gives to the pot that all share there, and what it lacks it takes from that
// pot, ahead of the calls that will need it: no call waits for Redis.
//
// So Redis moves tokens and makes none, and each moment of a gateway's time counts once, whether it can talk to Redis or not. A Redis that dies,
// freezes, or comes back, with its memory or without, gives nobody anything, and takes no more than the pot. While it is away, each gateway holds to
// its part.
type Globals struct {
	config GlobalConfig
	logger *slog.Logger
	id     string
	client redis.UniversalClient // nil if there is no Redis
	// exchange gives to a pot and takes from it; nil if there is none.
	exchange func(ctx context.Context, name string, offer offer) (pot, error)

	mu     sync.Mutex
	leases map[string]*lease
	wake   chan struct{} // a lease runs low
	// random draws from 0 to 1, without 1.
	random func() float64

	gateways atomic.Int64
	away     atomic.Bool
	back     time.Time // Run's: since when Redis is not away, zero if it never was there
}

// GlobalConfig of Globals; what is zero has a default.
type GlobalConfig struct {
	// Interval is how long ahead tokens are taken; by default IntervalDefault.
	Interval time.Duration `yaml:"interval"`
	// Gateways is how many there are, until Redis tells; by default 1. When Redis is away it is at least this many.
	Gateways int `yaml:"gateways"`
	// Prefix begins every key in Redis; by default PrefixDefault.
	Prefix string `yaml:"prefix"`
}

// Defaults and limits of Globals.
const (
	IntervalDefault = 200 * time.Millisecond
	intervalMin     = 10 * time.Millisecond
	intervalMax     = 10 * time.Second
	PrefixDefault   = "weir"
	gatewaysMax     = 1 << 16
	// leaseTimeoutMax bounds a question to Redis.
	leaseTimeoutMax = 200 * time.Millisecond
	// awayWaitMax bounds the time between two tries while Redis is away: who is away for a moment is to be back before it is forgotten.
	awayWaitMax = 500 * time.Millisecond
	// lowWaitMin is the least time between two questions for a lease that runs low.
	lowWaitMin = 10 * time.Millisecond
	// leaseHeadroom is how much more is taken than was asked for lately.
	leaseHeadroom = 1.5
	// askedSmoothing is what is left of an interval's count in the next.
	askedSmoothing = 0.5
	// countsFor is how many intervals a gateway counts as one after it asked last.
	countsFor = 10
	// tokenSlack makes up for what is lost when parts of a token are added.
	tokenSlack = 1e-9
)

var prefixPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// Validate says what is wrong with the configuration.
func (c GlobalConfig) Validate() error {
	switch {
	case c.Interval != 0 && (c.Interval < intervalMin || c.Interval > intervalMax):
		return fmt.Errorf("global: interval is %s, want 0 (the default), or %s to %s", c.Interval, intervalMin, intervalMax)
	case c.Gateways < 0 || c.Gateways > gatewaysMax:
		return fmt.Errorf("global: gateways is %d, want 0 (the default) to %d", c.Gateways, gatewaysMax)
	case c.Prefix != "" && !prefixPattern.MatchString(c.Prefix):
		return fmt.Errorf("global: prefix %q: want 1 to 32 letters, digits, - or _", c.Prefix)
	}
	return nil
}

// NewGlobals makes global rates of a gateway; id is its own among all gateways. A nil client means that there is no Redis, a nil logger
// slog.Default. Until Run has asked Redis for the first time, Redis counts as away.
func NewGlobals(config GlobalConfig, id string, client redis.UniversalClient, logger *slog.Logger) (*Globals, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if id == "" {
		return nil, errors.New("global: the gateway has no id")
	}
	orDefault(&config.Interval, IntervalDefault)
	orDefault(&config.Gateways, 1)
	orDefault(&config.Prefix, PrefixDefault)
	if logger == nil {
		logger = slog.Default()
	}
	g := &Globals{config: config, client: client, id: id, logger: logger, leases: map[string]*lease{}, wake: make(chan struct{}, 1), random: rand.Float64}
	if client != nil {
		g.exchange = g.exchangeInRedis
	}
	g.gateways.Store(int64(config.Gateways))
	g.away.Store(true)
	return g, nil
}

// Away reports whether Redis is away, and the rates are divided.
func (g *Globals) Away() bool { return g.away.Load() }

// Gateways returns how many gateways there are, as far as is known.
func (g *Globals) Gateways() int { return int(g.gateways.Load()) }

// A lease is what this gateway has of one global rate.
type lease struct {
	globals *Globals
	name    string
	rate    Rate

	mu sync.Mutex
	// held are tokens at hand, each for one call. The gateway's part is among them up to the time of counted.
	held    float64
	counted time.Time
	// target is what it tries to have at hand, and low the mark below which it asks for more.
	target, low float64
	// asked are the calls since measured, and asks how many come in a second.
	asked    int
	asks     float64
	measured time.Time
	// ratio of what all ask for to the rate.
	ratio float64
}

// lease returns the lease of a rate. Globals may be nil: then the rate is the gateway's alone.
func (g *Globals) lease(name string, rate Rate) *lease {
	if g == nil {
		return newLease(nil, name, rate)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if known := g.leases[name]; known != nil && known.rate == rate {
		return known
	}
	made := newLease(g, name, rate)
	g.leases[name] = made
	return made
}

// newLease returns a lease with which one call can be made, or a burst if nobody shares the rate: others may have had theirs a moment ago.
func newLease(g *Globals, name string, rate Rate) *lease {
	l := &lease{globals: g, name: name, rate: rate, held: 1, counted: time.Now()}
	if g == nil || g.exchange == nil {
		_, l.held = l.part()
	}
	return l
}

// keepOnly forgets the leases that a configuration has no more.
func (g *Globals) keepOnly(config Config) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name := range g.leases {
		if config.Methods[name].Global.PerSecond == 0 {
			delete(g.leases, name)
		}
	}
}

// part returns this gateway's part of the rate, in tokens a second, and how many of them it may save up.
func (l *lease) part() (perSecond, burst float64) {
	gateways := 1.0
	if l.globals != nil {
		gateways = float64(max(l.globals.gateways.Load(), int64(l.globals.config.Gateways)))
	}
	perSecond, burst = max(l.rate.PerSecond/gateways, perSecondMin), math.Floor(float64(l.rate.Burst)/gateways)
	if l.rate.Burst == 0 {
		burst = perSecond
	}
	return perSecond, max(burst, 1)
}

// count adds the gateway's part since it was counted last. The lock is held.
func (l *lease) count(now time.Time) {
	since := now.Sub(l.counted)
	if since <= 0 {
		return
	}
	l.counted = now
	perSecond, most := l.part()
	if l.globals != nil && !l.globals.away.Load() {
		// What is more than the target goes to the pot soon.
		most = max(most, l.target+perSecond*l.globals.renewedWithin().Seconds())
	}
	l.held += min(perSecond*since.Seconds(), max(0, most-l.held))
}

// take takes one token, or says when to come again.
func (l *lease) take(now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked++
	l.count(now)
	if l.held >= 1-tokenSlack {
		l.held--
		ok = true
	}
	sharing := l.globals != nil && !l.globals.away.Load()
	if sharing && l.held < l.low {
		select {
		case l.globals.wake <- struct{}{}:
		default:
		}
	}
	if ok {
		return 0, true
	}
	perSecond, _ := l.part()
	// As long as all gateways' rate takes for what is asked in a second: whoever comes again then finds as many who do.
	after := max(1-l.held, l.ratio*perSecond) / perSecond
	if sharing {
		after = max(after, l.globals.config.Interval.Seconds())
	}
	return time.Duration(min(after, retryAfterMax.Seconds()) * float64(time.Second)), false
}

// giveBack returns a token that was not needed after all.
func (l *lease) giveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held++
}

// renewedWithin is how long it takes at most until a lease is renewed, or Redis is known to be away.
func (g *Globals) renewedWithin() time.Duration { return 2*g.config.Interval + leaseTimeoutMax }

// settlesWithin is how long it takes at most until every gateway has noticed that Redis is back, and has been heard of there.
func (g *Globals) settlesWithin() time.Duration {
	return countsFor*g.config.Interval + awayWaitMax + 2*leaseTimeoutMax
}

// Run takes leases until ctx ends, which is no error. It is called once.
func (g *Globals) Run(ctx context.Context) error {
	if g.exchange == nil {
		<-ctx.Done()
		return nil
	}
	defer g.leave(ctx)
	failures := 0
	for {
		var wait time.Duration
		err := g.renew(ctx)
		if ctx.Err() != nil {
			return nil // The end of ctx is no error.
		}
		if err != nil {
			if !g.away.Swap(true) || failures == 0 {
				g.logger.Warn("global rates are divided by the gateways: Redis is away", "gateways", g.gateways.Load(), "error", err)
			}
			wait = min(g.config.Interval<<min(failures, 10), awayWaitMax)
			failures++
		} else {
			if g.away.Swap(false) {
				g.logger.Info("global rates are shared through Redis", "gateways", g.gateways.Load())
			}
			wait, failures = g.config.Interval, 0
		}
		wait -= time.Duration(g.random() * float64(wait/4))
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-g.wakeWhen(failures == 0):
			timer.Stop()
			rest := time.NewTimer(lowWaitMin)
			select {
			case <-rest.C:
			case <-ctx.Done():
				rest.Stop()
				return nil
			}
		}
	}
}

// wakeWhen returns the channel on which leases ask for more, or one that says nothing.
func (g *Globals) wakeWhen(asking bool) <-chan struct{} {
	if asking {
		return g.wake
	}
	return nil
}

// renew renews every lease.
func (g *Globals) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTimeoutMax)
	defer cancel()
	leases := g.all()
	// What a Redis that lost its memory, or was not to be reached, has not heard yet of other gateways is no news of them.
	away, first := g.away.Load(), g.back.IsZero()
	holds := away || time.Since(g.back) < g.settlesWithin()
	gateways := int64(0)
	if len(leases) == 0 && g.client != nil {
		count, err := g.beThere(ctx)
		if err != nil {
			return err
		}
		if gateways = count; holds {
			gateways = max(gateways, g.gateways.Load())
		}
	}
	for _, l := range leases {
		told, err := l.renew(ctx, away)
		if err != nil {
			return fmt.Errorf("take a lease of %s: %w", l.name, err)
		}
		known := int64(told.gateways)
		if holds || told.young {
			known = max(known, g.gateways.Load())
		}
		gateways = max(gateways, known)
		if told.joined && (first || !holds) && !told.young && told.gateways > 1 {
			l.countFrom(time.Now().Add(g.config.Interval)) // Until then the others have heard, and each has less.
		}
	}
	if gateways > 0 {
		g.gateways.Store(gateways)
	}
	if away {
		g.back = time.Now()
	}
	return nil
}

// beThere counts this gateway among those that share Redis, which leases do otherwise, and returns how many there are: waiting rooms need to know.
func (g *Globals) beThere(ctx context.Context) (count int64, err error) {
	count, err = gatewaysScript.Run(ctx, g.client, []string{g.gatewaysKey()}, g.id, (g.config.Interval * countsFor).Milliseconds()).Int64()
	if err != nil {
		return 0, fmt.Errorf("count the gateways: %w", err)
	}
	return max(1, count), nil
}

// all returns the leases.
func (g *Globals) all() []*lease {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Values(g.leases))
}

// countFrom lets the gateway's part begin at a time. What there is by now stays.
func (l *lease) countFrom(start time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(time.Now())
	l.counted = start
}

// renew brings a lease to its target. If there is no answer, what was given is gone: it may be in the pot.
func (l *lease) renew(ctx context.Context, away bool) (pot, error) {
	offer := l.offer(time.Now(), away)
	told, err := l.globals.exchange(ctx, l.name, offer)
	if err != nil {
		return pot{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held += told.granted
	l.low = l.target / 4
	l.ratio = l.asks * float64(told.gateways) / l.rate.PerSecond
	return told, nil
}

// offer says what to give to the pot, which is at hand no more, or to take from it.
func (l *lease) offer(now time.Time, away bool) offer {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count(now)
	interval := l.globals.config.Interval.Seconds()
	perSecond, _ := l.part()
	if elapsed := now.Sub(l.measured).Seconds(); l.measured.IsZero() || elapsed > 0.5*interval {
		asks := float64(l.asked)
		if !l.measured.IsZero() {
			asks /= elapsed
		}
		l.asks = l.asks*askedSmoothing + asks*(1-askedSmoothing)
		l.asked, l.measured = 0, now
		l.ratio = l.asks / perSecond
	}
	// Never less than this gateway's part, so that the first calls after a quiet time find some.
	l.target = min(max(interval*max(l.asks*leaseHeadroom, perSecond), 1), l.rate.PerSecond*interval*2+1)
	offer := offer{
		Rate: l.rate.PerSecond, Most: max(l.rate.PerSecond*interval*2, float64(l.rate.Burst), 1),
		Want: max(0, l.target-l.held), Asks: l.asks,
	}
	if !away { // What is saved up meanwhile would be gone with each try.
		offer.Give = max(0, l.held-l.target)
		l.held -= offer.Give
	}
	return offer
}

// An offer is what a gateway gives to a pot, and wants of it, in tokens.
type offer struct {
	Give, Want float64
	// Asks is how many calls a second come to this gateway. Rate is that of all together, and Most what the pot holds at most.
	Asks, Rate, Most float64
}

// A pot is what all gateways have of one rate together, and nobody has use for; here as one of them is told of it.
type pot struct {
	granted  float64
	gateways int
	// joined says that this gateway did not count before, and young that the pot is new: then there may be gateways that it has not heard of yet.
	joined, young bool
}

//go:embed lease.lua
var leaseSource string

//go:embed gateways.lua
var gatewaysSource string

var leaseScript, gatewaysScript = redis.NewScript(leaseSource), redis.NewScript(gatewaysSource)

// exchangeInRedis makes an offer to the pot in Redis.
func (g *Globals) exchangeInRedis(ctx context.Context, name string, offer offer) (pot, error) {
	keys := g.keys(name)
	reply, err := leaseScript.Run(ctx, g.client, keys[:], g.id, offer.Rate, offer.Most, offer.Give, offer.Want, offer.Asks,
		(g.config.Interval * countsFor).Milliseconds(), g.settlesWithin().Milliseconds()).Slice()
	if err != nil {
		return pot{}, err
	}
	if len(reply) == 4 {
		text, isText := reply[0].(string)
		granted, err := strconv.ParseFloat(text, 64)
		gateways, isCount := reply[1].(int64)
		if isText && err == nil && isCount && granted >= 0 && granted <= offer.Want+tokenSlack && gateways >= 1 && gateways <= gatewaysMax {
			return pot{granted: granted, gateways: int(gateways), joined: reply[2] == int64(1), young: reply[3] == int64(1)}, nil
		}
	}
	return pot{}, fmt.Errorf("redis answered %v to %+v", reply, offer)
}

// leave has the others divide the rates without this gateway at once.
func (g *Globals) leave(ctx context.Context) {
	if g.client == nil || g.away.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaseTimeoutMax)
	defer cancel()
	_, err := g.client.Pipelined(ctx, func(all redis.Pipeliner) error {
		all.ZRem(ctx, g.gatewaysKey(), g.id)
		for _, l := range g.all() {
			keys := g.keys(l.name)
			all.ZRem(ctx, keys[1], g.id)
			all.HDel(ctx, keys[2], g.id)
		}
		return nil
	})
	if err != nil { // It is forgotten soon by itself.
		g.logger.Debug("this gateway still counts among those that share rates", "error", err)
	}
}

// gatewaysKey names the key of the gateways that share no rate.
func (g *Globals) gatewaysKey() string { return g.config.Prefix + ":limit:gateways" }

// keys names the keys of one rate: the pot, the gateways, and what each is asked for. The braces put all of them on one server of a cluster.
func (g *Globals) keys(name string) [3]string {
	prefix := g.config.Prefix + ":limit:{" + name + "}:"
	return [3]string{prefix + "rate", prefix + "gateways", prefix + "asks"}
}
