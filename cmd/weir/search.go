package main

import (
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func (c *client) orderSearch() *cobra.Command {
	var (
		min             minRevision
		page            pageFlags
		question        orderv1.SearchOrdersRequest
		status, payment string
		from, to        string
	)
	cmd := &cobra.Command{
		Use:   "search",
		Short: "Find orders of all users, newest first",
		Long: `Find orders of all users, newest first, one page at a time. Every flag that is given has to be true of an order. It
needs a token with the scope operator.

A page looks at a bounded number of orders: it may hold few, or none, while more follow. The last line says then how to
go on.`,
		Example: `  weir order search --status payment-processing --to -1h
  weir order search --sku tea --payment refunded --from 2026-11-11T00:00:00Z --to 2026-11-12T00:00:00Z
  weir order search --campaign flash --user alice -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if question.Status, err = parseStatus(status); err != nil {
				return err
			}
			if question.PaymentState, err = parsePaymentState(payment); err != nil {
				return err
			}
			if question.PlacedFrom, err = c.p.parsePast("--from", from); err != nil {
				return err
			}
			if question.PlacedTo, err = c.p.parsePast("--to", to); err != nil {
				return err
			}
			return read(cmd, c, &min, "search orders", c.orders, orderv1connect.OrderServiceClient.SearchOrders,
				func(revision *typev1.Revision, wait *durationpb.Duration) *orderv1.SearchOrdersRequest {
					question.PageSize, question.PageToken, question.MinRevision, question.WaitBudget = page.size, page.token, revision, wait
					return &question
				}, func(answer *orderv1.SearchOrdersResponse) error {
					return c.p.printOrderPage(answer.GetOrders(), answer.GetNextPageToken(), answer.GetFreshness())
				})
		},
	}
	min.addFlags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&status, "status", "", "only orders of this `STATUS`: "+strings.Join(statusNames(), ", "))
	flags.StringVar(&payment, "payment", "", "only orders whose newest payment is in this `STATE`: "+strings.Join(paymentStateNames(), ", "))
	flags.StringVar(&question.Sku, "sku", "", "only orders of this `SKU`")
	flags.StringVar(&question.CampaignId, "campaign", "", "only orders of this `CAMPAIGN`")
	flags.StringVar(&question.UserId, "user", "", "only orders of this `USER`")
	flags.StringVar(&from, "from", "", "only orders placed at this `TIME` or later: RFC 3339, now, or -24h for 24 hours ago")
	flags.StringVar(&to, "to", "", "only orders placed before this `TIME`")
	page.addFlags(cmd, "orders", 100)
	return cmd
}

// paymentStateNames are the states that a filter takes, as people type them.
func paymentStateNames() []string {
	var names []string
	for number := range int32(len(orderv1.PaymentState_name)) {
		if name := paymentStateText(orderv1.PaymentState(number)); name != "" {
			names = append(names, name)
		}
	}
	return names
}

func parsePaymentState(text string) (orderv1.PaymentState, error) {
	for number := range int32(len(orderv1.PaymentState_name)) {
		if state := orderv1.PaymentState(number); paymentStateText(state) == strings.ReplaceAll(strings.ToLower(text), "_", "-") {
			return state, nil
		}
	}
	return 0, usagef("--payment %q is unknown%s", text, didYouMean(text, paymentStateNames())).then("one of: %s", strings.Join(paymentStateNames(), ", "))
}
