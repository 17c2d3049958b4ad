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
	var placed deadlines
	known := commit.Number <= m.reached.Number // All but the accounts hold it already.
	for i := range commit.Events {
		envelope := &commit.Events[i]
		if envelope.Type == eventstore.TypeLaneOpened {
			continue
		}
		event, err := m.next(envelope)
		if err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
		if !known {
			if err := m.write(commit, envelope, event); err != nil {
				return fmt.Errorf("event %d: %w", i, err)
			}
			if order, ok := event.(domain.OrderPlaced); ok {
				placed.add(order.PayBy, order.OrderID)
			}
		}
		for sku := range domain.SKUs(event) {
			m.applied[sku] = m.applied[sku].Evolve(event, sku)
			m.changed[sku] = struct{}{}
		}
	}
	for _, due := range placed {
		if err := m.batch.Set(m.keys.deadline(due.payBy, commit.Number), due.orders, nil); err != nil {
			return err
		}
		if due.payBy.Before(m.nextDue) {
			m.nextDue = due.payBy
		}
	}
	if len(m.pending) == 0 {
		m.pending = nil // Its array would grow for ever otherwise.
	}
	m.position = next
	if !known {
		m.logTime = commit.Time
	}
	if m.batch.Len()+m.ledger.Len() >= projections.BulkBytes {
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
	if err := m.batch.Commit(pebble.NoSync); err != nil {
		return err
	}
	m.batch.Reset()
	m.ledger.Reset()
	m.flushed = m.position.Number
	if m.granted && m.options.Granted != nil {
		m.options.Granted()
	}
	m.granted = false
	return nil
}

func (m *Machine) encodePosition() []byte {
	value := binary.BigEndian.AppendUint64(make([]byte, 0, positionBytes), m.position.Number)
	value = append(value, m.position.Hash[:]...)
	return binary.BigEndian.AppendUint64(value, uint64(m.logTime.UnixNano()))
}

// next returns the domain event of an envelope: the one that was decided, when this machine did, else the stored one.
func (m *Machine) next(envelope *eventstore.Event) (domain.Event, error) {
	if len(m.pending) > 0 {
		event := m.pending[0]
		m.pending = m.pending[1:]
		m.settle(envelope, event)
		return event, nil
	}
	event, err := stored.Decode(envelope.Type, envelope.Version, envelope.AggregateID, envelope.UserID, envelope.Payload)
	if err != nil {
		return nil, err
	}
	for sku := range domain.SKUs(event) {
		m.decided[sku] = m.decided[sku].Evolve(event, sku)
	}
	return event, nil
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
	if erased, ok := event.(domain.UserErased); ok {
		delete(m.erasing, erasedKey{erased.UserID, erased.Key})
	}
}

// write puts what one event changes into the batch, save accounts and deadlines, which many share.
func (m *Machine) write(commit *eventstore.Commit, envelope *eventstore.Event, event domain.Event) error {
	if envelope.RequestID != "" {
		entry := ledgerEntry{
			commit: commit.Number, at: commit.Time,
			aggregateID: envelope.AggregateID, typeName: envelope.Type, version: envelope.Version,
		}
		copy(entry.fingerprint[:], envelope.Fingerprint)
		id, ofOrder := domain.OrderOf(event)
		if ofOrder {
			entry.order = id
		} else {
			entry.payload = envelope.Payload
		}
		key := requestKey{envelope.UserID, envelope.RequestID}
		m.known.add(key)
		if err := m.ledger.Set(m.keys.request(key), entry.encode(), nil); err != nil {
			return err
		}
	}
	if put, ok := event.(domain.ProductPut); ok {
		entry := CatalogEntry{Product: domain.Product{}.Evolve(put, commit.Time), Lane: m.options.Lane, Commit: commit.Number}
		m.options.Catalog.put(entry)
		return m.batch.Set(m.keys.product(put.SKU), encodeProduct(entry), nil)
	}
	if erased, ok := event.(domain.UserErased); ok {
		m.erasures = true
		return m.batch.Set(m.keys.erased(erased.UserID, erased.Key), encodeErasure(commit.Number, commit.Time), nil)
	}
	if grant, ok := event.(domain.StockGranted); ok && grant.ToLane != m.options.Lane {
		m.granted = true
		return m.batch.Set(m.keys.grant(grant), binary.AppendVarint(nil, grant.Units), nil)
	}
	id, ofOrder := domain.OrderOf(event)
	if !ofOrder {
		return nil
	}
	entry := projections.Entry{
		Number: commit.Number, At: commit.Time, Type: envelope.Type, Version: envelope.Version, Payload: envelope.Payload,
	}
	if _, first := event.(domain.OrderPlaced); first {
		entry.UserID = envelope.UserID
		return m.batch.Set(m.keys.order(id), projections.AppendEntry(nil, entry), nil)
	}
	return m.batch.Merge(m.keys.order(id), projections.AppendEntry(nil, entry), nil)
}

func (m *Machine) writeAccount(sku string) error {
	account := m.applied[sku]
	if err := account.Check(); err != nil {
		panic(fmt.Sprintf("bug: lane %d, SKU %s: %v", m.options.Lane, sku, err))
	}
	return m.batch.Set(m.keys.account(sku), encodeAccount(account), nil)
}

// deadlines are the orders that one commit placed, by their pay_by: one, unless events of several settings meet.
type deadlines []struct {
	payBy  time.Time
	orders []byte
}

func (d *deadlines) add(payBy time.Time, id domain.OrderID) {
	for i := range *d {
		if (*d)[i].payBy.Equal(payBy) {
			(*d)[i].orders = append((*d)[i].orders, id[:]...)
			return
		}
	}
	*d = append(*d, struct {
		payBy  time.Time
		orders []byte
	}{payBy, append(make([]byte, 0, 64*len(id)), id[:]...)})
}

// Due implements eventstore.Machine: it expires orders whose pay_by log time has passed. Between two looks at the index, what
// the first one found must have become durable; an index entry goes when all its orders have ended for good.
func (m *Machine) Due(at time.Time, limit int) []eventstore.Event {
	if m.expiring > 0 || at.Before(m.nextDue) {
		return nil
	}
	events, err := m.expire(at, limit)
	must(err)
	return events
}

func (m *Machine) expire(at time.Time, limit int) ([]eventstore.Event, error) {
	table := m.keys.table(tableDeadlines)
	iter, err := m.db.NewIter(&pebble.IterOptions{LowerBound: table, UpperBound: after(table)})
	if err != nil {
		return nil, err
	}
	var events []eventstore.Event
	var ended [][]byte
	m.nextDue = at.Add(m.options.PayWithin) // Nothing placed from now on is due before, and Apply lowers it otherwise.
	for valid := iter.First(); valid; valid = iter.Next() {
		payBy := time.Unix(0, int64(binary.BigEndian.Uint64(iter.Key()[len(table):])))
		if payBy.After(at) || len(events) >= limit {
			m.nextDue = payBy
			break
		}
		found, open, err := m.expireOrders(iter.Value(), at)
		if err != nil {
			return nil, errors.Join(err, iter.Close())
		}
		events = append(events, found...)
		if open {
			m.nextDue = time.Time{}
		} else {
			ended = append(ended, append([]byte(nil), iter.Key()...))
		}
	}
	if err := iter.Close(); err != nil {
		return nil, err
	}
	// Dropping an index entry all of whose orders have durably ended changes nothing that a replay would decide.
	for _, key := range ended {
		if err := m.db.Delete(key, pebble.NoSync); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// expireOrders decides the orders of one index entry; open says that one of them had not ended durably.
func (m *Machine) expireOrders(ids []byte, at time.Time) (events []eventstore.Event, open bool, err error) {
	for ; len(ids) >= len(domain.OrderID{}); ids = ids[len(domain.OrderID{}):] {
		id := domain.OrderID(ids[:len(domain.OrderID{})])
		order, _, err := m.durableOrder(id, 0)
		if err != nil {
			return nil, false, err
		}
		if order.Status != domain.StatusPendingPayment {
			continue
		}
		open = true
		decided, err := domain.Decide(m, domain.ExpireOrder{OrderID: id}, at)
		if err != nil {
			return nil, false, err
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
