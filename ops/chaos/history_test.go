package main

import (
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A history that cannot have happened one call after the other is seen; one that can is not, whatever is unknown in it.
func TestAHistoryThatCannotBeIsSeen(t *testing.T) {
	const never = math.MaxInt64
	taken := func(units, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: stockCall{units}, Output: stockAnswer{known: to != never}, Call: from, Return: to}
	}
	lost := func(units, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: stockCall{units}, Output: stockAnswer{}, Call: from, Return: to}
	}
	refused := func(units, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: stockCall{units}, Output: stockAnswer{known: true, refused: true}, Call: from, Return: to}
	}
	order := func(kind string, cancelled bool, commit uint64, from, to int64) porcupine.Operation {
		return porcupine.Operation{Input: orderCall{kind}, Output: orderState{known: to != never, cancelled: cancelled, commit: commit}, Call: from, Return: to}
	}
	for _, c := range []struct {
		name  string
		calls []porcupine.Operation
		well  bool
	}{
		{"what came in is sold", []porcupine.Operation{taken(-2, 1, 2), taken(2, 3, 4), refused(1, 5, 6)}, true},
		{"a unit is sold twice", []porcupine.Operation{taken(-1, 1, 2), taken(1, 3, 4), taken(1, 3, 5)}, false},
		{"a buyer is refused what is there", []porcupine.Operation{taken(-1, 1, 2), refused(1, 3, 4)}, false},
		{"an order without an answer took the unit", []porcupine.Operation{taken(-1, 1, 2), taken(1, 3, never), refused(1, 7, 8)}, true},
		{"an order without an answer took nothing", []porcupine.Operation{taken(-1, 1, 2), taken(1, 3, never), taken(1, 7, 8)}, true},
		{"an order without an answer took a unit before it was asked for", []porcupine.Operation{taken(-1, 1, 2), refused(1, 3, 4), taken(1, 5, never)}, false},
		{"a try without an answer took the unit in time", []porcupine.Operation{taken(-1, 1, 2), lost(1, 3, 9), refused(1, 4, 5), refused(1, 7, 8)}, true},
		{"a try without an answer took nothing in time", []porcupine.Operation{taken(-1, 1, 2), lost(1, 3, 9), taken(1, 7, 12)}, true},
		{"a try without an answer is no excuse after its time", []porcupine.Operation{lost(1, 1, 4), taken(-1, 5, 6), refused(1, 7, 8)}, false},
		{"a read sees a cancellation", []porcupine.Operation{order("place", false, 4, 1, 2), order("cancel", true, 5, 3, 6), order("read", true, 5, 4, 5)}, true},
		{"a read does not see what was acknowledged", []porcupine.Operation{order("place", false, 4, 1, 2), order("cancel", true, 5, 3, 4), order("read", false, 4, 5, 6)}, false},
		{"a cancellation is undone", []porcupine.Operation{order("place", false, 4, 1, 2), order("cancel", true, 5, 3, never), order("read", true, 5, 4, 5), order("read", false, 4, 6, 7)}, false},
		{"an order is cancelled twice", []porcupine.Operation{order("place", false, 4, 1, 2), order("cancel", true, 5, 3, 4), order("cancel", true, 6, 5, 6)}, false},
		{"a cancellation without an answer is seen at a commit", []porcupine.Operation{order("place", false, 4, 1, 2), order("cancel", false, 0, 3, never), order("read", true, 9, 4, 5), order("read", true, 9, 6, 7)}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &history{of: map[string][]porcupine.Operation{"it": c.calls}}
			checked, wrong := h.check()
			if checked != len(c.calls) || (len(wrong) == 0) != c.well {
				t.Fatalf("checked %d calls of %d and found %v", checked, len(c.calls), wrong)
			}
			if !c.well && !strings.Contains(wrong[0].Error(), "not linearizable") {
				t.Fatalf("it says %v", wrong)
			}
		})
	}
}

// aNode is one that answers every call the same.
type aNode struct {
	node
	url string
}

func (n *aNode) URL() string { return n.url }

func (n *aNode) Tokens() (trusted, operator string) { return "trusted", "operator" }

// A read may be older than it was to be, and says so: it is no witness of anything.
func TestAReadThatSaysItIsOldIsInNoHistory(t *testing.T) {
	const id = "01M8P4TFVV86GQZ7D85Z7JN8ZNW"
	answer := &orderv1.GetOrderResponse{Order: &orderv1.Order{OrderId: id, Revision: &typev1.Revision{Commit: 972}}, Freshness: &typev1.Freshness{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		body, err := proto.Marshal(answer)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(body)
	}))
	defer server.Close()
	h := &history{of: map[string][]porcupine.Operation{}, newest: map[string]*typev1.Revision{}}
	h.know(id, &typev1.Revision{Commit: 991})
	w := &witness{chaos: &chaos{node: &aNode{url: server.URL}, http: server.Client(), failures: json.NewEncoder(io.Discard)}, history: h, random: rand.New(rand.NewPCG(1, 1)), began: time.Now()}
	for state, reads := range map[typev1.Freshness_State]int{typev1.Freshness_STATE_CATCHING_UP: 0, typev1.Freshness_STATE_REBUILDING: 0, typev1.Freshness_STATE_FRESH: 1} {
		answer.Freshness.State = state
		clear(h.of)
		w.look(t.Context())
		if got := len(h.of[id]); got != reads {
			t.Errorf("of a read that is %v there are %d in the history, want %d", state, got, reads)
		}
	}
}
