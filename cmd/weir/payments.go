package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/api/payments/stripe"
	"github.com/weirhq/weir/api/reactors/paying"
	"github.com/weirhq/weir/api/secretfile"
	"github.com/weirhq/weir/api/webhooksig"
)

const (
	// webhookPath is where providers tell what happens, with their name after it.
	webhookPath = "/webhooks/payments/"
	// secretBytesMax is far above a key or a secret in a file.
	secretBytesMax = 4 << 10

	// The sandbox of a dev node keeps its books and the secret of its webhooks in the data directory.
	sandboxJournalFile   = "sandbox.jsonl"
	sandboxSecretFile    = "sandbox.key"
	sandboxSecretPurpose = "weir-sandbox-webhooks"
)

// paymentOptions say which payment providers a node has.
type paymentOptions struct {
	// names of the providers as the flag has them, and one by one, the default one first.
	names     string
	providers []string
	// sandboxListen is where a dev node's own sandbox listens; empty means that it has none.
	sandboxListen string
	// sandboxURL is a sandbox that runs elsewhere.
	sandboxURL string
	// The files with what providers give their customers. Without a webhook secret a provider's webhooks are not taken, and
	// payments are settled by asking.
	sandboxWebhookSecret, stripeKey, stripeWebhookSecret string
}

func (o *paymentOptions) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.names, "payment-provider", "", "`NAME` of a payment provider that orders are paid with: sandbox or stripe; separate several with commas, the first is the default")
	flags.StringVar(&o.sandboxURL, "sandbox-url", "", "`URL` of a sandbox provider that runs elsewhere (weir sandbox-pay)")
	flags.StringVar(&o.sandboxWebhookSecret, "sandbox-webhook-secret-file", "", "`FILE` with the secret that it signs its webhooks with")
	flags.StringVar(&o.stripeKey, "stripe-key-file", "", "`FILE` with Stripe's secret key")
	flags.StringVar(&o.stripeWebhookSecret, "stripe-webhook-secret-file", "", "`FILE` with the secret of the webhook endpoint at Stripe")
	setting(flags, "payment-provider", "sandbox-url", "sandbox-webhook-secret-file", "stripe-key-file", "stripe-webhook-secret-file")
}

// addSandbox adds the flags of a node with its own sandbox.
func (o *paymentOptions) addSandbox(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&o.sandboxListen, "sandbox-listen", "127.0.0.1:0", "`HOST:PORT` for the sandbox payment provider of this process; empty runs none")
	setting(flags, "sandbox-listen")
}

// finish checks the flags, and gives a node with a sandbox of its own that as its provider.
func (o *paymentOptions) finish() error {
	if o.sandboxURL != "" {
		o.sandboxListen = "" // One that runs elsewhere comes first.
	}
	switch {
	case o.names != "":
		o.providers = strings.Split(o.names, ",")
	case o.sandboxListen != "":
		o.providers = []string{sandbox.Name}
	}
	for i, name := range o.providers {
		switch {
		case name != sandbox.Name && name != stripe.Name:
			return usagef("--payment-provider: there is no provider %q", name).then("give sandbox or stripe")
		case slices.Contains(o.providers[:i], name):
			return usagef("--payment-provider names %s twice", name)
		case name == sandbox.Name && o.sandboxURL == "" && o.sandboxListen == "":
			return usagef("the sandbox provider needs --sandbox-url").then("run 'weir sandbox-pay' and give its URL, or use 'weir dev', which has one")
		case name == stripe.Name && o.stripeKey == "":
			return usagef("the stripe provider needs --stripe-key-file").then("write Stripe's secret key to a file that only you can read")
		}
	}
	if !slices.Contains(o.providers, sandbox.Name) {
		o.sandboxListen = ""
	}
	return nil
}

// openPayments makes the providers, the sandbox of a dev node, and what asks them. Nothing is asked yet.
func (n *node) openPayments(ctx context.Context) (err error) {
	options := n.options.payments
	var providers []payments.Provider
	readers := map[string]payments.NoticeReader{}
	for _, name := range options.providers {
		var provider payments.Provider
		var reader payments.NoticeReader
		switch name {
		case sandbox.Name:
			provider, reader, err = n.openSandbox(ctx)
		case stripe.Name:
			provider, reader, err = openStripe(options)
		}
		if err != nil {
			return err
		}
		providers = append(providers, provider)
		if reader != nil {
			readers[name] = reader
		}
	}
	var orders paying.Orders = laneOrders{n.lanes}
	if n.options.sharing.keepsViews() {
		orders = n.views
	}
	n.cashier, err = paying.Open(paying.Options{
		Store: n.store, Topology: n.log.topology, Orders: orders, Commands: n.lanes, Providers: providers, Logger: n.logger,
		Owned: n.lanes.Owned,
	})
	if err != nil {
		return err
	}
	n.notices = map[string]http.Handler{}
	for name, reader := range readers {
		n.notices[name], err = payments.NewWebhookHandler(payments.WebhookOptions{Reader: reader, Take: n.cashier.Take, Logger: n.logger})
		if err != nil {
			return err
		}
	}
	return nil
}

// openSandbox makes the client of a sandbox, and the sandbox, if it is this process's own.
func (n *node) openSandbox(ctx context.Context) (payments.Provider, payments.NoticeReader, error) {
	options := n.options.payments
	var secrets []webhooksig.Secret
	address := options.sandboxURL
	switch {
	case options.sandboxListen != "":
		key, err := secretfile.OpenOrCreate(filepath.Join(string(n.options.data), sandboxSecretFile), sandboxSecretPurpose)
		if err != nil {
			return nil, nil, err
		}
		secret, err := webhooksig.SecretOf(key)
		if err != nil {
			return nil, nil, err
		}
		secrets = append(secrets, secret)
		if address, err = n.openOwnSandbox(ctx, secrets); err != nil {
			return nil, nil, err
		}
	case options.sandboxWebhookSecret != "":
		text, err := readSecret(options.sandboxWebhookSecret)
		if err != nil {
			return nil, nil, usagef("--sandbox-webhook-secret-file: %v", err)
		}
		secret, err := webhooksig.ParseSecret(text)
		if err != nil {
			return nil, nil, usagef("--sandbox-webhook-secret-file: %v", err)
		}
		secrets = append(secrets, secret)
	}
	client, err := sandbox.NewClient(sandbox.ClientOptions{URL: address})
	if err != nil {
		return nil, nil, usagef("--sandbox-url: %v", err)
	}
	n.later(func() error {
		client.Close()
		return nil
	})
	if len(secrets) == 0 {
		return client, nil, nil
	}
	reader, err := sandbox.NewNoticeReader(secrets...)
	return client, reader, err
}

// openOwnSandbox opens the sandbox of this process, and returns its URL.
func (n *node) openOwnSandbox(ctx context.Context, secrets []webhooksig.Secret) (string, error) {
	server, err := sandbox.Open(sandbox.Options{
		Journal: filepath.Join(string(n.options.data), sandboxJournalFile), WebhookURL: baseURL(n.listener.Addr()) + webhookPath + sandbox.Name,
		WebhookSecrets: secrets, Logger: n.logger,
	})
	if err != nil {
		return "", err
	}
	n.later(server.Close)
	n.sandbox = server
	if n.sandboxListener, err = n.listen(ctx, n.options.payments.sandboxListen, "--sandbox-listen"); err != nil {
		return "", err
	}
	return baseURL(n.sandboxListener.Addr()), nil
}

func openStripe(options paymentOptions) (payments.Provider, payments.NoticeReader, error) {
	key, err := readSecret(options.stripeKey)
	if err != nil {
		return nil, nil, usagef("--stripe-key-file: %v", err)
	}
	adapter, err := stripe.New(stripe.Options{APIKey: key})
	if err != nil {
		return nil, nil, usagef("--stripe-key-file: %v", err)
	}
	if options.stripeWebhookSecret == "" {
		return adapter, nil, nil
	}
	secret, err := readSecret(options.stripeWebhookSecret)
	if err != nil {
		return nil, nil, usagef("--stripe-webhook-secret-file: %v", err)
	}
	reader, err := stripe.NewNoticeReader(secret)
	if err != nil {
		return nil, nil, usagef("--stripe-webhook-secret-file: %v", err)
	}
	return adapter, reader, nil
}

// readSecret reads a file with one line. The error does not show it.
func readSecret(file string) (string, error) {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return "", err
	case info.Size() > secretBytesMax:
		return "", fmt.Errorf("%s has %d bytes, more than a secret has", file, info.Size())
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(text))
	if secret == "" {
		return "", errors.New(file + " is empty")
	}
	return secret, nil
}

// withWebhooks serves the webhooks of the payment providers beside the API.
func (n *node) withWebhooks(handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, below := strings.CutPrefix(r.URL.Path, webhookPath)
		if !below {
			handler.ServeHTTP(w, r)
			return
		}
		webhook, there := n.notices[name]
		if !there {
			http.NotFound(w, r)
			return
		}
		webhook.ServeHTTP(w, r)
	})
}

// paymentReport is how the payments of a running node stand.
type paymentReport struct {
	Providers []providerLine `json:"providers"`
	// What somebody has to look at, since the node started: see paying.Status.
	Stray         uint64 `json:"stray"`
	Orphans       uint64 `json:"orphans"`
	WrongAmounts  uint64 `json:"wrongAmounts"`
	RefundsFailed uint64 `json:"refundsFailed"`
	Overdue       uint64 `json:"overdue"`
}

// providerLine is how it stands with one payment provider.
type providerLine struct {
	Provider   string `json:"provider"`
	Configured bool   `json:"configured"`
	Breaker    string `json:"breaker"`
	// Waiting counts the orders that wait for it, Busy those of them that are worked on, Oldest is since when one waits.
	Waiting int        `json:"waiting"`
	Busy    int        `json:"busy"`
	Oldest  *time.Time `json:"oldest,omitempty"`
}

func newPaymentReport(s paying.Status) *paymentReport {
	report := &paymentReport{
		Providers: []providerLine{}, Stray: s.Stray, Orphans: s.Orphans, WrongAmounts: s.WrongAmounts, RefundsFailed: s.RefundsFailed, Overdue: s.Overdue,
	}
	for _, p := range s.Providers {
		report.Providers = append(report.Providers, providerLine{
			Provider: p.Provider, Configured: p.Configured, Breaker: p.Breaker.String(), Waiting: p.Waiting, Busy: p.Busy, Oldest: instantOf(p.Oldest),
		})
	}
	return report
}

// printPayments prints the payment providers, and what somebody has to look at.
func (p *process) printPayments(report *paymentReport) error {
	if len(report.Providers) == 0 {
		return nil
	}
	paint := p.painterFor(p.stdout)
	rows := newTable("PROVIDER", "BREAKER", ">WAITING", ">BUSY", "OLDEST")
	rows.style = func(column int, cell string) string {
		switch {
		case column != 1:
			return cell
		case cell == payments.BreakerClosed.String():
			return paint.good(cell)
		}
		return paint.bad(cell)
	}
	for _, l := range report.Providers {
		breaker := l.Breaker
		if !l.Configured {
			breaker = "not configured"
		}
		rows.row(l.Provider, breaker, groupDigits(uint64(l.Waiting)), groupDigits(uint64(l.Busy)), instantText(l.Oldest))
	}
	if _, err := io.WriteString(p.stdout, "\n"); err != nil {
		return err
	}
	if err := rows.print(p.stdout, paint); err != nil {
		return err
	}
	_, err := fmt.Fprintf(p.stdout, "\nTo look at since the start: %d stray payments, %d without an order, %d wrong amounts, %d failed refunds, %d overdue\n",
		report.Stray, report.Orphans, report.WrongAmounts, report.RefundsFailed, report.Overdue)
	return err
}
