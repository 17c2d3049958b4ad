// Command weir is Weir: the node that takes orders, the client that places and reads them, and the tools that look
// inside the log.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// A process is what the command line takes from the world around it, so that tests can run commands in-process.
type process struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	// arguments are those of the command line.
	arguments []string
	// environ holds KEY=value pairs as os.Environ gives them.
	environ []string
	now     func() time.Time
	// signals delivers SIGINT and SIGTERM. The first asks for a clean stop, the second forces.
	signals <-chan os.Signal
	// exit ends the process at once; only a second signal calls it.
	exit func(code int)

	globals globals
}

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	p := &process{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		environ: os.Environ(), now: time.Now, signals: signals, exit: os.Exit,
	}
	os.Exit(int(p.run(context.Background(), os.Args[1:])))
}

// run executes one command line and returns its exit code. It has printed the error, if there was one.
func (p *process) run(ctx context.Context, args []string) exitCode {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		p.watchSignals(cancel, done)
	}()
	code := p.execute(ctx, args)
	close(done)
	<-watching
	return code
}

// watchSignals cancels the command on the first signal and ends the process on the second.
func (p *process) watchSignals(cancel context.CancelCauseFunc, done <-chan struct{}) {
	for count := 0; ; count++ {
		select {
		case <-done:
			return
		case sig := <-p.signals:
			if count > 0 {
				_, _ = io.WriteString(p.stderr, "weir: "+sig.String()+" again: stopping at once, without a clean end; nothing that was acknowledged is lost\n")
				p.exit(int(exitForced))
				return
			}
			cancel(errInterrupted)
		}
	}
}
