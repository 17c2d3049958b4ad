package gateway

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestEveryMethodOfTheSchemaIsKnown(t *testing.T) {
	files, err := os.ReadDir("../proto/weir")
	if err != nil {
		t.Fatal(err)
	}
	known, seen := methodsOfSchema(), 0
	for _, file := range files {
		text, err := os.ReadFile("../proto/weir/" + file.Name() + "/v1/" + file.Name() + ".proto")
		if err != nil {
			t.Fatal(err)
		}
		service := ""
		for _, found := range regexp.MustCompile(`(?m)^(service|  rpc) (\w+)`).FindAllStringSubmatch(string(text), -1) {
			if found[1] == "service" {
				service = found[2]
				continue
			}
			seen++
			if name := "/weir." + file.Name() + ".v1." + service + "/" + found[2]; known[name] == nil {
				t.Errorf("%s is not known: link its package in methods.go", name)
			}
		}
	}
	if seen < 30 || seen != len(known) {
		t.Errorf("the schema has %d methods, the gateway knows %d", seen, len(known))
	}
	for name, want := range map[string]method{
		"/weir.order.v1.OrderService/PlaceOrder": {unary: true, repeatable: true},
		"/weir.order.v1.OrderService/GetOrder":   {unary: true, repeatable: true, reads: true},
		"/weir.order.v1.OrderService/WatchOrder": {repeatable: true, reads: true},
	} {
		if got := known[name]; got == nil || got.unary != want.unary || got.repeatable != want.repeatable || got.reads != want.reads {
			t.Errorf("%s is %+v, want %+v", name, got, want)
		}
	}
}

func TestTheLaneOfAUserIsTheOneThatNodesCompute(t *testing.T) {
	// The log's frozen partitions: eventstore has the same in its test.
	for user, partition := range map[string]uint32{"": 453, "alice": 999, "bob": 212, "user-1": 372, "sku-0": 959} {
		for lanes := uint32(1); lanes <= partitions; lanes *= 2 {
			if got, want := laneOf(user, lanes), partition/(partitions/lanes); got != want {
				t.Errorf("user %q, %d lanes: got lane %d, want %d", user, lanes, got, want)
			}
		}
	}
}

func TestTheSubjectIsReadFromATokenAndNothingElse(t *testing.T) {
	claims := func(text string) string {
		return "e30." + base64.RawURLEncoding.EncodeToString([]byte(text)) + ".c2ln"
	}
	remembered := newCallers()
	for _, test := range []struct {
		name   string
		values []string
		want   string
	}{
		{"a token", []string{"Bearer " + claims(`{"iss":"weir","sub":"alice"}`)}, "alice"},
		{"another case", []string{"bearer  " + claims(`{"sub":"alice"}`)}, "alice"},
		{"nothing", nil, ""},
		{"two headers", []string{"Bearer " + claims(`{"sub":"alice"}`), "Bearer " + claims(`{"sub":"bob"}`)}, ""},
		{"another scheme", []string{"Basic " + claims(`{"sub":"alice"}`)}, ""},
		{"no claims", []string{"Bearer e30"}, ""},
		{"two parts", []string{"Bearer e30.e30"}, ""},
		{"no base64", []string{"Bearer e30.%%%.c2ln"}, ""},
		{"no JSON", []string{"Bearer " + claims(`alice`)}, ""},
		{"a number", []string{"Bearer " + claims(`{"sub":7}`)}, ""},
		{"a long subject", []string{"Bearer " + claims(`{"sub":"`+strings.Repeat("a", subjectBytesMax+1)+`"}`)}, ""},
		{"a long token", []string{"Bearer " + claims(`{"sub":"alice","x":"`+strings.Repeat("a", tokenBytesMax)+`"}`)}, ""},
		{"empty", []string{""}, ""},
	} {
		header := http.Header{"Authorization": test.values}
		if got := SubjectOf(header); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
		for _, when := range []string{"at first", "again"} {
			if got := remembered.of(header).subject; got != test.want {
				t.Errorf("%s, %s: got %q, want %q", test.name, when, got, test.want)
			}
		}
	}
}

func TestATokenThatActsForOthersSaysNothingOfALane(t *testing.T) {
	for claims, want := range map[string]caller{
		`{"sub":"alice"}`:                               {subject: "alice"},
		`{"sub":"shop","scope":"act-as"}`:               {subject: "shop", actsForOthers: true},
		`{"sub":"shop","scope":"operator act-as"}`:      {subject: "shop", actsForOthers: true},
		`{"sub":"alice","scope":"operator not-act-as"}`: {subject: "alice"},
	} {
		header := http.Header{"Authorization": {"Bearer e30." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".x"}}
		if got := callerOf(header); got != want {
			t.Errorf("%s: %+v, want %+v", claims, got, want)
		}
	}
}

func TestTheTokensThatAreRememberedAreBounded(t *testing.T) {
	remembered := newCallers()
	claims := strings.Repeat("a", tokenBytesMax/2)
	for i := range 3 * callersBytesMax / len(claims) {
		remembered.of(http.Header{"Authorization": {fmt.Sprintf("Bearer e30.%d%s.x", i, claims)}})
	}
	remembered.known.CleanUp()
	if weight := remembered.known.WeightedSize(); weight == 0 || weight > callersBytesMax {
		t.Errorf("%d bytes are remembered, want some, and at most %d (I8)", weight, callersBytesMax)
	}
}
