package payments

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"time"

	"github.com/weirhq/weir/domain"
)

// BreakerLimits say when a provider is not called for a while, and for how long. A zero field means its default.
type BreakerLimits struct {
	// FailuresInRowMax calls that fail one after the other open the breaker; 0 means 5.
	FailuresInRowMax int
	// Of the last WindowCalls calls (at most 64; 0 means 20), FailuresInWindowMax that fail open it (0 means 10): a
	// provider that answers every other call is failing as well.
	WindowCalls, FailuresInWindowMax int
	// OpenTimeMin is how long it stays open at first (0 means 1 s). It doubles each time that a probe fails, up to
	// OpenTimeMax (0 means 1 min).
	OpenTimeMin, OpenTimeMax time.Duration
	// ProbeTimeMax is how long a probe may take before another one is let through; 0 means 30 s. It is longer than a call.
	ProbeTimeMax time.Duration
}

// windowCallsMax is how many calls fit into a breaker's window: one bit each.
const windowCallsMax = 64

// WithDefaults fills in the fields that are zero.
func (l BreakerLimits) WithDefaults() BreakerLimits {
	setDefault(&l.FailuresInRowMax, 5)
	setDefault(&l.WindowCalls, 20)
	setDefault(&l.FailuresInWindowMax, 10)
	setDefault(&l.OpenTimeMin, time.Second)
	setDefault(&l.OpenTimeMax, time.Minute)
	setDefault(&l.ProbeTimeMax, 30*time.Second)
	return l
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate returns an error that says which limit is not one.
func (l BreakerLimits) Validate() error {
	l = l.WithDefaults()
	switch {
	case l.FailuresInRowMax < 1:
		return errors.New("limit FailuresInRowMax is negative")
	case l.WindowCalls < 1 || l.WindowCalls > windowCallsMax:
		return fmt.Errorf("limit WindowCalls is not between 1 and %d", windowCallsMax)
	case l.FailuresInWindowMax < 1 || l.FailuresInWindowMax > l.WindowCalls:
		return errors.New("limit FailuresInWindowMax is not between 1 and WindowCalls")
	case l.OpenTimeMin < 0 || l.OpenTimeMax < l.OpenTimeMin:
		return errors.New("limit OpenTimeMax is below OpenTimeMin, or that is negative")
	case l.ProbeTimeMax < 0:
		return errors.New("limit ProbeTimeMax is negative")
	}
	return nil
}

// A BreakerState says what a breaker does with calls.
type BreakerState uint8

// The states of a breaker.
const (
	// BreakerClosed: calls go through.
	BreakerClosed BreakerState = iota
	// BreakerOpen: calls are refused until the time is over.
	BreakerOpen
	// BreakerHalfOpen: one call at a time goes through, to see whether the provider answers again.
	BreakerHalfOpen
)

// String returns the state's name.
func (s BreakerState) String() string {
	switch s {
	case BreakerClosed:
		return "closed"
	case BreakerOpen:
		return "open"
	case BreakerHalfOpen:
		return "half-open"
	}
	return fmt.Sprintf("BreakerState(%d)", uint8(s))
}

// A CallResult is what a breaker learns from a call.
type CallResult uint8

// The results of a call.
const (
	// CallAnswered: the provider answered, whatever it said.
	CallAnswered CallResult = iota + 1
	// CallFailed: it did not answer, not in time, or with a fault of its own.
	CallFailed
	// CallAbandoned: whoever called left before the answer. It says nothing about the provider.
	CallAbandoned
)

// A Ticket is the leave to make one call.
type Ticket struct {
	// era counts the changes of state: what a call of an earlier era learnt is out of date.
	era uint64
}

// A Breaker decides whether a provider is called. It is a value: time comes in, a changed breaker goes out. The zero
// Breaker is closed. Every call is admitted first, and settled with its ticket when it is done.
//
//	closed ── failures in a row, or in the window ──> open ── time is over, next call ──> half-open
//	   ^                                               ^ ───────── the probe fails ─────────┤
//	   └──────────────────────────── the probe is answered ─────────────────────────────────┘
type Breaker struct {
	state BreakerState
	era   uint64
	// failuresInRow and history belong to the closed state; history has a bit for each call, 1 for one that failed, the
	// newest lowest.
	failuresInRow int
	history       uint64
	// until is when an open breaker lets a probe through, or when a half-open one gives its probe up.
	until time.Time
	// probing: a half-open breaker waits for its probe.
	probing bool
	// openTime is how long it is, or was, open.
	openTime time.Duration
}

// State returns what the breaker did with the last call. An open one whose time is over is still open until the next call.
func (b Breaker) State() BreakerState { return b.state }

// Admit decides about one call. Refused, it says when to ask again. REQUIRES: limits with defaults.
func (b Breaker) Admit(limits BreakerLimits, now time.Time) (_ Breaker, ticket Ticket, retryAfter time.Duration, admitted bool) {
	switch b.state {
	case BreakerClosed:
		return b, Ticket{era: b.era}, 0, true
	case BreakerOpen:
		if now.Before(b.until) {
			return b, Ticket{}, b.until.Sub(now), false
		}
		b.state, b.probing = BreakerHalfOpen, false
	case BreakerHalfOpen:
		if b.probing && now.Before(b.until) {
			return b, Ticket{}, min(limits.OpenTimeMin, b.until.Sub(now)), false
		}
	}
	b.era++ // A probe that was given up does not count any more.
	b.probing, b.until = true, now.Add(limits.ProbeTimeMax)
	return b, Ticket{era: b.era}, 0, true
}

// Settle takes in the result of an admitted call. REQUIRES: limits with defaults.
func (b Breaker) Settle(limits BreakerLimits, now time.Time, ticket Ticket, result CallResult) Breaker {
	if ticket.era != b.era {
		return b
	}
	switch b.state {
	case BreakerClosed:
		switch result {
		case CallAnswered:
			b.failuresInRow, b.history = 0, b.history<<1
		case CallFailed:
			b.failuresInRow, b.history = b.failuresInRow+1, b.history<<1|1
		case CallAbandoned:
			return b
		}
		window := ^uint64(0) >> (windowCallsMax - limits.WindowCalls)
		if b.failuresInRow >= limits.FailuresInRowMax || bits.OnesCount64(b.history&window) >= limits.FailuresInWindowMax {
			return b.open(now, limits.OpenTimeMin)
		}
		return b
	case BreakerHalfOpen:
		switch result {
		case CallAnswered:
			return Breaker{era: b.era + 1}
		case CallFailed:
			return b.open(now, min(2*b.openTime, limits.OpenTimeMax))
		case CallAbandoned:
			b.probing = false
		}
		return b
	case BreakerOpen:
		panic("payments: a call of an open breaker settles") // Opening changes the era.
	}
	panic(fmt.Sprintf("payments: a breaker in state %d", b.state))
}

func (b Breaker) open(now time.Time, openTime time.Duration) Breaker {
	return Breaker{state: BreakerOpen, era: b.era + 1, until: now.Add(openTime), openTime: openTime}
}

// BreakerOpenError says that a provider was not called, because it is failing. Nothing happened; try again later.
type BreakerOpenError struct {
	Provider   string
	RetryAfter time.Duration
}

func (e *BreakerOpenError) Error() string {
	return fmt.Sprintf("%s: %v; try again in %s", e.Provider, ErrBreakerOpen, e.RetryAfter)
}

// Unwrap returns ErrBreakerOpen.
func (e *BreakerOpenError) Unwrap() error { return ErrBreakerOpen }

// A Guarded is a provider behind a breaker.
type Guarded struct {
	provider Provider
	limits   BreakerLimits
	now      func() time.Time

	mu      sync.Mutex
	breaker Breaker
}

// Guard puts a breaker in front of a provider. now tells the time; time.Now if nil.
func Guard(provider Provider, limits BreakerLimits, now func() time.Time) (*Guarded, error) {
	if provider == nil {
		return nil, errors.New("a breaker needs a provider")
	}
	if err := limits.Validate(); err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	return &Guarded{provider: provider, limits: limits.WithDefaults(), now: now}, nil
}

// State says what the breaker does with calls, for metrics and the console.
func (g *Guarded) State() BreakerState {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.breaker.State()
}

// Name returns the provider's name.
func (g *Guarded) Name() string { return g.provider.Name() }

// Authorize implements Provider.
func (g *Guarded) Authorize(ctx context.Context, charge Charge) (Status, error) {
	return guarded(g, func() (Status, error) { return g.provider.Authorize(ctx, charge) })
}

// Capture implements Provider.
func (g *Guarded) Capture(ctx context.Context, charge Charge, amount domain.Money) (Status, error) {
	return guarded(g, func() (Status, error) { return g.provider.Capture(ctx, charge, amount) })
}

// Void implements Provider.
func (g *Guarded) Void(ctx context.Context, charge Charge) (Status, error) {
	return guarded(g, func() (Status, error) { return g.provider.Void(ctx, charge) })
}

// Refund implements Provider.
func (g *Guarded) Refund(ctx context.Context, charge Charge, refund Refund) (RefundStatus, error) {
	return guarded(g, func() (RefundStatus, error) { return g.provider.Refund(ctx, charge, refund) })
}

// Lookup implements Provider.
func (g *Guarded) Lookup(ctx context.Context, charge Charge) (Status, error) {
	return guarded(g, func() (Status, error) { return g.provider.Lookup(ctx, charge) })
}

func guarded[T any](g *Guarded, call func() (T, error)) (result T, err error) {
	ticket, err := g.admit()
	if err != nil {
		return result, err
	}
	learnt := CallFailed // What a panic leaves.
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.breaker = g.breaker.Settle(g.limits, g.now(), ticket, learnt)
	}()
	result, err = call()
	learnt = resultOf(err)
	return result, err
}

func (g *Guarded) admit() (Ticket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	breaker, ticket, retryAfter, admitted := g.breaker.Admit(g.limits, g.now())
	g.breaker = breaker
	if !admitted {
		return ticket, &BreakerOpenError{Provider: g.provider.Name(), RetryAfter: retryAfter}
	}
	return ticket, nil
}

// resultOf says what an error tells about the provider. One that rejects a payment answers; one that rejects our
// credentials would reject every payment.
func resultOf(err error) CallResult {
	var rejected *RejectedError
	switch {
	case err == nil:
		return CallAnswered
	case errors.As(err, &rejected):
		if rejected.Code == CodeCredentials {
			return CallFailed
		}
		return CallAnswered
	case errors.Is(err, context.Canceled):
		return CallAbandoned
	}
	return CallFailed
}
