package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/plan"
)

const (
	// planGateways all have to go by a plan.
	planGateways = 3
	// planFlipMax is how long it may take them.
	planFlipMax = 200 * time.Millisecond
	// planFlips are made in each run.
	planFlips = 10
	// planPoll is how often each gateway is called meanwhile: what is measured is exact to that.
	planPoll = time.Millisecond
	planName = "bench"
	planText = "name: bench\nabout: what is measured\nttl: 10m\nshed_below: read\n"
	planWhy  = "it is measured"
)

// gatewayPlans is how quickly several gateways go by a plan, and by none again, and whether they keep it while NATS is away.
func (b *bench) gatewayPlans(ctx context.Context) error {
	return b.withNATS(ctx, func(log *natsServer) (err error) {
		var fronts []*stage
		defer func() {
			for _, front := range fronts {
				err = errors.Join(err, front.end())
			}
		}()
		for i := range planGateways {
			front, err := b.planFront(ctx, log, i)
			if err != nil {
				return err
			}
			fronts = append(fronts, front)
		}
		connection, err := log.connect()
		if err != nil {
			return err
		}
		defer connection.Close()
		stream, err := jetstream.New(connection)
		if err != nil {
			return err
		}
		store, err := plan.OpenStore(ctx, stream, plan.StoreConfig{})
		if err != nil {
			return err
		}
		if _, err := store.Put(ctx, []byte(planText), nil, "bench", planWhy); err != nil {
			return err
		}
		if err := b.flipPlans(ctx, store, fronts); err != nil {
			return err
		}
		return b.plansWithoutNATS(ctx, log, store, fronts)
	})
}

// planFront starts a gateway that goes by the plans on NATS, and keeps them in a directory of its own.
func (b *bench) planFront(ctx context.Context, log *natsServer, number int) (_ *stage, err error) {
	dir := filepath.Join(b.dir, fmt.Sprintf("front-%d", number))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	front := &stage{}
	front.gateway, front.operator, err = startGateway(ctx, b.Weir, "--nats", log.url(), "--nodes-file", filepath.Join(dir, "nodes"))
	return front, err
}

// flipPlans applies the plan and takes it back, again and again.
func (b *bench) flipPlans(ctx context.Context, store *plan.Store, fronts []*stage) error {
	apply := func(ctx context.Context) error {
		_, err := store.Apply(ctx, plan.Application{Name: planName, By: "bench", Why: planWhy, Procedures: gateway.Procedures()})
		return err
	}
	rollback := func(ctx context.Context) error {
		_, err := store.Rollback(ctx, gateway.Procedures(), "bench", planWhy)
		return err
	}
	var applied, back, said []float64
	slowest := 0.0
	for range b.Runs * planFlips {
		for _, flip := range []struct {
			change func(context.Context) error
			want   string
			took   *[]float64
		}{{apply, planName, &applied}, {rollback, "", &back}} {
			acknowledged, all, err := flipped(ctx, fronts, flip.change, flip.want)
			if err != nil {
				return err
			}
			said, *flip.took = append(said, inMillis(acknowledged)), append(*flip.took, inMillis(all))
			slowest = max(slowest, inMillis(all))
		}
	}
	name := fmt.Sprintf("plan: %d gateways ", planGateways)
	b.report.check("plan: NATS has acknowledged a change", median(said), "ms", 0, true)
	b.report.check(name+"go by it after 'plan apply'", median(applied), "ms", inMillis(planFlipMax), true)
	b.report.check(name+"go by none after 'plan rollback'", median(back), "ms", inMillis(planFlipMax), true)
	b.report.check(name+fmt.Sprintf("go by it, the slowest of %d changes", len(said)), slowest, "ms", inMillis(planFlipMax), true)
	return nil
}

// flipped makes a change, and returns how long after its beginning NATS had acknowledged it, and how long after it all gateways went by it.
func flipped(ctx context.Context, fronts []*stage, change func(context.Context) error, want string) (acknowledged, all time.Duration, err error) {
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	took := make([]time.Duration, len(fronts))
	for i, front := range fronts {
		group.Go(func() error {
			err := front.goesBy(ctx, want)
			took[i] = time.Since(began)
			return err
		})
	}
	group.Go(func() error {
		err := change(ctx)
		acknowledged = time.Since(began)
		return err
	})
	if err := group.Wait(); err != nil {
		return 0, 0, err
	}
	for _, each := range took {
		all = max(all, each)
	}
	return acknowledged, all, nil
}

// goesBy waits until a call is answered under the plan, or under none if want is empty.
func (s *stage) goesBy(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, edgeKnowsMax)
	defer cancel()
	for {
		header, err := s.call(ctx, getPath, "", nil)
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(header.Get(gateway.HeaderPlan), "@")
		if name == want {
			return nil
		}
		if err := pause(ctx, planPoll); err != nil {
			return fmt.Errorf("a gateway does not go by the plan %q within %v", want, edgeKnowsMax)
		}
	}
}

// plansWithoutNATS kills NATS, and then starts one gateway again: all are to go by the plan on.
func (b *bench) plansWithoutNATS(ctx context.Context, log *natsServer, store *plan.Store, fronts []*stage) error {
	_, _, err := flipped(ctx, fronts, func(ctx context.Context) error {
		_, err := store.Apply(ctx, plan.Application{Name: planName, By: "bench", Why: planWhy, Procedures: gateway.Procedures()})
		return err
	}, planName)
	if err != nil {
		return err
	}
	if err := log.crash(); err != nil {
		return err
	}
	if err := pause(ctx, b.Duration); err != nil {
		return err
	}
	last := len(fronts) - 1
	if err := fronts[last].gateway.Stop(syscall.SIGKILL); err != nil {
		return err
	}
	again, err := b.planFront(ctx, log, last)
	if err != nil {
		return err
	}
	fronts[last] = again
	keep := 0
	for _, front := range fronts {
		header, err := front.call(ctx, getPath, "", nil)
		if err != nil {
			return err
		}
		if strings.HasPrefix(header.Get(gateway.HeaderPlan), planName+"@") {
			keep++
		}
	}
	b.report.check("plan: gateways that keep it while NATS is away, one of them started again", float64(keep), "gateways", planGateways, false)
	return nil
}
