package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// weirBinary builds weir once.
var weirBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "weir-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "weir")
	built, err := exec.Command("go", "build", "-o", path, "github.com/weirhq/weir/cmd/weir").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build weir: %w\n%s", err, built)
	}
	return path, nil
})

// binaryBuilt says that a test asked for the binary; else TestMain would build it only to remove it.
var binaryBuilt bool

func TestMain(m *testing.M) {
	code := m.Run()
	if binaryBuilt {
		if path, err := weirBinary(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

// A short run of every kind: 'make chaos' makes long ones. No time is a failure here, but for payments that are never over.
func TestARealNodeKeepsItsPromises(t *testing.T) {
	binaryBuilt = true
	weir, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind   string
		lanes  int
		rounds int
		calls  int
		want   string
	}{
		{"orders", 1, 1, 200, "1 rounds: "},
		{"payments", 4, 2, 150, "provider, log and views compared"},
		{"replies", 1, 1, 600, "replies were lost"},
		{"pauses", 4, 1, 100, "provider, log and views compared"},
		{"scarce", 4, 1, 0, "1 order and 199 refusals each"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			t.Parallel() // Most of it is waiting.
			options := Options{
				Weir: weir, Kind: c.kind, Rounds: c.rounds, Clients: 6, Buyers: 200, Lanes: c.lanes, Seed: rand.Uint64(), LoadMax: 200 * time.Millisecond,
				CallsMin: c.calls, PauseFor: 200 * time.Millisecond, SettleMax: 5 * time.Minute, ServingMax: 5 * time.Minute, ViewWait: 10 * time.Second,
			}
			if err := options.Validate(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			node, err := newDevNode(options, dir)
			if err != nil {
				t.Fatal(err)
			}
			var printed strings.Builder
			err = run(t.Context(), options, node, dir, &printed)
			if err != nil || !strings.Contains(printed.String(), c.want) {
				t.Fatalf("seed %d: %v; it printed, without %q:\n%s", options.Seed, err, c.want, &printed)
			}
		})
	}
}
