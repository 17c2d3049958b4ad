// Package redisview keeps copies of views in Redis, where all nodes find them: orders, each user's newest orders, where
// the units of a SKU are, and the board of campaigns.
//
// Redis is never believed. A guard (see guard) knows what has changed and admits an entry only if it holds everything that
// this node's own view holds. So Redis may be away, slow, emptied, evicting, restored from an old dump, or filled by another log:
// a read then costs what it costs without Redis, and its answer is the same (I6).
package redisview

import (
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// Limits of a Mirror, and what Options that are zero mean.
const (
	// PrefixDefault begins every key.
	PrefixDefault = "weir"
	// TTLDefault is how long an entry is kept at most; ttlJitter of it is drawn, so that what was written together does not
	// expire together.
	TTLDefault = time.Hour
	ttlJitter  = 0.2
	// ReadTimeoutDefault bounds a read: what takes longer is read from the view.
	ReadTimeoutDefault = 50 * time.Millisecond
	// WriteTimeoutDefault bounds one pipeline of writes.
	WriteTimeoutDefault = 2 * time.Second
	// dialTimeoutMax bounds a connection's making.
	dialTimeoutMax = time.Second
	// clusterReload is how old what is known of a cluster's slots gets: a replica that took over is found in that time.
	clusterReload = time.Second
	// PoolSizeDefault bounds the connections to each server.
	PoolSizeDefault = 32
	// ValueBytesMaxDefault bounds one value; a larger one is not kept in Redis.
	ValueBytesMaxDefault = 64 << 10
	// StockCopiesOfCluster are the copies of each account and board in a cluster, so that a hot one is not one server's. A
	// single server gains nothing by more than one.
	StockCopiesOfCluster = 4
	stockCopiesMax       = 64
	// RecentOrdersMax are the orders of a user's list.
	RecentOrdersMax = 50
	// boardCampaignsMax are the campaigns of one lane's board.
	boardCampaignsMax = 1000
	// erasedOrdersMax are the orders that an erasure takes out of Redis; older ones expire.
	erasedOrdersMax = 10_000
)

// Options configure a Mirror. Addresses, Store and Topology are required.
type Options struct {
	// Addresses of the server, HOST:PORT, or of some servers of a cluster.
	Addresses []string
	// Cluster says that the servers are a Redis Cluster. More than one address says so too.
	Cluster bool
	// Username and Password of an ACL user; without a username, the password is that of the default user.
	Username, Password string
	// TLS for the connections; nil means none. LoadTLS makes one.
	TLS *tls.Config
	// Prefix of every key: letters, digits, - and _. Empty means PrefixDefault.
	Prefix string
	// Versions of the views come after the prefix: what was copied of others is not read. Empty means those of this program, see
	// projections.CopiedVersions.
	Versions string
	// TTL, ReadTimeout, WriteTimeout, PoolSize, ValueBytesMax and StockCopies; 0 means the default.
	TTL           time.Duration
	ReadTimeout   time.Duration
	WriteTimeout  time.Duration
	PoolSize      int
	ValueBytesMax int
	StockCopies   int

	// Store with the views.
	Store *projections.Store
	// Topology of the log.
	Topology eventstore.Topology
	// Logger is told when Redis comes and goes; nil means slog.Default.
	Logger *slog.Logger
	// Now is the clock of the breaker, and says which erasures are long ago; nil means time.Now.
	Now func() time.Time
}

var prefixPattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// withDefaults checks the options and fills in what they leave open.
func (o Options) withDefaults() (Options, error) {
	if len(o.Addresses) == 0 {
		return o, errors.New("redis: no address")
	}
	for _, address := range o.Addresses {
		if host, port, found := strings.Cut(address, ":"); !found || host == "" || port == "" {
			return o, fmt.Errorf("redis: address %q is not HOST:PORT", address)
		}
	}
	o.Cluster = o.Cluster || len(o.Addresses) > 1
	if o.Username != "" && o.Password == "" {
		return o, fmt.Errorf("redis: user %q has no password", o.Username)
	}
	if o.Prefix == "" {
		o.Prefix = PrefixDefault
	}
	if !prefixPattern.MatchString(o.Prefix) {
		return o, fmt.Errorf("redis: prefix %q: want 1 to 32 letters, digits, - or _", o.Prefix)
	}
	if o.Versions == "" {
		o.Versions = projections.CopiedVersions()
	}
	copies := 1
	if o.Cluster {
		copies = StockCopiesOfCluster
	}
	orDefault(&o.TTL, TTLDefault)
	orDefault(&o.ReadTimeout, ReadTimeoutDefault)
	orDefault(&o.WriteTimeout, WriteTimeoutDefault)
	orDefault(&o.PoolSize, PoolSizeDefault)
	orDefault(&o.ValueBytesMax, ValueBytesMaxDefault)
	orDefault(&o.StockCopies, copies)
	switch {
	case o.TTL < time.Second:
		return o, fmt.Errorf("redis: entries are to be kept for %s, want at least 1s", o.TTL)
	case o.ReadTimeout < 0 || o.WriteTimeout < 0 || o.PoolSize < 0 || o.ValueBytesMax < 0:
		return o, errors.New("redis: a limit is negative")
	case o.StockCopies < 1 || o.StockCopies > stockCopiesMax:
		return o, fmt.Errorf("redis: %d copies of an account, want 1 to %d", o.StockCopies, stockCopiesMax)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o, o.Topology.Validate()
}

func orDefault[T comparable](value *T, whenZero T) {
	var zero T
	if *value == zero {
		*value = whenZero
	}
}

// LoadTLS reads what a TLS connection needs. Empty files mean the system's authorities and no certificate of our own.
func LoadTLS(caFile, certFile, keyFile string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("redis: read the authority's certificate: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("redis: %s holds no certificate in PEM", caFile)
		}
	}
	if (certFile == "") != (keyFile == "") {
		return nil, errors.New("redis: a certificate and its key are given together")
	}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("redis: read the certificate and its key: %w", err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// A Mirror writes what changes to Redis (Run), and reads from there what its guard admits. It is the Observer of the
// runners of all lanes. Methods may be called by any number of goroutines.
type Mirror struct {
	options Options
	prefix  string // of every key, with the versions of the views
	client  redis.UniversalClient
	sha     string
	guard   *guard
	breaker breaker
	queue   queue
	started atomic.Bool
	counts  counts
	servers servers
	// refills holds a signal when Redis is to be filled.
	refills chan struct{}
	// swapped says of a lane that another generation of a view answers, and that no commit has come since.
	swapped []atomic.Bool
}

// Stats count what a Mirror has done.
type Stats struct {
	// Hits were answered from Redis. Misses were not there, Refused were there and not admitted by the guard, Failed got no
	// answer, KeptBack were not asked since the breaker was open.
	Hits, Misses, Refused, Failed, KeptBack uint64
	// Written entries; Older were not, since a newer one was there; Dropped were never sent, or refused by Redis.
	Written, Older, Dropped uint64
}

type counts struct {
	hits, misses, refused, failed, keptBack, written, older, dropped atomic.Uint64
}

// New returns a Mirror. It connects when it is used: a Redis that is away is no error. The caller closes it.
func New(options Options) (*Mirror, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	if options.Store == nil {
		return nil, errors.New("redis: no store with views")
	}
	sum := sha1.Sum([]byte(writeScript)) // The name that Redis gives it.
	m := &Mirror{
		options: options, prefix: fmt.Sprintf("%s:%s:", options.Prefix, options.Versions),
		sha: hex.EncodeToString(sum[:]), guard: newGuard(options.Topology.Lanes), breaker: breaker{now: options.Now},
		refills: make(chan struct{}, 1), swapped: make([]atomic.Bool, options.Topology.Lanes),
	}
	m.client = newClient(options, m.connected)
	m.queue.init()
	return m, nil
}

// silenceLibrary keeps the library from writing to stderr what its callers are told as errors. Its logger is the process's.
var silenceLibrary = sync.OnceFunc(func() { redis.SetLogger(silent{}) })

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// newClient returns a client that neither tries again nor waits on its own: the callers know better.
func newClient(o Options, connected func(context.Context, *redis.Conn) error) redis.UniversalClient {
	silenceLibrary()
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if o.Cluster {
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: o.Addresses, OnConnect: connected, Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
			MaxRedirects: 3, ClusterStateReloadInterval: clusterReload, DialTimeout: min(dialTimeoutMax, o.WriteTimeout), DialerRetries: 1,
			ReadTimeout: o.WriteTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: true,
			PoolSize: o.PoolSize, PoolTimeout: o.ReadTimeout, DisableIdentity: true, MaintNotificationsConfig: quiet,
		})
	}
	return redis.NewClient(&redis.Options{
		Addr: o.Addresses[0], OnConnect: connected, Username: o.Username, Password: o.Password, TLSConfig: o.TLS,
		MaxRetries: -1, DialTimeout: min(dialTimeoutMax, o.WriteTimeout), DialerRetries: 1,
		ReadTimeout: o.WriteTimeout, WriteTimeout: o.WriteTimeout, ContextTimeoutEnabled: true,
		PoolSize: o.PoolSize, PoolTimeout: o.ReadTimeout, DisableIdentity: true, MaintNotificationsConfig: quiet,
	})
}

// Close ends the connections. REQUIRES: Run has returned.
func (m *Mirror) Close() error { return m.client.Close() }

// Stats returns the counts so far.
func (m *Mirror) Stats() Stats {
	c := &m.counts
	return Stats{
		Hits: c.hits.Load(), Misses: c.misses.Load(), Refused: c.refused.Load(), Failed: c.failed.Load(), KeptBack: c.keptBack.Load(),
		Written: c.written.Load(), Older: c.older.Load(), Dropped: c.dropped.Load(),
	}
}

// ErrUnreachable says that Redis did not answer. A node starts all the same.
var ErrUnreachable = errors.New("redis does not answer")

// A SettingsError says that Redis answers and cannot be used as it is set.
type SettingsError struct {
	Server, Problem, Next string
	Cause                 error
}

func (e *SettingsError) Error() string {
	return fmt.Sprintf("redis %s: %s; %s", e.Server, e.Problem, e.Next)
}

func (e *SettingsError) Unwrap() error { return e.Cause }

// Check asks Redis whether it can be used, and returns advice about its settings. One that does not answer is
// ErrUnreachable, one that refuses us or would not make room is a *SettingsError.
//
// A server with a limit on its memory and the policy noeviction is refused: once it is full no write comes in, so
// all that it holds grows old, and no read is ever answered from it. A server without a limit gets advice only.
func (m *Mirror) Check(ctx context.Context) (advice []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.options.WriteTimeout)
	defer cancel()
	cluster, ok := m.client.(*redis.ClusterClient)
	if !ok {
		return m.checkServer(ctx, m.client, m.options.Addresses[0])
	}
	var mu sync.Mutex // ForEachMaster calls from several goroutines.
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, server *redis.Client) error {
		said, err := m.checkServer(ctx, server, server.Options().Addr)
		mu.Lock()
		defer mu.Unlock()
		advice = append(advice, said...)
		return err
	})
	var settings *SettingsError
	if err != nil && !errors.As(err, &settings) && !errors.Is(err, ErrUnreachable) {
		err = settingsError(strings.Join(m.options.Addresses, ","), err)
	}
	return advice, err
}

func (m *Mirror) checkServer(ctx context.Context, server redis.Cmdable, address string) ([]string, error) {
	info, err := server.Info(ctx, "memory", "cluster").Result()
	if err != nil {
		return nil, settingsError(address, err)
	}
	fields := make(map[string]string)
	for line := range strings.Lines(info) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), ":"); found {
			fields[name] = value
		}
	}
	if clustered := fields["cluster_enabled"] == "1"; clustered != m.options.Cluster {
		problem, next := "it is a server of a cluster", "say so"
		if m.options.Cluster {
			problem, next = "it is no server of a cluster", "give one address"
		}
		return nil, &SettingsError{Server: address, Problem: problem, Next: next}
	}
	switch limitBytes, policy := fields["maxmemory"], fields["maxmemory_policy"]; {
	case limitBytes == "":
		return []string{fmt.Sprintf("redis %s does not say how much memory it may take: see that maxmemory is set, and a policy that evicts", address)}, nil
	case limitBytes == "0":
		return []string{fmt.Sprintf("redis %s may take all of its machine's memory: set maxmemory, and maxmemory-policy allkeys-lru", address)}, nil
	case policy == "noeviction":
		return nil, &SettingsError{
			Server: address, Problem: "it makes no room when its memory is full (maxmemory-policy noeviction)",
			Next: "set maxmemory-policy allkeys-lru, or volatile-lru where it keeps other things too",
		}
	}
	return nil, nil
}

// settingsError tells a server that refuses us from one that is not there.
func settingsError(address string, err error) error {
	switch {
	case strings.Contains(err.Error(), "cluster support disabled"): // It has no code of its own.
		return &SettingsError{Server: address, Problem: "it is no server of a cluster", Next: "give one address", Cause: err}
	case redis.IsAuthError(err):
		return &SettingsError{Server: address, Problem: "it refuses our user or password: " + err.Error(), Next: "give those of an ACL user", Cause: err}
	case redis.IsPermissionError(err):
		return &SettingsError{
			Server: address, Problem: "its user may not do what is needed: " + err.Error(),
			Next: "allow +get +mget +set +unlink +eval +evalsha +scan +info +cluster on the keys with our prefix", Cause: err,
		}
	}
	return fmt.Errorf("%w at %s: %w", ErrUnreachable, address, err)
}

// key returns a subject's key in Redis.
func (m *Mirror) key(s subject, copyNumber int) string {
	key := make([]byte, 0, 64)
	return string(s.appendKey(append(key, m.prefix...), copyNumber))
}

// copies returns how many copies of a kind of entry there are.
func (m *Mirror) copies(k kind) int {
	if k == kindStock || k == kindBoard || k == kindTally {
		return m.options.StockCopies
	}
	return 1
}

// ttlMillis draws how long an entry is kept.
func (m *Mirror) ttlMillis() int64 {
	most := m.options.TTL.Milliseconds()
	return most - rand.Int64N(int64(float64(most)*ttlJitter)+1)
}

// Opened implements projections.Observer.
func (m *Mirror) Opened(lane uint32, at eventstore.Position) { m.guard.open(lane, at) }

// Forgetting implements projections.Observer.
func (m *Mirror) Forgetting(lane uint32, upTo uint64) { m.guard.forget(lane, upTo) }

// Swapped implements projections.Observer. What Redis holds of the generation before it is written anew, and once more after the next
// commit: up to then entries are as of one that this node itself refuses (see Forgetting).
func (m *Mirror) Swapped(lane uint32) {
	m.swapped[lane].Store(true)
	m.wantRefill()
}

// Passing implements projections.Observer.
func (m *Mirror) Passing(lane uint32, at eventstore.Position) { m.guard.pass(lane, at) }

// Changing implements projections.Observer.
func (m *Mirror) Changing(changes *projections.Changes) { m.guard.raise(changes) }

// Changed implements projections.Observer.
func (m *Mirror) Changed(changes *projections.Changes) {
	m.counts.dropped.Add(m.queue.offer(changes))
	if m.swapped[changes.Lane].Load() && m.swapped[changes.Lane].Swap(false) {
		m.wantRefill()
	}
}
