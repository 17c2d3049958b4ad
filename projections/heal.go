package projections

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// A heal is what a generation would hold if the events that it has parked were taken in: those of the keys that another
// generation of the view has not parked. Two generations that differ by that alone are of one log, and the other one is whole
// where the first is not.
type heal struct {
	// parked keys that the other generation has not, sorted. There are none when it does not take them in.
	parked []string
	// values by key, less its prefix; nil for one that would be removed.
	values map[string][]byte
}

// heals are those of two generations that are compared.
type heals struct {
	live, other heal
	// worse are keys that only the other generation has parked, and that count as differences, sorted.
	worse []string
}

// healsOf heals, in memory, the generation that answers by another one, and the other one by it if it is kept: what is kept may well
// have parked what was taken in since, while one that is being built must not park more. events are those of the parked keys
// that the caller has read before. REQUIRES: between two batches; both generations are fed.
func (r *Runner) healsOf(ctx context.Context, p *Projection, live, other byte, kept bool, events parkedEvents) (h heals, err error) {
	parked, err := loadParked(r.db, prefixOf(p.space, live, r.lane))
	if err != nil {
		return heals{}, err
	}
	parkedThere, err := loadParked(r.db, prefixOf(p.space, other, r.lane))
	if err != nil {
		return heals{}, err
	}
	if h.live, err = r.healOf(ctx, p, live, parked, keysWithout(parked, parkedThere), events); err != nil {
		return heals{}, err
	}
	h.worse = keysWithout(parkedThere, parked)
	if kept {
		if h.other, err = r.healOf(ctx, p, other, parkedThere, h.worse, events); err != nil {
			return heals{}, err
		}
		if len(h.other.parked) > 0 {
			h.worse = nil
		}
	}
	return h, nil
}

// healOf takes the events of parked keys of a generation in, in memory, as Replay would in the store.
func (r *Runner) healOf(ctx context.Context, p *Projection, generation byte, parked *parkedKeys, names []string, events parkedEvents) (h heal, err error) {
	if len(names) == 0 {
		return heal{}, nil
	}
	batch := r.db.NewIndexedBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	scratch, err := openView(p, generation, r.db, batch, r.lane, r.topology.Lanes)
	if err != nil {
		return heal{}, err
	}
	for _, name := range names {
		if err := events.read(ctx, r, parked.byKey[name].events); err != nil {
			return heal{}, err
		}
		for _, at := range parked.byKey[name].events {
			c := events[at]
			err := scratch.again(&c)
			var fault *storeFault
			if errors.As(err, &fault) {
				return heal{}, err
			}
			if err != nil {
				// The other generation took it in, and this one does not: what they hold differs by more than what is parked.
				return heal{}, nil
			}
		}
	}
	if err := scratch.applier.finish(); err != nil {
		return heal{}, err
	}
	h.parked = names
	h.values, err = writtenIn(batch, scratch.prefix)
	return h, err
}

// keysWithout returns the keys of a list that another one does not have, sorted.
func keysWithout(list, without *parkedKeys) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(list.byKey)) {
		if without.byKey[name] == nil {
			names = append(names, name)
		}
	}
	return names
}

// writtenIn returns what a batch makes of the keys under a prefix that it writes.
func writtenIn(batch *pebble.Batch, p prefix) (map[string][]byte, error) {
	values := make(map[string][]byte)
	for reader := batch.Reader(); ; {
		_, key, _, ok, err := reader.Next()
		if err != nil || !ok {
			return values, err
		}
		if !bytes.HasPrefix(key, p[:]) {
			continue
		}
		value, err := read(batch, key)
		if err != nil && !errors.Is(err, pebble.ErrNotFound) {
			return nil, err
		}
		values[string(key[prefixBytes:])] = value
	}
}

// changes reports whether a heal of either generation writes a key.
func (h *heals) changes(suffix []byte) bool {
	_, live := h.live.values[string(suffix)]
	_, other := h.other.values[string(suffix)]
	return live || other
}

// compare compares what the heals make of the two generations, for the keys that they write.
func (h *heals) compare(c *comparer, found *LaneComparison) error {
	for _, name := range h.worse {
		c.differ(nil, "parked key "+name, fmt.Sprintf("it is parked in %s and not in %s", c.names.want, c.names.got))
	}
	written := maps.Clone(h.live.values)
	if written == nil {
		written = make(map[string][]byte)
	}
	maps.Copy(written, h.other.values)
	for _, suffix := range slices.Sorted(maps.Keys(written)) {
		got, err := h.live.value(c.got, suffix)
		if err != nil {
			return err
		}
		want, err := h.other.value(c.want, suffix)
		if err != nil {
			return err
		}
		switch {
		case (got == nil) != (want == nil):
			c.differ([]byte(suffix), "", fmt.Sprintf("with parked events taken in, only one of %s and %s has it", c.names.got, c.names.want))
		case !bytes.Equal(got, want):
			c.differ([]byte(suffix), "", "with parked events taken in, "+c.describe([]byte(suffix), got, want))
		default:
			found.HealedKeys++
		}
	}
	found.Heals, found.Healed = h.live.parked, h.other.parked
	return nil
}

// value returns what a generation holds at a key with its heal, nil for nothing.
func (h *heal) value(of side, suffix string) ([]byte, error) {
	if value, written := h.values[suffix]; written {
		return value, nil
	}
	value, err := of.read(of.from, suffix)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	return value, err
}
