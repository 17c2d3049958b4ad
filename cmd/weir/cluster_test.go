package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/eventstore/embedded"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	"github.com/weirhq/weir/proto/weir/cluster/v1/clusterv1connect"
)

// A clusterShop answers as a cluster of three nodes.
type clusterShop struct {
	clusterv1connect.UnimplementedClusterServiceHandler
	*shop
}

func (c clusterShop) GetCluster(_ context.Context, request *clusterv1.GetClusterRequest) (*clusterv1.GetClusterResponse, error) {
	if err := c.ask(request); err != nil {
		return nil, err
	}
	node := func(id string, change func(*clusterv1.Node)) *clusterv1.Node {
		n := &clusterv1.Node{Member: &clusterv1.Member{
			NodeId: id, Name: id + "/4711", Addresses: []string{"http://10.0.0.4:8080"}, Version: "v1.2.3", Protocol: 1, Warm: true, CpuMilli: 1234, CallsInFlight: 17,
		}}
		change(n)
		return n
	}
	return &clusterv1.GetClusterResponse{
		AnsweredBy: "east-1",
		Nodes: []*clusterv1.Node{
			node("east-1", func(n *clusterv1.Node) {
				n.Member.Lanes = []*clusterv1.OwnedLane{{Lane: 0, Epoch: 7, Commit: 1200, Queued: 3}}
			}),
			node("east-2", func(n *clusterv1.Node) { n.Member.Warm, n.Member.ViewsLagCommits = false, 123_456 }),
			node("west-1", func(n *clusterv1.Node) { n.Drained, n.Member.FollowsNothing = true, true }),
		},
		Lanes: []*clusterv1.Lane{
			{Lane: 0, NodeId: "east-1", MovedToNodeId: "east-1", Epoch: 7, Head: 1200, Queued: 3, Replicas: 3, ReplicasCurrent: 3, StreamLeader: "nats-1"},
			{Lane: 1, Head: 980, LagCommits: 2, Replicas: 3, ReplicasCurrent: 2, StreamLeader: "nats-2"},
			{Lane: 2, NodeId: "east-1", StreamFault: "look at stream ORDERS-02: no answer came"},
		},
		AbsentDrainedNodeIds: []string{"west-2"},
	}, nil
}

func (c clusterShop) MoveLane(_ context.Context, request *clusterv1.MoveLaneRequest) (*clusterv1.MoveLaneResponse, error) {
	return &clusterv1.MoveLaneResponse{NodeId: "east-1"}, c.ask(request)
}

func (c clusterShop) DrainNode(_ context.Context, request *clusterv1.DrainNodeRequest) (*clusterv1.DrainNodeResponse, error) {
	return &clusterv1.DrainNodeResponse{Lanes: []uint32{0, 2}}, c.ask(request)
}

func (c clusterShop) UndrainNode(_ context.Context, request *clusterv1.UndrainNodeRequest) (*clusterv1.UndrainNodeResponse, error) {
	return &clusterv1.UndrainNodeResponse{}, c.ask(request)
}

func TestTheClusterIsPrinted(t *testing.T) {
	s := newShop(t)
	env := []string{"WEIR_ADDR=" + s.url, "WEIR_TOKEN=t"}
	golden(t, "output/cluster_status.table", weir(t, env, "cluster", "status").want(t, exitOK).stdout)
	golden(t, "output/cluster_status.json", weir(t, env, "cluster", "status", "-o", "json").want(t, exitOK).stdout)
	for _, c := range []struct{ args, want string }{
		{"lanes move 3 east-2", "Lane 3 is to be with east-2; east-1 has it now\n"},
		{"lanes move 3 --anywhere", "Lane 3 is to be wherever it would be by itself; east-1 has it now\n"},
		{"cluster drain east-1", "Node east-1 is drained; it has 2 lanes to hand over\n"},
		{"cluster undrain east-1", "Node east-1 may have lanes\n"},
	} {
		if got := weir(t, env, strings.Fields(c.args)...).want(t, exitOK).stdout; got != c.want {
			t.Errorf("weir %s: got %q, want %q", c.args, got, c.want)
		}
	}
	for _, args := range []string{"lanes move", "lanes move 3", "lanes move 3 east-1 --anywhere", "lanes move three east-1", "cluster drain", "lanes move 1 a b"} {
		weir(t, env, strings.Fields(args)...).want(t, exitUsage)
	}
	s.fail = connect.NewError(connect.CodeUnavailable, context.DeadlineExceeded)
	weir(t, env, "cluster", "status").want(t, exitUnavailable)
}

// A pair is two nodes that share a log.
type pair struct {
	t      *testing.T
	server *embedded.Server
	dirs   [2]string
	nodes  [2]*devNode
}

// newPair has a server and no node yet.
func newPair(t *testing.T) *pair {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	return &pair{t: t, server: server, dirs: [2]string{t.TempDir(), t.TempDir()}}
}

func startPair(t *testing.T, lanes int) *pair {
	t.Helper()
	p := newPair(t)
	p.start(0, "--lanes", fmt.Sprint(lanes))
	p.shareKeys()
	p.start(1)
	return p
}

// shareKeys gives the second node the keys that the first one made.
func (p *pair) shareKeys() {
	p.t.Helper()
	for _, file := range []string{identity.SigningKeyFile, "master.key"} {
		key, err := os.ReadFile(filepath.Join(p.dirs[0], file))
		if err == nil {
			err = os.WriteFile(filepath.Join(p.dirs[1], file), key, 0o600)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *pair) start(node int, args ...string) {
	p.t.Helper()
	p.nodes[node] = startNode(p.t, append([]string{
		"serve", "--nats", p.server.ClientURL(), "--data", p.dirs[node], "--listen", "127.0.0.1:0", "-o", "json", "--log-level", "info",
		"--nats-monitor", p.server.MonitorURL(), "--node-id", fmt.Sprint("node-", node),
		"--stock-wait", "10s", // What these tests ask is not how soon units move on a busy machine.
	}, args...)...)
}

// env is the environment of commands against a node.
func (p *pair) env(node int, user, scope string) []string {
	p.t.Helper()
	return p.nodes[node].env(strings.TrimSpace(live(p.t, nil, "token", "--data", p.dirs[0], "--user", user, "--scope", scope).want(p.t, exitOK).stdout))
}

// lanes returns the lanes of each node, as a node sees it.
func (p *pair) lanes(asked int) map[string][]uint32 {
	p.t.Helper()
	lanes := map[string][]uint32{}
	for lane, node := range laneOwners(p.t, p.env(asked, "op", "operator")) {
		lanes[node] = append(lanes[node], uint32(lane))
	}
	return lanes
}

// laneOwners returns the node of each lane, "" where none has it, as the node sees it that env names.
func laneOwners(t *testing.T, env []string) (owners []string) {
	t.Helper()
	status := decode[struct {
		Lanes []struct {
			NodeID string `json:"nodeId"`
		} `json:"lanes"`
	}](t, live(t, env, "cluster", "status", "-o", "json").want(t, exitOK).stdout)
	for _, lane := range status.Lanes {
		owners = append(owners, lane.NodeID)
	}
	return owners
}

// eventually polls what other processes bring about.
func (p *pair) eventually(what string, holds func() bool) {
	p.t.Helper()
	eventually(p.t, what, holds, func() string { return fmt.Sprint("lanes: ", p.lanes(1)) })
}

// eventually polls what others bring about, and fails with what detail says.
func eventually(t *testing.T, what string, holds func() bool, detail func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for !holds() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("never happened: %s; %s", what, detail())
		}
	}
}

func TestTwoNodesOfALogShareItsLanesAndAnyOfThemAnswers(t *testing.T) {
	p := startPair(t, 4)
	p.eventually("both have their share", func() bool {
		lanes := p.lanes(1)
		return len(lanes["node-0"]) == 2 && len(lanes["node-1"]) == 2
	})
	op := p.env(0, "op", "operator")
	live(t, op, "product", "put", "--sku", "tea", "--title", "Sencha", "--price", "12.90 EUR").want(t, exitOK)
	live(t, op, "stock", "receive", "--sku", "tea", "--quantity", "500").want(t, exitOK)
	p.eventually("the other node knows the product", func() bool {
		return live(t, p.env(1, "ann", ""), "order", "place", "tea", "--request-id", "first").code == exitOK
	})
	var orders []placed
	shop := func(nodes ...int) {
		t.Helper()
		for i := range 12 { // Users of all lanes.
			user := fmt.Sprintf("user-%d-%d", len(orders), i)
			order := place(t, p.env(nodes[i%len(nodes)], user, ""), "tea")
			// The other nodes show it as of its revision, and answer the same request the same.
			for _, node := range nodes {
				wantText(t, live(t, p.env(node, user, ""), "order", "get", order.Order.OrderID, "--min-revision", order.revision(), "--wait", "10s").want(t, exitOK).stdout, "pending-payment")
				if again := place(t, p.env(node, user, ""), "tea", "--request-id", order.RequestID); again.Order.OrderID != order.Order.OrderID {
					t.Fatalf("node %d answers the request of order %s with %s (I4)", node, order.Order.OrderID, again.Order.OrderID)
				}
			}
			orders = append(orders, order)
		}
	}
	shop(0, 1)

	lane := p.lanes(0)["node-0"][0]
	live(t, op, "lanes", "move", fmt.Sprint(lane), "node-1").want(t, exitOK)
	p.eventually("the lane has moved", func() bool { return slices.Contains(p.lanes(0)["node-1"], lane) })
	live(t, op, "lanes", "move", fmt.Sprint(lane), "--anywhere").want(t, exitOK)
	live(t, op, "cluster", "drain", "node-1").want(t, exitOK)
	p.eventually("node-0 has all", func() bool { return len(p.lanes(0)["node-0"]) == 4 })
	wantText(t, live(t, op, "lanes", "move", "0", "node-1").want(t, exitRefused).stderr, "NODE_DRAINED")
	wantText(t, live(t, op, "cluster", "drain", "node-0").want(t, exitRefused).stderr, "LAST_NODE")
	shop(1)
	live(t, op, "cluster", "undrain", "node-1").want(t, exitOK)
	p.eventually("both share again", func() bool { return len(p.lanes(0)["node-1"]) == 2 })

	p.nodes[0].stop().want(t, exitOK)
	if got := p.lanes(1); len(got["node-1"]) != 4 {
		t.Fatalf("after a node was stopped the lanes are %v, want all with the other: it hands them over before it stops", got)
	}
	shop(1)
	p.start(0)
	p.eventually("both share again", func() bool { return len(p.lanes(0)["node-0"]) == 2 })
	shop(1, 0)
	live(t, p.env(0, "op", "operator"), "log", "verify").want(t, exitOK)
	live(t, p.env(1, "op", "operator"), "audit", "stock").want(t, exitOK)
}

func TestADirectoryKeepsItsNodesID(t *testing.T) {
	dir := t.TempDir()
	startDev(t, dir, "--node-id", "east-1").stop().want(t, exitOK)
	if id, err := os.ReadFile(filepath.Join(dir, nodeIDFile)); err != nil || string(id) != "east-1\n" {
		t.Fatalf("node.id has %q, %v", id, err)
	}
	r := live(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0", "--node-id", "west-1").want(t, exitUsage)
	wantText(t, r.stderr, "east-1", "leave --node-id out")
	for _, args := range []string{"--node-id a.b", "--lease-ttl 1ms", "--advertise nonsense"} {
		live(t, nil, append([]string{"dev", "--data", t.TempDir()}, strings.Fields(args)...)...).want(t, exitUsage)
	}
	if first, second := newNodeID(), newNodeID(); first == second {
		t.Errorf("two nodes get the id %s", first)
	}
}
