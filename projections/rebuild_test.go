package projections

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// rebuildBytes is a size of batch that even a short log fills many times.
const rebuildBytes = 4 << 10

// rebuilder returns a Rebuilder of the node's views over the logs. It does not run yet.
func (n *node) rebuilder(logs ...eventstore.Log) *Rebuilder {
	n.tb.Helper()
	b, err := NewRebuilder(RebuilderOptions{
		Store: n.store, Runners: n.runners, Topology: n.views.topology, Logger: slog.New(slog.DiscardHandler),
		Log: func(lane uint32) eventstore.Log { return logs[lane] },
	})
	if err != nil {
		n.tb.Fatal(err)
	}
	b.batchBytes, b.tableBytes = rebuildBytes, rebuildBytes
	return b
}

// run runs a Rebuilder until the returned function is called, or the test ends. REQUIRES: called after the node was started.
func (b *Rebuilder) run(tb testing.TB) (stop func()) {
	ctx, cancel := context.WithCancel(tb.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.Run(ctx); err != nil {
			tb.Error(err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	tb.Cleanup(stop)
	return stop
}

// settle waits until no rebuild goes on by itself, and returns how they stand.
func (b *Rebuilder) settle(tb testing.TB) (statuses []RebuildStatus) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	if err := b.Settled(ctx, time.Millisecond, func(s []RebuildStatus) { statuses = s }); err != nil {
		tb.Fatalf("%v: %+v", err, statuses)
	}
	return statuses
}

// verify wants the live views of all lanes to be the fold of the log (I6).
func (n *node) verify(shops ...*shop) {
	n.tb.Helper()
	for _, s := range shops {
		report, err := Verify(n.tb.Context(), VerifyOptions{Store: n.store, Lane: s.lane, Lanes: s.lanes, Log: s.log})
		if err != nil || report.DifferencesTotal > 0 {
			n.tb.Fatalf("seed %d, lane %d, commit %d: %v, %v (I6)", s.seed, s.lane, report.Position.Number, err, report.Differences)
		}
	}
}

// contents writes down the generation of every view that answers.
func (n *node) contents() string {
	n.tb.Helper()
	var text strings.Builder
	for _, r := range n.runners {
		for _, p := range Projections {
			keys := r.prefix(p)
			entries, err := n.store.db.NewIter(&pebble.IterOptions{LowerBound: keys[:], UpperBound: keys.end()})
			if err != nil {
				n.tb.Fatal(err)
			}
			for valid := entries.First(); valid; valid = entries.Next() {
				text.WriteString(p.Name + " " + hex.EncodeToString(entries.Key()[3:]) + " " + hex.EncodeToString(entries.Value()) + "\n")
			}
			if err := entries.Close(); err != nil {
				n.tb.Fatal(err)
			}
		}
	}
	return text.String()
}

// TestViewsAreRebuiltWhileTheyAreReadAndWritten rebuilds every view, swaps, goes back and drops, while orders are read and
// the log grows: no read fails, none is older than the one before, and each is the fold of the log up to its revision.
func TestViewsAreRebuiltWhileTheyAreReadAndWritten(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	n := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	b := n.rebuilder(shops[0].log, shops[1].log)
	b.run(t)
	var mu sync.Mutex // guards the shops
	for _, s := range shops {
		for range 200 {
			n.runners[s.lane].Offer(s.step())
		}
		n.reach(s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var going sync.WaitGroup
	for _, s := range shops {
		var ids []domain.OrderID
		for id := range s.orders {
			ids = append(ids, id)
		}
		going.Go(func() { // The log grows.
			for range 2000 {
				if ctx.Err() != nil {
					return
				}
				mu.Lock()
				commit, at := s.step() //nolint:contextcheck // The shop ends with the test, not with its writers.
				mu.Unlock()
				n.runners[s.lane].Offer(commit, at)
				if reached, err := n.runners[s.lane].await(ctx, at.Number, patience); ctx.Err() == nil && !reached {
					t.Errorf("seed %d: commit %d of lane %d was not reached: %v", seed, at.Number, s.lane, err)
					return
				}
			}
		})
		going.Go(func() {
			last := map[domain.OrderID]uint64{}
			for i := 0; ctx.Err() == nil; i++ {
				id := ids[i%len(ids)]
				view, fresh, err := n.views.Order(ctx, id, Min{})
				if ctx.Err() != nil {
					return
				}
				if err != nil || fresh.State == StateRebuilding || view.Revision.Commit < last[id] {
					t.Errorf("seed %d: order %s: got revision %d after %d, %v, %v", seed, id, view.Revision.Commit, last[id], fresh, err)
					return
				}
				last[id] = view.Revision.Commit
				mu.Lock()
				history := s.orders[id]
				mu.Unlock()
				if !shown(history, view) {
					t.Errorf("seed %d: order %s at commit %d: got %+v, which it never was", seed, id, view.Revision.Commit, view.Order)
					return
				}
			}
		})
	}
	for _, p := range Projections {
		if err := b.Start(p.Name, RebuildOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", seed, left)
	}
	for _, g := range b.Generations() {
		if g.Live != 2 || g.Kept != 1 || g.Building != 0 {
			t.Fatalf("seed %d: got %+v, want that generation 2 answers and 1 is kept", seed, g)
		}
	}
	for _, p := range Projections {
		found, err := b.Compare(t.Context(), p.Name)
		if err != nil || !found.Equal() || len(found.Lanes) != 2 {
			t.Fatalf("seed %d: compare %s: %+v, %v", seed, p.Name, found, err)
		}
		if err := b.Rollback(t.Context(), p.Name); err != nil {
			t.Fatal(err)
		}
		if err := b.Drop(t.Context(), p.Name); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	going.Wait()
	for _, s := range shops {
		n.reach(s)
		n.check(s)
	}
	n.verify(shops...)
	for _, g := range b.Generations() {
		if g.Live != 1 || g.Kept != 0 {
			t.Fatalf("seed %d: got %+v, want that generation 1 answers alone", seed, g)
		}
	}
	if _, err := b.Sweep(); err != nil {
		t.Fatal(err)
	}
	n.verify(shops...)
	again := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for _, s := range shops {
		again.reach(s)
	}
	if got, want := dump(t, n.store), dump(t, again.store); strings.Count(got, "\n") != strings.Count(want, "\n")+len(Projections) {
		t.Fatalf("seed %d: more is left than the pointers:\ngot\n%s\nwant\n%s", seed, got, want)
	}
}

// shown reports whether an order's history has the view.
func shown(history []OrderView, view OrderView) bool {
	for i := range history {
		if history[i].Revision == view.Revision && history[i].Order.Equal(view.Order) {
			return true
		}
	}
	return false
}

// A crashingLog calls crash before a read.
type crashingLog struct {
	eventstore.Log
	mu    sync.Mutex
	after int
	crash func()
}

func (l *crashingLog) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	cursor, err := l.Log.Follow(ctx, number)
	return brokenCursor{cursor, &brokenLog{next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.after--; l.after == 0 {
			l.crash()
		}
		return cursor.Next(ctx)
	}}}, err
}

// TestARebuildGoesOnAfterACrash kills the node at a random point of a rebuild: what was synced survives and any part of
// what was not. The rebuild goes on from there, and what answers in the end is what a new node makes of the log.
func TestARebuildGoesOnAfterACrash(t *testing.T) {
	rounds := uint64(12)
	if testing.Short() {
		rounds = 4
	}
	seed := seedOf(t)
	resumed := 0
	for round := range rounds {
		resumed += crashARebuild(t, seed+round, round%2 == 0)
	}
	if resumed == 0 {
		t.Fatalf("seed %d: none of %d rebuilds went on from the middle", seed, rounds)
	}
}

// crashARebuild returns 1 if the rebuild went on from the middle of the log. It does if what was made is flushed before.
func crashARebuild(t *testing.T, seed uint64, flush bool) (resumed int) {
	random := rand.New(rand.NewPCG(seed, 3))
	s := newShop(t, seed, 0, 1)
	s.steps(250)
	fs := vfs.NewCrashableMem()
	n := startNode(t, fs, s.log)
	n.reach(s)
	if err := n.store.Flush(); err != nil {
		t.Fatal(err)
	}
	crashed := make(chan *vfs.MemFS, 1)
	log := &crashingLog{Log: s.log, after: 2 + random.IntN(245)}
	log.crash = func() {
		if flush {
			if err := n.store.Flush(); err != nil {
				t.Error(err)
			}
		}
		crashed <- fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
	}
	b := n.rebuilder(log)
	b.batchBytes, b.tableBytes = 1, 1 // A batch for each commit: so whatever the view is, some of it is there.
	stop := b.run(t)
	name := Projections[random.IntN(len(Projections))].Name
	if err := b.Start(name, RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	left := <-crashed
	stop()
	n.stop()

	n = startNode(t, left, s.log)
	for range 20 {
		n.runners[0].Offer(s.step())
	}
	b = n.rebuilder(s.log)
	statuses := b.Status()
	if len(statuses) != 1 || statuses[0].Projection != name {
		t.Fatalf("seed %d: after the crash the rebuilds are %+v, want one of %s", seed, statuses, name)
	}
	if statuses[0].Lanes[0].Position > 0 {
		resumed = 1
	}
	stop = b.run(t)
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", seed, left)
	}
	stop()
	n.reach(s)
	n.check(s)
	n.verify(s)
	fresh := startNode(t, vfs.NewMem(), s.log)
	fresh.reach(s)
	if got, want := n.contents(), fresh.contents(); got != want {
		t.Fatalf("seed %d: after the rebuild of %s the views differ from new ones:\ngot\n%s\nwant\n%s", seed, name, got, want)
	}
	n.stop()
	fresh.stop()
	return resumed
}

func TestAGenerationThatDiffersIsHeldUntilItIsSwappedByHand(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(100)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	b := n.rebuilder(s.log)
	b.run(t)
	// The view that answers is damaged, which one cannot see.
	const sku = "never-ordered"
	n.runners[0].Offer(s.commit(domain.StockReceived{SKU: sku, Units: 1000, ReceivedTotal: 1000}))
	n.reach(s)
	damaged := account{received: 1007, central: 1007}
	key := n.runners[0].prefix(&stockProjection).key([]byte(sku))
	if err := n.store.db.Set(key, damaged.append(nil), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := b.Start("stock", RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	statuses := b.settle(t)
	if len(statuses) != 1 || statuses[0].State != RebuildHeld || statuses[0].Reason != "1 keys differ" {
		t.Fatalf("seed %d: got %+v, want a rebuild that is held for 1 key", seed, statuses)
	}
	found := statuses[0].Comparison.Lanes[0]
	if len(found.Partitions) != 1 || found.Partitions[0] != eventstore.PartitionOf(sku) || len(found.Differences) != 1 ||
		found.Differences[0].Key != "SKU "+sku || !strings.Contains(found.Differences[0].Problem, "generation 1 has received 1007, central 1007, generation 2 has received 1000, central 1000") {
		t.Fatalf("seed %d: got %+v, want that SKU %s differs in its partition", seed, found, sku)
	}
	received := func(want int64) {
		t.Helper()
		stock, fresh, err := n.views.Stock(t.Context(), sku, Min{Wait: patience})
		if err != nil || stock.Received != want || fresh.State == StateRebuilding {
			t.Fatalf("seed %d: got %+v, %v, %v, want %d units received", seed, stock, fresh, err, want)
		}
	}
	received(damaged.received)
	for range 20 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	if err := b.Swap(t.Context(), "stock"); err != nil {
		t.Fatal(err)
	}
	received(s.accounts[sku].Received)
	n.verify(s)
	if err := b.Rollback(t.Context(), "stock"); err != nil {
		t.Fatal(err)
	}
	received(damaged.received)
	if found, err := b.Compare(t.Context(), "stock"); err != nil || found.DifferencesTotal() != 1 {
		t.Fatalf("seed %d: got %+v, %v, want 1 difference", seed, found, err)
	}
	if err := b.Rollback(t.Context(), "stock"); err != nil {
		t.Fatal(err)
	}
	if err := b.Drop(t.Context(), "stock"); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	n.verify(s)
}

// setVersion makes the program one of another version of a projection until the test ends.
func setVersion(t *testing.T, p *Projection, version, readsSince uint32) {
	before := *p
	p.Version, p.ReadsSince = version, readsSince
	t.Cleanup(func() { p.Version, p.ReadsSince = before.Version, before.ReadsSince })
}

func TestAViewOfAnotherVersionIsMadeAgainWhileTheOthersGoOn(t *testing.T) {
	for name, readable := range map[string]bool{"its reads understand the old keys": true, "its reads do not": false} {
		t.Run(name, func(t *testing.T) {
			s, fs := takenIn(t, 100)
			old := s.last.Number
			since := uint32(0)
			if readable {
				since = 1
			}
			setVersion(t, &ordersByUserProjection, 2, since)
			s.steps(20)
			n := startNode(t, fs, s.log)
			b := n.rebuilder(s.log)
			n.reach(s)
			user := s.users[0]
			page, fresh, err := n.views.Orders(t.Context(), OrdersQuery{UserID: user}, Min{Commit: s.last.Number, Wait: patience})
			if err != nil || fresh.State != StateRebuilding {
				t.Fatalf("seed %d: got %v, %v, want a view that is being rebuilt", s.seed, fresh, err)
			}
			if answered := len(page.Orders) > 0 && fresh.Commit == old; answered != readable {
				t.Fatalf("seed %d: got %d orders as of commit %d, want some as of %d: %v", s.seed, len(page.Orders), fresh.Commit, old, readable)
			}
			for sku, want := range s.products { // The others go on.
				if got, fresh, err := n.views.Product(t.Context(), sku, Min{Commit: s.last.Number}); err != nil || got != want || fresh.State != StateFresh {
					t.Fatalf("seed %d: product %s: got %+v, %v, %v", s.seed, sku, got, fresh, err)
				}
			}
			if err := b.Drop(t.Context(), "orders-by-user"); err == nil {
				t.Fatalf("seed %d: the new version was dropped", s.seed)
			}
			b.run(t)
			if left := b.settle(t); len(left) > 0 {
				t.Fatalf("seed %d: rebuilds are left: %+v", s.seed, left)
			}
			n.check(s)
			n.verify(s)
			if err := b.Rollback(t.Context(), "orders-by-user"); err == nil {
				t.Fatalf("seed %d: went back to what another version wrote", s.seed)
			}
			if removed, err := b.Sweep(); err != nil || removed > 1 {
				t.Fatalf("seed %d: %d parts of views were removed, want the old one (%v)", s.seed, removed, err)
			}
			for range 20 {
				n.runners[0].Offer(s.step())
			}
			n.reach(s)
			n.check(s)
			n.verify(s)
		})
	}
}

func TestAViewThatIsBehindTheOthersIsMadeUpInItsPlace(t *testing.T) {
	s, fs := takenIn(t, 100)
	n := openNode(t, fs, s.log)
	batch := n.store.db.NewBatch() // As a view that this program has and the one before had not.
	if err := errors.Join(wipe(batch, &pointsProjection, firstGeneration, 0), batch.Commit(pebble.NoSync), n.store.Close()); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, fs, s.log)
	if _, fresh, err := n.views.Points(t.Context(), PointsQuery{UserID: s.users[0]}, Min{}); err != nil || fresh.State != StateRebuilding || fresh.Commit != 0 {
		t.Fatalf("seed %d: got %v, %v, want a view that is being rebuilt", s.seed, fresh, err)
	}
	b := n.rebuilder(s.log)
	if err := b.Pause("points"); err == nil {
		t.Fatalf("seed %d: a view that answers in part was paused", s.seed)
	}
	b.run(t)
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", s.seed, left)
	}
	n.reach(s)
	n.verify(s)
	if g := b.Generations(); g[len(g)-1].Live != 1 {
		t.Fatalf("seed %d: got %+v, want the same generation", s.seed, g)
	}
}

func TestWhatWasRememberedOfAViewIsForgottenWhenItIsWhole(t *testing.T) {
	s, fs := takenIn(t, 100)
	n := openNode(t, fs, s.log)
	batch := n.store.db.NewBatch()
	if err := errors.Join(
		wipe(batch, &productsProjection, firstGeneration, 0), wipe(batch, &campaignsProjection, firstGeneration, 0),
		wipe(batch, &ordersProjection, firstGeneration, 0), batch.Commit(pebble.NoSync), n.store.Close(),
	); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, fs, s.log)
	n.reach(s)
	id, sku := s.byUser[s.users[0]][0], s.skus[0]
	for range 3 { // So that memory and filters know of it.
		_, _, err := n.views.Order(t.Context(), id, Min{})
		_, _, skuErr := n.views.Product(t.Context(), sku, Min{})
		_, _, campaignErr := n.views.Campaign(t.Context(), "flash", sku, Min{})
		if !errors.Is(err, ErrBehind) || !errors.Is(skuErr, ErrBehind) || !errors.Is(campaignErr, ErrBehind) {
			t.Fatalf("seed %d: got %v, %v and %v, want that the views are behind", s.seed, err, skuErr, campaignErr)
		}
	}
	b := n.rebuilder(s.log)
	b.run(t)
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", s.seed, left)
	}
	n.check(s) // Nothing was written since.
	if len(s.campaigns) > 0 {
		n.checkCampaigns(s)
	}
}

func TestARebuildThatIsPausedStaysSoAndGoesOn(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(200)
	fs := vfs.NewMem()
	n := startNode(t, fs, s.log)
	n.reach(s)
	// It reads half of the log, and then waits until it is paused.
	reached := make(chan struct{})
	blocked := &brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		record, err := cursor.Next(ctx)
		if err == nil && record.Number == 100 {
			close(reached)
			<-ctx.Done()
			return record, ctx.Err()
		}
		return record, err
	}}
	b := n.rebuilder(blocked)
	stop := b.run(t)
	if err := b.Start("orders", RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	<-reached
	for range 2 { // Twice is once.
		if err := b.Pause("orders"); err != nil {
			t.Fatal(err)
		}
	}
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildPaused || statuses[0].Lanes[0].Position != 99 {
		t.Fatalf("seed %d: got %+v, want a rebuild that is paused at commit 99", seed, statuses)
	}
	stop()
	n.stop()

	n = startNode(t, fs, s.log)
	b = n.rebuilder(s.log)
	b.run(t)
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildPaused || statuses[0].Lanes[0].Position == 0 {
		t.Fatalf("seed %d: got %+v, want a rebuild that is still paused in the middle", seed, statuses)
	}
	if err := b.Resume("orders"); err != nil {
		t.Fatal(err)
	}
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", seed, left)
	}
	n.verify(s)
}

func TestARebuildThatFailsLeavesWhatAnswersAsItIs(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(100)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	failures := 1
	b := n.rebuilder(&brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		record, err := cursor.Next(ctx)
		if err == nil && record.Number == 50 && failures > 0 {
			failures--
			record.Data = []byte{0xff}
		}
		return record, err
	}})
	b.run(t)
	if err := b.Start("orders", RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildFailed || !strings.Contains(statuses[0].Reason, "commit 50 of lane 0") {
		t.Fatalf("seed %d: got %+v, want a rebuild that failed at commit 50", seed, statuses)
	}
	n.check(s)
	n.verify(s)
	if err := b.Resume("orders"); err != nil {
		t.Fatal(err)
	}
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", seed, left)
	}
	n.verify(s)
}

// TestAnyScheduleOfRebuildsLeavesTheFoldOfTheLog does what an operator and a crash may do in any order (I6).
func TestAnyScheduleOfRebuildsLeavesTheFoldOfTheLog(t *testing.T) {
	rounds := uint64(8)
	if testing.Short() {
		rounds = 3
	}
	seed := seedOf(t)
	for round := range rounds {
		scheduleRebuilds(t, seed+round)
	}
}

func scheduleRebuilds(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 4))
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	logs := []eventstore.Log{shops[0].log, shops[1].log}
	fs := vfs.NewCrashableMem()
	n := startNode(t, fs, logs...)
	b := n.rebuilder(logs...)
	stop := b.run(t)
	var done []string
	for range 60 {
		name := Projections[random.IntN(len(Projections))].Name
		var err error
		action := ""
		switch random.IntN(10) {
		case 0, 1:
			options := RebuildOptions{Swap: SwapAuto}
			if random.IntN(2) == 0 {
				options.Swap = SwapManual
			}
			if random.IntN(2) == 0 {
				options.Lanes = []uint32{random.Uint32N(2)}
			}
			action, err = "start", b.Start(name, options)
		case 2:
			action, err = "swap", b.Swap(t.Context(), name)
		case 3:
			action, err = "rollback", b.Rollback(t.Context(), name)
		case 4:
			action, err = "drop", b.Drop(t.Context(), name)
		case 5:
			action, err = "pause", b.Pause(name)
			if err == nil && random.IntN(2) == 0 {
				err = b.Resume(name)
			}
		case 6:
			action = "settle"
			b.settle(t)
		case 7:
			action = "crash"
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
			stop()
			n.stop()
			fs = crashed
			n = startNode(t, fs, logs...)
			b = n.rebuilder(logs...)
			stop = b.run(t)
		default:
			action = "write"
			for range 1 + random.IntN(60) {
				s := shops[random.IntN(2)]
				n.runners[s.lane].Offer(s.step())
			}
		}
		var refusal *RebuildRefusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("seed %d: %s %s: %v, after %v", seed, action, name, err, done)
		}
		if err == nil {
			done = append(done, action+" "+name)
		}
	}
	for _, s := range shops {
		n.reach(s)
	}
	for _, p := range Projections { // What was paused goes on.
		var refusal *RebuildRefusal
		if err := b.Resume(p.Name); err != nil && !errors.As(err, &refusal) {
			t.Fatal(err)
		}
	}
	for _, status := range b.settle(t) {
		if status.State != RebuildHeld || status.Comparison == nil && status.Swap != SwapManual || status.Comparison != nil && !status.Comparison.Equal() {
			t.Fatalf("seed %d: got %+v after %v", seed, status, done)
		}
	}
	n.verify(shops...)
	for _, s := range shops {
		n.check(s)
	}
	fresh := startNode(t, vfs.NewMem(), logs...)
	for _, s := range shops {
		fresh.reach(s)
	}
	if n.contents() != fresh.contents() {
		t.Fatalf("seed %d: the views differ from new ones after %v", seed, done)
	}
	stop()
	n.stop()
	fresh.stop()
}

func TestCommandsThatDoNotFitAreRefused(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(20)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	b := n.rebuilder(s.log)
	compare := func(name string) error { _, err := b.Compare(t.Context(), name); return err }
	wanted := func(what string, err error, text string) {
		t.Helper()
		var refusal *RebuildRefusal
		if !errors.As(err, &refusal) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: got %v, want a refusal that says %q", what, err, text)
		}
	}
	wanted("start an unknown view", b.Start("odrers", RebuildOptions{}), "there is no such view; there are orders, ")
	wanted("start in a lane that is not there", b.Start("orders", RebuildOptions{Lanes: []uint32{0, 1}}), "there is no lane 1")
	wanted("start with another swap", b.Start("orders", RebuildOptions{Swap: "later"}), "give auto or manual")
	wanted("pause nothing", b.Pause("orders"), "it is not being rebuilt")
	wanted("resume nothing", b.Resume("orders"), "it is not being rebuilt")
	wanted("swap nothing", b.Swap(t.Context(), "orders"), "there is no new generation")
	wanted("go back to nothing", b.Rollback(t.Context(), "orders"), "no generation of it is kept")
	wanted("drop nothing", b.Drop(t.Context(), "orders"), "there is nothing to drop")
	wanted("compare nothing", compare("orders"), "there is only one generation")
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
		t.Fatal(err)
	}
	wanted("start twice", b.Start("orders", RebuildOptions{}), "it is being rebuilt already")
	wanted("swap too early", b.Swap(t.Context(), "orders"), "not built yet")
	wanted("compare too early", compare("orders"), "not built yet")
	wanted("go back meanwhile", b.Rollback(t.Context(), "orders"), "it is being rebuilt")
	b.run(t)
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildHeld {
		t.Fatalf("got %+v, want a rebuild that is held", statuses)
	}
	wanted("pause what is built", b.Pause("orders"), "swap it or drop it")
	if err := compare("orders"); err != nil {
		t.Fatal(err)
	}
	if err := b.Drop(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	n.verify(s)
}

// endingContext calls ending when a context that is made of it ends, before that is seen.
type endingContext struct {
	context.Context //nolint:containedctx // It is one.
	ending          func()
}

func (c endingContext) AfterFunc(f func()) func() bool {
	inner := context.AfterFunc(c.Context, f)
	return func() bool {
		c.ending()
		return inner()
	}
}

// Value hides the context in it from those that would be ended by it directly.
func (endingContext) Value(any) any { return nil }

// TestWhatIsShownAsHeldCanBeSwapped looks at a rebuild while the work on it ends, when its comparison is over and is noted.
func TestWhatIsShownAsHeldCanBeSwapped(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(20)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	b := n.rebuilder(s.log)
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
		t.Fatal(err)
	}
	looked := make(chan struct{})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		err := b.Run(endingContext{ctx, sync.OnceFunc(func() { //nolint:contextcheck // It looks from outside.
			defer close(looked)
			statuses := b.Status()
			err := b.Swap(t.Context(), "orders")
			if len(statuses) != 1 || statuses[0].State == RebuildHeld && err != nil {
				t.Errorf("while the work ends: a rebuild that is told as %+v is swapped with %v", statuses, err)
			}
		})})
		if err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer stop()
	select {
	case <-looked:
	case <-time.After(patience):
		t.Fatalf("the work does not end: %+v", b.Status())
	}
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildHeld {
		t.Fatalf("got %+v, want a rebuild that is held", statuses)
	}
	if err := b.Swap(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
}

func TestGenerationsGoRoundAndNeverMeet(t *testing.T) {
	for _, c := range []struct {
		live, kept, want byte
	}{{1, 0, 2}, {1, 2, 3}, {254, 255, 1}, {255, 1, 2}, {255, 0, 1}} {
		var g generations
		g.bySpace[spaceOrders].Store(&[]pointer{{live: c.live, kept: c.kept}, {live: 9}})
		if got := g.next(&ordersProjection, 0, 1); got != c.want {
			t.Errorf("after %d with %d kept comes %d, want %d", c.live, c.kept, got, c.want)
		}
	}
}

// TestANewGenerationHasKeysThatNobodyRemoved: what removes keys stays in the store for a while, and is in the way of tables.
func TestANewGenerationHasKeysThatNobodyRemoved(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(50)
	fs := vfs.NewMem()
	n := startNode(t, fs, s.log)
	n.reach(s)
	b := n.rebuilder(s.log)
	stop := b.run(t)
	rebuild := func(want byte) {
		t.Helper()
		if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
			t.Fatal(err)
		}
		if statuses := b.settle(t); len(statuses) != 1 || statuses[0].Generation != uint32(want) {
			t.Fatalf("seed %d: got %+v, want generation %d", seed, statuses, want)
		}
		if err := b.Drop(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
	}
	rebuild(2)
	rebuild(3)
	if _, err := b.Sweep(); err != nil {
		t.Fatal(err)
	}
	rebuild(4)
	stop()
	n.stop()
	n = startNode(t, fs, s.log) // Generation 4 is there still.
	b = n.rebuilder(s.log)
	b.run(t)
	rebuild(2)
	rebuild(3)
	rebuild(5)

	// When there is none left, it goes round.
	g := &n.store.generations
	for range generationsMax {
		if generation := g.next(&ordersProjection, 0); generation == 1 {
			t.Fatalf("seed %d: the generation that answers is given to a rebuild", seed)
		}
	}
}

func TestASpeedReadsBackAsItIsWritten(t *testing.T) {
	for _, text := range []string{"full", "background", "1", "250000"} {
		if speed, err := ParseSpeed(text); err != nil || speed.String() != text {
			t.Errorf("%q reads as %v, %v", text, speed, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "fast", "1.5"} {
		if speed, err := ParseSpeed(text); err == nil {
			t.Errorf("%q reads as %v, want an error", text, speed)
		}
	}
}

func TestARebuildKeepsItsSpeedAndMakesRoomForTheLiveViews(t *testing.T) {
	run := func(p *pace, events int, work time.Duration) time.Duration {
		var took time.Duration
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			shift := p.newShift()
			for range events / 10 {
				if err := sleepFor(t.Context(), work); err != nil { // The work.
					t.Fatal(err)
				}
				if err := errors.Join(p.take(t.Context(), 10), shift.yield(t.Context())); err != nil {
					t.Fatal(err)
				}
			}
			took = time.Since(began)
		})
		return took
	}
	none := func() uint64 { return 0 }
	if took := run(&pace{speed: Speed{EventsPerSecond: 1000}, lag: none}, 10_000, 0); took < 9*time.Second || took > 11*time.Second {
		t.Errorf("10,000 events at 1,000 a second took %v", took)
	}
	if took := run(&pace{lag: none, asked: none}, 10_000, time.Millisecond); took != time.Second {
		t.Errorf("a second of work at full speed, beside nobody, took %v", took)
	}
	if took := run(&pace{speed: SpeedBackground, lag: none}, 10_000, time.Millisecond); took < 1900*time.Millisecond || took > 2100*time.Millisecond {
		t.Errorf("a second of work in the background took %v, want about two", took)
	}
	// Others ask for something all the time, then for half of the work, then so much that every rest ends late.
	calls := uint64(0)
	others := func() uint64 { calls++; return calls }
	if took := run(&pace{lag: none, asked: others}, 10_000, time.Millisecond); took < 1900*time.Millisecond || took > 2*time.Second {
		t.Errorf("a second of work among others took %v, want about two", took)
	}
	calls = 0
	until := func() uint64 { calls = min(calls+1, 500); return calls }
	if took := run(&pace{lag: none, asked: until}, 10_000, time.Millisecond); took < 1500*time.Millisecond || took > 1550*time.Millisecond {
		t.Errorf("a second of work, half of it among others, took %v, want about one and a half", took)
	}
	crowded := &pace{lag: none}
	crowded.asked = func() uint64 {
		crowded.shortRest = min(2*max(crowded.shortRest, shortRestMin), shortRestMax) // As rested does.
		return others()
	}
	if took, longest := run(crowded, 10_000, time.Millisecond), time.Second+1000*shortRestMax; took < longest/2 || took > longest {
		t.Errorf("a second of work among too many others took %v, want at most %v", took, longest)
	}
	looks := 0
	lag := func() uint64 { looks++; return lagCommitsMax + 1 - min(uint64(looks/5), 1) }
	if took := run(&pace{lag: lag}, paceEvents+10, 0); took != 4*lagPause {
		t.Errorf("while the live views lag it paused %v, want %v", took, 4*lagPause)
	}
	if took := run(&pace{lag: func() uint64 { return lagCommitsMax + 1 }}, paceEvents+10, 0); took != lagPausesMax*lagPause {
		t.Errorf("it pauses %v for a lag that stays, want %v", took, lagPausesMax*lagPause)
	}
}

func TestRestsThatEndLateBecomeLongerWithinBoundsAndShorterAgain(t *testing.T) {
	p := &pace{}
	for range 100 {
		p.rested(lateMax + 1)
		if p.shortRest <= shortRestMin || p.shortRest > shortRestMax {
			t.Fatalf("after a rest that ended late the next is %v, want more than %v and at most %v", p.shortRest, shortRestMin, shortRestMax)
		}
	}
	if p.shortRest != shortRestMax {
		t.Errorf("after a hundred rests that ended late the next is %v, want %v", p.shortRest, shortRestMax)
	}
	for range 100 {
		p.rested(lateMax)
	}
	if p.shortRest != shortRestMin {
		t.Errorf("after a hundred rests that ended in time the next is %v, want %v", p.shortRest, shortRestMin)
	}
}

// TestGoroutinesOfARebuildTakeTurnsAmongOthers: two processors are not both taken by a rebuild while others want one.
func TestGoroutinesOfARebuildTakeTurnsAmongOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := atomic.Uint64{}
		p := &pace{asked: func() uint64 { return asked.Add(1) }}
		const workers, turns = 5, 100
		var mu sync.Mutex
		var began []time.Time
		var working sync.WaitGroup
		for range workers {
			shift := p.newShift()
			working.Go(func() {
				for range turns {
					if err := errors.Join(sleepFor(t.Context(), shortWorkMax), shift.yield(t.Context())); err != nil { // The work.
						t.Error(err)
					}
					mu.Lock()
					began = append(began, time.Now())
					mu.Unlock()
				}
			})
		}
		working.Wait()
		began = began[2*workers:] // Others are noticed.
		slices.SortFunc(began, time.Time.Compare)
		for i := 1; i < len(began); i++ {
			if apart := began[i].Sub(began[i-1]); apart < shortWorkMax {
				t.Fatalf("turn %d began %v after the one before, want at least %v: they overlap", i, apart, shortWorkMax)
			}
		}
		if took, most := began[len(began)-1].Sub(began[0]), time.Duration(len(began))*(shortWorkMax+shortRestMin); took > most {
			t.Errorf("%d turns took %v, want at most %v, which one goroutine would have taken", len(began), took, most)
		}
	})
}

// TestNobodyRestsWhileARunnerWaits: the last commits are taken in between two of its batches.
func TestNobodyRestsWhileARunnerWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := uint64(0)
		p := &pace{asked: func() uint64 { asked++; return asked }}
		f := &builder{shift: p.newShift(), tables: &tableRun{opSorter: opSorter{shift: p.newShift()}}}
		began := time.Now()
		rests := func(shift *shift) time.Duration {
			<-time.After(time.Second) // The work.
			before := time.Now()
			if err := shift.yield(t.Context()); err != nil {
				t.Fatal(err)
			}
			return time.Since(before)
		}
		rests(f.shift) // Others are noticed.
		if rests(f.shift) == 0 || rests(f.tables.shift) == 0 {
			t.Errorf("nobody rests among others")
		}
		f.hurry()
		if rests(f.shift)+rests(f.tables.shift) > 0 {
			t.Errorf("somebody rests although the runner waits, %v after the begin", time.Since(began))
		}
	})
}

func TestARebuildThatWasGivenUpIsNotTakenUpAgain(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(200)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	r := n.runners[0]
	// Whoever works on a rebuild stays at the first commit until he is told to stop.
	const rounds = 100
	began := make(chan struct{}, 2*rounds)
	b := n.rebuilder(&brokenLog{Log: s.log, next: func(_ eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		began <- struct{}{}
		<-ctx.Done()
		return eventstore.Record{}, ctx.Err()
	}})
	late, soon := context.WithTimeout(t.Context(), patience)
	defer soon()
	ctx, cancel := context.WithCancel(late)
	defer cancel()
	var running, working sync.WaitGroup
	running.Go(func() { // As Run, which looks for work whenever some has ended.
		for ctx.Err() == nil {
			b.startWork(ctx, &working)
		}
	})
	for range rounds {
		if err := b.Start("orders", RebuildOptions{}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-began:
		case <-late.Done():
			t.Fatalf("seed %d: nobody takes the rebuild up: %+v", seed, b.Status())
		}
		if err := b.Drop(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	running.Wait()
	working.Wait()
	if len(began) > 0 || len(b.Status()) > 0 {
		t.Errorf("seed %d: %d of %d rebuilds were taken up again, and are left: %+v", seed, len(began), rounds, b.Status())
	}
	if err := r.atBoundary(t.Context(), func() error {
		if len(r.views) != len(Projections) {
			t.Errorf("seed %d: the runner feeds %d views, want %d", seed, len(r.views), len(Projections))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n.verify(s)
}
