package projections

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weirhq/weir/domain"
)

// The view of stock: stock key → what one lane knows of its units, as varints in the order of account's fields.
//
// Every order changes an account, so accounts are added up in memory and written once a batch. And payloads are not
// decoded whole: the view reads SKUs and units off them by field number, as proto/stored/weir/event/v1/event.proto has
// them.

var stockProjection = Projection{
	Name: "stock", Version: 1, space: spaceStock, open: openStock,
	key:       stockKey,
	describe:  describeSKU,
	print:     func(_, value []byte) (string, error) { return printAccount(value) },
	partition: textPartition,
	touches:   touchedAccounts,
}

// touchedAccounts are those whose units an event moves.
func touchedAccounts(v *view, c *change) ([]string, bool) {
	moves, err := (&stockApplier{view: v, accounts: make(map[string]*cachedAccount)}).movesOf(nil, c)
	skus := make([]string, 0, len(moves))
	for _, m := range moves {
		skus = append(skus, m.account.sku)
	}
	return skus, err == nil
}

// stockKey is what the event is about. Accounts are sums: events that are about one SKU and others may change places, so
// an order that moves units of several SKUs is one key all the same.
func stockKey(c *change) string {
	switch c.kind {
	case kindLaneOpened, kindProductPut, kindCampaignPut, kindCouponPut, kindOrderChanged, kindUserErased, kindWebhookEndpoint,
		kindRequestAnswered:
		return ""
	case kindOrderPlaced, kindOrderExpired, kindOrderCancelled, kindPaymentCaptured, kindReturnReceived,
		kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed, kindPoolFilled, kindPoolDrained:
	}
	return c.event.AggregateID
}

// account counts the units of one stock key in one lane: domain.Account less the numbers of single transfers.
type account struct {
	// Of the home lane.
	received, central, granted, reclaimed int64
	// Of every lane.
	allotted, reserved, sold, taken, returned int64
}

func (a *account) fields() [9]*int64 {
	return [...]*int64{&a.received, &a.central, &a.granted, &a.reclaimed, &a.allotted, &a.reserved, &a.sold, &a.taken, &a.returned}
}

func (a account) append(dst []byte) []byte {
	for _, field := range a.fields() {
		dst = binary.AppendVarint(dst, *field)
	}
	return dst
}

func readAccount(value []byte) (account, error) {
	var a account
	for _, field := range a.fields() {
		units, bytes := binary.Varint(value)
		if bytes <= 0 {
			return account{}, errors.New("an account of the stock view is cut off")
		}
		*field, value = units, value[bytes:]
	}
	return a, nil
}

// printAccount writes an account as people do.
func printAccount(value []byte) (string, error) {
	a, err := readAccount(value)
	if err != nil {
		return "", err
	}
	names := [...]string{"received", "central", "granted", "reclaimed", "allotted", "reserved", "sold", "taken", "returned"}
	var text []string
	for i, field := range a.fields() {
		if *field != 0 {
			text = append(text, fmt.Sprintf("%s %d", names[i], *field))
		}
	}
	return strings.Join(text, ", "), nil
}

// accountsMax bounds the accounts that a lane's stock view keeps in memory between batches.
const accountsMax = 1 << 16

// stockApplier moves the units that events move. It holds accounts between batches, and what an event says about them while
// it is applied.
type stockApplier struct {
	*view
	accounts map[string]*cachedAccount
	dirty    []*cachedAccount
	// created are the keys that were not there before, and written those that finish wrote, until the runner took note of them.
	created, written []string
	moves            []move
}

type cachedAccount struct {
	sku string
	account
	dirty bool
}

// move is a number of units of one SKU that an event moves, as events of the kind do.
type move struct {
	account *cachedAccount
	kind    kind
	units   int64
}

// errNoSKU says that an event that is about a SKU does not name one.
var errNoSKU = errors.New("the event names no SKU")

func openStock(v *view) (applier, error) {
	return &stockApplier{view: v, accounts: make(map[string]*cachedAccount)}, nil
}

func (s *stockApplier) apply(c *change) error {
	// Whatever can fail comes first.
	var err error
	if s.moves, err = s.movesOf(s.moves[:0], c); err != nil {
		return err
	}
	for _, m := range s.moves {
		m.account.apply(m.kind, m.units)
		if !m.account.dirty {
			m.account.dirty = true
			s.dirty = append(s.dirty, m.account)
		}
	}
	return nil
}

// movesOf appends what units an event moves.
func (s *stockApplier) movesOf(moves []move, c *change) (_ []move, err error) {
	switch c.kind {
	case kindLaneOpened, kindProductPut, kindCampaignPut, kindCouponPut, kindOrderChanged, kindUserErased, kindWebhookEndpoint,
		kindRequestAnswered:
		return moves, nil
	case kindOrderPlaced:
		moves, err = s.readPlaced(moves, c.event.Payload)
	case kindOrderExpired:
		moves, err = s.readLines(moves, c.kind, c.event.Payload, 1)
	case kindPoolFilled:
		moves, err = s.readPoolMove(moves, c.kind, c.event.AggregateID, c.event.Payload, 1)
	case kindPoolDrained:
		moves, err = s.readPoolMove(moves, c.kind, c.event.AggregateID, c.event.Payload, -1)
	case kindOrderCancelled:
		moves, err = s.readLines(moves, c.kind, c.event.Payload, 3)
		if err == nil { // Units that were sold go back as those of a return do.
			moves, err = s.readLines(moves, kindReturnReceived, c.event.Payload, 4)
		}
	case kindPaymentCaptured:
		moves, err = s.readLines(moves, c.kind, c.event.Payload, 4)
	case kindReturnReceived:
		moves, err = s.readLines(moves, c.kind, c.event.Payload, 2)
	case kindStockReceived:
		moves, err = s.readMove(moves, c.kind, c.event.AggregateID, c.event.Payload, 1)
	case kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed:
		moves, err = s.readMove(moves, c.kind, c.event.AggregateID, c.event.Payload, 3)
	}
	return moves, err
}

// apply moves units as domain.Account.Evolve does.
func (a *account) apply(k kind, units int64) {
	switch k {
	case kindLaneOpened, kindProductPut, kindCampaignPut, kindCouponPut, kindOrderChanged, kindUserErased, kindWebhookEndpoint,
		kindRequestAnswered:
	case kindPoolFilled, kindPoolDrained:
		a.received += units
		a.central += units
	case kindPaymentCaptured:
		a.reserved -= units
		a.sold += units
	case kindReturnReceived:
		a.sold -= units
		a.allotted += units
	case kindOrderPlaced:
		a.allotted -= units
		a.reserved += units
	case kindOrderCancelled, kindOrderExpired:
		a.reserved -= units
		a.allotted += units
	case kindStockReceived:
		a.received += units
		a.central += units
	case kindStockGranted:
		a.central -= units
		a.granted += units
	case kindStockAllotted:
		a.taken += units
		a.allotted += units
	case kindStockReturned:
		a.allotted -= units
		a.returned += units
	case kindStockReclaimed:
		a.reclaimed += units
		a.central += units
	}
}

// readPlaced reads what an order took: its lines' units, of the pool in field 10 if there is one, and a unit of the coupon's
// pool in field 12.
func (s *stockApplier) readPlaced(moves []move, payload []byte) ([]move, error) {
	moves, err := s.readLines(moves, kindOrderPlaced, payload, 1)
	if err != nil {
		return moves, err
	}
	for len(payload) > 0 {
		number, wireType, bytes := protowire.ConsumeTag(payload)
		payload = payload[bytes:] // readLines has been here: the payload is sound.
		if wireType == protowire.BytesType && (number == 10 || number == 12) {
			key, _ := protowire.ConsumeBytes(payload)
			account, err := s.account(key)
			if err != nil {
				return moves, err
			}
			if number == 12 {
				moves = append(moves, move{kind: kindOrderPlaced, account: account, units: 1})
			} else {
				for i := range moves {
					moves[i].account = account
				}
			}
		}
		payload = payload[protowire.ConsumeFieldValue(number, wireType, payload):]
	}
	return moves, nil
}

// readPoolMove reads units that move from a SKU's centre to its pool's, or back when sign is -1.
func (s *stockApplier) readPoolMove(moves []move, as kind, pool string, payload []byte, sign int64) ([]move, error) {
	moves, err := s.readMove(moves, as, pool, payload, 1)
	if err != nil {
		return moves, err
	}
	sku, err := s.account([]byte(domain.HomeKey(pool)))
	if err != nil {
		return moves, err
	}
	units := sign * moves[0].units
	moves[0].units = units
	return append(moves, move{kind: as, account: sku, units: -units}), nil
}

// readLines reads the lines of a payload: messages in the given field, whose field 1 is a SKU and field 2 units.
func (s *stockApplier) readLines(moves []move, as kind, payload []byte, field protowire.Number) ([]move, error) {
	for len(payload) > 0 {
		number, wireType, tagBytes := protowire.ConsumeTag(payload)
		if tagBytes < 0 {
			return moves, protowire.ParseError(tagBytes)
		}
		payload = payload[tagBytes:]
		if number != field || wireType != protowire.BytesType {
			bytes := protowire.ConsumeFieldValue(number, wireType, payload)
			if bytes < 0 {
				return moves, protowire.ParseError(bytes)
			}
			payload = payload[bytes:]
			continue
		}
		line, bytes := protowire.ConsumeBytes(payload)
		if bytes < 0 {
			return moves, protowire.ParseError(bytes)
		}
		payload = payload[bytes:]
		sku, units, err := readLine(line)
		if err != nil {
			return moves, err
		}
		account, err := s.account(sku)
		if err != nil {
			return moves, err
		}
		moves = append(moves, move{account: account, kind: as, units: units})
	}
	return moves, nil
}

func readLine(line []byte) (sku []byte, units int64, err error) {
	for len(line) > 0 {
		number, wireType, bytes := protowire.ConsumeTag(line)
		if bytes < 0 {
			return nil, 0, protowire.ParseError(bytes)
		}
		line = line[bytes:]
		switch {
		case number == 1 && wireType == protowire.BytesType:
			sku, bytes = protowire.ConsumeBytes(line)
		case number == 2 && wireType == protowire.VarintType:
			var value uint64
			value, bytes = protowire.ConsumeVarint(line)
			units = int64(value)
		default:
			bytes = protowire.ConsumeFieldValue(number, wireType, line)
		}
		if bytes < 0 {
			return nil, 0, protowire.ParseError(bytes)
		}
		line = line[bytes:]
	}
	return sku, units, nil
}

// readMove reads the units of an event about one SKU off a field of its payload.
func (s *stockApplier) readMove(moves []move, as kind, sku string, payload []byte, field protowire.Number) ([]move, error) {
	var units int64
	for len(payload) > 0 {
		number, wireType, bytes := protowire.ConsumeTag(payload)
		if bytes < 0 {
			return moves, protowire.ParseError(bytes)
		}
		payload = payload[bytes:]
		if number == field && wireType == protowire.VarintType {
			var value uint64
			value, bytes = protowire.ConsumeVarint(payload)
			units = int64(value)
		} else {
			bytes = protowire.ConsumeFieldValue(number, wireType, payload)
		}
		if bytes < 0 {
			return moves, protowire.ParseError(bytes)
		}
		payload = payload[bytes:]
	}
	account, err := s.account([]byte(sku))
	if err != nil {
		return moves, err
	}
	return append(moves, move{account: account, kind: as, units: units}), nil
}

// account returns the account of a SKU, zero when nothing is known of it.
func (s *stockApplier) account(sku []byte) (*cachedAccount, error) {
	if cached, found := s.accounts[string(sku)]; found {
		return cached, nil
	}
	if len(sku) == 0 {
		return nil, errNoSKU
	}
	cached := &cachedAccount{sku: string(sku)}
	value, err := read(s.db, s.prefix.key(sku))
	switch {
	case err == nil:
		cached.account, err = readAccount(value)
		if err != nil {
			return nil, &storeFault{fmt.Errorf("stock of %s: %w", sku, err)}
		}
	case errors.Is(err, pebble.ErrNotFound):
		s.created = append(s.created, cached.sku)
	default:
		return nil, &storeFault{fmt.Errorf("read the stock of %s: %w", sku, err)}
	}
	s.accounts[cached.sku] = cached
	return cached, nil
}

// finish writes the accounts that the batch has changed, and notes their keys.
func (s *stockApplier) finish() error {
	var value [9 * binary.MaxVarintLen64]byte
	for _, cached := range s.dirty {
		if err := s.batch.Set(s.prefix.key([]byte(cached.sku)), cached.append(value[:0]), nil); err != nil {
			return err
		}
		cached.dirty = false
		s.written = noteKey(s.written, cached.sku)
	}
	s.dirty = s.dirty[:0]
	if len(s.accounts) > accountsMax {
		clear(s.accounts)
	}
	return nil
}
