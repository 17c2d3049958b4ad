// Package courier carries commands to the nodes that decide their lanes, and what escrows have to say to each other: any node answers
// anything. The messages are those of weir.node.v1; ADR 11 says why they are as they are.
//
// A command makes one hop. Whoever gets one from another node decides it or says that the lane is not its own, and never passes it on.
package courier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// A Courier has requests decided by the nodes that decide their lanes, and answers those of other nodes for the lanes of this one. It
// is safe for use by several goroutines.
type Courier struct {
	options Options

	mu       sync.Mutex
	owned    map[uint32]bool
	services map[uint32][]*eventstore.Service
	// addressed are the services of what is asked of this node by its id, while Run runs.
	addressed []*eventstore.Service
	// local decides for this node, open begins to answer for a lane: both are nil unless Run runs.
	local Local
	open  func(lane uint32) error
	// closing are services of lanes that stopped; failed is what ends Run.
	closing sync.WaitGroup
	failed  chan error
	// waits are the questions to other nodes that may be asked again.
	waits waits
}

// Local decides in the lanes of this node. lanes.Set implements it.
type Local interface {
	// SubmitLocal decides a request here, or returns a *lanes.NotOwnerError.
	SubmitLocal(ctx context.Context, lane uint32, request lanes.Request) (*lanes.Reply, error)
	Owned(lane uint32) bool
	// Deliver gives a message to the escrow of a lane of this node. It does not block.
	Deliver(message lanes.Message)
}

// Options configure a Courier. Post and Topology are required.
type Options struct {
	Post     *eventstore.Post
	Topology eventstore.Topology
	// NodeID is this node's, 1 to 64 characters of A-Z a-z 0-9 _ -: others ask it by that. Empty means that it is asked only for the
	// lanes that it decides.
	NodeID string
	// OwnerOf returns the id of the node that decides a lane as far as this one knows, "" when it does not know. It is called for
	// each command, and again when that did not find its lane. Nil means that it never knows.
	OwnerOf func(lane uint32) string
	// InFlightMax bounds the commands of other nodes that are being decided for one lane, on each of its two subjects; 0 means
	// 4,096. Beyond it, they get an *eventstore.QueueFullError.
	InFlightMax int
	// AnswerWait is how long the first answer to a command may take before the same is asked again, if that is harmless: the answer may
	// be lost, or the node that was to give it. It doubles each time, up to 8 times as much. 0 means 1 s.
	AnswerWait time.Duration
	// OwnerWait bounds how long a command waits for somebody to decide its lane: as long as a hand-over takes, or as it takes to notice
	// that a node is gone. 0 means 5 s.
	OwnerWait time.Duration
	// BudgetMax bounds a command whose context has no deadline; 0 means 30 s.
	BudgetMax time.Duration
	// Principal names who called, for the log of the node that decides; nil means nobody.
	Principal func(ctx context.Context) string
	// Logger is told of commands that cannot be read and of what goes wrong in deciding; nil means slog.Default.
	Logger *slog.Logger
}

// Limits that nobody needs to set.
const (
	// pauseMin and pauseMax bound the pause before somebody is looked for again who decides a lane. It doubles, and is jittered.
	pauseMin = 5 * time.Millisecond
	pauseMax = 100 * time.Millisecond
	// questionLeast is what has to be left of the caller's time after a pause: who is asked later has the deadline pass instead of an answer.
	questionLeast = 20 * time.Millisecond
	// answerWaitDoublings is how often AnswerWait doubles.
	answerWaitDoublings = 3
	// againAfter is when a caller may come again whose lane nobody decides.
	againAfter = time.Second
	// busyAfter is when a caller may come again who found too many before them.
	busyAfter = 50 * time.Millisecond
	// bytesUsual is room for most commands and answers.
	bytesUsual = 512
	// escrowPendingMax bounds the messages to one lane's escrow that wait to be read; more are lost, as Transport allows.
	escrowPendingMax = 1 << 14
)

// protocol is the newest version of the messages between nodes that this program understands: see Command.needs.
const protocol = 1

var (
	_ lanes.Remote    = (*Courier)(nil)
	_ lanes.Transport = (*Courier)(nil)
)

// New returns a Courier. It answers other nodes while Run runs.
func New(options Options) (*Courier, error) {
	if options.Post == nil {
		return nil, errors.New("a courier needs a Post")
	}
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	setDefault(&options.InFlightMax, 4096)
	setDefault(&options.AnswerWait, time.Second)
	setDefault(&options.OwnerWait, 5*time.Second)
	setDefault(&options.BudgetMax, 30*time.Second)
	if options.NodeID != "" && !eventstore.ValidNodeID(options.NodeID) {
		return nil, fmt.Errorf("%q cannot name a node: it is not 1 to %d characters of A-Z a-z 0-9 _ -", options.NodeID, eventstore.NodeIDLenMax)
	}
	if options.OwnerOf == nil {
		options.OwnerOf = func(uint32) string { return "" }
	}
	if options.Principal == nil {
		options.Principal = func(context.Context) string { return "" }
	}
	if options.Logger == nil {
		options.Logger = slog.Default()
	}
	return &Courier{
		options: options, owned: map[uint32]bool{}, services: map[uint32][]*eventstore.Service{}, failed: make(chan error, 1),
	}, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Submit implements lanes.Remote: it asks the node that decides the lane. A request whose answer was lost is asked again if that is
// harmless, see repeatable; while nobody decides the lane, it waits. Both end with ctx. Errors are those of lanes.Commands; in an
// *eventstore.UnavailableError, eventstore.ErrAnswerLost says that the request may have taken effect, and eventstore.ErrNobodyAnswers or
// a *lanes.NotOwnerError that it has not.
func (c *Courier) Submit(ctx context.Context, lane uint32, request lanes.Request) (*lanes.Reply, error) {
	question := encode(make([]byte, 0, bytesUsual), &command{
		needs: protocol, request: request, refuseNew: request.Refusal != nil, principal: c.options.Principal(ctx),
	}, walkCommand)
	bounded, cancel := context.WithTimeout(ctx, c.options.BudgetMax)
	defer cancel()
	search := searching{lane: lane, pause: pauseMin, until: time.Now().Add(c.options.OwnerWait)}
	search.ask(c.lookUp(&search))
	var wait time.Duration // All the time there is, if it cannot be asked again.
	if repeatable(&request) {
		wait = c.options.AnswerWait
	}
	for {
		data, err := c.ask(bounded, &search, question, wait)
		var notOwner *lanes.NotOwnerError
		switch {
		case err == nil:
			reply, outcome := c.outcome(lane, &request, data)
			if !errors.As(outcome, &notOwner) {
				return reply, outcome
			}
			if err = outcome; search.follow(notOwner.Owner) {
				continue
			}
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, eventstore.ErrNobodyAnswers):
			if search.askAnybody() { // It is gone, or its program is an older one.
				continue
			}
		case errors.Is(err, eventstore.ErrLate):
			if search.node == "" && wait == 0 { // Another one who answers for the lane may have taken it.
				return nil, c.unavailable(lane, fmt.Errorf("%w: %w", eventstore.ErrAnswerLost, err))
			}
			if search.again() {
				continue
			}
		case errors.Is(err, eventstore.ErrBusy):
			return nil, &eventstore.QueueFullError{Lane: lane, RetryAfter: busyAfter}
		case errors.Is(err, errMoved), errors.Is(err, errBroke):
			wait = c.options.AnswerWait
			search.ask(c.lookUp(&search))
			continue
		case errors.Is(err, eventstore.ErrAnswerLost):
			if wait == 0 || bounded.Err() != nil {
				return nil, c.unavailable(lane, err)
			}
			wait = min(2*wait, c.options.AnswerWait<<answerWaitDoublings)
			search.askAnybody()
			continue
		default:
			return nil, fmt.Errorf("ask for a command in lane %d: %w", lane, err)
		}
		if !search.goesOn(bounded) {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, c.unavailable(lane, err)
		}
		search.ask(c.lookUp(&search))
	}
}

func (c *Courier) unavailable(lane uint32, cause error) error {
	return &eventstore.UnavailableError{Lane: lane, RetryAfter: againAfter, Cause: cause}
}

// outcome reads the answer to a command.
func (c *Courier) outcome(lane uint32, request *lanes.Request, data []byte) (*lanes.Reply, error) {
	var got answer
	err := decode(data, &got, walkAnswer)
	switch {
	case errors.Is(err, errNewer):
		return nil, &VersionError{Lane: lane, Here: true, Message: err.Error()}
	case err != nil:
		return nil, &FaultError{Lane: lane, Message: "its answer cannot be read: " + err.Error()}
	case got.failure != nil:
		return nil, got.failure.errorOf(lane, request)
	case got.reply == nil:
		return nil, &FaultError{Lane: lane, Message: "its answer is empty"}
	}
	return got.reply, nil
}

// searching is the search for whoever decides a lane. A command is asked of one node by its id, so that each question has one answer,
// also while the lane moves: the interest of servers in the lane's subject follows a hand-over later than the hand-over, and until
// then delivers to nobody what is asked there. "Not mine" of a node that was asked by its id means that nobody has taken the command.
// Only where the node is not known, or is not heard of, whoever answers for the lane is asked.
type searching struct {
	lane uint32
	// node is who is asked, "" for whoever answers for the lane.
	node string
	// followed says that the node was named by another one since the last pause, repeated that who is asked was asked again since.
	followed, repeated bool
	// moves is how often the lane had moved when it was looked up who decides it.
	moves uint64
	pause time.Duration
	until time.Time
}

func (s *searching) subject() string {
	if s.node == "" {
		return eventstore.CommandSubject(s.lane)
	}
	return eventstore.NodeCommandSubject(s.lane, s.node)
}

// ask has a node asked, "" for whoever answers. What is no node's id is passed over: a subject is made of it.
func (s *searching) ask(node string) {
	s.node, s.followed, s.repeated = "", false, false
	if eventstore.ValidNodeID(node) {
		s.node = node
	}
}

// follow has the node asked that the one asked before has named. It reports false when there is no such, or when it was followed since the
// last pause: two nodes that each name the other one are not asked in turn without end.
func (s *searching) follow(node string) bool {
	if s.followed || node == s.node || !eventstore.ValidNodeID(node) {
		return false
	}
	s.node, s.followed, s.repeated = node, true, false
	return true
}

// askAnybody has whoever answers asked, and reports false when that was done already.
func (s *searching) askAnybody() bool {
	if s.node == "" {
		return false
	}
	s.node, s.followed, s.repeated = "", true, false
	return true
}

// again has who was asked asked again, and reports false when that was done already since the last pause.
func (s *searching) again() bool {
	if s.repeated {
		return false
	}
	s.repeated = true
	return true
}

// goesOn pauses, and reports false when there is no time left for it and for a question.
func (s *searching) goesOn(ctx context.Context) bool {
	pause := s.pause/2 + rand.N(s.pause)
	s.pause = min(2*s.pause, pauseMax)
	end := time.Now().Add(pause)
	if deadline, bounded := ctx.Deadline(); end.After(s.until) || bounded && end.Add(questionLeast).After(deadline) {
		return false
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// repeatable reports whether a request may be submitted again while nobody knows what became of it. One with a request id may: the
// lane's ledger answers (I4). Others may if their command says itself what it makes true: what it is about has a name that whoever sent
// it gave, and deciding it again says nothing. Package api submits none without an id but PutProduct, PutCampaign and PutCoupon, and
// the reactors only RecordPaymentResult, RecordStrayPayment, RecordRefundResult, AwardPoints and TakeBackPoints.
func repeatable(request *lanes.Request) bool {
	if request.RequestID != "" {
		return true
	}
	switch request.Command.(type) {
	case domain.CancelOrder, domain.PutProduct, domain.PutCampaign, domain.PutCoupon, domain.EraseUser, domain.RecordPaymentResult,
		domain.RecordStrayPayment, domain.RecordRefundResult, domain.ConfirmDelivery, domain.AwardPoints, domain.TakeBackPoints,
		domain.DeleteWebhookEndpoint:
		return true
	case domain.PlaceOrder, domain.ReceiveStock, domain.PreheatStock, domain.StartPayment, domain.CapturePayment, domain.VoidPayment,
		domain.RefundPayment, domain.ShipItems, domain.RequestReturn, domain.ReceiveReturn, domain.AddNote, domain.PutWebhookEndpoint,
		domain.ExpireOrder, domain.GrantStock, domain.AllotStock, domain.ReturnStock, domain.ReclaimStock:
	}
	return false
}

// Send implements lanes.Transport: to a lane of this node in this process, to others over the Post. It does not wait.
func (c *Courier) Send(message lanes.Message) {
	c.mu.Lock()
	local := c.local
	c.mu.Unlock()
	if local != nil && local.Owned(message.To) {
		local.Deliver(message)
		return
	}
	// One that cannot be sent is one that is lost: the escrow says it again.
	_ = c.options.Post.Send(eventstore.EscrowSubject(message.To), encode(nil, &message, walkMessage))
}

func walkMessage(w *walk, m *lanes.Message) {
	enum(w, 1, &m.Kind, lanes.MessageLift)
	w.text(2, &m.SKU)
	number(w, 3, &m.From)
	number(w, 4, &m.To)
	number(w, 5, &m.Number)
	number(w, 6, &m.Units)
	number(w, 7, &m.Want)
	number(w, 8, &m.Taken)
	number(w, 9, &m.Inflow)
	number(w, 10, &m.Round)
}
