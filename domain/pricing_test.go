package domain_test

import (
	"math/big"
	"testing"

	"pgregory.net/rapid"

	"github.com/weirhq/weir/domain"
)

// drawLines draws lines of distinct SKUs whose amounts add up.
func drawLines(t *rapid.T) (lines []domain.Line, sum int64) {
	for i := range rapid.IntRange(1, 12).Draw(t, "lines") {
		line := domain.Line{
			SKU: "sku-" + string(rune('a'+i)), Units: rapid.Int64Range(1, domain.LineUnitsMax/1000).Draw(t, "units"),
			PriceMinor: rapid.OneOf(rapid.Int64Range(0, 20), rapid.Int64Range(0, domain.PriceMinorMax)).Draw(t, "price"),
			Tax:        domain.Tax{RateBps: rapid.Int64Range(0, domain.RateBpsMax).Draw(t, "rate"), Included: rapid.Bool().Draw(t, "included")},
		}
		lines = append(lines, line)
		sum += line.PriceMinor * line.Units
	}
	return lines, sum
}

// TestADiscountIsSplitExactly: the parts add up to the discount, none is more than its line, each is its exact share but
// for less than one minor unit, and the order of the lines changes none of them.
func TestADiscountIsSplitExactly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines, sum := drawLines(t)
		discount := rapid.OneOf(rapid.Int64Range(0, sum), rapid.SampledFrom([]int64{0, sum, sum / 2, max(sum-1, 0), min(1, sum)})).Draw(t, "discount")
		domain.SplitDiscount(lines, discount)
		var parts int64
		bySKU := map[string]int64{}
		for i := range lines {
			line := &lines[i]
			parts += line.DiscountMinor
			bySKU[line.SKU] = line.DiscountMinor
			if line.DiscountMinor < 0 || line.DiscountMinor > line.PriceMinor*line.Units {
				t.Fatalf("of %d over %d, %s is given %d, and amounts to %d", discount, sum, line.SKU, line.DiscountMinor, line.PriceMinor*line.Units)
			}
			if sum == 0 {
				continue
			}
			exact := new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(discount), big.NewInt(line.PriceMinor*line.Units)), big.NewInt(sum))
			off := exact.Sub(exact, new(big.Rat).SetInt64(line.DiscountMinor))
			if off.Abs(off).Cmp(big.NewRat(1, 1)) >= 0 {
				t.Fatalf("of %d over %d, the part of %s is off by %s", discount, sum, line.SKU, off.FloatString(3))
			}
		}
		if parts != discount {
			t.Fatalf("the parts of %d add up to %d", discount, parts)
		}
		shuffled := rapid.Permutation(lines).Draw(t, "shuffled")
		domain.SplitDiscount(shuffled, discount)
		for i := range shuffled {
			if got := shuffled[i].DiscountMinor; got != bySKU[shuffled[i].SKU] {
				t.Fatalf("in another order %s is given %d, first %d", shuffled[i].SKU, got, bySKU[shuffled[i].SKU])
			}
		}
	})
}

// TestATaxIsTheExactOneRoundedHalfUp holds Tax.Of to arithmetic without a limit.
func TestATaxIsTheExactOneRoundedHalfUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tax := domain.Tax{RateBps: rapid.Int64Range(0, domain.RateBpsMax).Draw(t, "rate"), Included: rapid.Bool().Draw(t, "included")}
		amount := rapid.OneOf(rapid.Int64Range(0, 1000), rapid.Int64Min(0)).Draw(t, "amount")
		whole := int64(domain.RateBpsMax)
		if tax.Included {
			whole += tax.RateBps
		}
		// ⌊x + 1/2⌋ = ⌊(2 × amount × rate + whole) / (2 × whole)⌋
		exact := new(big.Int).Mul(big.NewInt(amount), big.NewInt(2*tax.RateBps))
		exact.Add(exact, big.NewInt(whole)).Div(exact, big.NewInt(2*whole))
		if got := tax.Of(amount); !exact.IsInt64() || got != exact.Int64() {
			t.Fatalf("%+v of %d is %d, want %s", tax, amount, got, exact)
		}
	})
}

func TestHalvesOfTaxesAreRoundedUp(t *testing.T) {
	for _, c := range []struct {
		tax    domain.Tax
		amount int64
		want   int64
	}{
		{domain.Tax{RateBps: 1000}, 5, 1},                    // 0.5
		{domain.Tax{RateBps: 1000}, 4, 0},                    // 0.4
		{domain.Tax{RateBps: 1000}, 15, 2},                   // 1.5
		{domain.Tax{RateBps: 1900}, 1000, 190},               //
		{domain.Tax{RateBps: 1900, Included: true}, 119, 19}, //
		{domain.Tax{RateBps: 10_000, Included: true}, 1, 1},  // 0.5
		{domain.Tax{RateBps: 10_000, Included: true}, 3, 2},  // 1.5
		{domain.Tax{RateBps: 10_000}, 3, 3},                  //
		{domain.Tax{}, 1_000_000, 0},                         //
	} {
		if got := c.tax.Of(c.amount); got != c.want {
			t.Errorf("%+v of %d is %d, want %d", c.tax, c.amount, got, c.want)
		}
	}
}

// TestAnOrdersTotalIsWhatItsLinesCost: total = subtotal - discount + the taxes on top = Σ of the lines' payables.
func TestAnOrdersTotalIsWhatItsLinesCost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines, sum := drawLines(t)
		discount := rapid.Int64Range(0, sum).Draw(t, "discount")
		total, err := domain.PriceLines("EUR", lines, discount)
		if err != nil {
			t.Fatal(err)
		}
		order := domain.Order{Lines: lines, Total: total}
		amounts := order.Amounts()
		want := amounts.Subtotal.Minor - amounts.Discount.Minor
		var payable int64
		for i := range lines {
			payable += lines[i].Payable()
			if !lines[i].Tax.Included {
				want += lines[i].TaxMinor
			}
			if lines[i].Payable() < 0 || lines[i].TaxMinor < 0 {
				t.Fatalf("%+v costs %d", lines[i], lines[i].Payable())
			}
		}
		if amounts.Subtotal.Minor != sum || amounts.Discount.Minor != discount || total.Minor != want || payable != want {
			t.Fatalf("total %v, lines %d, want %d; amounts %+v", total, payable, want, amounts)
		}
	})
}

func TestAnOrderOfBeforeThereWereDiscountsHasNone(t *testing.T) {
	placed := domain.OrderPlaced{
		OrderID: orderIDs(1)[0], UserID: "alice", Lines: []domain.Line{{SKU: "mug", Units: 3, PriceMinor: 1299}},
		Total: domain.Money{Currency: "EUR", Minor: 3897},
	}
	order := domain.Order{}.Evolve(placed, epoch)
	none := domain.Money{Currency: "EUR"}
	if got, want := order.Amounts(), (domain.Amounts{Subtotal: placed.Total, Discount: none, Tax: none}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := order.Lines[0].Payable(); got != 3897 {
		t.Errorf("its line costs %d, want 3897", got)
	}
}

func TestAStockKeyIsOneThing(t *testing.T) {
	for _, c := range []struct{ key, home, campaign string }{
		{"mug", "mug", ""},
		{domain.CampaignPool("mug", "flash"), "mug", "flash"},
		{domain.CouponPool("TEN"), "TEN", ""},
		{domain.CampaignPool("TEN", "coupon"), "TEN", "coupon"},
	} {
		if home, campaign := domain.HomeKey(c.key), domain.CampaignOf(c.key); home != c.home || campaign != c.campaign {
			t.Errorf("%s: home %q, campaign %q, want %q, %q", c.key, home, campaign, c.home, c.campaign)
		}
	}
	if domain.CouponPool("TEN") == domain.CampaignPool("TEN", "coupon") {
		t.Error("a coupon's pool is a campaign's")
	}
}
