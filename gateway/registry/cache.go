package registry

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

	"google.golang.org/protobuf/encoding/protojson"

	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// Limits of the list on disk.
const (
	// cacheBytesMax bounds the file.
	cacheBytesMax = 16 << 20
	// cacheEvery is how often the list is written at most, however often it changes.
	cacheEvery    = time.Second
	cacheFileMode = 0o640
	cacheFormat   = "weir nodes 1"
)

// A cacheFile is the list as it is on disk. People read it too.
type cacheFile struct {
	Format string            `json:"format"`
	Saved  time.Time         `json:"saved"`
	Nodes  []json.RawMessage `json:"nodes"`
}

// keep writes the list to the disk whenever more than figures changed, until ctx ends. An empty list is not kept: one that was kept before is
// worth more. A disk that fails is logged; the list in memory is not touched by it.
func (r *Registry) keep(ctx context.Context) {
	kept := &Snapshot{}
	failed := false
	for {
		snapshot, err := r.Next(ctx, kept)
		if err != nil {
			return
		}
		same := snapshot.Shape == kept.Shape
		kept = snapshot
		if same || len(snapshot.Nodes) == 0 {
			continue
		}
		if err := writeCache(r.config.CacheFile, snapshot, time.Now()); err != nil {
			if !failed {
				r.logger.Warn("the list of nodes is not kept on disk", "error", err)
			}
			failed = true
			kept = &Snapshot{Version: snapshot.Version} // The next heartbeat tries again.
		} else {
			failed = false
		}
		rest := time.NewTimer(cacheEvery)
		select {
		case <-rest.C:
		case <-ctx.Done():
			rest.Stop()
			return
		}
	}
}

// writeCache puts the list in the place of the file at path, so that after a crash there is the one or the other.
func writeCache(path string, snapshot *Snapshot, now time.Time) error {
	content := cacheFile{Format: cacheFormat, Saved: now.UTC()}
	for _, node := range snapshot.Nodes {
		member, err := protojson.Marshal(node.Member)
		if err != nil {
			return fmt.Errorf("write node %s: %w", node.Member.GetNodeId(), err)
		}
		content.Nodes = append(content.Nodes, member)
	}
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

// readCache returns the nodes that were kept at path: none if there is no such file, or no path.
func readCache(path string) ([]*clusterv1.Member, error) {
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
	if content.Format != cacheFormat {
		return nil, fmt.Errorf("%s has the format %q, want %q; remove it", path, content.Format, cacheFormat)
	}
	if len(content.Nodes) > nodesMax {
		return nil, fmt.Errorf("%s has %d nodes, want at most %d; remove it", path, len(content.Nodes), nodesMax)
	}
	members := make([]*clusterv1.Member, 0, len(content.Nodes))
	for i, raw := range content.Nodes {
		member := &clusterv1.Member{}
		// A newer version may have written what this one does not know.
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, member); err != nil {
			return nil, fmt.Errorf("%s: node %d is damaged: %w; remove it", path, i, err)
		}
		if err := validateMember(member.GetNodeId(), member); err != nil {
			return nil, fmt.Errorf("%s: node %d: %w; remove it", path, i, err)
		}
		members = append(members, member)
	}
	return members, nil
}
