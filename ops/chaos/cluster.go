package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/ops/launch"
)

const (
	// clusterNodes share the lanes.
	clusterNodes = 3
	// clusterCallMax is how long one call to a cluster may take before its outcome counts as unknown, and another node is asked.
	clusterCallMax = time.Second
	// takeoverMax is how long after its lease a lane may be without a node.
	takeoverMax = time.Second
)

// A cluster is nodes that share the lanes of one log, and the servers that keep it, all in processes of their own. It implements node: its
// clients ask all nodes in turn, whether they are there or not.
type cluster struct {
	*launch.Cluster
	turn atomic.Uint64
	// struck are the processes that a strike ended: all others have to be there.
	struck map[any]bool
	// proxies stand before the nodes where replies are lost.
	proxies []*proxy
}

func newCluster(ctx context.Context, options Options, dir string) (*cluster, error) {
	o := launch.ClusterOptions{Dir: dir, Nodes: clusterNodes, Servers: options.Servers, Lanes: options.Lanes, LeaseTTL: options.LeaseTTL}
	for path, absolute := range map[string]*string{options.Weir: &o.Weir, options.NATS: &o.NATS} {
		var err error
		if *absolute, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		if _, err := os.Stat(*absolute); err != nil {
			return nil, fmt.Errorf("no binary to torment (make chaos makes it): %w", err)
		}
	}
	made, err := launch.NewCluster(ctx, o)
	if err != nil {
		return nil, err
	}
	return &cluster{Cluster: made, struck: map[any]bool{}}, nil
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
	seen, err := c.Look(ctx, 0)
	if err != nil {
		return 0, 0, err
	}
	lane = random.IntN(c.Lanes)
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
	// total says that nobody can be served until it is over.
	total bool
	says  string
}

// The strikes by name, and strikeNames in the order in which they run.
var (
	strikeNames   = []string{"node", "leader", "all", "pause-node", "pause-server", "state", "rolling"}
	strikesByName = map[string]*strike{
		"node":         {comes: killNode, says: "kill -9 of one of three nodes"},
		"leader":       {comes: killLeader, says: "kill -9 of the server that leads a stream"},
		"all":          {comes: killAll, total: true, says: "kill -9 of three nodes and three servers, or of the servers alone"},
		"pause-node":   {comes: pauseNode, says: "SIGSTOP of a node, for longer than its leases last"},
		"pause-server": {comes: pauseServer, says: "SIGSTOP of the server that leads a stream"},
		"state":        {comes: loseState, says: "a node is killed and its state, views and all, is gone"},
		"rolling":      {comes: rollOver, says: "nodes, then servers, are stopped cleanly and started, one after the other"},
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
	if random.IntN(2) == 0 {
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

// runCluster torments a cluster.
func (c *chaos) runCluster(ctx context.Context, tormented *cluster) error {
	c.http.Timeout = clusterCallMax
	c.silence = newSilence()
	ctx, cancel := context.WithCancel(ctx)
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range tormented.proxies {
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
	struck := c.node.(*cluster)
	c.silence.begin()
	did, heal, err := c.kind.strike.comes(ctx, struck, c.Options, c.random)
	if err != nil {
		return fmt.Errorf("%s: %w", did, err)
	}
	if !c.kind.strike.total {
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
	if err := heal(ctx); err != nil {
		return fmt.Errorf("%s: heal: %w", did, err)
	}
	c.load(ctx)
	if err := struck.deserted(); err != nil {
		c.violated(fmt.Errorf("%s, and all was well again: %w", did, err))
	}
	c.struck = fmt.Sprintf("%s, no order in a lane for at most %d ms", did, c.silence.end().Milliseconds())
	return nil
}
