package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/ops/bench/echo"
	"github.com/weirhq/weir/ops/bench/load"
)

const (
	// overloadPlaces calls at a time, each for overloadDelay, are what one of three upstreams can do: little, so that ten times as much leaves
	// the processors of the machine to spare, and what is measured is the gateway's choice and not a lack of them.
	overloadPlaces = 2
	overloadDelay  = 10 * time.Millisecond
	// peakConnections keep all places busy, and as many calls waiting.
	peakConnections = 12
	// calmShare of the peak is offered all the time, floodShare on top of it during the flood: ten times the peak in all.
	calmShare  = 0.8
	floodShare = 9.2
	// orderShare of all calls are orders: two thirds of the peak during the flood, so that all of them fit.
	orderShare = 0.065
	// onsetMax is how long the beginning of a flood is looked at by itself, or a twelfth of a short one.
	onsetMax = time.Second
)

// floodPolicies are those under which a flood is looked at. By default upstreams that do not say that they commit in groups, as those here, are taken to
// do so many calls at a time and no more; the other one is what those get that do say so, which are slower and better with company.
var floodPolicies = []struct{ name, text string }{
	{name: "by default"},
	{"tolerance 2 and slack 10ms", "concurrency:\n  tolerance: 2\n  slack: 10ms\n"},
}

// gatewayOverload offers ten times what three upstreams can do, for a minute by default under each policy, and looks at what is served, to whom, how
// quickly the others are told no, and how long it takes to be as before.
func (b *bench) gatewayOverload(ctx context.Context) error {
	for i, policy := range floodPolicies {
		var flags []string
		if policy.text != "" {
			file := filepath.Join(b.dir, fmt.Sprintf("flood%d.yaml", i))
			if err := os.WriteFile(file, []byte(policy.text), 0o600); err != nil {
				return err
			}
			flags = []string{"--policy", file}
		}
		if err := b.withStage(ctx, 3, func(s *stage) error {
			if err := s.behaveAll(ctx, echo.Behaviour{Places: overloadPlaces, Delay: overloadDelay}); err != nil {
				return err
			}
			peak, err := b.peakOf(ctx, s)
			if err != nil {
				return err
			}
			return b.flood(ctx, s, policy.name, peak)
		}, flags...); err != nil {
			return err
		}
	}
	return nil
}

// peakOf is how many calls a second come back through the gateway when as many are asked as can be served.
func (b *bench) peakOf(ctx context.Context, s *stage) (perSecond float64, err error) {
	source, err := reading()
	if err != nil {
		return 0, err
	}
	result, err := load.Run(ctx, load.Options{
		Addr: s.gateway.Addr, Connections: peakConnections, Warmup: b.Warmup, Duration: b.Duration, Source: source,
	})
	if err != nil {
		return 0, err
	}
	if result.Calls == 0 {
		return 0, fmt.Errorf("no call was answered, %d failed: %s", result.Failed, result.FirstFailure)
	}
	b.say("  peak: %.0f/s", result.PerSecond())
	return result.PerSecond(), nil
}

// A tide is one kind of calls at a rate, from begins on, with what became of it before, during and after the flood.
type tide struct {
	drive
	begins                time.Duration
	orders                bool
	before, during, after phase
	// settled is during without its beginning.
	settled phase
}

// flood is what comes over the gateway; how says under which policy.
func (b *bench) flood(ctx context.Context, s *stage, how string, peak float64) error {
	begins, length := b.Warmup+b.Duration, longRuns*b.Duration
	ends := begins + length
	after := 2 * b.Duration
	tides := []*tide{
		{drive: drive{rate: calmShare * (1 - orderShare) * peak, duration: ends + after}},
		{drive: drive{rate: calmShare * orderShare * peak, duration: ends + after}, orders: true},
		{drive: drive{rate: floodShare * (1 - orderShare) * peak, duration: length}, begins: begins},
		{drive: drive{rate: floodShare * orderShare * peak, duration: length}, begins: begins, orders: true},
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, t := range tides {
		// A rotation is for one goroutine.
		source, err := reading()
		if t.orders {
			source, err = ordering()
		}
		if err != nil {
			return err
		}
		t.addr, t.source, t.connections = s.gateway.Addr, source, b.Connections
		t.before = phase{from: b.Warmup - t.begins, to: begins - t.begins}
		t.during = phase{from: begins - t.begins, to: ends - t.begins}
		t.after = phase{from: ends - t.begins, to: ends + after - t.begins}
		t.settled = phase{from: t.during.from + min(onsetMax, length/longRuns), to: t.during.to}
		t.phases = []*phase{&t.before, &t.during, &t.settled, &t.after}
		group.Go(func() error {
			if err := pause(ctx, t.begins); err != nil {
				return err
			}
			return t.run(ctx)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	b.reportFlood(how, tides, peak, length)
	return nil
}

// reportFlood adds the rows of a flood.
func (b *bench) reportFlood(how string, tides []*tide, peak float64, length time.Duration) {
	var before, during, settled, refused load.Histogram
	var orders, goodOrders float64
	var served uint64
	var recovered time.Duration
	for _, t := range tides {
		before.Merge(&t.before.good)
		during.Merge(&t.during.good)
		settled.Merge(&t.settled.good)
		refused.Merge(&t.during.bad)
		served += t.during.served
		if t.orders {
			orders += t.during.calls()
			goodOrders += float64(t.during.good.Count())
		}
		if t.after.bad.Count() > 0 {
			recovered = max(recovered, t.after.lastBad-t.after.from)
		}
	}
	goodput := float64(served) / length.Seconds() / peak
	flood := fmt.Sprintf("10× overload for %v, %s: ", length, how)
	b.report.check(flood+"goodput : peak", goodput, "×", 0.9, false)
	b.report.check(flood+"orders that were answered", 100*share(goodOrders, orders), "%", 99, false)
	b.report.check(flood+"admitted p99 : p99 before", share(float64(during.Quantile(0.99)), float64(before.Quantile(0.99))), "×", 2, true)
	b.report.check(flood+fmt.Sprintf("the same without the first %v", min(onsetMax, length/longRuns)), share(float64(settled.Quantile(0.99)), float64(before.Quantile(0.99))), "×", 0, true)
	b.report.check(flood+"median of refusals, as their callers see it", inMillis(refused.Quantile(0.5)), "ms", 1, true)
	b.report.check(flood+"p99 of refusals, as their callers see it", inMillis(refused.Quantile(0.99)), "ms", 0, true)
	b.report.check(fmt.Sprintf("after 10× overload, %s: last refusal", how), recovered.Seconds(), "s", 2, true)
	b.say("  p99 before %v; in the flood p50 %v, p99 %v", before.Quantile(0.99), during.Quantile(0.5), during.Quantile(0.99))
	b.say("  flood: %d answered, %d refused, %.0f of %.0f orders answered", during.Count(), refused.Count(), goodOrders, orders)
}

func inMillis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
