package main

import (
	"context"
	"errors"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/domain"
	campaignv1 "github.com/weirhq/weir/proto/weir/campaign/v1"
	"github.com/weirhq/weir/proto/weir/campaign/v1/campaignv1connect"
	reportv1 "github.com/weirhq/weir/proto/weir/report/v1"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func (p *process) campaignCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "campaign",
		Short: "Put, read and list campaigns, and see how they sell",
		Long: `Campaigns: a product sold at a price of its own, for a while, out of a stock of its own, so many units a user.

Any token reads them; to put one, and to read the board, needs the scope operator. Buyers name one with
weir order place --campaign.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.campaignPut(), c.campaignGet(), c.campaignList(), c.campaignBoard())
	return cmd
}

func (c *client) campaignPut() *cobra.Command {
	var (
		request       requestID
		sku, price    string
		opens, closes string
		perUser       int64
		perOrder      int64
		units         int64
	)
	cmd := &cobra.Command{
		Use:   "put CAMPAIGN --sku SKU --price AMOUNT --units UNITS --opens TIME --closes TIME",
		Short: "Create a campaign or change it",
		Long: `Create a campaign, or replace what is known of it.

Its units come out of the product's free stock in the same step; put it again with more to add some, with fewer to give
free ones back, for example after it has closed. What one user holds counts over all orders that are not cancelled or
expired.`,
		Example: `  weir campaign put singles --sku tea --price "4.99 EUR" --units 1000 \
    --opens 2026-11-11T00:00:00Z --closes 2026-11-12T00:00:00Z --per-user 2
  weir campaign put flash --sku tea --price "4.99 EUR" --units 100 --opens now --closes +5m`,
		Args: exactArgs("CAMPAIGN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needFlags(cmd, "sku", "price", "units", "opens", "closes"); err != nil {
				return err
			}
			money, err := parseAmount("--price", price)
			if err != nil {
				return err
			}
			opensAt, err := c.p.parseWhen("--opens", opens)
			if err != nil {
				return err
			}
			closesAt, err := c.p.parseWhen("--closes", closes)
			if err != nil {
				return err
			}
			return change(cmd, c, &request, "put campaign "+args[0], c.campaigns, campaignv1connect.CampaignServiceClient.PutCampaign,
				func(id string) *campaignv1.PutCampaignRequest {
					return &campaignv1.PutCampaignRequest{
						RequestId: id, CampaignId: args[0], Sku: sku, Price: money, OpensAt: opensAt, ClosesAt: closesAt,
						UserUnitsMax: perUser, OrderUnitsMax: perOrder, Units: units,
					}
				}, func(answer *campaignv1.PutCampaignResponse) error {
					return c.p.printCampaign(answer.GetCampaign(), "revision", revisionText(answer.GetRevision()), "request id", request.value)
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU` that it sells")
	cmd.Flags().StringVar(&price, "price", "", "price of one unit, an `AMOUNT` like \"4.99 EUR\"")
	cmd.Flags().StringVar(&opens, "opens", "", "`TIME` from which orders are taken: RFC 3339, now, or from now on like +5m")
	cmd.Flags().StringVar(&closes, "closes", "", "`TIME` from which orders are not taken any more")
	cmd.Flags().Int64Var(&perUser, "per-user", 0, "`UNITS` that one user may hold over all orders; 0 for no limit")
	cmd.Flags().Int64Var(&perOrder, "per-order", 0, "`UNITS` that one order may hold; 0 for no limit")
	cmd.Flags().Int64Var(&units, "units", 0, "`UNITS` of its stock, 0 to 1000000000")
	return cmd
}

func (c *client) campaignGet() *cobra.Command {
	var (
		min minRevision
		sku string
	)
	cmd := &cobra.Command{
		Use:   "get CAMPAIGN",
		Short: "Read one campaign and what is left of it",
		Long:  `Read one campaign, what is left of it over all lanes, and how fresh the answer is.`,
		Example: `  weir campaign get flash
  weir campaign get singles --sku tea -o json`,
		Args: exactArgs("CAMPAIGN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return read(cmd, c, &min, "get campaign "+args[0], c.campaigns, campaignv1connect.CampaignServiceClient.GetCampaign,
				func(revision *typev1.Revision, wait *durationpb.Duration) *campaignv1.GetCampaignRequest {
					return &campaignv1.GetCampaignRequest{CampaignId: args[0], Sku: sku, MinRevision: revision, WaitBudget: wait}
				}, func(answer *campaignv1.GetCampaignResponse) error {
					campaign := answer.GetCampaign()
					return c.p.printCampaign(campaign,
						"remaining", remainingText(campaign),
						"reserved", groupDigits(campaign.GetReserved()),
						"sold", groupDigits(campaign.GetSold()),
						"revision", revisionText(campaign.GetRevision()),
						"freshness", freshnessText(answer.GetFreshness()))
				})
		},
	}
	min.addFlags(cmd)
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU`, when the campaign is of several products")
	return cmd
}

func (c *client) campaignList() *cobra.Command {
	var (
		min  minRevision
		page pageFlags
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List campaigns and what is left of each",
		Long:    `List campaigns by id and SKU, one page at a time. When more follow, the last line says how to ask for them.`,
		Example: `  weir campaign list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return read(cmd, c, &min, "list campaigns", c.campaigns, campaignv1connect.CampaignServiceClient.ListCampaigns,
				func(revision *typev1.Revision, wait *durationpb.Duration) *campaignv1.ListCampaignsRequest {
					return &campaignv1.ListCampaignsRequest{PageSize: page.size, PageToken: page.token, MinRevision: revision, WaitBudget: wait}
				}, c.p.printCampaigns)
		},
	}
	min.addFlags(cmd)
	page.addFlags(cmd, "campaigns", 1000)
	return cmd
}

func (c *client) campaignBoard() *cobra.Command {
	var (
		min   minRevision
		page  pageFlags
		every time.Duration
		count int
	)
	cmd := &cobra.Command{
		Use:   "board [CAMPAIGN]",
		Short: "See how campaigns sell: what is left, who ordered, how fast",
		Long: `Print a row for each campaign and product, by id and SKU: units that remain, are reserved and are sold, orders and
buyers, units ordered in the last minute, when it closes, and since when it is sold out. It needs a token with the scope
operator.

Orders and the last minute count what was cancelled or expired since; buyers are users who still have an order. With
--every the board is printed again and again, with -o json one document each, until ctrl-c or --count.`,
		Example: `  weir campaign board
  weir campaign board flash --every 1s
  weir campaign board flash -o json | jq '.rows[].unitsPerMinute'`,
		Args: atMostArgs("CAMPAIGN"),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case every < 0:
				return usagef("--every must not be negative")
			case count < 0:
				return usagef("--count must not be negative")
			case count > 0 && every == 0:
				return usagef("--count needs --every")
			}
			question := &reportv1.GetCampaignBoardRequest{PageSize: page.size, PageToken: page.token}
			what := "read the campaign board"
			if len(args) == 1 {
				question.CampaignId, what = args[0], "read the board of campaign "+args[0]
			}
			return repeat(cmd.Context(), every, count, func() error {
				return read(cmd, c, &min, what, c.reports, reportv1connect.ReportServiceClient.GetCampaignBoard,
					func(revision *typev1.Revision, wait *durationpb.Duration) *reportv1.GetCampaignBoardRequest {
						question.MinRevision, question.WaitBudget = revision, wait
						return question
					}, c.p.printBoard)
			})
		},
	}
	min.addFlags(cmd)
	page.addFlags(cmd, "rows", 1000)
	cmd.Flags().DurationVar(&every, "every", 0, "print the board again after each `DURATION`; 0 prints it once")
	cmd.Flags().IntVar(&count, "count", 0, "end after this `NUMBER` of boards; 0 goes on until ctrl-c")
	return cmd
}

// repeat does something once, or again after every, until it has been done count times (0 is no limit) or the caller's end, which is
// no error.
func repeat(ctx context.Context, every time.Duration, count int, do func() error) error {
	if every == 0 {
		return do()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for done := 0; ; {
		err := do()
		if errors.Is(context.Cause(ctx), errInterrupted) {
			return nil
		}
		if done++; err != nil || done == count {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (p *process) printBoard(answer *reportv1.GetCampaignBoardResponse) error {
	rows := newTable("CAMPAIGN", "SKU", ">UNITS", ">REMAINING", ">RESERVED", ">SOLD", ">ORDERS", ">GIVEN UP", ">BUYERS", ">PER MINUTE", "CLOSES", "SOLD OUT SINCE")
	for _, r := range answer.GetRows() {
		rows.row(r.GetCampaignId(), r.GetSku(), groupDigits(r.GetUnits()), groupDigits(r.GetRemaining()), groupDigits(r.GetReserved()),
			groupDigits(r.GetSold()), groupDigits(r.GetOrders()), groupDigits(r.GetGivenUpOrders()), groupDigits(r.GetBuyers()),
			groupDigits(r.GetUnitsPerMinute()), timeText(r.GetClosesAt()), timeText(r.GetSoldOutTime()))
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	return p.printPageEnd(len(answer.GetRows()), "row", answer.GetNextPageToken(), answer.GetFreshness())
}

func (p *process) printCampaigns(answer *campaignv1.ListCampaignsResponse) error {
	rows := newTable("CAMPAIGN", "SKU", ">PRICE", ">UNITS", ">REMAINING", "OPENS", "CLOSES")
	for _, campaign := range answer.GetCampaigns() {
		rows.row(campaign.GetCampaignId(), campaign.GetSku(), moneyText(campaign.GetPrice()), groupDigits(campaign.GetUnits()),
			remainingText(campaign), timeText(campaign.GetOpensAt()), timeText(campaign.GetClosesAt()))
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	return p.printPageEnd(len(answer.GetCampaigns()), "campaign", answer.GetNextPageToken(), answer.GetFreshness())
}

func (p *process) printCampaign(campaign *campaignv1.Campaign, extra ...string) error {
	return fields(p.stdout, p.painterFor(p.stdout), append([]string{
		"campaign", campaign.GetCampaignId(),
		"sku", campaign.GetSku(),
		"price", moneyText(campaign.GetPrice()),
		"opens", timeText(campaign.GetOpensAt()),
		"closes", timeText(campaign.GetClosesAt()),
		"per user", limitText(campaign.GetUserUnitsMax()),
		"per order", limitText(campaign.GetOrderUnitsMax()),
		"units", groupDigits(campaign.GetUnits()),
	}, extra...)...)
}

func remainingText(campaign *campaignv1.Campaign) string {
	if campaign.GetSoldOut() {
		return "sold out"
	}
	return groupDigits(campaign.GetRemaining())
}

// limitText writes a limit; 0 is none and printed as nothing.
func limitText(limit int64) string {
	if limit == 0 {
		return ""
	}
	return groupDigits(limit)
}

func (p *process) couponCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "coupon",
		Short: "Put, read and list coupons",
		Long: `Coupons: a fixed amount or a share off an order, so often a user and so often in all. Every call needs a token with
the scope operator.

Buyers redeem one with weir order place --coupon. The discount is split over the order's lines.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.couponPut(), c.couponGet(), c.couponList())
	return cmd
}

func (c *client) couponPut() *cobra.Command {
	var (
		request      requestID
		amount, rate string
		least        string
		from, until  string
		perUser, all int64
	)
	cmd := &cobra.Command{
		Use:   "put CODE --amount AMOUNT|--rate PERCENT",
		Short: "Create a coupon or change it",
		Long: `Create a coupon, or replace what is known of it. Orders that were placed keep their discount.

The limit in all is exact, over all lanes; it can be raised later, not lowered. To end a coupon, put it with
--until now. An order that is cancelled or expires gives its redemption back.`,
		Example: `  weir coupon put WELCOME --amount "5.00 EUR" --min "20.00 EUR" --per-user 1
  weir coupon put TEN --rate 10% --limit 1000 --until 2026-12-01T00:00:00Z`,
		Args: exactArgs("CODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (amount == "") == (rate == "") {
				return usagef("a coupon takes off either an amount or a share").then("give --amount \"5.00 EUR\" or --rate 10%%")
			}
			question := &campaignv1.PutCouponRequest{CouponCode: args[0], UserUsesMax: perUser, UsesMax: all}
			var err error
			if question.Amount, err = parseAmount("--amount", amount); err != nil {
				return err
			}
			if question.RateBps, err = parsePercent("--rate", rate); err != nil {
				return err
			}
			if question.MinSubtotal, err = parseAmount("--min", least); err != nil {
				return err
			}
			if question.ValidFrom, err = c.p.parseWhen("--from", from); err != nil {
				return err
			}
			if question.ValidUntil, err = c.p.parseWhen("--until", until); err != nil {
				return err
			}
			return change(cmd, c, &request, "put coupon "+args[0], c.coupons, campaignv1connect.CouponServiceClient.PutCoupon,
				func(id string) *campaignv1.PutCouponRequest {
					question.RequestId = id
					return question
				}, func(answer *campaignv1.PutCouponResponse) error {
					return c.p.printCoupon(answer.GetCoupon(), "revision", revisionText(answer.GetRevision()), "request id", request.value)
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&amount, "amount", "", "`AMOUNT` that it takes off, like \"5.00 EUR\"")
	cmd.Flags().StringVar(&rate, "rate", "", "share that it takes off, a `PERCENT` like 10%")
	cmd.Flags().StringVar(&least, "min", "", "least `AMOUNT` of an order that may redeem it")
	cmd.Flags().StringVar(&from, "from", "", "`TIME` from which it may be redeemed: RFC 3339, now, or from now on like +24h")
	cmd.Flags().StringVar(&until, "until", "", "`TIME` from which it may not be redeemed any more")
	cmd.Flags().Int64Var(&perUser, "per-user", 0, "how often one user may redeem it, a `NUMBER`; 0 for no limit")
	cmd.Flags().Int64Var(&all, "limit", 0, "how often it may be redeemed in all, a `NUMBER`; 0 for no limit")
	return cmd
}

func (c *client) couponGet() *cobra.Command {
	var min minRevision
	cmd := &cobra.Command{
		Use:     "get CODE",
		Short:   "Read one coupon and how often it was redeemed",
		Long:    `Read one coupon, how often it was redeemed if that is limited, and how fresh the answer is.`,
		Example: `  weir coupon get WELCOME`,
		Args:    exactArgs("CODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return read(cmd, c, &min, "get coupon "+args[0], c.coupons, campaignv1connect.CouponServiceClient.GetCoupon,
				func(revision *typev1.Revision, wait *durationpb.Duration) *campaignv1.GetCouponRequest {
					return &campaignv1.GetCouponRequest{CouponCode: args[0], MinRevision: revision, WaitBudget: wait}
				}, func(answer *campaignv1.GetCouponResponse) error {
					coupon := answer.GetCoupon()
					return c.p.printCoupon(coupon, "redeemed", redeemedText(coupon), "revision", revisionText(coupon.GetRevision()),
						"freshness", freshnessText(answer.GetFreshness()))
				})
		},
	}
	min.addFlags(cmd)
	return cmd
}

func (c *client) couponList() *cobra.Command {
	var (
		min  minRevision
		page pageFlags
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List coupons",
		Long:    `List coupons by code, one page at a time. When more follow, the last line says how to ask for them.`,
		Example: `  weir coupon list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return read(cmd, c, &min, "list coupons", c.coupons, campaignv1connect.CouponServiceClient.ListCoupons,
				func(revision *typev1.Revision, wait *durationpb.Duration) *campaignv1.ListCouponsRequest {
					return &campaignv1.ListCouponsRequest{PageSize: page.size, PageToken: page.token, MinRevision: revision, WaitBudget: wait}
				}, c.p.printCoupons)
		},
	}
	min.addFlags(cmd)
	page.addFlags(cmd, "coupons", 1000)
	return cmd
}

func (p *process) printCoupons(answer *campaignv1.ListCouponsResponse) error {
	rows := newTable("COUPON", ">OFF", ">MIN", ">PER USER", "REDEEMED", "UNTIL")
	for _, coupon := range answer.GetCoupons() {
		rows.row(coupon.GetCouponCode(), offText(coupon), moneyText(coupon.GetMinSubtotal()), limitText(coupon.GetUserUsesMax()),
			redeemedText(coupon), timeText(coupon.GetValidUntil()))
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	return p.printPageEnd(len(answer.GetCoupons()), "coupon", answer.GetNextPageToken(), answer.GetFreshness())
}

func (p *process) printCoupon(coupon *campaignv1.Coupon, extra ...string) error {
	return fields(p.stdout, p.painterFor(p.stdout), append([]string{
		"coupon", coupon.GetCouponCode(),
		"off", offText(coupon),
		"min", moneyText(coupon.GetMinSubtotal()),
		"from", timeText(coupon.GetValidFrom()),
		"until", timeText(coupon.GetValidUntil()),
		"per user", limitText(coupon.GetUserUsesMax()),
		"limit", limitText(coupon.GetUsesMax()),
	}, extra...)...)
}

func offText(coupon *campaignv1.Coupon) string {
	if coupon.GetAmount() != nil {
		return moneyText(coupon.GetAmount())
	}
	return percentText(coupon.GetRateBps())
}

// redeemedText says how often a coupon was redeemed, nothing when nobody counts.
func redeemedText(coupon *campaignv1.Coupon) string {
	if coupon.GetUsesMax() == 0 {
		return ""
	}
	return groupDigits(coupon.GetRedeemed()) + " of " + groupDigits(coupon.GetUsesMax())
}

// parseAmount reads an amount; nil for none.
func parseAmount(flag, text string) (*typev1.Money, error) {
	if text == "" {
		return nil, nil
	}
	money, err := domain.ParseMoney(text)
	if err != nil {
		return nil, usagef("%s %q: %v", flag, text, err).then("write it as \"12.99 EUR\"")
	}
	return &typev1.Money{CurrencyCode: money.Currency, Units: money.Minor}, nil
}

// basisPointsMax is 100 %.
const basisPointsMax = 10_000

// parsePercent reads a percentage with at most two decimals as basis points; 0 for none.
func parsePercent(flag, text string) (int32, error) {
	if text == "" {
		return 0, nil
	}
	number, hasSign := strings.CutSuffix(text, "%")
	percent, ok := new(big.Rat).SetString(number)
	if ok && hasSign && len(number) <= len("100.00") && !strings.ContainsAny(number, "/eEpPxX_+") {
		points := percent.Mul(percent, big.NewRat(100, 1))
		if points.IsInt() && points.Sign() >= 0 && points.Num().IsInt64() && points.Num().Int64() <= basisPointsMax {
			return int32(points.Num().Int64()), nil
		}
	}
	return 0, usagef("%s %q is not a percentage", flag, text).then("write it as 19%% or 5.5%%: from 0%% to 100%%, two decimals at most")
}

// percentText writes basis points as a percentage.
func percentText(points int32) string {
	return strconv.FormatFloat(float64(points)/100, 'f', -1, 64) + "%"
}

// parseWhen reads a time: RFC 3339, now, or how long from now on; nil for none.
func (p *process) parseWhen(flag, text string) (*timestamppb.Timestamp, error) {
	if text == "" {
		return nil, nil
	}
	if text == "now" {
		return timestamppb.New(p.now()), nil
	}
	if after, ok := strings.CutPrefix(text, "+"); ok {
		if d, err := time.ParseDuration(after); err == nil {
			return timestamppb.New(p.now().Add(d)), nil
		}
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, usagef("%s %q is not a time", flag, text).then("write it as 2026-11-11T00:00:00Z, now, or +5m for 5 minutes from now on")
	}
	return timestamppb.New(at), nil
}
