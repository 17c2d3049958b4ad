package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	"github.com/weirhq/weir/projections"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

const (
	// rebuiltView is the view that is rebuilt; hotOrders are read again and again, coldOrders about once.
	rebuiltView = "orders"
	hotOrders   = 200
	coldOrders  = 100_000
	// besideRoundsMin is in how many rounds, at least, orders are placed alone and beside a rebuild in turn: a flush or a compaction comes every
	// few seconds, and the p99 of a round, alone or beside, goes by whether one falls into it.
	besideRoundsMin = 3
	// aloneRounds is in how many rounds, for each run, a view is rebuilt by itself: each takes a second or so, and its end is foretold by a
	// tenth of that, by which single rounds are off by up to a quarter, one way or the other.
	aloneRounds = 9
	// rebuildLook is how often a rebuild is looked at, etaAt the share of it after which its end is foretold.
	rebuildLook = 2 * time.Millisecond
	etaAt       = 0.1
	// probePause is between two orders whose way into the view is timed, visibleWait bounds each, and visibleMin is how many there are at least.
	probePause  = 2 * time.Millisecond
	visibleWait = 5 * time.Second
	visibleMin  = 100
	// headWait bounds the wait for the views to reach the head of the log.
	headWait = 2 * time.Minute
)

// rebuild is a view that is made again: how long that takes beside reading the same log alone, whether its end was foretold, and what
// it does to who places orders meanwhile.
func (b *bench) rebuild(ctx context.Context) (err error) {
	data, err := os.MkdirTemp(b.dir, "data-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	w, _, err := startWeir(ctx, b.Weir, data, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.End()) }()
	if err := w.stock(ctx); err != nil {
		return fmt.Errorf("stock: %w", err)
	}
	ids, newest, result, err := w.place(ctx, b.Options, b.Orders, 1000)
	if err != nil {
		return err
	}
	b.say("  %d orders placed at %.0f/s", b.Orders, result.PerSecond())
	if err := w.caughtUp(ctx, ids[len(ids)-1], newest); err != nil {
		return err
	}
	alone := w.placing("Weir, quarter of the rate", protoType, skusMany)
	alone.rate = result.PerSecond() / 4
	beside := alone
	beside.name = "Weir, the same while a view is rebuilt"
	beside.run = func(ctx context.Context) (*load.Result, error) { return w.placeWhileRebuilding(ctx, b.Options, &alone) }
	runs := b.Runs
	b.Runs = max(runs, besideRoundsMin)
	figures, err := b.measure(ctx, "rebuild", []contestant{alone, beside})
	b.Runs = runs
	if err != nil {
		return err
	}
	b.report.check("p99 while a view is rebuilt : p99", figures[1].P99Micros/figures[0].P99Micros, "×", 2, true)
	if err := w.End(); err != nil {
		return err
	}
	return b.rebuildAlone(ctx, data)
}

// placeWhileRebuilding places orders while the view is rebuilt again and again.
func (w *weir) placeWhileRebuilding(ctx context.Context, options Options, c *contestant) (*load.Result, error) {
	rebuilding, stop := context.WithCancel(ctx)
	defer stop()
	var working sync.WaitGroup
	var failure error
	working.Go(func() {
		for rebuilding.Err() == nil && failure == nil {
			for _, arguments := range [][]string{{"rebuild", rebuiltView, "--swap", "manual"}, {"drop", rebuiltView}} {
				if _, err := launch.Output(ctx, nil, w.Binary, append([]string{"projections", "--data", w.Data}, arguments...)...); err != nil {
					failure = err
				}
			}
		}
	})
	result, err := c.measured(ctx, options)
	stop()
	working.Wait()
	return result, errors.Join(err, failure)
}

// rebuildAlone reads the log and rebuilds the view in turn, in this process, as a node does that nobody calls.
func (b *bench) rebuildAlone(ctx context.Context, data string) (err error) {
	defer tunedAsNode()()
	quiet := slog.New(slog.DiscardHandler)
	server, err := embedded.Start(embedded.Options{Dir: filepath.Join(data, "log"), Logger: quiet})
	if err != nil {
		return err
	}
	defer server.Shutdown()
	nc, err := server.Connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	topology := eventstore.Topology{Lanes: 1}
	streams, err := eventstore.OpenJetStream(ctx, nc, topology, eventstore.JetStreamOptions{})
	if err != nil {
		return err
	}
	defer streams.Close()
	log := streams.Log(0)
	store, err := projections.OpenStore(filepath.Join(data, "state"), projections.StoreOptions{Logger: quiet})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lanes: topology.Lanes, Log: log, Logger: quiet})
	if err != nil {
		return err
	}
	rebuilder, err := projections.NewRebuilder(projections.RebuilderOptions{
		Store: store, Runners: []*projections.Runner{runner}, Topology: topology, Log: func(uint32) eventstore.Log { return log }, Logger: quiet,
	})
	if err != nil {
		return err
	}
	head, err := log.Head(ctx)
	if err != nil {
		return err
	}

	running, stop := context.WithCancel(ctx)
	defer stop()
	var working sync.WaitGroup
	defer working.Wait()
	defer stop()
	ended := make(chan error, 2)
	working.Go(func() { ended <- runner.Run(running) })
	working.Go(func() { ended <- rebuilder.Run(running) })
	deadline := time.Now().Add(headWait)
	for runner.Position().Number < head {
		select {
		case err := <-ended:
			return fmt.Errorf("the views ended: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rebuildLook):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the views are at commit %d of %d after %v", runner.Position().Number, head, headWait)
		}
	}

	var readRates, rebuildRates, ratios, foretold []float64
	for round := range aloneRounds * b.Runs {
		if err := compacted(ctx, store); err != nil {
			return err
		}
		events, took, err := readLog(ctx, log, head)
		if err != nil {
			return err
		}
		raw := float64(events) / took.Seconds()
		took, wrong, err := timeRebuild(ctx, rebuilder)
		if err != nil {
			return err
		}
		rate := float64(events) / took.Seconds()
		readRates, rebuildRates = append(readRates, raw), append(rebuildRates, rate)
		ratios, foretold = append(ratios, rate/raw), append(foretold, math.Abs(wrong))
		b.say("  round %d  %d events: read %.0f/s, rebuilt %.0f/s, its end foretold %+.1f%% off", round+1, events, raw, rate, 100*wrong)
	}
	b.report.check("read the log alone", median(readRates), "events/s", 0, false)
	b.report.check("rebuild of the order view", median(rebuildRates), "events/s", 500_000, false)
	b.report.check("rebuild : read", median(ratios), "×", 0.5, false)
	b.report.check("end foretold after a tenth, off by", 100*median(foretold), "%", 10, true)
	return nil
}

// nodeGCPercent is what cmd/weir sets by default.
const nodeGCPercent = 400

// tunedAsNode sets the scheduler and the collector as a node does (cmd/weir/node.go: tune), and returns what sets them back.
func tunedAsNode() func() {
	processors := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(processors + 1)
	percent := debug.SetGCPercent(nodeGCPercent)
	return func() {
		runtime.GOMAXPROCS(processors)
		debug.SetGCPercent(percent)
	}
}

// compacted waits until the store has compacted what was written before: a rebuild is not to pay for that.
func compacted(ctx context.Context, store *projections.Store) error {
	for deadline := time.Now().Add(headWait); store.DB().Metrics().Compact.NumInProgress > 0; {
		if time.Now().After(deadline) {
			return fmt.Errorf("the store is still compacting after %v", headWait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rebuildLook):
		}
	}
	return nil
}

// readLog reads a lane's log up to a commit, decoding nothing but how many events there are.
func readLog(ctx context.Context, log eventstore.Log, head uint64) (events int, took time.Duration, err error) {
	count := func(record eventstore.Record) error {
		commit, err := eventstore.DecodeCommit(record.Data)
		if err == nil {
			events += len(commit.Events)
		}
		return err
	}
	pass := func(eventstore.Record) error { return nil }
	for _, each := range []func(eventstore.Record) error{count, pass} { // The second time is measured.
		began := time.Now()
		cursor, err := log.Follow(ctx, 1)
		if err != nil {
			return 0, 0, err
		}
		for number := uint64(0); number < head; {
			record, err := cursor.Next(ctx)
			if err == nil {
				err = each(record)
			}
			if err != nil {
				cursor.Close()
				return 0, 0, err
			}
			number = record.Number
		}
		cursor.Close()
		took = time.Since(began)
	}
	return events, took, nil
}

// timeRebuild rebuilds the view, drops it again, and returns how long it took until it was fed, and by which share the time until it was
// compared as well, as that was foretold, was wrong.
func timeRebuild(ctx context.Context, rebuilder *projections.Rebuilder) (took time.Duration, wrong float64, err error) {
	began := time.Now()
	if err := rebuilder.Start(rebuiltView, projections.RebuildOptions{Swap: projections.SwapManual}); err != nil {
		return 0, 0, err
	}
	var foretold time.Duration
	err = rebuilder.Settled(ctx, rebuildLook, func(statuses []projections.RebuildStatus) {
		if len(statuses) != 1 || len(statuses[0].Lanes) != 1 {
			return
		}
		if now := &statuses[0]; foretold == 0 && now.Left > 0 && float64(now.Done) >= etaAt*float64(now.Total) {
			foretold = time.Since(began) + now.Left
		}
		if took == 0 && statuses[0].Lanes[0].Built {
			took = time.Since(began)
		}
	})
	ended := time.Since(began)
	if err != nil {
		return 0, 0, err
	}
	if status := rebuilder.Status(); took == 0 || len(status) != 1 || status[0].State != projections.RebuildHeld {
		return 0, 0, fmt.Errorf("the rebuild did not end as it should: %+v", status)
	}
	if err := rebuilder.Drop(ctx, rebuiltView); err != nil {
		return 0, 0, err
	}
	return took, float64(foretold-ended) / float64(ended), nil
}

// visible is how long after its reply an order is in the view, at half of the peak.
func (b *bench) visible(ctx context.Context) error {
	return b.withWeir(ctx, 1, func(w *weir) error {
		peak := b.peak()
		if peak == 0 {
			figures, err := b.measure(ctx, "visible", []contestant{w.placing("Weir, peak", protoType, skusMany)})
			if err != nil {
				return err
			}
			peak = figures[0].PerSecond
		}
		half := w.placing("Weir, half of peak", protoType, skusMany)
		half.rate = peak / 2
		var lags []float64
		probed := half
		probed.name = "Weir, half of peak, with probes"
		probed.run = func(ctx context.Context) (*load.Result, error) {
			probing, stop := context.WithCancel(ctx)
			defer stop()
			var lag load.Histogram
			var failure error
			var working sync.WaitGroup
			working.Go(func() { failure = w.probe(probing, &lag) })
			result, err := half.measured(ctx, b.Options)
			stop()
			working.Wait()
			if err = errors.Join(err, failure); err == nil && lag.Count() < visibleMin {
				err = fmt.Errorf("only %d orders were followed into the view", lag.Count())
			}
			lags = append(lags, inMicros(lag.Quantile(0.99))/1000)
			return result, err
		}
		if _, err := b.measure(ctx, "visible", []contestant{probed}); err != nil {
			return err
		}
		b.report.check("p99 from reply to visible at half of the peak, a call included", median(lags), "ms", 20, true)
		return nil
	})
}

// probe places an order and asks for it as of its revision, again and again, and records how long the answer took.
func (w *weir) probe(ctx context.Context, lag *load.Histogram) error {
	client := w.Orders(http.DefaultClient)
	for turn := 0; ctx.Err() == nil; turn++ {
		placed, err := client.PlaceOrder(ctx, &orderv1.PlaceOrderRequest{
			RequestId: fmt.Sprintf("probe-%d-%d", time.Now().UnixNano(), turn), UserId: userPlace,
			Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}},
		})
		began := time.Now()
		if err == nil {
			err = w.see(ctx, client.GetOrder, placed)
		}
		select {
		case <-ctx.Done(): // So whatever went wrong is no fault of the node's.
			return nil
		default:
		}
		if err != nil {
			return fmt.Errorf("follow an order into the view: %w", err)
		}
		lag.Record(time.Since(began))
		select {
		case <-ctx.Done():
		case <-time.After(probePause):
		}
	}
	return nil
}

// see asks for an order until the view has it.
func (w *weir) see(
	ctx context.Context, get func(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error), placed *orderv1.PlaceOrderResponse,
) error {
	for end := time.Now().Add(visibleWait); ; {
		got, err := get(ctx, &orderv1.GetOrderRequest{OrderId: placed.Order.OrderId, MinRevision: placed.Revision})
		if err != nil {
			return err
		}
		if got.GetFreshness().GetRevision().GetCommit() >= placed.Revision.Commit || got.GetFreshness().GetState() == typev1.Freshness_STATE_FRESH {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("order %s is not in the view after %v", placed.Order.OrderId, visibleWait)
		}
	}
}

// levels is GetOrder by what it is answered from: memory, the view, or Redis.
func (b *bench) levels(ctx context.Context) error {
	err := b.withEcho(ctx, func(w *weir, echo *server) error {
		ids, _, _, err := w.place(ctx, b.Options, hotOrders, 1)
		if err != nil {
			return err
		}
		before, err := w.readCounts(ctx)
		if err != nil {
			return err
		}
		hot := func() (load.Source, error) { return getSource(w.Trusted, ids) }
		figures, err := b.measure(ctx, "levels", []contestant{
			{name: "Weir, GetOrder from memory", server: w.server(), source: hot}, {name: "echo, GetOrder", server: echo, source: hot},
		})
		if err != nil {
			return err
		}
		b.report.check("GetOrder from memory : echo", figures[0].PerSecond/figures[1].PerSecond, "×", 0.9, false)
		return b.checkLoads(ctx, w, before, "memory")
	})
	if err != nil {
		return err
	}
	if err := b.coldReads(ctx, "the view"); err != nil {
		return err
	}
	redis, err := startRedis(ctx, b.dir, durably...)
	if err != nil {
		b.report.LeftOut = append(b.report.LeftOut, fmt.Sprintf("GetOrder from Redis: %v", err))
		return ctx.Err()
	}
	return errors.Join(b.coldReads(ctx, "Redis", "--redis", "redis://"+redis.Addr), redis.Stop(os.Interrupt))
}

// coldReads reads each of many orders once, right after they were placed: none of them is in memory, as nobody has read it.
func (b *bench) coldReads(ctx context.Context, from string, flags ...string) error {
	return b.withWeir(ctx, 1, func(w *weir) error {
		var rates []float64
		before, err := w.readCounts(ctx)
		if err != nil {
			return err
		}
		for range b.Runs {
			ids, newest, _, err := w.place(ctx, b.Options, min(b.Orders, coldOrders), 1)
			if err != nil {
				return err
			}
			if err := w.caughtUp(ctx, ids[len(ids)-1], newest); err != nil {
				return err
			}
			if err := settle(ctx, w.server()); err != nil { // Redis is written behind the view.
				return err
			}
			source, err := getInTurn(w.Trusted, ids)
			if err != nil {
				return err
			}
			result, err := load.Run(ctx, load.Options{Addr: w.Addr, Connections: b.Connections, Calls: uint64(len(ids)), Source: source})
			if err == nil && result.Failed > 0 {
				err = fmt.Errorf("%d calls failed: %s", result.Failed, result.FirstFailure)
			}
			if err != nil {
				return fmt.Errorf("read orders from %s: %w", from, err)
			}
			rates = append(rates, result.PerSecond())
		}
		b.report.check("GetOrder from "+from, median(rates), "calls/s", 0, false)
		return b.checkLoads(ctx, w, before, from)
	}, flags...)
}

// readCounts are what a node's reads of orders were answered from.
type readCounts struct {
	Memory, Redis, Loads, Joined uint64
}

func (w *weir) readCounts(ctx context.Context) (readCounts, error) {
	text, err := launch.Output(ctx, nil, w.Binary, "reads", "--data", w.Data, "-o", "json")
	if err != nil {
		return readCounts{}, err
	}
	var report struct {
		Reads map[string]readCounts `json:"reads"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return readCounts{}, err
	}
	return report.Reads["orders"], nil
}

// checkLoads states how many of the reads since before went to the view.
func (b *bench) checkLoads(ctx context.Context, w *weir, before readCounts, what string) error {
	after, err := w.readCounts(ctx)
	if err != nil {
		return err
	}
	reads := after.Memory + after.Redis + after.Loads + after.Joined - before.Memory - before.Redis - before.Loads - before.Joined
	b.report.check("loads of the view in 1000 reads from "+what, 1000*float64(after.Loads-before.Loads)/float64(max(1, reads)), "loads", 0, true)
	return nil
}
