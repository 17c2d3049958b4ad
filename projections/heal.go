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
	// parked keys that the other generation has not, sorted.
	parked []string
	// worse are keys that only the other generation has parked, sorted.
	worse []string
	// values by key, less its prefix; nil for one that would be removed.
	values map[string][]byte
}

// healOf takes parked events of a generation in, in memory, as Replay would in the store. events are those of the parked keys
// that the caller has read before. REQUIRES: between two batches; both generations are fed.
func (r *Runner) healOf(ctx context.Context, p *Projection, from, other byte, events parkedEvents) (h heal, err error) {
	parked, err := loadParked(r.db, prefixOf(p.space, from, r.lane))
	if err != nil {
		return heal{}, err
	}
	parkedThere, err := loadParked(r.db, prefixOf(p.space, other, r.lane))
	if err != nil {
		return heal{}, err
	}
	h.parked, h.worse = keysWithout(parked, parkedThere), keysWithout(parkedThere, parked)
	if len(h.parked) == 0 {
		return h, nil
	}
	batch := r.db.NewIndexedBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	scratch, err := openView(p, from, r.db, batch, r.lane, r.topology.Lanes)
	if err != nil {
		return heal{}, err
	}
	for _, name := range h.parked {
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
				return heal{worse: h.worse}, nil
			}
		}
	}
	if err := scratch.applier.finish(); err != nil {
		return heal{}, err
	}
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

// compare compares what the other generation has with what a heal makes of this one, for the keys that it writes.
func (h *heal) compare(from pebble.Reader, c *comparer, found *LaneComparison) error {
	for _, name := range h.worse {
		c.differ(nil, "parked key "+name, fmt.Sprintf("it is parked in %s and not in %s", c.names.want, c.names.got))
	}
	for _, suffix := range slices.Sorted(maps.Keys(h.values)) {
		healed := h.values[suffix]
		want, err := read(from, c.want.key([]byte(suffix)))
		if err != nil && !errors.Is(err, pebble.ErrNotFound) {
			return err
		}
		switch {
		case (want == nil) != (healed == nil):
			c.differ([]byte(suffix), "", fmt.Sprintf("with its parked events, only one of %s and %s has it", c.names.got, c.names.want))
		case !bytes.Equal(healed, want):
			c.differ([]byte(suffix), "", "with its parked events, "+c.describe([]byte(suffix), healed, want))
		default:
			found.HealedKeys++
		}
	}
	found.Heals = h.parked
	return nil
}
