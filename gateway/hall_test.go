package gateway

import (
	"testing"

	"github.com/weirhq/weir/gateway/registry"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
)

func TestARoomLetsInWhatLanesWereMeasuredToDo(t *testing.T) {
	node := func(suspect bool, perSecond ...uint32) registry.Node {
		member := &clusterv1.Member{}
		for lane, each := range perSecond {
			member.Lanes = append(member.Lanes, &clusterv1.OwnedLane{Lane: uint32(lane), DecidedPerSecond: each})
		}
		return registry.Node{Member: member, Suspect: suspect}
	}
	for name, c := range map[string]struct {
		nodes []registry.Node
		want  float64
	}{
		"nobody is there":                 {nil, 0},
		"nothing was measured yet":        {[]registry.Node{node(false, 0, 0), node(false)}, 0},
		"all lanes":                       {[]registry.Node{node(false, 1000, 2000), node(false, 3000)}, 6000},
		"a lane that had nothing to do":   {[]registry.Node{node(false, 1000, 0), node(false, 3000)}, 6000},
		"a node that was not heard of":    {[]registry.Node{node(false, 1000), node(true, 9000)}, 1000},
		"none but nodes not heard of now": {[]registry.Node{node(true, 9000)}, 0},
	} {
		if got := lanesRate(c.nodes); got != c.want {
			t.Errorf("%s: %v a second, want %v", name, got, c.want)
		}
	}
}
