package room

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/gateway/replicas"
)

const (
	// UsesBucket has who has used a turn, by campaign and user, where gateways share that through NATS. It is in memory: it is worth as much as the
	// campaign lasts, and no fsync of the log's disk.
	UsesBucket = "WEIR-ROOM"
	// usesAgeMax is how long a use is remembered, and usesBytesMax bounds all of them: for a million buyers. What does not fit is as if NATS were away.
	usesAgeMax   = 7 * 24 * time.Hour
	usesBytesMax = 256 << 20
	// usesTriesMax bounds the tries to change one user's use, which only that user's other requests change meanwhile.
	usesTriesMax = 8
)

// NewNATSUses has gateways share who has used a turn through NATS. The bucket is opened when it is needed: the server may be away.
func NewNATSUses(js jetstream.JetStream) Uses { return &natsUses{js: js} }

type natsUses struct {
	js     jetstream.JetStream
	bucket atomic.Pointer[jetstream.KeyValue]
}

// A storedUse is the value of a key.
type storedUse struct {
	Order string `json:"order"`
	At    int64  `json:"at"`
	Open  int64  `json:"open"`
}

// errBusy says that one user's use was changed again and again.
var errBusy = errors.New("it was changed too often meanwhile")

func (u *natsUses) open(ctx context.Context) (jetstream.KeyValue, error) {
	if opened := u.bucket.Load(); opened != nil {
		return *opened, nil
	}
	bucket, err := u.js.KeyValue(ctx, UsesBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		if err = u.create(ctx); err == nil {
			bucket, err = u.js.KeyValue(ctx, UsesBucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", UsesBucket, err)
	}
	u.bucket.Store(&bucket)
	return bucket, nil
}

// UsesStream is the stream that JetStream keeps the bucket in.
const UsesStream = "KV_" + UsesBucket

// create makes what the client makes of a bucket, save that the leader alone answers reads: a replica that is behind would say that nobody has used
// a turn, or who has given it back that he has it.
func (u *natsUses) create(ctx context.Context) error {
	copies, err := replicas.OfNodes(ctx, u.js)
	if err != nil {
		return err
	}
	_, err = u.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: UsesStream, Description: "Weir: turns of waiting rooms that were used", Subjects: []string{"$KV." + UsesBucket + ".>"},
		Storage: jetstream.MemoryStorage, Replicas: copies, MaxAge: usesAgeMax, MaxBytes: usesBytesMax,
		MaxMsgsPerSubject: 1, MaxMsgSize: -1, MaxMsgs: -1, MaxConsumers: -1,
		Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true, Duplicates: 2 * time.Minute,
	})
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return nil // Another gateway was quicker.
	}
	return err
}

// change makes of a use what decide says, if nobody else changes it at that moment; then it looks again. decide is given the zero value for none, and
// returns false to leave it as it is.
func (u *natsUses) change(ctx context.Context, use Use, decide func(storedUse) (storedUse, bool)) error {
	bucket, err := u.open(ctx)
	if err != nil {
		return err
	}
	key := strings.ReplaceAll(use.Key, ":", ".")
	for range usesTriesMax {
		var has storedUse
		revision := uint64(0)
		found, err := bucket.Get(ctx, key)
		switch {
		case errors.Is(err, jetstream.ErrKeyNotFound):
		case err != nil:
			return u.lost(err)
		default:
			revision = found.Revision()
			if err := json.Unmarshal(found.Value(), &has); err != nil {
				return fmt.Errorf("read key %s of bucket %s: %w", key, UsesBucket, err)
			}
		}
		next, changes := decide(has)
		if !changes {
			return nil
		}
		if err = u.write(ctx, bucket, key, revision, next); err == nil {
			return nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) && !errors.Is(err, jetstream.ErrKeyNotFound) && !isConflict(err) {
			return u.lost(err)
		}
	}
	return fmt.Errorf("key %s of bucket %s: %w", key, UsesBucket, errBusy)
}

// lost forgets the bucket after an error: a server that was started again has none.
func (u *natsUses) lost(err error) error {
	if !errors.Is(err, context.Canceled) {
		u.bucket.Store(nil)
	}
	return fmt.Errorf("bucket %s: %w", UsesBucket, err)
}

func (u *natsUses) write(ctx context.Context, bucket jetstream.KeyValue, key string, revision uint64, next storedUse) error {
	value, err := json.Marshal(next)
	if err != nil {
		panic(fmt.Sprintf("room: bug: a use does not become JSON: %v", err))
	}
	switch {
	case next.Open <= 0:
		return bucket.Delete(ctx, key, jetstream.LastRevision(revision))
	case revision == 0:
		_, err = bucket.Create(ctx, key, value)
	default:
		_, err = bucket.Update(ctx, key, value, revision)
	}
	return err
}

// isConflict is whether a write came after another one.
func isConflict(err error) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && (refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) // Replicated streams use this one.
}

// Take implements Uses.
func (u *natsUses) Take(ctx context.Context, use Use) (taken bool, err error) {
	err = u.change(ctx, use, func(has storedUse) (storedUse, bool) {
		taken = true
		switch {
		case has.Order == use.Order:
			has.Open++
			return has, true
		case has.Order != "" && use.Entered <= has.At:
			taken = false
			return has, false
		}
		return storedUse{Order: use.Order, At: use.Now, Open: 1}, true
	})
	return taken && err == nil, err
}

// GiveBack implements Uses.
func (u *natsUses) GiveBack(ctx context.Context, use Use) error {
	return u.change(ctx, use, func(has storedUse) (storedUse, bool) {
		if has.Order != use.Order {
			return has, false
		}
		has.Open--
		return has, true
	})
}
