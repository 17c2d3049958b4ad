// Package gateway stands in front of nodes: it passes Connect, gRPC and gRPC-Web on as they are, over HTTP/1.1 and HTTP/2, and decides
// which node a call goes to, how long it may take, and whether it goes at all. It knows the wire only, never the log.
//
// What it decides by lies below: wire (the protocols), policy (what an operator decides), and one package for each mechanism.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httputil"
	"net/url"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	connectcors "connectrpc.com/cors"
	"github.com/rs/cors"
	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/plan"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/presence"
	"github.com/weirhq/weir/gateway/registry"
	"github.com/weirhq/weir/gateway/retry"
	"github.com/weirhq/weir/gateway/room"
	"github.com/weirhq/weir/gateway/wire"
)

// A Gateway serves what its upstreams do. Any number of goroutines may call it.
type Gateway struct {
	logger   *slog.Logger
	caller   func(http.Header) caller
	registry *registry.Registry
	methods  map[string]*method
	proxy    *httputil.ReverseProxy
	limiter  *limit.Limiter
	keeper   Keeper
	edge     *edge.Edge
	// board knows what is sold out, and hall who waits, nil for none. waiting serves the hall, and behind runs what New made of them.
	board   *edge.Board
	hall    *room.Hall
	waiting http.Handler
	behind  []func(context.Context) error
	plans   *plan.Follower
	// pass is what a call goes through once it is whole: the edge, the limits, the proxy.
	pass    http.Handler
	metrics *metrics

	// changing is held by who changes rules or upstreams: the balancer of the one is to know the other.
	changing sync.Mutex
	// base is the policy that plans lie over. It is changed with the rules.
	base      policy.Policy
	started   policy.Policy // with which the gateway was made
	rules     atomic.Pointer[rules]
	upstreams atomic.Pointer[upstreams]

	calls atomic.Int64
	// strands are the calls that wait for a lane that nobody decides.
	strands *strands
	// connectionsRefused counts the connections that were one too many.
	connectionsRefused atomic.Int64
}

// Options are what a gateway needs: Upstreams, Local or Registry.
type Options struct {
	// Upstreams are base URLs of nodes.
	Upstreams []*url.URL
	// Local is the API of a node of this process, nil for none. It is called without a socket, as if it were at LocalID.
	Local http.Handler
	// LocalID names that node.
	LocalID string
	// Registry knows the nodes, in place of Upstreams and Local. Whoever made it runs it.
	Registry *registry.Registry
	// Globals are the rates that hold for all gateways, nil if there is no Redis: then they are this gateway's alone. Whoever made them runs them.
	Globals *limit.Globals
	// Board knows what is sold out, nil for none. Whoever made it runs it. Without one, the gateway makes one for what the policy's board names.
	Board *edge.Board
	// OperatorToken returns the token of an operator, which that board asks the nodes with.
	OperatorToken func() (string, error)
	// RoomKeys sign the tickets of waiting rooms, the same ones in all gateways. SetRoomKeys changes them.
	RoomKeys []room.Key
	// RoomUses is what gateways share of who has used a turn of a waiting room, nil for nothing: then a turn is good for one order at each gateway.
	RoomUses room.Uses
	// User returns the user whom a verified token is of. Waiting rooms need it.
	User func(authorization string) (user string, ok bool)
	// Presence counts the gateways on the same NATS, nil for none. Whoever made it runs it. Waiting rooms divide by it.
	Presence *presence.Presence
	// Failback keeps calls of methods whose fault mode is failback, nil for none. Whoever made it runs it, with SendKept. With one, Subject has to verify:
	// what is kept is kept under the name that it says.
	Failback Keeper
	// Plans that operators apply for a while, nil for none. Whoever made the follower runs it.
	Plans *plan.Follower
	// Subject says whose call it is, "" for nobody's; nil means SubjectOf, which believes what a token says.
	Subject func(http.Header) string
	// Policy is what the operator decided.
	Policy policy.Policy
	// Logger; nil means slog's default.
	Logger *slog.Logger
}

// rules are a policy in the form in which calls ask it.
type rules struct {
	policy   policy.Policy
	methods  map[*method]*methodRules
	balancer *balance.Balancer
	breakers *breaker.Set
	budget   *retry.Budget
	planned  planned
	// serve is the gateway behind CORS.
	serve http.Handler
}

// methodRules are those of one method.
type methodRules struct {
	policy.Method
	fault *fault.Policy
}

// New returns a gateway. It starts nothing. An error says which option is wrong.
func New(options Options) (*Gateway, error) {
	g := &Gateway{logger: options.Logger, caller: newCallers().of, registry: options.Registry, strands: newStrands(), keeper: options.Failback, methods: methodsOfSchema(), metrics: newMetrics()}
	if g.logger == nil {
		g.logger = slog.Default()
	}
	if options.Subject != nil {
		g.caller = func(header http.Header) caller { return caller{subject: options.Subject(header)} }
	}
	known, err := fixedUpstreams(options.Upstreams, options.Local, options.LocalID)
	switch {
	case err != nil:
		return nil, err
	case len(known.byID) == 0 && options.Registry == nil:
		return nil, errors.New("a gateway needs at least one upstream")
	case len(known.byID) > 0 && options.Registry != nil:
		return nil, errors.New("a gateway has upstreams, or a registry that knows them, not both")
	}
	g.upstreams.Store(known)
	g.plans = options.Plans
	if g.limiter, err = limit.New(limit.Config{}, options.Globals); err != nil {
		return nil, err
	}
	for _, open := range []func(Options) error{g.openBoard, g.openHall} {
		if err := open(options); err != nil {
			return nil, err
		}
	}
	g.edge, err = edge.New(edge.Options{
		Board: g.board,
		Room:  g.checkPass(),
		User:  func(r *http.Request) string { return callOf(r.Context()).subject },
		Refuse: func(w http.ResponseWriter, r *http.Request, told *connect.Error) error {
			return callOf(r.Context()).protocol.Refuse(w, r, told)
		},
	})
	if err != nil {
		return nil, err
	}
	g.pass = g.edge.Wrap(http.HandlerFunc(g.admit))
	g.proxy = &httputil.ReverseProxy{
		Rewrite:   g.rewrite,
		Transport: roundTripper{g},
		ModifyResponse: func(response *http.Response) error {
			callOf(response.Request.Context()).upload.leave(response.Header)
			return nil
		},
		ErrorHandler: g.refuse,
		BufferPool:   &buffers{},
		ErrorLog:     slog.NewLogLogger(g.logger.Handler(), slog.LevelDebug),
	}
	g.started = options.Policy
	if err := g.Apply(options.Policy); err != nil {
		return nil, err
	}
	if g.plans != nil {
		if err := g.applyPlans(g.plans.Now()); err != nil { // To serve without them is better than not to serve.
			g.logger.Error("the plans that were kept are not used", "error", err)
		}
	}
	if g.registry != nil {
		return g, g.take(g.registry.Now())
	}
	return g, nil
}

// Run follows the registry and the plans, looks at what is sold out and lets users in, as far as there are such things, until ctx ends.
func (g *Gateway) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, run := range g.behind {
		group.Go(func() error { return run(ctx) })
	}
	if g.registry != nil {
		group.Go(func() error { return g.followRegistry(ctx) })
	}
	if g.plans != nil {
		group.Go(func() error { return g.followPlans(ctx) })
	}
	group.Go(func() error {
		<-ctx.Done()
		return nil
	})
	return group.Wait()
}

// Apply makes the gateway go by another policy from the next call on. What a part of the policy has learned stays if that part is as it was.
// An error says what is wrong with it; the old one stays then.
func (g *Gateway) Apply(p policy.Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	for _, check := range []func(policy.Policy) error{g.checkFailback, g.checkStart} {
		if err := check(p); err != nil {
			return err
		}
	}
	g.changing.Lock()
	defer g.changing.Unlock()
	set := plan.NewSet(0, nil, nil)
	if before := g.rules.Load(); before != nil {
		set = before.planned.set
	}
	if err := g.use(p, set); err != nil {
		return err
	}
	if waiting := g.started.AtStart(p); len(waiting) > 0 {
		g.logger.Warn("settings of the policy have changed that are used from the next start on", "settings", waiting)
	}
	return nil
}

// use makes rules of a policy and the plans that lie over it. REQUIRES: changing is held.
func (g *Gateway) use(base policy.Policy, set *plan.Set) error {
	p, over := g.overlay(base, set)
	if err := p.Validate(); err != nil {
		return fmt.Errorf("the policy with the plans %s: %w", set.Label, err)
	}
	before := g.rules.Load()
	next := &rules{policy: p.WithDefaults(), planned: over, methods: map[*method]*methodRules{}}
	procedures := slices.Sorted(maps.Keys(g.methods))
	if err := next.inherit(before, procedures, g.upstreams.Load()); err != nil {
		return err
	}
	for _, m := range append(slices.Collect(maps.Values(g.methods)), otherMethod) {
		of := &methodRules{Method: p.MethodFor(m.name)}
		if before != nil && before.budget == next.budget && *before.methods[m].Fault == *of.Fault {
			of.fault = before.methods[m].fault
		} else {
			var err error
			if of.fault, err = fault.New(*of.Fault, fault.Options{Name: m.name, Budget: next.budget, Logger: g.logger}); err != nil {
				return err
			}
		}
		next.methods[m] = of
	}
	next.serve = http.HandlerFunc(g.serve)
	if origins := p.CORS.Origins; len(origins) > 0 {
		next.serve = cors.New(cors.Options{
			AllowedOrigins: origins,
			AllowedMethods: connectcors.AllowedMethods(),
			AllowedHeaders: append(connectcors.AllowedHeaders(), "Authorization", room.HeaderPass),
			ExposedHeaders: append(connectcors.ExposedHeaders(), "Retry-After", "Grpc-Retry-Pushback-Ms", HeaderFailback, edge.HeaderEdge, "Age", HeaderPlan),
			MaxAge:         int(next.policy.CORS.MaxAge / time.Second),
		}).Handler(next.serve)
	}
	if err := g.edge.Apply(p.Edge); err != nil { // It may lack a board. The limits are valid.
		return err
	}
	limiting := p.Limiting(procedures)
	limiting.ShedBelow = over.shedBelow
	if err := g.limiter.Reconfigure(limiting); err != nil {
		return err
	}
	next.breakers.Force(over.forced)
	g.base = base
	g.rules.Store(next)
	return nil
}

// inherit takes over from the rules before what is decided as it was, and makes the rest.
func (r *rules) inherit(before *rules, procedures []string, known *upstreams) (err error) {
	if before != nil && before.policy.Balance == r.policy.Balance {
		r.balancer = before.balancer
	} else {
		if r.balancer, err = balance.New(r.policy.Balance, balance.Options{}); err != nil {
			return err
		}
		if err := r.balancer.Set(known.told); err != nil {
			return err
		}
	}
	breaking := r.policy.Breaking(procedures)
	if before != nil && reflect.DeepEqual(before.policy.Breaking(procedures), breaking) {
		r.breakers = before.breakers
	} else if r.breakers, err = breaker.NewSet(breaking, nil); err != nil {
		return err
	}
	if before != nil && before.policy.Retry == r.policy.Retry {
		r.budget = before.budget
	} else if r.budget, err = retry.New(r.policy.Retry, nil); err != nil {
		return err
	}
	return nil
}

// Upstreams names the nodes that calls may go to.
func (g *Gateway) Upstreams() []string {
	names := []string{}
	for _, upstream := range g.upstreams.Load().all() {
		names = append(names, upstream.id)
	}
	return names
}

// Close lets go of connections that no call uses. REQUIRES: nobody calls any more.
func (g *Gateway) Close() error {
	for _, upstream := range g.upstreams.Load().all() {
		upstream.close()
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rules := g.rules.Load()
	if rules.planned.header != nil {
		w.Header()[HeaderPlan] = rules.planned.header
	}
	rules.serve.ServeHTTP(w, r)
}

// serve passes one call on.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request) {
	rules := g.rules.Load()
	call := g.newCall(rules, r)
	atOnce := g.calls.Add(1)
	defer g.calls.Add(-1)
	if atOnce > int64(rules.policy.Limits.Calls) {
		g.answer(w, r, call, &refusal{reason: reasonTooManyCalls, message: "the gateway has as many calls under way as it may", retryAfter: retryAfterCalls})
		return
	}
	ctx, cancel := call.bound(r.Context(), w, r)
	defer cancel()
	if err := call.readBody(w, r); err != nil {
		g.answer(w, r, call, err)
		return
	}
	g.pass.ServeHTTP(w, r.WithContext(context.WithValue(ctx, callKey{}, call)))
	if !call.asked {
		g.seenAtEdge(call, w.Header())
	}
}

// admit passes a call on that the limits let through.
func (g *Gateway) admit(w http.ResponseWriter, r *http.Request) {
	ctx, call := r.Context(), callOf(r.Context())
	permit, err := g.limiter.Admit(ctx, limit.Call{Method: call.method.name, User: call.subject, Client: call.client, Stream: call.streams() || g.isWaiting(call)})
	call.asked = true
	if err != nil {
		var refused *limit.RefusedError
		if errors.As(err, &refused) {
			g.seen(call, refusedBy(refused.Kind))
		}
		g.answer(w, r, call, notAdmitted(ctx, call, err))
		return
	}
	g.seen(call, "")
	call.permit = permit
	// A panic, which is how the proxy breaks off, ends the call as well.
	defer func() { call.leave(call.end) }()
	defer func() { call.reading.end() }()
	if call.streams() {
		w = &streamWriter{ResponseWriter: w, controller: http.NewResponseController(w), timeMax: call.limits.StreamWriteTime}
	}
	if g.isWaiting(call) {
		g.waiting.ServeHTTP(w, r) // It costs no node anything, so that it takes no place.
		return
	}
	g.proxy.ServeHTTP(w, r)
	if call.upload.unread() {
		_ = http.NewResponseController(w).Flush() // A server that cannot flush has no connection to keep either.
		call.leave(call.end)
		call.upload.drain(r.Body)
	}
}

// notAdmitted says why a call was not let through.
func notAdmitted(ctx context.Context, call *call, err error) error {
	var refused *limit.RefusedError
	if !errors.As(err, &refused) {
		return call.explain(ctx, err) // The caller left while it waited, or its time is over.
	}
	why := reasonRateLimited
	if refused.Kind == limit.ByOverload || refused.Kind == limit.ByPriority {
		why = reasonOverloaded
	}
	return &refusal{reason: why, message: refused.Error(), retryAfter: refused.RetryAfter}
}

// rewrite makes the request to an upstream of the one that came. It is transparent but for who asks. Which upstream, the round tripper says.
func (g *Gateway) rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.Out.Host = pr.In.Host
	call := callOf(pr.In.Context())
	if call.proxied { // What a trusted proxy says of the way is passed on.
		pr.Out.Header["X-Forwarded-For"] = pr.In.Header["X-Forwarded-For"]
	}
	pr.SetXForwarded()
	if call.body != nil {
		pr.Out.ContentLength = int64(len(call.body))
		pr.Out.TransferEncoding = nil
	}
}

// refuse is what the proxy calls when no upstream answered.
func (g *Gateway) refuse(w http.ResponseWriter, r *http.Request, err error) {
	g.answer(w, r, callOf(r.Context()), err)
}

// answer ends a call that no upstream answers.
func (g *Gateway) answer(w http.ResponseWriter, r *http.Request, call *call, err error) {
	var told *refusal
	if !errors.As(err, &told) {
		told = &refusal{reason: reasonUpstreamBroke, message: "the node did not answer", retryAfter: retryAfterNoUpstream, cause: err}
	}
	if told.reason == reasonBodyTooSlow || told.reason == reasonBodyTooLarge {
		w.Header().Set("Connection", "close") // Rather than read the rest. HTTP/2 ends the stream alone.
	}
	call.upload.leave(w.Header())
	g.metrics.refused(call.method, told.reason)
	if told.cause != nil && told.reason != reasonLeft {
		g.logger.LogAttrs(r.Context(), slog.LevelDebug, "call not answered by a node",
			slog.String("method", call.method.name), slog.String("reason", string(told.reason)), slog.Any("error", told.cause))
	}
	if err := call.protocol.Refuse(w, r, told.connectError()); err != nil {
		g.logger.LogAttrs(r.Context(), slog.LevelDebug, "refusal not delivered", slog.Any("error", err))
	}
}

// buffers are for copying bodies.
type buffers struct{ pool sync.Pool }

// copyBytes is the size of a buffer: that of the largest message of a stream which is held until it is whole, twice.
const copyBytes = 32 << 10

// Get implements httputil.BufferPool.
func (b *buffers) Get() []byte {
	if kept, ok := b.pool.Get().(*[copyBytes]byte); ok {
		return kept[:]
	}
	return make([]byte, copyBytes)
}

// Put implements httputil.BufferPool.
func (b *buffers) Put(buffer []byte) {
	if len(buffer) == copyBytes {
		b.pool.Put((*[copyBytes]byte)(buffer))
	}
}

// A streamWriter gives each write a deadline, so that a client that does not read holds nothing for ever.
type streamWriter struct {
	http.ResponseWriter
	controller *http.ResponseController
	timeMax    time.Duration
}

// Unwrap is for http.ResponseController.
func (w *streamWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write implements io.Writer.
func (w *streamWriter) Write(p []byte) (int, error) {
	w.extend()
	return w.ResponseWriter.Write(p)
}

// Flush is for handlers of Connect, which want an http.Flusher.
func (w *streamWriter) Flush() { _ = w.FlushError() }

// FlushError sends what was written.
func (w *streamWriter) FlushError() error {
	w.extend()
	return w.controller.Flush()
}

func (w *streamWriter) extend() {
	_ = w.controller.SetWriteDeadline(time.Now().Add(w.timeMax)) // Without support nothing can be cut.
}

var _ io.Writer = (*streamWriter)(nil)

// methodOfRequest returns what the schema says of the method that is called.
func (g *Gateway) methodOfRequest(p wire.Protocol, path string) *method {
	if p == wire.Plain {
		return otherMethod
	}
	if m := g.methods[path]; m != nil {
		return m
	}
	return otherMethod
}
