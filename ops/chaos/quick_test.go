package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore"
)

// weirBinary builds weir once, and natsBinary the server that keeps a cluster's log.
var (
	weirBinary = sync.OnceValues(func() (string, error) { return built("weir", "github.com/weirhq/weir/cmd/weir") })
	natsBinary = sync.OnceValues(func() (string, error) { return built("nats-server", "github.com/nats-io/nats-server/v2") })
)

// built builds a program into a directory of its own.
func built(name, source string) (string, error) {
	dir, err := os.MkdirTemp("", "weir-test-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	printed, err := exec.CommandContext(context.Background(), "go", "build", "-o", path, source).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, printed)
	}
	return path, nil
}

// binaryBuilt and serverBuilt say that a test asked for a binary; else TestMain would build it only to remove it.
var binaryBuilt, serverBuilt bool

func TestMain(m *testing.M) {
	code := m.Run()
	if serverBuilt {
		if path, err := natsBinary(); err == nil {
			_ = os.RemoveAll(filepath.Dir(path))
		}
	}
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

// A control run that sees no loss, or fails for another reason, is no proof that this program would see one.
func TestAControlRunHasToLoseSomething(t *testing.T) {
	var out strings.Builder
	if err := blind(nil, &out); err == nil {
		t.Error("a run that lost nothing is accepted")
	}
	if err := blind(errors.New("no loop device"), &out); err == nil {
		t.Error("a run that failed for another reason is accepted")
	}
	if err := blind(fmt.Errorf("round 1: %w", &lossError{errors.New("commit 7 is gone")}), &out); err != nil || !strings.Contains(out.String(), "commit 7 is gone") {
		t.Errorf("a loss is not accepted: %v, it printed %q", err, &out)
	}
}

func TestAControlRunHasToBreakALog(t *testing.T) {
	var out strings.Builder
	if err := blindToWriters(nil, &out); err == nil {
		t.Error("a run that broke nothing is accepted")
	}
	if err := blindToWriters(errors.New("no order for 20 s"), &out); err == nil {
		t.Error("a run that failed for another reason is accepted")
	}
	broken := fmt.Errorf("round 1: %w", &eventstore.ChainError{Lane: 1, Number: 7, Reason: "it follows another commit"})
	if err := blindToWriters(broken, &out); err != nil || !strings.Contains(out.String(), "another commit") {
		t.Errorf("a broken log is not accepted: %v, it printed %q", err, &out)
	}
}

func TestConditionsAreTakenOffHoweverTheyArrive(t *testing.T) {
	const sent = "HPUB weir.log.01 _INBOX.a.b 200 210\r\nNATS/1.0\r\nNats-Msg-Id: 12\r\nNats-Expected-Last-Sequence: 7\r\n" +
		"Nats-Expected-Last-Msg-Id: 11\r\nNats-Expected-Last-Subject-Sequence: 3\r\n\r\nNats-Exp"
	want := strings.NewReplacer("Nats-Expected-Last-Sequence:", "Gone-Expected-Last-Sequence:", "Nats-Expected-Last-Msg-Id:", "Gone-Expected-Last-Msg-Id:").Replace(sent)
	for size := 1; size <= len(sent); size++ {
		var got bytes.Buffer
		u := &unfence{to: &got}
		for rest := []byte(sent); len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if _, err := u.Write(rest[:min(size, len(rest))]); err != nil {
				t.Fatal(err)
			}
		}
		// What may be the beginning of a condition waits for the rest.
		if got.String()+string(u.held) != want || len(u.held) != len("Nats-Exp") {
			t.Fatalf("in pieces of %d: got %q and holds %q, want %q", size, &got, u.held, want)
		}
	}
}
