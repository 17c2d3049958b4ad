package stripe

import (
	"fmt"
	"strings"

	stripe "github.com/stripe/stripe-go/v85"

	"github.com/weirhq/weir/domain"
)

// Stripe counts in the minor units of ISO 4217, but for these (https://docs.stripe.com/currencies).

// hundredths are currencies without minor units that Stripe counts in hundredths.
var hundredths = map[string]bool{"ISK": true, "UGX": true}

// wholes are currencies with hundredths that Stripe counts in whole units.
var wholes = map[string]bool{"MGA": true}

// tens are currencies with thousandths whose last digit must be 0.
var tens = map[string]bool{"BHD": true, "JOD": true, "KWD": true, "OMR": true, "TND": true}

// foreign are currencies that Stripe does not have, and that it would count otherwise if it had.
var foreign = map[string]bool{"CLF": true, "IQD": true, "LYD": true, "UYI": true, "UYW": true}

// amountMax is the largest amount that Stripe takes: eight digits.
const amountMax = 99_999_999

// toStripe returns an amount in Stripe's units, and its currency in Stripe's spelling.
func toStripe(m domain.Money) (amount int64, currency string, err error) {
	amount = m.Minor
	switch {
	case foreign[m.Currency]:
		return 0, "", fmt.Errorf("no payments in %s", m.Currency)
	case amount > amountMax:
		return 0, "", fmt.Errorf("%v is more than Stripe takes", m)
	case hundredths[m.Currency]:
		amount *= 100
	case wholes[m.Currency] && amount%100 != 0:
		return 0, "", fmt.Errorf("%v is not in whole units", m)
	case wholes[m.Currency]:
		amount /= 100
	case tens[m.Currency] && amount%10 != 0:
		return 0, "", fmt.Errorf("%v has a last digit that is not 0", m)
	}
	if amount > amountMax {
		return 0, "", fmt.Errorf("%v is more than Stripe takes", m)
	}
	return amount, strings.ToLower(m.Currency), nil
}

// fromStripe is the way back.
func fromStripe(amount int64, currency stripe.Currency) (domain.Money, error) {
	m := domain.Money{Currency: strings.ToUpper(string(currency)), Minor: amount}
	switch {
	case len(m.Currency) != 3:
		return domain.Money{}, fmt.Errorf("%.20q is no currency", currency)
	case hundredths[m.Currency] && amount%100 != 0:
		return domain.Money{}, fmt.Errorf("%d is no whole amount of %s", amount, m.Currency)
	case hundredths[m.Currency]:
		m.Minor /= 100
	case wholes[m.Currency]:
		return m.Times(100)
	}
	return m, nil
}
