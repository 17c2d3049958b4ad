package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/feed"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/ops/freeports"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// A walk runs what a document says, in a shell and in terminals.
type walk struct {
	t   *testing.T
	dir string
	env []string

	shell *exec.Cmd
	in    io.Writer
	out   *bufio.Reader
	// servers that run in terminals, and what they print beside.
	mu      sync.Mutex
	servers []*exec.Cmd
	stderrs []*bytes.Buffer
	// closed ends what shop started.
	closed func()
}

// walkCommandMax bounds one command of a document.
const walkCommandMax = time.Minute

// newWalk puts the binary on the path as weir.
func newWalk(t *testing.T) *walk {
	t.Helper()
	builtBinary = true
	binary, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(binary, filepath.Join(bin, "weir")); err != nil {
		t.Fatal(err)
	}
	w := &walk{t: t, dir: t.TempDir(), env: []string{"PATH=" + bin + ":/usr/bin:/bin", "HOME=/nonexistent", "NO_COLOR=1"}}
	w.shell = exec.Command("bash", "--norc", "-s") //nolint:noctx // It ends when its input does.
	w.shell.Dir, w.shell.Env = w.dir, w.env
	in, err := w.shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := w.shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.shell.Stderr = w.shell.Stdout
	w.in, w.out = in, bufio.NewReader(out)
	if err := w.shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = w.shell.Process.Kill()
		_ = w.shell.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		for i, server := range w.servers {
			_ = server.Process.Kill() // Some were killed before.
			_ = server.Wait()
			if said := w.stderrs[i].String(); strings.Contains(said, "Violation") {
				t.Errorf("a server of Weir's own refused something that a node does:\n%s", lastOf(said))
			}
		}
	})
	return w
}

// run runs one command in the shell and returns what it printed.
func (w *walk) run(command string) string {
	w.t.Helper()
	const mark = "::ended:"
	if _, err := fmt.Fprintf(w.in, "{ %s\n} </dev/null 2>&1; echo; echo '%s' $?\n", command, mark); err != nil {
		w.t.Fatal(err)
	}
	timer := time.AfterFunc(walkCommandMax, func() { _ = w.shell.Process.Kill() })
	defer timer.Stop()
	var text strings.Builder
	for {
		line, err := w.out.ReadString('\n')
		if err != nil {
			w.t.Fatalf("$ %s\n%s\nthe shell ended, at the latest after %s: %v", command, lastOf(text.String()), walkCommandMax, err)
		}
		if code, ended := strings.CutPrefix(line, mark); ended {
			if strings.TrimSpace(code) != "0" {
				w.t.Fatalf("$ %s\n%sended with code %s", command, text.String(), strings.TrimSpace(code))
			}
			return strings.TrimSuffix(text.String(), "\n")
		}
		text.WriteString(line)
	}
}

// lastOf returns the end of what was printed.
func lastOf(text string) string { return text[max(0, len(text)-2000):] }

// serve starts a node in a terminal of its own. ready waits until it has said that it is ready, and returns that.
func (w *walk) serve(command string) (ready func() string) {
	w.t.Helper()
	server := exec.Command("bash", "-c", "exec "+command) //nolint:noctx // Cleanup ends it.
	server.Dir, server.Env = w.dir, w.env
	var stderr bytes.Buffer
	server.Stderr = &stderr
	out, err := server.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.servers, w.stderrs = append(w.servers, server), append(w.stderrs, &stderr)
	w.mu.Unlock()
	timer := time.AfterFunc(walkCommandMax, func() { _ = server.Process.Kill() })
	return func() string {
		w.t.Helper()
		defer timer.Stop()
		reader := bufio.NewReader(out)
		line, err := reader.ReadString('\n')
		if err != nil {
			_ = server.Wait()
			w.t.Fatalf("$ %s\nended before it was ready: %v\n%s", command, err, stderr.String())
		}
		go func() { _, _ = io.Copy(io.Discard, reader) }()
		return line
	}
}

// follow does what the document says and compares what is printed with what it shows.
func (w *walk) follow(document string) (commands int) {
	w.t.Helper()
	type starting struct {
		ready func() string
		want  string
	}
	var starts []starting
	settle := func() {
		for _, s := range starts {
			if got := s.ready(); s.want != "" && got != s.want {
				w.t.Fatalf("a node said %q, the document says %q", got, s.want)
			}
		}
		starts = nil
	}
	for _, block := range regexp.MustCompile("(?s)(?:as `([a-z.-]+)`:\n\n)?```(\\w+)\n(.*?)```").FindAllStringSubmatch(document, -1) {
		if block[2] == "yaml" {
			if err := os.WriteFile(filepath.Join(w.dir, block[1]), []byte(block[3]), 0o600); err != nil {
				w.t.Fatal(err)
			}
			continue
		}
		for step := range strings.SplitSeq(strings.TrimPrefix(block[3], "$ "), "\n$ ") {
			command, want, _ := strings.Cut(step, "\n")
			commands++
			if strings.HasPrefix(command, "weir serve") || strings.HasPrefix(command, "weir gateway --nats") {
				starts = append(starts, starting{w.serve(command), want})
				continue
			}
			settle()
			got := w.run(command)
			if want = strings.TrimSpace(want); want != "" && want != "…" && strings.TrimSpace(got) != want {
				w.t.Fatalf("$ %s\nprinted:\n%s\nthe document says:\n%s", command, got, want)
			}
		}
	}
	settle()
	return commands
}

func TestTheWalkThroughOverThreeMachinesWorksAsWritten(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "ops", "three-machines.md"))
	if err != nil {
		t.Fatal(err)
	}
	document, _, found := strings.Cut(string(text), "## On three machines")
	if !found {
		t.Fatal("the document has no end for one computer")
	}
	ports := freeports.Take(t, 13)
	for i, port := range []string{"6221", "6222", "6223", "4221", "4222", "4223", "8081", "8082", "8083", "8090", "9080"} {
		document = strings.ReplaceAll(document, ":"+port, fmt.Sprintf(":%d", ports[i]))
	}
	w := newWalk(t)
	peace, trouble, found := strings.Cut(document, "## 4. Lose a machine")
	if !found {
		t.Fatal("the document loses no machine")
	}
	commands := w.follow(peace)
	told := w.readEvents(ports[3:6])
	w.shop(ports[6:9])
	w.moveEachLane(ports[6])
	commands += w.follow(trouble)
	if commands < 28 {
		t.Fatalf("the document has %d commands: the test did not find them", commands)
	}
	w.runGatewayCommands(ports)
	told()
}

// shop has customers of all lanes order from all nodes, in turn, until the test is over. What fails is asked for again at the next node.
func (w *walk) shop(nodes []int) {
	w.t.Helper()
	for _, step := range []string{
		"weir product put --addr http://127.0.0.1:%d --token \"$OPERATOR\" --sku coffee --title Coffee --price \"3.00 EUR\"",
		"weir stock receive --addr http://127.0.0.1:%d --token \"$OPERATOR\" --sku coffee --quantity 1000000",
	} {
		w.run(fmt.Sprintf(step, nodes[0]))
	}
	const customers, pace = 8, 50 * time.Millisecond
	ctx, cancel := context.WithCancel(w.t.Context())
	var shopping sync.WaitGroup
	w.closed = sync.OnceFunc(func() { cancel(); shopping.Wait() })
	w.t.Cleanup(w.closed)
	for customer := range customers {
		token := tokenFor(w.t, filepath.Join(w.dir, "n1"), fmt.Sprintf("customer-%d", customer), "")
		shopping.Go(func() {
			client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			tick := time.NewTicker(pace)
			defer tick.Stop()
			for order, try := 1, 0; ctx.Err() == nil; try++ {
				body := fmt.Sprintf(`{"requestId":"coffee-%d","items":[{"sku":"coffee","quantity":"1"}]}`, order)
				address := fmt.Sprintf("http://127.0.0.1:%d%s", nodes[(customer+try)%len(nodes)], orderv1connect.OrderServicePlaceOrderProcedure)
				call, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(body))
				if err != nil {
					w.t.Error(err)
					return
				}
				call.Header.Set("Content-Type", "application/json")
				call.Header.Set("Authorization", "Bearer "+token)
				if response, err := client.Do(call); err == nil {
					_, _ = io.Copy(io.Discard, response.Body)
					_ = response.Body.Close()
					if response.StatusCode == http.StatusOK {
						order++
					}
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
}

// moveEachLane moves each lane to another node, and lets them go where they like again.
func (w *walk) moveEachLane(node int) {
	w.t.Helper()
	access := fmt.Sprintf(" --addr http://127.0.0.1:%d --token \"$OPERATOR\"", node)
	owners := func() []string {
		status := decode[struct {
			Lanes []struct {
				NodeID string `json:"nodeId"`
			} `json:"lanes"`
		}](w.t, w.run("weir cluster status -o json"+access))
		var all []string
		for _, lane := range status.Lanes {
			all = append(all, lane.NodeID)
		}
		return all
	}
	detail := func() string { return fmt.Sprint("lanes: ", owners()) }
	eventually(w.t, "a node for each lane", func() bool { return !slices.Contains(owners(), "") }, detail)
	before := owners()
	for lane := range before {
		to := before[(lane+1)%len(before)]
		if to == before[lane] {
			to = before[(lane+2)%len(before)]
		}
		w.run(fmt.Sprintf("weir lanes move %d %s", lane, to) + access)
		eventually(w.t, fmt.Sprintf("lane %d at %s", lane, to), func() bool { return owners()[lane] == to }, detail)
		w.run(fmt.Sprintf("weir lanes move %d --anywhere", lane) + access)
	}
}

// readEvents reads the public events from one server after the other, a few from each, as a program does that remembers how far it is. told waits
// for the shops to close and compares what was read with the log: every event once, those of a lane in its order.
func (w *walk) readEvents(servers []int) (told func()) {
	w.t.Helper()
	const few = 50 // Events that are read from a server before the next one is asked.
	access := natsAccess{ca: filepath.Join(w.dir, "keys", "ca.pem"), secretFile: filepath.Join(w.dir, "keys", "secret")}
	var (
		mu   sync.Mutex
		read = map[uint32][]string{}
		all  int
		last uint64 // sequence of the newest message that was read
	)
	ctx, cancel := context.WithCancel(w.t.Context())
	readFrom := func(server int) error {
		nc, err := access.connect(fmt.Sprintf("tls://127.0.0.1:%d", server), nats.NoReconnect(), nats.Timeout(2*time.Second))
		if err != nil {
			return err
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		from, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		consumer, err := js.OrderedConsumer(from, eventstore.FeedStream, jetstream.OrderedConsumerConfig{
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: last + 1,
			MaxResetAttempts: 1, // By default it would look for a server that was killed for ever.
		})
		if err != nil {
			return err
		}
		for range few {
			message, err := consumer.Next(jetstream.FetchMaxWait(time.Second))
			if err != nil {
				return err
			}
			meta, err := message.Metadata()
			if err != nil {
				return err
			}
			lane, _, _, err := reactors.ParseEventID(message.Headers().Get(eventstore.FeedPositionHeader))
			if err != nil || meta.Sequence.Stream != last+1 {
				w.t.Errorf("message %d came after message %d, with the headers %v", meta.Sequence.Stream, last, message.Headers())
			}
			last = meta.Sequence.Stream
			mu.Lock()
			read[lane] = append(read[lane], message.Headers().Get(eventstore.FeedPositionHeader))
			all++
			mu.Unlock()
		}
		return nil
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		for turn := 0; ctx.Err() == nil; turn++ {
			_ = readFrom(servers[turn%len(servers)]) // One that is not there now is there later: what counts is what was read.
		}
	})
	w.t.Cleanup(func() { cancel(); reading.Wait() })
	return func() {
		w.t.Helper()
		w.closed()
		want, count := map[uint32][]string{}, 0
		for line := range strings.Lines(w.run("weir log cat -o json --nats $WEIR_NATS")) {
			event := decode[struct {
				Lane   uint32
				Commit uint64
				Index  int
				Type   string
			}](w.t, line)
			if slices.Contains(feed.Types(), event.Type) {
				want[event.Lane] = append(want[event.Lane], reactors.EventID(event.Lane, event.Commit, event.Index))
				count++
			}
		}
		if count < 200 || len(want) != 4 {
			w.t.Errorf("the log has %d public events on %d lanes: too few to show anything", count, len(want))
		}
		eventually(w.t, "every public event read", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return all >= count
		}, func() string {
			mu.Lock()
			defer mu.Unlock()
			return fmt.Sprintf("%d of %d events were read, up to message %d", all, count, last)
		})
		cancel()
		reading.Wait()
		for lane, events := range want {
			if !slices.Equal(read[lane], events) {
				at := 0
				for at < min(len(events), len(read[lane])) && events[at] == read[lane][at] {
					at++
				}
				w.t.Errorf("lane %d has %d public events in the log, %d were read; they differ from number %d on: the log has %.3q, read was %.3q",
					lane, len(events), len(read[lane]), at+1, events[at:min(at+3, len(events))], read[lane][at:min(at+3, len(read[lane]))])
			}
		}
		w.t.Logf("%d public events of %d lanes, each once", count, len(want))
	}
}

// runGatewayCommands goes on where the walk-through ends, on its ports and two more: with the commands of gateways and plans that it has not, and a
// gateway that keeps calls for later. All of it signs in as gateways do, and is refused nothing by the nodes' servers.
func (w *walk) runGatewayCommands(ports []int) {
	w.t.Helper()
	first, second := fmt.Sprintf("http://127.0.0.1:%d", ports[10]), fmt.Sprintf("http://127.0.0.1:%d", ports[12])
	for name, text := range map[string]string{
		"gateway.secret": strings.Repeat("0b", 32),
		"policy.yaml":    "methods:\n  weir.order.v1.OrderService/PlaceOrder:\n    fault: {mode: failback}\n",
	} {
		if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	w.run("weir gateway check policy.yaml")
	w.serve(fmt.Sprintf("weir gateway --nats tls://127.0.0.1:%d,tls://127.0.0.1:%d --nats-ca keys/ca.pem --cluster-secret-file keys/secret", ports[3], ports[4]) +
		fmt.Sprintf(" --listen 127.0.0.1:%d --operator-listen 127.0.0.1:%d --policy policy.yaml", ports[11], ports[12]) +
		" --token-key-dir keys --gateway-secret-file gateway.secret --nodes-file nodes")()
	look := func(operator string) gateway.Status {
		w.t.Helper()
		return decode[gateway.Status](w.t, w.run("weir gateway top --addr "+operator+" --count 1 -o json"))
	}
	for _, operator := range []string{first, second} {
		eventually(w.t, "three nodes at a gateway", func() bool { return len(look(operator).Upstreams) == 3 }, func() string { return fmt.Sprintf("%+v", look(operator)) })
	}
	failback := "weir gateway failback %s --gateway-secret-file gateway.secret"
	eventually(w.t, "the stream of what is kept", func() bool { return look(second).Failback != nil }, func() string { return fmt.Sprintf("%+v", look(second)) })
	if got := decode[struct{ Parked []parkedRequest }](w.t, w.run(fmt.Sprintf(failback, "list -o json"))); len(got.Parked) != 0 {
		w.t.Errorf("nothing was kept, and parked is %+v", got)
	}
	w.run(fmt.Sprintf(failback, "retry nothing") + "; test $? = " + fmt.Sprint(int(exitNotFound)))
	w.run(fmt.Sprintf(failback, "drop nothing") + "; test $? = " + fmt.Sprint(int(exitNotFound)))

	plans := func() string { return look(first).Plans + " " + look(second).Plans }
	wantText(w.t, w.run("weir plan dry-run no-search --for 1s"), "at 2 gateways")
	wantText(w.t, w.run("weir plan show no-search"), "Operators search again when the sale is over.")
	w.run("weir plan apply no-search --ttl 10m --by alice --why again")
	wantText(w.t, w.run("weir plan list"), "no-search")
	eventually(w.t, "the plan at both gateways", func() bool { return plans() == "no-search@1 no-search@1" }, plans)
	w.run("weir plan end no-search --by alice --why over")
	eventually(w.t, "the plan at no gateway", func() bool { return plans() == " " }, plans)
	changes := 0
	for line := range strings.Lines(w.run("weir plan history -o json")) {
		change := decode[map[string]any](w.t, line)
		if change["by"] != "alice" {
			w.t.Errorf("a change is by %v, want alice: %s", change["by"], line)
		}
		changes++
	}
	if changes != 5 { // Put, applied, rolled back, applied, ended.
		w.t.Errorf("the history has %d changes, want 5", changes)
	}
	w.run("weir order place tea=1 --addr " + fmt.Sprintf("http://127.0.0.1:%d", ports[11]) + " --request-id third | grep -q pending-payment")
	// What gateways keep is on as many servers as the log.
	w.run("until weir doctor --data n1 | grep 'all are there and current'; do sleep 1; done")
}

// A testCluster is three machines on one.
type testCluster struct {
	keys   string
	peers  string
	routes []string
	dirs   []string
	secret embedded.Secret
	// url of a server that clients reach, where a test started one.
	url string
}

func newTestCluster(t *testing.T) *testCluster {
	t.Helper()
	c := &testCluster{keys: filepath.Join(t.TempDir(), "keys")}
	live(t, nil, "cluster", "keys", "127.0.0.1", "--out", c.keys).want(t, exitOK)
	for _, address := range freeports.Addresses(t, 3) {
		c.routes = append(c.routes, address)
		dir := t.TempDir()
		c.dirs = append(c.dirs, dir)
		for _, file := range []string{"token.key", "master.key"} {
			text, err := os.ReadFile(filepath.Join(c.keys, file))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.peers = strings.Join(c.routes, ",")
	secret, err := readClusterSecret(c.path("secret"))
	if err != nil {
		t.Fatal(err)
	}
	c.secret = secret
	return c
}

func (c *testCluster) path(file string) string { return filepath.Join(c.keys, file) }

// flags of the machine with that number.
func (c *testCluster) flags(number int, more ...string) []string {
	return append([]string{
		"serve", "--cluster-name", "test", "--peers", c.peers, "--cluster-listen", c.routes[number], "--server-name", fmt.Sprintf("n%d", number+1),
		"--cluster-secret-file", c.path("secret"), "--cluster-tls-cert", c.path("127.0.0.1.pem"), "--cluster-tls-key", c.path("127.0.0.1.key"),
		"--cluster-tls-ca", c.path("ca.pem"), "--data", c.dirs[number], "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", "-o", "json", "--log-level", "error",
	}, more...)
}

// options of the machine's server.
func (c *testCluster) options(t *testing.T, number int) embedded.Options {
	t.Helper()
	m := membership{
		name: "test", peers: c.peers, listen: c.routes[number], serverName: fmt.Sprintf("n%d", number+1),
		cert: c.path("127.0.0.1.pem"), certKey: c.path("127.0.0.1.key"), ca: c.path("ca.pem"),
	}
	if err := m.finish(c.path("secret")); err != nil {
		t.Fatal(err)
	}
	return embedded.Options{Dir: dataDir(c.dirs[number]).log(), ServerName: m.serverName, Cluster: m.member}
}

func TestThreeNodesMakeALogOfThreeReplicas(t *testing.T) {
	c := newTestCluster(t)
	var servers []*embedded.Server
	for number := range 2 { // Two machines have a server and no node: the node of the third one makes the log.
		server, err := embedded.Start(c.options(t, number))
		if err != nil {
			t.Fatal(err)
		}
		defer server.Shutdown()
		servers = append(servers, server)
	}
	n := startNode(t, c.flags(2, "--lanes", "2")...)
	nc, err := servers[0].Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for info := range js.ListStreams(t.Context()).Info() {
		seen[info.Config.Name] = info.Config.Replicas
	}
	for _, stream := range []string{"ORDERS-00", "ORDERS-01", "KV_WEIR-CLUSTER", "KV_WEIR-USER-KEYS", "KV_WEIR-NODES", "KV_WEIR-LEASES", "KV_WEIR-PLACEMENT", "KV_WEIR-REACTORS"} {
		if seen[stream] != replicasOfCluster {
			t.Errorf("stream %s has %d replicas, want %d", stream, seen[stream], replicasOfCluster)
		}
	}
	operator, err := os.ReadFile(filepath.Join(c.dirs[2], "node.json"))
	if err != nil || !bytes.Contains(operator, []byte("inspect")) {
		t.Fatalf("the node has no record: %v", err)
	}
	if r := n.stop(); r.code != exitOK {
		t.Fatalf("the node ended with %+v", r)
	}
}

func TestReplicasAreAddedByACommandWhileANodeServes(t *testing.T) {
	c := newTestCluster(t)
	for number := range 2 {
		options := c.options(t, number)
		if number == 0 {
			options.Listen = "127.0.0.1:0"
		}
		server, err := embedded.Start(options)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Shutdown()
		if number == 0 {
			c.url = strings.Replace(server.ClientURL(), "nats://", "tls://", 1)
		}
	}
	n := startNode(t, c.flags(2, "--lanes", "2", "--replicas", "1")...)
	defer n.stop()
	access := []string{"--nats", c.url, "--nats-ca", c.path("ca.pem"), "--cluster-secret-file", c.path("secret")}
	token := func(user, scope string) []string {
		return n.env(strings.TrimSpace(live(t, nil, "token", "--data", c.dirs[2], "--user", user, "--scope", scope).want(t, exitOK).stdout))
	}
	operator := token("op", "operator")
	live(t, operator, "product", "put", "--sku", "tea", "--title", "Tea", "--price", "1.00 EUR").want(t, exitOK)
	live(t, operator, "stock", "receive", "--sku", "tea", "--quantity", "100").want(t, exitOK)
	shop := func(round string) {
		t.Helper()
		for _, user := range []string{"alice", "bob", "carol", "dave"} { // Of both lanes.
			customer := token(user, "")
			eventually(t, "an order of "+user, func() bool { // A lane that was fenced answers that it is not available, for a while.
				return live(t, customer, "order", "place", "tea", "--request-id", round).code == exitOK
			}, func() string { return fmt.Sprint("lanes: ", laneOwners(t, operator)) })
		}
	}
	shop("before")
	r := live(t, nil, append([]string{"cluster", "upgrade", "--replicas", "3", "-o", "json"}, access...)...).want(t, exitOK)
	for _, stream := range []string{"ORDERS-00", "ORDERS-01"} {
		wantText(t, r.stdout, `{"stream":"`+stream+`","step":"fenced"}`, `{"stream":"`+stream+`","step":"current"}`)
	}
	for _, bucket := range []string{"CLUSTER", "USER-KEYS", "NODES", "LEASES", "PLACEMENT", "REACTORS"} { // Two of them are in memory.
		wantText(t, r.stdout, `{"stream":"KV_WEIR-`+bucket+`","step":"current"}`)
	}
	shop("after") // The owner has opened its lanes again, with the rule of replicated streams.
	live(t, operator, "log", "verify").want(t, exitOK)
	live(t, operator, "audit", "stock").want(t, exitOK)
	wantText(t, live(t, nil, append([]string{"cluster", "upgrade", "--replicas", "3"}, access...)...).want(t, exitOK).stdout, "ORDERS-00            kept")
	wantText(t, live(t, nil, append([]string{"cluster", "upgrade", "--replicas", "1"}, access...)...).want(t, exitRefused).stderr, "a majority acknowledged")
	live(t, nil, append([]string{"cluster", "upgrade"}, access...)...).want(t, exitUsage)
	live(t, nil, "cluster", "upgrade", "--replicas", "3").want(t, exitUsage)
}

func TestANodeRefusesALossyServerAmongItsPeers(t *testing.T) {
	c := newTestCluster(t)
	for number := range 2 {
		options := c.options(t, number)
		if number == 1 {
			options.SyncInterval = time.Minute
		}
		server, err := embedded.Start(options)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Shutdown()
	}
	r := live(t, nil, c.flags(2)...).want(t, exitData)
	wantText(t, r.stderr, "may lose acknowledged orders in a power cut", "fsyncs every 1m0s", "sync_interval: always")
}

func TestANodeThatWaitsSaysWhoIsMissing(t *testing.T) {
	c := newTestCluster(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	reader, writer := io.Pipe()
	p := &process{stdout: io.Discard, stderr: writer, now: time.Now}
	ended := make(chan exitCode, 1)
	go func() {
		ended <- p.execute(ctx, c.flags(0, "--log-level", "info"))
		_ = writer.Close()
	}()
	lines := bufio.NewScanner(reader)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "waiting for the cluster") {
			break
		}
	}
	wantText(t, lines.Text(), "2 of 3 servers; start those that do not answer", "here=n1", c.routes[1]+" "+c.routes[2])
	cancel(errInterrupted)
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	if code := <-ended; code != exitOK {
		t.Fatalf("interrupted while it waited, it ended with %d", code)
	}
}

func TestWrongFlagsOfAClusterAreRefused(t *testing.T) {
	c := newTestCluster(t)
	short := filepath.Join(t.TempDir(), "short")
	open := filepath.Join(t.TempDir(), "open")
	for file, mode := range map[string]os.FileMode{short: 0o600, open: 0o644} {
		if err := errors.Join(os.WriteFile(file, []byte("short"), mode), os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"no cluster and no server", []string{"serve"}, "needs --cluster-name or --nats"},
		{"flags without a cluster", []string{"serve", "--nats", "nats://x", "--peers", "a,b,c"}, "no --cluster-name"},
		{"both", c.flags(0, "--nats", "nats://x"), "exclude each other"},
		{"a port for nobody", []string{"serve", "--nats", "nats://x", "--nats-listen", "127.0.0.1:0"}, "--nats-listen is for a server of Weir's own"},
		{"two peers", c.flags(0, "--peers", "127.0.0.1:1,127.0.0.1:2"), "names 2 servers; a cluster has 3 to 9"},
		{"a peer twice", c.flags(0, "--peers", "127.0.0.1:1,127.0.0.1:2,127.0.0.1:1"), "twice"},
		{"no host", c.flags(0, "--peers", "a,,b"), `is not like host1`},
		{"a name with a dot", c.flags(0, "--cluster-name", "a.b"), "letters, digits"},
		{"a server's name with a space", c.flags(0, "--server-name", "a b"), "letters, digits"},
		{"no secret", c.flags(0, "--cluster-secret-file", ""), "needs --cluster-secret-file"},
		{"a short secret", c.flags(0, "--cluster-secret-file", short), "fewer than 16"},
		{"a secret that others may read", c.flags(0, "--cluster-secret-file", open), "others than its owner"},
		{"half of TLS", c.flags(0, "--cluster-tls-key", ""), "go together"},
		{"a wrong certificate", c.flags(0, "--cluster-tls-cert", c.path("secret")), "the cluster's TLS"},
		{"no TLS beyond loopback", c.flags(0, "--cluster-tls-cert", "", "--cluster-tls-key", "", "--cluster-tls-ca", "", "--peers", "h1,h2,h3"), "in the clear"},
		{"two replicas", c.flags(0, "--replicas", "2"), "--replicas must be 1 or 3"},
		{"no shared keys", c.flags(0, "--data", t.TempDir()), "all nodes of a cluster have the same one"},
	} {
		t.Run(test.name, func(t *testing.T) {
			wantText(t, live(t, nil, test.args...).want(t, exitUsage).stderr, test.want)
		})
	}
	wantText(t, live(t, nil, "cluster", "keys", "h", "--out", c.keys).want(t, exitUsage).stderr, "a cluster's keys are made once")
	wantText(t, live(t, nil, "cluster", "keys", "h:1", "--out", t.TempDir()).want(t, exitUsage).stderr, "is no host")
}
