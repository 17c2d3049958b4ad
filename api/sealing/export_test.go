package sealing

const CachedKeysMax = cachedKeysMax

// CachedKeys counts the keys in memory.
func CachedKeys(s *Sealer) int { return len(s.cache) }
