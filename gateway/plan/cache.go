package plan

import (
	"context"
	"fmt"
	"time"

	"github.com/weirhq/weir/gateway/lastgood"
)

// Limits of what is kept on disk.
const (
	cacheBytesMax = 8 << 20
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
			if err := lastgood.Write(f.config.CacheFile, &content); err != nil {
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

// readCache returns what was kept at path: nil if there is no such file, or no path.
func readCache(path string) (*cacheFile, error) {
	var content cacheFile
	found, err := lastgood.Read(path, cacheFormat, cacheBytesMax, &content)
	if err != nil || !found {
		return nil, err
	}
	if content.Record == nil {
		return nil, fmt.Errorf("%s is damaged: it has no record; remove it", path)
	}
	return &content, nil
}
