package gateway

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// NewServer returns a server of the gateway for HTTP/1.1 and HTTP/2, in plain text and over TLS, with the limits of its policy. The
// caller gives it a listener.
func NewServer(g *Gateway) *http.Server {
	limits := g.rules.Load().policy.Limits
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           g,
		Protocols:         &protocols,
		ReadHeaderTimeout: limits.HeaderTime,
		// No ReadTimeout: over HTTP/1.1 it would cancel calls that outlast it. Each body has a deadline of its own.
		WriteTimeout:   limits.ReplyTime,
		IdleTimeout:    limits.IdleTime,
		MaxHeaderBytes: limits.HeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          limits.StreamsPerConnection,
			MaxReceiveBufferPerConnection: 1 << 20,
			MaxReceiveBufferPerStream:     128 << 10,
			SendPingTimeout:               30 * time.Second,
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              30 * time.Second,
		},
		ErrorLog: slog.NewLogLogger(g.logger.Handler(), slog.LevelDebug), // The noise of broken clients.
	}
}

// Bounded returns a listener that closes what is beyond the gateway's limits of connections, in all and from one address, as soon as it
// is there: to let it wait would make all others wait.
func Bounded(g *Gateway, listener net.Listener) net.Listener {
	return &boundedListener{Listener: listener, gateway: g, open: map[netip.Addr]int{}}
}

type boundedListener struct {
	net.Listener
	gateway *Gateway

	mu    sync.Mutex
	total int
	// open counts connections by client address; an address with none has no entry.
	open map[netip.Addr]int
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if kept := l.admit(conn); kept != nil {
			return kept, nil
		}
		_ = conn.Close() // Whoever is over the limit is told by the reset.
	}
}

// admit counts a connection, and returns nil if it is one too many.
func (l *boundedListener) admit(conn net.Conn) net.Conn {
	limits := l.gateway.rules.Load().policy.Limits
	address := clientAddress(conn.RemoteAddr().String())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= limits.Connections || l.open[address] >= limits.ConnectionsPerAddress {
		l.gateway.connectionsRefused.Add(1)
		return nil
	}
	l.total++
	l.open[address]++
	return &countedConn{Conn: conn, forget: sync.OnceFunc(func() { l.forget(address) })}
}

func (l *boundedListener) forget(address netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[address]--; l.open[address] == 0 {
		delete(l.open, address)
	}
}

// clientAddress returns the address of HOST:PORT, one for a whole IPv6 network of 64 bits, which is one customer's.
func clientAddress(hostPort string) netip.Addr {
	at, err := netip.ParseAddrPort(hostPort)
	if err != nil {
		return netip.Addr{} // Not TCP: all of them together.
	}
	address := at.Addr().Unmap()
	if address.Is6() {
		if network, err := address.WithZone("").Prefix(64); err == nil {
			return network.Addr()
		}
	}
	return address
}

// countedConn counts until it is closed.
type countedConn struct {
	net.Conn
	forget func()
}

// Close implements net.Conn.
func (c *countedConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// CloseWrite ends what is written and goes on reading: so the server sees to it that a client reads why it was refused.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
