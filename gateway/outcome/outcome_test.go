package outcome_test

import (
	"testing"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/gateway/outcome"
)

func TestOnlyFaultsAndOverloadCountAgainstAnUpstream(t *testing.T) {
	against := map[connect.Code]outcome.Outcome{
		connect.CodeUnavailable: outcome.Fault, connect.CodeInternal: outcome.Fault, connect.CodeUnknown: outcome.Fault,
		connect.CodeDataLoss: outcome.Fault, connect.CodeDeadlineExceeded: outcome.Fault,
		connect.CodeResourceExhausted: outcome.Overload, connect.CodeCanceled: outcome.Abandoned,
	}
	for code := connect.Code(0); code <= connect.CodeUnauthenticated; code++ {
		want, ok := against[code]
		if !ok {
			want = outcome.Good
		}
		if got := outcome.OfCode(code); got != want {
			t.Errorf("OfCode(%v) = %v, want %v", code, got, want)
		}
	}
}
