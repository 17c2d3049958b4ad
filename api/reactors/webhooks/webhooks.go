// Package webhooks delivers public events to a merchant's own systems, over HTTP, signed as Standard Webhooks says.
//
// Each endpoint is a reactor of its own: it follows every lane with positions of its own, and an endpoint that fails holds up
// no other. Events of one order are delivered one after the other, in the order of the log; different orders go in parallel.
// A delivery that fails is tried again, at first after RetryMin, then after twice that, up to RetryMax, all jittered. Nothing
// is ever dropped: after PauseAfter failures of one event in a row its endpoint is paused, which is raised, and that one event is
// tried on every RetryMax, or when somebody says that it should be. Once it gets through, all goes on from where it stopped. A restart
// finds it paused.
//
// An event may be delivered more than once, always with the same webhook-id: after a crash, and when an answer was lost.
//
// An endpoint's URL may name a private address, since a merchant's systems often have one: only operators put endpoints.
// Redirects are not followed; an answer that is one is a failure.
package webhooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/reactors/feed"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// Limits of deliveries.
const (
	// RetryMin is the pause after a first failure; it doubles with each, up to RetryMax.
	RetryMin = time.Second
	RetryMax = 5 * time.Minute
	// PauseAfter failures of one event in a row pause its endpoint: about 17 minutes after the first.
	PauseAfter = 10
	// InFlightMax bounds the deliveries of one lane to one endpoint that are under way at a time.
	InFlightMax = 8
	// AnswerMax bounds the wait for an endpoint's whole answer.
	AnswerMax = 15 * time.Second
	// answerBytesMax is how much of an answer is read, answerHeaderBytesMax how much of its header.
	answerBytesMax       = 4 << 10
	answerHeaderBytesMax = 64 << 10
	// connectionsMax bounds the connections to one host.
	connectionsMax = 32
	// connectionIdleMax is how long a connection that nobody uses is kept.
	connectionIdleMax = time.Minute
	// DeliveriesMax is how many attempts are remembered of each endpoint; the oldest make room for the newest.
	DeliveriesMax = 1000
	// awaitPoll is how often Await looks.
	awaitPoll = 5 * time.Millisecond
	// ReplayMax bounds the events that are delivered again at a time.
	ReplayMax = 100
)

// SecretsUser is whose key the endpoints' secrets are sealed under. It is no id that a user can have.
const SecretsUser = "=webhooks"

// EndpointsReactor is the name of the reactor that follows what is said of endpoints; an endpoint's own is
// EndpointReactor(id).
const EndpointsReactor = "webhook-endpoints"

// EndpointReactor returns the name of an endpoint's reactor.
func EndpointReactor(id string) string { return "webhook/" + id }

// An Opener opens what was sealed: *sealing.Sealer.
type Opener interface {
	Open(ctx context.Context, userID string, sealed []byte) ([]byte, error)
}

// Options configure an Outbox. Store, Topology, Log and Secrets are required.
type Options struct {
	Store    *projections.Store
	Topology eventstore.Topology
	Log      func(lane uint32) eventstore.Log
	// Secrets opens the endpoints' secrets.
	Secrets Opener
	// Clock tells the time; nil means time.Now.
	Clock eventstore.Clock
	// Logger is told of endpoints that are paused; nil means slog.Default.
	Logger *slog.Logger
}

// An Outbox keeps the endpoints of a node and delivers to them. Its methods may be called by any number of goroutines.
type Outbox struct {
	options Options
	client  *http.Client

	// current is whether what was said of endpoints before the start is known.
	current atomic.Bool

	mu        sync.Mutex
	runner    *reactors.Runner
	endpoints map[string]*endpoint
}

// Open reads the endpoints that the node knows of. They are a fold of the log that lies in the store: EndpointsReactor brings
// them up to date.
func Open(options Options) (*Outbox, error) {
	if options.Clock == nil {
		options.Clock = time.Now
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: connectionIdleMax,
		MaxConnsPerHost: connectionsMax, MaxIdleConnsPerHost: connectionsMax, MaxResponseHeaderBytes: answerHeaderBytesMax,
	}
	o := &Outbox{
		options: options, endpoints: map[string]*endpoint{},
		client: &http.Client{
			Transport: transport, Timeout: AnswerMax,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if err := o.load(); err != nil {
		return nil, fmt.Errorf("read the webhook endpoints: %w", err)
	}
	return o, nil
}

func (o *Outbox) load() (err error) {
	table := []byte{projections.KeySpaceReactors, reactors.TableEndpoints}
	iter, err := o.options.Store.DB().NewIter(&pebble.IterOptions{LowerBound: table, UpperBound: []byte{table[0], table[1] + 1}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for valid := iter.First(); valid; valid = iter.Next() {
		config := &Endpoint{}
		if err := json.Unmarshal(iter.Value(), config); err != nil {
			return fmt.Errorf("endpoint %q: %w", iter.Key()[len(table):], err)
		}
		e, err := newEndpoint(o, config)
		if err != nil {
			return err
		}
		o.endpoints[config.ID] = e
	}
	return nil
}

// Close gives up idle connections.
func (o *Outbox) Close() { o.client.CloseIdleConnections() }

// Registrations are the reactors to run: the one that follows what is said of endpoints, and those of the endpoints.
func (o *Outbox) Registrations() []reactors.Registration {
	all := []reactors.Registration{{
		Reactor: (*follower)(o), Start: reactors.FromBeginning, Everywhere: true,
		Types: []string{stored.TypeWebhookEndpointPut, stored.TypeWebhookEndpointDeleted},
	}}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.endpoints {
		all = append(all, e.registration())
	}
	return all
}

// Attach says which runner the registrations run on: endpoints come and go there. It is called once, before the runner runs.
func (o *Outbox) Attach(runner *reactors.Runner) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.runner = runner
}

// follower is the Outbox as the reactor that follows what is said of endpoints. What it does twice it has done once.
type follower Outbox

func (f *follower) Name() string { return EndpointsReactor }

func (f *follower) React(_ context.Context, e reactors.Event) error {
	o := (*Outbox)(f)
	switch fact := e.Fact.(type) { //nolint:gochecksumtype // It wants two, and no other for ever.
	case domain.WebhookEndpointPut:
		return o.put(fact, e.At)
	case domain.WebhookEndpointDeleted:
		return o.remove(fact.EndpointID)
	}
	return nil
}

// put takes an endpoint in, or changes it. What is being delivered goes on under what it knew.
func (o *Outbox) put(put domain.WebhookEndpointPut, at time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	config := &Endpoint{
		ID: put.EndpointID, URL: put.URL, SealedSecret: put.SealedSecret, Types: put.Types, Paused: put.Paused, CreatedAt: at, UpdatedAt: at,
	}
	e, there := o.endpoints[put.EndpointID]
	if there {
		config.CreatedAt = e.current().CreatedAt
	}
	value, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if err := o.options.Store.DB().Set(endpointKey(config.ID), value, pebble.NoSync); err != nil {
		return err
	}
	if there {
		e.change(config)
		o.runner.Retry(EndpointReactor(config.ID))
		return nil
	}
	if e, err = newEndpoint(o, config); err != nil {
		return err
	}
	if err := o.runner.Add(e.registration()); err != nil {
		return err
	}
	o.endpoints[config.ID] = e
	return nil
}

// remove forgets an endpoint, and what was delivered to it.
func (o *Outbox) remove(id string) error {
	o.mu.Lock()
	delete(o.endpoints, id)
	o.mu.Unlock()
	db := o.options.Store.DB()
	deliveries := deliveriesOf(id)
	return errors.Join(
		db.Delete(endpointKey(id), pebble.NoSync),
		o.runner.Remove(EndpointReactor(id)),
		db.Delete(raisedKey(id), pebble.NoSync),
		db.DeleteRange(deliveries, after(deliveries), pebble.NoSync),
	)
}

func endpointKey(id string) []byte {
	return append([]byte{projections.KeySpaceReactors, reactors.TableEndpoints}, id...)
}

// after returns the first key after all that begin with prefix. REQUIRES: prefix does not end in 0xff.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	end[len(end)-1]++
	return end
}

// A Status says how an endpoint is.
type Status struct {
	Endpoint
	// Raised says that deliveries failed too often and wait; RaisedAt since when. Error is that of the newest failure,
	// empty when what failed has got through since.
	Raised   bool
	RaisedAt time.Time
	Error    string
	// LagCommits counts the commits, over all lanes, that are not delivered yet.
	LagCommits uint64
}

// Endpoints returns every endpoint, by id.
func (o *Outbox) Endpoints() []Status {
	lags := map[string]uint64{}
	o.mu.Lock()
	runner := o.runner
	all := make([]Status, 0, len(o.endpoints))
	for _, e := range o.endpoints {
		all = append(all, e.status())
	}
	o.mu.Unlock()
	for _, status := range runner.Status() {
		lags[status.Reactor] += status.Lag
	}
	for i := range all {
		all[i].LagCommits = lags[EndpointReactor(all[i].ID)]
	}
	slices.SortFunc(all, func(a, b Status) int { return strings.Compare(a.ID, b.ID) })
	return all
}

// Leave takes in that the events of a lane are delivered by another node from now on.
func (o *Outbox) Leave(lane uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range o.endpoints {
		e.leave(lane)
	}
}

// ErrNoEndpoint says that there is no endpoint of an id.
var ErrNoEndpoint = errors.New("there is no such webhook endpoint")

func (o *Outbox) endpoint(id string) (*endpoint, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	e, ok := o.endpoints[id]
	if !ok {
		return nil, fmt.Errorf("endpoint %.64q: %w", id, ErrNoEndpoint)
	}
	return e, nil
}

// Await waits until what is said of endpoints up to a commit of lane 0 is known here, or until wait is over. It reports whether
// it is.
func (o *Outbox) Await(ctx context.Context, commit uint64, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return o.awaitFollower(ctx, func(s reactors.Status) bool { return s.Position >= commit })
}

// caughtUp waits until what was said of endpoints before this node started is known here, or until ctx ends. Until then one is not given
// events: it may want others by now than those that it wanted when the node stopped.
func (o *Outbox) caughtUp(ctx context.Context) error {
	if o.current.Load() {
		return nil
	}
	if !o.awaitFollower(ctx, func(s reactors.Status) bool { return s.State == reactors.StateFresh }) {
		return ctx.Err()
	}
	o.current.Store(true)
	return nil
}

// awaitFollower waits until the status of EndpointsReactor, which follows lane 0, is as it has to be. It reports false when ctx ends first.
func (o *Outbox) awaitFollower(ctx context.Context, is func(reactors.Status) bool) bool {
	tick := time.NewTicker(awaitPoll)
	defer tick.Stop()
	for {
		for _, status := range o.runner.Status() {
			if status.Reactor == EndpointsReactor && status.Lane == 0 && is(status) {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// Resume tries at once what an endpoint waits to try again. It goes on when that gets through.
func (o *Outbox) Resume(id string) error {
	if _, err := o.endpoint(id); err != nil {
		return err
	}
	o.runner.Retry(EndpointReactor(id))
	return nil
}

// Replay delivers events again, in the order given, whatever the endpoint was given before, and returns what came of each; after
// one that fails, none is tried. An event that is not public or not there is an error, before anything is delivered. REQUIRES: at most ReplayMax ids.
func (o *Outbox) Replay(ctx context.Context, id string, eventIDs []string) ([]Delivery, error) {
	e, err := o.endpoint(id)
	if err != nil {
		return nil, err
	}
	events := make([]reactors.Event, 0, len(eventIDs))
	for _, eventID := range eventIDs {
		event, err := reactors.ReadEvent(ctx, o.options.Topology, o.options.Log, eventID)
		if err != nil {
			return nil, err
		}
		if !feed.IsPublic(event.Fact) {
			return nil, fmt.Errorf("event %s is not public: %w", eventID, reactors.ErrNoEvent)
		}
		events = append(events, event)
	}
	var all []Delivery
	for _, event := range events {
		delivery, err := e.deliver(ctx, event, true)
		if ctx.Err() != nil {
			return all, ctx.Err()
		}
		all = append(all, delivery)
		if delivery.Error != "" {
			break
		}
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// post makes one attempt. The status is 0 when there was no answer.
func (o *Outbox) post(ctx context.Context, url string, secret webhooksig.Secret, id string, body []byte) (status int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "weir")
	webhooksig.SetHeaders(request.Header, []webhooksig.Secret{secret}, id, o.options.Clock(), body)
	answer, err := o.client.Do(request)
	if err != nil {
		return 0, err
	}
	// Read, so that the connection can be used again.
	text, readErr := io.ReadAll(io.LimitReader(answer.Body, answerBytesMax))
	if err := errors.Join(readErr, answer.Body.Close()); err != nil {
		return answer.StatusCode, fmt.Errorf("read the answer: %w", err)
	}
	if answer.StatusCode < 200 || answer.StatusCode > 299 {
		return answer.StatusCode, fmt.Errorf("the answer is %s: %.200q", answer.Status, text)
	}
	return answer.StatusCode, nil
}
