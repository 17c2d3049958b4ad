package reactors

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

var errInjected = errors.New("injected fault")

// checkOrder compares what a reactor did with what happened on the lane: everything, once in order if it is to be in order,
// and in order for each aggregate in any case.
func checkOrder(t *testing.T, seed uint64, d *diary, l *shopLane, inOrder bool) {
	t.Helper()
	firsts := d.firsts(l.lane)
	if len(firsts) != len(l.events) {
		t.Fatalf("seed %d, reactor %s, lane %d: reacted to %d events, want %d (R1)", seed, d.name, l.lane, len(firsts), len(l.events))
	}
	got, want := map[string][]string{}, map[string][]string{}
	for i := range firsts {
		if inOrder && firsts[i].ID != l.events[i].ID {
			t.Fatalf("seed %d, reactor %s, lane %d: effect %d is of event %s, want %s", seed, d.name, l.lane, i, firsts[i].ID, l.events[i].ID)
		}
		got[firsts[i].AggregateID] = append(got[firsts[i].AggregateID], firsts[i].ID)
		want[l.events[i].AggregateID] = append(want[l.events[i].AggregateID], l.events[i].ID)
	}
	for key := range want {
		if !slices.Equal(got[key], want[key]) {
			t.Fatalf("seed %d, reactor %s, lane %d, %s: effects %v, want %v (R2)", seed, d.name, l.lane, key, got[key], want[key])
		}
	}
}

// threeWays registers a reactor of each kind.
func threeWays(one, batch, keyed *diary) []Registration {
	return []Registration{
		{Reactor: one, Start: FromBeginning},
		{Reactor: &batchDiary{batch}, Start: FromBeginning},
		{Reactor: keyed, Start: FromBeginning, InFlightMax: 4},
	}
}

func TestEveryReactorReactsToEveryEventOfEveryLane(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 4)
	for i := range 400 { // To be caught up with.
		s.step(uint32(i % 4))
	}
	one, batch, keyed := newDiary("one"), newDiary("batch"), newDiary("by-key")
	n := startNode(t, vfs.NewMem(), s, Options{Reactors: threeWays(one, batch, keyed)})
	n.reach(s)
	for i := range 400 { // Live.
		lane := uint32(i % 4)
		commit, at := s.step(lane)
		n.runner.Offer(lane, commit, at)
	}
	n.reach(s)
	n.await("everything to be fresh", func(status Status) bool { return status.State == StateFresh && status.Lag == 0 })
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, l := range s.lanes {
		for _, d := range []*diary{one, batch, keyed} {
			checkOrder(t, seed, d, l, d != keyed)
			if got := len(d.effects[l.lane]); got != len(l.events) {
				t.Errorf("seed %d: %s had %d effects on lane %d without a crash, want %d", seed, d.name, got, l.lane, len(l.events))
			}
		}
	}
	if keyed.busyMax > 4*4 || one.busyMax > 4 {
		t.Errorf("seed %d: %d and %d effects under way at a time, want at most 16 and 4", seed, keyed.busyMax, one.busyMax)
	}
}

// TestNothingIsSkippedWhateverFailsAndCrashes crashes the node at random, with a store of which any part that was not synced is lost,
// while every reactor fails now and then.
func TestNothingIsSkippedWhateverFailsAndCrashes(t *testing.T) {
	rounds := 100
	if testing.Short() {
		rounds = 20
	}
	base := seedOf(t)
	for round := range uint64(rounds) {
		seed := base + round
		random := rand.New(rand.NewPCG(seed, 1))
		s := newShop(t, seed, 2)
		one, batch, keyed := newDiary("one"), newDiary("batch"), newDiary("by-key")
		var chance atomic.Uint64
		chance.Store(seed)
		flaky := func(Event) error {
			if rand.New(rand.NewPCG(chance.Add(1), 2)).IntN(4) == 0 {
				return errInjected
			}
			return nil
		}
		for _, d := range []*diary{one, batch, keyed} {
			d.fails = flaky
		}
		fs := vfs.NewCrashableMem()
		for range 1 + random.IntN(4) {
			n := startNode(t, fs, s, Options{Reactors: threeWays(one, batch, keyed)})
			for range random.IntN(60) {
				lane := uint32(random.IntN(2))
				commit, at := s.step(lane)
				if random.IntN(4) > 0 {
					n.runner.Offer(lane, commit, at)
				}
				switch random.IntN(15) {
				case 0:
					n.reach(s)
				case 1:
					if err := n.store.Flush(); err != nil {
						t.Fatal(err)
					}
				}
			}
			fs = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
			if err := n.stop(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		n := startNode(t, fs, s, Options{Reactors: threeWays(one, batch, keyed)})
		n.reach(s)
		n.await("nothing to fail", func(status Status) bool { return status.Failing == 0 && status.Err == nil })
		if err := n.stop(); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for _, l := range s.lanes {
			checkOrder(t, seed, one, l, true)
			checkOrder(t, seed, batch, l, true)
			checkOrder(t, seed, keyed, l, false)
		}
	}
}

func TestAPositionDoesNotPassAnEventWhoseEffectHasNotSucceeded(t *testing.T) {
	seed := seedOf(t)
	for _, inFlightMax := range []int{1, 8} {
		s := newShop(t, seed, 1)
		for range 3 {
			s.commit(0, s.place(0))
		}
		bad := s.place(0)
		s.commit(0, s.place(0), bad, s.place(0)) // Commit 4.
		s.commit(0, s.place(0))
		d := newDiary("stuck")
		d.fails = func(e Event) error {
			if e.AggregateID == bad.OrderID.String() {
				return errInjected
			}
			return nil
		}
		fs := vfs.NewMem()
		n := startNode(t, fs, s, Options{
			Reactors: []Registration{{Reactor: d, Start: FromBeginning, InFlightMax: inFlightMax}}, Pause: untilWoken,
			Clock: func() time.Time { return time.Unix(5000, 0) },
		})
		n.await("the failure", func(status Status) bool { return status.Failing == 1 && status.Position == 3 })
		status := n.runner.Status()[0]
		if status.State != StateFailing || status.Lag != 2 || !errors.Is(status.Err, errInjected) || status.Event != EventID(0, 4, 1) ||
			!status.Since.Equal(time.Unix(5000, 0)) || status.Failures != 1 {
			t.Fatalf("in flight %d: got %+v", inFlightMax, status)
		}
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		store := openStore(t, fs)
		recorded, err := Recorded(store)
		if err != nil || len(recorded) != 1 || recorded[0].Position != 3 || recorded[0].Reactor != "stuck" || recorded[0].State != StateStopped {
			t.Fatalf("in flight %d: recorded %+v, %v, want position 3", inFlightMax, recorded, err)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		d.fail(nil)
		n = startNode(t, fs, s, Options{Reactors: []Registration{{Reactor: d, Start: FromBeginning, InFlightMax: inFlightMax}}})
		n.reach(s)
		checkOrder(t, seed, d, s.lanes[0], inFlightMax == 1)
	}
}

func TestAReactorThatFailsHoldsUpNoOtherAndNoOtherLane(t *testing.T) {
	s := newShop(t, seedOf(t), 2)
	broken, sound := newDiary("broken"), newDiary("sound")
	broken.fails = func(e Event) error {
		if e.Lane == 0 {
			return errInjected
		}
		return nil
	}
	for lane := range uint32(2) {
		for range 5 {
			s.commit(lane, s.place(lane))
		}
	}
	n := startNode(t, vfs.NewMem(), s, Options{
		Reactors: []Registration{{Reactor: broken, Start: FromBeginning}, {Reactor: sound, Start: FromBeginning}}, Pause: untilWoken,
	})
	n.await("all others to go on", func(status Status) bool {
		if status.Reactor == "broken" && status.Lane == 0 {
			return status.State == StateFailing && status.Position == 0
		}
		return status.Position == 5
	})
	broken.fail(nil)
	n.runner.Retry("sound")
	if got := n.runner.Status()[0]; got.Reactor != "broken" || got.Failing != 1 {
		t.Fatalf("got %+v, want that only its own name wakes it", got)
	}
	n.runner.Retry("broken")
	n.reach(s)
	n.await("the failure to be over", func(status Status) bool { return status.Err == nil && status.Since.IsZero() })
}

func TestAKeyThatFailsHoldsUpOthersOnlyOnceTheWindowIsFull(t *testing.T) {
	s := newShop(t, seedOf(t), 1)
	bad := s.place(0)
	s.commit(0, bad)
	for range 100 {
		s.commit(0, s.place(0))
	}
	d := newDiary("by-key")
	var seen atomic.Int64
	d.fails = func(e Event) error {
		if e.AggregateID == bad.OrderID.String() {
			return errInjected
		}
		seen.Add(1)
		return nil
	}
	n := startNode(t, vfs.NewMem(), s, Options{
		Reactors: []Registration{{Reactor: d, Start: FromBeginning, InFlightMax: 2}}, Pause: untilWoken,
	})
	n.await("the others to go on", func(status Status) bool { return status.Failing == 1 && seen.Load() == 100 })
	// What is done does not take up room; what waits behind the failing one does.
	for range 3 * windowPerFlight {
		s.commit(0, domain.OrderCancelled{OrderID: bad.OrderID, UserID: bad.UserID, Reason: "x", By: "y"})
	}
	s.commit(0, s.place(0))
	d.fail(func(Event) error { return nil })
	n.runner.Retry("by-key")
	n.reach(s)
	checkOrder(t, 0, d, s.lanes[0], false)
}

func TestAReactorThatIsNewOnAnOldLogStartsWhereItIsTold(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 1)
	for range 10 {
		s.commit(0, s.place(0))
	}
	sixth := s.lanes[0].events[5]
	at := s.now.Add(-4 * time.Millisecond) // Log time of commit 6.
	for name, test := range map[string]struct {
		start Start
		want  int // events of the ten
	}{
		"from the beginning": {FromBeginning, 10},
		"from the head":      {FromHead, 0},
		"since a time":       {Since(at), 5},
		"since before":       {Since(at.Add(-time.Hour)), 10},
		"since after":        {Since(at.Add(time.Hour)), 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDiary("late")
			n := startNode(t, vfs.NewMem(), s, Options{Reactors: []Registration{{Reactor: d, Start: test.start}}})
			n.reach(s)
			firsts := d.firsts(0)
			if len(firsts) != test.want {
				t.Fatalf("seed %d: reacted to %d events, want %d", seed, len(firsts), test.want)
			}
			if test.want == 5 && firsts[0].ID != sixth.ID {
				t.Fatalf("seed %d: began with %s, want %s", seed, firsts[0].ID, sixth.ID)
			}
		})
	}
}

func TestTheHeadThatAReactorStartedAtOutlivesACrash(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 1)
	s.commit(0, s.place(0))
	d := newDiary("from-head")
	d.fails = func(Event) error { return errInjected }
	fs := vfs.NewCrashableMem()
	registrations := []Registration{{Reactor: d, Start: FromHead}}
	n := startNode(t, fs, s, Options{Reactors: registrations, Pause: untilWoken})
	n.await("the start", func(status Status) bool { return status.Position == 1 })
	s.commit(0, s.place(0)) // It is reacted to after the crash, and is not before the start then.
	n.await("the failure", func(status Status) bool { return status.Failing == 1 })
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	d.fail(nil)
	s.commit(0, s.place(0))
	n = startNode(t, crashed, s, Options{Reactors: registrations})
	n.reach(s)
	if firsts := d.firsts(0); len(firsts) != 2 || firsts[0].ID != EventID(0, 2, 0) {
		t.Fatalf("seed %d: reacted to %+v, want commits 2 and 3", seed, firsts)
	}
}

func TestAReactorIsGivenOnlyWhatItWants(t *testing.T) {
	s := newShop(t, seedOf(t), 1)
	placed := s.place(0)
	s.commit(0, placed, domain.OrderCancelled{OrderID: placed.OrderID, UserID: placed.UserID, By: "x"})
	s.commit(0, s.place(0))
	d := newDiary("cancelled")
	n := startNode(t, vfs.NewMem(), s, Options{Reactors: []Registration{{
		Reactor: d, Start: FromBeginning, Wants: func(fact domain.Event) bool { _, ok := fact.(domain.OrderCancelled); return ok },
	}}})
	n.reach(s)
	if firsts := d.firsts(0); len(firsts) != 1 || firsts[0].ID != EventID(0, 1, 1) {
		t.Fatalf("got %+v, want the one cancellation", firsts)
	}
}

func TestAReactorComesAndGoesWhileTheOthersRun(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 2)
	stays := newDiary("stays")
	n := startNode(t, vfs.NewMem(), s, Options{Reactors: []Registration{{Reactor: stays, Start: FromBeginning}}})
	for range 10 {
		s.step(0)
		s.step(1)
	}
	comes := newDiary("comes")
	for range 2 { // A reactor that comes again begins anew.
		if err := n.runner.Add(Registration{Reactor: comes, Start: FromBeginning}); err != nil {
			t.Fatal(err)
		}
		if err := n.runner.Add(Registration{Reactor: comes, Start: FromBeginning}); err == nil {
			t.Fatal("two reactors of one name were taken")
		}
		n.reach(s)
		if err := n.runner.Remove("comes"); err != nil {
			t.Fatal(err)
		}
	}
	if statuses := n.runner.Status(); len(statuses) != 2 {
		t.Fatalf("got %+v, want one reactor on two lanes", statuses)
	}
	recorded, err := Recorded(n.store)
	if err != nil || len(recorded) != 2 || recorded[0].Reactor != "stays" {
		t.Fatalf("got %+v, %v, want the positions of the one that stays", recorded, err)
	}
	for _, l := range s.lanes {
		checkOrder(t, seed, comes, l, true)
		checkOrder(t, seed, stays, l, true)
		if got := len(comes.effects[l.lane]); got != 2*len(l.events) {
			t.Errorf("seed %d: %d effects on lane %d, want everything twice", seed, got, l.lane)
		}
	}
}

func TestABadRegistrationIsRefused(t *testing.T) {
	for name, registration := range map[string]Registration{
		"no start":  {Reactor: newDiary("fine")},
		"bad name":  {Reactor: newDiary("No Spaces"), Start: FromBeginning},
		"no name":   {Reactor: newDiary(""), Start: FromBeginning},
		"long name": {Reactor: newDiary(strings.Repeat("x", nameLenMax+1)), Start: FromBeginning},
	} {
		s := newShop(t, 1, 1)
		if _, err := New(Options{Topology: s.topology(), Log: s.log, Reactors: []Registration{registration}}); err == nil {
			t.Errorf("%s: it was taken", name)
		}
	}
}

// A damagedLog passes over a commit.
type damagedLog struct{ eventstore.Log }

type damagedCursor struct{ eventstore.Cursor }

func (l damagedLog) Follow(ctx context.Context, number uint64) (eventstore.Cursor, error) {
	cursor, err := l.Log.Follow(ctx, number)
	return damagedCursor{cursor}, err
}

func (c damagedCursor) Next(ctx context.Context) (eventstore.Record, error) {
	record, err := c.Cursor.Next(ctx)
	if err == nil && record.Number == 3 {
		return c.Cursor.Next(ctx)
	}
	return record, err
}

func TestADamagedLogStopsTheRunnerAndNothingAfterItIsReactedTo(t *testing.T) {
	for _, inFlightMax := range []int{1, 4} {
		s := newShop(t, seedOf(t), 1)
		for range 5 {
			s.commit(0, s.place(0))
		}
		d := newDiary("reader")
		n := startNode(t, vfs.NewMem(), s, Options{
			Reactors: []Registration{{Reactor: d, Start: FromBeginning, InFlightMax: inFlightMax}},
			Log:      func(lane uint32) eventstore.Log { return damagedLog{s.log(lane)} },
		})
		n.running.Wait()
		err := n.stop()
		var chain *eventstore.ChainError
		if !errors.As(err, &chain) || chain.Number != 3 || !strings.Contains(err.Error(), "reactor reader") {
			t.Fatalf("in flight %d: got %v, want a ChainError at commit 3 that names the reactor", inFlightMax, err)
		}
		if firsts := d.firsts(0); len(firsts) > 2 {
			t.Fatalf("in flight %d: reacted to %+v", inFlightMax, firsts)
		}
	}
}

// A lostLog cannot be reached until it is found.
type lostLog struct {
	eventstore.Log
	found *atomic.Bool
}

func (l lostLog) Head(ctx context.Context) (uint64, error) {
	if !l.found.Load() {
		return 0, errInjected
	}
	return l.Log.Head(ctx)
}

func TestALogThatCannotBeReachedAtTheStartIsTriedAgain(t *testing.T) {
	s := newShop(t, seedOf(t), 1)
	s.commit(0, s.place(0))
	var found atomic.Bool
	n := startNode(t, vfs.NewMem(), s, Options{
		Reactors: []Registration{{Reactor: newDiary("new"), Start: FromHead}},
		Log:      func(lane uint32) eventstore.Log { return lostLog{s.log(lane), &found} },
	})
	n.await("the failure", func(status Status) bool {
		return status.State == StateFailing && errors.Is(status.Err, errInjected) && status.Event == "start"
	})
	found.Store(true)
	n.reach(s)
	n.await("the failure to be over", func(status Status) bool { return status.Failing == 0 && status.State == StateFresh })
}

func TestStatusMayBeReadAtAnyTime(t *testing.T) {
	s := newShop(t, seedOf(t), 2)
	n := startNode(t, vfs.NewMem(), s, Options{Reactors: threeWays(newDiary("one"), newDiary("batch"), newDiary("by-key"))})
	var reading sync.WaitGroup
	stop := make(chan struct{})
	reading.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				for _, status := range n.runner.Status() {
					if status.Position > status.Head || status.Lag != status.Head-status.Position {
						t.Errorf("got %+v", status)
					}
				}
			}
		}
	})
	for range 200 {
		commit, at := s.step(0)
		n.runner.Offer(0, commit, at)
	}
	close(stop)
	reading.Wait()
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	for _, status := range n.runner.Status() {
		if status.State != StateStopped {
			t.Errorf("after it stopped: got %+v", status)
		}
	}
}
