//go:build unix

package sandbox

import (
	"bytes"
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/api/payments"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
)

// Limits of webhooks (I8).
const (
	// webhooksAtOnceMax bounds the deliveries at once.
	webhooksAtOnceMax = 8
	// webhookAttemptsMax is how often an event is told before the sandbox gives up: look the payment up.
	webhookAttemptsMax = 16
	// webhookTimeMax bounds one delivery.
	webhookTimeMax = 10 * time.Second
	// webhookReplyBytesMax is how much of an answer is read.
	webhookReplyBytesMax = 4 << 10
)

// A job is something to do later: tell about an entry, or settle a payment that is pending.
type job struct {
	due   time.Time
	entry uint64
	// attempt counts the deliveries that failed. Of a payment to settle it is settleJob.
	attempt int
	// last: when it is done, nothing more is told about the entry.
	last bool
}

const settleJob = -1

// jobs is a heap, the next due first.
type jobs struct {
	list []job
	// webhooks counts those that tell, also while they are being told.
	webhooks int
}

func (j *jobs) Len() int           { return len(j.list) }
func (j *jobs) Less(a, b int) bool { return j.list[a].due.Before(j.list[b].due) }
func (j *jobs) Swap(a, b int)      { j.list[a], j.list[b] = j.list[b], j.list[a] }

// Push implements heap.Interface.
func (j *jobs) Push(x any) { j.list = append(j.list, x.(job)) } //nolint:errcheck // heap.Push is only called with jobs.

// Pop implements heap.Interface.
func (j *jobs) Pop() any {
	last := j.list[len(j.list)-1]
	j.list = j.list[:len(j.list)-1]
	return last
}

// plan plans what follows from an entry. REQUIRES: mu is held.
func (s *Server) plan(entry Entry) {
	p := s.payments[entry.PaymentID]
	if entry.Kind == payments.StatePending.String() {
		heap.Push(&s.jobs, job{due: entry.At.Add(s.options.PendingTime), entry: entry.Number, attempt: settleJob})
	}
	if s.options.WebhookURL != "" && p.charge != nil {
		tellings := s.mischief.tellings(p.charge.Method, s.options.LateTime)
		for i, delay := range tellings {
			heap.Push(&s.jobs, job{due: entry.At.Add(delay), entry: entry.Number, last: i == len(tellings)-1})
			s.jobs.webhooks++
		}
	}
	s.wake()
}

func (s *Server) wake() {
	select {
	case s.poke <- struct{}{}:
	default: // It is awake.
	}
}

// resume plans anew what a process that ended had not done. REQUIRES: nothing else uses the server yet.
func (s *Server) resume(told map[uint64]bool) {
	for _, entry := range s.entries {
		p := s.payments[entry.PaymentID]
		if entry.Kind == payments.StatePending.String() && p.state == payments.StatePending {
			heap.Push(&s.jobs, job{due: entry.At.Add(s.options.PendingTime), entry: entry.Number, attempt: settleJob})
		}
		if s.options.WebhookURL != "" && p.charge != nil && p.charge.Method != TokenNoWebhook && !told[entry.Number] {
			heap.Push(&s.jobs, job{due: s.options.Now(), entry: entry.Number, last: true})
			s.jobs.webhooks++
		}
	}
}

// Run tells the webhooks and settles what is pending, until ctx ends. What was not told then is told by the next process
// that opens the journal.
func (s *Server) Run(ctx context.Context) error {
	transport := &http.Transport{
		MaxIdleConnsPerHost: webhooksAtOnceMax, IdleConnTimeout: idleTimeMax, ResponseHeaderTimeout: webhookTimeMax,
		MaxResponseHeaderBytes: webhookReplyBytesMax,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{
		Transport: transport, Timeout: webhookTimeMax,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	var group errgroup.Group
	group.SetLimit(webhooksAtOnceMax)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-s.poke:
		case <-timer.C:
		}
		for ctx.Err() == nil {
			next, entry, wait := s.due()
			if wait > 0 {
				timer.Reset(wait)
				break
			}
			if next.attempt == settleJob {
				if err := s.settle(entry); err != nil {
					return errors.Join(fmt.Errorf("settle payment %s: %w", entry.PaymentID, err), group.Wait())
				}
				continue
			}
			group.Go(func() error {
				s.done(ctx, next, entry, s.tell(ctx, client, entry))
				return nil
			})
		}
	}
}

// nothingDueMax is how long Run sleeps when there is nothing to do; it is poked before.
const nothingDueMax = time.Hour

// due takes the next job that is due off the heap, with its entry, or says how long to wait for it.
func (s *Server) due() (job, Entry, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs.list) == 0 {
		return job{}, Entry{}, nothingDueMax
	}
	if wait := s.jobs.list[0].due.Sub(s.options.Now()); wait > 0 {
		return job{}, Entry{}, wait
	}
	next, _ := heap.Pop(&s.jobs).(job)
	return next, s.entries[next.entry-1], 0
}

// settle ends the wait of a pending payment.
func (s *Server) settle(pending Entry) error {
	s.mu.Lock()
	p := s.payments[pending.PaymentID]
	var err error
	if p.state == payments.StatePending {
		entry := Entry{Kind: payments.StateAuthorized.String(), PaymentID: pending.PaymentID, Amount: pending.Amount}
		if p.charge.CaptureNow {
			entry.Kind = payments.StateCaptured.String()
		}
		err = s.record(entry)
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return s.journal.sync()
}

// tell delivers one webhook. An event is durable before anybody hears of it.
func (s *Server) tell(ctx context.Context, client *http.Client, entry Entry) error {
	if err := s.journal.sync(); err != nil {
		return err
	}
	body, err := json.Marshal(s.event(entry))
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.options.WebhookURL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("User-Agent", "weir-sandbox-pay")
	webhooksig.SetHeaders(request.Header, s.options.WebhookSecrets, s.eventID(entry), s.options.Now(), body)
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, webhookReplyBytesMax) // So that the connection can be used again.
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("status %d", response.StatusCode)
	}
	return nil
}

// done plans what follows from a delivery.
func (s *Server) done(ctx context.Context, told job, entry Entry, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	again := told.attempt + 1
	switch {
	case err == nil:
	case contextDone(ctx, err):
		return // The next process tells it.
	case again >= webhookAttemptsMax:
		s.options.Logger.WarnContext(ctx, "a webhook was given up", "event", s.eventID(entry), "attempts", again, "error", err)
	default:
		s.options.Logger.DebugContext(ctx, "a webhook failed and is tried again", "event", s.eventID(entry), "attempts", again, "error", err)
		pause := min(s.options.RetryTimeMin<<min(told.attempt, 20), s.options.RetryTimeMax)
		heap.Push(&s.jobs, job{due: s.options.Now().Add(pause), entry: told.entry, attempt: again, last: told.last})
		s.wake()
		return
	}
	s.jobs.webhooks--
	if told.last {
		// Not synced: when it is lost, the event is told once more.
		if err := s.journal.append(journalLine{Told: told.entry}); err != nil {
			s.options.Logger.ErrorContext(ctx, "the sandbox cannot keep what happened", "error", err)
		}
	}
}

func (s *Server) eventID(entry Entry) string { return fmt.Sprintf("evt_%s_%d", s.id, entry.Number) }

// event is what is told about an entry: what was true when it happened.
func (s *Server) event(entry Entry) wireEvent {
	event := wireEvent{ID: s.eventID(entry), CreatedAt: entry.At}
	event.Data = wireEventData{PaymentID: entry.PaymentID, State: entry.Kind, Amount: wireOf(entry.Amount), DeclineCode: entry.Code}
	switch entry.Kind {
	case kindRefunded, kindRefundFailed:
		event.Type = "refund." + entry.Kind
		refund := wireRefund{
			RefundID: entry.RefundID, Reference: fmt.Sprintf("sbxr_%d", entry.Number), Amount: wireOf(entry.Amount),
			State: payments.RefundSucceeded.String(),
		}
		if entry.Kind == kindRefundFailed {
			refund.State, refund.FailureCode = payments.RefundFailed.String(), entry.Code
		}
		event.Data.Refund, event.Data.State = &refund, payments.StateCaptured.String()
		event.Data.Amount, event.Data.DeclineCode = wireOf(domain.Money{}), ""
	default:
		event.Type = "payment." + entry.Kind
		if entry.Code != "" {
			event.Data.DeclineMessage = declineMessage(entry.Code)
		}
	}
	return event
}
