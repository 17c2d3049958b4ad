package domain

import (
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// Limits of what a command may ask for.
const (
	// LinesMax is the largest number of lines of an order.
	LinesMax = 100
	// LineUnitsMax is the largest number of units of one line.
	LineUnitsMax = 1_000_000
	// ReceiveUnitsMax is the largest number of units received at once.
	ReceiveUnitsMax = 1_000_000_000
	// PriceMinorMax is the highest price of one unit, in minor units.
	PriceMinorMax = 1_000_000_000_000
	// NameLenMax is the longest SKU or user id, in characters.
	NameLenMax = 64
	// TitleBytesMax is the longest title.
	TitleBytesMax = 200
	// ReasonBytesMax is the longest reason of a cancellation.
	ReasonBytesMax = 200
	// SubjectBytesMax is the longest name of whoever asked.
	SubjectBytesMax = 200
	// SealedNoteBytesMax is the longest sealed note of a merchant: 1,000 bytes of note and what sealing adds.
	SealedNoteBytesMax = 2048
	// SealedPersonalBytesMax is the longest sealed text of an order: a note, an address and a contact, each as long as it may be,
	// and what sealing adds.
	SealedPersonalBytesMax = 4096
)

// Decide turns a command into events, given the lane's state and log time. No events and no error means that there is
// nothing left to do: the same command was decided before. The error is a Refusal, a *GrantOutOfOrderError, a
// *ReturnOutOfOrderError or a *KeyErasedError.
//
// Every event that Decide returns keeps every account of the lane within I3 and every order within I4; Decide panics
// rather than break them.
func Decide(s State, c Command, at time.Time) ([]Event, error) {
	switch c := c.(type) {
	case PlaceOrder:
		return c.decide(s, at)
	case PutProduct:
		return c.decide(s)
	case ReceiveStock:
		return c.decide(s)
	case PreheatStock:
		return c.decide(s)
	case GrantStock:
		return c.decide(s)
	case AllotStock:
		return c.decide(s)
	case PutCampaign:
		return c.decide(s)
	case PutCoupon:
		return c.decide(s)
	case ReturnStock:
		return c.decide(s)
	case ReclaimStock:
		return c.decide(s)
	case CancelOrder, ExpireOrder, StartPayment, CapturePayment, VoidPayment, RecordPaymentResult, RecordStrayPayment, RefundPayment,
		RecordRefundResult, ShipItems, ConfirmDelivery, RequestReturn, ReceiveReturn, AddNote, AwardPoints, TakeBackPoints:
		events, err := decideLife(s, c, at)
		assertLife(s, events, at)
		return events, err
	case EraseUser:
		return c.decide(s)
	case PutWebhookEndpoint:
		return c.decide(s)
	case DeleteWebhookEndpoint:
		return c.decide()
	}
	panic(fmt.Sprintf("domain: bug: unknown command %T", c))
}

// decideLife decides a command to an order that was placed.
func decideLife(s State, c Command, at time.Time) ([]Event, error) {
	switch c := c.(type) {
	case CancelOrder:
		return c.decide(s)
	case ExpireOrder:
		return c.decide(s, at)
	case StartPayment:
		return c.decide(s, at)
	case CapturePayment:
		return c.decide(s)
	case VoidPayment:
		return c.decide(s)
	case RecordPaymentResult:
		return c.decide(s)
	case RecordStrayPayment:
		return c.decide(s)
	case RefundPayment:
		return c.decide(s)
	case RecordRefundResult:
		return c.decide(s)
	case ShipItems:
		return c.decide(s)
	case ConfirmDelivery:
		return c.decide(s)
	case RequestReturn:
		return c.decide(s)
	case ReceiveReturn:
		return c.decide(s)
	case AddNote:
		return c.decide(s)
	case AwardPoints:
		return c.decide(s)
	case TakeBackPoints:
		return c.decide(s)
	case PlaceOrder, PutProduct, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock, EraseUser, PutCampaign, PutCoupon,
		PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	panic(fmt.Sprintf("domain: bug: %T is not of an order that was placed", c))
}

func (c *PlaceOrder) decide(s State, at time.Time) ([]Event, error) {
	if _, placed := s.Order(c.OrderID); placed {
		return nil, nil // Same command again: nothing to say.
	}
	if err := c.check(at); err != nil {
		return nil, err
	}
	if len(c.SealedPersonal) > 0 && s.KeyErased(c.UserID, c.SealKey) {
		return nil, &KeyErasedError{UserID: c.UserID}
	}
	placed := OrderPlaced{OrderID: c.OrderID, UserID: c.UserID, PayBy: c.PayBy, SealedPersonal: c.SealedPersonal}
	var campaign Campaign
	if c.CampaignID != "" {
		var err error
		if campaign, err = c.campaign(s, at); err != nil {
			return nil, err
		}
		placed.Pool = campaign.Pool
	}
	placed.Lines = make([]Line, len(c.Lines))
	taxed := false
	var events []Event // Grants of the home lane to itself come before the order that needs them.
	var moving *StockMovingError
	for i := range c.Lines {
		want := &c.Lines[i]
		product, known := s.Product(want.SKU)
		if !known {
			return nil, &UnknownProductError{SKU: want.SKU}
		}
		if placed.Pool != "" {
			product.Price = campaign.Price
		}
		amount, err := product.Price.Times(want.Units)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			placed.Total = amount
		} else if placed.Total, err = placed.Total.Add(amount); err != nil {
			return nil, err
		}
		placed.Lines[i] = Line{SKU: want.SKU, Units: want.Units, Title: product.Title, PriceMinor: product.Price.Minor, Tax: product.Tax}
		taxed = taxed || product.Tax.RateBps != 0
		covering, err := takeUnits(s, placed.stockKey(i), want.Units)
		switch {
		case err == nil:
			events = append(events, covering...)
		case errors.Is(err, ErrStockMoving):
			moving = movingFirst(moving, err) // Unless another line is sold out.
		default:
			return nil, err
		}
	}
	var discountMinor int64
	if c.CouponCode != "" {
		discount, covering, err := c.redeem(s, at, &placed)
		switch {
		case err == nil:
			events = append(events, covering...)
		case errors.Is(err, ErrStockMoving):
			moving = movingFirst(moving, err)
		default:
			return nil, err
		}
		discountMinor = discount
	}
	if moving != nil {
		moving.Pledges = placed.pledges(s, moving.SKU)
		return nil, moving
	}
	if taxed || discountMinor != 0 {
		var err error
		if placed.Total, err = PriceLines(placed.Total.Currency, placed.Lines, discountMinor); err != nil {
			return nil, err
		}
	}
	return append(events, placed), nil
}

// check refuses what no state could make valid.
func (c *PlaceOrder) check(at time.Time) error {
	switch {
	case c.OrderID.IsZero():
		return &InvalidArgumentError{Argument: "order_id", Problem: "it is zero"}
	case !validName(c.UserID):
		return &InvalidArgumentError{Argument: "user_id", Problem: nameProblem}
	case len(c.Lines) == 0 || len(c.Lines) > LinesMax:
		return &InvalidArgumentError{Argument: "lines", Problem: fmt.Sprintf("there are %d, want 1 to %d", len(c.Lines), LinesMax)}
	case len(c.SealedPersonal) > SealedPersonalBytesMax:
		return &InvalidArgumentError{Argument: "sealed_personal", Problem: fmt.Sprintf("it has %d bytes, want at most %d", len(c.SealedPersonal), SealedPersonalBytesMax)}
	case len(c.SealedPersonal) > 0 && c.SealKey == 0:
		return &InvalidArgumentError{Argument: "seal_key", Problem: "it is zero"}
	case !c.PayBy.After(at):
		return &InvalidArgumentError{Argument: "pay_by", Problem: "it has passed"}
	case c.CampaignID != "" && !validName(c.CampaignID):
		return &InvalidArgumentError{Argument: "campaign_id", Problem: nameProblem}
	case c.CampaignID != "" && len(c.Lines) != 1:
		return &InvalidArgumentError{Argument: "lines", Problem: fmt.Sprintf("there are %d, a campaign's order has one, of its SKU", len(c.Lines))}
	case c.CouponCode != "" && !validName(c.CouponCode):
		return &InvalidArgumentError{Argument: "coupon_code", Problem: nameProblem}
	}
	for i := range c.Lines {
		if units := c.Lines[i].Units; units < 1 || units > LineUnitsMax {
			return &InvalidArgumentError{Argument: "lines[" + strconv.Itoa(i) + "].units", Problem: fmt.Sprintf("it is %d, want 1 to %d", units, LineUnitsMax)}
		}
		for j := range i { // LinesMax² / 2 comparisons at most; a map costs more for the usual line or two.
			if c.Lines[j].SKU == c.Lines[i].SKU {
				return &InvalidArgumentError{Argument: "lines[" + strconv.Itoa(i) + "].sku", Problem: clip(c.Lines[i].SKU) + " is in two lines"}
			}
		}
	}
	return nil
}

func (c PutProduct) decide(s State) ([]Event, error) {
	if !validName(c.SKU) {
		return nil, &InvalidArgumentError{Argument: "sku", Problem: nameProblem}
	}
	if c.Title == "" {
		return nil, &InvalidArgumentError{Argument: "title", Problem: "it is empty"}
	}
	if err := checkText("title", c.Title, TitleBytesMax); err != nil {
		return nil, err
	}
	if !validCurrency(c.Price.Currency) {
		return nil, &InvalidArgumentError{Argument: "price.currency", Problem: "it is not three upper-case letters"}
	}
	if c.Price.Minor < 0 || c.Price.Minor > PriceMinorMax {
		return nil, &InvalidArgumentError{Argument: "price.minor", Problem: fmt.Sprintf("it is %d, want 0 to %d", c.Price.Minor, PriceMinorMax)}
	}
	if err := c.Tax.check(); err != nil {
		return nil, err
	}
	if now, known := s.Product(c.SKU); known && now.Title == c.Title && now.Price == c.Price && now.Tax == c.Tax {
		return nil, nil // Same command again: nothing to say.
	}
	return []Event{ProductPut(c)}, nil
}

func (c EraseUser) decide(s State) ([]Event, error) {
	if !validName(c.UserID) {
		return nil, &InvalidArgumentError{Argument: "user_id", Problem: nameProblem}
	}
	if c.Key == 0 {
		return nil, &InvalidArgumentError{Argument: "key", Problem: "it is zero"}
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	if s.KeyErased(c.UserID, c.Key) {
		return nil, nil // Same command again: nothing to say.
	}
	return []Event{UserErased(c)}, nil
}

func assertAccount(err error, sku string) {
	if err != nil {
		panic(fmt.Sprintf("domain: bug: the events decided break the account of %s: %v", sku, err))
	}
}

const nameProblem = "it is not 1 to 64 characters of A-Z a-z 0-9 _ -"

// validName reports whether a SKU or a user id is 1 to NameLenMax characters of A-Z a-z 0-9 _ -.
func validName(name string) bool {
	if name == "" || len(name) > NameLenMax {
		return false
	}
	for i := range len(name) {
		switch b := name[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '_', b == '-':
		default:
			return false
		}
	}
	return true
}

func checkText(argument, text string, bytesMax int) error {
	if len(text) > bytesMax {
		return &InvalidArgumentError{Argument: argument, Problem: fmt.Sprintf("it has %d bytes, want at most %d", len(text), bytesMax)}
	}
	if !utf8.ValidString(text) {
		return &InvalidArgumentError{Argument: argument, Problem: "it is not UTF-8"}
	}
	return nil
}
