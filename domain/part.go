package domain

import (
	"fmt"
	"strconv"
	"strings"
)

// Limits of what an order may gather.
const (
	// PaymentsMax is how many payments of one order may be started.
	PaymentsMax = 20
	// RefundsMax is how many refunds of one order may be asked for. Those that an order needs to end right come on top.
	RefundsMax = 100
	// ShipmentsMax, ReturnsMax and NotesMax are as many as one order may have.
	ShipmentsMax = 100
	ReturnsMax   = 100
	NotesMax     = 100
)

// The parts of an order are named by the order's id and a number that counts from 1 without a gap.

// PaymentID names the payment of an order with this number: "<order id>-p<number>".
func PaymentID(order OrderID, number int) string { return order.String() + "-p" + strconv.Itoa(number) }

// RefundID names the refund of a payment with this number: "<payment id>-r<number>".
func RefundID(paymentID string, number int) string { return paymentID + "-r" + strconv.Itoa(number) }

// ShipmentID names the shipment of an order with this number: "<order id>-s<number>".
func ShipmentID(order OrderID, number int) string {
	return order.String() + "-s" + strconv.Itoa(number)
}

// ReturnID names the return of an order with this number: "<order id>-t<number>".
func ReturnID(order OrderID, number int) string { return order.String() + "-t" + strconv.Itoa(number) }

// NoteID names the note of an order with this number: "<order id>-n<number>".
func NoteID(order OrderID, number int) string { return order.String() + "-n" + strconv.Itoa(number) }

// PartOrderID returns the order that a payment, refund, shipment or return is of. Its error is an *InvalidIDError.
func PartOrderID(partID string) (OrderID, error) {
	text, _, _ := strings.Cut(partID, "-")
	return ParseOrderID(text)
}

// Next returns the command with the number filled in that its payment, refund, shipment, return or note is to have, if it has
// none: the next one. Other commands come back as they are.
func (o *Order) Next(c Command) Command {
	fill := func(number *int, count int) {
		if *number == 0 {
			*number = count + 1
		}
	}
	switch c := c.(type) {
	case StartPayment:
		fill(&c.Number, len(o.Payments))
		return c
	case RefundPayment:
		if c.PaymentID == "" {
			c.PaymentID = o.paid().ID
		}
		fill(&c.Number, o.refundsOf(c.PaymentID))
		return c
	case ShipItems:
		fill(&c.Number, len(o.Shipments))
		return c
	case RequestReturn:
		fill(&c.Number, len(o.Returns))
		return c
	case AddNote:
		fill(&c.Number, len(o.Notes))
		return c
	case PlaceOrder, CancelOrder, ExpireOrder, PutProduct, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock, CapturePayment, VoidPayment, RecordPaymentResult,
		RecordStrayPayment, RecordRefundResult, ConfirmDelivery, ReceiveReturn, AwardPoints, TakeBackPoints, EraseUser, PutCampaign, PutCoupon,
		PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	return c
}

// numbered checks the number of a new part against how many there are. done means that this very part is there.
func numbered(part string, number, count, most int) (done bool, err error) {
	switch {
	case number >= 1 && number <= count:
		return true, nil
	case number != count+1:
		return false, &InvalidArgumentError{Argument: "number", Problem: fmt.Sprintf("it is %d, want %d", number, count+1)}
	case count >= most:
		return false, &OrderLimitError{Part: part, Limit: most}
	}
	return false, nil
}

// CommandOrderID returns the order that a command is about, or false for commands of products and stock.
func CommandOrderID(c Command) (OrderID, bool) {
	switch c := c.(type) {
	case PlaceOrder:
		return c.OrderID, true
	case CancelOrder:
		return c.OrderID, true
	case ExpireOrder:
		return c.OrderID, true
	case StartPayment:
		return c.OrderID, true
	case CapturePayment:
		return c.OrderID, true
	case VoidPayment:
		return c.OrderID, true
	case RecordPaymentResult:
		return c.OrderID, true
	case RecordStrayPayment:
		return c.OrderID, true
	case RefundPayment:
		return c.OrderID, true
	case RecordRefundResult:
		return c.OrderID, true
	case ShipItems:
		return c.OrderID, true
	case ConfirmDelivery:
		return c.OrderID, true
	case RequestReturn:
		return c.OrderID, true
	case ReceiveReturn:
		return c.OrderID, true
	case AddNote:
		return c.OrderID, true
	case AwardPoints:
		return c.OrderID, true
	case TakeBackPoints:
		return c.OrderID, true
	case PutProduct, ReceiveStock, PreheatStock, GrantStock, AllotStock, ReturnStock, ReclaimStock, EraseUser, PutCampaign, PutCoupon,
		PutWebhookEndpoint, DeleteWebhookEndpoint:
	}
	return OrderID{}, false
}
