package reactors

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/projections"
)

// State says how a reactor stands to a lane.
type State string

// The states of a reactor on a lane.
const (
	// StateFresh: it has reacted to everything that this node knows of.
	StateFresh State = "fresh"
	// StateCatchingUp: it is behind.
	StateCatchingUp State = "catching-up"
	// StateFailing: an effect failed and is tried again; the reactor may be held up by it.
	StateFailing State = "failing"
	// StateStopped: it does not run. It goes on from its position when it does again.
	StateStopped State = "stopped"
)

// A Status says how far one reactor has followed one lane.
type Status struct {
	Reactor string
	Lane    uint32
	State   State
	// Position is the newest commit whose effects, and those of all before, have succeeded; Head the newest known; Lag the
	// commits in between. AsOf is the log time of the position, zero before the first commit.
	Position, Head, Lag uint64
	AsOf                time.Time
	// Failing counts the events that failed and are tried again. The rest is zero when there are none: since when there
	// were some, and the newest failure's error, event and failures in a row.
	Failing  int
	Since    time.Time
	Err      error
	Event    string
	Failures int
}

// Status returns how far each reactor has followed each lane: by lane, and in the order in which they were added.
func (r *Runner) Status() []Status {
	var all []Status
	for lane := range r.byLane {
		for _, t := range *r.byLane[lane].Load() {
			all = append(all, t.status())
		}
	}
	return all
}

func (t *track) status() Status {
	head, known := t.follower.Head()
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Status{
		Reactor: t.name, Lane: t.lane, State: StateFresh, Position: t.done.Number, Head: max(head, t.done.Number), AsOf: t.done.at,
		Failing: t.failing, Since: t.since, Err: t.cause, Event: t.event, Failures: t.attempts,
	}
	s.Lag = s.Head - s.Position
	switch {
	case t.hasStopped():
		s.State = StateStopped
	case t.failing > 0:
		s.State = StateFailing
	case s.Lag > 0 || !known || !t.open:
		s.State = StateCatchingUp
	}
	return s
}

func (t *track) hasStopped() bool {
	select {
	case <-t.stopped:
		return true
	default:
		return false
	}
}

// Recorded returns the positions that a node left in its store, for when no runner runs: by lane, and by name.
func Recorded(store *projections.Store) (all []Status, err error) {
	table := []byte{projections.KeySpaceReactors, TablePositions}
	iter, err := store.DB().NewIter(&pebble.IterOptions{LowerBound: table, UpperBound: []byte{table[0], table[1] + 1}})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for valid := iter.First(); valid; valid = iter.Next() {
		rest := iter.Key()[len(table):]
		name := len(rest) - 3 // A zero and the lane follow.
		if name < 1 || rest[name] != 0 {
			return nil, fmt.Errorf("the position of a reactor has the key %x", iter.Key())
		}
		done, err := decodeProgress(iter.Value())
		if err != nil {
			return nil, fmt.Errorf("reactor %s: %w", rest[:name], err)
		}
		all = append(all, Status{
			Reactor: string(rest[:name]), Lane: uint32(binary.BigEndian.Uint16(rest[name+1:])),
			State: StateStopped, Position: done.Number, Head: done.Number, AsOf: done.at,
		})
	}
	slices.SortStableFunc(all, func(a, b Status) int { return cmp.Compare(a.Lane, b.Lane) })
	return all, nil
}
