package gateway_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/weirhq/weir/gateway"
	"github.com/weirhq/weir/gateway/policy"
)

func TestWhatANodeSaysOfItsCommitsCountsAndGoesNoFurther(t *testing.T) {
	for name, of := range map[string]struct {
		says     bool
		min, max float64 // that is thought of it
	}{
		"a node that commits in groups": {true, 1, 1},
		"one that says nothing":         {false, 0, 0.1},
	} {
		t.Run(name, func(t *testing.T) {
			node := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if of.says {
					w.Header().Set(gateway.HeaderGroups, "1")
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, "{}")
			}))
			front, client := inFront(t, policy.Policy{}, node.URL), http1Client(t)
			if got := front.Status().Grouped; got != 1 {
				t.Errorf("before anybody has answered, %v of methods are taken to be of nodes that commit in groups, want all", got)
			}
			for range 100 {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, front.URL+"/weir.order.v1.OrderService/GetOrder", strings.NewReader("{}"))
				if err != nil {
					t.Fatal(err)
				}
				request.Header.Set("Content-Type", "application/json")
				response, err := client.Do(request)
				if err != nil {
					t.Fatal(err)
				}
				_ = response.Body.Close()
				if _, leaked := response.Header[gateway.HeaderGroups]; leaked || response.StatusCode != http.StatusOK {
					t.Fatalf("the caller got status %d and headers %v, want 200 and no %s", response.StatusCode, response.Header, gateway.HeaderGroups)
				}
			}
			if got := front.Status().Grouped; got < of.min || got > of.max {
				t.Errorf("after a hundred answers %v of methods are taken to be of nodes that commit in groups, want %v to %v", got, of.min, of.max)
			}
		})
	}
}
