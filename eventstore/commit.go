// Package eventstore is a general event-sourcing library on NATS JetStream: topology, log, lane writer, fence,
// codec and chain. It does not know orders.
//
// The log of one lane is a hash chain of commits. One commit is one JetStream message: everything that one group
// commit decided. Per lane, commit numbers are contiguous and the chain holds (I2).
package eventstore

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"
)

// A Commit is everything that one group commit of one lane decided.
type Commit struct {
	// Lane that wrote it, counted from 0.
	Lane uint32
	// Number in the lane, counted from 1 without a gap. It equals the stream sequence.
	Number uint64
	// Epoch is the number of the LaneOpened commit under which its writer held the lane.
	Epoch uint64
	// Time is log time. It never goes back within a lane.
	Time time.Time
	// PrevHash is the hash of the previous commit's bytes, or GenesisHash for number 1.
	PrevHash Hash
	// Events in the order in which they were decided.
	Events []Event
}

// An Event is the envelope of one event. What its payload means is the business of whoever decided it.
type Event struct {
	// Partition of the key, 0 to 1023.
	Partition uint32
	// UserID is the user whose aggregate this is, or the caller. Empty for the lane's own events.
	UserID string
	// AggregateID names what changed.
	AggregateID string
	// RequestID names the request that asked for it; empty when no request did.
	RequestID string
	// Fingerprint identifies the request's body; empty when no request asked.
	Fingerprint []byte
	// CausationID says what led to it when no request did.
	CausationID string
	// Type is the name of the event, for example "OrderPlaced".
	Type string
	// Version of the payload's meaning, counted from 1.
	Version uint32
	// Payload is the encoded event.
	Payload []byte
}

// Hash is the SHA-256 of a commit's bytes.
type Hash [sha256.Size]byte

// HashOf returns the hash of an encoded commit.
func HashOf(data []byte) Hash { return sha256.Sum256(data) }

// String returns the hash in hexadecimal; it is the commit's Nats-Msg-Id.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash reads what String writes.
func ParseHash(text string) (Hash, error) {
	var h Hash
	data, err := hex.DecodeString(text)
	if err != nil || len(data) != len(h) {
		return h, fmt.Errorf("%q is not a hash: want %d hexadecimal digits", text, 2*len(h))
	}
	copy(h[:], data)
	return h, nil
}

// GenesisHash is what the first commit of a lane chains to. It binds the chain to its lane and to the number of lanes.
func GenesisHash(lane, lanes uint32) Hash {
	return sha256.Sum256([]byte("weir genesis lane " + strconv.Itoa(int(lane)) + " of " + strconv.Itoa(int(lanes))))
}

// TypeLaneOpened is the type of the event that fences a lane. Its payload is a weir.log.v1.LaneOpened.
const TypeLaneOpened = "LaneOpened"

// A Position is a place in a lane's chain: the newest commit that was taken in, and its hash.
type Position struct {
	// Number of the newest commit, 0 before the first.
	Number uint64
	// Hash of that commit's bytes, GenesisHash before the first.
	Hash Hash
}

// Genesis is the position before a lane's first commit.
func Genesis(lane, lanes uint32) Position { return Position{Hash: GenesisHash(lane, lanes)} }

// Check reports whether the entry is the one that follows p in its chain (I2). It returns a *ChainError if not.
func (p Position) Check(c *Commit, lane uint32) error {
	switch {
	case c.Lane != lane:
		return &ChainError{Lane: lane, Number: p.Number + 1, Reason: fmt.Sprintf("the commit says lane %d", c.Lane)}
	case c.Number != p.Number+1:
		return &ChainError{Lane: lane, Number: p.Number + 1, Reason: fmt.Sprintf("found number %d instead", c.Number)}
	case c.PrevHash != p.Hash:
		return &ChainError{Lane: lane, Number: c.Number, Reason: fmt.Sprintf("it follows %.12s…, but commit %d is %.12s…", c.PrevHash, p.Number, p.Hash)}
	}
	return nil
}

// CheckAt is Check, and that the commit is the one that at speaks of.
func (p Position) CheckAt(c *Commit, at Position, lane uint32) error {
	if err := p.Check(c, lane); err != nil {
		return err
	}
	if at.Number != c.Number {
		return &ChainError{Lane: lane, Number: at.Number, Reason: fmt.Sprintf("the commit says number %d", c.Number)}
	}
	return nil
}

// A ChainError says that a lane's log has a gap or does not match itself (I2). It is never a passing fault.
type ChainError struct {
	Lane   uint32
	Number uint64
	Reason string
}

func (e *ChainError) Error() string {
	return fmt.Sprintf("log of lane %d is damaged at commit %d: %s; restore the log from a backup, or inspect it with 'weir log verify'", e.Lane, e.Number, e.Reason)
}
