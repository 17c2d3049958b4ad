package domain

// RequestAnswered says that a request was accepted which left nothing to do. It changes nothing; by it the ledger of requests
// remembers what the answer was about, so that the same request is answered the same for ever, and no other under its id (I4).
type RequestAnswered struct {
	About Subject
	// Key of the subject: an order's id, a SKU, the stock key of a campaign's pool, a coupon's code, a user's id.
	Key string
	// PartID is the part of the order that it was about, empty for none.
	PartID string
	// KeyID is the key of the user that was erased before, 0 unless it was about a user.
	KeyID KeyID
}

// A Subject is what a request was about.
type Subject string

// The subjects. They are stored: a name never changes.
const (
	AboutOrder    Subject = "order"
	AboutProduct  Subject = "product"
	AboutCampaign Subject = "campaign"
	AboutCoupon   Subject = "coupon"
	AboutUser     Subject = "user"
)

func (RequestAnswered) isEvent() {}

// Answered returns the event by which a request is remembered whose command Decide had nothing to say to; false for commands that
// always have something to say to a request, and for those that no request asks for.
func Answered(s State, c Command) (RequestAnswered, bool) {
	switch c := c.(type) {
	case CancelOrder, StartPayment, CapturePayment, VoidPayment, RecordPaymentResult, RecordStrayPayment, RefundPayment, RecordRefundResult,
		ShipItems, ConfirmDelivery, RequestReturn, ReceiveReturn, AddNote, AwardPoints, TakeBackPoints:
		id, _ := CommandOrderID(c)
		order, found := s.Order(id)
		return RequestAnswered{About: AboutOrder, Key: id.String(), PartID: order.partFor(c)}, found
	case PutProduct:
		return RequestAnswered{About: AboutProduct, Key: c.SKU}, true
	case PutCampaign:
		return RequestAnswered{About: AboutCampaign, Key: CampaignPool(c.SKU, c.CampaignID)}, true
	case PutCoupon:
		return RequestAnswered{About: AboutCoupon, Key: c.Code}, true
	case EraseUser:
		return RequestAnswered{About: AboutUser, Key: c.UserID, KeyID: c.Key}, true
	case PlaceOrder, ExpireOrder, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock,
		PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	return RequestAnswered{}, false
}

// partFor names the part of the order that a command with its number filled in is about, empty for none.
func (o *Order) partFor(c Command) string {
	switch c := c.(type) {
	case StartPayment:
		return PaymentID(o.ID, c.Number)
	case CapturePayment, VoidPayment:
		return o.newest().ID
	case RecordPaymentResult:
		return c.PaymentID
	case RecordStrayPayment:
		return c.PaymentID
	case RefundPayment:
		return RefundID(c.PaymentID, c.Number)
	case RecordRefundResult:
		return c.RefundID
	case ShipItems:
		return ShipmentID(o.ID, c.Number)
	case ConfirmDelivery:
		return c.ShipmentID
	case RequestReturn:
		return ReturnID(o.ID, c.Number)
	case ReceiveReturn:
		return c.ReturnID
	case AddNote:
		return NoteID(o.ID, c.Number)
	case AwardPoints:
		return c.PaymentID
	case TakeBackPoints:
		return c.RefundID
	case PlaceOrder, CancelOrder, ExpireOrder, PutProduct, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock, EraseUser,
		PutCampaign, PutCoupon, PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	return ""
}

// PartOf names the part of an order that an event made or changed, empty for none.
func PartOf(e Event) string {
	switch e := e.(type) {
	case PaymentStarted:
		return e.PaymentID
	case PaymentAuthorized:
		return e.PaymentID
	case PaymentCaptureRequested:
		return e.PaymentID
	case PaymentCaptured:
		return e.PaymentID
	case PaymentDeclined:
		return e.PaymentID
	case PaymentBecameUnknown:
		return e.PaymentID
	case PaymentVoidRequested:
		return e.PaymentID
	case PaymentVoided:
		return e.PaymentID
	case StrayPaymentFound:
		return e.PaymentID
	case RefundStarted:
		return e.RefundID
	case PaymentRefunded:
		return e.RefundID
	case RefundFailed:
		return e.RefundID
	case ItemsShipped:
		return e.ShipmentID
	case ShipmentDelivered:
		return e.ShipmentID
	case ReturnRequested:
		return e.ReturnID
	case ReturnReceived:
		return e.ReturnID
	case NoteAdded:
		return e.NoteID
	case PointsAwarded:
		return e.PaymentID
	case PointsTakenBack:
		return e.RefundID
	case RequestAnswered:
		return e.PartID
	case OrderPlaced, OrderCancelled, OrderExpired, ProductPut, StockReceived, StockGranted, StockAllotted, StockReturned, StockReclaimed, UserErased,
		CampaignPut, PoolFilled, PoolDrained, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted:
	}
	return ""
}
