package api

import (
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/weirhq/weir/domain"
	"github.com/weirhq/weir/projections"
	catalogv1 "github.com/weirhq/weir/proto/weir/catalog/v1"
	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// Messages are made of values alone, without maps or the clock: the same reply is the same bytes (I4).

// orderMessage is an order with everything in it, so that it is allocated at once.
type orderMessage struct {
	order                      orderv1.Order
	total                      typev1.Money
	revision                   typev1.Revision
	placedAt, payBy, updatedAt timestamppb.Timestamp
}

type itemMessage struct {
	item              orderv1.OrderItem
	unitPrice, amount typev1.Money
}

// newOrder makes the message of an order as of a revision; person is what it knows of one, opened.
func newOrder(o *domain.Order, lane uint32, commit uint64, person *personal) *orderv1.Order {
	m := &orderMessage{}
	m.order.OrderId = o.ID.String()
	m.order.UserId = o.UserID
	m.order.Status = orderv1.OrderStatus(o.Status)
	m.order.CancelReason = o.CancelReason
	m.order.Note = person.note
	m.order.ShippingAddress, m.order.Contact = person.address, person.contact
	m.order.PersonalDataErased = person.erased
	fillMoney(&m.total, o.Total)
	m.order.Total = &m.total
	m.order.PlacedAt = fillTime(&m.placedAt, o.PlacedAt)
	m.order.PayBy = fillTime(&m.payBy, o.PayBy)
	m.order.UpdateTime = fillTime(&m.updatedAt, o.UpdatedAt)
	m.revision.Lane, m.revision.Commit = lane, commit
	m.order.Revision = &m.revision
	items := make([]itemMessage, len(o.Lines))
	m.order.Items = make([]*orderv1.OrderItem, len(o.Lines))
	for i := range o.Lines {
		line, item := &o.Lines[i], &items[i]
		price := domain.Money{Currency: o.Total.Currency, Minor: line.PriceMinor}
		amount, err := price.Times(line.Units)
		if err != nil {
			panic("api: bug: an order was placed whose line overflows: " + err.Error())
		}
		item.item.Sku, item.item.Title, item.item.Quantity = line.SKU, line.Title, line.Units
		fillMoney(&item.unitPrice, price)
		fillMoney(&item.amount, amount)
		item.item.UnitPrice, item.item.Amount = &item.unitPrice, &item.amount
		m.order.Items[i] = &item.item
	}
	fillLife(&m.order, o)
	return &m.order
}

func fillMoney(m *typev1.Money, from domain.Money) {
	m.CurrencyCode, m.Units = from.Currency, from.Minor
}

func fillTime(m *timestamppb.Timestamp, from time.Time) *timestamppb.Timestamp {
	m.Seconds, m.Nanos = from.Unix(), int32(from.Nanosecond())
	return m
}

func newProduct(p *domain.Product, lane uint32, commit uint64) *catalogv1.Product {
	price := &typev1.Money{}
	fillMoney(price, p.Price)
	return &catalogv1.Product{
		Sku: p.SKU, Title: p.Title, Price: price,
		UpdateTime: fillTime(&timestamppb.Timestamp{}, p.UpdatedAt),
		Revision:   &typev1.Revision{Lane: lane, Commit: commit},
	}
}

func newFreshness(f projections.Freshness) *typev1.Freshness {
	m := &struct {
		freshness typev1.Freshness
		revision  typev1.Revision
		asOf      timestamppb.Timestamp
	}{}
	m.freshness.State = typev1.Freshness_State(f.State) // The numbers are the same.
	m.revision.Lane, m.revision.Commit = f.Lane, f.Commit
	m.freshness.Revision = &m.revision
	m.freshness.LagCommits = f.LagCommits
	if !f.AsOf.IsZero() {
		m.freshness.AsOf = fillTime(&m.asOf, f.AsOf)
	}
	return &m.freshness
}

// itemField names a field of a request's line as a BadRequest does.
func itemField(index int, name string) string { return "items[" + strconv.Itoa(index) + "]." + name }
