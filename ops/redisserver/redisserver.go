// Package redisserver gives tests a Redis of their own: a real redis-server process on loopback that keeps nothing on disk by
// itself, and ends with the test.
package redisserver

import (
	"bufio"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weirhq/weir/ops/freeports"
)

// program is what has to be installed, and missing what a test says that is run without it.
const (
	program = "redis-server"
	missing = "this test needs a real Redis, and redis-server is not here: run 'make redis-server' as root, or install it (Debian: apt-get install redis-server)"
)

// A Server is a redis-server that takes connections.
type Server struct {
	// Addr is where, HOST:PORT.
	Addr string
	// Dir is where it would write to.
	Dir  string
	kill func()
}

// Start starts a Redis at an address of its own, with more settings if there are any, such as "--maxmemory", "100mb". It takes connections
// when Start returns. Where there is no redis-server, the test fails: it is not skipped.
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	return StartAt(tb, freeports.Addresses(tb, 1)[0], settings...)
}

// StartAt is Start at an address of freeports: one that was there before it was killed, or that will be there later.
func StartAt(tb testing.TB, addr string, settings ...string) *Server {
	tb.Helper()
	binary, err := exec.LookPath(program)
	if err != nil {
		tb.Fatal(missing)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{Addr: addr, Dir: tb.TempDir()}
	arguments := []string{"--port", port}
	if slices.Contains(settings, "--tls-cert-file") {
		arguments = []string{"--port", "0", "--tls-port", port}
	}
	arguments = append(arguments, "--bind", host, "--save", "", "--appendonly", "no", "--dir", s.Dir, "--daemonize", "no")
	command := exec.Command(binary, append(arguments, settings...)...) //nolint:noctx,gosec // It outlives contexts: the clean-up kills it.
	output, err := command.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	command.Stderr = command.Stdout
	if err := command.Start(); err != nil {
		tb.Fatalf("start redis-server: %v", err)
	}
	read := make(chan struct{})
	s.kill = sync.OnceFunc(func() {
		_ = command.Process.Kill()
		<-read // Before Wait, which closes what is read.
		_ = command.Wait()
	})
	tb.Cleanup(s.Kill)
	var said strings.Builder
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "Ready to accept connections") {
			go func() {
				defer close(read)
				_, _ = io.Copy(io.Discard, output) // Else it would block on what it says.
			}()
			return s
		}
		said.WriteString(lines.Text() + "\n")
	}
	close(read)
	s.Kill()
	tb.Fatalf("redis-server does not start at %s; it said:\n%s", addr, said.String())
	return nil
}

// Kill ends it as kill -9 does. Again is harmless.
func (s *Server) Kill() { s.kill() }
