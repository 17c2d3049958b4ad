package eventstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// A Post carries questions to whoever answers a subject of a NATS server, and their answers back. It keeps nothing: a question that
// nobody takes at once is not delivered, and whether one that got no answer was taken, nobody knows.
// Its methods may be called by any number of goroutines.
//
// A question may be on its way for long: what a cut network holds back, it delivers when it is joined up again, when whoever asked has
// long given up, or asked again and was answered. So each answer carries a stamp of whoever gives it, and the next question to
// the same subject carries that stamp back, with those of others who answer there. It was written after the stamp was: whoever answers
// tells by its own clock how old it can be, and takes none that may be older than FreshMax. No two clocks are compared.
type Post struct {
	nc      *nats.Conn
	options PostOptions
	// process tells the stamps of this Post from those of others, and of earlier processes; began is when they begin to count.
	process string
	began   time.Time

	mu     sync.Mutex
	stamps map[string][]string // the newest of each who answers, by subject, the last to answer first; a list is never changed
}

// PostOptions configure a Post. The zero value is valid.
type PostOptions struct {
	// BytesMax bounds questions and answers; 0 means 4 MiB. What the server takes bounds them too.
	BytesMax int
	// BudgetMax bounds the time for an answer, whatever deadline whoever asks has; 0 means 30 s.
	BudgetMax time.Duration
	// FreshMax is how old a question may be that is taken; 0 means 1 s. Those of programs that know no stamps are taken at any age.
	FreshMax time.Duration
	// Clock tells the time; nil means time.Now.
	Clock Clock
	// Inject says what goes along with a question as its headers, such as a trace's context; nil means nothing. It sets only
	// keys of its own. Extract puts it into the context of the one who answers.
	Inject  func(ctx context.Context, set func(key, value string))
	Extract func(ctx context.Context, get func(key string) string) context.Context
}

// Headers of questions and answers.
const (
	// budgetHeader says how long whoever asks will still wait, in milliseconds: the clocks of two nodes differ.
	budgetHeader = "Weir-Budget-Ms"
	// statusHeader says of an answer that it is none.
	statusHeader   = "Weir-Status"
	statusBusy     = "busy"
	statusTooLarge = "too-large"
	statusLate     = "late"
	// stampHeader of an answer is whoever's stamp that gives it; of a question, those that the newest answers had, or noStamp.
	stampHeader = "Weir-Stamp"
	noStamp     = "-"
)

// stampsMax bounds the subjects whose stamps are kept. More are asked a second time after each FreshMax.
const stampsMax = 1 << 12

// answerersMax bounds those whose stamps a question carries. While a lane is handed over two answer for it.
const answerersMax = 4

// headerBytesMax is what is left for the headers of the largest question or answer that a server takes.
const headerBytesMax = 4 << 10

// The outcomes of a question that got no answer.
var (
	// ErrNobodyAnswers: nobody answers the subject now. The question was not taken.
	ErrNobodyAnswers = errors.New("nobody answers")
	// ErrBusy: whoever answers has as many questions as it may. The question was not taken.
	ErrBusy = errors.New("too many questions are being answered")
	// ErrLate: a question was so long on its way that whoever answers did not take it, or was the first there. Asking again has a
	// stamp. If others answer the subject too, one of them may have taken it.
	ErrLate = errors.New("the question was too old when it came")
	// ErrAnswerLost: there was no answer in time. The question may have been taken, or may still be.
	ErrAnswerLost = errors.New("no answer came")
)

// A TooLargeError says that a question or an answer is too large to be carried. A question that is was not taken.
type TooLargeError struct {
	// What it is, "question" or "answer".
	What string
	// Bytes it has, 0 for an answer: whoever gave it did not say. BytesMax is how many it may have.
	Bytes, BytesMax int
}

func (e *TooLargeError) Error() string {
	if e.Bytes == 0 {
		return fmt.Sprintf("the %s is larger than %d bytes", e.What, e.BytesMax)
	}
	return fmt.Sprintf("the %s has %d bytes, at most %d are carried", e.What, e.Bytes, e.BytesMax)
}

// NewPost returns a Post over a connection, which stays the caller's.
func NewPost(nc *nats.Conn, options PostOptions) *Post {
	setDefault(&options.BytesMax, 4<<20)
	setDefault(&options.BudgetMax, 30*time.Second)
	setDefault(&options.FreshMax, time.Second)
	if options.Clock == nil {
		options.Clock = time.Now
	}
	return &Post{nc: nc, options: options, process: rand.Text()[:processLen], began: options.Clock(), stamps: map[string][]string{}}
}

// processLen is the length of what tells stamps of different Posts apart: 60 bits.
const processLen = 12

// stamp returns a stamp of now.
func (p *Post) stamp() string {
	return p.process + strconv.FormatInt(p.options.Clock().Sub(p.began).Milliseconds(), 10)
}

// fresh reports whether a question with those stamps was asked at most FreshMax ago, or by a program that knows no stamps.
func (p *Post) fresh(stamps []string) bool {
	for _, stamp := range stamps {
		if millis, ours := strings.CutPrefix(stamp, p.process); ours {
			at, err := strconv.ParseInt(millis, 10, 64)
			return err == nil && p.options.Clock().Sub(p.began)-time.Duration(at)*time.Millisecond <= p.options.FreshMax
		}
	}
	return len(stamps) == 0
}

// none is what a question has when nobody is known who answers.
var none = []string{noStamp}

// stampsOf returns the newest stamps of those who answer a subject.
func (p *Post) stampsOf(subject string) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if stamps := p.stamps[subject]; len(stamps) > 0 {
		return stamps
	}
	return none
}

// keep keeps the stamp of an answer for the next question.
func (p *Post) keep(subject, stamp string) {
	if len(stamp) < processLen {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before, known := p.stamps[subject]
	if !known && len(p.stamps) >= stampsMax {
		clear(p.stamps)
	}
	stamps := []string{stamp}
	for _, other := range before {
		if other[:processLen] != stamp[:processLen] && len(stamps) < answerersMax {
			stamps = append(stamps, other)
		}
	}
	p.stamps[subject] = stamps
}

// bytesMax is the largest question or answer.
func (p *Post) bytesMax() int {
	if server := int(p.nc.MaxPayload()) - headerBytesMax; server > 0 {
		return min(p.options.BytesMax, server)
	}
	return p.options.BytesMax
}

// Ask asks once and waits for the answer until ctx ends, but at most for wait; 0 means BudgetMax. Whoever answers is told that it has
// until ctx ends. Errors: ErrNobodyAnswers, ErrBusy, ErrLate, ErrAnswerLost, *TooLargeError, or the connection's.
func (p *Post) Ask(ctx context.Context, subject string, question []byte, wait time.Duration) ([]byte, error) {
	if size, bytesMax := len(question), p.bytesMax(); size > bytesMax {
		return nil, &TooLargeError{What: "question", Bytes: size, BytesMax: bytesMax}
	}
	budget := p.options.BudgetMax
	if deadline, bounded := ctx.Deadline(); bounded {
		budget = min(budget, time.Until(deadline))
	}
	if wait == 0 || wait > budget {
		wait = budget
	}
	message := &nats.Msg{Subject: subject, Data: question, Header: nats.Header{
		// At least 1, so that what is asked at the last moment is not taken for having no limit.
		budgetHeader: {strconv.FormatInt(max(budget.Milliseconds(), 1), 10)},
		stampHeader:  p.stampsOf(subject),
	}}
	if p.options.Inject != nil {
		p.options.Inject(ctx, func(key, value string) { message.Header[key] = []string{value} })
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	answer, err := p.nc.RequestMsgWithContext(ctx, message)
	switch {
	case err == nil:
		p.keep(subject, answer.Header.Get(stampHeader))
		return answer.Data, p.refusalOf(answer)
	case errors.Is(err, nats.ErrNoResponders):
		return nil, ErrNobodyAnswers
	case errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrConnectionClosed): // It waited for the answer already, perhaps.
		return nil, fmt.Errorf("%w: %w", ErrAnswerLost, err)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w", ErrAnswerLost, ctx.Err())
	default:
		return nil, fmt.Errorf("ask %s: %w", subject, err)
	}
}

// refusalOf reads what an answer says that is none.
func (p *Post) refusalOf(answer *nats.Msg) error {
	if len(answer.Header) == 0 {
		return nil
	}
	switch answer.Header.Get(statusHeader) {
	case "":
		return nil
	case statusBusy:
		return ErrBusy
	case statusLate:
		return ErrLate
	case statusTooLarge:
		return &TooLargeError{What: "answer", BytesMax: p.bytesMax()}
	default:
		return fmt.Errorf("the answer has the status %.64q, which this program does not know", answer.Header.Get(statusHeader))
	}
}

// Serve calls answer with each question to a subject, each in a goroutine of its own, at most inFlightMax at a time: those beyond
// are refused with ErrBusy, and those that may be older than FreshMax with ErrLate. The context of an answer ends when nobody waits for it any more, or with ctx. What answer returns is
// sent; nothing is sent for nil, and whoever asked waits in vain.
//
// The caller closes the Service.
func (p *Post) Serve(ctx context.Context, subject string, inFlightMax int, answer func(ctx context.Context, question []byte) []byte) (*Service, error) {
	s := newService(p.nc)
	places := make(chan struct{}, inFlightMax)
	sub, err := p.nc.Subscribe(subject, func(question *nats.Msg) {
		if question.Reply == "" {
			return // It is no question, then.
		}
		if !p.fresh(question.Header.Values(stampHeader)) {
			p.refuse(question, statusLate)
			return
		}
		select {
		case places <- struct{}{}:
		default:
			p.refuse(question, statusBusy)
			return
		}
		s.answering.Go(func() {
			defer func() { <-places }()
			p.answer(ctx, question, answer)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("answer %s: %w", subject, err)
	}
	s.begin(sub)
	return s, nil
}

// answer answers one question.
func (p *Post) answer(ctx context.Context, question *nats.Msg, answer func(context.Context, []byte) []byte) {
	budget := p.options.BudgetMax
	if millis, err := strconv.ParseInt(question.Header.Get(budgetHeader), 10, 64); err == nil && millis > 0 && millis < budget.Milliseconds() {
		budget = time.Duration(millis) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	if p.options.Extract != nil {
		ctx = p.options.Extract(ctx, question.Header.Get)
	}
	data := answer(ctx, question.Data)
	switch {
	case data == nil:
	case len(data) > p.bytesMax():
		p.refuse(question, statusTooLarge)
	default:
		// An answer that cannot be sent is one that is lost: whoever asked finds out.
		_ = p.nc.PublishMsg(&nats.Msg{Subject: question.Reply, Data: data, Header: nats.Header{stampHeader: {p.stamp()}}})
	}
}

func (p *Post) refuse(question *nats.Msg, status string) {
	_ = p.nc.PublishMsg(&nats.Msg{Subject: question.Reply, Header: nats.Header{statusHeader: {status}, stampHeader: {p.stamp()}}}) // As an answer.
}

// A Service answers or hears a subject.
type Service struct {
	nc        *nats.Conn
	sub       *nats.Subscription
	end       sync.Once
	ended     chan struct{} // closed when nothing comes any more
	answering sync.WaitGroup
}

// drainMax bounds how long a closing Service takes in what is on its way to this process.
const drainMax = 2 * time.Second

func newService(nc *nats.Conn) *Service { return &Service{nc: nc, ended: make(chan struct{})} }

// begin is told of the subscription.
func (s *Service) begin(sub *nats.Subscription) {
	s.sub = sub
	end := func(string) { s.end.Do(func() { close(s.ended) }) }
	sub.SetClosedHandler(end)
	if !sub.IsValid() { // The connection was closed meanwhile, and told nobody.
		end("")
	}
}

// Stop lets no more come than is on its way to this process, which is still answered. It does not wait.
func (s *Service) Stop() {
	_ = s.sub.Drain() // Fails when it was stopped before, or on a closed connection, where nothing comes any more.
}

// Close stops, and waits until everything is answered that was taken.
func (s *Service) Close() {
	s.Stop()
	patience := time.NewTimer(drainMax)
	defer patience.Stop()
	if s.nc.IsConnected() {
		select {
		case <-s.ended:
		case <-patience.C:
		}
	}
	_ = s.sub.Unsubscribe() // Fails when it ended.
	<-s.ended
	s.answering.Wait()
}

// Send sends a message to whoever hears a subject, if anybody does: it may be lost. It does not wait.
func (p *Post) Send(subject string, message []byte) error {
	if size, bytesMax := len(message), p.bytesMax(); size > bytesMax {
		return &TooLargeError{What: "message", Bytes: size, BytesMax: bytesMax}
	}
	if err := p.nc.Publish(subject, message); err != nil {
		return fmt.Errorf("send to %s: %w", subject, err)
	}
	return nil
}

// Hear calls hear with each message that is sent to a subject, one after the other; it must not block. Of those that wait for it, no
// more are kept than pendingMax: the others are lost. The caller closes the Service.
func (p *Post) Hear(subject string, pendingMax int, hear func(message []byte)) (*Service, error) {
	s := newService(p.nc)
	sub, err := p.nc.Subscribe(subject, func(message *nats.Msg) { hear(message.Data) })
	if err != nil {
		return nil, fmt.Errorf("hear %s: %w", subject, err)
	}
	if err := sub.SetPendingLimits(pendingMax, 2*p.options.BytesMax); err != nil {
		return nil, errors.Join(fmt.Errorf("hear %s: %w", subject, err), sub.Unsubscribe())
	}
	s.begin(sub)
	return s, nil
}

// Watch calls lost whenever the connection to the server is lost, and back whenever there is one again, until ctx ends. Questions and answers
// that were on their way may have gone with it, and nothing says which.
func (p *Post) Watch(ctx context.Context, lost, back func()) {
	statuses := p.nc.StatusChanged(nats.RECONNECTING, nats.CONNECTED)
	defer p.nc.RemoveStatusListener(statuses)
	for {
		select {
		case <-ctx.Done():
			return
		case status := <-statuses:
			if status == nats.CONNECTED {
				back()
			} else {
				lost()
			}
		}
	}
}

// ReturnSubject is where a node says, by its id, that what was asked of it before may be lost. It is one of the subjects for commands, so that
// who may use those may use this.
const ReturnSubject = "weir.cmd.back"

// CommandSubject returns the subject that the owner of a lane answers commands on.
func CommandSubject(lane uint32) string { return fmt.Sprintf("weir.cmd.%02d", lane) }

// NodeCommandSubject returns the subject that a node answers commands for a lane on, whoever decides the lane. It has as many parts as
// CommandSubject, so that who may use that may use this. REQUIRES: ValidNodeID.
func NodeCommandSubject(lane uint32, nodeID string) string {
	return fmt.Sprintf("weir.cmd.%02d-%s", lane, nodeID)
}

// NodeIDLenMax is the longest id of a node.
const NodeIDLenMax = 64

// ValidNodeID reports whether an id can name a node: it is a key of buckets, and part of subjects.
func ValidNodeID(id string) bool {
	return id != "" && len(id) <= NodeIDLenMax && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") == ""
}

// EscrowSubject returns the subject on which a lane's escrow hears others.
func EscrowSubject(lane uint32) string { return fmt.Sprintf("weir.escrow.%02d", lane) }
