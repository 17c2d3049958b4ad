package eventstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// ReactorPositions keeps how far each reactor is on each lane in a bucket beside the log, for whichever node runs it next. It may be
// behind, and never goes back. Its methods may be called by any number of goroutines.
type ReactorPositions struct{ bucket jetstream.KeyValue }

// A ReactorPosition is how far a reactor is on a lane.
type ReactorPosition struct {
	Position
	// At is the log time of the commit.
	At time.Time
	// Life tells apart reactors that had one name after each other: a later one's sorts after an earlier one's.
	Life string
}

const (
	reactorsBucket = "WEIR-REACTORS"
	// positionAttemptsMax bounds the attempts to store a position while other nodes store theirs.
	positionAttemptsMax = 8
)

// OpenReactorPositions opens the bucket, and makes it when there is none: positions that are lost make reactors repeat what they did.
func OpenReactorPositions(ctx context.Context, nc *nats.Conn, replicas int) (positions *ReactorPositions, err error) {
	err = whenLed(ctx, nc, "KV_"+reactorsBucket, func(ctx context.Context) (err error) {
		positions, err = openReactorPositions(ctx, nc, replicas)
		return err
	})
	return positions, err
}

func openReactorPositions(ctx context.Context, nc *nats.Conn, replicas int) (*ReactorPositions, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", reactorsBucket, err)
	}
	bucket, err := js.KeyValue(ctx, reactorsBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: reactorsBucket, Description: "Weir: how far reactors are", Storage: jetstream.FileStorage, Replicas: max(1, replicas),
		})
		if errors.Is(err, jetstream.ErrBucketExists) { // Another node was quicker.
			bucket, err = js.KeyValue(ctx, reactorsBucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", reactorsBucket, err)
	}
	return &ReactorPositions{bucket: bucket}, nil
}

// positionRecord is a position as it is stored.
type positionRecord struct {
	Number uint64    `json:"number"`
	Hash   string    `json:"hash"`
	At     time.Time `json:"at"`
	Life   string    `json:"life,omitempty"`
}

func positionKey(reactor string, lane uint32) string { return fmt.Sprintf("%s/%02d", reactor, lane) }

// Load returns the position of a reactor on a lane; found is false when there is none.
// REQUIRES: reactor has only characters of a-z 0-9 - / . and neither begins nor ends with a point.
func (p *ReactorPositions) Load(ctx context.Context, reactor string, lane uint32) (at ReactorPosition, found bool, err error) {
	at, _, found, err = p.load(ctx, reactor, lane)
	return at, found, err
}

func (p *ReactorPositions) load(ctx context.Context, reactor string, lane uint32) (at ReactorPosition, revision uint64, found bool, err error) {
	fail := func(err error) (ReactorPosition, uint64, bool, error) {
		return ReactorPosition{}, 0, false, fmt.Errorf("read the position of reactor %s on lane %d: %w", reactor, lane, err)
	}
	entry, err := p.bucket.Get(ctx, positionKey(reactor, lane))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return ReactorPosition{}, 0, false, nil
	}
	if err != nil {
		return fail(err)
	}
	var record positionRecord
	if err := json.Unmarshal(entry.Value(), &record); err != nil {
		return fail(err)
	}
	hash, err := hex.DecodeString(record.Hash)
	if err != nil || len(hash) != len(at.Hash) {
		return fail(fmt.Errorf("%q is not a hash", record.Hash))
	}
	at = ReactorPosition{Position: Position{Number: record.Number, Hash: Hash(hash)}, At: record.At, Life: record.Life}
	return at, entry.Revision(), true, nil
}

// before reports whether a position is earlier than another.
func (p *ReactorPosition) before(other *ReactorPosition) bool {
	if p.Life != other.Life {
		return p.Life < other.Life
	}
	return p.Number < other.Number
}

// Store stores a position, unless the bucket has a later one. Reactors as with Load.
func (p *ReactorPositions) Store(ctx context.Context, reactor string, lane uint32, at ReactorPosition) error {
	value, err := json.Marshal(positionRecord{Number: at.Number, Hash: at.Hash.String(), At: at.At, Life: at.Life})
	if err != nil {
		return err
	}
	for attempt := range positionAttemptsMax {
		stored, revision, found, err := p.load(ctx, reactor, lane)
		if err != nil {
			return err
		}
		if found && !stored.before(&at) {
			return nil
		}
		if _, err = p.bucket.Update(ctx, positionKey(reactor, lane), value, revision); err == nil {
			return nil
		}
		if !isWrongLast(err) {
			return fmt.Errorf("store the position of reactor %s on lane %d: %w", reactor, lane, err)
		}
		if err := pause(ctx, time.Duration(attempt)*userKeyPause); err != nil {
			return err
		}
	}
	return fmt.Errorf("store the position of reactor %s on lane %d: others stored theirs, %d attempts", reactor, lane, positionAttemptsMax)
}
