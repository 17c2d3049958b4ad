package reactors

import (
	"context"
	"sync"

	"github.com/weirhq/weir/eventstore"
)

// inOrder reacts to the events of a lane one after the other, or batch by batch.
type inOrder struct {
	track  *track
	events []Event // taken in and not reacted to
	marks  []mark  // ends of commits, ascending
	taken  int     // commits since the last flush
}

// takenMax bounds the commits that are taken in before the position is written down, also when none holds an event that the
// reactor wants.
const takenMax = 4096

// A mark is where a commit ends.
type mark struct {
	events int // number of events before its end
	at     progress
}

func (c *inOrder) Take(_ context.Context, commit *eventstore.Commit, at eventstore.Position) error {
	events, err := eventsOf(commit, &c.track.registration)
	if err != nil {
		return err
	}
	c.taken++
	c.events = append(c.events, events...)
	end := mark{events: len(c.events), at: progress{Position: at, at: commit.Time}}
	if last := len(c.marks) - 1; last >= 0 && c.marks[last].events == end.events {
		c.marks[last] = end
	} else {
		c.marks = append(c.marks, end)
	}
	return nil
}

func (c *inOrder) Full(bool) bool { return len(c.events) >= BatchEventsMax || c.taken >= takenMax }

// Flush has the effects, and writes the position down at the end of each commit. After an error it is not called again.
func (c *inOrder) Flush(ctx context.Context) error {
	reactor := c.track.registration.Reactor
	batches, isBatch := reactor.(BatchReactor)
	done := 0
	for done < len(c.events) {
		next := done + 1
		attempt := func() error { return reactor.React(ctx, c.events[done]) }
		if isBatch {
			next = min(done+BatchEventsMax, len(c.events))
			attempt = func() error { return batches.ReactAll(ctx, c.events[done:next]) }
		}
		if err := c.track.react(ctx, nil, nil, attempt, c.events[done].ID); err != nil {
			return err
		}
		done = next
		if err := c.reached(done); err != nil {
			return err
		}
	}
	if err := c.reached(done); err != nil {
		return err
	}
	clear(c.events)
	c.events, c.marks, c.taken = c.events[:0], c.marks[:0], 0
	return nil
}

// reached moves the position past the commits that end within so many events.
func (c *inOrder) reached(events int) error {
	ended := 0
	for ended < len(c.marks) && c.marks[ended].events <= events {
		ended++
	}
	if ended == 0 {
		return nil
	}
	at := c.marks[ended-1].at
	c.marks = c.marks[:copy(c.marks, c.marks[ended:])]
	return c.track.advance(at)
}

// byKey reacts to events of different keys at a time, and to those of one key in order (R2). The position is the end of the
// last commit before which nothing is under way.
type byKey struct {
	track *track
	// fail ends the context that the consumer is fed with.
	fail context.CancelFunc
	// slots bounds the attempts under way, window the events that were taken in and are not done.
	slots, window chan struct{}
	workers       sync.WaitGroup

	mu      sync.Mutex
	queues  map[string][]task // by key: events behind the one that is under way
	flights []*flight         // commits with events that are not done, oldest first
	err     error             // why it failed
}

// A task is an event and the commit that waits for it.
type task struct {
	event  Event
	flight *flight
}

// A flight is a commit, with those after it that hold nothing to react to.
type flight struct {
	left int // events that are not done
	at   progress
}

func newByKey(t *track, fail context.CancelFunc) *byKey {
	return &byKey{
		track: t, fail: fail, slots: make(chan struct{}, t.registration.InFlightMax),
		window: make(chan struct{}, windowPerFlight*t.registration.InFlightMax), queues: map[string][]task{},
	}
}

// wait returns when the workers have, with what they failed of. Nobody feeds the consumer any more.
func (c *byKey) wait() error {
	c.workers.Wait()
	return c.err
}

func (c *byKey) Take(ctx context.Context, commit *eventstore.Commit, at eventstore.Position) error {
	events, err := eventsOf(commit, &c.track.registration)
	if err != nil {
		return err
	}
	f, err := c.depart(len(events), progress{Position: at, at: commit.Time})
	if err != nil {
		return err
	}
	for _, event := range events {
		select {
		case c.window <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		c.enqueue(ctx, task{event, f})
	}
	return nil
}

// depart adds a commit to those that are not done.
func (c *byKey) depart(events int, at progress) (*flight, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if events > 0 {
		f := &flight{left: events, at: at}
		c.flights = append(c.flights, f)
		return f, nil
	}
	if last := len(c.flights) - 1; last >= 0 {
		c.flights[last].at = at
		return nil, nil
	}
	return nil, c.track.advance(at)
}

// enqueue puts an event behind those of its key, or begins with it.
func (c *byKey) enqueue(ctx context.Context, next task) {
	key := c.track.registration.Key(next.event)
	c.mu.Lock()
	defer c.mu.Unlock()
	if behind, busy := c.queues[key]; busy {
		c.queues[key] = append(behind, next)
		return
	}
	c.queues[key] = nil
	c.workers.Go(func() { c.work(ctx, key, next) })
}

// work reacts to the events of a key until there are no more.
func (c *byKey) work(ctx context.Context, key string, next task) {
	for more := true; more; {
		event := next.event
		attempt := func() error { return c.track.registration.Reactor.React(ctx, event) }
		held := func() <-chan struct{} { return nil }
		if c.track.registration.Held != nil {
			held = func() <-chan struct{} { return c.track.registration.Held(event) }
		}
		if c.track.react(ctx, c.slots, held, attempt, event.ID) != nil {
			return // It stops, and this event is not done.
		}
		next, more = c.arrive(key, next.flight)
		<-c.window
	}
}

// arrive notes that an event of the flight is done, and returns the next of its key.
func (c *byKey) arrive(key string, f *flight) (next task, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f.left--
	ended := 0
	for ended < len(c.flights) && c.flights[ended].left == 0 {
		ended++
	}
	if ended > 0 {
		at := c.flights[ended-1].at
		c.flights = c.flights[ended:]
		if err := c.track.advance(at); err != nil {
			c.err = err
			c.fail()
		}
	}
	behind := c.queues[key]
	if len(behind) == 0 {
		delete(c.queues, key)
		return task{}, false
	}
	c.queues[key] = behind[1:]
	return behind[0], true
}

func (c *byKey) Full(bool) bool { return false }

func (c *byKey) Flush(context.Context) error { return nil }
