package redisview

import (
	"testing"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
)

// BenchmarkLevels reads what Redis has copies of from there, and from the node's own view: what a level between memory and view could
// save at most where the view is in memory, too.
func BenchmarkLevels(b *testing.B) {
	const lanes = 4
	w := newWorld(b, lanes)
	n := startNode(w, startServer(b).addr, nil)
	for range 25 {
		for _, user := range w.users {
			w.place(user)
		}
	}
	n.warm()
	ctx, user, id := b.Context(), w.users[0], w.orders[len(w.orders)-1]
	pool := domain.CampaignPool(w.skus[0], campaignID)
	records := n.mirror.OrderRecords()
	snapshot := n.store.Snapshot(lanes)
	defer snapshot.Close()
	must := func(b *testing.B, found bool, err error) {
		if !found || err != nil {
			b.Fatalf("seed %d: found = %t, %v", w.seed, found, err)
		}
	}
	for name, read := range map[string]func(*testing.B){
		"order/redis": func(b *testing.B) {
			_, _, found, err := records.Get(ctx, id.String(), 0)
			must(b, found, err)
		},
		"order/view": func(b *testing.B) {
			_, err := snapshot.OrderRecord(n.mirror.laneOf(id), id)
			must(b, true, err)
		},
		"recent/redis": func(b *testing.B) {
			_, _, found, err := n.mirror.RecentOrders(ctx, user, 0)
			must(b, found, err)
		},
		"recent/view": func(b *testing.B) {
			_, err := snapshot.RecentOrders(w.laneOf(user), user, RecentOrdersMax)
			must(b, true, err)
		},
		"stock/redis": func(b *testing.B) {
			_, found, err := n.mirror.Stock(ctx, pool)
			must(b, found, err)
		},
		"stock/view": func(b *testing.B) {
			accounts := make([][]byte, lanes)
			for lane := range accounts {
				var err error
				if accounts[lane], err = snapshot.StockAccount(uint32(lane), pool); err != nil {
					b.Fatal(err)
				}
			}
			_, found, err := projections.SumAccounts(pool, accounts)
			must(b, found, err)
		},
		"board/redis": func(b *testing.B) {
			_, found, err := n.mirror.Board(ctx, w.now)
			must(b, found, err)
		},
		"board/view": func(b *testing.B) {
			_, _, err := n.views.Board(ctx, projections.BoardQuery{Now: w.now}, projections.Min{})
			must(b, true, err)
		},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				read(b)
			}
		})
	}
}
