package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
)

// Limits of a cluster of embedded servers.
const (
	// peersMin is the least number of servers that can lose one and go on; peersMax keeps the votes quick.
	peersMin = 3
	peersMax = 9
	// replicasOfCluster is how many servers have each commit, by default.
	replicasOfCluster = 3
	defaultRoutePort  = "6222"

	// clusterPoll is how often a starting node looks at its cluster, clusterLineEvery how often it says what it waits for, and
	// clusterWarnAfter when that becomes a warning.
	clusterPoll      = 100 * time.Millisecond
	clusterLineEvery = 5 * time.Second
	clusterWarnAfter = 15 * time.Second
	// clusterAttempt bounds one attempt to open the log: a request that reaches a server between two leaders gets no answer.
	clusterAttempt = 12 * time.Second
	// clusterRetry is the pause before a log that is not there yet is opened again.
	clusterRetry = 250 * time.Millisecond
	// peerDialMax bounds the look whether a peer listens.
	peerDialMax = time.Second
)

// A membership says which cluster of embedded servers a node is part of.
type membership struct {
	name       string
	peers      string
	listen     string
	serverName string
	cert       string
	certKey    string
	ca         string

	// member is what the flags say; nil for a node that is part of none.
	member *embedded.Cluster
}

func (m *membership) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&m.name, "cluster-name", "", "`NAME` of the cluster that this node's own NATS server is part of: no other server is needed then")
	flags.StringVar(&m.peers, "peers", "", "`HOST[:PORT]` of every server of the cluster, this one too, separated by commas; port 6222 when none is given")
	flags.StringVar(&m.listen, "cluster-listen", ":"+defaultRoutePort, "`HOST:PORT` on which the other servers of the cluster reach this one")
	flags.StringVar(&m.serverName, "server-name", "", "`NAME` of this server in the cluster, which it keeps for ever; the host's name when not given")
	flags.StringVar(&m.cert, "cluster-tls-cert", "", "`FILE` with this server's certificate, PEM, good for the host that --peers has")
	flags.StringVar(&m.certKey, "cluster-tls-key", "", "`FILE` with the key of that certificate")
	flags.StringVar(&m.ca, "cluster-tls-ca", "", "`FILE` with the authority that signs the servers' certificates")
	setting(flags, "cluster-name", "peers", "cluster-listen", "server-name", "cluster-tls-cert", "cluster-tls-key", "cluster-tls-ca")
}

// nameOfServer is what a cluster or a server may be called: it is part of subjects and of file names.
var nameOfServer = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// finish reads the flags and the files that they name.
func (m *membership) finish(secretFile string) error {
	if m.name == "" {
		if m.peers != "" || m.serverName != "" || m.cert != "" || m.certKey != "" || m.ca != "" {
			return usagef("flags of a cluster are given, and no --cluster-name").then("give the cluster's name, the same on each machine")
		}
		return nil
	}
	if !nameOfServer.MatchString(m.name) {
		return usagef("--cluster-name %q: want 1 to 64 letters, digits, - and _", m.name)
	}
	routes, err := m.routes()
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(m.listen)
	if err != nil {
		return usagef("--cluster-listen %q: %v", m.listen, err).then("give it as HOST:PORT, or :6222 for every address of this machine")
	}
	if m.serverName == "" {
		if m.serverName, err = serverName(port); err != nil {
			return err
		}
	}
	if !nameOfServer.MatchString(m.serverName) {
		return usagef("the server's name %q: want 1 to 64 letters, digits, - and _", m.serverName).then("give one with --server-name, another one on each machine")
	}
	if secretFile == "" {
		return usagef("--cluster-name needs --cluster-secret-file").then("make the cluster's keys once: weir cluster keys --help")
	}
	secret, err := readClusterSecret(secretFile)
	if err != nil {
		return err
	}
	member := &embedded.Cluster{Name: m.name, Listen: m.listen, Routes: routes, Secret: secret}
	switch given := m.cert != "" || m.certKey != "" || m.ca != ""; {
	case given && (m.cert == "" || m.certKey == "" || m.ca == ""):
		return usagef("--cluster-tls-cert, --cluster-tls-key and --cluster-tls-ca go together")
	case given:
		if err := m.readTLS(member); err != nil {
			return err
		}
	case !isLoopback(net.JoinHostPort(host, port)) || slices.ContainsFunc(routes, func(route string) bool { return !isLoopback(route) }):
		return usagef("without TLS the whole log would travel in the clear: --cluster-listen and --peers are not on loopback").
			then("make certificates once: weir cluster keys --help; then give --cluster-tls-cert, --cluster-tls-key and --cluster-tls-ca")
	}
	m.member = member
	return nil
}

// routes returns the peers with their ports.
func (m *membership) routes() ([]string, error) {
	var routes []string
	for peer := range strings.SplitSeq(m.peers, ",") {
		peer = strings.TrimSpace(peer)
		if _, _, err := net.SplitHostPort(peer); err != nil {
			peer = net.JoinHostPort(strings.Trim(peer, "[]"), defaultRoutePort)
		}
		host, _, err := net.SplitHostPort(peer)
		if err != nil || host == "" {
			return nil, usagef("--peers: %q is not like host1 or host1:6222", peer)
		}
		if slices.Contains(routes, peer) {
			return nil, usagef("--peers has %s twice", peer)
		}
		routes = append(routes, peer)
	}
	if len(routes) < peersMin || len(routes) > peersMax {
		return nil, usagef("--peers names %d servers; a cluster has %d to %d", len(routes), peersMin, peersMax).
			then("name every server, this one too: with two of them, none could be lost; for one machine alone there is 'weir serve --nats' or 'weir dev'")
	}
	return routes, nil
}

// serverName makes a name of the host's; several servers of one host differ by their ports.
func serverName(port string) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", usagef("this host has no name: %v", err).then("give the server one with --server-name")
	}
	name := strings.ReplaceAll(host, ".", "-")
	if port != defaultRoutePort {
		name += "-" + port
	}
	return name, nil
}

func (m *membership) readTLS(member *embedded.Cluster) (err error) {
	texts := make([][]byte, 3)
	for i, file := range []string{m.cert, m.certKey, m.ca} {
		if texts[i], err = os.ReadFile(file); err != nil {
			return usagef("the cluster's TLS: %v", err)
		}
	}
	if member.TLS, err = embedded.RouteTLS(texts[0], texts[1], texts[2]); err != nil {
		return usagef("the cluster's TLS (%s): %v", m.cert, err).then("make certificates anew: weir cluster keys --help")
	}
	return nil
}

// readClusterSecret reads the secret, which nobody but its owner may be able to read.
func readClusterSecret(file string) (embedded.Secret, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, usagef("--cluster-secret-file: %v", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, usagef("--cluster-secret-file: others than its owner may read %s (mode %04o)", file, info.Mode().Perm()).then("chmod 600 %s, and make a new secret if somebody may have", file)
	}
	text, err := readSecret(file)
	if err != nil {
		return nil, usagef("--cluster-secret-file: %v", err)
	}
	if len(text) < embedded.SecretBytesMin {
		return nil, usagef("--cluster-secret-file: %s has %d characters, fewer than %d", file, len(text), embedded.SecretBytesMin).then("make one: weir cluster keys --help")
	}
	return embedded.Secret(text), nil
}

// checkSharedKeys wants the keys that all nodes of a cluster share. Alone, a node makes its own, and three would make three of each.
func (m *membership) checkSharedKeys(dir dataDir, ownTokens bool) error {
	if m.member == nil {
		return nil
	}
	files := []string{sealing.MasterKeyFile}
	if ownTokens {
		files = append(files, identity.SigningKeyFile)
	}
	for _, file := range files {
		if _, err := os.Lstat(filepath.Join(string(dir), file)); errors.Is(err, fs.ErrNotExist) {
			return usagef("there is no %s in %s, and all nodes of a cluster have the same one", file, dir).
				then("copy it from where 'weir cluster keys' made it, or from another node's data directory, with mode 0600")
		}
	}
	return nil
}

// awaitCluster waits until the cluster has a leader that this node's server follows. It says what it waits for, and goes on waiting
// as long as it takes: the other machines may be started in any order.
func (l *openLog) awaitCluster(ctx context.Context, peers []string) error {
	tick := time.NewTicker(clusterPoll)
	defer tick.Stop()
	started, said := time.Now(), time.Time{}
	for {
		state := l.embedded.Cluster()
		if state.Leader != "" && state.Current {
			l.logger.Info("the cluster has a leader", "leader", state.Leader, "servers", strings.Join(state.Servers, " "), "of", len(peers))
			return nil
		}
		if time.Since(said) >= clusterLineEvery {
			said = time.Now()
			l.sayWaiting(ctx, state, peers, time.Since(started))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// sayWaiting says what a node that waits for its cluster waits for.
func (l *openLog) sayWaiting(ctx context.Context, state embedded.ClusterState, peers []string, waited time.Duration) {
	say := l.logger.Info
	if waited >= clusterWarnAfter {
		say = l.logger.Warn
	}
	missing := l.missingPeers(ctx, state, peers)
	waitsFor := "a leader: the servers are electing one"
	switch {
	case 2*len(state.Servers) > len(peers):
	case len(missing) > 0:
		waitsFor = fmt.Sprintf("%d of %d servers; start those that do not answer", len(peers)/2+1, len(peers))
	default:
		waitsFor = "routes: every peer listens, and none lets this server in; are cluster name, secret and certificates those of this cluster?"
	}
	say("waiting for the cluster", "for", waitsFor, "here", strings.Join(state.Servers, " "), "not_answering", strings.Join(missing, " "))
}

// missingPeers returns the peers that nothing listens at, if there are servers missing.
func (l *openLog) missingPeers(ctx context.Context, state embedded.ClusterState, peers []string) []string {
	if len(state.Servers) >= len(peers) {
		return nil
	}
	own := l.embedded.RouteAddress()
	return silentPeers(ctx, slices.DeleteFunc(slices.Clone(peers), func(peer string) bool { return peer == own }))
}

// silentPeers returns the peers that nothing listens at.
func silentPeers(ctx context.Context, peers []string) []string {
	ctx, cancel := context.WithTimeout(ctx, peerDialMax)
	defer cancel()
	silent := make([]string, len(peers))
	done := make(chan struct{})
	for i, peer := range peers {
		go func() {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", peer)
			if err != nil {
				silent[i] = peer
			} else {
				_ = conn.Close() // It only had to open.
			}
			done <- struct{}{}
		}()
	}
	for range peers {
		<-done
	}
	return slices.DeleteFunc(silent, func(peer string) bool { return peer == "" })
}

// whileForming calls open again while the cluster cannot answer yet: after a start of all servers every stream elects a leader, and a
// new log waits for as many servers as it has replicas. Another error, or ctx's end, ends it.
func (l *openLog) whileForming(ctx context.Context, peers []string, open func(context.Context) error) error {
	started, said := time.Now(), time.Now()
	for {
		attempt, cancel := context.WithTimeout(ctx, clusterAttempt)
		err := open(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || !eventstore.Forming(err) {
			return err
		}
		if time.Since(said) >= clusterLineEvery {
			said = time.Now()
			state := l.embedded.Cluster()
			l.logger.Info("waiting for the log", "because", err, "here", strings.Join(state.Servers, " "),
				"not_answering", strings.Join(l.missingPeers(ctx, state, peers), " "), "since", time.Since(started).Round(time.Second))
		}
		timer := time.NewTimer(clusterRetry)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return fmt.Errorf("the cluster did not answer in time: %w", err)
		}
	}
}

// natsAccess says how a node or a command signs in to a NATS server.
type natsAccess struct {
	credentials string
	ca          string
	cert        string
	key         string
	// secretFile has the secret of a cluster of embedded servers.
	secretFile string
	// gateway says that a gateway signs in there, and not a node.
	gateway bool
	// systemCredentials are for the system account.
	systemCredentials string
}

func (a *natsAccess) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&a.credentials, "nats-creds", "", "`FILE` with the credentials for the NATS server")
	flags.StringVar(&a.ca, "nats-ca", "", "`FILE` with the authority that signed the NATS servers' certificates; the system's when not given")
	flags.StringVar(&a.cert, "nats-cert", "", "`FILE` with the certificate to show to the NATS server")
	flags.StringVar(&a.key, "nats-key", "", "`FILE` with the key of that certificate")
	flags.StringVar(&a.secretFile, "cluster-secret-file", "", "`FILE` with the secret of a cluster of Weir's own servers, which they and who connects to them share")
	setting(flags, "nats-creds", "nats-ca", "nats-cert", "nats-key", "cluster-secret-file")
}

// addGateway adds the flags for those that sign in as a gateway does.
func (a *natsAccess) addGateway(cmd *cobra.Command) {
	a.gateway = true
	a.add(cmd)
}

// addSystem adds the flag for those that ask servers about themselves.
func (a *natsAccess) addSystem(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&a.systemCredentials, "nats-system-creds", "", "`FILE` with credentials for the NATS system account, in which servers are asked about themselves")
	setting(flags, "nats-system-creds")
}

// connect signs in as a client of the log.
func (a *natsAccess) connect(address string, more ...nats.Option) (*nats.Conn, error) {
	options, err := a.options()
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(address, append(options, more...)...)
	if err != nil {
		return nil, explainNATS(redacted(address), err)
	}
	return nc, nil
}

// A server that hangs, or whose machine is gone without a word, does not close a connection: one on which silentPingsMax questions in a row are
// not answered, one each silentPingEvery, is given up, and the next server asked. The client library's own would take minutes.
const (
	silentPingEvery = 2 * time.Second
	silentPingsMax  = 3
)

// stay signs in as a client of the log under a name, and comes back whenever the connection is lost.
func (a *natsAccess) stay(address, name string, more ...nats.Option) (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name(name), nats.MaxReconnects(-1), nats.PingInterval(silentPingEvery), nats.MaxPingsOutstanding(silentPingsMax),
		nats.ReconnectWait(200 * time.Millisecond), nats.ReconnectJitter(100*time.Millisecond, 100*time.Millisecond),
	}
	return a.connect(address, append(options, more...)...)
}

// connectSystem signs in to the system account; nil where nothing says how.
func (a *natsAccess) connectSystem(address string) (*nats.Conn, error) {
	system := natsAccess{ca: a.ca, cert: a.cert, key: a.key, credentials: a.systemCredentials}
	options := []nats.Option{nats.Name("weir: about the servers")}
	switch {
	case a.secretFile != "":
		secret, err := readClusterSecret(a.secretFile)
		if err != nil {
			return nil, err
		}
		signIn, err := secret.SystemOption()
		if err != nil {
			return nil, err
		}
		options = append(options, signIn)
	case a.systemCredentials == "":
		return nil, nil
	}
	return system.connect(address, options...)
}

// options returns what the client is told.
func (a *natsAccess) options() ([]nats.Option, error) {
	var options []nats.Option
	if a.credentials != "" {
		options = append(options, nats.UserCredentials(a.credentials))
	}
	if a.ca != "" {
		options = append(options, nats.RootCAs(a.ca))
	}
	if (a.cert == "") != (a.key == "") {
		return nil, usagef("--nats-cert and --nats-key go together")
	}
	if a.cert != "" {
		options = append(options, nats.ClientCert(a.cert, a.key))
	}
	if a.secretFile == "" {
		return options, nil
	}
	secret, err := readClusterSecret(a.secretFile)
	if err != nil {
		return nil, err
	}
	signIn := secret.ClientOption
	if a.gateway {
		signIn = secret.GatewayOption
	}
	option, err := signIn()
	if err != nil {
		return nil, err
	}
	return append(options, option), nil
}
