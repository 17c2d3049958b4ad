package flashsale

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
)

const (
	// provider takes no real money. Naming it keeps a sale on somebody's node away from any other one.
	provider = "sandbox"
	// methodPays and methodDeclines are payment methods of the sandbox.
	methodPays     = "tok_ok"
	methodDeclines = "tok_decline"
	// payersMax is how many orders are paid at a time.
	payersMax = 32
	// settleWait is how long a payment may take until its outcome is known (I5).
	settleWait = time.Minute
)

// A fate is what a buyer with an order does about paying it.
type fate uint8

const (
	pays fate = iota
	declines
	abandons
)

// fates deals out exactly these shares of count, in an order that the seed draws.
func fates(seed uint64, count int, declinedPercent, unpaidPercent int) []fate {
	dealt := make([]fate, count)
	declined := count * declinedPercent / 100
	for i := range count * unpaidPercent / 100 {
		dealt[declined+i] = abandons
	}
	for i := range declined {
		dealt[i] = declines
	}
	rand.New(rand.NewPCG(seed, 1)).Shuffle(count, func(i, j int) { dealt[i], dealt[j] = dealt[j], dealt[i] })
	return dealt
}

// payments is what came of paying.
type payments struct {
	paid, declined, abandoned int64
	// open are the orders that nobody has paid.
	open []placed
	took time.Duration
}

// errNoSandbox says that the node does not pay through the sandbox provider.
var errNoSandbox = errors.New("the node has no sandbox payment provider")

// pay lets the buyers pay, each as its fate has it, and waits until every payment is over.
func (s *sale) pay(ctx context.Context, name string, orders []placed, dealt []fate) (*payments, error) {
	// Whose fate is whose depends on who got a unit; how many have each does not.
	orders = slices.SortedFunc(slices.Values(orders), func(a, b placed) int { return int(a.attempt - b.attempt) })
	result := &payments{}
	var next, done, paid, declined atomic.Int64
	wrong := make([]string, len(orders))
	count := func() Progress {
		return Progress{Step: name, Unit: "orders", Done: done.Load(), Total: int64(len(orders))}
	}
	began := time.Now()
	err := s.step(count, func() error {
		group, ctx := errgroup.WithContext(ctx)
		for range min(payersMax, len(orders)) {
			group.Go(func() error {
				for {
					i := int(next.Add(1) - 1)
					if i >= len(orders) {
						return nil
					}
					if dealt[i] != abandons {
						payment, err := s.payOne(ctx, &orders[i], dealt[i])
						if err != nil {
							return err
						}
						wrong[i] = checkPayment(payment, &orders[i], dealt[i])
						if payment.GetPayment().GetState() == orderv1.PaymentState_PAYMENT_STATE_CAPTURED {
							paid.Add(1)
						} else {
							declined.Add(1)
						}
					}
					done.Add(1)
				}
			})
		}
		return group.Wait()
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	result.took, result.paid, result.declined = time.Since(began), paid.Load(), declined.Load()
	for i := range orders {
		if dealt[i] == abandons {
			result.abandoned++
		}
		if dealt[i] != pays {
			result.open = append(result.open, orders[i])
		}
		if wrong[i] != "" {
			s.report.wrong("%s", wrong[i])
		}
	}
	return result, nil
}

func (s *sale) paymentService() paymentv1connect.PaymentServiceClient {
	return paymentv1connect.NewPaymentServiceClient(s.http, s.url(), connect.WithInterceptors(launch.Bearer(s.node.Token())))
}

// payOne starts an order's payment and waits until it is over.
func (s *sale) payOne(ctx context.Context, p *placed, f fate) (*paymentv1.GetPaymentResponse, error) {
	id := p.response.GetOrder().GetOrderId()
	request := &paymentv1.StartPaymentRequest{
		RequestId: fmt.Sprintf("%s-pay-%d", s.sku, p.attempt), OrderId: id, Provider: provider, Method: methodPays,
	}
	if f == declines {
		request.Method = methodDeclines
	}
	var started *paymentv1.StartPaymentResponse
	err := s.persist(ctx, func() (err error) {
		started, err = s.paymentService().StartPayment(ctx, request)
		return err
	})
	switch {
	case err == nil:
	case connect.CodeOf(err) == connect.CodeInvalidArgument || connect.CodeOf(err) == connect.CodeUnimplemented:
		return nil, fmt.Errorf("%w: %w", errNoSandbox, err)
	case connect.CodeOf(err) == connect.CodeFailedPrecondition && time.Now().After(s.heldUntil):
		window := p.response.GetOrder().GetPayBy().AsTime().Sub(p.response.GetOrder().GetPlacedAt().AsTime())
		return nil, &TooSlowError{Took: window + time.Since(s.heldUntil), PayWithin: window}
	default:
		return nil, fmt.Errorf("pay order %s: %w", id, err)
	}
	for end := time.Now().Add(settleWait); ; {
		var got *paymentv1.GetPaymentResponse
		err := s.persist(ctx, func() (err error) {
			got, err = s.paymentService().GetPayment(ctx, &paymentv1.GetPaymentRequest{
				OrderId: id, MinRevision: started.GetRevision(), WaitBudget: durationpb.New(s.ViewWait),
			})
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("read the payment of order %s: %w", id, err)
		}
		if payment := got.GetPayment(); payment.GetDeclineCode() != "" || payment.GetState() == orderv1.PaymentState_PAYMENT_STATE_CAPTURED {
			return got, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("the payment of order %s is %v after %v (I5)", id, got.GetPayment().GetState(), settleWait)
		}
		wait(ctx, retryInterval)
	}
}

// checkPayment says what is wrong with a payment that is over, "" for nothing.
func checkPayment(got *paymentv1.GetPaymentResponse, p *placed, f fate) string {
	order, payment := p.response.GetOrder(), got.GetPayment()
	captured := payment.GetState() == orderv1.PaymentState_PAYMENT_STATE_CAPTURED
	switch {
	case captured != (f == pays):
		return fmt.Sprintf("order %s: the payment with %s is %v", order.GetOrderId(), map[fate]string{pays: methodPays, declines: methodDeclines}[f], payment)
	case captured && !proto.Equal(payment.GetCaptured(), order.GetTotal()):
		return fmt.Sprintf("order %s: %v was captured, %v was to be paid (I4)", order.GetOrderId(), payment.GetCaptured(), order.GetTotal())
	case captured && got.GetOrderStatus() != orderv1.OrderStatus_ORDER_STATUS_PAID:
		return fmt.Sprintf("order %s was paid and is %v", order.GetOrderId(), got.GetOrderStatus())
	}
	return ""
}
