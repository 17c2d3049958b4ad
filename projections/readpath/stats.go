package readpath

import "sync/atomic"

// Stats count what a Cache did since it was made.
type Stats struct {
	// MemoryHits, SharedHits and Loads are answers of L1, L2 and L3; Joined are answers that a load of somebody else's gave.
	MemoryHits, SharedHits, Loads, Joined uint64
	// StaleHits are answers of L1 that were being refreshed; Refreshes and RefreshErrors the refreshes.
	StaleHits, Refreshes, RefreshErrors uint64
	// MissingHits are keys that were known to be missing, FilterRefusals those that the filter said are.
	MissingHits, FilterRefusals uint64
	// SharedMisses and SharedErrors are of L2.
	SharedMisses, SharedErrors uint64
	// Overloaded are reads that found no place to load in.
	Overloaded uint64
}

// Add returns the sum of two.
func (s Stats) Add(t Stats) Stats {
	return Stats{
		MemoryHits: s.MemoryHits + t.MemoryHits, SharedHits: s.SharedHits + t.SharedHits, Loads: s.Loads + t.Loads, Joined: s.Joined + t.Joined,
		StaleHits: s.StaleHits + t.StaleHits, Refreshes: s.Refreshes + t.Refreshes, RefreshErrors: s.RefreshErrors + t.RefreshErrors,
		MissingHits: s.MissingHits + t.MissingHits, FilterRefusals: s.FilterRefusals + t.FilterRefusals,
		SharedMisses: s.SharedMisses + t.SharedMisses, SharedErrors: s.SharedErrors + t.SharedErrors,
		Overloaded: s.Overloaded + t.Overloaded,
	}
}

type counters struct {
	memoryHits, sharedHits, loads, joined atomic.Uint64
	staleHits, refreshes, refreshErrors   atomic.Uint64
	missingHits, filterRefusals           atomic.Uint64
	sharedMisses, sharedErrors            atomic.Uint64
	overloaded                            atomic.Uint64
}

// Stats returns what the cache did so far.
func (c *Cache[K, V]) Stats() Stats {
	s := &c.stats
	return Stats{
		MemoryHits: s.memoryHits.Load(), SharedHits: s.sharedHits.Load(), Loads: s.loads.Load(), Joined: s.joined.Load(),
		StaleHits: s.staleHits.Load(), Refreshes: s.refreshes.Load(), RefreshErrors: s.refreshErrors.Load(),
		MissingHits: s.missingHits.Load(), FilterRefusals: s.filterRefusals.Load(),
		SharedMisses: s.sharedMisses.Load(), SharedErrors: s.sharedErrors.Load(),
		Overloaded: s.overloaded.Load(),
	}
}
