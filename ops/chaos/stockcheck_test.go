package main

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// A drawn says what a history of stock is like that is drawn: calls of some clients that took effect at some moment of theirs. One of lost has no
// answer, one of wrong another one than it could have, 0 for none, and refusals are from up to age before they were asked for.
type drawn struct {
	clients, each, lost, wrong int
	age                        int64
}

func (d drawn) history(random *rand.Rand) []porcupine.Operation {
	clients := d.clients
	var calls []porcupine.Operation
	free := int64(random.IntN(3))
	calls = append(calls, porcupine.Operation{ClientId: clients, Input: stockCall{-free}, Output: stockAnswer{known: true}, Call: 0, Return: 1})
	busyUntil := make([]int64, clients)
	for now := int64(10); len(calls) <= clients*d.each; now += 1 + random.Int64N(10) {
		client := random.IntN(clients)
		if busyUntil[client] > now {
			continue
		}
		from, to := max(busyUntil[client]+1, now-random.Int64N(20)), now+1+random.Int64N(20)
		busyUntil[client] = to
		taken, answer := int64(1+random.IntN(2)), stockAnswer{known: true}
		if random.IntN(4) == 0 {
			taken = -taken
		}
		switch {
		case random.IntN(d.lost) == 0: // Nobody was told, and it may have had no effect.
			answer.known = false
			if to = now + 1 + random.Int64N(60); random.IntN(2) == 0 {
				to = math.MaxInt64
			}
			if free >= taken && random.IntN(2) == 0 {
				free -= taken
			}
		case free >= taken:
			free -= taken
		default:
			answer.refused = true
			from -= random.Int64N(d.age) // As old as a verdict may be.
		}
		if d.wrong > 0 && random.IntN(d.wrong) == 0 && answer.known && taken > 0 {
			answer.refused = !answer.refused
		}
		calls = append(calls, porcupine.Operation{ClientId: client, Input: stockCall{taken}, Output: answer, Call: from, Return: to})
	}
	return calls
}

func TestTheCheckOfStockSaysWhatPorcupineSays(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	said := map[porcupine.CheckResult]int{}
	for round := range 5000 {
		calls := drawn{clients: 1 + random.IntN(3), each: 1 + random.IntN(5), lost: 8, wrong: 10, age: 40}.history(random)
		want := porcupine.CheckOperationsTimeout(stockModel, calls, time.Minute)
		got := checkStock(calls, time.Minute)
		if said[want]++; got != want {
			t.Fatalf("seed %d, round %d: got %v, porcupine says %v of%s", seed, round, got, want, textOf(stockModel, calls))
		}
	}
	if said[porcupine.Ok] < 100 || said[porcupine.Illegal] < 100 {
		t.Errorf("seed %d: the histories were %v, which shows little", seed, said)
	}
}

// Of 121 calls, of which many were refused while a node was stopped, porcupine did not know after 30 s.
func TestAHistoryWithManyRefusalsIsChecked(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range 50 {
		calls := drawn{clients: 4, each: 30, lost: 20, age: 200}.history(random)
		if got := checkStock(calls, time.Minute); got != porcupine.Ok {
			t.Fatalf("seed %d, round %d: got %v within a minute, want %v:%s", seed, round, got, porcupine.Ok, textOf(stockModel, calls))
		}
		// All that came before has to be tried in vain.
		last := calls[len(calls)-1].Call
		calls = append(calls, porcupine.Operation{Input: stockCall{1000}, Output: stockAnswer{known: true}, Call: last, Return: last + 1})
		if got := checkStock(calls, time.Minute); got != porcupine.Illegal {
			t.Fatalf("seed %d, round %d: got %v within a minute, want %v:%s", seed, round, got, porcupine.Illegal, textOf(stockModel, calls))
		}
	}
}
