package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	logv1 "github.com/weirhq/weir/proto/stored/weir/log/v1"
	"google.golang.org/protobuf/proto"
)

// differencesMax is how many differences a verification reports; there may be more.
const differencesMax = 100

// A difference is something that is not as it must be.
type difference struct {
	// What was checked: "log", "witness" or "views".
	Check string `json:"check"`
	Lane  uint32 `json:"lane"`
	// Commit at which it is wrong; 0 when it is no single one.
	Commit uint64 `json:"commit,omitempty"`
	What   string `json:"what"`
}

// A verifiedLane says what was verified of a lane.
type verifiedLane struct {
	Lane    uint32 `json:"lane"`
	Commits int64  `json:"commits"`
	Events  int64  `json:"events"`
	// Newest is the hash of the newest commit: it stands for the whole lane's log.
	Newest string `json:"newest"`
}

// A verification is what 'log verify' found.
type verification struct {
	OK    bool           `json:"ok"`
	Lanes []verifiedLane `json:"lanes"`
	Views string         `json:"views"`
	// Parked keys are left out of the views, and are no difference.
	Parked      []parkedKey  `json:"parked,omitempty"`
	Differences []difference `json:"differences"`
}

func (v *verification) add(found ...difference) {
	for _, d := range found {
		if len(v.Differences) < differencesMax {
			v.Differences = append(v.Differences, d)
		}
	}
}

func (p *process) logVerify() *cobra.Command {
	var (
		from    sourceFlags
		noViews bool
	)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Prove that the log is whole and the views are true to it",
		Long: `Read the whole log and verify, for each lane:

  - commits are numbered without a gap, each holds the hash of the one before, and the first that of the genesis
  - each commit's bytes have the hash that the server stored it under
  - log time never goes back, every epoch begins with its LaneOpened, every event can be read
  - the log holds the newest commit that the node saw acknowledged (a stopped node's witness says which)
  - every view equals the fold of the log, save for its parked keys, which are printed and are no difference

It prints what it verified and each difference (at most 100). Exit code 0: there is none; 3: there are differences.

` + sourceHelp + `
Views are not compared then.`,
		Example: `  weir log verify --data ./weir-data
  weir log verify --no-views -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.verify(cmd, s, &from, !noViews))
		},
	}
	from.addFlags(cmd, true)
	cmd.Flags().BoolVar(&noViews, "no-views", false, "verify the log only")
	return cmd
}

func (p *process) verify(cmd *cobra.Command, s *source, from *sourceFlags, withViews bool) error {
	lanes, err := from.wanted(s.topology)
	if err != nil {
		return err
	}
	found := &verification{Lanes: []verifiedLane{}, Differences: []difference{}}
	for _, lane := range lanes {
		if err := p.verifyLane(cmd.Context(), s, lane, found); err != nil {
			return explainLog(lane, err)
		}
	}
	found.Views = "not compared"
	switch {
	case !withViews || s.views == nil:
	case len(found.Differences) > 0:
		found.Views = "not compared: the log itself is wrong"
	default:
		if err := p.verifyViews(cmd.Context(), s, 0, found); err != nil {
			return err
		}
	}
	found.OK = len(found.Differences) == 0
	if err := p.printVerification(cmd, found); err != nil {
		return err
	}
	if !found.OK {
		return &problem{code: exitDifference, what: fmt.Sprintf("%d differences found", len(found.Differences)), next: "stop the node, keep the directory as it is, and restore the log from a backup"}
	}
	return nil
}

// verifyLane reads one lane. It ends at the first commit that breaks the chain: what follows cannot be trusted.
func (p *process) verifyLane(ctx context.Context, s *source, lane uint32, found *verification) error {
	reader := s.lane(lane)
	head, err := reader.Head(ctx)
	if err != nil {
		return err
	}
	v := &laneVerifier{topology: s.topology, lane: lane, position: eventstore.Genesis(lane, s.topology.Lanes), found: found}
	progress := p.newLogProgress(ctx, fmt.Sprintf("verify lane %d", lane), reader)
	err = readLane(ctx, reader, 1, head, false, nil, func(record eventstore.Record) error {
		progress.read(record)
		return v.take(record)
	})
	progress.end()
	var chain *eventstore.ChainError
	if errors.As(err, &chain) {
		found.add(difference{Check: "log", Lane: lane, Commit: chain.Number, What: chain.Reason})
		err = nil
	}
	if err == nil && s.witness != nil {
		err = s.witness(ctx, lane)
		var lost *eventstore.WitnessError
		if errors.As(err, &lost) {
			found.add(difference{Check: "witness", Lane: lane, Commit: lost.Known.Number, What: lost.Error()})
			err = nil
		}
	}
	found.Lanes = append(found.Lanes, verifiedLane{Lane: lane, Commits: int64(v.position.Number), Events: v.events, Newest: v.position.Hash.String()})
	return err
}

// A laneVerifier checks one lane's commits in order.
type laneVerifier struct {
	topology eventstore.Topology
	lane     uint32
	found    *verification

	position eventstore.Position
	at       time.Time
	epoch    uint64
	events   int64
}

// take checks the next commit. A *eventstore.ChainError ends the verification of the lane.
func (v *laneVerifier) take(record eventstore.Record) error {
	broken := func(format string, args ...any) error {
		return &eventstore.ChainError{Lane: v.lane, Number: v.position.Number + 1, Reason: fmt.Sprintf(format, args...)}
	}
	if hash := eventstore.HashOf(record.Data); hash != record.Hash {
		return broken("its bytes have hash %.12s…, but it is stored under %.12s…", hash, record.Hash)
	}
	commit, err := eventstore.DecodeCommit(record.Data)
	if err != nil {
		return broken("it cannot be read: %v", err)
	}
	if record.Number != commit.Number {
		return broken("it is stored as number %d and says %d", record.Number, commit.Number)
	}
	if err := v.position.Check(commit, v.lane); err != nil {
		return err
	}
	v.position = eventstore.Position{Number: commit.Number, Hash: record.Hash}
	v.events += int64(len(commit.Events))
	if commit.Time.Before(v.at) {
		v.differ(commit, "log", "its time %s is before that of the commit before it, %s", commit.Time.UTC(), v.at.UTC())
	}
	v.at = commit.Time
	for i := range commit.Events {
		v.takeEvent(commit, i)
	}
	if commit.Epoch != v.epoch {
		v.differ(commit, "log", "its epoch is %d, but the lane was last opened with epoch %d", commit.Epoch, v.epoch)
	}
	return nil
}

func (v *laneVerifier) takeEvent(commit *eventstore.Commit, index int) {
	event := &commit.Events[index]
	if event.Type == eventstore.TypeLaneOpened {
		var opened logv1.LaneOpened
		switch err := proto.Unmarshal(event.Payload, &opened); {
		case err != nil:
			v.differ(commit, "log", "event %d, %s, cannot be read: %v", index, event.Type, err)
		case opened.GetEpoch() != commit.Number || index != 0:
			v.differ(commit, "log", "event %d opens epoch %d, but an epoch is opened by the first event of the commit of its number", index, opened.GetEpoch())
		default:
			v.epoch = opened.GetEpoch()
		}
		return
	}
	if _, err := stored.Decode(event.Type, event.Version, event.AggregateID, event.UserID, event.Payload); err != nil {
		v.differ(commit, "log", "event %d, %s of %s, cannot be read: %v", index, event.Type, event.AggregateID, err)
	}
	if event.Partition >= eventstore.Partitions {
		v.differ(commit, "log", "event %d is of partition %d", index, event.Partition)
	}
}

func (v *laneVerifier) differ(commit *eventstore.Commit, check, format string, args ...any) {
	v.found.add(difference{Check: check, Lane: v.lane, Commit: commit.Number, What: fmt.Sprintf(format, args...)})
}

// verifyViews compares every view with the fold of the log.
func (p *process) verifyViews(ctx context.Context, s *source, sample int, found *verification) error {
	var progress *progress
	differences, err := s.views.Verify(ctx, sample, func(done, total int64) {
		if progress == nil {
			progress = p.newProgress("compare views", unitBytes, total)
		}
		progress.at(done)
	})
	if progress != nil {
		progress.end()
	}
	if err != nil {
		return fmt.Errorf("compare the views with the log: %w", err)
	}
	if found.Parked, err = s.views.Parked(ctx); err != nil {
		return err
	}
	found.Views = "equal to the fold of the log"
	if len(found.Parked) > 0 {
		found.Views += fmt.Sprintf(", save for %d parked keys (weir parked list)", len(found.Parked))
	}
	if len(differences) > 0 {
		found.Views = "not equal to the fold of the log"
	}
	found.add(differences...)
	return nil
}

func (p *process) printVerification(cmd *cobra.Command, found *verification) error {
	if p.json(cmd) {
		return writeJSON(p.stdout, found)
	}
	paint := p.painterFor(p.stdout)
	lanes := newTable(">LANE", ">COMMITS", ">EVENTS", "NEWEST COMMIT")
	for _, l := range found.Lanes {
		lanes.row(strconv.FormatUint(uint64(l.Lane), 10), groupDigits(l.Commits), groupDigits(l.Events), l.Newest)
	}
	if err := lanes.print(p.stdout, paint); err != nil {
		return err
	}
	result := paint.good("ok")
	if !found.OK {
		result = paint.bad("DIFFERENT")
	}
	if _, err := fmt.Fprintf(p.stdout, "\nviews: %s\nresult: %s\n", found.Views, result); err != nil {
		return err
	}
	if found.OK {
		return nil
	}
	if _, err := fmt.Fprintln(p.stdout); err != nil {
		return err
	}
	rows := newTable("CHECK", ">LANE", ">COMMIT", "WHAT")
	for _, d := range found.Differences {
		commit := "-"
		if d.Commit > 0 {
			commit = strconv.FormatUint(d.Commit, 10)
		}
		rows.row(d.Check, strconv.FormatUint(uint64(d.Lane), 10), commit, d.What)
	}
	return rows.print(p.stdout, paint)
}
