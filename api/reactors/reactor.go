// Package reactors acts on what was decided: it follows the log and has effects elsewhere. A Reactor is the effect, a Runner
// feeds it every lane in order and remembers how far each one is.
//
// What holds, always:
//
//	R1  A position never passes an event whose effect has not succeeded: nothing is skipped, whatever fails or crashes.
//	R2  Events of one key are reacted to one after the other, in the order of the log.
//	R3  A reactor that fails on one lane holds up neither another reactor nor another lane.
//
// Positions are not fsynced. After a crash a reactor goes back to one that it had before and repeats what came after, so an
// effect is idempotent: by Event.ID, or by an id of what it acts on.
//
// Where nodes share the lanes (Options.Shared), the owner of a lane runs its reactors, but for those that run everywhere. It goes on from
// the later of what it remembers itself and what was shared. So at most what succeeded in the last ShareEvery before an owner crashed is
// repeated, or in the moment before it handed the lane over; what it had under way then may end beside the first effects of the
// next owner, and R2 does not hold between the two.
package reactors

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// An Event is one event of the log as a reactor sees it.
type Event struct {
	// ID is "<lane>-<commit>-<index>". It names the event for ever: effects are idempotent by it.
	ID string
	// Lane, Commit and Index say where the event stands. Index counts from 0 in the commit.
	Lane   uint32
	Commit uint64
	Index  int
	// At is the log time of the commit.
	At time.Time
	// Partition of the key, UserID of the user whose aggregate it is or of the caller, AggregateID of what changed.
	Partition   uint32
	UserID      string
	AggregateID string
	// Type is the name of the stored type.
	Type string
	// Fact is what happened.
	Fact domain.Event
}

// A Reactor has an effect on what lies outside of the log, or submits commands.
type Reactor interface {
	// Name names it for people and in the store. It never changes: a reactor of another name begins anew.
	// 1 to 64 characters of a-z 0-9 - / .
	Name() string
	// React has the event's effect. It may have had it before. On an error it is called again with the same event, after a
	// pause that grows; it returns when ctx ends. It may be called by as many goroutines as Registration.InFlightMax and
	// lanes allow.
	React(ctx context.Context, e Event) error
}

// A BatchReactor has the effects of several events of one lane in one step.
type BatchReactor interface {
	Reactor
	// ReactAll has the effects of the events, in order: at most BatchEventsMax of one lane, without a gap between two calls
	// but for events that the reactor does not want. On an error it is called again with the same events, some of which may
	// have had their effects.
	ReactAll(ctx context.Context, events []Event) error
}

// A Registration is a reactor and how it is run.
type Registration struct {
	Reactor Reactor
	// Start says where it begins on a lane on which it has no position. Required.
	Start Start
	// InFlightMax is how many events of one lane may be under way at a time. 0 and 1 mean one after the other, in the
	// order of the log; with more, only events of one key keep their order (R2).
	InFlightMax int
	// Key names what has to stay in order; nil means Event.AggregateID.
	Key func(e Event) string
	// Types are the names of the stored types that it is given; nil means every type. Others are not even decoded.
	Types []string
	// Wants tells of those the events that it reacts to; nil means every event.
	Wants func(fact domain.Event) bool
	// Held is asked before each attempt at an event when InFlightMax is above 1; nil means that nothing is ever held. It returns nil
	// when the event may be tried, and else what is closed when it is to be asked again. What is held up takes no place of those
	// that may be under way.
	Held func(e Event) <-chan struct{}
	// Everywhere says that the reactor runs on every node for every lane, with a position of its own there: it folds events into what
	// the node knows, and has no effect elsewhere.
	Everywhere bool
	// Life tells apart reactors that have one name after each other: what one of an earlier life has shared does not count. A
	// later one's sorts after an earlier one's.
	Life string
	// RetryMin is the pause after a first failure, RetryMax the longest; it doubles with each failure in a row, and is
	// jittered. 0 means RetryMinDefault and RetryMaxDefault.
	RetryMin, RetryMax time.Duration
}

// A Start returns the number of the commit after which a reactor begins, once per lane: it is remembered with the positions.
type Start func(ctx context.Context, lane uint32, log eventstore.Log) (after uint64, err error)

// FromBeginning reacts to everything that the log holds.
func FromBeginning(context.Context, uint32, eventstore.Log) (uint64, error) { return 0, nil }

// FromHead reacts to what is decided from now on. Whoever loses the node's state directory loses where that was, and
// begins at the head of that day: it is for effects that may be missed.
func FromHead(ctx context.Context, _ uint32, log eventstore.Log) (uint64, error) {
	return log.Head(ctx)
}

// Since reacts to what was committed at that log time or later. It does not depend on what this node remembers.
func Since(at time.Time) Start {
	return func(ctx context.Context, lane uint32, log eventstore.Log) (uint64, error) {
		head, err := log.Head(ctx)
		if err != nil {
			return 0, err
		}
		// Log time never goes back, so the first commit that counts is found by halving: at most 64 reads.
		before, from := uint64(0), head+1 // Commit before is too old, commit from is not.
		for before+1 < from {
			middle := before + (from-before)/2
			record, err := log.Read(ctx, middle)
			if err != nil {
				return 0, err
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err != nil {
				return 0, &eventstore.UnreadableCommitError{Lane: lane, Number: middle, Cause: err}
			}
			if commit.Time.Before(at) {
				before = middle
			} else {
				from = middle
			}
		}
		return before, nil
	}
}

// eventsOf decodes the events of a commit that a reactor wants.
func eventsOf(commit *eventstore.Commit, registration *Registration) ([]Event, error) {
	var events []Event
	for i := range commit.Events {
		typeName := commit.Events[i].Type
		if typeName == eventstore.TypeLaneOpened || (registration.Types != nil && !slices.Contains(registration.Types, typeName)) {
			continue
		}
		event, err := eventOf(commit, i)
		if err != nil {
			return nil, err
		}
		if registration.Wants == nil || registration.Wants(event.Fact) {
			events = append(events, event)
		}
	}
	return events, nil
}

// eventOf decodes the event at an index of a commit.
func eventOf(commit *eventstore.Commit, index int) (Event, error) {
	envelope := &commit.Events[index]
	fact, err := stored.Decode(envelope.Type, envelope.Version, envelope.AggregateID, envelope.UserID, envelope.Payload)
	if err != nil {
		return Event{}, &eventstore.UnreadableCommitError{
			Lane: commit.Lane, Number: commit.Number, Cause: fmt.Errorf("event %d: %w", index, err),
		}
	}
	return Event{
		ID: EventID(commit.Lane, commit.Number, index), Lane: commit.Lane, Commit: commit.Number, Index: index, At: commit.Time,
		Partition: envelope.Partition, UserID: envelope.UserID, AggregateID: envelope.AggregateID,
		Type: envelope.Type, Fact: fact,
	}, nil
}

// ErrNoEvent says that there is no event of an id.
var ErrNoEvent = errors.New("there is no such event")

// ReadEvent reads one event from the log. The error is ErrNoEvent when there is none of the id, or a fault.
func ReadEvent(ctx context.Context, topology eventstore.Topology, log func(lane uint32) eventstore.Log, id string) (Event, error) {
	lane, number, index, err := ParseEventID(id)
	if err != nil || lane >= topology.Lanes {
		return Event{}, fmt.Errorf("event %.64q: %w", id, ErrNoEvent)
	}
	record, err := log(lane).Read(ctx, number)
	if errors.Is(err, eventstore.ErrNoCommit) {
		return Event{}, fmt.Errorf("event %s: %w", id, ErrNoEvent)
	}
	if err != nil {
		return Event{}, fmt.Errorf("read event %s: %w", id, err)
	}
	commit, err := eventstore.DecodeCommit(record.Data)
	if err != nil {
		return Event{}, &eventstore.UnreadableCommitError{Lane: lane, Number: number, Cause: err}
	}
	if index >= len(commit.Events) || commit.Events[index].Type == eventstore.TypeLaneOpened {
		return Event{}, fmt.Errorf("event %s: %w", id, ErrNoEvent)
	}
	return eventOf(commit, index)
}

// EventID returns the id of the event at an index, counted from 0, of a commit.
func EventID(lane uint32, commit uint64, index int) string {
	return fmt.Sprintf("%d-%d-%d", lane, commit, index)
}

// ParseEventID reads what EventID wrote, and nothing else.
func ParseEventID(id string) (lane uint32, commit uint64, index int, err error) {
	if n, err := fmt.Sscanf(id, "%d-%d-%d", &lane, &commit, &index); n != 3 || err != nil || EventID(lane, commit, index) != id {
		return 0, 0, 0, fmt.Errorf("%.64q is not the id of an event", id)
	}
	return lane, commit, index, nil
}
