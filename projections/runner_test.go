package projections

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

func TestViewsEqualTheFoldOfTheLog(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(300)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	n.check(s)
	for range 100 { // Now from the live tail.
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	n.check(s)
	for _, sku := range s.skus {
		stock, fresh, err := n.views.Stock(t.Context(), sku, Min{Commit: s.last.Number})
		sum := domain.Sum(map[uint32]domain.Account{0: s.accounts[sku]})
		want := StockView{
			SKU: sku, Received: sum.Received, Central: sum.Central, InTransit: sum.InTransit,
			Available: sum.Allotted, Reserved: sum.Reserved, Sold: sum.Sold,
		}
		if err != nil || stock != want || fresh.State != StateFresh {
			t.Fatalf("seed %d: stock of %s: got %+v, %v, %v, want %+v", seed, sku, stock, fresh, err, want)
		}
	}
	if errs := n.stop(); errs != nil {
		t.Fatal(errs)
	}
}

func TestARestartedNodeGivesTheSameAnswersAndGoesOn(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	fs := vfs.NewMem()
	for range 5 {
		s.steps(40)
		n := startNode(t, fs, s.log)
		n.reach(s)
		n.check(s)
		if errs := n.stop(); errs != nil {
			t.Fatalf("seed %d: %v", seed, errs)
		}
	}
	n := openNode(t, fs, s.log) // Reads what was stored, with nothing running.
	n.check(s)
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestANodeWithoutItsDirectoryRebuildsTheSameBytes(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed, 1, 2)}
	first := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for range 150 { // Live, commit by commit.
		s := shops[shopOf(shops)]
		first.runners[s.lane].Offer(s.step())
	}
	second := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for _, s := range shops {
		first.reach(s)
		second.reach(s)
		second.check(s)
	}
	want, got := dump(t, first.store), dump(t, second.store)
	if len(want) == 0 || got != want {
		t.Fatalf("seed %d: the rebuilt views differ:\ngot\n%s\nwant\n%s", seed, got, want)
	}
}

// shopOf takes the shop that has written less.
func shopOf(shops []*shop) int {
	if shops[1].last.Number < shops[0].last.Number {
		return 1
	}
	return 0
}

// dump writes down every key and value of the views.
func dump(tb testing.TB, store *Store) string {
	tb.Helper()
	all, err := store.db.NewIter(&pebble.IterOptions{LowerBound: []byte{KeySpaceViews}, UpperBound: []byte{KeySpaceViews + 1}})
	if err != nil {
		tb.Fatal(err)
	}
	var text strings.Builder
	for valid := all.First(); valid; valid = all.Next() {
		text.WriteString(hex.EncodeToString(all.Key()) + " " + hex.EncodeToString(all.Value()) + "\n")
	}
	if err := all.Close(); err != nil {
		tb.Fatal(err)
	}
	return text.String()
}

// TestACrashedStoreReplaysToTheSameBytes crashes the store at random points: what was synced survives and any part of
// what was not. The views open at a position of whole batches, equal the fold of the log up to it, and go on.
func TestACrashedStoreReplaysToTheSameBytes(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 10
	}
	base := seedOf(t)
	for round := range uint64(rounds) {
		crashAndReplay(t, base+round)
	}
}

func crashAndReplay(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	s := newShop(t, seed, 0, 1)
	fs := vfs.NewCrashableMem()
	for life := range 3 {
		n := startNode(t, fs, s.log)
		flushed := uint64(0)
		for range 1 + random.IntN(60) {
			n.runners[0].Offer(s.step())
			switch random.IntN(12) {
			case 0: // Wait: the batches are cut differently.
				n.reach(s)
			case 1: // Flush a part.
				at := n.runners[0].Position().Number
				if err := n.store.Flush(); err != nil {
					t.Fatal(err)
				}
				flushed = at
			case 2: // Flush while it goes on.
				if _, err := n.store.db.AsyncFlush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
		if errs := n.stop(); errs != nil {
			t.Fatalf("seed %d: %v", seed, errs)
		}
		fs = crashed

		after := openNode(t, fs, s.log)
		if at := after.runners[0].Position().Number; at < flushed {
			t.Fatalf("seed %d, life %d: the views came back at commit %d, but %d was flushed", seed, life, at, flushed)
		}
		report, err := Verify(t.Context(), VerifyOptions{Store: after.store, Lane: 0, Lanes: 1, Log: s.log})
		if err != nil || report.DifferencesTotal > 0 {
			t.Fatalf("seed %d, life %d, at commit %d: %v, %v", seed, life, report.Position.Number, err, report.Differences)
		}
		if err := after.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	replayed, rebuilt := startNode(t, fs, s.log), startNode(t, vfs.NewMem(), s.log)
	replayed.reach(s)
	rebuilt.reach(s)
	if got, want := dump(t, replayed.store), dump(t, rebuilt.store); got != want {
		t.Fatalf("seed %d: the replayed views differ:\ngot\n%s\nwant\n%s", seed, got, want)
	}
	replayed.stop()
	rebuilt.stop()
}

// A brokenLog is a log whose cursors change what they read.
type brokenLog struct {
	eventstore.Log
	next func(eventstore.Cursor, context.Context) (eventstore.Record, error)
}

type brokenCursor struct {
	eventstore.Cursor
	log *brokenLog
}

func (l *brokenLog) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	cursor, err := l.Log.Follow(ctx, number)
	return brokenCursor{cursor, l}, err
}

func (c brokenCursor) Next(ctx context.Context) (eventstore.Record, error) {
	return c.log.next(c.Cursor, ctx)
}

// runBroken runs a lane's views over a log that is broken at commit number 30, and returns what Run says.
func runBroken(t *testing.T, s *shop, damage func(eventstore.Cursor, context.Context, eventstore.Record) (eventstore.Record, error)) (*node, error) {
	t.Helper()
	s.steps(50)
	log := &brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		record, err := cursor.Next(ctx)
		if err == nil && record.Number == 30 {
			return damage(cursor, ctx, record)
		}
		return record, err
	}}
	n := openNode(t, vfs.NewMem(), log)
	t.Cleanup(func() {
		if err := n.store.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, n.runners[0].Run(t.Context())
}

func TestARunnerStopsAtAGapAndSaysSo(t *testing.T) {
	seed := seedOf(t)
	n, err := runBroken(t, newShop(t, seed, 0, 1), func(cursor eventstore.Cursor, ctx context.Context, _ eventstore.Record) (eventstore.Record, error) {
		return cursor.Next(ctx) // Commit 30 is missing.
	})
	var chain *eventstore.ChainError
	if !errors.As(err, &chain) || chain.Number != 30 || !strings.Contains(err.Error(), "found number 31") {
		t.Fatalf("seed %d: got %v, want a ChainError at commit 30", seed, err)
	}
	if at := n.runners[0].Position().Number; at != 29 {
		t.Fatalf("seed %d: the views stopped at commit %d, want 29", seed, at)
	}
	statuses := n.views.Status()
	if len(statuses) != len(Projections) || !statuses[0].Stopped || statuses[0].LagCommits != 21 || statuses[0].State != StateCatchingUp {
		t.Fatalf("seed %d: got %+v, want all views stopped, 21 commits behind", seed, statuses)
	}
}

func TestARunnerStopsWhenItsLogIsGone(t *testing.T) {
	seed := seedOf(t)
	n, err := runBroken(t, newShop(t, seed, 0, 1), func(eventstore.Cursor, context.Context, eventstore.Record) (eventstore.Record, error) {
		return eventstore.Record{}, &eventstore.MissingLogError{Reason: "the server has no stream"}
	})
	var missing *eventstore.MissingLogError
	if at := n.runners[0].Position().Number; !errors.As(err, &missing) || at != 29 {
		t.Fatalf("seed %d: got %v at commit %d, want a MissingLogError at commit 29", seed, err, at)
	}
}

func TestARunnerStopsWhereTheChainBreaks(t *testing.T) {
	seed := seedOf(t)
	n, err := runBroken(t, newShop(t, seed, 0, 1), func(_ eventstore.Cursor, _ context.Context, record eventstore.Record) (eventstore.Record, error) {
		commit, err := eventstore.DecodeCommit(record.Data)
		if err != nil {
			return record, err
		}
		commit.PrevHash[0] ^= 1
		return eventstore.EncodeCommit(commit), nil
	})
	var chain *eventstore.ChainError
	if !errors.As(err, &chain) || chain.Number != 30 {
		t.Fatalf("seed %d: got %v, want a ChainError at commit 30", seed, err)
	}
	if at := n.runners[0].Position().Number; at != 29 {
		t.Fatalf("seed %d: the views stopped at commit %d, want 29", seed, at)
	}
}

func TestARunnerStopsAtACommitThatItCannotRead(t *testing.T) {
	seed := seedOf(t)
	n, err := runBroken(t, newShop(t, seed, 0, 1), func(_ eventstore.Cursor, _ context.Context, record eventstore.Record) (eventstore.Record, error) {
		record.Data = bytes.Repeat([]byte{0xff}, 20)
		return record, nil
	})
	var unreadable *UnreadableError
	if !errors.As(err, &unreadable) || unreadable.Number != 30 || unreadable.Event != 0 {
		t.Fatalf("seed %d: got %v, want an UnreadableError at commit 30", seed, err)
	}
	if at := n.runners[0].Position().Number; at != 29 {
		t.Fatalf("seed %d: the views stopped at commit %d, want 29", seed, at)
	}
}

func TestARunnerStopsOnALogThatIsNotTheOneItsViewsWereMadeOf(t *testing.T) {
	s, fs := takenIn(t, 20)

	shorter, other := newShop(t, s.seed, 0, 1), newShop(t, s.seed+1, 0, 1)
	shorter.steps(10)
	other.steps(20)
	for name, log := range map[string]eventstore.Log{"shorter": shorter.log, "another": other.log} {
		n := openNode(t, fs, log)
		err := n.runners[0].Run(t.Context())
		var chain *eventstore.ChainError
		if !errors.As(err, &chain) || chain.Number != 20 {
			t.Fatalf("seed %d, %s log: got %v, want a ChainError at commit 20", s.seed, name, err)
		}
		if err := n.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestARunnerThatMissedOffersReadsThemFromTheLog(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(10)
	n := openNode(t, vfs.NewMem(), s.log)
	r := n.runners[0]
	// More than the tail holds, and with a hole, before the runner runs at all.
	for i := range 2*eventstore.TailCommitsMax + 10 {
		commit, at := s.step()
		if i != eventstore.TailCommitsMax+100 {
			r.Offer(commit, at)
		}
	}
	if fresh := r.freshness(); fresh.LagCommits != s.last.Number {
		t.Fatalf("seed %d: got %v, want %d commits behind", seed, fresh, s.last.Number)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	})
	n.reach(s)
	for range 50 { // The tail again.
		r.Offer(s.step())
		n.reach(s)
	}
	n.check(s)
	cancel()
	running.Wait()
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

// hold makes the runner wait after it has written its next batch and before it wakes the watchers of an order, until the
// returned function is called. That wakes the returned watcher, if the batch changed the order.
func hold(t *testing.T, r *Runner, id domain.OrderID) (*watcher, func()) {
	watching, leave := r.watchers.enter(id)
	r.watchers.mu.Lock()
	release := sync.OnceFunc(func() {
		r.watchers.mu.Unlock()
		leave()
	})
	t.Cleanup(release) // Or a test that fails would never stop its runner.
	return watching, release
}

func TestARunnerWhoseTailOverflowsReadsTheLogAndComesBack(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	log := &countingLog{Log: s.log}
	n := openNode(t, vfs.NewMem(), log)
	r := n.runners[0]
	r.follower.TailIdle = patience
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	})
	for range 3 {
		for range 20 {
			r.Offer(s.step())
			n.reach(s)
		}
		_, release := hold(t, r, domain.OrderID{})
		for range 2 * eventstore.TailCommitsMax {
			r.Offer(s.step())
		}
		release()
		n.reach(s)
	}
	cancel()
	running.Wait()
	report, err := Verify(t.Context(), VerifyOptions{Store: n.store, Lane: 0, Lanes: 1, Log: s.log})
	if err != nil || report.DifferencesTotal > 0 || report.Position != s.last {
		t.Fatalf("seed %d: got %+v, %v, want no difference at commit %d", seed, report, err, s.last.Number)
	}
	if log.reads < 3*eventstore.TailCommitsMax/2 {
		t.Fatalf("seed %d: %d commits were read from the log; the tail did not overflow", seed, log.reads)
	}
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAWatcherIsWokenOnceTheChangeCanBeRead(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	placed := s.place(s.users[0], 0)
	watching, release := hold(t, n.runners[0], placed.OrderID)
	n.runners[0].Offer(s.commit(placed))
	at := Min{Commit: s.last.Number, Wait: patience}
	if view, _, err := n.views.Order(t.Context(), placed.OrderID, at); err != nil || view.Revision.Commit != s.last.Number {
		t.Fatalf("got %+v, %v, want the order of commit %d", view, err, s.last.Number)
	}
	select {
	case <-watching.woken:
		t.Fatal("the watcher was woken before its change could be read")
	default:
	}
	release()
}

// A countingLog counts what is read from it.
type countingLog struct {
	eventstore.Log
	reads int
}

func (l *countingLog) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	cursor, err := l.Log.Follow(ctx, number)
	return brokenCursor{cursor, &brokenLog{next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		record, err := cursor.Next(ctx)
		l.reads++
		return record, err
	}}}, err
}

func TestARunnerDoesNotReadWhatItWasOffered(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	log := &countingLog{Log: s.log}
	n := openNode(t, vfs.NewMem(), log)
	n.runners[0].follower.TailIdle = patience
	for range 100 {
		n.runners[0].Offer(s.step())
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.runners[0].Run(ctx); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	})
	n.reach(s)
	before := n.runners[0].Position().Number
	for range 500 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	cancel()
	running.Wait()
	if log.reads > int(before) {
		t.Fatalf("seed %d: %d commits were read from the log, want at most %d", seed, log.reads, before)
	}
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAReadThatWaitsForACommitEndsTheRunnersRest(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	n := openNode(t, vfs.NewMem(), s.log)
	r, err := NewRunner(RunnerOptions{Store: n.store, Lanes: 1, Log: s.log, Pace: 2 * patience, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n.runners[0] = r // Its pace is one that no test waits for.
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	})
	for range 10 {
		r.Offer(s.step())
		r.Offer(s.step())
		n.reach(s)
	}
	cancel()
	running.Wait()
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestARunnerThatIsOfferedNothingReadsTheLog(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	n := openNode(t, vfs.NewMem(), s.log)
	n.runners[0].follower.TailIdle = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.runners[0].Run(ctx); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	})
	for range 5 {
		for range 20 { // This node writes the lane...
			n.runners[0].Offer(s.step())
		}
		n.reach(s)
		for range 20 { // ... and then another node does.
			s.step()
		}
		n.reach(s)
	}
	n.check(s)
	cancel()
	running.Wait()
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestALogThatCannotBeReachedIsTriedAgain(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(60)
	random := rand.New(rand.NewPCG(seed, 2))
	failures := 0
	n := startNode(t, vfs.NewMem(), &brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		if failures < 4 && random.IntN(5) == 0 {
			failures++
			return eventstore.Record{}, errors.New("connection lost")
		}
		return cursor.Next(ctx)
	}})
	n.reach(s)
	n.check(s)
	if errs := n.stop(); errs != nil {
		t.Fatalf("seed %d: %v", seed, errs)
	}
}

func TestVerifyTellsWhatDiffers(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(50)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	options := VerifyOptions{Store: n.store, Lane: 0, Lanes: 1, Log: s.log}
	report, err := Verify(t.Context(), options)
	if err != nil || report.DifferencesTotal != 0 || report.Keys == 0 || report.Position != s.last {
		t.Fatalf("seed %d: got %+v, %v, want no difference at %d", seed, report, err, s.last.Number)
	}
	id := s.byUser[s.users[0]][0]
	key := make([]byte, prefixBytes+len(id))
	putOrderKey(key, n.runners[0].prefix(&ordersProjection), id)
	for _, err := range []error{
		n.store.db.Delete(key, pebble.NoSync),
		n.store.db.Set(n.runners[0].prefix(&stockProjection).key([]byte(s.skus[0])), account{allotted: 1}.append(nil), pebble.NoSync),
		n.store.db.Set(n.runners[0].prefix(&productsProjection).key([]byte("made-up")), nil, pebble.NoSync),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	report, err = Verify(t.Context(), options)
	if err != nil || report.DifferencesTotal != 3 || len(report.Differences) != 3 {
		t.Fatalf("seed %d: got %+v, %v, want 3 differences", seed, report, err)
	}
	for i, want := range []string{"order " + id.String(), "SKU made-up", "SKU " + s.skus[0]} {
		if got := report.Differences[i]; got.Key != want {
			t.Fatalf("seed %d: difference %d: got %v, want one of %s", seed, i, got, want)
		}
	}
}

func TestVerifyComparesASampleOfTheOrders(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(100)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	id := s.byUser[s.users[0]][0]
	if err := n.store.db.Delete(n.runners[0].prefix(&ordersProjection).key(id[:]), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	var all uint64
	for name, c := range map[string]struct {
		sample      func(uint32) bool
		differences uint64
	}{
		"all":                   {nil, 1},
		"its partition":         {func(p uint32) bool { return p == id.Partition() }, 1},
		"every other partition": {func(p uint32) bool { return p != id.Partition() }, 0},
	} {
		report, err := Verify(t.Context(), VerifyOptions{Store: n.store, Lane: 0, Lanes: 1, Log: s.log, Sample: c.sample})
		if err != nil || report.DifferencesTotal != c.differences {
			t.Fatalf("seed %d, %s: got %+v, %v, want %d differences", seed, name, report, err, c.differences)
		}
		if c.sample == nil {
			all += report.Keys
		}
	}
	report, err := Verify(t.Context(), VerifyOptions{Store: n.store, Lane: 0, Lanes: 1, Log: s.log, Sample: func(uint32) bool { return false }})
	if err != nil || report.Keys == 0 || report.Keys >= all {
		t.Fatalf("seed %d: %d keys were compared without orders, %d with them, %v", seed, report.Keys, all, err)
	}
}
