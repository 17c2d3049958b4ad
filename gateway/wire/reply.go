package wire

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"connectrpc.com/connect"
)

const (
	// HeldBytesMax bounds how much of a unary reply is read before anything of it is forwarded. A reply that ends within it is
	// whole before its first byte leaves, so that a server that dies while it answers costs its caller a clean error at most.
	HeldBytesMax = 64 << 10
	// endBytesMax bounds an end of stream that is read to learn the code, also when it is inflated.
	endBytesMax = 16 << 10
)

// heldBuffers are for what Hold reads.
var heldBuffers = sync.Pool{New: func() any { return new([HeldBytesMax]byte) }}

// A Reply is a response of a server, on its way to the caller.
type Reply struct {
	*http.Response
	protocol Protocol
	// Ended is whether all of the body was seen; then Code is how the call ended, 0 for success. Until then Code is what the
	// head says.
	Ended bool
	Code  connect.Code
}

// NewReply looks at the head of a response.
func NewReply(p Protocol, response *http.Response) *Reply {
	reply := &Reply{Response: response, protocol: p}
	reply.readHead()
	return reply
}

// readHead takes the code from the status and the headers.
func (r *Reply) readHead() {
	switch r.protocol {
	case Plain, ConnectUnary, ConnectGet:
		r.Code = codeOfHTTP(r.StatusCode)
	case ConnectStream:
		if r.StatusCode != http.StatusOK {
			r.Code = codeOfHTTP(r.StatusCode)
		}
	case GRPC, GRPCWeb:
		switch status, given := grpcStatus(r.Header); {
		case given: // There are no other trailers to come.
			r.Code = status
		case r.StatusCode != http.StatusOK:
			r.Code = codeOfHTTP(r.StatusCode)
		}
	}
}

// Hold reads the body of a unary call's reply as far as HeldBytesMax, and puts it back so that nothing is lost. After it,
// Ended says whether that was all. An error is the server's: it died before it had answered as much. The body is closed then.
func (r *Reply) Hold() error {
	if r.Body == nil || r.Body == http.NoBody {
		r.Ended = true
		return nil
	}
	buffer := heldBuffers.Get().(*[HeldBytesMax]byte) //nolint:errcheck // Nothing else is in it.
	count, err := readUntil(r.Body, buffer[:])
	if err != nil && !errors.Is(err, io.EOF) {
		heldBuffers.Put(buffer)
		return errors.Join(err, r.Body.Close())
	}
	held := &heldBody{buffer: buffer, left: buffer[:count], rest: r.Body}
	r.Ended = err != nil
	if r.Ended {
		if err := r.Body.Close(); err != nil {
			heldBuffers.Put(buffer)
			return err
		}
		held.rest = nil
		held.response, held.trailer = r.Response, r.Trailer
		r.Code = codeOfBody(r.protocol, r.Response, held.left)
		// The proxy announces the trailers that it knows of before the body. The server did not, so they are shown after it.
		r.Trailer = nil
	}
	r.Body = held
	return nil
}

// readUntil reads until the buffer is full, or the end. The end is io.EOF, also when the buffer was just filled with the last bytes.
func readUntil(body io.Reader, buffer []byte) (int, error) {
	count := 0
	for count < len(buffer) {
		read, err := body.Read(buffer[count:])
		count += read
		if err != nil {
			return count, err
		}
	}
	return count, nil
}

// heldBody is a body of which the beginning was read already.
type heldBody struct {
	buffer *[HeldBytesMax]byte
	left   []byte
	// rest comes after left; nil for none. Then the trailer is shown on the response at the end.
	rest     io.ReadCloser
	response *http.Response
	trailer  http.Header
}

// Read implements io.Reader.
func (b *heldBody) Read(p []byte) (int, error) {
	if len(b.left) > 0 {
		count := copy(p, b.left)
		b.left = b.left[count:]
		if len(b.left) == 0 && b.rest == nil {
			b.showTrailer()
			return count, io.EOF
		}
		return count, nil
	}
	if b.rest == nil {
		b.showTrailer()
		return 0, io.EOF
	}
	return b.rest.Read(p)
}

func (b *heldBody) showTrailer() {
	if b.response != nil {
		b.response.Trailer = b.trailer
	}
}

// Close implements io.Closer. REQUIRES: no Read is under way.
func (b *heldBody) Close() error {
	if b.buffer != nil {
		heldBuffers.Put(b.buffer)
		b.buffer, b.left = nil, nil
	}
	if b.rest != nil {
		return b.rest.Close()
	}
	return nil
}

// codeOfBody says how a unary call ended whose reply is all there.
func codeOfBody(p Protocol, response *http.Response, body []byte) connect.Code {
	switch p {
	case ConnectUnary, ConnectGet:
		if response.StatusCode == http.StatusOK {
			return 0
		}
		return codeOfConnectError(response, body)
	case GRPC:
		return codeOfTrailer(response)
	case GRPCWeb, ConnectStream:
		if code, given := grpcStatus(response.Header); given && p == GRPCWeb {
			return code
		}
		if response.StatusCode != http.StatusOK {
			return codeOfHTTP(response.StatusCode)
		}
		return codeOfEnd(p, body)
	case Plain:
	}
	return codeOfHTTP(response.StatusCode)
}

// codeOfConnectError reads the code of a Connect unary error. The status alone says less: 400 has three codes.
func codeOfConnectError(response *http.Response, body []byte) connect.Code {
	var wire struct {
		Code connect.Code `json:"code"`
	}
	if len(body) <= endBytesMax && response.Header.Get("Content-Encoding") == "" && json.Unmarshal(body, &wire) == nil && wire.Code != 0 {
		return wire.Code
	}
	return codeOfHTTP(response.StatusCode)
}

// codeOfTrailer says how a gRPC call ended whose body is at its end. None is an error, as it is for every client.
func codeOfTrailer(response *http.Response) connect.Code {
	if code, given := grpcStatus(response.Trailer); given {
		return code
	}
	if code, given := grpcStatus(response.Header); given {
		return code
	}
	if response.StatusCode != http.StatusOK {
		return codeOfHTTP(response.StatusCode)
	}
	return connect.CodeInternal
}

// grpcStatus reads grpc-status. What is no number is UNKNOWN, as gRPC says.
func grpcStatus(header http.Header) (code connect.Code, given bool) {
	values := header["Grpc-Status"]
	if len(values) == 0 {
		return 0, false
	}
	number, err := strconv.ParseUint(values[0], 10, 32)
	if err != nil || number > uint64(connect.CodeUnauthenticated) {
		return connect.CodeUnknown, true
	}
	return connect.Code(number), true
}

// codeOfEnd finds the envelope that ends a whole body and reads its code. A body without one is an error.
func codeOfEnd(p Protocol, body []byte) connect.Code {
	for len(body) >= envelopeBytes {
		flags, length := body[0], messageLength(body)
		if uint64(len(body)-envelopeBytes) < length {
			break
		}
		message := body[envelopeBytes : envelopeBytes+length]
		if flags&endFlag(p) != 0 {
			return codeOfEndMessage(p, flags, message)
		}
		body = body[envelopeBytes+length:]
	}
	return connect.CodeInternal
}

// endFlag is the bit that marks the envelope that ends a stream; 0 for protocols that have none.
func endFlag(p Protocol) byte {
	switch p {
	case ConnectStream:
		return connectEndFlag
	case GRPCWeb:
		return grpcWebEndFlag
	case Plain, ConnectUnary, ConnectGet, GRPC:
	}
	return 0
}

// messageLength reads the length of a message from its envelope. REQUIRES: five bytes.
func messageLength(prefix []byte) uint64 {
	return uint64(prefix[1])<<24 | uint64(prefix[2])<<16 | uint64(prefix[3])<<8 | uint64(prefix[4])
}

// codeOfEndMessage reads the code of an end of stream. One that cannot be read counts as success: it says nothing of the server.
func codeOfEndMessage(p Protocol, flags byte, message []byte) connect.Code {
	if flags&compressedFlag != 0 {
		inflated, err := gzip.NewReader(bytes.NewReader(message))
		if err != nil {
			return 0
		}
		if message, err = io.ReadAll(io.LimitReader(inflated, endBytesMax)); err != nil {
			return 0
		}
	}
	if p == ConnectStream {
		var end struct {
			Error *struct {
				Code connect.Code `json:"code"`
			} `json:"error"`
		}
		if json.Unmarshal(message, &end) != nil || end.Error == nil {
			return 0
		}
		return end.Error.Code
	}
	for line := range strings.SplitSeq(string(message), "\n") {
		key, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(strings.TrimSpace(key), "grpc-status") {
			code, _ := grpcStatus(http.Header{"Grpc-Status": {strings.TrimSpace(value)}})
			return code
		}
	}
	return connect.CodeInternal
}

// codeOfHTTP returns the code that an HTTP status stands for, 0 for success. Where it has several it is one that means the same
// for the server.
func codeOfHTTP(status int) connect.Code {
	switch status {
	case http.StatusBadRequest:
		return connect.CodeInvalidArgument
	case http.StatusUnauthorized:
		return connect.CodeUnauthenticated
	case http.StatusForbidden:
		return connect.CodePermissionDenied
	case http.StatusNotFound:
		return connect.CodeNotFound
	case http.StatusConflict:
		return connect.CodeAborted
	case http.StatusTooManyRequests:
		return connect.CodeResourceExhausted
	case 499:
		return connect.CodeCanceled
	case http.StatusNotImplemented:
		return connect.CodeUnimplemented
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return connect.CodeUnavailable
	case http.StatusGatewayTimeout:
		return connect.CodeDeadlineExceeded
	}
	switch {
	case status >= http.StatusInternalServerError:
		return connect.CodeInternal
	case status >= http.StatusBadRequest:
		return connect.CodeInvalidArgument
	}
	return 0
}

// EmptyReply is the reply of a unary call whose message has no field set: a success that says nothing. REQUIRES: the protocol has unary
// calls.
func EmptyReply(p Protocol, request *http.Request) *Reply {
	response := &http.Response{
		StatusCode: http.StatusOK, Proto: request.Proto, ProtoMajor: request.ProtoMajor, ProtoMinor: request.ProtoMinor,
		Header: http.Header{"Content-Type": request.Header["Content-Type"]}, Request: request,
	}
	message, json := "", strings.HasSuffix(mediaType(request.Header), "json")
	if p == ConnectGet {
		json = request.URL.Query().Get("encoding") == "json"
		response.Header["Content-Type"] = []string{"application/proto"}
		if json {
			response.Header["Content-Type"] = []string{"application/json"}
		}
	}
	if json {
		message = "{}"
	}
	body := []byte(message)
	switch p {
	case GRPC:
		body = envelope(0, message)
		response.Trailer = http.Header{"Grpc-Status": {"0"}}
	case GRPCWeb:
		body = append(envelope(0, message), envelope(grpcWebEndFlag, "grpc-status: 0\r\n")...)
	case ConnectUnary, ConnectGet:
	case Plain, ConnectStream:
		panic("wire: bug: " + p.String() + " has no unary reply")
	}
	response.Body, response.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if p == GRPC {
		response.ContentLength = -1
	}
	return &Reply{Response: response, protocol: p, Ended: true}
}
