package domain

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"
	"time"
)

// Limits of what is said of shipments.
const (
	// CarrierBytesMax and TrackingBytesMax are the longest carrier and tracking number.
	CarrierBytesMax  = 100
	TrackingBytesMax = 100
)

// ShipItems records that units of a paid order left.
type ShipItems struct {
	OrderID OrderID
	// Number of the shipment, counted from 1; the lane fills in the next.
	Number int
	// Lines that left, each SKU once; none means all that is left.
	Lines             []LineRequest
	Carrier, Tracking string
	By                string
}

// ConfirmDelivery records that a shipment arrived.
type ConfirmDelivery struct {
	OrderID    OrderID
	ShipmentID string
	By         string
}

// RequestReturn announces that units come back.
type RequestReturn struct {
	OrderID OrderID
	// Number of the return, counted from 1; the lane fills in the next.
	Number int
	// Lines that come back, each SKU once; none means all that were shipped and are not on their way back.
	Lines  []LineRequest
	Reason string
	By     string
}

// ReceiveReturn records that a return came in; what was paid for its units is refunded.
type ReceiveReturn struct {
	OrderID  OrderID
	ReturnID string
	// Restock are its units that can be sold again, each SKU once; the others are lost.
	Restock []LineRequest
	By      string
}

func (ShipItems) isCommand()       {}
func (ConfirmDelivery) isCommand() {}
func (RequestReturn) isCommand()   {}
func (ReceiveReturn) isCommand()   {}

// ItemsShipped says that units left.
type ItemsShipped struct {
	OrderID           OrderID
	UserID            string
	ShipmentID        string
	Lines             []Release
	Carrier, Tracking string
	By                string
}

// ShipmentDelivered says that a shipment arrived.
type ShipmentDelivered struct {
	OrderID    OrderID
	UserID     string
	ShipmentID string
	By         string
}

// ReturnRequested says that units come back.
type ReturnRequested struct {
	OrderID  OrderID
	UserID   string
	ReturnID string
	Lines    []Release
	Reason   string
	By       string
}

// ReturnReceived says that a return came in; the units of Restocked went back to the lane's allotments. A RefundStarted follows,
// unless nothing was paid for the units.
type ReturnReceived struct {
	OrderID   OrderID
	UserID    string
	ReturnID  string
	Restocked []Release
	By        string
}

func (ItemsShipped) isEvent()      {}
func (ShipmentDelivered) isEvent() {}
func (ReturnRequested) isEvent()   {}
func (ReturnReceived) isEvent()    {}

// A Shipment of units of an order.
type Shipment struct {
	ID string
	// Lines that left. Nobody changes them.
	Lines             []Release
	Carrier, Tracking string
	ShippedAt         time.Time
	// DeliveredAt is zero until it arrived.
	DeliveredAt time.Time
}

// Equal reports whether two shipments are the same in every field.
func (s Shipment) Equal(other Shipment) bool {
	return s.ID == other.ID && s.Carrier == other.Carrier && s.Tracking == other.Tracking && slices.Equal(s.Lines, other.Lines) &&
		s.ShippedAt.Equal(other.ShippedAt) && s.DeliveredAt.Equal(other.DeliveredAt)
}

// A Return of units of an order.
type Return struct {
	ID string
	// Lines that come back, and those of them that can be sold again. Nobody changes them.
	Lines, Restocked []Release
	Reason           string
	RequestedAt      time.Time
	// ReceivedAt is zero until it came in.
	ReceivedAt time.Time
}

// Equal reports whether two returns are the same in every field.
func (r Return) Equal(other Return) bool {
	return r.ID == other.ID && r.Reason == other.Reason && slices.Equal(r.Lines, other.Lines) && slices.Equal(r.Restocked, other.Restocked) &&
		r.RequestedAt.Equal(other.RequestedAt) && r.ReceivedAt.Equal(other.ReceivedAt)
}

// Equal reports whether two notes are the same in every field.
func (n Note) Equal(other Note) bool {
	return n.By == other.By && n.At.Equal(other.At) && bytes.Equal(n.Sealed, other.Sealed)
}

// movedUnits counts the units of a SKU that were shipped, that are or were to come back, and those of them that came in.
func (o *Order) movedUnits(sku string) (shipped, returned, received int64) {
	for i := range o.Shipments {
		shipped += unitsIn(o.Shipments[i].Lines, sku)
	}
	for i := range o.Returns {
		units := unitsIn(o.Returns[i].Lines, sku)
		returned += units
		if !o.Returns[i].ReceivedAt.IsZero() {
			received += units
		}
	}
	return shipped, returned, received
}

func unitsIn(lines []Release, sku string) int64 {
	var units int64
	for i := range lines {
		if lines[i].SKU == sku {
			units += lines[i].Units
		}
	}
	return units
}

// fulfilment derives what of the order was shipped.
func (o *Order) fulfilment() FulfilmentState {
	if len(o.Shipments) == 0 {
		return FulfilmentNone
	}
	allShipped, allReceived := true, true
	for i := range o.Lines {
		shipped, _, received := o.movedUnits(o.Lines[i].SKU)
		allShipped = allShipped && shipped >= o.Lines[i].Units
		allReceived = allReceived && received >= o.Lines[i].Units
	}
	arrived := !slices.ContainsFunc(o.Shipments, func(s Shipment) bool { return s.DeliveredAt.IsZero() })
	switch {
	case !allShipped:
		return FulfilmentPartial
	case allReceived:
		return FulfilmentReturned
	case arrived:
		return FulfilmentDelivered
	}
	return FulfilmentShipped
}

func (c ShipItems) decide(s State) ([]Event, error) {
	if err := checkText("carrier", c.Carrier, CarrierBytesMax); err != nil {
		return nil, err
	}
	if err := checkText("tracking", c.Tracking, TrackingBytesMax); err != nil {
		return nil, err
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	done, numberErr := numbered("shipments", c.Number, len(order.Shipments), ShipmentsMax)
	if done {
		return nil, nil // Same command again: nothing to say.
	}
	if _, err := order.judge(&lifeShipItems, order.Payment); err != nil {
		return nil, err
	}
	if numberErr != nil {
		return nil, numberErr
	}
	lines, err := chosen(c.Lines, order.unshipped())
	if err != nil {
		return nil, err
	}
	return []Event{ItemsShipped{
		OrderID: order.ID, UserID: order.UserID, ShipmentID: ShipmentID(order.ID, c.Number),
		Lines: lines, Carrier: c.Carrier, Tracking: c.Tracking, By: c.By,
	}}, nil
}

// unshipped are the units that are still to be shipped, by line.
func (o *Order) unshipped() []Release {
	var left []Release
	for i := range o.Lines {
		shipped, _, _ := o.movedUnits(o.Lines[i].SKU)
		left = append(left, Release{SKU: o.Lines[i].SKU, Units: o.Lines[i].Units - shipped})
	}
	return left
}

// returnable are the units that were shipped and are not to come back yet, by line.
func (o *Order) returnable() []Release {
	var left []Release
	for i := range o.Lines {
		shipped, returned, _ := o.movedUnits(o.Lines[i].SKU)
		left = append(left, Release{SKU: o.Lines[i].SKU, Units: shipped - returned})
	}
	return left
}

// chosen takes what was asked for off what is left; nothing asked for takes it all.
func chosen(asked []LineRequest, left []Release) ([]Release, error) {
	var lines []Release
	if len(asked) == 0 {
		for _, l := range left {
			if l.Units > 0 {
				lines = append(lines, l)
			}
		}
		if len(lines) == 0 {
			return nil, &UnitsExceededError{SKU: left[0].SKU, Want: 1, Left: 0}
		}
		return lines, nil
	}
	if len(asked) > LinesMax {
		return nil, &InvalidArgumentError{Argument: "lines", Problem: fmt.Sprintf("there are %d, want at most %d", len(asked), LinesMax)}
	}
	for i, want := range asked {
		if want.Units < 1 {
			return nil, &InvalidArgumentError{Argument: fmt.Sprintf("lines[%d].units", i), Problem: fmt.Sprintf("it is %d, want at least 1", want.Units)}
		}
		if slices.ContainsFunc(lines, func(l Release) bool { return l.SKU == want.SKU }) {
			return nil, &InvalidArgumentError{Argument: fmt.Sprintf("lines[%d].sku", i), Problem: clip(want.SKU) + " is in two lines"}
		}
		if units := unitsIn(left, want.SKU); want.Units > units {
			return nil, &UnitsExceededError{SKU: want.SKU, Want: want.Units, Left: units}
		}
		lines = append(lines, Release(want))
	}
	return lines, nil
}

func (c ConfirmDelivery) decide(s State) ([]Event, error) {
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, _, err := lifeOf(s, c.OrderID, &lifeConfirmDelivery)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(order.Shipments, func(s Shipment) bool { return s.ID == c.ShipmentID })
	if i < 0 {
		return nil, &OrderPartNotFoundError{Part: "shipment", ID: c.ShipmentID}
	}
	if !order.Shipments[i].DeliveredAt.IsZero() {
		return nil, nil // Same command again: nothing to say.
	}
	return []Event{ShipmentDelivered{OrderID: order.ID, UserID: order.UserID, ShipmentID: c.ShipmentID, By: c.By}}, nil
}

func (c RequestReturn) decide(s State) ([]Event, error) {
	if err := checkText("reason", c.Reason, ReasonBytesMax); err != nil {
		return nil, err
	}
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	done, numberErr := numbered("returns", c.Number, len(order.Returns), ReturnsMax)
	if done {
		return nil, nil // Same command again: nothing to say.
	}
	if _, err := order.judge(&lifeRequestReturn, order.Payment); err != nil {
		return nil, err
	}
	if numberErr != nil {
		return nil, numberErr
	}
	lines, err := chosen(c.Lines, order.returnable())
	if err != nil {
		return nil, err
	}
	return []Event{ReturnRequested{
		OrderID: order.ID, UserID: order.UserID, ReturnID: ReturnID(order.ID, c.Number), Lines: lines, Reason: c.Reason, By: c.By,
	}}, nil
}

// decide takes the return in. What is refunded is what was paid for its units, as far as it was not given back before.
func (c ReceiveReturn) decide(s State) ([]Event, error) {
	if err := checkText("by", c.By, SubjectBytesMax); err != nil {
		return nil, err
	}
	order, _, err := lifeOf(s, c.OrderID, &lifeReceiveReturn)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(order.Returns, func(r Return) bool { return r.ID == c.ReturnID })
	if i < 0 {
		return nil, &OrderPartNotFoundError{Part: "return", ID: c.ReturnID}
	}
	back := &order.Returns[i]
	if !back.ReceivedAt.IsZero() {
		return nil, nil // Same command again: nothing to say.
	}
	received := ReturnReceived{OrderID: order.ID, UserID: order.UserID, ReturnID: back.ID, By: c.By}
	if len(c.Restock) > 0 {
		restock, err := chosen(c.Restock, back.Lines)
		if err != nil {
			return nil, err
		}
		received.Restocked = order.toStock(restock)
	}
	events := []Event{received}
	paid := order.paid()
	if minor := min(order.paidFor(back.Lines), order.refundable(&paid)); minor > 0 {
		events = append(events, order.refund(&paid, minor, "return", back.ID, c.By))
	}
	return events, nil
}

// toStock returns units of the order's lines under the keys of the accounts that they were taken from.
func (o *Order) toStock(lines []Release) []Release {
	taken := o.releases()
	units := make([]Release, len(lines))
	for i, l := range lines {
		units[i] = Release{SKU: taken[slices.IndexFunc(o.Lines, func(line Line) bool { return line.SKU == l.SKU })].SKU, Units: l.Units}
	}
	return units
}

// paidFor is what was paid for units that come in now, in minor units: discounts and taxes are in what its line cost. A line's part is
// split over its units one after the other, so that all returns together come to what was paid.
func (o *Order) paidFor(lines []Release) int64 {
	var minor int64
	for i := range o.Lines {
		units := unitsIn(lines, o.Lines[i].SKU)
		if units == 0 {
			continue
		}
		_, _, before := o.movedUnits(o.Lines[i].SKU)
		minor += mulDiv(o.Lines[i].Payable(), before+units, o.Lines[i].Units) - mulDiv(o.Lines[i].Payable(), before, o.Lines[i].Units)
	}
	return minor
}

// mulDiv returns amount × part / whole, rounded down.
// REQUIRES: 0 ≤ part ≤ whole, amount ≥ 0, whole > 0.
func mulDiv(amount, part, whole int64) int64 {
	high, low := bits.Mul64(uint64(amount), uint64(part))
	quotient, _ := bits.Div64(high, low, uint64(whole))
	return int64(quotient)
}
