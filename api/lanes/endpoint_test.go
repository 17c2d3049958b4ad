package lanes

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/weirhq/weir/domain"
)

func endpointRequest(requestID string, command domain.Command) Request {
	return Request{UserID: "clerk", RequestID: requestID, Fingerprint: fingerprint(command), Command: command}
}

func putEndpoint(requestID, id string) Request {
	return endpointRequest(requestID, domain.PutWebhookEndpoint{EndpointID: id, URL: "https://erp.example", SealedSecret: []byte("sealed"), By: "clerk"})
}

func deleteEndpoint(requestID, id string) Request {
	return endpointRequest(requestID, domain.DeleteWebhookEndpoint{EndpointID: id, By: "clerk"})
}

// TestPutsAtTheSameTimeMakeNoMoreEndpointsThanThereMayBe: the commits of some are under way while others are decided (I8).
func TestPutsAtTheSameTimeMakeNoMoreEndpointsThanThereMayBe(t *testing.T) {
	n := startNode(t, 1)
	var group sync.WaitGroup
	var mu sync.Mutex
	var there []string
	refused := 0
	for i := range 3 * domain.EndpointsMax {
		group.Go(func() {
			id := fmt.Sprint("e", i)
			_, err := n.Submit(t.Context(), putEndpoint("put-"+id, id))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				there = append(there, id)
			case errors.Is(err, domain.ErrEndpointLimit):
				refused++
			default:
				t.Errorf("put %s: %v", id, err)
			}
		})
	}
	group.Wait()
	if len(there) != domain.EndpointsMax || refused != 2*domain.EndpointsMax {
		t.Fatalf("%d endpoints were put and %d refused, want %d and %d", len(there), refused, domain.EndpointsMax, 2*domain.EndpointsMax)
	}
	one := there[0]
	for _, how := range []string{"running", "restarted"} {
		if how == "restarted" {
			n.restart(t)
		}
		_, err := n.Submit(t.Context(), putEndpoint(how+"-more", "more"))
		var limit *domain.EndpointLimitError
		if !errors.As(err, &limit) || limit.Limit != domain.EndpointsMax {
			t.Fatalf("%s: one more: got %v, want it refused for the limit", how, err)
		}
		n.must(t, putEndpoint(how+"-change", one)) // One that is there may be changed.
		// One less, said twice, makes room for one.
		n.must(t, deleteEndpoint(how+"-delete", one))
		n.must(t, deleteEndpoint(how+"-delete-again", one))
		n.must(t, putEndpoint(how+"-instead", "instead-"+how))
		if _, err := n.Submit(t.Context(), putEndpoint(how+"-back", one)); !errors.Is(err, domain.ErrEndpointLimit) {
			t.Fatalf("%s: the deleted one again: got %v, want it refused for the limit", how, err)
		}
		one = there[slices.Index(there, one)+1]
	}
}
