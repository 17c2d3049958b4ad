package api

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// TestHandCheckOfPlaceOrderAgreesWithItsRules holds plainlyValid against the rules of the proto file, around their edges.
func TestHandCheckOfPlaceOrderAgreesWithItsRules(t *testing.T) {
	v := newValidator()
	name := rapid.OneOf(
		rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`),
		rapid.StringMatching(`[A-Za-z0-9_-]{60,70}`),
		rapid.SampledFrom([]string{"", "a.b", "a b", "*", "a\n", "\na", "аda", "a\x00", "a\xff", "[", "`", "@", "/", ":", "{", "-", "_"}),
		rapid.StringN(0, 8, 80),
	)
	quantity := rapid.OneOf(rapid.Int64Range(-2, 3), rapid.Int64Range(999_998, 1_000_002), rapid.Int64())
	note := rapid.OneOf(rapid.Just(""), rapid.StringN(0, 1010, 1010), rapid.SampledFrom([]string{
		strings.Repeat("x", 1000), strings.Repeat("x", 1001), strings.Repeat("é", 500), strings.Repeat("é", 501), "a\xff",
	}))
	rapid.Check(t, func(t *rapid.T) {
		request := &orderv1.PlaceOrderRequest{RequestId: name.Draw(t, "request_id"), UserId: name.Draw(t, "user_id"), Note: note.Draw(t, "note")}
		if rapid.Bool().Draw(t, "terms") {
			request.CampaignId, request.CouponCode = name.Draw(t, "campaign_id"), name.Draw(t, "coupon_code")
		}
		count := rapid.OneOf(rapid.IntRange(0, 3), rapid.IntRange(98, 102)).Draw(t, "items")
		sku, units := name.Draw(t, "sku"), quantity.Draw(t, "quantity")
		for range count {
			request.Items = append(request.Items, &orderv1.ItemRequest{Sku: "a", Quantity: 1})
		}
		if count > 0 {
			request.Items[rapid.IntRange(0, count-1).Draw(t, "which")] = &orderv1.ItemRequest{Sku: sku, Quantity: units}
		}
		if rapid.Bool().Draw(t, "address") {
			text := func(field string, most int) string {
				return rapid.OneOf(rapid.SampledFrom([]string{"", "x", "é"}), rapid.SampledFrom([]string{strings.Repeat("x", most), strings.Repeat("x", most+1)})).Draw(t, field)
			}
			request.ShippingAddress = &orderv1.ShippingAddress{
				Recipient: text("recipient", recipientBytesMax), PostalCode: text("postal code", postalCodeBytesMax),
				City: text("city", cityBytesMax), Region: text("region", regionBytesMax),
				CountryCode: rapid.OneOf(rapid.Just("DE"), rapid.SampledFrom([]string{"", "D", "de", "DEU", "D1", "Ä", "DE\n"})).Draw(t, "country"),
			}
			for range rapid.OneOf(rapid.Just(1), rapid.IntRange(0, addressLinesMax+1)).Draw(t, "lines") {
				request.ShippingAddress.Lines = append(request.ShippingAddress.Lines, text("line", addressLineBytesMax))
			}
		}
		if rapid.Bool().Draw(t, "contact") {
			request.Contact = &orderv1.Contact{
				Email: rapid.OneOf(rapid.StringMatching(`[a-z@ ]{0,6}`), rapid.SampledFrom([]string{
					"a@b", "ä@ö.example", "a@b@c", "a b@c", "a@b\n", "@", "a\x7f@b", strings.Repeat("x", 252) + "@y", strings.Repeat("x", 253) + "@y",
				})).Draw(t, "email"),
				Phone: rapid.OneOf(rapid.StringMatching(`[0-9+. ()/-]{0,33}`), rapid.SampledFrom([]string{"+49 30 901820", "x", "1\n", "٣"})).Draw(t, "phone"),
			}
		}
		if err := v.rules.Validate(request); plainlyValid(request) != (err == nil) {
			t.Fatalf("plainlyValid says %t, the rules say %v: %v", err != nil, err, request)
		}
	})
}

// TestWhatThePlainCheckOfGetOrderLetsPassKeepsItsRules holds plainlyGetOrder against the rules of the proto file. What it does not let pass is looked at by
// the rules themselves.
func TestWhatThePlainCheckOfGetOrderLetsPassKeepsItsRules(t *testing.T) {
	v := newValidator()
	plain := 0
	rapid.Check(t, func(t *rapid.T) {
		request := &orderv1.GetOrderRequest{OrderId: rapid.OneOf(
			rapid.StringMatching(`[0-9A-Z]{26,28}`), rapid.StringN(0, 30, 30), rapid.SampledFrom([]string{strings.Repeat("é", 13) + "a", strings.Repeat("é", 27)}),
		).Draw(t, "order_id")}
		if rapid.Bool().Draw(t, "wait_budget") {
			request.WaitBudget = durationpb.New(time.Duration(rapid.Int64Range(-1, 11).Draw(t, "seconds")) * time.Second)
		}
		if plainlyGetOrder(request) {
			plain++
			if err := v.rules.Validate(request); err != nil {
				t.Fatalf("plainlyGetOrder lets pass %v, the rules say %v", request, err)
			}
		}
	})
	if plain == 0 {
		t.Error("no request was plain")
	}
}

func TestCountriesAreThoseOfTheStandard(t *testing.T) {
	const known = 249 + 1 // ISO 3166-1, and XK.
	codes := strings.Fields(countries)
	if len(codes) != known || !slices.IsSorted(codes) || len(slices.Compact(slices.Clone(codes))) != known {
		t.Errorf("%d countries are known, want %d, each once and in order", len(codes), known)
	}
	v := newValidator()
	ask := func(country string) error {
		return v.checkPlaceOrder(&orderv1.PlaceOrderRequest{
			RequestId: "r", Items: []*orderv1.ItemRequest{{Sku: "s", Quantity: 1}},
			ShippingAddress: &orderv1.ShippingAddress{Recipient: "Ada", Lines: []string{"1 Street"}, CountryCode: country},
		})
	}
	if err := ask("GB"); err != nil {
		t.Error(err)
	}
	var f *fault
	if err := ask("UK"); !errors.As(err, &f) || f.fields[0].Field != "shipping_address.country_code" || strings.Contains(f.message, "Ada") {
		t.Errorf("UK, which is no country's code: got %v", err)
	}
}

func TestMoneyIsCountedInCurrenciesOfTheStandard(t *testing.T) {
	const known = 165 // ISO 4217 of 2026, without what nobody pays in.
	codes := strings.Fields(currencies)
	if len(codes) != known || !slices.IsSorted(codes) || len(slices.Compact(slices.Clone(codes))) != known {
		t.Errorf("%d currencies are known, want %d, each once and in order", len(codes), known)
	}
	for currency, good := range map[string]bool{"EUR": true, "KWD": true, "ZWG": true, "EUE": false, "XXX": false} {
		if err := checkCurrency("price", &typev1.Money{CurrencyCode: currency}); good != (err == nil) {
			t.Errorf("%s: got %v", currency, err)
		}
	}
}

func FuzzHandCheckOfPlaceOrder(f *testing.F) {
	v := newValidator()
	seed, err := proto.Marshal(&orderv1.PlaceOrderRequest{RequestId: "r", UserId: "u", Items: []*orderv1.ItemRequest{{Sku: "s", Quantity: 1}}, Note: "n"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		var request orderv1.PlaceOrderRequest
		if proto.Unmarshal(data, &request) != nil {
			return
		}
		if err := v.rules.Validate(&request); plainlyValid(&request) != (err == nil) {
			t.Fatalf("plainlyValid says %t, the rules say %v: %v", err != nil, err, &request)
		}
	})
}

func TestViolationsNameTheirFields(t *testing.T) {
	v := newValidator()
	err := v.checkPlaceOrder(&orderv1.PlaceOrderRequest{
		RequestId: "a b", Items: []*orderv1.ItemRequest{{Sku: "ok", Quantity: 1}, {Sku: "not ok", Quantity: 0}},
	})
	var f *fault
	if !errors.As(err, &f) {
		t.Fatalf("got %v, want a fault", err)
	}
	_, _, bad := detailsOf(t, f.connectError())
	var fields []string
	for _, violation := range bad.GetFieldViolations() {
		fields = append(fields, violation.Field)
		if violation.Description == "" || violation.Reason == "" {
			t.Errorf("%v says too little", violation)
		}
	}
	if want := "request_id items[1].sku items[1].quantity"; strings.Join(fields, " ") != want {
		t.Errorf("got %v, want %s", fields, want)
	}
	err = v.checkPlaceOrder(&orderv1.PlaceOrderRequest{RequestId: "a", Items: []*orderv1.ItemRequest{{Sku: "x", Quantity: 1}, {Sku: "y", Quantity: 1}, {Sku: "x", Quantity: 2}}})
	if !errors.As(err, &f) || f.fields[0].Field != "items[2].sku" {
		t.Errorf("a SKU twice: got %v", err)
	}
	many := &orderv1.PlaceOrderRequest{RequestId: "a"}
	for range 100 {
		many.Items = append(many.Items, &orderv1.ItemRequest{Sku: "*", Quantity: -1})
	}
	if !errors.As(v.checkPlaceOrder(many), &f) || len(f.fields) != violationsMax {
		t.Errorf("200 violations: %d are listed, want %d", len(f.fields), violationsMax)
	}
}

func BenchmarkValidatePlaceOrder(b *testing.B) {
	v := newValidator()
	request := &orderv1.PlaceOrderRequest{RequestId: "req-000000000001", UserId: "user-000123", Items: []*orderv1.ItemRequest{{Sku: "sku-0001", Quantity: 1}}}
	b.Run("rules", func(b *testing.B) {
		for b.Loop() {
			if err := v.check(request); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("by hand", func(b *testing.B) {
		for b.Loop() {
			if err := v.checkPlaceOrder(request); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkNewValidator(b *testing.B) {
	for b.Loop() {
		newValidator()
	}
}
