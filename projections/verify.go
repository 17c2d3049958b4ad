package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/eventstore"
)

// DifferencesMax is how many differences a VerifyReport tells apart; it counts all of them.
const DifferencesMax = 20

// VerifyOptions say what Verify compares.
type VerifyOptions struct {
	// Store that holds the views.
	Store *Store
	// Lane to verify, of Lanes.
	Lane, Lanes uint32
	// Log of the lane.
	Log eventstore.Log
	// Sample, if it is not nil, says which partitions' orders are compared; the other views, which are small, are compared
	// whole.
	Sample func(partition uint32) bool
	// Logger as for a Runner; nil means slog.Default.
	Logger *slog.Logger
}

// A VerifyReport says whether a lane's views equal the fold of its log, save for their parked events (I6).
type VerifyReport struct {
	Lane uint32
	// Position of the views at which they were compared.
	Position eventstore.Position
	// Keys compared.
	Keys uint64
	// DifferencesTotal counts the keys that differ; Differences are the first of them, DifferencesMax at most.
	DifferencesTotal uint64
	Differences      []Difference
	// Parked are the keys that the views leave out in part, as they say.
	Parked []ParkedKey
}

func (r *VerifyReport) differ(d Difference) {
	r.DifferencesTotal++
	if len(r.Differences) < DifferencesMax {
		r.Differences = append(r.Differences, d)
	}
}

// A Difference is one key that a view and the fold of the log do not agree on.
type Difference struct {
	// View by name, and the key as people write it.
	View, Key string
	// What is wrong with it.
	Problem string
}

func (d Difference) String() string { return fmt.Sprintf("view %s, %s: %s", d.View, d.Key, d.Problem) }

// Verify reads a lane's log from the first commit to the position of its views, checks numbers and chain on the way, folds
// it into views in memory, and compares them with the stored ones, key by key. The events that a view lists as parked are left
// out of its fold: what is parked is told, and is no difference. The views may move on meanwhile. A damaged log is an *eventstore.ChainError or an *UnreadableError.
func Verify(ctx context.Context, options VerifyOptions) (report VerifyReport, err error) {
	snapshot := options.Store.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	report = VerifyReport{Lane: options.Lane}
	live, position, err := liveViews(snapshot, options.Lane, options.Lanes)
	report.Position = position
	if err != nil {
		return report, err
	}

	scratch, err := OpenStore("verify", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 16 << 20, Logger: options.Logger})
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, scratch.Close()) }()
	r, err := NewRunner(RunnerOptions{
		Store: scratch, Lane: options.Lane, Lanes: options.Lanes, Log: options.Log, Logger: options.Logger,
	})
	if err != nil {
		return report, err
	}
	defer func() { _ = r.batch.Close() }()
	r.sample, r.logger = options.Sample, slog.New(slog.DiscardHandler) // What it parks is a difference.
	for _, v := range r.views {
		parked, err := loadParked(snapshot, live[v.projection.space])
		if err != nil {
			return report, fmt.Errorf("verify view %s of lane %d: %w", v.projection.Name, options.Lane, err)
		}
		report.Parked = append(report.Parked, parked.list(v.projection, live[v.projection.space][2], options.Lane)...)
		v.exclude(parked)
	}
	if err := r.fold(ctx, report.Position); err != nil {
		return report, fmt.Errorf("verify lane %d: %w", options.Lane, err)
	}
	for _, v := range r.views {
		v.verifyParked(&report, options.Sample == nil)
	}
	for _, projection := range Projections {
		if err := compareView(ctx, projection, side{snapshot, live[projection.space]}, side{scratch.db, r.prefix(projection)}, options.Sample, &report); err != nil {
			return report, fmt.Errorf("verify view %s of lane %d: %w", projection.Name, options.Lane, err)
		}
	}
	return report, nil
}

// liveViews returns the prefixes of a lane's views that answer reads, by their space, and the position that they are all at.
func liveViews(from pebble.Reader, lane, lanes uint32) (live map[byte]prefix, position eventstore.Position, err error) {
	live = make(map[byte]prefix)
	for i, projection := range Projections {
		pointer, err := pointerIn(from, projection, lane)
		if err != nil {
			return nil, position, err
		}
		version, at, err := storedProgress(from, projection, pointer.live, lane, lanes)
		if err != nil {
			return nil, position, err
		}
		if version != projection.Version {
			return nil, position, fmt.Errorf("view %s of lane %d is of version %d: let version %d be built first", projection.Name, lane, version, projection.Version)
		}
		if i > 0 && at.Position != position {
			return nil, position, fmt.Errorf("the views of lane %d are at commits %d and %d: let them catch up first", lane, position.Number, at.Number)
		}
		live[projection.space], position = prefixOf(projection.space, pointer.live, lane), at.Position
	}
	return live, position, nil
}

// exclude has the view leave events out.
func (v *view) exclude(parked *parkedKeys) {
	for _, key := range parked.byKey {
		for _, at := range key.events {
			if v.excluded == nil {
				v.excluded = make(map[EventAt]struct{})
			}
			v.excluded[at] = struct{}{}
		}
	}
}

// verifyParked tells what a fold says of the list of what is parked.
func (v *view) verifyParked(report *VerifyReport, whole bool) {
	if missing := len(v.excluded) - len(v.excludedSeen); whole && missing > 0 {
		report.differ(Difference{View: v.projection.Name, Key: "parked keys", Problem: fmt.Sprintf("%d events are listed as parked and not in the log", missing)})
	}
	for _, key := range v.parked.list(v.projection, v.generation, v.lane) {
		report.differ(Difference{
			View: v.projection.Name, Key: "key " + key.Key,
			Problem: fmt.Sprintf("%s cannot be taken in (%s), and the view does not list it as parked", key.First, key.Reason),
		})
	}
}

// fold takes the log from its first commit to a position into the runner's views. After a panic over an event it begins
// again where the last batch ended, as follow does.
func (r *Runner) fold(ctx context.Context, upTo eventstore.Position) error {
	for {
		err := r.foldOnce(ctx, upTo)
		var p *panicked
		if !errors.As(err, &p) {
			return err
		}
		if err := r.rewind(p); err != nil {
			return err
		}
	}
}

func (r *Runner) foldOnce(ctx context.Context, upTo eventstore.Position) error {
	if upTo.Number > 0 {
		cursor, err := r.log.Follow(ctx, r.position.Number+1)
		if err != nil {
			return err
		}
		defer cursor.Close()
		head, err := r.log.Head(ctx)
		if err != nil {
			return err
		}
		if head < upTo.Number {
			return &eventstore.ChainError{Lane: r.lane, Number: head + 1, Reason: fmt.Sprintf("it ends here, but the views hold commit %d", upTo.Number)}
		}
		for r.position.Number < upTo.Number {
			record, err := cursor.Next(ctx)
			if err != nil {
				return err
			}
			if err := r.takeRecord(record); err != nil {
				return err
			}
			if r.bulk.Full(r.batch.Len()) {
				if err := r.flush(); err != nil { //nolint:contextcheck // A batch is written whole, whoever leaves meanwhile.
					return err
				}
			}
		}
	}
	if r.position.Position != upTo {
		return &eventstore.ChainError{
			Lane: r.lane, Number: upTo.Number,
			Reason: fmt.Sprintf("the views were made of %.12s…, the log has %.12s…", upTo.Hash, r.position.Hash),
		}
	}
	return r.flush() //nolint:contextcheck // A batch is written whole, whoever leaves meanwhile.
}

// compareView compares a lane's part of a view as stored with what it should be.
func compareView(
	ctx context.Context, projection *Projection, stored, folded side, sample func(partition uint32) bool, report *VerifyReport,
) error {
	c := comparer{projection: projection, names: pair{"the view", "the log"}, got: stored, want: folded}
	if sample != nil && projection.byOrder {
		c.skip = func(suffix []byte) bool { return !sample(projection.partition(suffix)) }
	}
	err := c.run(ctx)
	report.Keys += c.keys
	report.DifferencesTotal += c.differencesTotal
	report.Differences = append(report.Differences, c.differences[:min(len(c.differences), DifferencesMax-len(report.Differences))]...)
	return err
}
