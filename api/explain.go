package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// An explained writes the answer to one request. What never reaches a method, Connect answers by itself, with a code and without a
// reason: a body that is not the message or is too large, a deadline that passes while it is read, an unknown encoding, and, as a
// bare HTTP status, an unknown method or content type. No interceptor of a unary call sees these, since they come before it. An
// explained adds the reason to them on their way out; all other answers it passes on as they are.
//
// What a stream's method does not get to see, its interceptor explains: over Connect, the end of a stream is in its body.
type explained struct {
	http.ResponseWriter
	handler *Handler
	request *http.Request
	// status of an answer that is held back until finish, and its body; 0 when nothing is.
	status int
	body   bytes.Buffer
	began  bool
}

const (
	grpcStatusHeader  = "Grpc-Status"
	grpcMessageHeader = "Grpc-Message"
	grpcDetailsHeader = "Grpc-Status-Details-Bin"
	connectJSON       = "application/json"
)

// Unwrap is for http.ResponseController.
func (w *explained) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *explained) WriteHeader(code int) {
	if w.began {
		return
	}
	w.began = true
	if code >= http.StatusBadRequest {
		w.status = code
		return
	}
	if w.asksFor("application/grpc-web") { // Its error is in the headers when nothing else is to come.
		w.explainStatus("")
	}
	w.ResponseWriter.WriteHeader(code)
}

// Write implements http.ResponseWriter.
func (w *explained) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.status != 0 {
		return w.body.Write(p)
	}
	return w.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (w *explained) Flush() {
	w.WriteHeader(http.StatusOK)
	if w.status == 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // As http.Flusher has it, nobody is told.
	}
}

// asksFor reports whether the request's content type begins so.
func (w *explained) asksFor(contentType string) bool {
	values := w.request.Header["Content-Type"]
	return len(values) > 0 && strings.HasPrefix(values[0], contentType)
}

// finish writes what was held back. It is called when the request was served.
func (w *explained) finish() {
	switch {
	case w.status == 0:
		if w.asksFor("application/grpc") {
			w.explainStatus(http.TrailerPrefix)
		}
	case w.Header().Get("Content-Type") == connectJSON:
		w.finishConnect()
	default:
		w.finishBare()
	}
}

// finishConnect writes the error of a unary Connect call.
func (w *explained) finishConnect() {
	body := w.body.Bytes()
	var wire struct {
		Code    connect.Code `json:"code"`
		Message string       `json:"message"`
	}
	if !bytes.Contains(body, []byte(`"details":[`)) && json.Unmarshal(body, &wire) == nil {
		if reason, known := reasonOf(wire.Code); known {
			w.Header().Del("Content-Length")
			w.refuse(w.status, newConnectError(wire.Code, reason, wire.Message))
			return
		}
	}
	w.ResponseWriter.WriteHeader(w.status)
	_, _ = w.ResponseWriter.Write(body) // The caller is gone if it fails.
}

// finishBare writes an error in place of a bare status: of a method that is not there, or is not called in this way.
func (w *explained) finishBare() {
	header := w.Header()
	header.Del("Content-Length")
	header.Del("X-Content-Type-Options")
	switch {
	case w.status != http.StatusNotFound:
		w.refuse(w.status, newConnectError(connect.CodeUnimplemented, ReasonNotACall, "the method is not called with this HTTP method, HTTP version or content type"))
	case w.handler.errors.IsSupported(w.request) && w.request.Method == http.MethodPost:
		err := newConnectError(connect.CodeUnimplemented, ReasonMethodUnknown, "there is no method "+w.request.URL.Path)
		if w.asksFor("application/grpc") || w.asksFor("application/connect") {
			_ = w.handler.errors.Write(w.ResponseWriter, w.request, err)
			return
		}
		w.refuse(w.status, err)
	default: // No call at all.
		http.NotFound(w.ResponseWriter, w.request)
	}
}

// refuse writes an error as JSON, under a status of its own.
func (w *explained) refuse(code int, err *connect.Error) {
	as := &http.Request{Method: http.MethodPost, Header: http.Header{"Content-Type": {connectJSON}}}
	_ = w.handler.errors.Write(statusWriter{w.ResponseWriter, code}, as, err)
}

// A statusWriter writes one status, whatever it is told.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (w statusWriter) WriteHeader(int) { w.ResponseWriter.WriteHeader(w.status) }

// explainStatus adds the reason to a gRPC status among the headers that has none. Trailers of gRPC have a prefix there.
func (w *explained) explainStatus(prefix string) {
	header := w.Header()
	codes := header[prefix+grpcStatusHeader]
	if len(codes) != 1 || codes[0] == "0" || len(header[prefix+grpcDetailsHeader]) > 0 {
		return
	}
	number, err := strconv.ParseUint(codes[0], 10, 32)
	if err != nil {
		return
	}
	reason, known := reasonOf(connect.Code(number))
	if !known {
		return
	}
	var message string
	if values := header[prefix+grpcMessageHeader]; len(values) > 0 {
		if message, err = url.PathUnescape(values[0]); err != nil {
			return
		}
	}
	detail, err := anypb.New(&errdetails.ErrorInfo{Reason: string(reason), Domain: ErrorDomain})
	if err != nil {
		return
	}
	wire, err := proto.Marshal(&status.Status{Code: int32(number), Message: message, Details: []*anypb.Any{detail}})
	if err != nil {
		return
	}
	header[prefix+grpcDetailsHeader] = []string{connect.EncodeBinaryHeader(wire)}
}

// reasonOf returns the reason of an error that Connect made, which says no more than its code.
func reasonOf(code connect.Code) (reason Reason, known bool) {
	switch code {
	case connect.CodeInvalidArgument, connect.CodeUnknown: // Unknown is a body that could not be read to its end.
		return ReasonRequestUnreadable, true
	case connect.CodeResourceExhausted:
		return ReasonRequestTooLarge, true
	case connect.CodeUnimplemented:
		return ReasonEncodingUnknown, true
	case connect.CodeDeadlineExceeded:
		return ReasonDeadlineExceeded, true
	case connect.CodeCanceled:
		return ReasonCanceled, true
	case connect.CodeInternal:
		return ReasonInternal, true
	case connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied, connect.CodeFailedPrecondition, connect.CodeAborted,
		connect.CodeOutOfRange, connect.CodeUnavailable, connect.CodeDataLoss, connect.CodeUnauthenticated:
	}
	return "", false // Connect makes none of these.
}

// newConnectError makes an error that has a reason and a code by themselves.
func newConnectError(code connect.Code, reason Reason, message string) *connect.Error {
	err := connect.NewError(code, errors.New(message))
	addDetail(err, &errdetails.ErrorInfo{Reason: string(reason), Domain: ErrorDomain})
	return err
}

// streamErrors gives their reasons to errors of streams that Connect made: what their method received was not the message.
type streamErrors struct{}

// WrapUnary implements connect.Interceptor.
func (streamErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc { return next }

// WrapStreamingClient implements connect.Interceptor.
func (streamErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (streamErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		err := next(ctx, conn)
		var made *connect.Error
		if !errors.As(err, &made) || len(made.Details()) > 0 {
			return err
		}
		if reason, known := reasonOf(made.Code()); known {
			addDetail(made, &errdetails.ErrorInfo{Reason: string(reason), Domain: ErrorDomain})
		}
		return err
	}
}
