package eventstore

// Slots bound how many commits are on their way to one disk at a time, over all the lanes that share it. A disk has one
// fsync queue: when several lanes fill it with small commits, each waits for all the others. With slots a lane that has to wait
// lets its group grow instead.
type Slots struct{ free chan struct{} }

// NewSlots returns count slots. Two keep the disk busy while the next commit is decided.
func NewSlots(count int) *Slots {
	s := &Slots{free: make(chan struct{}, count)}
	for range count {
		s.free <- struct{}{}
	}
	return s
}

// slotHolder counts the slots that one lane holds: one for each commit in flight. One goroutine uses it.
type slotHolder struct {
	slots *Slots
	held  int
}

// newHolder works on nil Slots, of which there are always enough.
func (s *Slots) newHolder() *slotHolder { return &slotHolder{slots: s} }

// tryAcquire makes sure that there is a slot for one commit more than are in flight, if one is free.
func (h *slotHolder) tryAcquire(inFlight int) bool {
	if h.slots == nil || h.held > inFlight {
		return true
	}
	select {
	case <-h.slots.free:
		h.held++
		return true
	default:
		return false
	}
}

// wait yields a slot when one is free. Whoever receives from it calls took.
func (h *slotHolder) wait() <-chan struct{} {
	if h.slots == nil {
		return nil
	}
	return h.slots.free
}

func (h *slotHolder) took() { h.held++ }

// keep gives back the slots beyond those that the commits in flight need.
func (h *slotHolder) keep(inFlight int) {
	for h.held > inFlight {
		h.held--
		h.slots.free <- struct{}{}
	}
}
