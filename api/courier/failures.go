package courier

import (
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

func walkFailure(w *walk, m *failure) {
	w.text(1, &m.message)
	oneError(w, 16, &m.kind, walkOutOfStock)
	oneError(w, 17, &m.kind, walkStockMoving)
	oneError(w, 18, &m.kind, walkUnknownProduct)
	oneError(w, 19, &m.kind, walkOrderNotFound)
	oneError(w, 20, &m.kind, walkOrderExpired)
	oneError(w, 21, &m.kind, walkOrderCancelled)
	oneError(w, 22, &m.kind, walkOrderShipped)
	oneError(w, 23, &m.kind, walkPaymentState)
	oneError(w, 24, &m.kind, walkFulfilmentState)
	oneError(w, 25, &m.kind, walkOrderPartNotFound)
	oneError(w, 26, &m.kind, walkOrderLimit)
	oneError(w, 27, &m.kind, walkRefundExceedsCaptured)
	oneError(w, 28, &m.kind, walkUnitsExceeded)
	oneError(w, 29, &m.kind, walkAmountMismatch)
	oneError(w, 30, &m.kind, walkMixedCurrencies)
	oneError(w, 31, &m.kind, walkAmountOverflow)
	oneError(w, 32, &m.kind, walkInvalidArgument)
	oneError(w, 33, &m.kind, walkInvalidID)
	oneError(w, 34, &m.kind, walkInvalidMoney)
	oneError(w, 35, &m.kind, walkCampaignNotFound)
	oneError(w, 36, &m.kind, walkCampaignNotOpen)
	oneError(w, 37, &m.kind, walkCampaignClosed)
	oneError(w, 38, &m.kind, walkCampaignMaxPerOrder)
	oneError(w, 39, &m.kind, walkCampaignLimit)
	oneError(w, 40, &m.kind, walkCouponInvalid)
	oneError(w, 41, &m.kind, walkCouponNotYet)
	oneError(w, 42, &m.kind, walkCouponExpired)
	oneError(w, 43, &m.kind, walkCouponMinSubtotal)
	oneError(w, 44, &m.kind, walkCouponLimit)
	oneError(w, 45, &m.kind, walkKeyErased)
	oneError(w, 46, &m.kind, walkKeyReused)
	oneError(w, 47, &m.kind, walkQueueFull)
	oneError(w, 48, &m.kind, walkUnavailable)
	oneError(w, 49, &m.kind, walkNotOwner)
	oneError(w, 50, &m.kind, walkLogFull)
	oneError(w, 51, &m.kind, walkTooLate)
	oneError(w, 52, &m.kind, walkRefusedAsAsked)
	oneError(w, 53, &m.kind, walkUnsupported)
	oneError(w, 54, &m.kind, walkFault)
	oneError(w, 55, &m.kind, walkEndpointLimit)
}

func walkOutOfStock(w *walk, m *domain.OutOfStockError) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Want)
	number(w, 3, &m.Free)
}

func walkStockMoving(w *walk, m *domain.StockMovingError) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Want)
	number(w, 3, &m.Short)
	number(w, 4, &m.Taken)
	number(w, 5, &m.Returned)
	repeated(w, 6, &m.Pledges, walkRelease)
}

func walkUnknownProduct(w *walk, m *domain.UnknownProductError) {
	w.text(1, &m.SKU)
}

func walkOrderNotFound(w *walk, m *domain.OrderNotFoundError) {
	w.orderID(1, &m.OrderID)
}

func walkOrderExpired(w *walk, m *domain.OrderExpiredError) {
	w.orderID(1, &m.OrderID)
}

func walkOrderCancelled(w *walk, m *domain.OrderCancelledError) {
	w.orderID(1, &m.OrderID)
}

func walkOrderShipped(w *walk, m *domain.OrderShippedError) {
	w.orderID(1, &m.OrderID)
}

func walkPaymentState(w *walk, m *domain.PaymentStateError) {
	w.orderID(1, &m.OrderID)
	enum(w, 2, &m.Payment, domain.PayUnknown)
}

func walkFulfilmentState(w *walk, m *domain.FulfilmentStateError) {
	w.orderID(1, &m.OrderID)
	enum(w, 2, &m.Fulfilment, domain.FulfilmentReturned)
}

func walkOrderPartNotFound(w *walk, m *domain.OrderPartNotFoundError) {
	w.text(1, &m.Part)
	w.text(2, &m.ID)
}

func walkOrderLimit(w *walk, m *domain.OrderLimitError) {
	w.text(1, &m.Part)
	number(w, 2, &m.Limit)
}

func walkEndpointLimit(w *walk, m *domain.EndpointLimitError) {
	number(w, 1, &m.Limit)
}

func walkRefundExceedsCaptured(w *walk, m *domain.RefundExceedsCapturedError) {
	w.text(1, &m.PaymentID)
	message(w, 2, &m.Want, walkMoney)
	message(w, 3, &m.Left, walkMoney)
}

func walkUnitsExceeded(w *walk, m *domain.UnitsExceededError) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Want)
	number(w, 3, &m.Left)
}

func walkAmountMismatch(w *walk, m *domain.AmountMismatchError) {
	w.text(1, &m.PaymentID)
	message(w, 2, &m.Want, walkMoney)
	message(w, 3, &m.Got, walkMoney)
}

func walkMixedCurrencies(w *walk, m *domain.MixedCurrenciesError) {
	w.text(1, &m.First)
	w.text(2, &m.Other)
}

func walkAmountOverflow(w *walk, m *domain.AmountOverflowError) {
	w.text(1, &m.What)
}

func walkInvalidArgument(w *walk, m *domain.InvalidArgumentError) {
	w.text(1, &m.Argument)
	w.text(2, &m.Problem)
}

func walkInvalidID(w *walk, m *domain.InvalidIDError) {
	w.text(1, &m.Text)
	w.text(2, &m.Problem)
}

func walkInvalidMoney(w *walk, m *domain.InvalidMoneyError) {
	w.text(1, &m.Text)
	w.text(2, &m.Problem)
}

func walkCampaignNotFound(w *walk, m *domain.CampaignNotFoundError) {
	w.text(1, &m.CampaignID)
	w.text(2, &m.SKU)
}

func walkCampaignNotOpen(w *walk, m *domain.CampaignNotOpenError) {
	w.text(1, &m.CampaignID)
	w.time(2, &m.OpensAt)
	number(w, 3, &m.OpensIn)
}

func walkCampaignClosed(w *walk, m *domain.CampaignClosedError) {
	w.text(1, &m.CampaignID)
	w.time(2, &m.ClosedAt)
}

func walkCampaignMaxPerOrder(w *walk, m *domain.CampaignMaxPerOrderError) {
	w.text(1, &m.CampaignID)
	number(w, 2, &m.Limit)
	number(w, 3, &m.Want)
}

func walkCampaignLimit(w *walk, m *domain.CampaignLimitError) {
	w.text(1, &m.CampaignID)
	number(w, 2, &m.Limit)
	number(w, 3, &m.Already)
	number(w, 4, &m.Want)
}

func walkCouponInvalid(w *walk, m *domain.CouponInvalidError) {
	w.text(1, &m.Code)
}

func walkCouponNotYet(w *walk, m *domain.CouponNotYetError) {
	w.text(1, &m.Code)
	w.time(2, &m.ValidFrom)
}

func walkCouponExpired(w *walk, m *domain.CouponExpiredError) {
	w.text(1, &m.Code)
	w.time(2, &m.ValidUntil)
}

func walkCouponMinSubtotal(w *walk, m *domain.CouponMinSubtotalError) {
	w.text(1, &m.Code)
	message(w, 2, &m.Want, walkMoney)
	message(w, 3, &m.Subtotal, walkMoney)
}

func walkCouponLimit(w *walk, m *domain.CouponLimitError) {
	w.text(1, &m.Code)
	w.text(2, &m.Scope)
	number(w, 3, &m.Limit)
}

func walkKeyErased(w *walk, m *domain.KeyErasedError) {
	w.text(1, &m.UserID)
}

func walkKeyReused(w *walk, m *lanes.KeyReusedError) {
	w.text(1, &m.UserID)
	w.text(2, &m.RequestID)
}

func walkQueueFull(w *walk, m *eventstore.QueueFullError) {
	number(w, 1, &m.Lane)
	number(w, 2, &m.RetryAfter)
}

func walkUnavailable(w *walk, m *unavailable) {
	number(w, 1, &m.lane)
	number(w, 2, &m.retryAfter)
	w.text(3, &m.cause)
}

func walkNotOwner(w *walk, m *lanes.NotOwnerError) {
	number(w, 1, &m.Lane)
	w.text(2, &m.Owner)
}

func walkLogFull(*walk, *logFull) {}

func walkTooLate(*walk, *tooLate) {}

func walkRefusedAsAsked(*walk, *refusedAsAsked) {}

func walkUnsupported(w *walk, m *unsupported) {
	number(w, 1, &m.newest)
}

func walkFault(*walk, *fault) {}
