package gateway

import (
	"math"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

// errorDomain is the domain of every google.rpc.ErrorInfo of Weir.
const errorDomain = "weir"

// A reason names to programs why the gateway answered itself. The list is closed; REASONS.md documents it for callers.
type reason string

const (
	reasonNoUpstream     reason = "NO_UPSTREAM"
	reasonUpstreamBroke  reason = "UPSTREAM_BROKE"
	reasonTimedOut       reason = "DEADLINE_EXCEEDED"
	reasonLeft           reason = "CANCELED"
	reasonBodyTooLarge   reason = "REQUEST_TOO_LARGE"
	reasonBodyTooSlow    reason = "REQUEST_TOO_SLOW"
	reasonBodyUnreadable reason = "REQUEST_UNREADABLE"
	reasonTooManyCalls   reason = "TOO_MANY_CALLS"
	reasonRateLimited    reason = "RATE_LIMITED"
	reasonOverloaded     reason = "OVERLOADED"
	reasonBreakerOpen    reason = "BREAKER_OPEN"
	// reasonLaneUnavailable is that of a node whose lane nobody decides for now.
	reasonLaneUnavailable reason = "LANE_UNAVAILABLE"
)

// reasons is the one table from reasons to codes. retry says that the same call may succeed later.
var reasons = map[reason]struct {
	code  connect.Code
	retry bool
}{
	reasonNoUpstream:      {connect.CodeUnavailable, true},
	reasonUpstreamBroke:   {connect.CodeUnavailable, true},
	reasonTimedOut:        {connect.CodeDeadlineExceeded, false},
	reasonLeft:            {connect.CodeCanceled, false},
	reasonBodyTooLarge:    {connect.CodeResourceExhausted, false},
	reasonBodyTooSlow:     {connect.CodeDeadlineExceeded, false},
	reasonBodyUnreadable:  {connect.CodeInvalidArgument, false},
	reasonTooManyCalls:    {connect.CodeResourceExhausted, true},
	reasonRateLimited:     {connect.CodeResourceExhausted, true},
	reasonOverloaded:      {connect.CodeResourceExhausted, true},
	reasonBreakerOpen:     {connect.CodeUnavailable, true},
	reasonLaneUnavailable: {connect.CodeUnavailable, true},
}

// When to try again what the gateway cannot say more exactly.
const (
	retryAfterNoUpstream = time.Second
	retryAfterCalls      = time.Second
	retryAfterMax        = time.Minute
)

// A refusal is an answer of the gateway itself.
type refusal struct {
	reason     reason
	message    string
	retryAfter time.Duration
	// bare leaves the reason out of what the caller is told.
	bare bool
	// cause is for the log, never for the caller.
	cause error
}

func (r *refusal) Error() string {
	if r.cause != nil {
		return r.message + ": " + r.cause.Error()
	}
	return r.message
}

func (r *refusal) Unwrap() error { return r.cause }

// code is the code that the table has for its reason.
func (r *refusal) code() connect.Code {
	row, known := reasons[r.reason]
	if !known {
		panic("gateway: bug: reason " + string(r.reason) + " is not in the table")
	}
	return row.code
}

// connectError makes the error of the RPC, with what a client needs to come again at the right time.
func (r *refusal) connectError() *connect.Error {
	err := connect.NewError(r.code(), textError(r.message))
	if !r.bare {
		addDetail(err, &errdetails.ErrorInfo{Reason: string(r.reason), Domain: errorDomain})
	}
	if reasons[r.reason].retry {
		after := min(max(r.retryAfter, time.Millisecond), retryAfterMax)
		addDetail(err, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
		// The header counts whole seconds; 0 would invite a storm.
		err.Meta().Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
		err.Meta().Set("Grpc-Retry-Pushback-Ms", strconv.FormatInt(max(1, after.Milliseconds()), 10))
	}
	return err
}

// textError is an error that is its text.
type textError string

func (e textError) Error() string { return string(e) }

func addDetail(err *connect.Error, message proto.Message) {
	// A message without invalid strings always packs.
	if detail, packErr := connect.NewErrorDetail(message); packErr == nil {
		err.AddDetail(detail)
	}
}
