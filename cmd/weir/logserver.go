package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/projections"
)

// replicaPatience is how long a replica that is behind may take to show what the witness knows.
const replicaPatience = 10 * time.Second

// bulkCommits is how many commits a long read has read ahead. Thousands of them, as many as a window holds, keep the processors for tens of
// milliseconds when they come, and whoever calls meanwhile waits.
const bulkCommits = 128

// The lanes of a new log.
const (
	lanesOfDev   = 1
	lanesOfServe = 8
)

// logOptions say where the log is.
type logOptions struct {
	// nats is the URL of a server; empty means the embedded one.
	nats string
	// access says how to sign in there.
	access natsAccess
	// listen is an address for other clients of the embedded server; empty means none. One that stands alone has no
	// passwords, and its address is on loopback.
	listen string
	// membership of the embedded server in a cluster.
	membership membership
	// replicas of what a new log is made of. A log with fewer than replicasMin is refused; 0 takes any.
	replicas    int
	replicasMin int
	// monitors are the HTTP monitoring addresses of the servers, separated by commas.
	monitors   string
	allowLossy bool
	// passwordShown says that the command line has a password in an address.
	passwordShown bool
	// acceptLoss names losses that are accepted, as eventstore.ParseAcceptedLoss reads them.
	acceptLoss []string
}

// shared reports whether there may be other nodes of the same log.
func (o *logOptions) shared() bool { return o.nats != "" || o.membership.member != nil }

func topologyOf(lanes uint32) eventstore.Topology { return eventstore.Topology{Lanes: lanes} }

// An openLog is a node's connection to its log: the embedded server or another one, the streams, the witness and the keys.
type openLog struct {
	// server is where the log is, for people.
	server   string
	topology eventstore.Topology
	streams  *eventstore.JetStream
	witness  *eventstore.Witness
	keys     *eventstore.UserKeys
	// replicas of the log as it is; what is made beside it gets as many.
	replicas int

	embedded *embedded.Server
	nc       *nats.Conn
	logger   *slog.Logger

	// bulk are the same streams over bulkConn, for whoever reads long stretches: what the lanes' appends are answered does not queue
	// behind these. Both are nil until openBulk.
	bulk     *eventstore.JetStream
	bulkConn *nats.Conn
}

// connectLog starts the embedded server or connects to another one.
func connectLog(dir dataDir, options logOptions, logger *slog.Logger) (l *openLog, err error) {
	l = &openLog{logger: logger}
	if options.nats == "" {
		l.server = dir.log()
		l.embedded, err = embedded.Start(embedded.Options{
			Dir: dir.log(), Listen: options.listen, Logger: logger, Cluster: options.membership.member, ServerName: options.membership.serverName,
		})
		if err != nil {
			return nil, err
		}
		l.nc, err = l.embedded.Connect()
		if err != nil {
			l.embedded.Shutdown()
			return nil, err
		}
		return l, nil
	}
	l.server = redacted(options.nats)
	if l.nc, err = options.access.stay(options.nats, "weir"); err != nil {
		return nil, err
	}
	return l, nil
}

// redacted returns a URL without its password.
func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the NATS server"
	}
	return u.Redacted()
}

func explainNATS(server string, err error) error {
	p := &problem{code: exitUnavailable, what: fmt.Sprintf("cannot reach the NATS server %s: %v", server, err), cause: err, next: "check --nats, and that the server runs"}
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) {
		p.code, p.next = exitPermission, "check the credentials (--nats-creds, or user and password in --nats)"
	}
	return p
}

// close gives everything back. What was acknowledged is durable already; the witness is made so.
func (l *openLog) close() error {
	var errs []error
	if l.witness != nil {
		errs = append(errs, l.witness.Sync())
	}
	if l.streams != nil {
		l.streams.Close()
	}
	if l.bulk != nil {
		l.bulk.Close()
	}
	if l.bulkConn != nil {
		l.bulkConn.Close()
	}
	l.nc.Close()
	if l.embedded != nil {
		l.embedded.Shutdown()
	}
	return errors.Join(errs...)
}

// run keeps the witness durable until ctx ends.
func (l *openLog) run(ctx context.Context) error {
	tick := time.NewTicker(witnessEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := l.witness.Sync(); err != nil {
				return fmt.Errorf("write the witness: %w", err)
			}
		}
	}
}

// provisionLog opens a node's log, and makes it when there is none.
func provisionLog(ctx context.Context, options nodeOptions, logger *slog.Logger) (_ *openLog, err error) {
	l, err := connectLog(options.data, options.log, logger)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	clustered, peers := options.log.membership.member != nil, []string(nil)
	if clustered {
		peers = options.log.membership.member.Routes
		if err := l.awaitCluster(ctx, peers); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	if clustered {
		return l, l.whileForming(ctx, peers, func(ctx context.Context) error { return l.open(ctx, options) })
	}
	return l, l.open(ctx, options)
}

// open checks the servers and the log, and opens it. After an error it may be called again.
func (l *openLog) open(ctx context.Context, options nodeOptions) (err error) {
	if !options.log.allowLossy {
		if err := l.checkDurable(ctx, options); err != nil {
			return err
		}
	}
	if l.topology, err = l.wantedTopology(ctx, options); err != nil {
		return err
	}
	if l.witness == nil {
		if err := l.openWitness(options); err != nil {
			return err
		}
	}
	if err := l.provision(ctx, options); err != nil {
		return err
	}
	if l.keys, err = l.openKeys(ctx, options); err != nil {
		return err
	}
	streams, err := eventstore.OpenJetStream(ctx, l.nc, l.topology, eventstore.JetStreamOptions{})
	if err != nil {
		return err
	}
	health, err := streams.Health(ctx, 0)
	if err != nil {
		streams.Close()
		return err
	}
	for lane := range l.topology.Lanes {
		if err := l.witness.Check(ctx, lane, streams.Log(lane)); err != nil {
			streams.Close()
			return err
		}
	}
	l.streams, l.replicas = streams, health.Replicas
	return nil
}

// openBulk opens the streams for long reads. REQUIRES: the log is open.
func (l *openLog) openBulk(ctx context.Context, options logOptions) (err error) {
	if l.embedded != nil {
		l.bulkConn, err = l.embedded.Connect()
	} else {
		l.bulkConn, err = options.access.stay(options.nats, "weir: long reads")
	}
	if err != nil {
		return err
	}
	return l.beside(ctx, options, func(ctx context.Context) error {
		l.bulk, err = eventstore.OpenJetStream(ctx, l.bulkConn, l.topology, eventstore.JetStreamOptions{FollowCommits: bulkCommits})
		return err
	})
}

// beside opens a bucket or stream beside the log, and makes it when there is none. In a cluster of its own servers it waits until those
// that are to keep it answer, for startMax at most.
func (l *openLog) beside(ctx context.Context, options logOptions, open func(context.Context) error) error {
	if options.membership.member == nil {
		return open(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	return l.whileForming(ctx, options.membership.member.Routes, open)
}

// examine looks at the log and its servers.
func (l *openLog) examine(ctx context.Context, options logOptions) ([]eventstore.Finding, error) {
	examining := eventstore.ExamineOptions{ReplicasMin: options.replicasMin, PasswordShown: options.passwordShown}
	if l.witness != nil {
		examining.Known = l.witness.Known()
	}
	if l.embedded != nil {
		dir, used, free, err := l.embedded.Disk()
		if err != nil {
			return nil, err
		}
		examining.Disk = &eventstore.Disk{Dir: dir, Max: l.embedded.MaxBytes(), Used: used, Free: free}
	}
	var err error
	switch {
	case options.membership.member != nil:
		examining.System, err = l.embedded.ConnectSystem()
	case l.embedded != nil:
		examining.Own = &eventstore.OwnServer{StoreDir: l.server, SyncsBeforeAck: l.embedded.SyncsBeforeAck(), Open: options.listen != "" && !isLoopback(options.listen)}
		if dir, err := filepath.Abs(l.server); err == nil {
			examining.Own.StoreDir = dir
		}
	default:
		examining.System, err = options.access.connectSystem(options.nats)
	}
	if err != nil {
		return nil, err
	}
	if examining.System != nil {
		defer examining.System.Close()
	}
	return eventstore.Examine(ctx, l.nc, examining)
}

// checkDurable asks every server that keeps replicas whether it fsyncs before it acknowledges. Of embedded servers, each has itself
// and all that it sees asked when it starts; the one that stands alone does.
func (l *openLog) checkDurable(ctx context.Context, options nodeOptions) error {
	switch {
	case options.log.membership.member != nil:
		system, err := l.embedded.ConnectSystem()
		if err != nil {
			return err
		}
		defer system.Close()
		return eventstore.CheckDurable(ctx, system, "")
	case l.embedded != nil:
		return nil
	}
	system, err := options.log.access.connectSystem(options.log.nats)
	if err != nil {
		return err
	}
	if system == nil {
		return eventstore.CheckDurable(ctx, l.nc, options.log.monitors)
	}
	defer system.Close()
	return eventstore.CheckDurable(ctx, system, "")
}

// openWitness reads the witness. A loss that is accepted is written down in it, and the state goes: it may hold commits that
// are no longer in the log, and is made anew from what is.
func (l *openLog) openWitness(options nodeOptions) (err error) {
	l.witness, err = eventstore.OpenWitness(options.data.witness())
	if err != nil {
		return &problem{code: exitData, what: err.Error(), cause: err}
	}
	if options.log.replicas > 1 {
		l.witness.Patience = replicaPatience
	}
	for _, text := range options.log.acceptLoss {
		lane, number, err := eventstore.ParseAcceptedLoss(text)
		if err != nil {
			return usagef("--accept-loss: %v", err)
		}
		if err := l.witness.Accept(lane, number); err != nil {
			return usagef("--accept-loss %s: %v", text, err)
		}
		l.logger.Warn("a loss is accepted; the state is made anew from the log", "lane", lane, "kept_up_to", number)
		if err := os.RemoveAll(options.data.state()); err != nil {
			return err
		}
	}
	return nil
}

// wantedTopology returns the lanes that were asked for, else those that are recorded, else those of a new log.
func (l *openLog) wantedTopology(ctx context.Context, options nodeOptions) (eventstore.Topology, error) {
	if options.lanes != 0 {
		return topologyOf(options.lanes), nil
	}
	record, err := eventstore.ReadClusterRecord(ctx, l.nc)
	switch {
	case errors.Is(err, eventstore.ErrNotProvisioned):
		return topologyOf(options.lanesNew), nil
	case err != nil:
		return eventstore.Topology{}, err
	}
	return topologyOf(record.Lanes), nil
}

func (l *openLog) provision(ctx context.Context, options nodeOptions) error {
	provisioning := eventstore.ProvisionOptions{
		Topology: l.topology, Replicas: options.log.replicas, ReplicasMin: options.log.replicasMin, Known: l.witness.Known(), Now: time.Now(),
	}
	if l.embedded != nil && options.log.membership.member == nil { // In a cluster the other servers know the streams, too.
		provisioning.Reopen = func(context.Context) error { return l.embedded.Restart() }
	}
	_, err := eventstore.Provision(ctx, l.nc, provisioning)
	var missing *eventstore.MissingLogError
	if errors.As(err, &missing) {
		return l.sayWhatIsLost(ctx, missing)
	}
	return err
}

// openKeys opens the users' wrapped keys. They lie beside the log and not in it: what was sealed under a key that is
// destroyed stays unreadable.
func (l *openLog) openKeys(ctx context.Context, options nodeOptions) (*eventstore.UserKeys, error) {
	keys, err := eventstore.OpenUserKeys(ctx, l.nc, eventstore.UserKeysOptions{Topology: l.topology, Replicas: options.log.replicas})
	var missing *eventstore.MissingKeysError
	if err == nil || errors.As(err, &missing) {
		return keys, err
	}
	return nil, &problem{
		code: exitUnavailable, what: fmt.Sprintf("the users' keys on %s cannot be opened: %v", l.server, err), cause: err,
		next: "start again; if it stays so, look at the server's log, and whether the credentials may make and read a key-value bucket",
	}
}

// sayWhatIsLost tells a log that ends too early from one that is gone: the witness says how much is lost, and that can be
// accepted.
func (l *openLog) sayWhatIsLost(ctx context.Context, missing *eventstore.MissingLogError) error {
	streams, err := eventstore.OpenJetStream(ctx, l.nc, l.topology, eventstore.JetStreamOptions{})
	if err != nil {
		return missing
	}
	defer streams.Close()
	var lost *eventstore.WitnessError
	if errors.As(l.witness.Check(ctx, missing.Lane, streams.Log(missing.Lane)), &lost) {
		return lost
	}
	return missing
}

// A localCopier copies what this process has open. It implements copier.
type localCopier struct {
	dir dataDir
	// keys opens the users' keys.
	keys func(ctx context.Context) (*eventstore.UserKeys, error)
	// store is nil where there is no state.
	store *projections.Store
}

// Keys implements copier.
func (c *localCopier) Keys(ctx context.Context, each func(userID string, value []byte) error) error {
	keys, err := c.keys(ctx)
	if err != nil {
		return err
	}
	return keys.Each(ctx, each)
}

// Checkpoint implements copier.
func (c *localCopier) Checkpoint(context.Context) (string, error) {
	if c.store == nil {
		return "", nil
	}
	return c.dir.checkpoint(c.store.Checkpoint)
}

// openStopped reads the log of a directory on which no node runs, or of a NATS server.
func (p *process) openStopped(ctx context.Context, dir dataDir, options logOptions) (_ *source, err error) {
	logger := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	l, err := connectLog(dir, options, logger)
	if err != nil {
		return nil, explainStart(dir, err)
	}
	s := &source{close: l.close}
	defer func() {
		if err != nil {
			err = errors.Join(explainStart(dir, err), s.close())
		}
	}()
	record, err := eventstore.ReadClusterRecord(ctx, l.nc)
	if err != nil {
		return nil, err
	}
	l.topology, s.topology = topologyOf(record.Lanes), topologyOf(record.Lanes)
	if l.streams, err = eventstore.OpenJetStream(ctx, l.nc, l.topology, eventstore.JetStreamOptions{}); err != nil {
		return nil, err
	}
	s.lane = func(lane uint32) laneReader { return l.streams.Log(lane) }
	copying := &localCopier{dir: dir, keys: func(ctx context.Context) (*eventstore.UserKeys, error) {
		return eventstore.OpenUserKeys(ctx, l.nc, eventstore.UserKeysOptions{Topology: l.topology})
	}}
	s.copier = copying
	if _, err := os.Stat(dir.state()); errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if options.nats == "" {
		witness, err := eventstore.OpenWitness(dir.witness())
		if err != nil {
			return nil, err
		}
		s.witness = func(ctx context.Context, lane uint32) error { return witness.Check(ctx, lane, l.streams.Log(lane)) }
	}
	store, err := projections.OpenStore(dir.state(), projections.StoreOptions{Logger: logger})
	if err != nil {
		return nil, err
	}
	s.close = func() error { return errors.Join(store.Close(), l.close()) }
	copying.store = store
	views := &localViews{store: store, topology: s.topology, log: l.streams.Log, logger: logger}
	for lane := range s.topology.Lanes {
		runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lane: lane, Lanes: s.topology.Lanes, Log: l.streams.Log(lane), Logger: logger})
		if err != nil {
			return nil, err
		}
		views.runners = append(views.runners, runner)
	}
	s.views = views
	rebuilds, err := projections.NewRebuilder(projections.RebuilderOptions{
		Store: store, Runners: views.runners, Topology: s.topology, Log: l.streams.Log, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	s.rebuilds = &localRebuilds{rebuilds}
	s.reactors = &localReactors{store: store, log: l.streams.Log}
	return s, nil
}
