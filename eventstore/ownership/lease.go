package ownership

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// A hold is a lease that this process has.
type hold struct {
	node *Node
	lane uint32

	// mu is held while the lease is being written, and while it is on offer.
	mu       sync.Mutex
	value    []byte
	revision uint64

	// until is when the lease may be used no longer (O2), in nanoseconds since the node's process began, by the monotonic clock.
	until atomic.Int64
	over  atomic.Bool
}

// valid reports whether the lease is certainly nobody else's. Once it was found over it stays so, even if a renewal that was on its way still
// succeeds: whoever found that has stopped the lane, and only a lease that is taken anew starts it again.
func (h *hold) valid() bool {
	if h.over.Load() {
		return false
	}
	if int64(time.Since(h.node.started)) < h.until.Load() {
		return true
	}
	h.end()
	return false
}

// end gives the lease up.
func (h *hold) end() { h.over.Store(true) }

// write writes a value under the lease's key, on condition that it is at the hold's revision, and counts its time anew from before
// it was sent.
func (h *hold) write(ctx context.Context, value []byte) error {
	sent := time.Since(h.node.started)
	revision, err := h.node.leases.write(ctx, leaseKey(h.lane), value, h.revision)
	if err != nil {
		return err
	}
	ttl := h.node.leases.timeToLive()
	h.revision = revision
	h.until.Store(int64(sent + ttl - ttl/leaseMarginShare))
	return nil
}

// renew renews the leases until ctx ends.
func (n *Node) renew(ctx context.Context) {
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tick.Reset(n.beatEvery())
		}
		n.mu.Lock()
		holds := make([]*hold, 0, len(n.holds))
		for _, h := range n.holds {
			holds = append(holds, h)
		}
		n.mu.Unlock()
		var renewing errgroup.Group
		renewing.SetLimit(renewalsMax)
		for _, h := range holds {
			renewing.Go(func() error { return n.renewOne(ctx, h) })
		}
		if renewing.Wait() != nil { // Each lane's ends with its own lease. There is less time left than until the next turn.
			tick.Reset(againRenewMin + rand.N(againRenewMin))
		}
	}
}

// renewOne renews one lease. One that somebody else has is given up; one that could not be renewed is tried again, which the error asks
// for, and ends by its time (see step).
func (n *Node) renewOne(ctx context.Context, h *hold) error {
	writing, cancel := context.WithTimeout(ctx, n.writeMax())
	defer cancel()
	if !h.mu.TryLock() {
		return nil // It is being passed on, which ends with a new revision, or without the lease.
	}
	if !h.valid() {
		// Another node may have had it since, decided and gone: what this one would answer with is of before. It is given up (see step), and
		// taken anew if it is free, which opens the lane again.
		h.mu.Unlock()
		return nil
	}
	err := h.write(writing, h.value)
	if errors.Is(err, errMoved) && h.valid() {
		if r := n.leases.row(leaseKey(h.lane)); decodeLease(r) == nil || n.isOurs(r) {
			// It has ended in the bucket, or an earlier renewal was taken for lost. By time it is still ours, and the bucket decides.
			h.revision = r.revision
			err = h.write(writing, h.value)
		}
	}
	h.mu.Unlock()
	switch {
	case err == nil || ctx.Err() != nil:
	case errors.Is(err, errMoved):
		owner := ""
		if lease := decodeLease(n.leases.row(leaseKey(h.lane))); lease != nil {
			owner = lease.NodeId
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.holds[h.lane] == h && !n.acting[h.lane] {
			n.logger.Warn("a lease is somebody else's: the lane is no longer decided here", "lane", h.lane, "owner", owner)
			n.drop(h, owner)
		}
	default:
		n.logger.Warn("a lease was not renewed", "lane", h.lane, "error", err)
		return err
	}
	return nil
}

// isOurs reports whether a lease is this process's.
func (n *Node) isOurs(r row) bool {
	lease := decodeLease(r)
	return lease != nil && lease.NodeId == n.options.NodeID && lease.ProcessStartTime.AsTime().Equal(n.started)
}

// decodeLease returns the lease that a row has, nil when it has none. One that cannot be read is a newer program's, and its node not
// known.
func decodeLease(r row) *clusterv1.Lease {
	if len(r.value) == 0 {
		return nil
	}
	lease := &clusterv1.Lease{}
	if err := proto.Unmarshal(r.value, lease); err != nil || lease.NodeId == "" {
		return &clusterv1.Lease{NodeId: "?"}
	}
	return lease
}
