package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

func (p *process) auditCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "audit",
		Short: "Prove from the log that nothing was oversold or lost",
		Long:  `Replay the log and prove that its sums hold, at every position. The views are not asked.` + "\n\n" + sourceHelp,
	})
	cmd.AddCommand(p.auditStock())
	return cmd
}

// A stockAudit is what 'audit stock' found.
type stockAudit struct {
	OK    bool          `json:"ok"`
	Lanes []auditedLane `json:"lanes"`
	// Events that moved units, each a position at which the sums were checked.
	Events     int64            `json:"events"`
	SKUs       []auditedSKU     `json:"skus"`
	Violations []stockViolation `json:"violations"`
}

type auditedLane struct {
	Lane    uint32 `json:"lane"`
	Commits uint64 `json:"commits"`
}

// An auditedSKU is where the units of a SKU, or of a pool of it, are at the end.
type auditedSKU struct {
	SKU       string `json:"sku"`
	Events    int64  `json:"events"`
	Received  int64  `json:"received"`
	Central   int64  `json:"central"`
	InTransit int64  `json:"in_transit"`
	Allotted  int64  `json:"allotted"`
	Reserved  int64  `json:"reserved"`
	Sold      int64  `json:"sold"`
	// Broken says that a violation was found; the SKU was not followed beyond it, and the units are those before it.
	Broken bool `json:"broken"`
}

// A stockViolation is the first event that broke the sums of a SKU.
type stockViolation struct {
	SKU    string `json:"sku"`
	Lane   uint32 `json:"lane"`
	Commit uint64 `json:"commit"`
	Event  int    `json:"event"`
	Type   string `json:"type"`
	What   string `json:"what"`
}

func (p *process) auditStock() *cobra.Command {
	var (
		from sourceFlags
		sku  string
	)
	cmd := &cobra.Command{
		Use:   "stock [--sku SKU]",
		Short: "Prove that every unit is where the log says",
		Long: `Replay the log of every lane and prove, for each product and after every event that moves its units, that

  received = central + in transit + allotted + reserved + sold

with no term negative, in the whole and in each lane's own account: nothing was oversold, no unit was lost or made up.
Grants and returns between lanes are followed one by one: each is taken once, in order, with the units it was sent with.

The logs of the lanes are replayed so that no lane takes units before the other has sent them. It prints where the units
are and the first violation of each product (at most 100). Exit code 0: there is none; 3: there are violations.

` + sourceHelp,
		Example: `  weir audit stock --data ./weir-data
  weir audit stock --sku tea -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.runStockAudit(cmd, s, sku))
		},
	}
	from.addFlags(cmd, false)
	cmd.Flags().StringVar(&sku, "sku", "", "only this `SKU` and its pools")
	return cmd
}

func (p *process) runStockAudit(cmd *cobra.Command, s *source, sku string) error {
	a := newStockAuditor(s.topology, sku)
	if err := p.replay(cmd.Context(), s, a); err != nil {
		return err
	}
	found := a.report()
	if sku != "" && len(found.SKUs) == 0 {
		return &problem{code: exitNotFound, what: fmt.Sprintf("the log has no event that moves units of %q", sku), next: "list what there is: weir audit stock"}
	}
	if err := p.printStockAudit(cmd, found); err != nil {
		return err
	}
	if !found.OK {
		return &problem{
			code: exitDifference, what: fmt.Sprintf("%d violations found", len(found.Violations)),
			next: "prove that the log itself is whole: weir log verify; then keep the directory as it is and report the events named above",
		}
	}
	return nil
}

// A replayedLane is one lane's log while it is replayed.
type replayedLane struct {
	lane     uint32
	reader   laneReader
	head     uint64
	cursor   eventstore.Cursor
	position eventstore.Position
	read     int64 // bytes of the log, up to the position
	// commit is the one that is being replayed, and event the next of it.
	commit *eventstore.Commit
	event  int
}

// replay replays every lane up to its head, none ahead of what it took from another.
func (p *process) replay(ctx context.Context, s *source, a *stockAuditor) error {
	lanes := make([]*replayedLane, s.topology.Lanes)
	var readers []laneReader
	for lane := range s.topology.Lanes {
		r := &replayedLane{lane: lane, reader: s.lane(lane), position: eventstore.Genesis(lane, s.topology.Lanes)}
		lanes[lane] = r
		var err error
		if r.head, err = r.reader.Head(ctx); err != nil {
			return explainLog(lane, err)
		}
		if r.cursor, err = r.reader.Follow(ctx, 1); err != nil {
			return explainLog(lane, err)
		}
		defer r.cursor.Close()
		readers = append(readers, r.reader)
	}
	progress := p.newLogProgress(ctx, "audit", readers...)
	defer progress.end()
	for {
		moved := false
		var waits *replayedLane
		var forLane uint32
		for _, r := range lanes {
			for {
				done, err := r.next(ctx)
				if err != nil {
					return explainLog(r.lane, err)
				}
				if done {
					break
				}
				sender, waiting, err := a.take(r.commit, r.event)
				if err != nil {
					return fmt.Errorf("lane %d, commit %d, event %d: %w", r.lane, r.commit.Number, r.event, err)
				}
				if waiting {
					waits, forLane = r, sender
					break
				}
				r.event++
				moved = true
			}
			a.commits[r.lane] = r.position.Number
		}
		var read int64
		for _, r := range lanes {
			read += r.read
		}
		progress.at(read)
		switch {
		case moved:
		case waits == nil:
			return nil
		default:
			// On a running node the other lane has grown since its head was read: what was taken was sent before.
			sender := lanes[min(forLane, s.topology.Lanes-1)] // Another lane's is refused when it was not sent.
			head, err := sender.reader.Head(ctx)
			if err != nil {
				return explainLog(forLane, err)
			}
			if head <= sender.head || sender == waits {
				a.neverSent(waits.commit, waits.event)
				waits.event++
			}
			sender.head = max(sender.head, head)
		}
	}
}

// next makes r.event the next event to replay. It reports true at the head.
func (r *replayedLane) next(ctx context.Context) (done bool, err error) {
	for r.commit == nil || r.event == len(r.commit.Events) {
		if r.position.Number >= r.head {
			return true, nil
		}
		record, err := r.cursor.Next(ctx)
		if err != nil {
			return false, err
		}
		commit, err := eventstore.DecodeCommit(record.Data)
		if err != nil {
			return false, &eventstore.ChainError{Lane: r.lane, Number: record.Number, Reason: err.Error()}
		}
		if err := r.position.Check(commit, r.lane); err != nil {
			return false, err
		}
		r.position = eventstore.Position{Number: record.Number, Hash: record.Hash}
		r.read += int64(record.Stored)
		r.commit, r.event = commit, 0
	}
	return false, nil
}

// A stockAuditor follows the units of every SKU over all lanes.
type stockAuditor struct {
	topology   eventstore.Topology
	only       string
	commits    []uint64
	events     int64
	skus       map[string]*auditedUnits
	sent       map[sentUnits]int64
	violations []stockViolation
	broken     int
}

type auditedUnits struct {
	accounts map[uint32]domain.Account
	ledger   domain.Ledger
	events   int64
	broken   bool
}

// sentUnits names a grant or a return between two lanes that is on its way.
type sentUnits struct {
	sku    string
	back   bool // to the home lane
	lane   uint32
	number uint64
}

func newStockAuditor(topology eventstore.Topology, only string) *stockAuditor {
	return &stockAuditor{
		topology: topology, only: only, commits: make([]uint64, topology.Lanes),
		skus: map[string]*auditedUnits{}, sent: map[sentUnits]int64{},
	}
}

// decode returns a domain event, nil for the log's own.
func (a *stockAuditor) decode(commit *eventstore.Commit, index int) (domain.Event, error) {
	envelope := &commit.Events[index]
	if envelope.Type == eventstore.TypeLaneOpened {
		return nil, nil
	}
	return stored.Decode(envelope.Type, envelope.Version, envelope.AggregateID, envelope.UserID, envelope.Payload)
}

// take replays one event. It reports true, and the lane that must come first, when the event takes what was not sent yet.
func (a *stockAuditor) take(commit *eventstore.Commit, index int) (sender uint32, waiting bool, err error) {
	event, err := a.decode(commit, index)
	if err != nil || event == nil {
		return 0, false, err
	}
	if taken, sender, ok := takes(event, commit.Lane); ok && a.follows(taken.sku) && !a.of(taken.sku).broken {
		if _, found := a.sent[taken]; !found {
			return sender, true, nil
		}
	}
	for sku := range domain.SKUs(event) {
		if a.follows(sku) {
			a.move(commit, index, event, sku)
		}
	}
	return 0, false, nil
}

// takes returns what an event takes that another lane sent, and that lane.
func takes(event domain.Event, lane uint32) (sentUnits, uint32, bool) {
	if e, ok := event.(domain.StockAllotted); ok {
		return sentUnits{sku: e.SKU, lane: lane, number: e.GrantNumber}, e.HomeLane, true
	}
	if e, ok := event.(domain.StockReclaimed); ok {
		return sentUnits{sku: e.SKU, back: true, lane: e.FromLane, number: e.ReturnNumber}, e.FromLane, true
	}
	return sentUnits{}, 0, false
}

// neverSent records that an event took what nobody sent.
func (a *stockAuditor) neverSent(commit *eventstore.Commit, index int) {
	event, err := a.decode(commit, index)
	if err != nil {
		return
	}
	taken, sender, _ := takes(event, commit.Lane)
	what := fmt.Sprintf("it takes grant %d, which lane %d did not make, or which was taken already", taken.number, sender)
	if taken.back {
		what = fmt.Sprintf("it takes return %d, which lane %d did not make, or which was taken already", taken.number, sender)
	}
	a.violated(a.of(taken.sku), taken.sku, commit, index, what)
}

func (a *stockAuditor) follows(sku string) bool {
	return a.only == "" || sku == a.only || domain.HomeKey(sku) == a.only
}

func (a *stockAuditor) of(sku string) *auditedUnits {
	units := a.skus[sku]
	if units == nil {
		units = &auditedUnits{accounts: map[uint32]domain.Account{}}
		a.skus[sku] = units
	}
	return units
}

// move follows the units of one SKU through one event, and checks the sums after it.
func (a *stockAuditor) move(commit *eventstore.Commit, index int, event domain.Event, sku string) {
	units := a.of(sku)
	if units.broken {
		return
	}
	before := units.accounts[commit.Lane]
	after := before.Evolve(event, sku)
	ledger := units.ledger
	add(&ledger, after, 1)
	add(&ledger, before, -1)
	what := a.wrong(commit, event, sku, before)
	if err := after.Check(); what == "" && err != nil {
		what = fmt.Sprintf("the account of the lane: %v", err)
	}
	if err := ledger.Check(); what == "" && err != nil {
		what = err.Error()
	}
	if what != "" {
		a.violated(units, sku, commit, index, what)
		return
	}
	units.accounts[commit.Lane], units.ledger = after, ledger
	units.events++
	a.events++
}

// add adds an account to a ledger, or with -1 takes it off.
func add(ledger *domain.Ledger, account domain.Account, sign int64) {
	l := domain.Sum(map[uint32]domain.Account{0: account})
	ledger.Received += sign * l.Received
	ledger.Central += sign * l.Central
	ledger.InTransit += sign * l.InTransit
	ledger.Allotted += sign * l.Allotted
	ledger.Reserved += sign * l.Reserved
	ledger.Sold += sign * l.Sold
}

// wrong says what is wrong with an event beside the sums: its number, its units, or where it was decided. It notes what is sent
// and taken.
func (a *stockAuditor) wrong(commit *eventstore.Commit, event domain.Event, sku string, before domain.Account) string {
	home := a.topology.LaneOf(eventstore.PartitionOf(domain.HomeKey(sku)))
	if e, ok := event.(domain.StockReceived); ok {
		if e.Units < 1 || e.ReceivedTotal != before.Received+e.Units {
			return fmt.Sprintf("%d units came in beside %d, and it says %d in all", e.Units, before.Received, e.ReceivedTotal)
		}
		return atHome(commit.Lane, home)
	}
	if e, ok := event.(domain.StockGranted); ok {
		if want := before.GrantedTo(e.ToLane).Number + 1; e.GrantNumber != want || e.Units < 1 || e.ToLane >= a.topology.Lanes {
			return fmt.Sprintf("it is grant %d of %d units to lane %d; grant %d is the next", e.GrantNumber, e.Units, e.ToLane, want)
		}
		a.sent[sentUnits{sku: sku, lane: e.ToLane, number: e.GrantNumber}] = e.Units
		return atHome(commit.Lane, home)
	}
	if e, ok := event.(domain.StockReturned); ok {
		if want := before.Returned.Number + 1; e.ReturnNumber != want || e.Units < 1 {
			return fmt.Sprintf("it is return %d of %d units; return %d is the next", e.ReturnNumber, e.Units, want)
		}
		a.sent[sentUnits{sku: sku, back: true, lane: commit.Lane, number: e.ReturnNumber}] = e.Units
	}
	if e, ok := event.(domain.StockAllotted); ok {
		return a.taken(event, commit.Lane, e.Units, before.Taken.Number+1)
	}
	if e, ok := event.(domain.StockReclaimed); ok {
		if what := atHome(commit.Lane, home); what != "" {
			return what
		}
		return a.taken(event, commit.Lane, e.Units, before.ReclaimedFrom(e.FromLane).Number+1)
	}
	if e, ok := event.(domain.PoolFilled); ok {
		return movedAtHome(e.Units, commit.Lane, home)
	}
	if e, ok := event.(domain.PoolDrained); ok {
		return movedAtHome(e.Units, commit.Lane, home)
	}
	return ""
}

// movedAtHome checks that units were moved between a SKU and its pool, in their home lane.
func movedAtHome(units int64, lane, home uint32) string {
	if units < 1 {
		return fmt.Sprintf("it moves %d units", units)
	}
	return atHome(lane, home)
}

func atHome(lane, home uint32) string {
	if lane != home {
		return fmt.Sprintf("it is in lane %d, and the home lane is %d", lane, home)
	}
	return ""
}

// taken checks that units are taken in order and as they were sent.
func (a *stockAuditor) taken(event domain.Event, lane uint32, units int64, next uint64) string {
	taken, _, _ := takes(event, lane)
	sent := a.sent[taken]
	if taken.number != next || units != sent {
		return fmt.Sprintf("it takes number %d with %d units; number %d is the next, and number %d was sent with %d", taken.number, units, next, taken.number, sent)
	}
	delete(a.sent, taken)
	return ""
}

func (a *stockAuditor) violated(units *auditedUnits, sku string, commit *eventstore.Commit, index int, what string) {
	if units.broken || !a.follows(sku) {
		return
	}
	units.broken = true
	a.broken++
	if len(a.violations) < differencesMax {
		a.violations = append(a.violations, stockViolation{
			SKU: sku, Lane: commit.Lane, Commit: commit.Number, Event: index, Type: commit.Events[index].Type, What: what,
		})
	}
}

func (a *stockAuditor) report() *stockAudit {
	found := &stockAudit{OK: a.broken == 0, Lanes: []auditedLane{}, Events: a.events, SKUs: []auditedSKU{}, Violations: []stockViolation{}}
	for lane, commits := range a.commits {
		found.Lanes = append(found.Lanes, auditedLane{Lane: uint32(lane), Commits: commits})
	}
	for sku, u := range a.skus {
		if !a.follows(sku) || (u.events == 0 && !u.broken) {
			continue
		}
		found.SKUs = append(found.SKUs, auditedSKU{
			SKU: sku, Events: u.events, Received: u.ledger.Received, Central: u.ledger.Central, InTransit: u.ledger.InTransit,
			Allotted: u.ledger.Allotted, Reserved: u.ledger.Reserved, Sold: u.ledger.Sold, Broken: u.broken,
		})
	}
	slices.SortFunc(found.SKUs, func(x, y auditedSKU) int {
		switch {
		case x.SKU < y.SKU:
			return -1
		case x.SKU > y.SKU:
			return 1
		}
		return 0
	})
	found.Violations = append(found.Violations, a.violations...)
	return found
}

func (p *process) printStockAudit(cmd *cobra.Command, found *stockAudit) error {
	if p.json(cmd) {
		return writeJSON(p.stdout, found)
	}
	paint := p.painterFor(p.stdout)
	rows := newTable("SKU", ">EVENTS", ">RECEIVED", ">CENTRAL", ">IN TRANSIT", ">ALLOTTED", ">RESERVED", ">SOLD", "RESULT")
	for _, s := range found.SKUs {
		result := "ok"
		if s.Broken {
			result = "BROKEN"
		}
		rows.row(s.SKU, groupDigits(s.Events), groupDigits(s.Received), groupDigits(s.Central), groupDigits(s.InTransit),
			groupDigits(s.Allotted), groupDigits(s.Reserved), groupDigits(s.Sold), result)
	}
	if err := rows.print(p.stdout, paint); err != nil {
		return err
	}
	var commits uint64
	for _, l := range found.Lanes {
		commits += l.Commits
	}
	result := paint.good("ok: received = central + in transit + allotted + reserved + sold after each of " + groupDigits(found.Events) + " events")
	if !found.OK {
		result = paint.bad("VIOLATED")
	}
	if _, err := fmt.Fprintf(p.stdout, "\nreplayed: %s commits of %d lanes\nresult: %s\n", groupDigits(int64(commits)), len(found.Lanes), result); err != nil {
		return err
	}
	if found.OK {
		return nil
	}
	if _, err := fmt.Fprintln(p.stdout); err != nil {
		return err
	}
	violations := newTable("SKU", ">LANE", ">COMMIT", ">EVENT", "TYPE", "WHAT")
	for _, v := range found.Violations {
		violations.row(v.SKU, strconv.FormatUint(uint64(v.Lane), 10), strconv.FormatUint(v.Commit, 10), strconv.Itoa(v.Event), v.Type, v.What)
	}
	return violations.print(p.stdout, paint)
}
