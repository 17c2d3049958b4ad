package limit

import (
	"context"
	_ "embed" // the scripts
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Globals are the rates that hold for all gateways together. Each gateway takes a lease of tokens from Redis ahead of the calls that will
// need them, so no call waits for it. While Redis is away, each holds to its part: the rate, divided by the gateways that were last seen there.
type Globals struct {
	config GlobalConfig
	client redis.UniversalClient // nil if there is no Redis
	logger *slog.Logger
	id     string
	start  time.Time

	mu     sync.Mutex
	leases map[string]*lease
	wake   chan struct{} // a lease runs low

	gateways atomic.Int64
	away     atomic.Bool
	back     time.Time // Run's: since when Redis is not away
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
	// awayWaitMax bounds the time between two tries while Redis is away.
	awayWaitMax = 2 * time.Second
	// lowWaitMin is the least time between two questions for a lease that runs low.
	lowWaitMin = 10 * time.Millisecond
	// leaseHeadroom is how much more is taken than was asked for lately.
	leaseHeadroom = 1.5
	// askedSmoothing is what is left of an interval's count in the next.
	askedSmoothing = 0.5
	// countsFor is how many intervals a gateway counts as one after it asked last.
	countsFor = 10
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
	g := &Globals{config: config, client: client, id: id, logger: logger, start: time.Now(), leases: map[string]*lease{}, wake: make(chan struct{}, 1)}
	g.gateways.Store(int64(config.Gateways))
	g.away.Store(true)
	return g, nil
}

// Away reports whether Redis is away, and the rates are divided.
func (g *Globals) Away() bool { return g.away.Load() }

// Gateways returns how many gateways there are, as far as is known.
func (g *Globals) Gateways() int { return int(g.gateways.Load()) }

// A lease is one global rate of this gateway.
type lease struct {
	globals *Globals
	name    string
	rate    Rate

	tokens atomic.Int64
	until  atomic.Int64  // when the tokens are void, in ns since the start of globals; 0 before Redis was asked
	low    atomic.Int64  // with fewer tokens, more are asked for
	asked  atomic.Int64  // since they were counted
	ratio  atomic.Uint64 // of what all ask for to the rate, a float64
	// Run's.
	smooth    float64 // calls a second
	countedAt time.Time

	mu       sync.Mutex
	part     cell // of the divided rate
	partRate Rate
}

// lease returns the lease of a rate. Globals may be nil: then the rate is the gateway's alone.
func (g *Globals) lease(name string, rate Rate) *lease {
	if g == nil {
		return &lease{name: name, rate: rate}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if known := g.leases[name]; known != nil && known.rate == rate {
		return known
	}
	made := &lease{globals: g, name: name, rate: rate}
	g.leases[name] = made
	return made
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

// take takes one token, or says when to come again.
func (l *lease) take(now int64) (wait time.Duration, ok bool) {
	l.asked.Add(1)
	if l.globals == nil || l.globals.away.Load() || l.until.Load() == 0 {
		return l.takePart(now)
	}
	left := l.tokens.Add(-1)
	if left < l.low.Load() {
		select {
		case l.globals.wake <- struct{}{}:
		default:
		}
	}
	if left >= 0 && int64(time.Since(l.globals.start)) < l.until.Load() {
		return 0, true
	}
	l.tokens.Add(1)
	// As long as all gateways' rate takes for what is asked in a second: whoever comes again then finds as many who do.
	after := time.Duration(math.Float64frombits(l.ratio.Load()) * float64(time.Second))
	return min(max(after, l.globals.config.Interval), retryAfterMax), false
}

// giveBack returns a token that was not needed after all.
func (l *lease) giveBack() {
	if l.globals != nil && !l.globals.away.Load() {
		l.tokens.Add(1)
	}
}

// takePart takes one event of this gateway's part of the rate.
func (l *lease) takePart(now int64) (time.Duration, bool) {
	rate := l.rate
	if l.globals != nil {
		gateways := float64(max(l.globals.gateways.Load(), int64(l.globals.config.Gateways)))
		rate.PerSecond = max(rate.PerSecond/gateways, perSecondMin)
		if rate.Burst > 0 {
			rate.Burst = max(1, int(float64(rate.Burst)/gateways))
		}
	}
	interval, tolerance := rate.spacing()
	l.mu.Lock()
	defer l.mu.Unlock()
	if rate != l.partRate { // What is owed at one rate is not owed at another.
		l.partRate, l.part = rate, cell(min(int64(l.part), now+interval))
	}
	return l.part.take(now, interval, tolerance)
}

//go:embed lease.lua
var leaseSource string

//go:embed gateways.lua
var gatewaysSource string

var leaseScript, gatewaysScript = redis.NewScript(leaseSource), redis.NewScript(gatewaysSource)

// Run takes leases until ctx ends, which is no error. It is called once.
func (g *Globals) Run(ctx context.Context) error {
	if g.client == nil {
		<-ctx.Done()
		return nil
	}
	failures := 0
	for {
		var wait time.Duration
		err := g.renew(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // The end of ctx is no error.
		}
		if err != nil {
			if !g.away.Swap(true) || failures == 0 {
				g.logger.Warn("global rates are divided by the gateways: Redis is away", "gateways", g.gateways.Load(), "error", err)
			}
			wait = min(g.config.Interval<<min(failures, 10), awayWaitMax)
			failures++
		} else {
			if g.away.Swap(false) {
				g.back = time.Now()
				g.logger.Info("global rates are shared through Redis", "gateways", g.gateways.Load())
			}
			wait, failures = g.config.Interval, 0
		}
		wait -= rand.N(wait/4 + 1)
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

// renew asks Redis for more of every lease.
func (g *Globals) renew(ctx context.Context) error {
	g.mu.Lock()
	leases := make([]*lease, 0, len(g.leases))
	for _, l := range g.leases {
		leases = append(leases, l)
	}
	g.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, leaseTimeoutMax)
	defer cancel()
	if len(leases) == 0 {
		return g.beThere(ctx)
	}
	for _, l := range leases {
		if err := l.renew(ctx); err != nil {
			return fmt.Errorf("take a lease of %s: %w", l.name, err)
		}
	}
	return nil
}

// beThere counts this gateway among those that share Redis, which leases do otherwise: waiting rooms need to know how many there are.
func (g *Globals) beThere(ctx context.Context) error {
	now := time.Now()
	count, err := gatewaysScript.Run(ctx, g.client, []string{g.config.Prefix + ":limit:gateways"}, g.id, (g.config.Interval * countsFor).Milliseconds()).Int64()
	if err != nil {
		return fmt.Errorf("count the gateways: %w", err)
	}
	g.heard(now, count)
	return nil
}

// heard notes how many gateways Redis has heard of. One that just came back may not have heard of the others yet.
func (g *Globals) heard(now time.Time, gateways int64) {
	if g.away.Load() || now.Sub(g.back) < g.config.Interval*countsFor {
		gateways = max(gateways, g.gateways.Load())
	}
	g.gateways.Store(max(1, gateways))
}

// renew asks Redis for more of one lease.
func (l *lease) renew(ctx context.Context) error {
	g := l.globals
	interval := g.config.Interval.Seconds()
	now := time.Now()
	if elapsed := now.Sub(l.countedAt).Seconds(); l.countedAt.IsZero() || elapsed > 0.5*interval {
		perSecond := float64(l.asked.Swap(0))
		if !l.countedAt.IsZero() {
			perSecond /= elapsed
		}
		l.smooth = l.smooth*askedSmoothing + perSecond*(1-askedSmoothing)
		l.countedAt = now
	}
	// Never less than this gateway's part, so that the first calls after a quiet time find some.
	target := interval * max(l.smooth*leaseHeadroom, l.rate.PerSecond/float64(max(1, g.gateways.Load())))
	target = min(max(target, 1), l.rate.PerSecond*interval*2+1)
	most := max(l.rate.PerSecond*interval*2, float64(l.rate.Burst), 1)
	left := l.tokens.Load()
	if int64(now.Sub(g.start)) >= l.until.Load() {
		left = 0
	}
	want := max(0, target-float64(max(left, 0)))
	keys := []string{l.key("rate"), l.key("gateways"), l.key("asks")}
	reply, err := leaseScript.Run(ctx, g.client, keys, g.id, strconv.FormatFloat(l.rate.PerSecond, 'f', -1, 64),
		strconv.FormatFloat(most, 'f', -1, 64), strconv.FormatFloat(want, 'f', 3, 64), strconv.FormatFloat(l.smooth, 'f', 3, 64),
		(g.config.Interval * countsFor).Milliseconds()).Int64Slice()
	if err != nil {
		return err
	}
	if len(reply) != 2 || reply[0] < 0 || reply[1] < 1 {
		return fmt.Errorf("redis answered %v", reply)
	}
	g.heard(now, reply[1])
	if left == 0 {
		l.tokens.Store(reply[0]) // Void ones are gone.
	} else {
		l.tokens.Add(reply[0])
	}
	l.low.Store(int64(target / 4))
	l.until.Store(int64(time.Since(g.start) + 2*g.config.Interval + leaseTimeoutMax))
	l.ratio.Store(math.Float64bits(l.smooth * float64(g.gateways.Load()) / l.rate.PerSecond))
	return nil
}

// key names one of the lease's keys. The braces put all of them on one server of a cluster.
func (l *lease) key(what string) string {
	return l.globals.config.Prefix + ":limit:{" + l.name + "}:" + what
}
