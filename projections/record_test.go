package projections

import (
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

func TestARecordReadsBackAsItsEntries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Entry {
			return Entry{
				Number:  rapid.Uint64().Draw(t, "number"),
				At:      time.Unix(0, rapid.Int64().Draw(t, "at")).UTC(),
				UserID:  rapid.StringMatching(`[A-Za-z0-9_-]{0,64}`).Draw(t, "user"),
				Type:    rapid.SampledFrom([]string{"OrderPlaced", "OrderCancelled", "OrderExpired", "NoteAdded", ""}).Draw(t, "type"),
				Version: rapid.Uint32().Draw(t, "version"),
				Payload: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload"),
			}
		}), 0, 5).Draw(t, "entries")
		var record []byte
		for _, entry := range want {
			before := len(record)
			record = AppendEntry(record, entry)
			if got, want := EntryBytes(entry), len(record)-before; got != want {
				t.Fatalf("EntryBytes says %d, want %d", got, want)
			}
		}
		at := 0
		for got, err := range ReadEntries(record) {
			if err != nil {
				t.Fatalf("entry %d: %v", at, err)
			}
			w := want[at]
			if got.Number != w.Number || !got.At.Equal(w.At) || got.UserID != w.UserID || got.Type != w.Type ||
				got.Version != w.Version || string(got.Payload) != string(w.Payload) {
				t.Fatalf("entry %d: got %+v, want %+v", at, got, w)
			}
			at++
		}
		if at != len(want) {
			t.Fatalf("read %d entries, want %d", at, len(want))
		}
	})
}

func TestTheBytesOfAnEntryAreWhatTheyWere(t *testing.T) {
	record := AppendEntry(nil, Entry{
		Number: 300, At: time.Unix(1, 2), UserID: "u1", Type: "OrderPlaced", Version: 1, Payload: []byte("abc"),
	})
	record = AppendEntry(record, Entry{Number: 301, At: time.Unix(1, 3), Type: "Note", Version: 2, Payload: []byte("d")})
	const want = "1200ac0202ca9a3b0000000001" + "027531" + "616263" +
		"13ffad0203ca9a3b000000000200" + "044e6f7465" + "64"
	if got := hex.EncodeToString(record); got != want {
		t.Fatalf("got  %s\nwant %s", got, want)
	}
	if user, ok := RecordUserID(record); !ok || user != "u1" {
		t.Fatalf("user of the record: got %q, %v, want u1", user, ok)
	}
}

func TestADamagedRecordIsAnErrorAndNeverAPanic(t *testing.T) {
	record := AppendEntry(nil, Entry{Number: 300, UserID: "u1", Type: "NoteAdded", Version: 1, Payload: []byte("abc")})
	for cut := 1; cut < len(record); cut++ {
		var last error
		for _, err := range ReadEntries(record[:cut]) {
			last = err
		}
		if !errors.Is(last, ErrRecordDamaged) {
			t.Fatalf("cut to %d bytes: got %v, want ErrRecordDamaged", cut, last)
		}
	}
	if user, ok := RecordUserID(record[:3]); ok {
		t.Fatalf("a damaged record has the user %q", user)
	}
}

func TestAnOrderFoldsFromItsRecordUpToARevision(t *testing.T) {
	id := domain.NewOrderID(time.UnixMilli(1_700_000_000_000), 7, [10]byte{1, 2, 3})
	placed := domain.OrderPlaced{
		OrderID: id, UserID: "u1", Lines: []domain.Line{{SKU: "mug", Units: 2, Title: "Mug", PriceMinor: 1299}},
		Total: domain.Money{Currency: "EUR", Minor: 2598}, PayBy: time.Unix(900, 0).UTC(),
	}
	cancelled := domain.OrderCancelled{OrderID: id, UserID: "u1", Reason: "late", By: "u1", Released: []domain.Release{{SKU: "mug", Units: 2}}}
	want := domain.Order{}.Evolve(placed, time.Unix(1, 0).UTC())
	record := AppendEntry(nil, entryOf(placed, 4, time.Unix(1, 0), "u1"))
	record = AppendEntry(record, entryOf(cancelled, 9, time.Unix(2, 0), ""))

	got, revision, err := FoldOrder(id, "", record, 8)
	if err != nil || revision != 4 || !got.Equal(want) {
		t.Fatalf("up to 8: got %+v, %d, %v, want %+v, 4", got, revision, err, want)
	}
	want = want.Evolve(cancelled, time.Unix(2, 0).UTC())
	got, revision, err = FoldOrder(id, "", record, 0)
	if err != nil || revision != 9 || !got.Equal(want) {
		t.Fatalf("all: got %+v, %d, %v, want %+v, 9", got, revision, err, want)
	}
	got, revision, err = FoldOrder(id, "", record, 3)
	if err != nil || revision != 0 || !got.Equal(domain.Order{}) {
		t.Fatalf("up to 3: got %+v, %d, %v, want no order", got, revision, err)
	}
}

// entryOf returns the entry of an event.
func entryOf(e domain.Event, number uint64, at time.Time, userID string) Entry {
	typeName, version, _, payload := stored.Encode(e)
	return Entry{Number: number, At: at, UserID: userID, Type: typeName, Version: version, Payload: payload}
}

func FuzzReadEntries(f *testing.F) {
	f.Add(AppendEntry(nil, Entry{Number: 1, UserID: "u", Type: "OrderPlaced", Version: 1, Payload: []byte("x")}))
	f.Add([]byte{3, 7, 1, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		for entry, err := range ReadEntries(data) {
			if err != nil {
				return
			}
			again = AppendEntry(again, entry)
		}
		if len(again) > len(data) {
			t.Fatalf("%x reads as %x", data, again)
		}
	})
}
