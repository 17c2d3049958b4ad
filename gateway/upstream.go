package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/weirhq/weir/gateway/wire"
)

// Limits of the connections to one upstream.
const (
	// dialTimeMax bounds the wait for a connection: a node that is there answers at once.
	dialTimeMax = time.Second
	// dialsMax is how many connections are made at a time, so that a crowd does not overflow the queue of those that the node has yet to
	// accept: the system drops what does, and who was dropped comes again after a second, which is too late.
	dialsMax = 128
	// idleConnectionsMax bounds the HTTP/1.1 connections that are kept for the next call.
	idleConnectionsMax = 512
	// idleTimeMax is how long they are kept: shorter than a node keeps them, so that it is not the node that closes one just as a
	// call goes out on it.
	idleTimeMax = 90 * time.Second
	// h2Connections is how many HTTP/2 connections calls are spread over: one has one reader, which is one core at most.
	h2Connections = 4
	// silenceMax is how long an HTTP/2 connection may say nothing before it is asked, and answerMax how long it has to answer. A
	// host that is gone or frozen is noticed by nothing else.
	silenceMax, answerMax = time.Second, time.Second
	// replyHeaderBytesMax bounds the headers of a reply.
	replyHeaderBytesMax = 256 << 10
)

// An upstream is a server that calls go to.
type upstream struct {
	// id names it in metrics and in the log.
	id     string
	scheme string
	host   string
	// unary is HTTP/1.1 with a pool of connections, a third of the price of Go's HTTP/2 for one call. streams is HTTP/2, which
	// gRPC needs, and with which many streams share a connection.
	unary   http.RoundTripper
	streams []http.RoundTripper
	next    atomic.Uint32
	// counts are what came of its attempts.
	counts tally[*method, series]
	// close lets go of connections that no call uses, and waits for what still runs in this process.
	close func()
}

// newUpstream returns the upstream at a base URL, http://HOST:PORT or https://HOST:PORT. It connects when it is called.
func newUpstream(id string, base *url.URL) (*upstream, error) {
	if base.Scheme != "http" && base.Scheme != "https" || base.Host == "" || (base.Path != "" && base.Path != "/") || base.RawQuery != "" || base.User != nil {
		return nil, fmt.Errorf("upstream %q is not http://HOST:PORT or https://HOST:PORT", base.Redacted())
	}
	unary := newTransport(false)
	transports := []*http.Transport{unary}
	u := &upstream{id: id, scheme: base.Scheme, host: base.Host, unary: unary}
	for range h2Connections {
		streams := newTransport(true)
		transports, u.streams = append(transports, streams), append(u.streams, streams)
	}
	u.close = func() {
		for _, transport := range transports {
			transport.CloseIdleConnections()
		}
	}
	return u, nil
}

// newTransport returns a transport that speaks HTTP/2, or HTTP/1.1. Without TLS one speaks HTTP/2 only if it does not speak HTTP/1.1.
func newTransport(http2 bool) *http.Transport {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	protocols.SetUnencryptedHTTP2(http2)
	dialer := &net.Dialer{Timeout: dialTimeMax, KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext: inTurn(func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return newHeardConn(conn, http2), nil
		}, dialsMax),
		Protocols:    protocols,
		MaxIdleConns: idleConnectionsMax, MaxIdleConnsPerHost: idleConnectionsMax, IdleConnTimeout: idleTimeMax,
		TLSHandshakeTimeout: dialTimeMax,
		// What is compressed passes as it is.
		DisableCompression:     true,
		MaxResponseHeaderBytes: replyHeaderBytesMax,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: silenceMax, PingTimeout: answerMax, WriteByteTimeout: 10 * time.Second,
			MaxReceiveBufferPerConnection: 4 << 20, MaxReceiveBufferPerStream: 256 << 10,
		},
	}
}

// A heardConn is a connection to an upstream that is heard out. A server may answer, and close, before it has read all of a request: then the
// rest of it cannot be written, and a transport that is told so lets go of the connection, though the answer is there to be read. So a write
// to a connection that the other side has closed fails only when there is no more to be read, or nobody who reads.
type heardConn struct {
	net.Conn
	// shared is whether there are many calls at a time, as with HTTP/2. Then whoever reads writes too, and would wait for itself: so a
	// write counts as done, and reading tells of the end.
	shared bool
	silent chan struct{}
	end    func()
}

func newHeardConn(conn net.Conn, shared bool) *heardConn {
	c := &heardConn{Conn: conn, shared: shared, silent: make(chan struct{})}
	c.end = sync.OnceFunc(func() { close(c.silent) })
	return c
}

// Read implements io.Reader.
func (c *heardConn) Read(p []byte) (int, error) {
	count, err := c.Conn.Read(p)
	if err != nil {
		c.end()
	}
	return count, err
}

// Write implements io.Writer.
func (c *heardConn) Write(p []byte) (int, error) {
	count, err := c.Conn.Write(p)
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		return count, err
	}
	if c.shared {
		return len(p), nil
	}
	<-c.silent
	return count, err
}

// Close implements net.Conn.
func (c *heardConn) Close() error {
	c.end()
	return c.Conn.Close()
}

// newLocalUpstream returns an upstream that is a handler of this process.
func newLocalUpstream(id string, handler http.Handler) *upstream {
	local := &localTransport{handler: handler}
	return &upstream{id: id, scheme: "http", host: id, unary: local, streams: []http.RoundTripper{local}, close: local.streams.Wait}
}

// transportFor returns what carries a call of the protocol.
func (u *upstream) transportFor(p wire.Protocol, unary bool) http.RoundTripper {
	if p == wire.Plain || p == wire.ConnectUnary || p == wire.ConnectGet || (p == wire.GRPCWeb && unary) {
		return u.unary
	}
	return u.streams[u.next.Add(1)%uint32(len(u.streams))]
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// inTurn dials so many connections at a time, in the order in which they are asked for. Who waits for a turn has not begun to dial.
func inTurn(dial dialFunc, atOnceMax int) dialFunc {
	turns := make(chan struct{}, atOnceMax)
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		select {
		case turns <- struct{}{}:
			defer func() { <-turns }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return dial(ctx, network, address)
	}
}
