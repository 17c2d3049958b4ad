package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

// testTime is what the clock of commands that run in-process says.
var testTime = time.Date(2026, 11, 2, 9, 30, 0, 0, time.UTC)

// A result is what a command line ended with.
type result struct {
	code   exitCode
	stdout string
	stderr string
}

// weir runs a command line in-process. env holds KEY=value pairs; nothing else of the environment gets in.
func weir(t *testing.T, env []string, args ...string) result {
	t.Helper()
	return weirContext(t.Context(), env, args...)
}

func weirContext(ctx context.Context, env []string, args ...string) result {
	var stdout, stderr bytes.Buffer
	p := &process{
		stdin: strings.NewReader(""), stdout: &stdout, stderr: &stderr, environ: env,
		now: func() time.Time { return testTime }, signals: make(chan os.Signal), exit: func(int) {},
	}
	code := p.run(ctx, args)
	return result{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

// want fails the test when the command did not end with the code.
func (r result) want(t *testing.T, code exitCode) result {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.stdout, r.stderr)
	}
	return r
}

// wantText fails the test when a text is missing.
func wantText(t *testing.T, got string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Fatalf("%q is missing in:\n%s", text, got)
		}
	}
}

// decode reads one JSON value.
func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var value T
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
	return value
}

// golden compares with a file of testdata, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with: go test ./cmd/weir -run %s -update", err, t.Name())
	}
	if got != string(want) {
		t.Fatalf("%s differs; if that is meant: go test ./cmd/weir -run '%s' -update\ngot:\n%s\nwant:\n%s", path, t.Name(), got, want)
	}
}
