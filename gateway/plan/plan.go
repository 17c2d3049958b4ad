// Package plan is what an operator prepares for bad days and flips in one step: named, versioned sets of switches. A plan says less than a
// policy and for a while only: it lies over the policy until its time is over, or somebody takes it back.
//
// Plans are in a JetStream key-value bucket. What is active is one record in it, so that all gateways see the same changes in the same order,
// each change is one write or none, and what was before is the record before. A stream that is fed from the bucket keeps every change.
package plan

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"go.yaml.in/yaml/v3"
)

// A Plan is what is switched, and how. What it leaves out stays as it is.
type Plan struct {
	// Name is lower-case letters, digits and hyphens.
	Name string `yaml:"name"`
	// About says when to apply it and what it does, for who has to at night.
	About string `yaml:"about"`
	// Precedence decides between active plans that say different things of the same: the higher one counts, and of two equals the one that
	// was applied later. It is between -PrecedenceMax and PrecedenceMax.
	Precedence int `yaml:"precedence"`
	// TTL is how long it holds if who applies it does not say; 0 means TTLDefault.
	TTL time.Duration `yaml:"ttl"`
	// The switches.
	Switches `yaml:",inline"`
}

// Switches are what a plan may change. Methods are named as in a policy: package.Service/Method, package.Service/* or *; the nearest one
// counts.
type Switches struct {
	// Rates of methods.
	Rates map[string]Rates `yaml:"rates"`
	// Off are methods that are not served.
	Off map[string]Off `yaml:"off"`
	// Stale are reads that may be answered from memory.
	Stale map[string]Stale `yaml:"stale"`
	// SoldOut answers orders of what is sold out at the edge.
	SoldOut *bool `yaml:"sold_out"`
	// Breakers are forced.
	Breakers []Breaker `yaml:"breakers"`
	// ShedBelow is a priority: calls of a lower one are refused.
	ShedBelow string `yaml:"shed_below"`
	// WaitingRooms by campaign: whether who wants to order waits there.
	WaitingRooms map[string]bool `yaml:"waiting_rooms"`
	// Concurrency bounds the calls under way.
	Concurrency *Concurrency `yaml:"concurrency"`
	// Faults are the modes in which methods meet faults.
	Faults map[string]string `yaml:"faults"`
}

// Rates of one method: that of this gateway's calls, of one user's, and of those through all gateways.
type Rates struct {
	Rate   *RateChange `yaml:"rate"`
	User   *RateChange `yaml:"user"`
	Global *RateChange `yaml:"global"`
}

// A RateChange says what becomes of a rate: Factor of what the policy says. Where the policy says nothing, or there is no Factor, it is PerSecond.
type RateChange struct {
	Factor    float64 `yaml:"factor"`
	PerSecond float64 `yaml:"per_second"`
	// Burst may happen at once, with PerSecond; 0 means what is allowed in a second.
	Burst int `yaml:"burst"`
}

// A Rate is how often something may happen: PerSecond on average, 0 for no limit, and Burst at once, 0 for what is allowed in a second.
type Rate struct {
	PerSecond float64
	Burst     int
}

// Over returns what becomes of the policy's rate.
func (c RateChange) Over(policy Rate) Rate {
	switch {
	case c.Factor > 0 && policy.PerSecond > 0:
		scaled := Rate{PerSecond: min(max(policy.PerSecond*c.Factor, perSecondMin), perSecondMax)}
		if policy.Burst > 0 {
			scaled.Burst = int(min(max(1, float64(policy.Burst)*c.Factor), burstMax))
		}
		return scaled
	case c.PerSecond > 0:
		return Rate{PerSecond: c.PerSecond, Burst: c.Burst}
	}
	return policy
}

// Off is the answer of what is not served.
type Off struct {
	// Message tells people; empty means what the edge says by default.
	Message string `yaml:"message"`
	// Code of the error; 0 means unavailable.
	Code connect.Code `yaml:"code"`
	// RetryAfter tells programs; 0 means that they are told nothing.
	RetryAfter time.Duration `yaml:"retry_after"`
}

// Stale says when a read may be answered from memory; zero fields have the edge's defaults.
type Stale struct {
	MaxAge time.Duration `yaml:"max_age"`
	// Always answers from memory if it can, not only when nodes fail.
	Always       bool          `yaml:"always"`
	RefreshAfter time.Duration `yaml:"refresh_after"`
}

// A Breaker is forced. An empty upstream or method means all of them.
type Breaker struct {
	Upstream string `yaml:"upstream"`
	Method   string `yaml:"method"`
	// Force is one of Forces.
	Force string `yaml:"force"`
}

// Concurrency bounds how many calls are under way; 0 leaves a bound as it is.
type Concurrency struct {
	Min int `yaml:"min"`
	Max int `yaml:"max"`
}

// The words of a plan: what the gateway's parts call the same.
var (
	// Priorities, from what is shed first on.
	Priorities = []string{"points", "read", "place", "cancel", "pay"}
	// Forces are what a breaker may be forced to.
	Forces = []string{"open", "closed", "disabled"}
	// FaultModes are what may be done about calls that fail.
	FaultModes = []string{"failover", "failfast", "failsafe", "failback", "forking", "broadcast", "hedging"}
)

// Limits.
const (
	TTLDefault    = time.Hour
	TTLMax        = 30 * 24 * time.Hour
	PrecedenceMax = 1000
	// TextBytesMax bounds a plan. ActiveMax plans may be active at once: all of them fit into one message.
	TextBytesMax = 32 << 10
	ActiveMax    = 8

	ttlMin         = time.Second
	nameMax        = 63
	aboutBytesMax  = 4 << 10
	entriesMax     = 256
	perSecondMin   = 0.001
	perSecondMax   = 1e8
	burstMax       = 1_000_000_000
	factorMin      = 0.0001
	factorMax      = 1000
	concurrencyMax = 1 << 20
	timeMax        = 24 * time.Hour
	identifierMax  = 256
	// What an edge takes, for what is off.
	offMessageBytesMax = 1000
	offRetryAfterMax   = time.Hour
)

// What names look like.
var (
	nameForm       = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	patternForm    = regexp.MustCompile(`^(\*|[A-Za-z][A-Za-z0-9_.]*/(\*|[A-Za-z][A-Za-z0-9_]*))$`)
	identifierForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	// unknownField is what the YAML decoder says of a key that is not there.
	unknownField = regexp.MustCompile(`^line (\d+): field (\S+) not found in type \S+$`)
)

// Parse reads a plan, in YAML or JSON. A key that is not known is an error, which names its line.
func Parse(text []byte) (Plan, error) {
	var plan Plan
	if len(text) > TextBytesMax {
		return plan, fmt.Errorf("the plan has %d bytes, want at most %d", len(text), TextBytesMax)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&plan); err != nil {
		if errors.Is(err, io.EOF) {
			return plan, errors.New("the plan is empty; it has a name and switches")
		}
		return plan, plainError(err)
	}
	if err := decoder.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return plan, errors.New("there is more than one document; give one plan")
	}
	return plan, plan.Validate()
}

// plainError makes the decoder's error one sentence for people.
func plainError(err error) error {
	var types *yaml.TypeError
	if !errors.As(err, &types) {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	said := make([]string, 0, len(types.Errors))
	for _, one := range types.Errors {
		said = append(said, unknownField.ReplaceAllString(one, `line $1: unknown key "$2"`))
	}
	return errors.New(strings.Join(said, "; "))
}

// Validate says which value of the plan is not one, and what it may be.
func (p Plan) Validate() error {
	switch {
	case p.Name == "":
		return errors.New("name is missing: give the plan one, such as flash-sale")
	case len(p.Name) > nameMax || !nameForm.MatchString(p.Name):
		return fmt.Errorf("name is %q; it is lower-case letters, digits and hyphens, at most %d", p.Name, nameMax)
	case len(p.About) > aboutBytesMax:
		return fmt.Errorf("about has %d bytes, want at most %d", len(p.About), aboutBytesMax)
	case p.Precedence < -PrecedenceMax || p.Precedence > PrecedenceMax:
		return fmt.Errorf("precedence is %d; it is between %d and %d", p.Precedence, -PrecedenceMax, PrecedenceMax)
	case p.TTL != 0:
		if err := ValidateTTL(p.TTL); err != nil {
			return err
		}
	}
	if entries := p.entries(); entries == 0 {
		return errors.New("the plan switches nothing")
	} else if entries > entriesMax {
		return fmt.Errorf("the plan has %d switches, want at most %d", entries, entriesMax)
	}
	return p.Switches.validate()
}

// ValidateTTL says what is wrong with how long a plan is to hold.
func ValidateTTL(ttl time.Duration) error {
	if ttl < ttlMin || ttl > TTLMax {
		return fmt.Errorf("ttl is %s; it is between %s and %s: a plan always ends by itself", ttl, ttlMin, TTLMax)
	}
	return nil
}

// entries counts the switches.
func (s Switches) entries() int {
	entries := len(s.Rates) + len(s.Off) + len(s.Stale) + len(s.Breakers) + len(s.WaitingRooms) + len(s.Faults)
	for _, set := range []bool{s.SoldOut != nil, s.ShedBelow != "", s.Concurrency != nil} {
		if set {
			entries++
		}
	}
	return entries
}

func (s Switches) validate() error {
	for _, pattern := range s.patterns() {
		if !patternForm.MatchString(pattern.name) || len(pattern.name) > identifierMax {
			return fmt.Errorf("%s: method %q is none; write package.Service/Method, package.Service/* or *", pattern.of, pattern.name)
		}
	}
	for _, check := range []func() error{s.validateRates, s.validateEdge, s.validateForced, s.validateRest} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// A pattern is the name of methods somewhere in a plan.
type pattern struct{ of, name string }

// patterns returns all of them, in order.
func (s Switches) patterns() []pattern {
	all := []pattern{}
	for of, names := range map[string][]string{
		"rates": slices.Collect(maps.Keys(s.Rates)), "off": slices.Collect(maps.Keys(s.Off)), "stale": slices.Collect(maps.Keys(s.Stale)),
		"faults": slices.Collect(maps.Keys(s.Faults)),
	} {
		for _, name := range names {
			all = append(all, pattern{of, name})
		}
	}
	for _, breaker := range s.Breakers {
		if breaker.Method != "" {
			all = append(all, pattern{"breakers", breaker.Method})
		}
	}
	slices.SortFunc(all, func(a, b pattern) int { return strings.Compare(a.of+" "+a.name, b.of+" "+b.name) })
	return all
}

func (s Switches) validateRates() error {
	for _, method := range slices.Sorted(maps.Keys(s.Rates)) {
		rates := s.Rates[method]
		if rates == (Rates{}) {
			return fmt.Errorf("rates of %s: give rate, user or global", method)
		}
		for _, of := range []struct {
			name   string
			change *RateChange
		}{{"rate", rates.Rate}, {"user", rates.User}, {"global", rates.Global}} {
			if of.change == nil {
				continue
			}
			if err := of.change.validate(); err != nil {
				return fmt.Errorf("rates of %s, %s: %w", method, of.name, err)
			}
		}
	}
	return nil
}

// validate is written so that NaN is nowhere.
func (c RateChange) validate() error {
	switch {
	case c.Factor == 0 && c.PerSecond == 0:
		return errors.New("give factor, per_second, or both; what is not to be served at all belongs under off")
	case c.Factor != 0 && !(c.Factor >= factorMin && c.Factor <= factorMax):
		return fmt.Errorf("factor is %v; it is between %v and %v", c.Factor, factorMin, factorMax)
	case c.PerSecond != 0 && !(c.PerSecond >= perSecondMin && c.PerSecond <= perSecondMax):
		return fmt.Errorf("per_second is %v; it is between %v and %v", c.PerSecond, perSecondMin, perSecondMax)
	case c.Burst < 0 || c.Burst > burstMax:
		return fmt.Errorf("burst is %d; it is between 0 (what is allowed in a second) and %d", c.Burst, burstMax)
	case c.Burst != 0 && c.PerSecond == 0:
		return fmt.Errorf("burst is %d without per_second", c.Burst)
	}
	return nil
}

func (s Switches) validateEdge() error {
	for _, method := range slices.Sorted(maps.Keys(s.Off)) {
		off := s.Off[method]
		switch {
		case off.Code > connect.CodeUnauthenticated:
			return fmt.Errorf("off of %s: code %d is none", method, off.Code)
		case len(off.Message) > offMessageBytesMax:
			return fmt.Errorf("off of %s: message has %d bytes, want at most %d", method, len(off.Message), offMessageBytesMax)
		case off.RetryAfter < 0 || off.RetryAfter > offRetryAfterMax:
			return fmt.Errorf("off of %s: retry_after is %s; it is between 0 (none) and %s", method, off.RetryAfter, offRetryAfterMax)
		}
	}
	for _, method := range slices.Sorted(maps.Keys(s.Stale)) {
		stale := s.Stale[method]
		if err := errors.Join(validateTime("max_age", stale.MaxAge), validateTime("refresh_after", stale.RefreshAfter)); err != nil {
			return fmt.Errorf("stale of %s: %w", method, err)
		}
	}
	return nil
}

func validateTime(name string, value time.Duration) error {
	if value < 0 || value > timeMax {
		return fmt.Errorf("%s is %s; it is between 0 (the default) and %s", name, value, timeMax)
	}
	return nil
}

func (s Switches) validateForced() error {
	seen := map[Breaker]bool{}
	for _, breaker := range s.Breakers {
		where := breaker.text()
		switch key := (Breaker{Upstream: breaker.Upstream, Method: breaker.Method}); {
		case !slices.Contains(Forces, breaker.Force):
			return fmt.Errorf("breakers of %s: force is %q; it is one of %s", where, breaker.Force, strings.Join(Forces, ", "))
		case len(breaker.Upstream) > identifierMax:
			return fmt.Errorf("breakers: an upstream has %d bytes, want at most %d", len(breaker.Upstream), identifierMax)
		case seen[key]:
			return fmt.Errorf("breakers of %s are there twice", where)
		default:
			seen[key] = true
		}
	}
	for _, method := range slices.Sorted(maps.Keys(s.Faults)) {
		if !slices.Contains(FaultModes, s.Faults[method]) {
			return fmt.Errorf("faults of %s: mode is %q; it is one of %s", method, s.Faults[method], strings.Join(FaultModes, ", "))
		}
	}
	return nil
}

// text names the breakers for people.
func (b Breaker) text() string {
	upstream, method := "all nodes", "all methods"
	if b.Upstream != "" {
		upstream = b.Upstream
	}
	if b.Method != "" {
		method = b.Method
	}
	return upstream + " for " + method
}

func (s Switches) validateRest() error {
	if s.ShedBelow != "" && !slices.Contains(Priorities, s.ShedBelow) {
		return fmt.Errorf("shed_below is %q; it is one of %s", s.ShedBelow, strings.Join(Priorities, ", "))
	}
	for _, campaign := range slices.Sorted(maps.Keys(s.WaitingRooms)) {
		if !identifierForm.MatchString(campaign) {
			return fmt.Errorf("waiting_rooms: campaign %q is none; an id is up to 64 letters, digits, _ and -", campaign)
		}
	}
	if c := s.Concurrency; c != nil {
		switch {
		case *c == Concurrency{}:
			return errors.New("concurrency: give min, max, or both")
		case c.Min < 0 || c.Min > concurrencyMax || c.Max < 0 || c.Max > concurrencyMax:
			return fmt.Errorf("concurrency: min is %d and max %d; they are between 1 and %d", c.Min, c.Max, concurrencyMax)
		case c.Max != 0 && c.Min > c.Max:
			return fmt.Errorf("concurrency: min is %d, which is more than max, %d", c.Min, c.Max)
		}
	}
	return nil
}

// Check says which method of the plan is none of the procedures that the gateway serves, each /package.Service/Method. A name that matches
// nothing is a typo, and a switch that is not there when it is needed.
func (p Plan) Check(procedures []string) error {
	for _, pattern := range p.patterns() {
		known := slices.ContainsFunc(procedures, func(procedure string) bool { return matches(pattern.name, procedure) })
		if !known {
			return fmt.Errorf("%s: there is no method %s%s", pattern.of, pattern.name, nearest(pattern.name, procedures))
		}
	}
	return nil
}

// nearest returns what was probably meant: what has the same service, or the same method.
func nearest(name string, procedures []string) string {
	service, method, _ := strings.Cut(name, "/")
	for _, procedure := range slices.Sorted(slices.Values(procedures)) {
		s, m, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
		if strings.EqualFold(m, method) || (s == service && strings.HasPrefix(strings.ToLower(m), strings.ToLower(method[:min(3, len(method))]))) {
			return fmt.Sprintf("; did you mean %s/%s?", s, m)
		}
	}
	return ""
}

// matches says whether a pattern names the procedure.
func matches(pattern, procedure string) bool {
	name := strings.TrimPrefix(procedure, "/")
	if service, any := strings.CutSuffix(pattern, "/*"); any {
		return strings.HasPrefix(name, service+"/")
	}
	return pattern == "*" || pattern == name
}

// nearestOf returns what a map says of a procedure: by its name, its service, or for all.
func nearestOf[V any](of map[string]V, procedure string) (value V, found bool) {
	for _, pattern := range patternsOf(procedure) {
		if value, found = of[pattern]; found {
			return value, true
		}
	}
	return value, false
}

// patternsOf returns the patterns that match a procedure, the nearest first.
func patternsOf(procedure string) [3]string {
	name := strings.TrimPrefix(procedure, "/")
	service, _, _ := strings.Cut(name, "/")
	return [...]string{name, service + "/*", "*"}
}
