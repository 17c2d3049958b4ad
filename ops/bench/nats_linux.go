package bench

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/weirhq/weir/ops/launch"
)

// A natsServer keeps the log, the list of nodes and the plans. It may be started again and again.
type natsServer struct {
	*launch.Server
	dir, addr, monitor string
}

// withNATS runs f with a NATS server on an empty directory, and removes both.
func (b *bench) withNATS(ctx context.Context, f func(*natsServer) error) (err error) {
	s := &natsServer{}
	if s.dir, err = os.MkdirTemp(b.dir, "nats-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(s.dir)) }()
	for _, addr := range []*string{&s.addr, &s.monitor} {
		if *addr, err = launch.FreeAddr(ctx); err != nil {
			return err
		}
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Stop(syscall.SIGTERM)) }()
	return f(s)
}

func (s *natsServer) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	process, err := launch.Start("NATS", s.addr, nil, exec.Command(self, "bench", "nats", "--dir", s.dir, "--listen", s.addr, "--monitor", s.monitor)) //nolint:noctx // Stop ends it.
	if err != nil {
		return err
	}
	if err := process.Ready(ctx, process.Accepts); err != nil {
		return errors.Join(err, process.Stop(syscall.SIGTERM))
	}
	s.Server = process
	return nil
}

// crash kills the server.
func (s *natsServer) crash() error { return s.Stop(syscall.SIGKILL) }

func (s *natsServer) url() string { return "nats://" + s.addr }

// connect returns a connection that comes back whenever the server does.
func (s *natsServer) connect() (*nats.Conn, error) {
	return nats.Connect(s.url(), nats.Name("weir bench"), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
}
