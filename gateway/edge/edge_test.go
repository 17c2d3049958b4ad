package edge

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A shop is what stands behind the edge.
type shop struct {
	orderv1connect.UnimplementedOrderServiceHandler
	calls atomic.Int64
	fails atomic.Pointer[connect.Error]
	note  atomic.Pointer[string]
}

func (s *shop) GetOrder(_ context.Context, request *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	calls := s.calls.Add(1)
	if err := s.fails.Load(); err != nil {
		return nil, err
	}
	order := &orderv1.Order{OrderId: request.GetOrderId(), Note: strconv.FormatInt(calls, 10)}
	if note := s.note.Load(); note != nil {
		order.Note = *note
	}
	return &orderv1.GetOrderResponse{Order: order}, nil
}

// A side is an edge in front of a shop, with a server.
type side struct {
	t    *testing.T
	shop *shop
	edge *Edge
	url  string
	http *http.Client
}

func newSide(t *testing.T, config Config) *side {
	t.Helper()
	s := &side{t: t, shop: &shop{}}
	var err error
	if s.edge, err = New(Options{}); err != nil {
		t.Fatal(err)
	}
	if err := s.edge.Apply(config); err != nil {
		t.Fatal(err)
	}
	_, node := orderv1connect.NewOrderServiceHandler(s.shop)
	upstream := serve(t, node)
	base, _ := url.Parse(upstream)
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	s.url = serve(t, s.edge.Wrap(&httputil.ReverseProxy{
		Rewrite:   func(pr *httputil.ProxyRequest) { pr.SetURL(base) },
		Transport: transport,
	}))
	s.http = &http.Client{Transport: transport}
	return s
}

func serve(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server.URL
}

// protocols are the ways in which a client may speak.
var protocols = map[string][]connect.ClientOption{
	"connect": nil, "connect json": {connect.WithProtoJSON()}, "connect get": {connect.WithHTTPGet()},
	"grpc": {connect.WithGRPC()}, "grpc-web": {connect.WithGRPCWeb()},
}

// get asks for an order as a user.
func (s *side) get(user, order string, min *typev1.Revision, options ...connect.ClientOption) (*orderv1.GetOrderResponse, http.Header, error) {
	client := orderv1connect.NewOrderServiceClient(s.http, s.url, options...)
	ctx, call := connect.NewClientContext(s.t.Context())
	call.RequestHeader().Set("Authorization", "Bearer "+user)
	response, err := client.GetOrder(ctx, &orderv1.GetOrderRequest{OrderId: order, MinRevision: min})
	header := call.ResponseHeader()
	if connectErr := new(connect.Error); errors.As(err, &connectErr) {
		header = connectErr.Meta()
	}
	return response, header, err
}

const getOrder = orderv1connect.OrderServiceGetOrderProcedure

func unavailable() *connect.Error {
	return connect.NewError(connect.CodeUnavailable, errors.New("down"))
}

func TestWhatIsOffIsRefusedInEveryProtocolAndAllElsePasses(t *testing.T) {
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			s := newSide(t, Config{Off: map[string]Off{getOrder: {Message: "not today", RetryAfter: 90 * time.Second}}})
			_, header, err := s.get("alice", "1", nil, options...)
			var connectErr *connect.Error
			if !errors.As(err, &connectErr) || connectErr.Code() != connect.CodeUnavailable || connectErr.Message() != "not today" {
				t.Fatalf("error = %v, want UNAVAILABLE: not today", err)
			}
			if got := header.Get(HeaderEdge); got != "off" {
				t.Errorf("%s = %q, want off", HeaderEdge, got)
			}
			var info *errdetails.ErrorInfo
			var retry *errdetails.RetryInfo
			for _, detail := range connectErr.Details() {
				switch value, _ := detail.Value(); value := value.(type) {
				case *errdetails.ErrorInfo:
					info = value
				case *errdetails.RetryInfo:
					retry = value
				}
			}
			if info.GetReason() != ReasonFeatureOff || retry.GetRetryDelay().AsDuration() != 90*time.Second {
				t.Errorf("details: %v, %v", info, retry)
			}
			if s.shop.calls.Load() != 0 {
				t.Error("the node was called")
			}
			if err := s.edge.Apply(Config{Off: map[string]Off{"/weir.points.v1.PointsService/": {}}}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.get("alice", "1", nil, options...); err != nil {
				t.Errorf("after it was turned on: %v", err)
			}
			if err := s.edge.Apply(Config{Off: map[string]Off{"/weir.order.v1.OrderService/": {Code: connect.CodeUnimplemented}}}); err != nil {
				t.Fatal(err)
			}
			if _, _, err := s.get("alice", "1", nil, options...); connect.CodeOf(err) != connect.CodeUnimplemented {
				t.Errorf("error of a service that is off = %v, want UNIMPLEMENTED", err)
			}
		})
	}
}

func TestAReadIsAnsweredFromMemoryWhenUpstreamsFail(t *testing.T) {
	for name, options := range protocols {
		t.Run(name, func(t *testing.T) {
			s := newSide(t, Config{Stale: map[string]Stale{getOrder: {}}})
			fresh, header, err := s.get("alice", "1", nil, options...)
			if err != nil || header.Get(HeaderEdge) != "" {
				t.Fatalf("the first answer: %v, %s = %q", err, HeaderEdge, header.Get(HeaderEdge))
			}
			for _, fail := range []*connect.Error{unavailable(), connect.NewError(connect.CodeResourceExhausted, errors.New("busy")), connect.NewError(connect.CodeInternal, errors.New("bug"))} {
				s.shop.fails.Store(fail)
				stale, header, err := s.get("alice", "1", nil, options...)
				if err != nil || stale.GetOrder().GetNote() != fresh.GetOrder().GetNote() {
					t.Fatalf("while nodes fail with %s: %v, %v", fail.Code(), stale, err)
				}
				if !strings.HasPrefix(header.Get(HeaderEdge), "stale") || header.Get("Age") == "" {
					t.Errorf("an old answer is not marked: %v", header)
				}
			}
			s.shop.fails.Store(unavailable())
			if _, _, err := s.get("mallory", "1", nil, options...); connect.CodeOf(err) != connect.CodeUnavailable {
				t.Errorf("another user got %v, want the failure", err)
			}
			if _, _, err := s.get("alice", "2", nil, options...); connect.CodeOf(err) != connect.CodeUnavailable {
				t.Errorf("another request got %v, want the failure", err)
			}
			if _, _, err := s.get("alice", "1", &typev1.Revision{Lane: 1, Commit: 7}, options...); connect.CodeOf(err) != connect.CodeUnavailable {
				t.Errorf("a request for a revision that the answer may not have got %v, want the failure", err)
			}
			// Business answers are answers.
			s.shop.fails.Store(connect.NewError(connect.CodeNotFound, errors.New("no such order")))
			if _, _, err := s.get("alice", "1", nil, options...); connect.CodeOf(err) != connect.CodeNotFound {
				t.Errorf("got %v, want NOT_FOUND", err)
			}
			s.shop.fails.Store(nil)
			now, header, err := s.get("alice", "1", nil, options...)
			if err != nil || now.GetOrder().GetNote() == fresh.GetOrder().GetNote() || header.Get(HeaderEdge) != "" {
				t.Errorf("after the failures: %v, %v, %v", now, header, err)
			}
		})
	}
}

func TestAnAnswerThatIsTooOldOrTooLargeIsNotGivenAgain(t *testing.T) {
	s := newSide(t, Config{Stale: map[string]Stale{getOrder: {MaxAge: time.Nanosecond}}})
	if _, _, err := s.get("alice", "1", nil); err != nil {
		t.Fatal(err)
	}
	s.shop.fails.Store(unavailable())
	if _, _, err := s.get("alice", "1", nil); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("got %v, want the failure", err)
	}
	s.shop.fails.Store(nil)
	if err := s.edge.Apply(Config{Stale: map[string]Stale{getOrder: {}}}); err != nil {
		t.Fatal(err)
	}
	long := hex.EncodeToString(incompressible(2 * staleAnswerMax))
	s.shop.note.Store(&long)
	if response, _, err := s.get("alice", "3", nil); err != nil || response.GetOrder().GetNote() != long {
		t.Fatalf("a large answer: %d bytes, %v", len(response.GetOrder().GetNote()), err)
	}
	s.shop.fails.Store(unavailable())
	if _, _, err := s.get("alice", "3", nil); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("got %v, want the failure", err)
	}
}

// incompressible returns so many bytes that no codec makes fewer.
func incompressible(count int) []byte {
	data := make([]byte, count)
	_, _ = rand.NewChaCha8([32]byte{}).Read(data)
	return data
}

func TestAPlanAnswersFromMemoryAndOneCallerMakesItNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := New(Options{})
		if err := e.Apply(Config{Stale: map[string]Stale{getOrder: {Always: true, RefreshAfter: time.Second}}}); err != nil {
			t.Fatal(err)
		}
		calls := 0
		release := make(chan struct{})
		handler := e.Wrap(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			calls++
			if calls > 1 {
				<-release
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, strconv.Itoa(calls))
		}))
		ask := func() (string, http.Header) {
			request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, getOrder, strings.NewReader("{}"))
			request.Header.Set("Content-Type", "application/json")
			recorder := httptest.NewRecorder()
			handler.ServeHTTP(recorder, request)
			return recorder.Body.String(), recorder.Header()
		}
		if body, _ := ask(); body != "1" {
			t.Fatalf("body = %s", body)
		}
		for range 10 {
			if body, header := ask(); body != "1" || header.Get(HeaderEdge) != "stale; plan" {
				t.Fatalf("body = %s, %v", body, header)
			}
		}
		<-time.After(2 * time.Second)
		renewed := make(chan string)
		go func() {
			body, _ := ask()
			renewed <- body
		}()
		synctest.Wait()
		for range 10 { // Others do not wait for who makes it new.
			if body, header := ask(); body != "1" || header.Get("Age") != "2" {
				t.Fatalf("body = %s, %v", body, header)
			}
		}
		close(release)
		if body := <-renewed; body != "2" {
			t.Errorf("who was sent on got %s", body)
		}
		if body, _ := ask(); body != "2" || calls != 2 {
			t.Errorf("body = %s after %d calls", body, calls)
		}
	})
}

func TestOnlyReadsMayBeStale(t *testing.T) {
	for procedure, problem := range map[string]string{
		orderv1connect.OrderServicePlaceOrderProcedure: "no read",
		orderv1connect.OrderServiceWatchOrderProcedure: "stream",
		"/weir.order.v1.OrderService/Nothing":          "no such method",
		"GetOrder":                                     "want /PACKAGE",
		// It was taken, and no call was ever one of it.
		getOrder[1:]: "want /PACKAGE",
	} {
		err := Config{Stale: map[string]Stale{procedure: {}}}.Validate()
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("%s: error = %v, want %q", procedure, err, problem)
		}
	}
	for problem, config := range map[string]Config{
		"max_age":       {Stale: map[string]Stale{getOrder: {MaxAge: -1}}},
		"refresh_after": {Stale: map[string]Stale{getOrder: {RefreshAfter: -1}}},
		"want /PACKAGE": {Off: map[string]Off{"GetOrder": {}}},
		"retry_after":   {Off: map[string]Off{getOrder: {RetryAfter: -1}}},
		"no code":       {Off: map[string]Off{getOrder: {Code: 99}}},
	} {
		// The policy, and whoever applies it, says that it is of the edge.
		if err := config.Validate(); err == nil || !strings.Contains(err.Error(), problem) || strings.HasPrefix(err.Error(), "edge:") {
			t.Errorf("%s: error = %v", problem, err)
		}
	}
	e, _ := New(Options{})
	if err := e.Apply(Config{SoldOut: true}); err == nil || !strings.Contains(err.Error(), "board") {
		t.Errorf("sold_out without a board: %v", err)
	}
}

func TestABodyThatIsTooLargeToLookIntoIsPassedOnWhole(t *testing.T) {
	e, _ := New(Options{})
	if err := e.Apply(Config{Stale: map[string]Stale{getOrder: {}}}); err != nil {
		t.Fatal(err)
	}
	long := bytes.Repeat([]byte("0123456789"), requestBytesMax/5)
	for name, body := range map[string]io.Reader{
		"known length": bytes.NewReader(long), "unknown length": io.MultiReader(bytes.NewReader(long)),
	} {
		t.Run(name, func(t *testing.T) {
			request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, getOrder, body)
			e.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, long) {
					t.Errorf("%d bytes, %v; want all %d", len(got), err, len(long))
				}
			})).ServeHTTP(httptest.NewRecorder(), request)
		})
	}
	broken := errors.New("broken")
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, getOrder, io.MultiReader(strings.NewReader("begin"), failingReader{broken}))
	e.Wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if got, err := io.ReadAll(r.Body); string(got) != "begin" || !errors.Is(err, broken) {
			t.Errorf("read %q, %v", got, err)
		}
	})).ServeHTTP(httptest.NewRecorder(), request)
}

func TestAnOrderWaitsForItsTurnAndWhatCannotBeReadIsNoWayAround(t *testing.T) {
	const placeOrder = orderv1connect.OrderServicePlaceOrderProcedure
	asked := ""
	e, err := New(Options{
		User: func(*http.Request) string { return "alice" },
		Room: func(_ *http.Request, user string, order *orderv1.PlaceOrderRequest) (func(connect.Code), *connect.Error) {
			asked = user + " in " + order.GetCampaignId()
			if order.GetCampaignId() == "open" {
				return func(code connect.Code) { asked += ", ended with " + codeText(code) }, nil
			}
			return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("wait"))
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	passed := false
	handler := e.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed = true }))
	for name, c := range map[string]struct {
		contentType, encoding, body string
		passes                      bool
		asked                       string
	}{
		"no campaign":        {"application/json", "", `{"requestId":"r"}`, true, ""},
		"its turn":           {"application/json", "", `{"campaignId":"open"}`, true, "alice in open, ended with ok"},
		"not its turn":       {"application/json", "", `{"campaignId":"spring"}`, false, "alice in spring"},
		"the proto name":     {"application/json; charset=utf-8", "", `{"campaign_id":"spring"}`, false, "alice in spring"},
		"for another":        {"application/json", "", `{"campaignId":"spring","userId":"bob"}`, false, "bob in spring"},
		"protobuf":           {"application/proto", "", "\x32\x06spring", false, "alice in spring"},
		"gRPC":               {"application/grpc", "", "\x00\x00\x00\x00\x08\x32\x06spring", false, "alice in spring"},
		"two messages":       {"application/grpc", "", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x08\x32\x06spring", false, ""},
		"another encoding":   {"application/json", "zstd", `{"campaignId":"spring"}`, false, ""},
		"no gzip":            {"application/json", "gzip", `{"campaignId":"spring"}`, false, ""},
		"no JSON":            {"application/json", "", `{"campaignId":"spring"`, false, ""},
		"another media type": {"text/plain", "", `{"campaignId":"spring"}`, false, ""},
		"far too large":      {"application/json", "", strings.Repeat(" ", requestBytesMax+1) + `{"campaignId":"spring"}`, false, ""},
	} {
		request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, placeOrder, strings.NewReader(c.body))
		request.Header.Set("Content-Type", c.contentType)
		if c.encoding != "" {
			request.Header.Set("Content-Encoding", c.encoding)
		}
		passed, asked = false, ""
		handler.ServeHTTP(httptest.NewRecorder(), request)
		if passed != c.passes || asked != c.asked {
			t.Errorf("%s: passed = %t, asked %q; want %t, %q", name, passed, asked, c.passes, c.asked)
		}
	}
}

func codeText(code connect.Code) string {
	if code == 0 {
		return "ok"
	}
	return code.String()
}

// A crowd is so many callers who ask the very same at once, of an edge that answers from memory.
type crowd struct {
	edge    *Edge
	handler http.Handler
	calls   atomic.Int64
	waiting sync.WaitGroup
	answers chan *httptest.ResponseRecorder
}

func newCrowd(t *testing.T, upstream http.HandlerFunc) *crowd {
	t.Helper()
	c := &crowd{answers: make(chan *httptest.ResponseRecorder, crowdSize+1)}
	c.edge, _ = New(Options{})
	if err := c.edge.Apply(Config{Stale: map[string]Stale{getOrder: {Always: true}}}); err != nil {
		t.Fatal(err)
	}
	c.handler = c.edge.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.calls.Add(1)
		w.Header().Set("Content-Type", "application/json")
		upstream(w, r)
	}))
	return c
}

const crowdSize = 10_000

func (c *crowd) ask(ctx context.Context, user string, count int) {
	for range count {
		c.waiting.Go(func() {
			request := httptest.NewRequestWithContext(ctx, http.MethodPost, getOrder, strings.NewReader("{}"))
			request.Header.Set("Content-Type", "application/json")
			request.Header.Set("Authorization", user)
			recorder := httptest.NewRecorder()
			c.handler.ServeHTTP(recorder, request)
			c.answers <- recorder
		})
	}
}

// end waits for everybody, and checks what each got, and how often upstreams were asked.
func (c *crowd) end(t *testing.T, status int, body string, calls int64) {
	t.Helper()
	c.waiting.Wait()
	close(c.answers)
	for got := range c.answers {
		if got.Code != status || got.Body.String() != body {
			t.Fatalf("somebody got %d %.40q, want %d %.40q", got.Code, got.Body, status, body)
		}
	}
	if got := c.calls.Load(); got != calls {
		t.Errorf("upstreams were asked %d times, want %d", got, calls)
	}
}

func TestOfManyWhoAskTheSameAtOnceOneAsksUpstreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, func(w http.ResponseWriter, r *http.Request) {
			<-time.After(time.Second)
			_, _ = io.WriteString(w, "for "+r.Header.Get("Authorization"))
		})
		c.ask(t.Context(), "alice", crowdSize)
		synctest.Wait()
		other := httptest.NewRequestWithContext(t.Context(), http.MethodPost, getOrder, strings.NewReader("{}"))
		other.Header.Set("Content-Type", "application/json")
		other.Header.Set("Authorization", "bob")
		recorder := httptest.NewRecorder()
		c.handler.ServeHTTP(recorder, other)
		if got := recorder.Body.String(); got != "for bob" {
			t.Errorf("bob got %q", got)
		}
		c.end(t, http.StatusOK, "for alice", 2) // hers and his
	})
}

func TestACallerWhoLeavesFailsNobodyWhoWaitedForItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(time.Second):
				_, _ = io.WriteString(w, "1")
			case <-r.Context().Done():
				w.WriteHeader(499)
			}
		})
		leaving, leave := context.WithCancel(t.Context())
		c.ask(leaving, "alice", 1)
		synctest.Wait()
		c.ask(t.Context(), "alice", crowdSize)
		synctest.Wait()
		leave()
		synctest.Wait()
		if got := <-c.answers; got.Code != 499 {
			t.Errorf("who left got %d", got.Code)
		}
		c.end(t, http.StatusOK, "1", 2)
	})
}

func TestWhoWaitsForAnothersAnswerLeavesWhenItLikes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Context().Err() == nil {
				<-time.After(time.Second)
			}
			_, _ = io.WriteString(w, strconv.FormatBool(r.Context().Err() == nil))
		})
		c.ask(t.Context(), "alice", 1)
		synctest.Wait()
		impatient, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		c.ask(impatient, "alice", 1)
		if got := <-c.answers; got.Body.String() != "false" {
			t.Errorf("who had no time got %q", got.Body)
		}
		c.end(t, http.StatusOK, "true", 2)
	})
}

func TestAFaultIsToldAllWhoWaitedAndWhatIsTooLargeEachAsksFor(t *testing.T) {
	large := string(incompressible(staleAnswerMax + 1))
	for name, of := range map[string]struct {
		status int
		body   string
		size   int
		calls  int64
	}{
		"a fault":                   {http.StatusServiceUnavailable, "{}", crowdSize, 1},
		"what is too large to hold": {http.StatusOK, large, 20, 20},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, func(w http.ResponseWriter, _ *http.Request) {
					<-time.After(time.Second)
					w.WriteHeader(of.status)
					_, _ = io.WriteString(w, of.body)
				})
				c.ask(t.Context(), "alice", of.size)
				c.end(t, of.status, of.body, of.calls)
			})
		})
	}
}
