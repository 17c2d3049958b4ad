package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/payments/sandbox"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
)

const (
	payPath = paymentv1connect.PaymentServiceStartPaymentProcedure
	// orderPlace stands for an order's id in a request: 27 characters.
	orderPlace = "000000000000000000000000000"
	// payOrdersPerSecond of Options.Duration are paid in a run, at least payOrdersMin: a run ends when the last one is captured.
	payOrdersPerSecond = 1000
	payOrdersMin       = 100
	// captureWait bounds the wait for that, captureInterval is between two looks.
	captureWait     = 5 * time.Minute
	captureInterval = 5 * time.Millisecond
)

// pay is orders that are placed, paid and captured through the node's own sandbox provider, beside orders that are placed only.
func (b *bench) pay(ctx context.Context) error {
	addr, err := launch.FreeAddr(ctx)
	if err != nil {
		return err
	}
	return b.withWeir(ctx, 1, func(w *weir) error {
		figures, err := b.measure(ctx, "pay", []contestant{
			w.placing("Weir, place", protoType, skusMany),
			{name: "Weir, place + pay + capture", server: w.server(), run: func(ctx context.Context) (*load.Result, error) {
				return w.placeAndPay(ctx, b.Options, addr, max(payOrdersMin, int(payOrdersPerSecond*b.Duration.Seconds())))
			}},
		})
		if err != nil {
			return err
		}
		b.report.check("place + pay + capture : place, orders/s", figures[1].PerSecond/figures[0].PerSecond, "×", 0, false)
		return nil
	}, "--sandbox-listen", addr)
}

// placeAndPay places so many orders, starts the payment of each as soon as it was placed, and waits until all are captured. What it
// counts as a call is an order with all of that; latencies are those of the single calls.
func (w *weir) placeAndPay(ctx context.Context, options Options, sandboxAddr string, orders int) (*load.Result, error) {
	placing, err := w.placeSource(protoType, skusMany)
	if err != nil {
		return nil, err
	}
	source, err := w.newPaySource(placing)
	if err != nil {
		return nil, err
	}
	before, err := captures(ctx, sandboxAddr)
	if err != nil {
		return nil, err
	}
	cpuBefore, err := load.ProcessCPU(w.PID())
	if err != nil {
		return nil, err
	}
	began := time.Now()
	result, err := load.Run(ctx, load.Options{
		Addr: w.Addr, Connections: options.Connections, Calls: uint64(2 * orders), Source: source, OnReply: source.take,
	})
	switch {
	case err != nil:
		return nil, err
	case result.Failed > 0:
		return nil, fmt.Errorf("%d of %d calls failed: %s", result.Failed, 2*orders, result.FirstFailure)
	}
	for end := time.Now().Add(captureWait); ; {
		now, err := captures(ctx, sandboxAddr)
		if err != nil {
			return nil, err
		}
		// The generator may have sent a few more requests than it counted.
		if now-before >= int64(source.started) {
			break
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("%d of %d payments are not captured after %v", int64(source.started)-(now-before), source.started, captureWait)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(captureInterval):
		}
	}
	result.Calls, result.Elapsed = uint64(source.started), time.Since(began)
	cpuAfter, err := load.ProcessCPU(w.PID())
	result.ProcessCPU = []time.Duration{cpuAfter - cpuBefore}
	return result, err
}

// A paySource pays orders that were placed before it places more. It is used by the one goroutine of a load.
type paySource struct {
	placing load.Source
	paying  *load.Template
	// placed orders that are not paid yet, oldest first; started counts the payments that were started.
	placed  []string
	started int
	next    string
}

func (w *weir) newPaySource(placing load.Source) (*paySource, error) {
	s := &paySource{placing: placing}
	run := sources.Add(1)
	body, err := proto.Marshal(&paymentv1.StartPaymentRequest{RequestId: requestPlace, OrderId: orderPlace, Provider: sandbox.Name, Method: sandbox.TokenOK})
	if err != nil {
		return nil, err
	}
	s.paying, err = load.NewTemplate(payPath, protoType, w.Trusted, body,
		load.Field{Placeholder: requestPlace, Fill: load.Counter(fmt.Sprintf("bench-%04d-", run%10_000))},
		load.Field{Placeholder: orderPlace, Fill: func(dst []byte) { copy(dst, s.next) }},
	)
	return s, err
}

// Next pays what was placed, or places another order.
func (s *paySource) Next() []byte {
	if len(s.placed) == 0 {
		return s.placing.Next()
	}
	s.next, s.placed = s.placed[0], s.placed[1:]
	return s.paying.Next()
}

// take sees every reply: an order without a payment is to be paid.
func (s *paySource) take(status int, body []byte) {
	var reply orderv1.PlaceOrderResponse // A payment's has the same fields.
	if status != http.StatusOK || proto.Unmarshal(body, &reply) != nil {
		return // The call counts as failed.
	}
	if len(reply.GetOrder().GetPayments()) > 0 {
		s.started++
		return
	}
	s.placed = append(s.placed, reply.GetOrder().GetOrderId())
}

// captures returns how many payments a sandbox has captured.
func captures(ctx context.Context, addr string) (count int64, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/ledger?limit=1", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var ledger sandbox.Ledger
	if err := json.NewDecoder(response.Body).Decode(&ledger); err != nil {
		return 0, fmt.Errorf("read the sandbox's ledger: %w", err)
	}
	for _, total := range ledger.Totals {
		count += total.Captures
	}
	return count, nil
}
