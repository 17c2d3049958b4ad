// Package fault makes calls that survive the fault of an upstream, each method in its own way: see Mode. Everything is bounded,
// every attempt after a call's first is paid for by the gateway's retry budget, but under Failover one in place of an upstream that got nothing of the
// call, and when Do returns, no attempt is under way.
package fault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A Policy makes the calls of one method. It may be used by any number of goroutines.
type Policy struct {
	config  Config
	options Options
	took    quantiles

	stats struct{ calls, attempts, unpaid, cut, won, swallowed, kept atomic.Uint64 }
}

// A Budget pays for attempts, or does not. Package retry has the gateway's.
type Budget interface {
	// Call is called once for each call.
	Call()
	// Take is called once for each attempt after a call's first, which is made only if it returns true.
	Take() bool
}

// Options are what a Policy needs beside its Config. Budget is required.
type Options struct {
	// Name of the method, for logs.
	Name   string
	Budget Budget
	// Random draws from 0 to 1, without 1; nil means rand.Float64. It is called by many goroutines at once.
	Random func() float64
	// Logger is told what Failsafe swallowed; nil means slog.Default().
	Logger *slog.Logger
}

// New returns a Policy.
func New(config Config, options Options) (*Policy, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("fault tolerance of %s: %w", options.Name, err)
	}
	if options.Budget == nil {
		return nil, fmt.Errorf("fault tolerance of %s: there is no budget for attempts", options.Name)
	}
	if options.Random == nil {
		options.Random = rand.Float64
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	return &Policy{config: config.WithDefaults(), options: options}, nil
}

// An Upstream is where an attempt goes, as it was picked.
type Upstream interface{ ID() string }

// A Call is what Do makes. Pick and Attempt are required, the others where they say so.
type Call[U Upstream, R any] struct {
	// Pick returns an upstream that is not among those tried. Each upstream that it returns gets one Attempt. It may be called
	// while an attempt is under way.
	Pick func(tried []string) (U, error)
	// Attempt makes the call once. It returns soon after ctx is done, since whoever waits for an answer waits for it;
	// context.Cause then says why: ErrTooSlow is a fault of the upstream, ErrLost is not. The ctx of the attempt whose result Do
	// returns lives on until that of Do ends.
	Attempt func(ctx context.Context, upstream U) Result[R]
	// Discard gets each result that Do does not return; nil means that there is nothing to give back.
	Discard func(result Result[R])
	// Replayable: making the call twice has the effect of making it once.
	Replayable bool
	// Everyone returns all upstreams, for Broadcast; each gets one Attempt.
	Everyone func() []U
	// Empty makes the answer of Failsafe for a call that failed.
	Empty func() R
	// Keep stores the call for later, durably, and makes the answer that says so, for Failback.
	Keep func(ctx context.Context) (R, error)
}

// A Result is how an attempt, or a call, ended.
type Result[R any] struct {
	Value   R
	Outcome outcome.Outcome
	// Err says what went wrong, for people; it may be set with any Outcome.
	Err error
	// Unsent: the upstream got nothing of the request, so that another one may, whatever the request does.
	Unsent bool
	// Substitute: the value was made by Empty or Keep, not by an upstream.
	Substitute bool
}

// keepTimeMax bounds Keep.
const keepTimeMax = 2 * time.Second

// Why the context of an attempt is done, as context.Cause says.
var (
	// ErrTooSlow: another upstream is tried in this one's place.
	ErrTooSlow = errors.New("the attempt took too long, and another upstream is tried")
	// ErrLost: another attempt was answered first.
	ErrLost = errors.New("another attempt was answered first")
)

// Do makes a call. An error says that no attempt was made: it is that of Pick, or ErrNobody. REQUIRES: ctx ends when the call is
// over, as that of an HTTP request does; it holds what attempts need. What an attempt panics with, Do panics with, after the
// others have ended.
func Do[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	p.stats.calls.Add(1)
	p.options.Budget.Call()
	switch p.config.Mode {
	case Failover:
		return failover(ctx, p, call)
	case Failfast:
		return once(ctx, p, call)
	case Failsafe:
		return failsafe(ctx, p, call)
	case Failback:
		return failback(ctx, p, call)
	case Forking:
		return forking(ctx, p, call)
	case Broadcast:
		return broadcast(ctx, p, call)
	case Hedging:
		return hedging(ctx, p, call)
	}
	panic("fault: " + p.config.Mode.String() + " is no mode")
}

// Stats counts what a Policy did, for metrics.
type Stats struct {
	Calls, Attempts uint64
	// Unpaid attempts were not made since the budget was empty.
	Unpaid uint64
	// Cut attempts took too long, and another upstream was tried. Won are calls that an attempt after the first answered.
	Cut, Won uint64
	// Swallowed faults were answered with an empty success; Kept calls are made later.
	Swallowed, Kept uint64
}

// Stats returns what the policy did so far.
func (p *Policy) Stats() Stats {
	s := &p.stats
	return Stats{
		Calls: s.calls.Load(), Attempts: s.attempts.Load(), Unpaid: s.unpaid.Load(), Cut: s.cut.Load(), Won: s.won.Load(),
		Swallowed: s.swallowed.Load(), Kept: s.kept.Load(),
	}
}

// pays asks the budget for an attempt after the first.
func (p *Policy) pays() bool {
	if p.options.Budget.Take() {
		return true
	}
	p.stats.unpaid.Add(1)
	return false
}

func once[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	upstream, err := call.Pick(nil)
	if err != nil {
		return Result[R]{}, err
	}
	p.stats.attempts.Add(1)
	return call.Attempt(ctx, upstream), nil
}

// failed reports whether a call shows its caller a fault, other than that the caller left.
func failed[R any](result Result[R], err error) bool {
	return err != nil || result.Outcome == outcome.Fault || result.Outcome == outcome.Overload
}

func failsafe[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	result, err := once(ctx, p, call)
	if call.Empty == nil || !failed(result, err) {
		return result, err
	}
	p.stats.swallowed.Add(1)
	why := err
	if why == nil {
		why = result.Err
		call.discard(result)
	}
	p.options.Logger.LogAttrs(ctx, slog.LevelWarn, "a fault was answered with an empty success",
		slog.String("method", p.options.Name), slog.String("outcome", result.Outcome.String()), slog.Any("error", why))
	return Result[R]{Value: call.Empty(), Outcome: outcome.Good, Err: why, Substitute: true}, nil
}

func failback[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	result, err := once(ctx, p, call)
	// What is made again later must be safe to make twice: nobody knows what came of the attempt that failed.
	if call.Keep == nil || !failed(result, err) || !call.Replayable && err == nil && !result.Unsent {
		return result, err
	}
	// The call's time may be over, that is why it failed; to keep it has a time of its own.
	keepCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeMax)
	defer cancel()
	kept, keepErr := call.Keep(keepCtx)
	if keepErr != nil {
		// The caller learns that the call failed, and why it was not kept.
		result.Err = errors.Join(result.Err, keepErr)
		if err != nil {
			err = errors.Join(err, keepErr)
		}
		return result, err
	}
	p.stats.kept.Add(1)
	if err == nil {
		call.discard(result)
		err = result.Err
	}
	return Result[R]{Value: kept, Outcome: outcome.Good, Err: err, Substitute: true}, nil
}

func (c Call[U, R]) discard(result Result[R]) {
	if c.Discard != nil {
		c.Discard(result)
	}
}

// pause waits before attempt number again (1 is the second one): any time up to the backoff, so that those who failed together
// do not come again together. It reports whether there is time for an attempt after it.
func (p *Policy) pause(ctx context.Context, again int) bool {
	limit := p.config.Backoff
	for range again - 1 {
		limit = min(2*limit, p.config.BackoffMax)
	}
	wait := time.Duration(p.options.Random() * float64(limit))
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= wait {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
