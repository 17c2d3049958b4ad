// Package balance says which upstream gets a call. It knows upstreams by what they are said to be (weight, lanes, drained or
// not) and by what their answers showed: how long they take, whether they fail, and whether they have stopped to answer at all.
package balance

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A Balancer picks upstreams. Its methods may be called by any number of goroutines; a pick takes no lock (but that of the
// smooth round-robin) and allocates nothing.
type Balancer struct {
	config Config
	random func() uint64
	clock  func() time.Duration

	table atomic.Pointer[table]
	// compareAt is when success rates are compared next, in nanoseconds of clock.
	compareAt atomic.Int64

	// mu guards changes of the table, and with them what is ejected.
	mu sync.Mutex
	// smoothMu guards the running weights of the smooth round-robin.
	smoothMu sync.Mutex
}

// An Upstream is one node that calls may go to.
type Upstream struct {
	// ID names it; what is known of an upstream is kept for as long as Set finds its id again.
	ID string
	// Weight is its share of calls beside those of others; 0 means 1.
	Weight int
	// Lanes are those that it decides.
	Lanes []Lane
	// Draining: it gets no call as long as there is another one, save those for the lanes that it still decides.
	Draining bool
	// Started is when it began to run, from when it warms up; the zero time is long ago.
	Started time.Time
}

// A Lane is one that an upstream says it decides, and since which epoch: of two that say so, the higher epoch is right.
type Lane struct {
	Number uint32
	Epoch  uint64
}

// A Key is what of a call bears on where it goes. The zero Key is any call.
type Key struct {
	// Policy for this call; 0 means that of the Config.
	Policy Policy
	// Hash of what stays together under ConsistentHash, such as the user's id (see Hash).
	Hash uint64
	// Lane that decides the call under LaneAffinity, if HasLane.
	Lane    uint32
	HasLane bool
	// Stream: it may stay open for as long as it likes, so that its age tells nothing.
	Stream bool
	// Tried lists the upstreams that are not picked again.
	Tried []string
}

// Options are what a Balancer needs beside its Config. The zero value is right outside of tests.
type Options struct {
	// Now tells the time; nil means time.Now.
	Now func() time.Time
	// Random draws any 64 bits; nil means rand.Uint64. It is called by many goroutines at once.
	Random func() uint64
}

// New returns a Balancer that knows no upstream yet.
func New(config Config, options Options) (*Balancer, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("balancing: %w", err)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Random == nil {
		options.Random = rand.Uint64
	}
	b := &Balancer{config: config.WithDefaults(), random: options.Random}
	now, begin := options.Now, options.Now()
	b.clock = func() time.Duration { return now().Sub(begin) }
	b.table.Store(&table{begin: begin})
	b.compareAt.Store(int64(b.config.Ejection.CompareEvery))
	return b, nil
}

// ErrNoUpstream is what errors.Is finds in a *NoUpstreamError.
var ErrNoUpstream = errors.New("there is no upstream to call")

// A NoUpstreamError says that nothing was picked: either there is no upstream, or each was tried.
type NoUpstreamError struct{ Known, Tried int }

func (e *NoUpstreamError) Error() string {
	if e.Known == 0 {
		return ErrNoUpstream.Error() + ": none is registered; see whether nodes run, and whether the gateway sees their registry"
	}
	return fmt.Sprintf("%v: of %d, %d were tried", ErrNoUpstream, e.Known, e.Tried)
}

// Unwrap returns ErrNoUpstream.
func (e *NoUpstreamError) Unwrap() error { return ErrNoUpstream }

// Set says which upstreams there are. What is known of those that were there before is kept. It returns an error, and changes
// nothing, for upstreams without an id, with one id twice, with a negative weight, or too many.
func (b *Balancer) Set(upstreams []Upstream) error {
	if len(upstreams) > UpstreamsMax {
		return fmt.Errorf("there are %d upstreams; a gateway takes at most %d", len(upstreams), UpstreamsMax)
	}
	seen := make(map[string]bool, len(upstreams))
	for i, u := range upstreams {
		switch {
		case u.ID == "":
			return fmt.Errorf("upstream %d has no id", i)
		case seen[u.ID]:
			return fmt.Errorf("upstream %s is there twice", u.ID)
		case u.Weight < 0 || u.Weight > WeightMax:
			return fmt.Errorf("upstream %s has weight %d; it is between 1 and %d", u.ID, u.Weight, WeightMax)
		}
		seen[u.ID] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	before, now := b.table.Load(), b.clock()
	next := &table{begin: before.begin, owners: make(map[uint32]owner)}
	latency := before.meanLatency()
	for _, u := range upstreams {
		u.Lanes, u.Weight = slices.Clone(u.Lanes), max(1, u.Weight)
		m := &member{Upstream: u, weight: float64(u.Weight)}
		if known := before.byID(u.ID); known != nil {
			m.endpoint = known.endpoint
		} else {
			m.endpoint = newEndpoint(latency, now)
		}
		if !u.Started.IsZero() {
			m.warmFrom, m.warms = u.Started.Sub(next.begin), true
		}
		next.all = append(next.all, m)
		for _, lane := range u.Lanes {
			if o, taken := next.owners[lane.Number]; !taken || lane.Epoch > o.epoch {
				next.owners[lane.Number] = owner{m, lane.Epoch}
			}
		}
	}
	// What a redirect taught holds until the registry knows as much.
	for lane, o := range before.owners {
		if m := next.byID(o.ID); m != nil && o.epoch > next.owners[lane].epoch {
			next.owners[lane] = owner{m, o.epoch}
		}
	}
	next.ring = newRing(next.serving(), b.config.VirtualNodes)
	b.store(next)
	return nil
}

// Pick chooses an upstream for a call. Error: *NoUpstreamError.
func (b *Balancer) Pick(key Key) (Pick, error) {
	now := b.clock()
	t := b.table.Load()
	if now >= t.returnAt {
		t = b.readmit(now)
	}
	policy := key.Policy
	if policy == 0 {
		policy = b.config.Policy
	}
	// One that is about to be picked although it hangs is ejected, and another one is picked: each time one fewer is left.
	for range len(t.all) + 1 {
		m := b.choose(t, policy, key, now)
		if m == nil {
			return Pick{}, &NoUpstreamError{Known: len(t.all), Tried: len(key.Tried)}
		}
		if !t.panics && b.frozen(m, now) && b.eject(m, Frozen, now) {
			t = b.table.Load()
			continue
		}
		return b.take(m, key, now), nil
	}
	return Pick{}, &NoUpstreamError{Known: len(t.all), Tried: len(key.Tried)}
}

func (b *Balancer) take(m *member, key Key, now time.Duration) Pick {
	p := Pick{balancer: b, member: m, lane: key.Lane, hasLane: key.HasLane, stream: key.Stream}
	m.inFlight.Add(1)
	m.picks.Add(1)
	if m.probation.Load() {
		m.trials.Add(1)
		p.trial = true
	}
	if !p.stream {
		// Before it counts: nobody is to see that it waits, and since when the one before it did.
		if m.waiting.Load() == 0 {
			m.waitingSince.Store(int64(now))
		}
		m.waiting.Add(1)
	}
	return p
}

// A Pick is one call's upstream. Done is called once for each.
type Pick struct {
	balancer *Balancer
	member   *member
	lane     uint32
	hasLane  bool
	stream   bool
	// trial: it is one of the few calls that an upstream gets when it comes back.
	trial      bool
	redirected bool
}

// ID returns the upstream's id.
func (p Pick) ID() string { return p.member.ID }

// Owns reports whether it is for the upstream to decide the call's lane, as far as is known now.
func (p Pick) Owns() bool {
	return p.hasLane && p.balancer.table.Load().owners[p.lane].is(p.member)
}

// Undecided reports whether nobody decides a lane who answers, as far as is known: the upstream that does is ejected, or has not answered since
// it came back, or says nothing to those that wait; or it has gone, and nobody says that the lane is its own.
func (b *Balancer) Undecided(lane uint32) bool {
	m := b.table.Load().owners[lane].member
	if m == nil || m.ejected.Load() || m.probation.Load() {
		return true
	}
	e := b.config.Ejection
	return m.waiting.Load() >= int64(e.FrozenCalls) && m.silence(b.clock()) >= e.FrozenAfter/silenceShare
}

// Done says how the call ended and how long it took. A call that was not made is Abandoned, after 0.
func (p Pick) Done(result outcome.Outcome, took time.Duration) {
	b, m, now := p.balancer, p.member, p.balancer.clock()
	m.inFlight.Add(-1)
	answered := result == outcome.Good || result == outcome.Overload
	if !p.stream {
		m.waiting.Add(-1)
		if answered {
			m.waitingSince.Store(int64(now))
		}
		if answered && m.probation.Load() {
			m.latencyIs(took, now) // What it took before it failed or hung says nothing any more.
		} else {
			b.observe(m.endpoint, result, took, now)
		}
	}
	switch result {
	case outcome.Good, outcome.Overload:
		m.good.Add(1)
		m.faultsInRow.Store(0)
		if m.probation.Load() && m.probation.CompareAndSwap(true, false) {
			m.returned.Store(int64(now)) // From here on it warms up.
		}
	case outcome.Fault:
		m.faults.Add(1)
		inRow := m.faultsInRow.Add(1)
		if p.trial && m.probation.Load() || inRow >= int64(b.config.Ejection.FaultsInRow) {
			b.eject(m, FaultsInRow, now)
		}
	case outcome.Abandoned:
		if p.trial {
			m.trials.Add(-1)
		}
	}
	if due := b.compareAt.Load(); int64(now) >= due && b.compareAt.CompareAndSwap(due, int64(now+b.config.Ejection.CompareEvery)) {
		b.compare(now)
	}
}

// ErrRedirected says that a call was sent on once already: who decides its lane is moving, and the caller tries again later.
var ErrRedirected = errors.New("the call was redirected once already")

// Redirect ends a pick whose upstream said that another one decides the lane, since that epoch, and picks the other one for the
// same call. It remembers what it was told until Set knows of as new an epoch. A call is redirected once: errors are
// ErrRedirected, and *NoUpstreamError for an upstream that is not known. The pick is done in any case.
func (p Pick) Redirect(owner string, epoch uint64, took time.Duration) (Pick, error) {
	p.Done(outcome.Good, took)
	if p.redirected {
		return Pick{}, ErrRedirected
	}
	b := p.balancer
	t := b.table.Load()
	m := t.byID(owner)
	if m == nil {
		return Pick{}, &NoUpstreamError{Known: len(t.all), Tried: 1}
	}
	if p.hasLane && epoch > t.owners[p.lane].epoch {
		b.learn(p.lane, m.ID, epoch)
	}
	next := b.take(m, Key{Lane: p.lane, HasLane: p.hasLane, Stream: p.stream}, b.clock())
	next.redirected = true
	return next, nil
}

// learn notes who decides a lane.
func (b *Balancer) learn(lane uint32, id string, epoch uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.table.Load()
	m := t.byID(id)
	if m == nil || epoch <= t.owners[lane].epoch || len(t.owners) >= lanesMax && t.owners[lane].member == nil {
		return
	}
	next := *t
	next.owners = make(map[uint32]owner, len(t.owners)+1)
	for l, o := range t.owners {
		next.owners[l] = o
	}
	next.owners[lane] = owner{m, epoch}
	b.table.Store(&next)
}

// A table is what a Balancer knows at one moment. It is swapped as a whole and never changed; endpoints change within it.
type table struct {
	begin time.Time
	all   []*member
	// ready are the members that calls go to: not draining, not ejected. If too few of those that do not drain are healthy,
	// panics is true and ready has all of them.
	ready  []*member
	panics bool
	// returnAt is when the next ejection ends.
	returnAt time.Duration
	owners   map[uint32]owner
	ring     ring
}

// A member is an upstream of one table.
type member struct {
	Upstream
	*endpoint
	weight float64
	// warmFrom is when its process began, if warms.
	warmFrom time.Duration
	warms    bool
}

type owner struct {
	*member
	epoch uint64
}

// is reports whether it is a member, of whichever table.
func (o owner) is(m *member) bool { return o.member != nil && o.endpoint == m.endpoint }

func (t *table) byID(id string) *member {
	for _, m := range t.all {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// serving returns the members that do not drain; if all drain, all of them: a drained node still answers better than none.
func (t *table) serving() []*member {
	serving := make([]*member, 0, len(t.all))
	for _, m := range t.all {
		if !m.Draining {
			serving = append(serving, m)
		}
	}
	if len(serving) == 0 {
		return t.all
	}
	return serving
}

// A Status is what is known of an upstream, for people and metrics.
type Status struct {
	ID       string
	Draining bool
	// Share of its weight that it has, while it warms up.
	Share float64
	// InFlight calls, streams among them.
	InFlight int64
	// Latency is what it is expected to take.
	Latency time.Duration
	// Ejected says that it gets no calls, for how much longer, and why the last time. Trial: it gets few, to see whether it is back.
	Ejected    bool
	EjectedFor time.Duration
	Reason     Reason
	Trial      bool
	// Picks, Ejections count since it came.
	Picks     uint64
	Ejections uint64
}

// Statuses returns what is known of all upstreams, in the order of Set, and whether so few are healthy that calls go to all.
func (b *Balancer) Statuses() (statuses []Status, panics bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, now := b.table.Load(), b.clock()
	for _, m := range t.all {
		s := Status{
			ID: m.ID, Draining: m.Draining, Share: b.warmth(m, now), InFlight: m.inFlight.Load(), Latency: m.expected(now, b.config.DecayTime),
			Ejected: m.ejectedUntil != 0, Reason: m.reason, Trial: m.probation.Load(), Picks: m.picks.Load(), Ejections: m.ejections,
		}
		if s.Ejected {
			s.EjectedFor = max(0, m.ejectedUntil-now)
		}
		statuses = append(statuses, s)
	}
	return statuses, t.panics
}
