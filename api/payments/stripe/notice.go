package stripe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	stripe "github.com/stripe/stripe-go/v85"
	"github.com/stripe/stripe-go/v85/webhook"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/webhooksig"
)

// signatureHeader carries Stripe's own scheme: "t=<seconds>,v1=<hex of HMAC-SHA256(secret, t "." body)>".
const signatureHeader = "Stripe-Signature"

// signatureBytesMax bounds that header: some signatures, while a secret is replaced.
const signatureBytesMax = 1024

// A NoticeReader reads Stripe's webhooks. It implements payments.NoticeReader. The endpoint at Stripe is to send
//
//	payment_intent.amount_capturable_updated  payment_intent.succeeded   payment_intent.payment_failed
//	payment_intent.canceled                   payment_intent.processing  refund.created  refund.updated  refund.failed
//
// with an API version of the release train of stripe.APIVersion; others are acknowledged and forgotten.
type NoticeReader struct{ secrets []string }

var _ payments.NoticeReader = NoticeReader{}

// NewNoticeReader returns a reader that believes these secrets of the endpoint ("whsec_…", as Stripe shows them).
func NewNoticeReader(secrets ...string) (NoticeReader, error) {
	if len(secrets) == 0 {
		return NoticeReader{}, errors.New("webhooks need a secret to be verified with")
	}
	for _, secret := range secrets {
		if !strings.HasPrefix(secret, "whsec_") || len(secret) < 16 {
			return NoticeReader{}, errors.New(`the secret of a webhook endpoint starts with "whsec_"`)
		}
	}
	return NoticeReader{secrets: secrets}, nil
}

// CheckHeader implements payments.NoticeReader.
func (n NoticeReader) CheckHeader(header http.Header, now time.Time) error {
	problem := func(text string) error { return &webhooksig.UnverifiedError{Problem: text} }
	values := header[signatureHeader]
	if len(values) != 1 || values[0] == "" || len(values[0]) > signatureBytesMax {
		return problem("the header Stripe-Signature is missing, there twice or too long")
	}
	times := 0
	for pair := range strings.SplitSeq(values[0], ",") {
		text, ok := strings.CutPrefix(pair, "t=")
		if !ok {
			continue
		}
		seconds, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return problem("its time is none")
		}
		// The library looks at the past alone, and at its own clock.
		if skew := now.Sub(time.Unix(seconds, 0)); skew > webhooksig.SkewMax || skew < -webhooksig.SkewMax {
			return problem("its time is too far from now")
		}
		times++
	}
	if times != 1 {
		return problem("it does not say when it was signed, or says it twice")
	}
	return nil
}

// ReadNotice implements payments.NoticeReader.
func (n NoticeReader) ReadNotice(header http.Header, body []byte, now time.Time) (payments.Notice, bool, error) {
	if err := n.CheckHeader(header, now); err != nil {
		return payments.Notice{}, false, err
	}
	var verified bool
	for _, secret := range n.secrets {
		verified = verified || webhook.ValidatePayloadIgnoringTolerance(body, header.Get(signatureHeader), secret) == nil
	}
	if !verified {
		return payments.Notice{}, false, &webhooksig.UnverifiedError{Problem: "no signature is of a secret that is known here"}
	}
	var event stripe.Event
	if err := json.Unmarshal(body, &event); err != nil {
		return payments.Notice{}, false, malformed("%w", err)
	}
	if event.Object != "event" || event.ID == "" || event.Data == nil {
		return payments.Notice{}, false, malformed("it is no event")
	}
	_, ours, _ := strings.Cut(stripe.APIVersion, ".")
	if _, theirs, _ := strings.Cut(event.APIVersion, "."); theirs != ours {
		return payments.Notice{}, false, malformed("it has API version %.40q, and %q is understood: change that of the endpoint", event.APIVersion, stripe.APIVersion)
	}
	notice := payments.Notice{Provider: Name, EventID: event.ID, At: time.Unix(event.Created, 0).UTC()}
	switch event.Type {
	case stripe.EventTypePaymentIntentAmountCapturableUpdated, stripe.EventTypePaymentIntentSucceeded,
		stripe.EventTypePaymentIntentPaymentFailed, stripe.EventTypePaymentIntentCanceled, stripe.EventTypePaymentIntentProcessing:
		return readIntent(notice, event.Data.Raw)
	case stripe.EventTypeRefundCreated, stripe.EventTypeRefundUpdated, stripe.EventTypeRefundFailed:
		return readRefund(notice, event.Data.Raw)
	}
	return payments.Notice{}, false, nil
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %w", payments.ErrMalformedNotice, fmt.Errorf(format, args...))
}

func readIntent(notice payments.Notice, raw []byte) (payments.Notice, bool, error) {
	var intent stripe.PaymentIntent
	if err := json.Unmarshal(raw, &intent); err != nil {
		return payments.Notice{}, false, malformed("%w", err)
	}
	id, ours := intent.Metadata[metadataPayment]
	if !ours {
		return payments.Notice{}, false, nil // Of another system that uses the same account.
	}
	status, err := statusOf(&intent)
	if err == nil && !payments.ValidID(id) {
		err = errors.New("its payment id is none")
	}
	if err != nil {
		return payments.Notice{}, false, malformed("%w", err)
	}
	if status.State == payments.StateNone {
		return payments.Notice{}, false, nil
	}
	notice.PaymentID, notice.State, notice.Amount = id, status.State, status.Amount
	notice.DeclineCode, notice.DeclineMessage = status.DeclineCode, status.DeclineMessage
	if status.State == payments.StateCaptured {
		notice.Amount = status.Captured
	}
	return notice, true, nil
}

func readRefund(notice payments.Notice, raw []byte) (payments.Notice, bool, error) {
	var r stripe.Refund
	if err := json.Unmarshal(raw, &r); err != nil {
		return payments.Notice{}, false, malformed("%w", err)
	}
	if _, ours := r.Metadata[metadataRefund]; !ours {
		return payments.Notice{}, false, nil
	}
	refund, err := refundOf(&r)
	if err == nil && (!payments.ValidID(refund.RefundID) || !payments.ValidID(r.Metadata[metadataPayment])) {
		err = errors.New("its ids are none")
	}
	if err != nil {
		return payments.Notice{}, false, malformed("%w", err)
	}
	notice.PaymentID, notice.State, notice.Refund = r.Metadata[metadataPayment], payments.StateCaptured, &refund
	return notice, true, nil
}
