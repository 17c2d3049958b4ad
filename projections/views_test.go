package projections

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

func TestAReadWaitsForTheRevisionItAsksFor(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	placed := s.place(s.users[0], 0)
	next := Min{Commit: s.last.Number + 1, Wait: patience}

	type answer struct {
		view  OrderView
		fresh Freshness
		err   error
	}
	answers := make(chan answer)
	const readers = 10
	for range readers {
		go func() {
			view, fresh, err := n.views.Order(t.Context(), placed.OrderID, next)
			answers <- answer{view, fresh, err}
		}()
	}
	n.runners[0].Offer(s.commit(placed))
	for range readers {
		a := <-answers
		if a.err != nil || a.view.Order.ID != placed.OrderID || a.fresh.State != StateFresh || a.fresh.Commit != next.Commit || !a.fresh.AsOf.Equal(s.now) {
			t.Fatalf("got %+v, want the order, fresh at commit %d", a, next.Commit)
		}
	}
}

func TestAReadWhoseRevisionDoesNotComeSaysSo(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	ctx := t.Context()
	future := Min{Commit: s.last.Number + 1, Wait: time.Millisecond}
	missing := s.place(s.users[0], 0).OrderID

	view, fresh, err := n.views.Order(ctx, placed.OrderID, future)
	if err != nil || view.Order.ID != placed.OrderID || fresh.State != StateCatchingUp || fresh.Commit != s.last.Number {
		t.Fatalf("an order that is there: got %+v, %v, %v, want it as of commit %d", view, fresh, err, s.last.Number)
	}
	if _, _, err := n.views.Order(ctx, missing, future); !errors.Is(err, ErrBehind) {
		t.Fatalf("an order that is missing: got %v, want ErrBehind", err)
	}
	if _, _, err := n.views.Order(ctx, missing, Min{}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("an order that is missing, at any revision: got %v, want ErrNotFound", err)
	}
	if _, _, err := n.views.Product(ctx, "made-up", future); !errors.Is(err, ErrBehind) {
		t.Fatalf("a product that is missing: got %v, want ErrBehind", err)
	}
	if _, _, err := n.views.Stock(ctx, "made-up", Min{}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("stock of a product that is missing: got %v, want ErrNotFound", err)
	}
	if _, fresh, err := n.views.Orders(ctx, OrdersQuery{UserID: s.users[0]}, future); err != nil || fresh.State != StateCatchingUp {
		t.Fatalf("a page: got %v, %v, want it as of commit %d", fresh, err, s.last.Number)
	}
	if _, _, err := n.views.Order(ctx, placed.OrderID, Min{Lane: 1, Commit: 1}); !errors.Is(err, ErrNoSuchLane) {
		t.Fatalf("a revision of lane 1 of 1: got %v, want ErrNoSuchLane", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	future.Wait = patience
	if _, _, err := n.views.Order(ended, placed.OrderID, future); !errors.Is(err, context.Canceled) {
		t.Fatalf("a caller who left: got %v, want context.Canceled", err)
	}
	if waiters := len(n.runners[0].arrivals.byCommit); waiters != 0 {
		t.Fatalf("%d waits are left behind", waiters)
	}
}

func TestAMissingKeyIsNotSaidToBeMissingBeforeTheViewHasCaughtUp(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	ctx := t.Context()
	reading, mayRead := make(chan struct{}), make(chan struct{})
	once := sync.OnceFunc(func() { close(reading) })
	n := openNode(t, vfs.NewMem(), &brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		once()
		<-mayRead
		return cursor.Next(ctx)
	}})
	if _, fresh, err := n.views.Order(ctx, placed.OrderID, Min{}); !errors.Is(err, ErrBehind) || fresh.State != StateCatchingUp {
		t.Fatalf("before Run: got %v, %v, want ErrBehind", fresh, err)
	}
	running, cancel := context.WithCancel(ctx)
	var runs sync.WaitGroup
	runs.Go(func() {
		if err := n.runners[0].Run(running); err != nil {
			t.Error(err)
		}
	})
	<-reading // The runner knows the head and has read nothing yet.
	if _, fresh, err := n.views.Order(ctx, placed.OrderID, Min{}); !errors.Is(err, ErrBehind) || fresh.LagCommits != s.last.Number {
		t.Errorf("before the first batch: got %v, %v, want ErrBehind, %d behind", fresh, err, s.last.Number)
	}
	close(mayRead)
	if _, _, err := n.views.Order(ctx, placed.OrderID, Min{Wait: patience}); err != nil {
		t.Fatalf("with a wait: got %v, want the order", err)
	}
	cancel()
	runs.Wait()
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAnotherUsersOrderIsAnsweredAsAMissingOne(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	ctx := t.Context()
	missing := s.place(s.users[0], 0).OrderID
	if _, _, err := n.views.OrderOf(ctx, placed.OrderID, s.users[0], Min{}); err != nil {
		t.Fatalf("one's own: %v", err)
	}
	for _, min := range []Min{{}, {Commit: 1 << 60}} {
		theirs, theirsFresh, theirsErr := n.views.OrderOf(ctx, placed.OrderID, s.users[1], min)
		none, noneFresh, noneErr := n.views.OrderOf(ctx, missing, s.users[1], min)
		if theirsErr == nil || !errors.Is(theirsErr, noneErr) || theirsFresh != noneFresh || theirs.Order.ID != none.Order.ID {
			t.Fatalf("min %v: another's: %v, %v; a missing one: %v, %v", min, theirsFresh, theirsErr, noneFresh, noneErr)
		}
		send := func(OrderView, Freshness) error { t.Error("another's order was sent"); return nil }
		if err := n.views.WatchOrder(ctx, OrderWatch{OrderID: placed.OrderID, UserID: s.users[1]}, min, send); !errors.Is(err, noneErr) {
			t.Fatalf("min %v: watch another's: got %v, want %v", min, err, noneErr)
		}
	}
}

func TestAPageTokenServesOnlyItsOwnQuery(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	for range 30 {
		s.commit(s.place(s.users[0], 0))
	}
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	ctx := t.Context()
	query := OrdersQuery{UserID: s.users[0], PageSize: 10}
	page, _, err := n.views.Orders(ctx, query, Min{})
	if err != nil || len(page.Orders) != 10 || page.Next == "" {
		t.Fatalf("first page: got %d orders, next %q, %v", len(page.Orders), page.Next, err)
	}
	products, _, err := n.views.Products(ctx, ProductsQuery{PageSize: 1}, Min{})
	if err != nil || products.Next == "" {
		t.Fatalf("products: got next %q, %v", products.Next, err)
	}
	good := page.Next
	data, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]OrdersQuery{
		"another user's":   {UserID: s.users[1], PageToken: good},
		"another status's": {UserID: s.users[0], PageToken: good, Status: domain.StatusExpired},
		"of products":      {UserID: s.users[0], PageToken: products.Next},
		"cut off":          {UserID: s.users[0], PageToken: good[:len(good)-4]},
		"too short":        {UserID: s.users[0], PageToken: "AAAA"},
		"not base64":       {UserID: s.users[0], PageToken: "///" + good},
		"longer":           {UserID: s.users[0], PageToken: good + "AAAA"},
	} {
		if _, _, err := n.views.Orders(ctx, bad, Min{}); !errors.Is(err, ErrBadPageToken) {
			t.Errorf("a token %s: got %v, want ErrBadPageToken", name, err)
		}
	}
	for i := range data {
		changed := append([]byte(nil), data...)
		changed[i] ^= 0x10
		_, _, err := n.views.Orders(ctx, OrdersQuery{UserID: s.users[0], PageToken: base64.RawURLEncoding.EncodeToString(changed)}, Min{})
		if !errors.Is(err, ErrBadPageToken) {
			t.Fatalf("byte %d changed: got %v, want ErrBadPageToken", i, err)
		}
	}
	if _, _, err := n.views.Products(ctx, ProductsQuery{PageToken: good}, Min{}); !errors.Is(err, ErrBadPageToken) {
		t.Errorf("a token of orders for products: got %v, want ErrBadPageToken", err)
	}
	// New orders do not shift the pages behind a token.
	want := page.Orders[9].Order.ID
	s.now = s.now.Add(time.Second)
	n.runners[0].Offer(s.commit(s.place(s.users[0], 0)))
	n.reach(s)
	query.PageToken = good
	page, _, err = n.views.Orders(ctx, query, Min{})
	if err != nil || len(page.Orders) != 10 || string(page.Orders[0].Order.ID[:]) >= string(want[:]) {
		t.Fatalf("second page: got %d orders, %v", len(page.Orders), err)
	}
	query.PageToken = page.Next
	page, _, err = n.views.Orders(ctx, query, Min{})
	if err != nil || len(page.Orders) != 10 || page.Next != "" {
		t.Fatalf("last page: got %d orders, next %q, %v", len(page.Orders), page.Next, err)
	}
}

func TestAPageLooksAtABoundedNumberOfOrders(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	oldest := s.place(s.users[0], 0)
	s.commit(oldest, domain.OrderExpired{OrderID: oldest.OrderID, UserID: s.users[0]})
	for range 2*ordersScanMax/100 + 1 {
		s.now = s.now.Add(time.Millisecond)
		s.commitEach(100, func() domain.Event { return s.place(s.users[0], 0) })
	}
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	query := OrdersQuery{UserID: s.users[0], Status: domain.StatusExpired}
	for pages := 1; ; pages++ {
		page, _, err := n.views.Orders(t.Context(), query, Min{})
		if err != nil {
			t.Fatal(err)
		}
		if page.Next != "" {
			if len(page.Orders) > 0 || pages > 3 {
				t.Fatalf("page %d holds %d orders", pages, len(page.Orders))
			}
			query.PageToken = page.Next
			continue
		}
		if pages != 3 || len(page.Orders) != 1 || page.Orders[0].Order.ID != oldest.OrderID {
			t.Fatalf("got %d orders on page %d, want the oldest on page 3", len(page.Orders), pages)
		}
		return
	}
}

func TestProductsOfAllLanesAreListedBySKU(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 4), newShop(t, seed, 1, 4), newShop(t, seed, 2, 4), newShop(t, seed, 3, 4)}
	var logs []eventstore.Log
	for _, s := range shops {
		s.step()
		s.step()
		logs = append(logs, s.log)
	}
	n := startNode(t, vfs.NewMem(), logs...)
	for _, s := range shops {
		n.reach(s)
	}
	for _, size := range []int{1, 3, 16, 0} {
		var got []string
		query := ProductsQuery{PageSize: size}
		for {
			page, fresh, err := n.views.Products(t.Context(), query, Min{})
			if err != nil || fresh.State != StateFresh {
				t.Fatalf("seed %d: %v, %v", seed, fresh, err)
			}
			for _, product := range page.Products {
				got = append(got, product.Product.SKU)
			}
			if query.PageToken = page.Next; page.Next == "" {
				break
			}
		}
		if len(got) != 16 {
			t.Fatalf("seed %d, pages of %d: got %d products, want 16", seed, size, len(got))
		}
		for i := range got[1:] {
			if got[i] >= got[i+1] {
				t.Fatalf("seed %d, pages of %d: %s comes before %s", seed, size, got[i], got[i+1])
			}
		}
	}
}

func TestStockIsSummedOverLanesWhateverLaneIsAhead(t *testing.T) {
	home, other := newShop(t, 1, 0, 2), newShop(t, 1, 1, 2)
	sku := home.skus[0]
	home.commit(domain.StockReceived{SKU: sku, Units: 100, ReceivedTotal: 100})
	n := startNode(t, vfs.NewMem(), home.log, other.log)
	want := func(step string, want StockView) {
		t.Helper()
		n.reach(home)
		n.reach(other)
		want.SKU = sku
		got, _, err := n.views.Stock(t.Context(), sku, Min{})
		if err != nil || got != want {
			t.Fatalf("%s: got %+v, %v, want %+v", step, got, err, want)
		}
	}
	want("received", StockView{Received: 100, Central: 100})
	granted := domain.StockGranted{SKU: sku, ToLane: 1, GrantNumber: 1, Units: 30}
	home.commit(granted)
	want("granted", StockView{Received: 100, Central: 70, InTransit: 30})
	other.commit(domain.StockAllotted{SKU: sku, HomeLane: 0, GrantNumber: 1, Units: 30})
	want("allotted", StockView{Received: 100, Central: 70, Available: 30})
	other.commit(domain.StockAllotted{SKU: sku, HomeLane: 0, GrantNumber: 2, Units: 50})
	want("allotted before the grant is seen", StockView{Received: 100, Central: 20, Available: 80})
	other.commit(domain.StockAllotted{SKU: sku, HomeLane: 0, GrantNumber: 3, Units: 40})
	want("allotted before the receipt is seen", StockView{Received: 120, Available: 120})
	home.commit(
		domain.StockReceived{SKU: sku, Units: 50, ReceivedTotal: 150},
		domain.StockGranted{SKU: sku, ToLane: 1, GrantNumber: 2, Units: 50},
		domain.StockGranted{SKU: sku, ToLane: 1, GrantNumber: 3, Units: 40},
	)
	want("all seen", StockView{Received: 150, Central: 30, Available: 120})
	other.commit(domain.StockReturned{SKU: sku, HomeLane: 0, ReturnNumber: 1, Units: 20})
	want("returned", StockView{Received: 150, Central: 30, InTransit: 20, Available: 100})
	home.commit(domain.StockReclaimed{SKU: sku, FromLane: 1, ReturnNumber: 1, Units: 20})
	want("reclaimed", StockView{Received: 150, Central: 50, Available: 100})
}

// TestAWatcherSeesEachChangeOnce appends from one goroutine while watchers come at any moment, some of them slow.
func TestAWatcherSeesEachChangeOnce(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.step()
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)

	const orders, watchersEach = 40, 4
	var placed []domain.OrderPlaced
	for range orders {
		placed = append(placed, s.place(s.users[0], 0))
	}
	first := s.last.Number + 1
	type seen struct {
		watched  int
		statuses []string
	}
	results := make(chan seen, orders*watchersEach)
	ended := errors.New("the order has ended")
	var watching sync.WaitGroup
	for i := range orders {
		for w := range watchersEach {
			random := rand.New(rand.NewPCG(seed, uint64(i*watchersEach+w)))
			watching.Go(func() {
				// Begin at once, or once a few more commits are there.
				// From the fourth order on, each is placed after one that is cancelled.
				placedAt := first + uint64(i) + uint64(max(0, i-3))
				from := Min{Commit: placedAt + random.Uint64N(uint64(w+1)), Wait: patience}
				result := seen{watched: i}
				err := n.views.WatchOrder(t.Context(), OrderWatch{OrderID: placed[i].OrderID}, from, func(view OrderView, fresh Freshness) error {
					result.statuses = append(result.statuses, fmt.Sprintf("%s@%d", view.Order.Status, view.Revision.Commit))
					if view.Order.Status != domain.StatusPendingPayment {
						return ended
					}
					if fresh.Commit < from.Commit {
						return fmt.Errorf("it is as of commit %d, want at least %d", fresh.Commit, from.Commit)
					}
					return nil
				})
				if !errors.Is(err, ended) {
					t.Errorf("seed %d: watcher %d of order %d: %v", seed, w, i, err)
				}
				results <- result
			})
		}
	}
	for i := range orders {
		n.runners[0].Offer(s.commit(placed[i]))
		if i >= 3 {
			n.runners[0].Offer(s.commit(domain.OrderCancelled{OrderID: placed[i-3].OrderID, UserID: s.users[0]}))
		}
	}
	for i := orders - 3; i < orders; i++ {
		n.runners[0].Offer(s.commit(domain.OrderCancelled{OrderID: placed[i].OrderID, UserID: s.users[0]}))
	}
	watching.Wait()
	close(results)
	for result := range results {
		var all []string
		for _, view := range s.orders[placed[result.watched].OrderID] {
			all = append(all, fmt.Sprintf("%s@%d", view.Order.Status, view.Revision.Commit))
		}
		// A watcher that came late begins with a later state; from there it sees all.
		got := result.statuses
		if len(got) == 0 || fmt.Sprint(got) != fmt.Sprint(all[len(all)-len(got):]) {
			t.Fatalf("seed %d: order %d: got %v, want the end of %v", seed, result.watched, got, all)
		}
	}
	if count, topics := n.runners[0].watchers.count.Load(), len(n.runners[0].watchers.byKey); count != 0 || topics != 0 {
		t.Fatalf("seed %d: %d watchers of %d orders are left behind", seed, count, topics)
	}
}

func TestASlowWatcherMissesNothing(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	var got []uint64
	enough := errors.New("enough")
	err := n.views.WatchOrder(t.Context(), OrderWatch{OrderID: placed.OrderID}, Min{}, func(view OrderView, _ Freshness) error {
		if len(got) == 0 { // Everything happens while the first message is on its way.
			for range 20 {
				n.runners[0].Offer(s.commit(
					domain.OrderCancelled{OrderID: placed.OrderID, UserID: s.users[0]},
					domain.OrderExpired{OrderID: placed.OrderID, UserID: s.users[0]},
				))
			}
			n.reach(s)
		}
		if got = append(got, view.Revision.Commit); len(got) == 21 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("got %v after %d messages", err, len(got))
	}
	want := []uint64{3}
	for commit := uint64(4); commit <= 23; commit++ {
		want = append(want, commit) // Once, though each has two events.
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got  %v\nwant %v", got, want)
	}
}

func TestAWatchEndsWithItsCallerAndWithItsRunner(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	ctx, cancel := context.WithCancel(t.Context())
	err := n.views.WatchOrder(ctx, OrderWatch{OrderID: placed.OrderID}, Min{}, func(OrderView, Freshness) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v, want context.Canceled", err)
	}
	sent := make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- n.views.WatchOrder(t.Context(), OrderWatch{OrderID: placed.OrderID}, Min{}, func(OrderView, Freshness) error { close(sent); return nil })
	}()
	<-sent
	stopping := make(chan []error)
	go func() { stopping <- n.stop() }()
	if err := <-ended; !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v, want ErrStopped", err)
	}
	if errs := <-stopping; errs != nil {
		t.Fatal(errs)
	}
}

func TestAWaitForWhatHasJustArrivedIsOver(t *testing.T) {
	var a arrivals
	a.init(3)
	a.reached(5)
	for commit, over := range map[uint64]bool{4: true, 5: true, 6: false} {
		arrived, leave := a.enter(commit)
		select {
		case <-arrived:
			if !over {
				t.Fatalf("commit %d arrived after 5", commit)
			}
		default:
			if over {
				t.Fatalf("the wait for commit %d is not over at 5", commit)
			}
		}
		leave()
	}
	if a.waiters != 0 || len(a.byCommit) != 0 {
		t.Fatalf("%d waiters for %d commits are left behind", a.waiters, len(a.byCommit))
	}
}

func TestTheNumberOfWaitersAndWatchersIsBounded(t *testing.T) {
	var a arrivals
	a.init(0)
	var leave []func()
	for i := range waitersMax {
		_, l := a.enter(uint64(i % 7))
		leave = append(leave, l)
	}
	if arrived, _ := a.enter(1); arrived != nil {
		t.Fatalf("%d may wait", waitersMax+1)
	}
	for _, l := range leave {
		l()
	}
	if a.waiters != 0 || len(a.byCommit) != 0 {
		t.Fatalf("%d waiters for %d commits are left behind", a.waiters, len(a.byCommit))
	}
	var w watchers[domain.OrderID]
	w.init()
	leave = nil
	for i := range watchersMax {
		_, l := w.enter(domain.OrderID{byte(i)})
		leave = append(leave, l)
	}
	if entered, _ := w.enter(domain.OrderID{}); entered != nil {
		t.Fatalf("%d may watch", watchersMax+1)
	}
	for _, l := range leave {
		l()
	}
	if w.count.Load() != 0 || len(w.byKey) != 0 {
		t.Fatalf("%d watchers of %d orders are left behind", w.count.Load(), len(w.byKey))
	}
}

func TestTheStockViewReadsPayloadsAsTheDomainDoes(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(300)
	s.commit(domain.StockReturned{SKU: s.skus[0], HomeLane: 0, ReturnNumber: 1, Units: 5})
	s.commit(domain.StockReclaimed{SKU: s.skus[0], FromLane: 0, ReturnNumber: 1, Units: 4})
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	for sku := range s.accounts {
		value, err := n.runners[0].prefix(&stockProjection).read(n.store.db, sku)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readAccount(value)
		a := s.accounts[sku]
		want := account{
			received: a.Received, central: a.Central, granted: a.GrantedTo(0).Units, reclaimed: a.ReclaimedFrom(0).Units,
			allotted: a.Allotted, reserved: a.Reserved, sold: a.Sold, taken: a.Taken.Units, returned: a.Returned.Units,
		}
		if err != nil || got != want {
			t.Fatalf("seed %d: %s: got %+v, %v, want %+v", s.seed, sku, got, err, want)
		}
	}
}
