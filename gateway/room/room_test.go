package room

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"

	roomv1 "github.com/weirhq/weir/proto/weir/room/v1"
	"github.com/weirhq/weir/proto/weir/room/v1/roomv1connect"
)

var testKey = bytes.Repeat([]byte("k"), keyBytesMin)

// testKeys are those of a hall that has one; otherKeys are another's.
var testKeys, otherKeys = keysOf("k"), keysOf("x")

func keysOf(letter string) []Key { return []Key{{Secret: bytes.Repeat([]byte(letter), keyBytesMin)}} }

func ringOf(t *testing.T, keys ...Key) *ring {
	t.Helper()
	r, err := newRing(keys)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A sale is a hall with one room, in simulated time, whose units the test counts.
type sale struct {
	t    *testing.T
	hall *Hall
	room *room

	mu       sync.Mutex
	rate     float64
	left     int64
	known    bool
	admitted []string // in order
	ended    map[string]State
	told     map[string][]standing
	streams  sync.WaitGroup
}

const opensIn = 10 * time.Second

func inSale(t *testing.T, config Config, test func(*sale)) {
	synctest.Test(t, func(t *testing.T) {
		s := &sale{t: t, rate: 10, left: 1_000_000, known: true, ended: map[string]State{}, told: map[string][]standing{}}
		config.Campaigns = []Campaign{{CampaignID: "spring", OpensAt: time.Now().Add(opensIn), ClosesAt: time.Now().Add(time.Hour)}}
		config.RateShare = 1
		var err error
		s.hall, err = New(Options{
			Config: config, Keys: testKeys,
			Rate: func() float64 { s.mu.Lock(); defer s.mu.Unlock(); return s.rate },
			Left: func(string) (int64, bool) { s.mu.Lock(); defer s.mu.Unlock(); return s.left, s.known },
			User: func(_ context.Context, authorization string) (string, bool) { return authorization, true },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.room = s.hall.rooms["spring"]
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.hall.Run(ctx) }()
		test(s)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		s.streams.Wait()
	})
}

// pass lets simulated time pass.
func pass(length time.Duration) {
	<-time.After(length)
	synctest.Wait()
}

// come lets a user enter and wait, until the returned function is called.
func (s *sale) come(user string) (leave context.CancelFunc) {
	s.t.Helper()
	return s.comeAt(user, rankOf(testKey, s.room.campaign, user, time.Now()))
}

func (s *sale) comeAt(user string, at rank) (leave context.CancelFunc) {
	s.t.Helper()
	id, _, err := s.room.enter(user, at, false)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.t.Context())
	s.streams.Go(func() {
		_ = s.room.wait(ctx, id, func(now standing) error { // Its error is that the test let it leave.
			s.note(user, now)
			return nil
		})
	})
	return cancel
}

// note takes down what a user is told.
func (s *sale) note(user string, now standing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told[user] = append(s.told[user], now)
	if now.state >= Admitted {
		s.ended[user] = now.state
	}
	if now.state == Admitted {
		s.admitted = append(s.admitted, user)
	}
}

func (s *sale) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.admitted)
}

func TestUsersAreLetInAtTheRateInTheOrderThatWasDrawn(t *testing.T) {
	inSale(t, Config{}, func(s *sale) {
		var users []string
		for i := range 100 {
			users = append(users, fmt.Sprintf("early-%02d", i))
		}
		for _, user := range users {
			s.come(user)
		}
		pass(opensIn - time.Second)
		if got := s.count(); got != 0 {
			t.Fatalf("%d users were let in before the campaign opened", got)
		}
		pass(time.Second + time.Millisecond)
		s.come("late-1")
		pass(time.Millisecond)
		s.come("late-2")
		pass(5 * time.Second)
		if got := s.count(); got < 45 || got > 60 { // 10 a second, and those of the first moment.
			t.Errorf("%d users were let in within 5 s, want about 50", got)
		}
		pass(10 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if got := len(s.admitted); got != 102 {
			t.Fatalf("%d users were let in, want all 102", got)
		}
		if !slices.Equal(s.admitted[100:], []string{"late-1", "late-2"}) {
			t.Errorf("the last were %v, want those who came late, in their order", s.admitted[100:])
		}
		drawn := slices.Clone(users)
		slices.SortFunc(drawn, func(a, b string) int {
			return rankOf(testKey, s.room.campaign, a, time.Time{}).compare(rankOf(testKey, s.room.campaign, b, time.Time{}))
		})
		// Users of one moment are told in any order; nobody is more than a moment's users off its place.
		for i, user := range s.admitted[:100] {
			if place := slices.Index(drawn, user); max(place-i, i-place) > 10 {
				t.Errorf("%s was let in as number %d, and drawn as number %d", user, i, place)
			}
		}
		if slices.IsSorted(s.admitted[:100]) {
			t.Error("nothing was drawn: the order is that of the names")
		}
	})
}

func TestTheDrawIsTheSameForAllGatewaysAndNobodyDrawsTwice(t *testing.T) {
	campaign := Campaign{CampaignID: "spring", OpensAt: time.Unix(1_800_000_000, 0)}
	early := campaign.OpensAt.Add(-time.Hour)
	if rankOf(testKey, campaign, "a", early) != rankOf(testKey, campaign, "a", early.Add(time.Minute)) {
		t.Error("who enters again draws again")
	}
	other := bytes.Repeat([]byte("o"), keyBytesMin)
	if rankOf(testKey, campaign, "a", early) == rankOf(other, campaign, "a", early) {
		t.Error("the draw does not depend on the key: users could compute it")
	}
	// Uniform, as far as 16 cells tell (chi-square, 15 degrees of freedom, p = 1e-6).
	var cells [16]int
	const users = 16_000
	for i := range users {
		cells[rankOf(testKey, campaign, fmt.Sprint(i), early).draw>>60]++
	}
	sum := 0.0
	for _, count := range cells {
		sum += math.Pow(float64(count)-users/16, 2) / (users / 16)
	}
	if sum > 58 {
		t.Errorf("chi-square = %.1f over %v", sum, cells)
	}
}

func TestPositionAndETAFallUntilItIsTheUsersTurn(t *testing.T) {
	inSale(t, Config{}, func(s *sale) {
		pass(opensIn + time.Second)
		for i := range 50 {
			s.come(fmt.Sprint("before-", i))
			pass(time.Microsecond)
		}
		s.come("me")
		pass(10 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		told := s.told["me"]
		if first := told[0]; first.state != Waiting || first.before < 35 || first.before > 50 || first.eta < 3*time.Second || first.eta > 6*time.Second {
			t.Errorf("first told %+v, want about 40 before and about 4 s", first)
		}
		for i := 1; i < len(told); i++ {
			if told[i].before > told[i-1].before {
				t.Errorf("told %d before, and then %d", told[i-1].before, told[i].before)
			}
		}
		if last := told[len(told)-1]; last.state != Admitted {
			t.Errorf("last told %+v, want admitted", last)
		}
	})
}

func TestNoMoreAreLetInThanThereAreUnitsFor(t *testing.T) {
	inSale(t, Config{Overcommit: 1.5, PassTTL: time.Minute}, func(s *sale) {
		s.rate, s.left = 1000, 10
		for i := range 100 {
			s.come(fmt.Sprint(i))
		}
		pass(opensIn + 5*time.Second)
		if got := s.count(); got != 15 {
			t.Fatalf("%d users were let in for 10 units, want 15", got)
		}
		// Five of them buy: five units fewer, and five passes fewer.
		s.mu.Lock()
		buyers := slices.Clone(s.admitted[:5])
		s.left = 5
		s.mu.Unlock()
		for _, user := range buyers {
			pass := s.hall.keys.Load().pass(time.Now(), "spring", user, 0, time.Now().Add(time.Minute))
			done, err := s.hall.Check(t.Context(), time.Now(), user, "spring", pass, OrderOf([]byte(user)))
			if err != nil {
				t.Fatal(err)
			}
			done(Placed)
		}
		pass(5 * time.Second)
		if got := s.count(); got != 15 { // 8 for the 5 units that are left; 10 have passes.
			t.Errorf("%d users were let in, want 15 still", got)
		}
		pass(time.Minute) // Passes that nobody used make room.
		if got := s.count(); got != 15+8 {
			t.Errorf("%d users were let in after the passes were over, want 23", got)
		}
	})
}

func TestEverybodyIsReleasedWhenNothingIsLeft(t *testing.T) {
	inSale(t, Config{}, func(s *sale) {
		for i := range 1000 {
			s.come(fmt.Sprint(i))
		}
		pass(opensIn + 2*time.Second)
		in := s.count()
		if in == 0 || in > 100 {
			t.Fatalf("%d users are in", in)
		}
		s.mu.Lock()
		s.left = 0
		s.mu.Unlock()
		pass(time.Second)
		s.mu.Lock()
		released := 0
		for _, state := range maps.All(s.ended) {
			if state == SoldOut {
				released++
			}
		}
		s.mu.Unlock()
		if released != 1000-in {
			t.Fatalf("%d users were released within a second, want %d", released, 1000-in)
		}
		// What comes back is for those who wait again.
		s.mu.Lock()
		s.left = 100
		s.mu.Unlock()
		pass(time.Second)
		s.come("again")
		pass(200 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended["again"] != Admitted {
			t.Errorf("who waited for what came back is %v, want admitted", s.ended["again"])
		}
	})
}

func TestWhoIsNotThereIsPassedOverAndIsNextWhenItComesBack(t *testing.T) {
	inSale(t, Config{}, func(s *sale) {
		pass(opensIn + time.Second)
		s.mu.Lock()
		s.rate = 1
		s.mu.Unlock()
		pass(2 * time.Second)
		leave := s.come("absent")
		leave()
		pass(time.Millisecond)
		for i := range 20 {
			s.come(fmt.Sprint("present-", i))
		}
		pass(3 * time.Second)
		if s.count() == 0 {
			t.Fatal("nobody was let in past who is not there")
		}
		s.come("absent")
		pass(1200 * time.Millisecond)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended["absent"] != Admitted {
			t.Errorf("who came back was told %+v, want that it is its turn", s.told["absent"])
		}
	})
}

func TestATicketKeepsItsPlaceInAnotherGateway(t *testing.T) {
	inSale(t, Config{}, func(s *sale) {
		early := rankOf(testKey, s.room.campaign, "mover", time.Now())
		pass(opensIn + time.Millisecond)
		for i := range 200 {
			s.come(fmt.Sprint(i))
			pass(time.Microsecond)
		}
		s.comeAt("mover", early) // Its gateway ended; the ticket says that it came before all of them.
		pass(1200 * time.Millisecond)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended["mover"] != Admitted {
			t.Errorf("told %+v, want that it is its turn", s.told["mover"])
		}
	})
}

func TestTheRoomIsBounded(t *testing.T) {
	r := newRoom(Campaign{}, Config{PlacesMax: 2})
	for user, want := range map[string]error{"a": nil, "b": nil} {
		if _, _, err := r.enter(user, rank{}, false); !errors.Is(err, want) {
			t.Fatal(err)
		}
	}
	if _, _, err := r.enter("c", rank{}, false); !errors.Is(err, errFull) {
		t.Errorf("error = %v, want that it is full", err)
	}
	if _, _, err := r.enter("a", rank{}, false); err != nil {
		t.Errorf("who is in was not found: %v", err)
	}
}

func TestNoForgedReplayedOrSharedTicketSkipsTheRoom(t *testing.T) {
	hall, err := New(Options{
		Config: Config{Campaigns: []Campaign{
			{CampaignID: "spring", OpensAt: time.Now().Add(-time.Hour), ClosesAt: time.Now().Add(time.Hour)},
			{CampaignID: "autumn", OpensAt: time.Now().Add(-time.Hour), ClosesAt: time.Now().Add(time.Hour)},
		}},
		Keys: testKeys,
		User: func(_ context.Context, authorization string) (string, bool) {
			return strings.CutPrefix(authorization, "Bearer ")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	now, keys, others := time.Now(), ringOf(t, testKeys...), ringOf(t, otherKeys...)
	ticket := keys.ticket(now, "spring", "alice", rank{late: 5, draw: 7})
	_, signed, _ := strings.Cut(ticket, ".")
	pass := keys.pass(now, "spring", "alice", 0, now.Add(time.Minute))
	if _, err := hall.Check(t.Context(), now, "alice", "spring", pass, Order{}); err != nil {
		t.Fatalf("a good pass: %v", err)
	}
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	flipped := []byte(pass)
	for at := random.IntN(len(flipped)); string(flipped) == pass; {
		flipped[at] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[random.IntN(26)]
	}
	for name, attempt := range map[string]struct{ user, campaign, pass string }{
		"nothing":             {"alice", "spring", ""},
		"another's pass":      {"mallory", "spring", pass},
		"another campaign's":  {"alice", "autumn", pass},
		"a ticket":            {"alice", "spring", ticket},
		"a ticket's sign":     {"alice", "spring", signed},
		"a pass that is over": {"alice", "spring", keys.pass(now, "spring", "alice", 0, now.Add(-time.Second))},
		"another key's":       {"alice", "spring", others.pass(now, "spring", "alice", 0, now.Add(time.Minute))},
		"a changed pass":      {"alice", "spring", string(flipped)},
		"a long one":          {"alice", "spring", strings.Repeat("A", 1<<20)},
		"not text":            {"alice", "spring", "\x00\xff"},
	} {
		if _, err := hall.Check(t.Context(), now, attempt.user, attempt.campaign, attempt.pass, OrderOf([]byte(name))); err == nil || err.Code() != connect.CodeFailedPrecondition {
			t.Errorf("seed %d: %s was taken: %v", seed, name, err)
		}
	}
	if _, err := hall.Check(t.Context(), now, "alice", "no-room", "", Order{}); err != nil {
		t.Errorf("a campaign without a room: %v", err)
	}
	if _, err := hall.Check(t.Context(), now.Add(2*time.Hour), "alice", "spring", "", Order{}); err != nil {
		t.Errorf("after it closed: %v", err)
	}
	for name, text := range map[string]string{
		"another's":       keys.ticket(now, "spring", "bob", rank{}),
		"renamed":         "autumn." + signed,
		"a pass":          "spring." + pass,
		"nothing":         "spring.",
		"a better number": "spring." + others.sign(now, kindTicket, "spring", "alice", 0, 0),
	} {
		if _, _, _, err := keys.readTicket(now, "alice", text); err == nil {
			t.Errorf("%s was taken as a ticket", name)
		}
	}
}

func TestARoomIsServedOverTheWire(t *testing.T) {
	hall, err := New(Options{
		Config: Config{Campaigns: []Campaign{{CampaignID: "spring", OpensAt: time.Now().Add(-time.Hour), ClosesAt: time.Now().Add(time.Hour)}}},
		Keys:   testKeys,
		User: func(_ context.Context, authorization string) (string, bool) {
			return strings.CutPrefix(authorization, "Bearer ")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, handler := roomv1connect.NewRoomServiceHandler(hall)
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- hall.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	as := func(user string) context.Context {
		ctx, call := connect.NewClientContext(t.Context())
		call.RequestHeader().Set("Authorization", user)
		return ctx
	}
	client := roomv1connect.NewRoomServiceClient(server.Client(), server.URL)
	entered, err := client.Enter(as("Bearer alice"), &roomv1.EnterRequest{CampaignId: "spring"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := client.Enter(as("Bearer alice"), &roomv1.EnterRequest{CampaignId: "spring"})
	if err != nil || again.GetTicket() != entered.GetTicket() {
		t.Errorf("entering again: %v, %v; want the same ticket", again, err)
	}
	stream, err := client.Wait(as("Bearer alice"), &roomv1.WaitRequest{Ticket: entered.GetTicket()})
	if err != nil {
		t.Fatal(err)
	}
	var last *roomv1.WaitResponse
	for stream.Receive() {
		last = stream.Msg()
	}
	if err := errors.Join(stream.Err(), stream.Close()); err != nil || last.GetState() != roomv1.WaitState_WAIT_STATE_ADMITTED {
		t.Fatalf("the wait ended with %v, %v; want admitted", last, err)
	}
	if _, err := hall.Check(t.Context(), time.Now(), "alice", "spring", last.GetPass(), Order{}); err != nil {
		t.Errorf("the pass: %v", err)
	}
	for name, c := range map[string]struct {
		user, ticket string
		want         connect.Code
	}{
		"another's ticket": {"Bearer mallory", entered.GetTicket(), connect.CodePermissionDenied},
		"no token":         {"", entered.GetTicket(), connect.CodeUnauthenticated},
		"no such room":     {"Bearer alice", "winter.x", connect.CodeNotFound},
	} {
		stream, err := client.Wait(as(c.user), &roomv1.WaitRequest{Ticket: c.ticket})
		if err == nil {
			stream.Receive()
			err = stream.Err()
			stream.Close()
		}
		if connect.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, err := client.Enter(as("Bearer alice"), &roomv1.EnterRequest{CampaignId: "winter"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("no such campaign: %v", err)
	}
}

func TestImpossibleHallsAreRefused(t *testing.T) {
	now := time.Now()
	user := func(context.Context, string) (string, bool) { return "", false }
	good := Campaign{CampaignID: "c", OpensAt: now, ClosesAt: now.Add(1)}
	for name, options := range map[string]Options{
		"no key":             {User: user},
		"a short key":        {User: user, Keys: []Key{{Secret: []byte("short")}}},
		"nobody verifies":    {Keys: testKeys},
		"a bad name":         {User: user, Keys: testKeys, Config: Config{Campaigns: []Campaign{{CampaignID: "a.b", OpensAt: now, ClosesAt: now.Add(1)}}}},
		"twice":              {User: user, Keys: testKeys, Config: Config{Campaigns: []Campaign{good, good}}},
		"closes before":      {User: user, Keys: testKeys, Config: Config{Campaigns: []Campaign{{CampaignID: "c", OpensAt: now, ClosesAt: now}}}},
		"a rate of nothing":  {User: user, Keys: testKeys, Config: Config{RateShare: -1}},
		"no default rate":    {User: user, Keys: testKeys, Config: Config{RateDefault: -1}},
		"a pass of a moment": {User: user, Keys: testKeys, Config: Config{PassTTL: 1}},
		"less than the rest": {User: user, Keys: testKeys, Config: Config{Overcommit: 0.5}},
		"no places":          {User: user, Keys: testKeys, Config: Config{PlacesMax: -1}},
	} {
		if _, err := New(options); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
