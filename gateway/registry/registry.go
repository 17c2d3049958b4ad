// Package registry knows the nodes that a gateway sends calls to: those in the JetStream key-value bucket that nodes write
// themselves into, or a list that an operator gave.
//
// The list is a hint that must never be worse than an old one. It is kept while NATS is away, when a watch dies without a word, when
// somebody purges the bucket, and over a restart (on disk). A node leaves it at once when it says so, and when the bucket, not this
// process's clock alone, says that it was silent for its time to live. Where much goes silent at once, right after the connection
// came back, the bucket is the suspect and not the nodes.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// A Registry has the list of nodes. Its methods may be called by several goroutines.
type Registry struct {
	config    Config
	logger    *slog.Logger
	published atomic.Pointer[published]

	// What follows is Run's. connection and open are nil for a static list.
	connection *nats.Conn
	open       func(ctx context.Context) (jetstream.KeyValue, error)
	roll       *roll
}

// A Snapshot is the list at one time. It is shared: nobody changes it, nor the messages in it.
type Snapshot struct {
	// Version counts the snapshots of this process, from 1. A heartbeat that brings new figures makes one.
	Version uint64
	// Shape is the Version of the newest snapshot in which more than figures changed: who is there, at which addresses, with which
	// lanes, draining or suspect. What is costly to make from the list is made again when this changes.
	Shape uint64
	// Nodes by id.
	Nodes []Node
}

// A Node is one that calls may be sent to.
type Node struct {
	// Member is what the node said of itself last. Its id is that of the key; its addresses are valid URLs, at least one.
	Member *clusterv1.Member
	// Suspect says that the node was not heard of for its time to live, or is known from the disk alone, and is kept because the
	// bucket's word is not enough. Others are better.
	Suspect bool
}

type published struct {
	snapshot *Snapshot
	next     chan struct{} // closed when there is a newer one
}

// Config of a Registry; what is zero has a default.
type Config struct {
	// Bucket that nodes write themselves into; by default BucketDefault.
	Bucket string `yaml:"bucket"`
	// CacheFile keeps the list over a restart; empty means that it is not kept. Its directory exists.
	CacheFile string `yaml:"cache_file"`
	// TTL is how long a node may be silent; by default what the bucket says, and TTLDefault if it says nothing.
	TTL time.Duration `yaml:"ttl"`
	// Resync is how often the whole list is read again, less up to a fifth that is drawn; by default ResyncDefault.
	Resync time.Duration `yaml:"resync"`
	// Settle is how long nodes that the bucket does not have are kept after the connection came back, or when most are gone at once;
	// by default SettleDefault. Nodes need it to find the way back themselves.
	Settle time.Duration `yaml:"settle"`
}

// What a Config that is zero means, and limits.
const (
	BucketDefault = "WEIR-NODES"
	TTLDefault    = 3 * time.Second
	ResyncDefault = 10 * time.Second
	SettleDefault = 15 * time.Second
	// durationMax bounds each duration of a Config.
	durationMax = time.Hour
	// listingMax bounds the wait for the bucket to say all that it has.
	listingMax = 5 * time.Second
	// backoffMin and backoffMax bound the wait after a failure; it doubles, and up to half of it is drawn.
	backoffMin = 100 * time.Millisecond
	backoffMax = 5 * time.Second
)

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"ttl", c.TTL}, {"resync", c.Resync}, {"settle", c.Settle}} {
		if d.value < 0 || d.value > durationMax {
			return fmt.Errorf("registry: %s is %s, want 0 (the default) to %s", d.name, d.value, durationMax)
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	orDefault(&c.Bucket, BucketDefault)
	orDefault(&c.Resync, ResyncDefault)
	orDefault(&c.Settle, SettleDefault)
	return c
}

func orDefault[T comparable](value *T, whenZero T) {
	var zero T
	if *value == zero {
		*value = whenZero
	}
}

// New makes a registry that follows the bucket once it runs. Until then it has what was kept on disk, every node of it suspect; a file
// that cannot be read is logged and counts as none. The connection should reconnect for ever, and may be one that was never up yet. A nil
// logger means slog.Default.
func New(connection *nats.Conn, config Config, logger *slog.Logger) (*Registry, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if logger == nil {
		logger = slog.Default()
	}
	config = config.withDefaults()
	stream, err := jetstream.New(connection)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r := &Registry{
		config: config, logger: logger, connection: connection, roll: newRoll(config.Settle),
		open: func(ctx context.Context) (jetstream.KeyValue, error) { return stream.KeyValue(ctx, config.Bucket) },
	}
	r.published.Store(&published{snapshot: &Snapshot{}, next: make(chan struct{})})
	kept, err := readCache(config.CacheFile)
	if err != nil {
		logger.Warn("the kept list of nodes is not used", "error", err)
	}
	for _, member := range kept {
		r.roll.remember(member)
	}
	r.publish()
	return r, nil
}

// Static makes a registry of nodes that an operator named by their base URLs. It never changes, and needs no Run.
func Static(urls []string) (*Registry, error) {
	if len(urls) == 0 {
		return nil, errors.New("registry: no upstream is named")
	}
	r := &Registry{roll: newRoll(0), logger: slog.Default()}
	r.published.Store(&published{snapshot: &Snapshot{}, next: make(chan struct{})})
	for _, text := range urls {
		if err := validateAddress(text); err != nil {
			return nil, fmt.Errorf("registry: upstream %w", err)
		}
		if r.roll.members[text] != nil {
			return nil, fmt.Errorf("registry: upstream %s is named twice", text)
		}
		r.roll.members[text] = &standing{member: &clusterv1.Member{NodeId: text, Name: text, Addresses: []string{text}}}
	}
	r.roll.changed, r.roll.reshaped = true, true
	r.publish()
	return r, nil
}

// validateAddress says what is wrong with the base URL of a node.
func validateAddress(text string) error {
	address, err := url.Parse(text)
	switch {
	case err != nil:
		return fmt.Errorf("%q is no URL: %w", text, err)
	case address.Scheme != "http" && address.Scheme != "https":
		return fmt.Errorf("%q: want http://HOST:PORT or https://HOST:PORT", text)
	case address.Hostname() == "":
		return fmt.Errorf("%q names no host", text)
	case address.User != nil || address.RawQuery != "" || address.Fragment != "":
		return fmt.Errorf("%q: a base URL has no user, no query and no fragment", address.Redacted())
	}
	return nil
}

// Now returns the newest snapshot, never nil.
func (r *Registry) Now() *Snapshot { return r.published.Load().snapshot }

// Next waits for a snapshot that is newer than one; nil is older than any. Snapshots in between are passed over. Its error is that of ctx.
func (r *Registry) Next(ctx context.Context, than *Snapshot) (*Snapshot, error) {
	for {
		p := r.published.Load()
		if than == nil || p.snapshot.Version > than.Version {
			return p.snapshot, nil
		}
		select {
		case <-p.next:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// publish shows what the roll has, if that changed.
func (r *Registry) publish() {
	changed, reshaped := r.roll.take()
	if !changed {
		return
	}
	before := r.published.Load()
	snapshot := &Snapshot{Version: before.snapshot.Version + 1, Shape: before.snapshot.Shape, Nodes: r.roll.nodes()}
	if reshaped {
		snapshot.Shape = snapshot.Version
	}
	r.published.Store(&published{snapshot: snapshot, next: make(chan struct{})})
	close(before.next)
}

// Run follows the bucket until ctx ends, which is no error; nothing else ends it. A bucket that is not there yet or cannot be reached is
// tried again. When it returns nothing that it started runs any more, but for the end of a watch while the server is away, which waits until the
// connection is closed, or for 5 s. Run is called once.
func (r *Registry) Run(ctx context.Context) error {
	if r.connection == nil {
		<-ctx.Done()
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	if r.config.CacheFile != "" {
		group.Go(func() error {
			r.keep(ctx)
			return nil
		})
	}
	group.Go(func() error {
		r.follow(ctx)
		return nil
	})
	return group.Wait()
}

// follow watches the bucket, round by round. Each round begins with all that the bucket has, so that nothing which an earlier one missed
// stays missed.
func (r *Registry) follow(ctx context.Context) {
	status := r.connection.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED)
	defer r.connection.RemoveStatusListener(status)
	var failures int
	for ctx.Err() == nil {
		err := r.round(ctx, status)
		if err == nil {
			failures = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		r.roll.away()
		if failures == 0 {
			r.logger.Warn("the list of nodes is kept as it is: its bucket cannot be read", "bucket", r.config.Bucket, "nodes", len(r.Now().Nodes), "error", err)
		}
		wait := time.NewTimer(backoff(failures))
		failures++
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				wait.Stop()
				return
			case <-wait.C:
				waiting = false
			case now := <-status:
				r.noteStatus(now)
				waiting = now != nats.CONNECTED // It is back: read now.
			}
		}
	}
}

// backoff returns how long to wait after so many failures before this one.
func backoff(failures int) time.Duration {
	wait := backoffMax
	if failures < 16 {
		wait = min(backoffMin<<failures, backoffMax)
	}
	return wait - rand.N(wait/2)
}

// noteStatus takes in what became of the connection.
func (r *Registry) noteStatus(status nats.Status) {
	if status != nats.CONNECTED {
		r.roll.away()
	}
}

// errWatchDied says that a watch ended by itself.
var errWatchDied = errors.New("the watch ended")

// round reads the bucket and then what it pushes. It ends without an error when it is time to read it again, whyever.
func (r *Registry) round(ctx context.Context, status <-chan nats.Status) error {
	opening, cancel := context.WithTimeout(ctx, listingMax)
	defer cancel()
	bucket, err := r.open(opening)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", r.config.Bucket, err)
	}
	state, err := bucket.Status(opening)
	if err != nil {
		return fmt.Errorf("read the state of bucket %s: %w", r.config.Bucket, err)
	}
	ttl := r.config.TTL
	orDefault(&ttl, state.TTL())
	orDefault(&ttl, TTLDefault)
	r.roll.ttl = ttl

	watching, stop := context.WithCancel(ctx)
	defer stop()
	watch, err := bucket.WatchAll(watching)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", r.config.Bucket, err)
	}
	// To stop the watch asks the server, and waits for as long as requests may take if that is away. The subscription ends with watching in any
	// case, and a consumer that is left behind ends by itself: nobody waits for that.

	began := time.Now()
	present := map[string]bool{}
	listed := false
	resync := time.NewTimer(r.config.Resync - rand.N(r.config.Resync/5+1))
	defer resync.Stop()
	listing := time.NewTimer(listingMax)
	defer listing.Stop()
	deadline := time.NewTimer(durationMax)
	defer deadline.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case entry, open := <-watch.Updates():
			now := time.Now()
			switch {
			case !open:
				return errWatchDied
			case entry == nil:
				r.roll.listed(now, began, present)
				listed, present = true, nil
			default:
				if present != nil && entry.Operation() == jetstream.KeyValuePut {
					present[entry.Key()] = true
				}
				if err := r.roll.hear(now, entry); err != nil {
					r.logger.Warn("a node's entry is not used", "bucket", r.config.Bucket, "node_id", entry.Key(), "error", err)
				}
			}
		case now := <-status:
			r.noteStatus(now)
			if now == nats.CONNECTED {
				return nil // The watch may not have survived.
			}
		case <-listing.C:
			if !listed {
				return fmt.Errorf("bucket %s did not say within %s what it has", r.config.Bucket, listingMax)
			}
		case <-resync.C:
			return nil
		case <-deadline.C:
		}
		if !listed {
			continue // Half a list shows less than the one before.
		}
		now := time.Now()
		r.roll.sweep(now)
		r.publish()
		overdue, next := r.roll.next(now)
		if overdue {
			return nil // Ask the bucket.
		}
		deadline.Reset(next)
	}
}
