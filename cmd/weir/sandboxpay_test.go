package main

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
)

// startSandbox runs weir sandbox-pay in its own process.
func startSandbox(t *testing.T, args ...string) (*exec.Cmd, sandboxLines) {
	t.Helper()
	builtBinary = true
	path, err := weirBinary()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(path, append([]string{"sandbox-pay", "--listen", "127.0.0.1:0", "-o", "json"}, args...)...) //nolint:noctx // The test ends it.
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = command.Wait()
		t.Fatalf("the sandbox did not get ready:\n%s", &stderr)
	}
	return command, decode[sandboxLines](t, line)
}

func sandboxClient(t *testing.T, url string, callTimeMax time.Duration) *sandbox.Client {
	t.Helper()
	client, err := sandbox.NewClient(sandbox.ClientOptions{URL: url, CallTimeMax: callTimeMax})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func TestAKilledSandboxKeepsItsCharges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sandbox.jsonl")
	charge := payments.Charge{
		PaymentID: "o1-p1", OrderID: "o1", Amount: domain.Money{Currency: "EUR", Minor: 1299}, Method: sandbox.TokenTimeoutAfterCharge,
		CaptureNow: true, StartedAt: time.Now(),
	}
	first, lines := startSandbox(t, "--data", file)
	hasty := sandboxClient(t, lines.URL, 500*time.Millisecond)
	if _, err := hasty.Authorize(t.Context(), charge); !errors.Is(err, payments.ErrUnknownOutcome) {
		t.Fatalf("got %v, want no answer", err)
	}
	if err := first.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = first.Wait() // It was killed.
	_, lines = startSandbox(t, "--data", file)
	client := sandboxClient(t, lines.URL, time.Minute)
	for range 2 { // The check-back, and the same charge again.
		if status, err := client.Lookup(t.Context(), charge); err != nil || status.State != payments.StateCaptured {
			t.Fatalf("got %v, %v, want it captured", status.State, err)
		}
		if _, err := client.Authorize(t.Context(), charge); err != nil {
			t.Fatal(err)
		}
	}
	ledger, err := client.Ledger(t.Context())
	if err != nil || len(ledger.Totals) != 1 || ledger.Totals[0].Captures != 1 || ledger.Totals[0].Captured != 1299 {
		t.Fatalf("got %+v, %v, want one capture (I4)", ledger, err)
	}
	r := live(t, nil, "sandbox-pay", "--listen", "127.0.0.1:0", "--data", file).want(t, exitData)
	wantText(t, r.stderr, "in use by another process", "--data")
}

func TestASandboxSignsWithTheSecretThatItPrints(t *testing.T) {
	verified := make(chan error, 1)
	secrets := make(chan webhooksig.Secret, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body := new(bytes.Buffer)
		_, err := body.ReadFrom(r.Body)
		if err == nil {
			err = webhooksig.Verify([]webhooksig.Secret{<-secrets}, r.Header, body.Bytes(), time.Now(), webhooksig.SkewMax)
		}
		verified <- err
	}))
	defer receiver.Close()
	_, lines := startSandbox(t, "--webhook", receiver.URL)
	secret, err := webhooksig.ParseSecret(lines.Secret)
	if err != nil {
		t.Fatal(err)
	}
	secrets <- secret
	if _, err := sandboxClient(t, lines.URL, time.Minute).Authorize(t.Context(), payments.Charge{
		PaymentID: "o1-p1", OrderID: "o1", Amount: domain.Money{Currency: "EUR", Minor: 1}, Method: sandbox.TokenOK, StartedAt: time.Now(),
	}); err != nil {
		t.Fatal(err)
	}
	if err := <-verified; err != nil {
		t.Fatal(err)
	}
}

func TestBadSandboxOptionsAreRefused(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--webhook", "ftp://x"}, "not an http or https URL"},
		{[]string{"--secret", "whsec_c2VjcmV0"}, "there is no --webhook"},
		{[]string{"--webhook", "http://127.0.0.1:1", "--secret", "hunter2hunter2"}, "whsec_"},
		{[]string{"--slow", "0s"}, "--slow must be more than 0"},
		{[]string{"--log-level", "loud"}, "--log-level"},
		{[]string{"--listen", "nowhere"}, "cannot listen on nowhere"},
	} {
		r := live(t, nil, append([]string{"sandbox-pay"}, test.args...)...).want(t, exitUsage)
		wantText(t, r.stderr, test.want)
	}
}
