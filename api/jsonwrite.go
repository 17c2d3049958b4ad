package api

import (
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	orderv1 "github.com/weirhq/weir/proto/weir/order/v1"
	typev1 "github.com/weirhq/weir/proto/weir/type/v1"
)

// jsonWriter writes messages as protojson does: fields in the order of their numbers, none with its zero value, 64-bit
// integers as texts, enums by name.
type jsonWriter struct {
	out []byte
	// unusual: there is something that protojson has to look at.
	unusual bool
}

func (w *jsonWriter) orderAndRevision(present bool, order *orderv1.Order, revision *typev1.Revision) {
	w.unusual = w.unusual || !present
	w.open()
	if order != nil {
		w.key(`"order":`)
		w.order(order)
	}
	if revision != nil {
		w.key(`"revision":`)
		w.revision(revision)
	}
	w.shut()
}

func (w *jsonWriter) orderAndFreshness(present bool, order *orderv1.Order, freshness *typev1.Freshness) {
	w.unusual = w.unusual || !present
	w.open()
	if order != nil {
		w.key(`"order":`)
		w.order(order)
	}
	if freshness != nil {
		w.key(`"freshness":`)
		w.freshness(freshness)
	}
	w.shut()
}

func (w *jsonWriter) listOrders(m *orderv1.ListOrdersResponse) {
	if m == nil {
		w.unusual = true
		return
	}
	w.open()
	if len(m.Orders) > 0 {
		w.key(`"orders":`)
		w.out = append(w.out, '[')
		for i, order := range m.Orders {
			if i > 0 {
				w.out = append(w.out, ',')
			}
			w.order(order)
		}
		w.out = append(w.out, ']')
	}
	w.textField(`"nextPageToken":`, m.NextPageToken)
	if m.Freshness != nil {
		w.key(`"freshness":`)
		w.freshness(m.Freshness)
	}
	w.textField(`"watchToken":`, m.WatchToken)
	w.shut()
}

func (w *jsonWriter) order(m *orderv1.Order) {
	if m == nil {
		w.unusual = true
		return
	}
	w.open()
	w.textField(`"orderId":`, m.OrderId)
	w.textField(`"userId":`, m.UserId)
	if m.Status != 0 {
		w.key(`"status":`)
		w.enum(orderv1.OrderStatus_name, int32(m.Status))
	}
	if len(m.Items) > 0 {
		w.key(`"items":`)
		w.out = append(w.out, '[')
		for i, item := range m.Items {
			if i > 0 {
				w.out = append(w.out, ',')
			}
			w.item(item)
		}
		w.out = append(w.out, ']')
	}
	w.moneyField(`"total":`, m.Total)
	w.timeField(`"placedAt":`, m.PlacedAt)
	w.timeField(`"payBy":`, m.PayBy)
	w.timeField(`"updateTime":`, m.UpdateTime)
	w.textField(`"cancelReason":`, m.CancelReason)
	if m.Revision != nil {
		w.key(`"revision":`)
		w.revision(m.Revision)
	}
	w.textField(`"note":`, m.Note)
	w.textField(`"campaignId":`, m.CampaignId)
	w.textField(`"couponCode":`, m.CouponCode)
	w.moneyField(`"subtotal":`, m.Subtotal)
	w.moneyField(`"discount":`, m.Discount)
	w.moneyField(`"tax":`, m.Tax)
	if m.PaymentState != 0 {
		w.key(`"paymentState":`)
		w.enum(orderv1.PaymentState_name, int32(m.PaymentState))
	}
	if m.FulfilmentState != 0 {
		w.key(`"fulfilmentState":`)
		w.enum(orderv1.FulfilmentState_name, int32(m.FulfilmentState))
	}
	if len(m.Payments)+len(m.Refunds)+len(m.Shipments)+len(m.Returns)+len(m.MerchantNotes) > 0 {
		w.unusual = true // What became of an order is written at leisure.
	}
	if m.ShippingAddress != nil {
		w.key(`"shippingAddress":`)
		w.address(m.ShippingAddress)
	}
	if m.Contact != nil {
		w.key(`"contact":`)
		w.open()
		w.textField(`"email":`, m.Contact.Email)
		w.textField(`"phone":`, m.Contact.Phone)
		w.shut()
	}
	if m.PersonalDataErased {
		w.key(`"personalDataErased":true`)
	}
	w.shut()
}

func (w *jsonWriter) address(m *orderv1.ShippingAddress) {
	w.open()
	w.textField(`"recipient":`, m.Recipient)
	if len(m.Lines) > 0 {
		w.key(`"lines":`)
		w.out = append(w.out, '[')
		for i, line := range m.Lines {
			if i > 0 {
				w.out = append(w.out, ',')
			}
			w.text(line)
		}
		w.out = append(w.out, ']')
	}
	w.textField(`"postalCode":`, m.PostalCode)
	w.textField(`"city":`, m.City)
	w.textField(`"region":`, m.Region)
	w.textField(`"countryCode":`, m.CountryCode)
	w.shut()
}

func (w *jsonWriter) item(m *orderv1.OrderItem) {
	if m == nil {
		w.unusual = true
		return
	}
	w.open()
	w.textField(`"sku":`, m.Sku)
	w.int64Field(`"quantity":`, m.Quantity)
	w.textField(`"title":`, m.Title)
	w.moneyField(`"unitPrice":`, m.UnitPrice)
	w.moneyField(`"amount":`, m.Amount)
	w.moneyField(`"discount":`, m.Discount)
	w.moneyField(`"tax":`, m.Tax)
	if m.TaxRateBps != 0 {
		w.key(`"taxRateBps":`)
		w.out = strconv.AppendInt(w.out, int64(m.TaxRateBps), 10)
	}
	if m.TaxIncluded {
		w.key(`"taxIncluded":true`)
	}
	w.shut()
}

func (w *jsonWriter) moneyField(key string, m *typev1.Money) {
	if m == nil {
		return
	}
	w.key(key)
	w.open()
	w.textField(`"currencyCode":`, m.CurrencyCode)
	w.int64Field(`"units":`, m.Units)
	w.shut()
}

func (w *jsonWriter) revision(m *typev1.Revision) {
	w.open()
	if m.Lane != 0 {
		w.key(`"lane":`)
		w.out = strconv.AppendUint(w.out, uint64(m.Lane), 10)
	}
	w.uint64Field(`"commit":`, m.Commit)
	w.shut()
}

func (w *jsonWriter) freshness(m *typev1.Freshness) {
	w.open()
	if m.State != 0 {
		w.key(`"state":`)
		w.enum(typev1.Freshness_State_name, int32(m.State))
	}
	if m.Revision != nil {
		w.key(`"revision":`)
		w.revision(m.Revision)
	}
	w.uint64Field(`"lagCommits":`, m.LagCommits)
	w.timeField(`"asOf":`, m.AsOf)
	w.shut()
}

func (w *jsonWriter) open() { w.out = append(w.out, '{') }

func (w *jsonWriter) shut() { w.out = append(w.out, '}') }

// key writes a field's name, which comes with its quotes and colon, and the comma before it.
func (w *jsonWriter) key(key string) {
	if w.out[len(w.out)-1] != '{' { // No value ends with one.
		w.out = append(w.out, ',')
	}
	w.out = append(w.out, key...)
}

func (w *jsonWriter) textField(key, text string) {
	if text != "" {
		w.key(key)
		w.text(text)
	}
}

func (w *jsonWriter) int64Field(key string, value int64) {
	if value != 0 {
		w.key(key)
		w.out = append(strconv.AppendInt(append(w.out, '"'), value, 10), '"')
	}
}

func (w *jsonWriter) uint64Field(key string, value uint64) {
	if value != 0 {
		w.key(key)
		w.out = append(strconv.AppendUint(append(w.out, '"'), value, 10), '"')
	}
}

func (w *jsonWriter) enum(names map[int32]string, number int32) {
	if name, known := names[number]; known {
		w.out = append(append(append(w.out, '"'), name...), '"')
		return
	}
	w.out = strconv.AppendInt(w.out, int64(number), 10)
}

func (w *jsonWriter) text(text string) {
	w.out = append(w.out, '"')
	plain := 0 // From here on nothing is written yet.
	ascii := true
	for i := range len(text) {
		c := text[i]
		ascii = ascii && c < utf8.RuneSelf
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		w.out = append(w.out, text[plain:i]...)
		plain = i + 1
		switch c {
		case '"', '\\':
			w.out = append(w.out, '\\', c)
		case '\b':
			w.out = append(w.out, '\\', 'b')
		case '\f':
			w.out = append(w.out, '\\', 'f')
		case '\n':
			w.out = append(w.out, '\\', 'n')
		case '\r':
			w.out = append(w.out, '\\', 'r')
		case '\t':
			w.out = append(w.out, '\\', 't')
		default:
			const hex = "0123456789abcdef"
			w.out = append(w.out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	w.out = append(append(w.out, text[plain:]...), '"')
	if !ascii && !utf8.ValidString(text) {
		w.unusual = true // protojson refuses it.
	}
}

// The times that JSON can say: the years 1 to 9999.
const (
	timeSecondsMin = -62135596800
	timeSecondsMax = 253402300799
	timeNanosMax   = 999_999_999
)

// timeField writes RFC 3339 in UTC with 0, 3, 6 or 9 digits after the second.
func (w *jsonWriter) timeField(key string, m *timestamppb.Timestamp) {
	if m == nil {
		return
	}
	if m.Seconds < timeSecondsMin || m.Seconds > timeSecondsMax || m.Nanos < 0 || m.Nanos > timeNanosMax {
		w.unusual = true
		return
	}
	w.key(key)
	at := time.Unix(m.Seconds, 0).UTC()
	year, month, day := at.Date()
	hour, minute, second := at.Clock()
	w.out = append(w.out, '"')
	w.digits(year, 4)
	w.out = append(w.out, '-')
	w.digits(int(month), 2)
	w.out = append(w.out, '-')
	w.digits(day, 2)
	w.out = append(w.out, 'T')
	w.digits(hour, 2)
	w.out = append(w.out, ':')
	w.digits(minute, 2)
	w.out = append(w.out, ':')
	w.digits(second, 2)
	switch nanos := int(m.Nanos); {
	case nanos == 0:
	case nanos%1_000_000 == 0:
		w.out = append(w.out, '.')
		w.digits(nanos/1_000_000, 3)
	case nanos%1_000 == 0:
		w.out = append(w.out, '.')
		w.digits(nanos/1_000, 6)
	default:
		w.out = append(w.out, '.')
		w.digits(nanos, 9)
	}
	w.out = append(w.out, 'Z', '"')
}

// digits writes a number of at most width digits with zeros before it.
func (w *jsonWriter) digits(number, width int) {
	start := len(w.out)
	for range width {
		w.out = append(w.out, '0')
	}
	for i := start + width - 1; i >= start; i-- {
		w.out[i] = byte('0' + number%10)
		number /= 10
	}
}
