package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections/readpath"
)

// Limits of a Runner.
const (
	// batchCommitsMax and batchBytesMax bound what one Pebble batch takes in off the live tail.
	batchCommitsMax = 512
	batchBytesMax   = 2 << 20
	// bulkCommitsMax and Bulk.Full bound a batch that is read from the log.
	bulkCommitsMax = 1 << 16
)

// RunnerOptions configure a Runner.
type RunnerOptions struct {
	// Store to keep the views in.
	Store *Store
	// Lane to follow, of Lanes.
	Lane, Lanes uint32
	// Log of the lane.
	Log eventstore.Log
	// Pace is how long after a batch the next one is begun, at the earliest, while commits come faster than that and no read waits for
	// them. 0 means as soon as a commit comes.
	Pace time.Duration
	// Observer is told what changes; nil for none.
	Observer Observer
	// Level2 is a cache of orders that nodes share, between this node's memory and its view; nil is none. Its keys are the
	// order ids as text, its values the orders' records, its positions numbers of the lane's commits.
	Level2 readpath.Level2
	// Logger is told when the log cannot be read, and when a key is parked; nil means slog.Default.
	Logger *slog.Logger
}

// A Runner feeds one lane to every projection, in order: many commits to one Pebble batch, with the position in the
// same batch. It checks the numbers and the chain of everything it reads, and stops at a commit that does not fit (I2).
type Runner struct {
	lane     uint32
	topology eventstore.Topology
	log      eventstore.Log
	store    *Store
	db       *pebble.DB
	follower *eventstore.Follower

	// mu is held while a commit is taken in or a batch is written, and by who adds or removes a view in between.
	mu sync.Mutex
	// waiting are called at the next flush boundary.
	waiting []*boundary

	views    []*view // fed, all at the runner's position after every flush
	batch    *pebble.Batch
	bulk     *Bulk    // writes the batch
	position progress // newest commit in the batch
	pending  int      // commits in the batch
	torn     bool     // the batch holds a part of a commit
	// sample, if it is not nil, says which partitions' orders are taken in: Verify's runner leaves out the others.
	sample  func(partition uint32) bool
	changes []change    // events of the commit that is being taken in
	changed changedKeys // by the batch

	observer Observer // nil for none
	observed Changes

	reads        *laneReads
	sharesOrders bool // there is a Level2
	shared       atomic.Pointer[[]*sharedReads]
	arrivals     arrivals
	demand       eventstore.Demand // of who waits for arrivals
	watchers     watchers[domain.OrderID]
	// stockWatchers follow the stock of a key, in every lane.
	stockWatchers watchers[string]
	// userWatchers follow all orders of a user.
	userWatchers userWatchers
	started      atomic.Bool
	stopped      chan struct{} // closed when Run returns

	applied atomic.Pointer[progress]
	// parked is what the generation that answers leaves out, by space. Nobody changes what it points to.
	parked                 [256]atomic.Pointer[parkedKeys]
	keysParked, keysHealed atomic.Uint64
	logger                 *slog.Logger
	// behind says for a view, by space, that what answers reads is not fed, and where it stands; nil when it is fed.
	behind [256]atomic.Pointer[progress]
}

// NewRunner opens a lane's views. Until Run runs they are read as they are. A view that another version of this program
// wrote, or that is behind the others, is not fed: a Rebuilder makes it again.
func NewRunner(options RunnerOptions) (*Runner, error) {
	topology := eventstore.Topology{Lanes: options.Lanes}
	if err := topology.Validate(); err != nil {
		return nil, err
	}
	if options.Lane >= options.Lanes {
		return nil, fmt.Errorf("there is no lane %d of %d", options.Lane, options.Lanes)
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	r := &Runner{
		lane: options.Lane, topology: topology, log: options.Log, store: options.Store, db: options.Store.db, logger: options.Logger,
		stopped: make(chan struct{}), observer: options.Observer, observed: Changes{Lane: options.Lane}, sharesOrders: options.Level2 != nil,
	}
	r.follower = eventstore.NewFollower(eventstore.FollowerOptions{
		Lane: options.Lane, Log: options.Log, Pace: options.Pace, Demand: &r.demand, Logger: options.Logger,
	})
	r.shared.Store(new([]*sharedReads))
	r.reads = newLaneReads(r, options.Level2)
	if err := r.open(); err != nil {
		return nil, fmt.Errorf("open the views of lane %d: %w", r.lane, err)
	}
	r.arrivals.init(r.position.Number)
	r.watchers.init()
	r.stockWatchers.init()
	r.userWatchers.init()
	if r.observer != nil {
		r.observer.Opened(r.lane, r.position.Position)
	}
	return r, nil
}

// open opens the views that are as far as the one furthest ahead, which is the runner's position.
func (r *Runner) open() error {
	r.bulk = r.store.NewBulk(viewGroupBytes)
	r.batch = r.bulk.NewBatch()
	r.position = progress{Position: eventstore.Genesis(r.lane, r.topology.Lanes)}
	for _, p := range Projections {
		at, err := r.liveProgress(p)
		if err != nil {
			return err
		}
		if at.version == p.Version && at.Number >= r.position.Number {
			r.position = at.progress
		}
	}
	for _, p := range Projections {
		at, err := r.liveProgress(p)
		if err != nil {
			return err
		}
		if err := r.loadParked(p); err != nil {
			return err
		}
		if at.version != p.Version || at.Position != r.position.Position {
			r.behind[p.space].Store(&at.progress)
			continue
		}
		if err := r.openView(p, r.live(p)); err != nil {
			return err
		}
		if err := r.openKept(p); err != nil {
			return err
		}
	}
	applied := r.position
	r.applied.Store(&applied)
	return r.fillFilters()
}

// tellAlso has the runner say what changed to one more who reads over all lanes.
func (r *Runner) tellAlso(reads *sharedReads) {
	for {
		told := r.shared.Load()
		more := append(slices.Clip(*told), reads)
		if r.shared.CompareAndSwap(told, &more) {
			return
		}
	}
}

// versionedProgress is a view's progress, and the version that wrote the view.
type versionedProgress struct {
	progress
	version uint32
}

// liveProgress returns how far the generation is that answers reads. One whose keys the reads do not understand answers no
// more: the next generation does, from its genesis on.
func (r *Runner) liveProgress(p *Projection) (versionedProgress, error) {
	version, at, err := storedProgress(r.db, p, r.live(p), r.lane, r.topology.Lanes)
	if err != nil {
		return versionedProgress{}, err
	}
	if version == p.Version || p.reads(version) {
		return versionedProgress{at, version}, nil
	}
	generation := r.store.generations.next(p, r.lane)
	err = r.store.point(p, []uint32{r.lane}, func(uint32, pointer) pointer { return pointer{live: generation} }, func(batch *pebble.Batch) error {
		return wipe(batch, p, generation, r.lane)
	})
	return versionedProgress{progress{Position: eventstore.Genesis(r.lane, r.topology.Lanes)}, p.Version}, err
}

// reads reports whether the projection's reads understand what a version wrote.
func (p *Projection) reads(version uint32) bool {
	return version == p.Version || p.ReadsSince > 0 && version >= p.ReadsSince && version < p.Version
}

func (r *Runner) openView(p *Projection, generation byte) error {
	v, err := openView(p, generation, r.db, r.batch, r.lane, r.topology.Lanes)
	if err != nil {
		return err
	}
	r.views = append(r.views, v)
	return nil
}

// openKept opens the generation of a view that answered before, if it is where the one is that answers now. It was fed in
// the same batches; where it was not, it is of no use.
func (r *Runner) openKept(p *Projection) error {
	kept := r.store.generations.of(p.space, r.lane).kept
	if kept == 0 {
		return nil
	}
	version, at, err := storedProgress(r.db, p, kept, r.lane, r.topology.Lanes)
	if err != nil || version != p.Version || at.Position != r.position.Position {
		return err
	}
	return r.openView(p, kept)
}

// A boundary is a function that waits for the runner to be between two batches.
type boundary struct {
	do   func() error
	done chan error // holds one
}

// atBoundary calls do between two batches: what the store holds is then the fold of the log up to the runner's position,
// and stays so while do runs. It does so too before Run runs. When ctx ends first, do is not called.
func (r *Runner) atBoundary(ctx context.Context, do func() error) error {
	r.mu.Lock()
	if r.pending == 0 && !r.torn {
		defer r.mu.Unlock()
		return do()
	}
	b := &boundary{do: do, done: make(chan error, 1)}
	r.waiting = append(r.waiting, b)
	r.mu.Unlock()
	var err error
	select {
	case err := <-b.done:
		return err
	case <-r.stopped:
		err = ErrStopped
	case <-ctx.Done():
		err = ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, waiting := range r.waiting {
		if waiting == b {
			r.waiting = append(r.waiting[:i], r.waiting[i+1:]...)
			return err
		}
	}
	return <-b.done // It was called meanwhile.
}

// adopt feeds a view from now on. REQUIRES: between two batches; the view is at the runner's position.
func (r *Runner) adopt(v *view) error {
	if v.progress.Position != r.position.Position {
		panic(fmt.Sprintf("projections: bug: view %s of lane %d comes at commit %d, want %d", v.projection.Name, r.lane, v.progress.Number, r.position.Number))
	}
	v.batch = r.batch
	r.views = append(r.views, v)
	r.publishParked(v)
	if v.generation == r.live(v.projection) {
		return r.swapped(v.projection)
	}
	return nil
}

// abandon no longer feeds a generation of a view. REQUIRES: between two batches.
func (r *Runner) abandon(p *Projection, generation byte) {
	r.views = slices.DeleteFunc(r.views, func(v *view) bool { return v.projection == p && v.generation == generation })
}

// feeds reports whether it feeds a generation of a view. REQUIRES: between two batches.
func (r *Runner) feeds(p *Projection, generation byte) bool {
	return slices.ContainsFunc(r.views, func(v *view) bool { return v.projection == p && v.generation == generation })
}

// swapped is called when a generation that is fed begins to answer reads. REQUIRES: between two batches.
func (r *Runner) swapped(p *Projection) error {
	healed, err := r.publishSwapped(p)
	if err != nil {
		return err
	}
	if err := r.fillFilters(); err != nil {
		return err
	}
	r.forgetReads()
	if r.observer != nil {
		r.observer.Swapped(r.lane)
	}
	if r.behind[p.space].Swap(nil) != nil || len(healed) > 0 { // Now that what answers is fed and nothing else is remembered, not before.
		r.watchers.wakeAll()
		r.stockWatchers.wakeAll()
	}
	r.userWatchers.end(healed)
	return nil
}

// live returns the generation of a projection that answers reads.
func (r *Runner) live(p *Projection) byte { return r.store.generations.of(p.space, r.lane).live }

// prefix is that of the keys of a projection that answer reads. A read takes it after it has waited, and before it takes a
// snapshot: a generation that has answered stays for a while after it no longer does.
func (r *Runner) prefix(p *Projection) prefix { return prefixOf(p.space, r.live(p), r.lane) }

// Lane returns the lane that the runner feeds.
func (r *Runner) Lane() uint32 { return r.lane }

// Demand says whether a read waits for what the views do not hold yet.
func (r *Runner) Demand() *eventstore.Demand { return &r.demand }

// Position returns the newest commit that every view of the lane holds.
func (r *Runner) Position() eventstore.Position { return r.applied.Load().Position }

// Offer tells the runner of a commit that became durable, so that it need not read it from the log. It is the lane
// writer's Observer: it does not block, and the runner reads what it missed from the log.
// REQUIRES: nobody changes the commit any more.
func (r *Runner) Offer(commit *eventstore.Commit, at eventstore.Position) {
	r.follower.Offer(commit, at)
}

// Run feeds the views until ctx ends, which is no error, or until the log or the store cannot be trusted: a gap or a
// broken chain is an *eventstore.ChainError, a log that is gone an *eventstore.MissingLogError, and a commit that cannot be
// read an *UnreadableError. An event that cannot be taken in is parked, and one that cannot be parked a *PoisonError. A log
// that cannot be reached is tried again. Run is called once.
func (r *Runner) Run(ctx context.Context) error {
	if r.started.Swap(true) {
		panic("projections: bug: a Runner runs once")
	}
	defer func() {
		close(r.stopped)
		r.stockWatchers.wakeAll() // They follow other runners, too.
	}()
	defer func() { _ = r.batch.Close() }()
	err := r.follow(ctx)
	if !r.torn {
		err = errors.Join(err, intake{r}.Flush(ctx))
	}
	if err != nil {
		return fmt.Errorf("views of lane %d stop at commit %d: %w", r.lane, r.applied.Load().Number, readableError(err))
	}
	return nil
}

// readableError turns the follower's word for a commit that cannot be decoded into the views' own.
func readableError(err error) error {
	var unreadable *eventstore.UnreadableCommitError
	if errors.As(err, &unreadable) {
		return &UnreadableError{Lane: unreadable.Lane, Number: unreadable.Number, Cause: unreadable.Cause}
	}
	return err
}

// intake is the Runner as its follower knows it.
type intake struct{ r *Runner }

func (i intake) Take(_ context.Context, commit *eventstore.Commit, at eventstore.Position) error {
	i.r.mu.Lock()
	defer i.r.mu.Unlock()
	return i.r.take(commit, at)
}

// Full takes larger batches off the log than off the live tail.
func (i intake) Full(bulk bool) bool {
	if bulk {
		return i.r.pending >= bulkCommitsMax || i.r.bulk.Full(i.r.batch.Len())
	}
	return i.r.pending >= batchCommitsMax || i.r.batch.Len() >= batchBytesMax
}

func (i intake) Flush(context.Context) error {
	i.r.mu.Lock()
	defer i.r.mu.Unlock()
	return i.r.flush() //nolint:contextcheck // A batch is written whole, whoever leaves meanwhile.
}

// takeRecord reads a commit and takes it into the batch.
func (r *Runner) takeRecord(record eventstore.Record) error {
	commit, err := eventstore.DecodeCommit(record.Data)
	if err != nil {
		return &UnreadableError{Lane: r.lane, Number: record.Number, Cause: err}
	}
	return r.take(commit, eventstore.Position{Number: record.Number, Hash: record.Hash})
}

// take checks that the commit is the next one and takes it into the batch.
func (r *Runner) take(commit *eventstore.Commit, at eventstore.Position) error {
	if err := r.position.CheckAt(commit, at, r.lane); err != nil {
		return err
	}
	r.changes = changesOf(r.changes[:0], commit, r.lane, r.topology)
	r.torn = true
	if err := r.takeChanges(); err != nil {
		return err
	}
	r.torn = false
	for i := range r.changes {
		r.note(&r.changes[i])
	}
	if r.observer != nil {
		r.observer.Passing(r.lane, at)
		r.observed.note(r.changes)
	}
	r.position = progress{Position: at, at: commit.Time}
	for _, v := range r.views {
		v.progress = r.position
	}
	r.pending++
	return nil
}

// takeChanges takes the events of a commit into each view.
func (r *Runner) takeChanges() (err error) {
	defer recovered(r.views, &err)
	for _, v := range r.views {
		for i := range r.changes {
			if r.sample != nil && v.projection.byOrder && r.changes[i].kind.isOrder() && !r.sample(r.changes[i].order.Partition()) {
				continue
			}
			if err := v.take(&r.changes[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// changesOf reads the envelopes of a commit's events. A change whose envelope cannot be read says so.
func changesOf(dst []change, commit *eventstore.Commit, lane uint32, topology eventstore.Topology) []change {
	for i := range commit.Events {
		c, err := changeOf(&commit.Events[i], commit.Number, commit.Time, lane, topology)
		c.index, c.cause = i, err
		dst = append(dst, c)
	}
	return dst
}

// unreadable says that the view could not take in a change.
func (v *view) unreadable(c *change, cause error) *UnreadableError {
	return &UnreadableError{
		Lane: v.lane, Number: c.number, Event: c.index + 1, Type: c.event.Type, Key: c.event.AggregateID, View: v.projection.Name, Cause: cause,
	}
}

// flush writes the batch, and tells whoever waits for what is in it.
func (r *Runner) flush() error {
	if r.pending == 0 {
		return nil
	}
	if r.observer != nil {
		r.observed.Orders, r.observed.Position = r.changed.orders, r.position.Position
		for _, v := range r.views {
			switch applier := v.applier.(type) {
			case *stockApplier:
				for _, cached := range applier.dirty {
					r.observed.StockKeys = append(r.observed.StockKeys, cached.sku)
				}
			case *boardApplier:
				for _, cached := range applier.dirty {
					r.observed.Pools = append(r.observed.Pools, cached.pool)
				}
			}
		}
		r.observer.Changing(&r.observed)
	}
	for _, v := range r.views {
		if err := v.finish(); err != nil {
			return err
		}
		if stock, ok := v.applier.(*stockApplier); ok {
			r.noteStock(stock)
		}
		if v.parked.dirty {
			r.publishParked(v)
		}
	}
	var err error
	if r.batch, err = r.bulk.Commit(r.batch); err != nil {
		return fmt.Errorf("write the views: %w", err)
	}
	r.pending = 0
	for _, v := range r.views {
		v.batch = r.batch
		r.keysParked.Add(uint64(v.alarm(r.logger)))
	}
	r.tellReads()

	// Readers look at the position before they read, so what they read is at least as new.
	applied := r.position
	r.applied.Store(&applied)
	r.arrivals.reached(applied.Number)
	r.watchers.wake(r.changed.orders)
	if len(r.changed.stocks) > changedKeysMax {
		r.stockWatchers.wakeAll()
	} else {
		r.stockWatchers.wake(r.changed.stocks)
	}
	r.userWatchers.wake(r.changed.orders, r.changed.users, applied.Number)
	if r.observer != nil {
		r.observer.Changed(&r.observed)
		r.observed.reset()
	}
	r.changed.reset()
	for _, b := range r.waiting {
		b.done <- b.do()
	}
	clear(r.waiting)
	r.waiting = r.waiting[:0]
	return nil
}

// An UnreadableError says that a commit, or an event of it, cannot be taken into a view: it is damaged, or a newer program
// wrote it. Where it ends a runner, the views stay as they were before that commit.
type UnreadableError struct {
	Lane   uint32
	Number uint64
	// Event counts from 1 in the commit; 0 when the commit itself cannot be read.
	Event int
	// Type and Key of the event, and the View that could not take it in; empty when that is not known.
	Type, Key, View string
	Cause           error
}

func (e *UnreadableError) Error() string {
	text := fmt.Sprintf("commit %d of lane %d cannot be read", e.Number, e.Lane)
	if e.Event > 0 {
		text = fmt.Sprintf("event %d (%s %.64q) of commit %d of lane %d cannot be taken in", e.Event, e.Type, e.Key, e.Number, e.Lane)
	}
	if e.View != "" {
		text += " by view " + e.View
	}
	return text + ": " + e.Cause.Error()
}

func (e *UnreadableError) Unwrap() error { return e.Cause }
