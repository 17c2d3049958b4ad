package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
)

// Two views hold what is sold for less. Each is kept in its key's home lane; how much is left is the stock view's to say.
//
//	campaigns   CAMPAIGN@SKU, the stock key of the pool turned round → the newest CampaignPut, as an Entry
//	coupons     code → the newest CouponPut, as an Entry

var campaignsProjection = Projection{
	Name: "campaigns", Version: 1, space: spaceCampaigns, open: stateless(applyCampaigns),
	key: func(c *change) string {
		if c.kind != kindCampaignPut {
			return ""
		}
		return c.event.AggregateID
	},
	describe:  func(suffix []byte) string { return "campaign " + string(suffix) },
	print:     printNewest,
	partition: textPartition,
}

var couponsProjection = Projection{
	Name: "coupons", Version: 1, space: spaceCoupons, open: stateless(applyCoupons),
	key: func(c *change) string {
		if c.kind != kindCouponPut {
			return ""
		}
		return c.event.AggregateID
	},
	describe:  func(suffix []byte) string { return "coupon " + string(suffix) },
	print:     printNewest,
	partition: textPartition,
}

// Limits of a page.
const (
	// CampaignsPageDefault and CampaignsPageMax are campaigns or coupons a page.
	CampaignsPageDefault = 100
	CampaignsPageMax     = 1000
)

// ErrSeveral says that a campaign's id is of several products, and no SKU says which.
var ErrSeveral = errors.New("the campaign is of several products")

func applyCampaigns(v *view, c *change) error {
	if c.kind != kindCampaignPut {
		return nil
	}
	return v.keepNewest(c, campaignKey(c.event.AggregateID))
}

// campaignKey turns a pool's stock key round, or back.
func campaignKey(pool string) string {
	return domain.CampaignPool(domain.CampaignOf(pool), domain.HomeKey(pool))
}

func applyCoupons(v *view, c *change) error {
	if c.kind != kindCouponPut {
		return nil
	}
	return v.keepNewest(c, c.event.AggregateID)
}

// A CampaignView is a campaign, the position of its newest change, and where the units of its pool are.
type CampaignView struct {
	Campaign domain.Campaign
	Revision Revision
	Stock    StockView
}

// Remaining counts the units that are free to be ordered, in whichever lane they are.
func (s *StockView) Remaining() int64 { return s.Central + s.InTransit + s.Available }

// A CouponView is a coupon, the position of its newest change, and where its redemptions are when there are so many in all.
type CouponView struct {
	Coupon   domain.Coupon
	Revision Revision
	Stock    StockView
}

// A KeysQuery asks for a page of campaigns or coupons.
type KeysQuery struct {
	// PageSize is at most CampaignsPageMax; 0 means CampaignsPageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first.
	PageToken string
}

// A CampaignsPage is a page of campaigns, by id and SKU.
type CampaignsPage struct {
	Campaigns []CampaignView
	// Next is the token of the next page, empty at the end.
	Next string
}

// A CouponsPage is a page of coupons, by code.
type CouponsPage struct {
	Coupons []CouponView
	// Next is the token of the next page, empty at the end.
	Next string
}

// Campaign returns a campaign and what is left of it, over all lanes. An empty sku means the only one that the id is of;
// of several it is ErrSeveral. A missing one is ErrNotFound, or ErrBehind as with Order. Its freshness is that of the lane
// that is furthest behind.
func (v *Views) Campaign(ctx context.Context, campaignID, sku string, min Min) (CampaignView, Freshness, error) {
	var campaign CampaignView
	home := v.runners[v.furthestBehind().Lane] // Without a SKU it may be in any lane: none may have it that has not caught up.
	if sku != "" {
		home = v.homeOf(sku)
	}
	parked := false
	fresh, err := v.readAll(ctx, home, min, func() (err error) {
		parked = v.parksAny(&campaignsProjection) // It may be the one that would be found, or one of several.
		pool := domain.CampaignPool(sku, campaignID)
		if sku == "" {
			answer, err := v.reads.pools.Get(ctx, campaignID, 0)
			switch {
			case err != nil:
				return err
			case answer.Value == nil:
				return ErrNotFound
			}
			pool = *answer.Value
		}
		if sku != "" {
			parked = v.parks(&campaignsProjection, pool)
		}
		parked = parked || v.parks(&stockProjection, pool)
		campaign, err = v.readCampaign(ctx, pool)
		return err
	}, &campaignsProjection, &stockProjection)
	return campaign, fresh.parked(parked), parkedError(err, parked)
}

// readAll is readKey for an answer that comes from every lane: it is as fresh as the one that is furthest behind.
func (v *Views) readAll(ctx context.Context, home *Runner, min Min, readOnce func() error, of ...*Projection) (Freshness, error) {
	var behind Freshness
	fresh, err := v.readKey(ctx, home, min, func() error {
		behind = v.furthestBehind(of...)
		return readOnce()
	}, of...)
	return behind.waited(fresh.State == StateFresh), err
}

// loadPool finds the pool of the only campaign of an id.
func (v *Views) loadPool(ctx context.Context, campaignID string) (pool string, _ []byte, found bool, err error) {
	first := campaignKey(domain.CampaignPool("", campaignID))
	for _, r := range v.runners {
		err := v.eachKey(ctx, r.prefix(&campaignsProjection), []byte(first), func(key string, _ []byte) (bool, error) {
			if !strings.HasPrefix(key, first) {
				return false, nil
			}
			if pool != "" {
				return false, ErrSeveral
			}
			pool = campaignKey(key)
			return true, nil
		})
		if err != nil {
			return "", nil, false, err
		}
	}
	return pool, nil, pool != "", nil
}

// eachKey calls f with the keys of a lane's part of a view from the key after on, less their prefix, while it says true.
func (v *Views) eachKey(ctx context.Context, p prefix, after []byte, f func(key string, value []byte) (bool, error)) (err error) {
	entries, err := v.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: p.key(after), UpperBound: p.end()})
	if err != nil {
		return fmt.Errorf("read a view: %w", err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for valid := entries.First(); valid; valid = entries.Next() {
		more, err := f(string(entries.Key()[prefixBytes:]), entries.Value())
		if err != nil || !more {
			return err
		}
	}
	return entries.Error()
}

// readCampaign reads a campaign by its pool, and the pool's stock.
func (v *Views) readCampaign(ctx context.Context, pool string) (CampaignView, error) {
	found, err := v.homeOf(domain.HomeKey(pool)).reads.campaigns.Get(ctx, pool, 0)
	switch {
	case err != nil:
		return CampaignView{}, err
	case found.Value == nil:
		return CampaignView{}, ErrNotFound
	}
	campaign := *found.Value
	stock, err := v.reads.stocks.Get(ctx, pool, 0)
	if err == nil && stock.Value != nil {
		campaign.Stock = *stock.Value
	}
	return campaign, err
}

func missing(err error, what, key string) error {
	if errors.Is(err, pebble.ErrNotFound) {
		return ErrNotFound
	}
	return fmt.Errorf("read %s %s: %w", what, key, err)
}

// campaignOf reads a value of the view, and the pool's stock.
func (v *Views) campaignOf(pool string, lane uint32, value []byte) (CampaignView, error) {
	campaign, err := decodeCampaign(pool, lane, value)
	if err == nil {
		_, err = v.sumStock(&campaign.Stock)
	}
	return campaign, err
}

// decodeCampaign reads a value of the view; of the stock it knows the key.
func decodeCampaign(pool string, lane uint32, value []byte) (CampaignView, error) {
	event, entry, err := readNewest(pool, value)
	if err != nil {
		return CampaignView{}, fmt.Errorf("campaign %s: %w", pool, err)
	}
	return CampaignView{
		Campaign: domain.Campaign{}.Evolve(event, entry.At), Revision: Revision{Lane: lane, Commit: entry.Number},
		Stock: StockView{SKU: pool},
	}, nil
}

// readNewest reads what keepNewest wrote.
func readNewest(key string, value []byte) (domain.Event, Entry, error) {
	entry, _, err := readEntry(value)
	if err != nil {
		return nil, Entry{}, err
	}
	event, err := stored.Decode(entry.Type, entry.Version, key, entry.UserID, entry.Payload)
	return event, entry, err
}

// Campaigns returns a page of campaigns, by id and SKU. Its freshness is that of the lane that is furthest behind.
func (v *Views) Campaigns(ctx context.Context, query KeysQuery, min Min) (CampaignsPage, Freshness, error) {
	var page CampaignsPage
	fresh, err := v.readPage(ctx, keysOf{name: "campaigns", projection: &campaignsProjection, with: []*Projection{&stockProjection}}, query, min, func(key string, lane uint32, value []byte) error {
		campaign, err := v.campaignOf(campaignKey(key), lane, value)
		page.Campaigns = append(page.Campaigns, campaign)
		return err
	}, &page.Next)
	return page, fresh, err
}

// Coupon returns a coupon and how often it was redeemed, over all lanes. A missing one is ErrNotFound, or ErrBehind as with
// Order. Its freshness is that of the lane that is furthest behind.
func (v *Views) Coupon(ctx context.Context, code string, min Min) (CouponView, Freshness, error) {
	var coupon CouponView
	home := v.homeOf(code)
	parked := false
	fresh, err := v.readAll(ctx, home, min, func() error {
		parked = v.parks(&couponsProjection, code) || v.parks(&stockProjection, domain.CouponPool(code))
		value, err := home.prefix(&couponsProjection).read(v.db, code)
		if err != nil {
			return missing(err, "coupon", code)
		}
		coupon, err = v.couponOf(code, home.lane, value)
		return err
	}, &couponsProjection, &stockProjection)
	return coupon, fresh.parked(parked), parkedError(err, parked)
}

func (v *Views) couponOf(code string, lane uint32, value []byte) (CouponView, error) {
	event, entry, err := readNewest(code, value)
	if err != nil {
		return CouponView{}, fmt.Errorf("coupon %s: %w", code, err)
	}
	coupon := CouponView{
		Coupon: domain.Coupon{}.Evolve(event, entry.At), Revision: Revision{Lane: lane, Commit: entry.Number},
		Stock: StockView{SKU: domain.CouponPool(code)},
	}
	_, err = v.sumStock(&coupon.Stock)
	return coupon, err
}

// Coupons returns a page of coupons, by code. Its freshness is that of the lane that is furthest behind.
func (v *Views) Coupons(ctx context.Context, query KeysQuery, min Min) (CouponsPage, Freshness, error) {
	var page CouponsPage
	fresh, err := v.readPage(ctx, keysOf{name: "coupons", projection: &couponsProjection, with: []*Projection{&stockProjection}}, query, min, func(code string, lane uint32, value []byte) error {
		coupon, err := v.couponOf(code, lane, value)
		page.Coupons = append(page.Coupons, coupon)
		return err
	}, &page.Next)
	return page, fresh, err
}

// keysOf are the keys of a view that a page lists, and the views that what is listed is read off with it.
type keysOf struct {
	// name of the list: a page token is bound to it.
	name       string
	projection *Projection
	with       []*Projection
	// within is what the keys begin with.
	within string
}

// readPage calls each with the keys of one page of a view, in order over all lanes, and sets next to the token of the next
// page.
func (v *Views) readPage(
	ctx context.Context, keys keysOf, query KeysQuery, min Min,
	each func(key string, lane uint32, value []byte) error, next *string,
) (Freshness, error) {
	size := pageSize(query.PageSize, CampaignsPageDefault, CampaignsPageMax)
	binding := []string{keys.name}
	if keys.within != "" {
		binding = append(binding, keys.within)
	}
	after := []byte(keys.within)
	if query.PageToken != "" {
		cursor, err := v.seal.open(query.PageToken, binding...)
		if err != nil {
			return Freshness{}, err
		}
		after = append(cursor, 0) // The first key after it.
	}
	of := append([]*Projection{keys.projection}, keys.with...)
	reached, err := v.await(ctx, min, of...)
	if err != nil {
		return Freshness{}, err
	}
	fresh := v.furthestBehind(of...).waited(reached).parked(v.parksAny(of...))
	type row struct {
		key   string
		lane  uint32
		value []byte
	}
	var rows []row
	for _, r := range v.runners {
		read := 0
		if err := v.eachKey(ctx, r.prefix(keys.projection), after, func(key string, value []byte) (bool, error) {
			if !strings.HasPrefix(key, keys.within) {
				return false, nil
			}
			rows = append(rows, row{key, r.lane, append([]byte(nil), value...)})
			read++
			return read <= size, nil // One more than the page holds, to see whether more follow.
		}); err != nil {
			return Freshness{}, err
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.key, b.key) })
	if len(rows) > size {
		rows = rows[:size]
		*next = v.seal.seal([]byte(rows[size-1].key), binding...)
	}
	for _, row := range rows {
		if err := each(row.key, row.lane, row.value); err != nil {
			return Freshness{}, err
		}
	}
	return fresh, nil
}
