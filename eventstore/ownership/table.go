package ownership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore"
)

// Limits of a table.
const (
	// resyncEvery is how long a table trusts one watch: then it reads the whole bucket again. Watches have died across reconnects.
	resyncEvery = 10 * time.Second
	// watchRetryMin and watchRetryMax bound the pause before a bucket that could not be watched is watched again. It doubles with
	// each failure in a row, and is jittered.
	watchRetryMin = 50 * time.Millisecond
	watchRetryMax = time.Second
	// requestMax bounds each question to the server.
	requestMax = 2 * time.Second
	// silentBeats is after how many renewals, of which nothing was heard, a watch is taken for dead whose bucket has keys that live by them.
	silentBeats = 1.5
	// newsPendingMax bounds what other nodes say of their writes that waits to be read; more is lost, and the watch tells.
	newsPendingMax = 1 << 12
	// leaderMax is how long a bucket is waited for that answers nobody: elections take up to 9 s.
	leaderMax = 10 * time.Second
)

// A table is what this node knows of a bucket. It follows the bucket by a watch, and never empties on an error: what was known
// stays until something newer is. Its methods may be called by any number of goroutines.
type table struct {
	js     jetstream.JetStream
	config jetstream.KeyValueConfig
	logger *slog.Logger
	// changed is told of every change; it does not block.
	changed func()
	// tell tells other nodes of a write of this one that was confirmed; it does not block. Nil where nobody is told.
	tell func(key string, value []byte, revision uint64)
	// resync is resyncEvery.
	resync time.Duration
	// again ends a watch, for the table to look whether the bucket is still there. It holds one signal.
	again chan struct{}

	mu     sync.Mutex
	bucket jetstream.KeyValue // nil until it was opened
	ttl    time.Duration      // of the bucket, which whoever made it chose; 0 is none
	rows   map[string]row
	loaded bool // the whole bucket was read once
}

// A row is one key of a table.
type row struct {
	// value is empty when the key has none any more. Nobody changes it.
	value []byte
	// revision of the newest write, also of the mark that ended it; 0 when the bucket holds nothing of the key.
	revision uint64
	// seen is when this revision was first seen here. Whoever wrote it did so before.
	seen time.Time
}

// errMoved: the key has another revision than the writer knew.
var errMoved = errors.New("somebody else has written it")

func newTable(js jetstream.JetStream, config jetstream.KeyValueConfig, logger *slog.Logger, changed func()) *table {
	return &table{js: js, config: config, logger: logger, changed: changed, resync: resyncEvery, again: make(chan struct{}, 1), rows: map[string]row{}}
}

// open opens the bucket, and makes it when there is none.
func (t *table) open(ctx context.Context) (jetstream.KeyValue, error) {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	bucket, err := t.js.KeyValue(ctx, t.config.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		bucket, err = t.js.CreateKeyValue(ctx, t.config)
		if errors.Is(err, jetstream.ErrBucketExists) { // Another node was quicker.
			bucket, err = t.js.KeyValue(ctx, t.config.Bucket)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", t.config.Bucket, err)
	}
	if err := t.readFromLeader(ctx); err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", t.config.Bucket, err)
	}
	status, err := bucket.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w", t.config.Bucket, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if ttl := status.TTL(); t.bucket == nil && ttl != t.config.TTL {
		t.logger.Warn("a bucket was made with another time to live, and that counts", "bucket", t.config.Bucket, "time_to_live", ttl, "wanted", t.config.TTL)
	}
	t.bucket, t.ttl = bucket, status.TTL()
	return bucket, nil
}

// awaitLeader waits until somebody answers for the bucket, or says that it is not there. While its stream elects a leader a question gets
// no answer, and would be waited for in vain long after there is one.
func (t *table) awaitLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaderMax)
	defer cancel()
	if err := eventstore.AwaitStream(ctx, t.js.Conn(), streamOf(t.config.Bucket)); err != nil {
		return fmt.Errorf("open bucket %s: %w", t.config.Bucket, err)
	}
	return nil
}

// readFromLeader has the bucket's leader alone answer reads, which the client that makes a bucket does not ask for: a replica that is
// behind would take the place of what is known here with what was before.
func (t *table) readFromLeader(ctx context.Context) error {
	stream, err := t.js.Stream(ctx, streamOf(t.config.Bucket))
	if err != nil {
		return err
	}
	config := stream.CachedInfo().Config
	if !config.AllowDirect {
		return nil
	}
	config.AllowDirect, config.MirrorDirect = false, false
	_, err = t.js.UpdateStream(ctx, config)
	return err
}

// streamOf returns the name of the stream that a bucket is.
func streamOf(bucket string) string { return "KV_" + bucket }

// run follows the bucket until ctx ends.
func (t *table) run(ctx context.Context) {
	delay := watchRetryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := t.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > watchRetryMax {
			delay = watchRetryMin
		}
		if err == nil {
			continue
		}
		t.logger.Warn("a bucket cannot be followed, what is known of it stays", "bucket", t.config.Bucket, "error", err, "again_in", delay)
		if pause(ctx, delay/2+rand.N(delay)) != nil {
			return
		}
		delay = min(2*delay, watchRetryMax)
	}
}

// follow reads the whole bucket and then what changes in it, for resyncEvery.
func (t *table) follow(ctx context.Context) error {
	if err := t.awaitLeader(ctx); err != nil {
		return err
	}
	began := time.Now()
	bucket, err := t.open(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, t.resync/2+rand.N(t.resync))
	defer cancel()
	// The watch lives as long as its context; to make it must not take so long.
	making := time.AfterFunc(requestMax, cancel)
	watcher, err := bucket.WatchAll(ctx)
	if err != nil || !making.Stop() {
		return fmt.Errorf("watch bucket %s: %w", t.config.Bucket, errors.Join(err, ctx.Err()))
	}
	defer func() { _ = watcher.Stop() }() // The subscription ends with the connection at the latest.
	present, whole := map[string]bool{}, false
	silent := time.NewTimer(t.silentMax())
	defer silent.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.again:
			return nil
		case <-silent.C:
			if t.expectsNews(time.Now()) {
				return nil // The server is gone that had it, most likely, and says nothing of it.
			}
			silent.Reset(t.silentMax())
		case entry, open := <-watcher.Updates():
			switch {
			case !open && ctx.Err() != nil:
				return nil
			case !open:
				return fmt.Errorf("watch bucket %s: the subscription ended", t.config.Bucket)
			case entry == nil: // The end of what was there.
				silent.Reset(t.silentMax())
				whole = true
				t.retain(present, began)
			default:
				silent.Reset(t.silentMax())
				value, asOf := entry.Value(), time.Time{}
				if !whole {
					present[entry.Key()], asOf = true, began
				}
				if entry.Operation() != jetstream.KeyValuePut {
					value = nil
				}
				t.note(entry.Key(), value, entry.Revision(), asOf)
			}
		}
	}
}

// silentMax is how long a watch is trusted that tells of nothing.
func (t *table) silentMax() time.Duration {
	if ttl := t.timeToLive(); ttl > 0 {
		return time.Duration(silentBeats * float64(ttl) / renewalsPerTTL)
	}
	return t.resync
}

// expectsNews reports whether there is a key that lives by being renewed: its renewals are news.
func (t *table) expectsNews(now time.Time) bool {
	ttl := t.timeToLive()
	rows, _ := t.all()
	for _, r := range rows {
		if ttl > 0 && r.live(now, ttl) {
			return true
		}
	}
	return false
}

// retain takes in that the bucket holds no other keys than those, as of a moment. What of a key is only missing, without a mark that
// says that it ended, counts for as long as if it were there: see row.live.
func (t *table) retain(present map[string]bool, asOf time.Time) {
	t.mu.Lock()
	for key, r := range t.rows {
		if !present[key] && r.seen.Before(asOf) {
			r.revision = 0
			t.rows[key] = r
		}
	}
	t.loaded = true
	t.mu.Unlock()
	t.changed()
}

// note takes in a revision of a key. One that is older than what is known changes nothing, unless it is what the whole bucket held as
// of a later moment: then the bucket was made anew.
func (t *table) note(key string, value []byte, revision uint64, asOf time.Time) {
	t.mu.Lock()
	known, there := t.rows[key]
	news := !there || revision > known.revision || revision < known.revision && known.seen.Before(asOf)
	if news {
		t.rows[key] = row{value: value, revision: revision, seen: time.Now()}
	}
	t.mu.Unlock()
	if news {
		t.changed()
	}
}

// write puts a value under a key, or deletes it with a nil value, if the key's newest revision is that one, and returns the new
// revision. It returns errMoved when it is another one, and nothing was written; the table then knows the newest. After any
// other error nobody knows whether it was written.
func (t *table) write(ctx context.Context, key string, value []byte, revision uint64) (uint64, error) {
	t.mu.Lock()
	bucket := t.bucket
	t.mu.Unlock()
	if bucket == nil {
		return 0, fmt.Errorf("bucket %s is not open yet", t.config.Bucket)
	}
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	if value == nil {
		err := bucket.Delete(ctx, key, jetstream.LastRevision(revision))
		return 0, t.written(ctx, key, err)
	}
	next, err := bucket.Update(ctx, key, value, revision)
	if err := t.written(ctx, key, err); err != nil {
		return 0, err
	}
	t.note(key, value, next, time.Time{})
	if t.tell != nil {
		t.tell(key, value, next)
	}
	return next, nil
}

// written makes of a write's error what the table returns.
func (t *table) written(ctx context.Context, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case wrongRevision(err):
		if err := t.refresh(ctx, key); err != nil {
			return err
		}
		return errMoved
	case errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, jetstream.ErrStreamNotFound):
		// The bucket may be gone: it is in memory, and its only server may have been started again.
		select {
		case t.again <- struct{}{}:
		default:
		}
	}
	return fmt.Errorf("write %s in bucket %s: %w", key, t.config.Bucket, err)
}

// refresh reads the newest revision of a key.
func (t *table) refresh(ctx context.Context, key string) error {
	stream, err := t.js.Stream(ctx, streamOf(t.config.Bucket))
	if err != nil {
		return fmt.Errorf("read %s in bucket %s: %w", key, t.config.Bucket, err)
	}
	message, err := stream.GetLastMsgForSubject(ctx, "$KV."+t.config.Bucket+"."+key)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		t.mu.Lock()
		r := t.rows[key]
		r.revision = 0
		t.rows[key] = r
		t.mu.Unlock()
		return nil
	case err != nil:
		return fmt.Errorf("read %s in bucket %s: %w", key, t.config.Bucket, err)
	}
	value := message.Data
	if message.Header.Get("KV-Operation") != "" || message.Header.Get(jetstream.MarkerReasonHeader) != "" {
		value = nil
	}
	t.note(key, value, message.Sequence, time.Now())
	return nil
}

// row returns what is known of a key.
func (t *table) row(key string) row {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rows[key]
}

// all returns what is known of every key, and whether the whole bucket was read once.
func (t *table) all() (rows map[string]row, loaded bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows = make(map[string]row, len(t.rows))
	for key, r := range t.rows {
		rows[key] = r
	}
	return rows, t.loaded
}

// timeToLive returns the bucket's, and what was wanted until the bucket was opened.
func (t *table) timeToLive() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bucket == nil {
		return t.config.TTL
	}
	return t.ttl
}

// live reports whether the row has a value that counts: one that was renewed within the bucket's time to live, by this node's own
// clock from when it heard of it. That is never before the server's time is over, which began when it was written; so a row whose
// end nobody tells of ends all the same, and one that is only missing, because the bucket was made anew, stays for its time.
func (r row) live(now time.Time, ttl time.Duration) bool {
	return len(r.value) > 0 && (ttl == 0 || now.Sub(r.seen) < ttl)
}

func wrongRevision(err error) bool {
	refused := (*jetstream.APIError)(nil)
	return errors.Is(err, jetstream.ErrKeyExists) || errors.As(err, &refused) &&
		(refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
			refused.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) // Replicated streams use this one.
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
