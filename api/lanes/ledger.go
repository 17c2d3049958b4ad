package lanes

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// A ledgerEntry remembers a request: what it asked for, where it took effect, and what its reply is made of. It is derived
// from the log, so it survives whatever the log survives. Of a request that found nothing to do it remembers what that found: an order as
// of the commit that answered, or the event that had said before what the request says.
type ledgerEntry struct {
	fingerprint Fingerprint
	commit      uint64
	at          time.Time
	// The event that the request led to. An order's events are in its record; others are kept here.
	aggregateID string
	typeName    string
	version     uint32
	order       domain.OrderID // zero for events of products and stock
	partID      string         // part of the order that it made or was about
	payload     []byte
}

// append writes the entry down behind b: fingerprint, commit, time, order id; then for an order's the part's id, and for events that
// are not an order's, aggregate id, type, version and payload.
func (e *ledgerEntry) append(b []byte) []byte {
	b = append(b, e.fingerprint[:]...)
	b = binary.AppendUvarint(b, e.commit)
	b = binary.BigEndian.AppendUint64(b, uint64(e.at.UnixNano()))
	b = append(b, e.order[:]...)
	if !e.order.IsZero() {
		return append(b, e.partID...)
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
	} else {
		e.partID = string(r.rest)
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

// newLedgerEntry makes the entry of a request whose event is applied, after all events before it. The entry keeps the payload.
func (m *Machine) newLedgerEntry(commit *eventstore.Commit, envelope *eventstore.Event, event domain.Event) (ledgerEntry, error) {
	entry := ledgerEntry{commit: commit.Number, at: commit.Time}
	copy(entry.fingerprint[:], envelope.Fingerprint)
	if id, ofOrder := domain.OrderOf(event); ofOrder {
		entry.order, entry.partID = id, domain.PartOf(event)
		return entry, nil
	}
	if answered, ok := event.(domain.RequestAnswered); ok {
		return entry, m.fillAnswered(&entry, answered)
	}
	entry.aggregateID, entry.typeName, entry.version, entry.payload = envelope.AggregateID, envelope.Type, envelope.Version, envelope.Payload
	return entry, nil
}

// fillAnswered fills in what a request found that left nothing to do. Products, campaigns and coupons are decided here, in their
// home lane, so the catalogue has them as of the event before: a replay finds the same.
func (m *Machine) fillAnswered(entry *ledgerEntry, answered domain.RequestAnswered) error {
	var found domain.Event
	switch answered.About {
	case domain.AboutOrder:
		id, err := domain.ParseOrderID(answered.Key)
		entry.order, entry.partID = id, answered.PartID
		return err
	case domain.AboutProduct:
		if product, ok := m.options.Catalog.Product(answered.Key); ok {
			entry.commit, entry.at, found = product.Commit, product.Product.UpdatedAt, product.Product.Put()
		}
	case domain.AboutCampaign:
		if campaign, ok := m.options.Catalog.Campaign(answered.Key); ok {
			entry.commit, entry.at, found = campaign.Commit, campaign.Campaign.UpdatedAt, campaign.Campaign.Put()
		}
	case domain.AboutCoupon:
		if coupon, ok := m.options.Catalog.Coupon(answered.Key); ok {
			entry.commit, entry.at, found = coupon.Commit, coupon.Coupon.UpdatedAt, coupon.Coupon.Put()
		}
	case domain.AboutUser:
		found = domain.UserErased{UserID: answered.Key, Key: answered.KeyID}
	}
	if found == nil {
		return fmt.Errorf("a request was answered about %s %.64q, which is not there", answered.About, answered.Key)
	}
	entry.typeName, entry.version, entry.aggregateID, entry.payload = stored.Encode(found)
	return nil
}

// recall makes the reply again that a request was given. Where it found nothing to do, that is at the revision of what it found.
func (m *Machine) recall(entry *ledgerEntry) (*Reply, error) {
	if !entry.order.IsZero() {
		reply := &Reply{Lane: m.options.Lane, PartID: entry.partID}
		err := m.fillOrder(reply, entry.order, entry.commit)
		reply.Commit, reply.At = reply.OrderCommit, reply.Order.UpdatedAt
		return reply, err
	}
	event, err := stored.Decode(entry.typeName, entry.version, entry.aggregateID, "", entry.payload)
	if err != nil {
		return nil, err
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
