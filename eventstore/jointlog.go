package eventstore

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A JointLog is a lane's log for all on one node who read much of it at the same time, as the lane's state and its views do when they are
// made of it: a commit is read, hashed and decoded once. Whoever comes to where nobody has been reads on for all, the others take it from
// memory. Everything but Follow is the log's own.
//
// What holds, always:
//
//	J1  A cursor returns every commit from its number on, once and in order, whoever else reads.
//	J2  No cursor waits for another longer than WaitMax, nor, in all, longer than half the time or WaitMax: who is last then is left behind,
//	    and reads by itself.
//	J3  What is kept of the log is at most Bytes and one commit.
//
// A cursor that reads by itself joins others as soon as it comes to what they keep. Nothing runs but what calls Next.
type JointLog struct {
	Log
	options JointOptions

	mu       sync.Mutex
	readings []*reading // that have members
}

// JointOptions configure a JointLog. The zero value has defaults.
type JointOptions struct {
	// Bytes bounds the encoded commits that are kept for those who are behind; decoded they take about as much again. So far those are
	// apart who read together. 0 means 16 MiB.
	Bytes int
	// WaitMax bounds how long the one in front waits for the last at a time; 0 means 1 s.
	WaitMax time.Duration
}

// NewJointLog returns a log that reads together what is followed in log.
func NewJointLog(log Log, options JointOptions) *JointLog {
	setDefault(&options.Bytes, 16<<20)
	setDefault(&options.WaitMax, time.Second)
	return &JointLog{Log: log, options: options}
}

// Follow implements Log. The cursor joins those who read nearby.
func (l *JointLog) Follow(ctx context.Context, number uint64) (Cursor, error) {
	assert(number >= 1, "a log is followed from number 0")
	c := &jointCursor{log: l, next: number}
	if !c.join() {
		if err := c.open(ctx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// A reading is one cursor of the log below, and what it has read of late. All but source is guarded by the JointLog's mu.
type reading struct {
	// turn holds one while nobody uses source. Who has it is a member that has come to the end of the window.
	turn   chan struct{}
	source Cursor
	// head is the log's as of when reading began: until then, what all members have passed is kept for those who come later.
	head uint64
	// waited is how long those in front have waited since, the time when reading began or somebody was left behind. Who has the turn uses
	// both.
	since  time.Time
	waited time.Duration

	members  []*jointCursor
	first    uint64   // number of the oldest commit that is kept, or of the next one
	window   []Record // the commits from first on
	bytes    int      // of the window
	buffered int      // commits that source had at hand after the newest one
	// moved is closed when a commit has come or was taken; nil while nobody looks.
	moved chan struct{}
}

// A jointCursor is a member of a reading, or of none after it was left behind. It implements Cursor.
type jointCursor struct {
	log *JointLog
	// next and reading are changed under the log's mu; next by Next alone.
	next    uint64
	reading *reading
}

// Next implements Cursor.
func (c *jointCursor) Next(ctx context.Context) (Record, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Record{}, err
		}
		record, found, r, moved := c.take()
		switch {
		case found:
			return record, nil
		case r == nil:
			if err := c.open(ctx); err != nil {
				return Record{}, err
			}
			continue
		}
		select {
		case <-r.turn:
			err := c.read(ctx, r)
			r.turn <- struct{}{}
			if err != nil {
				return Record{}, err
			}
		case <-moved:
		case <-ctx.Done():
		}
	}
}

// take returns the next commit if it is kept. If not, it returns the reading that the cursor is a member of, nil for none, and what is closed
// when that has moved.
func (c *jointCursor) take() (record Record, found bool, r *reading, moved <-chan struct{}) {
	c.joinOthers()
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	r = c.reading
	if r == nil {
		return Record{}, false, nil, nil
	}
	if c.next == r.end() {
		return Record{}, false, r, r.look()
	}
	record = r.window[c.next-r.first]
	c.next++
	r.trim(c.log.options.Bytes)
	r.tell()
	return record, true, r, nil
}

// joinOthers joins those who keep what comes next, if the cursor is alone and would have to read it.
func (c *jointCursor) joinOthers() {
	c.log.mu.Lock()
	r := c.reading
	alone := r == nil || len(r.members) == 1 && c.next == r.end()
	c.log.mu.Unlock()
	if alone {
		c.join()
	}
}

// join makes the cursor a member of another reading that keeps its next commit, or is about to read it, and reports whether there is one.
func (c *jointCursor) join() bool {
	c.log.mu.Lock()
	before := c.reading
	for _, r := range c.log.readings {
		if r == before || c.next < r.first || c.next > r.end() {
			continue
		}
		left := c.leave()
		r.members = append(r.members, c)
		c.reading = r
		c.log.mu.Unlock()
		if left != nil {
			left.Close()
		}
		return true
	}
	c.log.mu.Unlock()
	return false
}

// open begins a reading at the cursor's next commit.
func (c *jointCursor) open(ctx context.Context) error {
	head, err := c.log.Head(ctx)
	if err != nil {
		return err
	}
	source, err := c.log.Log.Follow(ctx, c.next)
	if err != nil {
		return err
	}
	r := &reading{turn: make(chan struct{}, 1), source: source, head: head, since: time.Now(), members: []*jointCursor{c}, first: c.next}
	r.turn <- struct{}{}
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	c.log.readings = append(c.log.readings, r)
	c.reading = r
	return nil
}

// read reads one commit for all members, once there is room for it. It reads none if one has come meanwhile. REQUIRES: the cursor has the
// turn of r.
func (c *jointCursor) read(ctx context.Context, r *reading) error {
	if front, err := c.makeRoom(ctx, r); !front || err != nil {
		return err
	}
	record, err := r.source.Next(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.log.end(r) // Each member learns by itself what there is at its place.
		}
		return err
	}
	if commit, err := DecodeCommit(record.Data); err == nil { // What cannot be decoded is for those to say who take it.
		record.decoded = commit
	}
	buffered := r.source.Buffered()
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	r.window = append(r.window, record)
	r.bytes += len(record.Data)
	r.buffered = buffered
	r.tell()
	return nil
}

// makeRoom waits until no more than the bound is kept, and leaves the last members behind if they do not move, or too slowly (J2). front says
// that the cursor still is the one to read.
func (c *jointCursor) makeRoom(ctx context.Context, r *reading) (front bool, err error) {
	var patience *time.Timer
	for {
		c.log.mu.Lock()
		if c.reading != r || c.next != r.end() {
			c.log.mu.Unlock()
			return false, nil
		}
		r.trim(c.log.options.Bytes)
		if r.bytes <= c.log.options.Bytes {
			c.log.mu.Unlock()
			return true, nil
		}
		moved := r.look()
		c.log.mu.Unlock()
		waitMax := c.log.options.WaitMax
		if patience == nil {
			began := time.Now()
			patience = time.NewTimer(min(waitMax, max(waitMax, began.Sub(r.since)/2)-r.waited))
			defer func() {
				patience.Stop()
				r.waited += time.Since(later(began, r.since))
			}()
		}
		select {
		case <-moved:
		case <-patience.C:
			if c.log.leaveBehind(r) {
				r.since, r.waited = time.Now(), 0
			}
			patience.Reset(waitMax)
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// leaveBehind takes those out of a reading who are furthest behind, and reports whether there still was no room. REQUIRES: the caller is a
// member, at the end.
func (l *JointLog) leaveBehind(r *reading) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r.trim(l.options.Bytes)
	if r.bytes <= l.options.Bytes {
		return false // They have moved since.
	}
	last := r.last()
	r.members = slices.DeleteFunc(r.members, func(c *jointCursor) bool {
		behind := c.next == last
		if behind {
			c.reading = nil
		}
		return behind
	})
	r.trim(l.options.Bytes) // What they need next is gone, so that they do not join again at once.
	return true
}

// end takes everybody out of a reading and closes it. REQUIRES: the caller has its turn.
func (l *JointLog) end(r *reading) {
	l.mu.Lock()
	for _, c := range r.members {
		c.reading = nil
	}
	r.members = nil
	l.forget(r)
	r.tell()
	l.mu.Unlock()
	r.source.Close()
}

// forget no longer lists a reading. REQUIRES: mu is held.
func (l *JointLog) forget(r *reading) {
	l.readings = slices.DeleteFunc(l.readings, func(listed *reading) bool { return listed == r })
}

// leave takes the cursor out of its reading, and returns the source that nobody uses any more, which the caller closes without mu; nil for
// none. REQUIRES: mu is held, and it is not in Next's turn.
func (c *jointCursor) leave() Cursor {
	r := c.reading
	if r == nil {
		return nil
	}
	c.reading = nil
	r.members = slices.DeleteFunc(r.members, func(member *jointCursor) bool { return member == c })
	r.tell() // It may have been the one that others wait for.
	if len(r.members) > 0 {
		return nil
	}
	c.log.forget(r)
	return r.source
}

// Buffered implements Cursor. What the log below has at hand is as of now if the cursor is the one to read it, else as of when it was read
// last.
func (c *jointCursor) Buffered() int {
	c.log.mu.Lock()
	defer c.log.mu.Unlock()
	r := c.reading
	if r == nil {
		return 0
	}
	if c.next == r.end() {
		select {
		case <-r.turn:
			r.buffered = r.source.Buffered()
			r.turn <- struct{}{}
		default:
		}
	}
	return int(r.end()-c.next) + r.buffered
}

// Close implements Cursor.
func (c *jointCursor) Close() {
	c.log.mu.Lock()
	left := c.leave()
	c.log.mu.Unlock()
	if left != nil {
		left.Close()
	}
}

// The methods of a reading, all under mu.

// end is the number of the commit to be read next.
func (r *reading) end() uint64 { return r.first + uint64(len(r.window)) }

// last is the least number that a member is to take next. REQUIRES: there are members.
func (r *reading) last() uint64 {
	last := r.members[0].next
	for _, c := range r.members[1:] {
		last = min(last, c.next)
	}
	return last
}

// trim drops what all members have passed, the oldest first: as much as is beyond the bound, and everything at the log's head, where those
// who come find the live tail.
func (r *reading) trim(bytesMax int) {
	if r.end() > r.head {
		bytesMax = 0
	}
	if r.bytes <= bytesMax {
		return
	}
	last := r.last()
	for r.bytes > bytesMax && r.first < last {
		r.bytes -= len(r.window[0].Data)
		r.window[0] = Record{}
		r.window = r.window[1:]
		r.first++
	}
}

// look returns what is closed when the reading has moved.
func (r *reading) look() <-chan struct{} {
	if r.moved == nil {
		r.moved = make(chan struct{})
	}
	return r.moved
}

// tell tells those who look that the reading has moved.
func (r *reading) tell() {
	if r.moved != nil {
		close(r.moved)
		r.moved = nil
	}
}
