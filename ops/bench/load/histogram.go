package load

import (
	"math/bits"
	"time"
)

// Histogram counts durations in buckets that are at most 1/64 wide of what they hold, from 1 ns on.
// The zero value is empty and ready. It is not for several goroutines.
type Histogram struct {
	counts [histogramBuckets]uint64
	total  uint64
	max    time.Duration
}

const (
	// histogramStepBits makes 64 linear steps of every doubling: quantiles are within 1.6%.
	histogramStepBits = 6
	// histogramBuckets reaches past one hour.
	histogramBuckets = (42 - histogramStepBits + 2) << histogramStepBits
)

// Record counts one duration. Less than nothing counts as nothing, more than the last bucket as the last.
func (h *Histogram) Record(d time.Duration) {
	h.counts[bucketOf(uint64(max(d, 0)))]++
	h.total++
	h.max = max(h.max, d)
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() uint64 { return h.total }

// Max returns the longest duration.
func (h *Histogram) Max() time.Duration { return h.max }

// Quantile returns the duration that the share q of all recorded ones does not exceed, 0 when there are none.
// REQUIRES: 0 ≤ q ≤ 1.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q * float64(h.total))
	if rank >= h.total {
		return h.max
	}
	var seen uint64
	for bucket, count := range h.counts {
		if seen += count; seen > rank {
			return min(upperEdge(bucket), h.max)
		}
	}
	return h.max
}

// Merge adds what other recorded.
func (h *Histogram) Merge(other *Histogram) {
	for bucket, count := range other.counts {
		h.counts[bucket] += count
	}
	h.total += other.total
	h.max = max(h.max, other.max)
}

func bucketOf(nanoseconds uint64) int {
	if nanoseconds < 1<<histogramStepBits {
		return int(nanoseconds)
	}
	shift := bits.Len64(nanoseconds) - histogramStepBits - 1
	// The leading bit becomes part of the octave's number.
	bucket := shift<<histogramStepBits + int(nanoseconds>>shift)
	return min(bucket, histogramBuckets-1)
}

// upperEdge returns the longest duration that falls into the bucket.
func upperEdge(bucket int) time.Duration {
	if bucket < 1<<(histogramStepBits+1) {
		return time.Duration(bucket)
	}
	shift := bucket>>histogramStepBits - 1
	mantissa := uint64(bucket - shift<<histogramStepBits)
	return time.Duration((mantissa+1)<<shift - 1)
}
