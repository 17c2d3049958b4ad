package api

import (
	"context"
	"errors"
	"strconv"
	"sync"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// watchMethods are the methods that last until their caller leaves.
var watchMethods = map[string]bool{
	orderv1connect.OrderServiceWatchOrderProcedure:      true,
	orderv1connect.OrderServiceWatchUserOrdersProcedure: true,
	catalogv1connect.CatalogServiceWatchStockProcedure:  true,
}

// WatchOrder implements orderv1connect.OrderServiceHandler.
func (s orderService) WatchOrder(ctx context.Context, request *orderv1.WatchOrderRequest, stream *connect.ServerStream[orderv1.WatchOrderResponse]) error {
	if err := s.watchOrder(ctx, request, stream); err != nil {
		return s.fail(ctx, orderv1connect.OrderServiceWatchOrderProcedure, err)
	}
	return nil
}

func (s orderService) watchOrder(ctx context.Context, request *orderv1.WatchOrderRequest, stream *connect.ServerStream[orderv1.WatchOrderResponse]) error {
	if err := s.validator.check(request); err != nil {
		return err
	}
	id, min, err := s.orderQuery(ctx, request.OrderId, request.MinRevision, request.WaitBudget)
	if err != nil {
		return err
	}
	query := projections.OrderWatch{OrderID: id, UserID: ownerOf(ctx), After: request.AfterRevision.GetCommit()}
	if query.After != 0 && request.AfterRevision.GetLane() != min.Lane {
		return invalidArgument("after_revision.lane", "the order is in lane "+strconv.FormatUint(uint64(min.Lane), 10))
	}
	return s.watch(ctx, min, orderNotFound(id), func(ctx context.Context) error {
		return s.views.WatchOrder(ctx, query, min, func(view projections.OrderView, freshness projections.Freshness) error {
			order, err := s.newOrder(ctx, &view)
			if err != nil {
				return err
			}
			if err := s.addMerchantNotes(ctx, order, &view.Order); err != nil {
				return err
			}
			return stream.Send(&orderv1.WatchOrderResponse{Order: order, Freshness: newFreshness(freshness)})
		})
	})
}

// WatchUserOrders implements orderv1connect.OrderServiceHandler.
func (s orderService) WatchUserOrders(ctx context.Context, request *orderv1.WatchUserOrdersRequest, stream *connect.ServerStream[orderv1.WatchUserOrdersResponse]) error {
	if err := s.watchUserOrders(ctx, request, stream); err != nil {
		return s.fail(ctx, orderv1connect.OrderServiceWatchUserOrdersProcedure, err)
	}
	return nil
}

func (s orderService) watchUserOrders(ctx context.Context, request *orderv1.WatchUserOrdersRequest, stream *connect.ServerStream[orderv1.WatchUserOrdersResponse]) error {
	if err := s.validator.check(request); err != nil {
		return err
	}
	userID, err := actFor(ctx, request.UserId)
	if err != nil {
		return err
	}
	min := projections.Min{Lane: s.topology.LaneOf(eventstore.PartitionOf(userID))}
	err = s.watch(ctx, min, nil, func(ctx context.Context) error {
		query := projections.UserWatch{UserID: userID, Token: request.ResumeToken}
		return s.views.WatchUser(ctx, query, min, func() error { return stream.Send(nil) }, func(change projections.UserChange, freshness projections.Freshness) error {
			order, err := s.newOrder(ctx, &change.OrderView)
			if err != nil {
				return err
			}
			return stream.Send(&orderv1.WatchUserOrdersResponse{Order: order, Freshness: newFreshness(freshness), ResumeToken: change.Token})
		})
	})
	if errors.Is(err, projections.ErrBadPageToken) {
		return invalidArgument("resume_token", "it is not a token of a watch of this user's orders")
	}
	return err
}

// WatchStock implements catalogv1connect.CatalogServiceHandler. Every lane holds a part of a SKU's account, so min_revision may
// name any of them.
func (s catalogService) WatchStock(ctx context.Context, request *catalogv1.WatchStockRequest, stream *connect.ServerStream[catalogv1.WatchStockResponse]) error {
	if err := s.watchStock(ctx, request, stream); err != nil {
		return s.fail(ctx, catalogv1connect.CatalogServiceWatchStockProcedure, err)
	}
	return nil
}

func (s catalogService) watchStock(ctx context.Context, request *catalogv1.WatchStockRequest, stream *connect.ServerStream[catalogv1.WatchStockResponse]) error {
	if err := s.validator.check(request); err != nil {
		return err
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return err
	}
	err = s.watch(ctx, min, productNotFound(request.Sku), func(ctx context.Context) error {
		query := projections.StockWatch{SKU: request.Sku, Token: request.ResumeToken}
		return s.views.WatchStock(ctx, query, min, func() error { return stream.Send(nil) }, func(change projections.StockChange, freshness projections.Freshness) error {
			return stream.Send(&catalogv1.WatchStockResponse{
				Stock: newStock(&change.StockView), Freshness: newFreshness(freshness), ResumeToken: change.Token,
			})
		})
	})
	if errors.Is(err, projections.ErrBadPageToken) {
		return invalidArgument("resume_token", "it is not a token of a watch of this SKU's stock")
	}
	return err
}

// watch runs a call that follows a view, within the limits of such calls, and explains its end; missing is what it means that
// there is nothing to follow.
func (h *Handler) watch(ctx context.Context, min projections.Min, missing error, follow func(context.Context) error) error {
	ctx, leave, err := h.watches.enter(ctx, identity.FromContext(ctx))
	if err != nil {
		return err
	}
	defer leave()
	err = follow(ctx)
	var ended *fault
	switch {
	case errors.As(context.Cause(ctx), &ended): // This node ended it.
		return ended
	case err == nil:
		return ctx.Err()
	case errors.Is(err, projections.ErrBadPageToken):
		return err
	default:
		return viewFault(err, min, missing)
	}
}

// watches counts the calls that follow views, and ends them when the server stops.
type watches struct {
	max, perCallerMax int

	mu       sync.Mutex
	total    int
	byCaller map[string]int
	// ending is done once the server stops.
	ending context.Context //nolint:containedctx // It stands for the server's life, not for a call's.
	end    context.CancelFunc
}

func newWatches(limits Limits) watches {
	ending, end := context.WithCancel(context.Background())
	return watches{max: limits.WatchesMax, perCallerMax: limits.WatchesPerCallerMax, byCaller: map[string]int{}, ending: ending, end: end}
}

// enter takes a place for a caller, or refuses. The context ends with the caller's token and with the server, and its
// cause is then the *fault to answer with. The caller calls leave.
func (w *watches) enter(ctx context.Context, caller *identity.Principal) (_ context.Context, leave func(), _ error) {
	if w.ending.Err() != nil {
		return nil, nil, errShuttingDown
	}
	w.mu.Lock()
	limit := 0
	switch {
	case w.total >= w.max:
		limit = w.max
	case w.byCaller[caller.Subject] >= w.perCallerMax:
		limit = w.perCallerMax
	default:
		w.total++
		w.byCaller[caller.Subject]++
	}
	w.mu.Unlock()
	if limit > 0 {
		return nil, nil, tooManyWatches(limit)
	}
	ctx, cancelExpiry := context.WithDeadlineCause(ctx, caller.Expires, unauthenticated())
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(w.ending, func() { cancel(errShuttingDown) })
	return ctx, func() {
		stop()
		cancel(nil)
		cancelExpiry()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.total--
		if w.byCaller[caller.Subject]--; w.byCaller[caller.Subject] == 0 {
			delete(w.byCaller, caller.Subject)
		}
	}, nil
}

// EndWatches ends every call that follows a view, with an error that tells the caller to call again, and refuses new ones.
func (h *Handler) EndWatches() { h.watches.end() }
