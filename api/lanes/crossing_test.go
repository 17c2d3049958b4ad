package lanes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// crossing is a fleet of one host for which all is well, in lockstep: in a round, of a millisecond, every lane decides what queued, every
// message arrives and every escrow hears of it, in the order of the lanes. So whatever two lanes do to each other they do at once.
type crossing struct {
	*fleet
	t *testing.T
	h *host
}

const crossingLanes = 4

func newCrossing(t *testing.T) *crossing {
	c := &crossing{fleet: newFleet(0, crossingLanes, true, fleetPlant{}), t: t}
	c.heal()
	c.h, c.buyers = c.hosts[0], nil
	t.Cleanup(c.h.close)
	if err := c.start(c.h); err != nil {
		t.Fatal(err)
	}
	for lane := range uint32(crossingLanes) {
		if err := c.open(c.h, lane); err != nil || c.owners[lane] == nil {
			t.Fatalf("lane %d does not open: %v", lane, err)
		}
	}
	return c
}

// round takes a round.
func (c *crossing) round() {
	c.t.Helper()
	c.step += crossingLanes * int(1e6) / int(fleetStep)
	for _, l := range c.h.lanes {
		l.waiting = slices.Clone(l.waiting[l.writer.Propose(l.waiting, c.now()):])
		for l.writer.InFlight() > 0 {
			if err := l.writer.Settle(context.Background()); err != nil {
				c.t.Fatal(err)
			}
		}
	}
	messages := c.messages
	c.messages = nil
	for _, m := range messages {
		c.h.lanes[m.To].escrow.receive(c.now(), m)
	}
	heard := c.h.heard
	c.h.heard = nil
	for _, hear := range heard {
		hear()
	}
	for _, l := range c.h.lanes {
		l.escrow.tick(c.now())
	}
	if err := c.check(); err != nil { // I3
		c.t.Fatal(err)
	}
}

// do decides a request in its lane and returns the reply.
func (c *crossing) do(request Request) (reply Reply) {
	c.t.Helper()
	l := c.h.lanes[c.topology().LaneOf(request.Partition)]
	decided := false
	l.waiting = append(l.waiting, eventstore.Ask[Request, Outcome]{Question: request, Reply: func(outcome Outcome, err error) {
		if err := errors.Join(err, outcome.Refusal); err != nil {
			c.t.Fatalf("%T: %v", request.Command, err)
		}
		reply, decided = *outcome.Reply, true
	}})
	for range 10 {
		c.round()
	}
	if !decided {
		c.t.Fatalf("%T was not decided", request.Command)
	}
	return reply
}

// have makes units of a SKU idle in a lane.
func (c *crossing) have(lane uint32, sku string, units int64) {
	c.t.Helper()
	c.do(catalogRequest(sku, c.requestID(), domain.ReceiveStock{SKU: sku, Units: units}))
	b := &buyer{user: c.userOf(lane, int(lane)), lane: lane, sku: sku}
	b.want = domain.PlaceOrder{UserID: b.user, Lines: []domain.LineRequest{{SKU: sku, Units: units}}}
	orders := c.did.orders
	c.submit(c.h, c.h.lanes[lane], b, func() {})
	for c.did.orders == orders {
		c.round()
	}
	c.do(cancelOrder(c.orders[c.placed[len(c.placed)-1]], c.requestID()))
	if got := c.accounts[sku][lane].Allotted; got != units {
		c.t.Fatalf("lane %d has %d units of %s idle, want %d", lane, got, sku, units)
	}
}

// lanesButHomes returns the lanes that are home to neither product.
func (c *crossing) lanesButHomes() (lanes []uint32) {
	for lane := range uint32(crossingLanes) {
		if lane != homeLane(c.topology(), "sku-0") && lane != homeLane(c.topology(), "sku-1") {
			lanes = append(lanes, lane)
		}
	}
	return lanes
}

// TestOfTwoOrdersThatWantEachOthersUnitsOneIsPlaced: a lane has one product and another lane the other; an order in each wants both.
// Whoever waits keeps what comes before, so that they do not take turns until the time of both is over.
func TestOfTwoOrdersThatWantEachOthersUnitsOneIsPlaced(t *testing.T) {
	for _, lines := range [][2][2]string{
		{{"sku-0", "sku-1"}, {"sku-1", "sku-0"}},
		{{"sku-1", "sku-0"}, {"sku-0", "sku-1"}},
		{{"sku-0", "sku-1"}, {"sku-0", "sku-1"}},
		{{"sku-1", "sku-0"}, {"sku-1", "sku-0"}},
	} {
		for late := range 12 { // Rounds by which the second order comes later.
			t.Run(fmt.Sprintf("%v-%dms", lines, late), func(t *testing.T) {
				c := newCrossing(t)
				lanes := c.lanesButHomes()
				var buyers []*buyer
				for i, lane := range lanes[:2] {
					c.have(lane, fmt.Sprintf("sku-%d", i), 2)
					b := &buyer{user: c.userOf(lane, 10+i), lane: lane, sku: fmt.Sprintf("sku-%d", i)}
					b.want = domain.PlaceOrder{UserID: b.user}
					for _, sku := range lines[i] {
						b.want.Lines = append(b.want.Lines, domain.LineRequest{SKU: sku, Units: 2})
					}
					buyers = append(buyers, b)
				}
				c.step += 10 * int(fleetVerdictFor/fleetStep) * crossingLanes
				c.round() // Nobody remembers any more what was scarce.
				before := c.did
				c.submit(c.h, c.h.lanes[lanes[0]], buyers[0], func() {})
				for range late {
					c.round()
				}
				c.submit(c.h, c.h.lanes[lanes[1]], buyers[1], func() {})
				for range StockWaitDefault.Milliseconds() - 20 {
					c.round()
				}
				if placed := c.did.orders - before.orders; placed != 1 {
					t.Errorf("%d orders were placed, %d woken; they were told %v and %v; want 1", placed, c.did.woken-before.woken, buyers[0].refusal, buyers[1].refusal)
				}
				for _, b := range buyers {
					b.cut()
				}
				for lane, l := range c.h.lanes {
					if len(l.board.pledged) > 0 {
						t.Errorf("lane %d: nobody waits, and pledged are %v", lane, l.board.pledged)
					}
				}
			})
		}
	}
}
