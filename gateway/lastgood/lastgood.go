// Package lastgood keeps on disk, as JSON that people read too, what a gateway knew last: with it one starts while NATS is away.
package lastgood

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

const fileMode = 0o640

// Write puts content, as JSON, in the place of the file at path, so that after a crash there is the one or the other. One goroutine at a time
// writes a path. Errors are those of the file system, and of content that is no JSON.
func Write(path string, content any) error {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	file, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, fileMode)
	if err != nil {
		return err
	}
	_, err = file.Write(append(text, '\n'))
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Read reads into content what was written at path: found is false if there is no such file, or no path. Errors, for people: a file of more than
// bytesMax bytes, one that is damaged or whose "format" is another one, and those of the file system.
func Read(path, format string, bytesMax int64, content any) (found bool, err error) {
	if path == "" {
		return false, nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, bytesMax+1))
	if err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(text)) > bytesMax {
		return false, fmt.Errorf("%s has more than %d bytes; remove it", path, bytesMax)
	}
	var is struct {
		Format string `json:"format"`
	}
	if err := json.Unmarshal(text, &is); err != nil {
		return false, fmt.Errorf("%s is damaged: %w; remove it", path, err)
	}
	if is.Format != format {
		return false, fmt.Errorf("%s has the format %q, want %q; remove it", path, is.Format, format)
	}
	if err := json.Unmarshal(text, content); err != nil {
		return false, fmt.Errorf("%s is damaged: %w; remove it", path, err)
	}
	return true, nil
}
