// Package replicas has as many servers keep what gateways keep on NATS as keep the list of nodes. Nodes make that list with the replicas that their
// log has, so that what gateways keep outlives what the log does: a server of three.
package replicas

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	// nodesStream is the stream that JetStream keeps the list of nodes in.
	nodesStream = "KV_WEIR-NODES"
	// lookEvery is how often a Raiser looks: a stream may be made before the first node has come.
	lookEvery = 30 * time.Second
	// requestMax bounds a question to the servers.
	requestMax = 5 * time.Second
)

// OfNodes returns how many servers keep the list of nodes, 1 if there is none yet.
func OfNodes(ctx context.Context, js jetstream.JetStream) (int, error) {
	nodes, err := js.Stream(ctx, nodesStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return 1, nil
	}
	if err != nil {
		return 0, fmt.Errorf("ask how many servers keep the list of nodes: %w", err)
	}
	return max(1, nodes.CachedInfo().Config.Replicas), nil
}

// A Stream is one that gateways keep.
type Stream struct {
	Name string
	// ReadFromLeader has the leader alone answer reads. A replica that is behind would answer with what was before.
	ReadFromLeader bool
}

// A Raiser gives the streams of gateways the replicas that the list of nodes has, also those that were made when that had fewer. It takes none
// away. Any number of gateways may do it at once: each asks for the same.
type Raiser struct {
	js      jetstream.JetStream
	streams []Stream
	logger  *slog.Logger
}

// NewRaiser makes a raiser of streams, which need not be there. It starts nothing.
func NewRaiser(js jetstream.JetStream, streams []Stream, logger *slog.Logger) *Raiser {
	return &Raiser{js: js, streams: streams, logger: logger}
}

// Run raises them now and every half minute, until ctx ends, which is no error. What fails is tried again.
func (r *Raiser) Run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for said := ""; ; {
		switch err := r.Raise(ctx); {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			said = ""
		case err.Error() != said:
			said = err.Error()
			r.logger.LogAttrs(ctx, slog.LevelWarn, "what gateways keep is on fewer servers than the list of nodes; trying again", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// Raise asks once for what is missing. It does not wait until the new replicas have everything.
func (r *Raiser) Raise(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, requestMax)
	wanted, err := OfNodes(asking, r.js)
	cancel()
	if err != nil {
		return err
	}
	var failed []error
	for _, stream := range r.streams {
		failed = append(failed, r.raise(ctx, stream, wanted))
	}
	return errors.Join(failed...)
}

func (r *Raiser) raise(ctx context.Context, stream Stream, wanted int) error {
	ctx, cancel := context.WithTimeout(ctx, requestMax)
	defer cancel()
	found, err := r.js.Stream(ctx, stream.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // Whoever makes it asks how many it is to have.
	}
	if err != nil {
		return fmt.Errorf("stream %s: %w", stream.Name, err)
	}
	config := found.CachedInfo().Config
	direct := stream.ReadFromLeader && config.AllowDirect
	if config.Replicas >= wanted && !direct {
		return nil
	}
	before := config.Replicas
	config.Replicas = max(config.Replicas, wanted)
	if direct {
		config.AllowDirect, config.MirrorDirect = false, false
	}
	if _, err := r.js.UpdateStream(ctx, config); err != nil {
		return fmt.Errorf("give stream %s %d replicas: %w", stream.Name, config.Replicas, err)
	}
	if config.Replicas != before {
		r.logger.LogAttrs(ctx, slog.LevelInfo, "a stream gets more replicas", slog.String("stream", stream.Name), slog.Int("before", before), slog.Int("replicas", config.Replicas))
	}
	return nil
}
