package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	"github.com/weirhq/weir/proto/weir/cluster/v1/clusterv1connect"
)

func (c *client) cluster() (clusterv1connect.ClusterServiceClient, error) {
	base, err := c.base()
	if err != nil {
		return nil, err
	}
	return clusterv1connect.NewClusterServiceClient(c.http(), base, c.options()...), nil
}

func (p *process) clusterCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "cluster",
		Short: "Set up and look after nodes that share a log",
		Long: `Set up and look after the nodes and servers that share one log. The nodes share its lanes: each lane is decided by
one of them and followed by the others. status, drain and undrain ask any node, and need a token with the scope
operator.`,
	})
	for _, asking := range []*cobra.Command{c.clusterStatus(), c.clusterDrain(), c.clusterUndrain()} {
		c.addFlags(asking)
		cmd.AddCommand(asking)
	}
	cmd.AddCommand(p.clusterKeysCommand(), p.clusterUpgradeCommand())
	return cmd
}

func (p *process) lanesCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "lanes",
		Short: "Move lanes between nodes",
		Long: `Move lanes between the nodes of a log. By themselves they are spread so that no node has more than one lane more than
another, and 'weir cluster status' shows where they are. Every command needs a token with the scope operator.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.lanesMove())
	return cmd
}

func (c *client) clusterStatus() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Print the nodes, and where the lanes are",
		Long: `Print the nodes that are there, as each says of itself: its state, how many lanes it decides, how many commits its
views are behind, or that it keeps none ('weir serve --follow none'), the calls under way, its processor time (100% is
one processor), and where its API is reached.

Then the lanes: the node that has each (its lease), the epoch under which it was opened, the newest commit, how far the
views of the node that answers are behind, the copies of its log that are up to date of those that there are to be, and
the server that leads its stream. With "moved to" an operator has said where a lane is to be. A lane without a node is
decided by nobody: it has one again within the lease's time, if a node is there.

A node is "ready" when it may have lanes, "cold" while it still reads the log, "draining" when it hands its lanes over
or was drained.`,
		Example: `  weir cluster status
  weir cluster status -o json | jq '.lanes[] | select(.nodeId == null)'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			service, err := c.cluster()
			if err != nil {
				return err
			}
			answer, err := call(cmd.Context(), c, "cluster status", service.GetCluster, &clusterv1.GetClusterRequest{})
			if err != nil {
				return err
			}
			if c.p.json(cmd) {
				return writeMessage(c.p.stdout, answer)
			}
			return c.p.printCluster(answer)
		},
	}
}

func (p *process) printCluster(answer *clusterv1.GetClusterResponse) error {
	paint := p.painterFor(p.stdout)
	nodes := newTable("NODE", "STATE", ">LANES", ">VIEWS LAG", ">CALLS", ">CPU", "VERSION", "ADDRESS")
	nodes.style = func(column int, cell string) string {
		switch {
		case column != 1:
			return cell
		case cell == "ready":
			return paint.good(cell)
		}
		return paint.warn(cell)
	}
	for _, node := range answer.GetNodes() {
		m := node.GetMember()
		lag := groupDigits(m.GetViewsLagCommits())
		if m.GetFollowsNothing() {
			lag = "no views"
		}
		nodes.row(m.GetNodeId(), nodeState(node), strconv.Itoa(len(m.GetLanes())), lag,
			groupDigits(uint64(m.GetCallsInFlight())), fmt.Sprintf("%d%%", m.GetCpuMilli()/10), m.GetVersion(), strings.Join(m.GetAddresses(), " "))
	}
	if err := nodes.print(p.stdout, paint); err != nil {
		return err
	}
	for _, absent := range answer.GetAbsentDrainedNodeIds() {
		fmt.Fprintf(p.stdout, "%s\n", paint.dim("Node "+absent+" is drained, and not there."))
	}
	fmt.Fprintln(p.stdout)
	lanes := newTable(">LANE", "NODE", "MOVED TO", ">EPOCH", ">COMMIT", ">LAG", ">QUEUED", "REPLICAS", "LEADER")
	lanes.style = func(column int, cell string) string {
		if column == 1 && cell == nobody {
			return paint.bad(cell)
		}
		return cell
	}
	for _, l := range answer.GetLanes() {
		owner, replicas, leader := l.GetNodeId(), fmt.Sprintf("%d of %d", l.GetReplicasCurrent(), l.GetReplicas()), l.GetStreamLeader()
		if owner == "" {
			owner = nobody
		}
		if fault := l.GetStreamFault(); fault != "" {
			replicas, leader = "", fault
		}
		lanes.row(strconv.FormatUint(uint64(l.GetLane()), 10), owner, l.GetMovedToNodeId(), groupDigits(l.GetEpoch()), groupDigits(l.GetHead()),
			groupDigits(l.GetLagCommits()), groupDigits(uint64(l.GetQueued())), replicas, leader)
	}
	return lanes.print(p.stdout, paint)
}

// nobody stands where a lane has no node.
const nobody = "(nobody)"

// nodeState is a node's state in one word.
func nodeState(node *clusterv1.Node) string {
	switch m := node.GetMember(); {
	case m.GetDraining() || node.GetDrained():
		return "draining"
	case !m.GetWarm():
		return "cold"
	}
	return "ready"
}

func (c *client) clusterDrain() *cobra.Command {
	return &cobra.Command{
		Use:   "drain NODE",
		Short: "Have a node hand its lanes over, and get no new ones",
		Long: `Have a node hand its lanes over to the others and get no new ones, also after it was started again, until
'weir cluster undrain'. It still answers calls, and follows the log. It returns once this is written down; the lanes
move a few at a time, each within a fraction of a second. The last node that could have lanes cannot be drained. Again
changes nothing.

A node that stops hands its lanes over by itself: draining it first is for taking it out of service for longer.`,
		Example: `  weir cluster drain shop-1f0c2a9e
  weir cluster drain shop-1f0c2a9e -o json`,
		Args: exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			service, err := c.cluster()
			if err != nil {
				return err
			}
			answer, err := call(cmd.Context(), c, "drain node "+args[0], service.DrainNode, &clusterv1.DrainNodeRequest{NodeId: args[0]})
			if err != nil {
				return err
			}
			if c.p.json(cmd) {
				return writeMessage(c.p.stdout, answer)
			}
			_, err = fmt.Fprintf(c.p.stdout, "Node %s is drained; it has %s to hand over\n", args[0], lanesText(len(answer.GetLanes())))
			return err
		},
	}
}

func lanesText(count int) string {
	switch count {
	case 0:
		return "no lanes"
	case 1:
		return "1 lane"
	}
	return strconv.Itoa(count) + " lanes"
}

func (c *client) clusterUndrain() *cobra.Command {
	return &cobra.Command{
		Use:     "undrain NODE",
		Short:   "Let a node have lanes again",
		Long:    `Let a node that was drained have lanes again: it gets its share. A node that is not drained stays as it is.`,
		Example: `  weir cluster undrain shop-1f0c2a9e`,
		Args:    exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			service, err := c.cluster()
			if err != nil {
				return err
			}
			answer, err := call(cmd.Context(), c, "undrain node "+args[0], service.UndrainNode, &clusterv1.UndrainNodeRequest{NodeId: args[0]})
			if err != nil {
				return err
			}
			if c.p.json(cmd) {
				return writeMessage(c.p.stdout, answer)
			}
			_, err = fmt.Fprintf(c.p.stdout, "Node %s may have lanes\n", args[0])
			return err
		},
	}
}

func (c *client) lanesMove() *cobra.Command {
	var anywhere bool
	cmd := &cobra.Command{
		Use:   "move LANE NODE",
		Short: "Have a node decide a lane",
		Long: `Have a node decide a lane from now on, for as long as that node is there and not drained. It returns once this is
written down; the lane moves as soon as the node is near the head of the log, within a fraction of a second, and no call
fails. With --anywhere instead of NODE the lane goes where it would be by itself. Again changes nothing.`,
		Example: `  weir lanes move 3 shop-1f0c2a9e
  weir lanes move 3 --anywhere`,
		Args: atMostArgs("LANE", "NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || anywhere == (len(args) == 2) {
				return usagef("weir lanes move needs LANE, and NODE or --anywhere").then("see weir lanes move --help")
			}
			lane, err := strconv.ParseUint(args[0], 10, 32)
			if err != nil {
				return usagef("%q is no lane's number", args[0]).then("see them with: weir cluster status")
			}
			question := &clusterv1.MoveLaneRequest{Lane: uint32(lane)}
			if !anywhere {
				question.NodeId = args[1]
			}
			service, err := c.cluster()
			if err != nil {
				return err
			}
			answer, err := call(cmd.Context(), c, "move lane "+args[0], service.MoveLane, question)
			if err != nil {
				return err
			}
			if c.p.json(cmd) {
				return writeMessage(c.p.stdout, answer)
			}
			owner := answer.GetNodeId()
			if owner == "" {
				owner = "nobody"
			}
			where := "is to be wherever it would be by itself"
			if !anywhere {
				where = "is to be with " + args[1]
			}
			_, err = fmt.Fprintf(c.p.stdout, "Lane %d %s; %s has it now\n", lane, where, owner)
			return err
		},
	}
	cmd.Flags().BoolVar(&anywhere, "anywhere", false, "take back where the lane is to be")
	return cmd
}
