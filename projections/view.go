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
	// Version of what apply writes. Keys that another version wrote are made again from the log, beside those that
	// are there.
	Version uint32
	// ReadsSince is the oldest version whose keys the reads understand: such keys go on answering, as they are, while new
	// ones are made. 0 means Version alone: then reads see what has been made so far.
	ReadsSince uint32
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
	// byOrder says that an event changes keys of its order's partition alone.
	byOrder bool
	// byUser says that key is the user.
	byUser bool
	// touches names the keys that an event changes and that the view is read by, where key is not the one; false when the event
	// does not tell. nil: key is the one.
	touches func(*view, *change) ([]string, bool)
}

// An applier takes events into one lane's part of a view. One goroutine uses it.
type applier interface {
	// apply takes one event in. It is determined by the view and the event alone, and it reads the event whole before it
	// writes: an error leaves the view as it was, and the event is parked. What the store fails at is a *storeFault.
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
	&orderMarksProjection,
	&salesProjection,
	&boardProjection,
	&erasuresProjection,
}

// A key of a view is KeySpaceViews, the view's space, its generation, its lane (16 bits, big endian), and what the view
// makes of the rest. A lane's part of a view is one range of keys, written by that lane's runner alone: it is compared,
// dropped and rebuilt by itself.
const (
	spaceProgress     byte = 0x00
	spacePointers     byte = 0xf0
	spaceRebuilds     byte = 0xf1
	spaceParked       byte = 0xf2
	spaceHeals        byte = 0xf3
	spaceOrders       byte = 0x01
	spaceOrdersByUser byte = 0x02
	spaceProducts     byte = 0x03
	spaceStock        byte = 0x04
	spaceCampaigns    byte = 0x0c
	spaceCoupons      byte = 0x0d
	spaceAttention    byte = 0x09
	spacePoints       byte = 0x0a
	spaceOrderMarks   byte = 0x10
	spaceSales        byte = 0x11
	spaceBoard        byte = 0x12
	spaceErasures     byte = 0x13

	// firstGeneration is that of a view in a new store. The generation tells apart a view that serves and one that is
	// being rebuilt beside it.
	firstGeneration byte = 1

	prefixBytes = 5
	// viewGroupBytes is how much of a key says what rows it is among: a view's kinds of rows differ by the first byte after the prefix, if
	// it has several.
	viewGroupBytes = prefixBytes + 1
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
	// read is how many bytes of the log were read to come here, of a generation that is being built; else 0.
	read uint64
}

// progressKey is where the progress of a generation of a view in a lane is kept. Tables of a rebuild are written with one of their own
// behind it, that key and the number of the commit: what is written to one key again and again cannot go to the lowest level. The
// furthest of them counts, until the generation is with its runner.
func progressKey(space, generation byte, lane uint32) []byte {
	return prefixOf(spaceProgress, firstGeneration, lane).key([]byte{space, generation})
}

func appendProgress(dst []byte, version uint32, p progress) []byte {
	dst = binary.BigEndian.AppendUint32(dst, version)
	dst = binary.BigEndian.AppendUint64(dst, p.Number)
	dst = append(dst, p.Hash[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(p.at.UnixNano()))
	if p.read > 0 {
		dst = binary.BigEndian.AppendUint64(dst, p.read)
	}
	return dst
}

// progressBytes is the size of the progress of a generation that is fed: older programs read it too. That of one that is being built is
// longer by what was read.
const (
	progressBytes         = 4 + 8 + len(eventstore.Hash{}) + 8
	progressBuildingBytes = progressBytes + 8
)

func readProgress(value []byte) (version uint32, p progress, err error) {
	if len(value) != progressBytes && len(value) != progressBuildingBytes {
		return 0, progress{}, &UnknownProgressError{Bytes: len(value)}
	}
	version = binary.BigEndian.Uint32(value)
	p.Number = binary.BigEndian.Uint64(value[4:])
	copy(p.Hash[:], value[12:])
	p.at = logTime(value[12+len(p.Hash):])
	if len(value) == progressBuildingBytes {
		p.read = binary.BigEndian.Uint64(value[progressBytes:])
	}
	return version, p, nil
}

// An UnknownProgressError says that how far a view is was not written by this program: most likely by a newer one.
type UnknownProgressError struct{ Bytes int }

func (e *UnknownProgressError) Error() string {
	return fmt.Sprintf("how far it is was written by a newer program, or is damaged: it takes %d bytes, want %d or %d", e.Bytes, progressBytes, progressBuildingBytes)
}

// logTime reads a log time: nanoseconds since the Unix epoch, big endian.
func logTime(value []byte) time.Time {
	return time.Unix(0, int64(binary.BigEndian.Uint64(value))).UTC()
}

// readPosition returns the number of the newest commit that a lane's part of a view holds, by the prefix of its keys.
func readPosition(from pebble.Reader, p prefix) (uint64, error) {
	value, err := read(from, progressKey(p[1], p[2], uint32(binary.BigEndian.Uint16(p[3:]))))
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

	// parked is what the view leaves out, with what the batch adds to it.
	parked *parkedKeys
	// taking is the event that the applier is taking in, nil when it is not.
	taking *change
	// poison are events that panicked since the last flush.
	poison map[EventAt]*panicked
	// excluded are events that Verify's views leave out, as those that they are compared with do; excludedSeen those of them
	// that came.
	excluded, excludedSeen map[EventAt]struct{}
}

// storedProgress returns how far a generation of a view is, and the version that wrote it. One that does not exist is at the
// lane's genesis, of the projection's version.
func storedProgress(from pebble.Reader, p *Projection, generation byte, lane, lanes uint32) (version uint32, at progress, err error) {
	first := progressKey(p.space, generation, lane)
	entries, err := from.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		return 0, progress{}, fmt.Errorf("read the progress of view %s: %w", p.Name, err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	version = p.Version
	// The first is that of the batches, the last that of the newest tables.
	for _, valid := range []func() bool{entries.First, entries.Last} {
		if !valid() {
			break
		}
		versionHere, here, err := readProgress(entries.Value())
		if err != nil {
			return 0, progress{}, err
		}
		if here.Number >= at.Number {
			version, at = versionHere, here
		}
	}
	if err := entries.Error(); err != nil {
		return 0, progress{}, fmt.Errorf("read the progress of view %s: %w", p.Name, err)
	}
	if at.Number == 0 {
		at.Position = eventstore.Genesis(lane, lanes)
	}
	return version, at, nil
}

// openView opens a generation of a view where it is. REQUIRES: the projection's version wrote it.
func openView(p *Projection, generation byte, db *pebble.DB, batch *pebble.Batch, lane, lanes uint32) (*view, error) {
	v := &view{
		projection: p, lane: lane, generation: generation, prefix: prefixOf(p.space, generation, lane), db: db, batch: batch,
	}
	version, _, err := storedProgress(db, p, generation, lane, lanes)
	if err != nil {
		return nil, err
	}
	if version != p.Version {
		panic(fmt.Sprintf("projections: bug: generation %d of view %s in lane %d is of version %d, opened as %d", generation, p.Name, lane, version, p.Version))
	}
	return v, v.reopen(lanes)
}

// finish writes what the view has held back, and its progress, into the batch.
func (v *view) finish() error {
	if err := v.applier.finish(); err != nil {
		return err
	}
	var value [progressBuildingBytes]byte
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
