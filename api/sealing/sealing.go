// Package sealing keeps personal data out of the log in the clear. What belongs to a user is sealed under that user's
// data key; the keys live outside the log, wrapped by a master key. Destroying a user's key makes everything that was
// sealed under it unreadable, wherever copies of it are, while events, chain and sums stay as they are.
//
// A sealed text, version 1:
//
//	1 byte   version, 0x01
//	8 bytes  id of the data key, random
//	12 bytes nonce, random
//	…        AES-256-GCM of the text, with its 16-byte tag; additional data = the first 9 bytes and the user id
//
// A wrapped data key, version 1, has the same shape: the key id is the first 8 bytes of the SHA-256 of the master key,
// the text is the 8-byte id and the 32-byte key, and the additional data ends with "weir user key " and the user id.
//
// What is known of a person may be guessed: a telephone number has ten digits. A hash of it in the log would let whoever
// reads the log try them all, so such a hash is a MAC, under a key that goes with the user's data key.
package sealing

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/weirhq/weir/api/secretfile"
)

const (
	version    = 1
	keyIDSize  = 8
	keySize    = 32
	nonceSize  = 12
	tagSize    = 16
	headerSize = 1 + keyIDSize
	// Overhead is how many bytes a sealed text is longer than the text.
	Overhead = headerSize + nonceSize + tagSize
)

// Limits of the cache of data keys.
const (
	// cachedKeysMax bounds the memory: about 1 KiB a key.
	cachedKeysMax = 16 * 1024
	// cachedKeyTTL is how long a node may go on reading with a key that was destroyed elsewhere, if nobody tells it.
	cachedKeyTTL = time.Minute
)

// ErrErased says that the key of a sealed text was destroyed: there is nothing to show any more.
var ErrErased = errors.New("the key of this text was erased")

// ErrDamaged says that a sealed text, or a wrapped key, is not what was once written.
var ErrDamaged = errors.New("damaged or not sealed for this user")

// A KeyStore keeps one wrapped data key per user, outside the log.
type KeyStore interface {
	// Get returns the user's wrapped key; found is false when there is none, or none any more.
	Get(ctx context.Context, userID string) (wrapped []byte, found bool, err error)
	// Create stores the wrapped key if the user has none, and returns the one that is stored: of several callers
	// at once, all get the same.
	Create(ctx context.Context, userID string, wrapped []byte) (stored []byte, err error)
	// Erase destroys the user's wrapped key, if it is still this one. It may be stopped at any point and called again, with nil if
	// the key is gone already.
	Erase(ctx context.Context, userID string, wrapped []byte) error
}

// A Sealer seals and opens texts. It may be called by any number of goroutines.
type Sealer struct {
	store    KeyStore
	master   cipher.AEAD
	masterID [keyIDSize]byte
	now      func() time.Time

	mu    sync.RWMutex
	cache map[string]cachedKey // By user id.
}

type cachedKey struct {
	*dataKey
	until time.Time
}

// dataKey is one user's key.
type dataKey struct {
	id   [keyIDSize]byte
	aead cipher.AEAD
	// mac is the key of the user's MACs.
	mac [sha256.Size]byte
	// wrapped is the key as it is stored.
	wrapped []byte
}

// A KeyID names a data key; 0 names none.
type KeyID = uint64

func (k *dataKey) keyID() KeyID { return binary.BigEndian.Uint64(k.id[:]) }

// Options make a Sealer.
type Options struct {
	// Store of the data keys. Required.
	Store KeyStore
	// MasterKey wraps them: 32 bytes. Required.
	MasterKey []byte
	// Now tells the time; time.Now if nil.
	Now func() time.Time
}

// New returns a sealer.
func New(options Options) (*Sealer, error) {
	if options.Store == nil {
		return nil, errors.New("a sealer needs a key store")
	}
	master, err := newAEAD(options.MasterKey)
	if err != nil {
		return nil, fmt.Errorf("master key: %w", err)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	sum := sha256.Sum256(options.MasterKey)
	return &Sealer{store: options.Store, master: master, masterID: [keyIDSize]byte(sum[:]), now: options.Now, cache: map[string]cachedKey{}}, nil
}

const (
	// MasterKeyFile is the name of a node's master key in its data directory.
	MasterKeyFile    = "master.key"
	masterKeyPurpose = "weir-master-key-v1"
)

// OpenOrCreateMasterKey reads the master key in a data directory, or makes it, once, readable for its owner only.
func OpenOrCreateMasterKey(dir string) ([]byte, error) {
	secret, err := secretfile.OpenOrCreate(filepath.Join(dir, MasterKeyFile), masterKeyPurpose)
	if err != nil {
		return nil, fmt.Errorf("master key: %w", err)
	}
	return secret, nil
}

// Seal seals a text for a user, and makes the user's key if there is none. Sealing a text twice gives two sealed texts.
// The error is a fault of the key store.
func (s *Sealer) Seal(ctx context.Context, userID string, text []byte) ([]byte, error) {
	key, err := s.key(ctx, userID, true)
	if err != nil {
		return nil, fmt.Errorf("seal for user %s: %w", userID, err)
	}
	return seal(key.aead, key.id, userID, text)
}

// Open returns the text that was sealed for a user. It returns ErrErased when the key is gone, ErrDamaged when the
// sealed text is not one of this user's; any other error is a fault of the key store.
func (s *Sealer) Open(ctx context.Context, userID string, sealed []byte) ([]byte, error) {
	if len(sealed) < Overhead || sealed[0] != version {
		return nil, fmt.Errorf("open for user %s: %w", userID, ErrDamaged)
	}
	key, err := s.key(ctx, userID, false)
	if err != nil {
		return nil, fmt.Errorf("open for user %s: %w", userID, err)
	}
	if key.id != [keyIDSize]byte(sealed[1:headerSize]) {
		// The user's key was destroyed and a later order made a new one; this node may remember an older key than the
		// text's, but never forgets a newer one.
		s.Forget(userID)
		if key, err = s.key(ctx, userID, false); err != nil {
			return nil, fmt.Errorf("open for user %s: %w", userID, err)
		}
		if key.id != [keyIDSize]byte(sealed[1:headerSize]) {
			return nil, fmt.Errorf("open for user %s: %w", userID, ErrErased)
		}
	}
	text, err := open(key.aead, userID, sealed)
	if err != nil {
		return nil, fmt.Errorf("open for user %s: %w", userID, err)
	}
	return text, nil
}

// KeyOf returns the id of the key that a text is sealed under, 0 if it is no sealed text.
func KeyOf(sealed []byte) KeyID {
	if len(sealed) < Overhead || sealed[0] != version {
		return 0
	}
	return binary.BigEndian.Uint64(sealed[1:headerSize])
}

// MAC returns a MAC of what is known of a user, under a key that is destroyed with the user's data key; it makes the key if there
// is none. Nobody without the key learns of what it was taken, nor can they try what it may have been.
func (s *Sealer) MAC(ctx context.Context, userID string, text []byte) ([sha256.Size]byte, error) {
	key, err := s.key(ctx, userID, true)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("make a MAC for user %s: %w", userID, err)
	}
	return macOf(key.mac[:], text), nil
}

func macOf(key, text []byte) [sha256.Size]byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(text)
	return [sha256.Size]byte(mac.Sum(nil))
}

// Key returns the id of the key that the user has now, as the store says, and makes the key if there is none.
func (s *Sealer) Key(ctx context.Context, userID string) (KeyID, error) {
	s.Forget(userID)
	key, err := s.key(ctx, userID, true)
	if err != nil {
		return 0, fmt.Errorf("look up the key of user %s: %w", userID, err)
	}
	return key.keyID(), nil
}

// Destroy destroys a key of the user for ever: what is sealed under it opens to ErrErased. It changes nothing when the
// user has no key, or another one. The other nodes hear of it from the store.
func (s *Sealer) Destroy(ctx context.Context, userID string, id KeyID) error {
	s.Forget(userID)
	key, err := s.key(ctx, userID, false)
	switch {
	case errors.Is(err, ErrErased):
		err = s.store.Erase(ctx, userID, nil) // It may have been stopped before it had told everybody.
	case err == nil && key.keyID() != id:
		return nil
	case err == nil:
		err = s.store.Erase(ctx, userID, key.wrapped)
	}
	s.Forget(userID)
	if err != nil {
		return fmt.Errorf("destroy the key of user %s: %w", userID, err)
	}
	return nil
}

// Changed tells the sealer what the store holds for a user now, nil for nothing: another key in memory is forgotten.
func (s *Sealer) Changed(userID string, wrapped []byte) {
	s.mu.Lock()
	if cached, known := s.cache[userID]; known && !bytes.Equal(cached.wrapped, wrapped) {
		delete(s.cache, userID)
	}
	s.mu.Unlock()
}

// Forget drops the user's key from this process's memory.
func (s *Sealer) Forget(userID string) {
	s.mu.Lock()
	delete(s.cache, userID)
	s.mu.Unlock()
}

// key returns the user's data key, from memory or from the store. Without create, a missing one is ErrErased: what is
// sealed was sealed under a key that once was there.
func (s *Sealer) key(ctx context.Context, userID string, create bool) (*dataKey, error) {
	now := s.now()
	s.mu.RLock()
	cached, ok := s.cache[userID]
	s.mu.RUnlock()
	if ok && now.Before(cached.until) {
		return cached.dataKey, nil
	}
	wrapped, found, err := s.store.Get(ctx, userID)
	if err != nil {
		return nil, fmt.Errorf("read the user's key: %w", err)
	}
	if !found {
		if !create {
			return nil, ErrErased
		}
		if wrapped, err = s.create(ctx, userID); err != nil {
			return nil, fmt.Errorf("make the user's key: %w", err)
		}
	}
	key, err := s.unwrap(userID, wrapped)
	if err != nil {
		return nil, fmt.Errorf("unwrap the user's key: %w", err)
	}
	s.remember(userID, cachedKey{key, now.Add(cachedKeyTTL)})
	return key, nil
}

func (s *Sealer) create(ctx context.Context, userID string) ([]byte, error) {
	var secret [keyIDSize + keySize]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, err
	}
	secret[0] |= 1 // Its id is not 0.
	wrapped, err := seal(s.master, s.masterID, wrapName(userID), secret[:])
	if err != nil {
		return nil, err
	}
	return s.store.Create(ctx, userID, wrapped)
}

func (s *Sealer) unwrap(userID string, wrapped []byte) (*dataKey, error) {
	if len(wrapped) != Overhead+keyIDSize+keySize || wrapped[0] != version {
		return nil, ErrDamaged
	}
	if [keyIDSize]byte(wrapped[1:headerSize]) != s.masterID {
		return nil, fmt.Errorf("it was wrapped by master key %x, this node has %x", wrapped[1:headerSize], s.masterID)
	}
	secret, err := open(s.master, wrapName(userID), wrapped)
	if err != nil {
		return nil, err
	}
	aead, err := newAEAD(secret[keyIDSize:])
	if err != nil {
		return nil, err
	}
	return &dataKey{
		id: [keyIDSize]byte(secret), aead: aead, mac: macOf(secret[keyIDSize:], []byte(macPurpose)), wrapped: bytes.Clone(wrapped),
	}, nil
}

// macPurpose makes the key of a user's MACs another one than the key of the texts.
const macPurpose = "weir user MAC v1"

// wrapName separates wrapped keys from sealed texts. A user id has no space, so neither is ever taken for the other.
func wrapName(userID string) string { return "weir user key " + userID }

func (s *Sealer) remember(userID string, key cachedKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.cache[userID]; !known && len(s.cache) >= cachedKeysMax {
		for victim := range s.cache { // Map order is random enough.
			delete(s.cache, victim)
			break
		}
	}
	s.cache[userID] = key
}

func newAEAD(secret []byte) (cipher.AEAD, error) {
	if len(secret) != keySize {
		return nil, fmt.Errorf("a key has %d bytes, not %d", keySize, len(secret))
	}
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func seal(aead cipher.AEAD, keyID [keyIDSize]byte, owner string, text []byte) ([]byte, error) {
	sealed := make([]byte, headerSize+nonceSize, Overhead+len(text))
	sealed[0] = version
	copy(sealed[1:], keyID[:])
	nonce := sealed[headerSize : headerSize+nonceSize]
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return aead.Seal(sealed, nonce, text, additionalData(sealed[:headerSize], owner)), nil
}

func open(aead cipher.AEAD, owner string, sealed []byte) ([]byte, error) {
	nonce := sealed[headerSize : headerSize+nonceSize]
	text, err := aead.Open(nil, nonce, sealed[headerSize+nonceSize:], additionalData(sealed[:headerSize], owner))
	if err != nil {
		return nil, ErrDamaged
	}
	return text, nil
}

func additionalData(header []byte, owner string) []byte {
	data := make([]byte, 0, len(header)+len(owner))
	return append(append(data, header...), owner...)
}

// MemoryKeyStore is a KeyStore that forgets everything when the process ends.
type MemoryKeyStore struct {
	mu   sync.Mutex
	keys map[string][]byte
}

// Get implements KeyStore.
func (m *MemoryKeyStore) Get(_ context.Context, userID string) ([]byte, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wrapped, ok := m.keys[userID]
	return wrapped, ok, nil
}

// Create implements KeyStore.
func (m *MemoryKeyStore) Create(_ context.Context, userID string, wrapped []byte) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if stored, ok := m.keys[userID]; ok {
		return stored, nil
	}
	if m.keys == nil {
		m.keys = map[string][]byte{}
	}
	m.keys[userID] = wrapped
	return wrapped, nil
}

// Erase implements KeyStore.
func (m *MemoryKeyStore) Erase(_ context.Context, userID string, wrapped []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if bytes.Equal(m.keys[userID], wrapped) {
		delete(m.keys, userID)
	}
	return nil
}
