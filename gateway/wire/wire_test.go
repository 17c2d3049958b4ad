package wire

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"pgregory.net/rapid"
)

const procedure = "/weir.test.v1.Service/Method"

func TestTheProtocolIsThatOfTheRequest(t *testing.T) {
	for _, test := range []struct {
		method, target, contentType string
		want                        Protocol
	}{
		{"POST", procedure, "application/json", ConnectUnary},
		{"POST", procedure, "application/proto", ConnectUnary},
		{"POST", procedure, "Application/JSON; charset=utf-8", ConnectUnary},
		{"POST", procedure, "application/connect+proto", ConnectStream},
		{"POST", procedure, "application/grpc", GRPC},
		{"POST", procedure, "application/grpc+proto", GRPC},
		{"POST", procedure, "application/grpc-web", GRPCWeb},
		{"POST", procedure, "application/grpc-web+json", GRPCWeb},
		{"POST", procedure, "application/grpc-web-text", Plain},
		{"POST", procedure, "text/plain", Plain},
		{"POST", procedure, "", Plain},
		{"POST", "/webhooks/payments/sandbox", "application/json", Plain},
		{"POST", "/weir.test.v1.Service/Method/more", "application/json", Plain},
		{"POST", "/", "application/json", Plain},
		{"GET", procedure + "?connect=v1&encoding=json&message=%7B%7D", "", ConnectGet},
		{"GET", procedure + "?encoding=json&message=", "", ConnectGet},
		{"GET", procedure, "", Plain},
		{"GET", "/healthz?message=1", "", Plain},
		{"PUT", procedure, "application/json", Plain},
		{"OPTIONS", procedure, "", Plain},
	} {
		request := httptest.NewRequestWithContext(t.Context(), test.method, test.target, http.NoBody)
		if test.contentType != "" {
			request.Header.Set("Content-Type", test.contentType)
		}
		if got := Detect(request); got != test.want {
			t.Errorf("%s %s %q: got %v, want %v", test.method, test.target, test.contentType, got, test.want)
		}
	}
}

func TestTimeoutsAreReadAsStrictlyAsTheProtocolsSay(t *testing.T) {
	const bad = -1
	for _, test := range []struct {
		protocol Protocol
		text     string
		want     time.Duration
	}{
		{ConnectUnary, "0", 0},
		{ConnectUnary, "1500", 1500 * time.Millisecond},
		{ConnectUnary, "9999999999", 9999999999 * time.Millisecond},
		{ConnectUnary, "99999999999", bad},
		{ConnectStream, "-1", bad},
		{ConnectStream, "+1", bad},
		{ConnectGet, "1.5", bad},
		{ConnectUnary, "1s", bad},
		{ConnectUnary, "abc", bad},
		{GRPC, "1H", time.Hour},
		{GRPC, "2M", 2 * time.Minute},
		{GRPC, "3S", 3 * time.Second},
		{GRPC, "4m", 4 * time.Millisecond},
		{GRPC, "5u", 5 * time.Microsecond},
		{GRPCWeb, "6n", 6},
		{GRPC, "99999999H", 1<<63 - 1}, // Longer than a duration can be.
		{GRPC, "999999999S", bad},
		{GRPC, "1", bad},
		{GRPC, "S", bad},
		{GRPC, "1x", bad},
		{GRPC, "-1S", bad},
	} {
		got, given, err := test.protocol.Timeout(http.Header{test.protocol.timeoutHeader(): {test.text}})
		if test.want == bad {
			if !errors.Is(err, ErrTimeout) || given {
				t.Errorf("%v %q: got %s, given %t, %v, want ErrTimeout", test.protocol, test.text, got, given, err)
			}
			continue
		}
		if err != nil || !given || got != test.want {
			t.Errorf("%v %q: got %s, given %t, %v, want %s", test.protocol, test.text, got, given, err, test.want)
		}
	}
	for _, p := range []Protocol{ConnectUnary, GRPC} {
		for _, header := range []http.Header{{}, {p.timeoutHeader(): {""}}} {
			if _, given, err := p.Timeout(header); given || err != nil {
				t.Errorf("%v %v: given %t, %v, want neither", p, header, given, err)
			}
		}
	}
}

func TestATimeoutThatIsForwardedIsNotLongerThanWhatIsLeft(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom([]Protocol{ConnectUnary, ConnectStream, GRPC, GRPCWeb}).Draw(t, "protocol")
		left := time.Duration(rapid.Int64Range(0, int64(24*time.Hour)).Draw(t, "left"))
		header := http.Header{}
		p.SetTimeout(header, left)
		got, given, err := p.Timeout(header)
		if err != nil || !given {
			t.Fatalf("%v: %q cannot be read back: %v", p, header, err)
		}
		least := time.Millisecond
		if p == GRPC || p == GRPCWeb {
			least = time.Microsecond
		}
		if got > max(left, least) || left-got > max(least, left/10, time.Millisecond) {
			t.Fatalf("%v: of %s left %s is forwarded (%q)", p, left, got, header)
		}
	})
}

// protocols are the ways in which a client of Connect's library calls.
var protocols = []struct {
	protocol Protocol
	options  []connect.ClientOption
	stream   bool
}{
	{ConnectUnary, nil, false},
	{ConnectUnary, []connect.ClientOption{connect.WithProtoJSON()}, false},
	{ConnectGet, []connect.ClientOption{connect.WithHTTPGet(), connect.WithIdempotency(connect.IdempotencyNoSideEffects)}, false},
	{ConnectStream, nil, true},
	{GRPC, []connect.ClientOption{connect.WithGRPC()}, false},
	{GRPC, []connect.ClientOption{connect.WithGRPC()}, true},
	{GRPCWeb, []connect.ClientOption{connect.WithGRPCWeb()}, false},
	{GRPCWeb, []connect.ClientOption{connect.WithGRPCWeb()}, true},
}

// call calls a handler with a client of Connect's library and returns the messages that it got, and the error.
func call(t *testing.T, handler http.HandlerFunc, stream bool, options ...connect.ClientOption) (int, *connect.Error) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	client := connect.NewClient[emptypb.Empty, emptypb.Empty](server.Client(), server.URL+procedure, options...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var (
		err      error
		messages int
	)
	if stream {
		var replies *connect.ServerStreamForClient[emptypb.Empty]
		if replies, err = client.CallServerStream(ctx, connect.NewRequest(&emptypb.Empty{})); err == nil {
			for replies.Receive() {
				messages++
			}
			err = replies.Err()
			_ = replies.Close()
		}
	} else if _, err = client.CallUnary(ctx, connect.NewRequest(&emptypb.Empty{})); err == nil {
		messages = 1
	}
	if err == nil {
		return messages, nil
	}
	var told *connect.Error
	if !errors.As(err, &told) {
		t.Fatalf("got %v, want an error of the protocol", err)
	}
	return messages, told
}

func TestClientsOfEveryProtocolUnderstandARefusal(t *testing.T) {
	for _, test := range protocols {
		t.Run(fmt.Sprint(test.protocol, test.stream), func(t *testing.T) {
			_, err := call(t, func(w http.ResponseWriter, r *http.Request) {
				if got := Detect(r); got != test.protocol {
					t.Errorf("the request is %v, want %v", got, test.protocol)
				}
				refusal := connect.NewError(connect.CodeResourceExhausted, errors.New("come again 100% later: ü"))
				detail, err := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
				if err != nil {
					t.Error(err)
				}
				refusal.AddDetail(detail)
				refusal.Meta().Set("Retry-After", "3")
				if err := test.protocol.Refuse(w, r, refusal); err != nil {
					t.Error(err)
				}
			}, test.stream, test.options...)
			if err == nil || err.Code() != connect.CodeResourceExhausted || err.Message() != "come again 100% later: ü" {
				t.Fatalf("got %v, want resource_exhausted with the message", err)
			}
			if got := err.Meta().Get("Retry-After"); got != "3" {
				t.Errorf("Retry-After is %q, want 3", got)
			}
			if len(err.Details()) != 1 || err.Details()[0].Type() != "google.rpc.RetryInfo" {
				t.Errorf("details are %v, want one RetryInfo", err.Details())
			}
		})
	}
}

func TestAGRPCRefusalIsTrailersOnly(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := GRPC.Refuse(w, r, connect.NewError(connect.CodeUnavailable, errors.New("no"))); err != nil {
			t.Error(err)
		}
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+procedure, strings.NewReader("\x00\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/grpc+proto")
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || len(body) > 0 || len(response.Trailer) > 0 {
		t.Errorf("got body %q, trailers %v, %v, want neither", body, response.Trailer, err)
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("Grpc-Status") != "14" || response.Header.Get("Content-Type") != "application/grpc+proto" {
		t.Errorf("got HTTP %d, %v, want 200 with the status in the headers", response.StatusCode, response.Header)
	}
}

func TestPlainHTTPIsRefusedAsHTTP(t *testing.T) {
	w := httptest.NewRecorder()
	refusal := connect.NewError(connect.CodeUnavailable, errors.New("no node"))
	refusal.Meta().Set("Retry-After", "1")
	if err := Plain.Refuse(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhooks/x", http.NoBody), refusal); err != nil {
		t.Fatal(err)
	}
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" || w.Body.String() != "no node\n" {
		t.Errorf("got HTTP %d, %v, %q", w.Code, w.Header(), w.Body)
	}
}

func TestAnEmptyReplyIsASuccessInEveryProtocol(t *testing.T) {
	for _, test := range protocols {
		if test.stream {
			continue
		}
		t.Run(test.protocol.String(), func(t *testing.T) {
			if messages, err := call(t, func(w http.ResponseWriter, r *http.Request) {
				reply := EmptyReply(test.protocol, r)
				for key, values := range reply.Header {
					w.Header()[key] = values
				}
				w.WriteHeader(reply.StatusCode)
				_, _ = io.Copy(w, reply.Body)
				for key, values := range reply.Trailer {
					w.Header()[http.TrailerPrefix+key] = values
				}
			}, false, test.options...); err != nil || messages != 1 {
				t.Errorf("got %d messages, %v, want one", messages, err)
			}
		})
	}
}

// errCut is how the bodies of these tests break off.
var errCut = errors.New("cut")

// cutBody gives its text in pieces and then an error.
type cutBody struct {
	text   []byte
	pieces func() int
	err    error
	closed bool
}

func (b *cutBody) Read(p []byte) (int, error) {
	if len(b.text) == 0 {
		return 0, b.err
	}
	count := copy(p, b.text[:min(len(b.text), b.pieces())])
	b.text = b.text[count:]
	return count, nil
}

func (b *cutBody) Close() error { b.closed = true; return nil }

func TestAStreamThatBreaksOffEndsInProtocolAfterWholeMessages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom([]Protocol{ConnectStream, GRPC, GRPCWeb}).Draw(t, "protocol")
		var text []byte
		starts := []int{0} // Of messages, and the end.
		for range rapid.IntRange(0, 6).Draw(t, "messages") {
			size := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(frameHeldMax-20, frameHeldMax+20)).Draw(t, "size")
			text = append(text, envelope(0, strings.Repeat("m", size))...)
			starts = append(starts, len(text))
		}
		cut := rapid.IntRange(0, len(text)).Draw(t, "cut")
		body := &cutBody{text: text[:cut], err: errCut, pieces: func() int { return rapid.IntRange(1, 20_000).Draw(t, "piece") }}
		response := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body}
		reply := NewReply(p, response)
		var (
			ends   int
			code   connect.Code
			broken error
		)
		reply.Guard(func(error) *connect.Error { return connect.NewError(connect.CodeUnavailable, errors.New("gone: 1%")) }, func(c connect.Code, err error) {
			ends++
			code, broken = c, err
		})
		got, err := readAll(response.Body, 32<<10)
		if closeErr := response.Body.Close(); closeErr != nil || !body.closed {
			t.Fatalf("close: %v, closed %t", closeErr, body.closed)
		}
		if ends != 1 || !errors.Is(broken, errCut) {
			t.Fatalf("the end was told %d times, with %v, want once with the cause", ends, broken)
		}
		end, trailer := endOf(p, connect.NewError(connect.CodeUnavailable, errors.New("gone: 1%")))
		if errors.Is(err, errCut) {
			// Allowed only in the middle of a message that is too long to be held.
			for i := range len(starts) - 1 {
				if cut > starts[i] && cut < starts[i+1] && starts[i+1]-starts[i] <= frameHeldMax {
					t.Fatalf("cut at %d, in a message of %d bytes: reset, want an end", cut, starts[i+1]-starts[i])
				}
			}
			return
		}
		if err != nil {
			t.Fatalf("read: %v", err)
		}
		if code != connect.CodeUnavailable {
			t.Fatalf("ended with %v, want unavailable", code)
		}
		whole := 0
		for _, start := range starts {
			if start <= cut {
				whole = start
			}
		}
		if want := append(bytes.Clone(text[:whole]), end...); !bytes.Equal(got, want) {
			t.Fatalf("cut at %d: got %d bytes, want the %d of whole messages and an end of %d", cut, len(got), whole, len(end))
		}
		for key := range trailer {
			if response.Trailer.Get(key) != trailer.Get(key) {
				t.Fatalf("trailer %s is %q, want %q", key, response.Trailer.Get(key), trailer.Get(key))
			}
		}
	})
}

func TestAStreamThatEndsPassesAsItIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.SampledFrom([]Protocol{ConnectStream, GRPC, GRPCWeb}).Draw(t, "protocol")
		text := rapid.SliceOfN(rapid.Byte(), 0, 40_000).Draw(t, "bytes") // Whatever it is.
		body := &cutBody{text: text, err: io.EOF, pieces: func() int { return rapid.IntRange(1, 20_000).Draw(t, "piece") }}
		response := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body}
		ends := 0
		NewReply(p, response).Guard(func(error) *connect.Error { return connect.NewError(connect.CodeUnavailable, nil) }, func(_ connect.Code, broken error) {
			ends++
			if broken != nil {
				t.Fatalf("told that %v broke it", broken)
			}
		})
		got, err := readAll(response.Body, rapid.SampledFrom([]int{1, 3, 7, 512, 32 << 10}).Draw(t, "room"))
		if err != nil || ends != 1 || !bytes.Equal(got, text) {
			t.Fatalf("got %d of %d bytes, %d ends, %v", len(got), len(text), ends, err)
		}
	})
}

func readAll(r io.Reader, room int) (text []byte, err error) {
	p := make([]byte, room)
	for {
		count, err := r.Read(p)
		text = append(text, p[:count]...)
		if errors.Is(err, io.EOF) {
			return text, nil
		}
		if err != nil {
			return text, err
		}
	}
}

func TestACallerWhoLeavesAStreamIsNotTheServersFault(t *testing.T) {
	body := &cutBody{text: envelope(0, "m"), err: io.EOF, pieces: func() int { return 1 << 10 }}
	response := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body}
	var code connect.Code
	NewReply(GRPC, response).Guard(func(error) *connect.Error { return connect.NewError(connect.CodeUnavailable, nil) }, func(c connect.Code, _ error) { code = c })
	if err := response.Body.Close(); err != nil || code != connect.CodeCanceled || !body.closed {
		t.Errorf("got %v, %v, closed %t, want canceled", code, err, body.closed)
	}
}

func TestHowAUnaryCallEndedIsReadFromItsReply(t *testing.T) {
	grpcTrailer := func(status string) http.Header { return http.Header{"Grpc-Status": {status}} }
	for _, test := range []struct {
		name     string
		protocol Protocol
		status   int
		header   http.Header
		body     string
		trailer  http.Header
		want     connect.Code
	}{
		{"Connect success", ConnectUnary, 200, nil, "{}", nil, 0},
		{"Connect sold out", ConnectUnary, 400, nil, `{"code":"failed_precondition","message":"m"}`, nil, connect.CodeFailedPrecondition},
		{"Connect aborted", ConnectGet, 409, nil, `{"code":"aborted"}`, nil, connect.CodeAborted},
		{"Connect data loss", ConnectUnary, 500, nil, `{"code":"data_loss"}`, nil, connect.CodeDataLoss},
		{"a proxy's 502", ConnectUnary, 502, nil, "<html>", nil, connect.CodeUnavailable},
		{"a compressed error", ConnectUnary, 429, http.Header{"Content-Encoding": {"gzip"}}, "\x1f\x8b", nil, connect.CodeResourceExhausted},
		{"gRPC success", GRPC, 200, nil, string(envelope(0, "m")), grpcTrailer("0"), 0},
		{"gRPC trailers", GRPC, 200, nil, "", grpcTrailer("14"), connect.CodeUnavailable},
		{"gRPC trailers-only", GRPC, 200, http.Header{"Grpc-Status": {"8"}}, "", nil, connect.CodeResourceExhausted},
		{"gRPC without a status", GRPC, 200, nil, string(envelope(0, "m")), nil, connect.CodeInternal},
		{"gRPC nonsense", GRPC, 200, nil, "", grpcTrailer("ninety"), connect.CodeUnknown},
		{"gRPC behind a proxy", GRPC, 503, nil, "", nil, connect.CodeUnavailable},
		{"gRPC-Web success", GRPCWeb, 200, nil, string(envelope(0, "m")) + string(envelope(grpcWebEndFlag, "grpc-status: 0\r\n")), nil, 0},
		{"gRPC-Web error", GRPCWeb, 200, nil, string(envelope(grpcWebEndFlag, "grpc-message: x\r\nGrpc-Status: 9\r\n")), nil, connect.CodeFailedPrecondition},
		{"gRPC-Web in headers", GRPCWeb, 200, http.Header{"Grpc-Status": {"5"}}, "", nil, connect.CodeNotFound},
		{"gRPC-Web cut", GRPCWeb, 200, nil, "\x00\x00\x00\x00\x05m", nil, connect.CodeInternal},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.header == nil {
				test.header = http.Header{}
			}
			body := &cutBody{text: []byte(test.body), err: io.EOF, pieces: func() int { return 3 }}
			response := &http.Response{StatusCode: test.status, Header: test.header, Body: body, Trailer: test.trailer}
			reply := NewReply(test.protocol, response)
			if err := reply.Hold(); err != nil {
				t.Fatal(err)
			}
			if !reply.Ended || reply.Code != test.want {
				t.Errorf("ended %t with %v, want %v", reply.Ended, reply.Code, test.want)
			}
			if len(response.Trailer) > 0 {
				t.Errorf("trailers %v are there before the body", response.Trailer)
			}
			got, err := io.ReadAll(response.Body)
			if err != nil || string(got) != test.body {
				t.Errorf("then it reads %q, %v, want %q", got, err, test.body)
			}
			if response.Trailer.Get("Grpc-Status") != test.trailer.Get("Grpc-Status") {
				t.Errorf("then the trailers are %v, want %v", response.Trailer, test.trailer)
			}
			if err := response.Body.Close(); err != nil || !body.closed {
				t.Errorf("close: %v, closed %t", err, body.closed)
			}
		})
	}
}

func TestAReplyThatIsTooLongToHoldLosesNothing(t *testing.T) {
	for _, size := range []int{HeldBytesMax - 1, HeldBytesMax, HeldBytesMax + 1, 5 * HeldBytesMax} {
		text := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		body := &cutBody{text: text, err: io.EOF, pieces: func() int { return 7_000 }}
		response := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body}
		reply := NewReply(ConnectUnary, response)
		if err := reply.Hold(); err != nil {
			t.Fatal(err)
		}
		if reply.Ended != (size < HeldBytesMax) {
			t.Errorf("%d bytes: ended %t", size, reply.Ended)
		}
		if got, err := io.ReadAll(response.Body); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d bytes: then it reads %d, %v", size, len(got), err)
		}
		if err := response.Body.Close(); err != nil || !body.closed {
			t.Errorf("close: %v, closed %t", err, body.closed)
		}
	}
}

func TestAServerThatDiesWhileItAnswersHasNotAnswered(t *testing.T) {
	body := &cutBody{text: []byte(`{"order`), err: errCut, pieces: func() int { return 1 << 10 }}
	response := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: body, Request: &http.Request{URL: &url.URL{}}}
	if err := NewReply(ConnectUnary, response).Hold(); !errors.Is(err, errCut) || !body.closed {
		t.Errorf("got %v, closed %t, want the cause", err, body.closed)
	}
}
