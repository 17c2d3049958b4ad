package eventstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Blobs keep large values beside the log, in an object store: checkpoints of nodes' states. What they hold can be made again from
// the log. Its methods may be called by any number of goroutines.
type Blobs struct{ objects jetstream.ObjectStore }

const blobsBucket = "WEIR-CHECKPOINTS"

// OpenBlobs opens the object store, and makes it when it is not there. Replicas count when it is made; 0 means 1.
func OpenBlobs(ctx context.Context, nc *nats.Conn, replicas int) (blobs *Blobs, err error) {
	err = whenLed(ctx, nc, "OBJ_"+blobsBucket, func(ctx context.Context) (err error) {
		blobs, err = openBlobs(ctx, nc, replicas)
		return err
	})
	return blobs, err
}

func openBlobs(ctx context.Context, nc *nats.Conn, replicas int) (*Blobs, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open the object store of checkpoints: %w", err)
	}
	objects, err := js.ObjectStore(ctx, blobsBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		objects, err = js.CreateObjectStore(ctx, jetstream.ObjectStoreConfig{
			Bucket: blobsBucket, Description: "Weir: copies of nodes' states", Storage: jetstream.FileStorage, Replicas: max(1, replicas),
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			objects, err = js.ObjectStore(ctx, blobsBucket) // Another node was quicker.
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open the object store of checkpoints: %w", err)
	}
	return &Blobs{objects}, nil
}

// Put stores what it reads under a name, whole or not at all.
func (b *Blobs) Put(ctx context.Context, name string, from io.Reader) error {
	if _, err := b.objects.Put(ctx, jetstream.ObjectMeta{Name: name}, from); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

// Get opens what is stored under a name; reading it to its end checks its digest. The caller closes it.
func (b *Blobs) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	object, err := b.objects.Get(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return object, nil
}

// Names returns the names of what is stored, in order.
func (b *Blobs) Names(ctx context.Context) ([]string, error) {
	infos, err := b.objects.List(ctx)
	if errors.Is(err, jetstream.ErrNoObjectsFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the object store of checkpoints: %w", err)
	}
	var names []string
	for _, info := range infos {
		names = append(names, info.Name)
	}
	slices.Sort(names)
	return names, nil
}

// Remove removes what is stored under a name.
func (b *Blobs) Remove(ctx context.Context, name string) error {
	if err := b.objects.Delete(ctx, name); err != nil && !errors.Is(err, jetstream.ErrObjectNotFound) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}
