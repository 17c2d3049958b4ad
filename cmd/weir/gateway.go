package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/failback"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/plan"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/presence"
	"github.com/weirhq/weir/gateway/registry"
	"github.com/weirhq/weir/gateway/replicas"
	"github.com/weirhq/weir/gateway/room"
)

const (
	// defaultOperatorListen is where a gateway shows its state.
	defaultOperatorListen = "127.0.0.1:9080"
	// localNodeID names the node of a dev process to its gateway.
	localNodeID = "local"
	// devPages are the web pages that may call a dev node: those that are served by this machine.
	devPages = "http://localhost:*"
	// devPagesByAddress are the same, by the address that their server prints as often.
	devPagesByAddress = "http://127.0.0.1:*"
)

// gatewayOptions say how a dev node's gateway is.
type gatewayOptions struct {
	// on is whether there is one.
	on  bool
	off bool
	// behind is where the API listens that the gateway calls; empty means the port after the gateway's.
	behind string
	// policyFile is the gateway's policy; empty means policy.
	policyFile string
	policy     policy.Policy
}

func (o *gatewayOptions) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	o.on, o.policy = true, devPolicy()
	flags.BoolVar(&o.off, "no-gateway", false, "serve the node's API alone, with no gateway in front of it")
	flags.StringVar(&o.behind, "api-listen", "", "`HOST:PORT` of the node's own API, behind the gateway (default: the port after --listen's)")
	flags.StringVar(&o.policyFile, "gateway-policy", "", "YAML `FILE` with the gateway's policy; see 'weir gateway --help'")
	setting(flags, "no-gateway", "api-listen", "gateway-policy")
}

func (o *gatewayOptions) finish() error {
	if o.off {
		o.on = false
		switch {
		case o.behind != "":
			return usagef("--api-listen is the address behind the gateway, and --no-gateway says that there is none").then("give the address with --listen")
		case o.policyFile != "":
			return usagef("--gateway-policy has no gateway to be the policy of").then("leave out --no-gateway")
		}
	}
	return nil
}

// devPlaces is concurrency.min in the policy of a dev node's gateway: so many calls are let through, however long they take. The node bounds its queue
// itself, and shares the processors with its gateway and, as a rule, with whoever calls: that calls take long says little there of whether fewer of them
// would be quicker. Without it, of callers that ask again at once, whatever they are told, one in 25 is served for seconds after a jam, as their asking
// takes what the node would need: see TestAClosedLoopOnSharedProcessors in gateway/limit. Elsewhere who operates the nodes decides, in the policy.
const devPlaces = 1024

// devPolicy is the policy of a dev node's gateway that has no file.
func devPolicy() policy.Policy {
	return policy.Policy{
		CORS:        policy.CORS{Origins: []string{devPages, devPagesByAddress}},
		Concurrency: limit.ConcurrencyConfig{Min: devPlaces, Initial: devPlaces},
	}
}

// listenBehind opens the address of the API, once the gateway has that of --listen.
func (n *node) listenBehind(ctx context.Context) (err error) {
	public := n.listener
	n.front = &front{listener: public, logger: n.logger}
	if n.options.gateway.behind != "" {
		n.listener, err = n.listen(ctx, n.options.gateway.behind, "--api-listen")
		return err
	}
	host, port, err := net.SplitHostPort(public.Addr().String())
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	// Who gave no address has no use for one in particular: if the next port is taken, or any would do, it is a free one.
	next := net.JoinHostPort(host, strconv.Itoa(number+1))
	if _, wanted, _ := net.SplitHostPort(n.options.listen); wanted != "0" && number < 65535 {
		if n.listener, err = n.listen(ctx, next, "--api-listen"); err == nil {
			return nil
		}
		n.logger.Info("the port after the gateway's is taken: the node's own API is on a free one", "taken", next)
	}
	n.listener, err = n.listen(ctx, net.JoinHostPort(host, "0"), "--api-listen")
	return err
}

// openGateway makes the gateway in front of the API.
func (n *node) openGateway(context.Context) error {
	if n.front == nil {
		return nil
	}
	decided := n.options.gateway.policy
	if file := n.options.gateway.policyFile; file != "" {
		opened, read, err := openPolicy(file)
		if err != nil {
			return err
		}
		n.front.file, decided = opened, read
	}
	plans, err := n.front.followPlans(n.log.nc, filepath.Join(string(n.options.data), plansFileName), nil)
	if err != nil {
		return err
	}
	options := gateway.Options{Local: n.server.Handler, LocalID: localNodeID, Plans: plans, Policy: decided, Logger: n.logger}
	if err := n.openDevKeeping(&options); err != nil {
		return err
	}
	g, err := gateway.New(options)
	if err != nil {
		return (&gatewayFlags{policyFile: n.options.gateway.policyFile}).explain(err)
	}
	n.later(g.Close)
	n.front.gateway, n.front.server = g, gateway.NewServer(g)
	// Its watches are the node's. They end when the node is told to stop, and both are told at once.
	n.front.server.RegisterOnShutdown(n.endWatches)
	return nil
}

// publicURL is where clients are to call.
func (n *node) publicURL() string {
	if n.front != nil {
		return baseURL(n.front.listener.Addr())
	}
	return baseURL(n.listener.Addr())
}

// openPolicy reads a gateway's policy, and says well what is wrong with it.
func openPolicy(path string) (*policy.File, policy.Policy, error) {
	file, decided, err := policy.Open(path)
	var unknown *policy.UnknownKeyError
	switch {
	case err == nil:
		return file, decided, nil
	case errors.As(err, &unknown):
		return nil, decided, usagef("%v%s", err, didYouMean(unknown.Key, unknown.Known)).then("the keys here are: %s", strings.Join(unknown.Known, ", "))
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return nil, decided, usagef("%v", err).then("check the path")
	}
	return nil, decided, usagef("%v", err).then("correct it, and see: weir gateway check %s", path)
}

// A front is a gateway with what it listens on.
type front struct {
	gateway  *gateway.Gateway
	server   *http.Server
	listener net.Listener
	// secure is whether clients come over TLS. The server's own configuration is its to change while it serves.
	secure bool
	// operator serves its state, nil for none.
	operator *operatorEnd
	// file is its policy, nil when there is none to follow.
	file   *policy.File
	logger *slog.Logger
	// nats is where the nodes keep the registry, nil for none.
	nats *nats.Conn
	// behind runs what the gateway asks: the registry of nodes, the rates that all gateways share.
	behind []func(context.Context) error
	// closers undo the opening, newest first.
	closers []func() error
}

// close undoes the opening.
func (f *front) close() error {
	var errs []error
	for _, undo := range slices.Backward(f.closers) {
		errs = append(errs, undo())
	}
	return errors.Join(errs...)
}

// operatorEnd is where operators look.
type operatorEnd struct {
	server   *http.Server
	listener net.Listener
}

// run serves until stop, and follows the policy until ctx ends.
func (f *front) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	ctx, cancel := context.WithCancel(ctx)
	group.Go(func() error {
		defer cancel() // The rest ends with it.
		bounded := gateway.Bounded(f.gateway, f.listener)
		if f.secure {
			return ignoreClosed(f.server.ServeTLS(bounded, "", ""))
		}
		return ignoreClosed(f.server.Serve(bounded))
	})
	if f.operator != nil {
		group.Go(func() error { return ignoreClosed(f.operator.server.Serve(f.operator.listener)) })
	}
	for _, run := range append(f.behind, f.gateway.Run) {
		group.Go(func() error { return run(ctx) })
	}
	if f.file != nil {
		group.Go(func() error { return f.file.Follow(ctx, f.logger, f.gateway.Apply) })
	}
	return group.Wait()
}

// stop finishes the calls that were taken, and makes run return.
func (f *front) stop(ctx context.Context) error {
	err := shutDown(ctx, f.server)
	if f.operator != nil {
		err = errors.Join(err, f.operator.server.Close())
	}
	return err
}

// gatewayFlags are the flags of 'weir gateway'.
type gatewayFlags struct {
	upstreams []string
	nats      string
	access    natsAccess
	redis     redisOptions
	keys      keyOptions
	// tokenKeyDir has the nodes' own key of tokens.
	tokenKeyDir string
	// secretFile has what all gateways share.
	secretFile       string
	failbackReplicas int
	operatorToken    string
	nodesFile        string
	listen           string
	operator         string
	policyFile       string
	certificate      string
	key              string
	log              logFlags
}

func (p *process) gatewayCommand() *cobra.Command {
	var f gatewayFlags
	cmd := &cobra.Command{
		Use:   "gateway --upstream URL | --nats URL",
		Short: "Stand in front of nodes: pass calls on, bound them, say no in time",
		Long: `Stand in front of one node or several. Connect, gRPC and gRPC-Web pass as they are, over HTTP/1.1 and HTTP/2, with TLS
or without; so do the payment providers' webhooks. What a client may cost is bounded, deadlines are kept, and a node
that dies in the middle of an answer costs its callers a clean error that says whether to come again.

Nodes are named with --upstream, or found: with --nats the gateway follows the list that they keep there, and each call
goes to the node that decides its user's lane. The list is kept while NATS is away, and with --nodes-file also on disk,
for a start without NATS. With --redis, rates that are to hold for all gateways together do; while Redis is away, each
gateway takes its part of them.

A call is repeated at another node only where that has the effect of doing it once (reads, and what carries a request
id), and only within a budget. Nodes that fail, crawl or hang are left alone for a while.

Whose call it is, the gateway reads from the token without verifying it, and uses it for nothing but where the call goes
and whose rate it counts against: the node verifies. With --jwt-keys the gateway verifies too, and a forged name is
nobody's; so it does with --token-key-dir, where nodes use a key of their own.

With --operator-token-file the gateway looks at what the policy's board names, and refuses itself what is sold out
(edge.sold_out). A campaign that the policy names under room has a waiting room: users enter it, wait for their turn,
and order with a pass. That needs tokens that are verified, and --gateway-secret-file, the same for all gateways. To
replace that secret, add a line with the new one and 'from TIME' to the file, and 'until TIME' to the line of the old.

A method whose fault mode is failback has its calls kept on NATS when no node does them, and made again until one does.
That needs --nats, tokens that are verified, and --gateway-secret-file, which seals what is kept: make it once for all
gateways with 'openssl rand -hex 32', mode 0600. See 'weir gateway failback'.

With --nats the gateway also goes by the plans that are applied there, from the next call on, and by the last ones that
it knew while NATS is away; with --nodes-file they are kept beside it, in plans.json. Answers name them in the header
Weir-Plan. See 'weir plan'.

What an operator decides is in one YAML file, --policy. What is not in it has a default that works, a key that is not
known is refused with its line, and a change is used within two seconds; a file that is wrong is logged, and the last
good one stays. 'weir gateway check FILE' says whether a file is good.

On --operator-listen it shows its metrics (/metrics, for Prometheus) and its state (/status, which 'weir gateway top'
shows). There is no password: leave it on loopback, or on a network of operators.

Ctrl-c or SIGTERM stops it cleanly: it finishes the calls that it has taken. A second one stops it at once.`,
		Example: `  weir gateway --upstream http://127.0.0.1:8081
  weir gateway --upstream http://10.0.0.4:8080 --upstream http://10.0.0.5:8080 --policy /etc/weir/gateway.yaml
  weir gateway --nats nats://10.0.0.1:4222 --nodes-file /var/lib/weir/nodes --redis redis://10.0.0.9:6379
  weir gateway --upstream http://10.0.0.4:8080 --listen 0.0.0.0:443 --tls-cert cert.pem --tls-key key.pem`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := p.logger(f.log)
			if err != nil {
				return err
			}
			front, err := f.open(cmd.Context(), logger)
			if err != nil {
				return err
			}
			return p.runGateway(cmd, front)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.upstreams, "upstream", nil, "base `URL` of a node's API; repeat it for more")
	addNATSFlag(cmd, &f.nats)
	f.access.addGateway(cmd)
	flags.StringVar(&f.nodesFile, "nodes-file", "", "`FILE` that keeps the list of nodes over a restart; empty keeps it in memory")
	f.redis.add(cmd)
	flags.StringVar(&f.keys.file, "jwt-keys", "", "`FILE` with the public keys of tokens, PEM or JWKS; a change of it is taken in while the process runs")
	flags.StringVar(&f.keys.issuer, "jwt-issuer", identity.DefaultIssuer, "issuer that a token must name")
	flags.StringVar(&f.keys.audience, "jwt-audience", identity.DefaultAudience, "audience that a token must name")
	flags.StringVar(&f.tokenKeyDir, "token-key-dir", "", "`DIRECTORY` with a copy of the nodes' token.key, in place of --jwt-keys")
	addGatewaySecretFlag(cmd, &f.secretFile)
	flags.StringVar(&f.operatorToken, "operator-token-file", "", "`FILE` with a token of an operator, which the board asks the nodes with; read anew when it is old")
	flags.IntVar(&f.failbackReplicas, "failback-replicas", 0, "`NUMBER` of servers that keep the requests which are kept for later, 1, 3 or 5, when their stream is made (0: as many as keep the list of nodes, also later)")
	flags.StringVar(&f.listen, "listen", defaultListen, "`HOST:PORT` to serve on; port 0 takes a free one")
	flags.StringVar(&f.operator, "operator-listen", defaultOperatorListen, "`HOST:PORT` to show metrics and state on; empty is nowhere")
	flags.StringVar(&f.policyFile, "policy", "", "YAML `FILE` with the policy")
	flags.StringVar(&f.certificate, "tls-cert", "", "`FILE` with the certificate chain, PEM: serve TLS")
	flags.StringVar(&f.key, "tls-key", "", "`FILE` with its key, PEM")
	flags.StringVar(&f.log.level, "log-level", "info", "`LEVEL` of what is logged: debug, info, warn or error")
	flags.StringVar(&f.log.format, "log-format", "text", "`FORMAT` of the log on stderr: text or json")
	setting(flags, "nodes-file", "jwt-keys", "jwt-issuer", "jwt-audience", "token-key-dir", "failback-replicas", "operator-token-file", "listen", "operator-listen", "policy", "tls-cert", "tls-key", "log-level", "log-format")
	cmd.AddCommand(p.gatewayCheckCommand(), p.gatewayTopCommand(), p.gatewayFailbackCommand())
	return cmd
}

// open makes the gateway and opens its addresses. It starts nothing. On an error nothing is left open.
func (f *gatewayFlags) open(ctx context.Context, logger *slog.Logger) (_ *front, err error) {
	switch {
	case len(f.upstreams) == 0 && f.nats == "":
		return nil, usagef("weir gateway needs --upstream or --nats").then("give the URL of a node: --upstream http://127.0.0.1:8081")
	case len(f.upstreams) > 0 && f.nats != "":
		return nil, usagef("--upstream and --nats both say where the nodes are").then("leave one out")
	case (f.certificate == "") != (f.key == ""):
		return nil, usagef("--tls-cert and --tls-key go together").then("give both, or neither")
	}
	end := &front{logger: logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, end.close())
		}
	}()
	options := gateway.Options{Logger: logger}
	if f.policyFile != "" {
		if end.file, options.Policy, err = openPolicy(f.policyFile); err != nil {
			return nil, err
		}
	}
	for _, open := range []func(*front, *gateway.Options) error{f.openNodes, f.openGlobals, f.openSubject, f.openKeeping} {
		if err := open(end, &options); err != nil {
			return nil, err
		}
	}
	if end.gateway, err = gateway.New(options); err != nil {
		return nil, f.explain(err)
	}
	end.closers = append(end.closers, end.gateway.Close)
	end.server = gateway.NewServer(end.gateway)
	if f.certificate != "" {
		pair, err := tls.LoadX509KeyPair(f.certificate, f.key)
		if err != nil {
			return nil, usagef("the TLS certificate: %v", err).then("give --tls-cert and --tls-key as PEM files that belong together")
		}
		end.secure = true
		end.server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	}
	if end.listener, err = end.listen(ctx, f.listen, "--listen"); err != nil {
		return nil, err
	}
	if f.operator != "" {
		listener, err := end.listen(ctx, f.operator, "--operator-listen")
		if err != nil {
			return nil, err
		}
		end.operator = &operatorEnd{
			listener: listener,
			server:   &http.Server{Handler: end.gateway.OperatorHandler(), ReadHeaderTimeout: 5 * time.Second},
		}
	}
	return end, nil
}

// listen opens one address, and closes it with the rest.
func (f *front) listen(ctx context.Context, address, flag string) (net.Listener, error) {
	listener, err := listenOn(ctx, address, flag)
	if err != nil {
		return nil, err
	}
	f.closers = append(f.closers, func() error {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return listener, nil
}

// openNodes says where the nodes are: those that are named, or the registry that they keep on NATS.
func (f *gatewayFlags) openNodes(end *front, options *gateway.Options) error {
	if f.nats == "" {
		for _, text := range f.upstreams {
			base, err := url.Parse(text)
			if err != nil {
				return usagef("--upstream %q is no URL", text).then("give it as http://HOST:PORT")
			}
			options.Upstreams = append(options.Upstreams, base)
		}
		return nil
	}
	// A gateway that starts while NATS is away has the list on its disk, if any, and gets the newer one when NATS is back.
	connection, err := f.access.stay(f.nats, "weir gateway", nats.RetryOnFailedConnect(true))
	if err != nil {
		return err
	}
	end.closers = append(end.closers, func() error { connection.Close(); return nil })
	end.nats = connection
	config := registry.Config{CacheFile: f.nodesFile}
	if options.Registry, err = registry.New(connection, config, end.logger); err != nil {
		return err
	}
	end.behind = append(end.behind, options.Registry.Run)
	js, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	options.RoomUses = room.NewNATSUses(js) // Unless there is Redis.
	end.behind = append(end.behind, replicas.NewRaiser(js, f.keptStreams(), end.logger).Run)
	options.Presence = presence.New(connection, gatewayID(), end.logger)
	end.behind = append(end.behind, options.Presence.Run)
	plansFile := ""
	if f.nodesFile != "" {
		plansFile = filepath.Join(filepath.Dir(f.nodesFile), plansFileName)
	}
	options.Plans, err = end.followPlans(connection, plansFile, func() int {
		if options.Globals == nil {
			return 1
		}
		return options.Globals.Gateways()
	})
	return err
}

// keptStreams are those that gateways keep on NATS. Who says how many servers are to keep the requests that are made later is taken at his word.
func (f *gatewayFlags) keptStreams() []replicas.Stream {
	streams := []replicas.Stream{{Name: plan.BucketStream}, {Name: plan.AuditStream}, {Name: room.UsesStream, ReadFromLeader: true}}
	if f.failbackReplicas == 0 {
		streams = append(streams, replicas.Stream{Name: failback.Stream}, replicas.Stream{Name: failback.ParkedStream})
	}
	return streams
}

// openGlobals makes the rates that all gateways share.
func (f *gatewayFlags) openGlobals(end *front, options *gateway.Options) error {
	if err := f.redis.finish(); err != nil {
		return err
	}
	parsed := f.redis.parsed
	if parsed == nil {
		return nil
	}
	client := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: parsed.Addresses, Username: parsed.Username, Password: parsed.Password, TLSConfig: parsed.TLS, ClientName: "weir-gateway",
	})
	end.closers = append(end.closers, client.Close)
	var err error
	options.Globals, err = limit.NewGlobals(limit.GlobalConfig{Prefix: parsed.Prefix}, gatewayID(), client, end.logger)
	if err != nil {
		return usagef("%v", err)
	}
	end.behind = append(end.behind, options.Globals.Run)
	options.RoomUses = room.NewRedisUses(client, parsed.Prefix)
	return nil
}

// gatewayLines is what a gateway prints with -o json.
type gatewayLines struct {
	Gateway   string   `json:"gateway"`
	Operator  string   `json:"operator,omitempty"`
	Upstreams []string `json:"upstreams"`
}

// runGateway serves until ctx ends.
func (p *process) runGateway(cmd *cobra.Command, f *front) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	background := context.WithoutCancel(ctx)
	group := &errgroup.Group{}
	group.Go(func() error {
		defer cancel()
		return f.run(background)
	})
	if err := p.announceGateway(cmd, f); err != nil {
		return errors.Join(err, f.stop(background), group.Wait(), f.close())
	}
	<-ctx.Done()
	f.logger.Info("stopping", "cause", context.Cause(ctx))
	err := errors.Join(f.stop(background), group.Wait(), f.close())
	if err == nil {
		f.logger.Info("stopped")
	}
	return err
}

func (p *process) announceGateway(cmd *cobra.Command, f *front) error {
	lines := gatewayLines{Gateway: baseURL(f.listener.Addr()), Upstreams: f.gateway.Upstreams()}
	if f.secure {
		lines.Gateway = "https" + strings.TrimPrefix(lines.Gateway, "http")
	}
	if f.operator != nil {
		lines.Operator = baseURL(f.operator.listener.Addr())
	}
	if p.json(cmd) {
		return writeJSON(p.stdout, lines)
	}
	paint := p.painterFor(p.stdout)
	nodes := strings.Join(lines.Upstreams, ", ")
	if nodes == "" {
		nodes = "no node yet"
	}
	text := fmt.Sprintf("%s at %s  (in front of %s)\n", paint.bold("The gateway is ready"), lines.Gateway, nodes)
	if lines.Operator != "" {
		text += fmt.Sprintf("Metrics at %s/metrics, and live: %s gateway top --addr %s\n", lines.Operator, commandName(), lines.Operator)
	}
	_, err := fmt.Fprint(p.stdout, text)
	return err
}

func (p *process) gatewayCheckCommand() *cobra.Command {
	var secretFile string
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Say whether a file is a good policy, or has good secrets",
		Long: `Read a policy as the gateway would, and say what is wrong with it: a key that is not known with its line and the
nearest one that is, a value that is none, values that contradict each other. Nothing is changed.

With --gateway-secret-file, look at that file too, or alone: whether only its owner can read it, whether there is always
one secret that is used, and which one is used now and until when each is good. Secrets are never printed; each has an
id, which is in the tickets that it signs.`,
		Example: `  weir gateway check /etc/weir/gateway.yaml
  weir gateway check --gateway-secret-file /etc/weir/gateway.secret`,
		Args: atMostArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && secretFile == "" {
				return usagef("there is nothing to check").then("give the FILE of a policy, or --gateway-secret-file, or both")
			}
			said := gatewayChecked{Good: true}
			if len(args) > 0 {
				if _, _, err := openPolicy(args[0]); err != nil {
					return err
				}
				said.File = args[0]
			}
			secrets, err := readGatewaySecrets(secretFile)
			if err != nil {
				return err
			}
			said.Secrets = secrets.describe(p.now())
			if p.json(cmd) {
				return writeJSON(p.stdout, said)
			}
			if said.File != "" {
				fmt.Fprintf(p.stdout, "%s is a good policy\n", said.File)
			}
			if secrets == nil {
				return nil
			}
			fmt.Fprintf(p.stdout, "%s is a good file of secrets\n", secretFile)
			rows := newTable("SECRET", "STATE", "FROM", "UNTIL")
			for _, one := range said.Secrets {
				rows.row(one.ID, one.State, instantText(one.From), instantText(one.Until))
			}
			return rows.print(p.stdout, p.painterFor(p.stdout))
		},
	}
	addGatewaySecretFlag(cmd, &secretFile)
	return cmd
}

// gatewayChecked is what 'weir gateway check' prints with -o json.
type gatewayChecked struct {
	File    string          `json:"file,omitempty"`
	Good    bool            `json:"good"`
	Secrets []checkedSecret `json:"secrets,omitempty"`
}

// A checkedSecret is what may be said of a secret.
type checkedSecret struct {
	ID string `json:"id"`
	// State is later, signs, verifies or over; the oldest one draws places besides.
	State string     `json:"state"`
	From  *time.Time `json:"from,omitempty"`
	Until *time.Time `json:"until,omitempty"`
}

// describe says of each secret what it is good for now.
func (s gatewaySecrets) describe(now time.Time) []checkedSecret {
	var all []checkedSecret
	for i, key := range s.roomKeys() {
		one := checkedSecret{ID: key.ID(), State: "verifies"}
		switch inUse := s.inUse(now); {
		case !key.Until.IsZero() && !now.Before(key.Until):
			one.State = "over"
		case i == inUse:
			one.State = "signs"
		case i > inUse:
			one.State = "later"
		}
		if i == 0 {
			one.State += ", draws"
		}
		if !key.From.IsZero() {
			one.From = &key.From
		}
		if !key.Until.IsZero() {
			one.Until = &key.Until
		}
		all = append(all, one)
	}
	return all
}
