package eventstore

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func openWitness(t *testing.T, path string) *Witness {
	t.Helper()
	w, err := OpenWitness(path)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// witnessed returns a log of ten commits and a witness that knows the eighth.
func witnessed(t *testing.T) (*Witness, *MemoryLog, []Record) {
	t.Helper()
	log := OpenMemoryLog(3, 8)
	records := chainOf(t, 3, Genesis(3, 8), 10, 50)
	appendAll(t, log, records)
	w := openWitness(t, filepath.Join(t.TempDir(), "witness"))
	w.Note(3, position(records[7]))
	return w, log, records
}

func TestAWitnessRemembersOverARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "witness")
	w := openWitness(t, path)
	w.Note(1, Position{Number: 7, Hash: HashOf([]byte("seven"))})
	w.Note(0, Position{Number: 3, Hash: HashOf([]byte("three"))})
	w.Note(1, Position{Number: 6, Hash: HashOf([]byte("six"))}) // An older one says nothing new.
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	w.Note(0, Position{Number: 4, Hash: HashOf([]byte("not synced"))})
	again := openWitness(t, path)
	if want := map[uint32]uint64{0: 3, 1: 7}; !maps.Equal(again.Known(), want) {
		t.Fatalf("knows %v, want %v", again.Known(), want)
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if again = openWitness(t, path); again.Known()[0] != 4 {
		t.Fatalf("knows %v after another Sync", again.Known())
	}
}

func TestAWitnessAgreesWithALogThatHasWhatItSaw(t *testing.T) {
	w, log, _ := witnessed(t)
	if err := w.Check(t.Context(), 3, log); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(t.Context(), 2, log); err != nil {
		t.Fatalf("a lane of which nothing is known: %v", err)
	}
}

func TestAWitnessAccusesALogThatIsShorter(t *testing.T) {
	w, _, records := witnessed(t)
	short := OpenMemoryLog(3, 8)
	appendAll(t, short, records[:5])
	err := w.Check(t.Context(), 3, short)
	lost := (*WitnessError)(nil)
	if !errors.As(err, &lost) || lost.Lane != 3 || lost.Known != position(records[7]) || lost.Found.Number != 5 {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"lane 3", "commit 8", "ends at 5", "--accept-loss lane=3@5"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

func TestAWitnessAccusesALogThatTellsAnotherStory(t *testing.T) {
	w, _, records := witnessed(t)
	other := OpenMemoryLog(3, 8)
	appendAll(t, other, records[:7])
	appendAll(t, other, chainOf(t, 3, position(records[6]), 3, 51))
	err := w.Check(t.Context(), 3, other)
	if lost := (*WitnessError)(nil); !errors.As(err, &lost) || lost.Found.Number != 8 || !strings.Contains(err.Error(), "another one there") {
		t.Fatalf("got %v", err)
	}
	if err := w.Accept(3, 8); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(t.Context(), 3, other); err != nil {
		t.Fatalf("after the loss was accepted: %v", err)
	}
}

func TestAnAcceptedLossIsRememberedAndGoesNoFurther(t *testing.T) {
	w, _, records := witnessed(t)
	if err := w.Accept(3, 5); err != nil {
		t.Fatal(err)
	}
	w = openWitness(t, w.path)
	short := OpenMemoryLog(3, 8)
	appendAll(t, short, records[:4])
	if err := w.Check(t.Context(), 3, short); err == nil {
		t.Fatal("a log that ends before the accepted loss passes")
	}
	appendAll(t, short, records[4:5])
	if err := w.Check(t.Context(), 3, short); err != nil {
		t.Fatal(err)
	}
	for _, number := range []uint64{6, 100} {
		if err := w.Accept(3, number); err == nil {
			t.Fatalf("commit %d, which is not known, was given up", number)
		}
	}
	if err := w.Accept(2, 0); err == nil {
		t.Fatal("a loss of a lane of which nothing is known was accepted")
	}
	w.Note(3, position(records[5]))
	if err := w.Check(t.Context(), 3, short); err == nil {
		t.Fatal("a commit noted after the accepted loss is not missed")
	}
	if err := w.Accept(3, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Check(t.Context(), 3, OpenMemoryLog(3, 8)); err != nil {
		t.Fatalf("after everything was given up: %v", err)
	}
}

func TestAPatientWitnessWaitsForALateReplica(t *testing.T) {
	w, _, records := witnessed(t)
	w.Patience = time.Minute
	late := &lateLog{MemoryLog: OpenMemoryLog(3, 8), late: 2}
	appendAll(t, late, records)
	if err := w.Check(t.Context(), 3, late); err != nil || late.late != 0 {
		t.Fatalf("%v, %d reads left", err, late.late)
	}
}

// lateLog does not know its commits for the first few reads.
type lateLog struct {
	*MemoryLog
	late int
}

func (l *lateLog) Read(ctx context.Context, number uint64) (Record, error) {
	if l.late > 0 {
		l.late--
		return Record{}, ErrNoCommit
	}
	return l.MemoryLog.Read(ctx, number)
}

func TestLanesNoteConcurrentlyWhileTheWitnessSyncs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "witness")
	w := openWitness(t, path)
	var lanes sync.WaitGroup
	for lane := range uint32(4) {
		lanes.Go(func() {
			for number := uint64(1); number <= 200; number++ {
				w.Note(lane, Position{Number: number, Hash: HashOf([]byte{byte(number)})})
				if number%50 == 0 {
					if err := w.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	lanes.Wait()
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if want := (map[uint32]uint64{0: 200, 1: 200, 2: 200, 3: 200}); !maps.Equal(openWitness(t, path).Known(), want) {
		t.Fatalf("knows %v", openWitness(t, path).Known())
	}
}

func TestAFailedSyncIsTriedAgainAndLeavesTheOldFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	w := openWitness(t, filepath.Join(dir, "witness"))
	w.Note(0, Position{Number: 1})
	if err := w.Sync(); err == nil {
		t.Fatal("no error without a directory")
	}
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := w.Sync(); err != nil {
		t.Fatal(err)
	}
	if openWitness(t, w.path).Known()[0] != 1 {
		t.Fatal("what was noted before the failure is forgotten")
	}
}

func TestADamagedWitnessIsAnErrorWhateverByteIsDamaged(t *testing.T) {
	w, _, _ := witnessed(t)
	w.Note(0, Position{Number: 1 << 40})
	text := encodeWitness(w.known)
	for i := range text {
		for _, flip := range []byte{0x01, 0x20, 0x80} {
			damaged := bytes.Clone(text)
			damaged[i] ^= flip
			if _, err := decodeWitness(damaged); err == nil {
				t.Fatalf("byte %d changed by %#x is not noticed:\n%s", i, flip, damaged)
			}
		}
		if _, err := decodeWitness(text[:i]); err == nil {
			t.Fatalf("cut after %d bytes is not noticed", i)
		}
	}
	if err := os.WriteFile(w.path, text[:len(text)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenWitness(w.path); err == nil || !strings.Contains(err.Error(), w.path) {
		t.Fatalf("got %v, want an error that names the file", err)
	}
}

func TestALossIsNamedByLaneAndNumber(t *testing.T) {
	if lane, number, err := ParseAcceptedLoss("lane=3@40"); err != nil || lane != 3 || number != 40 {
		t.Fatalf("got lane %d, number %d, %v", lane, number, err)
	}
	for _, text := range []string{"", "3@40", "lane=3", "lane=@40", "lane=3@", "lane=-1@4", "lane=1024@4", "lane=3@40x", "lane=3@4@5"} {
		if _, _, err := ParseAcceptedLoss(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func FuzzDecodeWitness(f *testing.F) {
	f.Add(encodeWitness(nil))
	f.Add(encodeWitness(map[uint32]Position{0: {Number: 1}, 7: {Number: 1 << 63, Hash: HashOf(nil)}}))
	f.Add([]byte("weir witness 1\nsum "))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, text []byte) {
		known, err := decodeWitness(text)
		if err != nil {
			return
		}
		if again := encodeWitness(known); !bytes.Equal(again, text) {
			t.Fatalf("%q decodes to what encodes as %q", text, again)
		}
	})
}
