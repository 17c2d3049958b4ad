package projections

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/eventstore"
)

// Limits of a rebuild. There is at most one of each projection (I8).
const (
	// adoptCommitsMax is how many commits a new generation may be behind when its runner takes it over. The runner waits
	// while they are made up.
	adoptCommitsMax = 64
	// adoptRoundsMax bounds how often a generation tries to come that near. Then it is taken over wherever it is: the log
	// grows faster than it is read.
	adoptRoundsMax = 64
	// runnerWait is how long a generation that is ahead of its runner waits for it before it looks whether that has stopped.
	runnerWait = time.Second
	// tableSlackBytes is what a commit may add to a batch that is not full yet.
	tableSlackBytes = 1 << 20
	// sweepAfter is how long a generation that is no longer named is left for the reads that still read it.
	sweepAfter = 10 * time.Second
)

// RebuilderOptions configure a Rebuilder.
type RebuilderOptions struct {
	// Store that holds the views, and Runners of all lanes, by lane.
	Store   *Store
	Runners []*Runner
	// Topology of the log, and the log of a lane.
	Topology eventstore.Topology
	Log      func(lane uint32) eventstore.Log
	// Parallel is how many lanes are read at a time; 0 means one for each processor.
	Parallel int
	// Asked counts what others have asked of this node so far: while that rises, a rebuild makes room. nil means that nobody asks
	// anything but by the log.
	Asked func() uint64
	// Logger is told what begins, ends and fails; nil means slog.Default.
	Logger *slog.Logger
}

// A Rebuilder makes views again from the log, beside those that answer reads. Views that another version of this program
// wrote, and those that are behind the others, it makes again by itself.
//
// A new generation is built of each lane's log, lanes in parallel. When it is near the lane's runner, the runner takes it over:
// from then on both generations are fed by the same batches and stand at one position after each. They are compared there,
// and swapped by one write. The old one is kept, and fed, until it is dropped: going back is a swap too. What a rebuild is
// about is in the store, and it goes on after a crash from where its newest batch ended.
//
// Methods may be called by several goroutines.
type Rebuilder struct {
	store    *Store
	topology eventstore.Topology
	runners  []*Runner
	log      func(lane uint32) eventstore.Log
	calls    func() uint64 // nil for none
	slots    chan struct{} // one for each lane that is read
	// batchBytes is the size of a batch that is committed, tableBytes of one that is written as tables. They are set before Run, by
	// tests alone.
	batchBytes, tableBytes int
	logger                 *slog.Logger
	wake                   chan struct{}

	// commands is held by a command: one at a time.
	commands sync.Mutex
	// mu guards what follows.
	mu       sync.Mutex
	rebuilds map[byte]*rebuild // by the projection's space
	sweepAt  time.Time         // when unnamed generations are removed; zero when there are none
}

// SwapMode says when a new generation begins to answer reads.
type SwapMode string

// The modes of a swap.
const (
	// SwapAuto: as soon as it is built and the digests are equal, or differ by what it takes in and the one before it has
	// parked. If they differ by more, it is held.
	SwapAuto SwapMode = "auto"
	// SwapManual: when Swap is called.
	SwapManual SwapMode = "manual"
)

// RebuildOptions say how a projection is rebuilt.
type RebuildOptions struct {
	// Lanes to rebuild; none means all.
	Lanes []uint32
	// Speed of reading the log. The zero value is SpeedFull.
	Speed Speed
	// Swap is when the new generation answers; empty means SwapAuto.
	Swap SwapMode
}

// A rebuild is one projection that is being made again.
type rebuild struct {
	projection *Projection
	record     rebuildRecord
	// stored says that the record is in the store. It is not for views that are made again in their place.
	stored bool
	parts  []*part
	// pace of the work that goes on, and the forecast of its end; nil before any.
	pace     *pace
	forecast *forecast

	// Guarded by the Rebuilder's mu.
	fed        bool // every part is with its runner
	givenUp    bool // nobody may take it up while it is being given up
	failure    error
	comparison *Comparison
	cancel     context.CancelFunc
	done       chan struct{} // closed when the work ends; nil when there is none
}

// A part is one lane of a rebuild.
type part struct {
	runner     *Runner
	generation byte
	// inPlace says that the generation answers reads already, as far as it goes.
	inPlace bool

	position atomic.Uint64
	events   atomic.Uint64 // taken in since this process began
	adopted  atomic.Bool

	// read are the bytes of the log that were taken in, less those of its first uncounted commits. They are kept with the position.
	read, uncounted atomic.Uint64
	size            atomic.Pointer[eventstore.LogSize] // of the lane's log, when it was last asked; nil before
	// beside is how many of these bytes the newest batch has that is written beside the reading: what is left when all is read.
	beside atomic.Uint64
	// toCompare is the work of the comparison, comparedLive and comparedOther what is done of it: of either generation.
	toCompare, comparedLive, comparedOther atomic.Uint64
}

// NewRebuilder finds what is to be rebuilt: what was not finished, and what this version of the program has to make again.
// Nothing happens before Run runs.
func NewRebuilder(options RebuilderOptions) (*Rebuilder, error) {
	if len(options.Runners) != int(options.Topology.Lanes) {
		return nil, fmt.Errorf("there are %d runners for %d lanes", len(options.Runners), options.Topology.Lanes)
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	if options.Parallel <= 0 {
		options.Parallel = runtime.GOMAXPROCS(0)
	}
	b := &Rebuilder{
		store: options.Store, topology: options.Topology, runners: options.Runners, log: options.Log, calls: options.Asked, logger: options.Logger,
		slots: make(chan struct{}, options.Parallel), batchBytes: BulkBytes, tableBytes: tableRunBytes, wake: make(chan struct{}, 1), rebuilds: make(map[byte]*rebuild),
		sweepAt: time.Now(), // What a crash has left.
	}
	for _, p := range Projections {
		if err := b.load(p); err != nil {
			return nil, fmt.Errorf("rebuild of view %s: %w", p.Name, err)
		}
	}
	return b, nil
}

// load finds what is to be rebuilt of a projection.
func (b *Rebuilder) load(p *Projection) error {
	var inPlace, beside []uint32
	for _, r := range b.runners {
		if r.behind[p.space].Load() == nil {
			continue
		}
		version, _, err := storedProgress(b.store.db, p, r.live(p), r.lane, b.topology.Lanes)
		switch {
		case err != nil:
			return err
		case version == p.Version:
			inPlace = append(inPlace, r.lane)
		default:
			beside = append(beside, r.lane)
		}
	}
	record, ok, err := b.store.record(p)
	if err != nil {
		return err
	}
	job := &rebuild{projection: p, record: record}
	job.stored = ok && record.Version == p.Version && record.Generation != 0 && allBelow(record.Lanes, b.topology.Lanes) &&
		!b.store.generations.names(p, record.Generation, record.Lanes)
	switch {
	case job.stored:
		// A lane that a newer version has to make again as well comes after it, at the next start.
	case len(beside) > 0:
		if err := b.begin(job, RebuildOptions{Lanes: beside}); err != nil {
			return err
		}
	default:
		job.record = rebuildRecord{Version: p.Version, Speed: SpeedFull, Swap: SwapAuto}
		if err := b.store.removeRecord(p); err != nil { // One of another version, or of what answers by now.
			return err
		}
	}
	for _, lane := range job.record.Lanes {
		job.parts = append(job.parts, b.newPart(p, lane, job.record.Generation, false))
	}
	for _, lane := range inPlace {
		job.parts = append(job.parts, b.newPart(p, lane, b.runners[lane].live(p), true))
	}
	if len(job.parts) > 0 {
		b.rebuilds[p.space] = job
	}
	return nil
}

func allBelow(lanes []uint32, limit uint32) bool {
	return !slices.ContainsFunc(lanes, func(lane uint32) bool { return lane >= limit })
}

func (b *Rebuilder) newPart(p *Projection, lane uint32, generation byte, inPlace bool) *part {
	made := &part{runner: b.runners[lane], generation: generation, inPlace: inPlace}
	if _, at, err := storedProgress(b.store.db, p, generation, lane, b.topology.Lanes); err == nil { // Building it says what is wrong.
		made.stands(at)
	}
	return made
}

// stands notes how far the part is in the store.
func (p *part) stands(at progress) {
	p.position.Store(at.Number)
	p.read.Store(at.read)
	if at.read == 0 { // It is not kept, as a part that is in its place is read by older programs as well, or one of them wrote it.
		p.uncounted.Store(at.Number)
	}
}

// begin writes the record of a new rebuild, and removes what was there of its generation.
func (b *Rebuilder) begin(job *rebuild, options RebuildOptions) (err error) {
	p := job.projection
	job.record = rebuildRecord{
		Generation: b.store.generations.next(p, options.Lanes...), Version: p.Version, Lanes: options.Lanes, Speed: options.Speed, Swap: options.Swap,
	}
	if job.record.Swap == "" {
		job.record.Swap = SwapAuto
	}
	batch := b.store.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	for _, lane := range job.record.Lanes {
		// What there is of a generation was written with its progress. Where there is nothing, a tombstone would keep the tables of
		// the new one above it.
		_, at, err := storedProgress(b.store.db, p, job.record.Generation, lane, b.topology.Lanes)
		if unknown := (*UnknownProgressError)(nil); err == nil && at.Number > 0 || errors.As(err, &unknown) {
			err = wipe(batch, p, job.record.Generation, lane)
		}
		if err != nil {
			return err
		}
	}
	if !batch.Empty() || b.store.generations.wentRound(p) {
		// What was there before is not to come back after a crash that leaves the record.
		if err := errors.Join(batch.Commit(pebble.NoSync), b.store.Flush()); err != nil {
			return err
		}
	}
	if err := b.store.putRecord(p, &job.record); err != nil {
		return err
	}
	job.stored = true
	return nil
}

// save writes the record, durably.
func (b *Rebuilder) save(job *rebuild) error {
	if !job.stored {
		return nil
	}
	return b.store.putRecord(job.projection, &job.record)
}

// Run rebuilds what is to be rebuilt until ctx ends, which is no error. A rebuild that fails is logged, and leaves what
// answers reads as it is. Run is called once.
func (b *Rebuilder) Run(ctx context.Context) error {
	var working sync.WaitGroup
	defer working.Wait()
	for {
		b.startWork(ctx, &working)
		wait := b.sweepIn()
		if wait == 0 {
			if _, err := b.Sweep(); err != nil {
				return err
			}
			wait = -1
		}
		if !b.idle(ctx, wait) {
			return nil
		}
	}
}

// idle waits until something is to be done, no longer than wait unless that is below 0, and reports whether ctx is still good.
func (b *Rebuilder) idle(ctx context.Context, wait time.Duration) bool {
	var due <-chan time.Time
	if wait >= 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		due = timer.C
	}
	select {
	case <-b.wake:
	case <-due:
	case <-ctx.Done():
		return false
	}
	return true
}

// sweepIn returns how long it is until unnamed generations are removed, below 0 when there are none.
func (b *Rebuilder) sweepIn() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sweepAt.IsZero() {
		return -1
	}
	return max(0, time.Until(b.sweepAt))
}

// startWork starts what is to be done and is not being done.
func (b *Rebuilder) startWork(ctx context.Context, working *sync.WaitGroup) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range Projections {
		job := b.rebuilds[p.space]
		if job == nil || job.done != nil || job.givenUp || job.record.Paused || job.failure != nil || job.held() {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		job.cancel, job.done, job.pace, job.forecast = cancel, done, b.newPace(job.record.Speed), new(forecast)
		working.Go(func() {
			var measuring sync.WaitGroup
			measuring.Go(func() { b.measure(ctx, job) })
			err := b.work(ctx, job)
			stopped := ctx.Err() != nil
			cancel()
			measuring.Wait()
			b.mu.Lock()
			defer b.mu.Unlock()
			defer close(done)
			job.cancel, job.done = nil, nil
			if err != nil && !stopped {
				job.failure = err
				b.logger.Error("a view could not be rebuilt; what answers reads is as it was", "view", p.Name, "error", err)
			}
			b.poke()
		})
	}
}

func (b *Rebuilder) poke() {
	select {
	case b.wake <- struct{}{}:
	default: // Run has not looked yet.
	}
}

// work builds a generation and swaps it, or holds it.
func (b *Rebuilder) work(ctx context.Context, job *rebuild) error {
	building, ctxOfParts := errgroup.WithContext(ctx)
	for _, p := range job.parts {
		p.comparedLive.Store(0)
		p.comparedOther.Store(0)
		building.Go(func() error {
			select {
			case b.slots <- struct{}{}:
			case <-ctxOfParts.Done():
				return ctxOfParts.Err()
			}
			defer func() { <-b.slots }()
			return b.build(ctxOfParts, job, p)
		})
	}
	if err := building.Wait(); err != nil {
		return err
	}
	b.mu.Lock()
	job.fed = true
	held := job.record.Held != ""
	b.mu.Unlock()
	if !job.stored {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.rebuilds, job.projection.space)
		return nil
	}
	if held {
		return nil
	}
	comparison, err := b.compare(ctx, job.projection, job.lanes(), compareOptions{
		other: func(*Runner) byte { return job.record.Generation }, pace: job.pace, seen: b.seen(job),
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	job.comparison = comparison
	switch {
	case !comparison.Equal():
		job.record.Held = fmt.Sprintf("%d keys differ", comparison.DifferencesTotal())
	case job.record.Swap == SwapManual:
		job.record.Held = "it is to be swapped by hand"
	default:
		return b.swap(ctx, job)
	}
	b.logger.Warn("a view is rebuilt and does not answer yet", "view", job.projection.Name, "because", job.record.Held)
	return b.save(job)
}

// held reports whether it is built and waits for Swap, and nobody works on it any more: whoever is told so may swap. REQUIRES: the
// Rebuilder's mu is held.
func (job *rebuild) held() bool { return job.fed && job.done == nil && job.record.Held != "" }

// lanes returns those in which a generation is built beside the one that answers.
func (job *rebuild) lanes() []uint32 { return job.record.Lanes }

// build reads a lane's log into a new generation, and hands it to the lane's runner when it is near it.
func (b *Rebuilder) build(ctx context.Context, job *rebuild, p *part) error {
	if p.adopted.Load() {
		return nil
	}
	r := p.runner
	f, err := b.newBuilder(job, p)
	if err != nil {
		return err
	}
	defer f.close()
	v := f.view
	// Tables are durable before what the runner wrote earlier: after a crash it may be behind them, and it comes by itself.
	for r.Position().Number < v.progress.Number {
		if _, err := r.await(ctx, v.progress.Number, runnerWait); err != nil {
			return err
		}
		select {
		case <-r.stopped:
			return ErrStopped
		default:
		}
	}
	for round := 0; ; round++ {
		target := r.Position().Number
		if round == adoptRoundsMax || target-min(target, v.progress.Number) <= adoptCommitsMax {
			break
		}
		if err := f.advance(ctx, target); err != nil {
			return err
		}
	}
	return r.atBoundary(ctx, func() error {
		f.hurry()
		if err := f.advance(ctx, r.position.Number); err != nil {
			return err
		}
		if v.progress.Position != r.position.Position {
			return &eventstore.ChainError{
				Lane: r.lane, Number: v.progress.Number,
				Reason: fmt.Sprintf("the rebuilt view %s holds %.12s…, the others %.12s…", job.projection.Name, v.progress.Hash, r.position.Hash),
			}
		}
		v.progress.read = 0 // Where the runner writes it, older programs read it.
		if err := errors.Join(f.leaveTables(), r.adopt(v)); err != nil {
			return err
		}
		p.adopted.Store(true)
		return nil
	})
}

// A builder takes a lane's log into a generation of one view, in batches of its own.
type builder struct {
	rebuilder *Rebuilder
	job       *rebuild
	part      *part
	view      *view
	log       eventstore.Log
	commit    eventstore.Commit // the one that is taken in
	changes   []change          // its events
	// shift is nil while the lane's runner waits: then nothing makes room for anybody.
	shift *shift

	// tables takes large batches; nil when all are committed.
	tables *tableRun
	// unflushed says that a batch was committed since the store was flushed. It belongs to whoever writes.
	unflushed bool
	// blind says that the applier does not read what is there, so that the next batch may be filled while one is written.
	blind bool
	// spare is the batch that is filled next, nil while the one before is being sorted. writing tells what came of that; nil when nothing is.
	spare   *pebble.Batch
	writing chan written
	// lent is the batch that tables are made of, nil before any. It belongs to whoever writes.
	lent *pebble.Batch
	// flushed is how many bytes of the log the part had read when that batch was full.
	flushed uint64
}

// written is what came of writing a batch, as far as that is waited for, and an empty one.
type written struct {
	empty *pebble.Batch
	err   error
}

// newBuilder opens a generation where it is. Its user closes it.
func (b *Rebuilder) newBuilder(job *rebuild, p *part) (*builder, error) {
	f := &builder{rebuilder: b, job: job, part: p, log: b.log(p.runner.lane), shift: job.pace.newShift()}
	v, err := openView(job.projection, p.generation, b.store.db, b.store.db.NewBatch(), p.runner.lane, b.topology.Lanes)
	if unknown := (*UnknownProgressError)(nil); errors.As(err, &unknown) {
		return nil, fmt.Errorf("%w: give the rebuild up with 'projections drop %s', and begin it again, or let the newer program end it", err, job.projection.Name)
	}
	if err != nil {
		return nil, err
	}
	f.view = v
	p.stands(v.progress)
	f.flushed = p.read.Load()
	if p.inPlace { // Reads see it: it goes on step by step, as durable as the views beside it.
		return f, nil
	}
	f.tables = newTableRun(b.store, v, job.pace)
	v.batch = f.newTableBatch()
	if _, f.blind = v.applier.(statelessApplier); f.blind {
		f.spare = f.newTableBatch()
	}
	return f, nil
}

// hurry has the builder make room for nobody any more. REQUIRES: nothing is being written.
func (f *builder) hurry() {
	f.shift = nil
	if f.tables != nil {
		f.tables.hurry()
	}
}

// leaveTables writes the progress where batches write it from now on, and removes that of the tables.
func (f *builder) leaveTables() (err error) {
	if f.tables == nil {
		return nil
	}
	batch := f.rebuilder.store.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	key := f.tables.progress
	return errors.Join(
		batch.Set(key, appendProgress(nil, f.view.projection.Version, f.view.progress), nil),
		batch.DeleteRange(append(bytes.Clone(key), 0), keyAfter(key), nil),
		batch.Commit(pebble.NoSync),
	)
}

// newTableBatch returns a batch that keeps its memory when it was written as tables.
func (f *builder) newTableBatch() *pebble.Batch {
	room := f.rebuilder.tableBytes + tableSlackBytes
	return f.rebuilder.store.db.NewBatch(pebble.WithInitialSizeBytes(room), pebble.WithMaxRetainedSizeBytes(2*room))
}

// close waits for what is being written.
func (f *builder) close() {
	_ = f.settle() // Whoever needed it to be written has asked.
}

// batchBytes is the size of batch that the builder fills.
func (f *builder) batchBytes() int {
	if f.tables != nil {
		return f.rebuilder.tableBytes
	}
	return f.rebuilder.batchBytes
}

// advance reads the log up to a commit. Afterwards the store holds everything up to it. After a panic over an event it
// begins again where the last batch ended, as Runner.follow does.
func (f *builder) advance(ctx context.Context, upTo uint64) error {
	for {
		err := f.read(ctx, upTo)
		var p *panicked
		if !errors.As(err, &p) {
			return errors.Join(err, f.settle())
		}
		if err := f.settle(); err != nil {
			return err
		}
		f.view.batch.Reset()
		if err := f.view.reopen(f.rebuilder.topology.Lanes); err != nil {
			return err
		}
		f.part.stands(f.view.progress)
		f.flushed = f.part.read.Load()
		f.view.noted(p)
	}
}

func (f *builder) read(ctx context.Context, upTo uint64) error {
	v := f.view
	if v.progress.Number >= upTo {
		return nil
	}
	cursor, err := f.log.Follow(ctx, v.progress.Number+1)
	if err != nil {
		return err
	}
	defer cursor.Close()
	for v.progress.Number < upTo {
		record, err := cursor.Next(ctx)
		if err != nil {
			return err
		}
		if err := f.take(record); err != nil {
			return err
		}
		if v.batch.Len() >= f.batchBytes() {
			if err := f.flush(ctx); err != nil {
				return err
			}
		}
		if f.shift == nil {
			continue
		}
		if err := errors.Join(f.job.pace.take(ctx, len(f.changes)), f.shift.yield(ctx)); err != nil {
			return err
		}
	}
	return f.flush(ctx)
}

// take takes in the next commit.
func (f *builder) take(record eventstore.Record) error {
	v, commit := f.view, &f.commit
	if err := commit.Decode(record.Data); err != nil {
		return &UnreadableError{Lane: v.lane, Number: record.Number, Cause: err}
	}
	at := eventstore.Position{Number: record.Number, Hash: record.Hash}
	if err := v.progress.CheckAt(commit, at, v.lane); err != nil {
		return err
	}
	f.changes = changesOf(f.changes[:0], commit, v.lane, f.rebuilder.topology)
	if err := f.takeChanges(); err != nil {
		return err
	}
	read := f.part.read.Add(uint64(record.Stored))
	v.progress = progress{Position: at, at: commit.Time}
	if !f.part.inPlace && f.part.uncounted.Load() == 0 {
		v.progress.read = read
	}
	f.part.events.Add(uint64(len(f.changes)))
	f.part.position.Store(at.Number)
	return nil
}

// takeChanges takes the events of a commit into the view.
func (f *builder) takeChanges() (err error) {
	defer recovered([]*view{f.view}, &err)
	for i := range f.changes {
		if err := f.view.take(&f.changes[i]); err != nil {
			return err
		}
	}
	return nil
}

// flush writes the batch, with the view's progress in it. For a blind applier it returns while that is being done, and settle tells
// what came of it.
func (f *builder) flush(ctx context.Context) error {
	v := f.view
	if err := v.finish(); err != nil {
		return fmt.Errorf("write view %s: %w", v.projection.Name, err)
	}
	if err := f.awaitSpare(); err != nil {
		return err
	}
	if f.blind && !v.parked.dirty {
		full, writing := v.batch, make(chan written, 1)
		v.batch, f.spare, f.writing = f.spare, nil, writing
		read := f.part.read.Load()
		f.part.beside.Store(read - f.flushed)
		f.flushed = read
		go func() {
			empty, err := f.write(ctx, full)
			writing <- written{empty, err}
		}()
		return nil
	}
	if v.parked.dirty {
		f.part.runner.publishParked(v)
	}
	var err error
	if v.batch, err = f.write(ctx, v.batch); err != nil {
		return err
	}
	if err := f.settle(); err != nil { // The applier reads what is there.
		return err
	}
	f.part.runner.keysParked.Add(uint64(v.alarm(f.rebuilder.logger)))
	if f.part.inPlace {
		f.part.runner.forgetReads() // Before it says that it is further.
		at := v.progress
		f.part.runner.behind[v.projection.space].Store(&at)
	}
	return nil
}

// awaitSpare waits until there is a batch to fill besides the one that is full.
func (f *builder) awaitSpare() error {
	if f.writing == nil {
		return nil
	}
	done := <-f.writing
	f.writing, f.spare = nil, done.empty
	return done.err
}

// settle waits until what is being written is in the store.
func (f *builder) settle() error {
	err := f.awaitSpare()
	if f.tables != nil {
		err = errors.Join(err, f.tables.settle())
	}
	return err
}

// write writes a batch and returns an empty one.
func (f *builder) write(ctx context.Context, batch *pebble.Batch) (*pebble.Batch, error) {
	name := f.view.projection.Name
	if f.tables != nil && batch.Len() >= min(f.rebuilder.tableBytes, tableRunBytesMin) {
		added, err := f.addTables(ctx, batch)
		if err != nil {
			return batch, fmt.Errorf("write view %s: %w", name, err)
		}
		if added {
			empty := f.lent // Its tables are in the store.
			f.lent = batch
			if empty == nil {
				return f.newTableBatch(), nil
			}
			empty.Reset()
			return empty, nil
		}
	}
	if f.tables != nil {
		// A batch may become durable by itself, and is not to be there without the tables before it.
		if err := f.tables.settle(); err != nil {
			return batch, fmt.Errorf("write view %s: %w", name, err)
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return batch, fmt.Errorf("write view %s: %w", name, err)
	}
	if f.tables == nil {
		batch.Reset()
		return batch, nil
	}
	f.unflushed = true
	// Pebble may go on reading the memory of a large batch that was committed.
	return f.newTableBatch(), batch.Close()
}

// newPace returns the pace of work on a rebuild that begins.
func (b *Rebuilder) newPace(speed Speed) *pace {
	return &pace{speed: speed, lag: b.lag, asked: b.asked}
}

// asked counts what others have asked of this node so far: calls, and commits that became known, whoever has decided them.
func (b *Rebuilder) asked() (count uint64) {
	if b.calls != nil {
		count = b.calls()
	}
	for _, r := range b.runners {
		head, _ := r.follower.Head()
		count += head
	}
	return count
}

// addTables adds what a batch holds as tables, if they can hold it. What was committed before has to be durable first: after a crash
// the tables, and their progress, would be there without it.
func (f *builder) addTables(ctx context.Context, batch *pebble.Batch) (added bool, err error) {
	if f.unflushed {
		if err := f.rebuilder.store.Flush(); err != nil {
			return false, err
		}
		f.unflushed = false
	}
	return f.tables.add(ctx, batch)
}

// lag returns how many commits the live views are behind, in the lane where it is the most.
func (b *Rebuilder) lag() uint64 {
	var most uint64
	for _, r := range b.runners {
		most = max(most, r.freshness().LagCommits)
	}
	return most
}

// compareOptions say how two generations of a view are compared.
type compareOptions struct {
	// other is the one beside the one that answers. kept says that it is kept, and not being built.
	other func(*Runner) byte
	kept  bool
	pace  *pace
	// seen is told now and then how far the keys of a generation are read, in their order, nil at their end; nil tells nobody. Several
	// goroutines call it.
	seen func(of prefix, key []byte)
}

// compare compares the generation that answers with another one, each lane at one position of its runner. Lanes in which the one that
// answers is not fed, as another version wrote it, are left out: there is nothing to compare with.
func (b *Rebuilder) compare(ctx context.Context, p *Projection, lanes []uint32, options compareOptions) (*Comparison, error) {
	inLanes := make([]*LaneComparison, len(lanes))
	comparing, ctxOfLanes := errgroup.WithContext(ctx)
	comparing.SetLimit(max(1, cap(b.slots)/2)) // Two generations are read of each.
	for i, lane := range lanes {
		comparing.Go(func() (err error) {
			if inLanes[i], err = b.compareLane(ctxOfLanes, p, b.runners[lane], options); err != nil {
				return fmt.Errorf("compare view %s of lane %d: %w", p.Name, lane, err)
			}
			return nil
		})
	}
	if err := comparing.Wait(); err != nil {
		return nil, err
	}
	found := &Comparison{Projection: p.Name}
	for _, in := range inLanes {
		if in == nil {
			continue
		}
		r := b.runners[in.Lane]
		found.Live, found.Other = uint32(r.live(p)), uint32(options.other(r))
		found.Lanes = append(found.Lanes, *in)
	}
	return found, nil
}

// compareLane compares two generations in one lane, and returns nil where there is nothing to compare with.
func (b *Rebuilder) compareLane(ctx context.Context, p *Projection, r *Runner, options compareOptions) (found *LaneComparison, err error) {
	live, another := r.live(p), options.other(r)
	// What is parked by now is read while the runner goes on; what comes meanwhile is little.
	events, err := r.eventsParkedBy(ctx, p, live, another)
	if err != nil {
		return nil, err
	}
	var snapshot *pebble.Snapshot
	var position eventstore.Position
	var healed heals
	err = r.atBoundary(ctx, func() (err error) {
		if r.feeds(p, live) && r.feeds(p, another) {
			if healed, err = r.healsOf(ctx, p, live, another, options.kept, events); err != nil {
				return err
			}
			snapshot, position = b.store.db.NewSnapshot(), r.position.Position
		}
		return nil
	})
	if err != nil || snapshot == nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	compared, err := compareGenerations(ctx, snapshot, p, r.lane, live, another, healed, options.pace, options.seen)
	compared.Position = position
	return &compared, err
}

// swap makes a generation that is built answer reads. REQUIRES: mu is held; every part is with its runner.
func (b *Rebuilder) swap(ctx context.Context, job *rebuild) error {
	p, lanes := job.projection, job.lanes()
	fed := make(map[uint32]bool)
	for _, lane := range lanes {
		r, at := b.runners[lane], b.store.generations.of(p.space, lane)
		if err := r.atBoundary(ctx, func() error {
			fed[lane] = r.feeds(p, at.live)
			if at.kept != 0 {
				r.abandon(p, at.kept)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	err := b.store.point(p, lanes, func(lane uint32, at pointer) pointer {
		if !fed[lane] { // Another version wrote it.
			return pointer{live: job.record.Generation}
		}
		return pointer{live: job.record.Generation, kept: at.live}
	}, nil)
	if err != nil {
		return err
	}
	delete(b.rebuilds, p.space)
	b.sweepLater()
	if err := b.swapped(ctx, p, lanes); err != nil {
		return err
	}
	healed := 0
	if job.comparison != nil {
		healed = job.comparison.Heals()
	}
	b.logger.Info("a rebuilt view answers", "view", p.Name, "generation", job.record.Generation, "lanes", len(lanes), "keys_healed", healed)
	if err := b.store.Flush(); err != nil { // The pointers, before the record is gone.
		return err
	}
	return b.store.removeRecord(p)
}

// swapped tells the runners of lanes that another generation of a view answers. It is told to all of them, come what may: the
// pointers are written.
func (b *Rebuilder) swapped(ctx context.Context, p *Projection, lanes []uint32) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, lane := range lanes {
		r := b.runners[lane]
		err := r.atBoundary(ctx, func() error { return r.swapped(p) })
		if errors.Is(err, ErrStopped) {
			err = nil // It answers nobody that waits, and finds the pointers at its next start.
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweepLater has generations that are no longer named removed, when no read reads them any more.
func (b *Rebuilder) sweepLater() {
	b.sweepAt = time.Now().Add(sweepAfter)
	b.poke()
}

// Sweep removes the generations that nothing names, and returns how many lanes of them there were. REQUIRES: no read that
// began before they were unnamed goes on.
func (b *Rebuilder) Sweep() (removed int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sweepAt = time.Time{}
	batch := b.store.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	// What there is of a generation was written with its progress.
	first := []byte{KeySpaceViews, spaceProgress}
	entries, err := b.store.db.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	var before []byte
	for valid := entries.First(); valid; valid = entries.Next() {
		lane, space, generation := uint32(binary.BigEndian.Uint16(entries.Key()[3:])), entries.Key()[prefixBytes], entries.Key()[prefixBytes+1]
		of := entries.Key()[:prefixBytes+2]
		if bytes.Equal(of, before) {
			continue // Another one of its tables.
		}
		before = append(before[:0], of...)
		for _, p := range Projections {
			at := b.store.generations.of(space, lane)
			if p.space != space || generation == at.live || generation == at.kept || b.builds(p, generation, lane) {
				continue
			}
			if err := wipe(batch, p, generation, lane); err != nil {
				return 0, fmt.Errorf("remove an old generation of view %s: %w", p.Name, err)
			}
			removed++
		}
	}
	return removed, errors.Join(entries.Error(), batch.Commit(pebble.NoSync))
}

// builds reports whether a generation is being built.
func (b *Rebuilder) builds(p *Projection, generation byte, lane uint32) bool {
	job := b.rebuilds[p.space]
	return job != nil && slices.ContainsFunc(job.parts, func(p *part) bool { return p.generation == generation && p.runner.lane == lane })
}
