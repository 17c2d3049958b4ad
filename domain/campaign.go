package domain

import (
	"cmp"
	"fmt"
	"time"
)

// A Campaign is the fold of its CampaignPut events. It sells one product at a price of its own, for a while, out of a pool
// of its own.
type Campaign struct {
	// Pool is the stock key of its pool, SKU@CAMPAIGN, and names the campaign: one id may be of several products.
	Pool                        string
	Price                       Money
	OpensAt, ClosesAt           time.Time
	UserUnitsMax, OrderUnitsMax int64
	Units                       int64
	// UpdatedAt is the log time of the newest change.
	UpdatedAt time.Time
}

// ID returns the campaign's identifier.
func (c *Campaign) ID() string { return CampaignOf(c.Pool) }

// SKU returns the product that it sells.
func (c *Campaign) SKU() string { return HomeKey(c.Pool) }

// PutCampaign creates a campaign or changes it, and moves units between the SKU's account and the campaign's pool. The SKU's
// home lane decides it.
type PutCampaign struct {
	CampaignID string
	SKU        string
	// Price of one unit.
	Price Money
	// OpensAt and ClosesAt are log times: orders are taken from the first on, before the second.
	OpensAt, ClosesAt time.Time
	// UserUnitsMax is how many units one user may hold over all orders, OrderUnitsMax how many one order may; 0 for no
	// limit.
	UserUnitsMax, OrderUnitsMax int64
	// Units of its pool.
	Units int64
}

// LimitMax is the largest limit of a campaign or a coupon.
const LimitMax = 1_000_000_000

// CampaignPut says that a campaign was created or changed. What it did to the pool is said by the events that follow.
type CampaignPut struct {
	// Pool is the stock key of its pool, SKU@CAMPAIGN.
	Pool                        string
	Price                       Money
	OpensAt, ClosesAt           time.Time
	UserUnitsMax, OrderUnitsMax int64
	Units                       int64
}

// PoolFilled says that units left the SKU's central account for the central account of a campaign's pool.
type PoolFilled struct {
	// Pool is the stock key of the pool, SKU@CAMPAIGN.
	Pool  string
	Units int64
}

// PoolDrained says that units left the central account of a campaign's pool for the SKU's.
type PoolDrained struct {
	// Pool is the stock key of the pool, SKU@CAMPAIGN.
	Pool  string
	Units int64
}

// Put returns the event that says the campaign as it is.
func (c Campaign) Put() CampaignPut {
	return CampaignPut{
		Pool: c.Pool, Price: c.Price, OpensAt: c.OpensAt, ClosesAt: c.ClosesAt,
		UserUnitsMax: c.UserUnitsMax, OrderUnitsMax: c.OrderUnitsMax, Units: c.Units,
	}
}

// Evolve returns the campaign after one more of its events, committed at log time at. Other events leave it as it is.
// REQUIRES: a campaign's event is of this campaign.
func (c Campaign) Evolve(e Event, at time.Time) Campaign {
	if e, ok := e.(CampaignPut); ok {
		return Campaign{
			Pool: e.Pool, Price: e.Price, OpensAt: e.OpensAt, ClosesAt: e.ClosesAt,
			UserUnitsMax: e.UserUnitsMax, OrderUnitsMax: e.OrderUnitsMax, Units: e.Units, UpdatedAt: at,
		}
	}
	return c
}

func (c PutCampaign) decide(s State) ([]Event, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	if _, known := s.Product(c.SKU); !known {
		return nil, &UnknownProductError{SKU: c.SKU}
	}
	put := CampaignPut{
		Pool: CampaignPool(c.SKU, c.CampaignID), Price: c.Price, OpensAt: asStored(c.OpensAt), ClosesAt: asStored(c.ClosesAt),
		UserUnitsMax: c.UserUnitsMax, OrderUnitsMax: c.OrderUnitsMax, Units: c.Units,
	}
	if now, known := s.Campaign(put.Pool); known && now.Evolve(put, now.UpdatedAt) == now {
		return nil, nil // Same command again: nothing to say.
	}
	moved, err := movePool(s, put.Pool, c.Units)
	if err != nil {
		return nil, err
	}
	return append([]Event{put}, moved...), nil
}

// check refuses what no state could make valid.
func (c *PutCampaign) check() error {
	switch {
	case !validName(c.CampaignID):
		return &InvalidArgumentError{Argument: "campaign_id", Problem: nameProblem}
	case !validName(c.SKU):
		return &InvalidArgumentError{Argument: "sku", Problem: nameProblem}
	case !validCurrency(c.Price.Currency):
		return &InvalidArgumentError{Argument: "price.currency", Problem: "it is not three upper-case letters"}
	case c.Price.Minor < 0 || c.Price.Minor > PriceMinorMax:
		return &InvalidArgumentError{Argument: "price.minor", Problem: fmt.Sprintf("it is %d, want 0 to %d", c.Price.Minor, PriceMinorMax)}
	case !validTime(c.OpensAt):
		return &InvalidArgumentError{Argument: "opens_at", Problem: timeProblem}
	case !validTime(c.ClosesAt):
		return &InvalidArgumentError{Argument: "closes_at", Problem: timeProblem}
	case !c.OpensAt.Before(c.ClosesAt):
		return &InvalidArgumentError{Argument: "closes_at", Problem: "it is not after opens_at"}
	}
	return cmp.Or(
		checkLimit("user_units_max", c.UserUnitsMax, LimitMax), checkLimit("order_units_max", c.OrderUnitsMax, LimitMax),
		checkLimit("units", c.Units, ReceiveUnitsMax),
	)
}

// timeMax is the end of the times that a campaign or a coupon may have: stored times count nanoseconds in 64 bits.
var timeMax = time.Unix(9_000_000_000, 0)

const timeProblem = "it is not a time from 1970-01-01 to 2255-03-14"

func validTime(t time.Time) bool { return t.Unix() >= 0 && t.Before(timeMax) && t.UnixNano() > 0 }

// asStored returns a time in the form that it has when it was stored and read again, so that == compares.
func asStored(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.Unix(0, t.UnixNano()).UTC()
}

func checkLimit(argument string, limit, limitMax int64) error {
	if limit < 0 || limit > limitMax {
		return &InvalidArgumentError{Argument: argument, Problem: fmt.Sprintf("it is %d, want 0 to %d", limit, limitMax)}
	}
	return nil
}

// campaign returns the campaign that an order is placed at, unless one of its rules says no. Stock comes after.
func (c *PlaceOrder) campaign(s State, at time.Time) (Campaign, error) {
	sku, units := c.Lines[0].SKU, c.Lines[0].Units
	pool := CampaignPool(sku, c.CampaignID)
	campaign, known := s.Campaign(pool)
	switch {
	case !known:
		return Campaign{}, &CampaignNotFoundError{CampaignID: c.CampaignID, SKU: sku}
	case at.Before(campaign.OpensAt):
		return Campaign{}, &CampaignNotOpenError{CampaignID: c.CampaignID, OpensAt: campaign.OpensAt, OpensIn: campaign.OpensAt.Sub(at)}
	case !at.Before(campaign.ClosesAt):
		return Campaign{}, &CampaignClosedError{CampaignID: c.CampaignID, ClosedAt: campaign.ClosesAt}
	case campaign.OrderUnitsMax > 0 && units > campaign.OrderUnitsMax:
		return Campaign{}, &CampaignMaxPerOrderError{CampaignID: c.CampaignID, Limit: campaign.OrderUnitsMax, Want: units}
	}
	if campaign.UserUnitsMax > 0 {
		already := s.Used(Use{Of: pool, UserID: c.UserID})
		if units > campaign.UserUnitsMax-already {
			return Campaign{}, &CampaignLimitError{CampaignID: c.CampaignID, Limit: campaign.UserUnitsMax, Already: already, Want: units}
		}
	}
	return campaign, nil
}
