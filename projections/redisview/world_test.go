package redisview

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// A world writes the logs of all lanes of a shop.
type world struct {
	tb     testing.TB
	seed   uint64
	random *rand.Rand
	lanes  uint32
	logs   []*eventstore.MemoryLog
	last   []eventstore.Position
	now    time.Time

	users  []string
	skus   []string
	orders []domain.OrderID // oldest first
	placed map[domain.OrderID]domain.OrderPlaced
	ended  map[domain.OrderID]bool
}

const (
	worldUsers = 6
	worldSKUs  = 3
	campaignID = "flash"
)

func newWorld(tb testing.TB, lanes uint32) *world {
	seed := rand.Uint64()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("seed %d", seed)
		}
	})
	return newSeededWorld(tb, seed, lanes)
}

func newSeededWorld(tb testing.TB, seed uint64, lanes uint32) *world {
	w := &world{
		tb: tb, seed: seed, random: rand.New(rand.NewPCG(seed, 0)), lanes: lanes, now: time.Unix(1_700_000_000, 0).UTC(),
		placed: make(map[domain.OrderID]domain.OrderPlaced), ended: make(map[domain.OrderID]bool),
	}
	for lane := range lanes {
		w.logs = append(w.logs, eventstore.OpenMemoryLog(lane, lanes))
		w.last = append(w.last, eventstore.Genesis(lane, lanes))
		w.commit(lane, eventstore.Event{Type: eventstore.TypeLaneOpened, Version: 1})
	}
	for i := range worldUsers {
		w.users = append(w.users, fmt.Sprintf("user-%d", i))
	}
	for i := range worldSKUs {
		sku := fmt.Sprintf("sku-%d", i)
		w.skus = append(w.skus, sku)
		pool := domain.CampaignPool(sku, campaignID)
		w.happen(w.laneOf(sku),
			domain.ProductPut{SKU: sku, Title: "Title of " + sku, Price: domain.Money{Currency: "EUR", Minor: 1299}},
			domain.StockReceived{SKU: sku, Units: 1_000_000, ReceivedTotal: 1_000_000},
			domain.CampaignPut{Pool: pool, Price: domain.Money{Currency: "EUR", Minor: 999}, OpensAt: w.now, ClosesAt: w.now.Add(time.Hour), Units: 1000},
			domain.PoolFilled{Pool: pool, Units: 1000},
		)
	}
	return w
}

func (w *world) topology() eventstore.Topology { return eventstore.Topology{Lanes: w.lanes} }

func (w *world) laneOf(key string) uint32 {
	return w.topology().LaneOf(eventstore.PartitionOf(key))
}

// commit appends one commit to a lane.
func (w *world) commit(lane uint32, events ...eventstore.Event) {
	w.tb.Helper()
	w.now = w.now.Add(time.Millisecond)
	commit := &eventstore.Commit{
		Lane: lane, Number: w.last[lane].Number + 1, Epoch: 1, Time: w.now, PrevHash: w.last[lane].Hash, Events: events,
	}
	record := eventstore.EncodeCommit(commit)
	if err := w.logs[lane].Append(record).Wait(w.tb.Context()); err != nil {
		w.tb.Fatalf("append commit %d: %v", commit.Number, err)
	}
	w.last[lane] = eventstore.Position{Number: record.Number, Hash: record.Hash}
}

// happen appends one commit of domain events to a lane.
func (w *world) happen(lane uint32, events ...domain.Event) {
	w.tb.Helper()
	var envelopes []eventstore.Event
	for _, event := range events {
		typeName, version, aggregateID, payload := stored.Encode(event)
		e := eventstore.Event{AggregateID: aggregateID, Type: typeName, Version: version, Payload: payload, UserID: "operator"}
		if placed, ok := event.(domain.OrderPlaced); ok {
			e.UserID = placed.UserID
		} else if id, ok := domain.OrderOf(event); ok {
			e.UserID = w.placed[id].UserID
		}
		e.Partition = eventstore.PartitionOf(e.UserID)
		envelopes = append(envelopes, e)
	}
	w.commit(lane, envelopes...)
}

// place has a user place an order, and returns its id.
func (w *world) place(user string) domain.OrderID {
	w.tb.Helper()
	var entropy [10]byte
	binary.BigEndian.PutUint64(entropy[2:], w.random.Uint64())
	sku := w.skus[w.random.IntN(len(w.skus))]
	placed := domain.OrderPlaced{
		OrderID: domain.NewOrderID(w.now.Add(time.Millisecond), eventstore.PartitionOf(user), entropy), UserID: user,
		PayBy: w.now.Add(15 * time.Minute), Total: domain.Money{Currency: "EUR", Minor: 1299},
		Lines: []domain.Line{{SKU: sku, Units: 1, Title: "Title of " + sku, PriceMinor: 1299}},
	}
	if w.random.IntN(3) == 0 {
		placed.Pool = domain.CampaignPool(sku, campaignID)
	}
	w.orders = append(w.orders, placed.OrderID)
	w.placed[placed.OrderID] = placed
	w.happen(w.laneOf(user), placed)
	return placed.OrderID
}

// note has somebody add a note to an order.
func (w *world) note(id domain.OrderID) {
	w.tb.Helper()
	w.happen(w.topology().LaneOf(id.Partition()), domain.NoteAdded{
		OrderID: id, UserID: w.placed[id].UserID, By: "clerk", Sealed: binary.BigEndian.AppendUint64(nil, w.random.Uint64()),
	})
}

// cancel ends an order.
func (w *world) cancel(id domain.OrderID) {
	w.tb.Helper()
	if w.ended[id] {
		w.note(id)
		return
	}
	w.ended[id] = true
	placed := w.placed[id]
	key := placed.Lines[0].SKU
	if placed.Pool != "" {
		key = placed.Pool
	}
	w.happen(w.topology().LaneOf(id.Partition()), domain.OrderCancelled{
		OrderID: id, UserID: placed.UserID, Reason: "changed my mind", By: placed.UserID, Released: []domain.Release{{SKU: key, Units: 1}},
	})
}

// step lets something random happen.
func (w *world) step() {
	w.tb.Helper()
	if len(w.orders) == 0 || w.random.IntN(3) == 0 {
		w.place(w.users[w.random.IntN(len(w.users))])
		return
	}
	id := w.orders[w.random.IntN(len(w.orders))]
	sku := w.skus[w.random.IntN(len(w.skus))]
	switch w.random.IntN(5) {
	case 0:
		w.cancel(id)
	case 1:
		w.happen(w.laneOf(sku), domain.StockReceived{SKU: sku, Units: 1 + w.random.Int64N(9)})
	case 2:
		w.happen(w.laneOf(sku), domain.CampaignPut{
			Pool: domain.CampaignPool(sku, campaignID), Price: domain.Money{Currency: "EUR", Minor: 1 + w.random.Int64N(999)},
			OpensAt: w.now, ClosesAt: w.now.Add(time.Hour), Units: 1000,
		})
	default:
		w.note(id)
	}
}

// steps lets much happen.
func (w *world) steps(count int) {
	w.tb.Helper()
	for range count {
		w.step()
	}
}

// A node follows a world's logs and mirrors its views.
type node struct {
	w       *world
	store   *projections.Store
	views   *projections.Views
	runners []*projections.Runner
	mirror  *Mirror

	mu      sync.Mutex
	changed []uint64 // by lane, the newest position of which the mirror knows
	woken   chan struct{}
}

// watched is the mirror as the runners know it: it tells the test how far they are.
type watched struct {
	*Mirror
	n *node
}

func (o watched) Changed(changes *projections.Changes) {
	o.Mirror.Changed(changes)
	o.n.mu.Lock()
	defer o.n.mu.Unlock()
	o.n.changed[changes.Lane] = changes.Position.Number
	close(o.n.woken)
	o.n.woken = make(chan struct{})
}

// startNode follows the world's logs with a mirror at addr; set may change its options. It ends with the test.
func startNode(w *world, addr string, set func(*Options)) *node {
	w.tb.Helper()
	store, err := projections.OpenStore("store", projections.StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20})
	if err != nil {
		w.tb.Fatal(err)
	}
	options := Options{
		Addresses: []string{addr}, Store: store, Topology: w.topology(), Logger: slog.New(slog.DiscardHandler),
		ReadTimeout: patience, WriteTimeout: patience, // What is slow is said by tests of slowness alone.
	}
	if set != nil {
		set(&options)
	}
	mirror, err := New(options)
	if err != nil {
		w.tb.Fatal(err)
	}
	n := &node{w: w, store: store, mirror: mirror, changed: make([]uint64, w.lanes), woken: make(chan struct{})}
	for lane := range w.lanes {
		runner, err := projections.NewRunner(projections.RunnerOptions{
			Store: store, Lane: lane, Lanes: w.lanes, Log: w.logs[lane], Observer: watched{mirror, n}, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			w.tb.Fatal(err)
		}
		n.runners = append(n.runners, runner)
	}
	n.views, err = projections.NewViews(projections.ViewsOptions{
		Store: store, Topology: w.topology(), Runners: n.runners, PageKey: []byte("a key for tests only"),
	})
	if err != nil {
		w.tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // The clean-up ends it, after tb.Context has ended.
	var running sync.WaitGroup
	for _, runner := range n.runners {
		running.Go(func() {
			if err := runner.Run(ctx); err != nil {
				w.tb.Errorf("seed %d: %v", w.seed, err)
			}
		})
	}
	w.tb.Cleanup(func() {
		cancel()
		running.Wait()
		if err := mirror.Close(); err != nil {
			w.tb.Errorf("close the mirror: %v", err)
		}
		if err := store.Close(); err != nil {
			w.tb.Errorf("close the store: %v", err)
		}
	})
	return n
}

// reach waits until the node's views, and its mirror, know all that has happened.
func (n *node) reach() {
	n.w.tb.Helper()
	ctx, cancel := context.WithTimeout(n.w.tb.Context(), patience)
	defer cancel()
	for {
		n.mu.Lock()
		woken, behind := n.woken, false
		for lane := range n.changed {
			behind = behind || n.changed[lane] < n.w.last[lane].Number
		}
		n.mu.Unlock()
		if !behind {
			return
		}
		select {
		case <-woken:
		case <-ctx.Done():
			n.w.tb.Fatalf("seed %d: lanes are at %v, want %v", n.w.seed, n.changed, n.w.last)
		}
	}
}

// waits reports whether something waits to be written.
func (n *node) waits() bool {
	n.mirror.queue.mu.Lock()
	defer n.mirror.queue.mu.Unlock()
	return len(n.mirror.queue.waiting) > 0
}

// publish writes what waits, as a publisher does. REQUIRES: none runs, which might take what this waits for.
func (n *node) publish() {
	n.w.tb.Helper()
	for n.waits() {
		batch, err := n.mirror.queue.take(n.w.tb.Context(), nil)
		if err != nil {
			n.w.tb.Fatal(err)
		}
		writes, err := n.mirror.read(batch)
		if err != nil {
			n.w.tb.Fatal(err)
		}
		if err := n.mirror.send(n.w.tb.Context(), writes); err != nil {
			n.w.tb.Fatalf("seed %d: publish %d entries: %v", n.w.seed, len(writes), err)
		}
	}
}

// run starts the mirror's publishers. They end with the test, or when the returned function is called.
func (n *node) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background()) // The clean-up ends it, after tb.Context has ended.
	ended := make(chan error, 1)
	go func() { ended <- n.mirror.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				n.w.tb.Errorf("seed %d: publisher: %v", n.w.seed, err)
			}
		})
	}
	n.w.tb.Cleanup(stop)
	return stop
}

// answers counts what check found in Redis.
type answers struct{ orders, lists, stock, boards int }

func (a answers) total() int { return a.orders + a.lists + a.stock + a.boards }

// check asks Redis everything, and fails if one answer is not what the node's own views say. What Redis does not answer is no fault.
// REQUIRES: the node has reached all that happened, and nothing happens meanwhile.
func (n *node) check() (found answers) {
	n.w.tb.Helper()
	ctx := n.w.tb.Context()
	snapshot := n.store.Snapshot(n.w.lanes)
	defer snapshot.Close()
	for _, id := range n.w.orders {
		lane := n.w.topology().LaneOf(id.Partition())
		record, position, ok, err := n.mirror.OrderRecords().Get(ctx, id.String(), n.w.last[lane].Number)
		if err != nil || !ok {
			continue
		}
		found.orders++
		want, _, err := n.views.Order(ctx, id, projections.Min{})
		if err != nil {
			n.w.tb.Fatalf("seed %d: order %s is in redis and not in the view: %v", n.w.seed, id, err)
		}
		got, revision, err := projections.FoldOrder(id, "", record, 0)
		if err != nil || !got.Equal(want.Order) || revision != want.Revision.Commit || position < n.w.last[lane].Number {
			n.w.tb.Fatalf("seed %d: order %s: redis says %+v at %d up to %d (%v), the view %+v", n.w.seed, id, got, revision, position, err, want)
		}
	}
	for _, user := range n.w.users {
		lane := n.w.laneOf(user)
		got, _, ok, err := n.mirror.RecentOrders(ctx, user, n.w.last[lane].Number)
		if err != nil || !ok {
			continue
		}
		found.lists++
		page, _, err := n.views.Orders(ctx, projections.OrdersQuery{UserID: user, PageSize: RecentOrdersMax}, projections.Min{})
		if err != nil || len(page.Orders) != len(got) {
			n.w.tb.Fatalf("seed %d: redis lists %d orders of %s, the view %d (%v)", n.w.seed, len(got), user, len(page.Orders), err)
		}
		for i, want := range page.Orders {
			if got[i].ID != want.Order.ID || (got[i].Ended == domain.StatusCancelled) != (want.Order.Status == domain.StatusCancelled) {
				n.w.tb.Fatalf("seed %d: order %d of %s: redis says %+v, the view %+v", n.w.seed, i, user, got[i], want.Order)
			}
		}
	}
	for _, sku := range n.w.skus {
		for _, key := range []string{sku, domain.CampaignPool(sku, campaignID)} {
			got, ok, err := n.mirror.Stock(ctx, key)
			if err != nil || !ok {
				continue
			}
			found.stock++
			accounts := make([][]byte, n.w.lanes)
			for lane := range accounts {
				if accounts[lane], err = snapshot.StockAccount(uint32(lane), key); err != nil {
					n.w.tb.Fatal(err)
				}
			}
			want, _, err := projections.SumAccounts(key, accounts)
			if err != nil || got != want {
				n.w.tb.Fatalf("seed %d: stock of %s: redis says %+v, the view %+v (%v)", n.w.seed, key, got, want, err)
			}
		}
	}
	if got, ok, err := n.mirror.Board(ctx, n.w.now); err == nil && ok {
		found.boards++
		want, _, err := n.views.Board(ctx, projections.BoardQuery{Now: n.w.now}, projections.Min{})
		if err != nil || !reflect.DeepEqual(got, want.Rows) {
			n.w.tb.Fatalf("seed %d: the board: redis says %+v, the view %+v (%v)", n.w.seed, got, want.Rows, err)
		}
	}
	return found
}

// all is what check finds when Redis has everything.
func (n *node) all() answers {
	return answers{orders: len(n.w.orders), lists: len(n.w.users), stock: 2 * len(n.w.skus), boards: 1}
}

// warm has Redis hold everything, as of now: what is missing or refused is written anew.
func (n *node) warm() {
	n.w.tb.Helper()
	n.reach()
	for _, id := range n.w.orders {
		n.mirror.queue.again([]subject{orderSubject(n.mirror.laneOf(id), id)})
	}
	for range 3 { // The board's accounts are asked for when it is there.
		n.publish()
		n.check()
	}
	n.publish()
}
