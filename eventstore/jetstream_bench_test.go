package eventstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/weirhq/weir/eventstore/embedded"
)

// benchmarkLog returns the log of lane 0 on an embedded server that fsyncs before it acknowledges.
func benchmarkLog(b *testing.B) Log {
	b.Helper()
	nc := connectTo(b, startServer(b, embedded.Options{Dir: b.TempDir()}))
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(b.Context(), laneStream(0, 1, -1, MaxMessageSize)); err != nil {
		b.Fatal(err)
	}
	s, err := OpenJetStream(b.Context(), nc, Topology{Lanes: 1}, JetStreamOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(s.Close)
	return s.Log(0)
}

// benchmarkRecords makes a chain; its bytes are the same but for the number, since only their length matters here.
func benchmarkRecords(at Position, count, size int) []Record {
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	records := make([]Record, count)
	for i := range records {
		records[i] = EncodeCommit(&Commit{
			Number: at.Number + 1, Epoch: 1, Time: time.Unix(0, 0), PrevHash: at.Hash,
			Events: []Event{{Type: "Measured", Version: 1, Payload: payload}},
		})
		at = Position{Number: records[i].Number, Hash: records[i].Hash}
	}
	return records
}

// BenchmarkAppend measures appends of 40 KB, the size of a commit of 100 orders, with a number of them in flight.
func BenchmarkAppend(b *testing.B) {
	for _, inFlight := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("inflight=%d", inFlight), func(b *testing.B) {
			log, at := benchmarkLog(b), Genesis(0, 1)
			type sent struct {
				pending Pending
				start   time.Time
			}
			var under []sent
			took := make([]time.Duration, 0, b.N)
			settle := func() {
				if err := under[0].pending.Wait(b.Context()); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(under[0].start))
				under = under[1:]
			}
			b.SetBytes(40_000)
			b.ResetTimer()
			for done := 0; done < b.N; {
				b.StopTimer()
				records := benchmarkRecords(at, min(1000, b.N-done), 40_000)
				done, at = done+len(records), position(records[len(records)-1])
				b.StartTimer()
				for _, record := range records {
					if len(under) == inFlight {
						settle()
					}
					under = append(under, sent{log.Append(record), time.Now()})
				}
				for len(under) > 0 {
					settle()
				}
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// BenchmarkFollow measures reading a log of 40 KB commits from its start.
func BenchmarkFollow(b *testing.B) {
	log := benchmarkLog(b)
	records := benchmarkRecords(Genesis(0, 1), 4000, 40_000)
	var under []Pending
	for _, record := range records {
		under = append(under, log.Append(record))
		if len(under) == 16 {
			if err := under[0].Wait(b.Context()); err != nil {
				b.Fatal(err)
			}
			under = under[1:]
		}
	}
	for _, pending := range under {
		if err := pending.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(40_000)
	b.ResetTimer()
	for left := b.N; left > 0; left -= len(records) {
		cursor, err := log.Follow(b.Context(), 1)
		if err != nil {
			b.Fatal(err)
		}
		for range min(left, len(records)) {
			if _, err := cursor.Next(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		cursor.Close()
	}
}
