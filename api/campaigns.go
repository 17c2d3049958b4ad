package api

import (
	"cmp"
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/api/identity"
	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// campaignService is weir.campaign.v1.CampaignService.
type campaignService struct{ *Handler }

// PutCampaign implements campaignv1connect.CampaignServiceHandler. Unlike the rest of the service it is an operator's.
func (s campaignService) PutCampaign(ctx context.Context, request *campaignv1.PutCampaignRequest) (*campaignv1.PutCampaignResponse, error) {
	fail := func(err error) (*campaignv1.PutCampaignResponse, error) {
		return nil, s.fail(ctx, campaignv1connect.CampaignServicePutCampaignProcedure, err)
	}
	if !identity.FromContext(ctx).Operates() {
		return fail(permissionDenied(identity.ScopeOperator))
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	opensAt, opensErr := timeOf("opens_at", request.OpensAt)
	closesAt, closesErr := timeOf("closes_at", request.ClosesAt)
	if err := cmp.Or(checkCurrency("price", request.Price), opensErr, closesErr); err != nil {
		return fail(err)
	}
	reply, err := s.submit(ctx, request.Sku, request.RequestId, fingerprintPutCampaign(request), domain.PutCampaign{
		CampaignID: request.CampaignId, SKU: request.Sku, Price: domain.Money{Currency: request.Price.CurrencyCode, Minor: request.Price.Units},
		OpensAt: opensAt, ClosesAt: closesAt,
		UserUnitsMax: request.UserUnitsMax, OrderUnitsMax: request.OrderUnitsMax, Units: request.Units,
	})
	if err != nil {
		return fail(err)
	}
	campaign := newCampaign(&reply.Campaign, reply.Lane, reply.Commit)
	return &campaignv1.PutCampaignResponse{Campaign: campaign, Revision: campaign.Revision}, nil
}

// GetCampaign implements campaignv1connect.CampaignServiceHandler. Every lane sells of it, so min_revision may name any of
// them.
func (s campaignService) GetCampaign(ctx context.Context, request *campaignv1.GetCampaignRequest) (*campaignv1.GetCampaignResponse, error) {
	fail := func(err error) (*campaignv1.GetCampaignResponse, error) {
		return nil, s.fail(ctx, campaignv1connect.CampaignServiceGetCampaignProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return fail(err)
	}
	view, freshness, err := s.views.Campaign(ctx, request.CampaignId, request.Sku, min)
	if errors.Is(err, projections.ErrSeveral) {
		return fail(invalidArgument("sku", "the campaign is of several products; say which"))
	}
	if err != nil {
		return fail(viewFault(err, min, &domain.CampaignNotFoundError{CampaignID: request.CampaignId, SKU: request.Sku}))
	}
	return &campaignv1.GetCampaignResponse{Campaign: newCampaignOf(&view), Freshness: newFreshness(freshness)}, nil
}

// ListCampaigns implements campaignv1connect.CampaignServiceHandler.
func (s campaignService) ListCampaigns(ctx context.Context, request *campaignv1.ListCampaignsRequest) (*campaignv1.ListCampaignsResponse, error) {
	fail := func(err error) (*campaignv1.ListCampaignsResponse, error) {
		return nil, s.fail(ctx, campaignv1connect.CampaignServiceListCampaignsProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return fail(err)
	}
	page, freshness, err := s.views.Campaigns(ctx, projections.KeysQuery{PageSize: int(request.PageSize), PageToken: request.PageToken}, min)
	if err != nil {
		return fail(viewFault(err, min, err))
	}
	response := &campaignv1.ListCampaignsResponse{
		Campaigns: make([]*campaignv1.Campaign, len(page.Campaigns)), NextPageToken: page.Next, Freshness: newFreshness(freshness),
	}
	for i := range page.Campaigns {
		response.Campaigns[i] = newCampaignOf(&page.Campaigns[i])
	}
	return response, nil
}

// couponService is weir.campaign.v1.CouponService. The gate in front of it lets operators in and nobody else.
type couponService struct{ *Handler }

// PutCoupon implements campaignv1connect.CouponServiceHandler.
func (s couponService) PutCoupon(ctx context.Context, request *campaignv1.PutCouponRequest) (*campaignv1.PutCouponResponse, error) {
	fail := func(err error) (*campaignv1.PutCouponResponse, error) {
		return nil, s.fail(ctx, campaignv1connect.CouponServicePutCouponProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	terms, err := couponTerms(request)
	if err != nil {
		return fail(err)
	}
	reply, err := s.submit(ctx, request.CouponCode, request.RequestId, fingerprintPutCoupon(request),
		domain.PutCoupon{Code: request.CouponCode, Terms: terms})
	if err != nil {
		return fail(err)
	}
	coupon := newCoupon(&reply.Coupon, reply.Lane, reply.Commit)
	return &campaignv1.PutCouponResponse{Coupon: coupon, Revision: coupon.Revision}, nil
}

// couponTerms reads the terms of a request that keeps the rules of its proto file.
func couponTerms(request *campaignv1.PutCouponRequest) (domain.CouponTerms, error) {
	from, fromErr := timeOf("valid_from", request.ValidFrom)
	until, untilErr := timeOf("valid_until", request.ValidUntil)
	if err := cmp.Or(checkCurrency("amount", request.Amount), checkCurrency("min_subtotal", request.MinSubtotal), fromErr, untilErr); err != nil {
		return domain.CouponTerms{}, err
	}
	terms := domain.CouponTerms{
		Kind: domain.CouponPercentage, RateBps: int64(request.RateBps), ValidFrom: from, ValidUntil: until,
		UserUsesMax: request.UserUsesMax, UsesMax: request.UsesMax,
	}
	if request.Amount != nil {
		terms.Kind, terms.AmountMinor, terms.Currency = domain.CouponFixed, request.Amount.Units, request.Amount.CurrencyCode
	}
	if least := request.MinSubtotal; least.GetUnits() > 0 {
		if terms.Currency != "" && terms.Currency != least.CurrencyCode {
			return terms, invalidArgument("min_subtotal.currency_code", "it is not that of amount")
		}
		terms.MinSubtotalMinor, terms.Currency = least.Units, least.CurrencyCode
	}
	return terms, nil
}

// GetCoupon implements campaignv1connect.CouponServiceHandler. Every lane redeems it, so min_revision may name any of them.
func (s couponService) GetCoupon(ctx context.Context, request *campaignv1.GetCouponRequest) (*campaignv1.GetCouponResponse, error) {
	fail := func(err error) (*campaignv1.GetCouponResponse, error) {
		return nil, s.fail(ctx, campaignv1connect.CouponServiceGetCouponProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return fail(err)
	}
	view, freshness, err := s.views.Coupon(ctx, request.CouponCode, min)
	if err != nil {
		return fail(viewFault(err, min, &domain.CouponInvalidError{Code: request.CouponCode}))
	}
	return &campaignv1.GetCouponResponse{Coupon: newCouponOf(&view), Freshness: newFreshness(freshness)}, nil
}

// ListCoupons implements campaignv1connect.CouponServiceHandler.
func (s couponService) ListCoupons(ctx context.Context, request *campaignv1.ListCouponsRequest) (*campaignv1.ListCouponsResponse, error) {
	fail := func(err error) (*campaignv1.ListCouponsResponse, error) {
		return nil, s.fail(ctx, campaignv1connect.CouponServiceListCouponsProcedure, err)
	}
	if err := s.validator.check(request); err != nil {
		return fail(err)
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return fail(err)
	}
	page, freshness, err := s.views.Coupons(ctx, projections.KeysQuery{PageSize: int(request.PageSize), PageToken: request.PageToken}, min)
	if err != nil {
		return fail(viewFault(err, min, err))
	}
	response := &campaignv1.ListCouponsResponse{
		Coupons: make([]*campaignv1.Coupon, len(page.Coupons)), NextPageToken: page.Next, Freshness: newFreshness(freshness),
	}
	for i := range page.Coupons {
		response.Coupons[i] = newCouponOf(&page.Coupons[i])
	}
	return response, nil
}

// timeOf reads a time of a request; one that is not set is the zero time.
func timeOf(field string, m *timestamppb.Timestamp) (time.Time, error) {
	if m == nil {
		return time.Time{}, nil
	}
	if err := m.CheckValid(); err != nil {
		return time.Time{}, invalidArgument(field, "it is not a time")
	}
	return m.AsTime(), nil
}

func newCampaign(c *domain.Campaign, lane uint32, commit uint64) *campaignv1.Campaign {
	price := &typev1.Money{}
	fillMoney(price, c.Price)
	return &campaignv1.Campaign{
		CampaignId: c.ID(), Sku: c.SKU(), Price: price, OpensAt: newTime(c.OpensAt), ClosesAt: newTime(c.ClosesAt),
		UserUnitsMax: c.UserUnitsMax, OrderUnitsMax: c.OrderUnitsMax, Units: c.Units,
		UpdateTime: newTime(c.UpdatedAt), Revision: &typev1.Revision{Lane: lane, Commit: commit},
	}
}

// newCampaignOf is newCampaign with what is left of it.
func newCampaignOf(view *projections.CampaignView) *campaignv1.Campaign {
	m := newCampaign(&view.Campaign, view.Revision.Lane, view.Revision.Commit)
	m.Remaining, m.Reserved, m.Sold = view.Stock.Remaining(), view.Stock.Reserved, view.Stock.Sold
	m.SoldOut = m.Remaining == 0
	return m
}

func newCoupon(c *domain.Coupon, lane uint32, commit uint64) *campaignv1.Coupon {
	t := &c.Terms
	return &campaignv1.Coupon{
		CouponCode: c.Code, Amount: newMoney(t.Currency, t.AmountMinor), RateBps: int32(t.RateBps),
		MinSubtotal: newMoney(t.Currency, t.MinSubtotalMinor), ValidFrom: newTime(t.ValidFrom), ValidUntil: newTime(t.ValidUntil),
		UserUsesMax: t.UserUsesMax, UsesMax: t.UsesMax,
		UpdateTime: newTime(c.UpdatedAt), Revision: &typev1.Revision{Lane: lane, Commit: commit},
	}
}

// newCouponOf is newCoupon with how often it was redeemed, when that is limited.
func newCouponOf(view *projections.CouponView) *campaignv1.Coupon {
	m := newCoupon(&view.Coupon, view.Revision.Lane, view.Revision.Commit)
	if m.UsesMax > 0 {
		m.Remaining, m.Redeemed = view.Stock.Remaining(), view.Stock.Reserved+view.Stock.Sold
	}
	return m
}

var (
	_ campaignv1connect.CampaignServiceHandler = campaignService{}
	_ campaignv1connect.CouponServiceHandler   = couponService{}
)
