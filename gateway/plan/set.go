package plan

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Set is what the active plans come to at one time. It is shared: nobody changes it.
type Set struct {
	// Revision of the record that it is from; 0 before there was one.
	Revision uint64
	// Label names the plans with their revisions, the one that counts most first, such as "payment-down@14,flash-sale@12"; it is empty when there is
	// none. Answers and metrics carry it.
	Label string
	// Plans that are active, in the order in which they count.
	Plans []Applied
	// Conflicts are where plans say different things of the same.
	Conflicts []Conflict

	// What counts of what is not a method's; zero for what no plan says.
	SoldOut      *bool
	ShedBelow    string
	WaitingRooms map[string]bool
	Concurrency  Concurrency
	// Breakers that are forced, each upstream and pattern of methods once.
	Breakers []Breaker

	methods map[string]*Method
	others  *Method
}

// A Method is what plans say of one; nil and empty fields are left to the policy.
type Method struct {
	Rate, User, Global *RateChange
	Off                *Off
	Stale              *Stale
	Fault              string
}

// An Applied plan is one that is active, or was.
type Applied struct {
	Plan Plan
	// Revision of the plan in the bucket.
	Revision uint64
	// At is when it was applied, and Until when it ends by itself, by the clock of who applied it.
	At, Until time.Time
	By, Why   string
}

// Label returns name@revision.
func (a Applied) Label() string { return labelOf(a.Plan.Name, a.Revision) }

func labelOf(name string, revision uint64) string {
	return name + "@" + strconv.FormatUint(revision, 10)
}

// A Conflict is one switch that two active plans set differently.
type Conflict struct {
	// Switch that it is about, such as "rates.user", with the procedures or ids that both name; none if the switch is for all.
	Switch string
	Of     []string
	// Wins and Loses are labels.
	Wins, Loses string
}

// String tells it to people.
func (c Conflict) String() string {
	of := ""
	if len(c.Of) > 0 {
		of = " of " + strings.Join(c.Of[:min(3, len(c.Of))], ", ")
		if more := len(c.Of) - 3; more > 0 {
			of += fmt.Sprintf(" and %d more", more)
		}
	}
	return fmt.Sprintf("%s%s: %s counts, and not %s", c.Switch, of, c.Wins, c.Loses)
}

// NewSet merges plans. The one with the highest precedence counts for what it speaks of, and of equals the one that was applied later. A
// plan speaks of a method by the nearest of its patterns, so one that says "*" with a high precedence counts for all methods. procedures are
// those that the gateway serves.
func NewSet(revision uint64, active []Applied, procedures []string) *Set {
	s := &Set{Revision: revision, Plans: slices.Clone(active), WaitingRooms: map[string]bool{}, methods: make(map[string]*Method, len(procedures))}
	slices.SortStableFunc(s.Plans, func(a, b Applied) int {
		return cmp.Or(cmp.Compare(b.Plan.Precedence, a.Plan.Precedence), b.At.Compare(a.At), cmp.Compare(a.Plan.Name, b.Plan.Name))
	})
	labels := make([]string, 0, len(s.Plans))
	for _, applied := range s.Plans {
		labels = append(labels, applied.Label())
	}
	s.Label = strings.Join(labels, ",")
	m := &merge{plans: s.Plans, labels: labels, conflicts: map[[3]string][]string{}}
	for _, procedure := range procedures {
		s.methods[procedure] = m.method(procedure)
	}
	s.others = (&merge{plans: s.Plans, labels: labels}).method("")

	s.SoldOut = choose(m, "sold_out", "", func(p Plan) (*bool, bool) { return p.SoldOut, p.SoldOut != nil })
	s.ShedBelow = choose(m, "shed_below", "", func(p Plan) (string, bool) { return p.ShedBelow, p.ShedBelow != "" })
	s.Concurrency.Min = choose(m, "concurrency.min", "", func(p Plan) (int, bool) { return concurrencyOf(p).Min, concurrencyOf(p).Min != 0 })
	s.Concurrency.Max = choose(m, "concurrency.max", "", func(p Plan) (int, bool) { return concurrencyOf(p).Max, concurrencyOf(p).Max != 0 })
	if s.Concurrency.Max != 0 {
		s.Concurrency.Min = min(s.Concurrency.Min, s.Concurrency.Max) // The bound from above is what protects.
	}
	campaigns, forced := map[string]bool{}, map[Breaker]bool{}
	for _, applied := range s.Plans {
		for campaign := range applied.Plan.WaitingRooms {
			campaigns[campaign] = true
		}
		for _, breaker := range applied.Plan.Breakers {
			forced[Breaker{Upstream: breaker.Upstream, Method: breaker.Method}] = true
		}
	}
	for _, campaign := range slices.Sorted(maps.Keys(campaigns)) {
		s.WaitingRooms[campaign] = choose(m, "waiting_rooms", campaign, func(p Plan) (bool, bool) {
			on, says := p.WaitingRooms[campaign]
			return on, says
		})
	}
	for _, key := range slices.SortedFunc(maps.Keys(forced), func(a, b Breaker) int { return strings.Compare(a.text(), b.text()) }) {
		key.Force = choose(m, "breakers", key.text(), func(p Plan) (string, bool) {
			i := slices.IndexFunc(p.Breakers, func(b Breaker) bool { return b.Upstream == key.Upstream && b.Method == key.Method })
			if i < 0 {
				return "", false
			}
			return p.Breakers[i].Force, true
		})
		s.Breakers = append(s.Breakers, key)
	}
	s.Conflicts = m.report()
	return s
}

func concurrencyOf(p Plan) Concurrency {
	if p.Concurrency == nil {
		return Concurrency{}
	}
	return *p.Concurrency
}

// Method returns what counts for a procedure, never nil. A procedure that the gateway does not know has what plans say of all.
func (s *Set) Method(procedure string) *Method {
	if m := s.methods[procedure]; m != nil {
		return m
	}
	return s.others
}

// Forced returns what the breakers of an upstream are forced to for a procedure, "" if they are not. What names the method counts before what
// names the upstream.
func (s *Set) Forced(upstream, procedure string) string {
	best, force := -1, ""
	for _, breaker := range s.Breakers {
		if (breaker.Upstream != "" && breaker.Upstream != upstream) || (breaker.Method != "" && !matches(breaker.Method, procedure)) {
			continue
		}
		weight := 0
		switch {
		case breaker.Method == "" || breaker.Method == "*":
		case strings.HasSuffix(breaker.Method, "/*"):
			weight = 2
		default:
			weight = 4
		}
		if breaker.Upstream != "" {
			weight++
		}
		if weight > best {
			best, force = weight, breaker.Force
		}
	}
	return force
}

// A merge takes what counts from plans that are in order, and notes where others say something else.
type merge struct {
	plans  []Applied
	labels []string
	// conflicts are what both speak of, by switch, winner and loser; nil if nobody asks.
	conflicts map[[3]string][]string
}

// method merges what plans say of one procedure.
func (m *merge) method(procedure string) *Method {
	rate := func(name string, of func(Rates) *RateChange) *RateChange {
		return choose(m, "rates."+name, procedure, func(p Plan) (*RateChange, bool) {
			for _, pattern := range patternsOf(procedure) { // What the nearest leaves out is taken from the next, as in a policy.
				if change := of(p.Rates[pattern]); change != nil {
					return change, true
				}
			}
			return nil, false
		})
	}
	merged := &Method{
		Rate:   rate("rate", func(r Rates) *RateChange { return r.Rate }),
		User:   rate("user", func(r Rates) *RateChange { return r.User }),
		Global: rate("global", func(r Rates) *RateChange { return r.Global }),
		Fault:  choose(m, "faults", procedure, func(p Plan) (string, bool) { return nearestOf(p.Faults, procedure) }),
	}
	merged.Off = choose(m, "off", procedure, func(p Plan) (*Off, bool) {
		off, says := nearestOf(p.Off, procedure)
		return &off, says
	})
	merged.Stale = choose(m, "stale", procedure, func(p Plan) (*Stale, bool) {
		stale, says := nearestOf(p.Stale, procedure)
		return &stale, says
	})
	return merged
}

// choose returns what the first plan says that speaks of something, and the zero value if none does.
func choose[V any](m *merge, name, of string, says func(Plan) (V, bool)) (chosen V) {
	winner := -1
	for i := range m.plans {
		value, speaks := says(m.plans[i].Plan)
		switch {
		case !speaks:
		case winner < 0:
			winner, chosen = i, value
		case m.conflicts != nil && !reflect.DeepEqual(value, chosen):
			key := [3]string{name, m.labels[winner], m.labels[i]}
			m.conflicts[key] = append(m.conflicts[key], of)
		}
	}
	return chosen
}

func (m *merge) report() []Conflict {
	all := []Conflict{}
	for key, of := range m.conflicts {
		of = slices.DeleteFunc(slices.Sorted(slices.Values(of)), func(one string) bool { return one == "" })
		all = append(all, Conflict{Switch: key[0], Of: of, Wins: key[1], Loses: key[2]})
	}
	slices.SortFunc(all, func(a, b Conflict) int {
		return cmp.Or(strings.Compare(a.Switch, b.Switch), strings.Compare(a.Wins, b.Wins), strings.Compare(a.Loses, b.Loses))
	})
	return all
}
