package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/eventstore"
)

func (p *process) clusterUpgradeCommand() *cobra.Command {
	var (
		address  string
		access   natsAccess
		replicas int
	)
	cmd := &cobra.Command{
		Use:   "upgrade --replicas 3 --nats URL",
		Short: "Give a log more replicas, while nodes use it",
		Long: `Give every stream, bucket and object store of a log more replicas, one after the other, while nodes use it. It ends when
every replica has everything.

Each lane is fenced once, so that its owner opens it again: for about a second it answers that it is not available, and
the same request again succeeds. Appends follow another rule on a replicated stream, and so no append of the old rule
can come late.

It may be stopped and called again; what is done is kept. With the secret of a cluster of Weir's own servers, or with
--nats-system-creds, every server is asked what it has on its disk. Without either the streams' leaders are believed,
which call a replica current a little early.

To take replicas away is refused: a commit that a majority acknowledged might be on none of those that stay.`,
		Example: `  weir cluster upgrade --replicas 3 --nats tls://127.0.0.1:4222 --nats-ca ca.pem --cluster-secret-file secret
  weir cluster upgrade --replicas 3 --nats nats://10.0.0.1:4222 --nats-creds weir.creds --nats-system-creds sys.creds -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needFlags(cmd, "replicas"); err != nil {
				return err
			}
			if replicas != 1 && replicas != replicasOfCluster {
				return usagef("--replicas must be 1 or %d, not %d", replicasOfCluster, replicas)
			}
			if address == "" {
				return usagef("say which log").then("with --nats, the URL of one of its servers; a node's own server is reached where its --nats-listen says")
			}
			return p.upgrade(cmd, address, access, replicas)
		},
	}
	addNATSFlag(cmd, &address)
	access.add(cmd)
	access.addSystem(cmd)
	cmd.Flags().IntVar(&replicas, "replicas", 0, "`NUMBER` of servers that keep each commit from now on: 3")
	return cmd
}

func (p *process) upgrade(cmd *cobra.Command, address string, access natsAccess, replicas int) (err error) {
	nc, err := access.connect(address)
	if err != nil {
		return err
	}
	defer nc.Close()
	options := eventstore.UpgradeOptions{Replicas: replicas, Now: p.now, Progress: func(step eventstore.UpgradeStep) { p.printUpgradeStep(cmd, step) }}
	if options.System, err = access.connectSystem(address); err != nil {
		return err
	}
	if options.System != nil {
		defer options.System.Close()
	}
	err = eventstore.Upgrade(cmd.Context(), nc, options)
	var fewer *eventstore.FewerReplicasError
	switch {
	case errors.As(err, &fewer):
		return &problem{code: exitRefused, what: err.Error(), cause: err, next: "leave the log as it is"}
	case err != nil:
		return &problem{code: exitUnavailable, what: err.Error(), cause: err, next: "see that three servers run, and call the same command again: it goes on where it was"}
	}
	return nil
}

// printUpgradeStep prints one line for each step.
func (p *process) printUpgradeStep(cmd *cobra.Command, step eventstore.UpgradeStep) {
	if p.json(cmd) {
		_ = writeJSON(p.stdout, step) // A reader that has left misses the rest, and the upgrade goes on.
		return
	}
	text := step.Step
	if len(step.Behind) > 0 {
		var behind []string
		for _, name := range slices.Sorted(maps.Keys(step.Behind)) {
			behind = append(behind, fmt.Sprintf("%s %s behind", name, groupDigits(step.Behind[name])))
		}
		text += ": " + strings.Join(behind, ", ")
	}
	fmt.Fprintf(p.stdout, "%-20s %s\n", step.Stream, printable(text))
}
