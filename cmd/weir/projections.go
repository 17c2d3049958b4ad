package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// viewLane is how far one view has followed one lane.
type viewLane struct {
	View     string `json:"view"`
	Version  uint32 `json:"version"`
	Lane     uint32 `json:"lane"`
	State    string `json:"state"`
	Position uint64 `json:"position"`
	// Head is the number of the lane's newest commit, Lag the commits between the two.
	Head uint64     `json:"head"`
	Lag  uint64     `json:"lag"`
	AsOf *time.Time `json:"asOf,omitempty"`
	// Parked counts the keys that the view has parked.
	Parked int `json:"parked"`
}

// The states of a lane's views.
const (
	viewFresh      = "fresh"
	viewCatchingUp = "catching-up"
	// viewRebuilding is that of a view that is being made again: see its rebuild.
	viewRebuilding = "rebuilding"
	// viewStopped is that of a node that does not run: the views wait for its next start.
	viewStopped = "stopped"
)

// A viewSource knows the views of a node.
type viewSource interface {
	// Status says how far each view has followed each lane.
	Status(ctx context.Context) ([]viewLane, error)
	// Verify compares every view with the fold of the log and returns what is different, at most differencesMax. Of orders, it
	// compares those of as many partitions as sample says; 0 means all.
	Verify(ctx context.Context, sample int, progress func(done, total int64)) ([]difference, error)
	// VerifyRedis compares what Redis holds with the views, of as many partitions as Verify; nil where there is no Redis, and of
	// a stopped node, which cannot tell what in Redis it would answer with.
	VerifyRedis(ctx context.Context, sample int) (*redisComparison, error)
	// Parked returns what the views have parked.
	Parked(ctx context.Context) ([]parkedKey, error)
	// Replay takes parked keys in: those of a view, or of all when it is empty; one key, or all when that is empty.
	Replay(ctx context.Context, view, key string, dryRun bool) ([]replayedKey, error)
}

func (p *process) projectionsCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "projections",
		Short: "See how far the views are, compare and rebuild them",
		Long: `Projections are the views that answer reads: orders, a user's orders, products, stock. They follow the log, lane by
lane, and keep their position with their data, so that a view always equals the fold of the log up to its position.

A view exists in generations. One of them answers reads. 'rebuild' makes another one of the log, beside it; when it is
built, the two are compared and swapped, with no pause in reads. The old one is kept, and goes on to be fed, until it is
dropped, so that 'rollback' goes back at once. A view that a new version of weir writes in another way is rebuilt by
itself when the node starts.`,
	})
	cmd.AddCommand(
		p.projectionsList(), p.projectionsStatus(), p.projectionsVerify(), p.projectionsRebuild(), p.projectionsCompare(),
		p.projectionsAction("pause"), p.projectionsAction("resume"), p.projectionsAction("swap"), p.projectionsAction("rollback"),
		p.projectionsAction("drop"),
	)
	return cmd
}

func (p *process) projectionsStatus() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Print the position, head and lag of each view",
		Long: `Print for each view and lane how far it has followed the log: its position, the log's newest commit (head), how many
commits lie between (lag), how many keys it has parked (see 'weir parked list'), and the log time of the position.

The state is "fresh" (lag 0), "catching-up", "rebuilding" when what answers is behind until it is made again, or
"stopped" when no node runs on the directory; the next start goes on from the position. Rebuilds that are under way, or
wait for somebody, are printed too.

` + sourceHelp + `
Name the directory of a stopped node as well then: its views are there.`,
		Example: `  weir projections status --data ./weir-data
  weir projections status -o json | jq '.views[].lag'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.status(cmd, s))
		},
	}
	from.addFlags(cmd, false)
	return cmd
}

func (p *process) status(cmd *cobra.Command, s *source) error {
	if s.views == nil {
		return usagef("there are no views to look at").then("name the node's directory with --data")
	}
	lanes, err := s.views.Status(cmd.Context())
	if err != nil {
		return err
	}
	rebuilds, err := s.rebuilds.Rebuilds(cmd.Context())
	if err != nil {
		return err
	}
	if p.json(cmd) {
		answer := map[string]any{"views": lanes}
		if len(rebuilds) > 0 {
			answer["rebuilds"] = rebuilds
		}
		return writeJSON(p.stdout, answer)
	}
	paint := p.painterFor(p.stdout)
	rows := newTable("VIEW", ">LANE", "STATE", ">POSITION", ">HEAD", ">LAG", ">PARKED", "AS OF")
	rows.style = func(column int, cell string) string {
		switch {
		case column == 6 && cell != "0":
			return paint.warn(cell)
		case column != 2:
			return cell
		case cell == viewFresh:
			return paint.good(cell)
		}
		return paint.warn(cell)
	}
	for _, l := range lanes {
		rows.row(l.View, strconv.FormatUint(uint64(l.Lane), 10), l.State, groupDigits(l.Position), groupDigits(l.Head), groupDigits(l.Lag), groupDigits(l.Parked), instantText(l.AsOf))
	}
	if err := rows.print(p.stdout, paint); err != nil || len(rebuilds) == 0 {
		return err
	}
	fmt.Fprintln(p.stdout)
	return p.printRebuilds(rebuilds)
}

// verifyLine is one line of the answer to inspectVerify: progress, and at last the end.
type verifyLine struct {
	Done        int64        `json:"done,omitempty"`
	Total       int64        `json:"total,omitempty"`
	End         bool         `json:"end,omitempty"`
	Differences []difference `json:"differences,omitempty"`
	Error       string       `json:"error,omitempty"`
}

// verifyLineEvery is how often a running verification says how far it is.
const verifyLineEvery = 200 * time.Millisecond

func (i *inspector) serveProjections(w http.ResponseWriter, r *http.Request) {
	lanes, err := i.views.Status(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	respond(w, lanes)
}

func (i *inspector) serveVerify(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	flusher := http.NewResponseController(w)
	var last time.Time
	sample, _ := strconv.Atoi(r.FormValue("sample")) // None compares all.
	differences, err := i.views.Verify(r.Context(), sample, func(done, total int64) {
		if now := time.Now(); now.Sub(last) >= verifyLineEvery {
			last = now
			_ = writeJSON(w, verifyLine{Done: done, Total: total})
			_ = flusher.Flush() // The context ends when the caller has left.
		}
	})
	end := verifyLine{End: true, Differences: differences}
	if err != nil {
		end.Error = err.Error()
	}
	_ = writeJSON(w, end)
}

// Status implements viewSource.
func (n *remoteNode) Status(ctx context.Context) ([]viewLane, error) {
	var lanes []viewLane
	err := n.getJSON(ctx, inspectProjections, nil, &lanes)
	return lanes, err
}

// Verify implements viewSource.
func (n *remoteNode) Verify(ctx context.Context, sample int, progress func(done, total int64)) ([]difference, error) {
	body, err := n.get(ctx, inspectVerify, url.Values{"sample": {strconv.Itoa(sample)}})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	for lines := json.NewDecoder(body); ; {
		var line verifyLine
		switch err := lines.Decode(&line); {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, &problem{code: exitUnavailable, what: "the node stopped while it compared its views", cause: err, next: "run the command again"}
		case err != nil:
			return nil, fmt.Errorf("read what the node says: %w", err)
		case line.End && line.Error != "":
			return nil, errors.New(line.Error)
		case line.End:
			return line.Differences, nil
		}
		progress(line.Done, line.Total)
	}
}
