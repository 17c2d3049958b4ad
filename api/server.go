package api

import (
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

var (
	errPanicked       = errors.New("the call panicked")
	errUnknownService = errors.New("unknown service")
)

// NewServer returns a server of the handler for plain-text HTTP/1.1 and HTTP/2, with its limits. When it shuts down,
// watches end first. The caller gives it a listener.
func NewServer(h *Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           h,
		Protocols:         &protocols,
		ReadHeaderTimeout: h.limits.HeaderTimeMax,
		// No ReadTimeout: over HTTP/1.1 it would cancel calls that outlast it. bound sets one for the body alone.
		WriteTimeout:   h.limits.ReplyTimeMax,
		IdleTimeout:    h.limits.IdleTimeMax,
		MaxHeaderBytes: h.limits.HeaderBytesMax,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          h.limits.StreamsPerConnectionMax,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     128 << 10,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              30 * time.Second,
		},
		// The noise of broken clients.
		ErrorLog: slog.NewLogLogger(h.logger.Handler(), slog.LevelDebug),
	}
	server.RegisterOnShutdown(h.EndWatches)
	return server
}

// badBase64 reports whether a Connect GET's message is not the base64 that it says it is. Connect would answer as if the
// server had failed to read it.
func badBase64(r *http.Request) bool {
	if r.Method != http.MethodGet || !strings.Contains(r.URL.RawQuery, "base64=1") {
		return false
	}
	message := strings.TrimRight(r.URL.Query().Get("message"), "=")
	_, err := base64.RawURLEncoding.DecodeString(message)
	return err != nil
}

// bound puts a request under the limits: the bytes and the time of its body, and the time of the call.
func (h *Handler) bound(w http.ResponseWriter, r *http.Request) {
	watch := watchMethods[r.URL.Path]
	if !watch {
		h.deadlines.clamp(r.Header, h.elsewhere == nil && briefMethods[r.URL.Path]) // Another node may hang.
	}
	controller := http.NewResponseController(w)
	if watch {
		_ = controller.SetWriteDeadline(time.Time{}) // It lasts until the caller leaves. Without support there is no deadline to lift.
	}
	if r.Body == nil || r.Body == http.NoBody {
		return
	}
	body := &boundedBody{ReadCloser: http.MaxBytesReader(w, r.Body, int64(h.limits.RequestBytesMax)+wireBytesExtra)}
	if controller.SetReadDeadline(time.Now().Add(h.limits.BodyTimeMax)) == nil && r.ProtoMajor == 1 {
		body.controller = controller
	}
	r.Body = body
}

// boundedBody is a request's body under its limits.
type boundedBody struct {
	io.ReadCloser
	// controller lifts the read deadline at the body's end, nil when there is nothing to lift. Over HTTP/1.1 the server goes on
	// reading, to learn that the caller left: a deadline that passes then would cancel a call that waits for its commit.
	// Over HTTP/2 the deadline is the body's alone.
	controller *http.ResponseController
}

func (b *boundedBody) Read(p []byte) (int, error) {
	count, err := b.ReadCloser.Read(p)
	if err != nil && b.controller != nil && errors.Is(err, io.EOF) {
		_ = b.controller.SetReadDeadline(time.Time{})
		b.controller = nil
	}
	return count, err
}

// briefMethods bound all that they wait for by themselves: views by the wait budget, what nodes share and users' keys by limits of their own. Where
// the caller asks for no deadline they have none, which saves a timer that costs more than reading an order from memory.
var briefMethods = map[string]bool{orderv1connect.OrderServiceGetOrderProcedure: true}

// deadlines clamps the deadlines that callers ask for, by rewriting their headers before Connect reads them. What is not a
// timeout is left for Connect to refuse.
type deadlines struct {
	callMax time.Duration
	// The headers of callMax, shared by all requests: nobody changes them.
	connect, grpc []string
}

const (
	connectTimeoutHeader = "Connect-Timeout-Ms"
	grpcTimeoutHeader    = "Grpc-Timeout"
)

func newDeadlines(limits Limits) deadlines {
	millis := strconv.FormatInt(max(1, limits.CallTimeMax.Milliseconds()), 10)
	return deadlines{callMax: limits.CallTimeMax, connect: []string{millis}, grpc: []string{millis + "m"}}
}

// clamp sets the deadline of a call for which none is asked, unless it is brief, or one that is too far away.
func (d *deadlines) clamp(header http.Header, brief bool) {
	if contentType := header["Content-Type"]; len(contentType) > 0 && strings.HasPrefix(contentType[0], "application/grpc") {
		if asked := header[grpcTimeoutHeader]; len(asked) == 0 && !brief || len(asked) > 0 && d.beyondGRPC(asked[0]) {
			header[grpcTimeoutHeader] = d.grpc
		}
		return
	}
	if asked := header[connectTimeoutHeader]; len(asked) == 0 && !brief || len(asked) > 0 && d.beyondConnect(asked[0]) {
		header[connectTimeoutHeader] = d.connect
	}
}

func (d *deadlines) beyondConnect(timeout string) bool {
	if timeout == "" {
		return true // Connect reads it as no timeout.
	}
	const digitsMax = 10 // Connect's own limit; more is refused.
	millis, err := strconv.ParseUint(timeout, 10, 63)
	return err == nil && len(timeout) <= digitsMax && millis > uint64(d.callMax.Milliseconds())
}

func (d *deadlines) beyondGRPC(timeout string) bool {
	if timeout == "" {
		return true
	}
	const digitsMax = 8 // gRPC's own limit; more is refused.
	digits := timeout[:len(timeout)-1]
	amount, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || len(digits) > digitsMax {
		return false
	}
	units := map[byte]time.Duration{'H': time.Hour, 'M': time.Minute, 'S': time.Second, 'm': time.Millisecond, 'u': time.Microsecond, 'n': time.Nanosecond}
	unit, known := units[timeout[len(timeout)-1]]
	return known && amount > uint64(d.callMax/unit)
}

// boundedGzip stops where a message would be too large. Connect would inflate the rest of a bomb to report its size.
type boundedGzip struct {
	gzip.Reader
	bytesMax, bytesRead int64
}

// Read implements io.Reader.
func (g *boundedGzip) Read(p []byte) (int, error) {
	left := g.bytesMax - g.bytesRead
	if left <= 0 {
		return 0, fmt.Errorf("stopped after %d bytes", g.bytesMax)
	}
	count, err := g.Reader.Read(p[:min(int64(len(p)), left)])
	g.bytesRead += int64(count)
	return count, err
}

// Reset implements connect.Decompressor.
func (g *boundedGzip) Reset(r io.Reader) error {
	g.bytesRead = 0
	return g.Reader.Reset(r)
}
