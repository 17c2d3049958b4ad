package lanes

import (
	"context"
	"errors"
	"fmt"

	"github.com/weirhq/weir/domain"
)

// A Remote carries requests to the node that decides a lane.
type Remote interface {
	// Submit has a request decided in its lane by whichever node does that. Its outcome is that of Commands.Submit there.
	Submit(ctx context.Context, lane uint32, request Request) (Reply, error)
}

// A NotOwnerError says that this node does not decide a lane. Nothing happened.
type NotOwnerError struct {
	Lane uint32
	// Owner is the node that does, empty when that is not known.
	Owner string
}

func (e *NotOwnerError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("lane %d is decided by another node", e.Lane)
	}
	return fmt.Sprintf("lane %d is decided by node %s", e.Lane, e.Owner)
}

// Owned reports whether this node decides a lane.
func (s *Set) Owned(lane uint32) bool {
	return lane < s.options.Topology.Lanes && (s.options.Own == nil || s.options.Own(lane))
}

// SubmitLocal is Submit for a lane of this node; it never leaves it. Of another lane the error is a *NotOwnerError.
func (s *Set) SubmitLocal(ctx context.Context, lane uint32, request Request) (Reply, error) {
	if !s.Owned(lane) {
		return Reply{}, &NotOwnerError{Lane: lane}
	}
	reply, err := s.submitTo(ctx, lane, request)
	if err == nil {
		return reply, nil
	}
	var moving *domain.StockMovingError
	if !errors.As(err, &moving) {
		return reply, err
	}
	return s.submitAgain(ctx, lane, request, moving)
}

// tellOwnership says that a lane begins to serve; what it returns says that it stops.
func (s *Set) tellOwnership(lane uint32) (stops func()) {
	if s.options.OnOwnership == nil {
		return func() {}
	}
	s.options.OnOwnership(lane, true)
	return func() { s.options.OnOwnership(lane, false) }
}
