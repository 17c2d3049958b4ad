package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/ops/launch"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

const (
	// clusterNodes share the lanes.
	clusterNodes = 3
	// clusterCallMax is how long one call to a cluster may take before its outcome counts as unknown, and another node is asked. A node
	// that has no answer from another one asks again after 1 s.
	clusterCallMax = 2 * time.Second
	// takeoverMax is how long after its lease a lane may be without a node.
	takeoverMax = time.Second
	// lossyInterval is how seldom the servers of a control run fsync. Nodes that are servers fsync in any case: there the disks lie, and forget
	// what was written to them for lyingFor.
	lossyInterval = "2m"
	lyingFor      = 2 * time.Second
	// serverLossShare is the share of the pieces of what a server sends to a node instead of which the connection is cut.
	serverLossShare = 0.0005
	// minorityCalls are made to a node that is cut off: it may not acknowledge one.
	minorityCalls = 8
	// refusesData is how a node ends whose log is shorter than what it knows.
	refusesData = "exit status 8"
	// brokenLog is in what is said of a log whose commits do not follow each other (I2).
	brokenLog = "is damaged at commit"
	// explainFrom is how long a lane is silent before what nodes and servers printed is shown: NATS takes up to ten seconds to elect a leader.
	explainFrom = 10 * time.Second
	// leadMax is how long a server may take to lead a stream.
	leadMax = 30 * time.Second
	// strikeMax is how long a strike may take, beside Options.PauseFor and LeaseTTL; restarting everything in turn is the longest. healMax is how
	// long it may take until all is well again: started, caught up, and each lane with a node.
	strikeMax = 10 * time.Minute
	healMax   = 4 * time.Minute
	// giveBackMax is how long it may take to give the disks back.
	giveBackMax = 30 * time.Second
	// stepDownMax is how long a leader is asked to step down.
	stepDownMax = 5 * time.Second
	// tornMax is how much of the end of a file is lost.
	tornMax = 4096
	// catchUpMax is how long after the start of a node with an empty disk another one is killed, at most.
	catchUpMax = 3 * time.Second
)

// A cluster is nodes that share the lanes of one log, and the servers that keep it, all in processes of their own, or each node with its server
// in one. It implements node: its clients ask all nodes in turn, whether they are there or not.
type cluster struct {
	*launch.Cluster
	turn atomic.Uint64
	// struck are the processes that a strike ended: all others have to be there.
	struck map[any]bool
	// proxies stand before the nodes where replies are lost, and behind them, before the servers.
	proxies, behind []*proxy
	// damaged server, and the lane that it keeps damaged.
	damaged, damagedLane int
	// down says that nobody can be served before it is healed.
	down bool
	// minority is the node that is cut off.
	minority int
	// disks of the machines where power is cut: of the servers, or of the nodes that are servers.
	disks []*disk
}

// A lossError is what a cluster says when its log is shorter than what was acknowledged.
type lossError struct{ error }

// Unwrap returns what it said.
func (e *lossError) Unwrap() error { return e.error }

func newCluster(ctx context.Context, options Options, dir string) (*cluster, error) {
	o := launch.ClusterOptions{Dir: dir, Nodes: clusterNodes, Servers: options.Servers, Lanes: options.Lanes, LeaseTTL: options.LeaseTTL}
	binaries := map[string]*string{options.Weir: &o.Weir}
	if kinds[options.Kind].strike.peers {
		o.Servers = 0
	} else {
		binaries[options.NATS] = &o.NATS
	}
	for path, absolute := range binaries {
		var err error
		if *absolute, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		if _, err := os.Stat(*absolute); err != nil {
			return nil, fmt.Errorf("no binary to torment (make chaos makes it): %w", err)
		}
	}
	c := &cluster{struck: map[any]bool{}}
	if options.Lossy {
		o.SyncInterval = lossyInterval
	}
	if prepare := kinds[options.Kind].strike.prepare; prepare != nil {
		if err := prepare(ctx, c, options, &o); err != nil {
			return nil, err
		}
	}
	var err error
	if c.Cluster, err = launch.NewCluster(ctx, o); err != nil {
		return nil, err
	}
	if len(c.behind) > 0 {
		for _, each := range c.Nodes {
			before, err := newProxy(ctx, options.Seed, 0, func() string { return each.Listen })
			if err != nil {
				return nil, err
			}
			c.proxies = append(c.proxies, before)
		}
	}
	return c, nil
}

// withDisks puts the files of each server on a disk of its own, or of each node that is one.
func withDisks(ctx context.Context, c *cluster, _ Options, o *launch.ClusterOptions) error {
	machines := o.Servers
	if machines == 0 {
		machines = o.Nodes
	}
	for i := range machines {
		made, err := newDisk(ctx, filepath.Join(o.Dir, fmt.Sprintf("disk%d", i+1)))
		if err != nil {
			return err
		}
		c.disks, o.ServerDirs = append(c.disks, made), append(o.ServerDirs, filepath.Join(o.Dir, fmt.Sprintf("disk%d", i+1)))
	}
	return nil
}

// withHosts puts each node and server with the same number on a host of its own.
func withHosts(ctx context.Context, _ *cluster, _ Options, o *launch.ClusterOptions) (err error) {
	o.Hosts, o.Prefixes, err = hosts(ctx, clusterNodes)
	return err
}

// withProxies puts a proxy between each node and each server.
func withProxies(_ context.Context, c *cluster, options Options, o *launch.ClusterOptions) error {
	o.Between = func(ctx context.Context, _ int, server string) (string, error) {
		made, err := newProxy(ctx, options.Seed+uint64(len(c.behind)), 0, func() string { return server })
		if err != nil {
			return "", err
		}
		made.unfenced = options.Unfenced
		c.behind = append(c.behind, made)
		return made.listener.Addr().String(), nil
	}
	return nil
}

// End stops all of it, and gives the disks back.
func (c *cluster) End() error { return errors.Join(c.Cluster.End(), c.giveBack()) }

// Crash kills all of it, and gives the disks back.
func (c *cluster) Crash() error { return errors.Join(c.Cluster.Crash(), c.giveBack()) }

func (c *cluster) giveBack() error {
	ctx, cancel := context.WithTimeout(context.Background(), giveBackMax) // Also after an interruption.
	defer cancel()
	var errs []error
	for _, each := range c.disks {
		errs = append(errs, each.powerDown(ctx))
	}
	return errors.Join(errs...)
}

// Begin starts all of it. It takes a while: the first node makes what the others are given.
func (c *cluster) Begin(ctx context.Context) error { return c.Start(ctx) }

// Serving waits until every lane has a node.
func (c *cluster) Serving(ctx context.Context) (time.Duration, error) { return 0, c.Settled(ctx) }

// Pause and Resume are strikes, one process at a time.
func (c *cluster) Pause() error { panic("chaos: bug: a cluster is not paused as a whole") }

// Resume implements node.
func (c *cluster) Resume() error { panic("chaos: bug: a cluster is not paused as a whole") }

// PayAt implements node. No kind has a cluster paid.
func (c *cluster) PayAt(string, string) { panic("chaos: bug: nobody pays in a cluster") }

// URL is another node's each time.
func (c *cluster) URL() string {
	next := int(c.turn.Add(1)) % len(c.Nodes)
	if c.proxies != nil {
		return c.proxies[next].URL()
	}
	return "http://" + c.Nodes[next].Listen
}

// Tokens are those of the first node: they are good on all.
func (c *cluster) Tokens() (trusted, operator string) { return c.Nodes[0].Trusted, c.Nodes[0].Operator }

// first is a node as devNode reads its log: that is the same on all.
func (c *cluster) first() *devNode { return &devNode{*c.Nodes[0]} }

// Verify has each node compare its views with the log, and the log with itself.
func (c *cluster) Verify(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for i, each := range c.Nodes {
		group.Go(func() error {
			if err := (&devNode{*each}).Verify(ctx); err != nil {
				return fmt.Errorf("node %d: %w", i+1, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// Audit implements node.
func (c *cluster) Audit(ctx context.Context) error { return c.first().Audit(ctx) }

// Events implements node.
func (c *cluster) Events(ctx context.Context) ([]event, error) { return c.first().Events(ctx) }

// crash kills a node.
func (c *cluster) crash(i int) error {
	c.struck[c.Nodes[i]] = true
	return c.Nodes[i].Crash()
}

// crashServer kills a server.
func (c *cluster) crashServer(i int) error {
	c.struck[c.Servers[i]] = true
	return c.Servers[i].Crash()
}

// crashKeeper kills one of those that keep the log: a server, or a node that is one.
func (c *cluster) crashKeeper(i int) error {
	if len(c.Servers) == 0 {
		return c.crash(i)
	}
	return c.crashServer(i)
}

// keepers is how many keep the log.
func (c *cluster) keepers() int {
	if len(c.Servers) == 0 {
		return len(c.Nodes)
	}
	return len(c.Servers)
}

// healed starts what was struck and waits until all is as it was.
func (c *cluster) healed(ctx context.Context) error {
	if err := c.Heal(ctx); err != nil {
		return err
	}
	clear(c.struck)
	return nil
}

// deserted returns what is no longer there though nothing came over it.
func (c *cluster) deserted() error {
	var errs []error
	for _, each := range c.Nodes {
		if !c.struck[each] {
			errs = append(errs, each.Gone())
		}
	}
	for _, each := range c.Servers {
		if !c.struck[each] {
			errs = append(errs, each.Gone())
		}
	}
	return errors.Join(errs...)
}

// leader returns a lane that is drawn, and the server that leads its stream.
func (c *cluster) leader(ctx context.Context, random *rand.Rand) (lane, server int, err error) {
	return c.leaderOf(ctx, random.IntN(c.Lanes))
}

// leaderOf returns the server that leads a lane's stream.
func (c *cluster) leaderOf(ctx context.Context, lane int) (_, server int, err error) {
	seen, err := c.Look(ctx, 0)
	if err != nil {
		return 0, 0, err
	}
	name := seen.GetLanes()[lane].GetStreamLeader()
	for i, s := range c.Servers {
		if s.ServerName == name {
			return lane, i, nil
		}
	}
	return 0, 0, fmt.Errorf("lane %d is led by %q, which is no server of %d", lane, name, len(c.Servers))
}

// A strike is what comes over a cluster.
type strike struct {
	// comes makes it happen, and says what did. heal is nil where starting what was ended is enough.
	comes func(ctx context.Context, c *cluster, o Options, random *rand.Rand) (did string, heal func(context.Context) error, err error)
	// prepare says what a cluster needs for it; nil for nothing.
	prepare func(context.Context, *cluster, Options, *launch.ClusterOptions) error
	// inside says that it needs namespaces of its own, and so root.
	inside bool
	// planned says that nothing is broken by it, so that no call may fail.
	planned bool
	// total says that nobody can be served until it is over.
	total bool
	// cuts says that a node is cut off from the majority, and may acknowledge nothing.
	cuts bool
	// peers says that the nodes are the servers, too: 'weir serve --peers'.
	peers bool
	says  string
}

// The strikes by name, and strikeNames in the order in which they run.
var (
	strikeNames = []string{
		"node", "leader", "all", "pause-node", "pause-server", "state", "lost", "late", "damage", "cut", "power", "move", "rolling",
		"peers-node", "peers-all", "peers-pause", "peers-disk", "peers-cut", "peers-power", "peers-move", "peers-rolling",
	}
	strikesByName = map[string]*strike{
		"node":         {comes: killNode, says: "kill -9 of one of three nodes"},
		"leader":       {comes: killLeader, says: "kill -9 of the server that leads a stream"},
		"all":          {comes: killAll, total: true, says: "kill -9 of three nodes and three servers, or of the servers alone"},
		"pause-node":   {comes: pauseNode, says: "SIGSTOP of a node, for longer than its leases last"},
		"pause-server": {comes: pauseServer, says: "SIGSTOP of the server that leads a stream"},
		"state":        {comes: loseState, says: "a node is killed and its state, views and all, is gone"},
		"lost":         {comes: loseReplies, prepare: withProxies, says: "5% of the replies of three nodes are lost, and some of the servers' to them"},
		"late":         {comes: delay, prepare: withProxies, says: "what a node sends to the servers arrives when its leases are long over"},
		"damage":       {comes: damage, says: "a server is killed, and a file of a stream of its is cut short or has a bit flipped"},
		"cut":          {comes: cut, prepare: withHosts, inside: true, cuts: true, says: "a node and its server are cut off from the others; root, network namespaces"},
		"power":        {comes: cutPower, prepare: withDisks, inside: true, says: "the power of one server or of all is cut; root, loop devices"},
		"move":         {comes: moveLane, planned: true, says: "a lane is moved to another node: no call fails"},
		"rolling":      {comes: rollOver, says: "nodes, then servers, are stopped cleanly and started, one after the other"},

		"peers-node":    {comes: killNode, peers: true, says: "each node is a server of the log too: kill -9 of one of three"},
		"peers-all":     {comes: killAll, peers: true, total: true, says: "so, and kill -9 of all three"},
		"peers-pause":   {comes: pauseNode, peers: true, says: "so, and SIGSTOP of one, for longer than its leases last"},
		"peers-disk":    {comes: loseDisk, peers: true, says: "so, and one loses its disk, and now and then another is killed while it gets the log from the others"},
		"peers-cut":     {comes: cut, prepare: withHosts, inside: true, cuts: true, peers: true, says: "so, and one is cut off from the others; root, network namespaces"},
		"peers-power":   {comes: cutPower, prepare: withDisks, inside: true, peers: true, says: "so, and the power of one or of all is cut; root, loop devices"},
		"peers-move":    {comes: moveLane, peers: true, planned: true, says: "so, and a lane is moved to another node: no call fails"},
		"peers-rolling": {comes: rollOver, peers: true, says: "so, and they are stopped cleanly and started, one after the other"},
	}
)

func killNode(_ context.Context, c *cluster, _ Options, random *rand.Rand) (string, func(context.Context) error, error) {
	i := random.IntN(len(c.Nodes))
	return fmt.Sprintf("node %d killed", i+1), nil, c.crash(i)
}

func killLeader(ctx context.Context, c *cluster, _ Options, random *rand.Rand) (string, func(context.Context) error, error) {
	lane, i, err := c.leader(ctx, random)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("server %d killed, which led lane %d", i+1, lane), nil, c.crashServer(i)
}

func killAll(_ context.Context, c *cluster, _ Options, random *rand.Rand) (string, func(context.Context) error, error) {
	var group errgroup.Group
	for _, s := range c.Servers {
		c.struck[s] = true
		group.Go(s.Crash)
	}
	did := "all servers killed"
	if len(c.Servers) == 0 || random.IntN(2) == 0 {
		did = "all servers and nodes killed"
		for _, each := range c.Nodes {
			c.struck[each] = true
			group.Go(each.Crash)
		}
	}
	return did, nil, group.Wait()
}

func pauseNode(ctx context.Context, c *cluster, o Options, random *rand.Rand) (string, func(context.Context) error, error) {
	i := random.IntN(len(c.Nodes))
	heal := func(ctx context.Context) error {
		return errors.Join(c.Nodes[i].Resume(), c.healed(ctx))
	}
	err := c.Nodes[i].Pause()
	wait(ctx, o.PauseFor)
	return fmt.Sprintf("node %d stopped for %v", i+1, o.PauseFor), heal, err
}

func pauseServer(ctx context.Context, c *cluster, o Options, random *rand.Rand) (string, func(context.Context) error, error) {
	lane, i, err := c.leader(ctx, random)
	if err != nil {
		return "", nil, err
	}
	heal := func(ctx context.Context) error {
		return errors.Join(c.Servers[i].Resume(), c.healed(ctx))
	}
	err = c.Servers[i].Pause()
	wait(ctx, o.PauseFor)
	return fmt.Sprintf("server %d stopped for %v, which led lane %d", i+1, o.PauseFor, lane), heal, err
}

func loseState(_ context.Context, c *cluster, _ Options, random *rand.Rand) (string, func(context.Context) error, error) {
	i := random.IntN(len(c.Nodes))
	err := c.crash(i)
	return fmt.Sprintf("node %d killed, its state gone", i+1), nil, errors.Join(err, os.RemoveAll(filepath.Join(c.Nodes[i].Data, "state")))
}

// loseDisk takes everything from a node that was killed but its keys, which whoever looks after it puts back on its new disk. In every other
// round another node is killed while that one gets the log: what only the two of them had acknowledged is then with the other one alone.
func loseDisk(_ context.Context, c *cluster, _ Options, random *rand.Rand) (string, func(context.Context) error, error) {
	i := random.IntN(len(c.Nodes))
	did := fmt.Sprintf("node %d killed, its disk gone", i+1)
	if err := c.crash(i); err != nil {
		return "", nil, err
	}
	if err := c.Renew(i); err != nil {
		return "", nil, err
	}
	if random.IntN(2) == 0 {
		return did, nil, nil
	}
	other, after := (i+1+random.IntN(len(c.Nodes)-1))%len(c.Nodes), time.Duration(random.Int64N(int64(catchUpMax)))
	heal := func(ctx context.Context) error {
		if err := c.Nodes[i].Begin(ctx); err != nil {
			return err
		}
		wait(ctx, after)
		return errors.Join(c.crash(other), c.healed(ctx))
	}
	return fmt.Sprintf("%s, and node %d killed %v after its start", did, other+1, after.Round(time.Millisecond)), heal, nil
}

func moveLane(ctx context.Context, c *cluster, _ Options, random *rand.Rand) (string, func(context.Context) error, error) {
	lane := random.IntN(c.Lanes)
	seen, err := c.Look(ctx, 0)
	if err != nil {
		return "", nil, err
	}
	from := seen.GetLanes()[lane].GetNodeId()
	var others []string
	for _, each := range seen.GetNodes() {
		if id := each.GetMember().GetNodeId(); id != from {
			others = append(others, id)
		}
	}
	to := others[random.IntN(len(others))]
	if _, err := c.Operate(0).MoveLane(ctx, &clusterv1.MoveLaneRequest{Lane: uint32(lane), NodeId: to}); err != nil {
		return "", nil, err
	}
	for end := time.Now().Add(leadMax); seen.GetLanes()[lane].GetNodeId() != to; wait(ctx, retryInterval) {
		if time.Now().After(end) || ctx.Err() != nil {
			return "", nil, fmt.Errorf("lane %d did not move from %s to %s within %v: %w", lane, from, to, leadMax, ctx.Err())
		}
		if seen, err = c.Look(ctx, 0); err != nil {
			return "", nil, err
		}
	}
	return fmt.Sprintf("lane %d moved from %s to %s", lane, from, to), nil, nil
}

func rollOver(ctx context.Context, c *cluster, _ Options, _ *rand.Rand) (string, func(context.Context) error, error) {
	for i, each := range c.Nodes {
		c.struck[each] = true
		if err := each.End(); err != nil {
			return "", nil, err
		}
		if err := c.healed(ctx); err != nil {
			return "", nil, fmt.Errorf("after node %d was stopped: %w", i+1, err)
		}
	}
	for i, s := range c.Servers {
		c.struck[s] = true
		if err := s.End(); err != nil {
			return "", nil, err
		}
		if err := c.healed(ctx); err != nil {
			return "", nil, fmt.Errorf("after server %d was stopped: %w", i+1, err)
		}
	}
	return "every node and server stopped and started", nil, nil
}

func loseReplies(ctx context.Context, c *cluster, o Options, _ *rand.Rand) (string, func(context.Context) error, error) {
	lose := func(share, serverShare float64) {
		for _, each := range c.proxies {
			each.setLoss(share)
		}
		for _, each := range c.behind {
			each.setLoss(serverShare)
		}
	}
	lost := func() (sum int) {
		for _, each := range slices.Concat(c.proxies, c.behind) {
			sum += each.losses()
		}
		return sum
	}
	before := lost()
	lose(lossShare, serverLossShare)
	wait(ctx, o.PauseFor)
	heal := func(ctx context.Context) error {
		lose(0, 0)
		return c.healed(ctx)
	}
	if lost() == before {
		return "", nil, errors.New("no reply was lost: give it more load")
	}
	return fmt.Sprintf("%d replies lost", lost()-before), heal, nil
}

// delay holds what a node sends to the servers until others have its lanes: its appends arrive behind those of the next owner, and no lease
// can help that it sent them in time. The fence alone refuses them.
func delay(ctx context.Context, c *cluster, o Options, random *rand.Rand) (string, func(context.Context) error, error) {
	i := random.IntN(len(c.Nodes))
	own := c.behind[i*len(c.Servers) : (i+1)*len(c.Servers)]
	for _, each := range own {
		each.hold()
	}
	wait(ctx, max(o.PauseFor, o.LeaseTTL+takeoverMax))
	for _, each := range own {
		each.release()
	}
	return fmt.Sprintf("what node %d sent came %v late", i+1, max(o.PauseFor, o.LeaseTTL+takeoverMax)), nil, nil
}

func damage(ctx context.Context, c *cluster, _ Options, random *rand.Rand) (string, func(context.Context) error, error) {
	lane, i, err := c.leader(ctx, random)
	if err != nil {
		return "", nil, err
	}
	if err := c.crashServer(i); err != nil {
		return "", nil, err
	}
	files, err := filepath.Glob(filepath.Join(c.Servers[i].Store(), "jetstream", "*", "streams", eventstore.StreamName(uint32(lane)), "msgs", "*.blk"))
	if err != nil {
		return "", nil, err
	}
	if len(files) == 0 {
		return "", nil, fmt.Errorf("server %d keeps nothing of lane %d below %s", i+1, lane, c.Servers[i].Store())
	}
	c.damaged, c.damagedLane = i, lane
	name := files[random.IntN(len(files))]
	data, err := os.ReadFile(name)
	if err != nil {
		return "", nil, err
	}
	if len(data) == 0 {
		return "", nil, fmt.Errorf("%s is empty", name)
	}
	what := "a bit flipped"
	if random.IntN(2) == 0 {
		data, what = data[:len(data)-1-random.IntN(min(len(data), tornMax))], "the end torn off"
	} else {
		data[random.IntN(len(data))] ^= 1 << random.IntN(8)
	}
	return fmt.Sprintf("server %d killed, %s in lane %d", i+1, what, lane), nil, os.WriteFile(name, data, 0o600)
}

// leadDamaged has the server lead the stream whose file was damaged: what it reads is what everybody reads from now on.
func (c *chaos) leadDamaged(ctx context.Context, struck *cluster) error {
	nc, err := nats.Connect(struck.Servers[struck.damaged].URL())
	if err != nil {
		return err
	}
	defer nc.Close()
	stream, name := eventstore.StreamName(uint32(struck.damagedLane)), struck.Servers[struck.damaged].ServerName
	for end := time.Now().Add(leadMax); ; wait(ctx, retryInterval) {
		_, leader, err := struck.leaderOf(ctx, struck.damagedLane)
		if err == nil && leader == struck.damaged {
			return struck.Settled(ctx)
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("server %s does not lead %s within %v: %w", name, stream, leadMax, errors.Join(err, ctx.Err()))
		}
		question := fmt.Sprintf(`{"placement":{"preferred":%q}}`, name)
		asking, cancel := context.WithTimeout(ctx, stepDownMax) // Nobody answers for a stream without a leader.
		_, err = nc.RequestWithContext(asking, "$JS.API.STREAM.LEADER.STEPDOWN."+stream, []byte(question))
		cancel()
		if err != nil && ctx.Err() != nil {
			return err
		}
		wait(ctx, time.Second)
	}
}

func cut(ctx context.Context, c *cluster, o Options, random *rand.Rand) (string, func(context.Context) error, error) {
	i := random.IntN(len(c.Nodes))
	c.minority = i
	seen, err := c.Look(ctx, i)
	if err != nil {
		return "", nil, err
	}
	owned := 0
	for _, lane := range seen.GetLanes() {
		if lane.GetNodeId() == fmt.Sprintf("n%d", i+1) {
			owned++
		}
	}
	if err := cutOff(ctx, i); err != nil {
		return "", nil, err
	}
	wait(ctx, o.LeaseTTL+takeoverMax)
	heal := func(ctx context.Context) error { return errors.Join(joinUp(ctx), c.healed(ctx)) }
	return fmt.Sprintf("node %d cut off, which had %d lanes", i+1, owned), heal, nil
}

// askMinority has the node that is cut off, whose leases are over, decide something: it may not.
func (c *chaos) askMinority(ctx context.Context, struck *cluster) {
	alone := *c.node.(*cluster).Nodes[struck.minority] //nolint:errcheck // Only kinds of a cluster strike.
	client := alone.Orders(&http.Client{Timeout: clusterCallMax})
	var asking sync.WaitGroup // All at once: none is answered.
	for i := range minorityCalls {
		c.asked++
		request := &orderv1.PlaceOrderRequest{
			RequestId: fmt.Sprintf("minority-%d", c.asked), UserId: fmt.Sprintf("minority-%d", i),
			// It may still be decided once the node is back: of a product whose orders are not added up.
			Items: []*orderv1.ItemRequest{{Sku: (&witness{round: 1}).plenty(), Quantity: 1}},
		}
		asking.Go(func() {
			if _, err := client.PlaceOrder(ctx, request); err == nil {
				c.violated(fmt.Errorf("node %d is cut off from the majority and acknowledged an order (I1)", struck.minority+1))
			}
		})
	}
	asking.Wait()
}

func cutPower(ctx context.Context, c *cluster, o Options, random *rand.Rand) (string, func(context.Context) error, error) {
	all := o.Lossy || random.IntN(2) == 0
	c.down = all
	first := random.IntN(c.keepers())
	var off []int
	for i := range c.keepers() {
		if all || i == first {
			off = append(off, i)
		}
	}
	lying := o.Lossy && len(c.Servers) == 0
	if lying {
		if err := remember(ctx, c.disks); err != nil {
			return "", nil, err
		}
		wait(ctx, lyingFor)
	}
	for _, i := range off {
		if err := c.disks[i].cut(); err != nil {
			return "", nil, err
		}
	}
	for _, i := range off {
		if err := c.crashKeeper(i); err != nil {
			return "", nil, err
		}
	}
	heal := func(ctx context.Context) error {
		for _, i := range off {
			powerUp := c.disks[i].powerUp
			if lying {
				powerUp = c.disks[i].forget
			}
			if err := powerUp(ctx); err != nil {
				return err
			}
		}
		err := c.healed(ctx)
		if err != nil && o.Lossy && strings.Contains(err.Error(), refusesData) {
			return &lossError{err}
		}
		return err
	}
	return fmt.Sprintf("power of %d machines cut", len(off)), heal, nil
}

// runCluster torments a cluster.
func (c *chaos) runCluster(ctx context.Context, tormented *cluster) error {
	c.http.Timeout = clusterCallMax
	c.silence = newSilence()
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range slices.Concat(tormented.proxies, tormented.behind) {
		group.Go(func() error { return p.Run(ctx) })
	}
	group.Go(func() error {
		defer cancel()
		return c.run(ctx)
	})
	return group.Wait()
}

// strike has the kind's strike come over the cluster while the clients work, and heals it.
func (c *chaos) strike(ctx context.Context) error {
	struck := c.node.(*cluster) //nolint:errcheck // Only kinds of a cluster strike.
	c.silence.begin()
	failed := c.failed.Load()
	c.faultsSince() // Those of before.
	var did string
	var heal func(context.Context) error
	err := within(ctx, strikeMax+c.PauseFor+c.LeaseTTL, "strike", func(ctx context.Context) (err error) {
		did, heal, err = c.kind.strike.comes(ctx, struck, c.Options, c.random)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", did, err)
	}
	if c.kind.strike.cuts {
		c.askMinority(ctx, struck)
	}
	if !c.kind.strike.total && !struck.down && !c.kind.strike.planned {
		// Most times others have to take over; now and then what was struck is back before they could.
		if c.random.IntN(4) != 0 {
			wait(ctx, c.LeaseTTL+takeoverMax)
		}
		c.load(ctx)
	}
	if err := struck.deserted(); err != nil {
		c.violated(fmt.Errorf("%s: %w", did, err))
	}
	if heal == nil {
		heal = struck.healed
	}
	if err := within(ctx, healMax, "heal", heal); err != nil {
		return fmt.Errorf("%s: %w", did, err)
	}
	struck.down = false
	if !c.load(ctx) {
		c.violated(fmt.Errorf("%s, all was well again, and less than %d calls were acknowledged within %v", did, c.CallsMin, loadWaitMax))
	}
	if err := struck.deserted(); err != nil {
		err = fmt.Errorf("%s, and all was well again: %w", did, err)
		if c.Lossy && strings.Contains(err.Error(), refusesData) {
			return &lossError{err}
		}
		c.violated(err)
	}
	if c.kind.strike == strikesByName["damage"] {
		if err := within(ctx, healMax, "have the damaged server lead", func(ctx context.Context) error { return c.leadDamaged(ctx, struck) }); err != nil {
			return fmt.Errorf("%s: %w", did, err)
		}
	}
	failed = c.failed.Load() - failed
	if c.kind.strike.planned && failed > 0 {
		c.violated(fmt.Errorf("%s: %d calls failed, the last with %v", did, failed, c.lastFault.Load()))
	}
	longest, lane, at := c.silence.end()
	faults := c.faultsSince()
	if faults != "" {
		faults = " (" + faults + ")"
	}
	c.struck = fmt.Sprintf("%s, %d calls failed%s, no order in a lane for at most %d ms (lane %d, until %s)", did, failed, faults, longest.Milliseconds(), lane, at.UTC().Format("15:04:05.000"))
	if longest > explainFrom && !c.kind.strike.total {
		fmt.Fprintf(c.out, "%s: lane %d had no order for %v until %s\n", did, lane, longest.Round(time.Millisecond), at.UTC().Format("15:04:05.000"))
		for _, each := range struck.Nodes {
			fmt.Fprintln(c.out, each.Name, each.Printed())
		}
		for _, each := range struck.Servers {
			fmt.Fprintln(c.out, each.Name, each.Printed())
		}
	}
	return nil
}
