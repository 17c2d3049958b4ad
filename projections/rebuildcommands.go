package projections

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A RebuildRefusal says why a command about a projection's generations is not carried out. Nothing was changed.
type RebuildRefusal struct {
	Projection string
	// Unknown says that there is no such projection.
	Unknown bool
	Reason  string
}

func (e *RebuildRefusal) Error() string { return fmt.Sprintf("view %s: %s", e.Projection, e.Reason) }

func refuse(p *Projection, format string, args ...any) error {
	return &RebuildRefusal{Projection: p.Name, Reason: fmt.Sprintf(format, args...)}
}

// find returns a projection by name.
func find(name string) (*Projection, error) {
	var names []string
	for _, p := range Projections {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return nil, &RebuildRefusal{Projection: name, Unknown: true, Reason: "there is no such view; there are " + strings.Join(names, ", ")}
}

// Start begins a rebuild. A view that is being rebuilt already is refused.
func (b *Rebuilder) Start(name string, options RebuildOptions) error {
	p, err := find(name)
	if err != nil {
		return err
	}
	if options.Swap != "" && options.Swap != SwapAuto && options.Swap != SwapManual {
		return refuse(p, "%q is no way to swap: give auto or manual", options.Swap)
	}
	for _, lane := range options.Lanes {
		if lane >= b.topology.Lanes {
			return refuse(p, "there is no lane %d: lanes are 0 to %d", lane, b.topology.Lanes-1)
		}
	}
	if len(options.Lanes) == 0 {
		for lane := range b.topology.Lanes {
			options.Lanes = append(options.Lanes, lane)
		}
	}
	options.Lanes = slices.Compact(slices.Sorted(slices.Values(options.Lanes)))

	b.commands.Lock()
	defer b.commands.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rebuilds[p.space] != nil {
		return refuse(p, "it is being rebuilt already: see 'projections status', or give that rebuild up with 'projections drop %s'", p.Name)
	}
	job := &rebuild{projection: p}
	if err := b.begin(job, options); err != nil {
		return err
	}
	for _, lane := range options.Lanes {
		job.parts = append(job.parts, b.newPart(p, lane, job.record.Generation, false))
	}
	b.rebuilds[p.space] = job
	b.poke()
	return nil
}

// Pause stops building a generation until Resume. What answers reads is fed as ever.
func (b *Rebuilder) Pause(name string) error {
	return b.command(name, func(p *Projection, job *rebuild) error {
		switch {
		case job == nil:
			return refuse(p, "it is not being rebuilt")
		case !job.stored:
			return refuse(p, "it answers as far as it has been made: it has to go on")
		case job.fed:
			return refuse(p, "its new generation is built: swap it or drop it")
		case job.record.Paused:
			return nil // Same command again.
		}
		job.record.Paused = true
		b.stop(job)
		if b.rebuilds[p.space] != job {
			return refuse(p, "its new generation has just begun to answer")
		}
		return b.save(job)
	})
}

// Resume goes on with a rebuild that was paused, or that failed.
func (b *Rebuilder) Resume(name string) error {
	return b.command(name, func(p *Projection, job *rebuild) error {
		if job == nil {
			return refuse(p, "it is not being rebuilt")
		}
		job.record.Paused, job.failure = false, nil
		b.poke()
		return b.save(job)
	})
}

// Swap makes a generation that was built and held answer reads.
func (b *Rebuilder) Swap(ctx context.Context, name string) error {
	return b.command(name, func(p *Projection, job *rebuild) error {
		switch {
		case job == nil || !job.stored:
			return refuse(p, "there is no new generation to swap in: make one with 'projections rebuild %s'", p.Name)
		case !job.fed:
			return refuse(p, "its new generation is not built yet")
		case job.done != nil:
			return refuse(p, "its new generation is being compared with the one that answers: wait until 'projections status' says %s", RebuildHeld)
		}
		return b.swap(ctx, job)
	})
}

// Rollback makes the generation that is kept answer reads again, and keeps the one that does now: doing it twice changes
// nothing.
func (b *Rebuilder) Rollback(ctx context.Context, name string) error {
	return b.command(name, func(p *Projection, job *rebuild) error {
		if job != nil {
			return refuse(p, "it is being rebuilt: give that rebuild up first with 'projections drop %s'", p.Name)
		}
		lanes, err := b.keptLanes(ctx, p)
		if err != nil {
			return err
		}
		if len(lanes) == 0 {
			return refuse(p, "no generation of it is kept to go back to")
		}
		if err := b.store.point(p, lanes, func(_ uint32, at pointer) pointer { return pointer{live: at.kept, kept: at.live} }, nil); err != nil {
			return err
		}
		if err := b.swapped(ctx, p, lanes); err != nil {
			return err
		}
		b.logger.Info("the generation of a view that was kept answers again", "view", p.Name)
		return b.store.Flush()
	})
}

// keptLanes returns the lanes in which a generation is kept and fed.
func (b *Rebuilder) keptLanes(ctx context.Context, p *Projection) (lanes []uint32, err error) {
	for _, r := range b.runners {
		kept := b.store.generations.of(p.space, r.lane).kept
		if kept == 0 {
			continue
		}
		if err := r.atBoundary(ctx, func() error {
			if r.feeds(p, kept) {
				lanes = append(lanes, r.lane)
			}
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return lanes, nil
}

// Drop gives up a rebuild if there is one; else it drops the generation that is kept.
func (b *Rebuilder) Drop(ctx context.Context, name string) error {
	return b.command(name, func(p *Projection, job *rebuild) error {
		if job != nil {
			return b.giveUp(ctx, p, job)
		}
		var lanes []uint32
		for _, r := range b.runners {
			kept := b.store.generations.of(p.space, r.lane).kept
			if kept == 0 {
				continue
			}
			if err := r.atBoundary(ctx, func() error { r.abandon(p, kept); return nil }); err != nil {
				return err
			}
			lanes = append(lanes, r.lane)
		}
		if len(lanes) == 0 {
			return refuse(p, "there is nothing to drop: no generation of it is being built, and none is kept")
		}
		err := b.store.point(p, lanes, func(_ uint32, at pointer) pointer { return pointer{live: at.live} }, nil)
		if err != nil {
			return err
		}
		b.sweepLater()
		return b.store.Flush()
	})
}

// giveUp ends a rebuild and leaves what answers as it is.
func (b *Rebuilder) giveUp(ctx context.Context, p *Projection, job *rebuild) (err error) {
	if !job.stored {
		return refuse(p, "it answers as far as it has been made: it has to be built")
	}
	for _, part := range job.parts {
		if part.inPlace {
			return refuse(p, "it answers as far as it has been made: it has to be built")
		}
	}
	for _, lane := range job.lanes() {
		if b.runners[lane].behind[p.space].Load() != nil {
			return refuse(p, "what answers was made by another version of this program and is not fed: the new generation is needed")
		}
	}
	job.givenUp = true
	defer func() { job.givenUp = err == nil }()
	b.stop(job)
	if b.rebuilds[p.space] != job {
		return refuse(p, "its new generation has just begun to answer: go back with 'projections rollback %s'", p.Name)
	}
	for _, part := range job.parts {
		if err := part.runner.atBoundary(ctx, func() error { part.runner.abandon(p, part.generation); return nil }); err != nil {
			return err
		}
	}
	delete(b.rebuilds, p.space)
	b.sweepLater()
	return b.store.removeRecord(p)
}

// command runs one command about a projection and its rebuild, nil when there is none, with mu held.
func (b *Rebuilder) command(name string, do func(*Projection, *rebuild) error) error {
	p, err := find(name)
	if err != nil {
		return err
	}
	b.commands.Lock()
	defer b.commands.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	return do(p, b.rebuilds[p.space])
}

// stop ends the work on a rebuild, and waits for it. REQUIRES: mu is held; it is let go meanwhile.
func (b *Rebuilder) stop(job *rebuild) {
	if job.done == nil {
		return
	}
	done := job.done
	job.cancel()
	b.mu.Unlock()
	<-done
	b.mu.Lock()
}

// Compare compares the generation of a view that answers with the one that is built and does not answer yet, or with the one
// that is kept. What the latter has parked and the one that answers has taken in is told apart, and is no difference.
func (b *Rebuilder) Compare(ctx context.Context, name string) (*Comparison, error) {
	p, err := find(name)
	if err != nil {
		return nil, err
	}
	b.commands.Lock()
	defer b.commands.Unlock()
	b.mu.Lock()
	job := b.rebuilds[p.space]
	fed := job != nil && job.fed
	b.mu.Unlock()
	if job != nil && !fed {
		return nil, refuse(p, "its new generation is not built yet")
	}
	other, lanes := func(r *Runner) byte { return b.store.generations.of(p.space, r.lane).kept }, []uint32(nil)
	if job != nil {
		other, lanes = func(*Runner) byte { return job.record.Generation }, job.lanes()
	} else if lanes, err = b.keptLanes(ctx, p); err != nil {
		return nil, err
	}
	if len(lanes) == 0 {
		return nil, refuse(p, "there is only one generation of it: make another one with 'projections rebuild %s --swap manual'", p.Name)
	}
	return b.compare(ctx, p, lanes, compareOptions{other: other, kept: job == nil, pace: b.newPace(SpeedFull)})
}

// A RebuildState says how a rebuild stands.
type RebuildState string

// The states of a rebuild.
const (
	RebuildBuilding RebuildState = "building"
	RebuildPaused   RebuildState = "paused"
	// RebuildHeld: it is built, and is swapped by Swap alone, which does so from now on.
	RebuildHeld RebuildState = "held"
	// RebuildFailed: it goes on with Resume, or at the next start.
	RebuildFailed RebuildState = "failed"
)

// A RebuildStatus says how the rebuild of a view stands.
type RebuildStatus struct {
	Projection string
	State      RebuildState
	Generation uint32
	Speed      Speed
	Swap       SwapMode
	// Reason it is held or has failed.
	Reason string
	// Comparison that it is held for; nil when there was none.
	Comparison *Comparison
	// Done is how much is done of the Total that there is to do, the comparison included: bytes of the log, and what takes as long. The
	// Total grows with the log. Before the logs have said how large they are, both count commits.
	Done, Total uint64
	// Left is how long it still takes to be built and compared, by the pace of late; 0 when that is not known, and while nobody works on it.
	Left  time.Duration
	Lanes []LaneRebuild
}

// A LaneRebuild says how far a lane is.
type LaneRebuild struct {
	Lane uint32
	// Position is the number of the newest commit that the new generation holds, Target that of the views that are fed.
	Position, Target uint64
	// Bytes of the log are read of BytesTotal, as the log counts them; BytesTotal is 0 until it is known.
	Bytes, BytesTotal uint64
	// Events taken in since this process began.
	Events uint64
	// Built says that the lane's runner feeds it.
	Built bool
}

// Status returns how the rebuild of each view stands that has one.
func (b *Rebuilder) Status() []RebuildStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []RebuildStatus
	for _, p := range Projections {
		if job := b.rebuilds[p.space]; job != nil {
			all = append(all, b.status(job))
		}
	}
	return all
}

func (b *Rebuilder) status(job *rebuild) RebuildStatus {
	s := RebuildStatus{
		Projection: job.projection.Name, State: RebuildBuilding, Generation: uint32(job.parts[0].generation),
		Speed: job.record.Speed, Swap: job.record.Swap, Comparison: job.comparison,
	}
	switch {
	case job.failure != nil:
		s.State, s.Reason = RebuildFailed, job.failure.Error()
	case job.record.Paused:
		s.State = RebuildPaused
	case job.held():
		s.State, s.Reason = RebuildHeld, job.record.Held
	}
	for _, p := range job.parts {
		target := p.runner.Position().Number
		l := LaneRebuild{Lane: p.runner.lane, Position: p.position.Load(), Target: target, Events: p.events.Load(), Built: p.adopted.Load()}
		read := p.building()
		l.Bytes, l.BytesTotal = read.done, read.total
		if l.Built {
			l.Position = target
		}
		s.Lanes = append(s.Lanes, l)
	}
	building, comparing := job.work()
	all := building.plus(comparing)
	s.Done, s.Total = all.done, all.total
	if building.total == 0 {
		s.Done, s.Total = 0, 0
		for _, lane := range s.Lanes {
			s.Done, s.Total = s.Done+lane.Position, s.Total+lane.Target
		}
	}
	if s.State == RebuildHeld { // After a restart it is not compared again.
		s.Done = s.Total
	}
	if job.done != nil {
		s.Left = job.forecast.left(b.markOf(job), building, comparing)
	}
	return s
}

// A Generations says which generations of a view there are in a lane.
type Generations struct {
	Projection string
	Version    uint32
	Lane       uint32
	// Live answers reads. Kept did before, 0 when there is none. Building is built or waits for its swap, 0 when there is none.
	Live, Kept, Building uint32
}

// Generations returns the generations of each view in each lane.
func (b *Rebuilder) Generations() []Generations {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Generations
	for _, p := range Projections {
		for _, r := range b.runners {
			at := b.store.generations.of(p.space, r.lane)
			g := Generations{Projection: p.Name, Version: p.Version, Lane: r.lane, Live: uint32(at.live), Kept: uint32(at.kept)}
			if job := b.rebuilds[p.space]; job != nil {
				for _, part := range job.parts {
					if part.runner == r && !part.inPlace {
						g.Building = uint32(part.generation)
					}
				}
			}
			all = append(all, g)
		}
	}
	return all
}

// Settled waits until no rebuild goes on by itself: each has ended, is paused, is held, or has failed. It is asked now and then;
// every is how often.
func (b *Rebuilder) Settled(ctx context.Context, every time.Duration, progress func([]RebuildStatus)) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		statuses := b.Status()
		if progress != nil {
			progress(statuses)
		}
		if !slices.ContainsFunc(statuses, func(s RebuildStatus) bool { return s.State == RebuildBuilding }) {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
