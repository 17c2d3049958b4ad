package redisview

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/projections"
)

// Limits of publishing.
const (
	// queueMax bounds the keys that wait to be written. What does not fit is not written: the guard refuses what Redis has of
	// it, until a read or a later change writes it anew.
	queueMax = 1 << 16
	// erasuresMax bounds the erased users that wait, who have a queue of their own: they are not dropped for other keys. More
	// of them at once leave what they had to expire.
	erasuresMax = 1 << 12
	// batchMax bounds the entries of one pipeline, copies not counted.
	batchMax = 512
	// callKeysMax bounds the keys of one call of the script, for which Redis serves nobody else.
	callKeysMax = 16
	// publishersOfNode are the pipelines under way at a time: while Redis works on one, the next is read and encoded.
	publishersOfNode = 2
	// publishRetryMin and publishRetryMax bound the pause after a pipeline that failed; it doubles with each in a row.
	publishRetryMin = 50 * time.Millisecond
	publishRetryMax = 5 * time.Second
)

// A queue holds the subjects that wait to be written, each once: what is written is read when its turn comes, so many
// changes of a key while it waits are one write.
type queue struct {
	mu       sync.Mutex
	waiting  map[subject]struct{}
	line     []subject
	erasures []subject
	// ready holds a signal when something may wait, room when something was taken.
	ready, room chan struct{}
	// missed says that an erasure found no room.
	missed bool
}

func (q *queue) init() {
	q.waiting = make(map[subject]struct{})
	q.ready, q.room = make(chan struct{}, 1), make(chan struct{}, 1)
}

// offer adds what changed, and returns how many keys did not fit.
func (q *queue) offer(changes *projections.Changes) (dropped uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lane := changes.Lane
	for i := range changes.Orders {
		dropped += q.add(orderSubject(lane, changes.Orders[i]))
	}
	for _, user := range changes.Users {
		dropped += q.add(subject{kind: kindRecent, lane: lane, text: user})
	}
	for _, key := range changes.StockKeys {
		dropped += q.add(subject{kind: kindStock, lane: lane, text: key})
	}
	for _, pool := range changes.Pools {
		dropped += q.add(subject{kind: kindTally, lane: lane, text: pool})
	}
	if changes.Campaigns {
		dropped += q.add(subject{kind: kindBoard, lane: lane})
	}
	for _, user := range changes.Erased {
		dropped += q.add(subject{kind: kindErased, lane: lane, text: user})
	}
	q.signal()
	return dropped
}

// again adds what a pipeline did not get through with.
func (q *queue) again(batch []subject) (dropped uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range batch {
		dropped += q.add(s)
	}
	q.signal()
	return dropped
}

// add adds a subject that does not wait yet. REQUIRES: q.mu is held.
func (q *queue) add(s subject) (dropped uint64) {
	if _, waits := q.waiting[s]; waits {
		return 0
	}
	switch {
	case s.kind == kindErased && len(q.erasures) < erasuresMax:
		q.erasures = append(q.erasures, s)
	case s.kind != kindErased && len(q.line) < queueMax:
		q.line = append(q.line, s)
	default:
		q.missed = q.missed || s.kind == kindErased
		return 1
	}
	q.waiting[s] = struct{}{}
	return 0
}

// addPatiently adds subjects that nobody waits for, while less than half of the room of their kind is taken: what changes comes
// first. One goroutine calls it.
func (q *queue) addPatiently(ctx context.Context, subjects []subject) error {
	for len(subjects) > 0 {
		q.mu.Lock()
		for len(subjects) > 0 && (subjects[0].kind == kindErased && len(q.erasures) < erasuresMax/2 || subjects[0].kind != kindErased && len(q.line) < queueMax/2) {
			q.add(subjects[0])
			subjects = subjects[1:]
		}
		q.signal()
		q.mu.Unlock()
		if len(subjects) == 0 {
			return nil
		}
		select {
		case <-q.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// takeMissed reports whether an erasure found no room since it was last asked.
func (q *queue) takeMissed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	missed := q.missed
	q.missed = false
	return missed
}

// signal wakes one who takes. REQUIRES: q.mu is held.
func (q *queue) signal() {
	if len(q.line)+len(q.erasures) == 0 {
		return
	}
	select {
	case q.ready <- struct{}{}:
	default: // Whoever takes has not looked at the last signal yet.
	}
}

// take waits for something to write and appends up to batchMax of it to batch.
func (q *queue) take(ctx context.Context, batch []subject) ([]subject, error) {
	for {
		select {
		case <-ctx.Done():
			return batch, ctx.Err()
		case <-q.ready:
		}
		q.mu.Lock()
		for _, line := range []*[]subject{&q.erasures, &q.line} {
			taken := min(len(*line), batchMax-len(batch))
			batch = append(batch, (*line)[:taken]...)
			*line = (*line)[taken:]
			if len(*line) == 0 {
				*line = nil
			}
		}
		for _, s := range batch {
			delete(q.waiting, s)
		}
		select {
		case q.room <- struct{}{}:
		default: // Whoever fills has not looked at the last signal yet.
		}
		q.signal()
		q.mu.Unlock()
		if len(batch) > 0 {
			return batch, nil
		}
	}
}

// Run writes what changes to Redis until ctx ends, which is no error, and fills one that is new or was started again with what is
// read most (see refill). A Redis that is away is tried again; what changes meanwhile
// waits as far as there is room, and what has none is refused by the guard. It ends with an error when the views cannot
// be read. Run is called once.
func (m *Mirror) Run(ctx context.Context) error {
	if m.started.Swap(true) {
		panic("redisview: bug: a Mirror runs once")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, publishersOfNode+1)
	for range publishersOfNode {
		go func() { ended <- m.publishAll(ctx) }()
	}
	go func() { ended <- m.refillAll(ctx) }()
	var errs []error
	for range cap(ended) {
		if err := <-ended; err != nil {
			errs = append(errs, err)
			cancel()
		}
	}
	return errors.Join(errs...)
}

// publishAll takes batch after batch off the queue.
func (m *Mirror) publishAll(ctx context.Context) error {
	var (
		batch []subject
		delay time.Duration
	)
	for {
		var err error
		if batch, err = m.queue.take(ctx, batch[:0]); err != nil {
			return nil //nolint:nilerr // The context ended: that is how a Run ends.
		}
		writes, err := m.read(batch)
		if err != nil {
			return fmt.Errorf("read the views for redis: %w", err)
		}
		err = m.send(ctx, writes)
		if err == nil {
			if delay > 0 {
				m.options.Logger.Info("redis takes writes again")
			}
			delay = 0
			if m.queue.takeMissed() {
				m.wantRefill()
			}
			continue
		}
		m.counts.dropped.Add(m.queue.again(batch))
		if delay == 0 && ctx.Err() == nil {
			m.options.Logger.Warn("redis takes no writes, the views serve alone", "error", err)
		}
		delay = min(max(2*delay, publishRetryMin), publishRetryMax)
		pause := time.NewTimer(delay)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// A write is one key and what it is set to; without an entry it is removed.
type write struct {
	key   string
	entry []byte
}

// read makes the writes of a batch, all from the views of one moment.
func (m *Mirror) read(batch []subject) (writes []write, err error) {
	snapshot := m.options.Store.Snapshot(m.options.Topology.Lanes)
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	for _, s := range batch {
		at, err := snapshot.Position(s.lane)
		if err != nil {
			return nil, err
		}
		add := func(s subject, state byte, value []byte) {
			for copyNumber := range m.copies(s.kind) {
				key := m.key(s, copyNumber)
				entry := make([]byte, 0, entryHeaderBytes+len(value))
				writes = append(writes, write{key, appendEntry(entry, key, at.Number, shortHash(at.Hash), state, value)})
			}
		}
		if s.kind == kindErased {
			subjects, err := ordersOf(snapshot, s)
			if err != nil {
				return nil, err
			}
			for _, s := range subjects {
				writes = append(writes, write{key: m.key(s, 0)}) // Removed first: that needs no memory.
				add(s, stateErased, nil)
			}
			continue
		}
		value, err := valueOf(snapshot, s)
		switch {
		case errors.Is(err, projections.ErrNotFound):
			continue // A runner that has begun again has not got so far.
		case errors.Is(err, projections.ErrTooMany) || len(value) > m.options.ValueBytesMax:
			m.counts.dropped.Add(1)
			continue
		case err != nil:
			return nil, err
		}
		add(s, stateValue, value)
	}
	return writes, nil
}

// valueOf reads what an entry about a subject holds.
func valueOf(snapshot *projections.Snapshot, s subject) ([]byte, error) {
	switch s.kind {
	case kindOrder:
		return snapshot.OrderRecord(s.lane, [16]byte([]byte(s.text)))
	case kindRecent:
		return snapshot.RecentOrders(s.lane, s.text, RecentOrdersMax)
	case kindStock:
		return snapshot.StockAccount(s.lane, s.text)
	case kindBoard:
		return snapshot.CampaignBoard(s.lane, boardCampaignsMax)
	case kindTally:
		return snapshot.Tally(s.lane, s.text)
	case kindErased:
	}
	panic(fmt.Sprintf("redisview: bug: no entry is of kind %d", s.kind))
}

// ordersOf returns the subjects that hold something of a user: the list of orders, and the orders.
func ordersOf(snapshot *projections.Snapshot, erased subject) ([]subject, error) {
	list, err := snapshot.ListedOrders(erased.lane, erased.text, erasedOrdersMax)
	if err != nil {
		return nil, err
	}
	orders, err := projections.ReadRecentOrders(list)
	subjects := []subject{{kind: kindRecent, lane: erased.lane, text: erased.text}}
	for _, order := range orders {
		subjects = append(subjects, orderSubject(erased.lane, order.ID))
	}
	return subjects, err
}

// send writes to Redis, batchMax writes to a pipeline at most and StockCopies times as many. An error means that Redis did not take all of it.
func (m *Mirror) send(ctx context.Context, writes []write) error {
	for chunk := range slices.Chunk(writes, batchMax*m.options.StockCopies) {
		if err := m.sendPipeline(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

func (m *Mirror) sendPipeline(ctx context.Context, writes []write) error {
	ctx, cancel := context.WithTimeout(ctx, m.options.WriteTimeout)
	defer cancel()
	calls := m.callsOf(writes)
	unknown, err := m.exec(ctx, calls, func(pipe redis.Pipeliner, c *call) { c.result = pipe.EvalSha(ctx, m.sha, c.keys, c.arguments...) })
	if err != nil || len(unknown) == 0 {
		return err
	}
	// Some server does not have the script: it is new, or was flushed. With its text it learns it.
	left, err := m.exec(ctx, unknown, func(pipe redis.Pipeliner, c *call) { c.result = pipe.Eval(ctx, writeScript, c.keys, c.arguments...) })
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("redis does not know a script that it was sent (%d calls)", len(left))
	}
	return err
}

// A call is one command of a pipeline: the script with some keys, or without arguments a key's removal.
type call struct {
	keys      []string
	arguments []any
	result    *redis.Cmd
}

// callsOf makes calls of writes. A single server takes several keys to a call; a cluster's keys are in different slots.
func (m *Mirror) callsOf(writes []write) []*call {
	keysMax := callKeysMax
	if m.options.Cluster {
		keysMax = 1
	}
	calls := make([]*call, 0, len(writes)/keysMax+1)
	var open *call
	for _, w := range writes {
		switch {
		case w.entry == nil:
			calls, open = append(calls, &call{keys: []string{w.key}}), nil
			continue
		case open == nil || len(open.keys) == keysMax:
			open = &call{keys: make([]string, 0, keysMax), arguments: make([]any, 0, 2*keysMax)}
			calls = append(calls, open)
		}
		open.keys = append(open.keys, w.key)
		open.arguments = append(open.arguments, w.entry, m.ttlMillis())
	}
	return calls
}

// exec sends one pipeline and returns the calls whose script is not known. What finds no room is dropped: the guard refuses
// what is there instead.
func (m *Mirror) exec(ctx context.Context, calls []*call, script func(redis.Pipeliner, *call)) (unknown []*call, err error) {
	pipe := m.client.Pipeline()
	for _, c := range calls {
		if c.arguments == nil {
			pipe.Unlink(ctx, c.keys...)
		} else {
			script(pipe, c)
		}
	}
	results, err := pipe.Exec(ctx)
	if len(results) != len(calls) {
		return nil, errors.Join(err, fmt.Errorf("redis answered %d of %d calls", len(results), len(calls)))
	}
	for i, c := range calls {
		switch err := results[i].Err(); {
		case err == nil && c.result != nil:
			written, err := c.result.Uint64()
			if err != nil || written > uint64(len(c.keys)) {
				return nil, fmt.Errorf("redis says that it wrote %v of %d entries", c.result.Val(), len(c.keys))
			}
			m.counts.written.Add(written)
			m.counts.older.Add(uint64(len(c.keys)) - written)
		case err == nil:
		case redis.HasErrorPrefix(err, "NOSCRIPT"):
			unknown = append(unknown, c)
		case redis.IsOOMError(err):
			m.counts.dropped.Add(uint64(len(c.keys)))
		default:
			return nil, err
		}
	}
	return unknown, nil
}
