package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// A ReplayQuery says what to replay.
type ReplayQuery struct {
	// Projection by name; empty means every one that has the key parked.
	Projection string
	// Key that is parked; empty means all.
	Key string
	// DryRun takes the events in and throws the result away.
	DryRun bool
}

// A Replayed key is a parked one whose events were taken in, in order.
type Replayed struct {
	ParkedKey
	// Failed is the event that still cannot be taken in, and Problem why; empty when all could. Then the key is no longer parked,
	// unless it was a dry run.
	Failed  EventAt
	Problem string
}

// OK reports whether every event could be taken in.
func (r *Replayed) OK() bool { return r.Problem == "" }

// Replay takes in the events of parked keys, of the generations that are fed: each key whole, in the order of the log, in one write with
// the removal of what was parked, or not at all. Other keys and reads go on meanwhile. A generation that is not fed
// parks for itself: its rebuild reads the whole log.
func (r *Runner) Replay(ctx context.Context, query ReplayQuery) ([]Replayed, error) {
	type parkedView struct {
		projection *Projection
		generation byte
		key        string
	}
	var found []parkedView
	if err := r.atBoundary(ctx, func() error {
		for _, v := range r.views {
			if query.Projection != "" && v.projection.Name != query.Projection {
				continue
			}
			for _, key := range v.parked.list(v.projection, v.generation, r.lane) {
				if query.Key == "" || key.Key == query.Key {
					found = append(found, parkedView{v.projection, v.generation, key.Key})
				}
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	replayed := make([]Replayed, 0, len(found))
	for _, p := range found {
		one, still, err := r.replay(ctx, p.projection, p.generation, p.key, query.DryRun)
		if err != nil {
			return replayed, fmt.Errorf("replay %s of view %s in lane %d: %w", p.key, p.projection.Name, r.lane, err)
		}
		if still {
			replayed = append(replayed, one)
		}
	}
	return replayed, nil
}

// parkedEvents are events of a parked key as the log has them, by where they are.
type parkedEvents map[EventAt]change

// read adds events that it does not have.
func (e parkedEvents) read(ctx context.Context, r *Runner, events []EventAt) error {
	var commit *eventstore.Commit
	for _, at := range events {
		if _, known := e[at]; known {
			continue
		}
		if commit == nil || commit.Number != at.Commit {
			record, err := r.log.Read(ctx, at.Commit)
			if err != nil {
				return fmt.Errorf("read commit %d: %w", at.Commit, err)
			}
			if commit, err = eventstore.DecodeCommit(record.Data); err != nil {
				return &UnreadableError{Lane: r.lane, Number: at.Commit, Cause: err}
			}
		}
		changes := changesOf(nil, commit, r.lane, r.topology)
		if commit.Number != at.Commit || int(at.Event) >= len(changes) {
			return &eventstore.ChainError{Lane: r.lane, Number: at.Commit, Reason: fmt.Sprintf("the log does not have %s, which is parked", at)}
		}
		e[at] = changes[at.Event]
	}
	return nil
}

// eventsParkedBy reads the events that generations of a view have parked.
func (r *Runner) eventsParkedBy(ctx context.Context, p *Projection, generations ...byte) (parkedEvents, error) {
	events := make(parkedEvents)
	for _, generation := range generations {
		listed, err := loadParked(r.db, prefixOf(p.space, generation, r.lane))
		if err != nil {
			return nil, err
		}
		for _, key := range listed.byKey {
			if err := events.read(ctx, r, key.events); err != nil {
				return nil, fmt.Errorf("read what view %s has parked: %w", p.Name, err)
			}
		}
	}
	return events, nil
}

// replay replays one key of a generation of a view. It reports false when the key is no longer parked.
func (r *Runner) replay(ctx context.Context, p *Projection, generation byte, key string, dryRun bool) (one Replayed, still bool, err error) {
	events := make(parkedEvents)
	// What is parked by now is read while the runner goes on; what comes meanwhile is little.
	listed, err := loadParked(r.db, prefixOf(p.space, generation, r.lane))
	if err != nil {
		return one, false, err
	}
	if parked := listed.byKey[key]; parked != nil {
		if err := events.read(ctx, r, parked.events); err != nil {
			return one, false, err
		}
	}
	err = r.atBoundary(ctx, func() error {
		i := slices.IndexFunc(r.views, func(v *view) bool { return v.projection == p && v.generation == generation })
		if i < 0 {
			return nil // It was dropped.
		}
		v := r.views[i]
		parked := v.parked.byKey[key]
		if parked == nil {
			return nil
		}
		still = true
		one.ParkedKey = v.parked.describe(v, key)
		if err := events.read(ctx, r, parked.events); err != nil {
			return err
		}
		return r.takeIn(v, key, parked, events, &one, dryRun)
	})
	return one, still, err
}

// takeIn takes the events of a parked key into a batch of their own. REQUIRES: between two batches.
func (r *Runner) takeIn(v *view, name string, key *parkedKey, events parkedEvents, one *Replayed, dryRun bool) (err error) {
	batch := r.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	scratch, err := openView(v.projection, v.generation, r.db, batch, r.lane, r.topology.Lanes)
	if err != nil {
		return err
	}
	for _, at := range key.events {
		c := events[at]
		if err := scratch.again(&c); err != nil {
			var fault *storeFault
			if errors.As(err, &fault) {
				return err
			}
			one.Failed, one.Problem = at, err.Error()
			return nil
		}
	}
	if err := scratch.applier.finish(); err != nil || dryRun {
		return err
	}
	inKey := parkedEventsPrefix(v.prefix, name)
	if err := errors.Join(
		batch.Delete(parkedRecordKey(v.prefix, name), nil),
		batch.DeleteRange(inKey, parkedEventKey(v.prefix, name, EventAt{Commit: ^uint64(0), Event: ^uint32(0)}), nil),
	); err != nil {
		return err
	}
	users := r.missedBy(v, key)
	if err := r.countHeals(batch, users); err != nil {
		return err
	}
	changes, orders := r.healing(v, key, events)
	if r.observer != nil {
		r.observer.Changing(changes)
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("write view %s: %w", v.projection.Name, err)
	}
	if err := v.reopen(r.topology.Lanes); err != nil {
		return err
	}
	r.keysHealed.Add(1)
	r.logger.Info("a parked key is taken in", "view", v.projection.Name, "lane", r.lane, "generation", v.generation, "key", name, "events", len(key.events))
	if v.generation != r.live(v.projection) {
		return nil
	}
	if err := r.fillFilters(); err != nil {
		return err
	}
	r.forgetReads()
	r.publishParked(v) // Now that what reads find is whole.
	if r.observer != nil {
		r.observer.Changed(changes)
	}
	r.watchers.wake(orders)
	r.stockWatchers.wake(changes.StockKeys)
	r.userWatchers.end(users)
	return nil
}

// healing returns what taking in parked events of a view changes for those who copy it; nothing of a generation that does not
// answer.
func (r *Runner) healing(v *view, key *parkedKey, events parkedEvents) (changes *Changes, orders []domain.OrderID) {
	changes = &Changes{Lane: r.lane, Position: r.position.Position}
	if v.generation != r.live(v.projection) {
		return changes, nil
	}
	for _, c := range events {
		if c.order != (domain.OrderID{}) {
			orders = append(orders, c.order)
		}
		if v.projection.touches != nil {
			keys, _ := v.projection.touches(v, &c) // It could be taken in, so they are known.
			if v.projection == &boardProjection {
				changes.Pools = append(changes.Pools, keys...)
			} else {
				changes.StockKeys = append(changes.StockKeys, keys...)
			}
		}
	}
	switch v.projection {
	case &ordersProjection:
		changes.Orders = orders
	case &ordersByUserProjection:
		changes.Users = key.Users.List
	case &campaignsProjection:
		changes.Campaigns = true
	}
	return changes, orders
}

// again takes a parked event in, and makes an error of what goes wrong.
func (v *view) again(c *change) (err error) {
	defer recovered([]*view{v}, &err)
	if c.cause != nil {
		return c.cause
	}
	return v.apply(c)
}

// missedBy returns the users who may have followed all of their orders and missed what was parked of them: those of
// the views of orders, where they answer.
func (r *Runner) missedBy(v *view, key *parkedKey) []string {
	if v.projection != &ordersProjection && v.projection != &ordersByUserProjection || v.generation != r.live(v.projection) {
		return nil
	}
	return key.Users.List
}

// describe returns a parked key of a view.
func (k *parkedKeys) describe(v *view, name string) ParkedKey {
	one := parkedKeys{byKey: map[string]*parkedKey{name: k.byKey[name]}}
	return one.list(v.projection, v.generation, v.lane)[0]
}

// end ends the watches of users' orders: something that they passed has changed.
func (w *userWatchers) end(users []string) {
	if len(users) == 0 || w.count.Load() == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, userID := range users {
		for watching := range w.byUser[userID] {
			watching.end()
		}
	}
}

func (w *userWatcher) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.healed = true
	select {
	case w.woken <- struct{}{}:
	default: // It has not looked at the last signal yet.
	}
}
