package projections

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/eventstore"
)

// A Comparison says whether two generations of a view are the same.
type Comparison struct {
	Projection string
	// Live answers reads; Other is the one that is being built, or the one that is kept.
	Live, Other uint32
	Lanes       []LaneComparison
}

// Equal reports whether they are, save for what Other heals, or what was parked in Other.
func (c *Comparison) Equal() bool { return c.DifferencesTotal() == 0 }

// DifferencesTotal counts the keys that differ, over all lanes.
func (c *Comparison) DifferencesTotal() uint64 {
	var total uint64
	for i := range c.Lanes {
		total += c.Lanes[i].DifferencesTotal
	}
	return total
}

// Heals counts the keys that Live has parked and Other has not, over all lanes.
func (c *Comparison) Heals() int {
	total := 0
	for i := range c.Lanes {
		total += len(c.Lanes[i].Heals)
	}
	return total
}

// Healed counts the keys that Other, which is kept, has parked and Live has not, over all lanes.
func (c *Comparison) Healed() int {
	total := 0
	for i := range c.Lanes {
		total += len(c.Lanes[i].Healed)
	}
	return total
}

// A LaneComparison compares one lane's part of two generations, both at one position.
type LaneComparison struct {
	Lane     uint32
	Position eventstore.Position
	// Keys compared.
	Keys uint64
	// Partitions whose digests differ.
	Partitions []uint32
	// DifferencesTotal counts the keys that differ; Differences are the first of them, DifferencesMax at most.
	DifferencesTotal uint64
	Differences      []Difference
	// Heals are the parked keys of Live that Other does not have parked. Healed are those of Other that Live does not have
	// parked, when Other answered before and is kept: it parked them, and a replay or a rebuild has taken them in since. With their
	// events taken in, HealedKeys keys are the same in both: they count as equal.
	Heals, Healed []string
	HealedKeys    uint64
}

// digests are the digests of a lane's part of a view, by partition: the exclusive or of the SHA-256 of each key and value.
// No order matters, and no digest depends on the generation or the node.
type digests [eventstore.Partitions][sha256.Size]byte

// digest reads a lane's part of a view, in a shift of its own at the pace. seen is told how far it is, as compareOptions says.
func digest(ctx context.Context, from pebble.Reader, projection *Projection, p prefix, pace *pace, seen func(prefix, []byte)) (_ *digests, keys uint64, err error) {
	shift := pace.newShift()
	entries, err := from.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: p[:], UpperBound: p.end()})
	if err != nil {
		return nil, 0, err
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	var all digests
	var pair []byte
	for valid := entries.First(); valid; valid = entries.Next() {
		if keys++; keys%yieldKeys == 0 {
			if err := shift.yield(ctx); err != nil {
				return nil, 0, err
			}
		}
		if seen != nil && keys%seenKeys == 0 {
			seen(p, entries.Key())
		}
		suffix := entries.Key()[prefixBytes:]
		pair = binary.BigEndian.AppendUint32(pair[:0], uint32(len(suffix)))
		pair = append(append(pair, suffix...), entries.Value()...)
		sum := sha256.Sum256(pair)
		into := &all[projection.partition(suffix)]
		for i := range into {
			into[i] ^= sum[i]
		}
	}
	if seen != nil {
		seen(p, nil)
	}
	return &all, keys, entries.Error()
}

// yieldKeys is after how many keys a long read or write looks whether it is still wanted, and whether others want the processor.
const yieldKeys = 64

// seenKeys is after how many keys a comparison says how far it is.
const seenKeys = 1 << 15

// compareGenerations compares a lane's part of two generations of a view: by digest, and key by key where those differ or where what
// is parked says that they do. healed is what they would hold without that. Both are read at the same time.
func compareGenerations(
	ctx context.Context, from pebble.Reader, projection *Projection, lane uint32, live, other byte, healed heals, pace *pace, seen func(prefix, []byte),
) (found LaneComparison, err error) {
	found.Lane = lane
	old, young := prefixOf(projection.space, live, lane), prefixOf(projection.space, other, lane)
	var oldDigests, youngDigests *digests
	var oldKeys, youngKeys uint64
	reading, ctxOfReads := errgroup.WithContext(ctx)
	reading.Go(func() (err error) {
		oldDigests, oldKeys, err = digest(ctxOfReads, from, projection, old, pace, seen)
		return err
	})
	reading.Go(func() (err error) {
		youngDigests, youngKeys, err = digest(ctxOfReads, from, projection, young, pace, seen)
		return err
	})
	if err := reading.Wait(); err != nil {
		return found, err
	}
	found.Keys = max(oldKeys, youngKeys)
	var differ [eventstore.Partitions]bool
	for partition := range differ {
		if oldDigests[partition] != youngDigests[partition] {
			differ[partition] = true
			found.Partitions = append(found.Partitions, uint32(partition))
		}
	}
	names := pair{got: fmt.Sprintf("generation %d", live), want: fmt.Sprintf("generation %d", other)}
	c := comparer{
		projection: projection, names: names, got: side{from, old}, want: side{from, young}, shift: pace.newShift(),
		skip: func(suffix []byte) bool {
			return healed.changes(suffix) || !differ[projection.partition(suffix)]
		},
	}
	if err := healed.compare(&c, &found); err != nil {
		return found, err
	}
	if len(found.Partitions) > 0 {
		err = c.run(ctx)
	}
	found.DifferencesTotal, found.Differences = c.differencesTotal, c.differences
	return found, err
}

// A comparer compares two ranges of keys of a projection.
type comparer struct {
	projection *Projection
	names      pair
	got, want  side
	// skip passes over keys, by suffix; nil passes over none.
	skip  func(suffix []byte) bool
	shift *shift

	keys             uint64
	differencesTotal uint64
	differences      []Difference
}

// pair names the two sides.
type pair struct{ got, want string }

// side is one range of keys.
type side struct {
	from pebble.Reader
	prefix
}

func (s side) entries(ctx context.Context) (*pebble.Iterator, error) {
	return s.from.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: s.prefix[:], UpperBound: s.end()})
}

func (c *comparer) run(ctx context.Context) (err error) {
	got, err := c.got.entries(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, got.Close()) }()
	want, err := c.want.entries(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, want.Close()) }()

	next := func(entries *pebble.Iterator, valid bool) {
		for valid && c.skip != nil && c.skip(entries.Key()[prefixBytes:]) {
			valid = entries.Next()
		}
	}
	next(got, got.First())
	next(want, want.First())
	for got.Valid() || want.Valid() {
		if c.keys++; c.keys%yieldKeys == 0 {
			if err := c.shift.yield(ctx); err != nil {
				return err
			}
		}
		order := 0
		switch {
		case !got.Valid():
			order = 1
		case !want.Valid():
			order = -1
		default:
			order = bytes.Compare(got.Key()[prefixBytes:], want.Key()[prefixBytes:])
		}
		if order == 0 && !bytes.Equal(got.Value(), want.Value()) {
			c.differ(got.Key()[prefixBytes:], "", c.describe(got.Key()[prefixBytes:], got.Value(), want.Value()))
		}
		if order < 0 {
			c.differ(got.Key()[prefixBytes:], "", fmt.Sprintf("it is in %s and not in %s", c.names.got, c.names.want))
		}
		if order > 0 {
			c.differ(want.Key()[prefixBytes:], "", fmt.Sprintf("it is in %s and not in %s", c.names.want, c.names.got))
		}
		if order <= 0 {
			next(got, got.Next())
		}
		if order >= 0 {
			next(want, want.Next())
		}
	}
	return errors.Join(got.Error(), want.Error())
}

// differ notes a difference of a key, or of what has a name of its own.
func (c *comparer) differ(suffix []byte, name, problem string) {
	c.differencesTotal++
	if len(c.differences) < DifferencesMax {
		if name == "" {
			name = c.projection.describe(suffix)
		}
		c.differences = append(c.differences, Difference{View: c.projection.Name, Key: name, Problem: problem})
	}
}

// describe says how two values of one key differ.
func (c *comparer) describe(suffix, got, want []byte) string {
	gotText, gotErr := c.projection.print(suffix, got)
	wantText, wantErr := c.projection.print(suffix, want)
	switch {
	case gotErr != nil && wantErr == nil:
		return fmt.Sprintf("%s has %.80x, which cannot be read (%v), %s has %s", c.names.got, got, gotErr, c.names.want, wantText)
	case gotErr != nil || wantErr != nil || gotText == wantText:
		return fmt.Sprintf("%s has %.80x, %s has %.80x", c.names.got, got, c.names.want, want)
	}
	return fmt.Sprintf("%s has %s, %s has %s", c.names.got, gotText, c.names.want, wantText)
}
