package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// operatorMethods are the methods of services for everybody that are an operator's.
var operatorMethods = map[string]bool{
	orderv1connect.OrderServiceShipItemsProcedure:                        true,
	orderv1connect.OrderServiceConfirmDeliveryProcedure:                  true,
	orderv1connect.OrderServiceReceiveReturnProcedure:                    true,
	orderv1connect.OrderServiceAddNoteProcedure:                          true,
	orderv1connect.OrderServiceSearchOrdersProcedure:                     true,
	paymentv1connect.PaymentServiceCapturePaymentProcedure:               true,
	paymentv1connect.PaymentServiceVoidPaymentProcedure:                  true,
	paymentv1connect.PaymentServiceRefundPaymentProcedure:                true,
	paymentv1connect.PaymentServiceListPaymentsNeedingAttentionProcedure: true,
}

// operatorMethodsOnly is the gate in front of services of which some methods are an operator's. It runs before a body is
// read.
func operatorMethodsOnly(ctx context.Context, spec connect.Spec, peer connect.Peer, header http.Header) (context.Context, error) {
	if operatorMethods[spec.Procedure] {
		return operatorsOnly(ctx, spec, peer, header)
	}
	return ctx, nil
}

// An orderChange is a request to change an order that was placed.
type orderChange interface {
	proto.Message
	GetRequestId() string
	GetOrderId() string
}

// A changedOrder is what the reply to such a request says.
type changedOrder struct {
	order    *orderv1.Order
	revision *typev1.Revision
	// partID is what of the order the request made, or was about.
	partID string
}

// changeOrder takes a request to change an order: it checks it, submits the command that compose makes of it in the name of
// the caller, and returns the order after it. Its errors are those of an RPC.
func (h *Handler) changeOrder(
	ctx context.Context, procedure string, request orderChange,
	compose func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error),
) (changedOrder, error) {
	changed, err := h.submitChange(ctx, request, func(id domain.OrderID, change *lanes.Request) (err error) {
		change.Command, change.Fingerprint, err = compose(id, change.UserID)
		return err
	})
	if err != nil {
		return changedOrder{}, h.fail(ctx, procedure, err)
	}
	return changed, nil
}

// submitChange is changeOrder with its own errors; compose completes the lane's request.
func (h *Handler) submitChange(
	ctx context.Context, request orderChange, compose func(domain.OrderID, *lanes.Request) error,
) (changedOrder, error) {
	id, change, err := h.changeRequest(ctx, request)
	if err != nil {
		return changedOrder{}, err
	}
	if err := compose(id, &change); err != nil {
		return changedOrder{}, err
	}
	reply, err := h.commands.Submit(ctx, change)
	if err != nil {
		return changedOrder{}, err
	}
	return h.changedOrder(ctx, reply)
}

// changeRequest checks a request to change an order and makes the lane's request of it, all but the command and the
// fingerprint.
func (h *Handler) changeRequest(ctx context.Context, request orderChange) (domain.OrderID, lanes.Request, error) {
	if err := h.validator.check(request); err != nil {
		return domain.OrderID{}, lanes.Request{}, err
	}
	id, err := parseOrderID(request.GetOrderId())
	if err != nil {
		return id, lanes.Request{}, err
	}
	if outOfReach(ctx, id) {
		return id, lanes.Request{}, orderNotFound(id)
	}
	return id, lanes.Request{
		UserID: identity.FromContext(ctx).Subject, RequestID: request.GetRequestId(), Partition: id.Partition(),
		Owner: ownerOf(ctx), // The lane alone knows every order's user, the newest included.
	}, nil
}

// changedOrder returns the order after a change, as its caller may see it.
func (h *Handler) changedOrder(ctx context.Context, reply *lanes.Reply) (changedOrder, error) {
	person, err := h.openPersonal(ctx, &reply.Order)
	if err != nil {
		return changedOrder{}, err
	}
	order := newOrder(&reply.Order, reply.Lane, reply.OrderCommit, &person)
	if err := h.addMerchantNotes(ctx, order, &reply.Order); err != nil {
		return changedOrder{}, err
	}
	return changedOrder{order: order, revision: revisionOf(reply, order), partID: reply.PartID}, nil
}

// linesOf reads the items of a field; which of two lines of one SKU was meant, nobody can say.
func linesOf(field string, items []*orderv1.ItemRequest) ([]domain.LineRequest, error) {
	lines := make([]domain.LineRequest, len(items))
	for i, item := range items {
		for j := range i { // itemsMax² / 2 comparisons at most.
			if lines[j].SKU == item.GetSku() {
				return nil, invalidArgument(field+"["+strconv.Itoa(i)+"].sku", "it is in another line too; add the quantities up")
			}
		}
		lines[i] = domain.LineRequest{SKU: item.GetSku(), Units: item.GetQuantity()}
	}
	return lines, nil
}

// ShipItems implements orderv1connect.OrderServiceHandler.
func (s orderService) ShipItems(ctx context.Context, request *orderv1.ShipItemsRequest) (*orderv1.ShipItemsResponse, error) {
	changed, err := s.changeOrder(ctx, orderv1connect.OrderServiceShipItemsProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			lines, err := linesOf("items", request.Items)
			command := domain.ShipItems{OrderID: id, Lines: lines, Carrier: request.Carrier, Tracking: request.Tracking, By: by}
			return command, fingerprintShipItems(id, request), err
		})
	if err != nil {
		return nil, err
	}
	return &orderv1.ShipItemsResponse{Order: changed.order, Revision: changed.revision, ShipmentId: changed.partID}, nil
}

// ConfirmDelivery implements orderv1connect.OrderServiceHandler.
func (s orderService) ConfirmDelivery(ctx context.Context, request *orderv1.ConfirmDeliveryRequest) (*orderv1.ConfirmDeliveryResponse, error) {
	changed, err := s.changeOrder(ctx, orderv1connect.OrderServiceConfirmDeliveryProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			command := domain.ConfirmDelivery{OrderID: id, ShipmentID: request.ShipmentId, By: by}
			return command, fingerprintConfirmDelivery(id, request), nil
		})
	if err != nil {
		return nil, err
	}
	return &orderv1.ConfirmDeliveryResponse{Order: changed.order, Revision: changed.revision}, nil
}

// RequestReturn implements orderv1connect.OrderServiceHandler.
func (s orderService) RequestReturn(ctx context.Context, request *orderv1.RequestReturnRequest) (*orderv1.RequestReturnResponse, error) {
	changed, err := s.changeOrder(ctx, orderv1connect.OrderServiceRequestReturnProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			lines, err := linesOf("items", request.Items)
			command := domain.RequestReturn{OrderID: id, Lines: lines, Reason: request.Reason, By: by}
			return command, fingerprintRequestReturn(id, request), err
		})
	if err != nil {
		return nil, err
	}
	return &orderv1.RequestReturnResponse{Order: changed.order, Revision: changed.revision, ReturnId: changed.partID}, nil
}

// ReceiveReturn implements orderv1connect.OrderServiceHandler.
func (s orderService) ReceiveReturn(ctx context.Context, request *orderv1.ReceiveReturnRequest) (*orderv1.ReceiveReturnResponse, error) {
	changed, err := s.changeOrder(ctx, orderv1connect.OrderServiceReceiveReturnProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			restock, err := linesOf("restock", request.Restock)
			command := domain.ReceiveReturn{OrderID: id, ReturnID: request.ReturnId, Restock: restock, By: by}
			return command, fingerprintReceiveReturn(id, request), err
		})
	if err != nil {
		return nil, err
	}
	return &orderv1.ReceiveReturnResponse{Order: changed.order, Revision: changed.revision}, nil
}

// AddNote implements orderv1connect.OrderServiceHandler.
func (s orderService) AddNote(ctx context.Context, request *orderv1.AddNoteRequest) (*orderv1.AddNoteResponse, error) {
	response, err := s.addNote(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, orderv1connect.OrderServiceAddNoteProcedure, err)
	}
	return response, nil
}

func (s orderService) addNote(ctx context.Context, request *orderv1.AddNoteRequest) (*orderv1.AddNoteResponse, error) {
	id, change, err := s.changeRequest(ctx, request)
	if err != nil {
		return nil, err
	}
	userID, err := s.userOf(ctx, id)
	if err != nil {
		return nil, err
	}
	reply, err := s.submitSealed(ctx, userID, func() (lanes.Request, domain.KeyID, error) {
		sealed, err := s.sealer.Seal(ctx, userID, []byte(request.Text))
		if err != nil {
			return change, 0, &keysError{err}
		}
		key := domain.KeyID(sealing.KeyOf(sealed))
		// After the note: when the key is erased between the two, the note's is the erased one, and the lane says so.
		mac, err := s.sealer.MAC(ctx, userID, canonicalNote(request))
		if err != nil {
			return change, key, &keysError{err}
		}
		change.Command = domain.AddNote{OrderID: id, By: change.UserID, Sealed: sealed, SealKey: key}
		change.Fingerprint, change.Keyed = fingerprintAddNote(id, mac), true
		return change, key, nil
	})
	if err != nil {
		return nil, err
	}
	changed, err := s.changedOrder(ctx, reply)
	if err != nil {
		return nil, err
	}
	return &orderv1.AddNoteResponse{Order: changed.order, Revision: changed.revision, NoteId: changed.partID}, nil
}

// userOf returns the user whose order it is. That never changes, so any view of the order will do; one that has not seen the
// order yet is waited for, up to the newest commit that this node knows of.
func (h *Handler) userOf(ctx context.Context, id domain.OrderID) (string, error) {
	min := projections.Min{Lane: h.topology.LaneOf(id.Partition()), Wait: waitBudgetDefault}
	view, freshness, err := h.views.OrderOf(ctx, id, ownerOf(ctx), min)
	if errors.Is(err, projections.ErrNotFound) && freshness.LagCommits > 0 {
		min.Commit = freshness.Commit + freshness.LagCommits
		view, _, err = h.views.OrderOf(ctx, id, ownerOf(ctx), min)
	}
	if err != nil {
		return "", viewFault(err, min, orderNotFound(id))
	}
	return view.Order.UserID, nil
}

// addMerchantNotes shows the merchant's notes to an operator, and to nobody else.
func (h *Handler) addMerchantNotes(ctx context.Context, m *orderv1.Order, order *domain.Order) error {
	if len(order.Notes) == 0 || !identity.FromContext(ctx).Operates() {
		return nil
	}
	m.MerchantNotes = make([]*orderv1.MerchantNote, len(order.Notes))
	for i := range order.Notes {
		note := &order.Notes[i]
		text, err := h.sealer.Open(ctx, order.UserID, note.Sealed)
		switch {
		case err == nil, errors.Is(err, sealing.ErrErased):
		case errors.Is(err, sealing.ErrDamaged): // The order is worth more than its note.
			h.logger.LogAttrs(ctx, slog.LevelError, "note does not open", slog.Any("order", order.ID), slog.Any("error", err))
		default:
			return &keysError{err}
		}
		m.MerchantNotes[i] = &orderv1.MerchantNote{By: note.By, AddedAt: newTime(note.At), Text: string(text), NoteId: domain.NoteID(order.ID, i+1)}
	}
	return nil
}

// GetTimeline implements orderv1connect.OrderServiceHandler.
func (s orderService) GetTimeline(ctx context.Context, request *orderv1.GetTimelineRequest) (*orderv1.GetTimelineResponse, error) {
	response, err := s.getTimeline(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, orderv1connect.OrderServiceGetTimelineProcedure, err)
	}
	return response, nil
}

func (s orderService) getTimeline(ctx context.Context, request *orderv1.GetTimelineRequest) (*orderv1.GetTimelineResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	id, min, err := s.orderQuery(ctx, request.OrderId, request.MinRevision, request.WaitBudget)
	if err != nil {
		return nil, err
	}
	page, freshness, err := s.views.Timeline(ctx, projections.TimelineQuery{
		OrderID: id, UserID: ownerOf(ctx), PageSize: int(request.PageSize), PageToken: request.PageToken,
	}, min)
	if err != nil {
		return nil, viewFault(err, min, orderNotFound(id))
	}
	caller := identity.FromContext(ctx)
	response := &orderv1.GetTimelineResponse{NextPageToken: page.Next, Freshness: newFreshness(freshness)}
	for i := range page.Entries {
		entry := &page.Entries[i]
		if entry.Kind == domain.TimelineNoteAdded && !caller.Operates() {
			continue // The merchant's own affair.
		}
		subject := entry.Subject
		if entry.Actor == domain.ActorOperator && !caller.Operates() && subject != caller.Subject {
			subject = "" // So is which of its people did it.
		}
		response.Entries = append(response.Entries, newTimelineEntry(entry, subject))
	}
	return response, nil
}
