package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore"
)

const lanes = 4

// source is a log that is backed up, and what lies beside it.
type source struct {
	t      *testing.T
	seed   uint64
	random *rand.Rand
	logs   [lanes]*eventstore.MemoryLog
	keys   map[string][]byte
	state  string
}

func newSource(t *testing.T) *source {
	t.Helper()
	s := &source{t: t, seed: rand.Uint64(), keys: map[string][]byte{}, state: t.TempDir()}
	t.Logf("seed %d", s.seed)
	s.random = rand.New(rand.NewPCG(s.seed, 0))
	for lane := range s.logs {
		s.logs[lane] = eventstore.OpenMemoryLog(uint32(lane), lanes)
	}
	return s
}

// commit appends a commit to a lane, with a payload of random numbers.
func (s *source) commit(lane uint32, numbers int) {
	s.t.Helper()
	at := s.logs[lane].Position()
	record := eventstore.EncodeCommit(&eventstore.Commit{
		Lane: lane, Number: at.Number + 1, Epoch: 1, Time: time.Unix(1_700_000_000, int64(at.Number)), PrevHash: at.Hash,
		Events: []eventstore.Event{{Type: "Test", Version: 1, Payload: fmt.Appendf(nil, "%x", s.random.Perm(numbers))}},
	})
	if err := s.logs[lane].Append(record).Wait(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// grow appends some commits to every lane but the last, gives a user a key and changes the state.
func (s *source) grow(commits int) {
	s.t.Helper()
	for lane := range uint32(lanes - 1) {
		for range commits {
			s.commit(lane, s.random.IntN(200))
		}
	}
	s.keys[fmt.Sprintf("user-%d", len(s.keys))] = fmt.Appendf(nil, "key %d", s.random.Uint64())
	for _, name := range []string{"000001.sst", "marker", filepath.Join("below", "it")} {
		path := filepath.Join(s.state, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, fmt.Appendf(nil, "%s %d", name, s.random.Uint64()), 0o600)); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *source) run() Run {
	return Run{
		Topology: eventstore.Topology{Lanes: lanes},
		Lane:     func(lane uint32) Reader { return s.logs[lane] },
		Keys: func(_ context.Context, each func(string, []byte) error) error {
			for userID, value := range s.keys {
				if err := each(userID, value); err != nil {
					return err
				}
			}
			return nil
		},
		State: s.state, Now: time.Unix(1_800_000_000, 0),
	}
}

// A restored is what a backup was put back into.
type restored struct {
	logs [lanes]*eventstore.MemoryLog
	keys map[string][]byte
}

func newRestored() *restored {
	r := &restored{keys: map[string][]byte{}}
	for lane := range r.logs {
		r.logs[lane] = eventstore.OpenMemoryLog(uint32(lane), lanes)
	}
	return r
}

func (r *restored) target() Target {
	return Target{
		Log:    func(lane uint32) eventstore.Log { return r.logs[lane] },
		SetKey: func(_ context.Context, userID string, value []byte) error { r.keys[userID] = value; return nil },
	}
}

// wantAsSource compares what was restored from b with the source.
func (s *source) wantAsSource(b *Backup, r *restored) {
	s.t.Helper()
	for lane := range s.logs {
		if got, want := r.logs[lane].Position(), s.logs[lane].Position(); got != want {
			s.t.Fatalf("seed %d: lane %d is at %v, want %v", s.seed, lane, got, want)
		}
	}
	if fmt.Sprint(r.keys) != fmt.Sprint(s.keys) {
		s.t.Fatalf("seed %d: the keys are %s, want %s", s.seed, r.keys, s.keys)
	}
	state := filepath.Join(s.t.TempDir(), "state")
	if found, err := b.RestoreState(state, nil); !found || err != nil {
		s.t.Fatalf("seed %d: restore the state: %v, %v", s.seed, found, err)
	}
	if got, want := contents(s.t, state), contents(s.t, s.state); got != want {
		s.t.Fatalf("seed %d: the state is\n%s\nwant\n%s", s.seed, got, want)
	}
	if _, err := b.RestoreState(state, nil); err == nil {
		s.t.Fatalf("seed %d: the state was restored over one that is there", s.seed)
	}
}

func contents(t *testing.T, dir string) (all string) {
	t.Helper()
	err := eachFile(dir, func(name string) error {
		data, err := os.ReadFile(filepath.Join(dir, name))
		all += fmt.Sprintf("%s: %s\n", name, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestABackupGrowsWithTheLogAndIsPutBackWhole(t *testing.T) {
	s := newSource(t)
	dir := filepath.Join(t.TempDir(), "backup")
	for range 4 {
		s.grow(s.random.IntN(50))
		if _, err := Add(t.Context(), dir, s.run()); err != nil {
			t.Fatal(err)
		}
		b, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Verify(t.Context(), nil); err != nil {
			t.Fatalf("seed %d: %v", s.seed, err)
		}
		r := newRestored()
		if err := b.Restore(t.Context(), r.target()); err != nil {
			t.Fatalf("seed %d: %v", s.seed, err)
		}
		s.wantAsSource(b, r)
	}
}

func TestARunThatIsStoppedLeavesTheBackupAsItWas(t *testing.T) {
	s := newSource(t)
	dir := t.TempDir()
	s.grow(20)
	if _, err := Add(t.Context(), dir, s.run()); err != nil {
		t.Fatal(err)
	}
	s.grow(20)
	for stopAt := range uint64(40) {
		ctx, stop := context.WithCancel(t.Context())
		run := s.run()
		told := uint64(0)
		run.Progress = func(uint64, uint64) {
			if told++; told == stopAt+1 {
				stop()
			}
		}
		_, err := Add(ctx, dir, run)
		stop()
		if err == nil && stopAt < 20 { // Of the last lane nobody looks at ctx any more.
			t.Fatalf("seed %d: a run that was stopped at commit %d has ended well", s.seed, stopAt)
		}
		b, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Verify(t.Context(), nil); err != nil {
			t.Fatalf("seed %d: stopped at commit %d: %v", s.seed, stopAt, err)
		}
	}
	b, err := Add(t.Context(), dir, s.run())
	if err != nil {
		t.Fatal(err)
	}
	r := newRestored()
	if err := b.Restore(t.Context(), r.target()); err != nil {
		t.Fatal(err)
	}
	s.wantAsSource(b, r)
	strays := 0
	if err := eachFile(dir, func(name string) error {
		if filepath.Ext(name) == temporarySuffix {
			strays++
		}
		return nil
	}); err != nil || strays > 0 {
		t.Fatalf("%d unfinished files are left, %v", strays, err)
	}
}

func TestAnyDamageOfABackupIsFound(t *testing.T) {
	s := newSource(t)
	dir := t.TempDir()
	for range 2 {
		s.grow(5)
		if _, err := Add(t.Context(), dir, s.run()); err != nil {
			t.Fatal(err)
		}
	}
	verify := func() error {
		b, err := Open(dir)
		if err != nil {
			return err
		}
		return b.Verify(t.Context(), nil)
	}
	files := 0
	err := eachFile(dir, func(name string) error {
		files++
		path := filepath.Join(dir, name)
		whole, err := os.ReadFile(path)
		if err != nil || name == manifestName { // Of the manifest, every change that matters makes another file wrong.
			return err
		}
		changed := bytes.Clone(whole)
		changed[s.random.IntN(len(changed))] ^= 1 << s.random.IntN(8)
		for what, damage := range map[string]func() error{
			"changed": func() error { return os.WriteFile(path, changed, 0o600) },
			"cut off": func() error { return os.WriteFile(path, whole[:len(whole)-1], 0o600) },
			"gone":    func() error { return os.Remove(path) },
		} {
			if err := damage(); err != nil {
				return err
			}
			if err := verify(); !errors.Is(err, ErrDamaged) {
				t.Errorf("seed %d: %s was %s: got %v, want ErrDamaged", s.seed, name, what, err)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				return err
			}
		}
		return verify()
	})
	if err != nil || files < 8 {
		t.Fatalf("seed %d: %d files, %v", s.seed, files, err)
	}
}

func TestABackupOfOneLogTakesNothingOfAnother(t *testing.T) {
	s, other := newSource(t), newSource(t)
	dir := t.TempDir()
	s.grow(10)
	if _, err := Add(t.Context(), dir, s.run()); err != nil {
		t.Fatal(err)
	}
	other.grow(5)
	if _, err := Add(t.Context(), dir, other.run()); !errors.Is(err, ErrOtherLog) {
		t.Errorf("a shorter log: got %v, want ErrOtherLog", err)
	}
	other.grow(15)
	if _, err := Add(t.Context(), dir, other.run()); !errors.Is(err, ErrOtherLog) {
		t.Errorf("another log: got %v, want ErrOtherLog", err)
	}
	run := other.run()
	run.Topology.Lanes = 8
	if _, err := Add(t.Context(), dir, run); !errors.Is(err, ErrOtherLog) {
		t.Errorf("another topology: got %v, want ErrOtherLog", err)
	}
	b, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := newRestored()
	r.logs = other.logs
	if err := b.Restore(t.Context(), r.target()); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("into another log: got %v, want ErrNotEmpty", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrNone) {
		t.Errorf("no backup: got %v, want ErrNone", err)
	}
}

func TestARestoreThatWasStoppedGoesOn(t *testing.T) {
	s := newSource(t)
	dir := t.TempDir()
	s.grow(200)
	b, err := Add(t.Context(), dir, s.run())
	if err != nil {
		t.Fatal(err)
	}
	r := newRestored()
	for stopAt := uint64(1); stopAt < b.Commits(); stopAt += 37 {
		ctx, stop := context.WithCancel(t.Context())
		target := r.target()
		told := uint64(0)
		target.Progress = func(uint64, uint64) {
			if told++; told == stopAt {
				stop()
			}
		}
		if err := b.Restore(ctx, target); !errors.Is(err, context.Canceled) {
			t.Fatalf("seed %d: stopped at commit %d: got %v", s.seed, stopAt, err)
		}
	}
	if err := b.Restore(t.Context(), r.target()); err != nil {
		t.Fatal(err)
	}
	s.wantAsSource(b, r)
}
