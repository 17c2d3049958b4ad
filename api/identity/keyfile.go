package identity

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// KeyFileLookEvery is how often a KeyFile looks whether its file has changed, unless its options say otherwise.
const KeyFileLookEvery = 5 * time.Second

// KeyFileOptions say whose tokens a KeyFile believes.
type KeyFileOptions struct {
	// Path of a file with one public key in PEM or a JSON Web Key Set. Required.
	Path string
	// Verifier says the rest; its Keys are those of the file.
	Verifier VerifierOptions
	// LookEvery is how often Run looks at the file; 0 means KeyFileLookEvery.
	LookEvery time.Duration
	// Logger is told of new keys, and of a file that cannot be used; nil means slog.Default.
	Logger *slog.Logger
}

// A KeyFile is a verifier that believes the keys that are in a file now. A file that cannot be used changes nothing: the keys of
// before are believed on. Verify and Reload may be called by any number of goroutines.
type KeyFile struct {
	options KeyFileOptions
	current atomic.Pointer[Verifier]

	mu sync.Mutex // One reload at a time.
	// used is the SHA-256 of the document whose keys are believed.
	used [sha256.Size]byte
}

// OpenKeyFile reads the file. Run follows it from then on.
func OpenKeyFile(options KeyFileOptions) (*KeyFile, error) {
	if options.LookEvery <= 0 {
		options.LookEvery = KeyFileLookEvery
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	f := &KeyFile{options: options}
	_, err := f.Reload()
	return f, err
}

// Verify implements the verifier of the API. The error is ErrUnauthenticated.
func (f *KeyFile) Verify(header string) (*Principal, error) { return f.current.Load().Verify(header) }

// Reload reads the file, and reports whether its keys are others than before. An error says that it cannot be used; the keys of
// before are then believed on.
func (f *KeyFile) Reload() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	document, err := readKeyFile(f.options.Path)
	if err != nil {
		return false, err
	}
	sum := sha256.Sum256(document)
	if f.current.Load() != nil && sum == f.used {
		return false, nil
	}
	options := f.options.Verifier
	if options.Keys, err = parsePublicKeys(f.options.Path, document); err != nil {
		return false, err
	}
	// A new verifier remembers no token: one whose key is gone is not believed any more.
	verifier, err := NewVerifier(options)
	if err != nil {
		return false, err
	}
	f.current.Store(verifier)
	f.used = sum
	return true, nil
}

// Run takes changes of the file in until ctx ends, which is no error. A file that cannot be used is logged once, until it is another
// one.
func (f *KeyFile) Run(ctx context.Context) error {
	tick := time.NewTicker(f.options.LookEvery)
	defer tick.Stop()
	said := "" // What was wrong with the file the last time.
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		switch changed, err := f.Reload(); {
		case err != nil && err.Error() != said:
			said = err.Error()
			f.options.Logger.Error("the file with the keys of tokens cannot be used: the keys of before are believed on", "file", f.options.Path, "error", err)
		case err == nil:
			said = ""
			if changed {
				f.options.Logger.Info("the keys of tokens were read anew", "file", f.options.Path)
			}
		}
	}
}

// ReadPublicKeys reads a file that holds one public key in PEM or a JSON Web Key Set.
func ReadPublicKeys(path string) (Keys, error) {
	document, err := readKeyFile(path)
	if err != nil {
		return Keys{}, err
	}
	return parsePublicKeys(path, document)
}

func readKeyFile(path string) (document []byte, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if document, err = io.ReadAll(io.LimitReader(file, keyFileBytesMax)); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return document, nil
}

func parsePublicKeys(path string, document []byte) (Keys, error) {
	read := PublicKeyPEM
	if trimmed := bytes.TrimSpace(document); len(trimmed) > 0 && trimmed[0] == '{' {
		read = JWKS
	}
	keys, err := read(document)
	if err != nil {
		return Keys{}, fmt.Errorf("public key file %s: %w", path, err)
	}
	return keys, nil
}
