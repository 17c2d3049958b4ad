package courier

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/weirhq/weir/eventstore"
)

// waits are questions that wait for answers, and are asked again when these may never come: when another node than the one that was asked
// decides their lane from now on, or when the connection broke over which they went, here or where they were asked. A node that hangs, or is
// cut off, keeps what it was asked, a server that stops loses what is on its way, and nothing says so of a question: without this, whoever asked
// would wait in vain for the whole of AnswerWait. The zero value is ready for use.
type waits struct {
	mu    sync.Mutex
	lanes map[uint32]*laneWaits
}

// laneWaits are the waits of one lane.
type laneWaits struct {
	// moves counts how often another node was named; here says that this one decides the lane.
	moves uint64
	here  bool
	open  map[*wait]struct{}
}

// A wait is for the answer of a node, "" for that of whoever answers for the lane.
type wait struct {
	node string
	end  context.CancelCauseFunc
}

// Why what was asked is asked again.
var (
	// errMoved: another node decides the lane than the one that was asked, whose answer has not come.
	errMoved = errors.New("another node decides the lane now")
	// errBroke: a connection broke over which the question went, or its answer would have come.
	errBroke = errors.New("the connection broke")
)

// of returns those of a lane. REQUIRES: mu is held.
func (w *waits) of(lane uint32) *laneWaits {
	if w.lanes == nil {
		w.lanes = map[uint32]*laneWaits{}
	}
	if w.lanes[lane] == nil {
		w.lanes[lane] = &laneWaits{open: map[*wait]struct{}{}}
	}
	return w.lanes[lane]
}

// look returns how often a lane has moved, and whether it is here.
func (w *waits) look(lane uint32) (moves uint64, here bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.of(lane)
	return l.moves, l.here
}

// begin begins to wait, unless the lane has moved since it was looked up who decides it.
func (w *waits) begin(lane uint32, one *wait, moves uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.of(lane)
	if l.moves != moves {
		return false
	}
	l.open[one] = struct{}{}
	return true
}

func (w *waits) end(lane uint32, one *wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.of(lane).open, one)
}

// moved ends the waits for others than the node that decides a lane.
func (w *waits) moved(lane uint32, owner string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.of(lane)
	l.moves++
	for one := range l.open {
		if one.node != owner {
			one.end(errMoved)
		}
	}
}

// own takes in whether a lane is here. What waits for other nodes when it comes is asked again, and this node answers.
func (w *waits) own(lane uint32, here bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.of(lane)
	l.here = here
	if !here {
		return
	}
	l.moves++
	for one := range l.open {
		one.end(errMoved)
	}
}

// broke ends the waits for a node whose connection broke, or all with "".
func (w *waits) broke(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.lanes {
		for one := range l.open {
			if node == "" || one.node == "" || one.node == node {
				one.end(errBroke)
			}
		}
	}
}

// returnsPendingMax bounds what nodes say of themselves that waits to be read; more is lost, and those who wait find out by AnswerWait.
const returnsPendingMax = 1 << 10

// watchConnections has what may be lost be asked again, here and by other nodes, until ctx ends: when the connection of this node breaks, and when
// another node says that its own did.
func (c *Courier) watchConnections(ctx context.Context) error {
	returns, err := c.options.Post.Hear(eventstore.ReturnSubject, returnsPendingMax, func(data []byte) {
		if node := string(data); node != c.options.NodeID && eventstore.ValidNodeID(node) {
			c.waits.broke(node)
		}
	})
	if err != nil {
		return err
	}
	defer returns.Close()
	c.options.Post.Watch(ctx, func() { c.waits.broke("") }, c.sayBack)
	return nil
}

// sayBack has other nodes ask again what they wait for an answer to from this one.
func (c *Courier) sayBack() {
	if c.options.NodeID != "" {
		_ = c.options.Post.Send(eventstore.ReturnSubject, []byte(c.options.NodeID)) // Who does not hear it asks again after AnswerWait.
	}
}

// Moved is told which node decides a lane that is not here: see lanes.Options.OnOwner. What was asked of another one, and may be asked again,
// is asked of this one at once.
func (c *Courier) Moved(lane uint32, owner string) {
	if eventstore.ValidNodeID(owner) {
		c.waits.moved(lane, owner)
	}
}

// lookUp returns the id of the node that decides the lane as far as this one knows, "" when it does not know, or is that node itself: then
// whoever answers for the lane is asked.
func (c *Courier) lookUp(search *searching) string {
	moves, here := c.waits.look(search.lane)
	search.moves = moves
	if here {
		return ""
	}
	return c.options.OwnerOf(search.lane)
}

// ask asks once, for as long as patience says. What may be asked again, and so has a patience, ends with errMoved or errBroke when that is
// so before the answer has come.
func (c *Courier) ask(ctx context.Context, search *searching, question []byte, patience time.Duration) ([]byte, error) {
	if patience == 0 {
		return c.options.Post.Ask(ctx, search.subject(), question, 0)
	}
	asking, end := context.WithCancelCause(ctx)
	defer end(nil)
	one := &wait{node: search.node, end: end}
	if !c.waits.begin(search.lane, one, search.moves) {
		return nil, errMoved
	}
	data, err := c.options.Post.Ask(asking, search.subject(), question, patience)
	c.waits.end(search.lane, one)
	if cause := context.Cause(asking); errors.Is(err, eventstore.ErrAnswerLost) && ctx.Err() == nil && (errors.Is(cause, errMoved) || errors.Is(cause, errBroke)) {
		return nil, cause
	}
	return data, err
}
