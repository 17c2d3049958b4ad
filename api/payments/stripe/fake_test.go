package stripe_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// stripe-mock is Stripe's own server for tests. It knows every path and parameter of the API and refuses what is not in its
// description, and it remembers nothing. It is no dependency of this module: the test builds it, through the Go module
// proxy, and Go's build cache keeps it.
const stripeMock = "github.com/stripe/stripe-mock@v0.203.0"

// mockURL is where it listens, set by TestMain.
var mockURL string

func TestMain(m *testing.M) {
	code, err := withMock(m.Run)
	if err != nil {
		fmt.Fprintf(os.Stderr, "the tests of this package need %s, from the Go module proxy or the module cache: %v\n", stripeMock, err)
		code = 1
	}
	os.Exit(code)
}

// buildTimeMax bounds the download and the build of stripe-mock, startTimeMax its start.
const (
	buildTimeMax = 5 * time.Minute
	startTimeMax = 30 * time.Second
)

func withMock(run func() int) (code int, err error) {
	dir, err := os.MkdirTemp("", "stripe-mock-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeMax)
	defer cancel()
	build := exec.CommandContext(ctx, "go", "install", stripeMock)
	build.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
	if output, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("go install: %w\n%s", err, output)
	}
	mock := exec.Command(filepath.Join(dir, "stripe-mock"), "-http-addr", "127.0.0.1:0", "-https-addr", "127.0.0.1:0", "-strict-version-check=false") //nolint:noctx // It is killed below.
	output, err := mock.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := mock.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = mock.Process.Kill()
		_ = mock.Wait() // It was killed.
	}()
	address := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(output)
		for lines.Scan() { // To the end, or it would stop when the pipe is full.
			if found, ok := strings.CutPrefix(lines.Text(), "Listening for HTTP at address: "); ok {
				address <- found
			}
		}
	}()
	select {
	case found := <-address:
		mockURL = "http://" + found
	case <-time.After(startTimeMax):
		return 0, fmt.Errorf("it does not listen within %s", startTimeMax)
	}
	return run(), nil
}

// fakeStripe is stripe-mock with a memory. Every request goes to stripe-mock first: what that refuses is refused, and fails the
// test. Its answer is the shape; what the fake remembers is put into it. It does what Stripe documents: idempotency keys with
// their parameters, the states of a PaymentIntent, refunds up to what was received.
type fakeStripe struct {
	t    testing.TB
	mock http.Handler

	mu      sync.Mutex
	intents map[string]*intent
	refunds []*refund
	keys    map[string]kept
	// captures counts the times that money was taken, by our payment id.
	captures map[string]int
	// paths are those of all requests, in order.
	paths []string
	// refuse answers every request with a status, unless it is 0.
	refuse int
	// refusal is the body of that answer.
	refusal string
}

type kept struct {
	request string
	status  int
	body    []byte
}

type intent struct {
	id, status, currency, captureMethod string
	amount, capturable, received        int64
	metadata                            map[string]string
	failure                             map[string]any
	refundsFail                         bool
}

type refund struct {
	id, intent, status string
	amount             int64
	metadata           map[string]string
}

func newFake(t testing.TB) *fakeStripe {
	t.Helper()
	target, err := url.Parse(mockURL)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeStripe{
		t: t, mock: httputil.NewSingleHostReverseProxy(target),
		intents: map[string]*intent{}, keys: map[string]kept{}, captures: map[string]int{},
	}
}

// The payment methods of the fake.
const (
	methodOK           = "pm_card_visa"
	methodDecline      = "pm_card_chargeDeclinedInsufficientFunds"
	methodRefundFails  = "pm_card_refundFail"
	methodProcessing   = "pm_processing"
	methodNeedsAction  = "pm_card_authenticationRequired"
	insufficientFunds  = "insufficient_funds"
	authenticationCode = "authentication_required"
)

func (f *fakeStripe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Errorf("read a request: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paths = append(f.paths, r.Method+" "+r.URL.Path)
	if f.refuse != 0 {
		w.WriteHeader(f.refuse)
		_, _ = io.WriteString(w, f.refusal)
		return
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		f.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	key := r.Header.Get("Idempotency-Key")
	request := r.Method + " " + r.URL.Path + " " + string(body)
	if before, known := f.keys[key]; known && r.Method == http.MethodPost {
		if before.request != request {
			f.error(w, http.StatusBadRequest, map[string]any{"type": "idempotency_error", "message": "other parameters"})
			return
		}
		w.Header().Set("Idempotent-Replayed", "true")
		w.WriteHeader(before.status)
		_, _ = w.Write(before.body)
		return
	}
	shape := httptest.NewRecorder()
	forwarded := r.Clone(r.Context())
	forwarded.Body, forwarded.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	f.mock.ServeHTTP(shape, forwarded)
	if shape.Code != http.StatusOK {
		f.t.Errorf("stripe-mock refuses %s: %d %s", request, shape.Code, shape.Body)
		w.WriteHeader(shape.Code)
		_, _ = w.Write(shape.Body.Bytes())
		return
	}
	var object map[string]any
	if err := json.Unmarshal(shape.Body.Bytes(), &object); err != nil {
		f.t.Errorf("stripe-mock answers %s", shape.Body)
	}
	answer := httptest.NewRecorder()
	f.answer(answer, r, form, object)
	// Stripe does not keep what it refused before it began.
	if key != "" && r.Method == http.MethodPost && answer.Code != http.StatusConflict {
		f.keys[key] = kept{request, answer.Code, answer.Body.Bytes()}
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

func (f *fakeStripe) error(w http.ResponseWriter, status int, fields map[string]any) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": fields})
}

func unexpected(in *intent) map[string]any {
	return map[string]any{
		"type": "invalid_request_error", "code": "payment_intent_unexpected_state", "message": "the status is " + in.status,
	}
}

// answer does what a request asks for and answers in the shape of stripe-mock's answer.
func (f *fakeStripe) answer(w http.ResponseWriter, r *http.Request, form url.Values, shape map[string]any) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/"), "/")
	if len(parts) == 1 && parts[0] == "payment_intents" && r.Method == http.MethodPost {
		in := &intent{
			id: fmt.Sprintf("pi_%d", len(f.intents)+1), status: "requires_payment_method", currency: form.Get("currency"),
			captureMethod: form.Get("capture_method"), amount: number(form, "amount"), metadata: metadata(form),
		}
		f.intents[in.id] = in
		f.writeIntent(w, in, shape)
		return
	}
	switch parts[0] {
	case "refunds":
		f.answerRefund(w, r, form, shape)
		return
	case "payment_intents":
	default:
		f.t.Errorf("the fake does not know %s", r.URL.Path)
		return
	}
	if parts[1] == "search" {
		f.search(w, r, shape)
		return
	}
	in := f.intents[parts[1]]
	if in == nil {
		f.error(w, http.StatusNotFound, map[string]any{"type": "invalid_request_error", "code": "resource_missing", "message": "no such intent"})
		return
	}
	if len(parts) == 2 {
		f.writeIntent(w, in, shape)
		return
	}
	switch parts[2] {
	case "confirm":
		f.confirm(w, in, form, shape)
	case "capture":
		if in.status != "requires_capture" {
			f.error(w, http.StatusBadRequest, unexpected(in))
			return
		}
		in.status, in.received, in.capturable = "succeeded", number(form, "amount_to_capture"), 0
		f.captures[in.metadata["weir_payment_id"]]++
		f.writeIntent(w, in, shape)
	case "cancel":
		if in.status == "succeeded" || in.status == "canceled" || in.status == "processing" {
			f.error(w, http.StatusBadRequest, unexpected(in))
			return
		}
		in.status, in.capturable = "canceled", 0
		f.writeIntent(w, in, shape)
	default:
		f.t.Errorf("the fake does not know %s", r.URL.Path)
	}
}

func (f *fakeStripe) confirm(w http.ResponseWriter, in *intent, form url.Values, shape map[string]any) {
	if in.status != "requires_payment_method" {
		f.error(w, http.StatusBadRequest, unexpected(in))
		return
	}
	decline := func(fields map[string]any) {
		fields["type"], fields["message"] = "card_error", "Your card was declined."
		in.failure = fields
		f.error(w, http.StatusPaymentRequired, fields)
	}
	switch method := form.Get("payment_method"); method {
	case methodDecline:
		decline(map[string]any{"code": "card_declined", "decline_code": insufficientFunds})
		return
	case methodNeedsAction:
		if form.Get("error_on_requires_action") != "true" {
			f.t.Error("a confirmation does not fail when somebody would have to act")
		}
		decline(map[string]any{"code": authenticationCode})
		return
	case methodProcessing:
		in.status = "processing"
	case methodOK, methodRefundFails:
		in.refundsFail = method == methodRefundFails
		in.status, in.capturable = "requires_capture", in.amount
		if in.captureMethod == "automatic" {
			in.status, in.received, in.capturable = "succeeded", in.amount, 0
			f.captures[in.metadata["weir_payment_id"]]++
		}
	default:
		f.error(w, http.StatusBadRequest, map[string]any{"type": "invalid_request_error", "code": "resource_missing", "message": "No such PaymentMethod"})
		return
	}
	f.writeIntent(w, in, shape)
}

func (f *fakeStripe) search(w http.ResponseWriter, r *http.Request, shape map[string]any) {
	data := []any{}
	for _, in := range f.intents {
		if r.URL.Query().Get("query") == fmt.Sprintf(`metadata["weir_payment_id"]:"%s"`, in.metadata["weir_payment_id"]) {
			data = append(data, f.intentObject(in, map[string]any{}))
		}
	}
	shape["data"], shape["has_more"] = data, false
	_ = json.NewEncoder(w).Encode(shape)
}

func (f *fakeStripe) intentObject(in *intent, shape map[string]any) map[string]any {
	shape["object"], shape["id"], shape["status"], shape["currency"] = "payment_intent", in.id, in.status, in.currency
	shape["amount"], shape["amount_capturable"], shape["amount_received"] = in.amount, in.capturable, in.received
	shape["metadata"], shape["last_payment_error"] = in.metadata, in.failure
	return shape
}

func (f *fakeStripe) writeIntent(w http.ResponseWriter, in *intent, shape map[string]any) {
	_ = json.NewEncoder(w).Encode(f.intentObject(in, shape))
}

func (f *fakeStripe) refundObject(r *refund, shape map[string]any) map[string]any {
	shape["object"], shape["id"], shape["status"], shape["amount"] = "refund", r.id, r.status, r.amount
	shape["currency"], shape["payment_intent"], shape["metadata"] = f.intents[r.intent].currency, r.intent, r.metadata
	if r.status == "failed" {
		shape["failure_reason"] = "declined"
	}
	return shape
}

func (f *fakeStripe) answerRefund(w http.ResponseWriter, r *http.Request, form url.Values, shape map[string]any) {
	if r.Method == http.MethodGet {
		data := []any{}
		for _, made := range slices.Backward(f.refunds) {
			if made.intent == r.URL.Query().Get("payment_intent") {
				data = append(data, f.refundObject(made, map[string]any{}))
			}
		}
		shape["data"], shape["has_more"] = data, false
		_ = json.NewEncoder(w).Encode(shape)
		return
	}
	in := f.intents[form.Get("payment_intent")]
	made := &refund{
		id: fmt.Sprintf("re_%d", len(f.refunds)+1), intent: in.id, status: "succeeded", amount: number(form, "amount"), metadata: metadata(form),
	}
	left := in.received
	for _, earlier := range f.refunds {
		if earlier.intent == in.id && earlier.status == "succeeded" {
			left -= earlier.amount
		}
	}
	if made.amount > left {
		f.error(w, http.StatusBadRequest, map[string]any{"type": "invalid_request_error", "code": "charge_already_refunded", "message": "too much"})
		return
	}
	if in.refundsFail {
		made.status = "failed"
	}
	f.refunds = append(f.refunds, made)
	_ = json.NewEncoder(w).Encode(f.refundObject(made, shape))
}

func number(form url.Values, name string) int64 {
	value, _ := strconv.ParseInt(form.Get(name), 10, 64)
	return value
}

func metadata(form url.Values) map[string]string {
	found := map[string]string{}
	for name, values := range form {
		if key, ok := strings.CutPrefix(name, "metadata["); ok {
			found[strings.TrimSuffix(key, "]")] = values[0]
		}
	}
	return found
}
