// Package feed tells a shop's own services what happened. Public makes the public event of one of the log, which is a message of
// its own and never the stored one; a Reactor publishes them on the stream WEIR-EVENTS.
package feed

import (
	"bytes"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/domain"
	feedv1 "github.com/weirhq/weir/proto/weir/feed/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// Public returns the public event of an event of the log, or false when it is none of the public's business.
//
// This is the table of what is public. Every event of the domain has its row: a test reads the domain's source for that, and the
// linter checks that the switch is whole. What a person wrote, and who it was, stays inside.
func Public(e reactors.Event) (*feedv1.Event, bool) {
	p := &feedv1.Event{Id: e.ID, Type: e.Type, Time: timestamppb.New(e.At), Partition: e.Partition}
	if id, ok := domain.OrderOf(e.Fact); ok {
		p.OrderId = id.String()
	}
	switch f := e.Fact.(type) {
	case domain.OrderPlaced:
		p.Fact = &feedv1.Event_OrderPlaced{OrderPlaced: &feedv1.OrderPlaced{Lines: lines(f), Total: money(f.Total), PayBy: timestamppb.New(f.PayBy)}}
	case domain.OrderCancelled:
		p.Fact = &feedv1.Event_OrderCancelled{OrderCancelled: &feedv1.OrderCancelled{Released: units(f.Released)}}
	case domain.OrderExpired:
		p.Fact = &feedv1.Event_OrderExpired{OrderExpired: &feedv1.OrderExpired{Released: units(f.Released)}}
	case domain.ProductPut:
		p.Fact = &feedv1.Event_ProductPut{ProductPut: &feedv1.ProductPut{Sku: f.SKU, Title: f.Title, Price: money(f.Price)}}
	case domain.StockReceived:
		if domain.IsCouponPool(f.SKU) { // Redemptions, not units.
			return nil, false
		}
		p.Fact = &feedv1.Event_StockReceived{StockReceived: &feedv1.StockReceived{Sku: f.SKU, Quantity: f.Units, ReceivedTotal: f.ReceivedTotal}}
	case domain.PaymentAuthorized:
		p.Fact = &feedv1.Event_PaymentAuthorized{PaymentAuthorized: &feedv1.PaymentAuthorized{PaymentId: f.PaymentID, Amount: money(f.Amount)}}
	case domain.PaymentCaptured:
		p.Fact = &feedv1.Event_PaymentCaptured{PaymentCaptured: &feedv1.PaymentCaptured{PaymentId: f.PaymentID, Amount: money(f.Amount)}}
	case domain.PaymentDeclined:
		p.Fact = &feedv1.Event_PaymentDeclined{PaymentDeclined: &feedv1.PaymentDeclined{PaymentId: f.PaymentID, Code: f.Code}}
	case domain.PaymentVoided:
		p.Fact = &feedv1.Event_PaymentVoided{PaymentVoided: &feedv1.PaymentVoided{PaymentId: f.PaymentID}}
	case domain.PaymentRefunded:
		p.Fact = &feedv1.Event_PaymentRefunded{PaymentRefunded: &feedv1.PaymentRefunded{RefundId: f.RefundID, Amount: money(f.Amount)}}
	case domain.RefundFailed:
		p.Fact = &feedv1.Event_RefundFailed{RefundFailed: &feedv1.RefundFailed{RefundId: f.RefundID, Code: f.Code}}
	case domain.StrayPaymentFound:
		p.Fact = &feedv1.Event_StrayPaymentFound{StrayPaymentFound: &feedv1.StrayPaymentFound{PaymentId: f.PaymentID, Amount: money(f.Amount)}}
	case domain.ItemsShipped:
		p.Fact = &feedv1.Event_ItemsShipped{ItemsShipped: &feedv1.ItemsShipped{ShipmentId: f.ShipmentID, Lines: units(f.Lines)}}
	case domain.ShipmentDelivered:
		p.Fact = &feedv1.Event_ShipmentDelivered{ShipmentDelivered: &feedv1.ShipmentDelivered{ShipmentId: f.ShipmentID}}
	case domain.ReturnRequested:
		p.Fact = &feedv1.Event_ReturnRequested{ReturnRequested: &feedv1.ReturnRequested{ReturnId: f.ReturnID, Lines: units(f.Lines)}}
	case domain.ReturnReceived:
		p.Fact = &feedv1.Event_ReturnReceived{ReturnReceived: &feedv1.ReturnReceived{ReturnId: f.ReturnID, Restocked: units(f.Restocked)}}
	case domain.PointsAwarded:
		p.Fact = &feedv1.Event_PointsAwarded{PointsAwarded: &feedv1.PointsAwarded{PaymentId: f.PaymentID, Points: f.Points}}
	case domain.PointsTakenBack:
		p.Fact = &feedv1.Event_PointsTakenBack{PointsTakenBack: &feedv1.PointsTakenBack{RefundId: f.RefundID, Points: f.Points}}

	// Steps on the way to a payment or a refund; what comes of them is public.
	case domain.PaymentStarted, domain.PaymentCaptureRequested, domain.PaymentBecameUnknown, domain.PaymentVoidRequested, domain.RefundStarted:
		return nil, false
	// Where units lie between the lanes is no business of others, nor is what of them is set aside for a campaign.
	case domain.StockGranted, domain.StockAllotted, domain.StockReturned, domain.StockReclaimed, domain.PoolFilled, domain.PoolDrained:
		return nil, false
	// Terms that change nothing yet. A campaign can be asked for; a coupon's code is worth money to whoever reads it.
	case domain.CampaignPut, domain.CouponPut:
		return nil, false
	// Where these very events are delivered to.
	case domain.WebhookEndpointPut, domain.WebhookEndpointDeleted:
		return nil, false
	// It names a person; who has to forget as well is told by the operator.
	case domain.UserErased:
		return nil, false
	// Nothing happened.
	case domain.RequestAnswered:
		return nil, false
	// Written by a person, for the merchant.
	case domain.NoteAdded:
		return nil, false
	}
	if p.Fact == nil {
		panic(fmt.Sprintf("feed: bug: event %T has no row in the table of what is public", e.Fact))
	}
	return p, true
}

// IsPublic reports whether an event has a public event.
func IsPublic(fact domain.Event) bool {
	_, public := Public(reactors.Event{Fact: fact})
	return public
}

// Types returns the names of the types of public events.
func Types() []string {
	fields := (&feedv1.Event{}).ProtoReflect().Descriptor().Oneofs().ByName("fact").Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = string(fields.Get(i).Message().Name())
	}
	return names
}

// JSON writes a public event down, without blanks.
func JSON(p *feedv1.Event) ([]byte, error) {
	data, err := protojson.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode public event %s: %w", p.GetId(), err)
	}
	// protojson varies its blanks on purpose; a repeated event is the same bytes here.
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return nil, fmt.Errorf("encode public event %s: %w", p.GetId(), err)
	}
	return compact.Bytes(), nil
}

func money(m domain.Money) *typev1.Money {
	return &typev1.Money{CurrencyCode: m.Currency, Units: m.Minor}
}

func lines(placed domain.OrderPlaced) []*feedv1.OrderLine {
	all := make([]*feedv1.OrderLine, len(placed.Lines))
	for i, line := range placed.Lines {
		all[i] = &feedv1.OrderLine{
			Sku: line.SKU, Quantity: line.Units, UnitPrice: money(domain.Money{Currency: placed.Total.Currency, Minor: line.PriceMinor}),
		}
	}
	return all
}

// units writes units down by SKU, whichever account they are in; a coupon's redemptions are no units.
func units(released []domain.Release) []*feedv1.Units {
	all := make([]*feedv1.Units, 0, len(released))
	for _, r := range released {
		if !domain.IsCouponPool(r.SKU) {
			all = append(all, &feedv1.Units{Sku: domain.HomeKey(r.SKU), Quantity: r.Units})
		}
	}
	return all
}
