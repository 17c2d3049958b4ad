package edge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// A store is a node as a board sees it, in simulated time: one product, and a campaign of it.
type store struct {
	catalogv1connect.CatalogServiceClient
	campaignv1connect.CampaignServiceClient
	orderv1connect.OrderServiceClient

	mu       sync.Mutex
	units    int64
	sold     int64
	orders   []*orderv1.Order
	down     bool
	stale    bool
	searches int
	calls    int // of PlaceOrder
	lose     bool
	closes   time.Time
}

func (s *store) freshness() *typev1.Freshness {
	state := typev1.Freshness_STATE_FRESH
	if s.stale {
		state = typev1.Freshness_STATE_CATCHING_UP
	}
	return &typev1.Freshness{State: state, Revision: &typev1.Revision{Lane: 3, Commit: 99}}
}

var errDown = connect.NewError(connect.CodeUnavailable, errors.New("down"))

func (s *store) GetStock(context.Context, *catalogv1.GetStockRequest) (*catalogv1.GetStockResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errDown
	}
	return &catalogv1.GetStockResponse{
		Stock:     &catalogv1.Stock{Sku: "mug", Received: s.units, Available: s.units - s.sold, Sold: s.sold},
		Freshness: s.freshness(),
	}, nil
}

// WatchStock fails: what a board sees must not depend on it.
func (s *store) WatchStock(context.Context, *catalogv1.WatchStockRequest) (*connect.ServerStreamForClient[catalogv1.WatchStockResponse], error) {
	return nil, errDown
}

func (s *store) GetCampaign(_ context.Context, request *campaignv1.GetCampaignRequest) (*campaignv1.GetCampaignResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errDown
	}
	return &campaignv1.GetCampaignResponse{
		Campaign: &campaignv1.Campaign{
			CampaignId: request.GetCampaignId(), Sku: request.GetSku(), Units: s.units, Sold: s.sold, Remaining: s.units - s.sold,
			OpensAt: timestamppb.New(s.closes.Add(-24 * time.Hour)), ClosesAt: timestamppb.New(s.closes), UserUnitsMax: 2,
		},
		Freshness: s.freshness(),
	}, nil
}

func (s *store) SearchOrders(_ context.Context, request *orderv1.SearchOrdersRequest) (*orderv1.SearchOrdersResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.searches++
	if s.down {
		return nil, errDown
	}
	response := &orderv1.SearchOrdersResponse{Freshness: s.freshness()}
	from := 0
	if request.GetPageToken() != "" {
		_, _ = fmt.Sscan(request.GetPageToken(), &from)
	}
	for i := from; i < len(s.orders); i++ {
		order := s.orders[len(s.orders)-1-i] // Newest first.
		if request.GetPlacedFrom() != nil && order.GetPlacedAt().AsTime().Before(request.GetPlacedFrom().AsTime()) {
			continue
		}
		if len(response.GetOrders()) == int(request.GetPageSize()) {
			response.NextPageToken = fmt.Sprint(i)
			break
		}
		response.Orders = append(response.Orders, order)
	}
	return response, nil
}

// ServeHTTP takes orders, as the node does.
func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	user := userOf(r)
	w.Header().Set("Content-Type", "application/json")
	for _, order := range s.orders {
		if order.GetUserId() == user {
			_, _ = fmt.Fprintf(w, `{"order":{"orderId":%q}}`, order.GetOrderId())
			return
		}
	}
	if s.sold >= s.units {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = fmt.Fprint(w, `{"code":"failed_precondition"}`)
		return
	}
	s.sold++
	order := &orderv1.Order{OrderId: "order of " + user, UserId: user, PlacedAt: timestamppb.Now()}
	s.orders = append(s.orders, order)
	if s.lose {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprint(w, `{"code":"unavailable"}`)
		return
	}
	_, _ = fmt.Fprintf(w, `{"order":{"orderId":%q}}`, order.GetOrderId())
}

func (s *store) change(what func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what()
}

func userOf(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

// A sale is an edge with a board in front of a store, in simulated time.
type sale struct {
	t       *testing.T
	store   *store
	edge    *Edge
	handler http.Handler
	item    Item
}

// inSale runs a test in simulated time, for a product and for a campaign.
func inSale(t *testing.T, units int64, test func(*sale)) {
	for _, it := range []Item{{SKU: "mug"}, {SKU: "mug", CampaignID: "spring"}} {
		t.Run("item="+it.CampaignID, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &sale{t: t, store: &store{units: units, closes: time.Now().Add(time.Hour)}, item: it}
				board, err := NewBoard(BoardOptions{Items: []Item{it}, Catalog: s.store, Campaigns: s.store, Orders: s.store})
				if err != nil {
					t.Fatal(err)
				}
				if s.edge, err = New(Options{Board: board, User: userOf}); err != nil {
					t.Fatal(err)
				}
				if err := s.edge.Apply(Config{SoldOut: true}); err != nil {
					t.Fatal(err)
				}
				s.handler = s.edge.Wrap(s.store)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- board.Run(ctx) }()
				synctest.Wait()
				test(s)
				cancel()
				if err := <-ended; err != nil {
					t.Errorf("Run: %v", err)
				}
			})
		})
	}
}

// pass lets simulated time pass.
func (s *sale) pass(length time.Duration) {
	<-time.After(length)
	synctest.Wait()
}

// order places an order and returns whether the edge answered, and the answer.
func (s *sale) order(user string, change ...func(*orderv1.PlaceOrderRequest)) (byEdge bool, recorder *httptest.ResponseRecorder) {
	s.t.Helper()
	request := &orderv1.PlaceOrderRequest{
		RequestId: "r1", Items: []*orderv1.ItemRequest{{Sku: "mug", Quantity: 1}}, CampaignId: s.item.CampaignID,
	}
	for _, c := range change {
		c(request)
	}
	body, err := protojson.Marshal(request)
	if err != nil {
		s.t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(s.t.Context(), http.MethodPost, orderv1connect.OrderServicePlaceOrderProcedure, strings.NewReader(string(body)))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+user)
	recorder = httptest.NewRecorder()
	before := s.store.calls
	s.handler.ServeHTTP(recorder, r)
	return s.store.calls == before, recorder
}

func (s *sale) wantBy(edge bool, user, when string, change ...func(*orderv1.PlaceOrderRequest)) {
	s.t.Helper()
	if byEdge, _ := s.order(user, change...); byEdge != edge {
		s.t.Errorf("%s: the order of %s was answered by the edge = %t, want %t", when, user, byEdge, edge)
	}
}

func TestWhatIsSoldOutIsRefusedAtTheEdgeUntilItIsBack(t *testing.T) {
	inSale(t, 1, func(s *sale) {
		s.wantBy(false, "first", "before it is sold out")
		s.pass(2 * lookSlowly)
		byEdge, answer := s.order("second")
		if !byEdge || answer.Code != http.StatusBadRequest || answer.Header().Get(HeaderEdge) != "sold-out; lane=3; commit=99" {
			t.Fatalf("by the edge = %t, %d, %v", byEdge, answer.Code, answer.Header())
		}
		if body := answer.Body.String(); !strings.Contains(body, `"code":"failed_precondition"`) || !strings.Contains(body, "is out of stock: 1 units wanted, 0 free") {
			t.Errorf("the edge answered %s", body)
		}
		// Who asks for the same gets what was written before, and who asks for another quantity does not.
		if _, again := s.order("third"); again.Code != answer.Code || again.Body.String() != answer.Body.String() || !maps.EqualFunc(again.Header(), answer.Header(), slices.Equal) {
			t.Errorf("the next one got %d %v %s", again.Code, again.Header(), again.Body)
		}
		if _, other := s.order("third", func(q *orderv1.PlaceOrderRequest) { q.Items[0].Quantity = 2 }); !strings.Contains(other.Body.String(), "2 units wanted") {
			t.Errorf("who wanted 2 units got %s", other.Body)
		}
		s.store.change(func() { s.store.units++ })
		s.pass(200 * time.Millisecond)
		s.wantBy(false, "second", "200ms after a unit came back")
		if got := s.edge.Stats().SoldOut; got != 3 {
			t.Errorf("%d refusals were counted, want 3", got)
		}
	})
}

func TestWhoHasAnOrderGetsItAgainThoughItIsSoldOut(t *testing.T) {
	inSale(t, 250, func(s *sale) {
		// Through this gateway, through others, and one whose reply is lost.
		s.wantBy(false, "here", "before")
		s.store.change(func() {
			for i := range 248 {
				s.store.orders = append(s.store.orders, &orderv1.Order{UserId: fmt.Sprintf("elsewhere-%d", i), OrderId: "o", PlacedAt: timestamppb.Now()})
				s.store.sold++
			}
			s.store.lose = true
		})
		s.pass(2 * lookSlowly)
		s.wantBy(false, "lost", "before")
		s.store.change(func() { s.store.lose = false })
		s.wantBy(false, "lost", "right after its reply was lost")
		s.pass(2 * lookSlowly)
		s.wantBy(true, "stranger", "after it sold out")
		for _, user := range []string{"here", "lost", "elsewhere-0", "elsewhere-247"} {
			s.wantBy(false, user, "after it sold out")
		}
		s.pass(time.Minute)
		for _, user := range []string{"here", "lost", "elsewhere-0", "elsewhere-247"} {
			s.wantBy(false, user, "long after it sold out")
		}
		// Who buys what comes back is known too.
		s.store.change(func() {
			s.store.orders = append(s.store.orders, &orderv1.Order{UserId: "late", OrderId: "o", PlacedAt: timestamppb.Now()})
		})
		s.pass(2 * lookEvery)
		s.wantBy(false, "late", "after an order that replaced another")
		s.wantBy(true, "stranger", "after an order that replaced another")
	})
}

// A sale may end with many orders in its last seconds. To read all of them again with each look took longer than a look is trusted.
func TestTheLastOrdersOfASaleAreNotReadAgainForEver(t *testing.T) {
	const buyers = 20 * searchPage
	inSale(t, buyers, func(s *sale) {
		s.store.change(func() {
			for i := range buyers {
				s.store.orders = append(s.store.orders, &orderv1.Order{UserId: fmt.Sprint(i), OrderId: "o", PlacedAt: timestamppb.Now()})
			}
			s.store.sold = buyers
		})
		s.pass(searchOverlap + 2*lookSlowly)
		var before int
		s.store.change(func() { before = s.store.searches })
		s.pass(time.Second)
		s.store.change(func() {
			if pages, looksMax := s.store.searches-before, int(time.Second/(lookEvery-lookEvery/5))+1; pages == 0 || pages > looksMax {
				s.t.Errorf("in a second long after the last order, %d pages of orders were read, want one with each look, at most %d", pages, looksMax)
			}
		})
		s.wantBy(false, "0", "long after it sold out")
		s.wantBy(true, "stranger", "long after it sold out")
	})
}

func TestWhoWasRefusedByANodeIsRefusedHereNext(t *testing.T) {
	inSale(t, 0, func(s *sale) {
		s.edge.board.items[itemKey{"mug", s.item.CampaignID}].seen.Store(nil) // As if the board had not looked yet.
		s.wantBy(false, "eager", "before the board knows")
		s.pass(2 * lookEvery)
		s.wantBy(true, "eager", "when it does")
	})
}

func TestABoardThatCannotSeeRefusesNobody(t *testing.T) {
	inSale(t, 0, func(s *sale) {
		s.pass(2 * lookEvery)
		s.wantBy(true, "a", "when it sees")
		s.store.change(func() { s.store.stale = true })
		s.pass(2 * lookEvery)
		s.wantBy(false, "b", "when the view is behind")
		s.store.change(func() { s.store.stale = false })
		s.pass(2 * lookSlowly)
		s.wantBy(true, "c", "when it sees again")
		s.store.change(func() { s.store.down = true })
		s.pass(boardTrust)
		s.wantBy(false, "d", "when its node is down")
		s.store.change(func() { s.store.down = false })
		s.pass(2 * lookSlowly)
		s.wantBy(true, "e", "when its node is back")
	})
}

func TestWhatANodeWouldAnswerOtherwiseIsLeftToIt(t *testing.T) {
	inSale(t, 0, func(s *sale) {
		s.pass(2 * lookEvery)
		for name, change := range map[string]func(*orderv1.PlaceOrderRequest){
			"several lines": func(q *orderv1.PlaceOrderRequest) {
				q.Items = append(q.Items, &orderv1.ItemRequest{Sku: "cup", Quantity: 1})
			},
			"a coupon":           func(q *orderv1.PlaceOrderRequest) { q.CouponCode = "TEN" },
			"another product":    func(q *orderv1.PlaceOrderRequest) { q.Items[0].Sku = "cup" },
			"another campaign":   func(q *orderv1.PlaceOrderRequest) { q.CampaignId = "autumn" },
			"for somebody else":  func(q *orderv1.PlaceOrderRequest) { q.UserId = "other" },
			"no quantity":        func(q *orderv1.PlaceOrderRequest) { q.Items[0].Quantity = 0 },
			"no request id":      func(q *orderv1.PlaceOrderRequest) { q.RequestId = "" },
			"a note of any size": func(q *orderv1.PlaceOrderRequest) { q.Note = strings.Repeat("x", 1001) },
		} {
			s.wantBy(false, "user of "+name, name, change)
		}
		s.wantBy(false, "", "no user")
		s.wantBy(true, "own", "the user's own id", func(q *orderv1.PlaceOrderRequest) { q.UserId = "own" })
		if s.item.CampaignID == "" {
			return
		}
		s.wantBy(false, "greedy", "more than the campaign gives", func(q *orderv1.PlaceOrderRequest) { q.Items[0].Quantity = 3 })
		s.store.change(func() { s.store.closes = time.Now() })
		s.pass(2 * lookEvery)
		s.wantBy(false, "late", "after the campaign closed")
	})
}

func TestASwitchThatIsOffRefusesNobody(t *testing.T) {
	inSale(t, 0, func(s *sale) {
		s.pass(2 * lookEvery)
		if err := s.edge.Apply(Config{}); err != nil {
			t.Fatal(err)
		}
		s.wantBy(false, "a", "when sold_out is off")
	})
}

func TestMoreBuyersThanAreKeptMeansThatNodesAnswer(t *testing.T) {
	inSale(t, 0, func(s *sale) {
		s.store.change(func() {
			for i := range buyersMax + 1 {
				s.store.orders = append(s.store.orders, &orderv1.Order{UserId: fmt.Sprint(i), PlacedAt: timestamppb.Now()})
			}
		})
		s.pass(2 * lookSlowly)
		s.wantBy(false, "a", "when too many have bought")
	})
}

func TestAskersAreBoundedAndForgotten(t *testing.T) {
	var a askers
	now := time.Unix(1_800_000_000, 0)
	for user := range uint64(askersMax) {
		a.begin(now, user)
		a.end(now, user, 0)
	}
	if a.has(now, askersMax+1) {
		t.Error("a stranger counts while there is room")
	}
	a.begin(now, askersMax+1)
	if !a.has(now, askersMax+2) {
		t.Error("nobody can tell who asked, and a stranger does not count")
	}
	now = now.Add(2 * askerCounts)
	a.begin(now, 1)
	if a.has(now, 2) || !a.has(now, 1) || len(a.users) != 1 {
		t.Errorf("%d users are kept, want the one whose order is under way", len(a.users))
	}
	a.end(now, 1, connect.CodeFailedPrecondition)
	if a.has(now, 1) {
		t.Error("who was refused counts")
	}
}

func TestImpossibleBoardsAreRefused(t *testing.T) {
	s := &store{}
	for name, options := range map[string]BoardOptions{
		"nothing":       {},
		"a bad name":    {Items: []Item{{SKU: "a b"}}, Catalog: s, Orders: s},
		"twice":         {Items: []Item{{SKU: "a"}, {SKU: "a"}}, Catalog: s, Orders: s},
		"no client":     {Items: []Item{{SKU: "a"}}, Orders: s},
		"no campaigns":  {Items: []Item{{SKU: "a", CampaignID: "c"}}, Catalog: s, Orders: s},
		"no order book": {Items: []Item{{SKU: "a"}}, Catalog: s},
	} {
		if _, err := NewBoard(options); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func BenchmarkSoldOutRefusal(b *testing.B) {
	board, err := NewBoard(BoardOptions{Items: []Item{{SKU: "mug"}}, Catalog: &store{}, Orders: &store{}})
	if err != nil {
		b.Fatal(err)
	}
	e, _ := New(Options{Board: board, User: userOf})
	if err := e.Apply(Config{SoldOut: true}); err != nil {
		b.Fatal(err)
	}
	board.items[itemKey{sku: "mug"}].seen.Store(&soldOut{at: time.Now().Add(time.Hour)})
	handler := e.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { b.Error("the order was let pass") }))
	const body = `{"requestId":"0192f0c1","items":[{"sku":"mug","quantity":"1"}]}`
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequestWithContext(b.Context(), http.MethodPost, orderv1connect.OrderServicePlaceOrderProcedure, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer alice")
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
}

func TestTheRefusalIsInTheProtocolOfTheOrder(t *testing.T) {
	board, err := NewBoard(BoardOptions{Items: []Item{{SKU: "mug"}}, Catalog: &store{}, Orders: &store{}})
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Options{Board: board, User: userOf})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Apply(Config{SoldOut: true}); err != nil {
		t.Fatal(err)
	}
	board.items[itemKey{sku: "mug"}].seen.Store(&soldOut{at: time.Now().Add(time.Hour)})
	url := serve(t, e.Wrap(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the order was let pass") })))
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	for name, options := range protocols {
		for _, gzip := range []int{0, 1 << 20} { // The least that is compressed.
			client := orderv1connect.NewOrderServiceClient(&http.Client{Transport: transport}, url,
				append([]connect.ClientOption{connect.WithSendGzip(), connect.WithCompressMinBytes(gzip)}, options...)...)
			for range 2 { // As it is written first, and as it is kept.
				ctx, call := connect.NewClientContext(t.Context())
				call.RequestHeader().Set("Authorization", "Bearer alice")
				_, err := client.PlaceOrder(ctx, &orderv1.PlaceOrderRequest{RequestId: "r", Items: []*orderv1.ItemRequest{{Sku: "mug", Quantity: 1}}})
				var refused *connect.Error
				if !errors.As(err, &refused) || refused.Code() != connect.CodeFailedPrecondition || len(refused.Details()) != 1 ||
					!strings.HasPrefix(refused.Meta().Get(HeaderEdge), "sold-out") {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}
