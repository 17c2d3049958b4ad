package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// A rebuildSource knows the generations of a node's views, and changes them.
type rebuildSource interface {
	// Generations says which generations of each view there are.
	Generations(ctx context.Context) ([]viewGenerations, error)
	// Rebuilds says how each rebuild stands.
	Rebuilds(ctx context.Context) ([]viewRebuild, error)
	// Compare compares two generations of a view.
	Compare(ctx context.Context, view string) (viewComparison, error)
	// Act does what the action says to a view. Lanes, speed and swap are those of a start.
	Act(ctx context.Context, action, view string, start url.Values) error
	// Work goes on with rebuilds until ctx ends, where no node runs that does.
	Work(ctx context.Context) error
	// Sweep removes what was dropped, where no node runs that does.
	Sweep() error
}

// viewGenerations says which generations of a view there are in a lane.
type viewGenerations struct {
	View    string `json:"view"`
	Version uint32 `json:"version"`
	Lane    uint32 `json:"lane"`
	// Answers is the generation that answers reads; Kept did before, Building does not yet. 0 when there is none.
	Answers  uint32 `json:"answers"`
	Kept     uint32 `json:"kept,omitempty"`
	Building uint32 `json:"building,omitempty"`
}

// viewRebuild says how the rebuild of a view stands.
type viewRebuild struct {
	View       string `json:"view"`
	State      string `json:"state"`
	Generation uint32 `json:"generation"`
	Speed      string `json:"speed"`
	Swap       string `json:"swap"`
	Reason     string `json:"reason,omitempty"`
	Differ     uint64 `json:"differ,omitempty"`
	// Share is how much of the work is done, the comparison included, from 0 to 1. ETASeconds is how long the rest takes at the pace of
	// late; 0 when that is not known, and while nobody works on it.
	Share      float64       `json:"share"`
	ETASeconds float64       `json:"etaSeconds,omitempty"`
	Lanes      []rebuildLane `json:"lanes"`
}

// rebuildLane says how far a lane of a rebuild is.
type rebuildLane struct {
	Lane     uint32 `json:"lane"`
	Position uint64 `json:"position"`
	Head     uint64 `json:"head"`
	Events   uint64 `json:"events"`
	// Bytes of the log are read of BytesTotal, which grows with the log; both are 0 until it is known.
	Bytes      uint64 `json:"bytes"`
	BytesTotal uint64 `json:"bytesTotal"`
}

// viewComparison says whether two generations of a view are the same.
type viewComparison struct {
	View string `json:"view"`
	// Answers and Other are the generations.
	Answers uint32 `json:"answers"`
	Other   uint32 `json:"other"`
	Equal   bool   `json:"equal"`
	// Heals counts the parked keys of Answers that Other has taken in, Healed those of Other, which is kept, that Answers has
	// taken in: they count as equal.
	Heals       int              `json:"heals,omitempty"`
	Healed      int              `json:"healed,omitempty"`
	Lanes       []comparedLane   `json:"lanes"`
	Differences []viewDifference `json:"differences"`
}

type comparedLane struct {
	Lane     uint32 `json:"lane"`
	Position uint64 `json:"position"`
	Keys     uint64 `json:"keys"`
	// Partitions that differ, and how many keys of them do.
	Partitions []uint32 `json:"partitions"`
	Differ     uint64   `json:"differ"`
	// Heals are the first parked keys that the other generation has taken in, Healed those of the other one.
	Heals  []string `json:"heals,omitempty"`
	Healed []string `json:"healed,omitempty"`
}

type viewDifference struct {
	Lane    uint32 `json:"lane"`
	Key     string `json:"key"`
	Problem string `json:"problem"`
}

// localRebuilds are those of this process. It implements rebuildSource.
type localRebuilds struct{ rebuilder *projections.Rebuilder }

func (l *localRebuilds) Generations(context.Context) ([]viewGenerations, error) {
	all := []viewGenerations{}
	for _, g := range l.rebuilder.Generations() {
		all = append(all, viewGenerations{View: g.Projection, Version: g.Version, Lane: g.Lane, Answers: g.Live, Kept: g.Kept, Building: g.Building})
	}
	return all, nil
}

func (l *localRebuilds) Rebuilds(context.Context) ([]viewRebuild, error) {
	all := []viewRebuild{}
	for _, status := range l.rebuilder.Status() {
		v := viewRebuild{
			View: status.Projection, State: string(status.State), Generation: status.Generation, Speed: status.Speed.String(),
			Swap: string(status.Swap), Reason: status.Reason, ETASeconds: status.Left.Seconds(),
		}
		if status.Total > 0 {
			v.Share = float64(status.Done) / float64(status.Total)
		}
		if status.Comparison != nil {
			v.Differ = status.Comparison.DifferencesTotal()
		}
		for _, lane := range status.Lanes {
			v.Lanes = append(v.Lanes, rebuildLane{
				Lane: lane.Lane, Position: lane.Position, Head: lane.Target, Events: lane.Events, Bytes: lane.Bytes, BytesTotal: lane.BytesTotal,
			})
		}
		all = append(all, v)
	}
	return all, nil
}

func (l *localRebuilds) Compare(ctx context.Context, view string) (viewComparison, error) {
	found, err := l.rebuilder.Compare(ctx, view)
	if err != nil {
		return viewComparison{}, explainRebuild(err)
	}
	c := viewComparison{View: view, Answers: found.Live, Other: found.Other, Equal: found.Equal(), Heals: found.Heals(), Healed: found.Healed(), Differences: []viewDifference{}}
	for _, lane := range found.Lanes {
		c.Lanes = append(c.Lanes, comparedLane{
			Lane: lane.Lane, Position: lane.Position.Number, Keys: lane.Keys, Partitions: append([]uint32{}, lane.Partitions...), Differ: lane.DifferencesTotal,
			Heals: lane.Heals[:min(len(lane.Heals), projections.DifferencesMax)], Healed: lane.Healed[:min(len(lane.Healed), projections.DifferencesMax)],
		})
		for _, d := range lane.Differences {
			if len(c.Differences) < projections.DifferencesMax {
				c.Differences = append(c.Differences, viewDifference{Lane: lane.Lane, Key: d.Key, Problem: d.Problem})
			}
		}
	}
	return c, nil
}

func (l *localRebuilds) Act(ctx context.Context, action, view string, start url.Values) error {
	var err error
	switch action {
	case "start":
		var options projections.RebuildOptions
		if options, err = startOptions(start); err == nil {
			err = l.rebuilder.Start(view, options)
		}
	case "pause":
		err = l.rebuilder.Pause(view)
	case "resume":
		err = l.rebuilder.Resume(view)
	case "swap":
		err = l.rebuilder.Swap(ctx, view)
	case "rollback":
		err = l.rebuilder.Rollback(ctx, view)
	case "drop":
		err = l.rebuilder.Drop(ctx, view)
	default:
		return usagef("there is no action %q", action)
	}
	return explainRebuild(err)
}

func (l *localRebuilds) Work(ctx context.Context) error { return l.rebuilder.Run(ctx) }

func (l *localRebuilds) Sweep() error {
	_, err := l.rebuilder.Sweep()
	return err
}

// startOptions reads the values of a start.
func startOptions(values url.Values) (options projections.RebuildOptions, err error) {
	for _, text := range values["lanes"] {
		lane, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return options, usagef("%q is no lane", text)
		}
		options.Lanes = append(options.Lanes, uint32(lane))
	}
	options.Swap = projections.SwapMode(values.Get("swap"))
	if options.Speed, err = projections.ParseSpeed(values.Get("speed")); err != nil {
		return options, usagef("--speed: %v", err)
	}
	return options, nil
}

// explainRebuild says what a refusal means for the caller.
func explainRebuild(err error) error {
	var refusal *projections.RebuildRefusal
	if errors.As(err, &refusal) {
		return rebuildProblem(refusal)
	}
	return err
}

func rebuildProblem(err error) *problem {
	return &problem{code: exitUsage, what: err.Error(), cause: err, next: "see what there is: weir projections list, and weir projections status"}
}

// The inspection endpoint's side.

func (i *inspector) serveGenerations(w http.ResponseWriter, r *http.Request) {
	answerRebuild(w, r, func(ctx context.Context) (any, error) { return i.rebuilds.Generations(ctx) })
}

func (i *inspector) serveRebuilds(w http.ResponseWriter, r *http.Request) {
	answerRebuild(w, r, func(ctx context.Context) (any, error) { return i.rebuilds.Rebuilds(ctx) })
}

func (i *inspector) serveCompare(w http.ResponseWriter, r *http.Request) {
	answerRebuild(w, r, func(ctx context.Context) (any, error) { return i.rebuilds.Compare(ctx, r.FormValue("view")) })
}

func (i *inspector) serveRebuild(w http.ResponseWriter, r *http.Request) {
	answerRebuild(w, r, func(ctx context.Context) (any, error) {
		return struct{}{}, i.rebuilds.Act(ctx, r.PathValue("action"), r.FormValue("view"), r.Form)
	})
}

// answerRebuild answers a problem of the caller's as a conflict, whose text is the problem's.
func answerRebuild(w http.ResponseWriter, r *http.Request, ask func(context.Context) (any, error)) {
	answer, err := ask(r.Context())
	var wrong *problem
	switch {
	case err == nil:
		respond(w, answer)
	case errors.As(err, &wrong):
		http.Error(w, err.Error(), http.StatusConflict)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

// Generations implements rebuildSource.
func (n *remoteNode) Generations(ctx context.Context) (all []viewGenerations, err error) {
	err = n.getJSON(ctx, inspectGenerations, nil, &all)
	return all, err
}

// Rebuilds implements rebuildSource.
func (n *remoteNode) Rebuilds(ctx context.Context) (all []viewRebuild, err error) {
	err = n.getJSON(ctx, inspectRebuilds, nil, &all)
	return all, err
}

// Compare implements rebuildSource.
func (n *remoteNode) Compare(ctx context.Context, view string) (found viewComparison, err error) {
	err = n.getJSON(ctx, inspectCompare, url.Values{"view": {view}}, &found)
	return found, err
}

// Act implements rebuildSource.
func (n *remoteNode) Act(ctx context.Context, action, view string, start url.Values) error {
	query := url.Values{"view": {view}}
	for key, values := range start {
		query[key] = values
	}
	body, err := n.ask(ctx, http.MethodPost, inspectRebuild+action, query)
	if err != nil {
		return err
	}
	return body.Close()
}

// Work implements rebuildSource: the node works.
func (n *remoteNode) Work(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Sweep implements rebuildSource: the node sweeps.
func (n *remoteNode) Sweep() error { return nil }

// The commands.

// withRebuilds opens the source of a command about generations.
func (p *process) withRebuilds(cmd *cobra.Command, from *sourceFlags, do func(s *source) error) error {
	s, err := p.openSource(cmd.Context(), from)
	if err != nil {
		return err
	}
	if s.rebuilds == nil {
		return closeWith(s, usagef("there are no views to look at").then("name the node's directory with --data"))
	}
	return closeWith(s, do(s))
}

func (p *process) projectionsList() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Print the views and their generations",
		Long: `Print for each view and lane the version that this weir writes, the generation that answers reads, the one that
answered before and is kept, and the one that is being built or waits to be swapped.

` + sourceHelp,
		Example: `  weir projections list
  weir projections list -o json | jq '.views[] | select(.kept)'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withRebuilds(cmd, &from, func(s *source) error { return p.printGenerations(cmd, s, "") })
		},
	}
	from.addFlags(cmd, false)
	return cmd
}

// printGenerations prints the generations of one view, of all when view is empty.
func (p *process) printGenerations(cmd *cobra.Command, s *source, view string) error {
	all, err := s.rebuilds.Generations(cmd.Context())
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(g viewGenerations) bool { return view != "" && g.View != view })
	if p.json(cmd) {
		return writeJSON(p.stdout, map[string]any{"views": all})
	}
	rows := newTable("VIEW", ">VERSION", ">LANE", ">ANSWERS", ">KEPT", ">BUILDING")
	for _, g := range all {
		rows.row(g.View, number(g.Version), strconv.Itoa(int(g.Lane)), number(g.Answers), number(g.Kept), number(g.Building))
	}
	return rows.print(p.stdout, p.painterFor(p.stdout))
}

// number writes a number, or nothing for 0.
func number(n uint32) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(n), 10)
}

func (p *process) printRebuilds(rebuilds []viewRebuild) error {
	rows := newTable("REBUILD", ">LANE", "STATE", ">GENERATION", ">POSITION", ">HEAD", ">DONE", ">ETA", "SPEED", "SWAP", "REASON")
	for _, r := range rebuilds {
		eta := "-"
		if r.ETASeconds > 0 {
			eta = time.Duration(r.ETASeconds * float64(time.Second)).Round(time.Second).String()
		}
		for _, lane := range r.Lanes {
			rows.row(r.View, strconv.Itoa(int(lane.Lane)), r.State, number(r.Generation), groupDigits(lane.Position), groupDigits(lane.Head), fmt.Sprintf("%.0f%%", 100*r.Share), eta, r.Speed, r.Swap, r.Reason)
		}
	}
	return rows.print(p.stdout, p.painterFor(p.stdout))
}

func (p *process) projectionsVerify() *cobra.Command {
	var (
		from   sourceFlags
		sample int
	)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the views with a fresh fold of the log, and Redis with the views",
		Long: `Read the log of every lane from its first commit, fold it into views in memory, and compare them with those that
answer reads, key by key.

With --sample N, orders, users' orders, payments and points are compared in N of the 1,024 partitions, drawn anew
each time, so that less memory is needed; the other views, which are small, are compared whole.

Of a running node with --redis, every entry in Redis that a read would be answered with is then compared with the
views; what is too old for that is counted. A Redis that does not answer is said, and is no difference.

It prints the first differences of each, and counts all. Exit code 0: there is no difference; 3: there are some.

` + sourceHelp,
		Example: `  weir projections verify
  weir projections verify --sample 64 -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if sample < 0 || sample > eventstore.Partitions {
				return usagef("--sample must be from 0 (all) to %d partitions, not %d", eventstore.Partitions, sample)
			}
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.runVerifyViews(cmd, s, sample))
		},
	}
	from.addFlags(cmd, false)
	cmd.Flags().IntVar(&sample, "sample", 0, "compare the orders of so many `PARTITIONS`, drawn anew; 0 means all")
	return cmd
}

func (p *process) runVerifyViews(cmd *cobra.Command, s *source, sample int) error {
	if s.views == nil {
		return usagef("there are no views to compare").then("name the node's directory with --data")
	}
	found := &verification{Differences: []difference{}}
	if err := p.verifyViews(cmd.Context(), s, sample, found); err != nil {
		return err
	}
	redis, err := s.views.VerifyRedis(cmd.Context(), sample)
	if err != nil {
		return fmt.Errorf("compare Redis with the views: %w", err)
	}
	wrongViews := len(found.Differences)
	found.OK = wrongViews == 0 && (redis == nil || redis.DifferencesTotal == 0)
	compared := "all"
	if sample > 0 && sample < eventstore.Partitions {
		compared = strconv.Itoa(sample)
	}
	if p.json(cmd) {
		answer := map[string]any{"ok": found.OK, "partitions": compared, "differences": found.Differences, "parked": len(found.Parked)}
		if redis != nil {
			answer["redis"] = redis
		}
		if err := writeJSON(p.stdout, answer); err != nil {
			return err
		}
	} else {
		paint := p.painterFor(p.stdout)
		result := paint.good("ok")
		if !found.OK {
			result = paint.bad("DIFFERENT")
		}
		if err := fields(p.stdout, paint, "result", result, "partitions", compared, "views", found.Views, "redis", redis.text()); err != nil {
			return err
		}
		differences := found.Differences
		if redis != nil {
			differences = append(differences, redis.Differences...)
		}
		for _, d := range differences {
			fmt.Fprintf(p.stdout, "lane %d: %s\n", d.Lane, printable(d.What))
		}
	}
	if wrongViews == 0 && !found.OK {
		return &problem{
			code: exitDifference, what: fmt.Sprintf("%d differences found in Redis", redis.DifferencesTotal),
			next: "find out what else writes there; then remove the keys with this node's prefix (redis-cli --scan --pattern 'weir:*'): they are filled anew",
		}
	}
	if !found.OK {
		return &problem{
			code: exitDifference, what: fmt.Sprintf("%d differences found", len(found.Differences)),
			next: "prove that the log is whole: weir log verify; then make the view again: weir projections rebuild VIEW",
		}
	}
	return nil
}

func (p *process) projectionsRebuild() *cobra.Command {
	var (
		from   sourceFlags
		lanes  []uint
		speed  string
		swap   string
		detach bool
	)
	cmd := &cobra.Command{
		Use:   "rebuild VIEW",
		Short: "Make a view again from the log, beside the one that answers",
		Long: `Read the log from its first commit into a new generation of a view, lanes in parallel, while the one that is there
goes on to answer and to follow the log. When the new one has caught up, both are fed; the digests of every
partition are compared; and if they are equal, or differ only by what the old one has parked and the new one has
taken in, the new one answers from then on. If they differ by more, it is held, the first 20 keys that differ are
printed, and the exit code is 3: 'projections swap VIEW' swaps all the same, 'projections drop VIEW' gives it up.
The old generation is kept until 'projections drop VIEW'.

The rebuild goes on when this command is interrupted, and after a crash of the node. While the views that answer are
behind, it waits. --speed full takes all that the machine has, background works half of the time, and a number
bounds the events read in a second. What is shown counts the bytes of the log, and the time to come (ETA) goes by the
pace of the last 15 seconds, the comparison included.

Before an older weir runs on this directory again, drop a rebuild that is not swapped yet: it may not be able to read
how far that is. Then it says so and what answers goes on; drop it there and begin again.

` + sourceHelp,
		Example: `  weir projections rebuild orders
  weir projections rebuild stock --lanes 0,2 --speed full --swap manual`,
		Args: exactArgs("VIEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			start := url.Values{"speed": {speed}, "swap": {swap}}
			for _, lane := range lanes {
				start.Add("lanes", strconv.FormatUint(uint64(lane), 10))
			}
			if _, err := startOptions(start); err != nil {
				return err
			}
			return p.withRebuilds(cmd, &from, func(s *source) error {
				if err := s.rebuilds.Act(cmd.Context(), "start", args[0], start); err != nil {
					return err
				}
				if detach && s.running {
					return p.printGenerations(cmd, s, args[0])
				}
				return p.followRebuild(cmd, s, args[0])
			})
		},
	}
	from.addFlags(cmd, false)
	cmd.Flags().UintSliceVar(&lanes, "lanes", nil, "only these `LANES`, counted from 0, separated by commas")
	cmd.Flags().StringVar(&speed, "speed", "background", "`SPEED`: full, background, or a number of events a second")
	cmd.Flags().StringVar(&swap, "swap", "auto", "when the new generation answers: `auto` if it is equal, manual by 'projections swap'")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait for the end; a stopped node's views are rebuilt by this command, which always waits")
	return cmd
}

// rebuildPoll is how often a rebuild is asked how far it is.
const rebuildPoll = 100 * time.Millisecond

// followRebuild shows how far the rebuild of a view is until it ends, or waits for somebody.
func (p *process) followRebuild(cmd *cobra.Command, s *source, view string) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	working := make(chan error, 1)
	go func() { working <- s.rebuilds.Work(ctx) }()
	last, err := p.watchRebuild(ctx, s, view)
	cancel()
	if err := errors.Join(err, <-working); err != nil {
		return err
	}
	if last == nil {
		return p.printGenerations(cmd, s, view)
	}
	switch last.State {
	case string(projections.RebuildFailed):
		return &problem{
			code: exitFailure, what: fmt.Sprintf("the rebuild of view %s failed: %s", view, last.Reason),
			next: fmt.Sprintf("what answers reads is as it was; try again with: weir projections resume %s, or give it up with: weir projections drop %s", view, view),
		}
	case string(projections.RebuildPaused):
		return &problem{code: exitFailure, what: fmt.Sprintf("the rebuild of view %s was paused", view), next: "go on with: weir projections resume " + view}
	}
	if last.Differ > 0 {
		return p.compareView(cmd, s, view)
	}
	if err := p.printGenerations(cmd, s, view); err != nil {
		return err
	}
	fmt.Fprintf(p.stderr, "generation %d is built and does not answer yet; compare it with: weir projections compare %s, swap it in with: weir projections swap %s\n",
		last.Generation, view, view)
	return nil
}

// watchRebuild shows progress until the rebuild of a view no longer goes on by itself, and returns how it stands then; nil
// when it is over.
func (p *process) watchRebuild(ctx context.Context, s *source, view string) (*viewRebuild, error) {
	progress := p.newProgress("rebuild "+view, unitBytes, 0)
	defer progress.end()
	tick := time.NewTicker(rebuildPoll)
	defer tick.Stop()
	for begun := false; ; {
		rebuilds, err := s.rebuilds.Rebuilds(ctx)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(rebuilds, func(r viewRebuild) bool { return r.View == view })
		if at < 0 {
			return nil, nil
		}
		r := &rebuilds[at]
		if r.State != string(projections.RebuildBuilding) {
			return r, nil
		}
		var done, total, events uint64
		for _, lane := range r.Lanes {
			done, total, events = done+lane.Bytes, total+lane.BytesTotal, events+lane.Events
		}
		progress.total, progress.note = int64(total), groupDigits(events)+" events"
		progress.told = &told{share: r.Share, left: time.Duration(r.ETASeconds * float64(time.Second))}
		if !begun && total > 0 {
			progress.begin(int64(done))
			begun = true
		}
		progress.at(int64(done))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (p *process) projectionsCompare() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "compare VIEW",
		Short: "Compare two generations of a view",
		Long: `Compare the generation that answers reads with the one that is built and waits, or with the one that is kept: the
digest of each of the 1,024 partitions, and where digests differ, key by key. Both are looked at as of one commit of
each lane. The first 20 keys that differ are printed. What the other one has taken in and the one that answers has
parked is told, and so is what one that is kept has parked and the one that answers has taken in: neither is a
difference. Exit code 0: they are equal; 3: they differ.

` + sourceHelp,
		Example: `  weir projections compare orders
  weir projections compare stock -o json | jq '.differences[]'`,
		Args: exactArgs("VIEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withRebuilds(cmd, &from, func(s *source) error { return p.compareView(cmd, s, args[0]) })
		},
	}
	from.addFlags(cmd, false)
	return cmd
}

func (p *process) compareView(cmd *cobra.Command, s *source, view string) error {
	if !s.running {
		if err := p.finishBuilding(cmd, s, view); err != nil {
			return err
		}
	}
	found, err := s.rebuilds.Compare(cmd.Context(), view)
	if err != nil {
		return err
	}
	if p.json(cmd) {
		err = writeJSON(p.stdout, found)
	} else {
		err = p.printComparison(&found)
	}
	if err != nil || found.Equal {
		return err
	}
	var differ uint64
	for _, lane := range found.Lanes {
		differ += lane.Differ
	}
	return &problem{
		code: exitDifference, what: fmt.Sprintf("generations %d and %d of view %s differ in %d keys", found.Answers, found.Other, view, differ),
		next: "see which of them is right: weir projections verify; swap with: weir projections swap " + view + ", or give the other one up with: weir projections drop " + view,
	}
}

func (p *process) printComparison(found *viewComparison) error {
	rows := newTable(">LANE", ">COMMIT", ">KEYS", ">DIFFER", "PARTITIONS")
	for _, lane := range found.Lanes {
		rows.row(strconv.Itoa(int(lane.Lane)), groupDigits(lane.Position), groupDigits(lane.Keys), groupDigits(lane.Differ), partitionsText(lane.Partitions))
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	for _, d := range found.Differences {
		fmt.Fprintf(p.stdout, "lane %d, %s: %s\n", d.Lane, printable(d.Key), printable(d.Problem))
	}
	p.printTakenIn(found, found.Other, found.Answers, found.Heals, func(lane *comparedLane) []string { return lane.Heals })
	p.printTakenIn(found, found.Answers, found.Other, found.Healed, func(lane *comparedLane) []string { return lane.Healed })
	return nil
}

// printTakenIn prints the parked keys of one generation that the other one has taken in.
func (p *process) printTakenIn(found *viewComparison, by, parkedIn uint32, total int, keys func(*comparedLane) []string) {
	if total == 0 {
		return
	}
	fmt.Fprintf(p.stdout, "generation %d takes in what generation %d has parked, %d keys, which count as equal:\n", by, parkedIn, total)
	for i := range found.Lanes {
		for _, key := range keys(&found.Lanes[i]) {
			fmt.Fprintf(p.stdout, "lane %d, parked key %s\n", found.Lanes[i].Lane, printable(key))
		}
	}
}

// partitionsShown bounds the partitions that a line names.
const partitionsShown = 8

func partitionsText(partitions []uint32) string {
	if len(partitions) == 0 {
		return "all equal"
	}
	var text []string
	for _, partition := range partitions[:min(len(partitions), partitionsShown)] {
		text = append(text, strconv.FormatUint(uint64(partition), 10))
	}
	if more := len(partitions) - len(text); more > 0 {
		text = append(text, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(text, ", ")
}

// rebuildActions are the commands that take a view and do one thing to it.
var rebuildActions = map[string]struct{ short, long string }{
	"pause": {"Pause the rebuild of a view", `Stop reading the log into the new generation of a view, also after a restart, until 'projections resume VIEW'. What
answers reads goes on. It prints the view's generations.`},
	"resume": {"Go on with the rebuild of a view", `Go on with a rebuild that was paused, or that failed. On a stopped node's directory this command rebuilds, and waits
for the end. It prints the view's generations.`},
	"swap": {"Let a new generation of a view answer reads", `Let the generation answer reads that is built and was held, with no pause in reads. The old one is kept. It prints
the view's generations.`},
	"rollback": {"Let the old generation of a view answer reads again", `Let the generation answer reads again that did before the last swap, and keep the one that does now. Both were fed
all the time, so nothing is lost and nothing has to be read again. It prints the view's generations.`},
	"drop": {"Drop a generation of a view that does not answer", `Give up the rebuild of a view if there is one; else drop the generation that is kept. What answers reads stays. It
prints the view's generations.`},
}

func (p *process) projectionsAction(action string) *cobra.Command {
	var from sourceFlags
	texts := rebuildActions[action]
	cmd := &cobra.Command{
		Use:   action + " VIEW",
		Short: texts.short,
		Long:  texts.long + "\n\n" + sourceHelp,
		Example: fmt.Sprintf(`  weir projections %s orders
  weir projections %s stock --data ./weir-data -o json`, action, action),
		Args: exactArgs("VIEW"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withRebuilds(cmd, &from, func(s *source) error { return p.actOnView(cmd, s, action, args[0]) })
		},
	}
	from.addFlags(cmd, false)
	return cmd
}

func (p *process) actOnView(cmd *cobra.Command, s *source, action, view string) error {
	if action == "swap" && !s.running {
		if err := p.finishBuilding(cmd, s, view); err != nil {
			return err
		}
	}
	if err := s.rebuilds.Act(cmd.Context(), action, view, nil); err != nil {
		return err
	}
	if action == "resume" && !s.running {
		return p.followRebuild(cmd, s, view)
	}
	if err := s.rebuilds.Sweep(); err != nil {
		return err
	}
	return p.printGenerations(cmd, s, view)
}

// finishBuilding goes on with what a stopped node has left of a rebuild, until it is over or waits for somebody.
func (p *process) finishBuilding(cmd *cobra.Command, s *source, view string) error {
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	working := make(chan error, 1)
	go func() { working <- s.rebuilds.Work(ctx) }()
	_, err := p.watchRebuild(ctx, s, view)
	cancel()
	return errors.Join(err, <-working)
}
