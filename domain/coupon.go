package domain

import (
	"cmp"
	"errors"
	"fmt"
	"time"
)

// A Coupon is the fold of its CouponPut events.
type Coupon struct {
	Code  string
	Terms CouponTerms
	// UpdatedAt is the log time of the newest change.
	UpdatedAt time.Time
}

// CouponTerms are what a coupon does and for whom.
type CouponTerms struct {
	Kind CouponKind
	// AmountMinor is what a fixed one takes off, RateBps the share in basis points that a percentage takes off.
	AmountMinor, RateBps int64
	// Currency of the amounts; empty when there are none, and any order's will do.
	Currency string
	// MinSubtotalMinor is the least subtotal of an order that may redeem it.
	MinSubtotalMinor int64
	// ValidFrom and ValidUntil are log times: it is redeemed from the first on, before the second; zero for no bound.
	ValidFrom, ValidUntil time.Time
	// UserUsesMax is how often one user may redeem it, UsesMax how often all may; 0 for no limit.
	UserUsesMax, UsesMax int64
}

// A CouponKind says what a coupon takes off. The numbers are those of the stored events.
type CouponKind uint32

// The kinds of coupons.
const (
	// CouponFixed takes off an amount, at most the subtotal.
	CouponFixed CouponKind = 1
	// CouponPercentage takes off a share of the subtotal, rounded half up.
	CouponPercentage CouponKind = 2
)

// PutCoupon creates a coupon or changes it. The home lane of its code decides it.
type PutCoupon struct {
	Code  string
	Terms CouponTerms
}

// CouponPut says that a coupon was created or changed.
type CouponPut struct {
	Code  string
	Terms CouponTerms
}

// Put returns the event that says the coupon as it is.
func (c Coupon) Put() CouponPut { return CouponPut{Code: c.Code, Terms: c.Terms} }

// Evolve returns the coupon after one more of its events, committed at log time at. Other events leave it as it is.
// REQUIRES: a coupon's event is of this coupon.
func (c Coupon) Evolve(e Event, at time.Time) Coupon {
	if e, ok := e.(CouponPut); ok {
		return Coupon{Code: e.Code, Terms: e.Terms, UpdatedAt: at}
	}
	return c
}

// decide brings the coupon's pool to as many units as it may be redeemed in all. Redemptions in the pools of other lanes
// cannot be taken back at once, so the limit is raised or left, and an end is made with ValidUntil.
func (c PutCoupon) decide(s State) ([]Event, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c.Terms.ValidFrom, c.Terms.ValidUntil = asStored(c.Terms.ValidFrom), asStored(c.Terms.ValidUntil)
	if now, known := s.Coupon(c.Code); known && now.Terms == c.Terms {
		return nil, nil // Same command again: nothing to say.
	}
	events := []Event{CouponPut(c)}
	pool := CouponPool(c.Code)
	switch more := c.Terms.UsesMax - s.Stock(pool).Received; {
	case c.Terms.UsesMax == 0 || more == 0:
		return events, nil
	case more < 0:
		return nil, &InvalidArgumentError{Argument: "uses_max", Problem: fmt.Sprintf("it is %d and was %d: it cannot be lowered; end the coupon with valid_until", c.Terms.UsesMax, c.Terms.UsesMax-more)}
	default:
		received := StockReceived{SKU: pool, Units: more, ReceivedTotal: c.Terms.UsesMax}
		assertAccount(s.Stock(pool).Evolve(received, pool).Check(), pool)
		return append(events, received), nil
	}
}

// check refuses what no state could make valid.
func (c *PutCoupon) check() error {
	t := &c.Terms
	switch {
	case !validName(c.Code):
		return &InvalidArgumentError{Argument: "coupon_code", Problem: nameProblem}
	case t.Kind == CouponFixed && (t.AmountMinor < 1 || t.AmountMinor > PriceMinorMax):
		return &InvalidArgumentError{Argument: "amount", Problem: fmt.Sprintf("it is %d, want 1 to %d", t.AmountMinor, PriceMinorMax)}
	case t.Kind == CouponFixed && t.RateBps != 0:
		return &InvalidArgumentError{Argument: "rate_bps", Problem: "a coupon takes off either an amount or a share"}
	case t.Kind == CouponPercentage && (t.RateBps < 1 || t.RateBps > RateBpsMax):
		return &InvalidArgumentError{Argument: "rate_bps", Problem: fmt.Sprintf("it is %d, want 1 to %d", t.RateBps, RateBpsMax)}
	case t.Kind == CouponPercentage && t.AmountMinor != 0:
		return &InvalidArgumentError{Argument: "amount", Problem: "a coupon takes off either an amount or a share"}
	case t.Kind != CouponFixed && t.Kind != CouponPercentage:
		return &InvalidArgumentError{Argument: "kind", Problem: fmt.Sprintf("there is no kind %d", t.Kind)}
	case t.MinSubtotalMinor < 0 || t.MinSubtotalMinor > PriceMinorMax:
		return &InvalidArgumentError{Argument: "min_subtotal", Problem: fmt.Sprintf("it is %d, want 0 to %d", t.MinSubtotalMinor, PriceMinorMax)}
	case (t.Kind == CouponFixed || t.MinSubtotalMinor > 0) != (t.Currency != ""), t.Currency != "" && !validCurrency(t.Currency):
		return &InvalidArgumentError{Argument: "currency", Problem: "amounts need one, three upper-case letters, and shares alone none"}
	case !t.ValidFrom.IsZero() && !validTime(t.ValidFrom):
		return &InvalidArgumentError{Argument: "valid_from", Problem: timeProblem}
	case !t.ValidUntil.IsZero() && !validTime(t.ValidUntil):
		return &InvalidArgumentError{Argument: "valid_until", Problem: timeProblem}
	case !t.ValidUntil.IsZero() && !t.ValidFrom.Before(t.ValidUntil):
		return &InvalidArgumentError{Argument: "valid_until", Problem: "it is not after valid_from"}
	}
	return cmp.Or(checkLimit("user_uses_max", t.UserUsesMax, LimitMax), checkLimit("uses_max", t.UsesMax, ReceiveUnitsMax))
}

// redeem redeems the coupon for an order whose Total is its subtotal yet, and returns the discount in minor units, and what
// must happen before a redemption is taken of the coupon's pool.
func (c *PlaceOrder) redeem(s State, at time.Time, placed *OrderPlaced) (discountMinor int64, covering []Event, err error) {
	coupon, known := s.Coupon(c.CouponCode)
	t := &coupon.Terms
	switch {
	case !known:
		return 0, nil, &CouponInvalidError{Code: c.CouponCode}
	case at.Before(t.ValidFrom):
		return 0, nil, &CouponNotYetError{Code: c.CouponCode, ValidFrom: t.ValidFrom}
	case !t.ValidUntil.IsZero() && !at.Before(t.ValidUntil):
		return 0, nil, &CouponExpiredError{Code: c.CouponCode, ValidUntil: t.ValidUntil}
	case t.Currency != "" && t.Currency != placed.Total.Currency:
		return 0, nil, &MixedCurrenciesError{First: placed.Total.Currency, Other: t.Currency}
	case placed.Total.Minor < t.MinSubtotalMinor:
		return 0, nil, &CouponMinSubtotalError{Code: c.CouponCode, Want: Money{Currency: t.Currency, Minor: t.MinSubtotalMinor}, Subtotal: placed.Total}
	}
	if t.UserUsesMax > 0 && s.Used(Use{Of: c.CouponCode, UserID: c.UserID}) >= t.UserUsesMax {
		return 0, nil, &CouponLimitError{Code: c.CouponCode, Scope: CouponLimitUser, Limit: t.UserUsesMax}
	}
	placed.CouponCode = c.CouponCode
	if t.UsesMax > 0 {
		placed.CouponPool = CouponPool(c.CouponCode)
		if covering, err = takeUnits(s, placed.CouponPool, 1); errors.Is(err, ErrOutOfStock) {
			return 0, nil, &CouponLimitError{Code: c.CouponCode, Scope: CouponLimitTotal, Limit: t.UsesMax}
		}
	}
	if t.Kind == CouponPercentage {
		return shareHalfUp(placed.Total.Minor, t.RateBps, RateBpsMax), covering, err
	}
	return min(t.AmountMinor, placed.Total.Minor), covering, err
}
