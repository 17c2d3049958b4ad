package projections

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/domain/stored"
	"github.com/weirhq/weir/eventstore"
)

// A shop writes the log of one lane as a lane's writer would, and keeps a model of what views must say.
type shop struct {
	tb     testing.TB
	seed   uint64
	random *rand.Rand
	lane   uint32
	lanes  uint32
	log    *eventstore.MemoryLog
	last   eventstore.Position
	now    time.Time

	users    []string
	skus     []string
	orders   map[domain.OrderID][]OrderView // an order after each of its changes
	byUser   map[string][]domain.OrderID    // oldest first
	open     []domain.OrderID
	next     []domain.Event // what one decision led to and is still to be committed
	products map[string]ProductView
	accounts map[string]domain.Account
	// By pool and by code.
	campaigns map[string]CampaignView
	coupons   map[string]CouponView
}

// seedOf returns a fresh seed and says what it is if the test fails.
func seedOf(tb testing.TB) uint64 {
	seed := rand.Uint64()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("seed %d", seed)
		}
	})
	return seed
}

func newShop(tb testing.TB, seed uint64, lane, lanes uint32) *shop {
	s := &shop{
		tb: tb, seed: seed, random: rand.New(rand.NewPCG(seed, uint64(lane))), lane: lane, lanes: lanes,
		log: eventstore.OpenMemoryLog(lane, lanes), last: eventstore.Genesis(lane, lanes), now: time.Unix(1_700_000_000, 0).UTC(),
		orders: make(map[domain.OrderID][]OrderView), byUser: make(map[string][]domain.OrderID),
		products: make(map[string]ProductView), accounts: make(map[string]domain.Account),
		campaigns: make(map[string]CampaignView), coupons: make(map[string]CouponView),
	}
	topology := eventstore.Topology{Lanes: lanes}
	for i := 0; len(s.users) < 5; i++ {
		if user := fmt.Sprintf("user-%d", i); topology.LaneOf(eventstore.PartitionOf(user)) == lane {
			s.users = append(s.users, user)
		}
	}
	for i := 0; len(s.skus) < 4; i++ {
		if sku := fmt.Sprintf("sku-%d", i); topology.LaneOf(eventstore.PartitionOf(sku)) == lane {
			s.skus = append(s.skus, sku)
		}
	}
	return s
}

// commit appends one commit and returns it as a writer offers it.
func (s *shop) commit(events ...domain.Event) (*eventstore.Commit, eventstore.Position) {
	next := 0
	return s.commitEach(len(events), func() domain.Event { next++; return events[next-1] })
}

// commitEach appends one commit of events; each is had after the one before it has taken effect on the model.
func (s *shop) commitEach(count int, next func() domain.Event) (*eventstore.Commit, eventstore.Position) {
	s.now = s.now.Add(time.Duration(s.random.IntN(3)) * time.Millisecond)
	commit := &eventstore.Commit{
		Lane: s.lane, Number: s.last.Number + 1, Epoch: 1, Time: s.now, PrevHash: s.last.Hash,
	}
	for range count {
		event := next()
		commit.Events = append(commit.Events, s.envelope(event))
		s.evolve(event, commit.Number)
	}
	return commit, s.append(commit)
}

// append appends a commit as it is.
func (s *shop) append(commit *eventstore.Commit) eventstore.Position {
	record := eventstore.EncodeCommit(commit)
	if err := s.log.Append(record).Wait(s.tb.Context()); err != nil {
		s.tb.Fatalf("append commit %d: %v", commit.Number, err)
	}
	s.last = eventstore.Position{Number: record.Number, Hash: record.Hash}
	return s.last
}

func (s *shop) envelope(event domain.Event) eventstore.Event {
	typeName, version, aggregateID, payload := stored.Encode(event)
	e := eventstore.Event{AggregateID: aggregateID, Type: typeName, Version: version, Payload: payload, UserID: "operator"}
	if placed, ok := event.(domain.OrderPlaced); ok {
		e.UserID = placed.UserID
	} else if id, ok := domain.OrderOf(event); ok {
		e.UserID = s.orders[id][0].Order.UserID
	}
	e.Partition = eventstore.PartitionOf(e.UserID)
	return e
}

// evolve keeps the model.
func (s *shop) evolve(event domain.Event, number uint64) {
	revision := Revision{Lane: s.lane, Commit: number}
	if id, ok := domain.OrderOf(event); ok {
		history := s.orders[id]
		var order domain.Order
		if len(history) > 0 {
			order = history[len(history)-1].Order
		} else if placed, ok := event.(domain.OrderPlaced); ok {
			s.byUser[placed.UserID] = append(s.byUser[placed.UserID], id)
		}
		s.orders[id] = append(history, OrderView{Order: order.Evolve(event, s.now), Revision: revision})
	}
	if put, ok := event.(domain.ProductPut); ok {
		s.products[put.SKU] = ProductView{Product: domain.Product{}.Evolve(put, s.now), Revision: revision}
	}
	if put, ok := event.(domain.CampaignPut); ok {
		s.campaigns[put.Pool] = CampaignView{Campaign: domain.Campaign{}.Evolve(put, s.now), Revision: revision}
	}
	if put, ok := event.(domain.CouponPut); ok {
		s.coupons[put.Code] = CouponView{Coupon: domain.Coupon{}.Evolve(put, s.now), Revision: revision}
	}
	for sku := range domain.SKUs(event) {
		s.accounts[sku] = s.accounts[sku].Evolve(event, sku)
	}
}

// steps lets so much happen.
func (s *shop) steps(count int) {
	for range count {
		s.step()
	}
}

// step appends a commit of up to 4 random events; the first ones open the shop.
func (s *shop) step() (*eventstore.Commit, eventstore.Position) {
	if s.last.Number == 0 {
		return s.openLane()
	}
	if s.last.Number == 1 {
		var events []domain.Event
		for _, sku := range s.skus {
			events = append(events,
				domain.ProductPut{SKU: sku, Title: "Title of " + sku, Price: domain.Money{Currency: "EUR", Minor: 1299}},
				domain.StockReceived{SKU: sku, Units: 1_000_000_000, ReceivedTotal: 1_000_000_000},
				domain.StockGranted{SKU: sku, ToLane: s.lane, GrantNumber: 1, Units: 900_000_000},
				domain.StockAllotted{SKU: sku, HomeLane: s.lane, GrantNumber: 1, Units: 900_000_000},
			)
		}
		for _, sku := range s.skus[:2] {
			pool, coupon := domain.CampaignPool(sku, "flash"), domain.CouponPool(sku)
			events = append(events,
				domain.PoolFilled{Pool: pool, Units: 10_000_000},
				domain.StockGranted{SKU: pool, ToLane: s.lane, GrantNumber: 1, Units: 9_000_000},
				domain.StockAllotted{SKU: pool, HomeLane: s.lane, GrantNumber: 1, Units: 9_000_000},
				domain.StockReceived{SKU: coupon, Units: 1_000_000, ReceivedTotal: 1_000_000},
				domain.StockGranted{SKU: coupon, ToLane: s.lane, GrantNumber: 1, Units: 1_000_000},
				domain.StockAllotted{SKU: coupon, HomeLane: s.lane, GrantNumber: 1, Units: 1_000_000},
			)
		}
		return s.commit(events...)
	}
	return s.commitEach(1+s.random.IntN(4), s.event)
}

// event returns what may happen next. Ids of one millisecond are told apart by their entropy.
func (s *shop) event() domain.Event {
	if len(s.next) == 0 && s.random.IntN(3) == 0 && len(s.orders) > 0 {
		s.next = s.live()
	}
	if len(s.next) > 0 {
		event := s.next[0]
		s.next = s.next[1:]
		return event
	}
	if len(s.open) > 0 && s.random.IntN(3) == 0 {
		at := s.random.IntN(len(s.open))
		id := s.open[at]
		s.open = append(s.open[:at], s.open[at+1:]...)
		history := s.orders[id]
		order := history[len(history)-1].Order
		if order.Status != domain.StatusPendingPayment {
			return s.place(order.UserID, 0)
		}
		var released []domain.Release
		for _, line := range order.Lines {
			key := line.SKU
			if order.Pool != "" {
				key = order.Pool
			}
			released = append(released, domain.Release{SKU: key, Units: line.Units})
		}
		if order.CouponPool != "" {
			released = append(released, domain.Release{SKU: order.CouponPool, Units: 1})
		}
		if s.random.IntN(2) == 0 {
			return domain.OrderExpired{OrderID: id, UserID: order.UserID, Released: released}
		}
		return domain.OrderCancelled{OrderID: id, UserID: order.UserID, Reason: "changed my mind", By: order.UserID, Released: released}
	}
	if s.random.IntN(20) == 0 {
		sku := s.skus[s.random.IntN(len(s.skus))]
		return domain.ProductPut{SKU: sku, Title: fmt.Sprint("Title ", s.random.IntN(100)), Price: domain.Money{Currency: "EUR", Minor: s.random.Int64N(5000)}}
	}
	switch s.random.IntN(20) {
	case 0:
		pool := domain.CampaignPool(s.skus[s.random.IntN(2)], "flash")
		return domain.CampaignPut{
			Pool: pool, Price: domain.Money{Currency: "EUR", Minor: s.random.Int64N(500)}, OpensAt: s.now, ClosesAt: s.now.Add(time.Hour), Units: 9,
		}
	case 1:
		return domain.PoolFilled{Pool: domain.CampaignPool(s.skus[s.random.IntN(2)], "flash"), Units: 1 + s.random.Int64N(9)}
	case 2:
		return domain.PoolDrained{Pool: domain.CampaignPool(s.skus[s.random.IntN(2)], "flash"), Units: 1}
	case 3:
		return domain.CouponPut{Code: s.skus[s.random.IntN(2)], Terms: domain.CouponTerms{Kind: domain.CouponPercentage, RateBps: 1 + s.random.Int64N(99), UsesMax: 9}}
	case 4:
		placed := s.place(s.users[s.random.IntN(len(s.users))], s.random.IntN(2))
		placed.Pool = domain.CampaignPool(placed.Lines[0].SKU, "flash")
		placed.CouponCode, placed.CouponPool = s.skus[0], domain.CouponPool(s.skus[0])
		s.open = append(s.open, placed.OrderID)
		return placed
	}
	placed := s.place(s.users[s.random.IntN(len(s.users))], s.random.Perm(len(s.skus))[:1+s.random.IntN(2)]...)
	s.open = append(s.open, placed.OrderID)
	return placed
}

// livesMax is how many orders of a user live on; the others stay as they were placed, or end.
const livesMax = 8

// live takes an order a step further in its life, and returns what came of it.
func (s *shop) live() []domain.Event {
	ids := s.byUser[s.users[s.random.IntN(len(s.users))]]
	if len(ids) == 0 {
		return nil
	}
	id := ids[s.random.IntN(min(len(ids), livesMax))]
	order, _ := s.Order(id)
	payment, refund := "", ""
	if count := len(order.Payments); count > 0 {
		payment = order.Payments[count-1].ID
	}
	if count := len(order.Refunds); count > 0 {
		refund = order.Refunds[count-1].ID
	}
	result := func(result domain.PaymentResult) domain.Command {
		return domain.RecordPaymentResult{OrderID: id, PaymentID: payment, Result: result, Amount: order.Total}
	}
	var refunded domain.Money
	if count := len(order.Refunds); count > 0 {
		refunded = order.Refunds[count-1].Amount
	}
	commands := []domain.Command{
		domain.StartPayment{OrderID: id, Provider: "sandbox", Method: "card", By: order.UserID},
		result(domain.ResultAuthorized),
		domain.CapturePayment{OrderID: id},
		result(domain.ResultCaptured), result(domain.ResultDeclined), result(domain.ResultUnknown),
		domain.VoidPayment{OrderID: id},
		result(domain.ResultVoided),
		domain.CancelOrder{OrderID: id},
		domain.RefundPayment{OrderID: id, Amount: domain.Money{Currency: "EUR", Minor: 100}},
		domain.RecordRefundResult{OrderID: id, RefundID: refund, Succeeded: true, Amount: refunded},
		domain.RecordRefundResult{OrderID: id, RefundID: refund, Code: "closed"},
		domain.ShipItems{OrderID: id, Lines: []domain.LineRequest{{SKU: order.Lines[0].SKU, Units: 1}}},
		domain.ShipItems{OrderID: id},
		domain.ConfirmDelivery{OrderID: id, ShipmentID: domain.ShipmentID(id, len(order.Shipments))},
		domain.RequestReturn{OrderID: id},
		domain.ReceiveReturn{OrderID: id, ReturnID: domain.ReturnID(id, len(order.Returns)), Restock: []domain.LineRequest{{SKU: order.Lines[0].SKU, Units: 1}}},
		domain.AddNote{OrderID: id, By: "clerk", Sealed: []byte{1}},
		domain.AwardPoints{OrderID: id, PaymentID: payment, PerMajor: 1},
		domain.TakeBackPoints{OrderID: id, RefundID: refund},
	}
	if s.random.IntN(2) == 0 { // Straight on, or no order comes far.
		commands = []domain.Command{commands[0], commands[1], commands[2], commands[3], commands[12], commands[14], commands[15], commands[16]}
	}
	for range commands {
		events, err := domain.Decide(s, order.Next(commands[s.random.IntN(len(commands))]), s.now)
		if err == nil && len(events) > 0 {
			return events
		}
	}
	return nil
}

// Order implements domain.State.
func (s *shop) Order(id domain.OrderID) (domain.Order, bool) {
	history := s.orders[id]
	if len(history) == 0 {
		return domain.Order{}, false
	}
	return history[len(history)-1].Order, true
}

// Product implements domain.State.
func (s *shop) Product(sku string) (domain.Product, bool) {
	view, found := s.products[sku]
	return view.Product, found
}

// Stock implements domain.State.
func (s *shop) Stock(sku string) domain.Account { return s.accounts[sku] }

// Campaign implements domain.State.
func (s *shop) Campaign(pool string) (domain.Campaign, bool) {
	view, found := s.campaigns[pool]
	return view.Campaign, found
}

// Coupon implements domain.State.
func (s *shop) Coupon(code string) (domain.Coupon, bool) {
	view, found := s.coupons[code]
	return view.Coupon, found
}

// Used implements domain.State. The shop's campaigns and coupons have no limit per user.
func (s *shop) Used(domain.Use) int64 { return 0 }

// Supply implements domain.State.
func (s *shop) Supply(string) domain.Supply { return domain.Supply{Home: s.lane, Lanes: s.lanes} }

// KeyErased implements domain.State.
func (s *shop) KeyErased(string, domain.KeyID) bool { return false }

// WebhookEndpoints implements domain.State.
func (s *shop) WebhookEndpoints(string) (int, bool) { return 0, false }

func (s *shop) place(user string, skus ...int) domain.OrderPlaced {
	var entropy [10]byte
	binary.BigEndian.PutUint64(entropy[2:], s.random.Uint64())
	placed := domain.OrderPlaced{
		OrderID: domain.NewOrderID(s.now.Add(time.Millisecond), eventstore.PartitionOf(user), entropy),
		UserID:  user, PayBy: s.now.Add(15 * time.Minute), Total: domain.Money{Currency: "EUR"},
	}
	for _, i := range skus {
		units := 1 + s.random.Int64N(3)
		placed.Lines = append(placed.Lines, domain.Line{SKU: s.skus[i], Units: units, Title: "Title of " + s.skus[i], PriceMinor: 1299})
		placed.Total.Minor += units * 1299
	}
	return placed
}

// openLane appends the fence that a writer begins with.
func (s *shop) openLane() (*eventstore.Commit, eventstore.Position) {
	s.now = s.now.Add(time.Millisecond)
	commit := &eventstore.Commit{
		Lane: s.lane, Number: s.last.Number + 1, Epoch: s.last.Number + 1, Time: s.now, PrevHash: s.last.Hash,
		Events: []eventstore.Event{{Type: eventstore.TypeLaneOpened, Version: 1}},
	}
	return commit, s.append(commit)
}

// A node is a store with runners and views over shops' logs.
type node struct {
	tb      testing.TB
	fs      vfs.FS
	store   *Store
	runners []*Runner
	views   *Views
	stop    func() []error
}

var testPageKey = []byte("a key for tests only")

// takenIn returns a shop of one lane in which so much has happened, and where a node keeps its views that took all of it in and was stopped.
func takenIn(tb testing.TB, steps int) (*shop, *vfs.MemFS) {
	tb.Helper()
	s, fs := newShop(tb, seedOf(tb), 0, 1), vfs.NewMem()
	s.steps(steps)
	n := startNode(tb, fs, s.log)
	n.reach(s)
	n.stop()
	return s, fs
}

// startNode opens the store in fs and runs the views of all lanes. The caller stops it, or the end of the test.
func startNode(tb testing.TB, fs vfs.FS, logs ...eventstore.Log) *node {
	tb.Helper()
	n := openNode(tb, fs, logs...)
	ctx, cancel := context.WithCancel(tb.Context())
	ended := make(chan error, len(n.runners))
	for _, r := range n.runners {
		go func() { ended <- r.Run(ctx) }()
	}
	stopped := false
	n.stop = func() (errs []error) {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		for range n.runners {
			if err := <-ended; err != nil {
				errs = append(errs, err)
			}
		}
		if err := n.store.Close(); err != nil {
			errs = append(errs, err)
		}
		return errs
	}
	tb.Cleanup(func() { n.stop() })
	return n
}

// openNode opens the store in fs and the views, and runs nothing. The caller closes the store.
func openNode(tb testing.TB, fs vfs.FS, logs ...eventstore.Log) *node {
	tb.Helper()
	n := &node{tb: tb, fs: fs}
	var err error
	n.store, err = OpenStore("store", StoreOptions{FS: fs, BlockCacheBytes: 1 << 20})
	if err != nil {
		tb.Fatal(err)
	}
	lanes := uint32(len(logs))
	for lane, log := range logs {
		r, err := NewRunner(RunnerOptions{
			Store: n.store, Lane: uint32(lane), Lanes: lanes, Log: log, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			tb.Fatal(err)
		}
		n.runners = append(n.runners, r)
	}
	n.views, err = NewViews(ViewsOptions{Store: n.store, Topology: eventstore.Topology{Lanes: lanes}, Runners: n.runners, PageKey: testPageKey})
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

// patience bounds the waits of tests; only a failing test waits as long.
const patience = 30 * time.Second

// reach waits until the views of a shop's lane hold everything it has written.
func (n *node) reach(s *shop) {
	n.tb.Helper()
	reached, err := n.runners[s.lane].await(n.tb.Context(), s.last.Number, patience)
	if err != nil || !reached {
		n.tb.Fatalf("seed %d: lane %d is at %d, want %d (%v)", s.seed, s.lane, n.runners[s.lane].Position().Number, s.last.Number, err)
	}
}

// check compares everything that the views say with the shop's model.
func (n *node) check(s *shop) {
	n.tb.Helper()
	ctx := n.tb.Context()
	at := Min{Lane: s.lane, Commit: s.last.Number, Wait: patience}
	for id, history := range s.orders {
		want := history[len(history)-1]
		got, fresh, err := n.views.Order(ctx, id, at)
		if err != nil || !got.Order.Equal(want.Order) || got.Revision != want.Revision || fresh.Commit < s.last.Number {
			n.tb.Fatalf("seed %d, commit %d: order %s: got %+v, %v, %v, want %+v", s.seed, s.last.Number, id, got, fresh, err, want)
		}
	}
	for _, user := range s.users {
		for _, status := range []domain.OrderStatus{
			0, domain.StatusPendingPayment, domain.StatusCancelled, domain.StatusExpired, domain.StatusPaid, domain.StatusPartiallyShipped,
			domain.StatusShipped, domain.StatusDelivered, domain.StatusReturned, domain.StatusAuthorized, domain.StatusPaymentProcessing,
		} {
			got := n.list(user, status, 7)
			var want []domain.OrderID
			for _, id := range newestFirst(s.byUser[user]) {
				if history := s.orders[id]; status == 0 || history[len(history)-1].Order.Status == status {
					want = append(want, id)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				n.tb.Fatalf("seed %d, commit %d: orders of %s with status %v:\ngot  %v\nwant %v", s.seed, s.last.Number, user, status, got, want)
			}
		}
	}
	for sku, want := range s.products {
		got, _, err := n.views.Product(ctx, sku, at)
		if err != nil || got != want {
			n.tb.Fatalf("seed %d, commit %d: product %s: got %+v, %v, want %+v", s.seed, s.last.Number, sku, got, err, want)
		}
	}
}

// checkCampaigns compares campaigns and coupons, and where their units are, with the models of all lanes' shops.
func (n *node) checkCampaigns(shops ...*shop) {
	n.tb.Helper()
	ctx := n.tb.Context()
	stock := func(key string) StockView {
		var sum account
		for _, s := range shops {
			a := s.accounts[key]
			sum.received += a.Received
			sum.central += a.Central
			sum.allotted += a.Allotted
			sum.reserved += a.Reserved
			sum.sold += a.Sold
		}
		return sum.view(key)
	}
	campaigns, coupons := 0, 0
	for _, s := range shops {
		for pool, want := range s.campaigns {
			campaigns++
			want.Stock = stock(pool)
			got, _, err := n.views.Campaign(ctx, "flash", domain.HomeKey(pool), Min{})
			if err != nil || got != want {
				n.tb.Fatalf("seed %d: campaign %s: got %+v, %v, want %+v", s.seed, pool, got, err, want)
			}
		}
		for code, want := range s.coupons {
			coupons++
			want.Stock = stock(domain.CouponPool(code))
			got, _, err := n.views.Coupon(ctx, code, Min{})
			if err != nil || got != want {
				n.tb.Fatalf("seed %d: coupon %s: got %+v, %v, want %+v", s.seed, code, got, err, want)
			}
		}
	}
	var listed []string
	query := KeysQuery{PageSize: 1}
	for {
		page, _, err := n.views.Campaigns(ctx, query, Min{})
		if err != nil {
			n.tb.Fatal(err)
		}
		for _, view := range page.Campaigns {
			listed = append(listed, campaignKey(view.Campaign.Pool))
		}
		if query.PageToken = page.Next; page.Next == "" {
			break
		}
	}
	page, _, err := n.views.Coupons(ctx, KeysQuery{}, Min{})
	if err != nil || len(page.Coupons) != coupons || len(listed) != campaigns || !slices.IsSorted(listed) {
		n.tb.Fatalf("listed campaigns %v and %d coupons (%v), want %d and %d", listed, len(page.Coupons), err, campaigns, coupons)
	}
}

// list pages through a user's orders.
func (n *node) list(user string, status domain.OrderStatus, pageSize int) []domain.OrderID {
	n.tb.Helper()
	var ids []domain.OrderID
	query := OrdersQuery{UserID: user, Status: status, PageSize: pageSize}
	for {
		page, _, err := n.views.Orders(n.tb.Context(), query, Min{})
		if err != nil {
			n.tb.Fatalf("orders of %s: %v", user, err)
		}
		for _, view := range page.Orders {
			ids = append(ids, view.Order.ID)
		}
		if page.Next == "" {
			return ids
		}
		query.PageToken = page.Next
	}
}

func newestFirst(ids []domain.OrderID) []domain.OrderID {
	sorted := append([]domain.OrderID(nil), ids...)
	for i := range sorted {
		for j := i; j > 0 && string(sorted[j][:]) > string(sorted[j-1][:]); j-- {
			sorted[j], sorted[j-1] = sorted[j-1], sorted[j]
		}
	}
	return sorted
}
