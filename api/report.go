package api

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
	reportv1 "github.com/weirhq/weir/proto/weir/report/v1"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// reportService is weir.report.v1.ReportService. The gate in front of it lets operators in and nobody else.
type reportService struct{ *Handler }

// GetSales implements reportv1connect.ReportServiceHandler. Every lane sells, so min_revision may name any of them.
func (s reportService) GetSales(ctx context.Context, request *reportv1.GetSalesRequest) (*reportv1.GetSalesResponse, error) {
	response, err := s.getSales(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, reportv1connect.ReportServiceGetSalesProcedure, err)
	}
	return response, nil
}

func (s reportService) getSales(ctx context.Context, request *reportv1.GetSalesRequest) (*reportv1.GetSalesResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	from, fromErr := timeOf("from", request.From)
	to, toErr := timeOf("to", request.To)
	if err := cmp.Or(fromErr, toErr); err != nil {
		return nil, err
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return nil, err
	}
	rows, freshness, err := s.views.Sales(ctx, projections.SalesQuery{SKU: request.Sku, From: from, To: to, Step: stepOf(request.Step)}, min)
	if errors.Is(err, projections.ErrSalesRange) {
		return nil, invalidArgument("to", "it has to be after from, by a day at most when sales are by minute, 31 days by hour, 62 by day")
	}
	if err != nil {
		return nil, viewFault(err, min, err)
	}
	response := &reportv1.GetSalesResponse{Sales: make([]*reportv1.Sales, len(rows)), Freshness: newFreshness(freshness)}
	for i := range rows {
		response.Sales[i] = newSales(&rows[i])
	}
	return response, nil
}

// GetCampaignBoard implements reportv1connect.ReportServiceHandler. Every lane sells, so min_revision may name any of them.
func (s reportService) GetCampaignBoard(ctx context.Context, request *reportv1.GetCampaignBoardRequest) (*reportv1.GetCampaignBoardResponse, error) {
	response, err := s.getCampaignBoard(ctx, request)
	if err != nil {
		return nil, s.fail(ctx, reportv1connect.ReportServiceGetCampaignBoardProcedure, err)
	}
	return response, nil
}

func (s reportService) getCampaignBoard(ctx context.Context, request *reportv1.GetCampaignBoardRequest) (*reportv1.GetCampaignBoardResponse, error) {
	if err := s.validator.check(request); err != nil {
		return nil, err
	}
	min, err := s.minOfAny(request.MinRevision, request.WaitBudget)
	if err != nil {
		return nil, err
	}
	page, freshness, err := s.views.Board(ctx, projections.BoardQuery{
		CampaignID: request.CampaignId, Now: time.Now(), PageSize: int(request.PageSize), PageToken: request.PageToken,
	}, min)
	if err != nil {
		return nil, viewFault(err, min, &domain.CampaignNotFoundError{CampaignID: request.CampaignId})
	}
	response := &reportv1.GetCampaignBoardResponse{
		Rows: make([]*reportv1.CampaignRow, len(page.Rows)), NextPageToken: page.Next, Freshness: newFreshness(freshness),
	}
	for i := range page.Rows {
		response.Rows[i] = newCampaignRow(&page.Rows[i])
	}
	return response, nil
}

func newCampaignRow(row *projections.BoardRow) *reportv1.CampaignRow {
	campaign, stock := &row.Campaign, &row.Stock
	return &reportv1.CampaignRow{
		CampaignId: campaign.ID(), Sku: campaign.SKU(), OpensAt: newTime(campaign.OpensAt), ClosesAt: newTime(campaign.ClosesAt),
		Units: campaign.Units, Remaining: stock.Remaining(), Reserved: stock.Reserved, Sold: stock.Sold,
		Orders: row.Orders, GivenUpOrders: row.GivenUp, Buyers: row.Buyers, UnitsPerMinute: row.Rate,
		FirstOrderTime: newTime(row.First), SoldOutTime: newTime(row.SoldOutAt),
	}
}

func stepOf(step reportv1.SalesStep) time.Duration {
	switch step {
	case reportv1.SalesStep_SALES_STEP_HOUR:
		return time.Hour
	case reportv1.SalesStep_SALES_STEP_DAY:
		return 24 * time.Hour
	case reportv1.SalesStep_SALES_STEP_UNSPECIFIED, reportv1.SalesStep_SALES_STEP_MINUTE:
	}
	return time.Minute
}

func newSales(row *projections.SalesRow) *reportv1.Sales {
	money := func(minor int64) *typev1.Money { return &typev1.Money{CurrencyCode: row.Currency, Units: minor} }
	count := func(c projections.SalesCount) *reportv1.SalesCount {
		return &reportv1.SalesCount{Orders: c.Orders, Units: c.Units, Amount: money(c.Minor)}
	}
	return &reportv1.Sales{
		Start: newTime(row.Start), Placed: count(row.Placed), Paid: count(row.Paid), Cancelled: count(row.Cancelled), Expired: count(row.Expired),
		Refunds: row.Refunds, Refunded: money(row.RefundedMinor),
	}
}

var _ reportv1connect.ReportServiceHandler = reportService{}
