package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/courier"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/paying"
	"github.com/weirhq/weir/api/reactors/webhooks"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/ownership"
	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/projections/redisview"
)

// Limits of a node's life.
const (
	// startMax bounds the wait for the lanes to open, and for a server to answer.
	startMax = 5 * time.Minute
	// servingPoll is how often a starting node looks whether its lanes serve.
	servingPoll = 2 * time.Millisecond
	// finishRequestsMax bounds how long a stopping node waits for the requests that it has taken.
	finishRequestsMax = 10 * time.Second
	// settleViewsMax bounds how long a stopping node waits for its views to take in its last commits.
	settleViewsMax = 2 * time.Second
	// reactAfterMax bounds how long the reactors of a starting node wait for its lanes and views to come close to the log's head.
	reactAfterMax = time.Minute
	// viewPace is how far apart the views of a lane take in its commits, and standbyPace those of a lane that another node decides, when
	// they come faster: many commits at once cost a fraction of each by itself. A read that waits for a commit ends the wait.
	viewPace    = 20 * time.Millisecond
	standbyPace = 100 * time.Millisecond
	// jointBytes is how much of the logs is kept for those of their lane's state and its views that are behind the other, over all lanes, and
	// jointBytesMin of each log.
	jointBytes    = 16 << 20
	jointBytesMin = 1 << 20
	// witnessEvery is how often the witness is made durable.
	witnessEvery = time.Second
	// keysPause is the pause before the users' keys are followed, or erased, again after a fault.
	keysPause = 5 * time.Second
)

// nodeOptions say what a node is. Every field has a flag, but limits and owner.
type nodeOptions struct {
	data   dataDir
	listen string
	// gateway stands in front of the API of a dev node.
	gateway gatewayOptions
	// lanes of a new log; 0 takes those of the log that is there, or lanesNew.
	lanes    uint32
	lanesNew uint32
	log      logOptions
	// payWithin is how long an unpaid order keeps its units.
	payWithin time.Duration
	// paymentGrace is how much longer an order has whose payment is under way; 0 means the default.
	paymentGrace time.Duration
	// stockWait is how long an order waits for units that are on their way; 0 means the default.
	stockWait time.Duration
	// publishEvents publishes public events on a stream of their own.
	publishEvents bool
	// debug is a loopback address for profiles; empty means none.
	debug string
	// metrics is an address for Prometheus; empty means none.
	metrics string
	// gcPercent is Go's GOGC; it only counts where the environment does not set GOGC.
	gcPercent   int
	keys        keyOptions
	payments    paymentOptions
	redis       redisOptions
	checkpoints checkpointOptions
	sharing     sharingOptions
	// pointsPerMajor is how many points a whole major unit of money is worth.
	pointsPerMajor int64
	// limits on what a caller may cost; zero fields mean the defaults, which every node has outside of tests.
	limits api.Limits
	// owner is how this process is named in the log.
	owner string
}

// keyOptions say whose tokens a node believes.
type keyOptions struct {
	// file with public keys, PEM or JWKS; empty means the key of the data directory.
	file     string
	issuer   string
	audience string
}

// A node is everything that one process runs: what it opened, in the order in which it opened it.
type node struct {
	options nodeOptions
	logger  *slog.Logger

	listener net.Listener
	inspect  net.Listener
	debug    net.Listener
	metrics  net.Listener
	log      *openLog
	// joint are the lanes' logs as the lanes' state and the views read them: together.
	joint []*eventstore.JointLog
	store *projections.Store
	// demands say, by lane, whether somebody waits for its commits here.
	demands []*eventstore.Demand
	// runners, rebuilds and views keep and read the views; nil for a node that keeps none (--follow none).
	runners  []*projections.Runner
	rebuilds *projections.Rebuilder
	lanes    *lanes.Set
	sharing  *ownership.Node
	courier  *courier.Courier
	sealer   *sealing.Sealer
	views    *projections.Views
	// shelf keeps copies of the state, nil for none.
	shelf checkpointShelf
	// mirror keeps copies of views in Redis, nil for none.
	mirror   *redisview.Mirror
	reactors *reactors.Runner
	cashier  *paying.Cashier
	// notices take payment providers' webhooks, by provider; webhooks are those that go out.
	notices  map[string]http.Handler
	webhooks *webhooks.Outbox
	// sandbox is this process's own, nil for none.
	sandbox         *sandbox.Server
	sandboxListener net.Listener
	server          *http.Server
	// endWatches ends the calls that last.
	endWatches func()
	// front is the gateway in front of the API, nil for none.
	front  *front
	record nodeRecord
	// settled says that every lane has had a node since this one came, leaving that this one hands its lanes over.
	settled, leaving atomic.Bool
	calls            atomic.Int64  // under way
	asked            atomic.Uint64 // calls that came
	cpu              cpuMeter
	// signing is the key of the data directory; it makes the tokens that a dev node prints.
	signing identity.SigningKey
	// tokenKeys are those of --jwt-keys, nil without it.
	tokenKeys *identity.KeyFile
	// closers undo the opening, newest first.
	closers []func() error
}

// openNode opens everything and starts nothing but the embedded server. Whoever gets a node closes it; on an error nothing
// is left open.
func openNode(ctx context.Context, options nodeOptions, logger *slog.Logger) (_ *node, err error) {
	n := &node{options: options, logger: logger}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	var opening atomic.Pointer[string] // what is being opened, for people
	opening.Store(new(string))
	saying, ended := context.WithCancel(ctx)
	var said sync.WaitGroup
	said.Go(func() { sayWaiting(saying, logger, func() string { return *opening.Load() }) })
	defer said.Wait()
	defer ended()
	var atTheDoor doorman
	defer func() { err = errors.Join(err, atTheDoor.end(ctx)) }()
	for _, step := range []struct {
		what string
		open func(context.Context) error
	}{
		{"its data directory", n.openDir},
		{"its addresses", func(ctx context.Context) error {
			if err := n.openListeners(ctx); err != nil {
				return err
			}
			if n.options.log.shared() { // A node that is the only one has its callers wait: nobody else could answer them.
				atTheDoor.begin(n.public(), func() string { return *opening.Load() })
			}
			return nil
		}},
		{"its log: the servers, the streams, the users' keys", n.openLog},
		{"its state: a copy of it, the views, the lanes", n.openState},
		{"its views: the master key", n.openViews},
		{"its payments", n.openPayments},
		{"its reactors: their buckets and streams", n.openReactors},
		{"its place among the nodes", n.openSharing},
		{"its API", n.openAPI},
		{"its gateway", n.openGateway},
		{"its inspection endpoint", n.openInspector},
	} {
		what := step.what + ", to open"
		opening.Store(&what)
		if err := step.open(ctx); err != nil {
			return nil, explainStart(options.data, err)
		}
	}
	return n, nil
}

// later registers what close undoes.
func (n *node) later(undo func() error) { n.closers = append(n.closers, undo) }

// close undoes what was opened.
func (n *node) close() error {
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}

func (n *node) openDir(ctx context.Context) error {
	if err := n.options.data.make(); err != nil {
		return err
	}
	record, err := readNodeRecord(n.options.data)
	if err != nil {
		return err
	}
	if running, _ := dialNode(ctx, record); running != nil {
		return &problem{
			code: exitData, what: fmt.Sprintf("data directory %s is in use: a node runs on it at %s (pid %d)", n.options.data, record.API, record.PID),
			next: "use that node, stop it, or choose another directory with --data",
		}
	}
	if err := n.options.data.removeCheckpoints(); err != nil {
		return err
	}
	if err := n.openNodeID(); err != nil {
		return err
	}
	n.signing, err = identity.OpenOrCreateSigningKey(string(n.options.data))
	return err
}

func (n *node) openListeners(ctx context.Context) (err error) {
	if address := n.options.log.listen; address != "" && !isLoopback(address) && n.options.log.membership.member == nil {
		return usagef("--nats-listen %q is not a loopback address: whoever reaches it may read and write the log", address).then("give it as 127.0.0.1:4222")
	}
	if address := n.options.debug; address != "" && !isLoopback(address) {
		return usagef("--debug-addr %q is not a loopback address: profiles show what the node works on", address).then("give it as 127.0.0.1:6060")
	}
	if n.listener, err = n.listen(ctx, n.options.listen, "--listen"); err != nil {
		return err
	}
	if n.options.gateway.on {
		if err := n.listenBehind(ctx); err != nil {
			return err
		}
	}
	if n.inspect, err = n.listen(ctx, "127.0.0.1:0", "the inspection endpoint"); err != nil {
		return err
	}
	if n.options.log.listen != "" {
		// The server itself listens, later, and would not say so well that it cannot.
		probe, err := n.listen(ctx, n.options.log.listen, "--nats-listen")
		if err != nil {
			return err
		}
		if err := probe.Close(); err != nil {
			return err
		}
	}
	if n.options.debug != "" {
		if n.debug, err = n.listen(ctx, n.options.debug, "--debug-addr"); err != nil {
			return err
		}
	}
	if n.options.metrics != "" {
		n.metrics, err = n.listen(ctx, n.options.metrics, "--metrics-listen")
	}
	return err
}

// public returns the listeners at which callers know the node.
func (n *node) public() []net.Listener {
	if n.front != nil {
		return []net.Listener{n.front.listener, n.listener}
	}
	return []net.Listener{n.listener}
}

// isLoopback reports whether an address, HOST:PORT, can be reached from this machine only.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || (ip != nil && ip.IsLoopback()))
}

// listen opens one address, and closes it with the node.
func (n *node) listen(ctx context.Context, address, flag string) (net.Listener, error) {
	listener, err := listenOn(ctx, address, flag)
	if err != nil {
		return nil, err
	}
	n.later(func() error {
		if err := listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return listener, nil
}

// listenOn opens one address, and says well why it cannot.
func listenOn(ctx context.Context, address, flag string) (net.Listener, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, &problem{
			code: exitFailure, cause: err, what: fmt.Sprintf("%s is taken: another program listens there", address),
			next: fmt.Sprintf("stop that program, or choose another address with %s (port 0 takes a free one)", flag),
		}
	case errors.Is(err, syscall.EACCES):
		return nil, &problem{
			code: exitPermission, cause: err, what: fmt.Sprintf("no permission to listen on %s", address),
			next: fmt.Sprintf("choose a port above 1023 with %s", flag),
		}
	case err != nil:
		return nil, &problem{code: exitUsage, cause: err, what: fmt.Sprintf("cannot listen on %q: %v", address, err), next: "give " + flag + " as HOST:PORT of this machine"}
	}
	return listener, nil
}

func (n *node) openLog(ctx context.Context) (err error) {
	n.log, err = provisionLog(ctx, n.options, n.logger)
	if err != nil {
		return err
	}
	n.later(n.log.close)
	return n.log.openBulk(ctx, n.options.log)
}

func (n *node) openState(ctx context.Context) (err error) {
	if err := n.startState(ctx); err != nil {
		return err
	}
	n.store, err = projections.OpenStore(n.options.data.state(), projections.StoreOptions{Asked: n.asked.Load, Logger: n.logger})
	if err != nil {
		return err
	}
	n.later(n.store.Close)
	if err := n.openMirror(ctx); err != nil {
		return err
	}
	observer, shared := n.watchedBy()
	topology := n.log.topology
	for lane := range topology.Lanes {
		joint := eventstore.NewJointLog(n.log.streams.Log(lane), eventstore.JointOptions{Bytes: max(jointBytes/int(topology.Lanes), jointBytesMin)})
		n.joint = append(n.joint, joint)
		if !n.options.sharing.keepsViews() {
			n.demands = append(n.demands, &eventstore.Demand{})
			continue
		}
		runner, err := projections.NewRunner(projections.RunnerOptions{
			Store: n.store, Lane: lane, Lanes: topology.Lanes, Log: joint, Logger: n.logger,
			Observer: observer, Level2: shared, Pace: viewPace,
		})
		if err != nil {
			return err
		}
		n.runners, n.demands = append(n.runners, runner), append(n.demands, runner.Demand())
	}
	if n.options.sharing.keepsViews() {
		n.rebuilds, err = projections.NewRebuilder(projections.RebuilderOptions{
			Store: n.store, Runners: n.runners, Topology: topology, Log: n.log.bulk.Log, Asked: n.asked.Load, Logger: n.logger,
		})
		if err != nil {
			return err
		}
	}
	if err := n.openCourier(); err != nil {
		return err
	}
	n.lanes, err = lanes.Open(n.laneOptions())
	return err
}

// laneOptions say how the node's lanes decide.
func (n *node) laneOptions() lanes.Options {
	return lanes.Options{
		Topology: n.log.topology, Store: n.store, Log: func(lane uint32) eventstore.Log { return n.joint[lane] }, Owner: n.options.sharing.nodeID + " " + n.options.owner,
		StandbyPace: standbyPace, Demand: func(lane uint32) *eventstore.Demand { return n.demands[lane] },
		Shared: true, OnOwnership: n.onOwnership, OnOwner: n.courier.Moved, Remote: n.courier, Transport: n.courier,
		PayWithin: n.options.payWithin, PaymentGrace: n.options.paymentGrace, StockWait: n.options.stockWait,
		Observe: func(lane uint32) eventstore.Observer {
			return func(commit *eventstore.Commit, at eventstore.Position) {
				n.log.witness.Note(lane, at)
				if n.runners != nil {
					n.runners[lane].Offer(commit, at)
				}
				n.reactors.Offer(lane, commit, at)
			}
		},
		// One commit under way at a time: while it is fsynced the next one grows.
		Lane: eventstore.LaneOptions{Logger: n.logger, Writer: eventstore.WriterOptions{InFlightMax: 1}},
	}
}

// openViews makes what reads the views, and what opens what users sealed.
func (n *node) openViews(ctx context.Context) error {
	master, err := n.openMasterKey(ctx)
	if err != nil {
		return err
	}
	if n.sealer, err = sealing.New(sealing.Options{Store: n.log.keys, MasterKey: master}); err != nil {
		return err
	}
	if !n.options.sharing.keepsViews() {
		return nil
	}
	n.views, err = projections.NewViews(projections.ViewsOptions{
		Store: n.store, Topology: n.log.topology, Runners: n.runners, PageKey: pageKey(master),
	})
	if err != nil {
		return err
	}
	n.later(func() error { n.views.Close(); return nil })
	return nil
}

func (n *node) openAPI(ctx context.Context) error {
	verifier, err := n.verifier()
	if err != nil {
		return err
	}
	options := api.Options{
		Commands: n.lanes, Verifier: verifier, Sealer: n.sealer, Topology: n.log.topology, Webhooks: n.webhooks, Cluster: sharedLanes{n},
		Limits: n.options.limits, WaitsFor: n.waitsFor, Logger: n.logger, PaymentProviders: n.options.payments.providers,
	}
	if n.options.sharing.keepsViews() {
		options.Views = n.views
	} else {
		options.ViewsAt = n.viewsAt
	}
	handler := api.NewHandler(options)
	n.server, n.endWatches = api.NewServer(handler), handler.EndWatches
	n.server.Handler = n.counted(n.withWebhooks(handler))
	return ctx.Err()
}

// openMasterKey reads the master key. It makes one only where no user has a key yet: keys that are there were wrapped by a
// master key that is somewhere else, or lost.
func (n *node) openMasterKey(ctx context.Context) ([]byte, error) {
	file := filepath.Join(string(n.options.data), sealing.MasterKeyFile)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		used, err := n.log.keys.Used(ctx)
		if err != nil {
			return nil, err
		}
		if used {
			return nil, &problem{
				code: exitData, what: fmt.Sprintf("there is no master key in %s, and the users' keys on %s were wrapped by one", n.options.data, n.log.server),
				next: fmt.Sprintf("copy %s from the data directory of the node that made them, or from a backup, to %s (mode 0600)", sealing.MasterKeyFile, file),
			}
		}
	}
	return sealing.OpenOrCreateMasterKey(string(n.options.data))
}

// verifier believes the keys of --jwt-keys, as they are in the file from time to time, or the key of the data directory.
func (n *node) verifier() (api.Verifier, error) {
	options := identity.VerifierOptions{Keys: n.signing.Keys(), Issuer: n.options.keys.issuer, Audience: n.options.keys.audience}
	file := n.options.keys.file
	if file == "" {
		return identity.NewVerifier(options)
	}
	var err error
	n.tokenKeys, err = identity.OpenKeyFile(identity.KeyFileOptions{Path: file, Verifier: options, Logger: n.logger})
	if err != nil {
		return nil, usagef("--jwt-keys %s: %v", file, err).then("give a file with one public key in PEM, or a JSON Web Key Set")
	}
	return n.tokenKeys, nil
}

func (n *node) openInspector(context.Context) error {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	n.record = nodeRecord{
		PID: os.Getpid(), Started: time.Now().UTC(), API: n.publicURL(), Inspect: baseURL(n.inspect.Addr()),
		Token: base64.RawURLEncoding.EncodeToString(secret),
	}
	return nil
}

// baseURL returns how a client on this machine reaches an address.
func baseURL(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return "http://" + addr.String()
	}
	host := tcp.IP.String()
	if tcp.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, strconv.Itoa(tcp.Port))
}

// run serves until ctx ends or something fails that going on cannot mend. ready is called once orders are taken. When it
// returns, nothing that it started runs any more.
//
// It stops with the flow: the lanes go to other nodes, if there are any, no new connections, the requests that were taken are finished
// and watches end, the reactors end, the lanes that are left drain, the views follow to where they are, and close then flushes the store,
// makes the witness durable and stops the server.
func (n *node) run(ctx context.Context, ready func(context.Context) error) error {
	n.tune()
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	inspect := &http.Server{Handler: n.inspector().handler(), ReadHeaderTimeout: 5 * time.Second}
	profiles := &http.Server{Handler: profileMux(), ReadHeaderTimeout: 5 * time.Second}
	metrics := &http.Server{Handler: metricsHandler(n.collected()), ReadHeaderTimeout: 5 * time.Second}

	// Each stage ends when its context does, and is waited for before the next one ends.
	background := context.WithoutCancel(ctx)
	serving := newStage(background, fail)
	charging := newStage(background, fail)
	reacting := newStage(background, fail)
	sharing := newStage(background, fail)
	answering := newStage(background, fail)
	deciding := newStage(background, fail)
	viewing := newStage(background, fail)

	viewing.run(n.log.run)
	viewing.run(n.followKeys)
	viewing.run(func(ctx context.Context) error {
		sayWaiting(ctx, n.logger, n.waitsFor)
		return nil
	})
	if n.mirror != nil {
		viewing.run(n.mirror.Run)
	}
	if n.tokenKeys != nil {
		viewing.run(n.tokenKeys.Run)
	}
	if n.shelf != nil && n.options.sharing.keepsViews() { // A copy without views would have whoever takes it make them again.
		viewing.run(n.keepCheckpoints)
	}
	for _, runner := range n.runners {
		viewing.run(runner.Run)
	}
	if n.rebuilds != nil {
		viewing.run(n.rebuilds.Run)
	}
	deciding.run(n.lanes.Run)
	answering.run(func(ctx context.Context) error { return n.courier.Run(ctx, n.lanes) })
	sharing.run(n.sharing.Run)
	reacting.run(n.react)
	reacting.run(n.cashier.Run)
	if n.sandbox != nil {
		charging.run(func(ctx context.Context) error { return serveSandbox(ctx, n.sandbox, n.sandboxListener) })
	}
	serving.run(func(context.Context) error { return ignoreClosed(n.server.Serve(n.listener)) })
	if n.front != nil {
		serving.run(n.front.run)
	}
	serving.run(func(context.Context) error { return ignoreClosed(inspect.Serve(n.inspect)) })
	if n.debug != nil {
		serving.run(func(context.Context) error { return ignoreClosed(profiles.Serve(n.debug)) })
	}
	if n.metrics != nil {
		serving.run(func(context.Context) error { return ignoreClosed(metrics.Serve(n.metrics)) })
	}
	starting := newStage(ctx, fail)
	starting.run(func(ctx context.Context) error {
		if err := n.announce(ctx, ready); err != nil {
			return err
		}
		return n.finishErasures(ctx)
	})

	<-ctx.Done()
	n.logger.Info("stopping", "cause", context.Cause(ctx))
	errs := []error{starting.wait()}
	errs = append(errs, n.record.remove(n.options.data))
	n.drain(background)
	if n.front != nil {
		errs = append(errs, n.front.stop(background)) // It calls the API.
	}
	errs = append(errs, shutDown(background, n.server), inspect.Close(), profiles.Close(), metrics.Close(), serving.wait())
	errs = append(errs, reacting.end(), charging.end(), sharing.end(), answering.end(), deciding.end())
	n.settleViews(background)
	errs = append(errs, viewing.end())
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, errInterrupted) {
		return explainStart(n.options.data, cause)
	}
	return errors.Join(errs...)
}

// react runs the reactors, once the lanes serve and the views are close to the log's head. Each reads the log by itself, and a
// node that makes its state again has no processor to spare for what could do nothing yet.
func (n *node) react(ctx context.Context) error {
	n.awaitViews(ctx, reactAfterMax, n.mayReact)
	return n.reactors.Run(ctx)
}

// mayReact reports whether the lanes are served, which tells the views of the log's head, and the views can go on from the live tail.
func (n *node) mayReact() bool { return n.settled.Load() && !n.viewsLag(eventstore.TailCommitsMax) }

// settleViews lets the views take in what the lanes have just decided, so that the next start finds nothing to make up. It
// is no matter if they do not in time.
func (n *node) settleViews(ctx context.Context) {
	n.awaitViews(ctx, settleViewsMax, func() bool { return !n.viewsLag(0) })
}

// awaitViews waits until something about the views holds, at most for a time.
func (n *node) awaitViews(ctx context.Context, most time.Duration, holds func() bool) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	tick := time.NewTicker(servingPoll)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// viewsLag reports whether a view is more than that many commits behind. One that has stopped will not come closer.
func (n *node) viewsLag(commits uint64) bool {
	for _, runner := range n.runners {
		for _, status := range runner.Status() {
			if status.LagCommits > commits && !status.Stopped {
				return true
			}
		}
	}
	return false
}

// A stage is goroutines that end together. The first that fails makes the node stop.
type stage struct {
	group  *errgroup.Group
	ctx    context.Context //nolint:containedctx // It is what end cancels; run hands it to each goroutine.
	cancel context.CancelFunc
	fail   context.CancelCauseFunc
}

func newStage(ctx context.Context, fail context.CancelCauseFunc) *stage {
	ctx, cancel := context.WithCancel(ctx)
	return &stage{group: &errgroup.Group{}, ctx: ctx, cancel: cancel, fail: fail}
}

func (s *stage) run(f func(context.Context) error) {
	s.group.Go(func() error {
		err := f(s.ctx)
		if err != nil {
			s.fail(err)
		}
		return err
	})
}

// wait returns when every goroutine has returned.
func (s *stage) wait() error {
	defer s.cancel()
	return s.group.Wait()
}

// end tells the goroutines to return, and waits.
func (s *stage) end() error {
	s.cancel()
	return s.group.Wait()
}

// announce waits until the lanes are served, makes the node known in its directory, and calls ready.
func (n *node) announce(ctx context.Context, ready func(context.Context) error) error {
	if !n.settle(ctx) {
		return nil // It stops.
	}
	if err := n.record.write(n.options.data); err != nil {
		return err
	}
	if err := ready(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// followKeys has the sealer forget the keys that are erased, on whichever node that is. While it cannot, the sealer
// forgets by itself within a minute.
func (n *node) followKeys(ctx context.Context) error {
	for {
		if err := n.log.keys.Watch(ctx, n.sealer.Changed); err != nil {
			n.logger.Warn("the users' keys are not followed: a key that is erased on another node is used for up to a minute more", "error", err, "again_in", keysPause)
		}
		if !pause(ctx, keysPause) {
			return nil
		}
	}
}

// finishErasures destroys the keys that the log says are erased and that are there all the same, once after each start. It goes
// on until it could.
func (n *node) finishErasures(ctx context.Context) error {
	for {
		err := api.FinishErasures(ctx, n.sealer, n.lanes.EachErased)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil: // The next start goes on.
			return nil //nolint:nilerr // Stopping is no fault.
		}
		n.logger.Error("a key that the log says is erased may still be there", "error", err, "again_in", keysPause)
		if !pause(ctx, keysPause) {
			return nil
		}
	}
}

// pause waits, and reports whether ctx is still good.
func pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// tune sets the garbage collector and the scheduler. Most of a node's memory is Pebble's, which Go does not count: with Go's
// default it would collect its small heap all the time.
//
// A flush of Pebble's, or a mark of the collector's, keeps one of Go's processors busy for 10 ms at a time, and what is runnable
// there waits; the kernel lets others run sooner. So there is one processor more than the machine gives: ops/PROFILE.md has what
// that does to the slowest orders.
func (n *node) tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(n.options.gcPercent)
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(processors() + 1)
	}
}

// processors is how many the machine gives the process, or the part of it that a container has.
var processors = sync.OnceValue(func() int { return runtime.GOMAXPROCS(0) })

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// shutDown finishes the requests that were taken; what takes too long is cut off.
func shutDown(ctx context.Context, server *http.Server) error {
	ctx, cancel := context.WithTimeout(ctx, finishRequestsMax)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return errors.Join(server.Close())
	}
	return nil
}

// collected is what the node's metrics are collected of.
func (n *node) collected() (m nodeMetrics) {
	for _, runner := range n.runners {
		m.views = append(m.views, runner)
	}
	return m
}

// profileMux serves Go's profiles.
func profileMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	return mux
}

func (n *node) inspector() *inspector {
	inspect := &inspector{
		token: n.record.Token, topology: n.log.topology,
		log:      func(lane uint32) laneReader { return n.log.streams.Log(lane) },
		views:    &localViews{store: n.store, topology: n.log.topology, runners: n.runners, log: n.log.streams.Log, running: true, mirror: n.mirror, logger: n.logger},
		rebuilds: &localRebuilds{n.rebuilds},
		reactors: &localReactors{runner: n.reactors, cashier: n.cashier},
		reads:    n.reads,
		doctor: func(ctx context.Context, replicasMin int) ([]eventstore.Finding, error) {
			options := n.options.log
			options.replicasMin = cmp.Or(replicasMin, options.replicasMin)
			findings, err := n.log.examine(ctx, options)
			return append(findings, n.examineFollowing()...), err
		},
		copier: &localCopier{
			dir: n.options.data, store: n.store,
			keys: func(context.Context) (*eventstore.UserKeys, error) { return n.log.keys, nil },
		},
	}
	if !n.options.sharing.keepsViews() {
		inspect.views, inspect.rebuilds = viewsElsewhere{n}, viewsElsewhere{n}
	}
	return inspect
}
