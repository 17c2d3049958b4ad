package gateway

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/weirhq/weir/gateway/fault"
	"github.com/weirhq/weir/gateway/plan"
	"github.com/weirhq/weir/gateway/policy"
	"github.com/weirhq/weir/gateway/registry"
	"github.com/weirhq/weir/gateway/room"
	clusterv1 "github.com/weirhq/weir/proto/weir/cluster/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
)

func TestARoomLetsInWhatLanesWereMeasuredToDo(t *testing.T) {
	node := func(suspect bool, perSecond ...uint32) registry.Node {
		member := &clusterv1.Member{}
		for lane, each := range perSecond {
			member.Lanes = append(member.Lanes, &clusterv1.OwnedLane{Lane: uint32(lane), DecidedPerSecond: each})
		}
		return registry.Node{Member: member, Suspect: suspect}
	}
	for name, c := range map[string]struct {
		nodes []registry.Node
		want  float64
	}{
		"nobody is there":                 {nil, 0},
		"nothing was measured yet":        {[]registry.Node{node(false, 0, 0), node(false)}, 0},
		"all lanes":                       {[]registry.Node{node(false, 1000, 2000), node(false, 3000)}, 6000},
		"a lane that had nothing to do":   {[]registry.Node{node(false, 1000, 0), node(false, 3000)}, 6000},
		"a node that was not heard of":    {[]registry.Node{node(false, 1000), node(true, 9000)}, 1000},
		"none but nodes not heard of now": {[]registry.Node{node(true, 9000)}, 0},
	} {
		if got := lanesRate(c.nodes); got != c.want {
			t.Errorf("%s: %v a second, want %v", name, got, c.want)
		}
	}
}

// aKeeper says that calls are kept for later.
type aKeeper struct{ Keeper }

func TestPlansSwitchWhatAGatewayHas(t *testing.T) {
	const place = orderv1connect.OrderServicePlaceOrderProcedure
	var unset fault.Mode
	upstream, err := url.Parse("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	bare, err := New(Options{Upstreams: []*url.URL{upstream}})
	if err != nil {
		t.Fatal(err)
	}
	full, err := New(Options{
		Upstreams: []*url.URL{upstream}, Failback: aKeeper{}, RoomKeys: []room.Key{{Secret: bytes.Repeat([]byte("k"), 32)}},
		Subject: func(http.Header) string { return "ann" }, User: func(string) (string, bool) { return "ann", true },
		Policy: policy.Policy{Room: room.Config{Campaigns: []room.Campaign{{CampaignID: "flash", ClosesAt: time.Now().Add(time.Hour)}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, place, http.NoBody)
	waits := func() bool {
		_, err := full.checkPass()(request, "ann", &orderv1.PlaceOrderRequest{CampaignId: "flash"})
		return err != nil
	}
	for _, c := range []struct {
		name, plan string
		waits      bool
		mode       fault.Mode
		lacking    []string // of the gateway that has everything
		bare       []string
	}{
		{"none", "", true, unset, nil, nil},
		{"the room is open", "waiting_rooms: {flash: false, other: false}", false, unset, nil, nil},
		{
			"a room for another one", "waiting_rooms: {flash: true, other: true}", true, unset,
			[]string{"waiting_rooms: other"},
			[]string{"waiting_rooms: flash", "waiting_rooms: other"},
		},
		{"orders are kept", "faults: {weir.order.v1.OrderService/PlaceOrder: failback}", true, fault.Failback, nil, []string{"keeps no calls for later"}},
		{
			"reads are kept", "faults: {weir.order.v1.OrderService/GetOrder: failback}", true, unset,
			[]string{"no request_id"},
			[]string{"keeps no calls for later"},
		},
	} {
		set := plan.NewSet(0, nil, Procedures())
		if c.plan != "" {
			parsed, err := plan.Parse([]byte("name: p\n" + c.plan))
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			set = plan.NewSet(1, []plan.Applied{{Plan: parsed, Revision: 1, At: time.Now(), Until: time.Now().Add(time.Hour)}}, Procedures())
		}
		for _, of := range []struct {
			g    *Gateway
			want []string
		}{{full, c.lacking}, {bare, c.bare}} {
			if err := of.g.applyPlans(set); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			lacking := of.g.rules.Load().planned.lacking
			if len(lacking) != len(of.want) {
				t.Errorf("%s: lacking are %q, want %q", c.name, lacking, of.want)
				continue
			}
			for i, want := range of.want {
				if !strings.Contains(lacking[i], want) {
					t.Errorf("%s: lacking are %q, want %q", c.name, lacking, of.want)
				}
			}
		}
		if got := waits(); got != c.waits {
			t.Errorf("%s: an order without a pass is refused: %t, want %t", c.name, got, c.waits)
		}
		if got := full.rules.Load().methods[full.methods[place]].Fault.Mode; got != c.mode {
			t.Errorf("%s: the mode of PlaceOrder is %v, want %v", c.name, got, c.mode)
		}
	}
}
