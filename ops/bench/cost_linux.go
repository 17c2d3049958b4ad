package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
)

const (
	// costLimitMicros is what the gateway may cost a call more than a bare reverse proxy does.
	costLimitMicros = 15
	// costRound is how long each contestant has its turn, after costWarmup: the machine wanders by a fifth from minute to minute, and by less in two seconds.
	costRound  = 500 * time.Millisecond
	costWarmup = 100 * time.Millisecond
	// costRoundsLeast is how many rounds there are if runs are shorter than one.
	costRoundsLeast = 3
)

// gatewayCost is the CPU of a call through the gateway beside a bare httputil.ReverseProxy and beside none, in front of one echo server.
//
// All are asked in a closed loop, which keeps the processors busy: at a rate that leaves them idle most of a call's CPU is putting them to sleep and waking them up, and
// how often that happens has little to do with who is asked. They take short turns, round by round, and what is compared is of one round.
func (b *bench) gatewayCost(ctx context.Context) (err error) {
	placed, got := sampleReplies()
	direct, err := startReplying(ctx, "echo", b.dir, placed, got)
	if err != nil {
		return err
	}
	var processes []*server
	defer func() {
		for _, process := range append(processes, direct) {
			err = errors.Join(err, process.Stop(syscall.SIGTERM))
		}
	}()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bare, err := startListening(ctx, "reverse proxy", self, []string{"bench", "proxy", "--upstream", "http://" + direct.Addr})
	if err != nil {
		return err
	}
	processes = append(processes, bare)
	// The limiter is in the way of each call and has places for all: a refusal is no call whose cost could be compared.
	policy := filepath.Join(b.dir, "cost.yaml")
	if err := os.WriteFile(policy, fmt.Appendf(nil, "concurrency:\n  min: %d\n  initial: %[1]d\n", b.Connections), 0o600); err != nil {
		return err
	}
	through, _, err := startGateway(ctx, b.Weir, "--upstream", "http://"+direct.Addr, "--policy", policy)
	if err != nil {
		return err
	}
	processes = append(processes, through)
	bare.needs, through.needs = []*launch.Server{direct.Server}, []*launch.Server{direct.Server}
	contestants := []*costed{{name: "echo, direct", server: direct}, {name: "echo, bare ReverseProxy", server: bare}, {name: "echo, gateway", server: through}}
	round := min(costRound, b.Duration)
	rounds := max(b.Runs*int(b.Duration/round), costRoundsLeast)
	for i := range rounds {
		for turn := range contestants {
			if i%2 == 1 { // There and back.
				turn = len(contestants) - 1 - turn
			}
			if err := contestants[turn].turn(ctx, b.Connections, round); err != nil {
				return err
			}
		}
	}
	for _, c := range contestants {
		f := c.figure()
		b.say("  %-28s %7.0f/s, %.1f µs of CPU itself, %.1f µs with what it needs", c.name, f.PerSecond, median(c.own), f.ServerMicros)
		b.report.Figures = append(b.report.Figures, f)
	}
	b.reportCost(contestants[0], contestants[1], contestants[2])
	return nil
}

// A costed is a contestant with what its turns have shown.
type costed struct {
	name   string
	server *server
	// CPU of a call in microseconds: own is the server's, all that of what it needs as well, and generator the load's.
	perSecond, own, all, generator []float64
	latency                        load.Histogram
}

// turn puts load on it for a round.
func (c *costed) turn(ctx context.Context, connections int, round time.Duration) error {
	source, err := ordering()
	if err != nil {
		return err
	}
	result, err := load.Run(ctx, load.Options{
		Addr: c.server.Addr, Connections: connections, Warmup: costWarmup, Duration: round, Source: source, Processes: c.server.processes(),
	})
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w: %s", c.name, err, c.server.Printed())
	case result.Failed > 0 || result.Calls == 0:
		return fmt.Errorf("%s: %d of %d calls failed: %s", c.name, result.Failed, result.Failed+result.Calls, result.FirstFailure)
	}
	var all time.Duration
	for i := range result.ProcessCPU {
		all += result.ProcessCPUPerCall(i)
	}
	c.perSecond = append(c.perSecond, result.PerSecond())
	c.own = append(c.own, inMicros(result.ProcessCPUPerCall(0)))
	c.all = append(c.all, inMicros(all))
	c.generator = append(c.generator, inMicros(result.CPUPerCall()))
	c.latency.Merge(&result.Latency)
	return nil
}

func (c *costed) figure() Figure {
	return Figure{
		Group: "gateway-cost", Name: c.name, PerSecond: median(c.perSecond), Runs: c.perSecond,
		P50Micros: inMicros(c.latency.Quantile(0.5)), P99Micros: inMicros(c.latency.Quantile(0.99)),
		ServerMicros: median(c.all), GeneratorMicros: median(c.generator),
	}
}

// reportCost adds what calls cost more, round by round: the median, and between which values half of the rounds are.
func (b *bench) reportCost(direct, bare, through *costed) {
	for _, row := range []struct {
		name       string
		more, less []float64
		most       float64
	}{
		{"gateway: CPU of a call over a bare ReverseProxy", through.own, bare.own, costLimitMicros},
		{"gateway: CPU of a call over direct", through.all, direct.all, 0},
		{"bare ReverseProxy: CPU of a call over direct", bare.all, direct.all, 0},
	} {
		differences := make([]float64, len(row.more))
		for i := range differences {
			differences[i] = row.more[i] - row.less[i]
		}
		slices.Sort(differences)
		quarter := len(differences) / 4
		b.report.check(row.name, median(differences), "µs", row.most, true)
		b.report.check(row.name+fmt.Sprintf(", a quarter of %d rounds below", len(differences)), differences[quarter], "µs", 0, true)
		b.report.check(row.name+", a quarter above", differences[len(differences)-1-quarter], "µs", 0, true)
	}
}
