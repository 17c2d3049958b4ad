package breaker

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Limits say when a breaker opens and for how long. A zero field means its default, which suits calls that are answered within
// milliseconds.
type Limits struct {
	// Window is how far back the breaker looks; 0 means 10 s. It also looks at the last ShortWindow alone (0 means 1 s), so
	// that a quick end is noticed quickly and few calls are enough in the long run.
	Window      time.Duration `yaml:"window"`
	ShortWindow time.Duration `yaml:"short_window"`
	// CallsMin calls in a window are needed before shares of them mean anything; 0 means 10.
	CallsMin int `yaml:"calls_min"`
	// FaultShare of a window's calls that are faults opens it; 0 means 0.5.
	FaultShare float64 `yaml:"fault_share"`
	// SlowShare of a window's calls that took SlowAfter (0 means 1 s) or longer opens it; 0 means 0.8. A call that is under
	// way for that long is slow already.
	SlowAfter time.Duration `yaml:"slow_after"`
	SlowShare float64       `yaml:"slow_share"`
	// HungAfter is how long CallsMin calls may be without any answer before it opens; 0 means three quarters of SlowAfter.
	HungAfter time.Duration `yaml:"hung_after"`
	// UnansweredMax calls let through since the last answer open it, however quickly they came; 0 means 10,000.
	UnansweredMax int `yaml:"unanswered_max"`
	// OpenTime is how long it stays open before it probes; 0 means 1 s. It does not grow: probes are few, and an upstream that
	// is back is to be used again within two seconds.
	OpenTime time.Duration `yaml:"open_time"`
	// ProbesMax probes are under way at once (0 means 3), and ProbesGood that are answered close it (0 means 3).
	ProbesMax  int `yaml:"probes_max"`
	ProbesGood int `yaml:"probes_good"`
	// ProbeTimeMax is how long probes may take, all in all, before it opens again; 0 means the same as SlowAfter.
	ProbeTimeMax time.Duration `yaml:"probe_time_max"`
}

// Config configures a Set.
type Config struct {
	Limits `yaml:",inline"`
	// Methods has limits for single methods; a field that is zero there is as above.
	Methods map[string]Limits `yaml:"methods"`
	// BreakersMax bounds the breakers of a Set; 0 means 8,192. Methods beyond share one for each upstream.
	BreakersMax int `yaml:"breakers_max"`
}

const (
	// shortSlots slots of time are one short window: it is exact to a tenth.
	shortSlots = 10
	// windowSlotsMax bounds the slots of the long window: it is that many tenths of the short one at most.
	windowSlotsMax = 1000

	shortWindowMin = 10 * time.Millisecond
	durationMax    = 10 * time.Minute
	countMax       = 1_000_000

	breakersMaxDefault = 8192
)

// WithDefaults fills in the fields that are zero.
func (l Limits) WithDefaults() Limits {
	l = l.over(Limits{
		Window: 10 * time.Second, ShortWindow: time.Second, CallsMin: 10, FaultShare: 0.5, SlowAfter: time.Second, SlowShare: 0.8,
		UnansweredMax: 10_000, OpenTime: time.Second, ProbesMax: 3, ProbesGood: 3,
	})
	return l.over(Limits{HungAfter: l.SlowAfter * 3 / 4, ProbeTimeMax: l.SlowAfter})
}

// over returns l with what is zero taken from below.
func (l Limits) over(below Limits) Limits {
	l.Window, l.ShortWindow = either(l.Window, below.Window), either(l.ShortWindow, below.ShortWindow)
	l.CallsMin, l.FaultShare = either(l.CallsMin, below.CallsMin), either(l.FaultShare, below.FaultShare)
	l.SlowAfter, l.SlowShare = either(l.SlowAfter, below.SlowAfter), either(l.SlowShare, below.SlowShare)
	l.HungAfter, l.UnansweredMax = either(l.HungAfter, below.HungAfter), either(l.UnansweredMax, below.UnansweredMax)
	l.OpenTime, l.ProbeTimeMax = either(l.OpenTime, below.OpenTime), either(l.ProbeTimeMax, below.ProbeTimeMax)
	l.ProbesMax, l.ProbesGood = either(l.ProbesMax, below.ProbesMax), either(l.ProbesGood, below.ProbesGood)
	return l
}

func either[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// Validate returns an error that says which limit is wrong, and what it may be.
func (l Limits) Validate() error {
	l = l.WithDefaults()
	for _, d := range []struct {
		name     string
		is, from time.Duration
	}{
		{"short_window", l.ShortWindow, shortWindowMin},
		{"window", l.Window, l.ShortWindow},
		{"slow_after", l.SlowAfter, time.Millisecond},
		{"hung_after", l.HungAfter, time.Millisecond},
		{"open_time", l.OpenTime, time.Millisecond},
		{"probe_time_max", l.ProbeTimeMax, time.Millisecond},
	} {
		if d.is < d.from || d.is > durationMax {
			return fmt.Errorf("%s is %s; it is between %s and %s", d.name, d.is, d.from, durationMax)
		}
	}
	for _, c := range []struct {
		name string
		is   int
	}{{"calls_min", l.CallsMin}, {"unanswered_max", l.UnansweredMax}, {"probes_max", l.ProbesMax}, {"probes_good", l.ProbesGood}} {
		if c.is < 1 || c.is > countMax {
			return fmt.Errorf("%s is %d; it is between 1 and %d", c.name, c.is, countMax)
		}
	}
	for name, share := range map[string]float64{"fault_share": l.FaultShare, "slow_share": l.SlowShare} {
		if !(share > 0 && share <= 1) { // NaN is neither.
			return fmt.Errorf("%s is %v; it is above 0 and at most 1", name, share)
		}
	}
	if slots := l.Window / (l.ShortWindow / shortSlots); slots > windowSlotsMax {
		return fmt.Errorf("window is %s; with a short_window of %s it is at most %s", l.Window, l.ShortWindow, l.ShortWindow*windowSlotsMax/shortSlots)
	}
	if l.SlowAfter > l.Window {
		return fmt.Errorf("slow_after is %s; it is at most the window of %s", l.SlowAfter, l.Window)
	}
	return nil
}

// of returns the limits of a method.
func (c Config) of(method string) Limits { return c.Methods[method].over(c.Limits).WithDefaults() }

// Validate returns an error that says which limit of which method is wrong, and what it may be.
func (c Config) Validate() error {
	if err := c.Limits.Validate(); err != nil {
		return err
	}
	for _, method := range slices.Sorted(maps.Keys(c.Methods)) {
		if err := c.of(method).Validate(); err != nil {
			return fmt.Errorf("method %s: %w", method, err)
		}
	}
	if c.BreakersMax < 0 || c.BreakersMax > countMax {
		return fmt.Errorf("breakers_max is %d; it is between 1 and %d", c.BreakersMax, countMax)
	}
	return nil
}
