package eventstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counter is a machine that counts: asked for n, it adds n and answers with the sum.
type counter struct {
	position Position
	logTime  time.Time
	decided  int
	applied  int
	broken   error
}

func newCounter() *counter { return &counter{position: Genesis(0, 1)} }

func (m *counter) Position() Position         { return m.position }
func (m *counter) Reached() Position          { return m.position }
func (m *counter) LogTime() time.Time         { return m.logTime }
func (m *counter) Due(time.Time, int) []Event { return nil }
func (m *counter) Rollback()                  { m.decided = m.applied }
func (m *counter) Flush() error               { return nil }
func (m *counter) Apply(c *Commit, at Position) error {
	if m.broken != nil {
		return m.broken
	}
	for _, e := range c.Events {
		if e.Type == "Added" {
			m.applied += len(e.Payload)
		}
	}
	m.decided = max(m.decided, m.applied)
	m.position, m.logTime = at, c.Time
	return nil
}

func (m *counter) Decide(n int, _ time.Time) Decision[int] {
	m.decided += n
	sum := m.decided
	d := Decision[int]{Answer: func(uint64, time.Time) int { return sum }}
	if n > 0 {
		d.Events = []Event{{Type: "Added", Version: 1, Payload: make([]byte, n)}}
	}
	return d
}

// heldLog lets a test say when each append is acknowledged.
type heldLog struct {
	*MemoryLog
	mu   sync.Mutex
	held []*heldPending
}

type heldPending struct {
	Pending
	record Record
	done   chan struct{}
}

func (p *heldPending) Done() <-chan struct{} { return p.done }

func (p *heldPending) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.Pending.Wait(ctx)
	case <-ctx.Done():
		return ErrUnknownOutcome
	}
}

func (l *heldLog) Append(r Record) Pending {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &heldPending{l.MemoryLog.Append(r), r, make(chan struct{})}
	l.held = append(l.held, p)
	if r.Number == 1 {
		close(p.done) // LaneOpened.
	}
	return p
}

func (l *heldLog) appended() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held)
}

func (l *heldLog) release(i int) { close(l.held[i].done) }

// runLane runs a lane until the test ends.
func runLane(t *testing.T, log Log, machine Machine[int, int], options LaneOptions) *Lane[int, int] {
	t.Helper()
	options.Writer.Lanes = 1
	options.Logger = slog.New(slog.DiscardHandler)
	lane := NewLane(log, machine, options)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- lane.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("lane.Run: %v", err)
		}
	})
	until(t, "the lane serves", func() bool { _, ok := lane.Serving(); return ok })
	return lane
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for !holds() {
		if pause(ctx, time.Millisecond) != nil {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func TestNothingIsAnsweredBeforeItsCommitIsDurable(t *testing.T) {
	log := &heldLog{MemoryLog: OpenMemoryLog(0, 1)}
	lane := runLane(t, log, newCounter(), LaneOptions{})
	answers := make(chan int, 2)
	ask := func(n int) {
		go func() {
			sum, err := lane.Submit(t.Context(), n)
			if err != nil {
				t.Error(err)
			}
			answers <- sum
		}()
	}
	ask(5)
	until(t, "the commit is on its way", func() bool { return log.appended() == 2 })
	ask(0) // A read rests on what is on its way.
	select {
	case sum := <-answers:
		t.Fatalf("answered %d before the ack (W1)", sum)
	case <-time.After(20 * time.Millisecond):
	}
	log.release(1)
	if a, b := <-answers, <-answers; a != 5 || b != 5 {
		t.Errorf("answers %d and %d, want 5 and 5", a, b)
	}
}

func TestALaneRefusesWhenItsQueueIsFull(t *testing.T) {
	log := &heldLog{MemoryLog: OpenMemoryLog(0, 1)}
	lane := runLane(t, log, newCounter(), LaneOptions{QueueMax: 4, GroupMax: 2, GroupMin: 1, Writer: WriterOptions{InFlightMax: 1}})
	var group sync.WaitGroup
	var mu sync.Mutex
	refused := 0
	for range 64 {
		group.Go(func() {
			_, err := lane.Submit(t.Context(), 1)
			var full *QueueFullError
			if errors.As(err, &full) && full.RetryAfter > 0 {
				mu.Lock()
				refused++
				mu.Unlock()
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "all have queued or been refused", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return refused >= 64-1-4-2-1-2
	})
	released := 1
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	until(t, "what was let in is answered", func() bool {
		for ; released < log.appended(); released++ {
			log.release(released)
		}
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
}

func TestACommitThatIsFullLeavesTheRestOfTheGroupForTheNext(t *testing.T) {
	log := OpenMemoryLog(0, 1)
	lane := runLane(t, log, newCounter(), LaneOptions{Writer: WriterOptions{CommitBytesMax: 100}})
	var group sync.WaitGroup
	for range 50 {
		group.Go(func() {
			if _, err := lane.Submit(t.Context(), 60); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if sum, err := lane.Submit(t.Context(), 0); err != nil || sum != 50*60 {
		t.Errorf("sum %d, %v; want %d", sum, err, 50*60)
	}
	for number := uint64(1); number <= log.Position().Number; number++ {
		if record, err := log.Read(t.Context(), number); err != nil || len(record.Data) > 400 {
			t.Errorf("commit %d: %d bytes, %v", number, len(record.Data), err)
		}
	}
}

func TestAFencedWriterAnswersNothingAndForgetsWhatItDecided(t *testing.T) {
	log := OpenMemoryLog(0, 1)
	machines := [2]*counter{newCounter(), newCounter()}
	var writers [2]*Writer[int, int]
	for i := range writers {
		writers[i] = NewWriter(Log(log), Machine[int, int](machines[i]), WriterOptions{Lanes: 1, Owner: fmt.Sprint("node-", i)})
	}
	now := time.Unix(1_000_000, 0)
	for i := range writers { // The second one takes the lane from the first.
		if err := writers[i].Open(t.Context(), now); err != nil {
			t.Fatal(err)
		}
	}
	var got error
	writers[0].Propose([]Ask[int, int]{{Question: 3, Reply: func(_ int, err error) { got = err }}}, now)
	err := writers[0].Settle(t.Context())
	var unavailable *UnavailableError
	if !errors.Is(err, ErrFenced) || !errors.As(got, &unavailable) {
		t.Errorf("settle: %v, answer: %v; want fenced and unavailable", err, got)
	}
	if machines[0].decided != 0 || writers[0].Epoch() != 0 || writers[0].InFlight() != 0 {
		t.Errorf("after the step-down: decided %d, epoch %d, in flight %d (W3)", machines[0].decided, writers[0].Epoch(), writers[0].InFlight())
	}
	if err := writers[0].Open(t.Context(), now); err != nil || writers[0].Epoch() != 3 {
		t.Errorf("reopen: %v, epoch %d, want 3", err, writers[0].Epoch())
	}
}

// pursuedLog is a log to which somebody else appends whenever its end comes into sight.
type pursuedLog struct {
	*MemoryLog
	t     *testing.T
	reads int
}

func (l *pursuedLog) Read(ctx context.Context, number uint64) (Record, error) {
	const readsMax = 10_000
	if l.reads++; l.reads > readsMax {
		return Record{}, fmt.Errorf("%d commits were read one by one behind the head, and no end", readsMax)
	}
	if at := l.Position(); number > at.Number {
		if err := l.Append(chainOf(l.t, 0, at, 1, 10)[0]).Wait(ctx); err != nil {
			return Record{}, err
		}
	}
	return l.MemoryLog.Read(ctx, number)
}

func TestOpeningALaneWhoseWriterIsAsFastEnds(t *testing.T) {
	log := &pursuedLog{MemoryLog: OpenMemoryLog(0, 1), t: t}
	writer := NewWriter(log, newCounter(), WriterOptions{Lanes: 1, Owner: "second", Pause: func(context.Context, int) error { return nil }})
	// Behind the last commit that is read, there is none: the fence stands there.
	if err := writer.Open(t.Context(), time.Unix(1, 0)); err != nil {
		t.Fatalf("after %d reads: %v", log.reads, err)
	}
	if writer.Epoch() != readBehindHeadMax+1 {
		t.Fatalf("opened under epoch %d, want %d", writer.Epoch(), readBehindHeadMax+1)
	}
}

// ruledLog is a log whose rule changes when a test says so.
type ruledLog struct {
	*heldLog
	unchained atomic.Bool
}

func (l *ruledLog) ChecksChain() bool { return !l.unchained.Load() }

func TestALaneIsOpenedAgainWhenTheRuleOfItsLogChanges(t *testing.T) {
	log := &ruledLog{heldLog: &heldLog{MemoryLog: OpenMemoryLog(0, 1)}}
	lane := runLane(t, log, newCounter(), LaneOptions{ReopenDelay: time.Millisecond, TickEvery: time.Millisecond})
	answers := make(chan error, 1)
	go func() {
		_, err := lane.Submit(t.Context(), 1)
		answers <- err
	}()
	until(t, "the ask is on its way", func() bool { return log.appended() == 2 })
	log.unchained.Store(true)
	if epoch, ok := lane.Serving(); !ok || epoch != 1 {
		t.Fatalf("serving: %t under epoch %d while a commit is in flight, want epoch 1", ok, epoch)
	}
	log.release(1)
	if err := <-answers; err != nil {
		t.Fatalf("what was in flight: %v", err)
	}
	until(t, "the lane is opened again", func() bool { return log.appended() == 3 })
	log.release(2)
	until(t, "the lane serves again", func() bool { epoch, ok := lane.Serving(); return ok && epoch == 3 })
	go func() {
		_, err := lane.Submit(t.Context(), 1)
		answers <- err
	}()
	until(t, "the next ask is on its way", func() bool { return log.appended() == 4 })
	log.release(3)
	if err := <-answers; err != nil {
		t.Fatal(err)
	}
	if first, last := log.held[1].record, log.held[3].record; first.Unchained || !last.Unchained {
		t.Fatalf("stated the number alone: %t before the change and %t after it, want false and true", first.Unchained, last.Unchained)
	}
}

func TestALostAcknowledgementIsResolvedOnceStored(t *testing.T) {
	for _, replicated := range []bool{false, true} {
		inner := OpenMemoryLog(0, 1)
		log := NewFaultLog(inner, FaultOptions{Replicated: replicated}, rand.New(rand.NewPCG(1, 1)))
		machine := newCounter()
		w := NewWriter(Log(log), Machine[int, int](machine), WriterOptions{Lanes: 1, Pause: func(context.Context, int) error { return nil }})
		if err := w.Open(t.Context(), time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		log.options.AckLost = 1
		sum := 0
		w.Propose([]Ask[int, int]{{Question: 3, Reply: func(s int, err error) {
			if err != nil {
				t.Error(err)
			}
			sum = s
		}}}, time.Unix(2, 0))
		if err := w.Settle(t.Context()); err != nil || sum != 3 || inner.Position().Number != 2 {
			t.Errorf("replicated %t: %v, answer %d, log at %d; want 3 at 2", replicated, err, sum, inner.Position().Number)
		}
	}
}

// awayLog is a log that nobody keeps for so many appends: reads are not answered then, so that whoever reads waits.
type awayLog struct {
	*MemoryLog
	away  atomic.Int32
	reads atomic.Int32
}

func (l *awayLog) Append(r Record) Pending {
	if l.away.Add(-1) >= 0 {
		return &goneAway{}
	}
	return l.MemoryLog.Append(r)
}

func (l *awayLog) Read(ctx context.Context, number uint64) (Record, error) {
	if l.away.Load() > 0 {
		l.reads.Add(1)
		<-ctx.Done()
		return Record{}, ctx.Err()
	}
	return l.MemoryLog.Read(ctx, number)
}

type goneAway struct{}

func (*goneAway) Done() <-chan struct{} { return closedChannel }
func (*goneAway) Wait(context.Context) error {
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, ErrLogAway)
}

func TestACommitIsOfferedAgainUntilSomebodyKeepsTheLog(t *testing.T) {
	log := &awayLog{MemoryLog: OpenMemoryLog(0, 1)}
	var pauses atomic.Int32
	lane := runLane(t, log, newCounter(), LaneOptions{Writer: WriterOptions{AppendTimeout: time.Hour, Pause: func(context.Context, int) error {
		pauses.Add(1)
		return nil
	}}})
	log.away.Store(awayMax - 1)
	if sum, err := lane.Submit(t.Context(), 1); err != nil || sum != 1 {
		t.Fatalf("got %d, %v, want 1", sum, err)
	}
	if reads, paused := log.reads.Load(), pauses.Load(); reads > 0 || paused != awayMax-1 {
		t.Errorf("%d reads were waited for and %d pauses made, want none and %d", reads, paused, awayMax-1)
	}
}

// lossyLog is a log that loses the first append, and answers no reads while nobody keeps what was lost.
type lossyLog struct {
	*MemoryLog
	lost, kept atomic.Bool
}

func (l *lossyLog) Append(r Record) Pending {
	if r.Number > 1 && !l.lost.Swap(true) {
		return settled{ErrUnknownOutcome}
	}
	l.kept.Store(l.lost.Load())
	return l.MemoryLog.Append(r)
}

func (l *lossyLog) Read(ctx context.Context, number uint64) (Record, error) {
	if l.lost.Load() && !l.kept.Load() {
		<-ctx.Done()
		return Record{}, ctx.Err()
	}
	return l.MemoryLog.Read(ctx, number)
}

func TestACommitOfUnknownOutcomeIsOfferedAgainBeforeAnythingIsRead(t *testing.T) {
	log := &lossyLog{MemoryLog: OpenMemoryLog(0, 1)}
	lane := runLane(t, log, newCounter(), LaneOptions{Writer: WriterOptions{AppendTimeout: time.Hour}})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if sum, err := lane.Submit(ctx, 5); err != nil || sum != 5 {
		t.Fatalf("got %d, %v, want 5: nobody answered a read before it was offered again", sum, err)
	}
}

// leaderlessLog is a log whose servers have no common leader: they make no cursor. Its head is unknown for so many questions.
type leaderlessLog struct {
	*MemoryLog
	headless atomic.Int32
}

var errLeaderless = errors.New("no leader")

func (l *leaderlessLog) Follow(context.Context, uint64) (Cursor, error) { return nil, errLeaderless }

func (l *leaderlessLog) Head(ctx context.Context) (uint64, error) {
	if l.headless.Add(-1) >= 0 {
		return 0, errLeaderless
	}
	return l.MemoryLog.Head(ctx)
}

func TestALaneThatIsNearTheHeadIsOpenedWithoutACursor(t *testing.T) {
	log := &leaderlessLog{MemoryLog: OpenMemoryLog(0, 1)}
	appendAll(t, log.MemoryLog, chainOf(t, 0, Genesis(0, 1), readSinglyMax, 10))
	machine := newCounter()
	writer := NewWriter(Log(log), Machine[int, int](machine), WriterOptions{Lanes: 1})
	if err := writer.Open(t.Context(), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if got := machine.position.Number; got != readSinglyMax+1 {
		t.Fatalf("opened at commit %d, want %d", got, readSinglyMax+1)
	}
}

func TestALaneWhoseLogWasAwayIsOpenedSoonAfter(t *testing.T) {
	log := &leaderlessLog{MemoryLog: OpenMemoryLog(0, 1)}
	log.headless.Store(4)
	lane := NewLane(Log(log), Machine[int, int](newCounter()), LaneOptions{ReopenDelay: 24 * time.Hour})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- lane.Run(ctx) }()
	until(t, "the lane serves", func() bool { _, serving := lane.Serving(); return serving })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAFullLogRefusesAndTheLaneGoesOn(t *testing.T) {
	log := OpenMemoryLog(0, 1)
	lane := runLane(t, log, newCounter(), LaneOptions{})
	log.LimitBytes(400)
	if _, err := lane.Submit(t.Context(), 4000); !errors.Is(err, ErrLogFull) {
		t.Fatalf("into a full log: %v", err)
	}
	log.LimitBytes(0)
	if sum, err := lane.Submit(t.Context(), 7); err != nil || sum != 7 {
		t.Errorf("after it has room: %d, %v; want 7: what was refused left no trace", sum, err)
	}
}

func TestADamagedLogEndsTheLane(t *testing.T) {
	log := OpenMemoryLog(0, 1)
	commit := &Commit{Number: 1, PrevHash: Hash{1, 2, 3}, Time: time.Unix(1, 0)}
	if err := log.Append(EncodeCommit(commit)).Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := NewLane(Log(log), Machine[int, int](newCounter()), LaneOptions{Writer: WriterOptions{Lanes: 1}}).Run(t.Context())
	var damage *ChainError
	if !errors.As(err, &damage) || damage.Number != 1 {
		t.Errorf("run: %v, want a ChainError at commit 1 (I2)", err)
	}
}

func TestAStateThatWasMadeOfAnotherLogIsNotTheBaseOfThisOne(t *testing.T) {
	log := OpenMemoryLog(0, 1)
	open := func(m *counter) error {
		return NewWriter(Log(log), Machine[int, int](m), WriterOptions{Lanes: 1}).Open(t.Context(), time.Unix(1, 0))
	}
	machine := newCounter()
	if err := open(machine); err != nil {
		t.Fatal(err)
	}
	machine.position.Hash[0]++
	var damage *ChainError
	if err := open(machine); !errors.As(err, &damage) || damage.Number != 1 {
		t.Errorf("open with another hash at commit 1: %v, want a ChainError (I1)", err)
	}
	machine.position = Position{Number: 9}
	if err := open(machine); !errors.Is(err, ErrNoCommit) || log.Position().Number != 1 {
		t.Errorf("open ahead of the log: %v, log at %d; want a refusal, and nothing appended (I1)", err, log.Position().Number)
	}
}

func TestAFailingDiskEndsTheLane(t *testing.T) {
	machine := newCounter()
	machine.broken = errors.New("input/output error")
	err := NewLane(Log(OpenMemoryLog(0, 1)), Machine[int, int](machine), LaneOptions{Writer: WriterOptions{Lanes: 1}}).Run(t.Context())
	if !errors.Is(err, machine.broken) {
		t.Errorf("run: %v, want the disk's error", err)
	}
}

func TestAnAskWhoseCallerHasLeftIsNotDecided(t *testing.T) {
	log := &heldLog{MemoryLog: OpenMemoryLog(0, 1)}
	lane := runLane(t, log, newCounter(), LaneOptions{Writer: WriterOptions{InFlightMax: 1}})
	first := make(chan int, 1)
	go func() {
		sum, _ := lane.Submit(t.Context(), 1)
		first <- sum
	}()
	until(t, "the first commit is on its way", func() bool { return log.appended() == 2 })
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := lane.Submit(ctx, 10)
		gone <- err
	}()
	until(t, "the second ask queues", func() bool { return len(lane.queue) == 1 || log.appended() == 2 })
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	log.release(1)
	<-first
	last := make(chan int, 1)
	go func() {
		sum, _ := lane.Submit(t.Context(), 100)
		last <- sum
	}()
	until(t, "the last commit is on its way", func() bool { return log.appended() == 3 })
	log.release(2)
	if sum := <-last; sum != 101 {
		t.Errorf("sum %d, want 101: the ask of the caller who left counts 10", sum)
	}
}

func TestEveryAskIsAnsweredWhenTheLaneEnds(t *testing.T) {
	const rounds, callers, patience = 200, 16, 20 * time.Second
	for round := range rounds {
		// Groups of one: more queue when the lane ends than one group takes.
		options := LaneOptions{GroupMax: 1, Writer: WriterOptions{Lanes: 1}, Logger: slog.New(slog.DiscardHandler)}
		lane := NewLane(OpenMemoryLog(0, 1), newCounter(), options)
		ctx, stop := context.WithCancel(t.Context())
		var running, asking sync.WaitGroup
		running.Go(func() {
			if err := lane.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		until(t, "the lane serves", func() bool { _, ok := lane.Serving(); return ok })
		waiting, cancel := context.WithTimeout(t.Context(), patience)
		for range callers {
			asking.Go(func() {
				for {
					switch _, err := lane.Submit(waiting, 1); {
					case errors.Is(err, context.DeadlineExceeded):
						t.Errorf("round %d: an ask was not answered", round)
						return
					case err != nil && ctx.Err() != nil:
						return
					}
				}
			})
		}
		until(t, "the lane is busy", func() bool { return len(lane.queue) > callers/2 })
		stop()
		asking.Wait()
		running.Wait()
		cancel()
		if t.Failed() {
			return
		}
	}
}

func TestSlotsAreSharedAndGivenBack(t *testing.T) {
	slots := NewSlots(2)
	a, b := slots.newHolder(), slots.newHolder()
	if first, again := a.tryAcquire(0), a.tryAcquire(0); !first || !again || !b.tryAcquire(0) || b.tryAcquire(1) {
		t.Fatal("two slots: one for a (asked for twice), one for b, none left")
	}
	a.keep(0)
	if !b.tryAcquire(1) {
		t.Fatal("a gave its slot back, b does not get it")
	}
	b.keep(0)
	if len(slots.free) != 2 {
		t.Errorf("%d slots free, want 2", len(slots.free))
	}
}
