package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/courier"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/ownership"
	"github.com/weirhq/weir/gateway"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

const (
	// nodeIDFile of the data directory has the node's id, so that it stays over restarts.
	nodeIDFile = "node.id"
	// nodeIDRandomBytes of an id that is made tell apart nodes of hosts with the same name.
	nodeIDRandomBytes = 4
	// hostNameMax is how much of the host's name goes into an id.
	hostNameMax = 40
	// nodeProtocol is the newest version of the messages between nodes that this program understands.
	nodeProtocol = 1
	// drainMax bounds how long a stopping node takes to hand its lanes over.
	drainMax = 15 * time.Second
	// waitLook is how often is looked whether the node waits for something, waitLineEvery how often it says for what, and waitWarnAfter when
	// that becomes a warning.
	waitLook      = time.Second
	waitLineEvery = 5 * time.Second
	waitWarnAfter = 15 * time.Second
)

// sharingOptions say how a node takes part in the sharing of lanes.
type sharingOptions struct {
	// nodeID is empty for the one in the data directory.
	nodeID string
	// leaseTTL of a new log's leases.
	leaseTTL time.Duration
	// advertise is the URL at which other nodes and gateways reach the node's API; empty means where it listens.
	advertise string
	// follow says which lanes the node keeps views of: followAll or followNone; empty means all.
	follow string
}

// What a node follows for its views.
const (
	followAll  = "all"
	followNone = "none"
)

// addFollow puts --follow on a command whose node is one of several.
func (o *sharingOptions) addFollow(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.follow, "follow", followAll, "lanes that the node keeps views of, `all|none`; with none its reads are answered by nodes that keep all")
	setting(cmd.Flags(), "follow")
}

// keepsViews reports whether the node keeps views.
func (o *sharingOptions) keepsViews() bool { return o.follow != followNone }

func (o *sharingOptions) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.nodeID, "node-id", "", "`ID` of the node, another one for each: 1 to 64 of A-Z a-z 0-9 _ - (made at the first start, and kept in the data directory)")
	flags.DurationVar(&o.leaseTTL, "lease-ttl", ownership.LeaseTTLDefault, "how long the lease of a lane lasts that its node does not renew; a log keeps what it was made with")
	flags.StringVar(&o.advertise, "advertise", "", "`URL` at which other nodes and gateways reach this node's API (where it listens)")
	setting(flags, "node-id", "lease-ttl", "advertise")
}

// finish checks the flags.
func (o *sharingOptions) finish() error {
	if o.nodeID != "" && !eventstore.ValidNodeID(o.nodeID) {
		return usagef("--node-id %q is not 1 to 64 characters of A-Z a-z 0-9 _ -", o.nodeID)
	}
	if o.follow != "" && o.follow != followAll && o.follow != followNone {
		return usagef("--follow must be all or none, not %q", o.follow)
	}
	if o.leaseTTL < ownership.LeaseTTLMin {
		return usagef("--lease-ttl must be at least %s, not %s", ownership.LeaseTTLMin, o.leaseTTL)
	}
	if o.advertise == "" {
		return nil
	}
	address, err := url.Parse(o.advertise)
	if err != nil || (address.Scheme != "http" && address.Scheme != "https") || address.Host == "" {
		return usagef("--advertise %q is not a URL", o.advertise).then("give it as http://HOST:PORT")
	}
	return nil
}

// openNodeID reads the node's id, and writes it down at the first start.
func (n *node) openNodeID() error {
	file := filepath.Join(string(n.options.data), nodeIDFile)
	text, err := os.ReadFile(file)
	switch known := strings.TrimSpace(string(text)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return n.options.data.explain(err)
	case !eventstore.ValidNodeID(known):
		return &problem{code: exitData, what: fmt.Sprintf("%s does not hold a node's id", file), next: "write the id into it that the node had, or remove the file"}
	case n.options.sharing.nodeID != "" && n.options.sharing.nodeID != known:
		return usagef("--node-id %s: data directory %s is that of node %s", n.options.sharing.nodeID, n.options.data, known).
			then("leave --node-id out, choose another directory with --data, or remove %s to give the node another name", file)
	default:
		n.options.sharing.nodeID = known
		return nil
	}
	if n.options.sharing.nodeID == "" {
		n.options.sharing.nodeID = newNodeID()
	}
	return n.options.data.explain(n.options.data.writeDurably(nodeIDFile, []byte(n.options.sharing.nodeID+"\n")))
}

// newNodeID makes an id of the host's name and something random.
func newNodeID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "node"
	}
	host, _, _ = strings.Cut(host, ".")
	host = strings.Map(func(r rune) rune {
		if eventstore.ValidNodeID(string(r)) {
			return r
		}
		return '-'
	}, host)
	host = host[:min(len(host), hostNameMax)]
	random := make([]byte, nodeIDRandomBytes)
	_, _ = rand.Read(random) // It never fails.
	return fmt.Sprintf("%s-%x", host, random)
}

// openSharing makes what shares the lanes with other nodes. Nothing runs yet.
func (n *node) openSharing(context.Context) (err error) {
	n.sharing, err = ownership.New(n.log.nc, ownership.Options{
		NodeID: n.options.sharing.nodeID, Topology: n.log.topology, Lanes: n.lanes, LeaseTTL: n.options.sharing.leaseTTL,
		Replicas: n.log.replicas, Describe: n.describe, Logger: n.logger,
	})
	return err
}

// openCourier makes what carries commands to the nodes that decide their lanes. Nothing runs yet.
func (n *node) openCourier() (err error) {
	n.courier, err = courier.New(courier.Options{
		Post: eventstore.NewPost(n.log.nc, eventstore.PostOptions{}), Topology: n.log.topology, Logger: n.logger,
		NodeID: n.options.sharing.nodeID, OwnerOf: func(lane uint32) string { return n.lanes.OwnerOf(lane) },
		Principal: func(ctx context.Context) string {
			if caller := identity.FromContext(ctx); caller != nil {
				return caller.Subject
			}
			return ""
		},
	})
	return err
}

// onOwnership is told of lanes that begin to be served here, and of those that no longer will be.
func (n *node) onOwnership(lane uint32, owned bool) {
	n.courier.Own(lane, owned)
	n.reactors.Own(lane, owned)
	n.cashier.Own(lane, owned)
	if !owned {
		n.webhooks.Leave(lane)
	}
}

// describe says of the node what others want to know.
func (n *node) describe(member *clusterv1.Member) {
	member.Name = n.options.owner
	member.Addresses = []string{n.advertised()}
	member.Version = moduleVersion()
	member.Protocol = nodeProtocol
	member.ViewsLagCommits = n.viewsLagMost()
	member.CallsInFlight = uint32(max(0, n.calls.Load()))
	member.CpuMilli = n.cpu.milli()
	member.FollowsNothing = !n.options.sharing.keepsViews()
}

// advertised is the URL at which others reach the API.
func (n *node) advertised() string {
	if given := n.options.sharing.advertise; given != "" {
		return strings.TrimSuffix(given, "/")
	}
	tcp, ok := n.listener.Addr().(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return baseURL(n.listener.Addr())
	}
	host, err := os.Hostname()
	if err != nil {
		return baseURL(n.listener.Addr())
	}
	return fmt.Sprintf("http://%s", net.JoinHostPort(host, fmt.Sprint(tcp.Port)))
}

// inGroups is the value of gateway.HeaderGroups, shared by all answers: nobody changes it.
var inGroups = []string{"1"}

// counted counts the calls that came, and those under way, and tells gateways that this node's lanes commit in groups.
func (n *node) counted(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.asked.Add(1)
		n.calls.Add(1)
		defer n.calls.Add(-1)
		w.Header()[gateway.HeaderGroups] = inGroups
		handler.ServeHTTP(w, r)
	})
}

// waitsFor says, for people, what the node waits for until it takes calls, "" when it takes them: it is among the others and not about to
// leave, every lane has had a node since it came, and the lanes that it has are open, or, while it has none, its views are near the head
// and another node has them.
func (n *node) waitsFor() string {
	if n.leaving.Load() {
		return "its end: it is leaving"
	}
	if what := n.unsettled(); what != "" {
		return what
	}
	owned := false
	for lane := range n.log.topology.Lanes {
		if !n.lanes.Owned(lane) {
			continue
		}
		owned = true
		if status := n.lanes.Status(lane); !status.Serving {
			return fmt.Sprintf("lane %d: this node has it and is opening it, with its state at commit %d of %d", lane, status.Commit, status.Head)
		}
	}
	switch {
	case owned:
		return ""
	case len(n.sharing.Members()) < 2:
		return "lanes, or another node: it has none, and knows of no other that has"
	case n.viewsLag(eventstore.TailCommitsMax):
		return fmt.Sprintf("its views: they are %d commits behind", n.viewsLagMost())
	}
	return ""
}

// unsettled says what is missing until every lane has a node, and those that this one has are served, "" once that was so.
func (n *node) unsettled() string {
	if n.settled.Load() {
		return ""
	}
	what := n.sharing.Unsettled()
	if what == "" {
		n.settled.Store(true)
	}
	return what
}

// settle waits until every lane has a node, and those that this one has are served. It reports false when ctx ends before.
func (n *node) settle(ctx context.Context) bool {
	tick := time.NewTicker(servingPoll)
	defer tick.Stop()
	for n.unsettled() != "" {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// sayWaiting says in the log what the node waits for, again and again while it does not take calls, and that it takes them once it does
// after that, until ctx ends. A wait that begins when it is looked for, once a waitLook, counts from then.
func sayWaiting(ctx context.Context, logger *slog.Logger, waitsFor func() string) {
	tick := time.NewTicker(waitLook)
	defer tick.Stop()
	var since, said time.Time // zero while it waits for nothing, and before that was said
	for {
		now, what := time.Now(), waitsFor()
		switch {
		case what == "":
			if !said.IsZero() {
				logger.Info("the node waits no longer", "after", now.Sub(since).Round(waitLook))
			}
			since, said = time.Time{}, time.Time{}
		case since.IsZero():
			since = now
		case now.Sub(since) >= waitLineEvery && now.Sub(said) >= waitLineEvery:
			said = now
			say := logger.Info
			if now.Sub(since) >= waitWarnAfter {
				say = logger.Warn
			}
			say("the node takes no calls yet", "waits_for", what, "since", now.Sub(since).Round(waitLook))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// drain hands the lanes over to other nodes, if there are any. What is not handed over is stopped, and free for whoever comes.
func (n *node) drain(ctx context.Context) {
	n.leaving.Store(true)
	ctx, cancel := context.WithTimeout(ctx, drainMax)
	defer cancel()
	if err := n.sharing.Drain(ctx); err != nil {
		n.logger.Warn("not every lane could be handed over; those that are left wait for the next node to take them", "error", err)
	}
}

// viewsLagMost returns how many commits a view is behind, the most of any lane. One that has stopped does not count.
func (n *node) viewsLagMost() (commits uint64) {
	for _, runner := range n.runners {
		for _, status := range runner.Status() {
			if !status.Stopped {
				commits = max(commits, status.LagCommits)
			}
		}
	}
	return commits
}

// followed returns the newest commit of a lane that reads would show here, or, of a node without views, that its state holds.
func (n *node) followed(lane uint32) uint64 {
	if n.runners == nil {
		return n.lanes.Status(lane).Commit
	}
	return n.runners[lane].Position().Number
}

// sharedLanes is the cluster as this node sees it. It implements api.Cluster.
type sharedLanes struct{ n *node }

// clusterLookMax bounds how long all of the lanes' streams are looked at.
const clusterLookMax = 3 * time.Second

// Cluster implements api.Cluster.
func (s sharedLanes) Cluster(ctx context.Context) *clusterv1.GetClusterResponse {
	n := s.n
	answer := &clusterv1.GetClusterResponse{AnsweredBy: n.sharing.ID()}
	said := map[uint32]*clusterv1.OwnedLane{}
	there := map[string]bool{}
	for _, member := range n.sharing.Members() {
		there[member.NodeId] = true
		answer.Nodes = append(answer.Nodes, &clusterv1.Node{Member: member, Drained: n.sharing.Drained(member.NodeId)})
		for _, lane := range member.Lanes {
			if known := said[lane.Lane]; known == nil || known.Epoch < lane.Epoch {
				said[lane.Lane] = lane
			}
		}
	}
	for _, node := range n.sharing.DrainedNodes() {
		if !there[node] {
			answer.AbsentDrainedNodeIds = append(answer.AbsentDrainedNodeIds, node)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, clusterLookMax)
	defer cancel()
	for lane, placed := range n.sharing.Placement() {
		line := &clusterv1.Lane{Lane: uint32(lane), NodeId: placed.NodeID, MovedToNodeId: placed.MovedTo}
		if owned := said[line.Lane]; owned != nil {
			line.Epoch, line.Queued, line.Head = owned.Epoch, owned.Queued, owned.Commit
		}
		if health, err := n.log.streams.Health(ctx, line.Lane); err != nil {
			line.StreamFault = err.Error()
		} else {
			line.Head, line.StreamLeader = health.Head, health.Leader
			line.Replicas, line.ReplicasCurrent = uint32(health.Replicas), uint32(health.Current)
		}
		line.LagCommits = line.Head - min(line.Head, n.followed(uint32(lane)))
		answer.Lanes = append(answer.Lanes, line)
	}
	return answer
}

// Move implements api.Cluster.
func (s sharedLanes) Move(ctx context.Context, lane uint32, node string) (string, error) {
	if err := s.n.sharing.Move(ctx, lane, node); err != nil {
		return "", err
	}
	s.n.logger.Info("an operator moves a lane", "lane", lane, "to", node)
	return s.n.sharing.OwnerOf(lane), nil
}

// DrainNode implements api.Cluster.
func (s sharedLanes) DrainNode(ctx context.Context, node string) (lanes []uint32, err error) {
	if err := s.n.sharing.DrainNode(ctx, node); err != nil {
		return nil, err
	}
	s.n.logger.Info("an operator drains a node", "node", node)
	for lane, placed := range s.n.sharing.Placement() {
		if placed.NodeID == node {
			lanes = append(lanes, uint32(lane))
		}
	}
	return lanes, nil
}

// UndrainNode implements api.Cluster.
func (s sharedLanes) UndrainNode(ctx context.Context, node string) error {
	s.n.logger.Info("an operator lets a node have lanes again", "node", node)
	return s.n.sharing.UndrainNode(ctx, node)
}
