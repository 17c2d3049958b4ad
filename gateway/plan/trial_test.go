package plan

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

// seen feeds calls, one each step, and returns what would be refused.
func seen(t *testing.T, text string, policy Policy, calls int, step time.Duration, call func(i int) Call) MethodReport {
	t.Helper()
	set := With(NewSet(0, nil, procedures), mustParse(t, text), noon, procedures)
	trial := NewTrial(set, policy, noon, time.Minute)
	for i := range calls {
		trial.See(noon.Add(time.Duration(i)*step), call(i))
	}
	return trial.Report(noon.Add(time.Minute)).Total()
}

func TestATrialCountsWhatAPlanWouldRefuse(t *testing.T) {
	always := func(call Call) func(int) Call { return func(int) Call { return call } }
	for _, c := range []struct {
		name, text string
		policy     Policy
		call       func(int) Call
		want       map[Reason]uint64
	}{
		{"half the rate", "rates: {\"*\": {rate: {factor: 0.5}}}", Policy{Rates: func(string) (Rate, Rate, Rate) { return Rate{PerSecond: 100, Burst: 1}, Rate{}, Rate{} }}, always(Call{Procedure: place}), map[Reason]uint64{ByRate: 500}},
		{"one user", "rates: {\"*\": {user: {per_second: 10, burst: 1}}}", Policy{}, func(i int) Call {
			return Call{Procedure: place, User: []string{"ann", "bob"}[min(1, i%10)]}
		}, map[Reason]uint64{ByUser: 800}},
		{"shared by four", "rates: {\"*\": {global: {per_second: 40, burst: 4}}}", Policy{Gateways: func() int { return 4 }}, always(Call{Procedure: place}), map[Reason]uint64{ByGlobal: 900}},
		{"off", "off: {weir.points.v1.PointsService/*: {}}", Policy{}, func(i int) Call { return Call{Procedure: []string{place, points}[i%2]} }, map[Reason]uint64{ByOff: 500}},
		{"floor", "shed_below: place", Policy{}, func(i int) Call { return Call{Procedure: place, Priority: Priorities[i%5]} }, map[Reason]uint64{ByPriority: 400}},
		{"concurrency", "concurrency: {max: 900}", Policy{}, func(i int) Call { return Call{Procedure: place, UnderWay: i + 1} }, map[Reason]uint64{ByConcurrency: 100}},
		{"sold out", "sold_out: true", Policy{}, func(i int) Call { return Call{Procedure: place, SoldOut: i%4 == 0} }, map[Reason]uint64{BySoldOut: 250}},
		{"waiting room", "waiting_rooms: {spring: true}", Policy{}, func(i int) Call {
			return Call{Procedure: place, Campaign: []string{"", "spring"}[i%2], Admitted: i%4 == 1}
		}, map[Reason]uint64{ByRoom: 250}},
		{"breaker of one node", "breakers: [{upstream: n1, force: open}]", Policy{}, func(i int) Call { return Call{Procedure: pay, Upstream: []string{"n1", "n2"}[i%2]} }, map[Reason]uint64{ByBreaker: 500}},
		{"refused as before", "sold_out: true", Policy{}, func(i int) Call { return Call{Procedure: place, Refused: []Reason{"", ByRate}[i%2]} }, map[Reason]uint64{ByRate: 500}},
		{"refused no more", "rates: {\"*\": {rate: {per_second: 1000000}}}", Policy{}, always(Call{Procedure: place, Refused: ByRate}), map[Reason]uint64{}},
	} {
		got := seen(t, "name: p\n"+c.text, c.policy, 1000, 10*time.Millisecond, c.call)
		if c.name == "half the rate" || c.name == "one user" || c.name == "shared by four" {
			for reason, want := range c.want { // The first call finds an empty cell.
				if have := got.Would[reason]; have+2 < want || have > want+2 {
					t.Errorf("%s: %d would be refused, want %d or close to it", c.name, have, want)
				}
			}
			continue
		}
		if got.Calls != 1000 || !reflect.DeepEqual(got.Would, c.want) {
			t.Errorf("%s: of %d calls %v would be refused, want %v", c.name, got.Calls, got.Would, c.want)
		}
	}
}

func TestReportsOfGatewaysAddUp(t *testing.T) {
	trial := NewTrial(NewSet(0, nil, procedures), Policy{}, noon, time.Minute)
	for range trialMethodsMax + 100 {
		trial.See(noon, Call{Procedure: place, Refused: ByRate})
	}
	one := trial.Report(noon.Add(time.Second))
	data, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	other := &Report{}
	if err := json.Unmarshal(data, other); err != nil || !reflect.DeepEqual(one, other) {
		t.Fatalf("%v: %+v was sent, %+v arrived", err, one, other)
	}
	one.Add(other)
	total := one.Total()
	if want := uint64(2 * (trialMethodsMax + 100)); total.Calls != want || total.Refused != want || total.WouldRefuse() != want || one.Time != time.Second {
		t.Fatalf("two times %d calls are %+v in %s", trialMethodsMax+100, total, one.Time)
	}
}

func TestATrialIsBoundedInMethodsAndUsers(t *testing.T) {
	trial := NewTrial(With(NewSet(0, nil, procedures), mustParse(t, "name: p\nrates: {\"*\": {user: {per_second: 1}, rate: {per_second: 1}}}"), noon, procedures), Policy{}, noon, time.Minute)
	for i := range trialUsersMax + 1000 {
		trial.See(noon, Call{Procedure: "/s/" + time.Duration(i).String(), User: "u"})
	}
	if report := trial.Report(noon); len(report.Methods) > trialMethodsMax+1 || len(trial.users) > trialUsersMax || len(trial.cells) > 2*trialMethodsMax+2 || report.UsersSkipped != 1000 {
		t.Fatalf("%d methods, %d users, %d cells, %d skipped", len(report.Methods), len(trial.users), len(trial.cells), report.UsersSkipped)
	}
}
