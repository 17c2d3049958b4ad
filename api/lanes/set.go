package lanes

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
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
	seats   []*seat
	// asks has a place for each question for the end of a log that is under way.
	asks chan struct{}
}

// Options configure a Set. Topology, Store, Log and Owner are required.
type Options struct {
	Topology eventstore.Topology
	Store    *projections.Store
	// Log returns the log of a lane.
	Log func(lane uint32) eventstore.Log
	// Owner names this node in the log, for people.
	Owner string
	// Observe is told of every commit of a lane, in order: of those that this node made durable, and of those that it followed, but
	// not of those that it read to open the lane. May be nil.
	Observe func(lane uint32) eventstore.Observer
	// Shared says that lanes are shared with other nodes: each is served from Start to Stop, and followed otherwise. Without it Run
	// serves all of them.
	Shared bool
	// Remote carries requests to the node that has a lane which is not here; nil means that they are refused.
	Remote Remote
	// OnOwnership is told when a lane begins to be served here, and before it no longer is; may be nil. It does not block.
	OnOwnership func(lane uint32, owned bool)
	// OnOwner is told which node decides a lane that is not here, whenever this node is told, after OwnerOf says so; may be nil. It does not
	// block.
	OnOwner func(lane uint32, owner string)
	// StandbyPace is how long after it took in commits of a lane that another node decides this one takes in the next, at the earliest,
	// while they come faster than that and Demand does not say that somebody waits for them. 0 means as soon as they come.
	StandbyPace time.Duration
	// Demand says of a lane whether somebody waits for what its commits change; nil means that nobody does.
	Demand func(lane uint32) *eventstore.Demand
	// ParkWait bounds how long a request waits for a lane that is being opened or handed over; 0 means ParkWaitDefault.
	ParkWait time.Duration
	// PayWithin is how long an unpaid order keeps its units; 0 means PayWithinDefault.
	PayWithin time.Duration
	// PaymentGrace is how much longer an order has whose payment is under way; 0 means PaymentGraceDefault.
	PaymentGrace time.Duration
	// SlotsMax bounds the commits on their way to the disk over all lanes; 0 means 2.
	SlotsMax int
	// Lane is what every lane starts from: limits, clock, logger. Its Writer's Lane, Lanes, Owner and Observe, and its
	// Slots, Held and Opened, are set here.
	Lane eventstore.LaneOptions
	// StockWait bounds how long an order waits for units that are on their way, and for this node to know what it orders; 0 means
	// StockWaitDefault.
	StockWait time.Duration
	// Transport carries messages between lanes; nil means in this process.
	Transport Transport
	// Entropy is where order ids take their randomness from; nil means the operating system's.
	Entropy io.Reader
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
	if options.ParkWait == 0 {
		options.ParkWait = ParkWaitDefault
	}
	s := &Set{options: options, catalog: NewCatalog(), asks: make(chan struct{}, factsAsksMax)}
	slots := eventstore.NewSlots(options.SlotsMax)
	for lane := range options.Topology.Lanes {
		entropy := options.Entropy
		if entropy == nil {
			entropy = rand.Reader
		}
		agent := s.newAgent(lane)
		machine, err := OpenMachine(MachineOptions{
			Lane: lane, Topology: options.Topology, Store: options.Store, Catalog: s.catalog,
			PayWithin: options.PayWithin, PaymentGrace: options.PaymentGrace, Entropy: entropy, board: boardOf(agent),
		})
		if err != nil {
			return nil, err
		}
		laneOptions := options.Lane
		laneOptions.Slots = slots
		laneOptions.Writer.Lane, laneOptions.Writer.Lanes = lane, options.Topology.Lanes
		laneOptions.Writer.Owner = options.Owner
		s.seats = append(s.seats, s.newSeat(lane, machine, agent, laneOptions))
	}
	return s, nil
}

// demand says whether somebody waits for what a lane's commits change; nil if nobody ever does.
func (s *Set) demand(lane uint32) *eventstore.Demand {
	if s.options.Demand == nil {
		return nil
	}
	return s.options.Demand(lane)
}

// newSeat makes a lane's seat. A lane that is not shared is started.
func (s *Set) newSeat(lane uint32, machine *Machine, agent *agent, options eventstore.LaneOptions) *seat {
	following := eventstore.FollowerOptions{
		Lane: lane, Log: s.options.Log(lane), Pace: s.options.StandbyPace, Demand: s.demand(lane), Logger: options.Logger,
	}
	made := &seat{
		set: s, lane: lane, options: options, machine: machine, agent: agent, changed: make(chan struct{}), moved: make(chan struct{}),
		follower: eventstore.NewFollower(following),
	}
	made.commit.Store(machine.Position().Number)
	var observe eventstore.Observer
	if s.options.Observe != nil {
		observe = s.options.Observe(lane)
	}
	made.options.Writer.Observe = func(commit *eventstore.Commit, at eventstore.Position) {
		made.applied(at.Number)
		if observe != nil {
			observe(commit, at)
		}
	}
	if !s.options.Shared {
		made.start(func() bool { return true })
	}
	return made
}

// newAgent makes what runs a lane's escrow: nil when there is one lane only.
func (s *Set) newAgent(lane uint32) *agent {
	if s.options.Topology.Lanes == 1 {
		return nil
	}
	transport := s.options.Transport
	if transport == nil {
		transport = s
	}
	return newAgent(agentOptions{
		lane: lane, topology: s.options.Topology, db: s.options.Store.DB(), transport: transport,
		submit: func(ctx context.Context, request Request) (*Reply, error) {
			return s.seats[lane].submitNow(ctx, request)
		},
	})
}

func boardOf(a *agent) *board {
	if a == nil {
		return nil
	}
	return a.board
}

func (s *Set) logger() *slog.Logger {
	if s.options.Lane.Logger != nil {
		return s.options.Lane.Logger
	}
	return slog.Default()
}

// Send implements Transport within this process.
func (s *Set) Send(message Message) { s.Deliver(message) }

// Deliver gives a message that came for a lane of this node to its escrow, and loses one for another lane. It does not block.
func (s *Set) Deliver(message Message) {
	if int(message.To) >= len(s.seats) {
		return
	}
	if a := s.seats[message.To].agent; a != nil && s.Owned(message.To) {
		a.deliver(message)
	}
}

// Run serves the lanes, or follows those that are not here, until ctx ends; what is in flight then is settled. It returns the first
// error that opening again cannot mend.
func (s *Set) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, seat := range s.seats {
		group.Go(func() error { return seat.run(ctx) })
	}
	return group.Wait()
}

// Serving reports whether every lane that is here is open.
func (s *Set) Serving() bool {
	for lane := range s.seats {
		if s.Owned(uint32(lane)) && !s.Status(uint32(lane)).Serving {
			return false
		}
	}
	return true
}

// Submit implements Commands: it decides a request here, or has the node decide it that has the lane.
func (s *Set) Submit(ctx context.Context, request Request) (*Reply, error) {
	lane := s.options.Topology.LaneOf(request.Partition)
	reply, err := s.SubmitLocal(ctx, lane, request)
	var elsewhere *NotOwnerError
	switch {
	case err == nil || !errors.As(err, &elsewhere):
		return reply, err
	case s.options.Remote == nil:
		return nil, &eventstore.UnavailableError{Lane: lane, RetryAfter: time.Second, Cause: err}
	}
	return s.options.Remote.Submit(ctx, lane, request)
}

// SubmitLocal decides a request in a lane of this node, and waits for units that are on their way as Submit does, and for what other lanes
// decided of what it names. It returns a *NotOwnerError when the lane is not here.
func (s *Set) SubmitLocal(ctx context.Context, lane uint32, request Request) (*Reply, error) {
	began := time.Now()
	reply, err := s.seats[lane].submit(ctx, request)
	if err == nil {
		return reply, nil
	}
	// What a request names may be of several lanes, and a refusal names the first that is not known.
	for caughtUp := []uint32(nil); ; {
		home, unknown := s.homeOfUnknown(err)
		if !unknown || slices.Contains(caughtUp, home) || s.seats[home].servedSince(began) {
			break
		}
		caughtUp = append(caughtUp, home)
		if reply, err = s.submitOnceKnown(ctx, lane, home, request); err == nil {
			return reply, nil
		}
	}
	var moving *domain.StockMovingError
	if !errors.As(err, &moving) {
		return reply, err
	}
	return s.submitAgain(ctx, s.seats[lane], request, moving)
}

// submitAgain submits an order again whenever units that it lacks have moved, for a bounded time, and when its lane has.
func (s *Set) submitAgain(ctx context.Context, seat *seat, request Request, moving *domain.StockMovingError) (*Reply, error) {
	bounded, cancel := context.WithTimeout(ctx, s.options.StockWait)
	defer cancel()
	a := seat.agent
	for {
		waitsFor, pledges := moving.SKU, moving.Pledges
		moves := seat.moves()
		a.board.pledge(pledges, 1)
		woken := a.await(bounded, moving, moves)
		if !woken && !isClosed(moves) {
			a.board.pledge(pledges, -1)
			break
		}
		reply, err := seat.submit(ctx, request)
		if woken {
			a.board.resubmit(waitsFor, -1)
		}
		a.board.pledge(pledges, -1)
		if !errors.As(err, &moving) {
			return reply, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, moving
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
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

var (
	_ Commands                             = (*Set)(nil)
	_ Transport                            = (*Set)(nil)
	_ domain.State                         = (*Machine)(nil)
	_ eventstore.Machine[Request, Outcome] = (*Machine)(nil)
)
