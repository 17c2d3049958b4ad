package room

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/redis/go-redis/v9"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/eventstore/embedded/embeddedtest"
	"github.com/weirhq/weir/ops/redisserver"
	roomv1 "github.com/weirhq/weir/proto/weir/room/v1"
)

// patience bounds what a test waits for.
const patience = 20 * time.Second

// An attack is on the gateways of one campaign, which share uses, or nothing.
type attack struct {
	t     *testing.T
	halls []*Hall
	now   time.Time
}

func attackOn(t *testing.T, gateways int, uses Uses) *attack {
	t.Helper()
	a := &attack{t: t, now: time.Now()}
	for range gateways {
		hall, err := New(Options{
			Config: Config{Campaigns: []Campaign{
				{CampaignID: "spring", OpensAt: a.now.Add(-time.Hour), ClosesAt: a.now.Add(time.Hour)},
				{CampaignID: "autumn", OpensAt: a.now.Add(-time.Hour), ClosesAt: a.now.Add(time.Hour)},
			}},
			Keys: testKeys, Uses: uses, Logger: slog.New(slog.DiscardHandler),
			User: func(context.Context, string) (string, bool) { return "", false },
		})
		if err != nil {
			t.Fatal(err)
		}
		a.halls = append(a.halls, hall)
	}
	return a
}

// pass is what a user is given who entered so long ago, and was let in.
func (a *attack) pass(user string, ago time.Duration) string {
	return a.halls[0].keys.Load().pass(a.now, "spring", user, int64(a.now.Sub(a.halls[0].rooms["spring"].campaign.OpensAt)-ago), a.now.Add(time.Minute))
}

// order tries an order at a gateway, and says why it was refused, "" if it was not.
func (a *attack) order(gateway int, user, campaign, pass, request string) (done func(End), cause string) {
	done, err := a.halls[gateway].Check(a.t.Context(), a.now, user, campaign, pass, OrderOf([]byte(request)))
	if err != nil {
		return nil, causeOf(err)
	}
	return done, ""
}

// want tries an order, ends it, and holds the answer to what is wanted.
func (a *attack) want(cause string, gateway int, user, pass, request string, end End) {
	a.t.Helper()
	done, got := a.order(gateway, user, "spring", pass, request)
	if got != cause {
		a.t.Errorf("%s orders %q at gateway %d: cause %q, want %q", user, request, gateway, got, cause)
	}
	if done != nil {
		done(end)
	}
}

func TestATurnIsGoodForOneOrderAndItsRetries(t *testing.T) {
	a := attackOn(t, 1, nil)
	pass := a.pass("alice", time.Minute)
	a.want("", 0, "alice", pass, "first", Unknown) // Its reply was lost.
	a.want(causeUsed, 0, "alice", pass, "second", Placed)
	a.want("", 0, "alice", pass, "first", Placed)
	a.want("", 0, "alice", pass, "first", Placed)
	for range 3 {
		a.want(causeUsed, 0, "alice", pass, "second", Placed)
	}
	// Nor with another pass of the same turn, or with those of tickets that she had got before, here or elsewhere.
	for _, ago := range []time.Duration{time.Hour, time.Minute, time.Second, 0} {
		a.want(causeUsed, 0, "alice", a.pass("alice", ago), "second", Placed)
	}
	// The pass is over, and the order's reply was lost again: asking for that one still answers, and nothing else does.
	a.now = a.now.Add(2 * time.Minute)
	a.want("", 0, "alice", pass, "first", Placed)
	a.want(causeOver, 0, "alice", pass, "second", Placed)
	// Who waits again has another turn.
	a.want("", 0, "alice", a.pass("alice", time.Minute), "second", Placed)
	a.want(causeUsed, 0, "alice", a.pass("alice", time.Minute), "third", Placed)
}

func TestARefusedOrderGivesTheTurnBackOnceNothingOfItIsUnderWay(t *testing.T) {
	a := attackOn(t, 1, nil)
	pass := a.pass("alice", time.Minute)
	a.want("", 0, "alice", pass, "wrong address", Refused)
	a.want("", 0, "alice", pass, "sold out", Refused)
	// The same order twice at once, one of them made so that it is refused: what is placed meanwhile holds the turn.
	good, cause := a.order(0, "alice", "spring", pass, "mine")
	if cause != "" {
		t.Fatal(cause)
	}
	a.want("", 0, "alice", pass, "mine", Refused)
	a.want(causeUsed, 0, "alice", pass, "one more", Placed)
	good(Placed)
	a.want(causeUsed, 0, "alice", pass, "one more", Placed)
	// Another user's turn is another one.
	a.want("", 0, "bob", a.pass("bob", time.Minute), "mine", Placed)
}

func TestAPassIsOfNoUseToAnybodyElseNorElsewhereNorLater(t *testing.T) {
	a := attackOn(t, 1, nil)
	pass := a.pass("alice", time.Minute)
	for name, c := range map[string]struct{ user, campaign, pass, want string }{
		"shared":                    {"mallory", "spring", pass, causeForged},
		"for another campaign":      {"alice", "autumn", pass, causeForged},
		"none":                      {"alice", "spring", "", causeNoPass},
		"made up":                   {"alice", "spring", ringOf(t, Key{Secret: testKey}).pass(a.now, "spring", "alice", 0, a.now.Add(time.Hour))[1:], causeForged},
		"signed by an attacker":     {"alice", "spring", ringOf(t, otherKeys...).pass(a.now, "spring", "alice", 0, a.now.Add(time.Hour)), causeKeyGone},
		"over":                      {"alice", "spring", ringOf(t, testKeys...).pass(a.now, "spring", "alice", 0, a.now), causeOver},
		"a ticket for a pass":       {"alice", "spring", ringOf(t, testKeys...).ticket(a.now, "spring", "alice", rank{late: 1, draw: 1<<63 - 1}), causeForged},
		"its signature for a pass":  {"alice", "spring", ringOf(t, testKeys...).ticket(a.now, "spring", "alice", rank{late: 1, draw: 1<<63 - 1})[len("spring."):], causeForged},
		"good, of a user like her":  {"alice ", "spring", pass, causeForged},
		"good, of the same user":    {"alice", "spring", pass, ""},
		"good, without a room even": {"alice", "winter", "", ""},
	} {
		if _, got := a.order(0, c.user, c.campaign, c.pass, name); got != c.want && (c.want != "" || name != "good, of the same user") {
			t.Errorf("%s: cause %q, want %q", name, got, c.want)
		}
	}
}

// usesOf returns what gateways can share, each kind by its name; stop takes it away.
func usesOf(t *testing.T) map[string]struct {
	uses Uses
	stop func()
} {
	t.Helper()
	ofRedis := redisserver.Start(t)
	client := redis.NewClient(&redis.Options{Addr: ofRedis.Addr, MaxRetries: -1, DialTimeout: 100 * time.Millisecond})
	t.Cleanup(func() { client.Close() })
	server := embeddedtest.Start(t, embedded.Options{Listen: "127.0.0.1:0"})
	js, err := jetstream.New(embeddedtest.Connect(t, server))
	if err != nil {
		t.Fatal(err)
	}
	return map[string]struct {
		uses Uses
		stop func()
	}{"Redis": {NewRedisUses(client, "test"), ofRedis.Kill}, "NATS": {NewNATSUses(js), server.Shutdown}}
}

func TestATurnIsCountedOnceByAllGatewaysThatShareWhatIsUsed(t *testing.T) {
	for name, shared := range usesOf(t) {
		t.Run(name, func(t *testing.T) {
			a := attackOn(t, 3, shared.uses)
			// What is shared answers, however slow the machine is: a question that is given up counts as one that was not answered.
			patient := func(timeMax time.Duration) {
				for _, hall := range a.halls {
					hall.shared.timeMax = timeMax
				}
			}
			patient(patience)
			pass := a.pass("alice", time.Minute)
			a.want("", 0, "alice", pass, "refused", Refused)
			a.want("", 1, "alice", pass, "first", Unknown)
			a.want("", 2, "alice", pass, "first", Refused) // A deadline that was malformed on purpose, for one.
			a.want(causeUsed, 2, "alice", pass, "second", Placed)
			a.want("", 0, "alice", pass, "first", Placed)
			for gateway := range 3 {
				a.want(causeUsed, gateway, "alice", pass, "second", Placed)
				a.want(causeUsed, gateway, "alice", a.pass("alice", time.Duration(gateway)*time.Second), "second", Placed)
			}
			a.now = a.now.Add(2 * time.Second)
			a.want("", 2, "alice", a.pass("alice", time.Second), "second", Placed)
			// All at once, and each order at two gateways.
			seed := rand.Uint64()
			random := rand.New(rand.NewPCG(seed, 0))
			const users, tries = 20, 12
			var mu sync.Mutex
			placed := map[string]map[string]bool{}
			var all sync.WaitGroup
			for _, attempt := range random.Perm(users * tries) {
				user, request := fmt.Sprint("user-", attempt%users), fmt.Sprint("order-", attempt/users/2)
				all.Go(func() {
					done, cause := a.order(attempt%3, user, "spring", a.pass(user, time.Minute), request)
					if done == nil {
						if cause != causeUsed {
							t.Errorf("seed %d: %s, %s: cause %q", seed, user, request, cause)
						}
						return
					}
					mu.Lock()
					if placed[user] == nil {
						placed[user] = map[string]bool{}
					}
					placed[user][request] = true
					mu.Unlock()
					done(Placed)
				})
			}
			all.Wait()
			for user, orders := range placed {
				if len(orders) != 1 || a.halls[0].shared.unshared.Load() != 0 {
					t.Errorf("seed %d: %s placed %v in one turn, want one order; %d were not shared", seed, user, orders, a.halls[0].shared.unshared.Load())
				}
			}
			if len(placed) != users {
				t.Errorf("seed %d: %d users placed an order, want all %d", seed, len(placed), users)
			}

			// Gone in the middle: each gateway goes on by what it knows. A turn is then good for one order at each gateway, and no more.
			patient(usesTimeMax)
			shared.stop()
			pass = a.pass("bob", time.Minute)
			for gateway := range 3 {
				a.want("", gateway, "bob", pass, fmt.Sprint("at ", gateway), Placed)
				a.want(causeUsed, gateway, "bob", pass, "one more", Placed)
				a.want(causeForged, gateway, "mallory", pass, "hers", Placed)
			}
			a.want(causeUsed, 0, "alice", a.pass("alice", time.Minute), "third", Placed)
			if a.halls[0].shared.unshared.Load() == 0 {
				t.Error("nobody counted the orders that could not be shared")
			}
		})
	}
}

func TestAFloodOfUsersDoesNotGrowWhatIsRememberedOfTurns(t *testing.T) {
	a := attackOn(t, 1, nil)
	a.halls[0].rooms["spring"].config.PlacesMax = 3
	for i := range 3 {
		user := fmt.Sprint("user-", i)
		a.want("", 0, user, a.pass(user, time.Minute), "r", Placed)
	}
	_, err := a.halls[0].Check(t.Context(), a.now, "late", "spring", a.pass("late", time.Minute), OrderOf([]byte("r")))
	if err.Code() != connect.CodeResourceExhausted || causeOf(err) != causeFull {
		t.Errorf("one more: %v", err)
	}
	a.want("", 0, "user-0", a.pass("user-0", time.Minute), "r", Placed)
}

func TestWhoPlacedAnOrderEntersAgainAtTheEnd(t *testing.T) {
	hall, client := served(t, Config{}, testKeys)
	ticketOf := func() rank {
		t.Helper()
		entered, err := client.Enter(as(t, "alice"), &roomv1.EnterRequest{CampaignId: "spring"})
		if err != nil {
			t.Fatal(err)
		}
		_, at, _, err := hall.keys.Load().readTicket(time.Now(), "alice", entered.GetTicket())
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	first := ticketOf()
	if again := ticketOf(); again != first {
		t.Errorf("entering again gives %+v, before %+v", again, first)
	}
	check := func(at rank, request string) (func(End), error) {
		now := time.Now()
		pass := hall.keys.Load().pass(now, "spring", "alice", at.late, now.Add(time.Minute))
		done, err := hall.Check(t.Context(), now, "alice", "spring", pass, OrderOf([]byte(request)))
		if err != nil {
			return nil, err
		}
		return done, nil
	}
	done, err := check(first, "first")
	if err != nil {
		t.Fatal(err)
	}
	if again := ticketOf(); again != first {
		t.Errorf("while the order is under way, entering again gives %+v, before %+v", again, first)
	}
	done(Placed)
	second := ticketOf()
	if second.late <= first.late {
		t.Errorf("after an order, entering again gives %+v, before %+v; want a place at the end", second, first)
	}
	if _, err := check(first, "second"); causeOf(err) != causeUsed {
		t.Errorf("with the first turn: %v", err)
	}
	if done, err = check(second, "second"); err != nil {
		t.Fatalf("with the second turn: %v", err)
	}
	done(Placed)
}

// brokenUses fail, or hang until they may not any more.
type brokenUses struct{ hang bool }

func (b brokenUses) Take(ctx context.Context, _ Use) (bool, error) {
	if b.hang {
		<-ctx.Done()
		return false, ctx.Err()
	}
	return false, errors.New("broken")
}

func (b brokenUses) GiveBack(ctx context.Context, use Use) error {
	_, err := b.Take(ctx, use)
	return err
}

func TestWhatDoesNotAnswerHoldsUpNoOrders(t *testing.T) {
	for _, hang := range []bool{false, true} {
		a := attackOn(t, 1, brokenUses{hang})
		a.want("", 0, "alice", a.pass("alice", time.Minute), "first", Placed)
		a.want(causeUsed, 0, "alice", a.pass("alice", time.Minute), "second", Placed)
		for i := range 100 { // At most one of them within a second is held up.
			user := fmt.Sprint("user-", i)
			a.want("", 0, user, a.pass(user, time.Minute), "r", Refused)
			a.want("", 0, user, a.pass(user, time.Minute), "another", Placed)
		}
		if got := a.halls[0].shared.unshared.Load(); got < 200 {
			t.Errorf("hang %t: %d orders were counted as not shared, want more than 200", hang, got)
		}
	}
}
