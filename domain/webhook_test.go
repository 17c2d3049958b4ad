package domain_test

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/weirhq/weir/domain"
)

// TestThereAreNeverMoreEndpointsThanTheirLimit puts and deletes endpoints of a few more ids than there may be (I8).
func TestThereAreNeverMoreEndpointsThanTheirLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(1)
		there := map[string]bool{}
		put := func(id string) {
			_, err := w.decide(0, domain.PutWebhookEndpoint{EndpointID: id, URL: "https://erp.example", SealedSecret: []byte("sealed"), By: "clerk"})
			wantLimit := !there[id] && len(there) == domain.EndpointsMax
			if wantLimit != errors.Is(err, domain.ErrEndpointLimit) || !wantLimit && err != nil {
				t.Fatalf("put %s with %d endpoints: got %v, want refused %v", id, len(there), err, wantLimit)
			}
			if err == nil {
				there[id] = true
			}
		}
		for i := range domain.EndpointsMax - rapid.IntRange(0, 3).Draw(t, "room") {
			put(fmt.Sprint("e", i))
		}
		for _, id := range rapid.SliceOfN(rapid.IntRange(0, domain.EndpointsMax+4), 1, 60).Draw(t, "ids") {
			if id%3 != 0 {
				put(fmt.Sprint("e", id))
				continue
			}
			if _, err := w.decide(0, domain.DeleteWebhookEndpoint{EndpointID: fmt.Sprint("e", id), By: "clerk"}); err != nil {
				t.Fatal(err)
			}
			delete(there, fmt.Sprint("e", id))
		}
		if got := len(w.lanes[0].endpoints); got != len(there) || got > domain.EndpointsMax {
			t.Fatalf("there are %d endpoints, want %d and at most %d", got, len(there), domain.EndpointsMax)
		}
	})
}
