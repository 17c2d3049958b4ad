package readpath

import "sync/atomic"

// Slots of floors.
const (
	// floorSlotsMin is enough where a floor only has to outlive a load: two keys in one slot cost a load that is not kept.
	floorSlotsMin = 1 << 10
	// floorSlotsShared is for what L2 keeps: a key that shares its slot with one that changed since is not taken from L2.
	floorSlotsShared = 1 << 18
)

// floors say for each key how new its value has to be: the newest position at which it, or a key in the same slot, changed.
type floors struct{ slots []atomic.Uint64 }

func (f *floors) init(slots int) { f.slots = make([]atomic.Uint64, slots) }

func (f *floors) of(hash uint64) uint64 { return f.slots[hash%uint64(len(f.slots))].Load() }

func (f *floors) raiseAll(position uint64) {
	for slot := range f.slots {
		f.raise(uint64(slot), position)
	}
}

// raise raises the floor to a position, if it is below.
func (f *floors) raise(hash, position uint64) {
	slot := &f.slots[hash%uint64(len(f.slots))]
	for {
		at := slot.Load()
		if at >= position || slot.CompareAndSwap(at, position) {
			return
		}
	}
}
