package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/ops/redisserver"
	"github.com/weirhq/weir/projections"
)

func TestANodeReadsThroughRedisAndDoesWithoutIt(t *testing.T) {
	server := redisserver.Start(t)
	dir := filepath.Join(t.TempDir(), "data")
	n := startDev(t, dir, "--demo", "--redis", "redis://"+server.Addr)
	order := place(t, n.customer(), "tea-sencha")
	get := func() {
		t.Helper()
		wantText(t, live(t, n.customer(), "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK).stdout, "pending-payment")
	}
	reads := func() readReport {
		return decode[readReport](t, live(t, nil, "reads", "--data", dir, "-o", "json").want(t, exitOK).stdout)
	}
	get()
	report := reads()
	if report.Redis == nil || report.Reads["orders"].Loads+report.Reads["orders"].Redis == 0 {
		t.Fatalf("got %+v", report)
	}
	for end := time.Now().Add(20 * time.Second); report.Redis.Written == 0; report = reads() {
		if time.Now().After(end) {
			t.Fatalf("nothing was written to Redis: %+v", report.Redis)
		}
	}
	wantText(t, live(t, nil, "reads", "--data", dir).want(t, exitOK).stdout, "orders", "Redis: ")

	// Without Redis the node answers as before, and starts.
	server.Kill()
	order = place(t, n.customer(), "tea-sencha=2")
	get()
	n.stop().want(t, exitOK)
	n = startDev(t, dir, "--redis", "redis://"+server.Addr)
	get()
	n.stop().want(t, exitOK)
	wantText(t, live(t, nil, "reads", "--data", dir).want(t, exitUnavailable).stderr, "no node runs on")
}

func TestVerifyFindsWhatIsWrongInRedis(t *testing.T) {
	server := redisserver.Start(t)
	dir := filepath.Join(t.TempDir(), "data")
	n := startDev(t, dir, "--demo", "--redis", "redis://"+server.Addr)
	order := place(t, n.customer(), "tea-sencha")
	client := redis.NewClient(&redis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = client.Close() })
	key := "weir:" + projections.CopiedVersions() + ":order:{" + order.Order.OrderID + "}"
	var entry []byte
	for end := time.Now().Add(20 * time.Second); ; {
		var err error
		if entry, err = client.Get(t.Context(), key).Bytes(); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the order is not in Redis: %v", err)
		}
	}
	type report struct {
		OK    bool
		Redis redisComparison
	}
	verify := func(code exitCode, args ...string) string {
		t.Helper()
		return live(t, nil, append([]string{"projections", "verify", "--data", dir}, args...)...).want(t, code).stdout
	}
	wantText(t, verify(exitOK), "equal to the fold of the log", "redis", "equal to the views in ")
	if got := decode[report](t, verify(exitOK, "-o", "json")); !got.OK || got.Redis.Compared == 0 {
		t.Errorf("got %+v, want entries compared", got)
	}
	entry[len(entry)-1] ^= 1
	if err := client.Set(t.Context(), key, entry, time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	wantText(t, verify(exitDifference), "DIFFERENT", key, "are not what a node of ours writes there")
	if got := decode[report](t, verify(exitDifference, "-o", "json")); got.OK || got.Redis.DifferencesTotal != 1 || len(got.Redis.Differences) != 1 {
		t.Errorf("got %+v, want one difference", got)
	}
	server.Kill()
	wantText(t, verify(exitOK), "equal to the fold of the log", "not compared: redis does not answer")
	n.stop().want(t, exitOK)
	if said := verify(exitOK); strings.Contains(said, "redis") {
		t.Errorf("a stopped node speaks of Redis: %s", said)
	}
}

func TestARedisThatCannotBeIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	missing := filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--redis", "127.0.0.1:6379"}, "neither with redis:// nor with rediss://"},
		{[]string{"--redis", "redis://127.0.0.1"}, "every host needs a port"},
		{[]string{"--redis", "redis://127.0.0.1:6379/3"}, "every host needs a port"},
		{[]string{"--redis", "redis://a:b@127.0.0.1:6379", "--redis-password-file", missing}, "both --redis and --redis-password-file"},
		{[]string{"--redis", "redis://a@127.0.0.1:6379", "--redis-password-file", missing}, "--redis-password-file"},
		{[]string{"--redis", "redis://127.0.0.1:6379", "--redis-ca-file", missing}, "does not use it"},
		{[]string{"--redis", "rediss://127.0.0.1:6379", "--redis-ca-file", missing}, "read the authority's certificate"},
		{[]string{"--redis", "redis://127.0.0.1:6379", "--redis-prefix", "a b"}, "prefix"},
	} {
		wantText(t, live(t, nil, append([]string{"dev", "--data", dir, "--listen", "127.0.0.1:0"}, c.args...)...).want(t, exitUsage).stderr, c.want)
	}
	address := redisserver.Start(t).Addr
	secret := "c3cr3t"
	said := live(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0", "--redis", "redis://ann:"+secret+"@"+address).want(t, exitUsage).stderr
	wantText(t, said, "a node needs none")
	if strings.Contains(said, secret) {
		t.Errorf("the password is printed: %s", said)
	}
}
