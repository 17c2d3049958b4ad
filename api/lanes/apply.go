package lanes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// Apply implements eventstore.Machine. A commit that this machine decided is taken off the speculation; one read from the
// log is decoded.
func (m *Machine) Apply(commit *eventstore.Commit, next eventstore.Position) error {
	var due deadlines
	known := commit.Number <= m.reached.Number // All but the accounts hold it already.
	for i := range commit.Events {
		envelope := &commit.Events[i]
		if envelope.Type == eventstore.TypeLaneOpened {
			continue
		}
		event, replayed, err := m.next(envelope)
		if err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
		if !known {
			if err := m.write(commit, envelope, event); err != nil {
				return fmt.Errorf("event %d: %w", i, err)
			}
			addDeadline(&due, event, commit.Time)
		}
		for sku := range domain.SKUs(event) {
			account := m.applied[sku].Evolve(event, sku)
			m.applied[sku] = account
			if replayed {
				m.decided[sku] = account
			}
			m.changed[sku] = struct{}{}
		}
		m.noteFreed(event)
	}
	for _, d := range due {
		if err := m.batch.Set(m.keys.deadline(d.at, commit.Number), d.orders, nil); err != nil {
			return err
		}
		m.dueBy(d.at)
	}
	if len(m.pending) == 0 {
		m.pending = nil // Its array would grow for ever otherwise.
	}
	m.position = next
	if !known {
		m.logTime = commit.Time
	}
	if m.bulk.Full(m.batch.Len() + m.ledger.Len()) {
		return m.Flush()
	}
	return nil
}

// Flush implements eventstore.Machine: one batch, with its position in it.
func (m *Machine) Flush() error {
	if m.position.Number == m.flushed {
		return nil
	}
	if m.position.Number >= m.reckoned+m.options.ReckonEvery {
		for sku := range m.changed {
			if err := m.writeAccount(sku); err != nil {
				return err
			}
		}
		if err := m.batch.Set(m.keys.reckoned(), m.encodePosition(), nil); err != nil {
			return err
		}
		clear(m.changed)
		m.reckoned = m.position.Number
	}
	if m.position.Number > m.reached.Number {
		if err := m.batch.Set(m.keys.position(), m.encodePosition(), nil); err != nil {
			return err
		}
	}
	if err := m.batch.Apply(m.ledger, nil); err != nil {
		return err
	}
	var err error
	if m.batch, err = m.bulk.Commit(m.batch); err != nil {
		return err
	}
	m.ledger.Reset()
	m.flushed = m.position.Number
	if m.moved || len(m.freed) > 0 {
		m.options.board.note(m.freed, m.moved)
		clear(m.freed)
		m.moved = false
	}
	return nil
}

// noteFreed notes that an event freed units of a SKU that is scarce.
func (m *Machine) noteFreed(event domain.Event) {
	if _, placed := event.(domain.OrderPlaced); placed || m.options.board == nil || moves(event) {
		return
	}
	for sku := range domain.SKUs(event) {
		if m.options.board.watches(sku) {
			m.freed[sku] = m.applied[sku]
		}
	}
}

// moves reports whether an event only moves units where somebody asked for them.
func moves(event domain.Event) bool {
	_, granted := event.(domain.StockGranted)
	_, allotted := event.(domain.StockAllotted)
	_, returned := event.(domain.StockReturned)
	return granted || allotted || returned
}

func (m *Machine) encodePosition() []byte {
	value := binary.BigEndian.AppendUint64(make([]byte, 0, positionBytes), m.position.Number)
	value = append(value, m.position.Hash[:]...)
	return binary.BigEndian.AppendUint64(value, uint64(m.logTime.UnixNano()))
}

// next returns the domain event of an envelope: the one that was decided, when this machine did, else the stored one, which is replayed:
// then nothing is decided that is not applied, and the accounts are the same.
func (m *Machine) next(envelope *eventstore.Event) (event domain.Event, replayed bool, err error) {
	if len(m.pending) > 0 {
		event := m.pending[0]
		m.pending = m.pending[1:]
		m.settle(envelope, event)
		return event, false, nil
	}
	event, err = stored.Decode(envelope.Type, envelope.Version, envelope.AggregateID, envelope.UserID, envelope.Payload)
	return event, true, err
}

// settle takes a decided event off the speculation.
func (m *Machine) settle(envelope *eventstore.Event, event domain.Event) {
	if envelope.RequestID != "" {
		delete(m.requests, requestKey{envelope.UserID, envelope.RequestID})
	}
	if id, ok := domain.OrderOf(event); ok {
		if spec := m.orders[id]; spec.changes > 1 {
			spec.changes--
			m.orders[id] = spec
		} else {
			delete(m.orders, id)
		}
	}
	if put, ok := event.(domain.ProductPut); ok {
		if spec := m.products[put.SKU]; spec.changes > 1 {
			spec.changes--
			m.products[put.SKU] = spec
		} else {
			delete(m.products, put.SKU)
		}
	}
	if _, ok := event.(domain.OrderExpired); ok {
		m.expiring--
	}
	m.settleCampaigns(event)
	if id, _, ok := endpointOf(event); ok {
		m.endpointsNext.settle(id)
	}
	if erased, ok := event.(domain.UserErased); ok {
		delete(m.erasing, erasedKey{erased.UserID, erased.Key})
	}
}

// write puts what one event changes into the batch, save accounts and deadlines, which many share.
func (m *Machine) write(commit *eventstore.Commit, envelope *eventstore.Event, event domain.Event) error {
	if envelope.RequestID != "" {
		entry, err := m.newLedgerEntry(commit, envelope, event)
		if err != nil {
			return err
		}
		key := requestKey{envelope.UserID, envelope.RequestID}
		m.known.add(key)
		m.value = entry.append(m.value[:0])
		if err := m.ledgerBatch().Set(m.keys.request(key), m.value, nil); err != nil {
			return err
		}
	}
	if put, ok := event.(domain.ProductPut); ok {
		entry := CatalogEntry{Product: domain.Product{}.Evolve(put, commit.Time), Lane: m.options.Lane, Commit: commit.Number}
		m.options.Catalog.put(entry)
		return m.batch.Set(m.keys.product(put.SKU), factOf(commit, envelope).encode([]byte{productIsFact}), nil)
	}
	if err := m.writeCampaigns(commit, envelope, event); err != nil {
		return err
	}
	if erased, ok := event.(domain.UserErased); ok {
		m.erasures = true
		return m.batch.Set(m.keys.erased(erased.UserID, erased.Key), encodeErasure(commit.Number, commit.Time), nil)
	}
	if id, there, ok := endpointOf(event); ok {
		if !there {
			delete(m.endpoints, id)
			return m.batch.Delete(m.keys.endpoint(id), nil)
		}
		m.endpoints[id] = struct{}{}
		return m.batch.Set(m.keys.endpoint(id), nil, nil)
	}
	if grant, ok := event.(domain.StockGranted); ok && grant.ToLane != m.options.Lane {
		m.moved = m.options.board != nil
		return m.batch.Set(m.keys.grant(grant), binary.AppendVarint(nil, grant.Units), nil)
	}
	if returned, ok := event.(domain.StockReturned); ok && returned.HomeLane != m.options.Lane {
		m.moved = m.options.board != nil
		return m.batch.Set(m.keys.giveBack(returned), binary.AppendVarint(nil, returned.Units), nil)
	}
	if taken := takenTransfer(event, m.options.Lane); taken != nil {
		// The sender may be decided elsewhere, and then nobody here is told that its units have arrived.
		return m.batch.Delete(taken, nil)
	}
	id, ofOrder := domain.OrderOf(event)
	if !ofOrder {
		return nil
	}
	entry := projections.Entry{
		Number: commit.Number, At: commit.Time, Type: envelope.Type, Version: envelope.Version, Payload: envelope.Payload,
	}
	_, first := event.(domain.OrderPlaced)
	if first {
		entry.UserID = envelope.UserID
	}
	m.value = projections.AppendEntry(m.value[:0], entry)
	if first {
		return m.batch.Set(m.keys.order(id), m.value, nil)
	}
	return m.batch.Merge(m.keys.order(id), m.value, nil)
}

// ledgerApartMax is the size of a batch from which the ledger's part is not kept apart: then a log is made up, and the batch becomes tables.
const ledgerApartMax = 1 << 20

// ledgerBatch returns the batch that the ledger's part is written to. It does not matter which operations on its keys come first.
func (m *Machine) ledgerBatch() *pebble.Batch {
	if m.batch.Len() >= ledgerApartMax {
		return m.batch
	}
	return m.ledger
}

func (m *Machine) writeAccount(sku string) error {
	account := m.applied[sku]
	if err := account.Check(); err != nil {
		panic(fmt.Sprintf("bug: lane %d, SKU %s: %v", m.options.Lane, sku, err))
	}
	return m.batch.Set(m.keys.account(sku), encodeAccount(account), nil)
}

// addDeadline lists when the order of an event is to be looked at: at its deadline when it was placed, and at once when a payment
// is over without its money, since the index may have dropped the order while that was held.
func addDeadline(due *deadlines, event domain.Event, at time.Time) {
	if placed, ok := event.(domain.OrderPlaced); ok {
		due.add(placed.PayBy, placed.OrderID)
		return
	}
	if id, over := paymentOver(event); over {
		due.add(at, id)
	}
}

// paymentOver returns the order whose payment an event ends, or leaves in doubt.
func paymentOver(event domain.Event) (domain.OrderID, bool) {
	if declined, ok := event.(domain.PaymentDeclined); ok {
		return declined.OrderID, true
	}
	if unknown, ok := event.(domain.PaymentBecameUnknown); ok {
		return unknown.OrderID, true
	}
	if voided, ok := event.(domain.PaymentVoided); ok {
		return voided.OrderID, true
	}
	if stray, ok := event.(domain.StrayPaymentFound); ok {
		return stray.OrderID, true
	}
	return domain.OrderID{}, false
}

// deadlines are orders of one commit by when they are to be looked at.
type deadlines []struct {
	at     time.Time
	orders []byte
}

func (d *deadlines) add(at time.Time, id domain.OrderID) {
	for i := range *d {
		if (*d)[i].at.Equal(at) {
			(*d)[i].orders = append((*d)[i].orders, id[:]...)
			return
		}
	}
	*d = append(*d, struct {
		at     time.Time
		orders []byte
	}{at, append(make([]byte, 0, 64*len(id)), id[:]...)})
}

// dueOrdersMax bounds the orders that one look at the index folds; the last entry is finished.
const dueOrdersMax = 4096

// Due implements eventstore.Machine: it expires orders whose deadline log time has passed. Between two looks at the index, what
// the first one found must have become durable; an order leaves the index when it can expire no more, and moves when it can later.
func (m *Machine) Due(at time.Time, limit int) []eventstore.Event {
	if m.expiring > 0 || at.Before(m.nextDue) {
		return nil
	}
	events, err := m.expire(at, limit, true)
	must(err)
	return events
}

// Tend takes off the index of deadlines what can expire no more, and decides nothing: for a lane that another node decides, so that
// the index is short when this one does. It is called between a Flush and the next Apply.
func (m *Machine) Tend() error {
	if m.logTime.Before(m.nextDue) {
		return nil
	}
	_, err := m.expire(m.logTime, 0, false)
	return err
}

// expire looks at the orders that are due. With decide it expires those that can, else it leaves them in the index.
func (m *Machine) expire(at time.Time, limit int, decide bool) (_ []eventstore.Event, err error) {
	table := m.keys.table(tableDeadlines)
	iter, err := m.db.NewIter(&pebble.IterOptions{LowerBound: table, UpperBound: after(table)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	// What the index drops or moves follows from what is durable: a replay decides the same without it.
	index := m.db.NewBatch()
	defer func() { err = errors.Join(err, index.Close()) }()
	var events []eventstore.Event
	var later deadlines
	looked := 0
	m.nextDue = at.Add(m.options.PayWithin) // Nothing placed from now on is due before, and Apply lowers it otherwise.
	for valid := iter.First(); valid; valid = iter.Next() {
		due := time.Unix(0, int64(binary.BigEndian.Uint64(iter.Key()[len(table):])))
		if due.After(at) || decide && len(events) >= limit || looked >= dueOrdersMax {
			m.dueBy(due)
			break
		}
		looked += len(iter.Value()) / len(domain.OrderID{})
		found, open, err := m.expireOrders(iter.Value(), at, &later, decide)
		if err != nil {
			return nil, err
		}
		events = append(events, found...)
		switch {
		case len(open) == 0:
			err = index.Delete(iter.Key(), nil)
		case len(open) < len(iter.Value()):
			err = index.Set(iter.Key(), open, nil)
		}
		if err != nil {
			return nil, err
		}
		if len(open) > 0 {
			m.dueBy(time.Time{})
		}
	}
	for _, moved := range later {
		if err := m.move(index, moved.at, moved.orders); err != nil {
			return nil, err
		}
		m.dueBy(moved.at)
	}
	if index.Empty() {
		return events, nil
	}
	return events, index.Commit(pebble.NoSync)
}

// dueBy says that something is to be looked at by then.
func (m *Machine) dueBy(at time.Time) {
	if at.Before(m.nextDue) {
		m.nextDue = at
	}
}

// move lists orders under a later deadline. Their entry is that of no commit, and takes in those that moved there before.
func (m *Machine) move(index *pebble.Batch, to time.Time, ids []byte) error {
	key := m.keys.deadline(to, 0)
	before, err := m.get(key)
	if err != nil {
		return err
	}
	return index.Set(key, append(before, ids...), nil)
}

// expireOrders decides the orders of one index entry. open are those that are to be looked at again as soon as what was decided is
// durable; those that may expire later are added to later; the others cannot expire as they are.
func (m *Machine) expireOrders(ids []byte, at time.Time, later *deadlines, decide bool) (events []eventstore.Event, open []byte, err error) {
	for ; len(ids) >= len(domain.OrderID{}); ids = ids[len(domain.OrderID{}):] {
		id := domain.OrderID(ids[:len(domain.OrderID{})])
		order, _, err := m.durableOrder(id, 0)
		if err != nil {
			return nil, nil, err
		}
		expiresAt := order.ExpiresAt(m.options.PaymentGrace)
		if expiresAt.IsZero() {
			continue
		}
		if expiresAt.After(at) {
			later.add(expiresAt, id)
			continue
		}
		open = append(open, id[:]...)
		if !decide {
			continue
		}
		decided, err := domain.Decide(m, domain.ExpireOrder{OrderID: id, Grace: m.options.PaymentGrace}, at)
		if err != nil {
			return nil, nil, err
		}
		for _, event := range decided {
			envelope := m.envelope(event, id.Partition(), order.UserID)
			envelope.CausationID = "deadline"
			events = append(events, envelope)
			m.speculate(event, at)
		}
	}
	return events, open, nil
}

// mint makes an order id of log time and the partition.
func (m *Machine) mint(at time.Time, partition uint32) domain.OrderID {
	if _, err := m.options.Entropy.Read(m.entropy[:]); err != nil {
		panic(fmt.Sprintf("no entropy for order ids: %v", err))
	}
	m.fresh = domain.NewOrderID(at, partition, m.entropy)
	return m.fresh
}
