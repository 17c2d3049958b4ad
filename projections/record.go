package projections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

// An order's record is its events, one Entry after the other in the order in which they were committed, and nothing
// else. The first entry is a Set, which ends a read where it finds it, and appending one is a Merge, which concatenates:
// no write reads what was there.
//
// One entry on disk:
//
//	uvarint  bytes that follow
//	1 byte   type: an index into entryTypes, or entryTypeOther
//	uvarint  commit number
//	8 bytes  log time, nanoseconds since the Unix epoch, little endian
//	uvarint  version
//	uvarint  length of the user id, and the user id (empty unless this is the order's first entry)
//	[uvarint length of the type's name, and the name: only after entryTypeOther]
//	rest     payload
//
// A change of this layout is a new version of every projection that uses it, and of the lanes' state.

// An Entry is one event of an order's record.
type Entry struct {
	// Number of the commit that carries the event.
	Number uint64
	// At is that commit's log time.
	At time.Time
	// UserID is the user whose order it is. Only the first entry of a record needs it.
	UserID string
	// Type and Version of the event, as in its envelope.
	Type    string
	Version uint32
	// Payload as in the envelope.
	Payload []byte
}

// entryTypes are the types that are written as one byte. Its order is for ever: append only.
var entryTypes = [...]string{
	stored.TypeOrderPlaced, stored.TypeOrderCancelled, stored.TypeOrderExpired, stored.TypeProductPut,
	stored.TypePaymentStarted, stored.TypePaymentAuthorized, stored.TypePaymentCaptureRequested,
	stored.TypePaymentCaptured, stored.TypePaymentDeclined, stored.TypePaymentBecameUnknown,
	stored.TypePaymentVoidRequested, stored.TypePaymentVoided, stored.TypeRefundStarted, stored.TypePaymentRefunded,
	stored.TypeRefundFailed, stored.TypeStrayPaymentFound, stored.TypeItemsShipped, stored.TypeShipmentDelivered,
	stored.TypeReturnRequested, stored.TypeReturnReceived, stored.TypeNoteAdded, stored.TypePointsAwarded,
	stored.TypePointsTakenBack,
}

// entryTypeOther comes before a type that is spelled out.
const entryTypeOther = 0xff

// AppendEntry appends the entry, encoded, to dst.
func AppendEntry(dst []byte, e Entry) []byte {
	kind := entryKind(e.Type)
	dst = binary.AppendUvarint(dst, uint64(entryContentBytes(&e, kind)))
	dst = append(dst, kind)
	dst = binary.AppendUvarint(dst, e.Number)
	dst = binary.LittleEndian.AppendUint64(dst, uint64(e.At.UnixNano()))
	dst = binary.AppendUvarint(dst, uint64(e.Version))
	dst = binary.AppendUvarint(dst, uint64(len(e.UserID)))
	dst = append(dst, e.UserID...)
	if kind == entryTypeOther {
		dst = binary.AppendUvarint(dst, uint64(len(e.Type)))
		dst = append(dst, e.Type...)
	}
	return append(dst, e.Payload...)
}

// EntryBytes returns how many bytes AppendEntry appends for the entry.
func EntryBytes(e Entry) int {
	content := entryContentBytes(&e, entryKind(e.Type))
	return uvarintBytes(uint64(content)) + content
}

func entryContentBytes(e *Entry, kind byte) int {
	size := 1 + uvarintBytes(e.Number) + 8 + uvarintBytes(uint64(e.Version)) +
		uvarintBytes(uint64(len(e.UserID))) + len(e.UserID) + len(e.Payload)
	if kind == entryTypeOther {
		size += uvarintBytes(uint64(len(e.Type))) + len(e.Type)
	}
	return size
}

func entryKind(typeName string) byte {
	for i, known := range entryTypes {
		if typeName == known {
			return byte(i)
		}
	}
	return entryTypeOther
}

func uvarintBytes(value uint64) int {
	bytes := 1
	for ; value >= 0x80; value >>= 7 {
		bytes++
	}
	return bytes
}

// ErrRecordDamaged says that an order's record cannot be read: what is stored is not what AppendEntry wrote.
var ErrRecordDamaged = errors.New("an order's record is damaged")

// ReadEntries returns the entries of a record, oldest first. It ends at the first damage, with an error that wraps
// ErrRecordDamaged. An entry's payload aliases data.
func ReadEntries(data []byte) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		for rest := data; len(rest) > 0; {
			entry, after, err := readEntry(rest)
			if err != nil {
				yield(Entry{}, fmt.Errorf("%w at byte %d: %w", ErrRecordDamaged, len(data)-len(rest), err))
				return
			}
			if !yield(entry, nil) {
				return
			}
			rest = after
		}
	}
}

// RecordUserID returns the user whose order a record is, and false when the record does not say.
func RecordUserID(record []byte) (string, bool) {
	for entry, err := range ReadEntries(record) {
		return entry.UserID, err == nil && entry.UserID != ""
	}
	return "", false
}

// FoldOrder folds an order's record up to the commit upTo, 0 for all of it, and returns the order and the number of the
// commit that changed it last. An empty userID is taken from the record. Before the order's first commit, the order and
// the number are zero. An error is a record that this program cannot read.
func FoldOrder(id domain.OrderID, userID string, record []byte, upTo uint64) (order domain.Order, revision uint64, err error) {
	fold := newOrderFold(id)
	fold.userID = userID
	if err := fold.read(record, AsOf{Commit: upTo}, nil); err != nil {
		return domain.Order{}, 0, err
	}
	return fold.order, fold.revision, nil
}

// An AsOf is a moment in the life of an order: after a commit of its lane, or at a log time. The zero AsOf is now.
type AsOf struct {
	// Commit is the number of the last commit that counts; 0 for all.
	Commit uint64
	// At is the log time of the last commit that may count; zero for any.
	At time.Time
}

// before reports whether the moment is before the entry.
func (a AsOf) before(entry *Entry) bool {
	return a.Commit != 0 && entry.Number > a.Commit || !a.At.IsZero() && entry.At.After(a.At)
}

// orderFold folds an order's entries, oldest first.
type orderFold struct {
	id     domain.OrderID
	text   string
	userID string

	order    domain.Order
	revision uint64
	entries  int
	// kept are the entries, if keep asks for them.
	keep bool
	kept []Entry
}

func newOrderFold(id domain.OrderID) *orderFold { return &orderFold{id: id, text: id.String()} }

// read folds those entries of the order's record that the fold has not seen, up to a moment. It calls each, if it is not nil,
// after the last entry of each commit.
func (f *orderFold) read(record []byte, upTo AsOf, each func() error) error {
	seen, index := f.entries, 0
	taken := false
	for entry, err := range ReadEntries(record) {
		if err != nil {
			return fmt.Errorf("order %s: %w", f.text, err)
		}
		if index++; index <= seen {
			continue
		}
		if upTo.before(&entry) {
			break
		}
		if taken && each != nil && entry.Number != f.revision {
			if err := each(); err != nil {
				return err
			}
		}
		if err := f.take(entry); err != nil {
			return err
		}
		taken = true
	}
	if !taken || each == nil {
		return nil
	}
	return each()
}

func (f *orderFold) take(entry Entry) error {
	if f.userID == "" {
		f.userID = entry.UserID
	}
	event, err := stored.Decode(entry.Type, entry.Version, f.text, f.userID, entry.Payload)
	if err != nil {
		return fmt.Errorf("order %s, entry %d of its record: %w", f.text, f.entries+1, err)
	}
	f.order = f.order.Evolve(event, entry.At)
	f.revision = entry.Number
	f.entries++
	if f.keep {
		f.kept = append(f.kept, entry)
	}
	return nil
}

// readEntry reads one entry off data and returns what follows it.
func readEntry(data []byte) (Entry, []byte, error) {
	size, sizeBytes := binary.Uvarint(data)
	if sizeBytes <= 0 || size > uint64(len(data)-sizeBytes) {
		return Entry{}, nil, errors.New("an entry is cut off")
	}
	after := data[sizeBytes+int(size):]
	r := entryReader{rest: data[sizeBytes : sizeBytes+int(size)]}
	var e Entry
	kind := r.byte()
	e.Number = r.uvarint()
	e.At = time.Unix(0, int64(r.uint64())).UTC()
	version := r.uvarint()
	e.Version = uint32(version)
	e.UserID = string(r.bytes())
	switch {
	case int(kind) < len(entryTypes):
		e.Type = entryTypes[kind]
	case kind == entryTypeOther:
		e.Type = string(r.bytes())
	default:
		return Entry{}, nil, fmt.Errorf("no entry type has the code %d", kind)
	}
	if r.failed || version>>32 != 0 {
		return Entry{}, nil, errors.New("an entry's fields do not fit into it")
	}
	e.Payload = r.rest
	return e, after, nil
}

// entryReader reads fields off rest; after a failure everything it returns is zero.
type entryReader struct {
	rest   []byte
	failed bool
}

func (r *entryReader) take(bytes uint64) []byte {
	if r.failed || bytes > uint64(len(r.rest)) {
		r.failed = true
		return nil
	}
	taken := r.rest[:bytes:bytes]
	r.rest = r.rest[bytes:]
	return taken
}

func (r *entryReader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *entryReader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *entryReader) uvarint() uint64 {
	value, bytes := binary.Uvarint(r.rest)
	if bytes <= 0 {
		r.failed = true
		return 0
	}
	r.take(uint64(bytes))
	return value
}

func (r *entryReader) bytes() []byte { return r.take(r.uvarint()) }
