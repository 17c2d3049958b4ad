package redisview

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// ErrKeptBack says that Redis was not asked, because it has been failing.
var ErrKeptBack = errors.New("redis is failing and is not asked for now")

// OrderRecords are the orders' records in Redis, by the text of the order's id: a level of a cache whose values are what
// projections.FoldOrder reads.
type OrderRecords struct{ m *Mirror }

// OrderRecords returns the orders' records.
func (m *Mirror) OrderRecords() OrderRecords { return OrderRecords{m} }

// Get returns an order's record if Redis has one that holds everything up to the commit atLeast of the order's lane, and everything
// that this node's view held when Get was called. position is up to where that is so. An error says that Redis was of no use
// this time; the caller then reads the view, as when nothing is found.
func (o OrderRecords) Get(ctx context.Context, key string, atLeast uint64) (value []byte, position uint64, found bool, err error) {
	id, err := domain.ParseOrderID(key)
	if err != nil {
		return nil, 0, false, nil //nolint:nilerr // No order has such an id, and Redis has nothing of it.
	}
	got, err := o.m.get(ctx, []subject{orderSubject(o.m.laneOf(id), id)}, 0)
	if err != nil || !got.complete || got.upTo[0] < atLeast {
		return nil, 0, false, err
	}
	return got.values[0], got.upTo[0], true, nil
}

// Set offers an order's record that holds everything up to a commit of its lane. It is not kept if it is too large, if Redis has a
// newer one, or if this node does not know that commit any more.
func (o OrderRecords) Set(ctx context.Context, key string, value []byte, position uint64) error {
	id, err := domain.ParseOrderID(key)
	if err != nil {
		return fmt.Errorf("redis: keep order %q: %w", key, err)
	}
	return o.m.set(ctx, orderSubject(o.m.laneOf(id), id), value, position)
}

func (m *Mirror) laneOf(id domain.OrderID) uint32 { return m.options.Topology.LaneOf(id.Partition()) }

// RecentOrders returns a user's newest orders, newest first, RecentOrdersMax at most, as they are up to the commit atLeast of the
// user's lane at least.
func (m *Mirror) RecentOrders(ctx context.Context, userID string, atLeast uint64) (orders []projections.RecentOrder, position uint64, found bool, err error) {
	if userID == "" {
		return nil, 0, false, nil
	}
	s := subject{kind: kindRecent, lane: m.options.Topology.LaneOf(eventstore.PartitionOf(userID)), text: userID}
	got, err := m.getOrQueue(ctx, []subject{s}, 0)
	if err != nil || !got.complete || got.upTo[0] < atLeast {
		return nil, 0, false, err
	}
	orders, err = projections.ReadRecentOrders(got.values[0])
	return orders, got.upTo[0], err == nil, err
}

// Stock returns where the units of a SKU or of a pool are, over all lanes. It is not found when no lane knows the key: it takes the
// views to say whether it exists.
func (m *Mirror) Stock(ctx context.Context, key string) (stock projections.StockView, found bool, err error) {
	if key == "" {
		return projections.StockView{}, false, nil
	}
	got, err := m.getOrQueue(ctx, m.everyLane(nil, kindStock, key), rand.IntN(m.options.StockCopies))
	if err != nil || !got.complete {
		return projections.StockView{}, false, err
	}
	return projections.SumAccounts(key, got.values)
}

// everyLane appends the subjects of a kind that are about a key, one for each lane.
func (m *Mirror) everyLane(dst []subject, k kind, key string) []subject {
	for lane := range m.options.Topology.Lanes {
		dst = append(dst, subject{kind: k, lane: lane, text: key})
	}
	return dst
}

// Board returns the campaign board, by id and SKU, with the rate of a time.
func (m *Mirror) Board(ctx context.Context, now time.Time) (rows []projections.BoardRow, found bool, err error) {
	copyNumber := rand.IntN(m.options.StockCopies)
	got, err := m.getOrQueue(ctx, m.everyLane(nil, kindBoard, ""), copyNumber)
	if err != nil || !got.complete {
		return nil, false, err
	}
	var (
		campaigns []projections.CampaignView
		sums      []subject // For each campaign its accounts, then its tallies.
	)
	for lane, board := range got.values {
		read, err := projections.ReadCampaignBoard(uint32(lane), board)
		if err != nil {
			return nil, false, err
		}
		for i := range read {
			pool := read[i].Campaign.Pool
			sums = m.everyLane(m.everyLane(sums, kindStock, pool), kindTally, pool)
		}
		campaigns = append(campaigns, read...)
	}
	got, err = m.getOrQueue(ctx, sums, copyNumber)
	if err != nil || !got.complete {
		return nil, false, err
	}
	lanes := int(m.options.Topology.Lanes)
	for i := range campaigns {
		campaign, values := campaigns[i], got.values[2*i*lanes:2*(i+1)*lanes]
		if campaign.Stock, _, err = projections.SumAccounts(campaign.Campaign.Pool, values[:lanes]); err != nil {
			return nil, false, err
		}
		tally, err := projections.SumTallies(campaign.Campaign.Pool, values[lanes:])
		if err != nil {
			return nil, false, err
		}
		rows = append(rows, projections.NewBoardRow(campaign, tally, now))
	}
	projections.SortBoard(rows)
	return rows, true, nil
}

// answer is what Redis and the guard say about some subjects.
type answer struct {
	// complete says that all are there and good.
	complete bool
	values   [][]byte
	// upTo is, by subject, the commit up to which the value holds everything.
	upTo []uint64
}

// getOrQueue is get, and has the publisher write what was not there.
func (m *Mirror) getOrQueue(ctx context.Context, subjects []subject, copyNumber int) (answer, error) {
	got, err := m.get(ctx, subjects, copyNumber)
	if err == nil && !got.complete {
		m.counts.dropped.Add(m.queue.again(subjects))
	}
	return got, err
}

// get reads the entries of subjects in one pipeline.
func (m *Mirror) get(ctx context.Context, subjects []subject, copyNumber int) (answer, error) {
	if len(subjects) == 0 {
		return answer{complete: true}, nil
	}
	if !m.breaker.admit() {
		m.counts.keptBack.Add(1)
		return answer{}, ErrKeptBack
	}
	keys := make([]string, len(subjects))
	for i, s := range subjects {
		keys[i] = m.key(s, copyNumber)
	}
	stored, err := m.fetch(ctx, keys, m.options.ReadTimeout)
	m.settle(ctx, err)
	if err != nil {
		m.counts.failed.Add(1)
		return answer{}, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	got := answer{values: make([][]byte, len(subjects)), upTo: make([]uint64, len(subjects))}
	for i, s := range subjects {
		if stored[i] == nil {
			m.counts.misses.Add(1)
			return answer{}, nil
		}
		e, ok := readEntry(keys[i], stored[i])
		if ok && !e.erased {
			got.upTo[i], ok = m.guard.admits(s, e.number, e.hash)
		}
		if !ok || e.erased {
			m.counts.refused.Add(1)
			return answer{}, nil
		}
		got.values[i] = e.value
	}
	m.counts.hits.Add(1)
	got.complete = true
	return got, nil
}

// settle tells the breaker what came of a call. A caller that left says nothing about Redis.
func (m *Mirror) settle(ctx context.Context, err error) {
	if err == nil || ctx.Err() == nil {
		m.breaker.settle(err != nil)
	}
}

// fetch returns what is stored at keys, nil where there is nothing.
func (m *Mirror) fetch(ctx context.Context, keys []string, timeout time.Duration) ([][]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stored := make([][]byte, len(keys))
	if len(keys) == 1 {
		value, err := m.client.Get(ctx, keys[0]).Bytes()
		if errors.Is(err, redis.Nil) {
			return stored, nil
		}
		stored[0] = value
		return stored, err
	}
	pipe := m.client.Pipeline()
	results := make([]*redis.StringCmd, len(keys))
	for i, key := range keys {
		results[i] = pipe.Get(ctx, key)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return nil, err
	}
	for i, result := range results {
		value, err := result.Bytes()
		switch {
		case errors.Is(err, redis.Nil):
		case err != nil:
			return nil, err
		default:
			stored[i] = value
		}
	}
	return stored, nil
}

// set writes one entry, unless it would not be used.
func (m *Mirror) set(ctx context.Context, s subject, value []byte, position uint64) error {
	hash, known := m.guard.hashOf(s.lane, position)
	if !known || len(value) > m.options.ValueBytesMax || position < m.guard.slot(s).Load() {
		m.counts.dropped.Add(1)
		return nil
	}
	if !m.breaker.admit() {
		m.counts.keptBack.Add(1)
		return ErrKeptBack
	}
	bounded, cancel := context.WithTimeout(ctx, m.options.ReadTimeout)
	defer cancel()
	key := m.key(s, 0)
	err := m.sendPipeline(bounded, []write{{key, appendEntry(nil, key, position, hash, stateValue, value)}})
	m.settle(ctx, err)
	if err != nil {
		m.counts.failed.Add(1)
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return nil
}
