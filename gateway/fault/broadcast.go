package fault

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/weirhq/weir/gateway/outcome"
)

// ErrNobody says that a broadcast found no upstream.
var ErrNobody = errors.New("there is no upstream to broadcast to")

// A BroadcastError says that too few upstreams did their work. Those that did have done it.
type BroadcastError struct {
	Good, Wanted, Of int
	// Failed lists those that did not.
	Failed []string
}

func (e *BroadcastError) Error() string {
	return fmt.Sprintf("of %d upstreams %d did their work, %d must; failed: %s", e.Of, e.Good, e.Wanted, strings.Join(e.Failed, ", "))
}

// broadcast makes the call at every upstream, so many at once. It goes to all of them whatever the others answered: each has a
// state of its own that the call is to change.
func broadcast[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	if call.Everyone == nil {
		return Result[R]{}, fmt.Errorf("broadcast of %s: %w: the call does not say who everyone is", p.options.Name, ErrNobody)
	}
	everyone := call.Everyone()
	if len(everyone) == 0 {
		return Result[R]{}, fmt.Errorf("broadcast of %s: %w", p.options.Name, ErrNobody)
	}
	r := newRace(p, call, p.config.ParallelMax)
	ends := make([]end[R], len(everyone))
	for i, upstream := range everyone {
		if i >= p.config.ParallelMax {
			e := r.wait()
			ends[e.number] = e
		}
		r.startAt(ctx, upstream)
	}
	for r.under > 0 {
		e := r.wait()
		ends[e.number] = e
	}

	verdict := BroadcastError{Wanted: p.config.Suffices.of(len(everyone)), Of: len(everyone)}
	good, bad := -1, -1
	for i, e := range ends {
		switch {
		case e.panicked != nil:
			panic(e.panicked)
		case e.Outcome == outcome.Good:
			if verdict.Good++; good < 0 {
				good = i
			}
		default:
			verdict.Failed = append(verdict.Failed, everyone[i].ID())
			if bad < 0 || ends[bad].Outcome == outcome.Abandoned {
				bad = i
			}
		}
	}
	chosen := good
	if verdict.Good < verdict.Wanted {
		chosen = bad
		ends[bad].Err = errors.Join(&verdict, ends[bad].Err)
	}
	for i, e := range ends {
		if i != chosen {
			r.drop(e)
		}
	}
	return ends[chosen].Result, nil
}
