package domain

import (
	"fmt"
	"math/bits"
	"slices"
)

// AwardPoints gives the user points for a payment that was captured.
type AwardPoints struct {
	OrderID   OrderID
	PaymentID string
	// PerMajor is how many points a whole major unit is worth; PointsPerMajorDefault unless configured.
	PerMajor int64
}

// TakeBackPoints takes points back for money that was refunded, so that what is left is what the rest of the money is worth.
type TakeBackPoints struct {
	OrderID  OrderID
	RefundID string
}

// PointsPerMajorDefault is how many points one whole major unit of money is worth.
const PointsPerMajorDefault = 1

// PointsPerMajorMax is the most that it may be worth.
const PointsPerMajorMax = 1000

func (AwardPoints) isCommand()    {}
func (TakeBackPoints) isCommand() {}

// PointsAwarded says that the user was given points for a payment.
type PointsAwarded struct {
	OrderID   OrderID
	UserID    string
	PaymentID string
	Points    int64
	// PerMajor is the rule that held.
	PerMajor int64
}

// PointsTakenBack says that points were taken back for a refund.
type PointsTakenBack struct {
	OrderID  OrderID
	UserID   string
	RefundID string
	Points   int64
}

func (PointsAwarded) isEvent()   {}
func (PointsTakenBack) isEvent() {}

func (c AwardPoints) decide(s State) ([]Event, error) {
	if c.PerMajor < 0 || c.PerMajor > PointsPerMajorMax {
		return nil, &InvalidArgumentError{Argument: "per_major", Problem: fmt.Sprintf("it is %d, want 0 to %d", c.PerMajor, PointsPerMajorMax)}
	}
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	i := order.paymentIndex(c.PaymentID)
	if i < 0 {
		return nil, &OrderPartNotFoundError{Part: "payment", ID: c.PaymentID}
	}
	p := &order.Payments[i]
	if _, err := order.judge(&lifeAwardPoints, p.State); err != nil {
		return nil, err
	}
	points := PointsFor(p.Taken, c.PerMajor)
	if p.PointsDecided || points == 0 {
		return nil, nil // Same command again, or nothing to award.
	}
	return []Event{PointsAwarded{OrderID: order.ID, UserID: order.UserID, PaymentID: p.ID, Points: points, PerMajor: c.PerMajor}}, nil
}

func (c TakeBackPoints) decide(s State) ([]Event, error) {
	order, found := s.Order(c.OrderID)
	if !found {
		return nil, &OrderNotFoundError{OrderID: c.OrderID}
	}
	i := slices.IndexFunc(order.Refunds, func(r Refund) bool { return r.ID == c.RefundID })
	if i < 0 {
		return nil, &OrderPartNotFoundError{Part: "refund", ID: c.RefundID}
	}
	if _, err := order.judge(&lifeTakeBackPoints, order.Payment); err != nil {
		return nil, err
	}
	refund := &order.Refunds[i]
	p := &order.Payments[order.paymentIndex(refund.PaymentID)]
	worth := PointsFor(Money{Currency: p.Taken.Currency, Minor: p.Taken.Minor - p.RefundedMinor}, p.PointsPerMajor)
	if refund.State != RefundSucceeded || refund.Points > 0 || p.Points <= worth {
		return nil, nil // Nothing went back, same command again, or nothing to take.
	}
	return []Event{PointsTakenBack{OrderID: order.ID, UserID: order.UserID, RefundID: refund.ID, Points: p.Points - worth}}, nil
}

// PointsFor is the one rule of how many points an amount of money is worth: perMajor for every whole major unit.
// REQUIRES: 0 ≤ perMajor ≤ PointsPerMajorMax.
func PointsFor(amount Money, perMajor int64) int64 {
	major := amount.Minor
	for range minorDigitsOf(amount.Currency) {
		major /= 10
	}
	high, points := bits.Mul64(magnitude(max(major, 0)), magnitude(perMajor))
	if high != 0 || points > pointsMax {
		return pointsMax
	}
	return int64(points)
}

// pointsMax is more than any amount of money that PriceMinorMax and the limits of units allow is worth.
const pointsMax = 1 << 62
