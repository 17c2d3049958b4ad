package projections

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// A scenario says what a projection makes of events:
//
//	given(t, &pointsProjection, placed).when(awarded).then(map[string]string{
//		"entry 1 of user ann": "+12 makes 12, for …",
//	})
//
// The store is in memory, with one lane.
type scenario struct {
	tb         testing.TB
	projection *Projection
	commits    [][]domain.Event
}

// given is what happened before: each event a commit, and each commit in the store before the next one.
func given(tb testing.TB, projection *Projection, events ...domain.Event) *scenario {
	s := &scenario{tb: tb, projection: projection}
	for _, event := range events {
		s.commits = append(s.commits, []domain.Event{event})
	}
	return s
}

// when adds one commit of events.
func (s *scenario) when(events ...domain.Event) *scenario {
	s.commits = append(s.commits, events)
	return s
}

// scenarioStart is the log time of the first commit; the others follow a second apart.
var scenarioStart = time.Date(2026, 11, 11, 0, 0, 0, 0, time.UTC)

// then compares all of the view with the wanted values by key, both as people write them. It takes the events in twice, in
// one batch and in one for each commit: both have to make the same bytes (I6).
func (s *scenario) then(want map[string]string) {
	s.tb.Helper()
	cut, whole := s.fold(true), s.fold(false)
	if cut != whole {
		s.tb.Errorf("view %s depends on how batches are cut:\nin many\n%s\nin one\n%s", s.projection.Name, cut, whole)
	}
	got := map[string]string{}
	for line := range strings.Lines(whole) {
		_, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		key, value, _ := strings.Cut(text, ": ")
		got[key] = value
	}
	if maps.Equal(got, want) {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(got)) {
		if value, wanted := want[key]; !wanted || value != got[key] {
			s.tb.Errorf("view %s, %s:\ngot  %s\nwant %s", s.projection.Name, key, got[key], value)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		if _, found := got[key]; !found {
			s.tb.Errorf("view %s holds no %s, want %s", s.projection.Name, key, want[key])
		}
	}
}

// refused wants the newest commit to be refused with such a text, and the view to be as it was before.
func (s *scenario) refused(text string) {
	s.tb.Helper()
	before := &scenario{tb: s.tb, projection: s.projection, commits: s.commits[:len(s.commits)-1]}
	store, v := s.open()
	defer s.close(store)
	for i := range before.commits {
		if err := s.take(v, i); err != nil {
			s.tb.Fatal(err)
		}
	}
	if err := s.take(v, len(s.commits)-1); err == nil || !strings.Contains(err.Error(), text) {
		s.tb.Errorf("view %s: got %v, want a refusal that says %q", s.projection.Name, err, text)
	}
	if got, want := s.write(v), before.fold(false); got != want {
		s.tb.Errorf("view %s was changed by an event that it refused:\ngot\n%s\nwant\n%s", s.projection.Name, got, want)
	}
}

// fold takes the commits in, and writes down the view: a line for each key, its bytes and then as people write it.
func (s *scenario) fold(cut bool) string {
	s.tb.Helper()
	store, v := s.open()
	defer s.close(store)
	for i := range s.commits {
		if err := s.take(v, i); err != nil {
			s.tb.Fatalf("view %s: commit %d: %v", s.projection.Name, i+1, err)
		}
		if cut {
			s.flush(v)
		}
	}
	return s.write(v)
}

func (s *scenario) open() (*Store, *view) {
	store, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20})
	if err != nil {
		s.tb.Fatal(err)
	}
	v, err := openView(s.projection, firstGeneration, store.db, store.db.NewBatch(), 0, 1)
	if err != nil {
		s.tb.Fatal(err)
	}
	return store, v
}

func (s *scenario) close(store *Store) {
	if err := store.Close(); err != nil {
		s.tb.Error(err)
	}
}

// take takes in the commit with index i.
func (s *scenario) take(v *view, i int) error {
	users := map[domain.OrderID]string{}
	for _, events := range s.commits[:i+1] {
		for _, event := range events {
			if placed, ok := event.(domain.OrderPlaced); ok {
				users[placed.OrderID] = placed.UserID
			}
		}
	}
	for _, event := range s.commits[i] {
		typeName, version, aggregateID, payload := stored.Encode(event)
		envelope := eventstore.Event{AggregateID: aggregateID, Type: typeName, Version: version, Payload: payload, UserID: "operator"}
		if id, ok := domain.OrderOf(event); ok {
			envelope.UserID = users[id]
		}
		c, err := changeOf(&envelope, uint64(i+1), scenarioStart.Add(time.Duration(i)*time.Second), 0, eventstore.Topology{Lanes: 1})
		if err != nil {
			return err
		}
		if err := v.applier.apply(&c); err != nil {
			return err
		}
	}
	return nil
}

func (s *scenario) flush(v *view) {
	if err := errors.Join(v.finish(), v.batch.Commit(pebble.NoSync)); err != nil {
		s.tb.Fatal(err)
	}
	v.batch.Reset()
}

func (s *scenario) write(v *view) string {
	s.tb.Helper()
	s.flush(v)
	entries, err := v.db.NewIter(&pebble.IterOptions{LowerBound: v.prefix[:], UpperBound: v.prefix.end()})
	if err != nil {
		s.tb.Fatal(err)
	}
	var text strings.Builder
	for valid := entries.First(); valid; valid = entries.Next() {
		suffix := entries.Key()[prefixBytes:]
		value, err := s.projection.print(suffix, entries.Value())
		if err != nil {
			s.tb.Fatalf("view %s, %s: %v", s.projection.Name, s.projection.describe(suffix), err)
		}
		if partition := s.projection.partition(suffix); partition >= eventstore.Partitions {
			s.tb.Errorf("view %s, %s is of partition %d", s.projection.Name, s.projection.describe(suffix), partition)
		}
		fmt.Fprintf(&text, "%x=%x\t%s: %s\n", suffix, entries.Value(), s.projection.describe(suffix), value)
	}
	if err := entries.Close(); err != nil {
		s.tb.Fatal(err)
	}
	return text.String()
}

// someOrder is an order of a user, the number tells it from others.
func someOrder(user string, number byte, lines ...domain.Line) domain.OrderPlaced {
	return domain.OrderPlaced{
		OrderID: domain.NewOrderID(scenarioStart, eventstore.PartitionOf(user), [10]byte{9: number}), UserID: user, Lines: lines,
		Total: domain.Money{Currency: "EUR"}, PayBy: scenarioStart.Add(time.Hour),
	}
}

func TestPointsAreALedgerOfEachUser(t *testing.T) {
	ann, bob := someOrder("ann", 1), someOrder("bob", 1)
	payment := domain.PaymentID(ann.OrderID, 1)
	refund := domain.RefundID(payment, 1)
	given(t, &pointsProjection, ann, bob,
		domain.PointsAwarded{OrderID: ann.OrderID, UserID: "ann", PaymentID: payment, Points: 12, PerMajor: 1},
	).when(
		domain.PointsTakenBack{OrderID: ann.OrderID, UserID: "ann", RefundID: refund, Points: 5},
		domain.PointsAwarded{OrderID: bob.OrderID, UserID: "bob", PaymentID: "p", Points: 3, PerMajor: 1},
		domain.PointsTakenBack{OrderID: ann.OrderID, UserID: "ann", RefundID: "r", Points: 7},
	).then(map[string]string{
		"entry 1 of user ann": fmt.Sprintf("+12 makes 12, for %s of order %s", payment, ann.OrderID),
		"entry 2 of user ann": fmt.Sprintf("-5 makes 7, for %s of order %s", refund, ann.OrderID),
		"entry 3 of user ann": fmt.Sprintf("-7 makes 0, for r of order %s", ann.OrderID),
		"entry 1 of user bob": fmt.Sprintf("+3 makes 3, for p of order %s", bob.OrderID),
	})
}

func TestAPaymentNeedsAttentionUntilItIsSettled(t *testing.T) {
	placed := someOrder("ann", 1)
	id, payment := placed.OrderID, domain.PaymentID(placed.OrderID, 1)
	refund := domain.RefundID(payment, 1)
	amount := domain.Money{Currency: "EUR", Minor: 700}
	unknown := given(t, &attentionProjection, placed).when(domain.PaymentBecameUnknown{OrderID: id, PaymentID: payment})
	unknown.then(map[string]string{"payment or refund " + payment: "its outcome is not known since 2026-11-11T00:00:01Z"})
	unknown.when(domain.PaymentCaptured{OrderID: id, PaymentID: payment}).then(nil)

	failed := given(t, &attentionProjection, placed,
		domain.RefundStarted{OrderID: id, PaymentID: payment, RefundID: refund, Amount: amount},
	).when(domain.RefundFailed{OrderID: id, RefundID: refund})
	failed.then(map[string]string{"payment or refund " + refund: "refund failed since 2026-11-11T00:00:02Z, 700 EUR"})
	again := domain.RefundID(payment, 2)
	failed.when(domain.RefundStarted{OrderID: id, PaymentID: payment, RefundID: again, Amount: amount}).then(map[string]string{
		"payment or refund " + again: "refund under way since 2026-11-11T00:00:03Z, 700 EUR",
	})
}

func TestTheIndexOfAUsersOrdersSaysHowTheyEnded(t *testing.T) {
	first, second, third := someOrder("ann", 1), someOrder("ann", 2), someOrder("bob", 3)
	given(t, &ordersByUserProjection, first, second, domain.ProductPut{SKU: "mug"}).when(
		third, domain.OrderCancelled{OrderID: first.OrderID, UserID: "ann"}, domain.OrderExpired{OrderID: third.OrderID, UserID: "bob"},
	).then(map[string]string{
		fmt.Sprintf("order %s of user ann", first.OrderID):  "cancelled",
		fmt.Sprintf("order %s of user ann", second.OrderID): "has not ended",
		fmt.Sprintf("order %s of user bob", third.OrderID):  "expired",
	})
}

func TestStockMovesAsEventsSay(t *testing.T) {
	placed := someOrder("ann", 1, domain.Line{SKU: "mug", Units: 3}, domain.Line{SKU: "tee", Units: 1})
	released := []domain.Release{{SKU: "mug", Units: 3}, {SKU: "tee", Units: 1}}
	got := given(t, &stockProjection,
		domain.StockReceived{SKU: "mug", Units: 100, ReceivedTotal: 100},
		domain.StockGranted{SKU: "mug", GrantNumber: 1, Units: 40},
		domain.StockAllotted{SKU: "mug", GrantNumber: 1, Units: 40},
	).when(placed)
	got.then(map[string]string{
		"SKU mug": "received 100, central 60, granted 40, allotted 37, reserved 3, taken 40",
		"SKU tee": "allotted -1, reserved 1",
	})
	got.when(domain.OrderExpired{OrderID: placed.OrderID, UserID: "ann", Released: released}).then(map[string]string{
		"SKU mug": "received 100, central 60, granted 40, allotted 40, taken 40",
		"SKU tee": "",
	})
}

func TestWhatAProjectionRefusesLeavesItAsItWas(t *testing.T) {
	given(t, &ordersByUserProjection, someOrder("ann", 1)).when(someOrder("", 2)).refused("a user id has 0 bytes")
	given(t, &stockProjection, domain.StockReceived{SKU: "mug", Units: 1, ReceivedTotal: 1}).when(
		someOrder("ann", 1, domain.Line{SKU: "mug", Units: 1}, domain.Line{Units: 1}),
	).refused("names no SKU")
	given(t, &productsProjection, domain.ProductPut{SKU: "mug"}).when(domain.ProductPut{}).refused("names no SKU")
}

func TestEveryEventThatChangesAViewHasAKey(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 0, 1)
	s.steps(300)
	for _, projection := range Projections {
		store, err := OpenStore("store", StoreOptions{FS: vfs.NewMem(), BlockCacheBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		v, err := openView(projection, firstGeneration, store.db, store.db.NewBatch(), 0, 1)
		if err != nil {
			t.Fatal(err)
		}
		for number := uint64(1); number <= s.last.Number; number++ {
			record, err := s.log.Read(t.Context(), number)
			if err != nil {
				t.Fatal(err)
			}
			commit, err := eventstore.DecodeCommit(record.Data)
			if err != nil {
				t.Fatal(err)
			}
			for i := range commit.Events {
				c, err := changeOf(&commit.Events[i], number, commit.Time, 0, eventstore.Topology{Lanes: 1})
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(v.applier.apply(&c), v.applier.finish()); err != nil {
					t.Fatal(err)
				}
				if !v.batch.Empty() && projection.key(&c) == "" {
					t.Fatalf("seed %d: view %s takes a %s in and has no key for it", seed, projection.Name, c.event.Type)
				}
				if err := v.batch.Commit(pebble.NoSync); err != nil {
					t.Fatal(err)
				}
				v.batch.Reset()
			}
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
