//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// browserPatience is how long Chromium may take to start and the page to shop: two seconds on an idle machine.
	browserPatience = time.Minute
	// seenBytesMax bounds what a page says it saw.
	seenBytesMax = 64 << 10

	browserPage   = "../../ops/browser/page.html"
	browserBundle = "../../ops/browser/dist/page.js"
)

// shopped is what the page in ops/browser saw over one protocol.
type shopped struct {
	Protocol        string   `json:"protocol"`
	OrderID         string   `json:"orderId"`
	RepeatedOrderID string   `json:"repeatedOrderId"`
	Watched         []string `json:"watched"`
	Refusal         *struct {
		Code     string            `json:"code"`
		Reason   string            `json:"reason"`
		Domain   string            `json:"domain"`
		Metadata map[string]string `json:"metadata"`
	} `json:"refusal"`
	Failure string `json:"failure"`
}

func TestAWebPageOrdersThroughTheGateway(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	shop := servePage(t, map[string]string{"gateway": n.lines.API, "token": n.lines.Customer.Token})

	bought := map[string]string{} // Protocol by order.
	for _, got := range shop.visit(t, "localhost") {
		if got.Failure != "" {
			t.Fatalf("over %s the page failed: %s", got.Protocol, got.Failure)
		}
		if got.OrderID == "" || got.RepeatedOrderID != got.OrderID {
			t.Errorf("over %s the order is %q, and the same request answers with %q", got.Protocol, got.OrderID, got.RepeatedOrderID)
		}
		if want := []string{"PENDING_PAYMENT", "CANCELLED"}; !slices.Equal(got.Watched, want) {
			t.Errorf("over %s the watch saw %q, want %q", got.Protocol, got.Watched, want)
		}
		switch refusal := got.Refusal; {
		case refusal == nil:
			t.Errorf("over %s an order of a million was not refused", got.Protocol)
		case refusal.Code != "FailedPrecondition" || refusal.Reason != "OUT_OF_STOCK" || refusal.Domain != "weir" ||
			refusal.Metadata["sku"] != "tea-sencha" || refusal.Metadata["want"] != "1000000" || refusal.Metadata["free"] == "":
			t.Errorf("over %s the refusal reads %+v", got.Protocol, *refusal)
		}
		bought[got.OrderID] = got.Protocol
	}
	if protocols := slices.Sorted(maps.Values(bought)); !slices.Equal(protocols, []string{"connect", "grpc-web"}) {
		t.Errorf("the page ordered over %q", protocols)
	}

	// The node says what the page says.
	for order := range bought {
		r := live(t, n.customer(), "order", "get", order, "-o", "json").want(t, exitOK)
		wantText(t, r.stdout, order, "ORDER_STATUS_CANCELLED")
	}
}

// Only where it comes from tells this page from the one above: its host resolves to the same address, and its token is good.
func TestAWebPageOfAnotherOriginCannotOrder(t *testing.T) {
	n := startDev(t, t.TempDir(), "--demo")
	evil := servePage(t, map[string]string{"gateway": n.lines.API, "token": n.lines.Customer.Token})
	seen := evil.visit(t, "evil.localhost")
	if len(seen) != 2 {
		t.Errorf("the page tried %d protocols, want 2", len(seen))
	}
	for _, got := range seen {
		if got.OrderID != "" || !strings.Contains(got.Failure, "Failed to fetch") {
			t.Errorf("over %s the page got %+v, want that the browser keeps the call to itself", got.Protocol, got)
		}
	}
	r := live(t, n.customer(), "order", "list", "-o", "json").want(t, exitOK)
	if strings.Contains(r.stdout, "orderId") {
		t.Errorf("the page ordered: %s", r.stdout)
	}
}

// A pageServer serves the page of ops/browser, which calls the gateway from an origin that is not the gateway's.
type pageServer struct {
	port string
	seen chan []shopped
}

func servePage(t *testing.T, given map[string]string) *pageServer {
	t.Helper()
	for _, file := range []string{browserPage, browserBundle} {
		if _, err := os.Stat(file); err != nil {
			t.Fatalf("the web page is not built: run 'make browser' (it needs Node.js 20 or later, and npm): %v", err)
		}
	}
	s := &pageServer{seen: make(chan []shopped, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, browserPage) })
	mux.HandleFunc("GET /page.js", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, browserBundle) })
	mux.HandleFunc("GET /given", func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(given); err != nil {
			t.Errorf("tell the page what it is given: %v", err)
		}
	})
	mux.HandleFunc("POST /seen", func(w http.ResponseWriter, r *http.Request) {
		var seen []shopped
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, seenBytesMax)).Decode(&seen); err != nil {
			t.Errorf("read what the page saw: %v", err)
		}
		select {
		case s.seen <- seen:
		default:
			t.Error("the page told what it saw twice")
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s.port = port
	return s
}

// visit opens the page in Chromium at a host name, and returns what it saw.
func (s *pageServer) visit(t *testing.T, host string) []shopped {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: run 'make chromium' as root, or install it (Debian: apt-get install chromium)")
	}
	// Not t.TempDir: the browser's processes may write while they die, and it is removed once they have.
	profile, err := os.MkdirTemp("", "weir-browser-") //nolint:usetesting // See above.
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), browserPatience)
	browser := exec.CommandContext(ctx, program, //nolint:gosec // Both are this test's own.
		"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--no-proxy-server",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-breakpad",
		"--enable-logging=stderr", "--user-data-dir="+profile, fmt.Sprintf("http://%s:%s/", host, s.port))
	browser.Env = append(os.Environ(), "HOME="+profile, "XDG_CONFIG_HOME="+profile, "XDG_CACHE_HOME="+profile)
	var said bytes.Buffer
	browser.Stdout, browser.Stderr = &said, &said
	// It is many processes, which end together.
	browser.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	browser.Cancel = func() error { return syscall.Kill(-browser.Process.Pid, syscall.SIGKILL) }
	browser.WaitDelay = 10 * time.Second
	if err := browser.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- browser.Wait() }()

	select {
	case seen := <-s.seen:
		cancel()
		<-ended
		removeProfile(t, profile)
		return seen
	case err := <-ended:
		late := ctx.Err()
		cancel()
		removeProfile(t, profile)
		t.Fatalf("chromium ended (%v, %v) before the page told what it saw:\n%s", err, late, &said)
		return nil
	}
}

// removeProfile removes a browser's directory, again and again while a process of it still writes there.
func removeProfile(t *testing.T, profile string) {
	t.Helper()
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if err = os.RemoveAll(profile); err == nil {
			return
		}
	}
	t.Errorf("remove the browser's directory %s: %v", filepath.Base(profile), err)
}
