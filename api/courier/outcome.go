package courier

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// An answer is the outcome of a command: weir.node.v1.Answer. Of the two, exactly one is set.
type answer struct {
	reply   *lanes.Reply
	failure *failure
}

func walkAnswer(w *walk, m *answer) {
	optional(w, 1, &m.reply, walkReply)
	optional(w, 2, &m.failure, walkFailure)
}

// A failure says why a command led to nothing, or to nothing that is known.
type failure struct {
	// message is kind in words.
	message string
	// kind is a domain.Refusal, an error that lanes.Commands names, or one of those below.
	kind error
}

// The kinds of failures that package domain, lanes and eventstore have no type for.
type (
	// unavailable is an *eventstore.UnavailableError: its cause goes along as text.
	unavailable struct {
		lane       uint32
		retryAfter time.Duration
		cause      string
	}
	// logFull is eventstore.ErrLogFull.
	logFull struct{}
	// tooLate says that the time for the command was over before its outcome was known.
	tooLate struct{}
	// refusedAsAsked is the request's own Refusal, which whoever sent it has.
	refusedAsAsked struct{}
	// unsupported says that the node's program is too old for the command.
	unsupported struct{ newest uint32 }
	// fault is anything else: something went wrong inside.
	fault struct{}
)

func (e *unavailable) Error() string  { return e.cause }
func (*logFull) Error() string        { return eventstore.ErrLogFull.Error() }
func (*tooLate) Error() string        { return "the time for the command is over" }
func (*refusedAsAsked) Error() string { return "the command was not accepted before" }
func (e *unsupported) Error() string {
	return fmt.Sprintf("the command needs a newer program: this one understands messages between nodes up to version %d", e.newest)
}
func (*fault) Error() string { return "something went wrong inside" }

// A FaultError says that something went wrong inside the node that decides a lane. What became of the command is not known.
type FaultError struct {
	Lane uint32
	// Message is what that node says of it.
	Message string
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("the node that decides lane %d: %s", e.Lane, e.Message)
}

// A VersionError says that the program of one of two nodes is too old for what the other one has to say.
type VersionError struct {
	Lane uint32
	// Here says that it is this node's; else it is that of the node that decides the lane.
	Here bool
	// Message is what the other node says.
	Message string
}

func (e *VersionError) Error() string {
	if e.Here {
		return fmt.Sprintf("the node that decides lane %d answers with something newer than this program: upgrade this node; it says: %s", e.Lane, e.Message)
	}
	return fmt.Sprintf("the node that decides lane %d has an older program: upgrade that node; it says: %s", e.Lane, e.Message)
}

// A cause is what is left of an error that was of another node.
type cause string

func (c cause) Error() string { return string(c) }

// failureOf makes the failure of the error of a command. The order is that in which package api looks.
func failureOf(lane uint32, err error) *failure {
	var (
		refusal  domain.Refusal
		erased   *domain.KeyErasedError
		reused   *lanes.KeyReusedError
		full     *eventstore.QueueFullError
		closed   *eventstore.UnavailableError
		notOwner *lanes.NotOwnerError
		old      *unsupported
		kind     error
	)
	switch {
	case errors.Is(err, errRefusedAsAsked):
		kind = &refusedAsAsked{}
	case errors.As(err, &refusal):
		kind = refusal
	case errors.As(err, &erased):
		kind = erased
	case errors.As(err, &reused):
		kind = reused
	case errors.As(err, &full):
		kind = full
	case errors.As(err, &notOwner):
		kind = notOwner
	case errors.Is(err, eventstore.ErrLogFull):
		kind = &logFull{}
	case errors.As(err, &closed):
		gone := &unavailable{lane: closed.Lane, retryAfter: closed.RetryAfter}
		if closed.Cause != nil {
			gone.cause = closed.Cause.Error()
		}
		kind = gone
	case errors.As(err, &old):
		kind = old
	case errors.Is(err, context.DeadlineExceeded):
		kind = &tooLate{}
	case errors.Is(err, context.Canceled): // Nobody here cancels for whoever asked: the node stops.
		kind = &unavailable{lane: lane, retryAfter: againAfter, cause: "the node stops"}
	default:
		kind = &fault{}
	}
	return &failure{message: err.Error(), kind: kind}
}

// errorOf is the error that the failure of a request was made of, as far as it matters to anybody.
func (f *failure) errorOf(lane uint32, request *lanes.Request) error {
	switch kind := f.kind.(type) { //nolint:errorlint // Nothing is wrapped here: decode made it.
	case nil:
		return &VersionError{Lane: lane, Here: true, Message: f.message}
	case *unavailable:
		gone := &eventstore.UnavailableError{Lane: kind.lane, RetryAfter: kind.retryAfter}
		if kind.cause != "" {
			gone.Cause = cause(kind.cause)
		}
		return gone
	case *logFull:
		return eventstore.ErrLogFull
	case *tooLate:
		return context.DeadlineExceeded
	case *refusedAsAsked:
		if request.Refusal != nil {
			return request.Refusal
		}
		return &FaultError{Lane: lane, Message: f.message}
	case *unsupported: // Once it is upgraded, the same request is answered.
		return &eventstore.UnavailableError{Lane: lane, RetryAfter: againAfter, Cause: &VersionError{Lane: lane, Message: f.message}}
	case *fault:
		return &FaultError{Lane: lane, Message: f.message}
	default:
		return kind
	}
}
