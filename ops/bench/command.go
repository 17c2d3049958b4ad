// Package bench measures Weir beside its yardsticks: an echo server that does nothing but RPC, and orderpeer, which is
// what a team would write instead. Figures of one machine mean little, ratios of one run a lot: contestants take turns, and
// every figure is the median of its runs.
package bench

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/ops/bench/echo"
)

// Options say what is measured and for how long.
type Options struct {
	// Weir is the binary that is measured; by default the one that runs.
	Weir string
	// Peers is the folder that holds orderpeer's source; without it these yardsticks are left out.
	Peers string
	// Only names the groups to run, of Groups, GatewayGroups and ClusterGroups; none means all of Groups.
	Only []string
	// Runs of each figure, of which the median counts.
	Runs int
	// Duration of one run, after Warmup.
	Duration, Warmup time.Duration
	// Connections that the load comes over.
	Connections int
	// Orders in the log whose rebuild, memory and start are measured, in the groups million and rebuild; redis takes so many at most.
	Orders int
	// Failovers of each kind in the group failover.
	Failovers int
	// NATSServer is the nats-server that clusters are built of; by default the one in the path.
	NATSServer string
	// NATSAway is how long NATS is away in the group gateway-nodes; 0 means 120 runs, which are ten minutes by default.
	NATSAway time.Duration
	// Dir is where data directories are made and removed; by default the system's for temporary files.
	Dir string
	// JSON prints the report as JSON, not as a table.
	JSON bool
}

// Groups are the names for Options.Only.
var Groups = []string{"place", "json", "get", "quarter", "lanes", "hot4", "campaign", "pay", "flash", "peers", "visible", "levels", "redis", "million", "rebuild"}

// GatewayGroups are the names for Options.Only of what is measured of the gateway, in front of upstreams that are told how to behave. They run
// only when they are named.
var GatewayGroups = []string{"gateway-cost", "gateway-faults", "gateway-overload", "gateway-goodput", "gateway-edge", "gateway-plans", "gateway-limits", "gateway-nodes", "gateway-failback"}

// ClusterGroups are the names for Options.Only of what is measured of nodes that share a log. They run only when they are named. failover is
// all that begin so.
var ClusterGroups = []string{"cluster", "hop", "failover", "failover-move", "failover-node", "failover-leader", "failover-stop"}

// DefaultOptions measure everything in about fifteen minutes.
func DefaultOptions() Options {
	return Options{Runs: 3, Duration: 5 * time.Second, Warmup: time.Second, Connections: 256, Orders: 1_000_000, Failovers: 50}
}

// Validate returns an error that says what is wrong with the options.
func (o *Options) Validate() error {
	switch {
	case o.Runs < 1 || o.Runs > 100:
		return fmt.Errorf("runs must be 1 to 100, not %d", o.Runs)
	case o.Duration < 100*time.Millisecond || o.Duration > 10*time.Minute:
		return fmt.Errorf("a run must take 100ms to 10m, not %v", o.Duration)
	case o.Connections < 1 || o.Connections > 10_000:
		return fmt.Errorf("connections must be 1 to 10000, not %d", o.Connections)
	case o.Orders < 1000 || o.Orders > 100_000_000:
		return fmt.Errorf("orders must be 1000 to 100000000, not %d", o.Orders)
	case o.Failovers < 1 || o.Failovers > 1000:
		return fmt.Errorf("failovers must be 1 to 1000, not %d", o.Failovers)
	}
	for _, name := range o.Only {
		if !slices.Contains(slices.Concat(Groups, GatewayGroups, ClusterGroups), name) {
			return fmt.Errorf("there is no group %q, only %v, %v and %v", name, Groups, GatewayGroups, ClusterGroups)
		}
	}
	return nil
}

// Command returns 'weir bench'. Its parent has the flag output, table or json. The server that it measures against is a hidden command of it, so that it is another process.
func Command() *cobra.Command {
	options := DefaultOptions()
	command := &cobra.Command{
		Use:   "bench",
		Short: "Measure Weir on this machine, beside its yardsticks",
		Long: "Starts Weir, an echo server and, where their source is, the programs that a team would write instead, puts load on them in turn\n" +
			"over loopback, and prints medians and ratios. Needs Linux; the yardsticks need PostgreSQL and Redis installed, and start their own.",
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if output := command.Flag("output"); output != nil {
				options.JSON = output.Value.String() == "json"
			}
			return Run(command.Context(), options, command.OutOrStdout(), command.ErrOrStderr())
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Weir, "weir", options.Weir, "binary to measure (default: this one)")
	flags.StringVar(&options.Peers, "peers", options.Peers, "folder with orderpeer's source; its yardsticks are left out without it")
	flags.StringSliceVar(&options.Only, "only", nil, fmt.Sprintf("groups to run, of %v (default: all), %v and %v", Groups, GatewayGroups, ClusterGroups))
	flags.IntVar(&options.Runs, "runs", options.Runs, "runs of each figure, of which the median counts")
	flags.DurationVar(&options.Duration, "duration", options.Duration, "length of a run")
	flags.DurationVar(&options.Warmup, "warmup", options.Warmup, "load before a run is counted")
	flags.IntVar(&options.Connections, "connections", options.Connections, "connections that the load comes over")
	flags.IntVar(&options.Orders, "orders", options.Orders, "orders in the log for the groups million and rebuild")
	flags.IntVar(&options.Failovers, "failovers", options.Failovers, "failovers of each kind in the group failover (half a minute for one of each)")
	flags.DurationVar(&options.NATSAway, "nats-away", options.NATSAway, "how long NATS is away in the group gateway-nodes (default: 120 runs, ten minutes)")
	flags.StringVar(&options.NATSServer, "nats-server", options.NATSServer, "nats-server for the groups of clusters (default: the one in the path)")
	flags.StringVar(&options.Dir, "dir", options.Dir, "where data directories are made and removed (default: the system's for temporary files)")
	command.AddCommand(
		echoCommand("echo", "Serve prebuilt replies", echo.Run),
		echoCommand("fake", "Serve prebuilt replies, and misbehave when told", echo.RunFake),
		proxyCommand(),
		natsCommand(),
	)
	return command
}

func proxyCommand() *cobra.Command {
	var listen, upstream string
	command := &cobra.Command{
		Use: "proxy", Short: "Pass calls on, without any policy", Hidden: true, Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			to, err := url.Parse(upstream)
			if err != nil {
				return err
			}
			return echo.RunProxy(command.Context(), listen, to)
		},
	}
	command.Flags().StringVar(&listen, "listen", "", "address to serve on")
	command.Flags().StringVar(&upstream, "upstream", "", "base URL to pass calls on to")
	return command
}

func echoCommand(use, short string, run func(context.Context, echo.Options) error) *cobra.Command {
	var listen, placeReply, getReply string
	command := &cobra.Command{
		Use: use, Short: short, Hidden: true, Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			placed, err := os.ReadFile(placeReply)
			if err != nil {
				return err
			}
			got, err := os.ReadFile(getReply)
			if err != nil {
				return err
			}
			runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1) // As many as a node has.
			return run(command.Context(), echo.Options{Listen: listen, PlaceReply: placed, GetReply: got})
		},
	}
	command.Flags().StringVar(&listen, "listen", "", "address to serve on")
	command.Flags().StringVar(&placeReply, "place-reply", "", "file with an encoded PlaceOrderResponse")
	command.Flags().StringVar(&getReply, "get-reply", "", "file with an encoded GetOrderResponse")
	return command
}

// Run measures, says on progress what it does, and prints the report to out. It blocks until everything that it started has ended.
func Run(ctx context.Context, options Options, out, progress io.Writer) error {
	if err := options.Validate(); err != nil {
		return err
	}
	return run(ctx, options, out, progress)
}
