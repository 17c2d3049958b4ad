package projections

import (
	"bytes"
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
	// Logger as for a Runner; nil means slog.Default.
	Logger *slog.Logger
}

// A VerifyReport says whether a lane's views equal the fold of its log (I6).
type VerifyReport struct {
	Lane uint32
	// Position of the views at which they were compared.
	Position eventstore.Position
	// Keys compared.
	Keys uint64
	// DifferencesTotal counts the keys that differ; Differences are the first of them, DifferencesMax at most.
	DifferencesTotal uint64
	Differences      []Difference
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
// it into views in memory, and compares them with the stored ones, key by key. The views may move on meanwhile.
// A damaged log is an *eventstore.ChainError or an *UnreadableError.
func Verify(ctx context.Context, options VerifyOptions) (report VerifyReport, err error) {
	snapshot := options.Store.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	report = VerifyReport{Lane: options.Lane}
	report.Position, err = positionOf(snapshot, options.Lane, options.Lanes)
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
	defer r.batch.Close()
	if err := r.fold(ctx, report.Position); err != nil {
		return report, fmt.Errorf("verify lane %d: %w", options.Lane, err)
	}
	for _, projection := range Projections {
		if err := compareView(ctx, projection, snapshot, scratch.db, &report); err != nil {
			return report, fmt.Errorf("verify view %s of lane %d: %w", projection.Name, options.Lane, err)
		}
	}
	return report, nil
}

// positionOf returns the position that all views of a lane are at.
func positionOf(from pebble.Reader, lane, lanes uint32) (eventstore.Position, error) {
	var position eventstore.Position
	for i, projection := range Projections {
		at := eventstore.Genesis(lane, lanes)
		value, err := read(from, progressKey(projection.space, firstGeneration, lane))
		switch {
		case err == nil:
			version, stored, err := readProgress(value)
			if err != nil {
				return position, err
			}
			if version == projection.Version {
				at = stored.Position
			}
		case !errors.Is(err, pebble.ErrNotFound):
			return position, fmt.Errorf("read the progress of view %s: %w", projection.Name, err)
		}
		if i > 0 && at != position {
			return position, fmt.Errorf("the views of lane %d are at commits %d and %d: let them catch up first", lane, position.Number, at.Number)
		}
		position = at
	}
	return position, nil
}

// fold takes the log from its first commit to a position into the runner's views.
func (r *Runner) fold(ctx context.Context, upTo eventstore.Position) error {
	if upTo.Number > 0 {
		cursor, err := r.log.Follow(ctx, 1)
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
			if r.batch.Len() >= BulkBytes {
				if err := r.flush(); err != nil {
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
	return r.flush()
}

// compareView compares a lane's part of a view as stored with what it should be.
func compareView(ctx context.Context, projection *Projection, stored, folded pebble.Reader, report *VerifyReport) (err error) {
	p := prefixOf(projection.space, firstGeneration, report.Lane)
	got, err := stored.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: p[:], UpperBound: p.end()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, got.Close()) }()
	want, err := folded.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: p[:], UpperBound: p.end()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, want.Close()) }()

	differ := func(key []byte, problem string) {
		report.DifferencesTotal++
		if len(report.Differences) < DifferencesMax {
			report.Differences = append(report.Differences, Difference{
				View: projection.Name, Key: projection.describe(key[prefixBytes:]), Problem: problem,
			})
		}
	}
	got.First()
	want.First()
	for got.Valid() || want.Valid() {
		report.Keys++
		order := 0
		switch {
		case !got.Valid():
			order = 1
		case !want.Valid():
			order = -1
		default:
			order = bytes.Compare(got.Key(), want.Key())
		}
		switch {
		case order < 0:
			differ(got.Key(), "it is in the view and not in the log")
			got.Next()
		case order > 0:
			differ(want.Key(), "it is in the log and not in the view")
			want.Next()
		default:
			if !bytes.Equal(got.Value(), want.Value()) {
				differ(got.Key(), projection.difference(got.Key()[prefixBytes:], got.Value(), want.Value()))
			}
			got.Next()
			want.Next()
		}
	}
	return errors.Join(got.Error(), want.Error())
}

// difference says how a view's value differs from the one that the log gives.
func (p *Projection) difference(suffix, got, want []byte) string {
	gotText, gotErr := p.print(suffix, got)
	wantText, wantErr := p.print(suffix, want)
	switch {
	case gotErr != nil && wantErr == nil:
		return fmt.Sprintf("the view has %.80x, which cannot be read (%v), the log gives %s", got, gotErr, wantText)
	case gotErr != nil || wantErr != nil || gotText == wantText:
		return fmt.Sprintf("the view has %.80x, the log gives %.80x", got, want)
	}
	return fmt.Sprintf("the view has %s, the log gives %s", gotText, wantText)
}
