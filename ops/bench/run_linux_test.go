package bench

import (
	"slices"
	"strings"
	"testing"
)

func TestTheGroupsThatAreNamedRunAndEachOnce(t *testing.T) {
	for only, want := range map[string]string{
		"":                                "", // Groups, below.
		"get,gateway-edge":                "get gateway-edge",
		"cluster,failover":                "cluster failover",
		"failover-node":                   "failover",
		"hop,failover-stop,failover-move": "hop failover",
	} {
		b := &bench{}
		if only != "" {
			b.Only = strings.Split(only, ",")
		}
		var got []string
		for _, group := range slices.Concat(Groups, GatewayGroups, ClusterGroups) {
			if b.runs(group) {
				got = append(got, group)
			}
		}
		if only == "" {
			want = strings.Join(Groups, " ")
		}
		if strings.Join(got, " ") != want {
			t.Errorf("--only %q runs %q, want %q", only, got, want)
		}
	}
	for _, group := range ClusterGroups {
		if strings.HasPrefix(group, failoverGroup+"-") != slices.ContainsFunc(strikes, func(s strike) bool { return s.group == group }) {
			t.Errorf("group %s has no strike, or one that has no group", group)
		}
	}
}
