package plan

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Limits of what is kept on disk.
const (
	cacheBytesMax = 8 << 20
	cacheFileMode = 0o640
	cacheFormat   = "weir active plans 1"
	// cacheEvery is how soon after a failure the file is written again.
	cacheEvery = time.Second
)

// A cacheFile is the newest good record, as it is on disk. People read it too.
type cacheFile struct {
	Format   string        `json:"format"`
	Saved    time.Time     `json:"saved"`
	Created  time.Time     `json:"bucket_created"`
	Revision uint64        `json:"revision"`
	Record   *activeRecord `json:"record"`
}

// keep writes the newest record to the disk whenever it changed, until ctx ends. A disk that fails is logged, and changes nothing else.
func (f *Follower) keep(ctx context.Context) {
	if f.config.CacheFile == "" {
		return
	}
	var kept cacheFile
	failed := false
	for set := f.Now(); ; {
		f.mu.Lock()
		content := cacheFile{Format: cacheFormat, Saved: f.options.Now().UTC(), Created: f.known.created, Revision: f.known.revision, Record: f.known.record}
		f.mu.Unlock()
		if content.Record != nil && (content.Revision != kept.Revision || !content.Created.Equal(kept.Created)) {
			if err := writeCache(f.config.CacheFile, &content); err != nil {
				if !failed {
					f.options.Logger.Warn("the plans are not kept on disk", "error", err)
				}
				failed = true
				retry := time.NewTimer(cacheEvery)
				select {
				case <-retry.C:
					continue
				case <-ctx.Done():
					retry.Stop()
					return
				}
			}
			kept, failed = content, false
		}
		next, err := f.Next(ctx, set)
		if err != nil {
			return
		}
		set = next
	}
}

// writeCache puts the content in the place of the file at path, so that after a crash there is the one or the other.
func writeCache(path string, content *cacheFile) error {
	text, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	file, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, cacheFileMode)
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

// readCache returns what was kept at path: nil if there is no such file, or no path.
func readCache(path string) (*cacheFile, error) {
	if path == "" {
		return nil, nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, cacheBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > cacheBytesMax {
		return nil, fmt.Errorf("%s has more than %d bytes; remove it", path, cacheBytesMax)
	}
	var content cacheFile
	if err := json.Unmarshal(text, &content); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w; remove it", path, err)
	}
	if content.Format != cacheFormat || content.Record == nil {
		return nil, fmt.Errorf("%s has the format %q, want %q; remove it", path, content.Format, cacheFormat)
	}
	return &content, nil
}
