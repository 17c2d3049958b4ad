package edge

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"github.com/maypok86/otter/v2"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	// The services whose reads may be kept: their descriptors say which are reads.
	_ "github.com/weirhq/weir/proto/weir/campaign/v1"
	_ "github.com/weirhq/weir/proto/weir/catalog/v1"
	_ "github.com/weirhq/weir/proto/weir/order/v1"
	_ "github.com/weirhq/weir/proto/weir/payment/v1"
	_ "github.com/weirhq/weir/proto/weir/points/v1"
	_ "github.com/weirhq/weir/proto/weir/report/v1"

	"github.com/weirhq/weir/gateway/outcome"
	"github.com/weirhq/weir/gateway/wire"
)

// Stale says when a read may be answered from memory: with an answer that upstreams gave to the very same request of the very same caller,
// byte for byte, token included. So no answer crosses users, and a request for a min_revision gets one that had it.
type Stale struct {
	// MaxAge of such an answer; by default MaxAgeDefault.
	MaxAge time.Duration `yaml:"max_age"`
	// Always answers from memory if it can, and has those who ask the very same at once wait for one of them; otherwise memory is for when upstreams fail
	// or have too much to do.
	Always bool `yaml:"always"`
	// RefreshAfter is the age from which, with Always, one caller at a time is sent on and makes the answer a new one; by default RefreshDefault.
	RefreshAfter time.Duration `yaml:"refresh_after"`
}

// Defaults and limits of stale answers.
const (
	MaxAgeDefault     = 5 * time.Minute
	maxAgeMax         = 24 * time.Hour
	RefreshDefault    = time.Second
	StaleBytesDefault = 64 << 20
	// staleAnswerMax bounds one answer that is kept, in bytes; larger ones pass.
	staleAnswerMax = 256 << 10
	// refreshMax is how long a caller who was sent on may take before another one is.
	refreshMax = 5 * time.Second
)

// validate says what is wrong for a procedure: above all, that it is no read.
func (s Stale) validate(procedure string) error {
	switch {
	case s.MaxAge < 0 || s.MaxAge > maxAgeMax:
		return fmt.Errorf("max_age is %s, want 0 (the default) to %s", s.MaxAge, maxAgeMax)
	case s.RefreshAfter < 0 || s.RefreshAfter > maxAgeMax:
		return fmt.Errorf("refresh_after is %s, want 0 (the default) to %s", s.RefreshAfter, maxAgeMax)
	}
	if !strings.HasPrefix(procedure, "/") || strings.Count(procedure, "/") != 2 {
		return errors.New("want /PACKAGE.SERVICE/METHOD")
	}
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(procedure, "/"), "/", "."))
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	method, is := descriptor.(protoreflect.MethodDescriptor)
	if err != nil || !is {
		return errors.New("there is no such method")
	}
	options, _ := method.Options().(*descriptorpb.MethodOptions)
	if options.GetIdempotencyLevel() != descriptorpb.MethodOptions_NO_SIDE_EFFECTS {
		return errors.New("it is no read")
	}
	if method.IsStreamingClient() || method.IsStreamingServer() {
		return errors.New("it is a stream")
	}
	return nil
}

func (s Stale) maxAge() time.Duration {
	if s.MaxAge == 0 {
		return MaxAgeDefault
	}
	return s.MaxAge
}

func (s Stale) refreshAfter() time.Duration {
	if s.RefreshAfter == 0 {
		return RefreshDefault
	}
	return s.RefreshAfter
}

// stale keeps answers in bounded memory.
type stale struct {
	answers *otter.Cache[requestKey, *answer]
	flights flights
}

// A requestKey is the SHA-256 of a request: of all of it that its answer may depend on.
type requestKey [sha256.Size]byte

// An answer is one that upstreams gave.
type answer struct {
	given   time.Time
	status  int
	header  http.Header
	body    []byte
	trailer http.Header
	// refreshing is until when somebody makes it a new one, in unix ns.
	refreshing atomic.Int64
}

func newStale(bytesMax int64) *stale {
	return &stale{flights: flights{byKey: map[requestKey]*flight{}}, answers: otter.Must(&otter.Options[requestKey, *answer]{
		MaximumWeight: uint64(bytesMax),
		Weigher: func(_ requestKey, a *answer) uint32 {
			size := len(a.body) + 512 // of the entry
			for name, values := range a.header {
				size += len(name) + len(strings.Join(values, ""))
			}
			return uint32(min(size, 1<<31))
		},
	})}
}

// keyed are the headers that an answer may depend on. Where a call comes from, how long it may take and what traces it is not among them.
var keyed = []string{
	"Authorization", "Content-Type", "Content-Encoding", "Accept-Encoding", "Accept", "Connect-Protocol-Version", "Connect-Content-Encoding",
	"Connect-Accept-Encoding", "Grpc-Encoding", "Grpc-Accept-Encoding", "Te", "Origin", "Cookie", "X-User-Agent",
}

func keyOf(r *http.Request, body []byte) (key requestKey) {
	hash := sha256.New()
	part := func(text string) {
		var length [8]byte
		binary.BigEndian.PutUint64(length[:], uint64(len(text)))
		hash.Write(length[:])
		hash.Write([]byte(text))
	}
	part(r.Method)
	part(r.URL.Path)
	part(r.URL.RawQuery)
	for _, name := range keyed {
		values := r.Header.Values(name)
		part(strconv.Itoa(len(values)))
		for _, value := range values {
			part(value)
		}
	}
	hash.Write(body)
	hash.Sum(key[:0])
	return key
}

// serveStale answers a read from memory or from upstreams.
func (e *Edge) serveStale(w http.ResponseWriter, r *http.Request, next http.Handler, rule Stale, body []byte) {
	key := keyOf(r, body)
	now := time.Now()
	kept, found := e.inMemory(rule, key)
	if found && rule.Always && !kept.takesRefresh(now, rule.refreshAfter()) {
		e.counts[countStalePlanned].Add(1)
		kept.write(w, now, "stale; plan")
		return
	}
	if rule.Always && !found {
		e.serveTogether(w, r, next, rule, key)
		return
	}
	given := e.ask(w, r, next, key)
	if given == nil {
		return
	}
	if end := outcome.OfCode(codeOf(given)); found && (end == outcome.Fault || end == outcome.Overload) {
		e.counts[countStaleFailed].Add(1)
		kept.write(w, time.Now(), "stale; upstream failed")
		return
	}
	given.write(w, time.Time{}, "")
}

// inMemory returns what memory has for a read that is not too old.
func (e *Edge) inMemory(rule Stale, key requestKey) (*answer, bool) {
	kept, found := e.stale.answers.GetIfPresent(key)
	if found && time.Since(kept.given) > rule.maxAge() {
		return nil, false
	}
	return kept, found
}

// ask returns what upstreams answer, and keeps it if it is good. It is nil for what is too large to hold, which the caller has then.
func (e *Edge) ask(w http.ResponseWriter, r *http.Request, next http.Handler, key requestKey) *answer {
	reply := &reply{to: w, header: http.Header{}}
	next.ServeHTTP(reply, r)
	if reply.passed {
		return nil
	}
	given := reply.answer()
	given.given = time.Now()
	if codeOf(given) == 0 && keeps(given) {
		e.stale.answers.Set(key, given)
	}
	return given
}

// takesRefresh reports whether the caller is the one who makes the answer a new one.
func (a *answer) takesRefresh(now time.Time, after time.Duration) bool {
	if now.Sub(a.given) < after {
		return false
	}
	until := a.refreshing.Load()
	return now.UnixNano() >= until && a.refreshing.CompareAndSwap(until, now.Add(refreshMax).UnixNano())
}

// keeps reports whether upstreams let their answer be kept.
func keeps(a *answer) bool {
	return len(a.header.Values("Set-Cookie")) == 0 && !strings.Contains(a.header.Get("Cache-Control"), "no-store")
}

// write answers; why is empty for an answer that is new.
func (a *answer) write(w http.ResponseWriter, now time.Time, why string) {
	header := w.Header()
	for name, values := range a.header {
		header[name] = slices.Clone(values)
	}
	if why != "" {
		header.Set(HeaderEdge, why)
		header.Set("Age", strconv.Itoa(int(max(0, now.Sub(a.given))/time.Second)))
	}
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // A caller who is gone has no use for it.
	for name, values := range a.trailer {
		header[name] = slices.Clone(values)
	}
}

// A reply holds what a handler answers, until it is whole or too large to hold.
type reply struct {
	to     http.ResponseWriter
	header http.Header
	status int
	before http.Header // as it was when the status was written
	body   bytes.Buffer
	passed bool
}

// Header implements http.ResponseWriter.
func (r *reply) Header() http.Header {
	if r.passed {
		return r.to.Header()
	}
	return r.header
}

// WriteHeader implements http.ResponseWriter.
func (r *reply) WriteHeader(status int) {
	if r.passed || status < 200 { // What is informational says nothing yet.
		r.to.WriteHeader(status)
		return
	}
	if r.status == 0 {
		r.status, r.before = status, r.header.Clone()
	}
}

// Write implements http.ResponseWriter.
func (r *reply) Write(data []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if !r.passed && r.body.Len()+len(data) > staleAnswerMax {
		r.pass()
	}
	if r.passed {
		return r.to.Write(data)
	}
	return r.body.Write(data)
}

// Unwrap lets http.ResponseController reach the connection; Flush has nothing to flush while the reply is held.
func (r *reply) Unwrap() http.ResponseWriter { return r.to }

// Flush implements http.Flusher.
func (r *reply) Flush() {
	if r.passed {
		_ = http.NewResponseController(r.to).Flush()
	}
}

// pass gives up holding.
func (r *reply) pass() {
	r.passed = true
	header := r.to.Header()
	for name, values := range r.before {
		header[name] = values
	}
	r.to.WriteHeader(r.status)
	_, _ = r.to.Write(r.body.Bytes())
	r.body = bytes.Buffer{}
}

// answer returns what was answered. Trailers are what was announced, or has TrailerPrefix, or came after the body.
func (r *reply) answer() *answer {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	a := &answer{status: r.status, header: r.before, body: r.body.Bytes(), trailer: http.Header{}}
	announced := map[string]bool{}
	for _, line := range r.before.Values("Trailer") {
		for name := range strings.SplitSeq(line, ",") {
			announced[http.CanonicalHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	for name, values := range r.header {
		if announced[name] || strings.HasPrefix(name, http.TrailerPrefix) {
			a.trailer[name] = values
			delete(a.header, name)
		}
	}
	return a
}

// codeOf returns the code with which a unary answer ended, 0 for success.
func codeOf(a *answer) connect.Code {
	contentType, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	switch {
	case strings.HasPrefix(contentType, "application/grpc-web"):
		if status := a.header.Get("Grpc-Status"); status != "" {
			return grpcCode(status)
		}
		return grpcCode(webStatus(a.body, a.header.Get("Grpc-Encoding")))
	case strings.HasPrefix(contentType, "application/grpc"):
		for _, header := range []http.Header{a.trailer, a.header} {
			for _, name := range []string{"Grpc-Status", http.TrailerPrefix + "Grpc-Status"} {
				if status := header.Get(name); status != "" {
					return grpcCode(status)
				}
			}
		}
		return connect.CodeInternal // It broke off.
	case a.status == http.StatusOK:
		return 0
	}
	return httpCode(a.status)
}

func grpcCode(status string) connect.Code {
	code, err := strconv.ParseUint(strings.TrimSpace(status), 10, 32)
	if err != nil || code > uint64(connect.CodeUnauthenticated) {
		return connect.CodeUnknown
	}
	return connect.Code(code)
}

// webStatus returns the status in the frame of trailers that ends a gRPC-Web answer, "" if there is none or it cannot be read.
func webStatus(body []byte, encoding string) string {
	const trailers, compressed, prefix = 0x80, 1, 5
	for len(body) >= prefix {
		length := uint64(binary.BigEndian.Uint32(body[1:prefix]))
		if uint64(len(body)-prefix) < length {
			return ""
		}
		frame := body[prefix : prefix+length]
		if body[0]&trailers != 0 {
			if body[0]&compressed != 0 {
				var ok bool
				if frame, ok = wire.Gunzip(frame, requestBytesMax); !ok || encoding != "gzip" {
					return ""
				}
			}
			for line := range strings.SplitSeq(string(frame), "\r\n") {
				if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "grpc-status") {
					return value
				}
			}
			return ""
		}
		body = body[prefix+length:]
	}
	return ""
}

// httpCode returns what a status that is not 200 means to Connect (its specification, "HTTP to error code").
func httpCode(status int) connect.Code {
	switch status {
	case http.StatusBadRequest:
		return connect.CodeInvalidArgument // Or failed precondition, which is an answer as well.
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
	case http.StatusNotImplemented:
		return connect.CodeUnimplemented
	case http.StatusBadGateway, http.StatusServiceUnavailable:
		return connect.CodeUnavailable
	case http.StatusGatewayTimeout:
		return connect.CodeDeadlineExceeded
	case 499:
		return connect.CodeCanceled
	}
	if status >= http.StatusInternalServerError {
		return connect.CodeInternal
	}
	return connect.CodeInvalidArgument
}
