package balance

import (
	"fmt"
	"math"
	"time"
)

// A Reason says why an upstream was ejected.
type Reason uint8

// The reasons.
const (
	// NotEjected: it never was.
	NotEjected Reason = iota
	// FaultsInRow: it failed several times in a row, or in a trial.
	FaultsInRow
	// SuccessRate: it failed more often than the others.
	SuccessRate
	// Frozen: it took calls and did not answer.
	Frozen
)

// String names the reason as metrics do.
func (r Reason) String() string {
	switch r {
	case NotEjected:
		return "none"
	case FaultsInRow:
		return "faults_in_row"
	case SuccessRate:
		return "success_rate"
	case Frozen:
		return "frozen"
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// eject takes the member out for a while, unless it is out or too many are. It reports whether calls now go elsewhere.
func (b *Balancer) eject(m *member, reason Reason, now time.Duration) bool {
	e := b.config.Ejection
	if e.Off {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.table.Load()
	if m = t.byID(m.ID); m == nil {
		return true // It left meanwhile.
	}
	if m.ejectedUntil != 0 {
		return !t.panics
	}
	serving, out := t.serving(), 0
	for _, other := range serving {
		if other.ejectedUntil != 0 {
			out++
		}
	}
	outMax := int(e.ShareMax * float64(len(serving)))
	if len(serving) > 1 {
		outMax = max(1, outMax)
	}
	if out >= outMax {
		return false
	}
	healthySince := time.Duration(m.returned.Load())
	if m.ejectedFor == 0 || !m.probation.Load() && now-healthySince >= e.TimeMax {
		m.ejectedFor = e.Time
	} else {
		m.ejectedFor = min(2*m.ejectedFor, e.TimeMax)
	}
	m.ejectedUntil, m.reason = now+m.ejectedFor, reason
	m.ejected.Store(true)
	m.ejections++
	next := *t
	b.store(&next)
	return !next.panics
}

// readmit lets those back whose time is over, on probation, and returns the table that then holds.
func (b *Balancer) readmit(now time.Duration) *table {
	b.mu.Lock()
	defer b.mu.Unlock()
	next := *b.table.Load()
	if now < next.returnAt {
		return b.table.Load() // Another one was quicker.
	}
	for _, m := range next.all {
		if m.ejectedUntil == 0 || now < m.ejectedUntil {
			continue
		}
		m.ejectedUntil = 0
		m.trials.Store(0)
		m.faultsInRow.Store(0)
		m.good.Store(0)
		m.faults.Store(0)
		// The calls that hung before it was ejected may hang on: only trials tell.
		m.waitingSince.Store(int64(now))
		m.probation.Store(true)
		m.ejected.Store(false)
		b.smoothMu.Lock()
		m.smooth = 0
		b.smoothMu.Unlock()
	}
	b.store(&next)
	return &next
}

// store works out who is ready, and makes the table the one that holds. REQUIRES: b.mu.
func (b *Balancer) store(t *table) {
	serving := t.serving()
	t.ready, t.panics, t.returnAt = make([]*member, 0, len(serving)), false, math.MaxInt64
	for _, m := range t.all {
		if m.ejectedUntil != 0 {
			t.returnAt = min(t.returnAt, m.ejectedUntil)
		}
	}
	for _, m := range serving {
		if m.ejectedUntil == 0 {
			t.ready = append(t.ready, m)
		}
	}
	if float64(len(t.ready)) < b.config.Ejection.PanicBelow*float64(len(serving)) {
		t.ready, t.panics = serving, true
	}
	b.table.Store(t)
}

// compare ejects the members whose success rates are far below those of the others.
func (b *Balancer) compare(now time.Duration) {
	e := b.config.Ejection
	type rated struct {
		*member
		rate float64
	}
	var rates []rated
	for _, m := range b.table.Load().all {
		good, faults := m.good.Swap(0), m.faults.Swap(0)
		if calls := good + faults; calls >= int64(e.CallsMin) {
			rates = append(rates, rated{m, float64(good) / float64(calls)})
		}
	}
	if len(rates) < 2 {
		return
	}
	var sum, squares float64
	for _, r := range rates {
		sum += r.rate
		squares += r.rate * r.rate
	}
	others := float64(len(rates) - 1)
	for _, r := range rates {
		// Of the others alone: one of three can never be two deviations from a mean that it is part of.
		mean := (sum - r.rate) / others
		deviation := math.Sqrt(max(0, (squares-r.rate*r.rate)/others-mean*mean))
		if gap := mean - r.rate; gap > e.RateGap && gap > e.Deviations*deviation {
			b.eject(r.member, SuccessRate, now)
		}
	}
}

// usable reports whether a member gets calls: one that came back gets few until it answers. One that does not answer its trials
// goes out again.
func (b *Balancer) usable(m *member, now time.Duration) bool {
	if !m.probation.Load() || m.trials.Load() < int64(b.config.Ejection.TrialCalls) {
		return true
	}
	if m.silence(now) >= b.config.Ejection.FrozenAfter {
		b.eject(m, Frozen, now)
	}
	return false
}
