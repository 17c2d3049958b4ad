package projections

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// A view exists in generations, which are ranges of keys side by side. One of them answers reads. A rebuild makes another
// one of the log, and swapping them is one write: of the projection's pointers.
//
//	pointers   KeySpaceViews, spacePointers, space of the view → 2 bytes for each lane: the generation that answers reads,
//	           and the one that did before and is kept (0 when there is none)
//
// A generation is a byte from 1 on, and after 255 comes 1 again. At most three of them exist in a lane (one that answers, one
// that is kept, one that is being built), so a free one is always found (I8).

// pointer says which generations of a view a lane has.
type pointer struct {
	// live answers reads. kept answered them before; it is fed as live is, so that going back is a swap; 0 when there is none.
	live, kept byte
}

// generationsMax is how many generations a byte tells apart; 0 is none.
const generationsMax = 255

// generations are the pointers of all views. Reading them takes an atomic load.
type generations struct {
	mu sync.Mutex // held by who writes
	// taken are the generations that had keys since the store was opened, by space. What removes these stays in the store for a while, and
	// keeps the tables of a generation that is made in their place from the lowest level: they are compacted again and again.
	taken [256][generationsMax + 1]bool
	// again says, by space, that there are no generations any more that never had keys.
	again [256]bool
	// bySpace holds the pointers by lane, which nobody changes. A lane that they do not reach has firstGeneration.
	bySpace [256]atomic.Pointer[[]pointer]
}

func (g *generations) of(space byte, lane uint32) pointer {
	pointers := g.bySpace[space].Load()
	if pointers == nil || int(lane) >= len(*pointers) {
		return pointer{live: firstGeneration}
	}
	return (*pointers)[lane]
}

// clone returns the pointers as they are now.
func (g *generations) clone() *generations {
	now := new(generations)
	for _, p := range Projections {
		now.bySpace[p.space].Store(g.bySpace[p.space].Load())
	}
	return now
}

// load reads the pointers of all views.
func (g *generations) load(db *pebble.DB) error {
	for _, p := range Projections {
		value, err := read(db, pointersKey(p))
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read which generation of view %s answers: %w", p.Name, err)
		}
		if len(value)%2 != 0 {
			return fmt.Errorf("which generation of view %s answers cannot be read: it takes %d bytes", p.Name, len(value))
		}
		pointers := make([]pointer, len(value)/2)
		for lane := range pointers {
			pointers[lane] = pointer{live: value[2*lane], kept: value[2*lane+1]}
			if pointers[lane].live == 0 {
				return fmt.Errorf("no generation of view %s answers in lane %d", p.Name, lane)
			}
		}
		g.bySpace[p.space].Store(&pointers)
	}
	// What there is of a generation was written with its progress.
	first := []byte{KeySpaceViews, spaceProgress}
	entries, err := db.NewIter(&pebble.IterOptions{LowerBound: first, UpperBound: keyAfter(first)})
	if err != nil {
		return fmt.Errorf("read which generations there are: %w", err)
	}
	for valid := entries.First(); valid; valid = entries.Next() {
		g.taken[entries.Key()[prefixBytes]][entries.Key()[prefixBytes+1]] = true
	}
	return errors.Join(entries.Error(), entries.Close())
}

// pointerIn returns the pointer of a view in a lane as a snapshot has it.
func pointerIn(from pebble.Reader, p *Projection, lane uint32) (pointer, error) {
	value, err := read(from, pointersKey(p))
	if errors.Is(err, pebble.ErrNotFound) || err == nil && len(value) <= 2*int(lane) {
		return pointer{live: firstGeneration}, nil
	}
	if err != nil {
		return pointer{}, fmt.Errorf("read which generation of view %s answers: %w", p.Name, err)
	}
	return pointer{live: value[2*lane], kept: value[2*lane+1]}, nil
}

func pointersKey(p *Projection) []byte { return []byte{KeySpaceViews, spacePointers, p.space} }

// point changes the pointers of a view in some lanes at once. Reads that begin afterwards follow them. What else has to
// be in the same write is put into the batch by with, which may be nil.
func (s *Store) point(p *Projection, lanes []uint32, change func(lane uint32, at pointer) pointer, with func(*pebble.Batch) error) (err error) {
	g := &s.generations
	g.mu.Lock()
	defer g.mu.Unlock()
	var pointers []pointer
	if before := g.bySpace[p.space].Load(); before != nil {
		pointers = append(pointers, *before...)
	}
	for _, lane := range lanes {
		for int(lane) >= len(pointers) {
			pointers = append(pointers, pointer{live: firstGeneration})
		}
		pointers[lane] = change(lane, pointers[lane])
	}
	value := make([]byte, 0, 2*len(pointers))
	for _, at := range pointers {
		value = append(value, at.live, at.kept)
	}
	batch := s.db.NewBatch()
	defer func() { err = errors.Join(err, batch.Close()) }()
	if with != nil {
		if err := with(batch); err != nil {
			return err
		}
	}
	if err := errors.Join(batch.Set(pointersKey(p), value, nil), batch.Commit(pebble.NoSync)); err != nil {
		return fmt.Errorf("write which generation of view %s answers: %w", p.Name, err)
	}
	g.bySpace[p.space].Store(&pointers)
	return nil
}

// next returns a generation after the live one that none of the lanes has, and that never had any keys, if there still is one.
func (g *generations) next(p *Projection, lanes ...uint32) byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	var used [generationsMax + 1]bool
	used[0] = true
	for _, lane := range lanes {
		at := g.of(p.space, lane)
		used[at.live], used[at.kept] = true, true
	}
	taken := &g.taken[p.space]
	for range 2 {
		for i := range generationsMax {
			generation := byte((int(g.of(p.space, lanes[0]).live)+i)%generationsMax + 1)
			if !used[generation] && !taken[generation] {
				taken[generation] = true
				return generation
			}
		}
		*taken, g.again[p.space] = [generationsMax + 1]bool{}, true // It goes round.
	}
	panic(fmt.Sprintf("projections: bug: view %s has %d generations", p.Name, generationsMax))
}

// wentRound reports whether the generations that next returns may have had keys since the store was opened.
func (g *generations) wentRound(p *Projection) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.again[p.space]
}

// wipe removes what there is of a generation of a view in a lane.
func wipe(batch *pebble.Batch, p *Projection, generation byte, lane uint32) error {
	keys := prefixOf(p.space, generation, lane)
	parked, progress := parkedPrefix(keys), progressKey(p.space, generation, lane)
	return errors.Join(
		batch.DeleteRange(parked, keyAfter(parked), nil),
		batch.DeleteRange(keys[:], keys.end(), nil),
		batch.DeleteRange(progress, keyAfter(progress), nil),
	)
}
