package domain

import (
	"iter"
)

// A Use is something limited that a user holds: units of a campaign, redemptions of a coupon.
type Use struct {
	// Of is the stock key of a campaign's pool, or the code of a coupon.
	Of     string
	UserID string
}

// Uses yields what an event adds to a user's uses; less than 0 when it gives them back.
func Uses(e Event) iter.Seq2[Use, int64] {
	return func(yield func(Use, int64) bool) { eachUse(e, yield) }
}

// What comes back after it was shipped was had all the same: no other event gives or takes.
func eachUse(e Event, yield func(Use, int64) bool) {
	if e, ok := e.(OrderPlaced); ok {
		_ = eachUseOf(&e, yield) && (e.CouponCode == "" || yield(Use{Of: e.CouponCode, UserID: e.UserID}, 1))
	}
	if e, ok := e.(OrderCancelled); ok {
		_ = eachUseBack(e.UserID, e.Released, yield) && eachUseBack(e.UserID, e.Unsold, yield) && couponBack(e.UserID, e.CouponCode, yield)
	}
	if e, ok := e.(OrderExpired); ok {
		_ = eachUseBack(e.UserID, e.Released, yield) && couponBack(e.UserID, e.CouponCode, yield)
	}
}

func eachUseOf(e *OrderPlaced, yield func(Use, int64) bool) bool {
	if e.Pool == "" {
		return true
	}
	var units int64
	for i := range e.Lines {
		units += e.Lines[i].Units
	}
	return yield(Use{Of: e.Pool, UserID: e.UserID}, units)
}

func eachUseBack(userID string, released []Release, yield func(Use, int64) bool) bool {
	for i := range released {
		if CampaignOf(released[i].SKU) != "" && !yield(Use{Of: released[i].SKU, UserID: userID}, -released[i].Units) {
			return false
		}
	}
	return true
}

func couponBack(userID, couponCode string, yield func(Use, int64) bool) bool {
	return couponCode == "" || yield(Use{Of: couponCode, UserID: userID}, -1)
}
