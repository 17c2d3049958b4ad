package api

import (
	"context"
	"sync"

	"github.com/weirhq/weir/api/identity"
)

// watches counts the WatchOrder calls, and ends them when the server stops.
type watches struct {
	max, perCallerMax int

	mu       sync.Mutex
	total    int
	byCaller map[string]int
	// ending is done once the server stops.
	ending context.Context //nolint:containedctx // It stands for the server's life, not for a call's.
	end    context.CancelFunc
}

func newWatches(limits Limits) watches {
	ending, end := context.WithCancel(context.Background())
	return watches{max: limits.WatchesMax, perCallerMax: limits.WatchesPerCallerMax, byCaller: map[string]int{}, ending: ending, end: end}
}

// enter takes a place for a caller, or refuses. The context ends with the caller's token and with the server, and its
// cause is then the *fault to answer with. The caller calls leave.
func (w *watches) enter(ctx context.Context, caller *identity.Principal) (_ context.Context, leave func(), _ error) {
	if w.ending.Err() != nil {
		return nil, nil, errShuttingDown
	}
	w.mu.Lock()
	limit := 0
	switch {
	case w.total >= w.max:
		limit = w.max
	case w.byCaller[caller.Subject] >= w.perCallerMax:
		limit = w.perCallerMax
	default:
		w.total++
		w.byCaller[caller.Subject]++
	}
	w.mu.Unlock()
	if limit > 0 {
		return nil, nil, tooManyWatches(limit)
	}
	ctx, cancelExpiry := context.WithDeadlineCause(ctx, caller.Expires, unauthenticated())
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(w.ending, func() { cancel(errShuttingDown) })
	return ctx, func() {
		stop()
		cancel(nil)
		cancelExpiry()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.total--
		if w.byCaller[caller.Subject]--; w.byCaller[caller.Subject] == 0 {
			delete(w.byCaller, caller.Subject)
		}
	}, nil
}

// EndWatches ends every WatchOrder call, with an error that tells the caller to call again, and refuses new ones.
func (h *Handler) EndWatches() { h.watches.end() }
