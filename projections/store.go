// Package projections makes views of the log and reads them.
//
// A projection is a pure Apply of events to a batch, plus reads. A Runner feeds one lane to every projection, in order,
// many commits to one Pebble batch, and puts its position into the same batch: a view equals the fold of the log up to
// its position (I6).
package projections

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The key spaces of a Store, by first byte. Each has one owner, who alone writes below it.
const (
	// KeySpaceState holds the lanes' own state; package api/lanes owns it.
	KeySpaceState byte = 0x01
	// KeySpaceViews holds the views; this package owns it.
	KeySpaceViews byte = 0x02
	// KeySpaceReactors holds how far the reactors are; package api/reactors owns it.
	KeySpaceReactors byte = 0x03
)

// Limits of a Store.
const (
	// BlockCacheBytesDefault is the size of the block cache when StoreOptions leaves it open.
	BlockCacheBytesDefault = 128 << 20
	// memTableBytes is the size of one memtable. What a crash loses, and what a node replays from its log after one, is
	// at most memTableStop of them.
	memTableBytes = 32 << 20
	// BulkBytes is the size of the batches that what is read in bulk is written in, when StoreOptions leaves it open: a Bulk writes them as
	// tables. One that is committed all the same Pebble does not insert into a memtable, key by key, but sorts once and flushes as it is
	// (half a memtable makes it so).
	BulkBytes = memTableBytes/2 + 1<<20
	// memTableStop is how many memtables may exist before writes wait for a flush.
	memTableStop = 3
	// l0CompactionThreshold is how deep L0 is when it is compacted: see pebbleOptions.
	l0CompactionThreshold = 16
	// l0StopWrites is how deep L0 may become before writes wait for a compaction.
	l0StopWrites = 64
	// blockBytes is how much of a table is compressed and read at a time: twice what Pebble does by default makes tables for 5% less CPU
	// of a rebuild, and a read of an order costs the same (BenchmarkRebuildOfOrders, BenchmarkOrder).
	blockBytes = 8 << 10
	// bloomBitsPerKey gives about 1 % false positives: a miss costs no block read.
	bloomBitsPerKey = 10
)

// StoreOptions configure a Store. The zero value is a store on disk.
type StoreOptions struct {
	// FS to keep files in; nil means the operating system's.
	FS vfs.FS
	// BlockCacheBytes bounds the cache of uncompressed blocks; 0 means BlockCacheBytesDefault.
	BlockCacheBytes int64
	// Asked counts what others have asked of this node so far: while that rises, compactions make room. nil means that nobody asks.
	Asked func() uint64
	// BulkBytes is the size from which a Bulk writes a batch as tables; 0 means BulkBytes.
	BulkBytes int
	// Logger is told of Pebble's errors; nil means slog.Default.
	Logger *slog.Logger
}

// A Store is a node's Pebble database: the lanes' state and the views, side by side.
//
// It has no write-ahead log, the lanes' log is one. That is sound because of how Pebble flushes: a batch goes whole
// into one memtable (DB.commitWrite reserves room for all of it, or makes a batch that is too large a flushable of its
// own), memtables are flushed from the oldest on (DB.flush1 takes a prefix of the queue), and a flush becomes visible in
// one edit of the manifest after its tables are synced. So a crash leaves a prefix of the batches, none of them in
// part, and the position that each batch carries says where to replay from. Compactions only rewrite what was flushed.
// The tables of a rebuild are durable before batches that were written earlier to other keys; see tableRun. What is read in bulk becomes
// tables, too, and is durable at once, with all that was written before it; see Bulk.
type Store struct {
	db          *pebble.DB
	lock        *pebble.Lock
	generations generations

	fs  vfs.FS
	dir string
	// Tables that are written past the memtable stand in a folder of their own until Pebble takes them.
	tables       string
	tablesMade   atomic.Uint64
	tableOptions sstable.WriterOptions
	// bulkBytes is the size of batch that a Bulk writes as tables.
	bulkBytes int
}

// tablesDir is the folder below the store's in which tables are written. What a crash leaves there is removed at the next start.
const tablesDir = "tables"

// OpenStore opens the store in dir, or creates it. A directory that another process has open is a *StoreInUseError.
// The caller closes the store.
func OpenStore(dir string, options StoreOptions) (*Store, error) {
	if options.FS == nil {
		options.FS = vfs.Default
	}
	if options.BlockCacheBytes == 0 {
		options.BlockCacheBytes = BlockCacheBytesDefault
	}
	if options.BulkBytes == 0 {
		options.BulkBytes = BulkBytes
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	if err := options.FS.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create data directory: %w", err)
	}
	lock, err := pebble.LockDirectory(dir, options.FS)
	if err != nil {
		var path *fs.PathError
		if errors.As(err, &path) {
			return nil, fmt.Errorf("lock data directory: %w", err)
		}
		return nil, &StoreInUseError{Dir: dir, Cause: err}
	}
	s := &Store{lock: lock, fs: options.FS, dir: dir, tables: options.FS.PathJoin(dir, tablesDir), bulkBytes: options.BulkBytes}
	if err := errors.Join(s.fs.RemoveAll(s.tables), s.fs.MkdirAll(s.tables, 0o755)); err != nil {
		return nil, errors.Join(fmt.Errorf("clear the folder for new tables: %w", err), lock.Close())
	}
	pebbled := pebbleOptions(options, lock)
	compactions := newCompactions(options.Asked)
	pebbled.Experimental.CompactionScheduler = compactions
	pebbled.EnsureDefaults()
	db, err := pebble.Open(dir, pebbled)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the views in %s: %w", dir, err), lock.Close())
	}
	compactions.l0.watch(db)
	s.db, s.tableOptions = db, pebbled.MakeWriterOptions(len(pebbled.Levels)-1, db.TableFormat())
	s.tableOptions.WritingToLowestLevel = false // It would have readers pass over what a table deletes, and the level is Pebble's choice.
	if err := s.generations.load(db); err != nil {
		return nil, errors.Join(err, db.Close(), lock.Close())
	}
	return s, nil
}

func pebbleOptions(options StoreOptions, lock *pebble.Lock) *pebble.Options {
	o := &pebble.Options{
		FS:                 options.FS,
		Lock:               lock,
		DisableWAL:         true, // See Store.
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             pebbleLogger{options.Logger},
		// Merge appends: an order's record grows by its next entry (see record.go).
		Merger: pebble.DefaultMerger,

		// Pebble reserves the room of its memtables in the block cache, so it is added on top.
		CacheSize:                   options.BlockCacheBytes + memTableStop*memTableBytes,
		MemTableSize:                memTableBytes,
		MemTableStopWritesThreshold: memTableStop,

		// Ledger keys arrive in random order: every flush overlaps everything below, and the write cost is that of
		// compacting it. L0 may grow deep before it is compacted, so that more is merged at once (half the CPU
		// that a threshold of 4 takes, BenchmarkStore); a point read looks at a deep L0 through filters.
		L0CompactionThreshold: l0CompactionThreshold,
		L0StopWritesThreshold: l0StopWrites,
		LBaseMaxBytes:         256 << 20,
		// One compaction at a time: the other cores serve, and bulk writes make the log's fsyncs wait. See compactions, too.
		CompactionConcurrencyRange: func() (lower, upper int) { return 1, 1 },
	}
	// A table of a new generation belongs between two others' keys, which one file below may hold both of: it is split there.
	o.Experimental.IngestSplit = func() bool { return true }
	o.TargetFileSizes[0] = 8 << 20
	for i := range o.Levels {
		o.Levels[i].BlockSize = blockBytes
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(bloomBitsPerKey)
		o.Levels[i].FilterType = pebble.TableFilter
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	return o
}

// DB returns the database. Its user keeps to the key space that it owns.
func (s *Store) DB() *pebble.DB { return s.db }

// Flush makes everything written so far durable.
func (s *Store) Flush() error { return s.db.Flush() }

// Checkpoint copies the store as of now into dir, which must not be there and is on the same file system: files are linked, not
// copied. A store that is opened there goes on from the positions that it holds, as after a crash; what was being rebuilt begins again,
// if it has to be.
func (s *Store) Checkpoint(dir string) error {
	return errors.Join(s.db.Flush(), s.db.Checkpoint(dir))
}

// Close flushes and closes the store. REQUIRES: nobody uses it any more.
func (s *Store) Close() error {
	return errors.Join(s.db.Flush(), s.db.Close(), s.lock.Close())
}

// A StoreInUseError says that another process has the data directory open.
type StoreInUseError struct {
	Dir   string
	Cause error
}

func (e *StoreInUseError) Error() string {
	return fmt.Sprintf("data directory %s is in use by another process", e.Dir)
}

func (e *StoreInUseError) Unwrap() error { return e.Cause }

// pebbleLogger keeps Pebble quiet: it passes on errors only.
type pebbleLogger struct{ logger *slog.Logger }

func (pebbleLogger) Infof(string, ...any) {}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.logger.Error("pebble failed", "error", fmt.Sprintf(format, args...))
}

// Fatalf does not return: Pebble calls it when going on would damage the store.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	panic("pebble: " + fmt.Sprintf(format, args...))
}
