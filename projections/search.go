package projections

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// Orders are searched on their records, newest first: an order's id begins with the log time at which it was placed, so the
// view orders is in the order of time as it is. The view order-marks says where not to look:
//
//	mark, 1 byte; length of its value, the value; the complement of a second, 8 bytes → nothing
//	p; the complement of an order's id, 16 bytes → 1 byte, as orders-by-user has it of an order that has not ended
//
// A key says that an order of the lane that was placed in that second has the mark: a SKU, a campaign, or a type of event. Marks
// stay, so a mark is what an order must have to be what is looked for, and its record says whether it is. However many
// orders a second has, a mark is written once for them, and nearly in order.
//
// What waits for a payment has no event that others lack. It is listed by order: from when it was placed, or its payment failed,
// until a payment begins or it ends. An order that has ended may be listed, when its payment was declined, voided or found to
// be stray after that; no order is missing.

var orderMarksProjection = Projection{
	Name: "order-marks", Version: 3, space: spaceOrderMarks, open: openOrderMarks,
	key: func(c *change) string {
		if !isMarked(c) {
			return ""
		}
		return c.event.AggregateID
	},
	describe:  describeMark,
	print:     printMark,
	partition: textPartition,
}

// The marks.
const (
	markSKU      byte = 's'
	markCampaign byte = 'c'
	// markEvent has the code of the event's type as its value, as records have it.
	markEvent byte = 'e'
	// markPending has the order as its value.
	markPending byte = 'p'
)

// secondBytes is the length of a second in a key.
const secondBytes = 8

// marksMax bounds the keys that a lane's view remembers to have written: some seconds' of a thousand SKUs. More would be looked for in
// memory that no cache holds, and what is written once more costs as much.
const marksMax = 1 << 13

// isMarked reports whether an event gives its order a mark.
func isMarked(c *change) bool {
	switch c.kind {
	case kindOrderPlaced, kindOrderCancelled, kindOrderExpired, kindPaymentCaptured, kindReturnReceived:
		return true
	case kindOrderChanged:
		switch c.event.Type {
		case stored.TypePaymentStarted, stored.TypePaymentAuthorized, stored.TypePaymentRefunded, stored.TypePaymentBecameUnknown,
			stored.TypePaymentDeclined, stored.TypePaymentVoided, stored.TypeStrayPaymentFound, stored.TypeItemsShipped, stored.TypeShipmentDelivered:
			return true
		}
	case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed,
		kindCampaignPut, kindPoolFilled, kindPoolDrained, kindCouponPut, kindUserErased, kindWebhookEndpoint, kindRequestAnswered:
	}
	return false
}

// marksApplier marks seconds. A mark that is known to be there is not written again.
type marksApplier struct {
	*view
	// known are keys that are in the store or in the batch, less their prefix.
	known map[string]struct{}
	// marks of the event that is taken in; room is where they are.
	marks [][]byte
	room  []byte
}

func openOrderMarks(v *view) (applier, error) {
	return &marksApplier{view: v, known: make(map[string]struct{})}, nil
}

func (a *marksApplier) apply(c *change) error {
	if !isMarked(c) {
		return nil
	}
	a.marks, a.room = a.marks[:0], a.room[:0]
	switch {
	case c.kind == kindOrderPlaced:
		if err := a.markPlaced(c); err != nil {
			return err
		}
	case c.event.Type != stored.TypePaymentDeclined && c.event.Type != stored.TypePaymentVoided && c.event.Type != stored.TypeStrayPaymentFound:
		a.mark(c.order, markEvent, []byte{entryKind(c.event.Type)})
	}
	if err := a.list(c); err != nil {
		return err
	}
	for _, mark := range a.marks {
		if _, known := a.known[string(mark)]; known {
			continue
		}
		if len(a.known) >= marksMax {
			clear(a.known)
		}
		a.known[string(mark)] = struct{}{}
		if err := a.batch.Set(a.prefix.key(mark), nil, nil); err != nil {
			return err
		}
	}
	return nil
}

// list lists an order that waits for a payment from the event on, and takes one off that no longer does.
func (a *marksApplier) list(c *change) error {
	switch c.event.Type {
	case stored.TypeOrderPlaced, stored.TypePaymentDeclined, stored.TypePaymentVoided, stored.TypeStrayPaymentFound:
		op := a.batch.SetDeferred(prefixBytes+1+len(c.order), 1)
		appendComplement(append(append(op.Key[:0], a.prefix[:]...), markPending), c.order)
		op.Value[0] = byte(statusOpen)
		return op.Finish()
	case stored.TypePaymentStarted, stored.TypeOrderCancelled, stored.TypeOrderExpired:
		return a.batch.Delete(a.prefix.key(pendingKey(c.order)), nil)
	}
	return nil
}

func pendingKey(id domain.OrderID) []byte { return appendComplement([]byte{markPending}, id) }

func (a *marksApplier) finish() error { return nil }

// markPlaced reads the marks of an order that was placed off its payload, by field number as the stock view does.
func (a *marksApplier) markPlaced(c *change) error {
	return eachField(c.event.Payload, func(number protowire.Number, value []byte) error {
		switch number {
		case 1: // A line.
			sku, _, err := readLine(value)
			if err == nil && len(sku) == 0 {
				err = errNoSKU
			}
			if err == nil {
				a.mark(c.order, markSKU, sku)
			}
			return err
		case 10: // The pool.
			if campaign := domain.CampaignOf(string(value)); campaign != "" {
				a.mark(c.order, markCampaign, []byte(campaign))
			}
		}
		return nil
	})
}

// eachField calls f with every field of a message that is bytes, in their order.
func eachField(message []byte, f func(number protowire.Number, value []byte) error) error {
	for len(message) > 0 {
		number, wireType, size := protowire.ConsumeTag(message)
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		var value []byte
		if wireType == protowire.BytesType {
			value, size = protowire.ConsumeBytes(message)
		} else {
			size = protowire.ConsumeFieldValue(number, wireType, message)
		}
		if size < 0 {
			return protowire.ParseError(size)
		}
		message = message[size:]
		if wireType != protowire.BytesType {
			continue
		}
		if err := f(number, value); err != nil {
			return err
		}
	}
	return nil
}

func (a *marksApplier) mark(id domain.OrderID, mark byte, value []byte) {
	from := len(a.room)
	a.room = binary.BigEndian.AppendUint64(appendMark(a.room, mark, value), ^secondOf(id[:]))
	a.marks = append(a.marks, a.room[from:len(a.room):len(a.room)])
}

func appendMark(dst []byte, mark byte, value []byte) []byte {
	dst = binary.AppendUvarint(append(dst, mark), uint64(len(value)))
	return append(dst, value...)
}

// secondOf returns the second since the Unix epoch in which an order was placed whose id begins so.
func secondOf(id []byte) uint64 {
	var milli [8]byte
	copy(milli[2:], id[:min(len(id), 6)])
	return binary.BigEndian.Uint64(milli[:]) / 1000
}

func isPendingKey(suffix []byte) bool {
	return len(suffix) == 1+len(domain.OrderID{}) && suffix[0] == markPending
}

func printMark(suffix, value []byte) (string, error) {
	if isPendingKey(suffix) {
		return "waits for a payment", nil
	}
	return string(value), nil
}

// describeMark writes a key as people do.
func describeMark(suffix []byte) string {
	if isPendingKey(suffix) {
		return "order " + domain.OrderID(appendComplement(nil, domain.OrderID(suffix[1:]))).String()
	}
	if len(suffix) < secondBytes+2 {
		return fmt.Sprintf("key %x", suffix)
	}
	mark, rest := suffix[0], suffix[1:len(suffix)-secondBytes]
	second := ^binary.BigEndian.Uint64(suffix[len(suffix)-secondBytes:])
	r := entryReader{rest: rest}
	value := string(r.bytes())
	at := time.Unix(int64(second), 0).UTC().Format(time.RFC3339)
	switch {
	case r.failed || value == "":
		return fmt.Sprintf("key %x", suffix)
	case mark == markSKU:
		return "SKU " + value + " in orders of " + at
	case mark == markCampaign:
		return "campaign " + value + " in orders of " + at
	case int(value[0]) < len(entryTypes):
		return entryTypes[value[0]] + " in orders of " + at
	}
	return fmt.Sprintf("key %x", suffix)
}

// Limits of a search.
const (
	// searchSeeksMax bounds the places that are looked up for a page, over all lanes; a page may hold fewer orders than it has
	// room for.
	searchSeeksMax = 4000
	// searchSeeksMin is the least for each lane, however many there are: more than a lane needs to come a step further.
	searchSeeksMin = 16
)

// A SearchQuery asks for a page of orders, of all users. The zero value of a field asks for all.
type SearchQuery struct {
	Status  domain.OrderStatus
	Payment domain.PaymentState
	// From and To are log times at which an order was placed, to the millisecond: From counts, To does not.
	From, To time.Time
	// SKU that is in a line of the order, CampaignID at whose terms it was placed, UserID whose it is.
	SKU, CampaignID, UserID string
	// PageSize is at most OrdersPageMax; 0 means OrdersPageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first.
	PageToken string
	// seeksMax stands in for searchSeeksMax, 0 for that itself.
	seeksMax int
}

// binding is what a token of the query is bound to.
func (q *SearchQuery) binding() []string {
	milli := func(at time.Time) string {
		if at.IsZero() {
			return ""
		}
		return strconv.FormatInt(at.UnixMilli(), 10)
	}
	return []string{
		"search", strconv.Itoa(int(q.Status)), strconv.Itoa(int(q.Payment)), milli(q.From), milli(q.To), q.SKU, q.CampaignID, q.UserID,
	}
}

// matches reports whether an order is what the query asks for; when it was placed is not looked at.
func (q *SearchQuery) matches(order *domain.Order) bool {
	return (q.Status == 0 || order.Status == q.Status) &&
		(q.Payment == 0 || order.Payment == q.Payment) &&
		(q.CampaignID == "" || order.CampaignID() == q.CampaignID) &&
		(q.UserID == "" || order.UserID == q.UserID) &&
		(q.SKU == "" || slices.ContainsFunc(order.Lines, func(l domain.Line) bool { return l.SKU == q.SKU }))
}

// marks returns the marks, as appendMark has them, that every order must have that the query asks for.
func (q *SearchQuery) marks() [][]byte {
	var marks [][]byte
	if q.SKU != "" {
		marks = append(marks, appendMark(nil, markSKU, []byte(q.SKU)))
	}
	if q.CampaignID != "" {
		marks = append(marks, appendMark(nil, markCampaign, []byte(q.CampaignID)))
	}
	types := []string{eventOfStatus(q.Status), eventOfPayment(q.Payment)}
	slices.Sort(types)
	for _, typeName := range slices.Compact(types) {
		if typeName != "" {
			marks = append(marks, appendMark(nil, markEvent, []byte{entryKind(typeName)}))
		}
	}
	return marks
}

// eventOfStatus is a type of event that every order of a status has, "" when there is none that is marked.
func eventOfStatus(status domain.OrderStatus) string {
	switch status {
	case domain.StatusCancelled:
		return stored.TypeOrderCancelled
	case domain.StatusExpired:
		return stored.TypeOrderExpired
	case domain.StatusPaid:
		return stored.TypePaymentCaptured
	case domain.StatusPartiallyShipped, domain.StatusShipped:
		return stored.TypeItemsShipped
	case domain.StatusDelivered:
		return stored.TypeShipmentDelivered
	case domain.StatusReturned:
		return stored.TypeReturnReceived
	case domain.StatusAuthorized:
		return stored.TypePaymentAuthorized
	case domain.StatusPaymentProcessing:
		return stored.TypePaymentStarted
	case domain.StatusPendingPayment:
	}
	return ""
}

// eventOfPayment is eventOfStatus for where the newest payment stands.
func eventOfPayment(state domain.PaymentState) string {
	switch state {
	case domain.PayPending, domain.PayVoided:
		return stored.TypePaymentStarted
	case domain.PayAuthorized:
		return stored.TypePaymentAuthorized
	case domain.PayCaptured:
		return stored.TypePaymentCaptured
	case domain.PayPartiallyRefunded, domain.PayRefunded:
		return stored.TypePaymentRefunded
	case domain.PayUnknown:
		return stored.TypePaymentBecameUnknown
	case domain.PayNone:
	}
	return ""
}

// A bound is a place between orders: the bytes that an order's id is compared with. What is before it is what comes next.
type bound []byte

// boundAt is before every order that was placed at a time or after it.
func boundAt(at time.Time) bound {
	return binary.BigEndian.AppendUint64(nil, uint64(min(max(at.UnixMilli(), 0), 1<<48-1)))[2:]
}

// boundAfter is right after an order.
func boundAfter(id domain.OrderID) bound { return append(id[:], 0) }

// boundBytesMax is the length of the longest bound.
const boundBytesMax = len(domain.OrderID{}) + 1

// endBound is after every order.
var endBound = bound(bytes.Repeat([]byte{0xff}, boundBytesMax))

// SearchOrders returns a page of the orders of all lanes that are what the query asks for, newest first. A page may hold few
// orders or none while more follow. A token of another query is ErrBadPageToken. Its freshness is that of the lane that is
// furthest behind.
func (v *Views) SearchOrders(ctx context.Context, query SearchQuery, min Min) (OrdersPage, Freshness, error) {
	if len(query.UserID) > userIDBytesMax {
		return OrdersPage{}, Freshness{}, fmt.Errorf("a user id has %d bytes, want at most %d", len(query.UserID), userIDBytesMax)
	}
	binding := query.binding()
	below := endBound
	if !query.To.IsZero() {
		below = boundAt(query.To)
	}
	if query.PageToken != "" {
		cursor, err := v.seal.open(query.PageToken, binding...)
		if err != nil {
			return OrdersPage{}, Freshness{}, err
		}
		if len(cursor) > boundBytesMax {
			return OrdersPage{}, Freshness{}, ErrBadPageToken
		}
		below = cursor
	}
	reached, err := v.await(ctx, min, searchedViews...)
	if err != nil {
		return OrdersPage{}, Freshness{}, err
	}
	fresh := v.furthestBehind(searchedViews...).waited(reached).parked(v.parksAny(searchedViews...))
	page, err := v.search(ctx, &query, below, binding)
	return page, fresh, err
}

// searchedViews are the views that a search reads.
var searchedViews = []*Projection{&ordersProjection, &ordersByUserProjection, &orderMarksProjection}

// search reads a page of what is before a bound.
func (v *Views) search(ctx context.Context, query *SearchQuery, below bound, binding []string) (page OrdersPage, err error) {
	runners := v.runners
	if query.UserID != "" {
		lane := v.topology.LaneOf(eventstore.PartitionOf(query.UserID))
		runners = runners[lane : lane+1]
	}
	views := make([]searchedLane, len(runners))
	for i, r := range runners {
		views[i] = searchedLane{r.prefix(&ordersProjection), r.prefix(&ordersByUserProjection), r.prefix(&orderMarksProjection)}
	}
	parked := v.parksAny(&ordersProjection) // Before the snapshot: what is not parked, the snapshot has.
	snapshot := v.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	seeks := max(cmp.Or(query.seeksMax, searchSeeksMax)/len(runners), searchSeeksMin)
	scans := make([]*searchScan, 0, len(runners))
	defer func() {
		for _, s := range scans {
			err = errors.Join(err, s.close())
		}
	}()
	for i, r := range runners {
		s, err := openSearchScan(ctx, snapshot, r.lane, views[i], query, below, seeks)
		scans = append(scans, s)
		if err == nil {
			err = s.advance()
		}
		if err != nil {
			return OrdersPage{}, fmt.Errorf("search the orders of lane %d: %w", r.lane, err)
		}
	}
	size := pageSize(query.PageSize, OrdersPageDefault, OrdersPageMax)
	for len(page.Orders) < size {
		s := newest(scans)
		if s == nil {
			break
		}
		fold := newOrderFold(s.head)
		err := foldStored(snapshot, s.records, fold, "", AsOf{}, nil)
		if err != nil && (!parked || !errors.Is(err, ErrNotFound)) {
			return OrdersPage{}, fmt.Errorf("search the orders: %w", err)
		}
		if err == nil && query.matches(&fold.order) {
			page.Orders = append(page.Orders, OrderView{Order: fold.order, Revision: Revision{Lane: s.lane, Commit: fold.revision}})
		}
		s.below = append(s.below[:0], s.head[:]...)
		if err := s.advance(); err != nil {
			return OrdersPage{}, fmt.Errorf("search the orders of lane %d: %w", s.lane, err)
		}
	}
	var rest bound
	for _, s := range scans {
		if s.state != scanEnded && bytes.Compare(s.below, rest) > 0 {
			rest = s.below
		}
	}
	if rest != nil {
		page.Next = v.seal.seal(rest, binding...)
	}
	return page, nil
}

// newest returns the scan whose order is next, nil when none is known to be.
func newest(scans []*searchScan) *searchScan {
	var next *searchScan
	for _, s := range scans {
		if s.state == scanFound && (next == nil || bytes.Compare(s.head[:], next.head[:]) > 0) {
			next = s
		}
	}
	for _, s := range scans {
		if next != nil && s.state == scanPaused && bytes.Compare(s.below, next.head[:]) > 0 {
			return nil // It may have one that is newer.
		}
	}
	return next
}

// scanState says what a searchScan knows.
type scanState uint8

const (
	// scanFound: the next order that has the marks is head.
	scanFound scanState = iota + 1
	// scanEnded: there is no more.
	scanEnded
	// scanPaused: it has looked as often as it may, and whatever is left is before below.
	scanPaused
)

// A searchScan goes through a lane's orders that have the marks of a query, newest first.
type searchScan struct {
	lane    uint32
	records prefix
	// below is what is left: all before it.
	below bound
	// from is the first that counts.
	from  bound
	seeks int // left
	state scanState
	head  domain.OrderID

	// orders are the records; when index is not nil, the keys that begin with it and end with the complement of an order.
	orders *pebble.Iterator
	index  []byte
	marks  []markScan
}

// A markScan goes through the seconds that have a mark.
type markScan struct {
	seconds *pebble.Iterator
	prefix  []byte
}

// searchedLane is where a lane's views are that a search reads.
type searchedLane struct{ orders, byUser, marks prefix }

// openSearchScan opens a lane's scan. It returns what it has opened with an error, too.
func openSearchScan(
	ctx context.Context, from pebble.Reader, lane uint32, views searchedLane, query *SearchQuery, below bound, seeks int,
) (*searchScan, error) {
	s := &searchScan{
		lane: lane, records: views.orders, below: append(make(bound, 0, boundBytesMax), below...), from: bound{}, seeks: seeks,
	}
	if !query.From.IsZero() {
		s.from = boundAt(query.From)
	}
	var err error
	switch {
	case query.UserID != "":
		s.index = appendUser(append([]byte(nil), views.byUser[:]...), query.UserID)
	case query.Status == domain.StatusPendingPayment:
		s.index = views.marks.key([]byte{markPending})
	}
	if s.index == nil {
		s.orders, err = from.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: s.records.key(s.from), UpperBound: s.records.end()})
	} else {
		s.orders, err = from.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: s.index, UpperBound: keyAfter(s.index)})
	}
	if query.UserID != "" {
		return s, err // They are few.
	}
	for _, mark := range query.marks() {
		if err != nil {
			return s, err
		}
		m := markScan{prefix: views.marks.key(mark)}
		if m.seconds, err = from.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: m.prefix, UpperBound: keyAfter(m.prefix)}); err == nil {
			s.marks = append(s.marks, m)
		}
	}
	return s, err
}

func (s *searchScan) close() error {
	var err error
	if s.orders != nil {
		err = s.orders.Close()
	}
	for _, m := range s.marks {
		err = errors.Join(err, m.seconds.Close())
	}
	return err
}

// advance finds the next order before below.
func (s *searchScan) advance() error {
	for {
		second := secondOf(s.below)
		marked, err := s.nextMarked(&second)
		if err != nil || !marked {
			return err
		}
		if limit := boundAt(time.Unix(int64(min(second, 1<<48/1000))+1, 0)); len(s.marks) > 0 && bytes.Compare(limit, s.below) < 0 {
			s.below = append(s.below[:0], limit...)
		}
		if !s.seek() {
			return nil
		}
		id, ok, err := s.before()
		if err != nil || !ok || bytes.Compare(id[:], s.from) < 0 {
			s.state = scanEnded
			return err
		}
		s.below = append(s.below[:0], boundAfter(id)...)
		if len(s.marks) == 0 || secondOf(id[:]) == second {
			s.head, s.state = id, scanFound
			return nil
		}
	}
}

// seek takes a look off what is left of them, and pauses the scan when none is.
func (s *searchScan) seek() bool {
	if s.seeks == 0 {
		s.state = scanPaused
		return false
	}
	s.seeks--
	return true
}

// nextMarked moves second to the newest, not after it, that has all marks. It reports false when the scan ends or pauses.
func (s *searchScan) nextMarked(second *uint64) (bool, error) {
	for agreed := 0; agreed < len(s.marks); {
		m := &s.marks[agreed]
		if !s.seek() {
			// Nothing that is newer has them all.
			if limit := boundAt(time.Unix(int64(min(*second, 1<<48/1000))+1, 0)); bytes.Compare(limit, s.below) < 0 {
				s.below = append(s.below[:0], limit...)
			}
			return false, nil
		}
		if !m.seconds.SeekGE(binary.BigEndian.AppendUint64(slices.Clip(m.prefix), ^*second)) {
			s.state = scanEnded
			return false, m.seconds.Error()
		}
		key := m.seconds.Key()
		if len(key) != len(m.prefix)+secondBytes {
			return false, fmt.Errorf("a mark of orders has a key of %d bytes, want %d", len(key), len(m.prefix)+secondBytes)
		}
		if found := ^binary.BigEndian.Uint64(key[len(m.prefix):]); found != *second {
			*second, agreed = found, 0
			continue
		}
		agreed++
	}
	return true, nil
}

// before returns the newest order before below.
func (s *searchScan) before() (domain.OrderID, bool, error) {
	if s.index == nil {
		if !s.orders.SeekLT(s.records.key(s.below)) {
			return domain.OrderID{}, false, s.orders.Error()
		}
		key := s.orders.Key()
		if len(key) != prefixBytes+len(domain.OrderID{}) {
			return domain.OrderID{}, false, fmt.Errorf("an order has a key of %d bytes", len(key))
		}
		return domain.OrderID(key[prefixBytes:]), true, nil
	}
	var id domain.OrderID
	copy(id[:], s.below)
	first := appendComplement(slices.Clip(s.index), id)
	if len(s.below) <= len(id) {
		first = append(first, 0) // The order itself is not before it.
	}
	if !s.orders.SeekGE(first) {
		return domain.OrderID{}, false, s.orders.Error()
	}
	found, _, err := readIndexEntry(s.orders.Key(), s.orders.Value())
	return found, err == nil, err
}
