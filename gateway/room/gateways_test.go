package room

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A fleet is the gateways of one campaign, which share keys and nothing else, in simulated time.
type fleet struct {
	t        *testing.T
	campaign Campaign
	share    float64
	left     int64

	mu       sync.Mutex
	admitted []admission // in order
	streams  sync.WaitGroup
}

type admission struct {
	user string
	at   time.Time
}

const fleetRate = 30

// start starts a gateway, until the returned function is called.
func (f *fleet) start() (hall *Hall, stop func()) {
	f.t.Helper()
	hall, err := New(Options{
		Config: Config{Campaigns: []Campaign{f.campaign}, RateShare: 1, Overcommit: 1}, Keys: testKeys,
		Rate:  func() float64 { return fleetRate },
		Share: func() float64 { f.mu.Lock(); defer f.mu.Unlock(); return f.share },
		Left:  func(string) (int64, bool) { f.mu.Lock(); defer f.mu.Unlock(); return f.left, true },
		User:  func(context.Context, string) (string, bool) { return "", false },
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error, 1)
	go func() { done <- hall.Run(ctx) }()
	return hall, func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	}
}

// wait has a user wait at a gateway with a ticket until it is let in or leave is called; told is told each standing.
func (f *fleet) wait(hall *Hall, user string, at rank, told func(standing)) (leave context.CancelFunc) {
	f.t.Helper()
	r := hall.rooms[f.campaign.CampaignID]
	id, _, err := r.enter(user, at, false)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(f.t.Context())
	f.streams.Go(func() {
		_ = r.wait(ctx, id, func(s standing) error { // Its error is that the user left.
			f.mu.Lock()
			defer f.mu.Unlock()
			if told != nil {
				told(s)
			}
			if s.state == Admitted {
				f.admitted = append(f.admitted, admission{user, time.Now()})
			}
			return nil
		})
	})
	return cancel
}

func inFleet(t *testing.T, test func(*fleet)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fleet{t: t, share: 1.0 / 3, left: math.MaxInt32, campaign: Campaign{CampaignID: "spring", OpensAt: time.Now().Add(opensIn), ClosesAt: time.Now().Add(time.Hour)}}
		test(f)
		f.streams.Wait()
	})
}

// checkRate holds what all gateways let in to their rate: in no time more than the rate, a second's worth of it, and one for each gateway.
func (f *fleet) checkRate(gateways int) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for first := 0; first < len(f.admitted); first += 7 {
		for last := first; last < len(f.admitted); last += 7 {
			within := f.admitted[last].at.Sub(f.admitted[first].at) + tickEvery
			if most := fleetRate*within.Seconds() + fleetRate*burst.Seconds() + float64(gateways); float64(last-first+1) > most {
				f.t.Fatalf("%d were let in within %s, want at most %.1f", last-first+1, within, most)
			}
		}
	}
}

func TestGatewaysThatShareNothingLetInNoMoreThanTheirRateTogether(t *testing.T) {
	inFleet(t, func(f *fleet) {
		const users = 1500
		var halls []*Hall
		var stops []func()
		for range 3 {
			hall, stop := f.start()
			halls, stops = append(halls, hall), append(stops, stop)
		}
		var leaves []context.CancelFunc
		for i := range users {
			user := fmt.Sprint("user-", i)
			leaves = append(leaves, f.wait(halls[i%3], user, rankOf(testKey, f.campaign, user, time.Now()), nil))
		}
		// Somebody moves between gateways, with the ticket, and is told each time where it stands.
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		at := rank{draw: 1 << 63} // In the middle.
		last, moves := int64(-1), 0
		told := func(s standing) {
			if s.state != Waiting {
				return
			}
			// Users of 1500 are spread by chance: what two gateways say differs by some standard deviations of that.
			if jump := s.before - last; last >= 0 && float64(jump) > 5*math.Sqrt(2*float64(last)+1)+5 {
				t.Errorf("seed %d: %d were before it, and then %d", seed, last, s.before)
			}
			last, moves = s.before, moves+1
		}
		pass(opensIn + 100*time.Millisecond)
		for range 8 {
			leave := f.wait(halls[random.IntN(3)], "mover", at, told)
			pass(1500 * time.Millisecond)
			leave()
			pass(time.Millisecond)
		}
		if moves < 8 {
			t.Errorf("the mover was told %d times", moves)
		}
		pass(time.Minute)
		f.checkRate(3)
		f.mu.Lock()
		in := len(f.admitted)
		f.mu.Unlock()
		if in < users {
			t.Errorf("%d were let in within %s, want all %d", in, opensIn+72*time.Second, users)
		}
		for i, leave := range leaves {
			leave()
			if i < 3 {
				stops[i]()
			}
		}
	})
}

func TestGatewaysLetInForNoMoreUnitsThanThereAreButForOneEach(t *testing.T) {
	inFleet(t, func(f *fleet) {
		f.left = 10
		var stops []func()
		var leaves []context.CancelFunc
		for gateway := range 3 {
			hall, stop := f.start()
			stops = append(stops, stop)
			for i := range 100 {
				user := fmt.Sprint("user-", gateway, "-", i)
				leaves = append(leaves, f.wait(hall, user, rankOf(testKey, f.campaign, user, time.Now()), nil))
			}
		}
		pass(opensIn + 30*time.Second)
		f.mu.Lock()
		in := len(f.admitted)
		f.mu.Unlock()
		if in < 10 || in > 10+3 {
			t.Errorf("%d were let in for 10 units, want 10, and at most one more for each gateway", in)
		}
		for _, leave := range leaves {
			leave()
		}
		for _, stop := range stops {
			stop()
		}
	})
}

// While it is not known how many gateways there are, nobody is let in, rather than too many.
func TestAGatewayThatDoesNotKnowOfTheOthersLetsNobodyIn(t *testing.T) {
	inFleet(t, func(f *fleet) {
		f.share = 0
		hall, stop := f.start()
		leave := f.wait(hall, "alice", rank{}, nil)
		pass(opensIn + 30*time.Second)
		if len(f.admitted) != 0 {
			t.Errorf("let in: %v", f.admitted)
		}
		f.mu.Lock()
		f.share = 0.5
		f.mu.Unlock()
		pass(time.Second)
		if len(f.admitted) != 1 {
			t.Errorf("let in once it knows: %v, want alice", f.admitted)
		}
		leave()
		stop()
	})
}

func TestAGatewayThatStartsAgainPutsWhoCameBeforeFirst(t *testing.T) {
	inFleet(t, func(f *fleet) {
		f.share = 1
		_, stop := f.start()
		pass(opensIn + 20*time.Second)
		stop()
		// Nobody is in the new one. Whoever comes now, and waited before, comes back a moment later.
		hall, stop := f.start()
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		var leaves []context.CancelFunc
		for i := range 20 {
			leaves = append(leaves, f.wait(hall, fmt.Sprint("late-", i), rankOf(testKey, f.campaign, fmt.Sprint("late-", i), time.Now()), nil))
			pass(time.Millisecond)
		}
		for _, i := range random.Perm(100) {
			user := fmt.Sprint("early-", i)
			leaves = append(leaves, f.wait(hall, user, rank{draw: uint64(i) << 50}, nil))
			pass(15 * time.Millisecond)
		}
		pass(10 * time.Second)
		f.mu.Lock()
		if len(f.admitted) != 120 {
			t.Fatalf("seed %d: %d were let in, want 120", seed, len(f.admitted))
		}
		const atOnce = fleetRate/10 + 1 // Those of one moment are told in any order.
		for i, in := range f.admitted {
			if i >= 100-atOnce && i < 100+atOnce {
				continue
			}
			if wantEarly := i < 100; wantEarly != (in.user[:5] == "early") {
				t.Errorf("seed %d: number %d that was let in is %s", seed, i, in.user)
			}
		}
		f.mu.Unlock()
		f.checkRate(1)
		for _, leave := range leaves {
			leave()
		}
		stop()
	})
}
