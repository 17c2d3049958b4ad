package redisview

import (
	"sync"
	"time"
)

// Limits of the breaker.
const (
	// breakerFailuresMax failures in a row open it.
	breakerFailuresMax = 5
	// breakerOpenMin and breakerOpenMax bound how long it stays open before one call probes; the time doubles with each
	// probe that fails.
	breakerOpenMin = 250 * time.Millisecond
	breakerOpenMax = 10 * time.Second
)

// A breaker keeps readers from waiting for a Redis that does not answer. It is closed, or open until a time at which one
// caller probes.
type breaker struct {
	now func() time.Time

	mu       sync.Mutex
	failures int
	openFor  time.Duration // 0 while it is closed
	until    time.Time
}

// admit reports whether the caller may call. An open breaker admits one caller each time that its time is over.
func (b *breaker) admit() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.openFor == 0 {
		return true
	}
	now := b.now()
	if now.Before(b.until) {
		return false
	}
	b.until = now.Add(b.openFor) // Nobody else probes until this one has had its time.
	return true
}

// settle takes what came of a call that was admitted.
func (b *breaker) settle(failed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !failed:
		b.failures, b.openFor = 0, 0
	case b.openFor > 0:
		b.openFor = min(2*b.openFor, breakerOpenMax)
		b.until = b.now().Add(b.openFor)
	default:
		if b.failures++; b.failures >= breakerFailuresMax {
			b.openFor = breakerOpenMin
			b.until = b.now().Add(b.openFor)
		}
	}
}

// open reports whether calls are kept back.
func (b *breaker) open() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.openFor > 0
}
