package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
)

// refusals keeps what a server logs of clients that it refuses something.
type refusals struct {
	mu   sync.Mutex
	said []string
}

// Errorf implements server.Logger.
func (r *refusals) Errorf(format string, args ...any) {
	if line := fmt.Sprintf(format, args...); strings.Contains(line, "Violation") {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.said = append(r.said, line)
	}
}

func (r *refusals) Noticef(string, ...any) {}
func (r *refusals) Warnf(string, ...any)   {}
func (r *refusals) Fatalf(string, ...any)  {}
func (r *refusals) Debugf(string, ...any)  {}
func (r *refusals) Tracef(string, ...any)  {}

// all returns what was kept.
func (r *refusals) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.said)
}

// watchedServer runs a server with the configuration of ops/nats, and a user more, who hears everything in the account.
func watchedServer(t *testing.T) (url string, permissions []string, published func() []string, refused *refusals) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "ops", "nats", "weir.conf"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("WEIR_NATS_PASSWORD", "test")
	t.Setenv("WEIR_NATS_SYSTEM_PASSWORD", "test")
	conf := string(text)
	for old, now := range map[string]string{
		"listen: 0.0.0.0:4222": "listen: 127.0.0.1:-1", "http: 127.0.0.1:8222": "http: 127.0.0.1:-1",
		"store_dir: /var/lib/nats":                  "store_dir: " + t.TempDir(),
		"    users: [\n      {\n        user: weir": "    users: [\n      { user: watcher, password: test }\n      {\n        user: weir",
	} {
		if !strings.Contains(conf, old) {
			t.Fatalf("ops/nats/weir.conf has no %q", old)
		}
		conf = strings.Replace(conf, old, now, 1)
	}
	allow := regexp.MustCompile(`(?s)publish \{\s*allow: \[(.*?)\n\s*\]`).FindStringSubmatch(conf)
	if allow == nil {
		t.Fatal("ops/nats/weir.conf allows nothing")
	}
	for _, quoted := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(allow[1], -1) {
		permissions = append(permissions, quoted[1])
	}
	options := &server.Options{}
	if err := options.ProcessConfigString(conf); err != nil {
		t.Fatal(err)
	}
	options.NoSigs = true
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	refused = &refusals{}
	s.SetLoggerV2(refused, false, false, false)
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server is not ready")
	}
	watcher, err := nats.Connect(s.ClientURL(), nats.UserInfo("watcher", "test"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watcher.Close)
	var mu sync.Mutex
	seen := map[string]bool{}
	if _, err := watcher.Subscribe(">", func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		seen[m.Subject] = true
	}); err != nil {
		t.Fatal(err)
	}
	if err := watcher.Flush(); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(s.ClientURL(), "nats://", "nats://weir:test@", 1), permissions, func() []string {
		_ = watcher.Flush() // What was published before has come after it.
		mu.Lock()
		defer mu.Unlock()
		var subjects []string
		for subject := range seen {
			subjects = append(subjects, subject)
		}
		return subjects
	}, refused
}

// covers reports whether a pattern with * and > covers a subject.
func covers(pattern, subject string) bool {
	expression := regexp.QuoteMeta(pattern)
	expression = strings.ReplaceAll(expression, `\*`, `[^.]+`)
	expression = strings.TrimSuffix(expression, ">")
	if strings.HasSuffix(pattern, ">") {
		expression += ".+"
	}
	return regexp.MustCompile("^" + expression + "$").MatchString(subject)
}

// keepACheckpoint does to the object store what nodes do, with a copy so large that the server slows down who reads it.
func keepACheckpoint(t *testing.T, url string) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	blobs, err := eventstore.OpenBlobs(t.Context(), nc, 1)
	if err != nil {
		t.Fatal(err)
	}
	copied := bytes.Repeat([]byte("checkpoint"), 1<<20)
	for range 2 { // The second takes the place of the first.
		if err := blobs.Put(t.Context(), "one", bytes.NewReader(copied)); err != nil {
			t.Fatal(err)
		}
	}
	from, err := blobs.Get(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(from)
	if err := errors.Join(err, from.Close()); err != nil || !bytes.Equal(got, copied) {
		t.Fatalf("got %d bytes of %d, error %v", len(got), len(copied), err)
	}
	if names, err := blobs.Names(t.Context()); err != nil || len(names) != 1 {
		t.Fatalf("got %v, error %v; want one name", names, err)
	}
	if err := blobs.Remove(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
}

func TestServersOfWeirsOwnAllowWhatTheShippedConfigurationDoes(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "ops", "nats", "weir.conf"))
	if err != nil {
		t.Fatal(err)
	}
	publish, subscribe := embedded.NodePermissions()
	for rule, want := range map[string][]string{
		`(?s)publish \{\s*allow: \[(.*?)\n\s*\]`: publish, `(?s)subscribe: \{ allow: \[(.*?)\]`: subscribe,
	} {
		var got []string
		if allowed := regexp.MustCompile(rule).FindStringSubmatch(string(text)); allowed != nil {
			for _, subject := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(allowed[1], -1) {
				got = append(got, subject[1])
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: ops/nats/weir.conf allows\n%q\nand servers of Weir's own\n%q", rule, got, want)
		}
	}
}

func TestNodesWorkWithThePermissionsThatAreShippedAndUseEach(t *testing.T) {
	url, permissions, published, refused := watchedServer(t)
	if len(permissions) < 20 {
		t.Fatalf("permissions %v: the test did not find them", permissions)
	}
	keepACheckpoint(t, url)
	dirs := [2]string{t.TempDir(), t.TempDir()}
	var nodes [2]*devNode
	for i, dir := range dirs {
		if i > 0 {
			for _, file := range []string{identity.SigningKeyFile, "master.key"} {
				key, err := os.ReadFile(filepath.Join(dirs[0], file))
				if err == nil {
					err = os.WriteFile(filepath.Join(dir, file), key, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		nodes[i] = startNode(t, "serve", "--nats", url, "--allow-lossy-log", "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--log-level", "warn", "--lanes", "2",
			"--publish-events", "--node-id", fmt.Sprint("node-", i))
	}
	token := func(user, scope string) []string {
		return nodes[0].env(strings.TrimSpace(live(t, nil, "token", "--data", dirs[0], "--user", user, "--scope", scope).want(t, exitOK).stdout))
	}
	operator := token("op", "operator")
	live(t, operator, "product", "put", "--sku", "tea", "--title", "Tea", "--price", "1.00 EUR").want(t, exitOK)
	live(t, operator, "stock", "receive", "--sku", "tea", "--quantity", "10").want(t, exitOK)
	owners := func() string { return fmt.Sprint("lanes: ", laneOwners(t, operator)) }
	eventually(t, "a lane at each node", func() bool {
		lanes := laneOwners(t, operator)
		return slices.Contains(lanes, "node-0") && slices.Contains(lanes, "node-1")
	}, owners)
	for _, user := range []string{"alice", "bob", "carol", "dave"} { // Of both lanes, and so of both nodes.
		customer := token(user, "")
		order := place(t, customer, "tea=1", "--note", "ring twice")
		wantText(t, live(t, customer, "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK).stdout, "ring twice")
		live(t, operator, "order", "cancel", order.Order.OrderID).want(t, exitOK)
	}
	live(t, operator, "user", "erase", "--user", "alice", "--yes").want(t, exitOK)
	live(t, operator, "lanes", "move", "0", "node-1").want(t, exitOK)
	eventually(t, "lane 0 at node-1", func() bool { return laneOwners(t, operator)[0] == "node-1" }, owners)
	live(t, operator, "lanes", "move", "0", "--anywhere").want(t, exitOK)
	wantText(t, live(t, []string{"WEIR_NATS=" + url}, "doctor").want(t, exitOK).stdout, "this account may not delete the log")
	shown := live(t, nil, "doctor", "--nats", url).want(t, exitDifference)
	wantText(t, shown.stdout, "an address has one, and every user of the machine can list command lines", "give --nats-creds")
	var missing []string
	eventually(t, "each permission used", func() bool { // Public events and the reactors' positions come a moment after the order.
		missing = missing[:0]
		subjects := published()
		for _, permission := range permissions {
			if !slices.ContainsFunc(subjects, func(subject string) bool { return covers(permission, subject) }) {
				missing = append(missing, permission)
			}
		}
		return len(missing) == 0
	}, func() string { return fmt.Sprintf("never used: %v; used: %v", missing, published()) })
	for _, n := range nodes {
		if r := n.stop(); r.code != exitOK {
			t.Fatalf("the node ended with %d:\n%s", r.code, r.stderr)
		}
	}
	if said := refused.all(); len(said) > 0 {
		t.Fatalf("the server refused %d times: %v", len(said), said[:min(len(said), 10)])
	}
}
