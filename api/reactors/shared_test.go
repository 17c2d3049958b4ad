package reactors

import (
	"context"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/eventstore"
)

// A memory has the positions that nodes share.
type memory struct {
	mu  sync.Mutex
	all map[string]eventstore.ReactorPosition
}

// Load implements SharedPositions.
func (m *memory) Load(_ context.Context, reactor string, lane uint32) (eventstore.ReactorPosition, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at, found := m.all[string(positionKey(reactor, lane))]
	return at, found, nil
}

// Store implements SharedPositions.
func (m *memory) Store(_ context.Context, reactor string, lane uint32, at eventstore.ReactorPosition) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := string(positionKey(reactor, lane))
	if known, found := m.all[key]; !found || known.Life < at.Life || known.Life == at.Life && known.Number < at.Number {
		m.all[key] = at
	}
	return nil
}

func TestReactorsGoOnWhereTheOwnerBeforeWas(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 2)
	shared := &memory{all: map[string]eventstore.ReactorPosition{}}
	one, batch, keyed, everywhere := newDiary("one"), newDiary("batch"), newDiary("by-key"), newDiary("everywhere")
	registrations := append(threeWays(one, batch, keyed), Registration{Reactor: everywhere, Start: FromBeginning, Everywhere: true})
	var nodes []*node
	for range 2 {
		nodes = append(nodes, startNode(t, vfs.NewMem(), s, Options{Reactors: registrations, Shared: shared}))
	}
	nodes[1].runner.Own(1, true) // It keeps that lane; the other moves.
	for round := range 30 {
		owner := nodes[round%2]
		owner.runner.Own(0, true)
		for range 10 {
			for lane := range uint32(2) {
				commit, at := s.step(lane)
				for _, n := range nodes {
					n.runner.Offer(lane, commit, at)
				}
			}
		}
		if round%3 > 0 { // Else it moves in the middle of its work.
			owner.reach(s)
		}
		owner.runner.Own(0, false)
	}
	nodes[0].runner.Own(0, true)
	for _, n := range nodes {
		n.reach(s)
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range s.lanes {
		for _, d := range []*diary{one, batch, keyed} {
			if got := len(d.firsts(l.lane)); got != len(l.events) {
				t.Errorf("seed %d: %s reacted to %d events of lane %d, want %d (R1)", seed, d.name, got, l.lane, len(l.events))
			}
		}
		if got := len(everywhere.effects[l.lane]); got != 2*len(l.events) {
			t.Errorf("seed %d: the reactor that runs everywhere reacted %d times on lane %d, want %d: once on each node", seed, got, l.lane, 2*len(l.events))
		}
	}
	// Lane 1 never moved: nothing of it was repeated.
	if got := len(one.effects[1]); got != len(s.lanes[1].events) {
		t.Errorf("seed %d: %d effects on a lane that never moved, want %d", seed, got, len(s.lanes[1].events))
	}
}

func TestAReactorThatIsNewHereGoesOnFromWhatIsShared(t *testing.T) {
	seed := seedOf(t)
	s := newShop(t, seed, 1)
	for range 20 {
		s.step(0)
	}
	shared := &memory{all: map[string]eventstore.ReactorPosition{}}
	first := newDiary("one")
	n := startNode(t, vfs.NewMem(), s, Options{Reactors: []Registration{{Reactor: first, Start: FromBeginning, Life: "1"}}, Shared: shared})
	n.runner.Own(0, true)
	n.reach(s)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	known := len(s.lanes[0].events)
	for range 20 {
		s.step(0)
	}
	for _, of := range []struct {
		life string
		want int
	}{{"1", len(s.lanes[0].events) - known}, {"2", len(s.lanes[0].events)}} {
		second := newDiary("one")
		n = startNode(t, vfs.NewMem(), s, Options{Reactors: []Registration{{Reactor: second, Start: FromBeginning, Life: of.life}}, Shared: shared})
		n.runner.Own(0, true)
		n.reach(s)
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		if got := len(second.effects[0]); got != of.want {
			t.Errorf("seed %d: in life %s it reacted to %d events, want %d", seed, of.life, got, of.want)
		}
	}
}

func TestASharedPositionOfAnotherLogDoesNotCount(t *testing.T) {
	s := newShop(t, seedOf(t), 1)
	for range 5 {
		s.step(0)
	}
	for _, at := range []eventstore.Position{{Number: 3, Hash: eventstore.HashOf([]byte("other"))}, {Number: 99}} {
		shared := &memory{all: map[string]eventstore.ReactorPosition{string(positionKey("one", 0)): {Position: at}}}
		d := newDiary("one")
		n := startNode(t, vfs.NewMem(), s, Options{Reactors: []Registration{{Reactor: d, Start: FromBeginning}}, Shared: shared})
		n.runner.Own(0, true)
		n.reach(s)
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
		if got, want := len(d.effects[0]), len(s.lanes[0].events); got != want {
			t.Errorf("after commit %d of another log it reacted to %d events, want all %d", at.Number, got, want)
		}
	}
}
