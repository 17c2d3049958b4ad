// Package outcome says what a call's end means to those who decide where the next one goes.
package outcome

import "connectrpc.com/connect"

// An Outcome is how a call through the gateway ended, as far as balancing, breaking and limiting care.
type Outcome uint8

// The outcomes.
const (
	// Good: the upstream did its work. Business answers count as such: a refusal (sold out, not found) says nothing bad of who gives it.
	Good Outcome = iota + 1
	// Overload: the upstream had too much to do, and said so. It is slowed down, not broken.
	Overload
	// Fault: the upstream failed, or did not answer in time.
	Fault
	// Abandoned: the caller left before the end. It says nothing of the upstream.
	Abandoned
)

// OfCode returns what the code of an error means. 0, which is no error, is Good.
//
//	Fault:     UNAVAILABLE, INTERNAL, UNKNOWN, DATA_LOSS, DEADLINE_EXCEEDED
//	Overload:  RESOURCE_EXHAUSTED
//	Abandoned: CANCELED
//	Good:      all others
func OfCode(code connect.Code) Outcome {
	switch code {
	case connect.CodeUnavailable, connect.CodeInternal, connect.CodeUnknown, connect.CodeDataLoss, connect.CodeDeadlineExceeded:
		return Fault
	case connect.CodeResourceExhausted:
		return Overload
	case connect.CodeCanceled:
		return Abandoned
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied, connect.CodeFailedPrecondition,
		connect.CodeAborted, connect.CodeOutOfRange, connect.CodeUnimplemented, connect.CodeUnauthenticated:
	}
	return Good
}

// String names the outcome as metrics do.
func (o Outcome) String() string {
	switch o {
	case Good:
		return "good"
	case Overload:
		return "overload"
	case Fault:
		return "fault"
	case Abandoned:
		return "abandoned"
	}
	return "unknown"
}
