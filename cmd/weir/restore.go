package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/backup"
)

func (p *process) restoreCommand() *cobra.Command {
	var (
		data    string
		from    string
		check   bool
		options logOptions
	)
	cmd := &cobra.Command{
		Use:   "restore",
		Short: "Put a backup back, and verify what came of it",
		Long: `Put a backup back: into a data directory that holds no log yet, or onto a NATS server without one (--nats).

The backup is read and verified first: every file is what was written, and every lane's commits are one chain. Then the
log and the users' wrapped keys are restored, and the state if the backup has one. At last the log and every view are
verified as 'weir log verify' does. It may be stopped at any point and run again.

Copy master.key (and token.key, for the tokens that are out) from the old data directory to the new one before the node
starts: they are not in a backup.

With --check the backup is verified and nothing is restored. Exit code 3: the backup, or what was restored, is damaged.`,
		Example: `  weir restore --from /backups/weir --data ./weir-restored
  weir restore --from /backups/weir --check
  weir restore --from /backups/weir --data /var/lib/weir --nats nats://10.0.0.1:4222 --replicas 3`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				return usagef("say which backup").then("for example: weir restore --from ./weir-backup --data ./weir-restored")
			}
			b, err := backup.Open(from)
			if err != nil {
				return explainBackup(from, err)
			}
			if err := p.checkBackup(cmd, from, b); err != nil {
				return err
			}
			result := resultOf(from, b)
			if check {
				return p.printBackup(cmd, result, fmt.Sprintf("the backup is whole: %s commits in %d lanes, %d users' keys", groupDigits(result.Commits), result.Lanes, result.Users))
			}
			if !cmd.Flags().Changed("data") {
				return usagef("say where to restore it").then("with --data, a directory that holds no log yet")
			}
			if err := p.restore(cmd, b, from, dataDir(data), options); err != nil {
				return err
			}
			if err := p.printBackup(cmd, result, fmt.Sprintf("restored to %s: %s commits in %d lanes, %d users' keys", data, groupDigits(result.Commits), result.Lanes, result.Users)); err != nil {
				return err
			}
			return p.verifyRestored(cmd, data, options)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&from, "from", "", "`DIR` of the backup")
	flags.StringVar(&data, "data", "", "`DIR` to restore into: one that holds no log yet")
	addNATSFlag(cmd, &options.nats)
	options.access.add(cmd)
	options.access.addSystem(cmd)
	flags.IntVar(&options.replicas, "replicas", 1, "`NUMBER` of replicas of the restored log: 1 or 3")
	flags.BoolVar(&check, "check", false, "verify the backup, and restore nothing")
	return cmd
}

// restore puts the log, the keys and the state of a backup into a data directory. The log gets its own name at the end, so that
// no node can start on a part of it.
func (p *process) restore(cmd *cobra.Command, b *backup.Backup, from string, dir dataDir, options logOptions) (err error) {
	if options.nats == "" {
		if _, err := os.Lstat(dir.log()); !errors.Is(err, fs.ErrNotExist) {
			return &problem{code: exitData, what: fmt.Sprintf("there is a log in %s already", dir), cause: err, next: "choose a directory without one: nothing is ever restored over a log"}
		}
	}
	if err := dir.make(); err != nil {
		return err
	}
	unfinished := dataDir(dir.restoring())
	restoring := p.newProgress("restore", unitBytes, int64(b.Bytes()))
	defer restoring.end()
	told := func(done, _ uint64) { restoring.at(int64(done)) }
	if err := p.restoreLog(cmd, b, dir, unfinished, options, told); err != nil {
		return explainBackup(from, explainStart(dir, err))
	}
	if _, err := os.Lstat(dir.state()); errors.Is(err, fs.ErrNotExist) {
		if _, err := b.RestoreState(dir.state(), told); err != nil {
			return explainBackup(from, err)
		}
	}
	if options.nats == "" {
		if err := os.Rename(unfinished.log(), dir.log()); err != nil {
			return dir.explain(err)
		}
	}
	return dir.explain(os.RemoveAll(string(unfinished)))
}

// restoring is where a log lies that is not whole yet.
func (d dataDir) restoring() string { return string(d) + "/restoring" }

func (p *process) restoreLog(cmd *cobra.Command, b *backup.Backup, dir, unfinished dataDir, options logOptions, told func(done, total uint64)) (err error) {
	if err := unfinished.make(); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	l, err := connectLog(unfinished, options, logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	ctx := cmd.Context()
	l.topology = b.Topology()
	node := nodeOptions{data: dir, lanes: l.topology.Lanes, log: options}
	if l.witness, err = eventstore.OpenWitness(dir.witness()); err != nil {
		return &problem{code: exitData, what: err.Error(), cause: err}
	}
	if err := l.provision(ctx, node); err != nil {
		return err
	}
	if l.keys, err = l.openKeys(ctx, node); err != nil {
		return err
	}
	if l.streams, err = eventstore.OpenJetStream(ctx, l.nc, l.topology, eventstore.JetStreamOptions{}); err != nil {
		return err
	}
	return b.Restore(ctx, backup.Target{
		Log: func(lane uint32) eventstore.Log { return l.streams.Log(lane) },
		SetKey: func(ctx context.Context, userID string, value []byte) error {
			_, err := l.keys.Create(ctx, userID, value)
			return err
		},
		Progress: told,
	})
}

// verifyRestored verifies the log and the views of what was restored.
func (p *process) verifyRestored(cmd *cobra.Command, data string, options logOptions) error {
	from := sourceFlags{data: data, nats: options.nats, access: options.access}
	s, err := p.openSource(cmd.Context(), &from)
	if err != nil {
		return err
	}
	return closeWith(s, p.verify(cmd, s, &from, true))
}
