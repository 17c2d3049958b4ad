package feed

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/eventstore"
)

// Name of the reactor that publishes.
const Name = "event-feed"

// A Publisher is where public events go: *eventstore.EventFeed.
type Publisher interface {
	// Publish stores the messages in their order, all or none. After an error nobody knows which; after eventstore.ErrFeedElsewhere none, and
	// another node may have published events of their lane.
	Publish(ctx context.Context, messages []eventstore.FeedMessage) error
	// Last returns the id of the newest event of a lane that was published.
	Last(ctx context.Context, lane uint32) (id string, found bool, err error)
}

// A Reactor publishes each public event once, in the order of its lane. What was published is read from the stream itself,
// at the start and after every failure: neither a crash nor a lost acknowledgement makes a gap or a second copy.
type Reactor struct {
	publisher Publisher

	mu   sync.Mutex
	last map[uint32]place // newest event that was published, by lane; absent while it is not known
}

// A place is where an event stands on its lane. The zero place is before all.
type place struct {
	commit uint64
	index  int
}

func (p place) before(other place) bool {
	return p.commit < other.commit || (p.commit == other.commit && p.index < other.index)
}

// NewReactor returns a reactor that publishes.
func NewReactor(publisher Publisher) *Reactor {
	return &Reactor{publisher: publisher, last: map[uint32]place{}}
}

// Registration returns how the reactor is run. On a lane on which this node has not published it begins where the stream ends,
// and with the first event when the stream has none.
func (r *Reactor) Registration() reactors.Registration {
	return reactors.Registration{
		Reactor: r, Wants: IsPublic,
		Start: func(ctx context.Context, lane uint32, _ eventstore.Log) (uint64, error) {
			last, err := r.published(ctx, lane)
			if err != nil || last.commit == 0 {
				return 0, err
			}
			return last.commit - 1, nil // Of that commit, some events may be missing.
		},
	}
}

// Name implements reactors.Reactor.
func (r *Reactor) Name() string { return Name }

// React implements reactors.Reactor.
func (r *Reactor) React(ctx context.Context, e reactors.Event) error {
	return r.ReactAll(ctx, []reactors.Event{e})
}

// ReactAll implements reactors.BatchReactor. A lane that comes back from another node is looked at again: what this node knows of it is
// from before.
func (r *Reactor) ReactAll(ctx context.Context, events []reactors.Event) error {
	err := r.publish(ctx, events)
	if errors.Is(err, eventstore.ErrFeedElsewhere) {
		err = r.publish(ctx, events)
	}
	return err
}

func (r *Reactor) publish(ctx context.Context, events []reactors.Event) error {
	lane := events[0].Lane
	last, err := r.published(ctx, lane)
	if err != nil {
		return err
	}
	messages := make([]eventstore.FeedMessage, 0, len(events))
	next := last
	for _, e := range events {
		at := place{e.Commit, e.Index}
		if !last.before(at) {
			continue // It was published before a crash, or before an acknowledgement was lost.
		}
		public, ok := Public(e)
		if !ok {
			continue
		}
		data, err := JSON(public)
		if err != nil {
			return err
		}
		messages = append(messages, eventstore.FeedMessage{ID: e.ID, Partition: e.Partition, Type: e.Type, Data: data})
		next = at
	}
	if err := r.publisher.Publish(ctx, messages); err != nil {
		r.forget(lane)
		return err
	}
	r.note(lane, next)
	return nil
}

// published returns the newest event of a lane that was published.
func (r *Reactor) published(ctx context.Context, lane uint32) (place, error) {
	r.mu.Lock()
	last, known := r.last[lane]
	r.mu.Unlock()
	if known {
		return last, nil
	}
	id, found, err := r.publisher.Last(ctx, lane)
	if err != nil {
		return place{}, err
	}
	if found {
		var of uint32
		of, last.commit, last.index, err = reactors.ParseEventID(id)
		if err != nil || of != lane {
			return place{}, fmt.Errorf("the newest event of lane %d that was published has the id %q", lane, id)
		}
	}
	r.note(lane, last)
	return last, nil
}

func (r *Reactor) note(lane uint32, last place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[lane] = last
}

func (r *Reactor) forget(lane uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, lane)
}
