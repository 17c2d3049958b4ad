package api

import (
	"crypto/sha256"
	"encoding/binary"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

// A fingerprint is the first 16 bytes of the SHA-256 of a request's canonical form: the method's name, then its fields
// in order, each text with its length before it. It is taken of what the request means, not of its bytes: binary and
// JSON of one request match, and so do a user id that is given and the same one that the token implies. The request
// id is the ledger's key and not part of it.
//
// Fingerprints are stored for ever: the form of a method never changes. A new field is appended only when it is set.

// canonicalBytes is the size of a usual canonical form, kept on the stack.
const canonicalBytes = 512

func fingerprintPlaceOrder(userID string, request *orderv1.PlaceOrderRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.order.v1.PlaceOrder")
	form = appendText(form, userID)
	form = binary.AppendUvarint(form, uint64(len(request.Items)))
	for _, item := range request.Items {
		form = appendText(form, item.GetSku())
		form = binary.AppendVarint(form, item.GetQuantity())
	}
	form = appendText(form, request.Note)
	return fingerprint(form)
}

func fingerprintCancelOrder(id domain.OrderID, reason string) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.order.v1.CancelOrder")
	form = append(form, id[:]...)
	form = appendText(form, reason)
	return fingerprint(form)
}

func fingerprintPutProduct(request *catalogv1.PutProductRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.catalog.v1.PutProduct")
	form = appendText(form, request.Sku)
	form = appendText(form, request.Title)
	form = appendText(form, request.Price.GetCurrencyCode())
	form = binary.AppendVarint(form, request.Price.GetUnits())
	return fingerprint(form)
}

func fingerprintReceiveStock(request *catalogv1.ReceiveStockRequest) lanes.Fingerprint {
	var buffer [canonicalBytes]byte
	form := appendText(buffer[:0], "weir.catalog.v1.ReceiveStock")
	form = appendText(form, request.Sku)
	form = binary.AppendVarint(form, request.Quantity)
	return fingerprint(form)
}

func appendText(form []byte, text string) []byte {
	return append(binary.AppendUvarint(form, uint64(len(text))), text...)
}

func fingerprint(form []byte) lanes.Fingerprint {
	sum := sha256.Sum256(form)
	return lanes.Fingerprint(sum[:len(lanes.Fingerprint{})])
}
