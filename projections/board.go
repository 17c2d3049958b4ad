package projections

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weirhq/weir/domain"
)

// The view campaign-board counts what buyers did with a campaign's pool; where its units are is the stock view's to say:
//
//	t, pool → a Tally
//	b, length of the pool, pool, user id → how many orders of it the user has that were not given up, as a varint
//
// A user is in one lane, so buyers add up over lanes. Sums are kept in memory and written once a batch.

var boardProjection = Projection{
	Name: "campaign-board", Version: 1, space: spaceBoard, open: openBoard,
	key: func(c *change) string {
		if !movesPool(c.kind) {
			return ""
		}
		return c.event.AggregateID
	},
	describe:  describeBoard,
	print:     printBoard,
	partition: textPartition,
	touches:   touchedPools,
}

// The kinds of keys.
const (
	boardTally byte = 't'
	boardBuyer byte = 'b'
)

// Limits of what the view keeps.
const (
	// boardTalliesMax and boardBuyersMax bound what a lane's view keeps in memory between batches.
	boardTalliesMax = 1 << 12
	boardBuyersMax  = 1 << 14
	// tallySpan is the time of one count of a Tally's newest units, and tallySpansMax how many of them it keeps: a minute that
	// ends at any of them is counted whole.
	tallySpan     = 10 * time.Second
	tallySpansMax = 7
	// rateSpans are the spans of a minute.
	rateSpans = int64(time.Minute / tallySpan)
)

// movesPool reports whether an event of a kind may change a tally.
func movesPool(k kind) bool {
	switch k {
	case kindOrderPlaced, kindOrderCancelled, kindOrderExpired, kindPoolDrained:
		return true
	case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed,
		kindCampaignPut, kindPoolFilled, kindCouponPut, kindPaymentCaptured, kindReturnReceived, kindOrderChanged, kindUserErased, kindWebhookEndpoint,
		kindRequestAnswered:
	}
	return false
}

// A Tally is what buyers did with a campaign's pool. The zero value is that of a pool that nobody has ordered of.
type Tally struct {
	// Orders that were placed, and those of them that were cancelled or expired. Units of all that were placed.
	Orders, GivenUp, Units int64
	// Buyers are the users who have an order that was not given up.
	Buyers int64
	// First and Newest are the log times of the first order and of the newest event that left fewer units free: while none are
	// free, that is since when. Zero when there was none.
	First, Newest time.Time
	// spans are the units that were ordered in the newest spans of log time, oldest first; a span is its number since the Unix
	// epoch. Spans without an order are left out.
	spans []spanUnits
}

type spanUnits struct{ span, units int64 }

func spanOf(at time.Time) int64 { return at.UnixNano() / int64(tallySpan) }

// ordered counts an order. It makes the same tally in whichever order it is called.
func (t *Tally) ordered(at time.Time, units int64) {
	t.Orders++
	t.Units += units
	if t.First.IsZero() || at.Before(t.First) {
		t.First = at
	}
	t.took(at)
	t.addSpan(spanUnits{spanOf(at), units})
}

// took notes an event that left fewer units free.
func (t *Tally) took(at time.Time) {
	if at.After(t.Newest) {
		t.Newest = at
	}
}

func (t *Tally) addSpan(s spanUnits) {
	i, found := slices.BinarySearchFunc(t.spans, s, func(a, b spanUnits) int { return int(a.span - b.span) })
	if found {
		t.spans[i].units += s.units
	} else {
		t.spans = slices.Insert(t.spans, i, s)
	}
	oldest := t.spans[len(t.spans)-1].span - tallySpansMax
	t.spans = slices.DeleteFunc(t.spans, func(s spanUnits) bool { return s.span <= oldest })
}

// UnitsPerMinute returns the units that were ordered in the minute before a time, to a tallySpan. Where the log's time is ahead
// of it, it is the newest minute of the log.
func (t *Tally) UnitsPerMinute(now time.Time) int64 {
	last := spanOf(now)
	if len(t.spans) > 0 {
		last = max(last, t.spans[len(t.spans)-1].span)
	}
	var units int64
	for _, s := range t.spans {
		if s.span > last-rateSpans {
			units += s.units
		}
	}
	return units
}

// add adds the tally of another lane.
func (t *Tally) add(other *Tally) {
	t.Orders, t.GivenUp, t.Units, t.Buyers = t.Orders+other.Orders, t.GivenUp+other.GivenUp, t.Units+other.Units, t.Buyers+other.Buyers
	if t.First.IsZero() || !other.First.IsZero() && other.First.Before(t.First) {
		t.First = other.First
	}
	t.took(other.Newest)
	for _, s := range other.spans {
		t.addSpan(s)
	}
}

// append appends the tally as readTally reads it.
func (t *Tally) append(dst []byte) []byte {
	for _, number := range [...]int64{t.Orders, t.GivenUp, t.Units, t.Buyers, nanoOf(t.First), nanoOf(t.Newest)} {
		dst = binary.AppendVarint(dst, number)
	}
	for _, s := range t.spans {
		dst = binary.AppendVarint(binary.AppendVarint(dst, s.span), s.units)
	}
	return dst
}

// nanoOf returns nanoseconds since the Unix epoch, 0 for the zero time.
func nanoOf(at time.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return at.UnixNano()
}

func timeOfNano(nano int64) time.Time {
	if nano == 0 {
		return time.Time{}
	}
	return time.Unix(0, nano).UTC()
}

// errBoardDamaged says that a key or value is not what boardApplier wrote.
var errBoardDamaged = errors.New("the view of the campaign board is damaged")

// readTally reads a lane's tally; nothing is the zero one.
func readTally(value []byte) (t Tally, err error) {
	if len(value) == 0 {
		return t, nil
	}
	r := entryReader{rest: value}
	t.Orders, t.GivenUp, t.Units, t.Buyers = r.varint(), r.varint(), r.varint(), r.varint()
	t.First, t.Newest = timeOfNano(r.varint()), timeOfNano(r.varint())
	for len(r.rest) > 0 && !r.failed {
		t.spans = append(t.spans, spanUnits{r.varint(), r.varint()})
	}
	if r.failed {
		return Tally{}, errBoardDamaged
	}
	return t, nil
}

// SumTallies adds up what the lanes know of a pool, as Snapshot.Tally returned it.
func SumTallies(pool string, tallies [][]byte) (sum Tally, err error) {
	for lane, value := range tallies {
		t, err := readTally(value)
		if err != nil {
			return Tally{}, fmt.Errorf("tally of %s in lane %d: %w", pool, lane, err)
		}
		sum.add(&t)
	}
	return sum, nil
}

func tallyKey(pool string) []byte { return append([]byte{boardTally}, pool...) }

func buyerKey(pool, user string) []byte {
	key := make([]byte, 0, 2+binary.MaxVarintLen64+len(pool)+len(user))
	key = binary.AppendUvarint(append(key, boardBuyer), uint64(len(pool)))
	return append(append(key, pool...), user...)
}

func describeBoard(suffix []byte) string {
	switch {
	case len(suffix) > 1 && suffix[0] == boardTally:
		return "pool " + string(suffix[1:])
	case len(suffix) > 1 && suffix[0] == boardBuyer:
		r := entryReader{rest: suffix[1:]}
		if pool := r.bytes(); !r.failed {
			return fmt.Sprintf("buyer %s of pool %s", r.rest, pool)
		}
	}
	return fmt.Sprintf("key %x", suffix)
}

func printBoard(suffix, value []byte) (string, error) {
	if len(suffix) > 0 && suffix[0] == boardBuyer {
		orders, size := binary.Varint(value)
		if size != len(value) || size == 0 {
			return "", errBoardDamaged
		}
		return fmt.Sprintf("%d orders", orders), nil
	}
	t, err := readTally(value)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%d orders of %d units, %d given up, %d buyers", t.Orders, t.Units, t.GivenUp, t.Buyers)
	if !t.Newest.IsZero() {
		text += ", the newest at " + t.Newest.Format(time.RFC3339Nano)
	}
	for _, s := range t.spans {
		text += fmt.Sprintf(", %d from %s", s.units, time.Unix(0, s.span*int64(tallySpan)).UTC().Format(time.TimeOnly))
	}
	return text, nil
}

// A poolMove is what an event says of a campaign's pool; the pool is empty when it says nothing of one.
type poolMove struct {
	pool  []byte
	units int64
}

// poolMoveOf reads off an event which campaign's pool it is about. Fields are read by number, as the stock view does.
func poolMoveOf(c *change) (m poolMove, err error) {
	switch c.kind {
	case kindPoolDrained:
		if domain.CampaignOf(c.event.AggregateID) != "" {
			m.pool = []byte(c.event.AggregateID)
		}
	case kindOrderPlaced:
		err = eachField(c.event.Payload, func(number protowire.Number, value []byte) error {
			switch number {
			case 1:
				sku, units, err := readLine(value)
				if err == nil && len(sku) == 0 {
					err = errNoSKU
				}
				m.units += units
				return err
			case 10:
				m.pool = value
			}
			return nil
		})
	case kindOrderExpired:
		err = m.released(c, 1)
	case kindOrderCancelled:
		err = errors.Join(m.released(c, 3), m.released(c, 4))
	case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed,
		kindCampaignPut, kindPoolFilled, kindCouponPut, kindPaymentCaptured, kindReturnReceived, kindOrderChanged, kindUserErased, kindWebhookEndpoint,
		kindRequestAnswered:
	}
	return m, err
}

// released reads the campaign's pool off the accounts that an order gave units back to: an order takes of one at most.
func (m *poolMove) released(c *change, field protowire.Number) error {
	return eachField(c.event.Payload, func(number protowire.Number, value []byte) error {
		if number != field {
			return nil
		}
		key, units, err := readLine(value)
		if err == nil && bytes.IndexByte(key, '@') >= 0 && domain.CampaignOf(string(key)) != "" {
			m.pool, m.units = key, m.units+units
		}
		return err
	})
}

// touchedPools are the pools whose tallies an event changes.
func touchedPools(_ *view, c *change) ([]string, bool) {
	m, err := poolMoveOf(c)
	if len(m.pool) == 0 {
		return nil, err == nil
	}
	return []string{string(m.pool)}, err == nil
}

// boardApplier counts orders by pool.
type boardApplier struct {
	*view
	tallies map[string]*cachedTally
	dirty   []*cachedTally
	buyers  map[string]*cachedBuyer // by key, less its prefix
	changed []*cachedBuyer
}

type cachedTally struct {
	pool string
	Tally
	dirty bool
}

type cachedBuyer struct {
	key    []byte
	orders int64
	// known says that the store has the buyer, as of the batch before.
	known, dirty bool
}

func openBoard(v *view) (applier, error) {
	return &boardApplier{view: v, tallies: make(map[string]*cachedTally), buyers: make(map[string]*cachedBuyer)}, nil
}

func (a *boardApplier) apply(c *change) error {
	m, err := poolMoveOf(c)
	if err != nil || len(m.pool) == 0 {
		return err
	}
	tally, err := a.tally(m.pool)
	if err != nil {
		return err
	}
	if c.kind == kindPoolDrained {
		tally.took(c.at)
		a.dirt(tally)
		return nil
	}
	buyer, err := a.buyer(tally.pool, c.event.UserID)
	if err != nil {
		return err
	}
	if c.kind == kindOrderPlaced {
		tally.ordered(c.at, m.units)
		if buyer.orders++; buyer.orders == 1 {
			tally.Buyers++
		}
	} else {
		if buyer.orders == 0 {
			return fmt.Errorf("user %.64q has no order of %s to give up", c.event.UserID, tally.pool)
		}
		tally.GivenUp++
		if buyer.orders--; buyer.orders == 0 {
			tally.Buyers--
		}
	}
	a.dirt(tally)
	if !buyer.dirty {
		buyer.dirty = true
		a.changed = append(a.changed, buyer)
	}
	return nil
}

func (a *boardApplier) dirt(tally *cachedTally) {
	if !tally.dirty {
		tally.dirty = true
		a.dirty = append(a.dirty, tally)
	}
}

// tally returns a pool's tally, zero when nothing is known of it.
func (a *boardApplier) tally(pool []byte) (*cachedTally, error) {
	if cached, found := a.tallies[string(pool)]; found {
		return cached, nil
	}
	cached := &cachedTally{pool: string(pool)}
	value, err := read(a.db, a.prefix.key(tallyKey(cached.pool)))
	if err != nil && !errors.Is(err, pebble.ErrNotFound) {
		return nil, &storeFault{fmt.Errorf("read the tally of %s: %w", pool, err)}
	}
	if cached.Tally, err = readTally(value); err != nil {
		return nil, &storeFault{fmt.Errorf("tally of %s: %w", pool, err)}
	}
	a.tallies[cached.pool] = cached
	return cached, nil
}

// buyer returns what is known of a user who orders of a pool.
func (a *boardApplier) buyer(pool, user string) (*cachedBuyer, error) {
	key := buyerKey(pool, user)
	if cached, found := a.buyers[string(key)]; found {
		return cached, nil
	}
	cached := &cachedBuyer{key: key}
	value, err := read(a.db, a.prefix.key(key))
	switch {
	case err == nil:
		var size int
		if cached.orders, size = binary.Varint(value); size <= 0 {
			return nil, &storeFault{errBoardDamaged}
		}
		cached.known = true
	case !errors.Is(err, pebble.ErrNotFound):
		return nil, &storeFault{fmt.Errorf("read a buyer of %s: %w", pool, err)}
	}
	a.buyers[string(key)] = cached
	return cached, nil
}

// finish writes the sums that the batch has changed. A user without an order is no buyer, and has no key.
func (a *boardApplier) finish() error {
	for _, cached := range a.dirty {
		if err := a.batch.Set(a.prefix.key(tallyKey(cached.pool)), cached.append(nil), nil); err != nil {
			return err
		}
		cached.dirty = false
	}
	for _, buyer := range a.changed {
		var err error
		switch {
		case buyer.orders > 0:
			err = a.batch.Set(a.prefix.key(buyer.key), binary.AppendVarint(nil, buyer.orders), nil)
		case buyer.known:
			err = a.batch.Delete(a.prefix.key(buyer.key), nil)
		}
		if err != nil {
			return err
		}
		buyer.dirty, buyer.known = false, buyer.orders > 0
	}
	a.dirty, a.changed = a.dirty[:0], a.changed[:0]
	if len(a.tallies) > boardTalliesMax {
		clear(a.tallies)
	}
	if len(a.buyers) > boardBuyersMax {
		clear(a.buyers)
	}
	return nil
}

// A BoardRow is a campaign on the board: its terms, where its units are, and what buyers did.
type BoardRow struct {
	CampaignView
	Tally
	// Rate is the units that were ordered in the minute before the board was read.
	Rate int64
	// SoldOutAt is the log time since which nothing remains; zero while something does.
	SoldOutAt time.Time
}

// NewBoardRow puts together what the views say of a campaign at a time.
func NewBoardRow(campaign CampaignView, tally Tally, now time.Time) BoardRow {
	row := BoardRow{CampaignView: campaign, Tally: tally, Rate: tally.UnitsPerMinute(now)}
	if campaign.Stock.Remaining() == 0 {
		row.SoldOutAt = tally.Newest
	}
	return row
}

// A BoardQuery asks for a page of the campaign board.
type BoardQuery struct {
	// CampaignID leaves other campaigns out, unless it is empty.
	CampaignID string
	// Now is the time that the rate is of.
	Now time.Time
	// PageSize is at most CampaignsPageMax; 0 means CampaignsPageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first. It belongs to its CampaignID.
	PageToken string
}

// A BoardPage is a page of the board, by id and SKU.
type BoardPage struct {
	Rows []BoardRow
	// Next is the token of the next page, empty at the end.
	Next string
}

// Board returns a page of the campaign board, over all lanes: of each campaign what is left, reserved and sold, who ordered, and how
// fast. A campaign that there is not is ErrNotFound, or ErrBehind as with Order. Its freshness is that of the lane that is furthest behind.
func (v *Views) Board(ctx context.Context, query BoardQuery, min Min) (page BoardPage, fresh Freshness, err error) {
	keys := keysOf{name: boardProjection.Name, projection: &campaignsProjection, with: []*Projection{&stockProjection, &boardProjection}}
	if query.CampaignID != "" {
		keys.within = query.CampaignID + "@"
	}
	read := func(min Min) (err error) {
		page = BoardPage{}
		fresh, err = v.readPage(ctx, keys, KeysQuery{PageSize: query.PageSize, PageToken: query.PageToken}, min,
			func(key string, lane uint32, value []byte) error {
				row, err := v.boardRow(campaignKey(key), lane, value, query.Now)
				page.Rows = append(page.Rows, row)
				return err
			}, &page.Next)
		return err
	}
	if query.CampaignID == "" || query.PageToken != "" {
		err = read(min)
		return page, fresh, err
	}
	of := append([]*Projection{keys.projection}, keys.with...)
	home := v.runners[v.furthestBehind(of...).Lane] // It may be in any lane: none may have it that has not caught up.
	waited, err := v.readKey(ctx, home, min, func() error {
		if err := read(Min{}); err != nil || len(page.Rows) > 0 {
			return err
		}
		return ErrNotFound
	}, of...)
	return page, fresh.waited(waited.State == StateFresh), parkedError(err, fresh.State == StateParked)
}

// boardRow reads the stock and the tally of a campaign in one snapshot: what is sold out has its newest order.
func (v *Views) boardRow(pool string, lane uint32, value []byte, now time.Time) (row BoardRow, err error) {
	campaign, err := decodeCampaign(pool, lane, value)
	if err != nil {
		return BoardRow{}, err
	}
	accountsAt, talliesAt := make([]prefix, len(v.runners)), make([]prefix, len(v.runners))
	for i, r := range v.runners {
		accountsAt[i], talliesAt[i] = r.prefix(&stockProjection), r.prefix(&boardProjection)
	}
	snapshot := v.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	accounts, err := readEach(snapshot, accountsAt, []byte(pool))
	if err != nil {
		return BoardRow{}, fmt.Errorf("read the stock of %s: %w", pool, err)
	}
	tallies, err := readEach(snapshot, talliesAt, tallyKey(pool))
	if err != nil {
		return BoardRow{}, fmt.Errorf("read the tally of %s: %w", pool, err)
	}
	if campaign.Stock, _, err = SumAccounts(pool, accounts); err != nil {
		return BoardRow{}, err
	}
	tally, err := SumTallies(pool, tallies)
	return NewBoardRow(campaign, tally, now), err
}

// readEach reads a key under each prefix, nil where it is not there.
func readEach(from pebble.Reader, prefixes []prefix, suffix []byte) ([][]byte, error) {
	values := make([][]byte, len(prefixes))
	for i, p := range prefixes {
		value, err := read(from, p.key(suffix))
		if err != nil && !errors.Is(err, pebble.ErrNotFound) {
			return nil, err
		}
		values[i] = value
	}
	return values, nil
}

// SortBoard sorts rows as Board lists them.
func SortBoard(rows []BoardRow) {
	slices.SortFunc(rows, func(a, b BoardRow) int {
		return strings.Compare(campaignKey(a.Campaign.Pool), campaignKey(b.Campaign.Pool))
	})
}
