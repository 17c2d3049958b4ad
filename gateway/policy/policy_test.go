package policy

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/balance"
	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/limit"
)

func TestTheExampleIsAPolicyAndSaysTheDefaults(t *testing.T) {
	_, policy, err := Open("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	full, byDefault := policy.WithDefaults(), Policy{}.WithDefaults()
	if full.Limits != byDefault.Limits || full.Deadlines != byDefault.Deadlines {
		t.Errorf("the example says %+v and %+v, the defaults are %+v and %+v", full.Limits, full.Deadlines, byDefault.Limits, byDefault.Deadlines)
	}
	if got := policy.MethodFor("/weir.order.v1.OrderService/PlaceOrder"); got.Rate == nil || got.Priority == nil || *got.Priority != limit.Place {
		t.Errorf("PlaceOrder has %+v, want a rate and its priority", got)
	}
}

func TestAnEmptyPolicyWorks(t *testing.T) {
	for _, text := range []string{"", "# nothing\n", "---\n", "null\n", "limits:\n", "{}"} {
		policy, err := Parse([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := policy.MethodFor("/weir.order.v1.OrderService/PlaceOrder"); got.Deadline != 10*time.Second || got.DeadlineMax != 30*time.Second || got.Fault == nil {
			t.Errorf("%q: a method has %+v", text, got)
		}
	}
}

func TestBadPoliciesAreRefusedWithTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"limit: 1":                             `line 1: unknown key "limit"`,
		"deadlines:\n  max: 10s\n  defalt: 1s": `line 3: unknown key "defalt" in deadlines`,
		"methods:\n  \"*\":\n    fault:\n      mod: failfast":   `line 4: unknown key "mod" in methods.*.fault`,
		"methods:\n  \"*\":\n    fault:\n      mode: failquick": "failquick",
		"balance:\n  policy: fastest":                           "fastest",
		"limits: {calls: 1, calls: 2}":                          `line 1: key "calls" is there twice`,
		"limits: 7":                                             "line 1: limits wants",
		"- limits":                                              "line 1: the file wants",
		"deadlines:\n  max: [1s]":                               "line 2",
		"deadlines:\n  max: soon":                               "line 2",
		"deadlines:\n  max: {a: 1}":                             "line 2: deadlines.max wants one value",
		"deadlines: &a {max: 1s}\nlimits: *a":                   "line 2: aliases",
		"a: 1\n---\nb: 1":                                       "more than one document",
		"deadlines: {default: 20s, max: 10s}":                   "longer than deadlines.max",
		"deadlines: {max: 2m}":                                  "longer than limits.reply_time",
		"deadlines: {max: -1s}":                                 "deadlines.max is negative",
		"cors: {origins: [\"*\"]}":                              "every web page",
		"cors: {origins: [shop.example]}":                       "SCHEME://HOST",
		"methods: {PlaceOrder: {}}":                             "is not package.Service/Method",
		"methods: {\"*\": {rate: {per_second: -1}}}":            "rate",
		"methods: {\"*\": {deadline_max: 2m}}":                  "longer than limits.reply_time",
		"trusted_proxies: [everyone]":                           "everyone",
		"retry: {share: 7}":                                     "share",
		"breaker: {fault_share: 2}":                             "fault_share",
		"concurrency: {min: 9, max: 3}":                         "concurrency",
		"{":                                                     "line 1",
	} {
		_, err := Parse([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: got %v, want one line with %q", text, err, want)
		}
	}
	_, err := Parse([]byte("deadlines:\n  defalt: 1s"))
	var unknown *UnknownKeyError
	if !errors.As(err, &unknown) || unknown.Line != 2 || unknown.Path != "deadlines" || !slices.Equal(unknown.Known, []string{"default", "max"}) {
		t.Errorf("got %+v, want where it is and what there is", unknown)
	}
}

func TestTheNearestEntryOfAMethodCounts(t *testing.T) {
	policy, err := Parse([]byte(`
balance: {policy: peak_ewma}
methods:
  "*": {deadline: 1s, deadline_max: 4s, fault: {mode: failfast}}
  a.b.Service/*: {deadline: 2s, balance: least_active, rate: {per_second: 5}}
  a.b.Service/One: {deadline: 3s, priority: pay}
`))
	if err != nil {
		t.Fatal(err)
	}
	one, two, other := policy.MethodFor("/a.b.Service/One"), policy.MethodFor("/a.b.Service/Two"), policy.MethodFor("/c.d.Service/One")
	if one.Deadline != 3*time.Second || one.DeadlineMax != 4*time.Second || one.Balance != balance.LeastActive || one.Priority == nil || *one.Priority != limit.Pay || one.Fault.Mode != fault.Failfast {
		t.Errorf("One has %+v", one)
	}
	if two.Deadline != 2*time.Second || two.Priority != nil || two.Rate == nil || two.Rate.PerSecond != 5 {
		t.Errorf("Two has %+v", two)
	}
	if other.Deadline != time.Second || other.Balance != 0 || other.Rate != nil {
		t.Errorf("another service's has %+v", other)
	}
	limits := policy.Limiting([]string{"/a.b.Service/One", "/c.d.Service/One"})
	if len(limits.Methods) != 1 || limits.Methods["/a.b.Service/One"].Rate.PerSecond != 5 {
		t.Errorf("limits are %+v", limits.Methods)
	}
}

func TestAChangedFileIsUsedAndABadOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(text string) {
		t.Helper()
		// As an editor, or a mounted configuration, does: another file takes the name.
		next := path + ".next"
		if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	write("deadlines: {default: 1s}")
	file, policy, err := Open(path)
	if err != nil || policy.Deadlines.Default != time.Second {
		t.Fatalf("got %+v, %v", policy, err)
	}
	write("deadlines: {default: 22s}") // Between Open and Follow.
	ctx, cancel := context.WithCancel(t.Context())
	applied, followed := make(chan Policy), make(chan error, 1)
	go func() {
		followed <- file.Follow(ctx, slog.New(slog.DiscardHandler), func(p Policy) error {
			applied <- p
			return nil
		})
	}()
	await := func(want time.Duration) {
		t.Helper()
		select {
		case got := <-applied:
			if got.Deadlines.Default != want {
				t.Fatalf("applied %s, want %s", got.Deadlines.Default, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the change to %s is not seen", want)
		}
	}
	await(22 * time.Second)
	write("deadlines: {defalt: 3s}")
	write("deadlines: {default: 4s}   # the bad one before may or may not have been seen")
	await(4 * time.Second)
	cancel()
	if err := <-followed; err != nil {
		t.Error(err)
	}
}
