// Package paying is the reactor that pays: it asks payment providers for what orders wait for, and records what they say.
//
// An event that asks something of a provider (a payment was started, its capture, its void or a refund asked for) puts
// its order on a work list. What is asked is not taken from the event: it is what the order, as of that event or later,
// still waits for (see waiting). An order leaves the list when it waits for nothing.
//
// What holds, always, and why after a crash at any line:
//
//	P1  Nothing is lost. The work list is in the node's store, an order is on it before the reactor's position passes the
//	    event, and a crash leaves a prefix of what was written: if the entry is lost, so is the position, and the event
//	    is reacted to again. The entry is dropped after the order was seen to wait for nothing; that is in the log.
//	    Without the store, the list is made anew from the beginning of the log.
//	P2  Nothing is doubled (I4). A call may be repeated, after a lost answer, a crash or a lost entry: it carries the
//	    same id of ours, which is the provider's idempotency key. There is never another key for the same thing.
//	P3  One order's calls are made one after the other. Those of different orders are made at a time, at most
//	    Limits.CallsMax of one provider.
//	P4  A provider that is slow or fails holds up its own orders, and no others, and no position.
//	P5  What is unknown is asked again until it is known (I5): see Limits.CheckBackMin.
//
// Where nodes share the lanes, every node keeps the list of all lanes, and only the owner of an order's lane asks providers for it: the
// list of whichever node gets the lane is there already (P1). The others look from time to time whether an order still waits. When a
// lane moves, calls that are under way end on the node that began them, perhaps beside those of the new owner: P3 holds on one node,
// P2 over all of them. A payment without an order is settled by the node that was told of it.
package paying

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// Name is the reactor's name.
const Name = "payments"

// Limits bound what a Cashier does at a time and how long it waits (I8). A zero field means its default.
type Limits struct {
	// CallsMax bounds the orders of one provider that are worked on at a time; 0 means 32.
	CallsMax int
	// WorkMax bounds the orders on the list, each of which takes about 200 bytes of memory; 0 means 1,048,576. At the bound the
	// reactor's position waits.
	WorkMax int
	// CheckBackMin is the pause before a provider that did not say is asked again; it doubles each time up to CheckBackMax and is
	// jittered: it is between half of it and all. 0 means 1 s and 10 min: 1 s, 2 s, 4 s, … 8.5 min, 10 min, 10 min.
	CheckBackMin, CheckBackMax time.Duration
	// UnresolvedMax is how long an order may be on the list before it is raised, again each time that it doubles; 0 means 1 h.
	UnresolvedMax time.Duration
	// ViewWait bounds the wait for the view of an order; 0 means 2 s.
	ViewWait time.Duration
	// RecordMax bounds the wait for the lane that records what a provider said; 0 means 10 s.
	RecordMax time.Duration
	// FinishMax bounds how long a stopping cashier waits for calls that are under way; 0 means 12 s, longer than a call takes.
	FinishMax time.Duration
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.CallsMax, 32)
	setDefault(&l.WorkMax, 1<<20)
	setDefault(&l.CheckBackMin, time.Second)
	setDefault(&l.CheckBackMax, max(10*time.Minute, l.CheckBackMin))
	setDefault(&l.UnresolvedMax, time.Hour)
	setDefault(&l.ViewWait, 2*time.Second)
	setDefault(&l.RecordMax, 10*time.Second)
	setDefault(&l.FinishMax, 12*time.Second)
	return l
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// validate returns an error that says which limit is not one. REQUIRES: defaults.
func (l Limits) validate() error {
	switch {
	case l.CallsMax < 1 || l.WorkMax < 1:
		return errors.New("limit CallsMax or WorkMax is negative")
	case l.CheckBackMin < 0 || l.CheckBackMax < l.CheckBackMin:
		return errors.New("limit CheckBackMax is below CheckBackMin, or that is negative")
	case l.UnresolvedMax < 0 || l.ViewWait < 0 || l.RecordMax < 0 || l.FinishMax < 0:
		return errors.New("limit UnresolvedMax, ViewWait, RecordMax or FinishMax is negative")
	}
	return nil
}

// stepsMax bounds the calls that are made for one order in one go.
const stepsMax = 16

// Orders reads orders. *projections.Views implements it.
type Orders interface {
	Order(ctx context.Context, id domain.OrderID, min projections.Min) (projections.OrderView, projections.Freshness, error)
}

// Options make a Cashier. Store, Topology, Orders and Commands are required.
type Options struct {
	// Store keeps the work list.
	Store    *projections.Store
	Topology eventstore.Topology
	Orders   Orders
	Commands lanes.Commands
	// Owned reports whether this node decides a lane, and so asks for its orders; nil means always. Own says when that changes.
	Owned func(lane uint32) bool
	// Providers that payments may name. Each gets a breaker.
	Providers []payments.Provider
	Breaker   payments.BreakerLimits
	Limits    Limits
	// Logger is told of failures, and at level Error of what somebody has to look at; nil means slog.Default.
	Logger *slog.Logger
}

// A Cashier is the payments reactor, with its work list. Its methods may be called by any number of goroutines.
type Cashier struct {
	options Options
	limits  Limits
	logger  *slog.Logger
	list    *list
	counts  counts
}

var _ reactors.BatchReactor = (*Cashier)(nil)

// Open reads the work list. Nothing is asked of a provider until Run does.
func Open(options Options) (*Cashier, error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	if options.Store == nil || options.Orders == nil || options.Commands == nil {
		return nil, errors.New("a cashier needs Store, Orders and Commands")
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	if options.Owned == nil {
		options.Owned = func(uint32) bool { return true }
	}
	c := &Cashier{options: options, limits: options.Limits.withDefaults(), logger: options.Logger}
	if err := c.limits.validate(); err != nil {
		return nil, err
	}
	desks := map[string]*desk{}
	for _, provider := range options.Providers {
		name := provider.Name()
		if _, there := desks[name]; there || name == domain.ProviderNone || name == "" {
			return nil, fmt.Errorf("there is no room for a payment provider named %q", name)
		}
		guarded, err := payments.Guard(provider, options.Breaker, nil)
		if err != nil {
			return nil, fmt.Errorf("payment provider %s: %w", name, err)
		}
		desks[name] = &desk{name: name, provider: guarded}
	}
	var err error
	c.list, err = openList(options.Store, desks, c.limits)
	return c, err
}

// Registration says how a runner is to run the reactor: from the beginning, in order.
func (c *Cashier) Registration() reactors.Registration {
	return reactors.Registration{
		Reactor: c, Start: reactors.FromBeginning, Everywhere: true, Wants: wants,
		Types: []string{
			stored.TypePaymentStarted, stored.TypePaymentCaptureRequested, stored.TypePaymentVoidRequested, stored.TypeRefundStarted,
			stored.TypeStrayPaymentFound, stored.TypeRefundFailed,
		},
	}
}

// wants are the events that ask something of a provider, and those that somebody has to look at.
func wants(fact domain.Event) bool {
	_, asks := asker(fact)
	_, stray := fact.(domain.StrayPaymentFound)
	_, failed := fact.(domain.RefundFailed)
	return asks || stray || failed
}

// asker returns the provider that an event asks something of. Every event is here: one that asks and is passed over is a payment that
// nobody makes.
func asker(fact domain.Event) (provider string, asks bool) {
	switch e := fact.(type) {
	case domain.PaymentStarted:
		return e.Provider, e.Provider != domain.ProviderNone
	case domain.PaymentCaptureRequested:
		return e.Provider, true
	case domain.PaymentVoidRequested:
		return e.Provider, true
	case domain.RefundStarted:
		return e.Provider, true
	case domain.PaymentAuthorized, domain.PaymentCaptured, domain.PaymentDeclined, domain.PaymentBecameUnknown, domain.PaymentVoided,
		domain.PaymentRefunded, domain.RefundFailed, domain.StrayPaymentFound, // What providers said.
		domain.OrderPlaced, domain.OrderCancelled, domain.OrderExpired, // Those that end a payment come with PaymentVoidRequested or RefundStarted.
		domain.ItemsShipped, domain.ShipmentDelivered, domain.ReturnRequested, domain.ReturnReceived, domain.NoteAdded,
		domain.PointsAwarded, domain.PointsTakenBack, domain.UserErased, domain.ProductPut, domain.StockReceived,
		domain.StockGranted, domain.StockAllotted, domain.StockReturned, domain.StockReclaimed,
		domain.CampaignPut, domain.PoolFilled, domain.PoolDrained, domain.CouponPut, domain.WebhookEndpointPut, domain.WebhookEndpointDeleted,
		domain.RequestAnswered:
	}
	return "", false
}

// Name implements reactors.Reactor.
func (c *Cashier) Name() string { return Name }

// React implements reactors.Reactor.
func (c *Cashier) React(ctx context.Context, e reactors.Event) error {
	return c.ReactAll(ctx, []reactors.Event{e})
}

// Own says that this node decides a lane from now on, or no longer does. What waits of its orders is due at once then.
func (c *Cashier) Own(lane uint32, owned bool) {
	if !owned {
		return
	}
	c.list.hurry(time.Now(), func(w *work) bool {
		return w.orphan == nil && c.options.Topology.LaneOf(w.orderID().Partition()) == lane
	})
}

// ReactAll puts the orders of the events on the work list, and the owner of their lane raises what somebody has to look at: again when
// a crash has the event come again.
func (c *Cashier) ReactAll(_ context.Context, events []reactors.Event) error {
	for i := range events {
		e := &events[i]
		if !c.options.Owned(e.Lane) {
			continue
		}
		if stray, ok := e.Fact.(domain.StrayPaymentFound); ok {
			c.counts.stray.Add(1)
			c.logger.Error("money was taken that no order waits for; it is refunded", "order", stray.OrderID, "payment", stray.PaymentID,
				"provider", stray.Provider, "amount", stray.Amount, "why", stray.Why)
		}
		if failed, ok := e.Fact.(domain.RefundFailed); ok {
			c.counts.refundsFailed.Add(1)
			c.logger.Error("a refund failed: somebody has to give the money back", "order", failed.OrderID, "refund", failed.RefundID, "code", failed.Code)
		}
	}
	return c.list.add(events, time.Now())
}

// Run asks providers for what the orders on the list wait for, until ctx ends, which is no error. Calls that are under way then
// are waited for, for Limits.FinishMax; what they are for stays on the list. It returns an error when the list cannot be written.
func (c *Cashier) Run(ctx context.Context) error {
	calls, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var working sync.WaitGroup
	err := c.list.serve(ctx, func(w work, d *desk) {
		working.Go(func() { c.attend(calls, w, d) })
	})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		working.Wait()
	}()
	patience := time.NewTimer(c.limits.FinishMax)
	defer patience.Stop()
	select {
	case <-finished:
	case <-patience.C:
		cut()
		<-finished
	}
	return errors.Join(err, c.list.fault())
}
