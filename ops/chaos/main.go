// Command chaos kills 'weir dev' at random under load, again and again, and checks after every restart that nothing that it
// acknowledged is lost or changed: every order is there (I1), every request answers as before, byte for byte (I4), stock is
// conserved (I3), views equal what commands answered (I6), and the log verifies (I2).
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
	"syscall"
	"time"
)

// Options say how much is killed.
type Options struct {
	// Weir is the binary.
	Weir string
	// Rounds of load, kill, restart and check.
	Rounds int
	// Clients that order at the same time, each for its own user.
	Clients int
	// Lanes of the node.
	Lanes int
	// Seed of everything random here. When the node is killed depends on time too, so a seed repeats the pattern, not the instant.
	Seed uint64
	// LoadMax is the longest that a round's load lasts before the kill.
	LoadMax time.Duration
	// ServingMax is how long a restart may take to serve.
	ServingMax time.Duration
	// ViewWait is how long a view may take to show what was acknowledged, at most 10 s.
	ViewWait time.Duration
	// Dir is where the data directory and the record of acknowledgements are made; they are kept after a failure.
	Dir string
}

// Validate returns an error that says what is wrong with the options.
func (o *Options) Validate() error {
	switch {
	case o.Rounds < 1 || o.Rounds > 100_000:
		return fmt.Errorf("rounds must be 1 to 100000, not %d", o.Rounds)
	case o.Clients < 1 || o.Clients > 4096:
		return fmt.Errorf("clients must be 1 to 4096, not %d", o.Clients)
	case o.LoadMax < 10*time.Millisecond || o.LoadMax > time.Hour:
		return fmt.Errorf("load must last 10ms to 1h, not %v", o.LoadMax)
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
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.StringVar(&options.Weir, "weir", "./weir", "binary to torment")
	flags.IntVar(&options.Rounds, "rounds", 50, "rounds of load, kill -9, restart and check")
	flags.IntVar(&options.Clients, "clients", 48, "clients that order at the same time")
	flags.IntVar(&options.Lanes, "lanes", 1, "lanes of the node")
	flags.Uint64Var(&options.Seed, "seed", options.Seed, "seed of everything random here")
	flags.DurationVar(&options.LoadMax, "load", time.Second, "longest load before a kill")
	flags.DurationVar(&options.ServingMax, "serving-max", 5*time.Second, "longest restart that is no failure")
	flags.DurationVar(&options.ViewWait, "view-wait", 10*time.Second, "longest that a view may take to show what was acknowledged, at most 10s")
	flags.StringVar(&options.Dir, "dir", "", "where data is made (default: the system's folder for temporary files)")
	if err := flags.Parse(arguments); err != nil {
		return err
	}
	if err := options.Validate(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(options.Dir, "weir-chaos-")
	if err != nil {
		return err
	}
	node, err := newDevNode(options, dir)
	if err == nil {
		err = run(ctx, options, node, dir, out)
	}
	if err != nil {
		return fmt.Errorf("seed %d: %w\nthe data directory and the acknowledgements are kept in %s", options.Seed, err, dir)
	}
	return os.RemoveAll(dir)
}
