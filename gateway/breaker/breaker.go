// Package breaker stops calls to what does not answer them: one breaker for each upstream and method. It looks at the share of
// faults, at the share of slow calls, and at calls under way that grow old, so that an upstream that hangs is noticed without
// an answer of it. What it refuses itself does not count.
//
// The breaker of api/payments is another one: its calls are few and dear, so it counts calls where this one counts time, probes
// with a single one, and stays open for longer each time. Neither rule suits the other place.
package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A Breaker decides whether one upstream is called for one method. Each call is admitted first, and its ticket is done when
// the call is. Its methods may be called by any number of goroutines.
type Breaker struct {
	key   Key
	now   func() time.Duration
	force func() Forced

	mu   sync.Mutex
	core core

	refused, opened atomic.Uint64
}

// Key names a breaker.
type Key struct{ Upstream, Method string }

// A Ticket is the leave to make one call. Done or Withdraw is called once for each.
type Ticket struct {
	breaker *Breaker // nil counts nowhere
	era     uint64
	slot    int64
	stream  bool
}

// ErrOpen is what errors.Is finds in an *OpenError.
var ErrOpen = errors.New("the circuit breaker is open")

// An OpenError says that an upstream was not called, because it is failing or because a plan says so. Nothing happened there.
type OpenError struct {
	Key
	// RetryAfter is when it may let a call through again, at the earliest.
	RetryAfter time.Duration
	// Forced says that somebody opened it by hand.
	Forced bool
}

func (e *OpenError) Error() string {
	if e.Forced {
		return fmt.Sprintf("%s is not called for %s: the circuit breaker was opened by hand; close it when it is time", e.Upstream, e.Method)
	}
	return fmt.Sprintf("%s is not called for %s: %v; try again in %s", e.Upstream, e.Method, ErrOpen, e.RetryAfter)
}

// Unwrap returns ErrOpen.
func (e *OpenError) Unwrap() error { return ErrOpen }

// Admit lets one call through, or returns an *OpenError.
func (b *Breaker) Admit() (Ticket, error) { return b.admit(false) }

// AdmitStream is Admit for a call that may stay open for as long as it likes: only how it ends counts, not how long it takes.
func (b *Breaker) AdmitStream() (Ticket, error) { return b.admit(true) }

func (b *Breaker) admit(stream bool) (Ticket, error) {
	forced := b.force()
	switch forced {
	case Disabled:
		return Ticket{}, nil
	case ForcedOpen:
		b.refused.Add(1)
		return Ticket{}, &OpenError{Key: b.key, RetryAfter: b.core.limits.OpenTime, Forced: true}
	case NotForced, ForcedClosed:
	}
	b.mu.Lock()
	before := b.core.state
	t, retryAfter, admitted := b.core.admit(b.now(), stream, forced == NotForced)
	b.count(before)
	b.mu.Unlock()
	if !admitted {
		b.refused.Add(1)
		return Ticket{}, &OpenError{Key: b.key, RetryAfter: retryAfter}
	}
	t.breaker = b
	return t, nil
}

// Done says how the call ended and how long it took. REQUIRES: it, or Withdraw, is called once for each ticket. A call that
// was admitted and not made is Abandoned.
func (t Ticket) Done(result outcome.Outcome, took time.Duration) {
	b := t.breaker
	if b == nil {
		return
	}
	mayOpen := b.force() != ForcedClosed
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.core.state
	b.core.settle(b.now(), t, result, took, mayOpen)
	b.count(before)
}

// Withdraw says, in place of Done, that the call is no news of the upstream, whatever becomes of it: that it is not answered counts no more
// either.
func (t Ticket) Withdraw() {
	b := t.breaker
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.core.withdraw(b.now(), t)
}

// count notes that the breaker has opened. REQUIRES: b.mu.
func (b *Breaker) count(before State) {
	if b.core.state == Open && before != Open {
		b.opened.Add(1)
	}
}

// A Status is what a breaker shows to people and metrics.
type Status struct {
	Key
	State  State
	Forced Forced
	// Calls, Faults and Slow are of the short window; Old calls are under way and slow already, and Unanswered were let through
	// since the last answer.
	Calls, Faults, Slow, Old, Unanswered int
	// Opened counts how often it opened, Refused the calls it did not let through.
	Opened, Refused uint64
}

// Status returns how the breaker stands. An open one whose time is over is open until the next call.
func (b *Breaker) Status() Status {
	forced := b.force()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.core.state == Closed {
		b.core.advance(b.now())
	}
	c := &b.core
	return Status{
		Key: b.key, State: c.state, Forced: forced, Calls: c.short.calls, Faults: c.short.faults, Slow: c.short.slow, Old: c.aged,
		Unanswered: c.unanswered, Opened: b.opened.Load(), Refused: b.refused.Load(),
	}
}

// A State says what a breaker does with calls.
type State uint8

// The states of a breaker.
const (
	// Closed: calls go through.
	Closed State = iota
	// Open: calls are refused until the time is over.
	Open
	// HalfOpen: some calls go through, to see whether the upstream answers again.
	HalfOpen
)

// String names the state as metrics do.
func (s State) String() string {
	switch s {
	case Closed:
		return "closed"
	case Open:
		return "open"
	case HalfOpen:
		return "half_open"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Forced is what somebody, or a plan, wants of a breaker whatever it sees.
type Forced uint8

// What a breaker may be forced to.
const (
	// NotForced: it decides by itself.
	NotForced Forced = iota
	// ForcedOpen: no call goes through.
	ForcedOpen
	// ForcedClosed: every call goes through. It goes on counting, so that it may open at once when it is not forced any more.
	ForcedClosed
	// Disabled: every call goes through and nothing is counted.
	Disabled
)

var forcedNames = [...]string{NotForced: "auto", ForcedOpen: "open", ForcedClosed: "closed", Disabled: "disabled"}

// String names it as policies and plans do.
func (f Forced) String() string {
	if int(f) < len(forcedNames) {
		return forcedNames[f]
	}
	return fmt.Sprintf("Forced(%d)", uint8(f))
}

// MarshalText implements encoding.TextMarshaler.
func (f Forced) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (f *Forced) UnmarshalText(text []byte) error {
	i := slices.Index(forcedNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("a breaker is not forced to %q; it is one of %q", text, forcedNames)
	}
	*f = Forced(i)
	return nil
}

// A Set has the breakers of all upstreams and methods. Its methods may be called by any number of goroutines.
type Set struct {
	config Config
	now    func() time.Duration
	// forced is swapped as a whole.
	forced atomic.Pointer[map[Key]Forced]

	mu       sync.RWMutex
	breakers map[Key]*Breaker
}

// AnyMethod is the method of the breaker that an upstream's methods share which are too many.
const AnyMethod = "*"

// NewSet returns a Set without a breaker: they are made as calls come. now tells the time; nil means time.Now.
func NewSet(config Config, now func() time.Time) (*Set, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("circuit breakers: %w", err)
	}
	if config.BreakersMax == 0 {
		config.BreakersMax = breakersMaxDefault
	}
	if now == nil {
		now = time.Now
	}
	begin := now()
	s := &Set{config: config, breakers: make(map[Key]*Breaker)}
	s.now = func() time.Duration { return max(0, now().Sub(begin)) }
	s.forced.Store(&map[Key]Forced{})
	return s, nil
}

// Of returns the breaker of an upstream for a method. It is the same one until Retain drops the upstream.
func (s *Set) Of(key Key) *Breaker {
	s.mu.RLock()
	b := s.breakers[key]
	s.mu.RUnlock()
	if b != nil {
		return b
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b = s.breakers[key]; b != nil {
		return b
	}
	if len(s.breakers) >= s.config.BreakersMax {
		key.Method = AnyMethod
		if b = s.breakers[key]; b != nil {
			return b
		}
	}
	b = &Breaker{key: key, now: s.now, core: newCore(s.config.of(key.Method))}
	b.force = func() Forced { return s.forcedOf(key) }
	s.breakers[key] = b
	return b
}

// Force says what breakers are forced to, in place of what was said before. An empty Upstream or Method stands for all of them;
// where several keys fit, the one that names the method counts before the one that names the upstream.
func (s *Set) Force(forced map[Key]Forced) {
	kept := make(map[Key]Forced, len(forced))
	for key, f := range forced {
		kept[key] = f
	}
	s.forced.Store(&kept)
}

func (s *Set) forcedOf(key Key) Forced {
	forced := *s.forced.Load()
	if len(forced) == 0 {
		return NotForced
	}
	for _, k := range [...]Key{key, {Method: key.Method}, {Upstream: key.Upstream}, {}} {
		if f, ok := forced[k]; ok {
			return f
		}
	}
	return NotForced
}

// Retain drops the breakers of all upstreams but these. Calls under way settle with those that were dropped.
func (s *Set) Retain(upstreams []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.breakers {
		if !slices.Contains(upstreams, key.Upstream) {
			delete(s.breakers, key)
		}
	}
}

// Statuses returns how all breakers stand, sorted by upstream and method.
func (s *Set) Statuses() []Status {
	s.mu.RLock()
	breakers := make([]*Breaker, 0, len(s.breakers))
	for _, b := range s.breakers {
		breakers = append(breakers, b)
	}
	s.mu.RUnlock()
	statuses := make([]Status, 0, len(breakers))
	for _, b := range breakers {
		statuses = append(statuses, b.Status())
	}
	slices.SortFunc(statuses, func(a, b Status) int {
		return cmp.Or(cmp.Compare(a.Upstream, b.Upstream), cmp.Compare(a.Method, b.Method))
	})
	return statuses
}
