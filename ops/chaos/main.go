// Command chaos torments 'weir dev' under load and checks after every round that nothing that it acknowledged is lost, changed or done
// twice: every order is there (I1), every request answers as before, byte for byte (I4), stock is conserved (I3), views equal what
// commands answered (I6), and the log verifies (I2). It kills the node at random, stops it for a while or loses its replies. Where the
// clients pay, the provider is a sandbox in a process of its own that goes wrong; in the end no payment is unresolved (I5), and the
// provider's ledger, the log and the views say the same to the minor unit (I4). 'chaos -help' lists the kinds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Options say how a node is tormented, and how much.
type Options struct {
	// Weir is the binary.
	Weir string
	// NATS is the binary of a NATS server, for kinds that torment a cluster, and Servers how many of them keep its log.
	NATS    string
	Servers int
	// Lossy has the servers fsync seldom, or the disks of nodes that are servers forget what they fsynced: a power cut has to lose something, or this
	// program is blind.
	Lossy bool
	// Unfenced takes the conditions off what nodes append: what arrives late is then stored behind the next owner's commits, or this program
	// is blind.
	Unfenced bool
	// LeaseTTL is that of a cluster's lanes.
	LeaseTTL time.Duration
	// Kind of torment: a name of kinds.
	Kind string
	// Rounds of load, fault, restart and check.
	Rounds int
	// Clients that order at the same time, each for its own user.
	Clients int
	// Buyers that ask for one unit at the same time, in the kind scarce.
	Buyers int
	// Lanes of the node.
	Lanes int
	// Seed of everything random here. When the node is killed depends on time too, so a seed repeats the pattern, not the instant.
	Seed uint64
	// LoadMax is the longest that a round's load lasts before the fault.
	LoadMax time.Duration
	// CallsMin is how many changes must be acknowledged before a round's load ends, however long that takes, up to a minute.
	CallsMin int
	// PauseFor is how long the node is stopped in the kind pauses.
	PauseFor time.Duration
	// Silences is how many payments of a round are made with a method that gets no answer at all.
	Silences int
	// SettleMax is how long payments may take until all are over, after the last fault.
	SettleMax time.Duration
	// ServingMax is how long a restart may take to serve.
	ServingMax time.Duration
	// ViewWait is how long a view may take to show what was acknowledged, at most 10 s.
	ViewWait time.Duration
	// Dir is where the data directory and the records of acknowledgements and failed calls are made; they are kept after a failure, and with Keep
	// in any case.
	Dir  string
	Keep bool
}

// Validate returns an error that says what is wrong with the options.
func (o *Options) Validate() error {
	_, known := kinds[o.Kind]
	switch {
	case !known:
		return fmt.Errorf("there is no kind %q, only %v", o.Kind, kindNames)
	case kinds[o.Kind].fault == strikes && o.Servers != 1 && o.Servers != 3:
		return fmt.Errorf("servers must be 1 or 3, not %d", o.Servers)
	case kinds[o.Kind].fault == strikes && o.LeaseTTL < time.Second:
		return fmt.Errorf("a lease must last at least 1s, not %v", o.LeaseTTL)
	case o.Lossy && o.Kind != "power" && o.Kind != "peers-power":
		return fmt.Errorf("a control run that loses something is one of the kind power or peers-power, not %s", o.Kind)
	case o.Unfenced && o.Kind != "late":
		return fmt.Errorf("a control run without the fence is one of the kind late, not %s", o.Kind)
	case o.Rounds < 1 || o.Rounds > 100_000:
		return fmt.Errorf("rounds must be 1 to 100000, not %d", o.Rounds)
	case o.Clients < 1 || o.Clients > 4096:
		return fmt.Errorf("clients must be 1 to 4096, not %d", o.Clients)
	case o.Buyers < 2 || o.Buyers > 10_000:
		return fmt.Errorf("buyers must be 2 to 10000, not %d", o.Buyers)
	case o.LoadMax < 10*time.Millisecond || o.LoadMax > time.Hour:
		return fmt.Errorf("load must last 10ms to 1h, not %v", o.LoadMax)
	case o.CallsMin < 0 || o.CallsMin > 1_000_000:
		return fmt.Errorf("calls must be 0 to 1000000, not %d", o.CallsMin)
	case o.PauseFor < 0 || o.PauseFor > time.Hour:
		return fmt.Errorf("a pause must last 0 to 1h, not %v", o.PauseFor)
	case o.Silences < 0 || o.Silences > 1000:
		return fmt.Errorf("silences must be 0 to 1000, not %d", o.Silences)
	case o.SettleMax < time.Second || o.SettleMax > 24*time.Hour:
		return fmt.Errorf("payments must be given 1s to 24h to settle, not %v", o.SettleMax)
	}
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, arguments []string, out io.Writer) error {
	options := Options{Seed: rand.Uint64()}
	var names, lanes string
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.StringVar(&options.Weir, "weir", "./weir", "binary to torment")
	flags.StringVar(&options.NATS, "nats-server", "./nats-server", "binary of the servers that keep a cluster's log")
	flags.IntVar(&options.Servers, "servers", 3, "servers that keep a cluster's log where the nodes do not, each a replica: 1 or 3")
	flags.BoolVar(&options.Lossy, "lossy", false, "control run for the kinds power and peers-power: the servers fsync every two minutes, or the disks of the peers forget what they fsynced last, and the run fails if nothing is seen to be lost")
	flags.BoolVar(&options.Unfenced, "unfenced", false, "control run for the kind late: appends reach the servers without the condition that fences off a node that has lost its lane, and the run fails if no broken log is seen")
	flags.DurationVar(&options.LeaseTTL, "lease-ttl", 3*time.Second, "how long the lease of a lane lasts in a cluster")
	flags.StringVar(&names, "kind", strings.Join(kindNames, ","), "kinds of torment, with commas between them:\n"+kindsText())
	flags.IntVar(&options.Rounds, "rounds", 0, "rounds of load, fault, restart and check (0: as many as the kind has)")
	flags.IntVar(&options.Clients, "clients", 0, "clients at the same time (0: 48, and 12 where they pay or torment a cluster)")
	flags.IntVar(&options.Buyers, "buyers", 1000, "buyers that ask for one unit at the same time")
	flags.StringVar(&lanes, "lanes", "", "lanes of the node; with commas between them, one after the other (empty: 1,4, and 4 in a cluster)")
	flags.Uint64Var(&options.Seed, "seed", options.Seed, "seed of everything random here")
	flags.DurationVar(&options.LoadMax, "load", time.Second, "longest load before a fault")
	flags.IntVar(&options.CallsMin, "calls", 100, "changes that are acknowledged before a fault, however long that takes, up to a minute")
	flags.DurationVar(&options.PauseFor, "pause", 5*time.Second, "how long the node is stopped with SIGSTOP")
	flags.IntVar(&options.Silences, "silences", 1, "payments of a round that the provider does not answer at all")
	flags.DurationVar(&options.SettleMax, "settle-max", 5*time.Minute, "longest that payments may be unresolved after the last fault")
	flags.DurationVar(&options.ServingMax, "serving-max", 5*time.Second, "longest restart that is no failure")
	flags.DurationVar(&options.ViewWait, "view-wait", 10*time.Second, "longest that a view may take to show what was acknowledged, at most 10s")
	flags.StringVar(&options.Dir, "dir", "", "where data is made (default: the system's folder for temporary files)")
	flags.BoolVar(&options.Keep, "keep", false, "keep the data also when all is well: failures.jsonl has the calls that failed")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	var runs []Options
	for _, name := range strings.Split(names, ",") {
		for _, text := range strings.Split(lanesOf(name, lanes), ",") {
			one := options.of(name)
			var err error
			if one.Lanes, err = strconv.Atoi(text); err != nil {
				return fmt.Errorf("lanes are numbers with commas between them, not %q", lanes)
			}
			if err := one.Validate(); err != nil {
				return err
			}
			runs = append(runs, one)
		}
	}
	if isInside() {
		if err := settleIn(ctx); err != nil {
			return err
		}
	}
	for _, one := range runs {
		if strike := kinds[one.Kind].strike; strike != nil && strike.inside && !isInside() {
			return inside(ctx, arguments)
		}
	}
	for _, one := range runs {
		if err := torment(ctx, one, out); err != nil {
			return err
		}
	}
	return nil
}

// lanesOf returns the lanes that a kind runs with, as they were given or its own.
func lanesOf(name, given string) string {
	switch {
	case given != "":
		return given
	case kinds[name].fault == strikes:
		return "4"
	}
	return "1,4"
}

// of returns the options of a run of a kind, with what that kind has where nothing else was said.
func (o Options) of(name string) Options {
	o.Kind = name
	if o.Rounds == 0 {
		o.Rounds = kinds[name].rounds
	}
	if o.Clients == 0 {
		o.Clients = 48
		if kinds[name].pays || kinds[name].fault == strikes {
			o.Clients = 12
		}
	}
	return o
}

func kindsText() string {
	var b strings.Builder
	for _, name := range kindNames {
		fmt.Fprintf(&b, "%-13s %s\n", name, kinds[name].says)
	}
	return b.String()
}

// blind returns an error when a run that has to lose something has seen no loss.
func blind(err error, out io.Writer) error {
	var lost *lossError
	switch {
	case err == nil:
		return errors.New("the control run lost nothing: this program could not have seen a loss")
	case !errors.As(err, &lost):
		return fmt.Errorf("the control run failed, but not because something was lost: %w", err)
	}
	fmt.Fprintf(out, "the control run lost what it had acknowledged, as it has to: %.400v\n", err)
	return nil
}

// blindToWriters returns an error when a run in which a lane may have two writers has not seen that its log is broken.
func blindToWriters(err error, out io.Writer) error {
	switch {
	case err == nil:
		return errors.New("the control run broke nothing: this program could not have seen a lane with two writers")
	case !strings.Contains(err.Error(), brokenLog):
		return fmt.Errorf("the control run failed, but not because a log is broken: %w", err)
	}
	fmt.Fprintf(out, "the control run broke a log, as it has to: %.400v\n", err)
	return nil
}

// newNode makes what a kind torments.
func newNode(ctx context.Context, options Options, dir string) (node, error) {
	if kinds[options.Kind].fault == strikes {
		return newCluster(ctx, options, dir)
	}
	return newDevNode(options, dir)
}

// torment makes one run in a directory of its own, and removes that when all is well.
func torment(ctx context.Context, options Options, out io.Writer) error {
	dir, err := os.MkdirTemp(options.Dir, "weir-chaos-")
	if err != nil {
		return err
	}
	tormented, err := newNode(ctx, options, dir)
	if err == nil {
		err = run(ctx, options, tormented, dir, out)
	}
	switch {
	case options.Lossy:
		err = blind(err, out)
	case options.Unfenced:
		err = blindToWriters(err, out)
	}
	if err != nil {
		return fmt.Errorf("%s with %d lanes, seed %d: %w\nthe data directory, the acknowledgements and the failures are kept in %s", options.Kind, options.Lanes, options.Seed, err, dir)
	}
	if options.Keep {
		fmt.Fprintf(out, "the data directory, the acknowledgements and the failures are kept in %s\n", dir)
		return nil
	}
	return os.RemoveAll(dir)
}
