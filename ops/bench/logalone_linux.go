package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
)

// commitsLooked is how many of a lane's newest commits say how large its commits are.
const commitsLooked = 50

// A logAlone appends commits to a log, as a lane does with each lane of its own: one after the other, each once the one before was acknowledged.
// Nothing is decided and nobody follows. It is what the log itself allows.
type logAlone struct {
	servers *launch.Cluster
	streams *eventstore.JetStream
	tips    []eventstore.Position
	// like is the cluster whose commits these are to be like.
	like *launch.Cluster
	// orders and bytes of a commit.
	orders, bytes int
}

// withLogAlone runs f with an empty log on the servers of a cluster without nodes.
func withLogAlone(ctx context.Context, c, like *launch.Cluster, f func(*logAlone) error) error {
	nc, err := nats.Connect(c.Servers[0].URL(), nats.Name("weir bench"))
	if err != nil {
		return err
	}
	defer nc.Close()
	topology := eventstore.Topology{Lanes: clusterLanes}
	if err := again(ctx, func() error {
		_, err := eventstore.Provision(ctx, nc, eventstore.ProvisionOptions{Topology: topology, Replicas: len(c.Servers), Now: time.Now()})
		return err
	}); err != nil {
		return err
	}
	streams, err := eventstore.OpenJetStream(ctx, nc, topology, eventstore.JetStreamOptions{})
	if err != nil {
		return err
	}
	defer streams.Close()
	l := &logAlone{servers: c, streams: streams, like: like}
	for lane := range topology.Lanes {
		l.tips = append(l.tips, eventstore.Genesis(lane, topology.Lanes))
	}
	return f(l)
}

// again makes an attempt until it succeeds, or fails for another reason than that the servers are not ready.
func again(ctx context.Context, attempt func() error) error {
	ctx, cancel := context.WithTimeout(ctx, knownMax)
	defer cancel()
	for {
		err := attempt()
		if err == nil || !eventstore.Forming(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(knownLook):
		}
	}
}

// look learns how large the newest commits are that it is to be like: orders and bytes of one, on average.
func (l *logAlone) look(ctx context.Context) error {
	nc, err := nats.Connect(l.like.Servers[0].URL(), nats.Name("weir bench"))
	if err != nil {
		return err
	}
	defer nc.Close()
	streams, err := eventstore.OpenJetStream(ctx, nc, eventstore.Topology{Lanes: clusterLanes}, eventstore.JetStreamOptions{})
	if err != nil {
		return err
	}
	defer streams.Close()
	commits, orders, bytes := 0, 0, 0
	for lane := range uint32(clusterLanes) {
		log := streams.Log(lane)
		head, err := log.Head(ctx)
		if err != nil {
			return err
		}
		for number := head - min(head, commitsLooked) + 1; number <= head; number++ {
			record, err := log.Read(ctx, number)
			if err != nil {
				return err
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err != nil {
				return fmt.Errorf("commit %d of lane %d: %w", number, lane, err)
			}
			commits, orders, bytes = commits+1, orders+len(commit.Events), bytes+len(record.Data)
		}
	}
	l.orders, l.bytes = max(1, orders/max(1, commits)), max(1, bytes/max(1, commits))
	return nil
}

// run appends for the length of a run. A call of its result is an order.
func (l *logAlone) run(ctx context.Context, b *bench) (*load.Result, error) {
	if l.orders == 0 {
		if err := l.look(ctx); err != nil {
			return nil, err
		}
		b.say("  a commit has %d orders in %d bytes", l.orders, l.bytes)
	}
	result := &load.Result{}
	results := make([]load.Histogram, len(l.tips))
	processes := clusterServer(l.servers).processes()
	counting := time.Now().Add(b.Warmup)
	end := counting.Add(b.Duration)
	var own time.Duration
	var before []time.Duration
	group, appending := errgroup.WithContext(ctx)
	for lane := range l.tips {
		group.Go(func() error {
			return l.appendTo(appending, uint32(lane), counting, end, &results[lane])
		})
	}
	group.Go(func() error {
		if err := pause(appending, time.Until(counting)); err != nil {
			return err
		}
		var err error
		own, before, err = cpuEach(processes)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	result.Elapsed = time.Since(counting)
	ownAfter, after, err := cpuEach(processes)
	if err != nil {
		return nil, err
	}
	result.CPU = ownAfter - own
	for i := range processes {
		result.ProcessCPU = append(result.ProcessCPU, after[i]-before[i])
	}
	for i := range results {
		result.Latency.Merge(&results[i])
	}
	result.Calls = result.Latency.Count() * uint64(l.orders)
	return result, nil
}

// cpuEach returns how much CPU this process has used, and each of some others.
func cpuEach(processes []int) (own time.Duration, others []time.Duration, err error) {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		return 0, nil, err
	}
	for _, pid := range processes {
		used, err := load.ProcessCPU(pid)
		if err != nil {
			return 0, nil, err
		}
		others = append(others, used)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), others, nil
}

// appendTo appends to one lane, and records how long each commit took that began while it counts.
func (l *logAlone) appendTo(ctx context.Context, lane uint32, counting, end time.Time, took *load.Histogram) error {
	log := l.streams.Log(lane)
	payload := make([]byte, l.bytes)
	for {
		began := time.Now()
		if !began.Before(end) {
			return nil
		}
		tip := &l.tips[lane]
		record := eventstore.EncodeCommit(&eventstore.Commit{
			Lane: lane, Number: tip.Number + 1, Epoch: 1, Time: began, PrevHash: tip.Hash,
			Events: []eventstore.Event{{Type: "Measured", Version: 1, Payload: payload}},
		})
		if err := log.Append(record).Wait(ctx); err != nil {
			return fmt.Errorf("append commit %d to lane %d: %w", record.Number, lane, err)
		}
		*tip = eventstore.Position{Number: record.Number, Hash: record.Hash}
		if !began.Before(counting) {
			took.Record(time.Since(began))
		}
	}
}
