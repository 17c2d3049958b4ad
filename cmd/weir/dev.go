package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
)

const (
	defaultListen = "127.0.0.1:8080"
	// defaultGCPercent lets the heap grow to five times what lives on it before it is collected.
	defaultGCPercent = 400
	// stockWaitMax bounds --stock-wait: well within the time that a call may take.
	stockWaitMax = 10 * time.Second
	// devTokenTTL is how long the tokens that a dev node prints are good.
	devTokenTTL = 30 * 24 * time.Hour

	devCustomer = "alice"
	devOperator = "operator"
)

// logFlags say how a node logs.
type logFlags struct {
	level  string
	format string
}

// nodeFlags are the flags that dev and serve share.
type nodeFlags struct {
	options nodeOptions
	data    string
	lanes   uint32
	log     logFlags
}

func (f *nodeFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	addDataFlag(cmd, &f.data)
	flags.StringVar(&f.options.listen, "listen", defaultListen, "`HOST:PORT` to serve on; port 0 takes a free one")
	flags.Uint32Var(&f.lanes, "lanes", 0, "`NUMBER` of lanes of a new log, a power of two (0: 1 for dev, 8 for serve); a log keeps the number that it was made with")
	flags.DurationVar(&f.options.payWithin, "pay-within", lanes.PayWithinDefault, "how long an order that is not paid keeps its units")
	flags.DurationVar(&f.options.paymentGrace, "payment-grace", lanes.PaymentGraceDefault, "how much longer an order has whose payment is under way")
	flags.DurationVar(&f.options.stockWait, "stock-wait", lanes.StockWaitDefault, "how long an order waits for units that are on their way between lanes, at most 10s")
	flags.BoolVar(&f.options.publishEvents, "publish-events", false, "publish every public event on the NATS stream WEIR-EVENTS, for services")
	flags.StringVar(&f.options.debug, "debug-addr", "", "loopback `HOST:PORT` to serve Go profiles on (/debug/pprof/)")
	flags.StringVar(&f.options.metrics, "metrics-listen", "", "`HOST:PORT` to show metrics for Prometheus on (/metrics), to whoever asks; empty is nowhere")
	flags.IntVar(&f.options.gcPercent, "gc-percent", defaultGCPercent, "`PERCENT` that the Go heap may grow before it is collected; GOGC overrules it")
	flags.StringArrayVar(&f.options.log.acceptLoss, "accept-loss", nil, "give up what a lane's log has lost: `lane=3@40` keeps lane 3 up to commit 40; repeat it for more")
	f.options.payments.add(cmd)
	f.options.redis.add(cmd)
	f.options.checkpoints.add(cmd)
	f.options.sharing.add(cmd)
	flags.Int64Var(&f.options.pointsPerMajor, "points-per-major", domain.PointsPerMajorDefault, "`NUMBER` of points that a whole unit of paid money (1 EUR, 1 JPY) is worth; 0 awards none and takes none back")
	flags.StringVar(&f.log.level, "log-level", "info", "`LEVEL` of what is logged: debug, info, warn or error")
	flags.StringVar(&f.log.format, "log-format", "text", "`FORMAT` of the log on stderr: text or json")
	setting(flags, "listen", "lanes", "pay-within", "payment-grace", "stock-wait", "publish-events", "debug-addr", "metrics-listen", "gc-percent", "points-per-major", "log-level", "log-format")
}

// finish checks the flags and returns the options.
func (f *nodeFlags) finish(lanesNew uint32) (nodeOptions, error) {
	o := f.options
	o.data, o.lanes, o.lanesNew = dataDir(f.data), f.lanes, lanesNew
	if f.lanes != 0 {
		if err := topologyOf(f.lanes).Validate(); err != nil {
			return o, usagef("--lanes: %v", err)
		}
	}
	if o.payWithin < time.Second {
		return o, usagef("--pay-within must be at least 1s, not %s", o.payWithin)
	}
	if o.paymentGrace < time.Second {
		return o, usagef("--payment-grace must be at least 1s, not %s", o.paymentGrace)
	}
	if o.stockWait < time.Millisecond || o.stockWait > stockWaitMax {
		return o, usagef("--stock-wait must be 1ms to %s, not %s", stockWaitMax, o.stockWait)
	}
	if o.gcPercent < 10 {
		return o, usagef("--gc-percent must be at least 10, not %d", o.gcPercent)
	}
	if err := o.payments.finish(); err != nil {
		return o, err
	}
	if err := o.gateway.finish(); err != nil {
		return o, err
	}
	if err := o.redis.finish(); err != nil {
		return o, err
	}
	if err := o.checkpoints.finish(); err != nil {
		return o, err
	}
	if err := o.sharing.finish(); err != nil {
		return o, err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	o.owner = fmt.Sprintf("%s/%d", host, os.Getpid())
	return o, nil
}

// logger makes the node's logger. It writes to stderr: stdout is for what a person or a script reads.
func (p *process) logger(f logFlags) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.level)); err != nil {
		return nil, usagef("--log-level %q: want debug, info, warn or error", f.level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch f.format {
	case "text":
		return slog.New(slog.NewTextHandler(p.stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(p.stderr, options)), nil
	}
	return nil, usagef("--log-format %q: want text or json", f.format)
}

func (p *process) devCommand() *cobra.Command {
	var (
		f    nodeFlags
		demo bool
	)
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole node in this process, for development",
		Long: `Run a whole node in this one process: it embeds the server that keeps the log, and needs no other. What it
acknowledges is on disk, as in production: killing it loses nothing.

It makes the data directory and the key for tokens when they are not there, prints where it listens, a customer's and an
operator's token, and a ready command that places an order. With --demo it stocks a small catalogue, once.

Orders are paid through a sandbox payment provider that it runs on a second port: no real money, and faults on
demand ('weir sandbox-pay --help' lists the payment methods). Its books are in the data directory. To use another
provider, give --payment-provider and what that one needs; with an empty --sandbox-listen there is none.

Clients meet the gateway first, on --listen, as in production ('weir gateway --help'); it calls the node's API within
this process. The API alone is on --api-listen, by default the next port. With --no-gateway it is on --listen, and there
is no gateway. A --gateway-policy may have waiting rooms, a board and calls that are kept for later: what that needs, a
secret and tokens, the node has in its data directory.

With --nats-listen other programs of this machine reach its NATS server, for example to read the stream WEIR-EVENTS
(--publish-events). There is no password: whoever reaches that port may read and write the log itself, so it has to be
on loopback, on a machine whose users you trust.

Ctrl-c or SIGTERM stops it cleanly: it finishes the requests that it has taken. A second one stops it at once.

The API is plain HTTP and the tokens that it prints are an operator's too: leave --listen on loopback.`,
		Example: `  weir dev --demo
  weir dev --data /tmp/shop --listen 127.0.0.1:0 --lanes 4
  weir dev --gateway-policy policy.yaml
  weir dev --publish-events --nats-listen 127.0.0.1:4222
  WEIR_PAY_WITHIN=1m weir dev --log-format json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := f.finish(lanesOfDev)
			if err != nil {
				return err
			}
			return p.runNode(cmd, options, f.log, func(ctx context.Context, n *node) error {
				return p.announceDev(ctx, cmd, n, demo)
			})
		},
	}
	f.add(cmd)
	f.options.payments.addSandbox(cmd)
	f.options.gateway.add(cmd)
	cmd.Flags().BoolVar(&demo, "demo", false, "stock a small catalogue; again changes nothing")
	addNATSListenFlag(cmd, &f.options.log.listen)
	setting(cmd.Flags(), "demo")
	return cmd
}

func (p *process) serveCommand() *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a node in production: one of a cluster, or against a NATS server",
		Long: `Run a node whose log is on several machines. The node keeps its views, its witness and its keys in the data directory.

With --cluster-name the node runs a NATS server of its own, which makes a cluster with those of the other --peers: three
machines need nothing else. The servers speak TLS to each other and prove that they know the secret of
--cluster-secret-file; 'weir cluster keys' makes both, once. They fsync before they acknowledge, and a majority of them
has every order before it is acknowledged. The machines may be started in any order; a node says which of them it waits
for. With --nats-listen programs that know the secret reach the server as well (--nats, --cluster-secret-file).

With --nats the log is kept by NATS servers with JetStream that you run. They must fsync before they acknowledge
(sync_interval: always). A node refuses to start on a server that does not, or that cannot be asked, unless
--allow-lossy-log is given: give the servers' monitoring addresses with --nats-monitor, or credentials of the system
account. It makes the streams when there are none.

Tokens are verified with the public keys in --jwt-keys (PEM or JWKS), or, without it, with the key of the data
directory, which 'weir token' makes tokens with.

Nodes of one log share two files of the data directory; copy both to a new node before its first start, with mode 0600:

  token.key    signs and verifies tokens: a token of one node is then good on every other
  master.key   wraps the users' keys, which notes are sealed with; once there are keys, a node makes no other one

Orders are paid through the providers of --payment-provider. Have each send its webhooks to /webhooks/payments/NAME of
the node, and give the secret that it signs them with; without it payments are settled by asking, and somewhat later.

Nodes of one log share its lanes: each lane is decided by one of them, which holds its lease (--lease-ttl), and
followed by the others. A node that comes takes its share; one that is killed is replaced within the lease's time and a
second. On SIGTERM a node hands its lanes over before it stops. The fence in the log, not the lease, keeps two nodes
from ever deciding one lane.

Each node keeps views of all lanes and answers reads from them. With --follow none it keeps none: it decides lanes and
takes commands as any other, and hands what reads views on to a node that keeps some, at the address that this one
advertises. Have two nodes keep views, so that one may fail: while none does, orders are taken and reads are refused
(VIEWS_UNAVAILABLE). Views that are in the data directory stay as they are, and go on from there once it follows again.`,
		Example: `  weir serve --cluster-name prod --peers host1,host2,host3 --cluster-secret-file /etc/weir/secret \
    --cluster-tls-cert /etc/weir/host1.pem --cluster-tls-key /etc/weir/host1.key --cluster-tls-ca /etc/weir/ca.pem --data /var/lib/weir
  weir serve --nats nats://127.0.0.1:4222 --nats-monitor http://127.0.0.1:8222 --data /var/lib/weir
  weir serve --config /etc/weir.yaml --jwt-keys /etc/weir/jwks.json --jwt-issuer https://id.example`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := f.finish(lanesOfServe)
			if err != nil {
				return err
			}
			if err := options.finishServe(); err != nil {
				return err
			}
			return p.runNode(cmd, options, f.log, func(_ context.Context, n *node) error {
				return p.announceServe(cmd, n)
			})
		},
	}
	f.add(cmd)
	flags := cmd.Flags()
	f.options.sharing.addFollow(cmd)
	addNATSFlag(cmd, &f.options.log.nats)
	f.options.log.access.add(cmd)
	f.options.log.access.addSystem(cmd)
	f.options.log.membership.add(cmd)
	addNATSListenFlag(cmd, &f.options.log.listen)
	flags.StringVar(&f.options.log.monitors, "nats-monitor", "", "monitoring `URL` of each server (http://HOST:8222), separated by commas: to see that they fsync")
	flags.IntVar(&f.options.log.replicas, "replicas", 0, "`NUMBER` of servers that keep each commit, 1 or 3, of a new log; a log with fewer is refused (0: 3 in a cluster of Weir's own, else 1, and what is there)")
	flags.BoolVar(&f.options.log.allowLossy, "allow-lossy-log", false, "start also on a server that may lose what it acknowledged in a power cut")
	flags.StringVar(&f.options.keys.file, "jwt-keys", "", "`FILE` with the public keys of tokens, PEM or JWKS; a change of it is taken in while the process runs")
	flags.StringVar(&f.options.keys.issuer, "jwt-issuer", identity.DefaultIssuer, "issuer that a token must name")
	flags.StringVar(&f.options.keys.audience, "jwt-audience", identity.DefaultAudience, "audience that a token must name")
	setting(flags, "nats-monitor", "replicas", "allow-lossy-log", "jwt-keys", "jwt-issuer", "jwt-audience")
	return cmd
}

// addNATSListenFlag puts --nats-listen on a command that runs a NATS server of its own.
func addNATSListenFlag(cmd *cobra.Command, address *string) {
	cmd.Flags().StringVar(address, "nats-listen", "", "`HOST:PORT` on which other programs reach this node's own NATS server; port 0 takes a free one, empty is none")
	setting(cmd.Flags(), "nats-listen")
}

// finishServe checks the options that say where the log of a node in production is.
func (o *nodeOptions) finishServe() error {
	log := &o.log
	if err := log.membership.finish(log.access.secretFile); err != nil {
		return err
	}
	clustered := log.membership.member != nil
	switch {
	case clustered && log.nats != "":
		return usagef("--nats and --cluster-name exclude each other").then("give --nats for servers that you run, or --cluster-name for Weir's own")
	case !clustered && log.nats == "":
		return usagef("weir serve needs --cluster-name or --nats").then("give the cluster of Weir's own servers, or the URL of a server; or use 'weir dev', which needs no other")
	case !clustered && log.listen != "":
		return usagef("--nats-listen is for a server of Weir's own, and with --nats there is none").then("leave it out, or give --cluster-name")
	case log.replicas != 0 && log.replicas != 1 && log.replicas != replicasOfCluster:
		return usagef("--replicas must be 1 or %d, not %d", replicasOfCluster, log.replicas)
	}
	log.replicasMin = log.replicas
	if log.replicas == 0 {
		log.replicas = 1
		if clustered {
			log.replicas = replicasOfCluster
		}
	}
	return log.membership.checkSharedKeys(o.data, o.keys.file == "")
}

// runNode opens a node, serves until it is told to stop, and closes it.
func (p *process) runNode(cmd *cobra.Command, options nodeOptions, f logFlags, ready func(context.Context, *node) error) error {
	logger, err := p.logger(f)
	if err != nil {
		return err
	}
	options.log.passwordShown = p.showsPassword()
	n, err := openNode(cmd.Context(), options, logger)
	if err != nil {
		return err
	}
	err = n.run(cmd.Context(), func(ctx context.Context) error { return ready(ctx, n) })
	err = errors.Join(err, n.close())
	if err == nil {
		logger.Info("stopped")
	}
	return err
}

// devLines is what a dev node prints with -o json.
type devLines struct {
	API string `json:"api"`
	// Node is where the node's own API listens, behind the gateway.
	Node  string `json:"node,omitempty"`
	Data  string `json:"data"`
	Lanes uint32 `json:"lanes"`
	Debug string `json:"debug,omitempty"`
	// Metrics is where Prometheus finds the node's metrics.
	Metrics string `json:"metrics,omitempty"`
	// NATS is where other programs reach the embedded server.
	NATS string `json:"nats,omitempty"`
	// Sandbox is where the sandbox payment provider of this process listens.
	Sandbox  string `json:"sandbox,omitempty"`
	Customer struct {
		User  string `json:"user"`
		Token string `json:"token"`
	} `json:"customer"`
	Operator struct {
		User  string `json:"user"`
		Token string `json:"token"`
	} `json:"operator"`
}

func (p *process) announceDev(ctx context.Context, cmd *cobra.Command, n *node, demo bool) error {
	customer, err := identity.Mint(n.signing, devCustomer, 0, p.now(), devTokenTTL)
	if err != nil {
		return err
	}
	operator, err := identity.Mint(n.signing, devOperator, identity.ScopeOperator, p.now(), devTokenTTL)
	if err != nil {
		return err
	}
	if demo {
		if err := stockDemo(ctx, n.record.API, operator); err != nil {
			return err
		}
	}
	lines := devLines{API: n.record.API, Data: string(n.options.data), Lanes: n.log.topology.Lanes}
	if n.debug != nil {
		lines.Debug = baseURL(n.debug.Addr()) + "/debug/pprof/"
	}
	if n.metrics != nil {
		lines.Metrics = baseURL(n.metrics.Addr()) + "/metrics"
	}
	if n.front != nil {
		lines.Node = baseURL(n.listener.Addr())
	}
	lines.NATS = n.log.embedded.ClientURL()
	if n.sandbox != nil {
		lines.Sandbox = baseURL(n.sandboxListener.Addr())
	}
	lines.Customer.User, lines.Customer.Token = devCustomer, customer
	lines.Operator.User, lines.Operator.Token = devOperator, operator
	if p.json(cmd) {
		return writeJSON(p.stdout, lines)
	}
	_, err = io.WriteString(p.stdout, p.devText(n, lines, demo))
	return err
}

// devText is what a person reads when the node is ready, and copies from.
func (p *process) devText(n *node, l devLines, demo bool) string {
	paint := p.painterFor(p.stdout)
	weir := commandName()
	var b strings.Builder
	fmt.Fprintf(&b, "%s at %s  (%s, data in %s)\n", paint.bold("Weir is ready"), l.API, lanesText(int(l.Lanes)), l.Data)
	if l.Node != "" {
		fmt.Fprintf(&b, "That is the gateway; the node alone is at %s\n", l.Node)
	}
	if l.Debug != "" {
		fmt.Fprintf(&b, "Profiles at %s\n", l.Debug)
	}
	if l.Metrics != "" {
		fmt.Fprintf(&b, "Metrics at %s\n", l.Metrics)
	}
	if l.NATS != "" {
		fmt.Fprintf(&b, "NATS at %s  (no password: whoever reaches it may read and write the log)\n", l.NATS)
	}
	if l.Sandbox != "" {
		fmt.Fprintf(&b, "Sandbox payments at %s  (no real money; methods such as tok_ok: %s sandbox-pay --help)\n", l.Sandbox, weir)
	}
	fmt.Fprintf(&b, "\nTokens, good for %d days (more: %s token --data %s --user USER):\n\n", int(devTokenTTL.Hours()/24), weir, l.Data)
	fmt.Fprintf(&b, "  export WEIR_TOKEN=%s   %s\n", l.Customer.Token, paint.dim("# customer "+l.Customer.User))
	fmt.Fprintf(&b, "  export OPERATOR=%s   %s\n", l.Operator.Token, paint.dim("# operator"))
	sku := "tea-sencha"
	if !demo {
		fmt.Fprintf(&b, "\nStock a product:\n\n")
		fmt.Fprintf(&b, "  %s product put --addr %s --token \"$OPERATOR\" --sku %s --title \"Sencha, 100 g\" --price \"12.90 EUR\"\n", weir, l.API, sku)
		fmt.Fprintf(&b, "  %s stock receive --addr %s --token \"$OPERATOR\" --sku %s --quantity 100\n", weir, l.API, sku)
	}
	fmt.Fprintf(&b, "\nPlace an order (the same requestId again answers with the same order):\n\n")
	fmt.Fprintf(&b, "  curl -s %s/weir.order.v1.OrderService/PlaceOrder \\\n", l.API)
	fmt.Fprintf(&b, "    -H 'Content-Type: application/json' -H \"Authorization: Bearer %s\" \\\n", l.Customer.Token)
	fmt.Fprintf(&b, "    -d '{\"requestId\":\"try-%s\",\"items\":[{\"sku\":\"%s\",\"quantity\":2}]}'\n", p.now().UTC().Format("20060102-150405"), sku)
	fmt.Fprintf(&b, "\nor  %s order place %s=2 --addr %s\n", weir, sku, l.API)
	fmt.Fprintf(&b, "\n%s\n", paint.dim("Ctrl-c stops it; what it acknowledged is on disk."))
	return b.String()
}

func (p *process) announceServe(cmd *cobra.Command, n *node) error {
	if p.json(cmd) {
		lines := map[string]any{"api": n.record.API, "data": string(n.options.data), "lanes": n.log.topology.Lanes}
		if n.log.embedded != nil {
			lines["server"], lines["nats"] = n.options.log.membership.serverName, n.log.embedded.ClientURL()
		}
		return writeJSON(p.stdout, lines)
	}
	_, err := fmt.Fprintf(p.stdout, "Weir is ready at %s  (%s, data in %s, log on %s)\n",
		n.record.API, lanesText(int(n.log.topology.Lanes)), n.options.data, n.log.server)
	return err
}

// commandName is how this program was called: so that what is printed can be copied.
func commandName() string {
	if strings.Contains(os.Args[0], "go-build") {
		return "go run ./cmd/weir"
	}
	return os.Args[0]
}
