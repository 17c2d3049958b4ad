package redisview

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/projections"
)

// Limits of a refill.
const (
	// refillOrdersMax bounds the newest orders that are written, and refillKeysMax the stock keys, each of all lanes together.
	refillOrdersMax = 1 << 13
	refillKeysMax   = 1 << 12
	// erasedSkewMax is how far log time may be from this node's clock for an erasure to be made up.
	erasedSkewMax = 15 * time.Minute
	// serversMax bounds the servers that are remembered; beyond it all are forgotten, and Redis is filled once more.
	serversMax = 1 << 10
)

// servers are the Redis processes that were seen, by the id that each draws when it starts.
type servers struct {
	mu   sync.Mutex
	seen map[string]struct{}
}

// connected looks, on each new connection, whether it is to another process than those that were seen before: a Redis that has
// started again has lost what it held, or has it from a dump of before. It fails no connection.
func (m *Mirror) connected(ctx context.Context, conn *redis.Conn) error {
	info, err := conn.Info(ctx, "server").Result()
	if err != nil {
		return nil //nolint:nilerr // Whoever uses the connection finds out, and another one is made.
	}
	for line := range strings.Lines(info) {
		if id, found := strings.CutPrefix(strings.TrimSpace(line), "run_id:"); found && m.servers.isNew(id) {
			m.wantRefill()
		}
	}
	return nil
}

// isNew notes a process, and reports whether others were seen and not this one: the first is filled at the start.
func (s *servers) isNew(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.seen[id]; known {
		return false
	}
	others := len(s.seen)
	if others == 0 || others >= serversMax {
		s.seen = make(map[string]struct{})
	}
	s.seen[id] = struct{}{}
	return others > 0
}

func (m *Mirror) wantRefill() {
	select {
	case m.refills <- struct{}{}:
	default: // The next one has not begun.
	}
}

// refillAll fills Redis at the start, and each time that it is wanted.
func (m *Mirror) refillAll(ctx context.Context) error {
	m.wantRefill()
	for {
		select {
		case <-m.refills:
		case <-ctx.Done():
			return nil
		}
		if err := m.refill(ctx); err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // The context ended: that is how a Run ends.
			}
			return fmt.Errorf("fill redis: %w", err)
		}
	}
}

// refill has the publishers write what is not a change: first the end of whoever was erased while what Redis may still hold was
// written, then what is read most, the newest orders, their users' lists, the campaigns and the stock. It takes its
// turn behind what changes.
func (m *Mirror) refill(ctx context.Context) error {
	erased, warm, err := m.refillOf()
	if err != nil {
		return err
	}
	if err := m.queue.addPatiently(ctx, erased); err != nil {
		return err
	}
	return m.queue.addPatiently(ctx, warm)
}

// refillOf returns the subjects of a refill.
func (m *Mirror) refillOf() (erased, warm []subject, err error) {
	lanes := m.options.Topology.Lanes
	snapshot := m.options.Store.Snapshot(lanes)
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	// An entry lives no longer than that, whichever node wrote it, and whatever dump it comes from: expiry is at a time.
	since := m.options.Now().Add(-max(m.options.TTL, TTLDefault) - erasedSkewMax)
	ordersMax, keysMax := max(refillOrdersMax/int(lanes), 1), max(refillKeysMax/int(lanes), 1)
	gone := make(map[string]bool)
	var keys, pools []string // Of all lanes: each may have an account of what is at home in another.
	for lane := range lanes {
		users, err := snapshot.Erased(lane, since)
		if err != nil {
			return nil, nil, err
		}
		for _, user := range users {
			erased = append(erased, subject{kind: kindErased, lane: lane, text: user})
			gone[user] = true
		}
		some, err := snapshot.Pools(lane, boardCampaignsMax)
		if err != nil {
			return nil, nil, err
		}
		pools = append(pools, some...)
		if some, err = snapshot.StockKeys(lane, keysMax); err != nil {
			return nil, nil, err
		}
		keys = append(keys, some...)
	}
	// Each once, and what the most read first.
	added := make(map[subject]bool)
	add := func(s subject) {
		if !added[s] {
			added[s] = true
			warm = append(warm, s)
		}
	}
	for _, s := range m.everyLane(nil, kindBoard, "") {
		add(s)
	}
	for _, pool := range pools {
		for _, s := range m.everyLane(m.everyLane(nil, kindStock, pool), kindTally, pool) {
			add(s)
		}
	}
	for _, key := range keys {
		for _, s := range m.everyLane(nil, kindStock, key) {
			add(s)
		}
	}
	for lane := range lanes {
		if err := warmOrders(snapshot, lane, ordersMax, gone, add); err != nil {
			return nil, nil, err
		}
	}
	return erased, warm, nil
}

// warmOrders adds a lane's newest orders and the lists that they are in, but those of users who are gone.
func warmOrders(snapshot *projections.Snapshot, lane uint32, countMax int, gone map[string]bool, add func(subject)) error {
	orders, users, err := snapshot.NewestOrders(lane, countMax)
	for i, id := range orders {
		if users[i] == "" || gone[users[i]] {
			continue
		}
		add(orderSubject(lane, id))
		add(subject{kind: kindRecent, lane: lane, text: users[i]})
	}
	return err
}
