package backup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// temporarySuffix is that of a file that is not whole yet.
const temporarySuffix = ".tmp"

// writeFile writes the file name in dir, so that after a crash it is there whole or as it was, and returns what it is.
func writeFile(dir, name string, write func(io.Writer) error) (File, error) {
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return File{}, err
	}
	file, err := os.OpenFile(path+temporarySuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return File{}, err
	}
	sum := &summer{to: file, sha: sha256.New()}
	err = write(sum)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return File{}, err
	}
	if err := os.Rename(path+temporarySuffix, path); err != nil {
		return File{}, err
	}
	parent, err := os.Open(filepath.Dir(path))
	if err != nil {
		return File{}, err
	}
	return sum.file(name), errors.Join(parent.Sync(), parent.Close())
}

// A summer counts and hashes what passes.
type summer struct {
	to    io.Writer
	sha   hash.Hash
	bytes int64
}

func (s *summer) Write(data []byte) (int, error) {
	n, err := s.to.Write(data)
	s.sha.Write(data[:n])
	s.bytes += int64(n)
	return n, err
}

func (s *summer) file(name string) File {
	return File{Name: name, Bytes: s.bytes, SHA256: hex.EncodeToString(s.sha.Sum(nil))}
}

// copyFile copies the file at from to the file name in dir.
func copyFile(from, dir, name string) (File, error) {
	source, err := os.Open(from)
	if err != nil {
		return File{}, err
	}
	defer source.Close()
	return writeFile(dir, name, func(w io.Writer) error {
		_, err := io.Copy(w, source)
		return err
	})
}

// checkFile compares a file in dir with what it was when it was written.
func checkFile(dir string, want File) error {
	source, err := os.Open(filepath.Join(dir, want.Name))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer source.Close()
	sum := &summer{to: io.Discard, sha: sha256.New()}
	if _, err := io.Copy(sum, source); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if got := sum.file(want.Name); got != want {
		return fmt.Errorf("%w: %s has %d bytes with the SHA-256 %.12s…, want %d with %.12s…", ErrDamaged, want.Name, got.Bytes, got.SHA256, want.Bytes, want.SHA256)
	}
	return nil
}

// eachFile calls each with the name, relative to dir, of every file below it.
func eachFile(dir string, each func(name string) error) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return each(name)
	})
}
