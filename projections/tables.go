package projections

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strconv"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/batchrepr"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sync/errgroup"
)

// Limits of tables that are written outside the memtable.
const (
	// tableRunBytes is the size of the batch whose keys are sorted in memory and written as one run of tables. There are at most
	// three of them for each lane that is rebuilt: one is filled while the one before is sorted, and that before it written. tableRunBytesMin
	// is the size below which the last batch is committed instead.
	tableRunBytes    = 8 << 20
	tableRunBytesMin = 256 << 10
	// sortedRunMin is how many operations are sorted by themselves before they are merged with others.
	sortedRunMin = 16
	// tableSublevelsMax is how deep L0 may be for tables to be added: unlike a batch, Pebble never has them wait until it has compacted.
	tableSublevelsMax = 32
	// tableBufferBytes is what a write of a table's file has at least, and tableSyncBytes how much of it is written back at a time:
	// the log's fsyncs wait for what is written back before them.
	tableBufferBytes = 256 << 10
	tableSyncBytes   = 1 << 20
	// tableRankBytes of a key's suffix decide most comparisons.
	tableRankBytes = 8
	// tableFetchOps is how many operations are fetched from memory at a time, tableFetchBytes of each, in steps of a cache line.
	tableFetchOps   = 32
	tableFetchBytes = 128
	cacheLineBytes  = 64
)

// A tableRun writes what a batch holds of one generation of a view as sorted tables, and adds them to the store in one step, with the
// generation's progress in a table of its own (I6), at a key of its own (progressKey). That saves the memtable, its flush and, for keys that come after all that
// were written before, every later compaction: such tables go straight to the lowest level, where a file that reaches over their
// range is split around it (pebbleOptions). While a compaction of such a file goes on, they go to L0 instead, which is slower and
// no less true. One goroutine uses it.
//
// What is added is durable at once, while batches become so when their memtable is flushed. So after a crash a generation may be
// ahead of what was written to other keys before; Pebble itself holds back tables that overlap such a batch until it is flushed.
type tableRun struct {
	store    *Store
	prefix   prefix
	progress []byte // its key in a batch
	// frontier is the greatest key that was written. Keys up to it may be there already; those beyond it get a table of their own.
	frontier []byte
	// adding tells what came of writing and adding the newest tables; nil when that is over. Until then sorted has their operations.
	adding chan error
	sorted opSorter
	opSorter
}

// An opSorter puts the operations of a batch into the order of their keys, as tables hold them. One goroutine uses it.
type opSorter struct {
	shift *shift
	ops   batchrepr.Reader // the batch
	order []opInTurn       // of the ops that are sorted
	aside []opInTurn       // while two runs are merged
}

// A tableOp is what a batch does to a key.
type tableOp struct {
	kind       pebble.InternalKeyKind
	key, value []byte
}

// opInTurn is an operation while they are sorted: what decides most comparisons, and little else to move.
type opInTurn struct {
	rank uint64 // the first bytes of the key's suffix
	at   uint32 // where it is in the batch
}

func newTableRun(store *Store, v *view, pace *pace) *tableRun {
	return &tableRun{
		store: store, prefix: v.prefix, progress: progressKey(v.projection.space, v.generation, v.lane),
		opSorter: opSorter{shift: pace.newShift()}, sorted: opSorter{shift: pace.newShift()},
	}
}

// add writes what the batch holds, and reports true, or leaves it to the caller to commit the batch and reports false: it holds other
// keys, or L0 is too deep. It returns when the operations are in the order of their keys and the tables before are in the store. Those
// of the batch are written and added while the caller goes on; until settle or the next add returns, it leaves the batch alone.
func (r *tableRun) add(ctx context.Context, batch *pebble.Batch) (added bool, err error) {
	r.shift.begin()
	progress, ok, err := r.read(ctx, batch)
	if err != nil || !ok || len(r.order) == 0 || r.store.db.Metrics().Levels[0].Sublevels >= tableSublevelsMax {
		return false, err
	}
	if err := r.sort(ctx); err != nil {
		return false, err
	}
	if err := r.settle(); err != nil {
		return false, err
	}
	beyond := 0
	if r.frontier != nil {
		beyond = r.search(func(key []byte) bool { return bytes.Compare(key, r.frontier) > 0 })
	}
	half := beyond + (len(r.order)-beyond)/2
	for half > beyond && half < len(r.order) && bytes.Equal(r.op(r.order[half]).key, r.op(r.order[half-1]).key) {
		half++ // All of a key's operations belong into one table.
	}
	if beyond < len(r.order) {
		r.frontier = append(r.frontier[:0], r.op(r.order[len(r.order)-1]).key...)
	}
	r.opSorter, r.sorted = r.sorted, r.opSorter
	adding, order := make(chan error, 1), r.sorted.order
	r.adding = adding
	go func() { adding <- r.addParts(ctx, progress, order[:beyond], order[beyond:half], order[half:]) }()
	return true, nil
}

// settle waits until the tables that were begun are in the store.
func (r *tableRun) settle() error {
	if r.adding == nil {
		return nil
	}
	err := <-r.adding
	r.adding = nil
	return err
}

// addParts writes each list of sorted operations that is not empty as a table, and the progress as one, and adds them in one durable step. Writing
// them is more work than filling the next batch, so it takes a goroutine each. REQUIRES: no two lists have a key in common; what was
// there before is in the store.
func (r *tableRun) addParts(ctx context.Context, progress tableOp, parts ...[]opInTurn) error {
	tables := &tableSet{store: r.store}
	sets := make([]*tableSet, len(parts))
	writing, ctxOfTables := errgroup.WithContext(ctx)
	for i, part := range parts {
		set := &tableSet{store: r.store, shift: r.sorted.shift.another()}
		sets[i] = set
		writing.Go(func() error { return errors.Join(set.write(ctxOfTables, &r.sorted, part), set.end()) })
	}
	err := errors.Join(writing.Wait(), tables.add(progress), tables.end())
	for _, set := range sets {
		tables.paths, tables.files = append(tables.paths, set.paths...), append(tables.files, set.files...)
	}
	if err != nil {
		return errors.Join(err, tables.abandon())
	}
	return tables.ingest(ctx)
}

// hurry has the run make room for nobody any more. REQUIRES: nothing is being written.
func (r *tableRun) hurry() { r.shift, r.sorted.shift = nil, nil }

// read lists what the batch does, which ok says that tables can. The keys and values alias the batch.
func (r *tableRun) read(ctx context.Context, batch *pebble.Batch) (progress tableOp, ok bool, err error) {
	r.ops, r.order = batch.Reader(), r.order[:0]
	for reader, read := r.ops, 0; ; read++ {
		at := len(r.ops) - len(reader)
		kind, key, value, more, err := reader.Next()
		if err != nil || !more {
			return progress, progress.key != nil, err
		}
		switch kind {
		case pebble.InternalKeyKindSet, pebble.InternalKeyKindMerge, pebble.InternalKeyKindDelete:
		default:
			return progress, false, nil
		}
		if read%yieldKeys == 0 {
			if err := r.shift.yield(ctx); err != nil {
				return progress, false, err
			}
		}
		switch {
		case bytes.HasPrefix(key, r.prefix[:]):
			r.order = append(r.order, opInTurn{rankOf(key[prefixBytes:]), uint32(at)})
		case bytes.Equal(key, r.progress):
			_, at, err := readProgress(value)
			if err != nil {
				return progress, false, err
			}
			progress = tableOp{kind, binary.BigEndian.AppendUint64(bytes.Clone(r.progress), at.Number), value}
		default:
			return progress, false, nil
		}
	}
}

// rankOf returns the first bytes of a key's suffix as a number that sorts as they do.
func rankOf(suffix []byte) uint64 {
	if len(suffix) >= tableRankBytes {
		return binary.BigEndian.Uint64(suffix)
	}
	var padded [tableRankBytes]byte
	copy(padded[:], suffix)
	return binary.BigEndian.Uint64(padded[:])
}

// op returns an operation. It aliases the batch.
func (s *opSorter) op(turn opInTurn) tableOp {
	reader := s.ops[turn.at:]
	kind, key, value, ok, err := reader.Next()
	if !ok {
		panic(fmt.Sprintf("projections: bug: there is no operation at byte %d of a batch of %d: %v", turn.at, len(s.ops), err))
	}
	return tableOp{kind, key, value}
}

// search returns the index of the first key that after says is beyond something. REQUIRES: they are sorted.
func (s *opSorter) search(after func(key []byte) bool) int {
	return sort.Search(len(s.order), func(i int) bool { return after(s.op(s.order[i]).key) })
}

// sort sorts by key, and by turn where keys are the same. Orders come nearly in the order of their ids, as these begin with the
// time: two runs of them, each in order, have few keys between each other's, and only those are merged. The standard library's sort
// takes twice as long, and does not rest.
func (s *opSorter) sort(ctx context.Context) error {
	order := s.order
	for from := 0; from < len(order); from += sortedRunMin {
		if from%yieldKeys == 0 {
			if err := s.shift.yield(ctx); err != nil {
				return err
			}
		}
		run := order[from:min(from+sortedRunMin, len(order))]
		for i := 1; i < len(run); i++ {
			turn, at := run[i], i
			for ; at > 0 && turn.rank <= run[at-1].rank && s.less(&turn, &run[at-1]); at-- {
				run[at] = run[at-1]
			}
			run[at] = turn
		}
	}
	for size := sortedRunMin; size < len(order); size *= 2 {
		for from := 0; from+size < len(order); from += 2 * size {
			s.merge(order[from:min(from+2*size, len(order))], size)
			if err := s.shift.yield(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// merge merges the first operations of a list with the others. Both are sorted.
func (s *opSorter) merge(list []opInTurn, first int) {
	// What comes before all others is in its place, and so is what comes after all of the first.
	start := sort.Search(first, func(i int) bool { return s.less(&list[first], &list[i]) })
	if start == first {
		return
	}
	end := first + sort.Search(len(list)-first, func(i int) bool { return !s.less(&list[first+i], &list[first-1]) })
	s.aside = append(s.aside[:0], list[start:first]...)
	left, right, to := s.aside, list[first:end], list[start:end]
	for len(left) > 0 && len(right) > 0 {
		if a, b := &right[0], &left[0]; a.rank < b.rank || a.rank == b.rank && s.less(a, b) { // Most need no call.
			to[0], right = right[0], right[1:]
		} else {
			to[0], left = left[0], left[1:]
		}
		to = to[1:]
	}
	copy(to, left)
}

// less reports whether a's key comes before b's.
func (s *opSorter) less(a, b *opInTurn) bool {
	if a.rank != b.rank {
		return a.rank < b.rank
	}
	return bytes.Compare(s.op(*a).key, s.op(*b).key) < 0
}

// A tableSet is tables that are written one after the other and added to the store in one step. One goroutine uses it. Whoever does not
// have them added abandons them.
type tableSet struct {
	store *Store
	shift *shift
	w     *sstable.Writer // of the last table; nil when it has ended
	// draft says that tables that are begun are to be merged with others soon: they are not compressed for that.
	draft  bool
	paths  []string
	files  []*tableFile // at paths, that nobody has waited for
	joined []byte       // the values that merges were joined to
	seen   byte         // keeps what fetch looks at from being dropped as of no use
}

// write adds sorted operations to the table that was begun, or begins one. REQUIRES: they come after those that it holds.
func (t *tableSet) write(ctx context.Context, s *opSorter, order []opInTurn) error {
	t.joined = t.joined[:0]
	var op tableOp // what is done to a key by all of its operations so far
	for i, turn := range order {
		if i%yieldKeys == 0 {
			if err := t.shift.yield(ctx); err != nil {
				return err
			}
		}
		if i%tableFetchOps == 0 {
			t.fetch(s.ops, order[i:min(i+tableFetchOps, len(order))])
		}
		next := s.op(turn)
		switch {
		case i == 0:
		case turn.rank == order[i-1].rank && bytes.Equal(next.key, op.key):
			next = t.joinOps(op, next)
		default:
			if err := t.add(op); err != nil {
				return err
			}
		}
		op = next
	}
	if len(order) == 0 {
		return nil
	}
	return t.add(op)
}

// fetch looks at operations that are read next. In the order of their keys they are all over the batch, which no cache holds: a processor
// waits for many of them at once if it does nothing else, and for each by itself while it writes the one before.
func (t *tableSet) fetch(ops batchrepr.Reader, turns []opInTurn) {
	seen := byte(0)
	for _, turn := range turns {
		for at := int(turn.at); at < min(int(turn.at)+tableFetchBytes, len(ops)); at += cacheLineBytes {
			seen += ops[at]
		}
	}
	t.seen = seen
}

// joinOps returns the one operation, as a table holds no more of a key, that does what two do in turn.
func (t *tableSet) joinOps(before, op tableOp) tableOp {
	switch {
	case op.kind != pebble.InternalKeyKindMerge:
		return op
	case before.kind == pebble.InternalKeyKindDelete: // What is merged to nothing is the value, and hides what was deleted.
		before.kind, before.value = pebble.InternalKeyKindSet, op.value
	default: // The store's Merger appends.
		from := len(t.joined)
		t.joined = append(append(t.joined, before.value...), op.value...)
		before.value = t.joined[from:len(t.joined):len(t.joined)]
	}
	return before
}

// add adds an operation to the table that was begun, or begins one. REQUIRES: its key comes after those that the table holds.
func (t *tableSet) add(op tableOp) (err error) {
	if t.w == nil {
		if err := t.begin(); err != nil {
			return fmt.Errorf("begin a table: %w", err)
		}
	}
	switch op.kind {
	case pebble.InternalKeyKindSet:
		err = t.w.Set(op.key, op.value)
	case pebble.InternalKeyKindMerge:
		err = t.w.Merge(op.key, op.value)
	case pebble.InternalKeyKindDelete:
		err = t.w.Delete(op.key)
	default:
		panic(fmt.Sprintf("projections: bug: a table cannot hold an operation of kind %v", op.kind))
	}
	if err != nil {
		return fmt.Errorf("write a table: %w", err)
	}
	return nil
}

func (t *tableSet) begin() error {
	path := t.store.fs.PathJoin(t.store.tables, strconv.FormatUint(t.store.tablesMade.Add(1), 10))
	file, err := t.store.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	t.paths = append(t.paths, path)
	file = vfs.NewSyncingFile(file, vfs.SyncingFileOptions{BytesPerSync: tableSyncBytes})
	written := &tableFile{file: file, buffer: make([]byte, 0, tableBufferBytes)}
	t.files = append(t.files, written)
	options := t.store.tableOptions
	if t.draft {
		options.Compression = sstable.NoCompression
	}
	t.w = sstable.NewWriter(written, options)
	return nil
}

// end ends the table that was begun, if there is one. It becomes durable while the next one is written.
func (t *tableSet) end() error {
	if t.w == nil {
		return nil
	}
	err := t.w.Close()
	t.w = nil
	if err != nil {
		return fmt.Errorf("end a table: %w", err)
	}
	return nil
}

// settle waits until the tables that have ended are durable.
func (t *tableSet) settle() (err error) {
	for _, file := range t.files {
		err = errors.Join(err, file.settle())
	}
	t.files = nil
	return err
}

// ingest adds the tables to the store. REQUIRES: the last one has ended.
func (t *tableSet) ingest(ctx context.Context) error {
	if err := t.settle(); err != nil {
		return errors.Join(fmt.Errorf("make %d tables durable: %w", len(t.paths), err), t.abandon())
	}
	if err := t.store.db.Ingest(ctx, t.paths); err != nil {
		return errors.Join(fmt.Errorf("add %d tables to the store: %w", len(t.paths), err), t.abandon())
	}
	return nil
}

// abandon removes what was written.
func (t *tableSet) abandon() error {
	err := errors.Join(t.end(), t.settle())
	for _, path := range t.paths {
		if removed := t.store.fs.Remove(path); !errors.Is(removed, fs.ErrNotExist) { // The store may have taken it.
			err = errors.Join(err, removed)
		}
	}
	t.paths = nil
	return err
}

// A tableFile is a file that a table is written to, a large piece at a time. It implements objstorage.Writable, but for this: when it is
// finished it is not durable yet, settle waits for that.
type tableFile struct {
	file    vfs.File
	buffer  []byte
	settled chan error // holds what came of making it durable; nil until it is finished
}

func (f *tableFile) Write(p []byte) error {
	if len(f.buffer)+len(p) > cap(f.buffer) {
		if err := f.flush(); err != nil {
			return err
		}
	}
	if len(p) > cap(f.buffer) {
		_, err := f.file.Write(p)
		return err
	}
	f.buffer = append(f.buffer, p...)
	return nil
}

func (f *tableFile) flush() error {
	_, err := f.file.Write(f.buffer)
	f.buffer = f.buffer[:0]
	return err
}

// Finish has the file made durable in the background, beside others that are written: one wait for the disk is then that of several.
func (f *tableFile) Finish() error {
	if err := f.flush(); err != nil {
		return errors.Join(err, f.file.Close())
	}
	f.settled = make(chan error, 1)
	go func() { f.settled <- errors.Join(f.file.Sync(), f.file.Close()) }()
	return nil
}

// settle waits until the file is durable, if it was finished. It is called once.
func (f *tableFile) settle() error {
	if f.settled == nil {
		return nil
	}
	return <-f.settled
}

func (f *tableFile) Abort() { _ = f.file.Close() } // Nobody reads it any more.
