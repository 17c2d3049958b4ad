package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// Limits of a Follower.
const (
	// tailIdleMax is how long a follower waits for the lane's writer to offer a commit before it follows the log instead:
	// the lane may have moved to another node.
	tailIdleMax = time.Second
	// followRetryMin and followRetryMax bound the pause before a log that could not be read is read again. The pause
	// doubles with each failure in a row.
	followRetryMin = 50 * time.Millisecond
	followRetryMax = 5 * time.Second
)

// FollowerOptions configure a Follower. Lane and Log are required.
type FollowerOptions struct {
	Lane uint32
	Log  Log
	// Pace is how long after a flush the next commit is taken in, at the earliest, while commits come faster than that and nobody waits for
	// them: what came meanwhile is one step. 0 means as soon as it comes.
	Pace time.Duration
	// Demand says whether somebody waits; nil means nobody does.
	Demand *Demand
	// Logger is told when the log cannot be read; nil means slog.Default.
	Logger *slog.Logger
}

// A Consumer takes in what a Follower feeds to it, on the follower's goroutine.
type Consumer interface {
	// Take takes in the commit that follows what was taken in before. It may keep the commit and does not change it.
	Take(ctx context.Context, commit *Commit, at Position) error
	// Full reports whether what was taken in has to be flushed before more is. bulk says that it was read from the log,
	// where more is known to wait: few large steps then cost less than many small ones.
	Full(bulk bool) bool
	// Flush is called when the consumer is full, and when nothing more waits.
	Flush(ctx context.Context) error
}

// A Follower feeds one lane to a consumer, in order and without a gap: from the log, and as long as it keeps up, from
// what the lane's writer offers. It checks the numbers and the chain of everything, and stops at a commit that does not
// fit (I2).
type Follower struct {
	// TailIdle is how long nothing may be offered before the log is followed instead. It is set before Run, if at all.
	TailIdle time.Duration

	options FollowerOptions
	tail    tail

	// Owned by Run.
	position Position // newest commit that the consumer has taken in
	offers   []offer
	flushed  time.Time // when what was taken in was last flushed
	taken    int       // commits taken in since
	rate     commitRate

	// head is the newest commit known to exist. It means nothing until headKnown.
	head      atomic.Uint64
	headKnown atomic.Bool
	// target is the head when Run began.
	target atomic.Uint64
}

// NewFollower returns a follower. It may be offered commits before it runs.
func NewFollower(options FollowerOptions) *Follower {
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	f := &Follower{options: options, TailIdle: tailIdleMax}
	f.tail.init()
	return f
}

// Offer tells the follower of a commit that became durable, so that it need not read it from the log. It does not block,
// and the follower reads what it missed from the log.
// REQUIRES: nobody changes the commit any more.
func (f *Follower) Offer(commit *Commit, at Position) {
	f.raiseHead(at.Number)
	f.tail.offer(commit, at)
}

// Head returns the number of the newest commit known. known is false until the log was asked for its head.
func (f *Follower) Head() (number uint64, known bool) { return f.head.Load(), f.headKnown.Load() }

// Target returns the number of the newest commit that the log held when Run began.
func (f *Follower) Target() uint64 { return f.target.Load() }

// Run feeds the consumer, which has taken in everything up to at, until ctx ends, which is no error, or until the log
// cannot be trusted: a gap or a broken chain is a *ChainError, a log that is gone a *MissingLogError, a commit that
// cannot be read an *UnreadableCommitError. A log that cannot be reached is tried again. Any error of the consumer ends
// it too. Then it may be run again, from where the consumer is.
func (f *Follower) Run(ctx context.Context, at Position, consumer Consumer) error {
	f.position = at
	err := f.run(ctx, consumer)
	var passing *logFault
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.As(err, &passing)) {
		return nil
	}
	return err
}

func (f *Follower) run(ctx context.Context, consumer Consumer) error {
	delay := followRetryMin
	resumed := false
	for {
		before := f.position.Number
		err := func() error {
			if !resumed {
				if err := f.resume(ctx); err != nil {
					return err
				}
				resumed = true
			}
			if err := f.followLog(ctx, consumer); err != nil {
				return err
			}
			return f.followTail(ctx, consumer)
		}()
		var passing *logFault
		switch {
		case err == nil:
			continue
		case !errors.As(err, &passing) || ctx.Err() != nil:
			return err
		}
		if f.position.Number > before {
			delay = followRetryMin
		}
		f.options.Logger.Warn("the log cannot be read, trying again", "lane", f.options.Lane, "after", delay, "error", passing.cause)
		if err := pause(ctx, delay); err != nil {
			return err
		}
		delay = min(2*delay, followRetryMax)
	}
}

// logFault is a failure to reach the log. It says nothing about what is in it.
type logFault struct{ cause error }

func (f *logFault) Error() string { return f.cause.Error() }
func (f *logFault) Unwrap() error { return f.cause }

// readFault tells apart a log that is damaged or gone from one that cannot be reached.
func readFault(err error) error {
	var chain *ChainError
	var missing *MissingLogError
	if errors.As(err, &chain) || errors.As(err, &missing) {
		return err
	}
	return &logFault{cause: err}
}

// resume learns the log's head, and checks that the log still holds what the consumer has taken in (I1).
func (f *Follower) resume(ctx context.Context) error {
	head, err := f.options.Log.Head(ctx)
	if err != nil {
		return readFault(err)
	}
	if number := f.position.Number; number > 0 {
		record, err := f.readTakenIn(ctx, number)
		switch {
		case errors.Is(err, ErrNoCommit):
			return &ChainError{Lane: f.options.Lane, Number: number, Reason: "this node has taken this commit in and the log does not have it"}
		case err != nil:
			return readFault(err)
		case record.Hash != f.position.Hash:
			return &ChainError{
				Lane: f.options.Lane, Number: number,
				Reason: fmt.Sprintf("this node has taken in %.12s…, the log has %.12s…", f.position.Hash, record.Hash),
			}
		}
	}
	f.target.Store(head)
	f.raiseHead(head)
	f.headKnown.Store(true)
	return nil
}

// Limits of the look for a commit that was taken in. A stream's leader that was stopped for a while and goes on answers what it knew, until it
// hears of its successor: within a heartbeat of the servers, a second.
const (
	shorterMax  = 3 * time.Second
	shorterLook = 100 * time.Millisecond
)

// readTakenIn reads a commit that the consumer has taken in. It believes that the log does not have it only when that is said for shorterMax.
func (f *Follower) readTakenIn(ctx context.Context, number uint64) (Record, error) {
	for until := time.Now().Add(shorterMax); ; {
		record, err := f.options.Log.Read(ctx, number)
		if !errors.Is(err, ErrNoCommit) || !time.Now().Before(until) {
			return record, err
		}
		if err := pause(ctx, shorterLook); err != nil {
			return Record{}, err
		}
	}
}

// followLog reads the log from the follower's position on. It returns nil when the live tail goes on from there.
func (f *Follower) followLog(ctx context.Context, consumer Consumer) error {
	cursor, err := f.options.Log.Follow(ctx, f.position.Number+1)
	if err != nil {
		return readFault(err)
	}
	defer cursor.Close()
	for {
		record, err := cursor.Next(ctx)
		for err == nil {
			if err := f.takeRecord(ctx, consumer, record); err != nil {
				return err
			}
			buffered := cursor.Buffered()
			f.raiseHead(record.Number + uint64(buffered))
			// What is known to be there is waited for.
			if consumer.Full(true) || record.Number >= f.head.Load() {
				break
			}
			record, err = cursor.Next(ctx)
		}
		if flushErr := f.flush(ctx, consumer); flushErr != nil {
			return flushErr
		}
		if err != nil {
			return readFault(err)
		}
		if f.position.Number >= f.target.Load() && f.tail.continues(f.position.Number) {
			return nil
		}
		if f.position.Number < f.head.Load() {
			continue // It is behind.
		}
		if err := f.rest(ctx); err != nil {
			return err
		}
	}
}

// followTail takes what the lane's writer offers. It returns nil when the log has to be read again: the follower missed a
// commit, or none was offered for a while.
func (f *Follower) followTail(ctx context.Context, consumer Consumer) error {
	idle := time.NewTimer(f.TailIdle)
	defer idle.Stop()
	for {
		if err := f.rest(ctx); err != nil {
			return err
		}
		offers, missed := f.tail.take(f.offers[:0], f.position.Number+1)
		f.offers = offers
		for _, offered := range offers {
			if err := f.take(ctx, consumer, offered.commit, offered.at); err != nil {
				return err
			}
			if consumer.Full(false) {
				if err := f.flush(ctx, consumer); err != nil {
					return err
				}
			}
		}
		clear(f.offers)
		if err := f.flush(ctx, consumer); err != nil {
			return err
		}
		switch {
		case missed:
			return nil
		case len(offers) > 0:
			idle.Reset(f.TailIdle)
			continue
		}
		select {
		case <-f.tail.ready:
		case <-idle.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (f *Follower) flush(ctx context.Context, consumer Consumer) error {
	if f.taken > 0 {
		f.flushed = time.Now()
		f.rate.count(f.flushed, f.taken, f.options.Pace)
		f.taken = 0
	}
	return consumer.Flush(ctx)
}

// A commitRate says whether commits came faster than a pace over a rateWindow. Steps pay only then; a few commits are seen at once. Other than
// a lane's rate it does not keep what it knew of busier times.
type commitRate struct {
	since     time.Time // when counting began
	commits   int       // that came since
	beatsPace bool      // as of when counting was last begun anew
}

func (r *commitRate) count(now time.Time, commits int, pace time.Duration) {
	r.commits += commits
	if passed := now.Sub(r.since); passed >= rateWindow {
		r.beatsPace = time.Duration(r.commits)*pace > passed
		r.since, r.commits = now, 0
	}
}

// rest waits until the next step is due, or somebody waits for it. Where commits come further apart than the pace, it returns at once.
func (f *Follower) rest(ctx context.Context) error {
	left := f.options.Pace - time.Since(f.flushed)
	if left <= 0 || !f.rate.beatsPace {
		return nil
	}
	entered, waiting := f.options.Demand.look()
	if waiting {
		return nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-entered:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (f *Follower) takeRecord(ctx context.Context, consumer Consumer, record Record) error {
	commit, err := record.Commit()
	if err != nil {
		return &UnreadableCommitError{Lane: f.options.Lane, Number: record.Number, Cause: err}
	}
	return f.take(ctx, consumer, commit, Position{Number: record.Number, Hash: record.Hash})
}

// take checks that the commit is the next one and hands it to the consumer.
func (f *Follower) take(ctx context.Context, consumer Consumer, commit *Commit, at Position) error {
	if err := f.position.CheckAt(commit, at, f.options.Lane); err != nil {
		return err
	}
	if err := consumer.Take(ctx, commit, at); err != nil {
		return err
	}
	f.position = at
	f.taken++
	return nil
}

func (f *Follower) raiseHead(number uint64) {
	for {
		head := f.head.Load()
		if number <= head || f.head.CompareAndSwap(head, number) {
			return
		}
	}
}

// An UnreadableCommitError says that a commit cannot be decoded, though its hash is right: a newer program wrote it, or a bug.
type UnreadableCommitError struct {
	Lane   uint32
	Number uint64
	Cause  error
}

func (e *UnreadableCommitError) Error() string {
	return fmt.Sprintf("commit %d of lane %d cannot be read: %v", e.Number, e.Lane, e.Cause)
}

func (e *UnreadableCommitError) Unwrap() error { return e.Cause }
