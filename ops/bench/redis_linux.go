package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/projections/redisview"
)

const (
	// publishedOrders are published again and again; publishChunk are offered at a time, and publishAheadMax of them wait at most: fewer
	// than the publisher's queue holds, and than there are, so that none is dropped or waits twice.
	publishedOrders = 100_000
	publishChunk    = 1 << 11
	publishAheadMax = 1 << 14
	// publishLook is how often a publisher is looked at, and publishWait bounds the wait for what it was offered.
	publishLook = time.Millisecond
	publishWait = time.Minute
	// bareBatch and barePipelines are those of a publisher.
	bareBatch     = 512
	barePipelines = 2
)

// redis is how fast a node's publisher writes orders to Redis, each read off the view and guarded by its position, beside a bare
// pipelined SET of the same values from the same client to the same server.
func (b *bench) redis(ctx context.Context) error {
	return b.withWeir(ctx, 1, func(w *weir) (err error) {
		ids, newest, _, err := w.place(ctx, b.Options, min(b.Orders, publishedOrders), 1)
		if err != nil {
			return err
		}
		if err := errors.Join(w.caughtUp(ctx, ids[len(ids)-1], newest), w.End()); err != nil {
			return err
		}
		orders := make([]domain.OrderID, len(ids))
		for i, id := range ids {
			if orders[i], err = domain.ParseOrderID(id); err != nil {
				return err
			}
		}
		server, err := startRedis(ctx, b.dir)
		if err != nil {
			b.report.LeftOut = append(b.report.LeftOut, fmt.Sprintf("the Redis publisher: %v", err))
			return ctx.Err()
		}
		defer func() { err = errors.Join(err, server.Stop(os.Interrupt)) }()
		store, err := projections.OpenStore(filepath.Join(w.Data, "state"), projections.StoreOptions{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		return b.publish(ctx, store, server.Addr, orders)
	})
}

// publish lets the publisher and the bare client take turns.
func (b *bench) publish(ctx context.Context, store *projections.Store, addr string, orders []domain.OrderID) (err error) {
	values, at, err := recordsOf(store, orders)
	if err != nil {
		return err
	}
	mirror, err := redisview.New(redisview.Options{
		Addresses: []string{addr}, Store: store, Topology: eventstore.Topology{Lanes: 1}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mirror.Close()) }()
	mirror.Opened(0, at)
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- mirror.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()
	client := redis.NewClient(&redis.Options{Addr: addr})
	defer func() { err = errors.Join(err, client.Close()) }()

	turns := []func(context.Context, time.Duration) (float64, error){
		func(ctx context.Context, length time.Duration) (float64, error) {
			return publishFor(ctx, mirror, orders, at, length)
		},
		func(ctx context.Context, length time.Duration) (float64, error) {
			return setFor(ctx, client, orders, values, length)
		},
	}
	for _, turn := range turns { // What is written for the first time is new to Redis, and a publisher fills it at its start.
		if _, err := turn(ctx, max(b.Warmup, time.Second)); err != nil {
			return err
		}
	}
	rates := make([][]float64, len(turns))
	var ratios []float64
	for round := range b.Runs {
		for i := range turns {
			if round%2 == 1 {
				i = len(turns) - 1 - i
			}
			rate, err := turns[i](ctx, b.Duration)
			if err != nil {
				return err
			}
			rates[i] = append(rates[i], rate)
		}
		ratios = append(ratios, rates[0][round]/rates[1][round])
		b.say("  round %d  published %.0f/s, set %.0f/s", round+1, rates[0][round], rates[1][round])
	}
	b.report.check("orders published to Redis", median(rates[0]), "updates/s", 100_000, false)
	b.report.check("bare pipelined SET of the same values", median(rates[1]), "updates/s", 0, false)
	b.report.check("publisher : bare SET", median(ratios), "×", 0, false)
	return nil
}

// recordsOf returns the values of orders, and the position that they are of.
func recordsOf(store *projections.Store, orders []domain.OrderID) (values [][]byte, at eventstore.Position, err error) {
	snapshot := store.Snapshot(1)
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	if at, err = snapshot.Position(0); err != nil {
		return nil, at, err
	}
	for _, id := range orders {
		value, err := snapshot.OrderRecord(0, id)
		if err != nil {
			return nil, at, fmt.Errorf("order %v: %w", id, err)
		}
		values = append(values, value)
	}
	return values, at, nil
}

// publishFor offers orders to a publisher for a while, as a runner would, and returns how many a second it wrote.
func publishFor(ctx context.Context, mirror *redisview.Mirror, orders []domain.OrderID, at eventstore.Position, length time.Duration) (float64, error) {
	before := mirror.Stats()
	offered, next := uint64(0), 0
	look := time.NewTicker(publishLook)
	defer look.Stop()
	began := time.Now()
	for {
		now := mirror.Stats()
		written := now.Written + now.Older - before.Written - before.Older
		took := time.Since(began)
		switch {
		case now.Dropped > before.Dropped:
			return 0, fmt.Errorf("the publisher dropped %d orders", now.Dropped-before.Dropped)
		case took > length && written >= offered:
			return float64(offered) / took.Seconds(), nil
		case took > length+publishWait:
			return 0, fmt.Errorf("the publisher wrote %d of %d orders", written, offered)
		case took <= length && offered < written+publishAheadMax:
			chunk := orders[next:min(next+publishChunk, len(orders))]
			next = (next + len(chunk)) % len(orders)
			mirror.Changed(&projections.Changes{Position: at, Orders: slices.Clone(chunk)})
			offered += uint64(len(chunk))
			continue
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// setFor writes values for a while, in as many pipelines of the same length as a publisher does, and returns how many a second.
func setFor(ctx context.Context, client *redis.Client, orders []domain.OrderID, values [][]byte, length time.Duration) (float64, error) {
	keys := make([]string, len(orders))
	for i := range orders {
		keys[i] = "bare:{" + orders[i].String() + "}"
	}
	var next, written atomic.Int64
	var pipelines sync.WaitGroup
	failures := make([]error, barePipelines)
	began := time.Now()
	for p := range barePipelines {
		pipelines.Go(func() {
			for failures[p] == nil && time.Since(began) < length {
				pipe := client.Pipeline()
				first := next.Add(bareBatch) - bareBatch
				for i := first; i < first+bareBatch; i++ {
					at := i % int64(len(keys))
					pipe.Set(ctx, keys[at], values[at], redisview.TTLDefault)
				}
				_, failures[p] = pipe.Exec(ctx)
				written.Add(bareBatch)
			}
		})
	}
	pipelines.Wait()
	return float64(written.Load()) / time.Since(began).Seconds(), errors.Join(failures...)
}
