//go:build skew

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// startPrevious has a pair's first node be of the version before this one, in a process of its own.
func (p *pair) startPrevious(binary string, args ...string) {
	p.t.Helper()
	command := exec.Command(binary, append([]string{ //nolint:noctx // stop ends it.
		"serve", "--nats", p.server.ClientURL(), "--data", p.dirs[0], "--listen", "127.0.0.1:0", "-o", "json", "--log-level", "error",
		"--nats-monitor", p.server.MonitorURL(), "--lease-ttl", "1s", "--node-id", "node-0",
	}, args...)...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		p.t.Fatal(err)
	}
	n := &devNode{t: p.t}
	n.stop = sync.OnceValue(func() result {
		_ = command.Process.Signal(syscall.SIGTERM) // It may have ended.
		_ = command.Wait()                          // How it ended is in its state.
		return result{code: exitCode(command.ProcessState.ExitCode()), stderr: stderr.String()}
	})
	p.t.Cleanup(func() { n.stop() })
	reader := bufio.NewReader(stdout)
	line, err := reader.ReadString('\n')
	if err != nil {
		p.t.Fatalf("the version before did not get ready: %+v", n.stop())
	}
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	n.lines = decode[devLines](p.t, line)
	p.nodes[0] = n
}

// trade has customers of all lanes place, change and cancel orders at one node, and ask the same of the other. What one has said, the
// other says too.
func (p *pair) trade(round string) {
	p.t.Helper()
	for _, at := range []int{0, 1} {
		other := 1 - at
		for _, user := range []string{"alice", "bob", "carol", "dave", "erin", "frank"} {
			here, there := p.env(at, user, ""), p.env(other, user, "")
			operator := p.env(other, "op", "operator")
			id := fmt.Sprint(round, "-", at)
			order := place(p.t, here, "tea=2", "--note", "ring twice", "--request-id", id)
			if again := place(p.t, there, "tea=2", "--note", "ring twice", "--request-id", id); again.Order.OrderID != order.Order.OrderID {
				p.t.Fatalf("%s of %s: node %d made order %s, node %d order %s of the same request", id, user, at, order.Order.OrderID, other, again.Order.OrderID)
			}
			wantText(p.t, live(p.t, there, "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(p.t, exitOK).stdout, "ring twice")
			live(p.t, operator, "order", "cancel", order.Order.OrderID).want(p.t, exitOK)
			kept := place(p.t, there, "tea=1", "--request-id", id+"-kept")
			wantText(p.t, live(p.t, here, "order", "get", kept.Order.OrderID, "--min-revision", kept.revision()).want(p.t, exitOK).stdout, kept.Order.OrderID)
		}
	}
}

// lanesAt waits until the pair's nodes have so many lanes.
func (p *pair) lanesAt(asked int, counts map[string]int) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("lanes are %v", counts), func() bool {
		lanes := p.lanes(asked)
		for node, count := range counts {
			if len(lanes[node]) != count {
				return false
			}
		}
		return true
	}, func() string { return fmt.Sprintf("they are %v", p.lanes(asked)) })
}

// Neighbouring versions of a node work side by side: each reads what the other stores, decides what the other asks of it, and takes its
// lanes over. Whoever updates a cluster node by node, and whoever goes back, has both.
func TestTheVersionBeforeWorksBesideThisOne(t *testing.T) {
	previous := os.Getenv("WEIR_PREVIOUS")
	if previous == "" {
		t.Fatal("WEIR_PREVIOUS names no binary of the version before: make skew builds one and runs this")
	}
	p := newPair(t)
	p.startPrevious(previous, "--lanes", "4") // It makes the log, too.
	p.shareKeys()
	p.start(1)
	operator := func(node int) []string { return p.env(node, "op", "operator") }
	live(t, operator(0), "product", "put", "--sku", "tea", "--title", "Tea", "--price", "1.00 EUR").want(t, exitOK)
	live(t, operator(0), "stock", "receive", "--sku", "tea", "--quantity", "1000").want(t, exitOK)
	p.lanesAt(1, map[string]int{"node-0": 2, "node-1": 2})
	p.trade("beside")
	for lane := range 4 { // Each lane is decided by both, in turn.
		for _, node := range []string{"node-1", "node-0"} {
			live(t, operator(lane%2), "lanes", "move", fmt.Sprint(lane), node).want(t, exitOK)
			eventually(t, fmt.Sprintf("lane %d at %s", lane, node), func() bool { return laneOwners(t, operator(0))[lane] == node }, func() string { return fmt.Sprint(p.lanes(0)) })
		}
		live(t, operator(lane%2), "lanes", "move", fmt.Sprint(lane), "--anywhere").want(t, exitOK)
	}
	p.trade("moved")
	// An update of the one node, and then the way back: what was stored meanwhile is read by both.
	if r := p.nodes[0].stop(); r.code != exitOK {
		t.Fatalf("the version before ended with %d: %s", r.code, r.stderr)
	}
	p.lanesAt(1, map[string]int{"node-1": 4})
	p.start(0)
	p.trade("updated")
	for _, node := range []int{0, 1} {
		if r := p.nodes[node].stop(); r.code != exitOK {
			t.Fatalf("node %d ended with %d: %s", node, r.code, r.stderr)
		}
	}
	p.startPrevious(previous)
	p.start(1)
	p.lanesAt(1, map[string]int{"node-0": 2, "node-1": 2})
	p.trade("back")
	for name, verify := range map[string]func(args ...string) string{
		"this version": func(args ...string) string { return live(t, nil, args...).want(t, exitOK).stdout },
		"the version before": func(args ...string) string {
			out, err := exec.Command(previous, args...).CombinedOutput() //nolint:noctx // It ends by itself.
			if err != nil {
				t.Fatalf("%s %s: %v\n%s", previous, strings.Join(args, " "), err, out)
			}
			return string(out)
		},
	} {
		if got := verify("log", "verify", "--nats", p.server.ClientURL()); got == "" {
			t.Errorf("%s says nothing of the log", name)
		}
	}
	live(t, nil, "audit", "stock", "--nats", p.server.ClientURL()).want(t, exitOK)
}
