package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// checkpointOptions say where a node keeps copies of its state, so that one without a state begins with the newest and reads the
// rest of the log.
type checkpointOptions struct {
	// where is "nats" for the object store beside the log, or a directory; empty is nowhere.
	where string
	every time.Duration
}

const (
	checkpointsInNATS     = "nats"
	checkpointEvery       = time.Hour
	checkpointEveryLeast  = time.Second
	checkpointsKept       = 2
	checkpointFileSuffix  = ".tar.zst"
	checkpointBytesMax    = 1 << 40
	checkpointNamesFormat = "20060102T150405.000000000Z"
)

func (o *checkpointOptions) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.where, "checkpoints", "", "`WHERE` copies of the state are kept for nodes that have none: \"nats\", the object store beside the log, or a directory; empty is nowhere")
	flags.DurationVar(&o.every, "checkpoint-every", checkpointEvery, "`TIME` between two copies of the state")
	setting(flags, "checkpoints", "checkpoint-every")
}

func (o *checkpointOptions) finish() error {
	if o.every < checkpointEveryLeast {
		return usagef("--checkpoint-every must be at least %s, not %s", checkpointEveryLeast, o.every)
	}
	return nil
}

// A checkpointShelf keeps copies of states. Names sort by age, the oldest first.
type checkpointShelf interface {
	Put(ctx context.Context, name string, from io.Reader) error
	Get(ctx context.Context, name string) (io.ReadCloser, error)
	Names(ctx context.Context) ([]string, error)
	Remove(ctx context.Context, name string) error
}

// openShelf opens where copies of the state are kept; nil is nowhere.
func (n *node) openShelf(ctx context.Context) (checkpointShelf, error) {
	switch where := n.options.checkpoints.where; where {
	case "":
		return nil, nil
	case checkpointsInNATS:
		var blobs *eventstore.Blobs
		err := n.log.beside(ctx, n.options.log, func(ctx context.Context) (err error) {
			blobs, err = eventstore.OpenBlobs(ctx, n.log.nc, n.log.replicas)
			return err
		})
		if err != nil {
			return nil, err
		}
		return blobs, nil
	default:
		if err := os.MkdirAll(where, 0o700); err != nil {
			return nil, usagef("--checkpoints: %v", err)
		}
		return dirShelf(where), nil
	}
}

// startState puts the newest copy of a state that goes with the log where the node has none. Without one, the node makes its state
// from the log.
func (n *node) startState(ctx context.Context) (err error) {
	if n.shelf, err = n.openShelf(ctx); err != nil || n.shelf == nil {
		return err
	}
	state := n.options.data.state()
	if _, err := os.Lstat(state); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	names, err := n.shelf.Names(ctx)
	if err != nil {
		n.logger.Warn("no copy of the state can be had; it is made from the log", "error", err)
		return nil
	}
	for _, name := range slices.Backward(names) {
		began := time.Now()
		err := n.takeState(ctx, name, state)
		if err == nil {
			n.logger.Info("the state begins with a copy", "checkpoint", name, "seconds", time.Since(began).Seconds())
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		n.logger.Warn("a copy of the state is of no use here", "checkpoint", name, "error", err)
	}
	return nil
}

// takeState puts a copy of a state where it belongs, if it is whole and the log has what it was made of.
func (n *node) takeState(ctx context.Context, name, state string) (err error) {
	unfinished := state + ".tmp"
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(unfinished))
		}
	}()
	from, err := n.shelf.Get(ctx, name)
	if err != nil {
		return err
	}
	if err := errors.Join(unpack(from, unfinished), from.Close()); err != nil {
		return err
	}
	if err := n.checkState(ctx, unfinished); err != nil {
		return err
	}
	return os.Rename(unfinished, state)
}

// checkState opens a copy of a state and compares its positions with the log.
func (n *node) checkState(ctx context.Context, dir string) (err error) {
	store, err := projections.OpenStore(dir, projections.StoreOptions{Logger: n.logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for lane := range n.log.topology.Lanes {
		log := n.log.streams.Log(lane)
		runner, err := projections.NewRunner(projections.RunnerOptions{Store: store, Lane: lane, Lanes: n.log.topology.Lanes, Log: log, Logger: n.logger})
		if err != nil {
			return err
		}
		at := runner.Position()
		if at.Number == 0 {
			continue
		}
		record, err := log.Read(ctx, at.Number)
		if err != nil {
			return fmt.Errorf("compare lane %d with the log: %w", lane, err)
		}
		if record.Hash != at.Hash {
			return fmt.Errorf("it was made of another log: in lane %d, commit %d is %.12s…, the log has %.12s…", lane, at.Number, at.Hash, record.Hash)
		}
	}
	return nil
}

// keepCheckpoints puts a copy of the state on the shelf now and then, until ctx ends. One that fails is tried again the next time.
func (n *node) keepCheckpoints(ctx context.Context) error {
	for pause(ctx, n.options.checkpoints.every) {
		if err := n.putCheckpoint(ctx); err != nil && ctx.Err() == nil {
			n.logger.Warn("no copy of the state was kept", "error", err, "again_in", n.options.checkpoints.every)
		}
	}
	return nil
}

// putCheckpoint puts a copy of the state on the shelf, and takes old ones off it.
func (n *node) putCheckpoint(ctx context.Context) (err error) {
	dir, err := n.options.data.checkpoint(n.store.Checkpoint)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	name := time.Now().UTC().Format(checkpointNamesFormat)
	from, to := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := pack(dir, to)
		packed <- err
		_ = to.CloseWithError(err) // It never fails.
	}()
	err = n.shelf.Put(ctx, name, from)
	_ = from.CloseWithError(err) // Whoever still writes ends.
	if err := errors.Join(<-packed, err); err != nil {
		return err
	}
	names, err := n.shelf.Names(ctx)
	if err != nil {
		return err
	}
	for _, old := range names[:max(0, len(names)-checkpointsKept)] {
		if err := n.shelf.Remove(ctx, old); err != nil {
			return err
		}
	}
	return nil
}

// pack writes the files of a directory as one compressed archive.
func pack(dir string, to io.Writer) (err error) {
	zip, err := zstd.NewWriter(to, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	archive := tar.NewWriter(zip)
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		if err == nil {
			err = packFile(archive, dir, entry)
		}
	}
	if err == nil {
		err = archive.Close()
	}
	return errors.Join(err, zip.Close())
}

func packFile(archive *tar.Writer, dir string, entry fs.DirEntry) error {
	if !entry.Type().IsRegular() {
		return fmt.Errorf("%s in a copy of the state is no file", entry.Name())
	}
	file, err := os.Open(filepath.Join(dir, entry.Name()))
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Name: entry.Name(), Mode: 0o600, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(archive, file)
	return err
}

// unpack reads what pack wrote, to its end, into a new directory.
func unpack(from io.Reader, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	zip, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return err
	}
	defer zip.Close()
	archive := tar.NewReader(zip)
	for left := int64(checkpointBytesMax); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, zip) // The end has the sums.
			return err
		}
		if err != nil {
			return fmt.Errorf("unpack a copy of the state: %w", err)
		}
		if left -= header.Size; left < 0 || header.Typeflag != tar.TypeReg || header.Name != filepath.Base(header.Name) {
			return fmt.Errorf("a copy of the state holds %q, which is not of a state", header.Name)
		}
		file, err := os.OpenFile(filepath.Join(dir, header.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.CopyN(file, archive, header.Size)
		if err := errors.Join(err, file.Close()); err != nil {
			return fmt.Errorf("unpack a copy of the state: %w", err)
		}
	}
}

// A dirShelf keeps copies of states as files in a directory.
type dirShelf string

func (d dirShelf) path(name string) string {
	return filepath.Join(string(d), name+checkpointFileSuffix)
}

// Put implements checkpointShelf.
func (d dirShelf) Put(_ context.Context, name string, from io.Reader) (err error) {
	file, err := os.CreateTemp(string(d), ".checkpoint-*")
	if err != nil {
		return err
	}
	if _, err = io.Copy(file, from); err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), d.path(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(file.Name()))
	}
	return nil
}

// Get implements checkpointShelf.
func (d dirShelf) Get(_ context.Context, name string) (io.ReadCloser, error) {
	return os.Open(d.path(name))
}

// Names implements checkpointShelf.
func (d dirShelf) Names(context.Context) ([]string, error) {
	entries, err := os.ReadDir(string(d)) // In order.
	var names []string
	for _, entry := range entries {
		if name, found := strings.CutSuffix(entry.Name(), checkpointFileSuffix); found {
			names = append(names, name)
		}
	}
	return names, err
}

// Remove implements checkpointShelf.
func (d dirShelf) Remove(_ context.Context, name string) error { return os.Remove(d.path(name)) }
