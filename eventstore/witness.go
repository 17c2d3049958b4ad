package eventstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Witness remembers, outside the log, the newest commit of each lane that this node saw acknowledged. A log that is shorter
// than that, or has another commit there, has lost something that was promised (I1), however well it looks by itself.
// Its methods may be called by several goroutines.
type Witness struct {
	// Patience is how long Check gives a log to show the commit, before it counts as lost: a replica may be behind
	// for a while after a start. It is set before the first call.
	Patience time.Duration

	path string

	mu    sync.Mutex
	known map[uint32]Position
	dirty bool

	syncing sync.Mutex // one writer of the file at a time
}

// anyHash stands for a commit whose loss was accepted: whatever the log has there is the truth now.
var anyHash Hash

const (
	witnessTitle    = "weir witness 1"
	witnessMax      = 1 << 20 // bytes of a witness file; 1,024 lanes need 110,000
	witnessRetry    = 100 * time.Millisecond
	witnessFileMode = 0o640
)

// OpenWitness reads the witness file at path. A file that is not there is an empty witness; one that is damaged is an error.
func OpenWitness(path string) (*Witness, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Witness{path: path, known: map[uint32]Position{}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the witness: %w", err)
	}
	known, err := decodeWitness(text)
	if err != nil {
		return nil, fmt.Errorf("witness file %s is damaged: %w; restore it, or remove it if the log is known to be whole", path, err)
	}
	return &Witness{path: path, known: known}, nil
}

// Note takes in that a commit was acknowledged. It only remembers; Sync writes it down.
func (w *Witness) Note(lane uint32, at Position) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at.Number > w.known[lane].Number {
		w.known[lane] = at
		w.dirty = true
	}
}

// Known returns the number of the newest commit of each lane.
func (w *Witness) Known() map[uint32]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	numbers := make(map[uint32]uint64, len(w.known))
	for lane, at := range w.known {
		numbers[lane] = at.Number
	}
	return numbers
}

// Sync writes down what was noted since, and returns once it is on the disk. After an error the file is as it was before.
func (w *Witness) Sync() error {
	w.syncing.Lock()
	defer w.syncing.Unlock()
	w.mu.Lock()
	dirty, text := w.dirty, []byte(nil)
	if dirty {
		text = encodeWitness(w.known)
	}
	w.dirty = false
	w.mu.Unlock()
	if !dirty {
		return nil
	}
	if err := replaceFile(w.path, text); err != nil {
		w.mu.Lock()
		w.dirty = true
		w.mu.Unlock()
		return fmt.Errorf("write the witness: %w", err)
	}
	return nil
}

// replaceFile puts text in the place of the file at path, so that after a crash there is the one or the other.
func replaceFile(path string, text []byte) error {
	temporary := path + ".tmp"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, witnessFileMode)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Check compares a lane's log with what was noted of it. A log that lost commits is a *WitnessError.
func (w *Witness) Check(ctx context.Context, lane uint32, log Log) error {
	w.mu.Lock()
	known := w.known[lane]
	w.mu.Unlock()
	if known.Number == 0 {
		return nil
	}
	end := time.Now().Add(w.Patience)
	for {
		found, err := log.Read(ctx, known.Number)
		switch {
		case err == nil && (known.Hash == anyHash || found.Hash == known.Hash):
			return nil
		case err == nil:
			return &WitnessError{Lane: lane, Known: known, Found: Position{Number: found.Number, Hash: found.Hash}}
		case !errors.Is(err, ErrNoCommit):
			return fmt.Errorf("compare lane %d with the witness: %w", lane, err)
		}
		if !time.Now().Before(end) {
			break
		}
		if err := pause(ctx, witnessRetry); err != nil {
			return err
		}
	}
	head, err := log.Head(ctx)
	if err != nil {
		return fmt.Errorf("compare lane %d with the witness: %w", lane, err)
	}
	return &WitnessError{Lane: lane, Known: known, Found: Position{Number: head}}
}

// Accept writes down that a lane's log ends at number, or has another commit there, and that this is accepted. The commits after it
// are given up for ever.
func (w *Witness) Accept(lane uint32, number uint64) error {
	w.mu.Lock()
	known := w.known[lane]
	if number > known.Number || known.Number == 0 {
		w.mu.Unlock()
		return fmt.Errorf("no loss to accept: of lane %d, commit %d is the newest that this node knows of, not %d", lane, known.Number, number)
	}
	w.known[lane] = Position{Number: number, Hash: anyHash}
	w.dirty = true
	w.mu.Unlock()
	return w.Sync()
}

// ParseAcceptedLoss reads how a person names a loss: "lane=3@40".
func ParseAcceptedLoss(text string) (lane uint32, number uint64, err error) {
	where, at, found := strings.Cut(text, "@")
	name, named := strings.CutPrefix(where, "lane=")
	wide, laneErr := strconv.ParseUint(name, 10, 32)
	number, numberErr := strconv.ParseUint(at, 10, 64)
	if !found || !named || laneErr != nil || numberErr != nil || wide >= LanesMax {
		return 0, 0, fmt.Errorf("%q is not like lane=3@40: the lane, and the number of the last commit to keep", text)
	}
	return uint32(wide), number, nil
}

// A WitnessError says that a log has lost commits that were acknowledged.
type WitnessError struct {
	Lane uint32
	// Known is the newest commit that was seen acknowledged.
	Known Position
	// Found is the commit that the log has at that number, or, with a zero hash, where the log ends.
	Found Position
}

func (e *WitnessError) Error() string {
	found := fmt.Sprintf("the log ends at %d", e.Found.Number)
	if e.Found.Hash != anyHash {
		found = fmt.Sprintf("the log has another one there (%.12s…)", e.Found.Hash)
	}
	return fmt.Sprintf("the log of lane %d has lost commits: this node saw commit %d (%.12s…) acknowledged, but %s; restore the log, or give the lost commits up with --accept-loss lane=%d@%d",
		e.Lane, e.Known.Number, e.Known.Hash, found, e.Lane, e.Found.Number)
}

// encodeWitness writes a title, one line for each lane in order, and the sum of all that:
//
//	weir witness 1
//	lane 0 commit 42 hash 3f…
//	lane 1 commit 7 hash any
//	sum 9a…
func encodeWitness(known map[uint32]Position) []byte {
	var text bytes.Buffer
	text.WriteString(witnessTitle + "\n")
	for _, lane := range slices.Sorted(maps.Keys(known)) {
		at := known[lane]
		hash := at.Hash.String()
		if at.Hash == anyHash {
			hash = "any"
		}
		fmt.Fprintf(&text, "lane %d commit %d hash %s\n", lane, at.Number, hash)
	}
	fmt.Fprintf(&text, "sum %x\n", sha256.Sum256(text.Bytes()))
	return text.Bytes()
}

// decodeWitness reads exactly what encodeWitness writes.
func decodeWitness(text []byte) (map[uint32]Position, error) {
	if len(text) > witnessMax {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(text), witnessMax)
	}
	body, sum, found := bytes.Cut(text, []byte("sum "))
	want := sha256.Sum256(body)
	if !found || string(sum) != hex.EncodeToString(want[:])+"\n" {
		return nil, errors.New("its sum does not match")
	}
	lines := strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")
	if lines[0] != witnessTitle {
		return nil, fmt.Errorf("it begins with %q, not %q", lines[0], witnessTitle)
	}
	known := make(map[uint32]Position, len(lines)-1)
	for _, line := range lines[1:] {
		var lane uint32
		var at Position
		var hash string
		if _, err := fmt.Sscanf(line, "lane %d commit %d hash %s", &lane, &at.Number, &hash); err != nil {
			return nil, fmt.Errorf("line %q: %w", line, err)
		}
		if hash != "any" {
			decoded, err := hex.DecodeString(hash)
			if err != nil || len(decoded) != len(at.Hash) {
				return nil, fmt.Errorf("line %q: not a hash", line)
			}
			copy(at.Hash[:], decoded)
		}
		known[lane] = at
	}
	if !bytes.Equal(encodeWitness(known), text) {
		return nil, errors.New("it is not in the form in which it is written")
	}
	return known, nil
}
