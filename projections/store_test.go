package projections

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestASecondOpenOfAStoreSaysThatItIsInUse(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"memory": vfs.NewMem(), "disk": vfs.Default} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			first, err := OpenStore(dir, StoreOptions{FS: fs})
			if err != nil {
				t.Fatal(err)
			}
			_, err = OpenStore(dir, StoreOptions{FS: fs})
			var inUse *StoreInUseError
			if !errors.As(err, &inUse) || inUse.Dir != dir {
				t.Fatalf("got %v, want a StoreInUseError for %s", err, dir)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			again, err := OpenStore(dir, StoreOptions{FS: fs})
			if err != nil {
				t.Fatalf("open after close: %v", err)
			}
			if err := again.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAStoreInADirectoryThatIsAFileSaysSo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := OpenStore(path, StoreOptions{})
	if err == nil || !strings.Contains(err.Error(), "data directory") {
		t.Fatalf("got %v, want an error about the data directory", err)
	}
}

func TestAClosedStoreKeepsWhatWasWritten(t *testing.T) {
	fs := vfs.NewCrashableMem()
	store, err := OpenStore("store", StoreOptions{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	key := []byte{KeySpaceState, 'k'}
	if err := store.DB().Merge(key, []byte("a"), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := store.DB().Merge(key, []byte("b"), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	store, err = OpenStore("store", StoreOptions{FS: fs.CrashClone(vfs.CrashCloneCfg{})})
	if err != nil {
		t.Fatal(err)
	}
	value, closer, err := store.DB().Get(key)
	if err != nil || string(value) != "ab" {
		t.Fatalf("got %q, %v, want ab", value, err)
	}
	if err := errors.Join(closer.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
}
