package lanes

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/eventstore"
)

// A seat is one lane on this node. While another node decides the lane, the seat follows its log into the lane's state, so that what
// it would decide with is warm; once it is started, it opens the lane and serves it, and stops when it is told to. One goroutine
// runs it, the other methods may be called by any number.
//
// Nobody but the fence keeps two nodes from deciding one lane; a seat only sees to it that this node does not try when it should
// not, and that whoever comes meanwhile is not turned away.
type seat struct {
	set     *Set
	lane    uint32
	options eventstore.LaneOptions
	// machine is run's.
	machine  *Machine
	agent    *agent // nil when there is one lane only
	follower *eventstore.Follower

	// commit is the newest that the state holds. cold says that the state cannot be brought up to date here.
	commit atomic.Uint64
	cold   atomic.Bool
	// reaching counts those that wait until commit has moved, which moved tells them.
	reaching atomic.Int64

	mu       sync.Mutex
	state    seatState
	owner    string        // of a lane that is away, as far as this node was told
	since    time.Time     // when the lane was last opened
	next     *term         // to begin once the one before has ended
	term     *term         // under way
	unfollow func()        // ends standing by; nil while nobody does
	changed  chan struct{} // closed and replaced when the state changes
	moved    chan struct{} // closed and replaced when commit changes while somebody waits for that
	inside   int           // asks that the lane is deciding
	idle     chan struct{} // closed when inside comes to 0; nil while nobody waits for that
	waiting  int           // asks that wait for the lane to be served

	telling sync.Mutex
	told    bool // what OnOwnership was told
}

// A seatState is how a node stands to a lane.
type seatState uint8

const (
	seatAway    seatState = iota // another node's, or nobody's
	seatOpening                  // this node's, not open yet: what comes waits
	seatServing
	seatParked // being handed over: what comes waits
)

// A term is one time that a lane is served here, from when it is opened until it has stopped.
type term struct {
	held    func() bool
	lane    *eventstore.Lane[Request, Outcome]
	stop    func() // may be called by anybody, and again
	stopped chan struct{}
	ended   chan struct{}
}

func newTerm(held func() bool) *term {
	t := &term{held: held, stopped: make(chan struct{}), ended: make(chan struct{})}
	t.stop = sync.OnceFunc(func() { close(t.stopped) })
	return t
}

// Limits of a seat.
const (
	// ParkWaitDefault bounds how long a request waits for a lane that is being opened here, or handed over.
	ParkWaitDefault = 2 * time.Second
	// parkedMax bounds the requests that wait so for one lane; more are refused as by a full queue.
	parkedMax = 1 << 14
	// tendEvery is how often a seat that stands by works off what deciding the lane would have.
	tendEvery = time.Second
	// standbyCommitsMax bounds the commits that a seat that stands by takes in before it writes them down.
	standbyCommitsMax = 256
)

// A NotOwnerError says that a lane is not decided by this node.
type NotOwnerError struct {
	Lane uint32
	// Owner is the id of the node that decides it, "" when that is not known.
	Owner string
}

func (e *NotOwnerError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("lane %d is not decided by this node", e.Lane)
	}
	return fmt.Sprintf("lane %d is not decided by this node but by %s", e.Lane, e.Owner)
}

// A Remote carries requests to the node that owns a lane. Its outcome is that of SubmitLocal there.
type Remote interface {
	Submit(ctx context.Context, lane uint32, request Request) (*Reply, error)
}

// Start serves a lane from now on, as long as held says so: it opens the lane, or goes on with one that is parked. It does not wait.
// REQUIRES: Options.Shared.
func (s *Set) Start(lane uint32, held func() bool) { s.seats[lane].start(held) }

// Park holds up what comes for a lane, and returns once what it had taken is durable and answered, and nothing of this node's is on its
// way to the lane's log. Start has it go on; Stop tells those who wait who has it. After an error it is parked all the same.
func (s *Set) Park(ctx context.Context, lane uint32) error { return s.seats[lane].parkIn(ctx) }

// Stop serves a lane no longer, and takes in who does, "" when nobody knows. It does not wait.
func (s *Set) Stop(lane uint32, owner string) { s.seats[lane].giveUp(owner) }

// Owned reports whether a lane is this node's, serving or about to.
func (s *Set) Owned(lane uint32) bool {
	seat := s.seats[lane]
	seat.mu.Lock()
	defer seat.mu.Unlock()
	return seat.state != seatAway
}

// OwnerOf returns the id of the node that decides a lane which is not here, as far as this node was told; "" when it was not.
func (s *Set) OwnerOf(lane uint32) string {
	seat := s.seats[lane]
	seat.mu.Lock()
	defer seat.mu.Unlock()
	return seat.owner
}

// Status says how this node stands to a lane.
func (s *Set) Status(lane uint32) eventstore.LaneStatus { return s.seats[lane].status() }

func (s *seat) start(held func() bool) {
	s.mu.Lock()
	resumes := s.term != nil && s.state == seatParked && !s.term.isStopped()
	switch {
	case resumes:
		s.turn(seatServing)
	case s.state == seatAway || s.state == seatParked:
		s.next = newTerm(held)
		s.turn(seatOpening)
		if s.unfollow != nil {
			s.unfollow()
		}
	}
	s.mu.Unlock()
	if resumes {
		s.tell(true)
	}
}

func (s *seat) parkIn(ctx context.Context) error {
	s.mu.Lock()
	if s.state == seatAway {
		s.mu.Unlock()
		return nil
	}
	s.next = nil
	t := s.term
	s.turn(seatParked)
	idle := make(chan struct{})
	if s.inside == 0 {
		close(idle)
	} else {
		s.idle = idle
	}
	s.mu.Unlock()
	s.tell(false)
	if t == nil {
		return nil
	}
	select {
	case <-idle:
	case <-ctx.Done():
		return fmt.Errorf("park lane %d: what it has taken is not durable: %w", s.lane, ctx.Err())
	}
	t.stop()
	select {
	case <-t.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("park lane %d: its commits on their way are not settled: %w", s.lane, ctx.Err())
	}
}

func (s *seat) giveUp(owner string) {
	s.tell(false)
	s.mu.Lock()
	s.next = nil
	if s.term != nil {
		s.term.stop()
	}
	s.owner = owner
	s.turn(seatAway) // Also when it was away: who waits elsewhere may want to know the owner.
	s.mu.Unlock()
	if hook := s.set.options.OnOwner; hook != nil && owner != "" {
		hook(s.lane, owner)
	}
}

// turn changes the state. REQUIRES: mu is held.
func (s *seat) turn(state seatState) {
	s.state = state
	close(s.changed)
	s.changed = make(chan struct{})
}

// tell tells OnOwnership what it was not told yet. What it is told last is how it is.
func (s *seat) tell(owned bool) {
	s.telling.Lock()
	defer s.telling.Unlock()
	if s.told != owned {
		s.told = owned
		if hook := s.set.options.OnOwnership; hook != nil {
			hook(s.lane, owned)
		}
	}
}

func (s *seat) status() eventstore.LaneStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	status := eventstore.LaneStatus{Commit: s.commit.Load()}
	status.Head, status.HeadKnown = s.follower.Head()
	if s.cold.Load() {
		status.HeadKnown = false
	}
	if s.term == nil || s.term.lane == nil {
		return status
	}
	lane := s.term.lane
	status.Epoch, status.Serving = lane.Serving()
	status.Serving = status.Serving && s.state == seatServing
	status.Queued, status.DecidedPerSecond = lane.Queued(), lane.DecidedPerSecond()
	if status.Serving {
		status.Head, status.HeadKnown = status.Commit, true
	}
	return status
}

// run stands by and serves, in turns, until ctx ends. An error is one that going on cannot mend.
func (s *seat) run(ctx context.Context) error {
	for {
		t, err := s.standBy(ctx)
		if err != nil || t == nil {
			return err
		}
		if err := s.serve(ctx, t); err != nil {
			return err
		}
	}
}

// standBy follows the log until a term is to begin, which it returns, or ctx ends.
func (s *seat) standBy(ctx context.Context) (*term, error) {
	for {
		s.mu.Lock()
		if isClosed(ctx.Done()) {
			s.next = nil
			s.turn(seatAway)
			s.mu.Unlock()
			return nil, nil
		}
		if t := s.next; t != nil {
			s.next, s.term = nil, t
			s.mu.Unlock()
			return t, nil
		}
		following, unfollow := context.WithCancel(ctx)
		s.unfollow = unfollow
		s.mu.Unlock()
		err := s.follow(following)
		s.mu.Lock()
		s.unfollow = nil
		s.mu.Unlock()
		unfollow()
		if err != nil {
			return nil, err
		}
	}
}

// follow brings the state up to the log's head, and keeps it there until ctx ends. A commit that holds what this program does not know is
// no reason for a node to stop that need not decide the lane: it stays cold, and is given no lanes.
func (s *seat) follow(ctx context.Context) error {
	if s.cold.Load() {
		<-ctx.Done()
		return nil
	}
	err := s.follower.Run(ctx, s.machine.Position(), &standIn{seat: s})
	var unknown *eventstore.ApplyError
	if errors.As(err, &unknown) {
		s.cold.Store(true)
		s.set.logger().Error("the lane's state cannot be kept up to date here: this node can decide none of its commands",
			"lane", s.lane, "error", err)
		<-ctx.Done()
		return nil
	}
	if err != nil {
		return fmt.Errorf("follow lane %d: %w", s.lane, err)
	}
	return nil
}

// serve opens the lane and serves it until the term is stopped, its lease is over or ctx ends.
func (s *seat) serve(ctx context.Context, t *term) error {
	defer close(t.ended)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	options := s.options
	options.Held = func() bool { return !t.isStopped() && t.held() }
	options.Opened = func(uint64) { s.opened(t) }
	lane := eventstore.NewLane(s.set.options.Log(s.lane), s.machine, options)
	s.mu.Lock()
	t.lane = lane
	s.mu.Unlock()
	var running errgroup.Group
	running.Go(func() error {
		select {
		case <-t.stopped:
			cancel()
		case <-ctx.Done():
		}
		return nil
	})
	running.Go(func() error {
		defer cancel()
		return lane.Run(ctx)
	})
	if s.agent != nil {
		running.Go(func() error {
			defer cancel()
			if err := s.agent.run(ctx); err != nil {
				return fmt.Errorf("its escrow: %w", err)
			}
			return nil
		})
	}
	err := running.Wait()
	s.mu.Lock()
	s.term = nil
	ended := s.state == seatServing || s.state == seatOpening && s.next == nil // Nobody told it to stop: the lease is over, or ctx.
	if ended {
		s.owner = ""
		s.turn(seatAway)
	}
	s.mu.Unlock()
	if ended {
		s.tell(false)
	}
	if err != nil {
		return fmt.Errorf("lane %d: %w", s.lane, err)
	}
	return nil
}

// servedSince reports whether the lane has been served here since before a moment: then this node knew at that moment all that was decided in it.
func (s *seat) servedSince(moment time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != seatServing || s.term == nil || s.term.lane == nil || !s.term.held() {
		return false
	}
	_, serving := s.term.lane.Serving()
	return serving && s.since.Before(moment)
}

// opened is called each time that the term's lane begins to serve.
func (s *seat) opened(t *term) {
	s.mu.Lock()
	s.since = time.Now()
	begins := s.term == t && s.state == seatOpening && !t.isStopped()
	if begins {
		s.turn(seatServing)
	}
	s.mu.Unlock()
	if begins {
		s.tell(true)
	}
}

func (t *term) isStopped() bool {
	select {
	case <-t.stopped:
		return true
	default:
		return false
	}
}

// submit decides a request in the lane, once that is served here: it waits for one that is being opened or handed over. Errors beside
// the lane's own: *NotOwnerError.
func (s *seat) submit(ctx context.Context, request Request) (*Reply, error) {
	t, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	return s.decide(ctx, t, request)
}

// submitNow is submit for what comes from the lane's own escrow: it waits for nothing, and is asked for again.
func (s *seat) submitNow(ctx context.Context, request Request) (*Reply, error) {
	s.mu.Lock()
	t := s.term
	if s.state != seatServing || t == nil {
		s.mu.Unlock()
		return nil, s.unavailable()
	}
	s.inside++
	s.mu.Unlock()
	return s.decide(ctx, t, request)
}

// decide has the term's lane decide. REQUIRES: it is counted as inside.
func (s *seat) decide(ctx context.Context, t *term, request Request) (*Reply, error) {
	outcome, err := t.lane.Submit(ctx, request)
	s.leave()
	switch {
	case err != nil:
		return nil, err
	case !t.held():
		// Another node may decide by now, and this one know less than that. What was made durable answers the same request again.
		return nil, s.unavailable()
	case outcome.Refusal != nil:
		return nil, outcome.Refusal
	}
	return outcome.Reply, nil
}

// enter waits until the lane is served here, and counts the caller as inside.
func (s *seat) enter(ctx context.Context) (*term, error) {
	var patience *time.Timer
	for {
		s.mu.Lock()
		switch {
		case s.state == seatServing && s.term.held():
			s.inside++
			t := s.term
			s.mu.Unlock()
			return t, nil
		case s.state == seatAway && s.set.options.Shared:
			owner := s.owner
			s.mu.Unlock()
			return nil, &NotOwnerError{Lane: s.lane, Owner: owner}
		case s.state == seatServing || !s.set.options.Shared:
			s.mu.Unlock()
			return nil, s.unavailable()
		case s.waiting >= parkedMax:
			s.mu.Unlock()
			return nil, &eventstore.QueueFullError{Lane: s.lane, RetryAfter: s.set.options.ParkWait}
		}
		s.waiting++
		changed := s.changed
		s.mu.Unlock()
		if patience == nil {
			patience = time.NewTimer(s.set.options.ParkWait)
			defer patience.Stop()
		}
		var err error
		select {
		case <-changed:
		case <-patience.C:
			err = s.unavailable()
		case <-ctx.Done():
			err = ctx.Err()
		}
		s.mu.Lock()
		s.waiting--
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
	}
}

// leave counts a caller as inside no longer.
func (s *seat) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside--; s.inside == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// moves returns what is closed when the lane is served here no longer, or was not at all.
func (s *seat) moves() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state != seatServing {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return s.changed
}

func (s *seat) unavailable() error {
	return &eventstore.UnavailableError{Lane: s.lane, RetryAfter: time.Second}
}

// A standIn is a seat that stands by, as its follower knows it.
type standIn struct {
	seat    *seat
	pending []standInCommit
	tended  time.Time
}

type standInCommit struct {
	commit *eventstore.Commit
	at     eventstore.Position
}

// Take implements eventstore.Consumer.
func (i *standIn) Take(_ context.Context, commit *eventstore.Commit, at eventstore.Position) error {
	if err := i.seat.machine.Apply(commit, at); err != nil { //nolint:contextcheck // A batch is written whole, whoever leaves meanwhile.
		return &eventstore.ApplyError{Lane: i.seat.lane, Number: at.Number, Cause: err}
	}
	i.pending = append(i.pending, standInCommit{commit, at})
	return nil
}

// Full implements eventstore.Consumer.
func (i *standIn) Full(bool) bool { return len(i.pending) >= standbyCommitsMax }

// Flush implements eventstore.Consumer: the state is written, and the commits shown to whoever follows the lane on this node, so
// that they need not read the log for themselves.
func (i *standIn) Flush(context.Context) error {
	if len(i.pending) == 0 {
		return nil
	}
	last := i.pending[len(i.pending)-1].at.Number
	if err := i.seat.machine.Flush(); err != nil { //nolint:contextcheck // A batch is written whole, whoever leaves meanwhile.
		return &eventstore.ApplyError{Lane: i.seat.lane, Number: last, Cause: err}
	}
	if now := time.Now(); now.Sub(i.tended) >= tendEvery {
		i.tended = now
		if err := i.seat.machine.Tend(); err != nil {
			return &eventstore.ApplyError{Lane: i.seat.lane, Number: last, Cause: err}
		}
	}
	i.seat.applied(last)
	if observe := i.seat.options.Writer.Observe; observe != nil {
		for _, p := range i.pending {
			observe(p.commit, p.at)
		}
	}
	clear(i.pending)
	i.pending = i.pending[:0]
	return nil
}
