package eventstore

import (
	"context"
	"errors"
)

// A Log keeps the commits of one lane. Implementations: JetStream, memory, and a fault-injecting wrapper; all
// satisfy one contract suite. Methods may be called by several goroutines, but only one lane writer appends.
type Log interface {
	// Append offers the record as commit number record.Number, on condition that the log's newest commit is
	// record.Number-1 and, where ChecksChain says so and unless record.Unchained, that its hash is record.Prev. It does not wait: the outcome is
	// had from the Pending. Appends reach the log in call order.
	Append(record Record) Pending
	// ChecksChain reports whether Append's condition covers record.Prev. A log that does not check it must not be
	// given a second append before the first one's outcome is known: the first may be refused because another
	// writer's commit took its number, and the second would then find the number that it expects.
	// The answer may change while the log is open, once, from true to false (see Upgrade); each Head renews it, and a log for
	// which it may change looks now and then.
	ChecksChain() bool
	// Read returns the commit at number, or ErrNoCommit.
	Read(ctx context.Context, number uint64) (Record, error)
	// Head returns the number of the newest commit, 0 for an empty log. It is a hint: a stale replica may answer.
	Head(ctx context.Context) (uint64, error)
	// Size says how much the log holds. It is a hint, as Head is.
	Size(ctx context.Context) (LogSize, error)
	// Follow reads every commit from number on, in order, and then waits for new ones.
	// REQUIRES: number ≥ 1. The caller closes the cursor.
	Follow(ctx context.Context, number uint64) (Cursor, error)
}

// A Record is one encoded commit.
type Record struct {
	// Number of the commit.
	Number uint64
	// Hash of Data. A log that reads from elsewhere has checked it.
	Hash Hash
	// Prev is the hash of the commit before, which Data chains to. Readers may leave it zero.
	Prev Hash
	// Unchained has Append state the number alone: for a commit that is alone under way, on a log whose rule may just change.
	Unchained bool
	// Data is the encoded commit. Nobody changes it.
	Data []byte
	// Stored is how many bytes LogSize counts for it: Data and what is kept with it. A log sets it that was read; whoever appends may
	// leave it zero.
	Stored int
	// Headers for people who look at the stream; may be nil. Not part of the chain.
	Headers map[string]string
	// decoded is what Data says, if somebody has decoded it for all who read together.
	decoded *Commit
}

// Commit returns what the record says. Others may have the same commit: nobody changes it.
func (r *Record) Commit() (*Commit, error) {
	if r.decoded != nil {
		return r.decoded, nil
	}
	return DecodeCommit(r.Data)
}

// A LogSize says how much a log holds: the commits First to Head.
type LogSize struct {
	// First and Head are the numbers of the oldest commit that is there and of the newest; Head is 0 for an empty log.
	First, Head uint64
	// Bytes are the sum of their Stored.
	Bytes uint64
}

// Pending is an append on its way.
type Pending interface {
	// Wait blocks until the outcome is known or ctx ends. It returns
	// nil: the commit is durable at its number (also when it had been stored before);
	// ErrConflict: it was refused, the log's head is not number-1 (or another write is in flight);
	// ErrUnknownOutcome: it may or may not be stored (timeout, lost connection, ctx ended);
	// ErrLogFull: it was refused for want of space, nothing is stored;
	// any other error: it was refused for good and is not stored.
	Wait(ctx context.Context) error
	// Done is closed when Wait would not block.
	Done() <-chan struct{}
}

// Cursor reads a lane in order.
type Cursor interface {
	// Next returns the next commit. It blocks until there is one or ctx ends.
	// A gap in the numbers is a *ChainError.
	Next(ctx context.Context) (Record, error)
	// Buffered returns how many commits Next can return at once without waiting; a hint for batching.
	Buffered() int
	// Close releases the cursor.
	Close()
}

// The outcomes of an append and a read that a caller acts on.
var (
	// ErrConflict: the log's head is not the one that the append expected.
	ErrConflict = errors.New("the log's head is not the expected one")
	// ErrUnknownOutcome: the append may or may not be stored.
	ErrUnknownOutcome = errors.New("append outcome unknown")
	// ErrLogAway comes with ErrUnknownOutcome: nobody takes appends now, as while a stream elects its leader. This attempt was not stored;
	// an earlier one with the same bytes may have been.
	ErrLogAway = errors.New("nobody takes appends to the log now")
	// ErrLogFull: the log has no room; nothing was stored.
	ErrLogFull = errors.New("the log is full")
	// ErrNoCommit: there is no commit at that number.
	ErrNoCommit = errors.New("no such commit")
)
