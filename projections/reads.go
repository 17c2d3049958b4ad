package projections

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections/readpath"
)

// What a node keeps of its views in memory, the first level of the read path, about.
const (
	// Each lane has its share of these.
	hotOrdersBytesMax    = 64 << 20
	hotProductsBytesMax  = 16 << 20
	hotCampaignsBytesMax = 4 << 20
	// These are of all lanes.
	hotPagesBytesMax  = 16 << 20
	hotStocksBytesMax = 8 << 20
	hotPoolsBytesMax  = 1 << 20
	// hotMissingMax bounds the keys of a kind that are known to be missing.
	hotMissingMax = 1 << 12
	// hotPinnedMax bounds the keys of a kind that stay in memory while they are hot.
	hotPinnedMax = 64
	// changedKeysMax is how many keys of a kind a batch may change before all of the kind are forgotten: a batch of a rebuild
	// changes more than anybody reads.
	changedKeysMax = 1 << 14
	// sharedLoadTimeout bounds a load where there is a level that nodes share.
	sharedLoadTimeout = 5 * time.Second

	// hotOrderBytes, hotLineBytes and hotPlainBytes are what an order, a line, and anything else take beside their text.
	hotOrderBytes = 384
	hotLineBytes  = 80
	hotPlainBytes = 256
)

// laneReads is the read path of what one lane's views hold: what is read often costs neither Pebble nor a fold. The runner
// says what changed between writing it and saying how far the view is, so an answer is never older than its view (I6).
type laneReads struct {
	orders   *readpath.Cache[domain.OrderID, OrderView]
	products *readpath.Cache[string, ProductView]
	// campaigns are kept by their pools' stock keys, without the stock.
	campaigns *readpath.Cache[string, CampaignView]

	// skus are the lane's products and stock keys; offers are the pools and ids of its campaigns.
	skus, offers readpath.Filter
}

// offerOfID is what a campaign's id is in offers.
func offerOfID(campaignID string) string { return "id " + campaignID }

func newLaneReads(r *Runner, shared readpath.Level2) *laneReads {
	lanes := uint64(r.topology.Lanes)
	l := new(laneReads)
	orders := readpath.Options[domain.OrderID, OrderView]{
		Name: "orders", Load: r.loadOrder, Shown: shownBy[domain.OrderID](r),
		BytesMax: hotOrdersBytesMax / lanes, Weigh: func(_ domain.OrderID, view *OrderView) uint32 { return hotWeight(view) },
		MissingMax: hotMissingMax, HotMax: hotPinnedMax,
	}
	if shared != nil {
		orders.Level2, orders.Key, orders.Decode = shared, domain.OrderID.String, r.decodeOrder
		orders.LoadTimeout = sharedLoadTimeout
	}
	l.orders = readpath.New(orders)
	l.products = readpath.New(readpath.Options[string, ProductView]{
		Name: "products", Load: r.loadProduct, Shown: shownBy[string](r), MayHold: l.skus.MayHold,
		BytesMax: hotProductsBytesMax / lanes, MissingMax: hotMissingMax,
		Weigh: func(sku string, view *ProductView) uint32 {
			return hotPlainBytes + uint32(2*len(sku)+len(view.Product.Title))
		},
	})
	l.campaigns = readpath.New(readpath.Options[string, CampaignView]{
		Name: "campaigns", Load: r.loadCampaign, Shown: shownBy[string](r), MayHold: l.offers.MayHold,
		BytesMax: hotCampaignsBytesMax / lanes, MissingMax: hotMissingMax,
		Weigh: func(pool string, _ *CampaignView) uint32 { return hotPlainBytes + 3*uint32(len(pool)) },
	})
	return l
}

// shownBy returns how far the runner's views are, whichever key is asked for.
func shownBy[K any](r *Runner) func(K) uint64 {
	return func(K) uint64 { return r.applied.Load().Number }
}

// sharedReads is the read path of what is read over all lanes, or with what only Views have. Every runner says what changed.
type sharedReads struct {
	// pages are the first pages of users' orders, whatever their status, of the default size.
	pages *readpath.Cache[string, firstPage]
	// stocks are summed up, by stock key; pools are the only ones of their campaigns, by the campaign's id.
	stocks *readpath.Cache[string, StockView]
	pools  *readpath.Cache[string, string]
}

func newSharedReads(v *Views) *sharedReads {
	mayHold := func(filter func(*laneReads) *readpath.Filter, key string) bool {
		return slices.ContainsFunc(v.runners, func(r *Runner) bool { return filter(r.reads).MayHold(key) })
	}
	return &sharedReads{
		pages: readpath.New(readpath.Options[string, firstPage]{
			Name: "lists of orders", Load: v.loadFirstPage, BytesMax: hotPagesBytesMax,
			Weigh: func(user string, page *firstPage) uint32 {
				bytes := uint32(len(user) + len(page.Next) + len(page.Watch))
				for i := range page.Orders {
					bytes += hotWeight(&page.Orders[i])
				}
				return bytes
			},
		}),
		stocks: readpath.New(readpath.Options[string, StockView]{
			Name: "stock", Load: v.loadStock, BytesMax: hotStocksBytesMax, MissingMax: hotMissingMax, HotMax: hotPinnedMax,
			Weigh:   func(key string, _ *StockView) uint32 { return hotPlainBytes + 2*uint32(len(key)) },
			MayHold: func(key string) bool { return mayHold(func(l *laneReads) *readpath.Filter { return &l.skus }, key) },
		}),
		pools: readpath.New(readpath.Options[string, string]{
			Name: "campaign ids", Load: v.loadPool, BytesMax: hotPoolsBytesMax, MissingMax: hotMissingMax,
			Weigh: func(id string, pool *string) uint32 { return uint32(len(id) + len(*pool)) },
			MayHold: func(id string) bool {
				return mayHold(func(l *laneReads) *readpath.Filter { return &l.offers }, offerOfID(id))
			},
		}),
	}
}

// Close waits until nothing reads the store in the background. The store is closed after it.
func (v *Views) Close() {
	for _, r := range v.runners {
		r.reads.orders.Close()
		r.reads.products.Close()
		r.reads.campaigns.Close()
	}
	v.reads.pages.Close()
	v.reads.stocks.Close()
	v.reads.pools.Close()
}

// ReadStats returns what the read path did since the node started, by what was read.
func (v *Views) ReadStats() map[string]readpath.Stats {
	stats := map[string]readpath.Stats{
		"order-pages": v.reads.pages.Stats(), "stock": v.reads.stocks.Stats(), "campaign-ids": v.reads.pools.Stats(),
	}
	for _, r := range v.runners {
		stats["orders"] = stats["orders"].Add(r.reads.orders.Stats())
		stats["products"] = stats["products"].Add(r.reads.products.Stats())
		stats["campaigns"] = stats["campaigns"].Add(r.reads.campaigns.Stats())
	}
	return stats
}

// HotStock returns the stock keys that are read most, in no order: what is shared of them is better spread over several keys.
func (v *Views) HotStock() []string { return v.reads.stocks.HotKeys() }

// changedKeys are what a batch changed, as the read path knows it. A key may be in it twice.
type changedKeys struct {
	orders []domain.OrderID
	users  []string // whose they are, one for each of orders
	// products, pools of campaigns, and stock keys.
	products, pools, stocks []string
}

// note takes in what an event changes, less the stock. A filter holds what comes into being before it is written.
func (r *Runner) note(c *change) {
	keys, key := &r.changed, c.event.AggregateID
	switch {
	case c.order != (domain.OrderID{}):
		keys.orders, keys.users = append(keys.orders, c.order), append(keys.users, c.event.UserID)
	case c.kind == kindProductPut:
		r.reads.skus.Add(key)
		keys.products = noteKey(keys.products, key)
	case c.kind == kindCampaignPut:
		r.reads.offers.Add(key)
		r.reads.offers.Add(offerOfID(domain.CampaignOf(key)))
		keys.pools = noteKey(keys.pools, key)
	}
}

// noteStock takes in what the batch changes of the stock.
func (r *Runner) noteStock(stock *stockApplier) {
	for _, key := range stock.created {
		r.reads.skus.Add(key)
	}
	for _, key := range stock.written {
		r.changed.stocks = noteKey(r.changed.stocks, key)
	}
	stock.created, stock.written = stock.created[:0], stock.written[:0]
}

// noteKey keeps one key more than changedKeysMax, no more.
func noteKey(keys []string, key string) []string {
	if len(keys) > changedKeysMax {
		return keys
	}
	return append(keys, key)
}

func (k *changedKeys) reset() {
	clear(k.users) // They are not to keep the batch that they were read off.
	clear(k.products)
	clear(k.pools)
	clear(k.stocks)
	k.orders, k.users, k.products, k.pools, k.stocks = k.orders[:0], k.users[:0], k.products[:0], k.pools[:0], k.stocks[:0]
}

// tellReads says what the batch changed. It is written, and its position is not shown yet.
func (r *Runner) tellReads() {
	position, keys := r.position.Number, &r.changed
	tell(r.reads.orders, position, keys.orders)
	tell(r.reads.products, position, keys.products)
	tell(r.reads.campaigns, position, keys.pools)
	for _, shared := range *r.shared.Load() {
		tellNow(shared.pages, keys.users)
		tellNow(shared.stocks, keys.stocks)
		tellNow(shared.stocks, keys.products) // A product is in stock, with nothing.
		ids := make([]string, len(keys.pools))
		for i, pool := range keys.pools {
			ids[i] = domain.CampaignOf(pool)
		}
		tellNow(shared.pools, ids)
	}
}

func tell[K comparable, V any](cache *readpath.Cache[K, V], position uint64, keys []K) {
	if len(keys) > changedKeysMax {
		cache.ChangedAll(position)
		return
	}
	cache.Changed(position, keys...)
}

func tellNow[K comparable, V any](cache *readpath.Cache[K, V], keys []K) {
	if len(keys) > changedKeysMax {
		cache.ChangedAllNow()
		return
	}
	cache.ChangedNow(keys...)
}

// forgetReads drops all that is remembered: another generation of a view answers, or one that answers as far as it goes has
// grown, at the position that is shown already. Nothing that was read before enters again.
func (r *Runner) forgetReads() {
	shown := r.applied.Load().Number
	if r.observer != nil {
		r.observer.Forgetting(r.lane, shown)
	}
	r.reads.orders.Forget(shown)
	r.reads.products.Forget(shown)
	r.reads.campaigns.Forget(shown)
	for _, shared := range *r.shared.Load() {
		shared.pages.ChangedAllNow()
		shared.stocks.ChangedAllNow()
		shared.pools.ChangedAllNow()
	}
}

// hotWeight returns about how many bytes an order takes.
func hotWeight(view *OrderView) uint32 {
	o := &view.Order
	bytes := hotOrderBytes + len(o.UserID) + len(o.CancelReason) + len(o.SealedNote)
	for i := range o.Lines {
		bytes += hotLineBytes + len(o.Lines[i].SKU) + len(o.Lines[i].Title)
	}
	return uint32(bytes)
}

// fillFilters makes the filters from the views as they are. What is applied from then on is added as it is.
func (r *Runner) fillFilters() error {
	skus := concat(r.eachViewKey(&productsProjection), r.eachViewKey(&stockProjection))
	if err := fillFilter(&r.reads.skus, skus); err != nil {
		return fmt.Errorf("make the filter of products: %w", err)
	}
	offers := func(yield func(string, error) bool) {
		for key, err := range r.eachViewKey(&campaignsProjection) {
			pool := campaignKey(key)
			if !yield(pool, err) || err == nil && !yield(offerOfID(domain.CampaignOf(pool)), nil) {
				return
			}
		}
	}
	if err := fillFilter(&r.reads.offers, offers); err != nil {
		return fmt.Errorf("make the filter of campaigns: %w", err)
	}
	return nil
}

func fillFilter(filter *readpath.Filter, keys iter.Seq2[string, error]) error {
	count := 0
	for _, err := range keys {
		if err != nil {
			return err
		}
		count++
	}
	return filter.Rebuild(count, keys)
}

func concat(sequences ...iter.Seq2[string, error]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, sequence := range sequences {
			for key, err := range sequence {
				if !yield(key, err) {
					return
				}
			}
		}
	}
}

// eachViewKey returns the keys of the lane's part of a view.
func (r *Runner) eachViewKey(projection *Projection) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		p := r.prefix(projection)
		entries, err := r.db.NewIter(&pebble.IterOptions{LowerBound: p[:], UpperBound: p.end()})
		if err != nil {
			yield("", err)
			return
		}
		defer entries.Close()
		for valid := entries.First(); valid; valid = entries.Next() {
			if !yield(string(entries.Key()[prefixBytes:]), nil) {
				return
			}
		}
		if err := entries.Error(); err != nil {
			yield("", err)
		}
	}
}

// loadOrder reads and folds an order; its record is what a shared level keeps.
func (r *Runner) loadOrder(_ context.Context, id domain.OrderID) (view OrderView, record []byte, found bool, err error) {
	record, err = readRecord(r.db, r.prefix(&ordersProjection), id)
	if errors.Is(err, ErrNotFound) {
		return OrderView{}, nil, false, nil
	}
	if err != nil {
		return OrderView{}, nil, false, err
	}
	view, err = r.decodeOrder(id, record)
	if parked, _ := r.parksOrder(id, ""); parked || r.behind[ordersProjection.space].Load() != nil {
		record = nil // It is older than the position that is shown says: other nodes are not to have it.
	}
	return view, record, true, err
}

// decodeOrder folds an order's record.
func (r *Runner) decodeOrder(id domain.OrderID, record []byte) (OrderView, error) {
	order, revision, err := FoldOrder(id, "", record, 0)
	return OrderView{Order: order, Revision: Revision{Lane: r.lane, Commit: revision}}, err
}

func (r *Runner) loadProduct(_ context.Context, sku string) (product ProductView, _ []byte, found bool, err error) {
	value, err := r.prefix(&productsProjection).read(r.db, sku)
	if errors.Is(err, pebble.ErrNotFound) {
		return ProductView{}, nil, false, nil
	}
	if err != nil {
		return ProductView{}, nil, false, fmt.Errorf("read product %s: %w", sku, err)
	}
	product, err = readProduct(sku, r.lane, value)
	return product, nil, true, err
}

// loadCampaign reads a campaign by its pool, without the stock.
func (r *Runner) loadCampaign(_ context.Context, pool string) (campaign CampaignView, _ []byte, found bool, err error) {
	value, err := r.prefix(&campaignsProjection).read(r.db, campaignKey(pool))
	if errors.Is(err, pebble.ErrNotFound) {
		return CampaignView{}, nil, false, nil
	}
	if err != nil {
		return CampaignView{}, nil, false, fmt.Errorf("read campaign %s: %w", pool, err)
	}
	campaign, err = decodeCampaign(pool, r.lane, value)
	return campaign, nil, true, err
}
