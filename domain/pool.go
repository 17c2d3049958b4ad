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

// takeUnits returns what must happen before an order takes units of an account: nothing when the lane's allotment has them.
func takeUnits(s State, stockKey string, units int64) (covering []Event, err error) {
	account := s.Stock(stockKey)
	if units > account.Allotted {
		if covering, err = cover(s, stockKey, units, account); err != nil {
			return nil, err
		}
		for _, e := range covering {
			account = account.Evolve(e, stockKey)
		}
	}
	// Each key is taken from once in an order, so this is all that the order does to the account.
	assertAccount(account.reserve(units).checkLane(), stockKey)
	return covering, nil
}

// movePool returns the events that bring a pool's units from what its account has received to units, out of the SKU's
// account or back into it. It returns an *OutOfStockError if the account that gives has too few of them free, and a
// *StockMovingError while they may be in other lanes.
func movePool(s State, pool string, units int64) ([]Event, error) {
	sku := HomeKey(pool)
	from, into := s.Stock(sku), s.Stock(pool)
	move := units - into.Received
	switch {
	case move == 0:
		return nil, nil
	case move > 0:
		events, err := centralize(s, sku, from, move)
		if err != nil {
			return nil, err
		}
		return checkedMove(append(events, PoolFilled{Pool: pool, Units: move}), sku, from, pool, into), nil
	default:
		if from.Received > math.MaxInt64+move {
			return nil, &AmountOverflowError{What: fmt.Sprintf("%d units of %s beside %d", -move, sku, from.Received)}
		}
		events, err := centralize(s, pool, into, -move)
		if err != nil {
			return nil, err
		}
		return checkedMove(append(events, PoolDrained{Pool: pool, Units: -move}), sku, from, pool, into), nil
	}
}

// checkedMove asserts that both accounts hold after the events.
func checkedMove(events []Event, sku string, units Account, pool string, pooled Account) []Event {
	for _, e := range events {
		units, pooled = units.Evolve(e, sku), pooled.Evolve(e, pool)
	}
	assertAccount(units.Check(), sku)
	assertAccount(pooled.Check(), pool)
	return events
}

// centralize returns the events that bring units of the home lane's own allotment back to the centre until it has as many as
// are wanted. The lane gets what it lacks as it does for an order: see cover.
func centralize(s State, stockKey string, account Account, want int64) ([]Event, error) {
	supply := home(s, stockKey)
	short := want - account.Central
	switch {
	case short <= 0:
		return nil, nil
	case short <= account.Allotted:
		number := account.Returned.Number + 1
		return []Event{
			StockReturned{SKU: stockKey, HomeLane: supply.Home, ReturnNumber: number, Units: short},
			StockReclaimed{SKU: stockKey, FromLane: supply.Home, ReturnNumber: number, Units: short},
		}, nil
	}
	lacks := want - account.Allotted // Central units that the lane grants itself come with the rest.
	if account.elsewhere(supply.Home) == 0 || supply.SoldOut && lacks > supply.Free && account.Returned.Number <= supply.Reclaimed {
		return nil, &OutOfStockError{SKU: stockKey, Want: want, Free: account.Central + account.Allotted}
	}
	return nil, &StockMovingError{SKU: stockKey, Want: want, Short: lacks, Taken: account.Taken.Number, Returned: account.Returned.Number}
}
