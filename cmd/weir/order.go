package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	"github.com/weirhq/weir/proto/weir/order/v1/orderv1connect"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

func (p *process) orderCommand() *cobra.Command {
	c := &client{p: p}
	cmd := parentCommand(&cobra.Command{
		Use:   "order",
		Short: "Place, read, search, watch, cancel, ship and return orders",
		Long: `Orders: place, read, list, search, watch, cancel, ship, return and annotate them on a node.

A customer's token sees and changes that user's orders only. A token with the scope act-as or operator may name
another user with --user.

Every change prints a revision (LANE:COMMIT). Give it to a read as --min-revision and the answer holds your
change, whichever node answers.`,
	})
	c.addFlags(cmd)
	cmd.AddCommand(c.orderPlace(), c.orderGet(), c.orderList(), c.orderSearch(), c.orderWatch(), c.orderCancel(),
		c.orderShip(), c.orderDeliver(), c.orderReturn(), c.orderReceiveReturn(), c.orderNote(), c.orderTimeline())
	return cmd
}

func (c *client) orderPlace() *cobra.Command {
	var (
		request  requestID
		items    []string
		sku      string
		quantity int64
		user     string
		note     string
		campaign string
		coupon   string
		person   personFlags
	)
	cmd := &cobra.Command{
		Use:   "place [SKU[=QTY]...]",
		Short: "Place an order and reserve its units",
		Long: `Place an order: reserve its units and record it, in one durable step. When it answers, the order is on disk.

Name what to order by arguments (tea=2; "tea" alone is one unit), by --item tea=2, or by --sku tea --quantity 2.

With --campaign the order is of the campaign's one product, at its price and within its limits; with --coupon it is for
less, or refused with the reason.

Every order carries a request id. When you give none, one is made up and printed. If no answer comes, repeat with the
same --request-id: it answers with the order that was placed, or places it now, never both.`,
		Example: `  weir order place tea=2 cup
  weir order place --sku tea --quantity 2 --note "ring twice"
  weir order place tea --campaign flash --coupon WELCOME
  weir order place tea --recipient "Ada Lovelace" --line "12 St James's Square" --city London --postal-code "SW1Y 4JH" --country GB
  weir order place --item tea=2 --user alice --request-id checkout-7f3a -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseItems(append(slices.Clone(args), items...), sku, quantity, cmd.Flags().Changed("quantity"))
			if err != nil {
				return err
			}
			return changeOrder(cmd, c, &request, "place order", c.orders, orderv1connect.OrderServiceClient.PlaceOrder,
				func(id string) *orderv1.PlaceOrderRequest {
					return &orderv1.PlaceOrderRequest{
						RequestId: id, UserId: user, Items: wanted, Note: note, CampaignId: campaign, CouponCode: coupon,
						ShippingAddress: person.shippingAddress(), Contact: person.contact(),
					}
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringArrayVar(&items, "item", nil, "`SKU=QTY` to order; repeat it for more")
	cmd.Flags().StringVar(&sku, "sku", "", "`SKU` to order, with --quantity")
	cmd.Flags().Int64Var(&quantity, "quantity", 1, "`UNITS` of --sku")
	cmd.Flags().StringVar(&user, "user", "", "`USER` to order for; the token's own when not given")
	cmd.Flags().StringVar(&note, "note", "", "free `TEXT` for the merchant, at most 1000 bytes")
	cmd.Flags().StringVar(&campaign, "campaign", "", "`CAMPAIGN` to order at")
	cmd.Flags().StringVar(&coupon, "coupon", "", "`CODE` of a coupon to redeem")
	person.add(cmd)
	return cmd
}

// personFlags say where an order goes and how to reach whoever orders.
type personFlags struct {
	address orderv1.ShippingAddress
	reach   orderv1.Contact
}

func (f *personFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.address.Recipient, "recipient", "", "`NAME` on the parcel")
	flags.StringArrayVar(&f.address.Lines, "line", nil, "`LINE` of the address, street and house; repeat it for more")
	flags.StringVar(&f.address.PostalCode, "postal-code", "", "postal `CODE` of the address")
	flags.StringVar(&f.address.City, "city", "", "`TOWN` of the address")
	flags.StringVar(&f.address.Region, "region", "", "`STATE` or province of the address")
	flags.StringVar(&f.address.CountryCode, "country", "", "`CODE` of the address's country, ISO 3166-1 alpha-2: GB")
	flags.StringVar(&f.reach.Email, "email", "", "e-mail `ADDRESS` to reach whoever orders")
	flags.StringVar(&f.reach.Phone, "phone", "", "telephone `NUMBER` to reach whoever orders")
}

// shippingAddress is nil when no flag says anything of it.
func (f *personFlags) shippingAddress() *orderv1.ShippingAddress {
	a := &f.address
	if a.Recipient == "" && len(a.Lines) == 0 && a.PostalCode == "" && a.City == "" && a.Region == "" && a.CountryCode == "" {
		return nil
	}
	return a
}

// contact is nil when no flag says anything of it.
func (f *personFlags) contact() *orderv1.Contact {
	if f.reach.Email == "" && f.reach.Phone == "" {
		return nil
	}
	return &f.reach
}

// parseItems reads what to order. Whether the units and SKUs are allowed is the server's to say.
func parseItems(pairs []string, sku string, quantity int64, quantityGiven bool) ([]*orderv1.ItemRequest, error) {
	items, err := parsePairs(pairs)
	if err != nil {
		return nil, err
	}
	switch {
	case sku != "":
		items = append(items, &orderv1.ItemRequest{Sku: sku, Quantity: quantity})
	case quantityGiven:
		return nil, usagef("--quantity needs --sku")
	}
	if len(items) == 0 {
		return nil, usagef("nothing to order").then("name SKUs, for example: weir order place tea=2")
	}
	return items, nil
}

// parsePairs reads SKU=QTY; a SKU alone is one unit.
func parsePairs(pairs []string) ([]*orderv1.ItemRequest, error) {
	items := []*orderv1.ItemRequest{}
	for _, pair := range pairs {
		name, units, counted := strings.Cut(pair, "=")
		item := &orderv1.ItemRequest{Sku: name, Quantity: 1}
		if counted {
			number, err := strconv.ParseInt(units, 10, 64)
			if err != nil {
				return nil, usagef("%q: %q is not a number of units", pair, units).then("write it as SKU=QTY, for example tea=2")
			}
			item.Quantity = number
		}
		items = append(items, item)
	}
	return items, nil
}

func (c *client) orderGet() *cobra.Command {
	var (
		min  minRevision
		asOf string
	)
	cmd := &cobra.Command{
		Use:   "get ORDER_ID",
		Short: "Read one order, as it is or as it was",
		Long: `Read one order, and how fresh the answer is.

With --min-revision the answer is at least as new as that revision; if the view does not get there within --wait, it
is what there is and says that it is behind.

With --as-of it is the order as it was then: after a revision of its lane, as 'weir order timeline' prints them, or at a
time. Before it was placed it is not found. Personal data that was erased since stays erased.`,
		Example: `  weir order get 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2
  weir order get 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --min-revision 0:42 -o json
  weir order get 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --as-of 0:42
  weir order get 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --as-of 2026-11-11T00:00:00Z`,
		Args: exactArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			moment, err := c.p.parseAsOf(asOf)
			if err != nil {
				return err
			}
			return read(cmd, c, &min, "get order "+args[0], c.orders, orderv1connect.OrderServiceClient.GetOrder,
				func(revision *typev1.Revision, wait *durationpb.Duration) *orderv1.GetOrderRequest {
					return &orderv1.GetOrderRequest{OrderId: args[0], MinRevision: revision, WaitBudget: wait, AsOf: moment}
				}, func(answer *orderv1.GetOrderResponse) error {
					return c.p.printOrder(answer.GetOrder(), "freshness", freshnessText(answer.GetFreshness()))
				})
		},
	}
	min.addFlags(cmd)
	cmd.Flags().StringVar(&asOf, "as-of", "", "the order as it was at this `MOMENT`: a time (2026-11-11T00:00:00Z, -5m for 5 minutes ago) or LANE:COMMIT")
	return cmd
}

// parseAsOf reads a moment of the past: a time or LANE:COMMIT; nil for none.
func (p *process) parseAsOf(text string) (*orderv1.AsOf, error) {
	if text == "" {
		return nil, nil
	}
	if revision, err := parseRevision("--as-of", text); err == nil {
		return &orderv1.AsOf{Moment: &orderv1.AsOf_Revision{Revision: revision}}, nil
	}
	at, err := p.parsePast("--as-of", text)
	if err != nil {
		return nil, usagef("--as-of %q is neither a time nor LANE:COMMIT", text).then("write it as 2026-11-11T00:00:00Z, -5m for 5 minutes ago, or 0:42")
	}
	return &orderv1.AsOf{Moment: &orderv1.AsOf_Time{Time: at}}, nil
}

// parsePast reads a time of the past: RFC 3339, as the tables print it, now, or how long ago; nil for none.
func (p *process) parsePast(flag, text string) (*timestamppb.Timestamp, error) {
	switch text {
	case "":
		return nil, nil
	case "now":
		return timestamppb.New(p.now()), nil
	}
	if ago, ok := strings.CutPrefix(text, "-"); ok {
		if d, err := time.ParseDuration(ago); err == nil && d >= 0 {
			return timestamppb.New(p.now().Add(-d)), nil
		}
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05Z07:00"} {
		if at, err := time.Parse(layout, text); err == nil {
			return timestamppb.New(at), nil
		}
	}
	return nil, usagef("%s %q is not a time", flag, text).then("write it as 2026-11-11T00:00:00Z, now, or -5m for 5 minutes ago")
}

func (c *client) orderList() *cobra.Command {
	var (
		min    minRevision
		page   pageFlags
		user   string
		status string
	)
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List a user's orders, newest first",
		Long:  `List a user's orders, newest first, one page at a time. When more follow, the last line says how to ask for them.`,
		Example: `  weir order list
  weir order list --user alice --status pending-payment --page-size 50
  weir order list -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := parseStatus(status)
			if err != nil {
				return err
			}
			return read(cmd, c, &min, "list orders", c.orders, orderv1connect.OrderServiceClient.ListOrders,
				func(revision *typev1.Revision, wait *durationpb.Duration) *orderv1.ListOrdersRequest {
					return &orderv1.ListOrdersRequest{
						UserId: user, PageSize: page.size, PageToken: page.token, Status: wanted, MinRevision: revision, WaitBudget: wait,
					}
				}, c.p.printOrders)
		},
	}
	min.addFlags(cmd)
	cmd.Flags().StringVar(&user, "user", "", "`USER` whose orders are listed; the token's own when not given")
	cmd.Flags().StringVar(&status, "status", "", "only orders of this `STATUS`: "+strings.Join(statusNames(), ", "))
	page.addFlags(cmd, "orders", 100)
	return cmd
}

func (c *client) orderWatch() *cobra.Command {
	var (
		min    minRevision
		count  int
		after  string
		user   string
		resume string
	)
	cmd := &cobra.Command{
		Use:   "watch [ORDER_ID]",
		Short: "Print an order, or all of a user's, after each change",
		Long: `Print the order as it is now, then once more after each change: one line each, none skipped, none repeated. With --after
it begins with the first change after that revision, which is the newest that you have seen.

Without ORDER_ID all orders of the user are watched: each is printed after each change from now on, in the order of the
log. With -o json each line has a resumeToken; --resume TOKEN goes on after that line, as if the watch had not ended.

It ends with ctrl-c (exit code 0) or after --count lines. There is no timeout: --timeout does not apply.`,
		Example: `  weir order watch 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2
  weir order watch 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --after 0:42 --count 2 -o json
  weir order watch
  weir order watch --user alice --resume TOKEN -o json`,
		Args: atMostArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				if after != "" || min.text != "" {
					return usagef("--after and --min-revision need ORDER_ID").then("give the order's id, or go on with --resume")
				}
				return c.watchUserOrders(cmd, &orderv1.WatchUserOrdersRequest{UserId: user, ResumeToken: resume}, count)
			}
			if user != "" || resume != "" {
				return usagef("--user and --resume do not go with ORDER_ID").then("leave the order's id out, or go on with --after")
			}
			return c.watchOrder(cmd, args[0], &min, after, count)
		},
	}
	min.addFlags(cmd)
	cmd.Flags().IntVar(&count, "count", 0, "end after this `NUMBER` of lines; 0 goes on until ctrl-c")
	cmd.Flags().StringVar(&after, "after", "", "begin after this revision of the order: `LANE:COMMIT` as a line shows it")
	cmd.Flags().StringVar(&user, "user", "", "`USER` whose orders are watched; the token's own when not given")
	cmd.Flags().StringVar(&resume, "resume", "", "resumeToken of the last line that you have, or watchToken of a list: a `TOKEN`")
	return cmd
}

func (c *client) watchOrder(cmd *cobra.Command, id string, min *minRevision, after string, count int) error {
	question := &orderv1.WatchOrderRequest{OrderId: id}
	var err error
	if question.MinRevision, question.WaitBudget, err = min.parse(); err != nil {
		return err
	}
	again := "watch again; the order is printed as it is now, then each change"
	if after != "" {
		if question.AfterRevision, err = parseRevision("--after", after); err != nil {
			return err
		}
		again = "watch again, with the revision of the last line as --after"
	}
	return watch(cmd, c, count, "watch order "+id, again, c.orders, orderv1connect.OrderServiceClient.WatchOrder, question,
		func(answer *orderv1.WatchOrderResponse) error {
			return c.p.printWatched(cmd, answer, answer.GetOrder(), answer.GetFreshness())
		})
}

func (c *client) watchUserOrders(cmd *cobra.Command, question *orderv1.WatchUserOrdersRequest, count int) error {
	return watch(cmd, c, count, "watch the orders of a user", "watch again; with -o json, --resume the resumeToken of the last line misses nothing",
		c.orders, orderv1connect.OrderServiceClient.WatchUserOrders, question,
		func(answer *orderv1.WatchUserOrdersResponse) error {
			return c.p.printWatched(cmd, answer, answer.GetOrder(), answer.GetFreshness())
		})
}

// printWatched prints the answer as JSON, or one line for the order that it shows.
func (p *process) printWatched(cmd *cobra.Command, answer proto.Message, order *orderv1.Order, freshness *typev1.Freshness) error {
	if p.json(cmd) {
		return writeMessage(p.stdout, answer)
	}
	paint := p.painterFor(p.stdout)
	line := fmt.Sprintf("%s  %s  %s  revision %s", timeText(order.GetUpdateTime()), printable(order.GetOrderId()),
		paint.status(statusText(order.GetStatus())), revisionText(order.GetRevision()))
	if reason := order.GetCancelReason(); reason != "" {
		line += "  reason: " + printable(reason)
	}
	if freshness.GetState() != typev1.Freshness_STATE_FRESH {
		line += "  (" + freshnessText(freshness) + ")"
	}
	_, err := fmt.Fprintln(p.stdout, line)
	return err
}

func (c *client) orderCancel() *cobra.Command {
	var (
		request requestID
		reason  string
	)
	cmd := &cobra.Command{
		Use:   "cancel ORDER_ID",
		Short: "Cancel an order and give its units back",
		Long: `Cancel an order of which nothing was shipped; its units go back to the stock in the same step. Money that is held for it
is let go, and money that was taken is refunded. What was shipped can be returned: weir order return.

Cancelling a cancelled order again changes nothing and succeeds.`,
		Example: `  weir order cancel 01K8ZC7Y3GQ9W2T4V6X8N0RB5M2 --reason "changed my mind"`,
		Args:    exactArgs("ORDER_ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeOrder(cmd, c, &request, "cancel order "+args[0], c.orders, orderv1connect.OrderServiceClient.CancelOrder,
				func(id string) *orderv1.CancelOrderRequest {
					return &orderv1.CancelOrderRequest{RequestId: id, OrderId: args[0], Reason: reason}
				})
		},
	}
	request.addFlag(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that says why, at most 200 bytes"+clearText)
	return cmd
}

// orderStatuses are the statuses that a filter takes, by the name that people type.
var orderStatuses = []struct {
	name   string
	status orderv1.OrderStatus
}{
	{"pending-payment", orderv1.OrderStatus_ORDER_STATUS_PENDING_PAYMENT},
	{"cancelled", orderv1.OrderStatus_ORDER_STATUS_CANCELLED},
	{"expired", orderv1.OrderStatus_ORDER_STATUS_EXPIRED},
	{"paid", orderv1.OrderStatus_ORDER_STATUS_PAID},
	{"partially-shipped", orderv1.OrderStatus_ORDER_STATUS_PARTIALLY_SHIPPED},
	{"shipped", orderv1.OrderStatus_ORDER_STATUS_SHIPPED},
	{"delivered", orderv1.OrderStatus_ORDER_STATUS_DELIVERED},
	{"returned", orderv1.OrderStatus_ORDER_STATUS_RETURNED},
	{"authorized", orderv1.OrderStatus_ORDER_STATUS_AUTHORIZED},
	{"payment-processing", orderv1.OrderStatus_ORDER_STATUS_PAYMENT_PROCESSING},
}

func statusNames() []string {
	names := make([]string, len(orderStatuses))
	for i, s := range orderStatuses {
		names[i] = s.name
	}
	return names
}

func statusText(status orderv1.OrderStatus) string {
	for _, s := range orderStatuses {
		if s.status == status {
			return s.name
		}
	}
	return status.String()
}

func parseStatus(text string) (orderv1.OrderStatus, error) {
	if text == "" {
		return orderv1.OrderStatus_ORDER_STATUS_UNSPECIFIED, nil
	}
	for _, s := range orderStatuses {
		if s.name == strings.ReplaceAll(strings.ToLower(text), "_", "-") {
			return s.status, nil
		}
	}
	return 0, usagef("--status %q is unknown%s", text, didYouMean(text, statusNames())).then("one of: %s", strings.Join(statusNames(), ", "))
}

// status colours the name of a status.
func (p painter) status(name string) string {
	switch name {
	case "pending-payment":
		return p.warn(name)
	case "cancelled", "expired":
		return p.dim(name)
	}
	return name
}
