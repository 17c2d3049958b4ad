// Package retry keeps the gateway from making a bad moment worse. Whatever sends a call more than once, be it failover,
// forking or hedging, pays for each attempt after the first out of one budget that calls fill.
package retry

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"time"
)

// Config says how many attempts a Budget pays for. A zero field means its default.
type Config struct {
	// Share of a call that each call adds, in attempts; 0 means 0.2: one attempt more for five calls.
	Share float64 `yaml:"share"`
	// PerSecond is how many attempts a second come in any case, so that few calls can be repeated too; 0 means 10.
	PerSecond float64 `yaml:"per_second"`
	// TTL is how long what was not spent stays; 0 means 10 s. A quiet night saves nothing up for the morning.
	TTL time.Duration `yaml:"ttl"`
	// Off pays for nothing: every call is attempted once.
	Off bool `yaml:"off"`
}

const (
	shareDefault     = 0.2
	perSecondDefault = 10
	ttlDefault       = 10 * time.Second

	shareMax     = 1
	perSecondMax = 1e6
	ttlMin       = time.Second
	ttlMax       = 10 * time.Minute
)

// WithDefaults fills in the fields that are zero.
func (c Config) WithDefaults() Config {
	if c.Share == 0 {
		c.Share = shareDefault
	}
	if c.PerSecond == 0 {
		c.PerSecond = perSecondDefault
	}
	if c.TTL == 0 {
		c.TTL = ttlDefault
	}
	return c
}

// Validate returns an error that says which field is wrong, and what it may be.
func (c Config) Validate() error {
	c = c.WithDefaults()
	switch {
	case !(c.Share > 0 && c.Share <= shareMax): // NaN is neither.
		return fmt.Errorf("share is %v; it is above 0 and at most %d", c.Share, shareMax)
	case !(c.PerSecond > 0 && c.PerSecond <= perSecondMax):
		return fmt.Errorf("per_second is %v; it is above 0 and at most %g", c.PerSecond, float64(perSecondMax))
	case c.TTL < ttlMin || c.TTL > ttlMax:
		return fmt.Errorf("ttl is %s; it is between %s and %s", c.TTL, ttlMin, ttlMax)
	}
	return nil
}

// A Budget is a bucket of credits, each good for one attempt. Its methods may be called by any number of goroutines.
//
// Credits lie in slots by the time when they came. The oldest are spent first, and a slot that is too old is emptied.
// So a retry spends what would go to waste first, and what is there is never more than what came within TTL.
type Budget struct {
	config   Config
	now      func() time.Time
	begin    time.Time
	slotTime time.Duration

	mu sync.Mutex
	// newest is the number of the slot that now lies in; slot number i is slots[i%slotCount].
	newest int64
	// slots and balance are in thousandths of a credit.
	slots         [slotCount]int64
	balance       int64
	paid, refused uint64
}

const (
	// slotCount slots are one TTL: credits live at least 19/20 of it.
	slotCount = 20
	// credit is one attempt.
	credit = 1000
)

// New returns a budget that has its first credits at once. now tells the time; nil means time.Now.
func New(config Config, now func() time.Time) (*Budget, error) {
	if err := config.Validate(); err != nil {
		return nil, fmt.Errorf("retry budget: %w", err)
	}
	if now == nil {
		now = time.Now
	}
	b := &Budget{config: config.WithDefaults(), now: now, begin: now()}
	b.slotTime = b.config.TTL / slotCount
	b.add(b.perSlot())
	return b, nil
}

// Call adds the share of one call. It is called once for each call, whatever becomes of it, and not for its attempts.
func (b *Budget) Call() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance()
	b.add(int64(math.Round(b.config.Share * credit)))
}

// Take pays for one attempt after a call's first, or says that there is nothing left to pay it with.
func (b *Budget) Take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance()
	if b.config.Off || b.balance < credit {
		b.refused++
		return false
	}
	b.paid++
	b.balance -= credit
	due := int64(credit)
	for number := max(0, b.newest-slotCount+1); due > 0; number++ {
		slot := &b.slots[number%slotCount]
		spent := min(*slot, due)
		*slot -= spent
		due -= spent
	}
	return true
}

// Stats says what a budget did, for metrics.
type Stats struct {
	// Balance is how many attempts it would pay for now.
	Balance float64
	// Paid and Refused count attempts since the start.
	Paid, Refused uint64
}

// Stats returns what the budget did so far.
func (b *Budget) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.advance()
	return Stats{Balance: float64(b.balance) / credit, Paid: b.paid, Refused: b.refused}
}

// advance empties the slots that are too old, and gives each new one what comes in any case.
func (b *Budget) advance() {
	current := int64(b.now().Sub(b.begin) / b.slotTime)
	if behind := current - b.newest; behind > slotCount {
		b.newest = current - slotCount // What lies further back is gone anyhow.
	}
	for b.newest < current {
		b.newest++
		b.balance -= b.slots[b.newest%slotCount]
		b.slots[b.newest%slotCount] = 0
		b.add(b.perSlot())
	}
	if b.balance < 0 {
		panic(errors.New("retry: more credits were spent than there were"))
	}
}

func (b *Budget) perSlot() int64 {
	return int64(math.Round(b.config.PerSecond * b.slotTime.Seconds() * credit))
}

func (b *Budget) add(thousandths int64) {
	b.slots[b.newest%slotCount] += thousandths
	b.balance += thousandths
}
