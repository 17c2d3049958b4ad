package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/ops/bench/echo"
	"github.com/weirhq/weir/ops/bench/load"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"

	"google.golang.org/protobuf/proto"
)

const (
	// globalRate is the limit of all gateways together, in calls a second, and globalGateways how many share it, each of which is asked for
	// as much.
	globalRate     = 500
	globalGateways = 2
	// globalDeviationMax is how far from the limit the sum of what they let through may be, in per cent.
	globalDeviationMax = 10
	// tenants have equal shares of what the upstreams can do. All but one ask for tenantCalm of theirs, and that one for tenantFlood times its own.
	tenants     = 20
	tenantCalm  = 0.7
	tenantFlood = 10
)

// gatewayLimits is a rate of several gateways without Redis, and a tenant that asks for too much.
func (b *bench) gatewayLimits(ctx context.Context) error {
	if err := b.redisAway(ctx); err != nil {
		return fmt.Errorf("redis away: %w", err)
	}
	if err := b.oneTenant(ctx); err != nil {
		return fmt.Errorf("one tenant: %w", err)
	}
	return nil
}

// A split is what gateways let through together in a part of the time.
type split struct {
	phases []*phase
	length time.Duration
}

// of makes the phases for so many drives.
func splitOf(drives int, from, to time.Duration) *split {
	s := &split{length: to - from}
	for range drives {
		s.phases = append(s.phases, &phase{from: from, to: to})
	}
	return s
}

// deviation is how far from the limit the sum of the rates is, in per cent.
func (s *split) deviation() (perSecond, percent float64) {
	sum := 0.0
	for _, p := range s.phases {
		sum += float64(p.served)
	}
	perSecond = sum / s.length.Seconds()
	return perSecond, 100 * math.Abs(perSecond/globalRate-1)
}

// refusedQuickly is the median time of a refusal.
func (s *split) refusedQuickly() time.Duration {
	var all load.Histogram
	for _, p := range s.phases {
		all.Merge(&p.bad)
	}
	return all.Quantile(0.5)
}

// redisAway has two gateways share a rate through Redis, kills it, and starts it again.
func (b *bench) redisAway(ctx context.Context) (err error) {
	redis, err := startRedis(ctx, b.dir)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		b.report.LeftOut = append(b.report.LeftOut, fmt.Sprintf("a global rate without Redis: %v", err))
		b.say("  left out: %v", err)
		return nil
	}
	defer func() { err = errors.Join(err, redis.Stop(syscall.SIGTERM)) }()
	policy := filepath.Join(b.dir, "global.yaml")
	text := fmt.Sprintf("methods:\n  weir.order.v1.OrderService/GetOrder:\n    global: {per_second: %d}\n", globalRate)
	if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
		return err
	}
	return b.withStage(ctx, 1, func(s *stage) (err error) {
		// The stage's own gateway is not among them: it knows no Redis.
		var fronts []*stage
		defer func() {
			for _, front := range fronts {
				err = errors.Join(err, front.end())
			}
		}()
		for range globalGateways {
			front := &stage{}
			if front.gateway, front.operator, err = startGateway(ctx, b.Weir, "--upstream", "http://"+s.upstreams[0].Addr,
				"--policy", policy, "--redis", "redis://"+redis.Addr); err != nil {
				return err
			}
			fronts = append(fronts, front)
		}
		// The first seconds are the gateways' to find out who they are, and how much each is asked for.
		begins := b.Warmup + b.Duration
		killed := begins + 2*b.Duration
		ends := killed + b.grace() + 2*b.Duration
		with, at, without := splitOf(globalGateways, begins, killed), splitOf(globalGateways, killed, killed+b.grace()), splitOf(globalGateways, killed+b.grace(), ends)
		group, loaded := errgroup.WithContext(ctx)
		for i, front := range fronts {
			source, err := reading()
			if err != nil {
				return err
			}
			d := &drive{
				addr: front.gateway.Addr, source: source, rate: globalRate, duration: ends, connections: b.Connections,
				phases: []*phase{with.phases[i], at.phases[i], without.phases[i]},
			}
			group.Go(func() error { return d.run(loaded) })
		}
		group.Go(func() error {
			if err := pause(loaded, killed); err != nil {
				return err
			}
			return redis.Stop(syscall.SIGKILL)
		})
		if err := group.Wait(); err != nil {
			return err
		}
		b.reportShared(with, at, without)
		return nil
	})
}

func (b *bench) reportShared(with, at, without *split) {
	name := fmt.Sprintf("%d gateways share %d calls/s, each is asked for as many: ", globalGateways, globalRate)
	rate, off := with.deviation()
	b.report.check(name+"let through with Redis", rate, "calls/s", 0, false)
	b.report.check(name+"off the limit with Redis", off, "%", globalDeviationMax, true)
	rate, off = without.deviation()
	b.report.check(name+"let through without Redis", rate, "calls/s", 0, false)
	b.report.check(name+"off the limit without Redis", off, "%", globalDeviationMax, true)
	_, off = at.deviation()
	b.report.check(name+fmt.Sprintf("off the limit in the first %v after it was killed", at.length), off, "%", globalDeviationMax, true)
	b.report.check(name+"median of refusals without Redis, as their callers see it", inMillis(without.refusedQuickly()), "ms", 0, true)
}

// oneTenant has one user ask for ten times its share, and looks at what the others lose.
func (b *bench) oneTenant(ctx context.Context) error {
	return b.withStage(ctx, 3, func(s *stage) (err error) {
		if err := s.behaveAll(ctx, echo.Behaviour{Places: overloadPlaces, Delay: overloadDelay}); err != nil {
			return err
		}
		peak, err := b.peakOf(ctx, s)
		if err != nil {
			return err
		}
		part := peak / tenants
		policy := filepath.Join(b.dir, "tenants.yaml")
		text := fmt.Sprintf("methods:\n  weir.order.v1.OrderService/GetOrder:\n    user: {per_second: %.1f, burst: %d}\n", part, max(1, int(part/10)))
		if err := os.WriteFile(policy, []byte(text), 0o600); err != nil {
			return err
		}
		var flags []string
		for _, upstream := range s.upstreams {
			flags = append(flags, "--upstream", "http://"+upstream.Addr)
		}
		front := &stage{}
		if front.gateway, front.operator, err = startGateway(ctx, b.Weir, append(flags, "--policy", policy)...); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, front.end()) }()
		return b.floodOfOne(ctx, front, part)
	})
}

// floodOfOne drives all tenants, and then one of them more.
func (b *bench) floodOfOne(ctx context.Context, front *stage, part float64) error {
	body, err := proto.Marshal(&orderv1.GetOrderRequest{OrderId: sampleOrder().OrderId})
	if err != nil {
		return err
	}
	var others []string
	for i := range tenants - 1 {
		others = append(others, unsigned(fmt.Sprintf("tenant-%02d", i)))
	}
	calm, err := callingWith(getPath, body, others)
	if err != nil {
		return err
	}
	greedy, err := callingWith(getPath, body, []string{unsigned("tenant-greedy")})
	if err != nil {
		return err
	}
	begins, ends := b.Warmup+2*b.Duration, b.Warmup+4*b.Duration
	before, during := &phase{from: b.Warmup, to: begins}, &phase{from: begins, to: ends}
	own := &phase{to: ends - begins}
	quiet := &drive{addr: front.gateway.Addr, source: calm, rate: tenantCalm * part * (tenants - 1), duration: ends, connections: b.Connections, phases: []*phase{before, during}}
	flood := &drive{addr: front.gateway.Addr, source: greedy, rate: tenantFlood * part, duration: ends - begins, connections: b.Connections, phases: []*phase{own}}
	if err := quiet.while(ctx, func(ctx context.Context) error {
		if err := pause(ctx, begins); err != nil {
			return err
		}
		return flood.run(ctx)
	}); err != nil {
		return err
	}
	name := fmt.Sprintf("one of %d tenants at %d× its share: ", tenants, tenantFlood)
	b.report.check(name+"calls of the others that were answered", 100*(1-during.badShare()), "%", 99, false)
	b.report.check(name+"p99 of the others : before", share(float64(during.good.Quantile(0.99)), float64(before.good.Quantile(0.99))), "×", 1.3, true)
	b.report.check(name+"what it got itself, of its share", 100*float64(own.good.Count())/((ends-begins).Seconds()*part), "%", 0, false)
	b.say("  tenants: p99 of the others %v before, %v during", before.good.Quantile(0.99), during.good.Quantile(0.99))
	return nil
}
