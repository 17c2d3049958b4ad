package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirhq/weir/eventstore"
)

// peak gives every lane but the last a peak of large commits, and then a quiet time of small ones.
func (s *source) peak() {
	for lane := range uint32(lanes - 1) {
		for range 60 {
			s.commit(lane, 8000)
		}
		for range 600 {
			s.commit(lane, 20)
		}
	}
}

// size returns how much the logs hold, in all lanes.
func (s *source) size() (bytes uint64) {
	s.t.Helper()
	for lane := range s.logs {
		size, err := s.logs[lane].Size(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		bytes += size.Bytes
	}
	return bytes
}

// A foretelling compares what is told of some reading with what was really read by then: how far it was, counted by bytes and by
// commits, at every commit after the first tenth.
type foretelling struct {
	read, commits       uint64 // so far
	all, allCommits     uint64
	wrong, wrongCommits float64 // the most
}

func (f *foretelling) take(record eventstore.Record) {
	f.read += uint64(len(record.Data))
	f.commits++
}

func (f *foretelling) told(done, total uint64) {
	if share := float64(f.read) / float64(f.all); share >= 0.1 && f.commits < f.allCommits {
		f.wrong = max(f.wrong, math.Abs(float64(done)/float64(total)-share))
		f.wrongCommits = max(f.wrongCommits, math.Abs(float64(f.commits)/float64(f.allCommits)-share))
	}
}

func (f *foretelling) want(t *testing.T, seed uint64, what string) {
	t.Helper()
	if f.commits != f.allCommits || f.wrong > 0.05 {
		t.Errorf("seed %d: %s: after a tenth it was told wrong by up to %.1f%%, of %d commits; want at most 5%%, %d", seed, what, 100*f.wrong, f.commits, f.allCommits)
	}
	if f.wrongCommits < 0.25 {
		t.Errorf("seed %d: %s: counted by commits it is wrong by only %.0f%%: this log shows nothing", seed, what, 100*f.wrongCommits)
	}
}

// readLog lets each see what is read of a log, before it is handed on.
type readLog struct {
	Reader
	each func(eventstore.Record)
}

type readCursor struct {
	eventstore.Cursor
	each func(eventstore.Record)
}

func (l readLog) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	cursor, err := l.Reader.Follow(ctx, number)
	return readCursor{cursor, l.each}, err
}

func (c readCursor) Next(ctx context.Context) (eventstore.Record, error) {
	record, err := c.Cursor.Next(ctx)
	if err == nil {
		c.each(record)
	}
	return record, err
}

// appendedLog lets each see what is appended to a log.
type appendedLog struct {
	eventstore.Log
	each func(eventstore.Record)
}

func (l appendedLog) Append(record eventstore.Record) eventstore.Pending {
	l.each(record)
	return l.Log.Append(record)
}

// TestBackupAndRestoreTellHowFarTheyAreByBytes: a log that had a peak is backed up, verified and restored. By the number of commits, all of
// them seem to have hardly begun when most of it is done.
func TestBackupAndRestoreTellHowFarTheyAreByBytes(t *testing.T) {
	s := newSource(t)
	s.peak()
	dir := t.TempDir()
	run := s.run()
	run.State = ""
	of := func() *foretelling { return &foretelling{all: s.size(), allCommits: (lanes - 1) * 660} }

	adding := of()
	run.Lane = func(lane uint32) Reader { return readLog{s.logs[lane], adding.take} }
	run.Progress = adding.told
	b, err := Add(t.Context(), dir, run)
	if err != nil {
		t.Fatal(err)
	}
	adding.want(t, s.seed, "backup")

	restoring, r := of(), newRestored()
	target := r.target()
	target.Log = func(lane uint32) eventstore.Log { return appendedLog{r.logs[lane], restoring.take} }
	target.Progress = restoring.told
	if err := b.Restore(t.Context(), target); err != nil {
		t.Fatal(err)
	}
	restoring.want(t, s.seed, "restore")

	// Verify hands no commits out: it tells the same as Restore did.
	verifying, n := of(), uint64(0)
	var records []eventstore.Record
	for lane := range uint32(lanes) {
		for number := uint64(1); number <= s.logs[lane].Position().Number; number++ {
			record, err := s.logs[lane].Read(t.Context(), number)
			if err != nil {
				t.Fatal(err)
			}
			records = append(records, record)
		}
	}
	err = b.Verify(t.Context(), func(done, total uint64) {
		if n < uint64(len(records)) {
			verifying.take(records[n])
			verifying.told(done, total)
		}
		n++
	})
	if err != nil {
		t.Fatal(err)
	}
	verifying.want(t, s.seed, "verify")
}

// TestWhatIsToldAtTheEndIsAll adds to a backup twice: first with the state, and then what has come since, which is small beside it.
func TestWhatIsToldAtTheEndIsAll(t *testing.T) {
	s := newSource(t)
	s.grow(30)
	dir := t.TempDir()
	var done, total uint64
	tell := func(d, of uint64) {
		if d < done {
			t.Errorf("seed %d: %d bytes are done after %d", s.seed, d, done)
		}
		done, total = d, of
	}
	wantAll := func(what string, want uint64) {
		t.Helper()
		if done != want || total != want {
			t.Errorf("seed %d: %s: %d of %d bytes are done at the end, want %d of them", s.seed, what, done, total, want)
		}
		done = 0
	}
	state := uint64(0)
	for range 2 {
		before := s.size()
		s.grow(5)
		if state == 0 {
			before = 0
		}
		state = 0
		if err := eachFile(s.state, func(name string) error {
			info, err := os.Stat(filepath.Join(s.state, name))
			state += uint64(info.Size())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		run := s.run()
		run.Progress = tell
		b, err := Add(t.Context(), dir, run)
		if err != nil {
			t.Fatal(err)
		}
		wantAll("backup", s.size()-before+state)
		if err := b.Verify(t.Context(), tell); err != nil {
			t.Fatal(err)
		}
		wantAll("verify", b.Bytes())
		target := newRestored().target()
		target.Progress = tell
		if err := b.Restore(t.Context(), target); err != nil {
			t.Fatal(err)
		}
		if done+state != b.Bytes() {
			t.Errorf("seed %d: %d bytes are restored before the state of %d, want %d in all", s.seed, done, state, b.Bytes())
		}
		if _, err := b.RestoreState(filepath.Join(t.TempDir(), "state"), tell); err != nil {
			t.Fatal(err)
		}
		wantAll("restore", b.Bytes())
	}
}

// silentLog does not say how large it is.
type silentLog struct{ Reader }

func (silentLog) Size(context.Context) (eventstore.LogSize, error) {
	return eventstore.LogSize{}, errors.New("not known")
}

func TestALogThatDoesNotSayHowLargeItIsIsBackedUpAllTheSame(t *testing.T) {
	s := newSource(t)
	dir := t.TempDir()
	s.grow(10)
	run := s.run()
	run.Lane = func(lane uint32) Reader { return silentLog{s.logs[lane]} }
	var done uint64
	run.Progress = func(d, total uint64) {
		if done = d; total != 0 {
			t.Errorf("seed %d: %d bytes are done of %d, which nobody knows", s.seed, d, total)
		}
	}
	if _, err := Add(t.Context(), dir, run); err != nil || done < s.size() {
		t.Fatalf("seed %d: %d bytes are done of %d, %v", s.seed, done, s.size(), err)
	}
	// Then what has come since is told by the average.
	before := s.size()
	s.grow(40)
	run = s.run()
	run.State = ""
	var total uint64
	run.Progress = func(d, of uint64) { done, total = d, of }
	b, err := Add(t.Context(), dir, run)
	if err != nil {
		t.Fatal(err)
	}
	if added, want := s.size()-before, s.size()*4/5; done != added || total > want || total+lanes < want { // 40 of 50 commits, each lane rounded.
		t.Errorf("seed %d: %d bytes were added of %d, want %d of %d", s.seed, done, total, added, want)
	}
	if got := b.Manifest().Lanes[0].LogBytes; got == 0 {
		t.Error("how large the log is was not noted")
	}
}

// TestBackupsOfOtherFormats adds to one that a program before wrote, and refuses one that a newer program wrote.
func TestBackupsOfOtherFormats(t *testing.T) {
	s := newSource(t)
	dir := t.TempDir()
	s.grow(10)
	if _, err := Add(t.Context(), dir, s.run()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, manifestName)
	rewrite := func(change func(manifest map[string]any)) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var manifest map[string]any
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.UseNumber()
		if err := decoder.Decode(&manifest); err != nil {
			t.Fatal(err)
		}
		change(manifest)
		if data, err = json.Marshal(manifest); err == nil {
			err = os.WriteFile(path, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	rewrite(func(manifest map[string]any) {
		manifest["format"] = 1
		for _, lane := range manifest["lanes"].([]any) {
			delete(lane.(map[string]any), "logBytes")
		}
	})
	s.grow(10)
	b, err := Add(t.Context(), dir, s.run())
	if err != nil {
		t.Fatalf("seed %d: a backup of format 1: %v", s.seed, err)
	}
	if b.Manifest().Format != format || b.Manifest().Lanes[0].LogBytes == 0 {
		t.Errorf("seed %d: the manifest is %+v, want one of format %d that says how large the log is", s.seed, b.Manifest(), format)
	}
	r := newRestored()
	if err := b.Restore(t.Context(), r.target()); err != nil {
		t.Fatal(err)
	}
	s.wantAsSource(b, r)

	rewrite(func(manifest map[string]any) { manifest["format"], manifest["colour"] = format+1, "blue" })
	if _, err := Open(dir); err == nil || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "use the version that made it") {
		t.Errorf("a newer format: got %v, want that it needs the version that made it", err)
	}
	rewrite(func(manifest map[string]any) { manifest["format"] = format })
	if _, err := Open(dir); !errors.Is(err, ErrDamaged) {
		t.Errorf("a field that is not known: got %v, want ErrDamaged", err)
	}
}
