package main

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// A node that follows nothing keeps no views (--follow none): what would be asked of them here is asked of a node that keeps some, or
// is answered with which nodes those are.

// followingMin is how many nodes of several are to keep views, so that one may fail.
const followingMin = 2

// checkFollowing is the number of the doctor's check of that. It stays the same in every version.
const checkFollowing = 40

// following returns the other nodes that keep views.
func (n *node) following() (members []*clusterv1.Member) {
	for _, member := range n.sharing.Members() {
		if member.NodeId != n.sharing.ID() && !member.FollowsNothing && len(member.Addresses) > 0 {
			members = append(members, member)
		}
	}
	return members
}

// viewsAt returns the base URLs of the nodes that keep views, those first that are not about to leave and whose views are near the log's
// head, in a random order, then the others by how far they are behind.
func (n *node) viewsAt() []string {
	members := n.following()
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return addressesByViews(members)
}

// addressesByViews sorts nodes by how good their views are, and returns their addresses; equals stay in their order.
func addressesByViews(members []*clusterv1.Member) []string {
	behind := func(m *clusterv1.Member) uint64 { // What is on its way makes no difference.
		return m.ViewsLagCommits - min(m.ViewsLagCommits, eventstore.TailCommitsMax)
	}
	slices.SortStableFunc(members, func(a, b *clusterv1.Member) int {
		if a.Draining != b.Draining {
			if a.Draining {
				return 1
			}
			return -1
		}
		return cmp.Compare(behind(a), behind(b))
	})
	addresses := make([]string, len(members))
	for i, member := range members {
		addresses[i] = strings.TrimSuffix(member.Addresses[0], "/")
	}
	return addresses
}

// examineFollowing says how many nodes keep views; nothing where all do.
func (n *node) examineFollowing() []eventstore.Finding {
	members := n.sharing.Members()
	following := len(slices.DeleteFunc(slices.Clone(members), func(m *clusterv1.Member) bool { return m.FollowsNothing }))
	if following == len(members) {
		return nil
	}
	finding := eventstore.Finding{
		Number: checkFollowing, Check: "nodes that keep views", State: eventstore.FindingGood, Found: fmt.Sprintf("%d of %d", following, len(members)),
	}
	if following < followingMin {
		finding.State = eventstore.FindingBad
		finding.Do = "start another node with --follow all: while no node keeps views, every read is refused"
	}
	return []eventstore.Finding{finding}
}

// laneOrders reads orders from the state of the lanes, of a node without views. It implements paying.Orders.
type laneOrders struct{ lanes *lanes.Set }

// Order implements paying.Orders.
func (o laneOrders) Order(ctx context.Context, id domain.OrderID, min projections.Min) (projections.OrderView, projections.Freshness, error) {
	ctx, cancel := context.WithTimeout(ctx, min.Wait)
	defer cancel()
	order, commit, err := o.lanes.Order(ctx, id, min.Commit)
	return projections.OrderView{Order: order, Revision: projections.Revision{Lane: min.Lane, Commit: commit}}, projections.Freshness{}, err
}

// viewsElsewhere answers what is asked of a node's views where there are none. It implements viewSource and rebuildSource.
type viewsElsewhere struct{ n *node }

// none says that there are no views, and where some are.
func (v viewsElsewhere) none() error {
	members := v.n.following()
	if len(members) == 0 {
		return fmt.Errorf("node %s keeps no views (--follow none), and no other node keeps any; start one with --follow all", v.n.sharing.ID())
	}
	var where []string
	for _, member := range members {
		where = append(where, fmt.Sprintf("%s (%s)", member.NodeId, strings.Join(member.Addresses, " ")))
	}
	return fmt.Errorf("node %s keeps no views (--follow none); these do, ask there: %s", v.n.sharing.ID(), strings.Join(where, ", "))
}

// Status implements viewSource.
func (v viewsElsewhere) Status(context.Context) ([]viewLane, error) { return nil, v.none() }

// Verify implements viewSource.
func (v viewsElsewhere) Verify(context.Context, int, func(done, total int64)) ([]difference, error) {
	return nil, v.none()
}

// VerifyRedis implements viewSource.
func (v viewsElsewhere) VerifyRedis(context.Context, int) (*redisComparison, error) {
	return nil, v.none()
}

// Parked implements viewSource.
func (v viewsElsewhere) Parked(context.Context) ([]parkedKey, error) { return nil, v.none() }

// Replay implements viewSource.
func (v viewsElsewhere) Replay(context.Context, string, string, bool) ([]replayedKey, error) {
	return nil, v.none()
}

// Generations implements rebuildSource.
func (v viewsElsewhere) Generations(context.Context) ([]viewGenerations, error) { return nil, v.none() }

// Rebuilds implements rebuildSource.
func (v viewsElsewhere) Rebuilds(context.Context) ([]viewRebuild, error) { return nil, v.none() }

// Compare implements rebuildSource.
func (v viewsElsewhere) Compare(context.Context, string) (viewComparison, error) {
	return viewComparison{}, v.none()
}

// Act implements rebuildSource.
func (v viewsElsewhere) Act(context.Context, string, string, url.Values) error { return v.none() }

// Work implements rebuildSource.
func (v viewsElsewhere) Work(context.Context) error { return v.none() }

// Sweep implements rebuildSource.
func (v viewsElsewhere) Sweep() error { return v.none() }
