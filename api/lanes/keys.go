package lanes

import (
	"encoding/binary"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// The tables of a lane's state. A key is: projections.KeySpaceState, lane (2 bytes), table, and then
//
//	position                                 the position of all tables but the accounts, and its log time
//	reckoned                                 the position of the accounts, and its log time
//	order     order id (16 bytes)            the order's record, see projections.Entry
//	request   user 0x00 request              the ledger's entry
//	deadline  log time (8 bytes), commit     the ids of the orders that the commit lists to be looked at then; commit 0: moved
//	account   stock key                      this lane's account
//	product   SKU                            the product, in its home lane
//	erased    user 0x00 key id (8 bytes)     commit and log time of the erasure of that key
//	grant     lane, number, SKU              units granted to another lane and not known to be taken
//	return    number, SKU                    units returned to the home lane and not known to be reclaimed
//	campaign  stock key of its pool          the campaign, in its SKU's home lane
//	coupon    code                           the coupon, in its home lane
//	endpoint  id                             a webhook endpoint is there, in lane 0
//	use       user 0x00 of what              what a user holds of a campaign or a coupon, as changes to add up
const (
	tablePosition  byte = 'p'
	tableReckoned  byte = 'q'
	tableOrders    byte = 'o'
	tableRequests  byte = 'r'
	tableDeadlines byte = 'd'
	tableAccounts  byte = 'a'
	tableProducts  byte = 's'
	tableGrants    byte = 'g'
	tableErased    byte = 'k'
	tableReturns   byte = 'b'
	tableCampaigns byte = 'c'
	tableCoupons   byte = 'v'
	tableUses      byte = 'u'
	tableEndpoints byte = 'w'
)

// tableBytes is how much of a key says its table.
const tableBytes = 1 + 2 + 1

// positionBytes is number, hash and log time.
const positionBytes = 8 + len(eventstore.Hash{}) + 8

// keys makes a lane's keys. The slices that it returns are valid until its next call, save those of table.
type keys struct {
	prefix []byte
	buffer []byte
}

func newKeys(lane uint32) keys {
	return keys{prefix: binary.BigEndian.AppendUint16([]byte{projections.KeySpaceState}, uint16(lane))}
}

func (k *keys) start(table byte) []byte { return append(append(k.buffer[:0], k.prefix...), table) }

func (k *keys) keep(key []byte) []byte {
	k.buffer = key
	return key
}

// table returns the prefix of a table.
func (k *keys) table(table byte) []byte { return append(append([]byte(nil), k.prefix...), table) }

func (k *keys) position() []byte { return k.keep(k.start(tablePosition)) }

func (k *keys) reckoned() []byte { return k.keep(k.start(tableReckoned)) }

func (k *keys) order(id domain.OrderID) []byte { return k.keep(append(k.start(tableOrders), id[:]...)) }

func (k *keys) request(key requestKey) []byte {
	b := append(k.start(tableRequests), key.userID...)
	return k.keep(append(append(b, 0), key.requestID...))
}

func (k *keys) deadline(payBy time.Time, commit uint64) []byte {
	b := binary.BigEndian.AppendUint64(k.start(tableDeadlines), uint64(payBy.UnixNano()))
	return k.keep(binary.BigEndian.AppendUint64(b, commit))
}

// erased returns the key of an erased key; that of key 0 comes before all others of the user.
func (k *keys) erased(userID string, key domain.KeyID) []byte {
	b := append(append(k.start(tableErased), userID...), 0)
	return k.keep(binary.BigEndian.AppendUint64(b, uint64(key)))
}

func (k *keys) account(sku string) []byte { return k.keep(append(k.start(tableAccounts), sku...)) }

func (k *keys) product(sku string) []byte { return k.keep(append(k.start(tableProducts), sku...)) }

func (k *keys) campaign(pool string) []byte { return k.keep(append(k.start(tableCampaigns), pool...)) }

func (k *keys) coupon(code string) []byte { return k.keep(append(k.start(tableCoupons), code...)) }

func (k *keys) endpoint(id string) []byte { return k.keep(append(k.start(tableEndpoints), id...)) }

func (k *keys) use(use domain.Use) []byte {
	b := append(k.start(tableUses), use.UserID...)
	return k.keep(append(append(b, 0), use.Of...))
}

// after returns the first key that does not begin with prefix. REQUIRES: prefix does not end in 0xff.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	return end
}
