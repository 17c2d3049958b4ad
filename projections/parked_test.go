package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// poison makes projections fail over events of a test's choice, as a bug of their apply would.
type poison struct {
	mu sync.Mutex
	// bad says what happens over an event: nothing when it is empty, a panic when it begins with "panic".
	bad func(p *Projection, c *change) string
	// generation of the views that fail; 0 is any.
	generation byte
}

func (p *poison) set(bad func(p *Projection, c *change) string) { p.setIn(0, bad) }

func (p *poison) setIn(generation byte, bad func(p *Projection, c *change) string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bad, p.generation = bad, generation
}

type poisonedApplier struct {
	applier
	poison     *poison
	projection *Projection
	generation byte
}

func (a poisonedApplier) apply(c *change) error {
	a.poison.mu.Lock()
	bad := ""
	if a.poison.bad != nil && (a.poison.generation == 0 || a.poison.generation == a.generation) {
		bad = a.poison.bad(a.projection, c)
	}
	a.poison.mu.Unlock()
	switch {
	case strings.HasPrefix(bad, "panic"):
		_ = a.applier.apply(c) // Half of its work is done when it panics.
		panic(bad)
	case bad != "":
		return errors.New(bad)
	}
	return a.applier.apply(c)
}

// poisonViews poisons views until the test ends. REQUIRES: what runs them is started afterwards.
func poisonViews(t *testing.T, of ...*Projection) *poison {
	p := &poison{}
	for _, projection := range of {
		open := projection.open
		t.Cleanup(func() { projection.open = open })
		projection.open = func(v *view) (applier, error) {
			a, err := open(v)
			return poisonedApplier{a, p, projection, v.generation}, err
		}
	}
	return p
}

// parkedOf returns what a view has parked, by key.
func (n *node) parkedOf(p *Projection) map[string]ParkedKey {
	all := make(map[string]ParkedKey)
	for _, r := range n.runners {
		for _, key := range r.Parked() {
			if key.Projection == p.Name {
				all[key.Key] = key
			}
		}
	}
	return all
}

// replayAll replays everything and wants it healed.
func (n *node) replayAll() {
	n.tb.Helper()
	for _, r := range n.runners {
		replayed, err := r.Replay(n.tb.Context(), ReplayQuery{})
		if err != nil {
			n.tb.Fatal(err)
		}
		for _, one := range replayed {
			if !one.OK() {
				n.tb.Fatalf("replay %s of %s: %s: %s", one.Key, one.Projection, one.Failed, one.Problem)
			}
		}
		if left := r.Parked(); len(left) > 0 {
			n.tb.Fatalf("lane %d has %+v parked after a replay", r.lane, left)
		}
	}
}

func TestAnEventThatCannotBeReadParksItsKeyAndTheOthersGoOn(t *testing.T) {
	counted := 0
	for name, test := range map[string]struct {
		change  func(*eventstore.Event)
		unknown bool
		// views that park it, and the key.
		views []*Projection
		key   func(order, user string) string
	}{
		"type":             {func(e *eventstore.Event) { e.Type = "OrderTeleported" }, true, Projections[:], nil},
		"version":          {func(e *eventstore.Event) { e.Version = 2 }, true, Projections[:], nil},
		"order id":         {func(e *eventstore.Event) { e.AggregateID = "nonsense" }, false, []*Projection{&ordersProjection, &ordersByUserProjection, &stockProjection, &orderMarksProjection, &salesProjection, &boardProjection}, func(string, string) string { return "nonsense" }},
		"no user":          {func(e *eventstore.Event) { e.UserID = "" }, false, []*Projection{&ordersByUserProjection}, nil},
		"damaged payload":  {func(e *eventstore.Event) { e.Payload = []byte{0x0a, 0x7f} }, false, []*Projection{&stockProjection, &orderMarksProjection, &salesProjection, &boardProjection}, nil},
		"line without SKU": {func(e *eventstore.Event) { e.Payload = []byte{0x0a, 0x02, 0x10, 0x01} }, false, []*Projection{&stockProjection, &orderMarksProjection, &salesProjection, &boardProjection}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, seedOf(t), 0, 1)
			s.step()
			s.step()
			placed := s.place(s.users[0], 0)
			event := s.envelope(placed)
			test.change(&event)
			s.append(&eventstore.Commit{Number: 3, Epoch: 1, Time: s.now, PrevHash: s.last.Hash, Events: []eventstore.Event{event}})
			n := startNode(t, vfs.NewMem(), s.log)
			s.steps(20)
			n.reach(s)
			for _, p := range Projections {
				key := placed.OrderID.String()
				if p.byUser {
					key = s.users[0]
				}
				if test.key != nil {
					key = test.key(key, s.users[0])
				}
				parked := n.parkedOf(p)
				if wanted := slices.Contains(test.views, p); (len(parked) > 0) != wanted {
					t.Fatalf("seed %d: view %s has %v parked, want any: %v", s.seed, p.Name, parked, wanted)
				} else if wanted && (parked[key].First != EventAt{Commit: 3} || parked[key].Events < 1) {
					t.Fatalf("seed %d: view %s has %+v parked, want %s from commit 3 on", s.seed, p.Name, parked, key)
				}
			}
			for i, status := range n.runners[0].Status() {
				keys, orders := n.parkedOf(Projections[i]), make(map[string]bool)
				for _, key := range keys {
					for _, order := range key.Orders.List {
						orders[order] = true
					}
				}
				if status.ParkedKeys != len(keys) || status.ParkedOrders != len(orders) {
					t.Errorf("seed %d: the status of %s counts %d keys and %d orders, want %d and %d", s.seed, status.Projection, status.ParkedKeys, status.ParkedOrders, len(keys), len(orders))
				}
				counted += status.ParkedOrders
			}
			if test.unknown || test.key != nil { // The others are in the orders' records, which hold what the log says.
				n.check(s)
			}
			n.verify(s)
		})
	}
	if counted == 0 {
		t.Error("no order was counted")
	}
}

func TestAnOrderOfAnotherLaneIsParked(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 2)
	other := newShop(t, s.seed, 1, 2)
	s.step()
	placed := other.place(other.users[0], 0)
	s.commit(placed)
	n := startNode(t, vfs.NewMem(), s.log, other.log)
	n.reach(s)
	parked, found := n.parkedOf(&ordersProjection)[placed.OrderID.String()]
	if !found || !strings.Contains(parked.Reason, "belongs to lane 1") {
		t.Fatalf("got %+v, want that the order belongs to lane 1", parked)
	}
}

func TestAParkedKeyIsReplayedInOrderAndReadsSaySo(t *testing.T) {
	for _, kind := range []string{"an error", "panic: a bug"} {
		t.Run(kind, func(t *testing.T) {
			seed := seedOf(t)
			p := poisonViews(t, &ordersProjection, &stockProjection, &pointsProjection)
			s := newShop(t, seed, 0, 1)
			placed := s.place(s.users[0], 0)
			key := placed.OrderID.String()
			p.set(func(of *Projection, c *change) string {
				if of != &pointsProjection && c.event.AggregateID == key && c.kind == kindOrderPlaced {
					return kind
				}
				return ""
			})
			s.commit(placed)
			fs := vfs.NewMem()
			n := startNode(t, fs, s.log)
			s.steps(50)
			s.commit(domain.PointsAwarded{OrderID: placed.OrderID, UserID: s.users[0], PaymentID: "p", Points: 3, PerMajor: 1})
			n.reach(s)
			n.verify(s)
			r := n.runners[0]
			parked := n.parkedOf(&ordersProjection)[key]
			if parked.First != (EventAt{Commit: 1}) || parked.Events < 2 || !parked.Users.has(s.users[0]) || !parked.Orders.has(key) || !strings.Contains(parked.Reason, kind) {
				t.Fatalf("seed %d: got %+v", seed, parked)
			}
			if count := r.ParkingCount(); count.KeysParked != 2 {
				t.Fatalf("seed %d: got %+v, want two keys parked: of orders and stock", seed, count)
			}

			ctx, at := t.Context(), Min{Commit: s.last.Number, Wait: patience}
			if _, _, err := n.views.Order(ctx, placed.OrderID, at); !errors.Is(err, ErrParked) {
				t.Fatalf("seed %d: got %v, want ErrParked", seed, err)
			}
			if _, _, err := n.views.OrderOf(ctx, placed.OrderID, "a stranger", at); errors.Is(err, ErrParked) || !errors.Is(err, ErrNotFound) {
				t.Fatalf("seed %d: a stranger was told %v (I7)", seed, err)
			}
			page, fresh, err := n.views.Orders(ctx, OrdersQuery{UserID: s.users[0]}, at)
			if err != nil || fresh.State != StateParked {
				t.Fatalf("seed %d: got %v, %v", seed, fresh, err)
			}
			if _, fresh, err := n.views.Orders(ctx, OrdersQuery{UserID: "another"}, at); err != nil || fresh.State == StateParked {
				t.Fatalf("seed %d: got %v, %v", seed, fresh, err)
			}
			for i, sku := range s.skus[:2] {
				if _, fresh, err := n.views.Stock(ctx, sku, at); (fresh.State == StateParked) != (i == 0) {
					t.Fatalf("seed %d: stock of %s: got %v, %v", seed, sku, fresh, err)
				}
			}

			// Still broken: nothing changes.
			before := dump(t, n.store)
			broken, err := r.Replay(ctx, ReplayQuery{Projection: "orders", Key: key})
			if err != nil || len(broken) != 1 || broken[0].OK() || broken[0].Failed != parked.First || !strings.Contains(broken[0].Problem, kind) {
				t.Fatalf("seed %d: got %+v, %v", seed, broken, err)
			}
			p.set(nil)
			dry, err := r.Replay(ctx, ReplayQuery{Projection: "orders", Key: key, DryRun: true})
			if err != nil || len(dry) != 1 || !dry[0].OK() || dry[0].Events != parked.Events {
				t.Fatalf("seed %d: got %+v, %v", seed, dry, err)
			}
			if dump(t, n.store) != before {
				t.Fatalf("seed %d: a replay that failed or was a dry run changed the views", seed)
			}
			// A watch of all orders that has passed the parked one begins again, now and when it is resumed.
			entered, ended := make(chan struct{}), make(chan error, 1)
			go func() {
				ended <- n.views.WatchUser(ctx, UserWatch{UserID: s.users[0]}, Min{}, func() error { close(entered); return nil }, func(UserChange, Freshness) error { return nil })
			}()
			<-entered
			n.replayAll()
			if err := <-ended; !errors.Is(err, ErrWatchTooOld) {
				t.Fatalf("seed %d: the watch ended with %v", seed, err)
			}
			if err := n.views.WatchUser(ctx, UserWatch{UserID: s.users[0], Token: page.Watch}, Min{}, noted, nil); !errors.Is(err, ErrWatchTooOld) {
				t.Fatalf("seed %d: the watch was resumed: %v", seed, err)
			}
			page, fresh, err = n.views.Orders(ctx, OrdersQuery{UserID: s.users[0]}, at)
			if err != nil || fresh.State != StateFresh {
				t.Fatalf("seed %d: got %v, %v", seed, fresh, err)
			}
			over, cancel := context.WithCancel(ctx)
			if err := n.views.WatchUser(over, UserWatch{UserID: s.users[0], Token: page.Watch}, Min{}, func() error { cancel(); return nil }, nil); !errors.Is(err, context.Canceled) {
				t.Fatalf("seed %d: a watch from the list was refused: %v", seed, err)
			}
			n.check(s)
			n.verify(s)
			whole := startNode(t, vfs.NewMem(), s.log)
			whole.reach(s)
			if n.contents() != whole.contents() {
				t.Fatalf("seed %d: the healed views are not those that never failed (I6)", seed)
			}
		})
	}
}

func TestAWatchedOrderThatIsParkedIsSaidToBeAndMissesNothing(t *testing.T) {
	p := poisonViews(t, &ordersProjection)
	s := newShop(t, seedOf(t), 0, 1)
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	p.set(func(_ *Projection, c *change) string {
		if c.number == 2 {
			return "bad"
		}
		return ""
	})
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	type seen struct {
		revision uint64
		state    FreshnessState
	}
	got := make(chan seen)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- n.views.WatchOrder(ctx, OrderWatch{OrderID: placed.OrderID}, Min{}, func(view OrderView, fresh Freshness) error {
			got <- seen{view.Revision.Commit, fresh.State}
			return nil
		})
	}()
	if first := <-got; first != (seen{1, StateFresh}) {
		t.Fatalf("got %+v", first)
	}
	s.commit(domain.NoteAdded{OrderID: placed.OrderID, UserID: s.users[0]})
	if parked := <-got; parked != (seen{1, StateParked}) {
		t.Fatalf("got %+v, want the order again, as parked", parked)
	}
	s.commit(domain.OrderCancelled{OrderID: placed.OrderID, UserID: s.users[0]})
	n.reach(s)
	p.set(nil)
	n.replayAll()
	for _, want := range []uint64{2, 3} {
		// One that was on its way during the replay may still say parked: it holds more than it says.
		if healed := <-got; healed.revision != want {
			t.Fatalf("got %+v, want revision %d", healed, want)
		}
	}
	cancel()
	<-ended
}

func TestAViewThatParksTooMuchStops(t *testing.T) {
	seed := seedOf(t)
	p := poisonViews(t, &ordersProjection)
	p.set(func(_ *Projection, c *change) string {
		if c.kind == kindOrderPlaced {
			return "bad"
		}
		return ""
	})
	s := newShop(t, seed, 0, 1)
	for range parkedKeysMax + 1 {
		s.commit(s.place(s.users[0], 0))
	}
	n := openNode(t, vfs.NewMem(), s.log)
	err := n.runners[0].Run(t.Context())
	var full *PoisonError
	if !errors.As(err, &full) || full.Keys != parkedKeysMax || !strings.Contains(err.Error(), "weir parked list") {
		t.Fatalf("seed %d: got %v, want a PoisonError at %d keys", seed, err, parkedKeysMax)
	}
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAFaultOfTheStoreParksNothing(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.commit(s.place(s.users[0], 0))
	n := openNode(t, vfs.NewMem(), s.log)
	sku := []byte(s.skus[0])
	if err := n.store.db.Set(n.runners[0].prefix(&stockProjection).key(sku), []byte{0x80}, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	err := n.runners[0].Run(t.Context())
	var unreadable *UnreadableError
	if !errors.As(err, &unreadable) || unreadable.View != "stock" || len(n.runners[0].Parked()) > 0 {
		t.Fatalf("got %v and %+v, want that the stock view cannot be read", err, n.runners[0].Parked())
	}
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAnyPoisonAndAnyHealEndWithTheFold parks and heals at random, with crashes in between, and compares with views that
// never failed.
func TestAnyPoisonAndAnyHealEndWithTheFold(t *testing.T) {
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	base := seedOf(t)
	for round := range uint64(rounds) {
		t.Run("", func(t *testing.T) { poisonAndHeal(t, base+round) })
	}
}

func poisonAndHeal(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 2))
	p := poisonViews(t, Projections[:]...)
	s := newShop(t, seed, 0, 1)
	fs := vfs.NewCrashableMem()
	bad := func(share int) func(*Projection, *change) string {
		salt := random.Uint64()
		return func(projection *Projection, c *change) string {
			switch rand.New(rand.NewPCG(salt^uint64(projection.space), c.number<<8|uint64(c.index))).IntN(share) {
			case 0:
				return "bad"
			case 1:
				if c.number%8 == 0 {
					return "panic: bad"
				}
			}
			return ""
		}
	}
	parked := 0
	for life := range 4 {
		p.set(bad(10 + random.IntN(60)))
		n := startNode(t, fs, s.log)
		for range 10 + random.IntN(60) {
			n.runners[0].Offer(s.step())
			switch random.IntN(15) {
			case 0:
				n.reach(s)
			case 1:
				if err := n.store.Flush(); err != nil {
					t.Fatal(err)
				}
			case 2: // Some heal, some are still bad.
				p.set(bad(10 + random.IntN(60)))
				if _, err := n.runners[0].Replay(t.Context(), ReplayQuery{}); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		}
		if random.IntN(2) == 0 {
			n.reach(s)
			p.set(nil)
			n.verify(s)
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
		parked += len(n.runners[0].Parked())
		if errs := n.stop(); errs != nil {
			t.Fatalf("seed %d, life %d: %v", seed, life, errs)
		}
		fs = crashed
		after := openNode(t, fs, s.log)
		p.set(nil)
		after.verify(s)
		if err := after.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if parked == 0 {
		t.Fatalf("seed %d: nothing was parked", seed)
	}
	n := startNode(t, fs, s.log)
	n.reach(s)
	n.replayAll()
	n.check(s)
	n.verify(s)
	whole := startNode(t, vfs.NewMem(), s.log)
	whole.reach(s)
	if n.contents() != whole.contents() {
		t.Fatalf("seed %d: the healed views are not those that never failed (I6)", seed)
	}
}

func TestVerifyTellsAListOfParkedEventsThatIsNotTrue(t *testing.T) {
	p := poisonViews(t, &ordersProjection)
	s := newShop(t, seedOf(t), 0, 1)
	s.commit(s.place(s.users[0], 0))
	s.commit(s.place(s.users[0], 0))
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	p.set(func(_ *Projection, c *change) string {
		if c.number == 2 {
			return "panic: bad"
		}
		return ""
	})
	verify := func() string {
		report, err := Verify(t.Context(), VerifyOptions{Store: n.store, Lane: 0, Lanes: 1, Log: s.log, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(report.Differences)
	}
	if got := verify(); !strings.Contains(got, "event 1 of commit 2 cannot be taken in") {
		t.Fatalf("got %s", got)
	}
	p.set(nil)
	order := s.byUser[s.users[0]][0].String()
	for _, value := range [][2][]byte{
		{parkedRecordKey(n.runners[0].prefix(&ordersProjection), order), []byte("{}")},
		{parkedEventKey(n.runners[0].prefix(&ordersProjection), order, EventAt{Commit: 9}), nil},
	} {
		if err := n.store.db.Set(value[0], value[1], pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	if got := verify(); !strings.Contains(got, "1 events are listed as parked and not in the log") {
		t.Fatalf("got %s", got)
	}
}

// TestPoisonInALogOf100kEventsParksItsKeysAlone follows a log on a server with a few orders that the views fail or panic
// over, and takes them in when that is mended.
func TestPoisonInALogOf100kEventsParksItsKeysAlone(t *testing.T) {
	const eventsMin, commitEvents, poisoned = 100_000, 400, 5
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	var bad []string
	for events := 0; events < eventsMin; events += commitEvents {
		s.commitEach(commitEvents, func() domain.Event { return s.place(s.users[s.random.IntN(len(s.users))], s.random.IntN(len(s.skus))) })
	}
	for _, user := range s.users[:poisoned] {
		bad = append(bad, s.byUser[user][s.random.IntN(len(s.byUser[user]))].String())
	}
	for _, key := range bad { // More of them comes later.
		id, err := domain.ParseOrderID(key)
		if err != nil {
			t.Fatal(err)
		}
		s.commit(domain.OrderCancelled{OrderID: id, UserID: s.orders[id][0].Order.UserID})
	}
	p := poisonViews(t, &ordersProjection, &ordersByUserProjection)
	p.set(func(of *Projection, c *change) string {
		switch i := slices.Index(bad, c.event.AggregateID); {
		case i == 0 && of == &ordersProjection && c.kind == kindOrderPlaced:
			return "panic: a bug"
		case i >= 0 && of == &ordersProjection && c.kind == kindOrderPlaced:
			return "bad"
		}
		return ""
	})
	log := streamOf(t, s)
	n := startNode(t, vfs.NewMem(), log)
	n.reach(s)
	parked := n.parkedOf(&ordersProjection)
	if len(parked) != poisoned || len(n.runners[0].Parked()) != poisoned {
		t.Fatalf("seed %d: got %+v parked, want %v", seed, n.runners[0].Parked(), bad)
	}
	for _, key := range bad {
		if got := parked[key]; got.Events != 2 {
			t.Fatalf("seed %d: got %+v, want two events of %s", seed, got, key)
		}
	}
	verify := func() (report VerifyReport) {
		report, err := Verify(t.Context(), VerifyOptions{Store: n.store, Lane: 0, Lanes: 1, Log: log})
		if err != nil || report.DifferencesTotal > 0 {
			t.Fatalf("seed %d: %v, %v (I6)", seed, err, report.Differences)
		}
		return report
	}
	if report := verify(); len(report.Parked) != poisoned {
		t.Fatalf("seed %d: got %+v", seed, report.Parked)
	}
	p.set(nil)
	n.replayAll()
	if report := verify(); len(report.Parked) != 0 {
		t.Fatalf("seed %d: got %+v", seed, report.Parked)
	}
	for _, key := range bad {
		id, _ := domain.ParseOrderID(key)
		view, fresh, err := n.views.Order(t.Context(), id, Min{})
		if err != nil || fresh.State == StateParked || view.Order.Status != domain.StatusCancelled {
			t.Fatalf("seed %d: order %s: got %+v, %v, %v", seed, key, view, fresh, err)
		}
	}
}
