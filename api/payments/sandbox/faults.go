package sandbox

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// A Token is a payment method of the sandbox. It decides what becomes of a payment.
type Token struct{ Name, Meaning string }

// The tokens.
const (
	TokenOK                  = "tok_ok"
	TokenDecline             = "tok_decline"
	TokenInsufficientFunds   = "tok_insufficient_funds"
	TokenSlow                = "tok_slow"
	TokenTimeoutBeforeCharge = "tok_timeout_before_charge"
	TokenTimeoutAfterCharge  = "tok_timeout_after_charge"
	TokenErrorAfterCharge    = "tok_error_after_charge"
	TokenWrongAmount         = "tok_wrong_amount"
	TokenPending             = "tok_pending"
	TokenCaptureTimeout      = "tok_capture_timeout"
	TokenRefundTimeout       = "tok_refund_timeout"
	TokenRefundFail          = "tok_refund_fail"
	TokenDuplicateWebhook    = "tok_duplicate_webhook"
	TokenLateWebhook         = "tok_late_webhook"
	TokenNoWebhook           = "tok_no_webhook"
)

// Tokens lists them all, with what they do.
func Tokens() []Token {
	return []Token{
		{TokenOK, "works"},
		{TokenDecline, "is declined: card_declined"},
		{TokenInsufficientFunds, "is declined: insufficient_funds"},
		{TokenSlow, "works, and answers late"},
		{TokenTimeoutBeforeCharge, "the first call is lost before it does anything; the next one works"},
		{TokenTimeoutAfterCharge, "works, and the call that charged gets no answer"},
		{TokenErrorAfterCharge, "works, and the call that charged is answered with status 500"},
		{TokenWrongAmount, "takes one minor unit more than it was asked for"},
		{TokenPending, "is pending for a while, then works"},
		{TokenCaptureTimeout, "works, and the call that captured gets no answer"},
		{TokenRefundTimeout, "works, and the call that refunded gets no answer"},
		{TokenRefundFail, "works, and its refunds fail"},
		{TokenDuplicateWebhook, "works, and tells everything twice"},
		{TokenLateWebhook, "works, and tells everything late"},
		{TokenNoWebhook, "works, and tells nothing"},
	}
}

func knownToken(method string) bool {
	for _, token := range Tokens() {
		if token.Name == method {
			return true
		}
	}
	return false
}

// Faults are what goes wrong whatever the token. POST /faults replaces all of them: {} ends them. Rates are between 0 and 1.
type Faults struct {
	// ErrorBefore and ErrorAfter are how often a call is answered with status 500, before or after it did what it should.
	ErrorBefore float64 `json:"error_before"`
	ErrorAfter  float64 `json:"error_after"`
	// LostBefore and LostAfter are how often the connection is cut instead of an answer.
	LostBefore float64 `json:"lost_before"`
	LostAfter  float64 `json:"lost_after"`
	// ErrorBurst is how many of the next calls are answered with status 503, having done nothing.
	ErrorBurst int `json:"error_burst"`
	// LatencyMS is how long every answer waits, LatencyJitterMS what is added at most, at random.
	LatencyMS       int `json:"latency_ms"`
	LatencyJitterMS int `json:"latency_jitter_ms"`
	// WebhookLost and WebhookDuplicate are how often an event is not told, or told twice. WebhookDelayMS is how late it is told.
	WebhookLost      float64 `json:"webhook_lost"`
	WebhookDuplicate float64 `json:"webhook_duplicate"`
	WebhookDelayMS   int     `json:"webhook_delay_ms"`
	// Seed of the chances; the same seed and the same calls, one at a time, have the same faults.
	Seed uint64 `json:"seed"`
}

// Limits of faults (I8).
const (
	errorBurstMax   = 1_000_000
	latencyMax      = 30 * time.Second
	webhookDelayMax = 10 * time.Minute
)

// Validate returns an error that says which fault is not one.
func (f Faults) Validate() error {
	for _, rate := range []struct {
		name  string
		value float64
	}{
		{"error_before", f.ErrorBefore},
		{"error_after", f.ErrorAfter},
		{"lost_before", f.LostBefore},
		{"lost_after", f.LostAfter},
		{"webhook_lost", f.WebhookLost},
		{"webhook_duplicate", f.WebhookDuplicate},
	} {
		if !(rate.value >= 0 && rate.value <= 1) { // Not its negation: that would let NaN pass.
			return fmt.Errorf("%s is not between 0 and 1", rate.name)
		}
	}
	for _, number := range []struct {
		name       string
		value, max int
	}{
		{"error_burst", f.ErrorBurst, errorBurstMax},
		{"latency_ms", f.LatencyMS, int(latencyMax.Milliseconds())},
		{"latency_jitter_ms", f.LatencyJitterMS, int(latencyMax.Milliseconds())},
		{"webhook_delay_ms", f.WebhookDelayMS, int(webhookDelayMax.Milliseconds())},
	} {
		if number.value < 0 || number.value > number.max {
			return fmt.Errorf("%s is not between 0 and %d", number.name, number.max)
		}
	}
	return nil
}

// mischief draws faults. The server's mutex guards it.
type mischief struct {
	faults Faults
	random *rand.Rand
}

func newMischief(faults Faults) mischief {
	return mischief{faults: faults, random: rand.New(rand.NewPCG(faults.Seed, 0))}
}

func (m *mischief) chance(rate float64) bool { return rate > 0 && m.random.Float64() < rate }

// A trouble is what happens to one call.
type trouble struct {
	latency time.Duration
	// before: it does nothing, and ends so. after: it is done, and ends so.
	before, after ending
}

// An ending is how a call ends.
type ending uint8

const (
	endsWell ending = iota
	// endsWithError: status 500.
	endsWithError
	// endsBusy: status 503.
	endsBusy
	// endsCut: the connection is cut at once.
	endsCut
	// endsNever: there is no answer; the connection is cut in the end.
	endsNever
	// endsLate: a good answer, late.
	endsLate
)

func (m *mischief) call() trouble {
	var t trouble
	t.latency = time.Duration(m.faults.LatencyMS) * time.Millisecond
	if jitter := m.faults.LatencyJitterMS; jitter > 0 {
		t.latency += time.Duration(m.random.IntN(jitter+1)) * time.Millisecond
	}
	switch {
	case m.faults.ErrorBurst > 0:
		m.faults.ErrorBurst--
		t.before = endsBusy
	case m.chance(m.faults.ErrorBefore):
		t.before = endsWithError
	case m.chance(m.faults.LostBefore):
		t.before = endsCut
	case m.chance(m.faults.ErrorAfter):
		t.after = endsWithError
	case m.chance(m.faults.LostAfter):
		t.after = endsCut
	}
	return t
}

// tellings says when an event is told, after so long each; none when it is lost.
func (m *mischief) tellings(method string, late time.Duration) []time.Duration {
	delay := time.Duration(m.faults.WebhookDelayMS) * time.Millisecond
	if method == TokenLateWebhook {
		delay += late
	}
	switch {
	case method == TokenNoWebhook, m.chance(m.faults.WebhookLost):
		return nil
	case method == TokenDuplicateWebhook, m.chance(m.faults.WebhookDuplicate):
		return []time.Duration{delay, delay}
	}
	return []time.Duration{delay}
}
