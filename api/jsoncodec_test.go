package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// readers are new messages of the kinds that readJSON knows.
var readers = []func() proto.Message{
	func() proto.Message { return &orderv1.PlaceOrderRequest{} },
	func() proto.Message { return &orderv1.CancelOrderRequest{} },
	func() proto.Message { return &orderv1.GetOrderRequest{} },
}

// sameReading reads a text both ways: what readJSON takes, protojson must take, and to the same message.
func sameReading(t interface{ Fatalf(string, ...any) }, text []byte) (taken bool) {
	for _, fresh := range readers {
		got, want := fresh(), fresh()
		if !readJSON(bytes.Clone(text), got) {
			continue
		}
		taken = true
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, want); err != nil {
			t.Fatalf("%q into %T: it was taken, protojson says %v", text, got, err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("%q into %T: got %v, protojson has %v", text, got, got, want)
		}
	}
	return taken
}

func TestPlainRequestsTakeTheShortWay(t *testing.T) {
	for _, text := range []string{
		`{}`, " {\t} \r\n",
		`{"requestId":"r","userId":"u","items":[{"sku":"s","quantity":1}],"note":"hé"}`,
		`{"request_id":"r","user_id":"u","items":[{"quantity":"1000000","sku":"s"}, {"sku":"t","quantity":-3}],"note":""}`,
		`{"items":[]}`, `{"items":[{}]}`, `{"items" : [ { "sku" : "s" , "quantity" : 0 } ] }`,
		`{"requestId":"r","orderId":"o","reason":"x"}`,
		`{"orderId":"o","minRevision":{"lane":3,"commit":"12345678901"}}`, `{"order_id":"o","min_revision":{}}`,
		`{"items":[{"quantity":"999999999999999999"}]}`,
	} {
		if !sameReading(t, []byte(text)) {
			t.Errorf("%s took the long way", text)
		}
	}
}

// unusualTexts are good and bad, and protojson alone may say which.
var unusualTexts = []string{
	``, ` `, `null`, `[]`, `""`, `{`, `}`, `{}}`, `{}{}`, `{},`, `{"requestId"}`, `{"requestId":}`, `{"requestId":"r",}`, `{,}`, `{"requestId":"r" "note":"n"}`,
	`{"requestId":"r","requestId":"r"}`, `{"requestId":"r","request_id":"r"}`, `{"requestId":null}`, `{"requestId":1}`, `{"requestId":"\u0041"}`,
	`{"other":1}`, `{"":1}`, `{"REQUESTID":"r"}`, `{"items":null}`, `{"items":{}}`, `{"items":[null]}`, `{"items":[{"sku":"s"},]}`, `{"items":[,]}`, `{"items":[}`,
	`{"items":[{"quantity":1.0}]}`, `{"items":[{"quantity":1e2}]}`, `{"items":[{"quantity":"1.0"}]}`, `{"items":[{"quantity":01}]}`, `{"items":[{"quantity":"01"}]}`,
	`{"items":[{"quantity":-0}]}`, `{"items":[{"quantity":"-0"}]}`, `{"items":[{"quantity":" 1"}]}`, `{"items":[{"quantity":1 2}]}`, `{"items":[{"quantity":"1}]}`,
	`{"items":[{"quantity":1000000000000000000}]}`, `{"items":[{"quantity":9223372036854775807}]}`, `{"items":[{"quantity":9223372036854775808}]}`, `{"items":[{"quantity":-}]}`,
	`{"items":[{"quantity":1,"quantity":1}]}`, `{"minRevision":{"lane":-1}}`, `{"minRevision":{"lane":4294967296}}`, `{"minRevision":{"commit":-1}}`,
	`{"minRevision":{"commit":18446744073709551615}}`, `{"minRevision":null}`, `{"waitBudget":"1s"}`, `{"note":"a` + "\n" + `b"}`, `{"note":"a` + "\xff" + `b"}`,
	`{"note":"a\\"}`, `{"note":"a\"b"}`, "\xef\xbb\xbf{}", `{"note":"` + "\x7f\u2028\ufffd" + `"}`, `{"requestId":"r"}` + "\x00", `{"requestId":"r"}x`,
}

func TestUnusualRequestsMeanWhatTheCodecOfConnectSays(t *testing.T) {
	codec := newJSONCodec("json", 64)
	for _, text := range unusualTexts {
		sameReading(t, []byte(text))
		for _, fresh := range readers {
			got, want := fresh(), fresh()
			err := codec.Unmarshal([]byte(text), got)
			wantErr := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(text), want)
			if (err == nil) != (wantErr == nil) || (err == nil && !proto.Equal(got, want)) {
				t.Errorf("%q into %T: got %v, %v, protojson has %v, %v", text, got, got, err, want, wantErr)
			}
		}
	}
}

func FuzzReadJSON(f *testing.F) {
	for _, text := range unusualTexts {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"requestId":"r","userId":"u","items":[{"sku":"s","quantity":1},{"sku":"t","quantity":"2"}],"note":"n"}`))
	f.Add([]byte(`{"orderId":"o","minRevision":{"lane":3,"commit":"12"}}`))
	f.Fuzz(func(t *testing.T, text []byte) { sameReading(t, text) })
}

// TestReaderAgreesOnTextsNearGoodOnes writes good requests and then changes, drops, doubles or moves a character.
func TestReaderAgreesOnTextsNearGoodOnes(t *testing.T) {
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		text := []byte(rapid.SampledFrom([]string{
			`{"requestId":"r1","userId":"u","items":[{"sku":"s","quantity":12},{"sku":"t","quantity":"-3"}],"note":"né"}`,
			`{"request_id":"r1","order_id":"o","reason":"x"}`,
			`{"orderId":"o","minRevision":{"lane":3,"commit":"120"}}`,
		}).Draw(t, "text"))
		for range rapid.IntRange(0, 2).Draw(t, "changes") {
			at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
			switch c := rapid.SampledFrom([]byte("{}[]\",:0123456789-+.eE \t\n\\/untrflsalb_\x00\x1f\x7f\x80\xc3\xff")).Draw(t, "character"); rapid.IntRange(0, 3).Draw(t, "how") {
			case 0:
				text[at] = c
			case 1:
				text = append(text[:at:at], text[at+1:]...)
			case 2:
				text = append(text[:at:at], append([]byte{c}, text[at:]...)...)
			default:
				text = append(text[:at:at], append([]byte{text[at]}, text[at:]...)...)
			}
			if len(text) == 0 {
				return
			}
		}
		if sameReading(t, text) {
			taken++
		}
	})
	if taken == 0 {
		t.Error("not one text took the short way")
	}
}

// texts are drawn for fields.
var texts = rapid.OneOf(
	rapid.Just(""), rapid.StringMatching(`[A-Za-z0-9_-]{1,30}`), rapid.String(),
	rapid.SampledFrom([]string{"\x00\x01\x1f\x7f", "\"\\/\b\f\n\r\t", "<a&b>", "\u2028\u2029\ufffd", "💥", "{", "a{"}),
)

func drawMoney(t *rapid.T, name string) *typev1.Money {
	if rapid.Bool().Draw(t, name+" missing") {
		return nil
	}
	return &typev1.Money{CurrencyCode: texts.Draw(t, name), Units: rapid.Int64().Draw(t, name+" units")}
}

func drawTime(t *rapid.T, name string) *timestamppb.Timestamp {
	if rapid.Bool().Draw(t, name+" missing") {
		return nil
	}
	return &timestamppb.Timestamp{
		Seconds: rapid.OneOf(rapid.Int64Range(timeSecondsMin, timeSecondsMax), rapid.Just(int64(timeSecondsMin)), rapid.Just(int64(timeSecondsMax)), rapid.Int64Range(1_700_000_000, 1_900_000_000)).Draw(t, name),
		Nanos: rapid.OneOf(rapid.Just(int32(0)), rapid.Just(int32(timeNanosMax)), rapid.Int32Range(0, timeNanosMax), rapid.Map(rapid.Int32Range(0, 999), func(n int32) int32 { return n * 1_000_000 }),
			rapid.Map(rapid.Int32Range(0, 999_999), func(n int32) int32 { return n * 1_000 })).Draw(t, name+" nanos"),
	}
}

func drawRevision(t *rapid.T, name string) *typev1.Revision {
	if rapid.Bool().Draw(t, name+" missing") {
		return nil
	}
	return &typev1.Revision{Lane: rapid.Uint32().Draw(t, name+" lane"), Commit: rapid.Uint64().Draw(t, name+" commit")}
}

func drawOrder(t *rapid.T) *orderv1.Order {
	order := &orderv1.Order{
		OrderId: texts.Draw(t, "order_id"), UserId: texts.Draw(t, "user_id"), Status: orderv1.OrderStatus(rapid.Int32Range(-1, 12).Draw(t, "status")),
		Total: drawMoney(t, "total"), PlacedAt: drawTime(t, "placed_at"), PayBy: drawTime(t, "pay_by"), UpdateTime: drawTime(t, "update_time"),
		CancelReason: texts.Draw(t, "reason"), Revision: drawRevision(t, "revision"), Note: texts.Draw(t, "note"),
		PaymentState:    orderv1.PaymentState(rapid.Int32Range(-1, 9).Draw(t, "payment_state")),
		FulfilmentState: orderv1.FulfilmentState(rapid.Int32Range(-1, 6).Draw(t, "fulfilment_state")),
	}
	if rapid.Bool().Draw(t, "personal") {
		order.ShippingAddress = &orderv1.ShippingAddress{
			Recipient: texts.Draw(t, "recipient"), Lines: rapid.SliceOfN(texts, 0, 3).Draw(t, "lines"), PostalCode: texts.Draw(t, "postal code"),
			City: texts.Draw(t, "city"), Region: texts.Draw(t, "region"), CountryCode: texts.Draw(t, "country"),
		}
		order.Contact = &orderv1.Contact{Email: texts.Draw(t, "email"), Phone: texts.Draw(t, "phone")}
		order.PersonalDataErased = rapid.Bool().Draw(t, "erased")
	}
	for range rapid.IntRange(0, 3).Draw(t, "items") {
		order.Items = append(order.Items, &orderv1.OrderItem{
			Sku: texts.Draw(t, "sku"), Quantity: rapid.Int64().Draw(t, "quantity"), Title: texts.Draw(t, "title"),
			UnitPrice: drawMoney(t, "unit_price"), Amount: drawMoney(t, "amount"),
		})
	}
	return order
}

func drawFreshness(t *rapid.T) *typev1.Freshness {
	if rapid.Bool().Draw(t, "freshness missing") {
		return nil
	}
	return &typev1.Freshness{
		State: typev1.Freshness_State(rapid.Int32Range(-1, 6).Draw(t, "state")), Revision: drawRevision(t, "view"),
		LagCommits: rapid.Uint64().Draw(t, "lag"), AsOf: drawTime(t, "as_of"),
	}
}

// sameWriting writes a message both ways; protojson's spaces do not count.
func sameWriting(t interface{ Fatalf(string, ...any) }, message proto.Message) {
	got, ok := writeJSON([]byte("before"), message)
	if !ok {
		t.Fatalf("%v took the long way", message)
	}
	want, err := protojson.Marshal(message)
	if err != nil {
		t.Fatalf("%v: %v", message, err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, want); err != nil {
		t.Fatalf("%v", err)
	}
	if string(got) != "before"+compact.String() {
		t.Fatalf("got %s, want %s", got, compact.String())
	}
}

func TestReplyIsWrittenAsTheCodecOfConnectWritesIt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var order *orderv1.Order
		if rapid.IntRange(0, 9).Draw(t, "order missing") > 0 {
			order = drawOrder(t)
		}
		sameWriting(t, &orderv1.PlaceOrderResponse{Order: order, Revision: drawRevision(t, "position")})
		sameWriting(t, &orderv1.CancelOrderResponse{Order: order, Revision: drawRevision(t, "position")})
		sameWriting(t, &orderv1.GetOrderResponse{Order: order, Freshness: drawFreshness(t)})
		sameWriting(t, &orderv1.WatchOrderResponse{Order: order, Freshness: drawFreshness(t)})
		list := &orderv1.ListOrdersResponse{NextPageToken: texts.Draw(t, "token"), Freshness: drawFreshness(t)}
		for range rapid.IntRange(0, 3).Draw(t, "orders") {
			list.Orders = append(list.Orders, drawOrder(t))
		}
		sameWriting(t, list)
	})
}

func TestReplyThatHasNoPlainFormTakesTheLongWay(t *testing.T) {
	for name, message := range map[string]proto.Message{
		"bad UTF-8":          &orderv1.PlaceOrderResponse{Order: &orderv1.Order{Note: "\xff"}},
		"year 10000":         &orderv1.PlaceOrderResponse{Order: &orderv1.Order{PayBy: &timestamppb.Timestamp{Seconds: timeSecondsMax + 1}}},
		"year 0":             &orderv1.PlaceOrderResponse{Order: &orderv1.Order{PayBy: &timestamppb.Timestamp{Seconds: timeSecondsMin - 1}}},
		"negative nanos":     &orderv1.PlaceOrderResponse{Order: &orderv1.Order{PayBy: &timestamppb.Timestamp{Nanos: -1}}},
		"too many nanos":     &orderv1.PlaceOrderResponse{Order: &orderv1.Order{PayBy: &timestamppb.Timestamp{Nanos: math.MaxInt32}}},
		"nil item":           &orderv1.PlaceOrderResponse{Order: &orderv1.Order{Items: []*orderv1.OrderItem{nil}}},
		"nil order":          &orderv1.ListOrdersResponse{Orders: []*orderv1.Order{nil}},
		"nil message":        (*orderv1.PlaceOrderResponse)(nil),
		"a payment":          &orderv1.PlaceOrderResponse{Order: &orderv1.Order{Payments: []*orderv1.Payment{{PaymentId: "p"}}}},
		"a refund":           &orderv1.GetOrderResponse{Order: &orderv1.Order{Refunds: []*orderv1.Refund{{RefundId: "r"}}}},
		"a shipment":         &orderv1.CancelOrderResponse{Order: &orderv1.Order{Shipments: []*orderv1.Shipment{{}}}},
		"a return":           &orderv1.ListOrdersResponse{Orders: []*orderv1.Order{{Returns: []*orderv1.Return{{ReturnId: "t"}}}}},
		"a merchant's note":  &orderv1.WatchOrderResponse{Order: &orderv1.Order{MerchantNotes: []*orderv1.MerchantNote{{Text: "x"}}}},
		"another message":    &orderv1.CancelOrderRequest{},
		"nil list":           (*orderv1.ListOrdersResponse)(nil),
		"nil read":           (*orderv1.GetOrderResponse)(nil),
		"bad UTF-8 in title": &orderv1.GetOrderResponse{Order: &orderv1.Order{Items: []*orderv1.OrderItem{{Title: "a\xc0\xaf"}}}},
	} {
		buffer := append(make([]byte, 0, 1024), "before"...)
		if out, ok := writeJSON(buffer, message); ok || string(out) != "before" {
			t.Errorf("%s: took the short way to %q", name, out)
		}
		got, err := newJSONCodec("json", 64).MarshalAppend(buffer, message)
		want, wantErr := protojson.Marshal(message)
		if (err == nil) != (wantErr == nil) || (err == nil && strings.ReplaceAll(string(got), " ", "") != "before"+strings.ReplaceAll(string(want), " ", "")) {
			t.Errorf("%s: got %q, %v, want %q, %v", name, got, err, want, wantErr)
		}
	}
}

func TestNestingOfJSONIsBounded(t *testing.T) {
	codec := newJSONCodec("json", 64)
	for levels, ok := range map[int]bool{10: true, 60: true, 70: false, 20_000: false} {
		text := fmt.Sprintf(`{"requestId":"r","other":%s%s}`, strings.Repeat("[", levels), strings.Repeat("]", levels))
		if err := codec.Unmarshal([]byte(text), &orderv1.PlaceOrderRequest{}); (err == nil) != ok {
			t.Errorf("%d levels: got %v, want ok = %t", levels, err, ok)
		}
	}
}
