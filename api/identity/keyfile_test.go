package identity_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/api/identity"
)

// A logBuffer is written by one goroutine and read by another.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// replaceFile changes a file at once, as those who rotate keys do.
func replaceFile(t *testing.T, path string, document []byte) {
	t.Helper()
	next := path + ".next"
	if err := os.WriteFile(next, document, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
}

func TestAKeyFileIsReadAnewAndABadOneChangesNothing(t *testing.T) {
	all := pairs(t)
	first, second := all[1], all[2]
	set := func(p pair) []byte { return jwksOf(t, jwkOf(t, "key-"+p.name, p.public)) }
	path := filepath.Join(t.TempDir(), "jwks.json")
	replaceFile(t, path, set(first))
	file, err := identity.OpenKeyFile(identity.KeyFileOptions{Path: path, Verifier: identity.VerifierOptions{Now: atStart}})
	if err != nil {
		t.Fatal(err)
	}
	believes := func(p pair) bool {
		_, err := file.Verify("Bearer " + sign(t, p.method, p.private, "key-"+p.name, good()))
		return err == nil
	}
	want := func(what string, ofFirst, ofSecond bool) {
		t.Helper()
		if got := believes(first); got != ofFirst {
			t.Errorf("%s: the first key is believed: %t, want %t", what, got, ofFirst)
		}
		if got := believes(second); got != ofSecond {
			t.Errorf("%s: the second key is believed: %t, want %t", what, got, ofSecond)
		}
	}
	want("at the start", true, false)
	if changed, err := file.Reload(); changed || err != nil {
		t.Errorf("an unchanged file: got changed = %t, %v", changed, err)
	}
	for name, document := range map[string][]byte{"empty": nil, "half of it": set(second)[:20], "no keys": []byte(`{"keys":[]}`)} {
		replaceFile(t, path, document)
		if changed, err := file.Reload(); changed || err == nil {
			t.Errorf("%s: got changed = %t, %v, want an error", name, changed, err)
		}
		want(name, true, false)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := file.Reload(); err == nil {
		t.Error("a file that is gone is no error")
	}
	want("gone", true, false)
	replaceFile(t, path, set(second))
	if changed, err := file.Reload(); !changed || err != nil {
		t.Errorf("new keys: got changed = %t, %v", changed, err)
	}
	want("new keys", false, true) // Although the first one's token was verified before, and remembered.
}

func TestAKeyFileIsFollowedAndSaysOnceWhatIsWrong(t *testing.T) {
	all := pairs(t)
	path := filepath.Join(t.TempDir(), "jwks.json")
	replaceFile(t, path, jwksOf(t, jwkOf(t, "a", all[1].public)))
	var logged logBuffer
	file, err := identity.OpenKeyFile(identity.KeyFileOptions{
		Path: path, Verifier: identity.VerifierOptions{Now: atStart}, LookEvery: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- file.Run(ctx) }()
	await := func(text string, count int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); strings.Count(logged.String(), text) < count; {
			if time.Now().After(deadline) {
				t.Fatalf("the log does not say %q %d times:\n%s", text, count, logged.String())
			}
		}
	}
	replaceFile(t, path, []byte("{"))
	await("cannot be used", 1)
	replaceFile(t, path, jwksOf(t, jwkOf(t, "b", all[2].public)))
	await("read anew", 1)
	if _, err := file.Verify("Bearer " + sign(t, all[2].method, all[2].private, "b", good())); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	replaceFile(t, path, []byte("{"))
	await("cannot be used", 2)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := strings.Count(logged.String(), "cannot be used"); got != 2 {
		t.Errorf("said %d times that it cannot be used, want once for each time that it became so:\n%s", got, logged.String())
	}
}
