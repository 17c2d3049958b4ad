package eventstore

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// A JetStream keeps the logs of all lanes in streams of a NATS server. Its methods may be called by several goroutines.
type JetStream struct {
	nc       *nats.Conn
	js       jetstream.JetStream
	topology Topology
	options  JetStreamOptions
	replicas []int         // of each lane's stream, when it was opened
	chained  []atomic.Bool // whether appends to each lane state the chain, when its head was last asked for

	replyPrefix string
	replySub    *nats.Subscription
	statuses    chan nats.Status
	watching    sync.WaitGroup
	stop        context.CancelFunc // ends watchRules

	mu       sync.Mutex
	replies  uint64
	waiting  map[string]*publishing // by the last token of their reply subject
	acks     []ackTime              // by lane
	switched chan struct{}          // closed and replaced whenever the connection is lost or comes back
	switches uint64
}

// JetStreamOptions configure a JetStream. The zero value is valid.
type JetStreamOptions struct {
	// AppendTimeout bounds the wait for an acknowledgement; then the outcome is unknown. 0 means 5 s.
	AppendTimeout time.Duration
	// AppendAgain is after how long an append that nobody has answered is published again at the latest, and then after twice as long each
	// time, within AppendTimeout. Where acknowledgements are known to come sooner, an append is taken for lost sooner, see ackTime. 0 means
	// 500 ms.
	AppendAgain time.Duration
	// RequestTimeout bounds each question to the server. 0 means 5 s.
	RequestTimeout time.Duration
	// FollowWindow bounds the bytes that a cursor has read ahead. It is at least twice the largest message. 0 means 16 MiB.
	FollowWindow int
	// FollowCommits bounds the commits that a cursor has read ahead: at most, and by default, 4096. They come in one go, for which the
	// server and this process take a processor.
	FollowCommits int
	// FollowHeartbeat is how often the server says that there is nothing new; after three of them in silence, a cursor
	// subscribes anew. 0 means 1 s.
	FollowHeartbeat time.Duration
}

// Codes of the server's errors that the client library has no names for.
const (
	errCodeAccountResources jetstream.ErrorCode = 10002 // resource limits exceeded for account
	errCodeNoPeers          jetstream.ErrorCode = 10005 // no suitable peers for placement
	errCodeInsufficient     jetstream.ErrorCode = 10023 // insufficient resources: the server's own limit
	errCodeStorageResources jetstream.ErrorCode = 10047 // insufficient storage resources available
	errCodeStreamMismatch   jetstream.ErrorCode = 10060 // expected stream does not match
	errCodeWrongLastID      jetstream.ErrorCode = 10070 // wrong last message id
	errCodeStoreFailed      jetstream.ErrorCode = 10077 // many reasons, told apart by their text only
	errCodeHeaderTooLarge   jetstream.ErrorCode = 10097 // header size exceeds maximum allowed
	errCodeStreamSealed     jetstream.ErrorCode = 10109 // invalid operation on sealed stream
	errCodeInProcess        jetstream.ErrorCode = 10158 // the same message id is being stored
	errStoreFailedMaxBytes                      = "maximum bytes exceeded"
	errStoreFailedMaxMsgs                       = "maximum messages exceeded"
	errStoreFailedMsgTooBig                     = "message too large"
)

const (
	followBatchMax    = 4096                   // messages that one pull asks for
	followStatusMax   = 64                     // statuses that may lie among them
	followExpiry      = 30 * time.Second       // of one pull
	followInactive    = 2 * time.Minute        // after which the server forgets a cursor that asks for nothing
	requestLook       = 100 * time.Millisecond // between looks at whether the connection broke
	requestAgain      = time.Second            // after which a question that got no answer is asked again, and then twice as long each time
	infoAgain         = 500 * time.Millisecond // the same for a question after a stream's state, each time
	awaitAgain        = 200 * time.Millisecond // the same for a question that only waits for a stream's leader
	readConfirmations = 3                      // before a missing commit below the head counts as a gap
	readConfirmPause  = 50 * time.Millisecond
	reopenPauseMax    = time.Second
	ruleLook          = 2 * time.Second // between questions whether a lane that is not replicated is about to be
)

// OpenJetStream opens the logs of every lane. The streams must exist (see Provision); a *MissingLogError says which does not.
// The connection stays the caller's. Close ends the goroutines that it starts: one that watches the connection and, where a lane is
// not replicated, one that asks whether it is about to be.
func OpenJetStream(ctx context.Context, nc *nats.Conn, topology Topology, options JetStreamOptions) (*JetStream, error) {
	if err := topology.Validate(); err != nil {
		return nil, err
	}
	return openJetStream(ctx, nc, topology, options, 0, topology.Lanes)
}

// openJetStream opens the lanes from first up to, and without, end.
func openJetStream(ctx context.Context, nc *nats.Conn, topology Topology, options JetStreamOptions, first, end uint32) (*JetStream, error) {
	if options.AppendTimeout == 0 {
		options.AppendTimeout = 5 * time.Second
	}
	if options.AppendAgain == 0 {
		options.AppendAgain = 500 * time.Millisecond
	}
	if options.RequestTimeout == 0 {
		options.RequestTimeout = 5 * time.Second
	}
	if options.FollowHeartbeat == 0 {
		options.FollowHeartbeat = time.Second
	}
	options.FollowWindow = max(options.FollowWindow, 2*MaxMessageSize)
	if options.FollowCommits <= 0 || options.FollowCommits > followBatchMax {
		options.FollowCommits = followBatchMax
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	s := &JetStream{
		nc: nc, js: js, topology: topology, options: options,
		replyPrefix: nc.NewInbox() + ".", waiting: map[string]*publishing{}, switched: make(chan struct{}),
	}
	s.replicas, s.chained, s.acks = make([]int, topology.Lanes), make([]atomic.Bool, topology.Lanes), make([]ackTime, topology.Lanes)
	for lane := first; lane < end; lane++ {
		info, err := s.streamInfo(ctx, lane)
		if err != nil {
			return nil, fmt.Errorf("open the log of lane %d: %w", lane, err)
		}
		s.replicas[lane] = max(1, info.Config.Replicas)
		s.chained[lane].Store(statesChain(&info.Config))
	}
	s.replySub, err = nc.Subscribe(s.replyPrefix+"*", s.acknowledged)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	if err := s.replySub.SetPendingLimits(-1, -1); err != nil { // As many replies as appends.
		return nil, errors.Join(fmt.Errorf("open the log: %w", err), s.replySub.Unsubscribe())
	}
	s.statuses = nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED, nats.CLOSED)
	s.watching.Go(s.watchConnection)
	watch, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	if slices.Contains(s.replicas[first:end], 1) {
		s.watching.Go(func() { s.watchRules(watch, first, end) })
	}
	return s, nil
}

// Close gives up what is under way: its outcome becomes unknown. The connection stays open.
func (s *JetStream) Close() {
	s.stop()
	s.nc.RemoveStatusListener(s.statuses)
	s.watching.Wait()
	_ = s.replySub.Unsubscribe() // Fails on a closed connection only, where there is nothing to end.
	s.lostConnection()
}

// watchConnection makes every append unknown whose acknowledgement went to a connection that is gone, and wakes the cursors.
func (s *JetStream) watchConnection() {
	for status := range s.statuses {
		if status != nats.CONNECTED {
			s.lostConnection()
		}
		s.mu.Lock()
		s.switches++
		close(s.switched)
		s.switched = make(chan struct{})
		s.mu.Unlock()
	}
}

// watchRules renews what ChecksChain says of each lane for which that may change. A writer that has so much to do that nobody gets in
// between would not hear of it otherwise. What goes wrong is passed over: the next look asks again.
func (s *JetStream) watchRules(ctx context.Context, first, end uint32) {
	for pause(ctx, ruleLook) == nil {
		for lane := first; lane < end; lane++ {
			if s.chained[lane].Load() {
				_, _ = s.Log(lane).Head(ctx)
			}
		}
	}
}

func (s *JetStream) lostConnection() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for token, p := range s.waiting {
		delete(s.waiting, token)
		p.settle(fmt.Errorf("%w: the connection to the server was lost", ErrUnknownOutcome))
	}
}

// connection returns how often the connection was lost or came back, and what is closed when it happens again.
func (s *JetStream) connection() (switches uint64, switched <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.switches, s.switched
}

// Log returns the log of a lane.
func (s *JetStream) Log(lane uint32) Log {
	assert(lane < s.topology.Lanes, "lane %d of %d", lane, s.topology.Lanes)
	return &jetStreamLog{s: s, lane: lane, stream: StreamName(lane), subject: SubjectName(lane)}
}

type jetStreamLog struct {
	s               *JetStream
	lane            uint32
	stream, subject string
}

// ChecksChain is true for a stream that is not replicated: the server compares the newest message's id. On a replicated
// stream it would do so only when the commit is applied, on each replica for itself, and a replica that caught up from a
// snapshot does not know that id: the replicas could come to differ. There the condition is not sent. A stream that is about
// to be replicated counts as one that is.
func (l *jetStreamLog) ChecksChain() bool { return l.s.chained[l.lane].Load() }

// Append publishes the record.
func (l *jetStreamLog) Append(record Record) Pending {
	header := make(nats.Header, len(record.Headers)+4)
	for key, value := range record.Headers {
		assert(!strings.HasPrefix(key, "Nats-"), "header %s of a record would be the server's", key)
		header[key] = []string{value}
	}
	header[jetstream.MsgIDHeader] = []string{record.Hash.String()}
	header[jetstream.ExpectedStreamHeader] = []string{l.stream}
	header[jetstream.ExpectedLastSeqHeader] = []string{strconv.FormatUint(record.Number-1, 10)}
	// A writer that has not heard yet that the stream is to be replicated goes on as it began, until it is fenced: its
	// appends with and without the condition must not mix.
	if record.Number > 1 && !record.Unchained && l.s.replicas[l.lane] == 1 {
		header[jetstream.ExpectedLastMsgIDHeader] = []string{record.Prev.String()}
	}
	p := &publishing{
		lane: l.lane, number: record.Number, message: nats.Msg{Subject: l.subject, Header: header, Data: record.Data},
		done: make(chan struct{}),
	}
	token := l.s.register(p)
	err := l.s.publish(p, token)
	switch {
	case err == nil:
	case errors.Is(err, nats.ErrMaxPayload):
		l.s.settle(token, fmt.Errorf("append commit %d to lane %d: %d bytes: %w", record.Number, l.lane, len(record.Data), err))
	default:
		l.s.settle(token, fmt.Errorf("%w: publish: %w", ErrUnknownOutcome, err))
	}
	return p
}

// publishing is an append whose acknowledgement is awaited.
type publishing struct {
	lane    uint32
	number  uint64
	message nats.Msg
	sent    time.Time
	again   time.Duration // until it is published again, if nobody has answered by then; the JetStream's mu is held
	copies  int           // how often it was published again; the JetStream's mu is held
	next    *time.Timer   // publishes it again, or gives up; the JetStream's mu is held
	until   time.Time     // when it is given up
	done    chan struct{}
	outcome error // set before done is closed
}

func (p *publishing) settle(outcome error) {
	p.next.Stop()
	p.outcome = outcome
	close(p.done)
}

func (p *publishing) Done() <-chan struct{} { return p.done }

func (p *publishing) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.outcome
	default:
	}
	select {
	case <-p.done:
		return p.outcome
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

// againMark ends the reply subject of an append that is published again.
const againMark = "-"

// register makes p wait for a reply to the token that it returns.
func (s *JetStream) register(p *publishing) (token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replies++
	token = strconv.FormatUint(s.replies, 36)
	p.sent, p.again = time.Now(), s.acks[p.lane].patience(s.options.AppendAgain)
	p.until = p.sent.Add(s.options.AppendTimeout)
	p.next = time.AfterFunc(min(p.again, s.options.AppendTimeout), func() { s.publishAgain(p, token) })
	s.waiting[token] = p
	return token
}

// publish sends an append on its way, to be answered to the token.
func (s *JetStream) publish(p *publishing, token string) error {
	message := p.message
	message.Reply = s.replyPrefix + token
	return s.nc.PublishMsg(&message)
}

// publishAgain publishes an append that nobody has answered once more, the same bytes under the same conditions, or gives it up. What was
// on its way to a leader that has died is never answered, while its successor would answer at once.
func (s *JetStream) publishAgain(p *publishing, token string) {
	s.mu.Lock()
	if s.waiting[token] != p {
		s.mu.Unlock()
		return
	}
	left := time.Until(p.until)
	if left > 0 {
		p.again *= 2
		p.copies++
		p.next.Reset(min(p.again, left))
	}
	s.mu.Unlock()
	if left <= 0 {
		s.settle(token, fmt.Errorf("%w: no acknowledgement within %s", ErrUnknownOutcome, s.options.AppendTimeout))
		return
	}
	_ = s.publish(p, token+againMark) // The first time went well, and whether this one did shows by the answer.
}

// settle gives an append its outcome, unless it has one.
func (s *JetStream) settle(token string, outcome error) {
	if p := s.take(token); p != nil {
		p.settle(outcome)
	}
}

// take returns who waits for the token, and makes the caller the one who settles it.
func (s *JetStream) take(token string) *publishing {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.waiting[token]
	delete(s.waiting, token)
	return p
}

// acknowledged handles the server's reply to an append.
func (s *JetStream) acknowledged(reply *nats.Msg) {
	token, again := strings.CutSuffix(reply.Subject[len(s.replyPrefix):], againMark)
	if again && underWay(reply) {
		return // It was slow and not lost: how it ends is told to an earlier one.
	}
	p := s.take(token)
	if p == nil {
		return
	}
	outcome := appendOutcome(p.lane, p.number, reply)
	if outcome == nil {
		s.answered(p)
	}
	p.settle(outcome)
}

// answered takes in how long an acknowledgement took. That of an append that was published again may be the answer to either.
func (s *JetStream) answered(p *publishing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.copies == 0 {
		s.acks[p.lane].note(time.Since(p.sent))
	}
}

// ackTime is how long acknowledgements take, by which an append is taken for lost whose own does not come. A leader that stops, with no word of
// what was on its way to it, is replaced within some milliseconds: whoever waits for long then waits in vain. It is the estimate that TCP
// has for its retransmissions (RFC 6298): a mean and a mean deviation, each an exponentially weighted one. The zero value knows nothing.
type ackTime struct{ mean, deviation time.Duration }

// againMin is the least time after which an append is taken for lost: a busy machine may let a process wait for as long as that.
const againMin = 50 * time.Millisecond

func (a *ackTime) note(took time.Duration) {
	if a.mean == 0 {
		a.mean, a.deviation = took, took/2
		return
	}
	a.deviation += ((took - a.mean).Abs() - a.deviation) / 4
	a.mean += (took - a.mean) / 8
}

// patience is how long an acknowledgement is waited for, at most and at first most.
func (a *ackTime) patience(most time.Duration) time.Duration {
	if a.mean == 0 {
		return most
	}
	return min(most, max(againMin, a.mean+4*a.deviation))
}

// underWay reports whether a reply says that a replicated stream is about to store something for which nobody has been answered yet.
func underWay(reply *nats.Msg) bool {
	var ack struct {
		Error *jetstream.APIError `json:"error"`
	}
	return json.Unmarshal(reply.Data, &ack) == nil && ack.Error != nil &&
		(ack.Error.ErrorCode == errCodeInProcess || ack.Error.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// appendOutcome reads the server's reply to an append. What is not known to be a refusal is unknown.
func appendOutcome(lane uint32, number uint64, reply *nats.Msg) error {
	if len(reply.Data) == 0 {
		// Nobody listens: the server has no such stream now, or its leader is changing.
		return fmt.Errorf("%w: %w (status %s)", ErrUnknownOutcome, ErrLogAway, reply.Header.Get("Status"))
	}
	var ack struct {
		Error     *jetstream.APIError `json:"error"`
		Sequence  uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil {
		return fmt.Errorf("%w: unreadable acknowledgement: %w", ErrUnknownOutcome, err)
	}
	if ack.Error == nil {
		if ack.Sequence != number {
			return &ChainError{Lane: lane, Number: number, Reason: fmt.Sprintf("the server has it as number %d", ack.Sequence)}
		}
		return nil
	}
	switch ack.Error.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence,
		jetstream.JSErrCodeStreamWrongLastSequenceConstant, // Replicated streams use this one too.
		errCodeWrongLastID:
		return fmt.Errorf("%w: %w", ErrConflict, ack.Error)
	case errCodeAccountResources, errCodeInsufficient, errCodeStorageResources:
		return fmt.Errorf("%w: %w", ErrLogFull, ack.Error)
	case errCodeStoreFailed:
		switch ack.Error.Description {
		case errStoreFailedMaxBytes, errStoreFailedMaxMsgs:
			return fmt.Errorf("%w: %w", ErrLogFull, ack.Error)
		case errStoreFailedMsgTooBig:
			return fmt.Errorf("append commit %d to lane %d: %w", number, lane, ack.Error)
		}
	case jetstream.JSErrCodeStreamMessageExceedsMaximum, errCodeHeaderTooLarge, errCodeStreamMismatch, errCodeStreamSealed:
		return fmt.Errorf("append commit %d to lane %d: %w", number, lane, ack.Error)
	}
	// Among them "duplicate message id is in process" (10158): the same bytes are on their way, and may yet be lost.
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, ack.Error)
}

// streamState is what is read of the answer to a stream info request.
type streamState struct {
	apiRefusal
	Config jetstream.StreamConfig `json:"config"`
	State  jetstream.StreamState  `json:"state"`
}

func (s *JetStream) streamInfo(ctx context.Context, lane uint32) (streamState, error) {
	return streamInfo(ctx, s.nc, s.options.RequestTimeout, lane)
}

func streamInfo(ctx context.Context, nc *nats.Conn, timeout time.Duration, lane uint32) (info streamState, err error) {
	err = apiRequest(ctx, nc, timeout, "STREAM.INFO."+StreamName(lane), nil, &info)
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && refused.ErrorCode == jetstream.JSErrCodeStreamNotFound {
		return info, &MissingLogError{Lane: lane, Reason: "the server has no stream " + StreamName(lane)}
	}
	return info, err
}

// AwaitStream waits until the leader of a stream answers, or a leader of the servers says that there is no such stream.
func AwaitStream(ctx context.Context, nc *nats.Conn, stream string) error {
	if err := awaitAnswer(ctx, nc, jetstream.DefaultAPIPrefix+"STREAM.INFO."+stream); err != nil {
		return fmt.Errorf("await stream %s: %w", stream, err)
	}
	return nil
}

// ledAttemptMax bounds what is done with a stream once its leader answers, before that is waited for again.
const ledAttemptMax = 5 * time.Second

// whenLed does something with a stream, once a leader answers for it or says that there is none, and again when that leader is lost meanwhile. A
// question that comes while a stream has no leader is never answered, and the client library would wait for the answer until ctx ends.
func whenLed(ctx context.Context, nc *nats.Conn, stream string, do func(context.Context) error) error {
	for {
		awaiting, cancel := context.WithTimeout(ctx, provisionLeaderMax)
		err := AwaitStream(awaiting, nc, stream)
		cancel()
		if err != nil {
			return err
		}
		attempt, cancel := context.WithTimeout(ctx, ledAttemptMax)
		err = do(attempt)
		cancel()
		if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// awaitAnswer asks until there is another answer than that JetStream is not available, as servers without a leader say.
func awaitAnswer(ctx context.Context, nc *nats.Conn, subject string) error {
	for {
		reply, err := ask(ctx, nc, subject, nil, steadily(awaitAgain))
		switch {
		case err == nil && !unavailable(reply):
			return nil
		case err != nil && !errors.Is(err, nats.ErrNoResponders):
			return err
		}
		if err := pause(ctx, awaitAgain); err != nil {
			return err
		}
	}
}

// unavailable reports whether a reply says that JetStream is not available.
func unavailable(reply *nats.Msg) bool {
	var answer apiRefusal
	return json.Unmarshal(reply.Data, &answer) == nil && answer.Error != nil && answer.Error.Code == http.StatusServiceUnavailable
}

// apiRequest asks JetStream's API, which changes nothing, and decodes the answer.
func apiRequest(ctx context.Context, nc *nats.Conn, timeout time.Duration, call string, request any, answer interface{ refusal() error }) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body []byte
	if request != nil {
		var err error
		if body, err = json.Marshal(request); err != nil {
			return err
		}
	}
	again := lessAndLess(requestAgain)
	if strings.HasPrefix(call, "STREAM.INFO.") {
		again = steadily(infoAgain)
	}
	reply, err := ask(ctx, nc, jetstream.DefaultAPIPrefix+call, body, again)
	if errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("JetStream does not answer: %w", err)
	}
	if err != nil {
		return fmt.Errorf("ask JetStream: %w", err)
	}
	if err := json.Unmarshal(reply.Data, answer); err != nil {
		return fmt.Errorf("read JetStream's answer: %w", err)
	}
	return answer.refusal()
}

// apiRefusal is part of every answer.
type apiRefusal struct {
	Error *jetstream.APIError `json:"error"`
}

func (r *apiRefusal) refusal() error {
	if r.Error == nil {
		return nil
	}
	return r.Error
}

// lessAndLess returns waits of which each is twice as long as the one before. A server that is slow answers each copy of a question: else
// the copies alone could keep it from answering in time.
func lessAndLess(wait time.Duration) func() time.Duration {
	return func() time.Duration {
		now := wait
		wait *= 2
		return now
	}
}

// steadily returns waits that are all the same: for questions whose answers are so small that copies are no load.
func steadily(wait time.Duration) func() time.Duration {
	return func() time.Duration { return wait }
}

// ask sends a request that changes nothing. It sends it again when the connection broke meanwhile, since its answer may have gone to
// the old one, and when none comes, after each wait that again returns: nobody answers for a stream while it elects a leader.
func ask(ctx context.Context, nc *nats.Conn, subject string, body []byte, again func() time.Duration) (*nats.Msg, error) {
	inbox := nc.NewInbox()
	answers, err := nc.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answers.Unsubscribe() }() // Fails on a closed connection only.
	for {
		reconnects := nc.Stats().Reconnects
		if err := nc.PublishRequest(subject, inbox, body); err != nil {
			return nil, err
		}
		until := time.Now().Add(again())
		for reconnects == nc.Stats().Reconnects && time.Now().Before(until) {
			look, cancel := context.WithTimeout(ctx, requestLook)
			answer, err := answers.NextMsgWithContext(look)
			cancel()
			if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
				return answer, err
			}
		}
	}
}

// answerWaits are how long the first attempts of untilAnswered wait.
var answerWaits = [...]time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}

// untilAnswered does something with a server that may be done again, and again when no answer comes: what a server was asked that stops, or a
// stream without a leader, is never answered. The last attempt has most, so that a slow server is not asked in vain for ever.
func untilAnswered(ctx context.Context, most time.Duration, do func(context.Context) error) error {
	for attempt := 0; ; attempt++ {
		last := attempt == len(answerWaits)
		wait := most
		if !last {
			wait = min(wait, answerWaits[attempt])
		}
		err := attemptFor(ctx, wait, do)
		if last || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// attemptFor does something until it is over, or as long as there is no leader who could: servers say so at once.
func attemptFor(ctx context.Context, wait time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		err := do(ctx)
		refused := (*jetstream.APIError)(nil)
		if !errors.As(err, &refused) || refused.Code != http.StatusServiceUnavailable {
			return err
		}
		if paused := pause(ctx, awaitAgain); paused != nil {
			return fmt.Errorf("%w: %w", paused, err)
		}
	}
}

// Head returns the number of the newest commit that the stream's leader knows.
func (l *jetStreamLog) Head(ctx context.Context) (uint64, error) {
	info, err := l.s.streamInfo(ctx, l.lane)
	if err != nil {
		return 0, fmt.Errorf("read the head of lane %d: %w", l.lane, err)
	}
	l.s.chained[l.lane].Store(statesChain(&info.Config))
	return info.State.LastSeq, nil
}

// Size says how much the stream's leader holds.
func (l *jetStreamLog) Size(ctx context.Context) (LogSize, error) {
	info, err := l.s.streamInfo(ctx, l.lane)
	if err != nil {
		return LogSize{}, fmt.Errorf("read the size of lane %d: %w", l.lane, err)
	}
	return LogSize{First: info.State.FirstSeq, Head: info.State.LastSeq, Bytes: info.State.Bytes}, nil
}

// storedExtraBytes are what a stream's file keeps of a message beside its subject, headers and data, and counts in its size: the lengths
// of all, of the subject and of the headers, the sequence, the time, and a checksum (nats-server's fileStoreMsgSize).
const storedExtraBytes = 4 + 2 + 4 + 8 + 8 + 8

// Read returns the commit at number. A commit that is missing although the log reaches further is a *ChainError.
func (l *jetStreamLog) Read(ctx context.Context, number uint64) (Record, error) {
	record, err := l.read(ctx, number)
	for range readConfirmations {
		if !errors.Is(err, ErrNoCommit) {
			return record, err
		}
		head, headErr := l.Head(ctx)
		if headErr != nil {
			return Record{}, headErr
		}
		if number == 0 || head < number {
			return Record{}, ErrNoCommit
		}
		// It was stored in between, or a replica that is behind answered, or it is gone.
		if err := pause(ctx, readConfirmPause); err != nil {
			return Record{}, err
		}
		record, err = l.read(ctx, number)
	}
	if errors.Is(err, ErrNoCommit) {
		return Record{}, &ChainError{Lane: l.lane, Number: number, Reason: "the commit is missing, though later ones are there"}
	}
	return record, err
}

func (l *jetStreamLog) read(ctx context.Context, number uint64) (Record, error) {
	if number == 0 {
		return Record{}, ErrNoCommit // To the server a zero means that the field is missing.
	}
	var answer struct {
		apiRefusal
		Message struct {
			Sequence uint64 `json:"seq"`
			Header   []byte `json:"hdrs"`
			Data     []byte `json:"data"`
		} `json:"message"`
	}
	request := struct {
		Sequence uint64 `json:"seq"`
	}{number}
	err := apiRequest(ctx, l.s.nc, l.s.options.RequestTimeout, "STREAM.MSG.GET."+l.stream, request, &answer)
	if refused := (*jetstream.APIError)(nil); errors.As(err, &refused) && refused.ErrorCode == jetstream.JSErrCodeMessageNotFound {
		return Record{}, ErrNoCommit
	}
	if err != nil {
		return Record{}, fmt.Errorf("read commit %d of lane %d: %w", number, l.lane, err)
	}
	header, err := nats.DecodeHeadersMsg(answer.Message.Header)
	if err != nil {
		return Record{}, &ChainError{Lane: l.lane, Number: number, Reason: "its headers cannot be read: " + err.Error()}
	}
	record, err := l.record(number, header, answer.Message.Data)
	record.Stored = len(l.subject) + len(answer.Message.Header) + len(answer.Message.Data) + storedExtraBytes
	return record, err
}

// record checks a message against its id.
func (l *jetStreamLog) record(number uint64, header nats.Header, data []byte) (Record, error) {
	record := Record{Number: number, Hash: HashOf(data), Data: data}
	var id Hash
	ids := header[jetstream.MsgIDHeader]
	if len(ids) != 1 || len(ids[0]) != 2*len(id) {
		return Record{}, &ChainError{Lane: l.lane, Number: number, Reason: fmt.Sprintf("its message id is %q, not a hash", ids)}
	}
	if _, err := hex.Decode(id[:], []byte(ids[0])); err != nil || id != record.Hash {
		return Record{}, &ChainError{Lane: l.lane, Number: number, Reason: fmt.Sprintf("its data has hash %.12s…, its message id is %.12s…", record.Hash, ids[0])}
	}
	return record, nil
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Follow reads from number on. The cursor's methods are called by one goroutine at a time.
func (l *jetStreamLog) Follow(ctx context.Context, number uint64) (Cursor, error) {
	assert(number >= 1, "lane %d followed from number 0", l.lane)
	c := &jetStreamCursor{log: l, next: number, silence: time.NewTimer(time.Hour)}
	if err := c.open(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("follow lane %d from commit %d: %w", l.lane, number, err)
	}
	return c, nil
}

// A jetStreamCursor asks for one window of messages at a time from a consumer of its own, which lives in the server's memory.
// Nothing is acknowledged or delivered again: whatever looks wrong (a lost connection, silence, messages out of order) makes
// it start over with a new consumer at the next number, so the place where a reader is, is only ever here.
type jetStreamCursor struct {
	log  *jetStreamLog
	next uint64

	sub      *nats.Subscription // nil while there is no consumer
	messages chan *nats.Msg
	inbox    string
	consumer string
	switches uint64 // of the connection, when the consumer was made

	// ahead are messages that were taken off the channel and not looked at yet, commitsAhead says how many of them are commits.
	ahead        []*nats.Msg
	commitsAhead int

	pull     uint64 // counts the pulls; the last token of the reply subject
	asked    bool   // whether a pull is open
	arrived  int    // messages that it brought
	silence  *time.Timer
	examined bool   // whether the log's head was compared since there was something new
	doubted  uint64 // the number that was found missing once
}

// open makes a consumer at the next number.
func (c *jetStreamCursor) open(ctx context.Context) error {
	c.drop()
	c.switches, _ = c.log.s.connection()
	var consumer jetstream.Consumer
	err := untilAnswered(ctx, c.log.s.options.RequestTimeout, func(ctx context.Context) (err error) {
		// Another one each time: the server that was to keep it may be the one that is gone.
		consumer, err = c.log.s.js.CreateConsumer(ctx, c.log.stream, jetstream.ConsumerConfig{
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: c.next,
			AckPolicy: jetstream.AckNonePolicy, ReplayPolicy: jetstream.ReplayInstantPolicy,
			InactiveThreshold: followInactive, MemoryStorage: true, Replicas: 1,
		})
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return &MissingLogError{Lane: c.log.lane, Reason: "the server has no stream " + c.log.stream}
	}
	if err != nil {
		return err
	}
	c.consumer = consumer.CachedInfo().Name
	c.messages = make(chan *nats.Msg, followBatchMax+followStatusMax)
	c.inbox = c.log.s.nc.NewInbox()
	if c.sub, err = c.log.s.nc.ChanSubscribe(c.inbox+".*", c.messages); err != nil {
		return err
	}
	return c.ask()
}

// drop forgets the consumer. The server does the same by itself if it does not hear of it.
func (c *jetStreamCursor) drop() {
	if c.sub != nil {
		_ = c.sub.Unsubscribe() // Fails on a closed connection only.
	}
	if c.consumer != "" {
		_ = c.log.s.nc.Publish(jetstream.DefaultAPIPrefix+"CONSUMER.DELETE."+c.log.stream+"."+c.consumer, nil) // To be nice.
	}
	c.sub, c.consumer, c.messages, c.asked = nil, "", nil, false
	c.ahead, c.commitsAhead = nil, 0
}

// ask opens a pull for one window.
func (c *jetStreamCursor) ask() error {
	c.pull++
	c.asked, c.arrived = true, 0
	request := fmt.Sprintf(`{"batch":%d,"max_bytes":%d,"expires":%d,"idle_heartbeat":%d}`,
		c.log.s.options.FollowCommits, c.log.s.options.FollowWindow, followExpiry, c.log.s.options.FollowHeartbeat)
	return c.log.s.nc.PublishRequest(jetstream.DefaultAPIPrefix+"CONSUMER.MSG.NEXT."+c.log.stream+"."+c.consumer,
		c.inbox+"."+strconv.FormatUint(c.pull, 36), []byte(request))
}

func (c *jetStreamCursor) Next(ctx context.Context) (Record, error) {
	for {
		message, err := c.receive(ctx)
		if err != nil {
			return Record{}, err
		}
		if message == nil {
			continue // There is a new consumer.
		}
		if !isCommit(message) {
			if err := c.status(ctx, message); err != nil {
				return Record{}, err
			}
			continue
		}
		number, err := messageNumber(message.Reply)
		if err != nil {
			return Record{}, fmt.Errorf("follow lane %d: %w", c.log.lane, err)
		}
		c.arrived++
		if c.arrived == c.log.s.options.FollowCommits {
			if err := c.ask(); err != nil {
				return Record{}, fmt.Errorf("follow lane %d: %w", c.log.lane, err)
			}
		}
		switch {
		case number < c.next:
			continue
		case number > c.next:
			if err := c.gap(ctx, number); err != nil {
				return Record{}, err
			}
			continue
		}
		record, err := c.log.record(number, message.Header, message.Data)
		if err != nil {
			return Record{}, err
		}
		record.Stored = message.Size() - len(message.Reply) + storedExtraBytes
		c.next++
		c.examined = false
		return record, nil
	}
}

// receive returns the next message or status; nil after it had to start over. It blocks.
func (c *jetStreamCursor) receive(ctx context.Context) (*nats.Msg, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if message := c.takeAhead(); message != nil {
		return message, nil
	}
	switches, switched := c.log.s.connection()
	if c.sub == nil || switches != c.switches {
		return nil, c.reopen(ctx)
	}
	c.silence.Reset(3 * c.log.s.options.FollowHeartbeat)
	select {
	case message := <-c.messages:
		return message, nil
	case <-switched:
		return nil, nil
	case <-c.silence.C:
		return nil, c.reopen(ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// reopen starts over at the next number, as soon as the server can be reached.
func (c *jetStreamCursor) reopen(ctx context.Context) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, reopenPauseMax) {
		_, switched := c.log.s.connection()
		if c.log.s.nc.IsClosed() {
			return fmt.Errorf("follow lane %d: %w", c.log.lane, nats.ErrConnectionClosed)
		}
		if c.log.s.nc.IsConnected() {
			err := c.open(ctx)
			if missing := (*MissingLogError)(nil); err == nil || errors.As(err, &missing) {
				return err
			}
		}
		c.drop()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-switched:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		timer.Stop()
	}
}

// status handles what the server says about a pull.
func (c *jetStreamCursor) status(ctx context.Context, message *nats.Msg) error {
	status, text := message.Header.Get("Status"), message.Header.Get("Description")
	if status == "100" { // Heartbeat: nothing new.
		return c.examine(ctx)
	}
	if message.Subject != c.inbox+"."+strconv.FormatUint(c.pull, 36) {
		return nil // It is about a pull that brought all it could.
	}
	switch {
	case status == "408": // The pull expired.
		c.examined = false
	case status == "409" && strings.HasPrefix(text, "Message Size Exceeds MaxBytes"): // It is complete.
		if c.arrived == 0 {
			return fmt.Errorf("follow lane %d: commit %d is larger than the window of %d bytes", c.log.lane, c.next, c.log.s.options.FollowWindow)
		}
	case status == "400":
		return fmt.Errorf("follow lane %d: the server refused to deliver: %s", c.log.lane, text)
	default: // The consumer is gone, or its server is leaving.
		return c.reopen(ctx)
	}
	if err := c.ask(); err != nil {
		return fmt.Errorf("follow lane %d: %w", c.log.lane, err)
	}
	return nil
}

// gap is called when a later commit arrives than the next one. If the next one can be read, messages were lost on the way.
func (c *jetStreamCursor) gap(ctx context.Context, number uint64) error {
	_, err := c.log.Read(ctx, c.next)
	if errors.Is(err, ErrNoCommit) {
		err = &ChainError{Lane: c.log.lane, Number: c.next, Reason: fmt.Sprintf("found number %d instead", number)}
	}
	if err != nil {
		return err
	}
	return c.reopen(ctx)
}

// examine compares the log's head with the next number when the server has nothing new: a server passes over a message that it
// cannot read, and at the end of the log nothing follows that would show the gap.
func (c *jetStreamCursor) examine(ctx context.Context) error {
	if c.examined {
		return nil
	}
	head, err := c.log.Head(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return nil // A passing fault; the next heartbeat asks again.
	}
	if head < c.next {
		c.examined = true
		return nil
	}
	if len(c.ahead) > 0 || len(c.messages) > 0 || c.doubted != c.next {
		c.doubted = c.next // It may have come meanwhile; the next heartbeat knows better.
		return nil
	}
	return c.gap(ctx, head)
}

// messageNumber reads the stream sequence out of a delivered message's reply subject:
// $JS.ACK.<stream>.<consumer>.<delivered>.<stream sequence>.<consumer sequence>.<time>.<pending>, or, with a domain,
// $JS.ACK.<domain>.<account>.<stream>.<consumer>.….
func messageNumber(reply string) (uint64, error) {
	tokens := strings.Split(reply, ".")
	at := 5
	if len(tokens) >= 11 {
		at = 7
	}
	if len(tokens) < 9 || tokens[0] != "$JS" || tokens[1] != "ACK" {
		return 0, fmt.Errorf("unexpected reply subject %q", reply)
	}
	number, err := strconv.ParseUint(tokens[at], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("unexpected reply subject %q: %w", reply, err)
	}
	return number, nil
}

// Buffered counts commits alone: among the messages may be one that says that a window is full.
func (c *jetStreamCursor) Buffered() int {
	for {
		select {
		case message := <-c.messages:
			c.ahead = append(c.ahead, message)
			if isCommit(message) {
				c.commitsAhead++
			}
		default:
			return c.commitsAhead
		}
	}
}

// takeAhead returns the next message that is there, nil when there is none.
func (c *jetStreamCursor) takeAhead() *nats.Msg {
	if c.Buffered(); len(c.ahead) == 0 {
		return nil
	}
	message := c.ahead[0]
	c.ahead[0] = nil
	if c.ahead = c.ahead[1:]; len(c.ahead) == 0 {
		c.ahead = nil // Its array would grow for ever otherwise.
	}
	if isCommit(message) {
		c.commitsAhead--
	}
	return message
}

// isCommit tells a message of the stream from what the server says about it.
func isCommit(message *nats.Msg) bool { return message.Reply != "" }

func (c *jetStreamCursor) Close() {
	c.drop()
	c.silence.Stop()
}
