package payments_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/domain"
)

// small are limits that short histories reach.
var small = payments.BreakerLimits{
	FailuresInRowMax: 2, WindowCalls: 4, FailuresInWindowMax: 3,
	OpenTimeMin: 2 * time.Second, OpenTimeMax: 4 * time.Second, ProbeTimeMax: 3 * time.Second,
}

// world is a breaker with what an observer knows about it without looking inside.
type world struct {
	breaker payments.Breaker
	now     time.Time
	// tickets of calls that are under way, with the time of those that are probes.
	calls []call
	// closed holds the results of the calls that settled since it closed, of those that began since then.
	closed []payments.CallResult
	// openedAt and openTime are of the last opening.
	openedAt time.Time
	openTime time.Duration
	eras     int // How often it changed its mind.
	trace    string
}

type call struct {
	ticket payments.Ticket
	at     time.Time
	probe  bool
	era    int
}

func (w world) fail(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Fatalf("after%s: %s", w.trace, fmt.Sprintf(format, args...))
}

// arrive has one call come.
func (w world) arrive(t *testing.T) world {
	t.Helper()
	w.trace += " call"
	before := w.breaker.State()
	breaker, ticket, retryAfter, admitted := w.breaker.Admit(small, w.now)
	liveProbe := false
	for _, c := range w.calls {
		liveProbe = liveProbe || c.probe && c.era == w.eras && w.now.Before(c.at.Add(small.ProbeTimeMax))
	}
	var want bool
	switch before {
	case payments.BreakerClosed:
		want = true
	case payments.BreakerOpen:
		want = !w.now.Before(w.openedAt.Add(w.openTime))
	case payments.BreakerHalfOpen:
		want = !liveProbe
	}
	if admitted != want {
		w.fail(t, "admitted = %t in state %v, want %t", admitted, before, want)
	}
	if admitted == (retryAfter > 0) {
		w.fail(t, "admitted = %t and retry after %s", admitted, retryAfter)
	}
	if retryAfter > small.OpenTimeMax {
		w.fail(t, "retry after %s, more than it is ever open", retryAfter)
	}
	w.breaker = breaker
	if admitted {
		probe := before != payments.BreakerClosed
		if probe {
			w.eras++
			if breaker.State() != payments.BreakerHalfOpen {
				w.fail(t, "state %v with a probe under way", breaker.State())
			}
		}
		w.calls = append(w.calls[:len(w.calls):len(w.calls)], call{ticket, w.now, probe, w.eras})
	}
	return w
}

// settle ends the call at a place of the list.
func (w world) settle(t *testing.T, place int, result payments.CallResult) world {
	t.Helper()
	w.trace += fmt.Sprintf(" settle(%d,%d)", place, result)
	settled := w.calls[place]
	w.calls = append(append([]call(nil), w.calls[:place]...), w.calls[place+1:]...)
	before := w.breaker
	w.breaker = before.Settle(small, w.now, settled.ticket, result)
	if settled.era != w.eras {
		if w.breaker != before {
			w.fail(t, "a call of another era counted")
		}
		return w
	}
	want := before.State()
	if settled.probe {
		switch result {
		case payments.CallAnswered:
			want, w.closed = payments.BreakerClosed, nil
		case payments.CallFailed:
			want, w.openTime = payments.BreakerOpen, min(2*w.openTime, small.OpenTimeMax)
		}
	} else if result != payments.CallAbandoned {
		w.closed = append(w.closed[:len(w.closed):len(w.closed)], result)
		if tooMany(w.closed) {
			want, w.openTime = payments.BreakerOpen, small.OpenTimeMin
		}
	}
	if got := w.breaker.State(); got != want {
		w.fail(t, "state %v, want %v", got, want)
	}
	if want != before.State() {
		w.eras++
		w.openedAt = w.now
	}
	return w
}

func tooMany(results []payments.CallResult) bool {
	row, window := 0, 0
	for i, result := range results {
		row++
		if result != payments.CallFailed {
			row = 0
		} else if i >= len(results)-small.WindowCalls {
			window++
		}
	}
	return row >= small.FailuresInRowMax || window >= small.FailuresInWindowMax
}

// TestEveryShortHistoryOfABreakerIsRight goes through every sequence of calls, results and seconds up to a length.
func TestEveryShortHistoryOfABreakerIsRight(t *testing.T) {
	const steps, callsMax = 9, 2
	histories, opened, halfOpened, closedAgain := 0, 0, 0, 0
	var walk func(world, int)
	walk = func(w world, left int) {
		histories++
		switch w.breaker.State() {
		case payments.BreakerOpen:
			opened++
		case payments.BreakerHalfOpen:
			halfOpened++
		case payments.BreakerClosed:
			if w.eras > 0 {
				closedAgain++
			}
		}
		if left == 0 {
			return
		}
		tick := w
		tick.now, tick.trace = w.now.Add(time.Second), w.trace+" tick"
		walk(tick, left-1)
		if len(w.calls) < callsMax {
			walk(w.arrive(t), left-1)
		}
		for place := range w.calls {
			for _, result := range []payments.CallResult{payments.CallAnswered, payments.CallFailed, payments.CallAbandoned} {
				walk(w.settle(t, place, result), left-1)
			}
		}
	}
	walk(world{now: time.Unix(1_000_000, 0)}, steps)
	t.Logf("%d histories: open %d, half-open %d, closed again %d times", histories, opened, halfOpened, closedAgain)
	if opened == 0 || halfOpened == 0 || closedAgain == 0 {
		t.Fatal("the histories did not reach every state")
	}
}

func TestProviderThatAnswersEveryOtherCallOpensTheBreaker(t *testing.T) {
	limits := payments.BreakerLimits{}.WithDefaults()
	var breaker payments.Breaker
	now := time.Unix(0, 0)
	for i := range limits.WindowCalls {
		var ticket payments.Ticket
		var admitted bool
		breaker, ticket, _, admitted = breaker.Admit(limits, now)
		if !admitted {
			t.Fatalf("open after %d calls", i)
		}
		result := payments.CallFailed
		if i%2 == 0 {
			result = payments.CallAnswered
		}
		breaker = breaker.Settle(limits, now, ticket, result)
	}
	if breaker.State() != payments.BreakerOpen {
		t.Fatalf("state %v after %d calls of which half failed", breaker.State(), limits.WindowCalls)
	}
}

func TestOpenTimeDoublesUpToItsLimit(t *testing.T) {
	limits := payments.BreakerLimits{FailuresInRowMax: 1, OpenTimeMin: time.Second, OpenTimeMax: 5 * time.Second}.WithDefaults()
	breaker, now := payments.Breaker{}, time.Unix(0, 0)
	for i, want := range []time.Duration{1, 2, 4, 5, 5} {
		var ticket payments.Ticket
		breaker, ticket, _, _ = breaker.Admit(limits, now)
		breaker = breaker.Settle(limits, now, ticket, payments.CallFailed)
		_, _, retryAfter, admitted := breaker.Admit(limits, now)
		if admitted || retryAfter != want*time.Second {
			t.Fatalf("failure %d: admitted = %t, open for %s, want %ds", i+1, admitted, retryAfter, want)
		}
		now = now.Add(retryAfter)
	}
}

func TestBreakerLimitsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, limits := range []payments.BreakerLimits{
		{FailuresInRowMax: -1},
		{WindowCalls: 65},
		{WindowCalls: 5, FailuresInWindowMax: 6},
		{OpenTimeMin: time.Minute, OpenTimeMax: time.Second},
		{ProbeTimeMax: -1},
	} {
		if limits.Validate() == nil {
			t.Errorf("%+v was taken", limits)
		}
	}
	if err := (payments.BreakerLimits{}).Validate(); err != nil {
		t.Error(err)
	}
}

// scripted is a provider whose calls end as the test says.
type scripted struct {
	err   error
	calls int
}

func (s *scripted) Name() string { return "scripted" }

func (s *scripted) Authorize(context.Context, payments.Charge) (payments.Status, error) {
	s.calls++
	return payments.Status{State: payments.StateDeclined}, s.err
}

func (s *scripted) Capture(context.Context, payments.Charge, domain.Money) (payments.Status, error) {
	s.calls++
	return payments.Status{}, s.err
}

func (s *scripted) Void(context.Context, payments.Charge) (payments.Status, error) {
	s.calls++
	return payments.Status{}, s.err
}

func (s *scripted) Refund(context.Context, payments.Charge, payments.Refund) (payments.RefundStatus, error) {
	s.calls++
	return payments.RefundStatus{}, s.err
}

func (s *scripted) Lookup(context.Context, payments.Charge) (payments.Status, error) {
	s.calls++
	return payments.Status{}, s.err
}

func TestGuardedProviderIsNotCalledWhileItFails(t *testing.T) {
	now := time.Unix(0, 0)
	unknown := &payments.UnknownOutcomeError{Provider: "scripted", Call: "authorize", PaymentID: "p", Cause: context.DeadlineExceeded}
	provider := &scripted{err: unknown}
	guarded, err := payments.Guard(provider, payments.BreakerLimits{FailuresInRowMax: 5}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	every := []func() error{
		func() error { _, err := guarded.Authorize(ctx, payments.Charge{}); return err },
		func() error { _, err := guarded.Capture(ctx, payments.Charge{}, domain.Money{}); return err },
		func() error { _, err := guarded.Void(ctx, payments.Charge{}); return err },
		func() error { _, err := guarded.Refund(ctx, payments.Charge{}, payments.Refund{}); return err },
		func() error { _, err := guarded.Lookup(ctx, payments.Charge{}); return err },
	}
	for i, call := range every {
		if err := call(); !errors.Is(err, payments.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("call %d: got %v, want the provider's error", i, err)
		}
	}
	if guarded.State() != payments.BreakerOpen || provider.calls != len(every) {
		t.Fatalf("state %v after %d calls that failed", guarded.State(), provider.calls)
	}
	for i, call := range every {
		var open *payments.BreakerOpenError
		err := call()
		if !errors.As(err, &open) || open.RetryAfter != time.Second || open.Provider != "scripted" {
			t.Fatalf("call %d: got %v, want a BreakerOpenError", i, err)
		}
		if errors.Is(err, payments.ErrUnknownOutcome) {
			t.Fatalf("call %d was not made, and yet its outcome is unknown", i)
		}
	}
	if provider.calls != len(every) {
		t.Fatalf("the provider was called %d times more", provider.calls-len(every))
	}
	provider.err, now = nil, now.Add(time.Second)
	if err := every[0](); err != nil || guarded.State() != payments.BreakerClosed {
		t.Fatalf("probe: got %v, state %v", err, guarded.State())
	}
}

func TestOnlyFailuresOfTheProviderCount(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want payments.BreakerState
	}{
		{"an answer, be it a decline", nil, payments.BreakerClosed},
		{"a rejected payment", &payments.RejectedError{Code: payments.CodeWrongState}, payments.BreakerClosed},
		{"rejected credentials", &payments.RejectedError{Code: payments.CodeCredentials}, payments.BreakerOpen},
		{"a caller that left", &payments.UnknownOutcomeError{Cause: context.Canceled}, payments.BreakerClosed},
		{"a timeout", &payments.UnknownOutcomeError{Cause: context.DeadlineExceeded}, payments.BreakerOpen},
		{"anything else", errors.New("broken"), payments.BreakerOpen},
	} {
		guarded, err := payments.Guard(&scripted{err: test.err}, payments.BreakerLimits{FailuresInRowMax: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = guarded.Lookup(t.Context(), payments.Charge{})
		if got := guarded.State(); got != test.want {
			t.Errorf("%s: breaker is %v, want %v", test.name, got, test.want)
		}
	}
}
