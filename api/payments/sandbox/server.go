//go:build unix

package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/weirhq/weir/api/webhooksig"
)

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
