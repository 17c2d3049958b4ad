package balance

import (
	"slices"
	"strconv"
)

// A ring is a circle of 2³² positions with points of its members on it, sorted. It is made once for each Set.
type ring []point

type point struct {
	position uint32
	member   *member
}

// newRing gives each member virtualNodes points for each unit of its weight, fewer if they would be too many.
func newRing(members []*member, virtualNodes int) ring {
	wanted := 0
	for _, m := range members {
		wanted += m.Weight * virtualNodes
	}
	share := min(1, float64(ringPointsMax)/float64(max(1, wanted)))
	r := make(ring, 0, min(wanted, ringPointsMax+len(members)))
	for _, m := range members {
		for i := range max(1, int(float64(m.Weight*virtualNodes)*share)) {
			r = append(r, point{uint32(mix(Hash(m.ID+"#"+strconv.Itoa(i))) >> 32), m})
		}
	}
	slices.SortFunc(r, func(a, b point) int {
		switch {
		case a.position < b.position:
			return -1
		case a.position > b.position:
			return 1
		case a.member.ID < b.member.ID: // Every gateway breaks a tie in the same way.
			return -1
		}
		return 1
	})
	return r
}

// search returns the index of the first point at the position or after it.
func (r ring) search(position uint32) int {
	low, high := 0, len(r)
	for low < high {
		if middle := (low + high) / 2; r[middle].position < position {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low % len(r)
}

// Hash returns a key's hash (FNV-1a, 64 bits), the same in every gateway.
func Hash(key string) uint64 {
	hash := uint64(14695981039346656037)
	for i := range len(key) {
		hash = (hash ^ uint64(key[i])) * 1099511628211
	}
	return hash
}

// mix spreads each bit of a hash over all of them (the finalizer of SplitMix64): FNV leaves the upper ones of short keys alike.
func mix(hash uint64) uint64 {
	hash = (hash ^ hash>>30) * 0xbf58476d1ce4e5b9
	hash = (hash ^ hash>>27) * 0x94d049bb133111eb
	return hash ^ hash>>31
}
