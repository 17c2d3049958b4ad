package redisview

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// atWorldTime is the clock of a node in whose world little time passes.
func atWorldTime(w *world) func(*Options) {
	now := w.now
	return func(o *Options) { o.Now = func() time.Time { return now } }
}

// holds reports whether a server has a value, not the mark of an erasure, at a subject's key.
func (n *node) holds(client *redis.Client, of subject) bool {
	n.w.tb.Helper()
	key := n.mirror.key(of, 0)
	stored, err := client.Get(n.w.tb.Context(), key).Bytes()
	if errors.Is(err, redis.Nil) {
		return false
	}
	if err != nil {
		n.w.tb.Fatal(err)
	}
	e, ok := readEntry(key, stored)
	return !ok || !e.erased
}

func (n *node) erase(user string) {
	n.w.happen(n.w.laneOf(user), domain.UserErased{UserID: user, Key: 1, By: "operator"})
}

func TestErasureIsMadeUpByTheNextStart(t *testing.T) {
	for _, lanes := range []uint32{1, 4} {
		t.Run(fmt.Sprintf("%d lanes", lanes), func(t *testing.T) {
			w := newWorld(t, lanes)
			s := startServer(t)
			n := startNode(w, s.addr, nil)
			client := s.client()
			user := w.users[0]
			mine, other := w.place(user), w.place(w.users[1])
			n.warm()
			list := subject{kind: kindRecent, lane: w.laneOf(user), text: user}
			ofUser := []subject{orderSubject(n.mirror.laneOf(mine), mine), list}
			for _, of := range ofUser {
				if !n.holds(client, of) {
					t.Fatalf("seed %d: redis has nothing at %s", w.seed, n.mirror.key(of, 0))
				}
			}
			// The node stops before it has told Redis, and another one starts.
			n.erase(user)
			n.reach()
			next := startNode(w, s.addr, atWorldTime(w))
			next.reach()
			next.run()
			eventually(t, "the erased user's entries are gone", func() bool {
				return !next.holds(client, ofUser[0]) && !next.holds(client, ofUser[1])
			})
			if !next.holds(client, orderSubject(n.mirror.laneOf(other), other)) {
				t.Errorf("seed %d: another user's order is gone too", w.seed)
			}
		})
	}
}

func TestErasuresThatEveryEntryOutlivedAreNotMadeUp(t *testing.T) {
	w := newWorld(t, 1)
	s := startServer(t)
	later := w.now
	n := startNode(w, s.addr, func(o *Options) { o.Now = func() time.Time { return later } })
	w.place(w.users[0])
	n.erase(w.users[0])
	n.reach()
	count := func() int {
		erased, _, err := n.mirror.refillOf()
		if err != nil {
			t.Fatal(err)
		}
		return len(erased)
	}
	later = w.now.Add(TTLDefault)
	if got := count(); got != 1 {
		t.Errorf("while an entry may live: %d erasures are made up, want 1", got)
	}
	later = w.now.Add(TTLDefault + erasedSkewMax + time.Second)
	if got := count(); got != 0 {
		t.Errorf("when none can: %d erasures are made up, want none", got)
	}
}

// More users are erased than the queue has room for while Redis is away, and Redis comes back with what it had.
func TestErasuresThatFoundNoRoomAreMadeUpWhenRedisIsBack(t *testing.T) {
	w := newWorld(t, 1)
	s := startServer(t)
	proxied := startProxy(t, s.addr)
	n := startNode(w, proxied.addr, atWorldTime(w))
	client := s.client()
	user := w.users[0]
	mine := w.place(user)
	n.warm()
	proxied.point("127.0.0.1:1") // Nobody listens there.
	proxied.cut()
	stop := n.run()
	const atOnce = 500
	for erased := 0; erased <= erasuresMax+publishersOfNode*batchMax; erased += atOnce {
		var events []domain.Event
		for i := range atOnce {
			events = append(events, domain.UserErased{UserID: fmt.Sprintf("somebody-%d", erased+i), Key: 1, By: "operator"})
		}
		w.happen(0, events...)
	}
	n.erase(user)
	n.reach()
	if n.mirror.Stats().Dropped == 0 {
		t.Fatal("every erasure found room: the test tests nothing")
	}
	if !n.holds(client, orderSubject(0, mine)) {
		t.Fatalf("seed %d: redis forgot the order by itself", w.seed)
	}
	proxied.point(s.addr)
	eventually(t, "the erased user's order is gone", func() bool { return !n.holds(client, orderSubject(0, mine)) })
	stop()
}

func TestRedisThatIsStartedAgainIsFilledWithoutReads(t *testing.T) {
	w := newWorld(t, 2)
	s := startServer(t)
	proxied := startProxy(t, s.addr)
	n := startNode(w, proxied.addr, atWorldTime(w))
	first := s.client()
	w.steps(60)
	n.reach()
	n.run()
	eventually(t, "the first redis is filled", func() bool { return !n.waits() && n.keys(first) >= n.least() })
	fresh := startServer(t)
	second := fresh.client()
	proxied.point(fresh.addr)
	proxied.cut()
	// Somebody asks for something that is nowhere: the connection is new.
	eventually(t, "the new redis is filled", func() bool {
		_, _, _, _ = n.mirror.OrderRecords().Get(t.Context(), domain.NewOrderID(w.now, 0, [10]byte{}).String(), 0)
		return n.keys(second) >= n.least()
	})
}

// rebuild makes a view of the node again, and returns when it answers.
func (n *node) rebuild(view string) {
	n.w.tb.Helper()
	b, err := projections.NewRebuilder(projections.RebuilderOptions{
		Store: n.store, Runners: n.runners, Topology: n.w.topology(), Logger: slog.New(slog.DiscardHandler),
		Log: func(lane uint32) eventstore.Log { return n.w.logs[lane] },
	})
	if err != nil {
		n.w.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(n.w.tb.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx) }()
	if err := b.Start(view, projections.RebuildOptions{Speed: projections.SpeedFull}); err != nil {
		n.w.tb.Fatal(err)
	}
	eventually(n.w.tb, "the view is made again", func() bool { return len(b.Status()) == 0 })
	cancel()
	if err := <-ended; err != nil {
		n.w.tb.Fatal(err)
	}
}

// What another generation wrote is refused, and nothing of it may change again for long.
func TestRedisIsFilledWithoutReadsWhenAnotherGenerationAnswers(t *testing.T) {
	w := newWorld(t, 2)
	s := startServer(t)
	client := s.client()
	n := startNode(w, s.addr, nil)
	for _, user := range w.users {
		w.place(user)
	}
	w.steps(60)
	n.reach()
	n.run()
	eventually(t, "redis is filled", func() bool { return !n.waits() && n.check().orders == len(w.orders) })
	if err := client.FlushAll(t.Context()).Err(); err != nil { // Nobody sees that.
		t.Fatal(err)
	}
	n.rebuild("orders")
	eventually(t, "redis is filled before anything else happens", func() bool { return n.keys(client) >= n.least() })
	if got := n.check().orders; got != 0 {
		t.Fatalf("seed %d: %d orders are served as of a commit at which the other generation answered", w.seed, got)
	}
	for lane := range w.lanes {
		w.commit(lane, eventstore.Event{Type: eventstore.TypeLaneOpened, Version: 1})
	}
	n.reach()
	eventually(t, "all orders are served again", func() bool { return n.check().orders == len(w.orders) })
}

func TestCopiesOfOtherVersionsOfTheViewsAreNotRead(t *testing.T) {
	w := newWorld(t, 2)
	s := startServer(t)
	n := startNode(w, s.addr, nil)
	other := startNode(w, s.addr, func(o *Options) { o.Versions = "another" })
	w.steps(60)
	n.warm()
	other.reach()
	if got := other.check(); got.total() != 0 {
		t.Errorf("seed %d: a node of another version is answered %+v", w.seed, got)
	}
	other.warm()
	if got, want := other.check(), other.all(); got != want {
		t.Errorf("seed %d: found %+v in redis, want %+v", w.seed, got, want)
	}
	if got, want := n.check(), n.all(); got != want {
		t.Errorf("seed %d: found %+v in redis beside what another version wrote, want %+v", w.seed, got, want)
	}
	if report, err := n.mirror.Verify(t.Context(), VerifyOptions{}); err != nil || report.DifferencesTotal > 0 {
		t.Errorf("seed %d: got %+v, %v", w.seed, report, err)
	}
}

func TestNewNodeFillsRedisWithoutReads(t *testing.T) {
	w := newWorld(t, 2)
	s := startServer(t)
	client := s.client()
	for _, user := range w.users {
		w.place(user)
	}
	w.steps(60)
	first := startNode(w, s.addr, nil)
	first.reach()
	first.mirror.queue.mu.Lock()
	first.mirror.queue.line, first.mirror.queue.waiting = nil, map[subject]struct{}{} // As after a restart: nothing has changed since.
	first.mirror.queue.mu.Unlock()
	first.run()
	eventually(t, "what is read most is in redis", func() bool { return first.keys(client) >= first.least() })
	if got, want := first.check(), first.all(); got != want {
		t.Errorf("seed %d: found %+v in redis, want %+v", w.seed, got, want)
	}
}

// keys counts what a server holds.
func (n *node) keys(client *redis.Client) int {
	n.w.tb.Helper()
	keys, err := client.DBSize(n.w.tb.Context()).Result()
	if err != nil {
		n.w.tb.Fatal(err)
	}
	return int(keys)
}

// least is how many keys a refill writes at least: of each order and list, and of each lane a board, an account of each SKU and pool
// and a tally of each pool.
func (n *node) least() int {
	lists := map[string]bool{}
	for _, placed := range n.w.placed {
		lists[placed.UserID] = true
	}
	return len(n.w.orders) + len(lists) + int(n.w.lanes)*(1+3*len(n.w.skus))
}

func TestFillingLeavesRoomForWhatChanges(t *testing.T) {
	var q queue
	q.init()
	subjects := make([]subject, queueMax)
	for i := range subjects {
		subjects[i] = subject{kind: kindStock, text: fmt.Sprint(i)}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.addPatiently(ctx, subjects) }()
	waiting := func() int {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.line)
	}
	eventually(t, "half of the queue is filled", func() bool { return waiting() == queueMax/2 })
	batch, err := q.take(ctx, nil)
	if err != nil || len(batch) != batchMax {
		t.Fatalf("took %d, %v", len(batch), err)
	}
	eventually(t, "the room that became free is filled", func() bool { return waiting() == queueMax/2 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's end", err)
	}
}

func TestAServerIsNewOnceAndOnlyBesideOthers(t *testing.T) {
	var seen servers
	var got []string
	for _, id := range strings.Fields("a a b a b c") {
		if seen.isNew(id) {
			got = append(got, id)
		}
	}
	if want := "b c"; strings.Join(got, " ") != want {
		t.Errorf("new are %q, want %q", got, want)
	}
	for i := range 3 * serversMax {
		seen.isNew(fmt.Sprint(i))
	}
	if len(seen.seen) > serversMax {
		t.Errorf("%d servers are remembered, want %d at most", len(seen.seen), serversMax)
	}
}

func TestARefillIsBoundedAndLeavesOutWhoIsErased(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, "127.0.0.1:1", atWorldTime(w))
	mine := w.place(w.users[0])
	other := w.place(w.users[1])
	n.erase(w.users[0])
	n.reach()
	erased, warm, err := n.mirror.refillOf()
	if err != nil || len(erased) != 1 || erased[0].text != w.users[0] {
		t.Fatalf("seed %d: made up are %v, %v", w.seed, erased, err)
	}
	seen := map[subject]bool{}
	for _, s := range warm {
		if seen[s] {
			t.Errorf("seed %d: %s is filled twice", w.seed, n.mirror.key(s, 0))
		}
		seen[s] = true
	}
	if seen[orderSubject(0, mine)] || !seen[orderSubject(0, other)] || !seen[subject{kind: kindBoard}] {
		t.Errorf("seed %d: filled are %v", w.seed, warm)
	}
	snapshot := n.store.Snapshot(1)
	defer snapshot.Close()
	newest, users, err := snapshot.NewestOrders(0, 1)
	if err != nil || len(newest) != 1 || len(users) != 1 || bytes.Compare(newest[0][:], mine[:]) < 0 {
		t.Errorf("seed %d: the newest order is %v of %v, %v", w.seed, newest, users, err)
	}
}
