package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// watchedServer runs a server with the configuration of ops/nats, and a user more, who hears everything in the account.
func watchedServer(t *testing.T) (url string, permissions []string, published func() []string) {
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
	options.NoSigs, options.NoLog = true, true
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
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
	}
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

func TestANodeWorksWithThePermissionsThatAreShippedAndUsesEach(t *testing.T) {
	url, permissions, published := watchedServer(t)
	if len(permissions) < 10 {
		t.Fatalf("permissions %v: the test did not find them", permissions)
	}
	dir := t.TempDir()
	n := startNode(t, "serve", "--nats", url, "--allow-lossy-log", "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--log-level", "warn", "--lanes", "2", "--publish-events")
	operator := strings.TrimSpace(live(t, nil, "token", "--data", dir, "--user", "op", "--scope", "operator").want(t, exitOK).stdout)
	customer := strings.TrimSpace(live(t, nil, "token", "--data", dir, "--user", "alice").want(t, exitOK).stdout)
	live(t, n.env(operator), "product", "put", "--sku", "tea", "--title", "Tea", "--price", "1.00 EUR").want(t, exitOK)
	live(t, n.env(operator), "stock", "receive", "--sku", "tea", "--quantity", "10").want(t, exitOK)
	order := place(t, n.env(customer), "tea=1", "--note", "ring twice")
	wantText(t, live(t, n.env(customer), "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK).stdout, "ring twice")
	live(t, n.env(operator), "order", "cancel", order.Order.OrderID).want(t, exitOK)
	live(t, n.env(operator), "user", "erase", "--user", "alice", "--yes").want(t, exitOK)
	r := live(t, nil, "doctor", "--nats", url)
	wantText(t, r.stdout, "this account may not delete the log")
	missing := []string{}
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for { // Public events come a moment after the order.
		missing = missing[:0]
		subjects := published()
	permission:
		for _, permission := range permissions {
			for _, subject := range subjects {
				if covers(permission, subject) {
					continue permission
				}
			}
			missing = append(missing, permission)
		}
		if len(missing) == 0 {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("never used: %v\nused: %v", missing, subjects)
		case <-tick.C:
		}
	}
	if r := n.stop(); r.code != exitOK || strings.Contains(r.stderr, "ermissions") {
		t.Fatalf("the node ended with %d:\n%s", r.code, r.stderr)
	}
}
