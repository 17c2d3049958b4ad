package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// traded is a node with two lanes between which units have moved; the home lane of tea is written second, so that a replay
// lane by lane would meet what was taken before what was sent.
func traded(t *testing.T) (n *testNode, home, other uint32) {
	t.Helper()
	n = newTestNode(t, 2)
	home = eventstore.Topology{Lanes: 2}.LaneOf(eventstore.PartitionOf("tea"))
	other = 1 - home
	for lane := range uint32(2) {
		n.append(t, lane, opened(1))
	}
	id := domain.NewOrderID(testTime, 1, [10]byte{9: 1})
	n.append(t, home, putEvent("tea"), event("shop", "r", domain.StockReceived{SKU: "tea", Units: 10, ReceivedTotal: 10}))
	n.append(t, home,
		event("", "", domain.StockGranted{SKU: "tea", ToLane: home, GrantNumber: 1, Units: 3}),
		event("", "", domain.StockAllotted{SKU: "tea", HomeLane: home, GrantNumber: 1, Units: 3}),
		event("ann", "o", domain.OrderPlaced{OrderID: id, UserID: "ann", Lines: []domain.Line{{SKU: "tea", Units: 1}}}),
	)
	n.append(t, home, event("", "", domain.StockGranted{SKU: "tea", ToLane: other, GrantNumber: 1, Units: 5}))
	n.append(t, other, event("", "", domain.StockAllotted{SKU: "tea", HomeLane: home, GrantNumber: 1, Units: 5}))
	n.append(t, other, event("", "", domain.StockReturned{SKU: "tea", HomeLane: home, ReturnNumber: 1, Units: 4}))
	n.append(t, home, event("", "", domain.StockReclaimed{SKU: "tea", FromLane: other, ReturnNumber: 1, Units: 4}))
	n.append(t, home, event("", "", domain.StockGranted{SKU: "tea", ToLane: other, GrantNumber: 2, Units: 2}))
	return n, home, other
}

func TestAnAuditFollowsEveryUnit(t *testing.T) {
	n, _, _ := traded(t)
	golden(t, "output/audit_stock.table", weir(t, nil, "audit", "stock", "--data", n.dir).want(t, exitOK).stdout)
	golden(t, "output/audit_stock.json", weir(t, nil, "audit", "stock", "--data", n.dir, "-o", "json").want(t, exitOK).stdout)
	found := decode[stockAudit](t, weir(t, nil, "audit", "stock", "--data", n.dir, "-o", "json", "--sku", "tea").want(t, exitOK).stdout)
	want := auditedSKU{SKU: "tea", Events: 9, Received: 10, Central: 4, InTransit: 2, Allotted: 3, Reserved: 1}
	if !found.OK || found.Events != 9 || !slices.Equal(found.SKUs, []auditedSKU{want}) {
		t.Fatalf("got %+v", found)
	}
	wantText(t, weir(t, nil, "audit", "stock", "--data", n.dir, "--sku", "cup").want(t, exitNotFound).stderr, `no event that moves units of "cup"`)
}

func TestAnAuditFindsWhatBreaksTheSums(t *testing.T) {
	order := func(units int64) eventstore.Event {
		id := domain.NewOrderID(testTime, 2, [10]byte{9: 2})
		return event("bob", "o", domain.OrderPlaced{OrderID: id, UserID: "bob", Lines: []domain.Line{{SKU: "tea", Units: units}}})
	}
	for _, c := range []struct {
		name  string
		event func(home, other uint32) (lane uint32, event eventstore.Event)
		want  string
	}{
		{"an oversold order", func(_, other uint32) (uint32, eventstore.Event) { return other, order(2) }, "negative units: allotted -1"},
		{"a grant that is taken twice", func(home, other uint32) (uint32, eventstore.Event) {
			return other, event("", "", domain.StockAllotted{SKU: "tea", HomeLane: home, GrantNumber: 1, Units: 5})
		}, "it takes grant 1, which lane"},
		{"a grant that nobody made", func(home, other uint32) (uint32, eventstore.Event) {
			return other, event("", "", domain.StockAllotted{SKU: "tea", HomeLane: home, GrantNumber: 3, Units: 1})
		}, "it takes grant 3, which lane"},
		{"a grant that is taken with more units than it was sent with", func(home, other uint32) (uint32, eventstore.Event) {
			return other, event("", "", domain.StockAllotted{SKU: "tea", HomeLane: home, GrantNumber: 2, Units: 3})
		}, "number 2 was sent with 2"},
		{"a grant of a lane that there is not", func(_, other uint32) (uint32, eventstore.Event) {
			return other, event("", "", domain.StockAllotted{SKU: "tea", HomeLane: 77, GrantNumber: 9, Units: 3})
		}, "which lane 77 did not make"},
		{"a return that is reclaimed twice", func(home, other uint32) (uint32, eventstore.Event) {
			return home, event("", "", domain.StockReclaimed{SKU: "tea", FromLane: other, ReturnNumber: 1, Units: 4})
		}, "it takes return 1, which lane"},
		{"more granted than there is", func(home, other uint32) (uint32, eventstore.Event) {
			return home, event("", "", domain.StockGranted{SKU: "tea", ToLane: other, GrantNumber: 3, Units: 5})
		}, "negative units: received 10, central -1"},
		{"a grant whose number is skipped", func(home, other uint32) (uint32, eventstore.Event) {
			return home, event("", "", domain.StockGranted{SKU: "tea", ToLane: other, GrantNumber: 4, Units: 1})
		}, "grant 3 is the next"},
		{"units that came in and were not counted", func(home, _ uint32) (uint32, eventstore.Event) {
			return home, event("", "", domain.StockReceived{SKU: "tea", Units: 5, ReceivedTotal: 14})
		}, "it says 14 in all"},
		{"units that came in elsewhere", func(_, other uint32) (uint32, eventstore.Event) {
			return other, event("", "", domain.StockReceived{SKU: "tea", Units: 5, ReceivedTotal: 5})
		}, "the home lane is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, home, other := traded(t)
			lane, planted := c.event(home, other)
			n.append(t, lane, planted)
			cupHome := eventstore.Topology{Lanes: 2}.LaneOf(eventstore.PartitionOf("cup"))
			n.append(t, cupHome, event("shop", "r2", domain.StockReceived{SKU: "cup", Units: 1, ReceivedTotal: 1}))
			r := weir(t, nil, "audit", "stock", "--data", n.dir, "-o", "json").want(t, exitDifference)
			found := decode[stockAudit](t, r.stdout)
			if found.OK || len(found.Violations) != 1 {
				t.Fatalf("got %+v", found)
			}
			v := found.Violations[0]
			if v.SKU != "tea" || v.Lane != lane || v.Type != planted.Type || !strings.Contains(v.What, c.want) {
				t.Fatalf("got %+v, want %q in lane %d", v, c.want, lane)
			}
			wantText(t, weir(t, nil, "audit", "stock", "--data", n.dir).want(t, exitDifference).stdout, "result: VIOLATED", "BROKEN", c.want)
		})
	}
}
