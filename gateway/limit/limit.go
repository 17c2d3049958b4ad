// Package limit decides which calls a gateway lets through: by rate, for each client address, user and method, and over all gateways
// (see Globals); and, when more comes than upstreams serve well, by what matters most (see gate).
//
// A refusal says when to come again, as computed from the rate that it is about, and costs next to nothing: under a flood nearly everything
// is refused.
package limit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A Limiter lets calls through, or not. Its methods may be called by several goroutines.
type Limiter struct {
	start   time.Time
	globals *Globals
	rules   atomic.Pointer[rules]

	reconfiguring sync.Mutex
	refused       [kindsMax][prioritiesMax]atomic.Uint64
	admitted      [prioritiesMax]atomic.Uint64
}

// Config of a Limiter. The zero value has no rates, and adapts to what upstreams can do.
type Config struct {
	// Client bounds the calls of one client address, User those of one user, both of all methods together.
	Client Rate `yaml:"client"`
	User   Rate `yaml:"user"`
	// Methods by procedure, such as "/weir.order.v1.OrderService/PlaceOrder".
	Methods map[string]MethodConfig `yaml:"methods"`
	// TrustedProxies are addresses and prefixes of proxies whose X-Forwarded-For is believed.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// KeysMax bounds the users, and the clients, that owe something at a time and are counted each for themselves; by default KeysMaxDefault.
	// Each takes 18 bytes.
	KeysMax int `yaml:"keys_max"`
	// Concurrency is how many calls are under way at a time.
	Concurrency ConcurrencyConfig `yaml:"concurrency"`
	// ShedBelow is a priority: calls of a lower one are refused at once. The zero value refuses none.
	ShedBelow Priority `yaml:"shed_below"`
}

// MethodConfig is what one method has of its own.
type MethodConfig struct {
	// Rate bounds the method's calls through this gateway, User those of one user, and Global those through all gateways.
	Rate   Rate `yaml:"rate"`
	User   Rate `yaml:"user"`
	Global Rate `yaml:"global"`
	// Priority when not everything fits; by default that of PriorityOf.
	Priority *Priority `yaml:"priority"`
}

// Limits of a Config.
const (
	// KeysMaxDefault is what KeysMax is when it is 0.
	KeysMaxDefault = 1 << 20
	keysMaxMax     = 1 << 26
	// methodRulesMax bounds the methods with a rule of their own.
	methodRulesMax = 1024
	// shedRetryAfter is when a call that is shed by its priority should come again: nobody knows when that ends.
	shedRetryAfter = 5 * time.Second
)

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	check := func(name string, rate Rate) {
		if err := rate.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	check("client", c.Client)
	check("user", c.User)
	if len(c.Methods) > methodRulesMax {
		errs = append(errs, fmt.Errorf("%d methods, want at most %d", len(c.Methods), methodRulesMax))
	}
	for procedure, method := range c.Methods {
		if service, name, ok := strings.Cut(strings.TrimPrefix(procedure, "/"), "/"); !ok || procedure[0] != '/' || service == "" || name == "" {
			errs = append(errs, fmt.Errorf("method %q: want /PACKAGE.SERVICE/METHOD", procedure))
		}
		check(procedure+" rate", method.Rate)
		check(procedure+" user", method.User)
		check(procedure+" global", method.Global)
	}
	if _, err := ParseProxies(c.TrustedProxies); err != nil {
		errs = append(errs, err)
	}
	if c.KeysMax < 0 || c.KeysMax > keysMaxMax {
		errs = append(errs, fmt.Errorf("keys_max is %d, want 0 (the default) to %d", c.KeysMax, keysMaxMax))
	}
	if c.ShedBelow >= prioritiesMax {
		errs = append(errs, fmt.Errorf("shed_below is %s, which is none", c.ShedBelow))
	}
	errs = append(errs, c.Concurrency.Validate())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	return nil
}

// rules is a Config as calls are held to it.
type rules struct {
	config  Config
	proxies Proxies
	clients *table // nil without a limit
	users   *table
	methods map[string]*methodRules
	gate    *gate
}

type methodRules struct {
	config   MethodConfig
	priority Priority
	rate     *single // nil without a limit
	users    *table
	global   *lease
}

// A single is a rate of one thing.
type single struct {
	interval, tolerance int64
	mu                  sync.Mutex
	cell                cell
}

func newSingle(rate Rate) *single {
	s := &single{}
	s.interval, s.tolerance = rate.spacing()
	return s
}

func (s *single) take(now int64) (time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cell.take(now, s.interval, s.tolerance)
}

// New makes a limiter. globals may be nil: then global rates hold for this gateway alone.
func New(config Config, globals *Globals) (*Limiter, error) {
	l := &Limiter{start: time.Now().Add(-time.Second), globals: globals} // The time of a cell that nobody used is before now.
	if err := l.Reconfigure(config); err != nil {
		return nil, err
	}
	return l, nil
}

// Reconfigure changes the limits while calls go on. Where nothing changes, what was counted stays. An error leaves everything as it is.
func (l *Limiter) Reconfigure(config Config) error {
	if err := config.Validate(); err != nil {
		return err
	}
	orDefault(&config.KeysMax, KeysMaxDefault)
	l.reconfiguring.Lock()
	defer l.reconfiguring.Unlock()
	before := l.rules.Load()
	if before == nil {
		before = &rules{}
	}
	proxies, _ := ParseProxies(config.TrustedProxies) // It is valid.
	after := &rules{config: config, proxies: proxies, methods: map[string]*methodRules{}, gate: before.gate}
	sameKeys := before.config.KeysMax == config.KeysMax
	after.clients = keepTable(before.clients, before.config.Client, config.Client, config.KeysMax, sameKeys)
	after.users = keepTable(before.users, before.config.User, config.User, config.KeysMax, sameKeys)
	for procedure, method := range config.Methods {
		known := before.methods[procedure]
		if known == nil {
			known = &methodRules{}
		}
		ruled := &methodRules{config: method, priority: PriorityOf(procedure), rate: known.rate}
		if method.Priority != nil {
			ruled.priority = *method.Priority
		}
		switch {
		case method.Rate.PerSecond == 0:
			ruled.rate = nil
		case method.Rate != known.config.Rate:
			ruled.rate = newSingle(method.Rate)
		}
		ruled.users = keepTable(known.users, known.config.User, method.User, config.KeysMax, sameKeys)
		if method.Global.PerSecond > 0 {
			ruled.global = l.globals.lease(procedure, method.Global)
		}
		after.methods[procedure] = ruled
	}
	if before.gate == nil || before.config.Concurrency != config.Concurrency {
		after.gate = newGate(config.Concurrency, l.start.UnixNano())
	}
	l.rules.Store(after)
	if l.globals != nil {
		l.globals.keepOnly(config)
	}
	return nil
}

func keepTable(known *table, before, after Rate, keysMax int, same bool) *table {
	switch {
	case after.PerSecond == 0:
		return nil
	case known != nil && same && before == after:
		return known
	}
	return newTable(after, keysMax)
}

// A Call is what is to be let through.
type Call struct {
	// Method is the procedure, such as "/weir.order.v1.OrderService/PlaceOrder".
	Method string
	// User that the call is of; empty if it says none. Nothing here depends on it being true: who invents names gets the limits of a client.
	User string
	// Client is the address that the call comes from, as Limiter.Client says; the zero Addr has no limit.
	Client netip.Addr
	// Stream says that the call lasts for as long as its caller likes. It takes no place among those under way.
	Stream bool
}

// Client returns the address that a call comes from.
func (l *Limiter) Client(request *http.Request) netip.Addr {
	return l.rules.Load().proxies.Client(request)
}

// A Kind is a kind of limit.
type Kind uint8

// The kinds.
const (
	ByClient Kind = iota
	ByUser
	ByMethod
	ByGlobal
	ByOverload
	ByPriority
	kindsMax
)

var kindNames = [kindsMax]string{"client", "user", "method", "global", "overload", "priority"}

// String names the kind as metrics do.
func (k Kind) String() string {
	if k < kindsMax {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A RefusedError says that a call was not let through: RESOURCE_EXHAUSTED on the wire.
type RefusedError struct {
	Kind Kind
	// RetryAfter is how long to wait before the same call has a chance.
	RetryAfter time.Duration
}

func (e *RefusedError) Error() string {
	after := e.RetryAfter.Round(time.Millisecond)
	switch e.Kind {
	case ByClient:
		return fmt.Sprintf("too many calls from this address; come again in %s", after)
	case ByUser:
		return fmt.Sprintf("too many calls of this user; come again in %s", after)
	case ByMethod, ByGlobal:
		return fmt.Sprintf("too many calls of this method; come again in %s", after)
	case ByPriority:
		return fmt.Sprintf("what matters less is not served for now; come again in %s", after)
	case ByOverload, kindsMax:
	}
	return fmt.Sprintf("more is asked than can be done now; come again in %s", after)
}

// A Permit is a call that was let through. Done is called once, whatever became of it.
type Permit struct {
	limiter *Limiter
	gate    *gate // nil if the call takes no place
	method  string
	since   int64
}

// Done says how the call ended. grouped is whether the upstream that answered it says that it commits in groups: such calls may take longer before
// there are fewer of them.
func (p Permit) Done(end outcome.Outcome, grouped bool) {
	if p.gate != nil {
		p.gate.leave(p.limiter.now(), p.since, p.method, end, grouped)
	}
}

func (l *Limiter) now() int64 { return int64(time.Since(l.start)) }

// Admit lets a call through, or returns a *RefusedError, or the error of ctx if that ends while the call waits for a place. It waits no longer
// than ConcurrencyConfig.QueueWaitMax, and for nothing else: not for Redis, not for a rate.
func (l *Limiter) Admit(ctx context.Context, call Call) (Permit, error) {
	rules := l.rules.Load()
	clock := time.Now()
	now := int64(clock.Sub(l.start))
	method := rules.methods[call.Method]
	priority := PriorityOf(call.Method)
	if method != nil {
		priority = method.priority
	}
	if priority < rules.config.ShedBelow {
		return l.refuse(ByPriority, priority, shedRetryAfter)
	}
	if rules.clients != nil && call.Client.IsValid() {
		if wait, ok := rules.clients.take(now, clientKey(call.Client)); !ok {
			return l.refuse(ByClient, priority, wait)
		}
	}
	if call.User != "" {
		if rules.users != nil {
			if wait, ok := rules.users.take(now, call.User); !ok {
				return l.refuse(ByUser, priority, wait)
			}
		}
		if method != nil && method.users != nil {
			if wait, ok := method.users.take(now, call.User); !ok {
				return l.refuse(ByUser, priority, wait)
			}
		}
	}
	at := levelOf(priority, call.User, clock)
	if !rules.gate.ask(now, at) {
		return l.refuse(ByOverload, priority, rules.gate.refusal(at))
	}
	if method != nil && method.rate != nil {
		if wait, ok := method.rate.take(now); !ok {
			return l.refuse(ByMethod, priority, wait)
		}
	}
	if method != nil && method.global != nil {
		if wait, ok := method.global.take(clock); !ok {
			return l.refuse(ByGlobal, priority, wait)
		}
	}
	permit := Permit{limiter: l, method: call.Method, since: now}
	if !call.Stream {
		since, err := l.enter(ctx, rules.gate, now, at)
		if err != nil {
			if method != nil && method.global != nil {
				method.global.giveBack()
			}
			if errors.Is(err, errNoPlace) {
				return l.refuse(ByOverload, priority, rules.gate.refusal(at))
			}
			return Permit{}, err
		}
		permit.gate, permit.since = rules.gate, since
	}
	l.admitted[priority].Add(1)
	return permit, nil
}

func (l *Limiter) refuse(kind Kind, priority Priority, after time.Duration) (Permit, error) {
	l.refused[kind][priority].Add(1)
	return Permit{}, &RefusedError{Kind: kind, RetryAfter: max(after, time.Millisecond)}
}

var errNoPlace = errors.New("no place")

// enter waits for a place and returns since when the call has it.
func (l *Limiter) enter(ctx context.Context, gate *gate, now int64, at level) (since int64, err error) {
	if gate.tryEnter(now) {
		return now, nil
	}
	settled := make(chan bool, 1)
	admitted, queued := gate.enter(now, at, func(admitted bool) { settled <- admitted })
	switch {
	case admitted:
		return now, nil
	case queued == nil:
		return 0, errNoPlace
	}
	patience := time.NewTimer(queued.patience)
	defer patience.Stop()
	select {
	case admitted = <-settled:
	case <-patience.C:
		if gate.giveUp(queued, true) {
			return 0, errNoPlace
		}
		admitted = <-settled // It was settled meanwhile.
	case <-ctx.Done():
		if !gate.giveUp(queued, false) && <-settled {
			gate.leave(l.now(), now, "", outcome.Abandoned, false)
		}
		return 0, fmt.Errorf("wait for a place among the calls under way: %w", context.Cause(ctx))
	}
	if !admitted {
		return 0, errNoPlace
	}
	return l.now(), nil
}

// Stats is what a limiter did and where it stands.
type Stats struct {
	// Admitted by priority, and Refused by kind and priority, since the start.
	Admitted [prioritiesMax]uint64
	Refused  [kindsMax][prioritiesMax]uint64
	// UnderWay, Waiting and Places are calls: those let through, those that wait for a place, and how many may be under way.
	UnderWay, Waiting, Places int
	// Bar is the share of the levels, from the least priority on, that is refused at once: 0 while everything fits.
	Bar float64
	// Load is how long calls take, as a part of what they may before there are fewer of them.
	Load float64
	// Grouped is the share of methods, 0 to 1, whose upstreams say that they commit in groups; a method with both kinds counts in part. It is 1 until somebody has answered.
	Grouped float64
}

// Stats returns where the limiter stands.
func (l *Limiter) Stats() Stats {
	var s Stats
	for i := range s.Admitted {
		s.Admitted[i] = l.admitted[i].Load()
	}
	for i := range s.Refused {
		for j := range s.Refused[i] {
			s.Refused[i][j] = l.refused[i][j].Load()
		}
	}
	g := l.rules.Load().gate
	s.Bar = float64(g.bar.Load()) / float64(levelsMax)
	g.mu.Lock()
	defer g.mu.Unlock()
	s.UnderWay, s.Waiting, s.Places, s.Load = g.underWay, len(g.waiting), g.places(l.now()), g.pace.recent
	s.Grouped = g.pace.grouped()
	return s
}
