package projections

import (
	"fmt"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// kind is what an event is about. Projections switch on it.
type kind uint8

// The kinds of events: one for each type, save those that no view tells apart.
const (
	kindLaneOpened kind = iota // A fence of the log's own: no view cares.
	kindOrderPlaced
	kindOrderCancelled
	kindOrderExpired
	kindProductPut
	kindStockReceived
	kindStockGranted
	kindStockAllotted
	kindStockReturned
	kindStockReclaimed
	kindCampaignPut
	kindPoolFilled
	kindPoolDrained
	kindCouponPut
	kindPaymentCaptured // Of an order's life, these two move units.
	kindReturnReceived
	kindOrderChanged    // Any other event of an order's life.
	kindUserErased      // No view holds what is erased in the clear, so none has to forget it; one lists who was.
	kindWebhookEndpoint // The reactor that delivers keeps endpoints.
	kindRequestAnswered // Nothing changed: the lanes' ledgers alone remember it.
)

// payloadVersion is the newest version of any event's payload that the views read.
const payloadVersion = 1

// A change is one event of the log as a projection sees it.
type change struct {
	kind  kind
	event *eventstore.Event
	// number and at are the commit's number and log time.
	number uint64
	at     time.Time
	// order is the id of the order, for the kinds that change one.
	order domain.OrderID
	// index of the event in its commit, from 0 on.
	index int
	// cause says why the envelope cannot be read; unknown, that kind means nothing because the type or version is not known.
	cause   error
	unknown bool
}

func (c *change) eventAt() EventAt { return EventAt{Commit: c.number, Event: uint32(c.index)} }

// changeOf reads the envelope of an event, as much of it as it can. A type or version that this program does not know is
// a *stored.UnknownEventError: a view that passed over it would not be the fold of the log (I6).
func changeOf(event *eventstore.Event, number uint64, at time.Time, lane uint32, topology eventstore.Topology) (change, error) {
	c := change{event: event, number: number, at: at}
	switch event.Type {
	case stored.TypeOrderPlaced:
		c.kind = kindOrderPlaced
	case stored.TypeOrderCancelled:
		c.kind = kindOrderCancelled
	case stored.TypeOrderExpired:
		c.kind = kindOrderExpired
	case stored.TypeProductPut:
		c.kind = kindProductPut
	case stored.TypeStockReceived:
		c.kind = kindStockReceived
	case stored.TypeStockGranted:
		c.kind = kindStockGranted
	case stored.TypeStockAllotted:
		c.kind = kindStockAllotted
	case stored.TypeStockReturned:
		c.kind = kindStockReturned
	case stored.TypeStockReclaimed:
		c.kind = kindStockReclaimed
	case stored.TypeCampaignPut:
		c.kind = kindCampaignPut
	case stored.TypePoolFilled:
		c.kind = kindPoolFilled
	case stored.TypePoolDrained:
		c.kind = kindPoolDrained
	case stored.TypeCouponPut:
		c.kind = kindCouponPut
	case stored.TypePaymentCaptured:
		c.kind = kindPaymentCaptured
	case stored.TypeReturnReceived:
		c.kind = kindReturnReceived
	case stored.TypePaymentStarted, stored.TypePaymentAuthorized, stored.TypePaymentCaptureRequested,
		stored.TypePaymentDeclined, stored.TypePaymentBecameUnknown, stored.TypePaymentVoidRequested,
		stored.TypePaymentVoided, stored.TypeRefundStarted, stored.TypePaymentRefunded, stored.TypeRefundFailed,
		stored.TypeStrayPaymentFound, stored.TypeItemsShipped, stored.TypeShipmentDelivered, stored.TypeReturnRequested,
		stored.TypeNoteAdded, stored.TypePointsAwarded, stored.TypePointsTakenBack:
		c.kind = kindOrderChanged
	case stored.TypeUserErased:
		c.kind = kindUserErased
	case stored.TypeWebhookEndpointPut, stored.TypeWebhookEndpointDeleted:
		c.kind = kindWebhookEndpoint
	case stored.TypeRequestAnswered:
		c.kind = kindRequestAnswered
	case eventstore.TypeLaneOpened:
		return c, nil
	default:
		c.unknown = true
	}
	newest := uint32(0)
	if !c.unknown && event.Version > payloadVersion {
		c.unknown, newest = true, payloadVersion
	}
	if c.unknown {
		if id, err := domain.ParseOrderID(event.AggregateID); err == nil && topology.LaneOf(id.Partition()) == lane {
			c.order = id // Who follows it is told that it is parked.
		}
		return c, &stored.UnknownEventError{Type: event.Type, Version: event.Version, Newest: newest}
	}
	if c.kind.isOrder() {
		id, err := domain.ParseOrderID(event.AggregateID)
		if err != nil {
			return c, err
		}
		if home := topology.LaneOf(id.Partition()); home != lane {
			return c, fmt.Errorf("order %s belongs to lane %d", event.AggregateID, home)
		}
		c.order = id
	}
	return c, nil
}

func (k kind) isOrder() bool {
	switch k {
	case kindOrderPlaced, kindOrderCancelled, kindOrderExpired, kindPaymentCaptured, kindReturnReceived, kindOrderChanged:
		return true
	case kindLaneOpened, kindProductPut, kindStockReceived, kindStockGranted, kindStockAllotted, kindStockReturned, kindStockReclaimed, kindUserErased,
		kindWebhookEndpoint, kindRequestAnswered:
	}
	return false
}
