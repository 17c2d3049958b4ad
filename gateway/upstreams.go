package gateway

import (
	"context"
	"fmt"
	"maps"
	"math/bits"
	"net/http"
	"net/url"
	"slices"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/registry"
)

// upstreams are those that calls may go to, at one time. It is shared, and nobody changes it.
type upstreams struct {
	byID map[string]*upstream
	// told is what the balancer is told of them.
	told []balance.Upstream
	// lanes is how many there are, as far as the nodes told; 0 when none did.
	lanes uint32
}

// all returns them in the order of their ids.
func (u *upstreams) all() []*upstream {
	all := make([]*upstream, 0, len(u.byID))
	for _, id := range slices.Sorted(maps.Keys(u.byID)) {
		all = append(all, u.byID[id])
	}
	return all
}

// fixedUpstreams are those that an operator named, and the node of this process.
func fixedUpstreams(bases []*url.URL, local http.Handler, localID string) (*upstreams, error) {
	u := &upstreams{byID: map[string]*upstream{}}
	add := func(one *upstream) error {
		if u.byID[one.id] != nil {
			return fmt.Errorf("upstream %s is there twice", one.id)
		}
		u.byID[one.id] = one
		u.told = append(u.told, balance.Upstream{ID: one.id})
		return nil
	}
	if local != nil {
		if err := add(newLocalUpstream(localID, local)); err != nil {
			return nil, err
		}
	}
	for _, base := range bases {
		one, err := newUpstream(base.Host, base)
		if err != nil {
			return nil, err
		}
		if err := add(one); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// followRegistry keeps the upstreams as the registry has them, until ctx ends. A node that leaves finishes the calls that it has.
func (g *Gateway) followRegistry(ctx context.Context) error {
	var (
		last  *registry.Snapshot
		shape uint64
	)
	for {
		snapshot, err := g.registry.Next(ctx, last)
		if err != nil {
			return nil //nolint:nilerr // ctx ended.
		}
		last = snapshot
		if shape != 0 && shape == snapshot.Shape {
			continue // Only figures changed, which decide nothing here.
		}
		shape = snapshot.Shape
		if err := g.take(snapshot); err != nil {
			g.logger.Error("the list of nodes is not used: the last one stays", "error", err)
		}
	}
}

// take makes a snapshot of the registry the upstreams that calls go to.
func (g *Gateway) take(snapshot *registry.Snapshot) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	before := g.upstreams.Load()
	after := &upstreams{byID: map[string]*upstream{}, lanes: before.lanes}
	for _, node := range snapshot.Nodes {
		member := node.Member
		base, err := url.Parse(member.GetAddresses()[0])
		if err != nil {
			return fmt.Errorf("node %s: %w", member.GetNodeId(), err)
		}
		one := before.byID[member.GetNodeId()]
		if one == nil || one.scheme != base.Scheme || one.host != base.Host {
			if one, err = newUpstream(member.GetNodeId(), &url.URL{Scheme: base.Scheme, Host: base.Host}); err != nil {
				return fmt.Errorf("node %s: %w", member.GetNodeId(), err)
			}
		}
		after.byID[one.id] = one
		told := balance.Upstream{ID: one.id, Draining: member.GetDraining() || node.Suspect, Started: member.GetStartTime().AsTime()}
		for _, lane := range member.GetLanes() {
			told.Lanes = append(told.Lanes, balance.Lane{Number: lane.GetLane(), Epoch: lane.GetEpoch()})
			// Lanes are a power of two, and the highest is owned by somebody most of the time: so there are as many as it takes to have it.
			if lane.GetLane() < partitions {
				after.lanes = max(after.lanes, 1<<bits.Len32(lane.GetLane()))
			}
		}
		after.told = append(after.told, told)
	}
	rules := g.rules.Load()
	if err := rules.balancer.Set(after.told); err != nil {
		return err
	}
	rules.breakers.Retain(slices.Collect(maps.Keys(after.byID)))
	g.upstreams.Store(after)
	for id, one := range before.byID {
		if after.byID[id] != one {
			one.close()
		}
	}
	return nil
}
