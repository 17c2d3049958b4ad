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
	// couriers are as many as lanes, none when there is one lane only.
	couriers []*courier
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
	// SlotsMax bounds the commits on their way to the disk over all lanes; 0 means 2.
	SlotsMax int
	// Lane is what every lane starts from: limits, clock, logger. Its Writer's Lane, Lanes, Owner and Observe, and its
	// Slots, are set here.
	Lane eventstore.LaneOptions
	// Entropy is where order ids take their randomness from; nil means the operating system's.
	Entropy io.Reader
}

// Open loads the state of every lane. Nothing runs until Run does.
func Open(options Options) (*Set, error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	if options.SlotsMax == 0 {
		options.SlotsMax = 2
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
			PayWithin: options.PayWithin, Entropy: entropy, Granted: s.addCourier(lane),
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

// addCourier makes the courier of a home lane and returns what pokes it.
func (s *Set) addCourier(home uint32) func() {
	if s.options.Topology.Lanes == 1 {
		return nil
	}
	granted := make(chan struct{}, 1)
	s.couriers = append(s.couriers, &courier{
		home: home, lanes: s.options.Topology.Lanes, db: s.options.Store.DB(), keys: newKeys(home),
		submit: s.submitTo, granted: granted,
	})
	return func() {
		select {
		case granted <- struct{}{}:
		default:
		}
	}
}

// Run opens the lanes and serves them until ctx ends; what is in flight then is settled. It returns the first error that
// opening again cannot mend.
func (s *Set) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for lane := range s.lanes {
		group.Go(func() error {
			if err := s.lanes[lane].Run(ctx); err != nil {
				return fmt.Errorf("lane %d: %w", lane, err)
			}
			return nil
		})
	}
	for _, courier := range s.couriers {
		group.Go(func() error { return courier.run(ctx) })
	}
	return group.Wait()
}

// Serving reports whether every lane is open.
func (s *Set) Serving() bool {
	for _, lane := range s.lanes {
		if _, ok := lane.Serving(); !ok {
			return false
		}
	}
	return true
}

// Submit implements Commands.
func (s *Set) Submit(ctx context.Context, request Request) (Reply, error) {
	return s.submitTo(ctx, s.options.Topology.LaneOf(request.Partition), request)
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
	return outcome.Reply, outcome.Refusal
}

var (
	_ Commands                             = (*Set)(nil)
	_ domain.State                         = (*Machine)(nil)
	_ eventstore.Machine[Request, Outcome] = (*Machine)(nil)
)
