//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/weirhq/weir/ops/bench"
)

// The figures of such short runs say nothing; that each row is there says that its code works from end to end.
func TestTheBenchOfTheGatewayReportsEveryRow(t *testing.T) {
	builtBinary = true
	binary, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(t.Context(), binary, "bench", "--only", strings.Join(bench.GatewayGroups, ","), "-o", "json",
		"--runs", "1", "--duration", "100ms", "--warmup", "100ms", "--connections", "16", "--dir", t.TempDir())
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var report bench.Report
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil {
		t.Fatalf("%v\n%s", err, stdout.String())
	}
	for _, want := range []string{
		"CPU of a call over a bare ReverseProxy", "CPU of a call over direct", "one of three frozen: its share", "one of three frozen: idempotent calls",
		"one of three +200 ms: p99", "one of three failing fast: its share", "all failing for", "breaker: opens", "breaker: closes",
		"goodput : peak", "orders that were answered", "admitted p99", "median of refusals", "last refusal",
	} {
		found := false
		for i := range report.Checks {
			found = found || strings.Contains(report.Checks[i].Name, want)
		}
		if !found {
			t.Errorf("the report has no row %q:\n%s", want, stdout.String())
		}
	}
	if len(report.Figures) != 3 {
		t.Errorf("%d figures of load, want direct, ReverseProxy and gateway:\n%s", len(report.Figures), stdout.String())
	}
}
