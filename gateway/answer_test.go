package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/retry"
	"github.com/weirhq/weir/ops/freeports"
)

// trusting draws no conclusions from nodes that fail.
var trusting = policy.Policy{
	Balance: balance.Config{Ejection: balance.Ejection{Off: true}}, Breaker: breaker.Limits{CallsMin: 1_000_000},
	Retry: retry.Config{Off: true}, Concurrency: limit.ConcurrencyConfig{Off: true},
}

// A gRPC-Web stream over HTTP/1.1 was told that its node broke off where the node had said why it refused the call: the gateway's own server
// took what was left of the request for itself as soon as the answer began.
func TestANodeThatAnswersBeforeItHasReadTheRequestGetsAllOfItAndIsHeard(t *testing.T) {
	const (
		rounds = 50
		half   = 1 << 10
	)
	for _, of := range []struct{ name, contentType, end string }{
		{"grpc-web", "application/grpc-web+proto", "\x80\x00\x00\x00\x11grpc-status: 13\r\n"},
		{"connect stream", "application/connect+proto", "\x02\x00\x00\x00\x1d" + `{"error":{"code":"internal"}}`},
		{"plain", "application/octet-stream", "said"},
	} {
		t.Run(of.name, func(t *testing.T) {
			begun, read := make(chan struct{}, 1), make(chan string, 1)
			node := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				controller := http.NewResponseController(w)
				_ = controller.EnableFullDuplex() // HTTP/2 is so.
				_, err := io.CopyN(io.Discard, r.Body, half)
				w.Header().Set("Content-Type", of.contentType)
				w.WriteHeader(http.StatusOK)
				_ = controller.Flush()
				begun <- struct{}{}
				rest, restErr := io.Copy(io.Discard, r.Body)
				read <- fmt.Sprint(half+rest, err, restErr)
				_, _ = io.WriteString(w, of.end)
			}))
			front, client := inFront(t, trusting, node.URL), http1Client(t)
			for round := range rounds {
				reader, writer := io.Pipe()
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+"/somebody.Else/Call", reader)
				if err != nil {
					t.Fatal(err)
				}
				request.Header.Set("Content-Type", of.contentType)
				go func() {
					_, _ = writer.Write(make([]byte, half))
					select {
					case <-begun:
					case <-t.Context().Done():
					}
					_, _ = writer.Write(make([]byte, half))
					_ = writer.Close()
				}()
				response, err := client.Do(request)
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				body, err := io.ReadAll(response.Body)
				_ = response.Body.Close()
				if err != nil || string(body) != of.end {
					t.Fatalf("round %d: the caller got %q, %v; the node said %q", round, body, err, of.end)
				}
				if got, want := <-read, fmt.Sprint(2*half, nil, nil); got != want {
					t.Fatalf("round %d: the node read %s of the request, want %s", round, got, want)
				}
			}
		})
	}
}

func http1Client(t *testing.T) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: &http.Protocols{}, DisableCompression: true}
	transport.Protocols.SetHTTP1(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: testTimeMax}
}

// A hastyServer answers each request when it has read its head, and resets the connection.
type hastyServer struct {
	net.Listener
	answer string
	wait   sync.WaitGroup
	// other counts requests that are no POST.
	other atomic.Int64
}

func newHastyServer(t *testing.T, answer string) *hastyServer {
	t.Helper()
	// There is little room for what nobody reads, so that whoever sends a request is still writing when the connection is reset.
	narrow := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return joined(raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) }), err)
	}}
	listener, err := narrow.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &hastyServer{Listener: listener, answer: answer}
	s.wait.Go(s.serve)
	t.Cleanup(func() {
		_ = listener.Close()
		s.wait.Wait()
	})
	return s
}

func joined(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *hastyServer) serve() {
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		s.wait.Go(func() {
			_ = conn.SetDeadline(time.Now().Add(testTimeMax))
			head := bufio.NewReaderSize(conn, 16)
			line, err := head.ReadString('\n')
			if err == nil && !strings.HasPrefix(line, http.MethodPost) {
				s.other.Add(1)
			}
			for err == nil && line != "\r\n" {
				line, err = head.ReadString('\n')
			}
			_, _ = io.WriteString(conn, s.answer)
			waitSent(conn.(*net.TCPConn))
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		})
	}
}

// waitSent waits until the other side's kernel has all that was written.
func waitSent(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	for until := time.Now().Add(testTimeMax); time.Now().Before(until); runtime.Gosched() {
		left := 0
		_ = raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
		if err != nil || left == 0 {
			return
		}
	}
}

func TestANodeThatAnswersAndResetsTheConnectionIsHeard(t *testing.T) {
	const (
		rounds       = 40
		requestBytes = 1 << 20  // The most that is passed on of what is no RPC.
		replyBytes   = 16 << 10 // One segment, which is there before the reset is.
	)
	text := strings.Repeat("x", replyBytes)
	// What is left of a request is not to be taken for another one.
	const other = "GET /other HTTP/1.1\r\nHost: other\r\n\r\n"
	sent := []byte(strings.Repeat(other, requestBytes/len(other)))
	node := newHastyServer(t, fmt.Sprintf("HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(text), text))
	front, client := inFront(t, trusting, "http://"+node.Addr().String()), http1Client(t)
	for round := range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), testTimeMax)
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, front.URL+"/webhooks/somebody", bytes.NewReader(sent))
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		body, err := io.ReadAll(response.Body)
		_ = response.Body.Close()
		cancel()
		if err != nil || response.StatusCode != http.StatusForbidden || string(body) != text {
			t.Fatalf("round %d: the caller got %d and %d bytes (%.80q), %v; the node said 403 and %d bytes", round, response.StatusCode, len(body), body, err, len(text))
		}
	}
	if got := node.other.Load(); got != 0 {
		t.Errorf("the node got %d requests that nobody made", got)
	}
}

// The gateway's own server panicked where it still read the rest of such a request, and looked for the next one: that one had no answer.
func TestARequestAfterOneThatWasAnsweredEarlyIsAnswered(t *testing.T) {
	const rounds = 200
	node := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnsupportedMediaType) }))
	front, client := inFront(t, trusting, node.URL), http1Client(t)
	down := inFront(t, trusting, "http://"+freeports.Addresses(t, 1)[0])
	for round := range rounds {
		for url, want := range map[string]int{front.URL: http.StatusUnsupportedMediaType, down.URL: http.StatusServiceUnavailable} {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/webhooks/somebody", strings.NewReader(strings.Repeat("x", 100)))
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.Do(request)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			_, err = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
			if err != nil || response.StatusCode != want {
				t.Fatalf("round %d: the caller got %d, %v, want %d", round, response.StatusCode, err, want)
			}
		}
	}
}

// A heardListener remembers what was read of the only connection that it is for, and when that was closed.
type heardListener struct {
	net.Listener
	mu     sync.Mutex
	heard  bytes.Buffer
	closed chan struct{}
}

func newHeardListener(t *testing.T) *heardListener {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return &heardListener{Listener: listener, closed: make(chan struct{})}
}

func (l *heardListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &heardByTest{Conn: conn, listener: l, end: sync.OnceFunc(func() { close(l.closed) })}, nil
}

// text is what was read until now.
func (l *heardListener) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard.String()
}

type heardByTest struct {
	net.Conn
	listener *heardListener
	end      func()
}

func (c *heardByTest) Read(p []byte) (int, error) {
	count, err := c.Conn.Read(p)
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	c.listener.heard.Write(p[:count])
	return count, err
}

func (c *heardByTest) Close() error {
	c.end()
	return c.Conn.Close()
}

// A client over HTTP/1.1 that was answered while it still sent got a reset in place of the answer: the gateway's own server interrupted the read that
// the call to the node was at, and closed the connection. A case of the conformance suite (unexpected-codec) failed so, once in some hundred runs.
func TestAClientThatIsAnsweredEarlyMayFinishSending(t *testing.T) {
	const half = "\x00\x00\x00\x00\x0ahello"
	for _, test := range []struct {
		name        string
		contentType string
		answers     func(r *http.Request) // what the node does before it answers
		rest        string
	}{
		{"gRPC-Web, when the node has read a part", "application/grpc-web+foo", func(r *http.Request) { _, _ = io.CopyN(io.Discard, r.Body, int64(len(half))) }, "5\r\nworld\r\n0\r\n\r\n"},
		{"a Connect stream, when the node has read a part", "application/connect+foo", func(r *http.Request) { _, _ = io.CopyN(io.Discard, r.Body, int64(len(half))) }, "5\r\nworld\r\n0\r\n\r\n"},
		{"gRPC-Web, when the node has read nothing", "application/grpc-web+foo", func(*http.Request) {}, "5\r\nworld\r\n0\r\n\r\n"},
		{"gRPC-Web, and it sends no more", "application/grpc-web+foo", func(*http.Request) {}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			node := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				test.answers(r)
				w.WriteHeader(http.StatusUnsupportedMediaType)
			}))
			listener := newHeardListener(t)
			serveOn(t, optionsFor(t, trusting, node.URL), listener)
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(testTimeMax)); err != nil {
				t.Fatal(err)
			}
			head := "POST /somebody.Else/Call HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\nContent-Type: " + test.contentType + "\r\n\r\n"
			if _, err := fmt.Fprintf(conn, "%s%x\r\n%s\r\n", head, len(half), half); err != nil {
				t.Fatal(err)
			}
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || response.StatusCode != http.StatusUnsupportedMediaType {
				t.Fatalf("got %v, %v, want what the node answered", response, err)
			}
			_ = response.Body.Close()
			if _, err := io.WriteString(conn, test.rest); err != nil {
				t.Errorf("the client could not finish sending: %v", err)
			}
			select {
			case <-listener.closed:
			case <-time.After(testTimeMax):
				t.Fatal("the connection is held by a client that sends no more")
			}
			if got := listener.text(); !strings.HasSuffix(got, test.rest) {
				t.Errorf("the connection was closed when %q was read; the client sent %q after that", got, test.rest)
			}
		})
	}
}
