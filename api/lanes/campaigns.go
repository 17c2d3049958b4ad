package lanes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// Campaigns, coupons, and what users hold of them. The facts are kept as products are: decided in a home lane, read from
// the node's catalogue. Uses are the user's lane's own: no other lane counts them, so a limit per user is exact without
// asking anyone.

// An overlay is what commits in flight make of values, until they are applied.
type overlay[K comparable, V any] map[K]speculative[V]

type speculative[V any] struct {
	value   V
	changes int // events in flight
}

func (o overlay[K, V]) put(key K, value V) {
	o[key] = speculative[V]{value: value, changes: o[key].changes + 1}
}

// settle takes one event off a value: what is durable speaks for itself.
func (o overlay[K, V]) settle(key K) {
	if entry := o[key]; entry.changes > 1 {
		entry.changes--
		o[key] = entry
	} else {
		delete(o, key)
	}
}

// Campaign implements domain.State.
func (m *Machine) Campaign(pool string) (domain.Campaign, bool) {
	if spec, ok := m.campaigns[pool]; ok {
		return spec.value, true
	}
	entry, ok := m.options.Catalog.Campaign(pool)
	return entry.Campaign, ok
}

// Coupon implements domain.State.
func (m *Machine) Coupon(code string) (domain.Coupon, bool) {
	if spec, ok := m.coupons[code]; ok {
		return spec.value, true
	}
	entry, ok := m.options.Catalog.Coupon(code)
	return entry.Coupon, ok
}

// Used implements domain.State.
func (m *Machine) Used(use domain.Use) int64 {
	if spec, ok := m.uses[use]; ok {
		return spec.value
	}
	if !m.used.mayHold(requestKey{use.UserID, use.Of}) { // Nearly everybody in a flash sale.
		return 0
	}
	value, err := m.get(m.keys.use(use))
	must(err)
	count, err := sumOfChanges(value)
	must(err)
	return count
}

// sumOfChanges adds up a use's value: it is a row of varints, so that no write reads what was there.
func sumOfChanges(value []byte) (int64, error) {
	var sum int64
	for len(value) > 0 {
		change, length := binary.Varint(value)
		if length <= 0 {
			return 0, errors.New("a count of uses cannot be read")
		}
		sum, value = sum+change, value[length:]
	}
	return sum, nil
}

// loadCampaigns reads campaigns and coupons into the catalogue, and who holds something into the filter.
func (m *Machine) loadCampaigns() error {
	if err := m.scan(m.keys.table(tableCampaigns), func(pool, value []byte) error {
		f, event, err := decodeFact(stored.TypeCampaignPut, string(pool), value)
		if err != nil {
			return err
		}
		m.options.Catalog.putCampaign(CampaignEntry{Campaign: domain.Campaign{}.Evolve(event, f.at), Commit: f.commit})
		return nil
	}); err != nil {
		return err
	}
	if err := m.scan(m.keys.table(tableCoupons), func(code, value []byte) error {
		f, event, err := decodeFact(stored.TypeCouponPut, string(code), value)
		if err != nil {
			return err
		}
		m.options.Catalog.putCoupon(CouponEntry{Coupon: domain.Coupon{}.Evolve(event, f.at), Commit: f.commit})
		return nil
	}); err != nil {
		return err
	}
	return m.scan(m.keys.table(tableUses), func(key, _ []byte) error {
		m.used.addBytes(key)
		return nil
	})
}

// speculateCampaigns takes a decided event into the overlays.
func (m *Machine) speculateCampaigns(event domain.Event, at time.Time) {
	if put, ok := event.(domain.CampaignPut); ok {
		m.campaigns.put(put.Pool, domain.Campaign{}.Evolve(put, at))
	}
	if put, ok := event.(domain.CouponPut); ok {
		m.coupons.put(put.Code, domain.Coupon{}.Evolve(put, at))
	}
	for use, change := range domain.Uses(event) {
		m.uses.put(use, m.Used(use)+change)
	}
}

// settleCampaigns takes a decided event off the overlays.
func (m *Machine) settleCampaigns(event domain.Event) {
	if put, ok := event.(domain.CampaignPut); ok {
		m.campaigns.settle(put.Pool)
	}
	if put, ok := event.(domain.CouponPut); ok {
		m.coupons.settle(put.Code)
	}
	for use := range domain.Uses(event) {
		m.uses.settle(use)
	}
}

// writeCampaigns puts what one event changes of campaigns, coupons and uses into the batch.
func (m *Machine) writeCampaigns(commit *eventstore.Commit, envelope *eventstore.Event, event domain.Event) error {
	if put, ok := event.(domain.CampaignPut); ok {
		m.options.Catalog.putCampaign(CampaignEntry{Campaign: domain.Campaign{}.Evolve(put, commit.Time), Commit: commit.Number})
		return m.batch.Set(m.keys.campaign(put.Pool), factOf(commit, envelope).encode(nil), nil)
	}
	if put, ok := event.(domain.CouponPut); ok {
		m.options.Catalog.putCoupon(CouponEntry{Coupon: domain.Coupon{}.Evolve(put, commit.Time), Commit: commit.Number})
		return m.batch.Set(m.keys.coupon(put.Code), factOf(commit, envelope).encode(nil), nil)
	}
	for use, change := range domain.Uses(event) {
		m.used.add(requestKey{use.UserID, use.Of})
		if err := m.ledgerBatch().Merge(m.keys.use(use), binary.AppendVarint(nil, change), nil); err != nil {
			return fmt.Errorf("count the use of %s by %s: %w", use.Of, use.UserID, err)
		}
	}
	return nil
}

func factOf(commit *eventstore.Commit, envelope *eventstore.Event) *fact {
	return &fact{commit: commit.Number, at: commit.Time, version: envelope.Version, payload: envelope.Payload}
}
