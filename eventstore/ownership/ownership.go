// Package ownership shares the lanes of a log among the nodes that follow it: which node decides which lane, and how a lane passes
// from one to the next. It knows neither orders nor what a lane decides: see Lanes.
//
// Nodes meet in three key-value buckets beside the log. Each says of itself in WEIR-NODES that it is there (weir.cluster.v1.Member),
// holds the leases of its lanes in WEIR-LEASES (weir.cluster.v1.Lease), and reads in WEIR-PLACEMENT what an operator wishes. From
// these every node plans the same (Assign): it takes what is to be its own and is free, and hands over what is to be another's.
//
// What holds, always:
//
//	O1  Two nodes never both write a lane: its log fences the older one (eventstore.Writer). Nothing in this package is needed for
//	    that, and nothing in it, no clock and no bucket, can break it. Leases only say who tries.
//	O2  A node answers for a lane no longer than its lease is certainly nobody else's: from before the newest renewal that was
//	    confirmed was sent, by the monotonic clock, for the lease's time less leaseMarginShare of it. (That clock may stand still
//	    while a machine is suspended; O1 holds then, too.)
//	O3  A lane is handed over only to a node that is there and warm. Its owner parks what comes and offers the lease, which is nobody's
//	    until that node claims it; until then nothing is decided and nothing refused. If the lease cannot be offered, or is not claimed,
//	    the owner goes on.
//	O4  No error empties what is known of nodes and leases. What is not heard of ends by its time to live, and only by that; and of nodes
//	    not while nobody can be heard (see hush).
package ownership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/eventstore"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// The buckets. The first two are in memory: they say what is now, are written several times a second, and have to be writable
// also while the log has no room. Losing them costs what a crash of all nodes costs.
const (
	NodesBucket     = "WEIR-NODES"
	LeasesBucket    = "WEIR-LEASES"
	PlacementBucket = "WEIR-PLACEMENT"
)

// Limits of a Node.
const (
	// LeaseTTLDefault is how long a lease lasts that is not renewed, and how long a node counts as there that says nothing.
	LeaseTTLDefault = 3 * time.Second
	// LeaseTTLMin keeps renewals a fraction of it apart from each other, and above what a busy server takes to answer.
	LeaseTTLMin = 300 * time.Millisecond
	// renewalsPerTTL is how often a lease is renewed, and a node says that it is there, in that time.
	renewalsPerTTL = 3
	// leaseMarginShare is the part of its time, one of so many, for which a node that could not renew a lease no longer uses it: for
	// clocks that do not run equally fast, and for answers on their way.
	leaseMarginShare = 10
	// markerTTL is how long the server keeps the mark that a key has ended, so that who watches hears of it.
	markerTTL = time.Minute
	// handOversMax bounds the lanes that a node hands over at a time: each is parked meanwhile.
	handOversMax = 4
	// parkMax bounds how long a lane is parked for what it has taken to become durable; then it goes on, and is handed over later.
	parkMax = 2 * time.Second
	// claimMax bounds each try to take a lease: who led the bucket and is cut off answers nobody, and its successor answers at once.
	claimMax = time.Second
	// offerMax bounds how long a lease is offered to a node; then it is taken back. It is shorter where leases are.
	offerMax = time.Second
	// offerPoll is how often the owner looks whether an offer was taken.
	offerPoll = 2 * time.Millisecond
	// renewalsMax bounds the leases that are being renewed at a time.
	renewalsMax = 16
	// WarmLagMax is how many commits of any lane a node may be behind to be given lanes.
	WarmLagMax = eventstore.TailCommitsMax
	// againTakeMin and againPassMin are the least pauses after a lease could not be taken, or not be passed on. They are jittered.
	againTakeMin = 50 * time.Millisecond
	againPassMin = time.Second
	// beatMin is the least time between two heartbeats, however much changes.
	beatMin = 20 * time.Millisecond
	// againSayMin and againRenewMin are the least pauses after a node could not say that it is there, or not renew a lease. They are jittered.
	againSayMin   = 50 * time.Millisecond
	againRenewMin = 50 * time.Millisecond
	// hushBeats is for how many heartbeats a node is not heard itself until it takes the others' silence for a hush. hushRest is for how much
	// more than one they count when it is heard again: what a node says is given up after a heartbeat where nobody takes it, and said again
	// within againSayMin. hushMax is how long a hush lasts at most: a bit more than two elections.
	hushBeats = 2
	hushRest  = 300 * time.Millisecond
	hushMax   = 20 * time.Second
	// leaveMax bounds how long a node that leaves takes to stop its lanes and to give its leases back.
	leaveMax = 5 * time.Second
)

// Lanes are what a node decides. lanes.Set implements it.
type Lanes interface {
	// Start serves a lane from now on, as long as held says so. It opens the lane, or lets one that is parked go on. It does not wait.
	Start(lane uint32, held func() bool)
	// Park holds up what comes for a lane, and returns once what it had taken is durable and answered and nothing of this node's is
	// on its way to the log. After an error or ctx's end, the lane is parked all the same.
	Park(ctx context.Context, lane uint32) error
	// Stop serves a lane no longer. What is parked, and what still comes, is told the owner, "" when nobody knows. Of a lane that is
	// not served it only takes in the owner. It does not wait.
	Stop(lane uint32, owner string)
	// Status says how the node stands to a lane.
	Status(lane uint32) eventstore.LaneStatus
}

// Options configure a Node. NodeID, Topology and Lanes are required.
type Options struct {
	// NodeID is 1 to 64 characters of A-Z a-z 0-9 _ -, another one for each node, and stays over restarts.
	NodeID   string
	Topology eventstore.Topology
	Lanes    Lanes
	// LeaseTTL of buckets that are made now; 0 means LeaseTTLDefault. That of buckets that are there counts.
	LeaseTTL time.Duration
	// Replicas of buckets that are made now; 0 means 1.
	Replicas int
	// Describe adds to what the node says of itself: name, addresses, version, load. It is called before each heartbeat; may be nil.
	Describe func(*clusterv1.Member)
	// Logger is told of lanes that come and go, and of what hinders it; nil means slog.Default.
	Logger *slog.Logger
}

// newsSubject is where nodes tell each other of their writes that were confirmed. It is one of the subjects for commands, so that who may use those
// may use this. A watch tells of them, too, but dies with the server that has it, without a word: a lane that was offered then was parked
// until the offer was taken back, since the next owner had not heard of it. What is heard here is a row like any other, and never older
// than one that is known. It may be lost.
const newsSubject = "weir.cmd.news"

// Headers of what is said there; the value is the message's data.
const (
	bucketHeader   = "Weir-Bucket"
	keyHeader      = "Weir-Key"
	revisionHeader = "Weir-Revision"
)

// A Node is this process's part in the sharing of lanes. Its methods may be called by any number of goroutines.
type Node struct {
	options Options
	logger  *slog.Logger
	nc      *nats.Conn
	started time.Time // names this process of the node

	members   *table
	leases    *table
	placement *table

	wake chan struct{} // the plan is to be looked at; holds one signal
	beat chan struct{} // the node is to say something new of itself; holds one signal

	mu       sync.Mutex
	holds    map[uint32]*hold
	acting   map[uint32]bool      // lanes that are being taken or handed over
	passing  int                  // of these, lanes that are being handed over
	notYet   map[uint32]time.Time // lanes that are left alone until then, since what was tried failed
	last     []keeper             // who had each lane last, as far as this node knows
	free     []time.Time          // since when each lane could be taken by whoever is to have it, zero where it cannot
	told     []string             // the owners that Lanes was told of lanes that are not here
	stopping bool
	joined   bool
	heart    heart
	hush     hush
}

// A SupersededError says that another process runs under this node's id, and was started later: this one has to go.
type SupersededError struct {
	NodeID  string
	Started time.Time
}

func (e *SupersededError) Error() string {
	return fmt.Sprintf("another process runs as node %s since %s; give each node an id and a data directory of its own", e.NodeID, e.Started.Format(time.RFC3339))
}

// New returns a node that is not there yet. Run joins.
func New(nc *nats.Conn, options Options) (*Node, error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	if !eventstore.ValidNodeID(options.NodeID) {
		return nil, fmt.Errorf("%q cannot name a node: it is not 1 to %d characters of A-Z a-z 0-9 _ -", options.NodeID, eventstore.NodeIDLenMax)
	}
	if options.LeaseTTL == 0 {
		options.LeaseTTL = LeaseTTLDefault
	}
	if options.LeaseTTL < LeaseTTLMin {
		return nil, fmt.Errorf("leases of %s are too short: the least is %s", options.LeaseTTL, LeaseTTLMin)
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("share lanes: %w", err)
	}
	n := &Node{
		options: options, logger: options.Logger, nc: nc, started: time.Now(), wake: make(chan struct{}, 1), beat: make(chan struct{}, 1),
		holds: map[uint32]*hold{}, acting: map[uint32]bool{}, notYet: map[uint32]time.Time{},
		last: make([]keeper, options.Topology.Lanes), free: make([]time.Time, options.Topology.Lanes), told: make([]string, options.Topology.Lanes),
	}
	replicas := max(1, options.Replicas)
	n.members = newTable(js, jetstream.KeyValueConfig{
		Bucket: NodesBucket, Description: "Weir: the nodes that are there", Storage: jetstream.MemoryStorage, Replicas: replicas,
		TTL: options.LeaseTTL, LimitMarkerTTL: markerTTL,
	}, n.logger, n.look)
	n.leases = newTable(js, jetstream.KeyValueConfig{
		Bucket: LeasesBucket, Description: "Weir: which node decides which lane", Storage: jetstream.MemoryStorage, Replicas: replicas,
		TTL: options.LeaseTTL, LimitMarkerTTL: markerTTL,
	}, n.logger, n.look)
	n.placement = newTable(js, jetstream.KeyValueConfig{
		Bucket: PlacementBucket, Description: "Weir: where an operator wants lanes", Storage: jetstream.FileStorage, Replicas: replicas,
	}, n.logger, n.look)
	for _, t := range n.tables() {
		t.tell = func(key string, value []byte, revision uint64) {
			_ = nc.PublishMsg(&nats.Msg{Subject: newsSubject, Data: value, Header: nats.Header{ // Who does not hear it, the watch tells.
				bucketHeader: {t.config.Bucket}, keyHeader: {key}, revisionHeader: {strconv.FormatUint(revision, 10)},
			}})
		}
	}
	return n, nil
}

func (n *Node) tables() []*table { return []*table{n.members, n.leases, n.placement} }

// hearNews takes in what other nodes tell of their writes until the subscription ends, which the caller ends.
func (n *Node) hearNews() (*nats.Subscription, error) {
	news, err := n.nc.Subscribe(newsSubject, func(said *nats.Msg) {
		revision, err := strconv.ParseUint(said.Header.Get(revisionHeader), 10, 64)
		key := said.Header.Get(keyHeader)
		for _, t := range n.tables() {
			if err == nil && revision > 0 && key != "" && len(said.Data) > 0 && t.config.Bucket == said.Header.Get(bucketHeader) {
				t.note(key, said.Data, revision, time.Time{})
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("hear of other nodes: %w", err)
	}
	if err := news.SetPendingLimits(newsPendingMax, -1); err != nil {
		return nil, errors.Join(fmt.Errorf("hear of other nodes: %w", err), news.Unsubscribe())
	}
	return news, nil
}

// beatEvery is how often leases are renewed, and the node says that it is there.
func (n *Node) beatEvery() time.Duration {
	return min(n.leases.timeToLive(), n.members.timeToLive()) / renewalsPerTTL
}

// writeMax bounds each write that is tried again.
func (n *Node) writeMax() time.Duration { return max(n.beatEvery(), LeaseTTLMin) }

// look has the plan looked at.
func (n *Node) look() { signal(n.wake) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run joins, takes part until ctx ends, and leaves: lanes that are still here are stopped, and their leases given back. Whoever wants
// them to pass to other nodes without a gap calls Drain before. It returns a *SupersededError when another process of the same id came
// later; a server that cannot be reached is tried again.
func (n *Node) Run(ctx context.Context) error {
	news, err := n.hearNews()
	if err != nil {
		return err
	}
	defer func() { _ = news.Unsubscribe() }() // Fails on a closed connection only, where nothing comes any more.
	following, stop := context.WithCancel(context.WithoutCancel(ctx))
	group, ctx := errgroup.WithContext(ctx)
	var tables sync.WaitGroup
	for _, t := range n.tables() {
		tables.Go(func() { t.run(following) })
	}
	defer tables.Wait()
	defer stop()
	group.Go(func() error { return n.sayThere(ctx) })
	group.Go(func() error { n.renew(ctx); return nil })
	group.Go(func() error { n.plan(ctx); return nil })
	err = group.Wait()
	n.leave(following)
	return err
}

// plan carries the plan out whenever something changes.
func (n *Node) plan(ctx context.Context) {
	var acts sync.WaitGroup
	defer acts.Wait()
	// Expiry is told by the server, and found by its time to live where it is not.
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.wake:
		case <-tick.C:
			tick.Reset(n.beatEvery() / 2)
		}
		n.step(func(act func(context.Context)) {
			acts.Go(func() {
				act(ctx)
				n.look()
			})
		})
	}
}

// step begins what the plan wants and is not under way. It does not wait.
func (n *Node) step(begin func(act func(context.Context))) {
	now := time.Now()
	view := n.view(now)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.joined = n.joined || view.whole && n.heart.revision > 0
	if !n.joined {
		return
	}
	for lane, h := range n.holds {
		if !n.acting[lane] && !h.valid() {
			n.logger.Warn("a lease could not be renewed in time: the lane is no longer decided here", "lane", lane)
			n.drop(h, "")
		}
	}
	n.remember(view, now)
	plan := Assign(view.owners, view.mayHave(), view.pins)
	for lane := range n.options.Topology.Lanes {
		h, lease := n.holds[lane], view.leases[lane]
		switch {
		case n.acting[lane] || now.Before(n.notYet[lane]):
		case h != nil:
			if to := plan[lane]; to != "" && to != n.options.NodeID && view.isWarm(to) && n.passing < handOversMax {
				n.acting[lane] = true
				n.passing++
				begin(func(ctx context.Context) { n.handOver(ctx, h, to) })
			}
		case lease != nil && lease.NodeId != n.options.NodeID:
			if n.told[lane] != lease.NodeId {
				n.told[lane] = lease.NodeId
				n.options.Lanes.Stop(lane, lease.NodeId)
			}
		case n.stopping && lease == nil:
		case lease != nil || plan[lane] == n.options.NodeID:
			// Handed over to this node, or left by an earlier process of it, or free.
			n.acting[lane] = true
			begin(func(ctx context.Context) { n.take(ctx, lane) })
		}
	}
}

// A keeper is the process that had a lane's lease.
type keeper struct {
	nodeID  string
	started time.Time
}

// remember takes in who has each lane. Whoever had it last is to have it again when its lease could not be renewed. But nodes may have heard
// different things, and each leave the lane to another one: after a lease's time all plan by what is in the buckets alone. The time in which
// nobody can be heard does not count, since nobody can take the lane. REQUIRES: mu is held.
func (n *Node) remember(v *view, now time.Time) {
	for lane, lease := range v.leases {
		switch {
		case lease != nil:
			n.last[lane], n.free[lane] = keeper{lease.NodeId, lease.ProcessStartTime.AsTime()}, time.Time{}
		case n.hush.members != nil:
			n.free[lane] = time.Time{}
		case n.free[lane].IsZero():
			n.free[lane] = now
		case now.Sub(n.free[lane]) > n.leases.timeToLive():
			n.last[lane] = keeper{}
		}
	}
}

// drop gives up a lane. REQUIRES: mu is held.
func (n *Node) drop(h *hold, owner string) {
	h.end()
	delete(n.holds, h.lane)
	n.told[h.lane] = owner
	n.options.Lanes.Stop(h.lane, owner)
	signal(n.beat)
}

// leaseKey is a lane's key in the bucket of leases, and the end of its key in that of wishes.
func leaseKey(lane uint32) string { return fmt.Sprintf("%02d", lane) }

// take takes the lease of a lane that is free, or this node's already, and serves the lane.
func (n *Node) take(ctx context.Context, lane uint32) {
	h, err := n.claim(ctx, lane)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.acting, lane)
	switch {
	case errors.Is(err, errMoved): // Another node was quicker.
		return
	case err != nil:
		n.notYet[lane] = time.Now().Add(againTakeMin + rand.N(againTakeMin))
		if ctx.Err() == nil {
			n.logger.Warn("a lease cannot be taken", "lane", lane, "error", err)
		}
		return
	}
	n.holds[lane] = h
	n.told[lane] = n.options.NodeID
	n.options.Lanes.Start(lane, h.valid)
	signal(n.beat)
}

// claim writes this process into the lease. It returns errMoved when another node has it.
func (n *Node) claim(ctx context.Context, lane uint32) (*hold, error) {
	before := n.leases.row(leaseKey(lane))
	lease := &clusterv1.Lease{NodeId: n.options.NodeID, ProcessStartTime: timestamppb.New(n.started), Since: timestamppb.Now()}
	if old := decodeLease(before); old != nil {
		switch {
		case old.NodeId == n.options.NodeID:
			lease.FromNodeId = old.FromNodeId
		case before.live(time.Now(), n.leases.timeToLive()):
			// The row is newer than the view that the plan was made from, and the write would be on condition of the row (O2).
			return nil, errMoved
		}
	}
	value, err := proto.Marshal(lease)
	if err != nil {
		return nil, err
	}
	h := &hold{node: n, lane: lane, value: value, revision: before.revision}
	writing, cancel := context.WithTimeout(ctx, claimMax)
	defer cancel()
	if err := h.write(writing, value); err != nil {
		return nil, err
	}
	return h, nil
}

// handOver parks a lane, passes its lease on, and stops it (O3). What goes wrong leaves the lane where it is.
func (n *Node) handOver(ctx context.Context, h *hold, to string) {
	began := time.Now()
	owner, err := n.pass(ctx, h, to)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.acting, h.lane)
	n.passing--
	switch {
	case owner == n.options.NodeID && h.valid():
		n.notYet[h.lane] = time.Now().Add(againPassMin + rand.N(againPassMin))
		n.logger.Warn("a lane cannot be handed over, it stays here for now", "lane", h.lane, "to", to, "error", err)
		n.options.Lanes.Start(h.lane, h.valid)
		return
	case owner == to:
		n.logger.Info("lane handed over", "lane", h.lane, "to", to, "after", time.Since(began))
	default:
		n.logger.Warn("a lane was lost while it was handed over", "lane", h.lane, "to", to, "owner", owner, "error", err)
		if owner == n.options.NodeID {
			owner = "" // It was over meanwhile, and is taken anew.
		}
	}
	n.drop(h, owner)
}

// pass parks the lane and offers its lease to a node. It returns who has it then: this node, if it could not be offered or was not
// claimed.
func (n *Node) pass(ctx context.Context, h *hold, to string) (owner string, err error) {
	parking, cancel := context.WithTimeout(ctx, parkMax)
	defer cancel()
	if err := n.options.Lanes.Park(parking, h.lane); err != nil {
		return n.options.NodeID, err
	}
	value, err := proto.Marshal(&clusterv1.Lease{NodeId: to, FromNodeId: n.options.NodeID, Since: timestamppb.Now()})
	if err != nil {
		return n.options.NodeID, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	revision, err := n.leases.write(ctx, leaseKey(h.lane), value, h.revision)
	if err == nil {
		h.revision = revision
		if n.awaitClaim(ctx, h, to) {
			return to, nil
		}
		err = errNotClaimed
	}
	return n.takeBack(context.WithoutCancel(ctx), h), err
}

// errNotClaimed: a node did not claim the lease that it was offered.
var errNotClaimed = errors.New("the node does not claim the lease")

// awaitClaim waits for a node to claim the lease that it is offered, and reports whether it did. One that is not there any more, or that
// leaves, is not waited for. REQUIRES: h.mu is held, and the offer is at h's revision.
func (n *Node) awaitClaim(ctx context.Context, h *hold, to string) bool {
	ctx, cancel := context.WithTimeout(ctx, min(offerMax, n.beatEvery()))
	defer cancel()
	poll := time.NewTicker(offerPoll)
	defer poll.Stop()
	for {
		if r := n.leases.row(leaseKey(h.lane)); r.revision != h.revision {
			lease := decodeLease(r)
			return lease != nil && lease.NodeId == to && lease.ProcessStartTime != nil
		}
		member := n.members.row(to)
		if m := decodeMember(member); m == nil || m.Draining || !member.live(time.Now(), n.members.timeToLive()) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-poll.C:
		}
	}
}

// takeBack has the lease be this process's again, if nobody has claimed it, and returns who has it then: this node only if it never was
// another's, and "" when nobody has it or knows. What the process wrote before, and has not heard of, may still be on its way: a write
// of its own takes the revision from that, and only then it never arrives. The write proves that the lease was nobody else's in
// between, however long that was (O2). REQUIRES: h.mu is held.
func (n *Node) takeBack(ctx context.Context, h *hold) (owner string) {
	for until := time.Now().Add(n.leases.timeToLive()); time.Now().Before(until); {
		owner, err := n.tryToTakeBack(ctx, h)
		if err == nil {
			return owner
		}
		if pause(ctx, watchRetryMin) != nil {
			break
		}
	}
	return ""
}

// tryToTakeBack is one try. REQUIRES: h.mu is held.
func (n *Node) tryToTakeBack(ctx context.Context, h *hold) (owner string, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	if err := n.leases.refresh(ctx, leaseKey(h.lane)); err != nil {
		return "", err
	}
	r := n.leases.row(leaseKey(h.lane))
	lease := decodeLease(r)
	if r.revision != h.revision && !n.isOurs(r) && !n.isOffer(lease) {
		if owner = lease.GetNodeId(); owner == n.options.NodeID {
			owner = "" // Another node claimed it, decided, and offers it to this one, which has to claim it anew and open the lane again.
		}
		return owner, nil
	}
	h.revision = r.revision
	return n.options.NodeID, h.write(ctx, h.value)
}

// isOffer reports whether this node offers a lease, and nobody has claimed it.
func (n *Node) isOffer(lease *clusterv1.Lease) bool {
	return lease != nil && lease.FromNodeId == n.options.NodeID && lease.ProcessStartTime == nil
}

// Drain has the node hand over its lanes, for good, and returns when none is left, when there is no other node to have them, or with
// ctx's error.
func (n *Node) Drain(ctx context.Context) error {
	n.mu.Lock()
	n.stopping = true
	n.mu.Unlock()
	signal(n.beat)
	n.look()
	tick := time.NewTicker(beatMin / 4)
	defer tick.Stop()
	for {
		view := n.view(time.Now())
		n.mu.Lock()
		left := len(n.holds) + len(n.acting)
		for lane, lease := range view.leases {
			if lease != nil && lease.NodeId == n.options.NodeID && n.holds[uint32(lane)] == nil && !n.acting[uint32(lane)] {
				left++ // It was given back, and is to be passed on.
			}
		}
		joined := n.joined
		n.mu.Unlock()
		if left == 0 || !joined || !view.othersMayHave(n.options.NodeID) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d lanes are not handed over: %w", left, ctx.Err())
		case <-tick.C:
		}
	}
}

// leave stops the lanes that are still here, and gives back their leases and the node's place among the others, so that nobody has
// to wait for their end.
func (n *Node) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveMax)
	defer cancel()
	n.mu.Lock()
	holds := make([]*hold, 0, len(n.holds))
	for _, h := range n.holds {
		holds = append(holds, h)
	}
	n.mu.Unlock()
	var giving errgroup.Group
	giving.SetLimit(renewalsMax)
	for _, h := range holds {
		giving.Go(func() error {
			parkErr := n.options.Lanes.Park(ctx, h.lane)
			n.mu.Lock()
			n.drop(h, "")
			n.mu.Unlock()
			if parkErr != nil {
				return parkErr // The lease ends by itself.
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			_, err := n.leases.write(ctx, leaseKey(h.lane), nil, h.revision)
			return err
		})
	}
	err := giving.Wait()
	n.mu.Lock()
	revision := n.heart.revision
	n.mu.Unlock()
	if revision > 0 {
		_, memberErr := n.members.write(ctx, n.options.NodeID, nil, revision)
		err = errors.Join(err, memberErr)
	}
	if err != nil {
		n.logger.Warn("the node has left without giving everything back; its leases end by themselves", "error", err)
	}
}

// Joined reports whether the node is among the others, and knows what they have.
func (n *Node) Joined() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.joined
}

// Settled reports whether the node has joined, every lane has an owner, and those that this node has are served.
func (n *Node) Settled() bool { return n.Unsettled() == "" }

// Unsettled says, for people, what is missing until that is so; "" when nothing is.
func (n *Node) Unsettled() string {
	view := n.view(time.Now())
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.joined {
		for _, t := range []*table{n.members, n.leases, n.placement} {
			if _, loaded := t.all(); !loaded {
				return fmt.Sprintf("bucket %s: it could not be read yet", t.config.Bucket)
			}
		}
		return fmt.Sprintf("bucket %s: the node could not say there yet that it is there", NodesBucket)
	}
	if lane := slices.Index(view.leases, nil); lane >= 0 {
		if to := Assign(view.owners, view.mayHave(), view.pins)[lane]; to != "" {
			return fmt.Sprintf("lane %d: no node has it, and node %s is to take it", lane, to)
		}
		return fmt.Sprintf("lane %d: no node has it, and none may", lane)
	}
	for lane, lease := range view.leases {
		if lease.NodeId != n.options.NodeID {
			continue
		}
		if n.holds[uint32(lane)] == nil {
			return fmt.Sprintf("lane %d: its lease is this node's and not claimed yet", lane)
		}
		if status := n.options.Lanes.Status(uint32(lane)); !status.Serving {
			return fmt.Sprintf("lane %d: this node has it and is opening it, with its state at commit %d of %d", lane, status.Commit, status.Head)
		}
	}
	return ""
}
