// Package edge is what a gateway answers by itself, so that less reaches its nodes, or something is answered when they cannot: an older
// answer to the same read, OUT_OF_STOCK for what is sold out, and an error for what an operator turned off.
//
// Each is a switch that a plan sets. With all of them off, every call passes.
package edge

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// An Edge answers calls, or lets them pass. Its methods may be called by several goroutines.
type Edge struct {
	options Options
	stale   *stale
	board   *Board // nil if nobody looks at stock
	rules   atomic.Pointer[Config]
	counts  [countsMax]atomic.Uint64
}

// Options of an Edge; all of them may be left out.
type Options struct {
	// Refuse writes an error in the protocol of the request; nil means Connect's own writer.
	Refuse func(w http.ResponseWriter, r *http.Request, err *connect.Error) error
	// User returns the user that the request says it is of, "" if it says none. It need not be verified: the answers that depend on it
	// are refusals, and whoever it could be untrue for is let pass.
	User func(r *http.Request) string
	// Board knows what is sold out.
	Board *Board
	// Room refuses an order of a user in a campaign that has a waiting room, unless it is the user's turn; nil means that there are no rooms. What it
	// returns besides, if anything, is told the code with which the order ended, 0 for success. With it, an order that cannot be looked into is
	// refused: it could be of such a campaign.
	Room func(r *http.Request, user string, request *orderv1.PlaceOrderRequest) (done func(connect.Code), err *connect.Error)
	// StaleBytesMax bounds the answers that are kept, together; 0 means StaleBytesDefault.
	StaleBytesMax int64
}

// Config is what is switched on.
type Config struct {
	// Off by procedure, such as "/weir.points.v1.PointsService/GetPoints", or by service, such as "/weir.points.v1.PointsService/".
	Off map[string]Off `yaml:"off"`
	// Stale by procedure: reads that may be answered from memory.
	Stale map[string]Stale `yaml:"stale"`
	// SoldOut lets orders of what is sold out be refused here.
	SoldOut bool `yaml:"sold_out"`
}

// Off is the answer to what is turned off.
type Off struct {
	// Message tells people; by default that it is turned off for now.
	Message string `yaml:"message"`
	// Code of the error, such as unavailable, which is the default.
	Code connect.Code `yaml:"code"`
	// RetryAfter tells programs when to try again; 0 means that they are told nothing.
	RetryAfter time.Duration `yaml:"retry_after"`
}

// Limits and names.
const (
	// ErrorDomain is the domain of every google.rpc.ErrorInfo.
	ErrorDomain = "weir"
	// ReasonFeatureOff is the reason of what is turned off, ReasonOutOfStock that of what is sold out.
	ReasonFeatureOff = "FEATURE_OFF"
	ReasonOutOfStock = "OUT_OF_STOCK"
	// HeaderEdge says in an answer that it is the edge's, and which: "off", "sold-out" with the position of the stock, or "stale" and why.
	// An old answer has its age in seconds in the header Age.
	HeaderEdge = "Weir-Edge"

	retryAfterMax   = time.Hour
	messageBytesMax = 1000
	offMax          = 1000
	// requestBytesMax bounds a request that the edge looks into; larger ones pass.
	requestBytesMax = 64 << 10
)

// Validate says what is wrong with the configuration.
func (c Config) Validate() error {
	var errs []error
	if len(c.Off) > offMax || len(c.Stale) > offMax {
		errs = append(errs, fmt.Errorf("more than %d methods", offMax))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Off)) {
		off := c.Off[name]
		switch {
		case !strings.HasPrefix(name, "/") || strings.Count(name, "/") != 2:
			errs = append(errs, fmt.Errorf("off %q: want /PACKAGE.SERVICE/METHOD, or /PACKAGE.SERVICE/ for all of it", name))
		case len(off.Message) > messageBytesMax:
			errs = append(errs, fmt.Errorf("off %s: the message has %d bytes, want at most %d", name, len(off.Message), messageBytesMax))
		case off.RetryAfter < 0 || off.RetryAfter > retryAfterMax:
			errs = append(errs, fmt.Errorf("off %s: retry_after is %s, want 0 to %s", name, off.RetryAfter, retryAfterMax))
		case off.Code > connect.CodeUnauthenticated:
			errs = append(errs, fmt.Errorf("off %s: %d is no code", name, off.Code))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Stale)) {
		if err := c.Stale[name].validate(name); err != nil {
			errs = append(errs, fmt.Errorf("stale %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// New makes an edge with everything switched off.
func New(options Options) (*Edge, error) {
	if options.StaleBytesMax < 0 {
		return nil, fmt.Errorf("edge: stale answers may have %d bytes", options.StaleBytesMax)
	}
	if options.StaleBytesMax == 0 {
		options.StaleBytesMax = StaleBytesDefault
	}
	if options.Refuse == nil {
		writer := connect.NewErrorWriter()
		options.Refuse = func(w http.ResponseWriter, r *http.Request, err *connect.Error) error { return writer.Write(w, r, err) }
	}
	if options.User == nil {
		options.User = func(*http.Request) string { return "" }
	}
	e := &Edge{options: options, stale: newStale(options.StaleBytesMax), board: options.Board}
	e.rules.Store(&Config{})
	return e, nil
}

// Apply switches, from the next call on. An error leaves everything as it is.
func (e *Edge) Apply(config Config) error {
	if err := config.Validate(); err != nil {
		return fmt.Errorf("edge: %w", err)
	}
	if config.SoldOut && e.board == nil {
		return errors.New("edge: sold_out needs a board, and this gateway has none: say which products and campaigns it is to look at")
	}
	e.rules.Store(&config)
	return nil
}

// Wrap puts the edge in front of a handler. Requests come with their path as the procedure.
func (e *Edge) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { e.serve(w, r, next) })
}

func (e *Edge) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	rules := e.rules.Load()
	if off, is := rules.off(r.URL.Path); is {
		e.counts[countOff].Add(1)
		e.refuse(w, r, off.connectError(r.URL.Path))
		return
	}
	if r.URL.Path == orderv1connect.OrderServicePlaceOrderProcedure && r.Method == http.MethodPost && (rules.SoldOut || e.options.Room != nil) {
		e.serveOrder(w, r, next, rules.SoldOut)
		return
	}
	if stale, may := rules.Stale[r.URL.Path]; may {
		if body, whole := peek(r); whole {
			e.serveStale(w, r, next, stale, body)
			return
		}
	}
	next.ServeHTTP(w, r)
}

// refuse writes an error. If that fails the caller is gone.
func (e *Edge) refuse(w http.ResponseWriter, r *http.Request, err *connect.Error) {
	_ = e.options.Refuse(w, r, err)
}

// off returns the answer to what is turned off.
func (c *Config) off(procedure string) (Off, bool) {
	if len(c.Off) == 0 {
		return Off{}, false
	}
	if off, is := c.Off[procedure]; is {
		return off, true
	}
	off, is := c.Off[procedure[:strings.LastIndexByte(procedure, '/')+1]]
	return off, is
}

func (o Off) connectError(procedure string) *connect.Error {
	code, message := o.Code, o.Message
	if code == 0 {
		code = connect.CodeUnavailable
	}
	if message == "" {
		message = procedure + " is turned off for now"
	}
	err := connect.NewError(code, errors.New(message))
	addDetail(err, &errdetails.ErrorInfo{Reason: ReasonFeatureOff, Domain: ErrorDomain, Metadata: map[string]string{"method": procedure}})
	if o.RetryAfter > 0 {
		addDetail(err, &errdetails.RetryInfo{RetryDelay: durationpb.New(o.RetryAfter)})
		err.Meta().Set("Retry-After", strconv.Itoa(int((o.RetryAfter+time.Second-1)/time.Second)))
	}
	err.Meta().Set(HeaderEdge, "off")
	return err
}

// addDetail adds a detail as nodes do: the same facts make the same bytes.
func addDetail(err *connect.Error, message proto.Message) {
	var packed anypb.Any
	if anypb.MarshalFrom(&packed, message, proto.MarshalOptions{Deterministic: true}) != nil {
		return // Invalid UTF-8, at worst. The code and the message stand without it.
	}
	if detail, detailErr := connect.NewErrorDetail(&packed); detailErr == nil {
		err.AddDetail(detail)
	}
}

// peek returns the body of a request, which stays as it was for whoever reads it next. whole is false if it is too large to look into, or could
// not be read; then nothing of it is lost either.
func peek(r *http.Request) (body []byte, whole bool) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, true
	}
	if r.ContentLength > requestBytesMax {
		return nil, false
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, requestBytesMax+1))
	rest := r.Body
	if err != nil {
		r.Body = readCloser{io.MultiReader(bytes.NewReader(body), failingReader{err}), rest}
		return nil, false
	}
	if len(body) > requestBytesMax {
		r.Body = readCloser{io.MultiReader(bytes.NewReader(body), rest), rest}
		return nil, false
	}
	r.Body = readCloser{bytes.NewReader(body), rest}
	return body, true
}

type readCloser struct {
	io.Reader
	io.Closer
}

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

// What an edge counts.
const (
	countOff = iota
	countSoldOut
	countRoom
	countStaleFailed
	countStalePlanned
	countsMax
)

// Stats counts the calls that the edge answered, since the start.
type Stats struct {
	Off, SoldOut, Room, StaleFailed, StalePlanned uint64
}

// Stats returns what the edge did.
func (e *Edge) Stats() Stats {
	return Stats{
		Off: e.counts[countOff].Load(), SoldOut: e.counts[countSoldOut].Load(), Room: e.counts[countRoom].Load(),
		StaleFailed: e.counts[countStaleFailed].Load(), StalePlanned: e.counts[countStalePlanned].Load(),
	}
}
