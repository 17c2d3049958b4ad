package projections

import (
	"log/slog"
	"testing"

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

// BenchmarkRebuildOfOrders builds a generation of the order view from a stream on disk, beside reading the same stream alone.
func BenchmarkRebuildOfOrders(b *testing.B) {
	const events = 500_000
	s := benchLog(b, events)
	log := streamOf(b, s)
	b.Run("read", func(b *testing.B) {
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
		b.ReportMetric(float64(b.N)*events/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("rebuild", func(b *testing.B) {
		store, err := OpenStore(b.TempDir(), StoreOptions{})
		if err != nil {
			b.Fatal(err)
		}
		defer func() {
			if err := store.Close(); err != nil {
				b.Error(err)
			}
		}()
		r, err := NewRunner(RunnerOptions{Store: store, Lane: 0, Lanes: 1, Log: log})
		if err != nil {
			b.Fatal(err)
		}
		if err := r.fold(b.Context(), s.last); err != nil {
			b.Fatal(err)
		}
		rebuilder, err := NewRebuilder(RebuilderOptions{
			Store: store, Runners: []*Runner{r}, Topology: r.topology, Log: func(uint32) eventstore.Log { return log },
		})
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			job := &rebuild{projection: &ordersProjection, pace: &pace{}}
			if err := rebuilder.begin(job, RebuildOptions{Lanes: []uint32{0}}); err != nil {
				b.Fatal(err)
			}
			if err := rebuilder.build(b.Context(), job, rebuilder.newPart(&ordersProjection, 0, job.record.Generation, false)); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			r.abandon(&ordersProjection, job.record.Generation)
			batch := store.db.NewBatch()
			if err := wipe(batch, &ordersProjection, job.record.Generation, 0); err != nil {
				b.Fatal(err)
			}
			if err := batch.Commit(pebble.NoSync); err != nil {
				b.Fatal(err)
			}
			if err := store.Flush(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(b.N)*events/b.Elapsed().Seconds(), "events/s")
	})
}
