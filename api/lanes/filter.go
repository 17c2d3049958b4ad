package lanes

import (
	"hash/maphash"

	"github.com/greatroar/blobloom"
)

// A requestFilter says of almost every new request that it is new, without a look at the ledger: a miss there costs some 5 µs,
// several times what the rest of a decision does. It may take a new request for a known one, never the other way round. All that it looks
// at of a key is one line of the processor's cache in each generation: a filter is much larger than what that holds, and a start fills
// it with all requests there ever were.
type requestFilter struct {
	// generations, oldest first; each holds twice what the one before does.
	generations []*blobloom.Filter
	free        uint64 // keys that the newest generation still takes
	capacity    uint64 // of the newest generation
	key         []byte
}

// Limits of a filter.
const (
	// filterCapacityFirst is how many requests the first generation holds: 1.3 MB.
	filterCapacityFirst = 1 << 20
	// filterFalsePositives of each generation.
	filterFalsePositives = 0.01
)

// filterSeed is of this process, as filters are: they are made anew at each start.
var filterSeed = maphash.MakeSeed()

func (f *requestFilter) bytes(key requestKey) []byte {
	f.key = append(append(append(f.key[:0], key.userID...), 0), key.requestID...)
	return f.key
}

// add takes in a request that took effect.
func (f *requestFilter) add(key requestKey) { f.addBytes(f.bytes(key)) }

func (f *requestFilter) addBytes(key []byte) {
	if f.free == 0 {
		f.capacity = max(2*f.capacity, filterCapacityFirst)
		f.free = f.capacity
		f.generations = append(f.generations, blobloom.NewOptimized(blobloom.Config{Capacity: f.capacity, FPRate: filterFalsePositives}))
	}
	f.free--
	f.generations[len(f.generations)-1].Add(maphash.Bytes(filterSeed, key))
}

// mayHold reports whether the request may have taken effect; false is certain.
func (f *requestFilter) mayHold(key requestKey) bool {
	hash := maphash.Bytes(filterSeed, f.bytes(key))
	for i := len(f.generations) - 1; i >= 0; i-- {
		if f.generations[i].Has(hash) {
			return true
		}
	}
	return false
}
