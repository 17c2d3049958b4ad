package eventstore

import "sync"

// Limits of the live tail: what a follower may be behind its lane's writer before it reads from the log instead.
const (
	// TailCommitsMax bounds the commits, tailEventsMax the events in them.
	TailCommitsMax = 1024
	tailEventsMax  = 1 << 16
)

// A tail holds the newest commits that a lane's writer has offered, contiguous and within its limits: the oldest make
// room for the newest.
type tail struct {
	mu     sync.Mutex
	ring   [TailCommitsMax]offer
	oldest int    // index in ring
	count  int    // offers in ring
	events int    // events in them
	newest uint64 // number of the newest commit ever offered
	// ready is signalled when there is something new. It holds one signal.
	ready chan struct{}
}

type offer struct {
	commit *Commit
	at     Position
}

func (t *tail) init() { t.ready = make(chan struct{}, 1) }

func (t *tail) offer(commit *Commit, at Position) {
	t.mu.Lock()
	if at.Number != t.newest+1 {
		t.drop(t.count) // The writer was opened anew further on.
	}
	for t.count > 0 && (t.count == TailCommitsMax || t.events+len(commit.Events) > tailEventsMax) {
		t.drop(1)
	}
	t.ring[(t.oldest+t.count)%TailCommitsMax] = offer{commit, at}
	t.count++
	t.events += len(commit.Events)
	t.newest = at.Number
	t.mu.Unlock()
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

// drop forgets the oldest offers. REQUIRES: mu is held.
func (t *tail) drop(offers int) {
	for range offers {
		t.events -= len(t.ring[t.oldest].commit.Events)
		t.ring[t.oldest] = offer{}
		t.oldest = (t.oldest + 1) % TailCommitsMax
		t.count--
	}
}

// take removes the offers from number next on and appends them to dst. missed says that commits between next and what
// there is were forgotten.
func (t *tail) take(dst []offer, next uint64) (taken []offer, missed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.newest < next {
		t.drop(t.count)
		return dst, false
	}
	if t.oldestNumber() > next {
		return dst, true
	}
	t.drop(int(next - t.oldestNumber()))
	for i := range t.count {
		dst = append(dst, t.ring[(t.oldest+i)%TailCommitsMax])
	}
	t.drop(t.count)
	return dst, false
}

// continues reports whether the tail goes on right after a commit: it is the newest that was offered, or the one after
// it is there.
func (t *tail) continues(number uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if number == 0 || t.newest < number {
		return false
	}
	return t.oldestNumber() <= number+1
}

// oldestNumber returns the number of the oldest offer, one more than the newest when there is none.
// REQUIRES: mu is held, a commit was offered.
func (t *tail) oldestNumber() uint64 { return t.newest + 1 - uint64(t.count) }
