package eventstore

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	logv1 "github.com/weirhq/weir/proto/stored/weir/log/v1"
	"google.golang.org/protobuf/proto"
)

func randomCommit(r *rand.Rand) *Commit {
	text := func() string { return fmt.Sprint(r.Uint64N(1 << r.IntN(50))) }
	c := &Commit{
		Lane: r.Uint32N(1024), Number: 1 + r.Uint64N(1<<40), Epoch: r.Uint64N(1 << 40),
		Time: time.Unix(0, r.Int64()).UTC(), Events: make([]Event, 0, 8),
	}
	for i := range c.PrevHash {
		c.PrevHash[i] = byte(r.Uint32())
	}
	for range r.IntN(8) {
		e := Event{Type: "OrderPlaced", Version: 1, AggregateID: text(), Partition: r.Uint32N(1024)}
		if r.IntN(2) == 0 {
			e.UserID, e.RequestID, e.Fingerprint = text(), text(), []byte(text())
		}
		if r.IntN(2) == 0 {
			e.CausationID, e.Payload = text(), bytes.Repeat([]byte{7}, r.IntN(300)+1)
		}
		c.Events = append(c.Events, e)
	}
	return c
}

func TestACommitIsWrittenAsTheGeneratedTypeWritesIt(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	var again Commit // Each is read into the room of the one before as well.
	for range 500 {
		c := randomCommit(r)
		want := &logv1.Commit{
			Lane: c.Lane, Number: c.Number, Epoch: c.Epoch, TimeUnixNano: c.Time.UnixNano(), PrevHash: c.PrevHash[:],
		}
		for _, e := range c.Events {
			want.Events = append(want.Events, &logv1.Event{
				Partition: e.Partition, UserId: e.UserID, AggregateId: e.AggregateID, RequestId: e.RequestID,
				Fingerprint: e.Fingerprint, CausationId: e.CausationID, Type: e.Type, Version: e.Version, Payload: e.Payload,
			})
		}
		wantBytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		record := EncodeCommit(c)
		if !bytes.Equal(record.Data, wantBytes) {
			t.Fatalf("seed %d: commit %+v\n got %x\nwant %x", seed, c, record.Data, wantBytes)
		}
		back, err := DecodeCommit(record.Data)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !reflect.DeepEqual(back, c) {
			t.Fatalf("seed %d: read back\n got %+v\nwant %+v", seed, back, c)
		}
		if err := again.Decode(record.Data); err != nil || !reflect.DeepEqual(&again, c) {
			t.Fatalf("seed %d: read into another commit: %v\n got %+v\nwant %+v", seed, err, again, c)
		}
	}
}

func TestPartitionsAndGenesisAreFrozen(t *testing.T) {
	for key, want := range map[string]uint32{"": 453, "alice": 999, "bob": 212, "user-1": 372, "sku-0": 959} {
		h := fnv.New32a()
		_, _ = h.Write([]byte(key))
		if got := PartitionOf(key); got != want || got != h.Sum32()%1024 {
			t.Errorf("PartitionOf(%q) = %d, want %d", key, got, want)
		}
	}
	if got, want := GenesisHash(0, 1).String(), "3e0b5bc21e39a496cf65add4d9fe922926019a0784a9daed63c8b23ff39fcfe7"; got != want {
		t.Errorf("GenesisHash(0, 1) = %s, want %s", got, want)
	}
}

func FuzzDecodeCommit(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 8 {
		f.Add(EncodeCommit(randomCommit(r)).Data)
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeCommit(data)
		var generated logv1.Commit
		if wrong := proto.Unmarshal(data, &generated); err == nil && wrong == nil && len(c.Events) != len(generated.Events) {
			t.Fatalf("it has %d events, the generated type reads %d", len(c.Events), len(generated.Events))
		}
		if err == nil {
			EncodeCommit(c)
		}
	})
}

// BenchmarkDecodeCommit reads a commit of 100 events as an order's are.
func BenchmarkDecodeCommit(b *testing.B) {
	c := &Commit{Lane: 1, Number: 1 << 20, Epoch: 1 << 19, Time: time.Unix(1_700_000_000, 1).UTC()}
	for i := range 100 {
		c.Events = append(c.Events, Event{
			Partition: uint32(i), UserID: "user-0123456789", AggregateID: fmt.Sprintf("01HF7YAT00%017d", i), RequestID: "0123456789abcdef0123456789abcdef",
			Fingerprint: make([]byte, 16), Type: "OrderPlaced", Version: 1, Payload: make([]byte, 110),
		})
	}
	record := EncodeCommit(c)
	b.ReportAllocs()
	b.SetBytes(int64(len(record.Data)))
	var into Commit
	for b.Loop() {
		if err := into.Decode(record.Data); err != nil {
			b.Fatal(err)
		}
	}
}
