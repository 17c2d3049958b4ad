package lanes

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// node is a Set that runs over logs in memory, with a clock that a test moves.
type node struct {
	*Set
	store *projections.Store
	fs    *vfs.MemFS
	logs  []eventstore.Log

	transport Transport
	stockWait time.Duration
	grace     time.Duration

	mu    sync.Mutex
	now   time.Time
	stop  context.CancelFunc
	ended chan error
}

var start = time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC)

// startNode runs a node with lanes; it stops with the test.
func startNode(t testing.TB, lanes uint32) *node {
	n := &node{fs: vfs.NewMem(), now: start}
	for lane := range lanes {
		n.logs = append(n.logs, eventstore.OpenMemoryLog(lane, lanes))
	}
	n.start(t)
	t.Cleanup(func() { n.close(t) })
	return n
}

func (n *node) start(t testing.TB) {
	t.Helper()
	var err error
	n.store, err = projections.OpenStore("state", projections.StoreOptions{FS: n.fs})
	if err != nil {
		t.Fatal(err)
	}
	n.Set, err = Open(Options{
		Topology: eventstore.Topology{Lanes: uint32(len(n.logs))}, Store: n.store, Owner: "test",
		Log:       func(lane uint32) eventstore.Log { return n.logs[lane] },
		Lane:      eventstore.LaneOptions{Clock: n.clock, TickEvery: time.Millisecond},
		Transport: n.transport, StockWait: n.stockWait, PaymentGrace: n.grace,
	})
	if err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, n.stop = context.WithCancel(context.Background())
	n.ended = make(chan error, 1)
	go func() { n.ended <- n.Run(ctx) }()
	eventually(t, "the lanes serve", n.Serving)
}

func (n *node) close(t testing.TB) {
	t.Helper()
	n.stop()
	if err := <-n.ended; err != nil {
		t.Errorf("run: %v", err)
	}
	if err := n.store.Close(); err != nil {
		t.Errorf("close store: %v", err)
	}
}

func (n *node) restart(t testing.TB) {
	t.Helper()
	n.close(t)
	n.start(t)
}

func (n *node) clock() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now
}

func (n *node) advance(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.now = n.now.Add(d)
}

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

func fingerprint(command domain.Command) Fingerprint {
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", command))
	return Fingerprint(sum[:16])
}

func place(userID, requestID, sku string, units int64) Request {
	command := domain.PlaceOrder{UserID: userID, Lines: []domain.LineRequest{{SKU: sku, Units: units}}}
	return Request{
		UserID: userID, RequestID: requestID, Fingerprint: fingerprint(command),
		Partition: eventstore.PartitionOf(userID), Command: command,
	}
}

// placeSealed is place with something personal, sealed under a key.
func placeSealed(userID, requestID, sku string, key domain.KeyID) Request {
	request := place(userID, requestID, sku, 1)
	command := request.Command.(domain.PlaceOrder)
	command.SealKey, command.SealedPersonal = key, binary.BigEndian.AppendUint64(nil, uint64(key))
	request.Command = command
	return request
}

// sealedUnder returns the key that placeSealed sealed under, 0 if it did not.
func sealedUnder(sealed []byte) domain.KeyID {
	if len(sealed) != 8 {
		return 0
	}
	return domain.KeyID(binary.BigEndian.Uint64(sealed))
}

func eraseUser(userID, requestID string, key domain.KeyID) Request {
	command := domain.EraseUser{UserID: userID, Key: key, By: "operator"}
	return Request{
		UserID: userID, RequestID: requestID, Fingerprint: fingerprint(domain.EraseUser{UserID: userID}),
		Partition: eventstore.PartitionOf(userID), Command: command,
	}
}

func cancelOrder(order domain.Order, requestID string) Request {
	command := domain.CancelOrder{OrderID: order.ID, Reason: "changed my mind", By: order.UserID}
	return Request{
		UserID: order.UserID, RequestID: requestID, Fingerprint: fingerprint(command), Owner: order.UserID,
		Partition: order.ID.Partition(), Command: command,
	}
}

func catalogRequest(sku, requestID string, command domain.Command) Request {
	return Request{
		UserID: "operator", RequestID: requestID, Fingerprint: fingerprint(command),
		Partition: eventstore.PartitionOf(sku), Command: command,
	}
}

func (n *node) stock(t testing.TB, sku string, units int64) {
	t.Helper()
	n.must(t, catalogRequest(sku, "put-"+sku, domain.PutProduct{SKU: sku, Title: "A " + sku, Price: domain.Money{Currency: "EUR", Minor: 1299}}))
	n.must(t, catalogRequest(sku, "receive-"+sku, domain.ReceiveStock{SKU: sku, Units: units}))
}

func (n *node) must(t testing.TB, request Request) *Reply {
	t.Helper()
	reply, err := n.Submit(t.Context(), request)
	if err != nil {
		t.Fatalf("%T: %v", request.Command, err)
	}
	return reply
}

func TestARequestIsAnsweredTheSameForEver(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 10)
	first := n.must(t, place("ann", "r1", "tea", 2))
	cancelled := n.must(t, cancelOrder(first.Order, "r2"))
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"at once", func() {}},
		{"after a restart", func() { n.restart(t) }},
		{"after the state was lost", func() { n.fs = vfs.NewMem(); n.restart(t) }},
	} {
		step.do()
		if again := n.must(t, place("ann", "r1", "tea", 2)); !reflect.DeepEqual(again, first) {
			t.Errorf("%s: placing again answers\n%+v, first\n%+v", step.name, again, first)
		}
		if again := n.must(t, cancelOrder(first.Order, "r2")); !reflect.DeepEqual(again, cancelled) {
			t.Errorf("%s: cancelling again answers\n%+v, first\n%+v", step.name, again, cancelled)
		}
		var reused *KeyReusedError
		if _, err := n.Submit(t.Context(), place("ann", "r1", "tea", 3)); !errors.As(err, &reused) {
			t.Errorf("%s: another body under the same id: %v, want a KeyReusedError", step.name, err)
		}
		if _, err := n.Submit(t.Context(), place("bob", "r1", "tea", 100)); !errors.Is(err, domain.ErrOutOfStock) {
			t.Errorf("%s: another user's r1: %v, want out of stock", step.name, err)
		}
	}
}

func TestAKeyIsErasedOnceAndNothingIsPlacedUnderItAnyMore(t *testing.T) {
	for _, count := range []uint32{1, 4} {
		t.Run(fmt.Sprintf("%dLanes", count), func(t *testing.T) {
			n := startNode(t, count)
			n.stock(t, "tea", 100)
			for _, userID := range []string{"ann", "bob"} {
				eventually(t, "units reach the lane of "+userID, func() bool {
					_, err := n.Submit(t.Context(), place(userID, "r0", "tea", 1))
					return err == nil
				})
			}
			first := n.must(t, placeSealed("ann", "r1", "tea", 7))
			erased := n.must(t, eraseUser("ann", "e1", 7))
			if want := (domain.UserErased{UserID: "ann", Key: 7, By: "operator"}); erased.Erased != want || erased.Commit <= first.Commit {
				t.Fatalf("got %+v, want %+v after commit %d", erased, want, first.Commit)
			}
			for _, step := range []struct {
				name string
				do   func()
			}{
				{"at once", func() {}},
				{"after a restart", func() { n.restart(t) }},
				{"after the state was lost", func() { n.fs = vfs.NewMem(); n.restart(t) }},
			} {
				step.do()
				var conflict *domain.KeyErasedError
				if _, err := n.Submit(t.Context(), placeSealed("ann", "new", "tea", 7)); !errors.As(err, &conflict) {
					t.Errorf("%s: an order under the erased key: %v, want a KeyErasedError", step.name, err)
				}
				// The key that whoever asks again found by then does not matter.
				if again := n.must(t, eraseUser("ann", "e1", 9)); !reflect.DeepEqual(again, erased) {
					t.Errorf("%s: erasing again answers\n%+v, first\n%+v", step.name, again, erased)
				}
				if again := n.must(t, eraseUser("ann", "e2", 7)); again.Commit != erased.Commit || !again.At.Equal(erased.At) || again.Erased.Key != 7 {
					t.Errorf("%s: erasing it under another id answers\n%+v, first\n%+v", step.name, again, erased)
				}
				if again := n.must(t, placeSealed("ann", "r1", "tea", 7)); !reflect.DeepEqual(again, first) {
					t.Errorf("%s: placing again answers\n%+v, first\n%+v", step.name, again, first)
				}
				n.must(t, placeSealed("ann", "u8-"+step.name, "tea", 8))
				n.must(t, placeSealed("bob", "u7-"+step.name, "tea", 7))
				var found []string
				if err := n.EachErased(func(userID string, key domain.KeyID) error {
					found = append(found, fmt.Sprint(userID, key))
					return nil
				}); err != nil || !slices.Equal(found, []string{"ann7"}) {
					t.Errorf("%s: erased are %q, %v", step.name, found, err)
				}
			}
		})
	}
}

func TestWhatIsErasedNoLongerCountsInAFingerprint(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 100)
	// Two halves: what is not personal, and what is, under the user's key.
	request := func(requestID string, open, personal byte) Request {
		r := placeSealed("ann", requestID, "tea", 7)
		r.Keyed = true
		r.Fingerprint = Fingerprint{0: open, 8: personal}
		return r
	}
	expect := func(when string, r Request, same bool) {
		t.Helper()
		_, err := n.Submit(t.Context(), r)
		var reused *KeyReusedError
		if (err == nil) != same || (err != nil && !errors.As(err, &reused)) {
			t.Fatalf("%s: got %v, want the same reply: %t", when, err, same)
		}
	}
	first := n.must(t, request("r1", 1, 1))
	expect("the same", request("r1", 1, 1), true)
	expect("another address", request("r1", 1, 2), false)
	n.must(t, eraseUser("bob", "e1", 7))
	expect("another address, another user erased", request("r1", 1, 2), false)
	n.must(t, eraseUser("ann", "e1", 7))
	for _, step := range []func(){func() {}, func() { n.restart(t) }} {
		step()
		expect("under a new key", request("r1", 1, 2), true)
		expect("other goods", request("r1", 2, 1), false)
		plain := request("r1", 1, 2)
		plain.Keyed = false
		expect("a request with nothing personal in it", plain, false)
	}
	if again := n.must(t, request("r1", 1, 2)); !reflect.DeepEqual(again, first) {
		t.Errorf("it answers\n%+v, first\n%+v", again, first)
	}
	later := request("r2", 1, 1)
	later.Command = placeSealed("ann", "r2", "tea", 8).Command
	n.must(t, later)
	expect("an order after the erasure, another address", request("r2", 1, 2), false)

	former := request("r1", 1, 1)
	former.Fingerprint, former.Former, former.Keyed = Fingerprint{0: 9}, Fingerprint{0: 1, 8: 1}, true
	expect("as an older program made it", former, true)
	former.Former = Fingerprint{}
	expect("nothing like it", former, false)
}

func TestAHundredConcurrentRepetitionsPlaceOneOrder(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	replies := make([]*Reply, 100)
	var group sync.WaitGroup
	for i := range replies {
		group.Go(func() { replies[i] = n.must(t, place("ann", "r1", "tea", 1)) })
	}
	group.Wait()
	for i := range replies {
		if !reflect.DeepEqual(replies[i], replies[0]) {
			t.Fatalf("reply %d is %+v, the first %+v", i, replies[i], replies[0])
		}
	}
}

func TestAThousandBuyersOfOneUnitMakeOneOrder(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	var group sync.WaitGroup
	var mu sync.Mutex
	sold, refused := 0, 0
	for i := range 1000 {
		group.Go(func() {
			_, err := n.Submit(t.Context(), place(fmt.Sprintf("user-%d", i), "r", "tea", 1))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				sold++
			case errors.Is(err, domain.ErrOutOfStock):
				refused++
			default:
				t.Errorf("buyer %d: %v", i, err)
			}
		})
	}
	group.Wait()
	if sold != 1 || refused != 999 {
		t.Errorf("sold %d, refused %d (I3)", sold, refused)
	}
}

func TestAnUnpaidOrderExpiresAndItsUnitsAreSoldAgain(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	first := n.must(t, place("ann", "r1", "tea", 1))
	n.advance(PayWithinDefault - time.Nanosecond)
	if _, err := n.Submit(t.Context(), place("bob", "r1", "tea", 1)); !errors.Is(err, domain.ErrOutOfStock) {
		t.Fatalf("before pay_by: %v, want out of stock", err)
	}
	n.restart(t) // The deadline index is durable.
	n.advance(time.Nanosecond)
	eventually(t, "bob gets the unit", func() bool {
		_, err := n.Submit(t.Context(), place("bob", "r2", "tea", 1))
		return err == nil
	})
	if _, err := n.Submit(t.Context(), cancelOrder(first.Order, "r2")); !errors.Is(err, domain.ErrOrderExpired) {
		t.Errorf("cancel the expired order: %v", err)
	}
}

func TestUnitsReachEveryLane(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 103)
	sold, attempt := 0, 0
	eventually(t, "every unit is sold", func() bool {
		attempt++
		_, err := n.Submit(t.Context(), place(fmt.Sprintf("user-%d", attempt), "r", "tea", 1))
		switch {
		case err == nil:
			sold++
		case !errors.Is(err, domain.ErrOutOfStock):
			t.Fatal(err)
		}
		return sold == 103
	})
	for attempt := range 100 {
		if _, err := n.Submit(t.Context(), place(fmt.Sprintf("late-%d", attempt), "r", "tea", 1)); !errors.Is(err, domain.ErrOutOfStock) {
			t.Fatalf("after all 103 were sold: %v (I3)", err)
		}
	}
}

// userIn returns a user of a lane.
func (n *node) userIn(lane uint32, name string) string {
	for i := 0; ; i++ {
		user := fmt.Sprintf("%s-%d", name, i)
		if n.options.Topology.LaneOf(eventstore.PartitionOf(user)) == lane {
			return user
		}
	}
}

func TestAnOrderForMoreThanAnyLaneHasIsFilledWhenAllHaveIt(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 20)
	preheat := catalogRequest("tea", "preheat", domain.PreheatStock{SKU: "tea", UnitsPerLane: 5})
	first := n.must(t, preheat)
	if first.Granted.Units != 5 {
		t.Errorf("preheating 5 units a lane granted %+v", first.Granted)
	}
	n.restart(t)
	if again := n.must(t, preheat); !reflect.DeepEqual(again, first) {
		t.Errorf("preheating again answers\n%+v, first\n%+v", again, first)
	}
	for lane := range uint32(4) {
		n.must(t, place(n.userIn(lane, "one"), "r", "tea", 1))
	}
	if _, err := n.Submit(t.Context(), place(n.userIn(2, "greedy"), "r", "tea", 17)); !errors.Is(err, domain.ErrOutOfStock) {
		t.Fatalf("17 of 16 units: %v, want out of stock", err)
	}
	var out *domain.OutOfStockError
	if _, err := n.Submit(t.Context(), place(n.userIn(2, "greedy"), "r", "tea", 17)); !errors.As(err, &out) || out.Free != 16 {
		t.Fatalf("17 of 16 units: %+v, want 16 free", out)
	}
	n.must(t, place(n.userIn(1, "big"), "r", "tea", 16))
}

func TestUnitsOfACancelledOrderAreSoldInAnotherLane(t *testing.T) {
	n := startNode(t, 4)
	n.stock(t, "tea", 1)
	for lane := range uint32(4) {
		order := n.must(t, place(n.userIn(lane, "buyer"), fmt.Sprint("r", lane), "tea", 1)).Order
		for other := range uint32(4) {
			if _, err := n.Submit(t.Context(), place(n.userIn(other, "late"), fmt.Sprint("r", lane), "tea", 1)); !errors.Is(err, domain.ErrOutOfStock) {
				t.Fatalf("lane %d: the only unit is sold: %v", other, err)
			}
		}
		n.must(t, cancelOrder(order, fmt.Sprint("c", lane)))
		other := (lane + 1) % 4
		request := place(n.userIn(other, "next"), fmt.Sprint("r", lane), "tea", 1)
		var again *Reply
		eventually(t, "the unit reaches another lane", func() (sold bool) {
			var err error
			again, err = n.Submit(t.Context(), request)
			return err == nil
		})
		n.must(t, cancelOrder(again.Order, fmt.Sprint("d", lane)))
	}
}

// nowhere is a transport that loses everything.
type nowhere struct{}

func (nowhere) Send(Message) {}

func TestAnOrderWhoseUnitsDoNotComeInTimeIsToldToComeAgain(t *testing.T) {
	n := startNode(t, 4)
	n.close(t)
	n.transport, n.stockWait = nowhere{}, 30*time.Millisecond
	n.start(t)
	n.stock(t, "tea", 10)
	home := homeLane(n.options.Topology, "tea")
	request := place(n.userIn((home+1)%4, "ann"), "r", "tea", 1)
	var moving *domain.StockMovingError
	if _, err := n.Submit(t.Context(), request); !errors.As(err, &moving) || moving.SKU != "tea" || moving.Want != 1 {
		t.Fatalf("no message arrives: %v, want a StockMovingError", err)
	}
	n.must(t, place(n.userIn(home, "bob"), "r", "tea", 1)) // The home lane needs nobody.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Submit(ctx, request); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller has left: %v", err)
	}
	n.close(t)
	n.transport, n.stockWait = nil, 0
	n.start(t)
	n.must(t, request)
}

func TestWhatAnOrderKeepsWhileItWaitsIsFreeOnceItHasLeft(t *testing.T) {
	n := startNode(t, 4)
	n.close(t)
	n.transport, n.stockWait = nowhere{}, 30*time.Millisecond
	n.start(t)
	n.stock(t, "tea", 10)
	kept := "cup-0" // A product before tea, and of another lane.
	for i := 1; homeLane(n.options.Topology, kept) == homeLane(n.options.Topology, "tea"); i++ {
		kept = fmt.Sprint("cup-", i)
	}
	n.stock(t, kept, 3)
	home := homeLane(n.options.Topology, kept)
	user := n.userIn(home, "ann")
	n.must(t, cancelOrder(n.must(t, place(user, "r1", kept, 3)).Order, "r2")) // Now they are idle in the lane.
	request := place(user, "r3", "tea", 1)
	command := request.Command.(domain.PlaceOrder)
	command.Lines = append(command.Lines, domain.LineRequest{SKU: kept, Units: 2})
	request.Command = command
	var moving *domain.StockMovingError
	_, err := n.Submit(t.Context(), request)
	if want := []domain.Release{{SKU: kept, Units: 2}}; !errors.As(err, &moving) || !slices.Equal(moving.Pledges, want) {
		t.Fatalf("got %v with pledges %v, want it to wait for tea and to keep %v", err, moving.Pledges, want)
	}
	if got := n.seats[home].agent.board.pledgedUnits(kept); got != 0 {
		t.Errorf("%d units are still pledged", got)
	}
}

func TestGrantsThatWereOnTheirWayAtAStopArriveAfterTheNextStart(t *testing.T) {
	n := startNode(t, 4)
	n.close(t)
	n.transport = nowhere{}
	n.start(t)
	n.stock(t, "tea", 8)
	n.must(t, catalogRequest("tea", "preheat", domain.PreheatStock{SKU: "tea"}))
	n.close(t)
	n.transport = nil
	n.start(t)
	for lane := range uint32(4) {
		n.must(t, place(n.userIn(lane, "ann"), "r", "tea", 2))
	}
}

func TestAnotherUsersOrderIsAMissingOne(t *testing.T) {
	n := startNode(t, 1)
	n.stock(t, "tea", 1)
	request := cancelOrder(n.must(t, place("ann", "r1", "tea", 1)).Order, "r2")
	request.Owner = "eve"
	if _, err := n.Submit(t.Context(), request); !errors.Is(err, domain.ErrOrderNotFound) {
		t.Errorf("eve cancels ann's order: %v, want not found (I7)", err)
	}
}

func BenchmarkPlace(b *testing.B) {
	n := startNode(b, 1)
	n.stock(b, "tea", domain.ReceiveUnitsMax)
	b.SetParallelism(128)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		user := fmt.Sprintf("user-%p", pb)
		for i := 0; pb.Next(); i++ {
			if _, err := n.Submit(context.Background(), place(user, fmt.Sprint("r", i), "tea", 1)); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkReplay makes a lane's state from its log: read, decode, apply, write.
func BenchmarkReplay(b *testing.B) {
	const orders, skus, submitters = 100_000, 1000, 200
	n := startNode(b, 1)
	for sku := range skus {
		n.stock(b, fmt.Sprintf("sku-%03d", sku), orders)
	}
	var all sync.WaitGroup
	for submitter := range submitters {
		all.Go(func() {
			for i := range orders / submitters {
				user, sku := fmt.Sprintf("user-%d-%d", submitter, i), fmt.Sprintf("sku-%03d", (submitter+i)%skus)
				if _, err := n.Submit(context.Background(), place(user, "request", sku, 1)); err != nil {
					b.Error(err)
				}
			}
		})
	}
	all.Wait()
	head, err := n.logs[0].Head(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	topology := eventstore.Topology{Lanes: 1}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		store, err := projections.OpenStore("replay", projections.StoreOptions{FS: vfs.NewMem()})
		if err != nil {
			b.Fatal(err)
		}
		machine, err := OpenMachine(MachineOptions{Lane: 0, Topology: topology, Store: store, Catalog: NewCatalog(), Entropy: rand.Reader})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for number := uint64(1); number <= head; number++ {
			record, err := n.logs[0].Read(b.Context(), number)
			if err != nil {
				b.Fatal(err)
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err != nil {
				b.Fatal(err)
			}
			if err := machine.Apply(commit, eventstore.Position{Number: record.Number, Hash: record.Hash}); err != nil {
				b.Fatal(err)
			}
		}
		if err := machine.Flush(); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := store.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/orders, "ns/order")
}
