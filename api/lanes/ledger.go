package lanes

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

// A ledgerEntry remembers a request: what it asked for, where it took effect, and what its reply is made of. It is derived
// from the log, so it survives whatever the log survives.
type ledgerEntry struct {
	fingerprint Fingerprint
	commit      uint64
	at          time.Time
	// The event that the request led to. An order's events are in its record; others are kept here.
	aggregateID string
	typeName    string
	version     uint32
	order       domain.OrderID // zero for events of products and stock
	payload     []byte
}

// encode writes the entry down: fingerprint, commit, time, order id; and for events that are not an order's, aggregate id,
// type, version and payload.
func (e *ledgerEntry) encode() []byte {
	b := make([]byte, 0, 48+len(e.payload)+len(e.aggregateID))
	b = append(b, e.fingerprint[:]...)
	b = binary.AppendUvarint(b, e.commit)
	b = binary.BigEndian.AppendUint64(b, uint64(e.at.UnixNano()))
	b = append(b, e.order[:]...)
	if !e.order.IsZero() {
		return b
	}
	b = appendText(b, e.aggregateID)
	b = appendText(b, e.typeName)
	b = binary.AppendUvarint(b, uint64(e.version))
	return append(b, e.payload...)
}

func decodeLedgerEntry(data []byte) (*ledgerEntry, error) {
	r := reader{rest: data}
	e := &ledgerEntry{}
	copy(e.fingerprint[:], r.bytes(len(e.fingerprint)))
	e.commit = r.uvarint()
	e.at = time.Unix(0, int64(r.uint64())).UTC()
	copy(e.order[:], r.bytes(len(e.order)))
	if e.order.IsZero() {
		e.aggregateID = r.text()
		e.typeName = r.text()
		e.version = uint32(r.uvarint())
		e.payload = r.rest
	}
	if r.failed {
		return nil, fmt.Errorf("a ledger entry of %d bytes is cut off", len(data))
	}
	return e, nil
}

// ledgerEntry returns the entry of a request that took effect, nil when there is none.
func (m *Machine) ledgerEntry(key requestKey) (*ledgerEntry, error) {
	value, err := m.get(m.keys.request(key))
	if err != nil || value == nil {
		return nil, err
	}
	return decodeLedgerEntry(value)
}

// recall makes the reply again that a request was given.
func (m *Machine) recall(entry *ledgerEntry) (Reply, error) {
	if !entry.order.IsZero() {
		reply := Reply{Lane: m.options.Lane, Commit: entry.commit, At: entry.at}
		return reply, m.fillOrder(&reply, entry.order, entry.commit)
	}
	event, err := stored.Decode(entry.typeName, entry.version, entry.aggregateID, "", entry.payload)
	if err != nil {
		return Reply{}, err
	}
	return m.replyTo(event, entry.commit, entry.at)
}

// A fact is the newest put event of a product, a campaign or a coupon, and where it was committed.
type fact struct {
	commit  uint64
	at      time.Time
	version uint32
	payload []byte
}

// encode writes the fact down: commit, time, version, payload.
func (f *fact) encode(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, f.commit)
	dst = binary.BigEndian.AppendUint64(dst, uint64(f.at.UnixNano()))
	dst = binary.AppendUvarint(dst, uint64(f.version))
	return append(dst, f.payload...)
}

// decodeFact reads a fact and its event.
func decodeFact(typeName, key string, data []byte) (fact, domain.Event, error) {
	r := reader{rest: data}
	f := fact{commit: r.uvarint(), at: time.Unix(0, int64(r.uint64())).UTC(), version: uint32(r.uvarint())}
	f.payload = r.rest
	if r.failed {
		return fact{}, nil, fmt.Errorf("%s of %s: %d bytes are cut off", typeName, key, len(data))
	}
	event, err := stored.Decode(typeName, f.version, key, "", f.payload)
	return f, event, err
}

// A product's value begins with a zero byte and goes on as a fact. Before there were taxes it was commit, time, currency,
// price and title; a commit's number is never 0, so that tells them apart.
const productIsFact = 0

func decodeProduct(sku string, data []byte) (CatalogEntry, error) {
	if len(data) > 0 && data[0] == productIsFact {
		f, event, err := decodeFact(stored.TypeProductPut, sku, data[1:])
		if err != nil {
			return CatalogEntry{}, err
		}
		return CatalogEntry{Product: domain.Product{}.Evolve(event, f.at), Commit: f.commit}, nil
	}
	r := reader{rest: data}
	e := CatalogEntry{Product: domain.Product{SKU: sku}}
	e.Commit = r.uvarint()
	e.Product.UpdatedAt = time.Unix(0, int64(r.uint64())).UTC()
	e.Product.Price.Currency = r.text()
	e.Product.Price.Minor = r.varint()
	e.Product.Title = string(r.rest)
	if r.failed {
		return CatalogEntry{}, fmt.Errorf("product %s: %d bytes are cut off", sku, len(data))
	}
	return e, nil
}

// encodeErasure writes down where a key was erased: commit and time.
func encodeErasure(commit uint64, at time.Time) []byte {
	return binary.BigEndian.AppendUint64(binary.AppendUvarint(nil, commit), uint64(at.UnixNano()))
}

func decodeErasure(data []byte) (commit uint64, at time.Time, err error) {
	r := reader{rest: data}
	commit = r.uvarint()
	at = time.Unix(0, int64(r.uint64())).UTC()
	if r.failed {
		return 0, time.Time{}, fmt.Errorf("an erasure of %d bytes is cut off", len(data))
	}
	return commit, at, nil
}

// encodeAccount writes an account down, as a row of varints.
func encodeAccount(a domain.Account) []byte {
	b := make([]byte, 0, 64)
	for _, units := range [...]int64{a.Received, a.Central, a.Allotted, a.Reserved, a.Sold} {
		b = binary.AppendVarint(b, units)
	}
	b = appendTally(appendTally(b, a.Taken), a.Returned)
	b = appendTallies(appendTallies(b, a.Granted), a.Reclaimed)
	if a.MovedOut == 0 { // As it was written before there were pools.
		return b
	}
	return binary.AppendVarint(b, a.MovedOut)
}

func appendTally(b []byte, t domain.Tally) []byte {
	return binary.AppendVarint(binary.AppendUvarint(b, t.Number), t.Units)
}

func appendTallies(b []byte, tallies []domain.LaneTally) []byte {
	b = binary.AppendUvarint(b, uint64(len(tallies)))
	for _, t := range tallies {
		b = appendTally(binary.AppendUvarint(b, uint64(t.Lane)), t.Tally)
	}
	return b
}

func decodeAccount(data []byte) (domain.Account, error) {
	r := reader{rest: data}
	var a domain.Account
	for _, units := range [...]*int64{&a.Received, &a.Central, &a.Allotted, &a.Reserved, &a.Sold} {
		*units = r.varint()
	}
	a.Taken, a.Returned = r.tally(), r.tally()
	a.Granted, a.Reclaimed = r.tallies(), r.tallies()
	if len(r.rest) > 0 {
		a.MovedOut = r.varint()
	}
	if r.failed || len(r.rest) > 0 {
		return domain.Account{}, fmt.Errorf("an account of %d bytes cannot be read", len(data))
	}
	return a, nil
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

// A reader reads fields off rest; after a failure everything it returns is zero.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) bytes(count int) []byte {
	if r.failed || count < 0 || count > len(r.rest) {
		r.failed = true
		return nil
	}
	b := r.rest[:count]
	r.rest = r.rest[count:]
	return b
}

func (r *reader) uvarint() uint64 {
	v, length := binary.Uvarint(r.rest)
	if length <= 0 {
		r.failed = true
		return 0
	}
	r.bytes(length)
	return v
}

func (r *reader) varint() int64 {
	v, length := binary.Varint(r.rest)
	if length <= 0 {
		r.failed = true
		return 0
	}
	r.bytes(length)
	return v
}

func (r *reader) uint64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) text() string { return string(r.bytes(int(min(r.uvarint(), uint64(len(r.rest))+1)))) }

func (r *reader) tally() domain.Tally { return domain.Tally{Number: r.uvarint(), Units: r.varint()} }

func (r *reader) tallies() []domain.LaneTally {
	var tallies []domain.LaneTally
	for count := r.uvarint(); count > 0 && !r.failed; count-- {
		lane := r.uvarint()
		tallies = append(tallies, domain.LaneTally{Lane: uint32(lane), Tally: r.tally()})
	}
	return tallies
}
