package api

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	"github.com/weirhq/weir/proto/weir/points/v1/pointsv1connect"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	"github.com/weirhq/weir/proto/weir/user/v1/userv1connect"
)

// HeaderHop is the header of a call that a node without views has handed on. A node without views refuses it, and says so in a header of
// the same name, so that there is one hop and never a loop; to one with views it says nothing.
const HeaderHop = "Weir-Views-Hop"

// Limits of handing calls on.
const (
	// hopNodesMax is how many nodes are asked, one after the other.
	hopNodesMax = 3
	// hopDialMax bounds the wait for a connection, hopSilenceMax how long an HTTP/2 connection may say nothing before it is asked, and
	// hopAnswerMax how long it then has to answer: a host that is gone or frozen is noticed by nothing else.
	hopDialMax, hopSilenceMax, hopAnswerMax = time.Second, time.Second, time.Second
	// hopIdleConnectionsMax bounds the connections that are kept for the next call, and hopIdleMax how long: shorter than a node keeps them.
	hopIdleConnectionsMax, hopIdleMax = 64, 90 * time.Second
	// hopReplyBytesMax bounds a unary reply, which is kept until it is whole, and a message of a stream, likewise.
	hopReplyBytesMax = 32 << 20
	// hopShunMax is how long a node that could not be asked is asked after all others.
	hopShunMax = 2 * time.Second
	// hopGrace is how much longer than its deadline a call may take here: the node that reads answers that it has passed.
	hopGrace = 250 * time.Millisecond
	// hopRetry is when a caller may come again of whom no node could be asked.
	hopRetry = time.Second
)

// viewMethods are the methods that read views: queries, what follows a view, and two that need an order for something else. A node that
// keeps no views hands them on, whole; it serves all others itself.
var viewMethods = map[string]bool{
	orderv1connect.OrderServiceGetOrderProcedure:                         true,
	orderv1connect.OrderServiceListOrdersProcedure:                       true,
	orderv1connect.OrderServiceSearchOrdersProcedure:                     true,
	orderv1connect.OrderServiceGetTimelineProcedure:                      true,
	orderv1connect.OrderServiceWatchOrderProcedure:                       true,
	orderv1connect.OrderServiceWatchUserOrdersProcedure:                  true,
	orderv1connect.OrderServiceAddNoteProcedure:                          true, // It seals the note for the user whose order it is.
	paymentv1connect.PaymentServiceGetPaymentProcedure:                   true,
	paymentv1connect.PaymentServiceListPaymentsNeedingAttentionProcedure: true,
	catalogv1connect.CatalogServiceGetProductProcedure:                   true,
	catalogv1connect.CatalogServiceListProductsProcedure:                 true,
	catalogv1connect.CatalogServiceGetStockProcedure:                     true,
	catalogv1connect.CatalogServiceWatchStockProcedure:                   true,
	campaignv1connect.CampaignServiceGetCampaignProcedure:                true,
	campaignv1connect.CampaignServiceListCampaignsProcedure:              true,
	campaignv1connect.CouponServiceGetCouponProcedure:                    true,
	campaignv1connect.CouponServiceListCouponsProcedure:                  true,
	pointsv1connect.PointsServiceGetPointsProcedure:                      true,
	reportv1connect.ReportServiceGetSalesProcedure:                       true,
	reportv1connect.ReportServiceGetCampaignBoardProcedure:               true,
	userv1connect.UserServiceExportUserProcedure:                         true, // It is not marked as a query, since it is audited.
}

// changingViewMethods are those of them that change something: they are asked of another node only while none can have taken them.
var changingViewMethods = map[string]bool{orderv1connect.OrderServiceAddNoteProcedure: true}

// An elsewhere hands calls that read views on to nodes that keep some.
type elsewhere struct {
	handler *Handler
	// nodes returns the base URLs of the nodes that keep views, the best first.
	nodes func() []string
	proxy *httputil.ReverseProxy
	// unary is HTTP/1.1, a third of the price of Go's HTTP/2 for one call; streams is HTTP/2, which gRPC needs.
	unary, streams http.RoundTripper

	mu      sync.Mutex
	shunned map[string]time.Time // by base URL, until when
}

func newElsewhere(h *Handler, nodes func() []string) *elsewhere {
	e := &elsewhere{handler: h, nodes: nodes, unary: newHopTransport(false), streams: newHopTransport(true), shunned: map[string]time.Time{}}
	e.proxy = &httputil.ReverseProxy{
		Transport: e, FlushInterval: -1, ErrorLog: slog.NewLogLogger(h.logger.Handler(), slog.LevelDebug),
		Rewrite: func(r *httputil.ProxyRequest) {
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values := r.In.Header[name]; len(values) > 0 {
					r.Out.Header[name] = values
				}
			}
			r.Out.URL.RawQuery = r.In.URL.RawQuery
			r.Out.Header.Set(HeaderHop, "1")
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			_ = h.errors.Write(w, r, h.fail(r.Context(), r.URL.Path, err)) // Whoever left does not hear it.
		},
	}
	return e
}

// newHopTransport returns a transport that speaks HTTP/2, or HTTP/1.1. Without TLS one speaks HTTP/2 only if it does not speak HTTP/1.1.
func newHopTransport(http2 bool) *http.Transport {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	protocols.SetUnencryptedHTTP2(http2)
	return &http.Transport{
		DialContext: (&net.Dialer{Timeout: hopDialMax, KeepAlive: 15 * time.Second}).DialContext, TLSHandshakeTimeout: hopDialMax,
		Protocols: protocols, MaxIdleConns: hopIdleConnectionsMax, MaxIdleConnsPerHost: hopIdleConnectionsMax, IdleConnTimeout: hopIdleMax,
		DisableCompression: true, // What is compressed passes as it is.
		HTTP2:              &http.HTTP2Config{SendPingTimeout: hopSilenceMax, PingTimeout: hopAnswerMax},
	}
}

// serve hands a call on.
func (e *elsewhere) serve(w http.ResponseWriter, r *http.Request) {
	if len(r.Header[HeaderHop]) > 0 {
		w.Header().Set(HeaderHop, "refused")
		e.refuse(w, r, viewsUnavailable("another node handed the call on to this one, which keeps no views either; its list of nodes is out of date"))
		return
	}
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		e.refuse(w, r, &fault{reason: ReasonRequestTooLarge, message: fmt.Sprintf("the request is larger than %d bytes", tooLarge.Limit)})
		return
	case err != nil:
		e.refuse(w, r, &fault{reason: ReasonRequestUnreadable, message: "the request could not be read to its end"})
		return
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(e.handler.watches.ending, func() { //nolint:contextcheck // It is the server's end that is waited for, not the call's.
		if watchMethods[r.URL.Path] {
			cancel(errShuttingDown)
		}
	})()
	if budget, ok := budgetOf(r.Header); ok {
		var done context.CancelFunc
		ctx, done = context.WithTimeout(ctx, budget+hopGrace)
		defer done()
	}
	out := r.WithContext(ctx)
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	if len(body) == 0 {
		out.Body, out.GetBody = http.NoBody, nil
	}
	e.proxy.ServeHTTP(w, out)
}

func (e *elsewhere) refuse(w http.ResponseWriter, r *http.Request, f *fault) {
	_ = e.handler.errors.Write(w, r, f.connectError()) // Whoever left does not hear it.
}

// RoundTrip implements http.RoundTripper for the proxy: it asks one node after the other until one has an answer.
func (e *elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	began := time.Now()
	budget, limited := budgetOf(r.Header)
	var last error
	for _, base := range e.candidates(began) {
		if cause := endOf(r.Context()); cause != nil {
			return nil, cause
		}
		ask := r.Clone(r.Context())
		ask.URL.Scheme, ask.URL.Host, ask.Host = base.Scheme, base.Host, ""
		if r.GetBody != nil {
			ask.Body, _ = r.GetBody() // It is in memory.
		}
		if limited {
			setBudget(ask.Header, budget-time.Since(began))
		}
		reply, err := e.ask(ask)
		switch {
		case err == nil && reply.Header.Get(HeaderWaitsFor) == "" && reply.Header.Get(HeaderHop) == "":
			return reply, nil
		case err == nil && reply.Header.Get(HeaderHop) != "":
			last = errors.New("it keeps no views")
			_ = reply.Body.Close()
		case err == nil:
			last = fmt.Errorf("it is starting, and waits for %s", reply.Header.Get(HeaderWaitsFor))
			_ = reply.Body.Close()
		default:
			last = err
		}
		if cause := endOf(r.Context()); cause != nil {
			return nil, cause
		}
		e.shun(base.String())
		e.handler.logger.LogAttrs(r.Context(), slog.LevelWarn, "a node that keeps views could not be asked",
			slog.String("node", base.String()), slog.String("procedure", r.URL.Path), slog.Any("error", last))
		var dialing *net.OpError
		if changingViewMethods[r.URL.Path] && err != nil && (!errors.As(err, &dialing) || dialing.Op != "dial") {
			break // It may have taken it. The caller's request id makes asking again safe, and the caller decides.
		}
	}
	if last == nil {
		return nil, viewsUnavailable("this node keeps no views, and it knows of no node that does")
	}
	return nil, viewsUnavailable("this node keeps no views, and no node that does could be asked")
}

// endOf says why a call is to go no further, nil while it may.
func endOf(ctx context.Context) error {
	var ended *fault
	switch err := ctx.Err(); {
	case err == nil:
		return nil
	case errors.As(context.Cause(ctx), &ended):
		return ended
	default:
		return err
	}
}

// candidates returns the nodes to ask, those last that could not be asked just now.
func (e *elsewhere) candidates(now time.Time) (nodes []*url.URL) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.shunned, func(_ string, until time.Time) bool { return now.After(until) })
	var later []*url.URL
	for _, text := range e.nodes() {
		base, err := url.Parse(text)
		if err != nil || base.Host == "" {
			continue // A node says nonsense of itself; others do not.
		}
		if _, shunned := e.shunned[base.String()]; shunned {
			later = append(later, base)
		} else {
			nodes = append(nodes, base)
		}
	}
	nodes = append(nodes, later...)
	return nodes[:min(len(nodes), hopNodesMax)]
}

func (e *elsewhere) shun(base string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.shunned[base] = time.Now().Add(hopShunMax)
}

// ask asks one node. A unary reply is read to its end before it counts as one; a stream's messages come as they do.
func (e *elsewhere) ask(r *http.Request) (*http.Response, error) {
	transport := e.streams
	contentType := r.Header.Get("Content-Type")
	if r.Method == http.MethodGet || !strings.HasPrefix(contentType, "application/grpc") && !strings.HasPrefix(contentType, "application/connect") {
		transport = e.unary
	}
	reply, err := transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if watchMethods[r.URL.Path] {
		if reply.StatusCode == http.StatusOK {
			reply.Body = &messages{source: reply.Body, reply: reply, ctx: r.Context(), contentType: contentType}
		}
		return reply, nil
	}
	body, err := io.ReadAll(io.LimitReader(reply.Body, hopReplyBytesMax+1))
	_ = reply.Body.Close() // It was read.
	if err == nil && len(body) > hopReplyBytesMax {
		err = fmt.Errorf("the reply is larger than %d bytes", hopReplyBytesMax)
	}
	if err != nil {
		return nil, err
	}
	reply.Body = io.NopCloser(bytes.NewReader(body))
	return reply, nil
}

// frameHeadBytes is the length of the head of an enveloped message: a byte of flags, and the length of what follows.
const frameHeadBytes = 5

// The flags of the last message of a stream.
const (
	flagConnectEnd = 0b10
	flagWebEnd     = 0x80
)

// messages are the body of a stream's reply, message by message: one that breaks off is not begun, and the stream then ends as its protocol
// says, with what the caller may do.
type messages struct {
	source      io.ReadCloser
	reply       *http.Response
	ctx         context.Context //nolint:containedctx // The call's: it says why the stream broke off.
	contentType string

	whole bytes.Buffer // what is to be passed on
	ended bool         // the last message has come
	err   error        // after whole
}

// Read implements io.Reader.
func (m *messages) Read(p []byte) (int, error) {
	if m.whole.Len() == 0 && m.err == nil {
		m.next()
	}
	if m.whole.Len() > 0 {
		return m.whole.Read(p)
	}
	return 0, m.err
}

// Close implements io.Closer.
func (m *messages) Close() error { return m.source.Close() }

// next reads a message, or the end.
func (m *messages) next() {
	var head [frameHeadBytes]byte
	_, err := io.ReadFull(m.source, head[:])
	if err == nil {
		length := binary.BigEndian.Uint32(head[1:])
		if length > hopReplyBytesMax {
			err = fmt.Errorf("a message of %d bytes", length)
		} else {
			m.whole.Reset()
			m.whole.Write(head[:])
			_, err = io.CopyN(&m.whole, m.source, int64(length))
		}
		m.ended = m.ended || err == nil && head[0]&(flagConnectEnd|flagWebEnd) != 0
	}
	if err == nil {
		return
	}
	m.whole.Reset()
	m.err = io.EOF
	switch {
	case m.ended:
	case errors.Is(err, io.EOF) && !strings.HasPrefix(m.contentType, "application/connect") && m.said():
	default:
		m.breakOff()
	}
}

// said reports whether the reply says how the call ended, in its trailers or, where nothing came, its headers.
func (m *messages) said() bool {
	return m.reply.Trailer.Get(grpcStatusHeader) != "" || m.reply.Header.Get(grpcStatusHeader) != ""
}

// breakOff ends the stream of a node that said no end.
func (m *messages) breakOff() {
	f := viewsUnavailable("the node whose views this stream follows is gone; call again, another one or this one will answer")
	var ended *fault
	if errors.As(context.Cause(m.ctx), &ended) {
		f = ended
	}
	made := f.connectError()
	if strings.HasPrefix(m.contentType, "application/connect") {
		// The writer's error for a stream is exactly the message that ends it.
		recorded := &bodyRecorder{header: http.Header{}}
		as := &http.Request{Method: http.MethodPost, Header: http.Header{"Content-Type": {m.contentType}}}
		_ = connect.NewErrorWriter().Write(recorded, as, made) // It is memory.
		m.whole.Write(recorded.body.Bytes())
		return
	}
	trailer := grpcTrailerOf(made)
	if strings.HasPrefix(m.contentType, "application/grpc-web") {
		var text bytes.Buffer
		for name, value := range trailer {
			fmt.Fprintf(&text, "%s: %s\r\n", strings.ToLower(name), value)
		}
		m.whole.WriteByte(flagWebEnd)
		m.whole.Write(binary.BigEndian.AppendUint32(nil, uint32(text.Len())))
		m.whole.Write(text.Bytes())
		return
	}
	m.reply.Trailer = http.Header{}
	for name, value := range trailer {
		m.reply.Trailer.Set(name, value)
	}
}

// grpcTrailerOf returns an error as gRPC says it.
func grpcTrailerOf(made *connect.Error) map[string]string {
	said := &status.Status{Code: int32(made.Code()), Message: made.Message()}
	for _, detail := range made.Details() {
		said.Details = append(said.Details, &anypb.Any{TypeUrl: "type.googleapis.com/" + detail.Type(), Value: detail.Bytes()})
	}
	trailer := map[string]string{grpcStatusHeader: strconv.Itoa(int(made.Code())), grpcMessageHeader: url.PathEscape(made.Message())}
	if wire, err := proto.Marshal(said); err == nil {
		trailer[grpcDetailsHeader] = connect.EncodeBinaryHeader(wire)
	}
	return trailer
}

// A bodyRecorder keeps what is written to it.
type bodyRecorder struct {
	header http.Header
	body   bytes.Buffer
}

func (b *bodyRecorder) Header() http.Header         { return b.header }
func (b *bodyRecorder) Write(p []byte) (int, error) { return b.body.Write(p) }
func (b *bodyRecorder) WriteHeader(int)             {}

// grpcUnits are gRPC's units of time, the finest first.
var grpcUnits = []struct {
	letter byte
	unit   time.Duration
}{{'n', time.Nanosecond}, {'u', time.Microsecond}, {'m', time.Millisecond}, {'S', time.Second}, {'M', time.Minute}, {'H', time.Hour}}

// budgetOf returns how long a caller gives a call, and false if it does not say so, or not in a way that can be read.
func budgetOf(header http.Header) (time.Duration, bool) {
	if text := header.Get(connectTimeoutHeader); text != "" {
		millis, err := strconv.ParseUint(text, 10, 31)
		return time.Duration(millis) * time.Millisecond, err == nil
	}
	text := header.Get(grpcTimeoutHeader)
	if text == "" {
		return 0, false
	}
	amount, err := strconv.ParseUint(text[:len(text)-1], 10, 31)
	for _, u := range grpcUnits {
		if err == nil && u.letter == text[len(text)-1] && amount <= uint64(1<<62/u.unit) {
			return time.Duration(amount) * u.unit, true
		}
	}
	return 0, false
}

// setBudget says how long is left of a call, in the header that said how long there was.
func setBudget(header http.Header, left time.Duration) {
	millis := strconv.FormatInt(max(0, left.Milliseconds()), 10)
	if header.Get(connectTimeoutHeader) != "" {
		header.Set(connectTimeoutHeader, millis)
		return
	}
	if left.Milliseconds() >= 1e8 { // gRPC takes 8 digits.
		header.Set(grpcTimeoutHeader, strconv.FormatInt(int64(left/time.Second), 10)+"S")
		return
	}
	header.Set(grpcTimeoutHeader, millis+"m")
}

// viewsUnavailable says that nobody could be asked who keeps views.
func viewsUnavailable(message string) *fault {
	return &fault{reason: ReasonViewsUnavailable, message: message, retryAfter: hopRetry}
}
