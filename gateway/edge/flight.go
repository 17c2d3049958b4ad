package edge

import (
	"net/http"
	"sync"
	"time"
)

// flights are the reads on their way to upstreams whose answer others wait for. Only reads that may be answered from memory at any time are among
// them: who joins one gets what upstreams read before it asked, and without a plan that says so nobody does.
type flights struct {
	mu    sync.Mutex
	byKey map[requestKey]*flight
}

// A flight is one read. Whoever asks the very same meanwhile waits for its end, or for that of its own call.
type flight struct {
	landed chan struct{}
	// given is the answer, for everybody; nil if whoever asked left before it came. alone says that each asks for itself: it is too large to hold, or broke off.
	given *answer
	alone bool
}

// join returns the flight of a key, and whether the caller is the one to make it.
func (f *flights) join(key requestKey) (joined *flight, makes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if joined = f.byKey[key]; joined != nil {
		return joined, false
	}
	joined = &flight{landed: make(chan struct{}), alone: true}
	f.byKey[key] = joined
	return joined, true
}

// land ends a flight.
func (f *flights) land(key requestKey, ended *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.byKey, key)
	close(ended.landed)
}

// serveTogether answers a read that is not in memory: one caller asks upstreams, and the others who ask the very same wait. If the one leaves, which
// fails nobody else, one of the others asks.
func (e *Edge) serveTogether(w http.ResponseWriter, r *http.Request, next http.Handler, rule Stale, key requestKey) {
	for {
		joined, makes := e.stale.flights.join(key)
		if makes {
			defer e.stale.flights.land(key, joined)          // Also if the proxy breaks off, which is a panic.
			if kept, found := e.inMemory(rule, key); found { // Another flight landed since the caller looked.
				joined.given = kept
				e.give(w, kept)
				return
			}
			given := e.ask(w, r, next, key)
			// An error that its own end made is of no use to others.
			left := r.Context().Err() != nil
			if joined.alone = given == nil && !left; !left {
				joined.given = given
			}
			if given != nil {
				given.write(w, time.Time{}, "")
			}
			return
		}
		select {
		case <-joined.landed:
		case <-r.Context().Done():
			next.ServeHTTP(w, r) // Which says that it is over, in the protocol of the call.
			return
		}
		switch {
		case joined.given != nil:
			e.give(w, joined.given)
			return
		case joined.alone:
			next.ServeHTTP(w, r)
			return
		}
	}
}

// give answers with what somebody else asked for.
func (e *Edge) give(w http.ResponseWriter, given *answer) {
	if codeOf(given) != 0 {
		given.write(w, time.Time{}, "")
		return
	}
	e.counts[countStalePlanned].Add(1)
	given.write(w, time.Now(), "stale; plan")
}
