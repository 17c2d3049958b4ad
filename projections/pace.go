package projections

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// A Speed says how fast a rebuild reads the log, over all lanes.
type Speed struct {
	// Background works half of the time.
	Background bool
	// EventsPerSecond bounds what is taken in; 0 is no bound.
	EventsPerSecond uint64
}

// SpeedFull is as fast as the machine reads and writes.
var SpeedFull = Speed{}

// SpeedBackground leaves half of the time to others.
var SpeedBackground = Speed{Background: true}

// ParseSpeed reads "full", "background", or a number of events a second.
func ParseSpeed(text string) (Speed, error) {
	switch text {
	case "full":
		return SpeedFull, nil
	case "background":
		return SpeedBackground, nil
	}
	events, err := strconv.ParseUint(text, 10, 64)
	if err != nil || events == 0 {
		return Speed{}, fmt.Errorf("%q is no speed: give full, background, or a number of events a second", text)
	}
	return Speed{EventsPerSecond: events}, nil
}

func (s Speed) String() string {
	switch {
	case s.EventsPerSecond > 0:
		return strconv.FormatUint(s.EventsPerSecond, 10)
	case s.Background:
		return "background"
	}
	return "full"
}

// MarshalText implements encoding.TextMarshaler.
func (s Speed) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Speed) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSpeed(string(text))
	return err
}

// At whatever speed, a rebuild makes room for the live views.
const (
	// lagCommitsMax is the lag of the live views above which a rebuild waits: their objective.
	lagCommitsMax = 64
	// lagPause is how long it waits before it looks again, and lagPausesMax how often in a row: then it goes on for a
	// step, so that it ends one day.
	lagPause     = 5 * time.Millisecond
	lagPausesMax = 200
	// paceEvents is how many events a step has.
	paceEvents = 4096
	// workMax is how long a rebuild in the background works before it pauses as long.
	workMax = 10 * time.Millisecond
	// sleepMin is the least that is slept: less is not worth it.
	sleepMin = time.Millisecond
)

// pace keeps a rebuild at its speed. All lanes of it share one.
type pace struct {
	mu      sync.Mutex
	started time.Time // of the bounded stretch
	taken   uint64    // events since then
	step    int       // events since the lag was looked at
	worked  time.Time // when the work since the last pause began
}

// wait is called after events were taken in, and returns when more may be. lag is that of the live views.
func (p *pace) wait(ctx context.Context, speed Speed, events int, lag func() uint64) error {
	p.mu.Lock()
	now := time.Now()
	var sleep time.Duration
	if p.started.IsZero() {
		p.started, p.worked = now, now
	}
	p.taken += uint64(events)
	if speed.EventsPerSecond > 0 {
		due := time.Duration(float64(p.taken) / float64(speed.EventsPerSecond) * float64(time.Second))
		sleep = due - now.Sub(p.started)
	}
	if speed.Background && now.Sub(p.worked) >= workMax {
		sleep = max(sleep, now.Sub(p.worked))
	}
	if sleep >= sleepMin {
		p.worked = now.Add(sleep)
	}
	p.step += events
	look := p.step >= paceEvents
	if look {
		p.step = 0
	}
	p.mu.Unlock()
	if sleep >= sleepMin {
		if err := sleepFor(ctx, sleep); err != nil {
			return err
		}
	}
	for range lagPausesMax {
		if !look || lag() <= lagCommitsMax {
			return ctx.Err()
		}
		if err := sleepFor(ctx, lagPause); err != nil {
			return err
		}
	}
	return nil
}

func sleepFor(ctx context.Context, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
