//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/weirhq/weir/ops/bench"
)

// The figures of such short runs say nothing; that each row is there says that its code works from end to end. Most of it waits, and so they run at once.
func TestTheBenchOfTheGatewayReportsEveryRow(t *testing.T) {
	builtBinary = true
	binary, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string][]string{
		"gateway-cost": {"CPU of a call over a bare ReverseProxy", "CPU of a call over direct"},
		"gateway-faults": {
			"one of three frozen: its share", "one of three frozen: idempotent calls", "one of three +200 ms: p99",
			"one of three failing fast: its share", "all failing for", "breaker: opens", "breaker: closes",
		},
		"gateway-overload": {"goodput : peak", "orders that were answered", "admitted p99", "median of refusals", "last refusal"},
		"gateway-edge":     {"ask for one order: loads at the node", "sold out: refusals at the edge : echo"},
		"gateway-plans":    {"go by it after 'plan apply'", "go by none after 'plan rollback'", "keep it while NATS is away"},
		"gateway-limits":   {"off the limit with Redis", "off the limit without Redis", "calls of the others that were answered", "p99 of the others : before"},
		"gateway-nodes": {
			"its last call after it was told", "rolling restart of three nodes: orders that were answered", "kill -9 of a node: its last attempt",
			"NATS away for", "the list of nodes is emptied: reads",
		},
		"gateway-failback": {"the furthest of", "placed once"},
	}
	figures := map[string]int{"gateway-cost": 3, "gateway-edge": 2}
	for _, group := range bench.GatewayGroups {
		t.Run(group, func(t *testing.T) {
			t.Parallel()
			report := shortBench(t, binary, group)
			if len(rows[group]) == 0 {
				t.Error("no row of the group is named here")
			}
			for _, want := range rows[group] {
				if strings.Contains(want, "Redis") && len(report.LeftOut) > 0 {
					continue // There is no Redis on this machine, and the report says so.
				}
				if !slices.ContainsFunc(report.Checks, func(c bench.Check) bool { return strings.Contains(c.Name, want) }) {
					t.Errorf("the report has no row %q: %+v", want, report.Checks)
				}
			}
			if len(report.Figures) != figures[group] {
				t.Errorf("%d figures of load, want %d: %+v", len(report.Figures), figures[group], report.Figures)
			}
		})
	}
}

// shortBench runs one group for as short as it goes.
func shortBench(t *testing.T, binary, group string) (report bench.Report) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(t.Context(), binary, "bench", "--only", group, "-o", "json",
		"--runs", "1", "--duration", "100ms", "--warmup", "100ms", "--connections", "16", "--dir", t.TempDir())
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, stdout.String())
	}
	return report
}
