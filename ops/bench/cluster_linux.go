package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
)

const (
	// clusterLanes of the clusters that are measured: one node has two of them, two have one each.
	clusterLanes = 4
	// usersOfNode is how many users of a node's lanes its orders come from.
	usersOfNode = 100_000
	// clusterAim is how many orders a second three nodes and three servers are to take.
	clusterAim = 15_000
	// knownMax bounds the wait until every node knows the products, knownLook is between two looks.
	knownMax  = time.Minute
	knownLook = 20 * time.Millisecond
	// hopQuarter is the share of the slower contestant's rate at which latencies of the hop are measured.
	hopQuarter = 0.25
)

// findServer returns the path of the nats-server that clusters are built of; "" when there is none.
func (b *bench) findServer() string {
	if b.NATSServer != "" {
		return b.NATSServer
	}
	path, err := exec.LookPath("nats-server")
	if err != nil {
		b.report.LeftOut = append(b.report.LeftOut, "cluster, hop and failover: there is no nats-server in the path; make cluster-bench builds one, and --nats-server names one")
		return ""
	}
	return path
}

// A shape is how many nodes and servers a cluster has. 0 servers are in the nodes' processes, 0 nodes are a log alone, and empty.
type shape struct {
	nodes, servers int
	// oneFollows is whether the first node alone keeps views.
	oneFollows bool
}

// withCluster is withClusters of one.
func (b *bench) withCluster(ctx context.Context, of shape, f func(*launch.Cluster) error) error {
	return b.withClusters(ctx, []shape{of}, func(clusters []*launch.Cluster) error { return f(clusters[0]) })
}

// withClusters runs f with stocked clusters in processes of their own, which it ends and removes: side by side, since both are mostly waiting.
// Without a nats-server nothing is run, and the report says so.
func (b *bench) withClusters(ctx context.Context, of []shape, f func([]*launch.Cluster) error) (err error) {
	binary := b.findServer()
	if binary == "" {
		return nil
	}
	clusters, dirs := make([]*launch.Cluster, len(of)), make([]string, len(of))
	defer func() {
		var ending errgroup.Group
		for i, c := range clusters {
			ending.Go(func() error {
				if c == nil { // It has not come so far.
					return os.RemoveAll(dirs[i])
				}
				return errors.Join(c.End(), os.RemoveAll(dirs[i]))
			})
		}
		err = errors.Join(err, ending.Wait())
	}()
	starting, started := errgroup.WithContext(ctx)
	for i := range of {
		if dirs[i], err = os.MkdirTemp(b.dir, "cluster-"); err != nil {
			return errors.Join(err, starting.Wait())
		}
		starting.Go(func() (err error) {
			clusters[i], err = b.startCluster(started, binary, dirs[i], of[i])
			return err
		})
	}
	if err := starting.Wait(); err != nil {
		return err
	}
	return f(clusters)
}

// startCluster starts a cluster and stocks it. It returns it also with an error, if it runs.
func (b *bench) startCluster(ctx context.Context, binary, dir string, of shape) (*launch.Cluster, error) {
	weirBinary, err := filepath.Abs(b.Weir)
	if err != nil {
		return nil, err
	}
	c, err := launch.NewCluster(ctx, launch.ClusterOptions{Weir: weirBinary, NATS: binary, Dir: dir, Nodes: of.nodes, Servers: of.servers, Lanes: clusterLanes})
	if err != nil {
		return nil, err
	}
	if of.oneFollows {
		for _, node := range c.Nodes[1:] {
			node.Flags = append(node.Flags, "--follow", "none")
		}
	}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	if of.nodes == 0 {
		return c, nil
	}
	w := &weir{c.Nodes[0]}
	if err := w.stock(ctx); err != nil {
		return c, fmt.Errorf("stock: %w", err)
	}
	if err := w.preheat(ctx); err != nil {
		return c, err
	}
	return c, allKnown(ctx, c)
}

// allKnown waits until every node has followed the logs of all lanes to their heads.
func allKnown(ctx context.Context, c *launch.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, knownMax)
	defer cancel()
	for i := range c.Nodes {
		for {
			seen, err := c.Look(ctx, i)
			if err != nil {
				return err
			}
			lag := uint64(0)
			for _, lane := range seen.GetLanes() {
				lag += lane.GetLagCommits()
			}
			if lag == 0 {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("node %d is still %d commits behind: %w", i+1, lag, ctx.Err())
			case <-time.After(knownLook):
			}
		}
	}
	return nil
}

// clusterServer returns a cluster as one that is measured: all of its processes work for it.
func clusterServer(c *launch.Cluster) *server {
	var each []*launch.Server
	for _, node := range c.Nodes {
		each = append(each, node.Server)
	}
	for _, s := range c.Servers {
		each = append(each, s.Server)
	}
	return &server{Server: each[0], needs: each[1:]}
}

// usersByNode returns users of each node's lanes, as a client or a gateway knows them that goes by the lane.
func usersByNode(ctx context.Context, c *launch.Cluster) ([][]string, error) {
	seen, err := c.Look(ctx, 0)
	if err != nil {
		return nil, err
	}
	nodeOf := make([]int, clusterLanes)
	for _, lane := range seen.GetLanes() {
		if _, err := fmt.Sscanf(lane.GetNodeId(), "n%d", &nodeOf[lane.GetLane()]); err != nil {
			return nil, fmt.Errorf("lane %d is decided by %q: %w", lane.GetLane(), lane.GetNodeId(), err)
		}
		nodeOf[lane.GetLane()]--
	}
	topology := eventstore.Topology{Lanes: clusterLanes}
	users := make([][]string, len(c.Nodes))
	for i := range usersMax {
		user := fmt.Sprintf("u%07d", i)
		if node := nodeOf[topology.LaneOf(eventstore.PartitionOf(user))]; len(users[node]) < usersOfNode {
			users[node] = append(users[node], user)
		}
	}
	for node := range users {
		if len(users[node]) == 0 {
			return nil, fmt.Errorf("node %d has no lane", node+1)
		}
	}
	return users, nil
}

// placeAtOnce places orders at several nodes at once, each over its share of the connections, and returns what they did together.
// users are those of each node's orders; nil means any, so that most orders make a hop.
func (b *bench) placeAtOnce(ctx context.Context, c *launch.Cluster, users [][]string) (*load.Result, error) {
	results := make([]*load.Result, len(c.Nodes))
	group, ctx := errgroup.WithContext(ctx)
	for i, node := range c.Nodes {
		w := &weir{node}
		user := load.Draw(newRandom(), "u", usersMax)
		if users != nil {
			user = load.Pick(newRandom(), users[i])
		}
		source, err := w.placeSourceOf(protoType, skusMany, user)
		if err != nil {
			return nil, err
		}
		options := load.Options{
			Addr: w.Addr, Connections: max(1, b.Connections/len(c.Nodes)), Warmup: b.Warmup, Duration: b.Duration, Source: source,
		}
		if i == 0 { // The processor is counted once.
			options.Processes = clusterServer(c).processes()
		}
		group.Go(func() (err error) {
			results[i], err = load.Run(ctx, options)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	sum := results[0]
	for _, other := range results[1:] {
		sum.Calls, sum.Failed = sum.Calls+other.Calls, sum.Failed+other.Failed
		if sum.FirstFailure == "" {
			sum.FirstFailure = other.FirstFailure
		}
		sum.Latency.Merge(&other.Latency)
	}
	return sum, nil
}

// newRandom returns a source of chance that no other of this process repeats.
func newRandom() *rand.Rand { return rand.New(rand.NewPCG(sources.Add(1), 1)) }

// cluster is three nodes and three servers, each a process, or each a node with its server, beside one node and one server, and beside the log
// that they write, on the same processors and disk.
func (b *bench) cluster(ctx context.Context) error {
	return b.withClusters(ctx, []shape{
		{nodes: 1, servers: 1}, {nodes: 3, servers: 3}, {nodes: 3, servers: 3, oneFollows: true}, {nodes: 3}, {servers: 3},
	}, func(clusters []*launch.Cluster) error {
		one, three, oneView, binary, servers := clusters[0], clusters[1], clusters[2], clusters[3], clusters[4]
		return withLogAlone(ctx, servers, three, func(log *logAlone) error {
			return b.compareClusters(ctx, one, three, oneView, binary, log)
		})
	})
}

func (b *bench) compareClusters(ctx context.Context, one, three, oneView, binary *launch.Cluster, log *logAlone) error {
	placing := func(name string, c *launch.Cluster, users [][]string) contestant {
		return contestant{name: name, server: clusterServer(c), run: func(ctx context.Context) (*load.Result, error) {
			return b.placeAtOnce(ctx, c, users)
		}}
	}
	users, err := usersByNode(ctx, three)
	if err != nil {
		return err
	}
	usersOfOneView, err := usersByNode(ctx, oneView)
	if err != nil {
		return err
	}
	usersOfBinary, err := usersByNode(ctx, binary)
	if err != nil {
		return err
	}
	figures, err := b.measure(ctx, "cluster", []contestant{
		placing("1 node, 1 server, R1", one, nil),
		placing("3 nodes, 3 servers, R3, at the owners", three, users),
		placing("3 nodes, 3 servers, R3, at the owners, views at one", oneView, usersOfOneView),
		placing("3 nodes, 3 servers, R3, at any node", three, nil),
		placing("3 nodes with a server each, R3, at the owners", binary, usersOfBinary),
		{name: "3 servers, R3: commits alone", server: clusterServer(log.servers), run: func(ctx context.Context) (*load.Result, error) {
			return log.run(ctx, b)
		}},
	})
	if err != nil {
		return err
	}
	alone, owners, embedded, ceiling := figures[0], figures[1], figures[4], figures[5]
	b.report.check("orders/s of three nodes and three servers, R3", owners.PerSecond, "/s", clusterAim, false)
	b.report.check("three nodes, R3 : one node, R1", owners.PerSecond/alone.PerSecond, "×", 0, false)
	b.report.check("orders/s of three nodes, R3, of which one keeps views : of which all do", figures[2].PerSecond/owners.PerSecond, "×", 0, false)
	b.report.check("three nodes, R3: p50 at that rate", owners.P50Micros/1000, "ms", 0, true)
	b.report.check("orders/s of three nodes with a server each, R3", embedded.PerSecond, "/s", 0, false)
	b.report.check(fmt.Sprintf("orders/s : what the log takes in commits of %d orders, nothing else running", log.orders), owners.PerSecond/ceiling.PerSecond, "×", 0, false)
	return nil
}

// hop is a call to the node that decides it beside one to another node, which asks that one. Two nodes and one server, so that nothing but the
// hop differs.
func (b *bench) hop(ctx context.Context) error {
	return b.withCluster(ctx, shape{nodes: 2, servers: 1}, func(c *launch.Cluster) error {
		users, err := usersByNode(ctx, c)
		if err != nil {
			return err
		}
		all := clusterServer(c)
		to := func(name string, node int) contestant {
			w := &weir{c.Nodes[0]}
			return contestant{name: name, server: all, source: func() (load.Source, error) {
				return w.placeSourceOf(protoType, skusMany, load.Pick(newRandom(), users[node]))
			}}
		}
		home, away := to("to the owner's node", 0), to("through another node", 1)
		busy, err := b.measure(ctx, "hop", []contestant{home, away})
		if err != nil {
			return err
		}
		rate := hopQuarter * min(busy[0].PerSecond, busy[1].PerSecond)
		for _, each := range []*contestant{&home, &away} {
			each.rate = rate
			each.name += ", quarter of the rate"
		}
		quiet, err := b.measure(ctx, "hop", []contestant{home, away})
		if err != nil {
			return err
		}
		b.report.check("the hop: processor, at full rate", busy[1].ServerMicros-busy[0].ServerMicros, "µs", 0, true)
		b.report.check("the hop: p50, at a quarter of the rate", quiet[1].P50Micros-quiet[0].P50Micros, "µs", 0, true)
		b.report.check("orders/s through another node : to the owner's", busy[1].PerSecond/busy[0].PerSecond, "×", 0, false)
		return nil
	})
}
