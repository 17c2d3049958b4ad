package projections

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// benchLog returns the log of one lane with orders of one or two lines, 100 to a commit, of 50,000 users.
func benchLog(b *testing.B, orders int) *shop {
	b.Helper()
	s := newShop(b, 1, 0, 1)
	s.skus = nil
	for i := range 1000 {
		s.skus = append(s.skus, fmt.Sprintf("SKU-%04d", i))
	}
	s.step()
	random := rand.New(rand.NewPCG(1, 1))
	const ordersPerCommit = 100
	for range orders / ordersPerCommit {
		s.now = s.now.Add(3 * time.Millisecond)
		commit := &eventstore.Commit{Number: s.last.Number + 1, Epoch: 1, Time: s.now, PrevHash: s.last.Hash}
		for range ordersPerCommit {
			user := fmt.Sprintf("customer-%05d", random.IntN(50_000))
			first := random.IntN(len(s.skus))
			lines := []int{first, (first + 1 + random.IntN(len(s.skus)-1)) % len(s.skus)}
			placed := s.place(user, lines[:1+random.IntN(2)]...)
			event := s.envelope(placed)
			event.RequestID = fmt.Sprintf("request-%016x", random.Uint64())
			event.Fingerprint = binary.BigEndian.AppendUint64(make([]byte, 8), random.Uint64())
			commit.Events = append(commit.Events, event)
		}
		s.append(commit)
	}
	return s
}

// BenchmarkRebuild makes the views of 200,000 orders from the log: read, decode, apply, write.
func BenchmarkRebuild(b *testing.B) {
	const orders = 200_000
	s := benchLog(b, orders)
	for name, open := range map[string]func() (string, vfs.FS){
		"memory": func() (string, vfs.FS) { return "store", vfs.NewMem() },
		"disk":   func() (string, vfs.FS) { return b.TempDir(), vfs.Default },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				dir, fs := open()
				store, err := OpenStore(dir, StoreOptions{FS: fs})
				if err != nil {
					b.Fatal(err)
				}
				r, err := NewRunner(RunnerOptions{Store: store, Lane: 0, Lanes: 1, Log: s.log})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := r.fold(b.Context(), s.last); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := store.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/orders, "ns/order")
			b.ReportMetric(float64(b.N)*orders/b.Elapsed().Seconds(), "orders/s")
		})
	}
}

// BenchmarkApply takes commits of 100 orders into batches that are never written: the cost of the projections alone.
func BenchmarkApply(b *testing.B) {
	const orders = 10_000
	s := benchLog(b, orders)
	var commits []*eventstore.Commit
	var positions []eventstore.Position
	for number := uint64(1); number <= s.last.Number; number++ {
		record, err := s.log.Read(b.Context(), number)
		if err != nil {
			b.Fatal(err)
		}
		commit, err := eventstore.DecodeCommit(record.Data)
		if err != nil {
			b.Fatal(err)
		}
		commits, positions = append(commits, commit), append(positions, eventstore.Position{Number: number, Hash: record.Hash})
	}
	n := openNode(b, vfs.NewMem(), s.log)
	r := n.runners[0]
	genesis := r.position
	b.ReportAllocs()
	for b.Loop() {
		r.position = genesis
		for _, v := range r.views {
			v.progress = genesis
		}
		for i, commit := range commits {
			if err := r.take(commit, positions[i]); err != nil {
				b.Fatal(err)
			}
			if r.batch.Len() >= batchBytesMax {
				r.batch.Reset()
				r.pending = 0
				r.changed.reset()
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/orders, "ns/order")
	if err := n.store.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkOrder reads an order of all that are there, one of a few that are read often, and one that is not there.
func BenchmarkOrder(b *testing.B) {
	s := benchLog(b, 200_000)
	n := startNode(b, vfs.NewMem(), s.log)
	n.reach(s)
	if err := n.store.Flush(); err != nil {
		b.Fatal(err)
	}
	var all []domain.OrderID
	for number := uint64(1); number <= s.last.Number; number++ {
		record, err := s.log.Read(b.Context(), number)
		if err != nil {
			b.Fatal(err)
		}
		commit, err := eventstore.DecodeCommit(record.Data)
		if err != nil {
			b.Fatal(err)
		}
		for i := range commit.Events {
			if id, err := domain.ParseOrderID(commit.Events[i].AggregateID); err == nil {
				all = append(all, id)
			}
		}
	}
	ids := slices.Clone(all[len(all)/2:][:100])
	random := rand.New(rand.NewPCG(1, 1))
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	b.Run("spread", func(b *testing.B) { // Too many to be kept: each is read from a block.
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, _, err := n.views.Order(b.Context(), all[i%len(all)], Min{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("present", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, _, err := n.views.Order(b.Context(), ids[i%len(ids)], Min{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("missing", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			id := ids[i%len(ids)]
			id[15] ^= 0xff
			if _, _, err := n.views.Order(b.Context(), id, Min{}); err == nil {
				b.Fatal("found")
			}
		}
	})
}

// BenchmarkStore writes what a rebuild of a lane's state and views writes for an order: two keys that ascend, two that
// are random, and a record of 150 bytes with two of them.
func BenchmarkStore(b *testing.B) {
	const orders = 500_000
	value := make([]byte, 150) // Half of it compresses.
	for i := range 75 {
		value[i] = byte(rand.Uint32())
	}
	for b.Loop() {
		b.StopTimer()
		store, err := OpenStore(b.TempDir(), StoreOptions{})
		if err != nil {
			b.Fatal(err)
		}
		random := rand.New(rand.NewPCG(1, 1))
		batch := store.db.NewBatch()
		b.StartTimer()
		for group := range orders / 100 { // A commit holds 100 orders, and each table takes them in one after the other.
			for space, valueBytes := range []int{150, 150, 1, 60} {
				for range 100 {
					op := batch.SetDeferred(5+32, valueBytes)
					clear(op.Key)
					op.Key[0] = byte(space)
					if space < 2 {
						binary.BigEndian.PutUint64(op.Key[5:], uint64(group))
					} else {
						binary.BigEndian.PutUint64(op.Key[5:], random.Uint64())
					}
					binary.BigEndian.PutUint64(op.Key[13:], random.Uint64())
					copy(op.Value, value)
					if err := op.Finish(); err != nil {
						b.Fatal(err)
					}
				}
			}
			if batch.Len() >= BulkBytes {
				if err := batch.Commit(pebble.NoSync); err != nil {
					b.Fatal(err)
				}
				batch.Reset()
			}
		}
		if err := batch.Commit(pebble.NoSync); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if testing.Verbose() {
			b.Log(store.db.Metrics().String())
		}
		if err := store.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)*orders/b.Elapsed().Seconds(), "orders/s")
}
