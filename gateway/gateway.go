// Package gateway stands in front of nodes: it passes Connect, gRPC and gRPC-Web on as they are, over HTTP/1.1 and HTTP/2, and decides
// which node a call goes to, how long it may take, and whether it goes at all. It knows the wire only, never the log.
//
// What it decides by lies below: wire (the protocols), policy (what an operator decides), and one package for each mechanism.
package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	connectcors "connectrpc.com/cors"
	"github.com/rs/cors"

	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/wire"
)

// A Gateway serves what its upstreams do. Any number of goroutines may call it.
type Gateway struct {
	logger    *slog.Logger
	methods   map[string]*method
	upstreams []*upstream
	turn      atomic.Uint64
	proxy     *httputil.ReverseProxy
	rules     atomic.Pointer[rules]
	calls     atomic.Int64
	// connectionsRefused counts the connections that were one too many.
	connectionsRefused atomic.Int64
	metrics            *metrics
}

// Options are what a gateway needs.
type Options struct {
	// Upstreams are base URLs of nodes.
	Upstreams []*url.URL
	// Local is the API of a node of this process, nil for none. It is called without a socket, as if it were at LocalID.
	Local http.Handler
	// LocalID names that node.
	LocalID string
	// Policy is what the operator decided.
	Policy policy.Policy
	// Logger; nil means slog's default.
	Logger *slog.Logger
}

// rules are a policy in the form in which calls ask it.
type rules struct {
	policy  policy.Policy
	methods map[*method]policy.Method
	// serve is the gateway behind CORS.
	serve http.Handler
}

// New returns a gateway. It starts nothing. An error says which option is wrong.
func New(options Options) (*Gateway, error) {
	g := &Gateway{logger: options.Logger, methods: methodsOfSchema(), metrics: newMetrics()}
	if g.logger == nil {
		g.logger = slog.Default()
	}
	if options.Local != nil {
		g.upstreams = append(g.upstreams, newLocalUpstream(options.LocalID, options.Local))
	}
	for _, base := range options.Upstreams {
		upstream, err := newUpstream(base.Host, base)
		if err != nil {
			return nil, err
		}
		g.upstreams = append(g.upstreams, upstream)
	}
	if len(g.upstreams) == 0 {
		return nil, errors.New("a gateway needs at least one upstream")
	}
	g.proxy = &httputil.ReverseProxy{
		Rewrite:      g.rewrite,
		Transport:    roundTripper{g},
		ErrorHandler: g.refuse,
		BufferPool:   &buffers{},
		ErrorLog:     slog.NewLogLogger(g.logger.Handler(), slog.LevelDebug),
	}
	return g, g.Apply(options.Policy)
}

// Apply makes the gateway go by another policy from the next call on. An error says what is wrong with it; the old one stays then.
func (g *Gateway) Apply(p policy.Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	next := &rules{policy: p.WithDefaults(), methods: map[*method]policy.Method{}}
	next.methods[otherMethod] = p.MethodFor("")
	for _, m := range g.methods {
		next.methods[m] = p.MethodFor(m.name)
	}
	next.serve = http.HandlerFunc(g.serve)
	if origins := p.CORS.Origins; len(origins) > 0 {
		next.serve = cors.New(cors.Options{
			AllowedOrigins: origins,
			AllowedMethods: connectcors.AllowedMethods(),
			AllowedHeaders: append(connectcors.AllowedHeaders(), "Authorization"),
			ExposedHeaders: append(connectcors.ExposedHeaders(), "Retry-After", "Grpc-Retry-Pushback-Ms"),
			MaxAge:         int(next.policy.CORS.MaxAge / time.Second),
		}).Handler(next.serve)
	}
	g.rules.Store(next)
	return nil
}

// Upstreams names the nodes that calls may go to.
func (g *Gateway) Upstreams() []string {
	names := make([]string, len(g.upstreams))
	for i, upstream := range g.upstreams {
		names[i] = upstream.id
	}
	return names
}

// Close lets go of connections that no call uses. REQUIRES: nobody calls any more.
func (g *Gateway) Close() error {
	for _, upstream := range g.upstreams {
		upstream.close()
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.rules.Load().serve.ServeHTTP(w, r)
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
	ctx, cancel := call.bound(w, r)
	defer cancel()
	if err := call.readBody(w, r); err != nil {
		g.answer(w, r, call, err)
		return
	}
	ctx = context.WithValue(ctx, callKey{}, call)
	if call.streams() {
		w = &streamWriter{ResponseWriter: w, controller: http.NewResponseController(w), timeMax: rules.policy.Limits.StreamWriteTime}
	}
	g.proxy.ServeHTTP(w, r.WithContext(ctx))
}

// rewrite makes the request to an upstream of the one that came. It is transparent but for who asks. Which upstream, the round tripper says.
func (g *Gateway) rewrite(pr *httputil.ProxyRequest) {
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	pr.Out.Host = pr.In.Host
	pr.SetXForwarded()
	if call := callOf(pr.In.Context()); call.body != nil {
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
