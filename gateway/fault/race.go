package fault

import (
	"context"
	"errors"
	"math/bits"
	"sync"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
)

// A race is attempts that run at once; the first good answer wins it.
type race[U Upstream, R any] struct {
	policy  *Policy
	call    Call[U, R]
	tried   []string
	cancels []context.CancelCauseFunc
	ends    chan end[R]
	under   int
}

// An end is how an attempt of a race ended.
type end[R any] struct {
	number int
	Result[R]
	panicked any
}

func newRace[U Upstream, R any](p *Policy, call Call[U, R], attemptsMax int) *race[U, R] {
	return &race[U, R]{policy: p, call: call, ends: make(chan end[R], attemptsMax)}
}

// start picks an upstream and begins an attempt there.
func (r *race[U, R]) start(ctx context.Context) error {
	upstream, err := r.call.Pick(r.tried)
	if err != nil {
		return err
	}
	r.tried = append(r.tried, upstream.ID())
	r.startAt(ctx, upstream)
	return nil
}

// another begins one more attempt, if it is paid for and there is an upstream for it.
func (r *race[U, R]) another(ctx context.Context) bool { return r.policy.pays() && r.start(ctx) == nil }

func (r *race[U, R]) startAt(ctx context.Context, upstream U) {
	ctx, cancel := context.WithCancelCause(ctx)
	number := len(r.cancels)
	r.cancels = append(r.cancels, cancel)
	r.under++
	r.policy.stats.attempts.Add(1)
	begun := time.Now()
	go func() {
		e := end[R]{number: number}
		defer func() {
			e.panicked = recover()
			r.ends <- e
		}()
		e.Result = r.call.Attempt(ctx, upstream)
		// One that lost had taken at least that long.
		if e.Outcome == outcome.Good || errors.Is(context.Cause(ctx), ErrLost) {
			r.policy.took.add(time.Since(begun))
		}
	}()
}

// finish ends all attempts but the winner, waits for them, and gives back what is not returned. Without a winner it returns the
// first attempt that tells something. held are ends that were received already.
func (r *race[U, R]) finish(held []end[R]) Result[R] {
	winner := -1
	for {
		for i, e := range held {
			if winner < 0 && e.panicked == nil && e.Outcome == outcome.Good {
				winner = i
			}
		}
		if winner >= 0 {
			for number, cancel := range r.cancels {
				if number != held[winner].number {
					cancel(ErrLost)
				}
			}
		}
		if r.under == 0 {
			break
		}
		held = append(held, r.wait())
	}
	for _, e := range held {
		if e.panicked != nil {
			panic(e.panicked)
		}
	}
	chosen := winner
	for i := 0; chosen < 0 && i < len(held); i++ {
		if held[i].Outcome != outcome.Abandoned {
			chosen = i
		}
	}
	chosen = max(chosen, 0)
	for i, e := range held {
		if i != chosen {
			r.drop(e)
		}
	}
	if winner >= 0 && held[winner].number > 0 {
		r.policy.stats.won.Add(1)
	}
	return held[chosen].Result
}

// wait returns the next end. Attempts end soon after their context is.
func (r *race[U, R]) wait() end[R] {
	e := <-r.ends
	r.under--
	return e
}

// drop gives back what is not returned.
func (r *race[U, R]) drop(e end[R]) {
	r.call.discard(e.Result)
	r.cancels[e.number](nil)
}

// forking makes several attempts at once.
func forking[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	forks := p.config.Forks
	if !call.Replayable {
		forks = 1
	}
	r := newRace(p, call, forks)
	if err := r.start(ctx); err != nil {
		return Result[R]{}, err
	}
	for range forks - 1 {
		if !r.another(ctx) {
			break // With fewer upstreams or credits it is fewer forks.
		}
	}
	return r.finish(nil), nil
}

// hedging makes another attempt when the newest one takes longer than most, or failed.
func hedging[U Upstream, R any](ctx context.Context, p *Policy, call Call[U, R]) (Result[R], error) {
	hedges := p.config.HedgesMax
	if !call.Replayable {
		hedges = 0
	}
	r := newRace(p, call, 1+hedges)
	if err := r.start(ctx); err != nil {
		return Result[R]{}, err
	}
	var held []end[R]
	after := p.hedgeAfter()
	timer := time.NewTimer(after)
	defer timer.Stop()
	for r.under > 0 {
		select {
		case e := <-r.ends:
			r.under--
			held = append(held, e)
			if e.panicked != nil || e.Outcome != outcome.Fault {
				return r.finish(held), nil
			}
		case <-timer.C:
		}
		if hedges == 0 || ctx.Err() != nil || !r.another(ctx) {
			return r.finish(held), nil
		}
		hedges--
		timer.Reset(after)
	}
	return r.finish(held), nil
}

// hedgeAfter returns how long an attempt may take before another one is made.
func (p *Policy) hedgeAfter() time.Duration {
	after, known := p.took.at(p.config.HedgeQuantile)
	if !known {
		return p.config.HedgeAfterMax
	}
	return min(max(after, p.config.HedgeAfterMin), p.config.HedgeAfterMax)
}

// quantiles counts how long calls take, in buckets an eighth of a power of two wide. It forgets: half of what it knows whenever
// it knows enough.
type quantiles struct {
	mu    sync.Mutex
	count [bucketCount]uint32
	sum   uint32
}

const (
	// bucketCount buckets reach from a microsecond to several days.
	bucketCount = 8 * 40
	// quantileCallsMin calls must have been seen before a quantile means anything, and at quantileCallsMax counts are halved.
	quantileCallsMin = 100
	quantileCallsMax = 4096
)

func (q *quantiles) add(took time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.count[bucketOf(took)]++
	if q.sum++; q.sum < quantileCallsMax {
		return
	}
	q.sum = 0
	for i := range q.count {
		q.count[i] /= 2
		q.sum += q.count[i]
	}
}

// at returns a time that so large a share of the calls took at most, to an eighth.
func (q *quantiles) at(share float64) (took time.Duration, known bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.sum < quantileCallsMin {
		return 0, false
	}
	left := share * float64(q.sum)
	for i, count := range q.count {
		if left -= float64(count); left <= 0 {
			return bucketEnd(i), true
		}
	}
	return bucketEnd(bucketCount - 1), true
}

func bucketOf(took time.Duration) int {
	micros := uint64(max(0, took.Microseconds())) + 8 // So that there are three bits below the highest.
	exponent := bits.Len64(micros) - 4
	return min(exponent*8+int(micros>>exponent)-8, bucketCount-1)
}

// bucketEnd returns the first time beyond a bucket.
func bucketEnd(i int) time.Duration {
	return time.Duration((uint64(i%8+9)<<(i/8))-8) * time.Microsecond
}
