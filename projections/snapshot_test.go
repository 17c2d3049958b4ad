package projections

import (
	"errors"
	"testing"
)

// TestWhatAnotherVersionWroteIsNotCopied: until it is made again, a view may answer reads with the keys of an older version. Copies of
// them would pass for copies of the new one.
func TestWhatAnotherVersionWroteIsNotCopied(t *testing.T) {
	s, fs := takenIn(t, 100)
	before := CopiedVersions()
	setVersion(t, &ordersByUserProjection, 2, 1)
	if CopiedVersions() == before {
		t.Fatalf("copies are still of the versions %s", before)
	}
	n := startNode(t, fs, s.log)
	b := n.rebuilder(s.log)
	n.reach(s)
	user, sku := s.users[0], s.skus[0]
	list := func() ([]byte, error) {
		snapshot := n.store.Snapshot(1)
		defer snapshot.Close()
		if account, err := snapshot.StockAccount(0, sku); err != nil || len(account) == 0 {
			t.Fatalf("seed %d: the account of %s, whose version is as before: %v, %v", s.seed, sku, account, err)
		}
		return snapshot.RecentOrders(0, user, 10)
	}
	if got, err := list(); !errors.Is(err, ErrNotFound) {
		t.Fatalf("seed %d: got %d bytes, %v, want nothing to copy", s.seed, len(got), err)
	}
	b.run(t)
	if left := b.settle(t); len(left) > 0 {
		t.Fatalf("seed %d: rebuilds are left: %+v", s.seed, left)
	}
	if got, err := list(); err != nil || len(got) == 0 {
		t.Fatalf("seed %d: got %d bytes, %v, want the orders of %s once they are made again", s.seed, len(got), err, user)
	}
}
