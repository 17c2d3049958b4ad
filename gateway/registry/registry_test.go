package registry

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/eventstore/embedded"
)

// patience bounds the waits of tests; only a failing test waits as long.
const patience = time.Minute

// ttl of the tests' buckets: a bucket's markers have no shorter one.
const ttl = time.Second

// A world is a NATS server that comes and goes at one address, and nodes that say what they are.
type world struct {
	t       *testing.T
	dir     string
	address string
	server  *embedded.Server
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir()}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = listener.Addr().String()
	listener.Close()
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: w.dir, Listen: w.address})
	if err != nil {
		w.t.Fatal(err)
	}
	w.server = server
}

func (w *world) stop() {
	if w.server != nil {
		w.server.Shutdown()
		w.server = nil
	}
}

func (w *world) connect() *nats.Conn {
	w.t.Helper()
	connection, err := nats.Connect("nats://"+w.address, nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true),
		nats.ReconnectWait(50*time.Millisecond), nats.ReconnectJitter(10*time.Millisecond, 10*time.Millisecond))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(connection.Close)
	return connection
}

// bucket creates the bucket as nodes do.
func (w *world) bucket() jetstream.KeyValue {
	w.t.Helper()
	stream, err := jetstream.New(w.connect())
	if err != nil {
		w.t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; {
		bucket, err := stream.CreateOrUpdateKeyValue(w.t.Context(), jetstream.KeyValueConfig{
			Bucket: BucketDefault, TTL: ttl, LimitMarkerTTL: ttl, Storage: jetstream.FileStorage,
		})
		if err == nil {
			return bucket
		}
		var refused *jetstream.APIError // The server removes the folder of a deleted bucket after it said so, and refuses the same one until then.
		if !errors.As(err, &refused) || refused.ErrorCode != errorCodeStoreFailed || time.Now().After(end) {
			w.t.Fatal(err)
		}
	}
}

// errorCodeStoreFailed is that of "error creating store for stream".
const errorCodeStoreFailed = 10049

// A fakeNode heartbeats until it is killed.
type fakeNode struct {
	kill   func() // as kill -9 does
	bucket jetstream.KeyValue
	id     string
}

func (w *world) node(id string) *fakeNode {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	n := &fakeNode{bucket: w.bucket(), id: id}
	var done sync.WaitGroup
	done.Go(func() {
		ticker := time.NewTicker(ttl / 5)
		defer ticker.Stop()
		for beat := uint64(1); ; beat++ {
			member := memberOf(id)
			member.Heartbeat = beat
			value, err := proto.Marshal(member)
			if err != nil {
				panic(err)
			}
			put, stop := context.WithTimeout(ctx, ttl/2)
			_, _ = n.bucket.Put(put, id, value) // A node whose heartbeat fails tries again with the next.
			stop()
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	n.kill = func() {
		cancel()
		done.Wait()
	}
	w.t.Cleanup(n.kill)
	return n
}

func (n *fakeNode) leave(t *testing.T) {
	t.Helper()
	n.kill()
	if err := n.bucket.Delete(t.Context(), n.id); err != nil {
		t.Fatal(err)
	}
}

// run runs a registry until the test ends, or stop.
func (w *world) run(config Config) (r *Registry, stop func()) {
	w.t.Helper()
	r, err := New(w.connect(), config, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return r, w.runThis(r)
}

func (w *world) runThis(r *Registry) (stop func()) {
	ctx, cancel := context.WithCancel(w.t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := r.Run(ctx); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	})
	stop = func() {
		cancel()
		done.Wait()
	}
	w.t.Cleanup(stop)
	return stop
}

func show(s *Snapshot) string {
	var names []string
	for _, node := range s.Nodes {
		name := node.Member.GetNodeId()
		if node.Suspect {
			name += "?"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

// await waits until the list is what is wanted.
func await(t *testing.T, r *Registry, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for s := r.Now(); show(s) != want; {
		var err error
		if s, err = r.Next(ctx, s); err != nil {
			t.Fatalf("list = %q, want %q", show(r.Now()), want)
		}
	}
}

// neverWithout fails the test if a snapshot lacks one of the nodes from now on until the returned check is called.
func neverWithout(t *testing.T, r *Registry, ids ...string) (check func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		for s := r.Now(); ; {
			for _, id := range ids {
				if !slices.ContainsFunc(s.Nodes, func(n Node) bool { return n.Member.GetNodeId() == id }) {
					t.Errorf("snapshot %d is %q: without %s", s.Version, show(s), id)
				}
			}
			var err error
			if s, err = r.Next(ctx, s); err != nil {
				return
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

func TestNodesComeAndGoAsTheySay(t *testing.T) {
	w := newWorld(t)
	r, _ := w.run(Config{}) // Before there is a bucket.
	a := w.node("a")
	await(t, r, "a")
	w.node("b")
	await(t, r, "a b")
	began := time.Now()
	a.leave(t)
	await(t, r, "b")
	t.Logf("a node that left was off the list after %s", time.Since(began))
}

func TestAKilledNodeIsOffTheListSoonAfterItsTimeToLive(t *testing.T) {
	w := newWorld(t)
	r, _ := w.run(Config{Settle: 10 * time.Millisecond})
	a := w.node("a")
	w.node("b")
	w.node("c")
	await(t, r, "a b c")
	a.kill()
	began := time.Now()
	await(t, r, "b c")
	t.Logf("a killed node was off the list after %s, with a time to live of %s", time.Since(began), ttl)
}

func TestTheListIsKeptWhileNATSIsAway(t *testing.T) {
	w := newWorld(t)
	r, _ := w.run(Config{Settle: 10 * time.Second})
	w.node("a")
	w.node("b")
	await(t, r, "a b")
	check := neverWithout(t, r, "a", "b")
	w.stop()
	// Until the bucket has forgotten everybody.
	away := time.NewTimer(2 * ttl)
	defer away.Stop()
	<-away.C
	w.start()
	version := r.Now().Version
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for s := r.Now(); s.Version < version+10 || show(s) != "a b"; { // It is followed again.
		var err error
		if s, err = r.Next(ctx, s); err != nil {
			t.Fatalf("list = %q, version %d after NATS came back; want \"a b\" and fresh figures", show(r.Now()), r.Now().Version)
		}
	}
	check()
}

func TestABucketThatIsPurgedOrLostTakesNobodyOffTheList(t *testing.T) {
	w := newWorld(t)
	r, _ := w.run(Config{Settle: 10 * time.Second, Resync: 200 * time.Millisecond})
	w.node("a")
	w.node("b")
	await(t, r, "a b")
	check := neverWithout(t, r, "a", "b")
	stream, err := jetstream.New(w.connect())
	if err != nil {
		t.Fatal(err)
	}
	s, err := stream.Stream(t.Context(), "KV_"+BucketDefault)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.node("c")
	await(t, r, "a b c")
	if err := stream.DeleteKeyValue(t.Context(), BucketDefault); err != nil {
		t.Fatal(err)
	}
	w.bucket()
	w.node("d")
	await(t, r, "a b c d")
	check()
}

// A deafBucket gives watches that say what the bucket has and then nothing more.
type deafBucket struct{ jetstream.KeyValue }

type deafWatch struct {
	jetstream.KeyWatcher
	updates chan jetstream.KeyValueEntry
}

func (w *deafWatch) Updates() <-chan jetstream.KeyValueEntry { return w.updates }

func (b deafBucket) WatchAll(ctx context.Context, options ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	watch, err := b.KeyValue.WatchAll(ctx, options...)
	if err != nil {
		return nil, err
	}
	deaf := &deafWatch{KeyWatcher: watch, updates: make(chan jetstream.KeyValueEntry)}
	go func() {
		for entry := range watch.Updates() {
			select {
			case deaf.updates <- entry:
			case <-ctx.Done():
				return
			}
			if entry == nil {
				return
			}
		}
	}()
	return deaf, nil
}

func TestAWatchThatDiesWithoutAWordIsNoticed(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a"), w.node("b")
	w.node("c")
	r, err := New(w.connect(), Config{Settle: 10 * time.Millisecond}, nil)
	if err != nil {
		t.Fatal(err)
	}
	open := r.open
	r.open = func(ctx context.Context) (jetstream.KeyValue, error) {
		bucket, err := open(ctx)
		return deafBucket{bucket}, err
	}
	w.runThis(r)
	await(t, r, "a b c")
	check := neverWithout(t, r, "b", "c")
	w.node("d")
	await(t, r, "a b c d")
	a.leave(t)
	await(t, r, "b c d")
	check()
	b.kill()
	await(t, r, "c d")
}

// A stuckBucket gives watches that cannot be stopped, as it is for a while when the server is away.
type stuckBucket struct {
	jetstream.KeyValue
	stuck <-chan struct{}
}

type stuckWatch struct {
	jetstream.KeyWatcher
	stuck <-chan struct{}
}

func (w stuckWatch) Stop() error {
	<-w.stuck
	return w.KeyWatcher.Stop()
}

func (b stuckBucket) WatchAll(ctx context.Context, options ...jetstream.WatchOpt) (jetstream.KeyWatcher, error) {
	watch, err := b.KeyValue.WatchAll(ctx, options...)
	return stuckWatch{watch, b.stuck}, err
}

func TestARegistryDoesNotWaitForTheEndOfAWatch(t *testing.T) {
	w := newWorld(t)
	w.node("a")
	r, err := New(w.connect(), Config{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan struct{})
	free := sync.OnceFunc(func() { close(stuck) })
	open := r.open
	r.open = func(ctx context.Context) (jetstream.KeyValue, error) {
		bucket, err := open(ctx)
		return stuckBucket{bucket, stuck}, err
	}
	stop := w.runThis(r)
	await(t, r, "a")
	late := time.AfterFunc(patience, func() {
		t.Error("the registry waits for a watch that cannot be stopped")
		free()
	})
	stop()
	late.Stop()
	free()
}

func TestARegistryStartsWithWhatItKnewWhenNATSIsAway(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(t.TempDir(), "nodes.json")
	first, stop := w.run(Config{CacheFile: file})
	a := w.node("a")
	w.node("b")
	await(t, first, "a b")
	for end := time.Now().Add(patience); ; {
		if kept, err := readCache(file); err == nil && len(kept) == 2 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the list is not kept on disk")
		}
	}
	stop()
	w.stop()
	a.kill()

	second, _ := w.run(Config{CacheFile: file, Settle: 2 * time.Second})
	if got, want := show(second.Now()), "a? b?"; got != want {
		t.Fatalf("list at start = %q, want %q", got, want)
	}
	check := neverWithout(t, second, "b")
	w.start()
	await(t, second, "b")
	check()
}

func TestAListOnDiskThatIsDamagedIsNotUsed(t *testing.T) {
	w := newWorld(t)
	for name, text := range map[string]string{
		"torn": `{"format": "weir nodes 1", "nodes": [`, "of another format": `{"format": "weir nodes 9"}`,
		"with a bad node": `{"format": "weir nodes 1", "nodes": [{"nodeId": "a"}]}`, "empty": "",
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "nodes.json")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readCache(file); err == nil || !strings.Contains(err.Error(), "remove it") {
				t.Errorf("error = %v, want one that says what to do", err)
			}
			r, err := New(w.connect(), Config{CacheFile: file}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(r.Now()); got != "" {
				t.Errorf("list = %q, want none", got)
			}
		})
	}
}

func TestAStaticListIsWhatWasNamed(t *testing.T) {
	r, err := Static([]string{"http://b:8080", "https://a:8443"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := show(r.Now()), "http://b:8080 https://a:8443"; got != want {
		t.Errorf("list = %q, want %q", got, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx); err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, urls := range [][]string{nil, {"b:8080"}, {"http://b", "http://b"}, {"http://"}, {"http://h/?q"}} {
		if _, err := Static(urls); err == nil {
			t.Errorf("Static(%q) was accepted", urls)
		}
	}
}

func TestImpossibleConfigurationsAreRefused(t *testing.T) {
	for _, config := range []Config{{TTL: -1}, {Resync: 2 * time.Hour}, {Settle: -time.Second}} {
		if err := config.Validate(); err == nil {
			t.Errorf("%+v was accepted", config)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero value: %v", err)
	}
}
