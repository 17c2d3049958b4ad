package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/weirhq/weir/ops/bench/load"
)

// A server is a process that this program started, and ends.
type server struct {
	name string
	addr string
	// processes are the server's own and those that it needs; their CPU together is the server's.
	processes []int

	command *exec.Cmd
	log     *tail
	exited  chan struct{}
}

const (
	// stopWait is how long a server may take to end cleanly before it is killed.
	stopWait = 30 * time.Second
	// readyWait is how long a server may take to serve.
	readyWait = 2 * time.Minute
	// pollInterval is how often a server that starts is asked.
	pollInterval = 2 * time.Millisecond
)

// start runs a command. stop ends it. user is who it runs as, nil for the same.
func start(name, addr string, user *syscall.Credential, command *exec.Cmd) (*server, error) {
	s := &server{name: name, addr: addr, command: command, log: &tail{}, exited: make(chan struct{})}
	command.Stdin, command.Stdout, command.Stderr = nil, s.log, s.log
	// In a group of its own, so that ctrl-c ends this program first, and this program ends the server.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: user}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.processes = []int{command.Process.Pid}
	go func() {
		_ = command.Wait() // How it ended is in its state.
		close(s.exited)
	}()
	return s, nil
}

// stop asks the server to end, kills it when it does not, and waits.
func (s *server) stop(signal os.Signal) error {
	if s == nil {
		return nil
	}
	_ = s.command.Process.Signal(signal) // It may have ended.
	select {
	case <-s.exited:
		return nil
	case <-time.After(stopWait):
		_ = s.command.Process.Kill()
		<-s.exited
		return fmt.Errorf("%s did not end within %v: killed", s.name, stopWait)
	}
}

// ready waits until ask answers nil, and returns how long that took.
func (s *server) ready(ctx context.Context, ask func(context.Context) error) (time.Duration, error) {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for {
		err := ask(ctx)
		if err == nil {
			return time.Since(began), nil
		}
		select {
		case <-s.exited:
			return 0, fmt.Errorf("%s ended (%v) before it served: %s", s.name, s.command.ProcessState, s.log)
		case <-ctx.Done():
			return 0, fmt.Errorf("%s does not serve: %w: %s", s.name, errors.Join(ctx.Err(), err), s.log)
		case <-time.After(pollInterval):
		}
	}
}

// accepts asks whether the server takes connections.
func (s *server) accepts(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// settle waits until the servers are idle: what the last run left them to do would be on the next one's account.
func settle(ctx context.Context, servers ...*server) error {
	const (
		window  = 200 * time.Millisecond
		waitMax = 15 * time.Second
	)
	for end := time.Now().Add(waitMax); time.Now().Before(end); {
		before, err := cpuOf(servers)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(window):
		}
		after, err := cpuOf(servers)
		if err != nil {
			return err
		}
		if after-before <= window/10 {
			return nil
		}
	}
	return nil // A server that is never idle is measured as it is.
}

func cpuOf(servers []*server) (sum time.Duration, err error) {
	for _, s := range servers {
		for _, pid := range s.processes {
			cpu, err := load.ProcessCPU(pid)
			if err != nil {
				return 0, fmt.Errorf("%s: %w: %s", s.name, err, s.log)
			}
			sum += cpu
		}
	}
	return sum, nil
}

// residentBytes returns the memory that a process has in RAM now.
func residentBytes(pid int) (int64, error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, errors.New("no VmRSS in the process's status")
}

// sizeOf returns how many bytes the files below a folder have.
func sizeOf(folder string) (size int64) {
	_ = filepath.WalkDir(folder, func(_ string, entry os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // A file that a running server removed is not there any more.
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			size += info.Size()
		}
		return nil
	})
	return size
}

// freeAddr returns an address on loopback that nobody listens on now.
func freeAddr(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// tail keeps the last of what a server prints, for when it fails.
type tail struct {
	mu   sync.Mutex
	kept []byte
}

const tailMax = 4 << 10

func (t *tail) Write(data []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, data...)
	if len(t.kept) > 2*tailMax {
		t.kept = bytes.Clone(t.kept[len(t.kept)-tailMax:])
	}
	return len(data), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return "it printed:\n" + string(t.kept)
}

// output runs a command to its end and returns what it printed on stdout.
func output(ctx context.Context, user *syscall.Credential, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
