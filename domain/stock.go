package domain

import (
	"errors"
	"fmt"
	"math"
	"strings"
)

// Stock moves between lanes by numbered grants and returns; api/lanes/ESCROW.md has the protocol. A stock key names what is
// counted: a SKU, or a pool "SKU@NAME" that is kept apart from it. What this file calls a SKU may be any stock key.

// HomeKey returns the part of a stock key before '@', which decides its home lane: a SKU and its pools share one.
func HomeKey(stockKey string) string {
	key, _, _ := strings.Cut(stockKey, "@")
	return key
}

// A Supply is what a lane knows of units of a SKU that it does not have itself.
type Supply struct {
	// Lane is the lane itself, Home the SKU's home lane, of so many Lanes.
	Lane, Home, Lanes uint32
	// SoldOut says that no more than Free units can come to this lane, not until more are received or given back. What the
	// lane itself returned after return Reclaimed is not counted.
	SoldOut   bool
	Free      int64
	Reclaimed uint64
}

// ReceiveStock adds units of a product to its central account. They stay there until a lane needs them.
type ReceiveStock struct {
	SKU   string
	Units int64
}

// PreheatStock grants units of the centre to every lane before they are asked for, the same number to each.
type PreheatStock struct {
	SKU string
	// UnitsPerLane is how many each lane gets; 0 shares out all that the centre has, less the remainder.
	UnitsPerLane int64
}

// GrantStock moves units of the centre to a lane that asks for them. Deciding it again, or an older one, changes nothing.
type GrantStock struct {
	SKU    string
	ToLane uint32
	// After is the newest grant that the lane has taken: nothing is granted while a later one is on its way.
	After uint64
	// Least is the fewest units that help the lane, Want what it would use.
	Least, Want int64
}

// AllotStock takes a grant of the home lane into this lane's allotment. Taking it twice changes nothing.
type AllotStock struct {
	SKU         string
	HomeLane    uint32
	GrantNumber uint64
	Units       int64
}

// ReturnStock gives idle units of a lane's allotment back: half of them, and no fewer than Least if there are as many.
// Deciding it again, or an older one, changes nothing.
type ReturnStock struct {
	SKU string
	// Keep are units that stay, since orders that wait for another SKU are about to take them.
	Keep int64
	// After is the newest return that whoever asks knows of: nothing is returned while a later one is on its way.
	After uint64
	Least int64
}

// ReclaimStock takes a return of a lane back into the centre. Taking it twice changes nothing.
type ReclaimStock struct {
	SKU          string
	FromLane     uint32
	ReturnNumber uint64
	Units        int64
}

func (ReceiveStock) isCommand() {}
func (PreheatStock) isCommand() {}
func (GrantStock) isCommand()   {}
func (AllotStock) isCommand()   {}
func (ReturnStock) isCommand()  {}
func (ReclaimStock) isCommand() {}

// cover returns what must happen before an order can take want units of a SKU that the lane's allotment has not: at
// home, a grant of the lane to itself. The error says that the units are sold out, or that they may be on their way.
func cover(s State, sku string, want int64, account Account) ([]Event, error) {
	supply := s.Supply(sku)
	short := want - account.Allotted
	if supply.Lane == supply.Home {
		if account.Central >= short {
			events := account.grant(sku, supply.Lane, supply.Lanes, short)
			return append(events, account.take(events[0], supply.Home)), nil
		}
		if account.elsewhere(supply.Home) == 0 {
			return nil, &OutOfStockError{SKU: sku, Want: want, Free: account.Allotted + account.Central}
		}
	}
	if supply.SoldOut && short > supply.Free && account.Returned.Number <= supply.Reclaimed {
		return nil, &OutOfStockError{SKU: sku, Want: want, Free: account.Allotted + supply.Free}
	}
	return nil, &StockMovingError{SKU: sku, Want: want, Short: short, Taken: account.Taken.Number, Returned: account.Returned.Number}
}

// Inflow counts the units that ever came into the centre, received or reclaimed: it grows whenever more can be had, and never
// shrinks.
func (a Account) Inflow() int64 { return a.Received + a.MovedOut + unitsOf(a.Reclaimed) }

// elsewhere counts the units that the other lanes have, or that are on their way from or to them. Home lane only.
func (a Account) elsewhere(home uint32) int64 {
	return unitsOf(a.Granted) - unitsOf(a.Reclaimed) - a.GrantedTo(home).Units + a.ReclaimedFrom(home).Units
}

// grant sizes the next grant to a lane: what it wants, or a half of its even share of the centre when that is more. So
// grants are large while there is much, and single units at the end. A lane that is the only one gets all.
func (a Account) grant(sku string, toLane, lanes uint32, want int64) []Event {
	share := a.Central
	if lanes > 1 {
		share /= 2 * int64(lanes)
	}
	granted := StockGranted{
		SKU: sku, ToLane: toLane, GrantNumber: a.GrantedTo(toLane).Number + 1, Units: min(a.Central, max(want, share)),
	}
	assertAccount(a.Evolve(granted, sku).Check(), sku)
	return append(make([]Event, 0, 2), granted)
}

// take is how the home lane takes a grant to itself, in the same commit.
func (a Account) take(granted Event, home uint32) StockAllotted {
	g, ok := granted.(StockGranted)
	assert(ok && g.ToLane == home && g.GrantNumber == a.Taken.Number+1, "%+v is not the next grant to home lane %d, which took %d", granted, home, a.Taken.Number)
	allotted := StockAllotted{SKU: g.SKU, HomeLane: home, GrantNumber: g.GrantNumber, Units: g.Units}
	assertAccount(a.Evolve(granted, g.SKU).Evolve(allotted, g.SKU).Check(), g.SKU)
	return allotted
}

// decide takes the units into the centre. Receiving again receives more: only its request makes it the same.
func (c ReceiveStock) decide(s State) ([]Event, error) {
	if c.Units < 1 || c.Units > ReceiveUnitsMax {
		return nil, &InvalidArgumentError{Argument: "units", Problem: fmt.Sprintf("it is %d, want 1 to %d", c.Units, ReceiveUnitsMax)}
	}
	if _, known := s.Product(c.SKU); !known {
		return nil, &UnknownProductError{SKU: c.SKU}
	}
	account := s.Stock(c.SKU)
	if account.Received > math.MaxInt64-c.Units {
		return nil, &AmountOverflowError{What: fmt.Sprintf("%d units of %s beside %d", c.Units, c.SKU, account.Received)}
	}
	received := StockReceived{SKU: c.SKU, Units: c.Units, ReceivedTotal: account.Received + c.Units}
	assertAccount(account.Evolve(received, c.SKU).Check(), c.SKU)
	return []Event{received}, nil
}

// decide grants to the lanes in their order. Preheating again grants more: only its request makes it the same.
func (c PreheatStock) decide(s State) ([]Event, error) {
	supply := home(s, c.SKU)
	if c.UnitsPerLane < 0 || c.UnitsPerLane > ReceiveUnitsMax {
		return nil, &InvalidArgumentError{Argument: "units_per_lane", Problem: fmt.Sprintf("it is %d, want 0 to %d", c.UnitsPerLane, ReceiveUnitsMax)}
	}
	if _, known := s.Product(HomeKey(c.SKU)); !known {
		return nil, &UnknownProductError{SKU: c.SKU}
	}
	account := s.Stock(c.SKU)
	units := c.UnitsPerLane
	if units == 0 {
		units = max(account.Central/int64(supply.Lanes), 1)
	}
	if want := units * int64(supply.Lanes); want > account.Central {
		return nil, &OutOfStockError{SKU: c.SKU, Want: want, Free: account.Central}
	}
	events := make([]Event, 0, supply.Lanes+1)
	for lane := range supply.Lanes {
		granted := StockGranted{SKU: c.SKU, ToLane: lane, GrantNumber: account.GrantedTo(lane).Number + 1, Units: units}
		events = append(events, granted)
		if lane == supply.Home {
			events = append(events, account.take(granted, supply.Home))
		}
	}
	for _, e := range events {
		account = account.Evolve(e, c.SKU)
	}
	assertAccount(account.Check(), c.SKU)
	return events, nil
}

func (c GrantStock) decide(s State) ([]Event, error) {
	supply := home(s, c.SKU)
	if c.ToLane >= supply.Lanes {
		return nil, &InvalidArgumentError{Argument: "to_lane", Problem: fmt.Sprintf("it is %d of %d lanes", c.ToLane, supply.Lanes)}
	}
	account := s.Stock(c.SKU)
	if account.GrantedTo(c.ToLane).Number != c.After {
		return nil, nil // Same command again, or an older one: a later grant has been made.
	}
	if c.Least < 1 || c.Want < c.Least {
		return nil, &InvalidArgumentError{Argument: "units", Problem: fmt.Sprintf("at least %d and %d at most are wanted", c.Least, c.Want)}
	}
	if account.Central < c.Least {
		return nil, nil // Nothing that helps: the home lane calls idle units back.
	}
	events := account.grant(c.SKU, c.ToLane, supply.Lanes, c.Want)
	if c.ToLane == supply.Home {
		events = append(events, account.take(events[0], supply.Home))
	}
	return events, nil
}

func (c AllotStock) decide(s State) ([]Event, error) {
	account := s.Stock(c.SKU)
	if c.GrantNumber <= account.Taken.Number {
		return nil, nil // Same command again: nothing to say.
	}
	if want := account.Taken.Number + 1; c.GrantNumber != want {
		return nil, &GrantOutOfOrderError{SKU: c.SKU, Number: c.GrantNumber, Want: want}
	}
	if !validStockKey(c.SKU) {
		return nil, &InvalidArgumentError{Argument: "sku", Problem: nameProblem}
	}
	if c.Units < 1 {
		return nil, &InvalidArgumentError{Argument: "units", Problem: fmt.Sprintf("it is %d, want at least 1", c.Units)}
	}
	if account.Taken.Units > math.MaxInt64-c.Units {
		return nil, &AmountOverflowError{What: fmt.Sprintf("%d units of %s beside %d", c.Units, c.SKU, account.Taken.Units)}
	}
	if s.Supply(c.SKU).Lane == c.HomeLane {
		return nil, &InvalidArgumentError{Argument: "home_lane", Problem: "it is the lane itself, which takes its own grants at once"}
	}
	allotted := StockAllotted(c)
	assertAccount(account.Evolve(allotted, c.SKU).Check(), c.SKU)
	return []Event{allotted}, nil
}

// decide gives idle units back. What the home lane gives back, it takes in the same commit.
func (c ReturnStock) decide(s State) ([]Event, error) {
	supply := s.Supply(c.SKU)
	account := s.Stock(c.SKU)
	units := min(account.Allotted-c.Keep, max(c.Least, account.Allotted/2))
	if account.Returned.Number != c.After || units < 1 {
		return nil, nil // Same command again, or an older one, or nothing is idle.
	}
	number := c.After + 1
	events := append(make([]Event, 0, 2), StockReturned{SKU: c.SKU, HomeLane: supply.Home, ReturnNumber: number, Units: units})
	if supply.Lane == supply.Home {
		assert(account.ReclaimedFrom(supply.Home).Number == c.After, "home lane %d returned %d and reclaimed %+v", supply.Home, c.After, account.ReclaimedFrom(supply.Home))
		events = append(events, StockReclaimed{SKU: c.SKU, FromLane: supply.Home, ReturnNumber: number, Units: units})
	}
	for _, e := range events {
		account = account.Evolve(e, c.SKU)
	}
	assertAccount(account.Check(), c.SKU)
	return events, nil
}

func (c ReclaimStock) decide(s State) ([]Event, error) {
	supply := home(s, c.SKU)
	account := s.Stock(c.SKU)
	before := account.ReclaimedFrom(c.FromLane)
	if c.ReturnNumber <= before.Number {
		return nil, nil // Same command again: nothing to say.
	}
	if want := before.Number + 1; c.ReturnNumber != want {
		return nil, &ReturnOutOfOrderError{SKU: c.SKU, FromLane: c.FromLane, Number: c.ReturnNumber, Want: want}
	}
	if c.FromLane == supply.Home {
		return nil, &InvalidArgumentError{Argument: "from_lane", Problem: "it is the home lane, which takes its own returns at once"}
	}
	if most := account.GrantedTo(c.FromLane).Units - before.Units; c.Units < 1 || c.Units > most {
		return nil, &InvalidArgumentError{Argument: "units", Problem: fmt.Sprintf("it is %d, want 1 to the %d that lane %d was granted", c.Units, most, c.FromLane)}
	}
	reclaimed := StockReclaimed(c)
	assertAccount(account.Evolve(reclaimed, c.SKU).Check(), c.SKU)
	return []Event{reclaimed}, nil
}

// home returns the supply of a SKU in its home lane, the only one that may decide this.
func home(s State, sku string) Supply {
	supply := s.Supply(sku)
	assert(supply.Lane == supply.Home && supply.Home < supply.Lanes, "lane %d of %d decides for home lane %d of %s", supply.Lane, supply.Lanes, supply.Home, sku)
	return supply
}

// validStockKey reports whether a key is a SKU, a SKU and the name of a pool, or a coupon's pool.
func validStockKey(key string) bool {
	sku, pool, isPool := strings.Cut(strings.TrimSuffix(key, couponPoolSuffix), "@")
	return validName(sku) && (!isPool || validName(pool))
}

// StockMovingError refuses a line that wants more units than the lane has while there may be some elsewhere: whether they
// can be had is not known yet.
type StockMovingError struct {
	SKU  string
	Want int64
	// Short is how many of them the lane lacks, Taken the newest grant that it has taken, Returned its newest return.
	Short           int64
	Taken, Returned uint64
	// Pledges are what the lane has of the order's other stock keys, as far as they come before this one. While the order waits
	// they should stay: an order gets its keys in their order, so that no two wait for each other.
	Pledges []Release
}

// movingFirst returns the one of two refusals whose stock key comes first. before may be nil.
// REQUIRES: err is a *StockMovingError.
func movingFirst(before *StockMovingError, err error) *StockMovingError {
	var moving *StockMovingError
	assert(errors.As(err, &moving), "%v does not say which units are moving", err)
	if before != nil && before.SKU < moving.SKU {
		return before
	}
	return moving
}

// pledges returns what the lane has of the order's stock keys before one.
func (e *OrderPlaced) pledges(s State, before string) []Release {
	var pledges []Release
	pledge := func(stockKey string, units int64) {
		if units = min(units, s.Stock(stockKey).Allotted); stockKey < before && units > 0 {
			pledges = append(pledges, Release{SKU: stockKey, Units: units})
		}
	}
	for i := range e.Lines {
		pledge(e.stockKey(i), e.Lines[i].Units)
	}
	if e.CouponPool != "" {
		pledge(e.CouponPool, 1)
	}
	return pledges
}

func (e *StockMovingError) Error() string {
	return fmt.Sprintf("%d units of %s are wanted, and some are on their way; send the same request again", e.Want, e.SKU)
}

// Unwrap returns ErrStockMoving.
func (e *StockMovingError) Unwrap() error { return ErrStockMoving }

// Reason returns ReasonStockMoving.
func (e *StockMovingError) Reason() Reason { return ReasonStockMoving }

// Facts returns the SKU and how many units were wanted.
func (e *StockMovingError) Facts() map[string]string {
	return map[string]string{"sku": e.SKU, "want": fmt.Sprint(e.Want)}
}

func (*StockMovingError) isRefusal() {}

// ReturnOutOfOrderError is a conflict, not a refusal: the home lane was offered a return before the one that comes first.
type ReturnOutOfOrderError struct {
	SKU      string
	FromLane uint32
	// Number was offered, Want is the next one that the home lane takes.
	Number, Want uint64
}

func (e *ReturnOutOfOrderError) Error() string {
	return fmt.Sprintf("return %d of %s from lane %d is out of order: return %d comes first", e.Number, clip(e.SKU), e.FromLane, e.Want)
}
