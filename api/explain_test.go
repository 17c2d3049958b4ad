package api_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// An answered is what a raw request was answered with.
type answered struct {
	status  int
	code    string
	message string
	info    *errdetails.ErrorInfo
}

// rawCall sends bytes as the body of a call, and reads the error that comes back as its protocol has it.
func (n *node) rawCall(ctx context.Context, method, path string, body []byte, header http.Header) answered {
	n.t.Helper()
	request, err := http.NewRequestWithContext(ctx, method, n.url+path, bytes.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	request.Header = header
	request.Header.Set("Authorization", "Bearer "+n.token("ada", 0))
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		n.t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	made := answered{status: response.StatusCode}
	contentType := response.Header.Get("Content-Type")
	switch {
	case strings.HasPrefix(contentType, "application/grpc"):
		from := response.Trailer
		if from.Get("Grpc-Status") == "" {
			from = response.Header
		}
		made.code, made.message = "grpc "+from.Get("Grpc-Status"), from.Get("Grpc-Message")
		if details := from.Get("Grpc-Status-Details-Bin"); details != "" {
			wire, err := connect.DecodeBinaryHeader(details)
			if err != nil {
				n.t.Fatal(err)
			}
			var whole status.Status
			if err := proto.Unmarshal(wire, &whole); err != nil {
				n.t.Fatal(err)
			}
			if len(whole.Details) > 0 {
				made.info = &errdetails.ErrorInfo{}
				if err := whole.Details[0].UnmarshalTo(made.info); err != nil {
					n.t.Fatal(err)
				}
			}
		}
	case strings.HasPrefix(contentType, "application/json"), strings.HasPrefix(contentType, "application/connect+"):
		type wireError struct {
			Code, Message string
			Details       []struct{ Type, Value string }
		}
		var wire wireError
		if strings.HasPrefix(contentType, "application/connect+") {
			var end struct{ Error wireError }
			err = json.Unmarshal(got[5:], &end)
			wire = end.Error
		} else {
			err = json.Unmarshal(got, &wire)
		}
		if err != nil {
			n.t.Fatalf("%s: %v", got, err)
		}
		made.code, made.message = wire.Code, wire.Message
		if len(wire.Details) > 0 {
			value, err := base64.RawStdEncoding.DecodeString(wire.Details[0].Value)
			if err != nil {
				n.t.Fatal(err)
			}
			made.info = &errdetails.ErrorInfo{}
			if err := proto.Unmarshal(value, made.info); err != nil {
				n.t.Fatal(err)
			}
		}
	default:
		made.message = string(got)
	}
	return made
}

// envelope frames a message as gRPC and streams over Connect do.
func envelope(message []byte) []byte {
	length := len(message)
	return append([]byte{0, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}, message...)
}

// TestWhatConnectAnswersByItselfHasAReason asks for what never reaches a method, in each form that it is asked for.
func TestWhatConnectAnswersByItselfHasAReason(t *testing.T) {
	n := serve(t, func(o *api.Options) { o.Limits.RequestBytesMax = 4096 })
	const unary, stream = orderv1connect.OrderServiceGetOrderProcedure, orderv1connect.OrderServiceWatchOrderProcedure
	nonsense, huge := []byte{0xff, 0xff, 0xff}, bytes.Repeat([]byte{' '}, 8192)
	contentTypes := map[string]string{"json": "application/json", "proto": "application/proto", "grpc": "application/grpc", "grpc-web": "application/grpc-web"}
	for _, test := range []struct {
		what   string
		path   string
		body   []byte
		header http.Header
		// code as Connect and gRPC have it.
		code, grpc string
		reason     api.Reason
	}{
		{"a body that is not the message", unary, nonsense, nil, "invalid_argument", "grpc 3", api.ReasonRequestUnreadable},
		{"a message that is too large", unary, huge, nil, "resource_exhausted", "grpc 8", api.ReasonRequestTooLarge},
		{"a method that is not there", "/weir.order.v1.OrderService/Guess", nil, nil, "unimplemented", "grpc 12", api.ReasonMethodUnknown},
		{"a service that is not there", "/weir.order.v9.OrderService/GetOrder", nil, nil, "unimplemented", "grpc 12", api.ReasonMethodUnknown},
		{"an unknown encoding", unary, []byte("{}"), http.Header{"Content-Encoding": {"zstd"}, "Grpc-Encoding": {"zstd"}}, "unimplemented", "grpc 12", api.ReasonEncodingUnknown},
		{"a deadline that is no number", unary, []byte("{}"), http.Header{"Connect-Timeout-Ms": {"soon"}, "Grpc-Timeout": {"soon"}}, "invalid_argument", "grpc 3", api.ReasonRequestUnreadable},
		{"a deadline that has passed", unary, []byte("{}"), http.Header{"Connect-Timeout-Ms": {"0"}, "Grpc-Timeout": {"0n"}}, "deadline_exceeded", "grpc 4", api.ReasonDeadlineExceeded},
	} {
		for name, contentType := range contentTypes {
			header, body, code := test.header.Clone(), test.body, test.code
			if header == nil {
				header = http.Header{}
			}
			header.Set("Content-Type", contentType)
			if name != "json" && string(body) == "{}" {
				body = nil // An empty message.
			}
			if strings.HasPrefix(name, "grpc") {
				header.Del("Content-Encoding")
				body, code = envelope(body), test.grpc
			}
			got := n.rawCall(t.Context(), http.MethodPost, test.path, body, header)
			if got.code != code || got.info.GetReason() != string(test.reason) || got.info.GetDomain() != "weir" || got.message == "" {
				t.Errorf("%s over %s: got %+v, want %s %s", test.what, name, got, code, test.reason)
			}
		}
	}
	// A stream over Connect has its error in the body.
	for what, test := range map[string]struct {
		body   []byte
		reason api.Reason
	}{"not the message": {nonsense, api.ReasonRequestUnreadable}, "too large": {huge, api.ReasonRequestTooLarge}} {
		for name, contentType := range map[string]string{"connect": "application/connect+proto", "grpc": "application/grpc", "grpc-web": "application/grpc-web"} {
			got := n.rawCall(t.Context(), http.MethodPost, stream, envelope(test.body), http.Header{"Content-Type": {contentType}})
			if got.info.GetReason() != string(test.reason) {
				t.Errorf("a stream's message that is %s over %s: got %+v, want %s", what, name, got, test.reason)
			}
		}
	}
	// What is no call in any protocol is answered with its HTTP status, and JSON.
	for what, test := range map[string]struct {
		method, contentType string
		status              int
	}{
		"another content type": {http.MethodPost, "text/html", http.StatusUnsupportedMediaType},
		"an unknown codec":     {http.MethodPost, "application/grpc+xml", http.StatusUnsupportedMediaType},
		"another method":       {http.MethodPut, "application/json", http.StatusMethodNotAllowed},
	} {
		got := n.rawCall(t.Context(), test.method, unary, []byte("{}"), http.Header{"Content-Type": {test.contentType}})
		if got.status != test.status || got.code != "unimplemented" || got.info.GetReason() != string(api.ReasonNotACall) {
			t.Errorf("%s: got %+v, want HTTP %d and %s", what, got, test.status, api.ReasonNotACall)
		}
	}
	// And a browser that asks for a page gets none.
	if got := n.rawCall(t.Context(), http.MethodGet, "/favicon.ico", nil, http.Header{}); got.status != http.StatusNotFound || got.code != "" {
		t.Errorf("a page: got %+v, want HTTP 404 alone", got)
	}
}

// TestADeadlineThatPassesWhileTheBodyIsReadHasAReason: no method has been called by then.
func TestADeadlineThatPassesWhileTheBodyIsReadHasAReason(t *testing.T) {
	n := serve(t, nil)
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(n.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	head := "POST " + orderv1connect.OrderServiceGetOrderProcedure + " HTTP/1.1\r\nHost: weir\r\nContent-Type: application/json\r\nConnection: close\r\n" +
		"Authorization: Bearer " + n.token("ada", identity.Scopes(0)) + "\r\nConnect-Timeout-Ms: 50\r\nContent-Length: 100\r\n\r\n{"
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	var info errdetails.ErrorInfo
	info.Reason, info.Domain = string(api.ReasonDeadlineExceeded), api.ErrorDomain
	wire, err := proto.Marshal(&info)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(got, []byte(`"code":"deadline_exceeded"`)) || !bytes.Contains(got, []byte(base64.RawStdEncoding.EncodeToString(wire))) {
		t.Errorf("got %s, want deadline_exceeded with its reason", got)
	}
}

// TestAnAnswerThatNeedsNoReasonIsPassedOnAsItIs: a reply, and a stream that is flushed as it goes.
func TestAnAnswerThatNeedsNoReasonIsPassedOnAsItIs(t *testing.T) {
	n := serve(t, nil)
	n.stock("a")
	for name, options := range transports {
		ada := n.client("ada", 0, options...)
		placed, err := ada.PlaceOrder(t.Context(), request("r-"+strings.ReplaceAll(name, " ", "-"), "a", 1))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		watch, err := ada.WatchOrder(ctx, &orderv1.WatchOrderRequest{OrderId: placed.Order.OrderId})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !watch.Receive() || watch.Msg().Order.OrderId != placed.Order.OrderId {
			t.Errorf("%s: the watch sent nothing: %v", name, watch.Err())
		}
		cancel()
		_ = watch.Close()
	}
}
