package eventstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weirhq/weir/eventstore/embedded"
)

func TestJointLogKeepsTheContract(t *testing.T) {
	lane := uint32(0)
	fresh := func(*testing.T) (Log, uint32) {
		lane++
		return NewJointLog(OpenMemoryLog(lane, 1024), JointOptions{}), lane
	}
	testLogContract(t, contractRig{fresh: fresh, repeated: ErrConflict})
}

func TestJointLogOverJetStreamKeepsTheContract(t *testing.T) {
	server := startServer(t, embedded.Options{Dir: t.TempDir()})
	rig := jetStreamRig(connectTo(t, server), 1)
	alone := rig.fresh
	rig.fresh = func(t *testing.T) (Log, uint32) {
		log, lane := alone(t)
		return NewJointLog(log, JointOptions{Bytes: 1}), lane // No room is what is hardest.
	}
	rig.full = nil
	rig.repeated = ErrConflict
	rig.interrupt = func(t *testing.T) {
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	testLogContract(t, rig)
}

// A countedLog counts what its cursors read, and how many are open. It fails when it is told to.
type countedLog struct {
	*MemoryLog

	mu         sync.Mutex
	read, open int
	fails      error // of the next read; nil for none
}

type countedCursor struct {
	Cursor
	log *countedLog
}

func (l *countedLog) Follow(ctx context.Context, number uint64) (Cursor, error) {
	cursor, err := l.MemoryLog.Follow(ctx, number)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open++
	return &countedCursor{cursor, l}, nil
}

func (c *countedCursor) Next(ctx context.Context) (Record, error) {
	c.log.mu.Lock()
	if err := c.log.fails; err != nil {
		c.log.fails = nil
		c.log.mu.Unlock()
		return Record{}, err
	}
	c.log.mu.Unlock()
	record, err := c.Cursor.Next(ctx)
	if err == nil {
		c.log.mu.Lock()
		c.log.read++
		c.log.mu.Unlock()
	}
	return record, err
}

func (c *countedCursor) Close() {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.log.open--
}

// wantUse checks how many commits were read from the log below, by how many cursors that are open.
func (l *countedLog) wantUse(t *testing.T, read, open int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.read != read || l.open != open {
		t.Fatalf("%d commits were read and %d cursors are open, want %d and %d", l.read, l.open, read, open)
	}
}

// jointRig is a log of commits of 100 bytes or a little more, and how it is read together.
func jointRig(t *testing.T, commits int, options JointOptions) (*JointLog, *countedLog, []Record) {
	t.Helper()
	counted := &countedLog{MemoryLog: OpenMemoryLog(0, 1024)}
	records := chainOf(t, 0, Genesis(0, 1024), commits, 100)
	appendAll(t, counted, records)
	return NewJointLog(counted, options), counted, records
}

// take has a cursor take commits, which are to be the next ones.
func take(t *testing.T, cursor Cursor, records []Record) {
	t.Helper()
	for _, record := range records {
		wantNext(t, cursor, record)
	}
}

func TestWhoReadsTogetherReadsAndDecodesOnce(t *testing.T) {
	joint, log, records := jointRig(t, 100, JointOptions{})
	state, views := follow(t, joint, 1), follow(t, joint, 1)
	for i := range records {
		first, err := state.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		second, err := views.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		one, err := first.Commit()
		if err != nil {
			t.Fatal(err)
		}
		if other, err := second.Commit(); err != nil || one != other || one.Number != uint64(i+1) {
			t.Fatalf("commit %d was decoded as %p, number %d, and as %p, %v; want once", i+1, one, one.Number, other, err)
		}
	}
	log.wantUse(t, 100, 1)
	state.Close()
	views.Close()
	log.wantUse(t, 100, 0)
}

func TestWhoComesLaterTakesWhatIsKept(t *testing.T) {
	joint, log, records := jointRig(t, 100, JointOptions{})
	views := follow(t, joint, 1)
	take(t, views, records[:60])
	state := follow(t, joint, 31)
	if got := state.Buffered(); got != 70 {
		t.Errorf("%d commits are at hand, want the 30 that are kept and the 40 of the log", got)
	}
	take(t, state, records[30:])
	take(t, views, records[60:])
	log.wantUse(t, 100, 1)
}

func TestWhatAllHavePassedIsNotKeptAtTheHead(t *testing.T) {
	joint, _, records := jointRig(t, 100, JointOptions{})
	state, views := follow(t, joint, 1), follow(t, joint, 1)
	take(t, state, records)
	take(t, views, records[:90])
	r := joint.readings[0]
	if len(r.window) != 10 || r.first != 91 {
		t.Fatalf("%d commits are kept from %d on, want those that one has not taken: 10 from 91 on", len(r.window), r.first)
	}
	take(t, views, records[90:])
	if len(r.window) != 0 || r.bytes != 0 {
		t.Fatalf("%d commits of %d bytes are kept at the head, want none", len(r.window), r.bytes)
	}
}

func TestOneFarBehindReadsAloneUntilItMeetsTheOther(t *testing.T) {
	joint, log, records := jointRig(t, 100, JointOptions{Bytes: 10 * 250})
	views := follow(t, joint, 41)
	take(t, views, records[40:60])
	kept := int(joint.readings[0].first)
	if kept < 45 || kept > 55 {
		t.Fatalf("commits are kept from %d on, want some 10 of 60", kept)
	}
	state := follow(t, joint, 1)
	log.wantUse(t, 20, 2)
	take(t, state, records[:kept-1])
	log.wantUse(t, 20+kept-1, 2)
	take(t, state, records[kept-1:60])
	log.wantUse(t, 20+kept-1, 1) // It has met the views, and left its own cursor.
	for from := 60; from < len(records); from += 5 {
		take(t, state, records[from:from+5])
		take(t, views, records[from:from+5])
	}
	log.wantUse(t, 60+kept-1, 1)
}

func TestTheOneInFrontWaitsForTheLastAndThenLeavesItBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joint, log, records := jointRig(t, 100, JointOptions{Bytes: 10 * 250, WaitMax: time.Second})
		state, views := follow(t, joint, 1), follow(t, joint, 1)
		take(t, views, records[:5])
		reached := make(chan uint64, len(records))
		go func() {
			for range records {
				record, err := state.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				reached <- record.Number
			}
		}()
		synctest.Wait()
		ahead := len(reached)
		if ahead < 10 || ahead > 30 {
			t.Fatalf("the one in front is at commit %d, the last one at 5, want some 10 between them", ahead)
		}
		<-time.After(time.Second - time.Millisecond)
		synctest.Wait()
		if len(reached) != ahead {
			t.Fatalf("the one in front went on from %d to %d before its wait was over", ahead, len(reached))
		}
		wantNext(t, views, records[5])
		synctest.Wait()
		if len(reached) != ahead+1 {
			t.Fatalf("the last one has moved by one commit, the one in front from %d to %d", ahead, len(reached))
		}
		<-time.After(time.Second)
		synctest.Wait()
		if len(reached) != len(records) {
			t.Fatalf("the one in front is at %d of %d a second after the last one moved", len(reached), len(records))
		}
		log.wantUse(t, 100, 1)
		take(t, views, records[6:])
		if log.read <= 100 || log.read > 200 {
			t.Fatalf("%d commits were read, want the last one to read by itself what is not kept", log.read)
		}
		state.Close()
		views.Close()
		log.wantUse(t, log.read, 0)
	})
}

func TestOneThatMovesSlowlyIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const waitMax = time.Second
		joint, log, records := jointRig(t, 100, JointOptions{Bytes: 10 * 250, WaitMax: waitMax})
		state, views := follow(t, joint, 1), follow(t, joint, 1)
		began, ended := time.Now(), make(chan time.Duration, 1)
		go func() {
			take(t, state, records)
			ended <- time.Since(began)
		}()
		for i := range records {
			take(t, views, records[i:i+1])
			<-time.After(waitMax / 4)
		}
		if took := <-ended; took != waitMax {
			t.Fatalf("the one in front took %v beside one that moves every %v, want to wait %v and no longer", took, waitMax/4, waitMax)
		}
		if log.read <= 100 || log.read > 200 {
			t.Fatalf("%d commits were read, want the last one to read by itself what is not kept", log.read)
		}
	})
}

func TestWhoStopsWhileItWaitsForTheLastLeavesItReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joint, log, records := jointRig(t, 100, JointOptions{Bytes: 10 * 250, WaitMax: time.Hour})
		state, views := follow(t, joint, 1), follow(t, joint, 1)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			for {
				if _, err := state.Next(ctx); err != nil {
					ended <- err
					return
				}
			}
		}()
		synctest.Wait()
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatalf("it ended with %v, want its context's error", err)
		}
		state.Close()
		take(t, views, records)
		log.wantUse(t, 100, 1)
	})
}

func TestWhoStopsWhileItReadsForAllLeavesTheOthersReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joint, log, records := jointRig(t, 10, JointOptions{})
		state, views := follow(t, joint, 1), follow(t, joint, 1)
		take(t, state, records)
		take(t, views, records)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			_, err := state.Next(ctx) // It has the turn, and nothing comes.
			ended <- err
		}()
		synctest.Wait()
		next := make(chan Record, 1)
		go func() {
			record, err := views.Next(t.Context())
			if err != nil {
				t.Error(err)
			}
			next <- record
		}()
		synctest.Wait()
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatalf("it ended with %v, want its context's error", err)
		}
		state.Close()
		more := chainOf(t, 0, position(records[9]), 1, 100)
		appendAll(t, log, more)
		if record := <-next; record.Number != 11 {
			t.Fatalf("the other one read commit %d, want 11", record.Number)
		}
		log.wantUse(t, 11, 1)
	})
}

func TestOneThatIsLeftIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		joint, log, records := jointRig(t, 100, JointOptions{Bytes: 10 * 250, WaitMax: time.Hour})
		state, views := follow(t, joint, 1), follow(t, joint, 1)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			take(t, state, records)
		}()
		synctest.Wait()
		views.Close() // As one does that has failed.
		<-ended
		log.wantUse(t, 100, 1)
	})
}

func TestAFaultOfTheLogIsToldOnceAndNothingIsLost(t *testing.T) {
	joint, log, records := jointRig(t, 100, JointOptions{})
	state, views := follow(t, joint, 1), follow(t, joint, 1)
	take(t, state, records[:50])
	take(t, views, records[:40])
	log.fails = errInjected
	if _, err := state.Next(t.Context()); !errors.Is(err, errInjected) {
		t.Fatalf("the one that read got %v, want the log's fault", err)
	}
	take(t, views, records[40:]) // It begins anew at its place.
	take(t, state, records[50:])
	state.Close()
	views.Close()
	log.wantUse(t, log.read, 0)
}

func TestWhatCannotBeDecodedIsEachOnesToSay(t *testing.T) {
	log := OpenMemoryLog(0, 1024)
	damaged := Record{Number: 1, Data: []byte{0xff}, Hash: HashOf([]byte{0xff})}
	appendAll(t, log, []Record{damaged})
	joint := NewJointLog(log, JointOptions{})
	for range 2 {
		record, err := follow(t, joint, 1).Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := record.Commit(); err == nil {
			t.Fatal("a commit of one byte was decoded")
		}
	}
}

// Whatever readers do, in whatever order: each sees every commit from its place on, once and in order (J1), all come to the end (J2), and
// no more is kept than is said (J3).
func TestReadersThatComeGoAndRestSeeEveryCommitOnce(t *testing.T) {
	seed := rand.Uint64()
	if text := os.Getenv("WEIR_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("WEIR_SEED: %v", err)
		}
	}
	t.Logf("seed %d (WEIR_SEED=%d repeats it)", seed, seed)
	for round := range uint64(50) {
		t.Run(fmt.Sprintf("round %d", round), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testReaders(t, rand.New(rand.NewPCG(seed+round, 0))) })
		})
	}
}

func testReaders(t *testing.T, chance *rand.Rand) {
	const commits, bytesMax = 300, 2000
	joint, log, records := jointRig(t, commits, JointOptions{Bytes: bytesMax, WaitMax: 20 * time.Millisecond})
	var running sync.WaitGroup
	for reader := range 2 + chance.IntN(3) {
		own := rand.New(rand.NewPCG(chance.Uint64(), 0))
		running.Go(func() {
			next, fails := 1+own.IntN(commits/2), 0
			var cursor Cursor
			for next <= commits {
				if cursor == nil {
					var err error
					if cursor, err = joint.Follow(t.Context(), uint64(next)); err != nil {
						t.Errorf("reader %d: %v", reader, err)
						return
					}
				}
				ctx, stop := context.WithTimeout(t.Context(), time.Duration(own.IntN(100))*time.Millisecond)
				record, err := cursor.Next(ctx)
				stop()
				switch {
				case err == nil && record.Number == uint64(next) && record.Hash == records[next-1].Hash:
					next++
				case err == nil:
					t.Errorf("reader %d got commit %d, want %d (J1)", reader, record.Number, next)
					return
				case errors.Is(err, errInjected), errors.Is(err, context.DeadlineExceeded):
					if fails++; fails > 100*commits {
						t.Errorf("reader %d is at commit %d after %d tries (J2)", reader, next, fails)
						return
					}
				default:
					t.Errorf("reader %d: %v", reader, err)
					return
				}
				switch own.IntN(20) {
				case 0:
					cursor.Close()
					cursor = nil
				case 1:
					<-time.After(time.Duration(own.IntN(60)) * time.Millisecond)
				case 2:
					log.mu.Lock()
					log.fails = errInjected
					log.mu.Unlock()
				}
				joint.mu.Lock()
				for _, r := range joint.readings {
					if most := bytesMax + len(records[0].Data) + 10; r.bytes > most { // Later ones' numbers are longer.
						t.Errorf("%d bytes are kept, want at most %d (J3)", r.bytes, most)
					}
				}
				joint.mu.Unlock()
			}
			if cursor != nil {
				cursor.Close()
			}
		})
	}
	running.Wait()
	if log.open != 0 || len(joint.readings) != 0 {
		t.Errorf("%d cursors and %d readings are left open", log.open, len(joint.readings))
	}
}
