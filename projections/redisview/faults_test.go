package redisview

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
)

// Whatever happens to Redis, what it answers is what the views say (I6). Each test ends with Redis serving again: a guard that refuses
// everything for ever would pass the others.

func (n *node) wantServing() {
	n.w.tb.Helper()
	n.warm()
	if got, want := n.check(), n.all(); got != want {
		n.w.tb.Fatalf("seed %d: found %+v in redis, want %+v (%+v)", n.w.seed, got, want, n.mirror.Stats())
	}
}

func TestAbsentRedisAnswersNothingAndHealsByItself(t *testing.T) {
	w := newWorld(t, 2)
	proxied := startProxy(t, "127.0.0.1:1") // Nobody listens there.
	var clock atomic.Int64
	n := startNode(w, proxied.addr, func(o *Options) { o.Now = func() time.Time { return time.Unix(0, clock.Load()) } })
	stop := n.run()
	w.steps(100)
	n.reach()
	if got := n.check(); got.total() != 0 {
		t.Fatalf("seed %d: found %+v without a redis", w.seed, got)
	}
	if stats := n.mirror.Stats(); stats.KeptBack == 0 || stats.Failed != breakerFailuresMax {
		t.Fatalf("%+v: want %d failures, and then nobody waits for a redis that is not there", stats, breakerFailuresMax)
	}
	if _, err := n.mirror.Check(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("Check says %v, want %v", err, ErrUnreachable)
	}
	s := startServer(t)
	proxied.point(s.addr)
	clock.Add(int64(breakerOpenMax))
	// What waited is written by itself, and read again by itself.
	eventually(t, "what waited is in redis", func() bool { return !n.waits() && n.mirror.Stats().Written > 0 })
	stop()
	n.wantServing()
}

func TestRedisThatIsKilledUnderWritesNeverAnswersWrongly(t *testing.T) {
	w := newWorld(t, 2)
	s := startServer(t)
	proxied := startProxy(t, s.addr)
	var clock atomic.Int64
	n := startNode(w, proxied.addr, func(o *Options) { o.Now = func() time.Time { return time.Unix(0, clock.Load()) } })
	stop := n.run()
	for range 3 {
		w.steps(50)
		n.reach()
		n.check()
		eventually(t, "something is written", func() bool { return n.mirror.Stats().Written > 0 })
		s.kill()
		w.steps(50)
		n.reach()
		if got := n.check(); got.total() != 0 {
			t.Fatalf("seed %d: found %+v in a redis that was killed", w.seed, got)
		}
		s = startServer(t)
		proxied.point(s.addr)
		clock.Add(int64(breakerOpenMax))
		n.reach()
		eventually(t, "what waited is written", func() bool { return !n.waits() })
		n.check()
	}
	stop()
	n.wantServing()
}

func TestRedisThatIsFlushedAnswersNothingUntilItIsFilledAgain(t *testing.T) {
	w := newWorld(t, 2)
	s := startServer(t)
	n := startNode(w, s.addr, nil)
	w.steps(100)
	n.wantServing()
	s.do("FLUSHALL")
	s.do("SCRIPT", "FLUSH") // The script is gone too: writes send it again.
	if got := n.check(); got.total() != 0 {
		t.Fatalf("seed %d: found %+v in a redis that was flushed", w.seed, got)
	}
	w.steps(20)
	n.reach()
	n.publish()
	n.check()
	n.wantServing()
}

func TestSlowRedisIsGivenUpOnInTime(t *testing.T) {
	w := newWorld(t, 1)
	s := startServer(t)
	proxied := startProxy(t, s.addr)
	var clock atomic.Int64
	n := startNode(w, proxied.addr, func(o *Options) {
		o.Now = func() time.Time { return time.Unix(0, clock.Load()) }
	})
	w.steps(50)
	n.wantServing()
	n.mirror.options.ReadTimeout, n.mirror.options.WriteTimeout = 10*time.Millisecond, 10*time.Millisecond
	resume := proxied.stall()
	w.steps(20)
	n.reach()
	batch, err := n.mirror.queue.take(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	writes, err := n.mirror.read(batch)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.mirror.send(t.Context(), writes); err == nil {
		t.Fatal("a redis that stalls took writes")
	}
	if got := n.check(); got.total() != 0 {
		t.Fatalf("seed %d: found %+v in a redis that does not answer", w.seed, got)
	}
	if stats := n.mirror.Stats(); stats.Failed != breakerFailuresMax || stats.KeptBack == 0 {
		t.Fatalf("%+v: want %d reads to wait and the others not to", stats, breakerFailuresMax)
	}
	// Now the late answers arrive, and the late writes: none of it is mistaken for anything newer.
	w.steps(20)
	n.reach()
	n.mirror.options.ReadTimeout, n.mirror.options.WriteTimeout = patience, patience
	resume()
	clock.Add(int64(breakerOpenMax))
	n.check()
	n.publish()
	n.check()
	n.wantServing()
}

func TestRedisThatIsRestoredFromAnOldDumpIsNotBelieved(t *testing.T) {
	w := newWorld(t, 2)
	s := startServer(t, "--enable-debug-command", "local")
	n := startNode(w, s.addr, nil)
	w.steps(150)
	n.wantServing()
	s.do("SAVE")
	// Of two lanes, each changes every key that is there: nothing of the dump is true any more.
	for _, id := range slices.Clone(w.orders) {
		w.cancel(id)
	}
	w.steps(150)
	n.wantServing()
	s.do("DEBUG", "RELOAD", "NOSAVE")
	if size, ok := s.do("DBSIZE").(int64); !ok || size < 50 {
		t.Fatalf("the dump holds %d keys, want 50 at least: the test shows nothing", size)
	}
	refused := n.mirror.Stats().Refused
	found := n.check()
	if n.mirror.Stats().Refused == refused {
		t.Fatalf("seed %d: nothing of an old dump was refused (%+v found)", w.seed, found)
	}
	if found.orders == len(w.orders) {
		t.Fatalf("seed %d: every order was found in an old dump", w.seed)
	}
	n.wantServing()
}

func TestRedisThatEvictsOnlyForgets(t *testing.T) {
	w := newWorld(t, 1)
	s := startServer(t, "--maxmemory-policy", "allkeys-lru")
	n := startNode(w, s.addr, nil)
	const orders = 4000
	for range orders {
		w.place(w.users[w.random.IntN(len(w.users))])
	}
	n.reach()
	n.publish()
	// What it uses also holds buffers, which it may free first: the limit goes down until keys go.
	const evictedMin, step = 100, 64 << 10
	for limit := s.info("memory", "used_memory"); s.info("stats", "evicted_keys") < evictedMin; limit -= step {
		if limit < step {
			t.Fatal("nothing is evicted: the test shows nothing")
		}
		s.do("CONFIG", "SET", "maxmemory", limit)
	}
	w.steps(200)
	n.reach()
	n.publish()
	found := n.check()
	if found.orders == 0 || found.orders == len(w.orders) {
		t.Fatalf("seed %d: found %d of %d orders, want some", w.seed, found.orders, len(w.orders))
	}
}

func TestRedisWithoutRoomTakesNoWritesAndStaysTrue(t *testing.T) {
	w := newWorld(t, 1)
	s := startServer(t, "--maxmemory", "100mb")
	n := startNode(w, s.addr, nil)
	w.steps(50)
	n.wantServing()
	s.do("CONFIG", "SET", "maxmemory", "1")
	for _, id := range slices.Clone(w.orders) {
		w.note(id)
	}
	n.reach()
	n.publish()
	if n.mirror.Stats().Dropped == 0 {
		t.Fatalf("%+v: want writes that found no room", n.mirror.Stats())
	}
	if got := n.check(); got.orders != 0 {
		t.Fatalf("seed %d: found %d orders, all of which have changed", w.seed, got.orders)
	}
	user := w.placed[w.orders[0]].UserID
	w.happen(0, domain.UserErased{UserID: user, Key: 1, By: "operator"})
	n.reach()
	n.publish()
	key := n.mirror.key(orderSubject(0, w.orders[0]), 0)
	if stored, err := n.mirror.fetch(t.Context(), []string{key}, patience); err != nil || stored[0] != nil {
		t.Fatalf("seed %d: an erased user's order is still in a full redis: %d bytes (%v)", w.seed, len(stored[0]), err)
	}
	s.do("CONFIG", "SET", "maxmemory", "100mb")
	n.wantServing()
}

// TestEntriesOfAnotherHistoryAreNotBelieved has two logs that are the same up to a commit and differ from there, as a log is that
// was restored without its tail: commit numbers say nothing about which of them an entry is of.
func TestEntriesOfAnotherHistoryAreNotBelieved(t *testing.T) {
	s := startServer(t)
	lost := newWorld(t, 1)
	kept := newSeededWorld(t, lost.seed, 1)
	for _, w := range []*world{lost, kept} {
		w.steps(30)
	}
	ids := slices.Clone(lost.orders)
	if lost.last[0] != kept.last[0] {
		t.Fatal("the two logs differ from the beginning")
	}
	for _, id := range ids {
		lost.cancel(id)
	}
	one := startNode(lost, s.addr, nil)
	one.wantServing() // Redis has the lost history as of its end.

	two := startNode(kept, s.addr, nil)
	two.reach()
	for kept.last[0].Number <= lost.last[0].Number {
		kept.note(ids[0])
	}
	two.reach()
	refused := two.mirror.Stats().Refused
	if got := two.check(); got.orders != 0 || two.mirror.Stats().Refused == refused {
		t.Fatalf("seed %d: found %+v in a redis that another history filled (%+v)", lost.seed, got, two.mirror.Stats())
	}
	two.wantServing()
}

// TestNodeThatIsBehindNeverSpoilsWhatANewerOneWrote has two nodes write in turn, one of which does not see what happens last.
func TestNodeThatIsBehindNeverSpoilsWhatANewerOneWrote(t *testing.T) {
	s := startServer(t)
	w := newWorld(t, 2)
	ahead, behind := startNode(w, s.addr, nil), startNode(w, s.addr, nil)
	w.steps(60)
	ahead.reach()
	behind.reach()
	batch, err := behind.mirror.queue.take(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	late, err := behind.mirror.read(batch)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range slices.Clone(w.orders) {
		w.cancel(id)
	}
	ahead.wantServing()
	if err := behind.mirror.send(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	if got, want := ahead.check(), ahead.all(); got != want {
		t.Fatalf("seed %d: found %+v, want %+v: a late write spoilt the others", w.seed, got, want)
	}
	behind.reach()
	if got, want := behind.check(), behind.all(); got != want {
		t.Fatalf("seed %d: the other node found %+v, want %+v", w.seed, got, want)
	}
}

func TestNewNodeRefusesWhatIsFromBeforeItBegan(t *testing.T) {
	s := startServer(t)
	w := newWorld(t, 1)
	first := startNode(w, s.addr, nil)
	w.steps(40)
	first.wantServing()
	at := w.last[0]
	// The runner of a node that starts again has the views, and no idea of what changed when.
	again, err := New(Options{Addresses: []string{s.addr}, Store: first.store, Topology: w.topology()})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	id := w.orders[0]
	if _, _, found, err := again.OrderRecords().Get(t.Context(), id.String(), 0); found || err != nil {
		t.Fatalf("seed %d: found = %t, %v before the runners opened", w.seed, found, err)
	}
	at.Number++
	at.Hash[0]++
	again.Opened(0, at)
	if _, _, found, err := again.OrderRecords().Get(t.Context(), id.String(), 0); found || err != nil {
		t.Fatalf("seed %d: found = %t, %v for an entry of before it began", w.seed, found, err)
	}
}

func TestAnotherGenerationOfAViewRefusesWhatTheOneBeforeItWrote(t *testing.T) {
	s := startServer(t)
	w := newWorld(t, 1)
	n := startNode(w, s.addr, nil)
	w.steps(40)
	n.wantServing()
	n.mirror.Forgetting(0, w.last[0].Number)
	for _, id := range w.orders {
		if _, _, found, err := n.mirror.OrderRecords().Get(t.Context(), id.String(), 0); found || err != nil {
			t.Fatalf("seed %d: order %s: found = %t, %v after the swap", w.seed, id, found, err)
		}
	}
	w.steps(40)
	n.wantServing()
}

func TestGuardForgetsOldCommitsAndNeverTakesOneForAnother(t *testing.T) {
	g := newGuard(1)
	if _, known := g.hashOf(0, 0); known {
		t.Fatal("a guard that is not open knows a commit")
	}
	w := newWorld(t, 1)
	at := w.last[0]
	at.Number = 5
	hash := func(number uint64) uint64 { return number*2654435761 + 1 }
	set := func(number uint64) {
		at.Number = number
		for i := range 8 {
			at.Hash[i] = byte(hash(number) >> (56 - 8*i))
		}
	}
	set(5)
	g.open(0, at)
	last := uint64(historyCommits + 1000)
	for number := uint64(6); number <= last; number++ {
		set(number)
		g.pass(0, at)
	}
	for _, c := range []struct {
		number uint64
		known  bool
	}{{0, false}, {4, false}, {5, false}, {last - historyCommits, false}, {last - historyCommits + 1, true}, {last, true}, {last + 1, false}} {
		got, known := g.hashOf(0, c.number)
		if known != c.known || known && got != hash(c.number) {
			t.Errorf("commit %d of %d: known = %t, hash %x, want %t, %x", c.number, last, known, got, c.known, hash(c.number))
		}
	}
}

func TestCheckSaysWhatIsWrongWithTheServer(t *testing.T) {
	w := newWorld(t, 1)
	for _, c := range []struct {
		name     string
		settings []string
		set      func(*Options)
		advice   string
		problem  string
	}{
		{name: "memory and a policy", settings: []string{"--maxmemory", "10mb", "--maxmemory-policy", "allkeys-lru"}},
		{name: "no limit on memory", advice: "set maxmemory"},
		{name: "no eviction", settings: []string{"--maxmemory", "10mb"}, problem: "noeviction"},
		{name: "a wrong password", settings: []string{"--requirepass", "secret"}, set: func(o *Options) { o.Password = "guess" }, problem: "user or password"},
		{name: "no password", settings: []string{"--requirepass", "secret"}, problem: "user or password"},
		{name: "no rights", settings: []string{"--user", "weir", "on", ">secret", "~weir:*", "+get"}, set: func(o *Options) { o.Username, o.Password = "weir", "secret" }, problem: "may not"},
		{name: "no cluster", set: func(o *Options) { o.Cluster = true }, problem: "cluster"},
		{name: "a cluster", settings: []string{"--cluster-enabled", "yes"}, problem: "cluster"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := startNode(w, startServer(t, c.settings...).addr, c.set)
			advice, err := n.mirror.Check(t.Context())
			var settings *SettingsError
			switch {
			case c.problem != "" && (!errors.As(err, &settings) || !strings.Contains(err.Error(), c.problem)):
				t.Errorf("got %v, want a SettingsError about %q", err, c.problem)
			case c.problem == "" && err != nil:
				t.Errorf("got %v", err)
			case strings.Contains(fmt.Sprint(advice), c.advice) != true || (c.advice == "") != (len(advice) == 0):
				t.Errorf("advice %q, want %q", advice, c.advice)
			}
		})
	}
}
