package payments_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/api/webhooksig"
)

// hook is a webhook handler that is served, and what it took.
type hook struct {
	url    string
	secret webhooksig.Secret
	logs   *lockedBuffer

	mu    sync.Mutex
	taken []payments.Notice
	// refuse is what Take answers.
	refuse error
	// hold keeps Take until it is closed, unless it is nil.
	hold chan struct{}
}

type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

func newHook(t *testing.T, limits payments.WebhookLimits) *hook {
	t.Helper()
	h := &hook{secret: webhooksig.NewSecret(), logs: &lockedBuffer{}}
	reader, err := sandbox.NewNoticeReader(h.secret)
	if err != nil {
		t.Fatal(err)
	}
	handler, err := payments.NewWebhookHandler(payments.WebhookOptions{
		Reader: reader, Take: h.take, Logger: slog.New(slog.NewTextHandler(h.logs, nil)), Limits: limits,
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

func (h *hook) take(ctx context.Context, notice payments.Notice) error {
	h.mu.Lock()
	hold := h.hold
	h.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refuse != nil {
		return h.refuse
	}
	h.taken = append(h.taken, notice)
	return nil
}

func (h *hook) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.taken)
}

const event = `{"id":"evt_1","type":"payment.captured","created_at":"2026-11-22T10:00:00Z",` +
	`"data":{"payment_id":"o1-p1","state":"captured","amount":{"currency":"EUR","minor":1299}}}`

// request is a signed request, changed by whoever wants it otherwise.
func (h *hook) request(t *testing.T, body string, at time.Time, change func(*http.Request)) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, h.url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	webhooksig.SetHeaders(request.Header, []webhooksig.Secret{h.secret}, "evt_1", at, []byte(body))
	if change != nil {
		change(request)
	}
	return request
}

func send(t *testing.T, request *http.Request) (status int, header http.Header) {
	t.Helper()
	client := &http.Client{Timeout: 30 * time.Second}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header
}

func TestSignedNoticeIsTaken(t *testing.T) {
	h := newHook(t, payments.WebhookLimits{})
	if status, _ := send(t, h.request(t, event, time.Now(), nil)); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	want := payments.Notice{
		Provider: "sandbox", EventID: "evt_1", At: time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC), PaymentID: "o1-p1",
		State: payments.StateCaptured, Amount: h.taken[0].Amount,
	}
	if h.count() != 1 || h.taken[0] != want || h.taken[0].Amount.String() != "12.99 EUR" {
		t.Fatalf("took %+v", h.taken)
	}
}

func TestReplayedNoticeIsTakenAgainWithTheSameID(t *testing.T) {
	h := newHook(t, payments.WebhookLimits{})
	at := time.Now()
	for range 3 {
		if status, _ := send(t, h.request(t, event, at, nil)); status != http.StatusOK {
			t.Fatalf("status %d", status)
		}
	}
	if h.count() != 3 || h.taken[0] != h.taken[2] {
		t.Fatalf("took %+v: whoever takes them knows them by their id", h.taken)
	}
}

func TestAttacksOnAWebhookAreRefused(t *testing.T) {
	const bodyBytesMax = 4096
	h := newHook(t, payments.WebhookLimits{BodyBytesMax: bodyBytesMax})
	with := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	without := func(name string) func(*http.Request) { return func(r *http.Request) { r.Header.Del(name) } }
	now := time.Now()
	for _, test := range []struct {
		name   string
		body   string
		at     time.Time
		change func(*http.Request)
		status int
	}{
		{"no headers", event, now, func(r *http.Request) { r.Header = http.Header{"Content-Type": {"application/json"}} }, 401},
		{"no id", event, now, without(webhooksig.HeaderID), 401},
		{"no timestamp", event, now, without(webhooksig.HeaderTimestamp), 401},
		{"no signature", event, now, without(webhooksig.HeaderSignature), 401},
		{"a signature of nobody", event, now, with(webhooksig.HeaderSignature, "v1,AAAA"), 401},
		{"another body under a good signature", event, now, func(r *http.Request) {
			forged := strings.Replace(event, "1299", "1", 1)
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(forged)), int64(len(forged))
		}, 401},
		{"another id under a good signature", event, now, with(webhooksig.HeaderID, "evt_2"), 401},
		{"a newer timestamp under an old signature", event, now.Add(-time.Hour), with(webhooksig.HeaderTimestamp, strconv.FormatInt(now.Unix(), 10)), 401},
		{"six minutes old", event, now.Add(-6 * time.Minute), nil, 401},
		{"six minutes ahead", event, now.Add(6 * time.Minute), nil, 401},
		{"signed, and no JSON", "{", now, nil, 400},
		{"signed, and empty", "", now, nil, 400},
		{"signed, and deep", strings.Repeat("[", 2000), now, nil, 400},
		{"signed, and bad UTF-8", strings.Replace(event, "o1-p1", "\xff", 1), now, nil, 400},
		{"signed, with the id of another event", strings.Replace(event, "evt_1", "evt_9", 1), now, nil, 400},
		{"signed, about a hostile payment id", strings.Replace(event, "o1-p1", "../../x", 1), now, nil, 400},
		{"signed, about no payment", strings.Replace(event, "o1-p1", "", 1), now, nil, 400},
		{"signed, with a state that is none", strings.Replace(event, `"state":"captured"`, `"state":"fine"`, 1), now, nil, 400},
		{"signed, with an amount that is none", strings.Replace(event, "1299", `"1299"`, 1), now, nil, 400},
		{"too large", strings.Repeat(" ", bodyBytesMax) + event, now, nil, 413},
		{"too large, of unknown length", strings.Repeat(" ", bodyBytesMax) + event, now, func(r *http.Request) { r.ContentLength = -1 }, 413},
		{"a GET", event, now, func(r *http.Request) { r.Method = http.MethodGet }, 405},
		{"a form", event, now, with("Content-Type", "application/x-www-form-urlencoded"), 415},
		{"no content type", event, now, without("Content-Type"), 415},
	} {
		if status, header := send(t, h.request(t, test.body, test.at, test.change)); status != test.status || header.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: status %d, want %d", test.name, status, test.status)
		}
	}
	if h.count() != 0 {
		t.Errorf("took %+v", h.taken)
	}
	if logs := h.logs.String(); strings.Contains(logs, h.secret.Encode()[6:]) || strings.Contains(logs, "level=ERROR") {
		t.Errorf("logged a secret, or an error that anybody can cause:\n%s", logs)
	}
	if status, _ := send(t, h.request(t, event, now, nil)); status != http.StatusOK {
		t.Errorf("after the attacks a good one is answered with %d", status)
	}
}

func TestNoticeThatIsNotTakenComesAgain(t *testing.T) {
	h := newHook(t, payments.WebhookLimits{RetryAfter: 7 * time.Second})
	h.refuse = errors.New("the lane is full")
	status, header := send(t, h.request(t, event, time.Now(), nil))
	if status != http.StatusServiceUnavailable || header.Get("Retry-After") != "7" {
		t.Fatalf("status %d, Retry-After %q", status, header.Get("Retry-After"))
	}
	if logs := h.logs.String(); !strings.Contains(logs, "o1-p1") || !strings.Contains(logs, "the lane is full") {
		t.Fatalf("it logged %q", logs)
	}
	h.refuse = nil
	if status, _ := send(t, h.request(t, event, time.Now(), nil)); status != http.StatusOK || h.count() != 1 {
		t.Fatalf("status %d, %d taken", status, h.count())
	}
}

func TestSlowBodyIsCut(t *testing.T) {
	const bodyTimeMax = 100 * time.Millisecond
	h := newHook(t, payments.WebhookLimits{BodyTimeMax: bodyTimeMax})
	good := h.request(t, event, time.Now(), nil)
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(h.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var head strings.Builder
	fmt.Fprintf(&head, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n", len(event))
	if err := good.Header.Write(&head); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := io.WriteString(conn, head.String()+"\r\n"+event[:10]); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(began.Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn) // Until the server closes it.
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408") {
		t.Fatalf("after %s: %q, %v", time.Since(began), answer, err)
	}
	if h.count() != 0 {
		t.Fatal("half a body was taken")
	}
}

func TestNoticeMayTakeLongerThanItsBody(t *testing.T) {
	const bodyTimeMax = 20 * time.Millisecond
	h := newHook(t, payments.WebhookLimits{BodyTimeMax: bodyTimeMax})
	h.hold = make(chan struct{})
	timer := time.AfterFunc(10*bodyTimeMax, func() { close(h.hold) })
	defer timer.Stop()
	if status, _ := send(t, h.request(t, event, time.Now(), nil)); status != http.StatusOK || h.count() != 1 {
		t.Fatalf("status %d, %d taken", status, h.count())
	}
}

func TestNoticeThatIsNotTakenInTimeComesAgain(t *testing.T) {
	h := newHook(t, payments.WebhookLimits{TakeTimeMax: 20 * time.Millisecond})
	h.hold = make(chan struct{})
	if status, _ := send(t, h.request(t, event, time.Now(), nil)); status != http.StatusServiceUnavailable {
		t.Fatalf("status %d", status)
	}
}

func TestMoreWebhooksAtOnceThanThereIsRoomForComeAgain(t *testing.T) {
	h := newHook(t, payments.WebhookLimits{AtOnceMax: 1})
	h.hold = make(chan struct{})
	const count = 8
	statuses := make(chan int, count)
	for range count {
		request := h.request(t, event, time.Now(), nil)
		go func() {
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Error(err)
				statuses <- 0
				return
			}
			response.Body.Close()
			statuses <- response.StatusCode
		}()
	}
	for range count - 1 { // All but the one that is inside.
		if status := <-statuses; status != http.StatusServiceUnavailable {
			t.Errorf("status %d, want 503", status)
		}
	}
	close(h.hold)
	if status := <-statuses; status != http.StatusOK || h.count() != 1 {
		t.Errorf("status %d, %d taken", status, h.count())
	}
}

func TestWebhookHandlerWantsWhatItNeeds(t *testing.T) {
	if _, err := payments.NewWebhookHandler(payments.WebhookOptions{}); err == nil {
		t.Error("made of nothing")
	}
	if _, err := sandbox.NewNoticeReader(); err == nil {
		t.Error("a reader without a secret believes everybody")
	}
}
