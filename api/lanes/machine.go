package lanes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// A Machine is the state of one lane: what its writer decides with. It implements eventstore.Machine and domain.State.
//
// The state lives in Pebble below the lane's prefix, and a position in the same batch says up to which commit: like any
// projection it can be deleted and made again from the log. On top of it lies what is decided and not applied yet.
// One goroutine uses a Machine.
type Machine struct {
	options MachineOptions
	db      *pebble.DB
	keys    keys
	// position is the newest applied commit. After a start it is that of the accounts, which are written less often than
	// the rest: up to reached, Apply then only brings the accounts up.
	position eventstore.Position
	reached  eventstore.Position
	logTime  time.Time

	// accounts are complete in memory: decided is what Decide sees, applied what is durable. They differ in dirty.
	decided map[string]domain.Account
	applied map[string]domain.Account
	dirty   map[string]struct{}

	// Speculation: what commits in flight will make durable.
	pending  []domain.Event                 // decided events in order, until their commit is applied
	orders   map[domain.OrderID]specOrder   // orders that they touch
	products map[string]specProduct         // products that they touch
	requests map[requestKey]requestInFlight // requests that they answer
	// And the facts and uses that they change, by pool, code and use.
	campaigns overlay[string, domain.Campaign]
	coupons   overlay[string, domain.Coupon]
	uses      overlay[domain.Use, int64]

	// endpoints are the ids of webhook endpoints, of which there are few; endpointsNext says of some whether they will be there.
	endpoints     map[string]struct{}
	endpointsNext overlay[string, bool]

	// erasing are the keys whose erasure is in flight. erasures says that one was ever erased: until then nobody need look.
	erasing  map[erasedKey]struct{}
	erasures bool

	// known is what the ledger holds, about; used is what users hold something of, about.
	known requestFilter
	used  requestFilter

	// Deadlines. Nothing is due before nextDue; while expiries are in flight nobody looks for more.
	nextDue  time.Time
	expiring int

	// What was applied since the last flush: the batch, the ledger's part of it, the SKUs whose accounts belong into it,
	// what the escrow must hear of. The ledger's keys come last and together, those of uses among them: between the orders'
	// keys, which nearly follow each other, they would make Pebble search its memtable from the top for each.
	batch    *pebble.Batch
	bulk     *projections.Bulk // writes the batch
	value    []byte            // room for one that goes into it
	ledger   *pebble.Batch
	changed  map[string]struct{}
	freed    map[string]domain.Account // watched SKUs of which units came free
	moved    bool                      // units are on their way to another lane
	flushed  uint64                    // number of the newest commit that was flushed
	reckoned uint64                    // number of the commit as of which the accounts were written

	// fresh is the id minted last: no order has it yet, so nobody need look.
	fresh domain.OrderID
	// entropy left for ids of the millisecond fresh was minted in.
	entropy [10]byte
}

// MachineOptions configure a Machine. All are required but those that have a default.
type MachineOptions struct {
	Lane     uint32
	Topology eventstore.Topology
	Store    *projections.Store
	// Catalog is shared by the lanes of a node.
	Catalog *Catalog
	// PayWithin is how long an unpaid order keeps its units; 0 means 15 min.
	PayWithin time.Duration
	// PaymentGrace is how much longer an order has whose payment is under way; 0 means 15 min.
	PaymentGrace time.Duration
	// Entropy is where order ids take their randomness from. A simulation passes a seeded one.
	Entropy io.Reader
	// ReckonEvery is how many commits may be applied before the accounts are written again; 0 means 64. That many more
	// are read at a start. An order of one line would otherwise cost one write more, since most commits change most accounts.
	ReckonEvery uint64
	// board is where the lane's escrow posts verdicts and hears what moved; nil when there is no escrow, because there is
	// one lane only.
	board *board
}

// Defaults of MachineOptions.
const (
	PayWithinDefault    = 15 * time.Minute
	PaymentGraceDefault = 15 * time.Minute
)

// Outcome is a lane's answer: a reply or a refusal.
type Outcome struct {
	Reply   *Reply // nil in a refusal
	Refusal error
}

type specOrder struct {
	order   domain.Order
	changes int // events in flight
}

type specProduct struct {
	product domain.Product
	changes int
}

type requestKey struct{ userID, requestID string }

type requestInFlight struct {
	fingerprint Fingerprint
	commit      uint64 // math.MaxUint64 while it is in flight
}

type erasedKey struct {
	userID string
	key    domain.KeyID
}

// OpenMachine loads the lane's state.
func OpenMachine(options MachineOptions) (*Machine, error) {
	if options.PayWithin == 0 {
		options.PayWithin = PayWithinDefault
	}
	if options.PaymentGrace == 0 {
		options.PaymentGrace = PaymentGraceDefault
	}
	if options.ReckonEvery == 0 {
		options.ReckonEvery = 64
	}
	m := &Machine{
		options:  options,
		db:       options.Store.DB(),
		keys:     newKeys(options.Lane),
		decided:  map[string]domain.Account{},
		applied:  map[string]domain.Account{},
		dirty:    map[string]struct{}{},
		changed:  map[string]struct{}{},
		freed:    map[string]domain.Account{},
		bulk:     options.Store.NewBulk(tableBytes),
		ledger:   options.Store.DB().NewBatch(),
		orders:   map[domain.OrderID]specOrder{},
		products: map[string]specProduct{},
		requests: map[requestKey]requestInFlight{},
		erasing:  map[erasedKey]struct{}{},

		campaigns: overlay[string, domain.Campaign]{},
		coupons:   overlay[string, domain.Coupon]{},
		uses:      overlay[domain.Use, int64]{},

		endpoints:     map[string]struct{}{},
		endpointsNext: overlay[string, bool]{},
	}
	m.batch = m.bulk.NewBatch()
	if err := m.load(); err != nil {
		return nil, fmt.Errorf("load the state of lane %d: %w", options.Lane, err)
	}
	return m, nil
}

// load reads the position and what is kept in memory.
func (m *Machine) load() error {
	var err error
	if m.position, m.logTime, err = m.readPosition(m.keys.reckoned()); err != nil {
		return err
	}
	if m.reached, m.logTime, err = m.readPosition(m.keys.position()); err != nil {
		return err
	}
	m.flushed, m.reckoned = m.position.Number, m.position.Number
	if err := m.scan(m.keys.table(tableAccounts), func(sku, value []byte) error {
		account, err := decodeAccount(value)
		m.applied[string(sku)], m.decided[string(sku)] = account, account
		return err
	}); err != nil {
		return err
	}
	if err := m.scan(m.keys.table(tableRequests), func(key, _ []byte) error {
		m.known.addBytes(key)
		return nil
	}); err != nil {
		return err
	}
	if err := m.scan(m.keys.table(tableEndpoints), func(id, _ []byte) error {
		m.endpoints[string(id)] = struct{}{}
		return nil
	}); err != nil {
		return err
	}
	if err := m.scan(m.keys.table(tableErased), func([]byte, []byte) error {
		m.erasures = true
		return errEnough
	}); err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if err := m.scan(m.keys.table(tableProducts), func(sku, value []byte) error {
		entry, err := decodeProduct(string(sku), value)
		entry.Lane = m.options.Lane
		m.options.Catalog.put(entry)
		return err
	}); err != nil {
		return err
	}
	return m.loadCampaigns()
}

// errEnough ends a scan early.
var errEnough = errors.New("enough")

// readPosition reads a position and its log time, genesis when there is none.
func (m *Machine) readPosition(key []byte) (eventstore.Position, time.Time, error) {
	position := eventstore.Genesis(m.options.Lane, m.options.Topology.Lanes)
	value, err := m.get(key)
	if err != nil || value == nil {
		return position, time.Time{}, err
	}
	if len(value) != positionBytes {
		return position, time.Time{}, fmt.Errorf("its position has %d bytes, want %d", len(value), positionBytes)
	}
	position.Number = binary.BigEndian.Uint64(value)
	copy(position.Hash[:], value[8:])
	return position, time.Unix(0, int64(binary.BigEndian.Uint64(value[8+len(position.Hash):]))).UTC(), nil
}

// Reached returns the newest commit that the durable state holds anything of.
func (m *Machine) Reached() eventstore.Position {
	if m.position.Number > m.reached.Number {
		return m.position
	}
	return m.reached
}

// Position returns the newest applied commit.
func (m *Machine) Position() eventstore.Position { return m.position }

// LogTime returns that commit's time.
func (m *Machine) LogTime() time.Time { return m.logTime }

// Order implements domain.State.
func (m *Machine) Order(id domain.OrderID) (domain.Order, bool) {
	if id == m.fresh {
		return domain.Order{}, false
	}
	if spec, ok := m.orders[id]; ok {
		return spec.order, true
	}
	order, _, err := m.durableOrder(id, 0)
	if errors.Is(err, errNoOrder) {
		return domain.Order{}, false
	}
	must(err)
	return order, true
}

// Product implements domain.State.
func (m *Machine) Product(sku string) (domain.Product, bool) {
	if spec, ok := m.products[sku]; ok {
		return spec.product, true
	}
	entry, ok := m.options.Catalog.Product(sku)
	return entry.Product, ok
}

// Stock implements domain.State.
func (m *Machine) Stock(sku string) domain.Account { return m.decided[sku] }

// KeyErased implements domain.State.
func (m *Machine) KeyErased(userID string, key domain.KeyID) bool {
	if _, inFlight := m.erasing[erasedKey{userID, key}]; inFlight {
		return true
	}
	if !m.erasures {
		return false
	}
	value, err := m.get(m.keys.erased(userID, key))
	must(err)
	return value != nil
}

// WebhookEndpoints implements domain.State.
func (m *Machine) WebhookEndpoints(id string) (count int, known bool) {
	count = len(m.endpoints)
	for id, spec := range m.endpointsNext {
		if _, durable := m.endpoints[id]; durable && !spec.value {
			count--
		} else if !durable && spec.value {
			count++
		}
	}
	_, known = m.endpoints[id]
	if spec, ok := m.endpointsNext[id]; ok {
		known = spec.value
	}
	return count, known
}

// endpointOf returns the webhook endpoint that an event is about, and whether it is there afterwards.
func endpointOf(event domain.Event) (id string, there, ok bool) {
	if put, ok := event.(domain.WebhookEndpointPut); ok {
		return put.EndpointID, true, true
	}
	if deleted, ok := event.(domain.WebhookEndpointDeleted); ok {
		return deleted.EndpointID, false, true
	}
	return "", false, false
}

// erasedSince reports whether a key of the user was erased after a commit.
func (m *Machine) erasedSince(userID string, commit uint64) bool {
	for key := range m.erasing {
		if key.userID == userID {
			return true
		}
	}
	if !m.erasures {
		return false
	}
	since := false
	prefix := append(append(m.keys.table(tableErased), userID...), 0)
	must(m.scan(prefix, func(_, value []byte) error {
		number, _, err := decodeErasure(value)
		since = since || number > commit
		return err
	}))
	return since
}

// Supply implements domain.State.
func (m *Machine) Supply(sku string) domain.Supply {
	supply := domain.Supply{Lane: m.options.Lane, Home: homeLane(m.options.Topology, sku), Lanes: m.options.Topology.Lanes}
	if m.options.board != nil {
		v := m.options.board.verdict(sku)
		supply.SoldOut, supply.Free, supply.Reclaimed = v.soldOut, v.free, v.reclaimed
	}
	return supply
}

// homeLane returns the home lane of a stock key.
func homeLane(topology eventstore.Topology, sku string) uint32 {
	return topology.LaneOf(eventstore.PartitionOf(domain.HomeKey(sku)))
}

var errNoOrder = errors.New("no such order")

// durableOrder folds an order's record up to a commit, 0 for all of it.
func (m *Machine) durableOrder(id domain.OrderID, upTo uint64) (domain.Order, uint64, error) {
	record, err := m.get(m.keys.order(id))
	if err != nil {
		return domain.Order{}, 0, err
	}
	if record == nil {
		return domain.Order{}, 0, errNoOrder
	}
	userID, _ := projections.RecordUserID(record)
	return projections.FoldOrder(id, userID, record, upTo)
}

// get returns a copy of the value at key, nil when there is none.
func (m *Machine) get(key []byte) ([]byte, error) {
	value, closer, err := m.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	value = append(make([]byte, 0, len(value)), value...)
	return value, closer.Close()
}

// scan calls f with every key of a table, less the table's prefix.
func (m *Machine) scan(table []byte, f func(key, value []byte) error) error {
	iter, err := m.db.NewIter(&pebble.IterOptions{LowerBound: table, UpperBound: after(table)})
	if err != nil {
		return err
	}
	for valid := iter.First(); valid; valid = iter.Next() {
		if err := f(iter.Key()[len(table):], iter.Value()); err != nil {
			return errors.Join(err, iter.Close())
		}
	}
	return iter.Close()
}

// must turns a fault of the node's own disk into a panic where an interface has no room for an error: a lane that cannot
// read its state must not decide, and the node starts again from the log.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("lane state: %v", err))
	}
}

// Decide implements eventstore.Machine.
func (m *Machine) Decide(request Request, at time.Time) eventstore.Decision[Outcome] {
	command, userID, refusal := m.complete(request, at)
	if refusal != nil {
		return refuse(refusal)
	}
	if request.RequestID != "" {
		decision, known := m.repeated(requestKey{userID, request.RequestID}, &request)
		if known {
			return decision
		}
	}
	if request.Refusal != nil {
		return refuse(request.Refusal)
	}
	events, err := domain.Decide(m, command, at)
	if err != nil {
		return refuse(err)
	}
	if len(events) == 0 {
		answered, remembered := domain.Answered(m, command)
		if !remembered || request.RequestID == "" {
			return eventstore.Decision[Outcome]{Answer: m.answerAsIs(command)}
		}
		events = []domain.Event{answered}
	}
	lead := leading(events)
	envelopes := make([]eventstore.Event, len(events))
	for i, event := range events {
		envelopes[i] = m.envelope(event, request.Partition, userID)
		if i == lead {
			envelopes[i].RequestID = request.RequestID
			if request.RequestID != "" {
				envelopes[i].Fingerprint = request.Fingerprint[:]
				m.requests[requestKey{userID, request.RequestID}] = requestInFlight{fingerprint: request.Fingerprint, commit: math.MaxUint64}
			}
		} else {
			envelopes[i].CausationID = request.RequestID
		}
		m.speculate(event, at)
	}
	m.fresh = domain.OrderID{}
	if _, nothing := events[lead].(domain.RequestAnswered); nothing {
		return eventstore.Decision[Outcome]{Events: envelopes, Answer: m.answerFromLedger(requestKey{userID, request.RequestID})}
	}
	return eventstore.Decision[Outcome]{Events: envelopes, Answer: m.answer(events[lead], command)}
}

// leading returns the index of the event that answers the request: the first of an order, which may come after the home
// lane's grants to itself, or else the first.
func leading(events []domain.Event) int {
	for i, event := range events {
		if _, ofOrder := domain.OrderOf(event); ofOrder {
			return i
		}
	}
	return 0
}

// complete fills in what only the lane may, and says whose request ids count. Ids and deadlines come from log time, so that
// a lane's order ids sort by its log.
func (m *Machine) complete(request Request, at time.Time) (domain.Command, string, error) {
	switch command := request.Command.(type) {
	case domain.PlaceOrder:
		command.OrderID = m.mint(at, request.Partition)
		command.PayBy = at.Add(m.options.PayWithin)
		return command, request.UserID, nil
	case domain.CancelOrder, domain.StartPayment, domain.CapturePayment, domain.VoidPayment, domain.RecordPaymentResult,
		domain.RecordStrayPayment, domain.RefundPayment, domain.RecordRefundResult, domain.ShipItems, domain.ConfirmDelivery,
		domain.RequestReturn, domain.ReceiveReturn, domain.AddNote, domain.AwardPoints, domain.TakeBackPoints:
		id, _ := domain.CommandOrderID(command)
		order, ok := m.Order(id)
		if !ok || (request.Owner != "" && order.UserID != request.Owner) {
			return nil, "", &domain.OrderNotFoundError{OrderID: id}
		}
		return order.Next(command), order.UserID, nil
	case domain.ExpireOrder, domain.PutProduct, domain.ReceiveStock, domain.PreheatStock, domain.EraseUser,
		domain.GrantStock, domain.AllotStock, domain.ReturnStock, domain.ReclaimStock, domain.PutCampaign, domain.PutCoupon,
		domain.PutWebhookEndpoint, domain.DeleteWebhookEndpoint:
		return command, request.UserID, nil
	default:
		panic(fmt.Sprintf("bug: unknown command %T", command))
	}
}

// repeated answers a request that was decided before, and refuses a reused id (I4).
func (m *Machine) repeated(key requestKey, request *Request) (eventstore.Decision[Outcome], bool) {
	before, inFlight := m.requests[key]
	if !inFlight {
		if !m.known.mayHold(key) {
			return eventstore.Decision[Outcome]{}, false
		}
		entry, err := m.ledgerEntry(key)
		must(err)
		if entry == nil {
			return eventstore.Decision[Outcome]{}, false
		}
		before = requestInFlight{fingerprint: entry.fingerprint, commit: entry.commit}
	}
	if !m.same(before, key.userID, request) {
		return refuse(&KeyReusedError{UserID: key.userID, RequestID: key.requestID}), true
	}
	// By the time this answers, the commit that it repeats is applied.
	return eventstore.Decision[Outcome]{Answer: m.answerFromLedger(key)}, true
}

// answerFromLedger makes the reply to a request whose ledger entry is applied by then.
func (m *Machine) answerFromLedger(key requestKey) func(uint64, time.Time) Outcome {
	return func(uint64, time.Time) Outcome {
		entry, err := m.ledgerEntry(key)
		must(err)
		reply, err := m.recall(entry)
		must(err)
		return Outcome{Reply: reply}
	}
}

// same reports whether a request is the one that was decided before, as far as anybody can still tell: the fingerprint of
// what is erased is erased with it.
func (m *Machine) same(before requestInFlight, userID string, request *Request) bool {
	const half = len(Fingerprint{}) / 2
	return before.fingerprint == request.Fingerprint ||
		(request.Former != Fingerprint{} && before.fingerprint == request.Former) ||
		(request.Keyed && [half]byte(before.fingerprint[:half]) == [half]byte(request.Fingerprint[:half]) && m.erasedSince(userID, before.commit))
}

// refuse answers with a refusal.
func refuse(refusal error) eventstore.Decision[Outcome] {
	return eventstore.Decision[Outcome]{Answer: func(uint64, time.Time) Outcome { return Outcome{Refusal: refusal} }}
}

// answer makes the reply to a command that decided events. It is what recall makes of the ledger's entry later.
func (m *Machine) answer(first domain.Event, command domain.Command) func(uint64, time.Time) Outcome {
	if placed, ok := first.(domain.OrderPlaced); ok {
		return func(commit uint64, at time.Time) Outcome {
			reply := Reply{Lane: m.options.Lane, Commit: commit, At: at, OrderCommit: commit}
			reply.Order = domain.Order{}.Evolve(placed, at)
			return Outcome{Reply: &reply}
		}
	}
	return func(commit uint64, at time.Time) Outcome {
		reply, err := m.replyTo(first, commit, at)
		must(err)
		reply.Stock = m.stockAfter(command)
		return Outcome{Reply: reply}
	}
}

// stockAfter returns the lane's account after an escrow's command, as it is applied by now.
func (m *Machine) stockAfter(command domain.Command) domain.Account {
	if sku := stockKeyOf(command); sku != "" {
		return m.applied[sku]
	}
	return domain.Account{}
}

// replyTo makes the reply to the command whose first event this was, from durable state.
func (m *Machine) replyTo(first domain.Event, commit uint64, at time.Time) (*Reply, error) {
	reply := &Reply{Lane: m.options.Lane, Commit: commit, At: at}
	if id, ok := domain.OrderOf(first); ok {
		reply.PartID = domain.PartOf(first)
		return reply, m.fillOrder(reply, id, commit)
	}
	if put, ok := first.(domain.ProductPut); ok {
		reply.Product = domain.Product{}.Evolve(put, at)
	}
	if received, ok := first.(domain.StockReceived); ok {
		reply.Received = received
	}
	if erased, ok := first.(domain.UserErased); ok {
		reply.Erased = erased
		return reply, m.fillErasure(reply)
	}
	if granted, ok := first.(domain.StockGranted); ok {
		reply.Granted = granted
	}
	if put, ok := first.(domain.WebhookEndpointPut); ok {
		reply.Endpoint = put
	}
	if put, ok := first.(domain.CampaignPut); ok {
		reply.Campaign = domain.Campaign{}.Evolve(put, at)
	}
	if put, ok := first.(domain.CouponPut); ok {
		reply.Coupon = domain.Coupon{}.Evolve(put, at)
	}
	return reply, nil
}

func (m *Machine) fillOrder(reply *Reply, id domain.OrderID, upTo uint64) error {
	order, revision, err := m.durableOrder(id, upTo)
	reply.Order, reply.OrderCommit = order, revision
	return err
}

// fillErasure says when the key was erased, which the request may only have found.
func (m *Machine) fillErasure(reply *Reply) error {
	value, err := m.get(m.keys.erased(reply.Erased.UserID, reply.Erased.Key))
	if err != nil {
		return err
	}
	reply.Commit, reply.At, err = decodeErasure(value)
	return err
}

// answerAsIs makes the reply to a command that had nothing to change and that no ledger remembers: things as they are, at their own
// revision.
func (m *Machine) answerAsIs(command domain.Command) func(uint64, time.Time) Outcome {
	return func(commit uint64, at time.Time) Outcome {
		reply := Reply{Lane: m.options.Lane, Commit: commit, At: at}
		switch command := command.(type) {
		case domain.CancelOrder, domain.StartPayment, domain.CapturePayment, domain.VoidPayment, domain.RecordPaymentResult,
			domain.RecordStrayPayment, domain.RefundPayment, domain.RecordRefundResult, domain.ShipItems, domain.ConfirmDelivery,
			domain.RequestReturn, domain.ReceiveReturn, domain.AddNote, domain.AwardPoints, domain.TakeBackPoints:
			id, _ := domain.CommandOrderID(command)
			must(m.fillOrder(&reply, id, 0))
			reply.Commit, reply.At = reply.OrderCommit, reply.Order.UpdatedAt
		case domain.PutProduct:
			entry, _ := m.options.Catalog.Product(command.SKU)
			reply.Commit, reply.At, reply.Product = entry.Commit, entry.Product.UpdatedAt, entry.Product
		case domain.PutCampaign:
			entry, _ := m.options.Catalog.Campaign(domain.CampaignPool(command.SKU, command.CampaignID))
			reply.Commit, reply.At, reply.Campaign = entry.Commit, entry.Campaign.UpdatedAt, entry.Campaign
		case domain.PutCoupon:
			entry, _ := m.options.Catalog.Coupon(command.Code)
			reply.Commit, reply.At, reply.Coupon = entry.Commit, entry.Coupon.UpdatedAt, entry.Coupon
		case domain.EraseUser:
			reply.Erased = domain.UserErased(command)
			must(m.fillErasure(&reply))
		case domain.GrantStock, domain.AllotStock, domain.ReturnStock, domain.ReclaimStock:
			reply.Stock = m.stockAfter(command)
		case domain.PlaceOrder, domain.ExpireOrder, domain.ReceiveStock, domain.PreheatStock, domain.PutWebhookEndpoint, domain.DeleteWebhookEndpoint:
		}
		return Outcome{Reply: &reply}
	}
}

// envelope wraps an event. Its user is the order's, whoever asked.
func (m *Machine) envelope(event domain.Event, partition uint32, userID string) eventstore.Event {
	typeName, version, aggregateID, payload := stored.Encode(event)
	return eventstore.Event{
		Partition: partition, UserID: userID, AggregateID: aggregateID, Type: typeName, Version: version, Payload: payload,
	}
}

// speculate takes a decided event into the speculative state.
func (m *Machine) speculate(event domain.Event, at time.Time) {
	m.pending = append(m.pending, event)
	for sku := range domain.SKUs(event) {
		m.decided[sku] = m.decided[sku].Evolve(event, sku)
		m.dirty[sku] = struct{}{}
	}
	if id, ok := domain.OrderOf(event); ok {
		order, _ := m.Order(id) // None yet when it is being placed.
		m.orders[id] = specOrder{order: order.Evolve(event, at), changes: m.orders[id].changes + 1}
	}
	if put, ok := event.(domain.ProductPut); ok {
		product, _ := m.Product(put.SKU)
		m.products[put.SKU] = specProduct{product: product.Evolve(put, at), changes: m.products[put.SKU].changes + 1}
	}
	if _, ok := event.(domain.OrderExpired); ok {
		m.expiring++
	}
	if erased, ok := event.(domain.UserErased); ok {
		m.erasing[erasedKey{erased.UserID, erased.Key}] = struct{}{}
	}
	m.speculateCampaigns(event, at)
	if id, there, ok := endpointOf(event); ok {
		m.endpointsNext.put(id, there)
	}
}

// Rollback implements eventstore.Machine.
func (m *Machine) Rollback() {
	for sku := range m.dirty {
		if account, ok := m.applied[sku]; ok {
			m.decided[sku] = account
		} else {
			delete(m.decided, sku)
		}
	}
	clear(m.dirty)
	clear(m.orders)
	clear(m.products)
	clear(m.requests)
	clear(m.erasing)
	clear(m.campaigns)
	clear(m.coupons)
	clear(m.uses)
	clear(m.endpointsNext)
	m.pending = nil
	m.expiring = 0
	m.nextDue = time.Time{}
}
