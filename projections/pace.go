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

// At whatever speed, a rebuild makes room for the live views, and for whoever calls the node.
const (
	// lagCommitsMax is the lag of the live views above which a rebuild waits: their objective.
	lagCommitsMax = 64
	// lagPause is how long it waits before it looks again, and lagPausesMax how often in a row: then it goes on for a
	// step, so that it ends one day.
	lagPause     = 5 * time.Millisecond
	lagPausesMax = 200
	// paceEvents is how many events a step has.
	paceEvents = 4096
	// sleepMin is the least that is slept for a number of events a second: less is not worth it.
	sleepMin = time.Millisecond

	// workMax is how long a rebuild in the background works before it rests as long.
	workMax = 10 * time.Millisecond
	// While others want the processors, a rebuild works shortWorkMax at a time and rests at least shortRestMin: whoever comes meanwhile
	// waits no longer than that for a processor, and not until Go takes the processor away, which is after 10 ms. If a rest ends more than
	// lateMax after its time, there is more to do than the processors can, and the next rest is twice as long, up to shortRestMax: so
	// the rebuild ends one day. Its goroutines take turns meanwhile, however many there are: one begins shortTurns after the one before at
	// the earliest, as two of them would without.
	shortWorkMax = 250 * time.Microsecond
	shortRestMin = time.Millisecond
	shortRestMax = 16 * time.Millisecond
	shortTurns   = (shortWorkMax + shortRestMin) / 2
	lateMax      = 2 * time.Millisecond
	// othersFor is how long others are taken to be there after the last sign of them.
	othersFor = 20 * time.Millisecond
)

// pace keeps a rebuild at its speed. All lanes and goroutines of it share one. The zero value is full speed where nobody else is.
type pace struct {
	speed Speed
	// lag is that of the live views, in commits; nil where there are none.
	lag func() uint64
	// asked counts what others have asked of this node so far, by calls and commits; nil where nobody does.
	asked func() uint64

	mu        sync.Mutex
	started   time.Time     // of the bounded stretch
	taken     uint64        // events since then
	held      time.Duration // by the bound and by the lag, summed over who was
	step      int           // events since the lag was looked at
	seen      uint64        // asked, at the last look
	looked    bool          // there was one
	othersAt  time.Time     // when asked was last seen to have risen
	shortRest time.Duration // after work among others; 0 is shortRestMin
	nextTurn  time.Time     // when whoever rests next may work among others, at the earliest
}

// take is called after events were taken in, and returns when more may be.
func (p *pace) take(ctx context.Context, events int) error {
	p.mu.Lock()
	now := time.Now()
	var sleep time.Duration
	if p.started.IsZero() {
		p.started = now
	}
	p.taken += uint64(events)
	if p.speed.EventsPerSecond > 0 {
		due := time.Duration(float64(p.taken) / float64(p.speed.EventsPerSecond) * float64(time.Second))
		sleep = due - now.Sub(p.started)
	}
	p.step += events
	look := p.lag != nil && p.step >= paceEvents
	if look {
		p.step = 0
	}
	p.mu.Unlock()
	if sleep >= sleepMin {
		if err := p.hold(ctx, sleep); err != nil {
			return err
		}
	}
	for range lagPausesMax {
		if !look || p.lag() <= lagCommitsMax {
			return ctx.Err()
		}
		if err := p.hold(ctx, lagPause); err != nil {
			return err
		}
	}
	return nil
}

// hold holds back whoever takes in events.
func (p *pace) hold(ctx context.Context, wait time.Duration) error {
	began := time.Now()
	err := sleepFor(ctx, wait)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held += time.Since(began)
	return err
}

// heldBack returns for how long events were not taken in that might have been, summed over all lanes.
func (p *pace) heldBack() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// A shift is one goroutine's work at a pace. A nil shift never rests.
type shift struct {
	pace  *pace
	began time.Time // after the last rest
}

// newShift begins to work.
func (p *pace) newShift() *shift { return &shift{pace: p, began: time.Now()} }

// another begins a shift of one more goroutine at the same pace.
func (s *shift) another() *shift {
	if s == nil {
		return nil
	}
	return s.pace.newShift()
}

// begin says that what was before was no work: it waited.
func (s *shift) begin() {
	if s != nil {
		s.began = time.Now()
	}
}

// yield is called every few dozen microseconds of work. It rests when the shift is over, and returns an error when ctx has ended.
func (s *shift) yield(ctx context.Context) error {
	if s == nil {
		return ctx.Err()
	}
	now := time.Now()
	rest, short := s.pace.restAfter(now.Sub(s.began), now)
	if rest == 0 {
		return ctx.Err()
	}
	if err := sleepFor(ctx, rest); err != nil {
		return err
	}
	s.began = time.Now()
	if short {
		s.pace.rested(s.began.Sub(now) - rest)
	}
	return nil
}

// restAfter returns how long to rest after some work, 0 to go on. short says that it is because others are there.
func (p *pace) restAfter(work time.Duration, now time.Time) (rest time.Duration, short bool) {
	if work < shortWorkMax {
		return 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.speed.Background && work >= workMax {
		rest = workMax
	}
	if p.othersThere(now) {
		rest, short = max(rest, p.shortRest, shortRestMin, p.nextTurn.Sub(now)), true
		p.nextTurn = now.Add(rest + shortTurns)
	}
	return rest, short
}

// othersThere reports whether this node was asked anything of late. REQUIRES: mu is held.
func (p *pace) othersThere(now time.Time) bool {
	if p.asked == nil {
		return false
	}
	asked := p.asked()
	if p.looked && asked != p.seen {
		p.othersAt = now
	}
	p.seen, p.looked = asked, true
	return !p.othersAt.IsZero() && now.Sub(p.othersAt) < othersFor
}

// rested makes rests longer that end late, and shorter again.
func (p *pace) rested(late time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if late > lateMax {
		p.shortRest = min(2*max(p.shortRest, shortRestMin), shortRestMax)
	} else {
		p.shortRest = max(p.shortRest-p.shortRest/8, shortRestMin)
	}
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
