package readpath

import (
	"iter"
	"math"
	"sync"
	"sync/atomic"

	"github.com/bits-and-blooms/bloom/v3"
)

// Limits of a Filter.
const (
	// filterKeysMin is how many keys the first part of a filter holds: 5 KB.
	filterKeysMin = 1 << 12
	// filterFalsePositives of a part that is full; it takes filterHashes bits a key.
	filterFalsePositives = 0.01
)

// A Filter says of almost every key that does not exist that it does not. It may take a missing key for one that is there,
// never the other way round. The zero value holds nothing.
//
// Any number of goroutines may ask; Add and Rebuild are one at a time by themselves.
type Filter struct {
	parts atomic.Pointer[[]*filterPart] // newest last; not changed, replaced
	mu    sync.Mutex                    // held by Add and by the beginning and the end of Rebuild
	// rebuilt is what Rebuild makes; Add fills it too.
	rebuilt *filterPart
}

// filterPart is a Bloom filter whose bits are set while they are read.
type filterPart struct {
	words []atomic.Uint64
	free  int // keys that it still takes
}

// filterHashes is the number of bits that a key sets, the best for filterFalsePositives.
var filterBitsPerKey, filterHashes = func() (float64, uint) {
	bits, hashes := bloom.EstimateParameters(1<<20, filterFalsePositives)
	return float64(bits) / (1 << 20), hashes
}()

func newFilterPart(keys int) *filterPart {
	bits := math.Ceil(filterBitsPerKey * float64(keys))
	return &filterPart{words: make([]atomic.Uint64, int(bits)/64+1), free: keys}
}

// add reports whether a bit was new.
func (p *filterPart) add(locations []uint64) (added bool) {
	for _, at := range locations {
		word, bit := p.word(at)
		if word.Or(bit)&bit == 0 {
			added = true
		}
	}
	if added {
		p.free--
	}
	return added
}

func (p *filterPart) mayHold(locations []uint64) bool {
	for _, at := range locations {
		if word, bit := p.word(at); word.Load()&bit == 0 {
			return false
		}
	}
	return true
}

func (p *filterPart) word(location uint64) (*atomic.Uint64, uint64) {
	at := location % uint64(64*len(p.words))
	return &p.words[at/64], 1 << (at % 64)
}

// MayHold reports whether the key may have been added; false is certain.
func (f *Filter) MayHold(key string) bool {
	parts := f.parts.Load()
	if parts == nil {
		return false
	}
	locations := bloom.Locations([]byte(key), filterHashes)
	for i := len(*parts) - 1; i >= 0; i-- {
		if (*parts)[i].mayHold(locations) {
			return true
		}
	}
	return false
}

// Add takes in a key; whoever asks after Add returned is told of it. A full filter grows by a part as large as the others
// together.
func (f *Filter) Add(key string) {
	locations := bloom.Locations([]byte(key), filterHashes)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rebuilt != nil {
		f.rebuilt.add(locations)
	} else if f.MayHold(key) {
		return
	}
	var parts []*filterPart
	if now := f.parts.Load(); now != nil {
		parts = *now
	}
	if len(parts) == 0 || parts[len(parts)-1].free <= 0 {
		keys := filterKeysMin << len(parts)
		parts = append(parts[:len(parts):len(parts)], newFilterPart(keys))
		parts[len(parts)-1].add(locations)
		f.parts.Store(&parts)
		return
	}
	parts[len(parts)-1].add(locations)
}

// Rebuild makes the filter anew, of the keys and of those that are added meanwhile, and swaps it in: one part, with room
// for as many keys again. Until then the old one answers. keysAbout is how many there are, about.
// REQUIRES: no other Rebuild is under way, and keys holds whatever was added before Rebuild was called.
func (f *Filter) Rebuild(keysAbout int, keys iter.Seq2[string, error]) error {
	f.mu.Lock()
	building := newFilterPart(max(2*keysAbout, filterKeysMin))
	f.rebuilt = building
	f.mu.Unlock()
	var err error
	for key, readErr := range keys {
		if err = readErr; err != nil {
			break
		}
		f.mu.Lock()
		building.add(bloom.Locations([]byte(key), filterHashes))
		f.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rebuilt = nil
	if err == nil {
		f.parts.Store(&[]*filterPart{building})
	}
	return err
}
