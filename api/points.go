package api

import (
	"context"
	"strings"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	pointsv1 "github.com/weirhq/weir/proto/weir/points/v1"
	"github.com/weirhq/weir/proto/weir/points/v1/pointsv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// pointsService is weir.points.v1.PointsService.
type pointsService struct{ *Handler }

// GetPoints implements pointsv1connect.PointsServiceHandler.
func (s pointsService) GetPoints(ctx context.Context, request *pointsv1.GetPointsRequest) (*pointsv1.GetPointsResponse, error) {
	response, err := s.getPoints(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, pointsv1connect.PointsServiceGetPointsProcedure, err)
	}
	return response, nil
}

func (s pointsService) getPoints(ctx context.Context, request *pointsv1.GetPointsRequest) (*pointsv1.GetPointsResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	userID, err := actFor(ctx, request.UserId)
	if err != nil {
		return nil, err
	}
	min, err := s.minOf(request.MinRevision, request.WaitBudget, s.topology.LaneOf(eventstore.PartitionOf(userID)))
	if err != nil {
		return nil, err
	}
	page, freshness, err := s.views.Points(ctx, projections.PointsQuery{
		UserID: userID, PageSize: int(request.PageSize), PageToken: request.PageToken,
	}, min)
	if err != nil {
		return nil, viewFault(err, min, err)
	}
	response := &pointsv1.GetPointsResponse{
		UserId: userID, Balance: page.Balance, Entries: make([]*pointsv1.PointsEntry, len(page.Entries)),
		NextPageToken: page.Next, Freshness: newFreshness(freshness),
	}
	if page.Revision.Commit > 0 {
		response.Revision = &typev1.Revision{Lane: page.Revision.Lane, Commit: page.Revision.Commit}
	}
	for i := range page.Entries {
		response.Entries[i] = newPointsEntry(&page.Entries[i], page.Revision.Lane)
	}
	return response, nil
}

// newPointsEntry makes the message of an entry of a user whose lane is given.
func newPointsEntry(e *projections.PointsEntry, lane uint32) *pointsv1.PointsEntry {
	m := &pointsv1.PointsEntry{
		Number: e.Number, Points: e.Points, Balance: e.Balance, Time: newTime(e.At), OrderId: e.OrderID.String(), PaymentId: e.Part,
		Revision: &typev1.Revision{Lane: lane, Commit: e.Commit},
	}
	if payment, _, refund := strings.Cut(e.Part, "-r"); refund { // domain.RefundID
		m.PaymentId, m.RefundId = payment, e.Part
	}
	return m
}

var _ pointsv1connect.PointsServiceHandler = pointsService{}
