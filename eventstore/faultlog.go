package eventstore

import (
	"context"
	"errors"
	"math/rand/v2"
)

// A FaultLog is a writer's bad connection to a log in memory, for simulations: appends are lost, delayed and overtaken, acknowledgements do
// not arrive, reads fail or are stale. It does what a JetStream can do and nothing that it cannot: an append takes effect once at
// most, at its own number, and only if its condition holds at that moment. Several FaultLogs may share one MemoryLog.
//
// It is deterministic: no goroutine, no timer, all chance from its source. One goroutine uses it.
type FaultLog struct {
	inner   *MemoryLog
	options FaultOptions
	chance  *rand.Rand
	delayed []*faultPending
}

// FaultOptions say how bad the connection is. Rates are probabilities; the zero value has no faults.
type FaultOptions struct {
	// Replicated makes it answer as a replicated stream does: repeated appends are recognised before the sequence is
	// checked, the chain is not checked, and writes in flight cause conflicts.
	Replicated bool
	// AckLost is how often a stored append is not acknowledged.
	AckLost float64
	// Lost is how often an append never arrives.
	Lost float64
	// Delayed is how often an append takes effect only at some later use of the log, or never.
	Delayed float64
	// Refused is how often an append is refused for nothing (another write in flight); Replicated only.
	Refused float64
	// Full is how often an append is refused for want of space.
	Full float64
	// ReadFails is how often a read fails.
	ReadFails float64
	// Stale is how often a read or the head does not show the newest commits yet.
	Stale float64
}

// NewFaultLog returns a connection to inner.
func NewFaultLog(inner *MemoryLog, options FaultOptions, chance *rand.Rand) *FaultLog {
	return &FaultLog{inner: inner, options: options, chance: chance}
}

// Heal ends all faults. What is delayed stays delayed until Arrive.
func (l *FaultLog) Heal() { l.options = FaultOptions{Replicated: l.options.Replicated} }

// Arrive lets each delayed append take effect now, with a probability of one half.
func (l *FaultLog) Arrive() {
	rest := l.delayed[:0]
	for _, p := range l.delayed {
		if l.chance.IntN(2) == 0 {
			p.arrive(l)
		} else {
			rest = append(rest, p)
		}
	}
	clear(l.delayed[len(rest):])
	l.delayed = rest
}

func (l *FaultLog) happens(rate float64) bool { return rate > 0 && l.chance.Float64() < rate }

// faultPending is an append whose outcome the connection decides.
type faultPending struct {
	record  Record
	arrived bool
	outcome error
	ackLost bool
}

func (p *faultPending) arrive(l *FaultLog) {
	p.arrived = true
	p.outcome = l.store(p.record)
}

// Wait returns the outcome, or that it is unknown; it never blocks.
func (p *faultPending) Wait(context.Context) error {
	if !p.arrived || p.ackLost {
		return ErrUnknownOutcome
	}
	return p.outcome
}

// Done is closed: Wait does not block.
func (p *faultPending) Done() <-chan struct{} { return closedChannel }

// store is what the stream does with an append that reaches it.
func (l *FaultLog) store(record Record) error {
	if l.options.Replicated {
		if stored, ok := l.inner.stored(record.Number); ok && stored.Hash == record.Hash {
			return nil // Recognised by its message id.
		}
		// It does not check the chain: whatever it finds at the head will do.
		record.Prev = l.inner.Position().Hash
	}
	return l.inner.append(record)
}

// Append meets one of the fates that FaultOptions lists.
func (l *FaultLog) Append(record Record) Pending {
	l.Arrive()
	p := &faultPending{record: record}
	switch {
	case l.happens(l.options.Lost):
	case l.happens(l.options.Delayed):
		l.delayed = append(l.delayed, p)
	case l.happens(l.options.Full):
		p.arrived, p.outcome = true, ErrLogFull
	case l.options.Replicated && l.happens(l.options.Refused):
		p.arrived, p.outcome = true, ErrConflict
	default:
		p.arrive(l)
		p.ackLost = l.happens(l.options.AckLost)
	}
	return p
}

// ChecksChain reports what the stream does: an unreplicated one checks the hash that an append follows.
func (l *FaultLog) ChecksChain() bool { return !l.options.Replicated }

var errInjected = errors.New("injected fault")

// Read may fail, or not see the commit yet.
func (l *FaultLog) Read(ctx context.Context, number uint64) (Record, error) {
	l.Arrive()
	switch {
	case l.happens(l.options.ReadFails):
		return Record{}, errInjected
	case l.happens(l.options.Stale):
		return Record{}, ErrNoCommit
	}
	return l.inner.Read(ctx, number)
}

// Head may be behind.
func (l *FaultLog) Head(ctx context.Context) (uint64, error) {
	l.Arrive()
	if l.happens(l.options.ReadFails) {
		return 0, errInjected
	}
	head, err := l.inner.Head(ctx)
	if err == nil && head > 0 && l.happens(l.options.Stale) {
		head = l.chance.Uint64N(head + 1)
	}
	return head, err
}

// Size says how much the log holds, or fails.
func (l *FaultLog) Size(ctx context.Context) (LogSize, error) {
	l.Arrive()
	if l.happens(l.options.ReadFails) {
		return LogSize{}, errInjected
	}
	return l.inner.Size(ctx)
}

// Follow reads from number on.
func (l *FaultLog) Follow(ctx context.Context, number uint64) (Cursor, error) {
	l.Arrive()
	if l.happens(l.options.ReadFails) {
		return nil, errInjected
	}
	return l.inner.Follow(ctx, number)
}
