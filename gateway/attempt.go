package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/outcome"
	"github.com/weirhq/weir/gateway/wire"
)

// A roundTripper is where policy is: which upstream a call goes to, and what follows from how it ended there.
type roundTripper struct{ gateway *Gateway }

// A target is an upstream that was picked for one attempt, with the leave to call it.
type target struct {
	*upstream
	pick   balance.Pick
	ticket breaker.Ticket
	// told is whether done was called: what happens to the call later is no news of the upstream.
	told atomic.Bool
}

// ID names the upstream.
func (t *target) ID() string { return t.id }

// done tells how the attempt ended to those who picked the upstream. What it says first counts.
func (t *target) done(end outcome.Outcome, took time.Duration) {
	if t.told.Swap(true) {
		return
	}
	t.pick.Done(end, took)
	t.ticket.Done(end, took)
}

// withdraw, in place of done, tells them that the attempt is no news of the upstream.
func (t *target) withdraw() {
	if t.told.Swap(true) {
		return
	}
	t.pick.Done(outcome.Abandoned, 0)
	t.ticket.Withdraw()
}

type (
	attemptCall   = fault.Call[*target, *wire.Reply]
	attemptResult = fault.Result[*wire.Reply]
)

// RoundTrip implements http.RoundTripper. Its errors are refusals.
func (t roundTripper) RoundTrip(request *http.Request) (*http.Response, error) {
	result, err := t.gateway.send(request, callOf(request.Context()))
	if err != nil {
		return nil, err
	}
	return result.Value.Response, nil
}

// send makes a call at the upstreams that its policy says. The result has a reply, or the error is a refusal.
func (g *Gateway) send(request *http.Request, call *call) (attemptResult, error) {
	ctx := request.Context()
	do := attemptCall{
		Pick:       func(tried []string) (*target, error) { return g.pick(call, tried) },
		Attempt:    func(ctx context.Context, to *target) attemptResult { return g.attempt(ctx, request, call, to) },
		Discard:    discard,
		Replayable: call.repeatable(),
		Everyone:   func() []*target { return g.everyone(call) },
	}
	if call.unary() && !call.kept { // An empty answer would end what was kept.
		do.Empty = func() *wire.Reply { return wire.EmptyReply(call.protocol, request) }
	}
	if g.keepable(call) {
		do.Keep = func(ctx context.Context) (*wire.Reply, error) { return g.keep(ctx, request, call) }
	}
	result, err := fault.Do(ctx, call.rules.fault, do)
	if err != nil {
		call.end = outcome.Abandoned // Nothing was sent: it says nothing of how much can be done.
		return result, call.explain(ctx, err)
	}
	call.end = result.Outcome
	if result.Value == nil {
		told := call.explain(ctx, result.Err)
		if told.reason == reasonLeft {
			call.end = outcome.Abandoned
		}
		return result, told
	}
	return result, nil
}

// discard gives back a reply that nobody gets.
func discard(result attemptResult) {
	if result.Value != nil && result.Value.Body != nil {
		_ = result.Value.Body.Close() // Whatever it says, nobody asks any more.
	}
}

// pick chooses an upstream for an attempt that its breaker lets through.
func (g *Gateway) pick(call *call, tried []string) (*target, error) {
	known := g.upstreams.Load()
	key := balance.Key{Policy: call.rules.Balance, Stream: call.streams(), Tried: tried}
	if call.subject != "" {
		key.Hash = balance.Hash(call.subject)
		key.Lane, key.HasLane = call.lane, call.hasLane
	}
	if call.needsLane() {
		if call.stranded.Load() > 0 {
			return nil, errStranded
		}
		if after, full := g.strands.refuses(call.lane, call.undecided()); full {
			return nil, laneUnavailable(after)
		}
	}
	var refused error
	for {
		pick, err := call.set.balancer.Pick(key)
		if err != nil {
			if refused != nil {
				return nil, refused // The breakers' word says when to come again.
			}
			return nil, err
		}
		to := known.byID[pick.ID()]
		if to == nil { // It was replaced at this very moment.
			pick.Done(outcome.Abandoned, 0)
			known = g.upstreams.Load()
			if to = known.byID[pick.ID()]; to == nil {
				key.Tried = append(slices.Clip(key.Tried), pick.ID())
			}
			continue
		}
		ticket, err := call.admit(to)
		if err == nil {
			return &target{upstream: to, pick: pick, ticket: ticket}, nil
		}
		pick.Done(outcome.Abandoned, 0)
		refused = err
		key.Tried = append(slices.Clip(key.Tried), to.id)
	}
}

// admit asks the upstream's breaker.
func (c *call) admit(to *upstream) (breaker.Ticket, error) {
	b := c.set.breakers.Of(breaker.Key{Upstream: to.id, Method: c.method.name})
	if c.streams() {
		return b.AdmitStream()
	}
	return b.Admit()
}

// everyone returns a target for each upstream, whatever its breaker says: a broadcast is to reach all, and says whom it did not.
func (g *Gateway) everyone(call *call) []*target {
	known := g.upstreams.Load()
	var all []*target
	var tried []string
	for range known.byID {
		pick, err := call.set.balancer.Pick(balance.Key{Policy: balance.WeightedRandom, Tried: tried})
		if err != nil {
			break
		}
		tried = append(tried, pick.ID())
		to := known.byID[pick.ID()]
		if to == nil {
			pick.Done(outcome.Abandoned, 0)
			continue
		}
		ticket, err := call.admit(to)
		if err != nil {
			ticket = breaker.Ticket{} // Counted nowhere.
		}
		all = append(all, &target{upstream: to, pick: pick, ticket: ticket})
	}
	return all
}

// attempt sends a call to an upstream and looks at what comes back as far as it can without keeping the caller waiting: a unary reply is
// held until it is whole, or too long for that. Without a value nothing came back that could be passed on.
func (g *Gateway) attempt(ctx context.Context, request *http.Request, call *call, to *target) attemptResult {
	out, body := call.requestTo(ctx, request, to.upstream)
	if call.tell {
		left := time.Until(call.deadline)
		if left <= 0 {
			to.done(outcome.Abandoned, 0)
			return attemptResult{Outcome: outcome.Abandoned, Err: call.timedOut("the deadline had passed before the call was sent", nil)}
		}
		call.protocol.SetTimeout(out.Header, left)
	}
	defer g.watchLane(call, to)()
	call.sent.Store(true)
	watch := to.counts.of(call.method).begin()
	failed := func(err error) attemptResult {
		told := call.explain(ctx, err)
		end, unsent := call.outcomeOf(ctx, told), isUnsent(err, body)
		if unsent && to.pick.Owns() {
			call.ownerGone.Store(true)
		}
		to.done(end, watch.end(told.code()))
		return attemptResult{Outcome: end, Err: told, Unsent: unsent}
	}
	response, err := to.transportFor(call.protocol, call.unary()).RoundTrip(out) //nolint:bodyclose // Whoever gets the reply closes it, or Discard does.
	if err != nil {
		return failed(err)
	}
	call.grouped.Store(takeGroups(response.Header))
	reply := wire.NewReply(call.protocol, response)
	if call.unary() && call.protocol != wire.Plain {
		if err := reply.Hold(); err != nil {
			return failed(err)
		}
	}
	end := outcome.OfCode(reply.Code)
	if end == outcome.Fault && call.needsLane() && !to.pick.Owns() && call.undecided() {
		// It said that it found nobody who decides the lane. That is no fault of it, and no other node finds anybody either.
		to.withdraw()
		end = outcome.Abandoned
	}
	if reply.Ended || !call.protocol.Enveloped() || response.StatusCode != http.StatusOK {
		to.done(end, watch.end(reply.Code))
		return attemptResult{Value: reply, Outcome: end}
	}
	reply.Guard(func(cause error) *connect.Error { return call.explain(ctx, cause).connectError() }, func(code connect.Code, _ error) { to.done(outcome.OfCode(code), watch.end(code)) })
	return attemptResult{Value: reply, Outcome: end}
}

// requestTo makes the request of one attempt. The upload is the body's way there, nil for a body that is kept.
func (c *call) requestTo(ctx context.Context, request *http.Request, to *upstream) (*http.Request, *upload) {
	if _, local := to.unary.(*localTransport); local && c.unary() {
		ctx = contextOfUnary(ctx)
	}
	out := request.WithContext(ctx)
	address := *request.URL
	address.Scheme, address.Host = to.scheme, to.host
	out.URL = &address
	out.Header = maps.Clone(request.Header) // Attempts at once say different deadlines.
	out.GetBody = nil                       // The transport repeats nothing by itself: that is the budget's to decide.
	switch {
	case c.stream != nil:
		// A node may begin to answer before it has read the request. Over HTTP/1.1 a server would take the rest from the node then, throw it away,
		// and close the body under whoever reads it for the node, which is told as a request that broke off.
		_ = c.reading.controller.EnableFullDuplex() // What does not support it does both at once in any case.
		c.upload = &upload{body: c.stream, reading: c.reading, grace: c.grace}
		out.Body = c.upload
		return out, c.upload
	case len(c.body) > 0:
		out.Body = io.NopCloser(bytes.NewReader(c.body))
	case c.body != nil:
		out.Body = http.NoBody
	}
	return out, nil
}

// HeaderGroups is in every answer of an upstream that commits in groups: there a call is slower, and more are served, while others are under way. Its
// value is of no account. How many calls there may be goes by it (limit.Permit.Done), and it goes no further.
const HeaderGroups = "Weir-Groups"

// takeGroups reports whether the header is there, and removes it.
func takeGroups(header http.Header) bool {
	_, grouped := header[HeaderGroups]
	if grouped {
		delete(header, HeaderGroups)
	}
	return grouped
}

// isUnsent reports whether an upstream got nothing of a request: it could not be reached.
func isUnsent(err error, body *upload) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial" && (body == nil || !body.read.Load())
}

// outcomeOf says what an attempt that failed tells of its upstream. One that was cut because it took too long was the upstream's fault; one
// that lost a race, or whose caller left, was nobody's.
func (c *call) outcomeOf(ctx context.Context, told *refusal) outcome.Outcome {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, fault.ErrTooSlow):
		return outcome.Fault
	case errors.Is(cause, fault.ErrLost), told.reason == reasonLeft, told.reason == reasonBodyTooLarge, told.reason == reasonBodyTooSlow:
		return outcome.Abandoned
	}
	return outcome.Fault
}

// explain says what a caller is told of a call that failed.
func (c *call) explain(ctx context.Context, err error) *refusal {
	var (
		told     *refusal
		tooLarge *http.MaxBytesError
		dial     *net.OpError
		open     *breaker.OpenError
	)
	switch {
	case errors.As(err, &told):
		return told
	case errors.As(err, &tooLarge):
		return &refusal{reason: reasonBodyTooLarge, message: "the request is larger than " + formatBytes(tooLarge.Limit), cause: err}
	case errors.As(err, &open):
		return &refusal{reason: reasonBreakerOpen, message: "the nodes fail at this and are left alone for a while; nothing was done", retryAfter: open.RetryAfter, cause: err}
	case errors.Is(err, balance.ErrNoUpstream), errors.Is(err, fault.ErrNobody):
		return &refusal{reason: reasonNoUpstream, message: "there is no node to call; nothing was done", retryAfter: retryAfterNoUpstream, cause: err}
	case ctx.Err() != nil && !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		return c.timedOut("the deadline passed; what was asked may still take effect, and the same request_id asks again safely", err)
	case ctx.Err() != nil && !errors.Is(context.Cause(ctx), fault.ErrTooSlow):
		return &refusal{reason: reasonLeft, message: "the caller left", cause: err}
	case errors.As(err, &dial) && dial.Op == "dial":
		return &refusal{reason: reasonNoUpstream, message: "no node can be reached; nothing was done", retryAfter: retryAfterNoUpstream, cause: err}
	}
	return &refusal{
		reason: reasonUpstreamBroke, retryAfter: retryAfterNoUpstream, cause: err,
		message: "the node broke off; what was asked may have taken effect, and the same request_id asks again safely",
	}
}

// timedOut is what a caller is told whose deadline passed, or the policy's. It says the same as the node would have, had its answer come in time:
// Weir's nodes say the reason, and a server of somebody else says the code of a deadline that its caller gave, and nothing more.
func (c *call) timedOut(message string, cause error) *refusal {
	return &refusal{reason: reasonTimedOut, message: message, cause: cause, bare: c.knows && c.method == otherMethod}
}

func formatBytes(count int64) string { return strconv.FormatInt(count, 10) + " bytes" }
