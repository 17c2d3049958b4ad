package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// A silence measures for how long no order is acknowledged in a lane. A nil one measures nothing.
type silence struct {
	mu sync.Mutex
	// began is when the strike came, zero between strikes.
	began time.Time
	// heard is when each lane was heard last.
	heard map[uint32]time.Time
	// longest of the strike that is under way, with its lane and when it ended, and of each that is over.
	longest time.Duration
	lane    uint32
	at      time.Time
	all     []time.Duration
}

func newSilence() *silence { return &silence{heard: map[uint32]time.Time{}} }

// begin starts to measure.
func (s *silence) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began, s.longest = time.Now(), 0
}

// ended notes that a lane was heard.
func (s *silence) ended(lane uint32) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(lane, time.Now())
}

func (s *silence) note(lane uint32, now time.Time) {
	if before, heard := s.heard[lane]; heard && !s.began.IsZero() {
		// What was silent before the strike was not so because of it.
		if before.Before(s.began) {
			before = s.began
		}
		if silent := now.Sub(before); silent > s.longest {
			s.longest, s.lane, s.at = silent, lane, now
		}
	}
	s.heard[lane] = now
}

// end returns the longest silence of a lane since begin, which lane's it was and when it ended.
func (s *silence) end() (longest time.Duration, lane uint32, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for lane := range s.heard {
		s.note(lane, now)
	}
	s.began = time.Time{}
	s.all = append(s.all, s.longest)
	return s.longest, s.lane, s.at
}

// String says how long the longest silences were.
func (s *silence) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		return "nothing was struck"
	}
	sorted := slices.Sorted(slices.Values(s.all))
	at := func(share float64) time.Duration {
		return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))].Round(time.Millisecond)
	}
	return fmt.Sprintf("%d strikes; longest time without an order in a lane (min, median, p99, max): %v, %v, %v, %v", len(sorted), at(0), at(0.5), at(0.99), at(1))
}
