package lanes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// The simulation of a fleet: two hosts, many lanes, each lane owned by the host that opened it last, buyers at every lane who want one
// product or two, at a campaign, with a coupon; orders that are paid, shipped, cancelled all the same, sent back and sold again.
// Hosts crash and lose disks, lanes are taken over, connections to the logs are bad, messages between escrows are lost,
// repeated and overtake each other. One goroutine, all chance from one seed, as in the simulation of one lane.
//
// After every step it checks
//
//	I3  domain.Conserved over the accounts of all lanes, folded from their logs
//	    OUT_OF_STOCK is said only when no lane, no centre and nothing in transit has what is wanted, unless units came in or
//	    came free so shortly before that the answer was on its way
//	I5  at the end, when all is well: nothing is in transit, and every buyer has units or knows that there are none
type fleet struct {
	seed   uint64
	chance *rand.Rand
	plant  fleetPlant
	sale   bool // only buyers, no cancellations, nothing expires
	// receiveMax is how many units come in at a time, at most.
	receiveMax int64
	logs       []*eventstore.MemoryLog
	hosts      []*host
	owners     []*host // by lane; nil when nobody has it open
	step       int
	calm       bool // no more faults

	messages []Message
	buyers   []*buyer
	placed   []domain.OrderID
	orders   map[domain.OrderID]domain.Order // folded
	requests int

	checked  []eventstore.Position
	accounts map[string]map[uint32]domain.Account // by stock key
	cameFree map[string]time.Time                 // when units of a stock key last came in or came free
	facts    []func(*Catalog)                     // campaigns and coupons, as every host comes to know them
	did      fleetCounts
}

// fleetCounts count what a fleet did, so that one that does nothing is noticed.
type fleetCounts struct {
	orders    int
	soldOut   int
	woken     int
	pooled    int // orders at a campaign
	redeemed  int // orders with a coupon that counts its redemptions
	cancelled int // after their money was taken
	restocked int // returns of which units are sold again
	filled    int // units moved between a product and its campaign
}

func (c *fleetCounts) add(o fleetCounts) {
	c.orders, c.soldOut, c.woken, c.pooled = c.orders+o.orders, c.soldOut+o.soldOut, c.woken+o.woken, c.pooled+o.pooled
	c.redeemed, c.cancelled, c.restocked, c.filled = c.redeemed+o.redeemed, c.cancelled+o.cancelled, c.restocked+o.restocked, c.filled+o.filled
}

// A fleetPlant is a bug put in on purpose.
type fleetPlant struct {
	// command spoils a command before the machine decides it.
	command func(*Machine, domain.Command) domain.Command
	// message spoils a message on its way; what it returns is delivered.
	message func(Message) []Message
}

// A host is one process.
type host struct {
	name    string
	fs      *vfs.MemFS
	flushed bool // something is left after a crash
	store   *projections.Store
	catalog *Catalog
	conns   []*eventstore.FaultLog
	lanes   []*hostLane // nil when it is down
	heard   []func()    // what escrows must hear after this step
}

type hostLane struct {
	machine *Machine
	writer  *eventstore.Writer[Request, Outcome]
	escrow  *escrow
	board   *board
	waiting []eventstore.Ask[Request, Outcome]
}

// A buyer wants units and asks until it has them, or is told that there are none. The keeper of the shop asks in the same way for units
// of a product to sell at its campaign.
type buyer struct {
	user    string
	lane    uint32
	sku     string // that it wants, perhaps among others
	want    domain.PlaceOrder
	keeper  bool
	request Request
	since   time.Time // of this attempt; zero when none is under way
	waits   time.Time // until when it waits for units, zero when it does not
	letGo   func()    // takes back what it pledges while it waits
	refusal error     // the newest
	done    bool
}

// cut ends what is under way: connections are cut, and who asked asks again.
func (b *buyer) cut() {
	b.since, b.waits = time.Time{}, time.Time{}
	b.unpledge()
}

func (b *buyer) unpledge() {
	if b.letGo != nil {
		b.letGo()
		b.letGo = nil
	}
}

// fleetStep is how long a step takes with one lane. More lanes take steps in the same time.
const (
	fleetStep       = 4 * time.Millisecond
	fleetVerdictFor = 400 * time.Millisecond
)

func newFleet(seed uint64, lanes uint32, sale bool, plant fleetPlant) *fleet {
	f := &fleet{
		seed: seed, chance: rand.New(rand.NewPCG(seed, 0xf1ee7)), plant: plant, sale: sale, receiveMax: 30,
		owners: make([]*host, lanes), accounts: map[string]map[uint32]domain.Account{}, cameFree: map[string]time.Time{},
		orders: map[domain.OrderID]domain.Order{},
	}
	harsh := f.chance.Float64()
	rate := func(most float64) float64 { return f.chance.Float64() * harsh * most }
	replicated := f.chance.IntN(2) == 0
	for i := range 2 {
		f.hosts = append(f.hosts, &host{name: fmt.Sprintf("host-%d", i), fs: vfs.NewCrashableMem()})
	}
	for lane := range lanes {
		log := eventstore.OpenMemoryLog(lane, lanes)
		f.logs = append(f.logs, log)
		f.checked = append(f.checked, eventstore.Genesis(lane, lanes))
		for _, h := range f.hosts {
			h.conns = append(h.conns, eventstore.NewFaultLog(log, eventstore.FaultOptions{
				Replicated: replicated, AckLost: rate(0.1), Lost: rate(0.1), Delayed: rate(0.15), Refused: rate(0.1),
				Full: rate(0.03), ReadFails: rate(0.05), Stale: rate(0.1),
			}, f.chance))
		}
	}
	skus := 1 + f.chance.IntN(2)
	for i := range max(int(lanes), 6) {
		lane := uint32(i) % lanes
		b := &buyer{user: f.userOf(lane, i), lane: lane, sku: fmt.Sprintf("sku-%d", f.chance.IntN(skus))}
		f.wish(b)
		f.buyers = append(f.buyers, b)
	}
	for i := range 2 {
		if sku := fmt.Sprintf("sku-%d", i); !sale {
			f.buyers = append(f.buyers, &buyer{user: "operator", lane: homeLane(f.topology(), sku), sku: sku, keeper: true, done: true})
		}
	}
	return f
}

// wish lets a buyer want something new.
func (f *fleet) wish(b *buyer) {
	b.request = Request{}
	b.want = domain.PlaceOrder{UserID: b.user, Lines: []domain.LineRequest{{SKU: b.sku, Units: 1 + f.chance.Int64N(3)}}}
	if f.sale {
		return
	}
	switch f.chance.IntN(4) {
	case 0: // The other product too, in either order.
		b.want.Lines = append(b.want.Lines, domain.LineRequest{SKU: otherSKU(b.sku), Units: 1})
		if f.chance.IntN(2) == 0 {
			slices.Reverse(b.want.Lines)
		}
	case 1:
		b.want.CampaignID = "flash"
	}
	if f.chance.IntN(3) == 0 {
		b.want.CouponCode = "TEN"
	}
}

func otherSKU(sku string) string {
	if sku == "sku-0" {
		return "sku-1"
	}
	return "sku-0"
}

// userOf finds a user of a lane.
func (f *fleet) userOf(lane uint32, number int) string {
	for i := 0; ; i++ {
		user := fmt.Sprintf("user-%d-%d", number, i)
		if f.topology().LaneOf(eventstore.PartitionOf(user)) == lane {
			return user
		}
	}
}

func (f *fleet) topology() eventstore.Topology {
	return eventstore.Topology{Lanes: uint32(len(f.logs))}
}

func (f *fleet) now() time.Time {
	return start.Add(time.Duration(f.step) * fleetStep / time.Duration(len(f.logs)))
}

func (f *fleet) failf(format string, args ...any) error {
	return fmt.Errorf("seed %d, %d lanes, step %d: %s", f.seed, len(f.logs), f.step, fmt.Sprintf(format, args...))
}

// run takes steps with faults, then without until every buyer is done and nothing moves.
func (f *fleet) run(steps, calmMax int) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			err = f.failf("panic: %v", bug)
		}
		for _, h := range f.hosts {
			h.close()
		}
	}()
	total := steps + calmMax
	for f.step = 1; f.step < total; f.step++ {
		if f.step == steps {
			f.heal()
		}
		if err := f.act(); err != nil {
			return err
		}
		for _, h := range f.hosts {
			for len(h.heard) > 0 {
				hear := h.heard[0]
				h.heard = h.heard[1:]
				hear()
			}
		}
		for _, b := range f.buyers {
			if !b.waits.IsZero() && f.now().After(b.waits) {
				b.waits = time.Time{}
				b.unpledge()
			}
		}
		if err := f.check(); err != nil {
			return err
		}
		if f.calm && f.step%64 == 0 && f.settled() {
			return nil
		}
	}
	var states []string
	for sku, accounts := range f.accounts {
		states = append(states, fmt.Sprintf("%s: %+v", sku, domain.Sum(accounts)))
	}
	slices.Sort(states)
	return f.failf("all was well for %d steps, but units are stranded or buyers wait (I5): %v", calmMax, states)
}

// heal ends all faults.
func (f *fleet) heal() {
	f.calm = true
	for _, h := range f.hosts {
		for _, conn := range h.conns {
			conn.Heal()
			conn.Arrive()
		}
	}
}

// settled reports whether every buyer is done and nothing is in transit.
func (f *fleet) settled() bool {
	for _, b := range f.buyers {
		if !b.done {
			return false
		}
	}
	for _, accounts := range f.accounts {
		if domain.Sum(accounts).InTransit != 0 {
			return false
		}
	}
	return true
}

// act takes one step.
func (f *fleet) act() error {
	dice := f.chance.IntN(1000)
	h := f.hosts[f.chance.IntN(len(f.hosts))]
	lane := uint32(f.chance.IntN(len(f.logs)))
	switch {
	case h.lanes == nil:
		return f.start(h)
	case dice < 3 && !f.calm:
		after, err := afterCrash(h.fs, h.flushed, f.chance.Uint64())
		if err != nil {
			return f.failf("crash: %v", err)
		}
		f.stop(h)
		h.fs = after
		return nil
	case dice < 4 && !f.calm:
		f.stop(h)
		h.fs, h.flushed = vfs.NewCrashableMem(), false // The disk is lost; the logs are not.
		return nil
	case dice >= 10 && dice < 16 && !f.calm:
		h.flushed = true
		return h.store.Flush()
	case dice < 10 && !f.calm:
		return f.open(h, lane) // A takeover, perhaps of what the other host has open.
	}
	owner := f.owners[lane]
	if owner == nil {
		return f.open(h, lane)
	}
	l := owner.lanes[lane]
	switch {
	case dice < 100:
		return f.shop(owner, lane)
	case dice < 350:
		for range 4 {
			f.deliver()
		}
	case dice < 450:
		l.escrow.tick(f.now())
	case dice < 500:
		l.escrow.look(f.now())
	case dice < 750:
		if l.writer.Ready() {
			l.waiting = append([]eventstore.Ask[Request, Outcome](nil), l.waiting[l.writer.Propose(l.waiting, f.now()):]...)
		}
	default:
		if err := l.writer.Settle(context.Background()); isDamage(err) {
			return f.failf("%s settles lane %d: %v", owner.name, lane, err)
		}
		if l.writer.Epoch() == 0 {
			f.owners[lane] = nil
		}
	}
	return nil
}

// start starts a host; it has no lane open yet.
func (f *fleet) start(h *host) error {
	store, err := projections.OpenStore("state", projections.StoreOptions{FS: h.fs})
	if err != nil {
		return f.failf("open store: %v", err)
	}
	h.store = store
	catalog := NewCatalog()
	h.catalog = catalog
	for i := range 2 {
		sku := fmt.Sprintf("sku-%d", i)
		catalog.put(CatalogEntry{Product: domain.Product{SKU: sku, Title: sku, Price: domain.Money{Currency: "EUR", Minor: 100}}})
	}
	defer func() {
		for _, put := range f.facts {
			put(catalog)
		}
	}()
	payWithin := time.Second
	if f.sale {
		payWithin = time.Hour
	}
	for lane := range uint32(len(f.logs)) {
		l := &hostLane{board: newBoard(f.now)}
		board := l.board
		if len(f.logs) == 1 {
			board = nil // As in a Set: then the escrow hears of nothing.
		}
		l.machine, err = OpenMachine(MachineOptions{
			Lane: lane, Topology: f.topology(), Store: store, Catalog: catalog, PayWithin: payWithin, ReckonEvery: 1 + f.seed%5,
			Entropy: rand.NewChaCha8([32]byte{byte(f.seed), byte(f.step), byte(f.step >> 8), byte(lane), byte(f.chance.Uint32())}), board: board,
		})
		if err != nil {
			return f.failf("open machine: %v", err)
		}
		l.writer = eventstore.NewWriter(h.conns[lane], plantedFleetMachine{l.machine, f.plant.command}, eventstore.WriterOptions{
			Lane: lane, Lanes: uint32(len(f.logs)), Owner: h.name, ResolveAttemptsMax: 4, DueMax: 3,
			Pause: func(context.Context, int) error { return nil },
		})
		f.startEscrow(h, l, lane)
		h.lanes = append(h.lanes, l)
	}
	return nil
}

func (f *fleet) startEscrow(h *host, l *hostLane, lane uint32) {
	homeOf := func(sku string) uint32 { return homeLane(f.topology(), sku) }
	l.escrow = newEscrow(lane, homeOf, escrowOptions{VerdictFor: fleetVerdictFor}, l.board,
		&outbox{db: h.store.DB(), keys: newKeys(lane)},
		func(m Message) { f.messages = append(f.messages, m) },
		func(t task) {
			reply := func(outcome Outcome, err error) {
				if err == nil {
					err = outcome.Refusal
				}
				var stock domain.Account
				if outcome.Reply != nil {
					stock = outcome.Reply.Stock
				}
				h.heard = append(h.heard, func() { l.escrow.decided(f.now(), t, stock, err) })
			}
			if l.writer.Epoch() == 0 {
				reply(Outcome{}, &eventstore.UnavailableError{Lane: lane})
				return
			}
			l.waiting = append(l.waiting, eventstore.Ask[Request, Outcome]{Question: Request{Command: t.command}, Reply: reply})
		})
}

type plantedFleetMachine struct {
	*Machine
	spoil func(*Machine, domain.Command) domain.Command
}

func (m plantedFleetMachine) Decide(request Request, at time.Time) eventstore.Decision[Outcome] {
	if m.spoil != nil {
		request.Command = m.spoil(m.Machine, request.Command)
	}
	return m.Machine.Decide(request, at)
}

// stop ends a host at once.
func (f *fleet) stop(h *host) {
	h.close()
	for lane, owner := range f.owners {
		if owner == h {
			f.owners[lane] = nil
		}
	}
	for _, b := range f.buyers {
		b.cut()
	}
}

func (h *host) close() {
	if h.store != nil {
		_ = h.store.Close()
	}
	h.store, h.lanes, h.heard = nil, nil, nil
}

// open opens a lane at a host.
func (f *fleet) open(h *host, lane uint32) error {
	l := h.lanes[lane]
	if l.writer.Epoch() != 0 {
		l.writer.StepDown(eventstore.ErrFenced)
	}
	for _, ask := range l.waiting {
		ask.Reply(Outcome{}, &eventstore.UnavailableError{Lane: lane})
	}
	l.waiting = nil
	if f.owners[lane] == h {
		f.owners[lane] = nil
	}
	switch err := l.writer.Open(context.Background(), f.now()); {
	case isDamage(err):
		return f.failf("%s opens lane %d: %v", h.name, lane, err)
	case err == nil:
		f.owners[lane] = h
	}
	return nil
}

// deliver takes one message to where it goes, loses it or repeats it.
func (f *fleet) deliver() {
	if len(f.messages) == 0 {
		return
	}
	i := f.chance.IntN(len(f.messages))
	m := f.messages[i]
	if fate := f.chance.IntN(10); fate > 0 || f.calm {
		f.messages = slices.Delete(f.messages, i, i+1)
		if fate == 1 && !f.calm {
			return // Lost.
		}
	}
	messages := []Message{m}
	if f.plant.message != nil {
		messages = f.plant.message(m)
	}
	for _, m := range messages {
		if owner := f.owners[m.To]; owner != nil {
			owner.lanes[m.To].escrow.receive(f.now(), m)
		}
	}
}

// shop lets a client of a lane do something.
func (f *fleet) shop(h *host, lane uint32) error {
	l := h.lanes[lane]
	dice := f.chance.IntN(20)
	sku := fmt.Sprintf("sku-%d", f.chance.IntN(2))
	home := homeLane(f.topology(), sku)
	switch received := f.accounts[sku][home].Received; {
	case lane == home && (received == 0 || (dice == 0 && !f.calm && !f.sale)):
		f.command(h, l, catalogRequest(sku, f.requestID(), domain.ReceiveStock{SKU: sku, Units: 1 + f.chance.Int64N(f.receiveMax)}))
	case lane == home && dice == 1:
		f.command(h, l, catalogRequest(sku, f.requestID(), domain.PreheatStock{SKU: sku, UnitsPerLane: f.chance.Int64N(2)}))
	case lane == homeLane(f.topology(), "TEN") && dice == 2 && !f.calm && !f.sale:
		f.command(h, l, couponRequest("TEN", f.requestID(), domain.CouponTerms{
			Kind: domain.CouponPercentage, RateBps: 100, UserUsesMax: f.chance.Int64N(9), UsesMax: 1 + f.chance.Int64N(20),
		}))
	case dice >= 3 && dice < 9 && !f.calm && !f.sale:
		for _, id := range f.placed {
			if f.topology().LaneOf(id.Partition()) == lane && f.chance.IntN(3) == 0 {
				f.live(h, l, f.orders[id])
			}
		}
	default:
		for _, b := range f.buyers {
			if b.lane == lane {
				f.buy(h, l, b)
			}
		}
	}
	return nil
}

// live takes an order a step further, unless it is over.
func (f *fleet) live(h *host, l *hostLane, order domain.Order) {
	units := []domain.LineRequest{{SKU: order.Lines[0].SKU, Units: 1}}
	switch {
	case order.Ending != domain.EndingNone || order.Fulfilment == domain.FulfilmentReturned:
	case f.chance.IntN(8) == 0:
		f.command(h, l, cancelOrder(order, f.requestID()))
	case order.Payment == domain.PayNone:
		f.command(h, l, pay(order, f.requestID()))
	case order.Payment == domain.PayPending:
		f.command(h, l, result(order, len(order.Payments), domain.ResultCaptured))
	case len(order.Returns) > 0 && order.Returns[len(order.Returns)-1].ReceivedAt.IsZero():
		f.command(h, l, ofOrder(order, f.requestID(), domain.ReceiveReturn{
			OrderID: order.ID, ReturnID: order.Returns[len(order.Returns)-1].ID, Restock: units,
		}))
	case len(order.Shipments) > 0:
		f.command(h, l, ofOrder(order, f.requestID(), domain.RequestReturn{OrderID: order.ID, Lines: units}))
	default:
		f.command(h, l, ofOrder(order, f.requestID(), domain.ShipItems{OrderID: order.ID}))
	}
}

func (f *fleet) requestID() string {
	f.requests++
	return fmt.Sprintf("r%d", f.requests)
}

func (f *fleet) command(_ *host, l *hostLane, request Request) {
	l.waiting = append(l.waiting, eventstore.Ask[Request, Outcome]{Question: request, Reply: func(Outcome, error) {}})
}

// buy lets a buyer ask, if it is not waiting. Once it has what it wants it wants more; once it is told that there is not
// enough it wants less, and after that nothing.
func (f *fleet) buy(h *host, l *hostLane, b *buyer) {
	if b.since.IsZero() && b.done && !f.calm {
		b.done = false // There may be more by now.
		f.wish(b)
		if b.keeper {
			b.request = catalogRequest(b.sku, f.requestID(), domain.PutCampaign{
				CampaignID: "flash", SKU: b.sku, Price: euros5, OpensAt: start, ClosesAt: start.Add(time.Hour),
				Units: f.chance.Int64N(12), UserUnitsMax: f.chance.Int64N(20),
			})
		}
	}
	if b.done || f.now().Before(b.waits) || (!b.since.IsZero() && f.now().Sub(b.since) < time.Second) || f.accounts[b.sku][homeLane(f.topology(), b.sku)].Received == 0 {
		return
	}
	f.submit(h, l, b, func() {})
}

// submit submits a buyer's order; decided is called when it is, unless the host stops.
func (f *fleet) submit(h *host, l *hostLane, b *buyer, decided func()) {
	if b.request.Command == nil {
		b.request = Request{
			UserID: b.user, RequestID: f.requestID(), Fingerprint: fingerprint(b.want), Partition: eventstore.PartitionOf(b.user), Command: b.want,
		}
	}
	since := f.now()
	b.since = since
	l.waiting = append(l.waiting, eventstore.Ask[Request, Outcome]{Question: b.request, Reply: func(outcome Outcome, err error) {
		decided()
		if !b.since.Equal(since) {
			return // The connection was cut.
		}
		b.since = time.Time{}
		b.unpledge()
		b.refusal = outcome.Refusal
		var moving *domain.StockMovingError
		switch {
		case err != nil:
		case errors.As(outcome.Refusal, &moving):
			f.wait(h, l, b, moving)
		case b.keeper:
			b.done = true
		case outcome.Refusal == nil:
			f.did.orders++
			f.wish(b)
			b.done = f.calm && !f.sale
		default:
			f.refused(b, since, outcome.Refusal)
		}
	}})
}

// wait lets a buyer wait for units that are moving, as a Set does.
func (f *fleet) wait(h *host, l *hostLane, b *buyer, moving *domain.StockMovingError) {
	until := f.now().Add(StockWaitDefault)
	b.waits = until
	l.board.pledge(moving.Pledges, 1)
	b.letGo = func() { l.board.pledge(moving.Pledges, -1) }
	h.heard = append(h.heard, func() {
		if !l.escrow.await(f.now(), moving, &waiter{
			short: moving.Short,
			wake: func() {
				if b.waits.Equal(until) {
					b.waits = time.Time{}
					f.did.woken++
					l.board.resubmit(moving.SKU, 1)
					h.heard = append(h.heard, func() { f.submit(h, l, b, func() { l.board.resubmit(moving.SKU, -1) }) })
				}
			},
			left: func() bool { return !b.waits.Equal(until) || f.now().After(until) },
		}) {
			b.waits = time.Time{}
			b.unpledge()
		}
	})
}

// refused checks that OUT_OF_STOCK is true, also of a coupon's redemptions: nothing came in or came free since a while before the buyer
// asked, so what there is now is at most what there was when it was decided. The buyer wants less.
func (f *fleet) refused(b *buyer, asked time.Time, refusal error) {
	b.request = Request{}
	var out *domain.OutOfStockError
	var coupon *domain.CouponLimitError
	switch {
	case errors.As(refusal, &coupon):
		b.want.CouponCode = ""
		if coupon.Scope == domain.CouponLimitTotal {
			f.soldOut(b, asked, domain.CouponPool("TEN"), 1)
		}
	case errors.Is(refusal, domain.ErrCouponInvalid):
		b.want.CouponCode = ""
	case errors.Is(refusal, domain.ErrCampaignNotFound), errors.Is(refusal, domain.ErrCampaignLimit):
		b.want.CampaignID = ""
	case errors.As(refusal, &out):
		f.soldOut(b, asked, out.SKU, out.Want)
		b.want.Lines = slices.Clone(b.want.Lines)
		for i := range b.want.Lines {
			if line := &b.want.Lines[i]; line.SKU == domain.HomeKey(out.SKU) {
				if line.Units--; line.Units == 0 {
					b.want.Lines = slices.Delete(b.want.Lines, i, i+1)
				}
				break
			}
		}
		b.done = len(b.want.Lines) == 0
	default:
		panic(fmt.Sprintf("%s is refused: %v", b.user, refusal))
	}
}

// soldOut checks that no more units can be had than a buyer was told.
func (f *fleet) soldOut(b *buyer, asked time.Time, stockKey string, want int64) {
	f.did.soldOut++
	if err := f.check(); err != nil { // The answer may come with the commit that took the last units.
		panic(err.Error())
	}
	if f.cameFree[stockKey].After(asked.Add(-2 * fleetVerdictFor)) {
		return
	}
	if l := domain.Sum(f.accounts[stockKey]); l.Central+l.InTransit+l.Allotted >= want {
		panic(fmt.Sprintf("%s is told that %d units of %s are sold out, but %+v", b.user, want, stockKey, l))
	}
}

// check folds what the logs have gained.
func (f *fleet) check() error {
	for lane, log := range f.logs {
		for f.checked[lane].Number < log.Position().Number {
			record, err := log.Read(context.Background(), f.checked[lane].Number+1)
			if err != nil {
				return f.failf("read: %v", err)
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err != nil {
				return f.failf("decode: %v", err)
			}
			f.checked[lane] = eventstore.Position{Number: record.Number, Hash: record.Hash}
			for i := range commit.Events {
				if err := f.fold(commit, &commit.Events[i]); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (f *fleet) fold(commit *eventstore.Commit, envelope *eventstore.Event) error {
	if envelope.Type == eventstore.TypeLaneOpened {
		return nil
	}
	event, err := stored.Decode(envelope.Type, envelope.Version, envelope.AggregateID, envelope.UserID, envelope.Payload)
	if err != nil {
		return f.failf("decode: %v", err)
	}
	if moved, ok := event.(domain.PoolFilled); ok {
		f.did.filled += int(moved.Units)
	}
	for sku := range domain.SKUs(event) {
		accounts := f.accounts[sku]
		if accounts == nil {
			accounts = map[uint32]domain.Account{}
			f.accounts[sku] = accounts
		}
		accounts[commit.Lane] = accounts[commit.Lane].Evolve(event, sku)
		if err := domain.Conserved(accounts); err != nil {
			return f.failf("after commit %d of lane %d, %s: %v", commit.Number, commit.Lane, sku, err)
		}
		switch event.(type) {
		case domain.StockReceived, domain.OrderCancelled, domain.OrderExpired, domain.ReturnReceived, domain.PoolFilled, domain.PoolDrained:
			f.cameFree[sku] = f.now()
		}
	}
	if id, ok := domain.OrderOf(event); ok {
		f.count(event, f.orders[id])
		f.orders[id] = f.orders[id].Evolve(event, commit.Time)
	}
	if put, ok := event.(domain.CampaignPut); ok {
		f.know(func(c *Catalog) {
			c.putCampaign(CampaignEntry{Campaign: domain.Campaign{}.Evolve(put, commit.Time), Commit: commit.Number})
		})
	}
	if put, ok := event.(domain.CouponPut); ok {
		f.know(func(c *Catalog) {
			c.putCoupon(CouponEntry{Coupon: domain.Coupon{}.Evolve(put, commit.Time), Commit: commit.Number})
		})
	}
	return nil
}

// know tells every host of a campaign or a coupon: what it does not own the home lane of, it would learn late otherwise.
func (f *fleet) know(put func(*Catalog)) {
	f.facts = append(f.facts, put)
	for _, h := range f.hosts {
		if h.catalog != nil {
			put(h.catalog)
		}
	}
}

// count counts what an event did to an order.
func (f *fleet) count(event domain.Event, before domain.Order) {
	switch event := event.(type) {
	case domain.OrderPlaced:
		f.placed = append(f.placed, event.OrderID)
		if event.Pool != "" {
			f.did.pooled++
		}
		if event.CouponPool != "" {
			f.did.redeemed++
		}
	case domain.OrderCancelled:
		if before.Payment == domain.PayCaptured {
			f.did.cancelled++
		}
	case domain.ReturnReceived:
		if len(event.Restocked) > 0 {
			f.did.restocked++
		}
	}
}

const (
	fleetSteps = 1500
	// fleetCalmMax is how many steps without faults a fleet may take until nothing moves any more.
	fleetCalmMax = 30_000
)

// fleetCountsLeast is the least that hundred seeds do of everything: see simCountsLeast.
var fleetCountsLeast = fleetCounts{
	orders: 500, soldOut: 2000, woken: 500, pooled: 50, redeemed: 60, cancelled: 15, restocked: 90, filled: 350,
}

func TestFleetSimulation(t *testing.T) {
	first, seeds := simSeeds(t, simSeedsDefault/10)
	t.Logf("seeds %d to %d", first, first+seeds-1)
	began := time.Now()
	var did fleetCounts
	for seed := first; seed < first+seeds; seed++ {
		lanes := [...]uint32{1, 4, 4, 16}[seed%4]
		f := newFleet(seed, lanes, seed%8 >= 4, fleetPlant{})
		if err := f.run(fleetSteps, fleetCalmMax); err != nil {
			t.Fatalf("%v\nreplay: WEIR_SIM_SEED=%d WEIR_SIM_SEEDS=1 go test ./api/lanes -run 'TestFleetSimulation$'", err, seed)
		}
		did.add(f.did)
	}
	t.Logf("%d seeds in %s: %+v", seeds, time.Since(began).Round(time.Millisecond), did)
	if least := fleetCountsLeast; seeds >= 100 && (did.orders < least.orders || did.soldOut < least.soldOut || did.woken < least.woken ||
		did.pooled < least.pooled || did.redeemed < least.redeemed || did.cancelled < least.cancelled || did.restocked < least.restocked ||
		did.filled < least.filled) {
		t.Errorf("%d seeds did %+v, want at least %+v", seeds, did, least)
	}
}

func TestASeedOfAFleetIsReplayedExactly(t *testing.T) {
	first, seeds := simSeeds(t, simSeedsDefault/20)
	t.Logf("seeds %d to %d", first, first+seeds-1)
	for seed := first; seed < first+seeds; seed++ {
		var ends [2][]eventstore.Position
		var steps [2]int
		for i := range ends {
			f := newFleet(seed, [...]uint32{1, 4, 4, 16}[seed%4], seed%8 >= 4, fleetPlant{})
			if err := f.run(fleetSteps, fleetCalmMax); err != nil {
				t.Fatal(err)
			}
			ends[i], steps[i] = f.checked, f.step
		}
		if !slices.Equal(ends[0], ends[1]) || steps[0] != steps[1] {
			t.Fatalf("seed %d is replayed otherwise: its logs end at %v after %d steps, then at %v after %d", seed, ends[0], steps[0], ends[1], steps[1])
		}
	}
}

// TestASaleOverSixteenLanesLeavesNothingStranded: as long as buyers ask, every unit is sold, wherever it was.
func TestASaleOverSixteenLanesLeavesNothingStranded(t *testing.T) {
	first, seeds := simSeeds(t, simSeedsDefault/10)
	t.Logf("seeds %d to %d", first, first+seeds-1)
	began := time.Now()
	var sold int64
	for seed := first; seed < first+seeds; seed++ {
		f := newFleet(seed, 16, true, fleetPlant{})
		f.receiveMax = 400
		if err := f.run(fleetSteps, 4*fleetCalmMax); err != nil {
			t.Fatalf("%v\nreplay: WEIR_SIM_SEED=%d WEIR_SIM_SEEDS=1 go test ./api/lanes -run 'TestASaleOver'", err, seed)
		}
		for _, b := range f.buyers {
			l := domain.Sum(f.accounts[b.sku])
			if l.Received == 0 || l.Reserved != l.Received {
				t.Fatalf("seed %d: all buyers of %s were told that it is sold out, and %d units are stranded: %+v", seed, b.sku, l.Received-l.Reserved, l)
			}
		}
		sold += domain.Sum(f.accounts[f.buyers[0].sku]).Reserved
	}
	t.Logf("%d seeds in %s: %d units of the first product sold, 0 stranded", seeds, time.Since(began).Round(time.Millisecond), sold)
}

func TestTheFleetSimulationFindsPlantedBugs(t *testing.T) {
	spoiled := func(kind MessageKind, spoil func(*Message)) func(Message) []Message {
		return func(m Message) []Message {
			if m.Kind == kind {
				spoil(&m)
			}
			return []Message{m}
		}
	}
	for name, bug := range map[string]fleetPlant{
		"a return that came again is reclaimed again": {command: func(m *Machine, command domain.Command) domain.Command {
			if reclaim, ok := command.(domain.ReclaimStock); ok {
				reclaim.ReturnNumber = m.Stock(reclaim.SKU).ReclaimedFrom(reclaim.FromLane).Number + 1
				return reclaim
			}
			return command
		}},
		"a grant that came again is taken again": {command: func(m *Machine, command domain.Command) domain.Command {
			if allot, ok := command.(domain.AllotStock); ok {
				allot.GrantNumber = m.Stock(allot.SKU).Taken.Number + 1
				return allot
			}
			return command
		}},
		"the verdict is given while units are on their way home": {message: spoiled(MessageAnswer, func(m *Message) { m.Number = 0 })},
		"the verdict is given while a lane has idle units":       {message: spoiled(MessageAnswer, func(m *Message) { m.Units = 0 })},
		"a grant counts as taken before it is": {message: func(m Message) []Message {
			if m.Kind == MessageGrant {
				return []Message{{Kind: MessageTaken, SKU: m.SKU, From: m.To, To: m.From, Number: m.Number}}
			}
			return []Message{m}
		}},
		"no return is ever delivered": {message: func(m Message) []Message {
			if m.Kind == MessageReturn {
				return nil
			}
			return []Message{m}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(plantedFirst); seed < plantedFirst+3000; seed++ {
				if err := newFleet(seed, 4, seed%2 == 0, bug).run(fleetSteps, fleetCalmMax/5); err != nil {
					t.Logf("found after %d seeds: %v", seed-plantedFirst+1, err)
					return
				}
			}
			t.Errorf("not found in 3,000 seeds from %d on", plantedFirst)
		})
	}
}
