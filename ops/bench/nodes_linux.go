package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/gateway/registry"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

const (
	// nodesBehind a gateway share nodesLanes of one log.
	nodesBehind = 3
	nodesLanes  = 8
	// nodesUsers order and read, nodesRate times a second each: three nodes, their log, a gateway and the load are on one machine.
	nodesUsers = 64
	nodesRate  = 100
	// leaveMax is how long a gateway may go on calling a node that leaves in order, and deadMax one that was killed, after which the list of
	// nodes has forgotten it: its time to live there, and a second.
	leaveMax = 200 * time.Millisecond
	deadMax  = registry.TTLDefault + time.Second
	// awayRuns is how many times longer than a run NATS is away: ten minutes by default.
	awayRuns = 120
	// nodeLooksFor is how long it is looked whether a node gets calls.
	nodeLooksFor = 2 * deadMax
)

// A fleet is nodes that share the lanes of one log, and a gateway that finds them there.
type fleet struct {
	*launch.Cluster
	*stage
	log *natsServer
	// orders has one user's order for each token.
	tokens []string
	orders [][]byte
}

// gatewayNodes is nodes that come and go, in order and not, behind a gateway under load.
func (b *bench) gatewayNodes(ctx context.Context) error {
	return b.withFleet(ctx, func(f *fleet) error {
		for _, row := range []struct {
			name string
			run  func(context.Context, *fleet) error
		}{{"rolling restart", b.rollNodes}, {"kill -9", b.killNode}, {"NATS away", b.nodesWithoutNATS}} {
			if err := row.run(ctx, f); err != nil {
				return fmt.Errorf("%s: %w", row.name, err)
			}
		}
		return nil
	})
}

// withFleet runs f with a log, nodes and a gateway, and ends them all.
func (b *bench) withFleet(ctx context.Context, use func(*fleet) error) error {
	return b.withNATS(ctx, func(log *natsServer) (err error) {
		f := &fleet{Cluster: &launch.Cluster{Lanes: nodesLanes}, stage: &stage{}, log: log}
		// Loopback is a whole network: a node that is started again finds its address free.
		network := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(256))
		for i := range nodesBehind {
			name := fmt.Sprintf("n%d", i+1)
			f.Nodes = append(f.Nodes, &launch.Node{
				Binary: b.Weir, Data: filepath.Join(b.dir, name), Lanes: nodesLanes, NATS: log.url(), Listen: fmt.Sprintf("%s%d:8080", network, i+1),
				Flags: []string{"--node-id", name, "--nats-monitor", "http://" + log.monitor, "--replicas", "1", "--log-level", "error"},
			})
		}
		if err := f.Start(ctx); err != nil {
			return err
		}
		defer func() {
			err = errors.Join(err, f.stage.end(), f.Cluster.End())
			for _, node := range f.Nodes {
				err = errors.Join(err, os.RemoveAll(node.Data))
			}
		}()
		if f.gateway, f.operator, err = startGateway(ctx, b.Weir, "--nats", log.url()); err != nil {
			return err
		}
		if err := f.prepare(ctx); err != nil {
			return err
		}
		if err := use(f); err != nil {
			return fmt.Errorf("%w: %s", err, f.gateway.Printed())
		}
		return nil
	})
}

// prepare stocks a product, makes users, and has each order once.
func (f *fleet) prepare(ctx context.Context) error {
	first := &weir{f.Nodes[0]}
	if err := first.put(ctx, skuPlace, stockUnits); err != nil {
		return err
	}
	key, err := identity.OpenSigningKey(first.Data)
	if err != nil {
		return err
	}
	group, placing := errgroup.WithContext(ctx)
	group.SetLimit(setUpMax)
	f.tokens, f.orders = make([]string, nodesUsers), make([][]byte, nodesUsers)
	for i := range nodesUsers {
		user := fmt.Sprintf("roll-%03d", i)
		if f.tokens[i], err = identity.Mint(key, user, 0, time.Now(), 24*time.Hour); err != nil {
			return err
		}
		group.Go(func() error {
			placed, err := first.Orders(http.DefaultClient).PlaceOrder(placing, &orderv1.PlaceOrderRequest{
				RequestId: "first", UserId: user, Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}},
			})
			if err != nil {
				return fmt.Errorf("place the first order of %s: %w", user, err)
			}
			f.orders[i], err = proto.Marshal(&orderv1.GetOrderRequest{OrderId: placed.Order.OrderId})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return f.await(ctx, fmt.Sprintf("the gateway does not know %d nodes", nodesBehind), func(ctx context.Context) (bool, error) {
		status, err := f.status(ctx)
		return err == nil && len(status.Upstreams) == nodesBehind, err
	})
}

// placing has each user order in turn.
func (f *fleet) placing() (load.Source, error) { return placingOf(f.tokens) }

// templates make a request of one after the other.
type templates struct {
	each []*load.Template
	next int
}

// Next implements load.Source.
func (t *templates) Next() []byte {
	t.next++
	return t.each[(t.next-1)%len(t.each)].Next()
}

// reads has each user read its order in turn.
func (f *fleet) reads() (load.Source, error) {
	all := &rotation{}
	for i, token := range f.tokens {
		template, err := load.NewTemplate(getPath, protoType, token, f.orders[i])
		if err != nil {
			return nil, err
		}
		all.requests = append(all.requests, template.Next())
	}
	return all, nil
}

// A traffic is what became of orders and reads while something happened to the fleet.
type traffic struct {
	orders, reads phase
	// why has what the gateway said of the calls that failed, so often.
	mu  sync.Mutex
	why map[string]int
}

// during drives the fleet while f runs.
func (f *fleet) during(ctx context.Context, b *bench, orders bool, do func(ctx context.Context) error) (*traffic, error) {
	// Long enough for what happens; the end of do ends the load.
	most := 10*time.Minute + b.natsAway()
	t := &traffic{orders: phase{to: most}, reads: phase{to: most}, why: map[string]int{}}
	driving, stop := context.WithCancel(ctx)
	defer stop()
	group, driving := errgroup.WithContext(driving)
	drive := func(kind string, source load.Source, err error, p *phase) {
		group.Go(func() error {
			if err != nil {
				return err
			}
			d := &drive{addr: f.gateway.Addr, source: source, rate: nodesRate, duration: most, connections: b.Connections, phases: []*phase{p}}
			d.failed = func(status int, body []byte) { t.failed(kind, status, body) }
			err := d.run(driving)
			if driving.Err() != nil && ctx.Err() == nil {
				return nil // It was to end.
			}
			return err
		})
	}
	if orders {
		source, err := f.placing()
		drive("order", source, err, &t.orders)
	}
	source, err := f.reads()
	drive("read", source, err, &t.reads)
	group.Go(func() error {
		defer stop()
		if err := pause(driving, b.Warmup); err != nil {
			return err
		}
		return do(ctx)
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return t, nil
}

// failed notes why a call was not answered with 200.
func (t *traffic) failed(kind string, status int, body []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.why[fmt.Sprintf("%s: %d %s", kind, status, reasonOf(body))]++
}

// reasonOf is what a reply says in short: the code of its error, and the reason.
func reasonOf(body []byte) string {
	var told struct {
		Code    string `json:"code"`
		Details []struct {
			Debug struct {
				Reason string `json:"reason"`
			} `json:"debug"`
		} `json:"details"`
	}
	if json.Unmarshal(body, &told) != nil {
		return "no error of Connect's"
	}
	for i := range told.Details {
		if reason := told.Details[i].Debug.Reason; reason != "" {
			return told.Code + " " + reason
		}
	}
	return told.Code
}

// report says how many calls there were, and how many of them failed, and checks the share of those that did not, if there is an aim.
func (t *traffic) report(b *bench, name string, aim float64) {
	for _, kind := range []struct {
		name string
		*phase
	}{{"orders", &t.orders}, {"reads", &t.reads}} {
		if kind.calls() == 0 {
			continue
		}
		b.report.check(fmt.Sprintf("%s: %s that failed, of %.0f", name, kind.name, kind.calls()), float64(kind.bad.Count()), "calls", 0, true)
		b.report.check(fmt.Sprintf("%s: %s that were answered", name, kind.name), 100*(1-kind.badShare()), "%", aim, false)
	}
	for _, why := range slices.Sorted(maps.Keys(t.why)) {
		b.say("  %s: %d× %s", name, t.why[why], why)
	}
}

// picks is how many attempts went to a node.
func (f *fleet) picks(ctx context.Context, node string) (uint64, error) {
	status, err := f.status(ctx)
	if err != nil {
		return 0, err
	}
	for i := range status.Upstreams {
		if status.Upstreams[i].ID == node {
			return status.Upstreams[i].Picks, nil
		}
	}
	return 0, nil
}

// lastPick makes something happen to a node, and returns how long after its beginning the node got its last call, and looks until ended is closed.
func (f *fleet) lastPick(ctx context.Context, node string, begin func() error, ended <-chan struct{}) (last time.Duration, err error) {
	seen, err := f.picks(ctx, node)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := begin(); err != nil {
		return 0, err
	}
	for {
		now, err := f.picks(ctx, node)
		if err != nil {
			return 0, err
		}
		if now > seen { // A node that is gone from the list has 0.
			seen, last = now, time.Since(began)
		}
		select {
		case <-ended:
			return last, nil
		default:
		}
		if err := pause(ctx, breakerPoll); err != nil {
			return 0, err
		}
	}
}

// rollNodes stops each node in order and starts it again, one after the other, round by round. It also sees how long each got calls after it was told.
func (b *bench) rollNodes(ctx context.Context, f *fleet) error {
	var left, took []float64
	t, err := f.during(ctx, b, true, func(ctx context.Context) error {
		for turn := range b.Runs * nodesBehind {
			i := turn % nodesBehind
			began := time.Now()
			ended := make(chan struct{})
			var stopping error
			last, err := f.lastPick(ctx, fmt.Sprintf("n%d", i+1), func() error {
				go func() {
					defer close(ended)
					stopping = f.Nodes[i].End()
				}()
				return nil
			}, ended)
			if err := errors.Join(err, stopping); err != nil {
				return err
			}
			b.say("  node %d got its last call %v after it was told to stop, and had stopped after %v", i+1, last.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
			left = append(left, inMillis(last))
			if err := f.Heal(ctx); err != nil {
				return err
			}
			took = append(took, time.Since(began).Seconds())
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.report.check("a node leaves in order: its last call after it was told", median(left), "ms", inMillis(leaveMax), true)
	b.report.check("rolling restart of three nodes: from a node's stop until all is as it was", median(took), "s", 0, true)
	t.report(b, "rolling restart of three nodes", 100)
	return nil
}

// killNode kills a node and starts it again when no call has come to it for long.
func (b *bench) killNode(ctx context.Context, f *fleet) error {
	var last time.Duration
	t, err := f.during(ctx, b, true, func(ctx context.Context) (err error) {
		looked, cancel := context.WithTimeout(ctx, nodeLooksFor)
		defer cancel()
		if last, err = f.lastPick(ctx, "n2", f.Nodes[1].Crash, looked.Done()); err != nil {
			return err
		}
		return f.Heal(ctx)
	})
	if err != nil {
		return err
	}
	b.report.check("kill -9 of a node: its last attempt after that", last.Seconds(), "s", deadMax.Seconds(), true)
	t.report(b, "kill -9 of a node", 0)
	return nil
}

// natsAway is how long NATS is away.
func (b *bench) natsAway() time.Duration {
	if b.NATSAway > 0 {
		return b.NATSAway
	}
	return awayRuns * b.Duration
}

// nodesWithoutNATS kills NATS, and later empties its list of nodes: reads are to go on.
func (b *bench) nodesWithoutNATS(ctx context.Context, f *fleet) error {
	away := b.natsAway()
	t, err := f.during(ctx, b, false, func(ctx context.Context) error {
		if err := f.log.crash(); err != nil {
			return err
		}
		return pause(ctx, away)
	})
	if err != nil {
		return err
	}
	t.report(b, fmt.Sprintf("NATS away for %v", away), 100)
	if err := f.log.start(ctx); err != nil {
		return err
	}
	if err := f.Settled(ctx); err != nil {
		return err
	}
	connection, err := f.log.connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := jetstream.New(connection)
	if err != nil {
		return err
	}
	var nodes jetstream.Stream
	if err := f.await(ctx, "the nodes do not make their list again", func(ctx context.Context) (listed bool, err error) {
		if nodes, err = stream.Stream(ctx, "KV_"+registry.BucketDefault); errors.Is(err, jetstream.ErrStreamNotFound) {
			return false, nil // It is kept in memory, which NATS has lost.
		}
		return err == nil && nodes.CachedInfo().State.Msgs >= nodesBehind, err
	}); err != nil {
		return err
	}
	t, err = f.during(ctx, b, true, func(ctx context.Context) error {
		if err := nodes.Purge(ctx); err != nil {
			return err
		}
		return pause(ctx, nodeLooksFor)
	})
	if err != nil {
		return err
	}
	t.report(b, "the list of nodes is emptied", 100)
	return nil
}
