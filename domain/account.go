package domain

import (
	"fmt"
	"iter"
	"maps"
	"slices"
)

// An Account is what one lane knows of the units of one stock key: a SKU, or a pool; see HomeKey. The home lane's account
// also holds the centre. Over the accounts of all lanes, received = central + in transit + Σ allotted + Σ reserved + Σ sold, and no term is negative (I3).
//
// Units move between lanes by numbered transfers only, so what is in transit shows as the difference between what one
// lane has sent and the other has taken; Sum and Conserved compute it.
type Account struct {
	// Received counts units ever received, less those that were moved to another account, a pool's or a SKU's; Central those
	// of them that are not granted to a lane; MovedOut those that were moved to another account, ever. Home lane only.
	Received, Central, MovedOut int64
	// Granted is what the home lane has granted, Reclaimed what it has taken back, by lane, lanes ascending, only those
	// that there is something to say about. Nobody changes them in place. Home lane only.
	Granted, Reclaimed []LaneTally

	// Allotted units are free to be ordered, Reserved ones are held by open orders, Sold ones are gone.
	Allotted, Reserved, Sold int64
	// Taken is what this lane has taken of its grants, Returned what it has given back.
	Taken, Returned Tally
}

// A Tally counts transfers in one direction between the home lane and one lane.
type Tally struct {
	// Number of the newest transfer, 0 before the first. They count from 1 without a gap.
	Number uint64
	// Units moved by all of them.
	Units int64
}

// A LaneTally is a tally and the lane that it is with.
type LaneTally struct {
	Lane uint32
	Tally
}

// GrantedTo returns what the home lane has granted to a lane.
func (a Account) GrantedTo(lane uint32) Tally { return tallyOf(a.Granted, lane) }

// ReclaimedFrom returns what the home lane has taken back from a lane.
func (a Account) ReclaimedFrom(lane uint32) Tally { return tallyOf(a.Reclaimed, lane) }

// Evolve returns the account of a SKU after one more event of its lane. Events that do not touch the SKU leave it as it
// is. It does not allocate, except for events that move units between lanes.
func (a Account) Evolve(e Event, sku string) Account {
	switch e := e.(type) {
	case OrderPlaced:
		for i := range e.Lines {
			if e.stockKey(i) == sku {
				a = a.reserve(e.Lines[i].Units)
			}
		}
		if e.CouponPool == sku && sku != "" {
			a = a.reserve(1)
		}
	case OrderCancelled:
		a = a.restockAll(e.Unsold, sku)
		a = a.releaseAll(e.Released, sku)
	case OrderExpired:
		a = a.releaseAll(e.Released, sku)
	case PoolFilled:
		a = a.movePool(e.Pool, e.Units, sku)
	case PoolDrained:
		a = a.movePool(e.Pool, -e.Units, sku)
	case PaymentCaptured:
		a = a.sellAll(e.Sold, sku)
	case ReturnReceived:
		a = a.restockAll(e.Restocked, sku)
	case ProductPut, PaymentStarted, PaymentAuthorized, PaymentCaptureRequested, PaymentDeclined, PaymentBecameUnknown, PaymentVoidRequested,
		PaymentVoided, RefundStarted, PaymentRefunded, RefundFailed, StrayPaymentFound, ItemsShipped, ShipmentDelivered, ReturnRequested,
		NoteAdded, PointsAwarded, PointsTakenBack, UserErased, CampaignPut, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted, RequestAnswered:
	case StockReceived:
		if e.SKU == sku {
			a.Received = e.ReceivedTotal
			a.Central += e.Units
		}
	case StockGranted:
		if e.SKU == sku {
			a.Central -= e.Units
			a.Granted = counted(a.Granted, e.ToLane, e.GrantNumber, e.Units)
		}
	case StockAllotted:
		if e.SKU == sku {
			a.Allotted += e.Units
			a.Taken = Tally{Number: e.GrantNumber, Units: a.Taken.Units + e.Units}
		}
	case StockReturned:
		if e.SKU == sku {
			a.Allotted -= e.Units
			a.Returned = Tally{Number: e.ReturnNumber, Units: a.Returned.Units + e.Units}
		}
	case StockReclaimed:
		if e.SKU == sku {
			a.Central += e.Units
			a.Reclaimed = counted(a.Reclaimed, e.FromLane, e.ReturnNumber, e.Units)
		}
	}
	return a
}

// movePool moves central units between a SKU's account and its pool's. What is moved counts as received where it is.
func (a Account) movePool(pool string, units int64, stockKey string) Account {
	switch stockKey {
	case pool:
	case HomeKey(pool):
		units = -units
	default:
		return a
	}
	a.Received += units
	a.Central += units
	a.MovedOut += max(-units, 0)
	return a
}

func (a Account) reserve(units int64) Account {
	a.Allotted -= units
	a.Reserved += units
	return a
}

func (a Account) release(units int64) Account { return a.reserve(-units) }

func (a Account) releaseAll(released []Release, sku string) Account {
	for i := range released {
		if released[i].SKU == sku {
			a = a.release(released[i].Units)
		}
	}
	return a
}

// sellAll takes reserved units of an order that was paid for good.
func (a Account) sellAll(sold []Release, sku string) Account {
	for i := range sold {
		if sold[i].SKU == sku {
			a.Reserved -= sold[i].Units
			a.Sold += sold[i].Units
		}
	}
	return a
}

// restockAll puts sold units that came back, or never left, among those that are free to be ordered.
func (a Account) restockAll(restocked []Release, sku string) Account {
	for i := range restocked {
		if restocked[i].SKU == sku {
			a.Sold -= restocked[i].Units
			a.Allotted += restocked[i].Units
		}
	}
	return a
}

// IsZero reports whether nothing has ever happened to the account.
func (a Account) IsZero() bool { return a.Equal(Account{}) }

// Equal reports whether two accounts are the same in every field.
func (a Account) Equal(other Account) bool {
	return a.Received == other.Received && a.Central == other.Central && a.MovedOut == other.MovedOut && a.Allotted == other.Allotted &&
		a.Reserved == other.Reserved && a.Sold == other.Sold && a.Taken == other.Taken && a.Returned == other.Returned &&
		slices.Equal(a.Granted, other.Granted) && slices.Equal(a.Reclaimed, other.Reclaimed)
}

// Check returns an error if a term is negative, or if what is in the account is not what came in less what went out.
func (a Account) Check() error {
	if err := a.checkLane(); err != nil {
		return err
	}
	granted, reclaimed := unitsOf(a.Granted), unitsOf(a.Reclaimed)
	if a.Received < 0 || a.Central < 0 {
		return fmt.Errorf("negative units: received %d, central %d (I3)", a.Received, a.Central)
	}
	if a.Received-granted+reclaimed != a.Central {
		return fmt.Errorf("received %d - granted %d + reclaimed %d ≠ central %d (I3)", a.Received, granted, reclaimed, a.Central)
	}
	return nil
}

// checkLane checks the lane's own part: what every order changes.
func (a Account) checkLane() error {
	if a.Allotted < 0 || a.Reserved < 0 || a.Sold < 0 {
		return fmt.Errorf("negative units: allotted %d, reserved %d, sold %d (I3)", a.Allotted, a.Reserved, a.Sold)
	}
	if a.Taken.Units-a.Returned.Units != a.Allotted+a.Reserved+a.Sold {
		return fmt.Errorf("taken %d - returned %d ≠ allotted %d + reserved %d + sold %d (I3)",
			a.Taken.Units, a.Returned.Units, a.Allotted, a.Reserved, a.Sold)
	}
	return nil
}

// SKUs yields the stock keys whose accounts an event touches.
func SKUs(e Event) iter.Seq[string] {
	return func(yield func(string) bool) { eachSKU(e, yield) }
}

func eachSKU(e Event, yield func(string) bool) {
	switch e := e.(type) {
	case OrderPlaced:
		for i := range e.Lines {
			if !yield(e.stockKey(i)) {
				return
			}
		}
		if e.CouponPool != "" {
			yield(e.CouponPool)
		}
	case OrderCancelled:
		_ = eachReleased(e.Released, yield) && eachReleased(e.Unsold, yield)
	case OrderExpired:
		eachReleased(e.Released, yield)
	case PoolFilled:
		_ = yield(HomeKey(e.Pool)) && yield(e.Pool)
	case PoolDrained:
		_ = yield(HomeKey(e.Pool)) && yield(e.Pool)
	case PaymentCaptured:
		eachReleased(e.Sold, yield)
	case ReturnReceived:
		eachReleased(e.Restocked, yield)
	case ProductPut, PaymentStarted, PaymentAuthorized, PaymentCaptureRequested, PaymentDeclined, PaymentBecameUnknown, PaymentVoidRequested,
		PaymentVoided, RefundStarted, PaymentRefunded, RefundFailed, StrayPaymentFound, ItemsShipped, ShipmentDelivered, ReturnRequested,
		NoteAdded, PointsAwarded, PointsTakenBack, UserErased, CampaignPut, CouponPut, WebhookEndpointPut, WebhookEndpointDeleted, RequestAnswered:
	case StockReceived:
		yield(e.SKU)
	case StockGranted:
		yield(e.SKU)
	case StockAllotted:
		yield(e.SKU)
	case StockReturned:
		yield(e.SKU)
	case StockReclaimed:
		yield(e.SKU)
	}
}

// eachReleased reports whether more is wanted.
func eachReleased(released []Release, yield func(string) bool) bool {
	for i := range released {
		if !yield(released[i].SKU) {
			return false
		}
	}
	return true
}

// A Ledger is where the units of one SKU are, over all lanes.
type Ledger struct {
	Received, Central, InTransit, Allotted, Reserved, Sold int64
}

// Sum adds up the accounts of one SKU, by lane. Accounts read at unrelated positions may show a transfer on one side
// only; InTransit is then off, and may be negative, by its units.
func Sum(accounts map[uint32]Account) Ledger {
	var l Ledger
	for _, a := range accounts {
		l.Received += a.Received
		l.Central += a.Central
		l.Allotted += a.Allotted
		l.Reserved += a.Reserved
		l.Sold += a.Sold
		l.InTransit += unitsOf(a.Granted) - unitsOf(a.Reclaimed) - a.Taken.Units + a.Returned.Units
	}
	return l
}

// Check returns an error unless received = central + in transit + allotted + reserved + sold, with no term negative.
func (l Ledger) Check() error {
	for _, term := range [...]int64{l.Received, l.Central, l.InTransit, l.Allotted, l.Reserved, l.Sold} {
		if term < 0 {
			return fmt.Errorf("a term of %+v is negative (I3)", l)
		}
	}
	if sum := l.Central + l.InTransit + l.Allotted + l.Reserved + l.Sold; sum != l.Received {
		return fmt.Errorf("the terms of %+v add up to %d (I3)", l, sum)
	}
	return nil
}

// Conserved returns an error unless I3 holds over the accounts of one SKU, by lane: each lane's, each transfer's and the
// sum's. The accounts must show every transfer on the sending side that they show on the taking side.
func Conserved(accounts map[uint32]Account) error {
	lanes := slices.Sorted(maps.Keys(accounts)) // In order, so that the same accounts yield the same error.
	var home Account
	homes := 0
	for _, lane := range lanes {
		a := accounts[lane]
		if err := a.Check(); err != nil {
			return fmt.Errorf("lane %d: %w", lane, err)
		}
		if a.Received != 0 || len(a.Granted) > 0 {
			home = a
			homes++
		}
	}
	if homes > 1 {
		return fmt.Errorf("%d lanes say that they are the home lane (I3)", homes)
	}
	for _, lane := range lanes {
		a := accounts[lane]
		if granted := home.GrantedTo(lane); !a.Taken.within(granted) {
			return fmt.Errorf("lane %d took %+v of grants %+v (I3)", lane, a.Taken, granted)
		}
		if reclaimed := home.ReclaimedFrom(lane); !reclaimed.within(a.Returned) {
			return fmt.Errorf("lane %d returned %+v, of which %+v were reclaimed (I3)", lane, a.Returned, reclaimed)
		}
	}
	return Sum(accounts).Check()
}

// within reports whether t can be what one side has taken of what the other has sent: every transfer still on its way
// carries a unit at least.
func (t Tally) within(sent Tally) bool {
	if t.Number >= sent.Number {
		return t == sent
	}
	return t.Units <= sent.Units && uint64(sent.Units-t.Units) >= sent.Number-t.Number
}

func tallyOf(tallies []LaneTally, lane uint32) Tally {
	if i, found := find(tallies, lane); found {
		return tallies[i].Tally
	}
	return Tally{}
}

// counted returns a copy of tallies with one more transfer with a lane.
func counted(tallies []LaneTally, lane uint32, number uint64, units int64) []LaneTally {
	i, found := find(tallies, lane)
	if found {
		tallies = slices.Clone(tallies)
	} else {
		tallies = slices.Insert(slices.Clip(tallies), i, LaneTally{Lane: lane})
	}
	tallies[i].Tally = Tally{Number: number, Units: tallies[i].Units + units}
	return tallies
}

func find(tallies []LaneTally, lane uint32) (int, bool) {
	return slices.BinarySearchFunc(tallies, lane, func(t LaneTally, lane uint32) int { return int(t.Lane) - int(lane) })
}

func unitsOf(tallies []LaneTally) int64 {
	var units int64
	for i := range tallies {
		units += tallies[i].Units
	}
	return units
}
