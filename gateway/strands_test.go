package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/policy"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

// Of two lanes alice has the second and bob the first.
const strandedUser, healthyUser = "alice", "bob"

// A takeover is two nodes of which the second is gone, and with it whoever decided the second lane: what the first gets for that waits until the
// lane is decided again, as at a real node.
type takeover struct {
	*listed
	client orderv1connect.OrderServiceClient
	// moved is closed when somebody decides the lane again.
	moved chan struct{}
	// waiting are the orders at the first node that wait.
	waiting atomic.Int64
}

func newTakeover(t *testing.T, decided policy.Policy) *takeover {
	t.Helper()
	o := &takeover{moved: make(chan struct{})}
	first, second := &node{}, (&node{}).start(t)
	first.place = func(ctx context.Context, request *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
		if request.GetUserId() == strandedUser {
			o.waiting.Add(1)
			defer o.waiting.Add(-1)
			select {
			case <-o.moved:
			case <-ctx.Done():
				return nil, connect.NewError(connect.CodeUnavailable, errors.New("nobody decides the lane"))
			}
		}
		return &orderv1.PlaceOrderResponse{}, nil
	}
	o.listed = listNodes(t, decided, first.start(t), second)
	o.client = orders(t, o.URL, "connect")
	o.says(0, 1, 0)
	o.says(1, 1, 1)
	o.knows(2)
	second.CloseClientConnections()
	second.Close()
	return o
}

// place orders as a user, and returns how that ended.
func (o *takeover) place(ctx context.Context, user, id string) error {
	ctx, info := connect.NewClientContext(ctx)
	info.RequestHeader().Set("Authorization", "Bearer "+tokenOf(user))
	_, err := o.client.PlaceOrder(ctx, &orderv1.PlaceOrderRequest{RequestId: id, UserId: user})
	return err
}

// explained is what a call that may have failed was told.
func explained(t *testing.T, err error) (reason string, after time.Duration) {
	t.Helper()
	if err == nil {
		return "", 0
	}
	_, reason, after = details(t, err)
	return reason, after
}

func TestCallsForALaneThatNobodyDecidesLeaveRoomForAllOthers(t *testing.T) {
	o := newTakeover(t, policy.Policy{})
	ctx, cancel := context.WithTimeout(t.Context(), testTimeMax)
	defer cancel()

	// One after the other, until as many wait as may.
	const mayWait = 64
	var calls sync.WaitGroup
	for i := range mayWait {
		calls.Go(func() {
			if err := o.place(ctx, strandedUser, fmt.Sprint("stranded-", i)); err != nil {
				t.Errorf("order %d for a lane that nobody decides: %v", i, err)
			}
		})
		for deadline := time.Now().Add(testTimeMax); o.waiting.Load() <= int64(i) || o.Status().Stranded <= i; {
			if time.Now().After(deadline) {
				t.Fatalf("%d orders wait at the node, and %d are known to, want %d", o.waiting.Load(), o.Status().Stranded, i+1)
			}
		}
	}
	// Each further one is refused at once.
	for range 100 {
		reason, after := explained(t, o.place(ctx, strandedUser, "one-too-many"))
		if reason != "LANE_UNAVAILABLE" || after <= 0 || after > time.Minute {
			t.Fatalf("an order that is one too many was told %q, come again in %s", reason, after)
		}
	}
	if got := o.waiting.Load(); got != mayWait {
		t.Errorf("%d orders wait at the node, want %d", got, mayWait)
	}
	cutAt := time.Now().Add(fault.Config{}.WithDefaults().AttemptTimeMax)
	for i := 0; i < 300 || time.Now().Before(cutAt); i++ {
		if err := o.place(ctx, healthyUser, fmt.Sprint("healthy-", i)); err != nil {
			t.Fatalf("order %d for a lane that is decided: %v", i, err)
		}
	}
	// The first node takes the lane over, and whoever waited is served.
	o.says(0, 2, 0, 1)
	close(o.moved)
	calls.Wait()
	for i := range 100 {
		if err := o.place(ctx, strandedUser, fmt.Sprint("again-", i)); err != nil {
			t.Fatalf("order %d for the lane that moved: %v", i, err)
		}
	}
	if got := o.Status().Stranded; got != 0 {
		t.Errorf("%d calls count as waiting when none does", got)
	}
}

func TestANodeIsNotBlamedForALaneThatNobodyDecides(t *testing.T) {
	o := newTakeover(t, policy.Policy{})
	ctx, cancel := context.WithTimeout(t.Context(), testTimeMax)
	defer cancel()
	// A breaker opens at far fewer, and all of them end badly.
	var calls sync.WaitGroup
	short, end := context.WithTimeout(ctx, time.Second)
	defer end()
	for i := range 40 {
		calls.Go(func() {
			if err := o.place(short, strandedUser, fmt.Sprint("stranded-", i)); err == nil {
				t.Error("an order for a lane that nobody decides was taken")
			}
		})
	}
	calls.Wait()
	for i := range 50 {
		if err := o.place(ctx, healthyUser, fmt.Sprint("healthy-", i)); err != nil {
			t.Fatalf("order %d for a lane that is decided: %v", i, err)
		}
	}
}
