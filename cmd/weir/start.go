package main

import (
	"errors"
	"fmt"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/projections"
)

// explainStart says what a node that does not start, or does not go on, needs to be told about.
func explainStart(dir dataDir, err error) error {
	var (
		told     *problem
		inUse    *embedded.DirInUseError
		storeUse *projections.StoreInUseError
		topology *eventstore.TopologyError
		missing  *eventstore.MissingLogError
		keys     *eventstore.MissingKeysError
		setting  *eventstore.StreamSettingError
		chain    *eventstore.ChainError
		replicas *eventstore.ReplicasError
		lossy    *eventstore.LossyServerError
		owner    *embedded.DirOwnerError
		witness  *eventstore.WitnessError
	)
	data := func(next string) error {
		return &problem{code: exitData, what: err.Error(), cause: err, next: next}
	}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &told):
		return err
	case errors.As(err, &inUse):
		what := fmt.Sprintf("data directory %s is in use by another process", dir)
		if inUse.PID != 0 {
			what += fmt.Sprintf(" (pid %d)", inUse.PID)
		}
		return &problem{code: exitData, what: what, cause: err, next: "stop that process, or choose another directory with --data"}
	case errors.As(err, &storeUse):
		return &problem{code: exitData, what: fmt.Sprintf("data directory %s is in use by another process", dir), cause: err, next: "stop that process, or choose another directory with --data"}
	case errors.As(err, &topology):
		return data("leave --lanes out: the log knows how many it has")
	case errors.As(err, &missing):
		return data("keep the directory as it is, and restore the log from a backup")
	case errors.As(err, &keys):
		return data("keep the log as it is, and restore the bucket with it from one backup: without the keys no note in the log can ever be read")
	case errors.As(err, &witness):
		return data("keep the directory as it is, and restore the log from a backup, before anything is given up")
	case errors.As(err, &lossy):
		return data("sync_interval: always in the jetstream block of every server; then give their addresses with --nats-monitor")
	case errors.As(err, &replicas):
		return data("add them while the nodes run, or leave --replicas out to take the log as it is")
	case errors.As(err, &owner):
		return data("start that server with the flags that it was first started with; to move a log into a cluster: weir backup, and weir restore --nats there")
	case errors.As(err, &setting):
		return data("a stream set up so could lose what was acknowledged: correct the setting")
	case errors.As(err, &chain):
		return data("keep the directory as it is, find all that is wrong ('weir log verify'), and restore the log from a backup")
	case errors.Is(err, eventstore.ErrNotProvisioned):
		return &problem{code: exitUsage, what: err.Error(), cause: err, next: "start a node on it first: weir dev, or weir serve --nats URL"}
	case eventstore.Forming(err):
		return &problem{code: exitUnavailable, what: err.Error(), cause: err, next: "see that a majority of the NATS servers runs, and start again: nothing was changed"}
	}
	return dir.explain(err)
}
