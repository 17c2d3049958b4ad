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
	"OrderPlaced.v1.one-line": domain.OrderPlaced{
		OrderID: orderID, UserID: "alice", Lines: []domain.Line{{SKU: "mug", Units: 1, Title: "Enamel mug", PriceMinor: 1299}},
		Total: domain.Money{Currency: "EUR", Minor: 1299}, PayBy: payBy,
	},
	"OrderCancelled.v1": domain.OrderCancelled{
		OrderID: orderID, UserID: "alice", Reason: "changed my mind", By: "clerk-7",
		Released: []domain.Release{{SKU: "mug", Units: 3}, {SKU: "tee-xl_2", Units: 1_000_000}},
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
	for _, e := range samples[:3] {
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
	switch rapid.IntRange(0, 12).Draw(t, "event") {
	case 9:
		return domain.CampaignPut{
			Pool: "mug", Price: domain.Money{Currency: text("currency"), Minor: units()}, OpensAt: drawn("opens at"), ClosesAt: drawn("closes at"),
			UserUnitsMax: units(), OrderUnitsMax: units(), Units: units(),
		}
	case 10:
		return domain.PoolFilled{Pool: "mug", Units: units()}
	case 11:
		return domain.PoolDrained{Pool: "mug", Units: units()}
	case 12:
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
		if note := rapid.SliceOfN(rapid.Byte(), 0, 99).Draw(t, "note"); len(note) > 0 {
			e.SealedNote = note
		}
		if e.PayBy.UnixNano() == 0 {
			e.PayBy = time.Time{}
		}
		return e
	case 1:
		return domain.OrderCancelled{OrderID: orderID, UserID: "alice", Reason: text("reason"), By: text("by"), Released: released, CouponCode: text("coupon")}
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
	case 7:
		return domain.StockReturned{SKU: "mug", HomeLane: lane, ReturnNumber: number, Units: units()}
	default:
		return domain.StockReclaimed{SKU: "mug", FromLane: lane, ReturnNumber: number, Units: units()}
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
}

// typeNames are in order, so that a fuzzer's number always means the same type.
var typeNames = []string{
	stored.TypeOrderPlaced, stored.TypeOrderCancelled, stored.TypeOrderExpired, stored.TypeProductPut, stored.TypeStockReceived,
	stored.TypeStockGranted, stored.TypeStockAllotted, stored.TypeStockReturned, stored.TypeStockReclaimed,
	stored.TypeCampaignPut, stored.TypePoolFilled, stored.TypePoolDrained, stored.TypeCouponPut,
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
		if strings.HasPrefix(typeName, "Order") {
			aggregateID = orderID.String()
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
			CurrencyCode: e.Total.Currency, TotalMinor: e.Total.Minor, SealedNote: e.SealedNote,
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
		return &eventv1.OrderCancelled{Reason: e.Reason, By: e.By, Released: released(e.Released), CouponCode: e.CouponCode}
	case domain.OrderExpired:
		return &eventv1.OrderExpired{Released: released(e.Released), CouponCode: e.CouponCode}
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
		return domain.OrderCancelled{OrderID: id, UserID: userID, Reason: m.GetReason(), By: m.GetBy(), Released: released(m.GetReleased()), CouponCode: m.GetCouponCode()}
	case *eventv1.OrderExpired:
		return domain.OrderExpired{OrderID: id, UserID: userID, Released: released(m.GetReleased()), CouponCode: m.GetCouponCode()}
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
