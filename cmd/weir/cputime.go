package main

import (
	"sync"
	"time"
)

// A cpuMeter measures the share of a processor's time that this process uses. The zero value is ready.
type cpuMeter struct {
	mu     sync.Mutex
	at     time.Time
	used   time.Duration
	newest uint32
}

// cpuMeterMin is the least time over which a share is measured.
const cpuMeterMin = 200 * time.Millisecond

// milli returns the share since the last time, in thousandths of one processor.
func (m *cpuMeter) milli() uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, used := time.Now(), cpuTime()
	if elapsed := now.Sub(m.at); m.at.IsZero() || elapsed >= cpuMeterMin {
		if !m.at.IsZero() {
			m.newest = uint32((used - m.used) * 1000 / elapsed)
		}
		m.at, m.used = now, used
	}
	return m.newest
}
