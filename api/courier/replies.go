package courier

import (
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
)

func walkReply(w *walk, m *lanes.Reply) {
	number(w, 1, &m.Lane)
	number(w, 2, &m.Commit)
	w.time(3, &m.At)
	message(w, 4, &m.Order, walkOrder)
	number(w, 5, &m.OrderCommit)
	w.text(6, &m.PartID)
	message(w, 7, &m.Product, walkProduct)
	message(w, 8, &m.Campaign, walkCampaign)
	message(w, 9, &m.Coupon, walkCoupon)
	message(w, 10, &m.Received, walkStockReceived)
	message(w, 11, &m.Erased, walkUserErased)
	message(w, 12, &m.Granted, walkStockGranted)
	message(w, 13, &m.Endpoint, walkWebhookEndpointPut)
}

func walkLine(w *walk, m *domain.Line) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Units)
	w.text(3, &m.Title)
	number(w, 4, &m.PriceMinor)
	number(w, 5, &m.DiscountMinor)
	number(w, 6, &m.TaxMinor)
	message(w, 7, &m.Tax, walkTax)
}

func walkPayment(w *walk, m *domain.Payment) {
	w.text(1, &m.ID)
	w.text(2, &m.Provider)
	w.text(3, &m.Method)
	message(w, 4, &m.Amount, walkMoney)
	w.bit(5, &m.CaptureNow)
	w.time(6, &m.StartedAt)
	enum(w, 7, &m.State, domain.PayUnknown)
	w.bit(8, &m.CaptureRequested)
	w.bit(9, &m.VoidRequested)
	message(w, 10, &m.Taken, walkMoney)
	w.bit(11, &m.Stray)
	number(w, 12, &m.RefundedMinor)
	w.text(13, &m.DeclineCode)
	w.text(14, &m.DeclineMessage)
	number(w, 15, &m.Points)
	number(w, 16, &m.PointsPerMajor)
	w.bit(17, &m.PointsDecided)
}

func walkRefund(w *walk, m *domain.Refund) {
	w.text(1, &m.ID)
	w.text(2, &m.PaymentID)
	message(w, 3, &m.Amount, walkMoney)
	w.text(4, &m.Reason)
	w.text(5, &m.ReturnID)
	enum(w, 6, &m.State, domain.RefundHasFailed)
	w.text(7, &m.Code)
	number(w, 8, &m.Points)
}

func walkShipment(w *walk, m *domain.Shipment) {
	w.text(1, &m.ID)
	repeated(w, 2, &m.Lines, walkRelease)
	w.text(3, &m.Carrier)
	w.text(4, &m.Tracking)
	w.time(5, &m.ShippedAt)
	w.time(6, &m.DeliveredAt)
}

func walkReturn(w *walk, m *domain.Return) {
	w.text(1, &m.ID)
	repeated(w, 2, &m.Lines, walkRelease)
	repeated(w, 3, &m.Restocked, walkRelease)
	w.text(4, &m.Reason)
	w.time(5, &m.RequestedAt)
	w.time(6, &m.ReceivedAt)
}

func walkNote(w *walk, m *domain.Note) {
	w.text(1, &m.By)
	w.time(2, &m.At)
	w.bytes(3, &m.Sealed)
}

func walkOrder(w *walk, m *domain.Order) {
	w.orderID(1, &m.ID)
	w.text(2, &m.UserID)
	enum(w, 3, &m.Status, domain.StatusPaymentProcessing)
	enum(w, 4, &m.Ending, domain.EndingExpired)
	enum(w, 5, &m.Payment, domain.PayUnknown)
	enum(w, 6, &m.Fulfilment, domain.FulfilmentReturned)
	repeated(w, 7, &m.Lines, walkLine)
	message(w, 8, &m.Total, walkMoney)
	w.time(9, &m.PlacedAt)
	w.time(10, &m.PayBy)
	w.time(11, &m.UpdatedAt)
	w.text(12, &m.CancelReason)
	w.bytes(13, &m.SealedNote)
	w.text(14, &m.Pool)
	w.text(15, &m.CouponCode)
	w.text(16, &m.CouponPool)
	w.bytes(17, &m.SealedPersonal)
	repeated(w, 18, &m.Payments, walkPayment)
	repeated(w, 19, &m.Refunds, walkRefund)
	repeated(w, 20, &m.Shipments, walkShipment)
	repeated(w, 21, &m.Returns, walkReturn)
	repeated(w, 22, &m.Notes, walkNote)
}

func walkProduct(w *walk, m *domain.Product) {
	w.text(1, &m.SKU)
	w.text(2, &m.Title)
	message(w, 3, &m.Price, walkMoney)
	message(w, 4, &m.Tax, walkTax)
	w.time(5, &m.UpdatedAt)
}

func walkCampaign(w *walk, m *domain.Campaign) {
	w.text(1, &m.Pool)
	message(w, 2, &m.Price, walkMoney)
	w.time(3, &m.OpensAt)
	w.time(4, &m.ClosesAt)
	number(w, 5, &m.UserUnitsMax)
	number(w, 6, &m.OrderUnitsMax)
	number(w, 7, &m.Units)
	w.time(8, &m.UpdatedAt)
}

func walkCoupon(w *walk, m *domain.Coupon) {
	w.text(1, &m.Code)
	message(w, 2, &m.Terms, walkCouponTerms)
	w.time(3, &m.UpdatedAt)
}

func walkStockReceived(w *walk, m *domain.StockReceived) {
	w.text(1, &m.SKU)
	number(w, 2, &m.Units)
	number(w, 3, &m.ReceivedTotal)
}

func walkStockGranted(w *walk, m *domain.StockGranted) {
	w.text(1, &m.SKU)
	number(w, 2, &m.ToLane)
	number(w, 3, &m.GrantNumber)
	number(w, 4, &m.Units)
}

func walkUserErased(w *walk, m *domain.UserErased) {
	w.text(1, &m.UserID)
	number(w, 2, &m.Key)
	w.text(3, &m.By)
}

func walkWebhookEndpointPut(w *walk, m *domain.WebhookEndpointPut) {
	w.text(1, &m.EndpointID)
	w.text(2, &m.URL)
	w.bytes(3, &m.SealedSecret)
	w.texts(4, &m.Types)
	w.bit(5, &m.Paused)
	w.text(6, &m.By)
}
