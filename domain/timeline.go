package domain

import (
	"strconv"
	"time"
)

// An ActorKind says who did something.
type ActorKind uint8

// Who may have done something.
const (
	// ActorSystem: Weir itself, for example when a deadline passed.
	ActorSystem ActorKind = iota
	// ActorCustomer: the user whose order it is.
	ActorCustomer
	// ActorOperator: somebody else with a token that lets them.
	ActorOperator
	// ActorProvider: the provider of payments.
	ActorProvider
)

func (k ActorKind) String() string {
	return [...]string{"system", "customer", "operator", "provider"}[k]
}

// A Fact is one short thing to know about an entry of a timeline.
type Fact struct{ Name, Value string }

// A TimelineEntry says what happened to an order, when, and who did it.
type TimelineEntry struct {
	// Kind names it to programs, for example "payment_captured".
	Kind string
	At   time.Time
	// Actor did it; Subject says which customer or operator.
	Actor   ActorKind
	Subject string
	// Facts are short, and never personal.
	Facts []Fact
}

// TimelineNoteAdded is the kind of the entry that a note makes, which customers are not shown.
const TimelineNoteAdded = "note_added"

// Timeline returns what an event, committed at log time at, adds to its order's timeline; false for events of products and stock.
func Timeline(e Event, at time.Time) (TimelineEntry, bool) {
	entry := TimelineEntry{At: at}
	// by is somebody with a token; provider and system are Weir's own.
	by := func(kind, subject, userID string, facts ...Fact) {
		entry.Kind, entry.Subject, entry.Facts = kind, subject, facts
		switch subject {
		case "":
			entry.Actor = ActorSystem
		case userID:
			entry.Actor = ActorCustomer
		default:
			entry.Actor = ActorOperator
		}
	}
	provider := func(kind string, facts ...Fact) { entry.Kind, entry.Actor, entry.Facts = kind, ActorProvider, facts }
	system := func(kind string, facts ...Fact) { entry.Kind, entry.Actor, entry.Facts = kind, ActorSystem, facts }
	switch e := e.(type) {
	case OrderPlaced:
		by("placed", e.UserID, e.UserID, Fact{"total", e.Total.String()})
	case OrderCancelled:
		by("cancelled", e.By, e.UserID, Fact{"reason", e.Reason})
	case OrderExpired:
		system("expired")
	case PaymentStarted:
		by("payment_started", e.By, e.UserID, Fact{"payment_id", e.PaymentID}, Fact{"provider", e.Provider}, Fact{"amount", e.Amount.String()})
	case PaymentAuthorized:
		provider("payment_authorized", Fact{"payment_id", e.PaymentID}, Fact{"amount", e.Amount.String()})
	case PaymentCaptureRequested:
		by("payment_capture_requested", e.By, e.UserID, Fact{"payment_id", e.PaymentID}, Fact{"amount", e.Amount.String()})
	case PaymentCaptured:
		provider("payment_captured", Fact{"payment_id", e.PaymentID}, Fact{"amount", e.Amount.String()})
	case PaymentDeclined:
		provider("payment_declined", Fact{"payment_id", e.PaymentID}, Fact{"code", e.Code})
	case PaymentBecameUnknown:
		system("payment_unknown", Fact{"payment_id", e.PaymentID})
	case PaymentVoidRequested:
		by("payment_void_requested", e.By, e.UserID, Fact{"payment_id", e.PaymentID}, Fact{"why", e.Why})
	case PaymentVoided:
		provider("payment_voided", Fact{"payment_id", e.PaymentID})
	case RefundStarted:
		by("refund_started", e.By, e.UserID, Fact{"refund_id", e.RefundID}, Fact{"amount", e.Amount.String()}, Fact{"reason", e.Reason})
	case PaymentRefunded:
		provider("refunded", Fact{"refund_id", e.RefundID}, Fact{"amount", e.Amount.String()})
	case RefundFailed:
		provider("refund_failed", Fact{"refund_id", e.RefundID}, Fact{"code", e.Code})
	case StrayPaymentFound:
		system("stray_payment_found", Fact{"payment_id", e.PaymentID}, Fact{"amount", e.Amount.String()}, Fact{"why", e.Why})
	case ItemsShipped:
		by("items_shipped", e.By, e.UserID, Fact{"shipment_id", e.ShipmentID}, Fact{"units", allUnits(e.Lines)},
			Fact{"carrier", e.Carrier}, Fact{"tracking", e.Tracking})
	case ShipmentDelivered:
		by("shipment_delivered", e.By, e.UserID, Fact{"shipment_id", e.ShipmentID})
	case ReturnRequested:
		by("return_requested", e.By, e.UserID, Fact{"return_id", e.ReturnID}, Fact{"units", allUnits(e.Lines)}, Fact{"reason", e.Reason})
	case ReturnReceived:
		by("return_received", e.By, e.UserID, Fact{"return_id", e.ReturnID}, Fact{"restocked", allUnits(e.Restocked)})
	case NoteAdded:
		by(TimelineNoteAdded, e.By, e.UserID)
	case PointsAwarded:
		system("points_awarded", Fact{"payment_id", e.PaymentID}, Fact{"points", strconv.FormatInt(e.Points, 10)})
	case PointsTakenBack:
		system("points_taken_back", Fact{"refund_id", e.RefundID}, Fact{"points", strconv.FormatInt(e.Points, 10)})
	case ProductPut, StockReceived, StockGranted, StockAllotted, StockReturned, StockReclaimed, UserErased,
		CampaignPut, PoolFilled, PoolDrained, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted, RequestAnswered:
		return TimelineEntry{}, false
	}
	return entry, true
}

// allUnits counts the units of all lines, for people to read.
func allUnits(lines []Release) string {
	var units int64
	for i := range lines {
		units += lines[i].Units
	}
	return strconv.FormatInt(units, 10)
}
