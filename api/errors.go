package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	"github.com/weirhq/weir/projections/readpath"
)

// ErrorDomain is the domain of every google.rpc.ErrorInfo of Weir.
const ErrorDomain = "weir"

// A Reason names to programs why a call failed. The list is closed; REASONS.md documents it for callers.
type Reason string

// The reasons.
const (
	ReasonOutOfStock            = Reason(domain.ReasonOutOfStock)
	ReasonStockMoving           = Reason(domain.ReasonStockMoving)
	ReasonUnknownProduct        = Reason(domain.ReasonUnknownProduct)
	ReasonProductNotFound       = Reason("PRODUCT_NOT_FOUND")
	ReasonEndpointNotFound      = Reason("ENDPOINT_NOT_FOUND")
	ReasonEndpointLimit         = Reason(domain.ReasonEndpointLimit)
	ReasonEventNotFound         = Reason("EVENT_NOT_FOUND")
	ReasonOrderNotFound         = Reason(domain.ReasonOrderNotFound)
	ReasonOrderExpired          = Reason(domain.ReasonOrderExpired)
	ReasonOrderCancelled        = Reason(domain.ReasonOrderCancelled)
	ReasonOrderShipped          = Reason(domain.ReasonOrderShipped)
	ReasonPaymentState          = Reason(domain.ReasonPaymentState)
	ReasonFulfilmentState       = Reason(domain.ReasonFulfilmentState)
	ReasonOrderPartNotFound     = Reason(domain.ReasonOrderPartNotFound)
	ReasonOrderLimit            = Reason(domain.ReasonOrderLimit)
	ReasonRefundExceedsCaptured = Reason(domain.ReasonRefundExceedsCaptured)
	ReasonUnitsExceeded         = Reason(domain.ReasonUnitsExceeded)
	ReasonAmountMismatch        = Reason(domain.ReasonAmountMismatch)
	ReasonKeyReused             = Reason("KEY_REUSED")
	ReasonMixedCurrencies       = Reason(domain.ReasonMixedCurrencies)
	ReasonAmountOverflow        = Reason(domain.ReasonAmountOverflow)
	ReasonInvalidArgument       = Reason(domain.ReasonInvalidArgument)
	ReasonUnauthenticated       = Reason("UNAUTHENTICATED")
	ReasonPermissionDenied      = Reason("PERMISSION_DENIED")
	ReasonQueueFull             = Reason("QUEUE_FULL")
	ReasonTooManyWatches        = Reason("TOO_MANY_WATCHES")
	ReasonWatchTooOld           = Reason("WATCH_TOO_OLD")
	ReasonReadsFull             = Reason("READS_FULL")
	ReasonLogFull               = Reason("LOG_FULL")
	ReasonLaneUnavailable       = Reason("LANE_UNAVAILABLE")
	ReasonKeysUnavailable       = Reason("KEYS_UNAVAILABLE")
	ReasonShuttingDown          = Reason("SHUTTING_DOWN")
	ReasonStarting              = Reason("STARTING")
	ReasonViewBehind            = Reason("VIEW_BEHIND")
	ReasonViewsUnavailable      = Reason("VIEWS_UNAVAILABLE")
	ReasonViewParked            = Reason("VIEW_PARKED")
	ReasonDeadlineExceeded      = Reason("DEADLINE_EXCEEDED")
	ReasonCanceled              = Reason("CANCELED")
	ReasonInternal              = Reason("INTERNAL")
	ReasonMethodUnknown         = Reason("METHOD_UNKNOWN")
	ReasonNotACall              = Reason("NOT_A_CALL")
	ReasonEncodingUnknown       = Reason("ENCODING_UNKNOWN")
	ReasonRequestUnreadable     = Reason("REQUEST_UNREADABLE")
	ReasonRequestTooLarge       = Reason("REQUEST_TOO_LARGE")
	ReasonNodeNotFound          = Reason("NODE_NOT_FOUND")
	ReasonNodeDrained           = Reason("NODE_DRAINED")
	ReasonLastNode              = Reason("LAST_NODE")
	ReasonLaneNotFound          = Reason("LANE_NOT_FOUND")

	ReasonCampaignNotFound    = Reason(domain.ReasonCampaignNotFound)
	ReasonCampaignNotOpen     = Reason(domain.ReasonCampaignNotOpen)
	ReasonCampaignClosed      = Reason(domain.ReasonCampaignClosed)
	ReasonCampaignMaxPerOrder = Reason(domain.ReasonCampaignMaxPerOrder)
	ReasonCampaignLimit       = Reason(domain.ReasonCampaignLimit)
	ReasonCouponInvalid       = Reason(domain.ReasonCouponInvalid)
	ReasonCouponNotYet        = Reason(domain.ReasonCouponNotYet)
	ReasonCouponExpired       = Reason(domain.ReasonCouponExpired)
	ReasonCouponMinSubtotal   = Reason(domain.ReasonCouponMinSubtotal)
	ReasonCouponLimit         = Reason(domain.ReasonCouponLimit)
)

// reasons is the one table from reasons to Connect codes. retry says that the same call may succeed later, so the error
// carries a RetryInfo and a Retry-After header, unless its fault says that this is too far off. facts are the keys of the ErrorInfo's metadata.
var reasons = map[Reason]struct {
	code  connect.Code
	retry bool
	facts []string
}{
	ReasonOutOfStock:            {connect.CodeFailedPrecondition, false, []string{"sku", "want", "free"}},
	ReasonStockMoving:           {connect.CodeAborted, true, []string{"sku", "want"}},
	ReasonUnknownProduct:        {connect.CodeFailedPrecondition, false, []string{"sku"}},
	ReasonProductNotFound:       {connect.CodeNotFound, false, []string{"sku"}},
	ReasonEndpointNotFound:      {connect.CodeNotFound, false, []string{"endpoint_id"}},
	ReasonEndpointLimit:         {connect.CodeFailedPrecondition, false, []string{"limit"}},
	ReasonEventNotFound:         {connect.CodeNotFound, false, nil},
	ReasonOrderNotFound:         {connect.CodeNotFound, false, []string{"order_id"}},
	ReasonOrderExpired:          {connect.CodeFailedPrecondition, false, []string{"order_id"}},
	ReasonOrderCancelled:        {connect.CodeFailedPrecondition, false, []string{"order_id"}},
	ReasonOrderShipped:          {connect.CodeFailedPrecondition, false, []string{"order_id"}},
	ReasonPaymentState:          {connect.CodeFailedPrecondition, false, []string{"order_id", "payment"}},
	ReasonFulfilmentState:       {connect.CodeFailedPrecondition, false, []string{"order_id", "fulfilment"}},
	ReasonOrderPartNotFound:     {connect.CodeNotFound, false, []string{"part", "id"}},
	ReasonOrderLimit:            {connect.CodeFailedPrecondition, false, []string{"part", "limit"}},
	ReasonRefundExceedsCaptured: {connect.CodeFailedPrecondition, false, []string{"payment_id", "want", "left"}},
	ReasonUnitsExceeded:         {connect.CodeFailedPrecondition, false, []string{"sku", "want", "left"}},
	ReasonAmountMismatch:        {connect.CodeFailedPrecondition, false, []string{"payment_id", "want", "got"}},
	ReasonKeyReused:             {connect.CodeFailedPrecondition, false, []string{"request_id"}},
	ReasonMixedCurrencies:       {connect.CodeInvalidArgument, false, []string{"first", "other"}},
	ReasonAmountOverflow:        {connect.CodeInvalidArgument, false, []string{"amount"}},
	ReasonInvalidArgument:       {connect.CodeInvalidArgument, false, []string{"argument", "problem"}},
	ReasonUnauthenticated:       {connect.CodeUnauthenticated, false, nil},
	ReasonPermissionDenied:      {connect.CodePermissionDenied, false, []string{"scope"}},
	ReasonQueueFull:             {connect.CodeResourceExhausted, true, []string{"lane"}},
	ReasonTooManyWatches:        {connect.CodeResourceExhausted, true, []string{"limit"}},
	ReasonWatchTooOld:           {connect.CodeOutOfRange, false, nil},
	ReasonReadsFull:             {connect.CodeResourceExhausted, true, nil},
	ReasonLogFull:               {connect.CodeResourceExhausted, true, nil},
	ReasonLaneUnavailable:       {connect.CodeUnavailable, true, []string{"lane"}},
	ReasonKeysUnavailable:       {connect.CodeUnavailable, true, nil},
	ReasonShuttingDown:          {connect.CodeUnavailable, true, nil},
	ReasonStarting:              {connect.CodeUnavailable, true, nil},
	ReasonViewBehind:            {connect.CodeUnavailable, true, []string{"lane", "commit"}},
	ReasonViewsUnavailable:      {connect.CodeUnavailable, true, nil},
	ReasonViewParked:            {connect.CodeUnavailable, true, nil},
	ReasonDeadlineExceeded:      {connect.CodeDeadlineExceeded, false, nil},
	ReasonCanceled:              {connect.CodeCanceled, false, nil},
	ReasonInternal:              {connect.CodeInternal, false, nil},
	ReasonMethodUnknown:         {connect.CodeUnimplemented, false, nil},
	ReasonNotACall:              {connect.CodeUnimplemented, false, nil},
	ReasonEncodingUnknown:       {connect.CodeUnimplemented, false, nil},
	ReasonRequestUnreadable:     {connect.CodeInvalidArgument, false, nil},
	ReasonRequestTooLarge:       {connect.CodeResourceExhausted, false, nil},
	ReasonNodeNotFound:          {connect.CodeNotFound, false, []string{"node_id"}},
	ReasonNodeDrained:           {connect.CodeFailedPrecondition, false, []string{"node_id"}},
	ReasonLastNode:              {connect.CodeFailedPrecondition, false, []string{"node_id"}},
	ReasonLaneNotFound:          {connect.CodeNotFound, false, []string{"lane"}},

	ReasonCampaignNotFound:    {connect.CodeNotFound, false, []string{"campaign_id", "sku"}},
	ReasonCampaignNotOpen:     {connect.CodeFailedPrecondition, true, []string{"campaign_id", "opens_at"}},
	ReasonCampaignClosed:      {connect.CodeFailedPrecondition, false, []string{"campaign_id", "closed_at"}},
	ReasonCampaignMaxPerOrder: {connect.CodeFailedPrecondition, false, []string{"campaign_id", "limit", "want"}},
	ReasonCampaignLimit:       {connect.CodeFailedPrecondition, false, []string{"campaign_id", "limit", "already", "want"}},
	ReasonCouponInvalid:       {connect.CodeNotFound, false, []string{"coupon_code"}},
	ReasonCouponNotYet:        {connect.CodeFailedPrecondition, false, []string{"coupon_code", "valid_from"}},
	ReasonCouponExpired:       {connect.CodeFailedPrecondition, false, []string{"coupon_code", "valid_until"}},
	ReasonCouponMinSubtotal:   {connect.CodeFailedPrecondition, false, []string{"coupon_code", "want", "subtotal"}},
	ReasonCouponLimit:         {connect.CodeFailedPrecondition, false, []string{"coupon_code", "scope", "limit"}},
}

// A fault is what a caller is told: a reason, a sentence, facts, and when to try again.
type fault struct {
	reason     Reason
	message    string
	facts      map[string]string
	fields     []*errdetails.BadRequest_FieldViolation
	retryAfter time.Duration
	// farOff says that the call may succeed later than anybody should wait.
	farOff bool
}

func (f *fault) Error() string { return f.message }

// faultOf explains an error. unexpected means that it is no answer that a caller could have caused or acts on: the
// message says nothing of it, and it belongs in the log.
func faultOf(err error) (f *fault, unexpected bool) {
	var (
		refusal     domain.Refusal
		moving      *domain.StockMovingError
		reused      *lanes.KeyReusedError
		queueFull   *eventstore.QueueFullError
		unavailable *eventstore.UnavailableError
		keys        *keysError
		notOpen     *domain.CampaignNotOpenError
		readsFull   *readpath.OverloadedError
	)
	switch {
	case errors.As(err, &f):
		return f, false
	case errors.As(err, &notOpen):
		return &fault{
			reason: ReasonCampaignNotOpen, message: notOpen.Error(), facts: notOpen.Facts(),
			retryAfter: notOpen.OpensIn, farOff: notOpen.OpensIn > retryAfterMax,
		}, false
	case errors.As(err, &moving):
		return &fault{reason: ReasonStockMoving, message: moving.Error(), facts: moving.Facts(), retryAfter: retryAfterMoving}, false
	case errors.As(err, &refusal):
		return &fault{reason: Reason(refusal.Reason()), message: refusal.Error(), facts: refusal.Facts()}, false
	case errors.As(err, &reused):
		return &fault{reason: ReasonKeyReused, message: reused.Error(), facts: map[string]string{"request_id": reused.RequestID}}, false
	case errors.As(err, &queueFull):
		return &fault{
			reason: ReasonQueueFull, message: queueFull.Error(), retryAfter: queueFull.RetryAfter,
			facts: laneFact(queueFull.Lane),
		}, false
	case errors.As(err, &readsFull):
		return &fault{reason: ReasonReadsFull, message: readsFull.Error(), retryAfter: readsFull.RetryAfter}, false
	case errors.Is(err, eventstore.ErrLogFull):
		return &fault{reason: ReasonLogFull, message: "the log is full; an operator has to make room", retryAfter: retryAfterFull}, false // The lane logs it, once.
	case errors.As(err, &unavailable): // Its cause stays inside.
		return &fault{
			reason: ReasonLaneUnavailable, retryAfter: unavailable.RetryAfter, facts: laneFact(unavailable.Lane),
			message: fmt.Sprintf("lane %d is not available; send the same request again in %s", unavailable.Lane, unavailable.RetryAfter),
		}, false
	case errors.As(err, &keys) && !isContextError(err):
		return &fault{reason: ReasonKeysUnavailable, message: "the keys of personal data are out of reach; send the same request again", retryAfter: retryAfterFull}, true
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return &fault{reason: ReasonDeadlineExceeded, message: "the deadline passed; what was asked may still take effect, and the same request_id asks again safely"}, false
	case errors.Is(err, context.Canceled):
		return &fault{reason: ReasonCanceled, message: "the caller left"}, false
	default:
		return &fault{reason: ReasonInternal, message: "something went wrong inside; it is in the log of the server"}, true
	}
}

func isContextError(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

func laneFact(lane uint32) map[string]string {
	return map[string]string{"lane": strconv.FormatUint(uint64(lane), 10)}
}

// connectError makes the error of the RPC. The same fault makes the same bytes, each time.
func (f *fault) connectError() *connect.Error {
	row, known := reasons[f.reason]
	if !known {
		panic(fmt.Sprintf("api: bug: reason %q is not in the table", f.reason))
	}
	connectErr := connect.NewError(row.code, f)
	addDetail(connectErr, &errdetails.ErrorInfo{Reason: string(f.reason), Domain: ErrorDomain, Metadata: f.facts})
	if len(f.fields) > 0 {
		addDetail(connectErr, &errdetails.BadRequest{FieldViolations: f.fields})
	}
	if row.retry && !f.farOff {
		after := min(max(f.retryAfter, time.Millisecond), retryAfterMax)
		addDetail(connectErr, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
		// The header counts whole seconds; 0 would invite a storm.
		connectErr.Meta().Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
	}
	if f.reason == ReasonUnauthenticated {
		connectErr.Meta().Set("WWW-Authenticate", "Bearer")
	}
	return connectErr
}

func addDetail(connectErr *connect.Error, detail proto.Message) {
	var packed anypb.Any
	// Deterministic: metadata is a map, and another's order must not differ from a missing one in the order of its bytes.
	if err := anypb.MarshalFrom(&packed, detail, proto.MarshalOptions{Deterministic: true}); err != nil {
		return // An invalid UTF-8 fact, at worst. The code and the message stand without it.
	}
	wire, err := connect.NewErrorDetail(&packed)
	if err != nil {
		return
	}
	connectErr.AddDetail(wire)
}

// fail turns the error of a call into the RPC's error, and logs it if nobody expected it.
func (h *Handler) fail(ctx context.Context, procedure string, err error) error {
	crowd, isCrowd := crowdKey(err)
	if isCrowd {
		if connectErr, kept := h.crowd.connectError(crowd); kept {
			return connectErr
		}
	}
	f, unexpected := faultOf(err)
	if unexpected {
		h.logger.LogAttrs(ctx, slog.LevelError, "call failed",
			slog.String("procedure", procedure), slog.String("reason", string(f.reason)), slog.Any("error", err))
	}
	connectErr := f.connectError()
	if isCrowd {
		h.crowd.miss(ctx, crowd, f, connectErr)
	}
	return connectErr
}

// The refusals of this layer.

func invalidArgument(field, problem string) *fault {
	return &fault{
		reason: ReasonInvalidArgument, message: field + ": " + problem,
		facts:  map[string]string{"argument": field, "problem": problem},
		fields: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: problem}},
	}
}

func orderNotFound(id domain.OrderID) error { return &domain.OrderNotFoundError{OrderID: id} }

func productNotFound(sku string) *fault {
	return &fault{reason: ReasonProductNotFound, message: "there is no product " + sku, facts: map[string]string{"sku": sku}}
}

func viewBehind(min projections.Min) *fault {
	facts := laneFact(min.Lane)
	facts["commit"] = strconv.FormatUint(min.Commit, 10)
	return &fault{
		reason: ReasonViewBehind, facts: facts, retryAfter: retryAfterBehind,
		message: fmt.Sprintf("the view has not reached commit %d of lane %d within the wait budget", min.Commit, min.Lane),
	}
}

// viewParked says that there is no answer before somebody has looked.
func viewParked() *fault {
	return &fault{
		reason: ReasonViewParked, retryAfter: retryAfterParked,
		message: "what was asked for is in the log, and an event of it could not be applied: it is parked until it is replayed",
	}
}

func unauthenticated() *fault {
	return &fault{reason: ReasonUnauthenticated, message: "send a valid token as \"Authorization: Bearer <token>\""}
}

func permissionDenied(scope identity.Scopes) *fault {
	return &fault{
		reason: ReasonPermissionDenied, facts: map[string]string{"scope": scope.String()},
		message: "the token lacks the scope " + scope.String(),
	}
}

// tooManyWatches names the limit that was met, 0 for one of the views.
func tooManyWatches(limit int) *fault {
	f := &fault{
		reason: ReasonTooManyWatches, retryAfter: retryAfterWatches,
		message: "too many orders are watched at once; end a watch, or try again later",
	}
	if limit > 0 {
		f.facts = map[string]string{"limit": strconv.Itoa(limit)}
	}
	return f
}

var errWatchTooOld = &fault{
	reason:  ReasonWatchTooOld,
	message: "too much has changed since the resume_token was given out; list the orders, and watch from the list's watch_token",
}

var errShuttingDown = &fault{reason: ReasonShuttingDown, message: "this node is shutting down; call again, another one or this one will answer", retryAfter: time.Second}

// A keysError is a fault of the store of user keys.
type keysError struct{ cause error }

func (e *keysError) Error() string { return "user keys: " + e.cause.Error() }
func (e *keysError) Unwrap() error { return e.cause }
