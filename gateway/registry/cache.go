package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/weirhq/weir/gateway/lastgood"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

// Limits of the list on disk.
const (
	// cacheBytesMax bounds the file.
	cacheBytesMax = 16 << 20
	// cacheEvery is how often the list is written at most, however often it changes.
	cacheEvery  = time.Second
	cacheFormat = "weir nodes 1"
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
	return lastgood.Write(path, &content)
}

// readCache returns the nodes that were kept at path: none if there is no such file, or no path.
func readCache(path string) ([]*clusterv1.Member, error) {
	var content cacheFile
	if found, err := lastgood.Read(path, cacheFormat, cacheBytesMax, &content); err != nil || !found {
		return nil, err
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
