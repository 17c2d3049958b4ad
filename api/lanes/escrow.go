package lanes

import (
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/weirhq/weir/domain"
)

// An escrow moves units between its lane and the others. ESCROW.md says how and why nothing is lost or stranded.
//
// It decides nothing: it sends messages, gives commands to its own lane and hears what came of them. What it knows can be
// lost at any time, and any message can be lost, repeated or late: what counts is in the accounts, and every command is
// idempotent by number. It starts no goroutine, reads no clock and takes no lock but the board's; one goroutine uses it.
type escrow struct {
	lane    uint32
	homeOf  func(sku string) uint32
	options escrowOptions
	board   *board
	outbox  *outbox
	// send gives a message for another lane away.
	send func(Message)
	// submit gives a command to this lane; decided is called with its outcome, later.
	submit func(task)

	demands map[string]*demand // by SKU: what buyers of this lane wait for
	centres map[string]*centre // by SKU of this home lane: what lanes ask for
	notes   map[string]domain.Account
	// broken is a fault of the disk; the escrow does nothing more.
	broken error
}

// A task is a command that an escrow gives its lane, and the round of the message that it comes of.
type task struct {
	command domain.Command
	round   int64
}

// escrowOptions are the periods of an escrow.
type escrowOptions struct {
	// Again is after how long a message that was not answered is sent again.
	Again time.Duration
	// VerdictFor is how long a verdict counts at most.
	VerdictFor time.Duration
}

// Periods and limits of an escrow.
const (
	againDefault   = 20 * time.Millisecond
	verdictDefault = time.Second
	// askLife is after how many periods of Again an ask that is not renewed is dropped.
	askLife = 10
	// watchFor is for how many times VerdictFor a SKU counts as scarce after a recall or a verdict: longer than any verdict
	// that rests on it.
	watchFor = 3
	// recallSkipsMax is how often a lane lets a recall pass because orders that it woke are about to take the units.
	recallSkipsMax = 4
	// waitersMax bounds the orders that wait for units, by SKU and lane.
	waitersMax = 1 << 14
)

// A demand is orders of this lane that wait for units of one SKU.
type demand struct {
	waiters  []*waiter
	taken    uint64 // newest grant that any of them has seen, or that was taken since
	returned uint64 // newest return that any of them has seen
	askedAt  time.Time
	skips    int // recalls that were let pass
}

// A waiter is one order that waits. wake reports whether it still did.
type waiter struct {
	short int64
	wake  func()
	left  func() bool
}

// A centre is one SKU of this home lane while lanes ask for it, and for a while after a verdict.
type centre struct {
	asks []*ask
	// recalls are the newest ones, by lane, with what the lane answered.
	recalls map[uint32]*recall
	// told are the lanes that a verdict was given to. Until then they are told when the inflow grows beyond this one.
	told   map[uint32]struct{}
	inflow int64
	until  time.Time
}

// An ask is what one lane asks for.
type ask struct {
	Message
	at    time.Time
	tried bool // since anything changed
	busy  bool // a grant is being decided
}

// A recall is what a lane was asked and what it said of its units of a SKU since.
type recall struct {
	asked, sentAt time.Time

	answered        bool
	returned, taken uint64
	idle            int64
}

func newEscrow(lane uint32, homeOf func(string) uint32, options escrowOptions, board *board, outbox *outbox, send func(Message), submit func(task)) *escrow {
	if options.Again == 0 {
		options.Again = againDefault
	}
	if options.VerdictFor == 0 {
		options.VerdictFor = verdictDefault
	}
	return &escrow{
		lane: lane, homeOf: homeOf, options: options, board: board, outbox: outbox, send: send, submit: submit,
		demands: map[string]*demand{}, centres: map[string]*centre{}, notes: map[string]domain.Account{},
	}
}

// post sends a message, or takes it at once when it is for this lane.
func (e *escrow) post(now time.Time, m Message) {
	m.From = e.lane
	if m.To == e.lane {
		e.receive(now, m)
		return
	}
	e.send(m)
}

// await adds an order that was refused because units are moving. It reports false when too many wait.
func (e *escrow) await(now time.Time, moving *domain.StockMovingError, w *waiter) bool {
	d := e.demands[moving.SKU]
	if d == nil {
		if len(e.demands) >= skusMax {
			return false
		}
		d = &demand{}
		e.demands[moving.SKU] = d
	}
	if moving.Taken < d.taken {
		w.wake() // A grant came between its decision and now.
		return true
	}
	if len(d.waiters) >= waitersMax {
		return false
	}
	d.taken, d.returned = moving.Taken, max(d.returned, moving.Returned)
	d.waiters = append(d.waiters, w)
	if now.Sub(d.askedAt) >= e.options.Again {
		e.ask(now, moving.SKU, d)
	}
	return true
}

// ask asks the home lane for what the orders that wait lack.
func (e *escrow) ask(now time.Time, sku string, d *demand) {
	d.waiters = slices.DeleteFunc(d.waiters, func(w *waiter) bool { return w.left() })
	if len(d.waiters) == 0 {
		delete(e.demands, sku)
		return
	}
	least, want := int64(math.MaxInt64), int64(0)
	for _, w := range d.waiters {
		least, want = min(least, w.short), want+w.short
	}
	d.askedAt = now
	e.post(now, Message{
		Kind: MessageAsk, SKU: sku, To: e.homeOf(sku), Number: d.returned, Taken: d.taken, Units: least, Want: want, Round: now.UnixNano(),
	})
}

// wake lets every order that waits for a SKU be decided again.
func (e *escrow) wake(sku string) {
	d := e.demands[sku]
	if d == nil {
		return
	}
	waiters := d.waiters
	d.waiters, d.askedAt = nil, time.Time{}
	for _, w := range waiters {
		w.wake()
	}
}

// receive takes a message. One that makes no sense here is dropped.
func (e *escrow) receive(now time.Time, m Message) {
	home := e.homeOf(m.SKU)
	if fromHome := m.Kind.fromHome(); (fromHome && m.From != home) || (!fromHome && e.lane != home) {
		return
	}
	switch m.Kind {
	case MessageAsk:
		e.asked(now, m)
	case MessageGrant:
		e.submit(task{command: domain.AllotStock{SKU: m.SKU, HomeLane: home, GrantNumber: m.Number, Units: m.Units}})
	case MessageTaken:
		e.fault(e.outbox.taken(MessageGrant, m.SKU, m.From, m.Number))
	case MessageRecall:
		e.recalled(now, m)
	case MessageAnswer:
		e.answered(now, m)
	case MessageReturn:
		e.submit(task{command: domain.ReclaimStock{SKU: m.SKU, FromLane: m.From, ReturnNumber: m.Number, Units: m.Units}})
	case MessageReclaimed:
		e.fault(e.outbox.taken(MessageReturn, m.SKU, m.From, m.Number))
	case MessageVerdict:
		// It counts from when it was asked for, however long it was on its way.
		if until := time.Unix(0, m.Round).Add(e.options.VerdictFor); now.Before(until) {
			e.board.watch(m.SKU, now.Add(watchFor*e.options.VerdictFor))
			e.board.post(m.SKU, verdict{soldOut: true, free: m.Units, reclaimed: m.Number, inflow: m.Inflow, until: until})
			e.wake(m.SKU)
		}
	case MessageLift:
		e.board.post(m.SKU, verdict{inflow: m.Inflow, until: now.Add(e.options.VerdictFor)})
		e.wake(m.SKU)
	}
}

// asked notes what a lane asks for, once a lane: a newer ask takes the place of an older one.
func (e *escrow) asked(now time.Time, m Message) {
	e.board.watch(m.SKU, now.Add(watchFor*e.options.VerdictFor))
	c := e.centres[m.SKU]
	if c == nil {
		if len(e.centres) >= skusMax {
			return
		}
		c = &centre{recalls: map[uint32]*recall{}, told: map[uint32]struct{}{}}
		e.centres[m.SKU] = c
	}
	for _, a := range c.asks {
		if a.From == m.From {
			if m.Round < a.Round {
				return
			}
			if m.Taken != a.Taken || m.Units != a.Units {
				a.tried = false
			}
			a.Message, a.at = m, now
			e.grant(now, m.SKU, c)
			return
		}
	}
	c.asks = append(c.asks, &ask{Message: m, at: now})
	e.grant(now, m.SKU, c)
}

// grant tries every ask that was not tried since anything changed, in the order in which they came.
func (e *escrow) grant(now time.Time, sku string, c *centre) {
	c.asks = slices.DeleteFunc(c.asks, func(a *ask) bool { return now.Sub(a.at) > askLife*e.options.Again && !a.busy })
	for _, a := range c.asks {
		if !a.tried && !a.busy {
			a.tried, a.busy = true, true
			e.submit(task{command: domain.GrantStock{SKU: sku, ToLane: a.From, After: a.Taken, Least: a.Units, Want: a.Want}})
		}
	}
}

// granted hears what came of a grant: it was made, or the centre has too little. Then the units that are idle
// elsewhere are called back, and when there are none the verdict is given.
func (e *escrow) granted(now time.Time, command domain.GrantStock, account domain.Account, err error) {
	c := e.centres[command.SKU]
	if c == nil {
		return
	}
	i := slices.IndexFunc(c.asks, func(a *ask) bool { return a.From == command.ToLane })
	if i < 0 || !c.asks[i].busy {
		return
	}
	a := c.asks[i]
	a.busy = false
	asked := domain.GrantStock{SKU: a.SKU, ToLane: a.From, After: a.Taken, Least: a.Units, Want: a.Want}
	var refusal domain.Refusal
	switch newest := account.GrantedTo(command.ToLane).Number; {
	case errors.As(err, &refusal):
		c.drop(a)
	case err != nil:
		return // The lane does not take commands now; tick tries again.
	case newest != command.After:
		e.sent(now, command, account)
		if asked.After == command.After {
			c.drop(a)
		}
	case asked.After == command.After && asked.Least >= command.Least: // Else the lane asks for something else by now, which is tried next.
		if missing := e.missing(now, c, a, account); len(missing) > 0 || a.Number > account.ReclaimedFrom(a.From).Number {
			for _, lane := range missing {
				e.recall(now, c, a, lane, account.ReclaimedFrom(lane).Number)
			}
		} else {
			c.drop(a)
			c.inflow, c.until = account.Inflow(), now.Add(watchFor*e.options.VerdictFor)
			c.told[a.From] = struct{}{}
			e.board.watch(a.SKU, c.until)
			e.post(now, Message{Kind: MessageVerdict, SKU: a.SKU, To: a.From, Number: account.ReclaimedFrom(a.From).Number, Units: account.Central, Inflow: c.inflow, Round: a.Round})
		}
	}
	e.grant(now, command.SKU, c)
}

func (c *centre) drop(dropped *ask) {
	c.asks = slices.DeleteFunc(c.asks, func(a *ask) bool { return a == dropped })
}

// sent sees to it that a lane hears of a grant that it did not know of: the outbox sends it, or if the lane has taken it
// already, it is told to look again.
func (e *escrow) sent(now time.Time, command domain.GrantStock, account domain.Account) {
	e.look(now)
	if command.ToLane == e.lane || !e.outbox.grants(command.SKU, command.ToLane) {
		e.post(now, Message{Kind: MessageLift, SKU: command.SKU, To: command.ToLane, Inflow: account.Inflow()})
	}
}

// missing returns the lanes, but the asking one, that may have units idle or on their way: those that were granted some
// and have not said since that none are idle. The account is the centre's; with what a lane answered it must show that
// the lane has taken every grant, and the home lane every return.
func (e *escrow) missing(now time.Time, c *centre, a *ask, account domain.Account) []uint32 {
	var lanes []uint32
	for _, granted := range account.Granted {
		lane := granted.Lane
		reclaimed := account.ReclaimedFrom(lane)
		if lane == a.From || granted.Units == reclaimed.Units {
			continue
		}
		r := c.recalls[lane]
		if r == nil || !r.answered || now.Sub(r.asked) > e.options.VerdictFor/2 || r.idle > 0 || r.taken != granted.Number || r.returned > reclaimed.Number {
			lanes = append(lanes, lane)
		}
	}
	return lanes
}

// recall calls a lane's idle units back. What was not answered is sent again as it was: any answer to it counts.
func (e *escrow) recall(now time.Time, c *centre, a *ask, lane uint32, after uint64) {
	r := c.recalls[lane]
	if r != nil && now.Sub(r.sentAt) < e.options.Again {
		return
	}
	if r == nil || r.answered || now.Sub(r.asked) > e.options.VerdictFor/2 {
		r = &recall{asked: now}
		c.recalls[lane] = r
	}
	r.sentAt = now
	e.post(now, Message{Kind: MessageRecall, SKU: a.SKU, To: lane, Number: after, Units: a.Units, Round: r.asked.UnixNano()})
}

// recalled gives idle units back. From now on, units of the SKU that come free go home.
func (e *escrow) recalled(now time.Time, m Message) {
	e.board.watch(m.SKU, now.Add(watchFor*e.options.VerdictFor))
	if d := e.demands[m.SKU]; d != nil && e.board.resubmits(m.SKU) && d.skips < recallSkipsMax {
		d.skips++ // The home lane asks again.
		return
	} else if d != nil {
		d.skips = 0
	}
	e.submit(task{domain.ReturnStock{SKU: m.SKU, Keep: e.board.pledgedUnits(m.SKU), After: m.Number, Least: m.Units}, m.Round})
}

// answered notes what a lane said. Once all have, the asks are tried again.
func (e *escrow) answered(now time.Time, m Message) {
	c := e.centres[m.SKU]
	if c == nil {
		return
	}
	r := c.recalls[m.From]
	if r == nil || r.asked.UnixNano() != m.Round {
		return
	}
	r.answered, r.returned, r.taken, r.idle = true, m.Number, m.Taken, m.Units
	for _, other := range c.recalls {
		if !other.answered && now.Sub(other.asked) <= e.options.VerdictFor/2 {
			return
		}
	}
	e.retry(now, m.SKU, c)
}

// retry tries every ask again.
func (e *escrow) retry(now time.Time, sku string, c *centre) {
	for _, a := range c.asks {
		a.tried = false
	}
	e.grant(now, sku, c)
}

// decided hears what came of a task: the account after it, or why the lane did not take it.
func (e *escrow) decided(now time.Time, t task, account domain.Account, err error) {
	if grant, ok := t.command.(domain.GrantStock); ok {
		e.granted(now, grant, account, err)
		return
	}
	if err != nil {
		return // Whoever sent the grant, the return or the recall sends it again.
	}
	if allot, ok := t.command.(domain.AllotStock); ok {
		e.post(now, Message{Kind: MessageTaken, SKU: allot.SKU, To: allot.HomeLane, Number: account.Taken.Number})
		if d := e.demands[allot.SKU]; d != nil && account.Taken.Number > d.taken {
			d.taken = account.Taken.Number
			e.wake(allot.SKU)
		}
	}
	if giveBack, ok := t.command.(domain.ReturnStock); ok {
		e.look(now)
		e.post(now, Message{
			Kind: MessageAnswer, SKU: giveBack.SKU, To: e.homeOf(giveBack.SKU),
			Number: account.Returned.Number, Taken: account.Taken.Number, Units: account.Allotted, Round: t.round,
		})
	}
	if reclaim, ok := t.command.(domain.ReclaimStock); ok {
		e.post(now, Message{Kind: MessageReclaimed, SKU: reclaim.SKU, To: reclaim.FromLane, Number: account.ReclaimedFrom(reclaim.FromLane).Number})
		if c := e.centres[reclaim.SKU]; c != nil {
			e.retry(now, reclaim.SKU, c)
		}
	}
}

// look takes in what the machine has noted, and sends what is new in the outbox.
func (e *escrow) look(now time.Time) {
	notes, moved := e.board.take()
	maps.Copy(e.notes, notes)
	if moved {
		e.deliver(now)
	}
	for _, sku := range slices.Sorted(maps.Keys(e.notes)) {
		if e.board.resubmits(sku) {
			continue // They come first; tick looks again.
		}
		account := e.notes[sku]
		delete(e.notes, sku)
		e.freed(now, sku, account)
	}
}

// freed sends units of a scarce SKU that came free home; at home, it tells the other lanes that there are some.
func (e *escrow) freed(now time.Time, sku string, account domain.Account) {
	if account.Allotted > 0 {
		e.submit(task{command: domain.ReturnStock{
			SKU: sku, Keep: e.board.pledgedUnits(sku), After: account.Returned.Number, Least: math.MaxInt64,
		}})
	}
	if e.homeOf(sku) != e.lane {
		return
	}
	inflow := account.Inflow()
	e.board.post(sku, verdict{inflow: inflow, until: now.Add(e.options.VerdictFor)})
	c := e.centres[sku]
	if c == nil {
		return
	}
	if inflow > c.inflow {
		c.inflow = inflow
		for _, lane := range slices.Sorted(maps.Keys(c.told)) {
			e.post(now, Message{Kind: MessageLift, SKU: sku, To: lane, Inflow: inflow})
		}
		clear(c.told)
	}
	e.retry(now, sku, c)
}

// deliver sends what is in the outbox and was not sent just now.
func (e *escrow) deliver(now time.Time) {
	if e.fault(e.outbox.load(e.homeOf)) {
		return
	}
	for _, t := range e.outbox.transfers {
		if now.Sub(t.sentAt) >= e.options.Again {
			t.sentAt = now
			e.post(now, Message{Kind: t.kind, SKU: t.sku, To: t.to, Number: t.number, Units: t.units})
		}
	}
}

// tick sends again what was not answered, and forgets what is over. It reports whether there is anything to come back for.
func (e *escrow) tick(now time.Time) (more bool) {
	e.look(now)
	e.deliver(now)
	for _, sku := range slices.Sorted(maps.Keys(e.demands)) {
		if d := e.demands[sku]; now.Sub(d.askedAt) >= e.options.Again {
			e.ask(now, sku, d)
		}
	}
	for _, sku := range slices.Sorted(maps.Keys(e.centres)) {
		c := e.centres[sku]
		e.retry(now, sku, c)
		if len(c.asks) == 0 && !now.Before(c.until) {
			delete(e.centres, sku)
		}
	}
	left := e.board.expire(now)
	return left || len(e.demands)+len(e.centres)+len(e.notes)+len(e.outbox.transfers) > 0
}

// fault keeps a fault of the disk.
func (e *escrow) fault(err error) bool {
	e.broken = errors.Join(e.broken, err)
	return err != nil
}
