package failback

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/eventstore/embedded/embeddedtest"
	"github.com/weirhq/weir/gateway/outcome"
)

var testKey = bytes.Repeat([]byte{7}, 32)

// quickly is a Config whose retries are not waited for long.
var quickly = Config{Period: 100 * time.Millisecond, SendTimeMax: 100 * time.Millisecond}

func open(t testing.TB, nc *nats.Conn, config Config) *Queue {
	t.Helper()
	q, err := Open(t.Context(), nc, config, Options{Key: testKey, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func openFresh(t testing.TB, config Config) *Queue {
	t.Helper()
	return open(t, embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Options{})), config)
}

func request(id string) Request {
	return Request{
		User: "u1", ID: id, Method: "/weir.order.v1.OrderService/AddNote",
		Header: map[string][]string{"Authorization": {"Bearer secret-token"}}, Body: []byte("ring twice at " + id),
	}
}

func accept(t testing.TB, q *Queue, requests ...Request) {
	t.Helper()
	for _, r := range requests {
		if err := q.Accept(t.Context(), r); err != nil {
			t.Fatalf("accept %s: %v", r.ID, err)
		}
	}
}

// A ledger is a node: it makes the effect of a request once, and answers as its script says.
type ledger struct {
	mu       sync.Mutex
	attempts map[string][]time.Time
	effects  map[string]int
	// answer may be nil: every request is done.
	answer func(ctx context.Context, r Request, attempt int) Answer
}

func (l *ledger) send(ctx context.Context, r Request) Answer {
	l.mu.Lock()
	if l.attempts == nil {
		l.attempts, l.effects = make(map[string][]time.Time), make(map[string]int)
	}
	l.attempts[r.ID] = append(l.attempts[r.ID], time.Now())
	attempt := len(l.attempts[r.ID])
	l.mu.Unlock()
	answer := Answer{Outcome: outcome.Good}
	if l.answer != nil {
		answer = l.answer(ctx, r, attempt)
	}
	if answer.Outcome == outcome.Good && answer.Refusal == "" {
		l.mu.Lock()
		l.effects[r.ID] = 1 // However often it came.
		l.mu.Unlock()
	}
	return answer
}

func (l *ledger) done() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.effects)
}

// run makes requests until the test ends.
func run(t testing.TB, q *Queue, send Send) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- q.Run(ctx, send) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run ended with %v", err)
		}
	})
}

// eventually waits for what must come to be.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s it is not so that %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func wantStats(t testing.TB, q *Queue, waiting, parked uint64) {
	t.Helper()
	var s Stats
	defer func() {
		if t.Failed() {
			t.Logf("stats are %+v", s)
		}
	}()
	eventually(t, fmt.Sprintf("%d requests wait and %d are parked", waiting, parked), func() bool {
		var err error
		if s, err = q.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s.Waiting == waiting && s.Parked == parked
	})
}

func TestARequestIsMadeAgainUntilItIsAnswered(t *testing.T) {
	q := openFresh(t, quickly)
	l := &ledger{answer: func(_ context.Context, r Request, attempt int) Answer {
		if r.Header["Authorization"][0] != "Bearer secret-token" || string(r.Body) != "ring twice at r1" || r.Method != request("r1").Method {
			return Answer{Outcome: outcome.Good, Refusal: fmt.Sprintf("it came as %+v", r)}
		}
		if attempt < 4 {
			return Answer{Outcome: []outcome.Outcome{outcome.Fault, outcome.Overload, outcome.Abandoned}[attempt-1], Err: errors.New("not yet")}
		}
		return Answer{Outcome: outcome.Good}
	}}
	accept(t, q, request("r1"))
	run(t, q, l.send)
	wantStats(t, q, 0, 0)
	times := l.attempts["r1"]
	if len(times) != 4 || l.done() != 1 {
		t.Fatalf("it was made %d times", len(times))
	}
	for i := 1; i < len(times); i++ {
		// How late it comes is the machine's business; the delay that is asked for has its own test.
		if gap := times[i].Sub(times[i-1]); gap < 90*time.Millisecond {
			t.Errorf("attempt %d came after %s, before the period of 100 ms less a tenth", i+1, gap)
		}
	}
}

func TestTheNextAttemptComesAPeriodAfterTheLastGiveOrTakeATenth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := &Queue{config: Config{}.WithDefaults()}
		took := time.Duration(rapid.Int64Range(0, int64(4*time.Second)).Draw(t, "took"))
		if after := took + q.delay(took); after < 4500*time.Millisecond || after > 5500*time.Millisecond {
			t.Fatalf("an attempt that took %s is followed by the next one %s after it began", took, after)
		}
	})
}

func TestTheSameRequestIsKeptOnceAndAnotherOneIsRefused(t *testing.T) {
	q := openFresh(t, quickly)
	r := request("r1")
	accept(t, q, r, r)
	r.Header = map[string][]string{"Authorization": {"Bearer renewed"}}
	accept(t, q, r)
	wantStats(t, q, 1, 0)
	r.Body = []byte("something else")
	if err := q.Accept(t.Context(), r); !errors.As(err, new(*ReusedError)) {
		t.Fatalf("another body under the same id: %v, want a *ReusedError", err)
	}
	r.User = "u2"
	accept(t, q, r)
	wantStats(t, q, 2, 0)
}

func TestAFullQueueSaysSoAndLosesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		config Config
		body   int
		want   int
	}{
		"requests": {Config{RequestsMax: 3, Period: quickly.Period}, 10, 3},
		"bytes":    {Config{BytesMax: 200 << 10, RequestBytesMax: 100 << 10, Period: quickly.Period}, 40 << 10, 3},
	} {
		t.Run(name, func(t *testing.T) {
			q := openFresh(t, c.config)
			kept := 0
			for i := range 10 {
				r := request(fmt.Sprint("r", i))
				r.Body = bytes.Repeat([]byte{1}, c.body)
				err := q.Accept(t.Context(), r)
				full := (*FullError)(nil)
				switch {
				case err == nil:
					kept++
				case !errors.As(err, &full) || full.RetryAfter <= 0 || int(full.Waiting) != kept:
					t.Fatalf("request %d: %v, want a *FullError", i, err)
				}
			}
			if kept != c.want {
				t.Fatalf("%d requests were kept, want %d", kept, c.want)
			}
			l := &ledger{}
			run(t, q, l.send)
			wantStats(t, q, 0, 0)
			if l.done() != kept {
				t.Fatalf("%d of %d were made", l.done(), kept)
			}
			accept(t, q, request("later"))
		})
	}
}

func TestARequestThatIsTooLargeOrNoneIsRefused(t *testing.T) {
	q := openFresh(t, Config{RequestBytesMax: 2 << 10})
	r := request("r1")
	r.Body = make([]byte, 3<<10)
	if err := q.Accept(t.Context(), r); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	for _, change := range []func(*Request){
		func(r *Request) { r.ID = "" }, func(r *Request) { r.User = "" }, func(r *Request) { r.Method = strings.Repeat("m", 300) },
	} {
		r := request("r1")
		change(&r)
		if err := q.Accept(t.Context(), r); err == nil {
			t.Errorf("%+v was kept", r)
		}
	}
	wantStats(t, q, 0, 0)
}

func TestPoisonIsParkedAndListedAndNeverDropped(t *testing.T) {
	q := openFresh(t, Config{Period: 50 * time.Millisecond, SendTimeMax: 50 * time.Millisecond, AttemptsMax: 3})
	healed := false
	l := &ledger{}
	l.answer = func(_ context.Context, r Request, _ int) Answer {
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case healed:
		case r.ID == "refused":
			return Answer{Outcome: outcome.Good, Refusal: "OUT_OF_STOCK:\nsku tea"}
		case r.ID == "panics":
			panic("a bug")
		case r.ID == "never":
			return Answer{Outcome: outcome.Fault, Err: errors.New("503")}
		}
		return Answer{Outcome: outcome.Good}
	}
	accept(t, q, request("refused"), request("panics"), request("never"), request("fine"))
	// Somebody else's message, or one that was sealed with another key.
	if _, err := q.js.Publish(t.Context(), waitingSubject+"strange", []byte("\x01what is this")); err != nil {
		t.Fatal(err)
	}
	run(t, q, l.send)
	wantStats(t, q, 0, 4)
	if l.done() != 1 {
		t.Fatalf("%d requests were made", l.done())
	}

	list, err := q.Parked(t.Context(), "", 100)
	if err != nil || len(list) != 4 {
		t.Fatalf("listed %v, %v", list, err)
	}
	reasons := map[string]string{"refused": "OUT_OF_STOCK: sku tea", "panics": "a bug", "never": "no answer after 3 attempts", "": "another key"}
	for i, p := range list {
		if (p.Unreadable != nil) != (p.Request.ID == "") {
			t.Errorf("%s: %+v", p.Key, p)
		}
		if want := reasons[p.Request.ID]; strings.Contains(want, "another key") {
			if !strings.Contains(p.Reason, "this gateway's key") || p.Key != "strange" {
				t.Errorf("%s is parked for %q", p.Key, p.Reason)
			}
		} else if !strings.Contains(p.Reason, want) {
			t.Errorf("%s is parked for %q, want %q", p.Request.ID, p.Reason, want)
		}
		rest, err := q.Parked(t.Context(), p.Key, 2)
		if err != nil || len(rest) != min(2, len(list)-i-1) || len(rest) > 0 && rest[0].Key != list[i+1].Key {
			t.Errorf("after %d: %v, %v", i, rest, err)
		}
	}

	l.mu.Lock()
	healed = true
	l.mu.Unlock()
	for _, p := range list {
		err := q.Retry(t.Context(), p.Key)
		if (err != nil) != (p.Unreadable != nil) {
			t.Errorf("retry %s: %v", p.Key, err)
		}
	}
	wantStats(t, q, 0, 1)
	if l.done() != 4 {
		t.Errorf("%d requests were made", l.done())
	}
	if err := q.Drop(t.Context(), "strange"); err != nil {
		t.Error(err)
	}
	wantStats(t, q, 0, 0)
	for _, key := range []string{"strange", "*", ">", ""} {
		if err := q.Drop(t.Context(), key); !errors.Is(err, ErrNotParked) {
			t.Errorf("drop %q: %v, want ErrNotParked", key, err)
		}
	}
}

// Dropping it said that the server could not delete it.
func TestAParkedRequestThatIsParkedAgainMeanwhileIsNoError(t *testing.T) {
	q := openFresh(t, Config{})
	r := request("again")
	park := func() Parked {
		t.Helper()
		if err := q.park(t.Context(), r.key(), q.seal.Load().seal(r), "no", 1); err != nil {
			t.Fatal(err)
		}
		p, err := q.parkedAt(t.Context(), r.key())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second := park(), park()
	if err := q.remove(t.Context(), first); err != nil {
		t.Errorf("what has another one in its place cannot be removed: %v", err)
	}
	if found, err := q.parkedAt(t.Context(), r.key()); err != nil || found.position != second.position {
		t.Errorf("what was parked since is at %d, %v; want %d", found.position, err, second.position)
	}
}

func TestARequestThatNobodyAnswersIsParkedWhenItIsOld(t *testing.T) {
	now := time.Now()
	var mu sync.Mutex
	q, err := Open(t.Context(), embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Options{})), quickly, Options{
		Key: testKey, Logger: slog.New(slog.DiscardHandler),
		Now: func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return now
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &ledger{answer: func(context.Context, Request, int) Answer { return Answer{Outcome: outcome.Fault} }}
	accept(t, q, request("r1"))
	run(t, q, l.send)
	eventually(t, "it was made three times", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.attempts["r1"]) >= 3
	})
	wantStats(t, q, 1, 0)
	mu.Lock()
	now = now.Add(25 * time.Hour)
	mu.Unlock()
	wantStats(t, q, 0, 1)
}

func TestWhatCannotBeParkedWaitsOn(t *testing.T) {
	q := openFresh(t, Config{RequestsMax: 2, Period: 50 * time.Millisecond})
	l := &ledger{answer: func(_ context.Context, r Request, _ int) Answer {
		return Answer{Outcome: outcome.Good, Refusal: "no"}
	}}
	run(t, q, l.send)
	accept(t, q, request("r1"), request("r2"))
	wantStats(t, q, 0, 2)
	accept(t, q, request("r3"))
	eventually(t, "r3 was made again", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.attempts["r3"]) >= 3
	})
	wantStats(t, q, 1, 2)
	list, err := q.Parked(t.Context(), "", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Drop(t.Context(), list[0].Key); err != nil {
		t.Fatal(err)
	}
	wantStats(t, q, 0, 2)
}

// Dubbo's failback is blocked by its head task.
func TestRequestsThatHangHoldUpNoOther(t *testing.T) {
	q := openFresh(t, Config{Period: 200 * time.Millisecond, SendTimeMax: 30 * time.Second})
	release := make(chan struct{})
	l := &ledger{answer: func(ctx context.Context, r Request, _ int) Answer {
		if strings.HasPrefix(r.ID, "hangs") {
			<-release
		}
		return Answer{Outcome: outcome.Good}
	}}
	run(t, q, l.send)
	defer close(release)
	for i := range 50 {
		accept(t, q, request(fmt.Sprint("hangs", i)))
	}
	eventually(t, "50 hang", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.attempts) == 50
	})
	for i := range 100 {
		accept(t, q, request(fmt.Sprint("quick", i)))
	}
	eventually(t, "100 others were made", func() bool { return l.done() == 100 })
}

func TestTheServerMayGoAwayAndComeBack(t *testing.T) {
	server := embeddedtest.Start(t, embedded.Options{})
	q := open(t, embeddedtest.Connect(t, server), quickly)
	l := &ledger{}
	broken := true
	l.answer = func(context.Context, Request, int) Answer {
		l.mu.Lock()
		defer l.mu.Unlock()
		if broken {
			return Answer{Outcome: outcome.Fault}
		}
		return Answer{Outcome: outcome.Good}
	}
	accept(t, q, request("r1"))
	run(t, q, l.send)
	server.Shutdown()
	kept := make(chan error, 1)
	ctx, end := context.WithTimeout(t.Context(), 30*time.Second)
	defer end()
	go func() { kept <- q.Accept(ctx, request("r2")) }()
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	if err := <-kept; err != nil {
		t.Fatalf("a request that came while the server was away: %v", err)
	}
	l.mu.Lock()
	broken = false
	l.mu.Unlock()
	eventually(t, "both were made", func() bool { return l.done() == 2 })
}

func TestAnAcknowledgementThatDoesNotComeIsAnErrorThatSaysSo(t *testing.T) {
	server := embeddedtest.Start(t, embedded.Options{})
	q := open(t, embeddedtest.Connect(t, server), quickly)
	server.Shutdown()
	ctx, end := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer end()
	if err := q.Accept(ctx, request("r1")); err == nil || !strings.Contains(err.Error(), "may have been kept") {
		t.Fatalf("got %v", err)
	}
}

func TestAConsumerThatSomebodyRemovesIsMadeAgain(t *testing.T) {
	q := openFresh(t, quickly)
	l := &ledger{}
	run(t, q, l.send)
	accept(t, q, request("r1"))
	eventually(t, "it was made", func() bool { return l.done() == 1 })
	if err := q.waiting.DeleteConsumer(t.Context(), consumerName); err != nil {
		t.Fatal(err)
	}
	accept(t, q, request("r2"))
	eventually(t, "it was made", func() bool { return l.done() == 2 })
}

func TestGatewaysShareTheWork(t *testing.T) {
	server := embeddedtest.Start(t, embedded.Options{})
	l := &ledger{}
	var queues []*Queue
	for range 3 {
		queues = append(queues, open(t, embeddedtest.Connect(t, server), Config{}))
	}
	for i := range 200 {
		accept(t, queues[i%3], request(fmt.Sprint("r", i)))
	}
	for _, q := range queues {
		run(t, q, l.send)
	}
	wantStats(t, queues[0], 0, 0)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.effects) != 200 {
		t.Fatalf("%d of 200 were made", len(l.effects))
	}
}

// A gateway that is gone has told nothing of its attempts.
func TestARequestWhoseGatewayDiesIsMadeByAnother(t *testing.T) {
	server := embeddedtest.Start(t, embedded.Options{})
	dying, surviving := embeddedtest.Connect(t, server), embeddedtest.Connect(t, server)
	q := open(t, dying, quickly)
	accept(t, q, request("r1"))
	hangs := make(chan struct{})
	run(t, q, func(context.Context, Request) Answer {
		dying.Close()
		close(hangs)
		return Answer{Outcome: outcome.Good}
	})
	<-hangs
	l := &ledger{}
	run(t, open(t, surviving, quickly), l.send)
	eventually(t, "it was made", func() bool { return l.done() == 1 })
}

func TestWhatIsKeptCannotBeReadWithoutTheKey(t *testing.T) {
	nc := embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Options{}))
	q := open(t, nc, quickly)
	accept(t, q, request("r1"))
	message, err := q.waiting.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprint(message.Subject, message.Header, string(message.Data))
	for _, secret := range []string{"ring twice", "secret-token", "u1", "r1", "AddNote"} {
		if strings.Contains(all, secret) {
			t.Errorf("%q is there in the clear", secret)
		}
	}
	// Nor can one be put in another one's place.
	if _, err := q.seal.Load().open(request("r2").key(), message.Data); err == nil {
		t.Error("a record is read under another name")
	}
	if _, err := Open(t.Context(), nc, quickly, Options{Key: []byte("short")}); err == nil || !strings.Contains(err.Error(), "32") {
		t.Errorf("a short key: %v", err)
	}
}

func TestAStreamThatCouldLoseRequestsIsNotUsed(t *testing.T) {
	nc := embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Options{}))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: Stream, Subjects: []string{waitingSubject + "*"}, Storage: jetstream.MemoryStorage,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), nc, quickly, Options{Key: testKey}); err == nil || !strings.Contains(err.Error(), "could lose requests") {
		t.Fatalf("got %v", err)
	}
}

func TestLimitsChangeWithTheConfig(t *testing.T) {
	nc := embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Options{}))
	accept(t, open(t, nc, Config{RequestsMax: 1}), request("r1"))
	q := open(t, nc, Config{RequestsMax: 2})
	accept(t, q, request("r2"))
	if err := q.Accept(t.Context(), request("r3")); !errors.As(err, new(*FullError)) {
		t.Fatalf("got %v, want a *FullError", err)
	}
}

func TestRunEndsWhenItsAttemptsHave(t *testing.T) {
	q := openFresh(t, quickly)
	accept(t, q, request("r1"))
	ctx, stop := context.WithCancel(t.Context())
	begun, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	l := &ledger{answer: func(context.Context, Request, int) Answer {
		close(begun)
		<-release
		return Answer{Outcome: outcome.Good}
	}}
	go func() { ended <- q.Run(ctx, l.send) }()
	<-begun
	stop()
	select {
	case err := <-ended:
		t.Fatalf("it ended with %v while an attempt was under way", err)
	default:
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	wantStats(t, q, 0, 0)
}

func TestConfigsThatAreNoneAreRefused(t *testing.T) {
	for name, config := range map[string]Config{
		"period": {Period: -1}, "send_time_max": {SendTimeMax: 1}, "age_max": {AgeMax: -1}, "sends_max": {SendsMax: -1}, "requests_max": {RequestsMax: -1},
		"attempts_max": {AttemptsMax: -1}, "request_bytes_max": {RequestBytesMax: 10}, "bytes_max": {BytesMax: 5}, "replicas": {Replicas: 2},
	} {
		if err := config.Validate(); err == nil || !strings.HasPrefix(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the zero Config: %v", err)
	}
	nc := embeddedtest.Connect(t, embeddedtest.Start(t, embedded.Options{}))
	config := Config{RequestBytesMax: requestBytesLimit, BytesMax: 1 << 30}
	if nc.MaxPayload() < requestBytesLimit {
		t.Fatal("the test's server takes too little")
	}
	if _, err := Open(t.Context(), nc, config, Options{Key: testKey}); err != nil {
		t.Error(err)
	}
}

// BenchmarkPeriod measures how long after an attempt the next one comes, with the default period of 5 s; -benchtime 8x is eight
// of them.
func BenchmarkPeriod(b *testing.B) {
	q := openFresh(b, Config{})
	times := make(chan time.Time, 1)
	run(b, q, func(ctx context.Context, _ Request) Answer {
		select {
		case times <- time.Now():
		case <-ctx.Done(): // Nobody measures any more.
		}
		return Answer{Outcome: outcome.Fault}
	})
	accept(b, q, request("r1"))
	last := <-times
	shortest, longest := time.Hour, time.Duration(0)
	for b.Loop() {
		now := <-times
		shortest, longest = min(shortest, now.Sub(last)), max(longest, now.Sub(last))
		last = now
	}
	b.ReportMetric(shortest.Seconds(), "s-shortest")
	b.ReportMetric(longest.Seconds(), "s-longest")
}

func TestWhatAnOlderKeySealedIsMadeWhileItIsThere(t *testing.T) {
	q := openFresh(t, quickly)
	newer, newest := bytes.Repeat([]byte("n"), 32), bytes.Repeat([]byte("m"), 32)
	accept(t, q, request("r1"))
	if err := q.SetKeys(newer, testKey); err != nil {
		t.Fatal(err)
	}
	accept(t, q, request("r1"), request("r2")) // The one is there already.
	if err := q.SetKeys([]byte("short")); err == nil {
		t.Error("a short key was taken")
	}
	if err := q.SetKeys(newest, newer); err != nil { // Too early for r1.
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"r1": false, "r2": true} {
		found, err := q.waiting.GetLastMsgForSubject(t.Context(), waitingSubject+request(id).key())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := q.seal.Load().open(request(id).key(), found.Data); (err == nil) != want || (want && got.ID != id) {
			t.Errorf("%s: %+v, %v, want that it can be read: %t", id, got, err, want)
		}
	}
}
