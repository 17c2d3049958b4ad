package ownership

import (
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/eventstore"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// free ends a lane's lease, as the server does when its time is over.
func (c *cluster) free(lane uint32) {
	c.t.Helper()
	js, err := jetstream.New(c.connect())
	if err != nil {
		c.t.Fatal(err)
	}
	bucket, err := js.KeyValue(c.t.Context(), LeasesBucket)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := bucket.Delete(c.t.Context(), leaseKey(lane)); err != nil {
		c.t.Fatal(err)
	}
}

// A node that was killed counts as there for up to a heartbeat longer than its leases. When it came back in that time, the others left its
// lanes to it, since it had had them last. It knew nothing of that and, as it shared them out, left some to the others: those were nobody's,
// and the node did not say that it serves, for as long as nothing else changed.
func TestALaneIsNotLeftToANodeThatDoesNotKnowThatItHadIt(t *testing.T) {
	c := newCluster(t, 4, time.Minute) // Nothing here waits for a lease to end.
	second := c.join("b")
	c.eventually("the first that comes serves all", func() bool { return c.level(second) }, second)
	third := c.join("c")
	c.eventually("two share", func() bool { return c.level(second, third) }, second, third)
	first := c.join("a")
	c.eventually("all share", func() bool { return c.level(first, second, third) }, first, second, third)
	had := second.serving()
	if len(had) != 2 {
		t.Fatalf("the one that will be gone serves %v, want two lanes: of one that comes anew the plan would have one be another's", had)
	}
	second.nc.Close() // It can give nothing back.
	second.leaveNow()
	for _, lane := range had {
		c.free(lane)
	}
	c.eventually("the others know that its lanes are free, and leave them to it", func() bool {
		for _, other := range []*fakeNode{first, third} {
			v := other.view(time.Now())
			if v.leases[had[0]] != nil || v.leases[had[1]] != nil || v.members["b"] == nil {
				return false
			}
		}
		return true
	}, first, third)
	again := c.join("b")
	c.eventually("every lane is served", func() bool { return c.level(first, again, third) && again.Settled() }, first, again, third)
}

// Whatever nodes remember that others do not, a lane is left to nobody for longer than a lease lasts.
func TestWhoHadALaneIsForgottenWhenItStaysFree(t *testing.T) {
	c := newCluster(t, 1, time.Minute)
	two := &fakeNode{c: c, id: "two"}
	n, err := New(c.connect(), Options{NodeID: "one", Topology: eventstore.Topology{Lanes: 1}, Lanes: two, LeaseTTL: c.ttl, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	started := timestamppb.Now()
	member, memberErr := proto.Marshal(&clusterv1.Member{NodeId: "two", StartTime: started, Warm: true})
	lease, leaseErr := proto.Marshal(&clusterv1.Lease{NodeId: "two", ProcessStartTime: started})
	if err := errors.Join(memberErr, leaseErr); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	// at looks at what is in the buckets, and returns whom the lane is left to then.
	at := func(after time.Duration, lease []byte) string {
		now := begin.Add(after)
		n.members.rows["two"] = row{value: member, revision: 1, seen: now}
		n.leases.rows[leaseKey(0)] = row{value: lease, revision: 1, seen: now}
		v := n.view(now)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.remember(v, now)
		return v.owners[0]
	}
	for _, step := range []struct {
		after  time.Duration
		lease  []byte
		hushed bool
		want   string
	}{
		{0, lease, false, "two"},
		{time.Second, nil, false, "two"},
		{59 * time.Second, nil, false, "two"},
		{60 * time.Second, lease, false, "two"}, // It could be renewed after all.
		{70 * time.Second, nil, false, "two"},
		{110 * time.Second, nil, true, "two"},
		{170 * time.Second, nil, true, "two"}, // Nobody can be heard, and no lane taken.
		{171 * time.Second, nil, false, "two"},
		{230 * time.Second, nil, false, "two"},
		{232 * time.Second, nil, false, "two"}, // A lease's time is over, which counts from the next look on.
		{233 * time.Second, nil, false, ""},
		{234 * time.Second, lease, false, "two"},
		{235 * time.Second, nil, false, "two"},
	} {
		n.hush = hush{}
		if step.hushed {
			n.hush.members = map[string]*clusterv1.Member{}
			n.heart.said = begin.Add(step.after)
		}
		if got := at(step.after, step.lease); got != step.want {
			t.Errorf("after %v, with a lease %t, hushed %t: the lane is left to %q, want %q", step.after, step.lease != nil, step.hushed, got, step.want)
		}
	}
}

// A lane stops by itself when it looks at its lease and finds it over. A renewal that was on its way then made the lease good again, and
// nobody started the lane.
func TestALeaseThatWasFoundOverIsNotGoodAgain(t *testing.T) {
	c := newCluster(t, 1, time.Minute) // Nothing here waits for a lease to end.
	one := c.join("one")
	c.eventually("one serves the lane", func() bool { return c.level(one) }, one)
	one.Node.mu.Lock()
	h := one.holds[0]
	one.Node.mu.Unlock()
	one.mu.Lock()
	held := one.held[0]
	one.mu.Unlock()
	h.mu.Lock()
	c.mu.Lock()
	c.said = nil
	c.mu.Unlock()
	h.until.Store(int64(time.Since(h.node.started)))
	if held() {
		t.Fatal("a lease that is over is held")
	}
	err := h.write(t.Context(), h.value)
	h.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	one.look()
	c.eventually("the lane is started again", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.said) > 0 && c.said[len(c.said)-1] == "one starts 0"
	}, one)
}

func TestANodeSaysWhatIsMissingUntilItIsSettled(t *testing.T) {
	c := newCluster(t, 2, time.Minute)
	two := &fakeNode{c: c, id: "two", held: map[uint32]func() bool{}, park: map[uint32]bool{}}
	n, err := New(c.connect(), Options{NodeID: "two", Topology: eventstore.Topology{Lanes: 2}, Lanes: two, LeaseTTL: c.ttl, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		if got := n.Unsettled(); got != want {
			t.Errorf("it says %q, want %q", got, want)
		}
	}
	started, now := timestamppb.New(n.started), time.Now()
	member, memberErr := proto.Marshal(&clusterv1.Member{NodeId: "two", StartTime: started, Warm: true})
	lease, leaseErr := proto.Marshal(&clusterv1.Lease{NodeId: "two", ProcessStartTime: started})
	if err := errors.Join(memberErr, leaseErr); err != nil {
		t.Fatal(err)
	}
	says("bucket WEIR-NODES: it could not be read yet")
	n.members.loaded, n.leases.loaded = true, true
	says("bucket WEIR-PLACEMENT: it could not be read yet")
	n.placement.loaded = true
	says("bucket WEIR-NODES: the node could not say there yet that it is there")
	n.joined = true
	says("lane 0: no node has it, and none may")
	n.members.rows["two"] = row{value: member, revision: 1, seen: now}
	says("lane 0: no node has it, and node two is to take it")
	for lane := range uint32(2) {
		n.leases.rows[leaseKey(lane)] = row{value: lease, revision: 1, seen: now}
	}
	says("lane 0: its lease is this node's and not claimed yet")
	n.holds[0], n.holds[1] = &hold{}, &hold{}
	two.held[0] = func() bool { return true }
	says("lane 1: this node has it and is opening it, with its state at commit 0 of 0")
	two.held[1] = two.held[0]
	says("")
}
