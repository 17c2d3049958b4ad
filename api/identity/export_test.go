package identity

const CacheTokensMax = cacheTokensMax

// CachedTokens counts what the verifier remembers.
func CachedTokens(v *Verifier) int {
	total := 0
	for i := range v.shards {
		total += len(v.shards[i].tokens)
	}
	return total
}
