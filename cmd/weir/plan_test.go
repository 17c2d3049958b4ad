package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore/embedded"
	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/limit"
	"github.com/weirhq/weir/gateway/plan"
)

// planServer starts a NATS server, and returns a function that runs commands about plans on it as ann.
func planServer(t *testing.T) (url string, run func(args ...string) result) {
	t.Helper()
	server, err := embedded.Start(embedded.Options{Dir: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Shutdown)
	url = server.ClientURL()
	return url, func(args ...string) result {
		t.Helper()
		return weir(t, []string{"WEIR_NATS=" + url}, append([]string{"plan"}, args...)...)
	}
}

// by is who changes plans in tests.
func by(args ...string) []string { return append(args, "--by", "ann", "--why", "a test") }

// unstable is what differs from run to run: ids of changes, and the server's time.
var unstable = regexp.MustCompile(`("id"|"stored"):"[^"]*"`)

func TestThePlansThatShipAreGood(t *testing.T) {
	paths, err := filepath.Glob("../../ops/plans/*.yaml")
	if err != nil || len(paths) != 3 {
		t.Fatalf("%v: found %q, want three plans", err, paths)
	}
	for _, path := range paths {
		r := weir(t, nil, "plan", "check", path).want(t, exitOK)
		wantText(t, r.stdout, "is a good plan, "+strings.TrimSuffix(filepath.Base(path), ".yaml"))
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := plan.Parse(text)
		if err != nil || parsed.About == "" || parsed.TTL == 0 || parsed.TTL > 2*time.Hour {
			t.Errorf("%s: %v, it holds for %s; a plan that ships says what it is for, and ends soon", path, err, parsed.TTL)
		}
	}
	// They are for days when several things happen at once.
	active := []plan.Applied{}
	for i, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := plan.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		active = append(active, plan.Applied{Plan: parsed, Revision: uint64(i + 1), At: testTime})
	}
	if got, want := plan.NewSet(1, active, gateway.Procedures()).Label, "payment-down@2,redis-down@3,flash-sale@1"; got != want {
		t.Fatalf("all three together are %q, want %q", got, want)
	}
}

func TestThePrioritiesOfPlansAreThoseOfTheLimiter(t *testing.T) {
	for i, word := range plan.Priorities {
		var priority limit.Priority
		if err := priority.UnmarshalText([]byte(word)); err != nil || int(priority) != i {
			t.Errorf("priority %q is %d (%v), want %d", word, priority, err, i)
		}
	}
	if err := new(limit.Priority).UnmarshalText([]byte(limit.Priority(len(plan.Priorities)).String())); err == nil {
		t.Error("the limiter has a priority that plans have not")
	}
}

func TestAWrongPlanIsRefusedBeforeAServerIsAsked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plan.yaml")
	for text, want := range map[string]string{
		"name: p\nshed_blow: read":                                 `line 2: unknown key "shed_blow"`,
		"name: p\noff: {weir.order.v1.OrderService/PlaceOrdr: {}}": "did you mean weir.order.v1.OrderService/PlaceOrder?",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"plan", "check", path}, {"plan", "put", path}, {"plan", "dry-run", "--file", path}} {
			wantText(t, weir(t, nil, args...).want(t, exitUsage).stderr, want, "ops/plans/README.md")
		}
	}
	wantText(t, weir(t, nil, "plan", "put", "nonesuch.yaml").want(t, exitUsage).stderr, "nonesuch.yaml")
	wantText(t, weir(t, nil, "plan", "list").want(t, exitUsage).stderr, "--nats", "WEIR_NATS")
	wantText(t, weir(t, nil, "plan", "apply", "p@x").want(t, exitUsage).stderr, `"p@x" is no plan`)
	wantText(t, weir(t, nil, "plan", "apply", "p", "--ttl", "1ms").want(t, exitUsage).stderr, "always ends by itself")
	wantText(t, weir(t, nil, "plan", "dry-run").want(t, exitUsage).stderr, "--file")
	wantText(t, weir(t, nil, "plan", "history", "--limit", "0", "--nats", "nats://127.0.0.1:1").want(t, exitUsage).stderr, "--limit is 0")
	weir(t, nil, "plan", "list", "--nats", "nats://127.0.0.1:1").want(t, exitUnavailable)
}

func TestAPlanFromItsFileToItsEnd(t *testing.T) {
	_, run := planServer(t)
	golden(t, "output/plan_list_empty.table", run("list").want(t, exitOK).stdout)
	run("show", "flash-sale").want(t, exitNotFound)
	run("rollback").want(t, exitRefused)

	for _, name := range []string{"flash-sale", "payment-down", "redis-down"} {
		wantText(t, run(by("put", "../../ops/plans/"+name+".yaml")...).want(t, exitOK).stdout, name+"@", "dry-run "+name)
	}
	again := run(by("put", "../../ops/plans/flash-sale.yaml", "-o", "json")...).want(t, exitOK)
	if got := decode[map[string]any](t, again.stdout)["revision"]; got != float64(1) {
		t.Fatalf("the same plan again is revision %v, want 1", got)
	}
	text, err := os.ReadFile("../../ops/plans/flash-sale.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := run("show", "flash-sale@1").want(t, exitOK).stdout; got != string(text) {
		t.Fatalf("the plan comes back as\n%s\nwant\n%s", got, text)
	}
	golden(t, "output/plan_show.json", unstable.ReplaceAllString(run("show", "redis-down", "-o", "json").want(t, exitOK).stdout, `$1:"…"`))

	golden(t, "output/plan_apply.table", run(by("apply", "flash-sale", "--ttl", "90m")...).want(t, exitOK).stdout)
	golden(t, "output/plan_apply_conflict.table", run(by("apply", "redis-down")...).want(t, exitOK).stdout)
	golden(t, "output/plan_list.table", run("list").want(t, exitOK).stdout)
	golden(t, "output/plan_list.json", run("list", "-o", "json").want(t, exitOK).stdout)
	wantText(t, run(by("apply", "payment-down", "--after", "4")...).want(t, exitRefused).stderr, "changed meanwhile", "weir plan list")
	wantText(t, run(by("put", "../../ops/plans/payment-down.yaml", "--revision", "1")...).want(t, exitRefused).stderr, "plan payment-down changed meanwhile")
	golden(t, "output/plan_rollback.json", run(by("rollback", "-o", "json")...).want(t, exitOK).stdout)
	run(by("end", "redis-down")...).want(t, exitNotFound)
	golden(t, "output/plan_end.table", run(by("end", "flash-sale")...).want(t, exitOK).stdout)
	golden(t, "output/plan_history.table", run("history").want(t, exitOK).stdout)
	golden(t, "output/plan_history.json", unstable.ReplaceAllString(run("history", "--limit", "2", "-o", "json").want(t, exitOK).stdout, `$1:"…"`))
	run("dry-run", "flash-sale", "--for", "1s").want(t, exitUnavailable)
}

func TestADryRunSaysWhatWouldBeRefused(t *testing.T) {
	url, run := planServer(t)
	connection, err := (&natsAccess{}).stay(url, "a gateway")
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	f, err := plan.NewFollower(plan.Config{}, plan.Options{Connection: connection, Gateway: "edge-1", Procedures: gateway.Procedures(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	running.Go(func() {
		for ctx.Err() == nil && f.Trial() == nil {
			<-time.After(time.Millisecond)
		}
		for range 25 {
			trial := f.Trial()
			if trial == nil {
				return
			}
			for _, method := range []string{"PlaceOrder", "GetOrder", "GetOrder", "GetOrder"} {
				trial.See(testTime, plan.Call{Procedure: "/weir.order.v1.OrderService/" + method, Priority: "place", SoldOut: method == "PlaceOrder"})
			}
		}
	})
	run(by("put", "../../ops/plans/flash-sale.yaml")...).want(t, exitOK)
	// A gateway that knows of a change is connected. By its clock, which is not the tests', the plan has ended already.
	run(by("apply", "flash-sale")...).want(t, exitOK)
	waiting, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	for than := f.Now(); than.Revision == 0; {
		if than, err = f.Next(waiting, than); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "output/plan_dry_run.table", run("dry-run", "flash-sale", "--for", "1s").want(t, exitOK).stdout)

	// A gateway that could not is no reason to be silent about the others.
	p := &process{stdout: &strings.Builder{}, now: func() time.Time { return testTime }}
	err = p.printDryRun(nil, []*plan.Report{
		{Gateway: "edge-2", Problem: "another dry run goes on", Done: true},
		{Gateway: "edge-1", Time: time.Minute, Done: true, Methods: map[string]*plan.MethodReport{"/a.B/C": {Calls: 12408, Would: map[plan.Reason]uint64{plan.ByRate: 397}}}},
	})
	if got := problemOf(err); got.code != exitUnavailable || !strings.Contains(got.what, "edge-2 made no dry run") {
		t.Fatalf("got %v", err)
	}
	wantText(t, p.stdout.(*strings.Builder).String(), "Would have refused 3.2% of 12,408 calls in 1m0s", "rate 397")
}

func TestADevNodesGatewayGoesByPlans(t *testing.T) {
	n := startDev(t, t.TempDir(), "--nats-listen", "127.0.0.1:0")
	run := func(args ...string) {
		t.Helper()
		live(t, []string{"WEIR_NATS=" + n.lines.NATS}, append([]string{"plan"}, args...)...).want(t, exitOK)
	}
	// awaits waits until the answers to a read name the plan, or none, and returns such an answer's status.
	awaits := func(name string) int {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; {
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, n.lines.API+"/weir.payment.v1.PaymentService/StartPayment", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			request.Header.Set("Content-Type", "application/json")
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			said := response.Header.Get(gateway.HeaderPlan)
			if before, _, _ := strings.Cut(said, "@"); before == name {
				return response.StatusCode
			}
			if time.Now().After(deadline) {
				t.Fatalf("answers name the plans %q, want %q", said, name)
			}
		}
	}
	before := awaits("")
	run(by("put", "../../ops/plans/payment-down.yaml")...)
	run(by("apply", "payment-down", "--ttl", "1h")...)
	if got := awaits("payment-down"); got != http.StatusServiceUnavailable || got == before {
		t.Errorf("what is off is answered with %d, want %d; before it was %d", got, http.StatusServiceUnavailable, before)
	}
	run(by("rollback")...)
	if got := awaits(""); got != before {
		t.Errorf("after the plan it is answered with %d, want %d as before", got, before)
	}
}
