package backup

import (
	"io"
	"os"
	"path/filepath"

	"github.com/weirhq/weir/eventstore"
)

// adding tells how far a run is, by bytes: commits differ in size by a factor of hundreds, so that their number says little of how
// long the rest takes.
type adding struct {
	tell func(done, total uint64)
	// total is 0 where it is not known.
	done, total uint64
}

// newAdding returns the progress of a run that adds to lanes what their logs hold up to heads, and the state.
func newAdding(lanes []Lane, heads []eventstore.LogSize, run Run) (*adding, error) {
	a := &adding{tell: run.Progress}
	known := true
	for lane := range lanes {
		known = known && (heads[lane].Head == 0 || heads[lane].Bytes > 0)
		a.total += lanes[lane].missing(heads[lane])
	}
	if !known {
		a.total = 0
		return a, nil
	}
	if run.State == "" {
		return a, nil
	}
	return a, eachFile(run.State, func(name string) error {
		info, err := os.Stat(filepath.Join(run.State, name))
		if err == nil {
			a.total += uint64(info.Size())
		}
		return err
	})
}

// missing returns how many bytes of a log are not in the backup of its lane yet. Where neither says how large the log was at the last
// run, what has come since is taken to be as large as its commits are on average.
func (l *Lane) missing(size eventstore.LogSize) uint64 {
	switch {
	case size.Head == l.Commits:
		return 0
	case l.Commits == 0 || l.LogBytes > 0 && l.LogBytes <= size.Bytes:
		return size.Bytes - l.LogBytes
	}
	average := float64(size.Bytes) / float64(size.Head-size.First+1)
	return uint64(float64(size.Head-l.Commits) * average)
}

func (a *adding) commit(record eventstore.Record) { a.bytes(uint64(record.Stored)) }

func (a *adding) bytes(added uint64) {
	a.done += added
	if a.tell != nil {
		a.tell(a.done, a.total)
	}
}

// reading tells how far the reading of a backup is, by bytes of its files.
type reading struct {
	tell func(done, total uint64)
	// done counts the files that were read, and total all that are in the backup.
	done, total uint64
}

// at says that so many bytes of a file were read, after all of those before it.
func (r *reading) at(bytes uint64) {
	if r.tell != nil {
		r.tell(r.done+bytes, r.total)
	}
}

// end says that all of a file was read.
func (r *reading) end(file File) {
	r.done += uint64(file.Bytes)
	r.at(0)
}

// A countingReader counts what is read from another one.
type countingReader struct {
	from  io.Reader
	bytes uint64
}

func (c *countingReader) Read(into []byte) (int, error) {
	n, err := c.from.Read(into)
	c.bytes += uint64(n)
	return n, err
}
