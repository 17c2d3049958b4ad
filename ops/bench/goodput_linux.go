package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

const (
	// goodputCrowd times as many callers as connections are a flood of a node.
	goodputCrowd = 4
	// goodputRest is how long a caller who is refused waits: the least that a gateway tells.
	goodputRest = 100 * time.Millisecond
	// goodputRunUp is how much longer than others these runs warm up: the gateway is to have found how many places the node has.
	goodputRunUp = 4 * time.Second
	// goodputRunMin is how long one is at least: in less, a node that waits for its disk may answer nobody.
	goodputRunMin = time.Second
)

// goodputPolicies are those under which a node is looked at. The first has no limiter: it is what the other is compared with.
var goodputPolicies = []struct{ name, text string }{
	{"no limiter", "concurrency: {off: true}\n"},
	{"by default", "{}\n"},
}

// A guarded is a gateway in front of the node, with what came of runs.
type guarded struct {
	name  string
	front *stage
	// of the callers of a closed loop, and of goodputCrowd times as many.
	served, refused, p99, crowdServed []float64
}

// gatewayGoodput is what the limiter lets a node do that commits in groups: it does each call later and more of them with company, so that calls that take
// long are no sign that there are too many. Those who call rest when they are refused, as they are told; they are on the same processors as the node.
func (b *bench) gatewayGoodput(ctx context.Context) error {
	return b.withWeir(ctx, 1, func(w *weir) (err error) {
		var all []*guarded
		defer func() {
			for _, g := range all {
				err = errors.Join(err, g.front.end())
			}
		}()
		for i, policy := range goodputPolicies {
			file := filepath.Join(b.dir, fmt.Sprintf("goodput%d.yaml", i))
			if err := os.WriteFile(file, []byte(policy.text), 0o600); err != nil {
				return err
			}
			g := &guarded{name: policy.name, front: &stage{}}
			if g.front.gateway, g.front.operator, err = startGateway(ctx, b.Weir, "--upstream", "http://"+w.Addr, "--policy", file); err != nil {
				return err
			}
			g.front.gateway.needs = []*launch.Server{w.Server}
			all = append(all, g)
		}
		tokens, err := w.tokens(callers)
		if err != nil {
			return err
		}
		for range b.Runs {
			for _, g := range all {
				if err := b.runGuarded(ctx, g, tokens, false); err != nil {
					return fmt.Errorf("%s: %w: %s", g.name, err, g.front.gateway.Printed())
				}
			}
			if err := b.runGuarded(ctx, all[1], tokens, true); err != nil {
				return fmt.Errorf("%s: %w: %s", all[1].name, err, all[1].front.gateway.Printed())
			}
		}
		peak := median(all[0].served)
		name := fmt.Sprintf("a node behind a gateway, %d callers: ", b.Connections)
		b.report.check(name+"orders/s without a limiter", peak, "orders/s", 0, false)
		b.report.check(name+"orders/s under the default policy : without a limiter", median(all[1].served)/peak, "×", 0.95, false)
		b.report.check(name+"calls refused under the default policy", median(all[1].refused), "%", 0, true)
		b.report.check(name+"p99 under the default policy : without a limiter", median(all[1].p99)/median(all[0].p99), "×", 0, true)
		b.report.check(fmt.Sprintf("the same, %d callers: orders/s under the default policy : %d without a limiter", goodputCrowd*b.Connections, b.Connections),
			median(all[1].crowdServed)/peak, "×", 0, false)
		return nil
	})
}

// runGuarded has callers order from the node by way of the gateway, or a crowd of them.
func (b *bench) runGuarded(ctx context.Context, g *guarded, tokens []string, crowd bool) error {
	source, err := placingOf(tokens)
	if err != nil {
		return err
	}
	if err := settleWithin(ctx, settleRuns*b.Duration, g.front.gateway); err != nil {
		return err
	}
	connections := b.Connections
	if crowd {
		connections *= goodputCrowd
	}
	result, err := load.Run(ctx, load.Options{
		Addr: g.front.gateway.Addr, Connections: connections, Rest: goodputRest, Warmup: b.Warmup + min(goodputRunUp, b.Duration), Duration: max(b.Duration, goodputRunMin), Source: source,
	})
	if err != nil {
		return err
	}
	if result.Calls == 0 {
		return fmt.Errorf("no order was placed, %d calls failed: %s", result.Failed, result.FirstFailure)
	}
	refused := 100 * share(float64(result.Failed), float64(result.Failed+result.Calls))
	b.say("  %s, %4d callers: %6.0f orders/s, %.1f%% refused, p50 %v, p99 %v", g.name, connections, result.PerSecond(), refused,
		result.Latency.Quantile(0.5), result.Latency.Quantile(0.99))
	if crowd {
		g.crowdServed = append(g.crowdServed, result.PerSecond())
		return nil
	}
	g.served = append(g.served, result.PerSecond())
	g.refused = append(g.refused, refused)
	g.p99 = append(g.p99, inMillis(result.Latency.Quantile(0.99)))
	return nil
}

// tokens are of so many users.
func (w *weir) tokens(users int) ([]string, error) {
	key, err := identity.OpenSigningKey(w.Data)
	if err != nil {
		return nil, err
	}
	tokens := make([]string, users)
	for i := range tokens {
		if tokens[i], err = identity.Mint(key, fmt.Sprintf("u%07d", i), 0, time.Now(), 24*time.Hour); err != nil {
			return nil, err
		}
	}
	return tokens, nil
}

// placingOf has each user order in turn, under a request id of its own each time.
func placingOf(tokens []string) (load.Source, error) {
	body, err := proto.Marshal(&orderv1.PlaceOrderRequest{RequestId: requestPlace, Items: []*orderv1.ItemRequest{{Sku: skuPlace, Quantity: 1}}})
	if err != nil {
		return nil, err
	}
	count := load.Counter(fmt.Sprintf("bench-%04d-", sources.Add(1)%10_000))
	all := &templates{}
	for _, token := range tokens {
		template, err := load.NewTemplate(placePath, protoType, token, body, load.Field{Placeholder: requestPlace, Fill: count})
		if err != nil {
			return nil, err
		}
		all.each = append(all.each, template)
	}
	return all, nil
}
