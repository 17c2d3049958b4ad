package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/payments/paymentstest"
	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
)

// patience bounds whatever a test waits for.
const patience = 30 * time.Second

// rig is a sandbox that is served, and a client of it.
type rig struct {
	server *sandbox.Server
	lossy  *paymentstest.LossyHandler
	http   *httptest.Server
	client *sandbox.Client
	stop   func()
}

func open(t *testing.T, options sandbox.Options) *rig {
	t.Helper()
	options.Logger = slog.New(slog.DiscardHandler)
	server, err := sandbox.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{server: server, lossy: paymentstest.NewLossyHandler(server)}
	r.http = httptest.NewUnstartedServer(nil)
	r.http.Config = server.HTTPServer()
	r.http.Config.Handler = r.lossy
	r.http.Start()
	r.client = newClient(t, r.http.URL, time.Minute)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		r.http.CloseClientConnections()
		r.http.Close()
		cancel()
		if err := errors.Join(<-done, server.Close()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func newClient(t *testing.T, url string, callTimeMax time.Duration) *sandbox.Client {
	t.Helper()
	client, err := sandbox.NewClient(sandbox.ClientOptions{URL: url, CallTimeMax: callTimeMax})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// captures counts the captures of a payment in the ledger.
func (r *rig) captures(t testing.TB, paymentID string) int {
	t.Helper()
	ledger, err := r.client.Ledger(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	captures := 0
	for _, entry := range ledger.Entries {
		if entry.Kind == "captured" && entry.PaymentID == paymentID {
			captures++
		}
	}
	return captures
}

func eur(minor int64) domain.Money { return domain.Money{Currency: "EUR", Minor: minor} }

func charge(id, method string) payments.Charge {
	return payments.Charge{
		PaymentID: id, OrderID: "order-" + id, Amount: eur(1299), Method: method, CaptureNow: true, StartedAt: time.Unix(1_800_000_000, 0),
	}
}

func TestSandboxKeepsTheContract(t *testing.T) {
	paymentstest.Run(t, func(t *testing.T) paymentstest.Subject {
		r := open(t, sandbox.Options{Journal: filepath.Join(t.TempDir(), "journal")})
		return paymentstest.Subject{
			Provider: r.client, MethodOK: sandbox.TokenOK, MethodDecline: sandbox.TokenDecline, MethodRefundFails: sandbox.TokenRefundFail,
			LoseAnswer: func(testing.TB) { r.lossy.Lose(0) }, Captures: r.captures,
		}
	})
}

func mustBe(t *testing.T, status payments.Status, err error, want payments.State) {
	t.Helper()
	if err != nil || status.State != want {
		t.Fatalf("got %v, %v, want %v", status.State, err, want)
	}
}

func TestEveryTokenDoesWhatItSays(t *testing.T) {
	r := open(t, sandbox.Options{SlowTime: time.Millisecond, PendingTime: 30 * time.Millisecond})
	hasty := newClient(t, r.http.URL, 200*time.Millisecond)
	ctx := t.Context()
	tried := map[string]bool{}
	for _, test := range []struct {
		token string
		// lost: the first call has no outcome. then is the state that Lookup finds after it.
		lost bool
		then payments.State
		code string
	}{
		{token: sandbox.TokenOK, then: payments.StateCaptured},
		{token: sandbox.TokenDecline, then: payments.StateDeclined, code: "card_declined"},
		{token: sandbox.TokenInsufficientFunds, then: payments.StateDeclined, code: "insufficient_funds"},
		{token: sandbox.TokenSlow, then: payments.StateCaptured},
		{token: sandbox.TokenTimeoutBeforeCharge, lost: true, then: payments.StateNone},
		{token: sandbox.TokenTimeoutAfterCharge, lost: true, then: payments.StateCaptured},
		{token: sandbox.TokenErrorAfterCharge, lost: true, then: payments.StateCaptured},
		{token: sandbox.TokenWrongAmount, then: payments.StateCaptured},
		{token: sandbox.TokenRefundFail, then: payments.StateCaptured},
		{token: sandbox.TokenRefundTimeout, then: payments.StateCaptured},
		{token: sandbox.TokenCaptureTimeout, then: payments.StateCaptured},
		{token: sandbox.TokenDuplicateWebhook, then: payments.StateCaptured},
		{token: sandbox.TokenLateWebhook, then: payments.StateCaptured},
		{token: sandbox.TokenNoWebhook, then: payments.StateCaptured},
	} {
		tried[test.token] = true
		c := charge("p-"+test.token, test.token)
		client := r.client
		if test.lost {
			client = hasty
		}
		status, err := client.Authorize(ctx, c)
		if lost := errors.Is(err, payments.ErrUnknownOutcome); lost != test.lost {
			t.Fatalf("%s: got %v, want lost = %t", test.token, err, test.lost)
		}
		if !test.lost && status.DeclineCode != test.code {
			t.Fatalf("%s: declined with %q, want %q", test.token, status.DeclineCode, test.code)
		}
		status, err = r.client.Lookup(ctx, c)
		mustBe(t, status, err, test.then)
		wantMinor := c.Amount.Minor
		switch {
		case test.token == sandbox.TokenWrongAmount:
			wantMinor++
		case test.then != payments.StateCaptured:
			wantMinor = 0
		}
		if status.Captured.Minor != wantMinor {
			t.Fatalf("%s: captured %v, want %d", test.token, status.Captured, wantMinor)
		}
		if test.lost { // Whatever was lost, the same call again settles it.
			status, err = r.client.Authorize(ctx, c)
			mustBe(t, status, err, payments.StateCaptured)
		}
		want := 1
		if test.then == payments.StateDeclined {
			want = 0
		}
		if got := r.captures(t, c.PaymentID); got != want {
			t.Fatalf("%s: %d captures, want %d", test.token, got, want)
		}
	}

	later := charge("p-later", sandbox.TokenCaptureTimeout)
	later.CaptureNow = false
	status, err := r.client.Authorize(ctx, later)
	mustBe(t, status, err, payments.StateAuthorized)
	if _, err := hasty.Capture(ctx, later, later.Amount); !errors.Is(err, payments.ErrUnknownOutcome) {
		t.Fatalf("capture: got %v", err)
	}
	status, err = r.client.Capture(ctx, later, later.Amount)
	mustBe(t, status, err, payments.StateCaptured)
	refunded := charge("p-"+sandbox.TokenRefundTimeout, sandbox.TokenRefundTimeout)
	refund := payments.Refund{RefundID: "r1", Amount: eur(99)}
	if _, err := hasty.Refund(ctx, refunded, refund); !errors.Is(err, payments.ErrUnknownOutcome) {
		t.Fatalf("refund: got %v", err)
	}
	if again, err := r.client.Refund(ctx, refunded, refund); err != nil || again.State != payments.RefundSucceeded {
		t.Fatalf("refund: got %+v, %v", again, err)
	}

	pending := charge("p-pending", sandbox.TokenPending)
	tried[sandbox.TokenPending] = true
	status, err = r.client.Authorize(ctx, pending)
	mustBe(t, status, err, payments.StatePending)
	eventually(t, "the pending payment is captured", func() bool {
		status, err := r.client.Lookup(ctx, pending)
		return err == nil && status.State == payments.StateCaptured
	})
	for _, token := range sandbox.Tokens() {
		if !tried[token.Name] {
			t.Errorf("token %s is not tried", token.Name)
		}
	}
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		case <-tick.C:
		}
	}
}

func TestFaultsOnDemandLoseNothingAndDoubleNothing(t *testing.T) {
	r := open(t, sandbox.Options{})
	const seed = 20261122
	t.Logf("seed %d", seed)
	faults := sandbox.Faults{Seed: seed, ErrorBefore: 0.2, ErrorAfter: 0.2, LostBefore: 0.1, LostAfter: 0.2, ErrorBurst: 3, LatencyJitterMS: 1}
	if err := r.client.SetFaults(t.Context(), faults); err != nil {
		t.Fatal(err)
	}
	const attemptsMax = 200
	failures := 0
	insist := func(what string, call func() error) {
		t.Helper()
		for range attemptsMax {
			err := call()
			if err == nil {
				return
			}
			if !errors.Is(err, payments.ErrUnknownOutcome) {
				t.Fatalf("%s: %v", what, err)
			}
			failures++
		}
		t.Fatalf("%s: no answer in %d attempts", what, attemptsMax)
	}
	const count = 30
	for i := range count {
		c := charge(fmt.Sprintf("p%d", i), sandbox.TokenOK)
		c.CaptureNow = false
		insist("authorize", func() error { _, err := r.client.Authorize(t.Context(), c); return err })
		insist("capture", func() error { _, err := r.client.Capture(t.Context(), c, eur(1000)); return err })
		insist("refund", func() error {
			_, err := r.client.Refund(t.Context(), c, payments.Refund{RefundID: c.PaymentID + "-r1", Amount: eur(300)})
			return err
		})
	}
	ledger, err := r.client.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := sandbox.LedgerTotal{Currency: "EUR", Captured: count * 1000, Captures: count, Refunded: count * 300, Refunds: count}
	if len(ledger.Totals) != 1 || ledger.Totals[0] != want || ledger.Payments != count {
		t.Fatalf("got %+v of %d payments, want %+v (I4)", ledger.Totals, ledger.Payments, want)
	}
	if failures < count {
		t.Fatalf("%d calls failed: the faults did not strike", failures)
	}
	if err := r.client.SetFaults(t.Context(), sandbox.Faults{}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := r.client.Lookup(t.Context(), charge(fmt.Sprintf("p%d", i), sandbox.TokenOK)); err != nil {
			t.Fatalf("after the faults ended: %v", err)
		}
	}
}

func TestFaultsThatAreNoneAreRefused(t *testing.T) {
	r := open(t, sandbox.Options{})
	for _, body := range []string{
		`{"error_before":1.5}`, `{"lost_after":-0.1}`, `{"error_burst":-1}`, `{"latency_ms":999999999}`, `{"typo":1}`, `{}{}`, ``, `[]`,
	} {
		if status, _ := post(t, r.http.URL+"/faults", "application/json", body); status != http.StatusBadRequest {
			t.Errorf("%q: status %d", body, status)
		}
	}
}

func post(t *testing.T, url, contentType, body string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", contentType)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	data, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(data)
}

func TestHostileRequestsAreRefusedAndLeaveNothing(t *testing.T) {
	r := open(t, sandbox.Options{})
	good := `{"order_id":"o","amount":{"currency":"EUR","minor":5},"method":"tok_ok","capture_now":true}`
	for _, test := range []struct {
		name, path, body string
		status           int
	}{
		{"no JSON", "/v1/payments/p", "x", 400},
		{"a field that is not known", "/v1/payments/p", strings.Replace(good, "order_id", "price", 1), 400},
		{"two bodies", "/v1/payments/p", good + good, 400},
		{"a huge body", "/v1/payments/p", strings.Repeat(" ", 1<<20) + good, 400},
		{"nothing", "/v1/payments/p", strings.Replace(good, "5", "0", 1), 400},
		{"a negative amount", "/v1/payments/p", strings.Replace(good, "5", "-5", 1), 400},
		{"an amount beyond all", "/v1/payments/p", strings.Replace(good, "5", "9223372036854775807", 1), 400},
		{"an amount with a fraction", "/v1/payments/p", strings.Replace(good, "5", "5.5", 1), 400},
		{"a currency that is none", "/v1/payments/p", strings.Replace(good, "EUR", "eur", 1), 400},
		{"a card number", "/v1/payments/p", strings.Replace(good, "tok_ok", "4242424242424242", 1), 400},
		{"an id with a space", "/v1/payments/p%20q", good, 400},
		{"an id with a slash", "/v1/payments/p%2Fq", good, 400},
		{"a huge id", "/v1/payments/" + strings.Repeat("p", 65), good, 400},
		{"a capture of nothing", "/v1/payments/p/capture", `{"amount":{"currency":"EUR","minor":5}}`, 404},
		{"a path that is none", "/v1/refunds", good, 404},
		{"a method that is none", "/ledger", "", 405},
	} {
		if status, body := post(t, r.http.URL+test.path, "application/json", test.body); status != test.status {
			t.Errorf("%s: status %d, want %d: %s", test.name, status, test.status, body)
		}
	}
	ledger, err := r.client.Ledger(t.Context())
	if err != nil || len(ledger.Entries) != 0 || ledger.Payments != 0 {
		t.Fatalf("the ledger has %+v, %v", ledger.Entries, err)
	}
}

func TestLedgerComesInParts(t *testing.T) {
	r := open(t, sandbox.Options{})
	for i := range 5 {
		if _, err := r.client.Authorize(t.Context(), charge(fmt.Sprintf("p%d", i), sandbox.TokenOK)); err != nil {
			t.Fatal(err)
		}
	}
	var seen []uint64
	for after := uint64(0); ; {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("%s/ledger?limit=2&after=%d", r.http.URL, after), nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		var page sandbox.Ledger
		err = json.NewDecoder(response.Body).Decode(&page)
		response.Body.Close()
		if err != nil || len(page.Entries) > 2 {
			t.Fatalf("%+v, %v", page, err)
		}
		for _, entry := range page.Entries {
			seen = append(seen, entry.Number)
		}
		if after = page.Next; after == 0 {
			break
		}
	}
	if fmt.Sprint(seen) != "[1 2 3 4 5]" {
		t.Fatalf("entries %v", seen)
	}
}

func TestClientTakesNobodysWordButASandboxs(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		body   string
	}{
		{"another server's 404", 404, "not found"},
		{"another server's 403", 403, `{"error":{"code":"forbidden"}}`},
		{"a redirect", 302, ""},
		{"nothing", 200, ""},
		{"HTML", 200, "<html>"},
		{"another payment", 200, `{"payment_id":"p2","state":"captured"}`},
		{"a state that is none", 200, `{"payment_id":"p1","state":"fine"}`},
		{"an endless body", 200, strings.Repeat(" ", 1<<20)},
		{"too many requests", 429, `{"error":{"code":"busy","message":"later"}}`},
		{"a gateway's error", 502, `{"error":{"code":"wrong_state","message":"x"}}`},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(test.status)
			_, _ = io.WriteString(w, test.body)
		}))
		client := newClient(t, server.URL, patience)
		if status, err := client.Lookup(t.Context(), charge("p1", sandbox.TokenOK)); !errors.Is(err, payments.ErrUnknownOutcome) {
			t.Errorf("%s: got %v, %v, want an unknown outcome", test.name, status.State, err)
		}
		server.Close()
	}
	client := newClient(t, "http://127.0.0.1:1", patience)
	if _, err := client.Authorize(t.Context(), charge("p1", sandbox.TokenOK)); !errors.Is(err, payments.ErrUnknownOutcome) {
		t.Errorf("nobody there: got %v", err)
	}
}

// journalOf makes a journal with a capture, a refund, a decline, a void and an authorization in it.
func journalOf(t *testing.T) (path string, ledger sandbox.Ledger) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "journal")
	r := open(t, sandbox.Options{Journal: path})
	ctx := t.Context()
	authorized := charge("p4", sandbox.TokenOK)
	authorized.CaptureNow = false
	for _, call := range []func() error{
		func() error { _, err := r.client.Authorize(ctx, charge("p1", sandbox.TokenOK)); return err },
		func() error {
			_, err := r.client.Refund(ctx, charge("p1", sandbox.TokenOK), payments.Refund{RefundID: "r1", Amount: eur(299)})
			return err
		},
		func() error { _, err := r.client.Authorize(ctx, charge("p2", sandbox.TokenDecline)); return err },
		func() error { _, err := r.client.Void(ctx, charge("p3", sandbox.TokenOK)); return err },
		func() error { _, err := r.client.Authorize(ctx, authorized); return err },
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	ledger, err := r.client.Ledger(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r.stop()
	return path, ledger
}

func TestJournalKeepsEverythingThatWasAnswered(t *testing.T) {
	path, before := journalOf(t)
	r := open(t, sandbox.Options{Journal: path})
	after, err := r.client.Ledger(t.Context())
	if err != nil || fmt.Sprintf("%+v", text(t, after)) != fmt.Sprintf("%+v", text(t, before)) {
		t.Fatalf("got %s, %v\nwant %s", text(t, after), err, text(t, before))
	}
	// The keys are kept as well: the same calls again have no second effect.
	ctx := t.Context()
	status, err := r.client.Authorize(ctx, charge("p1", sandbox.TokenOK))
	mustBe(t, status, err, payments.StateCaptured)
	if status.Refunded != eur(299) {
		t.Fatalf("refunded %v", status.Refunded)
	}
	status, err = r.client.Authorize(ctx, charge("p3", sandbox.TokenOK))
	mustBe(t, status, err, payments.StateVoided)
	dearer := charge("p1", sandbox.TokenOK)
	dearer.Amount.Minor++
	if _, err := r.client.Authorize(ctx, dearer); !errors.Is(err, payments.ErrRejected) {
		t.Fatalf("got %v", err)
	}
	again, err := r.client.Ledger(ctx)
	if err != nil || text(t, again) != text(t, before) {
		t.Fatalf("the same calls again changed the ledger to %s", text(t, again))
	}
}

func text(t *testing.T, value any) string {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestJournalTornAtAnyByteOpensWithWhatIsWhole(t *testing.T) {
	path, _ := journalOf(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head := bytes.IndexByte(whole, '\n') + 1
	for cut := range len(whole) {
		torn := filepath.Join(t.TempDir(), "torn")
		if err := os.WriteFile(torn, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		server, err := sandbox.Open(sandbox.Options{Journal: torn, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatalf("cut after %d bytes of %d: %v", cut, len(whole), err)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		left, err := os.ReadFile(torn)
		if want := whole[:bytes.LastIndexByte(whole[:cut], '\n')+1]; err != nil || cut >= head && !bytes.Equal(left, want) {
			t.Fatalf("cut after %d bytes: %d are left, want %d whole lines' worth", cut, len(left), len(want))
		}
	}
}

func TestDamagedJournalIsRefusedAndKept(t *testing.T) {
	path, _ := journalOf(t)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(whole), "\n")
	for name, damaged := range map[string]string{
		"another file":       "hello\n",
		"a file of one word": "hello",
		"a line is missing":  lines[0] + strings.Join(lines[2:], ""),
		"a line comes twice": string(whole) + lines[1],
		"a line is garbled":  strings.Replace(string(whole), "captured", "caught", 1),
		"a line is no JSON":  lines[0] + "x" + strings.Join(lines[1:], ""),
		"an endless line":    lines[0] + strings.Repeat("x", 1<<20) + "\n",
	} {
		file := filepath.Join(t.TempDir(), "damaged")
		if err := os.WriteFile(file, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := sandbox.Open(sandbox.Options{Journal: file, Logger: slog.New(slog.DiscardHandler)}); err == nil {
			t.Errorf("%s: it was opened", name)
		}
		if kept, err := os.ReadFile(file); err != nil || string(kept) != damaged {
			t.Errorf("%s: the file was changed, %v", name, err)
		}
	}
}

func TestJournalHasOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	open(t, sandbox.Options{Journal: path})
	if _, err := sandbox.Open(sandbox.Options{Journal: path, Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("a second one: got %v", err)
	}
}

// receiver takes webhooks with the real handler.
type receiver struct {
	server *httptest.Server
	secret webhooksig.Secret

	mu      sync.Mutex
	notices []payments.Notice
	// refuse is how many notices are still not taken.
	refuse int
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{secret: webhooksig.NewSecret()}
	reader, err := sandbox.NewNoticeReader(r.secret)
	if err != nil {
		t.Fatal(err)
	}
	handler, err := payments.NewWebhookHandler(payments.WebhookOptions{Reader: reader, Take: r.take, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r.server = httptest.NewServer(handler)
	t.Cleanup(r.server.Close)
	return r
}

func (r *receiver) take(_ context.Context, notice payments.Notice) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse > 0 {
		r.refuse--
		return errors.New("not now")
	}
	r.notices = append(r.notices, notice)
	return nil
}

func (r *receiver) taken() []payments.Notice {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]payments.Notice(nil), r.notices...)
}

func TestWebhooksTellEverythingThatHappened(t *testing.T) {
	to := newReceiver(t)
	to.refuse = 3
	r := open(t, sandbox.Options{WebhookURL: to.server.URL, WebhookSecrets: []webhooksig.Secret{to.secret}, RetryTimeMin: time.Millisecond})
	ctx := t.Context()
	c := charge("p1", sandbox.TokenOK)
	c.CaptureNow = false
	for _, call := range []func() error{
		func() error { _, err := r.client.Authorize(ctx, c); return err },
		func() error { _, err := r.client.Capture(ctx, c, eur(1000)); return err },
		func() error {
			_, err := r.client.Refund(ctx, c, payments.Refund{RefundID: "r1", Amount: eur(300)})
			return err
		},
		func() error { _, err := r.client.Authorize(ctx, charge("p2", sandbox.TokenDecline)); return err },
		func() error { _, err := r.client.Authorize(ctx, charge("p3", sandbox.TokenNoWebhook)); return err },
		func() error {
			_, err := r.client.Authorize(ctx, charge("p4", sandbox.TokenDuplicateWebhook))
			return err
		},
	} {
		if err := call(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "6 notices", func() bool { return len(to.taken()) >= 6 })
	eventually(t, "no webhook is waiting", func() bool {
		ledger, err := r.client.Ledger(ctx)
		return err == nil && ledger.WebhooksWaiting == 0
	})
	got, ids := map[string]int{}, map[string]bool{}
	for _, n := range to.taken() {
		what := fmt.Sprintf("%s %s %s %v %s", n.Provider, n.PaymentID, n.State, n.Amount.Minor, n.DeclineCode)
		if n.Refund != nil {
			what += fmt.Sprintf(" %s %s %v", n.Refund.RefundID, n.Refund.State, n.Refund.Amount)
		}
		got[what]++
		ids[n.EventID] = true
	}
	want := map[string]int{
		"sandbox p1 authorized 1299 ":                  1,
		"sandbox p1 captured 1000 ":                    1,
		"sandbox p1 captured 0  r1 succeeded 3.00 EUR": 1,
		"sandbox p2 declined 0 card_declined":          1,
		"sandbox p4 captured 1299 ":                    2,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
	if len(ids) != 5 {
		t.Fatalf("%d event ids, want 5: what is told twice has one id", len(ids))
	}
}

func TestWebhooksThatWereNotTakenAreToldAfterARestart(t *testing.T) {
	to := newReceiver(t)
	path := filepath.Join(t.TempDir(), "journal")
	unheard := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	defer unheard.Close()
	options := sandbox.Options{
		Journal: path, WebhookURL: unheard.URL, WebhookSecrets: []webhooksig.Secret{to.secret}, RetryTimeMin: time.Hour, RetryTimeMax: time.Hour,
		PendingTime: time.Hour,
	}
	first := open(t, options)
	for _, c := range []payments.Charge{charge("p1", sandbox.TokenOK), charge("p2", sandbox.TokenPending)} {
		if _, err := first.client.Authorize(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	first.stop()
	options.WebhookURL, options.PendingTime = to.server.URL, time.Millisecond
	second := open(t, options)
	eventually(t, "3 notices", func() bool { return len(to.taken()) == 3 })
	eventually(t, "no webhook is waiting", func() bool {
		ledger, err := second.client.Ledger(t.Context())
		return err == nil && ledger.WebhooksWaiting == 0
	})
	second.stop()
	third := open(t, options)
	if ledger, err := third.client.Ledger(t.Context()); err != nil || ledger.WebhooksWaiting != 0 {
		t.Fatalf("told again what was taken: %d waiting, %v", ledger.WebhooksWaiting, err)
	}
}

func TestSandboxStopsWhileCallsAreSilent(t *testing.T) {
	r := open(t, sandbox.Options{})
	done := make(chan error, 1)
	go func() {
		_, err := r.client.Authorize(context.Background(), charge("p1", sandbox.TokenTimeoutAfterCharge))
		done <- err
	}()
	eventually(t, "the charge is in the books", func() bool { return r.captures(t, "p1") == 1 })
	r.stop()
	if err := <-done; !errors.Is(err, payments.ErrUnknownOutcome) {
		t.Fatalf("got %v", err)
	}
}
