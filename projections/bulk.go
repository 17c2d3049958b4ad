package projections

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Limits of a Bulk.
const (
	// bulkGroupBytesMax is how much of a key may say its group.
	bulkGroupBytesMax = 8
	// bulkTablesMax is how many tables of their own the groups of a batch have at most, about: a group gets one for so large a part of it.
	bulkTablesMax = 64
)

// A Bulk writes the batches of one goroutine, which may have much of a log to make up. A large batch becomes sorted tables that are added
// past the memtable in one step; any other one is committed as ever. Other than Pebble, which sorts and flushes a large batch as it comes,
// a Bulk knows that keys come in groups, that most of a group's are nearly in order, and which groups grow at one end: their tables go to
// the lowest level, and are not merged with anything again.
//
// Whatever was committed to the store before a batch is durable before the batch's tables are. So a crash leaves a prefix of what one
// goroutine committed, as Store says.
type Bulk struct {
	store      *Store
	groupBytes int

	opSorter
	groups map[uint64]*keyGroup // by the first bytes of their keys
	// retains says that the batch keeps its memory.
	retains bool
}

// A keyGroup is the keys that begin with the same bytes.
type keyGroup struct {
	order []opInTurn // of the batch
	bytes int        // of the batch
	// least and greatest are the keys between which all that were written in tables are; nil when none were.
	least, greatest []byte
}

// NewBulk returns a Bulk for keys whose first groupBytes, at most 8, say what they are of.
func (s *Store) NewBulk(groupBytes int) *Bulk {
	if groupBytes < 1 || groupBytes > bulkGroupBytesMax {
		panic(fmt.Sprintf("projections: bug: keys are grouped by their first %d bytes, want 1 to %d", groupBytes, bulkGroupBytesMax))
	}
	return &Bulk{store: s, groupBytes: groupBytes}
}

// NewBatch returns the batch to begin with.
func (b *Bulk) NewBatch() *pebble.Batch {
	return b.store.db.NewBatch(pebble.WithMaxRetainedSizeBytes(2 * batchBytesMax))
}

// Full reports whether a batch of that size is large: it should be committed.
func (b *Bulk) Full(bytes int) bool { return bytes >= b.store.bulkBytes }

// Commit writes a batch in one step, and returns an empty one to go on with: the same or another. After an error it is the one that was
// not written. What was taken in is written, whoever leaves meanwhile.
func (b *Bulk) Commit(batch *pebble.Batch) (*pebble.Batch, error) {
	large := b.Full(batch.Len())
	if large {
		added, err := b.addTables(context.Background(), batch)
		if err != nil {
			return batch, err
		}
		if added {
			return b.emptied(batch)
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		return batch, err
	}
	if !large && !b.retains {
		batch.Reset()
		return batch, nil
	}
	// What a log that is made up takes is not kept for its tail. And Pebble may go on reading a large batch that it has taken.
	b.opSorter, b.groups, b.retains = opSorter{}, nil, false
	return b.NewBatch(), batch.Close()
}

// emptied returns a batch after it was added as tables: another large one will follow.
func (b *Bulk) emptied(batch *pebble.Batch) (*pebble.Batch, error) {
	if b.retains {
		batch.Reset()
		return batch, nil
	}
	b.retains = true
	room := b.store.bulkBytes + tableSlackBytes
	return b.store.db.NewBatch(pebble.WithInitialSizeBytes(room), pebble.WithMaxRetainedSizeBytes(2*room)), batch.Close()
}

// addTables adds what the batch holds as tables and reports true, or reports false: tables cannot hold it, or L0 is too deep.
func (b *Bulk) addTables(ctx context.Context, batch *pebble.Batch) (added bool, err error) {
	if b.store.db.Metrics().Levels[0].Sublevels >= tableSublevelsMax {
		return false, nil
	}
	groups, err := b.read(batch)
	if err != nil || groups == nil {
		return false, err
	}
	// The position among the tables may speak of what is in a memtable only, and Pebble holds tables back for keys that they meet alone.
	if err := b.store.Flush(); err != nil {
		return false, err
	}
	tables := &tableSet{store: b.store}
	if err := b.writeAll(ctx, tables, groups); err != nil {
		return false, errors.Join(err, tables.abandon())
	}
	if err := tables.ingest(ctx); err != nil {
		return false, err
	}
	return true, nil
}

// read lists what the batch does and returns its groups in the order of their keys, none when tables cannot hold it. Keys and values
// alias the batch.
func (b *Bulk) read(batch *pebble.Batch) ([]*keyGroup, error) {
	b.ops = batch.Reader()
	if b.groups == nil {
		b.groups = make(map[uint64]*keyGroup)
	}
	for _, group := range b.groups {
		group.order, group.bytes = group.order[:0], 0
	}
	var of uint64
	var group *keyGroup // that of the key before, as most keys have
	for reader := b.ops; ; {
		at := len(b.ops) - len(reader)
		kind, key, value, more, err := reader.Next()
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
		switch kind {
		case pebble.InternalKeyKindSet, pebble.InternalKeyKindMerge, pebble.InternalKeyKindDelete:
		default:
			return nil, nil
		}
		if here := rankOf(key) >> (8 * (bulkGroupBytesMax - b.groupBytes)); group == nil || here != of {
			of = here
			if group = b.groups[of]; group == nil {
				group = new(keyGroup)
				b.groups[of] = group
			}
		}
		group.order = append(group.order, opInTurn{rankOf(key[min(b.groupBytes, len(key)):]), uint32(at)})
		group.bytes += len(key) + len(value)
	}
	var groups []*keyGroup
	for _, group := range b.groups {
		if len(group.order) > 0 {
			groups = append(groups, group)
		}
	}
	slices.SortFunc(groups, func(x, y *keyGroup) int {
		return bytes.Compare(b.op(x.order[0]).key, b.op(y.order[0]).key)
	})
	return groups, nil
}

// writeAll sorts groups and writes them.
func (b *Bulk) writeAll(ctx context.Context, tables *tableSet, groups []*keyGroup) error {
	for _, group := range groups {
		b.order = group.order
		if err := b.sort(ctx); err != nil {
			return err
		}
		if err := b.write(ctx, tables, group); err != nil {
			return err
		}
	}
	return tables.end()
}

// write writes a group that was sorted. A small one goes on in the table of those before it, as a file for each would cost more than
// it saves. A large one has tables of its own: one of what comes before all that was written earlier, one of what comes after, and one of the
// rest. The first two meet no older table; the third one is a draft, as it is merged with those that it meets before long.
func (b *Bulk) write(ctx context.Context, tables *tableSet, group *keyGroup) error {
	bytesMin := b.store.bulkBytes / bulkTablesMax
	least, greatest := b.op(b.order[0]).key, b.op(b.order[len(b.order)-1]).key
	before, beyond := 0, len(b.order)
	metOlder := group.least != nil
	if metOlder {
		enough := func(ops int) bool { return group.bytes/len(b.order)*ops >= bytesMin } // As far as they are of one size.
		before = b.search(func(key []byte) bool { return bytes.Compare(key, group.least) >= 0 })
		beyond = b.search(func(key []byte) bool { return bytes.Compare(key, group.greatest) > 0 })
		if !enough(before) {
			before = 0
		}
		if !enough(len(b.order) - beyond) {
			beyond = len(b.order)
		}
	}
	if group.least == nil || bytes.Compare(least, group.least) < 0 {
		group.least = append(group.least[:0], least...)
	}
	if bytes.Compare(greatest, group.greatest) > 0 {
		group.greatest = append(group.greatest[:0], greatest...)
	}
	if group.bytes < bytesMin {
		return tables.write(ctx, &b.opSorter, b.order)
	}
	if err := tables.end(); err != nil {
		return err
	}
	for i, part := range [][]opInTurn{b.order[:before], b.order[before:beyond], b.order[beyond:]} {
		tables.draft = i == 1 && metOlder
		if err := tables.write(ctx, &b.opSorter, part); err != nil {
			return err
		}
		if err := tables.end(); err != nil {
			return err
		}
	}
	tables.draft = false
	return nil
}
