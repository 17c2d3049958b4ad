package eventstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

func TestFaultLogWithoutFaultsKeepsTheContract(t *testing.T) {
	for _, replicated := range []bool{false, true} {
		t.Run(fmt.Sprintf("replicated=%t", replicated), func(t *testing.T) {
			connect := func(inner *MemoryLog) Log {
				return NewFaultLog(inner, FaultOptions{Replicated: replicated}, rand.New(rand.NewPCG(1, 2)))
			}
			rig := contractRig{
				fresh: func(*testing.T) (Log, uint32) { return connect(OpenMemoryLog(5, 1024)), 5 },
				full: func(*testing.T) (Log, uint32) {
					inner := OpenMemoryLog(5, 1024)
					inner.LimitBytes(200_000)
					return connect(inner), 5
				},
			}
			if !replicated {
				rig.repeated = ErrConflict
			}
			testLogContract(t, rig)
		})
	}
}

// Whatever goes wrong, a FaultLog says nothing false: nil means stored at its number, a refusal means that this append
// never takes effect, and what is stored is one chain of appends that were offered, each at its own number.
func TestFaultLogSaysNothingFalse(t *testing.T) {
	var outcomes [4]int // nil, conflict, unknown, full
	tookEffectLate := 0
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 0))
		options := FaultOptions{
			Replicated: seed%2 == 0, AckLost: 0.1, Lost: 0.1, Delayed: 0.2, Refused: 0.1, Full: 0.05, ReadFails: 0.1, Stale: 0.1,
		}
		inner := OpenMemoryLog(0, 1)
		var logs []*FaultLog
		for range 3 {
			logs = append(logs, NewFaultLog(inner, options, random))
		}
		type attempt struct {
			record  Record
			pending Pending
			outcome error
		}
		var attempts []attempt
		offered := map[Hash]bool{}
		for step := range 200 {
			log := logs[random.IntN(len(logs))]
			if random.IntN(4) == 0 {
				number := 1 + random.Uint64N(10)
				if stored, err := log.Read(t.Context(), number); err == nil && !offered[stored.Hash] {
					t.Fatalf("seed %d, step %d: read commit %d, which was never offered", seed, step, number)
				}
				continue
			}
			// Each attempt is another commit, mostly one that fits.
			at := inner.Position()
			if head := at.Number; head > 0 && random.IntN(3) == 0 {
				older, _ := inner.stored(1 + random.Uint64N(head))
				at = position(older)
			}
			record := EncodeCommit(&Commit{Number: at.Number + 1, PrevHash: at.Hash, Epoch: uint64(step)})
			offered[record.Hash] = true
			pending := log.Append(record)
			attempts = append(attempts, attempt{record, pending, pending.Wait(t.Context())})
		}
		for _, log := range logs {
			for range 64 {
				log.Arrive()
			}
		}
		stored := map[Hash]uint64{}
		at := Genesis(0, 1)
		for number := uint64(1); number <= inner.Position().Number; number++ {
			record, _ := inner.stored(number)
			commit, err := DecodeCommit(record.Data)
			if err != nil || commit.Number != number || stored[record.Hash] != 0 {
				t.Fatalf("seed %d: number %d holds commit %v (stored before at %d), %v", seed, number, commit, stored[record.Hash], err)
			}
			if !options.Replicated {
				if err := at.Check(commit, 0); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
			stored[record.Hash], at = number, position(record)
		}
		for i, a := range attempts {
			number, is := stored[a.record.Hash]
			switch {
			case a.outcome == nil && number != a.record.Number:
				t.Fatalf("seed %d, attempt %d: acknowledged commit %d is not stored", seed, i, a.record.Number)
			case errors.Is(a.outcome, ErrConflict) && is, errors.Is(a.outcome, ErrLogFull) && is:
				t.Fatalf("seed %d, attempt %d: commit %d was refused (%v) and is stored", seed, i, a.record.Number, a.outcome)
			case a.outcome == nil:
				outcomes[0]++
			case errors.Is(a.outcome, ErrConflict):
				outcomes[1]++
			case errors.Is(a.outcome, ErrUnknownOutcome):
				outcomes[2]++
				if is {
					tookEffectLate++
				}
			case errors.Is(a.outcome, ErrLogFull):
				outcomes[3]++
			}
		}
	}
	for i, n := range outcomes {
		if n == 0 {
			t.Errorf("outcome %d of (nil, conflict, unknown, full) never happened: %v", i, outcomes)
		}
	}
	if tookEffectLate == 0 {
		t.Error("no append of unknown outcome ever took effect")
	}
}

func TestFaultLogReplaysFromItsSeed(t *testing.T) {
	run := func() (outcomes []string) {
		random := rand.New(rand.NewPCG(7, 7))
		log := NewFaultLog(OpenMemoryLog(0, 1), FaultOptions{AckLost: 0.2, Lost: 0.2, Delayed: 0.3, Full: 0.1, ReadFails: 0.2}, random)
		at := Genesis(0, 1)
		for range 100 {
			record := EncodeCommit(&Commit{Number: at.Number + 1, PrevHash: at.Hash})
			err := log.Append(record).Wait(t.Context())
			if err == nil {
				at = position(record)
			}
			_, readErr := log.Read(t.Context(), record.Number)
			outcomes = append(outcomes, fmt.Sprint(err, readErr))
		}
		return outcomes
	}
	first, second := run(), run()
	for i := range first {
		if first[i] != second[i] {
			t.Fatalf("append %d: first %s, then %s", i, first[i], second[i])
		}
	}
}
