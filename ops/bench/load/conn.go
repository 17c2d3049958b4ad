package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"
)

// A Conn is one connection for requests whose replies the caller must know one by one. It is not for several goroutines.
// It costs more than Run, and works wherever Go does.
type Conn struct {
	conn   net.Conn
	buffer []byte
	// closing is set once the server has said that it closes the connection.
	closing bool
}

// Dial connects to a server, host:port.
func Dial(ctx context.Context, addr string) (*Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Conn{conn: conn, buffer: make([]byte, readSize)}, nil
}

// DialTLS connects to a server over TLS, as HTTP/1.1. Without a ServerName in config, it must be good for the host of addr.
func DialTLS(ctx context.Context, addr string, config *tls.Config) (*Conn, error) {
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &Conn{conn: conn, buffer: make([]byte, readSize)}, nil
}

// Close closes the connection. It may be called while another goroutine is in Do, which then returns an error.
func (c *Conn) Close() error { return c.conn.Close() }

// Do sends a request and reads its reply, whose body is valid until the next call. After an error the connection is of no
// use, and whether the request had an effect is not known.
func (c *Conn) Do(request []byte, timeout time.Duration) (status int, body []byte, err error) {
	if c.closing {
		return 0, nil, errors.New("the server has closed the connection")
	}
	if err := c.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return 0, nil, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return 0, nil, err
	}
	for filled := 0; ; {
		if filled == len(c.buffer) {
			c.buffer = append(c.buffer, make([]byte, readSize)...)
		}
		count, err := c.conn.Read(c.buffer[filled:])
		if err != nil {
			return 0, nil, fmt.Errorf("read the reply: %w", err)
		}
		filled += count
		answer, taken, err := parseReply(c.buffer[:filled])
		switch {
		case err != nil:
			return 0, nil, err
		case taken == 0:
			continue
		case taken != filled:
			return 0, nil, errors.New("a reply that nobody asked for")
		}
		c.closing = answer.closing
		return answer.status, answer.body, nil
	}
}
