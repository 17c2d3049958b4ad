package projections

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
)

// changesOf returns what a watch of the user from the beginning has to send: each order after each commit that changed it.
func (s *shop) changesOf(user string) []string {
	var changes []OrderView
	for _, id := range s.byUser[user] {
		for i, view := range s.orders[id] {
			if next := i + 1; next == len(s.orders[id]) || s.orders[id][next].Revision != view.Revision {
				changes = append(changes, view)
			}
		}
	}
	at := func(view OrderView) watchCursor { return watchCursor{view.Revision.Commit, view.Order.ID} }
	slices.SortFunc(changes, func(a, b OrderView) int { return at(a).compare(at(b)) })
	texts := make([]string, len(changes))
	for i := range changes {
		texts[i] = describeChange(&changes[i])
	}
	return texts
}

func describeChange(view *OrderView) string {
	return fmt.Sprintf("%d %+v", view.Revision.Commit, view.Order)
}

func noted() error { return nil }

func TestAWatchOfAUsersOrdersGoesOnWithoutAGapOrARepeat(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	n := startNode(t, vfs.NewMem(), s.log)
	for range 60 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	user := s.users[0]
	page, _, err := n.views.Orders(t.Context(), OrdersQuery{UserID: user, PageSize: 1}, Min{})
	if err != nil {
		t.Fatal(err)
	}
	shown := len(s.changesOf(user))

	broken := errors.New("the connection broke")
	random := rand.New(rand.NewPCG(s.seed, 1))
	var mu sync.Mutex
	var got []string
	more := make(chan struct{}, 1)
	watched := make(chan error, 1)
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	go func() {
		token := page.Watch
		for {
			err := n.views.WatchUser(ctx, UserWatch{UserID: user, Token: token}, Min{}, noted, func(change UserChange, _ Freshness) error {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, describeChange(&change.OrderView))
				token = change.Token
				select {
				case more <- struct{}{}:
				default:
				}
				if random.IntN(4) == 0 {
					return broken
				}
				return nil
			})
			if !errors.Is(err, broken) {
				watched <- err
				return
			}
		}
	}()
	for range 600 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	want := s.changesOf(user)[shown:]
	if len(want) < 20 {
		t.Fatalf("seed %d: the shop changed orders of %s %d times", s.seed, user, len(want))
	}
	for enough := false; !enough; {
		select {
		case <-more:
		case err := <-watched:
			t.Fatalf("seed %d: the watch ended: %v", s.seed, err)
		}
		mu.Lock()
		enough = len(got) >= len(want)
		mu.Unlock()
	}
	leave()
	if err := <-watched; !errors.Is(err, context.Canceled) {
		t.Fatalf("seed %d: got %v, want the caller's end", s.seed, err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("seed %d: got %d changes, want %d:\n%s\n%s", s.seed, len(got), len(want), got, want)
	}
}

func TestAWatchOfAUsersOrdersThatIsFarBehindMissesNothing(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)
	user := s.users[0]
	order := s.place(user, 0)
	enough := errors.New("enough")
	var got []uint64
	err := n.views.WatchUser(t.Context(), UserWatch{UserID: user}, Min{}, func() error {
		n.runners[0].Offer(s.commit(order))
		return nil
	}, func(change UserChange, _ Freshness) error {
		if len(got) == 0 { // More happens while the first message is on its way than is queued for a watcher.
			for range 2 * userWatchQueueMax {
				n.runners[0].Offer(s.commit(domain.OrderCancelled{OrderID: order.OrderID, UserID: user}))
			}
			n.reach(s)
		}
		if got = append(got, change.Revision.Commit); len(got) == 1+2*userWatchQueueMax {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) {
		t.Fatalf("got %v after %d messages", err, len(got))
	}
	for i := range got {
		if want := uint64(i + 3); got[i] != want {
			t.Fatalf("message %d is of commit %d, want %d", i, got[i], want)
		}
	}
}

func TestAWatchIsNotResumedFromTooFarBackNorWithAnothersToken(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)
	user := s.users[0]
	watch := func(user, token string) error {
		return n.views.WatchUser(t.Context(), UserWatch{UserID: user, Token: token}, Min{}, noted, func(UserChange, Freshness) error { return nil })
	}
	begin := n.views.seal.sealWatch(user, after(2), 0)
	if err := watch(s.users[1], begin); !errors.Is(err, ErrBadPageToken) {
		t.Fatalf("another user's token: got %v, want ErrBadPageToken", err)
	}
	for range userWatchScanMax/100 + 1 {
		var placed []domain.Event
		for range 100 {
			placed = append(placed, s.place(user, 0))
		}
		n.runners[0].Offer(s.commit(placed...))
	}
	n.reach(s)
	if err := watch(user, begin); !errors.Is(err, ErrWatchTooOld) {
		t.Fatalf("got %v, want ErrWatchTooOld", err)
	}
}

func TestAnOrderIsReadAsOfEveryMomentOfItsLife(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	n := startNode(t, vfs.NewMem(), s.log)
	for range 200 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	moments := 0
	for id, history := range s.orders {
		check := func(moment AsOf, past func(OrderView) bool) {
			t.Helper()
			moments++
			var want *OrderView
			for i := range history {
				if past(history[i]) {
					want = &history[i]
				}
			}
			got, _, err := n.views.OrderAsOf(t.Context(), id, "", moment, Min{})
			switch {
			case want == nil && !errors.Is(err, ErrNotFound):
				t.Fatalf("seed %d: order %s as of %+v: got %v, want ErrNotFound", s.seed, id, moment, err)
			case want != nil && (err != nil || describeChange(&got) != describeChange(want)):
				t.Fatalf("seed %d: order %s as of %+v: %v\ngot  %s\nwant %s", s.seed, id, moment, err, describeChange(&got), describeChange(want))
			}
		}
		for _, view := range history {
			for _, commit := range []uint64{view.Revision.Commit - 1, view.Revision.Commit, view.Revision.Commit + 1} {
				if commit > 0 { // 0 is now.
					check(AsOf{Commit: commit}, func(v OrderView) bool { return v.Revision.Commit <= commit })
				}
			}
			for _, beside := range []time.Duration{-time.Millisecond, 0, time.Millisecond} {
				moment := view.Order.UpdatedAt.Add(beside)
				check(AsOf{At: moment}, func(v OrderView) bool { return !v.Order.UpdatedAt.After(moment) })
			}
		}
	}
	if moments < 500 {
		t.Fatalf("seed %d: %d moments were looked at", s.seed, moments)
	}
}

func TestAWatchOfAnOrderGoesOnAfterWhatItsWatcherHasSeen(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	n := startNode(t, vfs.NewMem(), s.log)
	for range 200 {
		n.runners[0].Offer(s.step())
	}
	n.reach(s)
	looked := 0
	for id, history := range s.orders {
		for i, seen := range history {
			var want []string
			for j := i + 1; j < len(history); j++ {
				if history[j].Revision != seen.Revision && (j+1 == len(history) || history[j+1].Revision != history[j].Revision) {
					want = append(want, describeChange(&history[j]))
				}
			}
			if len(want) == 0 {
				continue
			}
			looked++
			var got []string
			enough := errors.New("enough")
			err := n.views.WatchOrder(t.Context(), OrderWatch{OrderID: id, After: seen.Revision.Commit}, Min{}, func(view OrderView, _ Freshness) error {
				if got = append(got, describeChange(&view)); len(got) == len(want) {
					return enough
				}
				return nil
			})
			if !errors.Is(err, enough) || !slices.Equal(got, want) {
				t.Fatalf("seed %d: order %s after commit %d: %v\ngot  %s\nwant %s", s.seed, id, seen.Revision.Commit, err, got, want)
			}
		}
	}
	if looked < 20 {
		t.Fatalf("seed %d: %d watches", s.seed, looked)
	}
}
