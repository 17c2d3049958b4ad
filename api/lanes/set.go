package lanes

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
	"golang.org/x/sync/errgroup"
)

// A Set is the lanes of one node. It is safe for use by several goroutines.
type Set struct {
	options Options
	catalog *Catalog
	lanes   []*eventstore.Lane[Request, Outcome]
	// agents run the lanes' escrows; none when there is one lane only.
	agents []*agent
}

// Options configure a Set. Topology, Store, Log and Owner are required.
type Options struct {
	Topology eventstore.Topology
	Store    *projections.Store
	// Log returns the log of a lane.
	Log func(lane uint32) eventstore.Log
	// Owner names this node in the log, for people.
	Owner string
	// Observe is told of every commit that a lane of this node made durable; may be nil.
	Observe func(lane uint32) eventstore.Observer
	// PayWithin is how long an unpaid order keeps its units; 0 means PayWithinDefault.
	PayWithin time.Duration
	// PaymentGrace is how much longer an order has whose payment is under way; 0 means PaymentGraceDefault.
	PaymentGrace time.Duration
	// SlotsMax bounds the commits on their way to the disk over all lanes; 0 means 2.
	SlotsMax int
	// Lane is what every lane starts from: limits, clock, logger. Its Writer's Lane, Lanes, Owner and Observe, and its
	// Slots, are set here.
	Lane eventstore.LaneOptions
	// StockWait bounds how long an order waits for units that are on their way; 0 means StockWaitDefault.
	StockWait time.Duration
	// Transport carries messages between lanes; nil means in this process.
	Transport Transport
	// Entropy is where order ids take their randomness from; nil means the operating system's.
	Entropy io.Reader
	// Remote carries requests to the nodes that decide the lanes which this one does not; nil means that it decides all.
	Remote Remote
	// Own says which lanes this node decides; nil means all.
	Own func(lane uint32) bool
	// OnOwnership is told when a lane begins to serve here, and before it stops; may be nil.
	OnOwnership func(lane uint32, owned bool)
}

// StockWaitDefault is how long an order waits for units that are on their way, by default.
const StockWaitDefault = 250 * time.Millisecond

// Open loads the state of every lane. Nothing runs until Run does.
func Open(options Options) (*Set, error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	if options.SlotsMax == 0 {
		options.SlotsMax = 2
	}
	if options.StockWait == 0 {
		options.StockWait = StockWaitDefault
	}
	s := &Set{options: options, catalog: NewCatalog()}
	slots := eventstore.NewSlots(options.SlotsMax)
	for lane := range options.Topology.Lanes {
		entropy := options.Entropy
		if entropy == nil {
			entropy = rand.Reader
		}
		machine, err := OpenMachine(MachineOptions{
			Lane: lane, Topology: options.Topology, Store: options.Store, Catalog: s.catalog,
			PayWithin: options.PayWithin, PaymentGrace: options.PaymentGrace, Entropy: entropy, board: s.addAgent(lane),
		})
		if err != nil {
			return nil, err
		}
		laneOptions := options.Lane
		laneOptions.Slots = slots
		laneOptions.Writer.Lane, laneOptions.Writer.Lanes = lane, options.Topology.Lanes
		laneOptions.Writer.Owner = options.Owner
		if options.Observe != nil {
			laneOptions.Writer.Observe = options.Observe(lane)
		}
		s.lanes = append(s.lanes, eventstore.NewLane(options.Log(lane), machine, laneOptions))
	}
	return s, nil
}

// addAgent makes what runs a lane's escrow, and returns its board.
func (s *Set) addAgent(lane uint32) *board {
	if s.options.Topology.Lanes == 1 {
		return nil
	}
	transport := s.options.Transport
	if transport == nil {
		transport = s
	}
	a := newAgent(agentOptions{
		lane: lane, topology: s.options.Topology, db: s.options.Store.DB(), transport: transport,
		submit: func(ctx context.Context, request Request) (Reply, error) { return s.submitTo(ctx, lane, request) },
	})
	s.agents = append(s.agents, a)
	return a.board
}

// Send implements Transport within this process.
func (s *Set) Send(message Message) { s.Deliver(message) }

// Deliver gives a message that came for a lane of this node to its escrow. It does not block.
func (s *Set) Deliver(message Message) {
	if int(message.To) < len(s.agents) && s.Owned(message.To) {
		s.agents[message.To].deliver(message)
	}
}

// Run opens the lanes and serves them until ctx ends; what is in flight then is settled. It returns the first error that
// opening again cannot mend.
func (s *Set) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for lane := range s.lanes {
		if !s.Owned(uint32(lane)) {
			continue
		}
		group.Go(func() error {
			defer s.tellOwnership(uint32(lane))()
			if err := s.lanes[lane].Run(ctx); err != nil {
				return fmt.Errorf("lane %d: %w", lane, err)
			}
			return nil
		})
	}
	for lane, agent := range s.agents {
		if !s.Owned(uint32(lane)) {
			continue
		}
		group.Go(func() error {
			if err := agent.run(ctx); err != nil {
				return fmt.Errorf("escrow of lane %d: %w", lane, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// Serving reports whether every lane is open.
func (s *Set) Serving() bool {
	for lane := range s.lanes {
		if _, ok := s.lanes[lane].Serving(); !ok && s.Owned(uint32(lane)) {
			return false
		}
	}
	return true
}

// Submit implements Commands.
func (s *Set) Submit(ctx context.Context, request Request) (Reply, error) {
	lane := s.options.Topology.LaneOf(request.Partition)
	if s.options.Remote != nil && !s.Owned(lane) {
		return s.options.Remote.Submit(ctx, lane, request)
	}
	return s.SubmitLocal(ctx, lane, request)
}

// submitAgain submits an order again whenever units that it lacks have moved, for a bounded time.
func (s *Set) submitAgain(ctx context.Context, lane uint32, request Request, moving *domain.StockMovingError) (Reply, error) {
	bounded, cancel := context.WithTimeout(ctx, s.options.StockWait)
	defer cancel()
	a := s.agents[lane]
	for {
		waitsFor, pledges := moving.SKU, moving.Pledges
		a.board.pledge(pledges, 1)
		if !a.await(bounded, moving) {
			a.board.pledge(pledges, -1)
			break
		}
		reply, err := s.submitTo(ctx, lane, request)
		a.board.resubmit(waitsFor, -1)
		a.board.pledge(pledges, -1)
		if !errors.As(err, &moving) {
			return reply, err
		}
	}
	if err := ctx.Err(); err != nil {
		return Reply{}, err
	}
	return Reply{}, moving
}

// EachErased calls f with every key that the lanes know to be erased, until it fails. It may be called while the lanes run, and
// sees what they had applied when it began.
func (s *Set) EachErased(f func(userID string, key domain.KeyID) error) (err error) {
	for lane := range s.options.Topology.Lanes {
		keys := newKeys(lane)
		if err := eachErased(s.options.Store.DB(), keys.table(tableErased), f); err != nil {
			return err
		}
	}
	return nil
}

func eachErased(db *pebble.DB, table []byte, f func(userID string, key domain.KeyID) error) (err error) {
	iter, err := db.NewIter(&pebble.IterOptions{LowerBound: table, UpperBound: after(table)})
	if err != nil {
		return fmt.Errorf("read what was erased: %w", err)
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for valid := iter.First(); valid; valid = iter.Next() {
		userID, id, found := bytes.Cut(iter.Key()[len(table):], []byte{0})
		if !found || len(id) != 8 {
			return fmt.Errorf("read what was erased: the key %x is damaged", iter.Key())
		}
		if err := f(string(userID), domain.KeyID(binary.BigEndian.Uint64(id))); err != nil {
			return err
		}
	}
	return iter.Error()
}

func (s *Set) submitTo(ctx context.Context, lane uint32, request Request) (Reply, error) {
	outcome, err := s.lanes[lane].Submit(ctx, request)
	if err != nil {
		return Reply{}, err
	}
	if outcome.Refusal != nil {
		return Reply{}, outcome.Refusal
	}
	return *outcome.Reply, nil
}

var (
	_ Commands                             = (*Set)(nil)
	_ Transport                            = (*Set)(nil)
	_ domain.State                         = (*Machine)(nil)
	_ eventstore.Machine[Request, Outcome] = (*Machine)(nil)
)
