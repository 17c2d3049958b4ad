package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
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
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/plan"
	"github.com/weirhq/weir/gateway/room"
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

// A watchedServer is a server with the configuration of ops/nats, and a user more, who hears everything in the account.
type watchedServer struct {
	conf, address string
	refused       *refusals
	watcher       *nats.Conn

	mu   sync.Mutex
	seen map[string]bool
}

// url is how a user of the configuration reaches it.
func (s *watchedServer) url(user string) string {
	return strings.Replace(s.address, "nats://", "nats://"+user+":test@", 1)
}

// permissions are the subjects that a user may publish to.
func (s *watchedServer) permissions(t *testing.T, user string) (subjects []string) {
	t.Helper()
	allow := regexp.MustCompile(`(?s)user: ` + user + `\n.*?publish \{\s*allow: \[(.*?)\n\s*\]`).FindStringSubmatch(s.conf)
	if allow == nil {
		t.Fatalf("ops/nats/weir.conf allows %s nothing", user)
	}
	for _, quoted := range regexp.MustCompile(`"([^"]+)"`).FindAllStringSubmatch(allow[1], -1) {
		subjects = append(subjects, quoted[1])
	}
	if len(subjects) < 15 {
		t.Fatalf("%s has the permissions %v: the test did not find them", user, subjects)
	}
	return subjects
}

// published returns the subjects that were published to since it was called last.
func (s *watchedServer) published() []string {
	_ = s.watcher.Flush() // What was published before has come after it.
	s.mu.Lock()
	defer s.mu.Unlock()
	subjects := slices.Collect(maps.Keys(s.seen))
	clear(s.seen)
	return subjects
}

// unused returns the permissions that cover none of the subjects.
func unused(permissions, subjects []string) []string {
	return slices.DeleteFunc(slices.Clone(permissions), func(permission string) bool {
		return slices.ContainsFunc(subjects, func(subject string) bool { return covers(permission, subject) })
	})
}

func startWatchedServer(t *testing.T) *watchedServer {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "ops", "nats", "weir.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"", "GATEWAY_", "OPERATOR_", "SYSTEM_"} {
		t.Setenv("WEIR_NATS_"+user+"PASSWORD", "test")
	}
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
	options := &server.Options{}
	if err := options.ProcessConfigString(conf); err != nil {
		t.Fatal(err)
	}
	options.NoSigs = true
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	watched := &watchedServer{conf: conf, refused: &refusals{}, seen: map[string]bool{}}
	s.SetLoggerV2(watched.refused, false, false, false)
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server is not ready")
	}
	watched.address = s.ClientURL()
	if watched.watcher, err = nats.Connect(s.ClientURL(), nats.UserInfo("watcher", "test")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watched.watcher.Close)
	if _, err := watched.watcher.Subscribe(">", func(m *nats.Msg) {
		watched.mu.Lock()
		defer watched.mu.Unlock()
		watched.seen[m.Subject] = true
	}); err != nil {
		t.Fatal(err)
	}
	if err := watched.watcher.Flush(); err != nil {
		t.Fatal(err)
	}
	return watched
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
	watched := startWatchedServer(t)
	url, permissions := watched.url("weir"), watched.permissions(t, "weir")
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
	var subjects []string
	eventually(t, "each permission used", func() bool { // Public events and the reactors' positions come a moment after the order.
		subjects = append(subjects, watched.published()...)
		return len(unused(permissions, subjects)) == 0
	}, func() string { return fmt.Sprintf("never used: %v; used: %v", unused(permissions, subjects), subjects) })
	for _, n := range nodes {
		if r := n.stop(); r.code != exitOK {
			t.Fatalf("the node ended with %d:\n%s", r.code, r.stderr)
		}
	}
	if said := watched.refused.all(); len(said) > 0 {
		t.Fatalf("the server refused %d times: %v", len(said), said[:min(len(said), 10)])
	}
}

// The node is away while the gateway makes and uses what is its own, so that nothing that a node does counts for it.
func TestGatewaysWorkWithThePermissionsThatAreShippedAndUseEach(t *testing.T) {
	watched := startWatchedServer(t)
	dir, secret := t.TempDir(), secretOf(t, "0d")
	serve := []string{
		"serve", "--nats", watched.url("weir"), "--allow-lossy-log", "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--log-level", "error",
		"--lanes", "1", "--lease-ttl", "1s", "--node-id", "node-0",
	}
	n := startNode(t, serve...)
	operatorToken := tokenFor(t, dir, "op", "operator")
	operator := n.env(operatorToken)
	live(t, operator, "product", "put", "--sku", "tea", "--title", "Tea", "--price", "1.00 EUR").want(t, exitOK)
	live(t, operator, "stock", "receive", "--sku", "tea", "--quantity", "9").want(t, exitOK)
	live(t, operator, "campaign", "put", "rush", "--sku", "tea", "--price", "0.50 EUR", "--units", "3", "--opens", "now", "--closes", "+30m").want(t, exitOK)
	n.stop().want(t, exitOK)
	ofNodes := watched.published()

	people := []string{"WEIR_NATS=" + watched.url("operator")}
	opens, closes := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	lines, stop := startGateway(
		t, "--nats", watched.url("gateway"), "--token-key-dir", dir, "--gateway-secret-file", secret, "--log-level", "warn",
		"--operator-token-file", fileOf(t, "operator.token", operatorToken),
		"--policy", fileOf(t, "policy.yaml", fmt.Sprintf(`
methods: {weir.order.v1.OrderService/PlaceOrder: {fault: {mode: failback}}}
board: [{sku: tea, campaign_id: rush}]
room: {campaigns: [{campaign_id: rush, opens_at: %s, closes_at: %s}]}
`, opens, closes)),
	)
	alice := tokenFor(t, dir, "alice", "")
	const late, much = `{"requestId":"late","items":[{"sku":"tea","quantity":"2"}]}`, `{"requestId":"much","items":[{"sku":"tea","quantity":"100"}]}`
	for _, request := range []string{late, late, much} { // The second is compared with the first.
		until(t, "kept "+request, func() (bool, string) {
			status, body, header := placeAt(t, lines.Gateway, alice, request)
			return status == http.StatusOK && header.Get(gateway.HeaderFailback) == "accepted", fmt.Sprint(status, body)
		})
	}
	live(t, people, by("plan", "put", "../../ops/plans/payment-down.yaml")...).want(t, exitOK)
	live(t, people, "plan", "dry-run", "payment-down", "--for", "1s").want(t, exitOK)
	live(t, people, by("plan", "apply", "payment-down", "--ttl", "1h")...).want(t, exitOK)
	live(t, people, "plan", "history").want(t, exitOK)
	until(t, "the plan is gone by", func() (bool, string) {
		_, _, header := placeAt(t, lines.Gateway, alice, late)
		return strings.HasPrefix(header.Get(gateway.HeaderPlan), "payment-down@"), fmt.Sprint(header)
	})
	live(t, people, by("plan", "rollback")...).want(t, exitOK)
	alone := watched.published()

	n = startNode(t, serve...)
	status := func(state string, count int) func() (bool, string) {
		return func() (bool, string) {
			text := metricsOf(t, lines.Operator)
			return strings.Contains(text, fmt.Sprintf("weir_gateway_failback_requests{state=%q} %d\n", state, count)), text
		}
	}
	until(t, "made", status("waiting", 0))
	until(t, "one parked", status("parked", 1))
	list := append(slices.Clone(people), "WEIR_GATEWAY_SECRET_FILE="+secret)
	parked := live(t, list, "gateway", "failback", "list", "-o", "json").want(t, exitDifference)
	key := decode[struct{ Parked []parkedRequest }](t, parked.stdout).Parked[0].Key
	live(t, list, "gateway", "failback", "retry", key).want(t, exitOK)
	until(t, "parked again", func() (bool, string) {
		text := metricsOf(t, lines.Operator)
		return strings.Contains(text, `weir_gateway_failback_total{what="parked"} 2`+"\n"), text
	})
	live(t, list, "gateway", "failback", "drop", key).want(t, exitOK)
	// Two orders with one pass: the turn is counted on NATS.
	pass := passOf(t, lines.Gateway, alice, "rush")
	ordered := func(id string) int {
		status, _, _ := placeAt(t, lines.Gateway, alice, `{"requestId":"`+id+`","campaignId":"rush","items":[{"sku":"tea","quantity":"1"}]}`, room.HeaderPass, pass)
		return status
	}
	if first, second := ordered("one"), ordered("two"); first != http.StatusOK || second != http.StatusBadRequest {
		t.Errorf("two orders with one pass got %d and %d, want the first alone", first, second)
	}
	for _, stream := range []string{plan.BucketStream, plan.AuditStream, room.UsesStream} { // One server raises nothing; that it would be let is seen here.
		updateAsItIs(t, watched.url("gateway"), stream)
	}
	used := append(alone, watched.published()...)
	missing := func() []string {
		return slices.Concat(unused(watched.permissions(t, "gateway"), used), unused(watched.permissions(t, "operator"), used))
	}
	eventually(t, "each permission used", func() bool { // The list of nodes is read anew each ten seconds.
		used = append(used, slices.DeleteFunc(watched.published(), func(subject string) bool { return slices.Contains(ofNodes, subject) })...)
		return len(missing()) == 0
	}, func() string { return fmt.Sprintf("never used: %q", missing()) })
	stop().want(t, exitOK)
	n.stop().want(t, exitOK)
	if said := watched.refused.all(); len(said) > 0 {
		t.Errorf("the server refused %d times: %v", len(said), said[:min(len(said), 10)])
	}
}

// updateAsItIs changes a stream to what it is.
func updateAsItIs(t *testing.T, url, stream string) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	found, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.UpdateStream(t.Context(), found.CachedInfo().Config); err != nil {
		t.Errorf("update stream %s: %v", stream, err)
	}
}

func TestAGatewaysUserMayNotWriteWhatNodesWrite(t *testing.T) {
	watched := startWatchedServer(t)
	for user, forbidden := range map[string][]string{
		"gateway": {
			"weir.log.00", "weir.cmd.0", "weir.escrow.0", "weir.events.order.placed", "$KV.WEIR-NODES.node-0", "$KV.WEIR-LEASES.00", "$KV.WEIR-USER-KEYS.a",
			"$KV.WEIR-CLUSTER.topology", "$KV.WEIR-PLANS.active", "$JS.API.STREAM.DELETE.ORDERS-00", "$JS.API.STREAM.CREATE.ORDERS-00",
			"$JS.API.STREAM.MSG.GET.ORDERS-00", "$JS.API.STREAM.MSG.GET.KV_WEIR-USER-KEYS", "$JS.API.DIRECT.GET.KV_WEIR-USER-KEYS.a",
			"$JS.API.STREAM.UPDATE.ORDERS-00", "$JS.API.STREAM.UPDATE.KV_WEIR-NODES", "$JS.API.STREAM.DELETE.WEIR-FAILBACK", "$JS.API.STREAM.PURGE.WEIR-FAILBACK",
		},
		"operator": {"weir.log.00", "$KV.WEIR-NODES.node-0", "$KV.WEIR-USER-KEYS.a", "$JS.API.STREAM.MSG.DELETE.KV_WEIR-PLANS", "$JS.API.STREAM.DELETE.WEIR-PLAN-AUDIT"},
	} {
		var mu sync.Mutex
		var refused []string
		nc, err := nats.Connect(watched.url(user), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, err.Error())
		}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		for _, subject := range forbidden {
			if err := nc.Publish(subject, nil); err != nil {
				t.Fatal(err)
			}
		}
		for _, subject := range []string{">", "weir.log.*", "$KV.WEIR-USER-KEYS.*", "weir.cmd.*"} {
			if _, err := nc.SubscribeSync(subject); err != nil {
				t.Fatal(err)
			}
			forbidden = append(forbidden, subject)
		}
		eventually(t, user+" refused everything", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return !slices.ContainsFunc(forbidden, func(subject string) bool {
				return !slices.ContainsFunc(refused, func(said string) bool { return strings.Contains(said, `"`+subject+`"`) })
			})
		}, func() string {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprintf("of %q refused was %q", forbidden, refused)
		})
	}
}
