package eventstore

import (
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/eventstore/embedded"
)

func positionAt(number uint64, life string) ReactorPosition {
	return ReactorPosition{
		Position: Position{Number: number, Hash: HashOf([]byte{byte(number)})}, At: time.Unix(int64(number), 5).UTC(), Life: life,
	}
}

func TestAReactorsPositionNeverGoesBack(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	positions, err := OpenReactorPositions(t.Context(), nc, 1)
	if err != nil {
		t.Fatal(err)
	}
	const reactor = "webhook/erp"
	if at, found, err := positions.Load(t.Context(), reactor, 3); err != nil || found {
		t.Fatalf("before it was stored: %v, %t, %v", at, found, err)
	}
	for _, step := range []struct{ store, want ReactorPosition }{
		{positionAt(7, "a"), positionAt(7, "a")},
		{positionAt(9, "a"), positionAt(9, "a")},
		{positionAt(8, "a"), positionAt(9, "a")},
		{positionAt(2, "b"), positionAt(2, "b")},  // A later life begins earlier,
		{positionAt(11, "a"), positionAt(2, "b")}, // and one that is over has nothing more to say.
	} {
		if err := positions.Store(t.Context(), reactor, 3, step.store); err != nil {
			t.Fatal(err)
		}
		if got, found, err := positions.Load(t.Context(), reactor, 3); err != nil || !found || got != step.want {
			t.Errorf("after storing %v: got %v, %t, %v, want %v", step.store, got, found, err, step.want)
		}
	}
	if _, found, err := positions.Load(t.Context(), reactor, 4); err != nil || found {
		t.Errorf("of another lane: found %t, %v", found, err)
	}
}

func TestOfManyWritersTheFurthestPositionStays(t *testing.T) {
	nc := connectTo(t, startServer(t, embedded.Options{Dir: t.TempDir()}))
	positions, err := OpenReactorPositions(t.Context(), nc, 1)
	if err != nil {
		t.Fatal(err)
	}
	var writing sync.WaitGroup
	for i := range uint64(4) {
		writing.Go(func() {
			for number := i; number <= 100; number += 4 {
				if err := positions.Store(t.Context(), "points", 0, positionAt(number, "")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Wait()
	if got, _, err := positions.Load(t.Context(), "points", 0); err != nil || got.Number != 100 {
		t.Errorf("got %v, %v, want 100", got, err)
	}
}
