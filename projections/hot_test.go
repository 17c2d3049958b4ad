package projections

import (
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
)

func TestAnOrderThatIsReadAllTheTimeIsNeverOlderThanTheView(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	n := startNode(t, vfs.NewMem(), s.log)
	n.reach(s)

	const rounds, readers = 200, 4
	type cancelled struct {
		id     domain.OrderID
		commit uint64
	}
	done := make(chan struct{})
	newest := make(chan cancelled, rounds) // orders to look at hard, from before they are cancelled on
	var reading sync.WaitGroup
	for range readers {
		reading.Go(func() {
			for c := range newest {
				for last := uint64(0); last < c.commit; {
					before := n.runners[0].Position().Number
					view, _, err := n.views.Order(t.Context(), c.id, Min{})
					if err != nil {
						t.Errorf("seed %d: order %s: %v", s.seed, c.id, err)
						return
					}
					if before >= c.commit && view.Revision.Commit < c.commit {
						t.Errorf("seed %d: the view is at commit %d, order %s as of %d, want %d (I6)", s.seed, before, c.id, view.Revision.Commit, c.commit)
						return
					}
					if view.Revision.Commit < last {
						t.Errorf("seed %d: order %s went back from commit %d to %d", s.seed, c.id, last, view.Revision.Commit)
						return
					}
					last = view.Revision.Commit
				}
			}
		})
	}
	go func() {
		defer close(done)
		reading.Wait()
	}()
	for range rounds {
		placed := s.place(s.users[0], 0)
		n.runners[0].Offer(s.commit(placed))
		n.reach(s)
		select {
		case newest <- cancelled{placed.OrderID, s.last.Number + 1}:
		case <-done: // They have failed.
		}
		n.runners[0].Offer(s.commit(domain.OrderCancelled{OrderID: placed.OrderID, UserID: s.users[0]}))
	}
	close(newest)
	<-done
	n.check(s)
	n.check(s) // Once more, all of it hot.
}

func TestAnOrderReadBeforeItChangedIsNotKeptAfterwards(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	placed := s.place(s.users[0], 0)
	s.commit(placed)
	id := placed.OrderID
	h := newHotOrders(1)
	before := h.generation.Load()
	old := s.orders[id][0]

	h.drop([]domain.OrderID{id})
	h.put(id, old, before)
	if view, ok := h.get(id); ok {
		t.Fatalf("seed %d: got %+v, which was read before the order changed", s.seed, view)
	}
	h.put(id, old, h.generation.Load())
	if _, ok := h.get(id); !ok {
		t.Fatalf("seed %d: the order that was read after it changed is not kept", s.seed)
	}
	h.drop([]domain.OrderID{id})
	if view, ok := h.get(id); ok {
		t.Fatalf("seed %d: got %+v, which changed again", s.seed, view)
	}
}

func TestHotOrdersTakeABoundedAmountOfMemory(t *testing.T) {
	s := newShop(t, seedOf(t), 0, 1)
	s.step()
	s.step()
	const lanes = 1024 // Each lane's share is 64 KiB.
	h := newHotOrders(lanes)
	for range 1000 {
		placed := s.place(s.users[0], 0)
		h.put(placed.OrderID, OrderView{Order: domain.Order{}.Evolve(placed, s.now)}, 0)
	}
	h.orders.CleanUp()
	if weight := h.orders.WeightedSize(); weight == 0 || weight > hotOrdersBytesMax/lanes {
		t.Fatalf("seed %d: they take %d bytes, want 1 to %d (I8)", s.seed, weight, hotOrdersBytesMax/lanes)
	}
}
