package launch

import (
	"context"
	"errors"
	"os/exec"
	"syscall"

	"github.com/weirhq/weir/api/webhooksig"
)

// A Sandbox is a 'weir sandbox-pay', a payment provider in a process of its own. It may be started again and again, each time
// with what it answered before.
type Sandbox struct {
	*Server
	// Binary is the path of weir, Journal the file that keeps the payments.
	Binary, Journal string
	// Webhook is the URL that it tells what happens, Secret signs that.
	Webhook string
	Secret  webhooksig.Secret
	// Flags are further flags of 'weir sandbox-pay'.
	Flags []string
}

// Start starts the sandbox and waits until it serves. After an error nothing runs.
func (s *Sandbox) Start(ctx context.Context) error {
	addr, err := FreeAddr(ctx)
	if err != nil {
		return err
	}
	arguments := append([]string{
		"sandbox-pay", "--listen", addr, "--data", s.Journal, "--webhook", s.Webhook, "--secret", s.Secret.Encode(), "--log-level", "error",
	}, s.Flags...)
	server, err := Start("weir sandbox-pay", addr, nil, exec.Command(s.Binary, arguments...)) //nolint:noctx // Stop ends it.
	if err != nil {
		return err
	}
	if err := server.Ready(ctx, server.Accepts); err != nil {
		return errors.Join(err, server.Stop(syscall.SIGKILL))
	}
	s.Server = server
	return nil
}

// URL is where it is.
func (s *Sandbox) URL() string { return "http://" + s.Addr }

// End stops the sandbox cleanly.
func (s *Sandbox) End() error { return s.Stop(syscall.SIGTERM) }

// Crash kills the sandbox.
func (s *Sandbox) Crash() error { return s.Stop(syscall.SIGKILL) }
