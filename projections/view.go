package projections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/eventstore"
)

// A Projection is the write side of a view: a name, a version and a pure apply.
type Projection struct {
	// Name of the view, for people.
	Name string
	// Version of what apply writes. Keys that another version wrote are dropped, and made again from the log.
	Version uint32
	// space is the first byte of the view's keys after KeySpaceViews; never used again for another view.
	space byte
	// apply takes one event into the view of a lane. It is determined by the view and the event alone, and it reads the
	// event whole before it writes: an error leaves the view as it was.
	apply func(*view, *change) error
}

// Projections are the views that a Runner keeps.
var Projections = [...]Projection{
	{Name: "orders", Version: 1, space: spaceOrders, apply: applyOrders},
	{Name: "orders-by-user", Version: 1, space: spaceOrdersByUser, apply: applyOrdersByUser},
	{Name: "products", Version: 1, space: spaceProducts, apply: applyProducts},
	{Name: "stock", Version: 1, space: spaceStock, apply: applyStock},
	{Name: "campaigns", Version: 1, space: spaceCampaigns, apply: applyCampaigns},
	{Name: "coupons", Version: 1, space: spaceCoupons, apply: applyCoupons},
	{Name: "payments-attention", Version: 1, space: spaceAttention, apply: applyAttention},
	{Name: "points", Version: 1, space: spacePoints, apply: applyPoints},
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

	// generation tells apart a view that serves and one that is being rebuilt beside it. There is one so far.
	generation byte = 1

	prefixBytes = 5
)

type prefix [prefixBytes]byte

func prefixOf(space byte, lane uint32) prefix {
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

// progressKey is where a view's progress in a lane is kept.
func progressKey(space byte, lane uint32) []byte {
	return prefixOf(spaceProgress, lane).key([]byte{space, generation})
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
	p.at = time.Unix(0, int64(binary.BigEndian.Uint64(value[12+len(p.Hash):]))).UTC()
	return version, p, nil
}

// A view is one lane's part of a projection, open for writing. One goroutine uses it.
type view struct {
	projection *Projection
	prefix     prefix
	progress   progress
	// db is read for what was there before, batch takes what changes.
	db    *pebble.DB
	batch *pebble.Batch
	stock stockCache
	open  openPayments
	// points are cleared when the batch is finished: what it held is in the db then.
	points newestPoints
}

// openView loads a view's progress. Keys of another version are dropped, and the view begins at the lane's genesis.
func openView(projection *Projection, db *pebble.DB, batch *pebble.Batch, lane, lanes uint32) (*view, error) {
	v := &view{projection: projection, prefix: prefixOf(projection.space, lane), db: db, batch: batch}
	key := progressKey(projection.space, lane)
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
	if err := v.loadOpen(); err != nil {
		return nil, fmt.Errorf("read view %s: %w", projection.Name, err)
	}
	return v, nil
}

// finish writes what the view has held back, and its progress, into the batch.
func (v *view) finish(lane uint32) error {
	if err := v.writeStock(); err != nil {
		return err
	}
	clear(v.points)
	var value [progressBytes]byte
	return v.batch.Set(progressKey(v.projection.space, lane), appendProgress(value[:0], v.projection.Version, v.progress), nil)
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
