package webhooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/api/reactors"
	"github.com/weirhq/weir/api/webhooksig"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

func seedOf(tb testing.TB) uint64 {
	seed := rand.Uint64()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("seed %d", seed)
		}
	})
	return seed
}

// clearSecrets opens what was never sealed.
type clearSecrets struct{}

func (clearSecrets) Open(_ context.Context, userID string, sealed []byte) ([]byte, error) {
	if userID != SecretsUser {
		return nil, errors.New("another's secret")
	}
	return sealed, nil
}

// A receiver is a merchant's system: a real HTTP server that verifies what it is sent.
type receiver struct {
	tb     testing.TB
	server *httptest.Server
	secret webhooksig.Secret

	mu       sync.Mutex
	answer   func(id string) int // HTTP status; nil means 200
	received []received          // what was answered with 200, in order
	attempts int
	busy     map[string]bool // orders of which something is being received
}

type received struct{ ID, Type, OrderID string }

func newReceiver(t *testing.T) *receiver {
	r := &receiver{tb: t, secret: webhooksig.NewSecret(), busy: map[string]bool{}}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return // The sender has left.
	}
	if err := webhooksig.Verify([]webhooksig.Secret{r.secret}, request.Header, body, time.Now(), webhooksig.SkewMax); err != nil {
		r.tb.Errorf("%v", err)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	var event received
	if err := json.Unmarshal(body, &event); err != nil || event.ID != request.Header.Get(webhooksig.HeaderID) {
		r.tb.Errorf("got %s with the id %s: %v", body, request.Header.Get(webhooksig.HeaderID), err)
	}
	r.mu.Lock()
	r.attempts++
	if r.busy[event.OrderID] && event.OrderID != "" {
		r.tb.Errorf("two deliveries of order %s at a time", event.OrderID)
	}
	r.busy[event.OrderID] = true
	answer := r.answer
	r.mu.Unlock()
	status := http.StatusOK
	if answer != nil {
		status = answer(event.ID)
	}
	r.mu.Lock()
	delete(r.busy, event.OrderID)
	if status == http.StatusOK {
		r.received = append(r.received, event)
	}
	r.mu.Unlock()
	if status >= 300 && status < 400 {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(status)
}

// answers replaces how it answers.
func (r *receiver) answers(answer func(id string) int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// firsts returns what was received, without what was received before.
func (r *receiver) firsts() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := map[string]bool{}
	var firsts []received
	for _, event := range r.received {
		if !seen[event.ID] {
			seen[event.ID] = true
			firsts = append(firsts, event)
		}
	}
	return firsts
}

// A shop is a log of one lane.
type shop struct {
	tb     testing.TB
	random *rand.Rand
	log    *eventstore.MemoryLog
	last   eventstore.Position
	now    time.Time
	open   []domain.OrderID
	want   []received // public events
}

func newShop(t *testing.T, seed uint64) *shop {
	return &shop{
		tb: t, random: rand.New(rand.NewPCG(seed, 3)), log: eventstore.OpenMemoryLog(0, 1), last: eventstore.Genesis(0, 1),
		now: time.Unix(1_700_000_000, 0).UTC(),
	}
}

// step places an order, or goes on with one.
func (s *shop) step() {
	if len(s.open) == 0 || s.random.IntN(3) == 0 {
		var entropy [10]byte
		for i := range entropy {
			entropy[i] = byte(s.random.Uint32())
		}
		id := domain.NewOrderID(s.now, 7, entropy)
		s.open = append(s.open, id)
		s.commit(domain.OrderPlaced{OrderID: id, UserID: "ada", Lines: []domain.Line{{SKU: "tea", Units: 1}}, Total: domain.Money{Currency: "EUR", Minor: 1}, PayBy: s.now})
		return
	}
	id := s.open[s.random.IntN(len(s.open))]
	s.commit(
		domain.PaymentStarted{OrderID: id, UserID: "ada", PaymentID: "p"}, // Not public.
		domain.PaymentDeclined{OrderID: id, UserID: "ada", PaymentID: "p", Code: fmt.Sprint(s.last.Number)},
	)
}

func (s *shop) commit(facts ...domain.Event) {
	s.now = s.now.Add(time.Millisecond)
	commit := &eventstore.Commit{Number: s.last.Number + 1, Epoch: 1, Time: s.now, PrevHash: s.last.Hash}
	for i, fact := range facts {
		typeName, version, aggregateID, payload := stored.Encode(fact)
		commit.Events = append(commit.Events, eventstore.Event{
			Partition: 7, UserID: "ada", AggregateID: aggregateID, Type: typeName, Version: version, Payload: payload,
		})
		if typeName == stored.TypeOrderPlaced || typeName == stored.TypePaymentDeclined {
			s.want = append(s.want, received{ID: reactors.EventID(0, commit.Number, i), Type: typeName, OrderID: aggregateID})
		}
	}
	record := eventstore.EncodeCommit(commit)
	if err := s.log.Append(record).Wait(s.tb.Context()); err != nil {
		s.tb.Fatal(err)
	}
	s.last = eventstore.Position{Number: record.Number, Hash: record.Hash}
}

// put says in the log that an endpoint is there.
func (s *shop) put(id string, r *receiver, types ...string) {
	s.commit(domain.WebhookEndpointPut{EndpointID: id, URL: r.server.URL, SealedSecret: []byte(r.secret.Encode()), Types: types, By: "op"})
}

// A node is an outbox and its runner.
type node struct {
	tb      testing.TB
	store   *projections.Store
	outbox  *Outbox
	runner  *reactors.Runner
	log     bytes.Buffer
	cancel  context.CancelFunc
	running sync.WaitGroup
	paused  atomic.Int64 // pauses
}

// startNode starts a node; wait says how its pauses go.
func startNode(tb testing.TB, fs vfs.FS, s *shop, wait func(ctx context.Context, wake <-chan struct{}) error) *node {
	tb.Helper()
	n := &node{tb: tb}
	var err error
	if n.store, err = projections.OpenStore("state", projections.StoreOptions{FS: fs, BlockCacheBytes: 1 << 20}); err != nil {
		tb.Fatal(err)
	}
	logger := slog.New(slog.NewTextHandler(&n.log, &slog.HandlerOptions{Level: slog.LevelError}))
	topology := eventstore.Topology{Lanes: 1}
	log := func(uint32) eventstore.Log { return s.log }
	if n.outbox, err = Open(Options{Store: n.store, Topology: topology, Log: log, Secrets: clearSecrets{}, Logger: logger}); err != nil {
		tb.Fatal(err)
	}
	n.runner, err = reactors.New(reactors.Options{
		Store: n.store, Topology: topology, Log: log, Reactors: n.outbox.Registrations(), Logger: slog.New(slog.DiscardHandler),
		Pause: func(ctx context.Context, _ time.Duration, wake <-chan struct{}) error {
			n.paused.Add(1)
			return wait(ctx, wake)
		},
	})
	if err != nil {
		tb.Fatal(err)
	}
	n.outbox.Attach(n.runner)
	var ctx context.Context
	ctx, n.cancel = context.WithCancel(context.Background())
	n.running.Go(func() {
		if err := n.runner.Run(ctx); err != nil {
			tb.Error(err)
		}
	})
	tb.Cleanup(n.stop)
	return n
}

func (n *node) stop() {
	if n.store == nil {
		return
	}
	n.cancel()
	n.running.Wait()
	n.outbox.Close()
	if err := n.store.Close(); err != nil {
		n.tb.Error(err)
	}
	n.store = nil
}

func atOnce(ctx context.Context, _ <-chan struct{}) error {
	runtime.Gosched()
	return ctx.Err()
}

func untilWoken(ctx context.Context, wake <-chan struct{}) error {
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

const patience = 30 * time.Second

func (n *node) await(what string, holds func() bool) {
	n.tb.Helper()
	for deadline := time.Now().Add(patience); !holds(); runtime.Gosched() {
		if time.Now().After(deadline) {
			n.tb.Fatalf("waited for %s: %+v, %+v", what, n.runner.Status(), n.outbox.Endpoints())
		}
	}
}

// reach waits until as many reactors as there are endpoints, and the one that follows them, are at the head.
func (n *node) reach(s *shop, endpoints int) {
	n.tb.Helper()
	n.await("everything to be delivered", func() bool {
		all := n.runner.Status()
		return len(all) == endpoints+1 && !slices.ContainsFunc(all, func(status reactors.Status) bool { return status.Position != s.last.Number })
	})
}

// checkOrders compares what was received with what happened, order by order.
func checkOrders(t *testing.T, seed uint64, got, want []received) {
	t.Helper()
	byOrder := func(all []received) map[string][]string {
		orders := map[string][]string{}
		for _, event := range all {
			orders[event.OrderID] = append(orders[event.OrderID], event.ID)
		}
		return orders
	}
	had, should := byOrder(got), byOrder(want)
	for order := range should {
		if !slices.Equal(had[order], should[order]) {
			t.Fatalf("seed %d, order %s: received %v, want %v", seed, order, had[order], should[order])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("seed %d: received %d events, want %d", seed, len(got), len(want))
	}
}

func TestEventsAreDeliveredSignedAndFromTheEndpointsFirstDayOn(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed)
	for range 10 {
		s.step()
	}
	all, declined := newReceiver(t), newReceiver(t)
	before := len(s.want)
	s.put("all", all)
	s.put("declined", declined, stored.TypePaymentDeclined)
	n := startNode(t, vfs.NewMem(), s, atOnce)
	for range 60 {
		s.step()
	}
	n.reach(s, 2)
	checkOrders(t, seed, all.firsts(), s.want[before:])
	var want []received
	for _, event := range s.want[before:] {
		if event.Type == stored.TypePaymentDeclined {
			want = append(want, event)
		}
	}
	checkOrders(t, seed, declined.firsts(), want)
	if all.attempts != len(all.received) {
		t.Errorf("seed %d: %d attempts for %d events", seed, all.attempts, len(all.received))
	}
	deliveries, err := n.outbox.Deliveries("all", 0, 1000)
	if err != nil || len(deliveries) != all.attempts || deliveries[0].Number != uint64(all.attempts) || deliveries[0].Status != 200 || deliveries[0].OrderID == "" {
		t.Errorf("seed %d: %d deliveries of %d attempts, the newest %+v, %v", seed, len(deliveries), all.attempts, deliveries[0], err)
	}
}

// TestOrdersStayInOrderWhateverFailsAndCrashes has a receiver that answers as it likes, and a node that is killed in the middle.
func TestOrdersStayInOrderWhateverFailsAndCrashes(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	base := seedOf(t)
	for round := range uint64(rounds) {
		seed := base + round
		random := rand.New(rand.NewPCG(seed, 1))
		s, r := newShop(t, seed), newReceiver(t)
		var chance atomic.Uint64
		chance.Store(seed)
		r.answers(func(string) int {
			switch rand.New(rand.NewPCG(chance.Add(1), 9)).IntN(8) {
			case 0:
				return http.StatusInternalServerError
			case 1:
				return http.StatusFound // It is not followed.
			case 2:
				return http.StatusTooManyRequests
			}
			return http.StatusOK
		})
		s.put("erp", r)
		fs := vfs.NewCrashableMem()
		for range 1 + random.IntN(3) {
			n := startNode(t, fs, s, atOnce)
			for range random.IntN(50) {
				s.step()
			}
			if random.IntN(2) == 0 {
				n.reach(s, 1)
			}
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
			n.stop()
			fs = crashed
		}
		n := startNode(t, fs, s, atOnce)
		n.reach(s, 1)
		checkOrders(t, seed, r.firsts(), s.want)
		n.stop()
	}
}

func TestAnEndpointThatFailsTooOftenIsPausedAndRaisedAndGoesOnWhereItStopped(t *testing.T) {
	seed := seedOf(t)
	s, r, sound := newShop(t, seed), newReceiver(t), newReceiver(t)
	s.put("erp", r)
	s.put("crm", sound)
	for range 20 {
		s.step()
	}
	r.answers(func(string) int { return http.StatusServiceUnavailable })
	n := startNode(t, vfs.NewMem(), s, func(ctx context.Context, wake <-chan struct{}) error { return untilWoken(ctx, wake) })
	n.await("the other endpoint", func() bool { return len(sound.firsts()) == len(s.want) })
	erp := func() Status { return n.outbox.Endpoints()[1] }
	n.await("the first failures", func() bool { return n.paused.Load() > 0 })
	for !erp().Raised {
		if err := n.outbox.Resume("erp"); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	raised := erp()
	if raised.ID != "erp" || raised.RaisedAt.IsZero() || !strings.Contains(raised.Error, "503") || raised.LagCommits == 0 {
		t.Fatalf("got %+v, want it raised with what failed", raised)
	}
	if log := n.log.String(); strings.Count(log, "a webhook endpoint is paused") != 1 || !strings.Contains(log, "endpoint=erp") {
		t.Fatalf("it was logged:\n%s", log)
	}
	if got := n.outbox.Endpoints()[0]; got.Raised || got.Error != "" {
		t.Fatalf("the other endpoint is %+v", got)
	}
	if len(r.firsts()) != 0 {
		t.Fatalf("seed %d: received %v", seed, r.firsts())
	}
	r.answers(nil)
	n.await("it to go on", func() bool {
		if err := n.outbox.Resume("erp"); err != nil {
			t.Fatal(err)
		}
		return len(r.firsts()) == len(s.want)
	})
	n.reach(s, 2)
	checkOrders(t, seed, r.firsts(), s.want)
	if got := erp(); got.Raised || got.Error != "" || got.LagCommits != 0 {
		t.Fatalf("after it healed: got %+v", got)
	}
	if err := n.outbox.Resume("nobody"); !errors.Is(err, ErrNoEndpoint) {
		t.Fatalf("got %v, want ErrNoEndpoint", err)
	}
}

// raise starts a node whose endpoint erp fails until it is raised.
func raise(t *testing.T, fs vfs.FS, s *shop, r *receiver) *node {
	t.Helper()
	r.answers(func(string) int { return http.StatusServiceUnavailable })
	n := startNode(t, fs, s, untilWoken)
	n.await("it to be raised", func() bool {
		all := n.outbox.Endpoints()
		if len(all) != 1 {
			return false
		}
		if err := n.outbox.Resume("erp"); err != nil {
			t.Fatal(err)
		}
		return all[0].Raised
	})
	return n
}

func TestARaisedEndpointIsRaisedAfterARestartUntilItWorks(t *testing.T) {
	seed := seedOf(t)
	s, r := newShop(t, seed), newReceiver(t)
	s.put("erp", r)
	for range 200 { // Many more orders than may be in flight.
		s.step()
	}
	fs := vfs.NewMem()
	n := raise(t, fs, s, r)
	before := n.outbox.Endpoints()[0]
	n.stop()

	attempted := func() map[string]bool {
		deliveries, err := n.outbox.Deliveries("erp", 0, DeliveriesMax)
		if err != nil {
			t.Fatal(err)
		}
		events := map[string]bool{}
		for _, d := range deliveries {
			events[fmt.Sprint(d.Number)+" "+d.EventID] = true
		}
		return events
	}
	n = startNode(t, fs, s, untilWoken)
	if after := n.outbox.Endpoints()[0]; !after.Raised || !after.RaisedAt.Equal(before.RaisedAt) || !strings.Contains(after.Error, "503") {
		t.Fatalf("after a restart it is %+v, before %+v", after, before)
	}
	known := attempted()
	n.await("it to be tried", func() bool { return n.paused.Load() >= 1 })
	probed := map[string]bool{}
	for attempt := range attempted() {
		if !known[attempt] {
			_, event, _ := strings.Cut(attempt, " ")
			probed[event] = true
		}
	}
	if len(probed) > 1 {
		t.Errorf("seed %d: after a restart %v were tried, want the one that failed too often alone", seed, probed)
	}
	r.answers(nil)
	n.await("it to go on", func() bool {
		if err := n.outbox.Resume("erp"); err != nil {
			t.Fatal(err)
		}
		return len(r.firsts()) == len(s.want)
	})
	n.reach(s, 1)
	checkOrders(t, seed, r.firsts(), s.want)
	n.stop()
	n = startNode(t, fs, s, untilWoken)
	if after := n.outbox.Endpoints()[0]; after.Raised || after.Error != "" {
		t.Errorf("after it worked and a restart it is %+v", after)
	}
}

func TestARaisedEndpointGoesOnWhenWhatFailedIsNotWantedAnyMoreOrIsDeleted(t *testing.T) {
	seed := seedOf(t)
	s, r := newShop(t, seed), newReceiver(t)
	s.put("erp", r)
	s.commit(domain.ProductPut{SKU: "tea", Title: "Tea", Price: domain.Money{Currency: "EUR", Minor: 1}}) // It fails alone.
	fs := vfs.NewMem()
	n := raise(t, fs, s, r)
	s.put("erp", r, stored.TypeOrderPlaced)
	n.await("the change", func() bool { return len(n.outbox.Endpoints()[0].Types) == 1 })
	r.answers(nil)
	s.step()
	n.await("it to go on", func() bool {
		if err := n.outbox.Resume("erp"); err != nil {
			t.Fatal(err)
		}
		return len(r.firsts()) > 0
	})
	n.reach(s, 1)
	if after := n.outbox.Endpoints()[0]; after.Raised {
		t.Errorf("seed %d: it is %+v, and nothing of it fails", seed, after)
	}
	n.stop()

	// One that is deleted and put again is another one.
	n = raise(t, fs, func() *shop {
		s.step()
		s.put("erp", r)
		s.commit(domain.ProductPut{SKU: "cup", Title: "Cup", Price: domain.Money{Currency: "EUR", Minor: 1}})
		return s
	}(), r)
	s.commit(domain.WebhookEndpointDeleted{EndpointID: "erp"})
	n.reach(s, 0)
	s.put("erp", r)
	n.reach(s, 1)
	n.stop()
	n = startNode(t, fs, s, untilWoken)
	if after := n.outbox.Endpoints()[0]; after.Raised {
		t.Errorf("seed %d: put anew it is %+v", seed, after)
	}
}

func TestAPausedEndpointIsGivenNothingUntilItIsNotAndADeletedOneNothingEver(t *testing.T) {
	seed := seedOf(t)
	s, r := newShop(t, seed), newReceiver(t)
	endpoint := domain.WebhookEndpointPut{EndpointID: "erp", URL: r.server.URL, SealedSecret: []byte(r.secret.Encode()), Paused: true}
	s.commit(endpoint)
	fs := vfs.NewMem()
	n := startNode(t, fs, s, atOnce)
	for range 10 {
		s.step()
	}
	n.await("the endpoint", func() bool { return len(n.outbox.Endpoints()) == 1 })
	n.stop()
	n = startNode(t, fs, s, atOnce) // It is remembered.
	if all := n.outbox.Endpoints(); len(all) != 1 || !all[0].Paused || len(r.firsts()) != 0 {
		t.Fatalf("got %+v, and %d events", all, len(r.firsts()))
	}
	endpoint.Paused = false
	s.commit(endpoint)
	n.reach(s, 1)
	checkOrders(t, seed, r.firsts(), s.want)

	s.commit(domain.WebhookEndpointDeleted{EndpointID: "erp"})
	n.reach(s, 0)
	had := len(r.firsts())
	s.step()
	s.put("erp", r) // Again, and anew: from now on.
	s.step()
	n.reach(s, 1)
	if got := r.firsts()[had:]; len(got) != 1 || got[0] != s.want[len(s.want)-1] {
		t.Fatalf("seed %d: received %v, want what came after it was there again", seed, got)
	}
	if deliveries, err := n.outbox.Deliveries("erp", 0, 10); err != nil || len(deliveries) != 1 || deliveries[0].Number != 1 {
		t.Fatalf("got %+v, %v, want the deliveries of the new endpoint alone", deliveries, err)
	}
}

func TestEventsCanBeDeliveredAgain(t *testing.T) {
	s, r := newShop(t, seedOf(t)), newReceiver(t)
	s.put("erp", r)
	for range 5 {
		s.step()
	}
	n := startNode(t, vfs.NewMem(), s, atOnce)
	n.reach(s, 1)
	first, last := s.want[0].ID, s.want[len(s.want)-1].ID
	before := len(r.received)
	deliveries, err := n.outbox.Replay(t.Context(), "erp", []string{last, first})
	if err != nil || len(deliveries) != 2 || deliveries[0].EventID != last || deliveries[1].Status != 200 || !deliveries[1].Replayed {
		t.Fatalf("got %+v, %v", deliveries, err)
	}
	if got := r.received[before:]; len(got) != 2 || got[0].ID != last || got[1].ID != first {
		t.Fatalf("received %v, want %s and %s", got, last, first)
	}
	r.answers(func(string) int { return http.StatusTeapot })
	if deliveries, err = n.outbox.Replay(t.Context(), "erp", []string{first}); err != nil || deliveries[0].Status != 418 || !strings.Contains(deliveries[0].Error, "418") {
		t.Fatalf("got %+v, %v, want a failure and no error", deliveries, err)
	}
	for _, id := range []string{"", "x", "0-1-0", "0-99-0", "1-1-0", "0-1-9", "0-01-0", "0-1-0 "} {
		if _, err := n.outbox.Replay(t.Context(), "erp", []string{id}); !errors.Is(err, reactors.ErrNoEvent) {
			t.Errorf("event %q: got %v, want ErrNoEvent", id, err)
		}
	}
	if _, err := n.outbox.Replay(t.Context(), "nobody", []string{first}); !errors.Is(err, ErrNoEndpoint) {
		t.Errorf("got %v, want ErrNoEndpoint", err)
	}
}

func TestTheDeliveriesOfAnEndpointAreBounded(t *testing.T) {
	s, r := newShop(t, seedOf(t)), newReceiver(t)
	s.put("erp", r)
	n := startNode(t, vfs.NewMem(), s, atOnce)
	n.reach(s, 1)
	e, err := n.outbox.endpoint("erp")
	if err != nil {
		t.Fatal(err)
	}
	for range DeliveriesMax + 50 {
		if err := e.record(&Delivery{Error: strings.Repeat("x", 10*errorBytesMax)}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := n.outbox.Deliveries("erp", 0, 2*DeliveriesMax)
	if err != nil || len(all) != DeliveriesMax || all[0].Number != DeliveriesMax+50 || len(all[0].Error) != errorBytesMax {
		t.Fatalf("got %d deliveries, %v", len(all), err)
	}
	if page, err := n.outbox.Deliveries("erp", all[9].Number, 5); err != nil || len(page) != 5 || page[0] != all[10] {
		t.Fatalf("got %+v, %v, want the page after the tenth", page, err)
	}
}

func TestAnEndpointThatDoesNotAnswerHoldsUpItsOwnOrderOnly(t *testing.T) {
	seed := seedOf(t)
	s, r := newShop(t, seed), newReceiver(t)
	s.put("erp", r)
	for range 30 {
		s.step()
	}
	stuck := s.want[0]
	release := make(chan struct{})
	var late atomic.Int64
	r.answers(func(id string) int {
		if id == stuck.ID {
			late.Add(1)
			<-release // Longer than anybody waits.
		}
		return http.StatusOK
	})
	n := startNode(t, vfs.NewMem(), s, func(ctx context.Context, wake <-chan struct{}) error { return untilWoken(ctx, wake) })
	others := 0
	for _, event := range s.want {
		if event.OrderID != stuck.OrderID {
			others++
		}
	}
	n.await("all other orders", func() bool { return len(r.firsts()) == others && late.Load() == 1 })
	if slices.ContainsFunc(r.firsts(), func(event received) bool { return event.OrderID == stuck.OrderID }) {
		t.Fatalf("seed %d: a later event of order %s overtook the first", seed, stuck.OrderID)
	}
	close(release)
	n.reach(s, 1)
	checkOrders(t, seed, r.firsts(), s.want)
}
