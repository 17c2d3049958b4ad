package eventstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/weirhq/weir/eventstore/embedded"
)

// openLoose opens lane 0 on a stream that, unlike a provisioned one, lets messages be deleted.
func openLoose(t *testing.T, nc *nats.Conn) (Log, jetstream.Stream) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	config := laneStream(0, 1, -1, MaxMessageSize)
	config.DenyDelete = false
	stream, err := js.CreateStream(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	return openLanes(t, nc, 0, 1), stream
}

func wantChainError(t *testing.T, err error, number uint64) {
	t.Helper()
	if damage := (*ChainError)(nil); !errors.As(err, &damage) || damage.Number != number {
		t.Fatalf("got %v, want a *ChainError at commit %d (I2)", err, number)
	}
}

func TestAMissingCommitIsNoticedByEveryReader(t *testing.T) {
	log, stream := openLoose(t, connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()})))
	records := chainOf(t, 0, Genesis(0, 1), 8, 1000)
	appendAll(t, log, records)
	for _, number := range []uint64{4, 8} { // In the middle, and at the end, where nothing follows that shows the gap.
		if err := stream.DeleteMsg(t.Context(), number); err != nil {
			t.Fatal(err)
		}
	}
	_, err := log.Read(t.Context(), 4)
	wantChainError(t, err, 4)
	_, err = log.Read(t.Context(), 8)
	wantChainError(t, err, 8)
	if _, err := log.Read(t.Context(), 9); !errors.Is(err, ErrNoCommit) {
		t.Fatalf("after the end: got %v, want ErrNoCommit", err)
	}
	first := follow(t, log, 1)
	for _, record := range records[:3] {
		wantNext(t, first, record)
	}
	for range 2 { // It stays where it is.
		_, err = first.Next(t.Context())
		wantChainError(t, err, 4)
	}
	last := follow(t, log, 5)
	for _, record := range records[4:7] {
		wantNext(t, last, record)
	}
	_, err = last.Next(t.Context())
	wantChainError(t, err, 8)
}

func TestAForeignMessageInTheStreamIsNoticed(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	log, _ := openLoose(t, nc)
	records := chainOf(t, 0, Genesis(0, 1), 1, 1000)
	appendAll(t, log, records)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), SubjectName(0), []byte("no commit")); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), SubjectName(0), []byte("no commit"), jetstream.WithMsgID(records[0].Hash.String()+"0")); err != nil {
		t.Fatal(err)
	}
	cursor := follow(t, log, 1)
	wantNext(t, cursor, records[0])
	_, err = cursor.Next(t.Context())
	wantChainError(t, err, 2)
	for number := uint64(2); number <= 3; number++ {
		_, err = log.Read(t.Context(), number)
		wantChainError(t, err, number)
	}
}

// A server that finds a flipped byte drops the rest of the block at its next start and reports nothing.
func TestAFlippedByteIsNoticedAfterARestart(t *testing.T) {
	dir := t.TempDir()
	server := startServer(t, embedded.Options{Dir: dir})
	nc := connectTo(t, server)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), laneStream(0, 1, -1, MaxMessageSize)); err != nil {
		t.Fatal(err)
	}
	log := openLanes(t, nc, 0, 1)
	records := chainOf(t, 0, Genesis(0, 1), 20, 20_000)
	appendAll(t, log, records)
	witness, err := OpenWitness(filepath.Join(t.TempDir(), "witness"))
	if err != nil {
		t.Fatal(err)
	}
	witness.Note(0, position(records[19]))
	if err := witness.Check(t.Context(), 0, log); err != nil {
		t.Fatal(err)
	}
	nc.Close()
	server.Shutdown()

	block := filepath.Join(streamDir(dir, StreamName(0)), "msgs", "1.blk")
	bytes, err := os.ReadFile(block)
	if err != nil {
		t.Fatal(err)
	}
	bytes[len(bytes)/2] ^= 1
	if err := os.WriteFile(block, bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	// The server trusts its index as long as that is newer than the block.
	if err := os.Remove(filepath.Join(streamDir(dir, StreamName(0)), "msgs", "index.db")); err != nil {
		t.Fatal(err)
	}

	server = startServer(t, embedded.Options{Dir: dir})
	nc = connectTo(t, server)
	log = openLanes(t, nc, 0, 1)
	err = witness.Check(t.Context(), 0, log)
	lost, damage := (*WitnessError)(nil), (*ChainError)(nil)
	if !errors.As(err, &lost) && !errors.As(err, &damage) {
		t.Fatalf("the witness says %v about a log that lost commits", err)
	}
	_, err = Provision(t.Context(), nc, ProvisionOptions{Topology: Topology{Lanes: 1}, Known: witness.Known()})
	if missing := (*MissingLogError)(nil); !errors.As(err, &missing) {
		t.Fatalf("provision: got %v, want a *MissingLogError", err)
	}
}

func TestAServerWithoutSpaceMakesTheLogFull(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir(), MaxBytes: 300_000}))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), laneStream(0, 1, -1, MaxMessageSize)); err != nil {
		t.Fatal(err)
	}
	log := openLanes(t, nc, 0, 1)
	records := chainOf(t, 0, Genesis(0, 1), 10, 64<<10)
	for i, record := range records {
		err := log.Append(record).Wait(t.Context())
		if errors.Is(err, ErrLogFull) && i > 0 {
			atHead(t, log, uint64(i))
			return
		}
		if err != nil {
			t.Fatalf("append commit %d: %v", record.Number, err)
		}
	}
	t.Fatal("the log was never full")
}

func TestALaneWithoutAStreamIsMissing(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	_, err := OpenJetStream(t.Context(), nc, Topology{Lanes: 2}, JetStreamOptions{})
	if missing := (*MissingLogError)(nil); !errors.As(err, &missing) || missing.Lane != 0 {
		t.Fatalf("got %v, want a *MissingLogError for lane 0", err)
	}
}

func TestAnAppendWithoutAServerIsUnknown(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	nc := connectTo(t, server)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), laneStream(0, 1, -1, MaxMessageSize)); err != nil {
		t.Fatal(err)
	}
	s, err := OpenJetStream(t.Context(), nc, Topology{Lanes: 1}, JetStreamOptions{AppendTimeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	records := chainOf(t, 0, Genesis(0, 1), 3, 100)
	appendAll(t, s.Log(0), records[:1])
	if err := js.DeleteStream(t.Context(), StreamName(0)); err != nil {
		t.Fatal(err)
	}
	if err := s.Log(0).Append(records[1]).Wait(t.Context()); !errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("nobody listens: got %v, want ErrUnknownOutcome", err)
	}
	server.Shutdown()
	if err := s.Log(0).Append(records[1]).Wait(t.Context()); !errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("no server: got %v, want ErrUnknownOutcome", err)
	}
	nc.Close()
	if err := s.Log(0).Append(records[2]).Wait(t.Context()); !errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("no connection: got %v, want ErrUnknownOutcome", err)
	}
	s.Close()
}

// A leader that was killed with an append on its way to it never answers, and its successor can.
func TestAnAppendThatNobodyAnswersIsPublishedAgain(t *testing.T) {
	const inProcess = `{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"}}`
	for name, answers := range map[string][]string{
		"the first is lost":                 {"", `{"stream":"ORDERS-00","seq":1}`},
		"all but the last are lost":         {"", "", "", `{"stream":"ORDERS-00","seq":1,"duplicate":true}`},
		"the first is slow and told later":  {"", inProcess, "first"},
		"the second says that it is stored": {"", inProcess, inProcess, `{"stream":"ORDERS-00","seq":1,"duplicate":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
			// No stream: this test is the leader.
			s, err := openJetStream(t.Context(), nc, Topology{Lanes: 1}, JetStreamOptions{AppendTimeout: time.Hour, AppendAgain: time.Millisecond}, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var first *nats.Msg
			var arrived atomic.Int64
			if _, err := nc.Subscribe(SubjectName(0), func(m *nats.Msg) {
				number := arrived.Add(1)
				if number == 1 {
					first = m
				}
				if m.Header.Get(jetstream.MsgIDHeader) != first.Header.Get(jetstream.MsgIDHeader) || m.Header.Get(jetstream.ExpectedLastSeqHeader) != "0" || string(m.Data) != string(first.Data) {
					t.Errorf("attempt %d is not the same: %v", number, m.Header)
				}
				answer := answers[min(number, int64(len(answers)))-1]
				to := m
				if answer == "first" {
					to, answer = first, `{"stream":"ORDERS-00","seq":1}`
				}
				if answer == "" {
					return
				}
				if err := to.Respond([]byte(answer)); err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			pending := s.Log(0).Append(chainOf(t, 0, Genesis(0, 1), 1, 100)[0])
			if err := pending.Wait(ctx); err != nil {
				t.Fatalf("after %d attempts: %v", arrived.Load(), err)
			}
			if got := arrived.Load(); got < int64(len(answers)) {
				t.Errorf("it arrived %d times, want %d at least", got, len(answers))
			}
		})
	}
}

// Where acknowledgements come within milliseconds, an append that a leader took with it when it stopped waited for half a second.
func TestAnAppendIsTakenForLostSoonWhereAcknowledgementsAreQuick(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	// No stream: this test is the leader. What is waited for in vain fails the test.
	s, err := openJetStream(t.Context(), nc, Topology{Lanes: 1}, JetStreamOptions{AppendTimeout: time.Hour, AppendAgain: time.Hour}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const lost = 20
	records := chainOf(t, 0, Genesis(0, 1), lost, 100)
	var copies atomic.Int64
	if _, err := nc.Subscribe(SubjectName(0), func(m *nats.Msg) {
		number := m.Header.Get(jetstream.ExpectedLastSeqHeader)
		if number == strconv.Itoa(lost-1) && copies.Add(1) == 1 {
			return
		}
		last, err := strconv.Atoi(number)
		if err == nil {
			err = m.Respond(fmt.Appendf(nil, `{"stream":"ORDERS-00","seq":%d}`, last+1))
		}
		if err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, record := range records {
		if err := s.Log(0).Append(record).Wait(ctx); err != nil {
			t.Fatalf("commit %d, %d copies of the last: %v", record.Number, copies.Load(), err)
		}
	}
}

func TestHowLongAnAcknowledgementIsWaitedForFollowsHowLongTheyTake(t *testing.T) {
	const most = 500 * time.Millisecond
	var a ackTime
	if got := a.patience(most); got != most {
		t.Errorf("nothing known: got %v, want %v", got, most)
	}
	for range 100 {
		a.note(2 * time.Millisecond)
	}
	if got := a.patience(most); got != againMin {
		t.Errorf("quick ones: got %v, want %v", got, againMin)
	}
	for i := range 100 {
		a.note(100*time.Millisecond + time.Duration(i%2)*20*time.Millisecond)
	}
	if got := a.patience(most); got < 120*time.Millisecond || got > 200*time.Millisecond {
		t.Errorf("slow ones of 100 to 120 ms: got %v, want more than any took, and not much more", got)
	}
	for range 100 {
		a.note(time.Second)
	}
	if got := a.patience(most); got != most {
		t.Errorf("very slow ones: got %v, want %v", got, most)
	}
}

func TestAQuestionThatIsNotAnsweredIsAskedAgainLessAndLess(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	var asked atomic.Int64
	if _, err := nc.Subscribe("slow", func(*nats.Msg) { asked.Add(1) }); err != nil {
		t.Fatal(err)
	}
	// Asked once a second, it would be asked a fourth time within this.
	ctx, cancel := context.WithTimeout(t.Context(), 3*requestAgain+requestAgain/2)
	defer cancel()
	if _, err := ask(ctx, nc, "slow", nil, lessAndLess(requestAgain)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the context's end", err)
	}
	if got := asked.Load(); got < 2 || got > 3 {
		t.Fatalf("asked %d times, want 2 or 3", got)
	}
}

const noLeaderAnswer = `{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`

// answering answers what is asked on a subject with one answer after the other, with nothing for an empty one, and then always with the last. It
// returns how many questions came. Of a server without JetStream the test is the leader.
func answering(t *testing.T, nc *nats.Conn, subject string, answers ...string) (asked func() int64) {
	t.Helper()
	var count atomic.Int64
	if _, err := nc.Subscribe(subject, func(m *nats.Msg) {
		answer := answers[min(count.Add(1), int64(len(answers)))-1]
		if answer == "" {
			return
		}
		if err := m.Respond([]byte(answer)); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return count.Load
}

// A server that is stopped does not answer who asks it for a consumer. Views stood still for 5 s after that.
func TestACursorAsksAgainForAConsumerThatNobodyAnswersFor(t *testing.T) {
	_, nc := plainServer(t, "")
	s, err := openJetStream(t.Context(), nc, Topology{Lanes: 1}, JetStreamOptions{RequestTimeout: time.Hour}, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const made = `{"stream_name":"ORDERS-00","name":"made","config":{}}`
	asked := answering(t, nc, "$JS.API.CONSUMER.CREATE.ORDERS-00.>", "", noLeaderAnswer, "", made)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cursor, err := s.Log(0).Follow(ctx, 1)
	if err != nil {
		t.Fatalf("asked %d times: %v", asked(), err)
	}
	cursor.Close()
	if got := asked(); got != 4 {
		t.Errorf("asked %d times, want 4", got)
	}
}

func TestAServerThatIsSlowIsNotAskedInVainForEver(t *testing.T) {
	attempts := 0
	err := untilAnswered(t.Context(), time.Hour, func(ctx context.Context) error {
		attempts++
		if deadline, _ := ctx.Deadline(); time.Until(deadline) > time.Minute {
			return nil // It has all the time that it wants.
		}
		return context.DeadlineExceeded
	})
	if err != nil || attempts != len(answerWaits)+1 {
		t.Errorf("after %d attempts: %v", attempts, err)
	}
}

func TestAStreamIsAwaitedUntilItsLeaderAnswers(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	answers := []string{
		"", "", noLeaderAnswer, "",
		`{"type":"io.nats.jetstream.api.v1.stream_info_response"}`,
	}
	asked := answering(t, nc, "asked", answers...)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := awaitAnswer(ctx, nc, "asked"); err != nil {
		t.Fatal(err)
	}
	if got := asked(); got != int64(len(answers)) {
		t.Errorf("asked %d times, want %d", got, len(answers))
	}
	if err := AwaitStream(ctx, nc, "NONE"); err != nil {
		t.Errorf("a stream that is not there: %v, want an answer that says so", err)
	}
}

// A node that starts while a stream has no leader asks for it again and again: a question that nobody heard is not answered later. After a kill of
// all servers a node waited five minutes for one.
func TestWhatHasNoLeaderIsAskedForAgainWhenANodeStarts(t *testing.T) {
	topology := Topology{Lanes: 1}
	for stream, open := range map[string]func(context.Context, *nats.Conn) error{
		userKeysStream: func(ctx context.Context, nc *nats.Conn) error {
			_, err := OpenUserKeys(ctx, nc, UserKeysOptions{Topology: topology})
			return err
		},
		"KV_" + reactorsBucket: func(ctx context.Context, nc *nats.Conn) error {
			_, err := OpenReactorPositions(ctx, nc, 1)
			return err
		},
		"OBJ_" + blobsBucket: func(ctx context.Context, nc *nats.Conn) error {
			_, err := OpenBlobs(ctx, nc, 1)
			return err
		},
		FeedStream: func(ctx context.Context, nc *nats.Conn) error {
			_, err := OpenEventFeed(ctx, nc, FeedOptions{Topology: topology})
			return err
		},
	} {
		t.Run(stream, func(t *testing.T) {
			_, nc := plainServer(t, "")
			var asked atomic.Int64
			if _, err := nc.Subscribe("$JS.API.STREAM.INFO."+stream, func(*nats.Msg) { asked.Add(1) }); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() { ended <- open(ctx, nc) }()
			eventually(t, "it is asked for again", func() error {
				if got := asked.Load(); got < 3 {
					return fmt.Errorf("it was asked for %d times", got)
				}
				return nil
			})
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want that it was cancelled", err)
			}
		})
	}
}

// Whoever takes a lane while its stream elects a leader asks for its head, and goes on when there is one.
func TestAStreamsStateIsAskedForSteadily(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	var asked atomic.Int64
	if _, err := nc.Subscribe("leaderless", func(*nats.Msg) { asked.Add(1) }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() {
		_, _ = ask(ctx, nc, "leaderless", nil, steadily(20*time.Millisecond))
	}()
	until(t, "it is asked eight times", func() bool { return asked.Load() >= 8 })
}

func TestACommitThatIsTooLargeIsRefusedForGood(t *testing.T) {
	log, _ := openLoose(t, connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()})))
	for _, size := range []int{MaxMessageSize - 100, MaxMessageSize + 1} {
		err := log.Append(chainOf(t, 0, Genesis(0, 1), 1, size)[0]).Wait(t.Context())
		if err == nil || errors.Is(err, ErrUnknownOutcome) || errors.Is(err, ErrConflict) || errors.Is(err, ErrLogFull) {
			t.Fatalf("%d bytes: got %v, want an error that is for good", size, err)
		}
	}
	atHead(t, log, 0)
}

func TestEveryAnswerOfTheServerHasItsOutcome(t *testing.T) {
	refusal := func(code int, description string) string {
		return fmt.Sprintf(`{"error":{"code":400,"err_code":%d,"description":%q},"stream":"ORDERS-00","seq":0}`, code, description)
	}
	other := errors.New("refused for good")
	tests := []struct {
		answer string
		want   error
	}{
		{`{"stream":"ORDERS-00","seq":7}`, nil},
		{`{"stream":"ORDERS-00","seq":7,"duplicate": true}`, nil},
		{`{"stream":"ORDERS-00","domain":"hub","seq":7}`, nil},
		{`{"stream":"ORDERS-00","seq":8}`, &ChainError{}},
		{`{"stream":"ORDERS-00","seq":3,"duplicate": true}`, &ChainError{}},
		{refusal(10071, "wrong last sequence: 9"), ErrConflict},
		{refusal(10164, "wrong last sequence"), ErrConflict},
		{refusal(10070, "wrong last msg ID: x"), ErrConflict},
		{refusal(10077, "maximum bytes exceeded"), ErrLogFull},
		{refusal(10077, "maximum messages exceeded"), ErrLogFull},
		{refusal(10023, "insufficient resources"), ErrLogFull},
		{refusal(10002, "resource limits exceeded for account"), ErrLogFull},
		{refusal(10047, "insufficient storage resources available"), ErrLogFull},
		{refusal(10077, "message too large"), other},
		{refusal(10054, "message size exceeds maximum allowed"), other},
		{refusal(10060, "expected stream does not match"), other},
		{refusal(10109, "invalid operation on sealed stream"), other},
		{refusal(10077, "store is closed"), ErrUnknownOutcome},
		{refusal(10158, "duplicate message id is in process"), ErrUnknownOutcome},
		{refusal(10167, "too many requests"), ErrUnknownOutcome},
		{refusal(19999, "from the future"), ErrUnknownOutcome},
		{``, ErrUnknownOutcome},
		{`{`, ErrUnknownOutcome},
	}
	for _, test := range tests {
		got := appendOutcome(0, 7, &nats.Msg{Data: []byte(test.answer)})
		ok := errors.Is(got, test.want)
		if damage := (*ChainError)(nil); errors.As(test.want, &damage) {
			ok = errors.As(got, &damage)
		}
		if errors.Is(test.want, other) {
			ok = got != nil && !errors.Is(got, ErrConflict) && !errors.Is(got, ErrLogFull) && !errors.Is(got, ErrUnknownOutcome)
		}
		if !ok {
			t.Errorf("answer %s: got %v, want %v", test.answer, got, test.want)
		}
	}
}

func TestReplySubjectsTellTheNumber(t *testing.T) {
	for reply, want := range map[string]uint64{
		"$JS.ACK.ORDERS-00.c.1.42.3.1700000000.0":             42,
		"$JS.ACK.hub.account.ORDERS-00.c.1.42.3.1700000000.0": 42,
		"$JS.ACK._.account.ORDERS-00.c.1.42.3.170.0.random":   42,
	} {
		if got, err := messageNumber(reply); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", reply, got, err, want)
		}
	}
	for _, reply := range []string{"", "x", "_INBOX.1.2.3.4.5.6.7.8", "$JS.ACK.ORDERS-00.c.1.x.3.170.0", strings.Repeat(".", 20)} {
		if got, err := messageNumber(reply); err == nil {
			t.Errorf("%q is number %d", reply, got)
		}
	}
}

func TestAReplicatedLogSurvivesItsLeadersDeath(t *testing.T) {
	servers := startCluster(t)
	urls := make([]string, len(servers))
	for i, server := range servers {
		urls[i] = server.ClientURL()
	}
	nc, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	waitForJetStream(t, nc, 3)
	if _, err := Provision(t.Context(), nc, ProvisionOptions{Topology: Topology{Lanes: 1}, Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	s, err := OpenJetStream(t.Context(), nc, Topology{Lanes: 1}, JetStreamOptions{
		AppendTimeout: 500 * time.Millisecond, FollowHeartbeat: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	log := s.Log(0)
	records := chainOf(t, 0, Genesis(0, 1), 40, 1000)
	cursor := follow(t, log, 1)
	for i, record := range records {
		if i == 20 {
			stream, err := s.js.Stream(t.Context(), StreamName(0))
			if err != nil {
				t.Fatal(err)
			}
			leader := stream.CachedInfo().Cluster.Leader
			for j, server := range servers {
				if leader == fmt.Sprintf("node%d", j+1) {
					server.Shutdown()
				}
			}
		}
		eventually(t, "an append is acknowledged", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			err := log.Append(record).Wait(ctx)
			if errors.Is(err, ErrConflict) {
				if stored, readErr := log.Read(ctx, record.Number); readErr == nil && stored.Hash == record.Hash {
					return nil
				}
			}
			return err
		})
	}
	for _, record := range records {
		wantNext(t, cursor, record)
	}
	wantRead(t, log, records[39])
}

func TestACursorReadsNoMoreCommitsAheadThanItIsTold(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	topology := provisioned(t, nc, 1)
	const ahead, commits = 3, 20
	streams, err := OpenJetStream(t.Context(), nc, topology, JetStreamOptions{FollowCommits: ahead})
	if err != nil {
		t.Fatal(err)
	}
	defer streams.Close()
	log := streams.Log(0)
	records := chainOf(t, 0, Genesis(0, topology.Lanes), commits, 1000)
	appendAll(t, log, records)
	cursor := follow(t, log, 1)
	sent := func() uint64 {
		t.Helper()
		consumer, err := streams.js.Consumer(t.Context(), StreamName(0), cursor.(*jetStreamCursor).consumer)
		if err != nil {
			t.Fatal(err)
		}
		return consumer.CachedInfo().Delivered.Consumer
	}
	for i, record := range records {
		wantNext(t, cursor, record)
		// What it has asked for last comes at some time, or has come.
		if got, most := sent(), uint64((i+1+ahead)/ahead*ahead); got < uint64(i+1) || got > most {
			t.Fatalf("after commit %d the server has sent %d, want %d to %d", i+1, got, i+1, most)
		}
	}
}
