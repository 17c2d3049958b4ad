package launch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	"github.com/weirhq/weir/proto/weir/cluster/v1/clusterv1connect"
)

const (
	// ports of a host of its own.
	clientPort, monitorPort, routePort, apiPort = 4222, 8222, 6222, 8080
	// exitUnavailable is how weir ends when it cannot reach its servers; it is started again, so often.
	exitUnavailable = 6
	startsMax       = 5
	// lookMax bounds one look at a cluster.
	lookMax = 5 * time.Second
	// settleMax is how long a cluster may take until every lane is decided and every copy of the log is up to date.
	settleMax = time.Minute
)

// A Cluster is nodes that share the lanes of one log, and the NATS servers that keep it.
type Cluster struct {
	// Servers are none when the nodes are the servers, too.
	Servers []*NATS
	Nodes   []*Node
	// Lanes of the log.
	Lanes int
	// keys is where what the nodes share was made, "" where the first node makes it.
	keys string
}

// ClusterOptions say what a cluster is made of.
type ClusterOptions struct {
	// Weir and NATS are the paths of the binaries.
	Weir, NATS string
	// Dir is where the data of all is made.
	Dir string
	// Nodes that share Lanes; 0 is a log alone. Servers keep the log, each a replica: 1 or 3. 0 has each node keep it in its own process.
	Nodes, Servers, Lanes int
	// LeaseTTL is that of a lane; 0 is the default of weir.
	LeaseTTL time.Duration
	// Hosts are addresses of their own for the nodes and the server with the same number; none takes some of loopback that are drawn.
	Hosts []string
	// Prefixes are commands that run what is on these hosts.
	Prefixes [][]string
	// Between returns the address at which a node finds a server, when something stands in between; nil is for nothing.
	Between func(ctx context.Context, node int, server string) (string, error)
	// SyncInterval is how the servers fsync; empty is before they acknowledge.
	SyncInterval string
	// ServerDirs are where the servers keep their files, and nodes that keep the log themselves all of theirs; none puts them below Dir.
	ServerDirs []string
	// Flags are further flags of 'weir serve'.
	Flags []string
}

// NewCluster says where everything will be. It starts nothing.
func NewCluster(ctx context.Context, o ClusterOptions) (*Cluster, error) {
	c := &Cluster{Lanes: o.Lanes}
	hosts := o.Hosts
	if len(hosts) == 0 {
		// Loopback is a whole network: there is room for clusters of other programs, and for what is started again.
		network := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(256))
		for i := range max(o.Nodes, o.Servers) {
			hosts = append(hosts, network+strconv.Itoa(i+1))
		}
	}
	at := func(host, port int) string { return net.JoinHostPort(hosts[host], strconv.Itoa(port)) }
	prefix := func(host int) []string {
		if len(o.Prefixes) == 0 {
			return nil
		}
		return o.Prefixes[host]
	}
	if o.Servers == 0 {
		return c, c.embed(ctx, o, hosts, at)
	}
	var routes, monitors []string
	for i := range o.Servers {
		name := fmt.Sprintf("s%d", i+1)
		s := &NATS{Binary: o.NATS, Dir: filepath.Join(o.Dir, name), ServerName: name, SyncInterval: o.SyncInterval, Prefix: prefix(i)}
		if len(o.ServerDirs) > 0 {
			s.Dir = o.ServerDirs[i]
		}
		s.Client, s.Monitor, s.Route = at(i, clientPort), at(i, monitorPort), at(i, routePort)
		c.Servers, routes, monitors = append(c.Servers, s), append(routes, s.Route), append(monitors, "http://"+s.Monitor)
	}
	for i := range o.Nodes {
		var urls []string
		for turn := range o.Servers {
			server := c.Servers[(i+turn)%o.Servers].Client
			if o.Between != nil {
				var err error
				if server, err = o.Between(ctx, i, server); err != nil {
					return nil, err
				}
			}
			urls = append(urls, "nats://"+server)
		}
		name := fmt.Sprintf("n%d", i+1)
		flags := []string{"--node-id", name, "--nats-monitor", strings.Join(monitors, ","), "--replicas", strconv.Itoa(o.Servers), "--log-level", "warn"}
		if o.LeaseTTL != 0 {
			flags = append(flags, "--lease-ttl", o.LeaseTTL.String())
		}
		if o.SyncInterval != "" {
			flags = append(flags, "--allow-lossy-log")
		}
		c.Nodes = append(c.Nodes, &Node{
			Binary: o.Weir, Data: filepath.Join(o.Dir, name), Lanes: o.Lanes, NATS: strings.Join(urls, ","), Listen: at(i, apiPort), Prefix: prefix(i),
			Flags: append(flags, o.Flags...),
		})
	}
	for _, s := range c.Servers {
		s.Routes = routes
	}
	return c, nil
}

// embed makes nodes that keep the log themselves: one binary on as many machines. It makes what they share. Between hosts of their own the
// routes are protected by TLS, without which nodes refuse to leave loopback.
func (c *Cluster) embed(ctx context.Context, o ClusterOptions, hosts []string, at func(host, port int) string) error {
	c.keys = filepath.Join(o.Dir, "keys")
	arguments := append([]string{"cluster", "keys", "--out", c.keys}, hosts[:o.Nodes]...)
	if _, err := Output(ctx, nil, o.Weir, arguments...); err != nil {
		return err
	}
	var peers []string
	for i := range o.Nodes {
		peers = append(peers, at(i, routePort))
	}
	for i, peer := range peers {
		name := fmt.Sprintf("n%d", i+1)
		flags := []string{
			"--node-id", name, "--server-name", fmt.Sprintf("s%d", i+1), "--cluster-name", "weir", "--peers", strings.Join(peers, ","), "--cluster-listen", peer,
			"--cluster-secret-file", filepath.Join(c.keys, "secret"), "--log-level", "warn",
		}
		if len(o.Hosts) > 0 {
			key := filepath.Join(c.keys, hosts[i])
			flags = append(flags, "--cluster-tls-cert", key+".pem", "--cluster-tls-key", key+".key", "--cluster-tls-ca", filepath.Join(c.keys, "ca.pem"))
		}
		if o.LeaseTTL != 0 {
			flags = append(flags, "--lease-ttl", o.LeaseTTL.String())
		}
		node := &Node{
			Binary: o.Weir, Data: filepath.Join(o.Dir, name), Lanes: o.Lanes, Member: true, Listen: at(i, apiPort), Flags: append(flags, o.Flags...),
		}
		if len(o.Prefixes) > 0 {
			node.Prefix = o.Prefixes[i]
		}
		if len(o.ServerDirs) > 0 {
			node.Data = filepath.Join(o.ServerDirs[i], name)
		}
		c.Nodes = append(c.Nodes, node)
	}
	return nil
}

// Start starts everything and waits until the nodes share the lanes. After an error nothing runs.
func (c *Cluster) Start(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Crash())
		}
	}()
	switch {
	case len(c.Nodes) == 0:
		return c.startServers(ctx)
	case c.keys != "":
		if err := shareKeys(c.keys, c.Nodes); err != nil {
			return err
		}
		return c.Heal(ctx)
	}
	if err := c.startServers(ctx); err != nil {
		return err
	}
	// The first node makes the log and the keys, which the others are given.
	if err := c.Nodes[0].serve(ctx); err != nil {
		return err
	}
	if err := shareKeys(c.Nodes[0].Data, c.Nodes[1:]); err != nil {
		return err
	}
	for _, node := range c.Nodes[1:] {
		node.Operator, node.Trusted = c.Nodes[0].Operator, c.Nodes[0].Trusted
	}
	return c.Heal(ctx)
}

// Renew gives a node that does not run, and is a server too, a new disk: an empty one, on which it finds the keys that all nodes share.
func (c *Cluster) Renew(node int) error {
	if err := os.RemoveAll(c.Nodes[node].Data); err != nil {
		return err
	}
	return shareKeys(c.keys, c.Nodes[node:node+1])
}

// shareKeys gives nodes the keys in a directory. They are durable when it returns, as what a person copied long ago is.
func shareKeys(from string, nodes []*Node) error {
	for _, node := range nodes {
		if err := os.MkdirAll(node.Data, 0o700); err != nil {
			return err
		}
		for _, name := range []string{"token.key", "master.key"} {
			key, err := os.ReadFile(filepath.Join(from, name))
			if err != nil {
				return err
			}
			if err := writeDurably(filepath.Join(node.Data, name), key); err != nil {
				return err
			}
		}
		if err := errors.Join(syncDir(node.Data), syncDir(filepath.Dir(node.Data))); err != nil {
			return err
		}
	}
	return nil
}

// writeDurably writes a file that only its owner may read, and returns once it is on the disk. Its directory is synced by the caller.
func writeDurably(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Sync(), file.Close())
}

// syncDir makes durable what was made in a directory.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (c *Cluster) startServers(ctx context.Context) error {
	for _, s := range c.Servers {
		if s.Running() {
			continue
		}
		if err := s.Begin(); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, s := range c.Servers {
		group.Go(func() error { return s.Serving(ctx) })
	}
	return group.Wait()
}

// Heal starts what does not run, and waits until all of it serves, every lane is decided and every replica is up to date.
func (c *Cluster) Heal(ctx context.Context) error {
	if err := c.startServers(ctx); err != nil {
		return err
	}
	group, ready := errgroup.WithContext(ctx)
	for _, node := range c.Nodes {
		group.Go(func() error {
			return node.serve(ready)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := c.Settled(ctx); err != nil {
		return err
	}
	// A node that served for a moment and ended since is not asked, and all of them together are asked nothing.
	var errs []error
	for _, node := range c.Nodes {
		errs = append(errs, node.Gone())
	}
	return errors.Join(errs...)
}

// serve starts a node that does not run, and again, as a supervisor would, when it says that the servers cannot be reached.
func (n *Node) serve(ctx context.Context) error {
	for try := 1; ; try++ {
		if !n.Running() {
			if err := n.Begin(ctx); err != nil {
				return err
			}
		}
		_, err := n.Serving(ctx)
		if err == nil || n.Running() || n.command.ProcessState.ExitCode() != exitUnavailable || try == startsMax {
			return err
		}
	}
}

// Settled waits until every node is known to the others, every lane has one and every replica is up to date.
func (c *Cluster) Settled(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleMax)
	defer cancel()
	var last error
	for {
		if last = c.unsettled(ctx); last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster does not settle: %w: %w", last, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unsettled says what is not yet as it is to be.
func (c *Cluster) unsettled(ctx context.Context) error {
	running := 0
	for _, node := range c.Nodes {
		if node.Running() {
			running++
		}
	}
	for i, node := range c.Nodes {
		if !node.Running() {
			continue
		}
		seen, err := c.Look(ctx, i)
		if err != nil {
			return err
		}
		if len(seen.GetNodes()) != running {
			return fmt.Errorf("node %d knows %d nodes of %d", i+1, len(seen.GetNodes()), running)
		}
		for _, other := range seen.GetNodes() {
			if !other.GetMember().GetWarm() {
				return fmt.Errorf("node %s is cold", other.GetMember().GetNodeId())
			}
		}
		for _, lane := range seen.GetLanes() {
			if lane.GetNodeId() == "" || lane.GetStreamFault() != "" || lane.GetReplicasCurrent() < lane.GetReplicas() {
				return fmt.Errorf("lane %d is not settled: %v", lane.GetLane(), lane)
			}
		}
	}
	return nil
}

// Look returns the cluster as one of its nodes sees it.
func (c *Cluster) Look(ctx context.Context, node int) (*clusterv1.GetClusterResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, lookMax)
	defer cancel()
	answer, err := c.Operate(node).GetCluster(ctx, &clusterv1.GetClusterRequest{})
	if err != nil {
		return nil, fmt.Errorf("look at the cluster through node %d: %w", node+1, err)
	}
	return answer, nil
}

// Operate returns an operator's client of a node.
func (c *Cluster) Operate(node int) clusterv1connect.ClusterServiceClient {
	return clusterv1connect.NewClusterServiceClient(http.DefaultClient, "http://"+c.Nodes[node].Listen, connect.WithInterceptors(Bearer(c.Nodes[node].Operator)))
}

// End stops the nodes cleanly, and then the servers.
func (c *Cluster) End() error {
	var errs []error
	for _, node := range c.Nodes {
		if node.Running() {
			errs = append(errs, node.End())
		}
	}
	for _, s := range c.Servers {
		if s.Running() {
			errs = append(errs, s.End())
		}
	}
	return errors.Join(errs...)
}

// Crash kills all nodes and servers.
func (c *Cluster) Crash() error {
	group := errgroup.Group{}
	for _, node := range c.Nodes {
		if node.Running() {
			group.Go(node.Crash)
		}
	}
	for _, s := range c.Servers {
		if s.Running() {
			group.Go(s.Crash)
		}
	}
	return group.Wait()
}
