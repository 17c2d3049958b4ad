package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

func TestWhoIsAskedForViewsIsTheOneThatIsLeastBehind(t *testing.T) {
	member := func(address string, lag uint64, draining bool) *clusterv1.Member {
		return &clusterv1.Member{Addresses: []string{address}, ViewsLagCommits: lag, Draining: draining}
	}
	got := addressesByViews([]*clusterv1.Member{
		member("http://leaving/", 0, true), member("http://far", 9000, false), member("http://near", 1000, false), member("http://nearer", 0, false),
		member("http://farther", 9001, false),
	})
	if want := []string{"http://near", "http://nearer", "http://far", "http://farther", "http://leaving"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// startFollowing starts a node with views and one without.
func startFollowing(t *testing.T) *pair {
	t.Helper()
	p := newPair(t)
	p.start(0, "--lanes", "4")
	p.shareKeys()
	p.start(1, "--follow", "none")
	p.eventually("both have their share", func() bool {
		lanes := p.lanes(1)
		return len(lanes["node-0"]) == 2 && len(lanes["node-1"]) == 2
	})
	op := p.env(1, "op", "operator")
	live(t, op, "product", "put", "--sku", "tea", "--title", "Sencha", "--price", "12.90 EUR").want(t, exitOK)
	live(t, op, "stock", "receive", "--sku", "tea", "--quantity", "500").want(t, exitOK)
	p.eventually("the product is known", func() bool {
		return live(t, p.env(1, "ann", ""), "order", "place", "tea", "--request-id", "first").code == exitOK
	})
	return p
}

func TestANodeWithoutViewsTakesOrdersAndHasThemReadElsewhere(t *testing.T) {
	p := startFollowing(t)
	for _, user := range []string{"ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"} { // Of all lanes.
		env := p.env(1, user, "")
		order := place(t, env, "tea")
		wantText(t, live(t, env, "order", "get", order.Order.OrderID, "--min-revision", order.revision(), "--wait", "10s").want(t, exitOK).stdout, "pending-payment")
		wantText(t, live(t, env, "order", "list", "--min-revision", order.revision(), "--wait", "10s").want(t, exitOK).stdout, order.Order.OrderID)
	}
	op := p.env(1, "op", "operator")
	wantText(t, live(t, op, "stock", "get", "tea").want(t, exitOK).stdout, "received    500")
	wantText(t, live(t, op, "cluster", "status").want(t, exitOK).stdout, "no views")
	for _, args := range [][]string{{"projections", "status"}, {"projections", "list"}, {"parked", "list"}, {"projections", "rebuild", "orders"}} {
		r := live(t, op, append(args, "--data", p.dirs[1])...)
		if r.code == exitOK {
			t.Errorf("weir %s at a node without views: it succeeds: %s", strings.Join(args, " "), r.stdout)
		}
		wantText(t, r.stderr, "node-1 keeps no views", "node-0", p.nodes[0].lines.API)
	}
	doctor := live(t, op, "doctor", "--data", p.dirs[1], "-o", "json")
	found := false
	for line := range strings.Lines(doctor.stdout) {
		var finding struct{ Check, State, Found string }
		if err := json.Unmarshal([]byte(line), &finding); err != nil {
			t.Fatal(err)
		}
		if finding.Check == "nodes that keep views" {
			found = finding.State == "wrong" && finding.Found == "1 of 2"
		}
	}
	if !found {
		t.Errorf("the doctor does not mind that one node of two keeps views:\n%s", doctor.stdout)
	}

	p.nodes[0].stop().want(t, exitOK)
	p.eventually("the node without views has all lanes", func() bool { return len(p.lanes(1)["node-1"]) == 4 })
	ann := p.env(1, "ann", "")
	order := place(t, ann, "tea")
	wantText(t, live(t, ann, "order", "get", order.Order.OrderID).want(t, exitUnavailable).stderr, "VIEWS_UNAVAILABLE")
}

func TestViewsStayWhereTheyAreWhileANodeFollowsNothing(t *testing.T) {
	p := newPair(t)
	p.start(0, "--lanes", "2")
	op := p.env(0, "op", "operator")
	live(t, op, "product", "put", "--sku", "tea", "--title", "Sencha", "--price", "12.90 EUR").want(t, exitOK)
	live(t, op, "stock", "receive", "--sku", "tea", "--quantity", "500").want(t, exitOK)
	before := place(t, p.env(0, "ann", ""), "tea")
	p.nodes[0].stop().want(t, exitOK)
	p.start(0, "--follow", "none")
	ann := p.env(0, "ann", "")
	meanwhile := place(t, ann, "tea")
	wantText(t, live(t, ann, "order", "list").want(t, exitUnavailable).stderr, "VIEWS_UNAVAILABLE")
	p.nodes[0].stop().want(t, exitOK)
	p.start(0)
	list := live(t, p.env(0, "ann", ""), "order", "list", "--min-revision", meanwhile.revision(), "--wait", "10s").want(t, exitOK).stdout
	wantText(t, list, before.Order.OrderID, meanwhile.Order.OrderID)
	live(t, p.env(0, "op", "operator"), "projections", "verify", "--data", p.dirs[0]).want(t, exitOK)
}

func TestFollowIsAllOrNone(t *testing.T) {
	wantText(t, weir(t, nil, "serve", "--nats", "nats://127.0.0.1:1", "--follow", "some").want(t, exitUsage).stderr, "--follow must be all or none")
	wantText(t, weir(t, nil, "dev", "--follow", "none").want(t, exitUsage).stderr, "--follow")
}

func TestPaymentsOfANodeWithoutViewsAreSettled(t *testing.T) {
	sandbox := startDev(t, t.TempDir())
	p := newPair(t)
	paying := []string{"--payment-provider", "sandbox", "--sandbox-url", sandbox.lines.Sandbox}
	p.start(0, append([]string{"--lanes", "4"}, paying...)...)
	p.shareKeys()
	p.start(1, append([]string{"--follow", "none"}, paying...)...)
	op := p.env(1, "op", "operator")
	live(t, op, "product", "put", "--sku", "tea", "--title", "Sencha", "--price", "12.90 EUR").want(t, exitOK)
	live(t, op, "stock", "receive", "--sku", "tea", "--quantity", "500").want(t, exitOK)
	live(t, op, "cluster", "drain", "node-0").want(t, exitOK)
	p.eventually("the node without views has all lanes", func() bool { return len(p.lanes(1)["node-1"]) == 4 })
	for _, user := range []string{"ann", "bob", "cid"} {
		env := p.env(1, user, "")
		order := place(t, env, "tea")
		live(t, env, "payment", "start", order.Order.OrderID, "--method", "tok_ok").want(t, exitOK)
		p.eventually("the order is paid", func() bool {
			return strings.Contains(live(t, env, "order", "get", order.Order.OrderID, "--wait", "5s", "-o", "json").stdout, "CAPTURED")
		})
	}
}
