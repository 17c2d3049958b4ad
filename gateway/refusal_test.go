package gateway

import (
	"os"
	"regexp"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
)

func TestTheReasonsAreDocumented(t *testing.T) {
	document, err := os.ReadFile("REASONS.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[reason]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| ([a-z_]+) \\| (yes)? ?\\|").FindAllStringSubmatch(string(document), -1) {
		documented[reason(row[1])] = row[2] + row[3]
	}
	delete(documented, "OUT_OF_STOCK") // The edge says it, in the words of a node.
	if len(documented) != len(reasons) {
		t.Errorf("REASONS.md has %d reasons, the table %d", len(documented), len(reasons))
	}
	for name, row := range reasons {
		want := row.code.String()
		if row.retry {
			want += "yes"
		}
		if documented[name] != want {
			t.Errorf("%s: REASONS.md says %q, the table %q", name, documented[name], want)
		}
	}
}

func TestARefusalSaysWhenToComeAgain(t *testing.T) {
	for _, test := range []struct {
		after          time.Duration
		header, millis string
		detail         time.Duration
	}{
		{0, "1", "1", time.Millisecond},
		{1500 * time.Millisecond, "2", "1500", 1500 * time.Millisecond},
		{time.Hour, "60", "60000", time.Minute},
	} {
		err := (&refusal{reason: reasonOverloaded, message: "later", retryAfter: test.after}).connectError()
		if got := err.Meta().Get("Retry-After"); got != test.header {
			t.Errorf("after %s: Retry-After %q, want %q", test.after, got, test.header)
		}
		if got := err.Meta().Get("Grpc-Retry-Pushback-Ms"); got != test.millis {
			t.Errorf("after %s: pushback %q, want %q", test.after, got, test.millis)
		}
		var delay time.Duration
		for _, detail := range err.Details() {
			value, detailErr := detail.Value()
			if detailErr != nil {
				t.Fatal(detailErr)
			}
			if retry, ok := value.(*errdetails.RetryInfo); ok {
				delay = retry.GetRetryDelay().AsDuration()
			}
		}
		if delay != test.detail {
			t.Errorf("after %s: RetryInfo %s, want %s", test.after, delay, test.detail)
		}
	}
	never := (&refusal{reason: reasonBodyTooLarge, message: "no", retryAfter: time.Second}).connectError()
	if got := never.Meta().Get("Retry-After"); got != "" || never.Code() != connect.CodeResourceExhausted {
		t.Errorf("what never succeeds says to come again after %q (%v)", got, never.Code())
	}
}
