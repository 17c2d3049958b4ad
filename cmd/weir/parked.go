package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/projections"
)

// parkedKey is a key of a view whose events are not taken in until it is replayed.
type parkedKey struct {
	View       string `json:"view"`
	Generation uint32 `json:"generation"`
	Lane       uint32 `json:"lane"`
	Key        string `json:"key"`
	// Commit and Event, from 1 on, are the first event that could not be taken in, Since its log time.
	Commit uint64    `json:"commit"`
	Event  uint32    `json:"event"`
	Type   string    `json:"type"`
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
	// Events that wait, the first one counted.
	Events int `json:"events"`
	// Users and Orders that they are about; the lists may be cut off, which More says.
	Users  []string `json:"users"`
	Orders []string `json:"orders"`
	More   bool     `json:"more,omitempty"`
}

// replayedKey is a parked key and what came of taking its events in.
type replayedKey struct {
	parkedKey
	OK bool `json:"ok"`
	// FailedCommit and FailedEvent are the event that still cannot be taken in, and Problem why.
	FailedCommit uint64 `json:"failedCommit,omitempty"`
	FailedEvent  uint32 `json:"failedEvent,omitempty"`
	Problem      string `json:"problem,omitempty"`
}

func newParkedKey(k *projections.ParkedKey) parkedKey {
	return parkedKey{
		View: k.Projection, Generation: k.Generation, Lane: k.Lane, Key: k.Key, Commit: k.First.Commit, Event: k.First.Event + 1, Type: k.Type,
		Since: k.Since, Reason: k.Reason, Events: k.Events, Users: append([]string{}, k.Users.List...), Orders: append([]string{}, k.Orders.List...),
		More: k.Users.More || k.Orders.More,
	}
}

// Parked implements viewSource.
func (v *localViews) Parked(context.Context) ([]parkedKey, error) {
	all := []parkedKey{}
	for _, runner := range v.runners {
		for _, key := range runner.Parked() {
			all = append(all, newParkedKey(&key))
		}
	}
	slices.SortStableFunc(all, func(a, b parkedKey) int { return cmp.Compare(a.View, b.View) })
	return all, nil
}

// Replay implements viewSource.
func (v *localViews) Replay(ctx context.Context, view, key string, dryRun bool) ([]replayedKey, error) {
	all := []replayedKey{}
	for _, runner := range v.runners {
		replayed, err := runner.Replay(ctx, projections.ReplayQuery{Projection: view, Key: key, DryRun: dryRun})
		for i := range replayed {
			one := replayedKey{parkedKey: newParkedKey(&replayed[i].ParkedKey), OK: replayed[i].OK(), Problem: replayed[i].Problem}
			if !one.OK {
				one.FailedCommit, one.FailedEvent = replayed[i].Failed.Commit, replayed[i].Failed.Event+1
			}
			all = append(all, one)
		}
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// The inspection endpoint's side.

func (i *inspector) serveParked(w http.ResponseWriter, r *http.Request) {
	answer(w, r, func(ctx context.Context) (any, error) { return i.views.Parked(ctx) })
}

func (i *inspector) serveReplay(w http.ResponseWriter, r *http.Request) {
	answer(w, r, func(ctx context.Context) (any, error) {
		return i.views.Replay(ctx, r.FormValue("view"), r.FormValue("key"), r.FormValue("dry-run") == "true")
	})
}

func answer(w http.ResponseWriter, r *http.Request, ask func(context.Context) (any, error)) {
	value, err := ask(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	respond(w, value)
}

// Parked implements viewSource.
func (n *remoteNode) Parked(ctx context.Context) (all []parkedKey, err error) {
	return all, n.getJSON(ctx, inspectParked, nil, &all)
}

// Replay implements viewSource.
func (n *remoteNode) Replay(ctx context.Context, view, key string, dryRun bool) (all []replayedKey, err error) {
	body, err := n.ask(ctx, http.MethodPost, inspectReplay, url.Values{"view": {view}, "key": {key}, "dry-run": {strconv.FormatBool(dryRun)}})
	if err != nil {
		return nil, err
	}
	return all, errors.Join(json.NewDecoder(body).Decode(&all), body.Close())
}

// The commands.

func (p *process) parkedCommand() *cobra.Command {
	cmd := parentCommand(&cobra.Command{
		Use:   "parked",
		Short: "See what views could not take in",
		Long: `An event that a view cannot take in is parked with its key (an order, a user, a SKU), and so is all that comes after it
for that key. Other keys go on, and whoever reads a parked one is told so. 'weir replay' takes the events in from the
log, in order, when the cause is gone. See ops/runbooks/parked-keys.md.`,
	})
	cmd.AddCommand(p.parkedList(), p.parkedShow())
	return cmd
}

// withViews opens the source of a command about views.
func (p *process) withViews(cmd *cobra.Command, from *sourceFlags, do func(s *source) error) error {
	s, err := p.openSource(cmd.Context(), from)
	if err != nil {
		return err
	}
	if s.views == nil {
		return closeWith(s, usagef("there are no views to look at").then("name the node's directory with --data"))
	}
	return closeWith(s, do(s))
}

func (p *process) parkedList() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "Print the parked keys of all views",
		Long: `Print each parked key: its view and lane, the first event that could not be taken in and since when (its log time), how
many events wait, how many users and orders they are about, and the reason.
Exit code 0: nothing is parked; 3: something is.

` + sourceHelp,
		Example: `  weir parked list
  weir parked list -o json | jq -r '.parked[].users[]' | sort -u`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.withViews(cmd, &from, func(s *source) error {
				all, err := s.views.Parked(cmd.Context())
				if err != nil {
					return err
				}
				if err := p.printParked(cmd, all); err != nil || len(all) == 0 {
					return err
				}
				return &problem{
					code: exitDifference, what: fmt.Sprintf("%d keys are parked", len(all)),
					next: "look at one: weir parked show KEY; when the cause is gone: weir replay --all --dry-run",
				}
			})
		},
	}
	from.addFlags(cmd, false)
	return cmd
}

func (p *process) printParked(cmd *cobra.Command, all []parkedKey) error {
	if p.json(cmd) {
		return writeJSON(p.stdout, map[string]any{"parked": all})
	}
	rows := newTable("VIEW", ">LANE", "KEY", ">COMMIT", "SINCE", ">EVENTS", ">USERS", ">ORDERS", "REASON")
	for i := range all {
		k := &all[i]
		rows.row(k.View, strconv.Itoa(int(k.Lane)), k.Key, groupDigits(k.Commit), instantText(&k.Since), groupDigits(k.Events),
			groupDigits(len(k.Users)), groupDigits(len(k.Orders)), k.Reason)
	}
	return rows.print(p.stdout, p.painterFor(p.stdout))
}

func (p *process) parkedShow() *cobra.Command {
	var from sourceFlags
	cmd := &cobra.Command{
		Use:   "show KEY",
		Short: "Print all that is known of a parked key",
		Long: `Print a parked key in each view that parks it: the first event, its type and why it could not be taken in, since when,
how many events wait, and the users and orders that they are about. Exit code 5: it is not parked.

` + sourceHelp,
		Example: `  weir parked show 01JD3W9X7VK8Q2M4N6P8R0S2T4Y`,
		Args:    exactArgs("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.withViews(cmd, &from, func(s *source) error { return p.showParked(cmd, s, args[0]) })
		},
	}
	from.addFlags(cmd, false)
	return cmd
}

func (p *process) showParked(cmd *cobra.Command, s *source, key string) error {
	all, err := s.views.Parked(cmd.Context())
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(k parkedKey) bool { return k.Key != key })
	if len(all) == 0 {
		return &problem{code: exitNotFound, what: fmt.Sprintf("%q is not parked", key), next: "see what is: weir parked list"}
	}
	if p.json(cmd) {
		return writeJSON(p.stdout, map[string]any{"parked": all})
	}
	for i := range all {
		k := &all[i]
		more := ""
		if k.More {
			more = ", and more"
		}
		if i > 0 {
			fmt.Fprintln(p.stdout)
		}
		if err := fields(p.stdout, p.painterFor(p.stdout),
			"key", k.Key, "view", k.View, "lane", strconv.Itoa(int(k.Lane)), "first event", fmt.Sprintf("%d of commit %d, %s", k.Event, k.Commit, k.Type),
			"reason", k.Reason, "since", instantText(&k.Since), "events", groupDigits(k.Events),
			"users", strings.Join(k.Users, " ")+more, "orders", strings.Join(k.Orders, " ")+more,
		); err != nil {
			return err
		}
	}
	return nil
}

func (p *process) replayCommand() *cobra.Command {
	var (
		from   sourceFlags
		view   string
		key    string
		all    bool
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "replay",
		Short: "Take parked keys in again, from the log",
		Long: `Take the events of a parked key (--key), or of all (--all), in from the log, in order, when the cause is gone: a new
version of weir runs. A key is taken in whole, or stays parked as it was. Reads and other keys go on meanwhile.

With --dry-run nothing is changed: it says what would happen. Exit code 0: all of it was taken in, or would be; 3:
something still fails; 5: nothing that was named is parked.

` + sourceHelp,
		Example: `  weir replay --all --dry-run
  weir replay --key 01JD3W9X7VK8Q2M4N6P8R0S2T4Y --projection orders
  weir replay --all -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if all == (key != "") {
				return usagef("say what to replay: --key KEY or --all")
			}
			return p.withViews(cmd, &from, func(s *source) error { return p.runReplay(cmd, s, view, key, dryRun) })
		},
	}
	from.addFlags(cmd, false)
	cmd.Flags().StringVar(&key, "key", "", "replay this `KEY`")
	cmd.Flags().BoolVar(&all, "all", false, "replay all that is parked")
	cmd.Flags().StringVar(&view, "projection", "", "only of this `VIEW`")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would happen, and change nothing")
	return cmd
}

func (p *process) runReplay(cmd *cobra.Command, s *source, view, key string, dryRun bool) error {
	replayed, err := s.views.Replay(cmd.Context(), view, key, dryRun)
	if err != nil {
		return err
	}
	if len(replayed) == 0 && key != "" {
		return &problem{code: exitNotFound, what: fmt.Sprintf("%q is not parked", key), next: "see what is: weir parked list"}
	}
	failed := 0
	for i := range replayed {
		if !replayed[i].OK {
			failed++
		}
	}
	if p.json(cmd) {
		if err := writeJSON(p.stdout, map[string]any{"ok": failed == 0, "dryRun": dryRun, "replayed": replayed}); err != nil {
			return err
		}
	} else if err := p.printReplayed(replayed, dryRun); err != nil {
		return err
	}
	if failed == 0 {
		return nil
	}
	return &problem{
		code: exitDifference, what: fmt.Sprintf("%d of %d keys cannot be taken in and stay parked", failed, len(replayed)),
		next: "mend what the problem names and replay again: ops/runbooks/parked-keys.md",
	}
}

func (p *process) printReplayed(replayed []replayedKey, dryRun bool) error {
	paint := p.painterFor(p.stdout)
	rows := newTable("VIEW", ">LANE", "KEY", ">EVENTS", "RESULT")
	for i := range replayed {
		k := &replayed[i]
		result := "taken in"
		switch {
		case !k.OK:
			result = fmt.Sprintf("still fails at event %d of commit %d: %s", k.FailedEvent, k.FailedCommit, k.Problem)
		case dryRun:
			result = "would be taken in"
		}
		rows.row(k.View, strconv.Itoa(int(k.Lane)), k.Key, groupDigits(k.Events), result)
	}
	return rows.print(p.stdout, paint)
}
