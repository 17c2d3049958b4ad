package secretfile_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/weirhq/weir/api/secretfile"
)

func TestSecretIsMadeOnceAndReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token.key")
	if _, err := secretfile.Open(path, "weir-test"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Open of a missing file: got %v, want fs.ErrNotExist", err)
	}
	made, err := secretfile.OpenOrCreate(path, "weir-test")
	if err != nil {
		t.Fatal(err)
	}
	again, err := secretfile.OpenOrCreate(path, "weir-test")
	if err != nil || !bytes.Equal(made, again) || len(made) != secretfile.Size {
		t.Fatalf("second open: got %x, %v, want %x", again, err, made)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode: got %v, %v, want 0600", info.Mode(), err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 1 {
		t.Fatalf("directory: got %v, %v, want the key file alone", left, err)
	}
}

func TestProcessesThatMakeASecretAtOnceAgreeOnIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token.key")
	const makers = 16
	var secrets [makers][]byte
	var group sync.WaitGroup
	for i := range makers {
		group.Go(func() {
			secret, err := secretfile.OpenOrCreate(path, "weir-test")
			if err != nil {
				t.Error(err)
			}
			secrets[i] = secret
		})
	}
	group.Wait()
	for i := range makers {
		if !bytes.Equal(secrets[i], secrets[0]) {
			t.Fatalf("maker %d has %x, maker 0 has %x", i, secrets[i], secrets[0])
		}
	}
}

func TestBadSecretFileIsRefusedWithAReasonAndKept(t *testing.T) {
	good := "weir-test " + strings.Repeat("A", 43) + "\n"
	for _, test := range []struct {
		name, content string
		mode          os.FileMode
		want          string
	}{
		{"open to the group", good, 0o640, "chmod 600"},
		{"open to the world", good, 0o604, "chmod 600"},
		{"empty", "", 0o600, "is not a weir-test file"},
		{"for something else", "weir-other " + strings.Repeat("A", 43), 0o600, "is not a weir-test file"},
		{"short", "weir-test AAAA", 0o600, "is damaged"},
		{"not base64", "weir-test " + strings.Repeat("!", 43), 0o600, "is damaged"},
		{"huge", good + strings.Repeat("A", 8192), 0o600, "it has 8246 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "token.key")
			if err := os.WriteFile(path, []byte(test.content), test.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, test.mode); err != nil {
				t.Fatal(err)
			}
			_, err := secretfile.OpenOrCreate(path, "weir-test")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
			if kept, err := os.ReadFile(path); err != nil || string(kept) != test.content {
				t.Fatalf("the file was changed to %q, %v", kept, err)
			}
		})
	}
}
