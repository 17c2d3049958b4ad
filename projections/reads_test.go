package projections

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections/readpath"
)

func TestAnOrderThatIsReadAllTheTimeIsNeverOlderThanTheView(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)

	const rounds, readers = 200, 4
	type cancelled struct {
		id     domain.OrderID
		commit uint64
	}
	done := make(chan struct{})
	newest := make(chan cancelled, rounds) // orders to look at hard, from before they are cancelled on
	var reading sync.WaitGroup
	for range readers {
		reading.Go(func() {
			for c := range newest {
				for last := uint64(0); last < c.commit; {
					before := n.runners[0].Position().Number
					view, _, err := n.views.Order(t.Context(), c.id, Min{})
					if err != nil {
						t.Errorf("seed %d: order %s: %v", s.seed, c.id, err)
						return
					}
					if before >= c.commit && view.Revision.Commit < c.commit {
						t.Errorf("seed %d: the view is at commit %d, order %s as of %d, want %d (I6)", s.seed, before, c.id, view.Revision.Commit, c.commit)
						return
					}
					if view.Revision.Commit < last {
						t.Errorf("seed %d: order %s went back from commit %d to %d", s.seed, c.id, last, view.Revision.Commit)
						return
					}
					last = view.Revision.Commit
				}
			}
		})
	}
	go func() {
		defer close(done)
		reading.Wait()
	}()
	for range rounds {
		placed := s.place(s.users[0], 0)
		n.runners[0].Offer(s.commit(placed))
		n.reach(s)
		select {
		case newest <- cancelled{placed.OrderID, s.last.Number + 1}:
		case <-done: // They have failed.
		}
		n.runners[0].Offer(s.commit(domain.OrderCancelled{OrderID: placed.OrderID, UserID: s.users[0]}))
	}
	close(newest)
	<-done
	n.check(s)
	n.check(s) // Once more, all of it hot.
}

func TestAHotOrderWeighsAboutWhatItTakes(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	large := s.place(s.users[0], 0)
	for len(large.Lines) < 100 {
		large.Lines = append(large.Lines, large.Lines[0])
	}
	s.commit(large)
	small := s.place(s.users[0], 0)
	s.commit(small)
	if big, little := hotWeight(&s.orders[large.OrderID][0]), hotWeight(&s.orders[small.OrderID][0]); little < hotOrderBytes || big < little+99*hotLineBytes {
		t.Fatalf("an order of 100 lines weighs %d, one of 1 line %d: want what they take, about", big, little)
	}
}

// What is asked over and over follows the log, whatever is in memory.
func TestEveryHotAnswerFollowsTheLog(t *testing.T) {
	const lanes = 2
	seed := seedOf(t)
	var shops []*shop
	for lane := range uint32(lanes) {
		s := newShop(t, seed, lane, lanes)
		s.step()
		s.step()
		s.commit(domain.CampaignPut{
			Pool: domain.CampaignPool(s.skus[0], fmt.Sprint("solo-", lane)), Price: domain.Money{Currency: "EUR", Minor: 1},
			OpensAt: s.now, ClosesAt: s.now.Add(time.Hour), Units: 9,
		})
		shops = append(shops, s)
	}
	n := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for round := range 40 {
		for lane, s := range shops {
			if round%10 == 0 {
				n.runners[lane].Offer(s.commit(domain.CampaignPut{
					Pool: domain.CampaignPool(s.skus[0], fmt.Sprint("solo-", lane)), Price: domain.Money{Currency: "EUR", Minor: int64(2 + round)},
					OpensAt: s.now, ClosesAt: s.now.Add(time.Hour), Units: 9,
				}))
			}
			n.runners[lane].Offer(s.step())
			n.reach(s)
			n.check(s)
			n.checkHot(s)
			if round%2 == 0 {
				n.checkHot(s) // All of it hot.
			}
		}
	}
	for name, stats := range n.views.ReadStats() {
		if stats.Loads == 0 || stats.MemoryHits == 0 {
			t.Errorf("seed %d: %s: %+v, want loads and hits", seed, name, stats)
		}
	}
}

func TestABatchThatChangesMoreKeysThanMayBeNotedForgetsAll(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	n := openNode(t, vfs.NewMem(), s.log)
	defer n.store.Close()
	r := n.runners[0]
	if err := r.fold(t.Context(), s.last); err != nil {
		t.Fatal(err)
	}
	n.checkHot(s)
	products := func() {
		t.Helper()
		for sku := range s.products {
			if _, _, err := n.views.Product(t.Context(), sku, Min{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	products()
	r.changed.orders = make([]domain.OrderID, changedKeysMax+1)
	for i := range 2 * changedKeysMax {
		key := fmt.Sprint("key ", i)
		r.changed.users, r.changed.products = noteKey(r.changed.users, key), noteKey(r.changed.products, key)
		r.changed.pools, r.changed.stocks = noteKey(r.changed.pools, key), noteKey(r.changed.stocks, key)
	}
	if noted := len(r.changed.stocks); noted != changedKeysMax+1 {
		t.Fatalf("%d keys are noted, want %d (I8)", noted, changedKeysMax+1)
	}
	before := n.views.ReadStats()
	r.tellReads()
	products()
	n.checkHot(s)
	after := n.views.ReadStats()
	for _, name := range []string{"products", "stock", "order-pages"} {
		if after[name].Loads == before[name].Loads {
			t.Errorf("seed %d: %s: nothing was loaded again: what the batch changed is still believed (I6)", s.seed, name)
		}
	}
}

// checkHot compares what the read path keeps, asked for as most ask for it, with the shop's model.
func (n *node) checkHot(s *shop) {
	n.tb.Helper()
	ctx := n.tb.Context()
	for _, user := range s.users {
		page, _, err := n.views.Orders(ctx, OrdersQuery{UserID: user}, Min{})
		if err != nil {
			n.tb.Fatalf("seed %d: orders of %s: %v", s.seed, user, err)
		}
		if at, _, err := n.views.seal.openWatch(user, page.Watch); err != nil || at.commit < n.runners[s.lane].Position().Number {
			n.tb.Fatalf("seed %d, commit %d: a watch of %s goes on after commit %d (%v): it would look for what nobody missed", s.seed, s.last.Number, user, at.commit, err)
		}
		want := newestFirst(s.byUser[user])
		if len(want) > OrdersPageDefault {
			want = want[:OrdersPageDefault]
		}
		if len(page.Orders) != len(want) || (page.Next == "") != (len(s.byUser[user]) <= OrdersPageDefault) {
			n.tb.Fatalf("seed %d, commit %d: %s has %d orders on the first page (next %q), want %d", s.seed, s.last.Number, user, len(page.Orders), page.Next, len(want))
		}
		for i, id := range want {
			if newest := s.orders[id][len(s.orders[id])-1]; !page.Orders[i].Order.Equal(newest.Order) || page.Orders[i].Revision != newest.Revision {
				n.tb.Fatalf("seed %d, commit %d: order %d of %s: got %+v, want %+v (I6)", s.seed, s.last.Number, i, user, page.Orders[i], newest)
			}
		}
	}
	for pool, want := range s.campaigns {
		for _, sku := range []string{domain.HomeKey(pool), ""} {
			got, _, err := n.views.Campaign(ctx, domain.CampaignOf(pool), sku, Min{})
			if errors.Is(err, ErrSeveral) && sku == "" {
				continue
			}
			if err != nil || got.Revision != want.Revision || fmt.Sprint(got.Campaign) != fmt.Sprint(want.Campaign) || got.Stock.Reserved != s.accounts[pool].Reserved {
				n.tb.Fatalf("seed %d, commit %d: campaign %s: got %+v, %v, want %+v with %+v (I6)", s.seed, s.last.Number, pool, got, err, want, s.accounts[pool])
			}
		}
	}
	for sku := range s.products {
		got, _, err := n.views.Stock(ctx, sku, Min{})
		if want := s.accounts[sku]; err != nil || got.Reserved != want.Reserved || got.Available != want.Allotted || got.Received != want.Received {
			n.tb.Fatalf("seed %d, commit %d: stock of %s: got %+v, %v, want %+v (I6)", s.seed, s.last.Number, sku, got, err, want)
		}
	}
}

func TestWhatDoesNotExistIsRefusedWithoutARead(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	fs := vfs.NewMem()
	n := startNode(t, fs, s.log)
	n.reach(s)
	const attacks = 1000
	attack := func() {
		t.Helper()
		before := n.views.ReadStats()
		for i := range attacks {
			key := fmt.Sprintf("NO-SUCH-%d", i)
			_, _, product := n.views.Product(t.Context(), key, Min{})
			_, _, stock := n.views.Stock(t.Context(), key, Min{})
			_, _, campaign := n.views.Campaign(t.Context(), key, key, Min{})
			_, _, id := n.views.Campaign(t.Context(), key, "", Min{})
			if !errors.Is(product, ErrNotFound) || !errors.Is(stock, ErrNotFound) || !errors.Is(campaign, ErrNotFound) || !errors.Is(id, ErrNotFound) {
				t.Fatalf("seed %d: %s: got %v, %v, %v, %v, want none of them found", s.seed, key, product, stock, campaign, id)
			}
		}
		after := n.views.ReadStats()
		for _, name := range []string{"products", "stock", "campaigns", "campaign-ids"} {
			loads, refusals := after[name].Loads-before[name].Loads, after[name].FilterRefusals-before[name].FilterRefusals
			if loads+refusals != attacks || loads > attacks/20 {
				t.Errorf("seed %d: %s: %d loads and %d refusals of the filter, want nearly all %d refused", s.seed, name, loads, refusals, attacks)
			}
		}
	}
	attack()
	// Of one the filters are wrong, so that it is known to be missing.
	n.runners[0].reads.skus.Add("LIKE-ANOTHER")
	if _, _, err := n.views.Stock(t.Context(), "LIKE-ANOTHER", Min{}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("seed %d: got %v of a SKU that does not exist", s.seed, err)
	}
	// What comes into being is let through at once, also by the filters of the next start.
	put := domain.CampaignPut{
		Pool: domain.CampaignPool("NO-SUCH-7", "NO-SUCH-8"), Price: domain.Money{Currency: "EUR", Minor: 1}, OpensAt: s.now, ClosesAt: s.now.Add(time.Hour), Units: 9,
	}
	n.runners[0].Offer(s.commit(
		domain.ProductPut{SKU: "NO-SUCH-7", Title: "New", Price: domain.Money{Currency: "EUR", Minor: 2}}, put,
		domain.ProductPut{SKU: "LIKE-ANOTHER", Title: "New", Price: domain.Money{Currency: "EUR", Minor: 2}},
		domain.StockReceived{SKU: "ONLY-STOCK", Units: 3, ReceivedTotal: 3},
	))
	n.reach(s)
	exist := func(n *node) {
		t.Helper()
		_, _, product := n.views.Product(t.Context(), "NO-SUCH-7", Min{})
		_, _, stock := n.views.Stock(t.Context(), "NO-SUCH-7", Min{})
		_, _, campaign := n.views.Campaign(t.Context(), "NO-SUCH-8", "NO-SUCH-7", Min{})
		_, _, id := n.views.Campaign(t.Context(), "NO-SUCH-8", "", Min{})
		only, _, alone := n.views.Stock(t.Context(), "ONLY-STOCK", Min{})
		_, _, like := n.views.Stock(t.Context(), "LIKE-ANOTHER", Min{})
		if err := errors.Join(product, stock, campaign, id, alone, like); err != nil || only.Received != 3 {
			t.Errorf("seed %d: got %v and %+v, want all of it found (I6)", s.seed, err, only)
		}
	}
	exist(n)
	if errs := n.stop(); len(errs) > 0 {
		t.Fatal(errs)
	}
	again := openNode(t, fs, s.log)
	defer again.store.Close()
	exist(again)
}

// sharedOrders is a Level2 in memory.
type sharedOrders struct {
	mu      sync.Mutex
	records map[string]sharedRecord
	gets    int
}

type sharedRecord struct {
	record   []byte
	position uint64
}

func (s *sharedOrders) Get(_ context.Context, key string, atLeast uint64) ([]byte, uint64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	e, found := s.records[key]
	return e.record, e.position, found && e.position >= atLeast, nil
}

func (s *sharedOrders) Set(_ context.Context, key string, record []byte, position uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.records[key].position < position {
		s.records[key] = sharedRecord{record, position}
	}
	return nil
}

func (s *sharedOrders) at(key string) sharedRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[key]
}

var _ readpath.Level2 = (*sharedOrders)(nil)

func TestOrdersOfASharedLevelAreUsedOnlyWhereTheyHold(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	first, second := s.place(s.users[0], 0), s.place(s.users[1], 1)
	s.commit(first, second)
	shared := &sharedOrders{records: make(map[string]sharedRecord)}
	open := func() *node {
		store, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewRunner(RunnerOptions{Store: store, Lane: 0, Lanes: 1, Log: s.log, Level2: shared})
		if err != nil {
			t.Fatal(err)
		}
		n := &node{tb: t, store: store, runners: []*Runner{r}}
		if n.views, err = NewViews(ViewsOptions{Store: store, Topology: r.topology, Runners: n.runners, PageKey: testPageKey}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		t.Cleanup(n.views.Close)
		if err := r.fold(t.Context(), s.last); err != nil {
			t.Fatal(err)
		}
		return n
	}
	behind := open()
	placedAt := s.last.Number
	s.commit(domain.OrderCancelled{OrderID: first.OrderID, UserID: first.UserID})
	ahead := open()

	// What the node that is ahead reads off its view is offered to the others, under its position.
	at := Min{Lane: 0, Commit: s.last.Number}
	want := s.orders[first.OrderID][1]
	if got, _, err := ahead.views.Order(t.Context(), first.OrderID, at); err != nil || !got.Order.Equal(want.Order) {
		t.Fatalf("seed %d: got %+v, %v, want %+v", s.seed, got, err, want)
	}
	ahead.views.Close() // What was under way is there.
	if got := shared.at(first.OrderID.String()); got.position != s.last.Number {
		t.Fatalf("seed %d: the shared level has it as of %d, want %d", s.seed, got.position, s.last.Number)
	}
	got, fresh, err := behind.views.Order(t.Context(), first.OrderID, at)
	if err != nil || !got.Order.Equal(want.Order) || got.Revision != want.Revision || fresh.Commit < s.last.Number {
		t.Fatalf("seed %d: the node that is behind got %+v, %v, %v, want %+v off the shared level", s.seed, got, fresh, err, want)
	}
	if got, _, err := behind.views.OrderOf(t.Context(), first.OrderID, "somebody else", at); err == nil {
		t.Fatalf("seed %d: another user got %+v (I7)", s.seed, got)
	}
	// Nobody offered the other one: the node says that it is behind.
	got, fresh, err = behind.views.Order(t.Context(), second.OrderID, at)
	if err != nil || got.Revision.Commit != placedAt || fresh.State != StateCatchingUp || fresh.Commit != placedAt {
		t.Fatalf("seed %d: got %+v, %v, %v, want the order as of commit %d, catching up", s.seed, got, fresh, err, placedAt)
	}
	// An old value, as of an old dump, is not believed by a node that shows more.
	behind.views.Close()
	key := second.OrderID.String()
	old := shared.at(key)
	s.commit(domain.OrderCancelled{OrderID: second.OrderID, UserID: second.UserID})
	again := open()
	shared.records[key] = sharedRecord{old.record, placedAt} // Nothing is under way.
	want = s.orders[second.OrderID][1]
	if got, _, err := again.views.Order(t.Context(), second.OrderID, Min{}); err != nil || !got.Order.Equal(want.Order) {
		t.Fatalf("seed %d: got %+v, %v, want %+v: the shared level was older than the view (I6)", s.seed, got, err, want)
	}
}
