package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	"github.com/weirhq/weir/proto/weir/payment/v1/paymentv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func (p *process) paymentCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "payment",
		Short: "Pay orders, refund them, and see what needs attention",
		Long: `Payments: start, capture, void, refund and read them on a node.

A change is recorded and answered at once; the provider is asked after that. 'weir order watch' shows what it says. A
customer's token starts and reads the payments of that user's orders; the rest needs the scope operator.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.paymentStart(), c.paymentCapture(), c.paymentVoid(), c.paymentRefund(), c.paymentGet(), c.paymentAttention())
	return cmd
}

// captureModes are what --capture takes.
var captureModes = map[string]orderv1.CaptureMode{
	"automatic": orderv1.CaptureMode_CAPTURE_MODE_AUTOMATIC,
	"manual":    orderv1.CaptureMode_CAPTURE_MODE_MANUAL,
}

// methodNext is what to do when a payment lacks its method.
const methodNext = "say what is paid with: --method tok_ok for the sandbox ('weir sandbox-pay --help' lists more), Stripe's pm_… for Stripe"

func (c *client) paymentStart() *cobra.Command {
	var (
		request                   requestID
		provider, method, capture string
	)
	cmd := &cobra.Command{
		Use:   "start ORDER_ID",
		Short: "Begin to pay an order",
		Long: `Begin to pay an order, all of it. One payment of an order is under way at a time; after one was declined or voided,
start another.

--method says what is paid with; only an order that costs nothing needs none. With --capture manual the money is held
until 'weir payment capture'.`,
		Example: `  weir payment start 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --method tok_ok
  weir payment start 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --method tok_ok --capture manual`,
		Args: exactArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			mode, ok := captureModes[capture]
			if !ok {
				return usagef("--capture %q is unknown", capture).then("one of: automatic, manual")
			}
			err := changeOrder(cmd, c, &request, "pay order "+args[0], c.payments, paymentv1connect.PaymentServiceClient.StartPayment,
				func(id string) *paymentv1.StartPaymentRequest {
					return &paymentv1.StartPaymentRequest{RequestId: id, OrderId: args[0], Provider: provider, Method: method, CaptureMode: mode}
				})
			var refused *problem
			if method == "" && errors.As(err, &refused) && refused.facts["argument"] == "method" {
				refused.next = methodNext // An order that costs nothing needs none: only the node can tell.
			}
			return err
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&provider, "provider", "", "payment provider by `NAME`; the node's default one when not given")
	cmd.Flags().StringVar(&method, "method", "", "the provider's `TOKEN` of what is paid with, such as tok_ok in the sandbox; never a card number")
	cmd.Flags().StringVar(&capture, "capture", "automatic", "take the money `WHEN`: automatic (at once) or manual")
	return cmd
}

func (c *client) paymentCapture() *cobra.Command {
	var request requestID
	cmd := &cobra.Command{
		Use:     "capture ORDER_ID",
		Short:   "Ask for the money that is held for an order",
		Long:    `Ask for the money that is held for an order. Asking again changes nothing and succeeds.`,
		Example: `  weir payment capture 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2`,
		Args:    exactArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeOrder(cmd, c, &request, "capture payment of order "+args[0], c.payments, paymentv1connect.PaymentServiceClient.CapturePayment,
				func(id string) *paymentv1.CapturePaymentRequest {
					return &paymentv1.CapturePaymentRequest{RequestId: id, OrderId: args[0]}
				})
		},
	}
	request.addFlag(cmd)
	return cmd
}

func (c *client) paymentVoid() *cobra.Command {
	var (
		request requestID
		reason  string
	)
	cmd := &cobra.Command{
		Use:     "void ORDER_ID",
		Short:   "Give up a payment whose money was not taken",
		Long:    `Give up an order's payment whose money was not taken, and let the money go. Afterwards another one may be started.`,
		Example: `  weir payment void 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --reason "looks like fraud"`,
		Args:    exactArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeOrder(cmd, c, &request, "void payment of order "+args[0], c.payments, paymentv1connect.PaymentServiceClient.VoidPayment,
				func(id string) *paymentv1.VoidPaymentRequest {
					return &paymentv1.VoidPaymentRequest{RequestId: id, OrderId: args[0], Reason: reason}
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that says why, at most 200 bytes"+clearText)
	return cmd
}

func (c *client) paymentRefund() *cobra.Command {
	var (
		request                 requestID
		amount, reason, payment string
	)
	cmd := &cobra.Command{
		Use:   "refund ORDER_ID",
		Short: "Give captured money back, all or a part",
		Long: `Give captured money back: all that is left of it, or --amount. All refunds together never exceed what was captured.

A return refunds itself when it comes in: weir order receive-return.`,
		Example: `  weir payment refund 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --amount "5.00 EUR" --reason "scratched"
  weir payment refund 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2`,
		Args: exactArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			money, err := parseAmount("--amount", amount)
			if err != nil {
				return err
			}
			return changeOrder(cmd, c, &request, "refund order "+args[0], c.payments, paymentv1connect.PaymentServiceClient.RefundPayment,
				func(id string) *paymentv1.RefundPaymentRequest {
					return &paymentv1.RefundPaymentRequest{RequestId: id, OrderId: args[0], Amount: money, Reason: reason, PaymentId: payment}
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&amount, "amount", "", "an `AMOUNT` like \"5.00 EUR\"; all that is left when not given")
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that says why, at most 200 bytes"+clearText)
	cmd.Flags().StringVar(&payment, "payment", "", "`PAYMENT_ID` whose money it is; the one that paid the order when not given")
	return cmd
}

func (c *client) paymentGet() *cobra.Command {
	var min minRevision
	cmd := &cobra.Command{
		Use:   "get ORDER_ID|PAYMENT_ID",
		Short: "Read one payment and its refunds",
		Long:  `Read one payment and its refunds; of an order, its newest payment.`,
		Example: `  weir payment get 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2
  weir payment get 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2-p1 -o json`,
		Args: exactArgs("ORDER_ID|PAYMENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			order, payment := orderOfPart(args[0]), args[0]
			if order == payment {
				payment = ""
			}
			return read(cmd, c, &min, "get payment of "+args[0], c.payments, paymentv1connect.PaymentServiceClient.GetPayment,
				func(revision *typev1.Revision, wait *durationpb.Duration) *paymentv1.GetPaymentRequest {
					return &paymentv1.GetPaymentRequest{OrderId: order, PaymentId: payment, MinRevision: revision, WaitBudget: wait}
				}, c.p.printPayment)
		},
	}
	min.addFlags(cmd)
	return cmd
}

func (p *process) printPayment(answer *paymentv1.GetPaymentResponse) error {
	m := answer.GetPayment()
	paint := p.painterFor(p.stdout)
	flags := map[bool]string{true: "yes"}
	state := paymentStateText(m.GetState())
	if m.GetDeclineCode() != "" {
		state = "declined"
	}
	if err := fields(p.stdout, paint,
		"payment", m.GetPaymentId(),
		"provider", m.GetProvider(),
		"state", state,
		"capture", enumText(m.GetCaptureMode(), "CAPTURE_MODE_"),
		"amount", moneyText(m.GetAmount()),
		"captured", moneyText(m.GetCaptured()),
		"refunded", moneyText(m.GetRefunded()),
		"capture asked for", flags[m.GetCaptureRequested()],
		"void asked for", flags[m.GetVoidRequested()],
		"stray", flags[m.GetStray()],
		"declined with", strings.TrimSpace(m.GetDeclineCode()+" "+m.GetDeclineMessage()),
		"order status", statusText(answer.GetOrderStatus()),
		"revision", revisionText(answer.GetRevision()),
		"freshness", freshnessText(answer.GetFreshness()),
	); err != nil {
		return err
	}
	if len(answer.GetRefunds()) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(p.stdout); err != nil {
		return err
	}
	return refundTable(answer.GetRefunds()).print(p.stdout, paint)
}

func (c *client) paymentAttention() *cobra.Command {
	var (
		min  minRevision
		page pageFlags
	)
	cmd := &cobra.Command{
		Use:   "attention",
		Short: "List the payments that somebody should look at",
		Long: `List the payments that somebody should look at, those of the oldest order first:

  unknown        the provider was asked and its answer was lost; it is asked again until it is known
  stray          money came that no order waited for, or of a wrong amount, and has not gone back yet
  refund-failed  a refund failed, and no later one that is at least as large was started

What was settled is not listed any more.`,
		Example: `  weir payment attention
  weir payment attention -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return read(cmd, c, &min, "list payments that need attention", c.payments, paymentv1connect.PaymentServiceClient.ListPaymentsNeedingAttention,
				func(revision *typev1.Revision, wait *durationpb.Duration) *paymentv1.ListPaymentsNeedingAttentionRequest {
					return &paymentv1.ListPaymentsNeedingAttentionRequest{PageSize: page.size, PageToken: page.token, MinRevision: revision, WaitBudget: wait}
				}, c.p.printAttention)
		},
	}
	min.addFlags(cmd)
	page.addFlags(cmd, "payments", 500)
	return cmd
}

func (p *process) printAttention(answer *paymentv1.ListPaymentsNeedingAttentionResponse) error {
	rows := newTable("SINCE", "WHY", "PAYMENT OR REFUND", "USER", "PROVIDER", ">AMOUNT", "PROBLEM")
	for _, item := range answer.GetItems() {
		id := item.GetRefundId()
		if id == "" {
			id = item.GetPaymentId()
		}
		rows.row(timeText(item.GetSince()), enumText(item.GetKind(), "ATTENTION_KIND_"), id, item.GetUserId(), item.GetProvider(), moneyText(item.GetAmount()), item.GetFailureCode())
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	return p.printPageEnd(len(answer.GetItems()), "payment", answer.GetNextPageToken(), answer.GetFreshness())
}
