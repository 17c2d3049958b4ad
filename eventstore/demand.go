package eventstore

import "sync"

// A Demand says whether somebody waits for what the followers of a lane have not taken in yet: they do not rest as long as somebody does.
// The zero value is ready; for a nil Demand nobody ever waits. Its methods may be called by several goroutines.
type Demand struct {
	mu      sync.Mutex
	waiting int
	entered chan struct{} // closed when somebody comes to wait where nobody did; nil while nobody looks for that
}

// Enter says that the caller waits, until it calls leave, once.
func (d *Demand) Enter() (leave func()) {
	if d == nil {
		return func() {}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting++
	if d.entered != nil {
		close(d.entered)
		d.entered = nil
	}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.waiting--
	}
}

// look reports whether somebody waits, and if not, returns what is closed when somebody does.
func (d *Demand) look() (entered <-chan struct{}, waiting bool) {
	if d == nil {
		return nil, false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting > 0 {
		return nil, true
	}
	if d.entered == nil {
		d.entered = make(chan struct{})
	}
	return d.entered, false
}
