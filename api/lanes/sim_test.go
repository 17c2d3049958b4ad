package lanes

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// The simulation: two nodes that share one lane by leases, or fight over it, through bad connections to one log, with crashes at any step,
// lost disks, pauses of 30 s and more, leases that cannot be renewed though the log is reached, clocks that jump by up to 10 min, and clients that
// send again. One goroutine, all chance from one seed, so that a
// failure is replayed to the byte by
//
//	WEIR_SIM_SEED=<seed> WEIR_SIM_SEEDS=1 go test ./api/lanes -run TestSimulation
//
// What Pebble does in the background leaves no trace: what a crash leaves is what was flushed, and only steps flush.
//
// After every step it checks
//
//	I1  what was acknowledged is in the log, at its position
//	I2  numbers are contiguous and the chain holds
//	I3  every SKU's units are conserved, none negative
//	I4  one effect a request, one body and one reply a request, also of one that found nothing to do; a payment takes money once and gives back no more
//	    nothing is written under an epoch that is over
//	O2  a refusal, which leaves nothing in the log that could be refused, is given by the node that opened the lane last
//	    deadlines, windows of campaigns and the grace of payments go by log time
//	I5  at the end, when all is well: no order keeps its units beyond its time
type simulation struct {
	seed   uint64
	chance *rand.Rand
	plant  plant
	log    *eventstore.MemoryLog
	nodes  []*simNode
	holder *simNode // who opened the lane last
	lease  simLease
	wrong  error // what a node has answered
	step   int
	trace  hash.Hash // of what happened, step by step

	opening  []Request // what the shop opens with
	requests []Request
	replies  map[requestKey]Reply       // acknowledged
	bodies   map[requestKey]Fingerprint // that were acknowledged

	// The fold of the log, up to checked.
	checked  eventstore.Position
	accounts map[string]domain.Account
	uses     map[domain.Use]int64
	effects  map[requestKey]uint64 // commit in which a request took effect
	answered map[requestKey]bool   // those that found nothing to do
	orders   map[domain.OrderID]domain.Order
	placed   []domain.OrderID
	taken    map[string]int64 // minor units that a payment took, and that were given back of it
	refunded map[string]int64
	logTime  time.Time
	epoch    uint64 // of the newest LaneOpened
	windows  map[string]domain.CampaignPut
	erased   map[erasedKey]uint64 // commit of the erasure
	did      simCounts
}

// simCounts count what a simulation did, so that one that does nothing is noticed.
type simCounts struct {
	replies  int // acknowledged requests
	nothing  int // requests that found nothing to do
	expired  int // orders
	paid     int // payments that took money
	refunded int // payments that gave some back
	shipped  int // shipments
	returned int // returns that came in
	limited  int // changes of what users hold of campaigns and coupons
	refused  int // orders refused for what their user holds of a campaign or a coupon
	crashes  int // after which something was left of the state
	overrun  int // pauses during which the other node took the lane
	jumped   int // clocks that jumped by minutes
	lapsed   int // answers that were not given, since the lease was over
}

// A simLease is the lane's lease as the bucket has it.
type simLease struct {
	holder *simNode
	until  int // the step at which it ends
}

// add adds the counts of another simulation.
func (c *simCounts) add(o simCounts) {
	c.replies, c.nothing, c.expired, c.paid, c.refunded = c.replies+o.replies, c.nothing+o.nothing, c.expired+o.expired, c.paid+o.paid, c.refunded+o.refunded
	c.shipped, c.returned, c.limited, c.refused = c.shipped+o.shipped, c.returned+o.returned, c.limited+o.limited, c.refused+o.refused
	c.crashes, c.overrun, c.jumped, c.lapsed = c.crashes+o.crashes, c.overrun+o.overrun, c.jumped+o.jumped, c.lapsed+o.lapsed
}

// A plant is a bug put in on purpose: the simulation must find it.
type plant struct {
	// log wraps a node's log.
	log func(*simNode, eventstore.Log) eventstore.Log
	// machine spoils a node's machine before each decision.
	machine func(*Machine)
	// ownClock makes the machine decide requests, dueByOwnClock deadlines, by a clock of its own and not by log time.
	ownClock, dueByOwnClock bool
	// outlivesLease makes a node answer after its lease is over.
	outlivesLease bool
	// revivesLease makes a node renew a lease that is over, and go on with what it had before.
	revivesLease bool
}

type simNode struct {
	name    string
	fs      *vfs.MemFS
	store   *projections.Store
	log     *eventstore.FaultLog
	writer  *eventstore.Writer[Request, Outcome]
	skew    time.Duration
	waiting []eventstore.Ask[Request, Outcome]
	// pausedUntil is the step at which a paused node goes on as if nothing had been; 0 once it opened the lane again.
	pausedUntil int
	// heldUntil is the step at which it no longer uses its lease, cutUntil the one from which on it reaches the leases again.
	heldUntil, cutUntil int
	flushed             bool // something is left after a crash
}

const (
	simPayWithin    = 40 * time.Second
	simPaymentGrace = 20 * time.Second
	// simLeaseSteps is how long a lease lasts; whoever has it stops simLeaseMargin before that.
	simLeaseSteps  = 12
	simLeaseMargin = 1
	// simBulkBytes is the size from which every fourth seed's nodes write a batch as tables: a few commits.
	simBulkBytes = 1 << 10
)

func newSimulation(seed uint64, plant plant) *simulation {
	s := &simulation{
		seed: seed, chance: rand.New(rand.NewPCG(seed, 0x5ea)), plant: plant,
		log:     eventstore.OpenMemoryLog(0, 1),
		replies: map[requestKey]Reply{}, bodies: map[requestKey]Fingerprint{}, answered: map[requestKey]bool{}, accounts: map[string]domain.Account{}, effects: map[requestKey]uint64{}, erased: map[erasedKey]uint64{},
		orders: map[domain.OrderID]domain.Order{}, taken: map[string]int64{}, refunded: map[string]int64{}, uses: map[domain.Use]int64{},
		checked: eventstore.Genesis(0, 1), windows: map[string]domain.CampaignPut{}, trace: sha256.New(),
	}
	s.open()
	harsh := s.chance.Float64() // From hardly a fault to hardly anything else.
	if !s.fights() {
		harsh /= 4
	}
	rate := func(most float64) float64 { return s.chance.Float64() * harsh * most }
	replicated := s.chance.IntN(2) == 0
	for i := range 2 {
		s.nodes = append(s.nodes, &simNode{
			name: fmt.Sprintf("node-%d", i), fs: vfs.NewCrashableMem(),
			log: eventstore.NewFaultLog(s.log, eventstore.FaultOptions{
				Replicated: replicated, AckLost: rate(0.2), Lost: rate(0.2), Delayed: rate(0.3), Refused: rate(0.2),
				Full: rate(0.05), ReadFails: rate(0.1), Stale: rate(0.2),
			}, s.chance),
		})
	}
	return s
}

func (s *simulation) failf(format string, args ...any) error {
	return fmt.Errorf("seed %d, step %d, log at %d: %s", s.seed, s.step, s.log.Position().Number, fmt.Sprintf(format, args...))
}

// run takes steps and then heals the world and checks the whole.
func (s *simulation) run(steps int) (err error) {
	defer func() {
		if bug := recover(); bug != nil {
			err = s.failf("panic: %v", bug)
		}
		for _, n := range s.nodes {
			n.close()
		}
	}()
	for s.step = range steps {
		n := s.node()
		if err := s.act(n); err != nil {
			return err
		}
		if s.wrong != nil {
			return s.wrong
		}
		if err := s.check(); err != nil {
			return err
		}
		s.traced(n)
	}
	defer func() { s.traced(s.nodes[0]) }()
	return s.finish()
}

// fights says that this world is one of the four in which there are no leases, and both nodes want the lane all the time. In the others
// whoever has it keeps it for a while, so that orders come far in their lives.
func (s *simulation) fights() bool { return s.seed%4 == 0 }

// traced adds a step to the trace.
func (s *simulation) traced(n *simNode) {
	var epoch uint64
	if n.writer != nil {
		epoch = n.writer.Epoch()
	}
	fmt.Fprintln(s.trace, s.step, n.name, epoch, n.skew, len(n.waiting), len(s.replies), s.log.Position())
}

// node picks who takes the next step.
func (s *simulation) node() *simNode {
	n := s.nodes[s.chance.IntN(len(s.nodes))]
	if s.holder != nil && !s.fights() && s.chance.IntN(12) > 0 {
		n = s.holder
	}
	for _, other := range s.nodes { // Who has just gone on after a pause has a lot to do.
		if other.pausedUntil > 0 && !s.paused(other) && s.chance.IntN(2) == 0 {
			n = other
		}
	}
	if s.paused(n) {
		return s.other(n)
	}
	return n
}

func (s *simulation) paused(n *simNode) bool { return s.step < n.pausedUntil }

func (s *simulation) other(n *simNode) *simNode {
	if n == s.nodes[0] {
		return s.nodes[1]
	}
	return s.nodes[0]
}

// renew takes the lease of a lane that is free, or makes one that the node has last longer, and reports whether it could. The node counts
// from before it asked, the bucket from after.
func (s *simulation) renew(n *simNode) bool {
	if s.step < n.cutUntil || s.lease.holder != n && s.step < s.lease.until {
		return false
	}
	s.lease = simLease{n, s.step + simLeaseSteps}
	n.heldUntil = s.step + simLeaseSteps - simLeaseMargin
	return true
}

// holds reports whether a node may answer: its lease is certainly nobody else's.
func (s *simulation) holds(n *simNode) bool {
	return s.fights() || s.plant.outlivesLease || s.step < n.heldUntil
}

// act takes one step at one node.
func (s *simulation) act(n *simNode) error {
	if n.writer != nil && n.writer.Epoch() != 0 && !s.fights() {
		if s.chance.IntN(2) == 0 && (s.step < n.heldUntil || s.plant.revivesLease) { // As ownership.Node does.
			s.renew(n)
		}
		if !s.holds(n) && s.chance.IntN(3) == 0 { // It notices.
			n.writer.StepDown(nil)
		}
	}
	switch dice := s.chance.IntN(100); {
	case n.writer == nil:
		return s.start(n)
	case dice < 2:
		return s.crash(n)
	case dice < 3:
		n.close()
		n.fs, n.flushed = vfs.NewCrashableMem(), false // The disk is lost; the log is not.
		return nil
	case dice < 5:
		n.skew = time.Duration(s.chance.IntN(60)-30) * time.Second
		if s.chance.IntN(8) == 0 {
			n.skew *= 20
			s.did.jumped++
		}
		return nil
	case dice < 8:
		n.flushed = true
		return n.store.Flush()
	case dice < 9 && n.writer.Epoch() != 0 && !s.paused(s.other(n)):
		n.pausedUntil = s.step + 30 + s.chance.IntN(30)
		return nil
	case dice < 10 && n.writer.Epoch() != 0:
		n.cutUntil = s.step + simLeaseSteps + s.chance.IntN(30)
		return nil
	case n.writer.Epoch() == 0 && !s.fights() && !s.renew(n):
		return nil
	case n.writer.Epoch() == 0:
		switch err := n.writer.Open(context.Background(), s.now(n)); {
		case isDamage(err):
			return s.failf("%s opens: %v", n.name, err)
		case err == nil:
			s.holder, n.pausedUntil = n, 0
		}
		return nil
	case dice < 50:
		if s.holds(n) {
			n.waiting = append(n.waiting, s.ask(n))
		}
		return nil
	case dice < 75:
		if n.writer.Ready() {
			n.waiting = n.waiting[n.writer.Propose(n.waiting, s.now(n)):]
		}
		return nil
	default:
		if err := n.writer.Settle(context.Background()); isDamage(err) {
			return s.failf("%s settles: %v", n.name, err)
		}
		return nil
	}
}

func isDamage(err error) bool {
	var chain *eventstore.ChainError
	return errors.As(err, &chain)
}

// now is a node's clock: a second a step, skewed.
func (s *simulation) now(n *simNode) time.Time {
	return start.Add(time.Duration(s.step)*time.Second + n.skew)
}

func (s *simulation) start(n *simNode) error {
	options := projections.StoreOptions{FS: n.fs}
	if s.seed%4 == 0 {
		options.BulkBytes = simBulkBytes
	}
	store, err := projections.OpenStore("state", options)
	if err != nil {
		return s.failf("open store: %v", err)
	}
	n.store = store
	machine, err := s.machine(n)
	if err != nil {
		return s.failf("open machine: %v", err)
	}
	var log eventstore.Log = n.log
	if s.plant.log != nil {
		log = s.plant.log(n, log)
	}
	n.writer = eventstore.NewWriter(log, machine, eventstore.WriterOptions{
		Lane: 0, Lanes: 1, Owner: n.name, ResolveAttemptsMax: 4, DueMax: 3, CommitBytesMax: 600,
		Pause: func(context.Context, int) error { return nil },
	})
	return nil
}

func (s *simulation) machine(n *simNode) (eventstore.Machine[Request, Outcome], error) {
	machine, err := OpenMachine(MachineOptions{
		Lane: 0, Topology: eventstore.Topology{Lanes: 1}, Store: n.store, Catalog: NewCatalog(),
		PayWithin: simPayWithin, PaymentGrace: simPaymentGrace, ReckonEvery: 1 + s.seed%5, Entropy: rand.NewChaCha8([32]byte{byte(s.seed), byte(s.step), byte(s.chance.Uint32())}),
	})
	if err != nil {
		return nil, err
	}
	return plantedMachine{machine, s}, nil
}

type plantedMachine struct {
	*Machine
	s *simulation
}

// ownTime is what a clock says that nobody keeps but the machine.
func (m plantedMachine) ownTime() time.Time {
	return start.Add(time.Duration(m.s.step) * time.Second)
}

func (m plantedMachine) Decide(request Request, at time.Time) eventstore.Decision[Outcome] {
	if m.s.plant.machine != nil {
		m.s.plant.machine(m.Machine)
	}
	if m.s.plant.ownClock {
		at = m.ownTime()
	}
	return m.Machine.Decide(request, at)
}

func (m plantedMachine) Due(at time.Time, limit int) []eventstore.Event {
	if m.s.plant.dueByOwnClock {
		at = m.ownTime()
	}
	return m.Machine.Due(at, limit)
}

// crash stops a node as a power cut does.
func (s *simulation) crash(n *simNode) error {
	after, err := afterCrash(n.fs, n.flushed, s.chance.Uint64())
	if err != nil {
		return s.failf("crash: %v", err)
	}
	if n.flushed {
		s.did.crashes++
	}
	n.close()
	n.fs = after
	return nil
}

// afterCrash returns what a power cut leaves of a store: what was flushed, and of the rest what a chance of its own wants. That draws as
// often as there are files, which Pebble makes and deletes in the background.
func afterCrash(fs *vfs.MemFS, flushed bool, seed uint64) (*vfs.MemFS, error) {
	if flushed { // Or the file system would forget the directory itself.
		root, err := fs.OpenDir("/")
		if err != nil {
			return nil, err
		}
		if err := errors.Join(root.Sync(), root.Close()); err != nil {
			return nil, err
		}
	}
	chance := rand.New(rand.NewPCG(seed, 0xc4a5))
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: chance.IntN(101), RNG: chance}), nil
}

func (n *simNode) close() {
	if n.store != nil {
		_ = n.store.Close()
	}
	n.store, n.writer, n.waiting, n.pausedUntil, n.heldUntil = nil, nil, nil, 0, 0
}

// ask makes a new request, or sends one again.
func (s *simulation) ask(n *simNode) eventstore.Ask[Request, Outcome] {
	request := s.next()
	if s.chance.IntN(32) == 0 { // Its id under another body.
		request.Fingerprint[0] ^= 1
	}
	return eventstore.Ask[Request, Outcome]{Question: request, Reply: func(outcome Outcome, err error) {
		switch {
		case err != nil:
			return
		case !s.holds(n): // As in seat.decide.
			s.did.lapsed++
			return
		case outcome.Refusal != nil && !s.fights() && n.writer.Epoch() != s.epoch:
			s.wrong = s.failf("%s, which opened the lane at %d, refuses %s: %v; since %d another one has it (O2)", n.name, n.writer.Epoch(), request.RequestID, outcome.Refusal, s.epoch)
		}
		if errors.Is(outcome.Refusal, domain.ErrCampaignLimit) || errors.Is(outcome.Refusal, domain.ErrCouponLimit) {
			s.did.refused++
		}
		if outcome.Refusal == nil {
			s.acknowledged(n, request, *outcome.Reply)
		}
	}}
}

// next returns what is asked next: what the shop opens with until it is acknowledged, then anything new, and now and then what was
// asked before.
func (s *simulation) next() Request {
	for _, request := range s.opening {
		if _, ok := s.replies[requestKey{request.UserID, request.RequestID}]; !ok && s.chance.IntN(2) == 0 {
			return request
		}
	}
	if s.chance.IntN(5) == 0 {
		return s.requests[s.chance.IntN(len(s.requests))]
	}
	if s.chance.IntN(5) == 0 {
		return s.requests[len(s.requests)-1]
	}
	s.requests = append(s.requests, s.request())
	return s.requests[len(s.requests)-1]
}

const simSKUs = 2

// open makes the requests that a shop opens with: products, their units, a campaign and a coupon.
func (s *simulation) open() {
	var requests []Request
	for i := range simSKUs {
		sku := fmt.Sprintf("sku-%d", i)
		requests = append(
			requests,
			catalogRequest(sku, "put-"+sku, domain.PutProduct{SKU: sku, Title: sku, Price: domain.Money{Currency: "EUR", Minor: 100}}),
			catalogRequest(sku, "receive-"+sku, domain.ReceiveStock{SKU: sku, Units: 20}),
			s.campaign(sku, "campaign-"+sku, 50, 8, 1, 0, 10*time.Minute),
		)
	}
	s.opening = append(requests, couponRequest("TEN", "coupon", domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000, UserUsesMax: 1, UsesMax: 8}))
	s.requests = slices.Clone(s.opening)
}

// campaign makes a request for the campaign of a product.
func (s *simulation) campaign(sku, id string, priceMinor, units, userUnitsMax int64, opens, lasts time.Duration) Request {
	return catalogRequest(sku, id, domain.PutCampaign{
		CampaignID: "flash", SKU: sku, Price: domain.Money{Currency: "EUR", Minor: priceMinor}, OpensAt: start.Add(opens), ClosesAt: start.Add(opens + lasts),
		Units: units, UserUnitsMax: userUnitsMax,
	})
}

func (s *simulation) request() Request {
	number := int64(len(s.requests))
	id := fmt.Sprintf("r%d", number)
	sku := fmt.Sprintf("sku-%d", s.chance.IntN(simSKUs))
	userID := fmt.Sprintf("user-%d", s.chance.IntN(3))
	// The user's key as of some time or other: whoever seals may have an old one in memory.
	key := domain.KeyID(len(s.erased)/3 + s.chance.IntN(3) + 1)
	switch s.chance.IntN(36) {
	case 0:
		return eraseUser(userID, id, key)
	case 1:
		return placeSealed(userID, id, sku, key)
	case 2:
		opens := time.Duration(s.step-60+s.chance.IntN(90)) * time.Second
		return s.campaign(sku, id, number, 3+s.chance.Int64N(6), s.chance.Int64N(3), opens, time.Duration(60+s.chance.IntN(600))*time.Second)
	case 3:
		return couponRequest("TEN", id, domain.CouponTerms{
			Kind: domain.CouponPercentage, RateBps: 1 + number/32, UserUsesMax: s.chance.Int64N(3), UsesMax: s.chance.Int64N(8),
		})
	case 4:
		return catalogRequest(sku, id, domain.PutProduct{SKU: sku, Title: fmt.Sprint("T", number/32), Price: domain.Money{Currency: "EUR", Minor: 100}})
	case 5:
		return catalogRequest(sku, id, domain.ReceiveStock{SKU: sku, Units: s.chance.Int64N(5) + 1})
	case 6:
		if order, ok := s.anyOrder(); ok {
			return cancelOrder(order, id)
		}
		fallthrough
	case 7, 8, 9, 10:
		request := place(userID, id, sku, 1)
		command := request.Command.(domain.PlaceOrder)
		command.CampaignID = []string{"", "flash", "flash"}[s.chance.IntN(3)]
		command.CouponCode = []string{"", "TEN"}[s.chance.IntN(2)]
		request.Command, request.Fingerprint = command, fingerprint(command)
		return request
	case 11, 12:
		return place(userID, id, sku, s.chance.Int64N(3)+1)
	default:
		if order, ok := s.living(); ok {
			return s.ofLife(order, id)
		}
		return place(userID, id, sku, s.chance.Int64N(3)+1)
	}
}

// living picks an order that goes on: mostly a paid one, as long as there are few of them, or one of the newest.
func (s *simulation) living() (domain.Order, bool) {
	var paid []domain.Order
	for _, id := range s.placed {
		if order := s.orders[id]; order.Payment == domain.PayCaptured || order.Payment == domain.PayPartiallyRefunded {
			paid = append(paid, order)
		}
	}
	if len(paid) > 0 && s.chance.IntN(3) > 0 {
		return paid[max(0, len(paid)-1-s.chance.IntN(2))], true
	}
	if count := len(s.placed); count > 0 {
		return s.orders[s.placed[count-1-s.chance.IntN(min(count, 3))]], true
	}
	return domain.Order{}, false
}

// ofLife makes a request that takes an order further: a user's, an operator's or a reactor's.
func (s *simulation) ofLife(order domain.Order, id string) Request {
	payment := max(len(order.Payments)-s.chance.IntN(2), 1)
	units := []domain.LineRequest{{SKU: order.Lines[0].SKU, Units: 1}}
	step := s.chance.IntN(15)
	if s.chance.IntN(4) > 0 { // Straight on, or no order comes far.
		switch order.Payment {
		case domain.PayNone, domain.PayVoided:
			step = 0
		case domain.PayPending, domain.PayAuthorized, domain.PayUnknown:
			payment, step = max(len(order.Payments), 1), 1
		case domain.PayCaptured, domain.PayPartiallyRefunded, domain.PayRefunded:
			step = 8 + s.chance.IntN(7)
		}
	}
	switch step {
	case 0:
		return pay(order, id)
	case 1, 2, 3, 4:
		return result(order, payment, domain.ResultCaptured)
	case 5, 6:
		return result(order, payment, domain.PaymentResult(s.chance.IntN(5)+1))
	case 7:
		return ofOrder(order, "", domain.CapturePayment{OrderID: order.ID, By: "clerk"})
	case 8:
		if count := len(order.Refunds); count > 0 && order.Refunds[count-1].State == domain.RefundUnderWay {
			refund := order.Refunds[count-1]
			return ofOrder(order, "", domain.RecordRefundResult{OrderID: order.ID, RefundID: refund.ID, Succeeded: true, Amount: refund.Amount})
		}
		amount := domain.Money{Currency: "EUR", Minor: order.Total.Minor/2 + s.chance.Int64N(2)}
		return ofOrder(order, id, domain.RefundPayment{OrderID: order.ID, Amount: amount})
	case 9:
		if count := len(order.Refunds); count > 0 {
			refund := order.Refunds[s.chance.IntN(count)]
			return ofOrder(order, "", domain.RecordRefundResult{
				OrderID: order.ID, RefundID: refund.ID, Succeeded: s.chance.IntN(3) > 0, Amount: refund.Amount,
			})
		}
		return ofOrder(order, "", domain.VoidPayment{OrderID: order.ID, By: "clerk"})
	case 10, 11:
		return ofOrder(order, id, domain.ShipItems{OrderID: order.ID, Lines: units})
	case 12:
		if count := len(order.Shipments); count > 0 {
			return ofOrder(order, []string{"", id}[s.chance.IntN(2)], domain.ConfirmDelivery{OrderID: order.ID, ShipmentID: order.Shipments[count-1].ID, By: "clerk"})
		}
		return ofOrder(order, id, domain.AddNote{OrderID: order.ID, By: "clerk", Sealed: []byte(id)})
	default:
		if count := len(order.Returns); count > 0 && order.Returns[count-1].ReceivedAt.IsZero() {
			return ofOrder(order, id, domain.ReceiveReturn{OrderID: order.ID, ReturnID: order.Returns[count-1].ID, Restock: units})
		}
		return ofOrder(order, id, domain.RequestReturn{OrderID: order.ID, Lines: units})
	}
}

// anyOrder picks an acknowledged order, by chance from the seed alone.
func (s *simulation) anyOrder() (domain.Order, bool) {
	for range 8 {
		if len(s.requests) == 0 {
			break
		}
		request := s.requests[s.chance.IntN(len(s.requests))]
		reply, ok := s.replies[requestKey{request.UserID, request.RequestID}]
		if ok && !reply.Order.ID.IsZero() {
			return reply.Order, true
		}
	}
	return domain.Order{}, false
}

// acknowledged takes a reply as a client does, and holds it to I1 and I4 at that very moment.
func (s *simulation) acknowledged(n *simNode, request Request, reply Reply) {
	key := requestKey{request.UserID, request.RequestID}
	if request.RequestID == "" {
		return // A reactor is told how things are, which changes.
	}
	if before, ok := s.replies[key]; ok && !reflect.DeepEqual(before, reply) {
		panic(fmt.Sprintf("%s answers request %v with\n%+v\nbefore it was\n%+v (I4)", n.name, key, reply, before))
	}
	if body, ok := s.bodies[key]; ok && body != request.Fingerprint {
		panic(fmt.Sprintf("%s answers request %v under another body (I4)", n.name, key))
	}
	s.replies[key], s.bodies[key] = reply, request.Fingerprint
	if reply.Commit > s.log.Position().Number {
		panic(fmt.Sprintf("%s acknowledged commit %d, which the log does not have (I1)", n.name, reply.Commit))
	}
}

// check folds what the log has gained.
func (s *simulation) check() error {
	for s.checked.Number < s.log.Position().Number {
		record, err := s.log.Read(context.Background(), s.checked.Number+1)
		if err != nil {
			return s.failf("read: %v", err)
		}
		commit, err := eventstore.DecodeCommit(record.Data)
		if err != nil {
			return s.failf("decode: %v", err)
		}
		if err := s.checked.Check(commit, 0); err != nil {
			return s.failf("%v (I2)", err)
		}
		if commit.Time.Before(s.logTime) {
			return s.failf("log time goes back from %s to %s", s.logTime, commit.Time)
		}
		s.logTime = commit.Time
		s.checked = eventstore.Position{Number: record.Number, Hash: record.Hash}
		for _, envelope := range commit.Events {
			if err := s.fold(commit, envelope); err != nil {
				return err
			}
		}
	}
	for key, reply := range s.replies {
		took, ok := s.effects[key]
		if !ok {
			return s.failf("request %v was acknowledged at commit %d and is not in the log (I1)", key, reply.Commit)
		}
		// A request that found nothing to do names what it found, as of the commit that says so or before.
		if took != reply.Commit && (!s.answered[key] || took < reply.Commit) {
			return s.failf("request %v was acknowledged at commit %d and took effect at %d (I1)", key, reply.Commit, took)
		}
	}
	return nil
}

func (s *simulation) fold(commit *eventstore.Commit, envelope eventstore.Event) error {
	if envelope.Type == eventstore.TypeLaneOpened {
		s.epoch = commit.Number
		for _, n := range s.nodes {
			if s.paused(n) {
				s.did.overrun++
			}
		}
	}
	if commit.Epoch != s.epoch {
		return s.failf("commit %d is of epoch %d, which was over: it is %d (I4)", commit.Number, commit.Epoch, s.epoch)
	}
	if envelope.Type == eventstore.TypeLaneOpened {
		return nil
	}
	event, err := stored.Decode(envelope.Type, envelope.Version, envelope.AggregateID, envelope.UserID, envelope.Payload)
	if err != nil {
		return s.failf("decode: %v", err)
	}
	if err := s.foldTimes(event, commit.Time); err != nil {
		return s.failf("commit %d, at %s: %v", commit.Number, commit.Time, err)
	}
	if envelope.RequestID != "" {
		key := requestKey{envelope.UserID, envelope.RequestID}
		if before, ok := s.effects[key]; ok {
			return s.failf("request %v took effect at commits %d and %d (I4)", key, before, commit.Number)
		}
		s.effects[key] = commit.Number
	}
	if _, ok := event.(domain.RequestAnswered); ok {
		s.answered[requestKey{envelope.UserID, envelope.RequestID}] = true
		s.did.nothing++
	}
	for use, change := range domain.Uses(event) {
		s.did.limited++
		if s.uses[use] += change; s.uses[use] < 0 {
			return s.failf("after commit %d, %s holds %d of %s", commit.Number, use.UserID, s.uses[use], use.Of)
		}
	}
	switch event := event.(type) {
	case domain.UserErased:
		if before, ok := s.erased[erasedKey{event.UserID, event.Key}]; ok {
			return s.failf("key %d of %s is erased at commits %d and %d", event.Key, event.UserID, before, commit.Number)
		}
		s.erased[erasedKey{event.UserID, event.Key}] = commit.Number
	case domain.OrderPlaced:
		if key := sealedUnder(event.SealedPersonal); s.erased[erasedKey{event.UserID, key}] > 0 {
			return s.failf("commit %d places an order of %s under key %d, which is erased", commit.Number, event.UserID, key)
		}
		s.placed = append(s.placed, event.OrderID)
	case domain.OrderExpired:
		s.did.expired++
	case domain.ItemsShipped:
		s.did.shipped++
	case domain.ReturnReceived:
		s.did.returned++
	}
	if id, ok := domain.OrderOf(event); ok {
		s.orders[id] = s.orders[id].Evolve(event, commit.Time)
		if err := s.foldMoney(event); err != nil {
			return s.failf("after commit %d, order %v: %v", commit.Number, id, err)
		}
	}
	for sku := range domain.SKUs(event) {
		account := s.accounts[sku].Evolve(event, sku)
		s.accounts[sku] = account
		if err := account.Check(); err != nil {
			return s.failf("after commit %d, SKU %s: %v", commit.Number, sku, err)
		}
		if err := domain.Conserved(map[uint32]domain.Account{0: account}); err != nil {
			return s.failf("after commit %d, SKU %s: %v", commit.Number, sku, err)
		}
	}
	return nil
}

// foldTimes holds what has its time to log time: that of the commit, whatever the clocks said.
func (s *simulation) foldTimes(event domain.Event, at time.Time) error {
	switch e := event.(type) {
	case domain.CampaignPut:
		s.windows[e.Pool] = e
	case domain.OrderPlaced:
		if want := at.Add(simPayWithin); !e.PayBy.Equal(want) {
			return fmt.Errorf("order %v is to be paid by %s, want %s", e.OrderID, e.PayBy, want)
		}
		if w := s.windows[e.Pool]; e.Pool != "" && (at.Before(w.OpensAt) || !at.Before(w.ClosesAt)) {
			return fmt.Errorf("order %v is placed at %s, which is open from %s to %s", e.OrderID, e.Pool, w.OpensAt, w.ClosesAt)
		}
	case domain.PaymentStarted:
		if payBy := s.orders[e.OrderID].PayBy; !at.Before(payBy) {
			return fmt.Errorf("payment %s starts, which was to by %s", e.PaymentID, payBy)
		}
	case domain.OrderExpired:
		order := s.orders[e.OrderID]
		due := order.PayBy
		if order.Payment == domain.PayPending || order.Payment == domain.PayUnknown {
			due = due.Add(simPaymentGrace)
		}
		if at.Before(due) {
			return fmt.Errorf("order %v expires, which has until %s", e.OrderID, due)
		}
	default:
	}
	return nil
}

// expireAll lets log time go on until every deadline of now has passed, and checks that nothing keeps its units (I5).
func (s *simulation) expireAll(n *simNode) error {
	s.step += int((max(0, s.logTime.Sub(s.now(n))) + simPayWithin + simPaymentGrace).Seconds()) + 1
	for range len(s.placed) + 2 { // At least one expires each time, and what moved to a later time is looked at again.
		n.writer.Propose(nil, s.now(n))
		if err := s.settleAll(n); err != nil {
			return err
		}
	}
	for _, id := range s.placed {
		order := s.orders[id]
		if due := order.ExpiresAt(simPaymentGrace); !due.IsZero() {
			return s.failf("order %v has not expired by %s, it had until %s (I5)", id, s.now(n), due)
		}
	}
	return nil
}

// settleAll settles what is in flight at a node for which all is well.
func (s *simulation) settleAll(n *simNode) error {
	for n.writer.InFlight() > 0 {
		if err := n.writer.Settle(context.Background()); err != nil {
			return s.failf("settle after all is well: %v", err)
		}
	}
	return s.check()
}

// foldMoney adds up what payments took and gave back, apart from what the order says of itself.
func (s *simulation) foldMoney(event domain.Event) error {
	take := func(paymentID string, amount domain.Money) error {
		if before, twice := s.taken[paymentID]; twice {
			return fmt.Errorf("payment %s took %d and then %v (I4)", paymentID, before, amount)
		}
		s.taken[paymentID] = amount.Minor
		return nil
	}
	switch e := event.(type) {
	case domain.PaymentCaptured:
		return take(e.PaymentID, e.Amount)
	case domain.StrayPaymentFound:
		return take(e.PaymentID, e.Amount)
	case domain.PaymentRefunded:
		paymentID := e.RefundID[:strings.LastIndex(e.RefundID, "-r")]
		s.refunded[paymentID] += e.Amount.Minor
		if s.refunded[paymentID] > s.taken[paymentID] {
			return fmt.Errorf("payment %s took %d and gave back %d (I4)", paymentID, s.taken[paymentID], s.refunded[paymentID])
		}
	default:
	}
	return nil
}

// finish heals the world, but for the clocks; one node opens, and every acknowledged request gets its reply again, from the state that it has and from one
// made again from the log.
func (s *simulation) finish() error {
	for _, n := range s.nodes {
		n.log.Heal()
		n.log.Arrive()
	}
	n := s.nodes[0]
	for _, fresh := range []bool{false, true} {
		n.close()
		if fresh {
			n.fs = vfs.NewCrashableMem()
		}
		if err := s.start(n); err != nil {
			return err
		}
		if err := n.writer.Open(context.Background(), s.now(n)); err != nil {
			return s.failf("open after all is well: %v", err)
		}
		for _, request := range s.requests {
			key := requestKey{request.UserID, request.RequestID}
			before, ok := s.replies[key]
			if !ok {
				continue
			}
			answered, refused := false, false
			request.Fingerprint = s.bodies[key]
			ask := eventstore.Ask[Request, Outcome]{Question: request, Reply: func(outcome Outcome, err error) {
				answered = err == nil && outcome.Refusal == nil && reflect.DeepEqual(*outcome.Reply, before)
			}}
			other := eventstore.Ask[Request, Outcome]{Question: request, Reply: func(outcome Outcome, err error) {
				var reused *KeyReusedError
				refused = err == nil && errors.As(outcome.Refusal, &reused)
			}}
			other.Question.Fingerprint[0] ^= 1
			n.writer.Propose([]eventstore.Ask[Request, Outcome]{ask, other}, s.now(n))
			if err := s.settleAll(n); err != nil {
				return err
			}
			if !answered {
				return s.failf("request %s is not answered as before (I4), fresh state: %t", request.RequestID, fresh)
			}
			if !refused {
				return s.failf("request %s is not refused under another body (I4), fresh state: %t", request.RequestID, fresh)
			}
		}
		if err := s.expireAll(n); err != nil {
			return err
		}
		if err := s.checkUses(n); err != nil {
			return err
		}
	}
	return nil
}

// checkUses holds what a state counts of its users to the fold of the log.
func (s *simulation) checkUses(n *simNode) error {
	m, err := OpenMachine(MachineOptions{Lane: 0, Topology: eventstore.Topology{Lanes: 1}, Store: n.store, Catalog: NewCatalog()})
	if err != nil {
		return s.failf("open machine: %v", err)
	}
	for use, count := range s.uses {
		if got := m.Used(use); got != count {
			return s.failf("%s counts that %s holds %d of %s, the log says %d", n.name, use.UserID, got, use.Of, count)
		}
	}
	return nil
}

// simSeeds returns the first seed and how many to run, from WEIR_SIM_SEED and WEIR_SIM_SEEDS or else a fresh one and count.
func simSeeds(t *testing.T, count uint64) (first, seeds uint64) {
	number := func(name string, otherwise uint64) uint64 {
		text := os.Getenv(name)
		if text == "" {
			return otherwise
		}
		value, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return value
	}
	return number("WEIR_SIM_SEED", uint64(time.Now().UnixNano())), number("WEIR_SIM_SEEDS", count)
}

// plantedFirst is the seed from which a planted bug is looked for: seeds are replayed exactly, so that it is found or not, and never by
// luck.
const plantedFirst = 1

const simSteps = 280

// counts returns what a simulation did.
func (s *simulation) counts() simCounts {
	s.did.replies, s.did.paid, s.did.refunded = len(s.replies), len(s.taken), len(s.refunded)
	return s.did
}

// simCountsLeast is the least that hundred seeds do of everything, and a quarter at most of the least that any hundred of 2,000
// did: what did less has stopped doing it, chance has not.
var simCountsLeast = simCounts{
	replies: 500, expired: 100, paid: 38, refunded: 10, shipped: 26, returned: 8, limited: 150, refused: 10, nothing: 8, crashes: 70, overrun: 70, jumped: 13, lapsed: 15,
}

func TestSimulation(t *testing.T) {
	first, seeds := simSeeds(t, simSeedsDefault)
	t.Logf("seeds %d to %d", first, first+seeds-1)
	began := time.Now()
	var did simCounts
	var commits uint64
	for seed := first; seed < first+seeds; seed++ {
		s := newSimulation(seed, plant{})
		if err := s.run(simSteps); err != nil {
			t.Fatalf("%v\nreplay: WEIR_SIM_SEED=%d WEIR_SIM_SEEDS=1 go test ./api/lanes -run 'TestSimulation$'", err, seed)
		}
		commits += s.checked.Number
		did.add(s.counts())
	}
	t.Logf("%d seeds in %s: %d commits, %+v", seeds, time.Since(began).Round(time.Millisecond), commits, did)
	least := simCountsLeast
	for _, c := range []struct {
		what        string
		done, least int
	}{
		{"replies", did.replies, least.replies},
		{"expired orders", did.expired, least.expired},
		{"payments", did.paid, least.paid},
		{"refunded payments", did.refunded, least.refunded},
		{"shipments", did.shipped, least.shipped},
		{"returns", did.returned, least.returned},
		{"changes of limited uses", did.limited, least.limited},
		{"orders refused for a limit", did.refused, least.refused},
		{"requests that found nothing to do", did.nothing, least.nothing},
		{"crashes", did.crashes, least.crashes},
		{"pauses overrun", did.overrun, least.overrun},
		{"clocks that jumped", did.jumped, least.jumped},
		{"answers not given for want of a lease", did.lapsed, least.lapsed},
	} {
		if seeds >= 50 && c.done*100 < c.least*int(seeds) {
			t.Errorf("%d seeds from %d on had %d %s, want at least %d a hundred", seeds, first, c.done, c.what, c.least)
		}
	}
}

// TestASeedIsReplayedExactly: a seed that found something finds it again.
func TestASeedIsReplayedExactly(t *testing.T) {
	first, seeds := simSeeds(t, simSeedsDefault/10)
	t.Logf("seeds %d to %d", first, first+seeds-1)
	crashes := 0
	for seed := first; seed < first+seeds; seed++ {
		var traces [2][]byte
		for i := range traces {
			s := newSimulation(seed, plant{})
			if err := s.run(simSteps / 2); err != nil {
				t.Fatal(err)
			}
			traces[i] = s.trace.Sum(nil)
			crashes += s.did.crashes
		}
		if !bytes.Equal(traces[0], traces[1]) {
			t.Fatalf("seed %d is replayed otherwise: its trace is %x, then %x", seed, traces[0], traces[1])
		}
	}
	if seeds >= 10 && crashes == 0 {
		t.Errorf("%d seeds had no crash that left anything", seeds)
	}
}

// earlyAck answers before the log does.
type earlyAck struct{ eventstore.Log }

func (l earlyAck) Append(record eventstore.Record) eventstore.Pending {
	return earlyPending{l.Log.Append(record)}
}

type earlyPending struct{ eventstore.Pending }

func (earlyPending) Wait(context.Context) error { return nil }

// noFence appends on in spite of the fence: a refusal counts as stored.
type noFence struct{ eventstore.Log }

func (l noFence) Append(record eventstore.Record) eventstore.Pending {
	return unrefused{l.Log.Append(record)}
}

type unrefused struct{ eventstore.Pending }

func (p unrefused) Wait(ctx context.Context) error {
	if err := p.Pending.Wait(ctx); !errors.Is(err, eventstore.ErrConflict) {
		return err
	}
	return nil
}

// unfencedAfterPause takes what a node appends after a pause for stored, whatever the log says.
type unfencedAfterPause struct {
	eventstore.Log
	n *simNode
}

func (l unfencedAfterPause) Append(record eventstore.Record) eventstore.Pending {
	if l.n.pausedUntil > 0 {
		return unrefused{l.Log.Append(record)}
	}
	return l.Log.Append(record)
}

// chainClaimed lets the writer have two appends under way on a log that does not check what they follow.
type chainClaimed struct{ eventstore.Log }

func (chainClaimed) ChecksChain() bool { return true }

func TestTheSimulationFindsPlantedBugs(t *testing.T) {
	for name, bug := range map[string]plant{
		"reply before the ack":                        {log: func(_ *simNode, l eventstore.Log) eventstore.Log { return earlyAck{l} }},
		"skip the fence":                              {log: func(_ *simNode, l eventstore.Log) eventstore.Log { return noFence{l} }},
		"two appends under way without a chain check": {log: func(_ *simNode, l eventstore.Log) eventstore.Log { return chainClaimed{l} }},
		"go on after a pause as if the lane were held": {log: func(n *simNode, l eventstore.Log) eventstore.Log {
			return unfencedAfterPause{l, n}
		}},
		"answer after the lease is over":          {outlivesLease: true},
		"renew a lease that is over, and go on":   {revivesLease: true},
		"decide by a clock of its own":            {ownClock: true},
		"let orders expire by a clock of its own": {dueByOwnClock: true},
		"grant a payment under way no grace":      {machine: func(m *Machine) { m.options.PaymentGrace = time.Nanosecond }},
		"look at no deadline": {machine: func(m *Machine) {
			m.nextDue = m.logTime.Add(24 * time.Hour)
		}},
		"forget what was answered": {machine: func(m *Machine) {
			m.known = requestFilter{}
			clear(m.requests)
		}},
		"count what a user holds twice": {machine: func(m *Machine) {
			for use, change := range m.uses {
				if change.changes == 1 {
					must(m.db.Merge(m.keys.use(use), []byte{2}, pebble.NoSync))
				}
			}
		}},
		"forget what a payment took": {machine: func(m *Machine) {
			for id, spec := range m.orders {
				if spec.order.Payment == domain.PayCaptured {
					spec.order.Payments, spec.order.Payment = slices.Clone(spec.order.Payments), domain.PayPending
					spec.order.Payments[len(spec.order.Payments)-1].State = domain.PayPending
					m.orders[id] = spec
				}
			}
		}},
		"sell what is not there": {machine: func(m *Machine) {
			for sku, account := range m.decided {
				account.Allotted, account.Taken.Units = account.Allotted+1, account.Taken.Units+1
				m.decided[sku] = account
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := uint64(plantedFirst); seed < plantedFirst+1000; seed++ {
				if err := newSimulation(seed, bug).run(simSteps); err != nil {
					t.Logf("found after %d seeds: %v", seed-plantedFirst+1, err)
					return
				}
			}
			t.Errorf("not found in 1,000 seeds from %d on", plantedFirst)
		})
	}
}
