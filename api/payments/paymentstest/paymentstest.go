// Package paymentstest has the contract that every payment provider's adapter keeps.
package paymentstest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
)

// A Subject is an adapter with a provider behind it, and what the provider's payment methods are called.
type Subject struct {
	Provider payments.Provider
	// MethodOK works, MethodDecline is declined.
	MethodOK, MethodDecline string
	// MethodRefundFails works, and its refunds fail.
	MethodRefundFails string
	// LoseAnswer has the provider do what the next call asks for, and lose the answer to it.
	LoseAnswer func(testing.TB)
	// Captures counts the captures of a payment that the provider has in its books.
	Captures func(t testing.TB, paymentID string) int
}

// callTimeMax bounds one call of the contract.
const callTimeMax = 30 * time.Second

// A LossyHandler is a provider whose answers can be lost.
type LossyHandler struct {
	http.Handler
	// after counts the answers that are delivered before one is lost; below 0 none is.
	after atomic.Int64
}

// NewLossyHandler returns the handler, with no answer to lose.
func NewLossyHandler(handler http.Handler) *LossyHandler {
	lossy := &LossyHandler{Handler: handler}
	lossy.after.Store(-1)
	return lossy
}

// Lose has one answer be lost, after so many that are not.
func (l *LossyHandler) Lose(after int) { l.after.Store(int64(after)) }

// Lost reports whether the answer that was to be lost is lost.
func (l *LossyHandler) Lost() bool { return l.after.Load() < 0 }

// ServeHTTP does what is asked, and answers or not. A lost answer begins: a client's transport repeats a request whose
// answer does not, and nothing would be lost.
func (l *LossyHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if l.after.Load() < 0 || l.after.Add(-1) != -1 {
		l.Handler.ServeHTTP(w, r)
		return
	}
	l.Handler.ServeHTTP(httptest.NewRecorder(), r)
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte("{"))
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// rig is a subject with what the tests share.
type rig struct {
	Subject
	ids int
}

// Run holds a subject to the contract. fresh makes one for each test.
func Run(t *testing.T, fresh func(*testing.T) Subject) {
	t.Helper()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *rig)
	}{
		{"AuthorizedMoneyIsCapturedOnce", authorizeThenCapture},
		{"ChargeCanCaptureAtOnce", captureNow},
		{"DeclineIsAnAnswerAndStays", decline},
		{"SameChargeAgainChangesNothing", chargeAgain},
		{"SameChargesAtOnceTakeMoneyOnce", chargesAtOnce},
		{"AnotherChargeWithTheSameIDIsRejected", anotherCharge},
		{"PartOfTheMoneyCanBeCaptured", capturePart},
		{"CaptureThatCannotBeIsRejected", badCaptures},
		{"AuthorizedMoneyIsReleased", voidAuthorized},
		{"VoidBeforeTheChargeKeepsItFromTakingMoney", voidFirst},
		{"VoidThatComesTooLateSaysSo", voidTooLate},
		{"RefundsAddUpToWhatWasCaptured", refunds},
		{"SameRefundAgainChangesNothing", refundAgain},
		{"RefundThatFailsIsAnAnswer", refundFails},
		{"RefundThatCannotBeIsRejected", badRefunds},
		{"UnknownPaymentIsNone", lookupNone},
		{"LookupMovesNoMoney", lookupMovesNothing},
		{"LostAnswerIsAnUnknownOutcomeThatLookupResolves", lostAnswers},
		{"DeadlineThatPassedIsAnUnknownOutcome", deadline},
		{"BadInputIsRejectedAndNothingHappens", badInput},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, &rig{Subject: fresh(t)}) })
	}
}

func eur(minor int64) domain.Money { return domain.Money{Currency: "EUR", Minor: minor} }

// charge is a new charge.
func (r *rig) charge(method string, minor int64, now bool) payments.Charge {
	r.ids++
	order := fmt.Sprintf("01M822PB0EZ7EDFGE5AHV6KZ%03d", r.ids)
	return payments.Charge{
		PaymentID: order + "-p1", OrderID: order, Amount: eur(minor), Method: method, CaptureNow: now, StartedAt: time.Now(),
	}
}

func context30(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), callTimeMax)
	t.Cleanup(cancel)
	return ctx
}

func (r *rig) authorize(t *testing.T, charge payments.Charge) payments.Status {
	t.Helper()
	status, err := r.Provider.Authorize(context30(t), charge)
	if err != nil {
		t.Fatalf("authorize: %v", err)
	}
	return status
}

func (r *rig) capture(t *testing.T, charge payments.Charge, minor int64) payments.Status {
	t.Helper()
	status, err := r.Provider.Capture(context30(t), charge, eur(minor))
	if err != nil {
		t.Fatalf("capture: %v", err)
	}
	return status
}

func (r *rig) refund(t *testing.T, charge payments.Charge, place int, minor int64) payments.RefundStatus {
	t.Helper()
	status, err := r.Provider.Refund(context30(t), charge, refundOf(charge, place, minor))
	if err != nil {
		t.Fatalf("refund: %v", err)
	}
	return status
}

func refundOf(charge payments.Charge, place int, minor int64) payments.Refund {
	return payments.Refund{RefundID: fmt.Sprintf("%s-r%d", charge.PaymentID, place), Amount: eur(minor)}
}

func (r *rig) lookup(t *testing.T, charge payments.Charge) payments.Status {
	t.Helper()
	status, err := r.Provider.Lookup(context30(t), charge)
	if err != nil {
		t.Fatalf("lookup: %v", err)
	}
	return status
}

// want compares a status with what is expected of it, and with what Lookup says.
func (r *rig) want(t *testing.T, charge payments.Charge, got payments.Status, state payments.State, captured, refunded int64) {
	t.Helper()
	for call, status := range map[string]payments.Status{"the call": got, "lookup": r.lookup(t, charge)} {
		if status.PaymentID != charge.PaymentID || status.State != state || status.Captured.Minor != captured || status.Refunded.Minor != refunded {
			t.Fatalf("%s says %v %v, captured %d, refunded %d; want %v %v, captured %d, refunded %d", call,
				status.PaymentID, status.State, status.Captured.Minor, status.Refunded.Minor, charge.PaymentID, state, captured, refunded)
		}
		if (state == payments.StateAuthorized || state == payments.StateCaptured) && status.Amount != charge.Amount {
			t.Fatalf("%s says it is about %v, want %v", call, status.Amount, charge.Amount)
		}
	}
	captures := 0
	if captured > 0 {
		captures = 1
	}
	if got := r.Captures(t, charge.PaymentID); got != captures {
		t.Fatalf("the provider has %d captures of %s in its books, want %d (I4)", got, charge.PaymentID, captures)
	}
}

// rejected wants a call to be rejected, with a code unless it is empty.
func rejected(t *testing.T, what string, err error, code string) {
	t.Helper()
	var told *payments.RejectedError
	if !errors.As(err, &told) || !errors.Is(err, payments.ErrRejected) || errors.Is(err, payments.ErrUnknownOutcome) {
		t.Fatalf("%s: got %v, want it rejected", what, err)
	}
	if code != "" && told.Code != code {
		t.Fatalf("%s: rejected with %q (%v), want %q", what, told.Code, err, code)
	}
}

func authorizeThenCapture(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, false)
	status := r.authorize(t, charge)
	r.want(t, charge, status, payments.StateAuthorized, 0, 0)
	if status.Reference == "" {
		t.Fatal("the provider has no id of its own")
	}
	for range 3 {
		r.want(t, charge, r.capture(t, charge, 1299), payments.StateCaptured, 1299, 0)
	}
}

func captureNow(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 500, true)
	r.want(t, charge, r.authorize(t, charge), payments.StateCaptured, 500, 0)
	r.want(t, charge, r.capture(t, charge, 500), payments.StateCaptured, 500, 0)
}

func decline(t *testing.T, r *rig) {
	for _, now := range []bool{false, true} {
		charge := r.charge(r.MethodDecline, 1299, now)
		for range 3 {
			status := r.authorize(t, charge)
			r.want(t, charge, status, payments.StateDeclined, 0, 0)
			if status.DeclineCode == "" {
				t.Fatal("a decline has no code")
			}
		}
		if code := r.lookup(t, charge).DeclineCode; code == "" {
			t.Fatal("a decline that was looked up has no code")
		}
		_, err := r.Provider.Capture(context30(t), charge, eur(1299))
		rejected(t, "capture of a decline", err, payments.CodeWrongState)
	}
}

func chargeAgain(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	first := r.authorize(t, charge)
	for range 3 {
		again := r.authorize(t, charge)
		r.want(t, charge, again, payments.StateCaptured, 1299, 0)
		if again.Reference != first.Reference {
			t.Fatalf("the same charge became %s and %s", first.Reference, again.Reference)
		}
	}
}

func chargesAtOnce(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	ctx := context30(t)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			// One of many at once may be told to come again.
			if _, err := r.Provider.Authorize(ctx, charge); err != nil && !errors.Is(err, payments.ErrUnknownOutcome) {
				t.Errorf("authorize: %v", err)
			}
		})
	}
	group.Wait()
	r.want(t, charge, r.authorize(t, charge), payments.StateCaptured, 1299, 0)
}

func anotherCharge(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, false)
	r.authorize(t, charge)
	dearer := charge
	dearer.Amount.Minor++
	_, err := r.Provider.Authorize(context30(t), dearer)
	rejected(t, "another amount", err, payments.CodeKeyReused)
	sooner := charge
	sooner.CaptureNow = true
	_, err = r.Provider.Authorize(context30(t), sooner)
	rejected(t, "capture at once instead of later", err, payments.CodeKeyReused)
	r.want(t, charge, r.lookup(t, charge), payments.StateAuthorized, 0, 0)
}

func capturePart(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, false)
	r.authorize(t, charge)
	r.want(t, charge, r.capture(t, charge, 1000), payments.StateCaptured, 1000, 0)
	r.want(t, charge, r.capture(t, charge, 1000), payments.StateCaptured, 1000, 0)
	_, err := r.Provider.Capture(context30(t), charge, eur(299))
	rejected(t, "a second capture", err, payments.CodeKeyReused)
	r.want(t, charge, r.lookup(t, charge), payments.StateCaptured, 1000, 0)
}

func badCaptures(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, false)
	_, err := r.Provider.Capture(context30(t), charge, eur(1299))
	rejected(t, "capture of what was not authorized", err, "")
	if got := r.Captures(t, charge.PaymentID); got != 0 {
		t.Fatalf("%d captures of what was not authorized", got)
	}
	r.authorize(t, charge)
	_, err = r.Provider.Capture(context30(t), charge, eur(1300))
	rejected(t, "more than authorized", err, payments.CodeAmountTooLarge)
	_, err = r.Provider.Capture(context30(t), charge, domain.Money{Currency: "USD", Minor: 1299})
	rejected(t, "another currency", err, payments.CodeInvalid)
	_, err = r.Provider.Capture(context30(t), charge, eur(0))
	rejected(t, "nothing", err, payments.CodeInvalid)
	r.want(t, charge, r.lookup(t, charge), payments.StateAuthorized, 0, 0)
}

func (r *rig) void(t *testing.T, charge payments.Charge) payments.Status {
	t.Helper()
	status, err := r.Provider.Void(context30(t), charge)
	if err != nil {
		t.Fatalf("void: %v", err)
	}
	return status
}

func voidAuthorized(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, false)
	r.authorize(t, charge)
	for range 3 {
		r.want(t, charge, r.void(t, charge), payments.StateVoided, 0, 0)
	}
	_, err := r.Provider.Capture(context30(t), charge, eur(1299))
	rejected(t, "capture of what was voided", err, payments.CodeWrongState)
	r.want(t, charge, r.authorize(t, charge), payments.StateVoided, 0, 0)
}

func voidFirst(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	r.want(t, charge, r.void(t, charge), payments.StateVoided, 0, 0)
	// The charge was on its way, and arrives now.
	r.want(t, charge, r.authorize(t, charge), payments.StateVoided, 0, 0)
}

func voidTooLate(t *testing.T, r *rig) {
	captured := r.charge(r.MethodOK, 1299, true)
	r.authorize(t, captured)
	r.want(t, captured, r.void(t, captured), payments.StateCaptured, 1299, 0)
	declined := r.charge(r.MethodDecline, 1299, true)
	r.authorize(t, declined)
	if state := r.void(t, declined).State; state != payments.StateDeclined && state != payments.StateVoided {
		t.Fatalf("void of a decline leaves %v", state)
	}
}

func refunds(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	r.authorize(t, charge)
	for i, minor := range []int64{300, 999} {
		status := r.refund(t, charge, i+1, minor)
		if status.State != payments.RefundSucceeded || status.Amount != eur(minor) || status.Reference == "" {
			t.Fatalf("refund %d: got %+v", i+1, status)
		}
	}
	_, err := r.Provider.Refund(context30(t), charge, refundOf(charge, 3, 1))
	rejected(t, "a refund of more than was captured", err, payments.CodeAmountTooLarge)
	status := r.lookup(t, charge)
	r.want(t, charge, status, payments.StateCaptured, 1299, 1299)
	ids := []string{}
	for _, refund := range status.Refunds {
		ids = append(ids, refund.RefundID)
	}
	if want := []string{charge.PaymentID + "-r1", charge.PaymentID + "-r2"}; !slices.Equal(ids, want) {
		t.Fatalf("refunds %v, want %v", ids, want)
	}
}

func refundAgain(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	r.authorize(t, charge)
	first := r.refund(t, charge, 1, 1000)
	for range 3 {
		if again := r.refund(t, charge, 1, 1000); again != first {
			t.Fatalf("the same refund: got %+v, want %+v", again, first)
		}
	}
	_, err := r.Provider.Refund(context30(t), charge, refundOf(charge, 1, 200))
	rejected(t, "another amount with the same id", err, payments.CodeKeyReused)
	r.want(t, charge, r.lookup(t, charge), payments.StateCaptured, 1299, 1000)
}

func refundFails(t *testing.T, r *rig) {
	charge := r.charge(r.MethodRefundFails, 1299, true)
	r.authorize(t, charge)
	for range 2 {
		status := r.refund(t, charge, 1, 1299)
		if status.State != payments.RefundFailed || status.FailureCode == "" {
			t.Fatalf("got %+v, want a failure with a code", status)
		}
	}
	r.want(t, charge, r.lookup(t, charge), payments.StateCaptured, 1299, 0)
}

func badRefunds(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, false)
	_, err := r.Provider.Refund(context30(t), charge, refundOf(charge, 1, 1))
	rejected(t, "a refund of what is not there", err, "")
	r.authorize(t, charge)
	_, err = r.Provider.Refund(context30(t), charge, refundOf(charge, 1, 1))
	rejected(t, "a refund of what was not captured", err, payments.CodeWrongState)
	r.capture(t, charge, 1000)
	_, err = r.Provider.Refund(context30(t), charge, refundOf(charge, 2, 1001))
	rejected(t, "more than was captured", err, payments.CodeAmountTooLarge)
	refund := refundOf(charge, 3, 10)
	refund.Amount.Currency = "USD"
	_, err = r.Provider.Refund(context30(t), charge, refund)
	rejected(t, "another currency", err, payments.CodeInvalid)
	r.want(t, charge, r.lookup(t, charge), payments.StateCaptured, 1000, 0)
}

func lookupNone(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	r.want(t, charge, r.lookup(t, charge), payments.StateNone, 0, 0)
}

func lookupMovesNothing(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	for range 3 {
		r.want(t, charge, r.lookup(t, charge), payments.StateNone, 0, 0)
	}
	// A charge that was looked up before it came works.
	r.want(t, charge, r.authorize(t, charge), payments.StateCaptured, 1299, 0)
}

// lost wants the next call to be an unknown outcome.
func (r *rig) lost(t *testing.T, what string, call func(context.Context) error) {
	t.Helper()
	r.LoseAnswer(t)
	err := call(context30(t))
	var told *payments.UnknownOutcomeError
	if !errors.As(err, &told) || !errors.Is(err, payments.ErrUnknownOutcome) || errors.Is(err, payments.ErrRejected) {
		t.Fatalf("%s: got %v, want an unknown outcome", what, err)
	}
	if told.Provider != r.Provider.Name() || told.PaymentID == "" || told.Call == "" || told.Cause == nil {
		t.Fatalf("%s: the error does not say what it is about: %+v", what, told)
	}
}

func lostAnswers(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, false)
	r.lost(t, "authorize", func(ctx context.Context) error { _, err := r.Provider.Authorize(ctx, charge); return err })
	if state := r.lookup(t, charge).State; state != payments.StateAuthorized && state != payments.StateNone {
		t.Fatalf("after a lost authorize: %v", state)
	}
	r.want(t, charge, r.authorize(t, charge), payments.StateAuthorized, 0, 0)
	r.lost(t, "capture", func(ctx context.Context) error { _, err := r.Provider.Capture(ctx, charge, eur(1299)); return err })
	r.want(t, charge, r.capture(t, charge, 1299), payments.StateCaptured, 1299, 0)
	r.lost(t, "refund", func(ctx context.Context) error {
		_, err := r.Provider.Refund(ctx, charge, refundOf(charge, 1, 1000))
		return err
	})
	if status := r.refund(t, charge, 1, 1000); status.State != payments.RefundSucceeded {
		t.Fatalf("refund: %+v", status)
	}
	r.want(t, charge, r.lookup(t, charge), payments.StateCaptured, 1299, 1000)
	r.lost(t, "lookup", func(ctx context.Context) error { _, err := r.Provider.Lookup(ctx, charge); return err })

	second := r.charge(r.MethodOK, 500, false)
	r.authorize(t, second)
	r.lost(t, "void", func(ctx context.Context) error { _, err := r.Provider.Void(ctx, second); return err })
	r.want(t, second, r.void(t, second), payments.StateVoided, 0, 0)
}

func deadline(t *testing.T, r *rig) {
	charge := r.charge(r.MethodOK, 1299, true)
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, err := r.Provider.Authorize(ctx, charge)
	if !errors.Is(err, payments.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want an unknown outcome and the deadline", err)
	}
	r.want(t, charge, r.authorize(t, charge), payments.StateCaptured, 1299, 0)
}

func badInput(t *testing.T, r *rig) {
	good := r.charge(r.MethodOK, 1299, true)
	for name, change := range map[string]func(*payments.Charge){
		"no payment id":         func(c *payments.Charge) { c.PaymentID = "" },
		"a path for an id":      func(c *payments.Charge) { c.PaymentID = "../ledger" },
		"a line for an id":      func(c *payments.Charge) { c.PaymentID = "a\r\nb" },
		"a long id":             func(c *payments.Charge) { c.PaymentID = string(make([]byte, 65)) },
		"no order":              func(c *payments.Charge) { c.OrderID = "" },
		"no money":              func(c *payments.Charge) { c.Amount.Minor = 0 },
		"negative money":        func(c *payments.Charge) { c.Amount.Minor = -5 },
		"very much money":       func(c *payments.Charge) { c.Amount.Minor = 1<<63 - 1 },
		"no currency":           func(c *payments.Charge) { c.Amount.Currency = "" },
		"no method":             func(c *payments.Charge) { c.Method = "" },
		"a method that is none": func(c *payments.Charge) { c.Method = "none such" },
		"no start":              func(c *payments.Charge) { c.StartedAt = time.Time{} },
	} {
		charge := r.charge(r.MethodOK, 1299, true)
		bad := charge
		change(&bad)
		_, err := r.Provider.Authorize(context30(t), bad)
		rejected(t, name, err, "")
		if got := r.Captures(t, charge.PaymentID); got != 0 {
			t.Fatalf("%s: %d captures of a charge that was rejected", name, got)
		}
	}
	r.want(t, good, r.lookup(t, good), payments.StateNone, 0, 0)
}
