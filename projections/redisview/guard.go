package redisview

import (
	"encoding/binary"
	"hash/maphash"
	"sync/atomic"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// Limits of a guard.
const (
	// guardSlotsTotal are the slots of all lanes together, 8 bytes each. What Redis holds of a key serves until another key
	// of its slot changes.
	guardSlotsTotal = 1 << 20
	// guardSlotsMin are the slots that a lane has at least.
	guardSlotsMin = 1 << 12
	// historyCommits are the newest commits of a lane whose hashes are kept, 8 bytes each. An entry that is as of an older
	// one is not used.
	historyCommits = 1 << 18
)

// A guard says which entries may be used: it is why Redis may be absent, flushed, slow, or hold what it held yesterday,
// or what it held of another log, and no answer is ever wrong (I6).
//
// An entry says which commit it is as of, by number and hash. It holds all that happened to its key up to that commit. So
// it is good if that commit is one that this node's runner has passed, and if the key has not changed since. The guard keeps the
// newest commits' hashes, and for every key the number of the newest commit that changed it, or rather a key of the
// same slot: a collision only makes an entry useless.
//
// A slot is raised before the change can be read. A reader looks at passed first and at the slot then: an entry
// that passes also holds everything up to the position that was passed.
type guard struct {
	seed  maphash.Seed
	lanes []laneGuard
}

// A laneGuard is written by its lane's runner alone, but for first.
type laneGuard struct {
	slots []atomic.Uint64
	// hashes of the commits from first to seen, by number modulo historyCommits.
	hashes      []atomic.Uint64
	first, seen atomic.Uint64
	// changed is the newest commit whose changes are all in the slots.
	changed atomic.Uint64
	// opened says that the runner has opened the lane. Before, no entry is good.
	opened atomic.Bool
}

func newGuard(lanes uint32) *guard {
	g := &guard{seed: maphash.MakeSeed(), lanes: make([]laneGuard, lanes)}
	slots := max(guardSlotsTotal/int(lanes), guardSlotsMin)
	for i := range g.lanes {
		g.lanes[i].slots = make([]atomic.Uint64, slots)
		g.lanes[i].hashes = make([]atomic.Uint64, historyCommits)
	}
	return g
}

// shortHash is the part of a commit's hash that an entry carries.
func shortHash(hash eventstore.Hash) uint64 { return binary.BigEndian.Uint64(hash[:8]) }

// open begins a lane at a position. What changed before is not known, and first refuses what is as of a commit of before.
func (g *guard) open(lane uint32, at eventstore.Position) {
	l := &g.lanes[lane]
	l.hashes[at.Number%historyCommits].Store(shortHash(at.Hash))
	l.first.Store(at.Number)
	l.seen.Store(at.Number)
	l.changed.Store(at.Number)
	l.opened.Store(true)
}

// pass notes the hash of the lane's next commit.
func (g *guard) pass(lane uint32, at eventstore.Position) {
	l := &g.lanes[lane]
	// first moves before its hash is overwritten, so that hashOf never returns another commit's.
	if at.Number >= historyCommits {
		g.forget(lane, at.Number-historyCommits)
	}
	l.hashes[at.Number%historyCommits].Store(shortHash(at.Hash))
	l.seen.Store(at.Number)
}

// forget refuses what is as of a commit up to a number, whatever its hash. Any goroutine may call it.
func (g *guard) forget(lane uint32, upTo uint64) {
	first := &g.lanes[lane].first
	for now := first.Load(); now <= upTo && !first.CompareAndSwap(now, upTo+1); now = first.Load() {
	}
}

// hashOf returns the hash of a commit that the lane's runner has passed not long ago.
func (g *guard) hashOf(lane uint32, number uint64) (uint64, bool) {
	l := &g.lanes[lane]
	if !l.opened.Load() || number < l.first.Load() || number > l.seen.Load() {
		return 0, false
	}
	hash := l.hashes[number%historyCommits].Load()
	return hash, number >= l.first.Load()
}

// raise notes what is about to change.
func (g *guard) raise(changes *projections.Changes) {
	lane, number := changes.Lane, changes.Position.Number
	for i := range changes.Orders {
		g.slot(orderSubject(lane, changes.Orders[i])).Store(number)
	}
	for _, user := range changes.Users {
		g.slot(subject{kind: kindRecent, lane: lane, text: user}).Store(number)
	}
	for _, user := range changes.Erased {
		g.slot(subject{kind: kindRecent, lane: lane, text: user}).Store(number)
	}
	for _, key := range changes.StockKeys {
		g.slot(subject{kind: kindStock, lane: lane, text: key}).Store(number)
	}
	for _, pool := range changes.Pools {
		g.slot(subject{kind: kindTally, lane: lane, text: pool}).Store(number)
	}
	if changes.Campaigns {
		g.slot(subject{kind: kindBoard, lane: lane}).Store(number)
	}
	g.lanes[lane].changed.Store(number)
}

func (g *guard) slot(s subject) *atomic.Uint64 {
	var h maphash.Hash
	h.SetSeed(g.seed)
	_ = h.WriteByte(byte(s.kind))
	_, _ = h.WriteString(s.text)
	slots := g.lanes[s.lane].slots
	return &slots[h.Sum64()%uint64(len(slots))]
}

// admits reports whether an entry about a subject, as of a commit, is good, and the newest commit up to which it then
// holds everything.
func (g *guard) admits(s subject, asOf uint64, hash uint64) (upTo uint64, good bool) {
	upTo = g.lanes[s.lane].changed.Load() // Before the slot is looked at.
	known, passed := g.hashOf(s.lane, asOf)
	if !passed || known != hash || asOf < g.slot(s).Load() {
		return 0, false
	}
	return max(upTo, asOf), true
}
