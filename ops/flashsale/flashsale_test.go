package flashsale

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	"github.com/weirhq/weir/proto/weir/catalog/v1/catalogv1connect"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func testOptions(seed uint64) Options {
	return Options{Units: 20, Attempts: 300, DeclinedPercent: 5, UnpaidPercent: 5, Connections: 16, Seed: seed, PayWithin: time.Hour, ViewWait: 100 * time.Millisecond}
}

// A check that cannot see a broken promise is blind: each of these shops breaks one.
func TestEveryBrokenPromiseIsSeen(t *testing.T) {
	for _, c := range []struct {
		name string
		// shape makes the shop dishonest; nil leaves it honest.
		shape func(*fakeShop)
		want  string
	}{
		{name: "an honest shop"},
		{name: "a shop that is too busy at first", shape: func(s *fakeShop) { s.busy = 50 }},
		{name: "a shop that drops connections", shape: func(s *fakeShop) { s.dropEvery = 7 }},
		{name: "one unit too many", want: "oversold: 21 orders", shape: func(s *fakeShop) { s.extra = 1 }},
		{name: "one unit too few", want: "undersold: 19 of 20", shape: func(s *fakeShop) { s.extra = -1 }},
		{
			name: "a lost order", want: "is missing (I1)",
			shape: func(s *fakeShop) { s.soldOut = func() { s.lost = "order-7" } },
		},
		{name: "a forgotten ledger", want: "(I1, I4)", shape: func(s *fakeShop) { s.soldOut = func() { clear(s.replies) } }},
		{
			name: "a changed reply", want: "before (I4)",
			shape: func(s *fakeShop) {
				s.soldOut = func() {
					for _, reply := range s.replies {
						reply.Revision.Commit++
					}
				}
			},
		},
		{
			name: "a changed order", want: "(I1, I6)",
			shape: func(s *fakeShop) {
				s.soldOut = func() {
					for _, order := range s.orders {
						order.Total.Units++
					}
				}
			},
		},
		{name: "one order for two", want: "both acknowledged with order", shape: func(s *fakeShop) { s.sameID = true }},
		{name: "an account that does not add up", want: "(I3)", shape: func(s *fakeShop) { s.leak = 1 }},
		{name: "two units for one user", want: "got a second unit", shape: func(s *fakeShop) { s.greedy = true }},
		{name: "another price", want: "the campaign's price is 999 EUR", shape: func(s *fakeShop) { s.surcharge = 1 }},
		{name: "a payment of too much", want: "was to be paid (I4)", shape: func(s *fakeShop) { s.tip = 1 }},
		{name: "a payment with a declined card", want: "with tok_decline is", shape: func(s *fakeShop) { s.generous = true }},
		{name: "another refusal", want: "refused with UNKNOWN_PRODUCT", shape: func(s *fakeShop) { s.reason = "UNKNOWN_PRODUCT" }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			shop := newFakeShop(t)
			if c.shape != nil {
				c.shape(shop)
			}
			report, err := hold(t.Context(), testOptions(seed), shop)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			found := strings.Join(report.Wrong, "\n")
			if c.want == "" && found != "" || !strings.Contains(found, c.want) {
				t.Fatalf("seed %d: found %q, want %q", seed, found, c.want)
			}
			if c.want == "" && (report.Totals.Sold != 20 || report.Totals.Refused["OUT_OF_STOCK"] != 280) {
				t.Fatalf("seed %d: totals are %+v", seed, report.Totals)
			}
			if shop.dropEvery > 0 && report.Rush.Unanswered == 0 || shop.busy > 0 && report.Rush.Later == 0 {
				t.Fatalf("seed %d: nothing was asked again: %+v", seed, report.Rush)
			}
		})
	}
}

func TestAKillLosesNothingAndChangesNoTotal(t *testing.T) {
	seed := rand.Uint64()
	options := testOptions(seed)
	calm, err := hold(t.Context(), options, newFakeShop(t))
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	options.Kill = true
	shop := newFakeShop(t)
	killed, err := hold(t.Context(), options, shop)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if len(killed.Wrong) > 0 || shop.restarts != 1 || killed.Kill == nil || killed.Kill.SoldBefore < options.Units/2 {
		t.Fatalf("seed %d: %d restarts, %+v, wrong: %v", seed, shop.restarts, killed.Kill, killed.Wrong)
	}
	if !reflect.DeepEqual(calm.Totals, killed.Totals) {
		t.Fatalf("seed %d: totals are %+v with a kill, %+v without", seed, killed.Totals, calm.Totals)
	}
}

func TestWhatTheLogSaysIsPartOfTheVerdict(t *testing.T) {
	good := Audit{Events: 21, Stock: Stock{Units: 20, Reserved: 2, Sold: 18}}
	for _, c := range []struct {
		name   string
		change func(*Audit)
		want   string
	}{
		{"the same as the view", func(*Audit) {}, ""},
		{"a violation", func(a *Audit) { a.Violations = []string{"lane 0, commit 7: -1 units allotted"} }, "the log: lane 0, commit 7"},
		{"one unit more than the view", func(a *Audit) { a.Reserved++ }, "(I6)"},
	} {
		options, shop := testOptions(1), newFakeShop(t)
		options.Audit = func(_ context.Context, data, sku, campaign string) (*Audit, error) {
			if data != shop.Data() || sku == "" || campaign == "" {
				t.Errorf("asked to audit %q in %q", sku, data)
			}
			found := good
			c.change(&found)
			return &found, nil
		}
		report, err := hold(t.Context(), options, shop)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(report.Wrong, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) || report.Audit.Events != 21 {
			t.Errorf("%s: found %q, want %q", c.name, got, c.want)
		}
	}
}

func TestUnitsOfExpiredOrdersAreSoldOnceMore(t *testing.T) {
	for _, c := range []struct {
		name                         string
		free                         bool
		paid, declined, never, again int64
	}{
		{name: "most pay", paid: 16, declined: 1, never: 3, again: 4},
		{name: "there is no way to pay", free: true, never: 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			seed := rand.Uint64()
			shop := newFakeShop(t)
			shop.payWithin, shop.free = expiryWaitMax, c.free
			shop.soldOut = func() { shop.expiring = 2 } // After the one that checks the rush, the one that waits.
			options := testOptions(seed)
			options.DeclinedPercent, options.UnpaidPercent = 5, 15
			report, err := hold(t.Context(), options, shop)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			expired := c.declined + c.never
			want := Totals{
				Units: 20, Attempts: 300, Sold: 20, Refused: map[string]int64{"OUT_OF_STOCK": 280}, SecondRefused: map[string]int64{"CAMPAIGN_LIMIT": 20}, Paid: c.paid, Declined: c.declined, Abandoned: c.never,
				Expired: expired, ResaleAttempts: 256, Resold: expired, ResaleRefused: map[string]int64{"OUT_OF_STOCK": 256 - expired}, ResalePaid: c.again,
			}
			if len(report.Wrong) > 0 || !reflect.DeepEqual(report.Totals, want) {
				t.Fatalf("seed %d: totals are %+v, want %+v; wrong: %v", seed, report.Totals, want, report.Wrong)
			}
		})
	}
}

func TestFatesAreDealtInExactShares(t *testing.T) {
	seed := rand.Uint64()
	dealt := map[fate]int{}
	for _, f := range fates(seed, 1000, 5, 7) {
		dealt[f]++
	}
	if dealt[pays] != 880 || dealt[declines] != 50 || dealt[abandons] != 70 {
		t.Errorf("seed %d: dealt %v, want 880, 50 and 70", seed, dealt)
	}
	if reflect.DeepEqual(fates(seed, 1000, 50, 0), fates(seed+1, 1000, 50, 0)) || !reflect.DeepEqual(fates(seed, 1000, 50, 0), fates(seed, 1000, 50, 0)) {
		t.Errorf("seed %d does not decide the fates", seed)
	}
	if all := fates(seed, 3, 0, 100); !reflect.DeepEqual(all, []fate{abandons, abandons, abandons}) {
		t.Errorf("seed %d: dealt %v, want that nobody pays", seed, all)
	}
}

func TestASaleThatOutlastsTheTimeToPayIsNoResult(t *testing.T) {
	shop := newFakeShop(t)
	shop.payWithin = time.Nanosecond
	var slow *TooSlowError
	if _, err := hold(t.Context(), testOptions(1), shop); !errors.As(err, &slow) {
		t.Fatalf("the error is %v, want one that says it was too slow", err)
	}
}

func TestASaleThatOutlastsTheTimeToPayIsHeldAgainWithMore(t *testing.T) {
	slow := &TooSlowError{Took: time.Minute, PayWithin: time.Second}
	for _, c := range []struct {
		name      string
		asked     time.Duration
		slowTimes int
		want      []time.Duration
		note      bool
		slow      bool
	}{
		{name: "a fast machine", want: payWindows[:1]},
		{name: "a slow machine", slowTimes: 1, want: payWindows[:2], note: true},
		{name: "one that is too slow", slowTimes: len(payWindows), want: payWindows, slow: true},
		{name: "a time that was asked for", asked: time.Minute, slowTimes: 1, want: []time.Duration{time.Minute}, slow: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			options := testOptions(1)
			options.PayWithin = c.asked
			var tried []time.Duration
			report, err := tryWindows(options, func(o Options) (*Report, error) {
				if tried = append(tried, o.PayWithin); len(tried) <= c.slowTimes {
					return nil, slow
				}
				return &Report{}, nil
			})
			if !slices.Equal(tried, c.want) || errors.Is(err, slow) != c.slow {
				t.Fatalf("held with %v, error %v, want %v and too slow: %t", tried, err, c.want, c.slow)
			}
			if !c.slow && len(report.Notes) > 0 != c.note {
				t.Errorf("notes are %q, want any: %t", report.Notes, c.note)
			}
		})
	}
}

func TestASaleIsHeldOverTLS(t *testing.T) {
	shop := newFakeShop(t)
	shop.tls = true
	options := testOptions(1)
	options.TLS = &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
	if _, err := hold(t.Context(), options, shop); err == nil {
		t.Fatal("a sale with a shop whose certificate nobody trusts was held")
	}
	// The certificate is the same for every test server.
	known := httptest.NewTLSServer(http.NotFoundHandler())
	defer known.Close()
	options.TLS.RootCAs.AddCert(known.Certificate())
	report, err := hold(t.Context(), options, shop)
	if err != nil || len(report.Wrong) > 0 || report.Totals.Sold != 20 || report.Totals.Paid != 18 {
		t.Fatalf("seed %d: %v, report %+v, want 20 sold and 18 paid", options.Seed, err, report)
	}
}

func TestASaleEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	shop := newFakeShop(t)
	shop.busy = 1 << 40
	options := testOptions(1)
	options.Watch = func(p Progress) {
		if p.Step == "rush" {
			cancel()
		}
	}
	if _, err := hold(ctx, options, shop); !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v, want that it was cancelled", err)
	}
}

func TestACrowdHasNoUserTwice(t *testing.T) {
	seed := rand.Uint64()
	crowd, seen := newCrowd(seed), map[uint32]bool{}
	for attempt := range int64(100_000) {
		user := crowd.user(attempt)
		if seen[user] {
			t.Fatalf("seed %d: user %d comes twice, at attempt %d again", seed, user, attempt)
		}
		seen[user] = true
	}
	if newCrowd(seed) != crowd || newCrowd(seed+1) == crowd {
		t.Fatalf("seed %d does not decide the crowd", seed)
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"no units":             func(o *Options) { o.Units = 0 },
		"too many units":       func(o *Options) { o.Units = unitsMax + 1 },
		"no attempts":          func(o *Options) { o.Attempts = 0 },
		"too many attempts":    func(o *Options) { o.Attempts = attemptsMax + 1 },
		"more than everybody":  func(o *Options) { o.DeclinedPercent, o.UnpaidPercent = 60, 41 },
		"less than nobody":     func(o *Options) { o.UnpaidPercent = -1 },
		"no connections":       func(o *Options) { o.Connections = 0 },
		"too many connections": func(o *Options) { o.Connections = connectionsMax + 1 },
		"no time to pay":       func(o *Options) { o.PayWithin = payWithinMin - 1 },
		"somebody else's node": func(o *Options) { o.Addr, o.Kill = "127.0.0.1:1", true },
	} {
		options := DefaultOptions()
		if err := options.Validate(); err != nil {
			t.Fatalf("the defaults are refused: %v", err)
		}
		change(&options)
		if err := options.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// fakeShop is a node that keeps everything in memory, and lies when it is told to.
type fakeShop struct {
	orderv1connect.UnimplementedOrderServiceHandler
	catalogv1connect.UnimplementedCatalogServiceHandler
	campaignv1connect.UnimplementedCampaignServiceHandler
	paymentv1connect.UnimplementedPaymentServiceHandler
	t *testing.T

	// tls makes it serve over TLS.
	tls bool
	// extra units are sold on top of the received ones, leak units vanish from the account.
	extra, leak int64
	// busy is how many calls are told to come later, dropEvery how often a call's reply is lost after it took effect.
	busy, dropEvery int64
	// reason of refusals when nothing is left, soldOut what happens at the first of them.
	reason  string
	soldOut func()
	sameID  bool
	// greedy lets a user have another unit.
	greedy bool
	// free takes no payments, tip is what a payment captures too much, generous lets declined cards pay.
	free, generous bool
	tip            int64
	// surcharge is what an order costs more than the campaign says.
	surcharge int64
	// lost is an order that cannot be read.
	lost string
	// expiring is after how many looks at the account the unpaid orders expire; 0 for never.
	expiring  int
	payWithin time.Duration
	restarts  int

	mu      sync.Mutex
	server  *httptest.Server
	calls   int64
	terms   *campaignv1.PutCampaignRequest
	orders  map[string]*orderv1.Order
	replies map[string]*orderv1.PlaceOrderResponse
}

func newFakeShop(t *testing.T) *fakeShop {
	return &fakeShop{
		t: t, reason: "OUT_OF_STOCK", payWithin: time.Hour,
		orders: map[string]*orderv1.Order{}, replies: map[string]*orderv1.PlaceOrderResponse{},
	}
}

func (s *fakeShop) Start(context.Context) error {
	mux := http.NewServeMux()
	mux.Handle(orderv1connect.NewOrderServiceHandler(s))
	mux.Handle(catalogv1connect.NewCatalogServiceHandler(s))
	mux.Handle(campaignv1connect.NewCampaignServiceHandler(s))
	if !s.free {
		mux.Handle(paymentv1connect.NewPaymentServiceHandler(s))
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.tls && r.Host != r.Context().Value(http.LocalAddrContextKey).(net.Addr).String() {
			s.t.Errorf("%s was asked of the host %q", r.URL.Path, r.Host)
		}
		if r.Header.Get("Authorization") != "Bearer operator" {
			s.t.Errorf("%s came with %q", r.URL.Path, r.Header.Get("Authorization"))
		}
		if s.drops(r) {
			mux.ServeHTTP(httptest.NewRecorder(), r) // It takes effect, and nobody hears of it.
			panic(http.ErrAbortHandler)
		}
		mux.ServeHTTP(w, r)
	}))
	if s.tls {
		server.StartTLS()
	} else {
		server.Start()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
	return nil
}

func (s *fakeShop) drops(r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	return s.dropEvery > 0 && s.calls%s.dropEvery == 0 && r.URL.Path == orderv1connect.OrderServicePlaceOrderProcedure
}

func (s *fakeShop) Restart(ctx context.Context) (time.Duration, error) {
	s.restarts++
	s.server.CloseClientConnections()
	if err := s.End(); err != nil {
		return 0, err
	}
	return time.Millisecond, s.Start(ctx)
}

func (s *fakeShop) End() error {
	s.server.Close()
	return nil
}

func (s *fakeShop) Addr() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server.Listener.Addr().String()
}

func (s *fakeShop) Token() string { return "operator" }
func (s *fakeShop) Data() string  { return "data" }

func refuse(code connect.Code, reason string, retry *errdetails.RetryInfo) error {
	err := connect.NewError(code, errors.New(reason))
	details := []proto.Message{&errdetails.ErrorInfo{Domain: "weir", Reason: reason}}
	if retry != nil {
		details = append(details, retry)
	}
	for _, message := range details {
		if added, detailErr := connect.NewErrorDetail(message); detailErr == nil {
			err.AddDetail(added)
		}
	}
	return err
}

func (s *fakeShop) holding() (units int64) {
	for _, order := range s.orders {
		if order.Status != orderv1.OrderStatus_ORDER_STATUS_EXPIRED {
			units++
		}
	}
	return units
}

func (s *fakeShop) paid() (units int64) {
	for _, order := range s.orders {
		if order.Status == orderv1.OrderStatus_ORDER_STATUS_PAID {
			units++
		}
	}
	return units
}

func (s *fakeShop) StartPayment(_ context.Context, r *paymentv1.StartPaymentRequest) (*paymentv1.StartPaymentResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	order := s.orders[r.OrderId]
	payment := &orderv1.Payment{DeclineCode: "card_declined"}
	if r.Provider != "sandbox" {
		s.t.Errorf("a payment through %q", r.Provider)
	}
	if r.Method == "tok_ok" || s.generous {
		payment = &orderv1.Payment{State: orderv1.PaymentState_PAYMENT_STATE_CAPTURED, Captured: proto.CloneOf(order.Total)}
		payment.Captured.Units += s.tip
		order.Status = orderv1.OrderStatus_ORDER_STATUS_PAID
	}
	order.Payments = []*orderv1.Payment{payment}
	return &paymentv1.StartPaymentResponse{Order: proto.CloneOf(order)}, nil
}

func (s *fakeShop) GetPayment(_ context.Context, r *paymentv1.GetPaymentRequest) (*paymentv1.GetPaymentResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	order := s.orders[r.OrderId]
	return &paymentv1.GetPaymentResponse{Payment: proto.CloneOf(order.Payments[0]), OrderStatus: order.Status}, nil
}

func (s *fakeShop) PlaceOrder(_ context.Context, r *orderv1.PlaceOrderRequest) (*orderv1.PlaceOrderResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy > 0 {
		s.busy--
		return nil, refuse(connect.CodeResourceExhausted, "QUEUE_FULL", &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)})
	}
	key := r.UserId + r.RequestId
	if reply, known := s.replies[key]; known {
		return proto.CloneOf(reply), nil
	}
	if r.CampaignId != s.terms.CampaignId {
		s.t.Errorf("an order at the terms of %q", r.CampaignId)
	}
	for _, order := range s.orders {
		if !s.greedy && order.UserId == r.UserId && order.Status != orderv1.OrderStatus_ORDER_STATUS_EXPIRED {
			return nil, refuse(connect.CodeFailedPrecondition, "CAMPAIGN_LIMIT", nil)
		}
	}
	if s.holding() >= s.terms.Units+s.extra && (!s.greedy || !strings.Contains(r.RequestId, "-another-")) {
		if s.soldOut != nil {
			s.soldOut()
			s.soldOut = nil
		}
		return nil, refuse(connect.CodeFailedPrecondition, s.reason, nil)
	}
	number := len(s.orders)
	order := &orderv1.Order{
		OrderId: fmt.Sprintf("order-%d", number), UserId: r.UserId, Status: orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT,
		Total: &typev1.Money{CurrencyCode: "EUR", Units: s.terms.Price.Units + s.surcharge}, PlacedAt: timestamppb.Now(),
	}
	order.PayBy = timestamppb.New(order.PlacedAt.AsTime().Add(s.payWithin))
	s.orders[order.OrderId] = order
	reply := &orderv1.PlaceOrderResponse{Order: proto.CloneOf(order), Revision: &typev1.Revision{Commit: uint64(number)}}
	if s.sameID && number == 1 {
		reply.Order.OrderId = "order-0"
	}
	s.replies[key] = reply
	return proto.CloneOf(reply), nil
}

func (s *fakeShop) GetOrder(_ context.Context, r *orderv1.GetOrderRequest) (*orderv1.GetOrderResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, known := s.orders[r.OrderId]
	if !known || r.OrderId == s.lost {
		return nil, refuse(connect.CodeNotFound, "ORDER_NOT_FOUND", nil)
	}
	return &orderv1.GetOrderResponse{Order: proto.CloneOf(found)}, nil
}

func (s *fakeShop) PutProduct(context.Context, *catalogv1.PutProductRequest) (*catalogv1.PutProductResponse, error) {
	return &catalogv1.PutProductResponse{}, nil
}

func (s *fakeShop) ReceiveStock(context.Context, *catalogv1.ReceiveStockRequest) (*catalogv1.ReceiveStockResponse, error) {
	return &catalogv1.ReceiveStockResponse{}, nil
}

func (s *fakeShop) PreheatStock(_ context.Context, r *catalogv1.PreheatStockRequest) (*catalogv1.PreheatStockResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if want := s.terms.Sku + "@" + s.terms.CampaignId; r.Sku != want {
		s.t.Errorf("%q is preheated, want %q", r.Sku, want)
	}
	return &catalogv1.PreheatStockResponse{}, nil
}

func (s *fakeShop) PutCampaign(_ context.Context, r *campaignv1.PutCampaignRequest) (*campaignv1.PutCampaignResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.terms = r
	return &campaignv1.PutCampaignResponse{}, nil
}

func (s *fakeShop) GetCampaign(context.Context, *campaignv1.GetCampaignRequest) (*campaignv1.GetCampaignResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := &campaignv1.Campaign{Units: s.terms.Units, Reserved: s.holding() - s.paid(), Sold: s.paid()}
	found.Remaining = found.Units - found.Reserved - found.Sold - s.leak
	if s.expiring > 0 {
		// That look was at the account before anything has expired.
		if s.expiring--; s.expiring == 0 {
			for _, order := range s.orders {
				if order.Status != orderv1.OrderStatus_ORDER_STATUS_PAID {
					order.Status = orderv1.OrderStatus_ORDER_STATUS_EXPIRED
				}
			}
		}
	}
	return &campaignv1.GetCampaignResponse{Campaign: found}, nil
}
