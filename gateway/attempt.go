package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/gateway/wire"
)

// A roundTripper is where policy is: which upstream a call goes to, and what follows from how it ended there.
type roundTripper struct{ gateway *Gateway }

// RoundTrip implements http.RoundTripper. Its errors are refusals.
func (t roundTripper) RoundTrip(request *http.Request) (*http.Response, error) {
	g, call := t.gateway, callOf(request.Context())
	upstream := g.upstreams[g.turn.Add(1)%uint64(len(g.upstreams))]
	reply, err := g.attempt(request, call, upstream)
	if err != nil {
		return nil, call.explain(request.Context(), err)
	}
	return reply.Response, nil
}

// attempt sends a call to an upstream and looks at what comes back as far as it can without keeping the caller waiting: a unary reply is
// held until it is whole, or too long for that. An error means that nothing came back that could be passed on.
func (g *Gateway) attempt(request *http.Request, call *call, upstream *upstream) (*wire.Reply, error) {
	sent := *request
	target := *request.URL
	target.Scheme, target.Host = upstream.scheme, upstream.host
	sent.URL = &target
	if call.body != nil {
		sent.Body, sent.GetBody = http.NoBody, nil // The transport repeats nothing by itself: that is a budget's to decide.
		if len(call.body) > 0 {
			sent.Body = io.NopCloser(bytes.NewReader(call.body))
		}
	}
	if call.stream != nil {
		sent.Body = &upload{body: call.stream, controller: call.controller, grace: call.grace}
	}
	out := &sent
	if call.unary() {
		out = out.WithContext(context.WithValue(request.Context(), localUnary{}, true))
	}
	if call.tell {
		left := time.Until(call.deadline)
		if left <= 0 {
			return nil, &refusal{reason: reasonTimedOut, message: "the deadline had passed before the call was sent"}
		}
		call.protocol.SetTimeout(out.Header, left)
	}
	watch := upstream.series(call.method).begin()
	response, err := upstream.transportFor(call.protocol, call.unary()).RoundTrip(out)
	if err != nil {
		watch.end(call.codeOf(request.Context(), err))
		return nil, err
	}
	reply := wire.NewReply(call.protocol, response)
	if call.unary() && call.protocol != wire.Plain {
		if err := reply.Hold(); err != nil {
			watch.end(call.codeOf(request.Context(), err))
			return nil, err
		}
	}
	if reply.Ended || !call.protocol.Enveloped() || response.StatusCode != http.StatusOK {
		watch.end(reply.Code)
		return reply, nil
	}
	reply.Guard(func(cause error) (connect.Code, string) {
		told := call.explain(request.Context(), cause)
		return told.code(), told.message
	}, func(code connect.Code, _ error) { watch.end(code) })
	return reply, nil
}

// codeOf is the code of an attempt that failed.
func (c *call) codeOf(ctx context.Context, err error) connect.Code { return c.explain(ctx, err).code() }

// explain says what a caller is told of an attempt that failed.
func (c *call) explain(ctx context.Context, err error) *refusal {
	var (
		told     *refusal
		tooLarge *http.MaxBytesError
		dial     *net.OpError
	)
	switch {
	case errors.As(err, &told):
		return told
	case errors.As(err, &tooLarge):
		return &refusal{reason: reasonBodyTooLarge, message: "the request is larger than " + formatBytes(tooLarge.Limit), cause: err}
	case ctx.Err() != nil && !c.deadline.IsZero() && !time.Now().Before(c.deadline):
		return &refusal{reason: reasonTimedOut, message: "the deadline passed; what was asked may still take effect, and the same request_id asks again safely", cause: err}
	case ctx.Err() != nil:
		return &refusal{reason: reasonLeft, message: "the caller left", cause: err}
	case errors.As(err, &dial) && dial.Op == "dial":
		return &refusal{reason: reasonNoUpstream, message: "no node can be reached; nothing was done", retryAfter: retryAfterNoUpstream, cause: err}
	}
	return &refusal{
		reason: reasonUpstreamBroke, retryAfter: retryAfterNoUpstream, cause: err,
		message: "the node broke off; what was asked may have taken effect, and the same request_id asks again safely",
	}
}

func formatBytes(count int64) string { return strconv.FormatInt(count, 10) + " bytes" }
