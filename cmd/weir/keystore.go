package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// keyBucket is the KV bucket of the users' wrapped keys. It lies beside the log and not in it: a key that is destroyed is
// gone, and what was sealed with it stays unreadable.
const keyBucket = "WEIR-USER-KEYS"

// A keyStore keeps the users' wrapped keys in a KV bucket. It implements sealing.KeyStore.
type keyStore struct{ bucket jetstream.KeyValue }

// openKeyStore opens the bucket, or makes it with as many replicas as the log's streams have.
func openKeyStore(ctx context.Context, nc *nats.Conn, replicas int) (*keyStore, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open the users' keys: %w", err)
	}
	bucket, err := js.KeyValue(ctx, keyBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: keyBucket, Description: "Weir: the users' wrapped keys", History: 1, Storage: jetstream.FileStorage, Replicas: max(1, replicas),
		})
	}
	if err != nil {
		return nil, fmt.Errorf("open the users' keys: %w", err)
	}
	return &keyStore{bucket: bucket}, nil
}

// Get implements sealing.KeyStore.
func (k *keyStore) Get(ctx context.Context, userID string) ([]byte, bool, error) {
	entry, err := k.bucket.Get(ctx, userID)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("read the key of user %s: %w", userID, err)
	}
	return entry.Value(), true, nil
}

// Create implements sealing.KeyStore.
func (k *keyStore) Create(ctx context.Context, userID string, wrapped []byte) ([]byte, error) {
	_, err := k.bucket.Create(ctx, userID, wrapped)
	if err == nil {
		return wrapped, nil
	}
	if !errors.Is(err, jetstream.ErrKeyExists) {
		// The outcome may be unknown: whatever is stored by now counts.
		if stored, found, getErr := k.Get(ctx, userID); getErr == nil && found {
			return stored, nil
		}
		return nil, fmt.Errorf("store a key for user %s: %w", userID, err)
	}
	stored, found, err := k.Get(ctx, userID)
	if err == nil && !found {
		err = fmt.Errorf("the key of user %s came and went", userID)
	}
	return stored, err
}
