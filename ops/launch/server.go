// Package launch starts servers for programs that measure or torment them, waits until they serve, and ends them. It ends
// nothing that it did not start.
package launch

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopWait is how long a server may take to end cleanly before it is killed.
	stopWait = 30 * time.Second
	// goneWait is how long a process that was killed may take to be gone, and the pipe for what it printed to be empty.
	goneWait = 10 * time.Second
	// readyWait is how long a server may take to serve.
	readyWait = 2 * time.Minute
	// pollInterval is how often a server that starts is asked.
	pollInterval = 2 * time.Millisecond
	// printedMax is how many bytes of what a server printed are kept.
	printedMax = 16 << 10
)

// A Server is a process that was started here.
type Server struct {
	// Name for people.
	Name string
	// Addr is where it serves, host:port.
	Addr string

	command *exec.Cmd
	printed tail
	exited  chan struct{}
}

// Start runs a command, as another user if one is given. The caller ends it with Stop.
func Start(name, addr string, user *syscall.Credential, command *exec.Cmd) (*Server, error) {
	s := &Server{Name: name, Addr: addr, command: command, exited: make(chan struct{})}
	command.Stdin, command.Stdout, command.Stderr = nil, &s.printed, &s.printed
	command.WaitDelay = goneWait
	// In a group of its own, so that ctrl-c reaches this program first, and this program ends the server.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: user}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = command.Wait() // How it ended is in its state.
		close(s.exited)
	}()
	return s, nil
}

// PID returns the process's id.
func (s *Server) PID() int { return s.command.Process.Pid }

// Exited is closed when the process has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// Printed returns the last of what the server printed, for when it fails.
func (s *Server) Printed() string { return "it printed:\n" + s.printed.String() }

// Stop sends a signal and waits until the process has ended. One that does not end in time is killed, and that is an error.
func (s *Server) Stop(signal os.Signal) error {
	_ = s.command.Process.Signal(signal) // It may have ended.
	select {
	case <-s.exited:
		return nil
	case <-time.After(stopWait):
	}
	_ = s.command.Process.Kill()
	select {
	case <-s.exited:
		return fmt.Errorf("%s did not end within %v and was killed: %s", s.Name, stopWait, s.Printed())
	case <-time.After(goneWait):
		return fmt.Errorf("%s did not end within %v, and is there %v after it was killed: %s", s.Name, stopWait, goneWait, s.Printed())
	}
}

// Pause stops the process where it is (SIGSTOP), Resume lets it go on (SIGCONT). In between it can be killed, but not ended cleanly.
func (s *Server) Pause() error { return s.command.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (s *Server) Resume() error { return s.command.Process.Signal(syscall.SIGCONT) }

// Ready asks until the answer is nil. It returns an error when the server ends or takes too long.
func (s *Server) Ready(ctx context.Context, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return fmt.Errorf("%s ended (%v) before it served: %s", s.Name, s.command.ProcessState, s.Printed())
		case <-ctx.Done():
			return fmt.Errorf("%s does not serve: %w: %s", s.Name, errors.Join(ctx.Err(), err), s.Printed())
		case <-time.After(pollInterval):
		}
	}
}

// Accepts asks whether the server takes connections.
func (s *Server) Accepts(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.Addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// FreeAddr returns an address on loopback that nobody listens on now.
func FreeAddr(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// Output runs a command to its end and returns what it printed on stdout.
func Output(ctx context.Context, user *syscall.Credential, name string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, name, arguments...)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr, command.WaitDelay = &stdout, &stderr, goneWait
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s%s", filepath.Base(name), strings.Join(arguments, " "), err, &stderr, &stdout)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// lineBytesMax bounds a line for Lines.
const lineBytesMax = 4 << 20

// Lines runs a command to its end and gives every line that it prints on stdout to take. An error of take ends the command.
func Lines(ctx context.Context, take func(line []byte) error, name string, arguments ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	command := exec.CommandContext(ctx, name, arguments...)
	var stderr tail
	command.Stderr, command.WaitDelay = &stderr, goneWait
	stdout, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	failed := func(err error) error {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(arguments, " "), err, &stderr)
	}
	if err := command.Start(); err != nil {
		return failed(err)
	}
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, lineBytesMax)
	for lines.Scan() {
		if err = take(lines.Bytes()); err != nil {
			break
		}
	}
	if err = errors.Join(err, lines.Err()); err != nil {
		cancel()
		_ = command.Wait() // It was cut off.
		return failed(err)
	}
	if err := command.Wait(); err != nil {
		return failed(err)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

func (t *tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, data...)
	if len(t.kept) > 2*printedMax {
		t.kept = bytes.Clone(t.kept[len(t.kept)-printedMax:])
	}
	return len(data), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}
