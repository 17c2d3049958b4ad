package domain_test

import (
	"errors"
	"math"
	"math/big"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/weirhq/weir/domain"
)

func TestMoneyIsWrittenInMajorUnits(t *testing.T) {
	for _, c := range []struct {
		money domain.Money
		text  string
	}{
		{domain.Money{Currency: "EUR", Minor: 1299}, "12.99 EUR"},
		{domain.Money{Currency: "EUR", Minor: 0}, "0.00 EUR"},
		{domain.Money{Currency: "EUR", Minor: 5}, "0.05 EUR"},
		{domain.Money{Currency: "EUR", Minor: -5}, "-0.05 EUR"},
		{domain.Money{Currency: "JPY", Minor: 1299}, "1299 JPY"},
		{domain.Money{Currency: "KRW", Minor: -1}, "-1 KRW"},
		{domain.Money{Currency: "KWD", Minor: 1299}, "1.299 KWD"},
		{domain.Money{Currency: "BHD", Minor: 7}, "0.007 BHD"},
		{domain.Money{Currency: "CLF", Minor: 12345}, "1.2345 CLF"},
		{domain.Money{Currency: "EUR", Minor: math.MaxInt64}, "92233720368547758.07 EUR"},
		{domain.Money{Currency: "EUR", Minor: math.MinInt64}, "-92233720368547758.08 EUR"},
	} {
		if got := c.money.String(); got != c.text {
			t.Errorf("%+v: got %q, want %q", c.money, got, c.text)
		}
		if got, err := domain.ParseMoney(c.text); got != c.money || err != nil {
			t.Errorf("%q: got %+v, %v, want %+v", c.text, got, err, c.money)
		}
	}
	if got, err := domain.ParseMoney("12 EUR"); got != (domain.Money{Currency: "EUR", Minor: 1200}) || err != nil {
		t.Errorf("whole euros: got %+v, %v", got, err)
	}
}

func TestWhatIsNotMoneyIsRefused(t *testing.T) {
	for _, text := range []string{
		"", " ", "EUR", "12.99", "12.99EUR", " 12.99 EUR", "12.99  EUR", "12.99 EUR ", "12.99 eur", "12.99 EURO", "12.99 €",
		"12,99 EUR", "12. EUR", ".99 EUR", "12.9 EUR", "12.999 EUR", "1.0 JPY", "1. JPY", "1.23 KWD", "+1.00 EUR", "--1.00 EUR",
		"1-.00 EUR", "1e3 EUR", "0x10 EUR", "1_000 EUR", "1 000 EUR", "NaN EUR", "١٢ EUR", "1.2.3 EUR", "- EUR", strings.Repeat("x", 9999),
	} {
		got, err := domain.ParseMoney(text)
		var invalid *domain.InvalidMoneyError
		if !errors.As(err, &invalid) || got != (domain.Money{}) {
			t.Errorf("%.40q: got %+v, %v", text, got, err)
		} else if len(err.Error()) > 400 {
			t.Errorf("%.40q: the message has %d bytes", text, len(err.Error()))
		}
	}
	for _, text := range []string{
		"92233720368547758.08 EUR", "-92233720368547758.09 EUR", "9223372036854775808 JPY", "99999999999999999999999999 EUR",
		"18446744073709551616 JPY", strings.Repeat("9", 9999) + " EUR",
	} {
		got, err := domain.ParseMoney(text)
		if !errors.Is(err, domain.ErrAmountOverflow) || got != (domain.Money{}) {
			t.Errorf("%.40q: got %+v, %v, want an overflow", text, got, err)
		}
	}
}

func TestSumsOfMoneyAreExactOrRefused(t *testing.T) {
	minor := rapid.OneOf(rapid.Int64(), rapid.SampledFrom([]int64{0, 1, -1, math.MaxInt64, math.MinInt64, math.MaxInt64 / 2, math.MinInt64 + 1}))
	rapid.Check(t, func(t *rapid.T) {
		a, b := minor.Draw(t, "a"), minor.Draw(t, "b")
		money := domain.Money{Currency: "EUR", Minor: a}
		check := func(name string, got domain.Money, err error, want *big.Int) {
			switch {
			case !want.IsInt64() && !errors.Is(err, domain.ErrAmountOverflow):
				t.Fatalf("%d %s %d: got %+v, %v, want an overflow", a, name, b, got, err)
			case want.IsInt64() && (err != nil || got != domain.Money{Currency: "EUR", Minor: want.Int64()}):
				t.Fatalf("%d %s %d: got %+v, %v, want %v", a, name, b, got, err, want)
			}
		}
		sum, err := money.Add(domain.Money{Currency: "EUR", Minor: b})
		check("+", sum, err, new(big.Int).Add(big.NewInt(a), big.NewInt(b)))
		product, err := money.Times(b)
		check("×", product, err, new(big.Int).Mul(big.NewInt(a), big.NewInt(b)))
		if sum, err := money.Add(domain.Money{Currency: "JPY", Minor: b}); !errors.Is(err, domain.ErrMixedCurrencies) {
			t.Fatalf("EUR + JPY: got %+v, %v", sum, err)
		}
	})
}

func FuzzParseMoney(f *testing.F) {
	for _, text := range []string{"12.99 EUR", "-0.01 EUR", "1299 JPY", "1.299 KWD", "0 EUR", "007.00 EUR", "92233720368547758.08 EUR", "12.9 EUR", "", " "} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		money, err := domain.ParseMoney(text)
		if err != nil {
			var refusal domain.Refusal
			if !errors.As(err, &refusal) || money != (domain.Money{}) {
				t.Fatalf("got %+v, %v", money, err)
			}
			return
		}
		if again, err := domain.ParseMoney(money.String()); err != nil || again != money {
			t.Fatalf("%q is %+v, written %q, which is %+v, %v", text, money, money, again, err)
		}
	})
}
