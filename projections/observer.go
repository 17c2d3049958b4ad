package projections

import (
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// An Observer is told what a runner changes, on the runner's goroutine: it does not block. It keeps copies of the views
// elsewhere, and knows from this which of them are no longer true.
type Observer interface {
	// Opened is called before anything else: the lane's views begin at a position.
	Opened(lane uint32, at eventstore.Position)
	// Forgetting is called when another generation of a view answers from now on: what was read as of a commit up to this number
	// may be another answer than the view has now. It may be called on another goroutine.
	Forgetting(lane uint32, upTo uint64)
	// Swapped is called after Forgetting when the other generation is whole. It may be called on another goroutine.
	Swapped(lane uint32)
	// Passing is called with each commit that is taken in, before Changing is called with what it changed.
	Passing(lane uint32, at eventstore.Position)
	// Changing is called before anybody can read the changes. Changes are the runner's again when it returns.
	Changing(changes *Changes)
	// Changed is called with the same changes when they can be read.
	Changed(changes *Changes)
}

// Changes are the keys of a lane's views that one batch changes. A key may be in a list more than once.
type Changes struct {
	Lane uint32
	// Position that the views have with these changes.
	Position eventstore.Position
	// Orders whose record grew.
	Orders []domain.OrderID
	// Users whose list of orders changed: an order came, or one ended.
	Users []string
	// StockKeys whose account in this lane changed: SKUs, and pools of campaigns and coupons.
	StockKeys []string
	// Campaigns says that one of the lane's campaigns changed. How much is left of it is its pool's account.
	Campaigns bool
	// Pools are those of campaigns whose tally in this lane changed.
	Pools []string
	// Erased are the users whose key was destroyed.
	Erased []string
}

// note adds what a commit's events change. Orders, stock keys and pools are added when the batch is written.
func (c *Changes) note(changes []change) {
	for i := range changes {
		event := changes[i].event
		switch changes[i].kind {
		case kindOrderPlaced, kindOrderCancelled, kindOrderExpired:
			c.Users = append(c.Users, event.UserID)
		case kindCampaignPut:
			c.Campaigns = true
		case kindUserErased:
			c.Erased = append(c.Erased, event.AggregateID)
		case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed,
			kindPoolFilled, kindPoolDrained, kindCouponPut, kindPaymentCaptured, kindReturnReceived, kindOrderChanged, kindWebhookEndpoint:
		}
	}
}

// reset forgets the changes and keeps the room that they took.
func (c *Changes) reset() {
	clear(c.Users)
	clear(c.StockKeys)
	clear(c.Pools)
	c.Orders, c.Users, c.StockKeys, c.Pools, c.Erased = nil, c.Users[:0], c.StockKeys[:0], c.Pools[:0], nil
	c.Campaigns = false
}
