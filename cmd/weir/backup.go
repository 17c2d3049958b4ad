package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore/backup"
)

// A copier hands out what a backup takes beside the log.
type copier interface {
	// Keys calls each with every user's wrapped key.
	Keys(ctx context.Context, each func(userID string, value []byte) error) error
	// Checkpoint copies the state as of now into a directory, which the caller removes; empty where there is no state.
	Checkpoint(ctx context.Context) (dir string, err error)
}

// backupResult is what 'backup' and 'restore' print.
type backupResult struct {
	Dir     string `json:"dir"`
	Run     int    `json:"run"`
	Lanes   uint32 `json:"lanes"`
	Commits uint64 `json:"commits"`
	// Added are the commits that this run added.
	Added uint64 `json:"added"`
	Users int    `json:"users"`
	State bool   `json:"state"`
	// Bytes are those of the backup's files, LogBytes those of the log that it is of; 0 where the log does not say.
	Bytes    uint64 `json:"bytes"`
	LogBytes uint64 `json:"logBytes,omitempty"`
}

func resultOf(dir string, b *backup.Backup) backupResult {
	m := b.Manifest()
	r := backupResult{Dir: dir, Run: m.Run, Lanes: uint32(len(m.Lanes)), State: m.State != nil, Bytes: b.Bytes()}
	for i := range m.Lanes {
		r.Commits += m.Lanes[i].Commits
		r.LogBytes += m.Lanes[i].LogBytes
	}
	if m.Keys != nil {
		r.Users = m.Keys.Users
	}
	return r
}

func (p *process) backupCommand() *cobra.Command {
	var (
		from    sourceFlags
		to      string
		noState bool
	)
	cmd := &cobra.Command{
		Use:   "backup",
		Short: "Copy the log, the users' keys and the state to a directory",
		Long: `Copy the log, the users' wrapped keys and the state to a directory, and prove by reading it that the copy is whole.

The first run copies everything. Later runs into the same directory add what the log has got since; keys and state are
copied anew. A run that is stopped leaves the backup as it was. Put the directory back with 'weir restore'.

It needs no pause: a running node goes on. The state is only there to start sooner: without it (--no-state) a restored
node makes its state from the log.

master.key and token.key of the data directory are not in a backup: whoever has both a backup and the master key can
read what users sealed. Keep them elsewhere. A backup keeps the keys of users who are erased after it until its next
run: run it again after an erasure (see ops/adr/0008-erasing-a-person.md).

` + sourceHelp + `
There is no state to copy then, unless --data names a node's directory as well.`,
		Example: `  weir backup --to /backups/weir
  weir backup --data /var/lib/weir --to /backups/weir -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to == "" {
				return usagef("say where the backup goes").then("for example: weir backup --to ./weir-backup")
			}
			s, err := p.openSource(cmd.Context(), &from)
			if err != nil {
				return err
			}
			return closeWith(s, p.backUp(cmd, s, to, !noState))
		},
	}
	from.addFlags(cmd, false)
	cmd.Flags().StringVar(&to, "to", "", "`DIR` of the backup: a new one, or one of the same log that is added to")
	cmd.Flags().BoolVar(&noState, "no-state", false, "leave the state out")
	return cmd
}

func (p *process) backUp(cmd *cobra.Command, s *source, to string, withState bool) (err error) {
	run := backup.Run{
		Topology: s.topology, Lane: func(lane uint32) backup.Reader { return s.lane(lane) },
		Keys: s.copier.Keys, Now: p.now(),
	}
	// The state first, then the log, then the keys: the log reaches beyond the state, and the keys are those of its users.
	if withState {
		if run.State, err = s.copier.Checkpoint(cmd.Context()); err != nil {
			return err
		}
		if run.State != "" {
			defer func() { err = errors.Join(err, os.RemoveAll(run.State)) }()
		}
	}
	before := uint64(0)
	if old, err := backup.Open(to); err == nil {
		before = old.Commits()
	}
	copying := p.newProgress("back up", unitBytes, 0)
	run.Progress = func(done, total uint64) { copying.total = int64(total); copying.at(int64(done)) }
	b, err := backup.Add(cmd.Context(), to, run)
	copying.end()
	if err != nil {
		return explainBackup(to, err)
	}
	if err := p.checkBackup(cmd, to, b); err != nil {
		return err
	}
	result := resultOf(to, b)
	result.Added = result.Commits - before
	return p.printBackup(cmd, result, fmt.Sprintf("backed up: %s new commits; the backup has %s in %d lanes, %d users' keys",
		groupDigits(result.Added), groupDigits(result.Commits), result.Lanes, result.Users))
}

// checkBackup reads all of a backup.
func (p *process) checkBackup(cmd *cobra.Command, dir string, b *backup.Backup) error {
	reading := p.newProgress("verify the backup", unitBytes, int64(b.Bytes()))
	err := b.Verify(cmd.Context(), func(done, _ uint64) { reading.at(int64(done)) })
	reading.end()
	return explainBackup(dir, err)
}

func (p *process) printBackup(cmd *cobra.Command, result backupResult, text string) error {
	if p.json(cmd) {
		return writeJSON(p.stdout, result)
	}
	state := "no state: it is made from the log"
	if result.State {
		state = "with state"
	}
	_, err := fmt.Fprintf(p.stdout, "%s, %s, %s, run %d\n", text, state, bytesText(int64(result.Bytes)), result.Run)
	return err
}

// explainBackup says what is wrong with a backup.
func explainBackup(dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, backup.ErrNone):
		return usagef("there is no backup in %s: it has no manifest.json", dir).then("name the directory that 'weir backup --to' wrote")
	case errors.Is(err, backup.ErrOtherLog):
		return &problem{code: exitData, what: fmt.Sprintf("%s: %v", dir, err), cause: err, next: "choose another directory for this log's backup; or, if the log has lost commits, restore it from this one"}
	case errors.Is(err, backup.ErrDamaged):
		return &problem{code: exitDifference, what: fmt.Sprintf("%s: %v", dir, err), cause: err, next: "use another copy of the backup, or make a new one in an empty directory"}
	case errors.Is(err, backup.ErrNotEmpty):
		return &problem{code: exitData, what: err.Error(), cause: err, next: "restore into an empty directory, or onto a server without a log"}
	case errors.Is(err, os.ErrPermission):
		return &problem{code: exitPermission, what: err.Error(), cause: err, next: "run as the user that owns the directory"}
	}
	return err
}

// checkpointPrefix begins the name of a directory with a copy of the state, in the data directory.
const checkpointPrefix = "checkpoint-"

// removeCheckpoints removes what copies were left behind: their makers were killed.
func (d dataDir) removeCheckpoints() error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return d.explain(err)
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), checkpointPrefix) {
			if err := os.RemoveAll(filepath.Join(string(d), entry.Name())); err != nil {
				return d.explain(err)
			}
		}
	}
	return nil
}

// checkpoint copies a node's state into a new directory beside it.
func (d dataDir) checkpoint(copyTo func(dir string) error) (string, error) {
	data, err := filepath.Abs(string(d)) // Whoever asked may work in another directory.
	if err != nil {
		return "", d.explain(err)
	}
	dir, err := os.MkdirTemp(data, checkpointPrefix)
	if err == nil {
		err = os.Remove(dir) // The name was wanted: the copy makes the directory itself.
	}
	if err != nil {
		return "", d.explain(err)
	}
	if err := copyTo(dir); err != nil {
		return "", errors.Join(fmt.Errorf("copy the state: %w", err), os.RemoveAll(dir))
	}
	return dir, nil
}
