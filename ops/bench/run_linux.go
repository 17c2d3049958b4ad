package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirhq/weir/ops/bench/load"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// bench is one run of the benchmark.
type bench struct {
	Options
	dir    string
	say    func(format string, arguments ...any)
	report Report
	// placed and got are replies of the real server, which the echo server gives back.
	placed *orderv1.PlaceOrderResponse
	got    *orderv1.GetOrderResponse
}

func run(ctx context.Context, options Options, out, progress io.Writer) (err error) {
	if options.Weir == "" {
		if options.Weir, err = os.Executable(); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp(options.Dir, "weir-bench-")
	if err != nil {
		return err
	}
	// The user that PostgreSQL runs as must get through.
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	began := time.Now()
	b := &bench{Options: options, dir: dir, say: func(format string, arguments ...any) {
		fmt.Fprintf(progress, "%6.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, arguments...))
	}}
	b.report.Machine = machine()
	b.say("%s", b.report.Machine)
	groups := map[string]func(context.Context) error{
		"place": b.place, "json": b.json, "get": b.get, "quarter": b.quarter, "lanes": b.lanes,
		"hot4": b.hot4, "campaign": b.campaign, "pay": b.pay, "flash": b.flash, "peers": b.peers, "million": b.million,
		"visible": b.visible, "levels": b.levels, "redis": b.redis, "rebuild": b.rebuild,
		"cluster": b.cluster, "hop": b.hop, failoverGroup: b.failover,
		"gateway-cost": b.gatewayCost, "gateway-faults": b.gatewayFaults, "gateway-overload": b.gatewayOverload,
		"gateway-goodput": b.gatewayGoodput,
		"gateway-edge":    b.gatewayEdge, "gateway-plans": b.gatewayPlans, "gateway-limits": b.gatewayLimits, "gateway-nodes": b.gatewayNodes,
		"gateway-failback": b.gatewayFailback,
	}
	for _, name := range slices.Concat(Groups, GatewayGroups, ClusterGroups) {
		if !b.runs(name) {
			continue
		}
		b.say("%s", name)
		if err := groups[name](ctx); err != nil {
			return fmt.Errorf("bench %s: %w", name, err)
		}
	}
	if b.JSON {
		return b.report.printJSON(out)
	}
	return b.report.print(out)
}

// runs reports whether a group is run by itself: it is named, or is one of those that run when none is.
func (b *bench) runs(group string) bool {
	switch {
	case len(b.Only) == 0:
		return slices.Contains(Groups, group)
	case group == failoverGroup: // One cluster is for all of its strikes that are named.
		return slices.ContainsFunc(b.Only, func(named string) bool { return strings.HasPrefix(named, failoverGroup) })
	case strings.HasPrefix(group, failoverGroup):
		return false
	}
	return slices.Contains(b.Only, group)
}

func machine() string {
	var name unix.Utsname
	kernel := "unknown kernel"
	if unix.Uname(&name) == nil {
		kernel = unix.ByteSliceToString(name.Sysname[:]) + " " + unix.ByteSliceToString(name.Release[:])
	}
	model := runtime.GOARCH
	if cpuinfo, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(cpuinfo)) {
			if key, value, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%d processors (%s), %s, %s; server and load on the same ones, over loopback", runtime.NumCPU(), model, kernel, runtime.Version())
}

// A contestant is one of those that a group measures in turn.
type contestant struct {
	name   string
	server *server
	// prepare runs before every run, uncounted; may be nil.
	prepare func(context.Context) error
	source  func() (load.Source, error)
	// rate of an open loop, 0 for a closed one.
	rate float64
	// answered says which replies are wanted; nil means status 200.
	answered func(status int, body []byte) bool
	// run makes a run that source alone cannot; nil for all others.
	run func(context.Context) (*load.Result, error)
}

// measured makes one run.
func (c *contestant) measured(ctx context.Context, options Options) (*load.Result, error) {
	if c.run != nil {
		return c.run(ctx)
	}
	source, err := c.source()
	if err != nil {
		return nil, err
	}
	return load.Run(ctx, load.Options{
		Addr: c.server.Addr, Connections: options.Connections, Rate: c.rate, Warmup: options.Warmup, Duration: options.Duration,
		Source: source, Processes: c.server.processes(), Answered: c.answered,
	})
}

// measure lets the contestants take turns, each as often as Options.Runs says and each round in another order, and adds
// their medians to the report. bystanders must be idle too before a run starts.
func (b *bench) measure(ctx context.Context, group string, contestants []contestant, bystanders ...*server) ([]Figure, error) {
	type series struct{ perSecond, p50, p99, server, generator []float64 }
	all := make([]series, len(contestants))
	servers := slices.Clone(bystanders)
	for i := range contestants {
		servers = append(servers, contestants[i].server)
	}
	for round := range b.Runs {
		for turn := range contestants {
			i := turn // There and back: whoever comes after another pays for what that one left to be done in the background.
			if round%2 == 1 {
				i = len(contestants) - 1 - turn
			}
			c := &contestants[i]
			if c.prepare != nil {
				if err := c.prepare(ctx); err != nil {
					return nil, err
				}
			}
			if err := settleWithin(ctx, min(settleMax, settleRuns*b.Duration), servers...); err != nil {
				return nil, err
			}
			result, err := c.measured(ctx, b.Options)
			if err != nil {
				return nil, fmt.Errorf("%s: %w: %s", c.name, err, c.server.Printed())
			}
			if result.Failed > 0 {
				return nil, fmt.Errorf("%s: %d of %d calls failed: %s", c.name, result.Failed, result.Failed+result.Calls, result.FirstFailure)
			}
			var cpu time.Duration
			for p := range result.ProcessCPU {
				cpu += result.ProcessCPUPerCall(p)
			}
			s := &all[i]
			s.perSecond = append(s.perSecond, result.PerSecond())
			s.p50 = append(s.p50, inMicros(result.Latency.Quantile(0.5)))
			s.p99 = append(s.p99, inMicros(result.Latency.Quantile(0.99)))
			s.server = append(s.server, inMicros(cpu))
			s.generator = append(s.generator, inMicros(result.CPUPerCall()))
			b.say("  round %d  %-28s %7.0f/s  p99 %v", round+1, c.name, result.PerSecond(), result.Latency.Quantile(0.99).Round(10*time.Microsecond))
		}
	}
	figures := make([]Figure, len(contestants))
	for i, s := range all {
		figures[i] = Figure{
			Group: group, Name: contestants[i].name, PerSecond: median(s.perSecond), Runs: s.perSecond,
			P50Micros: median(s.p50), P99Micros: median(s.p99), ServerMicros: median(s.server), GeneratorMicros: median(s.generator),
		}
	}
	b.report.Figures = append(b.report.Figures, figures...)
	return figures, nil
}

func inMicros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// withWeir runs f with a stocked node of its own on an empty directory, and removes both.
func (b *bench) withWeir(ctx context.Context, lanes int, f func(*weir) error, flags ...string) (err error) {
	data, err := os.MkdirTemp(b.dir, "data-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(data)) }()
	w, _, err := startWeir(ctx, b.Weir, data, lanes, flags...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.End()) }()
	if err := w.stock(ctx); err != nil {
		return fmt.Errorf("stock: %w", err)
	}
	if b.placed, b.got, err = w.sample(ctx); err != nil {
		return err
	}
	return f(w)
}

// withEcho runs f with a stocked node and the echo server, which answers as the node does.
func (b *bench) withEcho(ctx context.Context, f func(*weir, *server) error) error {
	return b.withWeir(ctx, 1, func(w *weir) (err error) {
		echo, err := startEcho(ctx, b.dir, b.placed, b.got)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, echo.Stop(syscall.SIGTERM)) }()
		return f(w, echo)
	})
}

func (w *weir) placing(name, contentType string, skus int) contestant {
	return contestant{name: name, server: w.server(), source: func() (load.Source, error) { return w.placeSource(contentType, skus) }}
}

func (w *weir) placingEcho(name, contentType string, echo *server) contestant {
	c := w.placing(name, contentType, skusMany)
	c.server = echo
	return c
}

// place is PlaceOrder in Connect's binary form.
func (b *bench) place(ctx context.Context) error {
	return b.withEcho(ctx, func(w *weir, echo *server) error {
		figures, err := b.measure(ctx, "place", []contestant{
			w.placing("Weir, 1 SKU", protoType, 1), w.placingEcho("echo", protoType, echo), w.placing("Weir, 1000 SKUs", protoType, skusMany),
		})
		if err != nil {
			return err
		}
		hot, ceiling, many := figures[0].PerSecond, figures[1].PerSecond, figures[2].PerSecond
		b.report.check("PlaceOrder binary, 1 SKU : echo", hot/ceiling, "×", 0.55, false)
		b.report.check("PlaceOrder binary, 1000 SKUs : echo", many/ceiling, "×", 0.55, false)
		b.report.check("1 SKU and 1000 SKUs, slower : faster", min(hot, many)/max(hot, many), "×", 0.9, false)
		return nil
	})
}

// json is PlaceOrder in JSON.
func (b *bench) json(ctx context.Context) error {
	return b.withEcho(ctx, func(w *weir, echo *server) error {
		figures, err := b.measure(ctx, "json", []contestant{w.placing("Weir, JSON", jsonType, 1), w.placingEcho("echo, JSON", jsonType, echo)})
		if err != nil {
			return err
		}
		b.report.check("PlaceOrder JSON : echo JSON", figures[0].PerSecond/figures[1].PerSecond, "×", 0.6, false)
		return nil
	})
}

// get is GetOrder in Connect's binary form.
func (b *bench) get(ctx context.Context) error {
	return b.withEcho(ctx, func(w *weir, echo *server) error {
		const orders = 200_000
		ids, _, _, err := w.place(ctx, b.Options, min(b.Orders, orders), 10)
		if err != nil {
			return err
		}
		source := func() (load.Source, error) { return getSource(w.Trusted, ids) }
		figures, err := b.measure(ctx, "get", []contestant{
			{name: "Weir, GetOrder", server: w.server(), source: source}, {name: "echo, GetOrder", server: echo, source: source},
		})
		if err != nil {
			return err
		}
		b.report.check("GetOrder : echo", figures[0].PerSecond/figures[1].PerSecond, "×", 0.75, false)
		return nil
	})
}

// quarter is the latency at a quarter of the peak.
func (b *bench) quarter(ctx context.Context) error {
	return b.withEcho(ctx, func(w *weir, echo *server) error {
		peak := b.peak()
		if peak == 0 {
			figures, err := b.measure(ctx, "quarter", []contestant{w.placing("Weir, peak", protoType, skusMany)})
			if err != nil {
				return err
			}
			peak = figures[0].PerSecond
		}
		placing, ceiling := w.placing("Weir, quarter of peak", protoType, skusMany), w.placingEcho("echo, same rate", protoType, echo)
		placing.rate, ceiling.rate = peak/4, peak/4
		figures, err := b.measure(ctx, "quarter", []contestant{placing, ceiling})
		if err != nil {
			return err
		}
		b.report.check(fmt.Sprintf("p99 at %.0f orders/s", peak/4), figures[0].P99Micros/1000, "ms", 5, true)
		// What the disk alone adds to an order: no order is acknowledged faster than its commit is synced.
		idle, err := syncLatency(ctx, b.dir, b.Duration)
		if err != nil {
			return err
		}
		b.report.check("p99 of a write of 16 KiB with fsync, nothing else running", inMicros(idle.Quantile(0.99))/1000, "ms", 0, true)
		return nil
	})
}

// peak is what group place measured, 0 when it did not run.
func (b *bench) peak() float64 {
	for i := range b.report.Figures {
		if f := &b.report.Figures[i]; f.Group == "place" && f.Name == "Weir, 1000 SKUs" {
			return f.PerSecond
		}
	}
	return 0
}

// lanes is four lanes on one disk against one.
func (b *bench) lanes(ctx context.Context) error {
	return b.withWeir(ctx, 1, func(one *weir) error {
		return b.withWeir(ctx, 4, func(four *weir) error {
			figures, err := b.measure(ctx, "lanes", []contestant{
				one.placing("Weir, 1 lane", protoType, skusMany), four.placing("Weir, 4 lanes", protoType, skusMany),
			})
			if err != nil {
				return err
			}
			b.report.check("4 lanes : 1 lane", figures[1].PerSecond/figures[0].PerSecond, "×", 0.85, false)
			return nil
		})
	})
}

// hot4 is one hot SKU against many, on four lanes that each have units of it.
func (b *bench) hot4(ctx context.Context) error {
	return b.withWeir(ctx, 4, func(w *weir) error {
		if err := w.preheat(ctx); err != nil {
			return err
		}
		figures, err := b.measure(ctx, "hot4", []contestant{
			w.placing("Weir, 4 lanes, 1 SKU", protoType, 1), w.placing("Weir, 4 lanes, 1000 SKUs", protoType, skusMany),
		})
		if err != nil {
			return err
		}
		b.report.check("4 lanes: 1 SKU : 1000 SKUs", figures[0].PerSecond/figures[1].PerSecond, "×", 0.9, false)
		return nil
	})
}

// campaign is orders of an open campaign, with its price, its stock and its limit for each user, against plain ones of one SKU.
func (b *bench) campaign(ctx context.Context) error {
	return b.withWeir(ctx, 1, func(w *weir) error {
		if err := w.openCampaign(ctx); err != nil {
			return err
		}
		figures, err := b.measure(ctx, "campaign", []contestant{
			{name: "Weir, campaign", server: w.server(), source: func() (load.Source, error) { return w.campaignSource() }},
			w.placing("Weir, plain", protoType, 1),
		})
		if err != nil {
			return err
		}
		b.report.check("campaign : plain", figures[0].PerSecond/figures[1].PerSecond, "×", 0.9, false)
		b.report.check("campaign : plain, server CPU of an order", figures[0].ServerMicros/figures[1].ServerMicros, "×", 0, true)
		return nil
	})
}

// flash is what comes after the last unit of a flash sale: attempts that are refused.
func (b *bench) flash(ctx context.Context) error {
	return b.withEcho(ctx, func(w *weir, echo *server) error {
		if err := w.sellOut(ctx, b.Options); err != nil {
			return err
		}
		source := func() (load.Source, error) { return w.flashSource() }
		figures, err := b.measure(ctx, "flash", []contestant{
			{name: "Weir, sold out", server: w.server(), source: source, answered: refused}, {name: "echo", server: echo, source: source},
		})
		if err != nil {
			return err
		}
		b.report.check("attempts at sold-out : echo", figures[0].PerSecond/figures[1].PerSecond, "×", 0.6, false)
		return nil
	})
}

// peers is Weir against what a team would write instead, all in JSON.
func (b *bench) peers(ctx context.Context) (err error) {
	rivals, err := startPeers(ctx, b.Peers, b.dir)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		b.report.LeftOut = append(b.report.LeftOut, fmt.Sprintf("orderpeer: %v", err))
		b.say("  left out: %v", err)
		return nil
	}
	defer func() { err = errors.Join(err, rivals.end()) }()
	return b.withWeir(ctx, 1, func(w *weir) error {
		contestants := []contestant{w.placing("Weir, JSON, 1 SKU", jsonType, 1), w.placing("Weir, JSON, 1000 SKUs", jsonType, skusMany)}
		for _, mode := range peerModes {
			for _, skus := range []int{1, skusMany} {
				contestants = append(contestants, contestant{
					name: fmt.Sprintf("orderpeer %s, %s", mode, map[int]string{1: "1 SKU", skusMany: "1000 SKUs"}[skus]), server: rivals.modes[mode],
					prepare: func(ctx context.Context) error { return rivals.reset(ctx, mode, skus) },
					source:  func() (load.Source, error) { return rivals.source(skus) },
				})
			}
		}
		figures, err := b.measure(ctx, "peers", contestants, rivals.servers()...)
		if err != nil {
			return err
		}
		hot, many := figures[0].PerSecond, figures[1].PerSecond
		b.report.check("Weir JSON : orderpeer pg, 1 SKU", hot/figures[2].PerSecond, "×", 8, false)
		b.report.check("Weir JSON : orderpeer pg, 1000 SKUs", many/figures[3].PerSecond, "×", 0, false)
		b.report.check("Weir JSON : orderpeer pgbatch, 1 SKU", hot/figures[4].PerSecond, "×", 1, false)
		b.report.check("Weir JSON : orderpeer pgbatch, 1000 SKUs", many/figures[5].PerSecond, "×", 1, false)
		b.report.check("Weir JSON : orderpeer redis, 1 SKU", hot/figures[6].PerSecond, "×", 1, false)
		b.report.check("Weir JSON : orderpeer redis, 1000 SKUs", many/figures[7].PerSecond, "×", 1, false)
		return nil
	})
}

// million is what a log of a million orders costs: memory, the next start, a start after a crash, and the rebuild of everything from it.
func (b *bench) million(ctx context.Context) (err error) {
	if err := b.coldEmpty(ctx); err != nil {
		return err
	}
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
	if err := settle(ctx, w.server()); err != nil {
		return err
	}
	resident, err := residentBytes(w.PID())
	if err != nil {
		return err
	}
	size := fmt.Sprintf("%d open orders", b.Orders)
	b.report.check("memory after placing "+size, float64(resident)/(1<<20), "MiB", 1024, true)
	b.report.check("log and state on disk, "+size, float64(sizeOf(data))/(1<<20), "MiB", 0, true)

	// Each in turn, as often as every figure: a clean restart, a crash, and a start without Pebble.
	var clean, crashed, rebuilt, memory []float64
	for round := range b.Runs {
		if err := w.End(); err != nil {
			return err
		}
		restart := func(what string, into *[]float64, until func() error) error {
			began := time.Now()
			took, err := w.Start(ctx)
			if err != nil {
				return fmt.Errorf("start %s: %w", what, err)
			}
			if until != nil {
				if err := until(); err != nil {
					return err
				}
				took = time.Since(began)
			}
			*into = append(*into, took.Seconds())
			b.say("  round %d  start %s: %v", round+1, what, took.Round(time.Millisecond))
			return nil
		}
		if err := restart("after a clean stop", &clean, nil); err != nil {
			return err
		}
		if resident, err = residentBytes(w.PID()); err != nil {
			return err
		}
		memory = append(memory, float64(resident)/(1<<20))
		// Something to replay.
		if _, _, _, err := w.place(ctx, b.Options, 1000, 1000); err != nil {
			return err
		}
		if err := w.Crash(); err != nil {
			return err
		}
		if err := restart("after kill -9", &crashed, nil); err != nil {
			return err
		}
		if err := w.End(); err != nil {
			return err
		}
		if err := removePebble(data); err != nil {
			return err
		}
		if err := restart("from the log alone", &rebuilt, func() error { return w.caughtUp(ctx, ids[len(ids)-1], newest) }); err != nil {
			return err
		}
	}
	b.report.check("memory after a start with "+size, median(memory), "MiB", 1024, true)
	b.report.check("start with "+size, median(clean), "s", 3, true)
	b.report.check("start after kill -9 with "+size, median(crashed), "s", 5, true)
	b.report.check("rebuild of state and views, start included", float64(b.Orders)/median(rebuilt), "events/s", 300_000, false)
	b.report.check("rebuild of state and views, less a start", float64(b.Orders)/max(median(rebuilt)-median(clean), 0.001), "events/s", 0, false)
	return nil
}

// coldEmpty is the first start.
func (b *bench) coldEmpty(ctx context.Context) error {
	var took []float64
	for range b.Runs {
		data, err := os.MkdirTemp(b.dir, "data-")
		if err != nil {
			return err
		}
		w, wait, err := startWeir(ctx, b.Weir, data, 1)
		if err != nil {
			return err
		}
		took = append(took, wait.Seconds())
		if err := errors.Join(w.End(), os.RemoveAll(data)); err != nil {
			return err
		}
	}
	b.report.check("start with an empty directory", median(took), "s", 1, true)
	return nil
}

// caughtUp waits until the views hold a revision.
func (w *weir) caughtUp(ctx context.Context, id string, revision *typev1.Revision) error {
	client := w.Orders(http.DefaultClient)
	return w.Ready(ctx, func(ctx context.Context) error {
		got, err := client.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: id, MinRevision: revision})
		if err != nil {
			return err
		}
		if state := got.GetFreshness().GetState(); state != typev1.Freshness_STATE_FRESH {
			return fmt.Errorf("the view is %v, %d commits behind", state, got.GetFreshness().GetLagCommits())
		}
		return nil
	})
}

// removePebble removes every Pebble database below a node's directory: what follows from the log.
func removePebble(data string) error {
	removed := 0
	err := filepath.WalkDir(data, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if manifests, _ := filepath.Glob(filepath.Join(path, "MANIFEST-*")); len(manifests) > 0 {
				removed++
				if err := os.RemoveAll(path); err != nil {
					return err
				}
				return fs.SkipDir
			}
		}
		return nil
	})
	if err == nil && removed == 0 {
		err = errors.New("no Pebble database below the data directory")
	}
	return err
}
