package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestANodeWithoutAStateBeginsWithACheckpoint(t *testing.T) {
	for _, where := range []string{checkpointsInNATS, filepath.Join(t.TempDir(), "checkpoints")} {
		t.Run(filepath.Base(where), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			start := func() *devNode {
				return startNode(t, "dev", "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--demo", "--lanes", "2",
					"--checkpoints", where, "--checkpoint-every", "1s")
			}
			n := start()
			first := place(t, n.customer(), "tea-sencha")
			if where == checkpointsInNATS {
				waitFor(t, "a checkpoint", func() bool {
					return bytes.Contains(contents(t, filepath.Join(dir, "log")), []byte("OBJ_WEIR-CHECKPOINTS"))
				})
				waitFor(t, "a checkpoint's name", func() bool { return bytes.Contains(contents(t, filepath.Join(dir, "log")), []byte(`"chunks":`)) })
			} else {
				waitFor(t, "a checkpoint", func() bool {
					files, err := filepath.Glob(filepath.Join(where, "*"+checkpointFileSuffix))
					return err == nil && len(files) > 0
				})
			}
			second := place(t, n.customer(), "tea-sencha=2")
			n.stop().want(t, exitOK)

			if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
				t.Fatal(err)
			}
			n = start()
			for _, order := range []placed{first, second} {
				wantText(t, live(t, n.customer(), "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK).stdout, "pending-payment")
			}
			live(t, nil, "log", "verify", "--data", dir).want(t, exitOK)
			stopped := n.stop().want(t, exitOK)
			wantText(t, stopped.stderr, "the state begins with a copy")
		})
	}
}

func TestACheckpointOfAnotherLogOrADamagedOneIsOfNoUse(t *testing.T) {
	where := filepath.Join(t.TempDir(), "checkpoints")
	start := func(dir string) *devNode {
		return startNode(t, "dev", "--data", dir, "--listen", "127.0.0.1:0", "-o", "json", "--demo", "--checkpoints", where, "--checkpoint-every", "1s")
	}
	other := start(filepath.Join(t.TempDir(), "other"))
	var files []string
	waitFor(t, "a checkpoint", func() (found bool) {
		files, _ = filepath.Glob(filepath.Join(where, "*"+checkpointFileSuffix))
		return len(files) > 0
	})
	other.stop().want(t, exitOK)
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(where, "9"+checkpointFileSuffix), whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}

	dir := filepath.Join(t.TempDir(), "data")
	n := start(dir)
	order := place(t, n.customer(), "tea-sencha")
	live(t, nil, "log", "verify", "--data", dir).want(t, exitOK)
	n.stop().want(t, exitOK)
	if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(where); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(where, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(where, "1"+checkpointFileSuffix), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	n = start(dir)
	wantText(t, live(t, n.customer(), "order", "get", order.Order.OrderID, "--min-revision", order.revision()).want(t, exitOK).stdout, "pending-payment")
	live(t, nil, "log", "verify", "--data", dir).want(t, exitOK)
	wantText(t, n.stop().want(t, exitOK).stderr, "a copy of the state is of no use here")
	wantText(t, live(t, nil, "dev", "--data", dir, "--checkpoint-every", "1ms").want(t, exitUsage).stderr, "--checkpoint-every must be at least 1s")
}

// waitFor waits until something is there.
func waitFor(t *testing.T, what string, there func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !there(); {
		if time.Now().After(end) {
			t.Fatalf("%s is not there after 30 s", what)
		}
	}
}

// contents returns the bytes of all files below a directory.
func contents(t *testing.T, dir string) (all []byte) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return nil //nolint:nilerr // It was renamed or removed meanwhile.
		}
		data, err := os.ReadFile(path)
		if err == nil {
			all = append(append(all, path...), data...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
