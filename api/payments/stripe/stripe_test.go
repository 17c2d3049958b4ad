package stripe_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	stripego "github.com/stripe/stripe-go/v85"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/payments/paymentstest"
	"github.com/weirhq/weir/api/payments/stripe"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
)

const apiKey = "sk_test_123"

// rig is an adapter with a fake Stripe behind it.
type rig struct {
	fake    *fakeStripe
	lossy   *paymentstest.LossyHandler
	adapter *stripe.Adapter
	// ahead is how far the adapter's clock is ahead.
	ahead time.Duration
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{fake: newFake(t)}
	r.lossy = paymentstest.NewLossyHandler(r.fake)
	server := httptest.NewServer(r.lossy)
	t.Cleanup(server.Close)
	r.adapter = newAdapter(t, stripe.Options{APIKey: apiKey, URL: server.URL, Now: func() time.Time { return time.Now().Add(r.ahead) }})
	return r
}

func newAdapter(t *testing.T, options stripe.Options) *stripe.Adapter {
	t.Helper()
	adapter, err := stripe.New(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(adapter.Close)
	return adapter
}

func charge(id, method string) payments.Charge {
	return payments.Charge{
		PaymentID: id, OrderID: "order-" + id, Amount: eur(1299), Method: method, CaptureNow: true, StartedAt: time.Now(),
	}
}

func eur(minor int64) domain.Money { return domain.Money{Currency: "EUR", Minor: minor} }

func mustBe(t *testing.T, status payments.Status, err error, want payments.State) {
	t.Helper()
	if err != nil || status.State != want {
		t.Fatalf("got %v, %v, want %v", status.State, err, want)
	}
}

func TestStripeKeepsTheContract(t *testing.T) {
	paymentstest.Run(t, func(t *testing.T) paymentstest.Subject {
		r := newRig(t)
		return paymentstest.Subject{
			Provider: r.adapter, MethodOK: methodOK, MethodDecline: methodDecline, MethodRefundFails: methodRefundFails,
			LoseAnswer: func(testing.TB) { r.lossy.Lose(0) },
			Captures: func(_ testing.TB, paymentID string) int {
				r.fake.mu.Lock()
				defer r.fake.mu.Unlock()
				return r.fake.captures[paymentID]
			},
		}
	})
}

// TestStripeMockTakesEveryRequest sends them to stripe-mock itself: its answers make no sense, and its refusals would.
func TestStripeMockTakesEveryRequest(t *testing.T) {
	for name, ahead := range map[string]time.Duration{"by key": 0, "by search": 48 * time.Hour} {
		adapter := newAdapter(t, stripe.Options{APIKey: apiKey, URL: mockURL, Now: func() time.Time { return time.Now().Add(ahead) }})
		c := charge("p1", methodOK)
		_, authorizeErr := adapter.Authorize(t.Context(), c)
		_, lookupErr := adapter.Lookup(t.Context(), c)
		for call, err := range map[string]error{"authorize": authorizeErr, "lookup": lookupErr} {
			if !errors.Is(err, payments.ErrUnknownOutcome) || !strings.Contains(err.Error(), "not about the payment") {
				t.Errorf("%s %s: got %v: stripe-mock's answer, which is about nobody's payment, was to be mistrusted", call, name, err)
			}
		}
	}
}

// TestAnswerLostAnywhereIsMadeUpFor loses each answer of each call in turn, and repeats the call.
func TestAnswerLostAnywhereIsMadeUpFor(t *testing.T) {
	for _, test := range []struct {
		name string
		// given prepares the payment, call is what loses an answer.
		given, call func(context.Context, *rig, payments.Charge) error
		now         bool
		want        payments.State
		captures    int
		refunded    int64
	}{
		{"authorize", nil, authorize, false, payments.StateAuthorized, 0, 0},
		{"authorize and capture", nil, authorize, true, payments.StateCaptured, 1, 0},
		{"capture", authorize, capture, false, payments.StateCaptured, 1, 0},
		{"void", authorize, void, false, payments.StateVoided, 0, 0},
		{"refund", authorize, refundPart, true, payments.StateCaptured, 1, 299},
	} {
		lost := 0
		for place := 0; ; place++ {
			r := newRig(t)
			c := charge("p1", methodOK)
			c.CaptureNow = test.now
			if test.given != nil {
				if err := test.given(t.Context(), r, c); err != nil {
					t.Fatal(err)
				}
			}
			r.lossy.Lose(place)
			err := test.call(t.Context(), r, c)
			if !r.lossy.Lost() {
				break // The call has no more answers.
			}
			lost++
			if !errors.Is(err, payments.ErrUnknownOutcome) {
				t.Fatalf("%s: answer %d lost: got %v", test.name, place, err)
			}
			if err := test.call(t.Context(), r, c); err != nil {
				t.Fatalf("%s: answer %d lost, and again: %v", test.name, place, err)
			}
			status, err := r.adapter.Lookup(t.Context(), c)
			mustBe(t, status, err, test.want)
			if r.fake.captures["p1"] != test.captures || len(r.fake.intents) != 1 || status.Refunded.Minor != test.refunded {
				t.Fatalf("%s: answer %d lost: %d captures of %d intents, refunded %v (I4)", test.name, place, r.fake.captures["p1"], len(r.fake.intents), status.Refunded)
			}
		}
		if lost < 3 {
			t.Fatalf("%s has %d answers to lose", test.name, lost)
		}
	}
}

func authorize(ctx context.Context, r *rig, c payments.Charge) error {
	_, err := r.adapter.Authorize(ctx, c)
	return err
}

func capture(ctx context.Context, r *rig, c payments.Charge) error {
	_, err := r.adapter.Capture(ctx, c, c.Amount)
	return err
}

func void(ctx context.Context, r *rig, c payments.Charge) error {
	_, err := r.adapter.Void(ctx, c)
	return err
}

func refundPart(ctx context.Context, r *rig, c payments.Charge) error {
	_, err := r.adapter.Refund(ctx, c, payments.Refund{RefundID: "p1-r1", Amount: eur(299)})
	return err
}

func TestPaymentOlderThanItsKeyIsFoundAndNeverMadeAnew(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	old, missing := charge("p1", methodOK), charge("p2", methodOK)
	status, err := r.adapter.Authorize(ctx, old)
	mustBe(t, status, err, payments.StateCaptured)
	r.ahead = 24*time.Hour + time.Minute
	r.fake.keys = map[string]kept{} // Stripe has forgotten them.

	status, err = r.adapter.Lookup(ctx, old)
	mustBe(t, status, err, payments.StateCaptured)
	status, err = r.adapter.Authorize(ctx, old)
	mustBe(t, status, err, payments.StateCaptured)
	if _, err := r.adapter.Refund(ctx, old, payments.Refund{RefundID: "p1-r1", Amount: eur(1000)}); err != nil {
		t.Fatal(err)
	}
	r.fake.keys = map[string]kept{}
	if again, err := r.adapter.Refund(ctx, old, payments.Refund{RefundID: "p1-r1", Amount: eur(1000)}); err != nil || again.State != payments.RefundSucceeded {
		t.Fatalf("the same refund, when its key is forgotten: %+v, %v", again, err)
	}
	status, err = r.adapter.Lookup(ctx, old)
	mustBe(t, status, err, payments.StateCaptured)
	if status.Refunded != eur(1000) || len(r.fake.refunds) != 1 {
		t.Fatalf("refunded %v in %d refunds", status.Refunded, len(r.fake.refunds))
	}

	status, err = r.adapter.Lookup(ctx, missing)
	mustBe(t, status, err, payments.StateNone)
	var rejected *payments.RejectedError
	if _, err := r.adapter.Authorize(ctx, missing); !errors.As(err, &rejected) || rejected.Code != payments.CodeTooLate {
		t.Fatalf("a charge that comes a day late: got %v", err)
	}
	status, err = r.adapter.Void(ctx, missing)
	mustBe(t, status, err, payments.StateVoided)
	if len(r.fake.intents) != 1 {
		t.Fatalf("%d PaymentIntents, want 1", len(r.fake.intents))
	}
}

func TestPendingAndAuthenticationAreNotTakenForMoney(t *testing.T) {
	r := newRig(t)
	pending := charge("p1", methodProcessing)
	status, err := r.adapter.Authorize(t.Context(), pending)
	mustBe(t, status, err, payments.StatePending)
	status, err = r.adapter.Void(t.Context(), pending)
	mustBe(t, status, err, payments.StatePending)
	status, err = r.adapter.Authorize(t.Context(), charge("p2", methodNeedsAction))
	mustBe(t, status, err, payments.StateDeclined)
	if status.DeclineCode != authenticationCode {
		t.Fatalf("declined with %q", status.DeclineCode)
	}
	status, err = r.adapter.Authorize(t.Context(), charge("p3", methodDecline))
	mustBe(t, status, err, payments.StateDeclined)
	if status.DeclineCode != insufficientFunds || status.DeclineMessage == "" {
		t.Fatalf("declined with %q %q, want the bank's reason", status.DeclineCode, status.DeclineMessage)
	}
}

func TestRequestsCarryOurIDsAsKeys(t *testing.T) {
	keys := map[string]bool{}
	fake := newFake(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			keys[r.Header.Get("Idempotency-Key")] = true
		}
		if got := r.Header.Get("Authorization"); got != "Bearer "+apiKey {
			t.Errorf("authorization %q", got)
		}
		fake.ServeHTTP(w, r)
	}))
	defer server.Close()
	adapter := newAdapter(t, stripe.Options{APIKey: apiKey, URL: server.URL})
	c := charge("o1-p1", methodOK)
	c.CaptureNow = false
	status, err := adapter.Authorize(t.Context(), c)
	mustBe(t, status, err, payments.StateAuthorized)
	status, err = adapter.Capture(t.Context(), c, c.Amount)
	mustBe(t, status, err, payments.StateCaptured)
	if _, err := adapter.Refund(t.Context(), c, payments.Refund{RefundID: "o1-p1-r1", Amount: eur(1)}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"o1-p1", "o1-p1/confirm", "o1-p1/capture", "o1-p1-r1"} {
		if !keys[want] {
			t.Errorf("no request with the key %s: %v", want, keys)
		}
	}
	if len(keys) != 4 {
		t.Errorf("keys %v, want 4", keys)
	}
}

func TestOnlyWhatStripeClearlyRefusesIsRejected(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		body   string
		// code of a rejection; empty means an unknown outcome.
		code string
	}{
		{"bad parameters", 400, `{"error":{"type":"invalid_request_error","code":"parameter_unknown","message":"m"}}`, "parameter_unknown"},
		{"a key with other parameters", 400, `{"error":{"type":"idempotency_error","message":"m"}}`, payments.CodeKeyReused},
		{"a bad API key", 401, `{"error":{"type":"invalid_request_error","message":"Invalid API Key provided: sk_test_***"}}`, payments.CodeCredentials},
		{"a restricted key", 403, `{"error":{"type":"invalid_request_error","message":"m"}}`, payments.CodeCredentials},
		{"a request that is under way", 409, `{"error":{"type":"invalid_request_error","code":"idempotency_key_in_use","message":"m"}}`, ""},
		{"a locked object", 429, `{"error":{"type":"invalid_request_error","code":"lock_timeout","message":"m"}}`, ""},
		{"too many requests", 429, `{"error":{"type":"invalid_request_error","code":"rate_limit","message":"m"}}`, ""},
		{"an error of Stripe's", 500, `{"error":{"type":"api_error","message":"m"}}`, ""},
		{"an error of Stripe's with a status of ours", 400, `{"error":{"type":"api_error","message":"m"}}`, ""},
		{"a gateway's page", 502, `<html>`, ""},
		{"another server's 404", 404, `not found`, ""},
		{"another server's JSON", 404, `{"message":"no"}`, ""},
		{"nothing", 200, ``, ""},
		{"an empty object", 200, `{}`, ""},
		{"a redirect", 302, `{}`, ""},
		{"an endless answer", 200, strings.Repeat(" ", 5<<20) + "{}", ""},
	} {
		r := newRig(t)
		r.fake.refuse, r.fake.refusal = test.status, test.body
		_, err := r.adapter.Lookup(t.Context(), charge("p1", methodOK))
		var rejected *payments.RejectedError
		switch {
		case test.code == "" && !errors.Is(err, payments.ErrUnknownOutcome):
			t.Errorf("%s: got %v, want an unknown outcome", test.name, err)
		case test.code != "" && (!errors.As(err, &rejected) || rejected.Code != test.code):
			t.Errorf("%s: got %v, want it rejected with %s", test.name, err, test.code)
		case strings.Contains(err.Error(), apiKey):
			t.Errorf("%s: the error shows the API key: %v", test.name, err)
		}
	}
}

func TestCallEndsAtItsDeadline(t *testing.T) {
	left := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // Or the server would not look whether the client is there.
		<-r.Context().Done()               // Until it leaves.
		close(left)
	}))
	defer server.Close()
	adapter := newAdapter(t, stripe.Options{APIKey: apiKey, URL: server.URL, CallTimeMax: 50 * time.Millisecond})
	if _, err := adapter.Lookup(t.Context(), charge("p1", methodOK)); !errors.Is(err, payments.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
	<-left
}

func TestAmountsAreInStripesUnits(t *testing.T) {
	for _, test := range []struct {
		money  domain.Money
		amount int64 // 0: refused.
	}{
		{domain.Money{Currency: "EUR", Minor: 1299}, 1299},
		{domain.Money{Currency: "JPY", Minor: 1299}, 1299},
		{domain.Money{Currency: "ISK", Minor: 1299}, 129900},
		{domain.Money{Currency: "UGX", Minor: 1}, 100},
		{domain.Money{Currency: "ISK", Minor: 1_000_000}, 0},
		{domain.Money{Currency: "MGA", Minor: 1200}, 12},
		{domain.Money{Currency: "MGA", Minor: 1299}, 0},
		{domain.Money{Currency: "KWD", Minor: 5120}, 5120},
		{domain.Money{Currency: "KWD", Minor: 5123}, 0},
		{domain.Money{Currency: "CLF", Minor: 10000}, 0},
		{domain.Money{Currency: "EUR", Minor: 99_999_999}, 99_999_999},
		{domain.Money{Currency: "EUR", Minor: 100_000_000}, 0},
		{domain.Money{Currency: "UGX", Minor: 1<<63 - 1}, 0},
	} {
		r := newRig(t)
		c := charge("p1", methodOK)
		c.Amount = test.money
		status, err := r.adapter.Authorize(t.Context(), c)
		if test.amount == 0 {
			if !errors.Is(err, payments.ErrRejected) || len(r.fake.paths) != 0 {
				t.Errorf("%v: got %v after %v, want it refused before Stripe is asked", test.money, err, r.fake.paths)
			}
			continue
		}
		if err != nil || status.Captured != test.money || status.Amount != test.money {
			t.Errorf("%v: got %+v, %v", test.money, status, err)
		}
		if got := r.fake.intents["pi_1"].amount; got != test.amount {
			t.Errorf("%v: Stripe was asked for %d, want %d", test.money, got, test.amount)
		}
	}
}

const webhookSecret = "whsec_test_secret_of_an_endpoint"

// signedEvent is an event as Stripe sends it.
func signedEvent(t *testing.T, at time.Time, kind string, object map[string]any) (http.Header, []byte) {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"object": "event", "id": "evt_1", "type": kind, "created": 1_800_000_000, "api_version": stripego.APIVersion,
		"data": map[string]any{"object": object},
	})
	if err != nil {
		t.Fatal(err)
	}
	return sign(at, body), body
}

func sign(at time.Time, body []byte) http.Header {
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: webhookSecret, Timestamp: at})
	return http.Header{"Stripe-Signature": {signed.Header}}
}

func intentObject(status string) map[string]any {
	return map[string]any{
		"object": "payment_intent", "id": "pi_1", "status": status, "amount": 1299, "amount_capturable": 1299, "amount_received": 1000,
		"currency": "eur", "metadata": map[string]string{"weir_payment_id": "o1-p1"},
		"last_payment_error": map[string]any{"code": "card_declined", "decline_code": "do_not_honor", "message": "No."},
	}
}

func TestEventsOfStripeAreNotices(t *testing.T) {
	reader, err := stripe.NewNoticeReader("whsec_an_older_secret_of_it", webhookSecret)
	if err != nil {
		t.Fatal(err)
	}
	refund := map[string]any{
		"object": "refund", "id": "re_1", "status": "succeeded", "amount": 300, "currency": "eur",
		"metadata": map[string]string{"weir_payment_id": "o1-p1", "weir_refund_id": "o1-p1-r1"},
	}
	foreign := intentObject("succeeded")
	foreign["metadata"] = map[string]string{}
	for _, test := range []struct {
		kind   string
		object map[string]any
		want   string
	}{
		{"payment_intent.amount_capturable_updated", intentObject("requires_capture"), "o1-p1 authorized 12.99 EUR"},
		{"payment_intent.succeeded", intentObject("succeeded"), "o1-p1 captured 10.00 EUR"},
		{"payment_intent.payment_failed", intentObject("requires_payment_method"), "o1-p1 declined 0.00 EUR do_not_honor No."},
		{"payment_intent.canceled", intentObject("canceled"), "o1-p1 voided 0.00 EUR"},
		{"payment_intent.processing", intentObject("processing"), "o1-p1 pending 12.99 EUR"},
		{"refund.created", refund, "o1-p1 captured 0  o1-p1-r1 succeeded 3.00 EUR"},
		{"refund.updated", refund, "o1-p1 captured 0  o1-p1-r1 succeeded 3.00 EUR"},
		{"payment_intent.created", intentObject("requires_payment_method"), "nothing"},
		{"customer.created", map[string]any{"object": "customer"}, "nothing"},
		{"payment_intent.succeeded", foreign, "nothing"},
	} {
		now := time.Now()
		header, body := signedEvent(t, now, test.kind, test.object)
		notice, about, err := reader.ReadNotice(header, body, now)
		if err != nil {
			t.Errorf("%s: %v", test.kind, err)
			continue
		}
		got := "nothing"
		if about {
			amount := notice.Amount.String()
			if notice.Refund != nil {
				amount = fmt.Sprintf("%d ", notice.Amount.Minor)
			}
			got = strings.TrimSpace(fmt.Sprintf("%s %s %s %s %s", notice.PaymentID, notice.State, amount, notice.DeclineCode, notice.DeclineMessage))
			if notice.Refund != nil {
				got = fmt.Sprintf("%s  %s %s %s", got, notice.Refund.RefundID, notice.Refund.State, notice.Refund.Amount)
			}
			if notice.Provider != "stripe" || notice.EventID != "evt_1" || notice.At.Unix() != 1_800_000_000 {
				t.Errorf("%s: %+v", test.kind, notice)
			}
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.kind, got, test.want)
		}
	}
}

func TestEventsThatStripeDidNotSignAreRefused(t *testing.T) {
	reader, err := stripe.NewNoticeReader(webhookSecret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	header, body := signedEvent(t, now, "payment_intent.succeeded", intentObject("succeeded"))
	good := header.Get("Stripe-Signature")
	other, _ := stripe.NewNoticeReader("whsec_of_another_endpoint")
	otherVersion := []byte(strings.Replace(string(body), ".dahlia", ".eucalyptus", 1))
	hostile := []byte(strings.Replace(string(body), "o1-p1", "../x", 1))
	for _, test := range []struct {
		name   string
		reader payments.NoticeReader
		header http.Header
		body   []byte
		now    time.Time
		want   error
	}{
		{"no header", reader, http.Header{}, body, now, webhooksig.ErrUnverified},
		{"two headers", reader, http.Header{"Stripe-Signature": {good, good}}, body, now, webhooksig.ErrUnverified},
		{"two times", reader, http.Header{"Stripe-Signature": {good + ",t=1"}}, body, now, webhooksig.ErrUnverified},
		{"no time", reader, http.Header{"Stripe-Signature": {good[strings.Index(good, "v1"):]}}, body, now, webhooksig.ErrUnverified},
		{"garbage", reader, http.Header{"Stripe-Signature": {"x"}}, body, now, webhooksig.ErrUnverified},
		{"a huge header", reader, http.Header{"Stripe-Signature": {good + strings.Repeat(",v1=00", 1000)}}, body, now, webhooksig.ErrUnverified},
		{"another body", reader, header, append(slices.Clone(body), ' '), now, webhooksig.ErrUnverified},
		{"another secret", other, header, body, now, webhooksig.ErrUnverified},
		{"six minutes old", reader, header, body, now.Add(6 * time.Minute), webhooksig.ErrUnverified},
		{"six minutes ahead", reader, header, body, now.Add(-6 * time.Minute), webhooksig.ErrUnverified},
		{"no JSON", reader, sign(now, []byte("{")), []byte("{"), now, payments.ErrMalformedNotice},
		{"no event", reader, sign(now, []byte("{}")), []byte("{}"), now, payments.ErrMalformedNotice},
		{"another API", reader, sign(now, otherVersion), otherVersion, now, payments.ErrMalformedNotice},
		{"a hostile payment id", reader, sign(now, hostile), hostile, now, payments.ErrMalformedNotice},
	} {
		if _, about, err := test.reader.ReadNotice(test.header, test.body, test.now); !errors.Is(err, test.want) || about {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, options := range []stripe.Options{{}, {APIKey: "pk_test_1"}, {APIKey: apiKey, URL: "stripe"}, {APIKey: apiKey, CallTimeMax: -1}} {
		if _, err := stripe.New(options); err == nil {
			t.Errorf("%+v was taken", options)
		}
	}
	if _, err := stripe.NewNoticeReader(); err == nil {
		t.Error("a reader without a secret believes everybody")
	}
	if _, err := stripe.NewNoticeReader("secret"); err == nil {
		t.Error("a secret that is none was taken")
	}
}
