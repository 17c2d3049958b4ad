// Package domain decides. Decide turns a command into events or a refusal, Evolve folds events into state; both are
// pure: no I/O, no clock, no randomness, no goroutine. Time and identifiers come in as values.
package domain

import "time"

// A Command is an order given to the domain. The set is closed.
//
//sumtype:decl
type Command interface{ isCommand() }

// PlaceOrder reserves units for a user and makes an order of them.
type PlaceOrder struct {
	OrderID OrderID
	UserID  string
	// Lines as asked for, each SKU once.
	Lines []LineRequest
	// SealedPersonal is what the order knows of a person, sealed under the user's key of the id SealKey; nil for nothing.
	SealedPersonal []byte
	SealKey        KeyID
	// PayBy is the log time at which the order expires unpaid.
	PayBy time.Time
	// CampaignID names the campaign at whose terms the order is placed; its one line is of the campaign's SKU. Empty for
	// none.
	CampaignID string
	// CouponCode names the coupon to redeem; empty for none.
	CouponCode string
}

// LineRequest asks for units of one product.
type LineRequest struct {
	SKU   string
	Units int64
}

// KeyID names a user's key, which lives outside the log; 0 names none. A user has one at a time; an erased one is never used
// again.
type KeyID uint64

// CancelOrder ends an order on request.
type CancelOrder struct {
	OrderID OrderID
	Reason  string
	// By is the subject who asked.
	By string
}

// ExpireOrder ends an order whose PayBy has passed.
type ExpireOrder struct {
	OrderID OrderID
	// Grace is how much longer an order has whose payment is under way.
	Grace time.Duration
}

// PutProduct creates a product or changes it.
type PutProduct struct {
	SKU   string
	Title string
	Price Money
	Tax   Tax
}

// EraseUser ends the use of a user's key: what is sealed under it is erased.
type EraseUser struct {
	UserID string
	Key    KeyID
	// By is the subject who asked.
	By string
}

func (PlaceOrder) isCommand()  {}
func (CancelOrder) isCommand() {}
func (ExpireOrder) isCommand() {}
func (PutProduct) isCommand()  {}
func (PutCampaign) isCommand() {}
func (PutCoupon) isCommand()   {}
func (EraseUser) isCommand()   {}

// An Event is a past fact. The set is closed; package stored writes events down.
//
//sumtype:decl
type Event interface{ isEvent() }

// OrderPlaced says that an order was placed and its units were taken from the lane's allotments.
type OrderPlaced struct {
	OrderID OrderID
	UserID  string
	Lines   []Line
	// Total is what is to be paid.
	Total Money
	PayBy time.Time
	// SealedNote is the note alone, as orders had it before they knew of more.
	SealedNote []byte
	// SealedPersonal is what the order knows of a person, sealed under the user's key.
	SealedPersonal []byte
	// Pool is the stock key that the units were taken of, a campaign's; empty when it is each line's SKU.
	Pool string
	// CouponCode is the coupon that was redeemed, empty for none. CouponPool is the stock key that a unit was taken of for
	// it, empty when its redemptions are not limited in all.
	CouponCode, CouponPool string
}

// Line is one line of an order, at the price that held when it was placed.
type Line struct {
	SKU   string
	Units int64
	Title string
	// PriceMinor is the price of one unit in minor units of the order's currency.
	PriceMinor int64
	// DiscountMinor is the line's part of the order's discount, TaxMinor the tax on the rest, in minor units.
	DiscountMinor, TaxMinor int64
	// Tax is what the line was taxed with.
	Tax Tax
}

// Release is units of one account or one SKU: what an ended order gave back, what was sold, shipped or returned.
type Release struct {
	// SKU is of a line that was shipped or returns; else it is the stock key of the account that the units are in.
	SKU   string
	Units int64
}

// OrderCancelled says that an order was ended on request; its units went back to the lane's allotments.
type OrderCancelled struct {
	OrderID  OrderID
	UserID   string
	Reason   string
	By       string
	Released []Release
	// Unsold are its units that were sold already; they went back as well.
	Unsold []Release
	// CouponCode is the coupon whose redemption was given back, empty for none.
	CouponCode string
}

// OrderExpired says that an order was not paid by its deadline; its units went back to the lane's allotments.
type OrderExpired struct {
	OrderID  OrderID
	UserID   string
	Released []Release
	// CouponCode is the coupon whose redemption was given back, empty for none.
	CouponCode string
}

// UserErased says that a user's key is destroyed: what was sealed under it is erased.
type UserErased struct {
	UserID string
	Key    KeyID
	By     string
}

// ProductPut says that a product was created or changed.
type ProductPut struct {
	SKU   string
	Title string
	Price Money
	Tax   Tax
}

// StockReceived says that units came in to the SKU's central account.
type StockReceived struct {
	SKU   string
	Units int64
	// ReceivedTotal counts the units ever received, these included.
	ReceivedTotal int64
}

// StockGranted says that units left the central account for a lane; until it takes them they are in transit.
type StockGranted struct {
	SKU    string
	ToLane uint32
	// GrantNumber counts from 1 per SKU and lane without a gap.
	GrantNumber uint64
	Units       int64
}

// StockAllotted says that the lane took a grant into its allotment.
type StockAllotted struct {
	SKU         string
	HomeLane    uint32
	GrantNumber uint64
	Units       int64
}

// StockReturned says that the lane gave idle units of its allotment back; until the home lane takes them they are in transit.
type StockReturned struct {
	SKU          string
	HomeLane     uint32
	ReturnNumber uint64
	Units        int64
}

// StockReclaimed says that the home lane took returned units back into the central account.
type StockReclaimed struct {
	SKU          string
	FromLane     uint32
	ReturnNumber uint64
	Units        int64
}

func (OrderPlaced) isEvent()    {}
func (OrderCancelled) isEvent() {}
func (OrderExpired) isEvent()   {}
func (ProductPut) isEvent()     {}
func (StockReceived) isEvent()  {}
func (StockGranted) isEvent()   {}
func (StockAllotted) isEvent()  {}
func (StockReturned) isEvent()  {}
func (StockReclaimed) isEvent() {}
func (CampaignPut) isEvent()    {}
func (PoolFilled) isEvent()     {}
func (PoolDrained) isEvent()    {}
func (CouponPut) isEvent()      {}
func (UserErased) isEvent()     {}

// State is what Decide may know: the lane's state, everything decided so far included.
type State interface {
	// Order returns the order, or false when the lane has none of that id.
	Order(id OrderID) (Order, bool)
	// Product returns the product, or false when there is none.
	Product(sku string) (Product, bool)
	// Stock returns this lane's account of the stock key; the zero Account when it has none.
	Stock(stockKey string) Account
	// Campaign returns the campaign that sells out of the pool, or false when there is none.
	Campaign(pool string) (Campaign, bool)
	// Coupon returns the coupon, or false when there is none.
	Coupon(code string) (Coupon, bool)
	// Used returns how much of something limited a user of this lane holds.
	Used(use Use) int64
	// KeyErased reports whether this key of the user was erased.
	KeyErased(userID string, key KeyID) bool
	// WebhookEndpoints returns how many endpoints there are, and whether this one is among them.
	WebhookEndpoints(id string) (count int, known bool)
	// Supply returns what this lane knows of units of the SKU that it does not have. It is asked for only when the lane
	// has too few.
	Supply(sku string) Supply
}
