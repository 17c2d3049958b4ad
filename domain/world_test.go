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
	homes     map[string]uint32
}

// lane is one lane's state.
type lane struct {
	world    *world
	number   uint32
	orders   map[domain.OrderID]domain.Order
	accounts map[string]domain.Account
	uses     map[domain.Use]int64
	// endpoints that are there.
	endpoints map[string]bool
	erased    map[domain.UserErased]bool // With nobody's name.
	// verdicts are what the lane was told of SKUs that are sold out: how many more units can come.
	verdicts map[string]int64
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func newWorld(lanes int) *world {
	w := &world{
		products: map[string]domain.Product{}, campaigns: map[string]domain.Campaign{}, coupons: map[string]domain.Coupon{}, now: epoch,
		homes: map[string]uint32{},
	}
	for number := range lanes {
		w.lanes = append(w.lanes, &lane{
			world: w, number: uint32(number),
			orders: map[domain.OrderID]domain.Order{}, accounts: map[string]domain.Account{}, verdicts: map[string]int64{},
			uses: map[domain.Use]int64{}, endpoints: map[string]bool{}, erased: map[domain.UserErased]bool{},
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

func (l *lane) KeyErased(userID string, key domain.KeyID) bool {
	return l.erased[domain.UserErased{UserID: userID, Key: key}]
}

func (l *lane) WebhookEndpoints(id string) (int, bool) { return len(l.endpoints), l.endpoints[id] }

func (l *lane) Supply(sku string) domain.Supply {
	free, soldOut := l.verdicts[sku]
	return domain.Supply{Lane: l.number, Home: l.world.home(sku), Lanes: uint32(len(l.world.lanes)), SoldOut: soldOut, Free: free, Reclaimed: l.world.lanes[l.world.home(sku)].accounts[sku].ReclaimedFrom(l.number).Number}
}

// home is the home lane of a SKU: lane 0, unless the world says otherwise.
func (w *world) home(sku string) uint32 { return w.homes[domain.HomeKey(sku)] }

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
	if erased, ok := e.(domain.UserErased); ok {
		l.erased[domain.UserErased{UserID: erased.UserID, Key: erased.Key}] = true
	}
	if put, ok := e.(domain.WebhookEndpointPut); ok {
		l.endpoints[put.EndpointID] = true
	}
	if deleted, ok := e.(domain.WebhookEndpointDeleted); ok {
		delete(l.endpoints, deleted.EndpointID)
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

// check returns an error unless I3 holds for every account, what is reserved is what open orders hold, what is sold is what
// paid orders hold, and what users are counted to hold of campaigns and coupons is what their orders do; and I4 for every
// order.
func (w *world) check() error {
	keys := map[string]bool{}
	for _, l := range w.lanes {
		for key := range l.accounts {
			keys[key] = true
		}
		for _, o := range l.orders {
			if err := o.Check(); err != nil {
				return fmt.Errorf("order %v: %w", o.ID, err)
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if err := domain.Conserved(w.accounts(key)); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	for _, l := range w.lanes {
		if err := l.check(keys); err != nil {
			return fmt.Errorf("lane %d, %w", l.number, err)
		}
	}
	return nil
}

// check holds the lane's accounts and counts to its orders.
func (l *lane) check(keys map[string]bool) error {
	held, sold, uses := map[string]int64{}, map[string]int64{}, map[domain.Use]int64{}
	for _, o := range l.orders {
		if o.Ending != domain.EndingNone {
			continue
		}
		in := held
		if o.Payment == domain.PayCaptured || o.Payment == domain.PayPartiallyRefunded || o.Payment == domain.PayRefunded {
			in = sold
		}
		for _, line := range o.Lines {
			key := line.SKU
			if o.Pool != "" {
				key = o.Pool
				uses[domain.Use{Of: o.Pool, UserID: o.UserID}] += line.Units
			}
			in[key] += line.Units
		}
		if o.CouponPool != "" {
			in[o.CouponPool]++
		}
		if o.CouponCode != "" {
			uses[domain.Use{Of: o.CouponCode, UserID: o.UserID}]++
		}
		for _, r := range o.Returns {
			for _, restocked := range r.Restocked {
				sold[restocked.SKU] -= restocked.Units
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if got := l.accounts[key]; got.Reserved != held[key] || got.Sold != sold[key] {
			return fmt.Errorf("%s: reserved = %d and sold = %d units, but open orders hold %d and paid ones %d", key, got.Reserved, got.Sold, held[key], sold[key])
		}
	}
	for use, count := range l.uses {
		if count != uses[use] {
			return fmt.Errorf("%+v: counted %d, but orders hold %d", use, count, uses[use])
		}
	}
	return nil
}
