package api

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func items(pairs ...any) []*orderv1.ItemRequest {
	var list []*orderv1.ItemRequest
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, &orderv1.ItemRequest{Sku: pairs[i].(string), Quantity: int64(pairs[i+1].(int))})
	}
	return list
}

// TestFingerprintsNeverChange: they are stored with every command, for ever.
func TestFingerprintsNeverChange(t *testing.T) {
	for name, test := range map[string]struct {
		got  lanes.Fingerprint
		want string
	}{
		"PlaceOrder": {
			fingerprintPlaceOrder("ada", &orderv1.PlaceOrderRequest{RequestId: "ignored", Items: items("a", 1, "b", 2)}, personalMAC{}),
			"41bd61ecf863555cdf32fc21926d34cf",
		},
		"PlaceOrder with personal data": {
			fingerprintPlaceOrder("ada", &orderv1.PlaceOrderRequest{RequestId: "ignored", Items: items("a", 1, "b", 2), Note: "hello"}, personalMAC{1, 2, 3, 4, 5, 6, 7, 8, 9}),
			"41bd61ecf863555c0102030405060708",
		},
		"PlaceOrder with a note, formerly": {
			formerPlaceOrder("ada", &orderv1.PlaceOrderRequest{RequestId: "ignored", Items: items("a", 1, "b", 2)}, "hello"),
			"84d9c0e534a89747b01b4ecbc409b284",
		},
		"EraseUser":   {fingerprintEraseUser("ada"), "c2a9511a9869322fcb4e6e8e4bef908d"},
		"CancelOrder": {fingerprintCancelOrder(domain.OrderID{1, 2, 3}, "too late"), "651277703337a5f7bb1a8a1185f2eeef"},
		"ShipItems": {
			fingerprintShipItems(domain.OrderID{1, 2, 3}, &orderv1.ShipItemsRequest{RequestId: "ignored", Items: items("a", 1), Carrier: "post", Tracking: "42"}),
			"ed22c1459fbe84097c44f29d9f7a2eb3",
		},
		"ConfirmDelivery": {fingerprintConfirmDelivery(domain.OrderID{1, 2, 3}, &orderv1.ConfirmDeliveryRequest{ShipmentId: "s"}), "11db5c558340973897f2d4fd8a6df96a"},
		"RequestReturn":   {fingerprintRequestReturn(domain.OrderID{1, 2, 3}, &orderv1.RequestReturnRequest{Items: items("a", 1), Reason: "broken"}), "3e152f920b164104ba38f90aeace2af6"},
		"ReceiveReturn":   {fingerprintReceiveReturn(domain.OrderID{1, 2, 3}, &orderv1.ReceiveReturnRequest{ReturnId: "t", Restock: items("a", 1)}), "6a4c7d775c423d650b899009455507c2"},
		"AddNote":         {fingerprintAddNote(domain.OrderID{1, 2, 3}, personalMAC{1, 2, 3, 4, 5, 6, 7, 8, 9}), "27494c89046aefed0102030405060708"},
		"StartPayment": {
			fingerprintStartPayment(domain.OrderID{1, 2, 3}, &paymentv1.StartPaymentRequest{Provider: "sandbox", Method: "card", CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL}),
			"8da0002812714d8ce8bc5fce0c5aa332",
		},
		"CapturePayment": {fingerprintCapturePayment(domain.OrderID{1, 2, 3}), "862ae973e8d5ba2d696825764216f4d8"},
		"VoidPayment":    {fingerprintVoidPayment(domain.OrderID{1, 2, 3}, &paymentv1.VoidPaymentRequest{Reason: "late"}), "de350fa0e232f247f02e983d25fd42e6"},
		"RefundPayment": {
			fingerprintRefundPayment(domain.OrderID{1, 2, 3}, &paymentv1.RefundPaymentRequest{Amount: &typev1.Money{CurrencyCode: "EUR", Units: 5}, Reason: "late", PaymentId: "p"}),
			"1c33eb83484612a0e42560ae2eaba8df",
		},
		"PutProduct":   {fingerprintPutProduct(&catalogv1.PutProductRequest{Sku: "a", Title: "A", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1299}}), "f2a8e7ac2430b55b45f95ef21c5c5495"},
		"ReceiveStock": {fingerprintReceiveStock(&catalogv1.ReceiveStockRequest{Sku: "a", Quantity: 7}), "e9848f2d071c66da6feb585197ad5261"},
	} {
		if got := hex.EncodeToString(test.got[:]); got != test.want {
			t.Errorf("%s: got %s, want %s", name, got, test.want)
		}
	}
}

func TestFingerprintsOfRequestsThatMeanSomethingElseDiffer(t *testing.T) {
	seen := map[lanes.Fingerprint]string{}
	add := func(name string, fingerprint lanes.Fingerprint) {
		t.Helper()
		if other, taken := seen[fingerprint]; taken {
			t.Errorf("%s and %s have the same fingerprint", name, other)
		}
		seen[fingerprint] = name
	}
	place := func(name, userID string, request *orderv1.PlaceOrderRequest) {
		person, _ := personalOf(request)
		// A MAC under a key that everybody knows, to see that the form tells requests apart.
		add(name, fingerprintPlaceOrder(userID, request, sha256.Sum256(canonicalPersonal("r1", &person))))
	}
	place("one line", "ada", &orderv1.PlaceOrderRequest{Items: items("a", 1)})
	place("another user", "eve", &orderv1.PlaceOrderRequest{Items: items("a", 1)})
	place("more units", "ada", &orderv1.PlaceOrderRequest{Items: items("a", 2)})
	place("two lines", "ada", &orderv1.PlaceOrderRequest{Items: items("a", 1, "b", 1)})
	place("two lines, turned round", "ada", &orderv1.PlaceOrderRequest{Items: items("b", 1, "a", 1)})
	place("names that run together", "ada", &orderv1.PlaceOrderRequest{Items: items("ab", 1)})
	place("a note", "ada", &orderv1.PlaceOrderRequest{Items: items("a", 1), Note: "x"})
	place("a note like a line", "ada", &orderv1.PlaceOrderRequest{Items: items("a", 1), Note: "\x01b\x02"})
	address := func(change func(*orderv1.ShippingAddress)) *orderv1.PlaceOrderRequest {
		a := &orderv1.ShippingAddress{Recipient: "Ada", Lines: []string{"x", "y"}, CountryCode: "DE"}
		change(a)
		return &orderv1.PlaceOrderRequest{Items: items("a", 1), ShippingAddress: a}
	}
	place("an address", "ada", address(func(*orderv1.ShippingAddress) {}))
	place("another recipient", "ada", address(func(a *orderv1.ShippingAddress) { a.Recipient = "Eve" }))
	place("lines that run together", "ada", address(func(a *orderv1.ShippingAddress) { a.Lines = []string{"xy"} }))
	place("a postal code", "ada", address(func(a *orderv1.ShippingAddress) { a.PostalCode = "1" }))
	place("a city of that name", "ada", address(func(a *orderv1.ShippingAddress) { a.City = "1" }))
	place("a region of that name", "ada", address(func(a *orderv1.ShippingAddress) { a.Region = "1" }))
	place("another country", "ada", address(func(a *orderv1.ShippingAddress) { a.CountryCode = "FR" }))
	place("an e-mail address", "ada", &orderv1.PlaceOrderRequest{Items: items("a", 1), Contact: &orderv1.Contact{Email: "1"}})
	place("a telephone number", "ada", &orderv1.PlaceOrderRequest{Items: items("a", 1), Contact: &orderv1.Contact{Phone: "1"}})
	add("erase", fingerprintEraseUser("ada"))
	add("erase another", fingerprintEraseUser("eve"))
	place("no lines", "ada", &orderv1.PlaceOrderRequest{})
	add("cancel", fingerprintCancelOrder(domain.OrderID{1}, ""))
	add("cancel another", fingerprintCancelOrder(domain.OrderID{2}, ""))
	add("cancel for a reason", fingerprintCancelOrder(domain.OrderID{1}, "x"))
	id := domain.OrderID{1}
	add("ship all", fingerprintShipItems(id, &orderv1.ShipItemsRequest{}))
	add("ship some", fingerprintShipItems(id, &orderv1.ShipItemsRequest{Items: items("a", 1)}))
	add("ship with a carrier", fingerprintShipItems(id, &orderv1.ShipItemsRequest{Carrier: "a"}))
	add("ship with a number", fingerprintShipItems(id, &orderv1.ShipItemsRequest{Tracking: "a"}))
	add("deliver", fingerprintConfirmDelivery(id, &orderv1.ConfirmDeliveryRequest{ShipmentId: "a"}))
	add("return all", fingerprintRequestReturn(id, &orderv1.RequestReturnRequest{}))
	add("return some", fingerprintRequestReturn(id, &orderv1.RequestReturnRequest{Items: items("a", 1)}))
	add("return for a reason", fingerprintRequestReturn(id, &orderv1.RequestReturnRequest{Reason: "a"}))
	add("receive a return", fingerprintReceiveReturn(id, &orderv1.ReceiveReturnRequest{ReturnId: "a"}))
	add("receive and restock", fingerprintReceiveReturn(id, &orderv1.ReceiveReturnRequest{ReturnId: "a", Restock: items("a", 1)}))
	add("a merchant's note", fingerprintAddNote(id, sha256.Sum256(canonicalNote(&orderv1.AddNoteRequest{RequestId: "r1", Text: "a"}))))
	add("another note", fingerprintAddNote(id, sha256.Sum256(canonicalNote(&orderv1.AddNoteRequest{RequestId: "r1", Text: "b"}))))
	add("pay", fingerprintStartPayment(id, &paymentv1.StartPaymentRequest{}))
	add("pay by", fingerprintStartPayment(id, &paymentv1.StartPaymentRequest{Method: "a"}))
	add("pay through", fingerprintStartPayment(id, &paymentv1.StartPaymentRequest{Provider: "a"}))
	add("pay later", fingerprintStartPayment(id, &paymentv1.StartPaymentRequest{CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_MANUAL}))
	add("capture", fingerprintCapturePayment(id))
	add("void", fingerprintVoidPayment(id, &paymentv1.VoidPaymentRequest{}))
	add("refund", fingerprintRefundPayment(id, &paymentv1.RefundPaymentRequest{}))
	add("refund some", fingerprintRefundPayment(id, &paymentv1.RefundPaymentRequest{Amount: &typev1.Money{CurrencyCode: "EUR", Units: 1}}))
	add("refund another payment", fingerprintRefundPayment(id, &paymentv1.RefundPaymentRequest{PaymentId: "a"}))
	if fingerprintStartPayment(id, &paymentv1.StartPaymentRequest{}) != fingerprintStartPayment(id, &paymentv1.StartPaymentRequest{CaptureMode: orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC}) {
		t.Error("to pay at once and to leave that to the default are two requests, want one")
	}
	put := &catalogv1.PutProductRequest{Sku: "a", Title: "b", Price: &typev1.Money{CurrencyCode: "EUR", Units: 1}}
	add("put", fingerprintPutProduct(put))
	add("put, names run together", fingerprintPutProduct(&catalogv1.PutProductRequest{Sku: "ab", Price: put.Price}))
	add("receive", fingerprintReceiveStock(&catalogv1.ReceiveStockRequest{Sku: "a", Quantity: 1}))
}

func BenchmarkFingerprint(b *testing.B) {
	request := &orderv1.PlaceOrderRequest{RequestId: "req-000000000001", Items: items("sku-0001", 1)}
	b.ReportAllocs()
	for b.Loop() {
		fingerprintPlaceOrder("user-000123", request, personalMAC{})
	}
}
