package webhooks

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/feed"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
)

// An Endpoint is where public events are delivered to.
type Endpoint struct {
	ID  string `json:"id"`
	URL string `json:"url"`
	// SealedSecret is sealed under the key of SecretsUser.
	SealedSecret []byte `json:"sealedSecret"`
	// Types of the events that are delivered; none means all.
	Types []string `json:"types,omitempty"`
	// Paused says that an operator wants nothing delivered for now.
	Paused bool `json:"paused,omitempty"`
	// CreatedAt is the log time from which on events are delivered, UpdatedAt that of the newest change.
	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// An endpoint is the reactor that delivers to one.
type endpoint struct {
	outbox *Outbox
	name   string

	mu     sync.Mutex
	config *Endpoint // nobody changes it in place
	// failures in a row, by event. raised says that one of them failed too often: prober, which alone is tried on. After a
	// restart it is empty, and the next event that comes is.
	failures map[string]int
	raised   bool
	raisedAt time.Time
	prober   string
	err      error         // of the newest failure, nil when nothing fails
	opened   chan struct{} // closed and replaced when something that was held up may go on
	next     uint64        // number of the next delivery
}

func newEndpoint(o *Outbox, config *Endpoint) (*endpoint, error) {
	e := &endpoint{
		outbox: o, name: EndpointReactor(config.ID), config: config, failures: map[string]int{}, opened: make(chan struct{}), next: 1,
	}
	newest, err := o.deliveries(config.ID, 0, 1)
	if err != nil {
		return nil, err
	}
	if len(newest) > 0 {
		e.next = newest[0].Number + 1
	}
	return e, e.loadRaised()
}

// lifeFormat writes times so that they sort.
const lifeFormat = "2006-01-02T15:04:05.000000000Z"

func (e *endpoint) registration() reactors.Registration {
	return reactors.Registration{
		Reactor: e, Start: reactors.Since(e.current().CreatedAt), InFlightMax: InFlightMax,
		Life:     e.current().CreatedAt.UTC().Format(lifeFormat), // An endpoint of the same id may have been there before.
		RetryMin: RetryMin, RetryMax: RetryMax, Wants: feed.IsPublic, Held: e.held,
	}
}

func (e *endpoint) current() *Endpoint {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.config
}

// change replaces what is known of the endpoint.
func (e *endpoint) change(config *Endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.config = config
	e.open()
}

// leave takes in that the events of a lane are delivered elsewhere from now on: another one is tried, if the one that was is of them.
func (e *endpoint) leave(lane uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if of, _, _, err := reactors.ParseEventID(e.prober); err == nil && of == lane {
		e.prober = ""
		e.open()
	}
}

// open lets go on what is held up. REQUIRES: mu is held.
func (e *endpoint) open() {
	close(e.opened)
	e.opened = make(chan struct{})
}

// Name implements reactors.Reactor.
func (e *endpoint) Name() string { return e.name }

// React implements reactors.Reactor: it delivers one event.
func (e *endpoint) React(ctx context.Context, event reactors.Event) error {
	if err := e.outbox.caughtUp(ctx); err != nil {
		return err
	}
	if !e.current().wants(event.Type) {
		return e.note(event.ID, nil) // Types may have changed since it failed.
	}
	_, err := e.deliver(ctx, event, false)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, e.note(event.ID, err))
}

// held returns nil when the event may be delivered, and else what is closed when that may have changed: an operator has paused the
// endpoint, or it was raised, which lets only one event pass.
func (e *endpoint) held(event reactors.Event) <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.config.wants(event.Type) {
		return nil
	}
	if e.raised && e.prober == "" {
		e.prober = event.ID // The first after a restart.
	}
	if e.config.Paused || (e.raised && e.prober != event.ID) {
		return e.opened
	}
	return nil
}

// wants reports whether events of the type are delivered.
func (c *Endpoint) wants(typeName string) bool {
	return len(c.Types) == 0 || slices.Contains(c.Types, typeName)
}

// A raised is since when and why an endpoint is raised, as it lies in the store: a restart finds it so. Which event is tried then
// is the first that comes, since the one that failed may be far behind others which are held up.
type raised struct {
	At    time.Time `json:"at"`
	Error string    `json:"error"`
}

// note takes in what came of an attempt.
func (e *endpoint) note(eventID string, err error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	probed := e.raised && e.prober == eventID
	if err == nil {
		if probed {
			// First of all: what fails here is tried again.
			if err := e.outbox.options.Store.DB().Delete(raisedKey(e.config.ID), pebble.NoSync); err != nil {
				return err
			}
			e.outbox.options.Logger.Info("a webhook endpoint works again", "endpoint", e.config.ID, "url", e.config.URL, "raised", e.raisedAt)
			e.raised, e.raisedAt, e.prober = false, time.Time{}, ""
			clear(e.failures)
			e.open()
		}
		delete(e.failures, eventID)
		if len(e.failures) == 0 && !e.raised {
			e.err = nil
		}
		return nil
	}
	e.err = err
	e.failures[eventID]++
	if failures := e.failures[eventID]; failures >= PauseAfter && !e.raised {
		e.raised, e.raisedAt, e.prober, probed = true, e.outbox.options.Clock(), eventID, true
		e.outbox.options.Logger.Error("a webhook endpoint is paused: deliveries failed too often, and nothing is dropped",
			"endpoint", e.config.ID, "url", e.config.URL, "event", eventID, "failures", failures, "error", err)
	}
	if !probed {
		return nil
	}
	value, encodeErr := json.Marshal(raised{At: e.raisedAt, Error: cut(err.Error())})
	if encodeErr != nil {
		return encodeErr
	}
	return e.outbox.options.Store.DB().Set(raisedKey(e.config.ID), value, pebble.NoSync)
}

// loadRaised reads whether the endpoint is raised.
func (e *endpoint) loadRaised() error {
	value, closer, err := e.outbox.options.Store.DB().Get(raisedKey(e.config.ID))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var r raised
	if err := errors.Join(json.Unmarshal(value, &r), closer.Close()); err != nil {
		return fmt.Errorf("why endpoint %s is raised: %w", e.config.ID, err)
	}
	e.raised, e.raisedAt, e.err = true, r.At, errors.New(r.Error)
	return nil
}

func raisedKey(id string) []byte {
	return append([]byte{projections.KeySpaceReactors, reactors.TableRaised}, id...)
}

func (e *endpoint) status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := Status{Endpoint: *e.config, Raised: e.raised, RaisedAt: e.raisedAt}
	if e.err != nil {
		s.Error = e.err.Error()
	}
	return s
}

// deliver makes one attempt and writes down what came of it.
func (e *endpoint) deliver(ctx context.Context, event reactors.Event, replayed bool) (Delivery, error) {
	config := e.current()
	began := e.outbox.options.Clock()
	d := Delivery{EventID: event.ID, Type: event.Type, At: began, Replayed: replayed}
	if id, ok := domain.OrderOf(event.Fact); ok {
		d.OrderID = id.String()
	}
	var err error
	d.Status, err = e.attempt(ctx, config, event)
	if ctx.Err() != nil {
		return d, ctx.Err()
	}
	d.Took = e.outbox.options.Clock().Sub(began)
	if err != nil {
		d.Error = err.Error()
	}
	return d, errors.Join(err, e.record(&d))
}

func (e *endpoint) attempt(ctx context.Context, config *Endpoint, event reactors.Event) (status int, err error) {
	public, ok := feed.Public(event)
	if !ok {
		return 0, fmt.Errorf("event %s is not public", event.ID)
	}
	body, err := feed.JSON(public)
	if err != nil {
		return 0, err
	}
	text, err := e.outbox.options.Secrets.Open(ctx, SecretsUser, config.SealedSecret)
	if err != nil {
		return 0, fmt.Errorf("open the secret: %w", err)
	}
	secret, err := webhooksig.ParseSecret(string(text))
	if err != nil {
		return 0, err
	}
	return e.outbox.post(ctx, config.URL, secret, event.ID, body)
}

// A Delivery is one attempt to deliver an event.
type Delivery struct {
	// Number counts the attempts of the endpoint from 1.
	Number  uint64 `json:"number"`
	EventID string `json:"eventId"`
	Type    string `json:"type"`
	// OrderID is empty for events of products and stock.
	OrderID string        `json:"orderId,omitempty"`
	At      time.Time     `json:"at"`
	Took    time.Duration `json:"took"`
	// Status of the answer, 0 when there was none. Error is empty when it was delivered.
	Status   int    `json:"status,omitempty"`
	Error    string `json:"error,omitempty"`
	Replayed bool   `json:"replayed,omitempty"`
}

// deliveriesOf is the prefix of the endpoint's deliveries.
func deliveriesOf(id string) []byte {
	return append(append([]byte{projections.KeySpaceReactors, reactors.TableDeliveries}, id...), 0)
}

func deliveryKey(id string, number uint64) []byte {
	return binary.BigEndian.AppendUint64(deliveriesOf(id), number)
}

// errorBytesMax is how much of an error is written down.
const errorBytesMax = 500

func cut(text string) string { return text[:min(len(text), errorBytesMax)] }

// record writes a delivery down, and forgets the one that it makes the oldest but DeliveriesMax.
func (e *endpoint) record(d *Delivery) error {
	d.Error = cut(d.Error)
	e.mu.Lock()
	defer e.mu.Unlock()
	d.Number = e.next
	e.next++
	value, err := json.Marshal(d)
	if err != nil {
		return err
	}
	db := e.outbox.options.Store.DB()
	if err := db.Set(deliveryKey(e.config.ID, d.Number), value, pebble.NoSync); err != nil {
		return err
	}
	if d.Number > DeliveriesMax {
		return db.Delete(deliveryKey(e.config.ID, d.Number-DeliveriesMax), pebble.NoSync)
	}
	return nil
}

// Deliveries returns the newest attempts of an endpoint before a number (0: all), at most limit of them, newest first.
func (o *Outbox) Deliveries(id string, before uint64, limit int) ([]Delivery, error) {
	if _, err := o.endpoint(id); err != nil {
		return nil, err
	}
	return o.deliveries(id, before, limit)
}

func (o *Outbox) deliveries(id string, before uint64, limit int) (all []Delivery, err error) {
	bounds := &pebble.IterOptions{LowerBound: deliveriesOf(id), UpperBound: after(deliveriesOf(id))}
	if before > 0 {
		bounds.UpperBound = deliveryKey(id, before)
	}
	iter, err := o.options.Store.DB().NewIter(bounds)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for valid := iter.Last(); valid && len(all) < limit; valid = iter.Prev() {
		var d Delivery
		if err := json.Unmarshal(iter.Value(), &d); err != nil {
			return nil, fmt.Errorf("a delivery of endpoint %s: %w", id, err)
		}
		all = append(all, d)
	}
	return all, nil
}
