package projections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/eventstore"
)

// A Projection is the write side of a view, declared in the view's own file: what apply makes of the log, and how its keys
// are named, grouped and written down for people. The reads stand beside it, as methods of Views.
type Projection struct {
	// Name of the view, for people.
	Name string
	// Version of what apply writes. Keys that another version wrote are dropped, and made again from the log.
	Version uint32
	// space is the first byte of the view's keys after KeySpaceViews; never used again for another view.
	space byte
	// open returns what takes events into one lane's part of the view, with all that it remembers between events.
	open func(*view) (applier, error)
	// key names what the event is about, "" when the view passes over it. Events with one key have to be applied in
	// their order; events with different keys may change places.
	key func(*change) string
	// describe writes a key, less its prefix, as people do.
	describe func(suffix []byte) string
	// print writes the value at a key as people do.
	print func(suffix, value []byte) (string, error)
	// partition is that of a key, less its prefix. It has no meaning but that the same key always has the same one:
	// views are compared partition by partition.
	partition func(suffix []byte) uint32
}

// An applier takes events into one lane's part of a view. One goroutine uses it.
type applier interface {
	// apply takes one event in. It is determined by the view and the event alone, and it reads the event whole before it
	// writes: an error leaves the view as it was.
	apply(*change) error
	// finish writes what was held back into the batch. What the batch holds is in the store when apply is called again.
	finish() error
}

// stateless opens a view that remembers nothing between events.
func stateless(apply func(*view, *change) error) func(*view) (applier, error) {
	return func(v *view) (applier, error) { return statelessApplier{v, apply}, nil }
}

type statelessApplier struct {
	view *view
	take func(*view, *change) error
}

func (a statelessApplier) apply(c *change) error { return a.take(a.view, c) }
func (a statelessApplier) finish() error         { return nil }

// Projections are the views that a Runner keeps. A new one is a file with its Projection and its reads, and a line here.
var Projections = [...]*Projection{
	&ordersProjection,
	&ordersByUserProjection,
	&productsProjection,
	&stockProjection,
	&campaignsProjection,
	&couponsProjection,
	&attentionProjection,
	&pointsProjection,
}

// A key of a view is KeySpaceViews, the view's space, its generation, its lane (16 bits, big endian), and what the view
// makes of the rest. A lane's part of a view is one range of keys, written by that lane's runner alone: it is compared,
// dropped and rebuilt by itself.
const (
	spaceProgress     byte = 0x00
	spaceOrders       byte = 0x01
	spaceOrdersByUser byte = 0x02
	spaceProducts     byte = 0x03
	spaceStock        byte = 0x04
	spaceCampaigns    byte = 0x0c
	spaceCoupons      byte = 0x0d
	spaceAttention    byte = 0x09
	spacePoints       byte = 0x0a

	// firstGeneration is that of a view in a new store. The generation tells apart a view that serves and one that is
	// being rebuilt beside it.
	firstGeneration byte = 1

	prefixBytes = 5
)

type prefix [prefixBytes]byte

func prefixOf(space, generation byte, lane uint32) prefix {
	p := prefix{KeySpaceViews, space, generation}
	binary.BigEndian.PutUint16(p[3:], uint16(lane))
	return p
}

// key returns prefix and suffix as one new slice.
func (p prefix) key(suffix []byte) []byte {
	key := make([]byte, 0, prefixBytes+len(suffix))
	return append(append(key, p[:]...), suffix...)
}

// end returns the first key after all that begin with p.
func (p prefix) end() []byte { return keyAfter(p[:]) }

// keyAfter returns the first key after all that begin with prefix. REQUIRES: a byte of it is not 0xff.
func keyAfter(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	panic("projections: bug: no key comes after a prefix of 0xff")
}

// progress is how far a lane's part of a view has come. It is written in the batch of what it speaks of.
type progress struct {
	eventstore.Position
	// at is the log time of the commit.
	at time.Time
}

// progressKey is where the progress of a generation of a view in a lane is kept.
func progressKey(space, generation byte, lane uint32) []byte {
	return prefixOf(spaceProgress, firstGeneration, lane).key([]byte{space, generation})
}

func appendProgress(dst []byte, version uint32, p progress) []byte {
	dst = binary.BigEndian.AppendUint32(dst, version)
	dst = binary.BigEndian.AppendUint64(dst, p.Number)
	dst = append(dst, p.Hash[:]...)
	return binary.BigEndian.AppendUint64(dst, uint64(p.at.UnixNano()))
}

const progressBytes = 4 + 8 + len(eventstore.Hash{}) + 8

func readProgress(value []byte) (version uint32, p progress, err error) {
	if len(value) != progressBytes {
		return 0, progress{}, fmt.Errorf("a view's progress has %d bytes, want %d", len(value), progressBytes)
	}
	version = binary.BigEndian.Uint32(value)
	p.Number = binary.BigEndian.Uint64(value[4:])
	copy(p.Hash[:], value[12:])
	p.at = logTime(value[12+len(p.Hash):])
	return version, p, nil
}

// logTime reads a log time: nanoseconds since the Unix epoch, big endian.
func logTime(value []byte) time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(value))).UTC()
}

// readPosition returns the number of the newest commit that a lane's part of a view holds.
func readPosition(from pebble.Reader, space, generation byte, lane uint32) (uint64, error) {
	value, err := read(from, progressKey(space, generation, lane))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read how far a view is: %w", err)
	}
	_, progress, err := readProgress(value)
	return progress.Number, err
}

// A view is one lane's part of a generation of a projection, open for writing. One goroutine uses it.
type view struct {
	projection *Projection
	lane       uint32
	generation byte
	prefix     prefix
	progress   progress
	// db is read for what was there before, batch takes what changes.
	db    *pebble.DB
	batch *pebble.Batch
	// applier of the projection, made for this view.
	applier applier
}

// openView loads a view's progress. Keys of another version are dropped, and the view begins at the lane's genesis.
func openView(projection *Projection, generation byte, db *pebble.DB, batch *pebble.Batch, lane, lanes uint32) (*view, error) {
	v := &view{
		projection: projection, lane: lane, generation: generation, prefix: prefixOf(projection.space, generation, lane), db: db, batch: batch,
	}
	key := progressKey(projection.space, generation, lane)
	stale := false
	value, err := read(db, key)
	switch {
	case err == nil:
		version, progress, err := readProgress(value)
		if err != nil {
			return nil, err
		}
		stale = version != projection.Version
		v.progress = progress
	case !errors.Is(err, pebble.ErrNotFound):
		return nil, fmt.Errorf("read the progress of view %s: %w", projection.Name, err)
	}
	if stale {
		drop := db.NewBatch()
		defer drop.Close()
		if err := errors.Join(
			drop.DeleteRange(v.prefix[:], v.prefix.end(), nil),
			drop.Delete(key, nil),
			drop.Commit(pebble.NoSync),
		); err != nil {
			return nil, fmt.Errorf("drop view %s of another version: %w", projection.Name, err)
		}
		v.progress = progress{}
	}
	if v.progress.Number == 0 {
		v.progress.Position = eventstore.Genesis(lane, lanes)
	}
	if v.applier, err = projection.open(v); err != nil {
		return nil, fmt.Errorf("open view %s: %w", projection.Name, err)
	}
	return v, nil
}

// finish writes what the view has held back, and its progress, into the batch.
func (v *view) finish() error {
	if err := v.applier.finish(); err != nil {
		return err
	}
	var value [progressBytes]byte
	return v.batch.Set(progressKey(v.projection.space, v.generation, v.lane), appendProgress(value[:0], v.projection.Version, v.progress), nil)
}

// read returns one key's value of a lane's part of a view, or pebble.ErrNotFound.
func (p prefix) read(from pebble.Reader, suffix string) ([]byte, error) {
	return read(from, p.key([]byte(suffix)))
}

// read returns a copy of the value at key, or pebble.ErrNotFound.
func read(from pebble.Reader, key []byte) ([]byte, error) {
	value, closer, err := from.Get(key)
	if err != nil {
		return nil, err
	}
	value = append([]byte(nil), value...)
	return value, closer.Close()
}
