package eventstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// UserKeys keeps one small secret value per user in a bucket beside the log: wrapped data keys. The log never holds them, so
// what was sealed under one can be made unreadable for ever by deleting it. Its methods may be called by any number of
// goroutines.
type UserKeys struct {
	js     jetstream.JetStream
	bucket jetstream.KeyValue
	stream jetstream.Stream
}

const (
	userKeysBucket = "WEIR-USER-KEYS"
	userKeysStream = "KV_" + userKeysBucket
	// userKeyBytesMax is above the size of a wrapped key.
	userKeyBytesMax = 1024
	// userKeyAttempts bounds the attempts to create a key while another caller's is on its way: a replicated bucket refuses
	// the later of two writes before the earlier one can be read.
	userKeyAttempts = 10
	// userKeyPause is the pause before the second attempt; it doubles with each.
	userKeyPause = 5 * time.Millisecond
	// userKeyMax bounds how long a value is asked for, or stored, while no server answers.
	userKeyMax = 5 * time.Second
)

// UserKeysOptions configure OpenUserKeys. Topology is required.
type UserKeysOptions struct {
	// Topology of the log. Once a lane has a commit, a missing bucket is not made anew.
	Topology Topology
	// Replicas of the bucket when it is made; 0 means 1.
	Replicas int
}

// A MissingKeysError says that the bucket of user keys is gone while the log has commits: whatever was sealed under
// them would be lost without a word.
type MissingKeysError struct{ Lane uint32 }

func (e *MissingKeysError) Error() string {
	return fmt.Sprintf("the bucket %s is missing, though lane %d has commits; restore it from a backup", userKeysBucket, e.Lane)
}

// OpenUserKeys opens the bucket, and makes it before the log has its first commit. It may be stopped at any point and
// called again. It is called after Provision and before the lanes open.
func OpenUserKeys(ctx context.Context, nc *nats.Conn, options UserKeysOptions) (keys *UserKeys, err error) {
	err = whenLed(ctx, nc, userKeysStream, func(ctx context.Context) (err error) {
		keys, err = openUserKeys(ctx, nc, options)
		return err
	})
	return keys, err
}

func openUserKeys(ctx context.Context, nc *nats.Conn, options UserKeysOptions) (*UserKeys, error) {
	fail := func(err error) (*UserKeys, error) { return nil, fmt.Errorf("open the bucket of user keys: %w", err) }
	js, err := jetstream.New(nc)
	if err != nil {
		return fail(err)
	}
	if _, err = js.KeyValue(ctx, userKeysBucket); errors.Is(err, jetstream.ErrBucketNotFound) {
		for lane := range options.Topology.Lanes {
			info, err := streamInfo(ctx, nc, provisionRequestMax, lane)
			if err != nil {
				return fail(err)
			}
			if info.State.LastSeq > 0 {
				return nil, &MissingKeysError{Lane: lane}
			}
		}
		_, err = js.CreateStream(ctx, userKeysConfig(max(1, options.Replicas)))
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			err = nil // Another node was quicker.
		}
	}
	if err != nil {
		return fail(err)
	}
	if err := sealUserKeys(ctx, nc, js); err != nil {
		return fail(err)
	}
	bucket, err := js.KeyValue(ctx, userKeysBucket) // Again: whether it reads from the leader is looked up here.
	if err != nil {
		return fail(err)
	}
	stream, err := js.Stream(ctx, userKeysStream)
	if err != nil {
		return fail(err)
	}
	return &UserKeys{js: js, bucket: bucket, stream: stream}, nil
}

// userKeysConfig is what the client makes of a bucket with a history of 1, save that single messages may be deleted: only
// so does the server overwrite a value on its disk.
func userKeysConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: userKeysStream, Description: "Weir: wrapped data keys of users" + beingCreated,
		Subjects: []string{userKeySubject(">")}, Storage: jetstream.FileStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, MaxMsgSize: userKeyBytesMax, MaxMsgs: -1, MaxBytes: -1, MaxConsumers: -1,
		Discard: jetstream.DiscardNew, AllowRollup: true, Duplicates: 2 * time.Minute,
	}
}

func userKeySubject(userID string) string { return "$KV." + userKeysBucket + "." + userID }

// sealUserKeys has the server write the new bucket's settings down once more (see provision.seal), and has it answer
// reads from the leader alone: a replica that is behind would say that a user has no key.
func sealUserKeys(ctx context.Context, nc *nats.Conn, js jetstream.JetStream) error {
	stream, err := js.Stream(ctx, userKeysStream)
	if err != nil {
		return err
	}
	config := stream.CachedInfo().Config
	if config.AllowDirect {
		config.AllowDirect, config.MirrorDirect = false, false
		if _, err := js.UpdateStream(ctx, config); err != nil {
			return err
		}
	}
	return (&provision{nc: nc, js: js, reached: provisionReached}).seal(ctx, userKeysStream)
}

// Get returns the user's value; found is false when there is none, or none any more.
// REQUIRES: userID has only characters of A-Z a-z 0-9 _ -.
func (k *UserKeys) Get(ctx context.Context, userID string) (value []byte, found bool, err error) {
	var entry jetstream.KeyValueEntry
	err = k.answered(ctx, func(ctx context.Context) (err error) {
		entry, err = k.bucket.Get(ctx, userID)
		return err
	})
	if errors.Is(err, jetstream.ErrKeyNotFound) || errors.Is(err, jetstream.ErrKeyDeleted) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read user key: %w", err)
	}
	return entry.Value(), true, nil
}

// answered does something with the bucket that may be done again, and again when no answer comes, for userKeyMax at most.
func (k *UserKeys) answered(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, userKeyMax)
	defer cancel()
	return untilAnswered(ctx, userKeyMax, do)
}

// Used reports whether the bucket holds a value of any user, or the mark that one was erased.
func (k *UserKeys) Used(ctx context.Context) (bool, error) {
	status, err := k.bucket.Status(ctx)
	if err != nil {
		return false, fmt.Errorf("look into the bucket of user keys: %w", err)
	}
	return status.Values() > 0, nil
}

// Each calls each with every user's value. What is made or erased meanwhile may be among them or not.
func (k *UserKeys) Each(ctx context.Context, each func(userID string, value []byte) error) error {
	watcher, err := k.bucket.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return fmt.Errorf("read the user keys: %w", err)
	}
	defer func() { _ = watcher.Stop() }() // The subscription ends with the connection at the latest.
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case entry, open := <-watcher.Updates():
			switch {
			case !open:
				return errors.New("read the user keys: the subscription ended")
			case entry == nil: // The end of what was there.
				return nil
			}
			if err := each(entry.Key(), entry.Value()); err != nil {
				return err
			}
		}
	}
}

// Create stores a value for a user who has none, and returns the one that is stored: of several callers at once, all
// get the same. Users as with Get.
func (k *UserKeys) Create(ctx context.Context, userID string, value []byte) (stored []byte, err error) {
	for attempt := range userKeyAttempts {
		err := k.answered(ctx, func(ctx context.Context) error { // Of two attempts that both arrive, the second finds the first one's value.
			_, err := k.bucket.Create(ctx, userID, value)
			return err
		})
		if err == nil {
			return value, nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) && !isWrongLast(err) {
			return nil, fmt.Errorf("create user key: %w", err)
		}
		stored, found, err := k.Get(ctx, userID)
		if err != nil || found {
			return stored, err
		}
		if err := pause(ctx, userKeyPause<<attempt); err != nil {
			return nil, fmt.Errorf("create user key: %w", err)
		}
	}
	return nil, fmt.Errorf("create user key: other callers were quicker, and nothing is stored after %d attempts", userKeyAttempts)
}

// Erase destroys the user's value if it is still this one, and tells those who watch. The server overwrites it on its disk
// before it answers. It may be stopped at any point and called again. Users as with Get.
//
// Two copies are out of its reach: the server of a replicated bucket keeps what was written in its Raft log until it compacts
// that, and a bucket that an older program made does not allow to overwrite, so the bytes stay until their block is
// compacted. Both hold a key that only the master key unwraps.
func (k *UserKeys) Erase(ctx context.Context, userID string, value []byte) error {
	entry, err := k.bucket.Get(ctx, userID)
	switch {
	case errors.Is(err, jetstream.ErrKeyDeleted):
		return nil
	case errors.Is(err, jetstream.ErrKeyNotFound): // Stopped before the mark was made, or never there.
		return k.markErased(ctx, userID)
	case err != nil:
		return fmt.Errorf("erase user key: %w", err)
	case !bytes.Equal(entry.Value(), value):
		return nil
	}
	if k.stream.CachedInfo().Config.DenyDelete {
		err = k.bucket.Purge(ctx, userID, jetstream.LastRevision(entry.Revision()))
		if err != nil && !isWrongLast(err) { // Another caller was quicker.
			return fmt.Errorf("erase user key: %w", err)
		}
		return nil
	}
	// By its number, which is no other value's.
	if err := k.stream.SecureDeleteMsg(ctx, entry.Revision()); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		if _, found, getErr := k.Get(ctx, userID); getErr != nil || found { // Another caller may have been quicker.
			return fmt.Errorf("erase user key: %w", err)
		}
	}
	return k.markErased(ctx, userID)
}

// markErased leaves the mark of an erased value where there is no value.
func (k *UserKeys) markErased(ctx context.Context, userID string) error {
	mark := nats.NewMsg(userKeySubject(userID))
	mark.Header.Set("KV-Operation", "PURGE")
	mark.Header.Set("Nats-Rollup", "sub")
	_, err := k.js.PublishMsg(ctx, mark, jetstream.WithExpectLastSequencePerSubject(0))
	if err != nil && !isWrongLast(err) { // There is a mark, or a new value.
		return fmt.Errorf("mark a user key as erased: %w", err)
	}
	return nil
}

// Watch calls changed for every value that is made or erased from now on, with nil for an erased one, until ctx ends. It is
// called from one goroutine and does not block.
func (k *UserKeys) Watch(ctx context.Context, changed func(userID string, value []byte)) error {
	watcher, err := k.bucket.WatchAll(ctx, jetstream.UpdatesOnly())
	if err != nil {
		return fmt.Errorf("watch the user keys: %w", err)
	}
	defer func() { _ = watcher.Stop() }() // The subscription ends with the connection at the latest.
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, open := <-watcher.Updates():
			switch {
			case !open && ctx.Err() != nil:
				return nil
			case !open:
				return errors.New("watch the user keys: the subscription ended")
			case entry == nil: // The end of what was there before.
			case entry.Operation() == jetstream.KeyValuePut:
				changed(entry.Key(), entry.Value())
			default:
				changed(entry.Key(), nil)
			}
		}
	}
}
