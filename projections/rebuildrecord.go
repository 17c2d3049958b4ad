package projections

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A rebuildRecord is what is known of a rebuild after a crash. It stands in a file of its own in the store's folder, in JSON, not among
// the store's keys: these become durable when their memtable is flushed, and a flush for each step of a rebuild is a file more that
// Pebble compacts while others call. So it may be newer than what the store holds, by as much as was not flushed:
//
//   - A generation that it names may be behind where it was. It goes on from there.
//   - It is removed when the pointers to its generation are durable, so it may name one that answers already. Then it is over.
//
// A copy of a store (Store.Checkpoint) has none: who opens it begins again what has to be made.
type rebuildRecord struct {
	Generation byte     `json:"generation"`
	Version    uint32   `json:"version"`
	Lanes      []uint32 `json:"lanes"`
	Speed      Speed    `json:"speed"`
	Swap       SwapMode `json:"swap"`
	Paused     bool     `json:"paused,omitempty"`
	// Held says why a generation that is built waits for Swap.
	Held string `json:"held,omitempty"`
}

// unfinishedSuffix is that of a record's file while it is written.
const unfinishedSuffix = ".tmp"

// oldRecordKey is where older programs kept the record: in the store.
func oldRecordKey(p *Projection) []byte { return []byte{KeySpaceViews, spaceRebuilds, p.space} }

func (s *Store) recordPath(p *Projection) string {
	return s.fs.PathJoin(s.dir, "rebuild-"+p.Name+".json")
}

// record returns the record of a projection's rebuild; false when there is none.
func (s *Store) record(p *Projection) (record rebuildRecord, ok bool, err error) {
	text, err := read(s.db, oldRecordKey(p))
	switch {
	case err == nil: // Newer than any file, as that is removed there when one is written.
	case errors.Is(err, pebble.ErrNotFound):
		if text, err = s.readFile(s.recordPath(p)); err != nil || text == nil {
			return record, false, err
		}
	default:
		return record, false, err
	}
	if err := json.Unmarshal(text, &record); err != nil {
		return record, false, fmt.Errorf("%s cannot be read: remove it to give the rebuild up: %w", s.recordPath(p), err)
	}
	return record, true, nil
}

// names reports whether a generation answers, or is kept, in one of the lanes.
func (g *generations) names(p *Projection, generation byte, lanes []uint32) bool {
	for _, lane := range lanes {
		if at := g.of(p.space, lane); generation == at.live || generation == at.kept {
			return true
		}
	}
	return false
}

// putRecord notes a rebuild, durably. After a crash there is the record, or the one before it.
func (s *Store) putRecord(p *Projection, record *rebuildRecord) error {
	text, err := json.Marshal(record)
	if err == nil {
		err = s.replaceFile(s.recordPath(p), text)
	}
	if err == nil {
		err = s.removeOldRecord(p)
	}
	if err != nil {
		return fmt.Errorf("note the rebuild of view %s: %w", p.Name, err)
	}
	return nil
}

// removeRecord forgets a rebuild, durably.
func (s *Store) removeRecord(p *Projection) error {
	err := s.fs.Remove(s.recordPath(p))
	switch {
	case err == nil:
		err = s.syncDir()
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	}
	if err := errors.Join(err, s.removeOldRecord(p)); err != nil {
		return fmt.Errorf("forget the rebuild of view %s: %w", p.Name, err)
	}
	return nil
}

// removeOldRecord removes the record of an older program, durably.
func (s *Store) removeOldRecord(p *Projection) error {
	_, err := read(s.db, oldRecordKey(p))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = s.db.Delete(oldRecordKey(p), pebble.NoSync)
	}
	if err == nil {
		err = s.db.Flush()
	}
	return err
}

// readFile returns what is in a file, nil when there is none.
func (s *Store) readFile(path string) (content []byte, err error) {
	file, err := s.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	return io.ReadAll(file)
}

// replaceFile puts content in the place of a file in the store's folder, so that after a crash there is the one or the other.
func (s *Store) replaceFile(path string, content []byte) error {
	unfinished := path + unfinishedSuffix
	file, err := s.fs.Create(unfinished, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := s.fs.Rename(unfinished, path); err != nil {
		return err
	}
	return s.syncDir()
}

func (s *Store) syncDir() error {
	dir, err := s.fs.OpenDir(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
