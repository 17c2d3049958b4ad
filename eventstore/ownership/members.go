package ownership

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// A heart is what a node last said of itself.
type heart struct {
	revision uint64 // 0 before it said anything
	beats    uint64
	// said is when the newest that was confirmed was sent.
	said time.Time
}

// A hush is a time in which the bucket of nodes could not be written to, as this node's own failures show: while its stream has no leader,
// nobody can say that it is there. What is not heard then says nothing of the others, so they count as they did before, until all of
// them had the time to speak again.
type hush struct {
	// members are those who were there when it began; nil when there is none.
	members map[string]*clusterv1.Member
	// ended is when this node was heard again; zero before.
	ended time.Time
}

// sayThere says that the node is there until ctx ends, or until a later process of the same node does.
func (n *Node) sayThere(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-n.beat:
			if pause(ctx, beatMin) != nil {
				return nil
			}
		}
		next := n.beatEvery()
		err := n.sayOnce(ctx)
		var superseded *SupersededError
		switch {
		case errors.As(err, &superseded):
			return err
		case err != nil && ctx.Err() == nil:
			next = againSayMin + rand.N(againSayMin)
			if !n.Joined() {
				next = watchRetryMin // The bucket is being opened.
				break
			}
			n.quiet(time.Now())
			if !failing {
				n.logger.Warn("the node cannot say that it is there, and tries on", "error", err)
			}
		}
		failing = err != nil
		timer.Reset(next)
	}
}

// quiet takes in that the node could not say that it is there.
func (n *Node) quiet(now time.Time) {
	n.mu.Lock()
	said, hushed := n.heart.said, n.hush.members != nil
	n.mu.Unlock()
	if silence := now.Sub(said); hushed || silence <= n.beatEvery()*hushBeats || silence > hushMax {
		return
	}
	members := n.view(said).members
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hush = hush{members: members}
}

// heard takes in that the node could say again, at a moment, that it is there. REQUIRES: mu is held.
func (n *Node) heard(sent time.Time) {
	n.heart.said = sent
	if n.hush.members != nil && n.hush.ended.IsZero() {
		n.hush.ended = time.Now()
	}
}

// hushed returns the members that count though nothing is heard of them, nil when there is no hush. REQUIRES: mu is held.
func (n *Node) hushed(now time.Time) map[string]*clusterv1.Member {
	over := !n.hush.ended.IsZero() && now.Sub(n.hush.ended) > n.beatEvery()+hushRest
	if over || now.Sub(n.heart.said) > hushMax {
		n.hush = hush{}
	}
	return n.hush.members
}

// sayOnce writes the node's entry.
func (n *Node) sayOnce(ctx context.Context) error {
	n.mu.Lock()
	n.heart.beats++
	revision := n.heart.revision
	self := &clusterv1.Member{
		NodeId: n.options.NodeID, StartTime: timestamppb.New(n.started), Heartbeat: n.heart.beats, Draining: n.stopping,
	}
	held := slices.Sorted(maps.Keys(n.holds))
	n.mu.Unlock()
	self.Draining = self.Draining || n.Drained(n.options.NodeID)
	self.Warm = n.warm()
	for _, lane := range held {
		s := n.options.Lanes.Status(lane)
		self.Lanes = append(self.Lanes, &clusterv1.OwnedLane{
			Lane: lane, Epoch: s.Epoch, Commit: s.Commit, Queued: uint32(s.Queued), DecidedPerSecond: uint32(s.DecidedPerSecond),
		})
	}
	if n.options.Describe != nil {
		n.options.Describe(self)
	}
	value, err := proto.Marshal(self)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, n.writeMax())
	defer cancel()
	sent := time.Now()
	next, err := n.members.write(ctx, n.options.NodeID, value, revision)
	if errors.Is(err, errMoved) {
		known := n.members.row(n.options.NodeID)
		if other := decodeMember(known); other != nil && other.StartTime.AsTime().After(n.started) {
			return &SupersededError{NodeID: n.options.NodeID, Started: other.StartTime.AsTime()}
		}
		// The mark of an entry that ended, an earlier process's entry, or this one's whose acknowledgement was lost.
		next, err = n.members.write(ctx, n.options.NodeID, value, known.revision)
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.heart.revision = next
	n.heard(sent)
	n.mu.Unlock()
	n.look()
	return nil
}

// warm reports whether the state of every lane is near its log's head.
func (n *Node) warm() bool {
	for lane := range n.options.Topology.Lanes {
		s := n.options.Lanes.Status(lane)
		if lag, known := s.Lag(); !s.Serving && (!known || lag > WarmLagMax) {
			return false
		}
	}
	return true
}

// decodeMember returns what a node says of itself, nil when that cannot be read.
func decodeMember(r row) *clusterv1.Member {
	member := &clusterv1.Member{}
	if len(r.value) == 0 || proto.Unmarshal(r.value, member) != nil || member.NodeId == "" {
		return nil
	}
	return member
}

// A view is what this node knows of the others, at one moment.
type view struct {
	// whole says that all buckets were read.
	whole   bool
	members map[string]*clusterv1.Member
	// silent are those of the members who only count because of a hush.
	silent  map[string]bool
	drained map[string]bool
	pins    map[uint32]string
	// leases has, for each lane, the lease that counts, nil when there is none; owners its node, or the one whose process, which is there
	// still, had it last.
	leases []*clusterv1.Lease
	owners []string
}

// view returns what this node knows.
func (n *Node) view(now time.Time) *view {
	v := &view{
		members: map[string]*clusterv1.Member{}, silent: map[string]bool{}, drained: map[string]bool{}, pins: map[uint32]string{},
		leases: make([]*clusterv1.Lease, n.options.Topology.Lanes), owners: make([]string, n.options.Topology.Lanes),
	}
	rows, members := n.members.all()
	ttl := n.members.timeToLive()
	for key, r := range rows {
		if member := decodeMember(r); member != nil && r.live(now, ttl) && member.NodeId == key {
			v.members[key] = member
		}
	}
	rows, leases := n.leases.all()
	ttl = n.leases.timeToLive()
	n.mu.Lock()
	last := slices.Clone(n.last)
	hushed := n.hushed(now)
	n.mu.Unlock()
	for id, member := range hushed {
		if v.members[id] == nil {
			v.members[id], v.silent[id] = member, true
		}
	}
	for lane := range n.options.Topology.Lanes {
		if r := rows[leaseKey(lane)]; r.live(now, ttl) {
			v.leases[lane] = decodeLease(r)
			v.owners[lane] = v.leases[lane].NodeId
		} else if member := v.members[last[lane].nodeID]; member != nil && member.StartTime.AsTime().Equal(last[lane].started) {
			// A later process of the node does not know that it had the lane, and may plan to leave it to others.
			v.owners[lane] = member.NodeId
		}
	}
	rows, placement := n.placement.all()
	for key, r := range rows {
		if len(r.value) == 0 {
			continue
		}
		if node, isDrain := strings.CutPrefix(key, drainPrefix); isDrain {
			v.drained[node] = true
		}
		if text, isPin := strings.CutPrefix(key, pinPrefix); isPin {
			if lane, err := strconv.ParseUint(text, 10, 32); err == nil {
				v.pins[uint32(lane)] = string(r.value)
			}
		}
	}
	v.whole = members && leases && placement
	return v
}

// mayHave returns the nodes that lanes may be given to: those that are warm, or have lanes, and are to have some. When there are none,
// those that are not warm, and then those that an operator drained, since a lane with any node is better than one without.
func (v *view) mayHave() []string {
	holders := map[string]bool{}
	for _, lease := range v.leases {
		if lease != nil {
			holders[lease.NodeId] = true
		}
	}
	for _, counts := range []func(*clusterv1.Member) bool{
		func(m *clusterv1.Member) bool {
			return !m.Draining && !v.drained[m.NodeId] && (m.Warm || holders[m.NodeId])
		},
		func(m *clusterv1.Member) bool { return !m.Draining && !v.drained[m.NodeId] },
		func(m *clusterv1.Member) bool { return v.drained[m.NodeId] },
	} {
		var nodes []string
		for id, member := range v.members {
			if counts(member) {
				nodes = append(nodes, id)
			}
		}
		if len(nodes) > 0 {
			return nodes
		}
	}
	return nil
}

// isWarm reports whether a node is there, and near the head.
func (v *view) isWarm(node string) bool {
	member := v.members[node]
	return member != nil && member.Warm && !v.silent[node]
}

// othersMayHave reports whether lanes may be given to another node.
func (v *view) othersMayHave(node string) bool {
	for id, member := range v.members {
		if id != node && !member.Draining && !v.drained[id] && v.isWarm(id) {
			return true
		}
	}
	return false
}

// The keys of the bucket of wishes: pin.<lane> has the node that the lane is to be with, drain.<node> is there when the node is to
// have none.
const (
	pinPrefix   = "pin."
	drainPrefix = "drain."
)

// Why a wish is none.
var (
	// ErrNoNode: there is no node of that id.
	ErrNoNode = errors.New("there is no such node")
	// ErrNodeDrained: the node is drained, or about to leave.
	ErrNodeDrained = errors.New("the node is drained")
	// ErrLastNode: no other node could have its lanes.
	ErrLastNode = errors.New("no other node may have its lanes")
	// ErrNoLane: there is no lane of that number.
	ErrNoLane = errors.New("there is no such lane")
)

// Move has a lane be with a node from now on, as long as that may have lanes; "" takes back what was said. It returns once the wish is
// written down.
func (n *Node) Move(ctx context.Context, lane uint32, node string) error {
	if lane >= n.options.Topology.Lanes {
		return fmt.Errorf("move lane %d of %d: %w", lane, n.options.Topology.Lanes, ErrNoLane)
	}
	if node != "" {
		v := n.view(time.Now())
		if v.members[node] == nil {
			return fmt.Errorf("move lane %d to %s: %w", lane, node, ErrNoNode)
		}
		if v.drained[node] || v.members[node].Draining {
			return fmt.Errorf("move lane %d to %s: %w", lane, node, ErrNodeDrained)
		}
	}
	return n.wish(ctx, pinPrefix+leaseKey(lane), []byte(node))
}

// DrainNode has a node hand its lanes over and get none, until UndrainNode. It returns once the wish is written down.
func (n *Node) DrainNode(ctx context.Context, node string) error {
	v := n.view(time.Now())
	if v.members[node] == nil && !v.drained[node] {
		return fmt.Errorf("drain %s: %w", node, ErrNoNode)
	}
	if !slices.ContainsFunc(slices.Collect(maps.Keys(v.members)), func(id string) bool {
		return id != node && !v.members[id].Draining && !v.drained[id]
	}) {
		return fmt.Errorf("drain %s: %w", node, ErrLastNode)
	}
	return n.wish(ctx, drainPrefix+node, []byte("1"))
}

// UndrainNode takes back DrainNode.
func (n *Node) UndrainNode(ctx context.Context, node string) error {
	return n.wish(ctx, drainPrefix+node, nil)
}

// wishAttemptsMax bounds the attempts of writing a wish that somebody else writes at the same time.
const wishAttemptsMax = 8

// wish writes a key of the bucket of wishes, or deletes it with an empty value.
func (n *Node) wish(ctx context.Context, key string, value []byte) error {
	for range wishAttemptsMax {
		r := n.placement.row(key)
		if string(r.value) == string(value) {
			return nil
		}
		if len(value) == 0 {
			value = nil
		}
		_, err := n.placement.write(ctx, key, value, r.revision)
		if err == nil && value == nil {
			return n.placement.refresh(ctx, key)
		}
		if !errors.Is(err, errMoved) {
			return err
		}
	}
	return fmt.Errorf("write %s in bucket %s, %d attempts: %w", key, PlacementBucket, wishAttemptsMax, errMoved)
}

// ID returns the node's id.
func (n *Node) ID() string { return n.options.NodeID }

// Members returns the nodes that are there, by id. Nobody changes them.
func (n *Node) Members() []*clusterv1.Member {
	return slices.SortedFunc(maps.Values(n.view(time.Now()).members), func(a, b *clusterv1.Member) int { return cmp.Compare(a.NodeId, b.NodeId) })
}

// Drained reports whether an operator drained a node.
func (n *Node) Drained(node string) bool { return len(n.placement.row(drainPrefix+node).value) > 0 }

// DrainedNodes returns the ids of the nodes that an operator drained, there or not.
func (n *Node) DrainedNodes() []string {
	return slices.Sorted(maps.Keys(n.view(time.Now()).drained))
}

// A Placed is where a lane is.
type Placed struct {
	// NodeID has the lane's lease, "" when nobody has.
	NodeID string
	// MovedTo is where an operator wants it, "" when none does.
	MovedTo string
}

// Placement returns where each lane is.
func (n *Node) Placement() []Placed {
	v := n.view(time.Now())
	placed := make([]Placed, len(v.leases))
	for lane, lease := range v.leases {
		if lease != nil {
			placed[lane].NodeID = lease.NodeId
		}
		placed[lane].MovedTo = v.pins[uint32(lane)]
	}
	return placed
}

// OwnerOf returns the id of the node that has a lane's lease, "" when nobody has.
func (n *Node) OwnerOf(lane uint32) string {
	if r := n.leases.row(leaseKey(lane)); r.live(time.Now(), n.leases.timeToLive()) {
		return decodeLease(r).NodeId
	}
	return ""
}
