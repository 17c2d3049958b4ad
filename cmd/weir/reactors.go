package main

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/feed"
	"github.com/weirhq/weir/api/reactors/paying"
	"github.com/weirhq/weir/api/reactors/points"
	"github.com/weirhq/weir/api/reactors/webhooks"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// openReactors makes the node's reactors. Nothing runs yet.
func (n *node) openReactors(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startMax)
	defer cancel()
	award, err := points.New(n.lanes, n.options.pointsPerMajor, n.logger)
	if err != nil {
		return usagef("--points-per-major: %v", err)
	}
	registrations := []reactors.Registration{n.cashier.Registration(), award.Registration()}
	if n.options.publishEvents {
		var stream *eventstore.EventFeed
		err := n.log.beside(ctx, n.options.log, func(ctx context.Context) (err error) {
			stream, err = eventstore.OpenEventFeed(ctx, n.log.nc, eventstore.FeedOptions{Topology: n.log.topology, Replicas: n.log.replicas})
			return err
		})
		if err != nil {
			return err
		}
		registrations = append(registrations, feed.NewReactor(stream).Registration())
	}
	n.webhooks, err = webhooks.Open(webhooks.Options{
		Store: n.store, Topology: n.log.topology, Log: n.log.streams.Log, Secrets: n.sealer, Logger: n.logger,
	})
	if err != nil {
		return err
	}
	n.later(func() error { n.webhooks.Close(); return nil })
	var positions *eventstore.ReactorPositions
	err = n.log.beside(ctx, n.options.log, func(ctx context.Context) (err error) {
		positions, err = eventstore.OpenReactorPositions(ctx, n.log.nc, n.log.replicas)
		return err
	})
	if err != nil {
		return err
	}
	n.reactors, err = reactors.New(reactors.Options{
		Shared: positions, Store: n.store, Topology: n.log.topology, Log: n.log.streams.Log, Logger: n.logger,
		Reactors: append(registrations, n.webhooks.Registrations()...),
	})
	if err != nil {
		return err
	}
	n.webhooks.Attach(n.reactors)
	return nil
}

// reactorLane is how far one reactor has followed one lane.
type reactorLane struct {
	Reactor  string `json:"reactor"`
	Lane     uint32 `json:"lane"`
	State    string `json:"state"`
	Position uint64 `json:"position"`
	// Head is the number of the lane's newest commit, Lag the commits between the two.
	Head uint64     `json:"head"`
	Lag  uint64     `json:"lag"`
	AsOf *time.Time `json:"asOf,omitempty"`
	// Failing counts the events that failed and are tried again. The rest is about the newest failure, and since when
	// something fails.
	Failing  int        `json:"failing"`
	Since    *time.Time `json:"since,omitempty"`
	Error    string     `json:"error,omitempty"`
	Event    string     `json:"event,omitempty"`
	Failures int        `json:"failures,omitempty"`
}

// reactorReport is how far the reactors of a node are, and how its payments stand.
type reactorReport struct {
	Reactors []reactorLane `json:"reactors"`
	// Payments is nil when no node runs.
	Payments *paymentReport `json:"payments,omitempty"`
}

// A reactorSource knows the reactors of a node.
type reactorSource interface {
	Reactors(ctx context.Context) (reactorReport, error)
}

func (p *process) reactorsCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "reactors",
		Short: "See how far the reactors are",
		Long: `Reactors act on what was decided: they follow the log, lane by lane, and have effects elsewhere, such as the public
event feed (--publish-events) and webhooks (one reactor for each endpoint). An effect that fails is tried again until it
succeeds; nothing is skipped.`,
	})
	cmd.AddCommand(p.reactorsStatus())
	return cmd
}

func (p *process) reactorsStatus() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Print the position, lag and last error of each reactor",
		Long: `Print for each reactor and lane how far it has reacted to the log: its position, the log's newest commit (head), how
many commits lie between (lag), the log time of the position, and what fails.

The state is "fresh" (lag 0), "catching-up", "failing" when an effect failed and is tried again, with how many events
that is true of, since when, and the newest error, or "stopped" when no node runs on the directory; the next start goes
on from the position.

Of a running node it prints its payment providers as well: whether one is called (its breaker is "closed") or not
("open"), how many orders wait for it, since when the oldest does, and what somebody has to look at, counted since the
node started: each was logged as an error.

` + sourceHelp + `
Name the directory of a stopped node as well then: the positions are there.`,
		Example: `  weir reactors status --data ./weir-data
  weir reactors status -o json | jq '.reactors[] | select(.state == "failing")'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.printReactors(cmd, s))
		},
	}
	from.addFlags(cmd, false)
	return cmd
}

func (p *process) printReactors(cmd *cobra.Command, s *source) error {
	if s.reactors == nil {
		return usagef("there are no reactors to look at").then("name the node's directory with --data")
	}
	report, err := s.reactors.Reactors(cmd.Context())
	if err != nil {
		return err
	}
	if p.json(cmd) {
		return writeJSON(p.stdout, report)
	}
	paint := p.painterFor(p.stdout)
	rows := newTable("REACTOR", ">LANE", "STATE", ">POSITION", ">HEAD", ">LAG", "AS OF", ">FAILING", "SINCE", "ERROR")
	rows.style = func(column int, cell string) string {
		switch {
		case column != 2:
			return cell
		case cell == string(reactors.StateFresh):
			return paint.good(cell)
		case cell == string(reactors.StateFailing):
			return paint.bad(cell)
		}
		return paint.warn(cell)
	}
	for _, l := range report.Reactors {
		what := l.Error
		if what != "" {
			what = l.Event + ": " + what
		}
		rows.row(l.Reactor, strconv.FormatUint(uint64(l.Lane), 10), l.State, groupDigits(l.Position), groupDigits(l.Head), groupDigits(l.Lag),
			instantText(l.AsOf), strconv.Itoa(l.Failing), instantText(l.Since), what)
	}
	if err := rows.print(p.stdout, paint); err != nil || report.Payments == nil {
		return err
	}
	return p.printPayments(report.Payments)
}

// localReactors are the reactors of this process, or the positions that a stopped node left.
type localReactors struct {
	runner  *reactors.Runner
	cashier *paying.Cashier
	store   *projections.Store
	log     func(lane uint32) eventstore.Log
}

// Reactors implements reactorSource.
func (r *localReactors) Reactors(ctx context.Context) (reactorReport, error) {
	report := reactorReport{Reactors: []reactorLane{}}
	if r.runner != nil {
		for _, status := range r.runner.Status() {
			report.Reactors = append(report.Reactors, newReactorLane(&status))
		}
		report.Payments = newPaymentReport(r.cashier.Status())
		return report, nil
	}
	recorded, err := reactors.Recorded(r.store)
	if err != nil {
		return report, err
	}
	for _, status := range recorded {
		head, err := r.log(status.Lane).Head(ctx)
		if err != nil {
			return report, err
		}
		status.Head, status.Lag = head, head-min(head, status.Position)
		report.Reactors = append(report.Reactors, newReactorLane(&status))
	}
	return report, nil
}

func newReactorLane(s *reactors.Status) reactorLane {
	l := reactorLane{
		Reactor: s.Reactor, Lane: s.Lane, State: string(s.State), Position: s.Position, Head: s.Head, Lag: s.Lag,
		AsOf: instantOf(s.AsOf), Failing: s.Failing, Since: instantOf(s.Since), Event: s.Event, Failures: s.Failures,
	}
	if s.Err != nil {
		l.Error = s.Err.Error()
	}
	return l
}

// instantOf returns nil for the zero time.
func instantOf(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	at = at.UTC()
	return &at
}

func (i *inspector) serveReactors(w http.ResponseWriter, r *http.Request) {
	report, err := i.reactors.Reactors(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	respond(w, report)
}

// Reactors implements reactorSource.
func (n *remoteNode) Reactors(ctx context.Context) (report reactorReport, err error) {
	err = n.getJSON(ctx, inspectReactors, nil, &report)
	return report, err
}
