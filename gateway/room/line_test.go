package room

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
)

// TestALineIsASortedList holds a line to the simplest thing that does the same.
func TestALineIsASortedList(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for _, late := range []int64{0, 1, 1000} { // All drawn, some late, nearly all.
		var places slab
		l := line{places: &places}
		var want []rank
		byRank := func(a, b rank) int { return a.compare(b) }
		last := int64(0)
		for step := range 30_000 {
			switch random.IntN(6) {
			case 0:
				id, ok := l.pop()
				if ok != (len(want) > 0) {
					t.Fatalf("seed %d, step %d: pop says %t with %d in line", seed, step, ok, len(want))
				}
				if !ok {
					continue
				}
				if got := places.at(id).rank; got != want[0] {
					t.Fatalf("seed %d, step %d: the first is %+v, want %+v", seed, step, got, want[0])
				}
				want = want[1:]
			case 1, 2:
				at := rank{random.Int64N(late + 1), random.Uint64()}
				if len(want) > 0 && random.IntN(2) == 0 {
					at = want[random.IntN(len(want))]
				}
				index, _ := slices.BinarySearchFunc(want, at, byRank)
				if got := l.before(at); got != index {
					t.Fatalf("seed %d, step %d: %d come before %+v, want %d", seed, step, got, at, index)
				}
			default:
				at := rank{random.Int64N(late + 1), random.Uint64()}
				if late > 1 && random.IntN(4) > 0 { // In the order of arrival.
					last += random.Int64N(5)
					at.late = last
				}
				l.insert(places.make(place{rank: at}))
				index, _ := slices.BinarySearchFunc(want, at, byRank)
				want = slices.Insert(want, index, at)
			}
			if l.length != len(want) {
				t.Fatalf("seed %d, step %d: length = %d, want %d", seed, step, l.length, len(want))
			}
		}
		for i, ids := range l.blocks {
			if len(ids) == 0 || len(ids) > blockPlaces {
				t.Errorf("seed %d: block %d has %d places", seed, i, len(ids))
			}
		}
	}
}

// ticketsOfTest is how many tickets the test below makes: WEIR_ROOM_TICKETS, or few enough for every run.
func ticketsOfTest(t *testing.T) int {
	text := os.Getenv("WEIR_ROOM_TICKETS")
	if text == "" {
		return 100_000
	}
	count, err := strconv.Atoi(text)
	if err != nil || count < 1 || count > placesMaxMax {
		t.Fatalf("WEIR_ROOM_TICKETS=%s: want 1 to %d", text, placesMaxMax)
	}
	return count
}

// TestARoomHoldsItsTicketsInBoundedMemory fills a room to its limit, as before and after an opening and as after a restart, and lets in. What it says of
// time is for people: WEIR_ROOM_TICKETS=10000000 go test ./gateway/room -run BoundedMemory -v
func TestARoomHoldsItsTicketsInBoundedMemory(t *testing.T) {
	tickets := ticketsOfTest(t)
	seed := rand.Uint64()
	t.Logf("seed %d, %d tickets", seed, tickets)
	random := rand.New(rand.NewPCG(seed, 0))
	users := make([]string, tickets)
	for i := range users {
		users[i] = fmt.Sprintf("user-%08d", i)
	}
	opens := time.Now()
	campaign := Campaign{CampaignID: "spring", OpensAt: opens, ClosesAt: opens.Add(time.Hour)}
	r := newRoom(campaign, Config{PlacesMax: tickets}.withDefaults())
	heap := func() int64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	empty := heap()
	timed := func(what string, count int, do func()) {
		before := time.Now()
		do()
		took := time.Since(before)
		t.Logf("%-44s %9d in %8s, %6.2f µs each", what, count, took.Round(time.Millisecond), float64(took.Microseconds())/float64(count))
	}
	tick := func(after time.Duration, rate float64) { r.tick(opens.Add(after), rate, 1, 1<<40) }
	// Half of them come before, half after, and those in any order: their gateway has just started, and they have tickets.
	early := tickets / 2
	timed("enter before the opening", early, func() {
		for _, user := range users[:early] {
			if _, _, err := r.enter(user, rankOf(testKey, campaign, user, opens.Add(-time.Minute)), true); err != nil {
				t.Fatal(err)
			}
		}
	})
	timed("come back with tickets, in any order", tickets-early, func() {
		for _, i := range random.Perm(tickets - early) {
			if _, _, err := r.enter(users[early+i], rank{late: int64(i) + 1, draw: random.Uint64()}, false); err != nil {
				t.Fatal(err)
			}
		}
	})
	if _, _, err := r.enter("one more", rank{}, true); err == nil {
		t.Error("a full room took one more")
	}
	if _, at, err := r.enter(users[0], rank{late: 1}, false); err != nil || at.late != 0 {
		t.Errorf("who is in has no place in a full room: %+v, %v", at, err)
	}
	each := float64(heap()-empty) / float64(tickets)
	t.Logf("%.0f bytes each", each)
	if each > placeBytes {
		t.Errorf("a ticket takes %.0f bytes, want at most %d", each, placeBytes)
	}
	timed("the garbage collector looks at it", 1, runtime.GC)
	timed("open", 1, func() { tick(0, 0) })
	const looks = 100_000
	sum := int64(0)
	timed("say how many come before", looks, func() {
		for range looks {
			sum += r.look(opens, placeID(random.IntN(tickets))).before
		}
	})
	if mean := float64(sum) / looks / float64(tickets); mean < 0.49 || mean > 0.51 {
		t.Errorf("seed %d: %.3f of all come before a random one, want half", seed, mean)
	}
	// Every second one is there when its turn comes.
	for id := 0; id < tickets; id += 2 {
		r.stay(placeID(id))
	}
	timed("let everybody in who is there", tickets/2, func() {
		for after := time.Second; r.line.length > 0; after += time.Second {
			tick(after, rateMax)
			if after > time.Hour/2 {
				t.Fatalf("%d are still in line", r.line.length)
			}
		}
	})
	for id := range tickets {
		if p := r.places.at(placeID(id)); (p.pass != 0) != (id%2 == 0) || !p.passed {
			t.Fatalf("seed %d: place %d, there: %t, is %+v", seed, id, id%2 == 0, *p)
		}
	}
	clear(r.stays)
	timed("forget everybody once the campaign is over", 1, func() { tick(time.Hour, 0) })
	if left := float64(heap()-empty) / float64(tickets); left > 1 {
		t.Errorf("after the campaign %.1f bytes a ticket are left", left)
	}
	runtime.KeepAlive(users)
}
