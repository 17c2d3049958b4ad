package api_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/api/lanes"
	"github.com/weirhq/weir/api/sealing"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/eventstore"
	"github.com/weirhq/weir/projections"
)

// fakeNode decides with the real domain in memory, one lane, and answers queries from the same memory. Tests lay hands
// on it: fail makes Submit fail, lag hides the newest commits from queries.
type fakeNode struct {
	mu          sync.Mutex
	fail        error
	panics      bool
	submits     int
	commit      uint64
	lag         uint64
	now         time.Time
	orders      map[domain.OrderID][]version
	timelines   map[domain.OrderID][]projections.TimelineEntry
	products    map[string]projections.ProductView
	campaigns   map[string]projections.CampaignView // by pool
	coupons     map[string]projections.CouponView
	points      map[string][]projections.PointsEntry // by user, oldest first
	uses        map[domain.Use]int64
	accounts    map[string]domain.Account
	ledger      map[[2]string]ledgerEntry
	changed     chan struct{}
	lastRequest lanes.Request
}

type version struct {
	order  domain.Order
	commit uint64
}

type ledgerEntry struct {
	fingerprint lanes.Fingerprint
	reply       *lanes.Reply
}

func newFakeNode() *fakeNode {
	return &fakeNode{
		now: time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.UTC), orders: map[domain.OrderID][]version{},
		timelines: map[domain.OrderID][]projections.TimelineEntry{},
		products:  map[string]projections.ProductView{}, accounts: map[string]domain.Account{},
		campaigns: map[string]projections.CampaignView{}, coupons: map[string]projections.CouponView{}, uses: map[domain.Use]int64{},
		points: map[string][]projections.PointsEntry{},
		ledger: map[[2]string]ledgerEntry{}, changed: make(chan struct{}),
	}
}

func (n *fakeNode) Order(id domain.OrderID) (domain.Order, bool) {
	versions := n.orders[id]
	if len(versions) == 0 {
		return domain.Order{}, false
	}
	return versions[len(versions)-1].order, true
}

func (n *fakeNode) Product(sku string) (domain.Product, bool) {
	view, ok := n.products[sku]
	return view.Product, ok
}

func (n *fakeNode) Stock(sku string) domain.Account { return n.accounts[sku] }

func (n *fakeNode) Campaign(pool string) (domain.Campaign, bool) {
	view, ok := n.campaigns[pool]
	return view.Campaign, ok
}

func (n *fakeNode) Coupon(code string) (domain.Coupon, bool) {
	view, ok := n.coupons[code]
	return view.Coupon, ok
}

func (n *fakeNode) Used(use domain.Use) int64 { return n.uses[use] }

func (n *fakeNode) KeyErased(string, domain.KeyID) bool { return false }

func (n *fakeNode) WebhookEndpoints(string) (int, bool) { return 0, false }

// Supply says that the node's lane is the only one.
func (n *fakeNode) Supply(string) domain.Supply { return domain.Supply{Lanes: 1} }

func (n *fakeNode) Submit(ctx context.Context, request lanes.Request) (*lanes.Reply, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.submits++
	n.lastRequest = request
	if n.panics {
		panic("planted")
	}
	if n.fail != nil {
		return nil, n.fail
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	command, userID := request.Command, request.UserID
	switch c := command.(type) {
	case domain.PlaceOrder:
		var entropy [10]byte
		for i := range 8 {
			entropy[9-i] = byte(n.commit >> (8 * i))
		}
		c.OrderID, c.PayBy = domain.NewOrderID(n.now, request.Partition, entropy), n.now.Add(15*time.Minute)
		command = c
	case domain.PutProduct, domain.ExpireOrder, domain.ReceiveStock, domain.PreheatStock, domain.GrantStock, domain.AllotStock,
		domain.ReturnStock, domain.ReclaimStock, domain.EraseUser, domain.PutCampaign, domain.PutCoupon:
	default: // The others are to an order that was placed.
		id, _ := domain.CommandOrderID(command)
		order, ok := n.Order(id)
		if !ok || (request.Owner != "" && order.UserID != request.Owner) {
			return nil, &domain.OrderNotFoundError{OrderID: id}
		}
		command, userID = order.Next(command), order.UserID
	}
	key := [2]string{userID, request.RequestID}
	if entry, known := n.ledger[key]; known && request.RequestID != "" {
		if entry.fingerprint != request.Fingerprint {
			return nil, &lanes.KeyReusedError{UserID: userID, RequestID: request.RequestID}
		}
		return entry.reply, nil
	}
	if request.Refusal != nil {
		return nil, request.Refusal
	}
	events, err := domain.Decide(n, command, n.now)
	if err != nil {
		return nil, err
	}
	if len(events) == 0 && request.RequestID != "" {
		if answered, remembered := domain.Answered(n, command); remembered {
			events = append(events, answered)
		}
	}
	if len(events) > 0 {
		n.commit++
	}
	reply := &lanes.Reply{Commit: n.commit, At: n.now}
	for i, event := range events {
		if i == 0 {
			reply.PartID = domain.PartOf(event)
		}
		if id, ok := domain.OrderOf(event); ok {
			order, _ := n.Order(id)
			n.orders[id] = append(n.orders[id], version{order.Evolve(event, n.now), n.commit})
			entry, _ := domain.Timeline(event, n.now)
			n.timelines[id] = append(n.timelines[id], projections.TimelineEntry{TimelineEntry: entry, Revision: projections.Revision{Commit: n.commit}})
		}
		for sku := range domain.SKUs(event) {
			n.accounts[sku] = n.accounts[sku].Evolve(event, sku)
		}
		for use, units := range domain.Uses(event) {
			n.uses[use] += units
		}
		switch event := event.(type) {
		case domain.ProductPut:
			n.products[event.SKU] = projections.ProductView{
				Product: domain.Product{}.Evolve(event, n.now), Revision: projections.Revision{Commit: n.commit},
			}
		case domain.CampaignPut:
			n.campaigns[event.Pool] = projections.CampaignView{
				Campaign: domain.Campaign{}.Evolve(event, n.now), Revision: projections.Revision{Commit: n.commit},
			}
		case domain.CouponPut:
			n.coupons[event.Code] = projections.CouponView{
				Coupon: domain.Coupon{}.Evolve(event, n.now), Revision: projections.Revision{Commit: n.commit},
			}
		case domain.PointsAwarded:
			n.addPoints(event.UserID, event.OrderID, event.PaymentID, event.Points)
		case domain.PointsTakenBack:
			n.addPoints(event.UserID, event.OrderID, event.RefundID, -event.Points)
		case domain.StockReceived:
			reply.Received = event
		case domain.StockGranted:
			reply.Granted = event
		case domain.UserErased:
			reply.Erased = event
		default:
		}
	}
	switch c := command.(type) {
	case domain.PlaceOrder:
		reply.Order, _ = n.Order(c.OrderID)
		reply.OrderCommit = n.commit
	case domain.PutProduct:
		reply.Product, reply.Commit = n.products[c.SKU].Product, n.products[c.SKU].Revision.Commit
	case domain.PutCampaign:
		view := n.campaigns[domain.CampaignPool(c.SKU, c.CampaignID)]
		reply.Campaign, reply.Commit = view.Campaign, view.Revision.Commit
	case domain.PutCoupon:
		reply.Coupon, reply.Commit = n.coupons[c.Code].Coupon, n.coupons[c.Code].Revision.Commit
	case domain.ReceiveStock, domain.PreheatStock, domain.ExpireOrder, domain.GrantStock, domain.AllotStock, domain.ReturnStock,
		domain.ReclaimStock, domain.EraseUser:
	default:
		id, _ := domain.CommandOrderID(command)
		versions := n.orders[id]
		newest := versions[len(versions)-1]
		reply.Order, reply.OrderCommit, reply.Commit = newest.order, newest.commit, newest.commit
	}
	if request.RequestID != "" {
		n.ledger[key] = ledgerEntry{request.Fingerprint, reply}
	}
	n.now = n.now.Add(time.Millisecond)
	close(n.changed)
	n.changed = make(chan struct{})
	return reply, nil
}

func (n *fakeNode) addPoints(userID string, order domain.OrderID, part string, points int64) {
	next := projections.PointsEntry{
		Number: uint64(len(n.points[userID]) + 1), Points: points, Balance: points, At: n.now, Commit: n.commit, OrderID: order, Part: part,
	}
	if next.Number > 1 {
		next.Balance += n.points[userID][next.Number-2].Balance
	}
	n.points[userID] = append(n.points[userID], next)
}

// head returns the number of the newest commit.
func (n *fakeNode) head() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.commit
}

func (n *fakeNode) submitted() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.submits
}

func (n *fakeNode) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
}

// fakeViews answers queries of a fakeNode.
type fakeViews struct{ *fakeNode }

func (v fakeViews) freshness() projections.Freshness {
	f := projections.Freshness{State: projections.StateFresh, Commit: v.commit - v.lag, LagCommits: v.lag, AsOf: v.now}
	if v.lag > 0 {
		f.State = projections.StateCatchingUp
	}
	return f
}

// order returns the newest version that the view has.
func (v fakeViews) order(id domain.OrderID) (projections.OrderView, bool) {
	versions := v.orders[id]
	for i := len(versions) - 1; i >= 0; i-- {
		if versions[i].commit <= v.commit-v.lag {
			return projections.OrderView{Order: versions[i].order, Revision: projections.Revision{Commit: versions[i].commit}}, true
		}
	}
	return projections.OrderView{}, false
}

func (v fakeViews) missing(min projections.Min) error {
	if v.commit-v.lag < min.Commit {
		return projections.ErrBehind
	}
	return projections.ErrNotFound
}

func (v fakeViews) OrderOf(_ context.Context, id domain.OrderID, userID string, min projections.Min) (projections.OrderView, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	view, ok := v.order(id)
	if !ok || (userID != "" && view.Order.UserID != userID) {
		return view, v.freshness(), v.missing(min)
	}
	return view, v.freshness(), nil
}

func (v fakeViews) Orders(_ context.Context, query projections.OrdersQuery, _ projections.Min) (projections.OrdersPage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var page projections.OrdersPage
	binding := "orders/" + query.UserID + "/" + query.Status.String() + "/"
	after, ok := openToken(binding, query.PageToken)
	if !ok {
		return page, v.freshness(), projections.ErrBadPageToken
	}
	if query.PageSize == 0 {
		query.PageSize = projections.OrdersPageDefault
	}
	var ids []domain.OrderID
	for id := range v.orders {
		ids = append(ids, id)
	}
	for len(ids) > 0 {
		newest := 0
		for i := range ids {
			if ids[i].String() > ids[newest].String() {
				newest = i
			}
		}
		id := ids[newest]
		ids = append(ids[:newest], ids[newest+1:]...)
		view, ok := v.order(id)
		if !ok || view.Order.UserID != query.UserID || (query.Status != 0 && view.Order.Status != query.Status) ||
			(after != "" && id.String() >= after) {
			continue
		}
		if len(page.Orders) == query.PageSize {
			page.Next = sealToken(binding, page.Orders[len(page.Orders)-1].Order.ID.String())
			break
		}
		page.Orders = append(page.Orders, view)
	}
	return page, v.freshness(), nil
}

func sealToken(binding, after string) string {
	return fmt.Sprintf("%x%s", sha256.Sum256([]byte(binding+after)), after)
}

func openToken(binding, token string) (after string, ok bool) {
	if token == "" {
		return "", true
	}
	after = token[min(len(token), 2*sha256.Size):]
	return after, after != "" && token == sealToken(binding, after)
}

// pageOf returns a page of a list.
func pageOf[T any](binding, token string, size, sizeDefault int, all []T) (page []T, next string, err error) {
	after, ok := openToken(binding, token)
	if !ok {
		return nil, "", projections.ErrBadPageToken
	}
	if size == 0 {
		size = sizeDefault
	}
	from, _ := strconv.Atoi(after) // Nobody but sealToken wrote it.
	if page = all[min(from, len(all)):]; len(page) > size {
		page, next = page[:size], sealToken(binding, strconv.Itoa(from+size))
	}
	return page, next, nil
}

func (v fakeViews) Product(_ context.Context, sku string, min projections.Min) (projections.ProductView, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	view, ok := v.products[sku]
	if !ok {
		return view, v.freshness(), v.missing(min)
	}
	return view, v.freshness(), nil
}

func (v fakeViews) Products(_ context.Context, query projections.ProductsQuery, _ projections.Min) (projections.ProductsPage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var page projections.ProductsPage
	after, ok := openToken("products/", query.PageToken)
	if !ok {
		return page, v.freshness(), projections.ErrBadPageToken
	}
	if query.PageSize == 0 {
		query.PageSize = projections.ProductsPageDefault
	}
	for {
		next := ""
		for sku := range v.products {
			if sku > after && (next == "" || sku < next) {
				next = sku
			}
		}
		if next == "" {
			return page, v.freshness(), nil
		}
		if len(page.Products) == query.PageSize {
			page.Next = sealToken("products/", after)
			return page, v.freshness(), nil
		}
		page.Products = append(page.Products, v.products[next])
		after = next
	}
}

func (v fakeViews) Stock(_ context.Context, sku string, min projections.Min) (projections.StockView, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.products[sku]; !ok {
		return projections.StockView{}, v.freshness(), v.missing(min)
	}
	a := v.accounts[sku]
	return projections.StockView{SKU: sku, Received: a.Received, Central: a.Central, Available: a.Allotted, Reserved: a.Reserved, Sold: a.Sold}, v.freshness(), nil
}

func (v fakeViews) stock(key string) projections.StockView {
	a := v.accounts[key]
	return projections.StockView{SKU: key, Received: a.Received, Central: a.Central, Available: a.Allotted, Reserved: a.Reserved, Sold: a.Sold}
}

func (v fakeViews) Campaign(_ context.Context, campaignID, sku string, min projections.Min) (projections.CampaignView, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var found []projections.CampaignView
	for pool, view := range v.campaigns {
		if domain.CampaignOf(pool) == campaignID && (sku == "" || domain.HomeKey(pool) == sku) {
			view.Stock = v.stock(pool)
			found = append(found, view)
		}
	}
	switch len(found) {
	case 0:
		return projections.CampaignView{}, v.freshness(), v.missing(min)
	case 1:
		return found[0], v.freshness(), nil
	default:
		return projections.CampaignView{}, v.freshness(), projections.ErrSeveral
	}
}

func (v fakeViews) Campaigns(_ context.Context, query projections.KeysQuery, _ projections.Min) (projections.CampaignsPage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var page projections.CampaignsPage
	pools, next, err := pageOf("campaigns/", query.PageToken, query.PageSize, len(v.campaigns), slices.Sorted(maps.Keys(v.campaigns)))
	for _, pool := range pools {
		view := v.campaigns[pool]
		view.Stock = v.stock(pool)
		page.Campaigns = append(page.Campaigns, view)
	}
	page.Next = next
	return page, v.freshness(), err
}

func (v fakeViews) Coupon(_ context.Context, code string, min projections.Min) (projections.CouponView, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	view, ok := v.coupons[code]
	if !ok {
		return view, v.freshness(), v.missing(min)
	}
	view.Stock = v.stock(domain.CouponPool(code))
	return view, v.freshness(), nil
}

func (v fakeViews) Coupons(_ context.Context, query projections.KeysQuery, _ projections.Min) (projections.CouponsPage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var page projections.CouponsPage
	codes, next, err := pageOf("coupons/", query.PageToken, query.PageSize, len(v.coupons), slices.Sorted(maps.Keys(v.coupons)))
	for _, code := range codes {
		view := v.coupons[code]
		view.Stock = v.stock(domain.CouponPool(code))
		page.Coupons = append(page.Coupons, view)
	}
	page.Next = next
	return page, v.freshness(), err
}

func (v fakeViews) Points(_ context.Context, query projections.PointsQuery, _ projections.Min) (projections.PointsPage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := slices.Clone(v.points[query.UserID])
	slices.Reverse(all)
	var page projections.PointsPage
	if len(all) > 0 {
		page.Balance, page.Revision.Commit = all[0].Balance, all[0].Commit
	}
	var err error
	page.Entries, page.Next, err = pageOf("points/"+query.UserID+"/", query.PageToken, query.PageSize, projections.PointsPageDefault, all)
	return page, v.freshness(), err
}

func (v fakeViews) Timeline(_ context.Context, query projections.TimelineQuery, min projections.Min) (projections.TimelinePage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var page projections.TimelinePage
	binding := "timeline/" + query.OrderID.String() + "/"
	after, ok := openToken(binding, query.PageToken)
	if !ok {
		return page, v.freshness(), projections.ErrBadPageToken
	}
	view, ok := v.order(query.OrderID)
	if !ok || (query.UserID != "" && view.Order.UserID != query.UserID) {
		return page, v.freshness(), v.missing(min)
	}
	from, _ := strconv.Atoi(after)
	page.Entries = v.timelines[query.OrderID][from:]
	if query.PageSize > 0 && len(page.Entries) > query.PageSize {
		page.Entries = page.Entries[:query.PageSize]
		page.Next = sealToken(binding, strconv.Itoa(from+query.PageSize))
	}
	return page, v.freshness(), nil
}

// Board has a row for each campaign, without a tally; the real view has its own tests.
func (v fakeViews) Board(_ context.Context, query projections.BoardQuery, _ projections.Min) (page projections.BoardPage, _ projections.Freshness, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	pools := slices.DeleteFunc(slices.Sorted(maps.Keys(v.campaigns)), func(pool string) bool {
		return query.CampaignID != "" && domain.CampaignOf(pool) != query.CampaignID
	})
	pools, page.Next, err = pageOf("board/"+query.CampaignID+"/", query.PageToken, query.PageSize, max(len(v.campaigns), 1), pools)
	if err == nil && len(pools) == 0 && query.CampaignID != "" && query.PageToken == "" {
		err = projections.ErrNotFound
	}
	for _, pool := range pools {
		view := v.campaigns[pool]
		view.Stock = v.stock(pool)
		page.Rows = append(page.Rows, projections.NewBoardRow(view, projections.Tally{}, query.Now))
	}
	return page, v.freshness(), err
}

// Sales has none; the real view has its own tests.
func (v fakeViews) Sales(_ context.Context, query projections.SalesQuery, _ projections.Min) ([]projections.SalesRow, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if span := query.To.Sub(query.From); span <= 0 || span > 24*time.Hour {
		return nil, v.freshness(), projections.ErrSalesRange
	}
	return nil, v.freshness(), nil
}

// SearchOrders has all orders on one page, those of one millisecond in any order; the real view has its own tests.
func (v fakeViews) SearchOrders(_ context.Context, query projections.SearchQuery, _ projections.Min) (projections.OrdersPage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []projections.OrderView
	for id := range v.orders {
		if view, _ := v.order(id); query.UserID == "" || view.Order.UserID == query.UserID {
			all = append(all, view)
		}
	}
	slices.SortFunc(all, func(a, b projections.OrderView) int { return bytes.Compare(b.Order.ID[:], a.Order.ID[:]) })
	var page projections.OrdersPage
	var err error
	page.Orders, page.Next, err = pageOf("search/"+query.UserID+"/", query.PageToken, query.PageSize, projections.OrdersPageDefault, all)
	return page, v.freshness(), err
}

// NeedingAttention has payments whose outcome is not known, all on one page; the real view has its own tests.
func (v fakeViews) NeedingAttention(_ context.Context, query projections.AttentionQuery, _ projections.Min) (projections.AttentionPage, projections.Freshness, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var page projections.AttentionPage
	if query.PageToken != "" {
		return page, v.freshness(), projections.ErrBadPageToken
	}
	for id := range v.orders {
		view, _ := v.order(id)
		for _, payment := range view.Order.Payments {
			if payment.State == domain.PayUnknown {
				page.Items = append(page.Items, projections.Attention{
					Kind: projections.AttentionUnknown, OrderID: id, UserID: view.Order.UserID, Payment: payment, Since: view.Order.UpdatedAt,
				})
			}
		}
	}
	return page, v.freshness(), nil
}

func (v fakeViews) OrderAsOf(ctx context.Context, id domain.OrderID, userID string, moment projections.AsOf, min projections.Min) (projections.OrderView, projections.Freshness, error) {
	view, freshness, err := v.OrderOf(ctx, id, userID, min)
	if err == nil && (moment.Commit != 0 && view.Revision.Commit > moment.Commit || !moment.At.IsZero() && view.Order.UpdatedAt.After(moment.At)) {
		err = projections.ErrNotFound // It knows the newest state alone; the real view has its own tests.
	}
	return view, freshness, err
}

// WatchUser is not faked: api/realnode_test.go has the real one.
func (v fakeViews) WatchUser(context.Context, projections.UserWatch, projections.Min, func() error, func(projections.UserChange, projections.Freshness) error) error {
	return projections.ErrBadPageToken
}

// WatchStock is not faked either.
func (v fakeViews) WatchStock(context.Context, projections.StockWatch, projections.Min, func() error, func(projections.StockChange, projections.Freshness) error) error {
	return projections.ErrBadPageToken
}

func (v fakeViews) WatchOrder(ctx context.Context, query projections.OrderWatch, min projections.Min, f func(projections.OrderView, projections.Freshness) error) error {
	id, userID, seen := query.OrderID, query.UserID, query.After
	for {
		v.mu.Lock()
		view, ok := v.order(id)
		freshness, changed := v.freshness(), v.changed
		missing := v.missing(min)
		v.mu.Unlock()
		if !ok || (userID != "" && view.Order.UserID != userID) {
			return missing
		}
		if view.Revision.Commit > seen {
			seen = view.Revision.Commit
			if err := f(view, freshness); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// node is a served API over a fakeNode.
type node struct {
	*fakeNode
	t       testing.TB
	handler *api.Handler
	server  *http.Server
	key     identity.SigningKey
	keys    *sealing.MemoryKeyStore
	sealer  *sealing.Sealer
	url     string
	logs    *logs
}

// logs collects what the API logs.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// serve starts an API over loopback.
func serve(t testing.TB, change func(*api.Options)) *node {
	t.Helper()
	n := &node{t: t, fakeNode: newFakeNode(), keys: &sealing.MemoryKeyStore{}, logs: &logs{}}
	var err error
	if n.key, err = identity.OpenOrCreateSigningKey(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	verifier, err := identity.NewVerifier(identity.VerifierOptions{Keys: n.key.Keys()})
	if err != nil {
		t.Fatal(err)
	}
	if n.sealer, err = sealing.New(sealing.Options{Store: n.keys, MasterKey: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	options := api.Options{
		Commands: n.fakeNode, Views: fakeViews{n.fakeNode}, Verifier: verifier, Sealer: n.sealer,
		Topology: eventstore.Topology{Lanes: 1}, PaymentProviders: []string{"sandbox", "other"},
		Logger: slog.New(slog.NewTextHandler(n.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&options)
	}
	n.handler = api.NewHandler(options)
	n.server = api.NewServer(n.handler)
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.url = "http://" + listener.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = n.server.Serve(listener) }()
	t.Cleanup(func() { _ = n.server.Close(); <-done })
	return n
}

func (n *node) token(subject string, scopes identity.Scopes) string {
	n.t.Helper()
	token, err := identity.Mint(n.key, subject, scopes, time.Now(), time.Hour)
	if err != nil {
		n.t.Fatal(err)
	}
	return token
}
