package fault

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// Config says what happens to the calls of a method that fail. A zero field means its default.
type Config struct {
	// Mode is what is done; 0 means Failover.
	Mode Mode `yaml:"mode"`

	// AttemptsMax bounds the attempts of a call under Failover, the first one included; 0 means 3.
	AttemptsMax int `yaml:"attempts_max"`
	// AttemptTimeMax is how long an attempt under Failover may take before another upstream is tried in its place, as long as
	// there is one and the budget pays for it; 0 means 1 s. The last attempt has what is left of the call's time.
	AttemptTimeMax time.Duration `yaml:"attempt_time_max"`
	// Backoff bounds the pause before the second attempt (0 means 25 ms) and doubles with each further one, up to BackoffMax
	// (0 means 250 ms). The pause is any time up to that.
	Backoff    time.Duration `yaml:"backoff"`
	BackoffMax time.Duration `yaml:"backoff_max"`

	// Forks is how many attempts run at once under Forking; 0 means 2.
	Forks int `yaml:"forks"`

	// HedgesMax bounds the attempts after the first under Hedging; 0 means 1. One is made when the newest has taken longer than
	// HedgeQuantile of the calls do (0 means 0.95), but not before HedgeAfterMin (0 means 2 ms); HedgeAfterMax (0 means 1 s) is
	// also what holds until enough calls were seen.
	HedgesMax     int           `yaml:"hedges_max"`
	HedgeQuantile float64       `yaml:"hedge_quantile"`
	HedgeAfterMin time.Duration `yaml:"hedge_after_min"`
	HedgeAfterMax time.Duration `yaml:"hedge_after_max"`

	// Suffices says how many upstreams must do their work under Broadcast; 0 means All. ParallelMax of them are called at once;
	// 0 means 16.
	Suffices    Suffices `yaml:"suffices"`
	ParallelMax int      `yaml:"parallel_max"`
}

const (
	attemptsMax = 16 // of any call, whatever its mode
	parallelMax = 256
	durationMax = 10 * time.Minute
)

// WithDefaults fills in the fields that are zero.
func (c Config) WithDefaults() Config {
	setDefault(&c.Mode, Failover)
	setDefault(&c.AttemptsMax, 3)
	setDefault(&c.AttemptTimeMax, time.Second)
	setDefault(&c.Backoff, 25*time.Millisecond)
	setDefault(&c.BackoffMax, max(250*time.Millisecond, c.Backoff))
	setDefault(&c.Forks, 2)
	setDefault(&c.HedgesMax, 1)
	setDefault(&c.HedgeQuantile, 0.95)
	setDefault(&c.HedgeAfterMin, 2*time.Millisecond)
	setDefault(&c.HedgeAfterMax, max(time.Second, c.HedgeAfterMin))
	setDefault(&c.Suffices, All)
	setDefault(&c.ParallelMax, 16)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Validate returns an error that says which field is wrong, and what it may be.
func (c Config) Validate() error {
	c = c.WithDefaults()
	if int(c.Mode) >= len(modeNames) {
		return fmt.Errorf("mode is %d, which is none; it is one of %q", uint8(c.Mode), modeNames[1:])
	}
	if int(c.Suffices) >= len(sufficesNames) {
		return fmt.Errorf("suffices is %d, which is none; it is one of %q", uint8(c.Suffices), sufficesNames[1:])
	}
	for _, n := range []struct {
		name   string
		is, to int
	}{
		{"attempts_max", c.AttemptsMax, attemptsMax},
		{"forks", c.Forks, attemptsMax},
		{"hedges_max", c.HedgesMax, attemptsMax - 1},
		{"parallel_max", c.ParallelMax, parallelMax},
	} {
		if n.is < 1 || n.is > n.to {
			return fmt.Errorf("%s is %d; it is between 1 and %d", n.name, n.is, n.to)
		}
	}
	for _, d := range []struct {
		name     string
		is, from time.Duration
	}{
		{"attempt_time_max", c.AttemptTimeMax, time.Millisecond},
		{"backoff", c.Backoff, 1},
		{"backoff_max", c.BackoffMax, c.Backoff},
		{"hedge_after_min", c.HedgeAfterMin, 1},
		{"hedge_after_max", c.HedgeAfterMax, c.HedgeAfterMin},
	} {
		if d.is < d.from || d.is > durationMax {
			return fmt.Errorf("%s is %s; it is between %s and %s", d.name, d.is, d.from, durationMax)
		}
	}
	if !(c.HedgeQuantile > 0 && c.HedgeQuantile < 1) || math.IsNaN(c.HedgeQuantile) {
		return fmt.Errorf("hedge_quantile is %v; it is above 0 and below 1", c.HedgeQuantile)
	}
	return nil
}

// A Mode is what is done about a call that fails.
type Mode uint8

// The modes.
const (
	// Failover tries another upstream, after a pause, if the budget pays and the call may be made again.
	Failover Mode = iota + 1
	// Failfast makes one attempt and tells how it ended.
	Failfast
	// Failsafe makes one attempt; if it fails, the caller gets an empty success, and the fault is counted and logged. It is for
	// what nobody misses.
	Failsafe
	// Failback makes one attempt; if it fails, the call is kept and made again later, until it is answered.
	Failback
	// Forking makes several attempts at once, and the first good answer counts.
	Forking
	// Broadcast makes the call at every upstream, at once.
	Broadcast
	// Hedging makes another attempt when the first takes longer than most, and the first good answer counts.
	Hedging
)

var modeNames = [...]string{
	0: "", Failover: "failover", Failfast: "failfast", Failsafe: "failsafe", Failback: "failback", Forking: "forking", Broadcast: "broadcast",
	Hedging: "hedging",
}

// String returns the mode's name in a policy file.
func (m Mode) String() string { return nameOf(modeNames[:], uint8(m), "Mode") }

// MarshalText implements encoding.TextMarshaler.
func (m Mode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(text []byte) error {
	i, err := indexOf(modeNames[:], string(text), "mode")
	*m = Mode(i)
	return err
}

// Suffices says how many upstreams must do their work for a broadcast to be a success.
type Suffices uint8

// What suffices.
const (
	// All of them.
	All Suffices = iota + 1
	// Quorum is more than half of them.
	Quorum
	// Any one of them.
	Any
)

var sufficesNames = [...]string{0: "", All: "all", Quorum: "quorum", Any: "any"}

// String returns the name in a policy file.
func (s Suffices) String() string { return nameOf(sufficesNames[:], uint8(s), "Suffices") }

// MarshalText implements encoding.TextMarshaler.
func (s Suffices) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Suffices) UnmarshalText(text []byte) error {
	i, err := indexOf(sufficesNames[:], string(text), "suffices")
	*s = Suffices(i)
	return err
}

// of returns how many of the upstreams must do their work.
func (s Suffices) of(upstreams int) int {
	switch s {
	case All:
		return upstreams
	case Quorum:
		return upstreams/2 + 1
	case Any:
		return 1
	}
	panic("fault: " + s.String() + " says not how many suffice")
}

func nameOf(names []string, i uint8, kind string) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("%s(%d)", kind, i)
}

func indexOf(names []string, name, kind string) (int, error) {
	if i := slices.Index(names, name); i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("there is no %s %q; it is one of %q", kind, name, names[1:])
}
