package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/gateway/room"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	roomv1 "github.com/weirhq/weir/proto/weir/room/v1"
	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

// gatewayTestMax bounds what these tests wait for.
const gatewayTestMax = time.Minute

// secretOf writes a secret of gateways that is these two digits all over.
func secretOf(t *testing.T, digits string) string {
	t.Helper()
	return fileOf(t, "gateway.secret", strings.Repeat(digits, 32))
}

func fileOf(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tokenFor mints a token with the key in a node's directory.
func tokenFor(t *testing.T, dir, user, scope string) string {
	t.Helper()
	return strings.TrimSpace(live(t, nil, "token", "--data", dir, "--user", user, "--scope", scope).want(t, exitOK).stdout)
}

// placeAt places an order as Connect does, and returns what came of it.
func placeAt(t *testing.T, base, token, request string, header ...string) (status int, body string, replied http.Header) {
	t.Helper()
	call, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+orderv1connect.OrderServicePlaceOrderProcedure, strings.NewReader(request))
	if err != nil {
		t.Fatal(err)
	}
	call.Header.Set("Content-Type", "application/json")
	call.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i+1 < len(header); i += 2 {
		call.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(call)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(text), response.Header
}

// until asks again and again until what came is what is waited for.
func until(t *testing.T, what string, ask func() (done bool, got string)) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(gatewayTestMax); ; {
		done, got := ask()
		switch {
		case done:
			return
		case time.Now().After(end):
			t.Fatalf("%s: not within %s; the last that came was %s", what, gatewayTestMax, got)
		}
		<-tick.C
	}
}

func TestAnOrderOfWhichNoNodeIsThereIsKeptAndPlacedOnce(t *testing.T) {
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	dir := t.TempDir()
	serve := []string{
		"serve", "--nats", server.ClientURL(), "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--lanes", "1", "--log-level", "error",
		"--nats-monitor", server.MonitorURL(), "--lease-ttl", "1s", "--node-id", "node-0",
	}
	n := startNode(t, serve...)
	operator, alice := n.env(tokenFor(t, dir, "op", "operator")), tokenFor(t, dir, "alice", "")
	live(t, operator, "product", "put", "--sku", "tea", "--title", "Sencha", "--price", "12.90 EUR").want(t, exitOK)
	live(t, operator, "stock", "receive", "--sku", "tea", "--quantity", "5").want(t, exitOK)
	n.stop().want(t, exitOK)

	secret := secretOf(t, "0b")
	decided := fileOf(t, "policy.yaml", "methods:\n  weir.order.v1.OrderService/PlaceOrder:\n    fault: {mode: failback}\n")
	lines, stop := startGateway(t, "--nats", server.ClientURL(), "--policy", decided, "--token-key-dir", dir, "--gateway-secret-file", secret)
	const late, refused = `{"requestId":"late","items":[{"sku":"tea","quantity":"2"}]}`, `{"requestId":"much","items":[{"sku":"tea","quantity":"100"}]}`
	for _, request := range []string{late, late, refused} {
		until(t, "kept "+request, func() (bool, string) {
			status, body, header := placeAt(t, lines.Gateway, alice, request)
			return status == http.StatusOK && body == "{}" && header.Get(gateway.HeaderFailback) == "accepted", fmt.Sprint(status, body)
		})
	}
	// The same in another protocol is the same request.
	again, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", "Bearer "+alice)
	web := orderv1connect.NewOrderServiceClient(http.DefaultClient, lines.Gateway, connect.WithGRPCWeb())
	if _, err := web.PlaceOrder(again, &orderv1.PlaceOrderRequest{RequestId: "late", Items: []*orderv1.ItemRequest{{Sku: "tea", Quantity: 2}}}); err != nil || call.ResponseHeader().Get(gateway.HeaderFailback) != "accepted" {
		t.Fatalf("got %v, %v", err, call.ResponseHeader())
	}
	// Who is nobody has nothing kept.
	if status, body, _ := placeAt(t, lines.Gateway, alice+"x", late); status != http.StatusServiceUnavailable {
		t.Errorf("with a bad token got %d %s", status, body)
	}

	n = startNode(t, serve...)
	counted := func(line string) func() (bool, string) {
		return func() (bool, string) {
			text := metricsOf(t, lines.Operator)
			return strings.Contains(text, line+"\n"), strings.Join(regexp.MustCompile(`(?m)^weir_gateway_failback.*$`).FindAllString(text, -1), "\n")
		}
	}
	until(t, "both made", counted(`weir_gateway_failback_requests{state="waiting"} 0`))
	until(t, "one parked", counted(`weir_gateway_failback_requests{state="parked"} 1`))
	until(t, "one done", counted(`weir_gateway_failback_total{what="done"} 1`))
	// The same request answers now with the order, which was placed once (I4).
	until(t, "answered", func() (bool, string) {
		status, body, header := placeAt(t, lines.Gateway, alice, late)
		return status == http.StatusOK && strings.Contains(body, `"orderId"`) && header.Get(gateway.HeaderFailback) == "", fmt.Sprint(status, body)
	})
	shown := decode[gateway.Status](t, live(t, nil, "gateway", "top", "--addr", lines.Operator, "--count", "1", "-o", "json").want(t, exitOK).stdout)
	if kept := shown.Failback; kept == nil || kept.Parked != 1 || kept.Waiting != 0 || kept.Done != 1 {
		t.Errorf("top says that %+v is kept for later, want one parked and one done", kept)
	}
	list := func(args ...string) []string {
		return append([]string{"gateway", "failback", args[0], "--nats", server.ClientURL(), "--gateway-secret-file", secret}, args[1:]...)
	}
	r := live(t, nil, list("list")...).want(t, exitDifference)
	golden(t, "output/gateway_failback_list.table", steady(r.stdout))
	parked := live(t, nil, list("list", "-o", "json")...).want(t, exitDifference)
	golden(t, "output/gateway_failback_list.json", steady(parked.stdout))
	key := decode[struct{ Parked []parkedRequest }](t, parked.stdout).Parked[0].Key
	live(t, nil, "gateway", "failback", "list", "--nats", server.ClientURL()).want(t, exitUsage)
	wantText(t, live(t, nil, list("retry", "nothing")...).want(t, exitNotFound).stderr, "is not parked")

	// With enough of them the other order is placed too.
	operator = n.env(tokenFor(t, dir, "op", "operator"))
	live(t, operator, "stock", "receive", "--sku", "tea", "--quantity", "200").want(t, exitOK)
	wantText(t, live(t, nil, list("retry", key)...).want(t, exitOK).stdout, key+" is made again")
	until(t, "the other done", counted(`weir_gateway_failback_total{what="done"} 2`))
	live(t, nil, list("list")...).want(t, exitOK)
	live(t, nil, list("drop", key)...).want(t, exitNotFound)
	stop().want(t, exitOK)
	n.stop().want(t, exitOK)
	cat := live(t, nil, "log", "cat", "--data", dir, "--nats", server.ClientURL(), "--type", "OrderPlaced", "-o", "json").want(t, exitOK).stdout
	if got := strings.Count(strings.TrimSpace(cat), "\n") + 1; got != 2 {
		t.Errorf("the log has %d orders, want 2 (I4):\n%s", got, cat)
	}
}

// A plan that has the breaker open is as if the node in this process were away.
func TestAnOrderThatADevNodeKeepsForLaterOutlivesARestartAndIsPlacedOnce(t *testing.T) {
	dir := t.TempDir()
	decided := fileOf(t, "policy.yaml", "methods:\n  weir.order.v1.OrderService/PlaceOrder:\n    fault: {mode: failback}\n")
	away := fileOf(t, "away.yaml", "name: away\nbreakers: [{method: weir.order.v1.OrderService/PlaceOrder, force: open}]\n")
	start := func() *devNode {
		return startDev(t, dir, "--demo", "--nats-listen", "127.0.0.1:0", "--gateway-policy", decided)
	}
	plans := func(n *devNode, args ...string) {
		t.Helper()
		live(t, []string{"WEIR_NATS=" + n.lines.NATS}, append([]string{"plan"}, args...)...).want(t, exitOK)
	}
	n := start()
	alice := tokenFor(t, dir, "alice", "")
	plans(n, by("put", away)...)
	plans(n, by("apply", "away", "--ttl", "1h")...)
	const late = `{"requestId":"late","items":[{"sku":"tea-sencha","quantity":"1"}]}`
	until(t, "kept", func() (bool, string) {
		// Until the plan is gone by, an order of another request is placed.
		status, body, header := placeAt(t, n.lines.API, alice, `{"requestId":"probe","items":[{"sku":"tea-sencha","quantity":"1"}]}`)
		return status == http.StatusOK && header.Get(gateway.HeaderFailback) == "accepted", fmt.Sprint(status, body)
	})
	if status, body, header := placeAt(t, n.lines.API, alice, late); status != http.StatusOK || header.Get(gateway.HeaderFailback) != "accepted" {
		t.Fatalf("the order ended with %d %s, want it kept for later", status, body)
	}
	n.stop().want(t, exitOK)

	n = start()
	// The plan holds over the restart, and so does what is kept.
	if status, body, header := placeAt(t, n.lines.API, alice, late); status != http.StatusOK || header.Get(gateway.HeaderFailback) != "accepted" {
		t.Fatalf("after the restart the same order ended with %d %s, want it kept", status, body)
	}
	plans(n, by("rollback")...)
	until(t, "both orders placed, which nobody asks for again", func() (bool, string) {
		list := live(t, n.env(alice), "order", "list", "-o", "json").want(t, exitOK).stdout
		return strings.Count(list, `"orderId"`) == 2, list
	})
	status, placed, header := placeAt(t, n.lines.API, alice, late)
	if status != http.StatusOK || !strings.Contains(placed, `"orderId"`) || header.Get(gateway.HeaderFailback) != "" {
		t.Fatalf("the same request is answered with %d %s, want the order", status, placed)
	}
	kept := []string{"gateway", "failback", "list", "--nats", n.lines.NATS, "--gateway-secret-file", filepath.Join(dir, gatewaySecretFileName)}
	live(t, nil, kept...).want(t, exitOK) // Nothing was given up.
	n.stop().want(t, exitOK)

	n = start()
	if _, again, _ := placeAt(t, n.lines.API, alice, late); again != placed {
		t.Errorf("the same request answers %s, before %s", again, placed)
	}
	n.stop().want(t, exitOK)
	cat := live(t, nil, "log", "cat", "--data", dir, "--type", "OrderPlaced", "-o", "json").want(t, exitOK).stdout
	if got := strings.Count(cat, `"late"`); got != 1 {
		t.Errorf("the log has the order %d times, want once (I4):\n%s", got, cat)
	}
}

// steady replaces what differs from run to run.
func steady(text string) string {
	text = regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?`).ReplaceAllString(text, "2027-01-01T00:00:00Z")
	text = regexp.MustCompile(`\d+ free`).ReplaceAllString(text, "5 free") // Other kept orders may have been placed by then, or not.
	text = regexp.MustCompile(`"attempts": ?\d+`).ReplaceAllString(text, `"attempts":1`)
	return regexp.MustCompile(`PlaceOrder +\d+ `).ReplaceAllString(text, "PlaceOrder         1 ")
}

func metricsOf(t *testing.T, operator string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, operator+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The edge knows no rules of orders; this holds what it answers against what a node does.
func TestAGatewayRefusesWhatIsSoldOutUntilMoreComes(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo", "--no-gateway")
	lines, stop := startGateway(
		t, "--upstream", n.lines.API, "--operator-token-file", fileOf(t, "operator.token", n.lines.Operator.Token+"\n"),
		"--policy", fileOf(t, "policy.yaml", "edge: {sold_out: true}\nboard: [{sku: last-one}]\n"),
	)
	bob := tokenFor(t, n.lines.Data, "bob", "")
	const request = `{"requestId":"r","items":[{"sku":"last-one","quantity":"1"}]}`
	place(t, n.customer(), "last-one")
	wantStatus, want, _ := placeAt(t, n.lines.API, bob, request)
	until(t, "refused at the edge", func() (bool, string) {
		status, body, header := placeAt(t, lines.Gateway, bob, request)
		return strings.HasPrefix(header.Get(edge.HeaderEdge), "sold-out; lane=") && status == wantStatus && body == want, fmt.Sprint(status, body, header)
	})
	// Who bought it asks the node, which knows of the order.
	if status, body, header := placeAt(t, lines.Gateway, n.lines.Customer.Token, request); status != http.StatusBadRequest || header.Get(edge.HeaderEdge) != "" {
		t.Errorf("whoever bought it got %d %s, %v; want the node's answer", status, body, header)
	}
	wantText(t, metricsOf(t, lines.Operator), `weir_gateway_edge_total{what="sold_out"}`)
	live(t, n.operator(), "stock", "receive", "--sku", "last-one", "--quantity", "1").want(t, exitOK)
	until(t, "sold again", func() (bool, string) {
		status, body, _ := placeAt(t, lines.Gateway, bob, request)
		return status == http.StatusOK, fmt.Sprint(status, body)
	})
	stop().want(t, exitOK)
}

// passOf enters the waiting room of a campaign, and waits for the pass.
func passOf(t *testing.T, base, token, campaign string) (pass string) {
	t.Helper()
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", "Bearer "+token)
	rooms := roomv1connect.NewRoomServiceClient(http.DefaultClient, base)
	entered, err := rooms.Enter(ctx, &roomv1.EnterRequest{CampaignId: campaign})
	if err != nil {
		t.Fatal(err)
	}
	ctx, call = connect.NewClientContext(t.Context())
	call.RequestHeader().Set("Authorization", "Bearer "+token)
	stream, err := rooms.Wait(ctx, &roomv1.WaitRequest{Ticket: entered.GetTicket()})
	if err != nil {
		t.Fatal(err)
	}
	for pass == "" && stream.Receive() {
		pass = stream.Msg().GetPass()
	}
	if err := stream.Close(); err != nil || pass == "" {
		t.Fatalf("no pass came: %v, %v", stream.Err(), err)
	}
	return pass
}

func TestAnOrderOfACampaignWithARoomNeedsAPass(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo", "--no-gateway")
	live(t, n.operator(), "campaign", "put", "rush", "--sku", "tea-sencha", "--price", "4.99 EUR", "--units", "3", "--opens", "now", "--closes", "+30m").want(t, exitOK)
	opens, closes := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	lines, stop := startGateway(
		t, "--upstream", n.lines.API, "--token-key-dir", n.lines.Data, "--gateway-secret-file", secretOf(t, "0c"),
		"--operator-token-file", fileOf(t, "operator.token", n.lines.Operator.Token),
		"--policy", fileOf(t, "policy.yaml", fmt.Sprintf(
			"board: [{sku: tea-sencha, campaign_id: rush}]\nroom:\n  campaigns: [{campaign_id: rush, opens_at: %s, closes_at: %s}]\n", opens, closes)),
	)
	alice, bob := tokenFor(t, n.lines.Data, "alice", ""), tokenFor(t, n.lines.Data, "bob", "")
	const request = `{"requestId":"r","campaignId":"rush","items":[{"sku":"tea-sencha","quantity":"1"}]}`
	needsPass := func(token, pass string) {
		t.Helper()
		status, body, _ := placeAt(t, lines.Gateway, token, request, room.HeaderPass, pass)
		if status != http.StatusBadRequest || !strings.Contains(body, room.ReasonWaitingRoom) {
			t.Errorf("with the pass %q got %d %s", pass, status, body)
		}
	}
	needsPass(alice, "")
	rooms := roomv1connect.NewRoomServiceClient(http.DefaultClient, lines.Gateway)
	as := func(token string) context.Context {
		ctx, call := connect.NewClientContext(t.Context())
		call.RequestHeader().Set("Authorization", "Bearer "+token)
		return ctx
	}
	if _, err := rooms.Enter(as(alice+"x"), &roomv1.EnterRequest{CampaignId: "rush"}); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("with a bad token the room says %v", err)
	}
	pass := passOf(t, lines.Gateway, alice, "rush")
	needsPass(bob, pass)
	// What the node refuses does not use her turn.
	if status, body, _ := placeAt(t, lines.Gateway, alice, strings.Replace(request, `"quantity":"1"`, `"quantity":"0"`, 1), room.HeaderPass, pass); status != http.StatusBadRequest || strings.Contains(body, room.ReasonWaitingRoom) {
		t.Errorf("an order of nothing got %d %s", status, body)
	}
	status, body, _ := placeAt(t, lines.Gateway, alice, request, room.HeaderPass, pass)
	if status != http.StatusOK || !strings.Contains(body, `"orderId"`) {
		t.Errorf("with the pass alice got %d %s", status, body)
	}
	// The same request is answered again; another one would be a second order in one turn.
	if status, again, _ := placeAt(t, lines.Gateway, alice, request, room.HeaderPass, pass); status != http.StatusOK || again != body {
		t.Errorf("the same request again got %d %s, before %s", status, again, body)
	}
	status, body, _ = placeAt(t, lines.Gateway, alice, strings.Replace(request, `"r"`, `"another"`, 1), room.HeaderPass, pass)
	if status != http.StatusBadRequest || !strings.Contains(body, `"used"`) {
		t.Errorf("a second order with the pass got %d %s", status, body)
	}
	top := []string{"gateway", "top", "--addr", lines.Operator, "--count", "1"}
	wantText(t, live(t, nil, top...).want(t, exitOK).stdout, "WAITING ROOM", "rush", "without a pass")
	shown := decode[gateway.Status](t, live(t, nil, append(top, "-o", "json")...).want(t, exitOK).stdout)
	if len(shown.Rooms) != 1 || shown.Rooms[0].Admitted != 1 || shown.Rooms[0].Waiting != 0 || shown.Edge.WithoutPass != 3 || shown.Failback != nil {
		t.Errorf("top says %+v, %+v, %+v; want one let in, and three orders without a turn", shown.Rooms, shown.Edge, shown.Failback)
	}
	stop().want(t, exitOK)
}

func TestAPolicyThatAGatewayIsNotSetUpForIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"methods: {weir.order.v1.OrderService/PlaceOrder: {fault: {mode: failback}}}": "--gateway-secret-file",
		"methods: {weir.order.v1.OrderService/GetOrder: {fault: {mode: failback}}}":   "no request_id",
		"edge: {sold_out: true}": "under board",
		"board: [{sku: tea}]":    "--operator-token-file",
		"room: {campaigns: [{campaign_id: c, opens_at: 2027-01-01T00:00:00Z, closes_at: 2027-01-02T00:00:00Z}]}": "--gateway-secret-file",
	} {
		r := live(t, nil, "gateway", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--policy", fileOf(t, "policy.yaml", text)).want(t, exitUsage)
		wantText(t, r.stderr, want)
	}
	short := fileOf(t, "short", "abc")
	wantText(t, live(t, nil, "gateway", "--upstream", "http://a", "--gateway-secret-file", short).want(t, exitUsage).stderr, "openssl rand")
	if err := os.Chmod(short, 0o644); err != nil {
		t.Fatal(err)
	}
	wantText(t, live(t, nil, "gateway", "--upstream", "http://a", "--gateway-secret-file", short).want(t, exitUsage).stderr, "chmod 600")
	if one := (gatewaySecret{secret: []byte("a")}); bytes.Equal(one.key(failbackKeyUse), one.key(roomKeyUse)) {
		t.Error("two uses have one key")
	}
}

// A dev node needs no more than a policy for a waiting room, a board and calls that are kept: the secret is made in its directory, once.
func TestADevNodeHasWaitingRoomsAndKeepsCallsWithNoMoreThanAPolicy(t *testing.T) {
	dir := t.TempDir()
	decided := fileOf(t, "policy.yaml", fmt.Sprintf(
		"methods: {weir.order.v1.OrderService/PlaceOrder: {fault: {mode: failback}}}\nedge: {sold_out: true}\nboard: [{sku: tea-sencha, campaign_id: rush}]\nroom:\n  campaigns: [{campaign_id: rush, opens_at: %s, closes_at: %s}]\n",
		time.Now().Add(-time.Minute).UTC().Format(time.RFC3339), time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	n := startDev(t, dir, "--demo", "--gateway-policy", decided)
	live(t, n.operator(), "campaign", "put", "rush", "--sku", "tea-sencha", "--price", "4.99 EUR", "--units", "3", "--opens", "now", "--closes", "+30m").want(t, exitOK)
	secret := filepath.Join(dir, gatewaySecretFileName)
	info, err := os.Stat(secret)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the secret: %v, %v, want mode 0600", info, err)
	}
	made, err := os.ReadFile(secret)
	if err != nil {
		t.Fatal(err)
	}
	live(t, nil, "gateway", "check", decided, "--gateway-secret-file", secret).want(t, exitOK)

	alice := n.lines.Customer.Token
	const request = `{"requestId":"r","campaignId":"rush","items":[{"sku":"tea-sencha","quantity":"1"}]}`
	if status, body, _ := placeAt(t, n.lines.API, alice, request); status != http.StatusBadRequest || !strings.Contains(body, `"no_pass"`) {
		t.Errorf("without a pass got %d %s", status, body)
	}
	rooms := roomv1connect.NewRoomServiceClient(http.DefaultClient, n.lines.API)
	as := func() context.Context {
		ctx, call := connect.NewClientContext(t.Context())
		call.RequestHeader().Set("Authorization", "Bearer "+alice)
		return ctx
	}
	entered, err := rooms.Enter(as(), &roomv1.EnterRequest{CampaignId: "rush"})
	if err != nil {
		t.Fatal(err)
	}
	pass := ""
	until(t, "let in", func() (bool, string) {
		told, err := rooms.Poll(as(), &roomv1.PollRequest{Ticket: entered.GetTicket()})
		if err != nil {
			t.Fatal(err)
		}
		pass = told.GetPass()
		return pass != "", told.String()
	})
	if status, body, _ := placeAt(t, n.lines.API, alice, request, room.HeaderPass, pass); status != http.StatusOK || !strings.Contains(body, `"orderId"`) {
		t.Errorf("with the pass got %d %s", status, body)
	}
	n.stop().want(t, exitOK)
	n = startDev(t, dir, "--gateway-policy", decided)
	if again, err := os.ReadFile(secret); err != nil || !bytes.Equal(again, made) {
		t.Errorf("after another start the secret is another one: %v", err)
	}
	n.stop().want(t, exitOK)
}
