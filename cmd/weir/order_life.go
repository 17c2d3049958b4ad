package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

const clearText = "; no personal data, it is kept in the clear"

func (c *client) orderShip() *cobra.Command {
	var (
		request           requestID
		carrier, tracking string
	)
	cmd := &cobra.Command{
		Use:   "ship ORDER_ID [SKU[=QTY]...]",
		Short: "Record that units of a paid order left",
		Long: `Record that units of a paid order left; without items, all that are left to ship. Each call makes one shipment with an
id of its own. It needs a token with the scope operator.`,
		Example: `  weir order ship 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 tea=1 --carrier DHL --tracking 00340434161094015902
  weir order ship 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2`,
		Args: needsFirst("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			items, err := parsePairs(args[1:])
			if err != nil {
				return err
			}
			return changeOrder(cmd, c, &request, "ship order "+args[0], c.orders, orderv1connect.OrderServiceClient.ShipItems,
				func(id string) *orderv1.ShipItemsRequest {
					return &orderv1.ShipItemsRequest{RequestId: id, OrderId: args[0], Items: items, Carrier: carrier, Tracking: tracking}
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&carrier, "carrier", "", "`NAME` of who carries it, at most 100 bytes")
	cmd.Flags().StringVar(&tracking, "tracking", "", "the carrier's tracking `NUMBER`, at most 100 bytes")
	return cmd
}

func (c *client) orderDeliver() *cobra.Command {
	var request requestID
	cmd := &cobra.Command{
		Use:   "deliver SHIPMENT_ID",
		Short: "Record that a shipment arrived",
		Long: `Record that a shipment arrived. Doing it again changes nothing and succeeds. It needs a token with the scope operator.

'weir order get' shows the ids of an order's shipments.`,
		Example: `  weir order deliver 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2-s1`,
		Args:    exactArgs("SHIPMENT_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeOrder(cmd, c, &request, "deliver shipment "+args[0], c.orders, orderv1connect.OrderServiceClient.ConfirmDelivery,
				func(id string) *orderv1.ConfirmDeliveryRequest {
					return &orderv1.ConfirmDeliveryRequest{RequestId: id, OrderId: orderOfPart(args[0]), ShipmentId: args[0]}
				})
		},
	}
	request.addFlag(cmd)
	return cmd
}

func (c *client) orderReturn() *cobra.Command {
	var (
		request requestID
		reason  string
	)
	cmd := &cobra.Command{
		Use:   "return ORDER_ID [SKU[=QTY]...]",
		Short: "Announce that shipped units come back",
		Long: `Announce that shipped units come back; without items, all that were shipped and are not on their way back. A customer
may do it for their own orders.

Money is refunded when the units came in: weir order receive-return.`,
		Example: `  weir order return 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 tea=1 --reason "wrong sort"`,
		Args:    needsFirst("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			items, err := parsePairs(args[1:])
			if err != nil {
				return err
			}
			return changeOrder(cmd, c, &request, "return of order "+args[0], c.orders, orderv1connect.OrderServiceClient.RequestReturn,
				func(id string) *orderv1.RequestReturnRequest {
					return &orderv1.RequestReturnRequest{RequestId: id, OrderId: args[0], Items: items, Reason: reason}
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that says why, at most 200 bytes"+clearText)
	return cmd
}

func (c *client) orderReceiveReturn() *cobra.Command {
	var (
		request requestID
		restock []string
	)
	cmd := &cobra.Command{
		Use:   "receive-return RETURN_ID",
		Short: "Record that a return came in, and refund it",
		Long: `Record that a return came in. What was paid for its units is refunded. Units that can be sold again go back to the stock
with --restock; the others are lost. It needs a token with the scope operator.

'weir order get' shows the ids of an order's returns.`,
		Example: `  weir order receive-return 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2-t1 --restock tea=1`,
		Args:    exactArgs("RETURN_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			items, err := parsePairs(restock)
			if err != nil {
				return err
			}
			return changeOrder(cmd, c, &request, "receive return "+args[0], c.orders, orderv1connect.OrderServiceClient.ReceiveReturn,
				func(id string) *orderv1.ReceiveReturnRequest {
					return &orderv1.ReceiveReturnRequest{RequestId: id, OrderId: orderOfPart(args[0]), ReturnId: args[0], Restock: items}
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringArrayVar(&restock, "restock", nil, "`SKU=QTY` that goes back to the stock; repeat it for more")
	return cmd
}

func (c *client) orderNote() *cobra.Command {
	var request requestID
	cmd := &cobra.Command{
		Use:   "note ORDER_ID TEXT",
		Short: "Add a merchant's note to an order",
		Long: `Add a merchant's note of at most 1000 bytes to an order. Only operators are shown it, and it takes one to add it. It is
sealed under the key of the order's user and gone when that user is erased.`,
		Example: `  weir order note 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 "called about the parcel, waits until Friday"`,
		Args:    exactArgs("ORDER_ID", "TEXT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeOrder(cmd, c, &request, "note on order "+args[0], c.orders, orderv1connect.OrderServiceClient.AddNote,
				func(id string) *orderv1.AddNoteRequest {
					return &orderv1.AddNoteRequest{RequestId: id, OrderId: args[0], Text: args[1]}
				})
		},
	}
	request.addFlag(cmd)
	return cmd
}

func (c *client) orderTimeline() *cobra.Command {
	var (
		min  minRevision
		page pageFlags
	)
	cmd := &cobra.Command{
		Use:   "timeline ORDER_ID",
		Short: "Print every change of an order, with who and when",
		Long: `Print every change of an order, oldest first: when, what, who, and what there is to know about it. Which operator did
something, and that notes were added, is shown to operators only.`,
		Example: `  weir order timeline 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2`,
		Args:    exactArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return read(cmd, c, &min, "timeline of order "+args[0], c.orders, orderv1connect.OrderServiceClient.GetTimeline,
				func(revision *typev1.Revision, wait *durationpb.Duration) *orderv1.GetTimelineRequest {
					return &orderv1.GetTimelineRequest{
						OrderId: args[0], PageSize: page.size, PageToken: page.token, MinRevision: revision, WaitBudget: wait,
					}
				}, c.p.printTimeline)
		},
	}
	min.addFlags(cmd)
	page.addFlags(cmd, "changes", 500)
	return cmd
}

// pageFlags are the --page-size and --page-token of a command that lists.
type pageFlags struct {
	size  int32
	token string
}

func (f *pageFlags) addFlags(cmd *cobra.Command, noun string, most int) {
	cmd.Flags().Int32Var(&f.size, "page-size", 0, fmt.Sprintf("%s a page, at most %d; 0 lets the server choose", noun, most))
	cmd.Flags().StringVar(&f.token, "page-token", "", "`TOKEN` of the next page, as the page before printed it")
}

// orderOfPart returns the order that a payment, shipment or return is of, as far as its id says.
func orderOfPart(id string) string {
	order, _, _ := strings.Cut(id, "-")
	return order
}

func (p *process) printTimeline(answer *orderv1.GetTimelineResponse) error {
	rows := newTable("TIME", "WHAT", "WHO", "REVISION", "FACTS")
	for _, entry := range answer.GetEntries() {
		facts := make([]string, len(entry.GetFacts()))
		for i, fact := range entry.GetFacts() {
			facts[i] = fact.GetName() + "=" + fact.GetValue()
		}
		who := strings.TrimSpace(enumText(entry.GetActor(), "ACTOR_") + " " + entry.GetSubject())
		rows.row(timeText(entry.GetAt()), strings.ReplaceAll(entry.GetKind(), "_", "-"), who, revisionText(entry.GetRevision()), strings.Join(facts, " "))
	}
	if err := rows.print(p.stdout, p.painterFor(p.stdout)); err != nil {
		return err
	}
	return p.printPageEnd(len(answer.GetEntries()), "change", answer.GetNextPageToken(), answer.GetFreshness())
}

// enumText writes an enum's value as people type it; empty for the unspecified one.
func enumText(value fmt.Stringer, prefix string) string {
	name := strings.TrimPrefix(value.String(), prefix)
	if name == "UNSPECIFIED" {
		return ""
	}
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

func paymentStateText(state orderv1.PaymentState) string { return enumText(state, "PAYMENT_STATE_") }

// printLife prints what became of an order: a table for each that there is something of.
func (p *process) printLife(order *orderv1.Order) error {
	refunds := refundTable(order.GetRefunds())
	shipments := newTable("SHIPMENT", "SHIPPED", "DELIVERED", "CARRIER", "TRACKING", "ITEMS")
	for _, s := range order.GetShipments() {
		shipments.row(s.GetShipmentId(), timeText(s.GetShippedAt()), timeText(s.GetDeliveredAt()), s.GetCarrier(), s.GetTracking(), unitsText(s.GetItems()))
	}
	returns := newTable("RETURN", "REQUESTED", "RECEIVED", "ITEMS", "RESTOCKED", "REASON")
	for _, r := range order.GetReturns() {
		returns.row(r.GetReturnId(), timeText(r.GetRequestedAt()), timeText(r.GetReceivedAt()), unitsText(r.GetItems()), unitsText(r.GetRestocked()), r.GetReason())
	}
	notes := newTable("NOTED", "BY", "TEXT")
	for _, n := range order.GetMerchantNotes() {
		notes.row(timeText(n.GetAddedAt()), n.GetBy(), n.GetText())
	}
	for _, t := range []*table{paymentTable(order.GetPayments()), refunds, shipments, returns, notes} {
		if len(t.rows) == 0 {
			continue
		}
		if _, err := fmt.Fprintln(p.stdout); err != nil {
			return err
		}
		if err := t.print(p.stdout, p.painterFor(p.stdout)); err != nil {
			return err
		}
	}
	return nil
}

func paymentTable(payments []*orderv1.Payment) *table {
	t := newTable("PAYMENT", "PROVIDER", "STATE", ">AMOUNT", ">CAPTURED", ">REFUNDED", "ASKED FOR", "PROBLEM")
	for _, m := range payments {
		state, asked, problem := paymentStateText(m.GetState()), "", m.GetDeclineCode()
		switch {
		case problem != "":
			state = "declined"
		case m.GetStray():
			problem = "stray"
		}
		switch {
		case m.GetVoidRequested():
			asked = "void"
		case m.GetCaptureRequested():
			asked = "capture"
		}
		t.row(m.GetPaymentId(), m.GetProvider(), state, moneyText(m.GetAmount()), moneyText(m.GetCaptured()), moneyText(m.GetRefunded()), asked, problem)
	}
	return t
}

func refundTable(refunds []*orderv1.Refund) *table {
	t := newTable("REFUND", "STATE", ">AMOUNT", "PROBLEM", "REASON")
	for _, r := range refunds {
		t.row(r.GetRefundId(), enumText(r.GetState(), "REFUND_STATE_"), moneyText(r.GetAmount()), r.GetFailureCode(), r.GetReason())
	}
	return t
}

func unitsText(items []*orderv1.ItemUnits) string {
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = fmt.Sprintf("%s=%d", item.GetSku(), item.GetQuantity())
	}
	return strings.Join(texts, " ")
}
