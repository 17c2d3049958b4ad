package projections

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
)

// award commits an award or a take-back for an order of the user that was placed for it.
func award(s *shop, user string, points int64) {
	placed := s.place(user, 0)
	s.commit(placed)
	s.commit(
		domain.PointsAwarded{OrderID: placed.OrderID, UserID: user, PaymentID: domain.PaymentID(placed.OrderID, 1), Points: points, PerMajor: 1},
		domain.PointsTakenBack{OrderID: placed.OrderID, UserID: user, RefundID: domain.RefundID(domain.PaymentID(placed.OrderID, 1), 1), Points: points / 3},
	)
}

func TestPointsOfAUserAreTheSumOfTheirEvents(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.step()
	s.step()
	fs := vfs.NewMem()
	n := startNode(t, fs, s.log)
	want := map[string]int64{}
	counts := map[string]int{}
	for i := range 60 {
		user := s.users[s.random.IntN(3)]
		points := 1 + s.random.Int64N(100)
		award(s, user, points)
		want[user] += points - points/3
		counts[user] += 2
		if i == 30 { // Half of them from the store, half from the log.
			n.reach(s)
			n.stop()
			n = startNode(t, fs, s.log)
		}
	}
	n.reach(s)
	for user, balance := range want {
		var entries []PointsEntry
		query := PointsQuery{UserID: user, PageSize: 7}
		for {
			page, _, err := n.views.Points(t.Context(), query, Min{})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if page.Balance != balance {
				t.Fatalf("seed %d: %s has %d points, want %d", seed, user, page.Balance, balance)
			}
			entries = append(entries, page.Entries...)
			if query.PageToken = page.Next; page.Next == "" {
				break
			}
		}
		if len(entries) != counts[user] {
			t.Fatalf("seed %d: the ledger of %s has %d entries, want %d", seed, user, len(entries), counts[user])
		}
		for i, e := range entries {
			if e.Number != uint64(len(entries)-i) || e.Balance != balance {
				t.Fatalf("seed %d: entry %d of %s is %+v, want number %d and balance %d", seed, i, user, e, len(entries)-i, balance)
			}
			balance -= e.Points
		}
		if balance != 0 {
			t.Errorf("seed %d: the ledger of %s does not begin at 0 but at %d", seed, user, balance)
		}
	}
}

func TestPointsPagesOfAnotherUserAreRefused(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	for range 5 {
		award(s, s.users[0], 10)
	}
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	page, _, err := n.views.Points(t.Context(), PointsQuery{UserID: s.users[0], PageSize: 2}, Min{})
	if err != nil || page.Next == "" {
		t.Fatalf("got %+v, %v", page, err)
	}
	for _, query := range []PointsQuery{
		{UserID: s.users[1], PageToken: page.Next}, {UserID: s.users[0], PageToken: "x" + page.Next}, {UserID: s.users[0], PageToken: "x"},
	} {
		if _, _, err := n.views.Points(t.Context(), query, Min{}); !errors.Is(err, ErrBadPageToken) {
			t.Errorf("%+v: got %v, want ErrBadPageToken", query, err)
		}
	}
	nobody, _, err := n.views.Points(t.Context(), PointsQuery{UserID: "nobody"}, Min{})
	if err != nil || nobody.Balance != 0 || len(nobody.Entries) != 0 {
		t.Errorf("a user without points: got %s, %v", fmt.Sprintf("%+v", nobody), err)
	}
}
