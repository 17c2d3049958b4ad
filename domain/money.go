package domain

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// Money is an exact amount in one currency, in its minor units: 1299 is 12.99 EUR and 1299 JPY.
type Money struct {
	// Currency is an ISO 4217 code, three upper-case letters.
	Currency string
	// Minor is the amount in minor units.
	Minor int64
}

// minorDigitsDefault is how many decimal digits the minor unit of a currency has, unless minorDigits says otherwise.
const minorDigitsDefault = 2

// minorDigits are the exceptions of ISO 4217.
var minorDigits = map[string]int{
	"BIF": 0, "CLP": 0, "DJF": 0, "GNF": 0, "ISK": 0, "JPY": 0, "KMF": 0, "KRW": 0, "PYG": 0, "RWF": 0, "UGX": 0,
	"UYI": 0, "VND": 0, "VUV": 0, "XAF": 0, "XOF": 0, "XPF": 0,
	"BHD": 3, "IQD": 3, "JOD": 3, "KWD": 3, "LYD": 3, "OMR": 3, "TND": 3,
	"CLF": 4, "UYW": 4,
}

func minorDigitsOf(currency string) int {
	if digits, ok := minorDigits[currency]; ok {
		return digits
	}
	return minorDigitsDefault
}

// Add returns the sum of two amounts. It returns a *MixedCurrenciesError or an *AmountOverflowError if there is none.
func (m Money) Add(other Money) (Money, error) {
	if m.Currency != other.Currency {
		return Money{}, &MixedCurrenciesError{First: m.Currency, Other: other.Currency}
	}
	sum := m.Minor + other.Minor
	if (sum > m.Minor) != (other.Minor > 0) {
		return Money{}, &AmountOverflowError{What: fmt.Sprintf("%v + %v", m, other)}
	}
	return Money{Currency: m.Currency, Minor: sum}, nil
}

// Times returns the price of a number of units of which one costs m. It returns an *AmountOverflowError if the result
// does not fit.
func (m Money) Times(units int64) (Money, error) {
	hi, lo := bits.Mul64(magnitude(m.Minor), magnitude(units))
	limit := uint64(math.MaxInt64)
	negative := (m.Minor < 0) != (units < 0)
	if negative {
		limit++
	}
	if hi != 0 || lo > limit {
		return Money{}, &AmountOverflowError{What: fmt.Sprintf("%v × %d", m, units)}
	}
	if negative {
		lo = -lo
	}
	return Money{Currency: m.Currency, Minor: int64(lo)}, nil
}

func magnitude(v int64) uint64 {
	if v < 0 {
		return -uint64(v)
	}
	return uint64(v)
}

// String returns the amount in major units and the currency, for example "12.99 EUR" or "1299 JPY".
func (m Money) String() string {
	digits := minorDigitsOf(m.Currency)
	text := strconv.FormatUint(magnitude(m.Minor), 10)
	if digits > 0 {
		if missing := digits + 1 - len(text); missing > 0 {
			text = strings.Repeat("0", missing) + text
		}
		point := len(text) - digits
		text = text[:point] + "." + text[point:]
	}
	if m.Minor < 0 {
		text = "-" + text
	}
	return text + " " + m.Currency
}

// ParseMoney reads an amount in major units and its currency, for example "12.99 EUR", "12 EUR" or "1299 JPY". The
// fraction is either left out or has every digit of the currency. It returns an *InvalidMoneyError for anything else, and
// an *AmountOverflowError for an amount that does not fit.
func ParseMoney(text string) (Money, error) {
	invalid := func(problem string) (Money, error) {
		return Money{}, &InvalidMoneyError{Text: text, Problem: problem}
	}
	amount, currency, ok := strings.Cut(text, " ")
	if !ok {
		return invalid("want an amount, a space and a currency")
	}
	if !validCurrency(currency) {
		return invalid("the currency is not three upper-case letters")
	}
	amount, negative := strings.CutPrefix(amount, "-")
	whole, fraction, pointed := strings.Cut(amount, ".")
	digits := minorDigitsOf(currency)
	if pointed && (len(fraction) != digits || digits == 0) {
		return invalid(fmt.Sprintf("%s has %d digits after the point", currency, digits))
	}
	if whole == "" {
		return invalid("there is no digit before the point")
	}
	if !pointed {
		fraction = strings.Repeat("0", digits)
	}
	limit := uint64(math.MaxInt64)
	if negative {
		limit++
	}
	var minor uint64
	for _, part := range [...]string{whole, fraction} {
		for i := range len(part) {
			digit := uint64(part[i] - '0')
			if part[i] < '0' || part[i] > '9' {
				return invalid("the amount is not a decimal number")
			}
			if minor > (limit-digit)/10 {
				return Money{}, &AmountOverflowError{What: clip(text)}
			}
			minor = minor*10 + digit
		}
	}
	if negative {
		minor = -minor
	}
	return Money{Currency: currency, Minor: int64(minor)}, nil
}

func validCurrency(code string) bool {
	if len(code) != 3 {
		return false
	}
	for i := range len(code) {
		if code[i] < 'A' || code[i] > 'Z' {
			return false
		}
	}
	return true
}
