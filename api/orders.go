package api

import (
	"bytes"
	"context"
	"errors"
	"strconv"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// orderService is weir.order.v1.OrderService.
type orderService struct{ *Handler }

// PlaceOrder implements orderv1connect.OrderServiceHandler.
func (s orderService) PlaceOrder(ctx context.Context, request *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
	response, err := s.placeOrder(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, orderv1connect.OrderServicePlaceOrderProcedure, err)
	}
	return response, nil
}

func (s orderService) placeOrder(ctx context.Context, request *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
	if err := s.validator.checkPlaceOrder(request); err != nil {
		return nil, err
	}
	userID, err := actFor(ctx, request.UserId)
	if err != nil {
		return nil, err
	}
	command := domain.PlaceOrder{
		UserID: userID, Lines: make([]domain.LineRequest, len(request.Items)), CampaignID: request.CampaignId, CouponCode: request.CouponCode,
	}
	for i, item := range request.Items {
		command.Lines[i] = domain.LineRequest{SKU: item.Sku, Units: item.Quantity}
	}
	person, given := personalOf(request)
	var reply *lanes.Reply
	if given {
		reply, err = s.submitSealed(ctx, userID, func() (lanes.Request, domain.KeyID, error) {
			mac, err := s.seal(ctx, &person, request.RequestId, &command)
			return placeRequest(&command, request, mac), command.SealKey, err
		})
	} else {
		reply, err = s.commands.Submit(ctx, placeRequest(&command, request, personalMAC{}))
	}
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(reply.Order.SealedPersonal, command.SealedPersonal) || len(reply.Order.SealedNote) > 0 {
		// A repetition: what was stored is the first one.
		if person, err = s.openPersonal(ctx, &reply.Order); err != nil {
			return nil, err
		}
	}
	order := newOrder(&reply.Order, reply.Lane, reply.OrderCommit, &person)
	return &orderv1.PlaceOrderResponse{Order: order, Revision: revisionOf(reply, order)}, nil
}

// sealAttempts bounds how often a request is sealed because its user's key was erased meanwhile.
const sealAttempts = 3

// submitSealed submits the request that seal makes, with what is personal sealed under a key of the user. When the key turns
// out to be erased, it is destroyed, if whoever erased it did not come so far, and the request is sealed under the user's
// new one.
func (h *Handler) submitSealed(ctx context.Context, userID string, seal func() (lanes.Request, domain.KeyID, error)) (*lanes.Reply, error) {
	for attempt := 1; ; attempt++ {
		request, key, err := seal()
		if err != nil {
			return nil, err
		}
		reply, err := h.commands.Submit(ctx, request)
		var erased *domain.KeyErasedError
		if !errors.As(err, &erased) {
			return reply, err
		}
		if attempt == sealAttempts {
			return nil, &keysError{err}
		}
		if err := h.sealer.Destroy(ctx, userID, uint64(key)); err != nil {
			return nil, &keysError{err}
		}
	}
}

// placeRequest makes the lane's request; mac is that of its personal data.
func placeRequest(command *domain.PlaceOrder, request *orderv1.PlaceOrderRequest, mac personalMAC) lanes.Request {
	r := lanes.Request{
		UserID: command.UserID, RequestID: request.RequestId, Fingerprint: fingerprintPlaceOrder(command.UserID, request, mac),
		Partition: eventstore.PartitionOf(command.UserID), Command: *command, Keyed: mac != personalMAC{},
	}
	if r.Keyed && request.ShippingAddress == nil && request.Contact == nil {
		r.Former = formerPlaceOrder(command.UserID, request, request.Note)
	}
	return r
}

// GetOrder implements orderv1connect.OrderServiceHandler.
func (s orderService) GetOrder(ctx context.Context, request *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	response, err := s.getOrder(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, orderv1connect.OrderServiceGetOrderProcedure, err)
	}
	return response, nil
}

func (s orderService) getOrder(ctx context.Context, request *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	if err := s.validator.checkGetOrder(request); err != nil {
		return nil, err
	}
	id, min, err := s.orderQuery(ctx, request.OrderId, request.MinRevision, request.WaitBudget)
	if err != nil {
		return nil, err
	}
	var view projections.OrderView
	var freshness projections.Freshness
	if request.AsOf == nil {
		view, freshness, err = s.views.OrderOf(ctx, id, ownerOf(ctx), min)
	} else if moment, bad := asOf(request.AsOf, &min); bad != nil {
		return nil, bad
	} else {
		view, freshness, err = s.views.OrderAsOf(ctx, id, ownerOf(ctx), moment, min)
	}
	if err != nil {
		return nil, viewFault(err, min, orderNotFound(id))
	}
	order, err := s.newOrder(ctx, &view)
	if err != nil {
		return nil, err
	}
	if err := s.addMerchantNotes(ctx, order, &view.Order); err != nil {
		return nil, err
	}
	return &orderv1.GetOrderResponse{Order: order, Freshness: newFreshness(freshness)}, nil
}

// ListOrders implements orderv1connect.OrderServiceHandler.
func (s orderService) ListOrders(ctx context.Context, request *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
	response, err := s.listOrders(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, orderv1connect.OrderServiceListOrdersProcedure, err)
	}
	return response, nil
}

func (s orderService) listOrders(ctx context.Context, request *orderv1.ListOrdersRequest) (*orderv1.ListOrdersResponse, error) {
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
	page, freshness, err := s.views.Orders(ctx, projections.OrdersQuery{
		UserID: userID, Status: domain.OrderStatus(request.Status), PageSize: int(request.PageSize), PageToken: request.PageToken,
	}, min)
	if err != nil {
		return nil, viewFault(err, min, err)
	}
	response := &orderv1.ListOrdersResponse{
		Orders: make([]*orderv1.Order, len(page.Orders)), NextPageToken: page.Next, Freshness: newFreshness(freshness), WatchToken: page.Watch,
	}
	for i := range page.Orders {
		if response.Orders[i], err = s.newOrder(ctx, &page.Orders[i]); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// CancelOrder implements orderv1connect.OrderServiceHandler.
func (s orderService) CancelOrder(ctx context.Context, request *orderv1.CancelOrderRequest) (*orderv1.CancelOrderResponse, error) {
	changed, err := s.changeOrder(ctx, orderv1connect.OrderServiceCancelOrderProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			return domain.CancelOrder{OrderID: id, Reason: request.Reason, By: by}, fingerprintCancelOrder(id, request.Reason), nil
		})
	if err != nil {
		return nil, err
	}
	return &orderv1.CancelOrderResponse{Order: changed.order, Revision: changed.revision}, nil
}

// actFor returns the user that a call is for: the one it names, or else the token's subject.
func actFor(ctx context.Context, userID string) (string, error) {
	caller := identity.FromContext(ctx)
	if userID == "" || userID == caller.Subject {
		return caller.Subject, nil
	}
	if !caller.ActsForOthers() {
		return "", permissionDenied(identity.ScopeActAs)
	}
	return userID, nil
}

// orderQuery reads what the queries for one order have in common.
func (h *Handler) orderQuery(ctx context.Context, orderID string, revision *typev1.Revision, wait *durationpb.Duration) (domain.OrderID, projections.Min, error) {
	id, err := parseOrderID(orderID)
	if err != nil {
		return id, projections.Min{}, err
	}
	min, err := h.minOf(revision, wait, h.topology.LaneOf(id.Partition()))
	if err != nil {
		return id, min, err
	}
	if outOfReach(ctx, id) {
		return id, min, orderNotFound(id)
	}
	return id, min, nil
}

func parseOrderID(text string) (domain.OrderID, error) {
	id, err := domain.ParseOrderID(text)
	var invalid *domain.InvalidIDError
	if errors.As(err, &invalid) {
		return id, invalidArgument("order_id", invalid.Problem)
	}
	return id, err
}

// outOfReach reports whether the order cannot be one that the caller may see: a customer's orders have the customer's
// partition. No such order is looked for, so that one that is there and one that is missing take the same time.
func outOfReach(ctx context.Context, id domain.OrderID) bool {
	caller := identity.FromContext(ctx)
	return !caller.ActsForOthers() && id.Partition() != eventstore.PartitionOf(caller.Subject)
}

// ownerOf returns the user whose orders the caller is kept to, empty for a caller who acts for others.
func ownerOf(ctx context.Context) string {
	caller := identity.FromContext(ctx)
	if caller.ActsForOthers() {
		return ""
	}
	return caller.Subject
}

// minOf reads the least revision that a query asks for. lane is the one that its key is in.
func (h *Handler) minOf(revision *typev1.Revision, wait *durationpb.Duration, lane uint32) (projections.Min, error) {
	min := projections.Min{Lane: lane, Wait: waitBudgetDefault}
	if wait != nil {
		min.Wait = wait.AsDuration()
	}
	if revision.GetCommit() == 0 {
		return min, nil
	}
	if revision.GetLane() != lane {
		return min, invalidArgument("min_revision.lane", "what is asked for is in lane "+strconv.FormatUint(uint64(lane), 10))
	}
	min.Commit = revision.GetCommit()
	return min, nil
}

// asOf reads a moment of the past. A position is waited for as min_revision is.
func asOf(request *orderv1.AsOf, min *projections.Min) (projections.AsOf, error) {
	switch moment := request.Moment.(type) {
	case *orderv1.AsOf_Time:
		if !moment.Time.IsValid() || moment.Time.AsTime().IsZero() {
			return projections.AsOf{}, invalidArgument("as_of.time", "it is not a time")
		}
		return projections.AsOf{At: moment.Time.AsTime()}, nil
	case *orderv1.AsOf_Revision:
		if moment.Revision.GetLane() != min.Lane {
			return projections.AsOf{}, invalidArgument("as_of.revision.lane", "the order is in lane "+strconv.FormatUint(uint64(min.Lane), 10))
		}
		if moment.Revision.GetCommit() == 0 {
			return projections.AsOf{}, invalidArgument("as_of.revision.commit", "commits count from 1")
		}
		min.Commit = max(min.Commit, moment.Revision.GetCommit())
		return projections.AsOf{Commit: moment.Revision.GetCommit()}, nil
	}
	return projections.AsOf{}, invalidArgument("as_of", "it names neither a time nor a revision")
}

// viewFault explains the error of a view; missing is what it means that there is no such key.
func viewFault(err error, min projections.Min, missing error) error {
	switch {
	case errors.Is(err, projections.ErrBehind):
		return viewBehind(min)
	case errors.Is(err, projections.ErrParked):
		return viewParked()
	case errors.Is(err, projections.ErrNotFound):
		return missing
	case errors.Is(err, projections.ErrBadPageToken):
		return invalidArgument("page_token", "it is not a next_page_token of this list")
	case errors.Is(err, projections.ErrWatchTooOld):
		return errWatchTooOld
	case errors.Is(err, projections.ErrTooManyWatchers):
		return tooManyWatches(0)
	case errors.Is(err, projections.ErrStopped):
		return &eventstore.UnavailableError{Lane: min.Lane, RetryAfter: retryAfterStopped, Cause: err}
	default:
		return err
	}
}

func (h *Handler) newOrder(ctx context.Context, view *projections.OrderView) (*orderv1.Order, error) {
	person, err := h.openPersonal(ctx, &view.Order)
	if err != nil {
		return nil, err
	}
	return newOrder(&view.Order, view.Revision.Lane, view.Revision.Commit, &person), nil
}

// revisionOf returns the position of a command's effect. It is the order's own revision except where later changes are
// shown with it.
func revisionOf(reply *lanes.Reply, order *orderv1.Order) *typev1.Revision {
	if order.Revision.Commit == reply.Commit {
		return order.Revision
	}
	return &typev1.Revision{Lane: reply.Lane, Commit: reply.Commit}
}

var _ orderv1connect.OrderServiceHandler = orderService{}
