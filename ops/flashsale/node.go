package flashsale

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/weirhq/weir/ops/launch"
)

// A node is where the sale is held. Addr may be called while it restarts; the other methods are called one at a time.
type node interface {
	// Start starts it, or sees that it serves.
	Start(ctx context.Context) error
	// Restart kills it with kill -9 and starts it again. It returns how long that took to serve.
	Restart(ctx context.Context) (time.Duration, error)
	// End stops it cleanly, if it was started here.
	End() error
	// Addr is where it serves now, host:port. Token is an operator's. Data is its data directory, empty when that is not known.
	Addr() string
	Token() string
	Data() string
}

// ownNode is a 'weir dev' that was started here.
type ownNode struct {
	node launch.Node

	mu   sync.Mutex
	addr string
}

func newOwnNode(options Options, dir string) *ownNode {
	return &ownNode{node: launch.Node{
		Binary: options.Weir, Data: filepath.Join(dir, "data"), Lanes: options.Lanes, PayWithin: options.PayWithin,
	}}
}

// Start starts it.
func (n *ownNode) Start(ctx context.Context) error {
	_, err := n.start(ctx)
	return err
}

func (n *ownNode) start(ctx context.Context) (time.Duration, error) {
	took, err := n.node.Start(ctx)
	if err != nil {
		return 0, fmt.Errorf("start a node: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr = n.node.Addr // A new one with every start.
	return took, nil
}

// Restart kills it and starts it again.
func (n *ownNode) Restart(ctx context.Context) (time.Duration, error) {
	if err := n.node.Crash(); err != nil {
		return 0, fmt.Errorf("kill the node: %w", err)
	}
	return n.start(ctx)
}

// End stops it cleanly.
func (n *ownNode) End() error { return n.node.End() }

// Addr is where it serves.
func (n *ownNode) Addr() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addr
}

// Token is an operator's.
func (n *ownNode) Token() string { return n.node.Operator }

// Data is its directory.
func (n *ownNode) Data() string { return n.node.Data }

// foreignNode is one that somebody else runs.
type foreignNode struct{ addr, token, data string }

// Start does nothing: the first call says whether it serves.
func (n *foreignNode) Start(context.Context) error { return nil }

// Restart is not for a node of somebody else.
func (n *foreignNode) Restart(context.Context) (time.Duration, error) {
	return 0, errors.New("this node was not started here")
}

// End does nothing.
func (n *foreignNode) End() error { return nil }

// Addr is where it serves.
func (n *foreignNode) Addr() string { return n.addr }

// Token is an operator's.
func (n *foreignNode) Token() string { return n.token }

// Data is its directory.
func (n *foreignNode) Data() string { return n.data }
