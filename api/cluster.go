package api

import (
	"context"
	"errors"
	"strconv"

	"github.com/weirhq/weir/eventstore/ownership"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	"github.com/weirhq/weir/proto/weir/cluster/v1/clusterv1connect"
)

// Cluster knows the nodes and which lanes they decide, and takes an operator's wishes.
type Cluster interface {
	// Cluster returns the nodes and the lanes as this node sees them.
	Cluster(ctx context.Context) *clusterv1.GetClusterResponse
	// Move has a lane be with a node, or wherever it would be by itself with "", and returns who has it now. Errors:
	// ownership.ErrNoLane, ErrNoNode, ErrNodeDrained.
	Move(ctx context.Context, lane uint32, node string) (owner string, err error)
	// DrainNode has a node hand its lanes over, and returns those that it still has. Errors: ownership.ErrNoNode, ErrLastNode.
	DrainNode(ctx context.Context, node string) (lanes []uint32, err error)
	UndrainNode(ctx context.Context, node string) error
}

// clusterService is weir.cluster.v1.ClusterService. The gate in front of it lets operators in and nobody else.
type clusterService struct{ *Handler }

// GetCluster implements clusterv1connect.ClusterServiceHandler.
func (s clusterService) GetCluster(ctx context.Context, _ *clusterv1.GetClusterRequest) (*clusterv1.GetClusterResponse, error) {
	return s.cluster.Cluster(ctx), nil
}

// MoveLane implements clusterv1connect.ClusterServiceHandler.
func (s clusterService) MoveLane(ctx context.Context, request *clusterv1.MoveLaneRequest) (*clusterv1.MoveLaneResponse, error) {
	err := s.validator.check(request)
	var owner string
	if err == nil {
		owner, err = s.cluster.Move(ctx, request.Lane, request.NodeId)
	}
	if err != nil {
		return nil, s.fail(ctx, clusterv1connect.ClusterServiceMoveLaneProcedure, clusterFault(err, request.Lane, request.NodeId))
	}
	return &clusterv1.MoveLaneResponse{NodeId: owner}, nil
}

// DrainNode implements clusterv1connect.ClusterServiceHandler.
func (s clusterService) DrainNode(ctx context.Context, request *clusterv1.DrainNodeRequest) (*clusterv1.DrainNodeResponse, error) {
	err := s.validator.check(request)
	var left []uint32
	if err == nil {
		left, err = s.cluster.DrainNode(ctx, request.NodeId)
	}
	if err != nil {
		return nil, s.fail(ctx, clusterv1connect.ClusterServiceDrainNodeProcedure, clusterFault(err, 0, request.NodeId))
	}
	return &clusterv1.DrainNodeResponse{Lanes: left}, nil
}

// UndrainNode implements clusterv1connect.ClusterServiceHandler.
func (s clusterService) UndrainNode(ctx context.Context, request *clusterv1.UndrainNodeRequest) (*clusterv1.UndrainNodeResponse, error) {
	err := s.validator.check(request)
	if err == nil {
		err = s.cluster.UndrainNode(ctx, request.NodeId)
	}
	if err != nil {
		return nil, s.fail(ctx, clusterv1connect.ClusterServiceUndrainNodeProcedure, clusterFault(err, 0, request.NodeId))
	}
	return &clusterv1.UndrainNodeResponse{}, nil
}

// clusterFault says which node or lane it was.
func clusterFault(err error, lane uint32, node string) error {
	of := func(reason Reason, message string) *fault {
		return &fault{reason: reason, message: message, facts: map[string]string{"node_id": node}}
	}
	switch {
	case errors.Is(err, ownership.ErrNoNode):
		return of(ReasonNodeNotFound, "there is no node "+node+" in the cluster now")
	case errors.Is(err, ownership.ErrNodeDrained):
		return of(ReasonNodeDrained, "node "+node+" is drained")
	case errors.Is(err, ownership.ErrLastNode):
		return of(ReasonLastNode, "no other node could have the lanes of "+node)
	case errors.Is(err, ownership.ErrNoLane):
		return &fault{reason: ReasonLaneNotFound, message: "there is no lane " + strconv.FormatUint(uint64(lane), 10), facts: laneFact(lane)}
	}
	return err
}

var _ clusterv1connect.ClusterServiceHandler = clusterService{}
