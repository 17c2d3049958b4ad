package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/api/payments/sandbox"
)

// ledgerOf reads the books of a dev node's sandbox.
func ledgerOf(t *testing.T, url string) sandbox.Ledger {
	t.Helper()
	client, err := sandbox.NewClient(sandbox.ClientOptions{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ledger, err := client.Ledger(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return ledger
}

// awaitOrder waits until an order has a status.
func awaitOrder(t *testing.T, env []string, id, status string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		text := live(t, env, "order", "get", id, "-o", "json").want(t, exitOK).stdout
		if decode[placed](t, text).Order.Status == status {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the order is not %s: %s", status, text)
		}
	}
}

func TestADevNodePaysThroughItsSandboxAlsoAfterARestart(t *testing.T) {
	dir := t.TempDir()
	n := startDev(t, dir, "--demo")
	if n.lines.Sandbox == "" {
		t.Fatal("the node does not say where its sandbox listens")
	}
	paid := place(t, n.customer(), "tea-sencha=2").Order.OrderID
	live(t, n.customer(), "payment", "start", paid, "--method", sandbox.TokenErrorAfterCharge).want(t, exitOK)
	awaitOrder(t, n.customer(), paid, "ORDER_STATUS_PAID")
	held := place(t, n.customer(), "tea-sencha=1").Order.OrderID
	live(t, n.customer(), "payment", "start", held, "--method", sandbox.TokenOK, "--capture", "manual").want(t, exitOK)
	awaitOrder(t, n.customer(), held, "ORDER_STATUS_AUTHORIZED")
	wantText(t, live(t, nil, "reactors", "status", "--data", dir).want(t, exitOK).stdout, "payments", "points", "PROVIDER", "sandbox")
	n.stop().want(t, exitOK)

	n = startDev(t, dir)
	live(t, n.operator(), "payment", "capture", held).want(t, exitOK)
	awaitOrder(t, n.customer(), held, "ORDER_STATUS_PAID")
	live(t, n.operator(), "payment", "refund", paid).want(t, exitOK)
	awaitReactors(t, dir, n.customer())
	captures, refunds := map[string]int{}, int64(0)
	for deadline := time.Now().Add(30 * time.Second); refunds == 0; {
		clear(captures)
		for _, entry := range ledgerOf(t, n.lines.Sandbox).Entries {
			switch entry.Kind {
			case "captured":
				captures[entry.PaymentID]++
			case "refunded":
				refunds += entry.Amount.Minor
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was refunded")
		}
	}
	if captures[paid+"-p1"] != 1 || captures[held+"-p1"] != 1 || refunds != 2580 {
		t.Errorf("the books have captures %v and %d refunded, want one each and 2580 (I4)", captures, refunds)
	}
	n.stop().want(t, exitOK)
}

func TestAWebhookThatNobodySignedIsRefused(t *testing.T) {
	n := startDev(t, t.TempDir())
	for path, want := range map[string]int{
		webhookPath + sandbox.Name: http.StatusUnauthorized, webhookPath + "stripe": http.StatusNotFound, webhookPath: http.StatusNotFound,
	} {
		response, err := http.Post(n.lines.API+path, "application/json", strings.NewReader(`{"type":"payment.captured"}`)) //nolint:noctx // A test's.
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != want {
			t.Errorf("%s: status %d, want %d", path, response.StatusCode, want)
		}
	}
}

func TestADevNodeWithoutASandboxHasNoProvider(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo", "--sandbox-listen", "")
	if n.lines.Sandbox != "" {
		t.Errorf("a sandbox listens at %s", n.lines.Sandbox)
	}
	order := place(t, n.customer(), "tea-sencha=1").Order.OrderID
	wantText(t, live(t, n.customer(), "payment", "start", order, "--method", "tok_ok").want(t, exitUsage).stderr, "provider")
}

func TestPaymentFlagsThatCannotBeAreRefused(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--payment-provider", "cash"},
		{"--payment-provider", "sandbox,sandbox"},
		{"--payment-provider", "stripe"},
		{"--payment-provider", "sandbox", "--sandbox-listen", ""},
		{"--payment-provider", "stripe", "--stripe-key-file", empty},
		{"--payment-provider", "stripe", "--stripe-key-file", empty + "-missing"},
		{"--sandbox-url", "nowhere", "--payment-provider", "sandbox"},
		{"--sandbox-url", "http://127.0.0.1:1", "--payment-provider", "sandbox", "--sandbox-webhook-secret-file", empty},
		{"--points-per-major", "-1"},
	} {
		live(t, nil, append([]string{"dev", "--data", t.TempDir(), "--listen", "127.0.0.1:0"}, args...)...).want(t, exitUsage)
	}
}
