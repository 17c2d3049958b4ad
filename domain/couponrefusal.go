package domain

import (
	"fmt"
	"time"
)

// CouponInvalidError refuses a code that is no coupon's.
type CouponInvalidError struct{ Code string }

func (e *CouponInvalidError) Error() string { return "there is no coupon " + clip(e.Code) }

// Unwrap returns ErrCouponInvalid.
func (e *CouponInvalidError) Unwrap() error { return ErrCouponInvalid }

// Reason returns ReasonCouponInvalid.
func (e *CouponInvalidError) Reason() Reason { return ReasonCouponInvalid }

// Facts returns the code.
func (e *CouponInvalidError) Facts() map[string]string {
	return map[string]string{"coupon_code": clip(e.Code)}
}

// CouponNotYetError refuses a coupon that is not valid yet.
type CouponNotYetError struct {
	Code      string
	ValidFrom time.Time
}

func (e *CouponNotYetError) Error() string {
	return fmt.Sprintf("coupon %s is valid from %s", e.Code, timeText(e.ValidFrom))
}

// Unwrap returns ErrCouponNotYet.
func (e *CouponNotYetError) Unwrap() error { return ErrCouponNotYet }

// Reason returns ReasonCouponNotYet.
func (e *CouponNotYetError) Reason() Reason { return ReasonCouponNotYet }

// Facts returns the code and from when it is valid.
func (e *CouponNotYetError) Facts() map[string]string {
	return map[string]string{"coupon_code": e.Code, "valid_from": timeText(e.ValidFrom)}
}

// CouponExpiredError refuses a coupon that is not valid any more.
type CouponExpiredError struct {
	Code       string
	ValidUntil time.Time
}

func (e *CouponExpiredError) Error() string {
	return fmt.Sprintf("coupon %s was valid until %s", e.Code, timeText(e.ValidUntil))
}

// Unwrap returns ErrCouponExpired.
func (e *CouponExpiredError) Unwrap() error { return ErrCouponExpired }

// Reason returns ReasonCouponExpired.
func (e *CouponExpiredError) Reason() Reason { return ReasonCouponExpired }

// Facts returns the code and until when it was valid.
func (e *CouponExpiredError) Facts() map[string]string {
	return map[string]string{"coupon_code": e.Code, "valid_until": timeText(e.ValidUntil)}
}

// CouponMinSubtotalError refuses a coupon for an order that is too small.
type CouponMinSubtotalError struct {
	Code           string
	Want, Subtotal Money
}

func (e *CouponMinSubtotalError) Error() string {
	return fmt.Sprintf("coupon %s is for orders from %v on, this one is of %v", e.Code, e.Want, e.Subtotal)
}

// Unwrap returns ErrCouponMinSubtotal.
func (e *CouponMinSubtotalError) Unwrap() error { return ErrCouponMinSubtotal }

// Reason returns ReasonCouponMinSubtotal.
func (e *CouponMinSubtotalError) Reason() Reason { return ReasonCouponMinSubtotal }

// Facts returns the code and both amounts, in minor units.
func (e *CouponMinSubtotalError) Facts() map[string]string {
	return map[string]string{"coupon_code": e.Code, "want": decimal(e.Want.Minor), "subtotal": decimal(e.Subtotal.Minor)}
}

// The scopes of a CouponLimitError.
const (
	CouponLimitUser  = "user"
	CouponLimitTotal = "total"
)

// CouponLimitError refuses a coupon that was redeemed as often as it may be.
type CouponLimitError struct {
	Code string
	// Scope is CouponLimitUser or CouponLimitTotal.
	Scope string
	Limit int64
}

func (e *CouponLimitError) Error() string {
	if e.Scope == CouponLimitUser {
		return fmt.Sprintf("a user redeems coupon %s at most %d times", e.Code, e.Limit)
	}
	return fmt.Sprintf("coupon %s was redeemed %d times, as often as it may be", e.Code, e.Limit)
}

// Unwrap returns ErrCouponLimit.
func (e *CouponLimitError) Unwrap() error { return ErrCouponLimit }

// Reason returns ReasonCouponLimit.
func (e *CouponLimitError) Reason() Reason { return ReasonCouponLimit }

// Facts returns the code, whose limit it is, and the limit.
func (e *CouponLimitError) Facts() map[string]string {
	return map[string]string{"coupon_code": e.Code, "scope": e.Scope, "limit": decimal(e.Limit)}
}

func (*CouponInvalidError) isRefusal()     {}
func (*CouponNotYetError) isRefusal()      {}
func (*CouponExpiredError) isRefusal()     {}
func (*CouponMinSubtotalError) isRefusal() {}
func (*CouponLimitError) isRefusal()       {}
