package fault

import (
	"context"
	"sync"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// failover makes one attempt after the other, each at another upstream.
func failover[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	upstream, err := call.Pick(nil)
	if err != nil {
		return Result[R]{}, err
	}
	var tried []string
	for number := 1; ; number++ {
		tried = append(tried, upstream.ID())
		p.stats.attempts.Add(1)
		attempt := cuttable[U, R]{}
		if number < p.config.AttemptsMax && call.Replayable {
			attempt.next = func() (next U, found bool) {
				if !p.pays() {
					return next, false
				}
				// A credit that finds no upstream is spent: better one retry too few.
				next, err := call.Pick(tried)
				return next, err == nil
			}
		}
		result := attempt.run(ctx, p.config.AttemptTimeMax, call, upstream)
		if attempt.cut {
			p.stats.cut.Add(1)
			call.discard(result)
			upstream = attempt.following
			continue
		}
		if result.Outcome != outcome.Fault || number == p.config.AttemptsMax || !call.Replayable && !result.Unsent || ctx.Err() != nil {
			if number > 1 && result.Outcome == outcome.Good {
				p.stats.won.Add(1)
			}
			return result, nil
		}
		// A call that reached nobody is no load: when an upstream dies, all that was on its way there comes here at once, and the others have room.
		if !result.Unsent && !p.pays() || !p.pause(ctx, number) {
			return result, nil
		}
		if upstream, err = call.Pick(tried); err != nil {
			if result.Unsent { // Then it is as if there had been no attempt.
				call.discard(result)
				return Result[R]{}, err
			}
			return result, nil // There is no other upstream: how the attempt ended says more.
		}
		call.discard(result)
	}
}

// A cuttable attempt is ended early when it takes too long, if there is an upstream to try in its place.
type cuttable[U Upstream, R any] struct {
	// next returns that upstream, already paid for; nil means that the attempt is never cut.
	next func() (U, bool)

	mu        sync.Mutex
	ended     bool
	cut       bool
	following U
}

func (c *cuttable[U, R]) run(ctx context.Context, limit time.Duration, call Call[U, R], upstream U) Result[R] {
	if c.next == nil {
		return call.Attempt(ctx, upstream)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.ended || ctx.Err() != nil {
			return
		}
		if c.following, c.cut = c.next(); c.cut {
			cancel(ErrTooSlow)
		}
	})
	defer func() {
		// Whoever holds the lock has all but returned, so that nothing runs on after this.
		timer.Stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.ended = true
	}()
	// An answer that came while it was cut is given up as well: its context is done.
	return call.Attempt(ctx, upstream)
}
