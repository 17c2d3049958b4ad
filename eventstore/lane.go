package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// A Lane answers questions about one lane's keys, one after the other, in groups that are committed together. Submit may be
// called by any number of goroutines; Run is the one goroutine that owns the writer.
//
// Group commit needs no timer: what queued while the last commit was on its way is the next one.
type Lane[Q, A any] struct {
	writer  *Writer[Q, A]
	options LaneOptions
	queue   chan *waiting[Q, A]

	closed  atomic.Bool
	serving atomic.Bool
	epoch   atomic.Uint64
	drained rate // asks answered per second
}

// LaneOptions configure a Lane. Every limit has a default.
type LaneOptions struct {
	// Writer configures the writer.
	Writer WriterOptions
	// QueueMax bounds the asks that wait to be decided; 0 means 16,384.
	QueueMax int
	// WaitBudget bounds the time that an ask may be expected to wait in the queue; beyond it, it is refused at once.
	// 0 means 1 s.
	WaitBudget time.Duration
	// GroupMax bounds the asks in one commit; 0 means 1,024. Its bytes are bounded by Writer.CommitBytesMax.
	GroupMax int
	// GroupMin is how many asks must wait before a second commit is sent while one is in flight; 0 means 64. Fewer would split
	// one fsync's worth of work over two.
	GroupMin int
	// TickEvery is how often an idle lane looks at its deadlines; 0 means 200 ms.
	TickEvery time.Duration
	// ReopenDelay is the pause before a lane that was fenced is opened again; 0 means 1 s. One that lost its log is opened again after
	// reopenDelayMin, and after twice as long with each failure in a row up to this. It is jittered.
	ReopenDelay time.Duration
	// DrainBudget bounds how long a stopping lane waits for its commits in flight; 0 means 5 s.
	DrainBudget time.Duration
	// Slots are shared by the lanes of one disk; nil means that this lane has the disk to itself.
	Slots *Slots
	// Held reports whether this node is the one to have the lane; nil means always. A lane that is not held is not opened, and not
	// opened again: that would take it from its new owner.
	Held func() bool
	// Opened is told each time that the lane begins to serve, on its goroutine; may be nil.
	Opened func(epoch uint64)
	// Clock tells the time; nil means time.Now.
	Clock Clock
	// Logger is told of openings and step-downs; nil means slog.Default.
	Logger *slog.Logger
}

// reopenDelayMin is the first pause before a lane that lost its log is opened again: a log that was away for long may be back by then.
const reopenDelayMin = 50 * time.Millisecond

// waiting is an ask in the queue.
type waiting[Q, A any] struct {
	ctx      context.Context //nolint:containedctx // The queue entry is the request: it lives exactly as long.
	question Q
	answer   A
	err      error
	done     chan struct{}
}

// A QueueFullError says that a lane has more to do than it can within its wait budget.
type QueueFullError struct {
	Lane uint32
	// RetryAfter is when the queue will have drained at the present rate.
	RetryAfter time.Duration
}

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("lane %d has too much to do; send the same request again in %s", e.Lane, e.RetryAfter)
}

// NewLane returns a lane that answers once Run runs.
func NewLane[Q, A any](log Log, machine Machine[Q, A], options LaneOptions) *Lane[Q, A] {
	setDefault(&options.QueueMax, 16_384)
	setDefault(&options.WaitBudget, time.Second)
	setDefault(&options.GroupMax, 1024)
	setDefault(&options.GroupMin, 64)
	setDefault(&options.TickEvery, 200*time.Millisecond)
	setDefault(&options.ReopenDelay, time.Second)
	setDefault(&options.DrainBudget, 5*time.Second)
	if options.Clock == nil {
		options.Clock = time.Now
	}
	if options.Held == nil {
		options.Held = func() bool { return true }
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	return &Lane[Q, A]{
		writer:  NewWriter(log, machine, options.Writer),
		options: options,
		queue:   make(chan *waiting[Q, A], options.QueueMax),
	}
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Serving reports whether the lane is open, and under which epoch.
func (l *Lane[Q, A]) Serving() (epoch uint64, ok bool) { return l.epoch.Load(), l.serving.Load() }

// Queued returns how many asks wait to be decided.
func (l *Lane[Q, A]) Queued() int { return len(l.queue) }

// DecidedPerSecond returns how many asks the lane answers in a second, as measured while it had enough to do; 0 while that is
// not known.
func (l *Lane[Q, A]) DecidedPerSecond() uint64 { return l.drained.perSecond.Load() }

// Submit asks one question and waits for its answer. Errors: *QueueFullError, *UnavailableError, ErrLogFull, or ctx's.
// When ctx ends after the question was taken from the queue, its effect may still be committed; the same request asks again safely.
func (l *Lane[Q, A]) Submit(ctx context.Context, question Q) (A, error) {
	var none A
	if !l.serving.Load() || l.closed.Load() {
		return none, &UnavailableError{Lane: l.options.Writer.Lane, RetryAfter: l.options.ReopenDelay}
	}
	if wait := l.drained.timeFor(len(l.queue)); wait > l.options.WaitBudget {
		return none, &QueueFullError{Lane: l.options.Writer.Lane, RetryAfter: wait}
	}
	w := &waiting[Q, A]{ctx: ctx, question: question, done: make(chan struct{})}
	select {
	case l.queue <- w:
	default:
		return none, &QueueFullError{Lane: l.options.Writer.Lane, RetryAfter: max(l.drained.timeFor(len(l.queue)), 10*time.Millisecond)}
	}
	if !l.serving.Load() || l.closed.Load() {
		l.refuseQueued() // The lane ended between the look above and now, and may have emptied the queue before w came.
	}
	select {
	case <-w.done:
		return w.answer, w.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// Run opens the lane and serves it until ctx ends, reopening it after a step-down as long as it is held. It then refuses what
// still queues, lets what is in flight finish and returns nil. An error is one that opening again cannot mend: a damaged log, a
// failing disk. It is called once.
func (l *Lane[Q, A]) Run(ctx context.Context) error {
	defer l.refuseQueued()
	defer l.closed.Store(true)
	delay := min(reopenDelayMin, l.options.ReopenDelay)
	for ctx.Err() == nil && l.options.Held() {
		err := l.writer.Open(ctx, l.options.Clock())
		if err == nil {
			delay = min(reopenDelayMin, l.options.ReopenDelay)
			l.epoch.Store(l.writer.Epoch())
			l.serving.Store(true)
			if l.options.Opened != nil {
				l.options.Opened(l.writer.Epoch())
			}
			err = l.serve(ctx)
			l.serving.Store(false)
			l.refuseQueued()
		}
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !passing(err) {
			return err
		}
		l.options.Logger.Warn("lane stepped down", "lane", l.options.Writer.Lane, "epoch", l.epoch.Load(), "cause", err)
		if errors.Is(err, ErrFenced) {
			delay = l.options.ReopenDelay // Whoever has it now is to have a chance to keep it.
		}
		if pause(ctx, delay/2+rand.N(delay)) != nil {
			return nil
		}
		delay = min(2*delay, l.options.ReopenDelay)
	}
	return nil
}

// passing reports whether opening the lane again may help: not on a damaged log, and not on a disk that fails.
func passing(err error) bool {
	var (
		damage *ChainError
		fault  *ApplyError
	)
	return !errors.As(err, &damage) && !errors.As(err, &fault)
}

// serve is the lane's loop while it is open. It returns nil when ctx ended and everything in flight was settled.
func (l *Lane[Q, A]) serve(ctx context.Context) error {
	tick := time.NewTicker(l.options.TickEvery)
	defer tick.Stop()
	var group []*waiting[Q, A] // drained from the queue, not proposed yet
	defer func() { l.refuse(group, nil) }()
	slots := l.options.Slots.newHolder()
	defer slots.keep(0)
	due := true
	for {
		select {
		case <-ctx.Done():
			l.refuse(group, nil)
			group = nil
			return l.drain(ctx)
		default:
		}
		outdated := l.writer.Outdated()
		if outdated && l.writer.InFlight() == 0 {
			return ErrRuleChanged
		}
		ready := l.writer.Ready() && !outdated
		group = l.collect(group)
		if ready && (due || l.worthSending(len(group))) {
			if slots.tryAcquire(l.writer.InFlight()) {
				group, due = l.propose(group), false
				slots.keep(l.writer.InFlight())
				continue
			}
		}
		// While a commit cannot be sent anyway, asks pile up in the queue and wake nobody.
		var intake chan *waiting[Q, A]
		var slotFree <-chan struct{}
		if ready {
			if l.worthSending(len(group)) {
				slotFree = slots.wait()
			} else {
				intake = l.queue
			}
		}
		select {
		case w := <-intake:
			group = append(group, w)
		case <-l.writer.OldestDone():
			err := l.writer.Settle(ctx)
			slots.keep(l.writer.InFlight())
			switch {
			case errors.Is(err, ErrLogFull):
				l.options.Logger.Error("log is full: commands are refused until it has room", "lane", l.options.Writer.Lane)
			case err != nil:
				return err
			}
		case <-slotFree:
			slots.took()
		case <-tick.C:
			due = true
		case <-ctx.Done():
		}
	}
}

// collect moves what queues into the group, up to its limit.
func (l *Lane[Q, A]) collect(group []*waiting[Q, A]) []*waiting[Q, A] {
	for len(group) < l.options.GroupMax {
		select {
		case w := <-l.queue:
			group = append(group, w)
		default:
			return group
		}
	}
	return group
}

// worthSending reports whether a group of that size is sent now: any group when nothing is in flight, else a large one.
func (l *Lane[Q, A]) worthSending(group int) bool {
	return group > 0 && (l.writer.InFlight() == 0 || group >= l.options.GroupMin)
}

// propose hands the group to the writer, less those whose callers have left, and returns what did not fit into the commit.
func (l *Lane[Q, A]) propose(group []*waiting[Q, A]) []*waiting[Q, A] {
	busy := len(group) >= l.options.GroupMin
	asks := make([]Ask[Q, A], 0, len(group))
	present := group[:0]
	for _, w := range group {
		if err := w.ctx.Err(); err != nil {
			w.finish(w.answer, err)
			continue
		}
		asks = append(asks, Ask[Q, A]{Question: w.question, Reply: w.finish})
		present = append(present, w)
	}
	taken := l.writer.Propose(asks, l.options.Clock())
	l.drained.add(taken, l.options.Clock(), busy)
	rest := copy(present, present[taken:])
	clear(group[rest:])
	return group[:rest]
}

// finish answers an ask.
func (w *waiting[Q, A]) finish(answer A, err error) {
	w.answer, w.err = answer, err
	close(w.done)
}

// drain settles what is in flight after ctx ended, within the drain budget.
func (l *Lane[Q, A]) drain(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.options.DrainBudget)
	defer cancel()
	l.closed.Store(true)
	for l.writer.InFlight() > 0 {
		if err := l.writer.Settle(ctx); err != nil && !errors.Is(err, ErrLogFull) {
			return err
		}
	}
	return nil
}

// refuseQueued answers everything that queues with an UnavailableError. Any goroutine may call it.
func (l *Lane[Q, A]) refuseQueued() {
	for group := l.collect(nil); len(group) > 0; group = l.collect(group[:0]) {
		l.refuse(group, nil)
	}
}

func (l *Lane[Q, A]) refuse(group []*waiting[Q, A], cause error) {
	var none A
	for _, w := range group {
		w.finish(none, &UnavailableError{Lane: l.options.Writer.Lane, RetryAfter: l.options.ReopenDelay, Cause: cause})
	}
}

// A rate measures how fast something drains while there is enough to do, as an exponentially weighted mean over
// windows of 100 ms. While there is little to do, it keeps what it knew: an idle lane is not a slow one.
type rate struct {
	since     time.Time // of the window; zero while there is little to do
	count     int
	perSecond atomic.Uint64
}

// rateWindow is for how long is counted what a rate is told by.
const rateWindow = 100 * time.Millisecond

// add counts some more at a time; busy says that there was enough to do. One goroutine calls it.
func (r *rate) add(count int, now time.Time, busy bool) {
	switch {
	case !busy:
		r.since, r.count = time.Time{}, 0
		return
	case r.since.IsZero():
		r.since = now
		return
	}
	r.count += count
	elapsed := now.Sub(r.since)
	if elapsed < rateWindow {
		return
	}
	seen := float64(r.count) / elapsed.Seconds()
	if old := r.perSecond.Load(); old > 0 {
		seen = (seen + 3*float64(old)) / 4
	}
	r.perSecond.Store(max(uint64(seen), 1))
	r.since, r.count = now, 0
}

// timeFor returns how long it takes to drain count, 0 while the rate is not known.
func (r *rate) timeFor(count int) time.Duration {
	perSecond := r.perSecond.Load()
	if perSecond == 0 || count == 0 {
		return 0
	}
	return time.Duration(float64(count) / float64(perSecond) * float64(time.Second))
}
