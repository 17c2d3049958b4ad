package wire

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

var errorWriter = connect.NewErrorWriter()

// Refuse answers a request with an error as its protocol says: Connect unary has an HTTP status and JSON, a Connect stream 200 and
// an end of stream, gRPC-Web and gRPC a status in the headers and nothing else. Plain HTTP gets the status and the message as
// text. Nothing must have been written yet. The error is that of writing.
func (p Protocol) Refuse(w http.ResponseWriter, r *http.Request, refusal *connect.Error) error {
	switch p {
	case Plain:
		for key, values := range refusal.Meta() {
			w.Header()[key] = values
		}
		http.Error(w, refusal.Message(), httpStatus(refusal.Code()))
		return nil
	case GRPC:
		// The writer sends a gRPC error as headers and trailers. A client may try again what never began only if there are no
		// headers but the trailers, which is how gRPC-Web's are written: so it is written as such, under its own content type.
		contentType := r.Header.Get("Content-Type")
		web := &http.Request{Method: r.Method, URL: r.URL, Header: http.Header{"Content-Type": {"application/grpc-web"}}}
		return errorWriter.Write(&typedWriter{ResponseWriter: w, contentType: contentType}, web, refusal)
	case ConnectUnary, ConnectGet, ConnectStream, GRPCWeb:
	}
	return errorWriter.Write(w, r, refusal)
}

// typedWriter sends a content type of its own.
type typedWriter struct {
	http.ResponseWriter
	contentType string
}

// WriteHeader implements http.ResponseWriter.
func (w *typedWriter) WriteHeader(status int) {
	w.Header().Set("Content-Type", w.contentType)
	w.ResponseWriter.WriteHeader(status)
}

// httpStatus returns the status that Connect gives a code, or the nearest that HTTP has.
func httpStatus(code connect.Code) int {
	switch code {
	case connect.CodeCanceled:
		return 499
	case connect.CodeInvalidArgument, connect.CodeFailedPrecondition, connect.CodeOutOfRange:
		return http.StatusBadRequest
	case connect.CodeUnauthenticated:
		return http.StatusUnauthorized
	case connect.CodePermissionDenied:
		return http.StatusForbidden
	case connect.CodeNotFound:
		return http.StatusNotFound
	case connect.CodeAlreadyExists, connect.CodeAborted:
		return http.StatusConflict
	case connect.CodeResourceExhausted:
		return http.StatusTooManyRequests
	case connect.CodeUnimplemented:
		return http.StatusNotImplemented
	case connect.CodeUnavailable:
		return http.StatusServiceUnavailable
	case connect.CodeDeadlineExceeded:
		return http.StatusGatewayTimeout
	case connect.CodeUnknown, connect.CodeInternal, connect.CodeDataLoss:
	}
	return http.StatusInternalServerError
}

// The flags of an envelope that ends a stream.
const (
	connectEndFlag = 0b0000_0010
	grpcWebEndFlag = 0b1000_0000
	compressedFlag = 0b0000_0001
	// envelopeBytes is the length of an envelope's prefix: flags, and the length of the message.
	envelopeBytes = 5
)

// endOf returns what ends a stream of the protocol with an error: bytes for its body, or trailers. Details and metadata of the error are in it.
func endOf(p Protocol, told *connect.Error) (body []byte, trailer http.Header) {
	switch p {
	case GRPC:
		trailer := told.Meta().Clone()
		for _, field := range grpcStatusOf(told) {
			trailer.Set(field.key, field.value)
		}
		return nil, trailer
	case GRPCWeb:
		var lines strings.Builder
		line := func(key, value string) { lines.WriteString(strings.ToLower(key) + ": " + value + "\r\n") }
		for _, field := range grpcStatusOf(told) {
			line(field.key, field.value)
		}
		for _, key := range slices.Sorted(maps.Keys(told.Meta())) {
			for _, value := range told.Meta()[key] {
				line(key, value)
			}
		}
		return envelope(grpcWebEndFlag, lines.String()), nil
	case ConnectStream:
		type detail struct {
			Type  string `json:"type"`
			Value string `json:"value"`
		}
		var end struct {
			Error struct {
				Code    string   `json:"code"`
				Message string   `json:"message"`
				Details []detail `json:"details,omitempty"`
			} `json:"error"`
			Metadata http.Header `json:"metadata,omitempty"`
		}
		end.Error.Code, end.Error.Message, end.Metadata = told.Code().String(), told.Message(), told.Meta()
		for _, one := range told.Details() {
			end.Error.Details = append(end.Error.Details, detail{one.Type(), base64.RawStdEncoding.EncodeToString(one.Bytes())})
		}
		text, err := json.Marshal(end)
		if err != nil {
			panic("wire: bug: strings are not JSON: " + err.Error())
		}
		return envelope(connectEndFlag, string(text)), nil
	case Plain, ConnectUnary, ConnectGet:
	}
	panic("wire: bug: " + p.String() + " has no end of stream")
}

type field struct{ key, value string }

// grpcStatusOf is an error as gRPC's trailers have it.
func grpcStatusOf(told *connect.Error) []field {
	fields := []field{{"Grpc-Status", strconv.Itoa(int(told.Code()))}, {"Grpc-Message", percentEncode(told.Message())}}
	if len(told.Details()) == 0 {
		return fields
	}
	whole := &status.Status{Code: int32(told.Code()), Message: told.Message()} //nolint:gosec // There are 16 codes.
	for _, one := range told.Details() {
		whole.Details = append(whole.Details, &anypb.Any{TypeUrl: typePrefix + one.Type(), Value: one.Bytes()})
	}
	bytes, err := proto.Marshal(whole)
	if err != nil { // The text is not UTF-8: the code and the message have to do.
		return fields
	}
	return append(fields, field{"Grpc-Status-Details-Bin", connect.EncodeBinaryHeader(bytes)})
}

// typePrefix is what google.protobuf.Any puts before the name of a type.
const typePrefix = "type.googleapis.com/"

func envelope(flags byte, message string) []byte {
	length := len(message)
	return append([]byte{flags, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}, message...)
}

// percentEncode writes a message as gRPC's headers want it: printable ASCII but the percent sign.
func percentEncode(message string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(message) {
		if c := message[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
