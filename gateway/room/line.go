package room

import (
	"slices"
	"sort"
)

// A placeID is the number of a place in its room's slab.
type placeID uint32

const (
	// slabPlaces is how many places are made at a time.
	slabPlaces = 1 << 12
	// blockPlaces bounds a block of a line: what is moved to put one in between.
	blockPlaces = 1 << 10
)

// A slab has the places of a room, none of which ever moves. There are no pointers in it, so that the garbage collector has nothing to do with ten
// million of them.
type slab struct {
	chunks [][]place
	made   int
}

// make returns the number of a new place.
func (s *slab) make(p place) placeID {
	if s.made == len(s.chunks)*slabPlaces {
		s.chunks = append(s.chunks, make([]place, slabPlaces))
	}
	id := placeID(s.made)
	s.made++
	*s.at(id) = p
	return id
}

func (s *slab) at(id placeID) *place { return &s.chunks[id/slabPlaces][id%slabPlaces] }

// A line has places by rank. To put one in, to take the first out and to count those before a rank take the logarithm of how many there are, and a
// block to move.
type line struct {
	places *slab
	// blocks are not empty, and none has more than blockPlaces.
	blocks [][]placeID
	// sums is a Fenwick tree of the blocks' sizes: sums[i] is that of blocks i&(i+1) to i.
	sums   []int
	length int
}

// find returns where a rank belongs: behind all that are not larger than it.
func (l *line) find(at rank) (block, index int) {
	larger := func(id placeID) bool { return l.places.at(id).rank.compare(at) > 0 }
	block = max(0, sort.Search(len(l.blocks), func(i int) bool { return larger(l.blocks[i][0]) })-1)
	if block < len(l.blocks) {
		ids := l.blocks[block]
		index = sort.Search(len(ids), func(i int) bool { return larger(ids[i]) })
	}
	return block, index
}

// insert puts a place in.
func (l *line) insert(id placeID) {
	l.length++
	block, index := l.find(l.places.at(id).rank)
	switch {
	case len(l.blocks) == 0 || (len(l.blocks[block]) >= blockPlaces && block == len(l.blocks)-1 && index == len(l.blocks[block])):
		// Who comes last: full blocks stay full.
		l.blocks = append(l.blocks, []placeID{id})
		l.sum()
		return
	case len(l.blocks[block]) >= blockPlaces:
		half := len(l.blocks[block]) / 2
		l.blocks = slices.Insert(l.blocks, block+1, slices.Clone(l.blocks[block][half:]))
		l.blocks[block] = slices.Clone(l.blocks[block][:half])
		l.sum()
		if index > half {
			block, index = block+1, index-half
		}
	}
	l.blocks[block] = slices.Insert(l.blocks[block], index, id)
	l.add(block, 1)
}

// before counts those who come before a place of a rank: those of a smaller one.
func (l *line) before(at rank) int {
	if at.draw == 0 {
		at.late, at.draw = at.late-1, ^uint64(0)
	} else {
		at.draw--
	}
	block, index := l.find(at)
	return l.upTo(block) + index
}

// pop takes the first one out.
func (l *line) pop() (first placeID, ok bool) {
	if l.length == 0 {
		return 0, false
	}
	l.length--
	first = l.blocks[0][0]
	if len(l.blocks[0]) == 1 {
		l.blocks[0] = nil
		l.blocks = l.blocks[1:]
		l.sum()
		return first, true
	}
	l.blocks[0] = l.blocks[0][1:]
	l.add(0, -1)
	return first, true
}

// sum makes the tree anew, when there are other blocks.
func (l *line) sum() {
	l.sums = append(l.sums[:0], make([]int, len(l.blocks))...)
	for i, ids := range l.blocks {
		l.sums[i] += len(ids)
		if above := i | (i + 1); above < len(l.sums) {
			l.sums[above] += l.sums[i]
		}
	}
}

// add changes the size of a block in the tree.
func (l *line) add(block, by int) {
	for ; block < len(l.sums); block |= block + 1 {
		l.sums[block] += by
	}
}

// upTo returns how many there are in the blocks before one.
func (l *line) upTo(block int) (sum int) {
	for block--; block >= 0; block = block&(block+1) - 1 {
		sum += l.sums[block]
	}
	return sum
}
