package api_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/eventstore/ownership"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	"github.com/weirhq/weir/proto/weir/cluster/v1/clusterv1connect"
)

// A fakeCluster notes an operator's wishes and answers each with err. It implements api.Cluster.
type fakeCluster struct {
	mu     sync.Mutex
	wishes []string
	err    error
}

func (c *fakeCluster) note(format string, args ...any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wishes = append(c.wishes, fmt.Sprintf(format, args...))
	return c.err
}

func (c *fakeCluster) Cluster(context.Context) *clusterv1.GetClusterResponse {
	return &clusterv1.GetClusterResponse{AnsweredBy: "east-1"}
}

func (c *fakeCluster) Move(_ context.Context, lane uint32, node string) (string, error) {
	return "east-1", c.note("move %d to %q", lane, node)
}

func (c *fakeCluster) DrainNode(_ context.Context, node string) ([]uint32, error) {
	return []uint32{0, 2}, c.note("drain %s", node)
}

// noNodes answers every wish with ownership.ErrNoNode.
func noNodes() *fakeCluster { return &fakeCluster{err: ownership.ErrNoNode} }

func (c *fakeCluster) UndrainNode(_ context.Context, node string) error {
	return c.note("undrain %s", node)
}

// clusterClient returns a client of the cluster's service.
func (n *node) clusterClient(subject string, scopes identity.Scopes, options ...connect.ClientOption) clusterv1connect.ClusterServiceClient {
	n.t.Helper()
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &protocols}
	n.t.Cleanup(transport.CloseIdleConnections)
	return clusterv1connect.NewClusterServiceClient(&http.Client{Transport: bearer{transport, n.token(subject, scopes)}}, n.url, options...)
}

func TestAnOperatorSeesTheClusterAndSaysWhereLanesAre(t *testing.T) {
	fake := &fakeCluster{}
	n := serve(t, func(o *api.Options) { o.Cluster = fake })
	for name, options := range transports {
		t.Run(name, func(t *testing.T) {
			boss := n.clusterClient("boss", identity.ScopeOperator, options...)
			if seen := must(boss.GetCluster(t.Context(), &clusterv1.GetClusterRequest{}))(t); seen.AnsweredBy != "east-1" {
				t.Errorf("got %v", seen)
			}
			fake.wishes = nil
			if moved := must(boss.MoveLane(t.Context(), &clusterv1.MoveLaneRequest{Lane: 3, NodeId: "east-2"}))(t); moved.NodeId != "east-1" {
				t.Errorf("got %v, want who has the lane now", moved)
			}
			must(boss.MoveLane(t.Context(), &clusterv1.MoveLaneRequest{Lane: 3}))(t)
			if drained := must(boss.DrainNode(t.Context(), &clusterv1.DrainNodeRequest{NodeId: "east-1"}))(t); len(drained.Lanes) != 2 {
				t.Errorf("got %v, want the lanes that it still has", drained)
			}
			must(boss.UndrainNode(t.Context(), &clusterv1.UndrainNodeRequest{NodeId: "east-1"}))(t)
			if got, want := strings.Join(fake.wishes, ", "), `move 3 to "east-2", move 3 to "", drain east-1, undrain east-1`; got != want {
				t.Errorf("the cluster was told %s, want %s", got, want)
			}
		})
	}
}

func TestAWishThatIsNoneHasItsReason(t *testing.T) {
	fake := &fakeCluster{}
	n := serve(t, func(o *api.Options) { o.Cluster = fake })
	boss := n.clusterClient("boss", identity.ScopeOperator)
	move := func() error {
		_, err := boss.MoveLane(t.Context(), &clusterv1.MoveLaneRequest{Lane: 3, NodeId: "east-2"})
		return err
	}
	drain := func() error {
		_, err := boss.DrainNode(t.Context(), &clusterv1.DrainNodeRequest{NodeId: "east-2"})
		return err
	}
	for _, test := range []struct {
		err    error
		call   func() error
		code   connect.Code
		reason api.Reason
		fact   string
	}{
		{ownership.ErrNoNode, move, connect.CodeNotFound, api.ReasonNodeNotFound, "node_id"},
		{ownership.ErrNoLane, move, connect.CodeNotFound, api.ReasonLaneNotFound, "lane"},
		{ownership.ErrNodeDrained, move, connect.CodeFailedPrecondition, api.ReasonNodeDrained, "node_id"},
		{ownership.ErrNoNode, drain, connect.CodeNotFound, api.ReasonNodeNotFound, "node_id"},
		{ownership.ErrLastNode, drain, connect.CodeFailedPrecondition, api.ReasonLastNode, "node_id"},
	} {
		fake.err = fmt.Errorf("a wish: %w", test.err)
		if info := wantError(t, test.err.Error(), test.call(), test.code, test.reason); info != nil && info.Metadata[test.fact] == "" {
			t.Errorf("%v: the facts are %v, want %s among them", test.err, info.Metadata, test.fact)
		}
	}
}
