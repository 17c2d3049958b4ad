package ownership

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func loads(plan, nodes []string) map[string]int {
	loads := map[string]int{}
	for _, node := range nodes {
		loads[node] = 0
	}
	for _, node := range plan {
		loads[node]++
	}
	return loads
}

func spread(loads map[string]int) int {
	least, most := 1<<30, 0
	for _, load := range loads {
		least, most = min(least, load), max(most, load)
	}
	return most - least
}

func moved(before, after []string) (lanes []int) {
	for lane := range before {
		if before[lane] != after[lane] {
			lanes = append(lanes, lane)
		}
	}
	return lanes
}

func drawNodes(t *rapid.T, least, most int) []string {
	var nodes []string
	for i := range rapid.IntRange(least, most).Draw(t, "nodes") {
		nodes = append(nodes, fmt.Sprintf("node-%d", i))
	}
	return nodes
}

func drawLanes(t *rapid.T) int {
	return 1 << rapid.IntRange(0, 6).Draw(t, "log2 lanes")
}

// drawOwners draws who has the lanes: also nodes that are gone, and nobody.
func drawOwners(t *rapid.T, lanes int, nodes []string) []string {
	who := rapid.SampledFrom(append([]string{"", "gone"}, nodes...))
	return rapid.SliceOfN(who, lanes, lanes).Draw(t, "owners")
}

func TestLoadsAreLevelAndEveryLaneHasANode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 1, 9)
		plan := Assign(drawOwners(t, drawLanes(t), nodes), nodes, nil)
		if l := loads(plan, nodes); spread(l) > 1 || len(l) != len(nodes) {
			t.Fatalf("loads are %v, want them within one lane, of these nodes alone (A1)", l)
		}
	})
}

func TestWhoeverKnowsTheSamePlansTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 1, 9)
		owners := drawOwners(t, drawLanes(t), nodes)
		plan := Assign(owners, nodes, nil)
		if again := Assign(owners, rapid.Permutation(nodes).Draw(t, "order"), nil); !slices.Equal(plan, again) {
			t.Fatalf("in another order of nodes: got %v, want %v", again, plan)
		}
		if again := Assign(plan, nodes, nil); !slices.Equal(plan, again) {
			t.Fatalf("once it is carried out, the plan is %v, want it to stay %v (A4)", again, plan)
		}
	})
}

func TestANodeThatLeavesMovesItsOwnLanesOnly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 2, 9)
		before := Assign(drawOwners(t, drawLanes(t), nodes), nodes, nil)
		leaver := rapid.SampledFrom(nodes).Draw(t, "leaver")
		left := slices.DeleteFunc(slices.Clone(nodes), func(node string) bool { return node == leaver })
		after := Assign(before, left, nil)
		for _, lane := range moved(before, after) {
			if before[lane] != leaver {
				t.Fatalf("lane %d moves from %s to %s, though %s left (A2)", lane, before[lane], after[lane], leaver)
			}
		}
	})
}

func TestANodeThatJoinsTakesItsShareAndNothingElseMoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 1, 9)
		before := Assign(drawOwners(t, drawLanes(t), nodes), nodes, nil)
		after := Assign(before, append(nodes, "joiner"), nil)
		for _, lane := range moved(before, after) {
			if after[lane] != "joiner" {
				t.Fatalf("lane %d moves from %s to %s, though another node joined (A2)", lane, before[lane], after[lane])
			}
		}
		if want := len(before) / (len(nodes) + 1); loads(after, nil)["joiner"] != want {
			t.Fatalf("the node that joined has %d lanes of %d, want %d: its share, and no more than it must", loads(after, nil)["joiner"], len(before), want)
		}
	})
}

// fewestMoves counts what has to move at the least when nothing is pinned, by trying which nodes have one lane more.
func fewestMoves(owners, nodes []string) int {
	has := loads(owners, nodes)
	var counts []int
	homeless := len(owners)
	for _, node := range nodes {
		counts = append(counts, has[node])
		homeless -= has[node]
	}
	slices.Sort(counts)
	slices.Reverse(counts)
	share, more := len(owners)/len(nodes), len(owners)%len(nodes)
	for i, count := range counts { // Those that have most get the lanes that are left over.
		quota := share
		if i < more {
			quota++
		}
		homeless += max(0, count-quota)
	}
	return homeless
}

func TestNoMoreMovesThanMust(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 1, 9)
		owners := drawOwners(t, drawLanes(t), nodes)
		if got, want := len(moved(owners, Assign(owners, nodes, nil))), fewestMoves(owners, nodes); got != want {
			t.Fatalf("%d lanes move, want %d (A2)", got, want)
		}
	})
}

func TestPinsAreHonouredAndTheRestIsLevelAroundThem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := drawNodes(t, 1, 6)
		lanes := drawLanes(t)
		pins := map[uint32]string{}
		pinnedOn := map[string]int{}
		for lane := range lanes {
			if pin := rapid.SampledFrom(append([]string{"", "", "", "gone"}, nodes...)).Draw(t, "pin"); pin != "" {
				pins[uint32(lane)] = pin
				if pin != "gone" {
					pinnedOn[pin]++
				}
			}
		}
		owners := drawOwners(t, lanes, nodes)
		plan := Assign(owners, nodes, pins)
		for lane, pin := range pins {
			if pin != "gone" && plan[lane] != pin {
				t.Fatalf("lane %d goes to %s, want %s, where it is pinned", lane, plan[lane], pin)
			}
		}
		l := loads(plan, nodes)
		for node, load := range l {
			for other, less := range l {
				if load > less+1 && load > pinnedOn[node] {
					t.Fatalf("%s has %d lanes, %d of them pinned, while %s has %d (A1)", node, load, pinnedOn[node], other, less)
				}
			}
		}
		if again := Assign(plan, nodes, pins); !slices.Equal(plan, again) {
			t.Fatalf("once it is carried out, the plan is %v, want it to stay %v (A4)", again, plan)
		}
	})
}

func TestWithoutNodesNoLaneHasOne(t *testing.T) {
	if plan := Assign([]string{"a", "b"}, nil, map[uint32]string{0: "a"}); plan[0] != "" || plan[1] != "" {
		t.Fatalf("got %q, want nobody", plan)
	}
}
