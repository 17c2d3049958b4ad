package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/weirhq/weir/eventstore"
)

// ErrDamaged says that a backup is not what was written.
var ErrDamaged = errors.New("the backup is damaged")

// Verify reads all of the backup: every file is what it was, and every lane's commits are one chain from its genesis on (I2).
// progress is told how many bytes of its files were read, of how many; it may be nil.
func (b *Backup) Verify(ctx context.Context, progress func(done, total uint64)) error {
	read := &reading{tell: progress, total: b.Bytes()}
	for lane := range b.manifest.Lanes {
		err := b.readLane(ctx, &b.manifest.Lanes[lane], read, func(eventstore.Record) error { return nil })
		if err != nil {
			return err
		}
	}
	if _, err := b.keys(read); err != nil {
		return err
	}
	if b.manifest.State != nil {
		for _, file := range b.manifest.State.Files {
			if err := checkFile(filepath.Join(b.dir, b.manifest.State.Dir), file); err != nil {
				return err
			}
			read.end(file)
		}
	}
	return nil
}

// Commits returns how many commits the backup holds.
func (b *Backup) Commits() uint64 {
	var commits uint64
	for lane := range b.manifest.Lanes {
		commits += b.manifest.Lanes[lane].Commits
	}
	return commits
}

// Bytes returns how large the files of the backup are, without the manifest.
func (b *Backup) Bytes() uint64 {
	bytes := b.manifest.State.bytes()
	for lane := range b.manifest.Lanes {
		for _, segment := range b.manifest.Lanes[lane].Segments {
			bytes += uint64(segment.Bytes)
		}
	}
	if b.manifest.Keys != nil {
		bytes += uint64(b.manifest.Keys.Bytes)
	}
	return bytes
}

// bytes returns how large a state is, 0 where there is none.
func (s *State) bytes() (bytes uint64) {
	if s == nil {
		return 0
	}
	for _, file := range s.Files {
		bytes += uint64(file.Bytes)
	}
	return bytes
}

// readLane reads a lane's segments, in order, and checks that they are all that they were.
func (b *Backup) readLane(ctx context.Context, lane *Lane, read *reading, each func(eventstore.Record) error) error {
	at := eventstore.Genesis(lane.Lane, b.Topology().Lanes)
	for _, segment := range lane.Segments {
		if segment.First != at.Number+1 {
			return fmt.Errorf("%w: lane %d has no commit %d", ErrDamaged, lane.Lane, at.Number+1)
		}
		var err error
		if at, err = b.readSegment(ctx, lane.Lane, segment, at, read, each); err != nil {
			return err
		}
	}
	want, err := lane.position()
	if err != nil {
		return err
	}
	if at != want {
		return fmt.Errorf("%w: lane %d ends at commit %d (%.12s…), want %d (%.12s…)", ErrDamaged, lane.Lane, at.Number, at.Hash, want.Number, want.Hash)
	}
	return nil
}

func (b *Backup) readSegment(ctx context.Context, lane uint32, segment Segment, after eventstore.Position, read *reading, each func(eventstore.Record) error) (eventstore.Position, error) {
	if err := checkFile(b.dir, segment.File); err != nil {
		return after, err
	}
	damaged := func(err error) (eventstore.Position, error) {
		return after, fmt.Errorf("%w: %s: %w", ErrDamaged, segment.Name, err)
	}
	file, err := os.Open(filepath.Join(b.dir, segment.Name))
	if err != nil {
		return damaged(err)
	}
	defer file.Close()
	counted := &countingReader{from: file}
	reader, err := eventstore.NewSegmentReader(counted, lane, b.Topology().Lanes, after)
	if err != nil {
		return damaged(err)
	}
	defer reader.Close()
	for {
		record, err := reader.Next()
		if err == io.EOF { //nolint:errorlint // The reader's own end, not an early one that it wraps.
			read.end(segment.File)
			return reader.Position(), nil
		}
		if err != nil {
			return damaged(err)
		}
		if err := errors.Join(ctx.Err(), each(record)); err != nil {
			return after, err
		}
		read.at(counted.bytes)
	}
}

// keys returns the users' keys, nil where the backup has none.
func (b *Backup) keys(read *reading) (map[string][]byte, error) {
	if b.manifest.Keys == nil {
		return nil, nil
	}
	if err := checkFile(b.dir, b.manifest.Keys.File); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(b.dir, b.manifest.Keys.Name))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var values map[string][]byte
	if err := json.Unmarshal(data, &values); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, b.manifest.Keys.Name, err)
	}
	read.end(b.manifest.Keys.File)
	return values, nil
}

// A Target is where a backup is put back.
type Target struct {
	// Log of a lane. It is empty, or holds the first commits of the backup already: what a restore that was stopped left.
	Log func(lane uint32) eventstore.Log
	// SetKey stores the wrapped key of a user who has none.
	SetKey func(ctx context.Context, userID string, value []byte) error
	// Progress is told after each commit how many bytes of the backup's files are put back, of how many; may be nil.
	Progress func(done, total uint64)
}

// appendsMax bounds the commits that are on their way to a log.
const appendsMax = 64

// Restore puts the log and the keys back. It may be stopped at any point and called again. The state is put back by
// RestoreState, or made from the log.
func (b *Backup) Restore(ctx context.Context, target Target) error {
	read := &reading{tell: target.Progress, total: b.Bytes()}
	for lane := range b.manifest.Lanes {
		r := restorer{log: target.Log(uint32(lane)), lane: uint32(lane)}
		err := r.begin(ctx)
		if err == nil {
			err = b.readLane(ctx, &b.manifest.Lanes[lane], read, func(record eventstore.Record) error { return r.take(ctx, record) })
		}
		if err = errors.Join(err, r.settle(ctx, 0)); err != nil {
			return fmt.Errorf("restore lane %d: %w", lane, err)
		}
	}
	keys, err := b.keys(read)
	if err != nil {
		return err
	}
	for userID, value := range keys {
		if err := target.SetKey(ctx, userID, value); err != nil {
			return fmt.Errorf("restore the key of a user: %w", err)
		}
	}
	return nil
}

// ErrNotEmpty says that the log into which a backup is to be restored holds something else.
var ErrNotEmpty = errors.New("the log is not empty, and what it holds is not this backup's")

// A restorer appends a lane's commits to a log, several at a time where the log allows it.
type restorer struct {
	log  eventstore.Log
	lane uint32
	// held is how many commits the log holds already.
	held    uint64
	pending []eventstore.Pending
}

func (r *restorer) begin(ctx context.Context) (err error) {
	r.held, err = r.log.Head(ctx)
	return err
}

// take appends a commit, or compares it with the one that is there.
func (r *restorer) take(ctx context.Context, record eventstore.Record) error {
	if record.Number <= r.held {
		found, err := r.log.Read(ctx, record.Number)
		if err == nil && found.Hash != record.Hash {
			err = fmt.Errorf("%w: commit %d", ErrNotEmpty, record.Number)
		}
		return err
	}
	most := appendsMax
	if !r.log.ChecksChain() {
		most = 1
	}
	if err := r.settle(ctx, most-1); err != nil {
		return err
	}
	r.pending = append(r.pending, r.log.Append(record))
	return nil
}

// settle waits until at most so many appends are on their way.
func (r *restorer) settle(ctx context.Context, most int) error {
	for len(r.pending) > most {
		err := r.pending[0].Wait(ctx)
		r.pending = r.pending[1:]
		if err != nil {
			return err
		}
	}
	return nil
}

// RestoreState puts the node's state into dir, which must not be there. It reports false when the backup has none. progress is told as
// that of Restore, which came before; it may be nil.
func (b *Backup) RestoreState(dir string, progress func(done, total uint64)) (bool, error) {
	if b.manifest.State == nil {
		return false, nil
	}
	if _, err := os.Lstat(dir); err == nil {
		return false, fmt.Errorf("restore the state: %s is there already", dir)
	}
	from := filepath.Join(b.dir, b.manifest.State.Dir)
	unfinished := dir + temporarySuffix
	if err := os.RemoveAll(unfinished); err != nil {
		return false, fmt.Errorf("restore the state: %w", err)
	}
	read := &reading{tell: progress, done: b.Bytes() - b.manifest.State.bytes(), total: b.Bytes()}
	for _, file := range b.manifest.State.Files {
		copied, err := copyFile(filepath.Join(from, file.Name), unfinished, file.Name)
		if err == nil && copied != file {
			err = fmt.Errorf("%w: %s", ErrDamaged, file.Name)
		}
		if err != nil {
			return false, fmt.Errorf("restore the state: %w", err)
		}
		read.end(file)
	}
	if err := os.Rename(unfinished, dir); err != nil {
		return false, fmt.Errorf("restore the state: %w", err)
	}
	return true, nil
}
