package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/api/webhooksig"
)

// defaultSandboxListen is where the sandbox provider listens unless told otherwise.
const defaultSandboxListen = "127.0.0.1:8085"

// finishSandboxMax bounds how long a stopping sandbox waits for the calls that it has taken. One that is silent on purpose
// would never end.
const finishSandboxMax = time.Second

// sandboxFlags are the flags of weir sandbox-pay.
type sandboxFlags struct {
	options sandbox.Options
	listen  string
	secrets []string
	log     logFlags
}

func (p *process) sandboxPayCommand() *cobra.Command {
	var f sandboxFlags
	cmd := &cobra.Command{
		Use:   "sandbox-pay",
		Short: "Run a payment provider that takes no real money",
		Long: `Run a payment provider over HTTP, for development and tests. It works like a real one, takes no real money, and
goes wrong on demand. What it answered is on disk when --data names a file: killing it loses no charge.

The payment method decides what becomes of a payment:

` + sandboxTokensText() + `

For what goes wrong whatever the method, send POST /faults. Rates are between 0 and 1, and {} ends them all:

  error_before, error_after          status 500, before or after doing what was asked for
  lost_before, lost_after            the connection is cut instead of an answer
  error_burst                        so many of the next calls are answered with status 503
  latency_ms, latency_jitter_ms      every answer waits
  webhook_lost, webhook_duplicate    an event is not told, or told twice
  webhook_delay_ms                   it is told late
  seed                               of the chances

GET /ledger shows every movement of money, once: a payment that was captured twice would be there twice.

With --webhook it tells a URL what happens, signed as Standard Webhooks says, and again until it is answered with a 2xx
status. Whoever reaches it may use it: leave --listen on loopback.`,
		Example: `  weir sandbox-pay
  weir sandbox-pay --data ./sandbox.jsonl --webhook http://127.0.0.1:8080/webhooks/sandbox --secret whsec_...
  curl -s http://127.0.0.1:8085/faults -d '{"error_after":0.2,"lost_after":0.1,"seed":7}'
  curl -s http://127.0.0.1:8085/ledger`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.finish(); err != nil {
				return err
			}
			return p.runSandbox(cmd, f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", defaultSandboxListen, "`HOST:PORT` to serve on; port 0 takes a free one")
	flags.StringVar(&f.options.Journal, "data", "", "`FILE` that keeps the payments; without it they are gone with the process")
	flags.StringVar(&f.options.WebhookURL, "webhook", "", "`URL` to tell what happens")
	flags.StringArrayVar(&f.secrets, "secret", nil, "`SECRET` that signs what it is told, \"whsec_\" and base64; repeat it while one is replaced; without it one is made and printed")
	flags.DurationVar(&f.options.SlowTime, "slow", 3*time.Second, "how late a slow answer comes")
	flags.DurationVar(&f.options.PendingTime, "pending", 5*time.Second, "how long a pending payment stays so")
	flags.DurationVar(&f.options.LateTime, "late", 30*time.Second, "how late a late webhook comes")
	flags.StringVar(&f.log.level, "log-level", "info", "`LEVEL` of what is logged: debug, info, warn or error")
	flags.StringVar(&f.log.format, "log-format", "text", "`FORMAT` of the log on stderr: text or json")
	setting(flags, "log-level", "log-format")
	return cmd
}

// sandboxTokensText lists the payment methods.
func sandboxTokensText() string {
	var b strings.Builder
	for _, token := range sandbox.Tokens() {
		fmt.Fprintf(&b, "  %-26s %s\n", token.Name, wrapText(token.Meaning, 29))
	}
	return strings.TrimRight(b.String(), "\n")
}

// finish checks the flags.
func (f *sandboxFlags) finish() error {
	for _, flag := range []struct {
		name  string
		value time.Duration
	}{
		{"slow", f.options.SlowTime},
		{"pending", f.options.PendingTime},
		{"late", f.options.LateTime},
	} {
		if flag.value <= 0 {
			return usagef("--%s must be more than 0, not %s", flag.name, flag.value)
		}
	}
	if f.options.WebhookURL == "" {
		if len(f.secrets) > 0 {
			return usagef("--secret signs webhooks, and there is no --webhook").then("give --webhook, or leave --secret out")
		}
		return nil
	}
	if to, err := url.Parse(f.options.WebhookURL); err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Host == "" {
		return usagef("--webhook %q is not an http or https URL", f.options.WebhookURL)
	}
	for _, text := range f.secrets {
		secret, err := webhooksig.ParseSecret(text)
		if err != nil {
			return usagef("--secret: %v", err).then("leave it out once: the command makes one and prints it")
		}
		f.options.WebhookSecrets = append(f.options.WebhookSecrets, secret)
	}
	return nil
}

// sandboxLines is what weir sandbox-pay prints with -o json.
type sandboxLines struct {
	URL    string `json:"url"`
	Data   string `json:"data,omitempty"`
	Secret string `json:"secret,omitempty"`
}

// runSandbox serves until it is told to stop.
func (p *process) runSandbox(cmd *cobra.Command, f sandboxFlags) (err error) {
	options := f.options
	if options.Logger, err = p.logger(f.log); err != nil {
		return err
	}
	lines := sandboxLines{Data: options.Journal}
	if options.WebhookURL != "" && len(options.WebhookSecrets) == 0 {
		secret := webhooksig.NewSecret()
		options.WebhookSecrets, lines.Secret = append(options.WebhookSecrets, secret), secret.Encode()
	}
	server, err := sandbox.Open(options)
	if err != nil {
		return &problem{code: exitData, what: err.Error(), cause: err, next: "stop the process that uses the file, or name another one with --data"}
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	listener, err := (&net.ListenConfig{}).Listen(cmd.Context(), "tcp", f.listen)
	if err != nil {
		return usagef("cannot listen on %s: %v", f.listen, err).then("choose another address with --listen; port 0 takes a free one")
	}
	lines.URL = baseURL(listener.Addr())
	if err := p.announceSandbox(cmd, lines); err != nil {
		return errors.Join(err, listener.Close())
	}
	return serveSandbox(cmd.Context(), server, listener)
}

// serveSandbox serves and tells webhooks until ctx ends.
func serveSandbox(ctx context.Context, server *sandbox.Server, listener net.Listener) error {
	httpServer := server.HTTPServer()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := httpServer.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error { return server.Run(ctx) })
	group.Go(func() error {
		<-ctx.Done()
		finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishSandboxMax)
		defer cancel()
		if err := httpServer.Shutdown(finish); err != nil {
			return httpServer.Close() // Who is silent on purpose is cut.
		}
		return nil
	})
	return group.Wait()
}

func (p *process) announceSandbox(cmd *cobra.Command, lines sandboxLines) error {
	if p.json(cmd) {
		return writeJSON(p.stdout, lines)
	}
	kept := "in memory only"
	if lines.Data != "" {
		kept = "payments in " + lines.Data
	}
	text := fmt.Sprintf("The sandbox payment provider is ready at %s  (%s)\n", lines.URL, kept)
	if lines.Secret != "" {
		text += fmt.Sprintf("It signs its webhooks with %s\n", lines.Secret)
	}
	_, err := fmt.Fprint(p.stdout, text)
	return err
}
