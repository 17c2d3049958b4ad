package domain

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
)

// Prices of an order, in this order: a line's amount is price × units; the order's discount is split over the lines by
// largest remainder; tax is counted per line on what is left of it. Everything is in whole minor units.

// RateBpsMax is 100 % in basis points: the highest tax rate, and the largest share of a coupon.
const RateBpsMax = 10_000

// A Tax is what a product is taxed with. The zero Tax is none.
type Tax struct {
	// RateBps is the rate in basis points: 1900 is 19 %.
	RateBps int64
	// Included says that the price holds the tax already; otherwise it comes on top.
	Included bool
}

// Of returns the tax on an amount in minor units, at least 0, rounded half up: amount × rate / (1 + rate) when it is
// included, amount × rate when it comes on top.
func (t Tax) Of(amountMinor int64) int64 {
	if t.Included {
		return shareHalfUp(amountMinor, t.RateBps, RateBpsMax+t.RateBps)
	}
	return shareHalfUp(amountMinor, t.RateBps, RateBpsMax)
}

// Amounts are the sums of an order's lines.
type Amounts struct {
	// Subtotal is the lines before discounts, Discount what was taken off, Tax what the rest is taxed with, whether it
	// is included or not.
	Subtotal, Discount, Tax Money
}

// Amounts returns the sums of the order's lines. An order that was stored before there were discounts and taxes has none.
func (o *Order) Amounts() Amounts {
	currency := o.Total.Currency
	a := Amounts{Subtotal: Money{Currency: currency}, Discount: Money{Currency: currency}, Tax: Money{Currency: currency}}
	for i := range o.Lines {
		line := &o.Lines[i]
		a.Subtotal.Minor += line.PriceMinor * line.Units
		a.Discount.Minor += line.DiscountMinor
		a.Tax.Minor += line.TaxMinor
	}
	return a
}

// Payable returns what is to be paid for the line, in minor units: its amount less its discount, with the tax that comes
// on top. The lines' sum is the order's total.
func (l *Line) Payable() int64 {
	payable := l.PriceMinor*l.Units - l.DiscountMinor
	if !l.Tax.Included {
		payable += l.TaxMinor
	}
	return payable
}

// PriceLines takes a discount off lines and taxes them, in place, and returns what is to be paid. It returns an
// *AmountOverflowError if an amount does not fit.
// REQUIRES: every line's price × units fits, and so does their sum, which is at least the discount.
func PriceLines(currency string, lines []Line, discountMinor int64) (Money, error) {
	SplitDiscount(lines, discountMinor)
	total := Money{Currency: currency}
	for i := range lines {
		line := &lines[i]
		due := Money{Currency: currency, Minor: line.PriceMinor*line.Units - line.DiscountMinor}
		line.TaxMinor = line.Tax.Of(due.Minor)
		var err error
		if !line.Tax.Included {
			if due, err = due.Add(Money{Currency: currency, Minor: line.TaxMinor}); err != nil {
				return Money{}, err
			}
		}
		if total, err = total.Add(due); err != nil {
			return Money{}, err
		}
	}
	return total, nil
}

// SplitDiscount gives each line its part of a discount, in place: its exact share rounded down, and one minor unit more for
// those whose share lost most by that, until nothing is left over. Of equal losses the larger amount comes first, then
// the lesser SKU, so that the order of the lines does not matter. No part is more than its line's amount.
// REQUIRES: each SKU is in one line; 0 ≤ discount ≤ the sum of the lines' amounts, which fits.
func SplitDiscount(lines []Line, discountMinor int64) {
	var sum int64
	for i := range lines {
		lines[i].DiscountMinor = 0
		sum += lines[i].PriceMinor * lines[i].Units
	}
	assert(discountMinor >= 0 && discountMinor <= sum, "split a discount of %d over %d", discountMinor, sum)
	if discountMinor == 0 {
		return
	}
	type share struct {
		line         *Line
		amount, lost uint64
	}
	shares := make([]share, len(lines))
	left := discountMinor
	for i := range lines {
		amount := uint64(lines[i].PriceMinor * lines[i].Units)
		hi, lo := bits.Mul64(uint64(discountMinor), amount)
		part, lost := bits.Div64(hi, lo, uint64(sum)) // It fits: the discount is at most the sum.
		lines[i].DiscountMinor = int64(part)
		left -= int64(part)
		shares[i] = share{line: &lines[i], amount: amount, lost: lost}
	}
	slices.SortFunc(shares, func(a, b share) int {
		return cmp.Or(cmp.Compare(b.lost, a.lost), cmp.Compare(b.amount, a.amount), cmp.Compare(a.line.SKU, b.line.SKU))
	})
	for i := range left { // Fewer than there are lines that lost something.
		assert(shares[i].lost > 0, "a discount of %d over %d leaves %d", discountMinor, sum, left)
		shares[i].line.DiscountMinor++
	}
}

// shareHalfUp returns amount × part / whole, rounded half up. REQUIRES: amount ≥ 0, 0 ≤ part ≤ whole, whole > 0.
func shareHalfUp(amount, part, whole int64) int64 {
	hi, lo := bits.Mul64(uint64(amount), uint64(part))
	share, rest := bits.Div64(hi, lo, uint64(whole)) // It fits: the part is at most the whole.
	if rest >= uint64(whole)-rest {
		share++ // Not past the amount: where part = whole there is no rest.
	}
	return int64(share)
}

func (t Tax) check() error {
	if t.RateBps < 0 || t.RateBps > RateBpsMax {
		return &InvalidArgumentError{Argument: "tax_rate_bps", Problem: fmt.Sprintf("it is %d, want 0 to %d", t.RateBps, RateBpsMax)}
	}
	return nil
}
