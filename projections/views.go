package projections

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
)

// Limits of a page.
const (
	// OrdersPageDefault and OrdersPageMax are orders a page.
	OrdersPageDefault = 20
	OrdersPageMax     = 100
	// ordersScanMax bounds the orders that one page looks at; with a filter, a page may hold fewer than it has room for.
	ordersScanMax = 2000
	// ProductsPageDefault and ProductsPageMax are products a page.
	ProductsPageDefault = 100
	ProductsPageMax     = 1000
)

// ViewsOptions configure Views.
type ViewsOptions struct {
	// Store that the runners write.
	Store *Store
	// Topology of the log.
	Topology eventstore.Topology
	// Runners of all lanes, by lane.
	Runners []*Runner
	// PageKey seals page tokens; at least 16 bytes, the same on every node.
	PageKey []byte
}

// Views read what the runners write. Methods may be called by any number of goroutines.
//
// Every read takes a Min and says how fresh its answer is: it waits for the Min, and if the wait is over first it
// answers with what there is, as StateCatchingUp. What is returned is shared with others who ask: nobody changes it.
type Views struct {
	db       *pebble.DB
	topology eventstore.Topology
	runners  []*Runner
	seal     pageSeal
	reads    *sharedReads
}

// NewViews returns the views of all lanes. The caller closes them before the store.
func NewViews(options ViewsOptions) (*Views, error) {
	if err := options.Topology.Validate(); err != nil {
		return nil, err
	}
	if len(options.Runners) != int(options.Topology.Lanes) {
		return nil, fmt.Errorf("there are %d runners for %d lanes", len(options.Runners), options.Topology.Lanes)
	}
	for lane, r := range options.Runners {
		if r.lane != uint32(lane) || r.topology != options.Topology {
			return nil, fmt.Errorf("runner %d feeds lane %d of %d", lane, r.lane, r.topology.Lanes)
		}
	}
	if len(options.PageKey) < pageKeyBytesMin {
		return nil, fmt.Errorf("the key for page tokens has %d bytes, want at least %d", len(options.PageKey), pageKeyBytesMin)
	}
	v := &Views{
		db: options.Store.db, topology: options.Topology, runners: slices.Clone(options.Runners),
		seal: pageSeal{key: bytes.Clone(options.PageKey)},
	}
	v.reads = newSharedReads(v)
	for _, r := range v.runners {
		r.tellAlso(v.reads)
	}
	return v, nil
}

// An OrderView is an order and the position of its newest change.
type OrderView struct {
	Order    domain.Order
	Revision Revision
	// Events of the order, oldest first; only where they were asked for.
	Events []Entry
}

// A ProductView is a product and the position of its newest change.
type ProductView struct {
	Product  domain.Product
	Revision Revision
}

// A StockView is where the units of a SKU are, over all lanes: received = central + in transit + available + reserved +
// sold (I3).
type StockView struct {
	SKU                                                     string
	Received, Central, InTransit, Available, Reserved, Sold int64
}

// Order returns an order. A missing one is ErrNotFound, or ErrBehind if the view is not as new as it has to be to say so.
func (v *Views) Order(ctx context.Context, id domain.OrderID, min Min) (OrderView, Freshness, error) {
	return v.OrderOf(ctx, id, "", min)
}

// OrderOf returns an order of a user. Another user's order is answered exactly as a missing one (I7). An empty userID
// means any user.
func (v *Views) OrderOf(ctx context.Context, id domain.OrderID, userID string, min Min) (OrderView, Freshness, error) {
	r := v.runners[v.topology.LaneOf(id.Partition())]
	var view OrderView
	load := func(atLeast uint64) (position uint64, err error) {
		view, position, err = r.orderOf(ctx, id, userID, atLeast)
		return position, err
	}
	parked, _ := r.parksOrder(id, "")
	if !parked && r.sharesOrders && min.Lane == r.lane && min.Commit > r.applied.Load().Number {
		// Another node may be as far already: what it said of the order saves the wait.
		if position, err := load(min.Commit); err == nil && position >= min.Commit {
			return view, r.freshnessAt(position), nil
		}
	}
	fresh, err := v.readParked(ctx, r, id, userID, min, func() error {
		_, err := load(0)
		return err
	})
	return view, fresh, err
}

// readParked is readKey for an order, which may be parked. A parked order that is not in the view is ErrParked, for those who may
// see it.
func (v *Views) readParked(ctx context.Context, r *Runner, id domain.OrderID, userID string, min Min, readOnce func() error) (Freshness, error) {
	var parked, mayTell bool
	fresh, err := v.readKey(ctx, r, min, func() error {
		parked, mayTell = r.parksOrder(id, userID)
		return readOnce()
	}, &ordersProjection)
	if mayTell && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrBehind)) {
		err = ErrParked
	}
	return fresh.parked(parked), err
}

// OrderAsOf returns an order of a user as it was at a moment of the past; before it was placed, it is missing. Users as with
// OrderOf. A moment that the view has not come to is answered with what there is: see its freshness.
func (v *Views) OrderAsOf(ctx context.Context, id domain.OrderID, userID string, moment AsOf, min Min) (OrderView, Freshness, error) {
	r := v.runners[v.topology.LaneOf(id.Partition())]
	var view OrderView
	fresh, err := v.readParked(ctx, r, id, userID, min, func() error {
		fold := newOrderFold(id)
		if err := foldStored(v.db, r.prefix(&ordersProjection), fold, userID, moment, nil); err != nil {
			return err
		}
		if fold.entries == 0 {
			return ErrNotFound
		}
		view = OrderView{Order: fold.order, Revision: Revision{Lane: r.lane, Commit: fold.revision}}
		return nil
	})
	return view, fresh, err
}

// orderOf returns an order of a user, any user when userID is empty, and up to which commit it holds.
func (r *Runner) orderOf(ctx context.Context, id domain.OrderID, userID string, atLeast uint64) (OrderView, uint64, error) {
	answer, err := r.reads.orders.Get(ctx, id, atLeast)
	if err != nil {
		return OrderView{}, 0, err
	}
	if answer.Value == nil || userID != "" && answer.Value.Order.UserID != userID {
		return OrderView{}, answer.Position, ErrNotFound
	}
	return *answer.Value, answer.Position, nil
}

// readOrder folds those entries of an order's record that the fold has not seen, and calls each, if it is not nil, after
// each commit of them.
func (v *Views) readOrder(r *Runner, fold *orderFold, userID string, each func() error) error {
	return foldStored(v.db, r.prefix(&ordersProjection), fold, userID, AsOf{}, each)
}

func foldStored(from pebble.Reader, p prefix, fold *orderFold, userID string, upTo AsOf, each func() error) error {
	record, err := readRecord(from, p, fold.id)
	if err != nil {
		return err
	}
	if userID != "" {
		if owner, _ := RecordUserID(record); owner != userID {
			return ErrNotFound
		}
	}
	return fold.read(record, upTo, each)
}

// readRecord returns an order's record off the orders under a prefix, or ErrNotFound.
func readRecord(from pebble.Reader, p prefix, id domain.OrderID) ([]byte, error) {
	var key [prefixBytes + len(id)]byte
	putOrderKey(key[:], p, id)
	record, err := read(from, key[:])
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("read order %s: %w", id, err)
	}
	return record, nil
}

// readKey reads one key of a lane's view, once the view is as new as min. A key that is missing is looked for again when the
// view has read everything that the log held when the runner began.
func (v *Views) readKey(ctx context.Context, r *Runner, min Min, readOnce func() error, of ...*Projection) (Freshness, error) {
	reached, err := v.await(ctx, min, of...)
	if err != nil {
		return Freshness{}, err
	}
	fresh := r.freshness(of...)
	err = readOnce()
	if errors.Is(err, ErrNotFound) {
		if _, known := r.follower.Head(); !known {
			err = ErrBehind
		} else if target := r.follower.Target(); fresh.Commit < target {
			caughtUp, waitErr := r.await(ctx, target, min.Wait, of...)
			if waitErr != nil {
				return Freshness{}, waitErr
			}
			fresh = r.freshness(of...)
			if err = readOnce(); errors.Is(err, ErrNotFound) && !caughtUp {
				err = ErrBehind
			}
		}
		if errors.Is(err, ErrNotFound) && (!reached || fresh.State == StateRebuilding && fresh.LagCommits > 0) {
			err = ErrBehind
		}
	}
	return fresh.waited(reached), err
}

// await waits until the lane that min names is as far as it says, and reports whether it is.
func (v *Views) await(ctx context.Context, min Min, of ...*Projection) (bool, error) {
	if min.Commit == 0 {
		return true, nil
	}
	if min.Lane >= v.topology.Lanes {
		return false, ErrNoSuchLane
	}
	return v.runners[min.Lane].await(ctx, min.Commit, min.Wait, of...)
}

// An OrdersQuery asks for a page of a user's orders.
type OrdersQuery struct {
	UserID string
	// Status to keep; 0 keeps all.
	Status domain.OrderStatus
	// Events asks for the orders' events too.
	Events bool
	// PageSize is at most OrdersPageMax; 0 means OrdersPageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first.
	PageToken string
}

// An OrdersPage is a page of orders, newest first.
type OrdersPage struct {
	Orders []OrderView
	// Next is the token of the next page, empty at the end. With a filter, a page may hold few orders or none while more
	// follow.
	Next string
	// Watch is the token to watch the user's orders with from here on (WatchUser); only the first page has one.
	Watch string
}

// Orders returns a page of a user's orders, newest first. A token of another query is ErrBadPageToken.
func (v *Views) Orders(ctx context.Context, query OrdersQuery, min Min) (OrdersPage, Freshness, error) {
	if query.UserID == "" || len(query.UserID) > userIDBytesMax {
		return OrdersPage{}, Freshness{}, fmt.Errorf("a user id has %d bytes, want 1 to %d", len(query.UserID), userIDBytesMax)
	}
	size := pageSize(query.PageSize, OrdersPageDefault, OrdersPageMax)
	binding := query.binding()
	r := v.runners[v.topology.LaneOf(eventstore.PartitionOf(query.UserID))]
	var from []byte // The end of a key.
	if query.PageToken != "" {
		cursor, err := v.seal.open(query.PageToken, binding...)
		if err != nil {
			return OrdersPage{}, Freshness{}, err
		}
		var newest domain.OrderID
		if len(cursor) != len(newest) {
			return OrdersPage{}, Freshness{}, ErrBadPageToken
		}
		copy(newest[:], cursor)
		from = append(appendComplement(nil, newest), 0) // The first key after it.
	}

	reached, err := v.await(ctx, min, &ordersByUserProjection, &ordersProjection)
	if err != nil {
		return OrdersPage{}, Freshness{}, err
	}
	fresh := r.freshness(&ordersByUserProjection, &ordersProjection).waited(reached)
	parked := r.parksUser(query.UserID, &ordersByUserProjection, &ordersProjection)
	if query.PageToken == "" && query.Status == 0 && !query.Events && size == OrdersPageDefault {
		at := r.applied.Load().Number
		answer, err := v.reads.pages.Get(ctx, query.UserID, 0)
		if err != nil {
			return OrdersPage{}, fresh, err
		}
		page := answer.Value.OrdersPage
		if at > answer.Value.commit && fresh.State != StateRebuilding { // Nothing of the user's has changed in between.
			page.Watch = v.seal.sealWatch(query.UserID, after(at), answer.Value.heals)
		}
		return page, fresh.parked(parked), nil
	}
	page, err := v.readOrdersPage(ctx, r, query, binding, size, from)
	return page, fresh.parked(parked), err
}

// A firstPage is the page that most who list orders ask for, the newest commit of the lane that it holds, and how often
// parked events of the user's orders had been taken in.
type firstPage struct {
	OrdersPage
	commit, heals uint64
}

// loadFirstPage reads the first page of a user. There is one of every user.
func (v *Views) loadFirstPage(ctx context.Context, userID string) (page firstPage, _ []byte, found bool, err error) {
	r := v.runners[v.topology.LaneOf(eventstore.PartitionOf(userID))]
	query := OrdersQuery{UserID: userID}
	if page.OrdersPage, err = v.readOrdersPage(ctx, r, query, query.binding(), OrdersPageDefault, nil); err != nil {
		return firstPage{}, nil, false, err
	}
	at, heals, err := v.seal.openWatch(userID, page.Watch)
	page.commit, page.heals = at.commit, heals
	return page, nil, true, err
}

// binding is what a page token of the query is good for.
func (q *OrdersQuery) binding() []string {
	return []string{"orders", q.UserID, strconv.Itoa(int(q.Status))}
}

// readOrdersPage reads a page off the index, from the user's key that ends with from on.
func (v *Views) readOrdersPage(
	ctx context.Context, r *Runner, query OrdersQuery, binding []string, size int, from []byte,
) (page OrdersPage, err error) {
	index, records := r.prefix(&ordersByUserProjection), r.prefix(&ordersProjection)
	first := appendUser(index.key(nil), query.UserID)
	last := keyAfter(first)
	first = append(first, from...)
	parked := r.parked[spaceOrders].Load() // Before the snapshot: what it does not name, the snapshot has.
	// One snapshot for the index and the records, so that the filter holds for what is returned.
	snapshot := v.db.NewSnapshot()
	defer func() { err = errors.Join(err, snapshot.Close()) }()
	entries, err := snapshot.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: first, UpperBound: last})
	if err != nil {
		return OrdersPage{}, fmt.Errorf("read the orders of %s: %w", query.UserID, err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()

	if query.PageToken == "" {
		listed, err := readPosition(snapshot, index)
		if err != nil {
			return OrdersPage{}, err
		}
		at, err := readPosition(snapshot, records)
		if err != nil {
			return OrdersPage{}, err
		}
		heals, err := healsOf(snapshot, r.lane, query.UserID)
		if err != nil {
			return OrdersPage{}, err
		}
		page.Watch = v.seal.sealWatch(query.UserID, after(min(listed, at)), heals)
	}
	scanned := 0
	var newest domain.OrderID
	for valid := entries.First(); valid; valid = entries.Next() {
		if len(page.Orders) == size || scanned == ordersScanMax {
			page.Next = v.seal.seal(newest[:], binding...)
			break
		}
		scanned++
		id, status, err := readIndexEntry(entries.Key(), entries.Value())
		if err != nil {
			return OrdersPage{}, err
		}
		newest = id
		if !mayHaveStatus(status, query.Status) {
			continue
		}
		fold := newOrderFold(id)
		fold.keep = query.Events
		err = foldStored(snapshot, records, fold, query.UserID, AsOf{}, nil)
		if errors.Is(err, ErrNotFound) && parked.byKey[id.String()] != nil {
			continue
		}
		if err != nil {
			return OrdersPage{}, fmt.Errorf("order %s of the index: %w", id, err)
		}
		if query.Status != 0 && fold.order.Status != query.Status {
			continue
		}
		page.Orders = append(page.Orders, OrderView{
			Order: fold.order, Revision: Revision{Lane: r.lane, Commit: fold.revision}, Events: fold.kept,
		})
	}
	return page, entries.Error()
}

func pageSize(asked, whenZero, most int) int {
	if asked <= 0 {
		return whenZero
	}
	return min(asked, most)
}

// Product returns a product. A missing one is ErrNotFound, or ErrBehind as with Order.
func (v *Views) Product(ctx context.Context, sku string, min Min) (ProductView, Freshness, error) {
	r := v.homeOf(sku)
	var product ProductView
	parked := false
	fresh, err := v.readKey(ctx, r, min, func() error {
		parked = r.parks(&productsProjection, sku)
		answer, err := r.reads.products.Get(ctx, sku, 0)
		switch {
		case err != nil:
			return err
		case answer.Value == nil:
			return ErrNotFound
		}
		product = *answer.Value
		return nil
	}, &productsProjection)
	return product, fresh.parked(parked), parkedError(err, parked)
}

// homeOf returns the runner of a SKU's home lane.
func (v *Views) homeOf(sku string) *Runner {
	return v.runners[v.topology.LaneOf(eventstore.PartitionOf(sku))]
}

// A ProductsQuery asks for a page of products.
type ProductsQuery struct {
	// PageSize is at most ProductsPageMax; 0 means ProductsPageDefault.
	PageSize int
	// PageToken is the Next of the page before, empty for the first.
	PageToken string
}

// A ProductsPage is a page of products, by SKU.
type ProductsPage struct {
	Products []ProductView
	// Next is the token of the next page, empty at the end.
	Next string
}

// Products returns a page of products by SKU. Its freshness is that of the lane that is furthest behind.
func (v *Views) Products(ctx context.Context, query ProductsQuery, min Min) (ProductsPage, Freshness, error) {
	size := pageSize(query.PageSize, ProductsPageDefault, ProductsPageMax)
	var after []byte
	if query.PageToken != "" {
		cursor, err := v.seal.open(query.PageToken, "products")
		if err != nil {
			return ProductsPage{}, Freshness{}, err
		}
		after = append(cursor, 0) // The first key after it.
	}
	reached, err := v.await(ctx, min, &productsProjection)
	if err != nil {
		return ProductsPage{}, Freshness{}, err
	}
	fresh := v.furthestBehind(&productsProjection).waited(reached).parked(v.parksAny(&productsProjection))
	var page ProductsPage
	for _, r := range v.runners {
		// One more than the page holds, to see whether more follow.
		if page.Products, err = v.readProducts(ctx, r, after, size+1, page.Products); err != nil {
			return ProductsPage{}, Freshness{}, err
		}
	}
	slices.SortFunc(page.Products, func(a, b ProductView) int { return strings.Compare(a.Product.SKU, b.Product.SKU) })
	if len(page.Products) > size {
		page.Products = slices.Clip(page.Products[:size])
		page.Next = v.seal.seal([]byte(page.Products[size-1].Product.SKU), "products")
	}
	return page, fresh, nil
}

// readProducts appends up to limit products of a lane from the key after on.
func (v *Views) readProducts(ctx context.Context, r *Runner, after []byte, limit int, dst []ProductView) (_ []ProductView, err error) {
	p := r.prefix(&productsProjection)
	entries, err := v.db.NewIterWithContext(ctx, &pebble.IterOptions{LowerBound: p.key(after), UpperBound: p.end()})
	if err != nil {
		return dst, fmt.Errorf("read products: %w", err)
	}
	defer func() { err = errors.Join(err, entries.Close()) }()
	for valid := entries.First(); valid && limit > 0; valid = entries.Next() {
		product, err := readProduct(string(entries.Key()[prefixBytes:]), r.lane, entries.Value())
		if err != nil {
			return dst, err
		}
		dst = append(dst, product)
		limit--
	}
	return dst, entries.Error()
}

// furthestBehind returns the freshness of the lane that is furthest behind.
func (v *Views) furthestBehind(of ...*Projection) Freshness {
	behind := v.runners[0].freshness(of...)
	for _, r := range v.runners[1:] {
		f := r.freshness(of...)
		if f.LagCommits > behind.LagCommits || f.LagCommits == behind.LagCommits && f.State > behind.State {
			behind = f
		}
	}
	return behind
}

// Stock returns where the units of a SKU are, summed over all lanes. A SKU that is neither a product nor in stock is
// ErrNotFound. Its freshness is that of the lane that is furthest behind.
func (v *Views) Stock(ctx context.Context, sku string, min Min) (StockView, Freshness, error) {
	stock := StockView{SKU: sku}
	var behind Freshness
	parked := false
	fresh, err := v.readKey(ctx, v.homeOf(sku), min, func() error {
		behind = v.furthestBehind(&stockProjection, &productsProjection)
		parked = v.parks(&stockProjection, sku)
		found, err := v.stockOf(ctx, sku)
		if err == nil {
			stock = found
		}
		return err
	}, &stockProjection, &productsProjection)
	return stock, behind.waited(fresh.State == StateFresh).parked(parked), parkedError(err, parked)
}

// parks reports whether any lane's part of a view may lack parked events of what a key of it is read for.
func (v *Views) parks(p *Projection, key string) bool {
	return slices.ContainsFunc(v.runners, func(r *Runner) bool { return r.parks(p, key) })
}

// parksAny reports whether anything of the views is parked, in any lane.
func (v *Views) parksAny(of ...*Projection) bool {
	return slices.ContainsFunc(v.runners, func(r *Runner) bool { return r.parksAny(of...) })
}

// parkedError is err, or ErrParked if the key may be missing because it is parked.
func parkedError(err error, parked bool) error {
	if parked && (errors.Is(err, ErrNotFound) || errors.Is(err, ErrBehind)) {
		return ErrParked
	}
	return err
}

// stockOf returns the stock of a SKU as it is now, or ErrNotFound.
func (v *Views) stockOf(ctx context.Context, sku string) (StockView, error) {
	answer, err := v.reads.stocks.Get(ctx, sku, 0)
	switch {
	case err != nil:
		return StockView{}, err
	case answer.Value == nil:
		return StockView{}, ErrNotFound
	}
	return *answer.Value, nil
}

// loadStock sums up the stock of a key. A product has stock, if only nothing.
func (v *Views) loadStock(ctx context.Context, key string) (stock StockView, _ []byte, found bool, err error) {
	stock.SKU = key
	if found, err = v.sumStock(&stock); err != nil || found {
		return stock, nil, found, err
	}
	home := v.homeOf(key)
	_, _, found, err = home.loadProduct(ctx, key)
	return stock, nil, found, err
}

// sumStock adds up the accounts of all lanes, and reports whether there was any.
func (v *Views) sumStock(stock *StockView) (known bool, err error) {
	var sum account
	for _, r := range v.runners {
		value, err := r.prefix(&stockProjection).read(v.db, stock.SKU)
		if errors.Is(err, pebble.ErrNotFound) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read the stock of %s: %w", stock.SKU, err)
		}
		a, err := readAccount(value)
		if err != nil {
			return false, fmt.Errorf("stock of %s in lane %d: %w", stock.SKU, r.lane, err)
		}
		known = true
		for i, field := range sum.fields() {
			*field += *a.fields()[i]
		}
	}
	*stock = sum.view(stock.SKU)
	return known, nil
}

// view returns the sum of all lanes' accounts as one. The lanes' views move on by themselves, so one may show that units
// were taken before the other shows that they were sent. What was taken was sent and what was sent was received, so
// the earlier step is counted as done.
func (a account) view(sku string) StockView {
	s := StockView{
		SKU: sku, Received: a.received, Central: a.central,
		InTransit: a.granted - a.taken + a.returned - a.reclaimed,
		Available: a.allotted, Reserved: a.reserved, Sold: a.sold,
	}
	if s.InTransit < 0 {
		s.Central, s.InTransit = s.Central+s.InTransit, 0
	}
	if s.Central < 0 {
		s.Received, s.Central = s.Received-s.Central, 0
	}
	return s
}

// Status returns how far each projection has followed each lane.
func (v *Views) Status() []ProjectionStatus {
	var statuses []ProjectionStatus
	for _, r := range v.runners {
		statuses = append(statuses, r.Status()...)
	}
	return statuses
}
