package reactors

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// A track is one reactor on one lane.
type track struct {
	name         string
	lane         uint32
	registration Registration
	runner       *Runner
	follower     *eventstore.Follower
	ended        chan struct{} // closed when the reactor was removed
	end          func()
	started      bool            // set before the runner lets go of its mutex
	stopped      chan struct{}   // closed when run has returned
	before       <-chan struct{} // closed when the track has ended that ran here before; nil when none did

	mu   sync.Mutex
	done progress // the newest commit whose events, and all before, have had their effects
	open bool     // done is known
	told uint64   // number of the position that was shared last
	// failing counts the events that failed and are tried again; the rest is about the newest failure.
	failing  int
	since    time.Time // of the first failure since nothing failed
	attempts int
	event    string
	cause    error
	wake     chan struct{} // closed and replaced to end the pauses
}

// progress is how far a track is.
type progress struct {
	eventstore.Position
	// at is the log time of the commit.
	at time.Time
}

func newTrack(r *Runner, name string, lane uint32, registration Registration) *track {
	t := &track{
		name: name, lane: lane, registration: registration, runner: r,
		follower: eventstore.NewFollower(eventstore.FollowerOptions{Lane: lane, Log: r.options.Log(lane), Logger: r.options.Logger}),
		ended:    make(chan struct{}), stopped: make(chan struct{}), wake: make(chan struct{}),
	}
	t.end = sync.OnceFunc(func() { close(t.ended) })
	return t
}

// run feeds the reactor until ctx ends or the reactor was removed.
func (t *track) run(ctx context.Context) error {
	defer close(t.stopped)
	ctx, cancel := context.WithCancel(ctx)
	var ending sync.WaitGroup
	ending.Go(func() {
		select {
		case <-t.ended:
			cancel()
		case <-ctx.Done():
		}
	})
	defer ending.Wait()
	defer cancel()
	if t.before != nil {
		<-t.before // It was told to end, and shares its position at last.
	}
	err := t.resume(ctx)
	if err == nil {
		err = t.feed(ctx)
		t.share(context.WithoutCancel(ctx))
	}
	if err == nil || (ctx.Err() != nil && errors.Is(err, ctx.Err())) {
		return nil
	}
	return &stoppedError{reactor: t.name, lane: t.lane, number: t.position().Number, cause: err}
}

func (t *track) feed(ctx context.Context) error {
	at := t.position().Position
	if _, batches := t.registration.Reactor.(BatchReactor); batches || t.registration.InFlightMax <= 1 {
		return t.follower.Run(ctx, at, &inOrder{track: t})
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	consumer := newByKey(t, cancel)
	err := t.follower.Run(ctx, at, consumer)
	cancel()
	return errors.Join(err, consumer.wait())
}

// resume finds out where the reactor goes on: after the later of what this node and what the nodes remember. A reactor that is new on
// the lane is given its start, which is made durable at once: the head of tomorrow is another one.
func (t *track) resume(ctx context.Context) error {
	done, found, err := t.local()
	if err != nil {
		return err
	}
	if t.shares() {
		var shared progress
		var there bool
		err := t.insist(ctx, "resume", func() (err error) {
			shared, there, err = t.shared(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if there && (!found || shared.Number > done.Number) {
			if err := t.advance(shared); err != nil {
				return err
			}
			done, found = shared, true
		}
	}
	if found {
		t.set(done)
		return nil
	}
	if err := t.insist(ctx, "start", func() (err error) {
		done, err = t.begin(ctx)
		return err
	}); err != nil {
		return err
	}
	if err := t.advance(done); err != nil {
		return err
	}
	t.share(ctx)
	return t.runner.options.Store.Flush()
}

// insist does what the track cannot go on without, until it succeeds, ctx ends, or the log cannot be trusted.
func (t *track) insist(ctx context.Context, what string, do func() error) error {
	for attempt := 1; ; attempt++ {
		err := do()
		if err == nil {
			return nil
		}
		var chain *eventstore.ChainError
		var missing *eventstore.MissingLogError
		var unreadable *eventstore.UnreadableCommitError
		if errors.As(err, &chain) || errors.As(err, &missing) || errors.As(err, &unreadable) || ctx.Err() != nil {
			return err
		}
		if err := t.retryLater(ctx, attempt, what, err); err != nil {
			return err
		}
	}
}

// local returns the position that this node remembers.
func (t *track) local() (done progress, found bool, err error) {
	value, closer, err := t.runner.options.Store.DB().Get(positionKey(t.name, t.lane))
	if errors.Is(err, pebble.ErrNotFound) {
		return progress{}, false, nil
	}
	if err != nil {
		return progress{}, false, fmt.Errorf("read its position: %w", err)
	}
	done, err = decodeProgress(value)
	return done, true, errors.Join(err, closer.Close())
}

// shares reports whether nodes share the track's position.
func (t *track) shares() bool { return t.runner.options.Shared != nil && !t.registration.Everywhere }

// shared returns the position that the nodes remember. One that is not in the log is of another log, or of what this one lost: it
// does not count.
func (t *track) shared(ctx context.Context) (done progress, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, shareMax)
	defer cancel()
	at, found, err := t.runner.options.Shared.Load(ctx, t.name, t.lane)
	if err != nil || !found || at.Life != t.registration.Life {
		return progress{}, false, err
	}
	if at.Number > 0 {
		record, err := t.runner.options.Log(t.lane).Read(ctx, at.Number)
		if err != nil && !errors.Is(err, eventstore.ErrNoCommit) {
			return progress{}, false, err
		}
		if err != nil || record.Hash != at.Hash {
			t.runner.options.Logger.Warn("the position that nodes share of a reactor is not in the log and does not count",
				"reactor", t.name, "lane", t.lane, "commit", at.Number)
			return progress{}, false, nil
		}
	}
	t.mu.Lock()
	t.told = at.Number
	t.mu.Unlock()
	return progress{Position: at.Position, at: at.At}, true, nil
}

// share shares the position if it has moved. It need not succeed: what is not known is repeated.
func (t *track) share(ctx context.Context) {
	t.mu.Lock()
	done, told, open := t.done, t.told, t.open
	t.mu.Unlock()
	if !open || !t.shares() || done.Number <= told {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, shareMax)
	defer cancel()
	err := t.runner.options.Shared.Store(ctx, t.name, t.lane, eventstore.ReactorPosition{Position: done.Position, At: done.at, Life: t.registration.Life})
	if err != nil {
		t.runner.options.Logger.Warn("a reactor's position cannot be shared: the next owner of its lane repeats more", "reactor", t.name, "lane", t.lane, "error", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.told = max(t.told, done.Number)
}

// begin asks the registration for the start.
func (t *track) begin(ctx context.Context) (progress, error) {
	log := t.runner.options.Log(t.lane)
	after, err := t.registration.Start(ctx, t.lane, log)
	if err != nil {
		return progress{}, err
	}
	if after == 0 {
		return progress{Position: eventstore.Genesis(t.lane, t.runner.options.Topology.Lanes)}, nil
	}
	record, err := log.Read(ctx, after)
	if err != nil {
		return progress{}, fmt.Errorf("read commit %d, after which it starts: %w", after, err)
	}
	commit, err := eventstore.DecodeCommit(record.Data)
	if err != nil {
		return progress{}, &eventstore.UnreadableCommitError{Lane: t.lane, Number: after, Cause: err}
	}
	return progress{Position: eventstore.Position{Number: after, Hash: record.Hash}, at: commit.Time}, nil
}

// react has the effects of the events, and tries until they succeeded or ctx ends (R1). slots bounds the attempts that are
// under way; nil means that there is one anyway. held says what an attempt has to wait for, nil for nothing: it waits without a
// slot, which what it waits for may need.
func (t *track) react(ctx context.Context, slots chan struct{}, held func() <-chan struct{}, attempt func() error, event string) error {
	for failures := 0; ; {
		if slots != nil {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			if wait := held(); wait != nil {
				<-slots
				select {
				case <-wait:
					continue
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		err := attempt()
		if slots != nil {
			<-slots
		}
		if err == nil {
			t.recovered(failures)
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failures++
		if err := t.retryLater(ctx, failures, event, err); err != nil {
			return err
		}
	}
}

// retryLater notes a failure and waits. It returns ctx's error when that ended.
func (t *track) retryLater(ctx context.Context, failures int, event string, cause error) error {
	delay := t.registration.RetryMin
	for doubled := 1; doubled < failures && delay < t.registration.RetryMax; doubled++ {
		delay *= 2
	}
	delay = min(delay, t.registration.RetryMax)
	delay = delay/2 + rand.N(delay/2+1)
	t.mu.Lock()
	if failures == 1 {
		t.failing++
		if t.failing == 1 {
			t.since = t.runner.options.Clock()
		}
	}
	t.attempts, t.event, t.cause = failures, event, cause
	wake := t.wake
	t.mu.Unlock()
	if bits.OnesCount(uint(failures)) == 1 { // The 1st, 2nd, 4th, 8th, … in a row.
		t.runner.options.Logger.Warn("a reactor failed, trying again",
			"reactor", t.name, "lane", t.lane, "event", event, "failures", failures, "after", delay, "error", cause)
	}
	return t.runner.options.Pause(ctx, delay, wake)
}

// recovered notes that what had failed so often succeeded.
func (t *track) recovered(failures int) {
	if failures == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failing--; t.failing == 0 {
		t.since, t.attempts, t.event, t.cause = time.Time{}, 0, "", nil
	}
}

func (t *track) wakeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.wake)
	t.wake = make(chan struct{})
}

func (t *track) position() progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.done
}

func (t *track) set(done progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done, t.open = done, true
	if t.failing > 0 && (t.event == "start" || t.event == "resume") {
		t.failing, t.since, t.attempts, t.event, t.cause = 0, time.Time{}, 0, "", nil
	}
}

// advance writes a new position down. It is not fsynced: see the package.
func (t *track) advance(done progress) error {
	value := binary.BigEndian.AppendUint64(make([]byte, 0, progressBytes), done.Number)
	value = append(value, done.Hash[:]...)
	value = binary.BigEndian.AppendUint64(value, uint64(nanos(done.at)))
	if err := t.runner.options.Store.DB().Set(positionKey(t.name, t.lane), value, pebble.NoSync); err != nil {
		return fmt.Errorf("write its position: %w", err)
	}
	t.set(done)
	return nil
}

// Keys of the reactors are projections.KeySpaceReactors, a table, and then what the table's owner makes of the rest:
//
//	TablePositions    name 0x00 lane (2 bytes)     number, hash and log time of the position; this package
//	TableEndpoints    endpoint id                  what is known of it; package webhooks
//	TableDeliveries   endpoint id 0x00 number      what came of an attempt; package webhooks
//	TableRaised       endpoint id                  why an endpoint is raised; package webhooks
//	TableWork         order id (16 bytes)          what an order waits for; package paying
//	TableOrphans      payment id                   money without an order; package paying
const (
	TablePositions  byte = 'p'
	TableEndpoints  byte = 'w'
	TableDeliveries byte = 'd'
	TableRaised     byte = 'r'
	TableWork       byte = 'o'
	TableOrphans    byte = 'u'
)

func positionKey(name string, lane uint32) []byte {
	key := append([]byte{projections.KeySpaceReactors, TablePositions}, name...)
	return binary.BigEndian.AppendUint16(append(key, 0), uint16(lane))
}

// progressBytes is number, hash and log time.
const progressBytes = 8 + len(eventstore.Hash{}) + 8

func decodeProgress(value []byte) (progress, error) {
	if len(value) != progressBytes {
		return progress{}, fmt.Errorf("its position has %d bytes, want %d", len(value), progressBytes)
	}
	var p progress
	p.Number = binary.BigEndian.Uint64(value)
	copy(p.Hash[:], value[8:])
	if at := int64(binary.BigEndian.Uint64(value[8+len(p.Hash):])); at != 0 {
		p.at = time.Unix(0, at).UTC()
	}
	return p, nil
}

func nanos(at time.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return at.UnixNano()
}
