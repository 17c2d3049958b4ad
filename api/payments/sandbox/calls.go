package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
)

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

// contextDone reports whether an error only says that ctx ended.
func contextDone(ctx context.Context, err error) bool {
	return ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ctx.Err()))
}
