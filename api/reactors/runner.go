package reactors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// Limits of a Runner.
const (
	// BatchEventsMax bounds the events that a BatchReactor is given at a time.
	BatchEventsMax = 512
	// windowPerFlight is how many events may wait behind each that is under way, over all keys of a lane: one key that fails
	// holds up the others once they are that far ahead.
	windowPerFlight = 16
	// ReactorsMax bounds the reactors of a node: each follows every lane.
	ReactorsMax = 128
	// nameLenMax is the longest name of a reactor.
	nameLenMax = 64

	// RetryMinDefault and RetryMaxDefault bound the pause before a failed effect is tried again.
	RetryMinDefault = 100 * time.Millisecond
	RetryMaxDefault = time.Minute
)

// Options configure a Runner. Store, Topology and Log are required.
type Options struct {
	Store    *projections.Store
	Topology eventstore.Topology
	// Log returns the log of a lane.
	Log func(lane uint32) eventstore.Log
	// Reactors that run from the start.
	Reactors []Registration
	// Clock tells the time for people; nil means time.Now.
	Clock eventstore.Clock
	// Pause waits for d, until wake is signalled, or until ctx ends, which is its only error. nil means a timer; a test
	// passes one that does not wait.
	Pause func(ctx context.Context, d time.Duration, wake <-chan struct{}) error
	// Logger is told of failures; nil means slog.Default.
	Logger *slog.Logger
}

// A Runner feeds reactors: each one on each lane by itself, with a position of its own. Its methods may be called by any
// number of goroutines.
type Runner struct {
	options Options

	// byLane are the tracks of each lane. Nobody changes a slice that is in there.
	byLane []atomic.Pointer[[]*track]

	mu    sync.Mutex
	start func(*track) // set while Run runs
	ran   bool
}

// New returns a runner of the reactors. Nothing runs until Run does.
func New(options Options) (*Runner, error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	if options.Clock == nil {
		options.Clock = time.Now
	}
	if options.Pause == nil {
		options.Pause = pause
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	r := &Runner{options: options, byLane: make([]atomic.Pointer[[]*track], options.Topology.Lanes)}
	for lane := range r.byLane {
		r.byLane[lane].Store(&[]*track{})
	}
	for _, registration := range options.Reactors {
		if err := r.Add(registration); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// pause waits with a timer.
func pause(ctx context.Context, d time.Duration, wake <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Add adds a reactor. While the runner runs, the reactor does from now on.
func (r *Runner) Add(registration Registration) error {
	name := registration.Reactor.Name()
	if !validName(name) {
		return fmt.Errorf("%q cannot name a reactor: it is not 1 to %d characters of a-z 0-9 - / .", name, nameLenMax)
	}
	if registration.Start == nil {
		return fmt.Errorf("reactor %s does not say where it starts", name)
	}
	if registration.RetryMin == 0 {
		registration.RetryMin = RetryMinDefault
	}
	if registration.RetryMax == 0 {
		registration.RetryMax = max(RetryMaxDefault, registration.RetryMin)
	}
	if registration.Key == nil {
		registration.Key = func(e Event) string { return e.AggregateID }
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	tracks := *r.byLane[0].Load()
	if len(tracks) >= ReactorsMax {
		return fmt.Errorf("there are %d reactors already, and no room for %s", len(tracks), name)
	}
	if slices.ContainsFunc(tracks, func(t *track) bool { return t.name == name }) {
		return fmt.Errorf("there are two reactors %s", name)
	}
	for lane := range r.options.Topology.Lanes {
		t := newTrack(r, name, lane, registration)
		added := append(slices.Clone(*r.byLane[lane].Load()), t)
		r.byLane[lane].Store(&added)
		if r.start != nil {
			r.start(t)
		}
	}
	return nil
}

// Remove ends a reactor, waits until it has ended, and forgets its positions. It need not be there.
func (r *Runner) Remove(name string) error {
	r.mu.Lock()
	var ended []*track
	for lane := range r.byLane {
		left := slices.Clone(*r.byLane[lane].Load())
		left = slices.DeleteFunc(left, func(t *track) bool {
			if t.name == name {
				ended = append(ended, t)
			}
			return t.name == name
		})
		r.byLane[lane].Store(&left)
	}
	r.mu.Unlock()
	for _, t := range ended {
		t.end()
		if t.started {
			<-t.stopped
		}
	}
	// A crash may have left some of one that is not there any more.
	var errs []error
	for lane := range r.options.Topology.Lanes {
		errs = append(errs, r.options.Store.DB().Delete(positionKey(name, lane), pebble.NoSync))
	}
	return errors.Join(errs...)
}

func validName(name string) bool {
	if name == "" || len(name) > nameLenMax {
		return false
	}
	for i := range len(name) {
		switch b := name[i]; {
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9', b == '-', b == '/', b == '.':
		default:
			return false
		}
	}
	return true
}

// Offer tells the reactors of a commit that became durable, so that they need not read it from the log. It is for the lane
// writer's Observer: it does not block.
// REQUIRES: nobody changes the commit any more.
func (r *Runner) Offer(lane uint32, commit *eventstore.Commit, at eventstore.Position) {
	for _, t := range *r.byLane[lane].Load() {
		t.follower.Offer(commit, at)
	}
}

// Run feeds the reactors until ctx ends, which is no error. It returns an error when the log or the store cannot be
// trusted; a reactor that fails is tried again for ever. Nothing that it started runs any more when it returns. It is
// called once.
func (r *Runner) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var running sync.WaitGroup
	r.mu.Lock()
	if r.ran {
		panic("reactors: bug: a Runner runs once")
	}
	r.ran = true
	r.start = func(t *track) {
		t.started = true
		running.Go(func() {
			if err := t.run(ctx); err != nil {
				fail(err)
			}
		})
	}
	for lane := range r.byLane {
		for _, t := range *r.byLane[lane].Load() {
			r.start(t)
		}
	}
	r.mu.Unlock()

	<-ctx.Done()
	r.mu.Lock()
	r.start = nil
	r.mu.Unlock()
	running.Wait()
	if stopped := (*stoppedError)(nil); errors.As(context.Cause(ctx), &stopped) {
		return stopped
	}
	return nil
}

// Retry tries at once what a reactor waits to try again, on every lane.
func (r *Runner) Retry(name string) {
	for lane := range r.byLane {
		for _, t := range *r.byLane[lane].Load() {
			if t.name == name {
				t.wakeAll()
			}
		}
	}
}

// stoppedError says which reactor cannot go on, and why.
type stoppedError struct {
	reactor string
	lane    uint32
	number  uint64
	cause   error
}

func (e *stoppedError) Error() string {
	return fmt.Sprintf("reactor %s stops at commit %d of lane %d: %v", e.reactor, e.number, e.lane, e.cause)
}

func (e *stoppedError) Unwrap() error { return e.cause }
