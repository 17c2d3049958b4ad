// Package secretfile keeps one secret of 32 bytes in one file that only its owner may read.
//
// A secret file is one line: what the secret is for, a space, the 32 bytes in unpadded base64url. The first word keeps
// a master key from being used as a signing key.
package secretfile

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Size of a secret in bytes.
const Size = 32

// fileBytesMax is far above the size of a good file; more is not read.
const fileBytesMax = 4096

// OpenOrCreate reads the secret at path, or makes one there if there is no file. Of several processes that make it at
// once, one wins and all of them return its secret. A file that exists and is not a good one is an error and is never
// replaced: whatever was signed or sealed with the lost secret would be lost too.
// REQUIRES: purpose is one word.
func OpenOrCreate(path, purpose string) ([]byte, error) {
	secret, err := Open(path, purpose)
	if !errors.Is(err, fs.ErrNotExist) {
		return secret, err
	}
	if err := create(path, purpose); err != nil {
		return nil, fmt.Errorf("make %s: %w", path, err)
	}
	return Open(path, purpose)
}

// Open reads the secret at path. The error is fs.ErrNotExist when there is no file.
func Open(path, purpose string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("%s is open to other users (mode %#o): run 'chmod 600 %s', and replace it if somebody may have read it", path, mode, path)
	}
	if info.Size() > fileBytesMax {
		return nil, fmt.Errorf("%s is not a %s file: it has %d bytes", path, purpose, info.Size())
	}
	line := make([]byte, info.Size())
	if _, err := file.ReadAt(line, 0); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	found, encoded, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
	if found != purpose {
		return nil, fmt.Errorf("%s is not a %s file: it should start with %q", path, purpose, purpose+" ")
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(secret) != Size {
		return nil, fmt.Errorf("%s is damaged: after %q it should hold %d bytes in unpadded base64url; restore it from a backup", path, purpose, Size)
	}
	return secret, nil
}

// create writes a new secret so that at no moment, a crash included, path names half a file: the bytes are durable
// under another name first, and a hard link, which never replaces anything, gives them theirs.
func create(path, purpose string) error {
	secret := make([]byte, Size)
	if _, err := rand.Read(secret); err != nil {
		return err
	}
	dir := filepath.Dir(path)
	file, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // CreateTemp makes it 0600.
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }() // A file that is left behind harms nobody.
	_, err = file.WriteString(purpose + " " + base64.RawURLEncoding.EncodeToString(secret) + "\n")
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(dir)
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
