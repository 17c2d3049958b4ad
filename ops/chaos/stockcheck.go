package main

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// checkStock reports whether a history of stock can have happened one call after the other by stockModel, as porcupine would, which takes far
// longer where calls are refused: each refusal may have come at any moment of its time, a second and more, and porcupine tries them in every
// order. Here a refusal is put where it first fits. That is as good as any later place, since it changes nothing: but for tries without an
// answer that ended before the refusal was asked for, which have to come before it if they come at all; where there is one, both are tried.
func checkStock(calls []porcupine.Operation, most time.Duration) porcupine.CheckResult {
	s := &stockSearch{until: time.Now().Add(most), seen: map[string]bool{}}
	for i := range calls {
		call, answer := calls[i].Input.(stockCall), calls[i].Output.(stockAnswer) //nolint:errcheck // The model's own types.
		s.calls = append(s.calls, stockMove{taken: call.taken, from: calls[i].Call, to: calls[i].Return, refused: answer.refused, known: answer.known || answer.refused})
	}
	// Of those that may come next, the one is tried first whose time ends first.
	slices.SortStableFunc(s.calls, func(a, b stockMove) int { return cmp.Compare(a.to, b.to) })
	s.done = make([]byte, len(s.calls))
	switch fits := s.search(0, math.MinInt64); {
	case fits:
		return porcupine.Ok
	case s.late:
		return porcupine.Unknown
	}
	return porcupine.Illegal
}

// A stockMove is one call: it takes units, or gives some when that is negative, or was refused. One that is not known may have had no effect.
type stockMove struct {
	taken, from, to int64
	refused, known  bool
}

// A stockSearch looks for an order of calls.
type stockSearch struct {
	calls []stockMove
	// done has a 1 for each call that has its place, and seen what it was when the search found no way on from there. What is free follows
	// from it.
	done []byte
	seen map[string]bool
	// until is when the search gives up, late that it did, steps counts what was tried.
	until time.Time
	late  bool
	steps int
}

// stockLookEvery is after how many steps a search looks at the clock.
const stockLookEvery = 1 << 10

// search reports whether the rest fits behind what has its place, with so many units free. asked is when the latest of these was asked for.
func (s *stockSearch) search(free, asked int64) bool {
	if s.steps++; s.steps%stockLookEvery == 0 && time.Now().After(s.until) {
		s.late = true
	}
	if s.late || s.seen[string(s.done)] {
		return false
	}
	// What ended before another was asked for comes before it: nothing comes next that was asked for after the first end of what is left.
	firstEnd, left := int64(math.MaxInt64), false
	for i := range s.calls {
		if s.done[i] == 0 && s.calls[i].known {
			firstEnd, left = s.calls[i].to, true
			break
		}
	}
	if !left {
		return true
	}
	fits := func(next *stockMove, i int) bool {
		return s.done[i] == 0 && next.from <= firstEnd && (next.known || next.to >= asked) && next.refused == (free < next.taken)
	}
	for i := range s.calls {
		if next := &s.calls[i]; next.refused && fits(next, i) && !s.lostBefore(next.from, asked) {
			return s.place(i, free, asked)
		}
	}
	for i := range s.calls {
		next := &s.calls[i]
		if fits(next, i) && s.place(i, free-next.effect(), asked) {
			return true
		}
	}
	s.seen[string(s.done)] = true
	return false
}

// effect is how many units the call takes.
func (m *stockMove) effect() int64 {
	if m.refused {
		return 0
	}
	return m.taken
}

// place reports whether the rest fits when a call comes next, with so many units free after it.
func (s *stockSearch) place(i int, free, asked int64) bool {
	s.done[i] = 1
	fits := s.search(free, max(asked, s.calls[i].from))
	s.done[i] = 0
	return fits
}

// lostBefore reports whether a call without an answer may come yet that ended before a moment.
func (s *stockSearch) lostBefore(moment, asked int64) bool {
	for i := range s.calls {
		if s.done[i] == 0 && !s.calls[i].known && s.calls[i].to < moment && s.calls[i].to >= asked {
			return true
		}
	}
	return false
}
