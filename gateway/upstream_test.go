package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A crowd that dialed all at once overflowed the node's queue of connections to accept: its calls failed, and the breaker opened.
func TestACrowdDialsInTurn(t *testing.T) {
	const crowd, atOnceMax = 1000, 16
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most, all := 0, 0, 0
		accept := make(chan struct{})
		dial := inTurn(func(context.Context, string, string) (net.Conn, error) {
			mu.Lock()
			now++
			all++
			most = max(most, now)
			mu.Unlock()
			<-accept
			mu.Lock()
			now--
			mu.Unlock()
			return nil, errRefusedForTest
		}, atOnceMax)
		ctx, leave := context.WithCancel(t.Context())
		var left, dialed sync.WaitGroup
		for range crowd {
			dialed.Go(func() {
				if _, err := dial(t.Context(), "tcp", "node"); !errors.Is(err, errRefusedForTest) {
					t.Errorf("got %v, want what the dialer said", err)
				}
			})
		}
		synctest.Wait()
		left.Go(func() {
			if _, err := dial(ctx, "tcp", "node"); !errors.Is(err, context.Canceled) {
				t.Errorf("who left before its turn got %v", err)
			}
		})
		synctest.Wait()
		leave()
		left.Wait()
		close(accept)
		dialed.Wait()
		if most != atOnceMax || all != crowd {
			t.Errorf("%d were dialed at once and %d in all, want %d and %d", most, all, atOnceMax, crowd)
		}
	})
}

var errRefusedForTest = errors.New("refused")

// A deafConn is one to a server that answers and closes before it has read all: from then on what is written to it fails, and the answer is still there
// to be read.
type deafConn struct {
	net.Conn
	closed *atomic.Bool
}

func (c deafConn) Write(p []byte) (int, error) {
	if c.closed.Load() {
		return 0, &net.OpError{Op: "write", Err: syscall.EPIPE}
	}
	return c.Conn.Write(p)
}

// oneConn is a listener that accepts one connection.
type oneConn struct {
	net.Conn
	accepted atomic.Bool
	closed   chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	if l.accepted.CompareAndSwap(false, true) {
		return l.Conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Addr() net.Addr { return l.LocalAddr() }

func TestANodeThatAnswersBeforeItHasReadTheRequestIsHeardOutOverHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		var closed atomic.Bool
		listener := &oneConn{Conn: there, closed: make(chan struct{})}
		server := &http.Server{Protocols: &http.Protocols{}, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			closed.Store(true)
			<-time.After(time.Second) // The client has noticed that it cannot write by then.
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, "no")
		})}
		server.Protocols.SetUnencryptedHTTP2(true)
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(listener) })
		transport := newTransport(true)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			return newHeardConn(deafConn{here, &closed}, true), nil
		}
		body := io.LimitReader(zeros{}, 1<<20) // More than the server's window.
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://node/", body)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatalf("the answer was not heard: %v", err)
		}
		text, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusTeapot || string(text) != "no" {
			t.Errorf("got %s %q, %v", response.Status, text, err)
		}
		_ = response.Body.Close()
		_ = here.Close()
		transport.CloseIdleConnections()
		close(listener.closed)
		_ = server.Close()
		serving.Wait()
	})
}

// zeros has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
