package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"math/rand/v2"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/projections/redisview"
)

// pageKey derives the key that seals page tokens from the master key, so that it outlives restarts and is never it.
func pageKey(master []byte) []byte {
	mac := hmac.New(sha256.New, master)
	mac.Write([]byte("weir page tokens v1"))
	return mac.Sum(nil)
}

// localViews are the views of this process. It implements viewSource.
type localViews struct {
	store    *projections.Store
	topology eventstore.Topology
	runners  []*projections.Runner
	log      func(lane uint32) eventstore.Log
	// running says that the runners follow the log; else the views are as a stopped node left them.
	running bool
	// mirror keeps copies of views in Redis, nil for none.
	mirror *redisview.Mirror
	logger *slog.Logger
}

// Status implements viewSource.
func (v *localViews) Status(ctx context.Context) ([]viewLane, error) {
	all := []viewLane{}
	for _, runner := range v.runners {
		for _, status := range runner.Status() {
			l := viewLane{
				Lane: runner.Lane(), View: status.Projection, Version: status.Version,
				Position: status.Commit, Head: status.Head, Lag: status.LagCommits, Parked: status.ParkedKeys,
			}
			if !status.AsOf.IsZero() {
				at := status.AsOf.UTC()
				l.AsOf = &at
			}
			switch {
			case !v.running || status.Stopped:
				l.State = viewStopped
			case status.State == projections.StateFresh:
				l.State = viewFresh
			case status.State == projections.StateRebuilding:
				l.State = viewRebuilding
			default:
				l.State = viewCatchingUp
			}
			if !v.running {
				head, err := v.log(runner.Lane()).Head(ctx)
				if err != nil {
					return nil, err
				}
				l.Head, l.Lag = head, head-min(head, l.Position)
			}
			all = append(all, l)
		}
	}
	return all, nil
}

// Verify implements viewSource.
func (v *localViews) Verify(ctx context.Context, sample int, progress func(done, total int64)) ([]difference, error) {
	drawn := drawPartitions(sample)
	counted := &countedLogs{open: v.log, progress: progress}
	for _, runner := range v.runners {
		size, err := v.log(runner.Lane()).Size(ctx)
		if err != nil {
			return nil, fmt.Errorf("compare the views of lane %d: %w", runner.Lane(), err)
		}
		counted.total += int64(size.Bytes)
	}
	found := []difference{}
	for lane := range v.topology.Lanes {
		report, err := projections.Verify(ctx, projections.VerifyOptions{
			Store: v.store, Lane: lane, Lanes: v.topology.Lanes, Log: counted.lane(lane), Logger: v.logger, Sample: drawn,
		})
		if err != nil {
			return nil, err
		}
		for _, d := range report.Differences {
			found = append(found, difference{Check: "views", Lane: lane, What: d.String()})
		}
	}
	return found, nil
}

// drawPartitions draws as many partitions, anew each time, and returns which; nil means all.
func drawPartitions(sample int) func(uint32) bool {
	if sample <= 0 || sample >= eventstore.Partitions {
		return nil
	}
	var drawn [eventstore.Partitions]bool
	for _, partition := range rand.Perm(eventstore.Partitions)[:sample] {
		drawn[partition] = true
	}
	return func(partition uint32) bool { return drawn[partition] }
}

// countedLogs say how many bytes of them were read.
type countedLogs struct {
	open     func(lane uint32) eventstore.Log
	progress func(done, total int64)
	done     int64
	total    int64
}

func (c *countedLogs) lane(lane uint32) eventstore.Log { return countedLog{c.open(lane), c} }

type countedLog struct {
	eventstore.Log
	count *countedLogs
}

func (l countedLog) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	cursor, err := l.Log.Follow(ctx, number)
	if err != nil {
		return nil, err
	}
	return countedCursor{cursor, l.count}, nil
}

type countedCursor struct {
	eventstore.Cursor
	count *countedLogs
}

func (c countedCursor) Next(ctx context.Context) (eventstore.Record, error) {
	record, err := c.Cursor.Next(ctx)
	if err == nil {
		c.count.done += int64(record.Stored)
		c.count.progress(c.count.done, c.count.total)
	}
	return record, err
}
