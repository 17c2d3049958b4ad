//go:build unix

package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// journalFormat opens the first line of a journal.
const journalFormat = "weir-sandbox-v1"

// lineBytesMax is far above the longest line.
const lineBytesMax = 64 << 10

// journalHead is the first line.
type journalHead struct {
	Format string `json:"format"`
	// ID makes the ids of this sandbox's events its own: another journal starts counting again.
	ID string `json:"id"`
}

// journalLine is every other line: an entry, or the end of the deliveries of one.
type journalLine struct {
	Entry *Entry `json:"entry,omitempty"`
	// Told is the number of an entry whose webhooks are done with.
	Told uint64 `json:"told,omitempty"`
}

// A journal is a file of JSON lines that only grows. Lines are buffered, and durable when sync returns: whoever answers
// first syncs what it answers with. Many that sync at once share one fsync. A journal without a file keeps nothing.
type journal struct {
	file *os.File // nil: nothing is kept.

	mu       sync.Mutex // Guards what follows.
	buffer   []byte
	appended uint64 // Lines so far.
	failure  error  // Once it failed, what is on the disk is not known any more.

	syncing sync.Mutex // Held while writing. Taken before mu.
	durable uint64     // Lines that are on the disk. Guarded by syncing.
}

// openJournal opens or makes the journal at path and has take see every line. A last line without its end was never
// answered with, and is cut off; any other damage is an error, and the file stays as it is.
func openJournal(path, freshID string, take func(journalLine) error) (_ *journal, id string, err error) {
	if path == "" {
		return &journal{}, freshID, nil
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, "", fmt.Errorf("%s is in use by another process: %w", path, err)
	}
	head, good, err := readJournal(file, take)
	if err != nil {
		return nil, "", fmt.Errorf("read %s: %w", path, err)
	}
	if err := file.Truncate(good); err != nil {
		return nil, "", err
	}
	if _, err := file.Seek(good, io.SeekStart); err != nil {
		return nil, "", err
	}
	j := &journal{file: file}
	if good == 0 {
		head = journalHead{Format: journalFormat, ID: freshID}
		if err := j.append(head); err != nil {
			return nil, "", err
		}
		if err := j.sync(); err != nil {
			return nil, "", err
		}
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, "", err
		}
	}
	return j, head.ID, nil
}

var errNoJournal = errors.New("this is not a sandbox's journal")

// tornHead reports whether a file's only bytes may be the beginning of a journal.
func tornHead(line []byte) bool {
	start := []byte(`{"format":"` + journalFormat + `","id":"`)
	return bytes.HasPrefix(line, start) || bytes.HasPrefix(start, line)
}

// readJournal returns the head and how many bytes are whole lines.
func readJournal(file io.Reader, take func(journalLine) error) (head journalHead, good int64, err error) {
	reader := bufio.NewReaderSize(file, lineBytesMax)
	for number := 1; ; number++ {
		line, err := reader.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && number == 1 && !tornHead(line):
			return head, good, errNoJournal
		case errors.Is(err, io.EOF):
			return head, good, nil // What is left has no end: the process died while it wrote.
		case err != nil:
			return head, good, fmt.Errorf("line %d: %w", number, err)
		}
		if number == 1 {
			if err := strictJSON(line, &head); err != nil || head.Format != journalFormat || head.ID == "" {
				return head, 0, errNoJournal
			}
		} else {
			var l journalLine
			if err := strictJSON(line, &l); err != nil {
				return head, good, fmt.Errorf("line %d: %w", number, err)
			}
			if err := take(l); err != nil {
				return head, good, fmt.Errorf("line %d: %w", number, err)
			}
		}
		good += int64(len(line))
	}
}

// append adds a line to the buffer.
func (j *journal) append(line any) error {
	if j.file == nil {
		return nil
	}
	data, err := json.Marshal(line)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return j.failure
	}
	j.buffer = append(append(j.buffer, data...), '\n')
	j.appended++
	return nil
}

// sync returns when everything that was appended before is on the disk.
func (j *journal) sync() error {
	if j.file == nil {
		return nil
	}
	j.mu.Lock()
	wanted, failure := j.appended, j.failure
	j.mu.Unlock()
	if failure != nil {
		return failure
	}
	j.syncing.Lock()
	defer j.syncing.Unlock()
	if j.durable >= wanted {
		return nil // Somebody's fsync took ours along.
	}
	j.mu.Lock()
	data, upTo, failure := j.buffer, j.appended, j.failure
	j.buffer = nil
	j.mu.Unlock()
	if failure != nil {
		return failure
	}
	_, err := j.file.Write(data)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		j.mu.Lock()
		j.failure = fmt.Errorf("the journal failed: %w", err)
		err = j.failure
		j.mu.Unlock()
		return err
	}
	j.durable = upTo
	return nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	return errors.Join(j.sync(), j.file.Close())
}

// strictJSON reads one value that has nothing that we do not know, and nothing behind it.
func strictJSON(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something behind the value")
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
