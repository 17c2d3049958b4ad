package eventstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// segmentChain returns a lane's first commits, of some bytes each.
func segmentChain(tb testing.TB, lane, lanes uint32, sizes ...int) []Record {
	tb.Helper()
	at := Genesis(lane, lanes)
	records := make([]Record, len(sizes))
	for i, size := range sizes {
		records[i] = EncodeCommit(&Commit{
			Lane: lane, Number: at.Number + 1, Epoch: 1, Time: time.Unix(1_700_000_000, int64(i)), PrevHash: at.Hash,
			Events: []Event{{Type: "Test", Version: 1, Payload: bytes.Repeat([]byte{byte(i)}, size)}},
		})
		at = Position{Number: records[i].Number, Hash: records[i].Hash}
	}
	return records
}

func segmentOf(tb testing.TB, lane, lanes uint32, after Position, records []Record) []byte {
	tb.Helper()
	var file bytes.Buffer
	w, err := NewSegmentWriter(&file, lane, lanes, after)
	if err != nil {
		tb.Fatal(err)
	}
	for _, record := range records {
		if err := w.Append(record); err != nil {
			tb.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return file.Bytes()
}

// readSegment reads a segment to its end.
func readSegment(data []byte, lane, lanes uint32, after Position) (records []Record, err error) {
	r, err := NewSegmentReader(bytes.NewReader(data), lane, lanes, after)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	for {
		record, err := r.Next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return records, nil
		}
		if err != nil {
			return records, err
		}
		records = append(records, record)
	}
}

func TestASegmentIsReadAsItWasWritten(t *testing.T) {
	records := segmentChain(t, 3, 4, 0, 10, 20_000, 200_000, 5) // One is larger than a block of the compression, 128 KiB.
	genesis := Genesis(3, 4)
	for cut := range len(records) + 1 {
		after := genesis
		if cut > 0 {
			after = Position{Number: records[cut-1].Number, Hash: records[cut-1].Hash}
		}
		first, err := readSegment(segmentOf(t, 3, 4, genesis, records[:cut]), 3, 4, genesis)
		if err != nil {
			t.Fatal(err)
		}
		second, err := readSegment(segmentOf(t, 3, 4, after, records[cut:]), 3, 4, after)
		if err != nil {
			t.Fatal(err)
		}
		if got := append(first, second...); fmt.Sprint(got) != fmt.Sprint(records) {
			t.Fatalf("cut after %d: the two segments are not what was written", cut)
		}
	}
}

func TestASegmentTakesNoCommitThatDoesNotFollow(t *testing.T) {
	records := segmentChain(t, 0, 1, 1, 2, 3)
	w, err := NewSegmentWriter(io.Discard, 0, 1, Genesis(0, 1))
	if err != nil {
		t.Fatal(err)
	}
	var chain *ChainError
	for what, record := range map[string]Record{"a gap": records[1], "another lane": segmentChain(t, 1, 1, 1)[0], "no commit": {Number: 1, Data: []byte("x")}} {
		if err := w.Append(record); !errors.As(err, &chain) {
			t.Errorf("%s: got %v, want a *ChainError", what, err)
		}
	}
	if err := w.Append(records[0]); err != nil {
		t.Errorf("the one that follows: %v", err)
	}
}

func TestADamagedSegmentIsNeverReadAsAWholeOne(t *testing.T) {
	records := segmentChain(t, 0, 1, 40, 4000, 7, 20_000)
	genesis := Genesis(0, 1)
	whole := segmentOf(t, 0, 1, genesis, records)
	if _, err := readSegment(whole, 0, 1, Position{Number: 1, Hash: records[0].Hash}); err == nil || !strings.Contains(err.Error(), "follows commit 0") {
		t.Errorf("a segment that does not follow: got %v", err)
	}
	if _, err := readSegment(whole, 1, 1, genesis); err == nil {
		t.Error("a segment of another lane was read")
	}
	for length := range len(whole) {
		if _, err := readSegment(whole[:length], 0, 1, genesis); err == nil {
			t.Fatalf("the first %d of %d bytes were read as a whole segment", length, len(whole))
		}
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		changed := bytes.Clone(whole)
		at := random.IntN(len(changed))
		changed[at] ^= 1 << random.IntN(8)
		if got, err := readSegment(changed, 0, 1, genesis); err == nil && fmt.Sprint(got) != fmt.Sprint(records) {
			t.Fatalf("seed %d: a flipped bit in byte %d gave other commits", seed, at)
		}
	}
}
