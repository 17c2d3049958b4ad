package eventstore

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A stepLog is a Consumer that notes when it was flushed, and up to which commit.
type stepLog struct {
	began time.Time
	taken uint64
	steps []step
}

type step struct {
	after time.Duration
	to    uint64
}

func (s *stepLog) Take(_ context.Context, _ *Commit, at Position) error {
	s.taken = at.Number
	return nil
}

func (*stepLog) Full(bool) bool { return false }

func (s *stepLog) Flush(context.Context) error {
	if len(s.steps) == 0 || s.steps[len(s.steps)-1].to < s.taken {
		s.steps = append(s.steps, step{time.Since(s.began), s.taken})
	}
	return nil
}

// testPace has commits come to a follower that takes them in every 100 ms: at 0, every 10 ms from 5 to 145 ms, and at 500 ms. offered says
// that the lane's writer offers them. It returns the follower's steps.
func testPace(t *testing.T, offered bool, demand *Demand) []step {
	t.Helper()
	const pace = 100 * time.Millisecond
	log := OpenMemoryLog(0, 1024)
	records := chainOf(t, 0, Genesis(0, 1024), 17, 10)
	appendAll(t, log, records[:1])
	f := NewFollower(FollowerOptions{Lane: 0, Log: log, Pace: pace, Demand: demand})
	add := func(record Record) {
		appendAll(t, log, []Record{record})
		if !offered {
			return
		}
		commit, err := DecodeCommit(record.Data)
		if err != nil {
			t.Fatal(err)
		}
		f.Offer(commit, Position{Number: record.Number, Hash: record.Hash})
	}
	steps := &stepLog{began: time.Now()}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, Genesis(0, 1024), steps) }()
	synctest.Wait()
	<-time.After(5 * time.Millisecond)
	for _, record := range records[1:16] {
		add(record)
		<-time.After(10 * time.Millisecond)
	}
	<-time.After(345 * time.Millisecond)
	add(records[16])
	<-time.After(pace)
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return steps.steps
}

// asTheyCome are the steps until it is known that commits come faster than the pace.
func asTheyCome() (steps []step) {
	steps = append(steps, step{0, 1})
	for to := uint64(2); to <= 12; to++ {
		steps = append(steps, step{time.Duration(to)*10*time.Millisecond - 15*time.Millisecond, to})
	}
	return steps
}

func TestAFollowerTakesInCommitsThatComeFastInSteps(t *testing.T) {
	for name, offered := range map[string]bool{"off the log": false, "offered": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				want := append(asTheyCome(), step{205 * time.Millisecond, 16}, step{500 * time.Millisecond, 17})
				if got := testPace(t, offered, nil); !slices.Equal(got, want) {
					t.Fatalf("its steps were %v, want %v", got, want)
				}
			})
		})
	}
}

func TestAFollowerDoesNotRestWhileSomebodyWaits(t *testing.T) {
	// What had come by then, and what comes meanwhile.
	want := append(asTheyCome(), step{142 * time.Millisecond, 15}, step{145 * time.Millisecond, 16}, step{500 * time.Millisecond, 17})
	for name, offered := range map[string]bool{"off the log": false, "offered": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				demand := &Demand{}
				go func() {
					<-time.After(142 * time.Millisecond)
					leave := demand.Enter()
					<-time.After(20 * time.Millisecond)
					leave()
				}()
				if got := testPace(t, offered, demand); !slices.Equal(got, want) {
					t.Fatalf("its steps were %v, want %v", got, want)
				}
			})
		})
	}
}

func TestAFollowerThatIsBehindDoesNotRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := OpenMemoryLog(0, 1024)
		appendAll(t, log, chainOf(t, 0, Genesis(0, 1024), 100, 10))
		f := NewFollower(FollowerOptions{Lane: 0, Log: log, Pace: time.Second})
		steps := &tenAtATime{stepLog{began: time.Now()}}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx, Genesis(0, 1024), steps) }()
		synctest.Wait()
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		if last := steps.steps[len(steps.steps)-1]; len(steps.steps) != 10 || last != (step{0, 100}) {
			t.Fatalf("its steps were %v, want ten at once", steps.steps)
		}
	})
}

// tenAtATime is full with ten commits.
type tenAtATime struct{ stepLog }

func (s *tenAtATime) Full(bool) bool { return s.taken%10 == 0 }

// A node that had followed a leader's successor, and then asked the leader when that went on, took the log for shorter than it was and ended.
func TestALogIsNotTakenForShorterByOneAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		stale   int
		shorter bool
	}{
		"a leader that does not know of its successor yet": {10, false},
		"a log that is shorter":                            {1 << 30, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := OpenMemoryLog(0, 1024)
				records := chainOf(t, 0, Genesis(0, 1024), 3, 10)
				appendAll(t, log, records)
				f := NewFollower(FollowerOptions{Lane: 0, Log: &lateLog{MemoryLog: log, late: c.stale}})
				ctx, stop := context.WithTimeout(t.Context(), time.Minute)
				defer stop()
				steps := &stepLog{began: time.Now()}
				err := f.Run(ctx, Position{Number: 2, Hash: records[1].Hash}, steps)
				if chain := (*ChainError)(nil); errors.As(err, &chain) != c.shorter {
					t.Fatalf("got %v, want an error: %t (I1)", err, c.shorter)
				}
				if !c.shorter && steps.taken != 3 {
					t.Errorf("it took in commits up to %d, want 3", steps.taken)
				}
			})
		})
	}
}
