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

	// ShareEvery is how often positions that have moved are shared, shareMax bounds how long that takes.
	ShareEvery = time.Second
	shareMax   = 2 * time.Second

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
	// Shared has the positions that nodes share. With it, only reactors of lanes that Own has named run, and those that run
	// everywhere. nil means that this node has every lane.
	Shared SharedPositions
	// Clock tells the time for people; nil means time.Now.
	Clock eventstore.Clock
	// Pause waits for d, until wake is signalled, or until ctx ends, which is its only error. nil means a timer; a test
	// passes one that does not wait.
	Pause func(ctx context.Context, d time.Duration, wake <-chan struct{}) error
	// Logger is told of failures; nil means slog.Default.
	Logger *slog.Logger
}

// SharedPositions are how far reactors are, for whichever node runs them next. *eventstore.ReactorPositions implements it.
type SharedPositions interface {
	// Load returns the position of a reactor on a lane; found is false when there is none.
	Load(ctx context.Context, reactor string, lane uint32) (at eventstore.ReactorPosition, found bool, err error)
	// Store stores a position, unless there is a later one.
	Store(ctx context.Context, reactor string, lane uint32, at eventstore.ReactorPosition) error
}

// A Runner feeds reactors: each one on each lane by itself, with a position of its own. Its methods may be called by any
// number of goroutines.
type Runner struct {
	options Options

	// byLane are the tracks of each lane. Nobody changes a slice that is in there.
	byLane []atomic.Pointer[[]*track]

	mu            sync.Mutex
	registrations []named
	owned         []bool                     // lanes whose reactors run here; all of them, when they are not shared
	ending        map[string]<-chan struct{} // by reactor and lane: closed when the track that ran before has ended
	start         func(*track)               // set while Run runs
	ran           bool
}

// named is a registration and its reactor's name.
type named struct {
	name string
	Registration
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
	r := &Runner{
		options: options, byLane: make([]atomic.Pointer[[]*track], options.Topology.Lanes),
		owned: make([]bool, options.Topology.Lanes), ending: map[string]<-chan struct{}{},
	}
	for lane := range r.byLane {
		r.byLane[lane].Store(&[]*track{})
		r.owned[lane] = options.Shared == nil
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
	if len(r.registrations) >= ReactorsMax {
		return fmt.Errorf("there are %d reactors already, and no room for %s", len(r.registrations), name)
	}
	if slices.ContainsFunc(r.registrations, func(other named) bool { return other.name == name }) {
		return fmt.Errorf("there are two reactors %s", name)
	}
	added := named{name, registration}
	r.registrations = append(r.registrations, added)
	for lane := range r.options.Topology.Lanes {
		if r.owned[lane] || registration.Everywhere {
			r.place(lane, added)
		}
	}
	return nil
}

// place adds a track, and starts it if the runner runs. REQUIRES: mu is held.
func (r *Runner) place(lane uint32, registration named) {
	t := newTrack(r, registration.name, lane, registration.Registration)
	t.before = r.ending[string(positionKey(t.name, lane))]
	added := append(slices.Clone(*r.byLane[lane].Load()), t)
	r.byLane[lane].Store(&added)
	if r.start != nil {
		r.start(t)
	}
}

// take removes the tracks of a lane that match, ends them, and returns them. REQUIRES: mu is held.
func (r *Runner) take(lane uint32, matches func(*track) bool) (taken []*track) {
	left := slices.DeleteFunc(slices.Clone(*r.byLane[lane].Load()), func(t *track) bool {
		if matches(t) {
			taken = append(taken, t)
			return true
		}
		return false
	})
	r.byLane[lane].Store(&left)
	for _, t := range taken {
		t.end()
		if t.started {
			r.ending[string(positionKey(t.name, lane))] = t.stopped
		}
	}
	return taken
}

// Own says whether the reactors of a lane run here from now on. It does not wait for those that end; should the lane come back, it waits
// for them then. REQUIRES: Options.Shared.
func (r *Runner) Own(lane uint32, owned bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.owned[lane] == owned {
		return
	}
	r.owned[lane] = owned
	if !owned {
		r.take(lane, func(t *track) bool { return !t.registration.Everywhere })
		return
	}
	for _, registration := range r.registrations {
		if !registration.Everywhere {
			r.place(lane, registration)
		}
	}
}

// Remove ends a reactor, waits until it has ended, and forgets its positions on this node. It need not be there.
func (r *Runner) Remove(name string) error {
	r.mu.Lock()
	r.registrations = slices.DeleteFunc(r.registrations, func(other named) bool { return other.name == name })
	var ended []<-chan struct{}
	for lane := range r.options.Topology.Lanes {
		r.take(lane, func(t *track) bool { return t.name == name })
		key := string(positionKey(name, lane))
		if stopped := r.ending[key]; stopped != nil {
			ended = append(ended, stopped)
			delete(r.ending, key)
		}
	}
	r.mu.Unlock()
	for _, stopped := range ended {
		<-stopped
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
	if r.options.Shared != nil {
		running.Go(func() { r.share(ctx) })
	}

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

// share shares the positions that have moved, until ctx ends.
func (r *Runner) share(ctx context.Context) {
	tick := time.NewTicker(ShareEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for lane := range r.byLane {
			for _, t := range *r.byLane[lane].Load() {
				t.share(ctx)
			}
		}
	}
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
