package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/ownership"
	"github.com/weirhq/weir/ops/launch"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

const (
	// pulseEvery is between two orders in one lane, pulsesMax how many of a lane are on their way at a time: what is due beyond is left out.
	pulseEvery = 20 * time.Millisecond
	pulsesMax  = 64
	// attemptMax bounds one call of an order, attemptPause is before the same is sent to the next node, orderMax ends it.
	attemptMax   = 2 * time.Second
	attemptPause = 10 * time.Millisecond
	orderMax     = time.Minute
	// calmForMax is for how long every lane has to acknowledge orders, none later than calmGap after the one before, until a failover counts as
	// over; where runs are short, it is calmOfRun of one. calmMax bounds the wait.
	calmForMax = 2 * time.Second
	calmOfRun  = 0.4
	calmGap    = 250 * time.Millisecond
	calmMax    = time.Minute
	// moveMax bounds the wait until a move is known.
	moveMax = 10 * time.Second
	// leaderSilenceMax is what a stream's leader that is killed may cost, leaderStopMax one that passes its streams on before it stops,
	// moveCostMax a planned move.
	leaderSilenceMax = 10 * time.Second
	leaderStopMax    = time.Second
	moveCostMax      = 200 * time.Millisecond
	// takeoverMax is how long after its lease a lane may be without a node.
	takeoverMax = time.Second
)

// A strike is what happens to a cluster that has to fail over.
type strike struct {
	// group is the name for Options.Only of this strike alone.
	group string
	name  string
	do    func(context.Context, *launch.Cluster) error
	// aim is for how long a lane may acknowledge no order then; 0 is none.
	aim time.Duration
}

// failoverGroup is the name for Options.Only of all strikes; that of one begins with it.
const failoverGroup = "failover"

var strikes = []strike{
	{failoverGroup + "-move", "the lane is moved", moveAnyLane, moveCostMax},
	{failoverGroup + "-node", "its node is killed", killAnyNode, ownership.LeaseTTLDefault + takeoverMax},
	{failoverGroup + "-leader", "a stream's leader is killed", killAnyLeader, leaderSilenceMax},
	{failoverGroup + "-stop", "a stream's leader is stopped", stopAnyLeader, leaderStopMax},
}

// failover is for how long a lane acknowledges no order when the strikes happen that Options.Only names, each Options.Failovers times; and what
// a move does to the calls meanwhile.
func (b *bench) failover(ctx context.Context) error {
	return b.withCluster(ctx, shape{nodes: 3, servers: 3}, func(c *launch.Cluster) error {
		p, err := newPulse(c, max(2*calmGap, min(calmForMax, time.Duration(calmOfRun*float64(b.Duration)))))
		if err != nil {
			return err
		}
		beating, stop := context.WithCancel(ctx)
		defer p.all.Wait()
		defer stop()
		p.begin(beating)
		if _, err := p.calm(ctx); err != nil {
			return err
		}
		for _, s := range strikes {
			if !slices.Contains(b.Only, failoverGroup) && !slices.Contains(b.Only, s.group) {
				continue
			}
			if err := b.strike(ctx, c, p, s); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		return nil
	})
}

// strike makes one kind happen again and again, and reports on it.
func (b *bench) strike(ctx context.Context, c *launch.Cluster, p *pulse, kind strike) error {
	var silences, calls []time.Duration
	failed := 0
	for turn := range b.Failovers {
		struck := time.Now()
		if err := kind.do(ctx, c); err != nil {
			return err
		}
		silence, err := p.calmSince(ctx, struck)
		if err != nil {
			return err
		}
		took, lost := p.calls(struck)
		silences, calls, failed = append(silences, silence), append(calls, took...), failed+lost
		b.say("  %2d  %-28s no order in a lane for %v, slowest call %v", turn+1, kind.name, silence.Round(time.Millisecond), slices.Max(took).Round(time.Millisecond))
		if err := c.Heal(ctx); err != nil {
			return fmt.Errorf("heal: %w", err)
		}
		if _, err := p.calm(ctx); err != nil {
			return err
		}
	}
	slices.Sort(silences)
	b.report.check(fmt.Sprintf("no order in a lane when %s, p50 of %d", kind.name, b.Failovers), at(silences, 0.5).Seconds()*1000, "ms", 0, true)
	b.report.check(fmt.Sprintf("no order in a lane when %s, p99 of %d", kind.name, b.Failovers), at(silences, 0.99).Seconds()*1000, "ms", kind.aim.Seconds()*1000, true)
	if kind.aim == moveCostMax {
		slices.Sort(calls)
		b.report.check(fmt.Sprintf("calls around a move, p99 of %d", len(calls)), at(calls, 0.99).Seconds()*1000, "ms", kind.aim.Seconds()*1000, true)
		b.report.check("calls around a move, the slowest", at(calls, 1).Seconds()*1000, "ms", 0, true)
		b.report.check("calls around a move that did not succeed at once", float64(failed), "calls", noneFailed, true)
	}
	return nil
}

// noneFailed is an aim of no failures: 0 would be none.
const noneFailed = 0.5

// at returns a quantile of what is sorted.
func at(sorted []time.Duration, share float64) time.Duration {
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

func moveAnyLane(ctx context.Context, c *launch.Cluster) error {
	seen, err := c.Look(ctx, 0)
	if err != nil {
		return err
	}
	lane := rand.IntN(clusterLanes)
	from := seen.GetLanes()[lane].GetNodeId()
	to := fmt.Sprintf("n%d", 1+rand.IntN(len(c.Nodes)))
	for to == from {
		to = fmt.Sprintf("n%d", 1+rand.IntN(len(c.Nodes)))
	}
	if _, err := c.Operate(0).MoveLane(ctx, &clusterv1.MoveLaneRequest{Lane: uint32(lane), NodeId: to}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, moveMax)
	defer cancel()
	for seen.GetLanes()[lane].GetNodeId() != to {
		if seen, err = c.Look(ctx, 0); err != nil {
			return fmt.Errorf("lane %d does not move from %s to %s: %w", lane, from, to, err)
		}
	}
	return nil
}

// killAnyNode kills a node that has a lane.
func killAnyNode(ctx context.Context, c *launch.Cluster) error {
	seen, err := c.Look(ctx, 0)
	if err != nil {
		return err
	}
	owner := seen.GetLanes()[rand.IntN(clusterLanes)].GetNodeId()
	for i, node := range c.Nodes {
		if fmt.Sprintf("n%d", i+1) == owner {
			return node.Crash()
		}
	}
	return fmt.Errorf("there is no node %q", owner)
}

// killAnyLeader kills the server that leads the stream of a lane, stopAnyLeader tells it to stop.
func killAnyLeader(ctx context.Context, c *launch.Cluster) error {
	return endAnyLeader(ctx, c, (*launch.NATS).Crash)
}

func stopAnyLeader(ctx context.Context, c *launch.Cluster) error {
	return endAnyLeader(ctx, c, (*launch.NATS).End)
}

func endAnyLeader(ctx context.Context, c *launch.Cluster, end func(*launch.NATS) error) error {
	seen, err := c.Look(ctx, 0)
	if err != nil {
		return err
	}
	leader := seen.GetLanes()[rand.IntN(clusterLanes)].GetStreamLeader()
	for _, s := range c.Servers {
		if s.ServerName == leader {
			return end(s)
		}
	}
	return fmt.Errorf("there is no server %q", leader)
}

// A pulse places orders in every lane, at a steady rate, as clients do that know all nodes: one that gives no answer or asks for another
// try is followed by the next.
type pulse struct {
	clients []orderv1connect.OrderServiceClient
	users   [][]string // by lane
	calmFor time.Duration
	run     uint64
	next    atomic.Uint64
	all     sync.WaitGroup

	mu    sync.Mutex
	beats []beat // in the order in which they ended
}

// A beat is an order that was placed, or was not.
type beat struct {
	lane         uint32
	began, ended time.Time
	// tries is how often it was sent, err why it was not placed.
	tries int
	err   error
}

func newPulse(c *launch.Cluster, calmFor time.Duration) (*pulse, error) {
	p := &pulse{users: make([][]string, clusterLanes), calmFor: calmFor, run: sources.Add(1)}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: pulsesMax * clusterLanes}, Timeout: attemptMax}
	for _, node := range c.Nodes {
		p.clients = append(p.clients, node.Orders(client))
	}
	topology := eventstore.Topology{Lanes: clusterLanes}
	for i := range usersOfNode {
		user := fmt.Sprintf("u%07d", i)
		lane := topology.LaneOf(eventstore.PartitionOf(user))
		p.users[lane] = append(p.users[lane], user)
	}
	for lane, users := range p.users {
		if len(users) == 0 {
			return nil, fmt.Errorf("lane %d has no users", lane)
		}
	}
	return p, nil
}

// begin places orders until ctx ends.
func (p *pulse) begin(ctx context.Context) {
	for lane := range p.users {
		p.all.Go(func() {
			places := make(chan struct{}, pulsesMax)
			tick := time.NewTicker(pulseEvery)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				select {
				case places <- struct{}{}:
					p.all.Go(func() {
						defer func() { <-places }()
						p.place(ctx, uint32(lane))
					})
				default:
				}
			}
		})
	}
}

// place places one order.
func (p *pulse) place(ctx context.Context, lane uint32) {
	number := p.next.Add(1)
	users := p.users[lane]
	request := &orderv1.PlaceOrderRequest{
		RequestId: fmt.Sprintf("pulse-%d-%d", p.run, number), UserId: users[number%uint64(len(users))],
		Items: []*orderv1.ItemRequest{{Sku: fmt.Sprintf("sku-%03d", number%skusMany), Quantity: 1}},
	}
	b := beat{lane: lane, began: time.Now()}
	for node := rand.IntN(len(p.clients)); ; node++ {
		b.tries++
		_, b.err = p.clients[node%len(p.clients)].PlaceOrder(ctx, request)
		if ctx.Err() != nil {
			return
		}
		if b.err == nil || time.Since(b.began) > orderMax {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(attemptPause):
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	b.ended = time.Now()
	p.beats = append(p.beats, b)
}

// calm waits until every lane acknowledges orders, and forgets what was before.
func (p *pulse) calm(ctx context.Context) (time.Duration, error) {
	silence, err := p.calmSince(ctx, time.Now())
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats = nil
	return silence, err
}

// calmSince waits until every lane acknowledges orders again, and returns the longest time since then in which one did not.
func (p *pulse) calmSince(ctx context.Context, since time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, calmMax)
	defer cancel()
	look := time.NewTicker(calmGap)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("not every lane acknowledges orders again: %w", errors.Join(ctx.Err(), p.lastError()))
		case <-look.C:
		}
		longest, calm := p.silence(since, time.Now())
		if calm {
			return longest, nil
		}
	}
}

// silence returns the longest time from since to now in which a lane acknowledged nothing, and whether there was no such in the end.
func (p *pulse) silence(since, now time.Time) (longest time.Duration, calm bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	heard := make([]time.Time, clusterLanes)
	for lane := range heard {
		heard[lane] = since
	}
	calm = now.Sub(since) > p.calmFor
	note := func(lane uint32, at time.Time) {
		gap := at.Sub(heard[lane])
		longest = max(longest, gap)
		if gap > calmGap && now.Sub(at) < p.calmFor {
			calm = false
		}
		heard[lane] = at
	}
	for i := range p.beats {
		if b := &p.beats[i]; b.err == nil && b.ended.After(since) {
			note(b.lane, b.ended)
		}
	}
	for lane := range heard {
		note(uint32(lane), now)
	}
	return longest, calm
}

// calls returns how long the orders took that ended since then, and how many of them did not succeed at once.
func (p *pulse) calls(since time.Time) (took []time.Duration, failed int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.beats {
		b := &p.beats[i]
		if b.ended.Before(since) {
			continue
		}
		took = append(took, b.ended.Sub(b.began))
		if b.tries > 1 || b.err != nil {
			failed++
		}
	}
	return took, failed
}

func (p *pulse) lastError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.beats {
		if b := &p.beats[len(p.beats)-1-i]; b.err != nil {
			return b.err
		}
	}
	return nil
}
