//go:build race

package lanes

// simSeedsDefault is small under the race detector, which has nothing to find in one goroutine and is slow.
const simSeedsDefault = 60
