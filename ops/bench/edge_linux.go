package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/gateway/edge"
	"github.com/weirhq/weir/ops/bench/echo"
	"github.com/weirhq/weir/ops/bench/load"
	"github.com/weirhq/weir/ops/launch"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
)

const (
	// edgeShare is what the edge refuses at least for each call that the echo server answers.
	edgeShare = 0.8
	// saleSettles is how long after its end a sale is looked at: for 10 s a gateway reads its last orders again and again, since clocks differ.
	saleSettles = 11 * time.Second
	// edgeKnowsMax bounds the wait for the gateway to know what is sold out, or for a node that just started to be known to it.
	edgeKnowsMax = 30 * time.Second
	// crowdMax is how many ask for the same at once, or crowdShare for each of the other loads' connections: a short run is a small one.
	crowdMax   = 10_000
	crowdShare = 40
	// crowdTime is how long the crowd may take.
	crowdTime = 20 * time.Second
	// leaderDelay is how long an upstream takes for what a crowd waits for, and leaderStays how long the one waits who asked for it.
	leaderDelay = 2 * time.Second
	leaderStays = time.Second
)

// gatewayEdge is a gateway in front of a node: what is sold out, which the gateway refuses itself, and a crowd that asks for one key.
func (b *bench) gatewayEdge(ctx context.Context) error {
	return b.withEcho(ctx, func(w *weir, echo *server) error {
		if err := w.sellOut(ctx, b.Options); err != nil {
			return err
		}
		settled := time.Now().Add(saleSettles)
		if err := b.oneKey(ctx, w); err != nil {
			return fmt.Errorf("one key: %w", err)
		}
		if err := pause(ctx, time.Until(settled)); err != nil {
			return err
		}
		if err := b.soldOutAtEdge(ctx, w, echo); err != nil {
			return fmt.Errorf("sold out: %w", err)
		}
		if err := b.leaderLeaves(ctx); err != nil {
			return fmt.Errorf("one who leaves: %w", err)
		}
		return nil
	})
}

// customers mints tokens for users that no other part of the benchmark orders for.
func (w *weir) customers(count int) (tokens []string, err error) {
	key, err := identity.OpenSigningKey(w.Data)
	if err != nil {
		return nil, err
	}
	for i := range count {
		token, err := identity.Mint(key, fmt.Sprintf("edge-%05d", i), 0, time.Now(), 24*time.Hour)
		if err != nil {
			return nil, err
		}
		tokens = append(tokens, token)
	}
	return tokens, nil
}

// withFront runs f with a gateway in front of the node, with a policy and further flags.
func (b *bench) withFront(ctx context.Context, w *weir, policy string, flags []string, f func(*stage) error) (err error) {
	file := filepath.Join(b.dir, "front.yaml")
	if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
		return err
	}
	s := &stage{}
	defer func() { err = errors.Join(err, s.end()) }()
	if s.gateway, s.operator, err = startGateway(ctx, b.Weir, append([]string{"--upstream", "http://" + w.Addr, "--policy", file}, flags...)...); err != nil {
		return err
	}
	if err := f(s); err != nil {
		return fmt.Errorf("%w: %s", err, s.gateway.Printed())
	}
	return nil
}

// soldOutAtEdge is how many orders of what is sold out a gateway refuses itself, beside an echo server that answers the same ones.
func (b *bench) soldOutAtEdge(ctx context.Context, w *weir, echo *server) error {
	operator := filepath.Join(b.dir, "operator.token")
	if err := os.WriteFile(operator, []byte(w.Operator), 0o600); err != nil {
		return err
	}
	tokens, err := w.customers(callers)
	if err != nil {
		return err
	}
	body, err := proto.Marshal(&orderv1.PlaceOrderRequest{RequestId: requestPlace, Items: []*orderv1.ItemRequest{{Sku: skuFlash, Quantity: 1}}})
	if err != nil {
		return err
	}
	source := func() (load.Source, error) { return callingWith(placePath, body, tokens) }
	policy := "edge:\n  sold_out: true\nboard:\n  - {sku: " + skuFlash + "}\n"
	return b.withFront(ctx, w, policy, []string{"--operator-token-file", operator}, func(s *stage) error {
		if err := s.knowsSoldOut(ctx, tokens[0], body); err != nil {
			return err
		}
		figures, err := b.measure(ctx, "gateway-edge", []contestant{
			{name: "sold out, at the edge", server: s.gateway, source: source, answered: refused}, {name: "echo", server: echo, source: source},
		}, w.server())
		if err != nil {
			return err
		}
		atEdge, err := s.metric(ctx, `weir_gateway_edge_total{what="sold_out"}`)
		if err != nil {
			return err
		}
		passed, err := s.attempts(ctx, placePath)
		if err != nil {
			return err
		}
		b.report.check("sold out: refusals at the edge : echo", figures[0].PerSecond/figures[1].PerSecond, "×", edgeShare, false)
		b.report.check("sold out: refused at the edge, not at the node", 100*share(atEdge, atEdge+passed), "%", 0, false)
		return nil
	})
}

// knowsSoldOut waits until the gateway refuses an order itself.
func (s *stage) knowsSoldOut(ctx context.Context, token string, body []byte) error {
	return s.await(ctx, "the gateway does not refuse what is sold out", func(ctx context.Context) (bool, error) {
		response, err := s.call(ctx, placePath, token, body)
		return err == nil && strings.HasPrefix(response.Get(edge.HeaderEdge), "sold-out"), err
	})
}

// await asks again and again until the answer is yes.
func (s *stage) await(ctx context.Context, what string, ask func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, edgeKnowsMax)
	defer cancel()
	for {
		yes, err := ask(ctx)
		switch {
		case err != nil:
			return err
		case yes:
			return nil
		}
		if err := pause(ctx, breakerPoll); err != nil {
			return fmt.Errorf("%s within %v", what, edgeKnowsMax)
		}
	}
}

// call makes one unary call through the gateway, and returns the headers of the answer, whatever it is.
func (s *stage) call(ctx context.Context, path, token string, body []byte) (http.Header, error) {
	return callAt(ctx, s.gateway.Addr, path, token, body)
}

func callAt(ctx context.Context, addr, path, token string, body []byte) (http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, strings.NewReader(string(body)))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", protoType)
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	return response.Header, response.Body.Close()
}

// metric returns what the gateway says of a line of its metrics.
func (s *stage) metric(ctx context.Context, line string) (value float64, err error) {
	text, err := ask(ctx, http.MethodGet, s.operator, "/metrics", nil)
	if err != nil {
		return 0, err
	}
	for each := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(each, line+" "); found {
			_, err = fmt.Sscan(rest, &value)
			return value, err
		}
	}
	return 0, fmt.Errorf("the gateway has no metric %s", line)
}

// attempts is how many calls of a procedure the gateway has sent on.
func (s *stage) attempts(ctx context.Context, procedure string) (sum float64, err error) {
	status, err := s.status(ctx)
	if err != nil {
		return 0, err
	}
	for i := range status.Methods {
		if of := &status.Methods[i]; "/"+of.Method == procedure {
			sum += float64(of.Good + of.Overload + of.Fault + of.Abandoned)
		}
	}
	return sum, nil
}

// crowd is how many ask for the same at once.
func (b *bench) crowd() int { return min(crowdMax, crowdShare*b.Connections) }

// crowdPolicy sends nobody of a crowd away: what is looked at is who asks for the same, and not for too much.
func crowdPolicy(crowd int) string {
	return fmt.Sprintf("limits: {connections: %[1]d, connections_per_address: %[1]d}\nconcurrency: {min: %[1]d, initial: %[1]d, max: %[1]d}\n"+
		"breaker: {window: %[2]v, slow_after: %[2]v}\nbalance: {ejection: {frozen_after: %[2]v}}\n", 2*crowd, crowdTime)
}

// leaderLeaves has a crowd wait for the answer that one of them asked the upstream for, who hangs up before it comes: one other asks again, and all
// others are answered.
func (b *bench) leaderLeaves(ctx context.Context) error {
	return b.withStage(ctx, 1, func(s *stage) (err error) {
		if err := s.behaveAll(ctx, echo.Behaviour{Delay: leaderDelay}); err != nil {
			return err
		}
		crowd := b.crowd()
		file := filepath.Join(b.dir, "leader.yaml")
		policy := crowdPolicy(crowd) + "edge: {stale: {/weir.order.v1.OrderService/GetOrder: {always: true}}}\n"
		if err := os.WriteFile(file, []byte(policy), 0o600); err != nil {
			return err
		}
		front := &stage{}
		if front.gateway, front.operator, err = startGateway(ctx, b.Weir, "--upstream", "http://"+s.upstreams[0].Addr, "--policy", file); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, front.end()) }()
		body, err := proto.Marshal(&orderv1.GetOrderRequest{OrderId: sampleOrder().OrderId})
		if err != nil {
			return err
		}
		token := unsigned("the-same")
		source, err := callingWith(getPath, body, []string{token})
		if err != nil {
			return err
		}
		var left error
		var result *load.Result
		group, asking := errgroup.WithContext(ctx)
		group.Go(func() error {
			leading, hangUp := context.WithTimeout(asking, leaderStays)
			defer hangUp()
			_, left = front.call(leading, getPath, token, body)
			return nil
		})
		group.Go(func() error {
			if err := s.await(asking, "the upstream is not asked", func(ctx context.Context) (bool, error) {
				arrived, err := s.arrived(ctx)
				return err == nil && arrived[0] > 0, err
			}); err != nil {
				return err
			}
			run, err := load.Run(asking, load.Options{Addr: front.gateway.Addr, Connections: crowd, Calls: uint64(crowd), Duration: crowdTime, Source: source})
			result = run
			return err
		})
		if err := group.Wait(); err != nil {
			return err
		}
		if left == nil {
			return errors.New("who asked first got an answer, and did not leave")
		}
		arrived, err := s.arrived(ctx)
		if err != nil {
			return err
		}
		b.say("  the first of %d leaves: %.0f calls upstream with the first one's, %d failed %s", crowd, arrived[0], result.Failed, result.FirstFailure)
		name := fmt.Sprintf("%d wait for one who leaves: ", crowd)
		b.report.check(name+"those that are answered", 100*float64(result.Calls)/float64(result.Calls+result.Failed), "%", 100, false)
		b.report.check(name+"calls upstream after the first one's", arrived[0]-1, "calls", 1, true)
		return nil
	})
}

// oneKey has a crowd ask for the same order at once, which no read has asked for before, and counts how often the node reads it.
func (b *bench) oneKey(ctx context.Context, w *weir) error {
	crowd := b.crowd()
	return b.withFront(ctx, w, crowdPolicy(crowd), nil, func(s *stage) error {
		var loads, took []float64
		for range b.Runs {
			// The view is looked at with one order, so that nobody has read the other.
			ids, newest, _, err := w.place(ctx, b.Options, 2, 1)
			if err != nil {
				return err
			}
			if err := w.caughtUp(ctx, ids[0], newest); err != nil {
				return err
			}
			before, err := w.loads(ctx)
			if err != nil {
				return err
			}
			source, err := getSource(w.Trusted, ids[1:])
			if err != nil {
				return err
			}
			result, err := load.Run(ctx, load.Options{Addr: s.gateway.Addr, Connections: crowd, Calls: uint64(crowd), Duration: crowdTime, Source: source})
			if err != nil {
				return err
			}
			if result.Failed > 0 {
				return fmt.Errorf("%d of %d calls failed: %s", result.Failed, crowd, result.FirstFailure)
			}
			after, err := w.loads(ctx)
			if err != nil {
				return err
			}
			loads, took = append(loads, after-before), append(took, result.Elapsed.Seconds())
			b.say("  %d at once: %.0f loads at the node, all answered after %v", crowd, after-before, result.Elapsed.Round(time.Millisecond))
		}
		b.report.check(fmt.Sprintf("%d at once ask for one order: loads at the node", crowd), median(loads), "loads", 1, true)
		b.report.check(fmt.Sprintf("%d at once ask for one order: all are answered", crowd), median(took), "s", 0, true)
		return nil
	})
}

// loads is how many orders the node has read from its view since it started.
func (w *weir) loads(ctx context.Context) (float64, error) {
	text, err := launch.Output(ctx, nil, w.Binary, "reads", "--data", w.Data, "-o", "json")
	if err != nil {
		return 0, err
	}
	var report struct {
		Reads map[string]struct {
			Loads float64 `json:"loads"`
		} `json:"reads"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil {
		return 0, err
	}
	orders, found := report.Reads["orders"]
	if !found {
		return 0, fmt.Errorf("the node counts no reads of orders: %s", text)
	}
	return orders.Loads, nil
}
