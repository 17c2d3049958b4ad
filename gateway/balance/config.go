package balance

import (
	"fmt"
	"slices"
	"time"
)

// Config says how upstreams are picked. A zero field means its default.
type Config struct {
	// Policy of calls that name none; 0 means LaneAffinity.
	Policy Policy `yaml:"policy"`
	// VirtualNodes are the points on the hash ring of an upstream with weight 1; 0 means 160.
	VirtualNodes int `yaml:"virtual_nodes"`
	// DecayTime is how quickly a latency that was seen is forgotten: after it, 37% are left; 0 means 3 s.
	DecayTime time.Duration `yaml:"decay_time"`
	// FaultLatency is what a call that failed counts as having taken, if it took less; 0 means 1 s.
	FaultLatency time.Duration `yaml:"fault_latency"`
	// WarmUp is how long the weight of an upstream grows after it started or came back; 0 means 10 s. It begins at WarmUpFrom of
	// its weight; 0 means 0.1.
	WarmUp     time.Duration `yaml:"warm_up"`
	WarmUpFrom float64       `yaml:"warm_up_from"`
	// Ejection says when an upstream gets no calls for a while.
	Ejection Ejection `yaml:"ejection"`
}

// Ejection says when an upstream gets no calls for a while. A zero field means its default.
type Ejection struct {
	// FaultsInRow faults, one after the other, eject; 0 means 5.
	FaultsInRow int `yaml:"faults_in_row"`
	// Every CompareEvery (0 means 1 s) the success rates of upstreams with at least CallsMin calls (0 means 20) since the last
	// time are compared. One whose rate is below the mean of the others by more than Deviations of their standard deviation
	// (0 means 2) and by more than RateGap (0 means 0.15) is ejected.
	CompareEvery time.Duration `yaml:"compare_every"`
	CallsMin     int           `yaml:"calls_min"`
	Deviations   float64       `yaml:"deviations"`
	RateGap      float64       `yaml:"rate_gap"`
	// FrozenCalls under way (0 means 3) and no answer for FrozenAfter (0 means 750 ms) eject too. Streams do not count.
	FrozenCalls int           `yaml:"frozen_calls"`
	FrozenAfter time.Duration `yaml:"frozen_after"`
	// Time of the first ejection; 0 means 5 s. It doubles with each further one, up to TimeMax (0 means 1 min), and begins anew
	// for one that then did well for TimeMax.
	Time    time.Duration `yaml:"time"`
	TimeMax time.Duration `yaml:"time_max"`
	// TrialCalls are what an upstream gets when it comes back, until it answers one of them; 0 means 3.
	TrialCalls int `yaml:"trial_calls"`
	// ShareMax of the upstreams are ejected at once, at least one of several; 0 means 0.7.
	ShareMax float64 `yaml:"share_max"`
	// PanicBelow: if a smaller share of the upstreams is not ejected, calls go to all of them, for a few would not carry the
	// load of all; 0 means 0.5.
	PanicBelow float64 `yaml:"panic_below"`
	// Off ejects nothing.
	Off bool `yaml:"off"`
}

// Limits of a Balancer.
const (
	// UpstreamsMax bounds the upstreams.
	UpstreamsMax = 1024
	// WeightMax bounds an upstream's weight.
	WeightMax = 1000

	// ringPointsMax bounds the points on the hash ring.
	ringPointsMax = 1 << 17
	// lanesMax bounds the lanes whose owners are known: there is one lane for each partition at most.
	lanesMax = 1024

	// silenceShare of FrozenAfter is how long an upstream may say nothing before what waits for it waits for nothing, as it seems.
	silenceShare = 3

	virtualNodesMax = 4096
	durationMax     = time.Hour
	countMax        = 1_000_000
)

// WithDefaults fills in the fields that are zero.
func (c Config) WithDefaults() Config {
	setDefault(&c.Policy, LaneAffinity)
	setDefault(&c.VirtualNodes, 160)
	setDefault(&c.DecayTime, 3*time.Second)
	setDefault(&c.FaultLatency, time.Second)
	setDefault(&c.WarmUp, 10*time.Second)
	setDefault(&c.WarmUpFrom, 0.1)
	e := &c.Ejection
	setDefault(&e.FaultsInRow, 5)
	setDefault(&e.CompareEvery, time.Second)
	setDefault(&e.CallsMin, 20)
	setDefault(&e.Deviations, 2)
	setDefault(&e.RateGap, 0.15)
	setDefault(&e.FrozenCalls, 3)
	setDefault(&e.FrozenAfter, 750*time.Millisecond)
	setDefault(&e.Time, 5*time.Second)
	setDefault(&e.TimeMax, max(time.Minute, e.Time))
	setDefault(&e.TrialCalls, 3)
	setDefault(&e.ShareMax, 0.7)
	setDefault(&e.PanicBelow, 0.5)
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
	e := c.Ejection
	if int(c.Policy) >= len(policyNames) {
		return fmt.Errorf("policy is %d, which is none; it is one of %q", uint8(c.Policy), policyNames[1:])
	}
	for _, d := range []struct {
		name     string
		is, from time.Duration
	}{
		{"decay_time", c.DecayTime, time.Millisecond},
		{"fault_latency", c.FaultLatency, time.Millisecond},
		{"warm_up", c.WarmUp, time.Millisecond},
		{"ejection.compare_every", e.CompareEvery, 10 * time.Millisecond},
		{"ejection.frozen_after", e.FrozenAfter, time.Millisecond},
		{"ejection.time", e.Time, time.Millisecond},
		{"ejection.time_max", e.TimeMax, e.Time},
	} {
		if d.is < d.from || d.is > durationMax {
			return fmt.Errorf("%s is %s; it is between %s and %s", d.name, d.is, d.from, durationMax)
		}
	}
	for _, n := range []struct {
		name   string
		is, to int
	}{
		{"virtual_nodes", c.VirtualNodes, virtualNodesMax},
		{"ejection.faults_in_row", e.FaultsInRow, countMax},
		{"ejection.calls_min", e.CallsMin, countMax},
		{"ejection.frozen_calls", e.FrozenCalls, countMax},
		{"ejection.trial_calls", e.TrialCalls, countMax},
	} {
		if n.is < 1 || n.is > n.to {
			return fmt.Errorf("%s is %d; it is between 1 and %d", n.name, n.is, n.to)
		}
	}
	for _, s := range []struct {
		name string
		is   float64
	}{
		{"warm_up_from", c.WarmUpFrom}, {"ejection.rate_gap", e.RateGap}, {"ejection.share_max", e.ShareMax}, {"ejection.panic_below", e.PanicBelow},
	} {
		if !(s.is > 0 && s.is <= 1) { // NaN is neither.
			return fmt.Errorf("%s is %v; it is above 0 and at most 1", s.name, s.is)
		}
	}
	if !(e.Deviations > 0 && e.Deviations < countMax) {
		return fmt.Errorf("ejection.deviations is %v; it is above 0", e.Deviations)
	}
	return nil
}

// A Policy is a way to choose among upstreams.
type Policy uint8

// The policies.
const (
	// LaneAffinity picks the upstream that decides the call's lane, and where that is not known, or does not answer, as
	// PeakEWMA does: any node hands a call on to the lane's owner.
	LaneAffinity Policy = iota + 1
	// PeakEWMA draws two and picks the one that is expected to answer sooner: by its latency, which rises at once and decays
	// slowly, times the calls it has under way.
	PeakEWMA
	// WeightedRandom draws one, by weight.
	WeightedRandom
	// WeightedRoundRobin picks in turns, by weight, those of a heavy one spread out between those of others.
	WeightedRoundRobin
	// LeastActive picks the one with the fewest calls under way for its weight.
	LeastActive
	// ConsistentHash picks by the call's hash: the same one as long as it is there; when one comes or goes, only its share of
	// calls moves.
	ConsistentHash
)

var policyNames = [...]string{
	0: "", LaneAffinity: "lane_affinity", PeakEWMA: "peak_ewma", WeightedRandom: "weighted_random", WeightedRoundRobin: "weighted_round_robin",
	LeastActive: "least_active", ConsistentHash: "consistent_hash",
}

// String returns the policy's name in a policy file.
func (p Policy) String() string {
	if int(p) < len(policyNames) {
		return policyNames[p]
	}
	return fmt.Sprintf("Policy(%d)", uint8(p))
}

// MarshalText implements encoding.TextMarshaler.
func (p Policy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Policy) UnmarshalText(text []byte) error {
	i := slices.Index(policyNames[:], string(text))
	if i < 0 {
		return fmt.Errorf("there is no balancing policy %q; it is one of %q", text, policyNames[1:])
	}
	*p = Policy(i)
	return nil
}
