package courier

import (
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
)

// A command on its way: weir.node.v1.Command. One walk over the fields of each message says how it is written and how it is read.
type command struct {
	needs     uint32
	request   lanes.Request
	refuseNew bool
	principal string
}

func walkCommand(w *walk, m *command) {
	number(w, 1, &m.needs)
	w.text(2, &m.request.UserID)
	w.text(3, &m.request.RequestID)
	w.fingerprint(4, &m.request.Fingerprint)
	w.fingerprint(5, &m.request.Former)
	w.bit(6, &m.request.Keyed)
	number(w, 7, &m.request.Partition)
	w.text(8, &m.request.Owner)
	w.bit(9, &m.refuseNew)
	w.text(10, &m.principal)
	oneOf(w, 16, &m.request.Command, walkPlaceOrder)
	oneOf(w, 17, &m.request.Command, walkCancelOrder)
	oneOf(w, 18, &m.request.Command, walkPutProduct)
	oneOf(w, 19, &m.request.Command, walkReceiveStock)
	oneOf(w, 20, &m.request.Command, walkPreheatStock)
	oneOf(w, 21, &m.request.Command, walkPutCampaign)
	oneOf(w, 22, &m.request.Command, walkPutCoupon)
	oneOf(w, 23, &m.request.Command, walkEraseUser)
	oneOf(w, 24, &m.request.Command, walkStartPayment)
	oneOf(w, 25, &m.request.Command, walkCapturePayment)
	oneOf(w, 26, &m.request.Command, walkVoidPayment)
	oneOf(w, 27, &m.request.Command, walkRecordPaymentResult)
	oneOf(w, 28, &m.request.Command, walkRecordStrayPayment)
	oneOf(w, 29, &m.request.Command, walkRefundPayment)
	oneOf(w, 30, &m.request.Command, walkRecordRefundResult)
	oneOf(w, 31, &m.request.Command, walkShipItems)
	oneOf(w, 32, &m.request.Command, walkConfirmDelivery)
	oneOf(w, 33, &m.request.Command, walkRequestReturn)
	oneOf(w, 34, &m.request.Command, walkReceiveReturn)
	oneOf(w, 35, &m.request.Command, walkAddNote)
	oneOf(w, 36, &m.request.Command, walkAwardPoints)
	oneOf(w, 37, &m.request.Command, walkTakeBackPoints)
	oneOf(w, 38, &m.request.Command, walkPutWebhookEndpoint)
	oneOf(w, 39, &m.request.Command, walkDeleteWebhookEndpoint)
}

func walkPlaceOrder(w *walk, m *domain.PlaceOrder) {
	w.text(1, &m.UserID)
	repeated(w, 2, &m.Lines, walkLineRequest)
	w.bytes(3, &m.SealedPersonal)
	number(w, 4, &m.SealKey)
	w.text(5, &m.CampaignID)
	w.text(6, &m.CouponCode)
}

func walkCancelOrder(w *walk, m *domain.CancelOrder) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.Reason)
	w.text(3, &m.By)
}

func walkPutProduct(w *walk, m *domain.PutProduct) {
	w.text(1, &m.SKU)
	w.text(2, &m.Title)
	message(w, 3, &m.Price, walkMoney)
	message(w, 4, &m.Tax, walkTax)
}

func walkReceiveStock(w *walk, m *domain.ReceiveStock) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Units)
}

func walkPreheatStock(w *walk, m *domain.PreheatStock) {
	w.text(1, &m.SKU)
	number(w, 2, &m.UnitsPerLane)
}

func walkPutCampaign(w *walk, m *domain.PutCampaign) {
	w.text(1, &m.CampaignID)
	w.text(2, &m.SKU)
	message(w, 3, &m.Price, walkMoney)
	w.time(4, &m.OpensAt)
	w.time(5, &m.ClosesAt)
	number(w, 6, &m.UserUnitsMax)
	number(w, 7, &m.OrderUnitsMax)
	number(w, 8, &m.Units)
}

func walkPutCoupon(w *walk, m *domain.PutCoupon) {
	w.text(1, &m.Code)
	message(w, 2, &m.Terms, walkCouponTerms)
}

func walkEraseUser(w *walk, m *domain.EraseUser) {
	w.text(1, &m.UserID)
	number(w, 2, &m.Key)
	w.text(3, &m.By)
}

func walkStartPayment(w *walk, m *domain.StartPayment) {
	w.orderID(1, &m.OrderID)
	number(w, 2, &m.Number)
	w.text(3, &m.Provider)
	w.text(4, &m.Method)
	w.bit(5, &m.CaptureNow)
	w.text(6, &m.By)
}

func walkCapturePayment(w *walk, m *domain.CapturePayment) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.By)
}

func walkVoidPayment(w *walk, m *domain.VoidPayment) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.Reason)
	w.text(3, &m.By)
}

func walkRecordPaymentResult(w *walk, m *domain.RecordPaymentResult) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.PaymentID)
	w.text(3, &m.Provider)
	enum(w, 4, &m.Result, domain.ResultVoided)
	message(w, 5, &m.Amount, walkMoney)
	w.text(6, &m.Code)
	w.text(7, &m.Message)
}

func walkRecordStrayPayment(w *walk, m *domain.RecordStrayPayment) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.PaymentID)
	message(w, 3, &m.Amount, walkMoney)
	w.text(4, &m.Why)
}

func walkRefundPayment(w *walk, m *domain.RefundPayment) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.PaymentID)
	number(w, 3, &m.Number)
	message(w, 4, &m.Amount, walkMoney)
	w.text(5, &m.Reason)
	w.text(6, &m.By)
}

func walkRecordRefundResult(w *walk, m *domain.RecordRefundResult) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.RefundID)
	w.text(3, &m.Provider)
	w.bit(4, &m.Succeeded)
	message(w, 5, &m.Amount, walkMoney)
	w.text(6, &m.Code)
}

func walkShipItems(w *walk, m *domain.ShipItems) {
	w.orderID(1, &m.OrderID)
	number(w, 2, &m.Number)
	repeated(w, 3, &m.Lines, walkLineRequest)
	w.text(4, &m.Carrier)
	w.text(5, &m.Tracking)
	w.text(6, &m.By)
}

func walkConfirmDelivery(w *walk, m *domain.ConfirmDelivery) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.ShipmentID)
	w.text(3, &m.By)
}

func walkRequestReturn(w *walk, m *domain.RequestReturn) {
	w.orderID(1, &m.OrderID)
	number(w, 2, &m.Number)
	repeated(w, 3, &m.Lines, walkLineRequest)
	w.text(4, &m.Reason)
	w.text(5, &m.By)
}

func walkReceiveReturn(w *walk, m *domain.ReceiveReturn) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.ReturnID)
	repeated(w, 3, &m.Restock, walkLineRequest)
	w.text(4, &m.By)
}

func walkAddNote(w *walk, m *domain.AddNote) {
	w.orderID(1, &m.OrderID)
	number(w, 2, &m.Number)
	w.text(3, &m.By)
	w.bytes(4, &m.Sealed)
	number(w, 5, &m.SealKey)
}

func walkAwardPoints(w *walk, m *domain.AwardPoints) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.PaymentID)
	number(w, 3, &m.PerMajor)
}

func walkTakeBackPoints(w *walk, m *domain.TakeBackPoints) {
	w.orderID(1, &m.OrderID)
	w.text(2, &m.RefundID)
}

func walkPutWebhookEndpoint(w *walk, m *domain.PutWebhookEndpoint) {
	w.text(1, &m.EndpointID)
	w.text(2, &m.URL)
	w.bytes(3, &m.SealedSecret)
	w.texts(4, &m.Types)
	w.bit(5, &m.Paused)
	w.text(6, &m.By)
}

func walkDeleteWebhookEndpoint(w *walk, m *domain.DeleteWebhookEndpoint) {
	w.text(1, &m.EndpointID)
	w.text(2, &m.By)
}

func walkMoney(w *walk, m *domain.Money) {
	w.text(1, &m.Currency)
	number(w, 2, &m.Minor)
}

func walkTax(w *walk, m *domain.Tax) {
	number(w, 1, &m.RateBps)
	w.bit(2, &m.Included)
}

func walkLineRequest(w *walk, m *domain.LineRequest) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Units)
}

func walkRelease(w *walk, m *domain.Release) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Units)
}

func walkCouponTerms(w *walk, m *domain.CouponTerms) {
	number(w, 1, &m.Kind)
	number(w, 2, &m.AmountMinor)
	number(w, 3, &m.RateBps)
	w.text(4, &m.Currency)
	number(w, 5, &m.MinSubtotalMinor)
	w.time(6, &m.ValidFrom)
	w.time(7, &m.ValidUntil)
	number(w, 8, &m.UserUsesMax)
	number(w, 9, &m.UsesMax)
}
