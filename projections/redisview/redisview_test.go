package redisview

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections/readpath"
)

// Orders in Redis are a level of the read path.
var _ readpath.Level2 = OrderRecords{}

func TestEveryModelIsInRedisAsTheViewsHaveIt(t *testing.T) {
	for _, lanes := range []uint32{1, 4} {
		t.Run(fmt.Sprintf("%d lanes", lanes), func(t *testing.T) {
			w := newWorld(t, lanes)
			n := startNode(w, startServer(t).addr, nil)
			for round := range 5 {
				w.steps(40)
				n.reach()
				n.publish()
				// What changed was written, so it needs no reader to come first: the newest order is there.
				newest := w.orders[len(w.orders)-1]
				if _, _, found, err := n.mirror.OrderRecords().Get(t.Context(), newest.String(), 1); !found || err != nil {
					t.Fatalf("seed %d, round %d: the newest order is not in redis (%v)", w.seed, round, err)
				}
				n.warm()
				if got, want := n.check(), n.all(); got != want {
					t.Fatalf("seed %d, round %d: found %+v in redis, want %+v (%+v)", w.seed, round, got, want, n.mirror.Stats())
				}
			}
		})
	}
}

func TestChangeMakesWhatRedisHasUnusableBeforeItIsWritten(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, nil)
	id := w.place(w.users[0])
	n.warm()
	records := n.mirror.OrderRecords()
	old, _, found, err := records.Get(t.Context(), id.String(), 0)
	if !found || err != nil {
		t.Fatalf("seed %d: the order is not in redis (%v)", w.seed, err)
	}
	w.note(id)
	n.reach()
	if _, _, found, err := records.Get(t.Context(), id.String(), 0); found || err != nil {
		t.Fatalf("seed %d: an order that has changed was answered from redis (%v)", w.seed, err)
	}
	n.publish()
	now, position, found, err := records.Get(t.Context(), id.String(), w.last[0].Number)
	if !found || err != nil || position != w.last[0].Number || len(now) <= len(old) || !bytes.HasPrefix(now, old) {
		t.Fatalf("seed %d: after it was published: %d bytes up to %d (%t, %v), want more than %d up to %d",
			w.seed, len(now), position, found, err, len(old), w.last[0].Number)
	}
	if _, _, found, _ := records.Get(t.Context(), id.String(), w.last[0].Number+1); found {
		t.Fatalf("seed %d: an order was answered for a commit that is still to come", w.seed)
	}
}

func TestEntryServesWhileOtherKeysChange(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, nil)
	first := w.place(w.users[0])
	n.warm()
	second := w.place(w.users[1])
	n.reach()
	if n.mirror.guard.slot(orderSubject(0, first)) == n.mirror.guard.slot(orderSubject(0, second)) {
		return // One in a million: they share a slot, and the first is rightly refused.
	}
	_, position, found, err := n.mirror.OrderRecords().Get(t.Context(), first.String(), w.last[0].Number)
	if !found || err != nil || position != w.last[0].Number {
		t.Fatalf("seed %d: up to %d (%t, %v), want up to %d: nothing has changed it", w.seed, position, found, err, w.last[0].Number)
	}
}

func TestSetOffersAnOrderAndOneThatIsTooOldIsNotTaken(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, nil)
	id := w.place(w.users[0])
	n.reach()
	records, ctx := n.mirror.OrderRecords(), t.Context()
	snapshot := n.store.Snapshot(1)
	record, err := snapshot.OrderRecord(0, id)
	snapshot.Close()
	if err != nil {
		t.Fatal(err)
	}
	placedAt := w.last[0].Number
	if err := records.Set(ctx, id.String(), record, placedAt); err != nil {
		t.Fatal(err)
	}
	if got, _, found, err := records.Get(ctx, id.String(), 0); !found || err != nil || !bytes.Equal(got, record) {
		t.Fatalf("seed %d: got %d bytes (%t, %v), want %d", w.seed, len(got), found, err, len(record))
	}
	w.note(id)
	n.reach()
	n.publish()
	// A slow reader comes with what it read before the note.
	if err := records.Set(ctx, id.String(), record, placedAt); err != nil {
		t.Fatal(err)
	}
	if got, _, found, err := records.Get(ctx, id.String(), 0); !found || err != nil || len(got) <= len(record) {
		t.Fatalf("seed %d: got %d bytes (%t, %v): the older record came back", w.seed, len(got), found, err)
	}
	for _, key := range []string{"", "nonsense", "01J00000000000000000000000"} {
		if _, _, found, err := records.Get(ctx, key, 0); found || err != nil {
			t.Errorf("key %q: found = %t, %v, want neither", key, found, err)
		}
		if err := records.Set(ctx, key, record, placedAt); err == nil {
			t.Errorf("an order was kept under the key %q", key)
		}
	}
	// A commit that nobody has seen yet cannot be vouched for.
	if err := records.Set(ctx, id.String(), record, w.last[0].Number+1); err != nil || n.mirror.Stats().Dropped == 0 {
		t.Errorf("a record of a commit to come: %v, %+v", err, n.mirror.Stats())
	}
}

func TestOlderWriteNeverOverwritesANewerOne(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, nil)
	const key, writesCount, rounds = "weir:0:order:{x}", 60, 20
	for round := range rounds {
		var numbers []uint64
		for range writesCount {
			numbers = append(numbers, 1+w.random.Uint64N(positionMax)>>w.random.IntN(53))
		}
		highest, newest := uint64(0), slices.Max(numbers)
		for len(numbers) > 0 {
			size := 1 + w.random.IntN(min(len(numbers), 7))
			var writes []write
			for _, number := range numbers[:size] {
				writes = append(writes, write{key, appendEntry(nil, key, number, number, stateValue, fmt.Append(nil, number))})
				highest = max(highest, number)
			}
			numbers = numbers[size:]
			if err := n.mirror.send(t.Context(), writes); err != nil {
				t.Fatal(err)
			}
			stored, err := n.mirror.fetch(t.Context(), []string{key}, patience)
			if err != nil {
				t.Fatal(err)
			}
			if e, ok := readEntry(key, stored[0]); !ok || e.number != highest || string(e.value) != fmt.Sprint(highest) {
				t.Fatalf("seed %d, round %d: redis has %+v (%t), want number %d", w.seed, round, e, ok, highest)
			}
		}
		if highest != newest {
			t.Fatalf("the test wrote up to %d of %d", highest, newest)
		}
		if err := n.mirror.client.Del(t.Context(), key).Err(); err != nil {
			t.Fatal(err)
		}
	}
	stats := n.mirror.Stats()
	if stats.Older == 0 || stats.Written == 0 || stats.Older+stats.Written != writesCount*rounds {
		t.Fatalf("seed %d: %+v, want some writes older, some not, %d together", w.seed, stats, writesCount*rounds)
	}
}

func TestChangesOfOneKeyThatWaitAreOneWrite(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, nil)
	id := w.place(w.users[0])
	n.reach()
	n.publish()
	before := n.mirror.Stats().Written
	const notes = 50
	for range notes {
		w.note(id)
	}
	n.reach()
	n.publish()
	if got := n.mirror.Stats().Written - before; got != 1 {
		t.Fatalf("seed %d: %d changes of an order were %d writes, want 1", w.seed, notes, got)
	}
	if _, position, found, err := n.mirror.OrderRecords().Get(t.Context(), id.String(), w.last[0].Number); !found || err != nil {
		t.Fatalf("seed %d: not there as of the last change: up to %d (%v)", w.seed, position, err)
	}
}

func TestQueueIsBoundedAndErasuresHaveTheirOwnRoom(t *testing.T) {
	var q queue
	q.init()
	var batch []subject
	for i := range queueMax + 10 {
		batch = append(batch, subject{kind: kindStock, text: fmt.Sprint(i)})
	}
	if dropped := q.again(batch); dropped != 10 {
		t.Fatalf("%d keys did not fit, want 10", dropped)
	}
	if dropped := q.again(batch[:queueMax]); dropped != 0 {
		t.Fatalf("%d keys that wait already were dropped", dropped)
	}
	if dropped := q.again([]subject{{kind: kindErased, text: "alice"}}); dropped != 0 {
		t.Fatal("an erasure was dropped for other keys")
	}
	taken, err := q.take(t.Context(), nil)
	if err != nil || len(taken) != batchMax || taken[0].kind != kindErased {
		t.Fatalf("took %d (%v), first %+v: want %d with the erasure first", len(taken), err, taken[0], batchMax)
	}
}

func TestListOfAUserHoldsTheLatestAndNoMore(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, nil)
	user := w.users[0]
	var placed []domain.OrderID
	for range RecentOrdersMax + 7 {
		placed = append(placed, w.place(user))
	}
	n.reach()
	n.publish()
	got, _, found, err := n.mirror.RecentOrders(t.Context(), user, w.last[0].Number)
	if !found || err != nil || len(got) != RecentOrdersMax || got[0].ID != placed[len(placed)-1] || got[RecentOrdersMax-1].ID != placed[7] {
		t.Fatalf("seed %d: %d orders (%t, %v), want the latest %d", w.seed, len(got), found, err, RecentOrdersMax)
	}
}

func TestErasedUserVanishesFromRedis(t *testing.T) {
	s := startServer(t)
	w := newWorld(t, 1)
	n := startNode(w, s.addr, nil)
	user := w.users[0]
	mine, other := w.place(user), w.place(w.users[1])
	n.warm()
	stale, err := n.mirror.read([]subject{orderSubject(0, mine)}) // A slow write of before the erasure.
	if err != nil {
		t.Fatal(err)
	}
	w.happen(0, domain.UserErased{UserID: user, Key: 1, By: "operator"})
	n.reach()
	n.publish()
	if err := n.mirror.send(t.Context(), stale); err != nil {
		t.Fatal(err)
	}
	for _, subjectOf := range []subject{orderSubject(0, mine), {kind: kindRecent, text: user}} {
		key := n.mirror.key(subjectOf, 0)
		stored, err := n.mirror.fetch(t.Context(), []string{key}, patience)
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := readEntry(key, stored[0]); !ok || !e.erased || len(e.value) != 0 {
			t.Errorf("seed %d: redis still has %d bytes at %s (erased = %t)", w.seed, len(stored[0]), key, e.erased)
		}
		if e := stored[0]; bytes.Contains(e, []byte(user)) {
			t.Errorf("seed %d: the user's id is still in %s", w.seed, key)
		}
	}
	if _, _, found, _ := n.mirror.OrderRecords().Get(t.Context(), mine.String(), 0); found {
		t.Errorf("seed %d: an erased user's order was answered from redis", w.seed)
	}
	if _, _, found, err := n.mirror.OrderRecords().Get(t.Context(), other.String(), 0); !found || err != nil {
		t.Errorf("seed %d: another user's order is gone too (%v)", w.seed, err)
	}
}

func TestEntriesExpireAtDifferentTimes(t *testing.T) {
	s := startServer(t)
	w := newWorld(t, 1)
	n := startNode(w, s.addr, func(o *Options) { o.TTL = time.Hour })
	for range 200 {
		w.place(w.users[w.random.IntN(len(w.users))])
	}
	n.reach()
	n.publish()
	client := s.client()
	distinct := make(map[time.Duration]bool)
	keys, err := client.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) < 200 {
		t.Fatalf("%d keys (%v), want at least 200", len(keys), err)
	}
	for _, key := range keys {
		left, err := client.PTTL(t.Context(), key).Result()
		if err != nil || left <= 0 || left > time.Hour {
			t.Fatalf("%s is kept for %s (%v), want up to 1h", key, left, err)
		}
		distinct[left.Truncate(time.Second)] = true
	}
	if len(distinct) < 100 {
		t.Fatalf("seed %d: %d keys expire within %d different seconds", w.seed, len(keys), len(distinct))
	}
}

func TestValueThatIsTooLargeIsNotKept(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, startServer(t).addr, func(o *Options) { o.ValueBytesMax = 256 })
	id := w.place(w.users[0])
	n.reach()
	n.publish()
	if _, _, found, err := n.mirror.OrderRecords().Get(t.Context(), id.String(), 0); !found || err != nil {
		t.Fatalf("seed %d: a small order is not in redis (%v)", w.seed, err)
	}
	for range 10 {
		w.note(id)
	}
	n.reach()
	n.publish()
	if _, _, found, err := n.mirror.OrderRecords().Get(t.Context(), id.String(), 0); found || err != nil {
		t.Fatalf("seed %d: found = %t, %v for an order of more than 256 bytes", w.seed, found, err)
	}
	n.check()
}

func TestDamagedAndForeignEntriesAreRefused(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	const key = "weir:0:order:{x}"
	good := appendEntry(nil, key, 7, 8, stateValue, []byte("value"))
	if e, ok := readEntry(key, good); !ok || e.number != 7 || e.hash != 8 || string(e.value) != "value" || e.erased {
		t.Fatalf("seed %d: read back %+v, %t", seed, e, ok)
	}
	if _, ok := readEntry("weir:0:order:{y}", good); ok {
		t.Error("another key's entry was read")
	}
	for range 200 {
		bad := bytes.Clone(good)
		if random.IntN(2) == 0 {
			bad = bad[:random.IntN(len(bad))]
		} else {
			bad[random.IntN(len(bad))] ^= 1 << random.IntN(8)
		}
		if e, ok := readEntry(key, bad); ok {
			t.Fatalf("seed %d: read %+v off %q", seed, e, bad)
		}
	}
}

func TestOptionsThatMakeNoSenseAreRefused(t *testing.T) {
	w := newWorld(t, 1)
	n := startNode(w, "127.0.0.1:1", nil)
	for name, set := range map[string]func(*Options){
		"no address":              func(o *Options) { o.Addresses = nil },
		"no port":                 func(o *Options) { o.Addresses = []string{"redis.example"} },
		"a user and no password":  func(o *Options) { o.Username = "weir" },
		"a prefix with a brace":   func(o *Options) { o.Prefix = "a{b" },
		"a short life":            func(o *Options) { o.TTL = time.Millisecond },
		"a negative limit":        func(o *Options) { o.PoolSize = -1 },
		"too many copies":         func(o *Options) { o.StockCopies = stockCopiesMax + 1 },
		"no store":                func(o *Options) { o.Store = nil },
		"lanes that are no power": func(o *Options) { o.Topology.Lanes = 3 },
	} {
		options := Options{Addresses: []string{"127.0.0.1:1"}, Store: n.store, Topology: w.topology()}
		set(&options)
		if m, err := New(options); err == nil {
			m.Close()
			t.Errorf("%s was taken", name)
		}
	}
}

func TestBreakerOpensProbesAndCloses(t *testing.T) {
	now := time.Unix(0, 0)
	b := breaker{now: func() time.Time { return now }}
	for i := range breakerFailuresMax {
		if !b.admit() {
			t.Fatalf("open after %d failures", i)
		}
		b.settle(true)
	}
	for _, openFor := range []time.Duration{breakerOpenMin, 2 * breakerOpenMin, 4 * breakerOpenMin} {
		if b.admit() {
			t.Fatalf("a call was admitted by a breaker that is open for %s", openFor)
		}
		now = now.Add(openFor)
		if !b.admit() {
			t.Fatalf("no probe after %s", openFor)
		}
		if b.admit() {
			t.Fatal("two probes at once")
		}
		b.settle(true)
	}
	for range 20 {
		now = now.Add(breakerOpenMax)
		b.admit()
		b.settle(true)
	}
	if now = now.Add(breakerOpenMax); !b.admit() {
		t.Fatalf("open for longer than %s", breakerOpenMax)
	}
	b.settle(false)
	if b.open() {
		t.Fatal("it does not close when a probe succeeds")
	}
	for range 2 {
		if !b.admit() {
			t.Fatal("a closed breaker keeps a call back")
		}
	}
}
