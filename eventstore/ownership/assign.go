package ownership

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Assign says which node each lane is to have, "" where there is none that may. It is a pure function: whoever knows the same
// plans the same.
//
// owners has, for each lane, the node that has it or had it last, or "". nodes are those that may have lanes, in any order. pins
// are the nodes that an operator has said for some lanes; one that may have no lanes does not count.
//
//	A1  Loads are level: apart from what pins put on a node, no two nodes differ by more than one lane.
//	A2  No lane moves that need not: those of nodes that may keep none, those that pins name, and what a node has above its share.
//	A3  Where a lane goes is by rendezvous: of the nodes that have room, the one whose hash with the lane is highest. So the lanes of
//	    a node that is gone are spread over all others, and a node that comes takes a few from each.
//	A4  Assigning what was assigned moves nothing.
func Assign(owners, nodes []string, pins map[uint32]string) []string {
	plan := make([]string, len(owners))
	if len(nodes) == 0 {
		return plan
	}
	nodes = slices.Sorted(slices.Values(nodes))
	shares := make(map[string]*share, len(nodes))
	for _, node := range nodes {
		shares[node] = &share{}
	}
	free := 0
	for lane, owner := range owners {
		pinned := shares[pins[uint32(lane)]]
		switch {
		case pinned != nil:
			plan[lane] = pins[uint32(lane)]
			pinned.pinned++
			continue
		case shares[owner] != nil:
			shares[owner].has = append(shares[owner].has, uint32(lane))
		}
		free++
	}
	level(nodes, shares, free)
	for _, node := range nodes {
		s := shares[node]
		if len(s.has) > s.room {
			slices.SortFunc(s.has, func(a, b uint32) int {
				return cmp.Or(cmp.Compare(rendezvous(node, b), rendezvous(node, a)), cmp.Compare(a, b))
			})
			s.has = s.has[:s.room]
		}
		for _, lane := range s.has {
			plan[lane] = node
		}
		s.room -= len(s.has)
	}
	for lane := range plan {
		if plan[lane] != "" {
			continue
		}
		best, highest := "", uint64(0)
		for _, node := range nodes {
			if shares[node].room == 0 {
				continue
			}
			if score := rendezvous(node, uint32(lane)); best == "" || score > highest {
				best, highest = node, score
			}
		}
		plan[lane] = best
		shares[best].room--
	}
	return plan
}

// A share is what one node has and gets.
type share struct {
	pinned int      // lanes that pins put there
	has    []uint32 // the other lanes that it has now
	room   int      // how many lanes it is to have that no pin put there
}

// level shares out the lanes that no pin puts anywhere, each to a node that has least. Of those the one comes first that has most
// to keep, so that as little as possible moves (A2).
func level(nodes []string, shares map[string]*share, lanes int) {
	for range lanes {
		next := shares[nodes[0]]
		for _, node := range nodes[1:] {
			s := shares[node]
			if c := cmp.Compare(s.pinned+s.room, next.pinned+next.room); c < 0 || c == 0 && len(s.has)-s.room > len(next.has)-next.room {
				next = s
			}
		}
		next.room++
	}
}

// rendezvous is the hash of a node and a lane.
func rendezvous(node string, lane uint32) uint64 {
	sum := sha256.Sum256(binary.BigEndian.AppendUint32([]byte(node+"/"), lane))
	return binary.BigEndian.Uint64(sum[:])
}
