package stored_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	eventv1 "github.com/weirhq/weir/proto/stored/weir/event/v1"
)

var (
	orderID = domain.NewOrderID(time.UnixMilli(1767323045123), 777, [10]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	payBy   = time.Unix(1767323945, 123456789).UTC()
)

// golden are events whose bytes are stored for ever, by the name of their file in testdata/golden.
var golden = map[string]domain.Event{
	"OrderPlaced.v1": domain.OrderPlaced{
		OrderID: orderID, UserID: "alice",
		Lines: []domain.Line{
			{SKU: "mug", Units: 3, Title: "Enamel mug", PriceMinor: 1299},
			{SKU: "tee-xl_2", Units: 1_000_000, Title: "T-Shirt 堰", PriceMinor: 1_000_000_000_000},
			{SKU: "gift", Units: 1, Title: "Gift"},
		},
		Total: domain.Money{Currency: "EUR", Minor: 1_000_000_000_000_003_897}, PayBy: payBy, SealedNote: []byte{0, 1, 0xff},
	},
	"OrderPlaced.v1.personal": domain.OrderPlaced{
		OrderID: orderID, UserID: "alice", Lines: []domain.Line{{SKU: "mug", Units: 1, Title: "Enamel mug", PriceMinor: 1299}},
		Total: domain.Money{Currency: "EUR", Minor: 1299}, PayBy: payBy, SealedPersonal: bytes.Repeat([]byte{1, 0xfe}, 100),
	},
	"WebhookEndpointPut.v1": domain.WebhookEndpointPut{
		EndpointID: "erp", URL: "https://erp.example/weir", SealedSecret: []byte{1, 0xfe}, Types: []string{"OrderPlaced", "OrderCancelled"}, Paused: true, By: "clerk-7",
	},
	"WebhookEndpointDeleted.v1": domain.WebhookEndpointDeleted{EndpointID: "erp", By: "clerk-7"},

	"RequestAnswered.v1":        domain.RequestAnswered{About: domain.AboutOrder, Key: orderID.String(), PartID: domain.ShipmentID(orderID, 1)},
	"RequestAnswered.v1.erased": domain.RequestAnswered{About: domain.AboutUser, Key: "alice", KeyID: 0xfedcba9876543210},

	"UserErased.v1": domain.UserErased{UserID: "alice", Key: 0xfedcba9876543210, By: "clerk-7"},
	"OrderPlaced.v1.one-line": domain.OrderPlaced{
		OrderID: orderID, UserID: "alice", Lines: []domain.Line{{SKU: "mug", Units: 1, Title: "Enamel mug", PriceMinor: 1299}},
		Total: domain.Money{Currency: "EUR", Minor: 1299}, PayBy: payBy,
	},
	"OrderCancelled.v1": domain.OrderCancelled{
		OrderID: orderID, UserID: "alice", Reason: "changed my mind", By: "clerk-7",
		Released: []domain.Release{{SKU: "mug", Units: 3}, {SKU: "tee-xl_2", Units: 1_000_000}},
	},
	"OrderCancelled.v1.sold": domain.OrderCancelled{
		OrderID: orderID, UserID: "alice", Reason: "changed my mind", By: "alice", Unsold: []domain.Release{{SKU: "mug", Units: 3}},
	},
	"OrderExpired.v1":   domain.OrderExpired{OrderID: orderID, UserID: "alice", Released: []domain.Release{{SKU: "mug", Units: 3}}},
	"ProductPut.v1":     domain.ProductPut{SKU: "mug", Title: "Enamel mug", Price: domain.Money{Currency: "EUR", Minor: 1299}},
	"StockReceived.v1":  domain.StockReceived{SKU: "mug", Units: 100, ReceivedTotal: 5_000_000_000},
	"StockGranted.v1":   domain.StockGranted{SKU: "mug", ToLane: 3, GrantNumber: 300, Units: 25},
	"StockAllotted.v1":  domain.StockAllotted{SKU: "mug", HomeLane: 1023, GrantNumber: 301, Units: 26},
	"StockReturned.v1":  domain.StockReturned{SKU: "mug", HomeLane: 2, ReturnNumber: 302, Units: 27},
	"StockReclaimed.v1": domain.StockReclaimed{SKU: "mug", FromLane: 1, ReturnNumber: 303, Units: 28},
	"OrderPlaced.v1.priced": domain.OrderPlaced{
		OrderID: orderID, UserID: "alice",
		Lines: []domain.Line{
			{SKU: "mug", Units: 2, Title: "Enamel mug", PriceMinor: 999, DiscountMinor: 200, TaxMinor: 287, Tax: domain.Tax{RateBps: 1900, Included: true}},
			{SKU: "book", Units: 1, Title: "Book", PriceMinor: 1000, DiscountMinor: 100, TaxMinor: 63, Tax: domain.Tax{RateBps: 700}},
		},
		Total: domain.Money{Currency: "EUR", Minor: 2761}, PayBy: payBy, CouponCode: "TEN", CouponPool: "TEN@@coupon",
	},
	"OrderPlaced.v1.campaign": domain.OrderPlaced{
		OrderID: orderID, UserID: "alice", Lines: []domain.Line{{SKU: "mug", Units: 1, Title: "Enamel mug", PriceMinor: 499}},
		Total: domain.Money{Currency: "EUR", Minor: 499}, PayBy: payBy, Pool: "mug@flash",
	},
	"OrderCancelled.v1.coupon": domain.OrderCancelled{
		OrderID: orderID, UserID: "alice", Reason: "changed my mind", By: "clerk-7",
		Released: []domain.Release{{SKU: "mug@flash", Units: 1}, {SKU: "TEN@@coupon", Units: 1}}, CouponCode: "TEN",
	},
	"OrderExpired.v1.coupon": domain.OrderExpired{
		OrderID: orderID, UserID: "alice", Released: []domain.Release{{SKU: "mug@flash", Units: 1}}, CouponCode: "TEN",
	},
	"ProductPut.v1.taxed": domain.ProductPut{
		SKU: "mug", Title: "Enamel mug", Price: domain.Money{Currency: "EUR", Minor: 1299}, Tax: domain.Tax{RateBps: 1900, Included: true},
	},
	"CampaignPut.v1": domain.CampaignPut{
		Pool: "mug@flash", Price: domain.Money{Currency: "EUR", Minor: 499}, OpensAt: payBy, ClosesAt: payBy.Add(time.Hour),
		UserUnitsMax: 2, OrderUnitsMax: 1, Units: 1000,
	},
	"PoolFilled.v1":  domain.PoolFilled{Pool: "mug@flash", Units: 1000},
	"PoolDrained.v1": domain.PoolDrained{Pool: "mug@flash", Units: 17},
	"CouponPut.v1": domain.CouponPut{Code: "FIVER", Terms: domain.CouponTerms{
		Kind: domain.CouponFixed, AmountMinor: 500, Currency: "EUR", MinSubtotalMinor: 2000, ValidFrom: payBy, ValidUntil: payBy.Add(24 * time.Hour),
		UserUsesMax: 1, UsesMax: 10_000,
	}},
	"CouponPut.v1.percentage": domain.CouponPut{Code: "TEN", Terms: domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000}},

	"PaymentStarted.v1":          domain.PaymentStarted{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Provider: "sandbox", Method: "card_ok", Amount: domain.Money{Currency: "EUR", Minor: 1299}, By: "alice"},
	"PaymentStarted.v1.capture":  domain.PaymentStarted{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Provider: "sandbox", Method: "card_ok", Amount: domain.Money{Currency: "EUR", Minor: 1299}, By: "alice", CaptureNow: true},
	"PaymentAuthorized.v1":       domain.PaymentAuthorized{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Amount: domain.Money{Currency: "EUR", Minor: 1299}},
	"PaymentCaptureRequested.v1": domain.PaymentCaptureRequested{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Provider: "sandbox", Amount: domain.Money{Currency: "EUR", Minor: 1299}, By: "clerk-7"},
	"PaymentCaptured.v1":         domain.PaymentCaptured{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Amount: domain.Money{Currency: "EUR", Minor: 1299}, Sold: []domain.Release{{SKU: "mug", Units: 3}, {SKU: "tee-xl_2", Units: 1_000_000}}},
	"PaymentDeclined.v1":         domain.PaymentDeclined{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 2), Code: "insufficient_funds", Message: "Nicht genügend Geld"},
	"PaymentBecameUnknown.v1":    domain.PaymentBecameUnknown{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1)},
	"PaymentVoidRequested.v1":    domain.PaymentVoidRequested{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Provider: "sandbox", Why: "the order expired", By: "clerk-7"},
	"PaymentVoided.v1":           domain.PaymentVoided{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1)},
	"RefundStarted.v1":           domain.RefundStarted{OrderID: orderID, UserID: "alice", RefundID: domain.RefundID(domain.PaymentID(orderID, 1), 2), PaymentID: domain.PaymentID(orderID, 1), Provider: "sandbox", Amount: domain.Money{Currency: "JPY", Minor: 400}, Reason: "return", ReturnID: domain.ReturnID(orderID, 1), By: "clerk-7"},
	"PaymentRefunded.v1":         domain.PaymentRefunded{OrderID: orderID, UserID: "alice", RefundID: domain.RefundID(domain.PaymentID(orderID, 1), 2), Amount: domain.Money{Currency: "JPY", Minor: 400}},
	"RefundFailed.v1":            domain.RefundFailed{OrderID: orderID, UserID: "alice", RefundID: domain.RefundID(domain.PaymentID(orderID, 1), 2), Code: "account_closed"},
	"StrayPaymentFound.v1":       domain.StrayPaymentFound{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Provider: "sandbox", Amount: domain.Money{Currency: "EUR", Minor: 1300}, Why: "wrong amount: want 12.99 EUR"},
	"ItemsShipped.v1":            domain.ItemsShipped{OrderID: orderID, UserID: "alice", ShipmentID: domain.ShipmentID(orderID, 1), Lines: []domain.Release{{SKU: "mug", Units: 3}, {SKU: "tee-xl_2", Units: 1}}, Carrier: "DHL", Tracking: "00340434161094042557", By: "clerk-7"},
	"ShipmentDelivered.v1":       domain.ShipmentDelivered{OrderID: orderID, UserID: "alice", ShipmentID: domain.ShipmentID(orderID, 1), By: "carrier"},
	"ReturnRequested.v1":         domain.ReturnRequested{OrderID: orderID, UserID: "alice", ReturnID: domain.ReturnID(orderID, 1), Lines: []domain.Release{{SKU: "mug", Units: 2}}, Reason: "too small", By: "alice"},
	"ReturnReceived.v1":          domain.ReturnReceived{OrderID: orderID, UserID: "alice", ReturnID: domain.ReturnID(orderID, 1), Restocked: []domain.Release{{SKU: "mug", Units: 1}}, By: "clerk-7"},
	"NoteAdded.v1":               domain.NoteAdded{OrderID: orderID, UserID: "alice", By: "clerk-7", Sealed: []byte{0, 1, 0xff}},
	"NoteAdded.v1.named":         domain.NoteAdded{OrderID: orderID, UserID: "alice", By: "clerk-7", Sealed: []byte{0, 1, 0xff}, NoteID: domain.NoteID(orderID, 2)},
	"PointsAwarded.v1":           domain.PointsAwarded{OrderID: orderID, UserID: "alice", PaymentID: domain.PaymentID(orderID, 1), Points: 12, PerMajor: 1},
	"PointsTakenBack.v1":         domain.PointsTakenBack{OrderID: orderID, UserID: "alice", RefundID: domain.RefundID(domain.PaymentID(orderID, 1), 2), Points: 4},
}

var writeGolden = flag.Bool("write-golden", false, "write the golden files that are missing; one that is there is never changed")

func TestStoredBytesNeverChange(t *testing.T) {
	for name, e := range golden {
		file := filepath.Join("testdata/golden", name+".hex")
		typeName, version, aggregateID, payload := stored.Encode(e)
		if !strings.HasPrefix(name+".", fmt.Sprintf("%s.v%d.", typeName, version)) {
			t.Errorf("%s: Encode says %s version %d", name, typeName, version)
		}
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) && *writeGolden {
			text = []byte(hex.EncodeToString(payload) + "\n")
			err = os.WriteFile(file, text, 0o644)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want, err := hex.DecodeString(strings.TrimSpace(string(text)))
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if !bytes.Equal(payload, want) {
			t.Errorf("%s:\n got %x\nwant %x", name, payload, want)
		}
		decoded, err := stored.Decode(typeName, version, aggregateID, userOf(e), want)
		if err != nil || !reflect.DeepEqual(decoded, e) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", name, decoded, err, e)
		}
	}
}

// Every file is of an event in the list, and every type is in the list at every version that was ever stored.
func TestEveryStoredVersionHasGoldenBytes(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, found := golden[strings.TrimSuffix(filepath.Base(file), ".hex")]; !found {
			t.Errorf("%s is nobody's: what was stored once must be read for ever", file)
		}
	}
	versions := map[string]uint32{} // Newest, by type.
	for _, e := range samples {
		typeName, version, _, _ := stored.Encode(e)
		versions[typeName] = version
	}
	if len(versions) != len(generated) {
		t.Errorf("there are samples of %d types, want %d", len(versions), len(generated))
	}
	for typeName, newest := range versions {
		for version := uint32(1); version <= newest; version++ {
			if name := fmt.Sprintf("%s.v%d", typeName, version); golden[name] == nil {
				t.Errorf("there are no golden bytes of %s", name)
			}
		}
	}
}

// samples is one event of every type, empty.
var samples = []domain.Event{
	domain.OrderPlaced{OrderID: orderID},
	domain.OrderCancelled{OrderID: orderID},
	domain.OrderExpired{OrderID: orderID},
	domain.UserErased{UserID: "alice"},
	domain.RequestAnswered{Key: "mug"},
	domain.WebhookEndpointPut{EndpointID: "erp"},
	domain.WebhookEndpointDeleted{EndpointID: "erp"},
	domain.ProductPut{SKU: "mug"},
	domain.StockReceived{SKU: "mug"},
	domain.StockGranted{SKU: "mug"},
	domain.StockAllotted{SKU: "mug"},
	domain.StockReturned{SKU: "mug"},
	domain.StockReclaimed{SKU: "mug"},
	domain.CampaignPut{Pool: "mug"},
	domain.PoolFilled{Pool: "mug"},
	domain.PoolDrained{Pool: "mug"},
	domain.CouponPut{Code: "mug"},
	domain.PaymentStarted{OrderID: orderID},
	domain.PaymentAuthorized{OrderID: orderID},
	domain.PaymentCaptureRequested{OrderID: orderID},
	domain.PaymentCaptured{OrderID: orderID},
	domain.PaymentDeclined{OrderID: orderID},
	domain.PaymentBecameUnknown{OrderID: orderID},
	domain.PaymentVoidRequested{OrderID: orderID},
	domain.PaymentVoided{OrderID: orderID},
	domain.RefundStarted{OrderID: orderID},
	domain.PaymentRefunded{OrderID: orderID},
	domain.RefundFailed{OrderID: orderID},
	domain.StrayPaymentFound{OrderID: orderID},
	domain.ItemsShipped{OrderID: orderID},
	domain.ShipmentDelivered{OrderID: orderID},
	domain.ReturnRequested{OrderID: orderID},
	domain.ReturnReceived{OrderID: orderID},
	domain.NoteAdded{OrderID: orderID},
	domain.PointsAwarded{OrderID: orderID},
	domain.PointsTakenBack{OrderID: orderID},
}

func TestAnEmptyEventHasAnEmptyPayload(t *testing.T) {
	for _, e := range samples {
		typeName, version, aggregateID, payload := stored.Encode(e)
		if len(payload) > 0 {
			t.Errorf("%s: the payload is %x", typeName, payload)
		}
		if decoded, err := stored.Decode(typeName, version, aggregateID, "", nil); err != nil || !reflect.DeepEqual(decoded, e) {
			t.Errorf("%s: got %+v, %v", typeName, decoded, err)
		}
	}
}

func TestWhatANewerProgramWroteIsRefusedByName(t *testing.T) {
	for _, c := range []struct {
		typeName string
		version  uint32
		unknown  bool
		message  string
	}{
		{"OrderShipped", 1, true, `unknown event type "OrderShipped": a newer program wrote it`},
		{"OrderPlaced", 2, true, "OrderPlaced has version 2, but versions 1 to 1 are known: a newer program wrote it"},
		{"OrderPlaced", 0, false, `decode OrderPlaced of "` + orderID.String() + `": it has no version`},
	} {
		e, err := stored.Decode(c.typeName, c.version, orderID.String(), "alice", nil)
		var unknown *stored.UnknownEventError
		if e != nil || err == nil || err.Error() != c.message || errors.As(err, &unknown) != c.unknown {
			t.Errorf("%s version %d: got %+v, %v, want %s", c.typeName, c.version, e, err, c.message)
		}
	}
}

func TestAnOrdersEventNeedsAnOrderID(t *testing.T) {
	for _, e := range samples {
		if _, ofOrder := domain.OrderOf(e); !ofOrder {
			continue
		}
		typeName, version, _, payload := stored.Encode(e)
		var invalid *domain.InvalidIDError
		if decoded, err := stored.Decode(typeName, version, "mug", "alice", payload); decoded != nil || !errors.As(err, &invalid) {
			t.Errorf("%s: got %+v, %v", typeName, decoded, err)
		}
	}
}

func TestADecodedEventKeepsNothingOfThePayload(t *testing.T) {
	for name, e := range golden {
		typeName, version, aggregateID, payload := stored.Encode(e)
		decoded, err := stored.Decode(typeName, version, aggregateID, userOf(e), payload)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range payload {
			payload[i] = 0xaa
		}
		if !reflect.DeepEqual(decoded, e) {
			t.Errorf("%s: with the payload overwritten it is %+v", name, decoded)
		}
	}
}

func TestAppendPayloadAppends(t *testing.T) {
	for name, e := range golden {
		_, _, _, payload := stored.Encode(e)
		if got := stored.AppendPayload([]byte("before"), e); string(got) != "before"+string(payload) {
			t.Errorf("%s: got %x", name, got)
		}
		if cap(payload) > len(payload)+16 { // Allocation classes round up.
			t.Errorf("%s: the payload's size was foretold as %d, it is %d", name, cap(payload), len(payload))
		}
	}
}

// drawEvent draws an event with any values that a message can hold.
func drawEvent(t *rapid.T) domain.Event {
	text := func(name string) string { return rapid.StringN(0, 9, 200).Draw(t, name) }
	units := func() int64 { return rapid.Int64().Draw(t, "units") }
	var lines []domain.Line
	var released []domain.Release
	for range rapid.IntRange(0, 4).Draw(t, "lines") {
		lines = append(lines, domain.Line{
			SKU: text("sku"), Units: units(), Title: text("title"), PriceMinor: units(),
			DiscountMinor: units(), TaxMinor: units(), Tax: drawTax(t),
		})
		released = append(released, domain.Release{SKU: text("sku"), Units: units()})
	}
	lane, number := rapid.Uint32().Draw(t, "lane"), rapid.Uint64().Draw(t, "number")
	drawn := func(name string) time.Time {
		if nanos := rapid.Int64().Draw(t, name); nanos != 0 {
			return time.Unix(0, nanos).UTC()
		}
		return time.Time{}
	}
	var sealed []byte
	if content := rapid.SliceOfN(rapid.Byte(), 0, 99).Draw(t, "sealed"); len(content) > 0 {
		sealed = content
	}
	switch rapid.IntRange(0, 35).Draw(t, "event") {
	case 35:
		return domain.RequestAnswered{About: domain.Subject(text("about")), Key: "mug", PartID: text("part_id"), KeyID: domain.KeyID(number)}
	case 31:
		return domain.CampaignPut{
			Pool: "mug", Price: domain.Money{Currency: text("currency"), Minor: units()}, OpensAt: drawn("opens at"), ClosesAt: drawn("closes at"),
			UserUnitsMax: units(), OrderUnitsMax: units(), Units: units(),
		}
	case 32:
		return domain.PoolFilled{Pool: "mug", Units: units()}
	case 33:
		return domain.PoolDrained{Pool: "mug", Units: units()}
	case 34:
		return domain.CouponPut{Code: "mug", Terms: domain.CouponTerms{
			Kind: domain.CouponKind(lane), AmountMinor: units(), RateBps: units(), Currency: text("currency"), MinSubtotalMinor: units(),
			ValidFrom: drawn("from"), ValidUntil: drawn("until"), UserUsesMax: units(), UsesMax: units(),
		}}
	case 0:
		e := domain.OrderPlaced{
			OrderID: orderID, UserID: "alice", Lines: lines, Total: domain.Money{Currency: text("currency"), Minor: units()},
			PayBy: time.Unix(0, rapid.Int64().Draw(t, "pay by")).UTC(),
			Pool:  text("pool"), CouponCode: text("coupon"), CouponPool: text("coupon pool"),
		}
		e.SealedNote = sealed
		if personal := rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "personal"); len(personal) > 0 {
			e.SealedPersonal = personal
		}
		if e.PayBy.UnixNano() == 0 {
			e.PayBy = time.Time{}
		}
		return e
	case 1:
		return domain.OrderCancelled{OrderID: orderID, UserID: "alice", Reason: text("reason"), By: text("by"), Released: released, Unsold: released[len(released)/2:], CouponCode: text("coupon")}
	case 2:
		return domain.OrderExpired{OrderID: orderID, UserID: "alice", Released: released, CouponCode: text("coupon")}
	case 3:
		return domain.ProductPut{SKU: "mug", Title: text("title"), Price: domain.Money{Currency: text("currency"), Minor: units()}, Tax: drawTax(t)}
	case 4:
		return domain.StockReceived{SKU: "mug", Units: units(), ReceivedTotal: units()}
	case 5:
		return domain.StockGranted{SKU: "mug", ToLane: lane, GrantNumber: number, Units: units()}
	case 6:
		return domain.StockAllotted{SKU: "mug", HomeLane: lane, GrantNumber: number, Units: units()}
	case 28:
		return domain.UserErased{UserID: "alice", Key: domain.KeyID(number), By: text("by")}
	case 29:
		var types []string
		for range rapid.IntRange(0, 3).Draw(t, "types") {
			types = append(types, text("type"))
		}
		return domain.WebhookEndpointPut{EndpointID: "erp", URL: text("url"), SealedSecret: sealed, Types: types, Paused: rapid.Bool().Draw(t, "paused"), By: text("by")}
	case 30:
		return domain.WebhookEndpointDeleted{EndpointID: "erp", By: text("by")}
	case 7:
		return domain.StockReturned{SKU: "mug", HomeLane: lane, ReturnNumber: number, Units: units()}
	case 8:
		return domain.StockReclaimed{SKU: "mug", FromLane: lane, ReturnNumber: number, Units: units()}
	case 9:
		return domain.PaymentStarted{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Provider: text("provider"), Method: text("method"), Amount: domain.Money{Currency: text("currency"), Minor: units()}, By: text("by"), CaptureNow: number%2 == 0}
	case 10:
		return domain.PaymentAuthorized{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Amount: domain.Money{Currency: text("currency"), Minor: units()}}
	case 11:
		return domain.PaymentCaptureRequested{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Provider: text("provider"), Amount: domain.Money{Currency: text("currency"), Minor: units()}, By: text("by")}
	case 12:
		return domain.PaymentCaptured{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Amount: domain.Money{Currency: text("currency"), Minor: units()}, Sold: released}
	case 13:
		return domain.PaymentDeclined{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Code: text("code"), Message: text("message")}
	case 14:
		return domain.PaymentBecameUnknown{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id")}
	case 15:
		return domain.PaymentVoidRequested{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Provider: text("provider"), Why: text("why"), By: text("by")}
	case 16:
		return domain.PaymentVoided{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id")}
	case 17:
		return domain.RefundStarted{OrderID: orderID, UserID: "alice", RefundID: text("refund_id"), PaymentID: text("payment_id"), Provider: text("provider"), Amount: domain.Money{Currency: text("currency"), Minor: units()}, Reason: text("reason"), ReturnID: text("return_id"), By: text("by")}
	case 18:
		return domain.PaymentRefunded{OrderID: orderID, UserID: "alice", RefundID: text("refund_id"), Amount: domain.Money{Currency: text("currency"), Minor: units()}}
	case 19:
		return domain.RefundFailed{OrderID: orderID, UserID: "alice", RefundID: text("refund_id"), Code: text("code")}
	case 20:
		return domain.StrayPaymentFound{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Provider: text("provider"), Amount: domain.Money{Currency: text("currency"), Minor: units()}, Why: text("why")}
	case 21:
		return domain.ItemsShipped{OrderID: orderID, UserID: "alice", ShipmentID: text("shipment_id"), Lines: released, Carrier: text("carrier"), Tracking: text("tracking"), By: text("by")}
	case 22:
		return domain.ShipmentDelivered{OrderID: orderID, UserID: "alice", ShipmentID: text("shipment_id"), By: text("by")}
	case 23:
		return domain.ReturnRequested{OrderID: orderID, UserID: "alice", ReturnID: text("return_id"), Lines: released, Reason: text("reason"), By: text("by")}
	case 24:
		return domain.ReturnReceived{OrderID: orderID, UserID: "alice", ReturnID: text("return_id"), Restocked: released, By: text("by")}
	case 25:
		return domain.NoteAdded{OrderID: orderID, UserID: "alice", By: text("by"), Sealed: sealed, NoteID: text("note_id")}
	case 26:
		return domain.PointsAwarded{OrderID: orderID, UserID: "alice", PaymentID: text("payment_id"), Points: units(), PerMajor: units()}
	case 27:
		return domain.PointsTakenBack{OrderID: orderID, UserID: "alice", RefundID: text("refund_id"), Points: units()}
	default:
		panic("no such event")
	}
}

func drawTax(t *rapid.T) domain.Tax {
	return domain.Tax{RateBps: rapid.Int64().Draw(t, "rate"), Included: rapid.Bool().Draw(t, "included")}
}

func TestPayloadsAreTheGeneratedTypesBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEvent(t)
		typeName, version, aggregateID, payload := stored.Encode(e)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(messageOf(e))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(payload, want) {
			t.Fatalf("%+v:\n got %x\nwant %x", e, payload, want)
		}
		decoded, err := stored.Decode(typeName, version, aggregateID, userOf(e), payload)
		if err != nil || !reflect.DeepEqual(decoded, e) {
			t.Fatalf("got %+v, %v\nwant %+v", decoded, err, e)
		}
	})
}

// generated makes an empty message of a type.
var generated = map[string]func() proto.Message{
	stored.TypeOrderPlaced:    func() proto.Message { return &eventv1.OrderPlaced{} },
	stored.TypeOrderCancelled: func() proto.Message { return &eventv1.OrderCancelled{} },
	stored.TypeOrderExpired:   func() proto.Message { return &eventv1.OrderExpired{} },
	stored.TypeUserErased:     func() proto.Message { return &eventv1.UserErased{} },

	stored.TypeRequestAnswered: func() proto.Message { return &eventv1.RequestAnswered{} },

	stored.TypeWebhookEndpointPut:     func() proto.Message { return &eventv1.WebhookEndpointPut{} },
	stored.TypeWebhookEndpointDeleted: func() proto.Message { return &eventv1.WebhookEndpointDeleted{} },

	stored.TypeProductPut:     func() proto.Message { return &eventv1.ProductPut{} },
	stored.TypeStockReceived:  func() proto.Message { return &eventv1.StockReceived{} },
	stored.TypeStockGranted:   func() proto.Message { return &eventv1.StockGranted{} },
	stored.TypeStockAllotted:  func() proto.Message { return &eventv1.StockAllotted{} },
	stored.TypeStockReturned:  func() proto.Message { return &eventv1.StockReturned{} },
	stored.TypeStockReclaimed: func() proto.Message { return &eventv1.StockReclaimed{} },
	stored.TypeCampaignPut:    func() proto.Message { return &eventv1.CampaignPut{} },
	stored.TypePoolFilled:     func() proto.Message { return &eventv1.PoolFilled{} },
	stored.TypePoolDrained:    func() proto.Message { return &eventv1.PoolDrained{} },
	stored.TypeCouponPut:      func() proto.Message { return &eventv1.CouponPut{} },

	stored.TypePaymentStarted:          func() proto.Message { return &eventv1.PaymentStarted{} },
	stored.TypePaymentAuthorized:       func() proto.Message { return &eventv1.PaymentAuthorized{} },
	stored.TypePaymentCaptureRequested: func() proto.Message { return &eventv1.PaymentCaptureRequested{} },
	stored.TypePaymentCaptured:         func() proto.Message { return &eventv1.PaymentCaptured{} },
	stored.TypePaymentDeclined:         func() proto.Message { return &eventv1.PaymentDeclined{} },
	stored.TypePaymentBecameUnknown:    func() proto.Message { return &eventv1.PaymentBecameUnknown{} },
	stored.TypePaymentVoidRequested:    func() proto.Message { return &eventv1.PaymentVoidRequested{} },
	stored.TypePaymentVoided:           func() proto.Message { return &eventv1.PaymentVoided{} },
	stored.TypeRefundStarted:           func() proto.Message { return &eventv1.RefundStarted{} },
	stored.TypePaymentRefunded:         func() proto.Message { return &eventv1.PaymentRefunded{} },
	stored.TypeRefundFailed:            func() proto.Message { return &eventv1.RefundFailed{} },
	stored.TypeStrayPaymentFound:       func() proto.Message { return &eventv1.StrayPaymentFound{} },
	stored.TypeItemsShipped:            func() proto.Message { return &eventv1.ItemsShipped{} },
	stored.TypeShipmentDelivered:       func() proto.Message { return &eventv1.ShipmentDelivered{} },
	stored.TypeReturnRequested:         func() proto.Message { return &eventv1.ReturnRequested{} },
	stored.TypeReturnReceived:          func() proto.Message { return &eventv1.ReturnReceived{} },
	stored.TypeNoteAdded:               func() proto.Message { return &eventv1.NoteAdded{} },
	stored.TypePointsAwarded:           func() proto.Message { return &eventv1.PointsAwarded{} },
	stored.TypePointsTakenBack:         func() proto.Message { return &eventv1.PointsTakenBack{} },
}

// typeNames are in order, so that a fuzzer's number always means the same type.
var typeNames = []string{
	stored.TypeOrderPlaced, stored.TypeOrderCancelled, stored.TypeOrderExpired, stored.TypeProductPut, stored.TypeStockReceived,
	stored.TypeStockGranted, stored.TypeStockAllotted, stored.TypeStockReturned, stored.TypeStockReclaimed,
	stored.TypeCampaignPut, stored.TypePoolFilled, stored.TypePoolDrained, stored.TypeCouponPut,

	stored.TypePaymentStarted,
	stored.TypePaymentAuthorized,
	stored.TypePaymentCaptureRequested,
	stored.TypePaymentCaptured,
	stored.TypePaymentDeclined,
	stored.TypePaymentBecameUnknown,
	stored.TypePaymentVoidRequested,
	stored.TypePaymentVoided,
	stored.TypeRefundStarted,
	stored.TypePaymentRefunded,
	stored.TypeRefundFailed,
	stored.TypeStrayPaymentFound,
	stored.TypeItemsShipped,
	stored.TypeShipmentDelivered,
	stored.TypeReturnRequested,
	stored.TypeReturnReceived,
	stored.TypeNoteAdded,
	stored.TypePointsAwarded,
	stored.TypePointsTakenBack,
	stored.TypeUserErased,
	stored.TypeWebhookEndpointPut,
	stored.TypeWebhookEndpointDeleted,
	stored.TypeRequestAnswered,
}

// FuzzDecode holds Decode to what the generated types read: the same payloads are refused, the others mean the same, and
// fields that neither knows are passed over.
func FuzzDecode(f *testing.F) {
	for _, e := range golden {
		typeName, _, _, payload := stored.Encode(e)
		kind := uint8(slices.Index(typeNames, typeName))
		f.Add(kind, payload)
		f.Add(kind, payload[:len(payload)-1])
		f.Add(kind, append([]byte{15<<3 | 2, 3, 'n', 'e', 'w'}, payload...)) // A field of bytes that is not known,
		f.Add(kind, append([]byte{14<<3 | 5, 1, 2, 3, 4}, payload...))       // one of 32 bits,
		f.Add(kind, append([]byte{14<<3 | 1, 1, 2, 3, 4, 5, 6, 7, 8}, payload...))
		f.Add(kind, append([]byte{14<<3 | 3, 8, 1, 14<<3 | 4}, payload...)) // and a group.
		f.Add(kind, append(slices.Clone(payload), payload...))
	}
	for kind := range typeNames {
		f.Add(uint8(kind), []byte{1 << 3, 5, 1<<3 | 2, 1, 'x'})     // Field 1 as both wire types: one of them is not ours.
		f.Add(uint8(kind), []byte{1<<3 | 2, 1, 0xff})               // Not UTF-8.
		f.Add(uint8(kind), []byte{0x80, 0x80, 0x80, 0x80, 0x10, 0}) // A field number above the largest.
		f.Add(uint8(kind), []byte{0, 0})                            // Field number 0.
		f.Add(uint8(kind), []byte{1 << 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
		f.Add(uint8(kind), []byte{1<<3 | 4})
	}
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		typeName := typeNames[int(kind)%len(typeNames)]
		aggregateID := "mug"
		if !strings.HasPrefix(typeName, "Stock") && !slices.Contains([]string{
			stored.TypeProductPut, stored.TypeCampaignPut, stored.TypePoolFilled, stored.TypePoolDrained, stored.TypeCouponPut,
			stored.TypeRequestAnswered,
		}, typeName) {
			aggregateID = orderID.String()
		}
		switch typeName {
		case stored.TypeUserErased:
			aggregateID = "alice"
		case stored.TypeWebhookEndpointPut, stored.TypeWebhookEndpointDeleted:
			aggregateID = "erp"
		}
		before := slices.Clone(payload)
		got, err := stored.Decode(typeName, 1, aggregateID, "alice", payload)
		if !bytes.Equal(payload, before) {
			t.Fatalf("%s: Decode changed the payload", typeName)
		}
		message := generated[typeName]()
		if wantErr := proto.Unmarshal(payload, message); (err == nil) != (wantErr == nil) {
			t.Fatalf("%s %x: got %v, the generated type says %v", typeName, payload, err, wantErr)
		} else if err != nil {
			return
		}
		if want := eventOf(message, orderID, "alice"); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s %x:\n got %+v\nwant %+v", typeName, payload, got, want)
		}
		_, _, _, encoded := stored.Encode(got)
		if again, err := stored.Decode(typeName, 1, aggregateID, "alice", encoded); err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%s: encoded again %x it is %+v, %v\nwant %+v", typeName, encoded, again, err, got)
		}
	})
}

func userOf(e domain.Event) string {
	switch e := e.(type) {
	case domain.OrderPlaced:
		return e.UserID
	case domain.OrderCancelled:
		return e.UserID
	case domain.OrderExpired:
		return e.UserID
	case domain.PaymentStarted:
		return e.UserID
	case domain.PaymentAuthorized:
		return e.UserID
	case domain.PaymentCaptureRequested:
		return e.UserID
	case domain.PaymentCaptured:
		return e.UserID
	case domain.PaymentDeclined:
		return e.UserID
	case domain.PaymentBecameUnknown:
		return e.UserID
	case domain.PaymentVoidRequested:
		return e.UserID
	case domain.PaymentVoided:
		return e.UserID
	case domain.RefundStarted:
		return e.UserID
	case domain.PaymentRefunded:
		return e.UserID
	case domain.RefundFailed:
		return e.UserID
	case domain.StrayPaymentFound:
		return e.UserID
	case domain.ItemsShipped:
		return e.UserID
	case domain.ShipmentDelivered:
		return e.UserID
	case domain.ReturnRequested:
		return e.UserID
	case domain.ReturnReceived:
		return e.UserID
	case domain.NoteAdded:
		return e.UserID
	case domain.PointsAwarded:
		return e.UserID
	case domain.PointsTakenBack:
		return e.UserID
	default:
		return ""
	}
}

// messageOf and eventOf say once more, field by field, what AppendPayload and Decode do by hand.
func messageOf(e domain.Event) proto.Message {
	released := func(releases []domain.Release) (units []*eventv1.UnitsReleased) {
		for _, r := range releases {
			units = append(units, &eventv1.UnitsReleased{Sku: r.SKU, Units: r.Units})
		}
		return units
	}
	nanos := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixNano()
	}
	switch e := e.(type) {
	case domain.CampaignPut:
		return &eventv1.CampaignPut{
			CurrencyCode: e.Price.Currency, PriceMinor: e.Price.Minor, OpensAtUnixNano: nanos(e.OpensAt), ClosesAtUnixNano: nanos(e.ClosesAt),
			UserUnitsMax: e.UserUnitsMax, OrderUnitsMax: e.OrderUnitsMax, Units: e.Units,
		}
	case domain.PoolFilled:
		return &eventv1.PoolFilled{Units: e.Units}
	case domain.PoolDrained:
		return &eventv1.PoolDrained{Units: e.Units}
	case domain.CouponPut:
		return &eventv1.CouponPut{
			Kind: uint32(e.Terms.Kind), AmountMinor: e.Terms.AmountMinor, RateBps: e.Terms.RateBps, CurrencyCode: e.Terms.Currency,
			MinSubtotalMinor: e.Terms.MinSubtotalMinor, ValidFromUnixNano: nanos(e.Terms.ValidFrom), ValidUntilUnixNano: nanos(e.Terms.ValidUntil),
			UserUsesMax: e.Terms.UserUsesMax, UsesMax: e.Terms.UsesMax,
		}
	case domain.OrderPlaced:
		m := &eventv1.OrderPlaced{
			CurrencyCode: e.Total.Currency, TotalMinor: e.Total.Minor, SealedNote: e.SealedNote, SealedPersonal: e.SealedPersonal,
			Pool: e.Pool, CouponCode: e.CouponCode, CouponPool: e.CouponPool,
		}
		if !e.PayBy.IsZero() {
			m.PayByUnixNano = e.PayBy.UnixNano()
		}
		for _, l := range e.Lines {
			m.Lines = append(m.Lines, &eventv1.OrderLine{
				Sku: l.SKU, Units: l.Units, Title: l.Title, PriceMinor: l.PriceMinor,
				DiscountMinor: l.DiscountMinor, TaxMinor: l.TaxMinor, TaxRateBps: l.Tax.RateBps, TaxIncluded: l.Tax.Included,
			})
		}
		return m
	case domain.OrderCancelled:
		return &eventv1.OrderCancelled{Reason: e.Reason, By: e.By, Released: released(e.Released), Unsold: released(e.Unsold), CouponCode: e.CouponCode}
	case domain.OrderExpired:
		return &eventv1.OrderExpired{Released: released(e.Released), CouponCode: e.CouponCode}
	case domain.WebhookEndpointPut:
		return &eventv1.WebhookEndpointPut{Url: e.URL, SealedSecret: e.SealedSecret, Types: e.Types, Paused: e.Paused, By: e.By}
	case domain.WebhookEndpointDeleted:
		return &eventv1.WebhookEndpointDeleted{By: e.By}
	case domain.RequestAnswered:
		return &eventv1.RequestAnswered{About: string(e.About), PartId: e.PartID, KeyId: uint64(e.KeyID)}
	case domain.UserErased:
		return &eventv1.UserErased{KeyId: uint64(e.Key), By: e.By}
	case domain.ProductPut:
		return &eventv1.ProductPut{
			Title: e.Title, CurrencyCode: e.Price.Currency, PriceMinor: e.Price.Minor, TaxRateBps: e.Tax.RateBps, TaxIncluded: e.Tax.Included,
		}
	case domain.StockReceived:
		return &eventv1.StockReceived{Units: e.Units, ReceivedTotal: e.ReceivedTotal}
	case domain.StockGranted:
		return &eventv1.StockGranted{ToLane: e.ToLane, GrantNumber: e.GrantNumber, Units: e.Units}
	case domain.StockAllotted:
		return &eventv1.StockAllotted{HomeLane: e.HomeLane, GrantNumber: e.GrantNumber, Units: e.Units}
	case domain.StockReturned:
		return &eventv1.StockReturned{HomeLane: e.HomeLane, ReturnNumber: e.ReturnNumber, Units: e.Units}
	case domain.StockReclaimed:
		return &eventv1.StockReclaimed{FromLane: e.FromLane, ReturnNumber: e.ReturnNumber, Units: e.Units}
	case domain.PaymentStarted:
		return &eventv1.PaymentStarted{PaymentId: e.PaymentID, Provider: e.Provider, Method: e.Method, CurrencyCode: e.Amount.Currency, AmountMinor: e.Amount.Minor, By: e.By, CaptureNow: e.CaptureNow}
	case domain.PaymentAuthorized:
		return &eventv1.PaymentAuthorized{PaymentId: e.PaymentID, CurrencyCode: e.Amount.Currency, AmountMinor: e.Amount.Minor}
	case domain.PaymentCaptureRequested:
		return &eventv1.PaymentCaptureRequested{PaymentId: e.PaymentID, Provider: e.Provider, CurrencyCode: e.Amount.Currency, AmountMinor: e.Amount.Minor, By: e.By}
	case domain.PaymentCaptured:
		return &eventv1.PaymentCaptured{PaymentId: e.PaymentID, CurrencyCode: e.Amount.Currency, AmountMinor: e.Amount.Minor, Sold: released(e.Sold)}
	case domain.PaymentDeclined:
		return &eventv1.PaymentDeclined{PaymentId: e.PaymentID, Code: e.Code, Message: e.Message}
	case domain.PaymentBecameUnknown:
		return &eventv1.PaymentBecameUnknown{PaymentId: e.PaymentID}
	case domain.PaymentVoidRequested:
		return &eventv1.PaymentVoidRequested{PaymentId: e.PaymentID, Provider: e.Provider, Why: e.Why, By: e.By}
	case domain.PaymentVoided:
		return &eventv1.PaymentVoided{PaymentId: e.PaymentID}
	case domain.RefundStarted:
		return &eventv1.RefundStarted{RefundId: e.RefundID, PaymentId: e.PaymentID, Provider: e.Provider, CurrencyCode: e.Amount.Currency, AmountMinor: e.Amount.Minor, Reason: e.Reason, ReturnId: e.ReturnID, By: e.By}
	case domain.PaymentRefunded:
		return &eventv1.PaymentRefunded{RefundId: e.RefundID, CurrencyCode: e.Amount.Currency, AmountMinor: e.Amount.Minor}
	case domain.RefundFailed:
		return &eventv1.RefundFailed{RefundId: e.RefundID, Code: e.Code}
	case domain.StrayPaymentFound:
		return &eventv1.StrayPaymentFound{PaymentId: e.PaymentID, Provider: e.Provider, CurrencyCode: e.Amount.Currency, AmountMinor: e.Amount.Minor, Why: e.Why}
	case domain.ItemsShipped:
		return &eventv1.ItemsShipped{ShipmentId: e.ShipmentID, Lines: released(e.Lines), Carrier: e.Carrier, Tracking: e.Tracking, By: e.By}
	case domain.ShipmentDelivered:
		return &eventv1.ShipmentDelivered{ShipmentId: e.ShipmentID, By: e.By}
	case domain.ReturnRequested:
		return &eventv1.ReturnRequested{ReturnId: e.ReturnID, Lines: released(e.Lines), Reason: e.Reason, By: e.By}
	case domain.ReturnReceived:
		return &eventv1.ReturnReceived{ReturnId: e.ReturnID, Restocked: released(e.Restocked), By: e.By}
	case domain.NoteAdded:
		return &eventv1.NoteAdded{By: e.By, Sealed: e.Sealed, NoteId: e.NoteID}
	case domain.PointsAwarded:
		return &eventv1.PointsAwarded{PaymentId: e.PaymentID, Points: e.Points, PerMajor: e.PerMajor}
	case domain.PointsTakenBack:
		return &eventv1.PointsTakenBack{RefundId: e.RefundID, Points: e.Points}
	}
	panic(fmt.Sprintf("unknown event %T", e))
}

func eventOf(m proto.Message, id domain.OrderID, userID string) domain.Event {
	released := func(units []*eventv1.UnitsReleased) (releases []domain.Release) {
		for _, u := range units {
			releases = append(releases, domain.Release{SKU: u.GetSku(), Units: u.GetUnits()})
		}
		return releases
	}
	timeOf := func(nanos int64) time.Time {
		if nanos == 0 {
			return time.Time{}
		}
		return time.Unix(0, nanos).UTC()
	}
	sealed := func(content []byte) []byte {
		if len(content) == 0 {
			return nil
		}
		return content
	}
	switch m := m.(type) {
	case *eventv1.CampaignPut:
		return domain.CampaignPut{
			Pool: "mug", Price: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetPriceMinor()},
			OpensAt: timeOf(m.GetOpensAtUnixNano()), ClosesAt: timeOf(m.GetClosesAtUnixNano()),
			UserUnitsMax: m.GetUserUnitsMax(), OrderUnitsMax: m.GetOrderUnitsMax(), Units: m.GetUnits(),
		}
	case *eventv1.PoolFilled:
		return domain.PoolFilled{Pool: "mug", Units: m.GetUnits()}
	case *eventv1.PoolDrained:
		return domain.PoolDrained{Pool: "mug", Units: m.GetUnits()}
	case *eventv1.CouponPut:
		return domain.CouponPut{Code: "mug", Terms: domain.CouponTerms{
			Kind: domain.CouponKind(m.GetKind()), AmountMinor: m.GetAmountMinor(), RateBps: m.GetRateBps(), Currency: m.GetCurrencyCode(),
			MinSubtotalMinor: m.GetMinSubtotalMinor(), ValidFrom: timeOf(m.GetValidFromUnixNano()), ValidUntil: timeOf(m.GetValidUntilUnixNano()),
			UserUsesMax: m.GetUserUsesMax(), UsesMax: m.GetUsesMax(),
		}}
	case *eventv1.OrderPlaced:
		e := domain.OrderPlaced{
			OrderID: id, UserID: userID, Total: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetTotalMinor()},
			Pool: m.GetPool(), CouponCode: m.GetCouponCode(), CouponPool: m.GetCouponPool(),
		}
		if len(m.GetSealedNote()) > 0 {
			e.SealedNote = m.GetSealedNote()
		}
		if len(m.GetSealedPersonal()) > 0 {
			e.SealedPersonal = m.GetSealedPersonal()
		}
		if m.GetPayByUnixNano() != 0 {
			e.PayBy = time.Unix(0, m.GetPayByUnixNano()).UTC()
		}
		for _, l := range m.GetLines() {
			e.Lines = append(e.Lines, domain.Line{
				SKU: l.GetSku(), Units: l.GetUnits(), Title: l.GetTitle(), PriceMinor: l.GetPriceMinor(),
				DiscountMinor: l.GetDiscountMinor(), TaxMinor: l.GetTaxMinor(), Tax: domain.Tax{RateBps: l.GetTaxRateBps(), Included: l.GetTaxIncluded()},
			})
		}
		return e
	case *eventv1.OrderCancelled:
		return domain.OrderCancelled{OrderID: id, UserID: userID, Reason: m.GetReason(), By: m.GetBy(), Released: released(m.GetReleased()), Unsold: released(m.GetUnsold()), CouponCode: m.GetCouponCode()}
	case *eventv1.OrderExpired:
		return domain.OrderExpired{OrderID: id, UserID: userID, Released: released(m.GetReleased()), CouponCode: m.GetCouponCode()}
	case *eventv1.WebhookEndpointPut:
		return domain.WebhookEndpointPut{EndpointID: "erp", URL: m.GetUrl(), SealedSecret: bytesOrNil(m.GetSealedSecret()), Types: m.GetTypes(), Paused: m.GetPaused(), By: m.GetBy()}
	case *eventv1.WebhookEndpointDeleted:
		return domain.WebhookEndpointDeleted{EndpointID: "erp", By: m.GetBy()}
	case *eventv1.RequestAnswered:
		return domain.RequestAnswered{About: domain.Subject(m.GetAbout()), Key: "mug", PartID: m.GetPartId(), KeyID: domain.KeyID(m.GetKeyId())}
	case *eventv1.UserErased:
		return domain.UserErased{UserID: userID, Key: domain.KeyID(m.GetKeyId()), By: m.GetBy()}
	case *eventv1.ProductPut:
		return domain.ProductPut{
			SKU: "mug", Title: m.GetTitle(), Price: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetPriceMinor()},
			Tax: domain.Tax{RateBps: m.GetTaxRateBps(), Included: m.GetTaxIncluded()},
		}
	case *eventv1.StockReceived:
		return domain.StockReceived{SKU: "mug", Units: m.GetUnits(), ReceivedTotal: m.GetReceivedTotal()}
	case *eventv1.StockGranted:
		return domain.StockGranted{SKU: "mug", ToLane: m.GetToLane(), GrantNumber: m.GetGrantNumber(), Units: m.GetUnits()}
	case *eventv1.StockAllotted:
		return domain.StockAllotted{SKU: "mug", HomeLane: m.GetHomeLane(), GrantNumber: m.GetGrantNumber(), Units: m.GetUnits()}
	case *eventv1.StockReturned:
		return domain.StockReturned{SKU: "mug", HomeLane: m.GetHomeLane(), ReturnNumber: m.GetReturnNumber(), Units: m.GetUnits()}
	case *eventv1.StockReclaimed:
		return domain.StockReclaimed{SKU: "mug", FromLane: m.GetFromLane(), ReturnNumber: m.GetReturnNumber(), Units: m.GetUnits()}
	case *eventv1.PaymentStarted:
		return domain.PaymentStarted{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Provider: m.GetProvider(), Method: m.GetMethod(), Amount: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetAmountMinor()}, By: m.GetBy(), CaptureNow: m.GetCaptureNow()}
	case *eventv1.PaymentAuthorized:
		return domain.PaymentAuthorized{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Amount: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetAmountMinor()}}
	case *eventv1.PaymentCaptureRequested:
		return domain.PaymentCaptureRequested{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Provider: m.GetProvider(), Amount: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetAmountMinor()}, By: m.GetBy()}
	case *eventv1.PaymentCaptured:
		return domain.PaymentCaptured{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Amount: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetAmountMinor()}, Sold: released(m.GetSold())}
	case *eventv1.PaymentDeclined:
		return domain.PaymentDeclined{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Code: m.GetCode(), Message: m.GetMessage()}
	case *eventv1.PaymentBecameUnknown:
		return domain.PaymentBecameUnknown{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId()}
	case *eventv1.PaymentVoidRequested:
		return domain.PaymentVoidRequested{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Provider: m.GetProvider(), Why: m.GetWhy(), By: m.GetBy()}
	case *eventv1.PaymentVoided:
		return domain.PaymentVoided{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId()}
	case *eventv1.RefundStarted:
		return domain.RefundStarted{OrderID: id, UserID: userID, RefundID: m.GetRefundId(), PaymentID: m.GetPaymentId(), Provider: m.GetProvider(), Amount: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetAmountMinor()}, Reason: m.GetReason(), ReturnID: m.GetReturnId(), By: m.GetBy()}
	case *eventv1.PaymentRefunded:
		return domain.PaymentRefunded{OrderID: id, UserID: userID, RefundID: m.GetRefundId(), Amount: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetAmountMinor()}}
	case *eventv1.RefundFailed:
		return domain.RefundFailed{OrderID: id, UserID: userID, RefundID: m.GetRefundId(), Code: m.GetCode()}
	case *eventv1.StrayPaymentFound:
		return domain.StrayPaymentFound{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Provider: m.GetProvider(), Amount: domain.Money{Currency: m.GetCurrencyCode(), Minor: m.GetAmountMinor()}, Why: m.GetWhy()}
	case *eventv1.ItemsShipped:
		return domain.ItemsShipped{OrderID: id, UserID: userID, ShipmentID: m.GetShipmentId(), Lines: released(m.GetLines()), Carrier: m.GetCarrier(), Tracking: m.GetTracking(), By: m.GetBy()}
	case *eventv1.ShipmentDelivered:
		return domain.ShipmentDelivered{OrderID: id, UserID: userID, ShipmentID: m.GetShipmentId(), By: m.GetBy()}
	case *eventv1.ReturnRequested:
		return domain.ReturnRequested{OrderID: id, UserID: userID, ReturnID: m.GetReturnId(), Lines: released(m.GetLines()), Reason: m.GetReason(), By: m.GetBy()}
	case *eventv1.ReturnReceived:
		return domain.ReturnReceived{OrderID: id, UserID: userID, ReturnID: m.GetReturnId(), Restocked: released(m.GetRestocked()), By: m.GetBy()}
	case *eventv1.NoteAdded:
		return domain.NoteAdded{OrderID: id, UserID: userID, By: m.GetBy(), Sealed: sealed(m.GetSealed()), NoteID: m.GetNoteId()}
	case *eventv1.PointsAwarded:
		return domain.PointsAwarded{OrderID: id, UserID: userID, PaymentID: m.GetPaymentId(), Points: m.GetPoints(), PerMajor: m.GetPerMajor()}
	case *eventv1.PointsTakenBack:
		return domain.PointsTakenBack{OrderID: id, UserID: userID, RefundID: m.GetRefundId(), Points: m.GetPoints()}
	}
	panic(fmt.Sprintf("unknown message %T", m))
}

func BenchmarkEncodeOrderPlaced(b *testing.B) {
	e := golden["OrderPlaced.v1.one-line"]
	b.ReportAllocs()
	for b.Loop() {
		stored.Encode(e)
	}
}

func BenchmarkAppendOrderPlaced(b *testing.B) {
	e := golden["OrderPlaced.v1.one-line"]
	var payload []byte
	b.ReportAllocs()
	for b.Loop() {
		payload = stored.AppendPayload(payload[:0], e)
	}
}

func BenchmarkDecodeOrderPlaced(b *testing.B) {
	e := golden["OrderPlaced.v1.one-line"]
	typeName, version, aggregateID, payload := stored.Encode(e)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := stored.Decode(typeName, version, aggregateID, "alice", payload); err != nil {
			b.Fatal(err)
		}
	}
}

// The generated type's time, beside the above.
func BenchmarkGeneratedOrderPlaced(b *testing.B) {
	e := golden["OrderPlaced.v1.one-line"]
	payload, err := proto.Marshal(messageOf(e))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("marshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := proto.Marshal(messageOf(e)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unmarshal", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m eventv1.OrderPlaced
			if err := proto.Unmarshal(payload, &m); err != nil {
				b.Fatal(err)
			}
			eventOf(&m, orderID, "alice")
		}
	})
}

// bytesOrNil is what Decode makes of an empty field: nothing.
func bytesOrNil(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}
