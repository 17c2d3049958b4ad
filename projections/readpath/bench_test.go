package readpath

import (
	"context"
	"testing"
)

func benchGet(b *testing.B, options Options[int, uint64], prepare func(c *Cache[int, uint64], key int), level Level) {
	const keys = 1024
	s := newShelf(keys)
	options.Load, options.Shown = s.load, s.shownTo
	c := New(options)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		key := i % keys
		if prepare != nil {
			prepare(c, key)
		}
		answer, err := c.Get(b.Context(), key, 0)
		if err != nil || answer.Level != level && i >= keys {
			b.Fatalf("got level %d, %v, want %d", answer.Level, err, level)
		}
	}
	stats := c.Stats()
	b.ReportMetric(float64(stats.Loads)/float64(b.N), "loads/op")
}

// BenchmarkGet reads keys off each level; L2 and L3 are maps in memory, so what is measured is the read path itself.
func BenchmarkGet(b *testing.B) {
	b.Run("L1", func(b *testing.B) {
		benchGet(b, Options[int, uint64]{BytesMax: 1 << 20}, nil, LevelMemory)
	})
	b.Run("L1 with hot keys", func(b *testing.B) {
		benchGet(b, Options[int, uint64]{BytesMax: 1 << 20, HotMax: 64}, nil, LevelMemory)
	})
	b.Run("L2", func(b *testing.B) {
		benchGet(b, Options[int, uint64]{Level2: newShared(), Key: keyText, Decode: decode}, nil, LevelShared)
	})
	b.Run("L3", func(b *testing.B) {
		benchGet(b, Options[int, uint64]{}, nil, LevelView)
	})
	b.Run("filter", func(b *testing.B) {
		var filter Filter
		filter.Add("other")
		benchGet(b, Options[int, uint64]{MayHold: func(int) bool { return filter.MayHold("sku-1") }}, nil, LevelFilter)
	})
}

// BenchmarkChanged tells a cache of 1,000 changes: of keys that it holds, and of keys that it does not.
func BenchmarkChanged(b *testing.B) {
	const changes = 1000
	for name, held := range map[string]bool{"held": true, "not held": false} {
		b.Run(name, func(b *testing.B) {
			s := newShelf(2 * changes)
			c := New(Options[int, uint64]{Load: s.load, Shown: s.shownTo, BytesMax: 1 << 20})
			keys := make([]int, changes)
			for i := range keys {
				keys[i] = i
			}
			for b.Loop() {
				for _, key := range keys {
					if !held {
						key += changes
					}
					if _, err := c.Get(context.Background(), key, 0); err != nil {
						b.Fatal(err)
					}
				}
				c.Changed(s.shown.Load(), keys...)
			}
		})
	}
}
