//go:build linux

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

// The figures of such short runs say nothing; that each row is there says that its code works from end to end.
func TestTheBenchOfTheGatewayReportsEveryRow(t *testing.T) {
	report := benchReport(t, bench.GatewayGroups, []string{
		"CPU of a call over a bare ReverseProxy", "CPU of a call over direct", "one of three frozen: its share", "one of three frozen: idempotent calls",
		"one of three +200 ms: p99", "one of three failing fast: its share", "all failing for", "breaker: opens", "breaker: closes",
		"goodput : peak", "orders that were answered", "admitted p99", "median of refusals", "last refusal",
	})
	if len(report.Figures) != 3 {
		t.Errorf("%d figures of load, want direct, ReverseProxy and gateway: %+v", len(report.Figures), report.Figures)
	}
}

func TestTheBenchOfAClusterReportsEveryRow(t *testing.T) {
	server := filepath.Join(t.TempDir(), "nats-server")
	if printed, err := exec.CommandContext(t.Context(), "go", "build", "-o", server, "github.com/nats-io/nats-server/v2").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
	report := benchReport(t, bench.ClusterGroups, []string{
		"orders/s of three nodes", "R3 : one node", "p50 at that rate", "the hop: processor", "the hop: p50", "through another node : to the owner's",
		"when the lane is moved, p99 of 1", "when its node is killed, p99 of 1", "when a stream's leader is killed, p99 of 1", "calls around a move, p99",
	}, "--nats-server", server, "--failovers", "1")
	if len(report.Figures) != 7 {
		t.Errorf("%d figures of load, want three of the cluster and four of the hop: %+v", len(report.Figures), report.Figures)
	}
}

// benchReport runs groups of the benchmark for as short as can be, and checks that the report has rows of these names.
func benchReport(t *testing.T, groups, rows []string, flags ...string) bench.Report {
	t.Helper()
	builtBinary = true
	binary, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
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
	for _, want := range rows {
		if !slices.ContainsFunc(report.Checks, func(c bench.Check) bool { return strings.Contains(c.Name, want) }) {
			t.Errorf("the report has no row %q:\n%s", want, stdout.String())
		}
	}
	return report
}
