//go:build unix

package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
)

// Limits of a sandbox (I8).
const (
	// bodyBytesMax bounds a request's body.
	bodyBytesMax = 16 << 10
	// headerBytesMax bounds a request's headers.
	headerBytesMax = 16 << 10
	// headerTimeMax, requestTimeMax and idleTimeMax bound slow and silent clients.
	headerTimeMax  = 5 * time.Second
	requestTimeMax = 10 * time.Second
	idleTimeMax    = 2 * time.Minute
	// silenceMax bounds a call that is never answered.
	silenceMax = 60 * time.Second
	// callsAtOnceMax bounds the calls that are under way.
	callsAtOnceMax = 4096
	// paymentsMax bounds the payments, which are held in memory: about 1 KiB each.
	paymentsMax = 1_000_000
	// amountMinorMax is far above any payment, and far below what a sum of them could overflow at.
	amountMinorMax = 1_000_000_000_000
	// ledgerPageMax bounds the entries of one answer of GET /ledger, and is how many it has unless told otherwise.
	ledgerPageMax = 10_000
)

// Options make a Server.
type Options struct {
	// Journal is the file that keeps the payments; empty keeps them in memory only.
	Journal string
	// WebhookURL is told what happens; empty tells nobody.
	WebhookURL string
	// WebhookSecrets sign what it is told. Required with WebhookURL.
	WebhookSecrets []webhooksig.Secret
	// SlowTime is how late a slow answer comes; 0 means 3 s.
	SlowTime time.Duration
	// PendingTime is how long a pending payment stays so; 0 means 5 s.
	PendingTime time.Duration
	// LateTime is how late a late webhook comes; 0 means 30 s.
	LateTime time.Duration
	// RetryTimeMin is the pause before a webhook is tried again (0 means 1 s); it doubles, up to RetryTimeMax (0 means 1 min).
	RetryTimeMin, RetryTimeMax time.Duration
	// Faults from the start.
	Faults Faults
	// Logger gets what goes wrong with webhooks. Required.
	Logger *slog.Logger
	// Now tells the time; time.Now if nil.
	Now func() time.Time
}

// A Server is a payment provider over HTTP. It takes no real money, works like one that does, and breaks on demand.
//
//	POST /v1/payments/{id}                       authorize, or charge at once
//	GET  /v1/payments/{id}                       look up
//	POST /v1/payments/{id}/capture
//	POST /v1/payments/{id}/void                  also before the payment came: then it never takes money
//	POST /v1/payments/{id}/refunds/{refund id}
//	GET  /ledger?after=N&limit=N                 every movement of money, in order
//	GET  /faults, POST /faults                   what goes wrong
//	GET  /                                       this list, and the tokens
//
// The ids in the paths are the callers', and the idempotency keys: the same call again has no second effect and the same
// meaning, for as long as the journal is kept. An id with another body is refused with 409 and "key_reused".
//
// An answer is durable before it is sent: killing the server loses nothing that it told anybody. There are no credentials:
// whoever reaches it may use it.
type Server struct {
	options Options
	id      string
	journal *journal
	mux     *http.ServeMux
	room    chan struct{}
	// poke wakes Run when there is something new to do.
	poke chan struct{}

	mu       sync.Mutex // Guards what follows.
	payments map[string]*payment
	entries  []Entry
	totals   map[string]*LedgerTotal
	mischief mischief
	jobs     jobs
	// lostOnce are the payments whose first call was lost before it did anything.
	lostOnce map[string]bool
}

// payment is one payment. Its charge is nil when it was voided before it arrived.
type payment struct {
	charge      *EntryCharge
	reference   string
	state       payments.State
	amount      int64 // Reserved or taken, in minor units.
	captured    int64
	refunded    int64
	refunds     []refund
	declineCode string
}

type refund struct {
	id, reference string
	amount        int64
	state         payments.RefundState
	failureCode   string
}

// Open opens the journal and returns a server of what is in it. It starts nothing: Run tells the webhooks.
func Open(options Options) (*Server, error) {
	switch {
	case options.Logger == nil:
		return nil, errors.New("a sandbox needs a logger")
	case options.WebhookURL != "" && len(options.WebhookSecrets) == 0:
		return nil, errors.New("webhooks need a secret to be signed with")
	}
	if err := options.Faults.Validate(); err != nil {
		return nil, err
	}
	for _, option := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&options.SlowTime, 3 * time.Second},
		{&options.PendingTime, 5 * time.Second},
		{&options.LateTime, 30 * time.Second},
		{&options.RetryTimeMin, time.Second},
		{&options.RetryTimeMax, time.Minute},
	} {
		if *option.field < 0 {
			return nil, errors.New("a time of the sandbox is negative")
		}
		if *option.field == 0 {
			*option.field = option.value
		}
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	s := &Server{
		options: options, room: make(chan struct{}, callsAtOnceMax), poke: make(chan struct{}, 1),
		payments: map[string]*payment{}, totals: map[string]*LedgerTotal{}, mischief: newMischief(options.Faults),
		lostOnce: map[string]bool{},
	}
	told := map[uint64]bool{}
	var err error
	s.journal, s.id, err = openJournal(options.Journal, newID(), func(line journalLine) error {
		if line.Entry == nil {
			told[line.Told] = true
			return nil
		}
		if want := uint64(len(s.entries)) + 1; line.Entry.Number != want {
			return fmt.Errorf("entry %d is where entry %d should be", line.Entry.Number, want)
		}
		return s.apply(*line.Entry)
	})
	if err != nil {
		return nil, err
	}
	s.resume(told)
	s.routes()
	return s, nil
}

// Close makes the journal durable and closes it. REQUIRES: Run has returned and no request is being served.
func (s *Server) Close() error { return s.journal.close() }

func newID() string {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // It does not fail.
	return hex.EncodeToString(id)
}

// HTTPServer returns a server with the limits of a sandbox. The caller gives it a listener.
func (s *Server) HTTPServer() *http.Server {
	return &http.Server{
		Handler: s, ReadHeaderTimeout: headerTimeMax, ReadTimeout: requestTimeMax, IdleTimeout: idleTimeMax,
		WriteTimeout: silenceMax + latencyMax, MaxHeaderBytes: headerBytesMax,
		ErrorLog: slog.NewLogLogger(s.options.Logger.Handler(), slog.LevelDebug),
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case s.room <- struct{}{}:
		defer func() { <-s.room }()
	default:
		writeError(w, http.StatusServiceUnavailable, "busy", "too many calls at once")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, bodyBytesMax)
	s.mux.ServeHTTP(w, r)
}

func (s *Server) routes() {
	s.mux = http.NewServeMux()
	s.mux.HandleFunc("POST /v1/payments/{id}", s.pay(s.authorize))
	s.mux.HandleFunc("GET /v1/payments/{id}", s.pay(s.lookup))
	s.mux.HandleFunc("POST /v1/payments/{id}/capture", s.pay(s.capture))
	s.mux.HandleFunc("POST /v1/payments/{id}/void", s.pay(s.void))
	s.mux.HandleFunc("POST /v1/payments/{id}/refunds/{refund}", s.pay(s.refund))
	s.mux.HandleFunc("GET /ledger", s.serveLedger)
	s.mux.HandleFunc("GET /faults", s.serveFaults)
	s.mux.HandleFunc("POST /faults", s.setFaults)
	s.mux.HandleFunc("GET /{$}", serveIndex)
}

// An outcome is how a call was decided: what to answer, and how to answer it.
type outcome struct {
	status int
	body   any
	ending ending
}

func refusal(status int, code, format string, args ...any) outcome {
	var body wireError
	body.Error.Code, body.Error.Message = code, fmt.Sprintf(format, args...)
	return outcome{status: status, body: body}
}

// A callback decides one call. It runs under the mutex.
type callback func(r *http.Request, body []byte) (outcome, error)

// pay makes the handler of a call: trouble before, the call, durability, trouble after, the answer.
func (s *Server) pay(decide callback) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			writeError(w, http.StatusBadRequest, payments.CodeInvalid, "the body did not arrive, or is too large")
			return
		}
		// The rest may take longer than a body may: over HTTP/1.1 the deadline of the body would end it.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
		s.mu.Lock()
		trouble := s.mischief.call()
		s.mu.Unlock()
		if !pause(r, trouble.latency) || !s.end(w, r, trouble.before) {
			return
		}
		s.mu.Lock()
		decided, err := decide(r, body)
		s.mu.Unlock()
		if err == nil {
			err = s.journal.sync()
		}
		if err != nil {
			s.options.Logger.ErrorContext(r.Context(), "the sandbox cannot keep what happened", "error", err)
			writeError(w, http.StatusInternalServerError, "journal", "the journal failed")
			return
		}
		if s.end(w, r, decided.ending) && s.end(w, r, trouble.after) {
			writeJSON(w, decided.status, decided.body)
		}
	}
}

// end ends a call badly, or returns true.
func (s *Server) end(w http.ResponseWriter, r *http.Request, how ending) bool {
	switch how {
	case endsWell:
		return true
	case endsLate:
		return pause(r, s.options.SlowTime)
	case endsWithError:
		writeError(w, http.StatusInternalServerError, "fault", "a fault on demand")
		return false
	case endsBusy:
		writeError(w, http.StatusServiceUnavailable, "fault", "a fault on demand")
		return false
	case endsNever:
		pause(r, silenceMax)
		panic(http.ErrAbortHandler)
	case endsCut:
		panic(http.ErrAbortHandler) // Cuts the connection.
	}
	panic(fmt.Sprintf("sandbox: a call ends with %d", how))
}

// pause waits; false says that the caller left meanwhile.
func pause(r *http.Request, wait time.Duration) bool {
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// read reads a call's body and checks its ids.
func read(r *http.Request, body []byte, into any) (refused outcome, ok bool) {
	for _, name := range [...]string{"id", "refund"} {
		if id := r.PathValue(name); id != "" && !payments.ValidID(id) {
			return refusal(http.StatusBadRequest, payments.CodeInvalid, "an id has 1 to %d characters of A-Z a-z 0-9 _ -", payments.IDBytesMax), false
		}
	}
	if into == nil {
		return outcome{}, true
	}
	if err := strictJSON(body, into); err != nil {
		return refusal(http.StatusBadRequest, payments.CodeInvalid, "the body: %v", err), false
	}
	return outcome{}, true
}

func checkAmount(amount wireMoney) (refused outcome, ok bool) {
	valid := len(amount.Currency) == 3 && strings.Trim(amount.Currency, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == ""
	if !valid || amount.Minor <= 0 || amount.Minor > amountMinorMax {
		return refusal(http.StatusBadRequest, payments.CodeInvalid, "an amount is between 1 and %d minor units of a currency", int64(amountMinorMax)), false
	}
	return outcome{}, true
}

func (s *Server) authorize(r *http.Request, body []byte) (outcome, error) {
	var ask wireCharge
	if refused, ok := read(r, body, &ask); !ok {
		return refused, nil
	}
	if refused, ok := checkAmount(ask.Amount); !ok {
		return refused, nil
	}
	if !payments.ValidID(ask.OrderID) {
		return refusal(http.StatusBadRequest, payments.CodeInvalid, "order_id is none"), nil
	}
	if !knownToken(ask.Method) {
		return refusal(http.StatusBadRequest, payments.CodeInvalid, "there is no payment method %.40q; GET / lists them", ask.Method), nil
	}
	id := r.PathValue("id")
	charge := EntryCharge{OrderID: ask.OrderID, Asked: ask.Amount.money(), Method: ask.Method, CaptureNow: ask.CaptureNow}
	if p := s.payments[id]; p != nil {
		if p.charge != nil && *p.charge != charge {
			return refusal(http.StatusConflict, payments.CodeKeyReused, "payment %s was asked for with another body", id), nil
		}
		return s.answer(id), nil
	}
	if len(s.payments) >= paymentsMax {
		return refusal(http.StatusServiceUnavailable, "full", "a sandbox holds %d payments: start one anew", paymentsMax), nil
	}
	if ask.Method == TokenTimeoutBeforeCharge && !s.lostOnce[id] {
		if len(s.lostOnce) < paymentsMax {
			s.lostOnce[id] = true
		}
		return outcome{ending: endsNever}, nil
	}
	entry := Entry{Kind: payments.StateAuthorized.String(), PaymentID: id, Amount: charge.Asked, Charge: &charge}
	if charge.CaptureNow {
		entry.Kind = payments.StateCaptured.String()
	}
	how := endsWell
	switch ask.Method {
	case TokenDecline:
		entry.Kind, entry.Code = payments.StateDeclined.String(), "card_declined"
	case TokenInsufficientFunds:
		entry.Kind, entry.Code = payments.StateDeclined.String(), "insufficient_funds"
	case TokenPending:
		entry.Kind = payments.StatePending.String()
	case TokenWrongAmount:
		entry.Amount.Minor++
	case TokenSlow:
		how = endsLate
	case TokenTimeoutAfterCharge:
		how = endsNever
	case TokenErrorAfterCharge:
		how = endsWithError
	}
	if entry.Kind == payments.StateDeclined.String() {
		entry.Amount = domain.Money{}
	}
	if err := s.record(entry); err != nil {
		return outcome{}, err
	}
	decided := s.answer(id)
	decided.ending = how
	return decided, nil
}

func (s *Server) lookup(r *http.Request, _ []byte) (outcome, error) {
	if refused, ok := read(r, nil, nil); !ok {
		return refused, nil
	}
	id := r.PathValue("id")
	if s.payments[id] == nil {
		return noSuchPayment(id), nil
	}
	return s.answer(id), nil
}

func noSuchPayment(id string) outcome {
	return refusal(http.StatusNotFound, codeNoSuchPayment, "there is no payment %s", id)
}

func (s *Server) capture(r *http.Request, body []byte) (outcome, error) {
	var ask wireCapture
	if refused, ok := read(r, body, &ask); !ok {
		return refused, nil
	}
	if refused, ok := checkAmount(ask.Amount); !ok {
		return refused, nil
	}
	id := r.PathValue("id")
	p := s.payments[id]
	switch {
	case p == nil:
		return noSuchPayment(id), nil
	case p.charge != nil && ask.Amount.Currency != p.charge.Asked.Currency:
		return refusal(http.StatusBadRequest, payments.CodeInvalid, "payment %s is in %s", id, p.charge.Asked.Currency), nil
	case p.state == payments.StateCaptured && p.captured == ask.Amount.Minor:
		return s.answer(id), nil
	case p.state == payments.StateCaptured:
		return refusal(http.StatusConflict, payments.CodeKeyReused, "payment %s was captured with another amount", id), nil
	case p.state != payments.StateAuthorized:
		return refusal(http.StatusUnprocessableEntity, payments.CodeWrongState, "payment %s is %s", id, p.state), nil
	case ask.Amount.Minor > p.amount:
		return refusal(http.StatusUnprocessableEntity, payments.CodeAmountTooLarge, "payment %s is authorized for %d", id, p.amount), nil
	}
	if err := s.record(Entry{Kind: payments.StateCaptured.String(), PaymentID: id, Amount: ask.Amount.money()}); err != nil {
		return outcome{}, err
	}
	decided := s.answer(id)
	if p.charge.Method == TokenCaptureTimeout {
		decided.ending = endsNever
	}
	return decided, nil
}

func (s *Server) void(r *http.Request, body []byte) (outcome, error) {
	if refused, ok := read(r, body, &struct{}{}); !ok {
		return refused, nil
	}
	id := r.PathValue("id")
	p := s.payments[id]
	switch {
	case p == nil && len(s.payments) >= paymentsMax:
		return refusal(http.StatusServiceUnavailable, "full", "a sandbox holds %d payments: start one anew", paymentsMax), nil
	case p == nil, p.state == payments.StateAuthorized:
		if err := s.record(Entry{Kind: payments.StateVoided.String(), PaymentID: id}); err != nil {
			return outcome{}, err
		}
	}
	return s.answer(id), nil // As it is, also when it is too late.
}

func (s *Server) refund(r *http.Request, body []byte) (outcome, error) {
	var ask wireRefundAsk
	if refused, ok := read(r, body, &ask); !ok {
		return refused, nil
	}
	if refused, ok := checkAmount(ask.Amount); !ok {
		return refused, nil
	}
	id, refundID := r.PathValue("id"), r.PathValue("refund")
	p := s.payments[id]
	if p == nil {
		return noSuchPayment(id), nil
	}
	for i := range p.refunds {
		if p.refunds[i].id != refundID {
			continue
		}
		if p.refunds[i].amount != ask.Amount.Minor || p.charge.Asked.Currency != ask.Amount.Currency {
			return refusal(http.StatusConflict, payments.CodeKeyReused, "refund %s was asked for with another amount", refundID), nil
		}
		return outcome{status: http.StatusOK, body: p.wireRefund(i)}, nil
	}
	switch {
	case p.state != payments.StateCaptured:
		return refusal(http.StatusUnprocessableEntity, payments.CodeWrongState, "payment %s is %s", id, p.state), nil
	case ask.Amount.Currency != p.charge.Asked.Currency:
		return refusal(http.StatusBadRequest, payments.CodeInvalid, "payment %s is in %s", id, p.charge.Asked.Currency), nil
	case ask.Amount.Minor > p.captured-p.refunded:
		return refusal(http.StatusUnprocessableEntity, payments.CodeAmountTooLarge, "payment %s has %d left of what was captured", id, p.captured-p.refunded), nil
	case len(p.refunds) >= payments.RefundsPerPaymentMax:
		return refusal(http.StatusUnprocessableEntity, "too_many_refunds", "a payment has at most %d refunds", payments.RefundsPerPaymentMax), nil
	}
	entry := Entry{Kind: kindRefunded, PaymentID: id, RefundID: refundID, Amount: ask.Amount.money()}
	if p.charge.Method == TokenRefundFail {
		entry.Kind, entry.Code = kindRefundFailed, "refund_declined"
	}
	if err := s.record(entry); err != nil {
		return outcome{}, err
	}
	decided := outcome{status: http.StatusOK, body: p.wireRefund(len(p.refunds) - 1)}
	if p.charge.Method == TokenRefundTimeout {
		decided.ending = endsNever
	}
	return decided, nil
}

// The kinds of entries that are no states of a payment.
const (
	kindRefunded     = "refunded"
	kindRefundFailed = "refund_failed"
)

// record makes an entry happen: it is numbered, written down, applied and told. REQUIRES: mu is held.
func (s *Server) record(entry Entry) error {
	entry.Number, entry.At = uint64(len(s.entries))+1, s.options.Now().UTC()
	if err := s.journal.append(journalLine{Entry: &entry}); err != nil {
		return err
	}
	if err := s.apply(entry); err != nil {
		panic("sandbox: it decided what cannot be: " + err.Error())
	}
	s.plan(entry)
	return nil
}

// apply takes in an entry, when it happens or when the journal is read. It checks what must hold (I4).
func (s *Server) apply(entry Entry) error {
	p := s.payments[entry.PaymentID]
	if p == nil {
		p = &payment{charge: entry.Charge, reference: fmt.Sprintf("sbx_%d", entry.Number)}
		s.payments[entry.PaymentID] = p
	}
	state, isState := payments.ParseState(entry.Kind)
	switch {
	case isState && p.state.Final():
		return fmt.Errorf("payment %s is %s and cannot be %s", entry.PaymentID, p.state, state)
	case isState:
		p.state = state
		switch state {
		case payments.StateAuthorized, payments.StatePending:
			p.amount = entry.Amount.Minor
		case payments.StateCaptured:
			p.captured = entry.Amount.Minor
			if entry.Charge != nil || p.amount == 0 {
				p.amount = entry.Amount.Minor
			}
			total := s.total(entry.Amount.Currency)
			total.Captured, total.Captures = total.Captured+entry.Amount.Minor, total.Captures+1
		case payments.StateDeclined:
			p.amount, p.declineCode = 0, entry.Code
		case payments.StateVoided:
		case payments.StateNone:
			return errors.New("nothing happened in an entry")
		}
	case entry.Kind == kindRefunded, entry.Kind == kindRefundFailed:
		r := refund{id: entry.RefundID, reference: fmt.Sprintf("sbxr_%d", entry.Number), amount: entry.Amount.Minor, state: payments.RefundSucceeded}
		if entry.Kind == kindRefundFailed {
			r.state, r.failureCode = payments.RefundFailed, entry.Code
		} else {
			p.refunded += r.amount
			total := s.total(entry.Amount.Currency)
			total.Refunded, total.Refunds = total.Refunded+r.amount, total.Refunds+1
		}
		if p.refunded > p.captured {
			return fmt.Errorf("payment %s has refunds of %d and a capture of %d", entry.PaymentID, p.refunded, p.captured)
		}
		p.refunds = append(p.refunds, r)
	default:
		return fmt.Errorf("an entry of the unknown kind %q", entry.Kind)
	}
	s.entries = append(s.entries, entry)
	return nil
}

func (s *Server) total(currency string) *LedgerTotal {
	if s.totals[currency] == nil {
		s.totals[currency] = &LedgerTotal{Currency: currency}
	}
	return s.totals[currency]
}

// answer answers with a payment as it is.
func (s *Server) answer(id string) outcome {
	p := s.payments[id]
	body := wirePayment{PaymentID: id, Reference: p.reference, State: p.state.String(), DeclineCode: p.declineCode}
	if p.declineCode != "" {
		body.DeclineMessage = declineMessage(p.declineCode)
	}
	if p.charge != nil {
		currency := p.charge.Asked.Currency
		body.Amount, body.Captured, body.Refunded = wireMoney{currency, p.amount}, wireMoney{currency, p.captured}, wireMoney{currency, p.refunded}
	}
	for i := range p.refunds {
		body.Refunds = append(body.Refunds, p.wireRefund(i))
	}
	return outcome{status: http.StatusOK, body: body}
}

func (p *payment) wireRefund(place int) wireRefund {
	r := p.refunds[place]
	return wireRefund{
		RefundID: r.id, Reference: r.reference, State: r.state.String(), FailureCode: r.failureCode,
		Amount: wireMoney{p.charge.Asked.Currency, r.amount},
	}
}

func declineMessage(code string) string {
	if code == "insufficient_funds" {
		return "There is not enough money on the account."
	}
	return "The bank said no."
}

func (s *Server) serveLedger(w http.ResponseWriter, r *http.Request) {
	after, err := queryNumber(r, "after", 0)
	limit, limitErr := queryNumber(r, "limit", ledgerPageMax)
	if err = errors.Join(err, limitErr); err != nil || limit < 1 || limit > ledgerPageMax {
		writeError(w, http.StatusBadRequest, payments.CodeInvalid, fmt.Sprintf("after is a number of an entry, limit is between 1 and %d", ledgerPageMax))
		return
	}
	s.mu.Lock()
	ledger := Ledger{Entries: []Entry{}, Totals: []LedgerTotal{}, Payments: len(s.payments), WebhooksWaiting: s.jobs.webhooks}
	if after < uint64(len(s.entries)) {
		page := s.entries[after:]
		if uint64(len(page)) > limit {
			page, ledger.Next = page[:limit], after+limit
		}
		ledger.Entries = append(ledger.Entries, page...)
	}
	for _, total := range s.totals {
		ledger.Totals = append(ledger.Totals, *total)
	}
	s.mu.Unlock()
	if err := s.journal.sync(); err != nil {
		writeError(w, http.StatusInternalServerError, "journal", "the journal failed")
		return
	}
	writeJSON(w, http.StatusOK, ledger)
}

func queryNumber(r *http.Request, name string, fallback uint64) (uint64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return fallback, nil
	}
	return strconv.ParseUint(text, 10, 63)
}

func (s *Server) serveFaults(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	faults := s.mischief.faults
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, faults)
}

func (s *Server) setFaults(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var faults Faults
	if err == nil {
		err = strictJSON(body, &faults)
	}
	if err == nil {
		err = faults.Validate()
	}
	if err != nil {
		writeError(w, http.StatusBadRequest, payments.CodeInvalid, err.Error())
		return
	}
	s.mu.Lock()
	s.mischief = newMischief(faults)
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, faults)
}

func serveIndex(w http.ResponseWriter, _ *http.Request) {
	var b strings.Builder
	b.WriteString("Weir's sandbox payment provider. It takes no real money.\n\nPayment methods:\n\n")
	for _, token := range Tokens() {
		fmt.Fprintf(&b, "  %-26s %s\n", token.Name, token.Meaning)
	}
	b.WriteString("\nGET /ledger shows every movement of money. GET /faults shows what goes wrong, POST /faults replaces it.\n")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = io.WriteString(w, b.String())
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // Every body is of our own types.
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(data, '\n')) // Who has left does not read it.
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	body := refusal(status, code, "%s", message)
	writeJSON(w, status, body.body)
}

// contextDone reports whether an error only says that ctx ended.
func contextDone(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ctx.Err()))
}
