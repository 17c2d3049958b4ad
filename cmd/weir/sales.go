package main

import (
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	reportv1 "github.com/weirhq/weir/proto/weir/report/v1"
	"github.com/weirhq/weir/proto/weir/report/v1/reportv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// salesSteps are the steps that sales may be counted by, and how far back they go when nobody says from when.
var salesSteps = []struct {
	name string
	step reportv1.SalesStep
	back time.Duration
}{
	{"minute", reportv1.SalesStep_SALES_STEP_MINUTE, time.Hour},
	{"hour", reportv1.SalesStep_SALES_STEP_HOUR, 24 * time.Hour},
	{"day", reportv1.SalesStep_SALES_STEP_DAY, 30 * 24 * time.Hour},
}

func (p *process) salesCommand() *cobra.Command {
	c := &client{p: p}
	var (
		min          minRevision
		question     reportv1.GetSalesRequest
		from, to, by string
	)
	cmd := &cobra.Command{
		Use:   "sales",
		Short: "Count what was ordered, paid and given back",
		Long: `Count what was ordered, paid, cancelled and refunded over all lanes, by minute, hour or day of UTC: a row for each in
which anything happened, and each currency. It needs a token with the scope operator.

Without --from it is the last hour by minute, the last day by hour, the last 30 days by day. Amounts are what is to be
paid for the units. With --sku orders of one product are counted; refunds are of whole orders and left out then.`,
		Example: `  weir sales
  weir sales --by hour --sku tea
  weir sales --by day --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			back, err := parseSalesStep(by, &question)
			if err != nil {
				return err
			}
			if question.To, err = c.p.parsePast("--to", to); err != nil {
				return err
			}
			if question.To == nil {
				question.To = timestamppb.New(c.p.now())
			}
			if question.From, err = c.p.parsePast("--from", from); err != nil {
				return err
			}
			if question.From == nil {
				question.From = timestamppb.New(question.To.AsTime().Add(-back))
			}
			return read(cmd, c, &min, "sales", c.reports, reportv1connect.ReportServiceClient.GetSales,
				func(revision *typev1.Revision, wait *durationpb.Duration) *reportv1.GetSalesRequest {
					question.MinRevision, question.WaitBudget = revision, wait
					return &question
				}, c.p.printSales)
		},
	}
	c.addFlags(cmd)
	min.addFlags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&question.Sku, "sku", "", "only orders of this `SKU`")
	flags.StringVar(&by, "by", "minute", "how much time a row is, a `STEP`: minute, hour or day")
	flags.StringVar(&from, "from", "", "count from this `TIME` on: RFC 3339, now, or -24h for 24 hours ago")
	flags.StringVar(&to, "to", "", "count up to this `TIME`; now when not given")
	return cmd
}

// parseSalesStep reads --by, and returns how far back sales by it go.
func parseSalesStep(text string, question *reportv1.GetSalesRequest) (time.Duration, error) {
	names := make([]string, len(salesSteps))
	for i, s := range salesSteps {
		if names[i] = s.name; s.name == text {
			question.Step = s.step
			return s.back, nil
		}
	}
	return 0, usagef("--by %q is unknown%s", text, didYouMean(text, names)).then("one of: minute, hour, day")
}

func (p *process) printSales(answer *reportv1.GetSalesResponse) error {
	rows := newTable("FROM", ">ORDERS", ">UNITS", ">PLACED", ">PAID UNITS", ">PAID", ">CANCELLED", ">EXPIRED", ">REFUNDED")
	for _, s := range answer.GetSales() {
		rows.row(timeText(s.GetStart())[:len("2006-01-02 15:04")], groupDigits(s.GetPlaced().GetOrders()), groupDigits(s.GetPlaced().GetUnits()),
			moneyText(s.GetPlaced().GetAmount()), groupDigits(s.GetPaid().GetUnits()), moneyText(s.GetPaid().GetAmount()),
			moneyText(s.GetCancelled().GetAmount()), moneyText(s.GetExpired().GetAmount()), moneyText(s.GetRefunded()))
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	return p.printPageEnd(len(answer.GetSales()), "row", "", answer.GetFreshness())
}
