package domain

import (
	"fmt"
	"math"
	"strings"
)

// Accounts have stock keys. The key of a product's own units is its SKU. A campaign sells out of a pool of its own, an
// account with the key SKU@CAMPAIGN, and a coupon that may be redeemed so many times in all has a pool of as many units,
// CODE@@coupon. A name holds no '@', so no key is two things.
//
// The home lane of a key is that of the part before the first '@': a SKU and its pools share it, so units move between
// them in one commit.

const couponPoolSuffix = "@@coupon"

// HomeKey returns the part of a stock key that says which lane is its home: the SKU, or the coupon's code.
func HomeKey(stockKey string) string {
	home, _, _ := strings.Cut(stockKey, "@")
	return home
}

// CampaignPool returns the stock key of a campaign's pool.
func CampaignPool(sku, campaignID string) string { return sku + "@" + campaignID }

// CouponPool returns the stock key of a coupon's pool.
func CouponPool(code string) string { return code + couponPoolSuffix }

// IsCouponPool reports whether a stock key is a coupon's. It names the coupon's code, which is worth money to whoever reads it.
func IsCouponPool(stockKey string) bool { return strings.HasSuffix(stockKey, couponPoolSuffix) }

// CampaignOf returns the campaign whose pool has this stock key, empty when it is a product's own or a coupon's.
func CampaignOf(stockKey string) string {
	_, campaignID, _ := strings.Cut(stockKey, "@")
	if strings.HasPrefix(campaignID, "@") {
		return ""
	}
	return campaignID
}

// validStockKey reports whether an account may have this key.
func validStockKey(key string) bool {
	if code, isCoupon := strings.CutSuffix(key, couponPoolSuffix); isCoupon {
		return validName(code)
	}
	sku, campaignID, isPool := strings.Cut(key, "@")
	return validName(sku) && (!isPool || validName(campaignID))
}

// takeUnits refuses an order that takes more units of an account than the lane's allotment has.
func takeUnits(s State, stockKey string, units int64) error {
	account := s.Stock(stockKey)
	if units > account.Allotted {
		return &OutOfStockError{SKU: stockKey, Want: units, Free: account.Allotted}
	}
	// Each key is taken from once in an order, so this is all that the order does to the account.
	assertAccount(account.reserve(units).checkLane(), stockKey)
	return nil
}

// A home is the lane that holds the centre of the accounts that a command moves units between.
type home struct{ lane, lanes uint32 }

// movePool returns the events that bring a pool's units from what its account has received to units, out of the SKU's
// account or back into it. It returns an *OutOfStockError if the account that gives has too few of them in the home lane.
func (h home) movePool(s State, pool string, units int64) ([]Event, error) {
	sku := HomeKey(pool)
	move := units - s.Stock(pool).Received
	if move == 0 {
		return nil, nil
	}
	accounts := map[string]Account{sku: s.Stock(sku), pool: s.Stock(pool)}
	from, moved := sku, Event(PoolFilled{Pool: pool, Units: move})
	if move < 0 {
		move = -move
		from, moved = pool, PoolDrained{Pool: pool, Units: move}
		if accounts[sku].Received > math.MaxInt64-move {
			return nil, &AmountOverflowError{What: fmt.Sprintf("%d units of %s beside %d", move, sku, accounts[sku].Received)}
		}
	}
	events, err := h.centralize(from, accounts[from], move)
	if err != nil {
		return nil, err
	}
	events = append(events, moved)
	for _, e := range events {
		accounts[sku], accounts[pool] = accounts[sku].Evolve(e, sku), accounts[pool].Evolve(e, pool)
	}
	if from == sku {
		for _, e := range h.grantEvenly(pool, accounts[pool], move) {
			events, accounts[pool] = append(events, e), accounts[pool].Evolve(e, pool)
		}
	}
	for key, account := range accounts {
		assertAccount(account.Check(), key)
	}
	return events, nil
}

// receivePool returns the events that bring units out of nothing into a coupon's pool.
func (h home) receivePool(s State, pool string, units int64) []Event {
	account := s.Stock(pool)
	received := StockReceived{SKU: pool, Units: units, ReceivedTotal: account.Received + units}
	account = account.Evolve(received, pool)
	events := []Event{received}
	for _, e := range h.grantEvenly(pool, account, units) {
		events, account = append(events, e), account.Evolve(e, pool)
	}
	assertAccount(account.Check(), pool)
	return events
}

// centralize returns the events that bring idle units of the home lane's own allotment back to the centre until it has as
// many as are wanted.
func (h home) centralize(stockKey string, account Account, want int64) ([]Event, error) {
	short := want - account.Central
	idle := account.Allotted
	if account.ReclaimedFrom(h.lane) != account.Returned {
		idle = 0 // A return of the home lane's is on its way: no other overtakes it.
	}
	switch {
	case short <= 0:
		return nil, nil
	case short > idle:
		return nil, &OutOfStockError{SKU: stockKey, Want: want, Free: account.Central + idle}
	}
	number := account.Returned.Number + 1
	return []Event{
		StockReturned{SKU: stockKey, HomeLane: h.lane, ReturnNumber: number, Units: short},
		StockReclaimed{SKU: stockKey, FromLane: h.lane, ReturnNumber: number, Units: short},
	}, nil
}

// grantEvenly returns the events that grant central units to the lanes, in lane order, the remainder to the home lane,
// which takes its own grant in the same commit.
func (h home) grantEvenly(stockKey string, account Account, units int64) []Event {
	assert(h.lane < h.lanes, "grant %s: home lane %d of %d lanes", stockKey, h.lane, h.lanes)
	var events []Event
	for lane := range h.lanes {
		share := units / int64(h.lanes)
		if lane == h.lane {
			share += units % int64(h.lanes)
		}
		if share == 0 {
			continue
		}
		number := account.GrantedTo(lane).Number + 1
		events = append(events, StockGranted{SKU: stockKey, ToLane: lane, GrantNumber: number, Units: share})
		if lane == h.lane {
			assert(account.Taken.Number+1 == number, "grant %s: grant %d to the home lane, which took %d", stockKey, number, account.Taken.Number)
			events = append(events, StockAllotted{SKU: stockKey, HomeLane: h.lane, GrantNumber: number, Units: share})
		}
	}
	return events
}
