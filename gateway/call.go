package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/outcome"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/wire"
)

const (
	// answerGrace is how much longer than the caller a call waits, so that what the node says of the deadline is heard.
	answerGrace = 50 * time.Millisecond
)

// A call is one request on its way.
type call struct {
	protocol wire.Protocol
	method   *method
	set      *rules
	rules    *methodRules
	limits   *policy.Limits
	// subject is whose call it is, as far as that is known, and client where it comes from: by way of a trusted proxy, if proxied.
	subject string
	client  netip.Addr
	proxied bool
	// kept is whether it is made later than it was asked for, and is kept already.
	kept bool
	// asked is whether the limiter was asked: it was not if the edge answered.
	asked bool
	// sent is whether a node may have seen it, or it is kept for one.
	sent atomic.Bool
	// end is how it ended, for those who decide how much can be done.
	end outcome.Outcome
	// grouped is whether the upstream that answered last says that it commits in groups.
	grouped atomic.Bool
	// permit is its place among the calls under way, which it has until left is set.
	permit limit.Permit
	left   atomic.Bool
	// lane decides it if hasLane, as far as its subject says.
	lane    uint32
	hasLane bool
	// stranded are its attempts that wait for a lane that nobody decides.
	stranded atomic.Int32
	// ownerGone is whether the node that decides the lane could not be reached.
	ownerGone atomic.Bool
	// deadline is when the caller leaves, zero for never; tell is whether the upstream is told, which it is unless what the caller said
	// is malformed: then it is the node's to refuse it.
	deadline time.Time
	tell     bool
	// knows is whether the deadline is the one that the caller gave, so that it knows when that passes.
	knows bool
	// body is the whole body, nil when it is not kept: then it can be sent once.
	body []byte
	// stream is the body of a request that is not kept, nil for none, and reading how it is interrupted.
	stream  io.Reader
	reading *reading
	grace   time.Duration
	// upload is that body on its way, nil before.
	upload *upload
}

type callKey struct{}

func callOf(ctx context.Context) *call {
	call, ok := ctx.Value(callKey{}).(*call)
	if !ok {
		panic("gateway: bug: a request without its call")
	}
	return call
}

func (g *Gateway) newCall(rules *rules, r *http.Request) *call {
	protocol := wire.Detect(r)
	method := g.methodOfRequest(protocol, r.URL.Path)
	who := g.caller(r.Header)
	c := &call{
		protocol: protocol, method: method, set: rules, rules: rules.methods[method], limits: &rules.policy.Limits, end: outcome.Abandoned,
		subject: who.subject, client: g.limiter.Client(r),
	}
	if !who.actsForOthers {
		c.lane, c.hasLane = g.laneOf(who.subject)
	}
	c.proxied = c.client.IsValid() && len(r.Header["X-Forwarded-For"]) > 0 && c.client != peerOf(r)
	return c
}

// peerOf returns the address at the other end of a request's connection, the zero Addr for none.
func peerOf(r *http.Request) netip.Addr {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return peer.Addr().Unmap().WithZone("")
}

// laneOf returns the lane that decides a user's calls, if it is known how many there are.
func (g *Gateway) laneOf(user string) (lane uint32, known bool) {
	lanes := g.upstreams.Load().lanes
	if user == "" || lanes == 0 {
		return 0, false
	}
	return laneOf(user, lanes), true
}

// unary is whether the call has one request and one reply, as far as can be known before.
func (c *call) unary() bool {
	return c.method.unary || c.protocol == wire.ConnectUnary || c.protocol == wire.ConnectGet
}

// streams is whether the reply may last.
func (c *call) streams() bool { return c.protocol != wire.Plain && !c.unary() }

// needsLane is whether it waits, at any node, for the one that decides its lane. What reads does not.
func (c *call) needsLane() bool {
	return c.hasLane && c.unary() && !c.method.reads && c.method != otherMethod
}

// undecided is whether nobody decides its lane, as far as is known.
func (c *call) undecided() bool {
	return c.ownerGone.Load() || c.set.balancer.Undecided(c.lane)
}

// leave gives back the call's place. What it says first counts.
func (c *call) leave(end outcome.Outcome) {
	if !c.left.Swap(true) {
		c.permit.Done(end, c.grouped.Load())
	}
}

// repeatable is whether it may be sent again after an upstream may have seen it.
func (c *call) repeatable() bool {
	return c.body != nil && (c.method.repeatable || c.protocol == wire.ConnectGet)
}

// bound puts the call under its limits in time, and returns its context. A stream has the deadline that its caller gives, if any.
func (c *call) bound(ctx context.Context, w http.ResponseWriter, r *http.Request) (context.Context, context.CancelFunc) {
	controller := http.NewResponseController(w)
	if c.streams() {
		_ = controller.SetWriteDeadline(time.Time{}) // Each write has its own.
	}
	if r.ContentLength != 0 && !c.streams() {
		_ = controller.SetReadDeadline(time.Now().Add(c.limits.BodyTime))
	}
	if c.protocol == wire.Plain {
		return context.WithCancel(ctx)
	}
	budget, given, err := c.protocol.Timeout(r.Header)
	switch {
	case err != nil:
		budget, given = c.rules.Deadline, true
	case c.streams():
		c.tell, c.knows = given, given
	case given:
		c.knows = budget <= c.rules.DeadlineMax
		budget, c.tell = min(budget, c.rules.DeadlineMax), true
	default:
		// What the schema does not have is somebody else's service: it is not told of a deadline that nobody gave.
		budget, given, c.tell = c.rules.Deadline, true, c.method != otherMethod
	}
	if !given || budget > math.MaxInt64-answerGrace {
		c.tell = false
		return context.WithCancel(ctx)
	}
	c.deadline = time.Now().Add(budget)
	return context.WithDeadline(ctx, c.deadline.Add(answerGrace))
}

// readBody reads the body of a unary call, so that it can be sent again, and so that a client that sends it slowly holds no upstream. The
// error is a refusal.
func (c *call) readBody(w http.ResponseWriter, r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		c.body = []byte{}
		return nil
	}
	if c.protocol == wire.Plain || !c.unary() {
		// The request keeps the server's own body: by that the server knows whether there is more of it when the call is over. It would take
		// what is left for the next request of the connection.
		c.stream, c.reading = r.Body, &reading{controller: http.NewResponseController(w)}
		if c.protocol == wire.Plain {
			c.stream = http.MaxBytesReader(w, r.Body, plainBytesMax)
		}
		if r.ProtoMajor == 1 {
			c.grace = uploadGrace
		}
		return nil
	}
	if r.ContentLength > c.limits.RequestBytes {
		return bodyTooLarge(c.limits.RequestBytes)
	}
	body := http.MaxBytesReader(w, r.Body, c.limits.RequestBytes)
	var (
		text []byte
		err  error
	)
	if r.ContentLength > 0 {
		text = make([]byte, r.ContentLength)
		_, err = io.ReadFull(body, text)
	} else {
		text, err = io.ReadAll(body)
	}
	if err != nil {
		return bodyRefusal(err, c.limits.RequestBytes)
	}
	// The server goes on reading, to learn that the caller left: a deadline that passes then would end a call that waits for its commit.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	c.body = text
	r.Body = io.NopCloser(bytes.NewReader(text))
	return nil
}

// plainBytesMax bounds the body of what is no RPC.
const plainBytesMax = 1 << 20

func bodyTooLarge(bytesMax int64) error {
	return &refusal{reason: reasonBodyTooLarge, message: "the request is larger than " + formatBytes(bytesMax)}
}

// bodyRefusal says why a body could not be read.
func bodyRefusal(err error, bytesMax int64) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return bodyTooLarge(bytesMax)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &refusal{reason: reasonBodyTooSlow, message: "the request did not arrive in time", cause: err}
	}
	return &refusal{reason: reasonBodyUnreadable, message: "the request broke off", cause: err}
}
