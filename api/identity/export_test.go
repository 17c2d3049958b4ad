package identity

const CacheTokensMax = cacheTokensMax

// Remember puts a token into the cache as if it had been verified.
func Remember(v *Verifier, token string, principal *Principal) {
	v.shards[shardOf(token)].remember(token, principal, v.now())
}

// CachedTokens counts what the verifier remembers.
func CachedTokens(v *Verifier) int {
	total := 0
	for i := range v.shards {
		total += len(v.shards[i].tokens)
	}
	return total
}
