package redisview

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/ops/redisserver"
)

// patience bounds the waits of tests; only a failing test waits as long.
const patience = time.Minute

// A server is a Redis of a test's own.
type server struct {
	tb   testing.TB
	addr string
	kill func()
}

func startServer(tb testing.TB, settings ...string) *server {
	tb.Helper()
	s := redisserver.Start(tb, settings...)
	return &server{tb: tb, addr: s.Addr, kill: s.Kill}
}

func atoi(text string) int {
	value, _ := strconv.Atoi(text)
	return value
}

// client returns a client of the test's own.
func (s *server) client() *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: s.addr})
	s.tb.Cleanup(func() { client.Close() })
	return client
}

// do runs a command that must succeed.
func (s *server) do(arguments ...any) any {
	s.tb.Helper()
	result, err := s.client().Do(s.tb.Context(), arguments...).Result()
	if err != nil {
		s.tb.Fatalf("redis %v: %v", arguments, err)
	}
	return result
}

// info returns a number that the server says of itself.
func (s *server) info(section, field string) int {
	s.tb.Helper()
	text, _ := s.do("INFO", section).(string)
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), field+":"); ok {
			return atoi(value)
		}
	}
	s.tb.Fatalf("redis does not say %s", field)
	return 0
}

// A proxy stands between a mirror and its Redis: it can stall, and it can point to another server.
type proxy struct {
	addr string

	mu      sync.Mutex
	target  string
	stalled chan struct{} // not nil while nothing passes; closed when it does again
	cuts    []context.CancelFunc
}

func startProxy(tb testing.TB, target string) *proxy {
	tb.Helper()
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p := &proxy{addr: listener.Addr().String(), target: target}
	ctx, cancel := context.WithCancel(context.Background()) // The clean-up ends it, after tb.Context has ended.
	var connections sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		listener.Close()
		connections.Wait()
	})
	connections.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			connections.Go(func() { p.serve(ctx, conn) })
		}
	})
	return p
}

func (p *proxy) serve(ctx context.Context, near net.Conn) {
	defer near.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	far, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.cuts = append(p.cuts, cancel)
	p.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		near.Close()
		far.Close()
	})
	defer stop()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
		both.Go(func() {
			defer cancel()
			p.pass(ctx, way[0], way[1])
		})
	}
	both.Wait()
}

func (p *proxy) pass(ctx context.Context, from, to net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		count, err := from.Read(buffer)
		if err != nil {
			return
		}
		p.mu.Lock()
		stalled := p.stalled
		p.mu.Unlock()
		if stalled != nil {
			select {
			case <-stalled:
			case <-ctx.Done():
				return
			}
		}
		if _, err := to.Write(buffer[:count]); err != nil {
			return
		}
	}
}

// stall holds everything that comes by, until the returned function is called.
func (p *proxy) stall() (resume func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stalled := make(chan struct{})
	p.stalled = stalled
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.stalled = nil
		close(stalled)
	}
}

// cut ends the connections that there are.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cut := range p.cuts {
		cut()
	}
	p.cuts = nil
}

func (p *proxy) point(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// eventually polls until the condition holds.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("not within %s: %s", patience, what)
		}
	}
}
