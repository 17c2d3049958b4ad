package lanes

import "github.com/bits-and-blooms/bloom/v3"

// A requestFilter says of almost every new request that it is new, without a look at the ledger: a miss there costs some 5 µs,
// several times what the rest of a decision does. It may take a new request for a known one, never the other way round.
type requestFilter struct {
	// generations, oldest first; each holds twice what the one before does.
	generations []*bloom.BloomFilter
	free        uint // keys that the newest generation still takes
	capacity    uint // of the newest generation
	key         []byte
}

// Limits of a filter.
const (
	// filterCapacityFirst is how many requests the first generation holds: 1.2 MB.
	filterCapacityFirst = 1 << 20
	// filterFalsePositives of each generation.
	filterFalsePositives = 0.01
)

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
		f.generations = append(f.generations, bloom.NewWithEstimates(f.capacity, filterFalsePositives))
	}
	f.free--
	f.generations[len(f.generations)-1].Add(key)
}

// mayHold reports whether the request may have taken effect; false is certain.
func (f *requestFilter) mayHold(key requestKey) bool {
	b := f.bytes(key)
	for i := len(f.generations) - 1; i >= 0; i-- {
		if f.generations[i].Test(b) {
			return true
		}
	}
	return false
}
