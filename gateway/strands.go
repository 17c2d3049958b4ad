package gateway

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/outcome"
	"github.com/weirhq/weir/gateway/registry"
)

// Strands are the calls that wait at some node for a lane that nobody decides: its node was killed, or hangs, and another one takes it over
// soon. They cost that node next to nothing and are no fault of it, so that neither breaker nor balancer hears of how they end; and they
// give back their places among the calls under way, which are for calls that get something done. Instead there is a bound of their own for each
// lane. What comes for it beyond that is refused at once, and told when the lane is likely to be decided again.
type strands struct {
	// known is how many lanes there are, for those who take no lock.
	known atomic.Int32

	mu    sync.Mutex
	lanes map[uint32]*strand
	count int
	// took is how long a lane was undecided, the last time that one was.
	took time.Duration
}

// A strand is the calls of one lane.
type strand struct {
	count int
	// since and last are when it was seen first and last that nobody decides it, zero once somebody does, and felt is whether a call waited for it.
	since, last time.Time
	felt        bool
}

const (
	// strandedAfter is how long a call takes until it is looked again whether anybody decides its lane.
	strandedAfter = 100 * time.Millisecond
	// strandedLaneMax bounds the calls that wait for one lane, and strandedMax those that wait for any.
	strandedLaneMax, strandedMax = 64, 1024
	// undecidedTimeMin and undecidedTimeMax bound how long a lane is taken to be undecided, and strandedAgain is when to come again once it
	// should be over.
	undecidedTimeMin, undecidedTimeMax = 100 * time.Millisecond, 30 * time.Second
	strandedAgain                      = 500 * time.Millisecond
	// strandedSpread is by how much of it the time differs that callers are told, so that they do not come all at once.
	strandedSpread = 0.25
)

// errStranded is why a call that waits at one node is not sent to another in its place: no other finds anybody either who decides the lane.
var errStranded = errors.New("the call waits for a lane that nobody decides")

func newStrands() *strands {
	// A node that falls silent is taken to be gone after its time to live in the registry, and another one has its lanes soon after.
	return &strands{lanes: map[uint32]*strand{}, took: registry.TTLDefault}
}

// refuses reports whether a call for a lane is refused, since as many wait as may, and when it should come again. It is told whether the lane is
// undecided.
func (s *strands) refuses(lane uint32, undecided bool) (after time.Duration, refused bool) {
	if !undecided && s.known.Load() == 0 {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !undecided {
		s.decided(lane)
		return 0, false
	}
	one := s.of(lane)
	if one.count < strandedLaneMax && s.count < strandedMax {
		return 0, false
	}
	after = max(s.took-one.last.Sub(one.since), strandedAgain)
	return after + time.Duration(rand.Float64()*strandedSpread*float64(after)), true
}

// of returns the strand of a lane that nobody decides now. The lock is held.
func (s *strands) of(lane uint32) *strand {
	one := s.lanes[lane]
	if one == nil {
		one = &strand{}
		s.lanes[lane] = one
		s.known.Add(1)
	}
	one.last = time.Now()
	if one.since.IsZero() {
		one.since = one.last
	}
	return one
}

// decided takes in that somebody decides a lane, whose calls may still be there. The lock is held.
func (s *strands) decided(lane uint32) {
	one := s.lanes[lane]
	if one == nil {
		return
	}
	if one.felt {
		s.took = min(max(one.last.Sub(one.since), undecidedTimeMin), undecidedTimeMax)
	}
	one.since, one.felt = time.Time{}, false
	if one.count == 0 {
		delete(s.lanes, lane)
		s.known.Add(-1)
	}
}

// enter counts a call that waits for a lane, and returns what counts it out again.
func (s *strands) enter(lane uint32) (leave func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.of(lane)
	one.felt = true
	one.count++
	s.count++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		one.count--
		s.count--
	}
}

// waiting is how many calls there are.
func (s *strands) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// laneUnavailable is the answer to a call for a lane for which as many wait as may.
func laneUnavailable(after time.Duration) *refusal {
	return &refusal{
		reason: reasonLaneUnavailable, retryAfter: after,
		message: "the node that decides for this user does not answer, and another one takes over; nothing was done",
	}
}

// watchLane has an attempt count as stranded once it waits for a lane that nobody decides, at once if that is known. What it returns ends that.
func (g *Gateway) watchLane(call *call, to *target) (end func()) {
	if !call.needsLane() {
		return func() {}
	}
	w := &laneWatch{}
	if g.strand(w, call, to) {
		return w.leave
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(strandedAfter, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.ended && !g.strand(w, call, to) {
			w.timer.Reset(strandedAfter)
		}
	})
	return w.end
}

// strand counts an attempt as stranded if nobody decides its lane, and reports whether it does.
func (g *Gateway) strand(w *laneWatch, call *call, to *target) bool {
	if !call.undecided() {
		return false
	}
	leave := g.strands.enter(call.lane)
	call.stranded.Add(1)
	w.leave = func() {
		call.stranded.Add(-1)
		leave()
	}
	if !to.pick.Owns() { // The one that should decide is to be known to hang.
		to.withdraw()
	}
	call.leave(outcome.Abandoned)
	return true
}

// A laneWatch looks whether anybody decides the lane of an attempt under way.
type laneWatch struct {
	timer *time.Timer

	mu    sync.Mutex
	ended bool
	leave func() // nil while the attempt is not stranded
}

func (w *laneWatch) end() {
	w.timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.leave != nil {
		w.leave()
	}
}
