// Package failback keeps requests that could not be made, durably, and makes them again until they are answered. Requests lie in
// a JetStream stream that all gateways share; each is sent at least once, and has one effect because the node's ledger knows its
// request id (I4). What cannot be made is parked, where it is listed until somebody retries or drops it.
package failback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/weirhq/weir/gateway/outcome"
	"github.com/weirhq/weir/gateway/replicas"
)

// Names on the server.
const (
	// Stream has the requests that wait, ParkedStream those that nobody makes again by himself.
	Stream       = "WEIR-FAILBACK"
	ParkedStream = "WEIR-FAILBACK-PARKED"

	waitingSubject = "weir.failback.waiting."
	parkedSubject  = "weir.failback.parked."
	consumerName   = "gateways"
)

// Config bounds a Queue. A zero field means its default.
type Config struct {
	// Period is how long after an attempt that failed the next one is made, give or take a tenth; 0 means 5 s.
	Period time.Duration `yaml:"period"`
	// SendTimeMax bounds one attempt; 0 means 3 s. A request whose gateway dies is sent by another one Period later, or a second
	// after SendTimeMax, whichever is later.
	SendTimeMax time.Duration `yaml:"send_time_max"`
	// SendsMax attempts are under way at once in each gateway; 0 means 64.
	SendsMax int `yaml:"sends_max"`
	// RequestsMax and BytesMax bound what waits in all, and what is parked once more; 0 means 10,000 and 256 MiB. One request has
	// at most RequestBytesMax with its headers; 0 means 128 KiB.
	RequestsMax     int   `yaml:"requests_max"`
	BytesMax        int64 `yaml:"bytes_max"`
	RequestBytesMax int   `yaml:"request_bytes_max"`
	// AgeMax is after how long a request that was never answered is parked; 0 means 24 h.
	AgeMax time.Duration `yaml:"age_max"`
	// AttemptsMax parks it as well: 0 means 50,000, more than fit into AgeMax. It is for a request that kills who sends it.
	AttemptsMax int `yaml:"attempts_max"`
	// Replicas of the streams when they are made, 1, 3 or 5; 0 means as many as the list of nodes has.
	Replicas int `yaml:"replicas"`
}

const (
	// ackMargin is what a gateway has after an attempt to say how it ended.
	ackMargin = time.Second
	// fetchTime is how long the server holds a question for requests; Run ends within it.
	fetchTime = time.Second
	// keepAttemptsMax bounds the attempts to keep a request, and tellTime the time to tell the server what came of one.
	keepAttemptsMax = 10
	tellTime        = 2 * time.Second
	// pauseMin and pauseMax bound the pause after the server did not answer.
	pauseMin = 100 * time.Millisecond
	pauseMax = 5 * time.Second
	// reasonBytesMax bounds what is kept of why a request was parked.
	reasonBytesMax = 500
	// requestBytesMin bounds RequestBytesMax from below, and requestBytesLimit from above: the server's messages are bounded too.
	requestBytesMin   = 1 << 10
	requestBytesLimit = 4 << 20
	durationMax       = 30 * 24 * time.Hour
	countMax          = 10_000_000
)

// WithDefaults fills in the fields that are zero.
func (c Config) WithDefaults() Config {
	setDefault(&c.Period, 5*time.Second)
	setDefault(&c.SendTimeMax, 3*time.Second)
	setDefault(&c.SendsMax, 64)
	setDefault(&c.RequestsMax, 10_000)
	setDefault(&c.BytesMax, 256<<20)
	setDefault(&c.RequestBytesMax, 128<<10)
	setDefault(&c.AgeMax, 24*time.Hour)
	setDefault(&c.AttemptsMax, 50_000)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate returns an error that says which field is wrong, and what it may be.
func (c Config) Validate() error {
	c = c.WithDefaults()
	for _, d := range []struct {
		name string
		is   time.Duration
	}{{"period", c.Period}, {"send_time_max", c.SendTimeMax}, {"age_max", c.AgeMax}} {
		if d.is < 10*time.Millisecond || d.is > durationMax {
			return fmt.Errorf("%s is %s; it is between 10ms and %s", d.name, d.is, durationMax)
		}
	}
	for _, n := range []struct {
		name   string
		is, to int
	}{{"sends_max", c.SendsMax, 10_000}, {"requests_max", c.RequestsMax, countMax}, {"attempts_max", c.AttemptsMax, countMax}} {
		if n.is < 1 || n.is > n.to {
			return fmt.Errorf("%s is %d; it is between 1 and %d", n.name, n.is, n.to)
		}
	}
	switch {
	case c.RequestBytesMax < requestBytesMin || c.RequestBytesMax > requestBytesLimit:
		return fmt.Errorf("request_bytes_max is %d; it is between %d and %d", c.RequestBytesMax, requestBytesMin, requestBytesLimit)
	case c.BytesMax < int64(c.RequestBytesMax):
		return fmt.Errorf("bytes_max is %d; it is at least request_bytes_max, %d", c.BytesMax, c.RequestBytesMax)
	case c.Replicas != 0 && c.Replicas != 1 && c.Replicas != 3 && c.Replicas != 5:
		return fmt.Errorf("replicas is %d; it is 1, 3 or 5", c.Replicas)
	}
	return nil
}

// ackWait is how long the server waits to hear of an attempt before it hands the request to somebody else.
func (c Config) ackWait() time.Duration { return max(c.Period, c.SendTimeMax+ackMargin) }

// An Answer is what came of an attempt.
type Answer struct {
	// Outcome Good ends it; anything else is tried again.
	Outcome outcome.Outcome
	// Refusal is set with Good for an answer that is no success and will not become one: the request is parked, since whoever made
	// it was told that it would be made.
	Refusal string
	// Err says what went wrong, for people.
	Err error
}

// Send makes one attempt. It ends when ctx does.
type Send func(ctx context.Context, request Request) Answer

// Options are what a Queue needs beside its Config. Key is required.
type Options struct {
	// Key seals requests, 32 bytes, the same in all gateways: they hold what customers wrote, and credentials.
	Key []byte
	// OlderKeys open what was sealed with them, before there was Key. SetKeys changes both.
	OlderKeys [][]byte
	// Logger is told of what is parked and of what fails; nil means slog.Default().
	Logger *slog.Logger
	// Now tells the time; nil means time.Now.
	Now func() time.Time
}

// A Queue is the requests that wait. Its methods may be called by any number of goroutines.
type Queue struct {
	config  Config
	options Options
	seal    atomic.Pointer[sealer]

	js              jetstream.JetStream
	waiting, parked jetstream.Stream

	stats struct{ accepted, full, attempts, done, parked, failed atomic.Uint64 }
}

// SetKeys makes the queue seal with another key from now on, and open what was sealed with it or with an older one that is given. What was sealed
// with a key that is not given is parked, unreadable, when its turn comes. On an error the keys from before stay.
func (q *Queue) SetKeys(key []byte, older ...[]byte) error {
	seal, err := newSealer(key, older...)
	if err != nil {
		return fmt.Errorf("failback: %w", err)
	}
	q.seal.Store(seal)
	return nil
}

// A FullError says that a request was not kept because too many wait. Nothing happened.
type FullError struct {
	// Waiting requests have Bytes.
	Waiting, Bytes uint64
	// RetryAfter is when there may be room.
	RetryAfter time.Duration
}

func (e *FullError) Error() string {
	return fmt.Sprintf("the request is not kept for later: %d requests of %d bytes wait already; try again in %s", e.Waiting, e.Bytes, e.RetryAfter)
}

// A ReusedError says that another request with the same user and id waits. Nothing happened.
type ReusedError struct{ User, ID string }

func (e *ReusedError) Error() string {
	return fmt.Sprintf("request id %q of this user waits with another method or body; use a new id for a new request", e.ID)
}

// ErrTooLarge says that a request is larger than any that is kept.
var ErrTooLarge = errors.New("the request is too large to be kept for later")

// Accept keeps a request: once it returns nil, the request is made until it is answered, whatever crashes. The same request again
// is kept once. Errors: *FullError, *ReusedError, ErrTooLarge, or that the server did not answer; then it may have been kept.
func (q *Queue) Accept(ctx context.Context, request Request) error {
	if err := request.validate(); err != nil {
		return err
	}
	key, record := request.key(), q.seal.Load().seal(request)
	if len(record) > q.config.RequestBytesMax {
		return fmt.Errorf("%w: it has %d bytes of at most %d", ErrTooLarge, len(record), q.config.RequestBytesMax)
	}
	err := q.keep(ctx, key, request, record)
	if err == nil {
		q.stats.accepted.Add(1)
	}
	return err
}

// keep writes a record, unless the same request is there. A lost acknowledgement is asked again until ctx ends.
func (q *Queue) keep(ctx context.Context, key string, request Request, record []byte) error {
	pause, err := pauseMin, error(nil)
	for range keepAttemptsMax {
		_, err = q.js.Publish(ctx, waitingSubject+key, record, jetstream.WithExpectLastSequencePerSubject(0))
		if err == nil {
			return nil
		}
		var refused *jetstream.APIError
		if errors.As(err, &refused) {
			switch refused.ErrorCode {
			case jetstream.JSErrCodeStreamWrongLastSequence,
				jetstream.JSErrCodeStreamWrongLastSequenceConstant: // Replicated streams use this one.
				gone, err := q.same(ctx, key, request)
				if gone {
					continue // It was made meanwhile. Once more does no harm, and the ledger answers.
				}
				return err
			case jsErrCodeStoreFailed:
				return q.fullError(ctx, record, err)
			}
			return fmt.Errorf("keep request %s: %w", key, err)
		}
		if !sleep(ctx, &pause) {
			break
		}
	}
	return fmt.Errorf("keep request %s: %w; it may have been kept, ask again with the same request id", key, err)
}

// jsErrCodeStoreFailed is what the server says when a stream is full, among others.
const jsErrCodeStoreFailed jetstream.ErrorCode = 10077

// same compares a request with the one that waits under its key.
func (q *Queue) same(ctx context.Context, key string, request Request) (gone bool, err error) {
	found, err := q.waiting.GetLastMsgForSubject(ctx, waitingSubject+key)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at request %s, which waits: %w", key, err)
	}
	waiting, err := q.seal.Load().open(key, found.Data)
	if err != nil {
		return false, fmt.Errorf("look at request %s, which waits: %w", key, err)
	}
	if !waiting.same(request) {
		return false, &ReusedError{User: request.User, ID: request.ID}
	}
	return false, nil
}

// fullError says whether the server refused because the stream is full.
func (q *Queue) fullError(ctx context.Context, record []byte, cause error) error {
	info, err := q.waiting.Info(ctx)
	if err != nil {
		return fmt.Errorf("keep a request: %w", errors.Join(cause, err))
	}
	state, config := info.State, info.Config
	const overhead = 512 // of a message in the store, at most
	if state.Msgs < uint64(config.MaxMsgs) && state.Bytes+uint64(len(record))+overhead < uint64(config.MaxBytes) {
		return fmt.Errorf("keep a request: %w", cause)
	}
	q.stats.full.Add(1)
	return &FullError{Waiting: state.Msgs, Bytes: state.Bytes, RetryAfter: q.config.Period}
}

// Run makes the requests that wait until ctx ends, and returns nil once the attempts under way have ended. The server may be away
// meanwhile. Several gateways may run at once: each request is with one of them at a time.
func (q *Queue) Run(ctx context.Context, send Send) error {
	slots := make(chan struct{}, q.config.SendsMax)
	var under sync.WaitGroup
	defer under.Wait()
	var consumer jetstream.Consumer
	pause := pauseMin
	for ctx.Err() == nil {
		var err error
		if consumer == nil {
			// Somebody may have removed it: it holds nothing but who has which request.
			consumer, err = q.waiting.CreateOrUpdateConsumer(ctx, q.consumerConfig())
		}
		if err == nil {
			err = q.hand(ctx, consumer, slots, &under, send)
		}
		if err == nil {
			pause = pauseMin
			continue
		}
		consumer = nil
		if ctx.Err() == nil {
			q.options.Logger.LogAttrs(ctx, slog.LevelWarn, "requests that wait cannot be read; trying again",
				slog.Any("error", err), slog.Duration("pause", pause))
			sleep(ctx, &pause)
		}
	}
	return nil
}

// hand asks the server for as many requests as there is room for, once there is any, and makes each in a goroutine of its own: one
// that hangs holds up no other one.
func (q *Queue) hand(ctx context.Context, consumer jetstream.Consumer, slots chan struct{}, under *sync.WaitGroup, send Send) error {
	room := 0
	defer func() {
		for range room {
			<-slots
		}
	}()
	select {
	case slots <- struct{}{}:
		room++
	case <-ctx.Done():
		return nil
	}
	for free := true; free; {
		select {
		case slots <- struct{}{}:
			room++
		default:
			free = false
		}
	}
	batch, err := consumer.Fetch(room, jetstream.FetchMaxWait(fetchTime))
	if err != nil {
		return fmt.Errorf("fetch from stream %s: %w", Stream, err)
	}
	for message := range batch.Messages() {
		room--
		under.Go(func() {
			defer func() { <-slots }()
			// What is under way is finished, though ctx ends: SendTimeMax bounds it.
			q.attend(context.WithoutCancel(ctx), message, send)
		})
	}
	if err := batch.Error(); err != nil {
		return fmt.Errorf("fetch from stream %s: %w", Stream, err)
	}
	return nil
}

// attend makes one attempt and tells the server what came of it. What it cannot tell is delivered again, which does no harm.
func (q *Queue) attend(ctx context.Context, message jetstream.Msg, send Send) {
	begun := time.Now()
	key := message.Subject()[len(waitingSubject):]
	logger := q.options.Logger.With(slog.String("request", key))
	meta, err := message.Metadata()
	if err != nil {
		logger.LogAttrs(ctx, slog.LevelError, "a request that waits came without its metadata", slog.Any("error", err))
		return
	}
	attempts := int(meta.NumDelivered)
	request, err := q.seal.Load().open(key, message.Data())
	reason := ""
	switch {
	case err != nil:
		reason = err.Error()
	case attempts > q.config.AttemptsMax: // Before it is sent: whoever sent it may have died of it.
		reason = fmt.Sprintf("no answer after %d attempts", attempts-1)
	default:
		answer := q.attempt(ctx, send, request)
		logger = logger.With(slog.String("method", request.Method), slog.Int("attempts", attempts))
		switch {
		case answer.Refusal != "":
			reason = answer.Refusal
		case answer.Outcome == outcome.Good:
			if err := acknowledge(ctx, message); err != nil {
				logger.LogAttrs(ctx, slog.LevelWarn, "a request was made and could not be removed; it is made again, without effect", slog.Any("error", err))
				return
			}
			q.stats.done.Add(1)
			return
		case attempts >= q.config.AttemptsMax || q.options.Now().Sub(meta.Timestamp) >= q.config.AgeMax:
			reason = fmt.Sprintf("no answer after %d attempts in %s, the last was %v: %v",
				attempts, q.options.Now().Sub(meta.Timestamp).Round(time.Second), answer.Outcome, answer.Err)
		}
	}
	if reason != "" {
		err := q.park(ctx, key, message.Data(), reason, attempts)
		if err == nil {
			err = acknowledge(ctx, message)
		}
		if err == nil {
			q.stats.parked.Add(1)
			logger.LogAttrs(ctx, slog.LevelError, "a request is parked; look at it, and retry or drop it", slog.String("reason", reason))
			return
		}
		logger.LogAttrs(ctx, slog.LevelError, "a request could not be parked; it waits on", slog.String("reason", reason), slog.Any("error", err))
	}
	q.stats.failed.Add(1)
	if err := message.NakWithDelay(q.delay(time.Since(begun))); err != nil {
		logger.LogAttrs(ctx, slog.LevelWarn, "a failed attempt could not be told; the request is made again all the same", slog.Any("error", err))
	}
}

// acknowledge removes a request from those that wait.
func acknowledge(ctx context.Context, message jetstream.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	return message.DoubleAck(ctx)
}

// attempt sends a request. A panic is an answer that will always be the same.
func (q *Queue) attempt(ctx context.Context, send Send, request Request) (answer Answer) {
	q.stats.attempts.Add(1)
	ctx, cancel := context.WithTimeout(ctx, q.config.SendTimeMax)
	defer cancel()
	defer func() {
		if bug := recover(); bug != nil {
			answer = Answer{Outcome: outcome.Fault, Refusal: fmt.Sprintf("sending it panicked: %v", bug)}
		}
	}()
	return send(ctx, request)
}

// delay returns how long after an attempt that took so long the next one is made: a period after it began, give or take a
// twentieth, so that what failed together does not come again together. The other twentieth is for the way.
func (q *Queue) delay(took time.Duration) time.Duration {
	period := time.Duration((0.95 + 0.1*rand.Float64()) * float64(q.config.Period))
	return max(period-took, q.config.Period/10)
}

// sleep waits and doubles the next pause. It reports whether ctx is still good.
func sleep(ctx context.Context, pause *time.Duration) bool {
	timer := time.NewTimer(*pause/2 + rand.N(*pause/2))
	defer timer.Stop()
	*pause = min(2**pause, pauseMax)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Stats says how a Queue stands, for metrics.
type Stats struct {
	// Waiting and Parked requests there are in all gateways' stream now.
	Waiting, Parked uint64
	// The rest counts what this gateway did: requests accepted, refused since the stream was full, attempts, those that failed,
	// requests done and parked.
	Accepted, Full, Attempts, Failed, Done, Parkings uint64
}

// Stats asks the server how many requests there are.
func (q *Queue) Stats(ctx context.Context) (Stats, error) {
	s := Stats{
		Accepted: q.stats.accepted.Load(), Full: q.stats.full.Load(), Attempts: q.stats.attempts.Load(), Failed: q.stats.failed.Load(),
		Done: q.stats.done.Load(), Parkings: q.stats.parked.Load(),
	}
	for stream, count := range map[jetstream.Stream]*uint64{q.waiting: &s.Waiting, q.parked: &s.Parked} {
		info, err := stream.Info(ctx)
		if err != nil {
			return s, fmt.Errorf("count the requests that wait: %w", err)
		}
		*count = info.State.Msgs
	}
	return s, nil
}

// Open makes the streams, or checks those that are there. It may be stopped at any point and called again.
func Open(ctx context.Context, nc *nats.Conn, config Config, options Options) (*Queue, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("failback: %w", err)
	}
	seal, err := newSealer(options.Key, options.OlderKeys...)
	if err != nil {
		return nil, fmt.Errorf("failback: %w", err)
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if most, needed := nc.MaxPayload(), int64(config.WithDefaults().RequestBytesMax+headerBytesMax); most < needed {
		return nil, fmt.Errorf("failback: the server takes messages of %d bytes at most, and request_bytes_max needs %d; lower it", most, needed)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("failback: %w", err)
	}
	q := &Queue{config: config.WithDefaults(), options: options, js: js}
	q.seal.Store(seal)
	waiting := q.streamConfig(Stream, waitingSubject, "Weir: requests that gateways make again until they are answered")
	waiting.Retention = jetstream.WorkQueuePolicy
	parked := q.streamConfig(ParkedStream, parkedSubject, "Weir: requests that gateways gave up")
	if q.waiting, err = q.provision(ctx, waiting); err != nil {
		return nil, fmt.Errorf("failback: %w", err)
	}
	if q.parked, err = q.provision(ctx, parked); err != nil {
		return nil, fmt.Errorf("failback: %w", err)
	}
	if _, err := q.waiting.CreateOrUpdateConsumer(ctx, q.consumerConfig()); err != nil {
		return nil, fmt.Errorf("failback: consumer %s of stream %s: %w", consumerName, Stream, err)
	}
	return q, nil
}

// beingCreated ends the description of a stream until its settings were written down once more: a server that is killed while it
// creates a stream may drop it at its next start, and only a change of the settings keeps it.
const beingCreated = " (being created)"

func (q *Queue) provision(ctx context.Context, config jetstream.StreamConfig) (jetstream.Stream, error) {
	stream, err := q.js.Stream(ctx, config.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		fresh := config
		fresh.Description += beingCreated
		if fresh.Replicas, err = q.copies(ctx); err == nil {
			stream, err = q.js.CreateStream(ctx, fresh)
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			stream, err = q.js.Stream(ctx, config.Name) // Another gateway was quicker.
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", config.Name, err)
	}
	found := stream.CachedInfo().Config
	switch {
	case found.Storage != jetstream.FileStorage || found.Retention != config.Retention || found.Discard != jetstream.DiscardNew ||
		found.MaxMsgsPerSubject != 1 || found.MaxAge != 0 || found.PersistMode == jetstream.AsyncPersistMode:
		return nil, fmt.Errorf("stream %s could lose requests: it has storage %v, retention %v, discard %v, %d messages a subject, max age %s; empty it and remove it",
			config.Name, found.Storage, found.Retention, found.Discard, found.MaxMsgsPerSubject, found.MaxAge)
	case found.Description == config.Description && found.MaxMsgs == config.MaxMsgs && found.MaxBytes == config.MaxBytes && found.MaxMsgSize == config.MaxMsgSize:
		return stream, nil
	}
	copies, err := q.copies(ctx)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", config.Name, err)
	}
	found.Replicas = max(found.Replicas, copies) // Somebody may be raising them at this moment.
	found.Description, found.MaxMsgs, found.MaxBytes, found.MaxMsgSize = config.Description, config.MaxMsgs, config.MaxBytes, config.MaxMsgSize
	if stream, err = q.js.UpdateStream(ctx, found); err != nil {
		return nil, fmt.Errorf("change the limits of stream %s: %w", config.Name, err)
	}
	return stream, nil
}

// copies is how many replicas the streams are to have.
func (q *Queue) copies(ctx context.Context) (int, error) {
	if q.config.Replicas != 0 {
		return q.config.Replicas, nil
	}
	return replicas.OfNodes(ctx, q.js)
}

func (q *Queue) streamConfig(name, subject, description string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Description: description, Subjects: []string{subject + "*"}, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardNew, MaxMsgs: int64(q.config.RequestsMax), MaxBytes: q.config.BytesMax, MaxMsgsPerSubject: 1,
		MaxMsgSize: int32(q.config.RequestBytesMax) + headerBytesMax,
	}
}

// headerBytesMax bounds the headers of a parked request.
const headerBytesMax = 4 << 10

func (q *Queue) consumerConfig() jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable: consumerName, AckPolicy: jetstream.AckExplicitPolicy, AckWait: q.config.ackWait(), MaxDeliver: -1,
		// All may be under way: one that waits for its next attempt holds up no other one.
		MaxAckPending: q.config.RequestsMax, MaxWaiting: 512,
	}
}
