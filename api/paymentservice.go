package api

import (
	"context"
	"slices"
	"strings"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
)

// paymentService is weir.payment.v1.PaymentService. It asks no provider: it records what is to be done, and a reactor that
// follows the log does it.
type paymentService struct{ *Handler }

// StartPayment implements paymentv1connect.PaymentServiceHandler.
func (s paymentService) StartPayment(ctx context.Context, request *paymentv1.StartPaymentRequest) (*paymentv1.StartPaymentResponse, error) {
	changed, err := s.submitChange(ctx, request, func(id domain.OrderID, change *lanes.Request) error {
		provider, refusal := s.provider(request.Provider)
		change.Command = domain.StartPayment{
			OrderID: id, Provider: provider, Method: request.Method, CaptureNow: captureNow(request), By: change.UserID,
		}
		change.Fingerprint = fingerprintStartPayment(id, request)
		change.Refusal = refusal // A payment that was started before answers as it did, whichever providers the node has by now.
		return nil
	})
	if err != nil {
		return nil, s.fail(ctx, paymentv1connect.PaymentServiceStartPaymentProcedure, err)
	}
	return &paymentv1.StartPaymentResponse{Order: changed.order, Revision: changed.revision, PaymentId: changed.partID}, nil
}

// provider returns the provider that a payment is to have: the one asked for, or the node's first.
func (h *Handler) provider(name string) (string, error) {
	switch {
	case len(h.providers) == 0:
		return "", invalidArgument("provider", "this node has no payment provider")
	case name == "":
		return h.providers[0], nil
	case !slices.Contains(h.providers, name):
		return "", invalidArgument("provider", "this node has "+strings.Join(h.providers, ", "))
	}
	return name, nil
}

func captureNow(request *paymentv1.StartPaymentRequest) bool {
	return request.CaptureMode != orderv1.CaptureMode_CAPTURE_MODE_MANUAL
}

// CapturePayment implements paymentv1connect.PaymentServiceHandler.
func (s paymentService) CapturePayment(ctx context.Context, request *paymentv1.CapturePaymentRequest) (*paymentv1.CapturePaymentResponse, error) {
	changed, err := s.changeOrder(ctx, paymentv1connect.PaymentServiceCapturePaymentProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			return domain.CapturePayment{OrderID: id, By: by}, fingerprintCapturePayment(id), nil
		})
	if err != nil {
		return nil, err
	}
	return &paymentv1.CapturePaymentResponse{Order: changed.order, Revision: changed.revision, PaymentId: changed.partID}, nil
}

// VoidPayment implements paymentv1connect.PaymentServiceHandler.
func (s paymentService) VoidPayment(ctx context.Context, request *paymentv1.VoidPaymentRequest) (*paymentv1.VoidPaymentResponse, error) {
	changed, err := s.changeOrder(ctx, paymentv1connect.PaymentServiceVoidPaymentProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			return domain.VoidPayment{OrderID: id, Reason: request.Reason, By: by}, fingerprintVoidPayment(id, request), nil
		})
	if err != nil {
		return nil, err
	}
	return &paymentv1.VoidPaymentResponse{Order: changed.order, Revision: changed.revision, PaymentId: changed.partID}, nil
}

// RefundPayment implements paymentv1connect.PaymentServiceHandler.
func (s paymentService) RefundPayment(ctx context.Context, request *paymentv1.RefundPaymentRequest) (*paymentv1.RefundPaymentResponse, error) {
	changed, err := s.changeOrder(ctx, paymentv1connect.PaymentServiceRefundPaymentProcedure, request,
		func(id domain.OrderID, by string) (domain.Command, lanes.Fingerprint, error) {
			command := domain.RefundPayment{OrderID: id, PaymentID: request.PaymentId, Reason: request.Reason, By: by}
			if request.Amount != nil {
				command.Amount = domain.Money{Currency: request.Amount.CurrencyCode, Minor: request.Amount.Units}
			}
			return command, fingerprintRefundPayment(id, request), nil
		})
	if err != nil {
		return nil, err
	}
	return &paymentv1.RefundPaymentResponse{Order: changed.order, Revision: changed.revision, RefundId: changed.partID}, nil
}

// GetPayment implements paymentv1connect.PaymentServiceHandler.
func (s paymentService) GetPayment(ctx context.Context, request *paymentv1.GetPaymentRequest) (*paymentv1.GetPaymentResponse, error) {
	response, err := s.getPayment(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, paymentv1connect.PaymentServiceGetPaymentProcedure, err)
	}
	return response, nil
}

func (s paymentService) getPayment(ctx context.Context, request *paymentv1.GetPaymentRequest) (*paymentv1.GetPaymentResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	id, min, err := s.orderQuery(ctx, request.OrderId, request.MinRevision, request.WaitBudget)
	if err != nil {
		return nil, err
	}
	view, freshness, err := s.views.OrderOf(ctx, id, ownerOf(ctx), min)
	if err != nil {
		return nil, viewFault(err, min, orderNotFound(id))
	}
	order := newOrder(&view.Order, view.Revision.Lane, view.Revision.Commit, &personal{})
	at := slices.IndexFunc(order.Payments, func(p *orderv1.Payment) bool { return p.PaymentId == request.PaymentId })
	if request.PaymentId == "" {
		at = len(order.Payments) - 1
	}
	switch {
	case at < 0 && freshness.State == projections.StateCatchingUp && view.Revision.Commit < min.Commit:
		return nil, viewBehind(min)
	case at < 0:
		return nil, &domain.OrderPartNotFoundError{Part: "payment", ID: request.PaymentId}
	}
	response := &paymentv1.GetPaymentResponse{
		Payment: order.Payments[at], OrderStatus: order.Status, Revision: order.Revision, Freshness: newFreshness(freshness),
	}
	for _, refund := range order.Refunds {
		if refund.PaymentId == response.Payment.PaymentId {
			response.Refunds = append(response.Refunds, refund)
		}
	}
	return response, nil
}

// ListPaymentsNeedingAttention implements paymentv1connect.PaymentServiceHandler. min_revision may name any lane.
func (s paymentService) ListPaymentsNeedingAttention(
	ctx context.Context, request *paymentv1.ListPaymentsNeedingAttentionRequest,
) (*paymentv1.ListPaymentsNeedingAttentionResponse, error) {
	fail := func(err error) (*paymentv1.ListPaymentsNeedingAttentionResponse, error) {
		return nil, s.fail(ctx, paymentv1connect.PaymentServiceListPaymentsNeedingAttentionProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return fail(err)
	}
	query := projections.AttentionQuery{PageSize: int(request.PageSize), PageToken: request.PageToken}
	page, freshness, err := s.views.NeedingAttention(ctx, query, min)
	if err != nil {
		return fail(viewFault(err, min, err))
	}
	response := &paymentv1.ListPaymentsNeedingAttentionResponse{NextPageToken: page.Next, Freshness: newFreshness(freshness)}
	for i := range page.Items {
		response.Items = append(response.Items, newAttention(&page.Items[i]))
	}
	return response, nil
}

var _ paymentv1connect.PaymentServiceHandler = paymentService{}
