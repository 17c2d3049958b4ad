package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/projections"
)

// A devNode is a dev node that runs in this process, or in its own.
type devNode struct {
	t     *testing.T
	lines devLines
	// stop ends it cleanly and returns how it ended. It may be called twice.
	stop func() result
}

// startDev runs 'weir dev -o json' in-process on a free port.
func startDev(t *testing.T, dir string, args ...string) *devNode {
	t.Helper()
	return startNode(t, append([]string{"dev", "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--log-level", "warn"}, args...)...)
}

func startNode(t *testing.T, args ...string) *devNode {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	reader, writer := io.Pipe()
	var stderr bytes.Buffer
	p := &process{stdout: writer, stderr: &stderr, now: time.Now}
	ended := make(chan result, 1)
	go func() {
		code := p.execute(ctx, args)
		_ = writer.Close()
		ended <- result{code: code, stderr: stderr.String()}
	}()
	n := &devNode{t: t}
	n.stop = sync.OnceValue(func() result {
		cancel(errInterrupted)
		return <-ended
	})
	t.Cleanup(func() {
		if ended := n.stop(); t.Failed() {
			t.Logf("weir %s ended with exit code %d; it said:\n%s", strings.Join(args, " "), ended.code, ended.stderr)
		}
	})
	line, err := bufio.NewReader(reader).ReadString('\n')
	if err != nil {
		t.Fatalf("the node did not get ready: %+v", n.stop())
	}
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	n.lines = decode[devLines](t, line)
	return n
}

// env is the environment of commands against the node, as a customer or another.
func (n *devNode) env(token string) []string {
	return []string{"WEIR_ADDR=" + n.lines.API, "WEIR_TOKEN=" + token, "WEIR_DATA=" + n.lines.Data}
}

func (n *devNode) customer() []string { return n.env(n.lines.Customer.Token) }
func (n *devNode) operator() []string { return n.env(n.lines.Operator.Token) }

// live runs a command in-process with the real clock.
func live(t *testing.T, env []string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	p := &process{stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, environ: env, now: time.Now}
	code := p.execute(t.Context(), args)
	return result{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

// placed is the part of a changed order that tests look at.
type placed struct {
	RequestID string `json:"requestId"`
	Order     struct {
		OrderID string `json:"orderId"`
		Status  string `json:"status"`
		UserID  string `json:"userId"`
		Note    string `json:"note"`
	} `json:"order"`
	Revision struct {
		Lane   int    `json:"lane"`
		Commit string `json:"commit"`
	} `json:"revision"`
}

func (p placed) revision() string { return fmt.Sprintf("%d:%s", p.Revision.Lane, p.Revision.Commit) }

func place(t *testing.T, env []string, args ...string) placed {
	t.Helper()
	return decode[placed](t, live(t, env, append([]string{"order", "place", "-o", "json"}, args...)...).want(t, exitOK).stdout)
}

func TestADevNodeTakesAnOrderFromPlaceToCancel(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	alice := n.customer()
	order := place(t, alice, "tea-sencha=2", "last-one", "--note", "ring twice")
	if order.Order.UserID != devCustomer || order.Order.Status != "ORDER_STATUS_PENDING_PAYMENT" || order.Order.Note != "ring twice" {
		t.Fatalf("placed %+v", order)
	}
	// The same request again: the same reply, whatever happened since.
	if again := place(t, alice, "tea-sencha=2", "last-one", "--note", "ring twice", "--request-id", order.RequestID); again != order {
		t.Fatalf("the same request answered %+v, before %+v", again, order)
	}
	wantText(t, live(t, alice, "order", "place", "tea-sencha=3", "--request-id", order.RequestID).want(t, exitRefused).stderr, "KEY_REUSED")
	wantText(t, live(t, alice, "order", "place", "last-one").want(t, exitRefused).stderr, "OUT_OF_STOCK", "sku: last-one")
	wantText(t, live(t, alice, "order", "place", "nonesuch").want(t, exitRefused).stderr, "UNKNOWN_PRODUCT")

	wantText(t, live(t, alice, "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK).stdout,
		order.Order.OrderID, "pending-payment", "note       ring twice", "fresh as of")
	wantText(t, live(t, alice, "order", "list").want(t, exitOK).stdout, order.Order.OrderID, "tea-sencha=2 last-one=1")
	wantText(t, live(t, n.operator(), "stock", "get", "last-one", "--min-revision", order.revision()).want(t, exitOK).stdout, "available   0", "reserved    1")

	cancelled := decode[placed](t, live(t, alice, "order", "cancel", order.Order.OrderID, "--reason", "test", "-o", "json").want(t, exitOK).stdout)
	if cancelled.Order.Status != "ORDER_STATUS_CANCELLED" {
		t.Fatalf("cancelled %+v", cancelled)
	}
	live(t, alice, "order", "cancel", order.Order.OrderID).want(t, exitOK) // Again: nothing to say.
	wantText(t, live(t, n.operator(), "stock", "get", "last-one", "--min-revision", cancelled.revision()).want(t, exitOK).stdout, "available   1", "reserved    0")
	wantText(t, live(t, alice, "order", "list", "--status", "cancelled", "--min-revision", cancelled.revision()).want(t, exitOK).stdout, order.Order.OrderID)
	if r := n.stop(); r.code != exitOK || r.stderr != "" {
		t.Fatalf("the node ended with %d:\n%s", r.code, r.stderr)
	}
}

func TestWhoMayDoWhatIsDecidedByTheTokensScope(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	mint := func(user, scope string) []string {
		token := live(t, nil, "token", "--data", n.lines.Data, "--user", user, "--scope", scope).want(t, exitOK).stdout
		return n.env(strings.TrimSpace(token))
	}
	alice, bob, shop := mint("alice", ""), mint("bob", ""), mint("shop", "act-as")
	order := place(t, alice, "tea-sencha")
	// Another's order is answered exactly as one that is not there.
	missing := strings.ReplaceAll(live(t, bob, "order", "get", "01M822PB0EZ7EDFGE5AHV6KZD13").want(t, exitNotFound).stderr, "01M822PB0EZ7EDFGE5AHV6KZD13", "ID")
	others := strings.ReplaceAll(live(t, bob, "order", "get", order.Order.OrderID).want(t, exitNotFound).stderr, order.Order.OrderID, "ID")
	if missing != others {
		t.Fatalf("another's order is told from a missing one:\n%s\n%s", others, missing)
	}
	wantText(t, live(t, bob, "order", "cancel", order.Order.OrderID).want(t, exitNotFound).stderr, "ORDER_NOT_FOUND")
	wantText(t, live(t, bob, "order", "place", "tea-sencha", "--user", "alice").want(t, exitPermission).stderr, "PERMISSION_DENIED")
	wantText(t, live(t, bob, "product", "list").want(t, exitPermission).stderr, "PERMISSION_DENIED", "--scope operator")
	wantText(t, live(t, n.env(""), "order", "list").want(t, exitPermission).stderr, "UNAUTHENTICATED", "--token or WEIR_TOKEN")
	wantText(t, live(t, n.env("eyJ.x.y"), "order", "list").want(t, exitPermission).stderr, "UNAUTHENTICATED")
	carols := place(t, shop, "tea-sencha", "--user", "carol")
	if carols.Order.UserID != "carol" {
		t.Fatalf("placed for %q, want carol", carols.Order.UserID)
	}
	wantText(t, live(t, shop, "product", "list").want(t, exitPermission).stderr, "PERMISSION_DENIED")
	wantText(t, live(t, n.operator(), "order", "list", "--user", "carol", "--min-revision", carols.revision()).want(t, exitOK).stdout, "tea-sencha=1")
}

func TestBadInputIsAUsageError(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	for _, args := range [][]string{
		{"order", "place", "tea-sencha=0"},
		{"order", "place", "tea.sencha"},
		{"order", "place", "tea-sencha", "--request-id", "a b"},
		{"order", "get", "not-an-order-id"},
		{"order", "list", "--page-size", "101"},
		{"order", "list", "--page-token", "forged"},
		{"order", "get", "01M822PB0EZ7EDFGE5AHV6KZD13", "--wait", "11s", "--min-revision", "0:1"},
	} {
		wantText(t, live(t, n.customer(), args...).want(t, exitUsage).stderr, "INVALID_ARGUMENT")
	}
}

func TestAWatchShowsEveryChangeAndEndsWithTheNode(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	order := place(t, n.customer(), "tea-sencha")
	lines := make(chan string, 16)
	ended := make(chan result, 1)
	go func() {
		var stderr bytes.Buffer
		p := &process{stdout: lineWriter(lines), stderr: &stderr, environ: n.customer(), now: time.Now}
		code := p.execute(t.Context(), []string{"order", "watch", order.Order.OrderID, "--min-revision", order.revision()})
		ended <- result{code: code, stderr: stderr.String()}
	}()
	line := func() string {
		select {
		case text := <-lines:
			return text
		case r := <-ended:
			t.Fatalf("the watch ended early: %+v", r)
			return ""
		}
	}
	wantText(t, line(), "pending-payment", "revision "+order.revision())
	live(t, n.customer(), "order", "cancel", order.Order.OrderID, "--reason", "why not").want(t, exitOK)
	wantText(t, line(), "cancelled", "reason: why not")
	if r := n.stop(); r.code != exitOK {
		t.Fatalf("the node ended with %d:\n%s", r.code, r.stderr)
	}
	if r := <-ended; r.code != exitUnavailable {
		t.Fatalf("the watch ended with %d:\n%s", r.code, r.stderr)
	}
}

func TestAnOrderOutlivesRestartsAndTheLossOfTheState(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir, "--demo", "--lanes", "4")
	order := place(t, n.customer(), "tea-sencha=2", "--note", "kept")
	before := live(t, n.customer(), "order", "list", "-o", "json", "--min-revision", order.revision()).want(t, exitOK).stdout
	n.stop().want(t, exitOK)
	for _, what := range []string{"a restart", "the loss of the state"} {
		if what == "the loss of the state" {
			if err := os.RemoveAll(dataDir(dir).state()); err != nil {
				t.Fatal(err)
			}
		}
		n = startDev(t, dir, "--demo")
		if n.lines.Lanes != 4 {
			t.Fatalf("after %s: %d lanes, want the 4 that the log has", what, n.lines.Lanes)
		}
		if again := place(t, n.customer(), "tea-sencha=2", "--note", "kept", "--request-id", order.RequestID); again != order {
			t.Fatalf("after %s: the same request answered %+v, before %+v", what, again, order)
		}
		after := live(t, n.customer(), "order", "list", "-o", "json", "--min-revision", order.revision()).want(t, exitOK).stdout
		if ordersOf(t, after) != ordersOf(t, before) {
			t.Fatalf("after %s: the list is\n%s\nbefore\n%s", what, after, before)
		}
		wantText(t, live(t, n.operator(), "stock", "get", "tea-sencha", "--min-revision", order.revision()).want(t, exitOK).stdout, "received    500", "reserved    2")
		live(t, n.operator(), "log", "verify").want(t, exitOK)
		n.stop().want(t, exitOK)
	}
}

// ordersOf is the orders of a list's answer, without its freshness.
func ordersOf(t *testing.T, text string) string {
	t.Helper()
	answer := decode[map[string]any](t, text)
	return fmt.Sprint(answer["orders"])
}

func TestTheLogIsReadTheSameFromARunningNodeAndAStoppedOne(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir, "--demo", "--lanes", "2")
	place(t, n.customer(), "tea-sencha=2")
	commands := [][]string{{"log", "cat"}, {"log", "stats"}, {"log", "stats", "-o", "json"}, {"log", "verify"}}
	running := map[string]string{}
	for _, args := range commands {
		running[strings.Join(args, " ")] = live(t, nil, append(args, "--data", dir)...).want(t, exitOK).stdout
	}
	status := live(t, nil, "projections", "status", "--data", dir).want(t, exitOK).stdout
	wantText(t, status, "orders", "stock", "fresh")
	n.stop().want(t, exitOK)
	for _, args := range commands {
		// A stopped node's lanes have nothing new, and opening it to read adds nothing.
		if got := live(t, nil, append(args, "--data", dir)...).want(t, exitOK).stdout; got != running[strings.Join(args, " ")] {
			t.Errorf("%v of the stopped node:\n%s\nof the running one:\n%s", args, got, running[strings.Join(args, " ")])
		}
	}
	stopped := live(t, nil, "projections", "status", "--data", dir).want(t, exitOK).stdout
	if want := strings.ReplaceAll(status, "fresh  ", "stopped"); squeeze(stopped) != squeeze(want) {
		t.Errorf("status of the stopped node:\n%s\nof the running one:\n%s", stopped, status)
	}
	wantText(t, live(t, nil, "log", "cat", "--follow", "--data", dir).want(t, exitUsage).stderr, "--follow needs a running node")
}

// squeeze makes runs of blanks one.
func squeeze(text string) string { return strings.Join(strings.Fields(text), " ") }

func TestAPortThatIsTakenIsSaidSo(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // It ends with the test.
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	r := live(t, nil, "dev", "--data", t.TempDir(), "--listen", listener.Addr().String()).want(t, exitFailure)
	wantText(t, r.stderr, listener.Addr().String()+" is taken", "--listen")
	r = live(t, nil, "dev", "--data", t.TempDir(), "--listen", "127.0.0.1:0", "--nats-listen", listener.Addr().String()).want(t, exitFailure)
	wantText(t, r.stderr, listener.Addr().String()+" is taken", "--nats-listen")
}

func TestADirectoryInUseIsSaidSo(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir)
	r := live(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0").want(t, exitData)
	wantText(t, r.stderr, "data directory "+dir+" is in use", n.lines.API, fmt.Sprintf("pid %d", os.Getpid()), "--data")
	// Also when the node cannot be asked.
	if err := os.Remove(dataDir(dir).node()); err != nil {
		t.Fatal(err)
	}
	r = live(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0").want(t, exitData)
	wantText(t, r.stderr, "data directory "+dir+" is in use by another process", "--data")
	wantText(t, live(t, nil, "log", "cat", "--data", dir).want(t, exitData).stderr, "in use by another process")
}

func TestAnotherNumberOfLanesIsRefused(t *testing.T) {
	dir := t.TempDir()
	startDev(t, dir, "--lanes", "2").stop().want(t, exitOK)
	r := live(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0", "--lanes", "4").want(t, exitData)
	wantText(t, r.stderr, "2 lanes", "leave --lanes out")
	wantText(t, live(t, nil, "dev", "--data", dir, "--lanes", "3").want(t, exitUsage).stderr, "power of two")
}

func TestBadNodeOptionsAreRefused(t *testing.T) {
	for args, want := range map[string]string{
		"dev --pay-within 1ms":                      "--pay-within must be at least 1s",
		"dev --nats-listen 0.0.0.0:4222":            "--nats-listen \"0.0.0.0:4222\" is not a loopback address",
		"dev --nats-listen :4222":                   "whoever reaches it may read and write the log",
		"dev --payment-grace 0":                     "--payment-grace must be at least 1s",
		"dev --stock-wait 0":                        "--stock-wait must be 1ms to 10s",
		"dev --stock-wait 11s":                      "--stock-wait must be 1ms to 10s",
		"dev --gc-percent 1":                        "--gc-percent must be at least 10",
		"dev --log-level loud":                      "--log-level",
		"dev --log-format xml":                      "--log-format",
		"dev --listen nowhere":                      "--listen",
		"dev --debug-addr 0.0.0.0:0":                "is not a loopback address",
		"serve":                                     "weir serve needs --cluster-name or --nats",
		"serve --nats nats://127.0.0.1:1 --lanes 3": "power of two",
	} {
		r := live(t, nil, append(strings.Fields(args), "--data", t.TempDir())...).want(t, exitUsage)
		wantText(t, r.stderr, want)
	}
	r := live(t, nil, "serve", "--nats", "nats://user:secret@127.0.0.1:1", "--data", t.TempDir(), "--listen", "127.0.0.1:0").want(t, exitUnavailable)
	wantText(t, r.stderr, "cannot reach the NATS server", "check --nats")
	if strings.Contains(r.stderr, "secret") {
		t.Fatalf("the password got out: %s", r.stderr)
	}
}

func TestADirectoryWithoutPermissionIsExplained(t *testing.T) {
	err := dataDir("/srv/weir").explain(&fs.PathError{Op: "open", Path: "/srv/weir/token.key", Err: syscall.EACCES})
	var p *problem
	if !errors.As(err, &p) || p.code != exitPermission {
		t.Fatalf("got %v", err)
	}
	wantText(t, p.what, "no permission for the data directory /srv/weir", "token.key")
}

func TestProfilesAreServedOnLoopbackOnly(t *testing.T) {
	n := startDev(t, t.TempDir(), "--debug-addr", "127.0.0.1:0")
	response, err := http.Get(n.lines.Debug) //nolint:noctx // It ends with the node.
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("goroutine")) {
		t.Fatalf("got %s, %v", response.Status, err)
	}
}

func TestAStoppedNodeLeavesNothingRunning(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir, "--demo", "--lanes", "2")
	place(t, n.customer(), "tea-sencha")
	n.stop().want(t, exitOK)
	if _, err := os.Stat(dataDir(dir).node()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("node.json is still there: %v", err)
	}
	var left []string
	for range 10_000 { // Goroutines that were waited for may take a moment to vanish.
		if left = ourGoroutines(); len(left) == 0 {
			return
		}
		runtime.Gosched()
	}
	t.Fatalf("%d goroutines still run:\n\n%s", len(left), strings.Join(left, "\n\n"))
}

// ourGoroutines are the stacks of this module's goroutines, but the tests'.
func ourGoroutines() []string {
	buffer := make([]byte, 1<<20)
	stacks := strings.Split(string(buffer[:runtime.Stack(buffer, true)]), "\n\n")
	left := []string{}
	for _, stack := range stacks {
		if strings.Contains(stack, "weirhq/weir/") && !strings.Contains(stack, "testing.tRunner") && !strings.Contains(stack, "_test.go") {
			left = append(left, stack)
		}
	}
	return left
}

func TestAServerKeepsTheLogOfAServingNode(t *testing.T) {
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	dir := t.TempDir()
	args := []string{"serve", "--nats", server.ClientURL(), "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--lanes", "2", "--log-level", "warn", "--nats-monitor", server.MonitorURL()}
	n := startNode(t, args...)
	mint := func(user, scope string) []string {
		return n.env(strings.TrimSpace(live(t, nil, "token", "--data", dir, "--user", user, "--scope", scope).want(t, exitOK).stdout))
	}
	op := mint("op", "operator")
	live(t, op, "product", "put", "--sku", "tea", "--title", "Sencha", "--price", "12.90 EUR").want(t, exitOK)
	live(t, op, "stock", "receive", "--sku", "tea", "--quantity", "5").want(t, exitOK)
	order := place(t, mint("alice", ""), "tea=2")
	live(t, op, "log", "verify").want(t, exitOK)
	n.stop().want(t, exitOK)
	// The log is on the server, the views are in the directory.
	r := live(t, nil, "log", "cat", "--data", dir, "--nats", server.ClientURL(), "--type", "OrderPlaced").want(t, exitOK)
	wantText(t, r.stdout, order.Order.OrderID)
	live(t, nil, "log", "verify", "--data", dir, "--nats", server.ClientURL()).want(t, exitOK)
	n = startNode(t, args...)
	wantText(t, live(t, mint("alice", ""), "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK).stdout, "pending-payment")
}

// A keyServer is a NATS server with a log in which a node has sealed a note.
type keyServer struct {
	*embedded.Server
	dir   string // The node's data directory.
	order placed // Of alice, with the note.
}

func startKeyServer(t *testing.T) *keyServer {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	s := &keyServer{Server: server, dir: t.TempDir()}
	n := startNode(t, s.serve(s.dir)...)
	mint := func(user, scope string) []string {
		return n.env(strings.TrimSpace(live(t, nil, "token", "--data", s.dir, "--user", user, "--scope", scope).want(t, exitOK).stdout))
	}
	op := mint("op", "operator")
	live(t, op, "product", "put", "--sku", "tea", "--title", "Sencha", "--price", "12.90 EUR").want(t, exitOK)
	live(t, op, "stock", "receive", "--sku", "tea", "--quantity", "5").want(t, exitOK)
	s.order = place(t, mint("alice", ""), "tea", "--note", "ring twice")
	n.stop().want(t, exitOK)
	return s
}

// serve is the command line of a node on the server.
func (s *keyServer) serve(dir string) []string {
	return []string{
		"serve", "--nats", s.ClientURL(), "--data", dir, "--listen", "127.0.0.1:0", "-o", "json",
		"--lanes", "1", "--log-level", "warn", "--nats-monitor", s.MonitorURL(),
	}
}

func TestANodeDoesNotStartWhenTheKeysOfSealedNotesAreGone(t *testing.T) {
	server := startKeyServer(t)
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteKeyValue(t.Context(), "WEIR-USER-KEYS"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // The first refusal makes no empty bucket for the second start to be content with.
		r := live(t, nil, server.serve(server.dir)...).want(t, exitData)
		wantText(t, r.stderr, "the bucket WEIR-USER-KEYS is missing, though lane 0 has commits", "restore the bucket with it from one backup")
	}
}

func TestANodeMakesNoSecondMasterKey(t *testing.T) {
	server := startKeyServer(t)
	second := t.TempDir()
	r := live(t, nil, server.serve(second)...).want(t, exitData)
	wantText(t, r.stderr, "there is no master key in "+second, "copy master.key from the data directory of the node that made them")
	if _, err := os.Stat(filepath.Join(second, "master.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a master key was made: %v", err)
	}
	for _, name := range []string{"master.key", "token.key"} {
		key, err := os.ReadFile(filepath.Join(server.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(second, name), key, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n := startNode(t, server.serve(second)...)
	token := live(t, nil, "token", "--data", server.dir, "--user", "alice").want(t, exitOK).stdout
	got := live(t, n.env(strings.TrimSpace(token)), "order", "get", server.order.Order.OrderID, "--min-revision", server.order.revision()).want(t, exitOK)
	wantText(t, got.stdout, "ring twice")
}

func TestALossyServerIsRefused(t *testing.T) {
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0", SyncInterval: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	args := []string{"serve", "--nats", server.ClientURL(), "--data", t.TempDir(), "--listen", "127.0.0.1:0", "-o", "json", "--log-level", "warn"}
	wantText(t, live(t, nil, append(args, "--nats-monitor", server.MonitorURL())...).want(t, exitData).stderr, "may lose acknowledged orders", "sync_interval")
	wantText(t, live(t, nil, args...).want(t, exitData).stderr, "cannot be asked")
	startNode(t, append(args, "--allow-lossy-log")...).stop().want(t, exitOK)
}

func TestALogThatLostCommitsStopsTheNodeUntilTheLossIsAccepted(t *testing.T) {
	dir, kept := t.TempDir(), t.TempDir()
	n := startDev(t, dir, "--demo")
	first := place(t, n.customer(), "tea-sencha")
	n.stop().want(t, exitOK)
	if err := os.CopyFS(kept, os.DirFS(dataDir(dir).log())); err != nil {
		t.Fatal(err)
	}
	n = startDev(t, dir)
	second := place(t, n.customer(), "tea-sencha")
	n.stop().want(t, exitOK)
	// An old copy of the log comes back: whole by itself, but the second order is gone.
	if err := errors.Join(os.RemoveAll(dataDir(dir).log()), os.CopyFS(dataDir(dir).log(), os.DirFS(kept))); err != nil {
		t.Fatal(err)
	}
	wantText(t, live(t, nil, "log", "verify", "--data", dir, "--no-views").want(t, exitDifference).stdout, "witness", "has lost commits")
	r := live(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0").want(t, exitData)
	wantText(t, r.stderr, "the log of lane 0 has lost commits", "--accept-loss lane=0@"+first.Revision.Commit, "restore the log from a backup")

	wantText(t, live(t, nil, "dev", "--data", dir, "--listen", "127.0.0.1:0", "--accept-loss", "everything").want(t, exitUsage).stderr, "lane=3@40")
	n = startDev(t, dir, "--accept-loss", "lane=0@"+first.Revision.Commit)
	live(t, n.customer(), "order", "get", first.Order.OrderID, "--min-revision", first.revision()).want(t, exitOK)
	live(t, n.customer(), "order", "get", second.Order.OrderID, "--min-revision", first.revision()).want(t, exitNotFound)
	live(t, nil, "log", "verify", "--data", dir).want(t, exitOK)
	n.stop().want(t, exitOK)
	startDev(t, dir).stop().want(t, exitOK) // Accepted once is enough.
}

// weirBinary builds weir once.
var weirBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "weir-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "weir")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build weir: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if builtBinary {
		if path, err := weirBinary(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

// builtBinary says that a test asked for the binary; else TestMain would build it only to remove it.
var builtBinary bool

// A childNode is a dev node in its own process.
type childNode struct {
	devNode
	command *exec.Cmd
	stderr  *bytes.Buffer
}

func startChild(t *testing.T, dir string, args ...string) *childNode {
	t.Helper()
	builtBinary = true
	path, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	c := &childNode{stderr: &bytes.Buffer{}}
	c.command = exec.Command(path, append([]string{"dev", "--data", dir, "--listen", "127.0.0.1:0", "-o", "json"}, args...)...) //nolint:noctx // The test ends it.
	c.command.Stderr = c.stderr
	stdout, err := c.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.command.Process.Kill()
		_ = c.command.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = c.command.Wait()
		t.Fatalf("the node did not get ready:\n%s", c.stderr)
	}
	c.t, c.lines = t, decode[devLines](t, line)
	return c
}

func (c *childNode) signal(t *testing.T, sig os.Signal) {
	t.Helper()
	if err := c.command.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

func TestSIGTERMStopsTheBinaryCleanly(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		dir := t.TempDir()
		c := startChild(t, dir, "--demo")
		order := place(t, c.customer(), "tea-sencha")
		c.signal(t, sig)
		if err := c.command.Wait(); err != nil {
			t.Fatalf("after %v: %v\n%s", sig, err, c.stderr)
		}
		wantText(t, c.stderr.String(), "msg=stopping", "msg=stopped")
		status := live(t, nil, "projections", "status", "--data", dir, "-o", "json").want(t, exitOK).stdout
		for _, view := range decode[map[string][]viewLane](t, status)["views"] {
			if view.Lag != 0 {
				t.Errorf("after %v: view %s is %d commits behind", sig, view.View, view.Lag)
			}
		}
		wantText(t, live(t, nil, "log", "cat", "--data", dir, "--type", "OrderPlaced").want(t, exitOK).stdout, order.Order.OrderID)
	}
}

func TestAKilledNodeLosesNothingAndItsDirectoryIsReadable(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, dir, "--demo")
	var orders []placed
	for range 20 {
		orders = append(orders, place(t, c.customer(), "tea-sencha"))
	}
	c.signal(t, os.Kill)
	_ = c.command.Wait() // It was killed.
	live(t, nil, "log", "verify", "--data", dir).want(t, exitOK)
	n := startDev(t, dir)
	for _, order := range orders {
		if again := place(t, n.customer(), "tea-sencha", "--request-id", order.RequestID); again != order {
			t.Fatalf("the same request answered %+v, before the kill %+v", again, order)
		}
		live(t, n.customer(), "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK)
	}
	live(t, nil, "log", "verify", "--data", dir).want(t, exitOK)
}

func TestTheBinaryEndsWithTheExitCodeOfItsError(t *testing.T) {
	builtBinary = true
	path, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]int{"version": 0, "order plase": 2, "order list --addr http://127.0.0.1:1": 6} {
		err := exec.CommandContext(t.Context(), path, strings.Fields(args)...).Run()
		got := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			got = exit.ExitCode()
		}
		if got != want {
			t.Errorf("weir %s ended with %d, want %d", args, got, want)
		}
	}
}

func TestASecondSignalForces(t *testing.T) {
	signals := make(chan os.Signal)
	forced := make(chan int, 1)
	p := &process{stderr: io.Discard, signals: signals, exit: func(code int) { forced <- code }}
	ctx, cancel := context.WithCancelCause(t.Context())
	go p.watchSignals(cancel, nil)
	signals <- syscall.SIGTERM
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), errInterrupted) {
		t.Fatalf("the cause is %v", context.Cause(ctx))
	}
	signals <- syscall.SIGTERM
	if code := <-forced; code != int(exitForced) {
		t.Fatalf("forced with %d, want %d", code, exitForced)
	}
}

func TestPublishedEventsAreOnTheirStreamOnceAndSoAfterARestart(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		n := startDev(t, dir, "--demo", "--lanes", "2", "--publish-events")
		place(t, n.customer(), "tea-sencha=2")
		awaitReactors(t, dir, n.customer())
		n.stop().want(t, exitOK)
	}
	wantText(t, live(t, nil, "reactors", "status", "--data", dir).want(t, exitOK).stdout, "event-feed", "stopped")
	all := decode[reactorReport](t, live(t, nil, "reactors", "status", "--data", dir, "-o", "json").want(t, exitOK).stdout).Reactors
	if len(all) != 8 || all[0].Lag != 0 || all[0].Position == 0 {
		t.Errorf("of the stopped node: got %+v", all)
	}

	server, err := embedded.Start(embedded.Options{Dir: dataDir(dir).log()})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Shutdown()
	nc, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), eventstore.FeedStream)
	if err != nil {
		t.Fatal(err)
	}
	types, seen := map[string]int{}, map[string]bool{}
	for sequence := range stream.CachedInfo().State.LastSeq {
		message, err := stream.GetMsg(t.Context(), sequence+1)
		if err != nil {
			t.Fatal(err)
		}
		event := decode[struct{ ID, Type, OrderID string }](t, string(message.Data))
		if seen[event.ID] {
			t.Errorf("event %s was published twice", event.ID)
		}
		seen[event.ID] = true
		types[event.Type]++
	}
	if types["OrderPlaced"] != 2 || types["ProductPut"] == 0 || types["ProductPut"] != types["StockReceived"] {
		t.Errorf("published %v, want two orders, and the catalogue once", types)
	}
}

func TestAnotherProgramReadsTheEventsOfADevNode(t *testing.T) {
	if quiet := startDev(t, t.TempDir()); quiet.lines.NATS != "" {
		t.Errorf("a node that was not told to listens for NATS at %s", quiet.lines.NATS)
	}
	n := startDev(t, t.TempDir(), "--publish-events", "--nats-listen", "127.0.0.1:0", "--demo")
	order := place(t, n.customer(), "tea-sencha=2").Order.OrderID
	js := n.jetStream()
	consumer, err := js.OrderedConsumer(t.Context(), eventstore.FeedStream, jetstream.OrderedConsumerConfig{FilterSubjects: []string{"weir.events.*.OrderPlaced"}})
	if err != nil {
		t.Fatal(err)
	}
	message, err := consumer.Next(jetstream.FetchMaxWait(30 * time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if event := decode[struct{ Type, OrderID string }](t, string(message.Data())); event.Type != "OrderPlaced" || event.OrderID != order {
		t.Errorf("read %+v, want the order %s", event, order)
	}
}

// TestARebuildOfEveryViewHasNoEffects rebuilds views of a node whose reactors have reacted to everything: they read the log, and a rebuild
// adds nothing to it, and nothing to what is published.
func TestARebuildOfEveryViewHasNoEffects(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir, "--publish-events", "--nats-listen", "127.0.0.1:0", "--demo")
	place(t, n.customer(), "tea-sencha=2")
	awaitReactors(t, dir, n.customer())
	js := n.jetStream()
	newest := func() string {
		t.Helper()
		var all []string
		for _, name := range []string{eventstore.FeedStream, eventstore.StreamName(0)} {
			stream, err := js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%s has %d messages", name, stream.CachedInfo().State.LastSeq))
		}
		return strings.Join(all, ", ")
	}
	before := newest()
	for _, view := range projections.Projections {
		live(t, n.customer(), "projections", "rebuild", view.Name, "--data", dir).want(t, exitOK)
	}
	awaitReactors(t, dir, n.customer())
	if after := newest(); after != before {
		t.Errorf("before the rebuilds %s, and after them %s", before, after)
	}
}

// jetStream connects to the server of a node that listens for NATS.
func (n *devNode) jetStream() jetstream.JetStream {
	n.t.Helper()
	nc, err := nats.Connect(n.lines.NATS)
	if err != nil {
		n.t.Fatalf("connect to %q: %v", n.lines.NATS, err)
	}
	n.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		n.t.Fatal(err)
	}
	return js
}

// awaitReactors waits until every reactor of a running node has reacted to everything.
func awaitReactors(t *testing.T, dir string, env []string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		text := live(t, env, "reactors", "status", "--data", dir, "-o", "json").want(t, exitOK).stdout
		all, fresh := decode[reactorReport](t, text).Reactors, true
		for _, l := range all {
			fresh = fresh && l.State == "fresh"
		}
		if fresh && len(all) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the reactors did not get there: %s", text)
		}
	}
}
