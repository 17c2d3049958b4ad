package payments

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
)

// A Notice is what a provider told us about a payment, without being asked. It is a hint that is signed: it may come late,
// twice, out of order, or not at all. What it says is true at the time at which it was said.
type Notice struct {
	// Provider as in Provider.Name.
	Provider string
	// EventID is the provider's id of what happened, the same each time it is told. Whoever takes notices keeps the ids, or
	// takes them so that the second one changes nothing.
	EventID string
	// At is when it happened, by the provider's clock.
	At        time.Time
	PaymentID string
	State     State
	// Amount is what the provider reserved or took, in StateAuthorized and StateCaptured.
	Amount domain.Money
	// DeclineCode and DeclineMessage say why, in StateDeclined.
	DeclineCode, DeclineMessage string
	// Refund is set when the notice is about a refund of the payment; State is then StateCaptured.
	Refund *RefundStatus
}

// ErrMalformedNotice says that a request is signed by the provider and yet cannot be read.
var ErrMalformedNotice = errors.New("the notice cannot be read")

// A NoticeReader knows the signatures and the events of one provider.
type NoticeReader interface {
	// CheckHeader refuses what cannot be a notice, before its body is read. The error is webhooksig.ErrUnverified.
	CheckHeader(header http.Header, now time.Time) error
	// ReadNotice verifies a request and reads it. The error is webhooksig.ErrUnverified or ErrMalformedNotice. about is false for an
	// event that is about none of our payments: it is acknowledged and forgotten.
	ReadNotice(header http.Header, body []byte, now time.Time) (_ Notice, about bool, err error)
}

// WebhookLimits bound what a caller of a webhook, who may be anybody, may cost (I8). A zero field means its default.
type WebhookLimits struct {
	// BodyBytesMax bounds a request's body; 0 means 256 KiB.
	BodyBytesMax int64
	// BodyTimeMax bounds its arrival; 0 means 10 s.
	BodyTimeMax time.Duration
	// TakeTimeMax bounds what the node does with a notice; 0 means 15 s, less than providers wait.
	TakeTimeMax time.Duration
	// AtOnceMax bounds the requests at once; 0 means 64.
	AtOnceMax int
	// RetryAfter is when to come again to a node that has no room, or that could not; 0 means 5 s.
	RetryAfter time.Duration
}

func (l WebhookLimits) withDefaults() WebhookLimits {
	setDefault(&l.BodyBytesMax, 256<<10)
	setDefault(&l.BodyTimeMax, 10*time.Second)
	setDefault(&l.TakeTimeMax, 15*time.Second)
	setDefault(&l.AtOnceMax, 64)
	setDefault(&l.RetryAfter, 5*time.Second)
	return l
}

// WebhookOptions make a WebhookHandler.
type WebhookOptions struct {
	// Reader of the provider's notices. Required.
	Reader NoticeReader
	// Take is given every notice that is verified, any number of times. What it returns nil for is acknowledged, and the
	// provider may never tell again: it has written down what follows from it. Required.
	Take func(context.Context, Notice) error
	// Logger gets what was refused or failed. Required.
	Logger *slog.Logger
	Limits WebhookLimits
	// Now tells the time; time.Now if nil.
	Now func() time.Time
}

// A WebhookHandler takes the webhooks of one provider. It answers
//
//	200  taken, or nothing that concerns us; a replay is taken again, and changes nothing
//	400  signed, and cannot be read
//	401  not signed, by another secret, or more than 5 minutes ago: nothing of it was looked at
//	405, 408, 413, 415  not a POST, the body too slow, too large, not JSON
//	503  not now: the same again, later, with Retry-After
//
// Answers do not say more than that: who sends a webhook knows what is in it.
type WebhookHandler struct {
	options WebhookOptions
	limits  WebhookLimits
	room    chan struct{}
}

// NewWebhookHandler returns a handler.
func NewWebhookHandler(options WebhookOptions) (*WebhookHandler, error) {
	if options.Reader == nil || options.Take == nil || options.Logger == nil {
		return nil, errors.New("a webhook handler needs Reader, Take and Logger")
	}
	limits := options.Limits
	if limits.BodyBytesMax < 0 || limits.BodyTimeMax < 0 || limits.TakeTimeMax < 0 || limits.AtOnceMax < 0 || limits.RetryAfter < 0 {
		return nil, errors.New("a webhook limit is negative")
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	limits = limits.withDefaults()
	return &WebhookHandler{options: options, limits: limits, room: make(chan struct{}, limits.AtOnceMax)}, nil
}

// ServeHTTP implements http.Handler.
func (h *WebhookHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		h.answer(w, http.StatusMethodNotAllowed, "a webhook is a POST")
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		h.answer(w, http.StatusUnsupportedMediaType, "a webhook is application/json")
		return
	}
	if r.ContentLength > h.limits.BodyBytesMax {
		w.Header().Set("Connection", "close") // Rather than read it all.
		h.answer(w, http.StatusRequestEntityTooLarge, "the body is too large")
		return
	}
	if err := h.options.Reader.CheckHeader(r.Header, h.options.Now()); err != nil {
		h.refuse(w, r, http.StatusUnauthorized, "not verified", err)
		return
	}
	select {
	case h.room <- struct{}{}:
		defer func() { <-h.room }()
	default:
		h.later(w, "no room")
		return
	}
	body, status, err := h.read(w, r)
	if err != nil {
		h.refuse(w, r, status, "the body did not arrive", err)
		return
	}
	notice, about, err := h.options.Reader.ReadNotice(r.Header, body, h.options.Now())
	switch {
	case errors.Is(err, webhooksig.ErrUnverified):
		h.refuse(w, r, http.StatusUnauthorized, "not verified", err)
		return
	case err != nil:
		h.refuse(w, r, http.StatusBadRequest, "cannot be read", err)
		return
	case !about:
		h.answer(w, http.StatusOK, "nothing that concerns us")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.limits.TakeTimeMax)
	defer cancel()
	if err := h.options.Take(ctx, notice); err != nil {
		h.options.Logger.WarnContext(r.Context(), "a provider's notice was not taken, it will come again",
			"provider", notice.Provider, "event", notice.EventID, "payment", notice.PaymentID, "error", err)
		h.later(w, "not now")
		return
	}
	h.answer(w, http.StatusOK, "taken")
}

// read reads the body within its limits. With an error comes the status to answer with.
func (h *WebhookHandler) read(w http.ResponseWriter, r *http.Request) ([]byte, int, error) {
	controller := http.NewResponseController(w)
	deadline := controller.SetReadDeadline(time.Now().Add(h.limits.BodyTimeMax)) == nil
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.limits.BodyBytesMax))
	var (
		tooLarge *http.MaxBytesError
		network  net.Error
	)
	switch {
	case err == nil:
		if deadline && r.ProtoMajor == 1 {
			// Over HTTP/1.1 the server goes on reading: the deadline would end a call that is still being worked on.
			_ = controller.SetReadDeadline(time.Time{})
		}
		return body, 0, nil
	case errors.As(err, &tooLarge):
		return nil, http.StatusRequestEntityTooLarge, err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return nil, http.StatusRequestTimeout, err
	}
	return nil, http.StatusBadRequest, err
}

// refuse answers without a reason that would help to guess, and logs it: not as an error, anybody can cause it.
func (h *WebhookHandler) refuse(w http.ResponseWriter, r *http.Request, status int, text string, err error) {
	h.options.Logger.InfoContext(r.Context(), "a webhook was refused", "status", status, "error", err)
	h.answer(w, status, text)
}

func (h *WebhookHandler) later(w http.ResponseWriter, text string) {
	w.Header().Set("Retry-After", strconv.FormatInt(max(1, int64(h.limits.RetryAfter/time.Second)), 10))
	h.answer(w, http.StatusServiceUnavailable, text)
}

func (h *WebhookHandler) answer(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"result": text}) // Who has left does not read it.
}
