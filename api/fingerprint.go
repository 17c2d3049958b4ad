package api

import (
	"crypto/sha256"
	"encoding/binary"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	webhookv1 "github.com/weirhq/weir/proto/weir/webhook/v1"
)

// A fingerprint is the first 16 bytes of the SHA-256 of a request's canonical form: the method's name, then its fields
// in order, each text with its length before it. It is taken of what the request means, not of its bytes: binary and
// JSON of one request match, and so do a user id that is given and the same one that the token implies. The request
// id is the ledger's key and not part of it.
//
// What is personal may be guessed, and whoever reads the log has all the rest of the form: a hash of it would tell a right guess
// from a wrong one. So the fingerprint of a request with personal data has two halves. The first is that of the form without
// them; the second is of a MAC under the user's key, which nobody can compute without that key, nor anybody at all once it
// is erased. The MAC is taken with the request id, so that two orders to one address do not look alike. From then on
// the first half alone tells requests apart (lanes.Request.Keyed).
//
// Fingerprints are stored for ever: the form of a method never changes. A new field is appended only when it is set.

// canonicalBytes is the size of a usual canonical form, kept on the stack.
const canonicalBytes = 512

// A personalMAC is the MAC of a request's personal data; zero when it has none.
type personalMAC [sha256.Size]byte

// fingerprintPlaceOrder returns the fingerprint of a request with its personal data behind a MAC.
func fingerprintPlaceOrder(userID string, request *orderv1.PlaceOrderRequest, mac personalMAC) lanes.Fingerprint {
	f := formerPlaceOrder(userID, request, "")
	if mac != (personalMAC{}) {
		copy(f[len(f)/2:], mac[:])
	}
	return f
}

// formerPlaceOrder returns the fingerprint as it was before there were MACs: with the note among the rest.
func formerPlaceOrder(userID string, request *orderv1.PlaceOrderRequest, note string) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.order.v1.PlaceOrder")
	form = appendText(form, userID)
	form = binary.AppendUvarint(form, uint64(len(request.Items)))
	for _, item := range request.Items {
		form = appendText(form, item.GetSku())
		form = binary.AppendVarint(form, item.GetQuantity())
	}
	form = appendText(form, note)
	form = appendSet(form, "campaign_id", request.CampaignId)
	form = appendSet(form, "coupon_code", request.CouponCode)
	return fingerprint(form)
}

// canonicalPersonal is the canonical form of what is personal in a request.
func canonicalPersonal(requestID string, p *personal) []byte {
	form := appendText(make([]byte, 0, canonicalBytes), "weir.order.v1.PlaceOrder personal")
	form = appendText(form, requestID)
	form = appendText(form, p.note)
	a := p.address // A missing one and an empty one are the same to the getters; the number of lines tells them apart.
	form = binary.AppendUvarint(form, uint64(len(a.GetLines())))
	for _, line := range a.GetLines() {
		form = appendText(form, line)
	}
	for _, text := range [...]string{
		a.GetRecipient(), a.GetPostalCode(), a.GetCity(), a.GetRegion(), a.GetCountryCode(), p.contact.GetEmail(), p.contact.GetPhone(),
	} {
		form = appendText(form, text)
	}
	return form
}

// fingerprintPutEndpoint returns the fingerprint of a request with its secret behind a MAC.
func fingerprintPutEndpoint(request *webhookv1.PutEndpointRequest, secret [sha256.Size]byte) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.webhook.v1.PutEndpoint")
	form = appendText(form, request.EndpointId)
	form = appendText(form, request.Url)
	form = binary.AppendUvarint(form, uint64(len(request.Types)))
	for _, name := range request.Types {
		form = appendText(form, name)
	}
	paused := uint64(0)
	if request.Paused {
		paused = 1
	}
	form = binary.AppendUvarint(form, paused)
	return fingerprint(append(form, secret[:]...))
}

func fingerprintDeleteEndpoint(endpointID string) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.webhook.v1.DeleteEndpoint")
	return fingerprint(appendText(form, endpointID))
}

func fingerprintEraseUser(userID string) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.user.v1.EraseUser")
	form = appendText(form, userID)
	return fingerprint(form)
}

func fingerprintCancelOrder(id domain.OrderID, reason string) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.order.v1.CancelOrder")
	form = append(form, id[:]...)
	form = appendText(form, reason)
	return fingerprint(form)
}

func fingerprintShipItems(id domain.OrderID, request *orderv1.ShipItemsRequest) lanes.Fingerprint {
	form := appendItems(formOf("weir.order.v1.ShipItems", id), request.Items)
	form = appendText(form, request.Carrier)
	return fingerprint(appendText(form, request.Tracking))
}

func fingerprintConfirmDelivery(id domain.OrderID, request *orderv1.ConfirmDeliveryRequest) lanes.Fingerprint {
	return fingerprint(appendText(formOf("weir.order.v1.ConfirmDelivery", id), request.ShipmentId))
}

func fingerprintRequestReturn(id domain.OrderID, request *orderv1.RequestReturnRequest) lanes.Fingerprint {
	return fingerprint(appendText(appendItems(formOf("weir.order.v1.RequestReturn", id), request.Items), request.Reason))
}

func fingerprintReceiveReturn(id domain.OrderID, request *orderv1.ReceiveReturnRequest) lanes.Fingerprint {
	return fingerprint(appendItems(appendText(formOf("weir.order.v1.ReceiveReturn", id), request.ReturnId), request.Restock))
}

// fingerprintAddNote has the text behind a MAC: a note may say anything of a person.
func fingerprintAddNote(id domain.OrderID, mac personalMAC) lanes.Fingerprint {
	f := fingerprint(formOf("weir.order.v1.AddNote", id))
	copy(f[len(f)/2:], mac[:])
	return f
}

// canonicalNote is the canonical form of what is personal in a merchant's note.
func canonicalNote(request *orderv1.AddNoteRequest) []byte {
	form := appendText(make([]byte, 0, canonicalBytes), "weir.order.v1.AddNote personal")
	form = appendText(form, request.RequestId)
	return appendText(form, request.Text)
}

// fingerprintStartPayment takes the provider as it was asked for: the node's default one may become another.
func fingerprintStartPayment(id domain.OrderID, request *paymentv1.StartPaymentRequest) lanes.Fingerprint {
	form := appendText(formOf("weir.payment.v1.StartPayment", id), request.Provider)
	form = appendText(form, request.Method)
	if captureNow(request) {
		return fingerprint(append(form, 1))
	}
	return fingerprint(append(form, 0))
}

func fingerprintCapturePayment(id domain.OrderID) lanes.Fingerprint {
	return fingerprint(formOf("weir.payment.v1.CapturePayment", id))
}

func fingerprintVoidPayment(id domain.OrderID, request *paymentv1.VoidPaymentRequest) lanes.Fingerprint {
	return fingerprint(appendText(formOf("weir.payment.v1.VoidPayment", id), request.Reason))
}

func fingerprintRefundPayment(id domain.OrderID, request *paymentv1.RefundPaymentRequest) lanes.Fingerprint {
	form := appendText(formOf("weir.payment.v1.RefundPayment", id), request.PaymentId)
	form = appendText(form, request.Amount.GetCurrencyCode())
	form = binary.AppendVarint(form, request.Amount.GetUnits())
	return fingerprint(appendText(form, request.Reason))
}

func fingerprintPutProduct(request *catalogv1.PutProductRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.catalog.v1.PutProduct")
	form = appendText(form, request.Sku)
	form = appendText(form, request.Title)
	form = appendText(form, request.Price.GetCurrencyCode())
	form = binary.AppendVarint(form, request.Price.GetUnits())
	if request.TaxRateBps != 0 || request.TaxIncluded {
		form = appendText(form, "tax")
		form = binary.AppendVarint(form, int64(request.TaxRateBps))
		form = appendBit(form, request.TaxIncluded)
	}
	return fingerprint(form)
}

func fingerprintPutCampaign(request *campaignv1.PutCampaignRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.campaign.v1.PutCampaign")
	form = appendText(form, request.CampaignId)
	form = appendText(form, request.Sku)
	form = appendMoney(form, request.Price)
	form = appendTime(form, request.OpensAt)
	form = appendTime(form, request.ClosesAt)
	form = binary.AppendVarint(form, request.UserUnitsMax)
	form = binary.AppendVarint(form, request.OrderUnitsMax)
	form = binary.AppendVarint(form, request.Units)
	return fingerprint(form)
}

func fingerprintPutCoupon(request *campaignv1.PutCouponRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.campaign.v1.PutCoupon")
	form = appendText(form, request.CouponCode)
	form = appendMoney(form, request.Amount)
	form = binary.AppendVarint(form, int64(request.RateBps))
	form = appendMoney(form, request.MinSubtotal)
	form = appendTime(form, request.ValidFrom)
	form = appendTime(form, request.ValidUntil)
	form = binary.AppendVarint(form, request.UserUsesMax)
	form = binary.AppendVarint(form, request.UsesMax)
	return fingerprint(form)
}

func fingerprintReceiveStock(request *catalogv1.ReceiveStockRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.catalog.v1.ReceiveStock")
	form = appendText(form, request.Sku)
	form = binary.AppendVarint(form, request.Quantity)
	return fingerprint(form)
}

func fingerprintPreheatStock(request *catalogv1.PreheatStockRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.catalog.v1.PreheatStock")
	form = appendText(form, request.Sku)
	form = binary.AppendVarint(form, request.UnitsPerLane)
	return fingerprint(form)
}

// appendSet appends a field that came later, with its name before it, when it is set.
func appendSet(form []byte, name, text string) []byte {
	if text == "" {
		return form
	}
	return appendText(appendText(form, name), text)
}

// appendMoney appends an amount; one that is not set is an empty currency and 0.
func appendMoney(form []byte, m *typev1.Money) []byte {
	return binary.AppendVarint(appendText(form, m.GetCurrencyCode()), m.GetUnits())
}

// appendTime appends a bit that says whether there is a time, and the time.
func appendTime(form []byte, t *timestamppb.Timestamp) []byte {
	form = appendBit(form, t != nil)
	return binary.AppendVarint(binary.AppendVarint(form, t.GetSeconds()), int64(t.GetNanos()))
}

func appendBit(form []byte, set bool) []byte {
	if set {
		return append(form, 1)
	}
	return append(form, 0)
}

// formOf begins the form of a method that changes an order.
func formOf(method string, id domain.OrderID) []byte {
	return append(appendText(make([]byte, 0, canonicalBytes), method), id[:]...)
}

func appendItems(form []byte, items []*orderv1.ItemRequest) []byte {
	form = binary.AppendUvarint(form, uint64(len(items)))
	for _, item := range items {
		form = appendText(form, item.GetSku())
		form = binary.AppendVarint(form, item.GetQuantity())
	}
	return form
}

func appendText(form []byte, text string) []byte {
	return append(binary.AppendUvarint(form, uint64(len(text))), text...)
}

func fingerprint(form []byte) lanes.Fingerprint {
	sum := sha256.Sum256(form)
	return lanes.Fingerprint(sum[:len(lanes.Fingerprint{})])
}
