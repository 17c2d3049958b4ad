package edge

import (
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/gateway/outcome"
)

// askers are the users, by hash, whose order was let pass and may have been placed without their knowing: it is under way, or was placed, or what
// became of it is not known. Whoever was refused by a node is none of them. Memory is bounded; while more come than are kept, everybody counts as
// one of them, and nobody is refused wrongly.
type askers struct {
	mu    sync.Mutex
	users map[uint64]asker
	swept time.Time
	full  time.Time // until then everybody counts
}

type asker struct {
	underWay int
	until    time.Time // it counts until then, if none of its calls is under way
}

// begin notes that a user's order is let pass.
func (a *askers) begin(now time.Time, user uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.users == nil {
		a.users = map[uint64]asker{}
	}
	if now.Sub(a.swept) > askerCounts {
		a.sweep(now)
	}
	known, is := a.users[user]
	if !is && len(a.users) >= askersMax {
		a.full = now.Add(askerCounts)
		return
	}
	known.underWay++
	a.users[user] = known
}

// end notes what became of it.
func (a *askers) end(now time.Time, user uint64, code connect.Code) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, is := a.users[user]
	if !is {
		return // There was no room.
	}
	known.underWay = max(0, known.underWay-1)
	if end := outcome.OfCode(code); code == 0 || end == outcome.Fault || end == outcome.Abandoned {
		known.until = now.Add(askerCounts)
	}
	a.users[user] = known
	if known.underWay == 0 && !now.Before(known.until) {
		delete(a.users, user)
	}
}

// sweep forgets those of long ago. The lock is held.
func (a *askers) sweep(now time.Time) {
	a.swept = now
	for user, known := range a.users {
		if known.underWay == 0 && !now.Before(known.until) {
			delete(a.users, user)
		}
	}
}

// has reports whether a user counts.
func (a *askers) has(now time.Time, user uint64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, is := a.users[user]
	return now.Before(a.full) || is && (known.underWay > 0 || now.Before(known.until))
}
