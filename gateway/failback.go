package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/weirhq/weir/gateway/failback"
	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/outcome"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/wire"
)

// A Keeper keeps requests for later, durably: package failback has one.
type Keeper interface {
	// Accept keeps a request: once it returns nil, the request is made until it is answered.
	Accept(ctx context.Context, request failback.Request) error
	// Stats says how many there are.
	Stats(ctx context.Context) (failback.Stats, error)
}

// HeaderFailback is in the answer to a call that no node has done yet: "accepted" says that it was kept, and is made until it is answered. The
// message of such an answer is empty; the same request again, with the same request id, answers with what came of it (I4).
const HeaderFailback = "Weir-Failback"

// keptRefusalBytesMax bounds what is read of why a node refused a request that was kept.
const keptRefusalBytesMax = 4 << 10

// A NeedError says that a policy asks for what the gateway was not given.
type NeedError struct {
	// Key of the policy, and the Option of the gateway that it needs.
	Key, Option string
}

func (e *NeedError) Error() string {
	return fmt.Sprintf("%s needs %s, which this gateway does not have", e.Key, e.Option)
}

// checkFailback says which methods of a policy cannot be made again later.
func (g *Gateway) checkFailback(p policy.Policy) error {
	for _, name := range slices.Sorted(maps.Keys(p.Methods)) {
		if of := p.Methods[name].Fault; of == nil || of.Mode != fault.Failback {
			continue
		}
		key := "methods: " + name + ": fault.mode failback"
		switch m := g.methods["/"+name]; {
		case m != nil && m.requestID == "":
			return fmt.Errorf("%s: %s; use failover or failsafe", key, noRequestID)
		case g.keeper == nil:
			return &NeedError{Key: key, Option: "Failback"}
		}
	}
	return nil
}

const noRequestID = "its requests have no request_id under which a node does them once"

// cannotKeep says why no call of a method can be kept for later, "" if calls can.
func (g *Gateway) cannotKeep(m *method) string {
	switch {
	case g.keeper == nil:
		return "this gateway keeps no calls for later"
	case m.requestID == "":
		return noRequestID
	}
	return ""
}

// keepable is whether a call can be kept for later: it is known whose it is, and a node will do it once however often it is sent.
func (g *Gateway) keepable(c *call) bool {
	return g.cannotKeep(c.method) == "" && !c.kept && c.subject != "" && c.body != nil && c.unary()
}

// keep has a call made later, and returns the answer that says so.
func (g *Gateway) keep(ctx context.Context, request *http.Request, c *call) (*wire.Reply, error) {
	kept, err := c.toKeep(request)
	if err != nil {
		return nil, err
	}
	c.sent.Store(true)
	if err := g.keeper.Accept(ctx, kept); err != nil {
		return nil, err
	}
	reply := wire.EmptyReply(c.protocol, request)
	reply.Header.Set(HeaderFailback, "accepted")
	return reply, nil
}

// errNoRequestID is the error of a request that nothing can tell from a second one.
var errNoRequestID = errors.New("the request is not kept for later: it has no request_id")

// toKeep returns what is kept of a call: its message, in one form whatever protocol it came in, and the token that its node will verify.
func (c *call) toKeep(request *http.Request) (failback.Request, error) {
	message, isJSON, ok := wire.RequestMessage(request, c.body, c.limits.RequestBytes)
	if !ok {
		return failback.Request{}, errors.New("the request is not kept for later: it is in an encoding that the gateway does not read")
	}
	kind, err := protoregistry.GlobalTypes.FindMessageByName(c.method.input)
	if err != nil {
		return failback.Request{}, fmt.Errorf("the request is not kept for later: %w", err)
	}
	parsed := kind.New().Interface()
	if isJSON {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(message, parsed)
	} else {
		err = proto.Unmarshal(message, parsed)
	}
	if err != nil {
		return failback.Request{}, fmt.Errorf("the request is not kept for later: %w", err)
	}
	id := parsed.ProtoReflect().Get(kind.Descriptor().Fields().ByName(c.method.requestID)).String()
	if id == "" {
		return failback.Request{}, errNoRequestID
	}
	// The same request is the same bytes, in whatever protocol it comes again.
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(parsed)
	if err != nil {
		return failback.Request{}, fmt.Errorf("the request is not kept for later: %w", err)
	}
	return failback.Request{
		User: c.subject, ID: id, Method: c.method.name, Body: body,
		Header: map[string][]string{"Authorization": request.Header["Authorization"]},
	}, nil
}

// SendKept makes a request that was kept, once, under the policy and the limits of now. It is what the queue's Run is given.
func (g *Gateway) SendKept(ctx context.Context, kept failback.Request) failback.Answer {
	m := g.methods[kept.Method]
	if m == nil {
		return failback.Answer{Outcome: outcome.Good, Refusal: "this gateway knows no method " + kept.Method}
	}
	rules := g.rules.Load()
	c := &call{
		protocol: wire.ConnectUnary, method: m, set: rules, rules: rules.methods[m], limits: &rules.policy.Limits, end: outcome.Abandoned,
		subject: kept.User, kept: true, body: append([]byte{}, kept.Body...),
	}
	c.lane, c.hasLane = g.laneOf(kept.User)
	ctx, cancel := context.WithTimeout(ctx, c.rules.Deadline)
	defer cancel()
	c.deadline, c.tell = ctx.Deadline()
	request, err := http.NewRequestWithContext(context.WithValue(ctx, callKey{}, c), http.MethodPost, "http://gateway"+kept.Method, http.NoBody)
	if err != nil {
		return failback.Answer{Outcome: outcome.Good, Refusal: err.Error()}
	}
	request.Host, request.ContentLength = "", int64(len(c.body))
	maps.Copy(request.Header, kept.Header)
	request.Header.Set("Content-Type", "application/proto")
	request.Header.Set("Connect-Protocol-Version", "1")
	permit, err := g.limiter.Admit(ctx, limit.Call{Method: m.name, User: kept.User})
	if err != nil {
		return failback.Answer{Outcome: outcome.Overload, Err: err}
	}
	defer func() { permit.Done(c.end, c.grouped.Load()) }()
	result, err := g.send(request, c)
	if err != nil {
		return failback.Answer{Outcome: outcome.Fault, Err: err}
	}
	defer discard(result)
	code := result.Value.Code
	switch {
	case code == 0:
		return failback.Answer{Outcome: result.Outcome, Err: result.Err}
	case result.Outcome != outcome.Good || code == connect.CodeAborted: // Such as units that are under way.
		return failback.Answer{Outcome: max(result.Outcome, outcome.Overload), Err: errors.New(refusalText(result.Value))}
	}
	return failback.Answer{Outcome: outcome.Good, Refusal: refusalText(result.Value)}
}

// refusalText says in one line why a node refused a Connect call.
func refusalText(reply *wire.Reply) string {
	text, err := io.ReadAll(io.LimitReader(reply.Body, keptRefusalBytesMax))
	var told struct {
		Message string `json:"message"`
	}
	if err != nil || json.Unmarshal(text, &told) != nil || told.Message == "" {
		return reply.Code.String()
	}
	return reply.Code.String() + ": " + told.Message
}

// failbackLookMax bounds the look at what is kept, when somebody asks for metrics.
const failbackLookMax = time.Second

var (
	keptDesc       = prometheus.NewDesc("weir_gateway_failback_requests", "Requests kept for later in all gateways' stream, that are waiting or parked.", []string{"state"}, nil)
	keptEventsDesc = prometheus.NewDesc("weir_gateway_failback_total", "What this gateway did with requests that are made later.", []string{"what"}, nil)
)

// collectFailback tells how requests stand that are made later. How many wait is left out while NATS does not say.
func (g *Gateway) collectFailback(metrics chan<- prometheus.Metric) {
	if g.keeper == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), failbackLookMax)
	defer cancel()
	stats, err := g.keeper.Stats(ctx)
	if err == nil {
		metrics <- prometheus.MustNewConstMetric(keptDesc, prometheus.GaugeValue, float64(stats.Waiting), "waiting")
		metrics <- prometheus.MustNewConstMetric(keptDesc, prometheus.GaugeValue, float64(stats.Parked), "parked")
	}
	for what, count := range map[string]uint64{
		"accepted": stats.Accepted, "full": stats.Full, "attempted": stats.Attempts, "failed": stats.Failed, "done": stats.Done, "parked": stats.Parkings,
	} {
		metrics <- prometheus.MustNewConstMetric(keptEventsDesc, prometheus.CounterValue, float64(count), what)
	}
}

// failbackStatus returns how requests stand that are made later, nil where none are kept or NATS does not say.
func (g *Gateway) failbackStatus(ctx context.Context) *FailbackStatus {
	if g.keeper == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, failbackLookMax)
	defer cancel()
	stats, err := g.keeper.Stats(ctx)
	if err != nil {
		return nil
	}
	return &FailbackStatus{
		Waiting: stats.Waiting, Parked: stats.Parked, Accepted: stats.Accepted, Full: stats.Full, Attempts: stats.Attempts, Failed: stats.Failed, Done: stats.Done,
	}
}
