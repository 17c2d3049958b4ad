// Package backup keeps a copy of a log, of the user keys beside it and of a node's state in a directory, and puts it back.
//
// A backup only grows: each run adds the commits since the last one as segments (eventstore.SegmentWriter), then writes a new
// manifest in the place of the old one. A run that is stopped at any point leaves the backup as it was, and some files that
// the next run removes.
//
//	manifest.json            what the backup holds, with the length and SHA-256 of every file
//	lane-0003/00000000000000000001.segment   commits of lane 3 from number 1 on
//	keys-2.json              the users' wrapped keys; only the master key, which is not in a backup, opens them
//	state-2/                 a node's state as of some commits of the log; made anew from the log where it is missing
package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/weirhq/weir/eventstore"
)

// format is that of the manifest, and formatOldest the oldest one that is read. A program that meets a newer one refuses it.
// 2: a lane says how large its log was.
const (
	format       = 2
	formatOldest = 1
)

const (
	manifestName = "manifest.json"
	// segmentCommitsMax bounds the commits of a segment: what a damaged file may cost.
	segmentCommitsMax = 1 << 16
	// segmentsMax bounds the segments of a lane.
	segmentsMax = 1 << 16
)

// A Manifest says what a backup holds.
type Manifest struct {
	Format int `json:"format"`
	// Run counts the runs that made it.
	Run int `json:"run"`
	// Time of the newest run.
	Time time.Time `json:"time"`
	// Lanes of the log, by number.
	Lanes []Lane `json:"lanes"`
	Keys  *Keys  `json:"keys,omitempty"`
	State *State `json:"state,omitempty"`
}

// A Lane is the backup of one lane's log.
type Lane struct {
	Lane uint32 `json:"lane"`
	// Commits is the number of the newest commit, Hash its hash; 0 and the hash of the genesis for none.
	Commits uint64 `json:"commits"`
	Hash    string `json:"hash"`
	// LogBytes is how many bytes the log said that it held, up to the newest commit; 0 if it did not say.
	LogBytes uint64    `json:"logBytes,omitempty"`
	Segments []Segment `json:"segments"`
}

// A Segment is a file of commits, from First on to the one before the next segment's.
type Segment struct {
	File
	First uint64 `json:"first"`
}

// Keys are the users' wrapped keys.
type Keys struct {
	File
	Users int `json:"users"`
}

// A State is a node's state.
type State struct {
	// Dir is its directory in the backup.
	Dir   string `json:"dir"`
	Files []File `json:"files"`
}

// A File is a file of the backup, or of a directory in it.
type File struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// A Backup is a directory that holds one, or will.
type Backup struct {
	dir      string
	manifest Manifest
}

// ErrNone says that a directory holds no backup.
var ErrNone = errors.New("there is no backup")

// Open reads the manifest of the backup in dir. ErrNone: there is none. Verify says whether the rest is as it was written.
func Open(dir string) (*Backup, error) {
	data, err := os.ReadFile(filepath.Join(dir, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s", ErrNone, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("read the backup's manifest: %w", err)
	}
	var written struct {
		Format int `json:"format"`
	}
	// What a newer program wrote has fields that this one does not know, and is not damaged for that.
	if err := json.Unmarshal(data, &written); err == nil && written.Format > format {
		return nil, fmt.Errorf("the backup in %s has format %d, and this program reads up to format %d: use the version that made it", dir, written.Format, format)
	}
	b := &Backup{dir: dir}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&b.manifest); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrDamaged, filepath.Join(dir, manifestName), err)
	}
	return b, b.manifest.check()
}

// check holds a manifest against what write writes.
func (m *Manifest) check() error {
	if m.Format < formatOldest || m.Format > format {
		return fmt.Errorf("%w: its manifest has format %d", ErrDamaged, m.Format)
	}
	if err := m.topology().Validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var files []File
	for lane := range m.Lanes {
		if m.Lanes[lane].Lane != uint32(lane) || len(m.Lanes[lane].Segments) > segmentsMax {
			return fmt.Errorf("%w: its lanes are not counted from 0", ErrDamaged)
		}
		for _, segment := range m.Lanes[lane].Segments {
			files = append(files, segment.File)
		}
	}
	if m.Keys != nil {
		files = append(files, m.Keys.File)
	}
	if m.State != nil {
		files = append(append(files, m.State.Files...), File{Name: m.State.Dir})
	}
	for _, file := range files {
		if !filepath.IsLocal(file.Name) {
			return fmt.Errorf("%w: it names the file %q, which is not in it", ErrDamaged, file.Name)
		}
	}
	return nil
}

// Manifest returns what the backup holds.
func (b *Backup) Manifest() Manifest { return b.manifest }

func (m *Manifest) topology() eventstore.Topology {
	return eventstore.Topology{Lanes: uint32(len(m.Lanes))}
}

// Topology returns that of the log.
func (b *Backup) Topology() eventstore.Topology { return b.manifest.topology() }

// A Reader reads one lane's log.
type Reader interface {
	Head(ctx context.Context) (uint64, error)
	// Size may fail where Head does not: then nobody knows how much there is to back up.
	Size(ctx context.Context) (eventstore.LogSize, error)
	Follow(ctx context.Context, number uint64) (eventstore.Cursor, error)
}

// A Run is what goes into a backup.
type Run struct {
	Topology eventstore.Topology
	// Lane opens the log of a lane.
	Lane func(lane uint32) Reader
	// Keys calls each with every user's wrapped key; nil leaves them out.
	Keys func(ctx context.Context, each func(userID string, value []byte) error) error
	// State is a directory with a node's state, which must not change any more; empty leaves it out.
	State string
	// Progress is told after each commit, and each file of the state, how many bytes were added, of how many: of the log as it counts
	// them, and of the state. total is 0 where a log does not say how large it is. It may be nil.
	Progress func(done, total uint64)
	// Now is written down as the time of the run.
	Now time.Time
}

// ErrOtherLog says that a backup is of another log than the one that is to be added to it.
var ErrOtherLog = errors.New("the backup is of another log")

// Add makes a backup in dir, or adds to the one that is there what the log has got since. ErrOtherLog: it is of another log.
func Add(ctx context.Context, dir string, run Run) (*Backup, error) {
	b, err := Open(dir)
	switch {
	case errors.Is(err, ErrNone):
		b = &Backup{dir: dir, manifest: newManifest(run.Topology)}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the backup: %w", err)
		}
	case err != nil:
		return nil, err
	case b.Topology() != run.Topology:
		return nil, fmt.Errorf("%w: it has %d lanes, the log has %d", ErrOtherLog, b.Topology().Lanes, run.Topology.Lanes)
	}
	next := b.manifest
	next.Format = format
	next.Run, next.Time = next.Run+1, run.Now.UTC()
	next.Lanes = append([]Lane(nil), next.Lanes...)
	if err := b.removeStrays(); err != nil {
		return nil, err
	}
	heads, err := headsOf(ctx, next.Lanes, run)
	if err != nil {
		return nil, err
	}
	added, err := newAdding(next.Lanes, heads, run)
	if err != nil {
		return nil, err
	}
	if err := b.addLanes(ctx, &next, run, heads, added); err != nil {
		return nil, err
	}
	next.Keys, next.State = nil, nil
	if run.Keys != nil {
		if next.Keys, err = b.addKeys(ctx, next.Run, run); err != nil {
			return nil, err
		}
	}
	if run.State != "" {
		if next.State, err = b.addState(ctx, next.Run, run.State, added); err != nil {
			return nil, err
		}
	}
	data, err := json.MarshalIndent(next, "", "  ")
	if err != nil {
		return nil, err
	}
	if _, err := writeFile(b.dir, manifestName, func(w io.Writer) error { _, err := w.Write(append(data, '\n')); return err }); err != nil {
		return nil, err
	}
	b.manifest = next
	return b, b.removeStrays()
}

func newManifest(topology eventstore.Topology) Manifest {
	m := Manifest{Format: format, Lanes: make([]Lane, topology.Lanes)}
	for lane := range topology.Lanes {
		m.Lanes[lane] = Lane{Lane: lane, Hash: eventstore.Genesis(lane, topology.Lanes).Hash.String(), Segments: []Segment{}}
	}
	return m
}

// headsOf returns how much the log of each lane holds. Of one that does not say, only the head is known.
func headsOf(ctx context.Context, lanes []Lane, run Run) ([]eventstore.LogSize, error) {
	heads := make([]eventstore.LogSize, len(lanes))
	for lane := range heads {
		reader := run.Lane(uint32(lane))
		size, err := reader.Size(ctx)
		if err != nil {
			size = eventstore.LogSize{}
			if size.Head, err = reader.Head(ctx); err != nil {
				return nil, fmt.Errorf("back up lane %d: %w", lane, err)
			}
		}
		if size.Head < lanes[lane].Commits {
			return nil, fmt.Errorf("%w, or the log has lost commits: lane %d ends at commit %d, and the backup has %d", ErrOtherLog, lane, size.Head, lanes[lane].Commits)
		}
		heads[lane] = size
	}
	return heads, nil
}

// addLanes adds what each lane has got since the last run, up to heads.
func (b *Backup) addLanes(ctx context.Context, next *Manifest, run Run, heads []eventstore.LogSize, added *adding) error {
	for lane := range heads {
		if err := b.addLane(ctx, &next.Lanes[lane], run, heads[lane].Head, added.commit); err != nil {
			return fmt.Errorf("back up lane %d: %w", lane, err)
		}
		next.Lanes[lane].LogBytes = heads[lane].Bytes
	}
	return nil
}

// addLane writes segments of a lane's new commits up to head. The newest commit of the backup is read again: the log must have it
// too.
func (b *Backup) addLane(ctx context.Context, lane *Lane, run Run, head uint64, each func(eventstore.Record)) error {
	at, err := lane.position()
	if err != nil {
		return err
	}
	lane.Segments = append([]Segment(nil), lane.Segments...)
	cursor, err := run.Lane(lane.Lane).Follow(ctx, max(1, at.Number))
	if err != nil {
		return err
	}
	defer cursor.Close()
	if at.Number > 0 {
		record, err := cursor.Next(ctx)
		if err != nil {
			return err
		}
		if record.Hash != at.Hash {
			return fmt.Errorf("%w: its commit %d is %.12s…, the log's is %.12s…", ErrOtherLog, at.Number, at.Hash, record.Hash)
		}
	}
	for at.Number < head {
		name := filepath.Join(fmt.Sprintf("lane-%04d", lane.Lane), fmt.Sprintf("%020d.segment", at.Number+1))
		segment := Segment{First: at.Number + 1}
		segment.File, err = writeFile(b.dir, name, func(w io.Writer) error {
			s, err := eventstore.NewSegmentWriter(w, lane.Lane, run.Topology.Lanes, at)
			if err != nil {
				return err
			}
			for s.Position().Number < head && s.Position().Number < at.Number+segmentCommitsMax {
				record, err := cursor.Next(ctx)
				if err != nil {
					return err
				}
				if err := s.Append(record); err != nil {
					return err
				}
				each(record)
			}
			at = s.Position()
			return s.Close()
		})
		if err != nil {
			return err
		}
		lane.Segments = append(lane.Segments, segment)
	}
	lane.Commits, lane.Hash = at.Number, at.Hash.String()
	return nil
}

// position is where a lane's backup ends.
func (l *Lane) position() (eventstore.Position, error) {
	hash, err := eventstore.ParseHash(l.Hash)
	if err != nil {
		return eventstore.Position{}, fmt.Errorf("%w: the hash of lane %d: %w", ErrDamaged, l.Lane, err)
	}
	return eventstore.Position{Number: l.Commits, Hash: hash}, nil
}

// addKeys writes the users' keys.
func (b *Backup) addKeys(ctx context.Context, run int, from Run) (*Keys, error) {
	values := map[string][]byte{}
	err := from.Keys(ctx, func(userID string, value []byte) error { values[userID] = value; return nil })
	if err != nil {
		return nil, fmt.Errorf("back up the user keys: %w", err)
	}
	data, err := json.Marshal(values)
	if err != nil {
		return nil, err
	}
	file, err := writeFile(b.dir, fmt.Sprintf("keys-%d.json", run), func(w io.Writer) error { _, err := w.Write(data); return err })
	return &Keys{File: file, Users: len(values)}, err
}

// addState copies a node's state.
func (b *Backup) addState(ctx context.Context, run int, from string, added *adding) (*State, error) {
	state := &State{Dir: fmt.Sprintf("state-%d", run), Files: []File{}}
	err := eachFile(from, func(name string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		file, err := copyFile(filepath.Join(from, name), filepath.Join(b.dir, state.Dir), name)
		state.Files = append(state.Files, file)
		added.bytes(uint64(file.Bytes))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("back up the state: %w", err)
	}
	return state, nil
}

// removeStrays removes what no manifest names: the leftovers of a run that was stopped, and what newer keys and state replaced.
func (b *Backup) removeStrays() error {
	known := map[string]bool{manifestName: true}
	for lane := range b.manifest.Lanes {
		for _, segment := range b.manifest.Lanes[lane].Segments {
			known[segment.Name] = true
		}
	}
	if b.manifest.Keys != nil {
		known[b.manifest.Keys.Name] = true
	}
	if b.manifest.State != nil {
		for _, file := range b.manifest.State.Files {
			known[filepath.Join(b.manifest.State.Dir, file.Name)] = true
		}
	}
	err := eachFile(b.dir, func(name string) error {
		if known[name] || !ours(name) {
			return nil
		}
		return os.Remove(filepath.Join(b.dir, name))
	})
	if err != nil {
		return fmt.Errorf("tidy the backup: %w", err)
	}
	return nil
}

// ours reports whether a file is named as a backup's are. Others in the directory are left alone.
func ours(name string) bool {
	top, _, nested := strings.Cut(filepath.ToSlash(name), "/")
	return nested && (strings.HasPrefix(top, "lane-") || strings.HasPrefix(top, "state-")) ||
		!nested && (strings.HasPrefix(top, "keys-") || strings.HasSuffix(top, temporarySuffix))
}
