package edge

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/gateway/wire"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A Board knows of some products and campaigns whether they are sold out, and to whom they were sold.
//
// To refuse an order here must be what its node would have done. Two things could make it a lie. An order that was placed, and whose
// reply was lost, is sent again under the same request id, and then its node answers with that order (I4). So whoever has an order of
// what is sold out, or asked for one through this gateway a moment ago, is let pass. And units may come back; so a board that has not
// heard from its node for boardTrust refuses nobody.
//
// What remains: a unit that comes back, is sold within one look of the board, through another gateway, to somebody whose reply is lost and who
// asks again here, all within lookEvery, is answered OUT_OF_STOCK once. The same request a moment later gets its order.
type Board struct {
	options BoardOptions
	logger  *slog.Logger
	rules   protovalidate.Validator
	seed    maphash.Seed
	items   map[itemKey]*item
}

// BoardOptions of a Board. The clients call one node, with the token of an operator; Campaigns may be nil if no item is a campaign's.
type BoardOptions struct {
	Items     []Item
	Catalog   catalogv1connect.CatalogServiceClient
	Campaigns campaignv1connect.CampaignServiceClient
	Orders    orderv1connect.OrderServiceClient
	// Logger; nil means slog.Default.
	Logger *slog.Logger
}

// An Item is what a board looks at: a product, or a product of a campaign.
type Item struct {
	SKU        string `yaml:"sku"`
	CampaignID string `yaml:"campaign_id"`
}

// Limits of a board.
const (
	itemsMax = 256
	// lookEvery is how often an item is looked at that is sold out or nearly, lookSlowly how often another.
	lookEvery  = 100 * time.Millisecond
	lookSlowly = time.Second
	// nearlyUnits and nearlyShare of what was received make an item that is nearly sold out.
	nearlyUnits = 100
	nearlyShare = 0.05
	// lookMax bounds one look.
	lookMax = 10 * time.Second
	// boardTrust is how long what was seen is believed.
	boardTrust = 500 * time.Millisecond
	// leftTrust is how long the number of what is left is.
	leftTrust = 3 * time.Second
	// buyersMax bounds the users that are remembered for an item; one that more have bought is not refused here.
	buyersMax = 200_000
	// searchPage is the size of a page of orders, and searchOverlap how far a search reaches back behind the beginning of the one before: the
	// clocks of lanes, and of the gateway, differ by less.
	searchPage    = 100
	searchOverlap = 10 * time.Second
	// askersMax bounds the users whose order of an item may have been placed without their knowing, and askerCounts is how long that is the
	// case: by then a look has found their order, if there is one.
	askersMax   = 1 << 17
	askerCounts = 10 * time.Second
	// refusalsMax bounds the refusals of an item that are kept as they were written, until the next look.
	refusalsMax = 64
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

type itemKey struct{ sku, campaignID string }

// An item is what is known of one Item.
type item struct {
	Item
	// seen is the newest look that found the item sold out, nil while it is not.
	seen atomic.Pointer[soldOut]
	// left is what the newest look found, nil before the first.
	left atomic.Pointer[unitsLeft]
	// askers are those who may have an order that no look has found.
	askers askers

	// What follows is that of the goroutine that looks.
	buyers     map[uint64]struct{}
	searched   time.Time // when the newest search that was complete began, zero before the first
	tooMany    bool
	lastFailed bool
}

type unitsLeft struct {
	at    time.Time
	units int64
}

// A soldOut is a look at an item that is sold out. Nobody changes it, nor its buyers while it is the newest.
type soldOut struct {
	at       time.Time
	position *typev1.Revision
	buyers   map[uint64]struct{} // by hash
	written  refusals
	// Terms of the campaign: what it would refuse for another reason is let pass.
	opens, closes         time.Time
	userUnits, orderUnits int64
}

// NewBoard makes a board. It knows nothing until it runs.
func NewBoard(options BoardOptions) (*Board, error) {
	if len(options.Items) == 0 || len(options.Items) > itemsMax {
		return nil, fmt.Errorf("board: %d items, want 1 to %d", len(options.Items), itemsMax)
	}
	rules, err := protovalidate.New(protovalidate.WithMessages(&orderv1.PlaceOrderRequest{}), protovalidate.WithDisableLazy())
	if err != nil {
		return nil, fmt.Errorf("board: %w", err)
	}
	b := &Board{options: options, logger: options.Logger, rules: rules, seed: maphash.MakeSeed(), items: map[itemKey]*item{}}
	if b.logger == nil {
		b.logger = slog.Default()
	}
	for _, it := range options.Items {
		key := itemKey{it.SKU, it.CampaignID}
		switch {
		case !namePattern.MatchString(it.SKU) || it.CampaignID != "" && !namePattern.MatchString(it.CampaignID):
			return nil, fmt.Errorf("board: item %+v: want names of 1 to 64 of A-Z a-z 0-9 _ -", it)
		case b.items[key] != nil:
			return nil, fmt.Errorf("board: item %+v is named twice", it)
		case it.CampaignID == "" && options.Catalog == nil || it.CampaignID != "" && options.Campaigns == nil || options.Orders == nil:
			return nil, fmt.Errorf("board: item %+v: there is no client to look at it with", it)
		}
		b.items[key] = &item{Item: it, buyers: map[uint64]struct{}{}}
	}
	return b, nil
}

// Run looks until ctx ends, which is no error. It is called once.
func (b *Board) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, it := range b.items {
		wake := make(chan struct{}, 1)
		group.Go(func() error { b.follow(ctx, it, wake); return nil })
		if it.CampaignID == "" {
			group.Go(func() error { b.listen(ctx, it, wake); return nil })
		}
	}
	return group.Wait()
}

// follow looks at an item, again and again, and at once when it is woken.
func (b *Board) follow(ctx context.Context, it *item, wake <-chan struct{}) {
	for {
		wait := lookSlowly
		soon, err := b.look(ctx, it)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			it.seen.Store(nil)
			if !it.lastFailed {
				b.logger.Warn("nobody is refused here what may be sold out: it cannot be looked at", "sku", it.SKU, "campaign_id", it.CampaignID, "error", err)
			}
		case soon:
			wait = lookEvery
		}
		it.lastFailed = err != nil
		timer := time.NewTimer(wait - rand.N(wait/5))
		select {
		case <-timer.C:
		case <-wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// listen wakes follow when the stock of a product changes, as its node pushes it. It is needed for speed alone: what is missed is seen by the
// next look.
func (b *Board) listen(ctx context.Context, it *item, wake chan<- struct{}) {
	for ctx.Err() == nil {
		stream, err := b.options.Catalog.WatchStock(ctx, &catalogv1.WatchStockRequest{Sku: it.SKU})
		if err == nil {
			for stream.Receive() {
				if free(stream.Msg().GetStock()) > 0 {
					it.seen.Store(nil) // At once; the look that follows finds out the rest.
				}
				select {
				case wake <- struct{}{}:
				default:
				}
			}
			_ = stream.Close() // The reason is in Err, and another stream follows whatever it is.
		}
		timer := time.NewTimer(lookSlowly + rand.N(lookSlowly))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// Left returns how many units of an item are to be had, and whether that is known: it was seen lately.
func (b *Board) Left(it Item) (units int64, known bool) {
	looked := b.items[itemKey{it.SKU, it.CampaignID}]
	if looked == nil {
		return 0, false
	}
	left := looked.left.Load()
	if left == nil || time.Since(left.at) > leftTrust {
		return 0, false
	}
	return left.units, true
}

// free returns the units of a product that are to be had, or may be soon.
func free(stock *catalogv1.Stock) int64 {
	return stock.GetCentral() + stock.GetInTransit() + stock.GetAvailable()
}

// look looks at an item once. soon says that it is sold out or nearly.
func (b *Board) look(ctx context.Context, it *item) (soon bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookMax)
	defer cancel()
	seen := &soldOut{at: time.Now()} // Before the question: the answer is not older.
	var left, all int64
	var freshness *typev1.Freshness
	if it.CampaignID == "" {
		response, err := b.options.Catalog.GetStock(ctx, &catalogv1.GetStockRequest{Sku: it.SKU})
		if err != nil {
			return false, err
		}
		left, all, freshness = free(response.GetStock()), response.GetStock().GetReceived(), response.GetFreshness()
	} else {
		response, err := b.options.Campaigns.GetCampaign(ctx, &campaignv1.GetCampaignRequest{CampaignId: it.CampaignID, Sku: it.SKU})
		if err != nil {
			return false, err
		}
		campaign := response.GetCampaign()
		// What is neither reserved nor sold is to be had, wherever it is.
		left, all, freshness = campaign.GetUnits()-campaign.GetReserved()-campaign.GetSold(), campaign.GetUnits(), response.GetFreshness()
		seen.opens, seen.closes = campaign.GetOpensAt().AsTime(), campaign.GetClosesAt().AsTime()
		seen.userUnits, seen.orderUnits = campaign.GetUserUnitsMax(), campaign.GetOrderUnitsMax()
	}
	it.left.Store(&unitsLeft{seen.at, left})
	seen.position = freshness.GetRevision()
	soon = float64(left) <= max(nearlyUnits, nearlyShare*float64(all))
	if left > 0 || freshness.GetState() != typev1.Freshness_STATE_FRESH || it.tooMany {
		it.seen.Store(nil)
		return soon, nil
	}
	if err := b.findBuyers(ctx, it); err != nil {
		return true, err
	}
	if it.tooMany {
		b.logger.Warn("an item is not refused here although it is sold out: too many have bought it", "sku", it.SKU, "campaign_id", it.CampaignID, "buyers_max", buyersMax)
		it.seen.Store(nil)
		return false, nil
	}
	seen.buyers = it.buyers
	it.seen.Store(seen)
	return true, nil
}

// errNotFresh says that a view did not hold everything.
var errNotFresh = errors.New("the orders are not all there yet")

// findBuyers adds those who have orders of the item that were not known. It copies the set before it changes it.
func (b *Board) findBuyers(ctx context.Context, it *item) error {
	began := time.Now() // What is placed from now on, the next search finds.
	search := &orderv1.SearchOrdersRequest{Sku: it.SKU, CampaignId: it.CampaignID, PageSize: searchPage}
	if !it.searched.IsZero() {
		search.PlacedFrom = timestamppb.New(it.searched.Add(-searchOverlap))
	}
	set, copied := it.buyers, false
	for pages := 0; ; pages++ {
		response, err := b.options.Orders.SearchOrders(ctx, search)
		if err != nil {
			return fmt.Errorf("find out who bought: %w", err)
		}
		if response.GetFreshness().GetState() != typev1.Freshness_STATE_FRESH {
			return errNotFresh
		}
		for _, order := range response.GetOrders() {
			hash := maphash.String(b.seed, order.GetUserId())
			if _, known := set[hash]; known {
				continue
			}
			if !copied {
				copied, set = true, cloneSet(set)
			}
			set[hash] = struct{}{}
		}
		if len(set) > buyersMax || pages > buyersMax/searchPage {
			it.tooMany = true
			return nil
		}
		if search.PageToken = response.GetNextPageToken(); search.PageToken == "" {
			break
		}
	}
	it.buyers, it.searched = set, began
	return nil
}

func cloneSet(set map[uint64]struct{}) map[uint64]struct{} {
	clone := make(map[uint64]struct{}, len(set)+searchPage)
	for hash := range set {
		clone[hash] = struct{}{}
	}
	return clone
}

// serveOrder refuses an order of what is sold out, exactly as its node would, or one whose turn has not come, or has its node answer.
func (e *Edge) serveOrder(w http.ResponseWriter, r *http.Request, next http.Handler, soldOut bool) {
	body, whole := peek(r)
	var request *orderv1.PlaceOrderRequest
	if whole {
		request = placeOrderOf(r, body)
	}
	user := e.options.User(r)
	var placing *order
	if soldOut && request != nil {
		placing = e.board.orderOf(request, user)
	}
	now := time.Now()
	if placing != nil {
		seen := placing.item.seen.Load()
		if seen.refuses(now, placing.user, placing.units) && !placing.item.askers.has(now, placing.user) && placing.valid(e.board) {
			e.counts[countSoldOut].Add(1)
			e.refuseSoldOut(w, r, placing, seen)
			return
		}
	}
	done, err := e.notYet(r, request, user)
	if err != nil {
		e.counts[countRoom].Add(1)
		e.refuse(w, r, err)
		return
	}
	if placing == nil && done == nil {
		next.ServeHTTP(w, r)
		return
	}
	code := connect.CodeUnknown // Unless it is known.
	if placing != nil {
		placing.item.askers.begin(now, placing.user)
		defer func() { placing.item.askers.end(time.Now(), placing.user, code) }()
	}
	if done != nil {
		defer func() { done(code) }()
	}
	reply := &reply{to: w, header: http.Header{}}
	next.ServeHTTP(reply, r)
	if reply.passed {
		return
	}
	given := reply.answer()
	code = codeOf(given)
	given.write(w, time.Time{}, "")
}

// refuseSoldOut answers with what was written to the first who asked for the same in the same way: to write a detail as JSON costs more than all
// else together.
func (e *Edge) refuseSoldOut(w http.ResponseWriter, r *http.Request, placing *order, seen *soldOut) {
	key := refusalKey{placing.units, r.Header.Get("Content-Type")}
	if written := seen.written.of(key); written != nil {
		written.write(w, time.Time{}, "")
		return
	}
	reply := &reply{to: w, header: http.Header{}}
	e.refuse(reply, r, outOfStock(placing.item.stockKey(), placing.units, seen.position))
	if reply.passed {
		return
	}
	answer := reply.answer()
	seen.written.keep(key, answer)
	answer.write(w, time.Time{}, "")
}

// A refusalKey is what the answer to an order of what is sold out depends on.
type refusalKey struct {
	units       int64
	contentType string
}

// refusals are answers that were written. Memory is bounded: callers choose how much they want, and name content types.
type refusals struct {
	mu      sync.RWMutex
	answers map[refusalKey]*answer
}

func (f *refusals) of(key refusalKey) *answer {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.answers[key]
}

func (f *refusals) keep(key refusalKey, a *answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answers == nil {
		f.answers = map[refusalKey]*answer{}
	}
	if len(f.answers) < refusalsMax {
		f.answers[key] = a
	}
}

// notYet returns why an order has to wait for its turn, or whom to tell how it ended, if anybody.
func (e *Edge) notYet(r *http.Request, request *orderv1.PlaceOrderRequest, user string) (done func(connect.Code), err *connect.Error) {
	switch {
	case e.options.Room == nil:
		return nil, nil
	case request == nil:
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the order cannot be read: want JSON or Protobuf, as it is or in gzip, of at most 64 KiB"))
	case request.GetCampaignId() == "":
		return nil, nil
	case request.GetUserId() != "": // Whoever orders for another has that one's pass.
		user = request.GetUserId()
	}
	return e.options.Room(r, user, request)
}

// placeOrderOf returns the order that a request asks for, nil if it cannot be read.
func placeOrderOf(r *http.Request, body []byte) *orderv1.PlaceOrderRequest {
	message, isJSON, ok := wire.RequestMessage(r, body, requestBytesMax)
	if !ok {
		return nil
	}
	request := &orderv1.PlaceOrderRequest{}
	var err error
	if isJSON {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(message, request)
	} else {
		err = proto.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(message, request)
	}
	if err != nil {
		return nil
	}
	return request
}

// An order is one of an item of the board.
type order struct {
	item    *item
	user    uint64 // hash
	units   int64
	request *orderv1.PlaceOrderRequest
}

// orderOf returns the order of a user, or nil if it is not one that may be refused here.
func (b *Board) orderOf(request *orderv1.PlaceOrderRequest, user string) *order {
	// An order of several lines may be refused for another one, and a coupon is looked at by the node.
	if user == "" || len(request.GetItems()) != 1 || request.GetCouponCode() != "" || request.GetUserId() != "" && request.GetUserId() != user {
		return nil
	}
	line := request.GetItems()[0]
	known := b.items[itemKey{line.GetSku(), request.GetCampaignId()}]
	if known == nil {
		return nil
	}
	return &order{item: known, user: maphash.String(b.seed, user), units: line.GetQuantity(), request: request}
}

// valid reports whether the order is one that a node takes. What is not is refused by it, and told what is wrong.
func (o *order) valid(b *Board) bool { return b.rules.Validate(o.request) == nil }

// refuses reports whether an order of a user would be refused because the item is sold out, and for no other reason.
func (s *soldOut) refuses(now time.Time, user uint64, units int64) bool {
	switch {
	case s == nil || now.Sub(s.at) > boardTrust:
		return false
	case s.userUnits > 0 && units > s.userUnits || s.orderUnits > 0 && units > s.orderUnits:
		return false
	case !s.closes.IsZero() && (now.Before(s.opens) || !now.Before(s.closes)):
		return false
	}
	_, bought := s.buyers[user]
	return !bought
}

// stockKey names the item's units as nodes do.
func (it *item) stockKey() string {
	if it.CampaignID == "" {
		return it.SKU
	}
	return it.SKU + "@" + it.CampaignID
}

// outOfStock returns the error of a node, with the same bytes.
func outOfStock(stockKey string, want int64, position *typev1.Revision) *connect.Error {
	err := connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s is out of stock: %d units wanted, %d free", stockKey, want, 0))
	addDetail(err, &errdetails.ErrorInfo{
		Reason: ReasonOutOfStock, Domain: ErrorDomain,
		Metadata: map[string]string{"sku": stockKey, "want": strconv.FormatInt(want, 10), "free": "0"},
	})
	err.Meta().Set(HeaderEdge, fmt.Sprintf("sold-out; lane=%d; commit=%d", position.GetLane(), position.GetCommit()))
	return err
}
