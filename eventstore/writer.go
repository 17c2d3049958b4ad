package eventstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	logv1 "github.com/weirhq/weir/proto/stored/weir/log/v1"
	"google.golang.org/protobuf/proto"
)

// A Writer is the only writer of a lane. It starts no goroutine and reads no clock: Open takes the lane, Propose turns questions
// into a commit on its way to the log, Settle learns the outcome of the oldest one and answers. One goroutine calls it.
//
// What holds, always:
//
//	W1  A question is answered only after the commit that carries its events, and every commit before it, is durable (I1).
//	W2  Commits on their way have contiguous numbers from the applied position on, and each chains to the one before (I2).
//	W3  After a step-down nothing that was decided and not applied is left in the machine.
//	W4  An append whose outcome is unknown is offered again with the same bytes at the same number, until it is known
//	    or the lane steps down; it is never replaced by another commit under the same epoch.
type Writer[Q, A any] struct {
	log     Log
	machine Machine[Q, A]
	options WriterOptions

	open     bool
	epoch    uint64
	chained  bool     // whether the log checks the chain, as of the opening
	tip      Position // newest commit handed to the log; the applied position when nothing is in flight
	tipTime  time.Time
	inFlight []*flight[A] // oldest first
}

// WriterOptions configure a Writer. Lanes and Owner are required, the rest has defaults.
type WriterOptions struct {
	// Lane that is written, and Lanes in the topology.
	Lane, Lanes uint32
	// Owner names this node in the log, for people.
	Owner string
	// InFlightMax bounds the commits on their way at a time; 0 means 2. It is 1 on a log that does not check the chain.
	InFlightMax int
	// AppendTimeout bounds one attempt to append; 0 means 5 s.
	AppendTimeout time.Duration
	// ResolveAttemptsMax bounds how often an append of unknown outcome is offered again before the lane steps
	// down; 0 means 8.
	ResolveAttemptsMax int
	// Pause waits between attempts; nil waits 20 ms × attempt. A simulation passes one that does not wait.
	Pause func(ctx context.Context, attempt int) error
	// Observe is told of every commit applied by Settle; may be nil. Commits that Open reads are not observed.
	Observe Observer
	// DueMax bounds the events that log time itself causes in one commit; 0 means 256.
	DueMax int
	// CommitBytesMax is the size of a commit's events after which no further ask is decided into it; 0 means 1 MiB. The
	// last ask may exceed it by what one ask can decide.
	CommitBytesMax int
}

// flight is a commit on its way to the log.
type flight[A any] struct {
	commit  *Commit
	record  Record
	pending Pending
	answers []owed[A]
}

// owed is an answer that waits for its commit.
type owed[A any] struct {
	reply  func(A, error)
	answer func(commit uint64, at time.Time) A
}

// An Ask is one question and what becomes of its answer. Reply is called exactly once, on the writer's goroutine, and does not block.
type Ask[Q, A any] struct {
	Question Q
	Reply    func(A, error)
}

const (
	// readBehindHeadMax bounds the commits behind the head's hint that are read one by one in an attempt to open.
	readBehindHeadMax = 64
	// readSinglyMax is up to how many commits before the head are read one by one, too. The lane's stream alone answers that, while a
	// cursor is made by the servers' common leader, which may have died with the stream's.
	readSinglyMax = 256
)

// ErrFenced says that another writer has taken the lane. What was not answered may or may not be in the log.
var ErrFenced = errors.New("another writer has taken the lane")

// ErrRuleChanged says that the log no longer checks the chain, as it did when the lane was opened. To open it again is all it takes.
var ErrRuleChanged = errors.New("the log is appended to by another rule from now on")

const (
	// awayMax bounds how often a commit is offered again that nobody takes, awayPause is how long is waited before, as for that attempt: for 30 s
	// in all, where a stream takes up to 9 s to elect a leader, and as long again when the first election fails.
	awayMax   = 300
	awayPause = 5
)

// NewWriter returns a writer that does not hold its lane yet.
func NewWriter[Q, A any](log Log, machine Machine[Q, A], options WriterOptions) *Writer[Q, A] {
	if options.InFlightMax == 0 {
		options.InFlightMax = 2
	}
	if options.AppendTimeout == 0 {
		options.AppendTimeout = 5 * time.Second
	}
	if options.ResolveAttemptsMax == 0 {
		options.ResolveAttemptsMax = 8
	}
	if options.DueMax == 0 {
		options.DueMax = 256
	}
	if options.CommitBytesMax == 0 {
		options.CommitBytesMax = 1 << 20
	}
	if options.Pause == nil {
		options.Pause = func(ctx context.Context, attempt int) error {
			timer := time.NewTimer(time.Duration(attempt) * 20 * time.Millisecond)
			defer timer.Stop()
			select {
			case <-timer.C:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return &Writer[Q, A]{log: log, machine: machine, options: options}
}

// InFlight returns how many commits are on their way.
func (w *Writer[Q, A]) InFlight() int { return len(w.inFlight) }

// Ready reports whether another commit may be proposed now.
func (w *Writer[Q, A]) Ready() bool {
	inFlightMax := w.options.InFlightMax
	if !w.chained {
		inFlightMax = 1
	}
	return w.open && len(w.inFlight) < inFlightMax
}

// Outdated reports whether the log is known to have changed its rule since the lane was opened. What is in flight keeps the rule that
// it was sent under, so the lane is opened again when that is settled.
func (w *Writer[Q, A]) Outdated() bool { return w.open && w.chained && !w.log.ChecksChain() }

// Epoch returns the epoch under which the lane is held, 0 when it is not.
func (w *Writer[Q, A]) Epoch() uint64 {
	if !w.open {
		return 0
	}
	return w.epoch
}

// OldestDone is closed when Settle would not wait. It returns nil when nothing is in flight.
func (w *Writer[Q, A]) OldestDone() <-chan struct{} {
	if len(w.inFlight) == 0 {
		return nil
	}
	return w.inFlight[0].pending.Done()
}

// Open takes the lane: it brings the machine up to the log's head and fences every older writer by appending a
// LaneOpened commit at the next number. now is the time of that commit. Errors: *ChainError for a damaged log, *ApplyError,
// ErrFenced when another writer kept getting there first, or a fault of the log. Open may be called again.
func (w *Writer[Q, A]) Open(ctx context.Context, now time.Time) error {
	assert(len(w.inFlight) == 0, "lane %d opened with %d commits in flight", w.options.Lane, len(w.inFlight))
	w.open = false
	w.machine.Rollback()
	for attempt := range w.options.ResolveAttemptsMax {
		if err := w.catchUp(ctx); err != nil {
			return err
		}
		err := w.fence(ctx, now)
		if !errors.Is(err, ErrFenced) {
			return err
		}
		if err := w.options.Pause(ctx, attempt+1); err != nil {
			return err
		}
	}
	return fmt.Errorf("open lane %d: %w", w.options.Lane, ErrFenced)
}

// catchUp applies everything from the machine's position to the log's head.
func (w *Writer[Q, A]) catchUp(ctx context.Context) error {
	err := w.readToHead(ctx)
	// What was read is good also when more could not be.
	if flushErr := w.machine.Flush(); err == nil && flushErr != nil {
		err = &ApplyError{Lane: w.options.Lane, Number: w.machine.Position().Number, Cause: flushErr}
	}
	return err
}

func (w *Writer[Q, A]) readToHead(ctx context.Context) error {
	head, err := w.log.Head(ctx)
	if err != nil {
		return fmt.Errorf("open lane %d: read the head: %w", w.options.Lane, err)
	}
	at := w.machine.Position()
	w.tipTime = later(w.tipTime, w.machine.LogTime())
	reached := w.machine.Reached()
	if err := w.sameLog(ctx, reached); err != nil {
		return err
	}
	if head > at.Number+readSinglyMax {
		cursor, err := w.log.Follow(ctx, at.Number+1)
		if err != nil {
			return fmt.Errorf("open lane %d: read from commit %d: %w", w.options.Lane, at.Number+1, err)
		}
		defer cursor.Close()
		for at.Number < head {
			record, err := cursor.Next(ctx)
			if err != nil {
				return fmt.Errorf("open lane %d: read commit %d: %w", w.options.Lane, at.Number+1, err)
			}
			if at, err = w.take(at, record); err != nil {
				return err
			}
		}
	}
	// The head was a hint; what stands behind it is found one by one. Not for ever: a writer that is still at work may append as fast
	// as this one reads. Whether the end is reached is then the log's to say, which refuses a fence that is not there.
	for behind := 0; behind < readBehindHeadMax; {
		record, err := w.log.Read(ctx, at.Number+1)
		if errors.Is(err, ErrNoCommit) && at.Number >= max(reached.Number, head) {
			break
		}
		if err != nil {
			return fmt.Errorf("open lane %d: read commit %d: %w", w.options.Lane, at.Number+1, err)
		}
		if at, err = w.take(at, record); err != nil {
			return err
		}
		if at.Number > max(reached.Number, head) {
			behind++
		}
	}
	w.tip = at
	return nil
}

// sameLog checks that the machine's state was made of this log: what it applied last is there.
func (w *Writer[Q, A]) sameLog(ctx context.Context, at Position) error {
	if at.Number == 0 {
		return nil
	}
	record, err := w.log.Read(ctx, at.Number)
	if err != nil {
		return fmt.Errorf("open lane %d: read commit %d, which this node has applied: %w", w.options.Lane, at.Number, err)
	}
	if record.Hash != at.Hash {
		return &ChainError{Lane: w.options.Lane, Number: at.Number, Reason: fmt.Sprintf("this node has applied %.12s…, the log has %.12s…", at.Hash, record.Hash)}
	}
	return nil
}

// take checks that the record follows at (I2) and applies it.
func (w *Writer[Q, A]) take(at Position, record Record) (Position, error) {
	commit, err := record.Commit()
	if err != nil {
		return at, &ChainError{Lane: w.options.Lane, Number: record.Number, Reason: err.Error()}
	}
	if err := at.Check(commit, w.options.Lane); err != nil {
		return at, err
	}
	next := Position{Number: record.Number, Hash: record.Hash}
	if err := w.machine.Apply(commit, next); err != nil {
		return at, &ApplyError{Lane: w.options.Lane, Number: next.Number, Cause: err}
	}
	w.tipTime = later(w.tipTime, commit.Time)
	return next, nil
}

// fence appends LaneOpened. From then on the log refuses any older writer's appends.
func (w *Writer[Q, A]) fence(ctx context.Context, now time.Time) error {
	number := w.tip.Number + 1
	payload, err := proto.MarshalOptions{Deterministic: true}.Marshal(&logv1.LaneOpened{Epoch: number, Owner: w.options.Owner})
	if err != nil {
		return fmt.Errorf("open lane %d: %w", w.options.Lane, err)
	}
	w.epoch = number
	f := w.seal([]Event{{Type: TypeLaneOpened, Version: 1, CausationID: "open", Payload: payload}}, later(w.tipTime, now))
	f.record.Unchained = true // It is alone under way, and the log may be changing its rule.
	f.pending = w.log.Append(f.record)
	if err := w.outcome(ctx, f); err != nil {
		return fmt.Errorf("open lane %d: %w", w.options.Lane, err)
	}
	if err := w.applied(f); err != nil {
		return err
	}
	// The rule is asked for behind the fence: whoever changes it fences the lane between announcing that and doing it, so
	// either this answer is the new one, or this writer is fenced before it counts (see Upgrade).
	if _, err := w.log.Head(ctx); err != nil {
		return fmt.Errorf("open lane %d: ask how it is appended to: %w", w.options.Lane, err)
	}
	w.chained = w.log.ChecksChain()
	w.tip, w.tipTime, w.open = Position{Number: number, Hash: f.record.Hash}, f.commit.Time, true
	return nil
}

// seal makes the next commit of the chain.
func (w *Writer[Q, A]) seal(events []Event, at time.Time) *flight[A] {
	commit := &Commit{
		Lane: w.options.Lane, Number: w.tip.Number + 1, Epoch: w.epoch, Time: at, PrevHash: w.tip.Hash, Events: events,
	}
	return &flight[A]{commit: commit, record: EncodeCommit(commit)}
}

// LogTime returns the time that the next commit would have: now, or the newest commit's time if the clock went back.
func (w *Writer[Q, A]) LogTime(now time.Time) time.Time { return later(w.tipTime, now) }

// Propose decides the asks in order, at the log time that now allows, and sends what they decided as one commit. Asks that
// decide no event ride on the newest commit in flight, since they may rest on it, or are answered at once.
// It returns how many asks it took: all, unless the commit is full before. REQUIRES: Ready.
func (w *Writer[Q, A]) Propose(asks []Ask[Q, A], now time.Time) int {
	assert(w.Ready(), "lane %d proposes with %d commits in flight, open: %t", w.options.Lane, len(w.inFlight), w.open)
	at := w.LogTime(now)
	events := w.machine.Due(at, w.options.DueMax)
	answers := make([]owed[A], 0, len(asks))
	for bytes := 0; len(answers) < len(asks) && bytes < w.options.CommitBytesMax; {
		ask := &asks[len(answers)]
		decision := w.machine.Decide(ask.Question, at)
		for i := range decision.Events {
			bytes += eventSize(&decision.Events[i])
		}
		events = append(events, decision.Events...)
		answers = append(answers, owed[A]{reply: ask.Reply, answer: decision.Answer})
	}
	if len(events) == 0 {
		w.ride(answers)
		return len(answers)
	}
	f := w.seal(events, at)
	f.record.Unchained = !w.chained
	f.answers = answers
	w.tip, w.tipTime = Position{Number: f.commit.Number, Hash: f.record.Hash}, at
	f.pending = w.log.Append(f.record)
	w.inFlight = append(w.inFlight, f)
	return len(answers)
}

// ride lets answers without events wait for what they may rest on (W1).
func (w *Writer[Q, A]) ride(answers []owed[A]) {
	if n := len(w.inFlight); n > 0 {
		w.inFlight[n-1].answers = append(w.inFlight[n-1].answers, answers...)
		return
	}
	for _, owed := range answers {
		owed.reply(owed.answer(w.tip.Number, w.tipTime), nil)
	}
}

// Settle waits for the outcome of the oldest commit in flight, applies it and answers. When the lane could not keep its
// commit it has stepped down: everything in flight was answered with an error and the machine rolled back, and the
// error is ErrFenced, ErrUnknownOutcome, *ChainError or *ApplyError. ErrLogFull is no step-down: what was in flight
// is refused, and the lane stays open.
func (w *Writer[Q, A]) Settle(ctx context.Context) error {
	if len(w.inFlight) == 0 {
		return nil
	}
	f := w.inFlight[0]
	err := w.outcome(ctx, f)
	switch {
	case err == nil:
	case errors.Is(err, ErrLogFull):
		// Refused before it was stored, and so is all that expected it.
		w.drop(err)
		return err
	default:
		w.StepDown(err)
		return err
	}
	w.inFlight = w.inFlight[1:]
	if err := w.applied(f); err != nil {
		w.inFlight = append([]*flight[A]{f}, w.inFlight...)
		w.StepDown(err)
		return err
	}
	for _, owed := range f.answers {
		owed.reply(owed.answer(f.commit.Number, f.commit.Time), nil)
	}
	return nil
}

// applied takes a durable commit into the machine and shows it to the observer.
func (w *Writer[Q, A]) applied(f *flight[A]) error {
	at := w.machine.Position()
	assert(f.commit.Number == at.Number+1 && f.commit.PrevHash == at.Hash,
		"lane %d applies commit %d after %d (I2)", w.options.Lane, f.commit.Number, at.Number)
	next := Position{Number: f.commit.Number, Hash: f.record.Hash}
	err := w.machine.Apply(f.commit, next)
	if err == nil {
		err = w.machine.Flush()
	}
	if err != nil {
		return &ApplyError{Lane: w.options.Lane, Number: next.Number, Cause: err}
	}
	if w.options.Observe != nil {
		w.options.Observe(f.commit, next)
	}
	return nil
}

// outcome learns whether the commit is in the log, offering the same bytes again until that is known (W4).
// It returns nil, ErrFenced, ErrLogFull (certainly not stored), ErrUnknownOutcome (gave up) or *ChainError.
func (w *Writer[Q, A]) outcome(ctx context.Context, f *flight[A]) error {
	pending, maybeStored := f.pending, false
	for attempt, away := 1, 0; ; {
		attemptCtx, cancel := context.WithTimeout(ctx, w.options.AppendTimeout)
		err := pending.Wait(attemptCtx)
		switch {
		case err == nil:
			cancel()
			return nil
		case errors.Is(err, ErrLogFull) && !maybeStored:
			cancel()
			return fmt.Errorf("append commit %d to lane %d: %w", f.record.Number, w.options.Lane, ErrLogFull)
		case errors.Is(err, ErrLogAway) && away < awayMax:
			// Who would store the commit would also have to say what stands at the number. Offering it again finds out soonest when
			// there is somebody.
			cancel()
			maybeStored = true
			away++
			if ctx.Err() != nil || w.options.Pause(ctx, awayPause) != nil {
				return fmt.Errorf("append commit %d to lane %d, %d attempts: %w", f.record.Number, w.options.Lane, attempt+away, err)
			}
			pending = w.log.Append(f.record)
			continue
		case errors.Is(err, ErrUnknownOutcome) && attempt == 1:
			// Whoever has it, or can store it, says so soonest when it is offered again. A question would have to wait for its answer
			// while there is nobody.
			maybeStored = true
		case errors.Is(err, ErrConflict), errors.Is(err, ErrLogFull), errors.Is(err, ErrUnknownOutcome):
			// A refusal for the sequence may be our own earlier attempt that was stored, another writer's commit,
			// or, replicated, another write in flight. What stands at the number tells.
			maybeStored = maybeStored || errors.Is(err, ErrUnknownOutcome)
			stored, readErr := w.log.Read(attemptCtx, f.record.Number)
			if readErr == nil {
				cancel()
				if stored.Hash == f.record.Hash {
					return nil
				}
				return fmt.Errorf("append commit %d to lane %d: %w", f.record.Number, w.options.Lane, ErrFenced)
			}
			if chain := (*ChainError)(nil); errors.As(readErr, &chain) {
				cancel()
				return readErr
			}
		default:
			cancel()
			return fmt.Errorf("append commit %d to lane %d: %w", f.record.Number, w.options.Lane, err)
		}
		cancel()
		if ctx.Err() != nil || attempt >= w.options.ResolveAttemptsMax || w.options.Pause(ctx, attempt) != nil {
			return fmt.Errorf("append commit %d to lane %d, %d attempts: %w", f.record.Number, w.options.Lane, attempt, ErrUnknownOutcome)
		}
		attempt++
		pending = w.log.Append(f.record)
	}
}

// StepDown gives the lane up: every owed answer becomes an UnavailableError with the cause, and the machine forgets
// what was not applied (W3). The commits in flight may still turn out to be in the log; the next Open reads them.
func (w *Writer[Q, A]) StepDown(cause error) {
	w.drop(&UnavailableError{Lane: w.options.Lane, RetryAfter: time.Second, Cause: cause})
	w.open = false
}

// drop answers everything in flight with err and rolls the machine back to what was applied.
func (w *Writer[Q, A]) drop(err error) {
	var none A
	for _, f := range w.inFlight {
		for _, owed := range f.answers {
			owed.reply(none, err)
		}
	}
	w.inFlight = nil
	w.machine.Rollback()
	w.tip = w.machine.Position()
}

// An UnavailableError says that a lane takes no commands now. Whether a command that was under way took effect is
// unknown; the same request id asks again safely.
type UnavailableError struct {
	Lane       uint32
	RetryAfter time.Duration
	Cause      error
}

func (e *UnavailableError) Error() string {
	if e.Cause == nil {
		return fmt.Sprintf("lane %d is not available; send the same request again in %s", e.Lane, e.RetryAfter)
	}
	return fmt.Sprintf("lane %d is not available: %v; send the same request again in %s", e.Lane, e.Cause, e.RetryAfter)
}

func (e *UnavailableError) Unwrap() error { return e.Cause }

// An ApplyError says that this node could not take a durable commit into its state: its disk fails, or it does not know
// one of the commit's events. The log is unharmed.
type ApplyError struct {
	Lane   uint32
	Number uint64
	Cause  error
}

func (e *ApplyError) Error() string {
	return fmt.Sprintf("apply commit %d of lane %d: %v", e.Number, e.Lane, e.Cause)
}

func (e *ApplyError) Unwrap() error { return e.Cause }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// assert panics when what must hold does not: a bug, never an input.
func assert(holds bool, format string, args ...any) {
	if !holds {
		panic("bug: " + fmt.Sprintf(format, args...))
	}
}
