package plan

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/gateway/breaker"
	"github.com/weirhq/weir/gateway/fault"
)

const (
	place  = "/weir.order.v1.OrderService/PlaceOrder"
	read   = "/weir.order.v1.OrderService/GetOrder"
	points = "/weir.points.v1.PointsService/GetPoints"
	pay    = "/weir.payment.v1.PaymentService/StartPayment"
)

var procedures = []string{place, read, points, pay}

const everything = `
name: everything
about: All that a plan can say.
precedence: 10
ttl: 30m
rates:
  weir.order.v1.OrderService/PlaceOrder:
    rate: {factor: 0.5, per_second: 2000}
    user: {per_second: 2, burst: 4}
  "*":
    global: {per_second: 10000}
off:
  weir.points.v1.PointsService/*: {code: unavailable, message: Points come later., retry_after: 1m}
stale:
  weir.order.v1.OrderService/GetOrder: {max_age: 5m, always: true, refresh_after: 2s}
sold_out: true
breakers:
  - {upstream: n1, method: weir.payment.v1.PaymentService/*, force: open}
  - {force: closed}
shed_below: place
waiting_rooms: {spring: true}
concurrency: {min: 8, max: 500}
faults:
  weir.points.v1.PointsService/*: failback
`

func mustParse(t *testing.T, text string) Plan {
	t.Helper()
	plan, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("parse %q: %v", text, err)
	}
	return plan
}

func TestAPlanIsReadAsItIsWritten(t *testing.T) {
	plan := mustParse(t, everything)
	if err := plan.Check(procedures); err != nil {
		t.Fatal(err)
	}
	on := true
	want := Plan{
		Name: "everything", About: "All that a plan can say.", Precedence: 10, TTL: 30 * time.Minute,
		Switches: Switches{
			Rates: map[string]Rates{
				"weir.order.v1.OrderService/PlaceOrder": {Rate: &RateChange{Factor: 0.5, PerSecond: 2000}, User: &RateChange{PerSecond: 2, Burst: 4}},
				"*":                                     {Global: &RateChange{PerSecond: 10000}},
			},
			Off: map[string]Off{
				"weir.points.v1.PointsService/*": {Code: connect.CodeUnavailable, Message: "Points come later.", RetryAfter: time.Minute},
			},
			Stale:   map[string]Stale{"weir.order.v1.OrderService/GetOrder": {MaxAge: 5 * time.Minute, Always: true, RefreshAfter: 2 * time.Second}},
			SoldOut: &on, ShedBelow: "place", WaitingRooms: map[string]bool{"spring": true}, Concurrency: &Concurrency{Min: 8, Max: 500},
			Breakers: []Breaker{{Upstream: "n1", Method: "weir.payment.v1.PaymentService/*", Force: "open"}, {Force: "closed"}},
			Faults:   map[string]string{"weir.points.v1.PointsService/*": "failback"},
		},
	}
	if !reflect.DeepEqual(plan, want) {
		t.Fatalf("got %+v\nwant %+v", plan, want)
	}
	json := mustParse(t, `{"name": "j", "ttl": "1m", "shed_below": "read"}`)
	if json.TTL != time.Minute || json.ShedBelow != "read" {
		t.Fatalf("the plan in JSON is %+v", json)
	}
}

func TestAWrongPlanIsRefusedWithWhatIsWrong(t *testing.T) {
	const head = "name: p\n"
	for text, want := range map[string]string{
		"":                                                          "empty",
		"name: p":                                                   "switches nothing",
		"shed_below: read":                                          "name is missing",
		"name: Über\nshed_below: read":                              "lower-case letters",
		head + "shed_blow: read":                                    `line 2: unknown key "shed_blow"`,
		head + "shed_below: vip":                                    "points, read, place, cancel, pay",
		head + "shed_below: read\nttl: -1s":                         "always ends by itself",
		head + "shed_below: read\nttl: 9000h":                       "always ends by itself",
		head + "shed_below: read\n---\nname: q":                     "more than one document",
		head + "shed_below: read\nshed_below: place":                "already defined",
		head + "rates: {PlaceOrder: {rate: {factor: 1}}}":           `method "PlaceOrder" is none`,
		head + `rates: {"*": {}}`:                                   "give rate, user or global",
		head + `rates: {"*": {rate: {}}}`:                           "give factor, per_second",
		head + `rates: {"*": {rate: {factor: .nan}}}`:               "factor is NaN",
		head + `rates: {"*": {rate: {factor: -1}}}`:                 "factor is -1",
		head + `rates: {"*": {user: {per_second: .inf}}}`:           "per_second is +Inf",
		head + `rates: {"*": {user: {factor: 1, burst: 3}}}`:        "burst is 3 without per_second",
		head + `off: {"*": {code: fine}}`:                           "fine",
		head + `off: {"*": {retry_after: 48h}}`:                     "retry_after is 48h",
		head + `stale: {"*": {max_age: -1s}}`:                       "max_age is -1s",
		head + "breakers: [{force: ajar}]":                          "open, closed, disabled",
		head + "breakers: [{force: open}, {force: closed}]":         "there twice",
		head + `faults: {"*": hope}`:                                "failover, failfast",
		head + "waiting_rooms: {a b: true}":                         `campaign "a b"`,
		head + "concurrency: {}":                                    "give min, max",
		head + "concurrency: {min: 9, max: 3}":                      "more than max",
		head + "shed_below: read\nprecedence: 4000":                 "precedence is 4000",
		head + "about: " + strings.Repeat("x", TextBytesMax):        "want at most",
		head + "sold_out: maybe":                                    "maybe",
		head + `off: {"weir.order.v1.OrderService/*/x": {}}`:        "is none",
		head + "concurrency: {max: 10000000}":                       "between 1 and",
		head + "off: &a {\"*\": {message: x}}\nstale: *a\nabout: y": "unknown key",
	} {
		_, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", text, err, want)
		}
	}
}

func TestAMethodThatIsNotServedIsATypo(t *testing.T) {
	for text, want := range map[string]string{
		`off: {weir.order.v1.OrderService/PlaceOrdr: {}}`: "did you mean weir.order.v1.OrderService/PlaceOrder?",
		`off: {weir.orders.v1.OrderService/GetOrder: {}}`: "did you mean weir.order.v1.OrderService/GetOrder?",
		`off: {weir.ponits.v1.PointsService/*: {}}`:       "there is no method weir.ponits.v1.PointsService/*",
		`breakers: [{method: shop.X/Y, force: open}]`:     "breakers: there is no method shop.X/Y",
		`off: {weir.points.v1.PointsService/*: {}}`:       "",
		`off: {"*": {}}`: "",
	} {
		err := mustParse(t, "name: p\n"+text).Check(procedures)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
	}
}

func TestTheWordsOfAPlanAreThoseOfTheGatewaysParts(t *testing.T) {
	for _, word := range FaultModes {
		if err := new(fault.Mode).UnmarshalText([]byte(word)); err != nil {
			t.Error(err)
		}
	}
	for _, word := range Forces {
		if err := new(breaker.Forced).UnmarshalText([]byte(word)); err != nil {
			t.Error(err)
		}
	}
}

func applied(t *testing.T, revision uint64, at time.Time, text string) Applied {
	t.Helper()
	return Applied{Plan: mustParse(t, text), Revision: revision, At: at, Until: at.Add(time.Hour)}
}

var noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

func TestThePlanThatCountsIsTheHigherAndThenTheNewer(t *testing.T) {
	low := applied(t, 3, noon, "name: low\nrates: {weir.order.v1.OrderService/PlaceOrder: {rate: {per_second: 10}, user: {per_second: 1}}}\nsold_out: false\nshed_below: read")
	high := applied(t, 4, noon.Add(-time.Minute), "name: high\nprecedence: 1\nrates: {\"*\": {rate: {per_second: 5}}}\nsold_out: true")
	late := applied(t, 5, noon.Add(time.Minute), "name: late\nshed_below: place\nfaults: {\"*\": failfast}")
	for _, order := range [][]Applied{{low, high, late}, {late, low, high}, {high, late, low}} {
		set := NewSet(9, order, procedures)
		if want := "high@4,late@5,low@3"; set.Label != want {
			t.Fatalf("label is %q, want %q", set.Label, want)
		}
		m := set.Method(place)
		if m.Rate.PerSecond != 5 || m.User.PerSecond != 1 || m.Fault != "failfast" || !*set.SoldOut || set.ShedBelow != "place" {
			t.Fatalf("got rate %v, user %v, fault %q, sold out %t, shed below %q", m.Rate, m.User, m.Fault, *set.SoldOut, set.ShedBelow)
		}
		said := []string{}
		for _, conflict := range set.Conflicts {
			said = append(said, conflict.String())
		}
		want := []string{
			"rates.rate of " + place + ": high@4 counts, and not low@3",
			"shed_below: late@5 counts, and not low@3", "sold_out: high@4 counts, and not low@3",
		}
		if !slices.Equal(said, want) {
			t.Fatalf("conflicts:\n%s\nwant:\n%s", strings.Join(said, "\n"), strings.Join(want, "\n"))
		}
	}
	if got := NewSet(9, []Applied{low, high}, procedures).Method("/other.Service/Method").Rate; got.PerSecond != 5 {
		t.Fatalf("what is said of all is %v for a method that nobody knows", got)
	}
}

// Whatever the plans and their order: a switch has the value that the first plan says, by precedence and time, of those that speak of it; and what no
// plan speaks of is left alone.
func TestPlansMergeWithoutRegardToTheirOrder(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	names := []string{place[1:], "weir.order.v1.OrderService/*", points[1:], "*"}
	for round := range 300 {
		plans := []Applied{}
		for i := range 1 + random.IntN(5) {
			plan := Plan{Name: string(rune('a' + i)), Precedence: random.IntN(3)}
			plan.Rates, plan.Faults = map[string]Rates{}, map[string]string{}
			for _, name := range names {
				if random.IntN(2) == 0 {
					plan.Rates[name] = Rates{Rate: &RateChange{PerSecond: float64(1 + random.IntN(1000))}}
				}
				if random.IntN(3) == 0 {
					plan.Faults[name] = FaultModes[random.IntN(len(FaultModes))]
				}
			}
			plans = append(plans, Applied{Plan: plan, Revision: uint64(i), At: noon.Add(time.Duration(random.IntN(3)) * time.Second)})
		}
		first := NewSet(1, plans, procedures)
		random.Shuffle(len(plans), func(i, j int) { plans[i], plans[j] = plans[j], plans[i] })
		second := NewSet(1, plans, procedures)
		if !reflect.DeepEqual(first, second) {
			t.Fatalf("seed %d, round %d: the order of the plans matters:\n%+v\n%+v", seed, round, first, second)
		}
		for _, procedure := range procedures {
			var wantRate *RateChange
			wantFault := ""
			for _, applied := range first.Plans {
				if rates, says := nearestOf(applied.Plan.Rates, procedure); says && wantRate == nil {
					wantRate = rates.Rate
				}
				if mode, says := nearestOf(applied.Plan.Faults, procedure); says && wantFault == "" {
					wantFault = mode
				}
			}
			if got := first.Method(procedure); got.Rate != wantRate || got.Fault != wantFault || got.Off != nil {
				t.Fatalf("seed %d, round %d, %s: got %+v, want rate %v and fault %q", seed, round, procedure, got, wantRate, wantFault)
			}
		}
	}
}

func TestABreakerIsForcedByTheNearestThatIsSaid(t *testing.T) {
	set := NewSet(1, []Applied{applied(t, 1, noon, `
name: p
breakers:
  - {force: closed}
  - {upstream: n1, force: open}
  - {method: weir.payment.v1.PaymentService/*, force: disabled}
  - {upstream: n2, method: weir.payment.v1.PaymentService/StartPayment, force: open}
`)}, procedures)
	for _, c := range []struct{ upstream, procedure, want string }{
		{"n3", read, "closed"}, {"n1", read, "open"}, {"n1", pay, "disabled"}, {"n2", pay, "open"}, {"n3", pay, "disabled"},
	} {
		if got := set.Forced(c.upstream, c.procedure); got != c.want {
			t.Errorf("breaker of %s for %s is forced %q, want %q", c.upstream, c.procedure, got, c.want)
		}
	}
	if got := NewSet(1, nil, procedures).Forced("n1", pay); got != "" {
		t.Errorf("without plans a breaker is forced %q", got)
	}
}

func TestARateChangesByFactorWhereThereIsOne(t *testing.T) {
	for _, c := range []struct {
		change       RateChange
		policy, want Rate
	}{
		{RateChange{Factor: 0.5}, Rate{PerSecond: 100, Burst: 10}, Rate{PerSecond: 50, Burst: 5}},
		{RateChange{Factor: 0.01}, Rate{PerSecond: 100, Burst: 10}, Rate{PerSecond: 1, Burst: 1}},
		{RateChange{Factor: 0.5}, Rate{}, Rate{}},
		{RateChange{Factor: 0.5, PerSecond: 7, Burst: 2}, Rate{}, Rate{PerSecond: 7, Burst: 2}},
		{RateChange{Factor: 0.5, PerSecond: 7}, Rate{PerSecond: 100}, Rate{PerSecond: 50}},
		{RateChange{PerSecond: 7}, Rate{PerSecond: 100, Burst: 10}, Rate{PerSecond: 7}},
	} {
		if got := c.change.Over(c.policy); got != c.want {
			t.Errorf("%+v over %+v is %+v, want %+v", c.change, c.policy, got, c.want)
		}
	}
}
