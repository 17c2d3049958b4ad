package sealing_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/eventstore"
)

// A cluster keeps its keys beside the log.
var _ sealing.KeyStore = (*eventstore.UserKeys)(nil)

func newSealer(t testing.TB, store sealing.KeyStore, master byte, now func() time.Time) *sealing.Sealer {
	t.Helper()
	s, err := sealing.New(sealing.Options{Store: store, MasterKey: bytes.Repeat([]byte{master}, 32), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// erase destroys a user's key behind the sealers' backs.
func erase(t testing.TB, store *sealing.MemoryKeyStore, userID string) {
	t.Helper()
	wrapped, _, _ := store.Get(t.Context(), userID)
	if err := store.Erase(t.Context(), userID, wrapped); err != nil {
		t.Fatal(err)
	}
}

func mustSeal(t testing.TB, s *sealing.Sealer, userID, text string) []byte {
	t.Helper()
	sealed, err := s.Seal(t.Context(), userID, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealedTextOpensForItsUserOnEveryNodeWithTheMasterKey(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	one, two := newSealer(t, store, 1, nil), newSealer(t, store, 1, nil)
	for _, text := range []string{"", "leave it at the door", strings.Repeat("x", 1000)} {
		sealed := mustSeal(t, one, "ada", text)
		if len(sealed) != len(text)+sealing.Overhead || (text != "" && bytes.Contains(sealed, []byte(text))) {
			t.Fatalf("sealed %d bytes into %d: %x", len(text), len(sealed), sealed)
		}
		got, err := two.Open(t.Context(), "ada", sealed)
		if err != nil || string(got) != text {
			t.Fatalf("got %q, %v, want %q", got, err, text)
		}
	}
}

func TestTextSealedTwiceDiffers(t *testing.T) {
	s := newSealer(t, &sealing.MemoryKeyStore{}, 1, nil)
	if bytes.Equal(mustSeal(t, s, "ada", "hello"), mustSeal(t, s, "ada", "hello")) {
		t.Fatal("two sealed texts are the same: the nonce repeats")
	}
}

func TestSealedTextOfAnotherUserOrWithAnyBitChangedIsDamaged(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	s := newSealer(t, store, 1, nil)
	sealed := mustSeal(t, s, "ada", "hello")
	mustSeal(t, s, "bob", "hi")
	if _, err := s.Open(t.Context(), "bob", sealed); err == nil {
		t.Error("bob opened ada's text")
	}
	for i := range sealed {
		changed := bytes.Clone(sealed)
		changed[i] ^= 1
		text, err := s.Open(t.Context(), "ada", changed)
		// A changed key id names a key that is not there.
		if !errors.Is(err, sealing.ErrDamaged) && !errors.Is(err, sealing.ErrErased) {
			t.Fatalf("byte %d changed: got %q, %v", i, text, err)
		}
	}
	for size := range len(sealed) {
		if _, err := s.Open(t.Context(), "ada", sealed[:size]); !errors.Is(err, sealing.ErrDamaged) {
			t.Fatalf("cut to %d bytes: got %v, want ErrDamaged", size, err)
		}
	}
}

func TestKeyStoreEntryOfAnotherUserIsRefused(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	sealed := mustSeal(t, newSealer(t, store, 1, nil), "ada", "hello")
	wrapped, _, _ := store.Get(t.Context(), "ada")
	if _, err := store.Create(t.Context(), "eve", wrapped); err != nil {
		t.Fatal(err)
	}
	if text, err := newSealer(t, store, 1, nil).Open(t.Context(), "eve", sealed); !errors.Is(err, sealing.ErrDamaged) {
		t.Fatalf("with ada's key copied to eve's place: got %q, %v, want ErrDamaged", text, err)
	}
}

func TestErasedKeyOpensToNothing(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	now := time.Now()
	s := newSealer(t, store, 1, func() time.Time { return now })
	sealed := mustSeal(t, s, "ada", "hello")
	erase(t, store, "ada")
	if _, err := newSealer(t, store, 1, nil).Open(t.Context(), "ada", sealed); !errors.Is(err, sealing.ErrErased) {
		t.Fatalf("another node: got %v, want ErrErased", err)
	}
	now = now.Add(6 * time.Minute) // The node that still knew the key forgets it.
	if _, err := s.Open(t.Context(), "ada", sealed); !errors.Is(err, sealing.ErrErased) {
		t.Fatalf("after the time to forget: got %v, want ErrErased", err)
	}
	newer := mustSeal(t, s, "ada", "back again")
	if _, err := s.Open(t.Context(), "ada", sealed); !errors.Is(err, sealing.ErrErased) {
		t.Fatalf("with a newer key: got %v, want ErrErased", err)
	}
	if text, err := s.Open(t.Context(), "ada", newer); err != nil || string(text) != "back again" {
		t.Fatalf("the newer text: got %q, %v", text, err)
	}
}

func TestForgottenKeyIsReadAgain(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	s := newSealer(t, store, 1, nil)
	sealed := mustSeal(t, s, "ada", "hello")
	erase(t, store, "ada")
	s.Forget("ada")
	if _, err := s.Open(t.Context(), "ada", sealed); !errors.Is(err, sealing.ErrErased) {
		t.Fatalf("got %v, want ErrErased", err)
	}
}

func TestNodeWithAnOlderKeyInMemoryOpensTextOfTheNewerOne(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	old := newSealer(t, store, 1, nil)
	mustSeal(t, old, "ada", "hello")
	erase(t, store, "ada")
	newer := mustSeal(t, newSealer(t, store, 1, nil), "ada", "back again")
	if text, err := old.Open(t.Context(), "ada", newer); err != nil || string(text) != "back again" {
		t.Fatalf("got %q, %v", text, err)
	}
}

func TestAnotherMasterKeyIsNamedInTheError(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	sealed := mustSeal(t, newSealer(t, store, 1, nil), "ada", "hello")
	_, err := newSealer(t, store, 2, nil).Open(t.Context(), "ada", sealed)
	if err == nil || errors.Is(err, sealing.ErrErased) || !strings.Contains(err.Error(), "master key") {
		t.Fatalf("got %v, want an error that names the master key", err)
	}
}

func TestNodesThatSealForANewUserAtOnceShareOneKey(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	var sealed [16][]byte
	var group sync.WaitGroup
	for i := range sealed {
		s := newSealer(t, store, 1, nil)
		group.Go(func() { sealed[i] = mustSeal(t, s, "ada", fmt.Sprint(i)) })
	}
	group.Wait()
	reader := newSealer(t, store, 1, nil)
	for i := range sealed {
		if text, err := reader.Open(t.Context(), "ada", sealed[i]); err != nil || string(text) != fmt.Sprint(i) {
			t.Fatalf("text %d: got %q, %v", i, text, err)
		}
	}
}

func TestKeyIsDestroyedByItsIdAndNoOther(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	s := newSealer(t, store, 1, nil)
	sealed := mustSeal(t, s, "ada", "hello")
	id, err := s.Key(t.Context(), "ada")
	if err != nil || id == 0 || id != sealing.KeyOf(sealed) {
		t.Fatalf("the key is %x, %v; the text says %x", id, err, sealing.KeyOf(sealed))
	}
	destroy := func(id sealing.KeyID) {
		t.Helper()
		if err := s.Destroy(t.Context(), "ada", id); err != nil {
			t.Fatal(err)
		}
	}
	destroy(id + 1)
	if text, err := s.Open(t.Context(), "ada", sealed); err != nil || string(text) != "hello" {
		t.Fatalf("after another key was destroyed: got %q, %v", text, err)
	}
	destroy(id)
	destroy(id)
	if _, err := s.Open(t.Context(), "ada", sealed); !errors.Is(err, sealing.ErrErased) {
		t.Fatalf("got %v, want ErrErased", err)
	}
	newer := mustSeal(t, s, "ada", "back again")
	if sealing.KeyOf(newer) == id {
		t.Fatal("an erased key came back")
	}
	destroy(id) // A call that comes late leaves the newer key alone.
	if text, err := s.Open(t.Context(), "ada", newer); err != nil || string(text) != "back again" {
		t.Fatalf("got %q, %v", text, err)
	}
	if id, err := s.Key(t.Context(), "bob"); err != nil || id == 0 {
		t.Fatalf("a user without a key: got %x, %v", id, err)
	}
	for size := range sealing.Overhead {
		if id := sealing.KeyOf(sealed[:size]); id != 0 {
			t.Fatalf("%d bytes have the key %x", size, id)
		}
	}
}

func TestMACIsTheSameOnEveryNodeAndGoesWithTheKey(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	one, two := newSealer(t, store, 1, nil), newSealer(t, store, 1, nil)
	mac := func(s *sealing.Sealer, userID, text string) [32]byte {
		t.Helper()
		sum, err := s.MAC(t.Context(), userID, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	first := mac(one, "ada", "+49 30 901820")
	if mac(two, "ada", "+49 30 901820") != first {
		t.Error("two nodes disagree")
	}
	if mac(one, "bob", "+49 30 901820") == first || mac(one, "ada", "+49 30 901821") == first {
		t.Error("another user or another text has the same MAC")
	}
	erase(t, store, "ada")
	one.Changed("ada", nil)
	if mac(one, "ada", "+49 30 901820") == first {
		t.Error("the MAC outlives the key")
	}
}

func TestSealerThatIsToldOfAChangeForgetsAtOnce(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	s := newSealer(t, store, 1, nil)
	sealed := mustSeal(t, s, "ada", "hello")
	wrapped, _, _ := store.Get(t.Context(), "ada")
	s.Changed("ada", wrapped) // Its own write: it knows.
	if sealing.CachedKeys(s) != 1 {
		t.Error("the key that is stored was forgotten")
	}
	s.Changed("bob", nil)
	erase(t, store, "ada")
	s.Changed("ada", nil)
	if _, err := s.Open(t.Context(), "ada", sealed); !errors.Is(err, sealing.ErrErased) {
		t.Fatalf("got %v, want ErrErased", err)
	}
}

func TestCacheOfKeysIsBounded(t *testing.T) {
	store := &sealing.MemoryKeyStore{}
	s := newSealer(t, store, 1, nil)
	const users = 17_000 // More than the cache holds.
	first := mustSeal(t, s, "user-0", "hello")
	for i := range users {
		mustSeal(t, s, fmt.Sprintf("user-%d", i), "x")
	}
	if cached := sealing.CachedKeys(s); cached > sealing.CachedKeysMax {
		t.Errorf("%d keys are cached, at most %d may be", cached, sealing.CachedKeysMax)
	}
	if text, err := s.Open(t.Context(), "user-0", first); err != nil || string(text) != "hello" {
		t.Fatalf("got %q, %v", text, err)
	}
}

type brokenStore struct{ error }

func (b brokenStore) Get(context.Context, string) ([]byte, bool, error)      { return nil, false, b.error }
func (b brokenStore) Erase(context.Context, string, []byte) error            { return b.error }
func (b brokenStore) Create(context.Context, string, []byte) ([]byte, error) { return nil, b.error }

func TestFaultOfTheStoreIsNeitherErasureNorDamage(t *testing.T) {
	fault := errors.New("no quorum")
	sealed := mustSeal(t, newSealer(t, &sealing.MemoryKeyStore{}, 1, nil), "ada", "hello")
	s := newSealer(t, brokenStore{fault}, 1, nil)
	if _, err := s.Seal(t.Context(), "ada", nil); !errors.Is(err, fault) {
		t.Errorf("Seal: got %v, want %v", err, fault)
	}
	if _, err := s.Open(t.Context(), "ada", sealed); !errors.Is(err, fault) || errors.Is(err, sealing.ErrErased) {
		t.Errorf("Open: got %v, want %v", err, fault)
	}
	if _, err := s.MAC(t.Context(), "ada", nil); !errors.Is(err, fault) {
		t.Errorf("MAC: got %v, want %v", err, fault)
	}
	if err := s.Destroy(t.Context(), "ada", sealing.KeyOf(sealed)); !errors.Is(err, fault) {
		t.Errorf("Destroy: got %v, want %v: nothing is known to be destroyed", err, fault)
	}
}

func TestMasterKeyIsMadeOnceInTheDataDirectory(t *testing.T) {
	dir := t.TempDir()
	made, err := sealing.OpenOrCreateMasterKey(dir)
	if err != nil {
		t.Fatal(err)
	}
	again, err := sealing.OpenOrCreateMasterKey(dir)
	if err != nil || !bytes.Equal(made, again) {
		t.Fatalf("got %x, %v, want %x", again, err, made)
	}
	if err := os.Chmod(filepath.Join(dir, sealing.MasterKeyFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := sealing.OpenOrCreateMasterKey(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Fatalf("got %v, want an error that says what to do", err)
	}
}

func FuzzOpenNeverPanics(f *testing.F) {
	s := newSealer(f, &sealing.MemoryKeyStore{}, 1, nil)
	sealed, err := s.Seal(context.Background(), "ada", []byte("hello"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add([]byte{})
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, data []byte) {
		if text, err := s.Open(t.Context(), "ada", data); err == nil && !bytes.Equal(data, sealed) {
			t.Fatalf("%x opened to %q", data, text)
		}
	})
}

func BenchmarkSealAndOpen(b *testing.B) {
	s := newSealer(b, &sealing.MemoryKeyStore{}, 1, nil)
	text := []byte("leave it at the door, please")
	sealed := mustSeal(b, s, "ada", string(text))
	b.Run("Seal", func(b *testing.B) {
		for b.Loop() {
			mustSeal(b, s, "ada", string(text))
		}
	})
	b.Run("Open", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.Open(b.Context(), "ada", sealed); err != nil {
				b.Fatal(err)
			}
		}
	})
}
