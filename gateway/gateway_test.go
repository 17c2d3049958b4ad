package gateway_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/retry"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// testTimeMax bounds each call of a test; it is far above what any takes.
const testTimeMax = 30 * time.Second

// A node is an upstream of the tests. What is not set answers with an empty message.
type node struct {
	orderv1connect.UnimplementedOrderServiceHandler
	*httptest.Server
	place func(context.Context, *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error)
	get   func(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error)
	watch func(context.Context, *orderv1.WatchOrderRequest, *connect.ServerStream[orderv1.WatchOrderResponse]) error
	// calls counts the requests that arrived.
	calls atomic.Int64
}

func (n *node) PlaceOrder(ctx context.Context, r *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
	if n.place == nil {
		return &orderv1.PlaceOrderResponse{}, nil
	}
	return n.place(ctx, r)
}

func (n *node) GetOrder(ctx context.Context, r *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	if n.get == nil {
		return &orderv1.GetOrderResponse{}, nil
	}
	return n.get(ctx, r)
}

func (n *node) WatchOrder(ctx context.Context, r *orderv1.WatchOrderRequest, s *connect.ServerStream[orderv1.WatchOrderResponse]) error {
	if n.watch == nil {
		return nil
	}
	return n.watch(ctx, r, s)
}

func (n *node) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderServiceHandler(n))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.calls.Add(1)
		mux.ServeHTTP(w, r)
	})
}

// start serves the node over HTTP/1.1 and HTTP/2 in plain text.
func (n *node) start(t *testing.T) *node {
	t.Helper()
	n.Server = serve(t, n.handler())
	return n
}

func serve(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = &http.Protocols{}
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(func() {
		server.CloseClientConnections() // Of streams that would never end.
		server.Close()
	})
	return server
}

// front is a gateway of a test.
type front struct {
	*gateway.Gateway
	URL string
}

// inFront serves a gateway in front of some upstreams.
func inFront(t *testing.T, decided policy.Policy, upstreams ...string) *front {
	t.Helper()
	return serveGateway(t, optionsFor(t, decided, upstreams...))
}

func optionsFor(t *testing.T, decided policy.Policy, upstreams ...string) gateway.Options {
	t.Helper()
	options := gateway.Options{Policy: decided, Logger: slog.New(slog.DiscardHandler)}
	for _, upstream := range upstreams {
		base, err := url.Parse(upstream)
		if err != nil {
			t.Fatal(err)
		}
		options.Upstreams = append(options.Upstreams, base)
	}
	return options
}

func serveGateway(t *testing.T, options gateway.Options) *front {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, options, listener)
}

func serveOn(t *testing.T, options gateway.Options, listener net.Listener) *front {
	t.Helper()
	g, err := gateway.New(options)
	if err != nil {
		t.Fatal(err)
	}
	server := gateway.NewServer(g)
	served := make(chan error, 1)
	go func() { served <- server.Serve(gateway.Bounded(g, listener)) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("the gateway's server ended with %v", err)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return &front{Gateway: g, URL: "http://" + listener.Addr().String()}
}

// speeches are how clients speak, each with the HTTP that it needs.
var speeches = map[string][]connect.ClientOption{
	"connect":      nil,
	"connect JSON": {connect.WithProtoJSON()},
	"connect GET":  {connect.WithHTTPGet()},
	"gRPC":         {connect.WithGRPC()},
	"gRPC-Web":     {connect.WithGRPCWeb()},
}

// orders returns a client that speaks in one way, over HTTP/2 if it is gRPC.
func orders(t *testing.T, base, speech string) orderv1connect.OrderServiceClient {
	t.Helper()
	return orderv1connect.NewOrderServiceClient(speaker(t, speech), base, speeches[speech]...)
}

func speaker(t *testing.T, speech string) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: &http.Protocols{}, DisableCompression: true}
	if speech == "gRPC" {
		transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		transport.Protocols.SetHTTP1(true)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: testTimeMax}
}

func eachSpeech(t *testing.T, run func(t *testing.T, speech string)) {
	t.Helper()
	for speech := range speeches {
		t.Run(speech, func(t *testing.T) { run(t, speech) })
	}
}

// with returns a context whose call has a header.
func with(t *testing.T, key, value string) context.Context {
	t.Helper()
	ctx, info := connect.NewClientContext(t.Context())
	info.RequestHeader().Set(key, value)
	return ctx
}

// details finds what an error of the wire carries.
func details(t *testing.T, err error) (code connect.Code, reason string, retryAfter time.Duration) {
	t.Helper()
	var told *connect.Error
	if !errors.As(err, &told) {
		t.Fatalf("got %v, want an error of the protocol", err)
	}
	for _, detail := range told.Details() {
		value, valueErr := detail.Value()
		if valueErr != nil {
			t.Fatal(valueErr)
		}
		switch value := value.(type) {
		case *errdetails.ErrorInfo:
			reason = value.GetReason()
		case *errdetails.RetryInfo:
			retryAfter = value.GetRetryDelay().AsDuration()
		}
	}
	return told.Code(), reason, retryAfter
}

func TestACallAndItsRefusalPassInEveryProtocol(t *testing.T) {
	n := (&node{get: func(ctx context.Context, r *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
		if r.GetOrderId() == "missing" {
			err := connect.NewError(connect.CodeNotFound, errors.New("there is no such order"))
			detail, _ := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: "ORDER_NOT_FOUND", Domain: "weir"})
			err.AddDetail(detail)
			err.Meta().Set("X-Told", "yes")
			return nil, err
		}
		info, _ := connect.CallInfoForHandlerContext(ctx)
		info.ResponseHeader().Set("X-Header", "h")
		info.ResponseTrailer().Set("X-Trailer", "t")
		return &orderv1.GetOrderResponse{Order: &orderv1.Order{OrderId: r.GetOrderId(), UserId: info.RequestHeader().Get("X-Asked")}}, nil
	}}).start(t)
	f := inFront(t, policy.Policy{}, n.URL)
	eachSpeech(t, func(t *testing.T, speech string) {
		client := orders(t, f.URL, speech)
		ctx, info := connect.NewClientContext(t.Context())
		info.RequestHeader().Set("X-Asked", "alice")
		response, err := client.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: "one"})
		if err != nil {
			t.Fatal(err)
		}
		if order := response.GetOrder(); order.GetOrderId() != "one" || order.GetUserId() != "alice" || info.ResponseHeader().Get("X-Header") != "h" || info.ResponseTrailer().Get("X-Trailer") != "t" {
			t.Errorf("got %v, header %v, trailer %v", response, info.ResponseHeader(), info.ResponseTrailer())
		}
		_, err = client.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: "missing"})
		code, reason, _ := details(t, err)
		var told *connect.Error
		if errors.As(err, &told); code != connect.CodeNotFound || reason != "ORDER_NOT_FOUND" || told.Meta().Get("X-Told") != "yes" {
			t.Errorf("got %v, %q, %v", err, reason, told.Meta())
		}
	})
}

func TestADeadlineIsForwardedAsWhatIsLeftOfIt(t *testing.T) {
	left := make(chan time.Duration, 1)
	n := (&node{get: func(ctx context.Context, _ *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
		deadline, ok := ctx.Deadline()
		if !ok {
			deadline = time.Time{}
		}
		left <- time.Until(deadline)
		return &orderv1.GetOrderResponse{}, nil
	}}).start(t)
	const byDefault, most = 7 * time.Second, 20 * time.Second
	f := inFront(t, policy.Policy{Deadlines: policy.Deadlines{Default: byDefault, Max: most}}, n.URL)
	eachSpeech(t, func(t *testing.T, speech string) {
		for _, test := range []struct{ asked, least, most time.Duration }{
			{0, byDefault - 5*time.Second, byDefault}, {5 * time.Second, time.Millisecond, 5 * time.Second}, {time.Hour, most - 5*time.Second, most},
		} {
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if test.asked > 0 {
				ctx, cancel = context.WithTimeout(ctx, test.asked)
			}
			_, err := orders(t, f.URL, speech).GetOrder(ctx, &orderv1.GetOrderRequest{})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			if got := <-left; got < test.least || got > test.most {
				t.Errorf("asked for %s, the node has %s, want %s to %s", test.asked, got, test.least, test.most)
			}
		}
	})
}

func TestACallThatOutlastsItsDeadlineIsEndedInProtocol(t *testing.T) {
	n := (&node{}).start(t)
	released := make(chan struct{})
	defer close(released)
	n.place = func(context.Context, *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
		<-released // It does not heed its own deadline.
		return nil, errors.New("late")
	}
	f := inFront(t, policy.Policy{Methods: map[string]policy.Method{"weir.order.v1.OrderService/PlaceOrder": {Deadline: 20 * time.Millisecond}}}, n.URL)
	eachSpeech(t, func(t *testing.T, speech string) {
		_, err := orders(t, f.URL, speech).PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{RequestId: "r"})
		if code, reason, _ := details(t, err); code != connect.CodeDeadlineExceeded || reason != "DEADLINE_EXCEEDED" {
			t.Errorf("got %v (%s)", err, reason)
		}
	})
}

// On a busy machine, a node's word on a deadline came too late, and the gateway's own had a detail that no server of somebody else sends.
func TestADeadlineOfTheCallersOwnIsToldAsTheNodeWouldTellIt(t *testing.T) {
	const weirs, others = "/weir.order.v1.OrderService/PlaceOrder", "/somebody.Else/Call"
	released := make(chan struct{})
	defer close(released)
	hangs := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-released })) // It does not heed its deadline.
	byPolicy := policy.Method{Deadline: 20 * time.Millisecond, DeadlineMax: 40 * time.Millisecond}
	f := inFront(t, policy.Policy{Methods: map[string]policy.Method{weirs[1:]: byPolicy}}, hangs.URL)
	strict := inFront(t, policy.Policy{Deadlines: policy.Deadlines{Default: byPolicy.Deadline, Max: byPolicy.DeadlineMax}}, hangs.URL)
	for _, test := range []struct {
		name, base, procedure string
		asked                 time.Duration // 0 for no deadline of the caller's own
		stream                bool
		reason                string
	}{
		{"of the caller, for another service", f.URL, others, 20 * time.Millisecond, false, ""},
		{"of the caller, for a stream of another service", f.URL, others, 20 * time.Millisecond, true, ""},
		{"of the policy, for another service", strict.URL, others, 0, false, "DEADLINE_EXCEEDED"},
		{"of the policy, which has less than the caller", strict.URL, others, time.Minute, false, "DEADLINE_EXCEEDED"},
		{"of the caller, for a service of Weir", f.URL, weirs, 20 * time.Millisecond, false, "DEADLINE_EXCEEDED"},
		{"of the policy, for a service of Weir", f.URL, weirs, 0, false, "DEADLINE_EXCEEDED"},
	} {
		t.Run(test.name, func(t *testing.T) {
			eachSpeech(t, func(t *testing.T, speech string) {
				if test.base == strict.URL && !strings.HasPrefix(speech, "connect") {
					return // What this asks for may be a stream, which has no deadline by policy.
				}
				client := connect.NewClient[emptypb.Empty, emptypb.Empty](speaker(t, speech), test.base+test.procedure, speeches[speech]...)
				request := connect.NewRequest(&emptypb.Empty{})
				if test.asked > 0 { // In the headers alone, so that the client hears the gateway out.
					timeout := strconv.FormatInt(test.asked.Milliseconds(), 10)
					request.Header().Set("Connect-Timeout-Ms", timeout)
					request.Header().Set("Grpc-Timeout", timeout+"m")
				}
				var err error
				if test.stream {
					var stream *connect.ServerStreamForClient[emptypb.Empty]
					if stream, err = client.CallServerStream(t.Context(), request); err == nil {
						stream.Receive()
						err = stream.Err()
						_ = stream.Close()
					}
				} else {
					_, err = client.CallUnary(t.Context(), request)
				}
				if code, reason, _ := details(t, err); code != connect.CodeDeadlineExceeded || reason != test.reason {
					t.Errorf("got %v with the reason %q, want %q", err, reason, test.reason)
				}
			})
		})
	}
}

func TestANodeThatIsNotThereIsUnavailable(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	eachSpeech(t, func(t *testing.T, speech string) {
		f := inFront(t, policy.Policy{}, "http://"+address)
		client := orders(t, f.URL, speech)
		_, err := client.PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{RequestId: "r"})
		if code, reason, after := details(t, err); code != connect.CodeUnavailable || reason != "NO_UPSTREAM" || after <= 0 {
			t.Errorf("got %v (%s, after %s)", err, reason, after)
		}
		stream, err := client.WatchOrder(t.Context(), &orderv1.WatchOrderRequest{})
		if err == nil {
			stream.Receive()
			err = stream.Err()
			_ = stream.Close()
		}
		if code, reason, _ := details(t, err); code != connect.CodeUnavailable || reason != "NO_UPSTREAM" {
			t.Errorf("a stream got %v (%s)", err, reason)
		}
	})
}

func TestAStreamWhoseNodeDiesEndsInProtocol(t *testing.T) {
	eachSpeech(t, func(t *testing.T, speech string) {
		if speech == "connect GET" {
			return // There are no such streams.
		}
		n := &node{watch: func(ctx context.Context, _ *orderv1.WatchOrderRequest, s *connect.ServerStream[orderv1.WatchOrderResponse]) error {
			if err := s.Send(&orderv1.WatchOrderResponse{Order: &orderv1.Order{OrderId: "one"}}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}}
		n.start(t)
		f := inFront(t, policy.Policy{}, n.URL)
		stream, err := orders(t, f.URL, speech).WatchOrder(t.Context(), &orderv1.WatchOrderRequest{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stream.Close() }()
		if !stream.Receive() || stream.Msg().GetOrder().GetOrderId() != "one" {
			t.Fatalf("got %v, %v, want the order", stream.Msg(), stream.Err())
		}
		n.CloseClientConnections()
		if stream.Receive() {
			t.Fatalf("got %v after the node died", stream.Msg())
		}
		if code := connect.CodeOf(stream.Err()); code != connect.CodeUnavailable || !strings.Contains(stream.Err().Error(), "the node broke off") {
			t.Errorf("got %v, want unavailable from the gateway", stream.Err())
		}
		if _, reason, after := details(t, stream.Err()); reason != "UPSTREAM_BROKE" || after <= 0 {
			t.Errorf("the end says %q, come again in %s", reason, after)
		}
		var told *connect.Error
		if errors.As(stream.Err(), &told) && (told.Meta().Get("Retry-After") == "" || told.Meta().Get("Grpc-Retry-Pushback-Ms") == "") {
			t.Errorf("the end has the metadata %v", told.Meta())
		}
	})
}

// dying answers nothing: it reads a request, counts it, and closes the connection.
func dying(t *testing.T, calls *atomic.Int64) *httptest.Server {
	t.Helper()
	return serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		calls.Add(1)
		panic(http.ErrAbortHandler)
	}))
}

func TestNothingIsSentAgainBehindTheBudgetsBack(t *testing.T) {
	var calls atomic.Int64
	f := inFront(t, policy.Policy{}, dying(t, &calls).URL)
	for _, speech := range []string{"connect", "gRPC", "gRPC-Web"} {
		calls.Store(0)
		// net/http takes it as leave to send a POST again.
		_, err := orders(t, f.URL, speech).PlaceOrder(with(t, "Idempotency-Key", "k"), &orderv1.PlaceOrderRequest{RequestId: "r"})
		if code, reason, _ := details(t, err); code != connect.CodeUnavailable || reason != "UPSTREAM_BROKE" {
			t.Errorf("%s: got %v (%s)", speech, err, reason)
		}
		// There is no other upstream to try.
		if got := calls.Load(); got != 1 {
			t.Errorf("%s: the node was called %d times, want 1", speech, got)
		}
	}
}

func TestOnlyWhatMayBeDoneTwiceIsTriedAtAnotherNode(t *testing.T) {
	for _, test := range []struct {
		name  string
		again bool
		call  func(*testing.T, string) error
	}{
		{"a read", true, func(t *testing.T, base string) error {
			_, err := orders(t, base, "connect").GetOrder(t.Context(), &orderv1.GetOrderRequest{})
			return err
		}},
		{"a command with a request id", true, func(t *testing.T, base string) error {
			_, err := orders(t, base, "gRPC").PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{RequestId: "r"})
			return err
		}},
		{"what nobody knows", false, func(t *testing.T, base string) error {
			client := connect.NewClient[orderv1.GetOrderRequest, orderv1.GetOrderResponse](http.DefaultClient, base+"/other.v1.Service/Method")
			_, err := client.CallUnary(t.Context(), connect.NewRequest(&orderv1.GetOrderRequest{}))
			return err
		}},
		{"a stream", false, func(t *testing.T, base string) error {
			stream, err := orders(t, base, "gRPC").WatchOrder(t.Context(), &orderv1.WatchOrderRequest{})
			if err != nil {
				return err
			}
			defer func() { _ = stream.Close() }()
			stream.Receive()
			return stream.Err()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var dead, good atomic.Int64
			answering := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				good.Add(1)
				(&node{}).handler().ServeHTTP(w, r)
			}))
			f := inFront(t, policy.Policy{}, dying(t, &dead).URL, answering.URL)
			failed := 0
			const rounds = 20
			for range rounds {
				before := dead.Load()
				err := test.call(t, f.URL)
				if dead.Load() == before {
					continue // It went to the good one at once.
				}
				if err != nil && connect.CodeOf(err) == connect.CodeUnavailable {
					failed++
				}
			}
			if dead.Load() == 0 {
				t.Fatal("no call went to the node that dies")
			}
			if test.again && failed > 0 || !test.again && int64(failed) != dead.Load() {
				t.Errorf("of %d calls that the dying node got, %d failed; tried again: want %t", dead.Load(), failed, test.again)
			}
		})
	}
}

func TestABodyThatIsTooLargeIsRefusedWithoutANode(t *testing.T) {
	n := (&node{}).start(t)
	f := inFront(t, policy.Policy{}, n.URL)
	eachSpeech(t, func(t *testing.T, speech string) {
		_, err := orders(t, f.URL, speech).PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{Note: strings.Repeat("x", 100<<10)})
		if code := connect.CodeOf(err); code != connect.CodeResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
	if got := n.calls.Load(); got != 0 {
		t.Errorf("the node was called %d times", got)
	}
}

func TestRatesHoldAndSayWhenToComeAgain(t *testing.T) {
	n := (&node{}).start(t)
	f := inFront(t, policy.Policy{Methods: map[string]policy.Method{
		"weir.order.v1.OrderService/PlaceOrder": {Rate: &limit.Rate{PerSecond: 0.01, Burst: 1}},
		"weir.order.v1.OrderService/*":          {User: &limit.Rate{PerSecond: 0.01, Burst: 2}},
	}}, n.URL)
	place := func(user string) error {
		_, err := orders(t, f.URL, "connect").PlaceOrder(with(t, "Authorization", "Bearer "+tokenOf(user)), &orderv1.PlaceOrderRequest{RequestId: "r"})
		return err
	}
	get := func(user string) error {
		_, err := orders(t, f.URL, "gRPC").GetOrder(with(t, "Authorization", "Bearer "+tokenOf(user)), &orderv1.GetOrderRequest{})
		return err
	}
	if err := place("alice"); err != nil {
		t.Fatal(err)
	}
	code, reason, after := details(t, place("bob"))
	if code != connect.CodeResourceExhausted || reason != "RATE_LIMITED" || after < 30*time.Second || after > 100*time.Second {
		t.Errorf("the second order of the method: %v (%s), again after %s, want RATE_LIMITED and about 100 s, at most a minute", code, reason, after)
	}
	for round := range 2 {
		if err := get("alice"); err != nil {
			t.Fatalf("read %d: %v", round, err)
		}
	}
	if code, reason, _ := details(t, get("alice")); code != connect.CodeResourceExhausted || reason != "RATE_LIMITED" {
		t.Errorf("alice's third read: %v (%s)", code, reason)
	}
	if err := get("carol"); err != nil {
		t.Errorf("another user's read: %v", err)
	}
}

// tokenOf is a token that nobody signed.
func tokenOf(user string) string {
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	return encode(`{"alg":"none"}`) + "." + encode(`{"sub":`+strconv.Quote(user)+`}`) + "."
}

func TestABreakerOpensAndIsSaidSo(t *testing.T) {
	n := (&node{place: func(context.Context, *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
		return nil, connect.NewError(connect.CodeInternal, errors.New("broken"))
	}}).start(t)
	f := inFront(t, policy.Policy{}, n.URL)
	client := orders(t, f.URL, "connect")
	for attempt := 0; ; attempt++ {
		_, err := client.PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{RequestId: "r"})
		if code, reason, after := details(t, err); reason == "BREAKER_OPEN" {
			if code != connect.CodeUnavailable || after <= 0 {
				t.Errorf("got %v, again after %s", code, after)
			}
			break
		}
		if attempt > 1000 {
			t.Fatal("the breaker did not open")
		}
	}
	if _, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{}); err != nil {
		t.Errorf("another method is refused as well: %v", err)
	}
	status := f.Status()
	if len(status.Breakers) != 1 || status.Breakers[0].State != "open" || status.Breakers[0].Method != "weir.order.v1.OrderService/PlaceOrder" {
		t.Errorf("breakers are %+v, want one that is open", status.Breakers)
	}
	metrics := httptest.NewRecorder()
	f.OperatorHandler().ServeHTTP(metrics, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", http.NoBody))
	for _, want := range []string{
		`weir_gateway_breaker_open{method="weir.order.v1.OrderService/PlaceOrder",upstream="` + strings.TrimPrefix(n.URL, "http://") + `"} 1`,
		`weir_gateway_refusals_total{method="weir.order.v1.OrderService/PlaceOrder",reason="BREAKER_OPEN"} 1`,
		`weir_gateway_attempts_total{code="ok",method="weir.order.v1.OrderService/GetOrder",upstream="` + strings.TrimPrefix(n.URL, "http://") + `"} 1`,
	} {
		if !strings.Contains(metrics.Body.String(), want) {
			t.Errorf("metrics lack %s:\n%s", want, metrics.Body)
		}
	}
}

func TestMethodsThatCallersMakeUpAreOneMetric(t *testing.T) {
	n := (&node{}).start(t)
	f := inFront(t, policy.Policy{}, n.URL)
	for i := range 30 {
		client := connect.NewClient[orderv1.GetOrderRequest, orderv1.GetOrderResponse](http.DefaultClient, fmt.Sprintf("%s/made.up%d.Service/Method", f.URL, i))
		if _, err := client.CallUnary(t.Context(), connect.NewRequest(&orderv1.GetOrderRequest{})); connect.CodeOf(err) != connect.CodeUnimplemented {
			t.Fatalf("got %v, want unimplemented", err)
		}
	}
	if methods := f.Status().Methods; len(methods) != 1 || methods[0].Method != "other" || methods[0].Good != 30 {
		t.Errorf("got %+v, want 30 calls of other", methods)
	}
}

func TestAFailsafeMethodAnswersNothingRatherThanAFault(t *testing.T) {
	var calls atomic.Int64
	eachSpeech(t, func(t *testing.T, speech string) {
		f := inFront(t, policy.Policy{Methods: map[string]policy.Method{"weir.order.v1.OrderService/GetOrder": {Fault: &fault.Config{Mode: fault.Failsafe}}}}, dying(t, &calls).URL)
		response, err := orders(t, f.URL, speech).GetOrder(t.Context(), &orderv1.GetOrderRequest{})
		if err != nil || response.GetOrder() != nil {
			t.Errorf("got %v, %v, want an empty reply", response, err)
		}
	})
}

func TestForkingTakesTheFirstGoodAnswerAndEndsTheOthers(t *testing.T) {
	arrived, ended := make(chan struct{}), make(chan struct{})
	slow := (&node{get: func(ctx context.Context, _ *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
		close(arrived)
		<-ctx.Done()
		close(ended)
		return nil, ctx.Err()
	}}).start(t)
	quick := (&node{get: func(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
		<-arrived // So that there is somebody to lose.
		return &orderv1.GetOrderResponse{}, nil
	}}).start(t)
	f := inFront(t, policy.Policy{Methods: map[string]policy.Method{"weir.order.v1.OrderService/GetOrder": {Fault: &fault.Config{Mode: fault.Forking}}}}, slow.URL, quick.URL)
	if _, err := orders(t, f.URL, "gRPC").GetOrder(t.Context(), &orderv1.GetOrderRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(testTimeMax):
		t.Error("the loser was not cancelled")
	}
}

func TestABroadcastReachesEveryNode(t *testing.T) {
	nodes := []*node{(&node{}).start(t), (&node{}).start(t), (&node{}).start(t)}
	f := inFront(t, policy.Policy{Methods: map[string]policy.Method{"weir.order.v1.OrderService/GetOrder": {Fault: &fault.Config{Mode: fault.Broadcast}}}},
		nodes[0].URL, nodes[1].URL, nodes[2].URL)
	if _, err := orders(t, f.URL, "connect").GetOrder(t.Context(), &orderv1.GetOrderRequest{}); err != nil {
		t.Fatal(err)
	}
	for i, n := range nodes {
		if got := n.calls.Load(); got != 1 {
			t.Errorf("node %d was called %d times, want 1", i, got)
		}
	}
}

func TestTheEdgeAnswersWhatIsTurnedOffAndReadsOfNodesThatFail(t *testing.T) {
	var fails atomic.Bool
	n := (&node{get: func(context.Context, *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
		if fails.Load() {
			return nil, connect.NewError(connect.CodeUnavailable, errors.New("down"))
		}
		return &orderv1.GetOrderResponse{Order: &orderv1.Order{OrderId: "one"}}, nil
	}}).start(t)
	// Nobody is to leave the node alone while it fails.
	f := inFront(t, policy.Policy{Breaker: breaker.Limits{CallsMin: 1_000_000}, Balance: balance.Config{Ejection: balance.Ejection{Off: true}}, Edge: edge.Config{
		Off:   map[string]edge.Off{orderv1connect.OrderServicePlaceOrderProcedure: {Message: "not today"}},
		Stale: map[string]edge.Stale{orderv1connect.OrderServiceGetOrderProcedure: {}},
	}}, n.URL)
	eachSpeech(t, func(t *testing.T, speech string) {
		fails.Store(false)
		client := orders(t, f.URL, speech)
		_, err := client.PlaceOrder(t.Context(), &orderv1.PlaceOrderRequest{RequestId: "r"})
		if code, reason, _ := details(t, err); code != connect.CodeUnavailable || reason != "FEATURE_OFF" {
			t.Errorf("what is turned off: %v (%s)", err, reason)
		}
		if _, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: speech}); err != nil {
			t.Fatal(err)
		}
		fails.Store(true)
		ctx, info := connect.NewClientContext(t.Context())
		old, err := client.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: speech})
		if err != nil || old.GetOrder().GetOrderId() != "one" || !strings.HasPrefix(info.ResponseHeader().Get("Weir-Edge"), "stale") {
			t.Errorf("a read of a node that fails: %v, %v, %v", old, info.ResponseHeader(), err)
		}
		if _, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: "never read, " + speech}); connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("a read that nobody made before: %v", err)
		}
	})
	if got := n.calls.Load(); got == 0 {
		t.Error("no call reached the node")
	}
	if err := f.Apply(policy.Policy{Edge: edge.Config{SoldOut: true}}); err == nil || !strings.Contains(err.Error(), "board") {
		t.Errorf("sold_out without a board: %v", err)
	}
}

func TestPagesOfNamedOriginsMayCallAndOthersMayNot(t *testing.T) {
	n := (&node{place: func(context.Context, *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("sold out"))
	}}).start(t)
	f := inFront(t, policy.Policy{CORS: policy.CORS{Origins: []string{"https://shop.example", "http://localhost:*"}}}, n.URL)
	send := func(method, origin, body string) (status int, allowed string) {
		request, err := http.NewRequestWithContext(t.Context(), method, f.URL+orderv1connect.OrderServicePlaceOrderProcedure, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Origin", origin)
		if method == http.MethodOptions {
			request.Header.Set("Access-Control-Request-Method", http.MethodPost)
			request.Header.Set("Access-Control-Request-Headers", "authorization,connect-protocol-version,content-type,x-grpc-web")
		} else {
			request.Header.Set("Content-Type", "application/json")
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode, response.Header.Get("Access-Control-Allow-Origin")
	}
	for _, origin := range []string{"https://shop.example", "http://localhost:5173"} {
		for _, method := range []string{http.MethodOptions, http.MethodPost} {
			if _, got := send(method, origin, `{}`); got != origin {
				t.Errorf("%s from %s: allowed for %q", method, origin, got)
			}
		}
	}
	// The gateway's own answers are for the page to read, too.
	status, allowed := send(http.MethodPost, "https://shop.example", `{"note":"`+strings.Repeat("x", 100<<10)+`"}`)
	if status != http.StatusTooManyRequests || allowed != "https://shop.example" {
		t.Errorf("a refusal: HTTP %d, allowed for %q", status, allowed)
	}
	for _, origin := range []string{"https://evil.example", "https://shop.example.evil.example", "null"} {
		for _, method := range []string{http.MethodOptions, http.MethodPost} {
			if _, got := send(method, origin, `{}`); got != "" {
				t.Errorf("%s from %s: allowed for %q", method, origin, got)
			}
		}
	}
}

func TestAForgedWayIsNotBelieved(t *testing.T) {
	seen := make(chan string, 1)
	upstream := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("X-Forwarded-For")
		(&node{}).handler().ServeHTTP(w, r)
	}))
	for _, test := range []struct {
		trusted []string
		want    string
	}{{nil, "127.0.0.1"}, {[]string{"127.0.0.0/8"}, "203.0.113.7, 127.0.0.1"}} {
		f := inFront(t, policy.Policy{TrustedProxies: test.trusted}, upstream.URL)
		if _, err := orders(t, f.URL, "connect").GetOrder(with(t, "X-Forwarded-For", "203.0.113.7"), &orderv1.GetOrderRequest{}); err != nil {
			t.Fatal(err)
		}
		if got := <-seen; got != test.want {
			t.Errorf("trusting %q: the node is told %q, want %q", test.trusted, got, test.want)
		}
	}
}

// Whether a call came by way of a proxy was read off the text of its addresses: of one over IPv6 the caller's own word was passed on, and a trusted
// proxy's was not where its address begins as the client's does.
func TestTheWayOfACallIsKnownByAddresses(t *testing.T) {
	seen := make(chan string, 1)
	upstream := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Get("X-Forwarded-For")
		w.WriteHeader(http.StatusNoContent)
	}))
	for _, test := range []struct {
		name, peer, said string
		trusted          []string
		want             string
	}{
		{"a caller over IPv6", "[2001:db8::1]:5000", "203.0.113.7", nil, "2001:db8::1"},
		{"a trusted proxy over IPv6", "[2001:db8::1]:5000", "203.0.113.7", []string{"2001:db8::/32"}, "203.0.113.7, 2001:db8::1"},
		{"a caller over IPv6 with a zone", "[fe80::1%eth0]:5000", "203.0.113.7", nil, "fe80::1%eth0"},
		{"a proxy whose address begins as the client's does", "10.0.0.10:5000", "10.0.0.1", []string{"10.0.0.10"}, "10.0.0.1, 10.0.0.10"},
		{"a trusted proxy that says nothing that can be read", "10.0.0.10:5000", "nobody", []string{"10.0.0.10"}, "10.0.0.10"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := inFront(t, policy.Policy{TrustedProxies: test.trusted}, upstream.URL)
			request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhooks/somebody", http.NoBody)
			request.RemoteAddr = test.peer
			request.Header.Set("X-Forwarded-For", test.said)
			f.ServeHTTP(httptest.NewRecorder(), request)
			if got := <-seen; got != test.want {
				t.Errorf("the node is told %q, want %q", got, test.want)
			}
		})
	}
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	n := (&node{}).start(t)
	f := inFront(t, policy.Policy{Limits: policy.Limits{ConnectionsPerAddress: 2}}, n.URL)
	address := strings.TrimPrefix(f.URL, "http://")
	dial := func() net.Conn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	kept := []net.Conn{dial(), dial()}
	for _, conn := range kept {
		_, _ = io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatalf("a connection within the limit: %v", err)
		}
	}
	refused := dial()
	_ = refused.SetReadDeadline(time.Now().Add(testTimeMax))
	if count, err := refused.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the one too many read %d bytes, %v, want to be closed", count, err)
	}
	_ = kept[0].Close()
	// As soon as the server has noticed, there is room again.
	deadline := time.Now().Add(testTimeMax)
	for {
		conn := dial()
		_, _ = io.WriteString(conn, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
		_ = conn.SetReadDeadline(time.Now().Add(testTimeMax))
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no room for another connection")
		}
	}
}

func TestAClientThatDoesNotReadItsStreamIsCut(t *testing.T) {
	ended := make(chan error, 1)
	n := (&node{watch: func(ctx context.Context, _ *orderv1.WatchOrderRequest, s *connect.ServerStream[orderv1.WatchOrderResponse]) error {
		message := &orderv1.WatchOrderResponse{Order: &orderv1.Order{Note: strings.Repeat("x", 10_000)}}
		for {
			if err := s.Send(message); err != nil {
				ended <- err
				return err
			}
			if ctx.Err() != nil {
				ended <- ctx.Err()
				return ctx.Err()
			}
		}
	}}).start(t)
	f := inFront(t, policy.Policy{Limits: policy.Limits{StreamWriteTime: 100 * time.Millisecond}}, n.URL)
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(f.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := "\x00\x00\x00\x00\x02{}"
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n%s",
		orderv1connect.OrderServiceWatchOrderProcedure, len(body), body)
	select {
	case <-ended:
	case <-time.After(testTimeMax):
		t.Error("the stream goes on, though nobody reads it")
	}
}

func TestCallsOfANodeInThisProcessAreAsOverASocket(t *testing.T) {
	n := &node{
		get: func(ctx context.Context, r *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
			switch r.GetOrderId() {
			case "panic":
				panic("bug")
			case "missing":
				return nil, connect.NewError(connect.CodeNotFound, errors.New("no"))
			}
			info, _ := connect.CallInfoForHandlerContext(ctx)
			info.ResponseTrailer().Set("X-Trailer", "t")
			return &orderv1.GetOrderResponse{Order: &orderv1.Order{Note: strings.Repeat("x", 300_000)}}, nil
		},
		watch: func(ctx context.Context, r *orderv1.WatchOrderRequest, s *connect.ServerStream[orderv1.WatchOrderResponse]) error {
			for i := range 3 {
				if err := s.Send(&orderv1.WatchOrderResponse{Freshness: &typev1.Freshness{LagCommits: uint64(i)}}); err != nil {
					return err
				}
			}
			switch r.GetOrderId() {
			case "panic":
				panic("bug")
			case "fail":
				return connect.NewError(connect.CodeAborted, errors.New("no"))
			}
			<-ctx.Done()
			return ctx.Err()
		},
	}
	f := serveGateway(t, gateway.Options{Local: n.handler(), LocalID: "local", Logger: slog.New(slog.DiscardHandler)})
	eachSpeech(t, func(t *testing.T, speech string) {
		client := orders(t, f.URL, speech)
		ctx, info := connect.NewClientContext(t.Context())
		response, err := client.GetOrder(ctx, &orderv1.GetOrderRequest{})
		if err != nil || len(response.GetOrder().GetNote()) != 300_000 || info.ResponseTrailer().Get("X-Trailer") != "t" {
			t.Fatalf("got %v, trailer %v", err, info.ResponseTrailer())
		}
		for id, code := range map[string]connect.Code{"missing": connect.CodeNotFound, "panic": connect.CodeUnavailable} {
			if _, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: id}); connect.CodeOf(err) != code {
				t.Errorf("%s: got %v, want %v", id, err, code)
			}
		}
		if speech == "connect GET" {
			return
		}
		for id, code := range map[string]connect.Code{"fail": connect.CodeAborted, "panic": connect.CodeUnavailable, "": connect.CodeCanceled} {
			ctx, cancel := context.WithCancel(t.Context())
			stream, err := client.WatchOrder(ctx, &orderv1.WatchOrderRequest{OrderId: id})
			if err != nil {
				t.Fatal(err)
			}
			messages := 0
			for messages < 3 && stream.Receive() {
				if got := stream.Msg().GetFreshness().GetLagCommits(); got != uint64(messages) {
					t.Errorf("%q: message %d says %d", id, messages, got)
				}
				messages++
			}
			if id == "" {
				cancel()
			}
			if stream.Receive() || messages != 3 || connect.CodeOf(stream.Err()) != code {
				t.Errorf("%q: got %d messages and %v, want 3 and %v", id, messages, stream.Err(), code)
			}
			_ = stream.Close()
			cancel()
		}
	})
}

func TestAPolicyIsAppliedWhileCallsGoOn(t *testing.T) {
	n := (&node{}).start(t)
	f := inFront(t, policy.Policy{}, n.URL)
	var wait sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		client := orders(t, f.URL, "connect")
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{}); err != nil {
					t.Errorf("a call while the policy changes: %v", err)
					return
				}
			}
		})
	}
	for round := range 50 {
		if err := f.Apply(policy.Policy{Deadlines: policy.Deadlines{Default: time.Duration(round+1) * 100 * time.Millisecond}, CORS: policy.CORS{Origins: []string{"https://shop.example"}}}); err != nil {
			t.Error(err)
		}
	}
	if err := f.Apply(policy.Policy{CORS: policy.CORS{Origins: []string{"*"}}}); err == nil {
		t.Error("a bad policy was applied")
	}
	close(stop)
	wait.Wait()
}

func TestWhatIsCompressedPassesAsItIs(t *testing.T) {
	body := bytes.Repeat([]byte{0x1f, 0x8b, 7}, 100)
	upstream := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.Header["Accept-Encoding"]; len(got) != 1 || got[0] != "br" {
			t.Errorf("the node is asked for %q, want br alone", got)
		}
		sent, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(sent, body) || r.Header.Get("Content-Encoding") != "gzip" {
			t.Errorf("the node got %d bytes, %q, %v", len(sent), r.Header.Get("Content-Encoding"), err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "br")
		_, _ = w.Write(body)
	}))
	f := inFront(t, policy.Policy{}, upstream.URL)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.URL+orderv1connect.OrderServiceGetOrderProcedure, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}, "Accept-Encoding": {"br"}}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(got, body) || response.Header.Get("Content-Encoding") != "br" {
		t.Errorf("got %d bytes, %q, %v", len(got), response.Header.Get("Content-Encoding"), err)
	}
}

func TestUpstreamsThatAreNoneAreRefused(t *testing.T) {
	for _, text := range []string{"", "127.0.0.1:8080", "ftp://127.0.0.1", "http://127.0.0.1/path", "http://user@127.0.0.1", "http://127.0.0.1?x=1"} {
		base, err := url.Parse(text)
		if err != nil {
			continue
		}
		if _, err := gateway.New(gateway.Options{Upstreams: []*url.URL{base}}); err == nil {
			t.Errorf("%q is taken as an upstream", text)
		}
	}
	if _, err := gateway.New(gateway.Options{}); err == nil {
		t.Error("a gateway in front of nothing was made")
	}
}

// A hedged call passes over HTTP/2 on both sides, with TLS and without, and who lost is told.
func TestASlowNodeIsHedgedOverHTTP2(t *testing.T) {
	var armed atomic.Bool
	var arrived atomic.Int64
	lost := make(chan error, 1)
	get := func(ctx context.Context, _ *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
		if armed.Load() && arrived.Add(1) == 1 {
			<-ctx.Done() // Whichever node is asked first hangs.
			lost <- ctx.Err()
			return nil, ctx.Err()
		}
		return &orderv1.GetOrderResponse{Order: &orderv1.Order{Note: strconv.FormatInt(arrived.Load(), 10)}}, nil
	}
	nodes := []*node{(&node{get: get}).start(t), (&node{get: get}).start(t)}
	f := inFront(t, policy.Policy{
		Methods: map[string]policy.Method{getOrder: {Fault: &fault.Config{Mode: fault.Hedging}}}, Retry: retry.Config{PerSecond: 1000},
	}, nodes[0].URL, nodes[1].URL)
	secure := httptest.NewUnstartedServer(f.Gateway)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(secure.Close)
	secure.Client().Timeout = testTimeMax
	for name, client := range map[string]orderv1connect.OrderServiceClient{
		"h2c": orders(t, f.URL, "gRPC"),
		"h2":  orderv1connect.NewOrderServiceClient(secure.Client(), secure.URL, connect.WithGRPC()),
	} {
		t.Run(name, func(t *testing.T) {
			armed.Store(false)
			for range 200 { // So that the gateway knows how long most take.
				if _, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{}); err != nil {
					t.Fatal(err)
				}
			}
			arrived.Store(0)
			armed.Store(true)
			got, err := client.GetOrder(t.Context(), &orderv1.GetOrderRequest{})
			if err != nil || got.GetOrder().GetNote() != "2" {
				t.Fatalf("got %v, %v, want the answer of the second attempt", got, err)
			}
			if err := <-lost; !errors.Is(err, context.Canceled) {
				t.Errorf("who lost was told %v", err)
			}
		})
	}
}

// A stream that the limits refuse ends as its protocol ends streams, with what a client needs to come again.
func TestAStreamThatIsNotAdmittedEndsInProtocol(t *testing.T) {
	n := (&node{}).start(t)
	f := inFront(t, policy.Policy{Methods: map[string]policy.Method{
		"weir.order.v1.OrderService/WatchOrder": {User: &limit.Rate{PerSecond: 0.01, Burst: 1}},
	}}, n.URL)
	contentTypes := map[string]string{"connect": "application/connect+proto", "connect JSON": "application/connect+json", "gRPC": "application/grpc", "gRPC-Web": "application/grpc-web"}
	eachSpeech(t, func(t *testing.T, speech string) {
		if speech == "connect GET" {
			return // There are no such streams.
		}
		watch := func() (*connect.ServerStreamForClient[orderv1.WatchOrderResponse], error) {
			ctx := with(t, "Authorization", "Bearer "+tokenOf("user of "+speech))
			stream, err := orders(t, f.URL, speech).WatchOrder(ctx, &orderv1.WatchOrderRequest{})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = stream.Close() }()
			for stream.Receive() {
				t.Errorf("received %v", stream.Msg())
			}
			return stream, stream.Err()
		}
		if _, err := watch(); err != nil {
			t.Fatalf("the first stream: %v", err)
		}
		before := n.calls.Load()
		stream, err := watch()
		if err == nil {
			t.Fatal("the second stream is let through")
		}
		if code, reason, after := details(t, err); code != connect.CodeResourceExhausted || reason != "RATE_LIMITED" || after <= 0 {
			t.Errorf("the end says %v, %q, come again in %s", code, reason, after)
		}
		if got := stream.ResponseHeader().Get("Content-Type"); !strings.HasPrefix(got, contentTypes[speech]) {
			t.Errorf("the end comes as %q, want %s", got, contentTypes[speech])
		}
		if n.calls.Load() != before {
			t.Error("a node was asked")
		}
	})
}
