package courier

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/domain"
	nodev1 "github.com/weirhq/weir/proto/node/weir/node/v1"
	"google.golang.org/protobuf/proto"
)

// BenchmarkSubmit measures an order of one line at the node that decides it, and at another one: the log is in memory, so what differs
// is the hop. The server and both nodes are one process, with TCP between them, and their processor time is counted together.
func BenchmarkSubmit(b *testing.B) {
	for _, atATime := range []int{1, 64} {
		for _, where := range []string{"home", "hop"} {
			b.Run(fmt.Sprintf("%d-at-a-time/%s", atATime, where), func(b *testing.B) {
				c := newCluster(b, 1)
				owner, front := c.join(b, all, nil), c.join(b, none, nil)
				for _, command := range []domain.Command{
					domain.PutProduct{SKU: "mug", Title: "A thing that is sold", Price: domain.Money{Currency: "EUR", Minor: 1299}},
					domain.ReceiveStock{SKU: "mug", Units: domain.ReceiveUnitsMax},
				} {
					if _, err := front.Submit(b.Context(), asked(b, "op", fmt.Sprintf("%T", command), command)); err != nil {
						b.Fatal(err)
					}
				}
				asks := owner
				if where == "hop" {
					asks = front
				}
				var next atomic.Int64
				latencies := make([]time.Duration, b.N)
				var workers sync.WaitGroup
				before := processorTime(b)
				b.ResetTimer()
				for range atATime {
					workers.Go(func() {
						for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
							began := time.Now()
							user := fmt.Sprintf("user-%06d", i)
							if _, err := asks.Submit(context.Background(), asked(b, user, "req-000000000001", order(user, "mug", 1))); err != nil {
								b.Errorf("order %d: %v", i, err)
								return
							}
							latencies[i] = time.Since(began)
						}
					})
				}
				workers.Wait()
				b.StopTimer()
				slices.Sort(latencies)
				b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
				b.ReportMetric(float64(latencies[len(latencies)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(latencies[len(latencies)*99/100].Microseconds()), "p99-µs")
			})
		}
	}
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkMessages measures what writing and reading the messages of one order costs, and how large they are.
func BenchmarkMessages(b *testing.B) {
	went := command{needs: protocol, request: asked(b, "user-000123", "req-000000000001", order("user-000123", "sku-0001", 1))}
	b.Run("command", func(b *testing.B) {
		b.ReportAllocs()
		size := 0
		for b.Loop() {
			written := encode(make([]byte, 0, bytesUsual), &went, walkCommand)
			var came command
			if err := decode(written, &came, walkCommand); err != nil {
				b.Fatal(err)
			}
			size = len(written)
		}
		b.ReportMetric(float64(size), "bytes")
	})
	at := start
	placed := domain.OrderPlaced{
		OrderID: domain.NewOrderID(at, 77, [10]byte{1, 2, 3}), UserID: "user-000123", Total: domain.Money{Currency: "EUR", Minor: 1299}, PayBy: at.Add(15 * time.Minute),
		Lines: []domain.Line{{SKU: "sku-0001", Units: 1, Title: "A thing that is sold", PriceMinor: 1299}},
	}
	reply := lanes.Reply{Lane: 3, Commit: 123456, At: at, Order: domain.Order{}.Evolve(placed, at), OrderCommit: 123456}
	b.Run("reply", func(b *testing.B) {
		b.ReportAllocs()
		size := 0
		for b.Loop() {
			written := encode(make([]byte, 0, bytesUsual), &answer{reply: &reply}, walkAnswer)
			var came answer
			if err := decode(written, &came, walkAnswer); err != nil {
				b.Fatal(err)
			}
			size = len(written)
		}
		b.ReportMetric(float64(size), "bytes")
	})
	// What the generated types would cost, without making them of a reply and a reply of them.
	b.Run("reply, generated", func(b *testing.B) {
		b.ReportAllocs()
		written := encode(nil, &answer{reply: &reply}, walkAnswer)
		for b.Loop() {
			var came nodev1.Answer
			if err := proto.Unmarshal(written, &came); err != nil {
				b.Fatal(err)
			}
			if _, err := proto.Marshal(&came); err != nil {
				b.Fatal(err)
			}
		}
	})
}
