package gateway

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
)

// A crowd that dialed all at once overflowed the node's queue of connections to accept: its calls failed, and the breaker opened.
func TestACrowdDialsInTurn(t *testing.T) {
	const crowd, atOnceMax = 1000, 16
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		now, most, all := 0, 0, 0
		accept := make(chan struct{})
		dial := inTurn(func(context.Context, string, string) (net.Conn, error) {
			mu.Lock()
			now++
			all++
			most = max(most, now)
			mu.Unlock()
			<-accept
			mu.Lock()
			now--
			mu.Unlock()
			return nil, errRefusedForTest
		}, atOnceMax)
		ctx, leave := context.WithCancel(t.Context())
		var left, dialed sync.WaitGroup
		for range crowd {
			dialed.Go(func() {
				if _, err := dial(t.Context(), "tcp", "node"); !errors.Is(err, errRefusedForTest) {
					t.Errorf("got %v, want what the dialer said", err)
				}
			})
		}
		synctest.Wait()
		left.Go(func() {
			if _, err := dial(ctx, "tcp", "node"); !errors.Is(err, context.Canceled) {
				t.Errorf("who left before its turn got %v", err)
			}
		})
		synctest.Wait()
		leave()
		left.Wait()
		close(accept)
		dialed.Wait()
		if most != atOnceMax || all != crowd {
			t.Errorf("%d were dialed at once and %d in all, want %d and %d", most, all, atOnceMax, crowd)
		}
	})
}

var errRefusedForTest = errors.New("refused")
