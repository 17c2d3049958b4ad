package paying

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weirhq/weir/api/payments"
)

// counts count what somebody has to look at, since the process began.
type counts struct {
	stray, orphans, wrongAmounts, refundsFailed, overdue atomic.Uint64
}

// A Status says how the payments of a node stand.
type Status struct {
	Providers []ProviderStatus
	// Since the process began; after a crash an event may be counted again. Stray: money that no order waited for. Orphans:
	// payments that the log does not know. WrongAmounts: other amounts than asked for. RefundsFailed: refunds that somebody
	// has to make otherwise. Overdue: how often work was raised that had been on the list for long (I5).
	Stray, Orphans, WrongAmounts, RefundsFailed, Overdue uint64
}

// A ProviderStatus says how it stands with one provider.
type ProviderStatus struct {
	Provider string
	// Configured is false for one that payments name and the node does not have.
	Configured bool
	Breaker    payments.BreakerState
	// Waiting counts the orders on the work list, Busy those of them that are worked on. Oldest is since when one of them is
	// on the list, zero when there is none.
	Waiting, Busy int
	Oldest        time.Time
}

// Status returns how the payments stand, providers by name.
func (c *Cashier) Status() Status {
	s := Status{
		Stray: c.counts.stray.Load(), Orphans: c.counts.orphans.Load(), WrongAmounts: c.counts.wrongAmounts.Load(),
		RefundsFailed: c.counts.refundsFailed.Load(), Overdue: c.counts.overdue.Load(),
	}
	c.list.mu.Lock()
	defer c.list.mu.Unlock()
	at := map[string]int{}
	for name, d := range c.list.desks {
		p := ProviderStatus{Provider: name, Configured: d.provider != nil, Busy: d.busy}
		if d.provider != nil {
			p.Breaker = d.provider.State()
		}
		s.Providers = append(s.Providers, p)
	}
	slices.SortFunc(s.Providers, func(a, b ProviderStatus) int { return strings.Compare(a.Provider, b.Provider) })
	for i := range s.Providers {
		at[s.Providers[i].Provider] = i
	}
	for _, w := range c.list.all {
		p := &s.Providers[at[w.provider]]
		p.Waiting++
		if p.Oldest.IsZero() || w.since.Before(p.Oldest) {
			p.Oldest = w.since
		}
	}
	return s
}
