package ownership

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// A cluster is nodes over one server, whose lanes are those of a fake that writes no log.
type cluster struct {
	t      *testing.T
	server *embedded.Server
	lanes  uint32
	ttl    time.Duration

	mu   sync.Mutex
	said []string // what happened to lanes, in order
}

// A fakeNode is one node. It implements Lanes.
type fakeNode struct {
	*Node
	c      *cluster
	id     string
	nc     *nats.Conn
	stop   context.CancelFunc
	ended  chan error
	left   sync.Once
	parkIt func(ctx context.Context, lane uint32) error
	logTo  io.Writer

	mu   sync.Mutex
	cold bool
	held map[uint32]func() bool // lanes that are served
	park map[uint32]bool
	told map[uint32]string
}

func newCluster(t *testing.T, lanes uint32, ttl time.Duration) *cluster {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	return &cluster{t: t, server: server, lanes: lanes, ttl: ttl}
}

func (c *cluster) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.said = append(c.said, fmt.Sprintf(format, args...))
}

// connect returns a connection for as long as the test runs.
func (c *cluster) connect() *nats.Conn {
	c.t.Helper()
	nc, err := c.server.Connect()
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(nc.Close)
	return nc
}

// join starts a node.
func (c *cluster) join(id string, changes ...func(*fakeNode)) *fakeNode {
	c.t.Helper()
	f := &fakeNode{c: c, id: id, logTo: io.Discard, ended: make(chan error, 1), held: map[uint32]func() bool{}, park: map[uint32]bool{}, told: map[uint32]string{}}
	for _, change := range changes {
		change(f)
	}
	var err error
	if f.nc, err = c.server.Connect(); err != nil {
		c.t.Fatal(err)
	}
	f.Node, err = New(f.nc, Options{
		NodeID: id, Topology: eventstore.Topology{Lanes: c.lanes}, Lanes: f, LeaseTTL: c.ttl, Logger: slog.New(slog.NewTextHandler(f.logTo, nil)),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	f.stop = stop
	go func() { f.ended <- f.Run(ctx) }()
	c.t.Cleanup(func() { f.leaveNow() })
	return f
}

// leaveNow ends the node and waits for it. It may be called again.
func (f *fakeNode) leaveNow() {
	f.left.Do(func() {
		f.stop()
		var superseded *SupersededError
		select {
		case err := <-f.ended:
			if err != nil && !errors.As(err, &superseded) {
				f.c.t.Errorf("node %s: %v", f.id, err)
			}
		case <-time.After(20 * time.Second):
			f.c.t.Errorf("node %s does not end", f.id)
		}
		f.nc.Close()
	})
}

// Start implements Lanes.
func (f *fakeNode) Start(lane uint32, held func() bool) {
	f.c.say("%s starts %d", f.id, lane)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held[lane] = held
	delete(f.park, lane)
}

// Park implements Lanes.
func (f *fakeNode) Park(ctx context.Context, lane uint32) error {
	f.c.say("%s parks %d", f.id, lane)
	f.mu.Lock()
	f.park[lane] = true
	f.mu.Unlock()
	if f.parkIt != nil {
		return f.parkIt(ctx, lane)
	}
	return nil
}

// Stop implements Lanes.
func (f *fakeNode) Stop(lane uint32, owner string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[lane] != nil {
		f.c.say("%s stops %d", f.id, lane)
	}
	delete(f.held, lane)
	delete(f.park, lane)
	f.told[lane] = owner
}

// Status implements Lanes.
func (f *fakeNode) Status(lane uint32) eventstore.LaneStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return eventstore.LaneStatus{Serving: f.held[lane] != nil && !f.park[lane], HeadKnown: !f.cold}
}

// serving returns the lanes for which the node answers now.
func (f *fakeNode) serving() (lanes []uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for lane, held := range f.held {
		if held() && !f.park[lane] {
			lanes = append(lanes, lane)
		}
	}
	slices.Sort(lanes)
	return lanes
}

func (f *fakeNode) warmUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cold = false
}

// eventually polls a condition that other goroutines bring about. All the time no lane is answered for by two nodes.
func (c *cluster) eventually(what string, holds func() bool, nodes ...*fakeNode) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	for !holds() {
		by := map[uint32]*fakeNode{}
		for _, f := range nodes {
			for _, lane := range f.serving() {
				if other := by[lane]; other != nil && slices.Contains(other.serving(), lane) { // Before and after this one did.
					c.t.Fatalf("lane %d is answered for by %s and %s (O2)", lane, other.id, f.id)
				}
				by[lane] = f
			}
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			for _, f := range nodes {
				c.t.Logf("%s serves %v, joined %t, knows %v", f.id, f.serving(), f.Joined(), f.Placement())
			}
			c.t.Fatalf("never happened: %s; so far:\n%q", what, c.said)
		}
	}
}

// level reports whether the nodes serve all lanes, within one of each other.
func (c *cluster) level(nodes ...*fakeNode) bool {
	sum, least, most := 0, 1<<30, 0
	for _, f := range nodes {
		count := len(f.serving())
		sum, least, most = sum+count, min(least, count), max(most, count)
	}
	return sum == int(c.lanes) && most-least <= 1
}

func TestTheFirstNodeTakesAllLanesAndTheNextTakeTheirShares(t *testing.T) {
	c := newCluster(t, 8, time.Second)
	one := c.join("one")
	c.eventually("one serves all", func() bool { return c.level(one) && one.Settled() }, one)
	two := c.join("two")
	c.eventually("two nodes share", func() bool { return c.level(one, two) }, one, two)
	before := one.serving()
	three := c.join("three")
	c.eventually("three nodes share", func() bool { return c.level(one, two, three) && three.Settled() }, one, two, three)
	for _, lane := range one.serving() {
		if !slices.Contains(before, lane) {
			t.Errorf("lane %d came to a node when another joined (A2)", lane)
		}
	}
}

func TestALaneIsParkedBeforeItPassesAndStartedOnceByItsNextOwner(t *testing.T) {
	c := newCluster(t, 2, time.Second)
	one := c.join("one")
	c.eventually("one serves all", func() bool { return c.level(one) }, one)
	two := c.join("two")
	c.eventually("both share, and one knows", func() bool {
		one.mu.Lock()
		defer one.mu.Unlock()
		return len(one.held) == 1
	}, two)
	c.eventually("both share", func() bool { return c.level(one, two) }, one, two)
	lane := two.serving()[0]
	want := []string{
		fmt.Sprintf("one starts %d", lane), fmt.Sprintf("one parks %d", lane), fmt.Sprintf("one stops %d", lane), fmt.Sprintf("two starts %d", lane),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var got []string
	for _, said := range c.said {
		if slices.Contains(want, said) {
			got = append(got, said)
		}
	}
	// Whether the old owner hears that it has stopped, or the new one that it may begin, is a matter of who is told first.
	slices.Sort(got[2:])
	if slices.Sort(want[2:]); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.told[lane] != "two" {
		t.Errorf("the old owner was told that lane %d is %q's, want two's", lane, one.told[lane])
	}
}

func TestANodeThatDrainsHandsOverEverythingBeforeItLeaves(t *testing.T) {
	c := newCluster(t, 8, time.Second)
	one, two := c.join("one"), c.join("two")
	c.eventually("both share", func() bool { return c.level(one, two) }, one, two)
	if err := one.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := one.serving(); len(left) > 0 {
		t.Fatalf("a drained node serves %v", left)
	}
	c.eventually("the other has all", func() bool { return c.level(two) }, two)
	one.leaveNow()
	c.eventually("it is no member", func() bool { return len(two.Members()) == 1 }, two)
}

// handOver has the node hand a lane over, whatever it plans.
func (f *fakeNode) handOver(lane uint32, to string) {
	f.Node.mu.Lock()
	h := f.holds[lane]
	f.acting[lane] = true
	f.passing++
	f.Node.mu.Unlock()
	f.Node.handOver(f.c.t.Context(), h, to)
	f.look()
}

// What is given to a node that leaves, by one that has not heard of that yet, is passed on before it goes, or taken back.
func TestALaneThatComesToANodeThatLeavesIsPassedOn(t *testing.T) {
	c := newCluster(t, 1, time.Minute) // Nothing here waits for a lease to end.
	one := c.join("one")
	c.eventually("one serves the lane", func() bool { return c.level(one) }, one)
	two := c.join("two")
	c.eventually("both are there and warm", func() bool { return len(one.Members()) == 2 && one.view(time.Now()).isWarm("two") }, one, two)
	if err := one.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.eventually("two has the lane", func() bool { return c.level(two) }, two)
	two.handOver(0, "one")
	c.eventually("one has heard", func() bool { return one.view(time.Now()).leases[0].GetNodeId() == "one" || c.level(two) }, two)
	if err := one.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	one.leaveNow()
	c.eventually("two has it again", func() bool { return c.level(two) }, two)
}

// memberOf returns what a warm node that stays says of itself.
func memberOf(t *testing.T, id string) []byte {
	t.Helper()
	value, err := proto.Marshal(&clusterv1.Member{NodeId: id, StartTime: timestamppb.Now(), Warm: true})
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// What is given to a node that has left, by one that has not heard of that yet, was nobody's until the lease ended.
func TestALaneThatIsOfferedToANodeThatHasLeftStays(t *testing.T) {
	c := newCluster(t, 1, time.Minute) // Nothing here waits for a lease to end.
	two := c.join("two")
	c.eventually("two serves the lane", func() bool { return c.level(two) }, two)
	for i, member := range [][]byte{memberOf(t, "one"), nil} { // Its last sign is not over yet; it is known to be gone.
		two.members.note("one", member, uint64(1_000_000+i), time.Time{})
		two.handOver(0, "one")
		if !c.level(two) {
			t.Fatalf("%d: after a lane was offered to a node that has left nobody serves it; lanes: %v", i, two.Placement())
		}
	}
}

// Either the node that is offered a lease claims it, or its owner takes it back.
func TestALeaseIsClaimedOrTakenBack(t *testing.T) {
	c := newCluster(t, 1, time.Minute)
	other, _ := c.aloneNode()
	other.options.NodeID = "two"
	n, h := c.aloneNode()
	won, stays := map[string]int{}, memberOf(t, "two")
	for round := range 200 {
		var member []byte
		if round%2 == 0 {
			member = stays // It is waited for, so it wins. Otherwise both write at the same time.
		}
		n.members.note("two", member, uint64(round+1), time.Time{})
		owners := make(chan string, 1)
		go func() {
			owner, _ := n.pass(t.Context(), h, "two")
			owners <- owner
		}()
		var claimed error
		c.eventually("the offer is seen or taken back", func() bool {
			_, claimed = other.claim(t.Context(), 0)
			return claimed == nil || len(owners) == 1
		})
		owner := <-owners
		won[owner]++
		if (owner == "two") != (claimed == nil) {
			t.Fatalf("round %d: the owner says that the lane is %s's, and the other claimed it with %v (O2)", round, owner, claimed)
		}
		if claimed == nil {
			r := other.leases.row(leaseKey(0))
			h.revision = r.revision
			if err := h.write(t.Context(), h.value); err != nil {
				t.Fatal(err)
			}
		}
	}
	if won["one"] == 0 || won["two"] == 0 {
		t.Errorf("who had it in the end: %v, want each now and then", won)
	}
}

// A node went on with a lane as it had left it, though another one had decided in between and only offered it back.
func TestALeaseThatIsOfferedBackIsClaimedAnew(t *testing.T) {
	c := newCluster(t, 1, time.Minute)
	n, h := c.aloneNode()
	back, err := proto.Marshal(&clusterv1.Lease{NodeId: "one", FromNodeId: "two", Since: timestamppb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	offered, err := n.leases.write(t.Context(), leaseKey(0), back, h.revision) // What two wrote before that does not matter.
	if err != nil {
		t.Fatal(err)
	}
	if owner, _ := n.pass(t.Context(), h, "two"); owner != "" {
		t.Errorf("the lane is %q's, want nobody's yet (O2)", owner)
	}
	again, err := n.claim(t.Context(), 0)
	if err != nil || again.revision <= offered {
		t.Errorf("the lease cannot be claimed: %v", err)
	}
}

func TestTheLastNodeNeedsNobodyToDrainTo(t *testing.T) {
	c := newCluster(t, 4, time.Second)
	one := c.join("one")
	c.eventually("one serves all", func() bool { return c.level(one) }, one)
	if err := one.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	one.leaveNow()
	two := c.join("two") // It need not wait for leases to end.
	c.eventually("the next has all", func() bool { return c.level(two) }, two)
}

func TestALaneThatCannotBeParkedStays(t *testing.T) {
	c := newCluster(t, 2, time.Second)
	failing := errors.New("it does not end")
	one := c.join("one", func(f *fakeNode) {
		f.parkIt = func(context.Context, uint32) error { return failing }
	})
	c.eventually("one serves all", func() bool { return c.level(one) }, one)
	two := c.join("two")
	c.eventually("one has tried, and goes on", func() bool {
		c.mu.Lock()
		tried := slices.ContainsFunc(c.said, func(said string) bool { return said == "one parks 0" || said == "one parks 1" })
		c.mu.Unlock()
		return tried && len(one.serving()) == 2
	}, one, two)
	if got := two.serving(); len(got) > 0 {
		t.Fatalf("two serves %v, which one could not park (O3)", got)
	}
}

func TestOnlyAWarmNodeIsGivenLanes(t *testing.T) {
	c := newCluster(t, 4, time.Second)
	one := c.join("one")
	c.eventually("one serves all", func() bool { return c.level(one) }, one)
	two := c.join("two", func(f *fakeNode) { f.cold = true })
	c.eventually("two is a member", func() bool { return two.Joined() && len(one.Members()) == 2 }, one, two)
	three := c.join("three")
	c.eventually("the warm ones share", func() bool { return c.level(one, three) }, one, two, three)
	two.warmUp()
	c.eventually("all share", func() bool { return c.level(one, two, three) }, one, two, three)
}

func TestANodeThatIsCutOffStopsBeforeAnotherBegins(t *testing.T) {
	c := newCluster(t, 8, time.Second)
	one, two := c.join("one"), c.join("two")
	c.eventually("both share", func() bool { return c.level(one, two) }, one, two)
	one.nc.Close()
	// eventually looks all the time that no lane is answered for twice.
	c.eventually("two has all", func() bool { return c.level(two) }, one, two)
	if left := one.serving(); len(left) > 0 {
		t.Fatalf("a node that is cut off answers for lanes %v", left)
	}
	c.eventually("it has noticed", func() bool {
		one.mu.Lock()
		defer one.mu.Unlock()
		return len(one.held) == 0
	}, one, two)
}

func TestANodeThatWasKilledHasItsLanesBackAtOnce(t *testing.T) {
	c := newCluster(t, 8, time.Minute) // Nothing here waits for a lease to end.
	one := c.join("one")
	c.eventually("one serves all", func() bool { return c.level(one) }, one)
	one.nc.Close() // It can give nothing back.
	one.leaveNow()
	again := c.join("one")
	c.eventually("it has all", func() bool { return c.level(again) }, again)
}

func TestAnOperatorMovesALaneAndTakesItBack(t *testing.T) {
	c := newCluster(t, 4, time.Second)
	one, two := c.join("one"), c.join("two")
	c.eventually("both share", func() bool { return c.level(one, two) }, one, two)
	var pinned []uint32
	for lane := range c.lanes {
		if err := two.Move(t.Context(), lane, "one"); err != nil {
			t.Fatal(err)
		}
		pinned = append(pinned, lane)
	}
	c.eventually("one has all", func() bool { return slices.Equal(one.serving(), pinned) }, one, two)
	if got := two.Placement()[3]; got != (Placed{NodeID: "one", MovedTo: "one"}) {
		t.Errorf("lane 3 is %+v", got)
	}
	for lane := range c.lanes {
		if err := one.Move(t.Context(), lane, ""); err != nil {
			t.Fatal(err)
		}
	}
	c.eventually("both share again", func() bool { return c.level(one, two) }, one, two)
	if err := one.Move(t.Context(), 0, "nobody"); !errors.Is(err, ErrNoNode) {
		t.Errorf("move to a node that is not there: %v, want ErrNoNode", err)
	}
	if err := one.Move(t.Context(), 4, "two"); !errors.Is(err, ErrNoLane) {
		t.Errorf("move of a lane that is not there: %v, want ErrNoLane", err)
	}
}

func TestAnOperatorDrainsANodeOverItsRestarts(t *testing.T) {
	c := newCluster(t, 4, time.Second)
	one, two := c.join("one"), c.join("two")
	c.eventually("both share", func() bool { return c.level(one, two) }, one, two)
	if err := two.DrainNode(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	c.eventually("two has all", func() bool { return c.level(two) }, one, two)
	if err := two.DrainNode(t.Context(), "two"); !errors.Is(err, ErrLastNode) {
		t.Errorf("drain of the last node: %v, want ErrLastNode", err)
	}
	if err := two.DrainNode(t.Context(), "three"); !errors.Is(err, ErrNoNode) {
		t.Errorf("drain of a node that is not there: %v, want ErrNoNode", err)
	}
	if err := two.Move(t.Context(), 0, "one"); !errors.Is(err, ErrNodeDrained) {
		t.Errorf("move to a drained node: %v, want ErrNodeDrained", err)
	}
	one.leaveNow()
	one = c.join("one")
	c.eventually("one is there", one.Settled, one, two)
	if got := one.serving(); len(got) > 0 {
		t.Errorf("after a restart the drained node serves %v", got)
	}
	if err := one.UndrainNode(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	c.eventually("both share again", func() bool { return c.level(one, two) }, one, two)
}

func TestADrainedNodeServesWhenNoOtherIsThere(t *testing.T) {
	c := newCluster(t, 2, time.Second)
	one, two := c.join("one"), c.join("two")
	c.eventually("both share", func() bool { return c.level(one, two) }, one, two)
	if err := two.DrainNode(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	c.eventually("two has all", func() bool { return c.level(two) }, one, two)
	two.leaveNow()
	c.eventually("the drained one has all", func() bool { return c.level(one) }, one)
}

func TestOfTwoProcessesOfOneNodeTheLaterStays(t *testing.T) {
	c := newCluster(t, 2, time.Second)
	one := c.join("one")
	c.eventually("one serves all", func() bool { return c.level(one) }, one)
	again := c.join("one")
	select {
	case err := <-one.ended:
		var superseded *SupersededError
		if !errors.As(err, &superseded) || superseded.NodeID != "one" {
			t.Fatalf("the earlier process ended with %v, want a *SupersededError", err)
		}
		one.ended <- err
	case <-time.After(20 * time.Second):
		t.Fatal("the earlier process goes on")
	}
	c.eventually("the later has all", func() bool { return c.level(again) }, again)
}

func TestBucketsThatAreGoneAreMadeAgainAndNoLaneMoves(t *testing.T) {
	c := newCluster(t, 4, 2*time.Second)
	one, two := c.join("one"), c.join("two")
	c.eventually("both share", func() bool { return c.level(one, two) }, one, two)
	had := one.serving()
	if err := c.server.Restart(); err != nil { // The buckets are in memory.
		t.Fatal(err)
	}
	// Members are written anew by their nodes, whatever they are told of the old ones.
	var beats [2]uint64
	for i, member := range one.Members() {
		beats[i] = member.Heartbeat
	}
	c.eventually("both are heard of again", func() bool {
		members := one.Members()
		return len(members) == 2 && members[0].Heartbeat > beats[0]+1 && members[1].Heartbeat > beats[1]+1
	}, one, two)
	c.eventually("both share", func() bool { return c.level(one, two) && one.Settled() && two.Settled() }, one, two)
	if got := one.serving(); !slices.Equal(got, had) {
		t.Errorf("one serves %v, want %v: nobody has gone", got, had)
	}
}

// refuse has a bucket take no writes, or take them again: as while its stream elects a leader, what it holds ends meanwhile.
func (c *cluster) refuse(bucket string, refused bool) {
	c.t.Helper()
	nc, err := c.server.Connect()
	if err != nil {
		c.t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		c.t.Fatal(err)
	}
	stream, err := js.Stream(c.t.Context(), streamOf(bucket))
	if err != nil {
		c.t.Fatal(err)
	}
	config := stream.CachedInfo().Config
	config.MaxMsgSize = -1
	if refused {
		config.MaxMsgSize = 1
	}
	if _, err := js.UpdateStream(c.t.Context(), config); err != nil {
		c.t.Fatal(err)
	}
}

func TestWhileNobodyCanBeHeardNobodyCountsAsGone(t *testing.T) {
	c := newCluster(t, 8, LeaseTTLMin)
	a, b := c.join("a"), c.join("b")
	c.eventually("both have their share", func() bool { return c.level(a, b) }, a, b)
	before := map[*fakeNode][]uint32{a: a.serving(), b: b.serving()}
	c.refuse(NodesBucket, true)
	c.refuse(LeasesBucket, true)
	counts := func(key string) bool { return a.members.row(key).live(time.Now(), a.members.timeToLive()) }
	c.eventually("no lease is left, and no sign of either", func() bool {
		return len(a.serving()) == 0 && len(b.serving()) == 0 && !counts("a") && !counts("b")
	}, a, b)
	c.mu.Lock()
	c.said = nil
	c.mu.Unlock()
	same := func() bool { return slices.Equal(a.serving(), before[a]) && slices.Equal(b.serving(), before[b]) }
	c.refuse(LeasesBucket, false)
	c.eventually("each has its lanes again", same, a, b)
	c.refuse(NodesBucket, false)
	c.eventually("both are heard", func() bool { return counts("a") && counts("b") }, a, b)
	if c.mu.Lock(); slices.ContainsFunc(c.said, func(what string) bool { return strings.Contains(what, "parks") }) {
		t.Errorf("lanes were handed over: %v", c.said)
	}
	c.mu.Unlock()
	// The hush is over then: who dies now is gone.
	b.leaveNow()
	c.eventually("the other has all", func() bool { return len(a.serving()) == 8 }, a)
}

func TestBucketsAreReadFromTheirLeadersAlone(t *testing.T) {
	c := newCluster(t, 1, time.Second)
	nc, err := c.server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	// One is there already, as the client makes it.
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: PlacementBucket}); err != nil {
		t.Fatal(err)
	}
	a := c.join("a")
	c.eventually("the lane has a node", func() bool { return len(a.serving()) == 1 }, a)
	for _, bucket := range []string{NodesBucket, LeasesBucket, PlacementBucket} {
		stream, err := js.Stream(t.Context(), streamOf(bucket))
		if err != nil {
			t.Fatal(err)
		}
		if stream.CachedInfo().Config.AllowDirect {
			t.Errorf("replicas that are behind answer reads of bucket %s", bucket)
		}
	}
}

func TestAMemberTellsWhatItsNodeSays(t *testing.T) {
	c := newCluster(t, 2, time.Second)
	one := c.join("one")
	c.eventually("one serves all", func() bool { return c.level(one) }, one)
	var member *clusterv1.Member
	c.eventually("it tells of its lanes", func() bool {
		for _, m := range one.Members() {
			member = m
		}
		return member != nil && len(member.Lanes) == 2
	}, one)
	if member.NodeId != "one" || !member.Warm || member.Draining || member.Heartbeat == 0 ||
		member.StartTime.AsTime().Before(timestamppb.Now().AsTime().Add(-time.Minute)) {
		t.Errorf("got %v", member)
	}
}

// aloneNode returns a node that follows the leases, and has lane 0's, but carries out no plan.
func (c *cluster) aloneNode() (*Node, *hold) {
	c.t.Helper()
	nc := c.connect()
	f := &fakeNode{c: c, id: "one", held: map[uint32]func() bool{}, park: map[uint32]bool{}, told: map[uint32]string{}}
	n, err := New(nc, Options{NodeID: "one", Topology: eventstore.Topology{Lanes: c.lanes}, Lanes: f, LeaseTTL: c.ttl, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(c.t.Context())
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		n.leases.run(ctx)
	}()
	c.t.Cleanup(func() {
		stop()
		<-followed
	})
	var h *hold
	c.eventually("the lease is taken", func() bool {
		h, err = n.claim(ctx, 0)
		return err == nil
	})
	return n, h
}

// The plan was made from what was known before the lane was handed over, and is carried out after: it took the lease away again.
func TestALeaseThatPassedSinceThePlanWasMadeIsNotTakenBack(t *testing.T) {
	c := newCluster(t, 1, time.Minute)
	n, h := c.aloneNode()
	two, err := proto.Marshal(&clusterv1.Lease{NodeId: "two", FromNodeId: "one", Since: timestamppb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	passed, err := n.leases.write(t.Context(), leaseKey(0), two, h.revision)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.claim(t.Context(), 0); !errors.Is(err, errMoved) {
		t.Errorf("the lease of another node was taken: %v (O2)", err)
	}
	if revision := n.leases.row(leaseKey(0)).revision; revision != passed {
		t.Errorf("the lease is at revision %d, want %d", revision, passed)
	}
}

// Whoever passes a lease and hears nothing goes on with the lane only when the lease cannot pass any more.
func TestAnUnansweredHandOverCannotHappenLater(t *testing.T) {
	c := newCluster(t, 1, time.Minute)
	n, h := c.aloneNode()
	before := h.revision
	unsent, cancel := context.WithCancel(t.Context())
	cancel()
	if owner, err := n.pass(unsent, h, "two"); owner != "one" || err == nil {
		t.Fatalf("the lane is %q's: %v, want one's and an error", owner, err)
	}
	// What was on its way arrives.
	if _, err := n.leases.write(t.Context(), leaseKey(0), []byte("two's"), before); !errors.Is(err, errMoved) {
		t.Errorf("the lease passed after its owner had gone on: %v (O2)", err)
	}
	if err := n.renewOne(t.Context(), h); err != nil || !h.valid() {
		t.Errorf("the owner cannot renew its lease any more: %v", err)
	}
}

// A node that was stopped for longer than its lease lasts may find it free again: another one had it, decided, and is gone.
func TestALeaseThatIsOverIsNotRenewed(t *testing.T) {
	c := newCluster(t, 1, time.Minute)
	n, h := c.aloneNode()
	if err := n.renewOne(t.Context(), h); err != nil || !h.valid() {
		t.Fatalf("a lease that lasts cannot be renewed: %v", err)
	}
	other := &hold{node: n, lane: 0, revision: h.revision}
	if err := other.write(t.Context(), []byte("another node's")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.leases.write(t.Context(), leaseKey(0), nil, other.revision); err != nil {
		t.Fatal(err)
	}
	h.until.Store(0)
	if err := n.renewOne(t.Context(), h); err != nil {
		t.Errorf("a lease that is over: %v, want that nothing is tried", err)
	}
	if revision := n.leases.row(leaseKey(0)).revision; h.valid() || revision > other.revision+1 {
		t.Errorf("a lease that was over is in use again: %t, at revision %d after %d (O2)", h.valid(), revision, other.revision)
	}
}
