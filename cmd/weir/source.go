package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore"
)

// A source is where the commands that look inside read: a running node, or its directory when none runs, or a NATS server.
type source struct {
	topology eventstore.Topology
	lane     func(lane uint32) laneReader
	// witness compares a lane with what the node last saw acknowledged; nil where there is nothing to compare with.
	witness func(ctx context.Context, lane uint32) error
	// views of the node; nil when the log is read from a NATS server.
	views viewSource
	// rebuilds of its views; nil when the log is read from a NATS server.
	rebuilds rebuildSource
	// reactors of the node; nil when the log is read from a NATS server.
	reactors reactorSource
	// copier hands out what a backup takes beside the log.
	copier copier
	// running says that a node runs on the directory.
	running bool
	close   func() error
}

// sourceFlags are the flags of the commands that look inside.
type sourceFlags struct {
	data   string
	nats   string
	access natsAccess
	lanes  []uint
}

// sourceHelp is part of their help.
const sourceHelp = `It works on a running node and on a stopped one. While a node runs on --data, the node is asked, over a loopback
endpoint that DIR/node.json names (only the directory's owner may read it). When none runs, the log in the directory is
opened by this command, and no node can start until it ends. With --nats, the log is read from that server.`

func (f *sourceFlags) addFlags(cmd *cobra.Command, withLanes bool) {
	addDataFlag(cmd, &f.data)
	addNATSFlag(cmd, &f.nats)
	f.access.add(cmd)
	if withLanes {
		cmd.Flags().UintSliceVar(&f.lanes, "lane", nil, "only this `LANE`, counted from 0; repeat it for more")
	}
}

// addNATSFlag puts --nats on a command.
func addNATSFlag(cmd *cobra.Command, address *string) {
	cmd.Flags().StringVar(address, "nats", "", "`URL` of the NATS server that keeps the log")
	setting(cmd.Flags(), "nats")
}

// wanted returns the lanes that were asked for, all when none was named.
func (f *sourceFlags) wanted(topology eventstore.Topology) ([]uint32, error) {
	lanes := []uint32{}
	for _, lane := range f.lanes {
		if lane >= uint(topology.Lanes) {
			return nil, usagef("there is no lane %d: lanes are 0 to %d", lane, topology.Lanes-1)
		}
		lanes = append(lanes, uint32(lane))
	}
	if len(lanes) == 0 {
		for lane := range topology.Lanes {
			lanes = append(lanes, lane)
		}
	}
	return lanes, nil
}

// open finds what to read. The caller closes it.
func (p *process) openSource(ctx context.Context, f *sourceFlags) (*source, error) {
	dir := dataDir(f.data)
	if f.nats == "" {
		if err := dir.check(); err != nil {
			return nil, err
		}
		record, err := readNodeRecord(dir)
		if err != nil {
			return nil, err
		}
		if node, topology := dialNode(ctx, record); node != nil {
			return &source{
				topology: topology, running: true, views: node, rebuilds: node, reactors: node, copier: node,
				lane:  func(lane uint32) laneReader { return remoteLane{node, lane} },
				close: func() error { node.client.CloseIdleConnections(); return nil },
			}, nil
		}
	}
	return p.openStopped(ctx, dir, logOptions{nats: f.nats, access: f.access})
}

// readLane calls do with every commit of a lane from number on to the head at the start. With follow it goes on until ctx
// ends. idle is called when nothing more is waiting; it may be nil.
func readLane(ctx context.Context, lane laneReader, from, head uint64, follow bool, idle func() error, do func(eventstore.Record) error) error {
	if !follow && from > head {
		return nil
	}
	cursor, err := lane.Follow(ctx, from)
	if err != nil {
		return err
	}
	defer cursor.Close()
	for next := from; follow || next <= head; next++ {
		if idle != nil && cursor.Buffered() == 0 {
			if err := idle(); err != nil {
				return err
			}
		}
		record, err := cursor.Next(ctx)
		if err != nil {
			return err
		}
		if err := do(record); err != nil {
			return err
		}
	}
	return nil
}

// newLogProgress shows how much of some lanes' logs is read, by bytes. What does not say how large it is, is read all the same.
func (p *process) newLogProgress(ctx context.Context, label string, lanes ...laneReader) *logProgress {
	g := &logProgress{progress: p.newProgress(label, unitBytes, 0)}
	for _, lane := range lanes {
		size, err := lane.Size(ctx)
		if err != nil {
			g.total = 0
			break
		}
		g.total += int64(size.Bytes)
	}
	return g
}

// A logProgress is the progress of reading logs.
type logProgress struct {
	*progress
	done int64
}

// read says that a commit was read.
func (g *logProgress) read(record eventstore.Record) {
	g.done += int64(record.Stored)
	g.at(g.done)
}

// explainLog says what a failed reading of a lane means.
func explainLog(lane uint32, err error) error {
	var chain *eventstore.ChainError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &chain):
		return &problem{code: exitData, what: err.Error(), cause: err, next: "find all that is wrong: weir log verify"}
	}
	return fmt.Errorf("read lane %d: %w", lane, err)
}
