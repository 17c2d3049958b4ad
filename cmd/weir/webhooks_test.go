package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/api/webhooksig"
)

// A merchant is a system that is told what happens.
type merchant struct {
	t      *testing.T
	server *httptest.Server

	mu       sync.Mutex
	secret   webhooksig.Secret
	status   int
	received []string // types of events, each with its order id
	more     chan struct{}
}

func newMerchant(t *testing.T) *merchant {
	m := &merchant{t: t, status: http.StatusNoContent, more: make(chan struct{})}
	m.server = httptest.NewServer(m)
	t.Cleanup(m.server.Close)
	return m
}

func (m *merchant) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return // The node has left.
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := webhooksig.Verify([]webhooksig.Secret{m.secret}, request.Header, body, time.Now(), webhooksig.SkewMax); err != nil {
		m.t.Errorf("%v", err)
	}
	var event struct{ Type, OrderID string }
	if err := json.Unmarshal(body, &event); err != nil {
		m.t.Errorf("%s: %v", body, err)
	}
	if m.status < 300 {
		m.received = append(m.received, event.Type+" "+event.OrderID)
		close(m.more)
		m.more = make(chan struct{})
	}
	w.WriteHeader(m.status)
}

func (m *merchant) set(status int, secret string) {
	m.t.Helper()
	parsed, err := webhooksig.ParseSecret(secret)
	if err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status, m.secret = status, parsed
}

// await waits until the event was received.
func (m *merchant) await(event string) {
	m.t.Helper()
	patience := time.After(30 * time.Second)
	for {
		m.mu.Lock()
		received, more := slices.Clone(m.received), m.more
		m.mu.Unlock()
		if slices.Contains(received, event) {
			return
		}
		select {
		case <-more:
		case <-patience:
			m.t.Fatalf("received %v, want %s", received, event)
		}
	}
}

type endpointLine struct {
	EndpointID, URL, Error, LagCommits string
	Raised, Paused                     bool
}

func endpointsOf(t *testing.T, n *devNode) []endpointLine {
	t.Helper()
	return decode[struct{ Endpoints []endpointLine }](t, live(t, n.operator(), "webhooks", "list", "-o", "json").want(t, exitOK).stdout).Endpoints
}

func TestAMerchantIsToldWhatHappensAlsoAfterTheStateIsLost(t *testing.T) {
	dir, m := t.TempDir(), newMerchant(t)
	n := startDev(t, dir, "--demo", "--lanes", "2")
	place(t, n.customer(), "tea-sencha") // Before the endpoint's day.
	put := live(t, n.operator(), "webhooks", "put", "erp", "--url", m.server.URL, "--type", "OrderPlaced", "--type", "OrderCancelled", "--request-id", "put-1", "-o", "json").want(t, exitOK).stdout
	secret := decode[struct{ Secret string }](t, put).Secret
	m.set(http.StatusOK, secret)
	if again := live(t, n.operator(), "webhooks", "put", "erp", "--url", m.server.URL, "--type", "OrderPlaced", "--type", "OrderCancelled", "--request-id", "put-1", "-o", "json").want(t, exitOK).stdout; again != put {
		t.Errorf("the same request got\n%s, then\n%s", put, again)
	}
	wantText(t, live(t, n.operator(), "webhooks", "put", "erp", "--url", "https://elsewhere.example", "--request-id", "put-1").want(t, exitRefused).stderr, "KEY_REUSED")
	first := place(t, n.customer(), "tea-sencha").Order.OrderID
	live(t, n.customer(), "order", "cancel", first).want(t, exitOK)
	m.await("OrderPlaced " + first)
	m.await("OrderCancelled " + first)
	if all := endpointsOf(t, n); len(all) != 1 || all[0].EndpointID != "erp" || all[0].Error != "" || all[0].Raised {
		t.Errorf("got %+v", all)
	}
	table := live(t, n.operator(), "webhooks", "list").want(t, exitOK).stdout
	wantText(t, table, "erp", "delivering", m.server.URL, "OrderPlaced OrderCancelled")
	if strings.Contains(put+table, "whsec_") != strings.Contains(put, "whsec_") || strings.Contains(table, secret) {
		t.Errorf("the list shows the secret:\n%s", table)
	}

	// What was delivered, and again.
	deliveries := decode[struct {
		Deliveries []struct {
			EventID, OrderID string
			Status           int
		}
	}](t, live(t, n.operator(), "webhooks", "deliveries", "erp", "-o", "json").want(t, exitOK).stdout).Deliveries
	if len(deliveries) != 2 || deliveries[0].OrderID != first || deliveries[0].Status != http.StatusOK {
		t.Fatalf("got %+v, want two deliveries", deliveries)
	}
	wantText(t, live(t, n.operator(), "webhooks", "replay", "erp", "--event", deliveries[0].EventID).want(t, exitOK).stdout, deliveries[0].EventID, "yes")
	m.set(http.StatusInternalServerError, secret)
	wantText(t, live(t, n.operator(), "webhooks", "replay", "erp", "--event", deliveries[0].EventID).want(t, exitFailure).stdout, "500")

	// A failing endpoint is shown, and goes on.
	second := place(t, n.customer(), "tea-sencha").Order.OrderID
	for failing := false; !failing; {
		all := endpointsOf(t, n)
		failing = all[0].Error != ""
	}
	wantText(t, live(t, n.operator(), "webhooks", "list").want(t, exitOK).stdout, "failing", "500")
	wantText(t, live(t, nil, "reactors", "status", "--data", dir).want(t, exitOK).stdout, "webhook/erp", "failing")
	m.set(http.StatusOK, secret)
	live(t, n.operator(), "webhooks", "resume", "erp").want(t, exitOK)
	m.await("OrderPlaced " + second)

	// The log knows the endpoint and its secret, sealed.
	n.stop().want(t, exitOK)
	if err := os.RemoveAll(dataDir(dir).state()); err != nil {
		t.Fatal(err)
	}
	n = startDev(t, dir)
	third := place(t, n.customer(), "tea-sencha").Order.OrderID
	m.await("OrderPlaced " + third)
	if text := live(t, nil, "log", "cat", "--data", dir).want(t, exitOK).stdout; strings.Contains(text, strings.TrimPrefix(secret, "whsec_")) {
		t.Error("the secret is in the log")
	}
	live(t, n.operator(), "webhooks", "delete", "erp").want(t, exitOK)
	if all := endpointsOf(t, n); len(all) != 0 {
		t.Errorf("after it was deleted: got %+v", all)
	}
	fourth := place(t, n.customer(), "tea-sencha").Order.OrderID
	n.stop().want(t, exitOK)
	m.mu.Lock()
	defer m.mu.Unlock()
	// What it had been told before the state was lost, it is told again, beside what is new.
	if slices.Contains(m.received, "OrderPlaced "+fourth) {
		t.Errorf("it received an order that was placed after it was deleted: %v", m.received)
	}
}

func TestBadWebhookEndpointsAreRefused(t *testing.T) {
	n := startDev(t, t.TempDir())
	good := "https://erp.example/weir"
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"id":          {[]string{"put", "No Spaces", "--url", good}, "endpoint_id"},
		"no url":      {[]string{"put", "erp"}, "--url"},
		"scheme":      {[]string{"put", "erp", "--url", "ftp://erp.example"}, "url"},
		"no host":     {[]string{"put", "erp", "--url", "https:///weir"}, "url"},
		"password":    {[]string{"put", "erp", "--url", "https://a:b@erp.example"}, "url"},
		"long url":    {[]string{"put", "erp", "--url", good + strings.Repeat("x", 2000)}, "url"},
		"type":        {[]string{"put", "erp", "--url", good, "--type", "StockGranted"}, "types[0]"},
		"secret":      {[]string{"put", "erp", "--url", good, "--secret", "whsec_short"}, "secret"},
		"no endpoint": {[]string{"deliveries", "erp"}, "ENDPOINT_NOT_FOUND"},
		"resume":      {[]string{"resume", "erp"}, "ENDPOINT_NOT_FOUND"},
		"replay":      {[]string{"replay", "erp", "--event", "0-1-0"}, "ENDPOINT_NOT_FOUND"},
	} {
		r := live(t, n.operator(), append([]string{"webhooks"}, test.args...)...)
		if r.code == exitOK {
			t.Errorf("%s: it was taken: %s", name, r.stdout)
		}
		wantText(t, r.stderr, test.want)
		if strings.Contains(r.stderr, "whsec_short") {
			t.Errorf("%s: the secret is in %s", name, r.stderr)
		}
	}
	for _, args := range [][]string{{"list"}, {"put", "erp", "--url", good}, {"delete", "erp"}, {"deliveries", "erp"}, {"resume", "erp"}, {"replay", "erp", "--event", "0-1-0"}} {
		wantText(t, live(t, n.customer(), append([]string{"webhooks"}, args...)...).want(t, exitPermission).stderr, "operator")
	}
	live(t, n.operator(), "webhooks", "put", "erp", "--url", good).want(t, exitOK)
	wantText(t, live(t, n.operator(), "webhooks", "replay", "erp", "--event", "0-1-0").want(t, exitNotFound).stderr, "EVENT_NOT_FOUND")
}
