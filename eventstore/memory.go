package eventstore

import (
	"context"
	"fmt"
	"sync"
)

// A MemoryLog keeps a lane's commits in memory. An append takes effect before Append returns, and nothing is decided
// by time or chance, so it is the log for tests and simulations. It answers as an unreplicated JetStream does: the expected
// head is checked before anything else, and a repeated append of a stored commit is a conflict that Read resolves.
// Methods may be called by several goroutines.
type MemoryLog struct {
	lane, lanes uint32

	mu       sync.Mutex
	records  []Record      // records[i] is commit i+1
	grown    chan struct{} // closed and replaced when a commit is stored
	bytes    int64         // sum of the lengths of Data
	bytesMax int64         // 0 = no limit
}

// OpenMemoryLog returns an empty log of the lane in a topology of that many lanes.
func OpenMemoryLog(lane, lanes uint32) *MemoryLog {
	return &MemoryLog{lane: lane, lanes: lanes, grown: make(chan struct{})}
}

// LimitBytes makes appends that would take the sum of the stored commits' sizes over max fail with ErrLogFull; 0 lifts the limit.
func (l *MemoryLog) LimitBytes(max int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytesMax = max
}

// Position returns the newest commit's number and hash, Genesis for an empty log.
func (l *MemoryLog) Position() Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.position()
}

func (l *MemoryLog) position() Position {
	if len(l.records) == 0 {
		return Genesis(l.lane, l.lanes)
	}
	last := &l.records[len(l.records)-1]
	return Position{Number: last.Number, Hash: last.Hash}
}

// Append stores the record, or refuses it, before it returns.
func (l *MemoryLog) Append(record Record) Pending {
	return settled{l.append(record)}
}

func (l *MemoryLog) append(record Record) error {
	if HashOf(record.Data) != record.Hash {
		return fmt.Errorf("append commit %d to lane %d: its hash is not that of its data", record.Number, l.lane)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	head := l.position()
	switch {
	case record.Number != head.Number+1:
		return ErrConflict
	case head.Number > 0 && !record.Unchained && record.Prev != head.Hash:
		return ErrConflict
	case l.bytesMax > 0 && l.bytes+int64(len(record.Data)) > l.bytesMax:
		return ErrLogFull
	}
	record.Stored = len(record.Data)
	l.records = append(l.records, record)
	l.bytes += int64(len(record.Data))
	close(l.grown)
	l.grown = make(chan struct{})
	return nil
}

// ChecksChain is true: an append states the hash that it follows.
func (l *MemoryLog) ChecksChain() bool { return true }

// Read returns the commit at number, or ErrNoCommit.
func (l *MemoryLog) Read(ctx context.Context, number uint64) (Record, error) {
	if err := ctx.Err(); err != nil {
		return Record{}, err
	}
	if record, ok := l.stored(number); ok {
		return record, nil
	}
	return Record{}, ErrNoCommit
}

func (l *MemoryLog) stored(number uint64) (Record, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number == 0 || number > uint64(len(l.records)) {
		return Record{}, false
	}
	return l.records[number-1], true
}

// Head returns the number of the newest commit, 0 for an empty log.
func (l *MemoryLog) Head(ctx context.Context) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return l.Position().Number, nil
}

// Size says how much the log holds.
func (l *MemoryLog) Size(ctx context.Context) (LogSize, error) {
	if err := ctx.Err(); err != nil {
		return LogSize{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return LogSize{First: 1, Head: l.position().Number, Bytes: uint64(l.bytes)}, nil
}

// Follow reads from number on. REQUIRES: number ≥ 1.
func (l *MemoryLog) Follow(ctx context.Context, number uint64) (Cursor, error) {
	assert(number >= 1, "lane %d followed from number 0", l.lane)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &memoryCursor{log: l, next: number}, nil
}

type memoryCursor struct {
	log  *MemoryLog
	next uint64
}

func (c *memoryCursor) Next(ctx context.Context) (Record, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Record{}, err
		}
		c.log.mu.Lock()
		grown := c.log.grown
		if c.next <= uint64(len(c.log.records)) {
			record := c.log.records[c.next-1]
			c.log.mu.Unlock()
			c.next++
			return record, nil
		}
		c.log.mu.Unlock()
		select {
		case <-grown:
		case <-ctx.Done():
		}
	}
}

func (c *memoryCursor) Buffered() int {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	stored := uint64(len(c.log.records))
	if stored < c.next {
		return 0
	}
	return int(stored - c.next + 1)
}

func (c *memoryCursor) Close() {}

// settled is an append whose outcome was known at once.
type settled struct{ outcome error }

func (s settled) Wait(context.Context) error { return s.outcome }
func (s settled) Done() <-chan struct{}      { return closedChannel }

var closedChannel = func() chan struct{} {
	closed := make(chan struct{})
	close(closed)
	return closed
}()
