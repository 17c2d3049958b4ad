package lanes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// factsAsksMax bounds the questions for the end of a log that are under way because of what a node does not know.
const factsAsksMax = 16

// homeOfUnknown returns the home lane of a product, campaign or coupon that a request was refused for since the node does not know it.
func (s *Set) homeOfUnknown(err error) (lane uint32, unknown bool) {
	var (
		product  *domain.UnknownProductError
		campaign *domain.CampaignNotFoundError
		coupon   *domain.CouponInvalidError
		key      string
	)
	switch {
	case errors.As(err, &product):
		key = product.SKU
	case errors.As(err, &campaign):
		key = domain.CampaignPool(campaign.SKU, campaign.CampaignID)
	case errors.As(err, &coupon):
		key = domain.CouponPool(coupon.Code)
	default:
		return 0, false
	}
	return homeLane(s.options.Topology, key), true
}

// submitOnceKnown submits a request again that was refused since this node does not know a product, a campaign or a coupon: it may be
// behind the lane that they are decided in, by a moment, or by more after it was started or while that lane's log does not answer. Only
// what is not in that log up to its end is unknown; where that does not show in time, the request may be made again later.
func (s *Set) submitOnceKnown(ctx context.Context, lane, home uint32, request Request) (*Reply, error) {
	if err := s.catchUp(ctx, home); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &eventstore.UnavailableError{Lane: home, RetryAfter: time.Second, Cause: err}
	}
	return s.seats[lane].submit(ctx, request)
}

// catchUp waits, for a bounded time, until this node has applied what a lane's log holds by now.
func (s *Set) catchUp(ctx context.Context, lane uint32) error {
	ctx, cancel := context.WithTimeout(ctx, s.options.StockWait)
	defer cancel()
	select {
	case s.asks <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("too many ask for the end of the log of lane %d: %w", lane, ctx.Err())
	}
	head, err := s.options.Log(lane).Head(ctx)
	<-s.asks
	if err != nil {
		return err
	}
	defer s.demand(lane).Enter()()
	return s.seats[lane].reach(ctx, head)
}

// Order returns an order as this node's state of its lane has it, once that has come to a commit, and up to which commit it holds. It may be
// called while the lanes run. Errors: projections.ErrNotFound, projections.ErrBehind when the state does not come to the commit, or
// ctx's.
func (s *Set) Order(ctx context.Context, id domain.OrderID, commit uint64) (domain.Order, uint64, error) {
	lane := s.options.Topology.LaneOf(id.Partition())
	leave := s.demand(lane).Enter()
	err := s.seats[lane].reach(ctx, commit)
	leave()
	if err != nil {
		return domain.Order{}, 0, fmt.Errorf("%w: %w", projections.ErrBehind, err)
	}
	keys := newKeys(lane)
	record, closer, err := s.options.Store.DB().Get(keys.order(id))
	if errors.Is(err, pebble.ErrNotFound) {
		return domain.Order{}, 0, projections.ErrNotFound
	}
	if err != nil {
		return domain.Order{}, 0, fmt.Errorf("read order %v of lane %d: %w", id, lane, err)
	}
	userID, _ := projections.RecordUserID(record)
	order, revision, err := projections.FoldOrder(id, userID, slices.Clone(record), 0)
	return order, revision, errors.Join(err, closer.Close())
}

// reach waits until a commit is applied here.
func (s *seat) reach(ctx context.Context, number uint64) error {
	s.reaching.Add(1)
	defer s.reaching.Add(-1)
	for {
		s.mu.Lock()
		moved := s.moved
		s.mu.Unlock()
		at := s.commit.Load()
		if at >= number {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("this node is at commit %d of lane %d, and its log is at %d: %w", at, s.lane, number, ctx.Err())
		}
	}
}

// applied notes the newest commit that the state holds.
func (s *seat) applied(number uint64) {
	s.commit.Store(number)
	if s.reaching.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.moved)
	s.moved = make(chan struct{})
}
