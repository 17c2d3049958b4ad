package api_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api"
	"github.com/weirhq/weir/api/identity"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func euros(units int64) *typev1.Money { return &typev1.Money{CurrencyCode: "EUR", Units: units} }

func (n *node) flash(opensIn time.Duration) *campaignv1.PutCampaignRequest {
	return &campaignv1.PutCampaignRequest{
		CampaignId: "flash", Sku: "tea", Price: euros(499), OpensAt: timestamppb.New(n.now.Add(opensIn)), ClosesAt: timestamppb.New(n.now.Add(time.Hour)),
		UserUnitsMax: 2, Units: 50,
	}
}

func TestACampaignIsPutReadAndOrderedAt(t *testing.T) {
	n := serve(t, nil)
	n.stock("tea")
	for name, options := range transports {
		operator, buyer := n.client("boss", identity.ScopeOperator, options...), n.client("ada-"+strings.ReplaceAll(name, " ", "-"), 0, options...)
		put := must(operator.PutCampaign(t.Context(), n.flash(-time.Minute)))(t)
		if put.Campaign.CampaignId != "flash" || put.Campaign.Price.Units != 499 || put.Campaign.Units != 50 || !proto.Equal(put.Revision, put.Campaign.Revision) {
			t.Fatalf("%s: put %v", name, put)
		}
		before := must(buyer.GetCampaign(t.Context(), &campaignv1.GetCampaignRequest{CampaignId: "flash", MinRevision: put.Revision}))(t).Campaign
		order := request("flash", "tea", 2)
		order.CampaignId = "flash"
		placed := must(buyer.PlaceOrder(t.Context(), order))(t).Order
		if placed.CampaignId != "flash" || placed.Total.Units != 998 || placed.Subtotal != nil || placed.Items[0].UnitPrice.Units != 499 {
			t.Errorf("%s: placed %v", name, placed)
		}
		if again := must(buyer.PlaceOrder(t.Context(), order))(t).Order; !proto.Equal(again, placed) {
			t.Errorf("%s: placed again %v, first %v", name, again, placed)
		}
		got := must(buyer.GetOrder(t.Context(), &orderv1.GetOrderRequest{OrderId: placed.OrderId}))(t).Order
		if !proto.Equal(got, placed) {
			t.Errorf("%s: got %v, placed %v", name, got, placed)
		}
		after := must(buyer.ListCampaigns(t.Context(), &campaignv1.ListCampaignsRequest{}))(t).Campaigns[0]
		if after.Remaining != before.Remaining-2 || after.Reserved != before.Reserved+2 || after.SoldOut {
			t.Errorf("%s: of %v is left %v", name, before, after)
		}
		order.RequestId = "once-more"
		_, err := buyer.PlaceOrder(t.Context(), order)
		wantError(t, name+", past the limit", err, connect.CodeFailedPrecondition, api.ReasonCampaignLimit)
		order.CampaignId = "none"
		_, err = buyer.PlaceOrder(t.Context(), order)
		wantError(t, name+", no such campaign", err, connect.CodeNotFound, api.ReasonCampaignNotFound)
		_, err = buyer.GetCampaign(t.Context(), &campaignv1.GetCampaignRequest{CampaignId: "none"})
		wantError(t, name+", no such campaign", err, connect.CodeNotFound, api.ReasonCampaignNotFound)
		_, err = buyer.PutCampaign(t.Context(), n.flash(0))
		wantError(t, name+", put by a buyer", err, connect.CodePermissionDenied, api.ReasonPermissionDenied)
	}
}

// A campaign that opens soon says so as a retry; one that opens later only says when.
func TestACampaignThatIsNotOpenSaysWhenToComeAgain(t *testing.T) {
	n := serve(t, nil)
	n.stock("tea")
	operator := n.client("boss", identity.ScopeOperator)
	order := request("r", "tea", 1)
	order.CampaignId = "flash"
	for opensIn, retry := range map[time.Duration]bool{30 * time.Second: true, 10 * time.Minute: false} {
		put := n.flash(opensIn)
		must(operator.PutCampaign(t.Context(), put))(t)
		_, err := operator.PlaceOrder(t.Context(), order)
		wantError(t, opensIn.String(), err, connect.CodeFailedPrecondition, api.ReasonCampaignNotOpen)
		var coded *connect.Error
		if !errors.As(err, &coded) {
			t.Fatal(err)
		}
		told := false
		for _, detail := range coded.Details() {
			value, err := detail.Value()
			if err != nil {
				t.Fatal(err)
			}
			if info, ok := value.(*errdetails.RetryInfo); ok {
				told = true
				if after := info.RetryDelay.AsDuration(); after <= 0 || after > opensIn {
					t.Errorf("it opens in %s, and says %s", opensIn, after)
				}
			}
			if info, ok := value.(*errdetails.ErrorInfo); ok && info.Metadata["opens_at"] != put.OpensAt.AsTime().Format(time.RFC3339Nano) {
				t.Errorf("it opens at %v, and says %v", put.OpensAt.AsTime(), info.Metadata)
			}
		}
		if told != retry {
			t.Errorf("it opens in %s: told to come again %t, want %t", opensIn, told, retry)
		}
	}
}

func TestACurrencyThatThereIsNotIsRefused(t *testing.T) {
	n := serve(t, nil)
	n.stock("tea")
	operator, mistyped := n.client("boss", identity.ScopeOperator), &typev1.Money{CurrencyCode: "EUE", Units: 1290}
	put := func(what, argument string, err error) {
		t.Helper()
		if info := wantError(t, what, err, connect.CodeInvalidArgument, api.ReasonInvalidArgument); info.GetMetadata()["argument"] != argument {
			t.Errorf("%s: it names %v, want %s", what, info.GetMetadata(), argument)
		}
	}
	_, err := operator.PutProduct(t.Context(), &catalogv1.PutProductRequest{Sku: "cup", Title: "Cup", Price: mistyped})
	put("a product", "price.currency_code", err)
	now := time.Now()
	_, err = operator.PutCampaign(t.Context(), &campaignv1.PutCampaignRequest{
		CampaignId: "flash", Sku: "tea", Price: mistyped, Units: 1, OpensAt: timestamppb.New(now), ClosesAt: timestamppb.New(now.Add(time.Hour)),
	})
	put("a campaign", "price.currency_code", err)
	_, err = operator.PutCoupon(t.Context(), &campaignv1.PutCouponRequest{CouponCode: "OFF", Amount: mistyped})
	put("a coupon", "amount.currency_code", err)
	_, err = operator.PutCoupon(t.Context(), &campaignv1.PutCouponRequest{CouponCode: "OFF", RateBps: 500, MinSubtotal: mistyped})
	put("a coupon's least subtotal", "min_subtotal.currency_code", err)
}

func TestACouponAndTaxesAreOnTheOrder(t *testing.T) {
	n := serve(t, nil)
	for name, options := range transports {
		operator, buyer := n.client("boss", identity.ScopeOperator, options...), n.client("ada-"+strings.ReplaceAll(name, " ", "-"), 0, options...)
		must(operator.PutProduct(t.Context(), &catalogv1.PutProductRequest{Sku: "tea", Title: "Tea", Price: euros(1190), TaxRateBps: 1900, TaxIncluded: true}))(t)
		product := must(operator.PutProduct(t.Context(), &catalogv1.PutProductRequest{Sku: "cup", Title: "Cup", Price: euros(1000), TaxRateBps: 700}))(t).Product
		if product.TaxRateBps != 700 || product.TaxIncluded {
			t.Errorf("%s: put %v", name, product)
		}
		for _, sku := range []string{"tea", "cup"} {
			must(operator.ReceiveStock(t.Context(), &catalogv1.ReceiveStockRequest{RequestId: "s-" + sku, Sku: sku, Quantity: 100}))(t)
		}
		put := must(operator.PutCoupon(t.Context(), &campaignv1.PutCouponRequest{CouponCode: "HALF", RateBps: 5000, UserUsesMax: 1, UsesMax: 50}))(t)
		if put.Coupon.RateBps != 5000 || put.Coupon.Amount != nil || put.Coupon.ValidFrom != nil || put.Coupon.UsesMax != 50 {
			t.Errorf("%s: put %v", name, put)
		}
		before := must(operator.GetCoupon(t.Context(), &campaignv1.GetCouponRequest{CouponCode: "HALF"}))(t).Coupon
		order := request("r", "tea", 1, "cup", 1)
		order.CouponCode = "HALF"
		placed := must(buyer.PlaceOrder(t.Context(), order))(t).Order
		tea, cup := placed.Items[0], placed.Items[1]
		if placed.CouponCode != "HALF" || placed.Subtotal.Units != 2190 || placed.Discount.Units != 1095 || placed.Tax.Units != 130 || placed.Total.Units != 1130 ||
			tea.Discount.Units != 595 || tea.Tax.Units != 95 || tea.TaxRateBps != 1900 || !tea.TaxIncluded ||
			cup.Discount.Units != 500 || cup.Tax.Units != 35 || cup.TaxRateBps != 700 || cup.TaxIncluded {
			t.Errorf("%s: placed %v", name, placed)
		}
		after := must(operator.ListCoupons(t.Context(), &campaignv1.ListCouponsRequest{}))(t).Coupons[0]
		if after.Redeemed != before.Redeemed+1 || after.Remaining != before.Remaining-1 {
			t.Errorf("%s: %v was redeemed to %v", name, before, after)
		}
		order.RequestId = "r2"
		_, err := buyer.PlaceOrder(t.Context(), order)
		wantError(t, name+", twice", err, connect.CodeFailedPrecondition, api.ReasonCouponLimit)
		order.CouponCode = "NONE"
		_, err = buyer.PlaceOrder(t.Context(), order)
		wantError(t, name+", no such coupon", err, connect.CodeNotFound, api.ReasonCouponInvalid)
		_, err = operator.GetCoupon(t.Context(), &campaignv1.GetCouponRequest{CouponCode: "NONE"})
		wantError(t, name+", no such coupon", err, connect.CodeNotFound, api.ReasonCouponInvalid)
		_, err = buyer.ListCoupons(t.Context(), &campaignv1.ListCouponsRequest{})
		wantError(t, name+", listed by a buyer", err, connect.CodePermissionDenied, api.ReasonPermissionDenied)
	}
}

func TestWhatNoCampaignOrCouponCanBeIsRefused(t *testing.T) {
	n := serve(t, nil)
	n.stock("tea")
	operator := n.client("boss", identity.ScopeOperator)
	for what, change := range map[string]func(*campaignv1.PutCampaignRequest){
		"no price":       func(m *campaignv1.PutCampaignRequest) { m.Price = nil },
		"no opening":     func(m *campaignv1.PutCampaignRequest) { m.OpensAt = nil },
		"no close":       func(m *campaignv1.PutCampaignRequest) { m.ClosesAt = nil },
		"closed at once": func(m *campaignv1.PutCampaignRequest) { m.ClosesAt = m.OpensAt },
		"far off":        func(m *campaignv1.PutCampaignRequest) { m.ClosesAt = &timestamppb.Timestamp{Seconds: 9_000_000_000} },
		"no time":        func(m *campaignv1.PutCampaignRequest) { m.OpensAt = &timestamppb.Timestamp{Seconds: 1, Nanos: -1} },
		"no time either": func(m *campaignv1.PutCampaignRequest) {
			m.OpensAt = &timestamppb.Timestamp{Seconds: 1, Nanos: 1_000_000_000}
		},
		"negative units":  func(m *campaignv1.PutCampaignRequest) { m.Units = -1 },
		"negative limit":  func(m *campaignv1.PutCampaignRequest) { m.UserUnitsMax = -1 },
		"many an order":   func(m *campaignv1.PutCampaignRequest) { m.OrderUnitsMax = 1_000_000_001 },
		"no name":         func(m *campaignv1.PutCampaignRequest) { m.CampaignId = "" },
		"a pool's name":   func(m *campaignv1.PutCampaignRequest) { m.CampaignId = "a@b" },
		"a pool's SKU":    func(m *campaignv1.PutCampaignRequest) { m.Sku = "tea@flash" },
		"negative amount": func(m *campaignv1.PutCampaignRequest) { m.Price.Units = -1 },
	} {
		put := n.flash(0)
		change(put)
		_, err := operator.PutCampaign(t.Context(), put)
		wantError(t, "campaign, "+what, err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	}
	for what, put := range map[string]*campaignv1.PutCouponRequest{
		"nothing off":    {CouponCode: "A"},
		"both off":       {CouponCode: "A", Amount: euros(1), RateBps: 1},
		"too much off":   {CouponCode: "A", RateBps: 10_001},
		"no amount":      {CouponCode: "A", Amount: euros(0)},
		"no currency":    {CouponCode: "A", Amount: &typev1.Money{Units: 1}},
		"two currencies": {CouponCode: "A", Amount: euros(1), MinSubtotal: &typev1.Money{CurrencyCode: "JPY", Units: 1}},
		"never":          {CouponCode: "A", RateBps: 1, ValidFrom: &timestamppb.Timestamp{Seconds: 2}, ValidUntil: &timestamppb.Timestamp{Seconds: 1}},
		"no time":        {CouponCode: "A", RateBps: 1, ValidUntil: &timestamppb.Timestamp{Seconds: 1, Nanos: -1}},
		"negative limit": {CouponCode: "A", RateBps: 1, UsesMax: -1},
		"no code":        {RateBps: 1},
		"a pool's code":  {CouponCode: "A@", RateBps: 1},
	} {
		_, err := operator.PutCoupon(t.Context(), put)
		wantError(t, "coupon, "+what, err, connect.CodeInvalidArgument, api.ReasonInvalidArgument)
	}
	if head := n.head(); head != 2 {
		t.Errorf("what was refused wrote %d commits", head-2)
	}
}
