package eventstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/weirhq/weir/eventstore/embedded"
)

// posts returns the Posts of two nodes on one server, and their connections.
func posts(t *testing.T, options PostOptions) (asks, answers *Post, askConn, answerConn *nats.Conn) {
	t.Helper()
	setDefault(&options.FreshMax, time.Hour) // A slow machine is not to be what a test is about.
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	askConn, answerConn = connectTo(t, server), connectTo(t, server)
	return NewPost(askConn, options), NewPost(answerConn, options), askConn, answerConn
}

// serveOn answers a subject until the test ends, and returns once the server knows.
func serveOn(t *testing.T, p *Post, subject string, inFlightMax int, answer func(context.Context, []byte) []byte) *Service {
	t.Helper()
	service, err := p.Serve(context.WithoutCancel(t.Context()), subject, inFlightMax, answer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Close)
	if err := p.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return service
}

// meet gets a stamp of whoever answers a subject: the first question there is never taken.
func meet(t *testing.T, asks *Post, subject string) {
	t.Helper()
	if _, err := asks.Ask(t.Context(), subject, nil, 0); !errors.Is(err, ErrLate) {
		t.Fatalf("the first question was not told to be late: %v", err)
	}
}

func echo(_ context.Context, question []byte) []byte { return append([]byte("re: "), question...) }

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestAQuestionIsAnswered(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{})
	serveOn(t, answers, "q", 8, echo)
	meet(t, asks, "q")
	got, err := asks.Ask(t.Context(), "q", []byte("hello"), 0)
	if err != nil || string(got) != "re: hello" {
		t.Fatalf("got %q, %v", got, err)
	}
}

func TestAQuestionThatNobodyAnswersIsKnownNotToBeTaken(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{})
	if _, err := asks.Ask(t.Context(), "q", nil, 0); !errors.Is(err, ErrNobodyAnswers) {
		t.Fatalf("before anybody answers: got %v, want ErrNobodyAnswers", err)
	}
	service := serveOn(t, answers, "q", 8, echo)
	service.Close()
	if _, err := asks.Ask(t.Context(), "q", nil, 0); !errors.Is(err, ErrNobodyAnswers) {
		t.Fatalf("after it is closed: got %v, want ErrNobodyAnswers", err)
	}
}

func TestWhoeverAnswersKnowsHowLongIsWaitedForIt(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{BudgetMax: time.Minute})
	budgets := make(chan time.Duration, 1)
	serveOn(t, answers, "q", 8, func(ctx context.Context, _ []byte) []byte {
		deadline, _ := ctx.Deadline()
		budgets <- time.Until(deadline)
		return []byte("yes")
	})
	meet(t, asks, "q")
	for _, c := range []struct {
		asked, most time.Duration
	}{{10 * time.Second, 10 * time.Second}, {time.Hour, time.Minute}} {
		if _, err := asks.Ask(within(t, c.asked), "q", nil, 0); err != nil {
			t.Fatal(err)
		}
		// Generous below: the machine may be slow, and cannot be fast.
		if got := <-budgets; got > c.most || got < c.most/2 {
			t.Errorf("asked with %s to go: it has %s, want about %s", c.asked, got, c.most)
		}
	}
}

func TestALostAnswerIsAnUnknownOutcome(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{})
	serveOn(t, answers, "q", 8, func(context.Context, []byte) []byte { return nil })
	meet(t, asks, "q")
	if _, err := asks.Ask(t.Context(), "q", nil, 20*time.Millisecond); !errors.Is(err, ErrAnswerLost) {
		t.Fatalf("the wait is over: got %v, want ErrAnswerLost", err)
	}
	ctx := within(t, 20*time.Millisecond)
	if _, err := asks.Ask(ctx, "q", nil, 0); !errors.Is(err, ErrAnswerLost) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the deadline passed: got %v, want ErrAnswerLost and the context's", err)
	}
}

func TestNoMoreQuestionsAreTakenThanThereArePlaces(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{})
	const places = 3
	var most, now atomic.Int32
	var taken sync.WaitGroup
	taken.Add(places)
	leave := make(chan struct{})
	serveOn(t, answers, "q", places, func(context.Context, []byte) []byte {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		taken.Done()
		<-leave
		return []byte("yes")
	})
	meet(t, asks, "q")
	outcomes := make(chan error, places)
	for range places {
		go func() {
			_, err := asks.Ask(context.Background(), "q", nil, 0)
			outcomes <- err
		}()
	}
	taken.Wait()
	if _, err := asks.Ask(t.Context(), "q", nil, 0); !errors.Is(err, ErrBusy) {
		t.Errorf("one more: got %v, want ErrBusy", err)
	}
	close(leave)
	for range places {
		if err := <-outcomes; err != nil {
			t.Errorf("one that was taken: %v", err)
		}
	}
	if most.Load() > places {
		t.Errorf("%d were answered at a time, want at most %d", most.Load(), places)
	}
}

func TestWhatIsTooLargeIsRefusedByName(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{BytesMax: 1000})
	serveOn(t, answers, "q", 8, func(context.Context, []byte) []byte { return make([]byte, 1001) })
	meet(t, asks, "q")
	var tooLarge *TooLargeError
	if _, err := asks.Ask(t.Context(), "q", make([]byte, 1001), 0); !errors.As(err, &tooLarge) || tooLarge.What != "question" || tooLarge.Bytes != 1001 {
		t.Errorf("a question: got %v", err)
	}
	if _, err := asks.Ask(t.Context(), "q", make([]byte, 1000), 0); !errors.As(err, &tooLarge) || tooLarge.What != "answer" || tooLarge.BytesMax != 1000 {
		t.Errorf("an answer: got %v", err)
	}
	if err := asks.Send("q", make([]byte, 1001)); !errors.As(err, &tooLarge) {
		t.Errorf("a message: got %v", err)
	}
	if err := tooLarge.Error(); !strings.Contains(err, "1000") {
		t.Errorf("%q does not say how large it may be", err)
	}
}

func TestWhatGoesAlongWithAQuestionComesWithIt(t *testing.T) {
	type key struct{}
	asks, answers, _, _ := posts(t, PostOptions{
		Inject: func(ctx context.Context, set func(string, string)) {
			trace, _ := ctx.Value(key{}).(string)
			set("traceparent", trace)
		},
		Extract: func(ctx context.Context, get func(string) string) context.Context {
			return context.WithValue(ctx, key{}, get("traceparent"))
		},
	})
	serveOn(t, answers, "q", 8, func(ctx context.Context, _ []byte) []byte { return fmt.Append(nil, ctx.Value(key{})) })
	meet(t, asks, "q")
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	got, err := asks.Ask(context.WithValue(t.Context(), key{}, trace), "q", nil, 0)
	if err != nil || string(got) != trace {
		t.Fatalf("got %q, %v, want %q", got, err, trace)
	}
}

func TestWhatIsTakenIsAnsweredBeforeAServiceCloses(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{})
	taken, leave := make(chan struct{}), make(chan struct{})
	service := serveOn(t, answers, "q", 8, func(context.Context, []byte) []byte {
		close(taken)
		<-leave
		return []byte("yes")
	})
	meet(t, asks, "q")
	outcome := make(chan error, 1)
	go func() {
		_, err := asks.Ask(context.Background(), "q", nil, 0)
		outcome <- err
	}()
	<-taken
	closed := make(chan struct{})
	go func() {
		service.Close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Fatal("it closed with a question to answer")
	case <-service.ended: // No more will come; what was taken is under way.
	}
	close(leave)
	if err := <-outcome; err != nil {
		t.Errorf("the question that was taken: %v", err)
	}
	<-closed
}

func TestAServiceClosesOnAConnectionThatIsGone(t *testing.T) {
	_, answers, _, conn := posts(t, PostOptions{})
	service := serveOn(t, answers, "q", 8, echo)
	conn.Close()
	service.Close()
	if _, err := answers.Serve(t.Context(), "q", 8, echo); err == nil {
		t.Error("a closed connection answers")
	}
}

func TestMessagesAreHeardInOrder(t *testing.T) {
	asks, answers, _, _ := posts(t, PostOptions{})
	heard := make(chan string, 100)
	service, err := answers.Hear("m", 100, func(message []byte) { heard <- string(message) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Close)
	if err := answers.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := asks.Send("m", fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		if got := <-heard; got != fmt.Sprint(i) {
			t.Fatalf("message %d: got %s", i, got)
		}
	}
}

// A clock that only a test moves.
type handClock struct{ nanos atomic.Int64 }

func (c *handClock) now() time.Time          { return time.Unix(0, c.nanos.Load()) }
func (c *handClock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

// What a cut network holds back, it delivers when it is joined up again.
func TestAQuestionThatWasHeldBackIsNotTaken(t *testing.T) {
	clock := &handClock{}
	asks, answers, _, conn := posts(t, PostOptions{FreshMax: time.Second, Clock: clock.now})
	var taken atomic.Int32
	serveOn(t, answers, "q", 8, func(context.Context, []byte) []byte {
		taken.Add(1)
		return []byte("yes")
	})
	meet(t, asks, "q")
	held, err := conn.SubscribeSync("q")
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := asks.Ask(t.Context(), "q", []byte("hello"), 0); err != nil {
		t.Fatal(err)
	}
	question, err := held.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		later time.Duration
		want  int32
	}{{time.Second, 2}, {time.Millisecond, 2}, {time.Hour, 2}} {
		clock.advance(c.later)
		answer, err := conn.RequestMsg(&nats.Msg{Subject: "q", Data: question.Data, Header: question.Header}, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if got := taken.Load(); got != c.want {
			t.Errorf("at %s it was taken %d times, want %d", clock.now().Sub(time.Unix(0, 0)), got, c.want)
		}
		if late := answer.Header.Get(statusHeader) == statusLate; late != (clock.now().Sub(time.Unix(0, 0)) > time.Second) {
			t.Errorf("at %s: told to be late: %t", clock.now().Sub(time.Unix(0, 0)), late)
		}
	}
	// Whoever asked is told, and asks again with the stamp that came along.
	if _, err := asks.Ask(t.Context(), "q", nil, 0); !errors.Is(err, ErrLate) {
		t.Errorf("a stamp of an hour ago: got %v, want ErrLate", err)
	}
	if _, err := asks.Ask(t.Context(), "q", nil, 0); err != nil {
		t.Errorf("asked again: %v", err)
	}
}

func TestStampsOfOthersAndGarbageAreNotTakenForOwnOnes(t *testing.T) {
	asks, answers, _, conn := posts(t, PostOptions{})
	serveOn(t, answers, "q", 8, echo)
	for _, stamp := range []string{noStamp, asks.stamp(), answers.process, answers.process + "x", answers.process + "9223372036854775808", "0"} {
		answer, err := conn.RequestMsg(&nats.Msg{Subject: "q", Header: nats.Header{stampHeader: {stamp}}}, 10*time.Second)
		if err != nil || answer.Header.Get(statusHeader) != statusLate {
			t.Errorf("stamp %q: %v, %v", stamp, answer, err)
		}
	}
	// A program that knows no stamps gives none.
	if answer, err := conn.Request("q", []byte("hello"), 10*time.Second); err != nil || string(answer.Data) != "re: hello" {
		t.Errorf("no stamp: %v, %v", answer, err)
	}
}

// While a lane is handed over two answer for it: a question that carried the stamp of one alone was too old for the other, whose answer might come first.
func TestAQuestionIsFreshForAllWhoAnswer(t *testing.T) {
	const questions = 100
	asks, answers, _, conn := posts(t, PostOptions{FreshMax: time.Hour})
	for _, post := range []*Post{answers, NewPost(conn, PostOptions{FreshMax: time.Hour})} {
		serveOn(t, post, "q", questions, echo) // One of them may be slow: nobody waits for the second answer.
	}
	meet(t, asks, "q")
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	late := 0
	for range questions {
		if _, err := asks.Ask(t.Context(), "q", []byte("hello"), 0); errors.Is(err, ErrLate) {
			late++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if late > 2 {
		t.Errorf("%d of %d questions were too old, want one for each who answers at the most", late, questions)
	}
}
