package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	paymentv1 "github.com/weirhq/weir/proto/weir/payment/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
	"google.golang.org/protobuf/proto"
)

// changedPart returns the part of an order that an answer says was made or asked about, and how it is labelled; both are empty for none.
func changedPart(answer proto.Message) (name, id string) {
	switch m := answer.(type) {
	case *orderv1.ShipItemsResponse:
		return "shipment made", m.GetShipmentId()
	case *orderv1.RequestReturnResponse:
		return "return made", m.GetReturnId()
	case *orderv1.AddNoteResponse:
		return "note made", m.GetNoteId()
	case *paymentv1.StartPaymentResponse:
		return "payment made", m.GetPaymentId()
	case *paymentv1.CapturePaymentResponse:
		return "payment id", m.GetPaymentId()
	case *paymentv1.VoidPaymentResponse:
		return "payment id", m.GetPaymentId()
	case *paymentv1.RefundPaymentResponse:
		return "refund made", m.GetRefundId()
	}
	return "", ""
}

// printOrder prints one order, then the extra fields, which are pairs of name and value.
func (p *process) printOrder(order *orderv1.Order, extra ...string) error {
	paint := p.painterFor(p.stdout)
	if err := fields(p.stdout, paint, append([]string{
		"order", order.GetOrderId(),
		"user", order.GetUserId(),
		"status", statusText(order.GetStatus()),
		"payment", paymentStateText(order.GetPaymentState()),
		"shipments", enumText(order.GetFulfilmentState(), "FULFILMENT_STATE_"),
		"placed", timeText(order.GetPlacedAt()),
		"pay by", timeText(order.GetPayBy()),
		"changed", timeText(order.GetUpdateTime()),
		"reason", order.GetCancelReason(),
		"note", order.GetNote(),
		"ship to", addressText(order.GetShippingAddress()),
		"email", order.GetContact().GetEmail(),
		"phone", order.GetContact().GetPhone(),
		"personal", erasedText(order),
		"campaign", order.GetCampaignId(),
		"coupon", order.GetCouponCode(),
		"subtotal", moneyText(order.GetSubtotal()),
		"discount", moneyText(order.GetDiscount()),
		"tax", moneyText(order.GetTax()),
		"total", moneyText(order.GetTotal()),
	}, extra...)...); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(p.stdout); err != nil {
		return err
	}
	lines := newTable("SKU", ">QTY", ">PRICE", ">AMOUNT", "TITLE")
	for _, item := range order.GetItems() {
		lines.row(item.GetSku(), strconv.FormatInt(item.GetQuantity(), 10), moneyText(item.GetUnitPrice()), moneyText(item.GetAmount()), item.GetTitle())
	}
	if err := lines.print(p.stdout, paint); err != nil {
		return err
	}
	return p.printLife(order)
}

// addressText writes an address on one line.
func addressText(a *orderv1.ShippingAddress) string {
	parts := []string{a.GetRecipient()}
	parts = append(parts, a.GetLines()...)
	parts = append(parts, strings.TrimSpace(a.GetPostalCode()+" "+a.GetCity()), a.GetRegion(), a.GetCountryCode())
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), ", ")
}

func erasedText(order *orderv1.Order) string {
	if order.GetPersonalDataErased() {
		return "erased"
	}
	return ""
}

// printOrders prints one page of orders.
func (p *process) printOrders(answer *orderv1.ListOrdersResponse) error {
	return p.printOrderPage(answer.GetOrders(), answer.GetNextPageToken(), answer.GetFreshness())
}

func (p *process) printOrderPage(orders []*orderv1.Order, next string, freshness *typev1.Freshness) error {
	paint := p.painterFor(p.stdout)
	rows := newTable("ORDER", "STATUS", ">TOTAL", "PLACED", "ITEMS")
	rows.style = func(column int, cell string) string {
		if column == 1 {
			return paint.status(cell)
		}
		return cell
	}
	for _, order := range orders {
		items := make([]string, 0, len(order.GetItems()))
		for _, item := range order.GetItems() {
			items = append(items, fmt.Sprintf("%s=%d", item.GetSku(), item.GetQuantity()))
		}
		rows.row(order.GetOrderId(), statusText(order.GetStatus()), moneyText(order.GetTotal()), timeText(order.GetPlacedAt()), strings.Join(items, " "))
	}
	if err := rows.print(p.stdout, paint); err != nil {
		return err
	}
	return p.printPageEnd(len(orders), "order", next, freshness)
}

// printPageEnd says how many rows there were, how fresh they are and how to get more. It goes to stderr, so that a
// pipe gets the rows alone.
func (p *process) printPageEnd(count int, noun, next string, freshness *typev1.Freshness) error {
	if count != 1 {
		noun += "s"
	}
	return p.printEnd(count, noun, next, freshness)
}

// printEnd is printPageEnd for a noun that is of the right number already.
func (p *process) printEnd(count int, noun, next string, freshness *typev1.Freshness) error {
	text := fmt.Sprintf("%d %s, %s", count, noun, freshnessText(freshness))
	if next != "" {
		text += "; more: --page-token " + next
	}
	_, err := fmt.Fprintln(p.stderr, p.painterFor(p.stderr).dim(text))
	return err
}
