package api

import (
	"cmp"
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// catalogService is weir.catalog.v1.CatalogService. The gate in front of it lets operators in and nobody else.
type catalogService struct{ *Handler }

// PutProduct implements catalogv1connect.CatalogServiceHandler.
func (s catalogService) PutProduct(ctx context.Context, request *catalogv1.PutProductRequest) (*catalogv1.PutProductResponse, error) {
	fail := func(err error) (*catalogv1.PutProductResponse, error) {
		return nil, s.fail(ctx, catalogv1connect.CatalogServicePutProductProcedure, err)
	}
	if err := cmp.Or(s.validator.check(request), checkCurrency("price", request.Price)); err != nil {
		return fail(err)
	}
	price := domain.Money{Currency: request.Price.CurrencyCode, Minor: request.Price.Units}
	reply, err := s.submit(ctx, request.Sku, request.RequestId, fingerprintPutProduct(request),
		domain.PutProduct{
			SKU: request.Sku, Title: request.Title, Price: price,
			Tax: domain.Tax{RateBps: int64(request.TaxRateBps), Included: request.TaxIncluded},
		})
	if err != nil {
		return fail(err)
	}
	product := newProduct(&reply.Product, reply.Lane, reply.Commit)
	return &catalogv1.PutProductResponse{Product: product, Revision: product.Revision}, nil
}

// ReceiveStock implements catalogv1connect.CatalogServiceHandler.
func (s catalogService) ReceiveStock(ctx context.Context, request *catalogv1.ReceiveStockRequest) (*catalogv1.ReceiveStockResponse, error) {
	fail := func(err error) (*catalogv1.ReceiveStockResponse, error) {
		return nil, s.fail(ctx, catalogv1connect.CatalogServiceReceiveStockProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	reply, err := s.submit(ctx, request.Sku, request.RequestId, fingerprintReceiveStock(request),
		domain.ReceiveStock{SKU: request.Sku, Units: request.Quantity})
	if err != nil {
		return fail(err)
	}
	return &catalogv1.ReceiveStockResponse{
		Sku: reply.Received.SKU, Quantity: reply.Received.Units, Received: reply.Received.ReceivedTotal,
		Revision: &typev1.Revision{Lane: reply.Lane, Commit: reply.Commit},
	}, nil
}

// PreheatStock implements catalogv1connect.CatalogServiceHandler.
func (s catalogService) PreheatStock(ctx context.Context, request *catalogv1.PreheatStockRequest) (*catalogv1.PreheatStockResponse, error) {
	fail := func(err error) (*catalogv1.PreheatStockResponse, error) {
		return nil, s.fail(ctx, catalogv1connect.CatalogServicePreheatStockProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	reply, err := s.submit(ctx, domain.HomeKey(request.Sku), request.RequestId, fingerprintPreheatStock(request),
		domain.PreheatStock{SKU: request.Sku, UnitsPerLane: request.UnitsPerLane})
	if err != nil {
		return fail(err)
	}
	return &catalogv1.PreheatStockResponse{
		Sku: reply.Granted.SKU, UnitsPerLane: reply.Granted.Units, Granted: reply.Granted.Units * int64(s.topology.Lanes),
		Revision: &typev1.Revision{Lane: reply.Lane, Commit: reply.Commit},
	}, nil
}

// submit sends a command to the home lane of a SKU or a coupon's code, in the name of the operator who called.
func (h *Handler) submit(ctx context.Context, homeKey, requestID string, fingerprint lanes.Fingerprint, command domain.Command) (*lanes.Reply, error) {
	return h.commands.Submit(ctx, lanes.Request{
		UserID: identity.FromContext(ctx).Subject, RequestID: requestID, Fingerprint: fingerprint,
		Partition: eventstore.PartitionOf(homeKey), Command: command,
	})
}

// GetProduct implements catalogv1connect.CatalogServiceHandler.
func (s catalogService) GetProduct(ctx context.Context, request *catalogv1.GetProductRequest) (*catalogv1.GetProductResponse, error) {
	fail := func(err error) (*catalogv1.GetProductResponse, error) {
		return nil, s.fail(ctx, catalogv1connect.CatalogServiceGetProductProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOf(request.MinRevision, request.WaitBudget, s.homeLane(request.Sku))
	if err != nil {
		return fail(err)
	}
	view, freshness, err := s.views.Product(ctx, request.Sku, min)
	if err != nil {
		return fail(viewFault(err, min, productNotFound(request.Sku)))
	}
	return &catalogv1.GetProductResponse{
		Product:   newProduct(&view.Product, view.Revision.Lane, view.Revision.Commit),
		Freshness: newFreshness(freshness),
	}, nil
}

// ListProducts implements catalogv1connect.CatalogServiceHandler.
func (s catalogService) ListProducts(ctx context.Context, request *catalogv1.ListProductsRequest) (*catalogv1.ListProductsResponse, error) {
	fail := func(err error) (*catalogv1.ListProductsResponse, error) {
		return nil, s.fail(ctx, catalogv1connect.CatalogServiceListProductsProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return fail(err)
	}
	query := projections.ProductsQuery{PageSize: int(request.PageSize), PageToken: request.PageToken}
	page, freshness, err := s.views.Products(ctx, query, min)
	if err != nil {
		return fail(viewFault(err, min, err))
	}
	response := &catalogv1.ListProductsResponse{
		Products:      make([]*catalogv1.Product, len(page.Products)),
		NextPageToken: page.Next,
		Freshness:     newFreshness(freshness),
	}
	for i := range page.Products {
		view := &page.Products[i]
		response.Products[i] = newProduct(&view.Product, view.Revision.Lane, view.Revision.Commit)
	}
	return response, nil
}

// GetStock implements catalogv1connect.CatalogServiceHandler. Every lane holds a part of a SKU's account, so
// min_revision may name any of them.
func (s catalogService) GetStock(ctx context.Context, request *catalogv1.GetStockRequest) (*catalogv1.GetStockResponse, error) {
	fail := func(err error) (*catalogv1.GetStockResponse, error) {
		return nil, s.fail(ctx, catalogv1connect.CatalogServiceGetStockProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return fail(err)
	}
	view, freshness, err := s.views.Stock(ctx, request.Sku, min)
	if err != nil {
		return fail(viewFault(err, min, productNotFound(request.Sku)))
	}
	return &catalogv1.GetStockResponse{Stock: newStock(&view), Freshness: newFreshness(freshness)}, nil
}

func newStock(view *projections.StockView) *catalogv1.Stock {
	return &catalogv1.Stock{
		Sku: view.SKU, Received: view.Received, Central: view.Central, InTransit: view.InTransit,
		Available: view.Available, Reserved: view.Reserved, Sold: view.Sold,
	}
}

// homeLane returns the lane in which the SKU's product and central account are.
func (h *Handler) homeLane(sku string) uint32 { return h.topology.LaneOf(eventstore.PartitionOf(sku)) }

// minOfAny is minOf for a query whose answer comes from every lane.
func (h *Handler) minOfAny(revision *typev1.Revision, wait *durationpb.Duration) (projections.Min, error) {
	lane := revision.GetLane()
	if lane >= h.topology.Lanes {
		return projections.Min{}, invalidArgument("min_revision.lane", "there is no such lane")
	}
	return h.minOf(revision, wait, lane)
}

var _ catalogv1connect.CatalogServiceHandler = catalogService{}
