package eventstore

import "time"

// A Machine is the deterministic state that a lane's writer decides with. Q is what is asked, A what is answered.
// The writer calls it from one goroutine. It keeps two layers: what was applied (durable, with its position in the
// same batch) and what was decided on top of that but is not acknowledged yet (speculation).
type Machine[Q, A any] interface {
	// Position returns the newest applied commit.
	Position() Position
	// Reached returns the newest commit that any part of the durable state holds: Position, or later when parts are written at
	// different times and those behind are brought up by applying the commits in between once more.
	Reached() Position
	// LogTime returns that newest commit's time, the zero time before the first.
	LogTime() time.Time
	// Decide answers one question against everything decided so far, acknowledged or not, and takes its events
	// into the speculative state. at is the log time of the commit that is being built.
	Decide(question Q, at time.Time) Decision[A]
	// Due returns how the log time itself moves the state, for example deadlines that at has passed: events
	// decided like any other, at most limit of them, nil when nothing is due.
	Due(at time.Time, limit int) []Event
	// Apply takes an acknowledged commit into the state; next is the position after it. Commits that this machine
	// decided itself come back here in order, and leave the speculative layer. The error is a fault of the storage, or
	// says that the commit holds something that the machine does not know.
	Apply(commit *Commit, next Position) error
	// Flush writes what was applied, with the position, in one step. Between Apply and Flush nothing else is called.
	Flush() error
	// Rollback drops everything that was decided and not applied.
	Rollback()
}

// A Decision is what a machine says to one question.
type Decision[A any] struct {
	// Events to append, in order. None for a refusal, a repetition or a read.
	Events []Event
	// Answer makes the reply, on the lane's goroutine, once every commit that the decision rests on is durable and
	// applied. commit is the one that carries Events; when there are none, the newest one decided before.
	Answer func(commit uint64, at time.Time) A
}

// A Clock tells the time; a lane turns it into log time.
type Clock func() time.Time

// Observer is told of every commit that became durable and was applied, in order, on the lane's goroutine.
type Observer func(commit *Commit, at Position)
