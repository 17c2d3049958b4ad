package projections

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Revision names a position in the log: the state after one commit of one lane.
type Revision struct {
	Lane uint32
	// Commit counts from 1; 0 is before the first.
	Commit uint64
}

// Min is the least that a read has to know, and how long it may wait for it.
type Min struct {
	Lane uint32
	// Commit is the number of a commit; 0 asks for nothing.
	Commit uint64
	// Wait bounds the wait.
	Wait time.Duration
}

// FreshnessState says how a view stands to the log. The numbers are those of weir.type.v1.Freshness.State.
type FreshnessState uint8

// The states of a view.
const (
	// StateFresh: the view holds every commit that this node knows of, and the Min that was asked for.
	StateFresh FreshnessState = 1
	// StateCatchingUp: the view is behind; the answer is true as of its position.
	StateCatchingUp FreshnessState = 2
	// StateRebuilding: the view is being made again, and what answers meanwhile is behind: what an older version of this
	// program left, or as much as has been made so far. The answer is true as of its position.
	StateRebuilding FreshnessState = 3
	// StateParked: an event of this very key could not be taken in, and it and what came after it are left out until the
	// key is replayed. The answer is true as of then.
	StateParked FreshnessState = 4
)

// Freshness says how far the view that answered has followed the log.
type Freshness struct {
	State FreshnessState
	// Lane and Commit are the view's position: the answer holds that commit and all before it.
	Lane   uint32
	Commit uint64
	// LagCommits counts the commits between the position and the newest one known.
	LagCommits uint64
	// AsOf is the log time of the position, zero before the first commit.
	AsOf time.Time
}

// Errors of reads that a caller acts on.
var (
	// ErrNotFound: there is no such key in the view.
	ErrNotFound = errors.New("not found")
	// ErrBehind: there is no such key in the view, but the view does not reach as far as was asked.
	ErrBehind = errors.New("the view is behind")
	// ErrNoSuchLane: a Min names a lane that is not in the topology.
	ErrNoSuchLane = errors.New("no such lane")
	// ErrStopped: the runner that feeds the view has stopped.
	ErrStopped = errors.New("the view's runner has stopped")
)

// freshness returns how far the lane's parts of views are at this moment: the one of them that is furthest behind. Without
// views, how far those are that the runner feeds. It is taken before what it speaks of is read.
func (r *Runner) freshness(of ...*Projection) Freshness {
	applied, state := r.applied.Load(), StateFresh
	for _, p := range of {
		if behind := r.behind[p.space].Load(); behind != nil {
			state = StateRebuilding
			if behind.Number < applied.Number {
				applied = behind
			}
		}
	}
	f := Freshness{State: state, Lane: r.lane, Commit: applied.Number, AsOf: applied.at}
	head, known := r.follower.Head()
	if head > applied.Number {
		f.LagCommits = head - applied.Number
	}
	if f.State == StateFresh && (f.LagCommits > 0 || !known) {
		f.State = StateCatchingUp
	}
	return f
}

// waited returns the freshness of an answer after a wait: one that was not long enough was for a view that is behind.
func (f Freshness) waited(reached bool) Freshness {
	if !reached && f.State == StateFresh {
		f.State = StateCatchingUp
	}
	return f
}

// freshnessAt is freshness of an answer that holds up to a later position than the lane's views, as another node had it.
// Its time is that of the views, which is no later.
func (r *Runner) freshnessAt(position uint64) Freshness {
	f := r.freshness()
	head, known := r.follower.Head()
	f.Commit, f.LagCommits = max(f.Commit, position), 0
	switch {
	case head > f.Commit:
		f.LagCommits = head - f.Commit
	case known:
		f.State = StateFresh
	}
	return f
}

// waitersMax bounds the reads that wait for one lane's views; one more is answered as if its wait were over.
const waitersMax = 1 << 14

// await waits until the lane's views hold a commit. It reports false when wait is over first, or at once when one of the
// views is being made again and does not hold it, and an error when ctx ends.
func (r *Runner) await(ctx context.Context, commit uint64, wait time.Duration, of ...*Projection) (bool, error) {
	for _, p := range of {
		if behind := r.behind[p.space].Load(); behind != nil && behind.Number < commit {
			return false, nil
		}
	}
	if r.applied.Load().Number >= commit {
		return true, nil
	}
	if wait <= 0 {
		return false, nil
	}
	arrived, leave := r.arrivals.enter(commit)
	if arrived == nil {
		return false, nil
	}
	defer leave()
	defer r.demand.Enter()()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-arrived:
		return true, nil
	case <-timer.C:
	case <-r.stopped:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	return r.applied.Load().Number >= commit, nil
}

// arrivals wake whoever waits for a commit, and nobody else.
type arrivals struct {
	mu       sync.Mutex
	byCommit map[uint64]*arrival
	waiters  int
	newest   uint64 // number of the newest commit reached
}

type arrival struct {
	arrived chan struct{}
	waiters int
}

func (a *arrivals) init(newest uint64) {
	a.byCommit = make(map[uint64]*arrival)
	a.newest = newest
}

// enter returns a channel that is closed once the commit is reached, also if it has been reached before, and nil when too
// many wait already. The caller leaves when it no longer waits.
func (a *arrivals) enter(commit uint64) (arrived <-chan struct{}, leave func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.waiters >= waitersMax {
		return nil, nil
	}
	entry := a.byCommit[commit]
	if entry == nil {
		entry = &arrival{arrived: make(chan struct{})}
		if commit <= a.newest {
			close(entry.arrived)
		} else {
			a.byCommit[commit] = entry
		}
	}
	entry.waiters++
	a.waiters++
	return entry.arrived, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.waiters--
		if entry.waiters--; entry.waiters == 0 && a.byCommit[commit] == entry {
			delete(a.byCommit, commit)
		}
	}
}

// reached wakes those who wait for the commit or one before it.
func (a *arrivals) reached(commit uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.newest = commit
	for number, entry := range a.byCommit {
		if number <= commit {
			close(entry.arrived)
			delete(a.byCommit, number)
		}
	}
}

// A ProjectionStatus says how far one projection has followed one lane.
type ProjectionStatus struct {
	Projection string
	Version    uint32
	Freshness
	// Head is the newest commit known.
	Head uint64
	// Stopped says that nothing feeds the view any more.
	Stopped bool
	// ParkedKeys and ParkedEvents count what the view leaves out, ParkedOrders the orders that this is about; at least, as only so many are
	// told apart for each key.
	ParkedKeys, ParkedEvents, ParkedOrders int
}

// Status returns how far each projection has followed the lane.
func (r *Runner) Status() []ProjectionStatus {
	statuses := make([]ProjectionStatus, 0, len(Projections))
	stopped := false
	select {
	case <-r.stopped:
		stopped = true
	default:
	}
	for _, projection := range Projections {
		fresh, parked := r.freshness(projection), r.parked[projection.space].Load()
		statuses = append(statuses, ProjectionStatus{
			Projection: projection.Name, Version: projection.Version, Freshness: fresh,
			Head: fresh.Commit + fresh.LagCommits, Stopped: stopped,
			ParkedKeys: len(parked.byKey), ParkedEvents: parked.events, ParkedOrders: parked.orders(),
		})
	}
	return statuses
}

func (f Freshness) String() string {
	switch f.State {
	case StateFresh:
		return fmt.Sprintf("fresh at commit %d of lane %d", f.Commit, f.Lane)
	case StateCatchingUp:
		return fmt.Sprintf("%d commits behind at commit %d of lane %d", f.LagCommits, f.Commit, f.Lane)
	case StateRebuilding:
		return fmt.Sprintf("being rebuilt, %d commits behind at commit %d of lane %d", f.LagCommits, f.Commit, f.Lane)
	case StateParked:
		return fmt.Sprintf("parked at commit %d of lane %d", f.Commit, f.Lane)
	}
	return "unknown"
}
