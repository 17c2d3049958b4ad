package projections

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"
	"time"

	"github.com/weirhq/weir/eventstore"
)

// What a forecast is made of.
const (
	// forecastEvery is how often a rebuild looks how large the log is and how fast it goes, forecastWindow how far back the pace goes
	// that the time to come is told by: long enough to even out the batches, short enough to follow what others leave it of the machine.
	forecastEvery  = time.Second
	forecastWindow = 15 * time.Second
	// forecastMax is the longest time that is foretold: a rebuild that seems to take longer has hardly begun.
	forecastMax = 365 * 24 * time.Hour
	// comparedWork is what comparing a byte of a generation's tables costs, by bytes of the log that are taken in in the same time. It was
	// measured of the order view.
	comparedWork = 2.0
)

// A forecast says how long a rebuild still takes, by how much was done of late.
type forecast struct {
	mu    sync.Mutex
	marks []forecastMark // oldest first: the newest before the window, and those in it
}

// forecastMark is how much was done at a time.
type forecastMark struct {
	at   time.Time
	done uint64
	// waited is for how long the rebuild had been held back by then, though it might have gone on.
	waited time.Duration
}

// mark notes how much is done.
func (f *forecast) mark(now forecastMark) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.marks) > 1 && now.at.Sub(f.marks[1].at) >= forecastWindow {
		f.marks = slices.Delete(f.marks, 0, 1)
	}
	f.marks = append(f.marks, now)
}

// left returns how long it takes until all is done, 0 when that is not known. A comparison is not held back by a bound of the
// events read in a second, so it is told by how fast the rebuild was when it was not.
func (f *forecast) left(now forecastMark, building, comparing work) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.marks) == 0 {
		return 0
	}
	from := f.marks[0]
	done, took := float64(now.done-min(from.done, now.done)), now.at.Sub(from.at)
	if done == 0 || took <= 0 {
		return 0
	}
	worked := max(took-(now.waited-from.waited), took/1000)
	left := float64(building.left())/done*float64(took) + float64(comparing.left())/done*float64(worked)
	if left > float64(forecastMax) {
		return 0
	}
	return time.Duration(left)
}

// work is how much is done of what there is to do, in bytes of the log: commits differ in size by a factor of hundreds between a peak and
// a quiet night, and what it takes to read, decode and apply them goes with their bytes. Events would do as well, but nobody knows
// how many there are in what is not yet read; how large the log is knows whoever keeps it. To build a part is as much work as its lane's
// log has bytes, and those of one batch again, which is written when all is read; to compare it is told by what the tables of the
// generation that answers take.
type work struct{ done, total uint64 }

func (w work) left() uint64 { return w.total - min(w.done, w.total) }

func (w work) plus(other work) work { return work{w.done + other.done, w.total + other.total} }

// logWork returns how much of a lane's log is read, when it is read up to a commit: counted bytes, after so many commits that were not
// counted, which are taken to be as large as the log's are on average. So are those that are no longer in the log.
func logWork(position, counted, uncounted uint64, size eventstore.LogSize) work {
	if size.Head == 0 || size.Head < size.First {
		return work{done: counted, total: counted}
	}
	average := float64(size.Bytes) / float64(size.Head-size.First+1)
	w := work{
		done:  counted + uint64(float64(uncounted)*average),
		total: size.Bytes + uint64(float64(size.First-min(1, size.First))*average),
	}
	if position > size.Head { // The log has grown since.
		w.total += uint64(float64(position-size.Head) * average)
	}
	w.done = min(w.done, w.total)
	return w
}

// building returns the work of building the part. It is empty until the size of the log is known.
func (p *part) building() work {
	size := p.size.Load()
	if size == nil {
		return work{}
	}
	w := logWork(p.position.Load(), p.read.Load(), p.uncounted.Load(), *size)
	if p.adopted.Load() {
		w.done = w.total
	}
	return w
}

// writing returns the work of writing what is taken in, as far as that is not done beside the reading.
func (p *part) writing() work {
	w := work{total: p.beside.Load()}
	if p.adopted.Load() {
		w.done = w.total
	}
	return w
}

// comparing returns the work of comparing the part with the generation that answers.
func (p *part) comparing() work {
	total := p.toCompare.Load()
	return work{min(p.comparedLive.Load()+p.comparedOther.Load(), total), total}
}

// work returns what there is to do of a rebuild: of building, and of comparing.
func (job *rebuild) work() (building, comparing work) {
	for _, p := range job.parts {
		building, comparing = building.plus(p.building()).plus(p.writing()), comparing.plus(p.comparing())
	}
	return building, comparing
}

// measure looks again and again how much there is to do, until ctx ends. A log that does not say how large it is, is asked again.
func (b *Rebuilder) measure(ctx context.Context, job *rebuild) {
	tick := time.NewTicker(forecastEvery)
	defer tick.Stop()
	for {
		known := true
		for _, p := range job.parts {
			if job.stored && !p.inPlace {
				live := prefixOf(job.projection.space, p.runner.live(job.projection), p.runner.lane)
				p.toCompare.Store(2 * b.compareWork(live, live.end())) // Of both: the other one will be about as large.
			}
			if size, err := b.log(p.runner.lane).Size(ctx); err == nil {
				p.size.Store(&size)
			}
			known = known && p.size.Load() != nil
		}
		if known {
			job.forecast.mark(b.markOf(job))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// markOf returns how much is done of a rebuild now.
func (b *Rebuilder) markOf(job *rebuild) forecastMark {
	building, comparing := job.work()
	// Lanes that are built at the same time are held back at the same time.
	atATime := min(len(job.parts), cap(b.slots))
	return forecastMark{at: time.Now(), done: building.done + comparing.done, waited: job.pace.heldBack() / time.Duration(atATime)}
}

// seen returns what notes how far the comparison of a rebuild is.
func (b *Rebuilder) seen(job *rebuild) func(of prefix, key []byte) {
	return func(of prefix, key []byte) {
		for _, p := range job.parts {
			if p.inPlace || p.runner.lane != uint32(binary.BigEndian.Uint16(of[3:])) {
				continue
			}
			done := p.toCompare.Load() / 2
			if key != nil {
				done = min(done, b.compareWork(of, key))
			}
			if of[2] == p.generation {
				p.comparedOther.Store(done)
			} else {
				p.comparedLive.Store(done)
			}
		}
	}
}

// compareWork is the work of reading the keys of a generation from the first one to the last. What is not in tables yet does not count.
func (b *Rebuilder) compareWork(prefix prefix, last []byte) uint64 {
	bytes, err := b.store.db.EstimateDiskUsage(prefix[:], last)
	if err != nil {
		return 0 // Then a forecast leaves it out.
	}
	return uint64(float64(bytes) * comparedWork)
}
