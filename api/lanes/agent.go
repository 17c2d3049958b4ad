package lanes

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"golang.org/x/sync/errgroup"
)

// An agent runs the escrow of one lane: it gives it messages, what came of its commands and the time. Its methods but run
// may be called by any number of goroutines.
type agent struct {
	options agentOptions
	board   *board
	escrow  *escrow

	mu    sync.Mutex
	inbox []func(now time.Time) // what the escrow must hear, in order
	// arrived is signalled when something is in the inbox.
	arrived chan struct{}
}

type agentOptions struct {
	lane      uint32
	topology  eventstore.Topology
	db        *pebble.DB
	transport Transport
	// submit decides a command in the agent's lane.
	submit func(ctx context.Context, request Request) (*Reply, error)
}

// Limits of an agent.
const (
	// inboxMax bounds the messages and orders that wait for an escrow; more messages are lost, more orders come again.
	inboxMax = 1 << 16
	// tasksMax bounds the commands of an escrow that its lane is deciding.
	tasksMax = 256
)

func newAgent(options agentOptions) *agent {
	return &agent{options: options, board: newBoard(time.Now), arrived: make(chan struct{}, 1)}
}

// run runs the escrow until ctx ends. An error is a fault of the disk. It may be called again then, and knows nothing of before.
func (a *agent) run(ctx context.Context) error {
	var tasks errgroup.Group
	tasks.SetLimit(tasksMax)
	defer func() {
		_ = tasks.Wait() // They return no errors.
		a.take()
		a.board.reset()
	}()
	submit := func(t task) {
		do := func() error {
			reply, err := a.options.submit(ctx, Request{
				Partition: eventstore.PartitionOf(domain.HomeKey(stockKeyOf(t.command))), Command: t.command,
			})
			var account domain.Account
			if err == nil {
				account = reply.Stock
			}
			a.put(func(now time.Time) { a.escrow.decided(now, t, account, err) }, true)
			return nil
		}
		if !tasks.TryGo(do) {
			a.put(func(now time.Time) { a.escrow.decided(now, t, domain.Account{}, errTooManyTasks) }, true)
		}
	}
	outbox := &outbox{db: a.options.db, keys: newKeys(a.options.lane)}
	homeOf := func(sku string) uint32 { return homeLane(a.options.topology, sku) }
	if err := outbox.settle(a.options.lane, homeOf); err != nil {
		return err
	}
	a.escrow = newEscrow(a.options.lane, homeOf, escrowOptions{}, a.board, outbox, a.options.transport.Send, submit)
	timer := time.NewTimer(0) // What was on its way when the lane stopped is sent first.
	defer timer.Stop()
	ticking := true
	for a.escrow.broken == nil {
		select {
		case <-ctx.Done():
			return nil
		case <-a.arrived:
		case <-a.board.poke:
		case <-timer.C:
			ticking = a.escrow.tick(time.Now())
			if ticking {
				timer.Reset(a.escrow.options.Again)
			}
			continue
		}
		now := time.Now()
		for _, hear := range a.take() {
			hear(now)
		}
		a.escrow.look(now)
		if !ticking {
			timer.Reset(a.escrow.options.Again)
			ticking = true
		}
	}
	return a.escrow.broken
}

var errTooManyTasks = errors.New("too many commands of an escrow are being decided")

// stockKeyOf returns the stock key that an escrow's command is about, empty for other commands.
func stockKeyOf(command domain.Command) string {
	if grant, ok := command.(domain.GrantStock); ok {
		return grant.SKU
	}
	if allot, ok := command.(domain.AllotStock); ok {
		return allot.SKU
	}
	if giveBack, ok := command.(domain.ReturnStock); ok {
		return giveBack.SKU
	}
	if reclaim, ok := command.(domain.ReclaimStock); ok {
		return reclaim.SKU
	}
	return ""
}

// put lets the escrow hear something. It reports false when too much waits, unless it must.
func (a *agent) put(hear func(now time.Time), must bool) bool {
	a.mu.Lock()
	full := len(a.inbox) >= inboxMax && !must
	if !full {
		a.inbox = append(a.inbox, hear)
	}
	a.mu.Unlock()
	select {
	case a.arrived <- struct{}{}:
	default:
	}
	return !full
}

func (a *agent) take() []func(time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	inbox := a.inbox
	a.inbox = nil
	return inbox
}

// deliver takes a message for the escrow, or loses it.
func (a *agent) deliver(m Message) {
	a.put(func(now time.Time) { a.escrow.receive(now, m) }, false)
}

// The states of an order that waits.
const (
	waiting int32 = iota
	woken
	gone
)

// await waits until an order that was refused because units are moving should be decided again, and then reports true; it
// counts as being resubmitted from then on. It reports false when ctx has ended, the lane moves or too many orders wait.
func (a *agent) await(ctx context.Context, moving *domain.StockMovingError, moves <-chan struct{}) bool {
	if ctx.Err() != nil {
		return false
	}
	var state atomic.Int32
	again := make(chan struct{})
	refused := make(chan struct{})
	w := &waiter{
		short: moving.Short,
		wake: func() {
			if state.CompareAndSwap(waiting, woken) {
				a.board.resubmit(moving.SKU, 1)
				close(again)
			}
		},
		left: func() bool { return state.Load() != waiting },
	}
	if !a.put(func(now time.Time) {
		if !a.escrow.await(now, moving, w) {
			close(refused)
		}
	}, false) {
		return false
	}
	select {
	case <-again:
		return true
	case <-refused:
	case <-moves:
	case <-ctx.Done():
	}
	return !state.CompareAndSwap(waiting, gone) // Woken at the last moment.
}
