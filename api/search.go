package api

import (
	"cmp"
	"context"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// SearchOrders implements orderv1connect.OrderServiceHandler. Orders of all lanes are searched, so min_revision may name any of
// them.
func (s orderService) SearchOrders(ctx context.Context, request *orderv1.SearchOrdersRequest) (*orderv1.SearchOrdersResponse, error) {
	response, err := s.searchOrders(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, orderv1connect.OrderServiceSearchOrdersProcedure, err)
	}
	return response, nil
}

func (s orderService) searchOrders(ctx context.Context, request *orderv1.SearchOrdersRequest) (*orderv1.SearchOrdersResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	from, fromErr := timeOf("placed_from", request.PlacedFrom)
	to, toErr := timeOf("placed_to", request.PlacedTo)
	if err := cmp.Or(fromErr, toErr); err != nil {
		return nil, err
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return nil, err
	}
	page, freshness, err := s.views.SearchOrders(ctx, projections.SearchQuery{
		Status: domain.OrderStatus(request.Status), Payment: domain.PaymentState(request.PaymentState), // The numbers are the same.
		From: from, To: to, SKU: request.Sku, CampaignID: request.CampaignId, UserID: request.UserId,
		PageSize: int(request.PageSize), PageToken: request.PageToken,
	}, min)
	if err != nil {
		return nil, viewFault(err, min, err)
	}
	response := &orderv1.SearchOrdersResponse{
		Orders: make([]*orderv1.Order, len(page.Orders)), NextPageToken: page.Next, Freshness: newFreshness(freshness),
	}
	for i := range page.Orders {
		if response.Orders[i], err = s.newOrder(ctx, &page.Orders[i]); err != nil {
			return nil, err
		}
	}
	return response, nil
}
