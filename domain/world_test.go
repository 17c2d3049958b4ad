package domain_test

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weirhq/weir/domain"
)

// world is lanes of a cluster in memory: what scripts and properties run in. Every event that is decided is evolved at
// once, and I3 is checked after each.
type world struct {
	lanes     []*lane
	products  map[string]domain.Product
	campaigns map[string]domain.Campaign
	coupons   map[string]domain.Coupon
	now       time.Time
}

// lane is one lane's state.
type lane struct {
	world    *world
	number   uint32
	orders   map[domain.OrderID]domain.Order
	accounts map[string]domain.Account
	uses     map[domain.Use]int64
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newWorld(lanes int) *world {
	w := &world{
		products: map[string]domain.Product{}, campaigns: map[string]domain.Campaign{}, coupons: map[string]domain.Coupon{}, now: epoch,
	}
	for number := range lanes {
		w.lanes = append(w.lanes, &lane{
			world: w, number: uint32(number),
			orders: map[domain.OrderID]domain.Order{}, accounts: map[string]domain.Account{},
			uses: map[domain.Use]int64{},
		})
	}
	return w
}

func (l *lane) Order(id domain.OrderID) (domain.Order, bool) {
	o, found := l.orders[id]
	return o, found
}

func (l *lane) Product(sku string) (domain.Product, bool) {
	p, found := l.world.products[sku]
	return p, found
}

func (l *lane) Stock(sku string) domain.Account { return l.accounts[sku] }

func (l *lane) Campaign(pool string) (domain.Campaign, bool) {
	c, found := l.world.campaigns[pool]
	return c, found
}

func (l *lane) Coupon(code string) (domain.Coupon, bool) {
	c, found := l.world.coupons[code]
	return c, found
}

func (l *lane) Used(use domain.Use) int64 { return l.uses[use] }

// decide lets a lane decide a command and evolves its events. The error is Decide's, or a broken invariant.
func (w *world) decide(lane int, c domain.Command) ([]domain.Event, error) {
	events, err := domain.Decide(w.lanes[lane], c, w.now)
	if err != nil && len(events) > 0 {
		return nil, fmt.Errorf("broken: %T yields events and the error %w", c, err)
	}
	for _, e := range events {
		if err := w.evolve(lane, e); err != nil {
			return nil, err
		}
	}
	return events, err
}

func (w *world) evolve(lane int, e domain.Event) error {
	l := w.lanes[lane]
	if id, ok := domain.OrderOf(e); ok {
		l.orders[id] = l.orders[id].Evolve(e, w.now)
	}
	if put, ok := e.(domain.ProductPut); ok {
		w.products[put.SKU] = w.products[put.SKU].Evolve(e, w.now)
	}
	if put, ok := e.(domain.CampaignPut); ok {
		w.campaigns[put.Pool] = w.campaigns[put.Pool].Evolve(e, w.now)
	}
	if put, ok := e.(domain.CouponPut); ok {
		w.coupons[put.Code] = w.coupons[put.Code].Evolve(e, w.now)
	}
	for use, units := range domain.Uses(e) {
		l.uses[use] += units
	}
	for sku := range domain.SKUs(e) {
		l.accounts[sku] = l.accounts[sku].Evolve(e, sku)
	}
	for sku := range domain.SKUs(e) {
		if err := l.accounts[sku].Check(); err != nil {
			return fmt.Errorf("broken: lane %d, account of %s after %T: %w", lane, sku, e, err)
		}
	}
	return nil
}

// accounts returns the accounts of a SKU by lane.
func (w *world) accounts(sku string) map[uint32]domain.Account {
	accounts := map[uint32]domain.Account{}
	for _, l := range w.lanes {
		if a, found := l.accounts[sku]; found {
			accounts[l.number] = a
		}
	}
	return accounts
}

// check returns an error unless I3 holds for every account, what is reserved is what open orders hold, and so is what users
// hold of campaigns and coupons.
func (w *world) check() error {
	keys := map[string]bool{}
	for _, l := range w.lanes {
		for key := range l.accounts {
			keys[key] = true
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if err := domain.Conserved(w.accounts(key)); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	for _, l := range w.lanes {
		held, uses := map[string]int64{}, map[domain.Use]int64{}
		for _, o := range l.orders {
			if o.Status != domain.StatusPendingPayment {
				continue
			}
			for _, line := range o.Lines {
				if o.Pool == "" {
					held[line.SKU] += line.Units
				} else {
					held[o.Pool] += line.Units
					uses[domain.Use{Of: o.Pool, UserID: o.UserID}] += line.Units
				}
			}
			if o.CouponPool != "" {
				held[o.CouponPool]++
			}
			if o.CouponCode != "" {
				uses[domain.Use{Of: o.CouponCode, UserID: o.UserID}]++
			}
		}
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			if reserved := l.accounts[key].Reserved; reserved != held[key] {
				return fmt.Errorf("lane %d, %s: reserved = %d units, but open orders hold %d", l.number, key, reserved, held[key])
			}
		}
		for use, count := range l.uses {
			if count != uses[use] {
				return fmt.Errorf("lane %d, %+v: counted %d, but open orders hold %d", l.number, use, count, uses[use])
			}
		}
	}
	return nil
}
