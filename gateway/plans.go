package gateway

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/plan"
	"github.com/weirhq/weir/gateway/policy"
)

// HeaderPlan names in each answer the plans that were active, with their revisions, such as "payment-down@14,flash-sale@12". Without one there is no
// such header.
const HeaderPlan = "Weir-Plan"

// planned is what plans make of the rules beside the policy that lies under them.
type planned struct {
	set *plan.Set
	// header is the value of HeaderPlan, nil without a plan. All answers share it.
	header []string
	// lacking are the switches that this gateway has no counterpart of, for people. The other switches hold all the same.
	lacking []string
	// shedBelow is the priority below which calls are refused.
	shedBelow limit.Priority
	forced    map[breaker.Key]breaker.Forced
}

// WithoutPlans returns the rates that the policy has for a procedure: dry runs count from them.
func (g *Gateway) WithoutPlans(procedure string) (rate, user, global plan.Rate) {
	g.changing.Lock()
	base := g.base
	g.changing.Unlock()
	m := base.MethodFor(procedure)
	return planRate(m.Rate), planRate(m.User), planRate(m.Global)
}

func planRate(rate *limit.Rate) plan.Rate {
	if rate == nil {
		return plan.Rate{}
	}
	return plan.Rate{PerSecond: rate.PerSecond, Burst: rate.Burst}
}

// followPlans makes the gateway go by the plans that are active, until ctx ends.
func (g *Gateway) followPlans(ctx context.Context) error {
	for set := (*plan.Set)(nil); ; {
		next, err := g.plans.Next(ctx, set)
		if err != nil {
			return nil //nolint:nilerr // ctx ended.
		}
		set = next
		if err := g.applyPlans(set); err != nil {
			g.logger.Error("the plans are not used: those from before stay", "plans", set.Label, "error", err)
		}
	}
}

// applyPlans makes the gateway go by other plans from the next call on, over the policy that it has.
func (g *Gateway) applyPlans(set *plan.Set) error {
	g.changing.Lock()
	defer g.changing.Unlock()
	before := g.rules.Load().planned.set
	if before == set {
		return nil
	}
	if err := g.use(g.base, set); err != nil {
		return err
	}
	if before.Label == set.Label {
		return nil
	}
	g.logger.Info("other plans are active", "plans", set.Label, "before", before.Label)
	for _, lacking := range g.rules.Load().planned.lacking {
		g.logger.Warn("a switch of a plan does nothing at this gateway", "plans", set.Label, "switch", lacking)
	}
	return nil
}

// overlay lays plans over a policy. What is valid in both is valid in what comes of it.
func (g *Gateway) overlay(p policy.Policy, set *plan.Set) (policy.Policy, planned) {
	over := planned{set: set}
	if len(set.Plans) == 0 {
		return p, over
	}
	over.header = []string{set.Label}
	lacks := func(format string, args ...any) { over.lacking = append(over.lacking, fmt.Sprintf(format, args...)) }
	base := p
	p.Methods = maps.Clone(base.Methods)
	p.Edge.Off, p.Edge.Stale = maps.Clone(base.Edge.Off), maps.Clone(base.Edge.Stale)
	makeMap(&p.Methods)
	makeMap(&p.Edge.Off)
	makeMap(&p.Edge.Stale)
	for _, m := range slices.SortedFunc(maps.Values(g.methods), func(a, b *method) int { return strings.Compare(a.name, b.name) }) {
		says, name := set.Method(m.name), strings.TrimPrefix(m.name, "/")
		p.Methods[name] = methodOver(base, m.name, says)
		if why := g.cannotKeep(m); why != "" && says.Fault == fault.Failback.String() {
			lacks("faults: %s stays as it is: %s", name, why)
			p.Methods[name] = methodOver(base, m.name, &plan.Method{Rate: says.Rate, User: says.User, Global: says.Global})
		}
		if off := says.Off; off != nil {
			p.Edge.Off[m.name] = edge.Off{Message: off.Message, Code: off.Code, RetryAfter: off.RetryAfter}
		}
		switch stale := says.Stale; {
		case stale == nil:
		case m.reads && m.unary:
			p.Edge.Stale[m.name] = edge.Stale{MaxAge: stale.MaxAge, Always: stale.Always, RefreshAfter: stale.RefreshAfter}
		case slices.ContainsFunc(set.Plans, func(a plan.Applied) bool { _, named := a.Plan.Stale[name]; return named }):
			lacks("stale: %s is no read", name)
		}
	}
	switch sold := set.SoldOut; {
	case sold == nil:
	case *sold && g.board == nil:
		lacks("sold_out: this gateway looks at no stock")
	default:
		p.Edge.SoldOut = *sold
	}
	for _, campaign := range slices.Sorted(maps.Keys(set.WaitingRooms)) {
		if set.WaitingRooms[campaign] && (g.hall == nil || !slices.Contains(g.hall.Campaigns(), campaign)) {
			lacks("waiting_rooms: %s: this gateway has no waiting room for it", campaign)
		}
	}
	if set.Concurrency != (plan.Concurrency{}) {
		p.Concurrency = p.Concurrency.Within(set.Concurrency.Min, set.Concurrency.Max)
	}
	if set.ShedBelow != "" {
		if err := over.shedBelow.UnmarshalText([]byte(set.ShedBelow)); err != nil {
			panic(fmt.Sprintf("gateway: bug: a plan that is valid sheds below %q: %v", set.ShedBelow, err))
		}
	}
	over.forced = g.forcedBy(set)
	return p, over
}

func makeMap[V any](field *map[string]V) {
	if *field == nil {
		*field = map[string]V{}
	}
}

// methodOver returns what a policy has under the very name of a procedure once a plan lies over it. What neither says there is left to the policy's
// patterns.
func methodOver(base policy.Policy, procedure string, says *plan.Method) policy.Method {
	m, full := base.Methods[strings.TrimPrefix(procedure, "/")], base.MethodFor(procedure)
	for _, rate := range []struct {
		to, from **limit.Rate
		change   *plan.RateChange
	}{{&m.Rate, &full.Rate, says.Rate}, {&m.User, &full.User, says.User}, {&m.Global, &full.Global, says.Global}} {
		if rate.change != nil {
			over := rate.change.Over(planRate(*rate.from))
			*rate.to = &limit.Rate{PerSecond: over.PerSecond, Burst: over.Burst}
		}
	}
	if says.Fault != "" {
		config := *full.Fault
		if err := config.Mode.UnmarshalText([]byte(says.Fault)); err != nil {
			panic(fmt.Sprintf("gateway: bug: a plan that is valid has the fault mode %q: %v", says.Fault, err))
		}
		m.Fault = &config
	}
	return m
}

// forcedBy returns what plans force breakers to, by the very names of methods: breakers know no patterns.
func (g *Gateway) forcedBy(set *plan.Set) map[breaker.Key]breaker.Forced {
	forced := map[breaker.Key]breaker.Forced{}
	upstreams := map[string]bool{"": true}
	for _, of := range set.Breakers {
		upstreams[of.Upstream] = true
	}
	// The last two stand for what the schema does not have, and for what has no key of its own.
	procedures := append(slices.Collect(maps.Keys(g.methods)), otherMethod.name, "")
	for upstream := range upstreams {
		for _, procedure := range procedures {
			word := set.Forced(upstream, procedure)
			if word == "" {
				continue
			}
			var to breaker.Forced
			if err := to.UnmarshalText([]byte(word)); err != nil {
				panic(fmt.Sprintf("gateway: bug: a plan that is valid forces breakers to %q: %v", word, err))
			}
			forced[breaker.Key{Upstream: upstream, Method: procedure}] = to
		}
	}
	return forced
}

// seen tells the dry run that goes on, if one does, of a call that was decided on.
func (g *Gateway) seen(call *call, refused plan.Reason) {
	if g.plans == nil {
		return
	}
	trial := g.plans.Trial()
	if trial == nil {
		return
	}
	priority := limit.PriorityOf(call.method.name)
	if call.rules.Priority != nil {
		priority = *call.rules.Priority
	}
	trial.See(time.Now(), plan.Call{
		Procedure: call.method.name, User: call.subject, Priority: priority.String(), UnderWay: g.limiter.Stats().UnderWay, Refused: refused,
	})
}

// seenAtEdge tells the dry run of a call that the edge answered, by what the answer says of itself.
func (g *Gateway) seenAtEdge(call *call, answer http.Header) {
	switch said := answer.Get(edge.HeaderEdge); {
	case said == "off":
		g.seen(call, plan.ByOff)
	case strings.HasPrefix(said, "sold-out"):
		g.seen(call, plan.BySoldOut)
	default:
		g.seen(call, "")
	}
}

// refusedBy says in the words of a dry run which limit a call met.
func refusedBy(kind limit.Kind) plan.Reason {
	switch kind {
	case limit.ByMethod:
		return plan.ByRate
	case limit.ByUser:
		return plan.ByUser
	case limit.ByGlobal:
		return plan.ByGlobal
	case limit.ByPriority:
		return plan.ByPriority
	case limit.ByOverload:
		return plan.ByConcurrency
	}
	return plan.Reason(kind.String()) // No plan changes it: a dry run says that it stays.
}
