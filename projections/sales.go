package projections

import (
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
	"github.com/weirhq/weir/domain/stored"
)

// The view sales counts what was ordered, paid and given back, by minute of the log's time:
//
//	m, minute since the Unix epoch (4 bytes), length of the SKU, SKU, currency → the sums of a Sales, as varints
//	o, order id, 16 bytes → currency and lines of the order: what its later events do not say
//	s, payment id → nothing: its money was stray, no order was paid with it
//
// The empty SKU is all of them together. Rows are added up in memory and written once a batch, in the order of time.

var salesProjection = Projection{
	Name: "sales", Version: 1, space: spaceSales, open: openSales,
	key: func(c *change) string {
		if !isSale(c) {
			return ""
		}
		return c.event.AggregateID
	},
	describe:  describeSales,
	print:     printSales,
	partition: textPartition,
}

// The kinds of keys.
const (
	salesMinute byte = 'm'
	salesOrder  byte = 'o'
	salesStray  byte = 's'
)

// minuteBytes is the length of a minute in a key.
const minuteBytes = 4

// salesRowsMax and salesOrdersMax bound the rows and orders that a lane's view keeps in memory between batches.
const (
	salesRowsMax   = 1 << 14
	salesOrdersMax = 1 << 14
)

// salesNotesBytes is how much room is made at a time for the lines of orders.
const salesNotesBytes = 16 << 10

// isSale reports whether the view counts an event, or remembers what it says.
func isSale(c *change) bool {
	switch c.kind {
	case kindOrderPlaced, kindOrderCancelled, kindOrderExpired, kindPaymentCaptured:
		return true
	case kindOrderChanged:
		return c.event.Type == stored.TypePaymentRefunded || c.event.Type == stored.TypeStrayPaymentFound
	case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed,
		kindCampaignPut, kindPoolFilled, kindPoolDrained, kindCouponPut, kindReturnReceived, kindUserErased, kindWebhookEndpoint, kindRequestAnswered:
	}
	return false
}

// A SalesCount counts orders, or lines of a SKU.
type SalesCount struct {
	// Orders that have a line of it.
	Orders int64
	// Units of the lines, and what is to be paid for them in minor units.
	Units, Minor int64
}

// Sales is what happened in some time, of one SKU or all, in one currency.
type Sales struct {
	// Placed orders; Paid ones, whose money was captured; Cancelled and Expired ones, paid before or not.
	Placed, Paid, Cancelled, Expired SalesCount
	// Refunds that went back to who had paid for an order, and RefundedMinor, their sum. They are of orders: of a single SKU
	// there are none.
	Refunds, RefundedMinor int64
}

func (s *Sales) fields() [14]*int64 {
	return [...]*int64{
		&s.Placed.Orders, &s.Placed.Units, &s.Placed.Minor, &s.Paid.Orders, &s.Paid.Units, &s.Paid.Minor,
		&s.Cancelled.Orders, &s.Cancelled.Units, &s.Cancelled.Minor, &s.Expired.Orders, &s.Expired.Units, &s.Expired.Minor,
		&s.Refunds, &s.RefundedMinor,
	}
}

func (s *Sales) add(other *Sales) {
	for i, field := range s.fields() {
		*field += *other.fields()[i]
	}
}

func (s *Sales) append(dst []byte) []byte {
	for _, field := range s.fields() {
		dst = binary.AppendVarint(dst, *field)
	}
	return dst
}

// errSalesDamaged says that a key or value is not what salesApplier wrote.
var errSalesDamaged = errors.New("the view of sales is damaged")

func readSales(value []byte) (Sales, error) {
	var s Sales
	for _, field := range s.fields() {
		sum, size := binary.Varint(value)
		if size <= 0 {
			return Sales{}, errSalesDamaged
		}
		*field, value = sum, value[size:]
	}
	return s, nil
}

// salesKey is the key of a row, less its prefix.
func salesKey(dst []byte, minute uint32, sku, currency []byte) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, salesMinute), minute)
	dst = append(binary.AppendUvarint(dst, uint64(len(sku))), sku...)
	return append(dst, currency...)
}

// readSalesKey reads a row's key.
func readSalesKey(suffix []byte) (minute uint32, sku, currency string, err error) {
	if len(suffix) < 1+minuteBytes || suffix[0] != salesMinute {
		return 0, "", "", errSalesDamaged
	}
	r := entryReader{rest: suffix[1+minuteBytes:]}
	sku = string(r.bytes())
	if r.failed {
		return 0, "", "", errSalesDamaged
	}
	return binary.BigEndian.Uint32(suffix[1:]), sku, string(r.rest), nil
}

func describeSales(suffix []byte) string {
	if minute, sku, currency, err := readSalesKey(suffix); err == nil {
		if sku == "" {
			sku = "all"
		}
		return fmt.Sprintf("%s in %s at %s", sku, currency, time.Unix(int64(minute)*60, 0).UTC().Format(time.RFC3339))
	}
	switch {
	case len(suffix) == 1+len(domain.OrderID{}) && suffix[0] == salesOrder:
		return "order " + domain.OrderID(suffix[1:]).String()
	case len(suffix) > 1 && suffix[0] == salesStray:
		return "payment " + string(suffix[1:])
	}
	return fmt.Sprintf("key %x", suffix)
}

func printSales(suffix, value []byte) (string, error) {
	switch {
	case len(suffix) > 0 && suffix[0] == salesStray:
		return "stray", nil
	case len(suffix) > 0 && suffix[0] == salesOrder:
		currency, lines, err := readSalesLines(nil, value)
		if err != nil {
			return "", err
		}
		var texts []string
		for _, l := range lines {
			texts = append(texts, fmt.Sprintf("%s=%d for %d", l.sku, l.units, l.minor))
		}
		return fmt.Sprintf("%s in %s", strings.Join(texts, ", "), currency), nil
	}
	s, err := readSales(value)
	if err != nil {
		return "", err
	}
	var texts []string
	for _, c := range []struct {
		name  string
		count SalesCount
	}{{"placed", s.Placed}, {"paid", s.Paid}, {"cancelled", s.Cancelled}, {"expired", s.Expired}} {
		if c.count != (SalesCount{}) {
			texts = append(texts, fmt.Sprintf("%s %d of %d for %d", c.name, c.count.Orders, c.count.Units, c.count.Minor))
		}
	}
	if s.Refunds != 0 {
		texts = append(texts, fmt.Sprintf("refunded %d for %d", s.Refunds, s.RefundedMinor))
	}
	return strings.Join(texts, ", "), nil
}

// A salesLine is what the view knows of a line of an order.
type salesLine struct {
	sku          []byte
	units, minor int64
}

func appendSalesLines(dst, currency []byte, lines []salesLine) []byte {
	dst = append(binary.AppendUvarint(dst, uint64(len(currency))), currency...)
	for _, l := range lines {
		dst = append(binary.AppendUvarint(dst, uint64(len(l.sku))), l.sku...)
		dst = binary.AppendVarint(binary.AppendVarint(dst, l.units), l.minor)
	}
	return dst
}

// readSalesLines reads what appendSalesLines wrote; the lines are appended to dst.
func readSalesLines(dst []salesLine, value []byte) (currency []byte, lines []salesLine, err error) {
	r := entryReader{rest: value}
	currency = r.bytes()
	for len(r.rest) > 0 && !r.failed {
		dst = append(dst, salesLine{sku: r.bytes(), units: r.varint(), minor: r.varint()})
	}
	if r.failed {
		return nil, dst, errSalesDamaged
	}
	return currency, dst, nil
}

func (r *entryReader) varint() int64 {
	value, size := binary.Varint(r.rest)
	if size <= 0 {
		r.failed = true
		return 0
	}
	r.take(uint64(size))
	return value
}

// salesApplier adds up what events sell and give back.
type salesApplier struct {
	*view
	rows  map[string]*salesRow
	dirty []*salesRow
	all   *salesRow // of all SKUs, the one that was counted in last; nil for none
	// orders are the lines of orders, as the view keeps them, those of placed ones in notes. placedSince are those that are not among
	// them yet: most orders of a log that is made up are placed and not looked up by the same batch.
	orders      map[domain.OrderID][]byte
	placedSince []salesNote
	notes       []byte
	// stray are payments that the batch found to be stray.
	stray map[string]struct{}
	// Room for what an event says, and for a key.
	lines    []salesLine
	currency []byte
	touched  []*salesRow
	room     []byte
}

// A salesNote is the lines of an order that was placed, as the view keeps them.
type salesNote struct {
	order domain.OrderID
	lines []byte
}

type salesRow struct {
	key string
	Sales
	dirty bool
}

func openSales(v *view) (applier, error) {
	return &salesApplier{view: v, rows: make(map[string]*salesRow), orders: make(map[domain.OrderID][]byte), stray: make(map[string]struct{})}, nil
}

func (a *salesApplier) apply(c *change) error {
	if !isSale(c) {
		return nil
	}
	switch c.kind {
	case kindOrderPlaced:
		return a.placed(c)
	case kindPaymentCaptured:
		return a.count(c, func(s *Sales) *SalesCount { return &s.Paid })
	case kindOrderCancelled:
		return a.count(c, func(s *Sales) *SalesCount { return &s.Cancelled })
	case kindOrderExpired:
		return a.count(c, func(s *Sales) *SalesCount { return &s.Expired })
	case kindOrderChanged:
		event, err := stored.Decode(c.event.Type, c.event.Version, c.event.AggregateID, c.event.UserID, c.event.Payload)
		if err != nil {
			return err
		}
		switch e := any(event).(type) { // None but these come here, so the set is not the closed one of all events.
		case domain.StrayPaymentFound:
			a.stray[e.PaymentID] = struct{}{}
			return a.batch.Set(a.prefix.key(append([]byte{salesStray}, e.PaymentID...)), nil, nil)
		case domain.PaymentRefunded:
			return a.refunded(c, e)
		}
	case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed,
		kindCampaignPut, kindPoolFilled, kindPoolDrained, kindCouponPut, kindReturnReceived, kindUserErased, kindWebhookEndpoint, kindRequestAnswered:
	}
	return nil
}

// placed notes an order's lines and counts them. It reads them by field number, as the stock view does.
func (a *salesApplier) placed(c *change) error {
	a.lines, a.currency = a.lines[:0], nil
	err := eachField(c.event.Payload, func(number protowire.Number, value []byte) error {
		switch number {
		case 1:
			line, err := readSalesLine(value)
			a.lines = append(a.lines, line)
			return err
		case 2:
			a.currency = value
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.add(c, func(s *Sales) *SalesCount { return &s.Placed }); err != nil {
		return err
	}
	a.room = appendSalesLines(a.room[:0], a.currency, a.lines)
	if cap(a.notes)-len(a.notes) < len(a.room) {
		a.notes = make([]byte, 0, max(salesNotesBytes, len(a.room)))
	}
	from := len(a.notes)
	a.notes = append(a.notes, a.room...)
	a.placedSince = append(a.placedSince, salesNote{c.order, a.notes[from:len(a.notes):len(a.notes)]})
	op := a.batch.SetDeferred(prefixBytes+1+len(c.order), len(a.room))
	copy(op.Key, a.prefix[:])
	op.Key[prefixBytes] = salesOrder
	copy(op.Key[prefixBytes+1:], c.order[:])
	copy(op.Value, a.room)
	return op.Finish()
}

// readSalesLine reads a line of an OrderPlaced. What is to be paid for it is domain.Line.Payable.
func readSalesLine(data []byte) (salesLine, error) {
	var line domain.Line
	var sku []byte
	for len(data) > 0 {
		number, wireType, size := protowire.ConsumeTag(data)
		if size < 0 {
			return salesLine{}, protowire.ParseError(size)
		}
		data = data[size:]
		var text []byte
		var value uint64
		switch wireType {
		case protowire.BytesType:
			text, size = protowire.ConsumeBytes(data)
		case protowire.VarintType:
			value, size = protowire.ConsumeVarint(data)
		default:
			size = protowire.ConsumeFieldValue(number, wireType, data)
		}
		if size < 0 {
			return salesLine{}, protowire.ParseError(size)
		}
		data = data[size:]
		switch number {
		case 1:
			sku = text
		case 2:
			line.Units = int64(value)
		case 4:
			line.PriceMinor = int64(value)
		case 5:
			line.DiscountMinor = int64(value)
		case 6:
			line.TaxMinor = int64(value)
		case 8:
			line.Tax.Included = value != 0
		}
	}
	if len(sku) == 0 {
		return salesLine{}, errNoSKU
	}
	return salesLine{sku: sku, units: line.Units, minor: line.Payable()}, nil
}

// count counts the lines of an order that was placed before.
func (a *salesApplier) count(c *change, field func(*Sales) *SalesCount) error {
	for _, placed := range a.placedSince {
		a.orders[placed.order] = placed.lines
	}
	a.forgetPlaced()
	note, known := a.orders[c.order]
	if !known {
		var err error
		note, err = read(a.db, a.prefix.key(append([]byte{salesOrder}, c.order[:]...)))
		if errors.Is(err, pebble.ErrNotFound) {
			return fmt.Errorf("order %s was not placed", c.order)
		}
		if err != nil {
			return &storeFault{fmt.Errorf("read the lines of order %s: %w", c.order, err)}
		}
		a.orders[c.order] = note
	}
	var err error
	if a.currency, a.lines, err = readSalesLines(a.lines[:0], note); err != nil {
		return &storeFault{fmt.Errorf("order %s: %w", c.order, err)}
	}
	return a.add(c, field)
}

// add counts the lines, each for its SKU and all for the order.
func (a *salesApplier) add(c *change, field func(*Sales) *SalesCount) error {
	all, err := a.row(c.at, nil, a.currency)
	if err != nil {
		return err
	}
	a.touched = a.touched[:0]
	for i := range a.lines {
		row, err := a.row(c.at, a.lines[i].sku, a.currency)
		if err != nil {
			return err
		}
		a.touched = append(a.touched, row)
	}
	var sum salesLine
	for i := range a.lines { // Nothing fails from here on.
		l := &a.lines[i]
		sum.units, sum.minor = sum.units+l.units, sum.minor+l.minor
		a.touch(a.touched[i], field, l)
	}
	a.touch(all, field, &sum)
	return nil
}

func (a *salesApplier) touch(row *salesRow, field func(*Sales) *SalesCount, l *salesLine) {
	count := field(&row.Sales)
	count.Orders, count.Units, count.Minor = count.Orders+1, count.Units+l.units, count.Minor+l.minor
	a.dirt(row)
}

func (a *salesApplier) dirt(row *salesRow) {
	if !row.dirty {
		row.dirty = true
		a.dirty = append(a.dirty, row)
	}
}

// refunded counts money that went back, unless no order was paid with it.
func (a *salesApplier) refunded(c *change, e domain.PaymentRefunded) error {
	payment := refundPaymentID(e.RefundID)
	if _, stray := a.stray[payment]; stray {
		return nil
	}
	_, err := read(a.db, a.prefix.key(append([]byte{salesStray}, payment...)))
	if err == nil {
		return nil
	}
	if !errors.Is(err, pebble.ErrNotFound) {
		return &storeFault{fmt.Errorf("read whether payment %s was stray: %w", payment, err)}
	}
	row, err := a.row(c.at, nil, []byte(e.Amount.Currency))
	if err != nil {
		return err
	}
	row.Refunds++
	row.RefundedMinor += e.Amount.Minor
	a.dirt(row)
	return nil
}

// row returns the row of a minute.
func (a *salesApplier) row(at time.Time, sku, currency []byte) (*salesRow, error) {
	a.room = salesKey(a.room[:0], minuteOf(at), sku, currency)
	key := a.room
	if len(sku) == 0 && a.all != nil && a.all.key == string(key) {
		return a.all, nil
	}
	if row, found := a.rows[string(key)]; found {
		if len(sku) == 0 {
			a.all = row
		}
		return row, nil
	}
	row := &salesRow{key: string(key)}
	value, err := read(a.db, a.prefix.key(key))
	switch {
	case err == nil:
		if row.Sales, err = readSales(value); err != nil {
			return nil, &storeFault{err}
		}
	case !errors.Is(err, pebble.ErrNotFound):
		return nil, &storeFault{fmt.Errorf("read %s of the sales: %w", describeSales(key), err)}
	}
	a.rows[row.key] = row
	return row, nil
}

func minuteOf(at time.Time) uint32 { return uint32(min(max(at.Unix()/60, 0), 1<<32-1)) }

// finish writes the rows that the batch has changed.
func (a *salesApplier) finish() error {
	var value [14 * binary.MaxVarintLen64]byte
	for _, row := range a.dirty {
		if err := a.batch.Set(a.prefix.key([]byte(row.key)), row.append(value[:0]), nil); err != nil {
			return err
		}
		row.dirty = false
	}
	a.dirty = a.dirty[:0]
	clear(a.stray) // The store has them when apply is called again.
	if len(a.rows) > salesRowsMax {
		clear(a.rows)
		a.all = nil
	}
	if len(a.orders)+len(a.placedSince) > salesOrdersMax {
		clear(a.orders)
		a.forgetPlaced()
	}
	return nil
}

// forgetPlaced empties the list of orders that were placed since.
func (a *salesApplier) forgetPlaced() {
	clear(a.placedSince)
	a.placedSince = a.placedSince[:0]
}

// A SalesQuery asks for what was sold in some time.
type SalesQuery struct {
	// SKU to count; empty counts all.
	SKU string
	// From and To are log times: From counts, To does not. Both are moved back to the beginning of a Step.
	From, To time.Time
	// Step is how much time one row of the answer is: a minute, an hour or a day, of UTC.
	Step time.Duration
}

// SalesRow is what was sold in a step.
type SalesRow struct {
	// Start of the step.
	Start    time.Time
	Currency string
	Sales
}

// salesStepsMax bounds the time that a query covers, by its step.
var salesStepsMax = map[time.Duration]int64{time.Minute: 24 * 60, time.Hour: 31 * 24, 24 * time.Hour: 62}

// ErrSalesRange says that a query covers no time, or more than one answer does.
var ErrSalesRange = errors.New("the time is not one that an answer covers")

// Sales returns what was sold over all lanes, a row for each step and currency in which anything was, in the order of time. Its
// freshness is that of the lane that is furthest behind. A query that covers no time or too much is ErrSalesRange.
func (v *Views) Sales(ctx context.Context, query SalesQuery, min Min) ([]SalesRow, Freshness, error) {
	from, to := query.From.UTC().Truncate(query.Step), query.To.UTC().Truncate(query.Step)
	if to.Before(query.To) {
		to = to.Add(query.Step) // The step that To is in counts.
	}
	if steps := int64(to.Sub(from) / max(query.Step, 1)); steps <= 0 || steps > salesStepsMax[query.Step] {
		return nil, Freshness{}, ErrSalesRange
	}
	reached, err := v.await(ctx, min, &salesProjection)
	if err != nil {
		return nil, Freshness{}, err
	}
	fresh := v.furthestBehind(&salesProjection).waited(reached).parked(v.parksAny(&salesProjection))
	sums := map[SalesRow]*Sales{} // By start and currency.
	for _, r := range v.runners {
		if err := v.addSales(ctx, r, query, minuteOf(from), minuteOf(to), sums); err != nil {
			return nil, Freshness{}, fmt.Errorf("read the sales of lane %d: %w", r.lane, err)
		}
	}
	rows := make([]SalesRow, 0, len(sums))
	for row, sum := range sums {
		row.Sales = *sum
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b SalesRow) int {
		if at := a.Start.Compare(b.Start); at != 0 {
			return at
		}
		return strings.Compare(a.Currency, b.Currency)
	})
	return rows, fresh, nil
}

// addSales adds a lane's rows of a SKU from one minute to before another.
func (v *Views) addSales(ctx context.Context, r *Runner, query SalesQuery, from, to uint32, sums map[SalesRow]*Sales) (err error) {
	p := r.prefix(&salesProjection)
	entries, err := v.db.NewIterWithContext(ctx, &pebble.IterOptions{
		LowerBound: p.key(salesKey(nil, from, nil, nil)), UpperBound: p.key(salesKey(nil, to, nil, nil)),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for minute := from; minute < to; {
		// At most two seeks a minute: to the SKU, and to the next minute that has anything.
		found := entries.SeekGE(p.key(salesKey(nil, minute, []byte(query.SKU), nil)))
		if !found {
			return entries.Error()
		}
		for ; found; found = entries.Next() {
			at, sku, currency, err := readSalesKey(entries.Key()[prefixBytes:])
			if err != nil {
				return err
			}
			if at != minute || sku != query.SKU {
				if minute = at; at == minute && sku != query.SKU && !salesBefore(sku, query.SKU) {
					minute++
				}
				break
			}
			sales, err := readSales(entries.Value())
			if err != nil {
				return err
			}
			row := SalesRow{Start: time.Unix(int64(at)*60, 0).UTC().Truncate(query.Step), Currency: currency}
			if sums[row] == nil {
				sums[row] = new(Sales)
			}
			sums[row].add(&sales)
		}
		if !found {
			return entries.Error()
		}
	}
	return nil
}

// salesBefore reports whether a SKU's rows come before another's in a minute.
func salesBefore(a, b string) bool {
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}
