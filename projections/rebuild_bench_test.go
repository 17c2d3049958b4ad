package projections

import (
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/eventstore/embedded"
)

// streamOf copies a shop's log into a stream of a server that keeps it on disk.
func streamOf(b testing.TB, s *shop) eventstore.Log {
	b.Helper()
	server, err := embedded.Start(embedded.Options{Dir: b.TempDir(), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(server.Shutdown)
	nc, err := server.Connect()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(nc.Close)
	topology := eventstore.Topology{Lanes: 1}
	if _, err := eventstore.Provision(b.Context(), nc, eventstore.ProvisionOptions{Topology: topology}); err != nil {
		b.Fatal(err)
	}
	streams, err := eventstore.OpenJetStream(b.Context(), nc, topology, eventstore.JetStreamOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(streams.Close)
	log := streams.Log(0)
	for number := uint64(1); number <= s.last.Number; number++ {
		record, err := s.log.Read(b.Context(), number)
		if err != nil {
			b.Fatal(err)
		}
		if err := log.Append(record).Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	return log
}

// processCPU returns the time that the processors have worked for this process, the server of the stream in it.
func processCPU(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkRebuildOfOrders builds a generation of the order view from a stream on disk, beside reading the same stream alone.
func BenchmarkRebuildOfOrders(b *testing.B) {
	const events = 2_000_000
	s := benchLog(b, events)
	log := streamOf(b, s)
	b.Run("read", func(b *testing.B) {
		began := processCPU(b)
		for b.Loop() {
			cursor, err := log.Follow(b.Context(), 1)
			if err != nil {
				b.Fatal(err)
			}
			for number := uint64(0); number < s.last.Number; {
				record, err := cursor.Next(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				number = record.Number
			}
			cursor.Close()
		}
		b.ReportMetric(float64(processCPU(b)-began)/float64(b.N)/events, "CPU-ns/event")
		b.ReportMetric(float64(b.N)*events/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("rebuild", func(b *testing.B) {
		var cpu time.Duration
		for b.Loop() {
			b.StopTimer()
			store := storeAt(b, s.last)
			r, err := NewRunner(RunnerOptions{Store: store, Lane: 0, Lanes: 1, Log: log})
			if err != nil {
				b.Fatal(err)
			}
			rebuilder, err := NewRebuilder(RebuilderOptions{
				Store: store, Runners: []*Runner{r}, Topology: r.topology, Log: func(uint32) eventstore.Log { return log },
			})
			if err != nil {
				b.Fatal(err)
			}
			began := processCPU(b)
			b.StartTimer()
			job := &rebuild{projection: &ordersProjection, pace: &pace{}}
			if err := rebuilder.begin(job, RebuildOptions{Lanes: []uint32{0}}); err != nil {
				b.Fatal(err)
			}
			if err := rebuilder.build(b.Context(), job, rebuilder.newPart(&ordersProjection, 0, job.record.Generation, false)); err != nil {
				b.Fatal(err)
			}
			if err := store.Flush(); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := store.Close(); err != nil {
				b.Fatal(err)
			}
			cpu += processCPU(b) - began // What was left to be done in the background counts.
			b.StartTimer()
		}
		b.ReportMetric(float64(cpu)/float64(b.N)/events, "CPU-ns/event")
		b.ReportMetric(float64(b.N)*events/b.Elapsed().Seconds(), "events/s")
	})
}

// storeAt returns a store whose views are at a position and empty: what a rebuild adopts its generation beside.
func storeAt(b *testing.B, at eventstore.Position) *Store {
	b.Helper()
	store, err := OpenStore(b.TempDir(), StoreOptions{})
	if err != nil {
		b.Fatal(err)
	}
	batch := store.db.NewBatch()
	for _, p := range Projections {
		value := appendProgress(nil, p.Version, progress{Position: at, at: time.Unix(1, 0)})
		if err := batch.Set(progressKey(p.space, firstGeneration, 0), value, nil); err != nil {
			b.Fatal(err)
		}
	}
	if err := batch.Commit(pebble.NoSync); err != nil {
		b.Fatal(err)
	}
	return store
}
