package domain_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/weirhq/weir/domain"
)

func TestEveryRefusalSaysItsReasonAndItsFacts(t *testing.T) {
	id := orderIDs(1)[0]
	long := strings.Repeat("é", 999)
	for _, c := range []struct {
		refusal  domain.Refusal
		reason   domain.Reason
		sentinel error
		fact     string
		value    string
	}{
		{&domain.OutOfStockError{SKU: "mug", Want: 3, Free: 1}, "OUT_OF_STOCK", domain.ErrOutOfStock, "free", "1"},
		{&domain.UnknownProductError{SKU: "mug"}, "UNKNOWN_PRODUCT", domain.ErrUnknownProduct, "sku", "mug"},
		{&domain.UnknownProductError{SKU: long}, "UNKNOWN_PRODUCT", domain.ErrUnknownProduct, "sku", strings.Repeat("é", 32) + "…"},
		{&domain.OrderNotFoundError{OrderID: id}, "ORDER_NOT_FOUND", domain.ErrOrderNotFound, "order_id", id.String()},
		{&domain.OrderExpiredError{OrderID: id}, "ORDER_EXPIRED", domain.ErrOrderExpired, "order_id", id.String()},
		{&domain.OrderCancelledError{OrderID: id}, "ORDER_CANCELLED", domain.ErrOrderCancelled, "order_id", id.String()},
		{&domain.OrderShippedError{OrderID: id}, "ORDER_SHIPPED", domain.ErrOrderShipped, "order_id", id.String()},
		{&domain.PaymentStateError{OrderID: id, Payment: domain.PayUnknown}, "PAYMENT_STATE", domain.ErrPaymentState, "payment", "unknown"},
		{&domain.FulfilmentStateError{OrderID: id}, "FULFILMENT_STATE", domain.ErrFulfilmentState, "fulfilment", "none"},
		{&domain.OrderPartNotFoundError{Part: "refund", ID: long}, "ORDER_PART_NOT_FOUND", domain.ErrOrderPartNotFound, "id", strings.Repeat("é", 32) + "…"},
		{&domain.OrderLimitError{Part: "notes", Limit: 100}, "ORDER_LIMIT", domain.ErrOrderLimit, "limit", "100"},
		{&domain.EndpointLimitError{Limit: 64}, "ENDPOINT_LIMIT", domain.ErrEndpointLimit, "limit", "64"},
		{&domain.RefundExceedsCapturedError{PaymentID: long, Left: domain.Money{Currency: "EUR", Minor: 5}}, "REFUND_EXCEEDS_CAPTURED", domain.ErrRefundExceedsCaptured, "left", "0.05 EUR"},
		{&domain.UnitsExceededError{SKU: long, Want: 3, Left: 1}, "UNITS_EXCEEDED", domain.ErrUnitsExceeded, "left", "1"},
		{&domain.AmountMismatchError{PaymentID: "p", Got: domain.Money{Currency: "EUR", Minor: 5}}, "AMOUNT_MISMATCH", domain.ErrAmountMismatch, "got", "0.05 EUR"},
		{&domain.MixedCurrenciesError{First: "EUR", Other: "JPY"}, "MIXED_CURRENCIES", domain.ErrMixedCurrencies, "other", "JPY"},
		{&domain.AmountOverflowError{What: "1 + 1"}, "AMOUNT_OVERFLOW", domain.ErrAmountOverflow, "amount", "1 + 1"},
		{&domain.InvalidArgumentError{Argument: "units", Problem: "it is 0"}, "INVALID_ARGUMENT", domain.ErrInvalidArgument, "argument", "units"},
		{&domain.InvalidIDError{Text: long, Problem: "it is long"}, "INVALID_ARGUMENT", domain.ErrInvalidArgument, "argument", "order_id"},
		{&domain.InvalidMoneyError{Text: "x" + long, Problem: "it is long"}, "INVALID_ARGUMENT", domain.ErrInvalidArgument, "problem", "it is long"},
		{&domain.CampaignNotFoundError{CampaignID: long, SKU: "mug"}, "CAMPAIGN_NOT_FOUND", domain.ErrCampaignNotFound, "sku", "mug"},
		{&domain.CampaignNotFoundError{CampaignID: "flash"}, "CAMPAIGN_NOT_FOUND", domain.ErrCampaignNotFound, "campaign_id", "flash"},
		{&domain.CampaignNotOpenError{CampaignID: "flash", OpensAt: epoch}, "CAMPAIGN_NOT_OPEN", domain.ErrCampaignNotOpen, "opens_at", "2026-01-02T03:04:05Z"},
		{&domain.CampaignClosedError{CampaignID: "flash", ClosedAt: epoch}, "CAMPAIGN_CLOSED", domain.ErrCampaignClosed, "closed_at", "2026-01-02T03:04:05Z"},
		{&domain.CampaignMaxPerOrderError{CampaignID: "flash", Limit: 1, Want: 2}, "CAMPAIGN_MAX_PER_ORDER", domain.ErrCampaignMaxPerOrder, "limit", "1"},
		{&domain.CampaignLimitError{CampaignID: "flash", Limit: 2, Already: 1, Want: 2}, "CAMPAIGN_LIMIT", domain.ErrCampaignLimit, "already", "1"},
		{&domain.CouponInvalidError{Code: long}, "COUPON_INVALID", domain.ErrCouponInvalid, "coupon_code", strings.Repeat("é", 32) + "…"},
		{&domain.CouponNotYetError{Code: "TEN", ValidFrom: epoch}, "COUPON_NOT_YET", domain.ErrCouponNotYet, "valid_from", "2026-01-02T03:04:05Z"},
		{&domain.CouponExpiredError{Code: "TEN", ValidUntil: epoch}, "COUPON_EXPIRED", domain.ErrCouponExpired, "valid_until", "2026-01-02T03:04:05Z"},
		{&domain.CouponMinSubtotalError{Code: "TEN", Want: domain.Money{Currency: "EUR", Minor: 2}}, "COUPON_MIN_SUBTOTAL", domain.ErrCouponMinSubtotal, "want", "2"},
		{&domain.CouponLimitError{Code: "TEN", Scope: domain.CouponLimitUser, Limit: 1}, "COUPON_LIMIT", domain.ErrCouponLimit, "scope", "user"},
		{&domain.CouponLimitError{Code: "TEN", Scope: domain.CouponLimitTotal, Limit: 1}, "COUPON_LIMIT", domain.ErrCouponLimit, "limit", "1"},
	} {
		err := fmt.Errorf("wrapped: %w", c.refusal)
		var refusal domain.Refusal
		if !errors.As(err, &refusal) || refusal.Reason() != c.reason || !errors.Is(err, c.sentinel) {
			t.Errorf("%v: got reason %s, want %s", err, c.refusal.Reason(), c.reason)
		}
		if got := c.refusal.Facts()[c.fact]; got != c.value {
			t.Errorf("%v: %s is %q, want %q", err, c.fact, got, c.value)
		}
		if message := c.refusal.Error(); message == "" || len(message) > 200 || !utf8.ValidString(message) {
			t.Errorf("%T: the message is %q", c.refusal, message)
		}
	}
}

func TestAConflictIsNotARefusal(t *testing.T) {
	var refusal domain.Refusal
	if err := error(&domain.GrantOutOfOrderError{SKU: "mug", Number: 3, Want: 2}); errors.As(err, &refusal) {
		t.Errorf("%v is a refusal", err)
	}
}
