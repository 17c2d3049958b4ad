package lanes

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/weirhq/weir/domain"
)

// An outbox is a lane's list of units on their way to other lanes: grants that it made and returns, until it is told
// that they were taken. The machine writes the list in the batch that applies the event, so it is as durable as the
// account, and made again from the log; what is on it is sent until it is acknowledged (I5). The machine of the lane that takes them
// drops them too, since a node follows lanes that it does not decide, to which nobody tells anything.
type outbox struct {
	db        *pebble.DB
	keys      keys
	transfers []*transfer
}

// A transfer is one grant or return on its way.
type transfer struct {
	key    string
	kind   MessageKind // MessageGrant or MessageReturn
	sku    string
	to     uint32
	number uint64
	units  int64
	sentAt time.Time
}

// outboxMax bounds the transfers that are sent at a time; the rest follows.
const outboxMax = 1024

// load reads the list. What was sent already is known by its key.
func (o *outbox) load(homeOf func(sku string) uint32) error {
	sent := make(map[string]time.Time, len(o.transfers))
	for _, t := range o.transfers {
		sent[t.key] = t.sentAt
	}
	o.transfers = o.transfers[:0]
	for _, table := range [...]byte{tableGrants, tableReturns} {
		prefix := o.keys.table(table)
		iter, err := o.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
		if err != nil {
			return err
		}
		for valid := iter.First(); valid && len(o.transfers) < outboxMax; valid = iter.Next() {
			t, err := decodeTransfer(table, iter.Key()[len(prefix):], iter.Value())
			if err != nil {
				return errors.Join(err, iter.Close())
			}
			if t.kind == MessageReturn {
				t.to = homeOf(t.sku)
			}
			t.key = string(iter.Key())
			t.sentAt = sent[t.key]
			o.transfers = append(o.transfers, t)
		}
		if err := iter.Close(); err != nil {
			return err
		}
	}
	return nil
}

// settle drops what this node knows to have been taken, before anything is sent again: it may have followed the lanes in another order
// than that in which units moved. What it does not know yet is sent, and acknowledged.
func (o *outbox) settle(lane uint32, homeOf func(sku string) uint32) error {
	for _, table := range [...]byte{tableGrants, tableReturns} {
		if err := o.settleTable(table, lane, homeOf); err != nil {
			return err
		}
	}
	return nil
}

func (o *outbox) settleTable(table byte, lane uint32, homeOf func(sku string) uint32) (err error) {
	prefix := o.keys.table(table)
	iter, err := o.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for valid := iter.First(); valid; valid = iter.Next() {
		t, err := decodeTransfer(table, iter.Key()[len(prefix):], iter.Value())
		if err != nil {
			return err
		}
		if t.kind == MessageReturn {
			t.to = homeOf(t.sku)
		}
		account, err := o.accountOf(t.to, t.sku)
		if err != nil {
			return err
		}
		taken := account.Taken.Number
		if t.kind == MessageReturn {
			taken = account.ReclaimedFrom(lane).Number
		}
		if t.number > taken {
			continue
		}
		if err := o.db.Delete(iter.Key(), pebble.NoSync); err != nil {
			return err
		}
	}
	return iter.Error()
}

// accountOf returns a lane's account as it was last written here.
func (o *outbox) accountOf(lane uint32, sku string) (domain.Account, error) {
	of := newKeys(lane)
	value, closer, err := o.db.Get(of.account(sku))
	if errors.Is(err, pebble.ErrNotFound) {
		return domain.Account{}, nil
	}
	if err != nil {
		return domain.Account{}, err
	}
	account, err := decodeAccount(value)
	return account, errors.Join(err, closer.Close())
}

// takenTransfer returns the key under which the sender lists the transfer that an event of a lane takes, nil for other events and
// for what never was on its way.
func takenTransfer(event domain.Event, lane uint32) []byte {
	if allotted, ok := event.(domain.StockAllotted); ok && allotted.HomeLane != lane {
		of := newKeys(allotted.HomeLane)
		return of.grant(domain.StockGranted{SKU: allotted.SKU, ToLane: lane, GrantNumber: allotted.GrantNumber})
	}
	if reclaimed, ok := event.(domain.StockReclaimed); ok && reclaimed.FromLane != lane {
		of := newKeys(reclaimed.FromLane)
		return of.giveBack(domain.StockReturned{SKU: reclaimed.SKU, ReturnNumber: reclaimed.ReturnNumber})
	}
	return nil
}

// taken drops the transfers of a SKU to a lane up to a number: that lane has them.
func (o *outbox) taken(kind MessageKind, sku string, lane uint32, number uint64) error {
	kept := o.transfers[:0]
	var err error
	for _, t := range o.transfers {
		if t.kind == kind && t.sku == sku && t.to == lane && t.number <= number {
			err = errors.Join(err, o.db.Delete([]byte(t.key), pebble.NoSync))
			continue
		}
		kept = append(kept, t)
	}
	clear(o.transfers[len(kept):])
	o.transfers = kept
	return err
}

// grants reports whether a grant of a SKU to a lane is on its way.
func (o *outbox) grants(sku string, lane uint32) bool {
	for _, t := range o.transfers {
		if t.kind == MessageGrant && t.sku == sku && t.to == lane {
			return true
		}
	}
	return false
}

// A listed grant's key is lane, number and SKU, a listed return's is number and SKU; the value is the units.
func (k *keys) grant(grant domain.StockGranted) []byte {
	b := binary.BigEndian.AppendUint32(k.start(tableGrants), grant.ToLane)
	b = binary.BigEndian.AppendUint64(b, grant.GrantNumber)
	return k.keep(append(b, grant.SKU...))
}

func (k *keys) giveBack(returned domain.StockReturned) []byte {
	b := binary.BigEndian.AppendUint64(k.start(tableReturns), returned.ReturnNumber)
	return k.keep(append(b, returned.SKU...))
}

func decodeTransfer(table byte, key, value []byte) (*transfer, error) {
	t := &transfer{kind: MessageReturn}
	units, length := binary.Varint(value)
	if table == tableGrants && len(key) >= 4 {
		t.kind, t.to = MessageGrant, binary.BigEndian.Uint32(key)
		key = key[4:]
	}
	if len(key) < 8 || length <= 0 {
		return nil, errors.New("a listed transfer of units cannot be read")
	}
	t.number, t.sku, t.units = binary.BigEndian.Uint64(key), string(key[8:]), units
	return t, nil
}
