package bench

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

const (
	// keptOrders are accepted while no node is there.
	keptOrders = 50
	// retryPeriod is how often each is tried, retryDeviationMax how far from it two tries may be, in per cent, and retriesSeen how many are
	// looked at.
	retryPeriod       = 5 * time.Second
	retryDeviationMax = 10
	retriesSeen       = 3
	// retryPoll is how often it is looked whether there was one: what is measured is exact to that.
	retryPoll = 20 * time.Millisecond
	// keptDoneMax bounds the wait for all of them to be placed.
	keptDoneMax = time.Minute
)

// gatewayFailback is orders that a gateway keeps while their node is dead, which outlive the gateway, and are placed once.
func (b *bench) gatewayFailback(ctx context.Context) error {
	return b.withNATS(ctx, func(log *natsServer) (err error) {
		node := &launch.Node{
			Binary: b.Weir, Data: filepath.Join(b.dir, "kept"), Lanes: 1, NATS: log.url(),
			Flags: []string{"--node-id", "n1", "--nats-monitor", "http://" + log.monitor, "--replicas", "1", "--log-level", "error"},
		}
		if node.Listen, err = launch.FreeAddr(ctx); err != nil {
			return err
		}
		if _, err := node.Start(ctx); err != nil {
			return err
		}
		w := &weir{node}
		front := &stage{}
		defer func() {
			err = errors.Join(err, front.end())
			if w.Running() {
				err = errors.Join(err, w.End())
			}
			err = errors.Join(err, os.RemoveAll(node.Data))
		}()
		if err := w.put(ctx, skuPlace, stockUnits); err != nil {
			return err
		}
		tokens, err := w.customers(keptOrders + 1)
		if err != nil {
			return err
		}
		if err := w.Crash(); err != nil {
			return err
		}
		flags, err := b.keepingFlags(log, node)
		if err != nil {
			return err
		}
		if front.gateway, front.operator, err = startGateway(ctx, b.Weir, flags...); err != nil {
			return err
		}
		if err := b.retries(ctx, front, tokens[keptOrders]); err != nil {
			return err
		}
		for _, token := range tokens[:keptOrders] {
			if err := front.keep(ctx, token); err != nil {
				return err
			}
		}
		// The node is dead already. What the gateway accepted is to outlive it too.
		if err := front.gateway.Stop(syscall.SIGKILL); err != nil {
			return err
		}
		if front.gateway, front.operator, err = startGateway(ctx, b.Weir, flags...); err != nil {
			return err
		}
		return b.placedOnce(ctx, w, front)
	})
}

// keepingFlags are those of a gateway that keeps orders.
func (b *bench) keepingFlags(log *natsServer, node *launch.Node) ([]string, error) {
	policy, secret := filepath.Join(b.dir, "failback.yaml"), filepath.Join(b.dir, "gateway.secret")
	const text = "methods:\n  weir.order.v1.OrderService/PlaceOrder:\n    fault: {mode: failback}\n"
	if err := errors.Join(os.WriteFile(policy, []byte(text), 0o600), os.WriteFile(secret, []byte(hex.EncodeToString([]byte(strings.Repeat("bench..!", 4)))), 0o600)); err != nil {
		return nil, err
	}
	return []string{"--nats", log.url(), "--policy", policy, "--token-key-dir", node.Data, "--gateway-secret-file", secret}, nil
}

// keep places an order that no node takes, and returns once the gateway says that it has kept it.
func (s *stage) keep(ctx context.Context, token string) error {
	body, err := proto.Marshal(&orderv1.PlaceOrderRequest{RequestId: "kept", Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}}})
	if err != nil {
		return err
	}
	// A gateway that has just started has yet to open what it keeps requests in.
	return s.await(ctx, "the gateway does not keep an order", func(ctx context.Context) (bool, error) {
		header, err := s.call(ctx, placePath, token, body)
		return err == nil && header.Get(gateway.HeaderFailback) == "accepted", err
	})
}

// retries keeps one order and looks at how often the gateway tries to place it.
func (b *bench) retries(ctx context.Context, front *stage, token string) error {
	attempts := func(ctx context.Context) (float64, error) {
		return front.metric(ctx, `weir_gateway_failback_total{what="attempted"}`)
	}
	if err := front.keep(ctx, token); err != nil {
		return err
	}
	seen, err := attempts(ctx)
	if err != nil {
		return err
	}
	var tried []time.Time
	for end := time.Now().Add((retriesSeen + 2) * 2 * retryPeriod); len(tried) <= retriesSeen; {
		now, err := attempts(ctx)
		switch {
		case err != nil:
			return err
		case now > seen:
			seen, tried = now, append(tried, time.Now())
		case time.Now().After(end):
			return fmt.Errorf("an order that is kept was tried %d times in %v", len(tried), (retriesSeen+2)*2*retryPeriod)
		}
		if err := pause(ctx, retryPoll); err != nil {
			return err
		}
	}
	worst := 0.0
	var between []float64
	for i := range retriesSeen {
		wait := tried[i+1].Sub(tried[i])
		between = append(between, wait.Seconds())
		worst = max(worst, 100*math.Abs(wait.Seconds()/retryPeriod.Seconds()-1))
	}
	b.report.check("failback: between two attempts", median(between), "s", 0, true)
	b.report.check(fmt.Sprintf("failback: the furthest of %d that two attempts were from %v", retriesSeen, retryPeriod), worst, "%", retryDeviationMax, true)
	return nil
}

// placedOnce starts the node, waits until nothing is kept any more, and counts the orders.
func (b *bench) placedOnce(ctx context.Context, w *weir, front *stage) error {
	if _, err := w.Start(ctx); err != nil {
		return err
	}
	began := time.Now()
	waiting := math.NaN()
	for end := began.Add(keptDoneMax); waiting != 0; {
		var err error
		if waiting, err = front.metric(ctx, `weir_gateway_failback_requests{state="waiting"}`); err != nil && time.Now().After(end) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%.0f orders still wait %v after their node came back", waiting, keptDoneMax)
		}
		if err := pause(ctx, retryPoll); err != nil {
			return err
		}
	}
	took := time.Since(began)
	var lost, twice float64
	for i := range keptOrders + 1 {
		orders, err := w.ordersOf(ctx, fmt.Sprintf("edge-%05d", i))
		switch {
		case err != nil:
			return err
		case orders == 0:
			lost++
		case orders > 1:
			twice++
		}
	}
	once := 100 * (1 - (lost+twice)/(keptOrders+1))
	b.report.check(fmt.Sprintf("failback across kill -9 of node and gateway: of %d orders, placed once", keptOrders+1), once, "%", 100, false)
	b.report.check("failback across kill -9 of node and gateway: lost", lost, "orders", 0, true)
	b.report.check("failback across kill -9 of node and gateway: placed twice", twice, "orders", 0, true)
	b.report.check("failback across kill -9 of node and gateway: all are placed after the node is back", took.Seconds(), "s", 0, true)
	return nil
}

// ordersOf counts a user's orders, once the view has all of them.
func (w *weir) ordersOf(ctx context.Context, user string) (count int, err error) {
	client := w.Orders(http.DefaultClient)
	newest, err := client.PlaceOrder(ctx, &orderv1.PlaceOrderRequest{RequestId: "marker", UserId: user, Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}}})
	if err != nil {
		return 0, fmt.Errorf("mark the end of the orders of %s: %w", user, err)
	}
	if err := w.caughtUp(ctx, newest.Order.OrderId, newest.Revision); err != nil {
		return 0, err
	}
	listed, err := client.ListOrders(ctx, &orderv1.ListOrdersRequest{UserId: user, PageSize: 100})
	if err != nil {
		return 0, fmt.Errorf("list the orders of %s: %w", user, err)
	}
	marker := slices.IndexFunc(listed.Orders, func(o *orderv1.Order) bool { return o.OrderId == newest.Order.OrderId })
	if marker < 0 {
		return 0, fmt.Errorf("the orders of %s do not have the newest one", user)
	}
	return len(listed.Orders) - 1, nil
}
