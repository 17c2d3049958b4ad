package projections

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// ofCampaign is an order of units of a campaign.
func ofCampaign(user string, number byte, sku, campaignID string, units int64) domain.OrderPlaced {
	placed := someOrder(user, number, domain.Line{SKU: sku, Units: units})
	placed.Pool = domain.CampaignPool(sku, campaignID)
	return placed
}

func TestTheBoardCountsOrdersBuyersAndTheirPace(t *testing.T) {
	first, second := ofCampaign("ann", 1, "tea", "flash", 2), ofCampaign("ann", 2, "tea", "flash", 1)
	third, other := ofCampaign("bob", 3, "tea", "flash", 3), ofCampaign("bob", 4, "cup", "flash", 1)
	back := func(placed domain.OrderPlaced) []domain.Release {
		return []domain.Release{{SKU: placed.Pool, Units: placed.Lines[0].Units}}
	}
	coupon := []domain.Release{{SKU: domain.CouponPool("TEN"), Units: 1}}
	placed := given(t, &boardProjection, first, second).when(third, other, someOrder("cem", 5, domain.Line{SKU: "tea", Units: 1}))
	placed.then(map[string]string{
		"pool tea@flash":              "3 orders of 6 units, 0 given up, 2 buyers, the newest at 2026-11-11T00:00:02Z, 6 from 00:00:00",
		"pool cup@flash":              "1 orders of 1 units, 0 given up, 1 buyers, the newest at 2026-11-11T00:00:02Z, 1 from 00:00:00",
		"buyer ann of pool tea@flash": "2 orders", "buyer bob of pool tea@flash": "1 orders", "buyer bob of pool cup@flash": "1 orders",
	})
	placed.when(
		domain.OrderExpired{OrderID: first.OrderID, UserID: "ann", Released: append(back(first), coupon...)},
		domain.OrderCancelled{OrderID: third.OrderID, UserID: "bob", Unsold: back(third)},
		domain.OrderCancelled{OrderID: other.OrderID, UserID: "bob", Released: append(coupon, back(other)...)},
	).when(domain.PoolDrained{Pool: "cup@flash", Units: 9}, domain.PoolFilled{Pool: "tea@flash", Units: 9}).then(map[string]string{
		"pool tea@flash":              "3 orders of 6 units, 2 given up, 1 buyers, the newest at 2026-11-11T00:00:02Z, 6 from 00:00:00",
		"pool cup@flash":              "1 orders of 1 units, 1 given up, 0 buyers, the newest at 2026-11-11T00:00:04Z, 1 from 00:00:00",
		"buyer ann of pool tea@flash": "1 orders",
	})
	given(t, &boardProjection, first).when(ofCampaign("ann", 2, "", "flash", 1)).refused("names no SKU")
	given(t, &boardProjection, first).when(domain.OrderExpired{OrderID: third.OrderID, UserID: "bob", Released: back(third)}).refused("has no order")
}

func TestATallyIsTheSameInWhicheverOrderItsOrdersCome(t *testing.T) {
	at := scenarioStart
	var forth, back Tally
	for i := range 40 {
		forth.ordered(at.Add(time.Duration(i)*3*time.Second), int64(i))
		back.ordered(at.Add(time.Duration(39-i)*3*time.Second), int64(39-i))
	}
	if !reflect.DeepEqual(forth, back) {
		t.Fatalf("got %+v, want %+v", back, forth)
	}
	// The newest order is at 117 s, in the span from 110 s on: the minute is from 60 s on, orders 20 to 39.
	if got, want := forth.UnitsPerMinute(at.Add(119*time.Second)), int64(20*(20+39)/2); got != want {
		t.Errorf("got %d units a minute, want %d", got, want)
	}
	if got, want := forth.UnitsPerMinute(at), forth.UnitsPerMinute(at.Add(119*time.Second)); got != want {
		t.Errorf("before the log's time: got %d units a minute, want those of its newest minute, %d", got, want)
	}
	if got := forth.UnitsPerMinute(at.Add(3 * time.Minute)); got != 0 {
		t.Errorf("a minute without an order: got %d units, want none", got)
	}
	if got, err := readTally(forth.append(nil)); err != nil || !reflect.DeepEqual(got, forth) {
		t.Errorf("read %+v, %v, want %+v", got, err, forth)
	}
}

// tally is what a model says of a pool: orders, given up, units, buyers, first and newest order.
func (s *shop) tally(pool string, into *Tally) {
	buyers := map[string]bool{}
	for _, history := range s.orders {
		if history[0].Order.Pool != pool {
			continue
		}
		newest := &history[len(history)-1].Order
		var units int64
		for i := range newest.Lines {
			units += newest.Lines[i].Units
		}
		into.ordered(newest.PlacedAt, units)
		if newest.Ending == domain.EndingNone {
			buyers[newest.UserID] = true
		} else {
			into.GivenUp++
		}
	}
	into.Buyers += int64(len(buyers))
}

func TestTheBoardIsThatOfTheModelOverAllLanes(t *testing.T) {
	seed := seedOf(t)
	shops := []*shop{newShop(t, seed, 0, 2), newShop(t, seed+1, 1, 2)}
	fs := vfs.NewMem()
	n := startNode(t, fs, shops[0].log, shops[1].log)
	for _, s := range shops {
		for i := range 600 {
			s.step()
			if s.random.IntN(10) == 0 {
				s.now = s.now.Add(time.Duration(s.random.IntN(20)) * time.Second)
			}
			if i == 300 { // Half of them from the store, half from the log.
				n.reach(s)
				n.stop()
				n = startNode(t, fs, shops[0].log, shops[1].log)
			}
		}
		n.reach(s)
	}
	n.reach(shops[0])
	now := shops[0].now.Add(5 * time.Second)
	want := map[string]Tally{}
	for _, s := range shops {
		for pool := range s.campaigns {
			var tally Tally
			s.tally(pool, &tally)
			want[pool] = tally
		}
	}
	page, _, err := n.views.Board(t.Context(), BoardQuery{Now: now}, Min{})
	if err != nil || len(page.Rows) != len(want) || len(want) == 0 {
		t.Fatalf("seed %d: got %d campaigns, %v, want %d, and some", seed, len(page.Rows), err, len(want))
	}
	ordered := false
	for _, row := range page.Rows {
		tally := want[row.Campaign.Pool]
		ordered = ordered || tally.Orders > 0 && tally.GivenUp > 0
		// Draining a pool leaves fewer free, too, and models of orders do not know of it.
		tally.took(row.Newest)
		if !reflect.DeepEqual(row.Tally, tally) || row.Rate != tally.UnitsPerMinute(now) {
			t.Errorf("seed %d: %s: got %+v, want %+v", seed, row.Campaign.Pool, row.Tally, tally)
		}
		campaign, _, err := n.views.Campaign(t.Context(), row.Campaign.ID(), row.Campaign.SKU(), Min{})
		if err != nil || !reflect.DeepEqual(row.CampaignView, campaign) {
			t.Errorf("seed %d: the board says %+v, the campaign is %+v (%v)", seed, row.CampaignView, campaign, err)
		}
	}
	if !ordered {
		t.Fatalf("seed %d: no campaign had orders, and some of them given up", seed)
	}
	// Page by page, and one campaign alone, it is the same.
	for _, query := range []BoardQuery{{Now: now, PageSize: 1}, {Now: now, PageSize: 1, CampaignID: "flash"}} {
		var rows []BoardRow
		for {
			some, _, err := n.views.Board(t.Context(), query, Min{})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			rows = append(rows, some.Rows...)
			if query.PageToken = some.Next; some.Next == "" {
				break
			}
		}
		all := slices.DeleteFunc(slices.Clone(page.Rows), func(r BoardRow) bool { return query.CampaignID != "" && r.Campaign.ID() != query.CampaignID })
		if !reflect.DeepEqual(rows, all) {
			t.Errorf("seed %d: %+v: got %d rows, want %d", seed, query, len(rows), len(all))
		}
	}
	if none, _, err := n.views.Board(t.Context(), BoardQuery{Now: now, CampaignID: "fla"}, Min{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("seed %d: what a campaign's id begins with: got %d rows, %v, want %v", seed, len(none.Rows), err, ErrNotFound)
	}
	list, _, err := n.views.Campaigns(t.Context(), KeysQuery{PageSize: 1}, Min{})
	if err != nil || list.Next == "" {
		t.Fatalf("seed %d: got no second page of campaigns, %v", seed, err)
	}
	if _, _, err := n.views.Board(t.Context(), BoardQuery{PageToken: list.Next}, Min{}); !errors.Is(err, ErrBadPageToken) {
		t.Errorf("seed %d: a token of the list of campaigns: got %v, want ErrBadPageToken", seed, err)
	}
}

func TestACampaignIsSoldOutSinceItsNewestOrder(t *testing.T) {
	at := scenarioStart.Add(time.Minute)
	var tally Tally
	tally.ordered(at, 3)
	campaign := CampaignView{Campaign: domain.Campaign{Pool: "tea@flash", Units: 3}, Stock: StockView{SKU: "tea@flash", Received: 3, Reserved: 3}}
	if got := NewBoardRow(campaign, tally, at).SoldOutAt; !got.Equal(at) {
		t.Errorf("sold out since %v, want %v", got, at)
	}
	campaign.Stock.Reserved, campaign.Stock.Available = 2, 1
	if got := NewBoardRow(campaign, tally, at).SoldOutAt; !got.IsZero() {
		t.Errorf("one remains: sold out since %v, want not", got)
	}
	if got := fmt.Sprint(NewBoardRow(CampaignView{}, Tally{}, at).SoldOutAt.IsZero()); got != "true" {
		t.Error("a campaign without units or orders has a time at which it was sold out")
	}
}

// While orders come, views are a little behind all the time: a campaign that there is not was said to be in a view that is behind.
func TestACampaignThatThereIsNotIsMissingFromTheBoardWhileOrdersCome(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.steps(5)
	held := s.last.Number
	n := openNode(t, vfs.NewMem(), &brokenLog{Log: s.log, next: func(cursor eventstore.Cursor, ctx context.Context) (eventstore.Record, error) {
		record, err := cursor.Next(ctx)
		if err == nil && record.Number > held {
			<-ctx.Done()
			return eventstore.Record{}, ctx.Err()
		}
		return record, err
	}})
	running, cancel := context.WithCancel(t.Context())
	var runs sync.WaitGroup
	runs.Go(func() {
		if err := n.runners[0].Run(running); err != nil {
			t.Error(err)
		}
	})
	if _, err := n.runners[0].await(t.Context(), held, patience); err != nil {
		t.Fatal(err)
	}
	s.steps(2)
	n.runners[0].Offer(s.commit(s.place(s.users[0], 0))) // It is known of, and what comes before it is not read.
	_, fresh, err := n.views.Board(t.Context(), BoardQuery{Now: s.now, CampaignID: "none"}, Min{})
	if !errors.Is(err, ErrNotFound) || fresh.State != StateCatchingUp {
		t.Errorf("got %v, %v, want %v of a view that is catching up", fresh, err, ErrNotFound)
	}
	cancel()
	runs.Wait()
	if err := n.store.Close(); err != nil {
		t.Fatal(err)
	}
}
