package courier

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/nats-io/nats.go"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/projections"
)

// A cluster is some nodes in this process, on one server and the logs of one memory.
type cluster struct {
	server *embedded.Server
	logs   []eventstore.Log
	nodes  []*node
	// post are options of the nodes that join.
	post eventstore.PostOptions
	// inFront is put in front of the Sets of nodes that join, where other nodes ask; may be nil.
	inFront func(Local) Local

	mu  sync.Mutex
	now time.Time
}

// A node is a Set and its Courier.
type node struct {
	*lanes.Set
	id      string
	courier *Courier
	post    *eventstore.Post
	conn    *nats.Conn
	store   *projections.Store
	// held says that the node may decide what it decides.
	held atomic.Bool
	stop func() // ends the Set and the Courier and waits for them
}

var start = time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC)

func newCluster(t testing.TB, laneCount uint32) *cluster {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	c := &cluster{server: server, now: start}
	for lane := range laneCount {
		c.logs = append(c.logs, eventstore.OpenMemoryLog(lane, laneCount))
	}
	return c
}

func (c *cluster) clock() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *cluster) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// join starts a node that decides the lanes which own says. change may change the options of its Courier.
func (c *cluster) join(t testing.TB, own func(uint32) bool, change func(*Options)) *node {
	t.Helper()
	n := &node{id: fmt.Sprintf("n%d", len(c.nodes))}
	n.held.Store(true)
	var err error
	if n.conn, err = nats.Connect(c.server.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	n.post = eventstore.NewPost(n.conn, c.post)
	topology := eventstore.Topology{Lanes: uint32(len(c.logs))}
	options := Options{
		Post: n.post, Topology: topology, NodeID: n.id, OwnerOf: func(lane uint32) string { return n.OwnerOf(lane) },
		OwnerWait: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&options)
	}
	if n.courier, err = New(options); err != nil {
		t.Fatal(err)
	}
	if n.store, err = projections.OpenStore("state", projections.StoreOptions{FS: vfs.NewMem()}); err != nil {
		t.Fatal(err)
	}
	n.Set, err = lanes.Open(lanes.Options{
		Topology: topology, Store: n.store, Owner: "test", Log: func(lane uint32) eventstore.Log { return c.logs[lane] },
		Lane:   eventstore.LaneOptions{Clock: c.clock, TickEvery: time.Millisecond, ReopenDelay: 10 * time.Millisecond, Logger: options.Logger},
		Shared: true, Remote: n.courier, Transport: n.courier, OnOwnership: n.courier.Own, OnOwner: n.courier.Moved, Entropy: rand.NewChaCha8([32]byte{byte(len(c.nodes))}), // The same in every cluster.
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 2)
	go func() { ended <- n.Run(ctx) }()
	var local Local = n.Set
	if c.inFront != nil {
		local = c.inFront(local)
	}
	go func() { ended <- n.courier.Run(ctx, local) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Errorf("a node ended: %v", err)
			}
		}
		n.conn.Close()
		if err := n.store.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { n.stop() })
	for lane := range topology.Lanes {
		if own(lane) {
			n.Start(lane, n.held.Load)
		}
	}
	eventually(t, "the lanes serve", n.Serving)
	c.nodes = append(c.nodes, n)
	return n
}

func all(uint32) bool  { return true }
func none(uint32) bool { return false }

// eventually polls a condition that another goroutine brings about.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !holds() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		}
	}
}

// asked is a request for a command, in the partition that it is of.
func asked(t testing.TB, userID, requestID string, command domain.Command) lanes.Request {
	t.Helper()
	partition, err := partitionOf(command)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", command))
	return lanes.Request{UserID: userID, RequestID: requestID, Fingerprint: lanes.Fingerprint(sum[:16]), Partition: partition, Command: command}
}

func order(userID, sku string, units int64) domain.PlaceOrder {
	return domain.PlaceOrder{UserID: userID, Lines: []domain.LineRequest{{SKU: sku, Units: units}}}
}

// An outcome is what came of a request.
type outcome struct {
	step  string
	reply *lanes.Reply
	err   error
}

// shop submits commands of every kind, one after the other, and collects what came of them.
type shop struct {
	t        testing.TB
	cluster  *cluster
	submit   func(context.Context, lanes.Request) (*lanes.Reply, error)
	outcomes []outcome
	kinds    map[reflect.Type]bool
}

// ask submits a request and returns its reply, an empty one when it is refused.
func (s *shop) ask(request lanes.Request) *lanes.Reply {
	s.t.Helper()
	s.kinds[reflect.TypeOf(request.Command)] = true
	s.cluster.advance(time.Second)
	reply, err := s.submit(s.t.Context(), request)
	s.outcomes = append(s.outcomes, outcome{fmt.Sprintf("%d: %T %s", len(s.outcomes), request.Command, request.RequestID), reply, err})
	if err != nil {
		return &lanes.Reply{}
	}
	return reply
}

// do submits a command in the name of alice, under an id of its own.
func (s *shop) do(command domain.Command) *lanes.Reply {
	s.t.Helper()
	return s.ask(asked(s.t, "alice", fmt.Sprintf("r%d", len(s.outcomes)), command))
}

// run goes through the life of a shop.
func (s *shop) run() {
	s.t.Helper()
	euro := func(minor int64) domain.Money { return domain.Money{Currency: "EUR", Minor: minor} }
	s.do(order("alice", "mug", 1)) // Unknown.
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: euro(1299), Tax: domain.Tax{RateBps: 1900, Included: true}})
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: euro(1299), Tax: domain.Tax{RateBps: 1900, Included: true}}) // Nothing to say.
	s.do(domain.PutProduct{SKU: "cup", Title: "Cup", Price: domain.Money{Currency: "JPY", Minor: 400}})
	s.do(domain.PutProduct{SKU: "cup", Title: "", Price: euro(1)}) // Invalid.
	s.do(order("alice", "mug", 1))                                 // Sold out.
	s.do(domain.ReceiveStock{SKU: "mug", Units: 100})
	s.do(domain.ReceiveStock{SKU: "cup", Units: 100})
	s.do(domain.PreheatStock{SKU: "mug", UnitsPerLane: 10})
	s.do(domain.PreheatStock{SKU: "mug", UnitsPerLane: 1000})
	now := s.cluster.clock()
	s.do(domain.PutCampaign{CampaignID: "sale", SKU: "mug", Price: euro(999), OpensAt: now.Add(-time.Hour), ClosesAt: now.Add(time.Hour), UserUnitsMax: 3, OrderUnitsMax: 2, Units: 20})
	s.do(domain.PutCampaign{CampaignID: "later", SKU: "mug", Price: euro(999), OpensAt: now.Add(time.Hour), ClosesAt: now.Add(2 * time.Hour), Units: 5})
	s.do(domain.PutCampaign{CampaignID: "over", SKU: "mug", Price: euro(999), OpensAt: now.Add(-2 * time.Hour), ClosesAt: now.Add(-time.Hour), Units: 5})
	for _, id := range []string{"sale", "later", "over", "never"} {
		command := order("alice", "mug", 2)
		command.CampaignID = id
		s.do(command)
		s.do(command) // Another request: the limit.
		command.Lines = []domain.LineRequest{{SKU: "mug", Units: 3}}
		s.do(command)
	}
	s.do(domain.PutCoupon{Code: "TEN", Terms: domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000, UserUsesMax: 1, UsesMax: 1}})
	s.do(domain.PutCoupon{Code: "BIG", Terms: domain.CouponTerms{Kind: domain.CouponFixed, AmountMinor: 100, Currency: "EUR", MinSubtotalMinor: 1_000_000}})
	s.do(domain.PutCoupon{Code: "LATER", Terms: domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000, ValidFrom: now.Add(time.Hour)}})
	s.do(domain.PutCoupon{Code: "OVER", Terms: domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1000, ValidUntil: now.Add(-time.Hour)}})
	for _, code := range []string{"TEN", "TEN", "BIG", "LATER", "OVER", "NONE"} {
		for _, user := range []string{"alice", "bob"} {
			command := order(user, "mug", 1)
			command.CouponCode = code
			s.ask(asked(s.t, user, fmt.Sprintf("c%d", len(s.outcomes)), command))
		}
	}
	mixed := order("alice", "mug", 1)
	mixed.Lines = append(mixed.Lines, domain.LineRequest{SKU: "cup", Units: 1})
	s.do(mixed)
	sealed := order("alice", "mug", 3)
	sealed.SealedPersonal, sealed.SealKey = []byte{1, 2, 3}, 7
	first := asked(s.t, "alice", "first", sealed)
	placed := s.ask(first).Order
	s.ask(first) // The same again: the same reply.
	reused := first
	reused.Fingerprint[0]++
	s.ask(reused)
	reused.Former = first.Fingerprint
	s.ask(reused) // An older program's fingerprint.
	stranger := asked(s.t, "eve", "x1", domain.CancelOrder{OrderID: placed.ID})
	stranger.Owner = "eve"
	s.ask(stranger)

	s.do(domain.AddNote{OrderID: placed.ID, By: "clerk", Sealed: []byte{4, 5}, SealKey: 7})
	s.do(domain.ShipItems{OrderID: placed.ID, By: "clerk"}) // Not paid.
	refused := asked(s.t, "alice", "no-provider", domain.StartPayment{OrderID: placed.ID, Provider: "none-such", Method: "card"})
	refused.Refusal = errors.New("there is no such provider here")
	s.ask(refused)
	paid := s.do(domain.StartPayment{OrderID: placed.ID, Provider: "sandbox", Method: "card", By: "alice"})
	s.do(domain.StartPayment{OrderID: placed.ID, Provider: "sandbox", Method: "card", By: "alice"}) // Under way.
	result := domain.RecordPaymentResult{OrderID: placed.ID, PaymentID: paid.PartID, Provider: "sandbox", Result: domain.ResultAuthorized, Amount: placed.Total}
	s.ask(asked(s.t, "", "", result)) // A reactor has no request id.
	s.ask(asked(s.t, "", "", result))
	s.do(domain.CapturePayment{OrderID: placed.ID, By: "clerk"})
	result.Result = domain.ResultCaptured
	s.ask(asked(s.t, "", "", result))
	result.PaymentID += "0"
	s.ask(asked(s.t, "", "", result)) // No such payment.
	result.PaymentID, result.Amount = paid.PartID, euro(1)
	s.ask(asked(s.t, "", "", result)) // Another amount.
	s.ask(asked(s.t, "", "", domain.RecordStrayPayment{OrderID: placed.ID, PaymentID: paid.PartID, Amount: placed.Total, Why: "twice"}))
	s.ask(asked(s.t, "", "", domain.AwardPoints{OrderID: placed.ID, PaymentID: paid.PartID, PerMajor: 1}))
	shipped := s.do(domain.ShipItems{OrderID: placed.ID, Lines: []domain.LineRequest{{SKU: "mug", Units: 2}}, Carrier: "DHL", Tracking: "1", By: "clerk"})
	s.do(domain.ShipItems{OrderID: placed.ID, Lines: []domain.LineRequest{{SKU: "mug", Units: 2}}, By: "clerk"}) // One is left.
	s.do(domain.CancelOrder{OrderID: placed.ID, Reason: "late", By: "alice"})                                    // Shipped.
	s.do(domain.ConfirmDelivery{OrderID: placed.ID, ShipmentID: shipped.PartID, By: "carrier"})
	returned := s.do(domain.RequestReturn{OrderID: placed.ID, Lines: []domain.LineRequest{{SKU: "mug", Units: 1}}, Reason: "chipped", By: "alice"})
	back := s.do(domain.ReceiveReturn{OrderID: placed.ID, ReturnID: returned.PartID, Restock: []domain.LineRequest{{SKU: "mug", Units: 1}}, By: "clerk"})
	if len(back.Order.Refunds) == 0 {
		s.t.Fatalf("no refund came of the return: %+v", back.Order)
	}
	refund := back.Order.Refunds[0]
	s.ask(asked(s.t, "", "", domain.RecordRefundResult{OrderID: placed.ID, RefundID: refund.ID, Succeeded: true, Amount: refund.Amount}))
	s.ask(asked(s.t, "", "", domain.TakeBackPoints{OrderID: placed.ID, RefundID: refund.ID}))
	s.do(domain.RefundPayment{OrderID: placed.ID, Amount: euro(100_000), Reason: "kind", By: "clerk"}) // Too much.
	s.do(domain.RefundPayment{OrderID: placed.ID, Amount: euro(1), Reason: "kind", By: "clerk"})

	other := s.do(order("alice", "mug", 1)).Order
	s.do(domain.CapturePayment{OrderID: other.ID, By: "clerk"}) // Not paid.
	s.do(domain.StartPayment{OrderID: other.ID, Provider: "sandbox", Method: "card", By: "alice"})
	s.do(domain.VoidPayment{OrderID: other.ID, Reason: "wrong card", By: "clerk"})
	s.do(domain.CancelOrder{OrderID: other.ID, Reason: "late", By: "alice"})
	s.do(domain.CancelOrder{OrderID: other.ID, Reason: "late", By: "alice"}) // Nothing to say.
	s.do(domain.AddNote{OrderID: other.ID, By: "clerk"})                     // Without a text.
	s.do(domain.StartPayment{OrderID: other.ID, Provider: "sandbox", Method: "card", By: "alice"})

	s.do(domain.EraseUser{UserID: "alice", Key: 7, By: "alice"})
	s.do(sealed) // Sealed under what is erased.
	s.do(domain.PutWebhookEndpoint{EndpointID: "erp", URL: "https://erp.example/hook", SealedSecret: []byte{9}, Types: []string{"order_placed"}, By: "clerk"})
	s.do(domain.PutWebhookEndpoint{EndpointID: "ERP", URL: "https://erp.example/hook", SealedSecret: []byte{9}, By: "clerk"}) // Invalid.
	s.do(domain.DeleteWebhookEndpoint{EndpointID: "erp", By: "clerk"})
}

// life is the life of a shop on a cluster of two, one of which decides everything; the other one is asked if hop.
func life(t *testing.T, hop bool) *shop {
	t.Helper()
	c := newCluster(t, 1)
	owner := c.join(t, all, nil)
	front := c.join(t, none, nil)
	s := &shop{t: t, cluster: c, submit: owner.Submit, kinds: map[reflect.Type]bool{}}
	if hop {
		s.submit = front.Submit
	}
	s.run()
	return s
}

func TestACommandHasTheSameOutcomeOverTheHopAsAtHome(t *testing.T) {
	home, hop := life(t, false), life(t, true)
	for _, command := range commands {
		if !hop.kinds[reflect.TypeOf(command)] {
			t.Errorf("%T was never asked for", command)
		}
	}
	refused, replied := map[string]bool{}, 0
	for i, want := range home.outcomes {
		got := hop.outcomes[i]
		if got.step != want.step {
			t.Fatalf("step %d is %s over the hop, %s at home", i, got.step, want.step)
		}
		if !reflect.DeepEqual(got.err, want.err) {
			t.Errorf("%s:\n     got %#v\nat home %#v", want.step, got.err, want.err)
		}
		if (got.reply == nil) != (want.reply == nil) ||
			want.reply != nil && !slices.Equal(encode(nil, got.reply, walkReply), encode(nil, want.reply, walkReply)) {
			t.Errorf("%s:\n     got %+v\nat home %+v", want.step, got.reply, want.reply)
		}
		if want.err != nil {
			refused[fmt.Sprintf("%T", want.err)] = true
		} else {
			replied++
		}
	}
	// A script in which everything is refused would prove little, and so would one in which nothing is.
	if replied < 35 || len(refused) < 20 {
		t.Errorf("%d replies and refusals of %d kinds: %v", replied, len(refused), refused)
	}
}

func TestARequestThatComesToTwoNodesMakesOneOrder(t *testing.T) {
	c := newCluster(t, 1)
	owner, front := c.join(t, all, nil), c.join(t, none, nil)
	s := &shop{t: t, cluster: c, submit: owner.Submit, kinds: map[reflect.Type]bool{}}
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	s.do(domain.ReceiveStock{SKU: "mug", Units: 100})
	request := asked(t, "alice", "once", order("alice", "mug", 2))
	const copies = 16
	ids := make(chan domain.OrderID, copies)
	for i := range copies {
		go func() {
			reply, err := []*node{owner, front}[i%2].Submit(context.Background(), request)
			if err != nil {
				t.Errorf("copy %d: %v", i, err)
			}
			ids <- reply.Order.ID
		}()
	}
	first := <-ids
	for range copies - 1 {
		if id := <-ids; id != first || id.IsZero() {
			t.Errorf("one request made orders %v and %v (I4)", first, id)
		}
	}
}

func TestNobodyWhoDecidesALaneIsWaitedForAndThenToldOf(t *testing.T) {
	c := newCluster(t, 1)
	front := c.join(t, none, func(o *Options) { o.OwnerWait = 50 * time.Millisecond })
	request := asked(t, "alice", "r1", domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1}})
	_, err := front.Submit(t.Context(), request)
	var gone *eventstore.UnavailableError
	if !errors.As(err, &gone) || gone.Lane != 0 || gone.RetryAfter <= 0 || !errors.Is(err, eventstore.ErrNobodyAnswers) {
		t.Fatalf("got %v, want an *UnavailableError of lane 0", err)
	}
	// A deadline that comes first ends the wait before it passes, so that there is still an answer.
	patient := c.join(t, none, func(o *Options) { o.OwnerWait = time.Minute })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := patient.Submit(ctx, request); !errors.As(err, &gone) {
		t.Errorf("got %v, want an *UnavailableError before the deadline", err)
	}
	// Who comes meanwhile is asked.
	outcomes := make(chan error, 1)
	go func() {
		_, err := patient.Submit(context.Background(), request)
		outcomes <- err
	}()
	c.join(t, all, nil)
	if err := <-outcomes; err != nil {
		t.Errorf("after the owner came: %v", err)
	}
}

func TestNoCommandMakesASecondHop(t *testing.T) {
	c := newCluster(t, 1)
	// Each of the two answers for the lane, and neither has it: each would ask the other one.
	for range 2 {
		n := c.join(t, none, nil)
		n.courier.Own(0, true)
		if err := n.conn.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	front := c.join(t, none, func(o *Options) { o.OwnerWait = 100 * time.Millisecond })
	before := c.nodes[0].conn.Stats().InMsgs
	_, err := front.Submit(t.Context(), asked(t, "alice", "r1", order("alice", "mug", 1)))
	var (
		gone     *eventstore.UnavailableError
		notOwner *lanes.NotOwnerError
	)
	if !errors.As(err, &gone) || !errors.As(err, &notOwner) || notOwner.Lane != 0 {
		t.Fatalf("got %v, want an *UnavailableError for a *NotOwnerError", err)
	}
	// 5 + 10 + 20 + 40 ms, each at least half, and no pause that ends after 100 ms.
	if questions := c.nodes[0].conn.Stats().InMsgs - before; questions == 0 || questions > 20 {
		t.Errorf("one command made %d questions to a node that does not decide it", questions)
	}
}

// lossy decides as a Set does, and loses the first answers.
type lossy struct {
	Local
	mu   sync.Mutex
	lose int
	lost int
	// over is closed at the end of the test: an answer that is lost is held back until then.
	over chan struct{}
}

func (l *lossy) SubmitLocal(ctx context.Context, lane uint32, request lanes.Request) (*lanes.Reply, error) {
	reply, err := l.Local.SubmitLocal(ctx, lane, request)
	l.mu.Lock()
	lose := l.lost < l.lose
	if lose {
		l.lost++
	}
	l.mu.Unlock()
	if lose {
		<-l.over // Nobody hears the answer any more.
	}
	return reply, err
}

func (l *lossy) losses() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

// losing makes a cluster whose nodes lose the first answers to others..
func losing(t *testing.T, lose int) (*cluster, *lossy) {
	t.Helper()
	c, desk := newCluster(t, 1), &lossy{lose: lose, over: make(chan struct{})}
	c.inFront = func(local Local) Local {
		if desk.Local != nil {
			return local
		}
		desk.Local = local
		return desk
	}
	return c, desk
}

func TestTheReplyIsTheSameWhenTheFirstOnesAreLost(t *testing.T) {
	c, desk := losing(t, 3)
	defer close(desk.over)
	owner := c.join(t, all, nil)
	front := c.join(t, none, func(o *Options) { o.AnswerWait, o.BudgetMax = 20*time.Millisecond, time.Minute })
	s := &shop{t: t, cluster: c, submit: owner.Submit, kinds: map[reflect.Type]bool{}}
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	s.do(domain.ReceiveStock{SKU: "mug", Units: 100})
	request := asked(t, "alice", "once", order("alice", "mug", 1))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := front.Submit(ctx, request)
	if err != nil {
		t.Fatal(err)
	}
	if desk.losses() != 3 {
		t.Fatalf("%d answers were lost, want 3", desk.losses())
	}
	want, err := owner.Submit(t.Context(), request)
	if err != nil || !slices.Equal(encode(nil, got, walkReply), encode(nil, want, walkReply)) {
		t.Errorf("got %+v\nwant %+v, %v (I4)", got, want, err)
	}
	if s.do(order("alice", "mug", 99)).Order.ID.IsZero() {
		t.Error("more than one unit is gone: the request was decided twice")
	}
}

func TestARequestThatCannotBeRepeatedIsAskedOnce(t *testing.T) {
	c, desk := losing(t, 1000)
	defer close(desk.over)
	owner := c.join(t, all, nil)
	front := c.join(t, none, func(o *Options) { o.AnswerWait, o.BudgetMax = 5*time.Millisecond, 200*time.Millisecond })
	front.Stop(0, owner.id)
	if _, err := owner.Submit(t.Context(), asked(t, "op", "p", domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1}})); err != nil {
		t.Fatal(err)
	}
	_, err := front.Submit(t.Context(), asked(t, "op", "", domain.ReceiveStock{SKU: "mug", Units: 1}))
	var gone *eventstore.UnavailableError
	if !errors.As(err, &gone) || !errors.Is(err, eventstore.ErrAnswerLost) {
		t.Errorf("got %v, want an *UnavailableError for a lost answer", err)
	}
	if desk.losses() != 1 {
		t.Errorf("it was decided %d times, want once", desk.losses())
	}
}

func TestADeadlineEndsACommand(t *testing.T) {
	c, desk := losing(t, 1000)
	defer close(desk.over)
	c.join(t, all, nil)
	front := c.join(t, none, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := front.Submit(ctx, asked(t, "alice", "r1", order("alice", "mug", 1))); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's", err)
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if _, err := front.Submit(left, asked(t, "alice", "r1", order("alice", "mug", 1))); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's", err)
	}
}

// An owner that is gone took a command with it, or did not: the next one says.
func TestACommandIsAnsweredByTheNextOwnerWhenItsOwnerDies(t *testing.T) {
	c, desk := losing(t, 1)
	defer close(desk.over)
	owner := c.join(t, all, nil)
	front := c.join(t, none, func(o *Options) { o.AnswerWait = 50 * time.Millisecond })
	s := &shop{t: t, cluster: c, submit: owner.Submit, kinds: map[reflect.Type]bool{}}
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	s.do(domain.ReceiveStock{SKU: "mug", Units: 100})
	replies := make(chan outcome, 1)
	request := asked(t, "alice", "once", order("alice", "mug", 1))
	go func() {
		reply, err := front.Submit(context.Background(), request)
		replies <- outcome{reply: reply, err: err}
	}()
	eventually(t, "it is decided, and the answer lost", func() bool { return desk.losses() == 1 })
	owner.conn.Close() // The first node is gone as far as the others can tell.
	owner.held.Store(false)
	next := c.join(t, all, nil)
	got := <-replies
	if got.err != nil {
		t.Fatal(got.err)
	}
	want, err := next.Submit(t.Context(), request)
	if err != nil || !slices.Equal(encode(nil, got.reply, walkReply), encode(nil, want, walkReply)) {
		t.Errorf("got %+v\nwant %+v, %v (I4)", got.reply, want, err)
	}
}

func TestGarbageOnTheSubjectsIsAnsweredAndBreaksNothing(t *testing.T) {
	c := newCluster(t, 1)
	owner := c.join(t, all, nil)
	front := c.join(t, none, nil)
	eventually(t, "the owner answers", func() bool {
		_, err := front.post.Ask(t.Context(), eventstore.CommandSubject(0), nil, 0)
		return err == nil
	})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	draw := rand.New(rand.NewPCG(seed, 0))
	good := encode(nil, &command{needs: protocol, request: asked(t, "alice", "r1", order("alice", "mug", 1))}, walkCommand)
	questions := [][]byte{nil, {}, {0xff}, []byte("SELECT 1"), make([]byte, 1<<20)}
	for range 200 { // And what is nearly right.
		bad := slices.Clone(good)
		for range 1 + draw.IntN(3) {
			bad[draw.IntN(len(bad))] = byte(draw.Uint32())
		}
		questions = append(questions, bad[:1+draw.IntN(len(bad))])
	}
	for _, question := range questions {
		data, err := front.post.Ask(t.Context(), eventstore.CommandSubject(0), question, 5*time.Second)
		if errors.Is(err, eventstore.ErrLate) { // The one before was a while ago.
			data, err = front.post.Ask(t.Context(), eventstore.CommandSubject(0), question, 5*time.Second)
		}
		var got answer
		if err != nil || decode(data, &got, walkAnswer) != nil || got.reply != nil || got.failure == nil {
			t.Errorf("%.40x was answered with %.40x, %v", question, data, err)
		}
		if err := front.post.Send(eventstore.EscrowSubject(0), question); err != nil {
			t.Error(err)
		}
	}
	for _, went := range []lanes.Message{{}, {Kind: lanes.MessageAsk, To: 9}, {Kind: lanes.MessageAsk, From: 9}} {
		if err := front.post.Send(eventstore.EscrowSubject(0), encode(nil, &went, walkMessage)); err != nil {
			t.Error(err)
		}
	}
	if _, err := front.Submit(t.Context(), asked(t, "op", "p", domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1}})); err != nil {
		t.Errorf("after garbage: %v", err)
	}
	if !owner.Serving() {
		t.Error("the owner has stopped")
	}
}

func TestACommandThatIsTooLargeIsRefusedByName(t *testing.T) {
	c := newCluster(t, 1)
	c.join(t, all, nil)
	front := c.join(t, none, nil)
	_, err := front.Submit(t.Context(), asked(t, "op", "p", domain.PutProduct{SKU: "mug", Title: strings.Repeat("x", 9<<20)}))
	var tooLarge *eventstore.TooLargeError
	if !errors.As(err, &tooLarge) {
		t.Errorf("got %v, want a *TooLargeError", err)
	}
}

func TestTooManyCommandsAtATimeAreToldToComeAgain(t *testing.T) {
	c := newCluster(t, 1)
	owner := c.join(t, all, func(o *Options) { o.InFlightMax = 1 })
	front := c.join(t, none, nil)
	place := eventstore.CommandSubject(0)
	taken, leave := make(chan struct{}), make(chan struct{})
	owner.courier.Own(0, false)
	service, err := owner.post.Serve(context.WithoutCancel(t.Context()), place, 1, func(context.Context, []byte) []byte {
		close(taken)
		<-leave
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(service.Close)
	t.Cleanup(func() { close(leave) })
	if err := owner.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _, _ = front.Submit(ctx, asked(t, "alice", "r1", order("alice", "mug", 1))) }()
	<-taken
	_, err = front.Submit(t.Context(), asked(t, "alice", "r2", order("alice", "mug", 1)))
	var full *eventstore.QueueFullError
	if !errors.As(err, &full) || full.Lane != 0 || full.RetryAfter <= 0 {
		t.Errorf("got %v, want a *QueueFullError", err)
	}
}

// Units go from the lanes of one node to those of another one, by messages between nodes.
func TestUnitsMoveBetweenTheLanesOfTwoNodes(t *testing.T) {
	const laneCount = 4
	c := newCluster(t, laneCount)
	even := c.join(t, func(lane uint32) bool { return lane%2 == 0 }, nil)
	odd := c.join(t, func(lane uint32) bool { return lane%2 == 1 }, nil)
	product := domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}}
	if _, err := even.Submit(t.Context(), asked(t, "op", "p", product)); err != nil {
		t.Fatal(err)
	}
	if _, err := odd.Submit(t.Context(), asked(t, "op", "s", domain.ReceiveStock{SKU: "mug", Units: 40})); err != nil {
		t.Fatal(err)
	}
	sold := 0
	lanesOfOrders := map[uint32]int{}
	for i := 0; ; i++ {
		user := fmt.Sprintf("user%d", i)
		reply, err := []*node{even, odd}[i%2].Submit(t.Context(), asked(t, user, "r", order(user, "mug", 1)))
		if errors.Is(err, domain.ErrOutOfStock) {
			break
		}
		if errors.Is(err, domain.ErrStockMoving) && i < 1000 {
			continue
		}
		if errors.Is(err, domain.ErrUnknownProduct) && i < 100_000 {
			continue // The other node has not heard of it yet.
		}
		if err != nil {
			t.Fatalf("order %d: %v", i, err)
		}
		sold++
		lanesOfOrders[reply.Lane]++
	}
	if sold != 40 || len(lanesOfOrders) != laneCount {
		t.Errorf("sold %d of 40 units, by lane %v (I3)", sold, lanesOfOrders)
	}
}

// move hands a lane over as package ownership does: the others hear of it, each in its own time.
func (c *cluster) move(t testing.TB, lane uint32, from, to *node) {
	t.Helper()
	if err := from.Park(t.Context(), lane); err != nil {
		t.Fatal(err)
	}
	from.Stop(lane, to.id)
	to.Start(lane, to.held.Load)
	for _, other := range c.nodes {
		if other != from && other != to {
			other.Stop(lane, to.id)
		}
	}
	eventually(t, to.id+" serves", func() bool { return to.Status(lane).Serving })
}

// hole hears questions on a subject and answers none, as a server does that still believes that somebody beyond it listens.
func (c *cluster) hole(t *testing.T, subject string) (heard func() int64) {
	t.Helper()
	conn, err := nats.Connect(c.server.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	var questions atomic.Int64
	if _, err := conn.Subscribe(subject, func(*nats.Msg) { questions.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return questions.Load
}

func TestACallDuringAMoveIsNotLostWhereServersBelieveInTheOldOwner(t *testing.T) {
	c := newCluster(t, 1)
	owner, next := c.join(t, all, nil), c.join(t, none, nil)
	front := c.join(t, none, func(o *Options) { o.AnswerWait = time.Hour }) // An answer that is waited for in vain fails the test.
	s := &shop{t: t, cluster: c, submit: owner.Submit, kinds: map[reflect.Type]bool{}}
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	front.Stop(0, owner.id)
	heard := c.hole(t, eventstore.CommandSubject(0))
	if err := owner.Park(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	before := owner.conn.Stats().InMsgs
	outcomes := make(chan error, 1)
	go func() {
		_, err := front.Submit(context.Background(), asked(t, "op", "", domain.ReceiveStock{SKU: "mug", Units: 1}))
		outcomes <- err
	}()
	eventually(t, "the old owner is asked", func() bool { return owner.conn.Stats().InMsgs > before || heard() > 0 })
	owner.Stop(0, next.id)
	next.Start(0, next.held.Load)
	select {
	case err := <-outcomes:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the command was asked where nobody answers")
	}
}

// A node that hangs keeps what it was asked, and nothing says that it does not listen. What it was asked waited on for up to 8 s when the lane
// had long been another node's.
func TestWhatANodeWasAskedThatHangsIsAskedOfTheNextAtOnce(t *testing.T) {
	product := domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}}
	for _, c := range []struct {
		name string
		// known is the owner as the node knows it that is called, subject what the one listens to that hangs.
		known, subject string
		// takes says that the node that is called is the next owner itself.
		takes bool
	}{
		{"by its id, and another node takes the lane", "hung", eventstore.NodeCommandSubject(0, "hung"), false},
		{"by its id, and this node takes the lane", "hung", eventstore.NodeCommandSubject(0, "hung"), true},
		{"by its lane, and another node takes it", "", eventstore.CommandSubject(0), false},
		{"by its lane, and this node takes it", "", eventstore.CommandSubject(0), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := newCluster(t, 1)
			front := nodes.join(t, none, func(o *Options) { o.AnswerWait = time.Hour }) // An answer that is waited for in vain fails the test.
			next := front
			if !c.takes {
				next = nodes.join(t, none, nil)
			}
			front.Stop(0, c.known)
			heard := nodes.hole(t, c.subject)
			outcomes := make(chan error, 1)
			go func() {
				_, err := front.Submit(t.Context(), asked(t, "op", "p", product))
				outcomes <- err
			}()
			eventually(t, "the node that hangs is asked", func() bool { return heard() > 0 })
			next.Start(0, next.held.Load)
			eventually(t, "the next one serves", func() bool { return next.Status(0).Serving })
			if !c.takes {
				front.Stop(0, next.id)
			}
			select {
			case err := <-outcomes:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("the next one was not asked")
			}
		})
	}
}

// A server that stops loses the questions and answers that are on their way over it. Whoever asked waited for AnswerWait, a second, before it
// asked again, when it had long been connected to another server, or the node that it had asked.
func TestWhatABrokenConnectionMayHaveLostIsAskedAgainAtOnce(t *testing.T) {
	product := domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}}
	for name, breaks := range map[string]func(t *testing.T, c *cluster){
		"of who asks": func(t *testing.T, c *cluster) {
			if err := c.server.Restart(); err != nil {
				t.Fatal(err)
			}
		},
		"of who was asked": func(t *testing.T, c *cluster) {
			other, err := nats.Connect(c.server.ClientURL())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(other.Close)
			if err := other.Publish(eventstore.ReturnSubject, []byte("hung")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1)
			owner := c.join(t, all, nil)
			front := c.join(t, none, func(o *Options) { o.AnswerWait = time.Hour }) // An answer that is waited for in vain fails the test.
			front.Stop(0, "hung")
			heard := c.hole(t, eventstore.NodeCommandSubject(0, "hung"))
			outcomes := make(chan error, 1)
			go func() {
				_, err := front.Submit(t.Context(), asked(t, "op", "p", product))
				outcomes <- err
			}()
			eventually(t, "the node is asked", func() bool { return heard() == 1 })
			breaks(t, c)
			// Or the owner is, when this node is connected before the one that hangs.
			eventually(t, "it is asked again", func() bool { return heard() > 1 || len(outcomes) > 0 })
			front.Stop(0, owner.id) // The lane moves, for the test to end.
			if err := <-outcomes; err != nil {
				t.Error(err)
			}
		})
	}
}

// What must not be asked twice waits for its answer, whatever breaks.
func TestWhatCannotBeRepeatedIsAskedOnceOverABrokenConnection(t *testing.T) {
	c := newCluster(t, 1)
	front := c.join(t, none, nil)
	front.Stop(0, "hung")
	heard := c.hole(t, eventstore.NodeCommandSubject(0, "hung"))
	ctx, cancel := context.WithCancel(t.Context())
	outcomes := make(chan error, 1)
	go func() {
		_, err := front.Submit(ctx, asked(t, "op", "", domain.ReceiveStock{SKU: "mug", Units: 1}))
		outcomes <- err
	}()
	eventually(t, "the node is asked", func() bool { return heard() == 1 })
	before := front.conn.Stats().Reconnects
	if err := c.server.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the node is connected again", func() bool { return front.conn.Stats().Reconnects > before })
	if err := front.conn.Flush(); err != nil { // What it had to send is with the server.
		t.Fatal(err)
	}
	cancel()
	if err := <-outcomes; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's end", err)
	}
	if got := heard(); got != 1 {
		t.Errorf("it was asked %d times, want once (I4)", got)
	}
}

// Who waits for an answer of a node hears when that begins, when its connection was another one for a moment, and when it has ended.
func TestANodeSaysWhenWhatItWasAskedMayBeLost(t *testing.T) {
	c := newCluster(t, 1)
	conn, err := nats.Connect(c.server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	var said atomic.Int64
	if _, err := conn.Subscribe(eventstore.ReturnSubject, func(m *nats.Msg) {
		if string(m.Data) == "n0" {
			said.Add(1)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	n := c.join(t, all, nil)
	eventually(t, "it says that it has begun", func() bool { return said.Load() == 1 })
	if err := n.conn.ForceReconnect(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it says that it is back", func() bool { return said.Load() == 2 })
	n.stop()
	eventually(t, "it says that it has ended", func() bool { return said.Load() == 3 })
}

func TestANodeThatIsAskedForTheLaneOfAnotherNamesItAndIsNotAskedAgain(t *testing.T) {
	c := newCluster(t, 1)
	owner, wrong := c.join(t, all, nil), c.join(t, none, nil)
	front := c.join(t, none, nil)
	wrong.Stop(0, owner.id)
	front.Stop(0, wrong.id)
	eventually(t, "they meet", func() bool { // The server has to have heard that the node listens.
		_, err := front.post.Ask(t.Context(), eventstore.NodeCommandSubject(0, wrong.id), nil, 0)
		return errors.Is(err, eventstore.ErrLate)
	})
	heard := c.hole(t, eventstore.NodeCommandSubject(0, wrong.id)) // What nodes say to all is not counted.
	if _, err := front.Submit(t.Context(), asked(t, "op", "p", domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1}})); err != nil {
		t.Fatal(err)
	}
	if _, err := front.post.Ask(t.Context(), eventstore.NodeCommandSubject(0, wrong.id), nil, 0); err != nil && !errors.Is(err, eventstore.ErrLate) {
		t.Fatal(err)
	}
	eventually(t, "the question after that is heard", func() bool { return heard() >= 2 }) // And so are all before it.
	if questions := heard() - 1; questions != 1 {
		t.Errorf("the wrong node was asked %d times, want once", questions)
	}
}

func TestTwoNodesThatNameEachOtherAreNotAskedInTurnWithoutEnd(t *testing.T) {
	c := newCluster(t, 1)
	one, two := c.join(t, none, nil), c.join(t, none, nil)
	front := c.join(t, none, func(o *Options) { o.OwnerWait = 100 * time.Millisecond })
	one.Stop(0, two.id)
	two.Stop(0, one.id)
	front.Stop(0, one.id)
	before := one.conn.Stats().InMsgs + two.conn.Stats().InMsgs
	_, err := front.Submit(t.Context(), asked(t, "alice", "r1", order("alice", "mug", 1)))
	var notOwner *lanes.NotOwnerError
	if gone := (*eventstore.UnavailableError)(nil); !errors.As(err, &gone) || !errors.As(err, &notOwner) {
		t.Fatalf("got %v, want an *UnavailableError for a *NotOwnerError", err)
	}
	// Two before the first pause and after each, and the first one of each again; no pause ends after 100 ms, and they take 5 + 10 + 20 + 40 ms
	// or half of that.
	if questions := one.conn.Stats().InMsgs + two.conn.Stats().InMsgs - before; questions < 4 || questions > 18 {
		t.Errorf("one command made %d questions to nodes that do not decide it", questions)
	}
}

func TestANodeOfAnOlderProgramIsAskedByItsLane(t *testing.T) {
	c := newCluster(t, 1)
	owner := c.join(t, all, func(o *Options) { o.NodeID = "" })
	front := c.join(t, none, nil)
	front.Stop(0, owner.id)
	if _, err := front.Submit(t.Context(), asked(t, "op", "p", domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1}})); err != nil {
		t.Error(err)
	}
}

// A command that the network held back comes to its owner when whoever sent it was told something else.
func TestACommandThatWasHeldBackMakesNoOrder(t *testing.T) {
	c := newCluster(t, 1)
	var elapsed atomic.Int64
	c.post.Clock = func() time.Time { return start.Add(time.Duration(elapsed.Load())) }
	owner, front := c.join(t, all, nil), c.join(t, none, nil)
	front.Stop(0, owner.id)
	s := &shop{t: t, cluster: c, submit: front.Submit, kinds: map[reflect.Type]bool{}}
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	subject := eventstore.NodeCommandSubject(0, owner.id)
	held, err := front.conn.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	request := asked(t, "alice", "once", order("alice", "mug", 1))
	if _, err := front.Submit(t.Context(), request); !errors.Is(err, domain.ErrOutOfStock) {
		t.Fatalf("got %v, want that there is none", err)
	}
	s.do(domain.ReceiveStock{SKU: "mug", Units: 1})
	question, err := held.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	elapsed.Store(int64(time.Minute))
	if _, err := front.conn.RequestMsg(&nats.Msg{Subject: subject, Data: question.Data, Header: question.Header}, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if reply := s.do(order("alice", "mug", 1)); reply.Order.ID.IsZero() {
		t.Error("the unit is gone: an order was made of a request that was refused")
	}
}

func TestAnIDThatIsNoneMakesNoSubject(t *testing.T) {
	c := newCluster(t, 1)
	c.join(t, all, nil)
	front := c.join(t, none, nil)
	for i, id := range []string{"*", ">", "a b", "a.b", "\r\n", strings.Repeat("x", 65)} {
		front.Stop(0, id)
		product := domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1}}
		if _, err := front.Submit(t.Context(), asked(t, "op", fmt.Sprint("p", i), product)); err != nil {
			t.Errorf("owner %q: %v", id, err)
		}
	}
}

// A lane goes back and forth between two nodes while others ask for orders: each is answered, and decided once; so is what nobody may
// repeat since it has no request id.
func TestALaneMovesWhileOthersAskAndNobodyNotices(t *testing.T) {
	c := newCluster(t, 1)
	two := []*node{c.join(t, all, nil), c.join(t, none, nil)}
	fronts := []*node{c.join(t, none, nil), two[0], two[1]}
	s := &shop{t: t, cluster: c, submit: two[0].Submit, kinds: map[reflect.Type]bool{}}
	s.do(domain.PutProduct{SKU: "mug", Title: "Mug", Price: domain.Money{Currency: "EUR", Minor: 1299}})
	s.do(domain.ReceiveStock{SKU: "mug", Units: 1_000_000})
	s.do(domain.PutProduct{SKU: "cup", Title: "Cup", Price: domain.Money{Currency: "EUR", Minor: 400}})
	for _, n := range c.nodes[1:] {
		n.Stop(0, two[0].id)
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	var mu sync.Mutex
	ids := map[domain.OrderID]string{}
	var slowest time.Duration
	received := int64(0)
	asking.Go(func() { // As many units of a product of its own as were acknowledged are there at the end.
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := fronts[0].Submit(context.Background(), asked(t, "op", "", domain.ReceiveStock{SKU: "cup", Units: 1})); err != nil {
				t.Errorf("a receipt without a request id: %v", err)
				return
			}
			received++
		}
	})
	for worker := range 6 {
		asking.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				user := fmt.Sprintf("user%d", worker)
				request := asked(t, user, fmt.Sprintf("q%d", i), order(user, "mug", 1))
				began := time.Now()
				first, err := fronts[(worker+i)%3].Submit(context.Background(), request)
				took := time.Since(began)
				if err != nil {
					t.Errorf("%s of %s: %v", request.RequestID, user, err)
					return
				}
				again, err := fronts[(worker+i+1)%3].Submit(context.Background(), request)
				if err != nil || !slices.Equal(encode(nil, again, walkReply), encode(nil, first, walkReply)) {
					t.Errorf("%s of %s again: got %+v, %v\nwant %+v (I4)", request.RequestID, user, again, err, first)
					return
				}
				mu.Lock()
				slowest = max(slowest, took)
				if other, taken := ids[first.Order.ID]; taken {
					t.Errorf("%s of %s made the order of %s", request.RequestID, user, other)
				}
				ids[first.Order.ID] = user
				mu.Unlock()
			}
		})
	}
	ordered := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(ids)
	}
	const moves = 50
	for move := range moves {
		from, to := two[move%2], two[(move+1)%2]
		before := ordered()
		eventually(t, "orders are taken", func() bool { return ordered() > before+5 || t.Failed() })
		c.move(t, 0, from, to)
	}
	close(stop)
	asking.Wait()
	t.Logf("%d orders in %d moves, the slowest took %s; %d receipts", len(ids), moves, slowest, received)
	s.submit = two[moves%2].Submit
	if left := s.do(order("alice", "cup", received)); left.Order.ID.IsZero() {
		t.Errorf("of %d receipts of one unit that were acknowledged, some are not there", received)
	}
	if again := s.do(order("alice", "cup", 1)); !again.Order.ID.IsZero() {
		t.Errorf("of %d receipts of one unit, one took effect twice", received)
	}
	if len(ids) < 5*moves {
		t.Errorf("%d orders in %d moves: that shows little", len(ids), moves)
	}
}
