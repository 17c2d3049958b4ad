package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/weirhq/weir/ops/bench"
)

// The figures of such short runs say nothing; that each row is there says that its code works from end to end. Most of it waits, and so they run at once.
func TestTheBenchOfTheGatewayReportsEveryRow(t *testing.T) {
	rows := map[string][]string{
		"gateway-cost": {"CPU of a call over a bare ReverseProxy", "a quarter above", "CPU of a call over direct"},
		"gateway-faults": {
			"one of three frozen: its share", "one of three frozen: idempotent calls", "one of three +200 ms: p99",
			"one of three failing fast: its share", "all failing for", "breaker: opens", "breaker: closes",
		},
		"gateway-overload": {"goodput : peak", "orders that were answered", "admitted p99", "the same without the first", "median of refusals", "last refusal"},
		"gateway-goodput":  {"orders/s without a limiter", "orders/s under the default policy : without a limiter", "the same, 64 callers"},
		"gateway-edge": {
			"ask for one order: loads at the node", "sold out: refusals at the edge : echo", "wait for one who leaves: those that are answered",
			"wait for one who leaves: calls upstream",
		},
		"gateway-plans":  {"go by it after 'plan apply'", "go by none after 'plan rollback'", "keep it while NATS is away"},
		"gateway-limits": {"off the limit with Redis", "off the limit without Redis", "calls of the others that were answered", "p99 of the others : before"},
		"gateway-nodes": {
			"its last call after it was told", "rolling restart of three nodes: orders that were answered", "kill -9 of a node: its last attempt",
			"NATS away for", "the list of nodes is emptied: reads",
		},
		"gateway-failback": {"the furthest of", "placed once"},
	}
	figures := map[string]int{"gateway-cost": 3, "gateway-edge": 2}
	// These take a hundred times as long as others by default.
	flags := map[string][]string{"gateway-nodes": {"--nats-away", "600ms"}}
	binary := benchBinary(t)
	for _, group := range bench.GatewayGroups {
		t.Run(group, func(t *testing.T) {
			t.Parallel()
			if len(rows[group]) == 0 {
				t.Fatal("no row of the group is named here")
			}
			wantRows(t, binary, []string{group}, rows[group], figures[group], flags[group]...)
		})
	}
}

func TestTheBenchOfAClusterReportsEveryRow(t *testing.T) {
	t.Parallel() // It mostly waits for elections.
	server := filepath.Join(t.TempDir(), "nats-server")
	if printed, err := exec.CommandContext(t.Context(), "go", "build", "-o", server, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
	// Each strike by its own name; all of them have one more.
	groups := slices.DeleteFunc(slices.Clone(bench.ClusterGroups), func(group string) bool { return group == "failover" })
	wantRows(t, benchBinary(t), groups, []string{
		"orders/s of three nodes", "R3 : one node", "of which one keeps views : of which all do", "p50 at that rate", "the hop: processor", "the hop: p50", "through another node : to the owner's",
		"when the lane is moved, p99 of 1", "when its node is killed, p99 of 1", "when a stream's leader is killed, p99 of 1", "when a stream's leader is stopped, p99 of 1",
		"calls around a move, p99",
	}, 10, "--nats-server", server, "--failovers", "1")
}

func benchBinary(t *testing.T) string {
	t.Helper()
	builtBinary = true
	binary, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	return binary
}

// wantRows runs groups of the benchmark for as short as they go, and checks that the report has rows of these names and so many figures of load.
func wantRows(t *testing.T, binary string, groups, rows []string, figures int, flags ...string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	arguments := []string{
		"bench", "--only", strings.Join(groups, ","), "-o", "json", "--runs", "1", "--duration", "100ms", "--warmup", "100ms", "--connections", "16",
		"--dir", t.TempDir(),
	}
	command := exec.CommandContext(t.Context(), binary, append(arguments, flags...)...)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var report bench.Report
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, stdout.String())
	}
	if len(report.LeftOut) > 0 {
		t.Errorf("left out: %q", report.LeftOut)
	}
	for _, want := range rows {
		if !slices.ContainsFunc(report.Checks, func(c bench.Check) bool { return strings.Contains(c.Name, want) }) {
			t.Errorf("the report has no row %q: %+v", want, report.Checks)
		}
	}
	if len(report.Figures) != figures {
		t.Errorf("%d figures of load, want %d: %+v", len(report.Figures), figures, report.Figures)
	}
}
