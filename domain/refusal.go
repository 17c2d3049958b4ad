package domain

import (
	"errors"
	"fmt"
	"strconv"
)

// A Reason names a refusal to programs. The list is closed and documented for callers.
type Reason string

// The reasons that the domain refuses for.
const (
	ReasonOutOfStock      Reason = "OUT_OF_STOCK"
	ReasonStockMoving     Reason = "STOCK_MOVING"
	ReasonUnknownProduct  Reason = "UNKNOWN_PRODUCT"
	ReasonOrderNotFound   Reason = "ORDER_NOT_FOUND"
	ReasonOrderExpired    Reason = "ORDER_EXPIRED"
	ReasonMixedCurrencies Reason = "MIXED_CURRENCIES"
	ReasonAmountOverflow  Reason = "AMOUNT_OVERFLOW"
	ReasonInvalidArgument Reason = "INVALID_ARGUMENT"

	// Of an order's life.
	ReasonOrderCancelled        Reason = "ORDER_CANCELLED"
	ReasonOrderShipped          Reason = "ORDER_SHIPPED"
	ReasonPaymentState          Reason = "PAYMENT_STATE"
	ReasonFulfilmentState       Reason = "FULFILMENT_STATE"
	ReasonOrderPartNotFound     Reason = "ORDER_PART_NOT_FOUND"
	ReasonOrderLimit            Reason = "ORDER_LIMIT"
	ReasonRefundExceedsCaptured Reason = "REFUND_EXCEEDS_CAPTURED"
	ReasonUnitsExceeded         Reason = "UNITS_EXCEEDED"
	ReasonAmountMismatch        Reason = "AMOUNT_MISMATCH"

	// Of campaigns and coupons.
	ReasonCampaignNotFound    Reason = "CAMPAIGN_NOT_FOUND"
	ReasonCampaignNotOpen     Reason = "CAMPAIGN_NOT_OPEN"
	ReasonCampaignClosed      Reason = "CAMPAIGN_CLOSED"
	ReasonCampaignMaxPerOrder Reason = "CAMPAIGN_MAX_PER_ORDER"
	ReasonCampaignLimit       Reason = "CAMPAIGN_LIMIT"
	ReasonCouponInvalid       Reason = "COUPON_INVALID"
	ReasonCouponNotYet        Reason = "COUPON_NOT_YET"
	ReasonCouponExpired       Reason = "COUPON_EXPIRED"
	ReasonCouponMinSubtotal   Reason = "COUPON_MIN_SUBTOTAL"
	ReasonCouponLimit         Reason = "COUPON_LIMIT"

	// Of webhook endpoints.
	ReasonEndpointLimit Reason = "ENDPOINT_LIMIT"
)

// A Refusal is a business answer: the domain understood and says no. It is returned, and never logged as an error. The
// set is closed.
//
//sumtype:decl
type Refusal interface {
	error
	// Reason names it to programs.
	Reason() Reason
	// Facts are what a program may want to know about it, by name.
	Facts() map[string]string
	isRefusal()
}

// Sentinels: errors.Is tells the refusal, errors.As tells its facts.
var (
	ErrOutOfStock      = errors.New("out of stock")
	ErrStockMoving     = errors.New("stock is moving")
	ErrUnknownProduct  = errors.New("unknown product")
	ErrOrderNotFound   = errors.New("order not found")
	ErrOrderExpired    = errors.New("order expired")
	ErrMixedCurrencies = errors.New("mixed currencies")
	ErrAmountOverflow  = errors.New("amount overflow")
	ErrInvalidArgument = errors.New("invalid argument")

	ErrCampaignNotFound    = errors.New("campaign not found")
	ErrCampaignNotOpen     = errors.New("campaign not open")
	ErrCampaignClosed      = errors.New("campaign closed")
	ErrCampaignMaxPerOrder = errors.New("too many units of a campaign in one order")
	ErrCampaignLimit       = errors.New("too many units of a campaign for one user")
	ErrCouponInvalid       = errors.New("no such coupon")
	ErrCouponNotYet        = errors.New("coupon not valid yet")
	ErrCouponExpired       = errors.New("coupon not valid any more")
	ErrCouponMinSubtotal   = errors.New("order too small for the coupon")
	ErrCouponLimit         = errors.New("coupon used up")
)

// OutOfStockError refuses a line that wants more units than there are to be had. SKU is the stock key: a campaign's units
// are out of stock by themselves.
type OutOfStockError struct {
	SKU        string
	Want, Free int64
}

func (e *OutOfStockError) Error() string {
	return fmt.Sprintf("%s is out of stock: %d units wanted, %d free", e.SKU, e.Want, e.Free)
}

// Unwrap returns ErrOutOfStock.
func (e *OutOfStockError) Unwrap() error { return ErrOutOfStock }

// Reason returns ReasonOutOfStock.
func (e *OutOfStockError) Reason() Reason { return ReasonOutOfStock }

// Facts returns the SKU and how many units were wanted and free.
func (e *OutOfStockError) Facts() map[string]string {
	return map[string]string{"sku": e.SKU, "want": strconv.FormatInt(e.Want, 10), "free": strconv.FormatInt(e.Free, 10)}
}

// UnknownProductError refuses a SKU that is no product's.
type UnknownProductError struct{ SKU string }

func (e *UnknownProductError) Error() string { return "there is no product " + clip(e.SKU) }

// Unwrap returns ErrUnknownProduct.
func (e *UnknownProductError) Unwrap() error { return ErrUnknownProduct }

// Reason returns ReasonUnknownProduct.
func (e *UnknownProductError) Reason() Reason { return ReasonUnknownProduct }

// Facts returns the SKU.
func (e *UnknownProductError) Facts() map[string]string { return map[string]string{"sku": clip(e.SKU)} }

// OrderNotFoundError refuses to change an order that is not there.
type OrderNotFoundError struct{ OrderID OrderID }

func (e *OrderNotFoundError) Error() string { return "there is no order " + e.OrderID.String() }

// Unwrap returns ErrOrderNotFound.
func (e *OrderNotFoundError) Unwrap() error { return ErrOrderNotFound }

// Reason returns ReasonOrderNotFound.
func (e *OrderNotFoundError) Reason() Reason { return ReasonOrderNotFound }

// Facts returns the order id.
func (e *OrderNotFoundError) Facts() map[string]string {
	return map[string]string{"order_id": e.OrderID.String()}
}

// OrderExpiredError refuses to go on with an order that has expired: it has ended already, in another way than was asked for.
type OrderExpiredError struct{ OrderID OrderID }

func (e *OrderExpiredError) Error() string {
	return fmt.Sprintf("order %v has expired unpaid", e.OrderID)
}

// Unwrap returns ErrOrderExpired.
func (e *OrderExpiredError) Unwrap() error { return ErrOrderExpired }

// Reason returns ReasonOrderExpired.
func (e *OrderExpiredError) Reason() Reason { return ReasonOrderExpired }

// Facts returns the order id.
func (e *OrderExpiredError) Facts() map[string]string {
	return map[string]string{"order_id": e.OrderID.String()}
}

// MixedCurrenciesError refuses to add amounts of two currencies.
type MixedCurrenciesError struct{ First, Other string }

func (e *MixedCurrenciesError) Error() string {
	return fmt.Sprintf("prices in %s and in %s do not add up", clip(e.First), clip(e.Other))
}

// Unwrap returns ErrMixedCurrencies.
func (e *MixedCurrenciesError) Unwrap() error { return ErrMixedCurrencies }

// Reason returns ReasonMixedCurrencies.
func (e *MixedCurrenciesError) Reason() Reason { return ReasonMixedCurrencies }

// Facts returns both currencies.
func (e *MixedCurrenciesError) Facts() map[string]string {
	return map[string]string{"first": clip(e.First), "other": clip(e.Other)}
}

// AmountOverflowError refuses an amount of money or units that does not fit 64 bits.
type AmountOverflowError struct {
	// What does not fit, for people to read.
	What string
}

func (e *AmountOverflowError) Error() string { return e.What + " is too much" }

// Unwrap returns ErrAmountOverflow.
func (e *AmountOverflowError) Unwrap() error { return ErrAmountOverflow }

// Reason returns ReasonAmountOverflow.
func (e *AmountOverflowError) Reason() Reason { return ReasonAmountOverflow }

// Facts returns what does not fit.
func (e *AmountOverflowError) Facts() map[string]string { return map[string]string{"amount": e.What} }

// InvalidArgumentError refuses a command that no state could make valid.
type InvalidArgumentError struct {
	// Argument names the part of the command, for example "lines[1].units".
	Argument string
	// Problem says what is wrong with it.
	Problem string
}

func (e *InvalidArgumentError) Error() string { return e.Argument + ": " + e.Problem }

// Unwrap returns ErrInvalidArgument.
func (e *InvalidArgumentError) Unwrap() error { return ErrInvalidArgument }

// Reason returns ReasonInvalidArgument.
func (e *InvalidArgumentError) Reason() Reason { return ReasonInvalidArgument }

// Facts returns the argument and its problem.
func (e *InvalidArgumentError) Facts() map[string]string {
	return map[string]string{"argument": e.Argument, "problem": e.Problem}
}

// InvalidIDError refuses a text that is no order id.
type InvalidIDError struct {
	// Text that was given. The messages quote its beginning only.
	Text string
	// Problem says what is wrong with it.
	Problem string
}

func (e *InvalidIDError) Error() string {
	return fmt.Sprintf("%q is not an order id: %s", clip(e.Text), e.Problem)
}

// Unwrap returns ErrInvalidArgument.
func (e *InvalidIDError) Unwrap() error { return ErrInvalidArgument }

// Reason returns ReasonInvalidArgument.
func (e *InvalidIDError) Reason() Reason { return ReasonInvalidArgument }

// Facts returns the argument and its problem.
func (e *InvalidIDError) Facts() map[string]string {
	return map[string]string{"argument": "order_id", "problem": e.Problem}
}

// InvalidMoneyError refuses a text that is no amount of money.
type InvalidMoneyError struct {
	// Text that was given. The messages quote its beginning only.
	Text string
	// Problem says what is wrong with it.
	Problem string
}

func (e *InvalidMoneyError) Error() string {
	return fmt.Sprintf("%q is not an amount of money such as \"12.99 EUR\": %s", clip(e.Text), e.Problem)
}

// Unwrap returns ErrInvalidArgument.
func (e *InvalidMoneyError) Unwrap() error { return ErrInvalidArgument }

// Reason returns ReasonInvalidArgument.
func (e *InvalidMoneyError) Reason() Reason { return ReasonInvalidArgument }

// Facts returns the argument and its problem.
func (e *InvalidMoneyError) Facts() map[string]string {
	return map[string]string{"argument": "price", "problem": e.Problem}
}

func (*OutOfStockError) isRefusal()      {}
func (*UnknownProductError) isRefusal()  {}
func (*OrderNotFoundError) isRefusal()   {}
func (*OrderExpiredError) isRefusal()    {}
func (*MixedCurrenciesError) isRefusal() {}
func (*AmountOverflowError) isRefusal()  {}
func (*InvalidArgumentError) isRefusal() {}
func (*InvalidIDError) isRefusal()       {}
func (*InvalidMoneyError) isRefusal()    {}

// GrantOutOfOrderError is a conflict, not a refusal: a lane was offered a grant before the one that comes first. Whoever
// carries grants offers them again from Want on.
type GrantOutOfOrderError struct {
	SKU string
	// Number was offered, Want is the next one that the lane takes.
	Number, Want uint64
}

func (e *GrantOutOfOrderError) Error() string {
	return fmt.Sprintf("grant %d of %s is out of order: grant %d comes first", e.Number, clip(e.SKU), e.Want)
}

// KeyErasedError is a conflict, not a refusal: an order or a note came sealed under a key that was erased meanwhile. Whoever sealed
// it seals it again, under the user's new key.
type KeyErasedError struct{ UserID string }

func (e *KeyErasedError) Error() string {
	return "what came for " + clip(e.UserID) + " was sealed under a key that is erased"
}

// quotedMax is how many bytes of a stranger's text a message repeats.
const quotedMax = 64

// clip shortens a stranger's text for a message.
func clip(text string) string {
	if len(text) <= quotedMax {
		return text
	}
	end := quotedMax
	for end > 0 && text[end]&0xc0 == 0x80 { // Not inside a character.
		end--
	}
	return text[:end] + "…"
}

// assert panics when something does not hold that only a bug can break.
func assert(holds bool, format string, args ...any) {
	if !holds {
		panic(fmt.Sprintf("domain: bug: "+format, args...))
	}
}
