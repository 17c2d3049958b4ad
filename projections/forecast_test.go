package projections

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// peakedShop returns a shop that had a peak of large commits, and then a long quiet time of small ones.
func peakedShop(tb testing.TB, lane, lanes uint32) *shop {
	s := newShop(tb, seedOf(tb), lane, lanes)
	place := func() domain.Event { return s.place(s.users[s.random.IntN(len(s.users))], s.random.IntN(len(s.skus))) }
	for range 60 {
		s.commitEach(80, place)
	}
	for range 600 {
		s.commitEach(1, place)
	}
	return s
}

// storedUpTo returns how many bytes of a shop's log its commits up to a number take.
func (s *shop) storedUpTo(number uint64) (bytes uint64) {
	s.tb.Helper()
	for at := uint64(1); at <= number; at++ {
		record, err := s.log.Read(s.tb.Context(), at)
		if err != nil {
			s.tb.Fatal(err)
		}
		bytes += uint64(record.Stored)
	}
	return bytes
}

// slowlyRead returns a log that calls each before a commit is read, with how a rebuild of it stands. Before the first one it waits until
// that knows how much there is to do.
func slowlyRead(t *testing.T, s *shop, status func() []RebuildStatus, each func(next uint64, now RebuildStatus)) eventstore.Log {
	next := uint64(0)
	return &brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		now := status()
		for deadline := time.Now().Add(patience); now[0].Lanes[s.lane].BytesTotal == 0; now = status() {
			if time.Now().After(deadline) {
				t.Errorf("seed %d: the size of the log is not known after %v", s.seed, patience)
				return eventstore.Record{}, context.DeadlineExceeded
			}
			if err := sleepFor(ctx, time.Millisecond); err != nil {
				return eventstore.Record{}, err
			}
		}
		next++
		each(next, now[0])
		return cursor.Next(ctx)
	}}
}

// TestAForecastGoesByWhatThereIsToReadAndNotByHowManyCommits foretells, at every commit after the first tenth, how much there is to build in
// all, as what was done divided by the share that is told, and counts what was really done: by events. Counted by commits, it is
// wrong by a multiple.
func TestAForecastGoesByWhatThereIsToReadAndNotByHowManyCommits(t *testing.T) {
	s := peakedShop(t, 0, 1)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	type point struct{ share, byCommits, events float64 }
	var points []point
	var b *Rebuilder
	b = n.rebuilder(slowlyRead(t, s, func() []RebuildStatus { return b.Status() }, func(_ uint64, now RebuildStatus) {
		lane := now.Lanes[0]
		points = append(points, point{
			float64(lane.Bytes) / float64(lane.BytesTotal), float64(lane.Position) / float64(lane.Target), float64(lane.Events),
		})
	}))
	b.run(t)
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
		t.Fatal(err)
	}
	statuses := b.settle(t)
	if len(statuses) != 1 || statuses[0].State != RebuildHeld || statuses[0].Done != statuses[0].Total || statuses[0].Left != 0 {
		t.Fatalf("seed %d: got %+v, want a rebuild that is held and done", s.seed, statuses)
	}
	all := float64(statuses[0].Lanes[0].Events)
	var told, byCommits float64
	for _, p := range points {
		if p.share >= 0.1 {
			told = max(told, math.Abs(p.events/p.share-all)/all)
		}
		if p.byCommits >= 0.1 && byCommits == 0 {
			byCommits = math.Abs(p.events/p.byCommits-all) / all
		}
	}
	if told == 0 || told > 0.1 {
		t.Errorf("seed %d: after a tenth the work was foretold wrong by up to %.0f%%, want at most 10%%", s.seed, 100*told)
	}
	if byCommits < 1 {
		t.Errorf("seed %d: counted by commits it is wrong by only %.0f%%: this log shows nothing", s.seed, 100*byCommits)
	}
}

// TestAForecastCountsTheLanesThatAreRebuiltAndTheComparison rebuilds one lane of two while its log grows.
func TestAForecastCountsTheLanesThatAreRebuiltAndTheComparison(t *testing.T) {
	shops := []*shop{newShop(t, seedOf(t), 0, 2), peakedShop(t, 1, 2)}
	for range 50 {
		shops[0].step()
	}
	n := startNode(t, vfs.NewMem(), shops[0].log, shops[1].log)
	for _, s := range shops {
		n.reach(s)
	}
	if err := n.store.Flush(); err != nil { // What is compared is told by the tables.
		t.Fatal(err)
	}
	s := shops[1]
	before := s.storedUpTo(s.last.Number)
	var b *Rebuilder
	status := func() []RebuildStatus {
		all := b.Status()
		all[0].Lanes = append([]LaneRebuild{{}}, all[0].Lanes...)
		return all
	}
	var first RebuildStatus
	grown := slowlyRead(t, s, status, func(next uint64, now RebuildStatus) {
		switch next {
		case 2:
			first = now
			for range 500 {
				n.runners[1].Offer(s.commitEach(1, func() domain.Event { return s.place(s.users[0], 0) }))
			}
			n.reach(s)
		case s.last.Number: // The runner has gone on, so this is read before it is adopted.
			if all := now.Lanes[1]; all.Bytes > all.BytesTotal {
				t.Errorf("seed %d: %d bytes are read of %d", s.seed, all.Bytes, all.BytesTotal)
			}
		}
	})
	b = n.rebuilder(shops[0].log, grown)
	b.run(t)
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual, Lanes: []uint32{1}}); err != nil {
		t.Fatal(err)
	}
	statuses := b.settle(t)
	lane := first.Lanes[1]
	if lane.BytesTotal != before || lane.Bytes != s.storedUpTo(1) || first.Total <= before {
		t.Errorf("seed %d: at first got %+v, want %d bytes of %d, and more to do than that: the comparison", s.seed, first, s.storedUpTo(1), before)
	}
	if len(statuses) != 1 || statuses[0].State != RebuildHeld || statuses[0].Done != statuses[0].Total {
		t.Fatalf("seed %d: got %+v, want a rebuild that is held and done", s.seed, statuses)
	}
	b.mu.Lock()
	job := b.rebuilds[spaceOrders]
	b.mu.Unlock()
	measuring, stop := context.WithCancel(t.Context())
	stop()
	b.measure(measuring, job) // A context that has ended is looked at after the first look.
	if read, beside := job.parts[0].read.Load(), job.parts[0].beside.Load(); beside == 0 || beside > read {
		t.Errorf("seed %d: the newest batch has %d bytes of the log, of %d that were read", s.seed, beside, read)
	}
	if got, want := job.parts[0].read.Load(), s.storedUpTo(job.parts[0].position.Load()); got != want {
		t.Errorf("seed %d: %d bytes were counted up to commit %d, want %d", s.seed, got, job.parts[0].position.Load(), want)
	}
}

func TestABatchThatIsWrittenBesideTheReadingIsStillToDoWhenAllIsRead(t *testing.T) {
	p := &part{}
	p.size.Store(&eventstore.LogSize{First: 1, Head: 10, Bytes: 1000})
	p.position.Store(10)
	p.read.Store(1000)
	p.beside.Store(80)
	job := &rebuild{parts: []*part{p}}
	if got, _ := job.work(); got != (work{1000, 1080}) {
		t.Errorf("all is read: got %+v, want a batch left", got)
	}
	p.adopted.Store(true)
	if got, _ := job.work(); got != (work{1080, 1080}) {
		t.Errorf("all is written: got %+v, want nothing left", got)
	}
}

// TestWhatWasReadIsKnownAfterACrash kills a node in the middle of a rebuild. What an older program has built does not say what it had
// read: then it is taken to be spread evenly.
func TestWhatWasReadIsKnownAfterACrash(t *testing.T) {
	for _, older := range []bool{false, true} {
		t.Run(fmt.Sprintf("older=%t", older), func(t *testing.T) {
			s := peakedShop(t, 0, 1)
			fs := vfs.NewCrashableMem()
			n := startNode(t, fs, s.log)
			n.reach(s)
			if err := n.store.Flush(); err != nil {
				t.Fatal(err)
			}
			var left *vfs.MemFS
			log := &crashingLog{Log: s.log, after: 100}
			log.crash = func() {
				if err := n.store.Flush(); err != nil {
					t.Error(err)
				}
				left = fs.CrashClone(vfs.CrashCloneCfg{})
			}
			b := n.rebuilder(log)
			b.batchBytes, b.tableBytes = 1, 1
			stop := b.run(t)
			if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
				t.Fatal(err)
			}
			b.settle(t)
			stop()
			n.stop()

			n = startNode(t, left, s.log)
			if older {
				forgetWhatWasRead(t, n.store)
			}
			resumed := make(chan RebuildStatus, 1)
			b = n.rebuilder(slowlyRead(t, s, func() []RebuildStatus { return b.Status() }, func(next uint64, now RebuildStatus) {
				if next == 1 {
					resumed <- now
				}
			}))
			b.run(t)
			b.settle(t)
			got := (<-resumed).Lanes[0]
			all := s.storedUpTo(s.last.Number)
			want := s.storedUpTo(got.Position)
			if older {
				want = uint64(float64(all) / float64(s.last.Number) * float64(got.Position))
			}
			if got.Position < 50 || got.Bytes != want || got.BytesTotal != all {
				t.Errorf("seed %d: after the crash %d bytes of %d are read at commit %d, want %d of %d", s.seed, got.Bytes, got.BytesTotal, got.Position, want, all)
			}
		})
	}
}

// forgetWhatWasRead rewrites the progress of what is being built as programs wrote it that did not count bytes.
func forgetWhatWasRead(t *testing.T, store *Store) {
	t.Helper()
	rewritten := 0
	rewriteProgress(t, store, func(value []byte) []byte {
		if len(value) == progressBytes {
			return value
		}
		rewritten++
		return value[:progressBytes]
	})
	if rewritten == 0 {
		t.Fatal("no progress says what was read")
	}
}

// rewriteProgress rewrites how far each generation of each view is.
func rewriteProgress(t *testing.T, store *Store, rewrite func([]byte) []byte) {
	t.Helper()
	first := []byte{KeySpaceViews, spaceProgress}
	batch := store.db.NewBatch()
	entries, err := store.db.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		t.Fatal(err)
	}
	for valid := entries.First(); valid; valid = entries.Next() {
		err = errors.Join(err, batch.Set(entries.Key(), rewrite(bytes.Clone(entries.Value())), nil))
	}
	if err := errors.Join(err, entries.Close(), batch.Commit(pebble.NoSync), batch.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestAGenerationThatAnswersIsReadByOlderPrograms: what a rebuild counts beside its position is gone when a runner feeds it.
func TestAGenerationThatAnswersIsReadByOlderPrograms(t *testing.T) {
	s := peakedShop(t, 0, 1)
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	b := n.rebuilder(s.log)
	b.run(t)
	if err := b.Start("orders", RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	b.settle(t)
	rewriteProgress(t, n.store, func(value []byte) []byte {
		if len(value) != progressBytes {
			t.Errorf("seed %d: a progress has %d bytes after the swap, want %d", s.seed, len(value), progressBytes)
		}
		return value
	})
}

// TestARebuildThatANewerProgramBeganIsGivenUpByHand goes back to this program in the middle of a rebuild whose progress it cannot read:
// what answers goes on, the rebuild says what to do, and can be dropped and begun again at once.
func TestARebuildThatANewerProgramBeganIsGivenUpByHand(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(200)
	fs := vfs.NewMem()
	n := startNode(t, fs, s.log)
	n.reach(s)
	broken := errors.New("the log is away")
	failing := &brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		record, err := cursor.Next(ctx)
		if err == nil && record.Number == 100 {
			err = broken
		}
		return record, err
	}}
	b := n.rebuilder(failing)
	b.batchBytes, b.tableBytes = 1, 1
	stop := b.run(t)
	if err := b.Start("orders", RebuildOptions{}); err != nil {
		t.Fatal(err)
	}
	if statuses := b.settle(t); len(statuses) != 1 || statuses[0].State != RebuildFailed {
		t.Fatalf("seed %d: got %+v, want a rebuild that failed in the middle", s.seed, statuses)
	}
	stop()
	newer := 0
	rewriteProgress(t, n.store, func(value []byte) []byte {
		if len(value) == progressBytes {
			return value
		}
		newer++
		return append(value, 1, 2, 3)
	})
	if newer == 0 {
		t.Fatal("nothing was built")
	}
	n.stop()

	n = startNode(t, fs, s.log)
	for range 20 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	b = n.rebuilder(s.log)
	b.run(t)
	statuses := b.settle(t)
	if len(statuses) != 1 || statuses[0].State != RebuildFailed || !strings.Contains(statuses[0].Reason, "newer program") || !strings.Contains(statuses[0].Reason, "projections drop orders") {
		t.Fatalf("seed %d: got %+v, want that it failed, why, and what to do", s.seed, statuses)
	}
	n.check(s)
	if err := b.Drop(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	if err := b.Start("orders", RebuildOptions{}); err != nil { // Before what was dropped is swept.
		t.Fatal(err)
	}
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", s.seed, left)
	}
	n.verify(s)
	n.check(s)
}

func TestWhatIsNotKnownOfALogIsTakenToBeSpreadEvenly(t *testing.T) {
	for _, test := range []struct {
		name                         string
		position, counted, uncounted uint64
		size                         eventstore.LogSize
		want                         work
	}{
		{"an empty log", 0, 0, 0, eventstore.LogSize{}, work{}},
		{"nothing is read", 0, 0, 0, eventstore.LogSize{First: 1, Head: 10, Bytes: 1000}, work{0, 1000}},
		{"the middle", 5, 700, 0, eventstore.LogSize{First: 1, Head: 10, Bytes: 1000}, work{700, 1000}},
		{"the end", 10, 1000, 0, eventstore.LogSize{First: 1, Head: 10, Bytes: 1000}, work{1000, 1000}},
		{"an older program read the first half", 6, 300, 5, eventstore.LogSize{First: 1, Head: 10, Bytes: 1000}, work{800, 1000}},
		{"the log has grown since it was asked", 12, 1100, 0, eventstore.LogSize{First: 1, Head: 10, Bytes: 1000}, work{1100, 1200}},
		{"the head is gone, and was read before", 6, 600, 0, eventstore.LogSize{First: 6, Head: 10, Bytes: 500}, work{600, 1000}},
		{"the head is gone, and nobody knows what it took", 6, 100, 5, eventstore.LogSize{First: 6, Head: 10, Bytes: 500}, work{600, 1000}},
		{"all is gone", 10, 1000, 0, eventstore.LogSize{First: 11, Head: 10}, work{1000, 1000}},
	} {
		if got := logWork(test.position, test.counted, test.uncounted, test.size); got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

// TestWhatIsLeftIsToldByThePaceOfLate foretells by a clock of its own.
func TestWhatIsLeftIsToldByThePaceOfLate(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	var f forecast
	at := func(seconds int, done uint64, waited time.Duration) forecastMark {
		return forecastMark{began.Add(time.Duration(seconds) * time.Second), done, waited}
	}
	if left := f.left(at(0, 0, 0), work{0, 1000}, work{}); left != 0 {
		t.Errorf("before anything is known: got %v, want 0", left)
	}
	f.mark(at(0, 5000, 0)) // It goes on from there.
	if left := f.left(at(0, 5000, 0), work{5000, 10_000}, work{}); left != 0 {
		t.Errorf("before anything is done: got %v, want 0", left)
	}
	if left := f.left(at(1, 5001, 0), work{5001, 1 << 60}, work{}); left != 0 {
		t.Errorf("when hardly anything is done: got %v, want 0", left)
	}
	if left := f.left(at(1, 5100, 0), work{5100, 10_000}, work{0, 100}); left != 50*time.Second {
		t.Errorf("at 100 a second, with 4900 to build and 100 to compare: got %v, want 50s", left)
	}
	done := uint64(5000)
	for second := 1; second <= 20; second++ { // Others come: 100 a second, and then 10.
		step := uint64(100)
		if second > 5 {
			step = 10
		}
		done += step
		f.mark(at(second, done, 0))
	}
	if left := f.left(at(20, done, 0), work{done, done + 1000}, work{}); left != 100*time.Second {
		t.Errorf("at 10 a second for the last quarter of a minute: got %v, want 100s", left)
	}

	// Bounded to a tenth of what it can: the comparison is not held back.
	f = forecast{}
	f.mark(at(0, 0, 0))
	if left := f.left(at(10, 1000, 9*time.Second), work{1000, 2000}, work{0, 500}); left != 10*time.Second+500*time.Millisecond {
		t.Errorf("bounded: got %v, want 10.5s", left)
	}
}

// TestAComparisonSaysHowFarItIs reads two generations with many keys.
func TestAComparisonSaysHowFarItIs(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	b := n.rebuilder(s.log)
	b.run(t)
	if err := b.Start("orders", RebuildOptions{Swap: SwapManual}); err != nil {
		t.Fatal(err)
	}
	b.settle(t)
	b.mu.Lock()
	job := b.rebuilds[spaceOrders]
	b.mu.Unlock()
	p := job.parts[0]
	for _, generation := range []byte{1, p.generation} {
		batch := n.store.db.NewBatch()
		keys := prefixOf(spaceOrders, generation, 0)
		for i := range uint64(4 * seenKeys) {
			if err := batch.Set(keys.key(binary.BigEndian.AppendUint64(make([]byte, 8), i*0x9e3779b97f4a7c15)), []byte("value"), nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(batch.Commit(pebble.NoSync), batch.Close(), n.store.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	measuring, stop := context.WithCancel(t.Context())
	stop()
	b.measure(measuring, job)
	var mu sync.Mutex
	var shares []float64
	note := b.seen(job)
	if _, err := b.compare(t.Context(), &ordersProjection, job.lanes(), compareOptions{
		other: func(*Runner) byte { return p.generation }, pace: job.pace,
		seen: func(of prefix, key []byte) {
			mu.Lock()
			defer mu.Unlock()
			note(of, key)
			if now := p.comparing(); key != nil { // Not at the end of either, where nothing is read.
				shares = append(shares, float64(now.done)/float64(now.total))
			}
		},
	}); err != nil {
		t.Fatal(err)
	}
	if now := p.comparing(); len(shares) < 8 || now.done != now.total {
		t.Fatalf("seed %d: got the shares %v and then %+v, want several, and all at the end", s.seed, shares, now)
	}
	for i, share := range shares {
		if even := float64(i+1) / float64(len(shares)); math.Abs(share-even) > 0.15 {
			t.Errorf("seed %d: look %d of %d says %.2f, want about %.2f", s.seed, i+1, len(shares), share, even)
		}
	}
}
