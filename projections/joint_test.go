package projections

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/eventstore"
)

// A lanesState stands in for the lane's state, which reads the log together with the views: it takes its time, and may stop on the way.
// The follower that feeds it checks that it gets every commit (I2).
type lanesState struct {
	at    eventstore.Position
	until uint64        // commit at which it stops moving until it is ended; 0 is none
	pause time.Duration // after every tenth commit
}

func (l *lanesState) Take(ctx context.Context, _ *eventstore.Commit, at eventstore.Position) error {
	l.at = at
	if at.Number == l.until {
		<-ctx.Done()
	}
	return nil
}

func (l *lanesState) Full(bool) bool { return l.at.Number%10 == 0 }

func (l *lanesState) Flush(ctx context.Context) error {
	select {
	case <-time.After(l.pause):
	case <-ctx.Done():
	}
	return nil
}

// follow feeds the state until the function that it returns is called, which says how it ended.
func (l *lanesState) follow(t *testing.T, log eventstore.Log) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	follower := eventstore.NewFollower(eventstore.FollowerOptions{Lane: 0, Log: log})
	go func() { ended <- follower.Run(ctx, l.at, l) }()
	return func() error {
		cancel()
		return <-ended
	}
}

// TestViewsThatReadTogetherWithTheLaneEqualTheFold has views and the lane's state read a log together that keeps little for who is behind,
// with events that cannot be taken in and are parked, some by a panic that has the views go back, and crashes after which the two stand at
// different places. The views are the fold of the log each time, but for what they list as parked (I6).
func TestViewsThatReadTogetherWithTheLaneEqualTheFold(t *testing.T) {
	rounds := 5
	if testing.Short() {
		rounds = 3
	}
	base := seedOf(t)
	for round := range uint64(rounds) {
		t.Run("", func(t *testing.T) { readTogetherAndCrash(t, base+round) })
	}
}

func readTogetherAndCrash(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 3))
	p := poisonViews(t, Projections[:]...)
	s := newShop(t, seed, 0, 1)
	s.steps(60)
	fs := vfs.NewCrashableMem()
	state := &lanesState{at: eventstore.Genesis(0, 1)}
	for life := range 4 {
		salt := random.Uint64()
		p.set(func(projection *Projection, c *change) string {
			switch rand.New(rand.NewPCG(salt^uint64(projection.space), c.number<<8|uint64(c.index))).IntN(60) {
			case 0:
				return "bad"
			case 1:
				return "panic: bad"
			}
			return ""
		})
		s.steps(random.IntN(60))
		joint := eventstore.NewJointLog(s.log, eventstore.JointOptions{Bytes: 1 << (8 + random.IntN(6)), WaitMax: time.Millisecond})
		state.until, state.pause = 1+random.Uint64N(s.last.Number), time.Duration(random.IntN(3000))*time.Microsecond
		if random.IntN(3) == 0 {
			state.at = eventstore.Genesis(0, 1) // Its part of the disk was lost.
		}
		stop := state.follow(t, joint)
		n := startNode(t, fs, joint)
		if life%2 == 0 {
			n.reach(s)
		} else if reached, err := n.runners[0].await(t.Context(), 1+random.Uint64N(s.last.Number), patience); err != nil || !reached {
			t.Fatalf("seed %d, life %d: the views are at %d (%v)", seed, life, n.runners[0].Position().Number, err)
		}
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
		if err := stop(); err != nil {
			t.Fatalf("seed %d, life %d: the lane's state at commit %d: %v", seed, life, state.at.Number, err)
		}
		if errs := n.stop(); errs != nil {
			t.Fatalf("seed %d, life %d: %v", seed, life, errs)
		}
		fs = crashed
		p.set(nil)
		after := openNode(t, fs, s.log)
		after.verify(s)
		if err := after.store.Close(); err != nil {
			t.Fatal(err)
		}
	}
	n := startNode(t, fs, eventstore.NewJointLog(s.log, eventstore.JointOptions{}))
	n.reach(s)
	n.replayAll()
	n.check(s)
	whole := startNode(t, vfs.NewMem(), s.log)
	whole.reach(s)
	if n.contents() != whole.contents() {
		t.Fatalf("seed %d: the views are not those that read by themselves (I6)", seed)
	}
}

// TestViewsStopWhileTheyWaitForTheLane has the lane's state stand still at the second commit, so that the views, which are in front, wait.
func TestViewsStopWhileTheyWaitForTheLane(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(100)
	joint := eventstore.NewJointLog(s.log, eventstore.JointOptions{Bytes: 1, WaitMax: time.Hour})
	state := &lanesState{at: eventstore.Genesis(0, 1), until: 2}
	stop := state.follow(t, joint)
	cursor, err := joint.Follow(t.Context(), 1) // Keeps what the views are to join, wherever the state is by then.
	if err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	n := startNode(t, fs, joint)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if reached, _ := n.runners[0].await(ctx, s.last.Number, patience); reached {
		t.Fatal("the views came to the end of the log while the lane's state stood still")
	}
	if errs := n.stop(); errs != nil {
		t.Fatalf("the views stopped with %v", errs)
	}
	cursor.Close()
	if err := stop(); err != nil {
		t.Fatalf("the lane's state stopped with %v", err)
	}
	n = startNode(t, fs, joint)
	n.reach(s)
	n.verify(s)
}
